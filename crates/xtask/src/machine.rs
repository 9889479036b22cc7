//! Where and on what a benchmark ran: the lines before every table.

use std::fs::read_to_string;
use std::process::Command;

use crate::BINARY;

pub fn describe() -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut lines = vec![
        format!(
            "machine: {}, {cores} cores, {}, Linux {}, cgroup {}; load average before: {}",
            field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into()),
            memory(),
            read("/proc/sys/kernel/osrelease"),
            cgroup_version(&read("/proc/mounts")),
            read("/proc/loadavg").split(' ').next().unwrap_or_default()
        ),
        commit(),
        format!("command: `{}`", command()),
    ];
    if let Some(path) = std::env::var_os(BINARY) {
        lines.push(format!(
            "binary: {} (not built from this commit by this command)",
            path.to_string_lossy()
        ));
    }
    lines
}

fn read(path: &str) -> String {
    read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The value of the first `key : value` line.
fn field(path: &str, key: &str) -> Option<String> {
    let text = read(path);
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory() -> String {
    let total = field("/proc/meminfo", "MemTotal");
    let kilobytes = total.and_then(|text| text.strip_suffix(" kB")?.parse::<f64>().ok());
    format!("{:.0} GiB", kilobytes.unwrap_or(0.0) / f64::from(1 << 20))
}

/// Which one caps memory here, by the lines of /proc/mounts.
fn cgroup_version(mounts: &str) -> &'static str {
    let has = |kind: &str, option: &str| {
        mounts.lines().any(|line| {
            let mut fields = line.split(' ').skip(2);
            fields.next() == Some(kind)
                && fields.next().is_some_and(|options| {
                    option.is_empty() || options.split(',').any(|o| o == option)
                })
        })
    };
    match (has("cgroup", "memory"), has("cgroup2", "")) {
        (true, true) => "v1 (hybrid)",
        (true, false) => "v1",
        (false, true) => "v2",
        (false, false) => "none",
    }
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(["-C", env!("CARGO_MANIFEST_DIR")])
            .args(arguments)
            .output();
        let text = output.ok().filter(|output| output.status.success())?.stdout;
        Some(String::from_utf8_lossy(&text).trim().to_owned())
    };
    let Some(head) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "commit: unknown".into();
    };
    let clean = git(&["status", "--porcelain"]).is_some_and(|changes| changes.is_empty());
    let changes = if clean {
        ""
    } else {
        " with uncommitted changes"
    };
    format!("commit: {head}{changes}")
}

fn command() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo xtask {}", arguments.join(" "))
}
