//! How much each client has open at once, for any number of clients in constant memory.
//!
//! A client's number stands in two cells of a table, which others may share: the smaller of the two is never
//! too small, and too large only where both are shared (a count-min sketch).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

#[derive(Debug)]
pub struct Counts(Vec<AtomicU32>);

/// One of a client's; given back when dropped.
#[derive(Debug)]
pub struct Held {
    counts: Arc<Counts>,
    cells: [usize; 2],
}

impl Counts {
    /// So many cells, of four bytes each.
    pub fn new(cells: usize) -> Self {
        // The kernel zeroes a page when it is first used.
        let zeros = vec![0_u32; cells.max(2)];
        Counts(zeros.into_iter().map(AtomicU32::new).collect())
    }

    /// One more of `key`'s, unless it has `most` already. Keys are those of [`super::buckets::Keys`].
    pub fn take(self: &Arc<Self>, key: u64, most: u32) -> Option<Held> {
        let half = self.0.len() / 2;
        let index = |hash: u32| ((u64::from(hash) * half as u64) >> u32::BITS) as usize;
        // One in each half: the two are never the same.
        let cells = [index(key as u32), half + index((key >> u32::BITS) as u32)];
        let before = cells.map(|cell| self.0[cell].fetch_add(1, Relaxed));
        let held = Held {
            counts: self.clone(),
            cells,
        };
        (before.into_iter().min() < Some(most)).then_some(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for cell in self.cells {
            self.counts.0[cell].fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::{BuildHasher, RandomState};

    #[test]
    fn each_has_so_many_and_gives_them_back() {
        let counts = Arc::new(Counts::new(1024));
        let mut held: Vec<Held> = (0..3).filter_map(|_| counts.take(7, 3)).collect();
        assert_eq!(held.len(), 3);
        assert!(counts.take(7, 3).is_none());
        assert!(counts.take(u64::MAX - 7, 3).is_some());
        held.pop();
        assert!(counts.take(7, 3).is_some());
        drop(held);
        assert!(counts.0.iter().all(|cell| cell.load(Relaxed) == 0));
    }

    #[test]
    fn many_others_are_in_nobody_s_way() {
        let counts = Arc::new(Counts::new(1 << 17));
        let hasher = RandomState::new();
        let key = |number: u32| hasher.hash_one(number);
        // As many connections as two workers take, each from elsewhere.
        let held: Vec<Held> = (0..32_768)
            .filter_map(|n| counts.take(key(n), 1024))
            .collect();
        assert_eq!(held.len(), 32_768);
        let all = |number| {
            let own: Vec<Held> = (0..1024)
                .filter_map(|_| counts.take(key(number), 1024))
                .collect();
            own.len()
        };
        // What they share with others costs a few at most.
        assert!((100_000..100_100).all(|number| all(number) > 1000));
    }
}
