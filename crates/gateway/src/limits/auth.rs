//! Names and passwords before an app (RFC 7617). Passwords are kept as bcrypt: to check one takes a good part of
//! a second by design, so it is done aside, one at a time, each address may try only so often, and what was found
//! right is remembered.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use hutong_http::fields::Name;
use hutong_http::request::RequestHead;
use hutong_ipc::gateway as wire;
use tokio::sync::Semaphore;

use super::buckets::Rate;
use super::{Limits, refuse_if};
use crate::pages::Page;
use crate::visitor::Peer;

/// Tries of one address that are not known to be right.
const TRIES: Rate = Rate {
    interval_ns: 6_000_000_000,
    burst: 10,
};
/// Checks that wait for the one that is under way, and for how long.
const MAX_WAITING: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_KNOWN: usize = 4096;
/// Longer ones bcrypt cuts off.
const MAX_PASSWORD: usize = 72;

/// An app's users.
pub struct Auth {
    realm: String,
    users: Vec<wire::User>,
    /// Of the app, for counting tries.
    rule: u64,
}

/// What all apps share.
pub struct Checks {
    place: Semaphore,
    waiting: Semaphore,
    known: Known,
}

impl Default for Checks {
    fn default() -> Self {
        Checks {
            place: Semaphore::new(1),
            waiting: Semaphore::new(MAX_WAITING),
            known: Known::default(),
        }
    }
}

/// Digests of names with passwords that were right, under keys that nobody knows.
#[derive(Default)]
struct Known {
    keys: [RandomState; 2],
    right: Mutex<HashSet<[u64; 2]>>,
}

impl Known {
    fn digest(&self, kept: &str, given: &Given) -> [u64; 2] {
        let all = (kept, &given.name, &given.password);
        [self.keys[0].hash_one(all), self.keys[1].hash_one(all)]
    }

    fn has(&self, digest: [u64; 2]) -> bool {
        let right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        right.contains(&digest)
    }

    fn add(&self, digest: [u64; 2]) {
        let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        if right.len() >= MAX_KNOWN {
            right.clear();
        }
        right.insert(digest);
    }
}

struct Given {
    name: String,
    password: Vec<u8>,
}

impl Auth {
    pub fn new(app: &str, wire: &wire::Auth) -> Self {
        Auth {
            realm: wire.realm.clone(),
            users: wire.users.clone(),
            rule: super::number((app, ""), "auth"),
        }
    }

    /// The visitor's name, or a page that asks for it.
    pub async fn check(
        &self,
        limits: &Limits,
        peer: &Peer,
        head: &RequestHead,
    ) -> Result<String, Page> {
        let given = given(head).ok_or_else(|| self.ask())?;
        let user = self.users.iter().find(|user| user.name == given.name);
        // Whether there is such a user is not told by the time it takes.
        let kept = user.or(self.users.first()).ok_or_else(|| self.ask())?;
        let checks = &limits.checks;
        let digest = checks.known.digest(&kept.hash.0, &given);
        if user.is_some() && checks.known.has(digest) {
            return Ok(given.name);
        }
        self.let_try(limits, peer.ip)?;
        let (name, password) = (given.name, given.password);
        let right = checks.verify(password, kept.hash.0.clone()).await?;
        if !right || user.is_none() {
            return Err(self.ask());
        }
        checks.known.add(digest);
        Ok(name)
    }

    fn let_try(&self, limits: &Limits, ip: IpAddr) -> Result<(), Page> {
        let verdict = limits.take(self.rule, Some(ip), &TRIES);
        refuse_if(&verdict, "with a password from your address", &TRIES)
    }

    fn ask(&self) -> Page {
        let mut page = Page::new(401, "A name and a password are needed here.");
        let realm = &self.realm;
        page.fields.push((
            "www-authenticate",
            format!("Basic realm=\"{realm}\", charset=\"UTF-8\""),
        ));
        page
    }
}

impl Checks {
    async fn verify(&self, password: Vec<u8>, hash: String) -> Result<bool, Page> {
        let busy = || Page::unavailable("Too many passwords are being checked.", 2);
        let _waiting = self.waiting.try_acquire().map_err(|_| busy())?;
        let place = tokio::time::timeout(PATIENCE, self.place.acquire()).await;
        let _place = place.ok().and_then(Result::ok).ok_or_else(busy)?;
        // Dropped half-way, it goes on, and the next one begins beside it: the tries of each address are counted.
        let check = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash));
        Ok(matches!(check.await, Ok(Ok(true))))
    }
}

fn given(head: &RequestHead) -> Option<Given> {
    let field = head.fields.get(Name::Authorization)?;
    let (scheme, rest) = field.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(rest.trim_ascii()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let name = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    let password = decoded[colon + 1..].to_vec();
    (password.len() <= MAX_PASSWORD).then_some(Given { name, password })
}
