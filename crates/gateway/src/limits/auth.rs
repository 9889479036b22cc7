//! Names and passwords before an app (RFC 7617). Passwords are kept as bcrypt: to check one takes a good part of
//! a second by design. So it is done aside, one at a time and after everything else; the same word is checked once
//! however many requests bring it; each address may be wrong only so often; and what was right is remembered.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use hutong_http::fields::Name;
use hutong_http::request::RequestHead;
use hutong_ipc::gateway as wire;
use tokio::sync::{Semaphore, watch};

use super::buckets::Rate;
use super::counts::Counts;
use super::{Limits, refuse_if};
use crate::pages::Page;
use crate::visitor::Peer;

/// How often an address may be wrong.
const WRONG: Rate = Rate {
    interval_ns: 6_000_000_000,
    burst: 10,
};
/// Words that wait to be checked, of all and of one address, and for how long.
const MAX_WAITING: u32 = 64;
const MAX_WAITING_PER_IP: u32 = 16;
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_KNOWN: usize = 4096;
/// Longer ones bcrypt cuts off.
const MAX_PASSWORD: usize = 72;
/// How much a check steps back behind what serves visitors.
const NICE: i32 = 10;

/// An app's users.
pub struct Auth {
    realm: String,
    users: Vec<wire::User>,
    /// Of the app, for counting what was wrong.
    rule: u64,
}

/// What all apps share.
pub struct Checks {
    /// Which is under way; the others wait in the order of coming.
    place: Arc<Semaphore>,
    waiting: Arc<Counts>,
    known: Known,
}

impl Default for Checks {
    fn default() -> Self {
        Checks {
            place: Arc::new(Semaphore::new(1)),
            waiting: Arc::default(),
            known: Known::default(),
        }
    }
}

/// A name, its password and what is kept of it, under keys that nobody knows.
type Digest = [u64; 2];

/// What came of a check; none as long as it is under way.
type Verdict = Option<bool>;

#[derive(Default)]
struct Known {
    keys: [RandomState; 2],
    right: Mutex<HashSet<Digest>>,
    /// Those that are being checked: whoever brings the same waits for that.
    checked: Mutex<HashMap<Digest, watch::Receiver<Verdict>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    /// Whether there is such a user is part of it: another app may keep the same for another name.
    fn digest(&self, kept: &str, is_user: bool, given: &Given) -> Digest {
        let all = (kept, is_user, &given.name, &given.password);
        [self.keys[0].hash_one(all), self.keys[1].hash_one(all)]
    }

    fn has(&self, digest: Digest) -> bool {
        lock(&self.right).contains(&digest)
    }

    fn add(&self, digest: Digest) {
        let mut right = lock(&self.right);
        if right.len() >= MAX_KNOWN {
            right.clear();
        }
        right.insert(digest);
    }
}

/// One check. It goes on to its end when the visitor leaves who brought the word: others may wait for it, and what was
/// wrong counts.
struct Claim {
    checks: Arc<Checks>,
    digest: Digest,
    verdict: watch::Sender<Verdict>,
}

impl Claim {
    /// Leave to check this word, or the check of it that is under way.
    fn new(checks: &Arc<Checks>, digest: Digest) -> Result<Self, watch::Receiver<Verdict>> {
        let mut checked = lock(&checks.known.checked);
        if let Some(other) = checked.get(&digest) {
            return Err(other.clone());
        }
        let (verdict, other) = watch::channel(None);
        checked.insert(digest, other);
        Ok(Claim {
            checks: checks.clone(),
            digest,
            verdict,
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // One that was never begun leaves the others to begin it.
        lock(&self.checks.known.checked).remove(&self.digest);
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

    /// Whether a request brings a word for us, which is none of the app's business.
    pub fn is_for_us(&self, head: &RequestHead) -> bool {
        given(head).is_some_and(|given| self.find(&given.name).is_some())
    }

    fn find(&self, name: &str) -> Option<&wire::User> {
        self.users.iter().find(|user| user.name == name)
    }

    /// The visitor's name, or a page that asks for it.
    pub async fn check(
        &self,
        limits: &Limits,
        peer: &Peer,
        head: &RequestHead,
    ) -> Result<String, Page> {
        let given = given(head).ok_or_else(|| self.ask())?;
        let user = self.find(&given.name);
        // Whether there is such a user is not told by the time it takes.
        let kept = user.or(self.users.first()).ok_or_else(|| self.ask())?;
        let known = &limits.checks.known;
        let digest = known.digest(&kept.hash.0, user.is_some(), &given);
        let deadline = Instant::now() + 2 * PATIENCE;
        while Instant::now() < deadline {
            if user.is_some() && known.has(digest) {
                return Ok(given.name);
            }
            let mut verdict = match Claim::new(&limits.checks, digest) {
                Err(other) => other,
                Ok(claim) => {
                    let verdict = claim.verdict.subscribe();
                    let word = Word {
                        password: given.password.clone(),
                        hash: kept.hash.0.clone(),
                        is_user: user.is_some(),
                    };
                    self.begin(limits, peer.ip, claim, word).await?;
                    verdict
                }
            };
            let over = verdict.wait_for(Option::is_some);
            match tokio::time::timeout_at(deadline.into(), over).await {
                Ok(Ok(right)) if *right == Some(true) => return Ok(given.name),
                Ok(Ok(_)) => return Err(self.ask()),
                // Whoever was about to check it did not.
                Ok(Err(_)) => {}
                Err(_) => break,
            }
        }
        Err(busy())
    }

    fn may_try(&self, limits: &Limits, ip: IpAddr) -> Result<(), Page> {
        let verdict = limits.look(self.rule, Some(ip), &WRONG);
        refuse_if(&verdict, "with a wrong password from your address", &WRONG)
    }

    /// Has a word checked by a thread of its own, once it is its turn.
    async fn begin(
        &self,
        limits: &Limits,
        ip: IpAddr,
        claim: Claim,
        word: Word,
    ) -> Result<(), Page> {
        self.may_try(limits, ip)?;
        let checks = limits.checks.clone();
        let own = limits.keys.of(1, Some(ip));
        let own = checks.waiting.take(own, MAX_WAITING_PER_IP);
        let waiting = checks.waiting.take(0, MAX_WAITING);
        let places = own.zip(waiting).ok_or_else(busy)?;
        let turn = checks.place.clone().acquire_owned();
        let turn = tokio::time::timeout(PATIENCE, turn).await;
        let turn = turn.ok().and_then(Result::ok).ok_or_else(busy)?;
        // Those before it may have been wrong meanwhile.
        self.may_try(limits, ip)?;
        let (buckets, key) = (limits.buckets.clone(), limits.keys.of(self.rule, Some(ip)));
        let check = move || {
            // Linux: of this thread alone. If it may not, it does not.
            let _ = rustix::process::setpriority_process(None, NICE);
            let right = matches!(bcrypt::verify(word.password, &word.hash), Ok(true));
            let right = right && word.is_user;
            if right {
                checks.known.add(claim.digest);
            } else {
                buckets.take(key, &WRONG, super::now_us());
            }
            claim.verdict.send_replace(Some(right));
            drop((claim, places, turn));
        };
        let thread = std::thread::Builder::new().name("password".into());
        thread.spawn(check).map(drop).map_err(|_| busy())
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

/// What is to be checked.
struct Word {
    password: Vec<u8>,
    hash: String,
    /// It is not another user's hash, for the time that it takes.
    is_user: bool,
}

fn busy() -> Page {
    Page::unavailable("Too many passwords are being checked.", 2)
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

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_http::request::Scan;

    fn request(pair: &str) -> RequestHead {
        let mut head = RequestHead::default();
        let word = BASE64_STANDARD.encode(pair);
        let text = format!("GET / HTTP/1.1\r\nHost: a.test\r\nAuthorization: Basic {word}\r\n\r\n");
        head.parse(text.as_bytes(), &mut Scan::default())
            .expect("sound");
        head
    }

    fn auth() -> Auth {
        let hash = bcrypt::hash("sesame", 4).expect("a hash");
        let user = wire::User {
            name: "ann".into(),
            hash: wire::Secret(hash),
        };
        let wire = wire::Auth {
            realm: "Staff".into(),
            users: vec![user],
        };
        Auth::new("a", &wire)
    }

    #[tokio::test]
    async fn many_with_the_right_word_are_no_guesses() {
        let (limits, auth, peer) = (Limits::new(), auth(), Peer::plain("10.0.0.1"));
        let head = request("ann:sesame");
        let mut all = Vec::new();
        for _ in 0..100 {
            all.push(auth.check(&limits, &peer, &head));
        }
        for one in futures_in_turn(all).await {
            assert_eq!(one.expect("let in"), "ann");
        }
        // It cost none of the tries of its address.
        let left = limits.look(auth.rule, Some(peer.ip), &WRONG).remaining;
        assert_eq!(left, WRONG.burst - 1);
    }

    #[tokio::test]
    async fn who_is_wrong_too_often_waits_and_who_is_known_does_not() {
        let (limits, auth, peer) = (Limits::new(), auth(), Peer::plain("10.0.0.1"));
        assert!(
            auth.check(&limits, &peer, &request("ann:sesame"))
                .await
                .is_ok()
        );
        let mut statuses = Vec::new();
        for guess in 0..12 {
            let head = request(&format!("ann:{guess}"));
            let refused = auth.check(&limits, &peer, &head).await;
            statuses.push(refused.expect_err("wrong").status);
        }
        assert_eq!(statuses[..10], [401; 10]);
        assert_eq!(statuses[10..], [429; 2]);
        assert!(
            auth.check(&limits, &peer, &request("ann:sesame"))
                .await
                .is_ok()
        );
        let elsewhere = Peer::plain("10.0.0.2");
        let head = request("bob:sesame");
        let nobody = auth.check(&limits, &elsewhere, &head).await;
        assert_eq!(nobody.expect_err("wrong").status, 401);
        assert!(auth.is_for_us(&request("ann:x")) && !auth.is_for_us(&request("bob:x")));
    }

    #[tokio::test]
    async fn guesses_side_by_side_are_counted_one_by_one() {
        let (limits, auth, peer) = (Limits::new(), auth(), Peer::plain("10.0.0.1"));
        let heads: Vec<_> = (0..16).map(|n| request(&format!("ann:{n}"))).collect();
        let all = heads.iter().map(|head| auth.check(&limits, &peer, head));
        let statuses: Vec<u16> = futures_in_turn(all.collect())
            .await
            .into_iter()
            .map(|one| one.expect_err("wrong").status)
            .collect();
        let checked = statuses.iter().filter(|status| **status == 401).count();
        assert_eq!(checked as u32, WRONG.burst, "{statuses:?}");
    }

    /// Another app keeps the same for another name: what is right there says nothing here.
    #[tokio::test]
    async fn a_name_of_another_app_is_no_name_here() {
        let (limits, here, peer) = (Limits::new(), auth(), Peer::plain("10.0.0.1"));
        let mut there = auth();
        there.users = vec![wire::User {
            name: "admin".into(),
            hash: here.users[0].hash.clone(),
        }];
        let head = request("admin:sesame");
        let both = vec![
            there.check(&limits, &peer, &head),
            here.check(&limits, &peer, &head),
        ];
        let both = futures_in_turn(both).await;
        assert_eq!(both[0].as_deref().ok(), Some("admin"));
        assert!(both[1].is_err());
        assert!(here.check(&limits, &peer, &head).await.is_err());
    }

    #[tokio::test]
    async fn one_address_does_not_fill_the_line() {
        let (limits, auth) = (Limits::new(), auth());
        let held: Vec<_> = (0..MAX_WAITING_PER_IP)
            .filter_map(|_| {
                let own = limits.keys.of(1, Some(Peer::plain("10.0.0.1").ip));
                limits.checks.waiting.take(own, MAX_WAITING_PER_IP)
            })
            .collect();
        let head = request("ann:sesame");
        let refused = auth.check(&limits, &Peer::plain("10.0.0.1"), &head).await;
        let page = refused.expect_err("too many");
        assert_eq!((page.status, page.retry_after_s), (503, Some(2)));
        assert!(
            auth.check(&limits, &Peer::plain("10.0.0.2"), &head)
                .await
                .is_ok()
        );
        drop(held);
    }

    /// Whoever leaves in the middle of it pays all the same, and others get what they came for.
    #[tokio::test]
    async fn who_leaves_is_counted_and_in_nobody_s_way() {
        let (limits, auth, peer) = (Limits::new(), auth(), Peer::plain("10.0.0.1"));
        for guess in 0..5 {
            let head = request(&format!("ann:{guess}"));
            let mut check = Box::pin(auth.check(&limits, &peer, &head));
            // To behind the thread's beginning.
            let polled = std::future::poll_fn(|context| {
                let _ = check.as_mut().poll(context);
                std::task::Poll::Ready(())
            });
            polled.await;
            drop(check);
            while limits.checks.place.available_permits() == 0 {
                tokio::task::yield_now().await;
            }
        }
        let left = limits.look(auth.rule, Some(peer.ip), &WRONG).remaining;
        assert_eq!(left, WRONG.burst - 1 - 5);
        let head = request("ann:sesame");
        let mut first = Box::pin(auth.check(&limits, &peer, &head));
        let mut second = Box::pin(auth.check(&limits, &peer, &head));
        let both = std::future::poll_fn(|context| {
            let polled = (first.as_mut().poll(context), second.as_mut().poll(context));
            assert!(polled.0.is_pending() && polled.1.is_pending());
            std::task::Poll::Ready(())
        });
        both.await;
        drop(first);
        assert_eq!(second.await.expect("let in"), "ann");
    }

    /// All at once, each polled in turn.
    async fn futures_in_turn<T>(all: Vec<impl Future<Output = T>>) -> Vec<T> {
        let mut all: Vec<_> = all.into_iter().map(Box::pin).collect();
        let mut done: Vec<Option<T>> = all.iter().map(|_| None).collect();
        std::future::poll_fn(|context| {
            for (one, done) in all.iter_mut().zip(&mut done) {
                if done.is_none()
                    && let std::task::Poll::Ready(value) = one.as_mut().poll(context)
                {
                    *done = Some(value);
                }
            }
            match done.iter().all(Option::is_some) {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
        done.into_iter().flatten().collect()
    }
}
