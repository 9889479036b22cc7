//! Servers by the names that a person gave them: `$XDG_CONFIG_HOME/hutong/contexts.toml`, else
//! `~/.config/hutong/contexts.toml` (XDG Base Directory Specification 0.8). It may hold tokens, so it is its owner's
//! alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hutong_api::client::Client;
use hutong_runtime::paths::atomic_write;
use serde::{Deserialize, Serialize};

use super::address::Remote;
use super::https::{self, Https};
use super::ssh::{Ssh, is_plain};
use crate::error::CliError;

/// The server of this machine; no context may have its name.
pub const LOCAL: &str = "local";

/// What the file holds.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// None: this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// One server.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    pub url: String,
    /// Of ssh: the program on the other machine, where it is not simply `hutong`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Of ssh: its API's address there, where it is not the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// Of ssh: whether `sudo` is needed there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sudo: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Of https: the only authority that counts, as PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

impl Context {
    /// A client for it; `token` goes before its own.
    ///
    /// # Errors
    /// What stands in the file cannot be used.
    pub fn client(&self, token: Option<String>) -> Result<Client, CliError> {
        let token = token.or_else(|| self.token.clone());
        match self.url.parse().map_err(CliError::bad_file)? {
            Remote::Ssh { user, host, port } => {
                let program = self.program.clone().unwrap_or_else(|| "hutong".into());
                for word in [Some(&program), self.api.as_ref()].into_iter().flatten() {
                    if !is_plain(word) {
                        return Err(CliError::usage(format!(
                            "`{}` would mean something else to a shell: letters, digits and /._-:+@ are possible",
                            word.escape_default()
                        )));
                    }
                }
                let (api, sudo) = (self.api.clone(), self.sudo);
                let ssh = Ssh {
                    user,
                    host,
                    port,
                    program,
                    api,
                    sudo,
                };
                Ok(Client::far(Arc::new(ssh), token))
            }
            Remote::Https { host, port } => {
                if let Some(pem) = &self.ca {
                    https::own_roots(pem).map_err(CliError::bad_file)?;
                }
                let ca = self.ca.clone();
                Ok(Client::far(Arc::new(Https { host, port, ca }), token))
            }
        }
    }
}

impl Contexts {
    /// What is there; nothing, if there is no file, or no folder for one.
    ///
    /// # Errors
    /// The file cannot be read, is not understood, or others may read it.
    pub fn load() -> Result<Self, CliError> {
        match path() {
            Some(path) => Self::load_from(&path),
            None => Ok(Self::default()),
        }
    }

    fn load_from(path: &Path) -> Result<Self, CliError> {
        let wrong =
            |why: &dyn std::fmt::Display| CliError::bad_file(format!("{}: {why}", path.display()));
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(wrong(&error)),
        };
        let mode = fs::metadata(path).map_err(|error| wrong(&error))?;
        if mode.permissions().mode() & 0o077 != 0 {
            return Err(wrong(&"others may read it, and it may hold tokens")
                .hint(format!("chmod 600 {}", path.display())));
        }
        // Its words are not quoted: one of them may be a token.
        toml::from_str(&text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
            wrong(&format!("line {line} is not understood"))
                .hint("`hutong login` writes it; remove what is wrong, or the file")
        })
    }

    /// Reads, changes and writes the file, one process after the other.
    ///
    /// # Errors
    /// As [`Contexts::load`], what `change` says, and what writing fails with.
    pub fn update(
        change: impl FnOnce(&mut Contexts) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let path = path().ok_or_else(|| {
            CliError::failed(
                "there is no folder for contexts: neither HOME nor XDG_CONFIG_HOME is set",
            )
        })?;
        Self::update_at(&path, change)
    }

    fn update_at(
        path: &Path,
        change: impl FnOnce(&mut Contexts) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let failed = |error: &dyn std::fmt::Display| {
            CliError::failed(format!("{} cannot be written: {error}", path.display()))
        };
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder);
        made.map_err(|error| failed(&error))?;
        // The folder is locked, because the file is another one after each change.
        let lock = File::open(folder).map_err(|error| failed(&error))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| failed(&error))?;
        let mut contexts = Self::load_from(path)?;
        change(&mut contexts)?;
        let text = toml::to_string_pretty(&contexts).map_err(|error| failed(&error))?;
        atomic_write(path, text.as_bytes(), 0o600).map_err(|error| failed(&error))
    }

    /// The context of this name; none for this machine.
    ///
    /// # Errors
    /// There is no such context.
    pub fn named(&self, name: &str) -> Result<Option<&Context>, CliError> {
        if name == LOCAL {
            return Ok(None);
        }
        match self.contexts.get(name) {
            Some(context) => Ok(Some(context)),
            None => Err(CliError::usage(format!(
                "there is no context `{}`",
                name.escape_default()
            ))
            .hint("`hutong context list` names them, `hutong login` makes one")),
        }
    }
}

/// Whether a context may be called so.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), CliError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    let sound =
        (1..=100).contains(&name.len()) && !name.starts_with(['-', '.']) && name.chars().all(plain);
    if name == LOCAL {
        return Err(CliError::usage("`local` is this machine")
            .hint("another name: hutong login URL --name NAME"));
    }
    match sound {
        true => Ok(()),
        false => Err(CliError::usage(format!(
            "`{}` is no name for a context: letters, digits and ._-: are possible",
            name.escape_default()
        ))),
    }
}

/// `None` without a home.
fn path() -> Option<PathBuf> {
    // A relative path there is to be ignored, says the specification.
    let set = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = || {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        home.map(|home| PathBuf::from(home).join(".config"))
    };
    let folder = set.filter(|folder| folder.is_absolute()).or_else(home);
    Some(folder?.join("hutong").join("contexts.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Context {
        Context {
            url: "https://example.com".into(),
            token: Some("hush".into()),
            ca: Some("-----BEGIN\nx\n".into()),
            ..Context::default()
        }
    }

    #[test]
    fn what_is_written_is_read_and_nobody_elses() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("hutong/contexts.toml");
        assert!(
            Contexts::load_from(&path)
                .expect("none")
                .contexts
                .is_empty()
        );
        Contexts::update_at(&path, |all| {
            all.contexts.insert("a".into(), some());
            all.current = Some("a".into());
            Ok(())
        })
        .expect("written");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("a folder")), 0o700);
        let all = Contexts::load_from(&path).expect("read");
        assert_eq!(all.current.as_deref(), Some("a"));
        assert!(all.named("a").expect("there") == Some(&some()));
        assert!(all.named(LOCAL).expect("there").is_none());
        assert!(all.named("b").is_err());
        let refused = Contexts::update_at(&path, |_| Err(CliError::usage("no")));
        assert!(refused.is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        let error = Contexts::load_from(&path).err().expect("refused");
        assert!(
            error.cause().contains("others may read"),
            "{}",
            error.cause()
        );
    }

    #[test]
    fn a_mistake_is_said_without_its_words() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("contexts.toml");
        atomic_write(&path, b"[contexts.a]\ntoken = hush", 0o600).expect("write");
        let error = Contexts::load_from(&path).err().expect("refused");
        assert!(error.cause().contains("line 2"), "{}", error.cause());
        assert!(!error.cause().contains("hush"));
    }

    #[test]
    fn names_are_plain() {
        for good in ["a", "example.com", "10.0.0.1", "::1", "Prod_2"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "local", "-x", ".x", "a b", "a/b", "a\n"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_for_another_shell_are_checked() {
        let with = |program: &str| Context {
            url: "ssh://host".into(),
            program: Some(program.into()),
            ..Context::default()
        };
        assert!(with("/opt/hutong").client(None).is_ok());
        for bad in ["a b", "$(x)", "-x", "a;b"] {
            assert!(with(bad).client(None).is_err(), "{bad}");
        }
    }
}
