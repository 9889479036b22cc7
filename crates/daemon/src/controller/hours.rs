//! What an owner's hours say of an app: it is woken before anybody asks, or it does not run for a while.

use super::*;
use hutong_core::plan::Closed;
use hutong_core::schedule::Schedule;
use hutong_runtime::processes::now_ms;

/// A time to wake an app that nobody looked at for so long is over: it only was to be up before its visitors.
const GRACE_MS: u64 = 60_000;

/// How an app stands with its owner's hours.
#[derive(Debug, Default)]
pub struct Hours {
    /// It does not run now.
    pub closed: Option<Closed>,
    /// Up to when times to wake it were dealt with, in milliseconds since 1970.
    seen_ms: u64,
}

/// Looks at the clock on the wall: an owner's hours are times of the day.
pub(super) fn look(control: &Control, loaded: &Loaded) {
    let name = &loaded.app.name;
    let runs = loaded.app.goal == Goal::Running && !loaded.app.isolated;
    let spec = loaded.active.as_ref().map(|(_, _, spec)| spec);
    let mut observed = lock(&control.observed);
    let Some(spec) = spec.filter(|spec| runs && (!spec.wake.is_empty() || spec.down.is_some()))
    else {
        observed.hours.remove(name);
        return;
    };
    let now = now_ms();
    let closed = spec.down.as_ref().and_then(|hours| {
        let until_ms = hours.down_until(now)?;
        let until = hours.words(until_ms);
        Some(Closed { until, until_ms })
    });
    let hours = observed.hours.entry(name.clone()).or_default();
    let seen = std::mem::replace(&mut hours.seen_ms, now);
    let was_closed = hours.closed.is_some();
    hours.closed.clone_from(&closed);
    let due = |schedule: &&Schedule| schedule.was_due(seen, now, GRACE_MS);
    let note = match (closed, spec.wake.iter().find(due)) {
        (Some(closed), _) => {
            // When it is over somebody must ask, as after any sleep.
            observed.awake.remove(name);
            (!was_closed).then(|| closed.reason())
        }
        (None, Some(schedule)) => {
            let asleep = !observed.awake.contains_key(name);
            observed.wake(name);
            asleep.then(|| format!("is woken before anybody asks: `{schedule}`"))
        }
        (None, None) => None,
    };
    drop(observed);
    if let Some(note) = note {
        control.logs.note(name, "", &note);
    }
}
