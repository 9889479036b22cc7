//! `hutong serve`: settings from flags and server file, then the warden.

use std::net::SocketAddr;
use std::path::PathBuf;

use hutong_api::client::Address;
use hutong_ipc::warden::{DockerSettings, ServerSettings};
use hutong_runtime::sys;
use hutong_runtime::warden::{Api, Config, Ready};

use super::default_data_dir;
use crate::error::CliError;
use crate::output::Output;
use crate::server_file::{Docker, ServerFile};

/// Where the engine listens.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// Where networks of apps from images are taken from.
const NETWORKS: &str = "10.212.0.0/20";

#[derive(clap::Args)]
#[command(
    args_override_self = true,
    after_help = "Examples:
  sudo hutong serve --http 0.0.0.0:80 --https 0.0.0.0:443
  hutong serve --data-dir ./data --http 127.0.0.1:8080     (development mode, as an ordinary user)

Set HUTONG_LOG=info to see more of what it does."
)]
pub struct Args {
    /// Where apps, data, logs and state are kept [default: /var/lib/hutong, or ~/.local/share/hutong]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where visitors' requests arrive [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Where encrypted requests arrive, such as 0.0.0.0:443 [default: nowhere]
    #[arg(long, value_name = "ADDR")]
    https: Option<SocketAddr>,
    /// The server file [default: /etc/hutong/server.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run apps from images on this Docker engine [default socket: /var/run/docker.sock]
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = DOCKER_SOCKET)]
    docker: Option<PathBuf>,
    /// Start although this wall of isolation does not stand here (see `hutong doctor`)
    #[arg(long, value_name = "WALL")]
    accept_missing: Vec<String>,
    /// Stop all apps when the server is stopped, instead of letting them go on
    #[arg(long)]
    stop_apps: bool,
    /// End when the process that started this one ends
    #[arg(long, hide = true)]
    with_parent: bool,
}

pub fn run(args: Args, api: Option<String>, output: Output) -> Result<(), CliError> {
    if args.with_parent {
        sys::end_with_parent();
    }
    let config = configure(args, api)?;
    hutong_runtime::warden::run(config, |ready| announce(ready, output)).map_err(CliError::failed)
}

fn configure(args: Args, api: Option<String>) -> Result<Config, CliError> {
    let file = ServerFile::load(args.config.as_deref())?;
    let api = match api.or(file.api) {
        None => Api::Unix(None),
        Some(text) => match text.parse().map_err(CliError::usage)? {
            Address::Unix(path) => Api::Unix(Some(path)),
            Address::Tcp(address) => Api::Tcp(address),
        },
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let build = file.build;
    if let Some(bundle) = &build.ca_bundle
        && !bundle.is_file()
    {
        return Err(CliError::bad_file(format!(
            "build.ca_bundle: there is no file {}",
            bundle.display()
        )));
    }
    let docker = match (args.docker, file.docker) {
        (None, None) => None,
        (flag, file) => {
            let labels = file.as_ref().is_some_and(|d| d.labels);
            let expose_by_default = file.as_ref().is_some_and(Docker::exposes_by_default);
            let (socket, networks) = file.map_or((None, None), |d| (d.socket, d.networks));
            let socket = flag.or(socket).unwrap_or_else(|| DOCKER_SOCKET.into());
            Some(DockerSettings {
                socket: socket
                    .to_string_lossy()
                    .trim_start_matches("unix://")
                    .to_owned(),
                pool: networks.map_or_else(|| NETWORKS.into(), toml::Spanned::into_inner),
                labels,
                expose_by_default,
            })
        }
    };
    if docker.is_some() && sys::effective_uid() != 0 {
        return Err(CliError::usage(
            "--docker needs a server that is root: the walls around containers are made by it",
        ));
    }
    Ok(Config {
        data_dir: args
            .data_dir
            .or(file.data_dir)
            .unwrap_or_else(default_data_dir),
        http: args
            .http
            .or(file.http)
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080))),
        https: args.https.or(file.https),
        api,
        workers: file.workers.unwrap_or(cores).clamp(1, 8),
        accept_missing: [args.accept_missing, file.accept_missing].concat(),
        stop_apps: args.stop_apps,
        settings: ServerSettings {
            api_host: file
                .api_host
                .map(|host| host.into_inner().to_ascii_lowercase()),
            docker,
            host: file.host.map(toml::Spanned::into_inner),
            registry: file.registry.map(toml::Spanned::into_inner),
            app_disk: file.app_disk_bytes.unwrap_or(5 << 30),
            app_memory: file.app_memory_bytes,
            disk_reserve: file.disk_reserve_bytes,
            keep_releases: file.keep_releases.unwrap_or(5).clamp(1, 100),
            upload_bytes: file.upload_bytes.unwrap_or(512 << 20),
            pip_index: build.pip_index,
            npm_registry: build.npm_registry,
            proxy: build.proxy,
            allow_upstreams: texts(file.allow_upstreams),
            egress_allow: texts(file.egress.allow),
            trusted_proxies: texts(file.trusted_proxies),
            proxy_protocol: file.proxy_protocol,
            max_connections_per_ip: file.max_connections_per_ip.unwrap_or(1024),
            acme: file.acme_json.map(hutong_ipc::gateway::Secret),
            ca_bundle: build
                .ca_bundle
                .map(|path| path.to_string_lossy().into_owned()),
        },
    })
}

fn texts(list: Vec<toml::Spanned<String>>) -> Vec<String> {
    list.into_iter().map(toml::Spanned::into_inner).collect()
}

fn announce(ready: &Ready, output: Output) {
    output.say(&format!("http   {}", ready.http));
    if let Some(https) = &ready.https {
        output.say(&format!("https  {https}"));
    }
    output.say(&format!("api    {}", ready.api));
    if !ready.api.starts_with("unix:") {
        let token = ready.data_dir.join("control/token");
        output.say(&format!("token  in {}", token.display()));
    }
    output.say(&format!("data   {}", ready.data_dir.display()));
    if ready.missing.is_empty() {
        output.say("walls  all stand");
        return;
    }
    if sys::effective_uid() != 0 {
        output.warn("development mode: good for trying things, no promise of isolation");
    }
    for wall in &ready.missing {
        output.warn(&format!(
            "the wall `{}` is missing ({}): {}\n         remedy: {}",
            wall.wall, wall.what, wall.found, wall.remedy
        ));
    }
}
