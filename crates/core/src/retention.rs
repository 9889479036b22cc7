//! Which releases are kept.

/// Ids to forget: all but the newest `keep` of those that served, never one in use. `releases` is
/// `(id, in_use)` in any order.
pub fn superfluous(releases: &[(u64, bool)], keep: usize) -> Vec<u64> {
    let mut sorted: Vec<_> = releases.to_vec();
    sorted.sort_by_key(|release| std::cmp::Reverse(release.0));
    sorted
        .into_iter()
        .skip(keep)
        .filter(|(_, in_use)| !in_use)
        .map(|(id, _)| id)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_and_the_used_stay() {
        let releases = [(1, true), (2, false), (3, false), (4, false)];
        assert_eq!(superfluous(&releases, 2), [2]);
        assert!(superfluous(&releases, 9).is_empty());
    }
}
