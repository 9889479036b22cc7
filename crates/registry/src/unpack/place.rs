//! Files beneath a folder's handle. A path is walked name by name, each opened without following a link, and no name is
//! `..`: so nothing outside is reached, whatever the archive says and whatever it put there before. Nobody else changes
//! the folder meanwhile.
//!
//! Folders get their modes and times at the end, deepest first: one that may not be written to is filled before.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::ops::Bound;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::UnpackError;
use crate::digest::CHUNK;

/// Paths that are kept in memory for one layer, in bytes with what it takes to keep them.
const MAX_KEPT: usize = 96 << 20;
const KEPT_OVERHEAD: usize = 96;

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What an entry gets besides its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    pub mode: u32,
    /// None where nothing is to be changed.
    pub owner: Option<(Uid, Gid)>,
    pub mtime: Option<i64>,
}

/// A path below the root: names between slashes, none of them `.` or `..`; empty for the root itself.
pub(super) type Place = [u8];

/// Paths of one layer, with something each.
pub(super) struct Paths<T> {
    map: BTreeMap<Vec<u8>, T>,
}

impl<T> Paths<T> {
    pub fn new() -> Self {
        Paths {
            map: BTreeMap::new(),
        }
    }

    pub fn contains(&self, path: &Place) -> bool {
        self.map.contains_key(path)
    }

    /// Whether something is below the path.
    pub fn is_above(&self, path: &Place) -> bool {
        self.map.range(below(path)).next().is_some()
    }

    /// Forgets the path and all below.
    pub fn remove_tree(&mut self, path: &Place) {
        self.map.remove(path);
        let all: Vec<_> = self
            .map
            .range(below(path))
            .map(|(p, _)| p.clone())
            .collect();
        for path in all {
            self.map.remove(&path);
        }
    }
}

/// Everything that begins with `path/`; the byte behind the slash ends it.
fn below(path: &Place) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    if path.is_empty() {
        return (Bound::Excluded(Vec::new()), Bound::Unbounded);
    }
    let with = |end: u8| {
        let mut key = path.to_vec();
        key.push(end);
        key
    };
    (Bound::Included(with(b'/')), Bound::Excluded(with(b'/' + 1)))
}

/// The folder of a path, and its name there.
pub(super) fn split(path: &Place) -> (&Place, &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

pub(super) fn join(folder: &Place, name: &[u8]) -> Vec<u8> {
    if folder.is_empty() {
        return name.to_vec();
    }
    [folder, b"/", name].concat()
}

pub(super) struct Tree<'a> {
    root: BorrowedFd<'a>,
    /// The folders down to where we are.
    stack: Vec<(Vec<u8>, OwnedFd)>,
    /// What folders get at the end.
    folders: Paths<Attributes>,
    /// Of folders that no entry made.
    implied: Attributes,
    /// Bytes of paths that are kept.
    kept: usize,
    buffer: Vec<u8>,
}

/// How a folder is entered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Folders that are not there are made.
    Make,
    /// Then there is nothing to do.
    Nothing,
}

impl<'a> Tree<'a> {
    pub fn new(root: BorrowedFd<'a>, implied: Attributes) -> Self {
        Tree {
            root,
            stack: Vec::new(),
            folders: Paths::new(),
            implied,
            kept: 0,
            buffer: vec![0; CHUNK],
        }
    }

    /// Remembers a path.
    pub fn keep<T>(
        &mut self,
        paths: &mut Paths<T>,
        path: &Place,
        value: T,
    ) -> Result<(), UnpackError> {
        if paths.map.insert(path.to_vec(), value).is_none() {
            self.count(path)?;
        }
        Ok(())
    }

    fn count(&mut self, path: &Place) -> Result<(), UnpackError> {
        self.kept += path.len() + KEPT_OVERHEAD;
        if self.kept > MAX_KEPT {
            return Err(UnpackError::TooMany(
                "its paths are too many and too long".into(),
            ));
        }
        Ok(())
    }

    fn set_later(&mut self, path: &Place, attributes: Attributes) -> Result<(), UnpackError> {
        if self.folders.map.insert(path.to_vec(), attributes).is_none() {
            self.count(path)?;
        }
        Ok(())
    }

    /// Where we are.
    fn here(&self) -> BorrowedFd<'_> {
        self.stack.last().map_or(self.root, |(_, fd)| fd.as_fd())
    }

    /// Goes to a folder. False if it is not there, and is not to be made.
    pub fn enter(&mut self, folder: &Place, missing: Missing) -> Result<bool, UnpackError> {
        let names: Vec<&[u8]> = folder
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .collect();
        let same = self
            .stack
            .iter()
            .zip(&names)
            .take_while(|((open, _), name)| open.as_slice() == **name)
            .count();
        self.stack.truncate(same);
        for (at, name) in names.iter().enumerate().skip(same) {
            let fd = match self.step(name, &names[..=at]) {
                Ok(fd) => fd,
                Err(Errno::NOENT) if missing == Missing::Make => {
                    let path = names[..=at].join(&b'/');
                    let made = rustix::fs::mkdirat(self.here(), *name, Mode::RWXU);
                    made.map_err(|error| failed("make", &path, error))?;
                    let implied = self.implied;
                    self.set_later(&path, implied)?;
                    rustix::fs::openat(self.here(), *name, FOLDER, Mode::empty())
                        .map_err(|error| failed("open", &path, error))?
                }
                Err(Errno::NOENT) => return Ok(false),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let path = names[..=at].join(&b'/');
                    return Err(UnpackError::Bad(format!(
                        "something lies below {}, which is a link or a file",
                        show(&path)
                    )));
                }
                Err(error) => return Err(failed("open", &names[..=at].join(&b'/'), error)),
            };
            self.stack.push((name.to_vec(), fd));
        }
        Ok(true)
    }

    /// Opens a folder that is there. Of one that a layer below closed to its owner, the mode is set again at the end.
    fn step(&mut self, name: &[u8], path: &[&[u8]]) -> Result<OwnedFd, Errno> {
        let opened = rustix::fs::openat(self.here(), name, FOLDER, Mode::empty());
        let fd = match opened {
            Err(Errno::ACCESS) => {
                let stat = rustix::fs::statat(self.here(), name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    return Err(Errno::NOTDIR);
                }
                self.set_back(path, &stat)?;
                rustix::fs::chmodat(self.here(), name, Mode::RWXU, AtFlags::empty())?;
                return rustix::fs::openat(self.here(), name, FOLDER, Mode::empty());
            }
            other => other?,
        };
        let stat = rustix::fs::fstat(&fd)?;
        if stat.st_mode & 0o300 != 0o300 {
            self.set_back(path, &stat)?;
            rustix::fs::fchmod(&fd, Mode::RWXU)?;
        }
        Ok(fd)
    }

    fn set_back(&mut self, path: &[&[u8]], stat: &Stat) -> Result<(), Errno> {
        let path = path.join(&b'/');
        if self.folders.contains(&path) {
            return Ok(());
        }
        let attributes = Attributes {
            mode: stat.st_mode & 0o7777,
            owner: None,
            mtime: Some(stat.st_mtime),
        };
        self.set_later(&path, attributes).map_err(|_| Errno::NOMEM)
    }

    /// What is under a name where we are.
    pub fn look(&self, name: &[u8]) -> Result<Option<Stat>, UnpackError> {
        match rustix::fs::statat(self.here(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("look at", name, error)),
        }
    }

    /// Removes a file, or a folder with all that is in it. A missing one is fine.
    pub fn remove(&mut self, path: &Place) -> Result<(), UnpackError> {
        let (folder, name) = split(path);
        if !self.enter(folder, Missing::Nothing)? {
            return Ok(());
        }
        self.folders.remove_tree(path);
        remove_at(self.here(), name).map_err(|error| failed("remove", path, error))
    }

    /// The names in a folder.
    pub fn list(&mut self, folder: &Place) -> Result<Vec<Vec<u8>>, UnpackError> {
        if !self.enter(folder, Missing::Nothing)? {
            return Ok(Vec::new());
        }
        names_in(self.here()).map_err(|error| failed("read", folder, error))
    }

    /// A file with this content. What had its name is gone already.
    pub fn file(
        &mut self,
        path: &Place,
        content: &mut impl Read,
        attributes: Attributes,
    ) -> Result<(), UnpackError> {
        let (_, name) = split(path);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.here(), name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| failed("make", path, error))?;
        let mut file = std::fs::File::from(fd);
        loop {
            let count = match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(UnpackError::of_source(error)),
            };
            file.write_all(&self.buffer[..count])
                .map_err(|error| disk("write", path, error))?;
        }
        set(&file, attributes).map_err(|error| failed("finish", path, error))
    }

    /// A folder, made if it is not there; what else had its name is gone already.
    pub fn folder(&mut self, path: &Place, attributes: Attributes) -> Result<(), UnpackError> {
        self.enter(path, Missing::Make)?;
        self.set_later(path, attributes)
    }

    pub fn symlink(
        &mut self,
        path: &Place,
        target: &[u8],
        attributes: Attributes,
    ) -> Result<(), UnpackError> {
        let (_, name) = split(path);
        let link = || -> Result<(), Errno> {
            rustix::fs::symlinkat(target, self.here(), name)?;
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            if let Some((user, group)) = attributes.owner {
                rustix::fs::chownat(self.here(), name, Some(user), Some(group), flags)?;
            }
            if let Some(times) = times(attributes) {
                rustix::fs::utimensat(self.here(), name, &times, flags)?;
            }
            Ok(())
        };
        link().map_err(|error| failed("link", path, error))
    }

    /// Another name for a file of the tree, or for a symbolic link. We are where `path` is to be, and nothing has its
    /// name.
    pub fn hard_link(
        &mut self,
        path: &Place,
        target: &OwnedFd,
        name: &[u8],
    ) -> Result<(), UnpackError> {
        let (_, new) = split(path);
        rustix::fs::linkat(target, name, self.here(), new, AtFlags::empty())
            .map_err(|error| failed("link", path, error))
    }

    /// A handle of the folder where we are.
    pub fn handle(&self) -> Result<OwnedFd, UnpackError> {
        let fd = self.here().try_clone_to_owned();
        fd.map_err(|error| disk("open", b"a folder", error))
    }

    /// Overlayfs' whiteout: a character device 0/0, which anybody may make.
    pub fn whiteout(&mut self, path: &Place) -> Result<(), UnpackError> {
        let (_, name) = split(path);
        let kind = FileType::CharacterDevice;
        rustix::fs::mknodat(self.here(), name, kind, Mode::empty(), 0)
            .map_err(|error| failed("make the whiteout", path, error))
    }

    /// Overlayfs' opaque folder: nothing of it in layers below is seen.
    pub fn opaque(&mut self, folder: &Place, attribute: &str) -> Result<(), UnpackError> {
        self.enter(folder, Missing::Make)?;
        rustix::fs::fsetxattr(self.here(), attribute, b"y", XattrFlags::empty())
            .map_err(|error| failed("make opaque", folder, error))
    }

    /// Gives the folders what they are to have.
    pub fn finish(mut self) -> Result<(), UnpackError> {
        let folders = std::mem::take(&mut self.folders.map);
        for (path, attributes) in folders.iter().rev() {
            if !self.enter(path, Missing::Nothing)? {
                continue;
            }
            set(self.here(), *attributes).map_err(|error| failed("finish", path, error))?;
        }
        Ok(())
    }
}

fn times(attributes: Attributes) -> Option<Timestamps> {
    // What no file system can hold is not worth an error.
    let seconds = attributes.mtime?.clamp(-(1 << 31), 1 << 34);
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    Some(Timestamps {
        last_access: time,
        last_modification: time,
    })
}

/// Owner, mode, times, in this order: a change of the owner takes the setuid bit away.
fn set(fd: impl AsFd, attributes: Attributes) -> Result<(), Errno> {
    if let Some((user, group)) = attributes.owner {
        rustix::fs::fchown(&fd, Some(user), Some(group))?;
    }
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(attributes.mode))?;
    match times(attributes) {
        Some(times) => rustix::fs::futimens(&fd, &times),
        None => Ok(()),
    }
}

fn names_in(folder: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// As deep as paths may be.
fn remove_at(folder: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let inner = match rustix::fs::openat(folder, name, FOLDER, Mode::empty()) {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(folder, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(folder, name, FOLDER, Mode::empty())?
        }
        other => other?,
    };
    rustix::fs::fchmod(&inner, Mode::RWXU)?;
    for name in names_in(inner.as_fd())? {
        remove_at(inner.as_fd(), &name)?;
    }
    rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)
}

/// For people: what is no text is escaped.
pub(super) fn show(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let mut text: String = text.escape_debug().collect();
    if text.len() > 300 {
        let end = (0..=300).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    format!("`{text}`")
}

fn failed(what: &'static str, path: &[u8], error: Errno) -> UnpackError {
    disk(what, path, error.into())
}

fn disk(what: &'static str, path: &[u8], source: io::Error) -> UnpackError {
    UnpackError::Disk {
        what,
        path: show(path),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_a_path_is_found_and_nothing_beside_it() {
        let mut paths: Paths<()> = Paths::new();
        for path in ["a", "a-b", "a.b", "a/x", "a/x/y", "a0", "b"] {
            paths.map.insert(path.into(), ());
        }
        assert!(paths.is_above(b"a") && paths.is_above(b"a/x") && paths.is_above(b""));
        assert!(!paths.is_above(b"a/x/y") && !paths.is_above(b"b"));
        paths.remove_tree(b"a");
        let left: Vec<_> = paths.map.keys().map(|key| show(key)).collect();
        assert_eq!(left, ["`a-b`", "`a.b`", "`a0`", "`b`"]);
        assert_eq!(split(b"a/b/c"), (b"a/b".as_slice(), b"c".as_slice()));
        assert_eq!(split(b"c"), (b"".as_slice(), b"c".as_slice()));
        assert_eq!(join(b"", b"c"), b"c");
        assert_eq!(join(b"a/b", b"c"), b"a/b/c");
    }
}
