//! Snapshots of apps' `/data`: whole copies in a folder of root's own, `snapshots/APP/ID`, whose name says that they are
//! complete. What takes long goes on in a thread behind [`Unready::Later`]; who asks again hears how it ended. One thing at a
//! time is done to an app's data. Whatever is interrupted leaves names that begin with `.new-`, which the next start removes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hutong_core::units::show_size;
use hutong_ipc::fail;
use hutong_ipc::warden::Snapshot;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::copies::{self, Copied, Way};
use crate::disks::{self, Unready};
use crate::paths::Layout;
use crate::{processes, trees};

/// So many of an app are kept.
const KEEP: usize = 3;
/// The prefix of what is not finished.
const NEW: &str = ".new-";
/// How long whoever asks waits before it is told to ask again.
const SOON: Duration = Duration::from_millis(1500);
/// How long who used the data last may take to let it go.
const LAST_USER: Duration = Duration::from_secs(5);

/// What is done to an app's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Take(u64),
    Restore(u64),
    /// It is made of this app's.
    CopyOf(String),
    /// It is read for another app's.
    Lent,
}

struct Job {
    task: Task,
    /// How it ended, and when, until somebody has heard it.
    ended: Option<(Result<(), String>, Instant)>,
}

/// What nobody has heard of for so long is done anew when it is asked for.
const HEARD: Duration = Duration::from_secs(10);

impl Job {
    fn is_known(&self) -> bool {
        let ended = self.ended.as_ref();
        ended.is_none_or(|(_, at)| at.elapsed() < HEARD)
    }
}

/// By app.
static WORK: Mutex<BTreeMap<String, Job>> = Mutex::new(BTreeMap::new());

fn work() -> MutexGuard<'static, BTreeMap<String, Job>> {
    WORK.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Whether something is being done to an app's data.
pub fn is_busy(app: &str) -> bool {
    work().get(app).is_some_and(|job| job.ended.is_none())
}

/// How something ended of an app that goes is nobody's any more.
pub fn forget(app: &str) {
    work().remove(app);
}

/// Whether a snapshot of an app is being put back: nothing of it is to start.
pub fn is_restoring(app: &str) -> bool {
    let is_it = |job: &Job| job.ended.is_none() && matches!(job.task, Task::Restore(_));
    work().get(app).is_some_and(is_it)
}

const BUSY: &str = "something else is being done to the app's /data";

/// What begins or goes on.
pub struct Begun {
    app: String,
    task: Task,
}

/// Begins a task, unless it goes on already. `None`: it has ended, and this is how.
pub fn begin(
    app: &str,
    task: Task,
    does: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Result<Begun, Unready> {
    let begun = Begun {
        app: app.to_owned(),
        task: task.clone(),
    };
    let lender = match &task {
        Task::CopyOf(other) => Some(other.clone()),
        _ => None,
    };
    {
        let mut work = work();
        match work.get(app) {
            Some(job) if job.task == task && job.is_known() => return Ok(begun),
            Some(job) if job.ended.is_none() => return Err(Unready::Later(BUSY.into())),
            _ => {}
        }
        if let Some(lender) = &lender {
            if work.get(lender).is_some_and(|job| job.ended.is_none()) {
                return Err(Unready::Later(BUSY.into()));
            }
            let lent = Job {
                task: Task::Lent,
                ended: None,
            };
            work.insert(lender.clone(), lent);
        }
        work.insert(app.to_owned(), Job { task, ended: None });
    }
    let (name, other) = (app.to_owned(), lender.clone());
    let run = move || {
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(does));
        let said = said.unwrap_or_else(|_| Err("it ended by a mistake of ours".into()));
        let mut work = work();
        if let Some(other) = other {
            work.remove(&other);
        }
        if let Some(job) = work.get_mut(&name) {
            job.ended = Some((said, Instant::now()));
        }
    };
    let spawned = std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(run)
        .map_err(|error| error.to_string());
    if let Err(error) = spawned {
        let mut work = work();
        work.remove(app);
        if let Some(lender) = lender {
            work.remove(&lender);
        }
        return Err(error.into());
    }
    Ok(begun)
}

impl Begun {
    /// Waits a moment for its end.
    pub fn wait(self) -> Result<(), Unready> {
        let began = Instant::now();
        loop {
            {
                let mut work = work();
                let mine = work.get(&self.app).filter(|job| job.task == self.task);
                let Some(job) = mine else {
                    // Somebody else has heard it: asked again, it is known.
                    return Err(Unready::Later(BUSY.into()));
                };
                if let Some((said, _)) = job.ended.clone() {
                    work.remove(&self.app);
                    return said.map_err(Unready::Failed);
                }
            }
            if began.elapsed() > SOON {
                let what = match self.task {
                    Task::Restore(_) => "the snapshot is being put back",
                    _ => "/data is being copied",
                };
                return Err(Unready::Later(what.into()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What is written beside the data of a snapshot.
#[derive(Serialize, Deserialize)]
struct Note {
    created_ms: u64,
    bytes: u64,
    files: u64,
    left_out: u64,
    changed: bool,
}

const NOTE: &str = "note.json";

fn place_of(layout: &Layout, app: &str) -> PathBuf {
    layout.snapshots().join(app)
}

fn ids(place: &Path) -> Vec<u64> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut ids: Vec<u64> = names.collect();
    ids.sort_unstable_by(|one, other| other.cmp(one));
    ids
}

/// An app's, the newest first.
pub fn list(layout: &Layout, app: &str) -> Vec<Snapshot> {
    list_in(&place_of(layout, app))
}

fn list_in(place: &Path) -> Vec<Snapshot> {
    let read = |id: u64| {
        let text = fs::read(place.join(id.to_string()).join(NOTE)).ok()?;
        let note: Note = serde_json::from_slice(&text).ok()?;
        Some(Snapshot {
            id,
            created_ms: note.created_ms,
            bytes: note.bytes,
            files: note.files,
            left_out: note.left_out,
            changed: note.changed,
        })
    };
    ids(place).into_iter().filter_map(read).collect()
}

pub fn is_there(layout: &Layout, app: &str, id: u64) -> bool {
    place_of(layout, app).join(id.to_string()).is_dir()
}

/// A missing one is fine.
pub fn drop_one(layout: &Layout, app: &str, id: u64) -> Result<(), Unready> {
    // Nothing begins meanwhile.
    let work = work();
    if work.get(app).is_some_and(|job| job.ended.is_none()) {
        return Err(Unready::Later(BUSY.into()));
    }
    let path = place_of(layout, app).join(id.to_string());
    trees::delete(&path).map_err(|error| Unready::Failed(error.to_string()))
}

fn failed(what: &str) -> impl Fn(io::Error) -> String {
    let what = what.to_owned();
    move |error| format!("{what}: {error}")
}

/// Copies an app's data aside. One that is there already stays as it is, and so does the oldest from `keep` on: what the data
/// were before the first of several tries that failed.
pub fn take(
    layout: &Layout,
    app: &str,
    (id, keep): (u64, u64),
    reserve: Option<u64>,
) -> Result<(), String> {
    let failed = failed("no snapshot of /data can be taken");
    let (place, folder) = (place_of(layout, app), layout.app_data().join(app));
    let kept = place.join(id.to_string());
    if kept.is_dir() {
        return Ok(());
    }
    trees::make_owned(&place, None, 0o700).map_err(&failed)?;
    make_room(&place, &folder, keep, reserve).map_err(&failed)?;
    let scratch = place.join(format!("{NEW}{id}"));
    let way = Way {
        reserve,
        may_miss: true,
        owner: &|id| id,
    };
    let made = copies::copy(&folder, &scratch, &way)
        .and_then(|copied| write_note(&scratch, copied))
        .and_then(|()| {
            fail::point("snapshot.copied");
            fs::rename(&scratch, &kept)?;
            sync(&place)
        });
    if let Err(error) = made {
        let _ = trees::delete(&scratch);
        return Err(failed(error));
    }
    fail::point("snapshot.kept");
    for old in to_drop(&ids(&place), keep) {
        if let Err(error) = trees::delete(&place.join(old.to_string())) {
            tracing::warn!("the snapshot {old} of {app} stays: {error}");
        }
    }
    Ok(())
}

/// Which of an app's snapshots go, the newest of `ids` being the first.
fn to_drop(ids: &[u64], keep: u64) -> Vec<u64> {
    let kept = ids.iter().filter(|id| keep > 0 && **id >= keep).min();
    let older = ids.iter().skip(KEEP);
    older.filter(|id| Some(*id) != kept).copied().collect()
}

fn write_note(scratch: &Path, copied: Copied) -> io::Result<()> {
    let note = Note {
        created_ms: processes::now_ms(),
        bytes: copied.bytes,
        files: copied.files,
        left_out: copied.left_out,
        changed: copied.changed,
    };
    let text = serde_json::to_vec(&note).map_err(io::Error::other)?;
    let path = scratch.join(NOTE);
    fs::write(&path, text)?;
    File::open(&path)?.sync_all()?;
    sync(scratch)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Older snapshots of the same app make room for a new one; but only if that is enough. The newest stays, because the copy may
/// fail yet, and the oldest from `keep` on.
fn make_room(place: &Path, folder: &Path, keep: u64, reserve: Option<u64>) -> io::Result<()> {
    if !folder.is_dir() || copies::can_share(folder, place) {
        return Ok(());
    }
    // What takes too long to be measured is copied as far as there is room.
    let needed = disks::measure(folder).unwrap_or(0);
    let free = || -> io::Result<u64> {
        let (free, reserve) = copies::room(&File::open(place)?, reserve)?;
        Ok(free.saturating_sub(reserve))
    };
    let mut old = list_in(place);
    let ids = old.iter().map(|one| one.id);
    let kept = ids.filter(|id| keep > 0 && *id >= keep).min();
    let newest = old.first().map(|one| one.id);
    old.retain(|one| Some(one.id) != newest && Some(one.id) != kept);
    let given = old
        .iter()
        .fold(0_u64, |sum, one| sum.saturating_add(one.bytes));
    let (now, kept_free) = copies::room(&File::open(place)?, reserve)?;
    if now >= kept_free.saturating_add(needed) {
        return Ok(());
    }
    // What is short of the reserve already is to be given up, too.
    if now.saturating_add(given) < kept_free.saturating_add(needed) {
        let now = now.saturating_sub(kept_free);
        let (needed, now) = (show_size(needed), show_size(now));
        return Err(io::Error::other(format!(
            "it takes {needed}, and only {now} are free beside the reserve of this server's disk"
        )));
    }
    while free()? < needed
        && let Some(oldest) = old.pop()
    {
        let gone = place.join(format!("{NEW}gone"));
        trees::remove(&gone)?;
        fs::rename(place.join(oldest.id.to_string()), &gone)?;
        // Its room is needed now.
        trees::remove(&gone)?;
    }
    Ok(())
}

/// Whether there is room for a copy of a folder: found out before it is begun, so that it is not others' builds and caches that
/// pay for what cannot succeed.
fn enough(from: &Path, layout: &Layout, reserve: Option<u64>) -> Result<(), String> {
    let to = layout.app_data();
    if !from.is_dir() || copies::can_share(from, &to) {
        return Ok(());
    }
    let needed = disks::measure(from).unwrap_or(0);
    let room = File::open(&to).and_then(|to| copies::room(&to, reserve));
    let (free, reserve) = room.map_err(|error| error.to_string())?;
    let free = free.saturating_sub(reserve);
    if free >= needed {
        return Ok(());
    }
    let (needed, free) = (show_size(needed), show_size(free));
    Err(format!(
        "a copy takes {needed}, and only {free} are free beside the reserve of this server's disk"
    ))
}

/// Puts a snapshot in the place of an app's data; nothing of the app runs. The data is built aside and exchanged at once.
pub fn restore(layout: &Layout, app: &str, id: u64, reserve: Option<u64>) -> Result<(), String> {
    let failed = failed("the snapshot cannot be put back");
    let from = place_of(layout, app).join(id.to_string()).join("data");
    if !from.is_dir() {
        return Err(format!("there is no snapshot {id}"));
    }
    if disks::image_of(layout, app).is_file() {
        return disks::refill(layout, app, &from, reserve);
    }
    let folder = layout.app_data().join(app);
    enough(&from, layout, reserve)?;
    let began = Instant::now();
    while disks::is_in_use(&folder) {
        if began.elapsed() > LAST_USER {
            return Err("the snapshot cannot be put back: something still uses /data".into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let scratch = layout.app_data().join(format!("{NEW}{app}"));
    let way = Way {
        reserve,
        may_miss: false,
        owner: &|id| id,
    };
    let put = copies::copy(&from, &scratch, &way).and_then(|_| {
        fail::point("restore.copied");
        exchange(&scratch.join("data"), &folder)?;
        fail::point("restore.exchanged");
        sync(&layout.app_data())
    });
    let gone = trees::delete(&scratch);
    put.and(gone).map_err(failed)
}

/// Puts one folder in the place of another, which may be missing.
fn exchange(fresh: &Path, old: &Path) -> io::Result<()> {
    match renameat_with(CWD, fresh, CWD, old, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(Errno::NOENT) => fs::rename(fresh, old),
        // Few file systems cannot: who is interrupted between these two begins anew.
        Err(Errno::INVAL | Errno::NOSYS) => {
            trees::delete(old)?;
            fs::rename(fresh, old)
        }
        Err(error) => Err(error.into()),
    }
}

/// Makes an app's first data of another's, whose users are `from` on, as `to` on. What is there already stays as it is.
pub fn copy_data(
    layout: &Layout,
    (from, to): (&str, &str),
    reserve: Option<u64>,
    owner: impl Fn(u32) -> u32,
) -> Result<(), String> {
    let failed = failed("the data cannot be copied");
    let folder = layout.app_data().join(to);
    let is_made = || folder.exists() || disks::image_of(layout, to).is_file();
    if is_made() {
        return Ok(());
    }
    enough(&layout.app_data().join(from), layout, reserve)?;
    let scratch = layout.app_data().join(format!("{NEW}{to}"));
    let way = Way {
        reserve,
        may_miss: true,
        owner: &owner,
    };
    let copied = copies::copy(&layout.app_data().join(from), &scratch, &way);
    let made = copied.and_then(|_| {
        fail::point("data.copied");
        // Never over what somebody made meanwhile.
        if !is_made() {
            fs::rename(scratch.join("data"), &folder)?;
        }
        sync(&layout.app_data())
    });
    let gone = trees::delete(&scratch);
    made.and(gone).map_err(failed)
}

/// Throws away what interrupted tries left; before anything can be asked.
pub fn sweep(layout: &Layout) {
    let mut places = vec![layout.app_data()];
    let apps = fs::read_dir(layout.snapshots())
        .into_iter()
        .flatten()
        .flatten();
    places.extend(apps.map(|entry| entry.path()));
    for place in &places {
        let entries = fs::read_dir(place).into_iter().flatten().flatten();
        for entry in entries.filter(|e| e.file_name().to_string_lossy().starts_with(NEW)) {
            if let Err(error) = trees::delete(&entry.path()) {
                tracing::warn!("{}: {error}", entry.path().display());
            }
        }
    }
    places.push(layout.snapshots());
    trees::sweep(&places);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(top: &Path) -> Layout {
        let layout = Layout::new(top).expect("a layout");
        for folder in [layout.app_data(), layout.snapshots(), layout.disks()] {
            fs::create_dir(folder).expect("made");
        }
        layout
    }

    #[test]
    fn the_newest_snapshots_are_kept_and_put_back() {
        let top = tempfile::tempdir().expect("a folder");
        let layout = layout(top.path());
        let data = layout.app_data().join("shop");
        fs::create_dir(&data).expect("made");
        for id in 1..=5 {
            fs::write(data.join("kept"), id.to_string()).expect("written");
            take(&layout, "shop", (id, 0), Some(0)).expect("taken");
            if id == 1 {
                // One that is kept goes as soon as nobody wants it any more.
                for id in [10, 11, 12, 13] {
                    take(&layout, "kept", (id, 10), Some(0)).expect("taken");
                }
            }
        }
        let ids: Vec<u64> = list(&layout, "kept").iter().map(|one| one.id).collect();
        assert_eq!(
            ids,
            [13, 12, 11, 10],
            "10 holds what was before all of them"
        );
        take(&layout, "kept", (14, 14), Some(0)).expect("taken");
        let ids: Vec<u64> = list(&layout, "kept").iter().map(|one| one.id).collect();
        assert_eq!(ids, [14, 13, 12]);
        let ids: Vec<u64> = list(&layout, "shop").iter().map(|one| one.id).collect();
        assert_eq!(ids, [5, 4, 3]);
        // What was taken is not taken again.
        fs::write(data.join("kept"), "later").expect("written");
        take(&layout, "shop", (5, 0), Some(0)).expect("there");
        fs::write(data.join("more"), "x").expect("written");
        for id in [5, 3, 3] {
            restore(&layout, "shop", id, Some(0)).expect("put back");
            let found = fs::read_to_string(data.join("kept")).expect("read");
            assert_eq!(found, id.to_string());
            assert!(!data.join("more").exists());
        }
        let error = restore(&layout, "shop", 1, Some(0)).expect_err("it went");
        assert!(error.contains("no snapshot 1"), "{error}");
        let error = take(&layout, "shop", (6, 0), Some(u64::MAX)).expect_err("no room");
        assert!(error.contains("free beside the reserve") || error.contains("no room"));
        assert_eq!(
            list(&layout, "shop").len(),
            3,
            "nothing was given up for it"
        );
        // Of nothing there is one, too.
        take(&layout, "new", (1, 0), Some(0)).expect("taken");
        assert_eq!(list(&layout, "new")[0].files, 0);
    }

    #[test]
    fn a_copy_of_data_is_made_once() {
        let top = tempfile::tempdir().expect("a folder");
        let layout = layout(top.path());
        let at = |path: &str| layout.app_data().join(path);
        fs::create_dir(at("shop")).expect("made");
        fs::write(at("shop/kept"), "one").expect("written");
        let copy = || copy_data(&layout, ("shop", "shop--x"), Some(0), |id| id);
        copy().expect("copied");
        fs::write(at("shop/kept"), "two").expect("written");
        copy().expect("there");
        assert_eq!(fs::read(at("shop--x/kept")).expect("read"), b"one");
        fs::create_dir(at(".new-shop")).expect("made");
        sweep(&layout);
        assert!(!at(".new-shop").exists());
    }

    #[test]
    fn one_thing_at_a_time_is_done_and_its_end_is_heard_once() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let does = move || wait.recv().map_err(|_| "it failed".to_owned());
        let begun = begin("lone", Task::Restore(1), does).expect("begun");
        assert!(is_busy("lone") && is_restoring("lone"));
        assert!(matches!(
            begin("lone", Task::Take(2), || Ok(())),
            Err(Unready::Later(_))
        ));
        assert!(matches!(
            begin("other", Task::CopyOf("lone".into()), || Ok(())),
            Err(Unready::Later(_))
        ));
        drop(go);
        assert!(matches!(begun.wait(), Err(Unready::Failed(_))));
        let again = begin("lone", Task::Take(2), || Ok(())).expect("begun");
        assert!(again.wait().is_ok());
    }
}
