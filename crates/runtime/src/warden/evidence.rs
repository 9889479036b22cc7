//! Quarantine: the processes of an instance are frozen, its way out is taken down, and what they are and hold is written
//! down for a person to look at. Nothing is read that an app could make us follow: links are read, not opened.

use std::fs;
use std::path::Path;

use hutong_ipc::warden::{Evidence, Suspect};

use super::{Warden, lock};
use crate::processes;

/// Processes, and files of each, that are listed; and bytes of one of the tables of the network.
const MAX_PROCESSES: usize = 1000;
const MAX_FILES: usize = 500;
const MAX_TABLE: usize = 128 << 10;
/// Characters of a command line or a file's name.
const MAX_TEXT: usize = 1000;
/// All of it, so that it fits into one answer.
const MAX_TOTAL: usize = 2 << 20;

/// What is listened on and connected to, as the instance's own network namespace has it (proc_pid_net(5)).
const TABLES: [&str; 6] = ["tcp", "tcp6", "udp", "udp6", "unix", "netlink"];

impl Warden {
    /// Freezes every process of an instance and takes its way out down; or the opposite.
    pub(super) fn freeze(&self, instance: &str, frozen: bool) -> Result<(), String> {
        let record = self
            .instances
            .read(instance)
            .ok_or("there is no such instance")?;
        // What is in its queues would go out all the same.
        let network = lock(&self.network).clone();
        let link = match network.zip(record.egress) {
            Some((network, index)) => network.set_link(index, !frozen),
            None => Ok(()),
        };
        if !frozen {
            // In this order, so that a failure is seen as what it is, and tried again.
            link?;
            return self.cgroups.freeze(instance, false);
        }
        // Each whatever became of the other: what is cut off and not frozen is better than neither.
        self.cgroups.freeze(instance, true).and(link)
    }

    /// The processes of an app's instances, and what they hold.
    pub(super) fn examine(&self, app: &str) -> Vec<Evidence> {
        let mut left = MAX_TOTAL;
        let live = self.instances.live();
        let mine = live.iter().filter(|record| record.app == app);
        mine.map(|record| {
            let pids = self.cgroups.processes(&record.instance);
            examine(&record.instance, &pids, &mut left)
        })
        .collect()
    }
}

/// `left`: bytes that may still be collected.
pub(super) fn examine(instance: &str, pids: &[i32], left: &mut usize) -> Evidence {
    let mut evidence = Evidence {
        instance: instance.to_owned(),
        processes: Vec::new(),
        tables: Vec::new(),
        complete: pids.len() <= MAX_PROCESSES,
    };
    // As it goes over the line: a name of control characters is six times as long there.
    let size = |value: &dyn Fn() -> usize, left: &mut usize| {
        let size = value() + 16;
        let fits = size <= *left;
        *left -= if fits { size } else { 0 };
        fits
    };
    let length = |text: &str| serde_json::to_string(text).map_or(usize::MAX / 2, |text| text.len());
    if let Some(pid) = pids.first() {
        for name in TABLES {
            let path = format!("/proc/{pid}/net/{name}");
            let text = read_bounded(Path::new(&path));
            evidence.complete &= text.len() < MAX_TABLE;
            if size(&|| length(&text), left) {
                evidence.tables.push((name.to_owned(), text));
            } else {
                evidence.complete = false;
            }
        }
    }
    for pid in pids.iter().take(MAX_PROCESSES) {
        let Some(suspect) = look_at(*pid) else {
            continue;
        };
        let whole = || serde_json::to_vec(&suspect).map_or(usize::MAX / 2, |text| text.len());
        if !size(&whole, left) {
            evidence.complete = false;
            break;
        }
        evidence.complete &= suspect.files.len() < MAX_FILES;
        evidence.processes.push(suspect);
    }
    evidence
}

fn look_at(pid: i32) -> Option<Suspect> {
    let folder = format!("/proc/{pid}");
    let status = fs::read_to_string(format!("{folder}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    let number = |name: &str| field(name).split_whitespace().next()?.parse::<i64>().ok();
    let command = fs::read(format!("{folder}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let link = |path: &str| {
        let target = fs::read_link(path).map(|target| target.to_string_lossy().into_owned());
        cut(&target.unwrap_or_default())
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("{folder}/fd"))
        .into_iter()
        .flatten()
        .flatten()
    {
        if files.len() >= MAX_FILES {
            break;
        }
        let number = entry.file_name().to_string_lossy().into_owned();
        files.push(format!(
            "{number} {}",
            link(&entry.path().to_string_lossy())
        ));
    }
    Some(Suspect {
        pid,
        // As its own pid namespace counts: the last one of the line.
        inner_pid: field("NSpid:").split_whitespace().last()?.parse().ok()?,
        parent: number("PPid:").unwrap_or(0) as i32,
        uid: number("Uid:").unwrap_or(0) as u32,
        name: cut(&field("Name:")),
        state: field("State:"),
        command: cut(command.trim()),
        program: link(&format!("{folder}/exe")),
        folder: link(&format!("{folder}/cwd")),
        threads: number("Threads:").unwrap_or(0) as u32,
        memory_kb: number("VmRSS:").unwrap_or(0) as u64,
        started_steady: processes::start_time(pid).map_or(0, processes::ticks_to_ms),
        files,
    })
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

fn read_bounded(path: &Path) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(MAX_TABLE as u64).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
