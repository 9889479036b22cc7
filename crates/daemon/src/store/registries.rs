//! Who we are to other registries: passwords are sealed as apps' variables are, and leave for their registry only.

use hutong_runtime::processes::now_ms;
use rusqlite::{OptionalExtension, params};

use super::{Result, Store, StoreError};

/// In the place of an app's name, which none can be, so that a sealed password opens nowhere else.
const PLACE: &str = "registries/";

/// A registry that we have a name and a password for.
#[derive(Clone, Debug)]
pub struct Login {
    pub host: String,
    pub user: String,
    pub updated_ms: u64,
}

impl Store {
    pub fn registry_logins(&self) -> Result<Vec<Login>> {
        self.read(|c| {
            c.prepare_cached("SELECT host, user, updated_ms FROM registries ORDER BY host")?
                .query_map([], |row| {
                    Ok(Login {
                        host: row.get(0)?,
                        user: row.get(1)?,
                        updated_ms: row.get(2)?,
                    })
                })?
                .collect()
        })
    }

    /// Name and password for a registry, to be shown to it and to nobody else.
    pub fn registry_login(&self, host: &str) -> Result<Option<(String, String)>> {
        let found: Option<(String, Vec<u8>)> = self.read(|c| {
            c.prepare_cached("SELECT user, sealed FROM registries WHERE host = ?")?
                .query_row([host], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
        })?;
        let Some((user, sealed)) = found else {
            return Ok(None);
        };
        let password = self.cipher.open_value(PLACE, host, &sealed);
        Ok(Some((user, password.map_err(StoreError::Cipher)?)))
    }

    pub fn set_registry_login(&self, host: &str, user: &str, password: &str) -> Result<()> {
        let sealed = self.cipher.seal(PLACE, host, password);
        let sealed = sealed.map_err(StoreError::Cipher)?;
        self.write(|t| {
            t.execute(
                "INSERT INTO registries (host, user, sealed, updated_ms) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (host) DO UPDATE SET user = ?2, sealed = ?3, updated_ms = ?4",
                params![host, user, sealed, now_ms()],
            )?;
            Ok(())
        })
    }

    /// Whether there was one.
    pub fn forget_registry_login(&self, host: &str) -> Result<bool> {
        self.write_at_any_cost(|t| {
            Ok(t.execute("DELETE FROM registries WHERE host = ?", [host])? > 0)
        })
    }
}
