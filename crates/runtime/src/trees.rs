//! Folders that become `/app`: opened without following links, copied for builds, deleted.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};

use hutong_core::name::is_digest;
use hutong_ipc::warden::Tree;

use crate::paths::Layout;

/// Where a tree lies; its parts were checked, so nothing of the caller's is a path.
pub fn locate(layout: &Layout, app: &str, tree: &Tree) -> Result<PathBuf, String> {
    match tree {
        Tree::Source { digest } if is_digest(digest) => Ok(layout.trees().join(digest)),
        Tree::Built { key } if is_digest(key) => Ok(layout.built().join(app).join(key)),
        _ => Err("not a digest".into()),
    }
}

/// Copies plain files and folders of `from` (which the platform owns) to `to`, all owned by `owner`.
/// Anything else in it is an error: the unpacker makes nothing else.
pub fn copy(from: &Path, to: &Path, owner: Option<u32>) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&entry.path(), &target, owner)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
            own(&target, owner)?;
        } else {
            return Err(io::Error::other(format!(
                "{} is neither a file nor a folder",
                entry.path().display()
            )));
        }
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    own(to, owner)
}

fn own(path: &Path, owner: Option<u32>) -> io::Result<()> {
    match owner {
        Some(id) => lchown(path, Some(id), Some(id)),
        None => Ok(()),
    }
}

/// Makes a folder of the app's own, 0700 or as given.
pub fn make_owned(path: &Path, owner: Option<u32>, mode: u32) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    match owner {
        Some(id) => chown(path, Some(id), Some(id)),
        None => Ok(()),
    }
}

/// Deletes a folder and all below it; links in it are not followed. A missing one is fine.
pub fn delete(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // An ordinary user's app may have taken the write bit off a folder of its own.
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

fn open_up(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(path)? {
            open_up(&entry?.path())?;
        }
    }
    Ok(())
}
