//! What the owner sees of the gateway, and does to it.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use hutong_ipc::gateway::{Banned, Role, RouteStatus, Status, TargetStatus};

use crate::Shared;

/// More routes than these are not shown: the message has a bound.
const MAX_ROUTES: usize = 2000;

pub fn ban(shared: &Shared, list: Vec<Banned>) {
    let table = shared.table.load();
    for one in list {
        let bans = match &one.app {
            None => Some(&shared.limits.bans),
            Some(name) => table
                .apps
                .iter()
                .find(|app| app.name == *name)
                .and_then(|app| app.guard.bans.as_deref()),
        };
        if let Some(bans) = bans {
            bans.add(one.ip, one.until_s, one.reason);
        }
    }
}

pub fn lift(shared: &Shared, ip: IpAddr) {
    shared.limits.bans.lift(ip);
    for bans in shared
        .table
        .load()
        .apps
        .iter()
        .filter_map(|app| app.guard.bans.as_ref())
    {
        bans.lift(ip);
    }
}

pub fn status(shared: &Shared) -> Status {
    let table = shared.table.load();
    let mut routes: Vec<RouteStatus> = table
        .routes()
        .map(|(host, prefix, app, stats)| RouteStatus {
            app: app.name.clone(),
            host: host.to_owned(),
            prefix: prefix.to_owned(),
            answers: stats.answers(),
            bytes: stats.bytes(),
            p50_us: stats.within_us(500),
            p99_us: stats.within_us(990),
            histogram: stats.histogram(),
        })
        .collect();
    routes.sort_by_cached_key(|route| {
        let count: u64 = route.answers.iter().sum();
        (Reverse(count), route.host.clone(), route.prefix.clone())
    });
    routes.truncate(MAX_ROUTES);
    let targets = table.apps.iter().flat_map(|app| {
        app.targets.iter().map(|(role, target)| TargetStatus {
            app: app.name.clone(),
            instance: target.instance.clone(),
            role: match role {
                Role::Candidate => "candidate",
                Role::Active => "active",
                Role::Draining => "draining",
            }
            .into(),
            healthy: target.can_serve(),
            ejected: target.record.is_ejected(),
            in_flight: target.in_flight.load(Ordering::Relaxed) as u64,
            queued: app.queue.len() as u64,
            weight: target.weight(),
        })
    });
    Status {
        version: table.version,
        uptime_s: shared.began.elapsed().as_secs(),
        connections: shared.connections.load(Ordering::Relaxed),
        refused_connections: shared.refused_connections.load(Ordering::Relaxed),
        routes,
        targets: targets.collect(),
    }
}
