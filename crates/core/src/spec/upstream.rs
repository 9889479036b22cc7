//! Which protocol an app speaks, servers of the owner's own, and how requests are spread.

use core::net::SocketAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::{Check, RawSpec, Run};

/// What the gateway speaks with an app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Http,
    /// HTTP/2 without TLS, from the first byte (RFC 9113 §3.3); gRPC needs it.
    H2c,
    /// As uWSGI speaks it at `socket`.
    Uwsgi,
    /// As php-fpm speaks it.
    FastCgi,
}

/// A server that Hutong does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub protocol: Protocol,
    pub address: SocketAddr,
    /// How much of the traffic it gets, beside the others' weights.
    pub weight: u32,
}

/// Where a FastCGI app's scripts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FastCgi {
    /// A folder, as the app sees it: of the release, or an absolute one.
    pub root: String,
    /// The script that gets every path that names no script itself.
    pub index: String,
}

/// How an app's requests are spread over its instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    pub method: Method,
    /// How long a fresh instance is spared.
    pub slow_start: Duration,
    /// How many requests an instance gets at once; 0 for any number.
    pub max_requests: u32,
    /// How many requests wait when all instances have so many.
    pub queue: u32,
    pub queue_timeout: Duration,
    /// Instances that fail often get none for a while.
    pub eject: bool,
}

impl Default for Balance {
    fn default() -> Self {
        Balance {
            method: Method::Least,
            slow_start: Duration::ZERO,
            max_requests: 0,
            queue: 1024,
            queue_timeout: Duration::from_secs(10),
            eject: true,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// The one with the fewest requests under way.
    Least,
    RoundRobin,
    /// The one that the visitor had before, told by a cookie.
    Sticky,
    /// Always the same for the same key, as long as it can serve.
    Hash(HashKey),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    Ip,
    Path,
    /// A header, in lower case.
    Header(String),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUpstream {
    /// Such as "http://127.0.0.1:8001" or "uwsgi://127.0.0.1:8001".
    url: String,
    /// 1 (the default) to 100.
    weight: Option<i64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "an address, or { url = …, weight = … }")]
pub(super) enum AnyUpstream {
    Url(String),
    Weighted(RawUpstream),
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFastCgi {
    /// The folder with the scripts, below the app's own; default the app's folder.
    #[schemars(with = "Option<String>")]
    root: Option<Spanned<String>>,
    /// Gets every path that names no script itself; default "index.php".
    #[schemars(with = "Option<String>")]
    index: Option<Spanned<String>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBalance {
    /// "least" (the default), "round-robin", "sticky", or "hash".
    #[schemars(with = "Option<String>")]
    method: Option<Spanned<String>>,
    /// With "hash": "ip" (the default), "path", or "header:NAME".
    #[schemars(with = "Option<String>")]
    by: Option<Spanned<String>>,
    /// How long a fresh instance gets fewer requests than the others; default not at all.
    #[schemars(with = "Option<String>")]
    slow_start: Option<Spanned<String>>,
    /// Requests that an instance gets at once; default any number.
    #[schemars(with = "Option<u32>")]
    max_requests: Option<Spanned<i64>>,
    /// Requests that wait while all instances have `max_requests`; default 1024.
    #[schemars(with = "Option<u32>")]
    queue: Option<Spanned<i64>>,
    /// How long they wait; default "10s".
    #[schemars(with = "Option<String>")]
    queue_timeout: Option<Spanned<String>>,
    /// Give an instance that fails often no requests for a while; default true.
    eject: Option<bool>,
}

impl Check<'_> {
    pub(super) fn upstreams(&mut self, list: &Spanned<Vec<Spanned<AnyUpstream>>>) -> Vec<Upstream> {
        let mut upstreams: Vec<Upstream> = Vec::new();
        for entry in list.get_ref() {
            let at = entry.span().start;
            let (url, weight) = match entry.get_ref() {
                AnyUpstream::Url(url) => (url, 1),
                AnyUpstream::Weighted(raw) => (&raw.url, raw.weight.unwrap_or(1)),
            };
            match parse(url) {
                _ if !(1..=100).contains(&weight) => self.wrong(at, "a weight is 1 to 100"),
                Err(message) => self.wrong(at, message),
                Ok((_, address)) if upstreams.iter().any(|one| one.address == address) => {
                    self.wrong(at, format!("{address} is listed twice"));
                }
                Ok((protocol, address)) => upstreams.push(Upstream {
                    protocol,
                    address,
                    weight: weight as u32,
                }),
            }
        }
        match list.get_ref().len() {
            1..=64 => {}
            _ => self.wrong(list.span().start, "an app has 1 to 64 upstreams"),
        }
        upstreams
    }

    pub(super) fn fastcgi(&mut self, raw: &RawFastCgi, run: &Run) -> FastCgi {
        let outside = matches!(run, Run::Upstream(_));
        let plain = |text: &str| {
            text.split('/')
                .all(|part| !part.is_empty() && part != "." && part != "..")
                && text.bytes().all(|byte| byte > b' ' && byte != 0x7f)
                && text.len() <= 200
        };
        let mut root = String::new();
        if let Some(text) = &raw.root {
            let given = text.get_ref().trim_end_matches('/');
            let relative = given.trim_start_matches("./");
            root = match (given.strip_prefix('/'), outside) {
                (Some(rest), true) if plain(rest) => given.to_owned(),
                (None, false) if relative.is_empty() || relative == "." => String::new(),
                (None, false) if plain(relative) => relative.to_owned(),
                (_, true) => {
                    let message = "fastcgi.root is where the scripts are on the server that runs them, such as \"/var/www/html\"";
                    self.wrong(text.span().start, message);
                    String::new()
                }
                (_, false) => {
                    let message =
                        "fastcgi.root names a folder below the app's own, such as \"public\"";
                    self.wrong(text.span().start, message);
                    String::new()
                }
            };
        }
        let index = raw
            .index
            .as_ref()
            .map_or("index.php", |text| text.get_ref());
        if let Some(text) = raw.index.as_ref().filter(|_| !plain(index)) {
            let message = "fastcgi.index names a script below fastcgi.root, such as \"index.php\"";
            self.wrong(text.span().start, message);
        }
        FastCgi {
            root,
            index: index.to_owned(),
        }
    }

    pub(super) fn balance(&mut self, raw: &RawBalance) -> Balance {
        let (s, none) = (Duration::from_secs, Balance::default());
        let count = |check: &mut Self, value: &Option<Spanned<i64>>, default: u32, what: &str| {
            value
                .as_ref()
                .map_or(default, |v| check.bounded(v, 0, 1 << 20, what) as u32)
        };
        Balance {
            method: self.method(raw),
            slow_start: self.time(&raw.slow_start, s(0), s(0), s(3600)),
            max_requests: count(
                self,
                &raw.max_requests,
                none.max_requests,
                "balance.max_requests",
            ),
            queue: count(self, &raw.queue, none.queue, "balance.queue"),
            queue_timeout: self.time(&raw.queue_timeout, none.queue_timeout, s(0), s(600)),
            eject: raw.eject.unwrap_or(none.eject),
        }
    }

    fn method(&mut self, raw: &RawBalance) -> Method {
        let name = raw.method.as_ref().map_or("least", |text| text.get_ref());
        if let Some(by) = raw.by.as_ref().filter(|_| name != "hash") {
            self.wrong(by.span().start, "`by` goes with method = \"hash\"");
        }
        match name {
            "least" => Method::Least,
            "round-robin" => Method::RoundRobin,
            "sticky" => Method::Sticky,
            "hash" => Method::Hash(self.hash_key(raw.by.as_ref())),
            other => {
                let at = raw.method.as_ref().map_or(0, |text| text.span().start);
                let message = format!(
                    "`{other}` is no way to balance; there are \"least\", \"round-robin\", \"sticky\" and \"hash\""
                );
                self.wrong(at, message);
                Method::Least
            }
        }
    }

    fn hash_key(&mut self, by: Option<&Spanned<String>>) -> HashKey {
        let Some(by) = by else { return HashKey::Ip };
        match by.get_ref().as_str() {
            "ip" => return HashKey::Ip,
            "path" => return HashKey::Path,
            other => {
                let name = other.strip_prefix("header:").unwrap_or_default();
                let token = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
                if !name.is_empty() && name.len() <= 64 && name.bytes().all(token) {
                    return HashKey::Header(name.to_ascii_lowercase());
                }
            }
        }
        let message = "a hash is `by` \"ip\", \"path\" or a header such as \"header:x-user\"";
        self.wrong(by.span().start, message);
        HashKey::Ip
    }

    /// What goes with some protocols only.
    pub(super) fn check_protocol(&mut self, raw: &RawSpec, run: &Run, protocol: Protocol) {
        let spoken: Vec<Protocol> = match run {
            Run::Upstream(list) => list.iter().map(|one| one.protocol).collect(),
            _ => vec![protocol],
        };
        if let Some(path) = &raw.health.path
            && spoken.iter().any(|one| *one != Protocol::Http)
        {
            let message = "health.path goes with HTTP/1 only; without it an open port is enough";
            self.wrong(path.span().start, message);
        }
        let scripts = spoken.contains(&Protocol::FastCgi);
        for key in [&raw.fastcgi.root, &raw.fastcgi.index]
            .into_iter()
            .flatten()
        {
            if !scripts {
                self.wrong(
                    key.span().start,
                    "[fastcgi] goes with protocol = \"fastcgi\"",
                );
            }
        }
        if let (Some(list), None, true) = (&raw.upstream, &raw.fastcgi.root, scripts) {
            let message = "say where the scripts are on the server that runs them: [fastcgi] root = \"/var/www/html\"";
            self.wrong(list.span().start, message);
        }
    }
}

/// `PROTOCOL://ADDRESS:PORT`.
fn parse(url: &str) -> Result<(Protocol, SocketAddr), String> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let protocol = match scheme {
        "http" => Protocol::Http,
        "h2c" => Protocol::H2c,
        "uwsgi" => Protocol::Uwsgi,
        "fastcgi" => Protocol::FastCgi,
        _ => {
            return Err(format!(
                "`{scheme}://` is not spoken; there are http://, h2c://, uwsgi:// and fastcgi://"
            ));
        }
    };
    match rest.trim_end_matches('/').parse::<SocketAddr>() {
        Ok(address) if address.port() > 0 => Ok((protocol, address)),
        _ => Err(format!(
            "`{url}` is no address; write for instance {scheme}://127.0.0.1:8001"
        )),
    }
}
