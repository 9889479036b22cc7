//! How many instances an app is to have: what its owner said last, what `[scale]` makes of what is seen, or the number
//! in its file.

use std::collections::HashMap;

use super::*;
use hutong_core::scale::{self, History, Observation};

/// What the processor was used for is looked at over so long at least.
const LOOK_MS: u64 = 5_000;

/// What is known of an app with `[scale]`. Not stored: after a restart there are to be as many instances as run.
#[derive(Debug)]
pub struct Scaling {
    wanted: u32,
    /// The last look.
    pub seen: Observation,
    history: History,
    /// Since when the following is counted.
    since_ms: u64,
    /// What each instance that serves had used of the processor then, in microseconds.
    used: HashMap<String, u64>,
    /// What the gateway said of requests under way, and how often.
    in_flight: u64,
    told: u64,
}

/// How many instances of a version there are to be. Nothing else says so.
pub fn wanted_instances(observed: &Observed, app: &App, spec: &AppSpec) -> u32 {
    let by_load = spec.scale.map(|scale| {
        let scaling = observed.scaling.get(&app.name);
        scale.bound(scaling.map_or(scale.min, |scaling| scaling.wanted))
    });
    app.scale.or(by_load).unwrap_or(spec.instances)
}

impl Scaling {
    fn new(wanted: u32, used: HashMap<String, u64>, now: u64) -> Self {
        Scaling {
            wanted,
            seen: Observation::default(),
            history: History::new(wanted, now),
            since_ms: now,
            used,
            in_flight: 0,
            told: 0,
        }
    }

    /// The gateway said how many requests are under way.
    pub fn note(&mut self, in_flight: u64) {
        self.in_flight = self.in_flight.saturating_add(in_flight);
        self.told += 1;
    }

    fn begin(&mut self, used: HashMap<String, u64>, now: u64) {
        (self.used, self.since_ms) = (used, now);
        (self.in_flight, self.told) = (0, 0);
    }

    /// What the instances had to do since it began. `used` is as of now; each may use `cpu_millis`.
    fn look(&mut self, used: HashMap<String, u64>, cpu_millis: u32, now: u64) -> Observation {
        let spent: Vec<u64> = used
            .iter()
            .filter_map(|(id, now)| Some(now.saturating_sub(*self.used.get(id)?)))
            .collect();
        let measured = spent.len() as u64;
        let elapsed_ms = now.saturating_sub(self.since_ms);
        // So many thousandths of a core in so many milliseconds: microseconds of a core.
        let limit = elapsed_ms * u64::from(cpu_millis) * measured;
        let percent = (spent.iter().sum::<u64>() * 100).checked_div(limit);
        let requests = (self.told > 0).then(|| self.in_flight.div_ceil(self.told));
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        self.begin(used, now);
        self.seen = Observation {
            cpu: percent.map(narrow),
            measured: narrow(measured),
            requests: requests.map(narrow),
        };
        self.seen
    }
}

/// Looks at what an app has to do, and decides how many instances there are to be.
pub(super) fn look(control: &Control, loaded: &Loaded, now: u64) {
    let name = &loaded.app.name;
    let mut guard = lock(&control.observed);
    let observed = &mut *guard;
    if !runs(observed, loaded) {
        observed.scaling.remove(name);
        return;
    }
    let serving = serving(observed, loaded);
    let running = serving.len() as u32;
    let used: HashMap<String, u64> = serving
        .into_iter()
        .filter(|i| health(observed, i) == plan::Health::Healthy)
        // Where the kernel does not count, nothing is known.
        .filter(|i| i.cpu_usec > 0)
        .filter(|i| !observed.draining.contains_key(&i.instance))
        .map(|i| (i.instance.clone(), i.cpu_usec))
        .collect();
    let Some(scaling) = observed.scaling.get_mut(name) else {
        let scaling = Scaling::new(running, used, now);
        observed.scaling.insert(name.clone(), scaling);
        return;
    };
    let active = loaded.active.as_ref().map(|(_, _, spec)| spec);
    let Some((spec, scale)) = active.and_then(|spec| Some((spec, spec.scale?))) else {
        return;
    };
    // While its engine is silent, what its instances use is old. Two releases at once say little about either; but a
    // canary may be under way for hours, and what serves most visitors must keep up with them.
    let is_silent = loaded.needs_engine(control) && matches!(observed.engine, Engine::Silent(_));
    if is_silent || (loaded.rollout.is_some() && loaded.begun.is_none()) {
        scaling.begin(used, now);
        return;
    }
    if let Some(fixed) = loaded.app.scale {
        // From there it goes on once that is over.
        (scaling.wanted, scaling.history) = (fixed, History::new(fixed, now));
    }
    if now < scaling.since_ms + LOOK_MS {
        return;
    }
    let is_served = !used.is_empty();
    let seen = scaling.look(used, spec.caps.cpu_millis, now);
    // Requests that wait for an app that does not get up would be no better off with more of it.
    if !is_served || loaded.app.scale.is_some() {
        return;
    }
    let before = scale.bound(scaling.wanted);
    // While a release is on trial there are not to be fewer: each has less to do for that, and either may have to bear all
    // at once.
    let least = match loaded.begun.is_some() {
        true => before,
        false => 0,
    };
    let asked = scale::recommend(&scale, &seen, before).max(least);
    scaling.history.note(&scale, asked, now);
    scaling.wanted = scale::decide(&scale, &scaling.history, before, now).max(least);
    let wanted = scaling.wanted;
    drop(guard);
    let wanted = scaling_fits(control, loaded, running, before, wanted);
    if wanted != before {
        let text = format!("{before} → {wanted} instances: {seen}");
        control.logs.note(name, "", &text);
    }
}

/// No more than there is memory for.
fn scaling_fits(control: &Control, loaded: &Loaded, running: u32, before: u32, wanted: u32) -> u32 {
    let name = &loaded.app.name;
    // One more is one more of both releases while one is on trial.
    let tried = loaded.rollout.as_ref().filter(|_| loaded.begun.is_some());
    let versions = loaded.active.iter().chain(tried);
    let each: u64 = versions
        .map(|(_, _, spec)| spec.caps.guaranteed_bytes)
        .sum();
    let each = each.max(1);
    let room = control.room();
    let more = room.total.saturating_sub(room.guaranteed) / each;
    let most = running.saturating_add(u32::try_from(more).unwrap_or(u32::MAX));
    let fits = wanted.min(most.max(before));
    if fits < wanted {
        let mut observed = lock(&control.observed);
        if let Some(scaling) = observed.scaling.get_mut(name) {
            scaling.wanted = fits;
        }
    }
    fits
}

/// Whether it scales, and is not at rest: what begins anew begins with as few as may be.
fn runs(observed: &Observed, loaded: &Loaded) -> bool {
    let name = &loaded.app.name;
    let app = &loaded.app;
    let mut versions = loaded.rollout.iter().chain(&loaded.active);
    let scales = versions.any(|(_, _, spec)| spec.scale.is_some());
    let active = loaded.active.as_ref().map(|(_, _, spec)| spec);
    let may_sleep = active.is_some_and(|spec| spec.sleep_after.is_some());
    let is_asleep = may_sleep && !observed.awake.contains_key(name);
    let hours = observed.hours.get(name);
    let is_closed = hours.is_some_and(|hours| hours.closed.is_some());
    let is_wanted = app.goal == Goal::Running && !app.isolated && app.halted.is_none();
    scales && is_wanted && !is_asleep && !is_closed
}

/// The instances of the version that serves.
fn serving<'a>(observed: &'a Observed, loaded: &Loaded) -> Vec<&'a Instance> {
    let active = loaded.app.active;
    let mine = observed.instances.values();
    mine.filter(|i| i.app == loaded.app.name && is_web(i) && Some(i.deployment) == active)
        .filter(|i| !i.ending && !observed.stopping.contains_key(&i.instance))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(list: &[(&str, u64)]) -> HashMap<String, u64> {
        let owned = |(id, usec): &(&str, u64)| ((*id).to_owned(), *usec);
        list.iter().map(owned).collect()
    }

    #[test]
    fn what_was_used_since_the_last_look_counts() {
        let mut scaling = Scaling::new(2, used(&[("a", 7_000_000), ("b", 0)]), 1_000);
        scaling.note(3);
        scaling.note(6);
        // Of half a core in five seconds: 2.5 s each. One is new.
        let now = used(&[("a", 9_000_000), ("b", 500_000), ("c", 2_000_000)]);
        let seen = scaling.look(now, 500, 6_000);
        let wanted = Observation {
            cpu: Some(50),
            measured: 2,
            requests: Some(5),
        };
        assert_eq!(seen, wanted);
        // From there on.
        let now = used(&[("a", 9_000_000), ("c", 7_000_000), ("d", 1)]);
        let seen = scaling.look(now, 1000, 11_000);
        let wanted = Observation {
            cpu: Some(50),
            measured: 2,
            requests: None,
        };
        assert_eq!(seen, wanted);
        let nothing = scaling.look(HashMap::new(), 1000, 16_000);
        assert_eq!(nothing, Observation::default());
    }
}
