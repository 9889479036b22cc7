//! How many instances an app with `[scale]` is to have. The formula is that of Kubernetes' HorizontalPodAutoscaler:
//!
//! wanted = ⌈instances × (what they have to do ÷ what they are meant to)⌉
//!
//! of the processor and of the requests under way, whichever asks for more; within 10 % of what is meant nothing
//! changes. For more instances two looks in a row must ask, and it gets at most twice as many; for fewer, every look
//! within the cooldown: the highest number that one of them asked for holds.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// Bounds and aims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// At least 1.
    pub min: u32,
    pub max: u32,
    /// How much of its processor limit an instance is meant to use, in percent.
    pub cpu: u32,
    /// How many requests under way an instance is meant to have.
    pub requests: u32,
    /// So long fewer instances must have been enough before there are fewer.
    pub cooldown: Duration,
}

impl Scale {
    pub fn bound(&self, instances: u32) -> u32 {
        instances.min(self.max).max(self.min)
    }
}

/// What the instances have to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// How much of its processor limit an instance uses, in percent; the mean of those where that is known.
    pub cpu: Option<u32>,
    /// Of how many that is known.
    pub measured: u32,
    /// Requests under way, of all instances together, and those that wait for one.
    pub requests: Option<u32>,
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.cpu, self.requests) {
            (Some(cpu), Some(requests)) => {
                write!(
                    f,
                    "CPU at {cpu} % of its limit, {requests} requests under way"
                )
            }
            (Some(cpu), None) => write!(f, "CPU at {cpu} % of its limit"),
            (None, Some(requests)) => write!(f, "{requests} requests under way"),
            (None, None) => f.write_str("what they have to do is not known yet"),
        }
    }
}

/// How many instances one look asks for, where there are to be `current`. What is not known asks for as many as there
/// are.
pub fn recommend(scale: &Scale, seen: &Observation, current: u32) -> u32 {
    let by_cpu = seen.cpu.map_or(current, |cpu| {
        let load = u64::from(cpu) * u64::from(seen.measured);
        let more = fit(load, scale.cpu, current);
        if more > current {
            return more;
        }
        // As there: one that is not measured yet does nothing where it is about more instances, and as much as it is
        // meant to where it is about fewer.
        let unknown = u64::from(current.saturating_sub(seen.measured));
        let load = load + unknown * u64::from(scale.cpu);
        fit(load, scale.cpu, current).min(current)
    });
    let by_requests = seen
        .requests
        .map_or(current, |all| fit(u64::from(all), scale.requests, current));
    scale.bound(by_cpu.max(by_requests))
}

/// How many instances bear a load of which each is meant to bear `aim`.
fn fit(load: u64, aim: u32, current: u32) -> u32 {
    let aim = u64::from(aim.max(1));
    let full = aim * u64::from(current);
    if load.abs_diff(full).saturating_mul(10) <= full {
        return current;
    }
    u32::try_from(load.div_ceil(aim)).unwrap_or(u32::MAX)
}

/// What the last looks asked for, the newest at the end.
#[derive(Clone, Debug)]
pub struct History {
    looks: VecDeque<(u64, u32)>,
}

impl History {
    /// Nobody looked yet: what there is asks for itself.
    pub fn new(current: u32, now_ms: u64) -> Self {
        History {
            looks: VecDeque::from([(now_ms, current)]),
        }
    }

    pub fn note(&mut self, scale: &Scale, asked: u32, now_ms: u64) {
        self.looks.push_back((now_ms, asked));
        // Two are needed however long ago they were.
        while self.looks.len() > 2
            && self
                .looks
                .front()
                .is_some_and(|(at, _)| is_old(scale, *at, now_ms))
        {
            self.looks.pop_front();
        }
    }
}

fn is_old(scale: &Scale, at_ms: u64, now_ms: u64) -> bool {
    at_ms + scale.cooldown.as_millis() as u64 <= now_ms
}

/// How many instances there are to be from now on, where there were to be `current`. Every time is in milliseconds of a
/// clock that nobody sets.
pub fn decide(scale: &Scale, history: &History, current: u32, now_ms: u64) -> u32 {
    let current = scale.bound(current);
    let mut newest = history
        .looks
        .iter()
        .rev()
        .map(|(_, asked)| scale.bound(*asked));
    let (Some(last), Some(before)) = (newest.next(), newest.next()) else {
        return current;
    };
    let more = last.min(before);
    if more > current {
        return more.min(current.saturating_mul(2));
    }
    let lately = history
        .looks
        .iter()
        .filter(|(at, _)| !is_old(scale, *at, now_ms));
    let highest = lately.map(|(_, asked)| scale.bound(*asked)).max();
    highest.unwrap_or(current).min(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALE: Scale = Scale {
        min: 1,
        max: 10,
        cpu: 60,
        requests: 32,
        cooldown: Duration::from_secs(60),
    };

    fn cpu(percent: u32, measured: u32) -> Observation {
        Observation {
            cpu: Some(percent),
            measured,
            requests: Some(0),
        }
    }

    fn requests(count: u32) -> Observation {
        Observation {
            cpu: Some(0),
            measured: 10,
            requests: Some(count),
        }
    }

    #[test]
    fn the_formula_is_kept_to() {
        let by_cpu = |percent, current| recommend(&SCALE, &cpu(percent, current), current);
        assert_eq!(by_cpu(93, 2), 4);
        assert_eq!(by_cpu(100, 3), 5);
        assert_eq!(by_cpu(30, 4), 2);
        assert_eq!(by_cpu(31, 4), 3);
        assert_eq!(by_cpu(0, 4), 1);
        assert_eq!(by_cpu(100, 10), 10);
        let by_requests = |count, current| recommend(&SCALE, &requests(count), current);
        assert_eq!(by_requests(64, 1), 2);
        assert_eq!(by_requests(65, 1), 3);
        assert_eq!(by_requests(0, 5), 1);
        assert_eq!(by_requests(u32::MAX, 1), 10);
        // Whichever asks for more.
        let both = Observation {
            requests: Some(200),
            ..cpu(93, 2)
        };
        assert_eq!(recommend(&SCALE, &both, 2), 7);
    }

    #[test]
    fn a_tenth_more_or_less_changes_nothing() {
        for (percent, wanted) in [(53, 9), (54, 10), (60, 10), (66, 10), (67, 12)] {
            let wide = Scale { max: 64, ..SCALE };
            let found = recommend(&wide, &cpu(percent, 10), 10);
            assert_eq!(found, wanted, "{percent} %");
        }
        for (count, wanted) in [(28, 1), (35, 1), (36, 2)] {
            assert_eq!(recommend(&SCALE, &requests(count), 1), wanted, "{count}");
        }
    }

    #[test]
    fn what_is_not_known_speaks_for_what_there_is() {
        let none = Observation::default();
        assert_eq!(recommend(&SCALE, &none, 4), 4);
        let no_requests = Observation {
            requests: None,
            ..cpu(5, 4)
        };
        assert_eq!(recommend(&SCALE, &no_requests, 4), 4);
        let only_requests = Observation {
            requests: Some(300),
            ..none
        };
        assert_eq!(recommend(&SCALE, &only_requests, 4), 10);
        // One of four is measured: it alone is no reason for more, nor for one alone.
        assert_eq!(recommend(&SCALE, &cpu(100, 1), 4), 4);
        assert_eq!(recommend(&SCALE, &cpu(0, 1), 4), 3);
        assert_eq!(recommend(&SCALE, &cpu(100, 3), 4), 5);
    }

    /// Looks every five seconds, each with what it asks for; what comes of it.
    fn run(scale: &Scale, first: u32, asked: &[u32]) -> Vec<u32> {
        let mut history = History::new(first, 0);
        let mut current = first;
        let mut now = 0;
        let mut step = |asked: &u32| {
            now += 5_000;
            history.note(scale, *asked, now);
            current = decide(scale, &history, current, now);
            current
        };
        asked.iter().map(&mut step).collect()
    }

    #[test]
    fn more_takes_two_looks_and_at_most_doubles() {
        assert_eq!(run(&SCALE, 1, &[9, 1, 9, 1]), [1, 1, 1, 1]);
        assert_eq!(run(&SCALE, 1, &[9, 9, 9, 9, 9]), [1, 2, 4, 8, 9]);
        assert_eq!(run(&SCALE, 2, &[3, 4, 4]), [2, 3, 4]);
        assert_eq!(run(&SCALE, 8, &[99, 99]), [8, 10]);
    }

    #[test]
    fn fewer_takes_a_whole_cooldown() {
        let mut asked = vec![6; 2];
        asked.extend([2; 11]);
        // Once more, and the time begins anew.
        asked.push(5);
        asked.extend([2; 12]);
        let found = run(&SCALE, 6, &asked);
        // The last that asked for six was the second, a minute before the fourteenth.
        assert_eq!(found[..13], [6; 13]);
        assert_eq!(found[13..25], [5; 12]);
        assert_eq!(found[25], 2);
        let short = Scale {
            cooldown: Duration::from_secs(5),
            ..SCALE
        };
        assert_eq!(run(&short, 3, &[1]), [1]);
    }

    #[test]
    fn bounds_hold_at_once() {
        let history = History::new(1, 0);
        let narrow = Scale {
            min: 3,
            max: 4,
            ..SCALE
        };
        assert_eq!(decide(&narrow, &history, 1, 0), 3);
        assert_eq!(decide(&narrow, &History::new(9, 0), 9, 0), 4);
        assert_eq!(run(&narrow, 4, &[1; 14]).last(), Some(&3));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut history = History::new(1, 0);
        for look in 1..1000 {
            history.note(&SCALE, 1, look * 5_000);
        }
        assert!(history.looks.len() <= 12, "{}", history.looks.len());
    }

    #[test]
    fn what_was_seen_is_said() {
        assert_eq!(
            cpu(93, 2).to_string(),
            "CPU at 93 % of its limit, 0 requests under way"
        );
    }

    proptest::proptest! {
        #[test]
        fn the_bounds_are_never_left(
            percent in proptest::option::of(0_u32..),
            measured in 0_u32..,
            requests in proptest::option::of(0_u32..),
            current in 0_u32..,
        ) {
            let seen = Observation { cpu: percent, measured, requests };
            let asked = recommend(&SCALE, &seen, current);
            proptest::prop_assert!((1..=10).contains(&asked));
        }
    }
}
