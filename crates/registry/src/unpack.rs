//! Layers become folders (image spec, "Image Layer Filesystem Changeset"). What is in a layer is somebody else's word:
//! nothing outside of the folder is reached ([`place`]), nothing is unbounded ([`Bounds`]), and in the end the archive
//! must have the digest that the image's configuration gives it.
//!
//! There are two ways. [`Layers`] keeps each layer in a folder of its own, which images share and overlayfs stacks;
//! [`apply`] puts one layer over others in the same folder. Root is needed for neither; without it, all files are the
//! caller's.
//!
//! What is not taken over: extended attributes (a capability of a file would be one on the host; `user.overlay.…` would
//! be an order to overlayfs), devices and pipes. They are counted, and said in [`Unpacked::notes`]. What is refused:
//! `..`, something below a link, sparse files, hard links to what is not in the folder. Links are kept as they are and
//! never followed. Of a layer in a folder of its own, folders that no entry of the layer makes are root's with mode
//! 0755, whatever a layer below says; tools that make layers do name them.

pub mod archive;
mod layers;
mod options;
mod packed;
mod place;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::AsFd;

use hutong_core::units::show_size;
use rustix::fs::FileType;
use thiserror::Error;

use crate::digest::{Algorithm, Digest};
use archive::{Archive, Entry, Kind};
pub use layers::Layers;
pub use options::{Bounds, Budget, MapIds, Opaque, Options, Owners, SetId, Whiteouts};
use packed::{Over, Unpacking};
use place::{Attributes, Missing, Paths, Place, Tree, join, show, split};

/// What came of a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub entries: u64,
    /// Of the archive.
    pub bytes: u64,
    /// What was left out, for people.
    pub notes: Vec<String>,
}

#[derive(Debug, Error)]
pub enum UnpackError {
    /// Of the archive itself.
    #[error("the layer's archive is broken: {0}")]
    Broken(String),
    #[error("the layer is cut off or broken: {0}")]
    Source(io::Error),
    /// An entry that is not allowed.
    #[error("{0}")]
    Bad(String),
    #[error("the layer holds {0}, which is not supported")]
    Unsupported(String),
    #[error(
        "unpacked, the image is over its bound of {}: {} of the packed layer came to {} already",
        show_size(*.bound),
        show_size(*.packed),
        show_size(*.came)
    )]
    TooLarge { bound: u64, packed: u64, came: u64 },
    #[error("the layer is too much: {0}")]
    TooMany(String),
    #[error("the layer has the digest {found}, not {wanted} as the image's configuration says")]
    Mismatch { wanted: Digest, found: Digest },
    #[error("cannot {what} {path}: {source}")]
    Disk {
        what: &'static str,
        path: String,
        source: io::Error,
    },
}

impl UnpackError {
    /// Of reading the layer.
    fn of_source(error: io::Error) -> Self {
        UnpackError::Source(error)
    }

    fn is_over(&self) -> bool {
        match self {
            UnpackError::Source(error) => error.get_ref().is_some_and(|inner| inner.is::<Over>()),
            _ => false,
        }
    }
}

/// Puts a layer over what is below `root`: a handle of a folder, open for reading, that nobody else changes meanwhile.
/// `packed` is the blob; gzip, zstd and plain archives are told apart. If the archive has not the digest `diff_id`, that
/// is known at the end only: after an error, what is there is to be thrown away. Blocks.
pub fn apply(
    root: impl AsFd,
    packed: impl Read,
    diff_id: Option<&Digest>,
    options: &Options,
    budget: &mut Budget,
) -> Result<Unpacked, UnpackError> {
    let algorithm = diff_id.map_or(Algorithm::Sha256, Digest::algorithm);
    let bounds = budget.bounds;
    let unpacking = Unpacking::new(packed, algorithm, &mut budget.bytes);
    let mut unpacking = unpacking.map_err(UnpackError::of_source)?;
    let mut work = Work {
        tree: Tree::new(root.as_fd(), options.attributes_of_implied()?),
        options,
        bounds,
        own: Paths::new(),
        notes: Notes::default(),
    };
    let mut entries = 0;
    let mut unpack = || -> Result<(), UnpackError> {
        let mut archive = Archive::new(&mut unpacking);
        while let Some(entry) = archive.advance()? {
            budget.entries = budget.entries.checked_sub(1).ok_or_else(|| {
                let text = format!("the image has over {} entries", bounds.entries);
                UnpackError::TooMany(text)
            })?;
            entries += 1;
            work.entry(entry, &mut archive)?;
        }
        Ok(())
    };
    let unpacked = unpack();
    let (packed, came) = unpacking.figures();
    match unpacked {
        Err(error) if error.is_over() => {
            return Err(UnpackError::TooLarge {
                bound: bounds.bytes,
                packed,
                came,
            });
        }
        other => other?,
    }
    let found = unpacking.digest();
    if let Some(wanted) = diff_id
        && *wanted != found
    {
        let wanted = wanted.clone();
        return Err(UnpackError::Mismatch { wanted, found });
    }
    work.tree.finish()?;
    Ok(Unpacked {
        entries,
        bytes: came,
        notes: work.notes.show(),
    })
}

/// A layer that is being unpacked.
struct Work<'a> {
    tree: Tree<'a>,
    options: &'a Options,
    bounds: Bounds,
    /// What this layer made, where whiteouts are applied: they hide only what was there before.
    own: Paths<()>,
    notes: Notes,
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What aufs kept for itself.
const AUFS: &[u8] = b".wh..wh.";

impl Work<'_> {
    fn entry(&mut self, entry: Entry, content: &mut impl Read) -> Result<(), UnpackError> {
        let path = self.clean(&entry.path)?;
        let (folder, name) = split(&path);
        let is_order = |part: &[u8]| part.starts_with(WHITEOUT);
        if folder.split(|byte| *byte == b'/').any(is_order) {
            if folder
                .split(|byte| *byte == b'/')
                .any(|part| part.starts_with(AUFS))
            {
                self.notes.add("files of aufs were left out", &path);
                return Ok(());
            }
            let text = format!("{} lies below a whiteout", show(&path));
            return Err(UnpackError::Bad(text));
        }
        if name == OPAQUE {
            return self.hide_all(folder);
        }
        if name.starts_with(AUFS) {
            self.notes.add("files of aufs were left out", &path);
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            // As a name it would be checked by `clean`; here it has had four bytes before it.
            if matches!(hidden, b"" | b"." | b"..") {
                let text = format!("the whiteout {} names nothing", show(&path));
                return Err(UnpackError::Bad(text));
            }
            return self.hide(&join(folder, hidden));
        }
        if !entry.attributes.is_empty() {
            let capability = entry
                .attributes
                .iter()
                .any(|name| name == "security.capability");
            let what = if capability {
                "files lost their capabilities (security.capability)"
            } else {
                "files lost extended attributes"
            };
            self.notes.add(what, &path);
        }
        match entry.kind {
            Kind::File | Kind::Directory | Kind::Symlink | Kind::HardLink => {}
            Kind::Device => {
                self.notes.add("devices were left out", &path);
                return Ok(());
            }
            Kind::Pipe => {
                self.notes.add("named pipes were left out", &path);
                return Ok(());
            }
            Kind::Other => {
                self.notes
                    .add("entries of unknown types were left out", &path);
                return Ok(());
            }
        }
        if path.is_empty() {
            if entry.kind != Kind::Directory {
                return Err(UnpackError::Bad("an entry has no name".into()));
            }
            let attributes = self.attributes(&entry, &path)?;
            return self.tree.folder(&path, attributes);
        }
        self.make(&path, &entry, content)?;
        if self.options.whiteouts == Whiteouts::Apply {
            self.tree.keep(&mut self.own, &path, ())?;
        }
        Ok(())
    }

    fn make(
        &mut self,
        path: &Place,
        entry: &Entry,
        content: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let (folder, name) = split(path);
        let attributes = self.attributes(entry, path)?;
        // Before anything is removed: the other name may be the same file.
        let target = match entry.kind {
            Kind::HardLink => Some(self.target(path, entry)?),
            _ => None,
        };
        self.tree.enter(folder, Missing::Make)?;
        let there = self.tree.look(name)?;
        let there = there.map(|stat| (FileType::from_raw_mode(stat.st_mode), stat.st_ino));
        match (entry.kind, there) {
            (Kind::Directory, Some((FileType::Directory, _))) => {
                return self.tree.folder(path, attributes);
            }
            (Kind::HardLink, Some((_, inode)))
                if Some(inode) == target.as_ref().map(|t| t.inode) =>
            {
                return Ok(());
            }
            (_, Some(_)) => {
                self.tree.remove(path)?;
                self.own.remove_tree(path);
            }
            (_, None) => {}
        }
        match entry.kind {
            Kind::Directory => {
                self.tree.folder(path, attributes)?;
                // Something else with its name hid what layers below have; the folder would show it again.
                if let Whiteouts::Overlay(opaque) = self.options.whiteouts
                    && there.is_some()
                {
                    self.tree.opaque(path, opaque.attribute())?;
                }
                Ok(())
            }
            Kind::Symlink => {
                if entry.link.is_empty() {
                    let text = format!("the link {} names nothing", show(path));
                    return Err(UnpackError::Bad(text));
                }
                self.tree.symlink(path, &entry.link, attributes)
            }
            Kind::HardLink => match target {
                Some(target) => self.tree.hard_link(path, &target.folder, &target.name),
                None => Ok(()),
            },
            _ => self.tree.file(path, content, attributes),
        }
    }

    /// What a hard link is to be another name of.
    fn target(&mut self, path: &Place, entry: &Entry) -> Result<Target, UnpackError> {
        let other = self.clean(&entry.link)?;
        let (folder, name) = split(&other);
        let missing = || {
            UnpackError::Bad(format!(
                "{} is to be another name of {}, which is no file of the layer",
                show(path),
                show(&other)
            ))
        };
        if name.is_empty() || !self.tree.enter(folder, Missing::Nothing)? {
            return Err(missing());
        }
        let stat = self.tree.look(name)?.ok_or_else(missing)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Symlink => {}
            _ => return Err(missing()),
        }
        Ok(Target {
            folder: self.tree.handle()?,
            name: name.to_vec(),
            inode: stat.st_ino,
        })
    }

    fn attributes(&mut self, entry: &Entry, path: &Place) -> Result<Attributes, UnpackError> {
        let mut mode = entry.mode & 0o7777;
        let is_file = entry.kind == Kind::File;
        if is_file && mode & 0o6000 != 0 && self.options.set_id == SetId::Drop {
            self.notes
                .add("files lost their setuid or setgid bits", path);
            mode &= 0o1777;
        }
        Ok(Attributes {
            mode,
            owner: self.options.owner(entry.uid, entry.gid)?,
            mtime: Some(entry.mtime),
        })
    }

    /// A whiteout: `path` of layers below is not seen.
    fn hide(&mut self, path: &Place) -> Result<(), UnpackError> {
        match self.options.whiteouts {
            Whiteouts::Apply => self.remove_older(path),
            Whiteouts::Overlay(opaque) => {
                let (folder, name) = split(path);
                self.tree.enter(folder, Missing::Make)?;
                let there = self.tree.look(name)?;
                match there.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                    None => self.tree.whiteout(path),
                    // This layer's own folder stays, and takes in nothing from below.
                    Some(FileType::Directory) => self.tree.opaque(path, opaque.attribute()),
                    // Its own file, or another whiteout, hides what is below already.
                    Some(_) => Ok(()),
                }
            }
        }
    }

    /// An opaque whiteout: nothing that layers below have in `folder` is seen.
    fn hide_all(&mut self, folder: &Place) -> Result<(), UnpackError> {
        match self.options.whiteouts {
            Whiteouts::Apply => self.remove_older_in(folder),
            Whiteouts::Overlay(opaque) => self.tree.opaque(folder, opaque.attribute()),
        }
    }

    /// Removes what was there before this layer.
    fn remove_older(&mut self, path: &Place) -> Result<(), UnpackError> {
        if !self.own.contains(path) && !self.own.is_above(path) {
            return self.tree.remove(path);
        }
        let (folder, name) = split(path);
        if !self.tree.enter(folder, Missing::Nothing)? {
            return Ok(());
        }
        match self.tree.look(name)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                self.remove_older_in(path)
            }
            _ => Ok(()),
        }
    }

    fn remove_older_in(&mut self, folder: &Place) -> Result<(), UnpackError> {
        for name in self.tree.list(folder)? {
            self.remove_older(&join(folder, &name))?;
        }
        Ok(())
    }

    /// A path as it is walked: names between slashes. A slash at the beginning means the root of the image.
    fn clean(&self, path: &[u8]) -> Result<Vec<u8>, UnpackError> {
        let bad = |what: &str| UnpackError::Bad(format!("{} {what}", show(path)));
        if path.len() > self.bounds.path {
            return Err(bad("is too long"));
        }
        if path.contains(&0) {
            return Err(bad("holds a zero byte"));
        }
        let mut clean = Vec::with_capacity(path.len());
        let mut depth = 0;
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => return Err(bad("does not stay inside the image")),
                _ if name.len() > 255 => return Err(bad("has a name that is too long")),
                _ => {}
            }
            depth += 1;
            if depth > self.bounds.depth {
                return Err(bad("is too deep"));
            }
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(name);
        }
        Ok(clean)
    }
}

struct Target {
    folder: std::os::fd::OwnedFd,
    name: Vec<u8>,
    inode: u64,
}

/// What was left out: how often, and where first.
#[derive(Default)]
struct Notes(BTreeMap<&'static str, (u64, String)>);

impl Notes {
    fn add(&mut self, what: &'static str, path: &Place) {
        let (count, _) = self.0.entry(what).or_insert_with(|| (0, show(path)));
        *count += 1;
    }

    fn show(&self) -> Vec<String> {
        let line = |(what, (count, first)): (&&str, &(u64, String))| match count {
            1 => format!("{what}: {first}"),
            _ => format!("{what}: {first} and {} more", count - 1),
        };
        self.0.iter().map(line).collect()
    }
}
