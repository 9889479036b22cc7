//! Who may ask, and how often: addresses, bans, token buckets, the size of bodies. Everything here takes the
//! same memory however many visitors there are.

mod auth;
mod bans;
mod buckets;
mod counts;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hutong_core::networks::{Network, Networks};
use hutong_http::fields::Name;
use hutong_http::request::{Framing, RequestHead};
use hutong_ipc::gateway::{self as wire, Class};

pub use auth::Auth;
pub use bans::{Ban, Bans};
use buckets::{Buckets, Keys, Rate, Verdict};
pub use counts::Held;

use crate::date;
use crate::pages::Page;
use crate::visitor::{Peer, TOO_LARGE};

/// Buckets in sets of four: 16 bytes each, a megabyte in all.
const SETS: usize = 16 << 10;

/// What all apps share.
pub struct Limits {
    keys: Keys,
    buckets: Arc<Buckets>,
    /// Connections and requests that are open.
    open: Arc<counts::Counts>,
    checks: Arc<auth::Checks>,
    /// By the owner's own hand; for every app.
    pub bans: Bans,
}

impl Limits {
    pub fn new() -> Self {
        Limits {
            keys: Keys::default(),
            buckets: Arc::new(Buckets::new(SETS)),
            open: Arc::new(counts::Counts::default()),
            checks: Arc::default(),
            bans: Bans::default(),
        }
    }
}

/// An app's rules, made ready.
pub struct Guard {
    allow: Option<Networks>,
    deny: Networks,
    rules: Rules,
    /// The longest prefix first.
    routes: Vec<Route>,
    ban: Option<bans::Rule>,
    concurrent: Option<Most>,
    concurrent_per_ip: Option<Most>,
    auth: Option<Auth>,
    /// Kept across tables.
    pub bans: Option<Arc<Bans>>,
    pub compress: bool,
}

/// How many at once, and the number of the rule.
#[derive(Clone, Copy)]
struct Most {
    rule: u64,
    most: u32,
}

struct Route {
    prefix: String,
    /// No password is asked for.
    open: bool,
    class: Class,
    response_timeout: Option<Duration>,
    rules: Rules,
}

#[derive(Default)]
struct Rules {
    rate: Option<(u64, Rate)>,
    rate_per_ip: Option<(u64, Rate)>,
    max_body: Option<u64>,
}

/// What holds for one request.
#[derive(Debug, Default)]
pub struct Terms {
    pub class: Class,
    pub response_timeout: Option<Duration>,
    pub max_body: Option<u64>,
    /// How much its visitor may still ask for: `RateLimit`.
    pub left: Option<String>,
    /// Its places among those that are open at once.
    _held: [Option<Held>; 2],
}

impl Guard {
    pub fn new(app: &str, traffic: &wire::Traffic, before: Option<&Guard>) -> Self {
        // Control has checked them; one that is wrong nevertheless lets nobody through.
        let networks = |list: &[String]| {
            let parsed = list.iter().filter_map(|text| text.parse::<Network>().ok());
            Networks::new(parsed.collect())
        };
        let routes = traffic.routes.iter().map(|route| Route {
            prefix: route.prefix.clone(),
            open: route.open,
            class: route.class,
            response_timeout: route.response_timeout_ms.map(Duration::from_millis),
            rules: Rules::new((app, &route.prefix), &route.rules),
        });
        let ban = traffic.ban.map(|ban| bans::Rule {
            hits: ban.after,
            within_s: ban.within_s,
            for_s: ban.period_s,
        });
        let most = |what: &str, most: Option<u32>| {
            most.map(|most| Most {
                rule: number((app, ""), what),
                most,
            })
        };
        let known = before.and_then(|before| before.bans.clone());
        Guard {
            allow: (!traffic.allow.is_empty()).then(|| networks(&traffic.allow)),
            deny: networks(&traffic.deny),
            rules: Rules::new((app, ""), &traffic.rules),
            routes: routes.collect(),
            bans: ban.as_ref().map(|_| known.unwrap_or_default()),
            ban,
            concurrent: most("concurrent", traffic.max_concurrent),
            concurrent_per_ip: most("concurrent ip", traffic.max_concurrent_per_ip),
            auth: traffic.auth.as_ref().map(|auth| Auth::new(app, auth)),
            compress: traffic.compress,
        }
    }

    /// Lets a request in, or says why not.
    pub fn admit(&self, limits: &Limits, peer: &Peer, head: &RequestHead) -> Result<Terms, Page> {
        if peer.link.is_none() {
            self.admit_address(limits, peer.ip)?;
        }
        let routes = self.routes_of(head.path());
        let mut terms = Terms::default();
        if let Some(route) = routes.first() {
            terms.class = route.class;
            terms.response_timeout = route.response_timeout;
        }
        terms.max_body = routes.iter().filter_map(|route| route.rules.max_body).min();
        terms.max_body = terms.max_body.or(self.rules.max_body);
        if let (Framing::Length(length), Some(most)) = (head.framing, terms.max_body)
            && length > most
        {
            return Err(Page::rejected(TOO_LARGE));
        }
        // The narrower rule first: what it refuses costs the wider one nothing.
        for rules in routes.iter().map(|route| &route.rules).chain([&self.rules]) {
            if let Some((rule, rate)) = &rules.rate_per_ip {
                let verdict = limits.take(*rule, Some(peer.ip), rate);
                terms.left = Some(describe(&verdict));
                refuse_if(&verdict, "from your address", rate)?;
            }
            if let Some((rule, rate)) = &rules.rate {
                refuse_if(&limits.take(*rule, None, rate), "at the moment", rate)?;
            }
        }
        terms._held = [
            limits.open(self.concurrent_per_ip, Some(peer.ip))?,
            limits.open(self.concurrent, None)?,
        ];
        Ok(terms)
    }

    /// The routes with rules for a path, in whatever way the app reads it; none twice.
    fn routes_of(&self, path: &str) -> Vec<&Route> {
        let mut found: Vec<&Route> = Vec::new();
        if self.routes.is_empty() {
            return found;
        }
        for reading in hutong_http::path::readings(path) {
            if let Some(route) = self.route_of(&reading)
                && !found.iter().any(|known| known.prefix == route.prefix)
            {
                found.push(route);
            }
        }
        found
    }

    fn route_of(&self, path: &str) -> Option<&Route> {
        let mut routes = self.routes.iter();
        routes.find(|route| wire::covers(&route.prefix, path))
    }

    /// What asks the app's visitors who they are, if anything does.
    pub fn auth(&self) -> Option<&Auth> {
        self.auth.as_ref()
    }

    /// Whether a path needs no password, in whatever way the app reads it.
    pub fn is_open(&self, path: &str) -> bool {
        let mut readings = hutong_http::path::readings(path).into_iter();
        readings.all(|path| self.route_of(&path).is_some_and(|route| route.open))
    }

    fn admit_address(&self, limits: &Limits, ip: IpAddr) -> Result<(), Page> {
        let now_s = date::second();
        let own = self.bans.as_ref();
        let banned = own
            .and_then(|bans| bans.is_banned(ip, now_s))
            .or_else(|| limits.bans.is_banned(ip, now_s));
        if let Some(until_s) = banned {
            let mut page = Page::new(403, "Your address is not let in for a while.");
            page.retry_after_s = u32::try_from(until_s.saturating_sub(now_s)).ok();
            page.close = true;
            return Err(page);
        }
        let allowed = self.allow.as_ref().is_none_or(|allow| allow.contains(ip));
        if !allowed || self.deny.contains(ip) {
            return Err(Page::new(403, "Your address is not let in here."));
        }
        Ok(())
    }

    /// Counts a bad answer; the ban, if this was one too many.
    pub fn note(&self, ip: IpAddr, status: u16) -> Option<Ban> {
        let (rule, bans) = (self.ban.as_ref()?, self.bans.as_ref()?);
        if !(400..500).contains(&status) || status == 499 {
            return None;
        }
        bans.hit(ip, rule, date::second())
    }
}

impl Rules {
    fn new(of: (&str, &str), wire: &wire::Rules) -> Self {
        let number = |what: &str| number(of, what);
        let rate = |wire: wire::Rate| Rate {
            interval_ns: wire.interval_ns.max(1),
            burst: wire.burst.max(1),
        };
        Rules {
            rate: wire.rate.map(|wire| (number("all"), rate(wire))),
            rate_per_ip: wire.rate_per_ip.map(|wire| (number("ip"), rate(wire))),
            max_body: wire.max_body,
        }
    }
}

/// A rule's number: of an app and a path, and what it is about.
fn number(of: (&str, &str), what: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (of, what).hash(&mut hasher);
    hasher.finish()
}

impl Limits {
    /// A place for a visitor's connection, unless it has so many already.
    pub fn connection(&self, ip: IpAddr, most: u32) -> Option<Held> {
        self.open.take(self.keys.of(0, Some(ip)), most)
    }

    fn open(&self, most: Option<Most>, ip: Option<IpAddr>) -> Result<Option<Held>, Page> {
        let Some(Most { rule, most }) = most else {
            return Ok(None);
        };
        let held = self.open.take(self.keys.of(rule, ip), most);
        held.map(Some).ok_or_else(|| {
            let (status, whence) = match ip {
                Some(_) => (429, "from your address"),
                None => (503, "here"),
            };
            let mut page = Page::new(
                status,
                format!("There are too many requests {whence} at once."),
            );
            page.retry_after_s = Some(1);
            page
        })
    }

    fn take(&self, rule: u64, ip: Option<IpAddr>, rate: &Rate) -> Verdict {
        self.buckets.take(self.keys.of(rule, ip), rate, now_us())
    }

    /// What [`Limits::take`] would say.
    fn look(&self, rule: u64, ip: Option<IpAddr>, rate: &Rate) -> Verdict {
        self.buckets.look(self.keys.of(rule, ip), rate, now_us())
    }
}

/// `RateLimit` (draft-ietf-httpapi-ratelimit-headers).
fn describe(verdict: &Verdict) -> String {
    let reset_s = verdict.reset_us.div_ceil(1_000_000);
    format!("\"ip\";r={};t={reset_s}", verdict.remaining)
}

fn refuse_if(verdict: &Verdict, whence: &str, rate: &Rate) -> Result<(), Page> {
    if verdict.allowed {
        return Ok(());
    }
    let seconds = verdict.retry_after_us.div_ceil(1_000_000).max(1);
    let mut page = Page::new(429, format!("There are too many requests {whence}."));
    page.retry_after_s = u32::try_from(seconds).ok();
    // How many in how long: the burst, and what it takes to fill it.
    let window_s = (u128::from(rate.burst) * u128::from(rate.interval_ns))
        .div_ceil(1_000_000_000)
        .max(1);
    page.fields.push((
        "ratelimit-policy",
        format!("\"ip\";q={};w={window_s}", verdict.limit),
    ));
    page.fields.push(("ratelimit", describe(verdict)));
    Err(page)
}

fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_micros() as u64)
}

/// The visitor behind a proxy that is trusted (`X-Forwarded-For`, from the right: the last address that is no
/// trusted proxy's). None where the one who connected is no such proxy, or says nothing of use.
pub fn behind(trusted: &Networks, peer: &Peer, head: &RequestHead) -> Option<Peer> {
    if trusted.is_empty() || !trusted.contains(peer.ip) {
        return None;
    }
    let said: Vec<&[u8]> = head
        .fields
        .iter()
        .filter(is_forwarded_for)
        .map(|f| f.value)
        .collect();
    let chain = said.join(&b", "[..]);
    let chain = String::from_utf8_lossy(&chain);
    // From the right, where the trusted ones are: what is left of the first other one is its own word.
    let mut visitor = None;
    let mut known = Vec::new();
    for hop in chain.rsplit(',').map(str::trim) {
        let Some(ip) = address_of(hop) else { break };
        known.insert(0, hop);
        visitor = Some(ip);
        if !trusted.contains(ip) {
            break;
        }
    }
    let proto = head
        .fields
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case(b"x-forwarded-proto"))
        .map(|field| field.value);
    let secure = proto.map_or(peer.tls, |proto| proto.eq_ignore_ascii_case(b"https"));
    let ip = visitor.unwrap_or(peer.ip);
    known.push(&peer.text);
    Some(Peer {
        ip,
        text: ip.to_string(),
        port: if visitor.is_some() { 0 } else { peer.port },
        tls: peer.tls,
        link: None,
        proxied: Some(crate::visitor::Proxied {
            chain: known.join(", "),
            secure,
        }),
    })
}

/// `1.2.3.4`, and as some proxies write it: `1.2.3.4:5678`, `[2001:db8::1]:5678`, `[2001:db8::1]`.
fn address_of(hop: &str) -> Option<IpAddr> {
    let bare = hop
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let ip = bare.unwrap_or(hop).parse::<IpAddr>();
    let with_port = || hop.parse::<SocketAddr>().map(|address| address.ip());
    ip.or_else(|_| with_port()).ok().map(|ip| ip.to_canonical())
}

fn is_forwarded_for(field: &hutong_http::fields::Field<'_>) -> bool {
    field.known == Name::XForwarded && field.name.eq_ignore_ascii_case(b"x-forwarded-for")
}

#[cfg(test)]
mod tests;
