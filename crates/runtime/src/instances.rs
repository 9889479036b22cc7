//! What runs: one small file per instance in /run, written before its shim is told what to launch, so
//! that a restarted warden finds everything. The kernel is asked whether it still lives.

use std::fs;
use std::path::PathBuf;

use hutong_core::name::is_instance_id;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::paths::{Layout, atomic_write};
use crate::processes;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub instance: String,
    pub app: String,
    pub deployment: u64,
    pub build: bool,
    /// The shim, and when it began (clock ticks since boot).
    pub pid: i32,
    pub start_time: u64,
    /// Milliseconds since 1970.
    pub started_at: u64,
    pub egress: Option<u16>,
    /// All that it may reach; none: every public address.
    #[serde(default)]
    pub egress_list: Option<Vec<String>>,
    /// Which server started it; see [`Instances::end_strangers`].
    pub server: u64,
    /// Its program was executed. Without it, the warden that launched it was killed on the way.
    #[serde(default)]
    pub launched: bool,
}

impl Record {
    /// Its shim is gone, and so its program was killed; it may not be over.
    pub fn is_ending(&self) -> bool {
        !processes::is_alive(self.pid, self.start_time)
    }
}

pub struct Instances {
    layout: Layout,
    cgroups: Cgroups,
    server: u64,
    /// One clean-up at a time: several threads notice the same end.
    cleaning: std::sync::Mutex<()>,
}

impl Instances {
    pub fn new(layout: Layout, cgroups: Cgroups, server: u64) -> Self {
        Instances {
            layout,
            cgroups,
            server,
            cleaning: std::sync::Mutex::new(()),
        }
    }

    pub fn server(&self) -> u64 {
        self.server
    }

    /// Ends launches that a killed warden left half-way: nobody goes on with them.
    pub fn end_unfinished(&self) {
        for record in self.all() {
            if !record.launched {
                self.kill(&record.instance);
                self.clean_up(&record.instance, Some(&record));
            }
        }
    }

    /// Ends what a server with another state left at this place: its data folder was deleted while its
    /// apps ran, and their numbers mean nothing here.
    pub fn end_strangers(&self) {
        for record in self.all() {
            if record.server != self.server {
                self.kill(&record.instance);
                self.clean_up(&record.instance, Some(&record));
            }
        }
    }

    fn path(&self, instance: &str) -> PathBuf {
        self.layout.instances().join(format!("{instance}.json"))
    }

    pub fn write(&self, record: &Record) -> Result<(), String> {
        let text = serde_json::to_vec(record).map_err(|error| error.to_string())?;
        atomic_write(&self.path(&record.instance), &text, 0o600)
            .map_err(|error| format!("cannot record the instance: {error}"))
    }

    pub fn read(&self, instance: &str) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.path(instance)).ok()?).ok()
    }

    /// Everything on record that lives, or of which something still does: its shim is dead, but the
    /// kernel has not let go of its processes ([`Record::is_ending`]). The rest is cleaned up on the way.
    pub fn live(&self) -> Vec<Record> {
        let mut live = self.all();
        live.retain(|record| !record.is_ending() || !self.clean_up(&record.instance, Some(record)));
        live.sort_by_key(|record| record.started_at);
        live
    }

    pub fn all(&self) -> Vec<Record> {
        let Ok(entries) = fs::read_dir(self.layout.instances()) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
            .filter(|instance| is_instance_id(instance))
            .filter_map(|instance| self.read(&instance))
            .collect()
    }

    /// Kills what is left of an instance and removes its traces; false while the kernel still holds some
    /// of its processes. Its file goes last, so that an interrupted clean-up is done again.
    ///
    /// `of` is the record that was found dead: if it is another one's by now, there is nothing to do.
    pub fn clean_up(&self, instance: &str, of: Option<&Record>) -> bool {
        let _one = self
            .cleaning
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(of) = of
            && self.read(instance).is_none_or(|now| now.pid != of.pid)
        {
            return true;
        }
        self.cgroups.kill(instance);
        let out_of_memory = self.cgroups.usage(instance).oom_kills > 0;
        // The kernel needs a moment to let go of killed processes.
        for _ in 0..10 {
            if self.cgroups.remove(instance) {
                hutong_ipc::fail::point("cleanup.cgroups-gone");
                if out_of_memory {
                    self.note_out_of_memory(instance);
                }
                // Not done before both are gone; what fails now is tried again.
                if !is_removed(&self.layout.instance_socket(instance)) {
                    return false;
                }
                hutong_ipc::fail::point("cleanup.socket-gone");
                if !is_removed(&self.path(instance)) {
                    return false;
                }
                hutong_ipc::fail::point("cleanup.done");
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        false
    }

    /// Said in the spool, behind the shim's last words, because the counter goes with the cgroup.
    fn note_out_of_memory(&self, instance: &str) {
        let spool = self.layout.spool();
        let open = |half: &str| {
            let path = spool.join(format!("{instance}.{half}"));
            crate::launch::open_spool(&path, false, None)
        };
        if let (Ok(a), Ok(b)) = (open("a"), open("b"))
            && let Ok(mut writer) = hutong_ipc::spool::Writer::new([a, b], 4096)
        {
            let time = processes::now_ms() * 1000;
            writer.write(hutong_ipc::spool::Kind::OutOfMemory, time, b"");
        }
    }

    /// SIGKILL to shim and app.
    pub fn kill(&self, instance: &str) {
        if let Some(record) = self.read(instance)
            && processes::is_alive(record.pid, record.start_time)
        {
            crate::sys::kill(record.pid, libc::SIGKILL);
        }
        self.cgroups.kill(instance);
    }

    /// Cgroups, sockets and half-written files without a record: their launch was interrupted.
    pub fn sweep(&self) {
        for entry in fs::read_dir(self.layout.instances())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            let stray = match name.strip_suffix(".sock") {
                Some(instance) => self.read(instance).is_none(),
                None => name.starts_with('.'),
            };
            if stray {
                let _ = fs::remove_file(entry.path());
            }
        }
        for instance in self.cgroups.instances() {
            if self.read(&instance).is_none() {
                self.clean_up(&instance, None);
            }
        }
    }
}

/// Removes a file; true if it is not there any more.
fn is_removed(path: &std::path::Path) -> bool {
    match fs::remove_file(path) {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => {
            tracing::warn!("{}: {error}", path.display());
            false
        }
    }
}
