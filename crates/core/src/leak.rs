//! Whether a program keeps nearly all of its memory for good: most likely it leaks, and is replaced before it is
//! killed or stands still for want of memory.
//!
//! What counts is what the kernel cannot take back. Times are milliseconds of a clock that nobody sets.

/// Percent of the cap from which on an instance is near it …
const BEGINS: u64 = 95;
/// … until it falls below this.
const ENDS: u64 = 90;
/// So long near its cap, and it leaks.
pub const LONG_MS: u64 = 10 * 60_000;
/// For one app something is done about it once in this time: what needs that much by nature is not replaced without end.
pub const PAUSE_MS: u64 = 60 * 60_000;

/// How it stands with one instance.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bytes that the kernel cannot take back.
    pub used: u64,
    pub cap: u64,
    /// What [`Memory::judge`] said the last time.
    pub near_since: Option<u64>,
    /// When an instance of its app was last replaced for this.
    pub replaced: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    Near { since: u64 },
    Leaks,
}

impl Memory {
    /// `long_ms` is [`LONG_MS`], but in tests.
    pub fn judge(&self, now: u64, long_ms: u64) -> Verdict {
        let share = match self.near_since {
            Some(_) => ENDS,
            None => BEGINS,
        };
        if !reaches(self.used, self.cap, share) {
            return Verdict::Fine;
        }
        let since = self.near_since.unwrap_or(now);
        let may = |at: u64| now >= at.saturating_add(PAUSE_MS);
        if now >= since.saturating_add(long_ms) && self.replaced.is_none_or(may) {
            Verdict::Leaks
        } else {
            Verdict::Near { since }
        }
    }
}

/// Whether it is worth asking how much of `memory` the kernel could take back.
pub fn may_be_near(memory: u64, cap: u64) -> bool {
    reaches(memory, cap, ENDS)
}

/// What the kernel takes back before it kills, of a control group's `memory.stat` (v2, or v1): files that are kept in
/// memory and not in a tmpfs, and what it has cached of names.
pub fn reclaimable(stat: &str) -> u64 {
    let of = |key: &str| -> Option<u64> {
        let mut lines = stat.lines();
        lines.find_map(|line| {
            line.strip_prefix(key)?
                .strip_prefix(' ')?
                .trim()
                .parse()
                .ok()
        })
    };
    // v1 has the sums with what is below under names of their own.
    let files = |kind: &str| of(&format!("total_{kind}")).or_else(|| of(kind));
    let parts = [
        files("inactive_file"),
        files("active_file"),
        of("slab_reclaimable"),
    ];
    let parts = parts.into_iter().flatten();
    parts.fold(0, u64::saturating_add)
}

/// A cap of 0 is none.
fn reaches(bytes: u64, cap: u64, percent: u64) -> bool {
    cap > 0 && u128::from(bytes) * 100 >= u128::from(cap) * u128::from(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    /// Judges a percentage of use each minute; the minutes at which it was found to leak.
    fn leaks(shares: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let (mut near_since, mut replaced) = (None, None);
        let mut found = Vec::new();
        for (minute, used) in shares.into_iter().enumerate() {
            let memory = Memory {
                used,
                cap: 100,
                near_since,
                replaced,
            };
            let now = minute as u64 * MINUTE;
            near_since = match memory.judge(now, LONG_MS) {
                Verdict::Fine => None,
                Verdict::Near { since } => Some(since),
                Verdict::Leaks => {
                    found.push(minute as u64);
                    replaced = Some(now);
                    None
                }
            };
        }
        found
    }

    #[test]
    fn what_stays_near_its_cap_leaks_after_ten_minutes() {
        assert_eq!(leaks([99; 11]), [10]);
        assert!(leaks([95; 10]).is_empty());
        // It is not there yet, however long.
        assert!(leaks([94; 100]).is_empty());
        // A little less does not count anew, …
        assert_eq!(
            leaks([50, 95, 90, 92, 90, 91, 90, 93, 90, 90, 90, 90]),
            [11]
        );
        // … and less does.
        let dips = [99, 99, 99, 99, 99, 89, 99, 99, 99, 99, 99, 99, 99, 99, 99];
        assert!(leaks(dips).is_empty());
    }

    #[test]
    fn what_needs_it_by_nature_is_replaced_once_an_hour() {
        assert_eq!(leaks([100; 150]), [10, 70, 130]);
    }

    #[test]
    fn without_a_cap_and_at_the_end_of_numbers_nothing_is_said() {
        let memory = |used, cap| Memory {
            used,
            cap,
            near_since: None,
            replaced: Some(u64::MAX),
        };
        assert_eq!(memory(9, 0).judge(0, 0), Verdict::Fine);
        let near = Verdict::Near {
            since: u64::MAX - 1,
        };
        assert_eq!(memory(u64::MAX, u64::MAX).judge(u64::MAX - 1, 0), near);
        assert!(may_be_near(90, 100) && !may_be_near(89, 100) && !may_be_near(1, 0));
    }

    #[test]
    fn what_the_kernel_takes_back_is_read() {
        let v2 = "anon 900\nfile 70\nshmem 10\ninactive_file 40\nactive_file 20\nslab_reclaimable 5\nslab 9\n";
        assert_eq!(reclaimable(v2), 65);
        let v1 = "cache 70\nrss 900\ninactive_file 1\nactive_file 2\ntotal_inactive_file 40\ntotal_active_file 20\n";
        assert_eq!(reclaimable(v1), 60);
        let odd = "inactive_file x\nactive_file 18446744073709551615\nslab_reclaimable 5\nslab_reclaimable_x 7";
        assert_eq!(reclaimable(odd), u64::MAX);
        assert_eq!(reclaimable(""), 0);
    }
}
