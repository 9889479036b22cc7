//! Chores of the project: `cargo xtask bench NAME` measures against the rival and prints a table.

mod core;
mod corpus;
mod crowd;
mod deploy;
mod footprint;
mod gateway;
mod machine;
mod runtime;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure; wants a release build, root, cc, (for `gateway`) nginx, haproxy, caddy, wrk, h2load and openssl, and (for
    /// `deploy`) skopeo, docker-registry, umoci and npm
    Bench {
        #[command(subcommand)]
        name: Bench,
        /// Print JSON rows instead of a table
        #[arg(long, global = true)]
        json: bool,
    },
}

#[derive(Clone, Copy, Subcommand)]
enum Bench {
    /// Requests per CPU-second beside nginx, HAProxy and Caddy, in one run, interleaved
    Gateway {
        /// Short rounds: three minutes instead of nine
        #[arg(long)]
        quick: bool,
    },
    /// Requests that no client should send: what of them reaches an app behind us, nginx and HAProxy
    Corpus,
    /// A thousand hosts with certificates, ten thousand idle TLS connections, ten thousand WebSockets
    Crowd,
    /// Memory of our own processes, and the time that start, deploy and rollback take
    Footprint,
    /// Start and wake of sandboxes beside bubblewrap, runc and Docker; sleeping apps, new apps, neighbours
    Runtime {
        /// Fewer rounds, 100 sleeping apps instead of 500: about four minutes instead of about fifteen
        #[arg(long)]
        quick: bool,
        /// Only what an app notices of its neighbours
        #[arg(long)]
        neighbours: bool,
    },
    /// The budgets of the core: memory, start, deploy, exit, routes, boot with 500 apps, lost requests
    Core {
        /// 40 apps instead of 500, and fewer rounds: under a minute instead of under six
        #[arg(long)]
        quick: bool,
    },
    /// Pushes and pulls of images beside docker-registry, unpacking beside umoci, a changed Node app beside npm, rollbacks
    Deploy {
        /// Fewer rounds
        #[arg(long)]
        quick: bool,
    },
}

/// One measured thing, in the shape that every benchmark of ours has.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub ours: f64,
    pub rival: Option<f64>,
    pub unit: &'static str,
    /// What the budget asks: of the ratio if there is a rival, else of `ours`.
    pub must: f64,
    pub goal: f64,
    pub more_is_better: bool,
}

/// What a benchmark found.
pub struct Report {
    pub rows: Vec<Row>,
    /// Printed with the table, for whoever judges it.
    pub notes: Vec<String>,
}

impl From<Vec<Row>> for Report {
    fn from(rows: Vec<Row>) -> Self {
        Report {
            rows,
            notes: Vec::new(),
        }
    }
}

impl Row {
    fn measured(&self) -> f64 {
        self.rival.map_or(self.ours, |rival| self.ours / rival)
    }

    fn meets(&self, bound: f64) -> bool {
        if self.more_is_better {
            self.measured() >= bound
        } else {
            self.measured() <= bound
        }
    }
}

fn main() -> anyhow::Result<()> {
    let Command::Bench { name, json } = Cli::parse().command;
    let mut header = machine::describe();
    let Report { rows, notes } = match name {
        Bench::Gateway { quick } => gateway::run(quick)?,
        Bench::Corpus => corpus::run()?,
        Bench::Crowd => crowd::run()?,
        Bench::Footprint => footprint::run()?.into(),
        Bench::Core { quick } => core::run(quick)?,
        Bench::Deploy { quick } => deploy::run(quick)?,
        Bench::Runtime { quick, neighbours } => runtime::run(quick, neighbours)?,
    };
    header.extend(notes);
    if json {
        for line in &header {
            eprintln!("{line}");
        }
        let list: Vec<_> = rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "name": row.name, "ours": row.ours, "rival": row.rival,
                    "ratio": row.rival.map(|rival| row.ours / rival),
                    "must": row.must, "goal": row.goal, "ok": row.meets(row.must),
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&list)?);
        return Ok(());
    }
    for line in &header {
        println!("- {line}");
    }
    println!();
    println!("| what | ours | rival | ratio | must | goal | |");
    println!("|---|---|---|---|---|---|---|");
    for row in &rows {
        let rival = row
            .rival
            .map_or("–".into(), |r| format!("{r:.0} {}", row.unit));
        let ratio = row
            .rival
            .map_or("–".into(), |r| format!("{:.2}", row.ours / r));
        let digits = if row.ours < 10.0 { 2 } else { 1 };
        let verdict = match (row.meets(row.must), row.meets(row.goal)) {
            (_, true) => "goal",
            (true, _) => "must",
            _ => "MISSED",
        };
        println!(
            "| {} | {:.digits$} {} | {rival} | {ratio} | {} | {} | {verdict} |",
            row.name, row.ours, row.unit, row.must, row.goal
        );
    }
    Ok(())
}

/// The middle of an odd number of measurements.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A binary to measure instead of building one: its path. For when the tree is in the middle of a change,
/// or to compare two versions.
pub const BINARY: &str = "HUTONG_BENCH_BINARY";

/// The binary as it is given to others (`--profile dist`), built if need be; or the one that [`BINARY`] names.
pub fn release_binary() -> anyhow::Result<std::path::PathBuf> {
    if let Some(path) = std::env::var_os(BINARY) {
        return Ok(std::path::PathBuf::from(path).canonicalize()?);
    }
    let status = std::process::Command::new(env!("CARGO"))
        .args(["build", "--profile", "dist", "--package", "hutong"])
        .status()?;
    anyhow::ensure!(status.success(), "the build failed");
    let target = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/dist/hutong");
    Ok(target.canonicalize()?)
}
