//! The judge against made-up visitors: 200 requests a second, one of twenty for the canary, a look every second.

use super::*;

/// SplitMix64: the same numbers for the same seed, everywhere.
struct Chance(u64);

impl Chance {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// In [0, 1).
    fn part(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A time with a long tail, in microseconds: the median is given.
    fn time(&mut self, median_us: f64) -> u64 {
        let bell: f64 = (0..6).map(|_| self.part()).sum::<f64>() - 3.0;
        (median_us * (bell * 0.8).exp()) as u64
    }
}

fn settings() -> Canary {
    Canary {
        variant: None,
        steps: vec![5, 25, 100],
        every: Duration::from_secs(60),
        header: None,
        cookie: None,
        min_requests: 200,
        errors: 100,
        latency: 150,
    }
}

/// How a release does: the part that fails, and its median time.
#[derive(Clone, Copy)]
struct Does(f64, f64);

fn note(counts: &mut Counts, does: Does, chance: &mut Chance) {
    counts.requests += 1;
    counts.errors += u64::from(chance.part() < does.0);
    counts.times.resize(BUCKETS, 0);
    counts.times[bucket(chance.time(does.1))] += 1;
}

/// Runs a whole canary; its end and after how many seconds.
fn run(canary: &Canary, stable: Does, new: Does, seed: u64) -> (Verdict, u64) {
    let mut chance = Chance(seed);
    let (mut second, mut last) = (0, Verdict::Hold(String::new()));
    for step in 0..canary.trials() {
        let share = f64::from(canary.share(step)) / 100.0;
        let (mut old_counts, mut new_counts) = (Counts::default(), Counts::default());
        for elapsed in 1..=600 {
            second += 1;
            for _ in 0..200 {
                if chance.part() < share {
                    note(&mut new_counts, new, &mut chance);
                } else {
                    note(&mut old_counts, stable, &mut chance);
                }
            }
            let look = Look {
                elapsed: Duration::from_secs(elapsed),
                stable: &old_counts,
                canary: &new_counts,
            };
            last = judge(canary, &look);
            match &last {
                Verdict::Hold(_) => {}
                Verdict::Promote(_) => break,
                Verdict::RollBack(_) => return (last, second),
            }
        }
    }
    (last, second)
}

const SEEDS: u64 = 200;

#[test]
fn one_that_fails_3_percent_is_rolled_back_within_a_minute() {
    let mut longest = 0;
    for seed in 0..SEEDS {
        let (end, second) = run(&settings(), Does(0.0, 5e3), Does(0.03, 5e3), seed);
        assert!(matches!(end, Verdict::RollBack(_)), "seed {seed}: {end:?}");
        assert!(second <= 60, "seed {seed}: after {second} s");
        longest = longest.max(second);
    }
    assert!(longest > 5, "nothing is decided by one or two failures");
}

#[test]
fn one_that_fails_much_is_rolled_back_within_seconds() {
    for seed in 0..SEEDS {
        let (end, second) = run(&settings(), Does(0.001, 5e3), Does(0.5, 5e3), seed);
        assert!(matches!(end, Verdict::RollBack(_)), "seed {seed}: {end:?}");
        assert!(second <= 5, "seed {seed}: after {second} s");
    }
}

#[test]
fn one_that_is_merely_new_is_promoted_however_many_requests_fail() {
    for failing in [0.0, 0.001, 0.01, 0.05] {
        let does = Does(failing, 20e3);
        for seed in 0..SEEDS {
            let (end, second) = run(&settings(), does, does, 1000 + seed);
            let what = format!("{failing}, seed {seed}, after {second} s: {end:?}");
            assert!(matches!(end, Verdict::Promote(_)), "{what}");
        }
    }
}

#[test]
fn one_that_is_slower_than_it_may_is_rolled_back_when_the_step_ends() {
    for seed in 0..50 {
        let (end, second) = run(&settings(), Does(0.0, 50e3), Does(0.0, 200e3), seed);
        assert!(matches!(end, Verdict::RollBack(_)), "seed {seed}: {end:?}");
        assert_eq!(second, 60, "seed {seed}");
    }
    // A little slower, and little in milliseconds, is neither here nor there.
    for (stable, new) in [(50e3, 55e3), (2e3, 8e3)] {
        let (end, _) = run(&settings(), Does(0.0, stable), Does(0.0, new), 7);
        assert!(matches!(end, Verdict::Promote(_)), "{end:?}");
    }
}

#[test]
fn a_moment_in_which_it_stalled_is_no_slowness() {
    let slow = |requests: u64, slow: u64| {
        let mut counts = counts(requests, 0);
        counts.times[bucket(5_000)] -= slow;
        counts.times[bucket(150_000)] += slow;
        counts
    };
    let judged = |stalled: u64| {
        let look = Look {
            elapsed: Duration::from_secs(90),
            stable: &slow(250, 0),
            canary: &slow(250, stalled),
        };
        judge(&settings(), &look)
    };
    assert!(!matches!(judged(20), Verdict::RollBack(_)));
    assert!(matches!(judged(200), Verdict::RollBack(_)));
}

fn counts(requests: u64, errors: u64) -> Counts {
    let mut times = vec![0; BUCKETS];
    times[bucket(5_000)] = requests;
    Counts {
        requests,
        errors,
        times,
    }
}

fn judged(canary: (u64, u64), stable: (u64, u64), elapsed_s: u64) -> Verdict {
    let look = Look {
        elapsed: Duration::from_secs(elapsed_s),
        stable: &counts(stable.0, stable.1),
        canary: &counts(canary.0, canary.1),
    };
    judge(&settings(), &look)
}

#[test]
fn too_little_is_known_of_what_few_ask_for() {
    let held = |verdict: Verdict| match verdict {
        Verdict::Hold(why) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        held(judged((40, 0), (3960, 0), 20)),
        "this step lasts another 40s"
    );
    assert_eq!(
        held(judged((12, 0), (500, 0), 90)),
        "it has had 12 of the 200 requests that are needed to compare"
    );
    assert_eq!(
        held(judged((300, 0), (0, 0), 90)),
        "the stable release has had 0 of the 200 requests that are needed to compare"
    );
    // Two failures may have been anything, three of so few are more than is allowed and no proof.
    assert!(matches!(
        judged((300, 2), (5700, 0), 90),
        Verdict::Promote(_)
    ));
    let doubt = held(judged((210, 3), (3990, 0), 90));
    assert!(doubt.ends_with("which may be chance"), "{doubt}");
}

#[test]
fn where_any_requests_will_do_none_may_have_failed_of_few() {
    let any = Canary {
        min_requests: 0,
        ..settings()
    };
    let judged = |new: (u64, u64), old: (u64, u64)| {
        let (canary, stable) = (counts(new.0, new.1), counts(old.0, old.1));
        let look = Look {
            elapsed: Duration::from_secs(90),
            stable: &stable,
            canary: &canary,
        };
        judge(&any, &look)
    };
    for (new, old) in [
        ((1, 1), (0, 0)),
        ((5, 1), (95, 0)),
        ((199, 2), (5000, 0)),
        // However many: there is nothing to compare them with.
        ((5000, 5000), (0, 0)),
    ] {
        match judged(new, old) {
            Verdict::Hold(why) => assert!(why.contains("of its requests failed"), "{why}"),
            other => panic!("{new:?}, {old:?}: {other:?}"),
        }
    }
    for (new, old) in [((0, 0), (0, 0)), ((5, 0), (95, 0)), ((101, 1), (50, 0))] {
        let verdict = judged(new, old);
        assert!(matches!(verdict, Verdict::Promote(_)), "{verdict:?}");
    }
}

#[test]
fn the_strongest_of_several_doubts_is_the_one_that_counts() {
    // Three failures say little; that it is slower says more.
    let mut canary = counts(250, 3);
    let mut stable = counts(4750, 0);
    let slow = |counts: &mut Counts, number: u64| {
        counts.times[bucket(5_000)] -= number;
        counts.times[bucket(150_000)] += number;
    };
    slow(&mut canary, 20);
    slow(&mut stable, 10);
    let look = Look {
        elapsed: Duration::from_secs(90),
        stable: &stable,
        canary: &canary,
    };
    let all = [
        failures(&settings(), &look),
        slowness(&settings(), &look, 95),
    ];
    let [Some(fails), Some(slows)] = &all else {
        panic!("both speak against it");
    };
    let wanted = fails.evidence.max(slows.evidence);
    for order in [[fails, slows], [slows, fails]] {
        let found = strongest(order.into_iter()).expect("one of them");
        assert!(found.evidence >= wanted, "{}", found.what);
    }
}

#[test]
fn what_is_as_bad_on_both_sides_is_nobodys_fault() {
    let verdict = judged((1000, 500), (19_000, 9_500), 90);
    assert!(matches!(verdict, Verdict::Promote(_)), "{verdict:?}");
    let verdict = judged((1000, 0), (19_000, 9_500), 90);
    assert!(matches!(verdict, Verdict::Promote(_)), "{verdict:?}");
}

#[test]
fn buckets_bound_what_is_in_them() {
    for us in [0, 1, 100, 101, 118, 5_000, 123_456, 60_000_000] {
        let bucket = bucket(us);
        assert!(us <= bound_us(bucket) + 1, "{us}");
        assert!(bucket == 0 || us + 1 >= bound_us(bucket - 1), "{us}");
    }
    assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    assert_eq!(Counts::default().within_us(95), None);
}

proptest::proptest! {
    #[test]
    fn no_counts_make_it_panic(
        new in (0_u64..1 << 40, 0_u64..1 << 40),
        old in (0_u64..1 << 40, 0_u64..1 << 40),
        elapsed in 0_u64..1_000_000,
    ) {
        let new = (new.0.max(new.1), new.1);
        let old = (old.0.max(old.1), old.1);
        let _ = judged(new, old, elapsed);
        proptest::prop_assert!(!evidence((new.1, new.0), (old.1, old.0)).is_nan());
    }
}
