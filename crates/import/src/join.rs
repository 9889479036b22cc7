//! What several files say of the same thing, put together: routes find the apps that answer them, hosts get one owner, and
//! what called each other by name becomes links.

use std::collections::{BTreeMap, BTreeSet};

use hutong_core::spec::links::MAX_LINKS;
use hutong_core::spec::parse_domain;

use crate::app::{Draft, PathRule, Run, Settings, app_name};
use crate::place::{At, short};
use crate::report::Report;
use crate::traefik::{self, Dynamic, Resolved};
use crate::{Labels, State};

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

/// Routers of Traefik: those of labels go to the apps that have them, those of files become routes.
pub(crate) fn routers(state: &mut State) {
    let labels = std::mem::take(&mut state.labels);
    let files = std::mem::take(&mut state.dynamic);
    let mut used = BTreeSet::new();
    for one in &labels {
        // Its own first, then those of its project, of Traefik itself, and of files.
        let project = labels.iter().filter(|other| other.project == one.project);
        let scope: Vec<&Dynamic> = std::iter::once(&one.dynamic)
            .chain(project.map(|other| &other.dynamic))
            .chain(labels.iter().map(|other| &other.dynamic))
            .chain(&files)
            .collect();
        labelled(one, &scope, &mut used, state);
    }
    for file in &files {
        let scope: Vec<&Dynamic> = std::iter::once(file)
            .chain(&files)
            .chain(labels.iter().map(|other| &other.dynamic))
            .collect();
        of_file(file, &scope, &labels, &mut used, state);
    }
    state.report.app = None;
    for dynamic in labels.iter().map(|one| &one.dynamic).chain(&files) {
        dynamic.note_middlewares(&used, &mut state.report);
    }
}

/// The routers of one container.
fn labelled(one: &Labels, scope: &[&Dynamic], used: &mut BTreeSet<String>, state: &mut State) {
    // Those that only send to HTTPS come last: then it is known whom they are about.
    let mut resolved = Vec::new();
    for (name, router) in &one.dynamic.routers {
        let found = traefik::resolve(router, scope);
        let redirects = found.as_ref().is_ok_and(|found| found.redirects);
        resolved.push((redirects, name, router, found));
    }
    resolved.sort_by_key(|(redirects, ..)| *redirects);
    let mut served = Served::default();
    for (_, name, router, found) in resolved {
        let what = format!("router {name}");
        let nowhere = At::default();
        let at = router.rule.as_ref().map_or(&nowhere, |(at, _)| at);
        let draft = match one.draft {
            Some(index) => state.drafts.get_mut(index),
            None => None,
        };
        let Some(draft) = draft else {
            state.report.app = None;
            state
                .report
                .left(at, &what, "it goes with the service that Hutong replaces");
            note_names(router, "its router is not served", &mut state.report);
            continue;
        };
        state.report.app = Some(draft.name.clone());
        if one.dynamic.enabled == Some(false) {
            state.report.left(at, &what, "traefik.enable is false");
            note_names(router, "its router is not served", &mut state.report);
            continue;
        }
        let service = service_of(&one.dynamic, router);
        let found = found.and_then(|found| match service {
            Some(service) => match &service.problem {
                Some(why) => Err(format!("its service is not used: {why}")),
                None => Ok(found),
            },
            None if router.service.is_some() => {
                Err("its service is in none of these labels".into())
            }
            None => Ok(found),
        });
        let applied = found.and_then(|found| {
            apply(draft, service, &found, &mut served)?;
            Ok(found)
        });
        match applied {
            Ok(found) => {
                let domains: Vec<String> = found.domains.iter().map(ToString::to_string).collect();
                state
                    .report
                    .used(at, &what, format!("domains = [{}]", domains.join(", ")));
                note_names(router, "in its app's settings", &mut state.report);
                for remark in &found.remarks {
                    state.report.left(at, &what, remark.as_str());
                }
                used.extend(found.used);
            }
            Err(why) => {
                state
                    .report
                    .left(at, &what, format!("{why}; nobody is let in by it"));
                note_names(router, "its router is not served", &mut state.report);
            }
        }
    }
    let is_both = served.plain.intersection(&served.secure).next().is_some();
    let draft = match one.draft {
        Some(index) => state.drafts.get_mut(index),
        None => None,
    };
    if let (Some(draft), true) = (draft, is_both) {
        draft.redirect = Some(false);
    }
}

/// Says of the names of middlewares what became of their router.
fn note_names(router: &traefik::Router, text: &str, report: &mut Report) {
    for (at, name) in &router.middlewares {
        let what = format!("middlewares: {}", short(name));
        match text.starts_with("in ") {
            true => report.used(at, &what, text),
            false => report.left(at, &what, text),
        }
    }
}

/// Hosts of an app that are served plainly, and over HTTPS.
#[derive(Default)]
struct Served {
    plain: BTreeSet<String>,
    secure: BTreeSet<String>,
}

fn service_of<'a>(dynamic: &'a Dynamic, router: &traefik::Router) -> Option<&'a traefik::Service> {
    match &router.service {
        Some((_, name)) => {
            let name = name.split('@').next().unwrap_or_default();
            dynamic.services.get(name)
        }
        None => dynamic.services.values().next(),
    }
}

/// Gives an app what a router of its labels asks for, or says why it cannot have that.
fn apply(
    draft: &mut Draft,
    service: Option<&traefik::Service>,
    found: &Resolved,
    served: &mut Served,
) -> Result<(), String> {
    let domains: Vec<String> = found.domains.iter().map(ToString::to_string).collect();
    let is_known = domains.iter().all(|domain| draft.domains.contains(domain));
    if found.redirects && is_known && !found.domains.is_empty() {
        return Ok(());
    }
    let mut settings = found.settings.clone();
    if service.is_some_and(|service| service.sticky) {
        settings.balance = Some("sticky");
    }
    settle(draft, &settings)?;
    for domain in &domains {
        draft.add_domain(domain);
    }
    let hosts = found.domains.iter().map(|domain| domain.host.clone());
    match found.secure || found.redirects {
        true => served.secure.extend(hosts),
        false => served.plain.extend(hosts),
    }
    if let Some(service) = service {
        if service.scheme.as_deref() == Some("h2c") {
            draft.protocol = Some("h2c");
            draft.health.path = None;
        }
        if draft.health.path.is_none() && draft.protocol.is_none() {
            draft.health.path.clone_from(&service.health.path);
            draft.health.interval = draft.health.interval.or(service.health.interval);
            draft.health.timeout = draft.health.timeout.or(service.health.timeout);
        }
    }
    Ok(())
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

/// The routers of a file.
fn of_file(
    file: &Dynamic,
    scope: &[&Dynamic],
    labels: &[Labels],
    used: &mut BTreeSet<String>,
    state: &mut State,
) {
    state.report.app = None;
    for (name, router) in &file.routers {
        let what = format!("router {name}");
        let nowhere = At::default();
        let at = router.rule.as_ref().map_or(&nowhere, |(at, _)| at);
        let service = router
            .service
            .as_ref()
            .map_or("", |(_, name)| name.as_str());
        if service.ends_with("@internal") {
            let text = "a page of Traefik's own: `hutong gateway` and `hutong apps` show routes and instances";
            state.report.replaced(at, &what, text);
            note_names(router, "its router is not served", &mut state.report);
            continue;
        }
        let found = traefik::resolve(router, scope)
            .and_then(|found| Ok((servers_of(service, file, labels, state)?, found)));
        match found {
            Ok((target, found)) => {
                note_names(router, "in its app's settings", &mut state.report);
                for remark in &found.remarks {
                    state.report.left(at, &what, remark.as_str());
                }
                state.report.used(at, &what, "a route");
                used.extend(found.used.iter().cloned());
                for domain in &found.domains {
                    let listen = state.listens.entry(domain.host.clone()).or_default();
                    listen.secure |= found.secure;
                    state.routes.push(Route {
                        at: at.clone(),
                        what: what.clone(),
                        host: domain.host.clone(),
                        path: domain.prefix.clone(),
                        target: target.clone(),
                        settings: found.settings.clone(),
                        hint: app_name(name),
                    });
                }
            }
            Err(why) => {
                state
                    .report
                    .left(at, &what, format!("{why}; nobody is let in by it"));
                note_names(router, "its router is not served", &mut state.report);
            }
        }
    }
}

/// Where the service of a file's router answers.
fn servers_of(
    name: &str,
    file: &Dynamic,
    labels: &[Labels],
    state: &State,
) -> Result<Target, String> {
    let (name, provider) = name.split_once('@').unwrap_or((name, ""));
    let servers = |protocol, servers| Target::Servers {
        protocol,
        servers,
        fastcgi: None,
    };
    if let Some(service) = file.services.get(name).filter(|_| provider != "docker") {
        if let Some(why) = &service.problem {
            return Err(format!("its service is not used: {why}"));
        }
        let mut list = Vec::new();
        let mut protocol = "http";
        for one in service.servers.values() {
            let (scheme, host, port) = url(&one.url).ok_or_else(|| {
                format!(
                    "`{}` is no address such as http://127.0.0.1:8080",
                    short(&one.url)
                )
            })?;
            protocol = scheme;
            list.push(Server {
                at: one.at.clone(),
                host,
                port,
                weight: one.weight.unwrap_or(1),
            });
        }
        return match list.is_empty() {
            true => Err("its service has no servers".into()),
            false => Ok(servers(protocol, list)),
        };
    }
    // A service of a container, by the name that its labels give it.
    for one in labels {
        if let (Some(service), Some(index)) = (one.dynamic.services.get(name), one.draft)
            && let Some(draft) = state.drafts.get(index)
            && let Some(host) = draft.aliases.iter().next()
        {
            let (at, port) = service.port.clone().unwrap_or((draft.at.clone(), 80));
            let server = Server {
                at,
                host: host.clone(),
                port,
                weight: 1,
            };
            return Ok(servers("http", vec![server]));
        }
    }
    Err(format!(
        "its service `{}` is in none of the files that were handed over",
        short(name)
    ))
}

/// `http://HOST:PORT`, taken apart.
fn url(text: &str) -> Option<(&'static str, String, u16)> {
    let (scheme, rest) = text.split_once("://")?;
    let scheme = match scheme {
        "http" => "http",
        "h2c" => "h2c",
        _ => return None,
    };
    let rest = rest.trim_end_matches('/');
    if rest.contains('/') {
        return None;
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (rest, 80),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty() && port > 0).then(|| (scheme, host.to_owned(), port))
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
        Some(folder) => state.report.to_do(
            &route.at,
            &route.what,
            format!("put hutong.toml into {} and deploy that folder", short(folder)),
        ),
        None => state.report.to_do(
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
                None => state.report.to_do(
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
            state.report.to_do(
                &draft.at,
                "domains",
                format!("nothing says by which host visitors reach it{before}: domains = [\"{}.example.com\"]", draft.name),
            );
        }
    }
    state.report.app = None;
}

/// What calls another app of its project.
struct Call {
    from: usize,
    to: usize,
    alias: String,
    at: At,
    what: String,
    /// The variable that names it, with its new value.
    change: Option<(String, String)>,
    is_http: bool,
}

/// Calls by name become links, where they are HTTP.
pub(crate) fn links(state: &mut State) {
    let mut calls = Vec::new();
    for (index, draft) in state.drafts.iter().enumerate() {
        if draft.is_joined {
            continue;
        }
        let variables = draft.env.iter().chain(&draft.secrets);
        for (key, value) in variables {
            let at = draft.env_at.get(key).unwrap_or(&draft.at);
            if value.contains("host.docker.internal") || value.contains("172.17.0.1") {
                state.report.app = Some(draft.name.clone());
                state.report.to_do(
                    at,
                    &format!("environment.{key}"),
                    "an app does not reach the server that it runs on: what it calls has to be an app with a link, or have a public address",
                );
            }
            if let Some(call) = in_value(index, draft, key, value, state) {
                calls.push(call);
            }
        }
        for (at, alias) in &draft.needs {
            if let Some(to) = named(alias, index, draft, state) {
                calls.push(Call {
                    from: index,
                    to,
                    alias: alias.clone(),
                    at: at.clone(),
                    what: format!("depends_on.{alias}"),
                    change: None,
                    is_http: true,
                });
            }
        }
    }
    let mut said = BTreeSet::new();
    for call in calls {
        link(call, &mut said, state);
    }
    state.report.app = None;
}

/// The app that a name means to another one of its project.
fn named(alias: &str, index: usize, draft: &Draft, state: &State) -> Option<usize> {
    let fits = |other: usize, one: &Draft| {
        other != index
            && !one.is_joined
            && one.project == draft.project
            && one.aliases.contains(alias)
    };
    let mut list = state.drafts.iter().enumerate();
    list.find(|(other, one)| fits(*other, one))
        .map(|(other, _)| other)
}

/// A call that a variable's value tells of: an address, or a name where one is meant.
fn in_value(index: usize, draft: &Draft, key: &str, value: &str, state: &State) -> Option<Call> {
    let mut parts = Vec::new();
    let mut found = None;
    for part in value.split(',') {
        let (scheme, rest) = match part.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, part),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user, host_port) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let (host, port) = match host_port.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host_port, None),
        };
        let is_meant = match (scheme, port) {
            (Some(_), _) => true,
            (None, Some(port)) => port.parse::<u16>().is_ok() && path.is_empty(),
            (None, None) => path.is_empty() && names_a_host(key),
        };
        let to = named(host.trim(), index, draft, state).filter(|_| is_meant);
        let Some(to) = to else {
            parts.push(part.to_owned());
            continue;
        };
        let is_http = match scheme {
            Some(scheme) => matches!(scheme, "http" | "https" | "ws" | "wss"),
            None => state.drafts.get(to).is_some_and(|one| one.tcp.is_none()),
        };
        let link = format!("{}.internal", app_name(host.trim()));
        let port = match (scheme, port) {
            (None, Some(_)) => ":80",
            _ => "",
        };
        let scheme = match scheme {
            Some("https" | "http") => "http://",
            Some("wss" | "ws") => "ws://",
            _ => "",
        };
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        parts.push(format!("{scheme}{user}{link}{port}{path}"));
        found = Some((to, host.trim().to_owned(), is_http));
    }
    let (to, alias, is_http) = found?;
    Some(Call {
        from: index,
        to,
        alias,
        at: draft.env_at.get(key).unwrap_or(&draft.at).clone(),
        what: format!("environment.{key}"),
        change: Some((key.to_owned(), parts.join(","))),
        is_http,
    })
}

/// Whether a variable is meant to hold a host.
fn names_a_host(key: &str) -> bool {
    let key = key.to_ascii_uppercase();
    let ends = [
        "HOST", "HOSTNAME", "SERVER", "ADDR", "ADDRESS", "URL", "URI", "ENDPOINT", "UPSTREAM",
        "BACKEND",
    ];
    ends.iter().any(|end| key.ends_with(end))
}

fn link(call: Call, said: &mut BTreeSet<(usize, usize)>, state: &mut State) {
    let Call {
        from,
        to,
        alias,
        at,
        what,
        change,
        is_http,
    } = call;
    let name = app_name(&alias);
    let Some(callee) = state.drafts.get(to) else {
        return;
    };
    let (callee_name, tcp) = (callee.name.clone(), callee.tcp);
    let listens =
        callee.has_instances() || matches!(callee.run, Run::Upstream(_) | Run::Static { .. });
    let Some(caller) = state.drafts.get_mut(from) else {
        return;
    };
    state.report.app = Some(caller.name.clone());
    if let Some(server) = tcp {
        if said.insert((from, to)) || change.is_some() {
            state.report.to_do(
                &at,
                &what,
                format!(
                    "{callee_name} speaks {server}, and links are for HTTP: there are no TCP links yet, and an app reaches no other app and nothing on this server by address. Until there are, {} needs a {server} with a public address",
                    caller.name
                ),
            );
        }
        return;
    }
    if !is_http || !listens {
        state.report.to_do(
            &at,
            &what,
            format!("links are for HTTP, and there are no TCP links yet: {} does not reach {callee_name} so", caller.name),
        );
        return;
    }
    let is_new = !caller.links.contains_key(&name);
    if is_new && caller.port == Some(80) {
        state.report.to_do(
            &at,
            &what,
            format!("a link to {callee_name} would be at port 80 of the app's own network, where it listens itself: have it listen at another port, then say links = {{ {name} = \"{callee_name}\" }}"),
        );
        return;
    }
    if is_new && caller.links.len() >= MAX_LINKS {
        state
            .report
            .left(&at, &what, format!("an app has at most {MAX_LINKS} links"));
        return;
    }
    if caller
        .links
        .get(&name)
        .is_some_and(|known| *known != callee_name)
    {
        state
            .report
            .left(&at, &what, "there is a link of that name already");
        return;
    }
    caller.links.insert(name.clone(), callee_name.clone());
    let caller_name = caller.name.clone();
    match change {
        Some((key, value)) => {
            match caller.env.contains_key(&key) {
                true => caller.env.insert(key, value),
                false => caller.secrets.insert(key, value),
            };
            said.insert((from, to));
            state.report.used(
                &at,
                &what,
                format!("links: {callee_name} is reached at http://{name}.internal, and the variable says so"),
            );
        }
        None if said.insert((from, to)) => state.report.to_do(
            &at,
            &what,
            format!("links: {callee_name} is reached at http://{name}.internal; change {alias} to that where the program names it"),
        ),
        None => {}
    }
    if let Some(callee) = state.drafts.get_mut(to) {
        callee.callers.insert(caller_name);
    }
}
