//! What users declared, in SQLite (WAL, one writer). Never asked while a visitor waits.

mod canaries;
mod git;
mod pushes;
mod registries;
mod runs;
mod secrets;
mod snapshots;
mod watched;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use hutong_core::spec::{self, AppSpec};
use hutong_ipc::fail;
use hutong_ipc::gateway::Banned;
use hutong_runtime::processes::now_ms;
use rusqlite::{Connection, OptionalExtension, Row, params};
use thiserror::Error;

use crate::cipher::Cipher;
use crate::lock;

pub use canaries::Canary;
pub use git::{Accepted, MAX_TOKENS, Preview, Scope, Source, Token, Waiting};
pub use runs::{Cause, JobsSeen, NewRun, Outcome, Run};
pub use watched::{Before, Seen};

/// The schema that this program writes; [`MIGRATIONS`] lead to it from every older one.
const VERSION: i64 = 14;
/// The schema of a new store, before the migrations.
const FIRST_VERSION: i64 = 1;
/// `MIGRATIONS[n]` leads from version n + 1 to n + 2.
const MIGRATIONS: [&str; 13] = [
    // How long a removed app's data has been kept, counted while the server ran: the clock may be wrong.
    "ALTER TABLE apps ADD COLUMN removed_ms INTEGER NOT NULL DEFAULT 0;",
    // Failed attempts to have a certificate.
    "CREATE TABLE attempts (
       host TEXT PRIMARY KEY,
       failures INTEGER NOT NULL,
       next_s INTEGER NOT NULL,
       problem TEXT NOT NULL
     ) STRICT;",
    // Addresses that are not let in; an empty app stands for all.
    "CREATE TABLE bans (
       app TEXT NOT NULL,
       ip TEXT NOT NULL,
       until_s INTEGER NOT NULL,
       reason TEXT NOT NULL,
       PRIMARY KEY (app, ip)
     ) STRICT;",
    // Quarantine; programs that run once, and up to when timed jobs were looked after.
    "ALTER TABLE apps ADD COLUMN isolated INTEGER NOT NULL DEFAULT 0;
     CREATE TABLE runs (
       id INTEGER PRIMARY KEY AUTOINCREMENT,
       app TEXT NOT NULL REFERENCES apps(name) ON DELETE CASCADE,
       name TEXT NOT NULL,
       command TEXT NOT NULL,
       timeout_ms INTEGER NOT NULL,
       state TEXT NOT NULL,
       detail TEXT,
       exit_code INTEGER,
       instance TEXT,
       cause TEXT,
       boot TEXT,
       due_ms INTEGER NOT NULL,
       started_ms INTEGER,
       ended_ms INTEGER
     ) STRICT;
     CREATE INDEX runs_by_app ON runs(app, name, id);
     CREATE INDEX open_runs ON runs(state) WHERE state IN ('wanted', 'running');
     CREATE TABLE cron (
       app TEXT NOT NULL REFERENCES apps(name) ON DELETE CASCADE,
       name TEXT NOT NULL,
       schedule TEXT NOT NULL,
       seen_ms INTEGER NOT NULL,
       PRIMARY KEY (app, name)
     ) STRICT;",
    git::TABLES,
    // The folder of app files that an app was last deployed from as a whole.
    "ALTER TABLE apps ADD COLUMN applied_from TEXT;",
    // Releases on trial; the deployment that is kept ready to serve again, and until when (milliseconds since boot).
    "CREATE TABLE canaries (
       deployment INTEGER PRIMARY KEY REFERENCES deployments(id) ON DELETE CASCADE,
       step INTEGER NOT NULL,
       decision TEXT NOT NULL
     ) STRICT;
     ALTER TABLE apps ADD COLUMN warm INTEGER;
     ALTER TABLE apps ADD COLUMN warm_until_ms INTEGER NOT NULL DEFAULT 0;",
    // Names and passwords for other registries.
    "CREATE TABLE registries (
       host TEXT PRIMARY KEY,
       user TEXT NOT NULL,
       sealed BLOB NOT NULL,
       updated_ms INTEGER NOT NULL
     ) STRICT;",
    // What builds are given and programs are not.
    "CREATE TABLE build_secrets (
       app TEXT NOT NULL REFERENCES apps(name) ON DELETE CASCADE,
       name TEXT NOT NULL,
       sealed BLOB NOT NULL,
       updated_ms INTEGER NOT NULL,
       PRIMARY KEY (app, name)
     ) STRICT;",
    git::WAITING,
    // What tags of other registries led to.
    watched::TABLE,
    snapshots::COLUMNS,
    // Pushes to our own registry whose deployment is not begun yet.
    pushes::TABLE,
];

/// A file that is given up when the disk is full, so that `remove --purge` can still be written down.
const BALLAST: u64 = 4 << 20;

const SCHEMA: &str = "
CREATE TABLE apps (
  name TEXT PRIMARY KEY,
  goal TEXT NOT NULL CHECK (goal IN ('running', 'stopped', 'removed')),
  purge INTEGER NOT NULL DEFAULT 0,
  active INTEGER,
  scale INTEGER,
  failures INTEGER NOT NULL DEFAULT 0,
  last_failure_ms INTEGER NOT NULL DEFAULT 0,
  last_failure TEXT,
  halted TEXT,
  next_release INTEGER NOT NULL DEFAULT 1,
  changed_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE releases (
  app TEXT NOT NULL REFERENCES apps(name) ON DELETE CASCADE,
  number INTEGER NOT NULL,
  digest TEXT NOT NULL,
  built TEXT,
  spec TEXT NOT NULL,
  created_ms INTEGER NOT NULL,
  served INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (app, number)
) STRICT;
CREATE TABLE deployments (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  app TEXT NOT NULL REFERENCES apps(name) ON DELETE CASCADE,
  release INTEGER NOT NULL,
  kind TEXT NOT NULL,
  state TEXT NOT NULL,
  reason TEXT,
  log TEXT NOT NULL DEFAULT '[]',
  created_ms INTEGER NOT NULL,
  finished_ms INTEGER
) STRICT;
CREATE INDEX deployments_by_app ON deployments(app, id);
CREATE TABLE env (
  app TEXT NOT NULL REFERENCES apps(name) ON DELETE CASCADE,
  key TEXT NOT NULL,
  sealed BLOB NOT NULL,
  updated_ms INTEGER NOT NULL,
  PRIMARY KEY (app, key)
) STRICT;
";

#[derive(Debug, Error)]
pub enum StoreError {
    #[error("the store cannot be used: {0}")]
    Sqlite(rusqlite::Error),
    #[error("the disk is full: {0}")]
    Full(rusqlite::Error),
    #[error(
        "the store {path} is of version {found}, this program knows {VERSION}: install a newer hutong"
    )]
    Newer { path: String, found: i64 },
    #[error("{0}")]
    Cipher(String),
    #[error("the stored configuration of {app} is not understood: {problem}")]
    Spec { app: String, problem: String },
    #[error("snapshot {id} of {app}'s /data is being put back")]
    Restoring { app: String, id: u64 },
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => StoreError::Full(error),
            _ => StoreError::Sqlite(error),
        }
    }
}

pub type Result<T> = std::result::Result<T, StoreError>;

pub struct Store {
    connection: Mutex<Connection>,
    cipher: Cipher,
    ballast: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    Running,
    Stopped,
    Removed,
}

impl Goal {
    fn word(self) -> &'static str {
        match self {
            Goal::Running => "running",
            Goal::Stopped => "stopped",
            Goal::Removed => "removed",
        }
    }

    fn parse(word: &str) -> Self {
        match word {
            "running" => Goal::Running,
            "stopped" => Goal::Stopped,
            _ => Goal::Removed,
        }
    }
}

#[derive(Clone, Debug)]
pub struct App {
    pub name: String,
    pub goal: Goal,
    pub purge: bool,
    pub active: Option<u64>,
    pub scale: Option<u32>,
    pub failures: u32,
    pub last_failure: Option<String>,
    pub halted: Option<String>,
    /// How long ago it was removed, in time that the server ran.
    pub removed_ms: u64,
    /// The number of its next release.
    pub next_release: u64,
    /// It is in quarantine.
    pub isolated: bool,
    /// The folder of app files that it was last deployed from as a whole.
    pub applied_from: Option<String>,
    /// The deployment that is kept ready to serve again, and until when, in milliseconds since boot.
    pub warm: Option<u64>,
    pub warm_until_ms: u64,
    /// The snapshot that its data is being made of; until then nothing of it runs.
    pub restoring: Option<u64>,
    /// Why the last one could not be put back.
    pub restore_problem: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Release {
    pub app: String,
    pub number: u64,
    pub digest: String,
    pub built: Option<String>,
    pub spec: String,
    pub created_ms: u64,
    pub served: bool,
}

impl Release {
    pub fn parse(&self) -> Result<AppSpec> {
        spec::parse("hutong.toml", &self.spec).map_err(|problems| StoreError::Spec {
            app: self.app.clone(),
            problem: problems.to_string(),
        })
    }
}

/// `building`, `rolling`, `done`, `failed` or `superseded`.
#[derive(Clone, Debug)]
pub struct Deployment {
    pub id: u64,
    pub app: String,
    pub release: u64,
    pub kind: String,
    pub state: String,
    pub reason: Option<String>,
    pub log: Vec<String>,
    pub created_ms: u64,
    pub finished_ms: Option<u64>,
}

impl Deployment {
    pub fn is_over(&self) -> bool {
        !matches!(self.state.as_str(), "building" | "rolling")
    }
}

/// A name that has no certificate yet, or none for longer, and why.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub host: String,
    /// In a row.
    pub failures: u32,
    /// Not before, in seconds since 1970.
    pub next_s: u64,
    pub problem: String,
}

/// Attempts to have certificates.
impl Store {
    pub fn attempts(&self) -> Result<Vec<Attempt>> {
        self.attempts_of(None)
    }

    fn attempts_of(&self, host: Option<&str>) -> Result<Vec<Attempt>> {
        let connection = lock(&self.connection);
        let mut statement = connection
            .prepare_cached("SELECT * FROM attempts WHERE ?1 IS NULL OR host = ?1 ORDER BY host")?;
        let rows = statement.query_map([host], |row| {
            Ok(Attempt {
                host: row.get("host")?,
                failures: row.get("failures")?,
                next_s: row.get("next_s")?,
                problem: row.get("problem")?,
            })
        })?;
        Ok(rows.collect::<std::result::Result<_, _>>()?)
    }

    pub fn attempt(&self, host: &str) -> Result<Option<Attempt>> {
        let all = self.attempts_of(Some(host))?;
        Ok(all.into_iter().next())
    }

    pub fn note_attempt(&self, attempt: &Attempt) -> Result<()> {
        lock(&self.connection).execute(
            "INSERT OR REPLACE INTO attempts (host, failures, next_s, problem) VALUES (?1, ?2, ?3, ?4)",
            params![attempt.host, attempt.failures, attempt.next_s, attempt.problem],
        )?;
        Ok(())
    }

    pub fn forget_attempt(&self, host: &str) -> Result<()> {
        lock(&self.connection).execute("DELETE FROM attempts WHERE host = ?1", [host])?;
        Ok(())
    }
}

/// Addresses that are not let in.
impl Store {
    /// Those that are not over, in the order of their end.
    pub fn bans(&self) -> Result<Vec<Banned>> {
        let now_s = now_ms() / 1000;
        let connection = lock(&self.connection);
        let mut statement = connection
            .prepare_cached("SELECT * FROM bans WHERE until_s > ?1 ORDER BY until_s, ip")?;
        let rows = statement.query_map([now_s], |row| {
            let (app, ip): (String, String) = (row.get("app")?, row.get("ip")?);
            Ok(ip.parse().ok().map(|ip| Banned {
                app: Some(app).filter(|app| !app.is_empty()),
                ip,
                until_s: row.get("until_s").unwrap_or(0),
                reason: row.get("reason").unwrap_or_default(),
            }))
        })?;
        let all: Vec<Option<Banned>> = rows.collect::<std::result::Result<_, _>>()?;
        Ok(all.into_iter().flatten().collect())
    }

    /// Keeps bans. Of an app's, as many as the gateway keeps; the owner's own are never pushed out.
    pub fn ban(&self, bans: &[Banned]) -> Result<()> {
        let mut connection = lock(&self.connection);
        let change = connection.transaction()?;
        change.execute("DELETE FROM bans WHERE until_s <= ?1", [now_ms() / 1000])?;
        for ban in bans {
            let app = ban.app.as_deref().unwrap_or_default();
            change.execute(
                "INSERT OR REPLACE INTO bans (app, ip, until_s, reason) VALUES (?1, ?2, ?3, ?4)",
                params![app, ban.ip.to_string(), ban.until_s, ban.reason],
            )?;
        }
        let apps: std::collections::BTreeSet<&str> =
            bans.iter().filter_map(|ban| ban.app.as_deref()).collect();
        for app in apps {
            change.execute(
                "DELETE FROM bans WHERE app = ?1 AND rowid NOT IN (SELECT rowid FROM bans WHERE app = ?1 ORDER BY until_s DESC LIMIT 10000)",
                [app],
            )?;
        }
        change.commit()?;
        Ok(())
    }

    /// Whether there was one.
    pub fn lift(&self, ip: IpAddr) -> Result<bool> {
        let connection = lock(&self.connection);
        Ok(connection.execute("DELETE FROM bans WHERE ip = ?1", [ip.to_string()])? > 0)
    }
}

impl Store {
    pub fn open(path: &Path, cipher: Cipher) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        // A page cache of 512 KiB: the whole store of a hundred apps.
        connection.pragma_update(None, "cache_size", -512)?;
        let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if found > VERSION {
            return Err(StoreError::Newer {
                path: path.display().to_string(),
                found,
            });
        }
        if found < VERSION {
            // All or nothing: a kill on the way leaves the old version.
            let mut script = String::from("BEGIN; ");
            if found == 0 {
                script.push_str(SCHEMA);
            }
            let from = found.max(FIRST_VERSION) - FIRST_VERSION;
            for migration in &MIGRATIONS[from as usize..] {
                script.push_str(migration);
            }
            script.push_str(&format!("PRAGMA user_version = {VERSION}; COMMIT;"));
            connection.execute_batch(&script)?;
        }
        let store = Store {
            connection: Mutex::new(connection),
            cipher,
            ballast: path.with_file_name("ballast"),
        };
        store.keep_ballast();
        Ok(store)
    }

    /// Makes the ballast again once there is room.
    pub fn keep_ballast(&self) {
        if self.ballast.exists() {
            return;
        }
        let folder = self.ballast.parent().unwrap_or(Path::new("."));
        let room = rustix::fs::statvfs(folder).map_or(0, |found| found.f_bavail * found.f_frsize);
        if room > 4 * BALLAST {
            let made = std::fs::File::create(&self.ballast).and_then(|file| {
                let flags = rustix::fs::FallocateFlags::empty();
                rustix::fs::fallocate(&file, flags, 0, BALLAST).map_err(Into::into)
            });
            if let Err(error) = made {
                tracing::warn!("no reserve for a full disk: {error}");
                let _ = std::fs::remove_file(&self.ballast);
            }
        }
    }

    fn write<T>(&self, work: impl Fn(&rusqlite::Transaction<'_>) -> Result<T>) -> Result<T> {
        self.write_once(&work)
    }

    /// For removals: on a full disk it is tried again with the ballast's room. Nothing else may use that
    /// up, or it is gone when it is needed.
    fn write_at_any_cost<T>(
        &self,
        work: impl Fn(&rusqlite::Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        match self.write_once(&work) {
            Err(StoreError::Full(error)) if std::fs::remove_file(&self.ballast).is_ok() => {
                tracing::warn!("{}; the reserve is used", StoreError::Full(error));
                self.write_once(&work)
            }
            other => other,
        }
    }

    fn write_once<T>(&self, work: impl Fn(&rusqlite::Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = lock(&self.connection);
        let transaction = connection.transaction()?;
        let result = work(&transaction)?;
        fail::point("store.before-commit");
        transaction.commit()?;
        fail::point("store.committed");
        Ok(result)
    }

    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        Ok(work(&lock(&self.connection))?)
    }

    pub fn apps(&self) -> Result<Vec<App>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM apps ORDER BY name")?
                .query_map([], app_from)?
                .collect()
        })
    }

    pub fn app(&self, name: &str) -> Result<Option<App>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM apps WHERE name = ?")?
                .query_row([name], app_from)
                .optional()
        })
    }

    pub fn releases(&self, app: &str) -> Result<Vec<Release>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM releases WHERE app = ? ORDER BY number DESC")?
                .query_map([app], release_from)?
                .collect()
        })
    }

    pub fn release(&self, app: &str, number: u64) -> Result<Option<Release>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM releases WHERE app = ? AND number = ?")?
                .query_row(params![app, number], release_from)
                .optional()
        })
    }

    pub fn deployment(&self, id: u64) -> Result<Option<Deployment>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM deployments WHERE id = ?")?
                .query_row([id], deployment_from)
                .optional()
        })
    }

    /// The app's deployment that is not over, if any.
    pub fn under_way(&self, app: &str) -> Result<Option<Deployment>> {
        self.read(|c| {
            c.prepare_cached(
                "SELECT * FROM deployments WHERE app = ? AND state IN ('building', 'rolling') ORDER BY id DESC LIMIT 1",
            )?
            .query_row([app], deployment_from)
            .optional()
        })
    }

    pub fn building(&self) -> Result<Vec<Deployment>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM deployments WHERE state = 'building' ORDER BY id")?
                .query_map([], deployment_from)?
                .collect()
        })
    }

    /// Every digest that some release uses.
    pub fn digests(&self) -> Result<Vec<String>> {
        self.read(|c| {
            c.prepare_cached("SELECT DISTINCT digest FROM releases")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
    }

    /// What was built of every release that is kept: keys, and ids of images.
    pub fn all_built(&self) -> Result<Vec<String>> {
        self.read(|c| {
            c.prepare_cached("SELECT DISTINCT built FROM releases WHERE built IS NOT NULL")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
    }

    /// A new release with its deployment. The app is made if it is new; what was under way is
    /// superseded, because the newest wish counts. `folder` is the folder of app files that it belongs to: whoever
    /// deploys otherwise takes the app out of that folder.
    pub fn deploy_from(
        &self,
        app: &str,
        digest: &str,
        spec: &str,
        state: &str,
        folder: Option<&str>,
    ) -> Result<Deployment> {
        self.write(|t| add_release(t, (app, digest), spec, state, folder))
    }

    /// The same, of no folder.
    #[cfg(test)]
    pub fn deploy(&self, app: &str, digest: &str, spec: &str, state: &str) -> Result<Deployment> {
        self.deploy_from(app, digest, spec, state, None)
    }

    /// Rolls an existing release out (again).
    pub fn redeploy(&self, app: &str, release: u64, kind: &str, state: &str) -> Result<Deployment> {
        self.write(|t| {
            t.execute(
                "UPDATE apps SET goal = 'running', changed_ms = ? WHERE name = ?",
                params![now_ms(), app],
            )?;
            add_deployment(t, app, release, kind, state)
        })
    }

    /// Rolls a release out without anybody having asked: only if the app is as whoever decided it saw it, and
    /// nothing else is under way. True if it begins.
    pub fn redeploy_if(&self, app: &str, active: u64, release: u64, kind: &str) -> Result<bool> {
        self.write(|t| {
            let as_seen = t
                .query_row(
                    "SELECT 1 FROM apps WHERE name = ?1 AND goal = 'running' AND isolated = 0 AND active = ?2 AND restoring IS NULL
                       AND NOT EXISTS (SELECT 1 FROM deployments WHERE app = ?1 AND state IN ('building', 'rolling'))",
                    params![app, active],
                    |_| Ok(()),
                )
                .optional()?;
            if as_seen.is_some() {
                add_deployment(t, app, release, kind, "rolling")?;
            }
            Ok(as_seen.is_some())
        })
    }

    /// A release's file says more than its owner wrote: what its image says of itself.
    pub fn set_spec(&self, app: &str, number: u64, spec: &str) -> Result<()> {
        self.write(|t| {
            t.execute(
                "UPDATE releases SET spec = ?3 WHERE app = ?1 AND number = ?2",
                params![app, number, spec],
            )?;
            Ok(())
        })
    }

    /// A build is done: its deployment goes on.
    pub fn built(&self, deployment: u64, key: Option<&str>) -> Result<()> {
        self.write(|t| {
            t.execute(
                "UPDATE releases SET built = ?2 WHERE (app, number) = (SELECT app, release FROM deployments WHERE id = ?1)",
                params![deployment, key],
            )?;
            t.execute(
                "UPDATE deployments SET state = 'rolling' WHERE id = ? AND state = 'building'",
                [deployment],
            )?;
            Ok(())
        })
    }

    /// The deployment serves from now on; false if it is not wanted any more. The one before is kept ready until
    /// `warm_until_ms` (since boot), if that is said.
    pub fn promote(&self, deployment: u64, warm_until_ms: Option<u64>) -> Result<bool> {
        self.write(|t| {
            let now = now_ms();
            let rolling = t.execute(
                "UPDATE deployments SET state = 'done', finished_ms = ?2 WHERE id = ?1 AND state = 'rolling'",
                params![deployment, now],
            )?;
            if rolling == 0 {
                // Stopped, removed or superseded meanwhile: the newest wish counts.
                return Ok(false);
            }
            t.execute(
                "UPDATE apps SET active = ?1, warm = CASE WHEN ?2 IS NULL THEN NULL ELSE active END,
                   warm_until_ms = COALESCE(?2, 0), failures = 0, last_failure = NULL, halted = NULL
                 WHERE name = (SELECT app FROM deployments WHERE id = ?1)",
                params![deployment, warm_until_ms],
            )?;
            // The file's number of instances counts again, from now on and not before.
            t.execute(
                "UPDATE apps SET scale = NULL WHERE (name, 'deploy') = (SELECT app, kind FROM deployments WHERE id = ?)",
                [deployment],
            )?;
            t.execute(
                "UPDATE releases SET served = 1 WHERE (app, number) = (SELECT app, release FROM deployments WHERE id = ?)",
                [deployment],
            )?;
            Ok(true)
        })
    }

    /// False if it was over before: it serves, or something else ended it.
    pub fn fail(&self, deployment: u64, reason: &str, log: &[String]) -> Result<bool> {
        let log = serde_json::to_string(log).unwrap_or_default();
        self.write(|t| {
            let rows = t.execute(
                "UPDATE deployments SET state = 'failed', reason = ?2, log = ?3, finished_ms = ?4 WHERE id = ?1 AND state IN ('building', 'rolling')",
                params![deployment, reason, log, now_ms()],
            )?;
            Ok(rows > 0)
        })
    }

    /// Ends a deployment that is still being built; false if it is not, or no longer.
    pub fn cancel(&self, deployment: u64, reason: &str) -> Result<bool> {
        self.write(|t| {
            let ended = t.execute(
                "UPDATE deployments SET state = 'failed', reason = ?2, log = '[]', finished_ms = ?3 WHERE id = ?1 AND state = 'building'",
                params![deployment, reason, now_ms()],
            )?;
            Ok(ended > 0)
        })
    }

    pub fn set_goal(&self, app: &str, goal: Goal, purge: bool) -> Result<()> {
        let work = |t: &rusqlite::Transaction<'_>| {
            t.execute(
                "UPDATE apps SET goal = ?2, purge = ?3, halted = NULL, failures = 0, changed_ms = ?4, removed_ms = 0 WHERE name = ?1",
                params![app, goal.word(), purge, now_ms()],
            )?;
            if goal != Goal::Running {
                supersede(t, app)?;
            }
            if goal == Goal::Removed {
                // Whoever has a token or a webhook of it is not to bring it back.
                git::close(t, app)?;
            }
            Ok(())
        };
        if goal == Goal::Removed {
            self.write_at_any_cost(work)
        } else {
            self.write(work)
        }
    }

    /// Puts an app into quarantine, or takes it out. What is under way ends.
    pub fn isolate(&self, app: &str, isolated: bool) -> Result<()> {
        // The disk may be full by the very app.
        self.write_at_any_cost(|t| {
            t.execute(
                "UPDATE apps SET isolated = ?2 WHERE name = ?1",
                params![app, isolated],
            )?;
            if isolated {
                supersede(t, app)?;
            }
            Ok(())
        })
    }

    pub fn scale(&self, app: &str, instances: u32) -> Result<()> {
        self.write(|t| {
            t.execute(
                "UPDATE apps SET scale = ?2 WHERE name = ?1",
                params![app, instances],
            )?;
            Ok(())
        })
    }

    /// The active version ended by itself.
    pub fn note_failure(&self, app: &str, failures: u32, why: &str, halt: bool) -> Result<()> {
        self.write(|t| {
            t.execute(
                "UPDATE apps SET failures = ?2, last_failure_ms = ?3, last_failure = ?4, halted = ?5 WHERE name = ?1",
                params![app, failures, now_ms(), why, halt.then_some(why)],
            )?;
            Ok(())
        })
    }

    /// Forgets a removed app; one that was deployed again meanwhile stays.
    pub fn forget_app(&self, app: &str) -> Result<()> {
        self.write_at_any_cost(|t| {
            t.execute(
                "DELETE FROM apps WHERE name = ? AND goal = 'removed'",
                [app],
            )?;
            git::forget(t, app)
        })
    }

    /// Removed apps have been kept for so much longer.
    pub fn age_removed(&self, elapsed_ms: u64) -> Result<()> {
        self.write(|t| {
            t.execute(
                "UPDATE apps SET removed_ms = removed_ms + ? WHERE goal = 'removed'",
                [elapsed_ms],
            )?;
            Ok(())
        })
    }

    /// It has run well for long enough.
    pub fn clear_failures(&self, app: &str) -> Result<()> {
        self.write(|t| {
            t.execute("UPDATE apps SET failures = 0 WHERE name = ?", [app])?;
            Ok(())
        })
    }

    pub fn forget_release(&self, app: &str, number: u64) -> Result<()> {
        self.write(|t| {
            t.execute(
                "DELETE FROM releases WHERE app = ? AND number = ?",
                params![app, number],
            )?;
            Ok(())
        })
    }

    /// Changes variables and, for a running app, begins the deployment (of `release`) that brings them: one
    /// without the other must not be.
    pub fn change_env(
        &self,
        app: &str,
        set: &BTreeMap<String, String>,
        unset: &[String],
        release: Option<u64>,
    ) -> Result<Option<Deployment>> {
        let mut sealed = Vec::new();
        for (key, value) in set {
            let value = self
                .cipher
                .seal(app, key, value)
                .map_err(StoreError::Cipher)?;
            sealed.push((key, value));
        }
        self.write(|t| {
            for (key, value) in &sealed {
                t.execute(
                    "INSERT OR REPLACE INTO env (app, key, sealed, updated_ms) VALUES (?, ?, ?, ?)",
                    params![app, key, value, now_ms()],
                )?;
            }
            for key in unset {
                t.execute(
                    "DELETE FROM env WHERE app = ? AND key = ?",
                    params![app, key],
                )?;
            }
            let began = release.map(|release| add_deployment(t, app, release, "env", "rolling"));
            began.transpose()
        })
    }

    /// Names and times; no values.
    pub fn env_keys(&self, app: &str) -> Result<Vec<(String, u64)>> {
        self.read(|c| {
            c.prepare_cached("SELECT key, updated_ms FROM env WHERE app = ? ORDER BY key")?
                .query_map([app], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
    }

    /// The values, decrypted: for the app's own environment and nothing else.
    pub fn env(&self, app: &str) -> Result<Vec<(String, String)>> {
        let sealed: Vec<(String, Vec<u8>)> = self.read(|c| {
            c.prepare_cached("SELECT key, sealed FROM env WHERE app = ? ORDER BY key")?
                .query_map([app], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })?;
        sealed
            .into_iter()
            .map(|(key, value)| {
                let value = self.cipher.open_value(app, &key, &value);
                Ok((key, value.map_err(StoreError::Cipher)?))
            })
            .collect()
    }
}

/// A new release, with its deployment.
fn add_release(
    t: &rusqlite::Transaction<'_>,
    (app, digest): (&str, &str),
    spec: &str,
    state: &str,
    folder: Option<&str>,
) -> Result<Deployment> {
    let now = now_ms();
    t.execute(
        "INSERT INTO apps (name, goal, changed_ms, applied_from) VALUES (?1, 'running', ?2, ?3)
         ON CONFLICT (name) DO UPDATE SET
           active = CASE WHEN goal = 'removed' THEN NULL ELSE active END,
           goal = 'running', purge = 0, changed_ms = ?2, applied_from = ?3",
        params![app, now, folder],
    )?;
    let number: u64 = t.query_row(
        "UPDATE apps SET next_release = next_release + 1 WHERE name = ? RETURNING next_release - 1",
        [app],
        |row| row.get(0),
    )?;
    t.execute(
        "INSERT INTO releases (app, number, digest, spec, created_ms) VALUES (?, ?, ?, ?, ?)",
        params![app, number, digest, spec, now],
    )?;
    add_deployment(t, app, number, "deploy", state)
}

fn add_deployment(
    t: &rusqlite::Transaction<'_>,
    app: &str,
    release: u64,
    kind: &str,
    state: &str,
) -> Result<Deployment> {
    // What is decided before somebody wants a snapshot back would run with other data than it was meant for.
    let restoring = "SELECT restoring FROM apps WHERE name = ? AND restoring IS NOT NULL";
    let restoring = t.query_row(restoring, [app], |row| row.get(0)).optional()?;
    if let Some(id) = restoring {
        let app = app.to_owned();
        return Err(StoreError::Restoring { app, id });
    }
    supersede(t, app)?;
    let now = now_ms();
    t.execute(
        "INSERT INTO deployments (app, release, kind, state, created_ms) VALUES (?, ?, ?, ?, ?)",
        params![app, release, kind, state, now],
    )?;
    let id = t.last_insert_rowid() as u64;
    Ok(t.query_row(
        "SELECT * FROM deployments WHERE id = ?",
        [id],
        deployment_from,
    )?)
}

fn supersede(t: &rusqlite::Transaction<'_>, app: &str) -> Result<()> {
    t.execute(
        "UPDATE deployments SET state = 'superseded', finished_ms = ?2 WHERE app = ?1 AND state IN ('building', 'rolling')",
        params![app, now_ms()],
    )?;
    Ok(())
}

fn app_from(row: &Row<'_>) -> rusqlite::Result<App> {
    Ok(App {
        name: row.get("name")?,
        goal: Goal::parse(&row.get::<_, String>("goal")?),
        purge: row.get("purge")?,
        active: row.get("active")?,
        scale: row.get("scale")?,
        failures: row.get("failures")?,
        last_failure: row.get("last_failure")?,
        halted: row.get("halted")?,
        removed_ms: row.get("removed_ms")?,
        next_release: row.get("next_release")?,
        isolated: row.get("isolated")?,
        applied_from: row.get("applied_from")?,
        warm: row.get("warm")?,
        warm_until_ms: row.get("warm_until_ms")?,
        restoring: row.get("restoring")?,
        restore_problem: row.get("restore_problem")?,
    })
}

fn release_from(row: &Row<'_>) -> rusqlite::Result<Release> {
    Ok(Release {
        app: row.get("app")?,
        number: row.get("number")?,
        digest: row.get("digest")?,
        built: row.get("built")?,
        spec: row.get("spec")?,
        created_ms: row.get("created_ms")?,
        served: row.get("served")?,
    })
}

fn deployment_from(row: &Row<'_>) -> rusqlite::Result<Deployment> {
    let log: String = row.get("log")?;
    Ok(Deployment {
        id: row.get("id")?,
        app: row.get("app")?,
        release: row.get("release")?,
        kind: row.get("kind")?,
        state: row.get("state")?,
        reason: row.get("reason")?,
        log: serde_json::from_str(&log).unwrap_or_default(),
        created_ms: row.get("created_ms")?,
        finished_ms: row.get("finished_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &Path) -> Store {
        let cipher = Cipher::open(&dir.join("key")).expect("key");
        Store::open(&dir.join("state.db"), cipher).expect("store")
    }

    #[test]
    fn what_was_declared_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let first = store(dir.path());
        let spec = "name='a'\ncommand='x'";
        let one = first.deploy("a", "d1", spec, "building").expect("deploy");
        first.built(one.id, Some("k")).expect("built");
        first.promote(one.id, None).expect("promote");
        let two = first.deploy("a", "d2", spec, "rolling").expect("deploy");
        let three = first.deploy("a", "d3", spec, "rolling").expect("deploy");
        assert!(first.fail(three.id, "no", &["line".into()]).expect("fail"));
        assert!(!first.fail(three.id, "again", &[]).expect("fail"));
        let set = BTreeMap::from([("K".to_owned(), "hushed".to_owned())]);
        first.change_env("a", &set, &[], None).expect("env");
        drop(first);
        let again = store(dir.path());
        let app = again.app("a").expect("read").expect("there");
        assert_eq!((app.goal, app.active), (Goal::Running, Some(one.id)));
        let numbers: Vec<u64> = again
            .releases("a")
            .expect("read")
            .iter()
            .map(|r| r.number)
            .collect();
        assert_eq!(numbers, [3, 2, 1]);
        let state = |id| again.deployment(id).expect("read").expect("there").state;
        assert_eq!(state(two.id), "superseded");
        assert_eq!(state(three.id), "failed");
        assert!(again.under_way("a").expect("read").is_none());
        assert_eq!(
            again.env("a").expect("env"),
            [("K".into(), "hushed".into())]
        );
        let raw = std::fs::read(dir.path().join("state.db")).expect("file");
        let wal = std::fs::read(dir.path().join("state.db-wal")).unwrap_or_default();
        let has = |bytes: &[u8]| bytes.windows(6).any(|w| w == b"hushed");
        assert!(!has(&raw) && !has(&wal));
    }

    #[test]
    fn a_deploy_from_elsewhere_takes_an_app_out_of_its_folder() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = store(dir.path());
        let spec = "name='a'\ncommand='x'";
        let from = || store.app("a").expect("read").expect("there").applied_from;
        store.deploy("a", "d1", spec, "rolling").expect("deploy");
        assert_eq!(from(), None);
        let applied = store.deploy_from("a", "d1", spec, "rolling", Some("set:web"));
        applied.expect("deploy");
        assert_eq!(from().as_deref(), Some("set:web"));
        store.redeploy("a", 1, "restart", "rolling").expect("again");
        assert_eq!(from().as_deref(), Some("set:web"));
        store.deploy("a", "d2", spec, "rolling").expect("deploy");
        assert_eq!(from(), None);
        let new = store.deploy_from("b", "d1", spec, "rolling", Some("set:web"));
        new.expect("deploy");
        let app = store.app("b").expect("read").expect("there");
        assert_eq!(app.applied_from.as_deref(), Some("set:web"));
    }

    /// A file of every released version, as its program wrote it.
    #[test]
    fn an_older_store_is_brought_forward() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("state.db");
        let old = Connection::open(&path).expect("open");
        old.execute_batch(&format!(
            "{SCHEMA} PRAGMA user_version = 1;
             INSERT INTO apps (name, goal, changed_ms) VALUES ('a', 'removed', 5);"
        ))
        .expect("written");
        drop(old);
        let now = store(dir.path());
        now.age_removed(7).expect("aged");
        let app = now.app("a").expect("read").expect("there");
        assert_eq!((app.goal, app.removed_ms), (Goal::Removed, 7));
        drop(now);
        store(dir.path());
    }

    #[test]
    fn a_newer_store_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        drop(store(dir.path()));
        let raw = Connection::open(dir.path().join("state.db")).expect("open");
        raw.pragma_update(None, "user_version", 99).expect("pragma");
        drop(raw);
        let cipher = Cipher::open(&dir.path().join("key")).expect("key");
        let error = Store::open(&dir.path().join("state.db"), cipher)
            .err()
            .expect("refused");
        assert!(error.to_string().contains("newer hutong"), "{error}");
    }
}
