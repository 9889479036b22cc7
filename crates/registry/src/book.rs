//! What is known in memory alone: how much is held, and what nobody refers to any more, since when. Both can be had
//! again from the disk, the second with a new term of grace.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::digest::Digest;
use crate::error::{Result, StoreError, Whose};
use crate::name::RepositoryName;

/// How much may be held; more is refused with the figures.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    /// Blobs, each counted once, and uploads under way.
    pub total_bytes: u64,
    /// What the repositories of an owner ([`crate::Settings::owner`]) may read and what is on its way to them. A blob that
    /// two of them share counts for both.
    pub owner_bytes: u64,
    /// Blobs, manifests and tags of an owner's repositories: each is a file.
    pub owner_names: u64,
    pub repositories: usize,
    /// Of one owner.
    pub owner_repositories: usize,
}

impl Default for Quota {
    fn default() -> Self {
        Quota {
            total_bytes: 20 << 30,
            owner_bytes: 10 << 30,
            owner_names: 20_000,
            repositories: 2_000,
            owner_repositories: 100,
        }
    }
}

/// What something adds, or gives back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    pub total: u64,
    pub repository: u64,
    pub names: u64,
}

/// What a collection may take away.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    Content(Digest),
    Link(RepositoryName, Digest),
    Manifest(RepositoryName, Digest),
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    bytes: u64,
    names: u64,
}

/// Whose a repository is, by its name.
pub(crate) type Owner = fn(&str) -> &str;

pub(crate) struct Book {
    owner: Owner,
    total: u64,
    repositories: HashMap<RepositoryName, Held>,
    /// Since when a collection found nobody to refer to it.
    since: HashMap<Item, Duration>,
    /// While a collection runs: what somebody was told to be there, or referred to, since it began.
    touched: Option<HashSet<Item>>,
}

impl Book {
    pub fn new(owner: Owner) -> Self {
        Book {
            owner,
            total: 0,
            repositories: HashMap::new(),
            since: HashMap::new(),
            touched: None,
        }
    }

    /// What the owner of a repository holds, and in how many.
    fn owned(&self, name: &RepositoryName) -> (Held, usize) {
        let owner = (self.owner)(name.as_str());
        let mut all = Held::default();
        let mut count = 0;
        // A look at each of two thousand names at most, while whole blocks are written.
        for (other, held) in &self.repositories {
            if (self.owner)(other.as_str()) == owner {
                all.bytes = all.bytes.saturating_add(held.bytes);
                all.names = all.names.saturating_add(held.names);
                count += 1;
            }
        }
        (all, count)
    }

    /// Whether there is room, and if so it is taken.
    pub fn reserve(&mut self, quota: &Quota, name: &RepositoryName, more: Charge) -> Result<()> {
        self.fits(quota, name, more)?;
        self.add(name, more);
        Ok(())
    }

    pub fn fits(&self, quota: &Quota, name: &RepositoryName, more: Charge) -> Result<()> {
        let check = |whose, held: u64, bound: u64, more: u64| {
            // What takes nothing is not refused where a bound was lowered.
            if more > 0 && held.saturating_add(more) > bound {
                return Err(StoreError::OverQuota {
                    whose,
                    held,
                    bound,
                    more,
                });
            }
            Ok(())
        };
        let is_known = self.repositories.contains_key(name);
        if !is_known && self.repositories.len() >= quota.repositories {
            return Err(StoreError::TooMany(format!(
                "there are {} repositories, as many as there may be",
                self.repositories.len()
            )));
        }
        let (held, count) = self.owned(name);
        if !is_known && count >= quota.owner_repositories {
            return Err(StoreError::TooMany(format!(
                "the owner of the repository has {count}, as many as one may have"
            )));
        }
        let whose = match (self.owner)(name.as_str()) == name.as_str() && count <= 1 {
            true => Whose::Repository,
            false => Whose::Owner,
        };
        if more.names > 0 && held.names.saturating_add(more.names) > quota.owner_names {
            return Err(StoreError::TooMany(format!(
                "{whose} holds {} blobs, manifests and tags of {}",
                held.names, quota.owner_names
            )));
        }
        check(whose, held.bytes, quota.owner_bytes, more.repository)?;
        check(Whose::Registry, self.total, quota.total_bytes, more.total)
    }

    /// What is on disk already.
    pub fn add(&mut self, name: &RepositoryName, more: Charge) {
        self.total = self.total.saturating_add(more.total);
        let held = self.repositories.entry(name.clone()).or_default();
        held.bytes = held.bytes.saturating_add(more.repository);
        held.names = held.names.saturating_add(more.names);
    }

    pub fn add_content(&mut self, bytes: u64) {
        self.total = self.total.saturating_add(bytes);
    }

    pub fn release_content(&mut self, bytes: u64) {
        self.total = self.total.saturating_sub(bytes);
    }

    pub fn release(&mut self, name: &RepositoryName, less: Charge) {
        self.total = self.total.saturating_sub(less.total);
        let Some(held) = self.repositories.get_mut(name) else {
            return;
        };
        held.bytes = held.bytes.saturating_sub(less.repository);
        held.names = held.names.saturating_sub(less.names);
        if held.bytes == 0 && held.names == 0 {
            self.repositories.remove(name);
        }
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// What one repository holds.
    pub fn held(&self, name: &RepositoryName) -> u64 {
        self.repositories.get(name).map_or(0, |held| held.bytes)
    }

    /// Somebody was told that it is there, or refers to it now: its term of grace begins anew.
    pub fn touch(&mut self, item: Item) {
        self.since.remove(&item);
        if let Some(touched) = &mut self.touched {
            touched.insert(item);
        }
    }

    pub fn begin_collection(&mut self) {
        self.touched = Some(HashSet::new());
    }

    /// What `candidates` does not have is forgotten: it is referred to again, or gone.
    pub fn end_collection(&mut self, candidates: Option<&HashSet<Item>>) {
        self.touched = None;
        if let Some(candidates) = candidates {
            self.since.retain(|item, _| candidates.contains(item));
        }
    }

    pub fn is_touched(&self, item: &Item) -> bool {
        self.touched.as_ref().is_some_and(|all| all.contains(item))
    }

    /// Nobody refers to it, said a look at the disk that began with [`Book::begin_collection`]. Whether its grace is
    /// over.
    pub fn is_over(&mut self, item: &Item, now: Duration, grace: Duration) -> bool {
        if self.is_touched(item) {
            return false;
        }
        let since = *self.since.entry(item.clone()).or_insert(now);
        now.saturating_sub(since) >= grace
    }

    pub fn forget(&mut self, item: &Item) {
        self.since.remove(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    fn name() -> RepositoryName {
        "team/shop".parse().expect("a name")
    }

    #[test]
    fn what_is_over_a_bound_is_refused_with_the_figures_and_takes_nothing() {
        let quota = Quota {
            total_bytes: 3 << 20,
            owner_bytes: 2 << 20,
            owner_names: 3,
            repositories: 2,
            owner_repositories: 2,
        };
        let mut book = Book::new(|name| name);
        let bytes = |n| Charge {
            total: n,
            repository: n,
            names: 0,
        };
        book.reserve(&quota, &name(), bytes(1 << 20))
            .expect("there is room");
        let error = book.reserve(&quota, &name(), bytes(2 << 20));
        assert_eq!(
            error.expect_err("too much").to_string(),
            "the repository holds 1M of 2M, and this needs 2M more"
        );
        let other: RepositoryName = "other".parse().expect("a name");
        book.reserve(&quota, &other, bytes(2 << 20)).expect("room");
        let error = book.reserve(&quota, &name(), bytes(1));
        let text = error.expect_err("full").to_string();
        assert!(text.starts_with("the registry holds 3M of 3M"), "{text}");
        book.release(&other, bytes(1 << 20));
        book.reserve(&quota, &name(), bytes(1)).expect("room again");
        let third: RepositoryName = "third".parse().expect("a name");
        assert!(book.reserve(&quota, &third, Charge::default()).is_err());
        let names = |n| Charge {
            names: n,
            ..Charge::default()
        };
        book.reserve(&quota, &name(), names(3)).expect("three");
        assert!(book.reserve(&quota, &name(), names(1)).is_err());
        assert_eq!(book.held(&name()), (1 << 20) + 1);
        assert_eq!(book.total(), (2 << 20) + 1);
    }

    #[test]
    fn what_an_owner_has_counts_together() {
        let quota = Quota {
            owner_bytes: 100,
            owner_names: 3,
            owner_repositories: 2,
            ..Quota::default()
        };
        let mut book = Book::new(|name| name.split('/').next().unwrap_or(name));
        let read = |text: &str| text.parse::<RepositoryName>().expect("a name");
        let (one, two, other) = (read("shop"), read("shop/worker"), read("shopping"));
        let of = |bytes, names| Charge {
            total: bytes,
            repository: bytes,
            names,
        };
        book.reserve(&quota, &one, of(60, 2)).expect("room");
        let error = book.reserve(&quota, &two, of(60, 0));
        let text = error.expect_err("too much together").to_string();
        assert!(text.starts_with("the repository's owner holds"), "{text}");
        let error = book.reserve(&quota, &two, of(0, 2));
        let text = error.expect_err("too many together").to_string();
        assert!(text.contains("owner holds 2 blobs"), "{text}");
        book.reserve(&quota, &two, of(40, 1)).expect("the rest");
        assert!(book.reserve(&quota, &one, of(1, 0)).is_err());
        assert!(book.fits(&quota, &read("shop/third"), of(0, 0)).is_err());
        // Somebody else's are their own.
        book.reserve(&quota, &other, of(100, 3)).expect("another");
        book.release(&one, of(60, 2));
        book.reserve(&quota, &two, of(60, 2)).expect("room again");
        assert_eq!((book.held(&one), book.held(&two)), (0, 100));
    }

    #[test]
    fn grace_begins_with_the_first_look_and_anew_with_each_touch() {
        let mut book = Book::new(|name| name);
        let item = Item::Content(Digest::of(Algorithm::Sha256, b"x"));
        let (hour, second) = (Duration::from_secs(3600), Duration::from_secs(1));
        book.begin_collection();
        assert!(!book.is_over(&item, second, hour));
        book.end_collection(None);
        book.begin_collection();
        assert!(book.is_over(&item, second + hour, hour));
        book.touch(item.clone());
        assert!(
            !book.is_over(&item, second + hour, Duration::ZERO),
            "touched since this collection began"
        );
        book.end_collection(None);
        book.begin_collection();
        assert!(!book.is_over(&item, second + hour, hour), "begins anew");
        book.end_collection(Some(&HashSet::new()));
        book.begin_collection();
        assert!(!book.is_over(&item, hour * 9, hour), "was forgotten");
    }
}
