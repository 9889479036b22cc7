//! What is done for apps that run, beside what the planner says: quarantine, giving a place back, replacing what grows,
//! forgiving what runs well.

use hutong_core::leak::{self, Memory, Verdict};
use hutong_core::units::{show_size, show_time};

use super::*;
use crate::launch::process;

/// A release that took over a shorter time ago is on probation, and may end so often.
const PROBATION_MS: u64 = 5 * 60_000;
const ON_PROBATION: u32 = 3;
/// How long an instance may use more memory than its owner wants.
const HEAVY_MS: u64 = 10_000;
/// How long what took another's place for its memory keeps it.
const REPLACE_MS: u64 = 5 * 60_000;

/// What is in quarantine is frozen, and nothing else is.
pub(super) fn freeze(control: &Control, app: &App) {
    let wrong: Vec<(String, bool)> = {
        let observed = lock(&control.observed);
        let mine = observed.instances.values().filter(|i| i.app == app.name);
        let is_wrong = |i: &&Instance| match app.isolated {
            // Asked once; the kernel may take its time.
            true => !i.frozen && !i.held,
            false => i.frozen || i.held || observed.freezing.get(&i.instance) == Some(&true),
        };
        let wrong = mine.filter(is_wrong).filter(|i| !i.ending);
        wrong
            .map(|i| (i.instance.clone(), i.container.is_some()))
            .collect()
    };
    for (instance, is_container) in wrong {
        let done = control.freeze_instance(&instance, app.isolated);
        let mut observed = lock(&control.observed);
        // An engine takes its time; what it came to shows in the next list.
        if let (Ok(()), false, Some(found)) =
            (&done, is_container, observed.instances.get_mut(&instance))
        {
            (found.frozen, found.held) = (app.isolated, app.isolated);
        }
        if !app.isolated && done.is_ok() {
            observed.thawed.insert(app.name.clone(), steady_ms());
        }
        if !app.isolated && done.is_err() {
            // It is tried again.
            continue;
        }
        let news = observed.freezing.insert(instance.clone(), app.isolated) != Some(app.isolated);
        drop(observed);
        if news {
            let text = match (&done, app.isolated) {
                (Ok(()), true) => "is frozen".to_owned(),
                (Ok(()), false) => "goes on".to_owned(),
                (Err(error), _) => format!("cannot be frozen or thawed: {error}"),
            };
            control.logs.note(&app.name, &instance, &text);
        }
    }
}

/// A release that ends again and again soon after it took over gives its place back to the one before.
pub(super) fn roll_back(control: &Control, app: &App) -> bool {
    let probation = {
        let mut observed = lock(&control.observed);
        let Some(probation) = observed.promoted.get_mut(&app.name) else {
            return false;
        };
        probation.ends += 1;
        *probation
    };
    let over = steady_ms() > probation.since_ms + PROBATION_MS;
    let (Some(before), Some(active)) = (probation.before, app.active) else {
        return false;
    };
    if over || probation.ends < ON_PROBATION {
        return false;
    }
    let found = || -> Result<Option<u64>, StoreError> {
        let Some((deployment, release, _)) = version_of(control, Some(active))? else {
            return Ok(None);
        };
        let kept = control.store.release(&app.name, before)?;
        if deployment.kind == "rollback" || kept.is_none() || before == release.number {
            return Ok(None);
        }
        // At once, where it is still there.
        let standby = canary::standby(control, app);
        if let Some(warm) = standby
            && control.store.under_way(&app.name)?.is_none()
            && canary::switch_back(control, &app.name, active, warm)?.is_some()
        {
            return Ok(Some(release.number));
        }
        let begins = control
            .store
            .redeploy_if(&app.name, active, before, "rollback")?;
        Ok(begins.then_some(release.number))
    };
    match found() {
        Ok(Some(from)) => {
            let text = format!(
                "release {from} ended {} times soon after it took over: release {before} takes its place again",
                probation.ends
            );
            control.logs.note(&app.name, "", &text);
            lock(&control.observed).promoted.remove(&app.name);
            true
        }
        Ok(None) => false,
        Err(error) => {
            tracing::warn!("{error}");
            false
        }
    }
}

/// An instance that is to be replaced for its memory.
struct TooBig {
    instance: String,
    /// Its process.
    key: (String, String),
    why: String,
    leaks: bool,
}

/// Replaces what uses more memory than its owner wants, and what has used nearly all of it for long: what serves by a
/// restart that loses no request, workers by stopping them.
pub(super) fn replace_heavy(control: &Control, loaded: &Loaded, now: u64) {
    let Some((deployment, release, spec)) = &loaded.active else {
        return;
    };
    let app = &loaded.app.name;
    let found = too_big(control, app, deployment.id, spec, now);
    let (serving, workers): (Vec<TooBig>, Vec<TooBig>) = found
        .into_iter()
        .partition(|one| ids::kind(&one.instance) == ids::Kind::Web);
    for one in workers {
        control.logs.note(app, &one.instance, &one.why);
        control.stop_instance(&one.instance, spec.stop_timeout);
        let mut observed = lock(&control.observed);
        if one.leaks {
            observed.leaked.insert(app.clone(), now);
        }
        observed.replaced.insert(one.key, now);
        observed.stopping.insert(one.instance, now);
    }
    // A restart would end a canary.
    if serving.is_empty() || loaded.deploying {
        return;
    }
    let begun = control
        .store
        .redeploy_if(app, deployment.id, release.number, "restart");
    if let Err(error) = &begun {
        tracing::warn!("{error}");
    }
    for one in serving {
        let mut observed = lock(&control.observed);
        // Also where it could not be: it is not tried all the time.
        observed.replaced.insert(one.key, now);
        if !matches!(begun, Ok(true)) {
            continue;
        }
        if one.leaks {
            observed.leaked.insert(app.clone(), now);
        }
        drop(observed);
        control.logs.note(app, &one.instance, &one.why);
    }
}

/// Instances of a deployment that use too much memory for too long.
fn too_big(control: &Control, app: &str, deployment: u64, spec: &AppSpec, now: u64) -> Vec<TooBig> {
    let mut observed = lock(&control.observed);
    let observed = &mut *observed;
    let thawed = observed.thawed.get(app).copied().unwrap_or(0);
    let leaked = observed.leaked.get(app).copied();
    let mut found = Vec::new();
    let mine = observed.instances.values();
    for instance in mine.filter(|i| i.app == app && i.deployment == deployment) {
        let name = &instance.instance;
        let kind = ids::kind(name);
        let caps = match kind {
            ids::Kind::Web => Some(spec.caps),
            ids::Kind::Worker(name) => spec.workers.get(name).map(|worker| worker.caps),
            _ => None,
        };
        let Some(caps) = caps else {
            continue;
        };
        let is_heavy = caps.restart_at.is_some_and(|limit| instance.memory > limit);
        let heavy_since = if is_heavy {
            Some(*observed.heavy.entry(name.clone()).or_insert(now))
        } else {
            observed.heavy.remove(name);
            None
        };
        let memory = Memory {
            used: instance.memory.saturating_sub(instance.reclaimable),
            cap: caps.memory_bytes,
            // What is frozen cannot give any back.
            near_since: observed.near.get(name).map(|since| thawed.max(*since)),
            replaced: leaked,
        };
        let mut verdict = match caps.leak_guard {
            true => memory.judge(now, leak::LONG_MS),
            false => Verdict::Fine,
        };
        // A test does not wait so long.
        if matches!(verdict, Verdict::Near { .. }) && fail::fallible("near its cap").is_err() {
            verdict = memory.judge(now, 0);
        }
        match verdict {
            Verdict::Fine => {
                observed.near.remove(name);
            }
            Verdict::Near { since } => {
                observed.near.insert(name.clone(), since);
            }
            Verdict::Leaks => {}
        }
        let leaks = verdict == Verdict::Leaks;
        let why = if leaks {
            let since = memory.near_since.unwrap_or(now);
            format!(
                "its memory stays near limits.memory ({} of {}, for {}): most likely it leaks, and it is replaced",
                show_size(memory.used),
                show_size(memory.cap),
                show_time(Duration::from_millis(now.saturating_sub(since)))
            )
        } else if heavy_since.is_some_and(|since| now >= since + HEAVY_MS) {
            format!(
                "uses {} of memory, more than limits.restart_at: it is replaced",
                show_size(instance.memory)
            )
        } else {
            continue;
        };
        let key = (app.to_owned(), process(kind).to_owned());
        // One that is as heavy again at once is so by nature: it is not replaced without end. A worker that ran beside
        // the one that was replaced is no such; of what serves, all were replaced.
        let is_successor = |at: &u64| kind == ids::Kind::Web || instance.started_steady >= *at;
        let last = observed.replaced.get(&key);
        let is_new = last.is_some_and(|at| now < at + REPLACE_MS && is_successor(at));
        if is_new || observed.stopping.contains_key(name) {
            continue;
        }
        found.push(TooBig {
            instance: name.clone(),
            key,
            why,
            leaks,
        });
    }
    found
}

/// An app that runs well for long starts with a clean slate.
pub(super) fn forgive(control: &Control, loaded: &Loaded, now: u64) {
    if failures_of(control, &loaded.app) == 0 {
        return;
    }
    let steady = backoff::STEADY.as_millis() as u64;
    let name = &loaded.app.name;
    let Some(active) = &loaded.active else {
        return;
    };
    let well = {
        let observed = lock(&control.observed);
        let active = loaded.version(&observed, active);
        let failed = observed.failed_at.get(name).copied().unwrap_or(0);
        let is_well = |i: &&Instance| {
            is_web(i)
                && now > i.started_steady + steady
                && observed.health_of(&i.instance) == plan::Health::Healthy
                && !observed.stopping.contains_key(&i.instance)
        };
        let mine = observed.instances.values();
        let mine = mine.filter(|i| i.app == *name && i.deployment == active.deployment);
        // All of them: one that is well says nothing of its sick sibling.
        now > failed + steady && mine.filter(is_well).count() >= active.instances as usize
    };
    if well && control.store.clear_failures(name).is_ok() {
        lock(&control.observed).failures.remove(name);
    }
}

/// As [`forgive`], for workers.
pub(super) fn forgive_workers(control: &Control, loaded: &Loaded, now: u64) {
    let Some((deployment, _, spec)) = &loaded.active else {
        return;
    };
    let steady = backoff::STEADY.as_millis() as u64;
    let mut observed = lock(&control.observed);
    let observed = &mut *observed;
    let instances = &observed.instances;
    observed.workers.retain(|(app, name), trouble| {
        if *app != loaded.app.name || trouble.halted || now <= trouble.last_ms + steady {
            return true;
        }
        let wanted = spec.workers.get(name).map_or(0, |worker| worker.instances);
        let is_well = |i: &&Instance| {
            ids::kind(&i.instance) == ids::Kind::Worker(name)
                && now > i.started_steady + steady
                && i.deployment == deployment.id
        };
        let mine = instances.values().filter(|i| i.app == *app);
        mine.filter(is_well).count() < wanted as usize
    });
}
