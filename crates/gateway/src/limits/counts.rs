//! How much each client has open at once. The memory is that of what is open, which has bounds of its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Workers seldom wait for each other.
const SHARDS: usize = 64;

pub struct Counts([Mutex<HashMap<u64, u32>>; SHARDS]);

/// One of a client's; given back when dropped.
pub struct Held {
    counts: Arc<Counts>,
    key: u64,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

impl Default for Counts {
    fn default() -> Self {
        Counts(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Counts {
    /// One more of `key`'s, unless it has `most` already. Keys are those of [`super::buckets::Keys`].
    pub fn take(self: &Arc<Self>, key: u64, most: u32) -> Option<Held> {
        let mut shard = self.shard(key);
        let count = shard.entry(key).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        drop(shard);
        let counts = self.clone();
        Some(Held { counts, key })
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, HashMap<u64, u32>> {
        let shard = &self.0[key as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.counts.shard(self.key).entry(self.key) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_so_many_and_gives_them_back() {
        let counts = Arc::new(Counts::default());
        let mut held: Vec<Held> = (0..3).filter_map(|_| counts.take(7, 3)).collect();
        assert_eq!(held.len(), 3);
        assert!(counts.take(7, 3).is_none());
        held.pop();
        assert!(counts.take(7, 3).is_some());
        drop(held);
        assert!((0..SHARDS as u64).all(|key| counts.shard(key).is_empty()));
    }

    #[test]
    fn many_others_are_in_nobody_s_way() {
        let counts = Arc::new(Counts::default());
        let held: Vec<Held> = (0..32_768).filter_map(|n| counts.take(n, 1)).collect();
        assert_eq!(held.len(), 32_768);
        assert!((0..32_768).all(|n| counts.take(n, 1).is_none()));
        assert!(counts.take(32_768, 1).is_some());
    }
}
