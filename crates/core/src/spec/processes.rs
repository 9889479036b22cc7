//! What an app runs beside its visitors' program: workers, timed jobs, and the command before a release.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::{Check, RawLimits, RawSpec, Words};
use crate::name;
use crate::schedule::{Schedule, ScheduleError};

/// Where nothing is said, one part in so many of an instance's memory is set aside for it.
pub const GUARANTEED: u64 = 4;

/// Caps of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    pub memory_bytes: u64,
    /// Thousandths of a core.
    pub cpu_millis: u32,
    pub pids: u32,
    /// What is set aside for it, of its memory.
    pub guaranteed_bytes: u64,
    /// One that uses more than this for a while is replaced, in bytes.
    pub restart_at: Option<u64>,
    /// One whose memory stays near its cap for long is replaced.
    pub leak_guard: bool,
}

/// A program that runs all the time and serves no visitors.
#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    pub command: Vec<String>,
    pub instances: u32,
    pub caps: Caps,
}

/// A program that runs at times.
#[derive(Clone, Debug, PartialEq)]
pub struct Cron {
    pub command: Vec<String>,
    pub schedule: Schedule,
    /// It is started also while its run before goes on.
    pub overlap: bool,
    pub timeout: Duration,
    pub caps: Caps,
}

/// A program that must succeed before a release serves.
#[derive(Clone, Debug, PartialEq)]
pub struct ReleaseCommand {
    pub command: Vec<String>,
    pub timeout: Duration,
    /// `/data` is copied aside before it.
    pub snapshot: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWorker {
    /// The program, as for the app's own `command`.
    #[schemars(with = "Words")]
    command: Spanned<Words>,
    /// How many of it run, 1 to 64; default 1.
    #[schemars(with = "Option<u32>")]
    instances: Option<Spanned<i64>>,
    /// Of each instance; default: the app's own.
    #[serde(default)]
    limits: RawLimits,
}

impl RawWorker {
    pub(super) fn count(&self) -> i64 {
        self.instances.as_ref().map_or(1, |count| *count.get_ref())
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCron {
    /// The program, as for the app's own `command`.
    #[schemars(with = "Words")]
    command: Spanned<Words>,
    /// When it runs: minute, hour, day, month, weekday, such as "30 3 * * *"; or "@daily" and its kin.
    #[schemars(with = "String")]
    schedule: Spanned<String>,
    /// The time zone of `schedule`, such as "Asia/Shanghai"; default UTC.
    #[schemars(with = "Option<String>")]
    zone: Option<Spanned<String>>,
    /// Start it also while its run before goes on; default false: that time is left out.
    #[serde(default)]
    overlap: bool,
    /// How long a run may take; default "1h".
    #[schemars(with = "Option<String>")]
    timeout: Option<Spanned<String>>,
    /// Of each run; default: the app's own.
    #[serde(default)]
    limits: RawLimits,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawReleaseCommand {
    /// Runs once before a new release serves, such as a migration; if it fails, the deployment does.
    #[schemars(with = "Words")]
    pub(super) command: Spanned<Words>,
    /// How long it may take; default "5m".
    #[schemars(with = "Option<String>")]
    timeout: Option<Spanned<String>>,
    /// Copy /data aside before it runs, so that `hutong snapshot restore` can put it back; default true.
    snapshot: Option<bool>,
}

/// So many kinds of workers, and of timed jobs, an app has at most.
const MAX_PROCESSES: usize = 32;

impl Check<'_> {
    pub(super) fn caps(&mut self, raw: &RawLimits, default: Caps) -> Caps {
        let memory_bytes = match &raw.memory {
            None => default.memory_bytes,
            Some(text) => self.size(text, 4 << 20, 1 << 40),
        };
        let restart_at = match &raw.restart_at {
            None => default.restart_at,
            Some(text) => {
                let bytes = self.size(text, 1 << 20, 1 << 40);
                if bytes >= memory_bytes && memory_bytes > 0 {
                    let at = text.span().start;
                    self.wrong(at, "restart_at is below limits.memory: beyond that there is no program to restart");
                }
                Some(bytes)
            }
        };
        let guaranteed_bytes = match &raw.guaranteed {
            None if raw.memory.is_none() => default.guaranteed_bytes,
            None => memory_bytes / GUARANTEED,
            Some(text) => {
                let bytes = self.size(text, 1 << 20, 1 << 40);
                if bytes > memory_bytes && memory_bytes > 0 {
                    let at = text.span().start;
                    self.wrong(at, "no more is guaranteed than limits.memory allows");
                }
                bytes
            }
        };
        Caps {
            guaranteed_bytes,
            memory_bytes,
            restart_at,
            leak_guard: raw.leak_guard.unwrap_or(default.leak_guard),
            cpu_millis: match &raw.cpu {
                None => default.cpu_millis,
                Some(number) => self.cpu(number),
            },
            pids: match &raw.pids {
                None => default.pids,
                Some(count) => self.bounded(count, 1, 32768, "limits.pids") as u32,
            },
        }
    }

    /// The caps of a program beside the app's own.
    fn own_caps(&mut self, raw: &RawLimits, default: Caps) -> Caps {
        if let Some(disk) = &raw.disk {
            self.wrong(
                disk.span().start,
                "all of an app's programs share its /data: `disk` goes into the app's own [limits]",
            );
        }
        self.caps(raw, default)
    }

    pub(super) fn workers(&mut self, raw: &RawSpec, caps: Caps) -> BTreeMap<String, Worker> {
        let mut workers = BTreeMap::new();
        for (name, raw) in &raw.workers {
            self.process_name(name, workers.len());
            let instances = raw.instances.as_ref().map_or(1, |count| {
                self.bounded(count, 1, 64, "the number of instances") as u32
            });
            let command = self.words(&raw.command, "command").unwrap_or_default();
            let caps = self.own_caps(&raw.limits, caps);
            workers.insert(
                name.get_ref().clone(),
                Worker {
                    command,
                    instances,
                    caps,
                },
            );
        }
        workers
    }

    pub(super) fn cron(&mut self, raw: &RawSpec, caps: Caps) -> BTreeMap<String, Cron> {
        let mut jobs = BTreeMap::new();
        for (name, job) in &raw.cron {
            self.process_name(name, jobs.len());
            if raw.workers.contains_key(name) {
                let message = format!("there is a worker `{}` already", name.get_ref());
                self.wrong(name.span().start, message);
            }
            let raw = job;
            let zone = raw.zone.as_ref().map(|zone| zone.get_ref().as_str());
            let schedule = match Schedule::parse(raw.schedule.get_ref(), zone) {
                Ok(schedule) => schedule,
                Err(error) => {
                    let at = match (&error, &raw.zone) {
                        (ScheduleError::Zone(_), Some(zone)) => zone.span().start,
                        _ => raw.schedule.span().start,
                    };
                    self.wrong(at, error.to_string());
                    continue;
                }
            };
            let (s, hour) = (Duration::from_secs, Duration::from_secs(3600));
            let job = Cron {
                command: self.words(&raw.command, "command").unwrap_or_default(),
                schedule,
                overlap: raw.overlap,
                timeout: self.time(&raw.timeout, hour, s(1), 24 * 7 * hour),
                caps: self.own_caps(&raw.limits, caps),
            };
            jobs.insert(name.get_ref().clone(), job);
        }
        jobs
    }

    pub(super) fn release_command(&mut self, raw: &RawSpec) -> Option<ReleaseCommand> {
        let raw = raw.release.as_ref()?;
        let (s, day) = (Duration::from_secs, Duration::from_secs(86_400));
        Some(ReleaseCommand {
            command: self.words(&raw.command, "release.command")?,
            timeout: self.time(&raw.timeout, s(300), s(1), day),
            snapshot: raw.snapshot.unwrap_or(true),
        })
    }

    fn process_name(&mut self, name: &Spanned<String>, before: usize) {
        let at = name.span().start;
        if let Err(message) = name::check_process(name.get_ref()) {
            self.wrong(at, message);
        } else if before >= MAX_PROCESSES {
            self.wrong(at, format!("an app has at most {MAX_PROCESSES} of these"));
        }
    }
}
