//! How many requests of an app may be sent once more: apps that fail under their load must not get twice as much of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

const WINDOW_S: u64 = 10;
/// In each window, whatever the load.
const ALWAYS: u64 = 256;
/// And one of so many that were sent meanwhile.
const ONE_IN: u64 = 5;

/// One app's.
#[derive(Default)]
pub struct Retries {
    sent: AtomicU64,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    began_s: u64,
    retries: u64,
    sent_before: u64,
}

impl Retries {
    /// A request was sent to an instance, whatever came of it.
    pub fn note_sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether one more may be sent again; it is counted. `now_s`: seconds on any clock.
    pub fn may(&self, now_s: u64) -> bool {
        let sent = self.sent.load(Ordering::Relaxed);
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if now_s.abs_diff(window.began_s) >= WINDOW_S {
            *window = Window {
                began_s: now_s,
                retries: 0,
                sent_before: sent,
            };
        }
        let meanwhile = sent.saturating_sub(window.sent_before);
        let may = window.retries < ALWAYS + meanwhile / ONE_IN;
        window.retries += u64::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_may_be_sent_twice() {
        let retries = Retries::default();
        let in_a_row = |now_s| (0..).take_while(|_| retries.may(now_s)).count();
        assert_eq!(in_a_row(100), 256);
        for _ in 0..500 {
            retries.note_sent();
        }
        assert_eq!(in_a_row(109), 100);
        assert_eq!(in_a_row(110), 256);
        // A clock that was set back is no reason to wait for it.
        assert_eq!(in_a_row(50), 256);
    }
}
