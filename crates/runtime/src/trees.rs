//! Folders that become `/app`: opened without following links, copied for builds, deleted.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};

use hutong_core::name::is_digest;
use hutong_ipc::warden::Tree;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat};

use crate::paths::Layout;

/// Where a tree lies; its parts were checked, so nothing of the caller's is a path.
pub fn locate(layout: &Layout, app: &str, tree: &Tree) -> Result<PathBuf, String> {
    match tree {
        Tree::Source { digest } if is_digest(digest) => Ok(layout.trees().join(digest)),
        Tree::Built { key } if is_digest(key) => Ok(layout.built().join(app).join(key)),
        _ => Err("not a digest".into()),
    }
}

/// Folders below each other; unpacked archives and builds have far fewer.
const MAX_DEPTH: usize = 100;

/// Copies plain files and folders of `from` to `to`, all owned by `owner`. `from` is control's, which
/// may have been broken into: no link is followed, and anything but files and folders is an error.
pub fn copy(from: &Path, to: &Path, owner: Option<u32>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let top = rustix::fs::openat2(CWD, from, flags, Mode::empty(), links)?;
    let control = fstat(&top)?.st_uid;
    copy_folder(&top, to, owner, control, 0)
}

fn copy_folder(
    from: &OwnedFd,
    to: &Path,
    owner: Option<u32>,
    control: u32,
    depth: usize,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("the folders are too deep"));
    }
    fs::create_dir(to)?;
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(from, name, flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        let target = to.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => copy_folder(&fd, &target, owner, control, depth + 1)?,
            // A hard link to somebody else's file would have another owner.
            FileType::RegularFile if stat.st_uid == control => {
                let mut source = fs::File::from(fd);
                let mut copied = fs::File::create_new(&target)?;
                io::copy(&mut source, &mut copied)?;
                copied.set_permissions(fs::Permissions::from_mode(stat.st_mode & 0o777))?;
                own(&target, owner)?;
            }
            _ => {
                return Err(io::Error::other(
                    "the tree holds more than files and folders",
                ));
            }
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
    // The name goes first: half a folder must never be taken for a whole one.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let gone = path.with_file_name(format!(".gone-{name}"));
    remove(&gone)?;
    match fs::rename(path, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => remove(&gone),
    }
}

/// On a stack of its own: an app may have nested folders a thousand deep.
fn remove(path: &Path) -> io::Result<()> {
    let path = path.to_owned();
    let thread = std::thread::Builder::new()
        .stack_size(64 << 20)
        .spawn(move || remove_all(&path))?;
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the deletion broke off")))
}

fn remove_all(path: &Path) -> io::Result<()> {
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
