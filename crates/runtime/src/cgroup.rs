//! Caps by control groups, v2 where it has the controllers, else v1 (then a v2 tree, if there is one,
//! tracks and kills). See the kernel's admin-guide/cgroup-v2 and cgroup-v1.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hutong_core::leak;
use hutong_ipc::warden::Limits;

/// What this host offers, found once at start.
#[derive(Clone, Debug, Default)]
pub struct Cgroups {
    /// Our folder in the v2 tree.
    unified: Option<PathBuf>,
    /// Whether the v2 tree has memory, cpu and pids.
    unified_limits: bool,
    /// Our folders in the v1 trees: (controller, folder).
    v1: Vec<(&'static str, PathBuf)>,
}

/// How a process gets into the cgroups of its launch by itself.
#[derive(Default)]
pub struct Places {
    /// The v2 cgroup's folder.
    pub folder: Option<fs::File>,
    /// `tasks` of each v1 cgroup.
    pub tasks: Vec<fs::File>,
}

const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// Shares of processor and disk: what is built gets a fifth of what an app gets, where both want more than there is.
/// Everything else has the weight that the kernel gives by itself: 100, of v1's `cpu.shares` 1024.
const BUILD_WEIGHT: &str = "20";
const BUILD_SHARES: &str = "204";
/// Only one is there: which one depends on the kernel and on who schedules the disks.
const IO_WEIGHTS: [&str; 2] = ["io.weight", "io.bfq.weight"];
const BLKIO_WEIGHTS: [&str; 2] = ["blkio.weight", "blkio.bfq.weight"];

/// From where on the kernel takes back what it can, before it has to kill: not so far below the cap that what cannot be taken
/// back crawls for long (v2 slows down whoever is above, by the square of how far) instead of being ended.
fn high(cap: u64) -> u64 {
    cap - (cap / 32).min(16 << 20)
}

impl Cgroups {
    /// Looks for trees that this process may write to and makes our folder `name` in each.
    pub fn find(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut found = Cgroups::default();
        for (kind, mount_point, options) in mounts.lines().filter_map(parse_mount) {
            let ours = Path::new(&mount_point).join(name);
            if kind == "cgroup2" {
                found.add_unified(Path::new(&mount_point), &ours);
            } else if kind == "cgroup" {
                let holds = |controller: &str| options.split(',').any(|one| one == controller);
                let known = found.v1.iter().any(|(c, _)| *c == "blkio");
                // Only its weight is wanted; many disks have no scheduler for it.
                if holds("blkio") && !known && make(&ours).is_ok() {
                    if BLKIO_WEIGHTS.iter().any(|file| ours.join(file).exists()) {
                        found.v1.push(("blkio", ours.clone()));
                    } else {
                        let _ = fs::remove_dir(&ours);
                    }
                }
                for controller in CONTROLLERS {
                    let known = found.v1.iter().any(|(c, _)| *c == controller);
                    if holds(controller) && !known && make(&ours).is_ok() {
                        found.v1.push((controller, ours.clone()));
                    }
                }
            }
        }
        found
    }

    fn add_unified(&mut self, root: &Path, ours: &Path) {
        let available = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let has_all = CONTROLLERS
            .iter()
            .all(|c| available.split_whitespace().any(|a| a == *c));
        let enable =
            |folder: &Path| fs::write(folder.join("cgroup.subtree_control"), "+memory +cpu +pids");
        if has_all && enable(root).is_err() {
            return;
        }
        if make(ours).is_err() {
            return;
        }
        self.unified_limits = has_all && enable(ours).is_ok();
        if self.unified_limits {
            // What is guaranteed to a child is so only as far as its parent's is.
            let _ = fs::write(ours.join("memory.low"), "max");
            // Weights of disks are no cap: it goes without.
            for folder in [root, ours] {
                let _ = fs::write(folder.join("cgroup.subtree_control"), "+io");
            }
        }
        self.unified = Some(ours.to_owned());
    }

    /// Whether `controller` caps here, and by which version.
    pub fn caps(&self, controller: &str) -> Option<&'static str> {
        if self.unified_limits {
            return Some("v2");
        }
        let v1 = self.v1.iter().any(|(c, _)| *c == controller);
        v1.then_some("v1")
    }

    pub fn all_caps(&self) -> bool {
        CONTROLLERS.iter().all(|c| self.caps(c).is_some())
    }

    fn folders(&self, instance: &str) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = self.v1.iter().map(|(_, f)| f.join(instance)).collect();
        folders.extend(self.unified.iter().map(|folder| folder.join(instance)));
        folders.dedup();
        folders
    }

    /// Makes the cgroups of one launch, caps set; what is needed to get into them comes back. The pids cap
    /// counts init too.
    pub fn prepare(&self, instance: &str, limits: &Limits, build: bool) -> io::Result<Places> {
        let high = high(limits.memory).to_string();
        let pids = (limits.pids + 1).to_string();
        let quota = u64::from(limits.cpu_millis) * 100;
        let mut places = Places::default();
        if let Some(unified) = &self.unified {
            let folder = unified.join(instance);
            make(&folder)?;
            if self.unified_limits {
                fs::write(folder.join("memory.max"), limits.memory.to_string())?;
                // Swap would only hide that the memory is used up.
                let _ = fs::write(folder.join("memory.swap.max"), "0");
                let _ = fs::write(folder.join("memory.high"), &high);
                let _ = fs::write(folder.join("memory.low"), limits.guaranteed.to_string());
                // All of it is ended, and starts afresh: not some of its programs.
                let _ = fs::write(folder.join("memory.oom.group"), "1");
                fs::write(folder.join("cpu.max"), format!("{quota} 100000"))?;
                fs::write(folder.join("pids.max"), pids)?;
                if build {
                    for file in IO_WEIGHTS.iter().chain(&["cpu.weight"]) {
                        let _ = fs::write(folder.join(file), BUILD_WEIGHT);
                    }
                }
                places.folder = Some(fs::File::open(&folder)?);
                return Ok(places);
            }
            places.folder = Some(fs::File::open(&folder)?);
        }
        for (controller, folder) in &self.v1 {
            // For the weight that it has anyway nobody enters a cgroup.
            if *controller == "blkio" && !build {
                continue;
            }
            let folder = folder.join(instance);
            make(&folder)?;
            let set = |file: &str, value: &str| fs::write(folder.join(file), value);
            match *controller {
                "memory" => {
                    set("memory.limit_in_bytes", &limits.memory.to_string())?;
                    let _ = set("memory.memsw.limit_in_bytes", &limits.memory.to_string());
                    // Counts where the whole machine is short of memory.
                    let _ = set("memory.soft_limit_in_bytes", &high);
                }
                "cpu" => {
                    set("cpu.cfs_period_us", "100000")?;
                    set("cpu.cfs_quota_us", &quota.to_string())?;
                    if build {
                        let _ = set("cpu.shares", BUILD_SHARES);
                    }
                }
                "blkio" => {
                    for file in BLKIO_WEIGHTS {
                        let _ = set(file, BUILD_WEIGHT);
                    }
                }
                _ => set("pids.max", &pids)?,
            }
            let tasks = fs::OpenOptions::new()
                .write(true)
                .open(folder.join("tasks"))?;
            places.tasks.push(tasks);
        }
        Ok(places)
    }

    /// SIGKILL to every process of the instance.
    pub fn kill(&self, instance: &str) {
        if let Some(unified) = &self.unified
            && fs::write(unified.join(instance).join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        for folder in self.folders(instance) {
            let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines().filter_map(|line| line.parse().ok()) {
                crate::sys::kill(pid, libc::SIGKILL);
            }
        }
    }

    /// Freezes every process of an instance, or thaws them (cgroup v2's `cgroup.freeze`, which needs no controller).
    pub fn freeze(&self, instance: &str, frozen: bool) -> Result<(), String> {
        let unified = self
            .unified
            .as_ref()
            .ok_or("this host has no cgroup v2 tree to freeze with")?;
        let folder = unified.join(instance);
        let word = if frozen { "1" } else { "0" };
        fs::write(folder.join("cgroup.freeze"), word).map_err(|error| error.to_string())?;
        // The kernel stops them one by one.
        for _ in 0..100 {
            let events = fs::read_to_string(folder.join("cgroup.events")).unwrap_or_default();
            if events.lines().any(|line| line == format!("frozen {word}")) {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Err("its processes do not freeze".into())
    }

    /// Whether its processes are frozen, and whether they are meant to be.
    pub fn is_frozen(&self, instance: &str) -> (bool, bool) {
        let Some(unified) = &self.unified else {
            return (false, false);
        };
        let read = |file: &str| fs::read_to_string(unified.join(instance).join(file));
        let meant = read("cgroup.freeze").is_ok_and(|text| text.trim() == "1");
        let is = meant
            && read("cgroup.events").is_ok_and(|text| text.lines().any(|line| line == "frozen 1"));
        (is, meant)
    }

    /// The processes of an instance.
    pub fn processes(&self, instance: &str) -> Vec<i32> {
        let folders = self.folders(instance);
        let lists = folders.iter().filter_map(|folder| {
            let text = fs::read_to_string(folder.join("cgroup.procs")).ok()?;
            Some(text.lines().filter_map(|line| line.parse().ok()).collect())
        });
        lists.max_by_key(Vec::len).unwrap_or_default()
    }

    /// Removes the cgroups of an instance; false while processes are still in one.
    pub fn remove(&self, instance: &str) -> bool {
        self.folders(instance)
            .iter()
            .all(|folder| match fs::remove_dir(folder) {
                Ok(()) => true,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            })
    }

    /// Removes our own folders; for a server that leaves nothing behind.
    pub fn remove_all(&self) {
        let folders = self.v1.iter().map(|(_, folder)| folder);
        for folder in folders.chain(&self.unified) {
            let _ = fs::remove_dir(folder);
        }
    }

    /// The names of the instances that have a cgroup.
    pub fn instances(&self) -> Vec<String> {
        let folders = self.v1.iter().map(|(_, folder)| folder);
        let mut names: Vec<String> = folders
            .chain(&self.unified)
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    pub fn usage(&self, instance: &str) -> Usage {
        let number = |folder: &Path, file: &str| -> u64 {
            let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        let keyed = |folder: &Path, file: &str, key: &str| -> u64 {
            let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
                .unwrap_or(0)
        };
        let reclaimable = |folder: &Path, memory: u64, cap: &str| -> u64 {
            // Only where it matters: the kernel sums it up anew for each who asks.
            if !leak::may_be_near(memory, number(folder, cap)) {
                return 0;
            }
            let stat = fs::read_to_string(folder.join("memory.stat"));
            leak::reclaimable(&stat.unwrap_or_default())
        };
        if self.unified_limits {
            let Some(unified) = &self.unified else {
                return Usage::default();
            };
            let folder = unified.join(instance);
            let memory = number(&folder, "memory.current");
            return Usage {
                memory,
                reclaimable: reclaimable(&folder, memory, "memory.max"),
                oom_kills: keyed(&folder, "memory.events", "oom_kill "),
                cpu_usec: keyed(&folder, "cpu.stat", "usage_usec "),
            };
        }
        let memory = self.v1.iter().find(|(c, _)| *c == "memory");
        let folder = memory.map(|(_, folder)| folder.join(instance));
        let cpu = self.unified.as_ref().map(|folder| folder.join(instance));
        let memory = folder
            .as_deref()
            .map_or(0, |f| number(f, "memory.usage_in_bytes"));
        Usage {
            memory,
            reclaimable: folder
                .as_deref()
                .map_or(0, |f| reclaimable(f, memory, "memory.limit_in_bytes")),
            oom_kills: folder
                .as_deref()
                .map_or(0, |f| keyed(f, "memory.oom_control", "oom_kill ")),
            cpu_usec: cpu
                .as_deref()
                .map_or(0, |f| keyed(f, "cpu.stat", "usage_usec ")),
        }
    }
}

#[derive(Default)]
pub struct Usage {
    pub memory: u64,
    /// Of that, what the kernel takes back before it kills; 0 where much is left of the cap.
    pub reclaimable: u64,
    pub oom_kills: u64,
    pub cpu_usec: u64,
}

fn make(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// (file system, mount point, super options) of a line of proc_pid_mountinfo(5).
fn parse_mount(line: &str) -> Option<(String, String, String)> {
    let (left, right) = line.split_once(" - ")?;
    let mount_point = left.split(' ').nth(4)?;
    let mut right = right.split(' ');
    let kind = right.next()?;
    let options = right.nth(1)?;
    Some((kind.into(), mount_point.into(), options.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_back_a_tenth_below_the_cap_at_most() {
        assert_eq!(high(128 << 20), 124 << 20);
        assert_eq!(high(1 << 30), (1 << 30) - (16 << 20));
        assert_eq!(high(0), 0);
    }

    /// Plain folders in place of control groups: what is written into them.
    fn written(v1: &[&'static str], build: bool) -> impl Fn(&str) -> Option<String> {
        let root = tempfile::tempdir().expect("a folder");
        let mut groups = Cgroups::default();
        for controller in v1 {
            let folder = root.path().join(controller);
            fs::create_dir_all(folder.join("one")).expect("a folder");
            fs::write(folder.join("one/tasks"), "").expect("a file");
            groups.v1.push((*controller, folder));
        }
        if v1.is_empty() {
            groups.unified = Some(root.path().to_owned());
            groups.unified_limits = true;
        }
        let limits = Limits {
            memory: 100 << 20,
            cpu_millis: 500,
            pids: 10,
            guaranteed: 25 << 20,
        };
        let places = groups.prepare("one", &limits, build).expect("prepared");
        let entered = v1.iter().filter(|name| build || **name != "blkio");
        assert_eq!(places.tasks.len(), entered.count());
        move |file: &str| fs::read_to_string(root.path().join(file)).ok()
    }

    #[test]
    fn caps_are_set_and_what_is_built_weighs_less() {
        let app = written(&[], false);
        let of = |file: &str| app(&format!("one/{file}")).unwrap_or_default();
        for (file, value) in [
            ("memory.max", "104857600"),
            ("memory.high", "101580800"),
            ("memory.low", "26214400"),
            ("memory.oom.group", "1"),
            ("cpu.max", "50000 100000"),
            ("pids.max", "11"),
            ("cpu.weight", ""),
            ("io.weight", ""),
        ] {
            assert_eq!(of(file), value, "{file}");
        }
        let build = written(&[], true);
        for file in ["one/cpu.weight", "one/io.weight"] {
            assert_eq!(build(file).as_deref(), Some("20"), "{file}");
        }
        let old = ["memory", "cpu", "pids", "blkio"];
        let app = written(&old, false);
        let soft = app("memory/one/memory.soft_limit_in_bytes");
        assert_eq!(soft.as_deref(), Some("101580800"));
        for file in ["cpu/one/cpu.shares", "blkio/one/blkio.weight"] {
            assert_eq!(app(file), None, "{file}");
        }
        let build = written(&old, true);
        assert_eq!(build("cpu/one/cpu.shares").as_deref(), Some("204"));
        assert_eq!(build("blkio/one/blkio.weight").as_deref(), Some("20"));
    }

    #[test]
    fn mountinfo_is_read() {
        let line =
            "33 27 0:29 / /sys/fs/cgroup/memory rw,relatime shared:1 - cgroup cgroup rw,memory";
        let (kind, point, options) = parse_mount(line).expect("a mount");
        assert_eq!(
            (kind.as_str(), point.as_str(), options.as_str()),
            ("cgroup", "/sys/fs/cgroup/memory", "rw,memory")
        );
    }
}
