//! Layers in folders of their own, each by the digest of its archive, so that images share them and overlayfs stacks
//! them. A folder is there whole or not at all; one folder of layers goes with one set of options, and one process.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{Budget, Options, UnpackError, Unpacked, apply};
use crate::digest::Digest;
use crate::store::lock;

const NEW: &str = ".new-";
const GONE: &str = ".gone-";

pub struct Layers {
    folder: PathBuf,
    /// Names that are being filled.
    under_way: Mutex<HashSet<String>>,
}

impl Layers {
    /// The folder must be there.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let folder = folder.canonicalize()?;
        if !folder.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Layers {
            folder,
            under_way: Mutex::default(),
        })
    }

    /// Where a layer is, once it is there.
    pub fn path(&self, diff_id: &Digest) -> PathBuf {
        self.folder.join(name_of(diff_id))
    }

    pub fn has(&self, diff_id: &Digest) -> bool {
        self.path(diff_id).is_dir()
    }

    /// Unpacks a layer, if it is not there. On disk when this returns; after an error nothing of it is. Blocks.
    pub fn unpack(
        &self,
        diff_id: &Digest,
        packed: impl Read,
        options: &Options,
        budget: &mut Budget,
    ) -> Result<Unpacked, UnpackError> {
        let target = self.path(diff_id);
        if target.is_dir() {
            return Ok(Unpacked::default());
        }
        let failed = |what| {
            let path = target.display().to_string();
            move |source| UnpackError::Disk { what, path, source }
        };
        let new = New::make(self).map_err(failed("make"))?;
        let handle = File::open(&new.path).map_err(failed("open"))?;
        // The layer may say otherwise.
        handle
            .set_permissions(Permissions::from_mode(0o755))
            .map_err(failed("make"))?;
        let unpacked = apply(&handle, packed, Some(diff_id), options, budget)?;
        let finish = || -> io::Result<()> {
            // One flush for all files, before the name says that they are there.
            rustix::fs::syncfs(&handle)?;
            match fs::rename(&new.path, &target) {
                // Somebody unpacked the same meanwhile.
                Err(_) if target.is_dir() => Ok(()),
                other => other,
            }?;
            File::open(&self.folder)?.sync_all()
        };
        finish().map_err(failed("finish"))?;
        Ok(unpacked)
    }

    /// Removes the layers that `keep` does not name, and what a killed process left half unpacked. How many layers. A
    /// layer of an image that is about to be run must be in `keep`.
    pub fn sweep(&self, keep: &[Digest]) -> io::Result<u64> {
        let keep: HashSet<String> = keep.iter().map(name_of).collect();
        let mut removed = 0;
        // All of them first: what is renamed below could be met again.
        let entries: Vec<fs::DirEntry> = fs::read_dir(&self.folder)?.collect::<io::Result<_>>()?;
        for entry in entries {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if keep.contains(&name) || lock(&self.under_way).contains(&name) {
                continue;
            }
            let mut path = entry.path();
            if parse_name(&name) {
                // The name goes first: half a layer must never be taken for a whole one.
                let gone = self.folder.join(random_name(GONE)?);
                fs::rename(&path, &gone)?;
                path = gone;
                removed += 1;
            } else if !name.starts_with(NEW) && !name.starts_with(GONE) {
                continue;
            }
            remove(&path)?;
        }
        Ok(removed)
    }
}

fn name_of(diff_id: &Digest) -> String {
    diff_id.to_string().replace(':', "-")
}

fn parse_name(name: &str) -> bool {
    name.replacen('-', ":", 1).parse::<Digest>().is_ok()
}

fn random_name(prefix: &str) -> io::Result<String> {
    let mut random = [0u8; 8];
    let flags = rustix::rand::GetRandomFlags::empty();
    rustix::rand::getrandom(&mut random[..], flags)?;
    Ok(format!("{prefix}{}", hutong_core::tree::hex(&random)))
}

/// Some of its folders may be closed to their owner. A missing one is fine.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

/// As deep as paths may be.
fn open_up(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Not of what a link points to.
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

/// A folder that is being filled; gone when dropped, unless it was renamed.
struct New<'a> {
    layers: &'a Layers,
    name: String,
    path: PathBuf,
}

impl<'a> New<'a> {
    fn make(layers: &'a Layers) -> io::Result<Self> {
        let name = random_name(NEW)?;
        let path = layers.folder.join(&name);
        lock(&layers.under_way).insert(name.clone());
        let new = New { layers, name, path };
        DirBuilder::new().mode(0o700).create(&new.path)?;
        Ok(new)
    }
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok()
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!("{} stays for now: {error}", self.path.display());
        }
        lock(&self.layers.under_way).remove(&self.name);
    }
}
