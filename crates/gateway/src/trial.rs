//! A new release on trial: which visitors get it, and how both releases do.
//!
//! A visitor has one of 65,536 places, which a cookie remembers; the canary has a row of them, as long as its share. So
//! who got it gets it again, also when the share grows; another canary has another row, and other visitors. New visitors
//! are given places by turns of the golden ratio, which fill every row evenly however few they are.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hutong_core::canary::{BUCKETS, bucket};
use hutong_http::request::RequestHead;
use hutong_ipc::gateway::{Counts, Split, Trial as Report};

use crate::cookies;
use crate::visitor::Peer;

const COOKIE: &str = "hutong-canary";
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

thread_local! {
    // Each worker begins elsewhere: the first visitors are not always the same ones.
    static TURN: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish());
}

/// Which release a visitor gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Stable,
    Canary,
}

/// What was chosen for a request, and the cookie to be said with its answer.
#[derive(Debug)]
pub struct Choice {
    pub side: Side,
    pub cookie: Option<String>,
}

/// One step of a canary: with another share another one begins.
pub struct Trial {
    split: Split,
    began: Instant,
    stable: Outcomes,
    canary: Outcomes,
}

impl Trial {
    pub fn new(split: Split) -> Self {
        Trial {
            split,
            began: Instant::now(),
            stable: Outcomes::new(),
            canary: Outcomes::new(),
        }
    }

    /// Whether it is this one that a table means.
    pub fn is(&self, split: &Split) -> bool {
        self.split == *split
    }

    pub fn side_of(&self, deployment: u64) -> Side {
        match deployment == self.split.canary {
            true => Side::Canary,
            false => Side::Stable,
        }
    }

    /// Chooses for a request. `place` is that of a visitor who brings none: the same while the request waits.
    pub fn choose(&self, peer: &Peer, head: &RequestHead, place: &mut Option<u16>) -> Choice {
        if self.is_tester(head) {
            return Choice {
                side: Side::Canary,
                cookie: None,
            };
        }
        let known = remembered(head);
        let place = known.unwrap_or_else(|| *place.get_or_insert_with(next_place));
        // Another app keeps no cookies.
        let is_told = known.is_none() && peer.link.is_none() && self.split.share < 100;
        Choice {
            side: self.side_at(place),
            cookie: is_told.then(|| cookies::set(COOKIE, &format!("{place:04x}"), peer)),
        }
    }

    fn is_tester(&self, head: &RequestHead) -> bool {
        let by_header = self.split.header.as_ref().is_some_and(|(name, value)| {
            head.fields.iter().any(|field| {
                field.name.eq_ignore_ascii_case(name.as_bytes()) && field.value == value.as_bytes()
            })
        });
        let by_cookie = |(name, value): &(String, String)| {
            cookies::find(head, name).is_some_and(|found| found == value.as_bytes())
        };
        by_header || self.split.cookie.as_ref().is_some_and(by_cookie)
    }

    fn side_at(&self, place: u16) -> Side {
        let row = (self.split.canary.wrapping_mul(GOLDEN) >> 48) as u16;
        let at = u64::from(place.wrapping_sub(row));
        match at * 100 < u64::from(self.split.share) << 16 {
            true => Side::Canary,
            false => Side::Stable,
        }
    }

    /// How a request went at an instance, and how long it took until the answer began, if it did.
    pub fn note(&self, deployment: u64, good: bool, took: Option<Duration>) {
        let outcomes = match self.side_of(deployment) {
            Side::Stable => &self.stable,
            Side::Canary => &self.canary,
        };
        outcomes.note(good, took);
    }

    pub fn report(&self) -> Report {
        Report {
            canary: self.split.canary,
            share: self.split.share,
            elapsed_ms: self.began.elapsed().as_millis() as u64,
            stable: self.stable.counts(),
            tried: self.canary.counts(),
        }
    }
}

fn remembered(head: &RequestHead) -> Option<u16> {
    let said = cookies::find(head, COOKIE).filter(|value| value.len() == 4)?;
    u16::from_str_radix(std::str::from_utf8(said).ok()?, 16).ok()
}

fn next_place() -> u16 {
    let turn = TURN.with(|turn| turn.replace(turn.get().wrapping_add(1)));
    (turn.wrapping_mul(GOLDEN) >> 48) as u16
}

struct Outcomes {
    requests: AtomicU64,
    errors: AtomicU64,
    times: [AtomicU64; BUCKETS],
}

impl Outcomes {
    fn new() -> Self {
        Outcomes {
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            times: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn note(&self, good: bool, took: Option<Duration>) {
        // Whoever reads them the other way round never sees more errors than requests.
        self.requests.fetch_add(1, Ordering::SeqCst);
        if !good {
            self.errors.fetch_add(1, Ordering::SeqCst);
        }
        if let Some(took) = took {
            let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.times[bucket(us)].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counts(&self) -> Counts {
        let errors = self.errors.load(Ordering::SeqCst);
        Counts {
            requests: self.requests.load(Ordering::SeqCst),
            errors,
            times: self
                .times
                .iter()
                .map(|count| count.load(Ordering::Relaxed))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_http::request::Scan;

    fn trial(canary: u64, share: u32) -> Trial {
        let pair = |name: &str| Some((name.to_owned(), "me".to_owned()));
        Trial::new(Split {
            canary,
            share,
            header: pair("x-try"),
            cookie: pair("try"),
        })
    }

    fn head(more: &str) -> RequestHead {
        let mut head = RequestHead::default();
        let text = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{more}\r\n");
        head.parse(text.as_bytes(), &mut Scan::default())
            .expect("sound");
        head
    }

    #[test]
    fn each_share_is_kept_to_however_few_they_are() {
        for share in [1, 5, 25, 50, 99] {
            for canary in 1..50 {
                let trial = trial(canary, share);
                let is_canary = |_: &u32| trial.side_at(next_place()) == Side::Canary;
                let found = (0..1000).filter(is_canary).count();
                let wanted = share as usize * 10;
                assert!(found.abs_diff(wanted) <= 5, "{canary}: {found} of {wanted}");
            }
        }
        let all = trial(3, 100);
        assert!((0..=u16::MAX).all(|place| all.side_at(place) == Side::Canary));
    }

    #[test]
    fn who_got_it_gets_it_again_also_when_there_are_more() {
        let (few, many) = (trial(7, 5), trial(7, 25));
        let mut moved = 0;
        for place in 0..=u16::MAX {
            let cookie = head(&format!("Cookie: a=b; {COOKIE}={place:04x}\r\n"));
            assert_eq!(remembered(&cookie), Some(place));
            if few.side_at(place) == Side::Canary {
                assert_eq!(many.side_at(place), Side::Canary);
                moved += 1;
            }
        }
        assert!((3270..3290).contains(&moved), "{moved}");
        // The next release is tried by others.
        let next = trial(8, 5);
        let both = |place: &u16| {
            few.side_at(*place) == Side::Canary && next.side_at(*place) == Side::Canary
        };
        assert_eq!((0..=u16::MAX).filter(both).count(), 0);
    }

    #[test]
    fn testers_say_who_they_are() {
        let trial = trial(7, 1);
        assert!(trial.is_tester(&head("X-Try: me\r\n")));
        assert!(trial.is_tester(&head("Cookie: a=b; try=me\r\n")));
        for nobody in [
            "X-Try: you\r\n",
            "Cookie: try=\r\n",
            "Cookie: retry=me\r\n",
            "",
        ] {
            assert!(!trial.is_tester(&head(nobody)), "{nobody}");
        }
        for odd in ["xyz", "12345", "", "g000"] {
            let said = head(&format!("Cookie: {COOKIE}={odd}\r\n"));
            assert_eq!(remembered(&said), None, "{odd}");
        }
    }

    #[test]
    fn both_are_counted_apart() {
        let trial = trial(7, 5);
        trial.note(7, false, None);
        trial.note(7, true, Some(Duration::from_millis(3)));
        trial.note(6, true, Some(Duration::from_micros(90)));
        trial.note(0, true, None);
        let Report { stable, tried, .. } = trial.report();
        assert_eq!((tried.requests, tried.errors), (2, 1));
        assert_eq!((stable.requests, stable.errors), (2, 0));
        assert_eq!((stable.times[0], tried.times[bucket(3_000)]), (1, 1));
    }
}
