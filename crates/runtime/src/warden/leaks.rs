//! What lies around and belongs to no app: found by looking at the kernel and the disk, not at what we
//! remember. `hutong doctor --leaks` shows it, `--fix` removes it.

use std::fs;
use std::path::Path;

use hutong_core::name::is_instance_id;
use hutong_ipc::shim::UID_RANGE;
use hutong_ipc::warden::Leak;

use super::{Warden, lock};
use crate::instances::Record;
use crate::{egress, processes, sys, trees};

/// Where unknown apps' data is put, inside the folder that it was in (a disk of its own, perhaps): no app has such a name.
const LOST: &str = ".lost";

/// What is known to be somebody's.
struct Known<'a> {
    live: Vec<Record>,
    apps: &'a [String],
    builds: &'a [String],
}

impl Known<'_> {
    fn instance(&self, name: &str) -> bool {
        self.live.iter().any(|record| record.instance == name)
    }

    fn app(&self, name: &str) -> bool {
        self.apps.iter().any(|app| app == name)
    }
}

struct Found<'a> {
    leaks: Vec<Leak>,
    fix: &'a [(String, String)],
}

impl Found<'_> {
    /// Notes a leak; `remove` is called if it is to be removed.
    fn leak(&mut self, kind: &str, what: String, remove: impl FnOnce() -> Result<(), String>) {
        let asked = self.fix.iter().any(|(k, w)| k == kind && *w == what);
        let outcome = asked.then(remove);
        self.leaks.push(Leak {
            kind: kind.to_owned(),
            what,
            removed: matches!(outcome, Some(Ok(()))),
            problem: outcome.and_then(Result::err),
        });
    }
}

/// `apps` are all that control knows, removed ones whose data is kept among them; `builds` are under way.
/// What is in `fix` is removed: only what was a leak before, too, so that an app that was made since control
/// read its list is none.
pub fn find(
    warden: &Warden,
    apps: &[String],
    builds: &[String],
    fix: &[(String, String)],
) -> Vec<Leak> {
    // Nothing may begin meanwhile that would look like a leak.
    let nothing_begins = match warden.making.try_write() {
        Err(std::sync::TryLockError::WouldBlock) => None,
        Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Ok(guard) => Some(guard),
    };
    let Some(_nothing_begins) = nothing_begins else {
        let what = "an instance is being started; ask again in a moment".to_owned();
        return vec![Leak {
            kind: "busy".into(),
            what,
            removed: false,
            problem: None,
        }];
    };
    let known = Known {
        live: warden.instances.live(),
        apps,
        builds,
    };
    let mut found = Found {
        leaks: Vec::new(),
        fix,
    };
    find_processes(warden, &known, &mut found);
    find_cgroups(warden, &known, &mut found);
    find_mounts(warden, &mut found);
    find_interfaces(warden, &known, &mut found);
    find_files(warden, &known, &mut found);
    find_ids(warden, &known, &mut found);
    found.leaks
}

/// Processes with an app's ids that are in no instance's cgroup, and are no instance's shim.
fn find_processes(warden: &Warden, known: &Known<'_>, found: &mut Found<'_>) {
    let ranges: Vec<u32> = {
        let mut uids = lock(&warden.uids);
        let apps = uids.apps();
        apps.iter()
            .filter_map(|app| uids.of_app(app).ok())
            .collect()
    };
    let ours = |uid: u32| {
        ranges
            .iter()
            .any(|base| (*base..base + UID_RANGE).contains(&uid))
    };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Some(start_time) = processes::start_time(pid) else {
            continue;
        };
        if !processes::uid(pid).is_some_and(ours) || known.live.iter().any(|r| r.pid == pid) {
            continue;
        }
        if descends_from(pid, &known.live) {
            continue;
        }
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let mine = format!("/hutong-{}/", warden.layout.tag);
        let instance = groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(&mine)?;
            Some(rest.split('/').next().unwrap_or(rest))
        });
        match instance {
            Some(instance) if known.instance(instance) => continue,
            // A container of ours or of somebody else's: the engine accounts for it.
            None if groups.lines().any(of_a_container) => continue,
            // Another server's, whose random range of ids meets ours.
            None if groups.lines().any(of_a_server) => continue,
            _ => {}
        }
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        found.leak("process", format!("{pid} ({})", name.trim()), || {
            if processes::is_alive(pid, start_time) {
                sys::kill(pid, libc::SIGKILL);
            }
            Ok(())
        });
    }
}

/// Whether a line of `/proc/PID/cgroup` ends with the name that engines give a container's group.
fn of_a_container(line: &str) -> bool {
    let last = line.rsplit('/').next().unwrap_or_default();
    let id = last.strip_suffix(".scope").unwrap_or(last);
    let id = id.rsplit('-').next().unwrap_or(id);
    hutong_core::name::is_digest(id)
}

/// Whether a line of `/proc/PID/cgroup` names the group of any server of ours.
fn of_a_server(line: &str) -> bool {
    line.split('/')
        .filter_map(|part| part.strip_prefix("hutong-"))
        .any(|tag| tag.len() >= 6 && tag.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether a process is a shim on record or comes from one: what loses its parent inside becomes init's.
fn descends_from(pid: i32, live: &[Record]) -> bool {
    let mut at = pid;
    for _ in 0..64 {
        if live.iter().any(|record| record.pid == at) {
            return true;
        }
        match processes::parent(at) {
            Some(parent) if parent > 1 => at = parent,
            _ => return false,
        }
    }
    false
}

fn find_cgroups(warden: &Warden, known: &Known<'_>, found: &mut Found<'_>) {
    for instance in warden.cgroups.instances() {
        if !known.instance(&instance) {
            found.leak("cgroup", instance.clone(), || {
                warden.cgroups.kill(&instance);
                for _ in 0..100 {
                    if warden.cgroups.remove(&instance) {
                        return Ok(());
                    }
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                Err("its processes do not end".into())
            });
        }
    }
}

/// We mount nothing in the host's namespace. Disks that the administrator put below the data folder are no
/// leaks: only what is inside an app's data, a build or the run folder.
fn find_mounts(warden: &Warden, found: &mut Found<'_>) {
    let layout = &warden.layout;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for point in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
        let depth = |folder: &Path| {
            let below = Path::new(point).strip_prefix(folder);
            below.map_or(0, |rest| rest.components().count())
        };
        if depth(&layout.app_data()) > 1 || depth(&layout.builds()) > 0 || depth(&layout.run) > 0 {
            found.leak("mount", point.to_owned(), || {
                rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH)
                    .map_err(|error| error.to_string())
            });
        }
    }
}

fn find_interfaces(warden: &Warden, known: &Known<'_>, found: &mut Found<'_>) {
    let bridge = format!("ht{}", &warden.layout.tag[..6]);
    let network = lock(&warden.network).clone();
    for name in egress::interfaces() {
        let index = name
            .strip_prefix(&bridge)
            .and_then(|rest| rest.strip_prefix('-'));
        let used = match index {
            Some(index) => known
                .live
                .iter()
                .any(|r| r.egress.is_some_and(|own| own.to_string() == index)),
            None => name != bridge || network.is_some(),
        };
        if !used {
            found.leak("interface", name.clone(), || {
                egress::delete_interface(&name)
            });
        }
    }
    if network.is_none() && egress::has_table(&warden.layout.tag) {
        let table = format!("hutong_{}", warden.layout.tag);
        found.leak("nft table", table, || {
            egress::delete_table(&warden.layout.tag)
        });
    }
}

fn find_files(warden: &Warden, known: &Known<'_>, found: &mut Found<'_>) {
    let layout = &warden.layout;
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    let folder = layout.instances();
    for name in names(&folder) {
        let instance = name.strip_suffix(".json").or(name.strip_suffix(".sock"));
        if !instance.is_some_and(|instance| known.instance(instance)) {
            let path = folder.join(&name);
            found.leak("file", path.display().to_string(), || {
                fs::remove_file(&path).map_err(|error| error.to_string())
            });
        }
    }
    let folder = layout.spool();
    for name in names(&folder) {
        let (of, _) = name.rsplit_once('.').unwrap_or((&name, ""));
        let of = of.strip_suffix(".cursor").unwrap_or(of);
        let build = of.rsplit_once("-s").map_or(of, |(build, _)| build);
        let used = of.starts_with("access-")
            || known.instance(of)
            || known.builds.iter().any(|known| known == build);
        // Control takes in and deletes what an instance left, within seconds of its end.
        let fresh = fs::metadata(folder.join(&name))
            .and_then(|found| found.modified())
            // From the future: somebody set the clock back.
            .is_ok_and(|at| at.elapsed().map_or(true, |age| age.as_secs() < 5));
        // Of containers only the driver knows, and it may not know yet.
        let may_be_container = warden.config.settings.docker.is_some();
        if !used && !fresh && !may_be_container && is_instance_id(of) {
            let path = folder.join(&name);
            found.leak("file", path.display().to_string(), || {
                fs::remove_file(&path).map_err(|error| error.to_string())
            });
        }
    }
    for (folder, used) in [
        (layout.built(), known.apps),
        (layout.caches(), known.apps),
        (layout.builds(), known.builds),
    ] {
        for name in names(&folder) {
            // One that is being deleted is on its way out already.
            let going = name.starts_with(trees::GONE) && trees::is_removing();
            if !used.contains(&name) && !going {
                let path = folder.join(&name);
                found.leak("folder", path.display().to_string(), || {
                    trees::delete(&path).map_err(|error| error.to_string())
                });
            }
        }
    }
    for app in crate::disks::images(layout) {
        if !known.app(&app) {
            let image = crate::disks::image_of(layout, &app);
            found.leak("file", image.display().to_string(), || {
                // Somebody's data: it is put away, not thrown away.
                let lost = layout.app_data().join(LOST);
                let kept = lost.join(format!("{app}-{}.img", processes::now_ms()));
                trees::make_owned(&lost, None, 0o700)
                    .map_err(|error| error.to_string())
                    .and_then(|()| crate::disks::put_away(layout, &app, &kept))
            });
        }
    }
    for name in names(&layout.snapshots()) {
        if known.app(&name) || hutong_core::name::AppName::new(&name).is_err() {
            continue;
        }
        let path = layout.snapshots().join(&name);
        found.leak("folder", path.display().to_string(), || {
            put_away(&layout.snapshots(), &name)
        });
    }
    let folder = layout.app_data();
    for name in names(&folder) {
        // Anything else there was put there by somebody, a disk's `lost+found` among it.
        if known.app(&name) || hutong_core::name::AppName::new(&name).is_err() {
            continue;
        }
        let path = folder.join(&name);
        // Somebody's data, whose app is not known any more: perhaps because the store is an old copy.
        found.leak("folder", path.display().to_string(), || {
            put_away(&folder, &name)
        });
    }
}

/// Moves what lies in a folder aside, within that: it may be a disk of its own, out of which nothing can be renamed.
fn put_away(folder: &Path, name: &str) -> Result<(), String> {
    let lost = folder.join(LOST);
    let to = lost.join(format!("{name}-{}", processes::now_ms()));
    trees::make_owned(&lost, None, 0o700)
        .and_then(|()| fs::rename(folder.join(name), to))
        .map_err(|error| error.to_string())
}

/// Ranges of apps that nobody knows any more, once nothing on disk has their ids.
fn find_ids(warden: &Warden, known: &Known<'_>, found: &mut Found<'_>) {
    if !warden.root {
        return;
    }
    let apps = lock(&warden.uids).apps();
    for app in apps.into_iter().filter(|app| !known.app(app)) {
        let base = lock(&warden.uids).of_app(&app).unwrap_or(0);
        let runs = known.live.iter().any(|record| record.app == app);
        found.leak("id range", format!("{base} of {app}"), || {
            let keeps = |folder: std::path::PathBuf| folder.join(&app).exists();
            if runs || keeps(warden.layout.app_data()) || keeps(warden.layout.snapshots()) {
                return Err("something of the app is still there; ask again".into());
            }
            lock(&warden.uids).forget(&app)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_away_stays_in_its_folder() {
        let top = tempfile::tempdir().expect("a folder");
        for name in ["one", "two"] {
            let folder = top.path().join(name);
            fs::create_dir(&folder).expect("made");
            fs::write(folder.join("kept"), name).expect("written");
            put_away(top.path(), name).expect("put away");
            assert!(!folder.exists());
        }
        let lost = fs::read_dir(top.path().join(LOST))
            .expect("there")
            .flatten();
        let mut kept: Vec<String> = lost
            .map(|entry| fs::read_to_string(entry.path().join("kept")).expect("read"))
            .collect();
        kept.sort();
        assert_eq!(kept, ["one", "two"]);
        assert!(put_away(top.path(), "one").is_err());
    }
}
