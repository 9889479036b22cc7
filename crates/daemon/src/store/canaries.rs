//! Releases on trial, and the way back to the one before: what must outlive the control plane of both.

use hutong_runtime::processes::now_ms;
use rusqlite::{OptionalExtension, params};

use super::{Deployment, Result, Store, deployment_from, supersede};

/// A canary that has begun.
#[derive(Clone, Debug)]
pub struct Canary {
    /// From 0.
    pub step: u32,
    /// Why it is at this step; empty at the first.
    pub decision: String,
}

impl Store {
    pub fn canary(&self, deployment: u64) -> Result<Option<Canary>> {
        self.read(|c| {
            c.prepare_cached("SELECT step, decision FROM canaries WHERE deployment = ?")?
                .query_row([deployment], |row| {
                    Ok(Canary {
                        step: row.get("step")?,
                        decision: row.get("decision")?,
                    })
                })
                .optional()
        })
    }

    /// A canary gets its first visitors; false if its deployment is not wanted any more.
    pub fn begin_canary(&self, deployment: u64) -> Result<bool> {
        self.write(|t| {
            let rows = t.execute(
                "INSERT OR IGNORE INTO canaries (deployment, step, decision)
                 SELECT id, 0, '' FROM deployments WHERE id = ? AND state = 'rolling'",
                [deployment],
            )?;
            Ok(rows > 0)
        })
    }

    /// A canary goes on to a later step; false if somebody else was faster, or it is over.
    pub fn move_canary(&self, deployment: u64, step: u32, decision: &str) -> Result<bool> {
        self.write(|t| {
            let rows = t.execute(
                "UPDATE canaries SET step = ?2, decision = ?3 WHERE deployment = ?1 AND step < ?2
                   AND deployment IN (SELECT id FROM deployments WHERE state = 'rolling')",
                params![deployment, step, decision],
            )?;
            Ok(rows > 0)
        })
    }

    /// The app's last deployment, whatever became of it.
    pub fn newest(&self, app: &str) -> Result<Option<Deployment>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM deployments WHERE app = ? ORDER BY id DESC LIMIT 1")?
                .query_row([app], deployment_from)
                .optional()
        })
    }

    /// The deployment that was kept ready serves again in place of `active`; none if it is not as the caller saw it.
    /// What is under way is superseded.
    pub fn switch_back(&self, app: &str, active: u64, warm: u64) -> Result<Option<Deployment>> {
        self.write(|t| {
            let now = now_ms();
            let rows = t.execute(
                "UPDATE apps SET active = warm, warm = NULL, failures = 0, last_failure = NULL, halted = NULL,
                   changed_ms = ?4
                 WHERE name = ?1 AND active = ?2 AND warm = ?3 AND goal = 'running' AND isolated = 0",
                params![app, active, warm, now],
            )?;
            if rows == 0 {
                return Ok(None);
            }
            supersede(t, app)?;
            t.execute(
                "UPDATE deployments SET finished_ms = ?2 WHERE id = ?1",
                params![warm, now],
            )?;
            let found = t.query_row(
                "SELECT * FROM deployments WHERE id = ?",
                [warm],
                deployment_from,
            )?;
            Ok(Some(found))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Goal;
    use super::*;
    use crate::cipher::Cipher;

    fn store(dir: &std::path::Path) -> Store {
        let cipher = Cipher::open(&dir.join("key")).expect("key");
        Store::open(&dir.join("state.db"), cipher).expect("store")
    }

    const SPEC: &str = "name='a'\ncommand='x'";

    #[test]
    fn a_canary_goes_on_once_and_only_while_it_is_wanted() {
        let dir = tempfile::tempdir().expect("tempdir");
        let first = store(dir.path());
        let one = first.deploy("a", "d1", SPEC, "rolling").expect("deploy").id;
        assert!(first.canary(one).expect("read").is_none());
        assert!(first.begin_canary(one).expect("begin"));
        assert!(!first.begin_canary(one).expect("again"));
        assert!(first.move_canary(one, 1, "well").expect("move"));
        assert!(!first.move_canary(one, 1, "twice").expect("move"));
        drop(first);
        let again = store(dir.path());
        let found = again.canary(one).expect("read").expect("there");
        assert_eq!((found.step, found.decision.as_str()), (1, "well"));
        let two = again.deploy("a", "d2", SPEC, "rolling").expect("deploy").id;
        assert!(!again.move_canary(one, 2, "late").expect("move"));
        assert!(!again.begin_canary(one).expect("begin"));
        let newest = again.newest("a").expect("read").expect("there");
        assert_eq!(newest.id, two);
    }

    #[test]
    fn the_release_before_serves_again_if_it_was_kept() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = store(dir.path());
        let deploy = || store.deploy("a", "d", SPEC, "rolling").expect("deploy").id;
        let one = deploy();
        assert!(store.promote(one, Some(9)).expect("promote"));
        let two = deploy();
        assert!(store.promote(two, Some(9)).expect("promote"));
        let app = || store.app("a").expect("read").expect("there");
        assert_eq!(
            (app().active, app().warm, app().warm_until_ms),
            (Some(two), Some(one), 9)
        );
        assert!(store.switch_back("a", one, one).expect("switch").is_none());
        let back = store
            .switch_back("a", two, one)
            .expect("switch")
            .expect("done");
        assert_eq!((back.id, back.state.as_str()), (one, "done"));
        assert_eq!(
            (app().active, app().warm, app().goal),
            (Some(one), None, Goal::Running)
        );
        let three = deploy();
        assert!(store.promote(three, None).expect("promote"));
        assert_eq!(app().warm, None);
    }
}
