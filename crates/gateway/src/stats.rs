//! What a route has answered, since the gateway began: counts by kind, and how long it took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Times are counted in steps that double: up to 256 µs, 512 µs … 1 min, and above.
const STEPS: usize = 20;
const FIRST_US: u64 = 256;

#[derive(Default)]
pub struct Stats {
    /// By the status' first digit; 0 for none.
    answers: [AtomicU64; 6],
    bytes: AtomicU64,
    times: [AtomicU64; STEPS],
    retries: Mutex<Retries>,
}

/// Requests that were sent once more within a window.
#[derive(Default)]
struct Retries {
    window_s: u64,
    count: u64,
    answers: u64,
}

impl Stats {
    pub fn note(&self, status: u16, bytes: u64, took: Duration) {
        let kind = usize::from(status / 100).min(5);
        self.answers[kind].fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if status == 101 {
            // A conversation: how long it went on says nothing.
            return;
        }
        let us = took.as_micros() as u64;
        let step = (us / FIRST_US)
            .checked_ilog2()
            .map_or(0, |log| log as usize + 1);
        self.times[step.min(STEPS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// Whether one more request may be sent twice: so many in ten seconds, and a fifth of all that were answered
    /// meanwhile. Apps that fail under their load must not get twice as much of it. `now_s`: seconds on any clock.
    pub fn may_retry(&self, now_s: u64) -> bool {
        const WINDOW_S: u64 = 10;
        const ALWAYS: u64 = 256;
        let answers = self.answers().iter().sum();
        let mut retries = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
        if now_s.abs_diff(retries.window_s) >= WINDOW_S {
            *retries = Retries {
                window_s: now_s,
                count: 0,
                answers,
            };
        }
        let meanwhile = answers.saturating_sub(retries.answers);
        let may = retries.count < ALWAYS + meanwhile / 5;
        retries.count += u64::from(may);
        may
    }

    pub fn answers(&self) -> [u64; 6] {
        std::array::from_fn(|kind| self.answers[kind].load(Ordering::Relaxed))
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The upper bound of the step that so many thousandths of all answers took at most, in microseconds.
    pub fn within_us(&self, thousandths: u64) -> Option<u64> {
        let counts: Vec<u64> = self
            .times
            .iter()
            .map(|n| n.load(Ordering::Relaxed))
            .collect();
        let all: u64 = counts.iter().sum();
        let wanted = (all * thousandths).div_ceil(1000);
        let mut sum = 0;
        for (step, count) in counts.iter().enumerate() {
            sum += count;
            if all > 0 && sum >= wanted {
                return Some(FIRST_US << step);
            }
        }
        None
    }

    /// Each step's upper bound in microseconds, and how many answers fell into it.
    pub fn histogram(&self) -> Vec<(u64, u64)> {
        let count = |step: usize| self.times[step].load(Ordering::Relaxed);
        (0..STEPS)
            .map(|step| (FIRST_US << step, count(step)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_may_be_sent_twice() {
        let stats = Stats::default();
        let in_a_row = |now_s| (0..).take_while(|_| stats.may_retry(now_s)).count();
        assert_eq!(in_a_row(100), 256);
        for _ in 0..500 {
            stats.note(200, 0, Duration::ZERO);
        }
        assert_eq!(in_a_row(109), 100);
        assert_eq!(in_a_row(110), 256);
        // A clock that was set back is no reason to wait for it.
        assert_eq!(in_a_row(50), 256);
    }

    #[test]
    fn times_fall_into_steps_that_double() {
        let stats = Stats::default();
        assert_eq!(stats.within_us(500), None);
        for us in [0, 255, 256, 511, 512, 1_000_000, 3_600_000_000] {
            stats.note(200, 1, Duration::from_micros(us));
        }
        let filled: Vec<(u64, u64)> = stats
            .histogram()
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(
            filled,
            [
                (256, 2),
                (512, 2),
                (1024, 1),
                (256 << 12, 1),
                (256 << 19, 1)
            ]
        );
        assert_eq!(stats.within_us(500), Some(512));
        assert_eq!(stats.answers(), [0, 0, 7, 0, 0, 0]);
        assert_eq!(stats.bytes(), 7);
    }
}
