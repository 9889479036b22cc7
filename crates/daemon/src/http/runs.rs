//! Programs that run once, workers and timed jobs.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use hutong_api::{Problem, Process, Run, RunRequest};
use hutong_core::spec::AppSpec;
use hutong_runtime::processes::now_ms;

use super::{ApiError, Result, apps};
use crate::store::{self, Cause, Goal, NewRun};
use crate::{Control, ids, jobs, lock};

/// How long a program may take that somebody asks for, unless said otherwise.
const TIMEOUT_MS: u64 = 3_600_000;
const MAX_TIMEOUT_MS: u64 = 7 * 24 * 3_600_000;
/// Words of a command, in bytes.
const MAX_COMMAND: usize = 32 << 10;

/// Runs a program once, in a sandbox of its own with the release that serves; or a timed job now.
#[utoipa::path(post, path = "/v1/apps/{app}/runs", request_body = RunRequest, responses((status = 200, body = Run), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem)))]
pub async fn start(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Json(request): Json<RunRequest>,
) -> Result<Json<Run>> {
    let app = apps::find_free(&control, &name)?;
    let spec = match (app.goal, app.active, apps::current_spec(&control, &app)?) {
        (Goal::Running, Some(_), Some((_, spec))) => spec,
        (Goal::Stopped, ..) => {
            return Err(ApiError::conflict(format!("{name} is stopped"))
                .hint(format!("hutong start {name}")));
        }
        _ => {
            return Err(
                ApiError::conflict(format!("{name} has no release that ever got healthy"))
                    .hint("deploy one"),
            );
        }
    };
    if !spec.has_programs() {
        return Err(ApiError::bad("only an app with programs can run another"));
    }
    let job = match &request.cron {
        None => None,
        Some(cron) => Some(spec.cron.get(cron).ok_or_else(|| {
            ApiError::not_found(format!("{name} has no timed job {cron}"))
                .hint(format!("`hutong status {name}` lists them"))
        })?),
    };
    let words: usize = request.command.iter().map(|word| word.len() + 1).sum();
    let sound = !request.command.iter().any(|word| word.contains('\0')) && words <= MAX_COMMAND;
    if !sound || job.is_some() != request.command.is_empty() {
        return Err(
            ApiError::bad("a command is needed, or the name of a timed job")
                .hint("hutong run APP -- COMMAND, or hutong run APP --cron NAME"),
        );
    }
    let open = control.store.open_runs()?;
    if open.iter().filter(|run| run.app == name).count() >= jobs::MAX_AT_ONCE {
        return Err(ApiError::new(
            503,
            format!("{name} runs {} programs already", jobs::MAX_AT_ONCE),
        ));
    }
    let default = job.map_or(TIMEOUT_MS, |job| job.timeout.as_millis() as u64);
    let timeout_ms = request.timeout_ms.unwrap_or(default);
    if !(1..=MAX_TIMEOUT_MS).contains(&timeout_ms) {
        return Err(ApiError::bad("the time-out is 1ms to 7d"));
    }
    let wanted = NewRun {
        name: request.cron.as_deref().unwrap_or_default(),
        command: &request.command,
        timeout_ms,
        due_ms: now_ms(),
        state: "wanted",
        detail: None,
    };
    let id = control.store.add_run(&name, &wanted)?;
    control.wake.notify_one();
    found(&control, &name, id).map(|run| Json(to_wire(&run)))
}

fn found(control: &Control, app: &str, id: u64) -> Result<store::Run> {
    let run = control.store.run(id)?.filter(|run| run.app == app);
    run.ok_or_else(|| ApiError::not_found(format!("{app} has no run {id}")))
}

#[derive(serde::Deserialize)]
pub struct Limit {
    #[serde(default)]
    limit: Option<u64>,
}

/// The last runs, the newest first; 100 are kept.
#[utoipa::path(get, path = "/v1/apps/{app}/runs", params(("limit" = Option<u64>, Query)), responses((status = 200, body = Vec<Run>), (status = 404, body = Problem)))]
pub async fn list(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Query(query): Query<Limit>,
) -> Result<Json<Vec<Run>>> {
    apps::find(&control, &name)?;
    let runs = control
        .store
        .runs(&name, query.limit.unwrap_or(20).min(1000))?;
    Ok(Json(runs.iter().map(to_wire).collect()))
}

#[derive(serde::Deserialize)]
pub struct Wait {
    /// Seconds to wait for its end, at most 30.
    #[serde(default)]
    wait: u64,
}

/// One run; with `wait` it is answered when it is over, or after that time.
#[utoipa::path(get, path = "/v1/apps/{app}/runs/{id}", params(("wait" = Option<u64>, Query)), responses((status = 200, body = Run), (status = 404, body = Problem)))]
pub async fn show(
    State(control): State<Arc<Control>>,
    Path((name, id)): Path<(String, u64)>,
    Query(query): Query<Wait>,
) -> Result<Json<Run>> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(query.wait.min(30));
    let mut passes = control.passes.subscribe();
    loop {
        let run = found(&control, &name, id)?;
        if run.is_over() || tokio::time::Instant::now() >= deadline {
            return Ok(Json(to_wire(&run)));
        }
        let _ = tokio::time::timeout_at(deadline, passes.changed()).await;
    }
}

/// Ends a run: SIGTERM, and SIGKILL after the app's stop time-out.
#[utoipa::path(delete, path = "/v1/apps/{app}/runs/{id}", responses((status = 200, body = Run), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn stop(
    State(control): State<Arc<Control>>,
    Path((name, id)): Path<(String, u64)>,
) -> Result<Json<Run>> {
    apps::find(&control, &name)?;
    let run = found(&control, &name, id)?;
    if run.is_over() {
        return Err(ApiError::conflict(format!(
            "run {id} is over: {}",
            run.state
        )));
    }
    control.store.end_run_soon(id, Cause::Owner)?;
    apps::next_pass(&control).await;
    found(&control, &name, id).map(|run| Json(to_wire(&run)))
}

pub fn to_wire(run: &store::Run) -> Run {
    Run {
        id: run.id,
        app: run.app.clone(),
        name: Some(run.name.clone()).filter(|name| !name.is_empty()),
        command: run.command.clone(),
        state: run.state.clone(),
        detail: run.detail.clone(),
        exit_code: run.exit_code,
        instance: run.instance.clone(),
        due_at: run.due_ms,
        started_at: run.started_ms,
        ended_at: run.ended_ms,
    }
}

/// An app's workers and timed jobs, as they stand.
pub fn processes(control: &Control, spec: &AppSpec, app: &store::App) -> Result<Vec<Process>> {
    if spec.workers.is_empty() && spec.cron.is_empty() {
        return Ok(Vec::new());
    }
    let runs = match spec.cron.is_empty() {
        true => Vec::new(),
        false => control.store.last_runs(&app.name)?,
    };
    let observed = lock(&control.observed);
    let running = |kind: ids::Kind<'_>| {
        let mine = observed.instances.values();
        let mine = mine.filter(|i| i.app == app.name && ids::kind(&i.instance) == kind);
        mine.count() as u32
    };
    let workers = spec.workers.iter().map(|(name, worker)| {
        let trouble = observed.workers.get(&(app.name.clone(), name.clone()));
        Process {
            name: name.clone(),
            kind: "worker".into(),
            command: worker.command.clone(),
            wanted: worker.instances,
            running: running(ids::Kind::Worker(name)),
            schedule: None,
            zone: None,
            next_at: None,
            last: None,
            failures: trouble.map_or(0, |trouble| trouble.failures),
            problem: trouble.map(|trouble| trouble.why.clone()),
        }
    });
    let runs_now = app.goal == Goal::Running && app.active.is_some();
    let jobs = spec.cron.iter().map(|(name, job)| Process {
        name: name.clone(),
        kind: "cron".into(),
        command: job.command.clone(),
        wanted: 0,
        running: running(ids::Kind::Cron(name)),
        schedule: Some(job.schedule.to_string()),
        zone: Some(job.schedule.zone().to_owned()),
        next_at: job.schedule.next_after(now_ms()).filter(|_| runs_now),
        last: runs.iter().find(|run| run.name == *name).map(to_wire),
        failures: 0,
        problem: None,
    });
    Ok(workers.chain(jobs).collect())
}
