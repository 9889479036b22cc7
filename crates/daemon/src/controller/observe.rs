//! What there is to see: what runs, as the warden and the engine say, and how what does not run any more has ended.

use super::*;

/// Asks the warden what runs; takes the last words of what does not any more.
pub(super) fn observe(control: &Arc<Control>) -> Result<(), String> {
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
        Ok(Some((_, release, spec))) => !crate::images::needs_engine(control, &release, &spec),
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
pub(super) fn note_worker(
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
pub(super) fn note_failure(control: &Control, app: &App, steady: bool, why: &str, halt: bool) {
    let before = failures_of(control, app);
    let failures = if steady { 1 } else { before.saturating_add(1) };
    if !steady && roll_back(control, app) {
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

pub(super) fn failures_of(control: &Control, app: &App) -> u32 {
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
