//! Makes true what is declared: observe, plan (pure, in `core`), publish, apply. Woken by every change
//! and by a timer; a wake-up carries no data; each pass is whole and may be the last.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hutong_core::plan::{self, Desired, Plan, Role, Rollout, Seen, Serve, Step, Version};
use hutong_core::spec::{AppSpec, Egress, Restart, Run};
use hutong_core::{backoff, retention};
use hutong_ipc::gateway::{self as wire, Snapshot};
use hutong_ipc::shim::Exit;
use hutong_ipc::warden::{Instance, Limits, Start, Tree};
use hutong_runtime::client::Driver;
use hutong_runtime::processes::now_ms;

use crate::logs::{End, Query};
use crate::store::{App, Deployment, Goal, Release, StoreError};
use crate::{Control, ids, lock, publish};

/// Without a change, everything is looked at again this often.
const TIMER: Duration = Duration::from_secs(5);
/// An app's data outlives it by a week, unless purged.
const KEEP_DATA_MS: u64 = 7 * 86_400_000;
/// Behind the stop time-out the shim itself is stuck.
const STUCK_MS: u64 = 5_000;
/// Lines of output that a failed deployment shows.
const LAST_WORDS: usize = 20;
const FIRST_WORDS: usize = 10;

/// Runs until the process ends.
pub async fn run(control: Arc<Control>) {
    let mut published = publish::last(&control.data_dir);
    {
        // What served before a restart is not taken for sick before it could be asked.
        let mut observed = lock(&control.observed);
        observed.since_ms = now_ms();
        let targets = published.apps.values().flat_map(|app| &app.targets);
        for target in targets.filter(|target| target.role == wire::Role::Active) {
            observed
                .health
                .insert(target.instance.clone(), plan::Health::Healthy);
        }
    }
    loop {
        let ours = control.clone();
        let result = tokio::task::spawn_blocking(move || {
            let outcome = pass(&ours, &mut published);
            (outcome, published)
        })
        .await;
        let outcome = match result {
            Ok((outcome, kept)) => {
                published = kept;
                outcome
            }
            Err(error) => {
                // A bug in a pass must not end the control plane; the next pass starts afresh.
                tracing::error!("a pass of the controller failed: {error}");
                published = publish::last(&control.data_dir);
                Err("internal".into())
            }
        };
        control.passes.send_modify(|passes| *passes += 1);
        let pause = match outcome {
            Ok(Outcome { again: true, .. }) => continue,
            Ok(Outcome { until_ms, .. }) => until_ms.map_or(TIMER, |until| {
                Duration::from_millis(until.saturating_sub(now_ms()))
                    .clamp(Duration::from_millis(10), TIMER)
            }),
            Err(reason) => {
                tracing::warn!("cannot look after the apps now: {reason}");
                Duration::from_millis(200)
            }
        };
        let _ = tokio::time::timeout(pause, control.wake.notified()).await;
    }
}

struct Outcome {
    /// Something was decided that the next pass goes on from at once.
    again: bool,
    until_ms: Option<u64>,
}

/// An app with what belongs to it, read once per pass.
struct Loaded {
    app: App,
    active: Option<(Deployment, Release, AppSpec)>,
    rollout: Option<(Deployment, Release, AppSpec)>,
}

fn pass(control: &Control, published: &mut Snapshot) -> Result<Outcome, String> {
    observe(control)?;
    let loaded = load(control).map_err(|error| error.to_string())?;
    let specs: BTreeMap<String, AppSpec> = loaded
        .iter()
        .filter(|l| l.app.goal != Goal::Removed)
        .filter_map(|l| Some((l.app.name.clone(), l.routing_spec()?.clone())))
        .collect();
    let now = now_ms();
    let mut plans = Vec::new();
    for loaded in &loaded {
        let seen = seen(control, &loaded.app.name);
        plans.push(plan::plan(&desired(control, loaded), &seen, now));
    }
    publish_all(control, &loaded, &plans, &specs, published, now)?;
    let mut outcome = Outcome {
        again: false,
        until_ms: None,
    };
    for (loaded, plan) in loaded.iter().zip(&plans) {
        let words = plan.steps.iter().map(ToString::to_string).collect();
        lock(&control.observed)
            .doing
            .insert(loaded.app.name.clone(), words);
        // A failure first: what it says of its instances is asked while they live.
        let (fails, rest): (Vec<_>, Vec<_>) = plan
            .steps
            .iter()
            .partition(|step| matches!(step, Step::Fail { .. }));
        for step in fails.into_iter().chain(rest) {
            if let Step::Wait { until_ms, .. } = step {
                outcome.until_ms = [outcome.until_ms, *until_ms].into_iter().flatten().min();
                continue;
            }
            outcome.again |= apply(control, loaded, step);
        }
        outcome.again |= tidy(control, loaded, now);
    }
    Ok(outcome)
}

/// Asks the warden what runs; takes the last words of what does not any more.
fn observe(control: &Control) -> Result<(), String> {
    let listed = control.warden.list().map_err(|error| error.to_string())?;
    let now: BTreeMap<String, Instance> = listed
        .into_iter()
        .filter(|instance| !instance.build)
        .map(|instance| (instance.instance.clone(), instance))
        .collect();
    let before: Vec<String> = {
        let observed = lock(&control.observed);
        observed.instances.keys().cloned().collect()
    };
    let mut ended: Vec<String> = control
        .logs
        .spooled()
        .into_iter()
        .filter(|name| !ids::is_build(name))
        .chain(before)
        .filter(|instance| !now.contains_key(instance))
        .collect();
    ended.sort();
    ended.dedup();
    for instance in ended {
        note_end(control, &instance).map_err(|error| error.to_string())?;
    }
    lock(&control.observed).instances = now;
    Ok(())
}

fn note_end(control: &Control, instance: &str) -> Result<(), StoreError> {
    let end = control.logs.end_of(instance);
    let (was_told, started) = {
        let observed = lock(&control.observed);
        let started = observed.instances.get(instance).map(|i| i.started_at);
        (observed.stopping.contains_key(instance), started)
    };
    if let Some((name, deployment)) = ids::parse(instance)
        && !was_told
        && let Some(app) = control.store.app(name)?
    {
        let why = why(&end);
        let under_way = control.store.under_way(name)?;
        if under_way.is_some_and(|d| d.id == deployment) {
            let mut observed = lock(&control.observed);
            observed.rollout_failures.insert(deployment, why);
        } else if app.active == Some(deployment) && app.goal == Goal::Running {
            let lived = started.map_or(0, |at| now_ms().saturating_sub(at));
            let steady = lived >= backoff::STEADY.as_millis() as u64;
            let failures = if steady { 1 } else { app.failures + 1 };
            let halt = halts(control, &app, &end)?;
            control.store.note_failure(name, failures, &why, halt)?;
        }
    }
    control.logs.forget_spool(instance);
    lock(&control.observed).forget(instance);
    Ok(())
}

fn why(end: &End) -> String {
    match (&end.exit, end.out_of_memory) {
        (_, true) => "the program ran out of memory and was killed; raise limits.memory".into(),
        (Some(exit), _) => format!("the program {exit}"),
        (None, _) => "its supervisor was killed".into(),
    }
}

/// Whether the restart policy leaves an ended program alone.
fn halts(control: &Control, app: &App, end: &End) -> Result<bool, StoreError> {
    let Some((_, _, spec)) = version_of(control, app.active)? else {
        return Ok(false);
    };
    Ok(match spec.restart {
        Restart::Always => false,
        Restart::OnFailure => end.exit == Some(Exit::Code(0)),
        Restart::Never => end.exit.is_some(),
    })
}

type VersionOf = Option<(Deployment, Release, AppSpec)>;

fn version_of(control: &Control, deployment: Option<u64>) -> Result<VersionOf, StoreError> {
    let Some(id) = deployment else {
        return Ok(None);
    };
    let Some(deployment) = control.store.deployment(id)? else {
        return Ok(None);
    };
    let Some(release) = control.store.release(&deployment.app, deployment.release)? else {
        return Ok(None);
    };
    let spec = release.parse()?;
    Ok(Some((deployment, release, spec)))
}

fn load(control: &Control) -> Result<Vec<Loaded>, StoreError> {
    let mut all = Vec::new();
    for app in control.store.apps()? {
        let active = version_of(control, app.active)?;
        let rolling = control
            .store
            .under_way(&app.name)?
            .filter(|deployment| deployment.state == "rolling");
        let rollout = version_of(control, rolling.map(|d| d.id))?;
        all.push(Loaded {
            app,
            active,
            rollout,
        });
    }
    Ok(all)
}

impl Loaded {
    /// Whose domains hold: the version that serves, before the first one the one that will.
    fn routing_spec(&self) -> Option<&AppSpec> {
        let chosen = self.active.as_ref().or(self.rollout.as_ref());
        chosen.map(|(_, _, spec)| spec)
    }

    fn spec_of(&self, deployment: u64) -> Option<&AppSpec> {
        let mut versions = self.rollout.iter().chain(&self.active);
        let found = versions.find(|(of, _, _)| of.id == deployment);
        found.map(|(_, _, spec)| spec)
    }

    fn version(&self, of: &(Deployment, Release, AppSpec)) -> Version {
        let (deployment, _, spec) = of;
        Version {
            deployment: deployment.id,
            is_static: matches!(spec.run, Run::Static { .. }),
            instances: self.app.scale.unwrap_or(spec.instances),
            strategy: spec.strategy,
            restart: spec.restart,
            start_timeout: spec.start_timeout,
            drain_timeout: spec.drain_timeout,
        }
    }
}

fn desired(control: &Control, loaded: &Loaded) -> Desired {
    let observed = lock(&control.observed);
    let rollout = loaded.rollout.as_ref().map(|rollout| Rollout {
        version: loaded.version(rollout),
        failure: observed.rollout_failures.get(&rollout.0.id).cloned(),
    });
    Desired {
        running: loaded.app.goal == Goal::Running,
        active: loaded.active.as_ref().map(|active| loaded.version(active)),
        rollout,
        failures: loaded.app.failures,
        last_failure_ms: loaded.app.last_failure_ms,
        halted: loaded.app.halted.clone(),
    }
}

fn seen(control: &Control, app: &str) -> Vec<Seen> {
    let observed = lock(&control.observed);
    observed
        .instances
        .values()
        .filter(|instance| instance.app == app)
        .map(|instance| Seen {
            id: instance.instance.clone(),
            deployment: instance.deployment,
            started_ms: instance.started_at.max(observed.since_ms),
            health: observed.health_of(&instance.instance),
            stopping: observed.stopping.contains_key(&instance.instance),
            draining_since_ms: observed.draining.get(&instance.instance).map(|d| d.0),
            drained: observed.drained.contains(&instance.instance),
        })
        .collect()
}

fn publish_all(
    control: &Control,
    loaded: &[Loaded],
    plans: &[Plan],
    specs: &BTreeMap<String, AppSpec>,
    published: &mut Snapshot,
    now: u64,
) -> Result<(), String> {
    let mut apps = BTreeMap::new();
    let next = published.version + 1;
    for (loaded, plan) in loaded.iter().zip(plans) {
        let name = &loaded.app.name;
        let removed = loaded.app.goal == Goal::Removed;
        // A removed app answers for nothing, but its last requests are still waited for.
        let Some(spec) = loaded
            .routing_spec()
            .filter(|_| !removed || !plan.roles.is_empty())
        else {
            continue;
        };
        let root = loaded.active.as_ref().and_then(static_root);
        let own = |instance: &str| loaded.spec_of(ids::parse(instance)?.1);
        let (mut app, warnings) = publish::app(spec, plan, root.as_deref(), specs, own);
        if removed {
            app.routes.clear();
        }
        apps.insert(name.clone(), app);
        let mut observed = lock(&control.observed);
        observed.warnings.insert(name.clone(), warnings);
        observed.serving.insert(name.clone(), plan.serve.clone());
        for (instance, role) in &plan.roles {
            if *role == Role::Draining {
                // The version is set below, when it is known which one says so.
                observed
                    .draining
                    .entry(instance.clone())
                    .or_insert((now, u64::MAX));
            } else {
                observed.draining.remove(instance);
                observed.drained.remove(instance);
            }
        }
    }
    let active = loaded
        .iter()
        .filter_map(|l| Some((l.app.name.clone(), l.app.active?)))
        .collect();
    let same = apps == published.apps && published.version > 0;
    {
        let says_so = if same { published.version } else { next };
        let mut observed = lock(&control.observed);
        for (_, version) in observed.draining.values_mut() {
            *version = (*version).min(says_so);
        }
    }
    if same {
        let mut observed = lock(&control.observed);
        observed.published_active = active;
        observed.published_version = published.version;
        return Ok(());
    }
    let fresh = Snapshot {
        version: next,
        apps,
    };
    publish::write(&control.data_dir, &fresh, control.gateway_gid)
        .map_err(|error| format!("cannot publish the routes: {error}"))?;
    *published = fresh;
    {
        let mut observed = lock(&control.observed);
        observed.published_active = active;
        observed.published_version = published.version;
    }
    control.published.notify_one();
    Ok(())
}

/// Where a static version's files are, below the data folder.
fn static_root((_, release, spec): &(Deployment, Release, AppSpec)) -> Option<String> {
    let Run::Static { folder, .. } = &spec.run else {
        return None;
    };
    let tree = match &release.built {
        Some(key) => format!("built/{}/{key}", release.app),
        None => format!("trees/{}", release.digest),
    };
    Some(if folder.is_empty() {
        tree
    } else {
        format!("{tree}/{folder}")
    })
}

/// Carries one step out; true when the next pass has something to go on from.
fn apply(control: &Control, loaded: &Loaded, step: &Step) -> bool {
    let app = &loaded.app.name;
    match step {
        Step::Start { deployment } => {
            let Err(reason) = start(control, loaded, *deployment) else {
                return true;
            };
            control
                .logs
                .note(app, "", &format!("cannot start: {reason}"));
            let rolling = loaded
                .rollout
                .as_ref()
                .is_some_and(|r| r.0.id == *deployment);
            if rolling {
                let mut observed = lock(&control.observed);
                observed.rollout_failures.insert(*deployment, reason);
            } else {
                let failures = loaded.app.failures + 1;
                let noted = control.store.note_failure(app, failures, &reason, false);
                return noted.is_ok();
            }
            true
        }
        Step::Stop { instance, why } => {
            let spec = loaded.routing_spec();
            let timeout = spec.map_or(Duration::from_secs(10), |spec| spec.stop_timeout);
            control
                .logs
                .note(app, instance, &format!("is stopped: {why}"));
            if control.warden.stop(instance, timeout).is_err() {
                let _ = control.warden.kill(instance);
            }
            let mut observed = lock(&control.observed);
            observed.stopping.insert(instance.clone(), now_ms());
            false
        }
        Step::Promote { deployment } => {
            let done = control.store.promote(*deployment);
            if let Err(error) = &done {
                tracing::error!("{error}");
            }
            control
                .logs
                .note(app, "", &format!("deployment {deployment} serves"));
            done.is_ok()
        }
        Step::Fail { deployment, reason } => {
            let reason = with_port_hint(control, loaded, *deployment, reason);
            let log = last_words(control, app, *deployment);
            if let Err(error) = control.store.fail(*deployment, &reason, &log) {
                tracing::error!("{error}");
                return false;
            }
            control.logs.note(
                app,
                "",
                &format!("deployment {deployment} failed: {reason}"),
            );
            lock(&control.observed).rollout_failures.remove(deployment);
            true
        }
        Step::Wait { .. } => false,
    }
}

fn start(control: &Control, loaded: &Loaded, deployment: u64) -> Result<(), String> {
    let versions = loaded.rollout.iter().chain(&loaded.active);
    let (_, release, spec) = versions
        .into_iter()
        .find(|(of, _, _)| of.id == deployment)
        .ok_or("its release is gone")?;
    let Run::Command(argv) = &spec.run else {
        return Err("a static app has no instances".into());
    };
    let mut env: BTreeMap<String, String> = spec.env.clone();
    env.extend(
        control
            .store
            .env(&loaded.app.name)
            .map_err(|e| e.to_string())?,
    );
    env.insert("PORT".into(), spec.port.to_string());
    env.insert("HUTONG_RELEASE".into(), release.number.to_string());
    let instance = ids::instance(&loaded.app.name, deployment);
    let tree = match &release.built {
        Some(key) => Tree::Built { key: key.clone() },
        None => Tree::Source {
            digest: release.digest.clone(),
        },
    };
    let started = control.warden.start(Start {
        instance: instance.clone(),
        app: loaded.app.name.clone(),
        deployment,
        tree,
        argv: argv.clone(),
        env: env.into_iter().collect(),
        limits: Limits {
            memory: spec.memory_bytes,
            cpu_millis: spec.cpu_millis,
            pids: spec.pids,
        },
        data: spec.data,
        egress: spec.egress == Egress::Internet,
    });
    match started {
        Ok(()) => {
            let text = format!("was started (release {})", release.number);
            control.logs.note(&loaded.app.name, &instance, &text);
            Ok(())
        }
        Err(error) => {
            control.logs.forget_spool(&instance);
            Err(error.to_string())
        }
    }
}

/// An app that listens elsewhere is told where.
fn with_port_hint(control: &Control, loaded: &Loaded, deployment: u64, reason: &str) -> String {
    let port = loaded.rollout.as_ref().map_or(0, |(_, _, spec)| spec.port);
    if !reason.contains("nothing listens") {
        return reason.to_owned();
    }
    let instances: Vec<String> = {
        let observed = lock(&control.observed);
        let of = observed.instances.values();
        of.filter(|i| i.deployment == deployment)
            .map(|i| i.instance.clone())
            .collect()
    };
    let listening: Vec<String> = instances
        .iter()
        .filter_map(|instance| control.warden.listening(instance).ok())
        .flatten()
        .map(|found| format!("{}:{}", found.address, found.port))
        .collect();
    if listening.is_empty() {
        return format!(
            "{reason}; the program must listen on the port in its PORT variable ({port})"
        );
    }
    format!(
        "{reason}; the program listens on {} instead: have it use its PORT variable, or set `port` in hutong.toml",
        listening.join(", ")
    )
}

/// The first and last lines that a deployment's instances or builds printed.
pub fn last_words(control: &Control, app: &str, deployment: u64) -> Vec<String> {
    control.logs.ingest();
    let query = Query {
        kind: "app",
        lines: 400,
        since: None,
    };
    let (lines, _) = control.logs.last(app, &query);
    let mine = format!("{app}-d{deployment}-");
    let mut words: Vec<String> = lines
        .iter()
        .filter_map(|line| serde_json::from_str::<hutong_api::LogLine>(line).ok())
        .filter(|line| line.i.contains(&mine) && line.s != "note")
        .map(|line| line.m)
        .collect();
    if words.len() > FIRST_WORDS + LAST_WORDS {
        // The cause is as often in the first lines as in the last.
        let end = words.len() - LAST_WORDS;
        words.splice(FIRST_WORDS..end, ["…".to_owned()]);
    }
    words
}

/// Kills what does not stop, forgets what is over. True when something was forgotten.
fn tidy(control: &Control, loaded: &Loaded, now: u64) -> bool {
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
        let _ = control.warden.kill(&instance);
    }
    if loaded.app.goal == Goal::Removed {
        let expired = loaded.app.purge || loaded.app.changed_ms + KEEP_DATA_MS < now;
        return left == 0 && expired && forget(control, name);
    }
    if loaded.rollout.is_none() {
        retain(control, loaded);
    }
    false
}

fn forget(control: &Control, app: &str) -> bool {
    if let Err(error) = control.warden.drop_data(app) {
        tracing::warn!("cannot delete the data of {app}: {error}");
        return false;
    }
    control.logs.forget(app);
    if let Err(error) = control.store.forget_app(app) {
        tracing::warn!("{error}");
        return false;
    }
    let mut observed = lock(&control.observed);
    observed.doing.remove(app);
    observed.warnings.remove(app);
    observed.serving.remove(app);
    drop(observed);
    drop_unused_trees(control);
    true
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
        let _ = control.store.forget_release(name, *number);
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
}

/// Trees that no release uses; recent ones may be about to be deployed.
fn drop_unused_trees(control: &Control) {
    let Ok(used) = control.store.digests() else {
        return;
    };
    let trees = control.data_dir.join("trees");
    for entry in std::fs::read_dir(&trees).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let age = entry
            .metadata()
            .and_then(|m| m.modified())
            .ok()
            .and_then(|at| at.elapsed().ok());
        let old = age.is_some_and(|age| age > Duration::from_secs(3600));
        if hutong_core::name::is_digest(&name) && !used.contains(&name) && old {
            // The name goes first: half a tree must never be taken for a whole one.
            let gone = trees.join(format!(".upload-gone-{name}"));
            if std::fs::rename(entry.path(), &gone).is_ok() {
                let _ = std::fs::remove_dir_all(gone);
            }
        }
    }
}

/// What a person is told of an app that does not serve.
pub fn describe(serve: Option<&Serve>) -> Option<String> {
    match serve {
        Some(Serve::Down { reason, .. }) => Some(reason.clone()),
        _ => None,
    }
}
