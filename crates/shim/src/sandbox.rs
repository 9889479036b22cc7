//! The root that an app sees: an allow-list of the host, or an image ([`image`]), built in a mount namespace of its own
//! and then pivoted into. Runs in the child that becomes pid 1, before it gives its privileges up.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};

use hutong_ipc::shim::{Launch, Mount};

use crate::{Context, image, sys};

pub const READ_ONLY: u64 = 1;
pub const NO_SETUID: u64 = 2;
pub const NO_DEVICES: u64 = 4;

/// Where the new root is put together; any folder that every Linux has. It is covered only in the
/// new mount namespace.
pub const STAGING: &str = "/tmp";

/// What /proc shows of the host and must not (as Docker masks it, and more), and what must not be written. There is no
/// /sys at all.
const MASKED: [&str; 11] = [
    "interrupts",
    "kcore",
    "keys",
    "key-users",
    "timer_list",
    "timer_stats",
    "latency_stats",
    "sched_debug",
    "kallsyms",
    "kmsg",
    "vmallocinfo",
];
const MASKED_FOLDERS: [&str; 4] = ["acpi", "asound", "scsi", "driver"];
const READ_ONLY_PROC: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Builds the root and makes it `/`. `mapping` shows an image's files with the app's ids.
pub fn enter(launch: &Launch, mapping: Option<&OwnedFd>) -> Result<(), String> {
    sys::mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE, "").during("cannot unshare mounts")?;
    // Opened before anything is covered, each without following a link.
    let mut sources = Vec::new();
    for mount in &launch.mounts {
        match sys::open_without_links(&mount.source) {
            Ok(fd) => sources.push((fd, mount)),
            Err(error) if mount.optional && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("cannot open {}: {error}", mount.source)),
        }
    }
    let devices: Vec<(OwnedFd, &str)> = ["null", "zero", "full", "random", "urandom", "tty"]
        .into_iter()
        .filter_map(|name| Some((sys::open_without_links(&format!("/dev/{name}")).ok()?, name)))
        .collect();
    let root = match &launch.root {
        Some(root) => image::build(launch, root, &sources, mapping)?,
        None => allow_list(launch, &sources)?,
    };
    drop(sources);
    make_devices(&root, &devices).during("cannot make /dev")?;
    mount_proc(&root)?;
    if launch.root.is_some() {
        // A file system of its own there.
        sys::restrict_mount(&at(&root, "dev"), READ_ONLY | NO_SETUID, false)
            .during("cannot seal /dev")?;
    }
    sys::chdir(&root).during("cannot enter the new root")?;
    sys::pivot_into_current_folder().during("cannot pivot into the new root")?;
    sys::restrict_mount("/", READ_ONLY | NO_SETUID, false).during("cannot seal the new root")?;
    sys::set_hostname(&launch.hostname).during("cannot set the host name")
}

/// The allow-list of the host, at [`STAGING`].
fn allow_list(launch: &Launch, sources: &[(OwnedFd, &Mount)]) -> Result<String, String> {
    tmpfs("", "size=2m,nr_inodes=4k,mode=755")?;
    for folder in ["proc", "dev", "etc", "tmp", "run", "var"] {
        fs::create_dir(at(STAGING, folder)).during("cannot make a folder of the new root")?;
    }
    for (fd, mount) in sources {
        attach(fd, mount).during(&format!("cannot mount {}", mount.target))?;
    }
    let below_run = |path: &str| path.starts_with("/run/");
    write_files(launch, |path| !below_run(path))?;
    system_links().during("cannot link the system's folders")?;
    tmpfs("tmp", &format!("size={},mode=1777", launch.tmp_bytes))?;
    tmpfs("run", "size=1m,mode=1777")?;
    // Behind the tmpfs, which would hide them.
    write_files(launch, below_run)?;
    symlink("/tmp", at(STAGING, "var/tmp")).during("cannot link /var/tmp")?;
    Ok(STAGING.to_owned())
}

fn write_files(launch: &Launch, which: impl Fn(&str) -> bool) -> Result<(), String> {
    for (path, content) in launch.files.iter().filter(|(path, _)| which(path)) {
        let path = at(STAGING, path.trim_start_matches('/'));
        if let Some((parent, _)) = path.rsplit_once('/') {
            fs::create_dir_all(parent).during("cannot make a folder of the new root")?;
        }
        fs::write(&path, content)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
            .during("cannot write a file of the new root")?;
    }
    Ok(())
}

/// Where the host's root is kept: its /proc shows the host's processes, those of this pid namespace are mounted over it.
pub fn own_proc() -> Result<(), String> {
    sys::mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE, "").during("cannot unshare mounts")?;
    sys::mount("proc", "/proc", "proc", libc::MS_NOSUID, "").during("cannot mount /proc")
}

fn at(root: &str, path: &str) -> String {
    format!("{root}/{path}")
}

fn tmpfs(path: &str, options: &str) -> Result<(), String> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    sys::mount("tmpfs", &at(STAGING, path), "tmpfs", flags, options)
        .during(&format!("cannot mount a tmpfs on /{path}"))
}

fn attach(fd: &OwnedFd, mount: &Mount) -> io::Result<()> {
    let target = at(STAGING, mount.target.trim_start_matches('/'));
    let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
    if fs::metadata(&source)?.is_dir() {
        fs::create_dir_all(&target)?;
    } else {
        if let Some((parent, _)) = target.rsplit_once('/') {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, "")?;
    }
    sys::mount(&source, &target, "", libc::MS_BIND | libc::MS_REC, "")?;
    let read_only = if mount.writable { 0 } else { READ_ONLY };
    sys::restrict_mount(&target, read_only | NO_SETUID | NO_DEVICES, true)
}

/// /bin, /lib and so on, as the host has them: links into /usr on every current distribution.
fn system_links() -> io::Result<()> {
    for name in ["bin", "sbin", "lib", "lib64", "lib32", "libx32"] {
        // The host's own link, read through our still unpivoted root.
        if let Ok(link) = fs::read_link(format!("/{name}")) {
            symlink(link, at(STAGING, name))?;
        }
    }
    Ok(())
}

fn make_devices(root: &str, devices: &[(OwnedFd, &str)]) -> io::Result<()> {
    for (fd, name) in devices {
        let target = at(root, &format!("dev/{name}"));
        fs::write(&target, "")?;
        let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
        sys::mount(&source, &target, "", libc::MS_BIND, "")?;
    }
    for (link, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(to, at(root, &format!("dev/{link}")))?;
    }
    fs::create_dir(at(root, "dev/shm"))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    sys::mount(
        "tmpfs",
        &at(root, "dev/shm"),
        "tmpfs",
        flags,
        "size=64m,mode=1777",
    )?;
    fs::create_dir(at(root, "dev/pts"))?;
    let options = "newinstance,ptmxmode=0666,mode=0620,max=64";
    // A terminal of its own is a convenience; some outer containers forbid it.
    let _ = sys::mount(
        "devpts",
        &at(root, "dev/pts"),
        "devpts",
        libc::MS_NOSUID | libc::MS_NOEXEC,
        options,
    );
    // The queues of mq_open(3) are there either way; Landlock can allow them only where they can be seen.
    fs::create_dir(at(root, "dev/mqueue"))?;
    let flags = flags | libc::MS_NOEXEC;
    let _ = sys::mount("mqueue", &at(root, "dev/mqueue"), "mqueue", flags, "");
    Ok(())
}

fn mount_proc(root: &str) -> Result<(), String> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    sys::mount("proc", &at(root, "proc"), "proc", flags, "")
        .during("cannot mount /proc (inside another container it may be masked)")?;
    for name in MASKED {
        let target = at(root, &format!("proc/{name}"));
        if sys::exists(&target) {
            sys::mount(&at(root, "dev/null"), &target, "", libc::MS_BIND, "")
                .during(&format!("cannot mask /proc/{name}"))?;
        }
    }
    for name in MASKED_FOLDERS {
        let target = at(root, &format!("proc/{name}"));
        if sys::exists(&target) {
            sys::mount(
                "tmpfs",
                &target,
                "tmpfs",
                flags | libc::MS_RDONLY,
                "size=4k",
            )
            .during(&format!("cannot mask /proc/{name}"))?;
        }
    }
    for name in READ_ONLY_PROC {
        let target = at(root, &format!("proc/{name}"));
        if sys::exists(&target) {
            sys::mount(&target, &target, "", libc::MS_BIND | libc::MS_REC, "")
                .and_then(|()| sys::restrict_mount(&target, READ_ONLY, false))
                .during(&format!("cannot protect /proc/{name}"))?;
        }
    }
    Ok(())
}
