//! Every unsafe call of the runtime, each behind a safe function.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What [`put_first`] gives.
const FIRST_NICE: i32 = -5;
const FIRST_TURN_NS: u64 = 500_000;

fn check(result: i64) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub fn effective_uid() -> u32 {
    // SAFETY: cannot fail.
    unsafe { libc::geteuid() }
}

pub fn effective_gid() -> u32 {
    // SAFETY: cannot fail.
    unsafe { libc::getegid() }
}

/// Marks every descriptor from 3 on close-on-exec: whoever started us may have left some open, and none
/// of them may reach what we start (close_range(2)).
pub fn leave_no_descriptor_to_children() {
    // SAFETY: no memory is involved.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 4 /* CLOEXEC */)
    };
    if done == 0 {
        return;
    }
    // Before Linux 5.11.
    for entry in std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
    {
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(number) = number.filter(|number: &i32| *number > 2) {
            // SAFETY: no memory is involved.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// SIGCHLD as it is by default: with it ignored, as some start us, the kernel reaps our children itself
/// and tells us nothing.
pub fn notice_children() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

pub fn kill(pid: i32, signal: i32) {
    // SAFETY: no memory is involved.
    unsafe { libc::kill(pid, signal) };
}

/// Lets a process go before others that want the same processor: its turns are short, so that Linux from 6.12 on lets it
/// interrupt whoever runs (sched_setattr(2)), and its weight is three times that of others, for kernels before. The threads
/// that it makes later are as it is. Whoever may not raise the weight gets the short turns.
pub fn put_first(pid: i32) -> io::Result<()> {
    let try_with = |nice: i32| {
        let attr = libc::sched_attr {
            size: size_of::<libc::sched_attr>() as u32,
            sched_policy: libc::SCHED_OTHER as u32,
            sched_flags: 0,
            sched_nice: nice,
            sched_priority: 0,
            sched_runtime: FIRST_TURN_NS,
            sched_deadline: 0,
            sched_period: 0,
        };
        // SAFETY: the structure is as long as it says, and only read.
        check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attr, 0) })
    };
    try_with(FIRST_NICE).or_else(|_| try_with(0)).map(drop)
}

/// Becomes an unprivileged user for good; call it before any thread is started.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: `groups` is as long as said; the rest involves no memory.
    unsafe {
        check(libc::setgroups(groups.len(), groups.as_ptr()).into())?;
        check(libc::setresgid(gid, gid, gid).into())?;
        check(libc::setresuid(uid, uid, uid).into())?;
    }
    // Leaving uid 0 cleared every capability (capabilities(7)); none may come back by execve.
    no_new_privileges()
}

pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into()).map(drop)
}

/// Two heaps instead of eight for each core: blocking threads come and go, and each would leave one behind.
pub fn keep_few_heaps() {
    // SAFETY: mallopt(3) before other threads exist.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

/// Gives freed memory back to the kernel.
pub fn release_memory() {
    // SAFETY: malloc_trim(3) has no preconditions.
    unsafe { libc::malloc_trim(0) };
}

/// Writing to a closed connection is an error, not the end.
pub fn ignore_broken_pipes() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// The version of Landlock that the kernel has; 0 where it has none (landlock_create_ruleset(2)).
pub fn landlock_abi() -> i32 {
    // SAFETY: without attributes the version is asked for, and no memory is involved.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            1, /* VERSION */
        )
    };
    abi.max(0) as i32
}

/// Rules that deny these rights to files, and `scopes` to what is outside (landlock_create_ruleset(2)).
pub fn landlock_rules(rights: u64, scopes: u64) -> io::Result<OwnedFd> {
    // Files, ports, scopes. An older kernel takes what it does not know of while that is zero.
    let attributes = [rights, 0, scopes];
    // SAFETY: the array has the layout of struct landlock_ruleset_attr; the descriptor is ours, and close-on-exec.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_landlock_create_ruleset,
            attributes.as_ptr(),
            size_of_val(&attributes),
            0,
        );
        Ok(OwnedFd::from_raw_fd(check(fd)? as i32))
    }
}

/// Allows rights to what is opened and to all that is below it (landlock_add_rule(2)).
pub fn landlock_allow(rules: &OwnedFd, opened: BorrowedFd<'_>, rights: u64) -> io::Result<()> {
    #[repr(C, packed)]
    struct Beneath {
        rights: u64,
        opened: i32,
    }
    let beneath = Beneath {
        rights,
        opened: opened.as_raw_fd(),
    };
    // SAFETY: `beneath` has the layout of struct landlock_path_beneath_attr.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            rules.as_raw_fd(),
            1, /* PATH_BENEATH */
            &beneath,
            0,
        )
    };
    check(result).map(drop)
}

/// Puts this thread and all that it starts behind the rules, for good; it must have no_new_privs
/// (landlock_restrict_self(2)).
pub fn landlock_enforce(rules: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
    check(result).map(drop)
}

/// A copy of a descriptor under a number of the caller's, which a program that is started inherits. The number must be
/// nobody's.
pub fn inherit_as(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: no memory is involved; whatever had the number would lose it, which the caller rules out.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into()).map(drop)
}

/// A copy of a descriptor that this process inherited under a number ([`inherit_as`]).
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved; the copy is ours alone.
    unsafe {
        let fd = check(libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3).into())?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// As many descriptors as the hard limit allows.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}

/// What a command starts gets SIGKILL when the thread ends that waits for it: also when all of us are killed.
pub fn ends_with_us(command: &mut std::process::Command) -> &mut std::process::Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec it makes one system call and touches no memory.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            Ok(())
        })
    }
}

/// SIGTERM when the parent ends: a demo's server must not outlive the demo.
pub fn end_with_parent() {
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM, 0, 0, 0) };
}

/// Takes descriptor 0 over (close-on-exec) and puts /dev/null in its place.
pub fn take_stdin() -> io::Result<OwnedFd> {
    // SAFETY: descriptor 0 is open, the duplicate is ours.
    unsafe {
        let fd = check(libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3).into())? as i32;
        let null = check(libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC).into())?;
        check(libc::dup2(null as i32, 0).into())?;
        libc::close(null as i32);
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Blocks the signals that a daemon waits for and gives a descriptor that tells of them.
pub fn signals(list: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use; the descriptor is ours.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in list {
            libc::sigaddset(&mut set, *signal);
        }
        check(libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()).into())?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// The next pending signal of a descriptor of [`signals`].
pub fn next_signal(fd: &OwnedFd) -> Option<i32> {
    let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut buffer) {
        Ok(count) if count == buffer.len() => {
            let number: [u8; 4] = buffer[..4].try_into().ok()?;
            Some(u32::from_ne_bytes(number) as i32)
        }
        _ => None,
    }
}

/// Unblocks every signal: a child inherits the mask of whoever spawned it.
pub fn unblock_signals() {
    // SAFETY: the set is initialised before use.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Reaps one child of ours if it ended: its wait status, or −1 if it is no child of ours (any more).
/// Never any child: those that `std::process` waits for are its own.
pub fn reap(pid: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: `status` is written to.
    let reaped = unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) };
    match reaped {
        0 => None,
        -1 => Some(-1),
        _ => Some(status),
    }
}

/// Waits for readiness to read; true where a descriptor has something.
pub fn poll(fds: &[i32], timeout_ms: i32) -> Vec<bool> {
    let mut polled: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd {
            fd: *fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    // SAFETY: pointer and length belong together.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as u64, timeout_ms) };
    polled.iter().map(|p| p.revents != 0).collect()
}

/// A sealed, executable, unnamed file with `content`.
pub fn executable_in_memory(name: &std::ffi::CStr, content: &[u8]) -> io::Result<OwnedFd> {
    use std::io::Write;
    // SAFETY: the name is NUL-terminated, the descriptor is ours.
    let fd = unsafe {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        OwnedFd::from_raw_fd(check(libc::memfd_create(name.as_ptr(), flags).into())? as i32)
    };
    let mut file = std::fs::File::from(fd);
    file.write_all(content)?;
    use rustix::fs::SealFlags;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(file.into())
}
