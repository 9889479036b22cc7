//! Blocks of memory that connections of a worker hand on to one another, so that an idle connection has
//! none.

use std::cell::RefCell;

/// One read from a socket, at most; a TLS record fits four times.
pub const SIZE: usize = 64 << 10;
/// Heads and small bodies.
pub const SMALL: usize = 8 << 10;
/// Blocks of each size that are kept for the next one who asks.
const KEPT: usize = 64;

thread_local! {
    static LARGE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static LITTLE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty block of [`SIZE`] or [`SMALL`] bytes.
pub fn take(size: usize) -> Vec<u8> {
    let pool = if size > SMALL { &LARGE } else { &LITTLE };
    let size = if size > SMALL { SIZE } else { SMALL };
    pool.with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| Vec::with_capacity(size))
}

/// Gives a block back; one that grew is let go.
pub fn give(mut block: Vec<u8>) {
    let pool = match block.capacity() {
        SIZE => &LARGE,
        SMALL => &LITTLE,
        _ => return,
    };
    block.clear();
    pool.with_borrow_mut(|pool| {
        if pool.len() < KEPT {
            pool.push(block);
        }
    });
}

/// What was read of a connection and not dealt with yet.
#[derive(Default)]
pub struct Input {
    bytes: Vec<u8>,
    at: usize,
}

impl Input {
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    pub fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub fn consume(&mut self, count: usize) {
        self.at = self.at.saturating_add(count).min(self.bytes.len());
    }

    /// Room for more behind what is unread: at least `size`, if nothing is.
    pub fn room(&mut self, size: usize) -> &mut Vec<u8> {
        if self.is_empty() {
            self.bytes.clear();
            self.at = 0;
            if self.bytes.capacity() < size {
                give(std::mem::replace(&mut self.bytes, take(size)));
            }
        } else if self.bytes.capacity() - self.bytes.len() < SMALL / 4 {
            self.bytes.drain(..self.at);
            self.at = 0;
            if self.bytes.capacity() - self.bytes.len() < SMALL / 4 {
                let mut larger = take(SIZE);
                larger.extend_from_slice(&self.bytes);
                give(std::mem::replace(&mut self.bytes, larger));
            }
        }
        &mut self.bytes
    }

    /// Holds no block while nothing is unread.
    pub fn rest(&mut self) {
        if self.is_empty() {
            self.at = 0;
            give(std::mem::take(&mut self.bytes));
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.bytes));
    }
}
