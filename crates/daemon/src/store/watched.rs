//! What tags of other registries led to when they were last seen: what an app has been offered once, it is not offered again.

use rusqlite::{OptionalExtension, params};

use super::{Deployment, Result, Store, add_release};

/// Where a tag led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `NAME:TAG`.
    pub image: String,
    pub digest: String,
}

/// How an app was when it was decided to deploy what is new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// Its last deployment.
    pub newest: u64,
    /// What had been seen until then.
    pub seen: Seen,
}

pub const TABLE: &str = "CREATE TABLE watched (
       app TEXT PRIMARY KEY REFERENCES apps(name) ON DELETE CASCADE,
       image TEXT NOT NULL,
       digest TEXT NOT NULL
     ) STRICT;";

impl Store {
    /// The apps that may have the key `watch` in a release's file; whether they do, the file says.
    pub fn may_watch(&self) -> Result<Vec<String>> {
        self.read(|c| {
            c.prepare_cached(
                "SELECT name FROM apps WHERE goal = 'running' AND isolated = 0 AND EXISTS
                   (SELECT 1 FROM releases WHERE app = apps.name AND instr(spec, 'watch') > 0) ORDER BY name",
            )?
            .query_map([], |row| row.get(0))?
            .collect()
        })
    }

    pub fn seen(&self, app: &str) -> Result<Option<Seen>> {
        self.read(|c| {
            c.prepare_cached("SELECT image, digest FROM watched WHERE app = ?")?
                .query_row([app], |row| {
                    Ok(Seen {
                        image: row.get(0)?,
                        digest: row.get(1)?,
                    })
                })
                .optional()
        })
    }

    pub fn note_seen(&self, app: &str, seen: &Seen) -> Result<()> {
        self.write(|t| note(t, app, seen))
    }

    /// A new release of what a tag leads to now, and that this was seen: both or neither, and only if the app still is as
    /// whoever decided it saw it. It stays in the folder of app files that it belongs to.
    pub fn deploy_seen(
        &self,
        app: &str,
        before: &Before,
        seen: &Seen,
        tree: &str,
        spec: &str,
        state: &str,
    ) -> Result<Option<Deployment>> {
        self.write(|t| {
            let folder: Option<Option<String>> = t
                .query_row(
                    "SELECT applied_from FROM apps WHERE name = ?1 AND goal = 'running' AND isolated = 0
                       AND (SELECT max(id) FROM deployments WHERE app = ?1) = ?2
                       AND (SELECT digest FROM watched WHERE app = ?1 AND image = ?3) = ?4",
                    params![app, before.newest, before.seen.image, before.seen.digest],
                    |row| row.get(0),
                )
                .optional()?;
            let Some(folder) = folder else {
                return Ok(None);
            };
            note(t, app, seen)?;
            add_release(t, (app, tree), spec, state, folder.as_deref()).map(Some)
        })
    }
}

fn note(t: &rusqlite::Transaction<'_>, app: &str, seen: &Seen) -> Result<()> {
    t.execute(
        "INSERT OR REPLACE INTO watched (app, image, digest)
         SELECT name, ?2, ?3 FROM apps WHERE name = ?1",
        params![app, seen.image, seen.digest],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Goal;
    use super::*;
    use crate::cipher::Cipher;

    fn seen(digest: &str) -> Seen {
        Seen {
            image: "x:1".into(),
            digest: digest.into(),
        }
    }

    #[test]
    fn what_is_new_begins_only_where_nobody_else_deployed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let cipher = Cipher::open(&dir.path().join("key")).expect("key");
        let store = Store::open(&dir.path().join("state.db"), cipher).expect("store");
        let spec = "name='a'\nimage='x:1'\n[push]\nwatch='5m'\n";
        store.note_seen("a", &seen("one")).expect("no such app");
        assert_eq!(store.seen("a").expect("read"), None);
        let from = store.deploy_from("a", "d", spec, "rolling", Some("set:web"));
        let first = from.expect("deploy").id;
        assert_eq!(store.may_watch().expect("read"), ["a"]);
        store.note_seen("a", &seen("one")).expect("noted");
        let try_it = |newest: u64, was: &str, now: &str| {
            let before = Before {
                newest,
                seen: seen(was),
            };
            let made = store.deploy_seen("a", &before, &seen(now), "d", spec, "building");
            made.expect("asked").map(|deployment| deployment.id)
        };
        // Another was seen meanwhile, or another release came.
        assert_eq!(try_it(first, "zero", "two"), None);
        assert_eq!(try_it(first + 1, "one", "two"), None);
        let second = try_it(first, "one", "two").expect("as it was seen");
        assert_eq!(store.seen("a").expect("read"), Some(seen("two")));
        let app = store.app("a").expect("read").expect("there");
        assert_eq!(app.applied_from.as_deref(), Some("set:web"));
        assert_eq!(try_it(first, "two", "three"), None);
        // Nobody starts what its owner stopped.
        store.set_goal("a", Goal::Stopped, false).expect("stopped");
        assert_eq!(try_it(second, "two", "three"), None);
        assert!(store.may_watch().expect("read").is_empty());
    }
}
