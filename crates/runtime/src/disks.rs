//! Bounds on what apps keep in `/data`. An app with a bound has a file system of its own: ext4 in a file that has all its
//! blocks from the start, so that neither a full disk nor another app can take them, mounted over the app's folder.
//! Blocks, inodes and the error at the end (ENOSPC) are the kernel's. Without a bound `/data` is a plain folder, which is
//! measured. The programs of e2fsprogs and util-linux make, check, grow and mount it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use hutong_ipc::warden::{DiskUse, Quota};
use rustix::fs::FallocateFlags;
use rustix::mount::{UnmountFlags, unmount};

use crate::paths::Layout;
use crate::trees;

/// Names of images and mounts that are not finished.
const NEW: &str = ".new-";
/// What a file system keeps for itself, beside what was asked for: tables and journal.
const OVERHEAD: u64 = 8 << 20;

/// One at a time: each takes some milliseconds, and two of one app would meet.
static ONE: Mutex<()> = Mutex::new(());

pub fn image_of(layout: &Layout, app: &str) -> PathBuf {
    layout.disks().join(format!("{app}.img"))
}

/// Makes an app's `/data` what it should be. The note says where that could not be done now.
pub fn ensure(layout: &Layout, app: &str, quota: Option<Quota>) -> Result<Option<String>, String> {
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (image, folder) = (image_of(layout, app), layout.app_data().join(app));
    let has_image = image.is_file();
    let note = match quota {
        Some(quota) if !has_image => {
            if holds_something(&folder) && !quota.alone {
                let note =
                    "/data is bounded from the next start on at which nothing of the app runs";
                return Ok(Some(note.into()));
            }
            make(&image, &folder, quota.bytes)?
        }
        _ => None,
    };
    if !image.is_file() {
        return Ok(note);
    }
    mount(&image, &folder)?;
    match quota {
        Some(quota) => Ok(note.or(grow(&image, &folder, quota)?)),
        None => Ok(note),
    }
}

/// Unmounts an app's file system and forgets it, with all that is in it.
pub fn drop_image(layout: &Layout, app: &str) -> Result<(), String> {
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let image = image_of(layout, app);
    release(&layout.app_data().join(app))?;
    match fs::remove_file(&image) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", image.display()))
        }
        _ => Ok(()),
    }
}

/// Unmounts an app's file system and moves it elsewhere.
pub fn put_away(layout: &Layout, app: &str, to: &Path) -> Result<(), String> {
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    release(&layout.app_data().join(app))?;
    fs::rename(image_of(layout, app), to).map_err(|error| error.to_string())
}

/// Unmounts all of this server: nothing of its apps runs.
pub fn release_all(layout: &Layout) {
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for image in images(layout) {
        if let Err(error) = release(&layout.app_data().join(image)) {
            tracing::warn!("{error}");
        }
    }
}

/// Apps that have a file system of their own.
pub fn images(layout: &Layout) -> Vec<String> {
    let entries = fs::read_dir(layout.disks()).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let app = name.strip_suffix(".img")?;
            (!app.starts_with(NEW)).then(|| app.to_owned())
        })
        .collect()
}

/// What each app of `apps` keeps: in `/data`, and in built releases.
pub fn usage(layout: &Layout, apps: &[String]) -> Vec<DiskUse> {
    let measured = |app: &String| {
        let folder = layout.app_data().join(app);
        let own = is_mounted(&folder)
            .then(|| rustix::fs::statvfs(&folder).ok())
            .flatten();
        let (data, bound) = match own {
            Some(found) => {
                let used = found.f_blocks.saturating_sub(found.f_bfree) * found.f_frsize;
                (Some(used), Some(found.f_blocks * found.f_frsize))
            }
            None => (measure(&folder), None),
        };
        DiskUse {
            app: app.clone(),
            data: data.unwrap_or(0),
            bound,
            built: measure(&layout.built().join(app)).unwrap_or(0),
            known: data.is_some(),
        }
    };
    apps.iter().map(measured).collect()
}

/// Bytes on disk below a folder, on its own file system; links are not followed. `du` takes folders of any depth.
fn measure(folder: &Path) -> Option<u64> {
    if !folder.is_dir() {
        return Some(0);
    }
    let mut command = Command::new("nice");
    command.args(["-n", "19", "du", "-s", "-x", "-B", "1", "--"]);
    let output = isolated(&mut command).arg(folder).output().ok()?;
    // Also where something vanished meanwhile.
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_ascii_whitespace().next()?.parse().ok()
}

fn isolated(command: &mut Command) -> &mut Command {
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
}

fn run(program: &str, arguments: &[&str], paths: &[&Path]) -> Result<(), String> {
    let mut command = Command::new(program);
    let output = isolated(&mut command).args(arguments).args(paths).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    // e2fsck says with 1 that it has mended something.
    let mended = program == "e2fsck" && output.status.code() == Some(1);
    if output.status.success() || mended {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().last().unwrap_or("it failed");
    Err(format!("{program}: {said}"))
}

fn holds_something(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether something is mounted there.
pub fn is_mounted(folder: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).map(|found| found.dev());
    let parent = folder.parent().unwrap_or(folder);
    matches!((device(folder), device(parent)), (Ok(own), Ok(above)) if own != above)
}

/// Makes the image, with what the folder holds. Its name says that it is whole.
fn make(image: &Path, folder: &Path, bytes: u64) -> Result<Option<String>, String> {
    let holds = match holds_something(folder) {
        true => measure(folder).ok_or("what /data holds cannot be measured")?,
        false => 0,
    };
    // What is there already is kept, whatever the bound.
    let (least, mut note) = (holds + holds / 8, None);
    if holds > 0 && least > bytes {
        let (holds, bytes) = (
            hutong_core::units::show_size(holds),
            hutong_core::units::show_size(bytes),
        );
        note = Some(format!(
            "/data holds {holds} already, more than its bound of {bytes}"
        ));
    }
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    let fresh = image.with_file_name(format!("{NEW}{name}"));
    let place = fresh.with_extension("mount");
    // What a try before this one left.
    release(&place)?;
    let _ = fs::remove_file(&fresh);
    let made = make_fresh(&fresh, bytes.max(least) + OVERHEAD)
        .and_then(|()| fill(&fresh, &place, folder, holds > 0));
    let _ = release(&place);
    let _ = fs::remove_dir(&place);
    let kept = made.and_then(|()| {
        hutong_ipc::fail::point("disk.made");
        fs::rename(&fresh, image).map_err(|error| error.to_string())
    });
    if let Err(reason) = kept {
        let _ = fs::remove_file(&fresh);
        return Err(format!("cannot make the disk for /data: {reason}"));
    }
    sync_folder(image);
    Ok(note)
}

fn sync_folder(of: &Path) {
    if let Some(folder) = of.parent()
        && let Ok(folder) = File::open(folder)
    {
        let _ = folder.sync_all();
    }
}

fn make_fresh(image: &Path, bytes: u64) -> Result<(), String> {
    let failed = |error: io::Error| error.to_string();
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(image)
        .map_err(failed)?;
    allocate(&file, bytes)?;
    file.sync_all().map_err(failed)?;
    drop(file);
    // Fresh blocks read as zeros: nothing has to be written over. They must not be given back either.
    let options = "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0";
    run(
        "mkfs.ext4",
        &["-q", "-F", "-m", "0", "-E", options],
        &[image],
    )
}

/// Takes the blocks now: later there may be none.
fn allocate(file: &File, bytes: u64) -> Result<(), String> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        // Few file systems cannot; there the bound holds, and nothing is set aside.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes).map_err(|error| error.to_string()),
        Err(rustix::io::Errno::NOSPC) => {
            let size = hutong_core::units::show_size(bytes);
            Err(format!("there is no room for {size} on this server's disk"))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Copies what a plain folder holds into a fresh image.
fn fill(image: &Path, place: &Path, folder: &Path, holds: bool) -> Result<(), String> {
    trees::make_owned(place, None, 0o700).map_err(|error| error.to_string())?;
    attach(image, place)?;
    // A database wants an empty folder.
    let _ = fs::remove_dir(place.join("lost+found"));
    if holds {
        run("cp", &["-a", "--"], &[&folder.join("."), place])?;
    }
    let opened = File::open(place).map_err(|error| error.to_string())?;
    rustix::fs::syncfs(opened).map_err(|error| error.to_string())
}

fn attach(image: &Path, folder: &Path) -> Result<(), String> {
    let options = "loop,nosuid,nodev,noatime,noinit_itable";
    run(
        "mount",
        &["-t", "ext4", "-o", options, "--"],
        &[image, folder],
    )
}

/// Mounts an image over its folder, if it is not there already.
fn mount(image: &Path, folder: &Path) -> Result<(), String> {
    if is_mounted(folder) {
        return Ok(());
    }
    if holds_something(folder) {
        // All of it is in the image: that got its name behind the copy.
        trees::delete(folder).map_err(|error| error.to_string())?;
    }
    trees::make_owned(folder, None, 0o700).map_err(|error| error.to_string())?;
    // Nobody writes beside the mount if there is none.
    let failed = |reason: String| format!("cannot mount the disk of /data: {reason}");
    if attach(image, folder).is_err() {
        // The journal was not enough.
        let _ = run("e2fsck", &["-p"], &[image]);
        attach(image, folder).map_err(failed)?;
    }
    hutong_ipc::fail::point("disk.mounted");
    Ok(())
}

/// Makes one larger. None is made smaller: that could not be undone by a rollback.
fn grow(image: &Path, folder: &Path, quota: Quota) -> Result<Option<String>, String> {
    let failed = |reason: String| format!("cannot make the disk of /data larger: {reason}");
    let wanted = quota.bytes + OVERHEAD;
    let has = fs::metadata(image)
        .map_err(|error| failed(error.to_string()))?
        .len();
    if has >= wanted {
        let smaller = has > wanted + OVERHEAD;
        let shown = hutong_core::units::show_size(has - OVERHEAD);
        return Ok(smaller.then(|| format!("/data keeps its {shown}: a disk is not made smaller")));
    }
    let file = File::options().write(true).open(image);
    let file = file.map_err(|error| failed(error.to_string()))?;
    if let Err(reason) = allocate(&file, wanted) {
        return Ok(Some(format!("/data is not made larger: {reason}")));
    }
    // Where nobody uses it, without the kernel's help, which not every root has the right to ask for.
    if quota.alone && unmount(folder, UnmountFlags::empty()).is_ok() {
        let checked = run("e2fsck", &["-f", "-p"], &[image]);
        let resized = checked.and_then(|()| run("resize2fs", &[], &[image]));
        attach(image, folder)?;
        return resized.map(|()| None).map_err(failed);
    }
    let device = device_of(folder).ok_or_else(|| failed("it is not mounted".into()))?;
    let resized =
        run("losetup", &["-c"], &[&device]).and_then(|()| run("resize2fs", &[], &[&device]));
    Ok(resized.err().map(|reason| {
        format!("/data is made larger at the next start at which nothing of the app runs: {reason}")
    }))
}

/// The loop device that is mounted there.
fn device_of(folder: &Path) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let wanted = folder.to_string_lossy();
    let line = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some(&wanted))?;
    let (_, rest) = line.split_once(" - ")?;
    let device = rest.split(' ').nth(1)?;
    device
        .starts_with("/dev/loop")
        .then(|| PathBuf::from(device))
}

/// Takes a mount away; the loop device goes with it. What still uses it keeps it until it ends.
fn release(folder: &Path) -> Result<(), String> {
    while is_mounted(folder) {
        unmount(folder, UnmountFlags::DETACH)
            .map_err(|error| format!("cannot unmount {}: {error}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_measured_and_one_that_is_missing_is_empty() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("a"), vec![7; 100_000]).expect("written");
        let used = measure(folder.path()).expect("measured");
        assert!((100_000..300_000).contains(&used), "{used}");
        assert_eq!(measure(&folder.path().join("none")), Some(0));
        assert!(!is_mounted(folder.path()));
        assert!(is_mounted(Path::new("/proc")));
    }
}
