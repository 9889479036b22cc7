//! What a route has answered, since the gateway began: counts by kind, and how long it took.

use std::sync::atomic::{AtomicU64, Ordering};
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
