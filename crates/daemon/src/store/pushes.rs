//! Pushes to this server's own registry that are to be followed: from before their tag moves until their deployment was
//! begun or refused. What is left here was under way when a control plane was killed.

use rusqlite::params;

use super::{Result, Store};

/// A tag that was pushed, or was about to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    pub app: String,
    pub repository: String,
    pub tag: String,
    pub digest: String,
    /// The app's last deployment then.
    pub newest: u64,
}

pub const TABLE: &str = "CREATE TABLE pushes (
       app TEXT NOT NULL REFERENCES apps(name) ON DELETE CASCADE,
       repository TEXT NOT NULL,
       tag TEXT NOT NULL,
       digest TEXT NOT NULL,
       newest INTEGER NOT NULL,
       PRIMARY KEY (repository, tag)
     ) STRICT;";

impl Store {
    /// A tag is about to lead to `digest`, and its app wants that.
    pub fn note_push(&self, app: &str, repository: &str, tag: &str, digest: &str) -> Result<()> {
        self.write(|t| {
            t.execute(
                "INSERT OR REPLACE INTO pushes (app, repository, tag, digest, newest)
                 SELECT name, ?2, ?3, ?4, COALESCE((SELECT max(id) FROM deployments WHERE app = ?1), 0)
                 FROM apps WHERE name = ?1",
                params![app, repository, tag, digest],
            )?;
            Ok(())
        })
    }

    /// It was dealt with. Another one of the same tag stays.
    pub fn forget_push(&self, repository: &str, tag: &str, digest: &str) -> Result<()> {
        self.write(|t| {
            t.execute(
                "DELETE FROM pushes WHERE repository = ?1 AND tag = ?2 AND digest = ?3",
                params![repository, tag, digest],
            )?;
            Ok(())
        })
    }

    /// Those that nobody dealt with, the last one first.
    pub fn pushes(&self) -> Result<Vec<Pushed>> {
        self.read(|c| {
            c.prepare_cached(
                "SELECT app, repository, tag, digest, newest FROM pushes ORDER BY rowid DESC",
            )?
            .query_map([], |row| {
                Ok(Pushed {
                    app: row.get(0)?,
                    repository: row.get(1)?,
                    tag: row.get(2)?,
                    digest: row.get(3)?,
                    newest: row.get(4)?,
                })
            })?
            .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::Cipher;

    #[test]
    fn pushes_are_known_until_they_are_dealt_with() {
        let dir = tempfile::tempdir().expect("tempdir");
        let open = || {
            let cipher = Cipher::open(&dir.path().join("key")).expect("key");
            Store::open(&dir.path().join("state.db"), cipher).expect("store")
        };
        let store = open();
        let note = |store: &Store, tag: &str, digest: &str| {
            store.note_push("a", "a/b", tag, digest).expect("noted");
        };
        note(&store, "main", "one");
        let none = store.pushes().expect("read");
        assert!(none.is_empty(), "there is no such app");
        let made = store.deploy("a", "d", "name='a'\nimage='hutong.local/a'\n", "rolling");
        let first = made.expect("deploy").id;
        note(&store, "main", "one");
        note(&store, "v1", "two");
        // The same tag again: what it was to lead to before is no matter any more.
        note(&store, "main", "three");
        store.forget_push("a/b", "main", "one").expect("another");
        drop(store);
        let store = open();
        let of = |tag: &str, digest: &str| Pushed {
            app: "a".into(),
            repository: "a/b".into(),
            tag: tag.into(),
            digest: digest.into(),
            newest: first,
        };
        let all = store.pushes().expect("read");
        assert_eq!(all, [of("main", "three"), of("v1", "two")]);
        store.forget_push("a/b", "main", "three").expect("done");
        assert_eq!(store.pushes().expect("read"), [of("v1", "two")]);
    }
}
