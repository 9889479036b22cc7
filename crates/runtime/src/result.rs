//! What a build left, looked at before it is kept: its digest, by which the same input can be seen to give the same
//! result, and whether a secret of the build is in it. The files are the app's: no link is followed, nothing is opened
//! but plain files, and everything is bounded.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hutong_core::tree::{TreeDigest, digest_of};
use hutong_core::units::show_size;
use memchr::memmem::Finder;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, readlinkat};
use sha2::{Digest, Sha256};

/// Folders below each other; each holds descriptors and stack while it is looked at.
const MAX_DEPTH: usize = 64;
/// Files of one result.
const MAX_FILES: usize = 2_000_000;
/// The longest path, and all together, in bytes: they are held in memory.
const MAX_PATH: usize = 4096;
const MAX_PATHS: usize = 128 << 20;
/// What is read of one result, in bytes, and how long that may take.
const MAX_BYTES: u64 = 16 << 30;
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// So much more than lies on disk may a file say that it holds: what is nowhere would be read all the same.
const MAX_HOLE: u64 = 64 << 20;
const BLOCK: usize = 64 << 10;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Looked {
    /// The content digest, 64 hex digits. Times and owners do not count.
    Clean(String),
    /// A file holds a secret: the secret's name, and the file's path.
    Holds(String, String),
}

/// Looks at every file below `folder`. `secrets` are names and values; an empty value is in nothing.
pub fn look(folder: &std::path::Path, secrets: &[(&str, &[u8])]) -> io::Result<Looked> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, folder, flags, Mode::empty())?;
    let longest = secrets.iter().map(|(_, value)| value.len()).max();
    let secrets = secrets.iter().filter(|(_, value)| !value.is_empty());
    let mut look = Look {
        secrets: secrets
            .map(|(name, value)| (*name, Finder::new(*value)))
            .collect(),
        overlap: longest.unwrap_or(0).saturating_sub(1),
        digest: TreeDigest::default(),
        held: None,
        buffer: Vec::new(),
        block: vec![0; BLOCK],
        paths: 0,
        bytes: 0,
        deadline: Instant::now() + PATIENCE,
    };
    look.folder(&top, "", 0)?;
    Ok(match look.held {
        Some((secret, path)) => Looked::Holds(secret, path),
        None => Looked::Clean(look.digest.finish()),
    })
}

struct Look<'a> {
    secrets: Vec<(&'a str, Finder<'a>)>,
    /// So much of a block is looked at again with the next: a secret may lie across both.
    overlap: usize,
    digest: TreeDigest,
    held: Option<(String, String)>,
    buffer: Vec<u8>,
    block: Vec<u8>,
    /// Bytes of all paths, and of what was read.
    paths: usize,
    bytes: u64,
    deadline: Instant,
}

impl Look<'_> {
    fn folder(&mut self, folder: &OwnedFd, prefix: &str, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other("its folders are too deep"));
        }
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = format!("{prefix}{}", name.to_string_lossy());
            self.paths += path.len();
            if path.len() > MAX_PATH || self.paths > MAX_PATHS {
                return Err(io::Error::other("its paths are too long"));
            }
            self.in_time()?;
            if self.digest.len() >= MAX_FILES {
                return Err(io::Error::other(format!("it has over {MAX_FILES} files")));
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let opened = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
                Ok(opened) => opened,
                Err(rustix::io::Errno::LOOP) => {
                    let target = readlinkat(folder, name, Vec::new())?;
                    let target = target.to_string_lossy();
                    let content = digest_of(&["link", &*target]);
                    self.digest.add(&path, false, hash(content.as_bytes()));
                    continue;
                }
                // A socket, or what an ordinary user may not read: it is there, whatever is in it.
                Err(_) => {
                    self.digest.add(&path, false, hash(b"unread"));
                    continue;
                }
            };
            let found = fstat(&opened)?;
            match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => {
                    self.folder(&opened, &format!("{path}/"), depth + 1)?;
                }
                FileType::RegularFile => {
                    let on_disk = u64::try_from(found.st_blocks).unwrap_or(0) * 512;
                    let says = u64::try_from(found.st_size).unwrap_or(0);
                    if is_hollow(says, on_disk) {
                        return Err(io::Error::other(format!(
                            "the file {path} says that it holds {}, and only {} of it are there",
                            show_size(says),
                            show_size(on_disk)
                        )));
                    }
                    let content = self.file(File::from(opened), &path)?;
                    let executable = found.st_mode & 0o111 != 0;
                    self.digest.add(&path, executable, content);
                }
                _ => self.digest.add(&path, false, hash(b"special")),
            }
            if self.held.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn in_time(&self) -> io::Result<()> {
        if Instant::now() > self.deadline {
            return Err(io::Error::other(format!(
                "it takes over {} s to be looked at",
                PATIENCE.as_secs()
            )));
        }
        Ok(())
    }

    /// The content's hash.
    fn file(&mut self, mut file: File, path: &str) -> io::Result<[u8; 32]> {
        let mut sum = Sha256::new();
        self.buffer.clear();
        loop {
            let count = file.read(&mut self.block)?;
            if count == 0 {
                break;
            }
            self.bytes += count as u64;
            if self.bytes > MAX_BYTES {
                return Err(io::Error::other(format!(
                    "it holds over {}",
                    show_size(MAX_BYTES)
                )));
            }
            self.in_time()?;
            sum.update(&self.block[..count]);
            if self.secrets.is_empty() {
                continue;
            }
            self.buffer.extend_from_slice(&self.block[..count]);
            for (name, value) in &self.secrets {
                if value.find(&self.buffer).is_some() {
                    self.held = Some(((*name).to_owned(), path.to_owned()));
                }
            }
            let done = self.buffer.len().saturating_sub(self.overlap);
            self.buffer.drain(..done);
        }
        Ok(sum.finalize().into())
    }
}

fn is_hollow(says: u64, on_disk: u64) -> bool {
    says > on_disk.saturating_add(MAX_HOLE)
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_have_the_same_digest_whenever_they_were_made() {
        let make = |text: &str| {
            let folder = tempfile::tempdir().expect("tempdir");
            std::fs::create_dir(folder.path().join("a")).expect("mkdir");
            std::fs::write(folder.path().join("a/b"), text).expect("write");
            std::os::unix::fs::symlink("a/b", folder.path().join("link")).expect("symlink");
            look(folder.path(), &[]).expect("looked")
        };
        let first = make("x");
        assert_eq!(first, make("x"));
        assert_ne!(first, make("y"));
    }

    #[test]
    fn secrets_are_found_across_blocks_and_not_through_links() {
        let folder = tempfile::tempdir().expect("tempdir");
        let secret: (&str, &[u8]) = ("TOKEN", b"s3cret-value");
        let outside = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(outside.path(), secret.1).expect("write");
        std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).expect("symlink");
        let mut text = vec![b's'; BLOCK - 4];
        std::fs::write(folder.path().join("file"), &text).expect("write");
        let clean = look(folder.path(), &[secret]).expect("looked");
        assert!(matches!(clean, Looked::Clean(_)));
        text.extend_from_slice(secret.1);
        std::fs::write(folder.path().join("file"), &text).expect("write");
        let held = look(folder.path(), &[secret, ("NONE", b"")]).expect("looked");
        assert_eq!(held, Looked::Holds("TOKEN".into(), "file".into()));
    }

    #[test]
    fn what_would_take_for_ever_is_refused() {
        let folder = tempfile::tempdir().expect("tempdir");
        let file = File::create(folder.path().join("hole")).expect("a file");
        file.set_len(1 << 40).expect("longer");
        let refused = look(folder.path(), &[]).expect_err("a hole").to_string();
        assert!(refused.contains("the file hole says"), "{refused}");
        file.set_len(1 << 20).expect("shorter");
        assert!(look(folder.path(), &[]).is_ok());
        let deep = folder.path().join("d/".repeat(MAX_DEPTH + 2));
        std::fs::create_dir_all(deep).expect("mkdir");
        let refused = look(folder.path(), &[]).expect_err("deep").to_string();
        assert!(refused.contains("too deep"), "{refused}");
    }

    #[test]
    fn paths_are_bounded() {
        let folder = tempfile::tempdir().expect("tempdir");
        // Each name is short enough for the system, all together are not.
        let deep = folder
            .path()
            .join(format!("{}/", "d".repeat(190)).repeat(20));
        std::fs::create_dir_all(&deep).expect("mkdir");
        let name = std::ffi::CString::new("e".repeat(250)).expect("a name");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = rustix::fs::openat(CWD, &deep, flags, Mode::empty()).expect("opened");
        for _ in 0..2 {
            rustix::fs::mkdirat(&at, name.as_c_str(), Mode::RWXU).expect("mkdirat");
            at = rustix::fs::openat(&at, name.as_c_str(), flags, Mode::empty()).expect("opened");
        }
        let refused = look(folder.path(), &[]).expect_err("long").to_string();
        assert!(refused.contains("paths are too long"), "{refused}");
    }
}
