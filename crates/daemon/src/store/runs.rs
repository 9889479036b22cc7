//! Programs that run once: timed jobs, and what owners ask for.

use std::collections::BTreeMap;

use hutong_runtime::processes::now_ms;
use rusqlite::{OptionalExtension, Row, params};

use super::{Result, Store, StoreError};

/// `wanted`, `running`, or how it came out: `ok`, `failed`, `stopped`, `missed`, `skipped`.
#[derive(Clone, Debug)]
pub struct Run {
    pub id: u64,
    pub app: String,
    /// The timed job; empty for what an owner asked for.
    pub name: String,
    /// Empty: the job's own.
    pub command: Vec<String>,
    pub timeout_ms: u64,
    pub state: String,
    pub detail: Option<String>,
    pub exit_code: Option<i32>,
    pub instance: Option<String>,
    /// Why it is to end.
    pub cause: Option<Cause>,
    /// In which boot of the machine it began.
    pub boot: Option<String>,
    /// When it was due or asked for; like the next two in milliseconds since 1970.
    pub due_ms: u64,
    pub started_ms: Option<u64>,
    pub ended_ms: Option<u64>,
}

impl Run {
    pub fn is_over(&self) -> bool {
        !matches!(self.state.as_str(), "wanted" | "running")
    }
}

/// By timed job: its schedule, and up to when its times were dealt with.
pub type JobsSeen = BTreeMap<String, (String, u64)>;

/// Why a run is ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It took too long.
    Timeout,
    /// Its owner said so.
    Owner,
    /// The app was stopped or removed.
    App,
}

impl Cause {
    fn word(self) -> &'static str {
        match self {
            Cause::Timeout => "timeout",
            Cause::Owner => "owner",
            Cause::App => "app",
        }
    }

    fn parse(word: &str) -> Self {
        match word {
            "timeout" => Cause::Timeout,
            "owner" => Cause::Owner,
            _ => Cause::App,
        }
    }

    /// For a person.
    pub fn text(self, timeout_ms: u64) -> String {
        match self {
            Cause::Timeout => {
                let time = std::time::Duration::from_millis(timeout_ms);
                format!("it took over {}", hutong_core::units::show_time(time))
            }
            Cause::Owner => "its owner asked for it".into(),
            Cause::App => "the app is stopped".into(),
        }
    }
}

/// One to be kept.
pub struct NewRun<'a> {
    pub name: &'a str,
    pub command: &'a [String],
    pub timeout_ms: u64,
    pub due_ms: u64,
    pub state: &'a str,
    pub detail: Option<&'a str>,
}

/// How a run came out.
pub struct Outcome<'a> {
    pub state: &'a str,
    pub detail: Option<&'a str>,
    pub exit_code: Option<i32>,
}

/// So many runs of one timed job are kept, and of what owners asked for.
const KEPT: u64 = 100;
/// So many of one app.
const KEPT_OF_APP: u64 = 1000;

impl Store {
    pub fn add_run(&self, app: &str, run: &NewRun<'_>) -> Result<u64> {
        self.write(|t| insert(t, app, run))
    }

    /// What became of the times of a timed job up to `seen_ms`.
    pub fn note_due(
        &self,
        app: &str,
        job: &str,
        seen: (&str, u64),
        runs: &[NewRun<'_>],
    ) -> Result<()> {
        self.write(|t| {
            t.execute(
                "INSERT OR REPLACE INTO cron (app, name, schedule, seen_ms) VALUES (?, ?, ?, ?)",
                params![app, job, seen.0, seen.1],
            )?;
            for run in runs {
                insert(t, app, run)?;
            }
            Ok(())
        })
    }

    /// A timed job is none any more, or its app does not run.
    pub fn forget_job(&self, app: &str, job: &str) -> Result<()> {
        self.write(|t| {
            t.execute(
                "DELETE FROM cron WHERE app = ? AND name = ?",
                params![app, job],
            )?;
            Ok(())
        })
    }

    /// By app and timed job: its schedule, and up to when its times were dealt with.
    pub fn cron_seen(&self) -> Result<BTreeMap<String, JobsSeen>> {
        let rows: Vec<(String, String, String, u64)> = self.read(|c| {
            c.prepare_cached("SELECT app, name, schedule, seen_ms FROM cron")?
                .query_map([], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                })?
                .collect()
        })?;
        let mut seen: BTreeMap<String, JobsSeen> = BTreeMap::new();
        for (app, name, schedule, ms) in rows {
            seen.entry(app).or_default().insert(name, (schedule, ms));
        }
        Ok(seen)
    }

    /// Those that are not over, in the order in which they came.
    pub fn open_runs(&self) -> Result<Vec<Run>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM runs WHERE state IN ('wanted', 'running') ORDER BY id")?
                .query_map([], run_from)?
                .collect()
        })
    }

    /// The newest first.
    pub fn runs(&self, app: &str, limit: u64) -> Result<Vec<Run>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM runs WHERE app = ? ORDER BY id DESC LIMIT ?")?
                .query_map(params![app, limit], run_from)?
                .collect()
        })
    }

    pub fn run(&self, id: u64) -> Result<Option<Run>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM runs WHERE id = ?")?
                .query_row([id], run_from)
                .optional()
        })
    }

    /// The last run of each of an app's timed jobs.
    pub fn last_runs(&self, app: &str) -> Result<Vec<Run>> {
        self.read(|c| {
            c.prepare_cached(
                "SELECT * FROM runs WHERE id IN (SELECT MAX(id) FROM runs WHERE app = ? AND name <> '' GROUP BY name)",
            )?
            .query_map([app], run_from)?
            .collect()
        })
    }

    /// It is about to be started as `instance`; false if it is not wanted any more.
    pub fn run_begins(&self, id: u64, instance: &str, boot: &str) -> Result<bool> {
        self.write(|t| {
            let changed = t.execute(
                "UPDATE runs SET state = 'running', instance = ?2, boot = ?3, started_ms = ?4 WHERE id = ?1 AND state = 'wanted'",
                params![id, instance, boot, now_ms()],
            )?;
            Ok(changed > 0)
        })
    }

    /// It did not begin after all.
    pub fn run_did_not_begin(&self, id: u64) -> Result<()> {
        self.write(|t| {
            t.execute(
                "UPDATE runs SET state = iif(cause IS NULL, 'wanted', 'stopped'), instance = NULL, started_ms = NULL, ended_ms = iif(cause IS NULL, NULL, ?2) WHERE id = ?1 AND state = 'running'",
                params![id, now_ms()],
            )?;
            Ok(())
        })
    }

    /// It is to end. One that was not begun ends at once.
    pub fn end_run_soon(&self, id: u64, cause: Cause) -> Result<()> {
        self.write(|t| {
            t.execute(
                "UPDATE runs SET cause = coalesce(cause, ?2) WHERE id = ?1 AND state = 'running'",
                params![id, cause.word()],
            )?;
            t.execute(
                "UPDATE runs SET state = 'stopped', cause = ?2, detail = ?3, ended_ms = ?4 WHERE id = ?1 AND state = 'wanted'",
                params![id, cause.word(), cause.text(0), now_ms()],
            )?;
            Ok(())
        })
    }

    pub fn end_run(&self, id: u64, outcome: &Outcome<'_>) -> Result<()> {
        self.write(|t| {
            t.execute(
                "UPDATE runs SET state = ?2, detail = coalesce(?3, detail), exit_code = ?4, ended_ms = ?5 WHERE id = ?1 AND state IN ('wanted', 'running')",
                params![id, outcome.state, outcome.detail, outcome.exit_code, now_ms()],
            )?;
            Ok(())
        })
    }
}

fn insert(t: &rusqlite::Transaction<'_>, app: &str, run: &NewRun<'_>) -> Result<u64> {
    let command = serde_json::to_string(run.command)
        .map_err(|error| StoreError::Cipher(error.to_string()))?;
    let over = !matches!(run.state, "wanted" | "running");
    t.execute(
        "INSERT INTO runs (app, name, command, timeout_ms, state, detail, due_ms, ended_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        params![app, run.name, command, run.timeout_ms, run.state, run.detail, run.due_ms, over.then(now_ms)],
    )?;
    let id = t.last_insert_rowid() as u64;
    t.execute(
        "DELETE FROM runs WHERE app = ?1 AND state NOT IN ('wanted', 'running') AND (
           (name = ?2 AND id NOT IN (SELECT id FROM runs WHERE app = ?1 AND name = ?2 ORDER BY id DESC LIMIT ?3))
           OR id NOT IN (SELECT id FROM runs WHERE app = ?1 ORDER BY id DESC LIMIT ?4))",
        params![app, run.name, KEPT, KEPT_OF_APP],
    )?;
    Ok(id)
}

fn run_from(row: &Row<'_>) -> rusqlite::Result<Run> {
    let command: String = row.get("command")?;
    Ok(Run {
        id: row.get("id")?,
        app: row.get("app")?,
        name: row.get("name")?,
        command: serde_json::from_str(&command).unwrap_or_default(),
        timeout_ms: row.get("timeout_ms")?,
        state: row.get("state")?,
        detail: row.get("detail")?,
        exit_code: row.get("exit_code")?,
        instance: row.get("instance")?,
        cause: row
            .get::<_, Option<String>>("cause")?
            .as_deref()
            .map(Cause::parse),
        boot: row.get("boot")?,
        due_ms: row.get("due_ms")?,
        started_ms: row.get("started_ms")?,
        ended_ms: row.get("ended_ms")?,
    })
}
