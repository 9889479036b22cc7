//! A program of others that control needs (git) and that reads what strangers sent: it runs as control's user, because
//! there is no other that control could become, but behind Landlock, where it sees the system's programs and one folder
//! of ours, with limits, without what control has open, and without a way to more privileges.
//!
//! It is entered by a process of ours that then becomes the program ([`enter`]): limits and rules are inherited.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{seccomp, sys};

/// Under this number a program behind the walls finds our own program, to run it as a hook.
pub const OURS: i32 = 19;
/// And under this one the folder's lock, which is held as long as anything in there runs.
pub const HELD: i32 = 20;
/// And under this one, if it is to have one, a line to control: it cannot make one itself.
pub const LINE: i32 = 21;

// Rights of landlock(7).
const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const TRUNCATE: u64 = 1 << 14;
const USE: u64 = EXECUTE | READ_FILE | READ_DIR;
/// Everything but device nodes (6 and 11) and ioctl (15); and nothing that it writes is a program.
const CHANGE: u64 = 0x7fff & !(1 << 6) & !(1 << 11) & !EXECUTE;
const DEVICE: u64 = READ_FILE | WRITE_FILE;
/// What a rule for anything but a folder may name.
const FILE: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE;

/// Where programs, their libraries and their settings are, and how names are looked up.
const SYSTEM: [&str; 8] = [
    "/usr",
    "/bin",
    "/lib",
    "/lib64",
    "/etc",
    "/run/systemd/resolve",
    "/run/nscd",
    "/run/resolvconf",
];

/// What a program may use.
pub struct Bounds {
    /// Address space of each process, in bytes.
    pub memory: u64,
    /// One file that it writes, in bytes.
    pub file: u64,
    /// Seconds of processor time of each process.
    pub cpu_s: u64,
    /// The one folder that it may change.
    pub folder: PathBuf,
    /// More that it may read.
    pub reads: Vec<PathBuf>,
}

/// Puts this process behind the walls. Where the kernel has no Landlock, the rest of it holds all the same.
pub fn enter(bounds: &Bounds) -> io::Result<()> {
    // The program itself: where it lies, control's user may not get.
    let ours = File::open("/proc/self/exe")?;
    sys::inherit_as(ours.as_fd(), OURS)?;
    for (resource, most) in [
        (Resource::As, bounds.memory),
        (Resource::Fsize, bounds.file),
        (Resource::Cpu, bounds.cpu_s),
        (Resource::Nofile, 256),
        (Resource::Core, 0),
    ] {
        // Whoever started the server may have set less.
        let have = getrlimit(resource).maximum;
        let most = have.map_or(most, |have| have.min(most));
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit)?;
    }
    sys::no_new_privileges()?;
    // Landlock's rules of files hold nobody from connecting to a socket; and those of ours know control by its user.
    seccomp::deny_unix_sockets().map_err(io::Error::other)?;
    let abi = sys::landlock_abi();
    // The first version lets nobody move a file to another folder, which git does with all that it takes in.
    if abi < 2 {
        return Ok(());
    }
    let handled = handled(abi);
    let rules = sys::landlock_rules(handled, scopes(abi))?;
    let allow = |path: &Path, rights: u64| match File::open(path) {
        Ok(opened) => {
            let is_dir = opened.metadata()?.is_dir();
            let rights = if is_dir { rights } else { rights & FILE };
            sys::landlock_allow(&rules, opened.as_fd(), rights & handled)
        }
        // What is not there needs no rule, and what we may not read would be of no use.
        Err(_) => Ok(()),
    };
    for path in SYSTEM {
        allow(Path::new(path), USE)?;
    }
    for path in &bounds.reads {
        allow(path, USE)?;
    }
    for path in ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"] {
        allow(Path::new(path), DEVICE)?;
    }
    allow(&bounds.folder, CHANGE)?;
    sys::landlock_allow(&rules, ours.as_fd(), (EXECUTE | READ_FILE) & handled)?;
    sys::landlock_enforce(&rules)
}

/// All that this version knows how to deny to files, but for ioctl, which nobody here is kept from.
fn handled(abi: i32) -> u64 {
    let known = if abi < 3 { 14 } else { 15 };
    (1u64 << known) - 1
}

/// Abstract sockets (0) and signals (1), which only go to processes behind the same walls.
fn scopes(abi: i32) -> u64 {
    if abi < 6 { 0 } else { 0b11 }
}

/// Takes the folder's lock for this process and all that it starts: shared, because several may work in there.
pub fn hold(lock: &Path) -> io::Result<()> {
    let file = File::options().read(true).open(lock)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockShared)?;
    // The copy is of the same open file, so the lock is its, too.
    sys::inherit_as(file.as_fd(), HELD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_what_the_kernel_knows() {
        assert_eq!(handled(2), (1 << 14) - 1);
        assert_eq!(handled(3) & CHANGE, CHANGE);
        assert_eq!(handled(7), handled(3));
        assert_eq!(CHANGE & (1 << 6 | 1 << 11), 0);
        assert_eq!((CHANGE & EXECUTE, scopes(5), scopes(6)), (0, 0, 3));
    }
}
