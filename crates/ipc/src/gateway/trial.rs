//! A new release that gets a part of an app's visitors.

use serde::{Deserialize, Serialize};

/// Who gets it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// The deployment on trial; all others are the stable one.
    pub canary: u64,
    /// Its part of the visitors, in percent.
    pub share: u32,
    /// Whoever sends this gets it: the name in lower case, and the value.
    #[serde(default)]
    pub header: Option<(String, String)>,
    #[serde(default)]
    pub cookie: Option<(String, String)>,
    /// The figures are for people, not for the judge: each request counts, whoever it is from. And visitors are
    /// remembered for longer than until they close their browser.
    #[serde(default)]
    pub for_people: bool,
}

/// How both did since they have had these shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    pub canary: u64,
    pub share: u32,
    /// How long that is ago, as far as this gateway knows.
    pub elapsed_ms: u64,
    pub stable: Counts,
    pub tried: Counts,
}

impl Trial {
    /// Whether nothing was counted since the other one, however long that is ago.
    pub fn counts_as(&self, other: &Trial) -> bool {
        let counted = |trial: &Trial| (trial.canary, trial.share);
        counted(self) == counted(other) && self.stable == other.stable && self.tried == other.tried
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests that came to an end.
    pub requests: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// How long it took until the answer began, in the buckets of `hutong-core`'s canary.
    pub times: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_time_goes_by_is_no_news() {
        let first = Trial {
            canary: 7,
            share: 5,
            elapsed_ms: 1000,
            stable: Counts::default(),
            tried: Counts::default(),
        };
        let mut next = first.clone();
        next.elapsed_ms = 2000;
        assert!(first.counts_as(&next));
        next.tried.requests = 1;
        assert!(!first.counts_as(&next));
        let other = Trial {
            share: 25,
            ..first.clone()
        };
        assert!(!first.counts_as(&other));
    }
}
