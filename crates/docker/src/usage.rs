//! What a container uses, as the kernel charges it: read from its cgroups, which costs the engine nothing.

use std::path::{Path, PathBuf};

use hutong_core::leak;

/// The files of one container's cgroups.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
    is_v2: bool,
}

impl Usage {
    /// By the container's first process (cgroups(7), /proc/PID/cgroup).
    pub fn of(pid: i32) -> Self {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        Self::parse(&text, Path::new("/sys/fs/cgroup"))
    }

    fn parse(text: &str, root: &Path) -> Self {
        let mut found = Usage::default();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            let path = path.trim_start_matches('/');
            let has = |name: &str| controllers.split(',').any(|one| one == name);
            if has("memory") {
                found.memory = Some(root.join("memory").join(path));
            }
            if has("cpuacct") {
                found.cpu = Some(root.join("cpu,cpuacct").join(path));
            }
            if controllers.is_empty() && root.join("cgroup.controllers").exists() {
                let folder = root.join(path);
                (found.memory, found.cpu) = (Some(folder.clone()), Some(folder));
                found.is_v2 = true;
            }
        }
        found
    }

    /// Bytes.
    pub fn memory(&self) -> u64 {
        let file = if self.is_v2 {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        };
        number(self.memory.as_deref(), file)
    }

    /// Of `memory` bytes in use, what the kernel takes back before it kills; 0 where much is left of the cap.
    pub fn reclaimable(&self, memory: u64) -> u64 {
        let cap = if self.is_v2 {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        let folder = self.memory.as_deref();
        if !leak::may_be_near(memory, number(folder, cap)) {
            return 0;
        }
        let stat = folder.and_then(|f| std::fs::read_to_string(f.join("memory.stat")).ok());
        leak::reclaimable(&stat.unwrap_or_default())
    }

    /// Microseconds.
    pub fn cpu_usec(&self) -> u64 {
        if !self.is_v2 {
            let here = self.cpu.as_deref().filter(|folder| folder.exists());
            // Where each controller has a mount of its own.
            let alone = self.cpu.as_ref().and_then(|folder| {
                let rest = folder.strip_prefix("/sys/fs/cgroup/cpu,cpuacct").ok()?;
                Some(Path::new("/sys/fs/cgroup/cpuacct").join(rest))
            });
            return number(here.or(alone.as_deref()), "cpuacct.usage") / 1000;
        }
        let Some(folder) = &self.cpu else { return 0 };
        let text = std::fs::read_to_string(folder.join("cpu.stat")).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok())
            .unwrap_or(0)
    }
}

fn number(folder: Option<&Path>, file: &str) -> u64 {
    let text = folder.and_then(|folder| std::fs::read_to_string(folder.join(file)).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_of_both_versions_are_found() {
        let root = Path::new("/nowhere");
        let v1 = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/x\n";
        let found = Usage::parse(v1, root);
        assert_eq!(
            found.memory.as_deref(),
            Some(Path::new("/nowhere/memory/docker/abc"))
        );
        assert_eq!(
            found.cpu.as_deref(),
            Some(Path::new("/nowhere/cpu,cpuacct/docker/abc"))
        );
        assert_eq!((found.memory(), found.is_v2), (0, false));
        assert!(Usage::parse("", root).memory.is_none());
    }
}
