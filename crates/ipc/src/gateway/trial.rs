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

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests that came to an end.
    pub requests: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// How long it took until the answer began, in the buckets of `hutong-core`'s canary.
    pub times: Vec<u64>,
}
