//! The snapshot that `control` publishes, and what both say over the gateway's socket. A snapshot is
//! immutable, versioned, whole, and holds no secret.

mod status;
mod traffic;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

pub use status::{RouteStatus, Status, TargetStatus};
pub use traffic::{
    Auth, Balance, Ban, Banned, Class, HashKey, Method, Rate, Rules, Traffic, TrafficRoute, User,
    covers,
};

use serde::{Deserialize, Serialize};

/// Everything the gateway serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub version: u64,
    pub apps: BTreeMap<String, App>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct App {
    pub routes: Vec<Route>,
    pub serve: Serve,
    /// Everything of this app that the gateway should hold a line to: serving, probing and draining.
    pub targets: Vec<Target>,
    /// How long the app may take to begin its answer, in milliseconds.
    pub response_timeout_ms: u64,
    /// How long a request waits while the app is held, in milliseconds.
    pub hold_timeout_ms: u64,
    #[serde(default)]
    pub https: Https,
    #[serde(default)]
    pub balance: Balance,
    #[serde(default)]
    pub traffic: Traffic,
    /// Control is told when nothing was asked of the app for so long.
    #[serde(default)]
    pub sleep_after_ms: Option<u64>,
    /// Other apps that this one's programs call, by the name that they use.
    #[serde(default)]
    pub links: BTreeMap<String, Link>,
    /// Instances whose calls are served.
    #[serde(default)]
    pub callers: Vec<Caller>,
    /// Control is told how many requests are under way.
    #[serde(default)]
    pub scales: bool,
}

/// One app's way to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub app: String,
    /// The other app agrees.
    pub allowed: bool,
}

/// An instance that calls other apps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Caller {
    pub instance: String,
    /// It has no shim: the Docker driver has its sockets.
    pub container: bool,
}

/// What becomes of plain HTTP where there is a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Https {
    /// Plain requests are sent to HTTPS.
    pub redirect: bool,
    /// Path prefixes that are served over plain HTTP nevertheless.
    pub except: Vec<String>,
    /// `Strict-Transport-Security: max-age`, in seconds; 0 for none.
    pub hsts_s: u64,
    /// Nobody wants certificates for its hosts.
    #[serde(default)]
    pub plain: bool,
    /// Nothing is answered over plain HTTP.
    #[serde(default)]
    pub only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Exact, or `*.` and a suffix; lower case, no port.
    pub host: String,
    /// Normalised, begins with `/`, matched at segment borders.
    pub prefix: String,
    pub strip_prefix: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Serve {
    /// Requests go to the targets whose role is `Active`.
    Targets,
    /// Requests wait (bounded) until the app serves again.
    Hold,
    /// The same, and control is told that the app is wanted.
    Asleep,
    /// 503 with the reason.
    Down {
        reason: String,
        retry_after_s: u32,
        /// When it is over, in milliseconds since 1970, where that is known: in place of `retry_after_s`.
        #[serde(default)]
        until_ms: Option<u64>,
    },
    /// Files of a tree below the data folder.
    Static {
        root: String,
        index: Option<String>,
        spa: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub instance: String,
    pub port: u16,
    /// A server that Hutong does not run: `instance` is only its name, and there is no shim.
    #[serde(default)]
    pub address: Option<SocketAddr>,
    #[serde(default)]
    pub protocol: Protocol,
    #[serde(default = "one")]
    pub weight: u32,
    pub health: Health,
    pub role: Role,
}

fn one() -> u32 {
    1
}

/// What a target speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    #[default]
    Http,
    H2c,
    Uwsgi,
    FastCgi {
        /// The folder of the scripts, absolute, as the target sees it.
        root: String,
        /// The script, below the root, that gets every path that names none.
        index: String,
        /// The same folder below our data folder, for files that are no scripts.
        files: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Probed until healthy; gets no requests.
    Candidate,
    Active,
    /// Finishes what it has.
    Draining,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `None`: a TCP connection is enough.
    pub path: Option<String>,
    pub interval_ms: u64,
    pub timeout_ms: u64,
    pub retries: u32,
}

/// control → gateway.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nudge {
    /// Read the snapshot file again.
    Reload,
    /// Keep a certificate under this name, in place of the one before it, and serve it.
    Certificate { name: String, pem: Box<Pem> },
    /// Throw a certificate away.
    Forget { name: String },
    /// What shows a certificate authority that a name is ours. In place of all before.
    Challenges(Vec<Challenge>),
    /// Addresses that are not let in, besides those known already.
    Bans(Vec<Banned>),
    /// Let an address in again, everywhere.
    Lift { ip: IpAddr },
    /// Say what there is to see.
    Status,
}

/// A certificate chain and its private key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pem {
    pub chain: String,
    pub key: Secret,
}

/// Text that no log shows.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A challenge of ACME's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Challenge {
    /// RFC 8555 §8.3: `/.well-known/acme-challenge/TOKEN` answers with the text.
    Http01 { token: String, answer: String },
    /// RFC 8737: who asks for this name with `acme-tls/1` gets this certificate.
    TlsAlpn01 { name: String, pem: Box<Pem> },
}

/// A certificate that the gateway holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub name: String,
    /// Lower case; some may be wildcards.
    pub hosts: Vec<String>,
    pub issuer: String,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    /// SHA-256 of the leaf, in hex.
    pub fingerprint: String,
    /// How its authority calls it when it is asked about renewal (RFC 9773 §4.1).
    #[serde(default)]
    pub renewal_id: Option<String>,
}

/// gateway → control.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Every worker serves this version.
    Serving {
        version: u64,
    },
    Health {
        instance: String,
        healthy: bool,
        detail: String,
    },
    /// The line to the shim closed: the instance is gone.
    Gone {
        instance: String,
    },
    /// A draining target finished its last request (as of this version).
    Drained {
        instance: String,
        version: u64,
    },
    /// The snapshot could not be read.
    Rejected {
        reason: String,
    },
    /// All certificates that are served.
    Certificates(Vec<Held>),
    /// A certificate is not taken.
    BadCertificate {
        name: String,
        reason: String,
        /// It is not its own fault: it may be taken later.
        #[serde(default)]
        passing: bool,
    },
    /// The challenges are in place at every worker.
    Challenged,
    /// An app's rule shut an address out.
    Banned(Banned),
    /// A request waits for an app that sleeps; said again while it does.
    Wanted {
        app: String,
    },
    /// Nothing was asked of these apps for as long as each wants; said again while it is so.
    Idle {
        apps: Vec<String>,
        /// Requests under way or waiting, of apps whose instances follow them; said once a second.
        #[serde(default)]
        in_flight: BTreeMap<String, u64>,
    },
    Status(Box<Status>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::decode;

    #[test]
    fn what_an_older_program_says_is_understood() {
        let event: Event = decode(br#"{"idle":{"apps":["a"]}}"#).expect("an event");
        let (apps, in_flight) = (vec!["a".to_owned()], BTreeMap::new());
        assert_eq!(event, Event::Idle { apps, in_flight });
        let serve: Serve = decode(br#"{"down":{"reason":"x","retry_after_s":5}}"#).expect("good");
        let down = Serve::Down {
            reason: "x".into(),
            retry_after_s: 5,
            until_ms: None,
        };
        assert_eq!(serve, down);
    }
}
