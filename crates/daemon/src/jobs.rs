//! Programs that run once: timed jobs when they are due, and what owners ask for. What is wanted is written down
//! before it is started, so that a restart of the control plane neither loses nor doubles a run.

use std::collections::BTreeMap;
use std::time::Duration;

use hutong_core::schedule::{MAX_COUNTED, Settled};
use hutong_core::spec::{AppSpec, Cron};
use hutong_core::units::show_time;
use hutong_ipc::fail;
use hutong_ipc::shim::Exit;
use hutong_runtime::processes::{now_ms, steady_ms};

use crate::controller::Made;
use crate::launch::{NotStarted, What, launch};
use crate::logs::End;
use crate::store::{NewRun, Outcome, Run, StoreError};
use crate::{Control, ids, lock};

/// One that the warden did not start within this is given up.
const GRACE_MS: u64 = 5 * 60_000;
/// A job's last dealt-with time that lies further ahead than this: the clock was set back.
const SET_BACK_MS: u64 = 60_000;
/// Runs of one app at once.
pub const MAX_AT_ONCE: usize = 16;

/// What there is to do, read once for a pass.
pub struct Agenda {
    open: BTreeMap<String, Vec<Run>>,
    seen: BTreeMap<(String, String), u64>,
}

pub fn agenda(control: &Control) -> Result<Agenda, StoreError> {
    let mut open: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    for run in control.store.open_runs()? {
        open.entry(run.app.clone()).or_default().push(run);
    }
    let seen = control.store.cron_seen()?;
    Ok(Agenda { open, seen })
}

/// What looking after one app's jobs came to.
#[derive(Default)]
pub struct Looked {
    /// Something was written down that the next pass goes on from.
    pub again: bool,
    /// When the next one is due, in milliseconds since boot.
    pub until_ms: Option<u64>,
}

/// Deals with one app. `active` is the version that serves, `None` when nothing of the app is to run.
pub fn look_after(
    control: &Control,
    app: &str,
    active: Option<&Made>,
    agenda: &Agenda,
) -> Result<Looked, StoreError> {
    let mut looked = Looked::default();
    let none = Vec::new();
    let open = agenda.open.get(app).unwrap_or(&none);
    if let Some((_, _, spec)) = active {
        for (name, job) in &spec.cron {
            let busy = open.iter().any(|run| run.name == *name);
            let seen = agenda.seen.get(&(app.to_owned(), name.clone()));
            let due = Due {
                app,
                name,
                job,
                busy,
            };
            let (again, next_ms) = due.look(control, seen.copied())?;
            looked.again |= again;
            looked.wait_until(next_ms.map(|at| at.saturating_sub(now_ms()) + steady_ms()));
        }
    }
    let running = open.iter().filter(|run| run.state == "running").count();
    let mut room = MAX_AT_ONCE.saturating_sub(running);
    for run in open {
        match (active, run.state.as_str()) {
            (None, "wanted") => {
                let why = "the app is stopped";
                end(control, run, "stopped", Some(why), None)?;
            }
            (None, _) => stop(control, run, "the app is stopped")?,
            (Some(_), "wanted") if room == 0 => {}
            (Some(made), "wanted") => {
                room -= 1;
                looked.again |= start(control, run, made)?;
            }
            (Some((_, _, spec)), _) => {
                let until = watch(control, run, spec)?;
                looked.wait_until(until);
            }
        }
    }
    Ok(looked)
}

impl Looked {
    fn wait_until(&mut self, at: Option<u64>) {
        self.until_ms = [self.until_ms, at].into_iter().flatten().min();
    }
}

/// A timed job whose times are looked at.
struct Due<'a> {
    app: &'a str,
    name: &'a str,
    job: &'a Cron,
    /// A run of it is not over.
    busy: bool,
}

impl Due<'_> {
    /// Writes down what became of times that have passed; says whether there is something to start, and when the next
    /// one is.
    fn look(
        &self,
        control: &Control,
        seen: Option<u64>,
    ) -> Result<(bool, Option<u64>), StoreError> {
        let now = now_ms();
        let note = |runs: &[NewRun<'_>]| control.store.note_due(self.app, self.name, now, runs);
        let schedule = &self.job.schedule;
        let next = || schedule.next_after(now);
        // New, or the clock was set back: from now on.
        let Some(seen) = seen.filter(|seen| *seen <= now + SET_BACK_MS) else {
            note(&[])?;
            return Ok((false, next()));
        };
        let settled = schedule.settle(seen, now);
        if settled == Settled::default() {
            return Ok((false, schedule.next_after(seen)));
        }
        let missed = settled.missed;
        let more = if missed == MAX_COUNTED { "over " } else { "" };
        let text = format!("{more}{missed} time(s) went by while the server did not run");
        let run = |state, detail| NewRun {
            name: self.name,
            command: &[],
            timeout_ms: self.job.timeout.as_millis() as u64,
            due_ms: settled.due_ms.unwrap_or(now),
            state,
            detail,
        };
        let mut runs = Vec::new();
        if missed > 0 {
            runs.push(run("missed", Some(text.as_str())));
        }
        let starts = !self.busy || self.job.overlap;
        if settled.due_ms.is_some() {
            runs.push(match starts {
                true => run("wanted", None),
                false => run("skipped", Some("the run before it goes on")),
            });
        }
        note(&runs)?;
        fail::point("job due");
        for run in runs.iter().filter(|run| run.state != "wanted") {
            let text = format!(
                "{}: {}: {}",
                self.name,
                run.state,
                run.detail.unwrap_or_default()
            );
            control.logs.note(self.app, "", &text);
        }
        Ok((settled.due_ms.is_some() && starts, next()))
    }
}

/// True when it did not begin and the next pass is to see to it.
fn start(control: &Control, run: &Run, made: &Made) -> Result<bool, StoreError> {
    let (deployment, release, spec) = made;
    let job = spec.cron.get(&run.name);
    let (argv, caps) = match job {
        Some(job) if run.command.is_empty() => (&job.command, job.caps),
        _ => (&run.command, spec.caps),
    };
    if argv.is_empty() {
        let why = format!("the release that serves has no timed job {}", run.name);
        end(control, run, "failed", Some(&why), None)?;
        return Ok(true);
    }
    let kind = match run.name.as_str() {
        "" => ids::Kind::Run,
        name => ids::Kind::Cron(name),
    };
    let instance = ids::instance(&run.app, deployment.id, kind);
    control.store.run_begins(run.id, Some(&instance))?;
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
        Ok(()) => {}
        // The next look tells whether it runs.
        Err(NotStarted::Unknown(reason)) => tracing::warn!("{reason}"),
        Err(NotStarted::Because(reason)) => {
            let why = format!("it could not be started: {reason}");
            control.logs.note(&run.app, &instance, &why);
            end(control, run, "failed", Some(&why), None)?;
        }
    }
    Ok(true)
}

/// Ends a run that takes too long; one that never began is begun again. Says when to look again.
fn watch(control: &Control, run: &Run, spec: &AppSpec) -> Result<Option<u64>, StoreError> {
    let instance = run.instance.as_deref().unwrap_or_default();
    let (started, stopping) = {
        let observed = lock(&control.observed);
        let found = observed.instances.get(instance);
        let started = found.map(|found| found.started_steady);
        (started, observed.stopping.contains_key(instance))
    };
    let Some(started) = started else {
        if !control.logs.spooled().iter().any(|name| name == instance) {
            // Neither does it run nor did it leave anything: it was never started.
            let since = run.started_ms.unwrap_or(0);
            if now_ms().abs_diff(since) > GRACE_MS {
                let why = "it was not started: the server was not running";
                end(control, run, "failed", Some(why), None)?;
            } else {
                control.store.run_begins(run.id, None)?;
            }
            return Ok(Some(steady_ms()));
        }
        return Ok(None);
    };
    let limit = started + run.timeout_ms;
    if limit > steady_ms() {
        return Ok(Some(limit));
    }
    if !stopping {
        let time = show_time(Duration::from_millis(run.timeout_ms));
        stop_with(
            control,
            run,
            spec.stop_timeout,
            &format!("it took over {time}"),
        )?;
    }
    Ok(None)
}

fn stop(control: &Control, run: &Run, why: &str) -> Result<(), StoreError> {
    let instance = run.instance.as_deref().unwrap_or_default();
    if lock(&control.observed).stopping.contains_key(instance) {
        return Ok(());
    }
    stop_with(control, run, Duration::from_secs(10), why)
}

/// Asks a running one to end, and kills it after `patience`. How it ended is written down when it has.
pub fn stop_with(
    control: &Control,
    run: &Run,
    patience: Duration,
    why: &str,
) -> Result<(), StoreError> {
    let Some(instance) = &run.instance else {
        return end(control, run, "stopped", Some(why), None);
    };
    control.store.note_run(run.id, why)?;
    control
        .logs
        .note(&run.app, instance, &format!("is stopped: {why}"));
    control.stop_instance(instance, patience);
    let mut observed = lock(&control.observed);
    observed.stopping.insert(instance.clone(), steady_ms());
    Ok(())
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
    let Some(run) = open
        .iter()
        .find(|run| run.instance.as_deref() == Some(instance))
    else {
        return Ok(());
    };
    let code = match &ended.exit {
        Some(Exit::Code(code)) => Some(*code),
        Some(Exit::Signal(signal)) => Some(128 + signal),
        _ => None,
    };
    let told = ended.told || run.detail.is_some();
    let (state, detail) = match (told, code) {
        (true, _)
            if run
                .detail
                .as_deref()
                .is_some_and(|d| d.starts_with("it took over")) =>
        {
            ("failed", None)
        }
        (true, _) => ("stopped", None),
        (false, Some(0)) if !ended.out_of_memory => ("ok", None),
        (false, _) => ("failed", Some(why)),
    };
    end(control, run, state, detail, code)
}
