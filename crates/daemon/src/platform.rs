//! What visitors may ask of the platform itself, at its own host (`host` in the server file): `/git/…`, `/hooks/…`, `/v2/…`. The
//! gateway sends it here by a socket of its own. The management API is not among it: this router has the routes below and
//! no others, and each of them decides for itself who may.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{any, post};
use hutong_core::spec::AppSpec;
use hutong_ipc::gateway as wire;

use crate::images::{pushed, watch};
use crate::{Control, git, lock};

/// Among the apps of the snapshot; no app can have this name.
const NAME: &str = "@platform";
/// Path prefixes that the gateway sends here.
const PREFIXES: [&str; 3] = ["/git", "/hooks", "/v2"];
/// A push may wait for builds before git has anything to say.
const RESPONSE_MS: u64 = 3_600_000;
/// How long a request waits for a control plane that is being restarted.
const HOLD_MS: u64 = 10_000;
/// After so long the registry's address is tried again.
const AGAIN: Duration = Duration::from_secs(2);

fn registry() -> Router<Arc<Control>> {
    Router::new()
        .route("/v2", any(pushed::serve))
        .route("/v2/", any(pushed::serve))
        .route("/v2/{*rest}", any(pushed::serve))
}

/// The registry alone, without TLS: for who is on this machine. Where somebody else has its address, that is said, and it is
/// tried again and again; the rest of us goes on.
async fn run_registry(
    control: Arc<Control>,
    address: SocketAddr,
    first: io::Result<std::net::TcpListener>,
) {
    let mut next = first;
    loop {
        match next.and_then(tokio::net::TcpListener::from_std) {
            Ok(listener) => {
                if lock(&control.images.unheard).take().is_some() {
                    tracing::info!("the registry listens on {address} now");
                }
                let router = registry().with_state(control.clone());
                if let Err(error) = axum::serve(listener, router).await {
                    tracing::error!("the registry: {error}");
                }
            }
            Err(error) => {
                let why = format!(
                    "the registry cannot listen on {address}: {error}; nobody can push there until it can"
                );
                let before = lock(&control.images.unheard).replace(why.clone());
                if before.is_none_or(|before| before != why) {
                    tracing::warn!("{why}");
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
        next = bind(address);
    }
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn router(control: Arc<Control>) -> Router {
    git::router()
        .route("/hooks/{app}", post(git::receive_webhook))
        .route("/hooks/{app}/image", post(watch::receive))
        .merge(registry())
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is nothing here\n") })
        .with_state(control)
}

/// Listens, if there is a host to listen for, until the process ends.
pub fn start(control: &Arc<Control>) -> Result<(), String> {
    control.images.mount(control);
    if let Some(address) = control.settings.registry {
        // Before anybody is told that the server is there.
        let first = bind(address);
        tokio::spawn(run_registry(control.clone(), address, first));
    }
    if control.settings.host.is_none() {
        return Ok(());
    }
    let path = control.run_dir.join("gateway").join(wire::PUBLIC_SOCKET);
    let mode = if control.gateway_gid.is_some() {
        0o660
    } else {
        0o600
    };
    let listener = git::bind(&path, mode)?;
    if let Some(group) = control.gateway_gid {
        chown(&path, None, Some(group)).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let router = router(control.clone());
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("the platform's own host: {error}");
        }
    });
    Ok(())
}

/// Adds the platform's host to the apps that are about to be published.
pub fn publish(control: &Control, apps: &mut BTreeMap<String, wire::App>) {
    let Some(host) = &control.settings.host else {
        return;
    };
    let app = wire::App {
        routes: PREFIXES
            .iter()
            .map(|prefix| wire::Route {
                host: host.clone(),
                prefix: (*prefix).to_owned(),
                strip_prefix: false,
            })
            .collect(),
        serve: wire::Serve::Targets,
        split: None,
        targets: vec![wire::Target {
            instance: NAME.into(),
            deployment: 0,
            port: 0,
            address: None,
            control: true,
            protocol: wire::Protocol::Http,
            weight: 1,
            health: wire::Health {
                path: None,
                interval_ms: 10_000,
                timeout_ms: 2_000,
                retries: 3,
            },
            role: wire::Role::Active,
        }],
        response_timeout_ms: RESPONSE_MS,
        hold_timeout_ms: HOLD_MS,
        https: wire::Https {
            redirect: true,
            except: Vec::new(),
            hsts_s: 0,
            plain: false,
            // Tokens are no secret over plain HTTP.
            only: control.https.is_some(),
        },
        balance: wire::Balance::default(),
        traffic: wire::Traffic::default(),
        sleep_after_ms: None,
        links: BTreeMap::new(),
        callers: Vec::new(),
        scales: false,
    };
    apps.insert(NAME.into(), app);
}

/// The host of an app's that is the platform's, if it claims it as a whole.
pub fn taken(control: &Control, spec: &AppSpec) -> Option<String> {
    let host = control.settings.host.as_ref()?;
    let mut domains = spec.domains.iter();
    domains.find(|domain| domain.host == *host)?;
    Some(host.clone())
}
