//! What several files say of the same thing, put together: routes find the apps that answer them, hosts get one owner, and
//! what called each other by name becomes links.

mod calls;
mod of_traefik;

use std::collections::{BTreeMap, BTreeSet};

use hutong_core::spec::parse_domain;

use crate::State;
use crate::app::{Draft, PathRule, Run, Settings, app_name};
use crate::place::{At, short};

pub(crate) use calls::links;
pub(crate) use of_traefik::routers;

/// A host and a path, and what answers there.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub at: At,
    /// What stands there.
    pub what: String,
    /// Empty: any.
    pub host: String,
    /// Normalised.
    pub path: String,
    pub target: Target,
    pub settings: Settings,
    /// What an app that is made for it is called.
    pub hint: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Target {
    Servers {
        protocol: &'static str,
        servers: Vec<Server>,
        /// Where its scripts are, and the one for what is none.
        fastcgi: Option<(String, Option<String>)>,
    },
    Static {
        folder: String,
        spa: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Server {
    pub at: At,
    pub host: String,
    pub port: u16,
    pub weight: u32,
}

/// How a host is served.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Listen {
    pub plain: bool,
    pub secure: bool,
}

/// The settings of an app are those of its first route; another route must want the same.
fn settle(draft: &mut Draft, settings: &Settings) -> Result<(), String> {
    if draft.is_settled && draft.settings != *settings {
        return Err(
            "it wants other settings (password, addresses, bounds, cut-off paths) than another route of the app, which has one set"
                .into(),
        );
    }
    draft.is_settled = true;
    draft.settings = settings.clone();
    Ok(())
}

/// Gives every route to the app that answers it; what Hutong does not run becomes an `upstream`.
pub(crate) fn routes(state: &mut State) {
    let mut routes = std::mem::take(&mut state.routes);
    // What holds for a whole host is an app's own; paths come after.
    routes.sort_by_key(|route| route.path.len());
    let mut made: Vec<(Target, Settings, usize)> = Vec::new();
    for route in routes {
        state.report.app = None;
        let index = match &route.target {
            Target::Servers { servers, .. } => match ours(servers, state) {
                Ours::One(index) => Some(index),
                Ours::Several(list) => joined(&list, &route, state),
                Ours::Some => {
                    let why = "some of its servers are imported here and others are not";
                    state.report.left(&route.at, &route.what, why);
                    continue;
                }
                Ours::None => None,
            },
            Target::Static { .. } => None,
        };
        let index = match index {
            Some(index) => index,
            None => {
                let known = made
                    .iter()
                    .find(|(target, settings, _)| {
                        is_same(target, &route.target) && settings.strip == route.settings.strip
                    })
                    .map(|(_, _, index)| *index);
                match known {
                    Some(index) => index,
                    None => {
                        let Some(index) = make(&route, state) else {
                            continue;
                        };
                        made.push((route.target.clone(), route.settings.clone(), index));
                        index
                    }
                }
            }
        };
        attach(index, route, state);
    }
    state.report.app = None;
}

/// The same, wherever it is written.
fn is_same(one: &Target, other: &Target) -> bool {
    match (one, other) {
        (
            Target::Servers {
                protocol,
                servers,
                fastcgi,
            },
            Target::Servers {
                protocol: protocol2,
                servers: servers2,
                fastcgi: fastcgi2,
            },
        ) => {
            let plain = |list: &[Server]| -> Vec<(String, u16, u32)> {
                let one = |server: &Server| (server.host.clone(), server.port, server.weight);
                list.iter().map(one).collect()
            };
            protocol == protocol2 && fastcgi == fastcgi2 && plain(servers) == plain(servers2)
        }
        (one, other) => one == other,
    }
}

/// Which apps of ours some servers are.
enum Ours {
    None,
    Some,
    One(usize),
    Several(Vec<usize>),
}

fn ours(servers: &[Server], state: &State) -> Ours {
    let mut found: Vec<usize> = Vec::new();
    let mut missing = false;
    for server in servers {
        match find(server, state) {
            Some(index) if !found.contains(&index) => found.push(index),
            Some(_) => {}
            None => missing = true,
        }
    }
    match (found.as_slice(), missing) {
        ([], _) => Ours::None,
        (_, true) => Ours::Some,
        ([one], false) => Ours::One(*one),
        _ => Ours::Several(found.clone()),
    }
}

/// This machine, as seen from itself and from containers.
fn is_here(host: &str) -> bool {
    matches!(
        host,
        "localhost" | "127.0.0.1" | "::1" | "0.0.0.0" | "host.docker.internal" | "172.17.0.1"
    )
}

fn find(server: &Server, state: &State) -> Option<usize> {
    let fits = |draft: &Draft| match is_here(&server.host) {
        _ if draft.is_joined => false,
        true => draft.published.contains(&server.port),
        false => draft.aliases.contains(&server.host),
    };
    state.drafts.iter().position(fits)
}

/// Several apps behind one route are one, if they are the same program.
fn joined(list: &[usize], route: &Route, state: &mut State) -> Option<usize> {
    let (first, others) = list.split_first()?;
    let shown = |index: &usize| state.drafts.get(*index).map(|draft| draft.name.clone());
    let names: Vec<String> = list.iter().filter_map(shown).collect();
    let is_alike = |index: &usize| match (state.drafts.get(*first), state.drafts.get(*index)) {
        (Some(one), Some(other)) => {
            one.run == other.run && one.env == other.env && one.secrets == other.secrets
        }
        _ => false,
    };
    let count = list.len() as u32;
    let is_image = state
        .drafts
        .get(*first)
        .is_some_and(|draft| draft.container().is_some());
    if !others.iter().all(is_alike) || is_image && count > hutong_core::spec::MAX_CONTAINERS {
        state.report.left(
            &route.at,
            &route.what,
            format!(
                "{} are apps of their own here; the route is given to the first: one app with `instances` does the work of several",
                names.join(", ")
            ),
        );
        return Some(*first);
    }
    state.report.used(
        &route.at,
        &route.what,
        format!(
            "instances = {count}: {} are the same program",
            names.join(", ")
        ),
    );
    for index in others {
        if let Some(draft) = state.drafts.get_mut(*index) {
            draft.is_joined = true;
        }
    }
    let weights = match &route.target {
        Target::Servers { servers, .. } => servers.iter().any(|server| server.weight != 1),
        Target::Static { .. } => false,
    };
    if weights {
        let why = "instances of one app share the requests by what they have to do, so weights are not needed";
        state.report.left(&route.at, &route.what, why);
    }
    let aliases: Vec<String> = others
        .iter()
        .filter_map(|index| state.drafts.get(*index))
        .flat_map(|draft| draft.aliases.iter().cloned())
        .collect();
    if let Some(draft) = state.drafts.get_mut(*first) {
        draft.instances = Some(count);
        draft.aliases.extend(aliases);
        if draft.data {
            draft.strategy.get_or_insert("rolling");
        }
    }
    Some(*first)
}

/// An app for what Hutong does not run, or for files.
fn make(route: &Route, state: &mut State) -> Option<usize> {
    let (run, folder) = match &route.target {
        Target::Static { folder, spa } => {
            let run = Run::Static {
                folder: ".".to_owned(),
                spa: *spa,
            };
            (run, Some(folder.clone()))
        }
        Target::Servers {
            protocol, servers, ..
        } => {
            let mut list: Vec<(String, u32)> = Vec::new();
            for server in servers {
                let host = match server.host.as_str() {
                    "localhost" | "0.0.0.0" => "127.0.0.1",
                    other => other,
                };
                let Ok(ip) = host.parse::<std::net::IpAddr>() else {
                    state.report.left(
                        &server.at,
                        &route.what,
                        format!(
                            "`{}` is in none of the files that were handed over, and a server that Hutong does not run has an IP address",
                            short(host)
                        ),
                    );
                    return None;
                };
                let address = std::net::SocketAddr::new(ip, server.port);
                let url = format!("{protocol}://{address}");
                if list.iter().any(|(known, _)| *known == url) {
                    state
                        .report
                        .left(&server.at, &route.what, "it is listed twice");
                    continue;
                }
                if list.len() == 64 {
                    state
                        .report
                        .left(&server.at, &route.what, "an app has at most 64 servers");
                    break;
                }
                state.server.upstreams.insert(ip.to_string());
                list.push((url, server.weight));
            }
            (Run::Upstream(list), None)
        }
    };
    let path = route.path.trim_matches('/').replace('/', "-");
    let wanted = match path.is_empty() {
        true => route.hint.clone(),
        false => format!("{}-{path}", route.hint),
    };
    let wanted = match state.names.is_free(&wanted) || route.host.is_empty() {
        true => wanted,
        false => format!("{}-{path}", app_name(&route.host)),
    };
    let name = state.names.take(&wanted);
    state.report.app = Some(name.clone());
    match &folder {
        Some(folder) => state.report.leave_to_do(
            &route.at,
            &route.what,
            format!("put hutong.toml into {} and deploy that folder", short(folder)),
        ),
        None => state.report.leave_to_do(
            &route.at,
            &route.what,
            "what answers is not run by Hutong: start it as before; if it is a program of this server, Hutong can run it (`command` or `image` in place of `upstream`)",
        ),
    }
    let mut draft = Draft {
        at: route.at.clone(),
        name,
        run,
        folder,
        ..Draft::default()
    };
    if let Target::Servers { fastcgi, .. } = &route.target {
        draft.fastcgi.clone_from(fastcgi);
    }
    state.drafts.push(draft);
    Some(state.drafts.len() - 1)
}

/// A route of an app.
fn attach(index: usize, route: Route, state: &mut State) {
    let Some(draft) = state.drafts.get_mut(index) else {
        return;
    };
    state.report.app = Some(draft.name.clone());
    if let Err(why) = wants_same(draft, &route) {
        state.report.left(
            &route.at,
            &route.what,
            format!("{why}; nobody is let in by it"),
        );
        return;
    }
    if let (
        true,
        Target::Servers {
            protocol, servers, ..
        },
    ) = (draft.has_instances(), &route.target)
    {
        draft.protocol = Some(*protocol).filter(|protocol| *protocol != "http");
        if draft.protocol.is_some() {
            draft.health.path = None;
        }
        // By name it is reached at its own port.
        let named = servers.iter().find(|server| !is_here(&server.host));
        if let Some(server) = named.filter(|_| draft.port.is_none() && draft.tcp.is_none()) {
            draft.port = Some(server.port).filter(|port| *port != 8080);
        }
    }
    if route.host.is_empty() {
        return;
    }
    if !draft.settings.strip && draft.domains.contains(&route.host) {
        let text = format!("{} goes to it anyway", route.host);
        state.report.used(&route.at, &route.what, text);
        return;
    }
    let domain = match route.path.as_str() {
        "/" => route.host.clone(),
        path => format!("{}{path}", route.host),
    };
    match parse_domain(&domain) {
        Ok(domain) => {
            draft.add_domain(&domain.to_string());
            let text = format!("domains, {domain}");
            state.report.used(&route.at, &route.what, text);
        }
        Err(why) => state.report.left(&route.at, &route.what, why),
    }
    if state
        .listens
        .get(&route.host)
        .is_some_and(|listen| listen.plain && listen.secure)
    {
        draft.redirect = Some(false);
    }
}

/// Whether an app can have a route beside those that it has. Bounds may differ by path; who is let in may not.
fn wants_same(draft: &mut Draft, route: &Route) -> Result<(), String> {
    if !draft.is_settled {
        return settle(draft, &route.settings);
    }
    let bare = |settings: &Settings| Settings {
        max_body: None,
        response: None,
        ..settings.clone()
    };
    if bare(&draft.settings) != bare(&route.settings) {
        return settle(draft, &route.settings);
    }
    let (ours, wanted) = (&draft.settings, &route.settings);
    let differs = ours.max_body != wanted.max_body || ours.response != wanted.response;
    if differs && !draft.path_rules.iter().any(|rule| rule.path == route.path) {
        draft.path_rules.push(PathRule {
            path: route.path.clone(),
            max_body: wanted.max_body,
            response: wanted.response,
        });
    }
    Ok(())
}

/// A host belongs to the app that has it without a path; paths of it need that app's consent.
pub(crate) fn hosts(state: &mut State) {
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for index in 0..state.drafts.len() {
        let Some(draft) = state.drafts.get_mut(index) else {
            continue;
        };
        let (name, at) = (draft.name.clone(), draft.at.clone());
        state.report.app = Some(name);
        draft.domains.retain(|domain| {
            if taken.insert(domain.clone()) {
                if !domain.contains('/') {
                    owners.insert(domain.clone(), index);
                }
                return true;
            }
            state.report.left(&at, domain, "another app here has it");
            false
        });
        if draft.domains.len() > 100 {
            state.report.left(
                &at,
                "domains",
                "an app has at most 100; the others are left out",
            );
            draft.domains.truncate(100);
        }
    }
    let mut consents = Vec::new();
    for (index, draft) in state.drafts.iter().enumerate() {
        for domain in &draft.domains {
            let Some((host, path)) = domain.split_once('/') else {
                continue;
            };
            state.report.app = Some(draft.name.clone());
            match owners.get(host) {
                Some(owner) if *owner == index => {}
                Some(owner) => consents.push((*owner, format!("/{path}"), draft.name.clone())),
                None => state.report.leave_to_do(
                    &draft.at,
                    domain,
                    format!("it waits until an app has {host} itself, and consents: share = {{ \"/{path}\" = \"{}\" }}", draft.name),
                ),
            }
        }
    }
    for (owner, path, name) in consents {
        if let Some(draft) = state.drafts.get_mut(owner) {
            draft.share.insert(path, name);
        }
    }
    for draft in &state.drafts {
        if draft.domains.is_empty()
            && !draft.is_joined
            && draft.tcp.is_none()
            && !matches!(draft.run, Run::Background)
        {
            state.report.app = Some(draft.name.clone());
            let ports: Vec<String> = draft.published.iter().map(u16::to_string).collect();
            let before = match ports.is_empty() {
                true => String::new(),
                false => format!(" (it was reached at port {})", ports.join(", ")),
            };
            state.report.leave_to_do(
                &draft.at,
                "domains",
                format!(
                    "nothing says by which host visitors reach it{before}: domains = [\"{}.example.com\"]{}",
                    draft.name,
                    fronts(draft, &state.drafts)
                ),
            );
        }
    }
    state.report.app = None;
}

/// What may lead to an app that has no host: apps for servers on this machine that are asked in its protocol.
fn fronts(draft: &Draft, drafts: &[Draft]) -> String {
    let scheme = format!("{}://", draft.protocol.unwrap_or("http"));
    let is_here = |url: &str| {
        url.strip_prefix(scheme.as_str())
            .and_then(|address| address.parse::<std::net::SocketAddr>().ok())
            .is_some_and(|address| address.ip().is_loopback())
    };
    let front = |one: &Draft| match &one.run {
        Run::Upstream(urls)
            if !one.domains.is_empty() && urls.iter().all(|(url, _)| is_here(url)) =>
        {
            let (first, _) = urls.first()?;
            Some(format!("{} ({first})", one.name))
        }
        _ => None,
    };
    let list: Vec<String> = drafts.iter().filter_map(front).collect();
    match list.is_empty() {
        true => String::new(),
        false => format!(
            "; if one of these leads to it, take its domains and leave that app out: {}",
            short(&list.join(", "))
        ),
    }
}
