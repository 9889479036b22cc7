//! When a thing that keeps failing is tried again: 0, 1, 2, 4 … 60 s after its last failure.

use std::time::Duration;

/// The pause behind the `failures`-th failure in a row.
pub fn pause(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::from_millis(200),
        n => Duration::from_secs(1 << (n - 2).min(6)).min(Duration::from_secs(60)),
    }
}

/// An instance that ran this long before it ended starts the count anew, as with Docker's restart policies.
pub const STEADY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let pauses: Vec<u64> = (1..=10).map(|n| pause(n).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
