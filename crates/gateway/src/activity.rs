//! Whether anybody asks for an app that may sleep. Requests count while they are under way, WebSockets for as long as
//! they are open; what the app's limits or its password keep out does not.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// How often control is told again that a sleeping app is wanted: it may be restarting.
const ASK_AGAIN_MS: u64 = 500;

pub struct Activity {
    under_way: AtomicUsize,
    /// When the last request ended.
    last_ms: AtomicU64,
    after_ms: AtomicU64,
    /// When control was last told that the app is wanted.
    asked_ms: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Activity {
            under_way: AtomicUsize::new(0),
            last_ms: AtomicU64::new(now_ms()),
            after_ms: AtomicU64::new(u64::MAX),
            asked_ms: AtomicU64::new(0),
        }
    }
}

/// A request; over when dropped.
pub struct UnderWay(Arc<Activity>);

impl Activity {
    pub fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        UnderWay(self.clone())
    }

    pub fn sleep_after_ms(&self, ms: u64) {
        self.after_ms.store(ms, Ordering::Relaxed);
    }

    pub fn is_used(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) > 0
    }

    /// Nobody has asked for the app for so long that it may sleep.
    pub fn is_idle(&self) -> bool {
        let after = self.after_ms.load(Ordering::Relaxed);
        let since = || now_ms().saturating_sub(self.last_ms.load(Ordering::SeqCst));
        self.under_way.load(Ordering::SeqCst) == 0 && since() >= after
    }

    /// Somebody waits for the app: whether control is to be told now.
    pub fn is_to_be_told(&self) -> bool {
        let now = now_ms();
        let last = self.asked_ms.load(Ordering::SeqCst);
        now.saturating_sub(last) >= ASK_AGAIN_MS
            && self
                .asked_ms
                .compare_exchange(last, now, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // First the time: whoever sees that nothing is under way sees when it was.
        self.0.last_ms.store(now_ms(), Ordering::SeqCst);
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Milliseconds since this process began to ask, and so many that everything can be long ago.
fn now_ms() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed().as_millis() as u64 + ASK_AGAIN_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_what_nobody_asks_for() {
        let activity = Arc::new(Activity::default());
        assert!(!activity.is_idle());
        activity.sleep_after_ms(0);
        assert!(activity.is_idle());
        let request = activity.begin();
        assert!(!activity.is_idle());
        drop(request);
        assert!(activity.is_idle());
        activity.sleep_after_ms(3_600_000);
        assert!(!activity.is_idle());
    }

    #[test]
    fn many_ask_once() {
        let activity = Activity::default();
        let told = (0..100).filter(|_| activity.is_to_be_told()).count();
        assert_eq!(told, 1);
    }
}
