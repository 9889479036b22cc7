//! `hutong export APP`: its hutong.toml as it was deployed, to the byte.

use std::io::Write;
use std::path::{Path, PathBuf};

use hutong_api::AppFile;

use super::{Server, path};
use crate::error::CliError;

#[derive(clap::Args)]
#[command(
    after_help = "It is the file of the release that is wanted: the one under way, else the one that serves. What was set
beside the file (`hutong env set`, `hutong scale`) is named on standard error and is not in it; the
values of such variables leave the server for nobody.

Examples:
  hutong export shop > hutong.toml
  hutong export shop --out shop/hutong.toml"
)]
pub struct Args {
    /// The app's name
    app: String,
    /// Write this file instead; it must not be there yet
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite it
    #[arg(long, requires = "out")]
    force: bool,
}

pub async fn run(args: &Args, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let file: AppFile = client.get(&path(&["apps", &args.app, "file"])).await?;
    let output = server.output;
    if let Some(out) = &args.out {
        write(out, &file.text, args.force)?;
    }
    if output.json {
        output.value(&file);
        return Ok(());
    }
    if args.out.is_none() {
        // A closed pipe is the reader's wish, no failure; and no newline is added to what was deployed.
        let _ = std::io::stdout().lock().write_all(file.text.as_bytes());
    }
    if !file.variables.is_empty() {
        output.say(&format!(
            "not in it, because they were set by `hutong env set`: {}",
            file.variables.join(", ")
        ));
    }
    if let Some(instances) = file.scale {
        output.say(&format!(
            "not in it: `hutong scale` set {instances} instance(s)"
        ));
    }
    Ok(())
}

fn write(path: &Path, text: &str, force: bool) -> Result<(), CliError> {
    let failed = |error: std::io::Error| {
        let failed = CliError::failed(format!("{}: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::AlreadyExists => failed.hint("--force overwrites it"),
            _ => failed,
        }
    };
    // The folder of a bare file name is an empty path.
    let path = &std::path::absolute(path).map_err(failed)?;
    if force {
        return hutong_runtime::paths::atomic_write(path, text.as_bytes(), 0o644).map_err(failed);
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}
