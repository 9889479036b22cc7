//! Which snapshot an app's data is being made of. Written down before anything is stopped, so that a restart goes on with it.

use rusqlite::params;

use super::{Result, Store};

pub(super) const COLUMNS: &str = "ALTER TABLE apps ADD COLUMN restoring INTEGER;
     ALTER TABLE apps ADD COLUMN restore_problem TEXT;
     ALTER TABLE previews ADD COLUMN copies INTEGER NOT NULL DEFAULT 0;";

impl Store {
    /// False if the app is in quarantine, is removed, gets one back already, or is being deployed.
    pub fn begin_restore(&self, app: &str, id: u64) -> Result<bool> {
        self.write(|t| {
            let rows = t.execute(
                "UPDATE apps SET restoring = ?2, restore_problem = NULL
                 WHERE name = ?1 AND goal <> 'removed' AND isolated = 0 AND restoring IS NULL
                   AND NOT EXISTS (SELECT 1 FROM deployments WHERE app = ?1 AND state IN ('building', 'rolling'))",
                params![app, id],
            )?;
            Ok(rows > 0)
        })
    }

    /// The first deployment since the last deploy that served; 0 if there is none. Rollbacks and changed variables say nothing
    /// about the data.
    pub fn first_try(&self, app: &str) -> Result<u64> {
        self.read(|c| {
            c.query_row(
                "SELECT COALESCE(MIN(id), 0) FROM deployments WHERE app = ?1 AND id >
                   (SELECT COALESCE(MAX(id), 0) FROM deployments WHERE app = ?1 AND state = 'done' AND kind = 'deploy')",
                [app],
                |row| row.get(0),
            )
        })
    }

    /// Apps whose data is being made of a snapshot.
    pub fn restoring(&self) -> Result<Vec<String>> {
        self.read(|c| {
            c.prepare_cached("SELECT name FROM apps WHERE restoring IS NOT NULL ORDER BY name")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
    }

    /// It is put back, and what failed with the data of before counts no more; or it could not be.
    pub fn end_restore(&self, app: &str, id: u64, problem: Option<&str>) -> Result<()> {
        self.write(|t| {
            t.execute(
                "UPDATE apps SET restoring = NULL, restore_problem = ?3,
                   failures = CASE WHEN ?3 IS NULL THEN 0 ELSE failures END,
                   halted = CASE WHEN ?3 IS NULL THEN NULL ELSE halted END
                 WHERE name = ?1 AND restoring = ?2",
                params![app, id, problem],
            )?;
            Ok(())
        })
    }

    /// A preview has its copy of the app's data.
    pub fn data_copied(&self, app: &str) -> Result<()> {
        self.write(|t| {
            t.execute("UPDATE previews SET copies = 0 WHERE app = ?", [app])?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Goal, Preview};
    use super::*;
    use crate::cipher::Cipher;

    fn store(dir: &std::path::Path) -> Store {
        let cipher = Cipher::open(&dir.join("key")).expect("key");
        Store::open(&dir.join("state.db"), cipher).expect("store")
    }

    #[test]
    fn one_snapshot_at_a_time_is_put_back_and_not_while_something_is_deployed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let first = store(dir.path());
        let spec = "name='a'\ncommand='x'";
        let one = first.deploy("a", "d1", spec, "rolling").expect("deploy");
        assert!(!first.begin_restore("a", 1).expect("write"), "it rolls out");
        first.promote(one.id, None).expect("promote");
        first.note_failure("a", 9, "no", true).expect("noted");
        assert!(first.begin_restore("a", 1).expect("write"));
        assert!(!first.begin_restore("a", 1).expect("write"));
        let said = first
            .deploy("a", "d2", spec, "rolling")
            .expect_err("not now");
        assert!(said.to_string().contains("snapshot 1"), "{said}");
        assert!(first.redeploy("a", 1, "rollback", "rolling").is_err());
        assert!(!first.redeploy_if("a", 1, 1, "rollback").expect("write"));
        drop(first);
        let again = store(dir.path());
        assert_eq!(again.restoring().expect("read"), ["a"]);
        again.end_restore("a", 7, None).expect("another's end");
        assert_eq!(again.restoring().expect("read"), ["a"]);
        again.end_restore("a", 1, Some("no room")).expect("ended");
        let app = || again.app("a").expect("read").expect("there");
        assert_eq!(app().restore_problem.as_deref(), Some("no room"));
        assert!(app().halted.is_some());
        assert!(again.begin_restore("a", 2).expect("write"));
        again.end_restore("a", 2, None).expect("ended");
        assert_eq!((app().restoring, app().restore_problem), (None, None));
        assert_eq!((app().failures, app().halted), (0, None));
        again.set_goal("a", Goal::Removed, false).expect("removed");
        assert!(!again.begin_restore("a", 2).expect("write"));
    }

    #[test]
    fn tries_count_from_the_last_that_served() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = store(dir.path());
        assert_eq!(store.first_try("a").expect("read"), 0);
        let deploy = |digest: &str| {
            let spec = "name='a'\ncommand='x'";
            store
                .deploy("a", digest, spec, "rolling")
                .expect("deploy")
                .id
        };
        let one = deploy("d1");
        assert_eq!(store.first_try("a").expect("read"), one);
        store.promote(one, None).expect("promote");
        let two = deploy("d2");
        deploy("d3");
        assert_eq!(store.first_try("a").expect("read"), two);
    }

    #[test]
    fn a_preview_copies_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = store(dir.path());
        let preview = Preview {
            app: "a--b".into(),
            parent: "a".into(),
            branch: "b".into(),
            host: String::new(),
            lifetime_ms: 1000,
            age_ms: 0,
            copies: true,
        };
        assert!(store.keep_preview(&preview, 5).expect("write"));
        let copies = || store.preview("a--b").expect("read").expect("there").copies;
        assert!(copies());
        store.data_copied("a--b").expect("write");
        // It is known already: another push copies nothing.
        assert!(store.keep_preview(&preview, 5).expect("write"));
        assert!(!copies());
    }
}
