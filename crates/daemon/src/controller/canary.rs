//! A release on trial: what the gateway counted goes to the judge (`hutong_core::canary`), and what that says is done.
//! The step is in the store; how long it has lasted and what was counted since, the gateway knows.

use hutong_core::canary::{Counts, Look, Verdict, judge};
use hutong_core::plan::Split;
use hutong_core::spec::Strategy;

use super::*;
use crate::store::Canary as Begun;

/// How a deployment takes over. What is no new release is not tried out: it served before.
pub(super) fn strategy_of((deployment, _, spec): &Made) -> Strategy {
    match (deployment.kind.as_str(), spec.strategy) {
        // To the planner a variant is a canary: that nobody judges it is none of its business.
        ("deploy", Strategy::Ab) => Strategy::Canary,
        ("deploy", strategy) => strategy,
        (_, Strategy::Canary | Strategy::Ab | Strategy::BlueGreen) => Strategy::Rolling,
        (_, strategy) => strategy,
    }
}

/// The stored part of a canary that has begun.
pub(super) fn begun(control: &Control, rollout: &VersionOf) -> Result<Option<Begun>, StoreError> {
    match rollout {
        Some(made) if strategy_of(made) == Strategy::Canary => control.store.canary(made.0.id),
        _ => Ok(None),
    }
}

/// Its share of the visitors, in percent.
pub(super) fn share(loaded: &Loaded) -> Option<u32> {
    let (_, _, spec) = loaded.rollout.as_ref()?;
    let canary = spec.canary.as_ref()?;
    Some(canary.share(loaded.begun.as_ref()?.step))
}

/// What the gateway is told of it.
pub(super) fn split(loaded: &Loaded, split: Split) -> Option<wire::Split> {
    let (deployment, _, spec) = loaded.rollout.as_ref()?;
    let canary = spec.canary.as_ref()?;
    (deployment.id == split.deployment).then(|| wire::Split {
        canary: split.deployment,
        share: split.share,
        header: canary.header.clone(),
        cookie: canary.cookie.clone(),
        for_people: canary.variant.is_some(),
    })
}

/// What a release on trial is called.
pub fn called(spec: &AppSpec) -> String {
    let variant = spec.canary.as_ref().and_then(|one| one.variant.as_ref());
    match variant {
        Some(name) => format!("variant {name}"),
        None => "canary".to_owned(),
    }
}

/// What was counted of both releases in the step under way.
pub struct Counted {
    pub elapsed: Duration,
    pub stable: Counts,
    pub canary: Counts,
}

impl Counted {
    pub fn of(observed: &Observed, app: &str, deployment: u64, share: u32) -> Option<Self> {
        let seen = observed.trials.get(app)?;
        let counts = |counts: &wire::Counts| Counts {
            requests: counts.requests,
            errors: counts.errors,
            times: counts.times.clone(),
        };
        // Another step's figures are on their way for a moment.
        ((seen.canary, seen.share) == (deployment, share)).then(|| Counted {
            elapsed: Duration::from_millis(seen.elapsed_ms),
            stable: counts(&seen.stable),
            canary: counts(&seen.tried),
        })
    }

    pub fn look(&self) -> Look<'_> {
        Look {
            elapsed: self.elapsed,
            stable: &self.stable,
            canary: &self.canary,
        }
    }
}

/// Looks at how an app's canary does, and decides. True when it has gone on.
pub(super) fn look(control: &Control, loaded: &Loaded) -> bool {
    let (Some((deployment, release, spec)), Some(begun)) = (&loaded.rollout, &loaded.begun) else {
        return false;
    };
    let Some(canary) = spec.canary.as_ref().filter(|one| one.variant.is_none()) else {
        return false;
    };
    let (id, app) = (deployment.id, &loaded.app.name);
    let share = canary.share(begun.step);
    let counted = {
        let observed = lock(&control.observed);
        let is_over = share >= 100 || observed.rollout_failures.contains_key(&id);
        match Counted::of(&observed, app, id, share) {
            Some(counted) if !is_over => counted,
            _ => return false,
        }
    };
    match judge(canary, &counted.look()) {
        Verdict::Hold(why) => {
            lock(&control.observed).verdicts.insert(id, why);
            false
        }
        Verdict::RollBack(why) => {
            let reason = format!("the canary is rolled back at {share} % of the visitors: {why}");
            roll_back(control, app, id, reason)
        }
        Verdict::Promote(why) => {
            let next = begun.step + 1;
            let decision = format!("{share} → {} % of the visitors: {why}", canary.share(next));
            match control.store.move_canary(id, next, &decision) {
                Ok(moved) => {
                    if moved {
                        let text = format!("canary of release {}: {decision}", release.number);
                        control.logs.note(app, "", &text);
                    }
                    lock(&control.observed).verdicts.remove(&id);
                    moved
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    false
                }
            }
        }
    }
}

/// Rolls a canary back. Written down at once: what makes the judge sure is only in the gateway's hands, and a control
/// plane that is killed behind this must not begin anew. True when it is over.
fn roll_back(control: &Control, app: &str, id: u64, reason: String) -> bool {
    fail::point("roll back");
    let log = last_words(control, app, id);
    let failed = control.store.fail(id, &reason, &log);
    fail::point("rolled back");
    let is_over = failed.is_ok();
    match &failed {
        Ok(true) => {
            let text = format!("deployment {id} failed: {reason}");
            control.logs.note(app, "", &text);
        }
        // Somebody else ended it: it is as that says.
        Ok(false) => {}
        Err(error) => tracing::error!("{error}"),
    }
    let mut observed = lock(&control.observed);
    observed.verdicts.remove(&id);
    if !matches!(failed, Ok(false)) {
        // In this pass it has no visitors any more; where it could not be written down, the next ones try again.
        observed.rollout_failures.insert(id, reason);
    }
    is_over
}

/// When the step of a canary is over, in milliseconds since boot: where nobody asks for the app, nothing else wakes the
/// controller.
pub(super) fn step_ends(control: &Control, loaded: &Loaded, now: u64) -> Option<u64> {
    let (deployment, _, spec) = loaded.rollout.as_ref()?;
    // A variant stays as it is.
    let canary = spec.canary.as_ref().filter(|one| one.variant.is_none())?;
    let share = share(loaded)?;
    let observed = lock(&control.observed);
    let seen = Counted::of(&observed, &loaded.app.name, deployment.id, share)?;
    let left = canary.every.checked_sub(seen.elapsed)?;
    // The gateway says how long it has lasted once a second.
    (share < 100).then(|| now + left.as_millis() as u64 + 1_000)
}

/// Forgets what was said of canaries that are over.
pub(super) fn forget<'a>(control: &Control, all: impl Iterator<Item = &'a Loaded>) {
    let under_way: BTreeSet<u64> = all
        .filter_map(|loaded| loaded.rollout.as_ref())
        .map(|(deployment, _, _)| deployment.id)
        .collect();
    let mut observed = lock(&control.observed);
    observed.verdicts.retain(|id, _| under_way.contains(id));
}

/// Has the release that was kept ready serve again in place of `active`, with a clean slate; none if it is not as the
/// caller saw it.
pub fn switch_back(
    control: &Control,
    app: &str,
    active: u64,
    warm: u64,
) -> Result<Option<Deployment>, StoreError> {
    let back = control.store.switch_back(app, active, warm)?;
    if back.is_some() {
        let mut observed = lock(&control.observed);
        observed.promoted.remove(app);
        observed.failures.remove(app);
        observed.workers.retain(|(of, _), _| of != app);
    }
    Ok(back)
}

/// A canary gets its first visitors.
pub(super) fn begin(control: &Control, loaded: &Loaded, deployment: u64) -> bool {
    let begun = match control.store.begin_canary(deployment) {
        Ok(begun) => begun,
        Err(error) => {
            tracing::error!("{error}");
            return false;
        }
    };
    if let Some((_, release, spec)) = loaded.rollout.as_ref().filter(|_| begun) {
        let share = spec.canary.as_ref().map_or(100, |canary| canary.share(0));
        let (what, number) = (called(spec), release.number);
        let text = format!("{what} of release {number}: it gets {share} % of the visitors");
        control.logs.note(&loaded.app.name, "", &text);
    }
    true
}

/// Until when what serves now is kept ready once the rollout has taken over, in milliseconds since boot.
pub(super) fn keeps_until(loaded: &Loaded) -> Option<u64> {
    let rollout = loaded.rollout.as_ref()?;
    let (_, _, active) = loaded.active.as_ref()?;
    let keeps = strategy_of(rollout) == Strategy::BlueGreen && active.run.has_instances();
    keeps.then(|| steady_ms() + rollout.2.keep.as_millis() as u64)
}

/// The deployment that could serve again at once.
pub fn standby(control: &Control, app: &App) -> Option<u64> {
    let warm = app.warm.filter(|_| app.warm_until_ms > steady_ms())?;
    let observed = lock(&control.observed);
    let can_serve = |i: &&Instance| {
        i.deployment == warm
            && is_web(i)
            && !i.ending
            && observed.health_of(&i.instance) == plan::Health::Healthy
            && !observed.stopping.contains_key(&i.instance)
            && !observed.draining.contains_key(&i.instance)
    };
    let mut mine = observed.instances.values();
    mine.find(can_serve).map(|_| warm)
}
