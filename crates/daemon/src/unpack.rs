//! An uploaded archive (tar, gzip) becomes a tree: only plain files and folders, only below its own
//! root, bounded in size and number, and its content must have the digest that was announced.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use hutong_core::tree::{TreeDigest, check_path};
use hutong_ipc::fail;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Unpacked, an upload may have at most this many times its allowed packed size.
const EXPANSION: u64 = 4;
pub const MAX_ENTRIES: usize = 200_000;
const EMPTY: &str = "the archive is empty";
/// How much is written before it is asked again whether there is room, in bytes.
const ASK_EVERY: u64 = 64 << 20;

#[derive(Debug, Error)]
pub enum UnpackError {
    /// What is wrong with the archive.
    #[error("{0}")]
    Bad(String),
    #[error("the archive is cut off or broken: {0}")]
    Broken(io::Error),
    #[error("the upload is over the bound of {}", hutong_core::units::show_size(*.0))]
    TooLarge(u64),
    #[error("the archive's content has the digest {found}, not {claimed} as announced")]
    Mismatch { found: String, claimed: String },
    #[error("the archive cannot be stored: {0}")]
    Disk(io::Error),
}

/// Unpacks into `trees/DIGEST`; on any failure nothing is left.
pub fn unpack(
    archive: impl Read,
    trees: &Path,
    claimed: &str,
    max_packed: u64,
    group: Option<u32>,
) -> Result<(), UnpackError> {
    let target = trees.join(claimed);
    if target.exists() {
        return Ok(());
    }
    fail::fallible("upload.begin").map_err(UnpackError::Disk)?;
    let temporary = Temporary::new(trees)?;
    let budget = max_packed.saturating_mul(EXPANSION);
    let packed = Bounded {
        inner: archive,
        left: max_packed,
    };
    let unpacked = Bounded {
        inner: GzDecoder::new(packed),
        left: budget,
    };
    let extracted = extract(unpacked, &temporary.0, Links::Refused);
    let digest = extracted.map_err(|error| sized(error, max_packed))?.digest;
    fail::fallible("upload.unpacked").map_err(UnpackError::Disk)?;
    let found = digest.finish();
    if found != claimed {
        return Err(UnpackError::Mismatch {
            found,
            claimed: claimed.to_owned(),
        });
    }
    keep(&temporary, trees, claimed, group)
}

/// A tree that was made of an archive of our own.
#[derive(Debug)]
pub struct Unpacked {
    pub digest: String,
    pub files: usize,
    /// Nobody had it before.
    pub is_new: bool,
}

/// The same for an archive that one of our own programs makes (tar, not compressed), whose content has the digest that is
/// answered. Links to files inside are files of the same content. `is_whole` is asked before the tree gets its name, and
/// `has_room` now and then.
pub fn unpack_plain(
    archive: impl Read,
    trees: &Path,
    max: u64,
    group: Option<u32>,
    has_room: &dyn Fn() -> Result<(), String>,
    is_whole: impl FnOnce() -> Result<(), UnpackError>,
) -> Result<Unpacked, UnpackError> {
    fail::fallible("export.begin").map_err(UnpackError::Disk)?;
    let temporary = Temporary::new(trees)?;
    let room = Room::new(has_room);
    let mut bounded = Bounded {
        inner: Watched {
            inner: archive,
            room: &room,
        },
        left: max,
    };
    let mut extracted = extract(&mut bounded, &temporary.0, Links::Copied);
    if extracted.is_ok() {
        // Zeros behind the end: whoever writes them is not to find a closed pipe.
        let _ = io::copy(&mut bounded, &mut io::sink());
    }
    let left = bounded.left;
    drop(bounded);
    if let Ok(found) = &mut extracted
        && let Err(error) = copy_links(found, &temporary.0, max, left, &room)
    {
        extracted = Err(error);
    }
    if let Some(why) = room.low.take() {
        return Err(UnpackError::Bad(why));
    }
    let digest = match extracted.map_err(|error| sized(error, max)) {
        Ok(extracted) => extracted.digest,
        Err(error) => {
            // Whoever makes it knows better why it is cut off, or none.
            let is_cut = match &error {
                UnpackError::Broken(_) => true,
                UnpackError::Bad(why) => why == EMPTY,
                _ => false,
            };
            if is_cut {
                is_whole()?;
            }
            return Err(error);
        }
    };
    is_whole()?;
    let files = digest.len();
    let found = digest.finish();
    let is_new = !trees.join(&found).exists();
    if is_new {
        keep(&temporary, trees, &found, group)?;
    }
    Ok(Unpacked {
        digest: found,
        files,
        is_new,
    })
}

/// Takes a tree's name away, so that half a tree is never taken for a whole one; where it lies now, to be deleted.
pub fn take_away(trees: &Path, digest: &str) -> Option<PathBuf> {
    let mut random = [0; 4];
    // Without it, two that go at the same time have the same name, and the second one stays until the next start.
    let _ = getrandom::fill(&mut random);
    let mark = hutong_core::tree::hex(&random);
    let gone = trees.join(format!(".upload-gone-{digest}-{mark}"));
    fs::rename(trees.join(digest), &gone).ok()?;
    Some(gone)
}

fn sized(error: UnpackError, max: u64) -> UnpackError {
    match error {
        UnpackError::Broken(error) if is_over(&error) => UnpackError::TooLarge(max),
        other => other,
    }
}

/// Gives a tree its name, once it is on disk.
fn keep(
    temporary: &Temporary,
    trees: &Path,
    digest: &str,
    group: Option<u32>,
) -> Result<(), UnpackError> {
    let target = trees.join(digest);
    let finish = || -> io::Result<()> {
        if let Some(group) = group {
            std::os::unix::fs::chown(&temporary.0, None, Some(group))?;
        }
        fs::set_permissions(&temporary.0, fs::Permissions::from_mode(0o755))?;
        // One flush for all files, before the name says that they are there.
        rustix::fs::syncfs(fs::File::open(&temporary.0)?)?;
        fail::fallible("upload.synced")?;
        match fs::rename(&temporary.0, &target) {
            // Someone uploaded the same at the same time.
            Err(_) if target.exists() => Ok(()),
            other => other,
        }?;
        fail::point("upload.renamed");
        fs::File::open(trees)?.sync_all()
    };
    finish().map_err(UnpackError::Disk)
}

/// Removes what interrupted uploads and deletions left.
pub fn sweep(trees: &Path) {
    for entry in fs::read_dir(trees).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".upload-") {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

struct Temporary(PathBuf);

impl Temporary {
    fn new(trees: &Path) -> Result<Self, UnpackError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|e| UnpackError::Disk(io::Error::other(e)))?;
        let path = trees.join(format!(".upload-{}", hutong_core::tree::hex(&random)));
        fs::create_dir(&path).map_err(UnpackError::Disk)?;
        Ok(Temporary(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a success it was renamed away.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Ends with an error, not with silence, when too much comes.
struct Bounded<R> {
    inner: R,
    left: u64,
}

const OVER: &str = "over the bound";

fn is_over(error: &io::Error) -> bool {
    error.to_string().contains(OVER)
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::other(OVER))?;
        Ok(count)
    }
}

/// Asks now and then whether there is room for what is written.
struct Room<'a> {
    ask: &'a dyn Fn() -> Result<(), String>,
    since: Cell<u64>,
    /// Why there is none.
    low: RefCell<Option<String>>,
}

impl<'a> Room<'a> {
    fn new(ask: &'a dyn Fn() -> Result<(), String>) -> Self {
        Room {
            ask,
            since: Cell::new(0),
            low: RefCell::new(None),
        }
    }

    fn took(&self, bytes: u64) -> io::Result<()> {
        let since = self.since.get().saturating_add(bytes);
        if since < ASK_EVERY {
            self.since.set(since);
            return Ok(());
        }
        self.since.set(0);
        (self.ask)().map_err(|why| {
            self.low.replace(Some(why));
            io::ErrorKind::StorageFull.into()
        })
    }
}

/// What is read is written, too.
struct Watched<'a, R> {
    inner: R,
    room: &'a Room<'a>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.room.took(count as u64)?;
        Ok(count)
    }
}

/// What becomes of symbolic links.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Links {
    Refused,
    /// A file of the same content takes the place of each ([`copy_links`]).
    Copied,
}

/// What an archive had.
#[derive(Default)]
struct Extracted {
    digest: TreeDigest,
    /// Of links' targets: whether it is executable, and the digest of its content.
    files: BTreeMap<String, (bool, [u8; 32])>,
    links: BTreeMap<String, String>,
}

fn extract(archive: impl Read, root: &Path, links: Links) -> Result<Extracted, UnpackError> {
    let mut found = Extracted::default();
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().map_err(UnpackError::Broken)?;
    for (count, entry) in entries.enumerate() {
        let mut entry = entry.map_err(UnpackError::Broken)?;
        if count >= MAX_ENTRIES {
            return Err(UnpackError::Bad(format!(
                "the archive has over {MAX_ENTRIES} entries"
            )));
        }
        let name = entry.path_bytes().into_owned();
        let name = String::from_utf8(name).map_err(|error| {
            let name = String::from_utf8_lossy(error.as_bytes()).into_owned();
            UnpackError::Bad(format!("the name `{name}` is not UTF-8"))
        })?;
        let path = check_path(&name).map_err(UnpackError::Bad)?;
        let kind = entry.header().entry_type();
        let place = root.join(path);
        if kind.is_dir() {
            fs::create_dir_all(&place).map_err(UnpackError::Disk)?;
        } else if kind.is_file() {
            if path.is_empty() {
                return Err(UnpackError::Bad("an entry has no name".into()));
            }
            let mode = entry.header().mode().unwrap_or(0o644);
            let executable = mode & 0o111 != 0;
            let content = write_file(&mut entry, &place, executable)?;
            found.digest.add(path, executable, content);
            if links == Links::Copied {
                found.files.insert(path.to_owned(), (executable, content));
            }
        } else if kind.is_symlink() && links == Links::Copied {
            let target = entry.link_name_bytes().unwrap_or_default();
            let target = String::from_utf8_lossy(&target).into_owned();
            found.links.insert(path.to_owned(), target);
        } else {
            return Err(UnpackError::Bad(format!(
                "`{path}` is a {}; an archive may hold plain files and folders only",
                describe(kind)
            )));
        }
    }
    if found.digest.is_empty() && found.links.is_empty() {
        return Err(UnpackError::Bad(EMPTY.into()));
    }
    Ok(found)
}

/// Puts files in the place of links: of `left` bytes in all, which is what the archive has left of `most`.
fn copy_links(
    found: &mut Extracted,
    root: &Path,
    most: u64,
    left: u64,
    room: &Room<'_>,
) -> Result<(), UnpackError> {
    let mut left = left;
    for path in found.links.keys() {
        let target = follow(path, &found.links).map_err(UnpackError::Bad)?;
        let Some((executable, content)) = found.files.get(&target) else {
            return Err(UnpackError::Bad(format!(
                "`{path}` is a link to `{target}`, which is no file of the same tree; copy what it points at"
            )));
        };
        let source = fs::File::open(root.join(&target)).map_err(UnpackError::Disk)?;
        let size = source.metadata().map_err(UnpackError::Disk)?.len();
        left = left.checked_sub(size).ok_or(UnpackError::TooLarge(most))?;
        let mut source = Watched {
            inner: source,
            room,
        };
        write_file(&mut source, &root.join(path), *executable)?;
        found.digest.add(path, *executable, *content);
    }
    Ok(())
}

/// Links that lead to links, at most.
const MAX_LINKS: usize = 8;

/// Where a link leads, as a path from the root. Only names are looked at: none of the links is on disk.
fn follow(path: &str, links: &BTreeMap<String, String>) -> Result<String, String> {
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Some(target) = links.get(&at) else {
            return Ok(at);
        };
        if target.starts_with('/') {
            return Err(format!("`{path}` is a link to `{target}`, out of the tree"));
        }
        let mut parts: Vec<&str> = at.split('/').collect();
        parts.pop();
        for part in target.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop().ok_or_else(|| {
                        format!("`{path}` is a link to `{target}`, out of the tree")
                    })?;
                }
                part => parts.push(part),
            }
        }
        let next = parts.join("/");
        at = next;
    }
    Err(format!(
        "`{path}` is a link that leads through too many others"
    ))
}

fn describe(kind: tar::EntryType) -> &'static str {
    match kind {
        tar::EntryType::Symlink => "symbolic link",
        tar::EntryType::Link => "hard link",
        tar::EntryType::Char | tar::EntryType::Block => "device",
        tar::EntryType::Fifo => "named pipe",
        _ => "special entry",
    }
}

fn write_file(
    source: &mut impl Read,
    place: &Path,
    executable: bool,
) -> Result<[u8; 32], UnpackError> {
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).map_err(UnpackError::Disk)?;
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(if executable { 0o755 } else { 0o644 })
        .open(place)
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => UnpackError::Bad(format!(
                "`{}` is in the archive twice",
                place.file_name().unwrap_or_default().to_string_lossy()
            )),
            _ => UnpackError::Disk(error),
        })?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = source.read(&mut buffer).map_err(UnpackError::Broken)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        file.write_all(&buffer[..count])
            .map_err(UnpackError::Disk)?;
    }
    let mode = if executable { 0o755 } else { 0o644 };
    file.set_permissions(fs::Permissions::from_mode(mode))
        .map_err(UnpackError::Disk)?;
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests;
