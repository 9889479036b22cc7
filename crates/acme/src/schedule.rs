//! When a certificate is renewed, and when a failed attempt is repeated. Pure: times are Unix seconds
//! and come from the caller, chance comes from the name, so every restart finds the same plan.

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// How long to wait after the n-th failure in a row; the last step goes on for ever.
const STEPS: [u64; 6] = [
    5 * MINUTE,
    15 * MINUTE,
    HOUR,
    4 * HOUR,
    12 * HOUR,
    24 * HOUR,
];

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub not_before: u64,
    pub not_after: u64,
}

impl Life {
    fn length(self) -> u64 {
        self.not_after.saturating_sub(self.not_before)
    }

    /// After this part (in hundredths) of the life.
    fn after(self, percent: u64) -> u64 {
        // Not `length * percent`: a nonsensical certificate may be valid for ever.
        let length = self.length();
        self.not_before
            .saturating_add(length / 100 * percent + length % 100 * percent / 100)
    }
}

/// When the CA would like to see a certificate renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub start: u64,
    pub end: u64,
}

/// After two thirds of the life, up to 5 % of it earlier so that many certificates do not come at once;
/// or at a point within the CA's window, if it has one. A time in the past means: now.
pub fn renew_at(name: &str, life: Life, window: Option<Window>) -> u64 {
    match window.filter(|window| window.start < window.end) {
        Some(window) => within(name, window).min(latest(life)),
        None => ours(name, life),
    }
}

fn ours(name: &str, life: Life) -> u64 {
    let length = life.length();
    let two_thirds = life.not_before.saturating_add(length - length / 3);
    two_thirds.saturating_sub(draw(name, life.not_after, length / 20))
}

fn within(name: &str, window: Window) -> u64 {
    // Another window is another draw.
    let salt = window.start ^ window.end.rotate_left(32);
    window.start + draw(name, salt, window.end - window.start)
}

/// A CA's window may be nonsense; a certificate must not run out over it.
fn latest(life: Life) -> u64 {
    life.after(90)
}

/// When to try again after the n-th failure in a row (`failures` counts from 1). `wait`: how many
/// seconds the CA wants to be left alone; `not_after`: when the certificate in use ends, if there is
/// one. While it still lasts, no step is longer than a quarter of what is left (but an hour at least),
/// so that a short-lived certificate gets more than one attempt in its last days.
pub fn retry_at(
    name: &str,
    now: u64,
    failures: u32,
    wait: Option<u64>,
    not_after: Option<u64>,
) -> u64 {
    let index = failures.saturating_sub(1) as usize;
    let step = STEPS[index.min(STEPS.len() - 1)];
    let left = not_after.map_or(0, |end| end.saturating_sub(now));
    let step = match left {
        0 => step,
        left => step.min((left / 4).max(HOUR)),
    };
    let step = spread(name, failures, step);
    now.saturating_add(step.max(wait.unwrap_or(0)))
}

/// Plus or minus a tenth.
fn spread(name: &str, failures: u32, step: u64) -> u64 {
    let tenth = step / 10;
    step - tenth + draw(name, u64::from(failures), 2 * tenth)
}

/// A number from 0 to below `bound` (0 for 0): always the same for the same name and salt, in every
/// version of this program, which is why it is not the standard library's hash.
fn draw(name: &str, salt: u64, bound: u64) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in name.bytes().chain(salt.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // FNV's upper bits are good, its lower ones less so.
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^= hash >> 32;
    hash.checked_rem(bound).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * HOUR;
    const START: u64 = 1_767_225_600;

    fn life(days: u64) -> Life {
        Life {
            not_before: START,
            not_after: START + days * DAY,
        }
    }

    fn many() -> impl Iterator<Item = String> {
        (0..1000).map(|n| format!("app-{n}.example.com"))
    }

    #[test]
    fn renews_after_two_thirds_of_any_life() {
        for days in [6, 7, 10, 45, 47, 64, 90, 100, 200, 398] {
            let length = days * DAY;
            for name in many() {
                let at = renew_at(&name, life(days), None);
                assert!(at <= START + length - length / 3, "{days} {name}");
                assert!(
                    at > START + length - length / 3 - length / 20,
                    "{days} {name}"
                );
            }
        }
    }

    #[test]
    fn many_do_not_come_at_once() {
        let mut days = [0; 5];
        for name in many() {
            let early = START + 60 * DAY - renew_at(&name, life(90), None);
            days[(early / DAY) as usize] += 1;
        }
        // 4.5 days to share.
        assert!(days[..4].iter().all(|n| *n > 150), "{days:?}");
        assert!(days[4] > 50, "{days:?}");
    }

    #[test]
    fn the_plan_does_not_change() {
        let at = renew_at("a.example", life(90), None);
        assert_eq!(at, renew_at("a.example", life(90), None));
        assert_ne!(at, renew_at("b.example", life(90), None));
    }

    #[test]
    fn nonsense_is_due_now_and_no_panic() {
        let backwards = Life {
            not_before: 20,
            not_after: 10,
        };
        assert!(renew_at("a", backwards, None) <= 20);
        let all = Life {
            not_before: 0,
            not_after: u64::MAX,
        };
        assert!(renew_at("a", all, None) < u64::MAX);
        let window = Window {
            start: 0,
            end: u64::MAX,
        };
        assert!(renew_at("a", all, Some(window)) < u64::MAX);
        retry_at("a", u64::MAX, u32::MAX, Some(u64::MAX), Some(0));
        retry_at("a", 0, 0, None, Some(u64::MAX));
    }

    #[test]
    fn the_ca_s_window_comes_first() {
        let window = Window {
            start: START + 10 * DAY,
            end: START + 12 * DAY,
        };
        let mut early = 0;
        for name in many() {
            let at = renew_at(&name, life(90), Some(window));
            assert!((window.start..window.end).contains(&at));
            early += u32::from(at < START + 11 * DAY);
        }
        assert!((400..600).contains(&early), "{early}");
    }

    #[test]
    fn a_window_in_the_past_is_due() {
        let window = Window {
            start: START - 2 * DAY,
            end: START - DAY,
        };
        assert!(renew_at("a.example", life(90), Some(window)) < START);
    }

    #[test]
    fn a_bad_window_lets_nothing_run_out() {
        let late = Window {
            start: START + 400 * DAY,
            end: START + 401 * DAY,
        };
        assert_eq!(renew_at("a", life(90), Some(late)), START + 81 * DAY);
        let empty = Window {
            start: START + 5 * DAY,
            end: START + 5 * DAY,
        };
        assert_eq!(
            renew_at("a", life(90), Some(empty)),
            renew_at("a", life(90), None)
        );
    }

    #[test]
    fn failures_are_repeated_more_and_more_slowly() {
        let steps = [
            (1, 5 * MINUTE),
            (2, 15 * MINUTE),
            (3, HOUR),
            (4, 4 * HOUR),
            (5, 12 * HOUR),
            (6, DAY),
            (7, DAY),
            (1000, DAY),
        ];
        for (failures, step) in steps {
            for name in many() {
                let wait = retry_at(&name, START, failures, None, None) - START;
                assert!(
                    (step - step / 10..step + step / 10).contains(&wait),
                    "{failures} {wait}"
                );
            }
        }
    }

    #[test]
    fn never_sooner_than_the_ca_says() {
        assert_eq!(retry_at("a", START, 1, Some(DAY), None), START + DAY);
        assert_eq!(
            retry_at("a", START, 1, Some(DAY), Some(START + HOUR)),
            START + DAY
        );
        assert!(retry_at("a", START, 6, Some(1), None) > START + DAY / 2);
    }

    /// How many attempts there are between the renewal's time and the end.
    fn attempts(days: u64) -> u32 {
        let life = life(days);
        let mut now = renew_at("a.example", life, None);
        let mut failures = 0;
        while now < life.not_after {
            failures += 1;
            now = retry_at("a.example", now, failures, None, Some(life.not_after));
        }
        failures
    }

    #[test]
    fn a_short_life_has_attempts_enough_and_a_long_one_not_too_many() {
        assert!((8..=25).contains(&attempts(6)), "{}", attempts(6));
        assert!((15..=60).contains(&attempts(90)), "{}", attempts(90));
        assert!((80..=180).contains(&attempts(398)), "{}", attempts(398));
    }

    #[test]
    fn what_has_ended_is_not_hurried() {
        let wait = retry_at("a", START, 6, None, Some(START - 1)) - START;
        assert!(wait >= DAY - DAY / 10);
    }
}
