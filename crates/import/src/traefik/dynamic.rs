//! Traefik's dynamic configuration: routers, services and middlewares, of files and of labels.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hutong_core::labels::rule;
use hutong_core::spec::Domain;

use crate::app::{Health, Settings};
use crate::place::{At, short};
use crate::report::Report;
use crate::tree::flag;
use crate::units::{time_or_seconds, within};

use super::Setting;
use super::middleware::{self, Effect};

/// Middlewares in each other.
const MAX_DEPTH: usize = 8;

/// Routers, services and middlewares by name, in lower case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dynamic {
    pub routers: BTreeMap<String, Router>,
    pub services: BTreeMap<String, Service>,
    pub middlewares: BTreeMap<String, Vec<Setting>>,
    /// `traefik.enable`
    pub enabled: Option<bool>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Router {
    pub rule: Option<(At, String)>,
    pub service: Option<(At, String)>,
    pub entry_points: Vec<String>,
    pub middlewares: Vec<(At, String)>,
    pub tls: bool,
    /// Why it is not served.
    pub problem: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Service {
    pub port: Option<(At, u16)>,
    pub scheme: Option<String>,
    pub sticky: bool,
    /// By their place in the list.
    pub servers: BTreeMap<String, Server>,
    pub health: Health,
    /// Why it is not used.
    pub problem: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Server {
    pub at: At,
    pub url: String,
    pub weight: Option<u32>,
}

/// What a router comes to.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub domains: Vec<Domain>,
    pub settings: Settings,
    pub redirects: bool,
    /// It is for HTTPS.
    pub secure: bool,
    /// What is not done, and keeps nobody out.
    pub remarks: Vec<String>,
    /// Middlewares that are in it.
    pub used: Vec<String>,
}

impl Dynamic {
    /// Reads settings. What a router or middleware asks for is noted when it is known what became of it.
    pub fn read(settings: &[Setting], report: &mut Report) -> Self {
        let mut dynamic = Dynamic::default();
        for setting in settings {
            let parts = setting.parts();
            let (at, what) = (&setting.at, setting.shown.as_str());
            match parts.as_slice() {
                ["enable"] => {
                    dynamic.enabled = flag(setting.value());
                    report.used(at, what, "whether it is routed at all");
                }
                ["docker", "network"] => report.left(
                    at,
                    what,
                    "each app has a network of its own, and the gateway reaches it there",
                ),
                ["http", "routers", name, rest @ ..] => {
                    let router = dynamic.routers.entry((*name).to_owned()).or_default();
                    router.read(rest, setting, report);
                }
                ["http", "services", name, rest @ ..] => {
                    let service = dynamic.services.entry((*name).to_owned()).or_default();
                    service.read(rest, setting, report);
                }
                ["http", "middlewares", name, _, ..] => {
                    let list = dynamic.middlewares.entry((*name).to_owned()).or_default();
                    list.push(setting.below(3));
                }
                ["tls", "certificates", _, file @ ("certfile" | "keyfile")] => {
                    let option = match *file {
                        "certfile" => "--cert",
                        _ => "--key",
                    };
                    report.leave_to_do(
                        at,
                        what,
                        format!("hutong cert add NAME {option} {}", short(setting.value())),
                    );
                }
                ["tls", ..] => report.left(
                    at,
                    what,
                    "TLS 1.2 and 1.3 are served with the ciphers that are sound today; certificates are served by name",
                ),
                ["tcp" | "udp", ..] => {
                    report.left(at, what, "routes of TCP and UDP are not served");
                }
                ["http", "serverstransports", ..] => report.left(
                    at,
                    what,
                    "apps are spoken to by plain HTTP, in networks of their own",
                ),
                ["frontend" | "backend" | "port" | "protocol" | "weight", ..] => {
                    report.left(at, what, "it is of Traefik 1, which is not read");
                }
                _ => report.left(at, what, "it is not known here"),
            }
        }
        dynamic
    }

    /// Says what became of the middlewares.
    pub fn note_middlewares(&self, used: &BTreeSet<String>, report: &mut Report) {
        for (name, settings) in &self.middlewares {
            for setting in settings {
                let what = setting.shown.as_str();
                match used.contains(name) {
                    true => report.used(&setting.at, what, "in the apps whose routers name it"),
                    false => {
                        report.left(&setting.at, what, "no router that is served here names it")
                    }
                }
            }
        }
    }
}

impl Router {
    fn read(&mut self, rest: &[&str], setting: &Setting, report: &mut Report) {
        let (at, what) = (&setting.at, setting.shown.as_str());
        match rest {
            ["rule"] => self.rule = Some((at.clone(), setting.value().to_owned())),
            ["service"] => {
                self.service = Some((at.clone(), setting.value().to_ascii_lowercase()));
                report.used(at, what, "which service it is for");
            }
            ["entrypoints"] => {
                let lower = |(_, name): (At, String)| name.to_ascii_lowercase();
                self.entry_points = setting.list().into_iter().map(lower).collect();
                report.used(at, what, "whether plain requests are served");
            }
            ["middlewares"] => {
                let lower = |(at, name): (At, String)| (at, name.to_ascii_lowercase());
                self.middlewares = setting.list().into_iter().map(lower).collect();
            }
            ["tls"] => match setting.values.is_empty() {
                // `tls: {}`
                true => {
                    self.tls = true;
                    report.used(at, what, "every host gets a certificate");
                }
                false => {
                    self.tls |= flag(setting.value()) == Some(true);
                    report.used(at, what, "every host gets a certificate");
                }
            },
            ["tls", "certresolver"] => {
                self.tls = true;
                report.used(
                    at,
                    what,
                    "certificates are had as [acme] of the server file says",
                );
            }
            ["tls", "options"] => {
                self.tls = true;
                match setting.value() {
                    "" | "default" => report.used(at, what, "the default"),
                    // They may want certificates of visitors.
                    _ => {
                        let why = "its TLS options are not known here, and may be what keeps visitors out";
                        self.problem = Some(why.into());
                        report.left(at, what, why);
                    }
                }
            }
            ["tls", "domains", ..] => {
                self.tls = true;
                report.left(
                    at,
                    what,
                    "certificates are for the hosts of apps, one by one",
                );
            }
            ["priority"] => report.left(
                at,
                what,
                "the longest path wins, and an exact host before a wildcard",
            ),
            ["rulesyntax" | "observability", ..] => {
                report.left(at, what, "it changes nothing for visitors");
            }
            _ => {
                // It may be `middlewares`, with a slip of the pen.
                self.problem = Some(format!("`{}` is not understood", short(what)));
                report.left(
                    at,
                    what,
                    "it is not known here, and its router is not served",
                );
            }
        }
    }

    /// Whether it is for HTTPS; what entry points are called shows what they are for.
    fn is_secure(&self) -> bool {
        let words = ["secure", "https", "tls", "443"];
        let secure = |name: &String| words.iter().any(|word| name.contains(word));
        self.tls || !self.entry_points.is_empty() && self.entry_points.iter().all(secure)
    }
}

impl Service {
    fn read(&mut self, rest: &[&str], setting: &Setting, report: &mut Report) {
        let (at, what) = (&setting.at, setting.shown.as_str());
        let value = setting.value();
        let [kind, rest @ ..] = rest else {
            report.left(at, what, "it is empty");
            return;
        };
        if *kind != "loadbalancer" {
            let why = format!("services of the kind `{}` are not known here", short(kind));
            report.left(at, what, why.as_str());
            self.problem = Some(why);
            return;
        }
        match rest {
            ["server", "port"] => match value.parse::<u16>() {
                Ok(port @ 1..) => {
                    self.port = Some((at.clone(), port));
                    report.used(at, what, format!("port = {port}"));
                }
                _ => self.spoil(at, what, format!("`{}` is no port", short(value)), report),
            },
            ["server", "scheme"] => match value.to_ascii_lowercase().as_str() {
                scheme @ ("http" | "h2c") => {
                    self.scheme = Some(scheme.to_owned());
                    report.used(at, what, format!("protocol = \"{scheme}\""));
                }
                _ => {
                    let why = "apps are spoken to by http or h2c, in networks of their own";
                    self.spoil(at, what, why.into(), report);
                }
            },
            ["servers", index, "url"] => {
                let server = self.servers.entry((*index).to_owned()).or_default();
                server.at = at.clone();
                server.url = value.to_owned();
                report.used(at, what, "where it answers");
            }
            ["servers", index, "weight"] => {
                let server = self.servers.entry((*index).to_owned()).or_default();
                server.weight = value
                    .parse::<u32>()
                    .ok()
                    .filter(|weight| (1..=100).contains(weight));
                match server.weight {
                    Some(weight) => report.used(at, what, format!("weight = {weight}")),
                    None => report.left(at, what, "a weight is 1 to 100"),
                }
            }
            ["sticky"] | ["sticky", "cookie"] => {
                self.sticky = setting.values.is_empty() || flag(value) == Some(true);
                report.used(at, what, "balance.method = \"sticky\"");
            }
            ["sticky", "cookie", ..] => {
                self.sticky = true;
                report.left(at, what, "the cookie is Hutong's own");
            }
            ["healthcheck", "path"] if value.starts_with('/') => {
                self.health.path = Some(value.to_owned());
                report.used(at, what, format!("health.path = \"{}\"", short(value)));
            }
            ["healthcheck", option @ ("interval" | "timeout")] => match time_or_seconds(value) {
                Some(time) => {
                    let (ms, s) = (Duration::from_millis, Duration::from_secs);
                    match *option {
                        "interval" => self.health.interval = Some(within(time, ms(100), s(3600))),
                        _ => self.health.timeout = Some(within(time, ms(10), s(300))),
                    }
                    report.used(at, what, format!("health.{option}"));
                }
                None => report.left(at, what, "this is no time"),
            },
            ["healthcheck", ..] => {
                report.left(at, what, "a GET of the path on the app's own port tells");
            }
            ["passhostheader"] => match flag(value) {
                Some(true) => report.used(at, what, "the app gets the visitor's Host"),
                _ => report.left(at, what, "the app gets the visitor's Host all the same"),
            },
            ["responseforwarding", ..] => report.left(at, what, "answers are streamed"),
            ["serverstransport"] => report.left(at, what, "apps are spoken to by plain HTTP"),
            _ => report.left(at, what, "it is not known here"),
        }
    }

    fn spoil(&mut self, at: &At, what: &str, why: String, report: &mut Report) {
        report.left(at, what, why.as_str());
        self.problem = Some(why);
    }
}

/// What a router comes to, with the middlewares of all of these.
pub(crate) fn resolve(router: &Router, scope: &[&Dynamic]) -> Result<Resolved, String> {
    if let Some(problem) = &router.problem {
        return Err(problem.clone());
    }
    let Some((_, rule)) = &router.rule else {
        return Err("it has no rule".into());
    };
    let domains = rule::parse(rule).map_err(|why| format!("its rule is not served: {why}"))?;
    let mut effect = Effect::default();
    let mut used = Vec::new();
    for (_, name) in &router.middlewares {
        add(name, scope, 0, &mut effect, &mut used)?;
    }
    let mut settings = effect.settings;
    settings.strip = strips(&domains, &effect.prefixes)?;
    Ok(Resolved {
        domains,
        settings,
        redirects: effect.redirects,
        secure: router.is_secure(),
        remarks: effect.remarks,
        used,
    })
}

fn add(
    name: &str,
    scope: &[&Dynamic],
    depth: usize,
    effect: &mut Effect,
    used: &mut Vec<String>,
) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err("its middlewares are in each other without end".into());
    }
    let name = name.split('@').next().unwrap_or_default();
    let found = scope
        .iter()
        .find_map(|dynamic| dynamic.middlewares.get(name));
    let Some(settings) = found else {
        return Err(format!(
            "its middleware `{}` is in none of the files that were handed over",
            short(name)
        ));
    };
    used.push(name.to_owned());
    if used.len() > 100 {
        return Err("it has more than 100 middlewares".into());
    }
    let chain = settings
        .iter()
        .find(|one| one.parts() == ["chain", "middlewares"]);
    if let Some(chain) = chain {
        for (_, name) in chain.list() {
            add(&name.to_ascii_lowercase(), scope, depth + 1, effect, used)?;
        }
        return Ok(());
    }
    middleware::apply(settings, effect)
        .map_err(|why| format!("its middleware `{}` is not taken over: {why}", short(name)))
}

/// Whether each route's path is cut off as a whole; a middleware cuts off the first of its prefixes that fits.
fn strips(domains: &[Domain], prefixes: &[String]) -> Result<bool, String> {
    let mut strips = None;
    for domain in domains {
        let fitting = prefixes
            .iter()
            .find(|prefix| hutong_core::route::covers(prefix, &domain.prefix));
        let below = prefixes.iter().any(|prefix| {
            prefix != &domain.prefix && hutong_core::route::covers(&domain.prefix, prefix)
        });
        let strip = match fitting {
            _ if below => {
                return Err(
                    "it cuts off paths below its own; a route cuts off its own as a whole".into(),
                );
            }
            Some(prefix) if *prefix == domain.prefix => domain.prefix != "/",
            Some(prefix) if prefix == "/" => false,
            Some(_) => {
                return Err("it cuts off a part of its path; a route cuts off all of it".into());
            }
            None => false,
        };
        if strips.is_some_and(|known| known != strip) {
            return Err("it cuts off the path of some of its routes only".into());
        }
        strips = Some(strip);
    }
    Ok(strips.unwrap_or(false))
}
