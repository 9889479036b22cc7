//! Programs that run once: timed jobs when they are due, and what owners ask for. What is wanted is written down
//! before it is started, and what is to end before it is told, so that a restart of the control plane neither loses
//! nor doubles a run. Only the controller starts and stops them, one pass after the other.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use hutong_core::schedule::{MAX_COUNTED, Settled};
use hutong_core::spec::Cron;
use hutong_ipc::fail;
use hutong_ipc::shim::Exit;
use hutong_runtime::processes::{now_ms, steady_ms};

use crate::controller::Made;
use crate::launch::{NotStarted, What, launch};
use crate::logs::End;
use crate::store::{Cause, JobsSeen, NewRun, Outcome, Run, StoreError};
use crate::{Control, boot_id, ids, lock};

/// What was not begun within this is not begun any more: who wanted it at three does not want it at nine.
const GRACE_MS: u64 = 5 * 60_000;
/// A job's last dealt-with time that lies further ahead than this: the clock was set back.
const SET_BACK_MS: u64 = 60_000;
/// Runs of one app at once, and of all.
pub const MAX_AT_ONCE: usize = 16;
const MAX_ON_SERVER: usize = 64;
/// Of what is done in one pass, other apps wait for it.
const STARTS_IN_A_PASS: usize = 4;
const DUE_IN_A_PASS: usize = 32;
/// How soon one is tried again that the warden did not answer for.
const AGAIN_MS: u64 = 500;

/// What there is to do, read once for a pass.
pub struct Agenda {
    open: BTreeMap<String, Vec<Run>>,
    seen: BTreeMap<String, JobsSeen>,
    /// How many may still begin.
    room: Cell<usize>,
    /// How many due times may still be written down.
    due: Cell<usize>,
}

pub fn agenda(control: &Control) -> Result<Agenda, StoreError> {
    let mut open: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    let mut running = 0;
    for run in control.store.open_runs()? {
        running += usize::from(run.state == "running");
        open.entry(run.app.clone()).or_default().push(run);
    }
    let room = MAX_ON_SERVER.saturating_sub(running);
    Ok(Agenda {
        open,
        seen: control.store.cron_seen()?,
        room: Cell::new(room.min(STARTS_IN_A_PASS)),
        due: Cell::new(DUE_IN_A_PASS),
    })
}

/// What looking after one app's jobs came to.
#[derive(Default)]
pub struct Looked {
    /// Something was written down that the next pass goes on from.
    pub again: bool,
    /// When the next one is due, in milliseconds since boot.
    pub until_ms: Option<u64>,
}

/// One app whose jobs are looked after.
pub struct Subject<'a> {
    pub app: &'a str,
    /// The version that serves; `None` when nothing of the app is to run.
    pub active: Option<&'a Made>,
    /// No timed job is to run: the app keeps too much on disk. What its owner runs may clear it up.
    pub is_over: bool,
    /// What it says about stopping, also when it is to stop.
    pub stop_timeout: Duration,
}

/// Deals with one app. What cannot be written down (the disk is full, most likely) keeps nothing else from being done.
pub fn look_after(control: &Control, subject: &Subject<'_>, agenda: &Agenda) -> Looked {
    let mut looked = Looked::default();
    let none = Vec::new();
    let open = agenda.open.get(subject.app).unwrap_or(&none);
    // What uses something up comes first.
    end_orphans(control, subject, open);
    for run in open.iter().filter(|run| run.state == "running") {
        let until = watch(control, run, subject);
        looked.take(subject, until.map(|until| (false, until)));
    }
    let running = open.iter().filter(|run| run.state == "running").count();
    let mut room = MAX_AT_ONCE.saturating_sub(running);
    for run in open.iter().filter(|run| run.state == "wanted") {
        let done = match subject.active {
            None => control
                .store
                .end_run_soon(run.id, Cause::App)
                .map(|()| true),
            Some(_) if room == 0 || agenda.room.get() == 0 => Ok(false),
            Some(made) => match fits(control, run, made) {
                // It keeps nobody else's place.
                false => Ok(false),
                true => {
                    room -= 1;
                    agenda.room.set(agenda.room.get() - 1);
                    start(control, run, made)
                }
            },
        };
        let later = steady_ms() + AGAIN_MS;
        looked.take(subject, done.map(|again| (again, Some(later))));
    }
    look_at_clock(control, subject, agenda, open, &mut looked);
    looked
}

impl Looked {
    fn take(&mut self, subject: &Subject<'_>, done: Result<(bool, Option<u64>), StoreError>) {
        match done {
            Ok((again, until)) => {
                self.again |= again;
                self.until_ms = [self.until_ms, until].into_iter().flatten().min();
            }
            Err(error) => tracing::warn!("a job of {}: {error}", subject.app),
        }
    }
}

/// Instances that no open run accounts for: whoever ended the run could not end them.
fn end_orphans(control: &Control, subject: &Subject<'_>, open: &[Run]) {
    let orphans: Vec<String> = {
        let observed = lock(&control.observed);
        let mine = observed.instances.values().filter(|i| i.app == subject.app);
        mine.map(|i| i.instance.clone())
            .filter(|id| matches!(ids::kind(id), ids::Kind::Cron(_) | ids::Kind::Run))
            .filter(|id| {
                let ended = subject.is_over && matches!(ids::kind(id), ids::Kind::Cron(_));
                ended || !open.iter().any(|run| run.instance.as_ref() == Some(id))
            })
            .filter(|id| !observed.stopping.contains_key(id))
            .collect()
    };
    for instance in orphans {
        let why = match subject.is_over {
            true => "the app keeps too much in /data",
            false => "its run is over",
        };
        tell(control, subject, &instance, why);
    }
}

/// Sends SIGTERM, and has SIGKILL follow.
fn tell(control: &Control, subject: &Subject<'_>, instance: &str, why: &str) {
    let text = format!("is stopped: {why}");
    control.logs.note(subject.app, instance, &text);
    control.stop_instance(instance, subject.stop_timeout);
    let mut observed = lock(&control.observed);
    observed.stopping.insert(instance.to_owned(), steady_ms());
}

fn look_at_clock(
    control: &Control,
    subject: &Subject<'_>,
    agenda: &Agenda,
    open: &[Run],
    looked: &mut Looked,
) {
    let none = BTreeMap::new();
    let may_run = subject.active.filter(|_| !subject.is_over);
    let jobs = may_run.map(|(_, _, spec)| &spec.cron);
    let known = agenda.seen.get(subject.app);
    for name in known.into_iter().flatten().map(|(name, _)| name) {
        // Of an app that does not run, nothing is due, and nothing is missed.
        if !jobs.is_some_and(|jobs| jobs.contains_key(name)) {
            let forgotten = control.store.forget_job(subject.app, name);
            looked.take(subject, forgotten.map(|()| (false, None)));
        }
    }
    for (name, job) in jobs.unwrap_or(&none) {
        let due = Due {
            app: subject.app,
            name,
            job,
            of_job: open.iter().filter(|run| run.name == *name).count(),
            of_app: open.len(),
        };
        let seen = known.and_then(|known| known.get(name));
        let done = due.look(control, seen, &agenda.due);
        let done = done.map(|(again, next_ms)| {
            let in_ms = next_ms.map(|at| at.saturating_sub(now_ms()));
            (again, in_ms.map(|ms| ms + steady_ms()))
        });
        looked.take(subject, done);
    }
}

/// A timed job whose times are looked at.
struct Due<'a> {
    app: &'a str,
    name: &'a str,
    job: &'a Cron,
    /// Runs that are not over.
    of_job: usize,
    of_app: usize,
}

impl Due<'_> {
    /// Writes down what became of times that have passed; says whether there is something to start, and when the next
    /// one is.
    fn look(
        &self,
        control: &Control,
        seen: Option<&(String, u64)>,
        budget: &Cell<usize>,
    ) -> Result<(bool, Option<u64>), StoreError> {
        let now = now_ms();
        let schedule = &self.job.schedule;
        let words = format!("{schedule} {}", schedule.zone());
        let note = |runs: &[NewRun<'_>]| {
            let seen = (words.as_str(), now);
            control.store.note_due(self.app, self.name, seen, runs)
        };
        // New, or changed, or the clock was set back: from now on.
        let known = seen.filter(|(of, at)| *of == words && *at <= now + SET_BACK_MS);
        let settled = match known {
            Some((_, at)) => schedule.settle(*at, now),
            None => Settled::default(),
        };
        if known.is_some() && settled == Settled::default() {
            return Ok((false, schedule.next_after(now)));
        }
        let Some(left) = budget.get().checked_sub(1) else {
            return Ok((false, Some(now + AGAIN_MS)));
        };
        budget.set(left);
        let (runs, starts) = self.runs(&settled, now);
        let runs: Vec<NewRun<'_>> = runs.iter().map(|run| run.as_new(self)).collect();
        note(&runs)?;
        fail::point("job due");
        for run in runs.iter().filter(|run| run.state != "wanted") {
            let detail = run.detail.unwrap_or_default();
            let text = format!("{}: {}: {detail}", self.name, run.state);
            control.logs.note(self.app, "", &text);
        }
        Ok((starts, schedule.next_after(now)))
    }

    /// What is written down, and whether one of it is to be started.
    fn runs(&self, settled: &Settled, now: u64) -> (Vec<Noted>, bool) {
        let mut runs = Vec::new();
        if settled.missed > 0 {
            let more = if settled.missed == MAX_COUNTED {
                "at least "
            } else {
                ""
            };
            runs.push(Noted {
                due_ms: now,
                state: "missed",
                detail: Some(format!(
                    "{more}{} time(s) went by while the server did not run",
                    settled.missed
                )),
            });
        }
        let Some(due_ms) = settled.due_ms else {
            return (runs, false);
        };
        let why = match (self.of_job > 0 && !self.job.overlap, self.of_app) {
            (true, _) => Some("the run before it goes on".to_owned()),
            (_, MAX_AT_ONCE..) => Some(format!("{MAX_AT_ONCE} programs of the app run already")),
            _ => None,
        };
        runs.push(Noted {
            due_ms,
            state: if why.is_some() { "skipped" } else { "wanted" },
            detail: why.clone(),
        });
        (runs, why.is_none())
    }
}

struct Noted {
    due_ms: u64,
    state: &'static str,
    detail: Option<String>,
}

impl Noted {
    fn as_new<'a>(&'a self, due: &Due<'a>) -> NewRun<'a> {
        NewRun {
            name: due.name,
            command: &[],
            timeout_ms: due.job.timeout.as_millis() as u64,
            due_ms: self.due_ms,
            state: self.state,
            detail: self.detail.as_deref(),
        }
    }
}

/// Whether there is memory for it, or it has waited for too long anyway.
fn fits(control: &Control, run: &Run, (_, _, spec): &Made) -> bool {
    let job = spec.cron.get(&run.name);
    let caps = job.map_or(spec.caps, |job| job.caps);
    let who = format!("{}#run-{}", run.app, run.id);
    let late = now_ms().saturating_sub(run.due_ms) > GRACE_MS;
    match control.has_memory(caps.guaranteed_bytes) {
        Err(why) if !late => {
            control.waits(&who, &run.app, &why);
            false
        }
        _ => {
            control.waits_no_more(&who);
            true
        }
    }
}

/// True when the next pass is to see to it at once.
fn start(control: &Control, run: &Run, made: &Made) -> Result<bool, StoreError> {
    let (deployment, release, spec) = made;
    if now_ms().saturating_sub(run.due_ms) > GRACE_MS {
        let why = "it could not be begun within 5 minutes";
        let state = if run.name.is_empty() {
            "failed"
        } else {
            "missed"
        };
        return end(control, run, state, Some(why), None).map(|()| true);
    }
    let job = spec.cron.get(&run.name);
    let (argv, caps) = match job {
        Some(job) if run.command.is_empty() => (&job.command, job.caps),
        _ => (&run.command, spec.caps),
    };
    if argv.is_empty() {
        let why = format!("the release that serves has no timed job {}", run.name);
        return end(control, run, "failed", Some(&why), None).map(|()| true);
    }
    let kind = match run.name.as_str() {
        "" => ids::Kind::Run,
        name => ids::Kind::Cron(name),
    };
    let instance = ids::instance(&run.app, deployment.id, kind);
    if !control.store.run_begins(run.id, &instance, &boot())? {
        // Somebody took it back.
        return Ok(false);
    }
    fail::point("job begins");
    let what = What {
        deployment: deployment.id,
        release,
        spec,
        kind,
        argv,
        caps,
    };
    match launch(control, &instance, &what) {
        Ok(()) => Ok(true),
        Err(NotStarted::Unknown(reason)) => {
            // Whether it runs, the next look tells.
            tracing::warn!("{reason}");
            Ok(false)
        }
        Err(NotStarted::Because(reason) | NotStarted::NoRoom(reason)) => {
            let why = format!("it could not be started: {reason}");
            control.logs.note(&run.app, &instance, &why);
            end(control, run, "failed", Some(&why), None).map(|()| true)
        }
    }
}

fn boot() -> String {
    String::from_utf8_lossy(&boot_id()).trim().to_owned()
}

/// Ends one that is to end, or takes too long; one that never began is begun again. Says when to look again.
fn watch(control: &Control, run: &Run, subject: &Subject<'_>) -> Result<Option<u64>, StoreError> {
    let instance = run.instance.as_deref().unwrap_or_default();
    let (started, stopping) = {
        let observed = lock(&control.observed);
        let found = observed.instances.get(instance);
        let started = found.map(|found| found.started_steady);
        (started, observed.stopping.contains_key(instance))
    };
    let Some(started) = started else {
        if control.logs.spooled().iter().any(|name| name == instance) {
            // How it ended is about to be read.
            return Ok(Some(steady_ms() + AGAIN_MS));
        }
        if !crate::controller::is_known(control, instance) {
            return Ok(Some(steady_ms() + AGAIN_MS));
        }
        // Neither does it run nor did it leave anything: it was never started, or the machine forgot it.
        if run.boot.as_deref() != Some(boot().as_str()) {
            let why = "the machine was restarted meanwhile";
            end(control, run, "failed", Some(why), None)?;
        } else {
            control.store.run_did_not_begin(run.id)?;
        }
        return Ok(Some(steady_ms() + AGAIN_MS));
    };
    // Time in quarantine does not count.
    let thawed = lock(&control.observed).thawed.get(subject.app).copied();
    let limit = started.max(thawed.unwrap_or(0)) + run.timeout_ms;
    let cause = match (run.cause, subject.active) {
        (Some(cause), _) => cause,
        (None, None) => Cause::App,
        (None, Some(_)) if limit <= steady_ms() => Cause::Timeout,
        (None, Some(_)) => return Ok(Some(limit)),
    };
    if stopping {
        return Ok(None);
    }
    // First what frees the machine of it; a full disk must not keep that from being done.
    let noted = match run.cause {
        Some(_) => Ok(()),
        None => control.store.end_run_soon(run.id, cause),
    };
    tell(control, subject, instance, &cause.text(run.timeout_ms));
    noted.map(|()| None)
}

fn end(
    control: &Control,
    run: &Run,
    state: &str,
    detail: Option<&str>,
    exit_code: Option<i32>,
) -> Result<(), StoreError> {
    let outcome = Outcome {
        state,
        detail,
        exit_code,
    };
    control.store.end_run(run.id, &outcome)
}

/// Writes down how a run's instance ended.
pub fn note_end(
    control: &Control,
    instance: &str,
    ended: &End,
    why: &str,
) -> Result<(), StoreError> {
    let open = control.store.open_runs()?;
    let mine = |run: &&Run| run.instance.as_deref() == Some(instance);
    let Some(run) = open.iter().find(mine) else {
        return Ok(());
    };
    let code = match &ended.exit {
        Some(Exit::Code(code)) => Some(*code),
        Some(Exit::Signal(signal)) => Some(128 + signal),
        _ => None,
    };
    let text = run.cause.map(|cause| cause.text(run.timeout_ms));
    let (state, detail) = match (run.cause, ended.told, code) {
        (Some(Cause::Timeout), ..) => ("failed", text.as_deref()),
        (Some(_), ..) => ("stopped", text.as_deref()),
        (None, true, _) => ("stopped", None),
        (None, false, Some(0)) if !ended.out_of_memory => ("ok", None),
        (None, false, _) => ("failed", Some(why)),
    };
    end(control, run, state, detail, code)
}
