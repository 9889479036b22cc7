//! Requests that wait because all targets have as many as they may: what matters most goes first, and is
//! turned away last. One queue per app, for all workers.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hutong_ipc::gateway::Class;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

const CLASSES: usize = 3;

#[derive(Default)]
pub struct Queue {
    waiting: [AtomicUsize; CLASSES],
    places: [Arc<Notify>; CLASSES],
}

impl Queue {
    /// One target has room again: the first of the highest class tries.
    pub fn a_place_is_free(&self) {
        for class in (0..CLASSES).rev() {
            if self.waiting[class].load(Ordering::SeqCst) > 0 {
                self.places[class].notify_one();
                return;
            }
        }
    }

    /// A place in the queue, if there is one: of `bound` places, background requests may have half, normal
    /// ones three quarters, core ones all.
    pub fn enter(self: &Arc<Self>, class: Class, bound: usize) -> Option<Waiting> {
        let share = match class {
            Class::Background => bound / 2,
            Class::Normal => bound * 3 / 4,
            Class::Core => bound,
        };
        if self.len() >= share {
            return None;
        }
        let class = class as usize;
        self.waiting[class].fetch_add(1, Ordering::SeqCst);
        let mut turn = Box::pin(self.places[class].clone().notified_owned());
        turn.as_mut().enable();
        Some(Waiting {
            turn,
            queue: self.clone(),
            class,
        })
    }

    /// Whether somebody of a higher class waits.
    pub fn is_behind(&self, class: Class) -> bool {
        let higher = &self.waiting[class as usize + 1..];
        higher.iter().any(|count| count.load(Ordering::SeqCst) > 0)
    }

    /// Whether somebody waits who is to go before a newcomer of this class.
    pub fn is_wanted(&self, class: Class) -> bool {
        let not_lower = &self.waiting[class as usize..];
        not_lower
            .iter()
            .any(|count| count.load(Ordering::SeqCst) > 0)
    }

    pub fn len(&self) -> usize {
        let counts = self.waiting.iter();
        counts.map(|count| count.load(Ordering::SeqCst)).sum()
    }
}

/// A request's place; left when dropped.
pub struct Waiting {
    /// Kept while it waits, so that whoever came first goes first.
    turn: Pin<Box<OwnedNotified>>,
    queue: Arc<Queue>,
    class: usize,
}

impl Waiting {
    /// Completes when a target may have room. A missed one is made up for by looking from time to time.
    pub async fn turn(&mut self) {
        self.turn.as_mut().await;
        let place = self.queue.places[self.class].clone();
        self.turn.set(place.notified_owned());
        self.turn.as_mut().enable();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.queue.waiting[self.class].fetch_sub(1, Ordering::SeqCst);
        // Whoever leaves without a place may have been told of one.
        self.queue.a_place_is_free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn background_is_turned_away_first() {
        let queue = Arc::new(Queue::default());
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(queue.enter(Class::Background, 4).expect("room"));
        }
        assert!(queue.enter(Class::Background, 4).is_none());
        held.push(queue.enter(Class::Normal, 4).expect("room"));
        assert!(queue.enter(Class::Normal, 4).is_none());
        assert!(queue.is_behind(Class::Background));
        assert!(!queue.is_behind(Class::Core));
        held.push(queue.enter(Class::Core, 4).expect("room"));
        assert!(queue.enter(Class::Core, 4).is_none());
        held.clear();
        assert_eq!(queue.len(), 0);
    }
}
