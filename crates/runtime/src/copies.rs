//! Copies what an app keeps in `/data`, which may be hostile and may change at any moment: no link is followed, nothing is
//! opened before it is known what it is, and depth, number and size have bounds. Links, FIFOs, holes and hard links stay what
//! they are; sockets and devices are left out. Where the file system can, files share their blocks (FICLONE).

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timestamps, Uid, fstat,
};
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime};

use hutong_core::units::show_size;

use crate::{sys, trees};

/// Folders below each other.
const MAX_DEPTH: usize = 100;
/// Files, folders and links in all.
const MAX_ENTRIES: u64 = 2_000_000;
/// How often it is looked whether the disk's reserve is touched: after so many bytes, and so many entries.
const CHUNK: u64 = 8 << 20;
const ENTRIES: u64 = 256;
/// How often something is copied that changes meanwhile, and how long a copy may have taken that is made anew.
const TRIES: u32 = 3;
const QUICK: Duration = Duration::from_secs(5);

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What a copy came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Files and links.
    pub files: u64,
    pub bytes: u64,
    /// Sockets, devices, what is on another disk.
    pub left_out: u64,
    /// Something was written meanwhile: the files are not all of one moment.
    pub changed: bool,
}

/// How something is copied.
pub struct Way<'a> {
    /// What is kept free on the disk; by its size if nothing is said.
    pub reserve: Option<u64>,
    /// A folder that is not there counts as an empty one.
    pub may_miss: bool,
    /// Who owns in the copy what a user or group owns.
    pub owner: &'a dyn Fn(u32) -> u32,
}

/// Copies the folder `from` to `data` in the new folder `scratch`. If something is written meanwhile
/// it is copied anew a few times, where that takes no time.
pub fn copy(from: &Path, scratch: &Path, way: &Way<'_>) -> io::Result<Copied> {
    let mut tries = 0;
    loop {
        trees::remove(scratch)?;
        let began = Instant::now();
        let since = clock_gettime(ClockId::RealtimeCoarse);
        let copied = copy_once(from, scratch, way)?;
        let changed = is_changed(from, since);
        tries += 1;
        if !changed || tries == TRIES || began.elapsed() > QUICK {
            return Ok(Copied { changed, ..copied });
        }
    }
}

fn copy_once(from: &Path, scratch: &Path, way: &Way<'_>) -> io::Result<Copied> {
    trees::make_owned(scratch, None, 0o700)?;
    let (data, links) = (scratch.join("data"), scratch.join("links"));
    trees::make_owned(&data, None, 0o700)?;
    trees::make_owned(&links, None, 0o700)?;
    let to = rustix::fs::open(&data, FOLDER, Mode::empty())?;
    let top = match rustix::fs::open(from, FOLDER, Mode::empty()) {
        Err(Errno::NOENT) if way.may_miss => None,
        other => Some(other?),
    };
    let mut copier = Copier {
        way,
        device: 0,
        links: rustix::fs::open(&links, FOLDER, Mode::empty())?,
        clones: true,
        is_root: sys::effective_uid() == 0,
        entries: 0,
        done: Copied::default(),
    };
    if let Some(top) = top {
        let stat = fstat(&top)?;
        copier.device = stat.st_dev;
        copier.look()?;
        copier.folder(&top, &to, 0)?;
        // What takes its place meanwhile holds what it held: then all of it is copied when it is asked for again.
        let now = fs::symlink_metadata(from)?;
        if (now.dev(), now.ino()) != (stat.st_dev, stat.st_ino) {
            return Err(io::Error::other("it was moved while it was copied"));
        }
        copier.finish(&to, &stat)?;
    }
    trees::remove(&links)?;
    rustix::fs::syncfs(&to)?;
    Ok(copier.done)
}

struct Copier<'a> {
    way: &'a Way<'a>,
    /// The only one that is copied from.
    device: u64,
    /// A name for each file that has several, by its number.
    links: OwnedFd,
    /// The file system lets files share their blocks, as far as is known.
    clones: bool,
    is_root: bool,
    entries: u64,
    done: Copied,
}

impl Copier<'_> {
    fn folder(&mut self, from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            let why = format!("its folders are more than {MAX_DEPTH} deep");
            return Err(io::Error::other(why));
        }
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.entry(from, to, name, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: usize) -> io::Result<()> {
        // Held, not opened: whatever its name is given to meanwhile, this is what was looked at.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let held = match rustix::fs::openat(from, name, flags, Mode::empty()) {
            // It went meanwhile.
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        let stat = fstat(&held)?;
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            let why = format!("it holds more than {MAX_ENTRIES} files");
            return Err(io::Error::other(why));
        }
        if self.entries.is_multiple_of(ENTRIES) {
            self.look()?;
        }
        if stat.st_dev != self.device {
            self.done.left_out += 1;
            return Ok(());
        }
        let made = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inner = rustix::fs::openat(&held, c".", FOLDER, Mode::empty())?;
                match rustix::fs::mkdirat(to, name, Mode::RWXU) {
                    // A folder that changes while it is read may show a name twice.
                    Err(Errno::EXIST) => return Ok(()),
                    other => other?,
                }
                let target = rustix::fs::openat(to, name, FOLDER, Mode::empty())?;
                self.folder(&inner, &target, depth + 1)?;
                return self.finish(&target, &stat);
            }
            FileType::RegularFile => return self.file(&held, &stat, to, name),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&held, c"", Vec::<u8>::new())?;
                rustix::fs::symlinkat(target.as_c_str(), to, name)
            }
            FileType::Fifo => {
                let mode = Mode::from_raw_mode(stat.st_mode);
                rustix::fs::mknodat(to, name, FileType::Fifo, mode, 0)
            }
            _ => {
                self.done.left_out += 1;
                return Ok(());
            }
        };
        match made {
            Err(Errno::EXIST) => return Ok(()),
            other => other?,
        }
        self.done.files += 1;
        if self.is_root {
            let (uid, gid) = self.owner(&stat);
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(to, name, Some(uid), Some(gid), flags)?;
        }
        Ok(())
    }

    fn file(&mut self, held: &OwnedFd, stat: &Stat, to: &OwnedFd, name: &CStr) -> io::Result<()> {
        let number = stat.st_ino.to_string();
        let has_several = stat.st_nlink > 1;
        if has_several {
            let none = AtFlags::empty();
            match rustix::fs::linkat(&self.links, number.as_str(), to, name, none) {
                Ok(()) | Err(Errno::EXIST) => return Ok(()),
                // The first one; or one that has as many names as it can have.
                Err(Errno::NOENT | Errno::MLINK) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // By what is held: its name may be another's by now.
        let path = format!("/proc/self/fd/{}", held.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = File::from(rustix::fs::open(path.as_str(), flags, Mode::empty())?);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let target = match rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR) {
            Err(Errno::EXIST) => return Ok(()),
            other => File::from(other?),
        };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.content(&source, &target, size)?;
        self.finish(&target, stat)?;
        if has_several {
            let none = AtFlags::empty();
            let _ = rustix::fs::linkat(to, name, &self.links, number.as_str(), none);
        }
        self.done.files += 1;
        // What it takes on the disk: holes are nothing.
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        self.done.bytes = self.done.bytes.saturating_add(blocks.saturating_mul(512));
        Ok(())
    }

    /// No more than it had when it was looked at; holes stay holes.
    fn content(&mut self, source: &File, target: &File, size: u64) -> io::Result<()> {
        if self.clones {
            match rustix::fs::ioctl_ficlone(target, source) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => {
                    self.clones = false;
                }
                // This file cannot, for what it is.
                Err(_) => {}
            }
        }
        let (mut reader, mut writer) = (source, target);
        let mut at = 0;
        while at < size {
            let begin = match rustix::fs::seek(source, SeekFrom::Data(at)) {
                Ok(begin) => begin,
                // Nothing but a hole follows.
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => at,
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(source, SeekFrom::Hole(begin)).unwrap_or(size);
            let end = end.min(size);
            if end <= begin {
                break;
            }
            reader.seek(io::SeekFrom::Start(begin))?;
            writer.seek(io::SeekFrom::Start(begin))?;
            let mut left = end - begin;
            while left > 0 {
                self.look()?;
                let copied = io::copy(&mut reader.take(left.min(CHUNK)), &mut writer)?;
                if copied == 0 {
                    // It was made shorter meanwhile.
                    break;
                }
                left -= copied.min(left);
            }
            at = end;
        }
        target.set_len(size)
    }

    fn owner(&self, stat: &Stat) -> (Uid, Gid) {
        let (uid, gid) = ((self.way.owner)(stat.st_uid), (self.way.owner)(stat.st_gid));
        (Uid::from_raw(uid), Gid::from_raw(gid))
    }

    /// Owner, mode and time as they were.
    fn finish(&self, made: impl std::os::fd::AsFd, stat: &Stat) -> io::Result<()> {
        if self.is_root {
            let (uid, gid) = self.owner(stat);
            rustix::fs::fchown(&made, Some(uid), Some(gid))?;
        }
        rustix::fs::fchmod(&made, Mode::from_raw_mode(stat.st_mode))?;
        let time = Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as i64,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::futimens(&made, &times)?;
        Ok(())
    }

    /// Whether there is room: the disk's reserve is not for copies.
    fn look(&self) -> io::Result<()> {
        let (free, reserve) = room(&self.links, self.way.reserve)?;
        if free < reserve {
            let (free, reserve) = (show_size(free), show_size(reserve));
            return Err(io::Error::other(format!(
                "there is no room for it: {free} are free on this server's disk, and {reserve} are its reserve"
            )));
        }
        let disk = rustix::fs::fstatvfs(&self.links)?;
        if disk.f_files > 0 && disk.f_favail < disk.f_files / 20 {
            let why = "there is no room for it: the disk is short of room for more files";
            return Err(io::Error::other(why));
        }
        Ok(())
    }
}

/// What is free on a disk, and what should be.
pub fn room(on: impl std::os::fd::AsFd, reserve: Option<u64>) -> io::Result<(u64, u64)> {
    let disk = rustix::fs::fstatvfs(on)?;
    let reserve = reserve.unwrap_or((disk.f_blocks * disk.f_frsize / 20).min(1 << 30));
    Ok((disk.f_bavail * disk.f_frsize, reserve))
}

/// Whether files of these two folders may share their blocks.
pub fn can_share(from: &Path, to: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    if !matches!((device(from), device(to)), (Ok(one), Ok(other)) if one == other) {
        return false;
    }
    let (one, other) = (to.join(".share-1"), to.join(".share-2"));
    let tried = || -> io::Result<()> {
        fs::write(&one, [7; 4096])?;
        let (source, target) = (File::open(&one)?, File::create(&other)?);
        Ok(rustix::fs::ioctl_ficlone(&target, &source)?)
    };
    let shares = tried().is_ok();
    let _ = fs::remove_file(&one);
    let _ = fs::remove_file(&other);
    shares
}

/// Whether anything below a folder may have been changed since then. Nobody but the kernel sets the time that this goes by.
fn is_changed(folder: &Path, since: Timespec) -> bool {
    match rustix::fs::open(folder, FOLDER, Mode::empty()) {
        Err(Errno::NOENT) => false,
        Err(_) => true,
        Ok(folder) => has_changed(&folder, since, 0).unwrap_or(true),
    }
}

fn has_changed(folder: &OwnedFd, since: Timespec, depth: usize) -> io::Result<bool> {
    let is_new = |stat: &Stat| {
        let nanoseconds = stat.st_ctime_nsec as i64;
        (stat.st_ctime, nanoseconds) >= (since.tv_sec, since.tv_nsec)
    };
    if depth > MAX_DEPTH || is_new(&fstat(folder)?) {
        return Ok(true);
    }
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if is_new(&stat) {
            return Ok(true);
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let inner = rustix::fs::openat(folder, name, FOLDER, Mode::empty())?;
            if has_changed(&inner, since, depth + 1)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

    fn as_it_is() -> Way<'static> {
        Way {
            may_miss: true,
            reserve: Some(0),
            owner: &|id| id,
        }
    }

    #[test]
    fn what_an_app_keeps_is_copied_as_it_lies() {
        let top = tempfile::tempdir().expect("a folder");
        let from = top.path().join("from");
        fs::create_dir_all(from.join("a/b")).expect("made");
        fs::write(from.join("a/b/c"), "mine").expect("written");
        fs::set_permissions(from.join("a/b/c"), fs::Permissions::from_mode(0o640)).expect("set");
        fs::hard_link(from.join("a/b/c"), from.join("again")).expect("linked");
        symlink("/etc/shadow", from.join("link")).expect("linked");
        let folder = rustix::fs::open(&from, FOLDER, Mode::empty()).expect("open");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(&folder, "pipe", FileType::Fifo, mode, 0).expect("made");
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).expect("bound");
        let sparse = File::create(from.join("sparse")).expect("made");
        sparse.set_len(1 << 30).expect("set");
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (1 << 29) + 5).expect("written");
        let scratch = top.path().join("scratch");
        let copied = copy(&from, &scratch, &as_it_is()).expect("copied");
        assert_eq!((copied.files, copied.left_out), (4, 1));
        let at = |path: &str| scratch.join("data").join(path);
        assert_eq!(fs::read(at("a/b/c")).expect("read"), b"mine");
        let found = fs::metadata(at("a/b/c")).expect("there");
        assert_eq!((found.mode() & 0o7777, found.nlink()), (0o640, 2));
        assert_eq!(fs::metadata(at("again")).expect("there").ino(), found.ino());
        let to = fs::read_link(at("link")).expect("a link");
        assert_eq!(to, Path::new("/etc/shadow"));
        let pipe = fs::symlink_metadata(at("pipe")).expect("there");
        assert!(pipe.file_type().is_fifo());
        let sparse = fs::metadata(at("sparse")).expect("there");
        assert_eq!(sparse.len(), 1 << 30);
        assert!(sparse.blocks() * 512 < 1 << 24, "{}", sparse.blocks());
        assert!(!at("socket").exists() && !scratch.join("links").exists());
    }

    #[test]
    fn bounds_hold_and_a_missing_folder_is_an_empty_one() {
        let top = tempfile::tempdir().expect("a folder");
        let (from, scratch) = (top.path().join("from"), top.path().join("scratch"));
        let copied = copy(&from, &scratch, &as_it_is()).expect("copied");
        assert_eq!(copied, Copied::default());
        let mut deep = from.clone();
        for _ in 0..MAX_DEPTH + 2 {
            deep.push("x");
        }
        fs::create_dir_all(&deep).expect("made");
        let error = copy(&from, &scratch, &as_it_is()).expect_err("too deep");
        assert!(error.to_string().contains("deep"), "{error}");
        let full = Way {
            may_miss: true,
            reserve: Some(u64::MAX),
            owner: &|id| id,
        };
        let error = copy(&from, &scratch, &full).expect_err("no room");
        assert!(error.to_string().contains("no room"), "{error}");
    }

    #[test]
    fn what_was_written_since_is_seen() {
        let top = tempfile::tempdir().expect("a folder");
        fs::create_dir(top.path().join("a")).expect("made");
        let since = clock_gettime(ClockId::RealtimeCoarse);
        fs::write(top.path().join("a/b"), "x").expect("written");
        assert!(is_changed(top.path(), since));
        let later = Timespec {
            tv_sec: since.tv_sec + 60,
            tv_nsec: 0,
        };
        assert!(!is_changed(top.path(), later));
    }
}
