//! Containers that others started, routed by their labels beside the apps: what the Docker driver lists, what `core` makes of
//! it, and their part of the snapshot. They are no apps: nothing of them is stored, started, stopped or logged. What belongs
//! to an app of ours stays there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use hutong_core::labels::{self, is_external};
use hutong_core::spec::{AppSpec, Auth, Protocol};
use hutong_ipc::docker::{Foreign, ForeignNetwork, Health};
use hutong_ipc::gateway as wire;

use crate::observed::Engine;
use crate::{Control, lock};

/// How long a container may take to begin its answer; as for apps that say nothing else.
const RESPONSE_MS: u64 = 60_000;
const HOLD_MS: u64 = 30_000;
/// A container that is about to get healthy is asked for again so soon.
const RETRY_S: u32 = 5;
/// Digits of a container's id in the name of its target: one that takes another's place is another one.
const ID: usize = 12;

/// What is known of them.
#[derive(Default)]
pub struct Known {
    /// As the engine last said; none before it did since this process began.
    listed: Option<Vec<Foreign>>,
    /// What their labels ask for.
    read: Vec<labels::External>,
    pub shown: Vec<Shown>,
}

/// As a person sees one.
#[derive(Clone)]
pub struct Shown {
    pub name: String,
    pub containers: Vec<String>,
    /// Hosts, or hosts with a path.
    pub routes: Vec<String>,
    pub targets: Vec<ShownTarget>,
    pub notes: Vec<String>,
}

#[derive(Clone)]
pub struct ShownTarget {
    /// The gateway's name for it.
    pub instance: String,
    pub container: String,
    pub address: String,
    /// Why it is to get no requests now.
    pub waits: Option<String>,
}

/// Whether the server's owner wants them routed.
pub fn is_on(control: &Control) -> bool {
    let settings = control.settings.docker.as_ref();
    settings.is_some_and(|docker| docker.labels)
}

/// Adds them to the apps that are about to be published. `before` is what was published last.
pub fn publish(
    control: &Control,
    specs: &BTreeMap<String, Arc<AppSpec>>,
    before: &BTreeMap<String, wire::App>,
    apps: &mut BTreeMap<String, wire::App>,
) {
    if !is_on(control) {
        return;
    }
    let silent = look(control).err();
    let hosts = Hosts::new(specs, apps);
    let read = {
        let observed = lock(&control.observed);
        let known = &observed.external;
        known.listed.as_ref().map(|_| known.read.clone())
    };
    let mut shown = Vec::new();
    match read {
        Some(mut externals) => {
            labels::settle(&mut externals, |host| hosts.owner(host));
            for external in &externals {
                shown.push(show(external));
                for router in &external.routers {
                    if !router.routes.is_empty() {
                        apps.insert(router.name.clone(), app(router));
                    }
                }
            }
        }
        // What the control plane before us published, until the engine says what there is.
        None => {
            for (name, kept) in before.iter().filter(|(name, _)| is_external(name)) {
                let mut kept = kept.clone();
                if control.rebooted {
                    // The engine has given its addresses out anew: to whom is not known yet.
                    kept.targets.clear();
                    kept.serve = away();
                }
                kept.routes
                    .retain(|route| hosts.owner(&route.host).is_none());
                shown.push(show_kept(name, &kept));
                apps.insert(name.clone(), kept);
            }
        }
    }
    if let Some(why) = silent {
        let text = format!("this is how it was: the Docker engine does not answer: {why}");
        for one in &mut shown {
            one.notes.push(text.clone());
        }
    }
    let current: HashSet<&str> = apps
        .iter()
        .filter(|(name, _)| is_external(name))
        .flat_map(|(_, app)| &app.targets)
        .map(|target| target.instance.as_str())
        .collect();
    let mut observed = lock(&control.observed);
    let gone = |name: &String| is_external(name) && !current.contains(name.as_str());
    observed.health.retain(|instance, _| !gone(instance));
    observed.external.shown = shown;
}

/// Takes in what the engine says now, if it says anything.
fn look(control: &Control) -> Result<(), String> {
    // It was asked for our own containers a moment ago.
    let engine = lock(&control.observed).engine.clone();
    if let Engine::Silent(why) | Engine::Unknown(why) = engine {
        return Err(why);
    }
    let listed = control
        .docker
        .foreign()
        .map_err(|error| error.to_string())?;
    let is_news = lock(&control.observed).external.listed.as_ref() != Some(&listed);
    if is_news {
        let containers: Vec<labels::Container> = listed.iter().map(container).collect();
        let read = labels::read(&containers);
        let mut observed = lock(&control.observed);
        observed.external.read = read;
        observed.external.listed = Some(listed);
    }
    Ok(())
}

/// Hosts that belong to apps of ours.
struct Hosts {
    /// By host, or by what stands behind `*.`: the app.
    exact: HashMap<String, String>,
    wildcard: HashMap<String, String>,
}

impl Hosts {
    /// What an app owns as it is declared, and what it serves by a table that is kept as it is.
    fn new(specs: &BTreeMap<String, Arc<AppSpec>>, apps: &BTreeMap<String, wire::App>) -> Self {
        let declared = specs.iter().flat_map(|(name, spec)| {
            let owned = spec.domains.iter().filter(|domain| domain.prefix == "/");
            owned.map(move |domain| (domain.host.as_str(), name))
        });
        let served = apps.iter().flat_map(|(name, app)| {
            let routes = app.routes.iter();
            routes.map(move |route| (route.host.as_str(), name))
        });
        let mut hosts = Hosts {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
        };
        for (host, name) in declared.chain(served) {
            let (map, host) = match host.strip_prefix("*.") {
                Some(suffix) => (&mut hosts.wildcard, suffix),
                None => (&mut hosts.exact, host),
            };
            map.entry(host.to_owned()).or_insert_with(|| name.clone());
        }
        hosts
    }

    /// Whose a host is, as the gateway looks it up.
    fn owner(&self, host: &str) -> Option<String> {
        if let Some(app) = self.exact.get(host) {
            return Some(app.clone());
        }
        let mut rest = host;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(app) = self.wildcard.get(suffix) {
                return Some(app.clone());
            }
            rest = suffix;
        }
        None
    }
}

/// What the driver says of a container, in the words of `core`.
fn container(foreign: &Foreign) -> labels::Container {
    labels::Container {
        id: foreign.id.clone(),
        name: foreign.name.clone(),
        created: foreign.created,
        compose: foreign.compose.clone(),
        networks: foreign.networks.iter().map(attached).collect(),
        ports: foreign.ports.clone(),
        labels: foreign.labels.clone(),
        is_cut: foreign.is_cut,
        waits: match foreign.health {
            None | Some(Health::Healthy) => None,
            Some(Health::Starting) => Some("its health check has not passed yet".into()),
            Some(Health::Unhealthy) => Some("its health check fails".into()),
        },
    }
}

fn attached(network: &ForeignNetwork) -> labels::Attached {
    let problem = || network.problem.clone().unwrap_or_default();
    labels::Attached {
        network: network.name.clone(),
        address: network.address.ok_or_else(problem),
    }
}

fn away() -> wire::Serve {
    wire::Serve::Down {
        reason: "the app is not available at the moment".into(),
        retry_after_s: RETRY_S,
        until_ms: None,
    }
}

/// One router's part of the snapshot.
fn app(router: &labels::Router) -> wire::App {
    let ready = router.targets.iter().filter(|one| one.waits.is_none());
    let targets: Vec<wire::Target> = ready.map(|one| target(router, one)).collect();
    wire::App {
        routes: router.routes.iter().map(route).collect(),
        serve: match targets.is_empty() {
            true => away(),
            false => wire::Serve::Targets,
        },
        targets,
        response_timeout_ms: RESPONSE_MS,
        hold_timeout_ms: HOLD_MS,
        https: wire::Https {
            redirect: router.redirect,
            only: router.redirect,
            plain: !router.certificate,
            ..wire::Https::default()
        },
        balance: wire::Balance {
            method: match router.sticky {
                true => wire::Method::Sticky,
                false => wire::Method::Least,
            },
            ..wire::Balance::default()
        },
        traffic: wire::Traffic {
            compress: router.compress,
            auth: router.auth.as_ref().map(auth),
            ..wire::Traffic::default()
        },
        sleep_after_ms: None,
        links: BTreeMap::new(),
        callers: Vec::new(),
        scales: false,
    }
}

fn route(route: &labels::Route) -> wire::Route {
    wire::Route {
        host: route.domain.host.clone(),
        prefix: route.domain.prefix.clone(),
        strip_prefix: route.strip,
    }
}

fn auth(auth: &Auth) -> wire::Auth {
    let users = auth.users.iter().map(|user| wire::User {
        name: user.name.clone(),
        hash: wire::Secret(user.hash.clone()),
    });
    wire::Auth {
        realm: auth.realm.clone(),
        users: users.collect(),
    }
}

fn target(router: &labels::Router, target: &labels::Target) -> wire::Target {
    wire::Target {
        instance: name_of(router, target),
        port: target.address.port(),
        address: Some(target.address),
        protocol: match router.protocol {
            Protocol::H2c => wire::Protocol::H2c,
            _ => wire::Protocol::Http,
        },
        weight: 1,
        health: wire::Health {
            path: None,
            interval_ms: 10_000,
            timeout_ms: 2_000,
            retries: 3,
        },
        role: wire::Role::Active,
    }
}

/// What the gateway calls a container behind a router.
fn name_of(router: &labels::Router, target: &labels::Target) -> String {
    let id: String = target.id.chars().take(ID).collect();
    format!("{}/{id}", router.name)
}

fn show(external: &labels::External) -> Shown {
    let routes = external.routers.iter().flat_map(|router| &router.routes);
    let targets = external.routers.iter().flat_map(|router| {
        let targets = router.targets.iter();
        targets.map(move |target| ShownTarget {
            instance: name_of(router, target),
            container: target.container.clone(),
            address: target.address.to_string(),
            waits: target.waits.clone(),
        })
    });
    Shown {
        name: external.name.clone(),
        containers: external.containers.clone(),
        routes: routes.map(|route| route.domain.to_string()).collect(),
        targets: targets.collect(),
        notes: external.notes.clone(),
    }
}

fn show_kept(name: &str, app: &wire::App) -> Shown {
    let target = |target: &wire::Target| ShownTarget {
        instance: target.instance.clone(),
        container: String::new(),
        address: target.address.map_or(String::new(), |ip| ip.to_string()),
        waits: None,
    };
    let route = |route: &wire::Route| match route.prefix.as_str() {
        "/" => route.host.clone(),
        prefix => format!("{}{prefix}", route.host),
    };
    Shown {
        name: name.to_owned(),
        containers: Vec::new(),
        routes: app.routes.iter().map(route).collect(),
        targets: app.targets.iter().map(target).collect(),
        notes: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> (String, Arc<AppSpec>) {
        let spec = hutong_core::spec::parse("t", text).expect("good");
        (spec.name.to_string(), Arc::new(spec))
    }

    fn foreign(rule: &str) -> Foreign {
        Foreign {
            id: "a".repeat(64),
            name: "web".into(),
            created: 1,
            compose: None,
            networks: vec![ForeignNetwork {
                name: "n".into(),
                address: Some(std::net::IpAddr::from([172, 18, 0, 2])),
                problem: None,
            }],
            ports: vec![80],
            labels: BTreeMap::from([("traefik.http.routers.web.rule".into(), rule.into())]),
            is_cut: false,
            health: None,
        }
    }

    #[test]
    fn hosts_of_apps_stay_theirs() {
        let specs = BTreeMap::from([
            spec("name='shop'\ncommand='x'\ndomains=['shop.test', '*.wild.test']"),
            // It owns nothing: it asks for a path.
            spec("name='api'\ncommand='x'\ndomains=['free.test/api']"),
        ]);
        let read = labels::read(&[container(&foreign("Host(`kept.test`)"))]);
        let mut apps = BTreeMap::from([("old".to_owned(), app(&read[0].routers[0]))]);
        let hosts = Hosts::new(&specs, &apps);
        for (host, owner) in [
            ("shop.test", Some("shop")),
            ("a.wild.test", Some("shop")),
            ("a.b.wild.test", Some("shop")),
            ("kept.test", Some("old")),
            ("wild.test", None),
            ("free.test", None),
            ("x.shop.test", None),
        ] {
            assert_eq!(hosts.owner(host).as_deref(), owner, "{host}");
        }
        apps.clear();
        assert_eq!(Hosts::new(&specs, &apps).owner("kept.test"), None);
    }

    #[test]
    fn a_router_is_published_like_an_app_with_servers_of_its_own() {
        let mut one = foreign("Host(`a.test`)");
        let published = |one: &Foreign| {
            let read = labels::read(&[container(one)]);
            app(&read[0].routers[0])
        };
        let app = published(&one);
        assert_eq!(app.serve, wire::Serve::Targets);
        assert!(app.https.plain && !app.https.redirect && !app.traffic.compress);
        let target = &app.targets[0];
        assert_eq!(target.instance, "web:web@docker/aaaaaaaaaaaa");
        assert_eq!(
            target.address.map(|ip| ip.to_string()).as_deref(),
            Some("172.18.0.2:80")
        );
        assert!(is_external(&target.instance));
        // One whose own check fails gets nothing.
        one.health = Some(Health::Unhealthy);
        let app = published(&one);
        assert!(app.targets.is_empty() && matches!(app.serve, wire::Serve::Down { .. }));
    }
}
