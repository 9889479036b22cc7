//! One verb per file.

pub mod apps;
pub mod ban;
pub mod build;
pub mod cert;
pub mod check;
pub mod demo;
pub mod deploy;
pub mod detect;
pub mod doctor;
pub mod env;
pub mod exec;
pub mod external;
pub mod gateway;
pub mod internal;
pub mod isolate;
pub mod logs;
pub mod password;
pub mod releases;
pub mod remove;
pub mod restart;
pub mod rollback;
pub mod run;
pub mod scale;
pub mod serve;
pub mod start;
pub mod status;
pub mod system;
pub mod upgrade;
pub mod version;

use std::future::Future;
use std::path::{Path, PathBuf};

use hutong_api::client::{Address, Client};
use hutong_runtime::paths::{Layout, SYSTEM_DATA_DIR};

use crate::error::CliError;
use crate::output::Output;

#[derive(clap::Args)]
pub struct AppArg {
    /// The app's name
    pub app: String,
}

/// How to reach the server, and how to answer.
pub struct Server {
    pub api: Option<String>,
    pub token_file: Option<PathBuf>,
    pub output: Output,
}

impl Server {
    pub fn client(&self) -> Result<Client, CliError> {
        let address = match &self.api {
            Some(text) => text.parse().map_err(CliError::usage)?,
            None => default_address(),
        };
        let token = match (&self.token_file, &address) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| CliError::bad_file(format!("{}: {error}", path.display())))?;
                Some(text.trim().to_owned())
            }
            (None, _) => std::env::var("HUTONG_TOKEN").ok(),
        };
        Ok(Client::new(address, token))
    }

    /// Runs one command's work to its end.
    pub fn block_on<T>(
        &self,
        work: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        block_on(work)
    }
}

pub fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::failed)?
        .block_on(work)
}

/// Ctrl-C, SIGTERM, or the terminal is gone.
pub fn stop_signals() -> Result<tokio::sync::mpsc::Receiver<()>, CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        let mut heard = signal(kind).map_err(CliError::failed)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            heard.recv().await;
            let _ = sender.send(()).await;
        });
    }
    Ok(receiver)
}

/// The system's socket if it is there, else the user's own.
fn default_address() -> Address {
    let system = PathBuf::from("/run/hutong/api.sock");
    if system.exists() {
        return Address::Unix(system);
    }
    let user = Layout::new(&default_data_dir()).map(|layout| layout.api_socket());
    Address::Unix(user.unwrap_or(system))
}

/// /var/lib/hutong for root, else in the user's home.
pub fn default_data_dir() -> PathBuf {
    if hutong_runtime::sys::effective_uid() == 0 {
        return SYSTEM_DATA_DIR.into();
    }
    let home = std::env::var_os("HOME").map_or_else(|| Path::new(".").to_owned(), PathBuf::from);
    match std::env::var_os("XDG_DATA_HOME") {
        Some(folder) => PathBuf::from(folder).join("hutong"),
        None => home.join(".local/share/hutong"),
    }
}

/// A URL path with its parts escaped.
pub fn path(parts: &[&str]) -> String {
    use std::fmt::Write;
    let mut path = String::from("/v1");
    for part in parts {
        path.push('/');
        for byte in part.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                path.push(byte as char);
            } else {
                let _ = write!(path, "%{byte:02X}");
            }
        }
    }
    path
}

/// Where visitors reach a domain of this server.
pub fn url(domain: &str, http: &str) -> String {
    let port = http.rsplit_once(':').map_or("80", |(_, port)| port);
    let (host, rest) = domain.split_once('/').map_or((domain, ""), |(h, r)| (h, r));
    let port = if port == "80" {
        String::new()
    } else {
        format!(":{port}")
    };
    let slash = if rest.is_empty() { "" } else { "/" };
    format!("http://{host}{port}{slash}{rest}")
}
