//! What is done for apps that run, beside what the planner says: quarantine, giving a place back, replacing what grows,
//! forgiving what runs well.

use super::*;

/// A release that took over a shorter time ago is on probation, and may end so often.
const PROBATION_MS: u64 = 5 * 60_000;
const ON_PROBATION: u32 = 3;
/// How long an instance may use more memory than its owner wants.
const HEAVY_MS: u64 = 10_000;
/// How often an app's instances are replaced for that.
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

/// Replaces what uses more memory than its owner wants: what serves by a restart that loses no request, workers by
/// stopping them.
pub(super) fn replace_heavy(control: &Control, loaded: &Loaded, now: u64) {
    let Some((deployment, release, spec)) = &loaded.active else {
        return;
    };
    let mut heavy = Vec::new();
    {
        let mut observed = lock(&control.observed);
        let observed = &mut *observed;
        // One that is as heavy again at once is so by nature: it is not replaced without end.
        let last = observed.replaced.get(&loaded.app.name);
        if last.is_some_and(|at| now < at + REPLACE_MS) {
            return;
        }
        let mine = observed
            .instances
            .values()
            .filter(|i| i.app == loaded.app.name);
        for instance in mine.filter(|i| i.deployment == deployment.id) {
            let caps = match ids::kind(&instance.instance) {
                ids::Kind::Web => Some(spec.caps),
                ids::Kind::Worker(name) => spec.workers.get(name).map(|worker| worker.caps),
                _ => None,
            };
            let limit = caps.and_then(|caps| caps.restart_at);
            if limit.is_none_or(|limit| instance.memory <= limit) {
                observed.heavy.remove(&instance.instance);
                continue;
            }
            let name = instance.instance.clone();
            let since = *observed.heavy.entry(name.clone()).or_insert(now);
            if now >= since + HEAVY_MS && !observed.stopping.contains_key(&name) {
                heavy.push((name, instance.memory));
            }
        }
    }
    let mut restarts = false;
    for (instance, memory) in heavy {
        let text = format!(
            "uses {} of memory, more than limits.restart_at: it is replaced",
            hutong_core::units::show_size(memory)
        );
        control.logs.note(&loaded.app.name, &instance, &text);
        lock(&control.observed).heavy.remove(&instance);
        if ids::kind(&instance) == ids::Kind::Web {
            restarts = true;
        } else {
            control.stop_instance(&instance, spec.stop_timeout);
            let mut observed = lock(&control.observed);
            observed.stopping.insert(instance, now);
            observed.replaced.insert(loaded.app.name.clone(), now);
        }
    }
    if !restarts {
        return;
    }
    let name = &loaded.app.name;
    let begun = control
        .store
        .redeploy_if(name, deployment.id, release.number, "restart");
    match begun {
        Ok(false) => {}
        Ok(true) => {
            lock(&control.observed).replaced.insert(name.clone(), now);
        }
        Err(error) => tracing::warn!("{error}"),
    }
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
