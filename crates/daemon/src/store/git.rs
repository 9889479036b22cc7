//! What comes in by git: tokens, previews of branches, and repositories elsewhere whose webhooks are heard.

use hutong_runtime::processes::now_ms;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::{Result, Store, StoreError};

/// An app may be pushed to before there is one, so none of these refers to a row of `apps`.
pub(super) const TABLES: &str = "
CREATE TABLE tokens (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  app TEXT NOT NULL,
  name TEXT NOT NULL,
  scope TEXT NOT NULL,
  hash TEXT NOT NULL UNIQUE,
  created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX tokens_by_app ON tokens(app);
CREATE TABLE previews (
  app TEXT PRIMARY KEY,
  parent TEXT NOT NULL,
  branch TEXT NOT NULL,
  host TEXT NOT NULL,
  lifetime_ms INTEGER NOT NULL,
  age_ms INTEGER NOT NULL DEFAULT 0,
  UNIQUE (parent, branch)
) STRICT;
CREATE TABLE sources (
  app TEXT PRIMARY KEY,
  url TEXT NOT NULL,
  vendor TEXT NOT NULL,
  user TEXT NOT NULL,
  secret BLOB NOT NULL,
  token BLOB,
  state TEXT NOT NULL DEFAULT 'new',
  detail TEXT NOT NULL DEFAULT '',
  changed_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE deliveries (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  app TEXT NOT NULL,
  delivery TEXT NOT NULL,
  UNIQUE (app, delivery)
) STRICT;
";

/// Webhooks that were accepted and are not dealt with yet; of a branch's, the last.
pub(super) const WAITING: &str = "
CREATE TABLE hooks_waiting (
  app TEXT NOT NULL,
  branch TEXT NOT NULL,
  gone INTEGER NOT NULL,
  delivery TEXT NOT NULL,
  PRIMARY KEY (app, branch)
) STRICT;
";

/// So many deliveries of an app's are remembered.
const MAX_DELIVERIES: u64 = 1000;
pub const MAX_TOKENS: usize = 50;
/// Where a source's secrets stand beside an app's variables; no variable has such a name.
const SECRET: &str = "source.secret";
const READ_TOKEN: &str = "source.token";

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Reads what is there.
    Pull,
    /// Changes it, and reads.
    Push,
}

impl Scope {
    pub fn word(self) -> &'static str {
        match self {
            Scope::Pull => "pull",
            Scope::Push => "push",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "pull" => Some(Scope::Pull),
            "push" => Some(Scope::Push),
            _ => None,
        }
    }
}

/// A token of an app's; what it is, is stored as a digest only.
#[derive(Clone, Debug)]
pub struct Token {
    pub id: u64,
    pub app: String,
    pub name: String,
    pub scope: Scope,
    pub created_ms: u64,
}

/// A branch as an app of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    pub app: String,
    pub parent: String,
    pub branch: String,
    pub host: String,
    pub lifetime_ms: u64,
    /// Since its last push, in time that the server ran.
    pub age_ms: u64,
    /// Its data is still to be made of the app's own.
    pub copies: bool,
}

/// A repository elsewhere.
#[derive(Clone, Debug)]
pub struct Source {
    pub app: String,
    pub url: String,
    /// Who sends the webhooks.
    pub vendor: String,
    /// Goes with the token for reading.
    pub user: String,
    pub state: String,
    pub detail: String,
    pub changed_ms: u64,
}

/// A webhook that is to be dealt with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub app: String,
    pub branch: String,
    /// The branch is there no more.
    pub gone: bool,
    pub delivery: String,
}

/// What becomes of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is kept until it is dealt with.
    New,
    /// This delivery was here before.
    Known,
    /// Too many of the app's branches wait; nothing of it is remembered.
    Full,
}

/// Tokens.
impl Store {
    /// Its id; `None` if the app has as many as it may.
    pub fn add_token(
        &self,
        app: &str,
        name: &str,
        scope: Scope,
        hash: &str,
    ) -> Result<Option<u64>> {
        self.write(|t| {
            let count: u64 =
                t.query_row("SELECT count(*) FROM tokens WHERE app = ?", [app], |row| {
                    row.get(0)
                })?;
            if count >= MAX_TOKENS as u64 {
                return Ok(None);
            }
            t.execute(
                "INSERT INTO tokens (app, name, scope, hash, created_ms) VALUES (?, ?, ?, ?, ?)",
                params![app, name, scope.word(), hash, now_ms()],
            )?;
            Ok(Some(t.last_insert_rowid() as u64))
        })
    }

    pub fn tokens(&self, app: &str) -> Result<Vec<Token>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM tokens WHERE app = ? ORDER BY id")?
                .query_map([app], token_from)?
                .collect()
        })
    }

    /// The token of this digest (SHA-256, hex). The digest is of 192 random bits, so how long the look-up takes tells
    /// nobody anything.
    pub fn token(&self, hash: &str) -> Result<Option<Token>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM tokens WHERE hash = ?")?
                .query_row([hash], token_from)
                .optional()
        })
    }

    /// Whether there was one.
    pub fn drop_token(&self, app: &str, id: u64) -> Result<bool> {
        self.write(|t| {
            let gone = t.execute(
                "DELETE FROM tokens WHERE app = ? AND id = ?",
                params![app, id],
            )?;
            Ok(gone > 0)
        })
    }

    /// Every app that some token is for.
    pub fn apps_with_tokens(&self) -> Result<Vec<String>> {
        self.read(|c| {
            c.prepare_cached("SELECT DISTINCT app FROM tokens")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
    }
}

/// Previews.
impl Store {
    /// In the order of their names; all, or one app's.
    pub fn previews(&self, parent: Option<&str>) -> Result<Vec<Preview>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM previews WHERE ?1 IS NULL OR parent = ?1 ORDER BY app")?
                .query_map([parent], preview_from)?
                .collect()
        })
    }

    /// The preview that an app is.
    pub fn preview(&self, app: &str) -> Result<Option<Preview>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM previews WHERE app = ?")?
                .query_row([app], preview_from)
                .optional()
        })
    }

    pub fn preview_of(&self, parent: &str, branch: &str) -> Result<Option<Preview>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM previews WHERE parent = ? AND branch = ?")?
                .query_row([parent, branch], preview_from)
                .optional()
        })
    }

    /// Keeps a preview, or begins its time anew. False if `most` others of the parent's are there already.
    pub fn keep_preview(&self, preview: &Preview, most: usize) -> Result<bool> {
        self.write(|t| {
            let others: u64 = t.query_row(
                "SELECT count(*) FROM previews WHERE parent = ? AND branch <> ?",
                params![preview.parent, preview.branch],
                |row| row.get(0),
            )?;
            if others >= most as u64 {
                return Ok(false);
            }
            // Its name and host stay as they were.
            let kept = t.execute(
                "UPDATE previews SET lifetime_ms = ?3, age_ms = 0 WHERE parent = ?1 AND branch = ?2",
                params![preview.parent, preview.branch, preview.lifetime_ms],
            )?;
            if kept == 0 {
                t.execute(
                    "INSERT INTO previews (app, parent, branch, host, lifetime_ms, copies) VALUES (?, ?, ?, ?, ?, ?)",
                    params![
                        preview.app,
                        preview.parent,
                        preview.branch,
                        preview.host,
                        preview.lifetime_ms,
                        preview.copies
                    ],
                )?;
            }
            Ok(true)
        })
    }

    pub fn forget_preview(&self, app: &str) -> Result<()> {
        self.write_at_any_cost(|t| {
            t.execute("DELETE FROM previews WHERE app = ?", [app])?;
            Ok(())
        })
    }

    /// Previews are so much older.
    pub fn age_previews(&self, elapsed_ms: u64) -> Result<()> {
        self.write(|t| {
            t.execute("UPDATE previews SET age_ms = age_ms + ?", [elapsed_ms])?;
            Ok(())
        })
    }
}

/// Repositories elsewhere.
impl Store {
    /// Keeps where an app is pulled from, with both secrets encrypted; in place of what was there.
    pub fn set_source(&self, source: &Source, secret: &str, token: Option<&str>) -> Result<()> {
        let seal = |key: &str, value: &str| {
            let sealed = self.cipher.seal(&source.app, key, value);
            sealed.map_err(StoreError::Cipher)
        };
        let secret = seal(SECRET, secret)?;
        let token = token.map(|token| seal(READ_TOKEN, token)).transpose()?;
        self.write(|t| {
            t.execute(
                "INSERT OR REPLACE INTO sources (app, url, vendor, user, secret, token, changed_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
                params![
                    source.app,
                    source.url,
                    source.vendor,
                    source.user,
                    secret,
                    token,
                    now_ms()
                ],
            )?;
            Ok(())
        })
    }

    pub fn source(&self, app: &str) -> Result<Option<Source>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM sources WHERE app = ?")?
                .query_row([app], source_from)
                .optional()
        })
    }

    /// The secret that webhooks are signed with, and the token for reading.
    pub fn source_secrets(&self, app: &str) -> Result<Option<(String, Option<String>)>> {
        let found: Option<(Vec<u8>, Option<Vec<u8>>)> = self.read(|c| {
            c.prepare_cached("SELECT secret, token FROM sources WHERE app = ?")?
                .query_row([app], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
        })?;
        let Some((secret, token)) = found else {
            return Ok(None);
        };
        let open = |key: &str, sealed: &[u8]| {
            let value = self.cipher.open_value(app, key, sealed);
            value.map_err(StoreError::Cipher)
        };
        let token = token.map(|token| open(READ_TOKEN, &token)).transpose()?;
        Ok(Some((open(SECRET, &secret)?, token)))
    }

    /// Whether there was one.
    pub fn drop_source(&self, app: &str) -> Result<bool> {
        self.write(|t| {
            t.execute("DELETE FROM hooks_waiting WHERE app = ?", [app])?;
            Ok(t.execute("DELETE FROM sources WHERE app = ?", [app])? > 0)
        })
    }

    /// How the last webhook came out: `pending`, `done`, `failed` or `ignored`.
    pub fn note_source(&self, app: &str, state: &str, detail: &str) -> Result<()> {
        self.write(|t| {
            t.execute(
                "UPDATE sources SET state = ?2, detail = ?3, changed_ms = ?4 WHERE app = ?1",
                params![app, state, detail, now_ms()],
            )?;
            Ok(())
        })
    }

    /// Remembers a delivery and keeps it until it is dealt with, unless `most` other branches of the app's wait.
    pub fn accept_hook(&self, hook: &Waiting, most: usize) -> Result<Accepted> {
        self.write(|t| {
            let others: u64 = t.query_row(
                "SELECT count(*) FROM hooks_waiting WHERE app = ? AND branch <> ?",
                params![hook.app, hook.branch],
                |row| row.get(0),
            )?;
            let known = t
                .query_row(
                    "SELECT 1 FROM deliveries WHERE app = ? AND delivery = ?",
                    params![hook.app, hook.delivery],
                    |_| Ok(()),
                )
                .optional()?;
            if known.is_some() {
                return Ok(Accepted::Known);
            }
            if others >= most as u64 {
                return Ok(Accepted::Full);
            }
            t.execute(
                "INSERT INTO deliveries (app, delivery) VALUES (?, ?)",
                params![hook.app, hook.delivery],
            )?;
            t.execute(
                "DELETE FROM deliveries WHERE app = ?1 AND id NOT IN (SELECT id FROM deliveries WHERE app = ?1 ORDER BY id DESC LIMIT ?2)",
                params![hook.app, MAX_DELIVERIES],
            )?;
            t.execute(
                "INSERT OR REPLACE INTO hooks_waiting (app, branch, gone, delivery) VALUES (?, ?, ?, ?)",
                params![hook.app, hook.branch, hook.gone, hook.delivery],
            )?;
            t.execute(
                "UPDATE sources SET state = 'pending', detail = ?2, changed_ms = ?3 WHERE app = ?1",
                params![hook.app, format!("{} was pushed", hook.branch), now_ms()],
            )?;
            Ok(Accepted::New)
        })
    }

    /// A webhook was dealt with; one that failed may be sent again.
    pub fn handled_hook(&self, hook: &Waiting, well: bool) -> Result<()> {
        self.write(|t| {
            t.execute(
                "DELETE FROM hooks_waiting WHERE app = ? AND branch = ? AND delivery = ?",
                params![hook.app, hook.branch, hook.delivery],
            )?;
            if !well {
                t.execute(
                    "DELETE FROM deliveries WHERE app = ? AND delivery = ?",
                    params![hook.app, hook.delivery],
                )?;
            }
            Ok(())
        })
    }

    /// Webhooks that a control plane before us had accepted, too.
    pub fn hooks_waiting(&self) -> Result<Vec<Waiting>> {
        self.read(|c| {
            c.prepare_cached("SELECT * FROM hooks_waiting ORDER BY app, branch")?
                .query_map([], waiting_from)?
                .collect()
        })
    }
}

/// A removed app is not brought back by those who could push to it.
pub(super) fn close(t: &Transaction<'_>, app: &str) -> Result<()> {
    t.execute("DELETE FROM tokens WHERE app = ?", [app])?;
    t.execute("DELETE FROM sources WHERE app = ?", [app])?;
    t.execute("DELETE FROM hooks_waiting WHERE app = ?", [app])?;
    Ok(())
}

/// An app is forgotten: if nothing is left of its row, nothing is of these either.
pub(super) fn forget(t: &Transaction<'_>, app: &str) -> Result<()> {
    for table in [
        "tokens",
        "previews",
        "sources",
        "deliveries",
        "hooks_waiting",
    ] {
        t.execute(
            &format!("DELETE FROM {table} WHERE app = ?1 AND NOT EXISTS (SELECT 1 FROM apps WHERE name = ?1)"),
            [app],
        )?;
    }
    Ok(())
}

fn waiting_from(row: &Row<'_>) -> rusqlite::Result<Waiting> {
    Ok(Waiting {
        app: row.get("app")?,
        branch: row.get("branch")?,
        gone: row.get("gone")?,
        delivery: row.get("delivery")?,
    })
}

fn token_from(row: &Row<'_>) -> rusqlite::Result<Token> {
    let scope: String = row.get("scope")?;
    Ok(Token {
        id: row.get("id")?,
        app: row.get("app")?,
        name: row.get("name")?,
        // What a newer program wrote is not more than this one knows.
        scope: Scope::parse(&scope).unwrap_or(Scope::Pull),
        created_ms: row.get("created_ms")?,
    })
}

fn preview_from(row: &Row<'_>) -> rusqlite::Result<Preview> {
    Ok(Preview {
        app: row.get("app")?,
        parent: row.get("parent")?,
        branch: row.get("branch")?,
        host: row.get("host")?,
        lifetime_ms: row.get("lifetime_ms")?,
        age_ms: row.get("age_ms")?,
        copies: row.get("copies")?,
    })
}

fn source_from(row: &Row<'_>) -> rusqlite::Result<Source> {
    Ok(Source {
        app: row.get("app")?,
        url: row.get("url")?,
        vendor: row.get("vendor")?,
        user: row.get("user")?,
        state: row.get("state")?,
        detail: row.get("detail")?,
        changed_ms: row.get("changed_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::Cipher;
    use crate::store::Goal;

    fn store(dir: &std::path::Path) -> Store {
        let cipher = Cipher::open(&dir.join("key")).expect("key");
        Store::open(&dir.join("state.db"), cipher).expect("store")
    }

    #[test]
    fn tokens_end_with_their_app() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = store(dir.path());
        let id = store
            .add_token("a", "ci", Scope::Push, "h1")
            .expect("write")
            .expect("room");
        let found = store.token("h1").expect("read").expect("there");
        assert_eq!((found.app.as_str(), found.scope), ("a", Scope::Push));
        assert!(!store.drop_token("b", id).expect("write"));
        for n in 0..MAX_TOKENS {
            let _ = store.add_token("a", "more", Scope::Pull, &format!("x{n}"));
        }
        assert_eq!(store.tokens("a").expect("read").len(), MAX_TOKENS);
        store
            .deploy("a", "d", "name='a'\ncommand='x'", "rolling")
            .expect("deploy");
        store.set_goal("a", Goal::Removed, false).expect("write");
        assert!(store.token("h1").expect("read").is_none());
    }

    #[test]
    fn previews_are_bounded_and_grow_old() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = store(dir.path());
        let preview = |branch: &str| Preview {
            app: format!("a--{branch}"),
            parent: "a".into(),
            branch: branch.into(),
            host: format!("{branch}.a.test"),
            lifetime_ms: 1000,
            age_ms: 0,
            copies: false,
        };
        assert!(store.keep_preview(&preview("x"), 1).expect("write"));
        assert!(!store.keep_preview(&preview("y"), 1).expect("write"));
        store.age_previews(700).expect("write");
        let age = || store.preview("a--x").expect("read").expect("there").age_ms;
        assert_eq!(age(), 700);
        assert!(store.keep_preview(&preview("x"), 1).expect("write"));
        assert_eq!(age(), 0);
        assert_eq!(store.previews(Some("b")).expect("read"), []);
    }

    #[test]
    fn a_delivery_counts_once_and_secrets_are_encrypted() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = store(dir.path());
        let hook = |app: &str, branch: &str, delivery: &str| Waiting {
            app: app.into(),
            branch: branch.into(),
            gone: false,
            delivery: delivery.into(),
        };
        let accept = |hook: &Waiting| store.accept_hook(hook, 1).expect("write");
        assert_eq!(accept(&hook("a", "x", "1")), Accepted::New);
        assert_eq!(accept(&hook("a", "x", "1")), Accepted::Known);
        assert_eq!(accept(&hook("b", "x", "1")), Accepted::New);
        // What was not taken may come again.
        assert_eq!(accept(&hook("a", "y", "2")), Accepted::Full);
        assert_eq!(accept(&hook("a", "x", "3")), Accepted::New);
        let waiting = |app: &str| {
            let all = store.hooks_waiting().expect("read").into_iter();
            let mine = all.filter(|one| one.app == app);
            mine.map(|one| one.delivery).collect::<Vec<_>>()
        };
        assert_eq!(
            (waiting("a"), waiting("b")),
            (vec!["3".into()], vec!["1".into()])
        );
        // The one before it is over; it is still to be done.
        store
            .handled_hook(&hook("a", "x", "1"), true)
            .expect("write");
        assert_eq!(waiting("a"), ["3"]);
        store
            .handled_hook(&hook("a", "x", "3"), false)
            .expect("write");
        assert!(waiting("a").is_empty());
        assert_eq!(accept(&hook("a", "x", "1")), Accepted::Known);
        assert_eq!(accept(&hook("a", "x", "3")), Accepted::New, "it failed");
        assert_eq!(accept(&hook("a", "y", "2")), Accepted::Full);
        let source = Source {
            app: "a".into(),
            url: "https://git.test/a.git".into(),
            vendor: "github".into(),
            user: "git".into(),
            state: String::new(),
            detail: String::new(),
            changed_ms: 0,
        };
        store
            .set_source(&source, "hush-hush", Some("read-me"))
            .expect("write");
        let secrets = store.source_secrets("a").expect("read").expect("there");
        assert_eq!(secrets, ("hush-hush".into(), Some("read-me".into())));
        drop(store);
        for file in ["state.db", "state.db-wal"] {
            let raw = std::fs::read(dir.path().join(file)).unwrap_or_default();
            for secret in [&b"hush-hush"[..], b"read-me"] {
                assert!(!raw.windows(secret.len()).any(|w| w == secret));
            }
        }
    }
}
