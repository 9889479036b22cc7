//! `hutong`: the binary of every role. The command line talks to a server over its API; `serve` is the
//! warden; `internal` are the processes that the warden spawns from this same binary.

mod app_files;
mod commands;
mod drift;
mod error;
mod output;
mod pack;
mod remote;
mod server_file;
mod terminal;

use clap::{CommandFactory, Parser, Subcommand};

use commands as verbs;
use error::CliError;
use output::Output;

/// Runs many small apps on one server, each in its own sandbox, with its own domain, data, logs and limits.
#[derive(Parser)]
#[command(
    name = "hutong",
    version,
    after_help = "Examples:
  hutong demo                         see it work, here and now
  sudo hutong serve --http 0.0.0.0:80 run a server
  hutong deploy ./my-app              deploy a folder that has a hutong.toml
  hutong logs my-app -f               follow its output

Exit codes: 0 done; 1 it failed, the reason is on stderr; 2 wrong usage; 3 no server answers;
4 a file is wrong (file:line:column on stderr); 5 `diff` found differences; `exec` and `run` give the program's own code."
)]
struct Cli {
    /// Where the server is: unix:PATH or IP:PORT. Default: the system's socket, then the user's.
    #[arg(long, global = true, env = "HUTONG_API", value_name = "ADDRESS")]
    api: Option<String>,
    /// A server that `hutong login` gave a name; `local` is this machine. HUTONG_CONTEXT is the same, where --api is not set.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// File with the API's token, where the API is on TCP.
    #[arg(long, global = true, env = "HUTONG_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<std::path::PathBuf>,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a throwaway server here and deploy the examples on it
    Demo(verbs::demo::Args),
    /// Run the server: the warden, which starts everything else
    Serve(verbs::serve::Args),
    /// Show each wall of isolation, whether it stands on this host, and the remedy
    Doctor(verbs::doctor::Args),
    /// Check an app's hutong.toml
    Check(verbs::check::Args),
    /// Show what a folder is recognised as, and how it would be built and run
    Detect(verbs::detect::Args),
    /// Print the JSON Schema of hutong.toml
    Schema,
    /// Make apps of the configuration of Docker Compose, nginx, systemd, PM2 and others
    Import(verbs::import::Args),
    /// Deploy a folder
    Deploy(verbs::deploy::Args),
    /// Cancel a build, forget what builds keep, give builds secrets
    #[command(subcommand)]
    Build(verbs::build::Verb),
    /// List the apps
    Apps,
    /// Compare an app's file with what is deployed, and that with what runs
    Diff(verbs::diff::Args),
    /// Print an app's hutong.toml as it was deployed
    Export(verbs::export::Args),
    /// Deploy a folder of apps as a whole
    Apply(verbs::apply::Args),
    /// Show one app, with its instances
    Status(verbs::AppArg),
    /// Show an app's output, or its access log
    Logs(verbs::logs::Args),
    /// List an app's releases
    Releases(verbs::AppArg),
    /// Make an earlier release serve again
    Rollback(verbs::rollback::Args),
    /// List copies of an app's data as it was before release commands
    Snapshots(verbs::AppArg),
    /// Put a copy of an app's data back, throw one away
    #[command(subcommand)]
    Snapshot(verbs::snapshots::Verb),
    /// Have a canary, or the variant of an A/B test, take over now, whatever it has shown so far
    Promote(verbs::promote::Args),
    /// Show how both sides of an A/B test do
    Variants(verbs::AppArg),
    /// End the deployment under way; what served before serves on
    Abort(verbs::AppArg),
    /// Start a stopped app
    Start(verbs::AppArg),
    /// Stop an app; its data, releases and domains stay
    Stop(verbs::AppArg),
    /// Replace every instance of an app, without losing a request
    Restart(verbs::AppArg),
    /// Set how many instances run
    Scale(verbs::scale::Args),
    /// Remove an app; its data is kept for seven days
    Remove(verbs::remove::Args),
    /// Set, unset and list environment variables
    #[command(subcommand)]
    Env(verbs::env::Verb),
    /// Make, list and revoke tokens for `git push` and for reading
    #[command(subcommand)]
    Token(verbs::token::Verb),
    /// Have an app fetched from a repository elsewhere, by webhooks
    #[command(subcommand)]
    Source(verbs::source::Verb),
    /// List the previews of an app's branches
    Previews(verbs::AppArg),
    /// Store names and passwords for other registries of images
    #[command(subcommand)]
    Registry(verbs::registry::Verb),
    /// List certificates, bring your own, print the local authority's root
    #[command(subcommand)]
    Cert(verbs::cert::Verb),
    /// Show routes with their counters, and instances as visitors' requests see them
    Gateway,
    /// List containers that others started and that are routed by their labels
    External,
    /// List addresses that are not let in, add and lift
    #[command(subcommand)]
    Ban(verbs::ban::Verb),
    /// Make a user's line for `[traffic.auth]` of hutong.toml
    Password(verbs::password::Args),
    /// Run a program inside an app's running sandbox
    Exec(verbs::exec::Args),
    /// Run a program once, in a sandbox of its own beside the app; or a timed job now
    Run(verbs::run::Args),
    /// List what was run once: timed jobs, and what was asked for
    Runs(verbs::run::ListArgs),
    /// Put an app into quarantine: cut off, frozen, and evidence kept
    Isolate(verbs::isolate::Args),
    /// Let an app out of quarantine
    Release(verbs::AppArg),
    /// Show our own processes: role, pid, uid, memory
    System,
    /// Replace the running server by the program installed in its place; apps run on, no request is lost
    Upgrade,
    /// Name a server on another machine, over ssh or https, and use it from now on
    Login(verbs::login::Args),
    /// List servers that have a name, choose one, forget one
    #[command(subcommand)]
    Context(verbs::context::Verb),
    /// Show the versions of this program and of the server
    Version,
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the API's description (OpenAPI)
    Openapi,
    /// Roles that the warden starts
    #[command(hide = true)]
    Internal {
        role: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<std::ffi::OsString>,
    },
}

fn main() -> std::process::ExitCode {
    if hutong_daemon::is_hook() {
        return match hutong_daemon::hook_main() {
            true => std::process::ExitCode::SUCCESS,
            false => std::process::ExitCode::FAILURE,
        };
    }
    let cli = Cli::parse();
    start_log();
    let output = Output::new(cli.json);
    match run(cli, output) {
        Ok(code) => code,
        Err(error) => {
            error.print();
            error.exit_code()
        }
    }
}

/// The platform's own log, on stderr; `HUTONG_LOG` sets how much (default: warnings).
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HUTONG_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(output::colours(&std::io::stderr()))
        .with_target(false)
        .init();
}

fn run(cli: Cli, output: Output) -> Result<std::process::ExitCode, CliError> {
    let done = Ok(std::process::ExitCode::SUCCESS);
    let server = verbs::Server {
        api: cli.api,
        context: cli.context,
        token_file: cli.token_file,
        output,
    };
    match cli.command {
        Command::Internal { role, rest } => return verbs::internal::run(&role, &rest, &server),
        Command::Serve(args) => verbs::serve::run(args, server.api, server.output)?,
        Command::Demo(args) => return verbs::demo::run(args, server.output),
        Command::Schema => verbs::check::schema(server.output)?,
        Command::Check(args) => verbs::check::run(&args, server.output)?,
        Command::Import(args) => verbs::import::run(&args, server.output)?,
        Command::Detect(args) => verbs::detect::run(&args, server.output)?,
        Command::Build(verb) => server.block_on(verbs::build::run(verb, &server))?,
        Command::Openapi => server.output.as_is(&hutong_daemon::openapi()),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hutong", &mut text);
            server.output.as_is(&String::from_utf8_lossy(&text));
        }
        Command::Doctor(args) => return verbs::doctor::run(&args, &server),
        Command::Deploy(args) => return server.block_on(verbs::deploy::run(&args, &server)),
        Command::Diff(args) => return server.block_on(verbs::diff::run(&args, &server)),
        Command::Export(args) => server.block_on(verbs::export::run(&args, &server))?,
        Command::Apply(args) => return server.block_on(verbs::apply::run(&args, &server)),
        Command::Apps => server.block_on(verbs::apps::run(&server))?,
        Command::Status(args) => server.block_on(verbs::status::run(&args.app, &server))?,
        Command::Logs(args) => server.block_on(verbs::logs::run(&args, &server))?,
        Command::Releases(args) => server.block_on(verbs::releases::run(&args.app, &server))?,
        Command::Rollback(args) => server.block_on(verbs::rollback::run(&args, &server))?,
        Command::Snapshots(args) => server.block_on(verbs::snapshots::list(&args.app, &server))?,
        Command::Snapshot(verb) => server.block_on(verbs::snapshots::run(verb, &server))?,
        Command::Promote(args) => server.block_on(verbs::promote::run(&args, &server))?,
        Command::Variants(args) => server.block_on(verbs::variants::run(&args.app, &server))?,
        Command::Abort(args) => server.block_on(verbs::abort::run(&args.app, &server))?,
        Command::Start(args) => server.block_on(verbs::start::run(&args.app, "start", &server))?,
        Command::Stop(args) => server.block_on(verbs::start::run(&args.app, "stop", &server))?,
        Command::Restart(args) => server.block_on(verbs::restart::run(&args.app, &server))?,
        Command::Scale(args) => server.block_on(verbs::scale::run(&args, &server))?,
        Command::Remove(args) => server.block_on(verbs::remove::run(&args, &server))?,
        Command::Token(verb) => server.block_on(verbs::token::run(verb, &server))?,
        Command::Source(verb) => server.block_on(verbs::source::run(verb, &server))?,
        Command::Previews(args) => server.block_on(verbs::source::previews(&args.app, &server))?,
        Command::Cert(verb) => server.block_on(verbs::cert::run(verb, &server))?,
        Command::Gateway => server.block_on(verbs::gateway::run(&server))?,
        Command::External => server.block_on(verbs::external::run(&server))?,
        Command::Ban(verb) => server.block_on(verbs::ban::run(verb, &server))?,
        Command::Registry(verb) => server.block_on(verbs::registry::run(verb, &server))?,
        Command::Env(verb) => server.block_on(verbs::env::run(verb, &server))?,
        Command::Password(args) => verbs::password::run(&args, server.output)?,
        Command::Exec(args) => return server.block_on(verbs::exec::run(&args, &server)),
        Command::Run(args) => return server.block_on(verbs::run::run(&args, &server)),
        Command::Runs(args) => server.block_on(verbs::run::list(&args, &server))?,
        Command::Isolate(args) => server.block_on(verbs::isolate::isolate(&args, &server))?,
        Command::Release(args) => server.block_on(verbs::isolate::release(&args.app, &server))?,
        Command::System => server.block_on(verbs::system::run(&server))?,
        Command::Upgrade => server.block_on(verbs::upgrade::run(&server))?,
        Command::Login(args) => server.block_on(verbs::login::run(&args, &server))?,
        Command::Context(verb) => verbs::context::run(&verb, server.output)?,
        Command::Version => server.block_on(verbs::version::run(&server))?,
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The reference in docs/ is this program's own help.
    #[test]
    fn the_reference_is_current() {
        let mut text = String::from(
            "# Commands\n\nThis is what `hutong COMMAND --help` prints; a test keeps it current\n(`UPDATE_REFERENCE=1 cargo test -p hutong reference` writes it anew).\n",
        );
        let mut root = Cli::command().term_width(100);
        root.build();
        let mut pages = vec![(String::from("hutong"), root.clone())];
        while let Some((name, mut command)) = (!pages.is_empty()).then(|| pages.remove(0)) {
            if command.is_hide_set() || name.ends_with(" help") {
                continue;
            }
            text.push_str(&format!(
                "\n## {name}\n\n```text\n{}\n```\n",
                trimmed(&command.render_long_help().to_string())
            ));
            for sub in command.get_subcommands() {
                pages.push((format!("{name} {}", sub.get_name()), sub.clone()));
            }
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference.md");
        if std::env::var_os("UPDATE_REFERENCE").is_some() {
            std::fs::write(path, &text).expect("docs/ is writable");
        }
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            stored == text,
            "docs/reference.md is old: UPDATE_REFERENCE=1 cargo test -p hutong reference"
        );
    }

    fn trimmed(text: &str) -> String {
        text.lines()
            .map(str::trim_end)
            .collect::<Vec<_>>()
            .join("\n")
            .trim_end()
            .to_owned()
    }
}
