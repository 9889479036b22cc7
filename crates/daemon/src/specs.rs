//! Releases' specifications, parsed once: the controller looks at all of them in each of its passes.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};

use hutong_core::spec::AppSpec;

use crate::lock;
use crate::store::{Release, Result};

/// Two for each of many apps; then it begins anew.
const MAX: usize = 4096;

#[derive(Default)]
pub struct Specs {
    /// By app and number of the release.
    known: Mutex<HashMap<(String, u64), Parsed>>,
    key: RandomState,
}

struct Parsed {
    /// A digest: numbers begin again when an app is made anew.
    text: u64,
    spec: Arc<AppSpec>,
}

impl Specs {
    pub fn of(&self, release: &Release) -> Result<Arc<AppSpec>> {
        let key = (release.app.clone(), release.number);
        let text = self.key.hash_one(&release.spec);
        let mut specs = lock(&self.known);
        if let Some(known) = specs.get(&key).filter(|known| known.text == text) {
            return Ok(known.spec.clone());
        }
        let spec = Arc::new(release.parse()?);
        let parsed = Parsed {
            text,
            spec: spec.clone(),
        };
        if specs.len() >= MAX {
            specs.clear();
        }
        specs.insert(key, parsed);
        Ok(spec)
    }
}
