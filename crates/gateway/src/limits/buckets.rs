//! Token buckets for any number of clients in constant memory, shared by the workers without a lock.
//!
//! A bucket is one number, the time at which it will be full again (the "theoretical arrival time" of the
//! generic cell rate algorithm, ITU-T I.371): each request puts it off by the time that one token takes to
//! flow in. Buckets live in a table of sets with four slots each; a client's key says which set.
//!
//! **When a set is full**, whoever comes new gets a full bucket in place of the one that is full first. A
//! bucket that is full already is forgotten without a loss. Otherwise it is the one of the client that
//! asked least, so that those who ask most stay limited, and nobody is refused because there are many
//! others; a client that was forgotten has its burst once more.
//!
//! **When threads race** for a slot that changes hands, each that is inside of [`Buckets::take`] can lose
//! one request, or charge it to whoever has just got the slot; and that one can begin with what was left in
//! the bucket before it, never with less than nothing. A slot that nobody takes over loses nothing.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hutong_core::networks;

/// Slots of a set; together they are as large as a line of the processor's cache.
const WAYS: usize = 4;
/// The clocks that threads have read differ by less. A bucket emptier than empty by more than that was
/// filled by another rate or before the clock was set back.
const SLACK_NS: u64 = 1_000_000_000;
/// 146 years: no bucket is deeper, so that no sum overflows.
const MAX_DEPTH_NS: u64 = u64::MAX / 4;

/// How much a client may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// From one request to the next, in the long run, in nanoseconds; 0 counts as 1.
    pub interval_ns: u64,
    /// At once, in requests; 0 counts as 1.
    pub burst: u32,
}

/// What to say about one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    /// The burst: requests that fit into the bucket.
    pub limit: u32,
    /// Requests that would be allowed now, after this one.
    pub remaining: u32,
    /// In microseconds; zero if this one is allowed, never zero otherwise.
    pub retry_after_us: u64,
    /// In microseconds: until the bucket is full, if nothing more is asked for.
    pub reset_us: u64,
}

/// Makes keys of clients, in a way nobody outside can foresee: a client cannot aim for another's bucket.
#[derive(Clone, Debug, Default)]
pub struct Keys(RandomState);

impl Keys {
    /// The key of a client under a rule, or of all clients together; never zero. IPv6 addresses of one
    /// /64 are one client.
    pub fn of(&self, rule: u64, ip: Option<IpAddr>) -> u64 {
        self.0.hash_one((rule, ip.map(networks::client))).max(1)
    }
}

/// The table; see the module.
#[derive(Debug)]
pub struct Buckets {
    /// Set by set.
    slots: Vec<Slot>,
}

/// One client's bucket; all zero if it is nobody's.
#[derive(Debug)]
struct Slot {
    key: AtomicU64,
    /// In nanoseconds on the caller's clock.
    full_at_ns: AtomicU64,
}

impl Buckets {
    /// Room for four times as many clients; each set takes 64 bytes.
    pub fn new(sets: usize) -> Self {
        // The kernel zeroes a page when it is first used; optimised, this is collected in place untouched.
        let zeros = vec![[0_u64; 2]; sets.max(1).saturating_mul(WAYS)];
        let slot = |[key, full_at_ns]: [u64; 2]| Slot {
            key: key.into(),
            full_at_ns: full_at_ns.into(),
        };
        let slots = zeros.into_iter().map(slot).collect();
        Buckets { slots }
    }

    /// Takes one token out of the bucket of `key` (of [`Keys::of`]), if there is one. `now_us` is in
    /// microseconds on any clock that hardly ever goes back.
    pub fn take(&self, key: u64, rate: &Rate, now_us: u64) -> Verdict {
        let now_ns = now_us.saturating_mul(1000).min(u64::MAX / 2);
        let shape = Shape::of(rate);
        let full_at_ns = &self.slot(key.max(1)).full_at_ns;
        // Relaxed: a slot says nothing about other memory.
        let (Ok(before) | Err(before)) =
            full_at_ns.fetch_update(Relaxed, Relaxed, |at| shape.take(at, now_ns).0);
        shape.take(before, now_ns).1
    }

    /// What [`Buckets::take`] would say; nothing is taken.
    pub fn look(&self, key: u64, rate: &Rate, now_us: u64) -> Verdict {
        let now_ns = now_us.saturating_mul(1000).min(u64::MAX / 2);
        let full_at_ns = self.slot(key.max(1)).full_at_ns.load(Relaxed);
        Shape::of(rate).take(full_at_ns, now_ns).1
    }

    /// The slot of `key`, or the one it gets.
    fn slot(&self, key: u64) -> &Slot {
        let (sets, _) = self.slots.as_chunks::<WAYS>();
        // As far into the sets as the key is into all keys: always less than there are.
        let index = (u128::from(key) * sets.len() as u128) >> u64::BITS;
        let set = &sets[index as usize];
        for _ in 0..WAYS {
            if let Some(slot) = set.iter().find(|slot| slot.key.load(Relaxed) == key) {
                return slot;
            }
            let slot = fullest(set);
            let (other, full_at_ns) = (slot.key.load(Relaxed), slot.full_at_ns.load(Relaxed));
            let claim = slot.key.compare_exchange(other, key, Relaxed, Relaxed);
            if claim.is_ok() {
                // Not if somebody took from it meanwhile, maybe in the name of this key.
                let _ = (slot.full_at_ns).compare_exchange(full_at_ns, 0, Relaxed, Relaxed);
                return slot;
            }
        }
        // Others were quicker each time. One request goes on another's account.
        fullest(set)
    }
}

/// The one that is full first, or has been for longest.
fn fullest(set: &[Slot; WAYS]) -> &Slot {
    let [first, others @ ..] = set;
    let time = |slot: &Slot| slot.full_at_ns.load(Relaxed);
    let fuller = |a, b| if time(b) < time(a) { b } else { a };
    others.iter().fold(first, fuller)
}

/// A rate as times.
struct Shape {
    limit: u32,
    /// In which one token flows in.
    interval_ns: u64,
    /// In which the empty bucket becomes full.
    depth_ns: u64,
}

impl Shape {
    fn of(rate: &Rate) -> Self {
        // Rounded up: never more than the rate.
        let interval_ns = rate.interval_ns.max(1);
        let limit = rate.burst.max(1);
        let depth_ns = interval_ns.saturating_mul(limit.into()).min(MAX_DEPTH_NS);
        Shape {
            limit,
            interval_ns,
            depth_ns,
        }
    }

    /// When the bucket will be full instead, if that changes, and what to say.
    fn take(&self, full_at_ns: u64, now_ns: u64) -> (Option<u64>, Verdict) {
        let mut missing_ns = full_at_ns.saturating_sub(now_ns);
        let too_empty = missing_ns > self.depth_ns.saturating_add(SLACK_NS);
        if too_empty {
            missing_ns = self.depth_ns;
        }
        let wanted_ns = missing_ns.saturating_add(self.interval_ns);
        let retry_after_ns = wanted_ns.saturating_sub(self.depth_ns);
        let allowed = retry_after_ns == 0;
        if allowed {
            missing_ns = wanted_ns;
        }
        let remaining = self.depth_ns.saturating_sub(missing_ns) / self.interval_ns;
        let verdict = Verdict {
            allowed,
            limit: self.limit,
            remaining: u32::try_from(remaining).unwrap_or(self.limit),
            retry_after_us: retry_after_ns.div_ceil(1000),
            reset_us: missing_ns.div_ceil(1000),
        };
        let change = allowed || too_empty;
        (change.then(|| now_ns.saturating_add(missing_ns)), verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Instant;

    const SECOND: u64 = 1_000_000;

    fn rate(per_second_milli: u64, burst: u32) -> Rate {
        Rate {
            interval_ns: 1_000_000_000_000_u64.div_ceil(per_second_milli.max(1)),
            burst,
        }
    }

    /// How many of the requests of `key`, one each `step_us`, are allowed.
    fn allowed(
        buckets: &Buckets,
        key: u64,
        rate: &Rate,
        from: u64,
        to: u64,
        step_us: usize,
    ) -> u64 {
        let times = (from..to).step_by(step_us);
        let verdicts = times.map(|now| buckets.take(key, rate, now).allowed);
        verdicts.map(u64::from).sum()
    }

    #[test]
    fn a_greedy_client_gets_its_burst_and_its_rate() {
        for (milli, burst, seconds, step_us) in [
            (3000, 5, 1000, 1000),
            (1, 1, 100_000, 100_000),
            (16_667, 100, 600, 997),
            (30_000_000, 50, 2, 3),
            (700_000_000, 50, 1, 1),
        ] {
            let (buckets, rate) = (Buckets::new(16), rate(milli, burst));
            let count = allowed(&buckets, 7, &rate, 0, seconds * SECOND, step_us);
            let most = u64::from(burst) + milli * seconds / 1000;
            assert!(count <= most, "{count} of {most}");
            assert!(count + 1 + most / 1000 >= most, "{count} of {most}");
        }
    }

    #[test]
    fn a_client_slower_than_the_rate_is_never_refused() {
        let (buckets, rate) = (Buckets::new(1), rate(2000, 1));
        let count = allowed(&buckets, 7, &rate, 0, 1000 * SECOND, 500_000);
        assert_eq!(count, 2000);
    }

    #[test]
    fn a_verdict_tells_when_to_come_again() {
        let (buckets, rate, start) = (Buckets::new(1), rate(3000, 3), 1_800_000_000 * SECOND);
        let at = |now| {
            let v = buckets.take(7, &rate, start + now);
            assert_eq!(v.limit, 3);
            (v.allowed, v.remaining, v.retry_after_us, v.reset_us)
        };
        assert_eq!(at(0), (true, 2, 0, 333_334));
        assert_eq!(at(0), (true, 1, 0, 666_667));
        assert_eq!(at(0), (true, 0, 0, 1_000_001));
        assert_eq!(at(0), (false, 0, 333_334, 1_000_001));
        assert_eq!(at(333_333), (false, 0, 1, 666_668));
        assert_eq!(at(333_334), (true, 0, 0, 1_000_000));
        assert_eq!(at(10 * SECOND), (true, 2, 0, 333_334));
    }

    #[test]
    fn senseless_rates_and_times_neither_panic_nor_open_the_gate() {
        for milli in [0, 1, 1_000_000_000_000, u64::MAX] {
            for burst in [0, 1, u32::MAX] {
                let (buckets, rate) = (Buckets::new(0), rate(milli, burst));
                for now in [u64::MAX, 0, u64::MAX / 2, 1] {
                    let first = buckets.take(0, &rate, now);
                    assert!(first.remaining <= first.limit);
                    let count = (0..5).filter(|_| buckets.take(0, &rate, now).allowed);
                    assert!(burst > 1 || count.count() == 0);
                }
            }
        }
    }

    #[test]
    fn the_deepest_bucket_can_be_empty() {
        let (shape, now_ns) = (Shape::of(&rate(1, u32::MAX)), u64::MAX / 2);
        let empty_ns = now_ns.saturating_add(shape.depth_ns);
        assert!(!shape.take(empty_ns, now_ns).1.allowed);
    }

    #[test]
    fn nobody_waits_for_a_clock_that_was_set_back_or_for_a_rate_that_was() {
        let buckets = Buckets::new(1);
        let (slow, fast) = (rate(1, 10), rate(10_000, 10));
        assert_eq!(
            (0..20)
                .filter(|_| buckets.take(7, &slow, 3600 * SECOND).allowed)
                .count(),
            10
        );
        let refused = buckets.take(7, &fast, 0);
        assert_eq!((refused.allowed, refused.retry_after_us), (false, 100_000));
        assert!(buckets.take(7, &fast, refused.retry_after_us).allowed);
        assert!(!buckets.take(7, &fast, refused.retry_after_us).allowed);
    }

    #[test]
    fn a_million_clients_fit_and_the_honest_and_the_greedy_get_what_they_should() {
        let (buckets, keys, rate) = (Buckets::new(256), Keys::default(), rate(1000, 10));
        let size = buckets.slots.capacity() * size_of::<Slot>();
        let (honest, greedy) = (keys.of(1, None), keys.of(2, None));
        let mut taken = 0;
        for client in 0..1_000_000_u64 {
            // A microsecond for each: the table is full of those who came within the last second.
            let ip = IpAddr::from(std::net::Ipv4Addr::from_bits(client as u32));
            assert!(buckets.take(keys.of(0, Some(ip)), &rate, client).allowed);
            taken += u64::from(client % 7 == 0 && buckets.take(greedy, &rate, client).allowed);
            if client % 100_000 == 0 {
                assert!(buckets.take(honest, &rate, client).allowed);
            }
        }
        assert!((10..=12).contains(&taken), "{taken}");
        assert_eq!(size, 256 * 64);
        // An hour later each has a full bucket again.
        assert_eq!(buckets.take(greedy, &rate, 3600 * SECOND).remaining, 9);
    }

    #[test]
    fn threads_share_what_one_client_has() {
        for (milli, burst) in [(1000, 100), (100_000, 10), (50_000_000, 1000)] {
            let (buckets, rate, start) = (Buckets::new(4), rate(milli, burst), Instant::now());
            let now = || start.elapsed().as_micros() as u64;
            let hammer = || {
                (0..200_000)
                    .filter(|_| buckets.take(7, &rate, now()).allowed)
                    .count()
            };
            let count: usize = thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(hammer)).collect();
                threads
                    .into_iter()
                    .map(|t| t.join().expect("no panic"))
                    .sum()
            });
            let most = u64::from(burst) + milli * (now() + 1) / 1_000_000_000;
            assert!(count as u64 <= most + 4, "{count} of {most}");
            assert!(count >= burst as usize);
        }
    }

    #[test]
    fn no_request_of_one_client_is_lost_between_threads() {
        let (buckets, rate) = (Buckets::new(1), rate(1, 1_000_000));
        buckets.take(7, &rate, 1);
        let hammer = || (0..400_000).filter(|_| buckets.take(7, &rate, 1).allowed);
        let count: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| hammer().count())).collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("no panic"))
                .sum()
        });
        assert_eq!(count, 999_999);
    }

    #[test]
    fn threads_that_crowd_one_set_neither_block_nor_open_it() {
        for clients in [4, 9_u64] {
            let (buckets, rate) = (Buckets::new(1), rate(1, 100));
            let crowd = |thread: u64| {
                let keys = (0..400_000).map(|turn| 1 + (turn + thread) % clients);
                keys.filter(|key| buckets.take(*key, &rate, 1).allowed)
                    .count() as u64
            };
            let crowd = &crowd;
            let count: u64 = thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|t| scope.spawn(move || crowd(t))).collect();
                threads
                    .into_iter()
                    .map(|t| t.join().expect("no panic"))
                    .sum()
            });
            assert!(count >= 4 * 100);
            assert!(clients > 4 || count <= 4 * 100 + 16, "{count}");
        }
    }

    #[test]
    fn keys_tell_clients_and_rules_apart() {
        let keys = Keys::default();
        let of = |rule, ip: &str| keys.of(rule, Some(ip.parse().expect(ip)));
        assert_eq!(of(1, "2001:db8::1"), of(1, "2001:db8::ffff:1"));
        assert_ne!(of(1, "2001:db8::1"), of(1, "2001:db8:0:1::1"));
        assert_eq!(of(1, "192.0.2.1"), of(1, "::ffff:192.0.2.1"));
        assert_ne!(of(1, "192.0.2.1"), of(1, "192.0.2.2"));
        assert_ne!(of(1, "192.0.2.1"), of(2, "192.0.2.1"));
        assert_eq!(keys.of(1, None), keys.of(1, None));
        assert_ne!(keys.of(1, None), Keys::default().of(1, None));
    }
}
