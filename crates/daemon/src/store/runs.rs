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

/// So many runs of an app are kept.
const KEPT: u64 = 100;

impl Store {
    pub fn add_run(&self, app: &str, run: &NewRun<'_>) -> Result<u64> {
        self.write(|t| insert(t, app, run))
    }

    /// What became of the times of a timed job up to `seen_ms`.
    pub fn note_due(&self, app: &str, job: &str, seen_ms: u64, runs: &[NewRun<'_>]) -> Result<()> {
        self.write(|t| {
            t.execute(
                "INSERT OR REPLACE INTO cron (app, name, seen_ms) VALUES (?, ?, ?)",
                params![app, job, seen_ms],
            )?;
            for run in runs {
                insert(t, app, run)?;
            }
            Ok(())
        })
    }

    /// Up to when each timed job's times were dealt with, by app and name.
    pub fn cron_seen(&self) -> Result<BTreeMap<(String, String), u64>> {
        self.read(|c| {
            c.prepare_cached("SELECT app, name, seen_ms FROM cron")?
                .query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?
                .collect()
        })
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

    /// It is about to be started as `instance`; `None` takes that back.
    pub fn run_begins(&self, id: u64, instance: Option<&str>) -> Result<()> {
        let state = if instance.is_some() {
            "running"
        } else {
            "wanted"
        };
        self.write(|t| {
            t.execute(
                "UPDATE runs SET state = ?2, instance = ?3, started_ms = ?4 WHERE id = ?1 AND state IN ('wanted', 'running')",
                params![id, state, instance, instance.map(|_| now_ms())],
            )?;
            Ok(())
        })
    }

    /// Why it is being stopped.
    pub fn note_run(&self, id: u64, detail: &str) -> Result<()> {
        self.write(|t| {
            t.execute(
                "UPDATE runs SET detail = ?2 WHERE id = ?1 AND state IN ('wanted', 'running')",
                params![id, detail],
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
        "DELETE FROM runs WHERE app = ?1 AND state NOT IN ('wanted', 'running') AND id NOT IN (SELECT id FROM runs WHERE app = ?1 ORDER BY id DESC LIMIT ?2)",
        params![app, KEPT],
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
        due_ms: row.get("due_ms")?,
        started_ms: row.get("started_ms")?,
        ended_ms: row.get("ended_ms")?,
    })
}
