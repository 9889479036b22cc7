//! Routes that containers of others ask for by Traefik's labels. Containers in, routes and what is to be said of them out.
//! A label that is not understood is noted. A router that would be served otherwise than its labels say is left out, and it
//! is said why: what is not understood may be what keeps visitors out. Labels are hostile; all of it is bounded.
//!
//! Start at [`read`] (containers that are one service → its routers), then [`declared`] (labels, taken apart) and [`rule`]
//! (which requests); [`settle`] says who has a host that several want.

mod declared;
pub mod rule;

use core::net::{IpAddr, SocketAddr};
use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, BTreeSet};

use crate::route::covers;
use crate::spec::{Auth, Domain, Protocol};

use declared::{Declared, Middleware, Service};

/// Routes of one router, and of all.
const MAX_ROUTES_EACH: usize = 200;
const MAX_ROUTES: usize = 2000;
/// Of one service: the others are to have some, too.
const MAX_ROUTES_OF_ONE: usize = 200;
/// Each is probed: of one router, and of all.
const MAX_TARGETS_EACH: usize = 64;
const MAX_TARGETS: usize = 1000;
const MAX_MIDDLEWARES: usize = 32;
/// What is said of one service.
const MAX_NOTES: usize = 40;
/// What the names of all routers end with; no app's name does.
const MARK: &str = "@docker";

/// A container that somebody else started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The engine's.
    pub id: String,
    pub name: String,
    /// Seconds since 1970.
    pub created: i64,
    /// What compose made it of: project and service.
    pub compose: Option<(String, String)>,
    pub networks: Vec<Attached>,
    /// TCP ports that it says it listens on.
    pub ports: Vec<u16>,
    /// Traefik's; none of them if they are too many.
    pub labels: BTreeMap<String, String>,
    pub is_cut: bool,
    /// Why it is to get no requests now.
    pub waits: Option<String>,
}

/// A network that a container is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub network: String,
    /// Where it is there, or why the gateway does not reach it.
    pub address: Result<IpAddr, String>,
}

/// Containers that are one service, and how they are routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// `PROJECT/SERVICE` of compose, else the container's name.
    pub name: String,
    /// The oldest first.
    pub containers: Vec<String>,
    pub routers: Vec<Router>,
    /// What nobody may have: who would have it is left out, and who has a shorter path might serve it to all.
    pub denied: BTreeSet<Domain>,
    /// A name for who serves that, like a router's.
    pub nobody: String,
    /// What is not done, or not as the labels say.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Router {
    /// Among all routers and apps.
    pub name: String,
    pub routes: Vec<Route>,
    /// Its hosts are to have certificates.
    pub certificate: bool,
    /// Plain requests are sent to HTTPS.
    pub redirect: bool,
    pub protocol: Protocol,
    pub sticky: bool,
    pub compress: bool,
    pub auth: Option<Auth>,
    pub targets: Vec<Target>,
    priority: Option<i64>,
    rule_length: usize,
}

impl Router {
    /// What comes first to Traefik: what somebody said, else the longer rule.
    fn rank(&self) -> i64 {
        let length = i64::try_from(self.rule_length).unwrap_or(i64::MAX);
        self.priority.unwrap_or(length)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub domain: Domain,
    /// The app does not see the prefix.
    pub strip: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The engine's id of its container.
    pub id: String,
    pub container: String,
    pub address: SocketAddr,
    /// Why it is to get no requests now.
    pub waits: Option<String>,
}

/// Whether a name is one of a router here, or of a target of one.
pub fn is_external(name: &str) -> bool {
    name.contains(MARK)
}

/// Whether a container wants to be routed, as its label `traefik.enable` says.
pub fn is_wanted(enable: Option<&str>, by_default: bool) -> bool {
    // What is not understood is read, and said to be that.
    enable.map_or(by_default, |text| boolean(text) != Some(false))
}

/// Whether an address can be a container's: of a private network (RFC 1918, RFC 4193). No label leads to a loopback, to the
/// metadata of a cloud, or out.
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private(),
        IpAddr::V6(ip) => (ip.segments()[0] & 0xfe00) == 0xfc00,
    }
}

/// What all these containers ask for; the oldest first.
pub fn read(containers: &[Container]) -> Vec<External> {
    let mut sorted: Vec<&Container> = containers.iter().collect();
    sorted.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    let groups = group(&sorted);
    let mut names = BTreeSet::new();
    let mut left = MAX_ROUTES;
    let mut externals: Vec<External> = groups
        .iter()
        .map(|one| {
            let most = left.min(MAX_ROUTES_OF_ONE);
            let mut mine = most;
            let external = external(one, &groups, &mut names, &mut mine);
            left -= most - mine;
            external
        })
        .collect();
    note_priorities(&mut externals);
    let mut targets = MAX_TARGETS;
    for external in &mut externals {
        contradictions(external);
        deny(external);
        for router in &mut external.routers {
            if router.targets.len() > targets.min(MAX_TARGETS_EACH) {
                let text = format!(
                    "router {}: some containers get nothing: there are over {MAX_TARGETS_EACH} of it, or {MAX_TARGETS} in all",
                    router.name
                );
                note(&mut external.notes, text);
                router.targets.truncate(targets.min(MAX_TARGETS_EACH));
            }
            targets -= router.targets.len();
        }
    }
    externals
}

/// Two routers of one service that claim the same and differ in who may come: which of them counts is not for us to guess.
fn contradictions(external: &mut External) {
    let mut claims: BTreeMap<Domain, Vec<Option<Auth>>> = BTreeMap::new();
    for router in &external.routers {
        for route in &router.routes {
            let claim = claims.entry(route.domain.clone()).or_default();
            claim.push(router.auth.clone());
        }
    }
    let differ = |auths: &Vec<Option<Auth>>| auths.iter().any(|auth| *auth != auths[0]);
    claims.retain(|_, auths| differ(auths));
    for domain in claims.into_keys() {
        let text =
            format!("{domain} is not served: two routers have it, and differ in who may come");
        note(&mut external.notes, text);
        external.denied.insert(domain);
    }
}

/// What is denied is served by no router, and not by one above it either.
fn deny(external: &mut External) {
    let denied = &external.denied;
    for router in &mut external.routers {
        router
            .routes
            .retain(|route| !denied.contains(&route.domain));
    }
}

/// Takes away what belongs to somebody else: hosts of apps of ours, which `owner` knows, and what an older service has.
pub fn settle(externals: &mut [External], owner: impl Fn(&str) -> Option<String>) {
    let mut taken: BTreeMap<Domain, String> = BTreeMap::new();
    for external in externals.iter_mut() {
        for router in &mut external.routers {
            let (name, notes) = (&external.name, &mut external.notes);
            router.routes.retain(|route| {
                let domain = &route.domain;
                if let Some(app) = owner(&domain.host) {
                    let text = format!("{domain} waits: {} belongs to the app {app}", domain.host);
                    note(notes, text);
                    return false;
                }
                match taken.entry(domain.clone()) {
                    Place::Vacant(free) => {
                        free.insert(name.clone());
                        true
                    }
                    Place::Occupied(by) => {
                        note(notes, format!("{domain} waits: {} has it", by.get()));
                        false
                    }
                }
            });
        }
    }
    // Behind all that are served: what one service leaves out is no reason to take from another what it has.
    for external in externals {
        external.denied.retain(|domain| {
            let is_free = owner(&domain.host).is_none() && !taken.contains_key(domain);
            if is_free {
                taken.insert(domain.clone(), external.name.clone());
            }
            is_free
        });
    }
}

/// Containers that are one service, with the labels of each of them.
struct Group<'a> {
    name: String,
    containers: Vec<&'a Container>,
    declared: Declared,
}

impl<'a> Group<'a> {
    fn first(&self) -> Option<&'a Container> {
        self.containers.first().copied()
    }

    fn project(&self) -> Option<&'a str> {
        let compose = self.first()?.compose.as_ref();
        compose.map(|(project, _)| project.as_str())
    }
}

/// Those of one service of compose that say the same are one; while a service is replaced, old and new are two.
fn group<'a>(sorted: &[&'a Container]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut known: BTreeMap<_, usize> = BTreeMap::new();
    let mut names = BTreeSet::new();
    for container in sorted.iter().copied() {
        let compose = container.compose.as_ref().filter(|_| !container.is_cut);
        if let Some(compose) = compose {
            match known.entry((compose, &container.labels)) {
                Place::Occupied(place) => {
                    if let Some(group) = groups.get_mut(*place.get()) {
                        group.containers.push(container);
                    }
                    continue;
                }
                Place::Vacant(free) => {
                    free.insert(groups.len());
                }
            }
        }
        let name = match &container.compose {
            Some((project, service)) => format!("{}/{}", plain(project), plain(service)),
            None => plain(&container.name),
        };
        groups.push(Group {
            name: unique(&mut names, &name, ""),
            containers: vec![container],
            declared: Declared::new(&container.labels),
        });
    }
    groups
}

fn external(
    group: &Group<'_>,
    groups: &[Group<'_>],
    names: &mut BTreeSet<String>,
    left: &mut usize,
) -> External {
    let mut notes = group.declared.notes.clone();
    let mut drafts = Vec::new();
    let is_cut = group.first().is_some_and(|first| first.is_cut);
    if is_cut {
        let text = "its labels are too many, too long, or hold control characters: none is used";
        note(&mut notes, text.into());
    } else if group.declared.routers.is_empty() {
        let text = "no label says which requests are for it: traefik.http.routers.NAME.rule";
        note(&mut notes, text.into());
    }
    // The one that is left out may be the one that asks for a password: what it would have is denied, so that another one,
    // of a shorter path, does not serve it without. If it cannot be known what that is, nothing is served.
    let mut denied = BTreeSet::new();
    let mut is_unknown = false;
    let routers = group.declared.routers.iter().filter(|_| !is_cut);
    for (name, router) in routers {
        let made = draft(group, groups, router, &mut notes);
        let domains = match &made {
            Ok(draft) => draft.routes.len(),
            Err(Left { denied, .. }) => denied.as_ref().map_or(0, Vec::len),
        };
        let fits = left.checked_sub(domains);
        *left = fits.unwrap_or(*left);
        let made = match fits {
            Some(_) => made,
            None => Err(Left {
                why: format!(
                    "there are more than {MAX_ROUTES_OF_ONE} routes of it, or {MAX_ROUTES} in all"
                ),
                denied: None,
            }),
        };
        match made {
            Ok(draft) => drafts.push((plain(name), draft)),
            Err(out) => {
                note(&mut notes, format!("router {}: {}", plain(name), out.why));
                match out.denied {
                    Some(domains) => denied.extend(domains),
                    None => is_unknown = true,
                }
            }
        }
    }
    if is_unknown && !drafts.is_empty() {
        let text = "no router of it is served: what is left out may be what keeps visitors out";
        note(&mut notes, text.into());
        let domains = drafts.drain(..).flat_map(|(_, draft)| draft.routes);
        denied.extend(domains.map(|route| route.domain));
    }
    let (joined, nowhere) = join(drafts, &mut notes);
    denied.extend(nowhere);
    let routers = joined
        .into_iter()
        .map(|(name, draft)| Router {
            name: unique(names, &format!("{}:{name}", group.name), MARK),
            targets: targets(group, &draft.service, &mut notes),
            certificate: draft.entry != Entry::Plain || draft.redirect,
            redirect: draft.redirect,
            protocol: draft.service.protocol,
            sticky: draft.service.sticky,
            compress: draft.compress,
            auth: draft.auth,
            routes: draft.routes,
            priority: draft.priority,
            rule_length: draft.rule_length,
        })
        .collect();
    let containers = group.containers.iter().map(|one| plain(&one.name));
    External {
        name: group.name.clone(),
        containers: containers.collect(),
        nobody: unique(names, &format!("{}:denied", group.name), MARK),
        routers,
        denied,
        notes,
    }
}

/// A router that is left out.
struct Left {
    why: String,
    /// What it would have, where that is known.
    denied: Option<Vec<Domain>>,
}

impl Left {
    /// It would serve nobody who comes here.
    fn nothing(why: String) -> Self {
        let denied = Some(Vec::new());
        Left { why, denied }
    }
}

/// Who comes to a router of Traefik's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Plain,
    /// HTTPS only.
    Secure,
    Both,
}

/// A router on its way.
struct Draft {
    entry: Entry,
    routes: Vec<Route>,
    service: Service,
    redirect: bool,
    compress: bool,
    auth: Option<Auth>,
    priority: Option<i64>,
    rule_length: usize,
}

impl Draft {
    fn has(&self, domain: &Domain) -> bool {
        self.routes.iter().any(|route| route.domain == *domain)
    }

    /// Whether it does the same with a request.
    fn is_like(&self, other: &Draft) -> bool {
        (&self.service, self.compress, &self.auth) == (&other.service, other.compress, &other.auth)
    }
}

/// What the two entry points for everybody are called in all of Traefik's documents. Any other one may be bound to a private
/// address, which is a way to keep visitors out.
const PLAIN: [&str; 2] = ["web", "http"];
const SECURE: [&str; 4] = ["websecure", "web-secure", "web_secure", "https"];

fn entry(router: &declared::Router, notes: &mut Vec<String>) -> Result<Entry, String> {
    let points = &router.entry_points;
    let is = |known: &[&str]| points.iter().any(|name| known.contains(&name.as_str()));
    let (plain, secure) = (is(&PLAIN), is(&SECURE));
    let known = |name: &&String| {
        let name = name.as_str();
        PLAIN.contains(&name) || SECURE.contains(&name)
    };
    if let Some(other) = points.iter().find(|name| !known(name)) {
        let text = format!(
            "the entry point `{}` is not known here (known: {}, {})",
            self::plain(other),
            PLAIN.join(", "),
            SECURE.join(", ")
        );
        if !plain && !secure {
            return Err(text);
        }
        note(notes, text);
    }
    Ok(match (plain, secure) {
        _ if router.tls => Entry::Secure,
        (true, true) => Entry::Both,
        (false, true) => Entry::Secure,
        (_, false) => Entry::Plain,
    })
}

fn draft(
    group: &Group<'_>,
    groups: &[Group<'_>],
    router: &declared::Router,
    notes: &mut Vec<String>,
) -> Result<Draft, Left> {
    let Some(rule) = router.rule.as_deref() else {
        // Traefik would make one of the container's name.
        let why = router.problem.as_deref().unwrap_or("it has no rule");
        return Err(Left::nothing(why.into()));
    };
    let domains = rule::parse(rule).map_err(|why| Left {
        why: match &router.problem {
            Some(problem) => problem.clone(),
            None => format!("its rule is not served: {why}"),
        },
        denied: None,
    })?;
    // It would be asked by those only who come another way.
    let entry = entry(router, notes).map_err(Left::nothing)?;
    let denied = Some(domains.clone());
    routed(group, groups, router, (rule, domains, entry)).map_err(|why| Left { why, denied })
}

fn routed(
    group: &Group<'_>,
    groups: &[Group<'_>],
    router: &declared::Router,
    (rule, domains, entry): (&str, Vec<Domain>, Entry),
) -> Result<Draft, String> {
    if let Some(problem) = &router.problem {
        return Err(problem.clone());
    }
    let mut draft = Draft {
        entry,
        routes: Vec::new(),
        service: service(group, router.service.as_deref())?,
        redirect: entry == Entry::Secure,
        compress: false,
        auth: None,
        priority: router.priority,
        rule_length: rule.len(),
    };
    if router.middlewares.len() > MAX_MIDDLEWARES {
        return Err(format!("it has more than {MAX_MIDDLEWARES} middlewares"));
    }
    let mut prefixes = None;
    for name in &router.middlewares {
        match middleware(group, groups, name)? {
            Middleware::Strip(_) if prefixes.is_some() => {
                return Err("it cuts prefixes off twice".into());
            }
            Middleware::Strip(list) => prefixes = Some(list),
            Middleware::Auth(_) if draft.auth.is_some() => {
                return Err("it asks for two passwords".into());
            }
            Middleware::Auth(auth) => draft.auth = Some(auth),
            Middleware::Redirect => draft.redirect = true,
            Middleware::Compress(on) => draft.compress |= on,
        }
    }
    draft.routes = routes(domains, &prefixes.unwrap_or_default())?;
    Ok(draft)
}

/// The service that a router names, or the only one.
fn service(group: &Group<'_>, name: Option<&str>) -> Result<Service, String> {
    let services = &group.declared.services;
    let found = match name {
        Some(name) => {
            let name = local(name)?;
            let found = services.get(name).cloned();
            found.ok_or_else(|| format!("none of its labels is of the service {}", short(name)))?
        }
        None if services.len() > 1 => {
            return Err("it does not say which of its services it is for".into());
        }
        // Without labels of its own: the lowest port that the container names.
        None => services.values().next().cloned().unwrap_or_default(),
    };
    match &found.problem {
        Some(why) => Err(format!("its service is not used: {why}")),
        None => Ok(found),
    }
}

/// A middleware by its name: of the container itself, or of another one of the same compose project.
fn middleware(group: &Group<'_>, groups: &[Group<'_>], name: &str) -> Result<Middleware, String> {
    let name = local(name)?;
    let project = group.project();
    let siblings = groups
        .iter()
        .filter(|other| project.is_some() && other.project() == project);
    let found = std::iter::once(group)
        .chain(siblings)
        .find_map(|group| group.declared.middlewares.get(name));
    match found {
        Some(Ok(middleware)) => Ok(middleware.clone()),
        Some(Err(why)) => Err(format!("its middleware {} is not used: {why}", short(name))),
        None => Err(format!(
            "its middleware {} is in no label of it or of its compose project",
            short(name)
        )),
    }
}

/// `NAME@docker` is `NAME`.
fn local(name: &str) -> Result<&str, String> {
    match name.split_once('@') {
        None => Ok(name),
        Some((name, "docker")) => Ok(name),
        Some(_) => Err(format!(
            "{} is in Traefik's own configuration, which is not read",
            short(name)
        )),
    }
}

/// Routes, with what is cut off. A middleware cuts the first of its prefixes off that fits; a route cuts off its own.
fn routes(domains: Vec<Domain>, prefixes: &[String]) -> Result<Vec<Route>, String> {
    let mut routes: BTreeMap<Domain, bool> = BTreeMap::new();
    for domain in domains {
        let mut strip = false;
        for (index, prefix) in prefixes.iter().enumerate() {
            // To cut "/" off changes nothing, and what an earlier one fits comes no further.
            let mut earlier = prefixes.iter().take(index);
            if prefix == "/" || earlier.any(|other| other != "/" && covers(other, prefix)) {
                continue;
            }
            if *prefix == domain.prefix {
                strip = true;
                break;
            }
            if covers(prefix, &domain.prefix) {
                return Err(format!(
                    "stripPrefix {prefix} cuts a part off {domain}; only all of a route's path can be cut off"
                ));
            }
            if covers(&domain.prefix, prefix) {
                let deeper = Domain {
                    host: domain.host.clone(),
                    prefix: prefix.clone(),
                };
                routes.insert(deeper, true);
            }
        }
        *routes.entry(domain).or_default() |= strip;
    }
    if routes.len() > MAX_ROUTES_EACH {
        return Err(format!("it has more than {MAX_ROUTES_EACH} routes"));
    }
    let routes = routes
        .into_iter()
        .map(|(domain, strip)| Route { domain, strip });
    Ok(routes.collect())
}

/// Traefik has one router for plain requests and another for HTTPS; a route of ours serves both.
/// Also what is sent to HTTPS and found by nobody there.
fn join(
    drafts: Vec<(String, Draft)>,
    notes: &mut Vec<String>,
) -> (Vec<(String, Draft)>, Vec<Domain>) {
    let mut nowhere = Vec::new();
    let is_plain = |(_, draft): &(String, Draft)| draft.entry == Entry::Plain;
    let (open, mut joined): (Vec<_>, Vec<_>) = drafts.into_iter().partition(is_plain);
    for (name, mut draft) in open {
        let is_secure = |(_, draft): &&mut (String, Draft)| draft.entry == Entry::Secure;
        let redirects = draft.redirect;
        for (other, secure) in joined.iter_mut().filter(is_secure) {
            if !draft.routes.iter().any(|route| secure.has(&route.domain)) {
                continue;
            }
            let whole = secure.routes.iter().all(|r| draft.routes.contains(r));
            if !draft.redirect && whole && draft.is_like(secure) {
                secure.redirect = false;
            } else if !draft.redirect {
                // That way nobody sees what the other one keeps in.
                let text = format!(
                    "router {name}: what router {other} has by HTTPS is sent there, because they differ"
                );
                note(notes, text);
            }
            draft.routes.retain(|route| !secure.has(&route.domain));
        }
        if redirects && !draft.routes.is_empty() {
            // Who is sent there finds nobody: it is not for it to serve what the other one would have asked for.
            let routes: Vec<Domain> = draft.routes.drain(..).map(|route| route.domain).collect();
            let names: Vec<String> = routes.iter().map(ToString::to_string).collect();
            let text = format!(
                "router {name}: it only sends to HTTPS, and no router has {} there",
                names.join(", ")
            );
            note(notes, text);
            nowhere.extend(routes);
        }
        if !draft.routes.is_empty() {
            joined.push((name, draft));
        }
    }
    (joined, nowhere)
}

fn targets(group: &Group<'_>, service: &Service, notes: &mut Vec<String>) -> Vec<Target> {
    let network = group.declared.network.as_deref();
    let mut targets = Vec::new();
    for container in &group.containers {
        let name = plain(&container.name);
        let lowest = || container.ports.iter().copied().min();
        let port = service.port.or_else(lowest).ok_or_else(|| {
            let label = "traefik.http.services.NAME.loadbalancer.server.port";
            format!("it names no port; say which it is: {label}")
        });
        let found = port.and_then(|port| Ok((address(container, network)?, port)));
        match found {
            Ok((ip, port)) => targets.push(Target {
                id: container.id.clone(),
                container: name,
                address: SocketAddr::new(ip, port),
                waits: container.waits.clone(),
            }),
            Err(why) => note(notes, format!("container {name}: {why}")),
        }
    }
    targets
}

/// Where a container is reached: in the network that it names, else in the first one where it can be.
fn address(container: &Container, wanted: Option<&str>) -> Result<IpAddr, String> {
    let networks = &container.networks;
    let found = match wanted {
        Some(wanted) => {
            // Compose puts the project in front of it.
            let project = container.compose.as_ref().map(|(project, _)| project);
            let longer = project.map(|project| format!("{project}_{wanted}"));
            let by_name = |name: &str| networks.iter().find(|one| one.network == name);
            by_name(wanted).or_else(|| by_name(longer.as_deref()?))
        }
        None => {
            let reached = networks.iter().find(|one| one.address.is_ok());
            reached.or(networks.first())
        }
    };
    let found = found.ok_or_else(|| match wanted {
        Some(wanted) => format!("it is not in the network {}", short(wanted)),
        None => "it is in no network".into(),
    })?;
    match &found.address {
        Ok(ip) if is_private(*ip) => Ok(*ip),
        Ok(ip) => Err(format!("{ip} is no private address")),
        Err(why) => Err(format!("network {}: {why}", short(&found.network))),
    }
}

/// Where the order that somebody set would lead elsewhere than the longest path does.
fn note_priorities(externals: &mut [External]) {
    struct Seen<'a> {
        external: usize,
        router: &'a Router,
        prefix: &'a str,
    }
    let mut by_host: BTreeMap<&str, Vec<Seen<'_>>> = BTreeMap::new();
    for (index, external) in externals.iter().enumerate() {
        for router in &external.routers {
            for route in &router.routes {
                by_host.entry(&route.domain.host).or_default().push(Seen {
                    external: index,
                    router,
                    prefix: &route.domain.prefix,
                });
            }
        }
    }
    let mut found: Vec<(usize, String)> = Vec::new();
    for (host, all) in &by_host {
        for one in all.iter().filter(|one| one.router.priority.is_some()) {
            let other = all.iter().find(|other| {
                let (mine, its) = (one.router.rank(), other.router.rank());
                match (
                    covers(other.prefix, one.prefix),
                    covers(one.prefix, other.prefix),
                ) {
                    (true, false) => mine < its,
                    (false, true) => mine > its,
                    _ => false,
                }
            });
            if let Some(other) = other {
                let text = format!(
                    "the priority of {} is not followed: of {} and {} on {host} the longer path comes first",
                    one.router.name, one.prefix, other.prefix
                );
                found.push((one.external, text));
            }
        }
    }
    for (index, text) in found {
        if let Some(external) = externals.get_mut(index) {
            note(&mut external.notes, text);
        }
    }
}

/// Says it once, and not without end.
fn note(notes: &mut Vec<String>, text: String) {
    match notes.len() {
        0..MAX_NOTES if !notes.contains(&text) => notes.push(text),
        MAX_NOTES => notes.push("and more of that kind".into()),
        _ => {}
    }
}

/// As Go reads it.
fn boolean(text: &str) -> Option<bool> {
    match text.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What is said of a text.
fn short(text: &str) -> String {
    const MOST: usize = 100;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A name as it may stand in any table, log and file.
fn plain(text: &str) -> String {
    const MOST: usize = 60;
    let harmless = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let chars = text.chars().take(MOST);
    chars.map(|c| if harmless(c) { c } else { '_' }).collect()
}

/// A name that nobody has.
fn unique(names: &mut BTreeSet<String>, wanted: &str, end: &str) -> String {
    let mut name = format!("{wanted}{end}");
    let mut number = 1;
    while !names.insert(name.clone()) {
        number += 1;
        name = format!("{wanted}~{number}{end}");
    }
    name
}

#[cfg(test)]
mod tests;
