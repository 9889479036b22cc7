//! Makes true what is declared: observe, plan (pure, in `core`), publish, apply. Woken by every change
//! and by a timer; a wake-up carries no data; each pass is whole and may be the last.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hutong_core::plan::{self, Desired, Group, Plan, Role, Rollout, Seen, Serve, Step, Version};
use hutong_core::spec::{AppSpec, Restart, Run};
use hutong_core::{backoff, retention};
use hutong_ipc::gateway::{self as wire, Snapshot};
use hutong_ipc::shim::Exit;
use hutong_ipc::warden::Instance;
use hutong_ipc::{docker, fail};
use hutong_runtime::client::{Driver, DriverError};
use hutong_runtime::processes::steady_ms;

use crate::launch::{NotStarted, What, launch};
use crate::logs::{End, Only, Query};
use crate::observed::{Engine, Observed, Probation};
use crate::store::{App, Deployment, Goal, Release, StoreError};
use crate::{Control, ids, jobs, lock, publish};

/// Without a change, everything is looked at again this often.
const TIMER: Duration = Duration::from_secs(5);
/// An app's data outlives it by a week, unless purged: counted while the server runs, because a clock
/// that is set wrong must not delete anything.
const KEEP_DATA_MS: u64 = 7 * 86_400_000;
/// How often that is counted.
const AGE_MS: u64 = 60_000;
/// How often freed memory is given back to the kernel.
const TRIM: Duration = Duration::from_secs(5);
/// How soon an instance is looked at again that is dying, or dead and not gone.
const ENDING_MS: u64 = 20;
/// How long the gateway's word is taken for it that an instance is dying.
const DYING_MS: u64 = 5_000;
/// The gateway says every second that nobody asks for an app, as long as it is so.
const IDLE_MS: u64 = 1_500;
/// The pause behind a pass that failed grows to this.
const TROUBLE: Duration = Duration::from_secs(5);
/// Trees that no release uses are kept so long: one may be about to be deployed.
const KEEP_TREES_MS: u64 = 3_600_000;
/// Behind the stop time-out the shim itself is stuck.
const STUCK_MS: u64 = 5_000;
/// A release that took over a shorter time ago is on probation, and may end so often.
const PROBATION_MS: u64 = 5 * 60_000;
const ON_PROBATION: u32 = 3;
/// How long an instance may use more memory than its owner wants.
const HEAVY_MS: u64 = 10_000;
/// How often an app's instances are replaced for that.
const REPLACE_MS: u64 = 5 * 60_000;
/// Lines of output that a failed deployment shows.
const LAST_WORDS: usize = 20;
const FIRST_WORDS: usize = 10;

/// Runs until the process ends.
pub async fn run(control: Arc<Control>) {
    let mut published = publish::last(&control.data_dir, &control.run_dir);
    {
        // What served before a restart is not taken for sick before it could be asked.
        let mut observed = lock(&control.observed);
        observed.since_ms = steady_ms();
        let targets = published.apps.values().flat_map(|app| &app.targets);
        for target in targets.filter(|target| target.role == wire::Role::Active) {
            observed
                .health
                .insert(target.instance.clone(), plan::Health::Healthy);
        }
    }
    let mut aged = steady_ms();
    let mut troubled = 0;
    let mut trimmed = Instant::now();
    loop {
        if steady_ms() - aged >= AGE_MS {
            let elapsed = steady_ms() - aged;
            aged += elapsed;
            let ours = control.clone();
            let _ = tokio::task::spawn_blocking(move || {
                if let Err(error) = ours.store.age_removed(elapsed) {
                    tracing::warn!("{error}");
                }
                ours.store.keep_ballast();
            })
            .await;
        }
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
                published = publish::last(&control.data_dir, &control.run_dir);
                Err("internal".into())
            }
        };
        control.passes.send_modify(|passes| *passes += 1);
        let trouble = outcome.as_ref().err().cloned();
        let news = std::mem::replace(&mut lock(&control.observed).trouble, trouble.clone());
        let pause = match outcome {
            Ok(Outcome { again: true, .. }) => {
                troubled = 0;
                continue;
            }
            Ok(Outcome { until_ms, .. }) => {
                troubled = 0;
                // When it is quiet: a wave of deployments leaves much behind.
                let quiet =
                    until_ms.is_none_or(|until| until > steady_ms() + TIMER.as_millis() as u64);
                if quiet && trimmed.elapsed() > TRIM {
                    trimmed = Instant::now();
                    hutong_runtime::sys::release_memory();
                }
                until_ms.map_or(TIMER, |until| {
                    Duration::from_millis(until.saturating_sub(steady_ms()))
                        .clamp(Duration::from_millis(10), TIMER)
                })
            }
            Err(reason) => {
                // Once, not every time: the disk may be full.
                if news.as_ref() != Some(&reason) {
                    tracing::warn!("cannot look after the apps now: {reason}");
                }
                troubled += 1;
                (Duration::from_millis(100) * 2u32.pow(troubled.min(6))).min(TROUBLE)
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
    active: VersionOf,
    rollout: VersionOf,
    /// A deployment is being built or rolled out.
    deploying: bool,
}

fn pass(control: &Arc<Control>, published: &mut Snapshot) -> Result<Outcome, String> {
    fail::point("observe");
    observe(control)?;
    let (loaded, broken, waiting) = load(control).map_err(|error| error.to_string())?;
    let agenda = jobs::agenda(control).map_err(|error| error.to_string())?;
    let specs: BTreeMap<String, Arc<AppSpec>> = loaded
        .iter()
        .chain(&waiting)
        .filter(|l| l.app.goal != Goal::Removed)
        .filter_map(|l| Some((l.app.name.clone(), l.routing_spec()?.clone())))
        .collect();
    for loaded in loaded.iter().chain(&waiting) {
        freeze(control, &loaded.app);
    }
    let now = steady_ms();
    let mut plans = Vec::new();
    for loaded in &loaded {
        let seen = seen(control, &loaded.app.name);
        plans.push(plan::plan(&desired(control, loaded, now), &seen, now));
    }
    let mut outcome = Outcome {
        again: false,
        until_ms: None,
    };
    outcome.again = publish_all(control, &loaded, &plans, &specs, &broken, published, now)?;
    let dying = {
        let observed = lock(&control.observed);
        let is_dying = |i: &Instance| {
            let gone = observed.gone.get(&i.instance);
            i.ending || gone.is_some_and(|at| now < at + DYING_MS)
        };
        observed.instances.values().any(is_dying)
    };
    if dying {
        outcome.until_ms = Some(now + ENDING_MS);
    }
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
            let word = match step {
                Step::Start { .. } => "start",
                Step::Stop { .. } => "stop",
                Step::Promote { .. } => "promote",
                Step::Fail { .. } => "fail",
                Step::Sleep => "sleep",
                Step::Wait { .. } => "wait",
            };
            fail::point(&format!("apply {word}"));
            outcome.again |= apply(control, loaded, step);
            fail::point(&format!("applied {word}"));
        }
        if loaded.app.isolated {
            continue;
        }
        let runs = loaded.app.goal == Goal::Running;
        let spec = loaded.routing_spec();
        let subject = jobs::Subject {
            app: &loaded.app.name,
            active: loaded.active.as_ref().filter(|_| runs),
            stop_timeout: spec.map_or(Duration::from_secs(10), |spec| spec.stop_timeout),
        };
        let looked = jobs::look_after(control, &subject, &agenda);
        outcome.again |= looked.again;
        outcome.until_ms = [outcome.until_ms, looked.until_ms]
            .into_iter()
            .flatten()
            .min();
        outcome.again |= tidy(control, loaded, now);
    }
    Ok(outcome)
}

/// Asks the warden what runs; takes the last words of what does not any more.
fn observe(control: &Arc<Control>) -> Result<(), String> {
    let mut listed = control.warden.list().map_err(|error| error.to_string())?;
    if control.settings.docker.is_some() {
        listed.extend(containers(control));
    }
    end_releases(control, &listed);
    let now: BTreeMap<String, Instance> = listed
        .into_iter()
        .filter(|instance| !instance.build && !ids::is_of_deployment(&instance.instance))
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
        .filter(|name| !ids::is_of_deployment(name))
        .chain(before)
        .filter(|instance| !now.contains_key(instance))
        .filter(|instance| is_known(control, instance))
        .collect();
    ended.sort();
    ended.dedup();
    let mut failed: BTreeMap<String, Failure> = BTreeMap::new();
    for instance in ended {
        let noted = lock(&control.observed).noted.contains(&instance);
        match note_end(control, &instance).map_err(|e| e.to_string()) {
            _ if noted => {}
            // Once for each app: a whole set of instances ends together when something else is wrong.
            Ok(Some(failure)) => {
                failed.entry(failure.app.name.clone()).or_insert(failure);
            }
            Ok(None) => {}
            // How a run ended is kept in its spool until it can be written down; the rest must not wait for that.
            Err(error) if is_job(&instance) => {
                let mut observed = lock(&control.observed);
                observed.forget(&instance);
                if observed.unwritten.insert(instance) {
                    tracing::warn!("{error}");
                }
                continue;
            }
            Err(error) => return Err(error),
        }
        fail::point("end noted");
        let forgotten = control.logs.forget_spool(&instance);
        let mut observed = lock(&control.observed);
        observed.forget(&instance);
        observed.unwritten.remove(&instance);
        if forgotten {
            observed.noted.remove(&instance);
        } else {
            observed.noted.insert(instance);
        }
    }
    for failure in failed.values() {
        note_failure(
            control,
            &failure.app,
            failure.steady,
            &failure.why,
            failure.halt,
        );
    }
    let mut observed = lock(&control.observed);
    let has_shim = |i: &&Instance| i.container.is_none() && !i.ending;
    for instance in now.values().filter(has_shim).filter(|i| !is_web(i)) {
        if observed.watched.insert(instance.instance.clone()) {
            tokio::spawn(watch_end(control.clone(), instance.instance.clone()));
        }
    }
    observed.instances = now;
    let first = !std::mem::replace(&mut observed.looked, true);
    if first {
        // What runs was awake when the control plane before us was.
        let serving = observed.instances.values().filter(|i| is_web(i));
        let apps: Vec<String> = serving.map(|i| i.app.clone()).collect();
        apps.iter().for_each(|app| observed.wake(app));
    }
    drop(observed);
    if first && control.rebooted {
        // Only now: a control plane that dies before it has looked leaves the next one to know.
        control.note_boot();
    }
    Ok(())
}

/// Whether it can be said of an instance that it has ended: of a container only while its engine answers.
pub fn is_known(control: &Control, instance: &str) -> bool {
    let silent = control.settings.docker.is_some()
        && !matches!(lock(&control.observed).engine, Engine::Answers);
    if !silent {
        return true;
    }
    let deployment = ids::parse(instance).map(|(_, deployment)| deployment);
    match version_of(control, deployment) {
        Ok(Some((_, _, spec))) => spec.image.is_none(),
        _ => true,
    }
}

/// Ends release commands that nobody waits for any more: a control plane before us began them.
fn end_releases(control: &Control, listed: &[Instance]) {
    let is_release = |i: &&Instance| ids::kind(&i.instance) == ids::Kind::Release;
    let mut found = listed.iter().filter(is_release).peekable();
    if found.peek().is_none() {
        return;
    }
    let Ok(building) = control.store.building() else {
        return;
    };
    // Whoever waits for one in this process ends it more gently.
    let waited_for = |id: u64| lock(&control.observed).building.contains_key(&id);
    for instance in found.filter(|i| !waited_for(i.deployment)) {
        if !building
            .iter()
            .any(|deployment| deployment.id == instance.deployment)
        {
            let _ = control.kill_instance(&instance.instance);
        }
    }
}

/// What the engine runs. Where it does not answer, what it ran is taken to run on: nobody could do anything about it.
fn containers(control: &Control) -> Vec<Instance> {
    let listed = control.docker.list();
    let mut observed = lock(&control.observed);
    match listed {
        Ok(listed) => {
            observed.engine = Engine::Answers;
            listed
        }
        Err(error) => {
            if matches!(observed.engine, Engine::Answers) {
                tracing::warn!("apps from images cannot be looked after now: {error}");
            }
            let unknown = matches!(observed.engine, Engine::Unknown(_) | Engine::Unasked);
            let error = error.to_string();
            observed.engine = match unknown {
                true => Engine::Unknown(error),
                false => Engine::Silent(error),
            };
            let known = observed.instances.values();
            known.filter(|i| i.container.is_some()).cloned().collect()
        }
    }
}

/// What is in quarantine is frozen, and nothing else is.
fn freeze(control: &Control, app: &App) {
    let wrong: Vec<(String, bool)> = {
        let observed = lock(&control.observed);
        let mine = observed.instances.values().filter(|i| i.app == app.name);
        let is_wrong = |i: &&Instance| match app.isolated {
            true => !i.frozen,
            false => i.frozen || i.held,
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
        if !app.isolated {
            observed.thawed.insert(app.name.clone(), steady_ms());
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

/// Hears when an instance ends that the gateway has no line to, which tells of all others.
async fn watch_end(control: Arc<Control>, instance: String) {
    let path = hutong_runtime::client::shim_socket(&control.run_dir, &instance);
    if let Ok(line) = tokio::net::UnixStream::connect(path).await {
        // The shim says nothing that it is not asked: this is its end.
        let _ = line.readable().await;
    }
    {
        let mut observed = lock(&control.observed);
        if observed.instances.contains_key(&instance) {
            observed.gone.insert(instance.clone(), steady_ms());
        }
    }
    control.wake.notify_one();
    // One that has too many lines to take ours is not asked all the time.
    tokio::time::sleep(Duration::from_secs(1)).await;
    lock(&control.observed).watched.remove(&instance);
}

/// An instance of a serving version that ended by itself.
struct Failure {
    app: App,
    why: String,
    /// It had run well for long.
    steady: bool,
    halt: bool,
}

fn note_end(control: &Control, instance: &str) -> Result<Option<Failure>, StoreError> {
    let end = control.logs.end_of(instance);
    let (told, started, looked) = {
        let observed = lock(&control.observed);
        let started = observed.instances.get(instance).map(|i| i.started_steady);
        let told = end.told || observed.stopping.contains_key(instance);
        (told, started, observed.looked)
    };
    let Some((name, deployment)) = ids::parse(instance) else {
        return Ok(None);
    };
    // The machine was switched off: nothing of that is the app's doing.
    let by_itself = matches!(end.exit, Some(Exit::Code(_)));
    let machine_went = !looked && control.rebooted && !by_itself;
    // A container that the driver knows nothing of was never made, or the driver died over it.
    let was_container = {
        let observed = lock(&control.observed);
        let found = observed.instances.get(instance);
        found.is_some_and(|found| found.container.is_some())
    };
    if was_container && end.exit.is_none() && !is_job(instance) {
        return Ok(None);
    }
    let why = why(&end);
    if is_job(instance) {
        jobs::note_end(control, instance, &end, &why)?;
        return Ok(None);
    }
    if told || machine_went {
        return Ok(None);
    }
    let Some(app) = control.store.app(name)? else {
        return Ok(None);
    };
    if let ids::Kind::Worker(worker) = ids::kind(instance) {
        if app.active == Some(deployment) && app.goal == Goal::Running {
            let halt = halts(control, &app, &end)?;
            note_worker(control, &app.name, worker, started, &why, halt);
        }
        return Ok(None);
    }
    let under_way = control.store.under_way(name)?;
    if under_way.is_some_and(|d| d.id == deployment) {
        let mut observed = lock(&control.observed);
        observed.rollout_failures.insert(deployment, why);
        return Ok(None);
    }
    if app.active != Some(deployment) || app.goal != Goal::Running {
        return Ok(None);
    }
    let lived = started.map(|at| steady_ms().saturating_sub(at));
    Ok(Some(Failure {
        steady: lived.is_some_and(|lived| lived >= backoff::STEADY.as_millis() as u64),
        halt: halts(control, &app, &end)?,
        app,
        why,
    }))
}

/// Counts a worker's failure.
fn note_worker(
    control: &Control,
    app: &str,
    worker: &str,
    started: Option<u64>,
    why: &str,
    halted: bool,
) {
    let now = steady_ms();
    let lived = started.map_or(0, |at| now.saturating_sub(at));
    let mut observed = lock(&control.observed);
    let key = (app.to_owned(), worker.to_owned());
    let trouble = observed.workers.entry(key).or_default();
    let steady = lived >= backoff::STEADY.as_millis() as u64;
    trouble.failures = if steady {
        1
    } else {
        trouble.failures.saturating_add(1)
    };
    trouble.last_ms = now;
    trouble.why = why.to_owned();
    trouble.halted |= halted;
}

/// Counts a failure; one that cannot be written down counts in memory.
fn note_failure(control: &Control, app: &App, steady: bool, why: &str, halt: bool) {
    let before = failures_of(control, app);
    let failures = if steady { 1 } else { before.saturating_add(1) };
    if roll_back(control, app) {
        return;
    }
    let written = control.store.note_failure(&app.name, failures, why, halt);
    let mut observed = lock(&control.observed);
    observed.failed_at.insert(app.name.clone(), steady_ms());
    match written {
        Ok(()) => {
            observed.failures.remove(&app.name);
        }
        Err(error) => {
            tracing::warn!("{error}");
            observed.failures.insert(app.name.clone(), failures);
        }
    }
}

/// A release that ends again and again soon after it took over gives its place back to the one before.
fn roll_back(control: &Control, app: &App) -> bool {
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
        if deployment.kind != "deploy" || kept.is_none() || before == release.number {
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
fn replace_heavy(control: &Control, loaded: &Loaded, now: u64) {
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
        Ok(_) => {
            lock(&control.observed).replaced.insert(name.clone(), now);
        }
        Err(error) => tracing::warn!("{error}"),
    }
}

fn failures_of(control: &Control, app: &App) -> u32 {
    let observed = lock(&control.observed);
    observed
        .failures
        .get(&app.name)
        .copied()
        .unwrap_or(app.failures)
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

/// A deployment with its release, and what that says.
pub type Made = (Deployment, Release, Arc<AppSpec>);
type VersionOf = Option<Made>;

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
    let spec = control.specs.of(&release)?;
    Ok(Some((deployment, release, spec)))
}

/// Every app, and those whose stored configuration this program does not understand, and why: they are
/// left as they are.
/// The third: apps from images while it is not known what runs of them.
type Read = (Vec<Loaded>, BTreeMap<String, String>, Vec<Loaded>);

fn load(control: &Control) -> Result<Read, StoreError> {
    let (mut all, mut broken, mut waiting) = (Vec::new(), BTreeMap::new(), Vec::new());
    for app in control.store.apps()? {
        let name = app.name.clone();
        match load_one(control, app) {
            Ok(loaded) => {
                let engine = lock(&control.observed).engine.clone();
                match engine {
                    // What runs of it is not known: starting it once more would be wrong.
                    Engine::Unknown(why) if loaded.is_from_image() => {
                        broken.insert(name, format!("the Docker engine does not answer: {why}"));
                        waiting.push(loaded);
                    }
                    _ => all.push(loaded),
                }
            }
            Err(error @ StoreError::Spec { .. }) => {
                broken.insert(name, error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    Ok((all, broken, waiting))
}

fn load_one(control: &Control, app: App) -> Result<Loaded, StoreError> {
    let active = match version_of(control, app.active) {
        // Nothing of a removed app has to be understood any more.
        Err(StoreError::Spec { .. }) if app.goal == Goal::Removed => None,
        other => other?,
    };
    let under_way = control.store.under_way(&app.name)?;
    let deploying = under_way.is_some();
    let rolling = under_way.filter(|deployment| deployment.state == "rolling");
    let rollout = version_of(control, rolling.map(|d| d.id))?;
    Ok(Loaded {
        app,
        active,
        rollout,
        deploying,
    })
}

impl Loaded {
    /// Whose domains hold: the version that serves, before the first one the one that will.
    fn routing_spec(&self) -> Option<&Arc<AppSpec>> {
        let chosen = self.active.as_ref().or(self.rollout.as_ref());
        chosen.map(|(_, _, spec)| spec)
    }

    fn is_from_image(&self) -> bool {
        let mut versions = self.rollout.iter().chain(&self.active);
        versions.any(|(_, _, spec)| spec.image.is_some())
    }

    fn own(&self, deployment: u64) -> Option<publish::Own<'_>> {
        let mut versions = self.rollout.iter().chain(&self.active);
        let (_, release, spec) = versions.find(|(of, _, _)| of.id == deployment)?;
        Some(publish::Own {
            spec,
            tree: match &spec.image {
                Some(_) => format!("trees/{}", release.digest),
                None => tree_of(release),
            },
        })
    }

    fn version(&self, of: &Made) -> Version {
        let (deployment, _, spec) = of;
        Version {
            deployment: deployment.id,
            without_instances: !spec.run.has_instances(),
            instances: self.app.scale.unwrap_or(spec.instances),
            strategy: spec.strategy,
            restart: spec.restart,
            start_timeout: spec.start_timeout,
            drain_timeout: spec.drain_timeout,
        }
    }
}

fn desired(control: &Control, loaded: &Loaded, now: u64) -> Desired {
    let name = &loaded.app.name;
    let active = loaded.active.as_ref().map(|(_, _, spec)| spec);
    let sleep_after = active.and_then(|spec| spec.sleep_after);
    let known = failures_of(control, &loaded.app);
    let observed = lock(&control.observed);
    let awake = observed.awake.get(name).copied();
    let rollout = loaded.rollout.as_ref().map(|rollout| Rollout {
        version: loaded.version(rollout),
        failure: observed.rollout_failures.get(&rollout.0.id).cloned(),
    });
    let workers = active.map_or_else(Vec::new, |spec| {
        let group = |(worker, one): (&String, &hutong_core::spec::Worker)| {
            let trouble = observed.workers.get(&(name.clone(), worker.clone()));
            Group {
                name: worker.clone(),
                instances: one.instances,
                failures: trouble.map_or(0, |trouble| trouble.failures),
                last_failure_ms: trouble.map_or(0, |trouble| trouble.last_ms),
                halted: trouble.is_some_and(|trouble| trouble.halted),
            }
        };
        spec.workers.iter().map(group).collect()
    });
    Desired {
        workers,
        running: loaded.app.goal == Goal::Running,
        isolated: loaded.app.isolated,
        active: loaded.active.as_ref().map(|active| loaded.version(active)),
        rollout,
        // When it failed is not known any more after a restart: then it need not wait long.
        failures: match observed.failed_at.get(&loaded.app.name) {
            // Before it was woken: whoever woke it waits for this time.
            Some(at) if sleep_after.is_some() && awake.is_some_and(|since| *at < since) => 0,
            Some(_) => known,
            None => known.min(1),
        },
        last_failure_ms: observed
            .failed_at
            .get(&loaded.app.name)
            .copied()
            .unwrap_or(0),
        halted: loaded.app.halted.clone(),
        asleep: sleep_after.is_some() && awake.is_none(),
        idle: sleep_after.is_some_and(|after| {
            let told = observed.idle.get(name);
            let rested = awake.is_some_and(|since| now >= since + after.as_millis() as u64);
            let alone = !observed.sessions.contains_key(name);
            rested && alone && told.is_some_and(|at| now < at + IDLE_MS)
        }),
    }
}

/// What our probes say, and the image's own health check where it has one.
fn health(observed: &Observed, instance: &Instance) -> plan::Health {
    let probed = observed.health_of(&instance.instance);
    let own = instance.container.as_ref().and_then(|reach| reach.health);
    match (probed, own) {
        (plan::Health::Healthy, Some(docker::Health::Starting)) => {
            plan::Health::Starting("the image's health check has not passed yet".into())
        }
        (plan::Health::Healthy, Some(docker::Health::Unhealthy)) => {
            plan::Health::Failing("the image's health check fails".into())
        }
        (probed, _) => probed,
    }
}

fn seen(control: &Control, app: &str) -> Vec<Seen> {
    let observed = lock(&control.observed);
    observed
        .instances
        .values()
        .filter(|instance| instance.app == app)
        .filter_map(|instance| match ids::kind(&instance.instance) {
            ids::Kind::Web => Some((instance, None)),
            ids::Kind::Worker(name) => Some((instance, Some(name.to_owned()))),
            _ => None,
        })
        .map(|(instance, worker)| Seen {
            worker,
            id: instance.instance.clone(),
            deployment: instance.deployment,
            // What was frozen could not get healthy.
            started_ms: instance
                .started_steady
                .max(observed.since_ms)
                .max(observed.thawed.get(app).copied().unwrap_or(0)),
            health: health(&observed, instance),
            stopping: instance.ending || observed.stopping.contains_key(&instance.instance),
            draining_since_ms: observed.draining.get(&instance.instance).map(|d| d.0),
            drained: observed.is_drained(&instance.instance),
        })
        .collect()
}

fn publish_all(
    control: &Control,
    loaded: &[Loaded],
    plans: &[Plan],
    specs: &BTreeMap<String, Arc<AppSpec>>,
    broken: &BTreeMap<String, String>,
    published: &mut Snapshot,
    now: u64,
) -> Result<bool, String> {
    let mut apps = BTreeMap::new();
    for (name, reason) in broken {
        // Whatever it served, it serves on, unless it is in quarantine.
        if let Some(app) = published.apps.get(name) {
            let mut app = app.clone();
            let found = control.store.app(name).ok().flatten();
            if found.is_some_and(|found| found.isolated) {
                app.targets.clear();
                app.serve = wire::Serve::Down {
                    reason: "the app is not available at the moment".into(),
                    retry_after_s: 300,
                };
            }
            apps.insert(name.clone(), app);
        }
        let mut observed = lock(&control.observed);
        observed.warnings.insert(name.clone(), vec![reason.clone()]);
    }
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
        let around = publish::Around {
            static_root: root.as_deref(),
            specs,
            upstreams: &control.upstreams,
        };
        let own = |instance: &str| loaded.own(ids::parse(instance)?.1);
        let reach = |instance: &str| {
            let observed = lock(&control.observed);
            let found = observed.instances.get(instance)?.container.clone();
            found.map(|reach| reach.address)
        };
        let (mut app, warnings) = publish::app(spec, plan, &around, own, reach);
        if removed {
            app.routes.clear();
        }
        if loaded.app.goal != Goal::Running || loaded.app.halted.is_some() {
            // It does not run anyway.
            app.sleep_after_ms = None;
        }
        apps.insert(name.clone(), app);
        let mut observed = lock(&control.observed);
        let mut warnings = warnings;
        if let (Engine::Silent(why), true) = (&observed.engine, loaded.is_from_image()) {
            warnings.push(format!("the Docker engine does not answer: {why}"));
        }
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
    let says_so = if same { published.version } else { next };
    let news = {
        let mut observed = lock(&control.observed);
        let mut fresh = Vec::new();
        for (instance, (_, version)) in &mut observed.draining {
            if *version > says_so {
                *version = says_so;
                fresh.push(instance.clone());
            }
        }
        // The gateway said so before we had looked: nothing else will wake us.
        fresh.iter().any(|instance| observed.is_drained(instance))
    };
    if same {
        let mut observed = lock(&control.observed);
        observed.published_active = active;
        observed.published_version = published.version;
        return Ok(news);
    }
    let fresh = Snapshot {
        version: next,
        apps,
    };
    publish::write(
        &control.data_dir,
        &control.run_dir,
        &fresh,
        control.gateway_gid,
    )
    .map_err(|error| format!("cannot publish the routes: {error}"))?;
    fail::point("published");
    *published = fresh;
    {
        let mut observed = lock(&control.observed);
        observed.published_active = active;
        observed.published_version = published.version;
    }
    control.published.notify_one();
    Ok(news)
}

/// Where a static version's files are, below the data folder.
fn static_root((_, release, spec): &Made) -> Option<String> {
    let Run::Static { folder, .. } = &spec.run else {
        return None;
    };
    let tree = tree_of(release);
    Some(if folder.is_empty() {
        tree
    } else {
        format!("{tree}/{folder}")
    })
}

/// Where a release's files are, below the data folder.
fn tree_of(release: &Release) -> String {
    match &release.built {
        Some(key) => format!("built/{}/{key}", release.app),
        None => format!("trees/{}", release.digest),
    }
}

/// Carries one step out; true when the next pass has something to go on from.
fn apply(control: &Control, loaded: &Loaded, step: &Step) -> bool {
    let app = &loaded.app.name;
    match step {
        Step::Start { deployment, worker } => {
            let reason = match start(control, loaded, *deployment, worker.as_deref()) {
                Ok(()) => return true,
                // It may have been started all the same: the next look tells. Not the app's failure.
                Err(NotStarted::Unknown(reason)) => {
                    tracing::warn!("{reason}");
                    return false;
                }
                Err(NotStarted::Because(reason)) => reason,
            };
            control
                .logs
                .note(app, "", &format!("cannot start: {reason}"));
            let rolling = loaded
                .rollout
                .as_ref()
                .is_some_and(|r| r.0.id == *deployment);
            if let Some(worker) = worker {
                note_worker(control, app, worker, None, &reason, false);
            } else if rolling {
                let mut observed = lock(&control.observed);
                observed.rollout_failures.insert(*deployment, reason);
            } else {
                note_failure(control, &loaded.app, false, &reason, false);
            }
            true
        }
        Step::Stop {
            instance,
            why,
            sick,
        } => {
            if *sick {
                note_failure(control, &loaded.app, false, why, false);
            }
            let spec = loaded.routing_spec();
            let timeout = spec.map_or(Duration::from_secs(10), |spec| spec.stop_timeout);
            control
                .logs
                .note(app, instance, &format!("is stopped: {why}"));
            control.stop_instance(instance, timeout);
            let mut observed = lock(&control.observed);
            observed.stopping.insert(instance.clone(), steady_ms());
            false
        }
        Step::Promote { deployment } => {
            let done = control.store.promote(*deployment);
            match done {
                Ok(false) => true,
                Ok(true) => {
                    let before = loaded.active.as_ref().map(|(_, release, _)| release.number);
                    let mut observed = lock(&control.observed);
                    observed.failures.remove(app);
                    let probation = Probation {
                        since_ms: steady_ms(),
                        before,
                        ends: 0,
                    };
                    observed.promoted.insert(app.clone(), probation);
                    observed.workers.retain(|(of, _), _| of != app);
                    observed.wake(app);
                    drop(observed);
                    let text = format!("deployment {deployment} serves");
                    control.logs.note(app, "", &text);
                    true
                }
                Err(error) => {
                    tracing::error!("{error}");
                    false
                }
            }
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
        Step::Sleep => {
            let mut observed = lock(&control.observed);
            // Somebody may have come since it was planned: who wants it takes that word back.
            if observed.sessions.contains_key(app) || observed.idle.remove(app).is_none() {
                return true;
            }
            observed.awake.remove(app);
            drop(observed);
            control
                .logs
                .note(app, "", "falls asleep: nobody asks for it");
            true
        }
        Step::Wait { .. } => false,
    }
}

fn start(
    control: &Control,
    loaded: &Loaded,
    deployment: u64,
    worker: Option<&str>,
) -> Result<(), NotStarted> {
    let versions = loaded.rollout.iter().chain(&loaded.active);
    let (_, release, spec) = versions
        .into_iter()
        .find(|(of, _, _)| of.id == deployment)
        .ok_or_else(|| "its release is gone".to_owned())?;
    let found = match (worker, &spec.run) {
        (Some(name), _) => spec.workers.get_key_value(name).map(|(name, worker)| {
            let kind = ids::Kind::Worker(name);
            (kind, &worker.command, worker.caps)
        }),
        (None, Run::Command(argv)) => Some((ids::Kind::Web, argv, spec.caps)),
        (None, _) => None,
    };
    let (kind, argv, caps) =
        found.ok_or_else(|| "only an app with a `command` has instances".to_owned())?;
    let instance = ids::instance(&loaded.app.name, deployment, kind);
    let what = What {
        deployment,
        release,
        spec,
        kind,
        argv,
        caps,
    };
    launch(control, &instance, &what)
}

/// Whether it runs once.
fn is_job(instance: &str) -> bool {
    matches!(ids::kind(instance), ids::Kind::Cron(_) | ids::Kind::Run)
}

/// Whether visitors' requests go to it.
fn is_web(instance: &Instance) -> bool {
    ids::kind(&instance.instance) == ids::Kind::Web
}

/// An app that listens elsewhere is told where.
fn with_port_hint(control: &Control, loaded: &Loaded, deployment: u64, reason: &str) -> String {
    let rollout = loaded.rollout.as_ref();
    let port = rollout.map_or(0, |(_, _, spec)| spec.port);
    let is_container = rollout.is_some_and(|(_, _, spec)| spec.image.is_some());
    if is_container && reason.contains("refused") {
        return format!(
            "{reason}; the program must listen on port {port}, and on 0.0.0.0 instead of 127.0.0.1"
        );
    }
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
        only: Only::Deployment(app.to_owned(), deployment),
    };
    let (lines, _) = control.logs.last(app, &query);
    let mut words: Vec<String> = lines
        .iter()
        .filter_map(|line| serde_json::from_str::<hutong_api::LogLine>(line).ok())
        .filter(|line| line.s != "note")
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
        let _ = control.kill_instance(&instance);
    }
    if loaded.app.goal == Goal::Removed {
        let expired = loaded.app.purge || loaded.app.removed_ms > KEEP_DATA_MS;
        return left == 0 && expired && forget(control, name);
    }
    if loaded.rollout.is_none() {
        forgive(control, loaded, now);
        if loaded.app.goal == Goal::Running && !loaded.deploying {
            replace_heavy(control, loaded, now);
        }
        forgive_workers(control, loaded, now);
        if has_changed(control, loaded) {
            retain(control, loaded);
        }
    }
    false
}

/// An app that runs well for long starts with a clean slate.
fn forgive(control: &Control, loaded: &Loaded, now: u64) {
    if failures_of(control, &loaded.app) == 0 {
        return;
    }
    let steady = backoff::STEADY.as_millis() as u64;
    let name = &loaded.app.name;
    let Some(active) = loaded.active.as_ref().map(|active| loaded.version(active)) else {
        return;
    };
    let well = {
        let observed = lock(&control.observed);
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
fn forgive_workers(control: &Control, loaded: &Loaded, now: u64) {
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
    drop(observed);
    drop_unused_trees(control);
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
}

/// Trees that no release uses; recent ones may be about to be deployed.
fn drop_unused_trees(control: &Control) {
    let Ok(used) = control.store.digests() else {
        return;
    };
    let trees = control.data_dir.join("trees");
    let now = steady_ms();
    for entry in std::fs::read_dir(&trees).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let asked = lock(&control.trees_asked).get(&name).copied();
        let old = asked.unwrap_or(control.began_ms) + KEEP_TREES_MS < now;
        if hutong_core::name::is_digest(&name) && !used.contains(&name) && old {
            // The name goes first: half a tree must never be taken for a whole one.
            let gone = trees.join(format!(".upload-gone-{name}"));
            if std::fs::rename(entry.path(), &gone).is_ok() {
                let _ = std::fs::remove_dir_all(gone);
                lock(&control.trees_asked).remove(&name);
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
