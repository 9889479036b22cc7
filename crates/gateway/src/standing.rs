//! How a target has done of late: one that fails often gets nothing for a while (passive checks), one that
//! has just begun gets less. Counters of all workers together; a lost update does no harm.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Failures are counted over so long.
const WINDOW_MS: u64 = 10_000;
/// So many answers must there be, and half of them bad.
const ENOUGH: u32 = 10;
/// The first time without requests; each further one is longer by as much.
const EJECTED_MS: u64 = 5_000;
const LONGEST_MS: u64 = 60_000;

#[derive(Default)]
pub struct Standing {
    window_ms: AtomicU64,
    all: AtomicU32,
    bad: AtomicU32,
    ejected_until_ms: AtomicU64,
    times: AtomicU32,
    /// When it became healthy; 0 if it never was.
    since_ms: AtomicU64,
}

impl Standing {
    /// An answer, or none. True if it gets nothing from now on.
    pub fn note(&self, good: bool) -> bool {
        // Most are good, and need not look at the clock.
        self.note_at(good, if good { 0 } else { now_ms() })
    }

    /// `now`: in milliseconds; of no account where the answer is good.
    fn note_at(&self, good: bool, now: u64) -> bool {
        let mut all = self.all.fetch_add(1, Ordering::Relaxed) + 1;
        if good {
            return false;
        }
        let last = self.window_ms.load(Ordering::Relaxed);
        if now.saturating_sub(last) > WINDOW_MS {
            self.window_ms.store(now, Ordering::Relaxed);
            // Once it has served for a while without a failure, the next time is a first time.
            let served_ms = last.max(self.ejected_until_ms.load(Ordering::Relaxed));
            if now.saturating_sub(served_ms) > 2 * WINDOW_MS {
                self.times.store(0, Ordering::Relaxed);
            }
            self.bad.store(0, Ordering::Relaxed);
            self.all.store(1, Ordering::Relaxed);
            all = 1;
        }
        let bad = self.bad.fetch_add(1, Ordering::Relaxed) + 1;
        let ejected = self.ejected_until_ms.load(Ordering::Relaxed) > now;
        if all < ENOUGH || bad * 2 < all || ejected {
            return false;
        }
        let times = u64::from(self.times.fetch_add(1, Ordering::Relaxed)) + 1;
        let pause = (EJECTED_MS * times).min(LONGEST_MS);
        self.ejected_until_ms.store(now + pause, Ordering::Relaxed);
        // What it does when it is back counts anew.
        self.window_ms.store(now, Ordering::Relaxed);
        self.all.store(0, Ordering::Relaxed);
        self.bad.store(0, Ordering::Relaxed);
        true
    }

    pub fn is_ejected(&self) -> bool {
        let until = self.ejected_until_ms.load(Ordering::Relaxed);
        until > 0 && until > now_ms()
    }

    /// It can serve from now on.
    pub fn begin(&self) {
        self.since_ms.store(now_ms(), Ordering::Relaxed);
    }

    /// What part of its weight counts, in 256ths, if a fresh target is to be spared for so long.
    pub fn share(&self, slow_start: Duration) -> u64 {
        const FULL: u64 = 256;
        let whole = slow_start.as_millis() as u64;
        if whole == 0 {
            return FULL;
        }
        let since = now_ms().saturating_sub(self.since_ms.load(Ordering::Relaxed));
        (FULL * since.min(whole) / whole).max(FULL / 10)
    }
}

/// Milliseconds since this process began to ask, from 1.
fn now_ms() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_enough_is_too_much() {
        let standing = Standing::default();
        let mut answers = [true; 8].into_iter().chain([false; 7]);
        assert!(!answers.any(|good| standing.note(good)));
        assert!(!standing.is_ejected());
        assert!(standing.note(false));
        assert!(standing.is_ejected());
    }

    #[test]
    fn a_few_failures_say_nothing() {
        let standing = Standing::default();
        assert!(!(0..9).any(|_| standing.note(false)));
    }

    #[test]
    fn one_that_fails_again_is_out_for_longer_until_it_has_done_well() {
        let standing = Standing::default();
        let mut now = 100_000;
        let mut pauses = Vec::new();
        for _ in 0..14 {
            while !standing.note_at(false, now) {
                now += 10;
            }
            let until = standing.ejected_until_ms.load(Ordering::Relaxed);
            pauses.push(until - now);
            now = until;
        }
        assert_eq!(pauses[..3], [5_000, 10_000, 15_000]);
        assert_eq!(pauses[13], LONGEST_MS);
        now += 2 * WINDOW_MS + 1;
        while !standing.note_at(false, now) {
            now += 10;
        }
        let until = standing.ejected_until_ms.load(Ordering::Relaxed);
        assert_eq!(until - now, EJECTED_MS);
    }

    #[test]
    fn a_fresh_target_is_spared() {
        let standing = Standing::default();
        standing.begin();
        assert_eq!(standing.share(Duration::ZERO), 256);
        assert!(standing.share(Duration::from_secs(3600)) < 30);
    }
}
