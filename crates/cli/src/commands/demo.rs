//! `hutong demo`: a throwaway server in a folder below the current one, with the examples deployed.

mod visit;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use hutong_api::client::{Address, Client};
use hutong_api::{App, DeploymentState};
use hutong_runtime::paths::Layout;
use hutong_runtime::sys;
use include_dir::{Dir, include_dir};

use super::{deploy, stop_signals, url};
use crate::error::CliError;
use crate::output::Output;

static EXAMPLES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../examples");

#[derive(clap::Args)]
pub struct Args {
    /// Request each app, print the answers, stop; exit code 0 only if all are right
    #[arg(long)]
    check: bool,
    /// Where visitors' requests arrive [default: the first free port from 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Keep the folder hutong-demo, with the apps' data, when the demo ends
    #[arg(long)]
    keep: bool,
}

pub fn run(args: Args, output: Output) -> Result<ExitCode, CliError> {
    let folder = std::env::current_dir()
        .map_err(CliError::failed)?
        .join("hutong-demo");
    std::fs::create_dir_all(&folder)
        .map_err(|error| CliError::failed(format!("{}: {error}", folder.display())))?;
    let http = match args.http {
        Some(address) => address,
        None => free_port()?,
    };
    let mut server = start_server(&folder, http)?;
    let result = super::block_on(show(&args, &folder, http, &mut server, output));
    sys::kill(server.id() as i32, rustix::process::Signal::TERM.as_raw());
    let deadline = Instant::now() + Duration::from_secs(30);
    while matches!(server.try_wait(), Ok(None)) {
        if Instant::now() > deadline {
            let _ = server.kill();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    if !args.keep {
        let _ = std::fs::remove_dir_all(&folder);
    }
    result
}

fn free_port() -> Result<SocketAddr, CliError> {
    (8080..8180)
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
        .find(|address| TcpListener::bind(address).is_ok())
        .ok_or_else(|| CliError::failed("no port between 8080 and 8179 is free"))
}

fn start_server(folder: &Path, http: SocketAddr) -> Result<Child, CliError> {
    let program = std::env::current_exe().map_err(CliError::failed)?;
    // What stands matters; what does not is shown by `serve` itself.
    Command::new(program)
        .args(["serve", "--stop-apps", "--with-parent"])
        .args(
            ["memory", "cpu", "pids", "egress", "forward"]
                .map(|wall| format!("--accept-missing={wall}")),
        )
        .arg("--config=/dev/null")
        .arg("--data-dir")
        .arg(folder)
        .arg("--http")
        .arg(http.to_string())
        .env_remove("HUTONG_API")
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| CliError::failed(format!("cannot start the server: {error}")))
}

async fn show(
    args: &Args,
    folder: &Path,
    http: SocketAddr,
    server: &mut Child,
    output: Output,
) -> Result<ExitCode, CliError> {
    let layout = Layout::new(folder).map_err(CliError::failed)?;
    let address = Address::Unix(layout.api_socket());
    let client = Client::new(address.clone(), None);
    let http = wait_for(&client, server).await?.unwrap_or(http);
    let examples = folder.join("examples");
    std::fs::create_dir_all(&examples).map_err(CliError::failed)?;
    EXAMPLES.extract(&examples).map_err(CliError::failed)?;
    let mut failed = false;
    let mut stop = stop_signals()?;
    for app in app_folders(&examples) {
        let name = app
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        output.say(&format!("deploying {name} …"));
        let deployed = tokio::select! {
            deployed = deploy::deploy(&client, &app, output) => deployed,
            _ = stop.recv() => return Ok(ExitCode::from(130)),
        };
        let problem = match deployed {
            Ok(deployment) if deployment.state == DeploymentState::Done => continue,
            Ok(deployment) => {
                for line in &deployment.log {
                    output.say(&format!("  {}", crate::output::printable(line)));
                }
                deployment.reason.unwrap_or_default()
            }
            Err(error) => error.cause().to_owned(),
        };
        failed = true;
        output.warn(&format!("{name} is not served: {problem}"));
    }
    if args.check {
        let right = visit::all(http, output).await;
        return Ok(if right && !failed {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(1)
        });
    }
    invite(&client, &address, http, output).await?;
    tokio::select! {
        _ = stop.recv() => output.say("\nstopping everything …"),
        () = ended(server) => return Err(CliError::failed("the server ended")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until the server answers; where visitors arrive (port 0 has become a real one).
async fn wait_for(client: &Client, server: &mut Child) -> Result<Option<SocketAddr>, CliError> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Ok(version) = client.get::<hutong_api::Version>("/v1/version").await {
            return Ok(version.http.parse().ok());
        }
        if let Ok(Some(status)) = server.try_wait() {
            return Err(CliError::failed(format!(
                "the server did not start ({status})"
            )));
        }
        if Instant::now() > deadline {
            return Err(CliError::failed("the server did not answer within 30 s"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn ended(server: &mut Child) {
    while matches!(server.try_wait(), Ok(None)) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Front ends first: they own the hosts whose paths others serve.
fn app_folders(examples: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(examples)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("hutong.toml").is_file())
        .collect();
    folders.sort();
    folders
}

async fn invite(
    client: &Client,
    api: &Address,
    http: SocketAddr,
    output: Output,
) -> Result<(), CliError> {
    let apps: Vec<App> = client.get("/v1/apps").await?;
    output.say("");
    output.table(&apps, &["app", "state", "open"], |app| {
        let first = app.domains.first().map(String::as_str).unwrap_or_default();
        vec![
            app.name.clone(),
            app.state.to_string(),
            url(first, &http.to_string()),
        ]
    });
    output.say(&format!(
        "\nTry, in another terminal:\n  export HUTONG_API={}\n  hutong apps\n  hutong logs notes -f\n  hutong exec notes -- ls -la / /data\n  hutong deploy hutong-demo/examples/notes      (change something first)\n  hutong rollback notes\n  hutong system\nCtrl-C here stops all of it and leaves nothing.",
        api
    ));
    Ok(())
}
