//! The snapshot for the gateway: what is declared and seen, as routes and targets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hutong_core::networks::Networks;
use hutong_core::plan::{Plan, Role, Serve};
use hutong_core::route;
use hutong_core::spec::{self, AppSpec, Run};
use hutong_ipc::gateway as wire;
use hutong_runtime::paths::atomic_write;

/// How long a request waits for a sleeping app at least.
const WAKE_PATIENCE: Duration = Duration::from_secs(30);

/// What an app's part of the snapshot depends on besides its own specification.
pub struct Around<'a> {
    /// The folder of a static app.
    pub static_root: Option<&'a str>,
    /// The specifications of every app, for consents.
    pub specs: &'a BTreeMap<String, Arc<AppSpec>>,
    /// Where apps may send requests to that Hutong does not run.
    pub upstreams: &'a Networks,
}

/// An instance's own release.
pub struct Own<'a> {
    pub spec: &'a AppSpec,
    /// Its files, below the data folder.
    pub tree: String,
}

/// One app's part of the snapshot. `own` finds the release of an instance, `reach` where a container is: `Some(None)`
/// for one that has no address yet.
pub fn app<'a>(
    spec: &'a AppSpec,
    plan: &Plan,
    around: &Around<'_>,
    own: impl Fn(&str) -> Option<Own<'a>>,
    reach: impl Fn(&str) -> Option<Option<IpAddr>>,
) -> (wire::App, Vec<String>) {
    let mut warnings = Vec::new();
    let mut routes = Vec::new();
    for domain in &spec.domains {
        match route::holds(around.specs, spec.name.as_str(), domain) {
            Ok(()) => routes.push(wire::Route {
                host: domain.host.clone(),
                prefix: domain.prefix.clone(),
                strip_prefix: spec.strip_prefix,
            }),
            Err(reason) => warnings.push(reason),
        }
    }
    let elsewhere = matches!(spec.run, Run::Upstream(_));
    let serve = match (&plan.serve, around.static_root) {
        (Serve::Static, _) if elsewhere => wire::Serve::Targets,
        (Serve::Targets, _) => wire::Serve::Targets,
        (Serve::Hold, _) | (Serve::Static, None) => wire::Serve::Hold,
        (Serve::Asleep, _) => wire::Serve::Asleep,
        (Serve::Static, Some(root)) => wire::Serve::Static {
            root: root.to_owned(),
            index: None,
            spa: matches!(spec.run, Run::Static { spa: true, .. }),
        },
        (
            Serve::Down {
                reason,
                retry_after_s,
            },
            _,
        ) => wire::Serve::Down {
            // Visitors need not know what is wrong inside.
            reason: if reason == "the app is stopped" {
                reason.clone()
            } else {
                "the app is not available at the moment".to_owned()
            },
            retry_after_s: *retry_after_s,
            until_ms: None,
        },
        (Serve::Closed { reason, until_ms }, _) => wire::Serve::Down {
            reason: reason.clone(),
            // For a gateway that does not know the other yet.
            retry_after_s: 300,
            until_ms: Some(*until_ms),
        },
    };
    let instances = plan.roles.iter().filter_map(|(instance, role)| {
        let address = match reach(instance) {
            // Nobody could connect to it.
            Some(None) => return None,
            Some(Some(address)) => Some(address),
            None => None,
        };
        // Port, protocol and health check are those of the instance's own release.
        let own = own(instance);
        let spec = own.as_ref().map_or(spec, |own| own.spec);
        Some(wire::Target {
            instance: instance.clone(),
            port: spec.port,
            address: address.map(|ip| SocketAddr::new(ip, spec.port)),
            protocol: protocol(spec.protocol, spec, own.map(|own| own.tree)),
            weight: 1,
            health: health(spec),
            role: match role {
                Role::Candidate => wire::Role::Candidate,
                Role::Active => wire::Role::Active,
                Role::Draining => wire::Role::Draining,
            },
        })
    });
    let mut targets: Vec<wire::Target> = instances.collect();
    if let Run::Upstream(list) = &spec.run {
        let (allowed, refused): (Vec<_>, Vec<_>) = list
            .iter()
            .partition(|one| around.upstreams.contains(one.address.ip()));
        targets.extend(allowed.into_iter().map(|one| outside(spec, one)));
        warnings.extend(refused.into_iter().map(not_allowed));
    }
    let hold = spec.start_timeout + spec.stop_timeout + spec.drain_timeout;
    // Control may be restarting when somebody comes to a sleeping app.
    let least = match spec.sleep_after {
        Some(_) => WAKE_PATIENCE,
        None => Duration::ZERO,
    };
    let app = wire::App {
        balance: balance(&spec.balance),
        traffic: traffic(&spec.traffic),
        routes,
        serve,
        targets,
        https: wire::Https {
            redirect: spec.https.redirect,
            except: spec.https.except.clone(),
            hsts_s: spec.https.hsts.as_secs(),
            plain: false,
            only: false,
        },
        response_timeout_ms: milliseconds(spec.response_timeout),
        // Long enough for a recreate: drain, stop, start.
        hold_timeout_ms: milliseconds(hold.max(least)),
        sleep_after_ms: spec.sleep_after.map(milliseconds),
        links: BTreeMap::new(),
        callers: Vec::new(),
        scales: spec.scale.is_some(),
    };
    (app, warnings)
}

/// The links of an app's releases that run, the one that serves first; and those that lead nowhere.
pub fn links<'a>(
    releases: impl IntoIterator<Item = &'a AppSpec>,
    specs: &BTreeMap<String, Arc<AppSpec>>,
) -> (BTreeMap<String, wire::Link>, Vec<String>) {
    let (mut links, mut warnings) = (BTreeMap::new(), Vec::new());
    for spec in releases {
        for (name, to) in &spec.links {
            let other = specs.get(to.as_str());
            let allowed = other.is_some_and(|other| other.callers.contains(&spec.name));
            if links.contains_key(name) {
                continue;
            }
            if other.is_none() {
                warnings.push(format!("the link {name} leads to {to}, which is not there"));
            } else if !allowed {
                warnings.push(format!(
                    "the link {name} waits until {to} names {} among its `callers`",
                    spec.name
                ));
            }
            let app = to.to_string();
            links.insert(name.clone(), wire::Link { app, allowed });
        }
    }
    (links, warnings)
}

fn milliseconds(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// Why a server is not used.
pub fn not_allowed(upstream: &spec::Upstream) -> String {
    format!(
        "{} is not among the addresses that the server's owner allows; `allow_upstreams` in the server file names them",
        upstream.address
    )
}

/// What a server is called that Hutong does not run.
pub fn name_of(app: &str, upstream: &spec::Upstream) -> String {
    format!("{app}@{}", upstream.address)
}

/// A server that Hutong does not run.
fn outside(spec: &AppSpec, upstream: &spec::Upstream) -> wire::Target {
    wire::Target {
        instance: name_of(spec.name.as_str(), upstream),
        port: upstream.address.port(),
        address: Some(upstream.address),
        protocol: protocol(upstream.protocol, spec, None),
        weight: upstream.weight,
        health: health(spec),
        role: wire::Role::Active,
    }
}

fn health(spec: &AppSpec) -> wire::Health {
    wire::Health {
        path: spec.health.path.clone(),
        interval_ms: milliseconds(spec.health.interval),
        timeout_ms: milliseconds(spec.health.timeout),
        retries: spec.health.retries,
    }
}

/// `tree`: the release's files below the data folder, where an instance of ours has them as `/app`.
fn protocol(protocol: spec::Protocol, spec: &AppSpec, tree: Option<String>) -> wire::Protocol {
    let root = &spec.fastcgi.root;
    let below = |folder: &str| match root.as_str() {
        "" => folder.to_owned(),
        root => format!("{folder}/{root}"),
    };
    match protocol {
        spec::Protocol::Http => wire::Protocol::Http,
        spec::Protocol::H2c => wire::Protocol::H2c,
        spec::Protocol::Uwsgi => wire::Protocol::Uwsgi,
        spec::Protocol::FastCgi => wire::Protocol::FastCgi {
            root: if root.starts_with('/') {
                root.clone()
            } else {
                below("/app")
            },
            index: spec.fastcgi.index.clone(),
            files: tree.map(|tree| below(&tree)),
        },
    }
}

fn balance(spec: &spec::Balance) -> wire::Balance {
    wire::Balance {
        method: match &spec.method {
            spec::Method::Least => wire::Method::Least,
            spec::Method::RoundRobin => wire::Method::RoundRobin,
            spec::Method::Sticky => wire::Method::Sticky,
            spec::Method::Hash(key) => wire::Method::Hash(match key {
                spec::HashKey::Ip => wire::HashKey::Ip,
                spec::HashKey::Path => wire::HashKey::Path,
                spec::HashKey::Header(name) => wire::HashKey::Header(name.clone()),
            }),
        },
        slow_start_ms: milliseconds(spec.slow_start),
        max_requests: spec.max_requests,
        queue: spec.queue,
        queue_timeout_ms: milliseconds(spec.queue_timeout),
        eject: spec.eject,
    }
}

fn traffic(spec: &spec::Traffic) -> wire::Traffic {
    let texts = |list: &[hutong_core::networks::Network]| {
        list.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let routes = spec.routes.iter().map(|route| wire::TrafficRoute {
        prefix: route.prefix.clone(),
        class: match route.class {
            spec::Class::Background => wire::Class::Background,
            spec::Class::Normal => wire::Class::Normal,
            spec::Class::Core => wire::Class::Core,
        },
        response_timeout_ms: route.response.map(milliseconds),
        open: route.open,
        rules: rules(&route.rules),
    });
    wire::Traffic {
        rules: rules(&spec.rules),
        allow: texts(&spec.allow),
        deny: texts(&spec.deny),
        ban: spec.ban.map(|ban| wire::Ban {
            after: ban.after,
            within_s: ban.within.as_secs(),
            period_s: ban.period.as_secs(),
        }),
        compress: spec.compress,
        max_concurrent: spec.max_concurrent,
        max_concurrent_per_ip: spec.max_concurrent_per_ip,
        auth: spec.auth.as_ref().map(|auth| wire::Auth {
            realm: auth.realm.clone(),
            users: auth.users.iter().map(user).collect(),
        }),
        routes: routes.collect(),
    }
}

fn user(user: &spec::User) -> wire::User {
    wire::User {
        name: user.name.clone(),
        hash: wire::Secret(user.hash.clone()),
    }
}

fn rules(spec: &spec::Rules) -> wire::Rules {
    let rate = |rate: spec::Rate| wire::Rate {
        interval_ns: rate.interval_ns,
        burst: rate.burst,
    };
    wire::Rules {
        rate: spec.rate.map(rate),
        rate_per_ip: spec.rate_per_ip.map(rate),
        max_body: spec.max_body,
    }
}

/// The snapshot that a control plane before us wrote.
pub fn last(data_dir: &Path, run_dir: &Path) -> wire::Snapshot {
    let read = |folder: &Path| -> Option<wire::Snapshot> {
        let text = std::fs::read(folder.join("gateway/snapshot.json")).ok()?;
        serde_json::from_slice(&text).ok()
    };
    read(run_dir).or_else(|| read(data_dir)).unwrap_or_default()
}

/// Writes it where the gateway reads it, which is in memory, and a copy to disk for the next boot.
pub fn write(
    data_dir: &Path,
    run_dir: &Path,
    snapshot: &wire::Snapshot,
    gid: Option<u32>,
) -> std::io::Result<()> {
    let text = serde_json::to_vec(snapshot)?;
    // The folder lets only the gateway's group in; the file itself may be read by whoever is in.
    let mode = if gid.is_some() { 0o644 } else { 0o600 };
    atomic_write(&run_dir.join("gateway/snapshot.json"), &text, mode)?;
    if let Err(error) = atomic_write(&data_dir.join("gateway/snapshot.json"), &text, mode) {
        // On a full disk apps must still be restarted; the next boot waits for control instead.
        tracing::warn!("the routes are not on disk: {error}");
    }
    Ok(())
}
