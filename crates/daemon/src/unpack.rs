//! An uploaded archive (tar, gzip) becomes a tree: only plain files and folders, only below its own
//! root, bounded in size and number, and its content must have the digest that was announced.

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
const MAX_ENTRIES: usize = 200_000;

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
    let digest = extract(unpacked, &temporary.0).map_err(|error| match error {
        UnpackError::Broken(error) if is_over(&error) => UnpackError::TooLarge(max_packed),
        other => other,
    })?;
    fail::fallible("upload.unpacked").map_err(UnpackError::Disk)?;
    let found = digest.finish();
    if found != claimed {
        return Err(UnpackError::Mismatch {
            found,
            claimed: claimed.to_owned(),
        });
    }
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

fn extract(archive: impl Read, root: &Path) -> Result<TreeDigest, UnpackError> {
    let mut digest = TreeDigest::default();
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
            digest.add(path, executable, content);
        } else {
            return Err(UnpackError::Bad(format!(
                "`{path}` is a {}; an archive may hold plain files and folders only",
                describe(kind)
            )));
        }
    }
    if digest.is_empty() {
        return Err(UnpackError::Bad("the archive is empty".into()));
    }
    Ok(digest)
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
