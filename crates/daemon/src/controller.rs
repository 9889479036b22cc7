//! Makes true what is declared: observe, plan (pure, in `core`), publish, apply. Woken by every change
//! and by a timer; a wake-up carries no data; each pass is whole and may be the last.

mod canary;
mod care;
mod hours;
mod observe;
mod scaling;
mod tidy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hutong_core::plan::{
    self, Desired, Group, Plan, Role, Rollout, Seen, Serve, Step, Version, Warm,
};
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
use crate::{Control, external, ids, jobs, lock, memory, platform, publish};

pub use canary::{Counted, called, standby, switch_back};
use care::{forgive, forgive_workers, freeze, replace_heavy, roll_back};
pub use hours::Hours;
pub use observe::is_known;
use observe::{failures_of, note_failure, note_worker, observe};
pub use scaling::{Scaling, wanted_instances};
use tidy::tidy;

/// Without a change, everything is looked at again this often.
const TIMER: Duration = Duration::from_secs(5);
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
/// How long a deployment waits for memory.
const MEMORY_PATIENCE: Duration = Duration::from_secs(60);
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
    /// How far the rollout is, if it is a canary that has begun.
    begun: Option<crate::store::Canary>,
    /// Whatever else runs of it: what finishes, and what is kept ready.
    beside: Vec<Made>,
    /// A deployment is being built or rolled out.
    deploying: bool,
}

fn pass(control: &Arc<Control>, published: &mut Snapshot) -> Result<Outcome, String> {
    fail::point("observe");
    observe(control)?;
    memory::settle(control);
    let (loaded, broken, waiting) = load(control).map_err(|error| error.to_string())?;
    let agenda = jobs::agenda(control).map_err(|error| error.to_string())?;
    let specs: BTreeMap<String, Arc<AppSpec>> = loaded
        .iter()
        .chain(&waiting)
        .filter(|l| l.app.goal != Goal::Removed)
        .filter_map(|l| Some((l.app.name.clone(), l.routing_spec()?.clone())))
        .collect();
    let free = |loaded: &&Loaded| !loaded.app.isolated;
    for loaded in loaded.iter().chain(&waiting).filter(free) {
        freeze(control, &loaded.app);
    }
    let now = steady_ms();
    canary::forget(control, loaded.iter().chain(&waiting));
    let mut plans = Vec::new();
    let mut went_on = false;
    let mut until_ms = None;
    for loaded in &loaded {
        hours::look(control, loaded);
        scaling::look(control, loaded, now);
        went_on |= canary::look(control, loaded);
        let step_ends = canary::step_ends(control, loaded, now);
        until_ms = [until_ms, step_ends].into_iter().flatten().min();
        let seen = seen(control, &loaded.app.name);
        plans.push(plan::plan(&desired(control, loaded, now), &seen, now));
    }
    let mut outcome = Outcome {
        again: false,
        until_ms,
    };
    outcome.again = publish_all(control, &loaded, &plans, &specs, &broken, published, now)?;
    outcome.again |= went_on;
    // Behind the routes: whoever does not freeze at once is cut off all the same, and nobody else waits for it.
    let isolated = |loaded: &&Loaded| loaded.app.isolated;
    for loaded in loaded.iter().chain(&waiting).filter(isolated) {
        freeze(control, &loaded.app);
    }
    let dying = {
        let observed = lock(&control.observed);
        let is_dying = |i: &Instance| {
            let gone = observed.gone.get(&i.instance);
            i.ending || gone.is_some_and(|at| now < at + DYING_MS)
        };
        observed.instances.values().any(is_dying)
    };
    if dying {
        let soon = Some(now + ENDING_MS);
        outcome.until_ms = [outcome.until_ms, soon].into_iter().flatten().min();
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
        let mut is_silent = false;
        for step in fails.into_iter().chain(rest) {
            // Whoever starts them has not answered: others are not to wait for each of this app's.
            if is_silent && matches!(step, Step::Start { .. }) {
                continue;
            }
            if let Step::Wait { until_ms, .. } = step {
                outcome.until_ms = [outcome.until_ms, *until_ms].into_iter().flatten().min();
                continue;
            }
            let word = match step {
                Step::Start { .. } => "start",
                Step::Stop { .. } => "stop",
                Step::Begin { .. } => "begin",
                Step::Promote { .. } => "promote",
                Step::Fail { .. } => "fail",
                Step::Sleep => "sleep",
                Step::Wait { .. } => "wait",
            };
            fail::point(&format!("apply {word}"));
            match apply(control, loaded, step) {
                Ok(again) => outcome.again |= again,
                Err(Silent) => is_silent = true,
            }
            fail::point(&format!("applied {word}"));
        }
        if !plan
            .steps
            .iter()
            .any(|step| matches!(step, Step::Start { .. }))
        {
            control.waits_no_more(&loaded.app.name);
            let rolling = loaded.rollout.as_ref();
            if let Some((deployment, _, _)) = rolling {
                control.waits_no_more(&format!("{}#{}", loaded.app.name, deployment.id));
            }
        }
        if loaded.app.isolated {
            continue;
        }
        let runs = loaded.is_to_run();
        let spec = loaded.routing_spec();
        let subject = jobs::Subject {
            app: &loaded.app.name,
            active: loaded.active.as_ref().filter(|_| runs),
            is_over: over(control, loaded).is_some(),
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

/// A deployment with its release, and what that says.
pub type Made = (Deployment, Release, Arc<AppSpec>);
type VersionOf = Option<Made>;

pub fn version_of(control: &Control, deployment: Option<u64>) -> Result<VersionOf, StoreError> {
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
                    Engine::Unknown(why) if loaded.needs_engine(control) => {
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
    let beside = beside(control, &app, rollout.as_ref().map(|(of, _, _)| of.id));
    Ok(Loaded {
        begun: canary::begun(control, &rollout)?,
        beside,
        app,
        active,
        rollout,
        deploying,
    })
}

/// What runs of an app besides the two deployments that count. What is not understood any more is left out: it ends.
fn beside(control: &Control, app: &App, rollout: Option<u64>) -> Vec<Made> {
    let others: BTreeSet<u64> = {
        let observed = lock(&control.observed);
        let mine = observed.instances.values();
        mine.filter(|i| i.app == app.name && is_web(i))
            .map(|i| i.deployment)
            .filter(|id| app.active != Some(*id) && rollout != Some(*id))
            .collect()
    };
    others
        .into_iter()
        .filter_map(|id| version_of(control, Some(id)).ok().flatten())
        .collect()
}

impl Loaded {
    /// Whose domains hold: the version that serves, before the first one the one that will.
    fn routing_spec(&self) -> Option<&Arc<AppSpec>> {
        let chosen = self.active.as_ref().or(self.rollout.as_ref());
        chosen.map(|(_, _, spec)| spec)
    }

    /// What its releases say that run, the one that serves first.
    fn releases(&self) -> impl Iterator<Item = &AppSpec> {
        let versions = self.active.iter().chain(&self.rollout);
        versions.map(|(_, _, spec)| &**spec)
    }

    /// Its owner wants it to run, and its data is not about to be another.
    fn is_to_run(&self) -> bool {
        self.app.goal == Goal::Running && self.app.restoring.is_none()
    }

    /// Whether the container engine runs something of it.
    fn needs_engine(&self, control: &Control) -> bool {
        let mut versions = self.rollout.iter().chain(&self.active);
        versions.any(|(_, release, spec)| crate::images::needs_engine(control, release, spec))
    }

    fn own(&self, deployment: u64) -> Option<publish::Own<'_>> {
        let serving = self.rollout.iter().chain(&self.active);
        let mut versions = serving.chain(&self.beside);
        let (_, release, spec) = versions.find(|(of, _, _)| of.id == deployment)?;
        Some(publish::Own {
            spec,
            tree: match &spec.image {
                Some(_) => format!("trees/{}", release.digest),
                None => tree_of(release),
            },
        })
    }

    fn version(&self, observed: &Observed, of: &Made) -> Version {
        let (deployment, _, spec) = of;
        Version {
            deployment: deployment.id,
            without_instances: !spec.run.has_instances(),
            instances: wanted_instances(observed, &self.app, spec),
            strategy: canary::strategy_of(of),
            restart: spec.restart,
            start_timeout: spec.start_timeout,
            drain_timeout: spec.drain_timeout,
        }
    }
}

/// Why nothing of an app is to run that may go on filling the disk.
fn over(control: &Control, loaded: &Loaded) -> Option<String> {
    let (_, _, spec) = loaded.active.as_ref()?;
    let observed = lock(&control.observed);
    let disk = &observed.disk;
    disk.over(&loaded.app.name, spec, control.settings.app_disk)
}

fn desired(control: &Control, loaded: &Loaded, now: u64) -> Desired {
    let name = &loaded.app.name;
    let active = loaded.active.as_ref().map(|(_, _, spec)| spec);
    let sleep_after = active.and_then(|spec| spec.sleep_after);
    let known = failures_of(control, &loaded.app);
    let over = over(control, loaded);
    let observed = lock(&control.observed);
    let awake = observed.awake.get(name).copied();
    let free = loaded.app.restoring.is_none();
    let rollout = loaded.rollout.as_ref().filter(|_| free);
    let rollout = rollout.map(|rollout| Rollout {
        version: loaded.version(&observed, rollout),
        failure: observed.rollout_failures.get(&rollout.0.id).cloned(),
        share: canary::share(loaded),
    });
    let workers = active.map_or_else(Vec::new, |spec| {
        let group = |(worker, one): (&String, &hutong_core::spec::Worker)| {
            let trouble = observed.workers.get(&(name.clone(), worker.clone()));
            Group {
                name: worker.clone(),
                instances: one.instances,
                failures: trouble.map_or(0, |trouble| trouble.failures),
                last_failure_ms: trouble.map_or(0, |trouble| trouble.last_ms),
                halted: over.is_some() || trouble.is_some_and(|trouble| trouble.halted),
            }
        };
        spec.workers.iter().map(group).collect()
    });
    Desired {
        workers,
        running: loaded.is_to_run(),
        isolated: loaded.app.isolated,
        active: loaded
            .active
            .as_ref()
            .map(|active| loaded.version(&observed, active)),
        rollout,
        warm: loaded.app.warm.map(|deployment| Warm {
            deployment,
            until_ms: loaded.app.warm_until_ms,
        }),
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
        halted: loaded.app.halted.clone().or(over),
        asleep: sleep_after.is_some() && awake.is_none(),
        closed: observed
            .hours
            .get(name)
            .and_then(|hours| hours.closed.clone()),
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
    let own = match &instance.container {
        Some(reach) => reach.health,
        None => observed.image_health.get(&instance.instance).copied(),
    };
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
                app.callers.clear();
                app.links.clear();
                app.serve = wire::Serve::Down {
                    reason: "the app is not available at the moment".into(),
                    retry_after_s: 300,
                    until_ms: None,
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
        app.split = plan.split.and_then(|split| canary::split(loaded, split));
        let (links, waiting) = publish::links(loaded.releases(), specs);
        if !links.is_empty() && !loaded.app.isolated {
            app.callers = callers(control, name);
            app.links = links;
        }
        if loaded.app.goal != Goal::Running || loaded.app.halted.is_some() {
            // It does not run anyway.
            app.sleep_after_ms = None;
        }
        apps.insert(name.clone(), app);
        let mut observed = lock(&control.observed);
        let mut warnings = warnings;
        warnings.extend(waiting);
        if let (Engine::Silent(why), true) = (&observed.engine, loaded.needs_engine(control)) {
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
    platform::publish(control, &mut apps);
    external::publish(control, specs, &published.apps, &mut apps);
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

/// What runs of an app and may call others: everything but builds.
fn callers(control: &Control, app: &str) -> Vec<wire::Caller> {
    let observed = lock(&control.observed);
    let all = observed.instances.values().filter(|one| one.app == app);
    all.map(|one| wire::Caller {
        instance: one.instance.clone(),
        container: one.container.is_some(),
    })
    .collect()
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

/// Whether something was started is not known: no answer came.
struct Silent;

/// Carries one step out; true when the next pass has something to go on from.
fn apply(control: &Control, loaded: &Loaded, step: &Step) -> Result<bool, Silent> {
    let app = &loaded.app.name;
    Ok(match step {
        Step::Start { deployment, worker } => {
            let is = |rollout: &Made| rollout.0.id == *deployment;
            let rolling = loaded.rollout.as_ref().is_some_and(is);
            let reason = match start(control, loaded, *deployment, worker.as_deref()) {
                Ok(()) => return Ok(true),
                // It may have been started all the same: the next look tells. Not the app's failure.
                Err(NotStarted::Unknown(reason)) => {
                    tracing::warn!("{reason}");
                    return Err(Silent);
                }
                Err(NotStarted::NoRoom(reason)) => {
                    let who = match rolling {
                        true => format!("{app}#{deployment}"),
                        false => app.clone(),
                    };
                    let waited = control.waits(&who, app, &reason);
                    // Whoever deploys is there to be told; whatever serves, all visitors or some, waits as long as it
                    // takes.
                    if !rolling || loaded.begun.is_some() || waited < MEMORY_PATIENCE {
                        return Ok(false);
                    }
                    reason
                }
                Err(NotStarted::Because(reason)) => reason,
            };
            control
                .logs
                .note(app, "", &format!("cannot start: {reason}"));
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
        Step::Begin { deployment } => canary::begin(control, loaded, *deployment),
        Step::Promote { deployment } => {
            let warm_until = canary::keeps_until(loaded);
            let done = control.store.promote(*deployment, warm_until);
            match done {
                Ok(false) => true,
                Ok(true) => {
                    let number =
                        |made: &VersionOf| made.as_ref().map(|(_, release, _)| release.number);
                    let before = number(&loaded.active);
                    let mut observed = lock(&control.observed);
                    observed.failures.remove(app);
                    observed.verdicts.remove(deployment);
                    observed.trials.remove(app);
                    let probation = Probation {
                        since_ms: steady_ms(),
                        before,
                        ends: 0,
                    };
                    // The same release once more stays on the probation that it is on.
                    if before != number(&loaded.rollout) {
                        observed.promoted.insert(app.clone(), probation);
                        // It may be the remedy.
                        observed.leaked.remove(app);
                    }
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
            match control.store.fail(*deployment, &reason, &log) {
                Ok(true) => {
                    let text = format!("deployment {deployment} failed: {reason}");
                    control.logs.note(app, "", &text);
                }
                // Somebody was faster, and has said so.
                Ok(false) => {}
                Err(error) => {
                    tracing::error!("{error}");
                    return Ok(false);
                }
            }
            let mut observed = lock(&control.observed);
            observed.rollout_failures.remove(deployment);
            observed.verdicts.remove(deployment);
            true
        }
        Step::Sleep => {
            let mut observed = lock(&control.observed);
            // Somebody may have come since it was planned: who wants it takes that word back.
            if observed.sessions.contains_key(app) || observed.idle.remove(app).is_none() {
                return Ok(true);
            }
            observed.awake.remove(app);
            drop(observed);
            control
                .logs
                .note(app, "", "falls asleep: nobody asks for it");
            true
        }
        Step::Wait { .. } => false,
    })
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
    let is_container = rollout
        .is_some_and(|(_, release, spec)| crate::images::needs_engine(control, release, spec));
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

/// What a person is told of an app that does not serve.
pub fn describe(serve: Option<&Serve>) -> Option<String> {
    match serve {
        Some(Serve::Down { reason, .. } | Serve::Closed { reason, .. }) => Some(reason.clone()),
        _ => None,
    }
}
