//! `hutong detect`: what a folder is, how it would be built and run, and why; without a server.

use std::io::Read;
use std::path::{Path, PathBuf};

use hutong_core::detect::{self, Completed, Listing, MAX_TEXT, Plan, Program};
use hutong_core::name::AppName;
use hutong_core::spec::Missing;

use crate::error::CliError;
use crate::output::{Output, printable};
use crate::pack;

/// Of a file that has no more than a name.
const NOTHING_SAID: Missing = Missing {
    build: true,
    spa: false,
    port: 8080,
};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  hutong detect                what the current folder is, and what a deploy would do
  hutong detect ./shop --write write it into a new hutong.toml, to change it there")]
pub struct Args {
    /// The app's folder
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Write a hutong.toml that says so; one that is there is left alone
    #[arg(long)]
    write: bool,
}

pub fn run(args: &Args, output: Output) -> Result<(), CliError> {
    let path = args.folder.join("hutong.toml");
    let is_there = path.exists();
    if args.write && is_there {
        return Err(
            CliError::failed(format!("{} is there already", path.display()))
                .hint("`hutong detect` without --write shows what it leaves open"),
        );
    }
    let text = match is_there {
        true => std::fs::read_to_string(&path)
            .map_err(|error| CliError::bad_file(format!("{}: {error}", path.display())))?,
        false => format!("name = \"{}\"\n", name_of(&args.folder)?),
    };
    let done = complete(&args.folder, &text)?;
    if args.write {
        // The name first; it is all that the text says, so everything may stand behind it.
        let plan = done.plan.as_ref();
        let (before, after) =
            plan.map_or_else(Default::default, |plan| detect::written(plan, NOTHING_SAID));
        let text = format!("{text}# domains = [\"shop.example.com\"]\n{before}{after}");
        // Not over one that somebody else has just made.
        let written = std::fs::File::create_new(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
        written.map_err(|error| CliError::failed(format!("{}: {error}", path.display())))?;
        output.say(&format!("wrote {}", path.display()));
    }
    let Some(plan) = &done.plan else {
        output.say("hutong.toml says what runs; nothing is left to be recognised");
        return Ok(());
    };
    if output.json {
        output.value(&value(plan));
    } else {
        output.text(&describe(plan).join("\n"));
    }
    Ok(())
}

/// Reads a configuration, and detects what it does not say. Whether the server has an engine is not known here: a
/// Dockerfile is taken for what it is.
pub fn complete(folder: &Path, text: &str) -> Result<Completed, CliError> {
    let path = folder.join("hutong.toml");
    let path = path.to_string_lossy();
    let done = detect::complete(&path, text, true, || listing(folder));
    done.map_err(CliError::bad_file)
}

/// What a plan comes to, for a person.
pub fn describe(plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!("{}:", plan.language)];
    lines.extend(
        plan.because
            .iter()
            .map(|why| format!("  {}", printable(why))),
    );
    for step in &plan.steps {
        let network = if step.network { "  (network)" } else { "" };
        let line = printable(&step.command.join(" "));
        lines.push(format!("  build: {line}{network}"));
    }
    lines.push(match &plan.program {
        Program::Command(command) => format!("  run: {}", printable(&command.join(" "))),
        Program::Static { folder, .. } => format!("  serve the files of ./{}", printable(folder)),
        Program::Dockerfile(path) => format!("  run the image that {} makes", printable(path)),
    });
    if !plan.caches.is_empty() {
        lines.push(format!("  kept between builds: {}", plan.caches.join(", ")));
    }
    lines
}

fn value(plan: &Plan) -> serde_json::Value {
    let (before, after) = detect::written(plan, NOTHING_SAID);
    let steps = plan
        .steps
        .iter()
        .map(|step| serde_json::json!({ "command": step.command, "network": step.network }));
    serde_json::json!({
        "language": plan.language,
        "because": plan.because,
        "steps": steps.collect::<Vec<_>>(),
        "caches": plan.caches,
        "configuration": format!("{before}{after}"),
    })
}

/// A folder as the detectors want it: the files that a deploy would send.
fn listing(folder: &Path) -> Listing {
    let mut listing = Listing::default();
    for path in pack::entries(folder, None).flatten() {
        let name = path.strip_prefix(folder).ok().and_then(Path::to_str);
        let (Some(name), Ok(found)) = (name, path.metadata()) else {
            continue;
        };
        // entries() always names hutong.toml; whether it is there, nobody asks here.
        listing.add(name, found.len(), || {
            let mut bytes = Vec::new();
            let file = std::fs::File::open(&path).ok()?;
            file.take(MAX_TEXT).read_to_end(&mut bytes).ok()?;
            Some(bytes)
        });
    }
    listing
}

/// A name for the app, made of the folder's.
fn name_of(folder: &Path) -> Result<String, CliError> {
    let whole = folder
        .canonicalize()
        .map_err(|error| CliError::bad_file(format!("{}: {error}", folder.display())))?;
    let last = whole.file_name().unwrap_or_default().to_string_lossy();
    let plain: String = last
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(40)
        .collect();
    let name = plain.trim_matches('-');
    AppName::new(name)
        .map(|_| name.to_owned())
        .map_err(|problem| {
            CliError::bad_file(format!("the folder's name makes no app's name: {problem}"))
                .hint("write a hutong.toml with `name = \"my-app\"`")
        })
}
