//! Which target gets a request.

use std::cell::Cell;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hutong_http::request::RequestHead;
use hutong_ipc::gateway::{HashKey, Method, Role};

use crate::table::App;
use crate::target::{InFlight, Target};
use crate::trial::Side;
use crate::visitor::Peer;
use crate::{Shared, cookies};

/// The cookie that leads a visitor to the same instance again.
const COOKIE: &str = "hutong-instance";

thread_local! {
    static TURN: Cell<u64> = const { Cell::new(0) };
}

/// Why no target was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {
    /// The table has changed meanwhile, or nothing can serve now.
    Absent,
    /// All have as many requests as they may.
    Busy,
}

/// A target for one request, and the cookie to be said with its answer.
pub struct Taken {
    pub in_flight: InFlight,
    pub cookie: Option<String>,
}

/// Takes a target for one request, not one of `tried`; of the release that its visitor gets, if one is on trial.
pub fn take(
    shared: &Arc<Shared>,
    app: &App,
    version: u64,
    (tried, side): (&[Arc<Target>], Option<Side>),
    peer: &Peer,
    head: &RequestHead,
) -> Result<Taken, Nothing> {
    let usable = usable(app, tried, side);
    if usable.is_empty() {
        return Err(Nothing::Absent);
    }
    let mut free = usable;
    if app.balance.max_requests > 0 {
        free.retain(|one| has_room(app, one));
    }
    if free.is_empty() {
        return Err(Nothing::Busy);
    }
    let mut cookie = None;
    let target = match &app.balance.method {
        _ if free.len() == 1 && app.balance.method != Method::Sticky => free[0],
        Method::Least => least(app, &free),
        Method::RoundRobin => in_turn(app, &free),
        Method::Hash(key) => by_hash(hash(key, peer, head), &free),
        Method::Sticky => match remembered(head, &free) {
            Some(target) => target,
            None => {
                let target = least(app, &free);
                cookie = Some(cookies::set(COOKIE, &token(target), peer));
                target
            }
        },
    };
    let most = app.balance.max_requests as usize;
    let counted = target
        .in_flight
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
            (most == 0 || count < most).then_some(count + 1)
        });
    if counted.is_err() {
        // Another worker was faster.
        return Err(Nothing::Busy);
    }
    let in_flight = InFlight {
        target: target.clone(),
        shared: shared.clone(),
        queue: (app.balance.max_requests > 0).then(|| app.queue.clone()),
    };
    // Counted first, looked second: whoever swaps the table looks at the count after it.
    if shared.table.load().version != version {
        return Err(Nothing::Absent);
    }
    Ok(Taken { in_flight, cookie })
}

/// Those that can serve; without those that fail often, if others are left.
fn usable<'a>(app: &'a App, tried: &[Arc<Target>], side: Option<Side>) -> Vec<&'a Arc<Target>> {
    let mut usable: Vec<&Arc<Target>> = app
        .targets
        .iter()
        .filter(|(role, target)| *role == Role::Active && target.can_serve())
        .map(|(_, target)| target)
        .filter(|target| !tried.iter().any(|t| Arc::ptr_eq(t, target)))
        .collect();
    if let (Some(trial), Some(side)) = (&app.trial, side) {
        let is_its = |target: &&Arc<Target>| trial.side_of(target.deployment) == side;
        let takes_one = |target: &&Arc<Target>| has_room(app, target);
        let (mine, others): (Vec<_>, Vec<_>) = usable.into_iter().partition(is_its);
        // An answer of the other release is better than none. Whoever waits for a canary keeps all others waiting, too,
        // and that may hang; but whatever the stable release cannot bear is not to fall on the canary.
        let overflows =
            side == Side::Canary && !mine.iter().any(takes_one) && others.iter().any(takes_one);
        usable = match mine.is_empty() || overflows {
            true => others,
            false => mine,
        };
    }
    let fails = |target: &&Arc<Target>| target.record.is_ejected();
    if app.balance.eject && usable.len() > 1 && !usable.iter().all(fails) {
        usable.retain(|target| !fails(target));
    }
    usable
}

fn has_room(app: &App, target: &Target) -> bool {
    let most = app.balance.max_requests as usize;
    most == 0 || target.in_flight.load(Ordering::Relaxed) < most
}

/// The fewest requests for its weight; ties in turn.
fn least<'a>(app: &App, free: &[&'a Arc<Target>]) -> &'a Arc<Target> {
    // As 64.8 fixed point, so that weights count.
    let load = |target: &Target| {
        let weight = weight(app, target);
        (target.in_flight.load(Ordering::Relaxed) as u64 * 256 * 256) / weight
    };
    let lowest = free.iter().map(|target| load(target)).min().unwrap_or(0);
    let tied: Vec<&Arc<Target>> = free
        .iter()
        .copied()
        .filter(|target| load(target) <= lowest)
        .collect();
    in_turn(app, if tied.is_empty() { free } else { &tied })
}

/// Each as often as its weight says: the golden ratio's multiples are spread evenly however many there are.
fn in_turn<'a>(app: &App, free: &[&'a Arc<Target>]) -> &'a Arc<Target> {
    let turn = TURN.with(|turn| turn.replace(turn.get().wrapping_add(1)));
    let weights: Vec<u64> = free.iter().map(|target| weight(app, target)).collect();
    if weights.iter().all(|weight| *weight == weights[0]) {
        return free[turn as usize % free.len()];
    }
    let total: u64 = weights.iter().sum();
    let part = turn.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut at = ((u128::from(part) * u128::from(total)) >> 64) as u64;
    for (target, weight) in free.iter().zip(weights) {
        if at < weight {
            return target;
        }
        at -= weight;
    }
    free[0]
}

/// Above 0: its weight in 256ths.
fn weight(app: &App, target: &Target) -> u64 {
    u64::from(target.weight()) * target.record.share(app.slow_start)
}

fn hash(key: &HashKey, peer: &Peer, head: &RequestHead) -> u64 {
    let mut hasher = DefaultHasher::new();
    match key {
        HashKey::Ip => peer.ip.hash(&mut hasher),
        HashKey::Path => head.path().hash(&mut hasher),
        HashKey::Header(name) => head
            .fields
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(name.as_bytes()))
            .map(|field| field.value)
            .hash(&mut hasher),
    }
    hasher.finish()
}

/// Rendezvous hashing, weighted: a target that comes or goes moves only its own keys.
fn by_hash<'a>(key: u64, free: &[&'a Arc<Target>]) -> &'a Arc<Target> {
    let score = |target: &Target| {
        let mut hasher = DefaultHasher::new();
        (key, &target.instance).hash(&mut hasher);
        // A number in (0, 1).
        let chance = ((hasher.finish() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        f64::from(target.weight()) / -chance.ln()
    };
    let mut best = free[0];
    for target in &free[1..] {
        if score(target) > score(best) {
            best = target;
        }
    }
    best
}

/// What the cookie says: nothing about the inside.
fn token(target: &Target) -> String {
    let mut hasher = DefaultHasher::new();
    target.instance.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn remembered<'a>(head: &RequestHead, free: &[&'a Arc<Target>]) -> Option<&'a Arc<Target>> {
    let said = cookies::find(head, COOKIE)?;
    free.iter()
        .copied()
        .find(|target| token(target).as_bytes() == said)
}

#[cfg(test)]
mod tests;
