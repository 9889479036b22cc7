//! What is cleared away: what does not stop, what was removed, releases and trees that nobody needs.

use super::*;

/// An app's data outlives it by a week, unless purged: counted while the server runs, because a clock
/// that is set wrong must not delete anything.
const KEEP_DATA_MS: u64 = 7 * 86_400_000;
/// Trees that no release uses are kept so long: one may be about to be deployed.
const KEEP_TREES_MS: u64 = 3_600_000;
/// Behind the stop time-out the shim itself is stuck.
const STUCK_MS: u64 = 5_000;

/// Kills what does not stop, forgets what is over. True when something was forgotten.
pub(super) fn tidy(control: &Control, loaded: &Loaded, now: u64) -> bool {
    let name = &loaded.app.name;
    let (stuck, left): (Vec<String>, usize) = {
        let observed = lock(&control.observed);
        let timeout = loaded
            .routing_spec()
            .map_or(10_000, |s| s.stop_timeout.as_millis() as u64);
        let mine = || observed.instances.values().filter(|i| i.app == *name);
        let stuck = mine()
            .filter(|i| {
                let since = observed.stopping.get(&i.instance);
                since.is_some_and(|since| since + timeout + STUCK_MS < now)
            })
            .map(|i| i.instance.clone())
            .collect();
        (stuck, mine().count())
    };
    for instance in stuck {
        let _ = control.kill_instance(&instance);
    }
    if loaded.app.goal == Goal::Removed {
        let expired = loaded.app.purge || loaded.app.removed_ms > KEEP_DATA_MS;
        return left == 0 && expired && forget(control, name);
    }
    // Other rollouts are over soon; a canary may be under way for days.
    let is_tried = loaded.begun.is_some();
    if loaded.rollout.is_none() || is_tried {
        forgive(control, loaded, now);
        if loaded.app.goal == Goal::Running && (!loaded.deploying || is_tried) {
            replace_heavy(control, loaded, now);
        }
        forgive_workers(control, loaded, now);
    }
    if loaded.rollout.is_none() && has_changed(control, loaded) {
        retain(control, loaded);
    }
    false
}

fn forget(control: &Control, app: &str) -> bool {
    // Deployed again since this pass began?
    let removed = control
        .store
        .app(app)
        .is_ok_and(|now| now.is_some_and(|now| now.goal == Goal::Removed));
    if !removed {
        return true;
    }
    let dropped = control.warden.drop_data(app);
    if let Err(DriverError::Later(_)) = dropped {
        return false;
    }
    if let Err(error) = dropped {
        tracing::warn!("cannot delete the data of {app}: {error}");
        return false;
    }
    control.logs.forget(app);
    crate::git::forget(control, app);
    crate::images::forget(control, app);
    if let Err(error) = control.store.forget_app(app) {
        tracing::warn!("{error}");
        return false;
    }
    if control.settings.docker.is_some()
        && let Ok(apps) = control.store.apps()
    {
        // Its network goes with it; what stays is cleared away at the next start.
        let _ = control
            .docker
            .sweep(apps.into_iter().map(|app| app.name).collect());
    }
    let mut observed = lock(&control.observed);
    observed.doing.remove(app);
    observed.warnings.remove(app);
    observed.serving.remove(app);
    observed.awake.remove(app);
    observed.idle.remove(app);
    observed.retained.remove(app);
    observed.workers.retain(|(of, _), _| of != app);
    observed.promoted.remove(app);
    observed.replaced.retain(|(of, _), _| of != app);
    observed.leaked.remove(app);
    observed.thawed.remove(app);
    observed.hours.remove(app);
    observed.scaling.remove(app);
    observed.trials.remove(app);
    drop(observed);
    drop_unused_trees(control);
    drop_unused_images(control);
    true
}

/// Whether there may be releases to forget: something was deployed, or what ran of an old one has ended.
fn has_changed(control: &Control, loaded: &Loaded) -> bool {
    let mut observed = lock(&control.observed);
    let mine = observed.instances.values();
    let mine = mine.filter(|instance| instance.app == loaded.app.name);
    let mut running: Vec<u64> = mine.map(|instance| instance.deployment).collect();
    running.sort_unstable();
    running.dedup();
    let now = (loaded.app.active, loaded.app.next_release, running);
    let name = loaded.app.name.clone();
    if loaded.deploying {
        observed.retained.remove(&name);
        return false;
    }
    observed.retained.insert(name, now.clone()) != Some(now)
}

fn retain(control: &Control, loaded: &Loaded) {
    let name = &loaded.app.name;
    let Ok(releases) = control.store.releases(name) else {
        return;
    };
    let active = loaded.active.as_ref().map(|(_, release, _)| release.number);
    let under_way = control.store.under_way(name).ok().flatten();
    let running: Vec<u64> = {
        let observed = lock(&control.observed);
        let mine = observed.instances.values().filter(|i| i.app == *name);
        mine.map(|instance| instance.deployment).collect()
    };
    let running: Vec<u64> = running
        .into_iter()
        .filter_map(|id| Some(control.store.deployment(id).ok()??.release))
        .collect();
    let in_use = |number| {
        active == Some(number)
            || running.contains(&number)
            || under_way.as_ref().is_some_and(|d| d.release == number)
    };
    let list: Vec<retention::Kept> = releases
        .iter()
        .map(|release| retention::Kept {
            id: release.number,
            in_use: in_use(release.number),
            served: release.served,
        })
        .collect();
    let gone = retention::superfluous(&list, control.settings.keep_releases);
    if gone.is_empty() {
        return;
    }
    for number in &gone {
        if control.store.forget_release(name, *number).is_err() {
            // A full disk, most likely: once more in the next pass.
            lock(&control.observed).retained.remove(name);
        }
    }
    let kept: Vec<&Release> = releases
        .iter()
        .filter(|release| !gone.contains(&release.number))
        .collect();
    for release in releases.iter().filter(|r| gone.contains(&r.number)) {
        if let Some(key) = &release.built
            && !kept.iter().any(|k| k.built.as_ref() == Some(key))
        {
            let _ = control.warden.drop_built(name, key);
        }
    }
    drop_unused_trees(control);
    drop_unused_images(control);
}

/// Images that were built here and that no release uses. While something is built there may be one that is not written
/// down yet: then they stay until the next time.
fn drop_unused_images(control: &Control) {
    if control.settings.docker.is_none() {
        return;
    }
    let nothing_builds = control.store.building().is_ok_and(|list| list.is_empty());
    if let (true, Ok(keep)) = (nothing_builds, control.store.all_built()) {
        let _ = control.docker.sweep_images(keep);
    }
}

/// Trees that no release uses; recent ones may be about to be deployed. And images.
fn drop_unused_trees(control: &Control) {
    if let Err(error) = crate::images::sweep(control) {
        tracing::warn!("images that nobody needs stay for now: {error}");
    }
    let Ok(used) = control.store.digests() else {
        return;
    };
    let trees = control.data_dir.join("trees");
    let now = steady_ms();
    for entry in std::fs::read_dir(&trees).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let asked = lock(&control.trees_asked).get(&name).copied();
        let old = asked.unwrap_or(control.began_ms) + KEEP_TREES_MS < now;
        if hutong_core::name::is_digest(&name)
            && !used.contains(&name)
            && old
            && let Some(gone) = crate::unpack::take_away(&trees, &name)
        {
            let _ = std::fs::remove_dir_all(gone);
            lock(&control.trees_asked).remove(&name);
        }
    }
}
