//! The snapshot that `control` publishes, and what both say over the gateway's socket. A snapshot is
//! immutable, versioned, whole, and holds no secret.

use std::collections::BTreeMap;

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
    /// 503 with the reason.
    Down { reason: String, retry_after_s: u32 },
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
    pub health: Health,
    pub role: Role,
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
}

/// gateway → control.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Every worker serves this version.
    Serving { version: u64 },
    Health {
        instance: String,
        healthy: bool,
        detail: String,
    },
    /// The line to the shim closed: the instance is gone.
    Gone { instance: String },
    /// A draining target finished its last request (as of this version).
    Drained { instance: String, version: u64 },
    /// The snapshot could not be read.
    Rejected { reason: String },
}
