//! One verb per file.

pub mod abort;
pub mod apply;
pub mod apps;
pub mod ban;
pub mod build;
pub mod cert;
pub mod check;
pub mod context;
pub mod demo;
pub mod deploy;
pub mod detect;
pub mod dial;
pub mod diff;
pub mod doctor;
pub mod env;
pub mod exec;
pub mod export;
pub mod external;
pub mod gateway;
pub mod import;
pub mod internal;
pub mod isolate;
pub mod login;
pub mod logs;
pub mod password;
pub mod promote;
pub mod registry;
pub mod releases;
pub mod remove;
pub mod restart;
pub mod rollback;
pub mod run;
pub mod scale;
pub mod serve;
pub mod snapshots;
pub mod source;
pub mod start;
pub mod status;
pub mod system;
pub mod token;
pub mod unpack;
pub mod upgrade;
pub mod variants;
pub mod version;

use std::future::Future;
use std::path::{Path, PathBuf};

use hutong_api::client::{Address, Client};
use hutong_runtime::paths::{Layout, SYSTEM_DATA_DIR};

use crate::error::CliError;
use crate::output::Output;
use crate::remote::contexts::{Context, Contexts, LOCAL};

#[derive(clap::Args)]
pub struct AppArg {
    /// The app's name
    pub app: String,
}

/// How to reach the server, and how to answer.
pub struct Server {
    pub api: Option<String>,
    /// A server that `hutong login` has a name for; of the command line, where it goes before `api`.
    pub context: Option<String>,
    pub token_file: Option<PathBuf>,
    pub output: Output,
}

impl Server {
    pub fn client(&self) -> Result<Client, CliError> {
        let address = match self.place()? {
            // The environment's token is another server's, and nothing that this one should see.
            Place::Far(context) => return context.client(self.named_token()?),
            Place::Here(address) => address,
            Place::Default => default_address(),
        };
        let token = match &self.token_file {
            Some(path) => Some(read_token(path)?),
            None => std::env::var("HUTONG_TOKEN").ok(),
        };
        Ok(Client::new(address, token))
    }

    /// The token in the file that the command line names; what the environment says does not count.
    pub fn named_token(&self) -> Result<Option<String>, CliError> {
        let set = std::env::var_os("HUTONG_TOKEN_FILE");
        let named = self.token_file.as_ref();
        let named = named.filter(|path| set.as_deref() != Some(path.as_os_str()));
        named.map(|path| read_token(path)).transpose()
    }

    /// Nobody said where the server is: it is this machine's.
    pub fn is_default(&self) -> bool {
        matches!(self.place(), Ok(Place::Default))
    }

    /// The API's address on this machine, whatever contexts there are.
    pub fn local_address(&self) -> Result<Address, CliError> {
        match &self.api {
            Some(text) => text.parse().map_err(CliError::usage),
            None => Ok(default_address()),
        }
    }

    /// `--context`, else `--api` or HUTONG_API, else HUTONG_CONTEXT, else the context in use, else this machine.
    fn place(&self) -> Result<Place, CliError> {
        let set = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let name = match (&self.context, &self.api) {
            (Some(_), Some(api)) if set("HUTONG_API").as_ref() != Some(api) => {
                return Err(CliError::usage("--api and --context name two servers"));
            }
            (Some(name), _) => Some(name.clone()),
            (None, Some(api)) => return Ok(Place::Here(api.parse().map_err(CliError::usage)?)),
            (None, None) => set("HUTONG_CONTEXT"),
        };
        if name.as_deref() == Some(LOCAL) {
            return Ok(Place::Default);
        }
        let all = Contexts::load()?;
        let Some(name) = name.or_else(|| all.current.clone()) else {
            return Ok(Place::Default);
        };
        Ok(match all.named(&name)? {
            Some(context) => Place::Far(context.clone()),
            None => Place::Default,
        })
    }

    /// Runs one command's work to its end.
    pub fn block_on<T>(
        &self,
        work: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        block_on(work)
    }
}

/// Where the server is.
enum Place {
    Here(Address),
    Far(Context),
    Default,
}

fn read_token(path: &Path) -> Result<String, CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::bad_file(format!("{}: {error}", path.display())))?;
    Ok(text.trim().to_owned())
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
