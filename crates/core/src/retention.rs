//! Which releases are kept.

/// One release, as far as keeping it goes.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub id: u64,
    /// It serves, runs, or is being deployed.
    pub in_use: bool,
    /// It got healthy once, and can be rolled back to.
    pub served: bool,
}

/// Failed releases kept beside those that served, to look at.
const FAILED: usize = 2;

/// Ids to forget: all but the newest `keep` of those that served and a few of those that failed; never
/// one in use.
pub fn superfluous(releases: &[Kept], keep: usize) -> Vec<u64> {
    let mut sorted = releases.to_vec();
    sorted.sort_by_key(|release| std::cmp::Reverse(release.id));
    let (served, failed): (Vec<Kept>, Vec<Kept>) = sorted.iter().partition(|r| r.served);
    let rest = served.iter().skip(keep).chain(failed.iter().skip(FAILED));
    rest.filter(|release| !release.in_use)
        .map(|release| release.id)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_and_the_used_stay_and_failures_push_nothing_out() {
        let release = |id, in_use, served| Kept { id, in_use, served };
        let releases = [
            release(1, true, true),
            release(2, false, true),
            release(3, false, true),
            release(4, false, true),
            release(5, false, false),
            release(6, false, false),
            release(7, false, false),
        ];
        assert_eq!(superfluous(&releases, 2), [2, 5]);
        assert_eq!(superfluous(&releases, 9), [5]);
    }
}
