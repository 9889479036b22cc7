//! Releases' specifications, parsed once: the controller looks at all of them in each of its passes.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};

use hutong_core::spec::AppSpec;

use crate::lock;
use crate::store::{Release, Result};

/// Two for each of many apps; then it begins anew.
const MAX: usize = 4096;

/// By app and number of the release, with a digest of the text that was parsed: numbers begin again when an app is made anew.
#[derive(Default)]
pub struct Specs {
    known: Mutex<HashMap<(String, u64), (u64, Arc<AppSpec>)>>,
    key: RandomState,
}

impl Specs {
    pub fn of(&self, release: &Release) -> Result<Arc<AppSpec>> {
        let key = (release.app.clone(), release.number);
        let text = self.key.hash_one(&release.spec);
        let mut specs = lock(&self.known);
        if let Some((known, spec)) = specs.get(&key)
            && *known == text
        {
            return Ok(spec.clone());
        }
        let spec = Arc::new(release.parse()?);
        if specs.len() >= MAX {
            specs.clear();
        }
        specs.insert(key, (text, spec.clone()));
        Ok(spec)
    }
}
