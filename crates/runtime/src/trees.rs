//! Folders that become `/app`: opened without following links, copied for builds, deleted.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// Makes an app's `/data`, for the user and group that a release runs as. `of_app` says which users another release may
/// have had: what one of them keeps in it is not taken from it, which may still serve.
pub fn make_data(
    path: &Path,
    owner: Option<(u32, u32)>,
    of_app: impl Fn(u32) -> bool,
) -> io::Result<Data> {
    let Some((uid, gid)) = owner else {
        return make_owned(path, None, 0o700).map(|()| Data::Made);
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) => {
            let others = found.uid() != uid && of_app(found.uid());
            if others && holds_something(path)? {
                return Ok(Data::Others(found.uid()));
            }
        }
    }
    make_owned(path, None, 0o700)?;
    chown(path, Some(uid), Some(gid)).map(|()| Data::Made)
}

/// Beside what a file system of its own has from the beginning.
fn holds_something(folder: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        if entry?.file_name() != "lost+found" {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What became of an app's `/data`.
#[derive(Debug, PartialEq, Eq)]
pub enum Data {
    Made,
    /// It holds files, and is this user's.
    Others(u32),
}

/// Deletes a folder and all below it. It is out of the way when this returns; what it held, which may
/// be millions of files of a hostile app, goes in the background. A missing one is fine.
pub fn delete(path: &Path) -> io::Result<()> {
    // The name goes first: half a folder must never be taken for a whole one.
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let gone = path.with_file_name(format!("{GONE}{:016x}", u64::from_le_bytes(random)));
    match fs::rename(path, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(()) => {}
    }
    remove_in_background(vec![gone]);
    Ok(())
}

/// Removes what interrupted deletions left in these folders.
pub fn sweep(folders: &[PathBuf]) {
    let found: Vec<PathBuf> = folders
        .iter()
        .flat_map(fs::read_dir)
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().as_bytes().starts_with(GONE.as_bytes()))
        .map(|entry| entry.path())
        .collect();
    if !found.is_empty() {
        remove_in_background(found);
    }
}

/// The prefix of names whose folders are being deleted.
pub const GONE: &str = ".gone-";

/// One deletion at a time: more would only fight for the disk.
static REMOVING: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Whether something is being deleted now.
pub fn is_removing() -> bool {
    UNDER_WAY.load(Ordering::SeqCst) > 0
}

static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

fn remove_in_background(paths: Vec<PathBuf>) {
    UNDER_WAY.fetch_add(1, Ordering::SeqCst);
    let work = move || {
        let _one = REMOVING.lock();
        for path in &paths {
            if let Err(error) = remove(path) {
                tracing::error!("cannot delete {}: {error}", path.display());
            }
        }
        UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
    };
    // Without a thread it is left to the next start's sweep.
    let spawned = std::thread::Builder::new()
        .stack_size(128 << 10)
        .spawn(work);
    if let Err(error) = spawned {
        UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
        tracing::error!("cannot delete in the background: {error}");
    }
}

/// Deletes a folder with two handles and no recursion, however deep it is: nested folders are moved up
/// to the top first. Links are not followed.
pub fn remove(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other?,
    };
    // An ordinary user's app may have taken the write bit off a folder of its own.
    let _ = rustix::fs::fchmod(&top, Mode::RWXU);
    let mut moved = 0u64;
    loop {
        let mut left = false;
        for entry in Dir::read_from(&top)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            left = true;
            if unlink(&top, name)? {
                continue;
            }
            let folder = rustix::fs::openat(&top, name, flags, Mode::empty())?;
            let _ = rustix::fs::fchmod(&folder, Mode::RWXU);
            for inner in Dir::read_from(&folder)? {
                let inner = inner?;
                let inner = inner.file_name();
                if matches!(inner.to_bytes(), b"." | b"..") || unlink(&folder, inner)? {
                    continue;
                }
                moved += 1;
                let to = format!("{GONE}{moved}");
                match rustix::fs::renameat(&folder, inner, &top, to.as_str()) {
                    // The name is an app's own; the next number is tried in the next round.
                    Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) => {}
                    Err(rustix::io::Errno::ACCESS) => {
                        let inner = rustix::fs::openat(&folder, inner, flags, Mode::empty())?;
                        rustix::fs::fchmod(&inner, Mode::RWXU)?;
                    }
                    other => other?,
                }
            }
        }
        if !left {
            break;
        }
    }
    drop(top);
    fs::remove_dir(path)
}

/// Unlinks a file or an empty folder; false where a folder has something in it.
fn unlink(folder: &OwnedFd, name: &std::ffi::CStr) -> io::Result<bool> {
    use rustix::fs::{AtFlags, unlinkat};
    use rustix::io::Errno;
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    match unlinkat(folder, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_not_taken_from_who_keeps_something_in_it() {
        let top = tempfile::tempdir().expect("tempdir");
        let found = fs::metadata(top.path()).expect("it is there");
        let (own, group) = (found.uid(), found.gid());
        let data = top.path().join("data");
        let make = |uid: u32, of_app: bool| make_data(&data, Some((uid, group)), |_| of_app);
        assert_eq!(make(own, true).expect("made"), Data::Made);
        fs::write(data.join("kept"), "x").expect("written");
        assert_eq!(make(own, true).expect("the same user"), Data::Made);
        assert_eq!(make(own + 1, true).expect("told"), Data::Others(own));
        assert_eq!(fs::metadata(&data).expect("there").uid(), own);
    }

    #[test]
    fn a_folder_of_any_depth_is_deleted_with_a_few_descriptors() {
        let top = tempfile::tempdir().expect("tempdir");
        let root = top.path().join("deep");
        fs::create_dir(&root).expect("mkdir");
        let mut at = rustix::fs::open(&root, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .expect("open");
        for depth in 0..3000 {
            for name in ["x", ".gone-1"] {
                rustix::fs::mkdirat(&at, name, Mode::RWXU).expect("mkdir");
            }
            rustix::fs::symlinkat("/etc", &at, "link").expect("symlink");
            if depth % 100 == 0 {
                rustix::fs::mkdirat(&at, "closed", Mode::empty()).expect("mkdir");
            }
            let next =
                rustix::fs::openat(&at, "x", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
            at = next.expect("open");
        }
        remove(&root).expect("removed");
        assert!(!root.exists() && Path::new("/etc/passwd").exists());
    }

    #[test]
    fn a_deleted_folder_is_out_of_the_way_at_once_and_gone_soon() {
        let top = tempfile::tempdir().expect("tempdir");
        let root = top.path().join("app");
        fs::create_dir_all(root.join("a/b")).expect("mkdir");
        delete(&root).expect("deleted");
        assert!(!root.exists());
        delete(&root).expect("a missing one is fine");
        // What an interrupted deletion left goes with the next sweep.
        fs::create_dir_all(top.path().join(".gone-1/x")).expect("mkdir");
        sweep(&[top.path().to_owned()]);
        let began = std::time::Instant::now();
        while fs::read_dir(top.path()).expect("read").count() > 0 {
            assert!(began.elapsed().as_secs() < 20, "still there");
            std::thread::yield_now();
        }
    }
}
