//! One container's labels, taken apart. What is not understood is noted; a middleware or service that is not understood in
//! full is not used at all, because what it lacks may be what keeps visitors out.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::parse_prefix;
use crate::spec::{Auth, Protocol, User, parse_user};

use super::{boolean, note, short};

/// Prefixes that one middleware cuts off, and users that it lets in.
const MAX_PREFIXES: usize = 16;
const MAX_USERS: usize = 100;

/// What the labels of one container say, by names in lower case.
#[derive(Default)]
pub(super) struct Declared {
    pub routers: BTreeMap<String, Router>,
    pub services: BTreeMap<String, Service>,
    pub middlewares: BTreeMap<String, Result<Middleware, String>>,
    /// The network that the container is reached in.
    pub network: Option<String>,
    pub notes: Vec<String>,
}

#[derive(Default)]
pub(super) struct Router {
    pub rule: Option<String>,
    pub service: Option<String>,
    pub entry_points: Vec<String>,
    pub tls: bool,
    pub middlewares: Vec<String>,
    pub priority: Option<i64>,
    /// Why it is not served.
    pub problem: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Service {
    pub port: Option<u16>,
    pub protocol: Protocol,
    pub sticky: bool,
    /// Why it is not used.
    pub problem: Option<String>,
}

#[derive(Clone)]
pub(super) enum Middleware {
    Strip(Vec<String>),
    Auth(Auth),
    /// To HTTPS.
    Redirect,
    Compress(bool),
}

/// One label of a middleware.
struct Setting {
    kind: String,
    option: String,
    value: String,
}

impl Declared {
    pub fn new(labels: &BTreeMap<String, String>) -> Self {
        let mut declared = Declared::default();
        let mut middlewares: BTreeMap<String, Vec<Setting>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut spoiled = None;
        for (label, value) in labels {
            let key = label.to_ascii_lowercase();
            let value = value.trim();
            let parts: Vec<&str> = key.split('.').skip(1).collect();
            match parts.as_slice() {
                _ if !key.starts_with("traefik.") => declared.not_understood(label),
                _ if seen.contains(&key) => {
                    spoiled = Some(format!("the label {} is there twice", short(label)));
                }
                ["enable"] => {
                    if boolean(value).is_none() {
                        spoiled = Some(format!("{} is `true` or `false`", short(label)));
                    }
                }
                ["docker", "network"] if !value.is_empty() => {
                    declared.network = Some(value.to_owned());
                }
                ["http", "routers", name, option @ ..] if !name.is_empty() => {
                    declared.router(label, name, option, value);
                }
                ["http", "services", name, "loadbalancer", option @ ..] if !name.is_empty() => {
                    declared.service(label, name, option, value);
                }
                ["http", "middlewares", name, kind, option @ ..] if !name.is_empty() => {
                    let settings = middlewares.entry((*name).to_owned()).or_default();
                    settings.push(Setting {
                        kind: (*kind).to_owned(),
                        option: option.join("."),
                        value: value.to_owned(),
                    });
                }
                ["tcp" | "udp", ..] => declared.say(label, "routes of TCP and UDP are not served"),
                ["frontend" | "backend" | "port" | "protocol", ..] => {
                    declared.say(label, "it is of Traefik 1, whose labels are not read");
                }
                _ => declared.not_understood(label),
            }
            seen.insert(key);
        }
        for (name, settings) in middlewares {
            let middleware = middleware(&settings, &mut declared.notes);
            declared.middlewares.insert(name, middleware);
        }
        if let Some(why) = spoiled {
            for router in declared.routers.values_mut() {
                router.problem = Some(why.clone());
            }
        }
        declared
    }

    fn not_understood(&mut self, label: &str) {
        let text = format!("label {} is not understood", short(label));
        note(&mut self.notes, text);
    }

    fn say(&mut self, label: &str, what: &str) {
        note(&mut self.notes, format!("label {}: {what}", short(label)));
    }

    fn router(&mut self, label: &str, name: &str, option: &[&str], value: &str) {
        let router = self.routers.entry(name.to_owned()).or_default();
        match option {
            ["rule"] => router.rule = Some(value.to_owned()),
            ["service"] => router.service = Some(value.to_ascii_lowercase()),
            ["entrypoints"] => router.entry_points = lower(value),
            ["middlewares"] => router.middlewares = lower(value),
            ["tls"] => match boolean(value) {
                Some(on) => router.tls |= on,
                None => router.problem = Some("its `tls` is `true` or `false`".into()),
            },
            // Who signs is for the server's owner to say.
            ["tls", "certresolver"] => router.tls = true,
            ["tls", "options"] => {
                router.tls = true;
                // They may want certificates of visitors.
                if value != "default" {
                    let text = "the TLS options that it names are not known here, and without them more visitors might get in";
                    router.problem = Some(text.into());
                }
            }
            ["tls", domains, ..] if domains.starts_with("domains") => {
                router.tls = true;
                self.say(label, "certificates are for the hosts of the rule");
            }
            ["priority"] => match value.parse::<i64>() {
                // To Traefik 0 is none.
                Ok(0) => {}
                Ok(priority) => router.priority = Some(priority),
                Err(_) => self.not_understood(label),
            },
            // Rules of version 2 and 3 are both read.
            ["rulesyntax"] => {}
            ["observability", ..] => self.say(label, "every router is observed alike"),
            _ => {
                // It may be `middlewares`, with a slip of the pen.
                let text = format!("its label {} is not understood", short(label));
                router.problem = Some(text);
                self.not_understood(label);
            }
        }
    }

    fn service(&mut self, label: &str, name: &str, option: &[&str], value: &str) {
        let service = self.services.entry(name.to_owned()).or_default();
        match option {
            ["server", "port"] => match value.parse::<u16>() {
                Ok(port @ 1..) => service.port = Some(port),
                _ => service.problem = Some(format!("`{}` is no port", short(value))),
            },
            ["server", "scheme"] => match value.to_ascii_lowercase().as_str() {
                "http" => service.protocol = Protocol::Http,
                "h2c" => service.protocol = Protocol::H2c,
                _ => {
                    service.problem = Some(format!(
                        "containers are spoken to by http or h2c, not by `{}`",
                        short(value)
                    ));
                }
            },
            ["server", ..] => {
                let text = format!("the label {} is not followed", short(label));
                service.problem = Some(text);
            }
            ["sticky"] | ["sticky", "cookie"] => match boolean(value) {
                Some(on) => service.sticky |= on,
                None => self.not_understood(label),
            },
            ["sticky", "cookie", ..] => {
                service.sticky = true;
                self.say(label, "the cookie is Hutong's own, and so is what it says");
            }
            ["healthcheck", ..] => {
                self.say(label, "that its port takes a connection is enough");
            }
            ["passhostheader"] if boolean(value) == Some(true) => {}
            _ => self.not_understood(label),
        }
    }
}

/// What the labels of one middleware come to.
fn middleware(settings: &[Setting], notes: &mut Vec<String>) -> Result<Middleware, String> {
    let kind = settings.first().map_or("", |first| first.kind.as_str());
    if let Some(other) = settings.iter().find(|one| one.kind != kind) {
        return Err(format!(
            "it is of two kinds, {} and {}",
            short(kind),
            short(&other.kind)
        ));
    }
    let options = settings
        .iter()
        .map(|one| (one.option.as_str(), one.value.as_str()));
    let unknown = |option: &str| format!("its `{}` is not understood", short(option));
    match kind {
        "stripprefix" => {
            let mut prefixes = Vec::new();
            for (option, value) in options {
                match option {
                    "prefixes" => prefixes = list(value),
                    // A path is never empty here.
                    "forceslash" => {}
                    other => return Err(unknown(other)),
                }
            }
            if !(1..=MAX_PREFIXES).contains(&prefixes.len()) {
                return Err(format!("it cuts off 1 to {MAX_PREFIXES} prefixes"));
            }
            let prefix = |text: &String| {
                let parsed = parse_prefix(text);
                parsed.map_err(|_| format!("`{}` is no plain path such as /api", short(text)))
            };
            let prefixes: Result<Vec<String>, String> = prefixes.iter().map(prefix).collect();
            prefixes.map(Middleware::Strip)
        }
        "basicauth" => {
            let (mut users, mut realm) = (Vec::new(), String::from("Restricted"));
            for (option, value) in options {
                match option {
                    "users" => users = list(value),
                    "realm" => realm = value.to_owned(),
                    // The password is for us and goes no further.
                    "removeheader" => {}
                    other => return Err(unknown(other)),
                }
            }
            let plain = |c: char| !c.is_control() && c != '"' && c != '\\';
            if realm.is_empty() || realm.len() > 100 || !realm.chars().all(plain) {
                return Err("its realm is 1 to 100 bytes without quotation marks".into());
            }
            Ok(Middleware::Auth(Auth {
                realm,
                users: parse_users(&users)?,
            }))
        }
        "redirectscheme" => {
            let mut scheme = String::new();
            for (option, value) in options {
                match option {
                    "scheme" => scheme = value.to_ascii_lowercase(),
                    "permanent" => {}
                    "port" => {
                        let text = "it is sent to where this server has HTTPS";
                        let label = "redirectscheme.port";
                        note(notes, format!("{label} {}: {text}", short(value)));
                    }
                    other => return Err(unknown(other)),
                }
            }
            match scheme.as_str() {
                "https" => Ok(Middleware::Redirect),
                _ => Err("it sends visitors to something else than https".into()),
            }
        }
        "compress" => {
            let mut on = true;
            for (option, value) in options {
                match (option, boolean(value)) {
                    ("", Some(wanted)) => on = wanted,
                    (other, _) => {
                        let text = "what is compressed is the same for every app";
                        note(notes, format!("compress.{}: {text}", short(other)));
                    }
                }
            }
            Ok(Middleware::Compress(on))
        }
        other => Err(format!(
            "its kind `{}` is not known here; there are stripPrefix, basicAuth, redirectScheme and compress",
            short(other)
        )),
    }
}

/// Users with their passwords as bcrypt. What is wrong is said without what is there.
fn parse_users(lines: &[String]) -> Result<Vec<User>, String> {
    let mut users: Vec<User> = Vec::new();
    for line in lines {
        let user = parse_user(line).map_err(|why| match line.contains("$$") {
            // Compose takes one of them away; `docker run` does not.
            true => format!("{why} (`$$` is for compose files only)"),
            false => why,
        })?;
        if users.iter().any(|known| known.name == user.name) {
            return Err("a user is listed twice".into());
        }
        users.push(user);
    }
    match users.len() {
        1..=MAX_USERS => Ok(users),
        _ => Err(format!("it lets in 1 to {MAX_USERS} users")),
    }
}

/// What commas separate.
fn list(value: &str) -> Vec<String> {
    let parts = value.split(',').map(str::trim);
    parts
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The same of names.
fn lower(value: &str) -> Vec<String> {
    list(&value.to_ascii_lowercase())
}
