//! Releases on trial: how they do, and the owner's word in place of the judge's. The way back to a release that is kept
//! ready.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use hutong_api::{Canary, CanaryCounts, Deployment, Problem, Standby};
use hutong_core::canary::{Counts, MAIN, figures};
use hutong_core::spec::AppSpec;
use hutong_runtime::processes::steady_ms;

use super::deploy::to_wire;
use super::{ApiError, Result, apps};
use crate::controller::{Counted, Made, called};
use crate::store::{self, App};
use crate::{Control, controller, lock};

/// How long a caller waits for the gateway.
const PATIENCE: Duration = Duration::from_secs(3);

/// A canary under way that has visitors, with its step.
pub fn under_way(control: &Control, app: &str) -> Result<Option<(Made, store::Canary)>> {
    let Some(deployment) = control.store.under_way(app)? else {
        return Ok(None);
    };
    let Some(begun) = control.store.canary(deployment.id)? else {
        return Ok(None);
    };
    let made = controller::version_of(control, Some(deployment.id))?;
    Ok(made.map(|made| (made, begun)))
}

/// The variant that a deployment is, and its share in percent, while it has that.
pub fn variant(control: &Control, deployment: &store::Deployment) -> Option<(String, u32)> {
    if deployment.state != "rolling" {
        return None;
    }
    let begun = control.store.canary(deployment.id).ok()??;
    let (_, _, spec) = controller::version_of(control, Some(deployment.id)).ok()??;
    let tried = spec.canary.as_ref()?;
    let (name, share) = (tried.variant.clone()?, tried.share(begun.step));
    let observed = lock(&control.observed);
    let counted = Counted::of(&observed, &deployment.app, deployment.id, share);
    (share < 100 && counted.is_some()).then_some((name, share))
}

/// How a variant has done against the release that serves, in a line; nothing of a canary, whose judge has said it.
fn report(control: &Control, deployment: &store::Deployment, spec: &AppSpec, step: u32) -> String {
    let tried = spec.canary.as_ref().filter(|one| one.variant.is_some());
    let Some(tried) = tried else {
        return String::new();
    };
    let observed = lock(&control.observed);
    let share = tried.share(step);
    let counted = Counted::of(&observed, &deployment.app, deployment.id, share);
    counted.map_or_else(String::new, |counted| {
        format!("; {}", figures(&counted.look()))
    })
}

#[derive(serde::Deserialize)]
pub struct Which {
    /// The variant that is to serve; nothing is done if that is not the one under test.
    #[serde(default)]
    variant: Option<String>,
}

/// Refuses another variant than the one under test.
fn check_variant(app: &str, wanted: &str, spec: &AppSpec) -> Result<()> {
    let tested = spec.canary.as_ref().and_then(|one| one.variant.as_deref());
    if tested == Some(wanted) {
        return Ok(());
    }
    if wanted == MAIN {
        return Err(
            ApiError::conflict(format!("{MAIN} is the release that serves already"))
                .hint(format!("`hutong abort {app}` has it serve everybody again")),
        );
    }
    let error = ApiError::conflict(format!("{app} has no variant {wanted} under test"));
    Err(match tested {
        Some(name) => error.hint(format!("the one under test is {name}")),
        None => error.hint(format!("it is a canary: `hutong promote {app}`")),
    })
}

/// Has a canary or a variant take over now, whatever it has shown so far.
#[utoipa::path(post, path = "/v1/apps/{app}/promote", params(("variant" = Option<String>, Query)), responses((status = 200, body = Deployment), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn promote(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Query(which): Query<Which>,
) -> Result<Json<Deployment>> {
    apps::find_free(&control, &name)?;
    let Some(((deployment, release, spec), begun)) = under_way(&control, &name)? else {
        return Err(
            ApiError::conflict(format!("no release of {name} is on trial"))
                .hint(format!("`hutong status {name}` shows what it does")),
        );
    };
    if let Some(wanted) = &which.variant {
        check_variant(&name, wanted, &spec)?;
    }
    let canary = spec.canary.as_ref();
    let last = canary.map_or(0, |canary| canary.steps.len().saturating_sub(1)) as u32;
    let share = canary.map_or(100, |canary| canary.share(begun.step));
    let report = report(&control, &deployment, &spec, begun.step);
    let decision = format!("{share} → 100 % of the visitors: its owner says so{report}");
    if control.store.move_canary(deployment.id, last, &decision)? {
        let text = format!(
            "{} of release {}: {decision}",
            called(&spec),
            release.number
        );
        control.logs.note(&name, "", &text);
    }
    control.wake.notify_one();
    Ok(Json(to_wire(&deployment)))
}

/// Ends the deployment under way, a canary or not: what served before serves on.
#[utoipa::path(post, path = "/v1/apps/{app}/abort", responses((status = 200, body = Deployment), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn abort(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Deployment>> {
    apps::find_free(&control, &name)?;
    let Some(deployment) = control.store.under_way(&name)? else {
        return Err(ApiError::conflict(format!(
            "no deployment of {name} is under way"
        )));
    };
    // What cannot be read can be ended all the same.
    let report = match under_way(&control, &name).ok().flatten() {
        Some(((tried, _, spec), begun)) if tried.id == deployment.id => {
            report(&control, &deployment, &spec, begun.step)
        }
        _ => String::new(),
    };
    if !give_up(
        &control,
        &deployment,
        &format!("its owner aborted it{report}"),
    )? {
        return Err(too_late(&control, &deployment)?);
    }
    until_served(&control).await;
    let ended = control.store.deployment(deployment.id)?;
    Ok(Json(to_wire(&ended.unwrap_or(deployment))))
}

/// Why a deployment that was under way a moment ago cannot be ended any more.
fn too_late(control: &Control, deployment: &store::Deployment) -> Result<ApiError> {
    let now = control.store.deployment(deployment.id)?;
    let name = &deployment.app;
    let error = match now.is_some_and(|now| now.state == "done") {
        true => ApiError::conflict("it has just taken over").hint(format!(
            "`hutong rollback {name}` has the release before serve again"
        )),
        false => ApiError::conflict("it has just ended"),
    };
    Ok(error)
}

/// Ends a deployment under way for a reason that is no failure of its own; false if it was over before.
pub fn give_up(control: &Control, deployment: &store::Deployment, why: &str) -> Result<bool> {
    if !control.store.fail(deployment.id, why, &[])? {
        return Ok(false);
    }
    let (app, id) = (&deployment.app, deployment.id);
    let text = format!("deployment {id} (release {}): {why}", deployment.release);
    control.logs.note(app, "", &text);
    let mut observed = lock(&control.observed);
    observed.rollout_failures.remove(&id);
    observed.verdicts.remove(&id);
    drop(observed);
    control.wake.notify_one();
    Ok(true)
}

/// Has the release that was kept ready serve again, if it is `release` and still there: none if not.
pub async fn switch_back(
    control: &Control,
    app: &App,
    release: u64,
) -> Result<Option<store::Deployment>> {
    let (Some(warm), Some(active)) = (controller::standby(control, app), app.active) else {
        return Ok(None);
    };
    let before = control.store.deployment(warm)?;
    if before.is_none_or(|before| before.release != release) {
        return Ok(None);
    }
    let Some(back) = controller::switch_back(control, &app.name, active, warm)? else {
        return Ok(None);
    };
    let text = format!("release {release} serves again: it was kept ready");
    control.logs.note(&app.name, "", &text);
    until_served(control).await;
    Ok(Some(back))
}

/// Waits until the gateway serves what was just declared; not for long, if there is no gateway.
pub async fn until_served(control: &Control) {
    apps::next_pass(control).await;
    let is_served = || {
        let observed = lock(&control.observed);
        observed.gateway_version >= observed.published_version
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_served() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The app's last deployment, where that was or is a canary.
pub fn describe(control: &Control, app: &App) -> Result<Option<Canary>> {
    let Some(deployment) = control.store.newest(&app.name)? else {
        return Ok(None);
    };
    let Some(begun) = control.store.canary(deployment.id)? else {
        return Ok(None);
    };
    let release = control.store.release(&app.name, deployment.release)?;
    let spec = match release {
        Some(release) => control.specs.of(&release)?,
        None => return Ok(None),
    };
    let Some(canary) = &spec.canary else {
        return Ok(None);
    };
    let (id, share) = (deployment.id, canary.share(begun.step));
    let observed = lock(&control.observed);
    let counted = Counted::of(&observed, &app.name, id, share).filter(|_| !deployment.is_over());
    let said = Some(begun.decision).filter(|decision| !decision.is_empty());
    let waits = observed.verdicts.get(&id).cloned();
    drop(observed);
    Ok(Some(Canary {
        variant: canary.variant.clone(),
        deployment: id,
        release: deployment.release,
        state: to_wire(&deployment).state,
        step: begun.step + 1,
        steps: canary.steps.clone(),
        share,
        every_ms: canary.every.as_millis() as u64,
        elapsed_ms: counted.as_ref().map(|one| one.elapsed.as_millis() as u64),
        stable: counted.as_ref().map(|one| counts(&one.stable)),
        canary: counted.as_ref().map(|one| counts(&one.canary)),
        waits,
        decision: deployment.reason.or(said),
    }))
}

fn counts(counts: &Counts) -> CanaryCounts {
    CanaryCounts {
        requests: counts.requests,
        errors: counts.errors,
        p50_us: counts.within_us(50),
        p95_us: counts.within_us(95),
        p99_us: counts.within_us(99),
    }
}

/// The release that is kept ready to serve again at once.
pub fn standby(control: &Control, app: &App) -> Result<Option<Standby>> {
    let Some(warm) = controller::standby(control, app) else {
        return Ok(None);
    };
    let found = control.store.deployment(warm)?;
    Ok(found.map(|deployment| Standby {
        release: deployment.release,
        left_ms: app.warm_until_ms.saturating_sub(steady_ms()),
    }))
}
