//! Bounds on what apps keep in `/data`. An app with a bound has a file system of its own: ext4 in a file that has all its
//! blocks from the start, so that neither a full disk nor another app can take them, mounted over the app's folder.
//! Blocks, inodes and the error at the end (ENOSPC) are the kernel's. Without a bound `/data` is a plain folder, which is
//! measured. The programs of e2fsprogs and util-linux make, check, grow and mount it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hutong_core::units::show_size;
use hutong_ipc::warden::{DiskUse, Quota};
use rustix::fs::FallocateFlags;
use rustix::mount::{UnmountFlags, unmount};

use crate::paths::Layout;
use crate::{sys, trees};

/// Names of images and mounts that are not finished.
const NEW: &str = ".new-";
/// What a file system keeps for itself, beside what was asked for: tables and journal.
const OVERHEAD: u64 = 8 << 20;
/// Moving what a folder holds, or making a disk larger, may take longer than anybody waits.
const SOON: Duration = Duration::from_millis(1500);
/// How long one folder may take to be measured.
const MEASURE_S: &str = "60";

/// What a disk could not be made of is not tried again for so long: all of it would be copied anew at each start.
const TRIED: Duration = Duration::from_secs(3600);
/// How long who used a disk last may take to let it go.
const LAST_USER: Duration = Duration::from_secs(3);
/// How long the end of a server waits for disks that are being worked on.
const END: Duration = Duration::from_secs(20);

/// Disks that are being worked on, by app: one at a time of each; others do not wait.
#[derive(Default)]
struct Work {
    /// Whether it goes on behind [`Unready::Later`].
    busy: BTreeMap<String, bool>,
    /// What came of it then.
    outcomes: BTreeMap<String, Outcome>,
    /// The server ends.
    is_over: bool,
}

struct Outcome {
    said: Result<Option<String>, String>,
    quota: Option<Quota>,
    at: Instant,
}

static WORK: Mutex<Work> = Mutex::new(Work {
    busy: BTreeMap::new(),
    outcomes: BTreeMap::new(),
    is_over: false,
});
/// How much is free is asked, and taken, by one at a time.
static ALLOCATING: Mutex<()> = Mutex::new(());

fn work() -> MutexGuard<'static, Work> {
    WORK.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

struct Turn(String);

impl Turn {
    fn take(app: &str) -> Option<Self> {
        let mut work = work();
        if work.is_over || work.busy.contains_key(app) {
            return None;
        }
        work.busy.insert(app.to_owned(), false);
        Some(Turn(app.to_owned()))
    }

    fn wait(app: &str) -> Result<Self, Unready> {
        let began = Instant::now();
        loop {
            if let Some(turn) = Turn::take(app) {
                return Ok(turn);
            }
            let is_slow = work().busy.get(app).is_some_and(|slow| *slow);
            if is_slow || began.elapsed() > SOON {
                return Err(Unready::Later(MOVING.into()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        work().busy.remove(&self.0);
    }
}

/// Whether something is still worked on that nobody waits for.
pub fn is_busy() -> bool {
    !work().busy.is_empty()
}

const MOVING: &str = "the disk of /data is being made";

/// Why a disk is not there now.
#[derive(Debug)]
pub enum Unready {
    /// It is being worked on.
    Later(String),
    Failed(String),
}

impl From<String> for Unready {
    fn from(reason: String) -> Self {
        Unready::Failed(reason)
    }
}

pub fn image_of(layout: &Layout, app: &str) -> PathBuf {
    layout.disks().join(format!("{app}.img"))
}

/// Makes an app's `/data` what it should be. The note says where that could not be done now. `reserve` is kept free on the
/// disk. What takes long goes on behind [`Unready::Later`].
pub fn ensure(
    layout: &Layout,
    app: &str,
    quota: Option<Quota>,
    reserve: Option<u64>,
) -> Result<Option<String>, Unready> {
    let turn = Turn::wait(app)?;
    let (image, folder) = (image_of(layout, app), layout.app_data().join(app));
    if !image.is_file() && quota.is_none() {
        return Ok(None);
    }
    if let Some(said) = kept(app, quota, &image, &folder) {
        return Ok(said?);
    }
    let (done, made) = std::sync::mpsc::channel();
    let name = app.to_owned();
    let make = move || {
        let said = make_ready(&image, &folder, quota, reserve);
        let mut work = work();
        if work.busy.get(&name).is_some_and(|slow| *slow) {
            // Whoever asked has gone.
            let outcome = Outcome {
                said,
                quota,
                at: Instant::now(),
            };
            work.outcomes.insert(name, outcome);
        } else {
            let _ = done.send(said);
        }
        drop(work);
        drop(turn);
    };
    std::thread::Builder::new()
        .stack_size(256 << 10)
        .spawn(make)
        .map_err(|error| error.to_string())?;
    if let Ok(said) = made.recv_timeout(SOON) {
        return Ok(said?);
    }
    let mut work = work();
    // It may have ended just now.
    if let Ok(said) = made.try_recv() {
        return Ok(said?);
    }
    if let Some(slow) = work.busy.get_mut(app) {
        *slow = true;
    }
    Err(Unready::Later(MOVING.into()))
}

/// What came of work that nobody waited for to its end, if the same is asked again. A disk that could not be made is not
/// tried again for a while, and then the app runs on with what it has; another failure is said once.
fn kept(
    app: &str,
    quota: Option<Quota>,
    image: &Path,
    folder: &Path,
) -> Option<Result<Option<String>, String>> {
    let mut work = work();
    let outcome = work.outcomes.get(app)?;
    let same = outcome.quota.map(|one| one.bytes) == quota.map(|one| one.bytes);
    let is_there = image.is_file();
    let holds = match &outcome.said {
        // Unmounted since, or without a disk for too long.
        Ok(_) if is_there => is_mounted(folder),
        Ok(_) => outcome.at.elapsed() < TRIED,
        Err(_) => true,
    };
    let said = (same && holds).then(|| outcome.said.clone());
    let again = said.is_some() && !is_there && outcome.said.is_ok();
    if !again {
        work.outcomes.remove(app);
    }
    said
}

fn make_ready(
    image: &Path,
    folder: &Path,
    quota: Option<Quota>,
    reserve: Option<u64>,
) -> Result<Option<String>, String> {
    let mut note = None;
    if let Some(quota) = quota.filter(|_| !image.is_file()) {
        // Whoever asks may not know yet what has started since: the kernel does. What holds nothing can be replaced whatever
        // is thought to run.
        let alone = quota.alone || !holds_something(folder);
        if !alone || is_in_use(folder) {
            let note = "/data is bounded from the next start on at which nothing of the app runs";
            return Ok(Some(note.into()));
        }
        match make(image, folder, quota.bytes, reserve) {
            Ok(said) => {
                note = said;
                if holds_something(folder) {
                    let aside = put_aside(folder)?;
                    // All of it was copied just now. Nobody comes to it any more by its name, and if nobody came meanwhile
                    // either, nothing is lost with it. After an interruption this is not known: then it stays.
                    if is_in_use(&aside) {
                        let text = "what it held is kept, because something still used it";
                        note = Some(format!("/data: {text}: {}", aside.display()));
                    } else {
                        hutong_ipc::fail::point("disk.aside");
                        trees::delete(&aside).map_err(|error| error.to_string())?;
                    }
                }
            }
            // It runs on with what it has, measured.
            Err(why) if holds_something(folder) => {
                return Ok(Some(format!("/data is not bounded: {why}")));
            }
            Err(why) => return Err(why),
        }
    }
    if !image.is_file() {
        return Ok(note);
    }
    mount(image, folder)?;
    match quota {
        Some(quota) => Ok(note.or(grow(image, folder, quota, reserve)?)),
        None => Ok(note),
    }
}

/// Whether a process somewhere has that folder, or one below it, as a mount: an app that runs on it. Container engines tell
/// later, and a control plane tells what it knew.
pub fn is_in_use(folder: &Path) -> bool {
    if !folder.exists() {
        return false;
    }
    let Some(wanted) = inside(folder) else {
        return true;
    };
    let mut seen = BTreeSet::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        // Others of the same namespace see the same.
        let Ok(namespace) = fs::read_link(process.path().join("ns/mnt")) else {
            continue;
        };
        if seen.contains(&namespace) {
            continue;
        }
        let text = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        if text.is_empty() {
            // It ended just now; others of its namespace may not have.
            continue;
        }
        seen.insert(namespace);
        let is_it = |line: &str| {
            let root = line.split(' ').nth(3).unwrap_or_default();
            root.strip_prefix(&wanted)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if text.lines().any(is_it) {
            return true;
        }
    }
    false
}

/// A folder's path on its own file system, as mountinfo has the roots of mounts (proc_pid_mountinfo(5)).
fn inside(folder: &Path) -> Option<String> {
    let folder = fs::canonicalize(folder).ok()?;
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mounts = text.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let rest = folder.strip_prefix(unescaped(point)).ok()?;
        Some((
            point.len(),
            root.trim_end_matches('/').to_owned(),
            rest.to_owned(),
        ))
    });
    // The last one of the same place covers those before it.
    let (_, root, rest) = mounts.max_by_key(|(length, ..)| *length)?;
    Some(format!("{root}/{}", escaped(&rest.to_string_lossy())))
}

fn escaped(text: &str) -> String {
    // The backslash first: it is what the others are written with.
    [
        ('\\', "\\134"),
        (' ', "\\040"),
        ('\t', "\\011"),
        ('\n', "\\012"),
    ]
    .into_iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn unescaped(text: &str) -> String {
    [
        ("\\012", "\n"),
        ("\\011", "\t"),
        ("\\040", " "),
        ("\\134", "\\"),
    ]
    .into_iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Throws away what interrupted tries left.
pub fn sweep(layout: &Layout) {
    // A program that a warden before us started may have outlived it, and what it had made.
    for image in images(layout) {
        free_loops(&image_of(layout, &image));
    }
    let entries = fs::read_dir(layout.disks()).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(NEW)) {
        let path = entry.path();
        if path.is_dir() {
            let gone =
                release(&path).and_then(|()| fs::remove_dir(&path).map_err(|e| e.to_string()));
            if let Err(error) = gone {
                tracing::warn!("{}: {error}", path.display());
            }
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Unmounts an app's file system and forgets it, with all that is in it.
pub fn drop_image(layout: &Layout, app: &str) -> Result<(), String> {
    let _turn = Turn::take(app).ok_or(MOVING)?;
    work().outcomes.remove(app);
    let image = image_of(layout, app);
    release(&layout.app_data().join(app))?;
    match fs::remove_file(&image) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", image.display()))
        }
        _ => Ok(()),
    }
}

/// Makes an app's file system anew, of its size, with what a folder holds, in place of what it held. Nothing of the app runs.
/// Whoever is interrupted leaves the one or the other, whole.
pub fn refill(layout: &Layout, app: &str, from: &Path, reserve: Option<u64>) -> Result<(), String> {
    let _turn = Turn::take(app).ok_or(MOVING)?;
    work().outcomes.remove(app);
    let (image, folder) = (image_of(layout, app), layout.app_data().join(app));
    let size = fs::metadata(&image)
        .map_err(|error| error.to_string())?
        .len();
    // First: what is mounted is never other than what the image's name leads to.
    release(&folder)?;
    let made = make(&image, from, size.saturating_sub(OVERHEAD), reserve);
    let mounted = mount(&image, &folder);
    made.map(drop).and(mounted)
}

/// Unmounts an app's file system and moves it elsewhere.
pub fn put_away(layout: &Layout, app: &str, to: &Path) -> Result<(), String> {
    let _turn = Turn::take(app).ok_or(MOVING)?;
    release(&layout.app_data().join(app))?;
    fs::rename(image_of(layout, app), to).map_err(|error| error.to_string())
}

/// Unmounts all of this server: nothing of its apps runs.
pub fn release_all(layout: &Layout) {
    work().is_over = true;
    let began = Instant::now();
    while is_busy() && began.elapsed() < END {
        std::thread::sleep(Duration::from_millis(20));
    }
    sweep(layout);
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
            caches: cache_size(&layout.caches().join(app)),
            known: data.is_some(),
        }
    };
    apps.iter().map(measured).collect()
}

/// What caches of builds hold, by their folder: only a build changes that, and there may be very many files in them.
static CACHES: Mutex<BTreeMap<PathBuf, u64>> = Mutex::new(BTreeMap::new());

fn caches() -> std::sync::MutexGuard<'static, BTreeMap<PathBuf, u64>> {
    CACHES
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// One that takes too long to be measured is taken to be so large.
const UNMEASURED: u64 = 2 << 30;

/// What a cache holds, as it was when it was last measured.
fn cache_size(folder: &Path) -> u64 {
    if let Some(known) = caches().get(folder) {
        return *known;
    }
    let size = measure(folder).unwrap_or(UNMEASURED);
    caches().insert(folder.to_owned(), size);
    size
}

/// Measures a cache anew; one that takes too long is as large as can be.
pub fn measure_cache(folder: &Path) -> u64 {
    let size = measure(folder).unwrap_or(u64::MAX);
    caches().insert(folder.to_owned(), size);
    size
}

/// A cache may hold something else now; none of a folder: any of them may.
pub fn forget_cache(folder: Option<&Path>) {
    match folder {
        Some(folder) => drop(caches().remove(folder)),
        None => caches().clear(),
    }
}

/// Bytes on disk below a folder, on its own file system; links are not followed. `du` takes folders of any depth.
pub fn measure(folder: &Path) -> Option<u64> {
    if !folder.is_dir() {
        return Some(0);
    }
    du(folder, &["-B", "1"])
}

/// Files and folders below a folder.
fn count(folder: &Path) -> Option<u64> {
    du(folder, &["--inodes"])
}

fn du(folder: &Path, what: &[&str]) -> Option<u64> {
    let mut command = Command::new("timeout");
    command.args(["-k", "1", MEASURE_S, "nice", "-n", "19", "du", "-s", "-x"]);
    let output = isolated(&mut command)
        .args(what)
        .arg("--")
        .arg(folder)
        .output()
        .ok()?;
    // Also where something vanished meanwhile.
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_ascii_whitespace().next()?.parse().ok()
}

fn isolated(command: &mut Command) -> &mut Command {
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    // Nobody would know of it any more: another one may work on the same disk.
    sys::ends_with_us(command)
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
fn make(
    image: &Path,
    folder: &Path,
    bytes: u64,
    reserve: Option<u64>,
) -> Result<Option<String>, String> {
    let unknown = "what /data holds cannot be measured";
    let (holds, files) = match holds_something(folder) {
        true => (
            measure(folder).ok_or(unknown)?,
            count(folder).ok_or(unknown)?,
        ),
        false => (0, 0),
    };
    // What is there already is kept, whatever the bound.
    let (least, mut note) = (holds + holds / 8, None);
    if holds > 0 && least > bytes {
        let (holds, bytes) = (show_size(holds), show_size(bytes));
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
    let made = make_fresh(&fresh, bytes.max(least) + OVERHEAD, files, reserve)
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

fn make_fresh(image: &Path, bytes: u64, files: u64, reserve: Option<u64>) -> Result<(), String> {
    let failed = |error: io::Error| error.to_string();
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(image)
        .map_err(failed)?;
    allocate(&file, bytes, reserve)?;
    file.sync_all().map_err(failed)?;
    drop(file);
    // Fresh blocks read as zeros: nothing has to be written over. They must not be given back either.
    let options = "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0";
    // As many files as there would be by default, or as are to be moved in, and some more.
    let usual = bytes / if bytes < 512 << 20 { 4096 } else { 16384 };
    let inodes = usual.max(files + files / 4 + 1024).to_string();
    let arguments = ["-q", "-F", "-m", "0", "-N", &inodes, "-E", options];
    run("mkfs.ext4", &arguments, &[image])
}

/// Takes the blocks now: later there may be none. The platform's reserve is not for it.
fn allocate(file: &File, bytes: u64, reserve: Option<u64>) -> Result<(), String> {
    let failed = |error: io::Error| error.to_string();
    let before = file.metadata().map_err(failed)?.len();
    let _one = ALLOCATING
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let disk = rustix::fs::fstatvfs(file).map_err(|error| error.to_string())?;
    let reserve = reserve.unwrap_or((disk.f_blocks * disk.f_frsize / 20).min(1 << 30));
    let free = (disk.f_bavail * disk.f_frsize).saturating_sub(reserve);
    let more = bytes.saturating_sub(before);
    if more > free {
        let (more, free) = (show_size(more), show_size(free));
        return Err(format!(
            "there is no room for {more} on this server's disk: {free} are free beside its reserve"
        ));
    }
    let taken = rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes);
    match taken {
        Ok(()) => Ok(()),
        // Few file systems cannot; there the bound holds, and nothing is set aside.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes).map_err(failed),
        Err(error) => {
            // What it had taken by then.
            let _ = file.set_len(before);
            Err(error.to_string())
        }
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
        // A move was interrupted behind the copy, or somebody put this there since: it is not ours to say which.
        let aside = put_aside(folder)?;
        tracing::warn!("{} is kept as {}", folder.display(), aside.display());
    }
    trees::make_owned(folder, None, 0o700).map_err(|error| error.to_string())?;
    // Nobody writes beside the mount if there is none.
    let failed = |reason: String| format!("cannot mount the disk of /data: {reason}");
    if let Err(reason) = attach(image, folder) {
        if !free_loops(image) {
            return Err(failed(reason));
        }
        // The journal was not enough.
        let _ = run("e2fsck", &["-p"], &[image]);
        attach(image, folder).map_err(failed)?;
    }
    hutong_ipc::fail::point("disk.mounted");
    Ok(())
}

/// Where plain folders go that a disk takes the place of; `doctor --leaks` puts things there, too.
fn put_aside(folder: &Path) -> Result<PathBuf, String> {
    let failed = |error: io::Error| error.to_string();
    let lost = folder.with_file_name(".lost");
    trees::make_owned(&lost, None, 0o700).map_err(failed)?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let to = lost.join(format!("{name}-{}", crate::processes::now_ms()));
    fs::rename(folder, &to).map_err(failed)?;
    Ok(to)
}

/// The size of the file system in an image, as its superblock has it (ext4's layout, offsets 1024 + 4 and + 24).
fn size_inside(image: &Path) -> Option<u64> {
    use std::os::unix::fs::FileExt;
    let mut block = [0; 28];
    File::open(image)
        .ok()?
        .read_exact_at(&mut block, 1024)
        .ok()?;
    let word = |at: usize| Some(u32::from_le_bytes(*block.get(at..)?.first_chunk()?));
    Some(u64::from(word(4)?) << (10 + word(24)?.min(6)))
}

/// Makes one larger. None is made smaller: that could not be undone by a rollback.
fn grow(
    image: &Path,
    folder: &Path,
    quota: Quota,
    reserve: Option<u64>,
) -> Result<Option<String>, String> {
    let failed = |reason: String| format!("cannot make the disk of /data larger: {reason}");
    let wanted = quota.bytes + OVERHEAD;
    let has = fs::metadata(image)
        .map_err(|error| failed(error.to_string()))?
        .len();
    // A try before this one may have been interrupted behind its first half.
    let half_done = size_inside(image).is_some_and(|inside| inside + (1 << 20) < has);
    if has >= wanted && !half_done {
        let smaller = has > wanted + OVERHEAD;
        let shown = show_size(has - OVERHEAD);
        return Ok(smaller.then(|| format!("/data keeps its {shown}: a disk is not made smaller")));
    }
    if has < wanted {
        let file = File::options().write(true).open(image);
        let file = file.map_err(|error| failed(error.to_string()))?;
        if let Err(reason) = allocate(&file, wanted, reserve) {
            return Ok(Some(format!("/data is not made larger: {reason}")));
        }
        hutong_ipc::fail::point("disk.allocated");
    }
    let online = device_of(folder)
        .ok_or("it is not mounted".to_owned())
        .and_then(|device| {
            run("losetup", &["-c"], &[&device])?;
            run("resize2fs", &[], &[&device])
        });
    let Err(reason) = online else { return Ok(None) };
    let later = |reason: String| {
        format!("/data is made larger at the next start at which nothing of the app runs: {reason}")
    };
    if !quota.alone {
        return Ok(Some(later(reason)));
    }
    // Not every root may ask the kernel for it. Where nobody uses it, it is done without.
    match unmount(folder, UnmountFlags::empty()) {
        Ok(()) => {}
        Err(error) => return Ok(Some(later(error.to_string()))),
    }
    let resized = resize_unused(image);
    attach(image, folder)?;
    Ok(resized.err().map(later))
}

/// Takes the loop devices of an image away that nothing is mounted from; false if there is one in use.
fn free_loops(image: &Path) -> bool {
    let listed = || -> Option<Vec<PathBuf>> {
        let mut command = Command::new("losetup");
        let listed = isolated(&mut command)
            .args(["--noheadings", "--raw", "--output", "NAME", "-j"])
            .arg(image)
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        Some(text.lines().map(PathBuf::from).collect())
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for device in listed().unwrap_or_default() {
        let name = format!(" {} ", device.display());
        if !mounts.contains(&name) {
            let _ = run("losetup", &["-d"], &[&device]);
        }
    }
    listed().is_some_and(|left| left.is_empty())
}

/// Through a loop device, which the kernel gives to nobody else meanwhile, not even to a mount.
fn resize_unused(image: &Path) -> Result<(), String> {
    // The namespace of who used it last goes a moment after its last process.
    let began = Instant::now();
    loop {
        let mut command = Command::new("losetup");
        let listed = isolated(&mut command).arg("-j").arg(image).output();
        if listed.is_ok_and(|output| output.stdout.is_empty()) {
            break;
        }
        if began.elapsed() > LAST_USER {
            return Err("it is still mounted somewhere".into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut command = Command::new("losetup");
    let made = isolated(&mut command)
        .args(["--find", "--show", "--"])
        .arg(image)
        .output();
    let made = made.map_err(|error| error.to_string())?;
    let device = PathBuf::from(String::from_utf8_lossy(&made.stdout).trim());
    if !made.status.success() || !device.starts_with("/dev") {
        return Err("no loop device".into());
    }
    let checked = run("e2fsck", &["-f", "-p"], &[&device]);
    let resized = checked.and_then(|()| run("resize2fs", &[], &[&device]));
    let _ = run("losetup", &["-d"], &[&device]);
    resized
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
    fn odd_paths_are_written_as_the_kernel_writes_them() {
        let odd = "/a b\t\n\\040";
        assert_eq!(escaped(odd), "/a\\040b\\011\\012\\134040");
        assert_eq!(unescaped(&escaped(odd)), odd);
        let folder = tempfile::tempdir().expect("a folder");
        let below = folder.path().join("a b");
        fs::create_dir(&below).expect("made");
        let inside = inside(&below).expect("found");
        assert!(inside.ends_with("/a\\040b"), "{inside}");
        assert_eq!(super::inside(&folder.path().join("none")), None);
    }

    #[test]
    fn what_nobody_waited_for_is_said_to_who_asks_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("image");
        let quota = |bytes| Some(Quota { bytes, alone: true });
        let said = |said: Result<Option<String>, String>| {
            let outcome = Outcome {
                said,
                quota: quota(7),
                at: Instant::now(),
            };
            work().outcomes.insert("kept".into(), outcome);
        };
        let ask = |bytes| kept("kept", quota(bytes), &image, folder.path());
        // It could not be made: not again and again.
        said(Ok(Some("no".into())));
        assert_eq!(ask(7), Some(Ok(Some("no".into()))));
        assert_eq!(ask(7), Some(Ok(Some("no".into()))));
        // With another size it is tried.
        assert_eq!(ask(8), None);
        assert_eq!(ask(7), None);
        // A failure is said once.
        said(Err("why".into()));
        assert_eq!(ask(7), Some(Err("why".into())));
        assert_eq!(ask(7), None);
        // Made, but not mounted any more.
        said(Ok(None));
        fs::write(&image, "").expect("written");
        assert_eq!(ask(7), None);
    }

    #[test]
    fn a_folder_is_measured_and_one_that_is_missing_is_empty() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("a"), vec![7; 100_000]).expect("written");
        let used = measure(folder.path()).expect("measured");
        assert!((100_000..300_000).contains(&used), "{used}");
        assert_eq!(measure(&folder.path().join("none")), Some(0));
        assert!(!is_mounted(folder.path()));
        assert!(!is_in_use(folder.path()) && is_in_use(Path::new("/")));
        assert!(is_mounted(Path::new("/proc")));
    }
}
