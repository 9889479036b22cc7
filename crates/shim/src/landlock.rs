//! The second wall: Landlock (landlock(7)) behind the root, so that what a hole in another wall shows (a descriptor that
//! leaked, a folder that was mounted, the host's root itself) still cannot be opened. It allows what the root shows, with
//! the same rights, and nothing else. From ABI 6 on it also keeps signals and abstract sockets inside. Ports are left
//! alone: apps listen where they like.
//!
//! Init itself enters the domain, once, before it forks, and there is no other. So the app and every program of `exec`
//! are in the same domain, and may signal and look at each other as before; with a domain for each, the scope of
//! signals would keep them apart. Init may signal all of them for the same reason. What init still does, it does within
//! these rules: it opens /dev/null, changes folder, forks and talks over a socketpair that is open already. The shim and
//! the warden are in no domain and so may signal and look at anything inside; the kernel's own signals (of a terminal,
//! of the end of a pid namespace) are not asked about.
//!
//! Nobody in a domain may mount: the root must be finished first. Rules name what is opened, not paths, so they are
//! made while init may still open everything.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use hutong_ipc::shim::{LANDLOCK_LEAST, Launch, Wall};

use crate::{Context, sys};

const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
// 6 and 11 make device nodes: nobody gets these, but for whiteouts where layers are unpacked, which are devices that
// stand for nothing; real ones need what no app has.
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const MAKE_SOCK: u64 = 1 << 9;
const MAKE_FIFO: u64 = 1 << 10;
const MAKE_SYM: u64 = 1 << 12;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;

const READ: u64 = READ_FILE | READ_DIR;
const USE: u64 = READ | EXECUTE;
const CHANGE: u64 = USE
    | WRITE_FILE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SOCK
    | MAKE_FIFO
    | MAKE_SYM
    | REFER
    | TRUNCATE;
const DEVICE: u64 = READ_FILE | WRITE_FILE | IOCTL_DEV;
const PROCESSES: u64 = READ | WRITE_FILE | TRUNCATE;
/// What a rule for anything but a folder may name.
const FILE: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;

/// Abstract sockets and signals.
const SCOPES: u64 = 0b11;

const ALWAYS: [(&str, u64); 7] = [
    ("/proc", PROCESSES),
    ("/dev/null", DEVICE),
    ("/dev/zero", DEVICE),
    ("/dev/full", DEVICE),
    ("/dev/random", DEVICE),
    ("/dev/urandom", DEVICE),
    ("/dev/tty", DEVICE),
];
/// Of the root that we make; the host's folders of these names are another matter.
const OF_OUR_ROOT: [(&str, u64); 7] = [
    ("/", READ_DIR),
    ("/etc", READ),
    ("/dev/pts", DEVICE),
    ("/dev/shm", CHANGE),
    // The kernel has mq_open(3) open files there.
    ("/dev/mqueue", CHANGE),
    ("/tmp", CHANGE),
    ("/run", CHANGE),
];

/// The rules for what `launch` shows; `None` where the kernel has no Landlock that we can use.
pub fn rules(launch: &Launch) -> Result<Option<OwnedFd>, String> {
    let abi = sys::landlock_abi();
    if launch.without.contains(&Wall::Landlock) || abi < LANDLOCK_LEAST {
        return Ok(None);
    }
    let handled = handled(abi);
    let scopes = if abi >= 6 { SCOPES } else { 0 };
    let rules = sys::landlock_rules(handled, scopes).during("cannot make rules of Landlock")?;
    for (path, rights) in allowed(launch) {
        // We are in the image already: its links lead to places in it.
        let opened = match &launch.root {
            Some(_) => sys::open_in_new_root(path),
            None => sys::open_without_links(path),
        };
        let opened = match opened {
            Ok(opened) => File::from(opened),
            // What is not there needs no rule; what has none is denied.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("cannot open {path} for Landlock: {error}")),
        };
        let kind = opened
            .metadata()
            .during(&format!("cannot look at {path}"))?;
        let rights = if kind.is_dir() { rights } else { rights & FILE };
        sys::landlock_allow(&rules, opened.as_fd(), rights & handled)
            .during(&format!("cannot allow {path} by Landlock"))?;
    }
    Ok(Some(rules))
}

/// All that this version knows how to deny.
fn handled(abi: i32) -> u64 {
    let known = match abi {
        ..=2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    (1u64 << known) - 1
}

fn allowed(launch: &Launch) -> Vec<(&str, u64)> {
    let our_root = !launch.without.contains(&Wall::Root);
    let mounts = launch.mounts.iter().map(|mount| {
        let path = if our_root {
            &mount.target
        } else {
            &mount.source
        };
        let whiteouts = if mount.whiteouts { MAKE_CHAR } else { 0 };
        let rights = if mount.writable { CHANGE } else { USE };
        (path.as_str(), rights | whiteouts)
    });
    let mut rules: Vec<(&str, u64)> = mounts.collect();
    rules.extend(ALWAYS);
    if our_root {
        rules.extend(OF_OUR_ROOT);
    }
    if launch.root.is_some() {
        rules.push(("/", USE));
        let writable = launch.writable.iter();
        rules.extend(writable.map(|path| (path.as_str(), CHANGE)));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_kernels_are_asked_for_what_they_know() {
        assert_eq!(handled(2), REFER | (REFER - 1));
        assert_eq!(handled(4), TRUNCATE | (TRUNCATE - 1));
        assert_eq!(handled(7), IOCTL_DEV | (IOCTL_DEV - 1));
        assert_eq!(handled(99), handled(7));
    }

    #[test]
    fn nobody_may_make_devices_and_each_rule_says_something_to_every_kernel() {
        let devices: u64 = 1 << 6 | 1 << 11;
        for (path, rights) in ALWAYS.into_iter().chain(OF_OUR_ROOT) {
            assert_eq!(rights & devices, 0, "{path}");
            assert_ne!(rights & handled(LANDLOCK_LEAST), 0, "{path}");
        }
        assert_eq!((USE | CHANGE) & devices, 0);
    }
}
