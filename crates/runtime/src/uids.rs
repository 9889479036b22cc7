//! Which range of host ids each app has. A range is an app's until its data is deleted.
//!
//! systemd's map of the 32-bit ids leaves 0x70000000 to 0x7fffffff unused (UIDS-GIDS.md); there we take
//! ranges of 65,536. A server begins at a random one, so that two servers on a host do not meet.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hutong_ipc::shim::UID_RANGE;
use serde::{Deserialize, Serialize};

use crate::paths::atomic_write;

const FIRST: u32 = 0x7000_0000;
const RANGES: u32 = 4096;

#[derive(Clone, Serialize, Deserialize)]
struct State {
    /// The range of our own processes.
    own: u32,
    apps: BTreeMap<String, u32>,
    /// Whose the files of images' layers are: nobody's who runs.
    #[serde(default)]
    images: Option<u32>,
    /// A random number that tells this server from another at the same place.
    server: u64,
}

pub struct Uids {
    path: PathBuf,
    state: State,
}

impl Uids {
    pub fn open(folder: &Path) -> Result<Self, String> {
        let path = folder.join("uids.json");
        let state = match std::fs::read(&path) {
            // As it is: a server must start on a full disk too.
            Ok(text) => {
                let state = serde_json::from_slice(&text)
                    .map_err(|error| format!("{}: {error}", path.display()))?;
                return Ok(Uids { path, state });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut random = [0; 8];
                getrandom::fill(&mut random).map_err(|error| error.to_string())?;
                let server = u64::from_le_bytes(random);
                State {
                    own: (server % u64::from(RANGES)) as u32,
                    server,
                    images: None,
                    apps: BTreeMap::new(),
                }
            }
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        let mut uids = Uids {
            path,
            state: state.clone(),
        };
        uids.keep(state)?;
        Ok(uids)
    }

    /// On disk first: a range that only memory knows would be given to another app after a restart.
    fn keep(&mut self, state: State) -> Result<(), String> {
        let text = serde_json::to_vec_pretty(&state).map_err(|error| error.to_string())?;
        atomic_write(&self.path, &text, 0o600)
            .map_err(|error| format!("{}: {error}", self.path.display()))?;
        self.state = state;
        Ok(())
    }

    fn base(range: u32) -> u32 {
        FIRST + range % RANGES * UID_RANGE
    }

    pub fn server(&self) -> u64 {
        self.state.server
    }
    pub fn control(&self) -> u32 {
        Self::base(self.state.own) + 1
    }
    pub fn gateway(&self) -> u32 {
        Self::base(self.state.own) + 2
    }
    pub fn resolver(&self) -> u32 {
        Self::base(self.state.own) + 3
    }
    pub fn docker(&self) -> u32 {
        Self::base(self.state.own) + 4
    }

    /// The first id of the app's range, taken now if it has none.
    pub fn of_app(&mut self, app: &str) -> Result<u32, String> {
        if let Some(range) = self.state.apps.get(app) {
            return Ok(Self::base(*range));
        }
        let free = self.free()?;
        let mut state = self.state.clone();
        state.apps.insert(app.to_owned(), free);
        self.keep(state)?;
        Ok(Self::base(free))
    }

    fn free(&self) -> Result<u32, String> {
        let used = |range: u32| {
            range == self.state.own
                || self.state.images == Some(range)
                || self.state.apps.values().any(|taken| *taken == range)
        };
        (1..RANGES)
            .map(|step| (self.state.own + step) % RANGES)
            .find(|range| !used(*range))
            .ok_or_else(|| "no range of ids is left for another app".to_owned())
    }

    /// The first id of the range that files of images' layers have, taken now if there is none.
    pub fn images(&mut self) -> Result<u32, String> {
        if let Some(range) = self.state.images {
            return Ok(Self::base(range));
        }
        let free = self.free()?;
        let mut state = self.state.clone();
        state.images = Some(free);
        self.keep(state)?;
        Ok(Self::base(free))
    }

    /// Gives an app's range back; its data must be gone.
    pub fn forget(&mut self, app: &str) -> Result<(), String> {
        let mut state = self.state.clone();
        match state.apps.remove(app) {
            Some(_) => self.keep(state),
            None => Ok(()),
        }
    }

    /// Every app that has a range.
    pub fn apps(&self) -> Vec<String> {
        self.state.apps.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_with_their_app_and_never_overlap() {
        let folder = tempfile::tempdir().expect("tempdir");
        let mut uids = Uids::open(folder.path()).expect("open");
        let a = uids.of_app("a").expect("a range");
        let b = uids.of_app("b").expect("a range");
        assert!(a.abs_diff(b) >= UID_RANGE);
        assert!(a.abs_diff(uids.control()) >= UID_RANGE - 3);
        assert!(a >= FIRST && a.checked_add(UID_RANGE).is_some_and(|end| end <= 1 << 31));
        let mut again = Uids::open(folder.path()).expect("open");
        assert_eq!(again.of_app("a"), Ok(a));
        let images = again.images().expect("a range");
        assert!(images.abs_diff(a) >= UID_RANGE && images.abs_diff(b) >= UID_RANGE);
        assert_eq!(again.images(), Ok(images));
        again.forget("a").expect("forget");
        assert_eq!(again.of_app("b"), Ok(b));
        // What could not be written was not given out.
        std::fs::remove_dir_all(folder.path()).expect("remove");
        assert!(again.of_app("c").is_err() && again.of_app("c").is_err());
        assert_eq!(again.apps(), ["b"]);
    }
}
