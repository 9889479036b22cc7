//! Requests that wait because all targets have as many as they may: what matters most goes first, and is
//! turned away last; among equals whoever came first. One line per app, for all workers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hutong_ipc::gateway::Class;
use tokio::sync::Notify;

const CLASSES: usize = 3;

#[derive(Default)]
pub struct Queue {
    line: Mutex<Line>,
    /// How many wait, for those who only want to know.
    waiting: [AtomicUsize; CLASSES],
}

/// By class, then by the order of coming.
#[derive(Default)]
struct Line {
    classes: [BTreeMap<u64, Arc<Notify>>; CLASSES],
    last: u64,
}

impl Line {
    /// Whose turn it is.
    fn first(&self) -> Option<(usize, u64, &Arc<Notify>)> {
        (0..CLASSES).rev().find_map(|class| {
            let (number, turn) = self.classes[class].first_key_value()?;
            Some((class, *number, turn))
        })
    }

    fn call_first(&self) {
        if let Some((_, _, turn)) = self.first() {
            turn.notify_one();
        }
    }

    fn len(&self) -> usize {
        self.classes.iter().map(BTreeMap::len).sum()
    }
}

impl Queue {
    /// One target has room again: the first in line tries.
    pub fn a_place_is_free(&self) {
        if self.len() > 0 {
            self.line().call_first();
        }
    }

    /// A place in the line, if there is one: of `bound` places, background requests may have half, normal
    /// ones three quarters, core ones all.
    pub fn enter(self: &Arc<Self>, class: Class, bound: usize) -> Option<Waiting> {
        let share = match class {
            Class::Background => bound / 2,
            Class::Normal => bound * 3 / 4,
            Class::Core => bound,
        };
        let class = class as usize;
        let turn = Arc::new(Notify::new());
        let mut line = self.line();
        if line.len() >= share {
            return None;
        }
        line.last += 1;
        let number = line.last;
        line.classes[class].insert(number, turn.clone());
        self.waiting[class].fetch_add(1, Ordering::SeqCst);
        Some(Waiting {
            queue: self.clone(),
            class,
            number,
            turn,
        })
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

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's place; left when dropped.
pub struct Waiting {
    queue: Arc<Queue>,
    class: usize,
    number: u64,
    turn: Arc<Notify>,
}

impl Waiting {
    /// Nobody goes before it.
    pub fn is_first(&self) -> bool {
        let line = self.queue.line();
        let first = line.first();
        first.is_some_and(|(class, number, _)| (class, number) == (self.class, self.number))
    }

    /// Completes when it is first and a target may have room; a call that came before is not lost.
    pub async fn turn(&self) {
        self.turn.notified().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut line = self.queue.line();
        line.classes[self.class].remove(&self.number);
        self.queue.waiting[self.class].fetch_sub(1, Ordering::SeqCst);
        // Whether it got a place or gave up: the next one looks whether there is another.
        line.call_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Poll, Waker};

    fn is_called(waiting: &Waiting) -> bool {
        let turn = std::pin::pin!(waiting.turn());
        turn.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

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
        assert!(!queue.is_wanted(Class::Core));
        held.push(queue.enter(Class::Core, 4).expect("room"));
        assert!(queue.enter(Class::Core, 4).is_none());
        held.clear();
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn one_at_a_time_goes_in_the_order_of_coming_and_what_matters_most_before() {
        let queue = Arc::new(Queue::default());
        let enter = |class| queue.enter(class, 100).expect("room");
        let (first, second) = (enter(Class::Normal), enter(Class::Normal));
        let background = enter(Class::Background);
        assert!(first.is_first() && !second.is_first() && !background.is_first());
        queue.a_place_is_free();
        assert!(is_called(&first) && !is_called(&second));
        // It was overtaken meanwhile by what matters more, which then is called in its turn.
        let core = enter(Class::Core);
        assert!(core.is_first() && !first.is_first());
        queue.a_place_is_free();
        assert!(is_called(&core) && !is_called(&first));
        // Each that leaves, served or not, calls the next.
        drop(core);
        assert!(is_called(&first));
        drop(first);
        assert!(second.is_first() && is_called(&second) && !is_called(&background));
        drop(second);
        assert!(is_called(&background) && queue.is_wanted(Class::Background));
        assert!(!queue.is_wanted(Class::Normal));
    }

    #[test]
    fn a_call_is_not_lost_between_looking_and_waiting() {
        let queue = Arc::new(Queue::default());
        let waiting = queue.enter(Class::Normal, 4).expect("room");
        queue.a_place_is_free();
        assert!(is_called(&waiting) && !is_called(&waiting));
    }
}
