//! What a build left, looked at before it is kept: its digest, by which the same input can be seen to give the same
//! result, and whether a secret of the build is in it. The files are the app's: no link is followed, nothing is opened
//! but plain files, and everything is bounded.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use hutong_core::tree::{TreeDigest, digest_of};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, readlinkat};
use sha2::{Digest, Sha256};

/// Folders below each other.
const MAX_DEPTH: usize = 200;
/// Files of one result.
const MAX_FILES: usize = 2_000_000;
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
    let mut look = Look {
        secrets,
        overlap: longest.unwrap_or(0).saturating_sub(1),
        digest: TreeDigest::default(),
        held: None,
        buffer: Vec::new(),
    };
    look.folder(&top, "", 0)?;
    Ok(match look.held {
        Some((secret, path)) => Looked::Holds(secret, path),
        None => Looked::Clean(look.digest.finish()),
    })
}

struct Look<'a> {
    secrets: &'a [(&'a str, &'a [u8])],
    /// So much of a block is looked at again with the next: a secret may lie across both.
    overlap: usize,
    digest: TreeDigest,
    held: Option<(String, String)>,
    buffer: Vec<u8>,
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

    /// The content's hash.
    fn file(&mut self, mut file: File, path: &str) -> io::Result<[u8; 32]> {
        let mut sum = Sha256::new();
        let mut block = [0; BLOCK];
        self.buffer.clear();
        loop {
            let count = file.read(&mut block)?;
            if count == 0 {
                break;
            }
            sum.update(&block[..count]);
            if self.secrets.is_empty() {
                continue;
            }
            self.buffer.extend_from_slice(&block[..count]);
            for (name, value) in self.secrets {
                if holds(&self.buffer, value) {
                    self.held = Some(((*name).to_owned(), path.to_owned()));
                }
            }
            let done = self.buffer.len().saturating_sub(self.overlap);
            self.buffer.drain(..done);
        }
        Ok(sum.finalize().into())
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn holds(text: &[u8], value: &[u8]) -> bool {
    let Some(first) = value.first() else {
        return false;
    };
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = &rest[at..];
        if rest.starts_with(value) {
            return true;
        }
        rest = &rest[1..];
    }
    false
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
}
