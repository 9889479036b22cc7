//! Memory of our own processes, read from the kernel while no command of ours runs: a `hutong` that
//! shares the program's pages would make everyone's share look smaller.

use std::fs::read_to_string;
use std::path::Path;

use anyhow::Context;
use hutong_testkit::server::{Server, children_of};

/// The sum of the proportional set sizes of warden, control and gateway, in MB.
pub fn platform(server: &Server) -> anyhow::Result<f64> {
    let pids = pids(server, |role| {
        matches!(role, "warden" | "control" | "gateway")
    });
    anyhow::ensure!(pids.len() == 3, "not one warden, control and gateway");
    let sizes: anyhow::Result<Vec<f64>> = pids.into_iter().map(pss).collect();
    Ok(sizes?.into_iter().sum::<f64>() / 1e6)
}

/// What an instance costs beside its program, in MB: the proportional set sizes of shim and init, and the
/// kernel memory charged to the instance's cgroup. That cgroup holds init and the program, so the
/// program's own kernel memory (stacks, page tables, sockets) is in it too; what the kernel charges for
/// the shim is the server's and is not (see the note with the growth of the whole machine). The mean.
pub fn of_an_instance(server: &Server) -> anyhow::Result<f64> {
    let shims = pids(server, |role| role == "shim");
    anyhow::ensure!(!shims.is_empty(), "nothing runs");
    let mut sum = 0.0;
    for shim in &shims {
        let inits = children_of(*shim);
        let [init] = inits[..] else {
            anyhow::bail!("shim {shim} has not one child but {}", inits.len());
        };
        sum += pss(*shim)? + pss(init)? + charged_to_kernel(init)?;
    }
    Ok(sum / shims.len() as f64 / 1e6)
}

fn pids(server: &Server, wanted: impl Fn(&str) -> bool) -> Vec<u32> {
    let system = server.json(&["system"]);
    let list = system.as_array().into_iter().flatten();
    list.filter(|process| process["role"].as_str().is_some_and(&wanted))
        .filter_map(|process| process["pid"].as_u64()?.try_into().ok())
        .collect()
}

/// In bytes.
fn pss(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = read_to_string(&path).context(path)?;
    kilobytes(&text, "Pss:").context("no Pss")
}

/// What a process has in memory now, shared pages and the program's own text included, in MB.
pub fn resident(pid: u32) -> anyhow::Result<f64> {
    status(pid, "VmRSS:")
}

/// The most of that since [`forget_peak`], by the kernel's own count: nothing falls between two looks.
pub fn peak(pid: u32) -> anyhow::Result<f64> {
    status(pid, "VmHWM:")
}

pub fn forget_peak(pid: u32) -> anyhow::Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    std::fs::write(&path, "5").context(path)
}

/// In MB.
fn status(pid: u32, key: &str) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = read_to_string(&path).context(path)?;
    let bytes = kilobytes(&text, key).with_context(|| format!("no {key}"))?;
    Ok(bytes / 1e6)
}

fn kilobytes(text: &str, key: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let number = line.trim().strip_suffix("kB")?.trim();
    Some(number.parse::<f64>().ok()? * 1024.0)
}

/// Kernel memory of the memory cgroup of a process, in bytes: `memory.kmem.usage_in_bytes` of version 1,
/// `kernel` in `memory.stat` of version 2.
fn charged_to_kernel(pid: u32) -> anyhow::Result<f64> {
    let cgroups = read_to_string(format!("/proc/{pid}/cgroup"))?;
    let mounts = read_to_string("/proc/mounts")?;
    let mounted = |kind: &str, option: &str| {
        mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let has = |options: &str| option.is_empty() || options.split(',').any(|o| o == option);
            (fields.len() > 3 && fields[2] == kind && has(fields[3])).then(|| fields[1].to_owned())
        })
    };
    let path_of = |controller: &str| {
        cgroups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let controllers = parts.next()?;
            let path = parts.next()?;
            let is = controllers.split(',').any(|c| c == controller);
            is.then(|| path.trim_start_matches('/').to_owned())
        })
    };
    if let (Some(mount), Some(path)) = (mounted("cgroup", "memory"), path_of("memory")) {
        let file = Path::new(&mount)
            .join(path)
            .join("memory.kmem.usage_in_bytes");
        let text = read_to_string(&file).context(file.display().to_string())?;
        return Ok(text.trim().parse()?);
    }
    let mount = mounted("cgroup2", "").context("no cgroups")?;
    let path = path_of("").context("no cgroup")?;
    let file = Path::new(&mount).join(path).join("memory.stat");
    let text = read_to_string(&file).context(file.display().to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix("kernel "));
    Ok(line.context("no kernel memory")?.trim().parse()?)
}

/// What the kernel holds for itself on the whole machine and cannot give back, in MB.
pub fn of_the_kernel() -> anyhow::Result<f64> {
    let text = read_to_string("/proc/meminfo")?;
    let keys = ["SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"];
    let sizes = keys.iter().filter_map(|key| kilobytes(&text, key));
    Ok(sizes.sum::<f64>() / 1e6)
}
