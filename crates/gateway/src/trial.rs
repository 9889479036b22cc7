//! A new release on trial: which visitors get it, and how both releases do.
//!
//! A visitor has one of 65,536 places, which a cookie remembers; the canary has a row of them, as long as its share. So
//! who got it gets it again, also when the share grows; another canary has another row, and other visitors. New visitors
//! are given places by turns of the golden ratio, which fill every row evenly however few they are.
//!
//! Who comes again gets the same release again: whoever's requests always fail, whichever release has them, fails for one
//! side only. So of a place that was there before, one failure counts and few times do. Testers, and what one release
//! answers in the other's place, do not count at all. Of an A/B test, which nobody judges, every request counts.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hutong_core::canary::{BUCKETS, BURST, bucket};
use hutong_http::request::RequestHead;
use hutong_ipc::gateway::{Counts, Split, Trial as Report};

use crate::cookies;
use crate::visitor::Peer;

const COOKIE: &str = "hutong-canary";
/// Another one, because it lasts: who had a canary's keeps that only until the browser is closed, and would be told no other.
const VARIANT_COOKIE: &str = "hutong-variant";
/// 30 days, in seconds.
const MONTH_S: u32 = 30 * 86_400;
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

/// A visitor's place among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    at: u16,
    /// It was given for this request, and may be for this one only.
    is_new: bool,
}

/// What was chosen for a request, and the cookie to be said with its answer.
#[derive(Debug)]
pub struct Choice {
    pub side: Side,
    /// None of a tester, who chose for himself.
    pub place: Option<Place>,
    pub cookie: Option<String>,
}

/// Of each place: the highest bit once a request of it failed, below that how many of its times were taken.
const FAILED: u8 = 0x80;
/// So many times of a place are taken: as many as count as one (`hutong_core::canary::BURST`).
const TIMES: u8 = BURST as u8;

/// One step of a canary: with another share another one begins.
pub struct Trial {
    split: Split,
    began: Instant,
    stable: Outcomes,
    canary: Outcomes,
    /// By place.
    marks: Box<[AtomicU8]>,
}

impl Trial {
    pub fn new(split: Split) -> Self {
        Trial {
            split,
            began: Instant::now(),
            stable: Outcomes::new(),
            canary: Outcomes::new(),
            marks: (0..=u16::MAX).map(|_| AtomicU8::new(0)).collect(),
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
                place: None,
                cookie: None,
            };
        }
        let known = remembered(head, self.cookie_name());
        let at = known.unwrap_or_else(|| *place.get_or_insert_with(next_place));
        let is_new = known.is_none();
        // Another app keeps no cookies.
        let is_told = is_new && peer.link.is_none() && self.split.share < 100;
        Choice {
            side: self.side_at(at),
            place: Some(Place { at, is_new }),
            cookie: is_told.then(|| self.cookie(at, peer)),
        }
    }

    fn cookie_name(&self) -> &'static str {
        match self.split.for_people {
            true => VARIANT_COOKIE,
            false => COOKIE,
        }
    }

    fn cookie(&self, at: u16, peer: &Peer) -> String {
        let cookie = cookies::set(self.cookie_name(), &format!("{at:04x}"), peer);
        match self.split.for_people {
            // A test of two variants goes on for days.
            true => format!("{cookie}; Max-Age={MONTH_S}"),
            false => cookie,
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

    /// How a request of a place went at an instance, and how long it took until the answer began, if it did.
    pub fn note(&self, place: Place, deployment: u64, good: bool, took: Option<Duration>) {
        let side = self.side_of(deployment);
        if side != self.side_at(place.at) {
            return;
        }
        let outcomes = match side {
            Side::Stable => &self.stable,
            Side::Canary => &self.canary,
        };
        if self.split.for_people {
            return outcomes.note(good, took);
        }
        let mark = &self.marks[usize::from(place.at)];
        if !good {
            let before = mark.fetch_or(FAILED, Ordering::Relaxed);
            if !place.is_new && before & FAILED != 0 {
                return;
            }
        }
        let takes_one_more = || {
            let more = |mark: u8| (mark & !FAILED < TIMES).then_some(mark + 1);
            let order = Ordering::Relaxed;
            mark.fetch_update(order, order, more).is_ok()
        };
        let took = took.filter(|_| place.is_new || takes_one_more());
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

fn remembered(head: &RequestHead, name: &str) -> Option<u16> {
    let said = cookies::find(head, name).filter(|value| value.len() == 4)?;
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
    use hutong_core::canary::{Canary, Counts as Counted, Look, Verdict, judge};
    use hutong_http::request::Scan;

    fn trial(canary: u64, share: u32) -> Trial {
        let pair = |name: &str| Some((name.to_owned(), "me".to_owned()));
        Trial::new(Split {
            canary,
            share,
            header: pair("x-try"),
            cookie: pair("try"),
            for_people: false,
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
            assert_eq!(remembered(&cookie, COOKIE), Some(place));
            assert_eq!(remembered(&cookie, VARIANT_COOKIE), None);
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
            assert_eq!(remembered(&said, COOKIE), None, "{odd}");
        }
    }

    #[test]
    fn both_are_counted_apart() {
        let trial = trial(7, 5);
        let new = new_on(&trial, Side::Canary);
        trial.note(new, 7, false, None);
        trial.note(new, 7, true, Some(Duration::from_millis(3)));
        let old = new_on(&trial, Side::Stable);
        trial.note(old, 6, true, Some(Duration::from_micros(90)));
        trial.note(old, 0, true, None);
        // Answered by the other one, which is not what was chosen.
        trial.note(new, 6, false, None);
        trial.note(old, 7, false, None);
        let Report { stable, tried, .. } = trial.report();
        assert_eq!((tried.requests, tried.errors), (2, 1));
        assert_eq!((stable.requests, stable.errors), (2, 0));
        assert_eq!((stable.times[0], tried.times[bucket(3_000)]), (1, 1));
    }

    #[test]
    fn who_comes_again_fails_once_and_is_slow_once() {
        let trial = trial(7, 5);
        let slow = Some(Duration::from_secs(3));
        let new = new_on(&trial, Side::Canary);
        let known = Place {
            is_new: false,
            ..new
        };
        trial.note(new, 7, false, slow);
        for _ in 0..50 {
            trial.note(known, 7, false, slow);
        }
        let Report { tried, .. } = trial.report();
        assert_eq!((tried.requests, tried.errors), (1, 1));
        // What goes well counts each time.
        for _ in 0..50 {
            trial.note(known, 7, true, slow);
        }
        let Report { tried, .. } = trial.report();
        assert_eq!((tried.requests, tried.errors), (51, 1));
        assert_eq!(tried.times.iter().sum::<u64>(), 1 + u64::from(TIMES));
        // Whoever keeps no cookies comes to have a place that somebody had before.
        trial.note(new, 7, false, slow);
        let Report { tried, .. } = trial.report();
        assert_eq!((tried.requests, tried.errors), (52, 2));
        assert_eq!(tried.times.iter().sum::<u64>(), 2 + u64::from(TIMES));
    }

    #[test]
    fn for_people_every_request_counts() {
        let mut trial = trial(7, 5);
        trial.split.for_people = true;
        let slow = Some(Duration::from_secs(3));
        let known = Place {
            is_new: false,
            ..new_on(&trial, Side::Canary)
        };
        for _ in 0..50 {
            trial.note(known, 7, false, slow);
        }
        // Answered by the other one.
        trial.note(known, 6, false, slow);
        let Report { stable, tried, .. } = trial.report();
        assert_eq!((tried.requests, tried.errors), (50, 50));
        assert_eq!(tried.times.iter().sum::<u64>(), 50);
        assert_eq!(stable.requests, 0);
    }

    fn new_on(trial: &Trial, side: Side) -> Place {
        let is_its = |at: &u16| trial.side_at(*at) == side;
        let at = (0..=u16::MAX).find(is_its).expect("one of them");
        Place { at, is_new: true }
    }

    /// SplitMix64: the same numbers for the same seed, everywhere.
    struct Chance(u64);

    impl Chance {
        fn number(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(GOLDEN);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            mixed ^ (mixed >> 31)
        }

        /// In [0, 1).
        fn part(&mut self) -> f64 {
            (self.number() >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    struct Visitor {
        place: Place,
        /// Whichever release has them.
        always_fails: bool,
    }

    /// A whole canary before 1,000 visitors who keep their cookies and ask 200 times a second: one part of them fails
    /// always, and of the canary's requests another part does.
    fn run(always_fails: f64, canary_fails: f64, seed: u64) -> (Verdict, u64) {
        let settings = Canary {
            variant: None,
            steps: vec![5, 25, 100],
            every: Duration::from_secs(60),
            header: None,
            cookie: None,
            min_requests: 200,
            errors: 100,
            latency: 150,
        };
        let mut chance = Chance(seed);
        let mut visitors: Vec<Visitor> = (0..1000)
            .map(|_| Visitor {
                place: Place {
                    at: (chance.number() >> 48) as u16,
                    is_new: true,
                },
                always_fails: chance.part() < always_fails,
            })
            .collect();
        let (mut second, mut last) = (0, Verdict::Hold(String::new()));
        for step in 0..settings.trials() {
            let trial = trial(7, settings.share(step));
            for elapsed in 1..=300 {
                second += 1;
                for _ in 0..200 {
                    let index = (chance.part() * visitors.len() as f64) as usize;
                    let visitor = &mut visitors[index];
                    let side = trial.side_at(visitor.place.at);
                    let is_bad = side == Side::Canary && chance.part() < canary_fails;
                    let deployment = if side == Side::Canary { 7 } else { 6 };
                    let good = !visitor.always_fails && !is_bad;
                    trial.note(visitor.place, deployment, good, None);
                    visitor.place.is_new = false;
                }
                let counts = |counts: &Counts| Counted {
                    requests: counts.requests,
                    errors: counts.errors,
                    times: counts.times.clone(),
                };
                let report = trial.report();
                let look = Look {
                    elapsed: Duration::from_secs(elapsed),
                    stable: &counts(&report.stable),
                    canary: &counts(&report.tried),
                };
                last = judge(&settings, &look);
                match &last {
                    Verdict::Hold(_) => {}
                    Verdict::Promote(_) => break,
                    Verdict::RollBack(_) => return (last, second),
                }
            }
        }
        (last, second)
    }

    #[test]
    fn visitors_for_whom_nothing_works_are_nobodys_fault() {
        for always_fails in [0.01, 0.02, 0.05] {
            let is_wrong = |seed: &u64| {
                let (end, _) = run(always_fails, 0.0, *seed);
                matches!(end, Verdict::RollBack(_))
            };
            let wrong: Vec<u64> = (0..100).filter(is_wrong).collect();
            assert!(wrong.len() <= 1, "{always_fails}: {wrong:?}");
        }
    }

    #[test]
    fn one_that_is_worse_for_everybody_is_found_out_all_the_same() {
        for seed in 0..50 {
            let (end, second) = run(0.01, 0.05, seed);
            assert!(matches!(end, Verdict::RollBack(_)), "seed {seed}: {end:?}");
            assert!(second <= 120, "seed {seed}: after {second} s");
        }
    }
}
