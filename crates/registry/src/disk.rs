//! Where things lie below the registry's folder, and how a file gets there whole or not at all. What the files mean is
//! `store`'s.
//!
//! ```text
//! lock                                 held as long as a process uses the folder
//! blobs/sha256/ab/abcd…                content, of manifests too; the name proves it
//! repositories/team+shop/links/DIGEST  the repository may read this blob (empty)
//!                        manifests/DIGEST   the media type it was pushed with
//!                        tags/TAG           a digest
//!                        referrers/SUBJECT/DIGEST   a descriptor, as the referrers API lists it
//! uploads/ID/data                      what came so far; its size is the offset
//!            session                   algorithm and repository
//! staging/N                            files on their way; emptied at the start
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

use crate::digest::{Algorithm, Digest};
use crate::error::{Result, StoreError, disk};
use crate::name::{RepositoryName, Tag, UploadId};

pub(crate) struct Disk {
    root: PathBuf,
    staged: AtomicU64,
    /// The kernel lets go of it when the process ends, however it does.
    _lock: File,
}

/// The parts of a repository's folder.
const PARTS: [&str; 4] = ["links", "manifests", "tags", "referrers"];

impl Disk {
    /// Makes what is missing; `root`'s parent must be there.
    pub fn open(root: &Path) -> Result<Self> {
        let failed = disk("make the registry's folders");
        make(root).map_err(disk("make the registry's folder"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(root.join("lock"))
            .map_err(disk("open the registry's lock"))?;
        // Two processes would not know each other's uploads and collections.
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::Locked),
            Err(error) => return Err(disk("lock the registry's folder")(error.into())),
        }
        let prepare = || -> io::Result<()> {
            for folder in ["blobs", "repositories", "uploads", "staging"] {
                make(&root.join(folder))?;
            }
            for algorithm in Algorithm::ALL {
                let top = root.join("blobs").join(algorithm.as_str());
                make(&top)?;
                let mut new = false;
                for first in 0..=255u8 {
                    new |= make(&top.join(format!("{first:02x}")))?;
                }
                if new {
                    sync_folder(&top)?;
                }
            }
            sync_folder(&root.join("blobs"))?;
            sync_folder(root)?;
            // Whoever was writing these is no more.
            for name in names(&root.join("staging"))? {
                remove(&root.join("staging").join(name))?;
            }
            Ok(())
        };
        prepare().map_err(failed)?;
        Ok(Disk {
            root: root.to_owned(),
            staged: AtomicU64::new(0),
            _lock: lock,
        })
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        let mut path = self.root.join("blobs");
        path.push(digest.algorithm().as_str());
        path.push(&digest.hex()[..2]);
        path.push(digest.hex());
        path
    }

    pub fn repository(&self, name: &RepositoryName) -> PathBuf {
        self.root.join("repositories").join(name.folder())
    }

    pub fn links(&self, name: &RepositoryName) -> PathBuf {
        self.repository(name).join("links")
    }

    pub fn link(&self, name: &RepositoryName, digest: &Digest) -> PathBuf {
        self.links(name).join(digest.to_string())
    }

    pub fn manifests(&self, name: &RepositoryName) -> PathBuf {
        self.repository(name).join("manifests")
    }

    pub fn manifest(&self, name: &RepositoryName, digest: &Digest) -> PathBuf {
        self.manifests(name).join(digest.to_string())
    }

    pub fn tags(&self, name: &RepositoryName) -> PathBuf {
        self.repository(name).join("tags")
    }

    pub fn tag(&self, name: &RepositoryName, tag: &Tag) -> PathBuf {
        self.tags(name).join(tag.as_str())
    }

    pub fn all_referrers(&self, name: &RepositoryName) -> PathBuf {
        self.repository(name).join("referrers")
    }

    pub fn referrers(&self, name: &RepositoryName, subject: &Digest) -> PathBuf {
        self.all_referrers(name).join(subject.to_string())
    }

    pub fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    pub fn upload(&self, id: &UploadId) -> PathBuf {
        self.uploads().join(id.as_str())
    }

    pub fn repositories(&self) -> io::Result<Vec<RepositoryName>> {
        let mut list: Vec<_> = names(&self.root.join("repositories"))?
            .iter()
            .filter_map(|folder| RepositoryName::from_folder(folder))
            .collect();
        list.sort_unstable();
        Ok(list)
    }

    /// The digests in a repository's `links` or `manifests`, in no order.
    pub fn digests(folder: &Path) -> io::Result<Vec<Digest>> {
        let names = names(folder)?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Everything that is stored, with its size.
    pub fn contents(&self) -> io::Result<Vec<(Digest, u64)>> {
        let mut list = Vec::new();
        for algorithm in Algorithm::ALL {
            let top = self.root.join("blobs").join(algorithm.as_str());
            for first in names(&top)? {
                let folder = top.join(first);
                for name in names(&folder)? {
                    let digest = format!("{}:{name}", algorithm.as_str()).parse::<Digest>();
                    // It may go at any moment.
                    let size = fs::symlink_metadata(folder.join(&name)).map(|m| m.len());
                    if let (Ok(digest), Ok(size)) = (digest, size) {
                        list.push((digest, size));
                    }
                }
            }
        }
        Ok(list)
    }

    /// Makes the repository's folders, on disk when this returns.
    pub fn make_repository(&self, name: &RepositoryName) -> io::Result<()> {
        let folder = self.repository(name);
        if make(&folder)? {
            sync_folder(&self.root.join("repositories"))?;
        }
        let mut new = false;
        for part in PARTS {
            new |= make(&folder.join(part))?;
        }
        if new {
            sync_folder(&folder)?;
        }
        Ok(())
    }

    /// Removes the folders of an empty repository; of one that is not, nothing that matters.
    pub fn remove_repository(&self, name: &RepositoryName) -> io::Result<bool> {
        let folder = self.repository(name);
        for part in PARTS {
            match fs::remove_dir(folder.join(part)) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    return Ok(false);
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match fs::remove_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
            Ok(()) => Ok(true),
        }
    }

    /// A file with this content, on disk and without a name yet that anybody looks at.
    pub fn stage(&self, content: &[u8]) -> io::Result<Staged> {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        let staged = Staged(self.root.join("staging").join(number.to_string()));
        let mut file = create(&staged.0)?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(staged)
    }

    /// Takes a file's name at once; the file goes when the result is dropped, which may take a while. None where there
    /// is none.
    pub fn take_away(&self, path: &Path) -> io::Result<Option<Staged>> {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        let away = self.root.join("staging").join(number.to_string());
        match fs::rename(path, &away) {
            Ok(()) => Ok(Some(Staged(away))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a file so that it is there whole or not at all, and on disk when this returns.
    pub fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.stage(content)?.publish(path)
    }
}

/// Gone when dropped, unless it was published.
pub(crate) struct Staged(PathBuf);

impl Staged {
    pub fn publish(self, path: &Path) -> io::Result<()> {
        fs::rename(&self.0, path)?;
        sync_parent(path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A new file of ours.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Makes a folder; whether it was not there.
pub(crate) fn make(path: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a file; whether it was there.
pub(crate) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What is in a folder, in no order; nothing where there is none.
pub(crate) fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut list = Vec::new();
    for entry in entries {
        // Ours are all UTF-8.
        if let Ok(name) = entry?.file_name().into_string() {
            list.push(name);
        }
    }
    Ok(list)
}

/// What cannot be looked at is taken to be there: whoever goes on fails then, and nothing is removed for it.
pub(crate) fn is_there(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Err(error) => error.kind() != io::ErrorKind::NotFound,
        Ok(_) => true,
    }
}

/// The names in it are on disk when this returns.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}
