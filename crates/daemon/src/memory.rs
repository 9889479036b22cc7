//! Memory that is set aside for what runs: each instance's `guaranteed` part of its cap. Their sum is known, and nothing
//! is started that does not fit: it waits, or is refused where somebody asked for it. Beyond what is guaranteed, up to
//! their caps, instances share what is left.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hutong_core::spec::{AppSpec, Caps, Strategy};
use hutong_core::units::show_size;

use crate::{Control, controller, ids, lock};

/// What a build is given of its own.
pub const BUILD: u64 = 384 << 20;
/// Of this machine's memory, for the platform and the system: a tenth, but at least this.
const SYSTEM: u64 = 256 << 20;
/// So much of it is to be free in fact when something is started, beside what that needs.
const SPARE: u64 = 64 << 20;

/// What is set aside.
#[derive(Default)]
pub struct Ledger {
    by_instance: HashMap<String, u64>,
    /// Apps of which something waits for memory.
    waiting: HashMap<String, Waiting>,
    /// Passes of the controller so far.
    passes: u64,
}

struct Waiting {
    why: String,
    since: Instant,
    /// When it last said so, and in which pass.
    said: Instant,
    pass: u64,
}

/// Who has not said for so long that it waits, and in none of the last passes, waits no more: it was given up, or is over.
/// Neither alone would do: a pass may take long, and jobs that wait by themselves may see many short ones.
const FORGOTTEN: Duration = Duration::from_secs(15);
const FORGOTTEN_PASSES: u64 = 2;

impl Ledger {
    /// Another pass begins: forgets who waits no more.
    fn forget(&mut self, forgotten: Duration) {
        self.passes += 1;
        let passes = self.passes;
        self.waiting.retain(|_, one| {
            one.said.elapsed() < forgotten || one.pass + FORGOTTEN_PASSES >= passes
        });
    }
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What apps and builds may have in all.
    pub total: u64,
    pub guaranteed: u64,
    /// What the kernel could give now.
    pub available: u64,
}

impl Room {
    /// Why so much more does not fit into what apps may have.
    fn check(&self, wanted: u64) -> Result<(), String> {
        let left = self.total.saturating_sub(self.guaranteed);
        if wanted > left {
            return Err(format!(
                "{} of memory are needed, and {} of {} are left for apps",
                show_size(wanted),
                show_size(left),
                show_size(self.total)
            ));
        }
        Ok(())
    }

    /// The same, and why there is not so much in fact: for what may as well wait. Others may use up what is not
    /// theirs; that must not keep an app from what it is guaranteed.
    fn check_free(&self, wanted: u64) -> Result<(), String> {
        self.check(wanted)?;
        if wanted.saturating_add(SPARE) > self.available {
            return Err(format!(
                "{} of memory are needed, and only {} are free on this machine",
                show_size(wanted),
                show_size(self.available)
            ));
        }
        Ok(())
    }
}

/// A line of /proc/meminfo (proc_meminfo(5)), in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number = line.trim_start_matches(':').trim().strip_suffix(" kB")?;
    Some(number.trim().parse::<u64>().ok()? << 10)
}

/// This machine's memory, or what a container that we run in is given of it: in all, and free.
fn machine() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = field(&text, "MemTotal").unwrap_or(u64::MAX);
    let available = field(&text, "MemAvailable").unwrap_or(u64::MAX);
    let caps = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let cap = caps.iter().find_map(|path| {
        let text = std::fs::read_to_string(path).ok()?;
        text.trim().parse::<u64>().ok()
    });
    (total.min(cap.unwrap_or(u64::MAX)), available)
}

/// The memory that a build may use at most: it must not freeze a small machine.
pub fn build_cap() -> u64 {
    let (total, _) = machine();
    (total / 2).clamp(BUILD, 1536 << 20)
}

impl Control {
    pub fn room(&self) -> Room {
        let (total, available) = machine();
        let default = total.saturating_sub((total / 10).max(SYSTEM));
        Room {
            total: self.settings.app_memory.unwrap_or(default),
            guaranteed: lock(&self.memory).by_instance.values().sum(),
            available,
        }
    }

    /// Whether so much more fits now; if not, why.
    pub fn has_memory(&self, wanted: u64) -> Result<(), String> {
        self.room().check(wanted)
    }

    /// Sets memory aside for a build.
    pub fn set_aside_for_build(&self, build: &str) -> Result<(), String> {
        let room = self.room();
        // On a machine that is too small for any it gets all that there is.
        let bytes = BUILD.min(room.total);
        room.check_free(bytes)?;
        self.set_aside(build, bytes)
    }

    /// Sets memory aside for an instance that is about to start.
    pub fn set_aside(&self, instance: &str, bytes: u64) -> Result<(), String> {
        let room = self.room();
        let mut ledger = lock(&self.memory);
        if ledger.by_instance.contains_key(instance) {
            return Ok(());
        }
        // Counted under the lock: somebody else may have been faster.
        let guaranteed = ledger.by_instance.values().sum();
        Room { guaranteed, ..room }.check(bytes)?;
        ledger.by_instance.insert(instance.to_owned(), bytes);
        Ok(())
    }

    /// Something of an app waits, `who` of it; says for how long already.
    pub fn waits(&self, who: &str, app: &str, why: &str) -> Duration {
        let mut ledger = lock(&self.memory);
        let pass = ledger.passes;
        let fresh = || Waiting {
            why: String::new(),
            since: Instant::now(),
            said: Instant::now(),
            pass,
        };
        let waiting = ledger.waiting.entry(who.to_owned()).or_insert_with(fresh);
        let news = waiting.why.is_empty();
        waiting.why = why.to_owned();
        waiting.said = Instant::now();
        waiting.pass = pass;
        let waited = waiting.since.elapsed();
        drop(ledger);
        if news {
            self.logs.note(app, "", &format!("waits for memory: {why}"));
        }
        waited
    }

    pub fn waits_no_more(&self, who: &str) {
        lock(&self.memory).waiting.remove(who);
    }

    /// What something of an app waits for: an instance, or a job.
    pub fn waits_for(&self, app: &str) -> Option<String> {
        let ledger = lock(&self.memory);
        let mut all = ledger.waiting.iter();
        let of_app = |who: &str| who.split('#').next() == Some(app);
        let (_, found) = all.find(|(who, _)| of_app(who))?;
        Some(found.why.clone())
    }

    pub fn give_back(&self, instance: &str) {
        lock(&self.memory).by_instance.remove(instance);
    }
}

/// Takes in what runs: what is gone gives its part back, what a control plane before us started is counted. Builds and
/// release commands say themselves when they are over.
pub fn settle(control: &Control) {
    let running: Vec<(String, u64)> = {
        let observed = lock(&control.observed);
        let all = observed.instances.values();
        all.map(|one| (one.instance.clone(), one.memory)).collect()
    };
    let unknown: Vec<(String, u64)> = {
        let mut ledger = lock(&control.memory);
        let runs = |instance: &String| running.iter().any(|(one, _)| one == instance);
        ledger
            .by_instance
            .retain(|instance, _| runs(instance) || ids::is_of_deployment(instance));
        ledger.forget(FORGOTTEN);
        let unknown = |(instance, _): &&(String, u64)| !ledger.by_instance.contains_key(instance);
        running.iter().filter(unknown).cloned().collect()
    };
    for (instance, used) in unknown {
        let known = guaranteed_of(control, &instance);
        let mut ledger = lock(&control.memory);
        ledger.by_instance.insert(instance, known.unwrap_or(used));
    }
}

/// What an instance's release says.
fn guaranteed_of(control: &Control, instance: &str) -> Option<u64> {
    let (_, deployment) = ids::parse(instance)?;
    let (_, _, spec) = controller::version_of(control, Some(deployment)).ok()??;
    let caps = match ids::kind(instance) {
        ids::Kind::Worker(name) => spec.workers.get(name)?.caps,
        ids::Kind::Cron(name) => spec.cron.get(name)?.caps,
        _ => spec.caps,
    };
    Some(caps.guaranteed_bytes)
}

/// What all of a release's programs are guaranteed that run all the time.
fn of_release(spec: &AppSpec, instances: u32) -> u64 {
    let times = |caps: &Caps, count: u32| caps.guaranteed_bytes.saturating_mul(u64::from(count));
    let web = match spec.run.has_instances() {
        true => times(&spec.caps, instances),
        false => 0,
    };
    let workers = spec
        .workers
        .values()
        .map(|one| times(&one.caps, one.instances));
    workers.fold(web, u64::saturating_add)
}

/// Whether an app can have so many instances: of a release on trial there are as many as of the one that serves.
pub fn check_scale(
    control: &Control,
    app: &str,
    spec: &AppSpec,
    instances: u32,
) -> Result<(), String> {
    let tried = on_trial(control, app);
    let is_tried = |deployment: u64| tried.as_ref().is_some_and(|(of, _)| *of == deployment);
    let (new, old): (Vec<u64>, Vec<u64>) = {
        let ledger = lock(&control.memory);
        let web = ledger.by_instance.keys().filter_map(|one| {
            let (of, deployment) = ids::parse(one)?;
            (of == app && ids::kind(one) == ids::Kind::Web).then_some(deployment)
        });
        web.partition(|deployment| is_tried(*deployment))
    };
    let more = |caps: &Caps, has: usize| {
        let more = u64::from(instances).saturating_sub(has as u64);
        caps.guaranteed_bytes.saturating_mul(more)
    };
    let beside = tried.as_ref().map_or(0, |(_, caps)| more(caps, new.len()));
    match more(&spec.caps, old.len()).saturating_add(beside) {
        0 => Ok(()),
        bytes => control.has_memory(bytes),
    }
}

/// The deployment of an app's release on trial, and what its instances may have.
fn on_trial(control: &Control, app: &str) -> Option<(u64, Caps)> {
    let id = control.store.under_way(app).ok()??.id;
    control.store.canary(id).ok()??;
    let (_, _, spec) = controller::version_of(control, Some(id)).ok()??;
    Some((id, spec.caps))
}

/// Whether a release can take over: beside the one that serves, or in its place.
pub fn check_release(
    control: &Control,
    app: &str,
    spec: &AppSpec,
    instances: u32,
) -> Result<(), String> {
    let room = control.room();
    let jobs = spec.cron.values().map(|job| job.caps.guaranteed_bytes);
    if let Some(job) = jobs.max().filter(|job| *job > room.total) {
        return Err(format!(
            "a timed job is guaranteed {} of memory, and apps have {} in all",
            show_size(job),
            show_size(room.total)
        ));
    }
    // Not what runs a while and ends: builds, timed jobs, release commands.
    let has = |web: bool| -> u64 {
        let ledger = lock(&control.memory);
        let mine = ledger.by_instance.iter().filter(|(one, _)| {
            let of_app = ids::parse(one).is_some_and(|(of, _)| of == app);
            of_app
                && match ids::kind(one) {
                    ids::Kind::Web => web,
                    ids::Kind::Worker(_) => !web,
                    _ => false,
                }
        });
        mine.map(|(_, bytes)| bytes).sum()
    };
    // What is kept ready beside the one that serves ends first.
    let warm = control.store.app(app).ok().flatten();
    let warm = warm.and_then(|app| app.warm);
    let ends: u64 = {
        let ledger = lock(&control.memory);
        let all = ledger.by_instance.iter();
        all.filter(|(one, _)| warm.is_some() && ids::parse(one).map(|(_, of)| of) == warm)
            .map(|(_, bytes)| bytes)
            .sum()
    };
    let beside = of_release(spec, 0);
    let web = of_release(spec, instances).saturating_sub(beside);
    // Workers of the new release start behind those of the old one.
    let workers = beside.saturating_sub(has(false));
    let rolls = spec.strategy != Strategy::Recreate && spec.run.has_instances();
    let wanted = match rolls {
        true => (web + workers).saturating_sub(ends),
        false => web.saturating_sub(has(true)) + workers,
    };
    match room.check(wanted) {
        Err(why) if rolls && web.saturating_sub(has(true)) < web => Err(format!(
            "{why}; the new release starts beside the old one, with `strategy = \"recreate\"` it would take its place"
        )),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_the_figures() {
        let room = Room {
            total: 1 << 30,
            guaranteed: 900 << 20,
            available: 4 << 30,
        };
        assert_eq!(room.check(124 << 20), Ok(()));
        let said = room.check(125 << 20).expect_err("too much");
        assert_eq!(
            said,
            "125M of memory are needed, and 124M of 1G are left for apps"
        );
        let busy = Room {
            available: 100 << 20,
            ..room
        };
        assert_eq!(busy.check(64 << 20), Ok(()));
        let said = busy.check_free(64 << 20).expect_err("too much");
        assert_eq!(
            said,
            "64M of memory are needed, and only 100M are free on this machine"
        );
    }

    #[test]
    fn who_waits_no_more_is_forgotten_after_a_while_and_some_passes() {
        let mut ledger = Ledger::default();
        let now = Instant::now();
        let waiting = Waiting {
            why: "x".into(),
            since: now,
            said: now,
            pass: 0,
        };
        ledger.waiting.insert("shop".into(), waiting);
        for _ in 0..5 {
            ledger.forget(FORGOTTEN);
        }
        // Many passes, but a moment ago.
        assert!(ledger.waiting.contains_key("shop"));
        let pass = ledger.passes;
        if let Some(one) = ledger.waiting.get_mut("shop") {
            one.pass = pass;
        }
        // Long ago, but in this pass or the one before.
        ledger.forget(Duration::ZERO);
        ledger.forget(Duration::ZERO);
        assert!(ledger.waiting.contains_key("shop"));
        ledger.forget(Duration::ZERO);
        assert!(!ledger.waiting.contains_key("shop"));
    }

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:        2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(field(text, "MemTotal"), Some(2 << 20));
        assert_eq!(field(text, "MemAvailable"), Some(1 << 20));
        assert_eq!(field(text, "Swap"), None);
        let (total, available) = machine();
        assert!(available <= total && total > 16 << 20);
    }
}
