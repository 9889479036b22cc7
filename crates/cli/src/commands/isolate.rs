//! `hutong isolate APP` and `hutong release APP`: quarantine.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use http_body_util::BodyExt;
use hutong_api::{App, Isolation};

use super::{Server, path};
use crate::error::CliError;

#[derive(clap::Args)]
#[command(
    after_help = "No request reaches the app, nothing goes out of it, and its processes are frozen as they are. The
bundle has its logs, its processes with their open files and sockets, and its releases; of the
variables that `hutong env set` keeps none is in it.
`hutong release APP` lets it go on.

Examples:
  hutong isolate shop
  hutong isolate shop --bundle /root/shop.tar.gz"
)]
pub struct Args {
    /// The app's name
    app: String,
    /// Where the evidence is written [default: ./APP-evidence.tar.gz]
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
}

pub async fn isolate(args: &Args, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let place = path(&["apps", &args.app, "isolate"]);
    let done: Isolation = client.post(&place, &()).await?;
    let default = || format!("{}-evidence.tar.gz", args.app).into();
    let file = args.bundle.clone().unwrap_or_else(default);
    // Cut off it is; whatever happens now.
    let packed = fetch(&args.app, &file, server).await;
    let output = server.output;
    if output.json {
        output.value(&done);
    } else {
        let count = done.frozen.len();
        let cut = if done.is_cut {
            "cut off"
        } else {
            "being cut off"
        };
        output.text(&format!(
            "{} is {cut}, {count} instance(s) frozen",
            args.app
        ));
        if packed.is_ok() {
            output.text(&format!("evidence: {}", file.display()));
        }
    }
    if !done.moving.is_empty() {
        output.warn(&format!("not frozen: {}", done.moving.join(", ")));
    }
    packed
}

/// Only its owner may read it: it holds what visitors sent.
async fn fetch(app: &str, file: &std::path::Path, server: &Server) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("{}: {error}", file.display()));
    // What was fetched before stays until this is whole. A device or a link is written to as it is.
    let is_special = std::fs::symlink_metadata(file).is_ok_and(|found| !found.is_file());
    if is_special {
        let mut target = std::fs::OpenOptions::new()
            .write(true)
            .open(file)
            .map_err(failed)?;
        return copy(app, &mut target, server).await;
    }
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let _ = std::fs::remove_file(&part);
    let mut open = std::fs::OpenOptions::new();
    let open = open.write(true).create_new(true).mode(0o600);
    let mut target = open.open(&part).map_err(failed)?;
    if let Err(error) = copy(app, &mut target, server).await {
        // It holds what visitors sent.
        let _ = std::fs::remove_file(&part);
        return Err(error);
    }
    target.sync_all().map_err(failed)?;
    std::fs::rename(&part, file).map_err(failed)
}

async fn copy(app: &str, target: &mut std::fs::File, server: &Server) -> Result<(), CliError> {
    let place = path(&["apps", app, "evidence"]);
    let mut body = server.client()?.stream(&place).await?;
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| CliError::failed(format!("the server's answer broke off: {error}")))?;
        if let Some(data) = frame.data_ref() {
            let written = target.write_all(data);
            written.map_err(|error| CliError::failed(format!("the bundle: {error}")))?;
        }
    }
    Ok(())
}

pub async fn release(name: &str, server: &Server) -> Result<(), CliError> {
    let app: App = server
        .client()?
        .post(&path(&["apps", name, "release"]), &())
        .await?;
    let text = format!("{} is {}", app.name, app.state);
    server.output.result(&app, &text);
    Ok(())
}
