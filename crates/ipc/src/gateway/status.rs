//! What the gateway has to show of itself.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The snapshot that is served.
    pub version: u64,
    /// Seconds since this gateway began; counters begin with it.
    pub uptime_s: u64,
    /// Visitors' connections that are open.
    pub connections: u64,
    /// Those that were closed at once, because their address had enough.
    #[serde(default)]
    pub refused_connections: u64,
    /// The busiest first, 2,000 at most.
    pub routes: Vec<RouteStatus>,
    pub targets: Vec<TargetStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStatus {
    pub app: String,
    pub host: String,
    pub prefix: String,
    /// Answers by their status' first digit; the first is those that never came to one.
    pub answers: [u64; 6],
    /// Bodies as they went out.
    pub bytes: u64,
    /// What half and 99 of 100 answers took at most, in microseconds; steps that double.
    pub p50_us: Option<u64>,
    pub p99_us: Option<u64>,
    /// Upper bounds in microseconds, and how many answers fell below each and above the one before.
    pub histogram: Vec<(u64, u64)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetStatus {
    pub app: String,
    pub instance: String,
    /// `candidate`, `active` or `draining`.
    pub role: String,
    pub healthy: bool,
    /// It failed often and gets nothing for a while.
    pub ejected: bool,
    pub in_flight: u64,
    /// Requests of its app that wait for a place.
    pub queued: u64,
    pub weight: u32,
}
