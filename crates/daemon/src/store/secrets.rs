//! Secrets of builds: encrypted like variables, and given to nobody but a build.

use std::collections::BTreeMap;

use hutong_runtime::processes::now_ms;
use rusqlite::params;

use super::{Result, Store, StoreError};

/// What a value is bound to beside its app; no variable can be called so.
fn place(name: &str) -> String {
    format!("build:{name}")
}

impl Store {
    pub fn change_build_secrets(
        &self,
        app: &str,
        set: &BTreeMap<String, String>,
        unset: &[String],
    ) -> Result<()> {
        let mut sealed = Vec::new();
        for (name, value) in set {
            let value = self.cipher.seal(app, &place(name), value);
            sealed.push((name, value.map_err(StoreError::Cipher)?));
        }
        self.write(|t| {
            for (name, value) in &sealed {
                t.execute(
                    "INSERT OR REPLACE INTO build_secrets (app, name, sealed, updated_ms) VALUES (?, ?, ?, ?)",
                    params![app, name, value, now_ms()],
                )?;
            }
            for name in unset {
                t.execute(
                    "DELETE FROM build_secrets WHERE app = ? AND name = ?",
                    params![app, name],
                )?;
            }
            Ok(())
        })
    }

    /// Names and times; no values.
    pub fn build_secret_names(&self, app: &str) -> Result<Vec<(String, u64)>> {
        self.read(|c| {
            c.prepare_cached(
                "SELECT name, updated_ms FROM build_secrets WHERE app = ? ORDER BY name",
            )?
            .query_map([app], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
        })
    }

    /// The values, decrypted: for the app's own builds and nothing else.
    pub fn build_secrets(&self, app: &str) -> Result<Vec<(String, String)>> {
        let sealed: Vec<(String, Vec<u8>)> = self.read(|c| {
            c.prepare_cached("SELECT name, sealed FROM build_secrets WHERE app = ? ORDER BY name")?
                .query_map([app], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })?;
        sealed
            .into_iter()
            .map(|(name, value)| {
                let value = self.cipher.open_value(app, &place(&name), &value);
                Ok((name, value.map_err(StoreError::Cipher)?))
            })
            .collect()
    }
}
