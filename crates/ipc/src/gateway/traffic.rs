//! How an app's requests are spread, and what its visitors may do.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Secret;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    pub method: Method,
    pub slow_start_ms: u64,
    /// Requests that a target gets at once; 0 for any number.
    pub max_requests: u32,
    /// Requests that wait when all targets have so many.
    pub queue: u32,
    pub queue_timeout_ms: u64,
    /// Targets that fail often get none for a while.
    pub eject: bool,
}

impl Default for Balance {
    fn default() -> Self {
        Balance {
            method: Method::Least,
            slow_start_ms: 0,
            max_requests: 0,
            queue: 1024,
            queue_timeout_ms: 10_000,
            eject: true,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    Least,
    RoundRobin,
    Sticky,
    Hash(HashKey),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashKey {
    Ip,
    Path,
    /// In lower case.
    Header(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub rules: Rules,
    /// Addresses or networks; nobody else is let in, if there are any.
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    pub ban: Option<Ban>,
    pub compress: bool,
    /// Requests and conversations under way, of all visitors and of each address.
    #[serde(default)]
    pub max_concurrent: Option<u32>,
    #[serde(default)]
    pub max_concurrent_per_ip: Option<u32>,
    /// Who is let in, by name and password.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// The longest prefix first.
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

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    pub rate: Option<Rate>,
    pub rate_per_ip: Option<Rate>,
    /// In bytes.
    pub max_body: Option<u64>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// From one request to the next, in the long run, in nanoseconds; above 0.
    pub interval_ns: u64,
    /// Above 0.
    pub burst: u32,
}

/// So many bad answers within a time, and an address is not served for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    pub after: u32,
    pub within_s: u64,
    pub period_s: u64,
}

/// An address that is not let in; IPv6: its /64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Banned {
    /// Only by this app.
    pub app: Option<String>,
    pub ip: IpAddr,
    /// Seconds since 1970.
    pub until_s: u64,
    pub reason: String,
}

/// Prefixes match at segment borders: `/api` covers `/api` and `/api/x`, not `/apix`.
pub fn covers(prefix: &str, path: &str) -> bool {
    prefix == "/"
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficRoute {
    /// Normalised, matched at segment borders.
    pub prefix: String,
    pub class: Class,
    pub response_timeout_ms: Option<u64>,
    /// No password is asked for here.
    #[serde(default)]
    pub open: bool,
    pub rules: Rules,
}

/// Basic authentication (RFC 7617).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Auth {
    /// Without quotation marks or backslashes.
    pub realm: String,
    pub users: Vec<User>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    /// bcrypt, as `$2b$…`.
    pub hash: Secret,
}

/// What is let go first when there is too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Background,
    #[default]
    Normal,
    Core,
}
