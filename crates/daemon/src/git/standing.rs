//! Which push of a branch is the latest. Several may be under way at once: the later one wins, and no branch moves to
//! anything but what was deployed last.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::lock;

/// App and branch.
type Key = (String, String);

#[derive(Default)]
struct Branch {
    /// The push that was deployed last.
    latest: u64,
    /// The push that was told to go on: git moves the branch, and until it has, nobody else begins.
    settling: Option<u64>,
}

#[derive(Default)]
pub struct Standing(Mutex<HashMap<Key, Branch>>);

/// What becomes of one that wants to begin.
pub enum Begin<T> {
    /// Another one's branch is about to move.
    Wait,
    Done(T),
}

impl Standing {
    /// Makes `push` the latest and does `work`, both before anybody else can. Work that has nothing to show is to be tried
    /// again.
    pub fn begin<T, E>(
        &self,
        app: &str,
        branch: &str,
        push: u64,
        work: impl FnOnce() -> Result<Option<T>, E>,
    ) -> Result<Begin<T>, E> {
        let mut branches = lock(&self.0);
        let found = branches
            .entry((app.to_owned(), branch.to_owned()))
            .or_default();
        if found.settling.is_some_and(|other| other != push) {
            return Ok(Begin::Wait);
        }
        let Some(done) = work()? else {
            return Ok(Begin::Wait);
        };
        found.latest = push;
        Ok(Begin::Done(done))
    }

    /// The push's deployment serves. Whether its branch may move: no, if a later one has begun since.
    pub fn settle(&self, app: &str, branch: &str, push: u64) -> bool {
        let mut branches = lock(&self.0);
        let key = (app.to_owned(), branch.to_owned());
        match branches.get_mut(&key) {
            Some(found) if found.latest == push => {
                found.settling = Some(push);
                true
            }
            _ => false,
        }
    }

    /// Does something that no push may begin beside.
    pub fn alone<T>(&self, work: impl FnOnce() -> T) -> T {
        let _nobody_begins = lock(&self.0);
        work()
    }

    /// The same, if no later push of the branch has begun.
    pub fn if_latest<T>(
        &self,
        app: &str,
        branch: &str,
        push: u64,
        work: impl FnOnce() -> T,
    ) -> Option<T> {
        let branches = lock(&self.0);
        let found = branches.get(&(app.to_owned(), branch.to_owned()));
        let is_latest = found.is_some_and(|found| found.latest == push);
        is_latest.then(work)
    }

    /// Nothing of a push goes on any more.
    pub fn end(&self, push: u64) {
        lock(&self.0).retain(|_, branch| {
            if branch.settling == Some(push) {
                branch.settling = None;
            }
            // 0: one that was refused before it began.
            branch.latest != push && branch.latest != 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(standing: &Standing, push: u64) -> bool {
        let begun = standing.begin("a", "main", push, || Ok::<_, ()>(Some(())));
        matches!(begun, Ok(Begin::Done(())))
    }

    #[test]
    fn the_later_push_wins_and_nobody_overtakes_a_branch_that_moves() {
        let standing = Standing::default();
        assert!(begin(&standing, 1) && begin(&standing, 2));
        assert!(!standing.settle("a", "main", 1));
        assert!(standing.settle("a", "main", 2));
        assert!(!begin(&standing, 3));
        standing.end(1);
        assert!(!begin(&standing, 3));
        standing.end(2);
        assert!(begin(&standing, 3) && standing.settle("a", "main", 3));
        standing.end(3);
        assert!(lock(&standing.0).is_empty());
        // One that is refused before it begins changes nothing.
        assert!(begin(&standing, 4));
        let refused = standing.begin("a", "main", 5, || Err::<Option<()>, _>("no"));
        assert!(refused.is_err() && standing.settle("a", "main", 4));
        standing.end(4);
        let waits = standing.begin("a", "main", 6, || Ok::<Option<()>, ()>(None));
        assert!(matches!(waits, Ok(Begin::Wait)) && !standing.settle("a", "main", 6));
        assert_eq!(standing.if_latest("a", "main", 6, || 1), None);
        assert!(begin(&standing, 7));
        assert_eq!(standing.if_latest("a", "main", 7, || 1), Some(1));
        assert_eq!(standing.alone(|| 2), 2);
    }
}
