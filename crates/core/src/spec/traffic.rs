//! What an app's visitors may do: how often, how much, and who at all.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::Check;
use crate::name;
use crate::networks::Network;

/// Limits of an app's traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct Traffic {
    pub rules: Rules,
    /// Nobody else is let in, if there are any.
    pub allow: Vec<Network>,
    pub deny: Vec<Network>,
    pub ban: Option<Ban>,
    /// Answers are compressed.
    pub compress: bool,
    /// Requests and conversations under way: of all visitors, and of each address.
    pub max_concurrent: Option<u32>,
    pub max_concurrent_per_ip: Option<u32>,
    pub auth: Option<Auth>,
    /// By the longest path that fits.
    pub routes: Vec<TrafficRoute>,
}

impl Default for Traffic {
    fn default() -> Self {
        Traffic {
            rules: Rules::default(),
            allow: Vec::new(),
            deny: Vec::new(),
            ban: None,
            compress: true,
            max_concurrent: None,
            max_concurrent_per_ip: None,
            auth: None,
            routes: Vec::new(),
        }
    }
}

/// What holds for an app, or for a path of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// All visitors together.
    pub rate: Option<Rate>,
    /// Each address (IPv6: each /64).
    pub rate_per_ip: Option<Rate>,
    /// The largest body of a request, in bytes.
    pub max_body: Option<u64>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// From one request to the next, in the long run, in nanoseconds; above 0.
    pub interval_ns: u64,
    /// How many at once, after a pause; above 0.
    pub burst: u32,
}

/// So many bad answers within a time, and the address is not served for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    pub after: u32,
    pub within: Duration,
    pub period: Duration,
}

/// Names and passwords that visitors are asked for (RFC 7617).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// What browsers show.
    pub realm: String,
    pub users: Vec<User>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    /// bcrypt.
    pub hash: String,
}

/// A hash is not shown by accident.
impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A path with rules of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficRoute {
    /// Normalised.
    pub prefix: String,
    pub class: Class,
    /// How long the app may take to begin its answer.
    pub response: Option<Duration>,
    /// No password is asked for.
    pub open: bool,
    pub rules: Rules,
}

/// What is let go first when there is too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    Background,
    #[default]
    Normal,
    Core,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTraffic {
    /// Requests of all visitors together, such as "5000/s"; default any number.
    #[schemars(with = "Option<String>")]
    rate: Option<Spanned<String>>,
    /// How many at once, after a pause; default one second's worth.
    #[schemars(with = "Option<u32>")]
    burst: Option<Spanned<i64>>,
    /// Requests of one address (IPv6: of one /64), such as "20/s" or "100/m".
    #[schemars(with = "Option<String>")]
    rate_per_ip: Option<Spanned<String>>,
    #[schemars(with = "Option<u32>")]
    burst_per_ip: Option<Spanned<i64>>,
    /// The largest body of a request, such as "10M"; default any.
    #[schemars(with = "Option<String>")]
    max_body: Option<Spanned<String>>,
    /// Addresses or networks ("10.0.0.0/8"): nobody else is let in.
    #[schemars(with = "Vec<String>")]
    #[serde(default)]
    allow: Vec<Spanned<String>>,
    /// Addresses or networks that are not let in.
    #[schemars(with = "Vec<String>")]
    #[serde(default)]
    deny: Vec<Spanned<String>>,
    /// Who gets so many 4xx answers is not let in for a while.
    ban: Option<RawBan>,
    /// Compress answers; default true.
    compress: Option<bool>,
    /// Requests and WebSockets under way at once, of all visitors together; default any number.
    #[schemars(with = "Option<u32>")]
    max_concurrent: Option<Spanned<i64>>,
    /// The same of one address (IPv6: of one /64).
    #[schemars(with = "Option<u32>")]
    max_concurrent_per_ip: Option<Spanned<i64>>,
    /// Ask visitors for a name and a password.
    auth: Option<RawAuth>,
    /// Paths with rules of their own; what they leave out is as above.
    #[serde(default)]
    route: Vec<RawRoute>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawBan {
    /// Bad answers, such as 50.
    #[schemars(with = "u32")]
    after: Spanned<i64>,
    /// Default "1m".
    #[schemars(with = "Option<String>")]
    within: Option<Spanned<String>>,
    /// Default "10m".
    #[schemars(with = "Option<String>")]
    r#for: Option<Spanned<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawAuth {
    /// Lines as `hutong password NAME` makes them, or `htpasswd -nB NAME`.
    #[schemars(with = "Vec<String>")]
    users: Spanned<Vec<Spanned<String>>>,
    /// What browsers show when they ask; default "Restricted".
    #[schemars(with = "Option<String>")]
    realm: Option<Spanned<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawRoute {
    /// Such as "/api/pay"; covers what is below it.
    #[schemars(with = "String")]
    path: Spanned<String>,
    /// "core", "normal" (the default) or "background": what waits first and is turned away last.
    #[serde(default)]
    class: Class,
    /// `false`: no password is asked for here, whatever `auth` says above.
    auth: Option<bool>,
    /// How long the app may take to begin its answer, such as "800ms".
    #[schemars(with = "Option<String>")]
    response: Option<Spanned<String>>,
    #[schemars(with = "Option<String>")]
    rate: Option<Spanned<String>>,
    #[schemars(with = "Option<u32>")]
    burst: Option<Spanned<i64>>,
    #[schemars(with = "Option<String>")]
    rate_per_ip: Option<Spanned<String>>,
    #[schemars(with = "Option<u32>")]
    burst_per_ip: Option<Spanned<i64>>,
    #[schemars(with = "Option<String>")]
    max_body: Option<Spanned<String>>,
}

impl Check<'_> {
    pub(super) fn traffic(&mut self, raw: &RawTraffic) -> Traffic {
        let mut routes: Vec<TrafficRoute> = Vec::new();
        for route in &raw.route {
            let at = route.path.span().start;
            let Some(parsed) = self.route(route) else {
                continue;
            };
            if routes.iter().any(|known| known.prefix == parsed.prefix) {
                self.wrong(at, format!("the path {} is listed twice", parsed.prefix));
            }
            routes.push(parsed);
            if routes.len() == 101 {
                self.wrong(at, "an app has at most 100 paths with rules of their own");
            }
        }
        routes.sort_by_key(|route| std::cmp::Reverse(route.prefix.len()));
        Traffic {
            rules: Rules {
                rate: self.rate(&raw.rate, &raw.burst),
                rate_per_ip: self.rate(&raw.rate_per_ip, &raw.burst_per_ip),
                max_body: self.body(&raw.max_body),
            },
            allow: self.networks(&raw.allow),
            deny: self.networks(&raw.deny),
            ban: raw.ban.as_ref().map(|ban| self.ban(ban)),
            compress: raw.compress.unwrap_or(true),
            max_concurrent: self.concurrent(&raw.max_concurrent),
            max_concurrent_per_ip: self.concurrent(&raw.max_concurrent_per_ip),
            auth: raw.auth.as_ref().map(|auth| self.auth(auth)),
            routes,
        }
    }

    fn route(&mut self, raw: &RawRoute) -> Option<TrafficRoute> {
        let prefix = match name::parse_prefix(raw.path.get_ref()) {
            Ok(prefix) => prefix,
            Err(message) => {
                self.wrong(raw.path.span().start, message);
                return None;
            }
        };
        let (ms, longest) = (Duration::from_millis(10), Duration::from_secs(3600));
        let response = raw
            .response
            .is_some()
            .then(|| self.time(&raw.response, longest, ms, longest));
        Some(TrafficRoute {
            prefix,
            class: raw.class,
            response,
            open: raw.auth == Some(false),
            rules: Rules {
                rate: self.rate(&raw.rate, &raw.burst),
                rate_per_ip: self.rate(&raw.rate_per_ip, &raw.burst_per_ip),
                max_body: self.body(&raw.max_body),
            },
        })
    }

    fn rate(
        &mut self,
        rate: &Option<Spanned<String>>,
        burst: &Option<Spanned<i64>>,
    ) -> Option<Rate> {
        let burst_given = burst
            .as_ref()
            .map(|burst| self.bounded(burst, 1, 10_000_000, "a burst") as u32);
        let Some(text) = rate else {
            if let Some(burst) = burst {
                self.wrong(burst.span().start, "a burst goes with a rate");
            }
            return None;
        };
        match parse_rate(text.get_ref()) {
            Ok(interval_ns) => Some(Rate {
                interval_ns,
                burst: burst_given.unwrap_or(1_000_000_000_u64.div_ceil(interval_ns) as u32),
            }),
            Err(message) => {
                self.wrong(text.span().start, message);
                None
            }
        }
    }

    fn body(&mut self, size: &Option<Spanned<String>>) -> Option<u64> {
        size.as_ref().map(|size| self.size(size, 0, 1 << 50))
    }

    fn networks(&mut self, list: &[Spanned<String>]) -> Vec<Network> {
        let mut networks = Vec::new();
        for text in list {
            match text.get_ref().parse() {
                Ok(network) => networks.push(network),
                Err(message) => self.wrong(text.span().start, format!("{message}")),
            }
        }
        networks
    }

    fn concurrent(&mut self, most: &Option<Spanned<i64>>) -> Option<u32> {
        let most = most.as_ref()?;
        Some(self.bounded(most, 1, 1_000_000, "this") as u32)
    }

    fn auth(&mut self, raw: &RawAuth) -> Auth {
        let mut users: Vec<User> = Vec::new();
        for line in raw.users.get_ref() {
            let at = line.span().start;
            match parse_user(line.get_ref()) {
                Ok(user) if users.iter().any(|known| known.name == user.name) => {
                    self.wrong(at, format!("the user {} is listed twice", user.name));
                }
                Ok(user) => users.push(user),
                Err(message) => self.wrong(at, message),
            }
        }
        if raw.users.get_ref().is_empty() {
            self.wrong(raw.users.span().start, "with no users nobody is let in");
        }
        if users.len() > 1000 {
            self.wrong(raw.users.span().start, "an app has at most 1000 users here");
        }
        let mut realm = "Restricted";
        if let Some(given) = &raw.realm {
            realm = given.get_ref();
            let plain = |c: char| !c.is_control() && c != '"' && c != '\\';
            if realm.is_empty() || realm.len() > 100 || !realm.chars().all(plain) {
                let message = "a realm is 1 to 100 bytes without quotation marks and backslashes";
                self.wrong(given.span().start, message);
            }
        }
        Auth {
            realm: realm.to_owned(),
            users,
        }
    }

    fn ban(&mut self, raw: &RawBan) -> Ban {
        let s = Duration::from_secs;
        Ban {
            after: self.bounded(&raw.after, 1, 1_000_000, "ban.after") as u32,
            within: self.time(&raw.within, s(60), s(1), s(86400)),
            period: self.time(&raw.r#for, s(600), s(1), s(365 * 86400)),
        }
    }
}

/// `NAME:$2b$10$…`. What is wrong is said without what is there.
pub(crate) fn parse_user(line: &str) -> Result<User, String> {
    let wrong = "this is no user; `hutong password NAME` makes such a line";
    let (name, hash) = line.split_once(':').ok_or(wrong)?;
    let graphic = |c: char| !c.is_control() && !c.is_whitespace();
    if name.is_empty() || name.len() > 100 || !name.chars().all(graphic) {
        return Err("a user's name is 1 to 100 bytes without spaces".into());
    }
    let parts = ["$2a$", "$2b$", "$2y$"];
    let rest = parts.iter().find_map(|begin| hash.strip_prefix(begin));
    let rest = rest.ok_or_else(|| {
        format!("the password of {name} is not kept as bcrypt; `hutong password {name}` makes such a line")
    })?;
    let (cost, digest) = rest.split_once('$').ok_or(wrong)?;
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'/';
    // Of the last letter of the salt (22) and of the digest (31) only some bits are used; the others are zero.
    let ends = |at: usize, allowed: &str| {
        let letter = digest.as_bytes().get(at).copied().unwrap_or_default();
        allowed.as_bytes().contains(&letter)
    };
    let sound = digest.len() == 53
        && digest.bytes().all(letter)
        && ends(21, ".Oeu")
        && ends(52, ".CGKOSWaeimquy26");
    if cost.len() != 2 || !cost.bytes().all(|byte| byte.is_ascii_digit()) || !sound {
        return Err(wrong.into());
    }
    match cost.parse() {
        Ok(4..=12) => Ok(User {
            name: name.to_owned(),
            hash: hash.to_owned(),
        }),
        Ok(13_u32..) => Err(format!(
            "to check the password of {name} takes too long: its bcrypt cost is {cost}, the most is 12"
        )),
        _ => Err(wrong.into()),
    }
}

/// `50/s`, `100/m` or `1000/h`: nanoseconds from one to the next.
fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no rate; write for instance 50/s or 100/m");
    let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
    let count: u64 = count.trim().parse().map_err(|_| wrong())?;
    let seconds: u64 = match unit.trim() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    if !(1..=10_000_000).contains(&count) {
        return Err(format!("`{text}`: a rate is 1 to 10000000"));
    }
    Ok(seconds * 1_000_000_000 / count)
}
