//! Addresses that get nothing until a time: banned by hand, or after too many bad answers in a short time.
//!
//! Whoever is banned is banned as [`networks::client`] says: by IPv4 address, or by IPv6 /64. Memory is
//! bounded, [`MAX_BANS`] bans and [`COUNTERS`] counters. Where either runs out, somebody goes unpunished
//! longer; nobody is banned for what others did.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use hutong_core::networks;
use serde::{Deserialize, Serialize};

/// When there are more, those that end first go.
pub const MAX_BANS: usize = 10_000;
/// Clients whose bad answers are counted at a time.
const COUNTERS: usize = 4096;
/// Counters of a set.
const WAYS: usize = 4;
/// In characters; what is longer is cut.
const MAX_REASON: usize = 200;

/// When bad answers make a ban. Clients have one count for each rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The bad answer that makes the ban; 0 counts as 1.
    pub hits: u32,
    /// In seconds, from the first bad answer.
    pub within_s: u64,
    /// In seconds, from the last one.
    pub for_s: u64,
}

/// One client that is banned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// For IPv6 the first address of the /64.
    pub ip: IpAddr,
    /// In seconds on the caller's clock; over at this very second.
    pub until_s: u64,
    /// For people, at most 200 characters.
    pub reason: String,
}

/// All bans, and the counts that lead to more.
#[derive(Debug, Default)]
pub struct Bans {
    /// When the last ban ends, or zero: nobody is banned then, and no lock is taken to find out.
    last_end_s: AtomicU64,
    kept: RwLock<Kept>,
    counters: Counters,
}

impl Bans {
    /// Until when, if `ip` is banned.
    pub fn is_banned(&self, ip: IpAddr, now_s: u64) -> Option<u64> {
        if self.last_end_s.load(Relaxed) <= now_s {
            return None;
        }
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.until(networks::client(ip), now_s)
    }

    /// Counts a bad answer to `ip`. The ban, if this one made it; bad answers to somebody who is banned
    /// already make none.
    pub fn hit(&self, ip: IpAddr, rule: &Rule, now_s: u64) -> Option<Ban> {
        let ip = networks::client(ip);
        if self.is_banned(ip, now_s).is_some() || !self.counters.count(ip, rule, now_s) {
            return None;
        }
        let ban = Ban {
            ip,
            until_s: now_s.saturating_add(rule.for_s),
            reason: format!(
                "{} bad answers within {} s",
                rule.hits.max(1),
                rule.within_s
            ),
        };
        self.change(|kept| {
            kept.forget_ended(now_s);
            // Another thread can have been quicker.
            let made = kept.until(ip, now_s).is_none();
            (made && kept.put(ban.clone())).then_some(ban)
        })
    }

    /// Bans, in place of what was said about `ip` before. Without effect if there are [`MAX_BANS`] that
    /// end later.
    pub fn add(&self, ip: IpAddr, until_s: u64, reason: String) {
        let ban = Ban {
            ip,
            until_s,
            reason,
        };
        self.change(|kept| kept.put(ban));
    }

    /// Ends a ban; whether there was one.
    pub fn lift(&self, ip: IpAddr) -> bool {
        self.change(|kept| kept.remove(networks::client(ip)))
    }

    /// All who are banned; whoever is free first comes first.
    #[cfg(test)]
    fn list(&self, now_s: u64) -> Vec<Ban> {
        self.change(|kept| {
            kept.forget_ended(now_s);
            kept.list()
        })
    }

    fn change<T>(&self, how: impl FnOnce(&mut Kept) -> T) -> T {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let result = how(&mut kept);
        let last_end_s = kept.by_end.last().map_or(0, |(until_s, _)| *until_s);
        self.last_end_s.store(last_end_s, Relaxed);
        result
    }
}

/// The bans themselves; both collections hold the same clients.
#[derive(Debug, Default)]
struct Kept {
    by_client: HashMap<IpAddr, (u64, String)>,
    by_end: BTreeSet<(u64, IpAddr)>,
}

impl Kept {
    fn until(&self, client: IpAddr, now_s: u64) -> Option<u64> {
        let (until_s, _) = self.by_client.get(&client)?;
        (now_s < *until_s).then_some(*until_s)
    }

    /// Whether the ban is kept; one that ends before all others is not, if they are many.
    fn put(&mut self, ban: Ban) -> bool {
        let client = networks::client(ban.ip);
        self.remove(client);
        let reason = ban.reason.chars().take(MAX_REASON).collect();
        self.by_client.insert(client, (ban.until_s, reason));
        self.by_end.insert((ban.until_s, client));
        if self.by_end.len() > MAX_BANS {
            self.forget_first();
        }
        self.by_client.contains_key(&client)
    }

    fn remove(&mut self, client: IpAddr) -> bool {
        let Some((until_s, _)) = self.by_client.remove(&client) else {
            return false;
        };
        self.by_end.remove(&(until_s, client))
    }

    fn forget_first(&mut self) {
        if let Some((_, client)) = self.by_end.pop_first() {
            self.by_client.remove(&client);
        }
    }

    fn forget_ended(&mut self, now_s: u64) {
        while self
            .by_end
            .first()
            .is_some_and(|(until_s, _)| *until_s <= now_s)
        {
            self.forget_first();
        }
    }

    #[cfg(test)]
    fn list(&self) -> Vec<Ban> {
        let bans = self.by_end.iter().map(|(until_s, client)| Ban {
            ip: *client,
            until_s: *until_s,
            reason: (self.by_client.get(client)).map_or_else(String::new, |(_, r)| r.clone()),
        });
        bans.collect()
    }
}

/// Counts of bad answers: sets of four, each behind a lock of its own, so that no count is ever another
/// client's. There is none until the first bad answer.
#[derive(Debug, Default)]
struct Counters {
    hasher: RandomState,
    sets: OnceLock<Vec<Mutex<[Counter; WAYS]>>>,
}

/// All zero if it is nobody's.
#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    key: u64,
    since_s: u64,
    hits: u32,
}

impl Counters {
    /// Whether the rule is broken by this one; the next is the first again.
    fn count(&self, client: IpAddr, rule: &Rule, now_s: u64) -> bool {
        let key = self.hasher.hash_one((client, rule)).max(1);
        let new_sets = || (0..COUNTERS / WAYS).map(|_| Mutex::default()).collect();
        let sets = self.sets.get_or_init(new_sets);
        let set = &sets[key as usize % sets.len()];
        let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = counter_of(&mut set, key, rule, now_s);
        counter.hits = counter.hits.saturating_add(1);
        let broken = counter.hits >= rule.hits.max(1);
        if broken {
            *counter = Counter::default();
        }
        broken
    }
}

/// The counter of `key`; if it has none, a new one in place of one whose time is over or that counted
/// least.
fn counter_of<'a>(
    set: &'a mut [Counter; WAYS],
    key: u64,
    rule: &Rule,
    now_s: u64,
) -> &'a mut Counter {
    // Threads read the clock at different times: a little in the future is within, too.
    let is_over = |counter: &Counter| now_s.abs_diff(counter.since_s) >= rule.within_s;
    let order = |index: &usize| match &set[*index] {
        counter if counter.key == key => (0, 0),
        counter if is_over(counter) => (1, 0),
        counter => (2, counter.hits),
    };
    let index = (0..WAYS).min_by_key(order).unwrap_or(0);
    let counter = &mut set[index];
    if counter.key != key || is_over(counter) {
        *counter = Counter {
            key,
            since_s: now_s,
            hits: 0,
        };
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::thread;

    const RULE: Rule = Rule {
        hits: 3,
        within_s: 10,
        for_s: 60,
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    fn numbered(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn too_many_bad_answers_within_the_time_make_a_ban() {
        let (bans, bad) = (Bans::default(), ip("192.0.2.1"));
        assert_eq!(bans.hit(bad, &RULE, 1000), None);
        assert_eq!(bans.hit(bad, &RULE, 1009), None);
        assert_eq!(bans.hit(ip("192.0.2.2"), &RULE, 1009), None);
        assert_eq!(bans.is_banned(bad, 1009), None);
        let ban = bans.hit(bad, &RULE, 1009).expect("the third");
        assert_eq!((ban.ip, ban.until_s), (bad, 1069));
        assert_eq!(ban.reason, "3 bad answers within 10 s");
        assert_eq!(bans.is_banned(bad, 1068), Some(1069));
        assert_eq!(bans.is_banned(ip("192.0.2.2"), 1068), None);
        assert_eq!(bans.hit(bad, &RULE, 1068), None, "banned already");
        assert_eq!(bans.is_banned(bad, 1069), None);
        assert_eq!(bans.hit(bad, &RULE, 1069), None, "counted anew");
    }

    #[test]
    fn slow_bad_answers_make_none() {
        let (bans, bad) = (Bans::default(), ip("192.0.2.1"));
        for now_s in (0..10_000).step_by(5) {
            assert_eq!(bans.hit(bad, &RULE, now_s), None);
        }
        let never = Rule {
            within_s: 0,
            ..RULE
        };
        assert!((0..10).all(|_| bans.hit(bad, &never, 10_000).is_none()));
    }

    #[test]
    fn the_first_bad_answer_can_be_enough_and_rules_are_counted_apart() {
        let (bans, bad) = (Bans::default(), ip("192.0.2.1"));
        let strict = Rule { hits: 0, ..RULE };
        let long = Rule {
            for_s: 9000,
            ..RULE
        };
        for _ in 0..2 {
            assert_eq!(bans.hit(bad, &RULE, 5), None);
            assert_eq!(bans.hit(bad, &long, 5), None);
        }
        assert_eq!(bans.hit(bad, &strict, 5).map(|ban| ban.until_s), Some(65));
        let short = Rule { for_s: 1, ..RULE };
        let made = (10..15).filter_map(|now_s| bans.hit(ip("192.0.2.3"), &short, now_s));
        let ends: Vec<_> = made.map(|ban| ban.until_s).collect();
        assert_eq!(ends, [13], "counted anew");
        let endless = Rule {
            for_s: u64::MAX,
            ..strict
        };
        let ban = bans.hit(ip("192.0.2.2"), &endless, 5);
        assert_eq!(ban.map(|ban| ban.until_s), Some(u64::MAX));
    }

    #[test]
    fn a_clock_that_differs_a_little_loses_no_count_and_one_set_back_counts_anew() {
        let (bans, bad) = (Bans::default(), ip("192.0.2.1"));
        assert!(
            [100, 99]
                .iter()
                .all(|now| bans.hit(bad, &RULE, *now).is_none())
        );
        assert!(bans.hit(bad, &RULE, 98).is_some());
        let other = ip("192.0.2.2");
        assert!(
            [100, 100, 50, 50]
                .iter()
                .all(|now| bans.hit(other, &RULE, *now).is_none())
        );
        assert!(bans.hit(other, &RULE, 51).is_some());
    }

    #[test]
    fn ipv6_is_banned_by_64_and_mapped_addresses_as_ipv4() {
        let bans = Bans::default();
        bans.add(ip("2001:db8::1"), 100, "by hand".to_owned());
        assert_eq!(bans.is_banned(ip("2001:db8::2:3:4:5"), 1), Some(100));
        assert_eq!(bans.is_banned(ip("2001:db8:0:1::1"), 1), None);
        assert_eq!(bans.list(1)[0].ip, ip("2001:db8::"));
        bans.add(ip("::ffff:192.0.2.1"), 100, String::new());
        assert_eq!(bans.is_banned(ip("192.0.2.1"), 1), Some(100));
        assert!(bans.lift(ip("2001:db8::9")) && bans.lift(ip("192.0.2.1")));
        for last in 1..=2 {
            let each = ip(&format!("2001:db8:5::{last}"));
            assert_eq!(bans.hit(each, &RULE, 1), None);
        }
        assert!(bans.hit(ip("2001:db8:5::3"), &RULE, 1).is_some());
    }

    #[test]
    fn bans_are_listed_lifted_and_replaced() {
        let bans = Bans::default();
        assert_eq!(bans.last_end_s.load(Relaxed), 0);
        bans.add(numbered(1), 300, "a".to_owned());
        bans.add(numbered(2), 200, "b".to_owned());
        bans.add(numbered(3), 50, "c".to_owned());
        bans.add(numbered(1), 100, "é".repeat(1000));
        let list = bans.list(50);
        let ends: Vec<_> = list.iter().map(|ban| (ban.ip, ban.until_s)).collect();
        assert_eq!(ends, [(numbered(1), 100), (numbered(2), 200)]);
        assert_eq!(list[0].reason, "é".repeat(MAX_REASON));
        assert_eq!(bans.last_end_s.load(Relaxed), 200);

        assert!(bans.lift(numbered(2)) && !bans.lift(numbered(2)) && !bans.lift(numbered(3)));
        assert_eq!(bans.is_banned(numbered(2), 60), None);
        assert_eq!(bans.last_end_s.load(Relaxed), 100);
        assert_eq!(bans.list(100), []);
        assert_eq!(bans.last_end_s.load(Relaxed), 0);
    }

    #[test]
    fn of_too_many_bans_those_that_end_first_go() {
        let bans = Bans::default();
        let many = |from: u32, to: u32| (from..to).map(|number| (numbered(number), number.into()));
        for (ip, until_s) in many(1000, 1000 + 2 * MAX_BANS as u32) {
            bans.add(ip, until_s, String::new());
        }
        let list = bans.list(0);
        assert_eq!(list.len(), MAX_BANS);
        assert_eq!(list[0].until_s, 1000 + MAX_BANS as u64);
        bans.add(ip("::1"), 5, "ends before all others".to_owned());
        assert_eq!(bans.is_banned(ip("::1"), 0), None);
        let strict = Rule { hits: 1, ..RULE };
        assert_eq!(bans.hit(ip("::1"), &strict, 0), None, "not kept");
        assert!(
            bans.hit(ip("::1"), &strict, 1000 + MAX_BANS as u64)
                .is_some()
        );
        assert_eq!(bans.list(0).len(), MAX_BANS);
    }

    #[test]
    fn a_crowd_neither_gets_anybody_banned_nor_hides_the_worst() {
        let (bans, bad) = (Bans::default(), ip("192.0.2.1"));
        let rule = Rule { hits: 50, ..RULE };
        let mut made = Vec::new();
        for number in 0..1_000_000 {
            assert_eq!(bans.hit(numbered(number), &RULE, 7), None);
            if number % 1000 < 3 {
                made.extend(bans.hit(bad, &rule, 7));
            }
        }
        assert_eq!(made.len(), 1);
        assert_eq!(bans.list(7), made);
    }

    #[test]
    fn of_many_threads_one_makes_the_ban() {
        for round in 0..1000 {
            let bans = Bans::default();
            let hits = [1, 8][round as usize % 2];
            let rule = Rule { hits, ..RULE };
            let hits = || {
                (0..4)
                    .filter_map(|_| bans.hit(numbered(round), &rule, 7))
                    .count()
            };
            let count: usize = thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(hits)).collect();
                threads
                    .into_iter()
                    .map(|t| t.join().expect("no panic"))
                    .sum()
            });
            assert_eq!(count, 1);
            assert_eq!(bans.list(7).len(), 1);
        }
    }
}
