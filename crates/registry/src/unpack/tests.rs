//! Layers, good and hostile, into folders of the test's own.

mod folders;
mod good;
mod hostile;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};

use super::*;

/// An archive in the making. Fields are written raw: a library would refuse to make hostile ones.
#[derive(Default)]
struct Tar(Vec<u8>);

struct With<'a> {
    kind: EntryType,
    path: &'a [u8],
    link: &'a [u8],
    content: &'a [u8],
    mode: u32,
    ids: (u64, u64),
    mtime: u64,
}

impl Default for With<'_> {
    fn default() -> Self {
        With {
            kind: EntryType::Regular,
            path: b"",
            link: b"",
            content: b"",
            mode: 0o644,
            ids: (0, 0),
            mtime: 1_000_000_000,
        }
    }
}

impl Tar {
    fn add(mut self, with: With<'_>) -> Self {
        let mut header = Header::new_gnu();
        let bytes = header.as_mut_bytes();
        let short = with.path.len().min(100);
        bytes[..short].copy_from_slice(&with.path[..short]);
        let linked = with.link.len().min(100);
        bytes[157..157 + linked].copy_from_slice(&with.link[..linked]);
        header.set_entry_type(with.kind);
        header.set_mode(with.mode);
        header.set_uid(with.ids.0);
        header.set_gid(with.ids.1);
        header.set_mtime(with.mtime);
        header.set_size(with.content.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(with.content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.add(With {
            path: path.as_bytes(),
            content: content.as_bytes(),
            ..With::default()
        })
    }

    fn folder(self, path: &str) -> Self {
        self.add(With {
            kind: EntryType::Directory,
            path: path.as_bytes(),
            mode: 0o755,
            ..With::default()
        })
    }

    fn link(self, kind: EntryType, path: &str, link: &str) -> Self {
        self.add(With {
            kind,
            path: path.as_bytes(),
            link: link.as_bytes(),
            ..With::default()
        })
    }

    fn symlink(self, path: &str, link: &str) -> Self {
        self.link(EntryType::Symlink, path, link)
    }

    fn hard_link(self, path: &str, link: &str) -> Self {
        self.link(EntryType::Link, path, link)
    }

    /// Records of POSIX for the next entry.
    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut all = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length += 1;
            }
            all.extend_from_slice(format!("{length} {key}=").as_bytes());
            all.extend_from_slice(value);
            all.push(b'\n');
        }
        self.add(With {
            kind: EntryType::XHeader,
            path: b"pax",
            content: &all,
            ..With::default()
        })
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

/// A root beside which there is something that must stay.
struct Root {
    _dir: tempfile::TempDir,
    outside: std::path::PathBuf,
    path: std::path::PathBuf,
}

fn root() -> Root {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("root");
    fs::create_dir(&path).expect("mkdir");
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("file"), "outside").expect("write");
    Root {
        _dir: dir,
        outside,
        path,
    }
}

impl Root {
    fn put(&self, layer: &[u8], options: &Options) -> Result<Unpacked, UnpackError> {
        let mut budget = Budget::new(&options.bounds);
        let root = File::open(&self.path).expect("open");
        apply(&root, layer, None, options, &mut budget)
    }

    fn apply(&self, layer: Tar) -> Result<Unpacked, UnpackError> {
        self.put(&layer.end(), &Options::default())
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path.join(path)).expect(path)
    }

    fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path.join(path)).is_ok()
    }

    fn mode(&self, path: &str) -> u32 {
        let meta = fs::symlink_metadata(self.path.join(path)).expect(path);
        meta.permissions().mode() & 0o7777
    }

    /// Nothing got out.
    fn is_tight(&self) {
        let names: Vec<_> = fs::read_dir(&self.outside)
            .expect("read")
            .flatten()
            .collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let text = fs::read_to_string(self.outside.join("file")).expect("read");
        assert_eq!(text, "outside");
        let count = fs::read_dir(self._dir.path()).expect("read").count();
        assert_eq!(count, 2, "something beside the root");
    }
}

fn says(result: Result<Unpacked, UnpackError>, what: &str) {
    let text = result.expect_err(what).to_string();
    assert!(text.contains(what), "{text:?} does not say {what:?}");
}

fn overlay() -> Options {
    Options {
        whiteouts: Whiteouts::Overlay(Opaque::User),
        ..Options::default()
    }
}

/// The tests' file system may have no extended attributes of users.
fn has_attributes(path: &Path) -> bool {
    let flags = rustix::fs::XattrFlags::empty();
    let has = rustix::fs::setxattr(path, "user.test", b"y", flags).is_ok();
    if !has {
        println!("skipped: the file system has no user.* attributes");
    }
    has
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0u8; 8];
    let found = rustix::fs::getxattr(path, "user.overlay.opaque", &mut value[..]);
    found.is_ok_and(|count| value[..count] == *b"y")
}

fn is_whiteout(path: &Path) -> bool {
    let meta = fs::symlink_metadata(path).expect("there");
    meta.file_type().is_char_device() && meta.rdev() == 0
}
