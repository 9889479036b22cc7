//! Apps: list, show, start, stop, restart, scale, environment, remove.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use hutong_api::{
    App, AppState, Deployment, EnvChange, EnvEntry, Instance, Problem, ScaleRequest, Scaling,
};
use hutong_core::leak;
use hutong_core::plan::{Health, Serve};
use hutong_core::spec::{self, AppSpec, Run, Upstream};
use hutong_core::units::show_time;
use hutong_runtime::processes::steady_ms;

use super::deploy::{to_wire, wire_deployment};
use super::{ApiError, Result, canary, runs};
use crate::launch::process;
use crate::observed::Observed;
use crate::store::{self, Goal};
use crate::{Control, controller, ids, images, lock, memory, publish};

/// The app's row, or 404; removed ones only where asked for.
pub fn find(control: &Control, name: &str) -> Result<store::App> {
    known(control, name)
}

/// The same, for what changes an app or enters it: one in quarantine is left as it is.
pub fn find_free(control: &Control, name: &str) -> Result<store::App> {
    let app = known(control, name)?;
    if app.isolated {
        return Err(ApiError::conflict(format!("{name} is isolated"))
            .hint(format!("hutong release {name}")));
    }
    if let Some(id) = app.restoring {
        let text = format!("snapshot {id} of {name} is being put back");
        return Err(ApiError::conflict(text).hint("wait until that is done, and try again"));
    }
    Ok(app)
}

fn known(control: &Control, name: &str) -> Result<store::App> {
    let app = control.store.app(name)?;
    app.filter(|app| app.goal != Goal::Removed).ok_or_else(|| {
        ApiError::not_found(format!("there is no app {name}")).hint("`hutong apps` lists them")
    })
}

/// The specification that counts now.
pub fn current_spec(control: &Control, app: &store::App) -> Result<Option<(u64, AppSpec)>> {
    let active = match app.active {
        Some(id) => control.store.deployment(id)?,
        None => None,
    };
    let deployment = match active {
        Some(active) => Some(active),
        None => control.store.under_way(&app.name)?,
    };
    let number = match deployment {
        Some(deployment) => Some(deployment.release),
        None => control.store.releases(&app.name)?.first().map(|r| r.number),
    };
    let Some(number) = number else {
        return Ok(None);
    };
    let Some(release) = control.store.release(&app.name, number)? else {
        return Ok(None);
    };
    Ok(Some((number, release.parse()?)))
}

/// Every app.
#[utoipa::path(get, path = "/v1/apps", responses((status = 200, body = Vec<App>)))]
pub async fn list(State(control): State<Arc<Control>>) -> Result<Json<Vec<App>>> {
    let mut apps = Vec::new();
    for app in control.store.apps()? {
        if app.goal != Goal::Removed {
            apps.push(describe(&control, &app)?);
        }
    }
    Ok(Json(apps))
}

/// One app.
#[utoipa::path(get, path = "/v1/apps/{app}", responses((status = 200, body = App), (status = 404, body = Problem)))]
pub async fn show(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<App>> {
    let app = find(&control, &name)?;
    Ok(Json(describe(&control, &app)?))
}

fn describe(control: &Control, app: &store::App) -> Result<App> {
    let current = current_spec(control, app)?;
    let active = match app.active {
        Some(id) => control.store.deployment(id)?,
        None => None,
    };
    let deploying = control.store.under_way(&app.name)?;
    let instances = instances(control, &app.name)?;
    let observed = lock(&control.observed);
    let serve = observed.serving.get(&app.name).cloned();
    let mut warnings = observed
        .warnings
        .get(&app.name)
        .cloned()
        .unwrap_or_default();
    let image = current.as_ref().and_then(|(_, spec)| spec.image.as_ref());
    if image.is_some_and(|image| image.local().is_some()) {
        warnings.extend(lock(&control.images.unheard).clone());
    }
    let run = current.as_ref().map(|(_, spec)| &spec.run);
    let spec = current.as_ref().map(|(_, spec)| spec);
    let default = control.settings.app_disk;
    let over = spec.and_then(|spec| observed.disk.over(&app.name, spec, default));
    let disk = spec.and_then(|spec| {
        let used = observed.disk.apps.get(&app.name)?;
        Some(hutong_api::Disk {
            data_bytes: used.data,
            data_limit_bytes: used
                .bound
                .or(spec.data.then(|| spec.disk.unwrap_or(default))),
            is_enforced: used.bound.is_some(),
            releases_bytes: used.built,
            caches_bytes: used.caches,
            logs_bytes: 0,
        })
    });
    let silent = match run {
        Some(Run::Upstream(list)) => all_silent(&observed, &app.name, list),
        _ => None,
    };
    let leaked = observed.leaked.get(&app.name).copied();
    drop(observed);
    let disk = disk.map(|disk| hutong_api::Disk {
        logs_bytes: control.logs.size_of(&app.name),
        ..disk
    });
    let state = match (app.goal, &serve) {
        _ if app.isolated => AppState::Isolated,
        (Goal::Stopped, _) => AppState::Stopped,
        (Goal::Removed, _) => AppState::Removed,
        (_, Some(Serve::Static)) if silent.is_some() => AppState::Failing,
        (_, Some(Serve::Targets | Serve::Static)) => AppState::Running,
        (_, Some(Serve::Down { .. })) => AppState::Failing,
        (_, Some(Serve::Asleep)) => AppState::Asleep,
        (_, Some(Serve::Closed { .. })) => AppState::Down,
        // Nothing serves and nothing is on its way.
        _ if app.active.is_none() && deploying.is_none() => AppState::Failing,
        (_, Some(Serve::Hold) | None) => AppState::Starting,
    };
    let waits = control.waits_for(&app.name);
    let waits = waits.map(|why| format!("waits for memory: {why}"));
    let message = match state {
        _ if app.restoring.is_some() => {
            let id = app.restoring.unwrap_or_default();
            Some(format!("snapshot {id} of its /data is being put back"))
        }
        _ if waits.is_some() => waits,
        AppState::Failing => silent
            .or(over)
            .or_else(|| app.last_failure.clone())
            .or_else(|| controller::describe(serve.as_ref())),
        AppState::Down => controller::describe(serve.as_ref()),
        _ => None,
    };
    let spec = current.as_ref().map(|(_, spec)| spec);
    let run = spec.map(|spec| &spec.run);
    let has_instances = run.is_none_or(Run::has_instances);
    if let Some(source) = control.store.source(&app.name)?
        && source.state == "failed"
    {
        warnings.push(format!("the last webhook failed: {}", source.detail));
    }
    let processes = spec.map_or_else(
        || Ok(Vec::new()),
        |spec| runs::processes(control, spec, app),
    )?;
    let troubled = processes.iter().find(|process| process.failures > 1);
    let message = message.or_else(|| {
        let troubled = troubled.filter(|_| app.goal == Goal::Running)?;
        let problem = troubled.problem.as_deref().unwrap_or_default();
        Some(format!("worker {}: {problem}", troubled.name))
    });
    let state = match (state, run, troubled) {
        (AppState::Running, Some(Run::Background), Some(_)) => AppState::Failing,
        _ => state,
    };
    let message = message.or_else(|| {
        let age = steady_ms().saturating_sub(leaked.filter(|_| state == AppState::Running)?);
        let age = (age < leak::PAUSE_MS).then(|| show_time(Duration::from_millis(age)))?;
        Some(format!(
            "{age} ago an instance was replaced whose memory stayed near limits.memory: most likely it leaks"
        ))
    });
    Ok(App {
        disk,
        processes,
        name: app.name.clone(),
        state,
        domains: spec.map_or_else(Vec::new, |spec| {
            spec.domains.iter().map(ToString::to_string).collect()
        }),
        release: active.map(|deployment| deployment.release),
        memory_bytes: instances.iter().map(|i| i.memory_bytes).sum(),
        memory_limit_bytes: spec
            .filter(|_| has_instances)
            .map_or(0, |s| s.caps.memory_bytes),
        instances,
        kind: match run {
            Some(Run::Static { .. }) => "static",
            Some(Run::Upstream(_)) => "upstream",
            Some(Run::Background) => "background",
            Some(Run::Command(_)) | None => "command",
        }
        .into(),
        wanted_instances: match spec {
            Some(spec) if has_instances => {
                controller::wanted_instances(&lock(&control.observed), app, spec)
            }
            _ => 0,
        },
        scaling: spec.and_then(|spec| scaling(control, app, spec)),
        deploying: deploying.map(|deployment| wire_deployment(control, &deployment)),
        watch: spec
            .filter(|_| app.goal == Goal::Running && !app.isolated)
            .and_then(|spec| images::watch::describe(control, &app.name, spec)),
        canary: canary::describe(control, app)?,
        standby: canary::standby(control, app)?,
        restoring: app.restoring,
        restore_problem: app.restore_problem.clone(),
        message,
        warnings,
        applied_from: app.applied_from.clone(),
    })
}

/// What the number of its instances goes by, where that follows what there is to do.
fn scaling(control: &Control, app: &store::App, spec: &AppSpec) -> Option<Scaling> {
    let scale = spec.scale?;
    let observed = lock(&control.observed);
    let seen = observed.scaling.get(&app.name).map(|scaling| scaling.seen);
    Some(Scaling {
        min: scale.min,
        max: scale.max,
        fixed: app.scale.is_some(),
        cpu_percent: seen.and_then(|seen| seen.cpu),
        cpu_aim_percent: scale.cpu,
        requests: seen.and_then(|seen| seen.requests),
        requests_aim: scale.requests,
    })
}

/// Why none of the servers that an app names can serve; `None` if one can.
fn all_silent(observed: &Observed, app: &str, list: &[Upstream]) -> Option<String> {
    let mut why = None;
    for one in list {
        match observed.health_of(&publish::name_of(app, one)) {
            Health::Healthy => return None,
            Health::Starting(detail) | Health::Failing(detail) => why = Some(detail),
        }
    }
    why.map(|why| format!("no server answers: {why}"))
}

fn instances(control: &Control, app: &str) -> Result<Vec<Instance>> {
    let (list, health, stopping, draining) = {
        let observed = lock(&control.observed);
        let mine: Vec<_> = observed
            .instances
            .values()
            .filter(|i| i.app == app)
            .cloned()
            .collect();
        let health: Vec<_> = mine
            .iter()
            .map(|i| observed.health_of(&i.instance))
            .collect();
        let stopping: Vec<_> = mine
            .iter()
            .map(|i| observed.stopping.contains_key(&i.instance))
            .collect();
        let draining: Vec<_> = mine
            .iter()
            .map(|i| observed.draining.contains_key(&i.instance))
            .collect();
        (mine, health, stopping, draining)
    };
    let mut all = Vec::new();
    for (index, instance) in list.into_iter().enumerate() {
        let kind = ids::kind(&instance.instance);
        let serves = kind == ids::Kind::Web;
        let (state, detail) = match (&health[index], stopping[index], draining[index]) {
            (_, true, _) => ("stopping", None),
            _ if !serves => ("running", None),
            (_, _, true) => ("draining", None),
            (Health::Healthy, ..) => ("healthy", None),
            (Health::Starting(detail), ..) => ("starting", Some(detail.clone())),
            (Health::Failing(detail), ..) => ("failing", Some(detail.clone())),
        };
        let deployment = control.store.deployment(instance.deployment)?;
        all.push(Instance {
            deployment: instance.deployment,
            release: deployment.map(|d| d.release),
            state: state.into(),
            started_at: instance.started_at,
            memory_bytes: instance.memory,
            cpu_usec: instance.cpu_usec,
            detail,
            process: process(kind).to_owned(),
            id: instance.instance,
        });
    }
    all.sort_by_key(|instance| instance.started_at);
    Ok(all)
}

/// Starts a stopped app, or one that gave up.
#[utoipa::path(post, path = "/v1/apps/{app}/start", responses((status = 200, body = App)))]
pub async fn start(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<App>> {
    let app = find_free(&control, &name)?;
    if app.active.is_none() {
        return Err(
            ApiError::conflict(format!("{name} has no release that ever got healthy"))
                .hint("deploy one"),
        );
    }
    control.store.set_goal(&name, Goal::Running, false)?;
    lock(&control.observed)
        .workers
        .retain(|(of, _), _| *of != name);
    // Whoever says so wants it up.
    lock(&control.observed).wake(&name);
    next_pass(&control).await;
    show(State(control), Path(name)).await
}

/// Stops an app; its data, releases and domains stay.
#[utoipa::path(post, path = "/v1/apps/{app}/stop", responses((status = 200, body = App)))]
pub async fn stop(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<App>> {
    find_free(&control, &name)?;
    control.store.set_goal(&name, Goal::Stopped, false)?;
    next_pass(&control).await;
    show(State(control), Path(name)).await
}

/// Replaces every instance, as a deployment of the same release.
#[utoipa::path(post, path = "/v1/apps/{app}/restart", responses((status = 200, body = Deployment)))]
pub async fn restart(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Deployment>> {
    let app = find_free(&control, &name)?;
    redeploy_current(&control, &app, "restart").map(Json)
}

/// The active release once more; for `restart` and changed variables.
pub fn redeploy_current(control: &Control, app: &store::App, kind: &str) -> Result<Deployment> {
    let active = match app.active {
        Some(id) => control.store.deployment(id)?,
        None => None,
    };
    let release = active.ok_or_else(|| {
        ApiError::conflict(format!("{} has no release that ever got healthy", app.name))
            .hint("deploy one")
    })?;
    if let Some(other) = control.store.under_way(&app.name)? {
        return Err(ApiError::conflict(format!(
            "deployment {} of {} is under way; this would undo it",
            other.id, app.name
        ))
        .hint("wait until it is over, or end it with `hutong abort`, and try again"));
    }
    let deployment = control
        .store
        .redeploy(&app.name, release.release, kind, "rolling")?;
    control.wake.notify_one();
    Ok(to_wire(&deployment))
}

/// How many instances run, until the next deploy.
#[utoipa::path(post, path = "/v1/apps/{app}/scale", request_body = ScaleRequest, responses((status = 200, body = App), (status = 422, body = Problem)))]
pub async fn scale(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Json(request): Json<ScaleRequest>,
) -> Result<Json<App>> {
    let app = find_free(&control, &name)?;
    if !(1..=64).contains(&request.instances) {
        return Err(ApiError::bad("an app has 1 to 64 instances").hint("`hutong stop` stops it"));
    }
    if let Some((_, spec)) = current_spec(&control, &app)? {
        if !spec.run.has_instances() {
            return Err(ApiError::bad("only an app with a `command` has instances"));
        }
        let beside: u32 = spec.workers.values().map(|worker| worker.instances).sum();
        if spec.image.is_some() && request.instances + beside > spec::MAX_CONTAINERS {
            return Err(ApiError::bad(format!(
                "an app from an image has at most {} instances, workers among them",
                spec::MAX_CONTAINERS
            )));
        }
        if spec.data && request.instances > 1 && spec.most_instances() == 1 {
            return Err(ApiError::bad(
                "its /data has a single writer, so it stays at one instance",
            )
            .hint("name a strategy and `instances` in hutong.toml if several may share /data"));
        }
    }
    let current = current_spec(&control, &app)?;
    if let Some((_, spec)) = current.filter(|_| app.goal == Goal::Running) {
        memory::check_scale(&control, &name, &spec, request.instances)
            .map_err(ApiError::no_memory)?;
    }
    control.store.scale(&name, request.instances)?;
    next_pass(&control).await;
    show(State(control), Path(name)).await
}

/// The variables' names; never their values.
#[utoipa::path(get, path = "/v1/apps/{app}/env", responses((status = 200, body = Vec<EnvEntry>)))]
pub async fn env(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<EnvEntry>>> {
    let app = find(&control, &name)?;
    let mut entries: Vec<EnvEntry> = control
        .store
        .env_keys(&name)?
        .into_iter()
        .map(|(key, updated)| EnvEntry {
            key,
            source: "secret".into(),
            updated_at: Some(updated),
        })
        .collect();
    if let Some((_, spec)) = current_spec(&control, &app)? {
        for key in spec.env.into_keys() {
            if !entries.iter().any(|entry| entry.key == key) {
                entries.push(EnvEntry {
                    key,
                    source: "file".into(),
                    updated_at: None,
                });
            }
        }
    }
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(Json(entries))
}

/// Sets and unsets variables; a running app gets them by a deployment of the same release.
#[utoipa::path(post, path = "/v1/apps/{app}/env", request_body = EnvChange, responses((status = 200, body = Option<Deployment>), (status = 422, body = Problem)))]
pub async fn change_env(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Json(change): Json<EnvChange>,
) -> Result<Json<Option<Deployment>>> {
    let app = find_free(&control, &name)?;
    for (key, value) in &change.set {
        spec::check_env(key, value).map_err(ApiError::bad)?;
    }
    let known = control.store.env(&name)?;
    for key in &change.unset {
        if !known.iter().any(|(k, _)| k == key) {
            return Err(ApiError::not_found(format!("{name} has no variable {key}"))
                .hint("`hutong env list` names them; those of hutong.toml change with a deploy"));
        }
    }
    let total: usize = known
        .iter()
        .filter(|(key, _)| !change.set.contains_key(key))
        .map(|(key, value)| key.len() + value.len())
        .chain(
            change
                .set
                .iter()
                .map(|(key, value)| key.len() + value.len()),
        )
        .sum();
    if total > spec::MAX_ENV {
        return Err(ApiError::bad("the environment would be over 64K"));
    }
    if let Some(other) = control.store.under_way(&app.name)? {
        return Err(ApiError::conflict(format!(
            "deployment {} of {} is under way; this would undo it",
            other.id, app.name
        ))
        .hint("wait until it is over, or end it with `hutong abort`, and try again"));
    }
    let runs = app.goal == Goal::Running && app.active.is_some();
    let is_program = current_spec(&control, &app)?.is_some_and(|(_, spec)| spec.has_programs());
    let active = match app.active.filter(|_| runs && is_program) {
        Some(id) => control.store.deployment(id)?,
        None => None,
    };
    let release = active.map(|deployment| deployment.release);
    let deployment = control
        .store
        .change_env(&name, &change.set, &change.unset, release)?;
    control.wake.notify_one();
    Ok(Json(deployment.as_ref().map(to_wire)))
}

#[derive(serde::Deserialize)]
pub struct Removal {
    #[serde(default)]
    purge: bool,
}

/// Removes an app. Its data is kept for seven days, unless `purge=true`.
#[utoipa::path(delete, path = "/v1/apps/{app}", params(("purge" = Option<bool>, Query)), responses((status = 200), (status = 404, body = Problem)))]
pub async fn remove(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Query(removal): Query<Removal>,
) -> Result<Json<()>> {
    // A purge also ends the week of one that was removed before.
    match control.store.app(&name)? {
        Some(app) if app.isolated => find_free(&control, &name).map(drop)?,
        Some(app) if app.goal != Goal::Removed || removal.purge => {}
        _ => find(&control, &name).map(drop)?,
    }
    // A preview without its branch can be pushed anew; one with it and without the app could not.
    let (ours, app) = (control.clone(), name.clone());
    let _ = tokio::task::spawn_blocking(move || crate::git::drop_branch_of(&ours, &app)).await;
    control
        .store
        .set_goal(&name, Goal::Removed, removal.purge)?;
    control.wake.notify_one();
    // Nobody has a token for it any more; with a new one, the same push is one.
    let (ours, app) = (control.clone(), name);
    let _ = tokio::task::spawn_blocking(move || crate::git::forget(&ours, &app)).await;
    Ok(Json(()))
}

/// Waits until the controller looked at what was just declared.
pub async fn next_pass(control: &Control) {
    let mut passes = control.passes.subscribe();
    control.wake.notify_one();
    // The pass under way may have begun before the change: so two.
    for _ in 0..2 {
        let wait = tokio::time::timeout(std::time::Duration::from_secs(1), passes.changed());
        control.wake.notify_one();
        if wait.await.is_err() {
            return;
        }
    }
}

/// The running, healthy instance that `exec` goes to.
pub fn any_instance(control: &Control, app: &str) -> Option<String> {
    let observed = lock(&control.observed);
    let mut mine: Vec<_> = observed
        .instances
        .values()
        .filter(|i| i.app == app && !observed.stopping.contains_key(&i.instance))
        .filter_map(|i| {
            let healthy = observed.health_of(&i.instance) == Health::Healthy;
            let rank = match ids::kind(&i.instance) {
                ids::Kind::Web if healthy => 0,
                ids::Kind::Web => 1,
                ids::Kind::Worker(_) => 2,
                _ => return None,
            };
            Some((rank, std::cmp::Reverse(i.started_at), i.instance.clone()))
        })
        .collect();
    mine.sort();
    mine.into_iter()
        .map(|(_, _, instance)| instance)
        .find(|instance| ids::parse(instance).is_some())
}
