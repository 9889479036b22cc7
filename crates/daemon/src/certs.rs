//! Certificates, as control sees them: which the gateway holds, which names need one ([`issuer`]), what
//! owners bring. Keys pass through here on their way to the gateway; nothing writes them down, and only one that the gateway
//! did not take yet is held.

pub mod issuer;
mod renewal;
mod solver;

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hutong_acme::config::Config;
use hutong_acme::schedule::Window;
use hutong_ipc::gateway::{Challenge, Held, Nudge, Pem};
use sha2::Digest;
use tokio::sync::{Notify, mpsc, watch};

use crate::lock;

/// Messages on their way to the gateway.
const MAX_QUEUED: usize = 64;
/// The gateway answers at once, or is being restarted.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Certs {
    /// HTTPS is served at all.
    pub enabled: bool,
    /// The certificate authority, where there is one besides our own.
    pub acme: Option<Config>,
    queue: mpsc::Sender<Nudge>,
    /// Taken by the line to the gateway.
    pub queued: tokio::sync::Mutex<mpsc::Receiver<Nudge>>,
    state: Mutex<State>,
    /// Counts what the gateway said.
    heard: watch::Sender<u64>,
    challenged: watch::Sender<u64>,
    /// Shown to certificate authorities now, by a name of the solver's.
    challenges: Mutex<HashMap<String, Challenge>>,
    /// The issuer looks again.
    pub wake: Notify,
    /// Hosts that are to be tried now, due or not.
    pub forced: Mutex<BTreeSet<String>>,
    /// When the authority would like to see its certificates renewed, by fingerprint.
    pub wishes: Mutex<HashMap<String, Wish>>,
    /// The authority is not asked for wishes before, in seconds since 1970.
    pub quiet_until_s: AtomicU64,
    /// Signed, and not kept by the gateway yet, by host.
    pub unkept: Mutex<HashMap<String, Pem>>,
}

/// What an authority said about one certificate (RFC 9773).
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// None: it has no wish.
    pub window: Option<Window>,
    /// When to ask again, in seconds since 1970.
    pub ask_s: u64,
}

#[derive(Default)]
struct State {
    /// None until the gateway has said so.
    held: Option<Vec<Held>>,
    refused: HashMap<String, NotKept>,
}

/// Why the gateway does not serve a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    #[error("the gateway does not answer")]
    Undelivered,
    /// There is nothing wrong with it; it may be kept later.
    #[error("the gateway cannot write it down: {0}")]
    Unwritten(String),
    #[error("{0}")]
    Refused(String),
}

/// Who a certificate came from; part of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Own,
    Local,
    Acme,
}

impl Source {
    pub fn word(self) -> &'static str {
        match self {
            Source::Own => "own",
            Source::Local => "local",
            Source::Acme => "acme",
        }
    }

    /// The name that the gateway keeps it by.
    pub fn name(self, of: &str) -> String {
        // No host has a label of a lone hyphen; it becomes the name of a file.
        match of.len() {
            0..=90 => format!("{}.{}", self.word(), of.replacen('*', "-", 1)),
            _ => {
                let digest = hutong_core::tree::hex(&sha2::Sha256::digest(of));
                format!("{}.{digest}", self.word())
            }
        }
    }

    pub fn of(name: &str) -> Self {
        match name.split_once('.') {
            Some(("local", _)) => Source::Local,
            Some(("acme", _)) => Source::Acme,
            _ => Source::Own,
        }
    }
}

impl Certs {
    pub fn new(enabled: bool, acme: Option<Config>) -> Self {
        let (queue, queued) = mpsc::channel(MAX_QUEUED);
        Certs {
            enabled,
            acme,
            queue,
            queued: tokio::sync::Mutex::new(queued),
            state: Mutex::default(),
            heard: watch::channel(0).0,
            challenged: watch::channel(0).0,
            challenges: Mutex::default(),
            wake: Notify::new(),
            forced: Mutex::default(),
            wishes: Mutex::default(),
            quiet_until_s: AtomicU64::new(0),
            unkept: Mutex::default(),
        }
    }

    /// What the gateway holds; none before it has said so.
    pub fn held(&self) -> Option<Vec<Held>> {
        lock(&self.state).held.clone()
    }

    pub fn note_held(&self, held: Vec<Held>) {
        let news = Some(held);
        let before = std::mem::replace(&mut lock(&self.state).held, news.clone());
        self.heard.send_modify(|count| *count += 1);
        if before != news {
            self.wake.notify_one();
        }
    }

    pub fn note_refused(&self, name: String, why: NotKept) {
        lock(&self.state).refused.insert(name, why);
        self.heard.send_modify(|count| *count += 1);
    }

    pub fn note_challenged(&self) {
        self.challenged.send_modify(|count| *count += 1);
    }

    /// Has the gateway keep and serve a certificate, and waits until it does.
    pub async fn keep(&self, name: &str, pem: Pem) -> Result<Held, NotKept> {
        lock(&self.state).refused.remove(name);
        let fingerprint = fingerprint(&pem.chain).map_err(NotKept::Refused)?;
        let mut heard = self.heard.subscribe();
        heard.mark_unchanged();
        let nudge = Nudge::Certificate {
            name: name.to_owned(),
            pem: Box::new(pem),
        };
        self.send(nudge).map_err(|_| NotKept::Undelivered)?;
        let wait = async {
            loop {
                let _ = heard.changed().await;
                if let Some(why) = lock(&self.state).refused.remove(name) {
                    return Err(why);
                }
                let found = self.find(name);
                if let Some(found) = found.filter(|held| held.fingerprint == fingerprint) {
                    return Ok(found);
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .unwrap_or(Err(NotKept::Undelivered))
    }

    /// Has the gateway throw a certificate away.
    pub fn forget(&self, name: &str) -> Result<(), String> {
        self.send(Nudge::Forget {
            name: name.to_owned(),
        })
    }

    pub fn find(&self, name: &str) -> Option<Held> {
        let state = lock(&self.state);
        let held = state.held.as_ref()?;
        held.iter().find(|held| held.name == name).cloned()
    }

    /// Something for the gateway to hear, in the order of sending.
    pub fn send(&self, nudge: Nudge) -> Result<(), String> {
        self.queue
            .try_send(nudge)
            .map_err(|_| "the gateway does not answer".to_owned())
    }
}

/// SHA-256 of a chain's own certificate, in hex.
fn fingerprint(chain: &str) -> Result<String, String> {
    let leaf = hutong_acme::chain::leaf(chain).map_err(|error| error.to_string())?;
    Ok(hutong_core::tree::hex(&sha2::Sha256::digest(&leaf)))
}

/// Whether a certificate for `pattern` is good for `host` (RFC 9525 §6.3).
pub fn covers(pattern: &str, host: &str) -> bool {
    pattern == host
        || pattern.strip_prefix("*.").is_some_and(|suffix| {
            host.split_once('.')
                .is_some_and(|(label, rest)| rest == suffix && label != "*")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_one_label() {
        assert!(covers("a.test", "a.test") && covers("*.a.test", "b.a.test"));
        assert!(covers("*.a.test", "*.a.test"));
        assert!(!covers("*.a.test", "a.test") && !covers("*.a.test", "c.b.a.test"));
        assert!(!covers("*.test", "*.a.test"));
        assert_eq!(Source::Acme.name("*.a.test"), "acme.-.a.test");
        assert_eq!(Source::of("acme.-.a.test"), Source::Acme);
    }
}
