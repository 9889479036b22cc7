//! Every unsafe call of the shim, each behind a safe function. Single-threaded by construction.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn c(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "NUL in a string"))
}

/// Takes descriptor 0 over, close-on-exec, and puts /dev/null in its place.
pub fn take_stdin() -> OwnedFd {
    // SAFETY: descriptor 0 is the socket that the warden gave; nobody else owns it.
    unsafe {
        let socket = libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        libc::dup2(null, 0);
        if null > 0 {
            libc::close(null);
        }
        OwnedFd::from_raw_fd(socket.max(0))
    }
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

pub fn set_umask() {
    // SAFETY: no memory is involved.
    unsafe { libc::umask(0o022) };
}

pub fn new_session() {
    // SAFETY: no memory is involved.
    unsafe { libc::setsid() };
}

pub fn own_ids() -> (u32, u32) {
    // SAFETY: cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: no memory is involved; the process has one thread.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// fork(2). The process has one thread, so the child may do anything.
pub fn fork() -> io::Result<i32> {
    // SAFETY: single-threaded.
    check(unsafe { libc::fork() })
}

/// fork(2) with the child born in a v2 cgroup, given by its folder (clone3(2)). Before Linux 5.7, and where
/// the call is not allowed, it is moved there.
pub fn fork_into(cgroup: &OwnedFd) -> io::Result<i32> {
    let mut arguments: libc::clone_args = zeroed();
    // CLONE_INTO_CGROUP of <linux/sched.h>; libc's constant overflows.
    arguments.flags = 0x2_0000_0000;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: no memory is shared, and there is one thread: the same as fork.
    let child = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &mut arguments,
            std::mem::size_of::<libc::clone_args>(),
        )
    };
    if child >= 0 {
        return Ok(child as i32);
    }
    let child = fork()?;
    if child == 0 {
        let procs = rustix::fs::openat(
            cgroup,
            "cgroup.procs",
            rustix::fs::OFlags::WRONLY,
            rustix::fs::Mode::empty(),
        );
        // Without its caps it must not run.
        if !procs.is_ok_and(|procs| rustix::io::write(procs, b"0") == Ok(1)) {
            exit(1);
        }
    }
    Ok(child)
}

pub fn exit(code: i32) -> ! {
    // SAFETY: ends the process without running destructors, which belong to the parent.
    unsafe { libc::_exit(code) }
}

/// A pipe, both ends close-on-exec: (read, write). The read end does not block.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors, which are ours from then on.
    let (read, write) = unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    };
    set_nonblocking(&read)?;
    Ok((read, write))
}

pub fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain flags of an open descriptor.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(
            fd.as_raw_fd(),
            libc::F_SETFL,
            flags | libc::O_NONBLOCK,
        ))
        .map(drop)
    }
}

pub fn write_id_maps(pid: i32, base: u32) -> io::Result<()> {
    let range = hutong_ipc::shim::UID_RANGE;
    let map = format!("0 {base} {range}\n");
    std::fs::write(format!("/proc/{pid}/uid_map"), &map)?;
    std::fs::write(format!("/proc/{pid}/gid_map"), &map)
}

/// The map of an ordinary user: the app's id inside is the own id outside, and there is no other.
pub fn map_only_own_ids(uid: u32, gid: u32) -> io::Result<()> {
    let app = hutong_ipc::shim::APP_UID;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{app} {uid} 1\n"))?;
    std::fs::write("/proc/self/gid_map", format!("{app} {gid} 1\n"))
}

/// All ids become `id`; supplementary groups go.
pub fn set_ids(id: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(id, id, id))?;
        check(libc::setresuid(id, id, id)).map(drop)
    }
}

/// Makes `id` the owner of the user namespace that is made next, so that what the kernel counts by user
/// (inotify, pipes, keys …) is counted to the app and not to the host's root. What is still needed of
/// root's capabilities is kept.
pub fn own_next_namespace(id: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    unsafe {
        check(libc::setresgid(u32::MAX, id, u32::MAX))?;
        check(libc::setresuid(u32::MAX, id, u32::MAX))?;
    }
    set_capabilities(1 << CAP_SETGID | 1 << CAP_SETUID | 1 << CAP_SYS_ADMIN)
}

/// Becomes an unprivileged user for good.
pub fn become_plain_user(id: u32) -> io::Result<()> {
    set_ids(id)?;
    set_capabilities(0)?;
    no_new_privileges()
}

pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// Makes /proc/PID of this process root's and forbids tracing it.
pub fn not_dumpable() {
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// Takes every capability out of the bounding set.
pub fn drop_bounding_set() {
    for capability in 0..64 {
        // SAFETY: no memory is involved; EINVAL behind the kernel's last capability is expected.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            break;
        }
    }
}

pub const CAP_KILL: u32 = 5;
pub const CAP_SETGID: u32 = 6;
pub const CAP_SETUID: u32 = 7;
pub const CAP_SETPCAP: u32 = 8;
pub const CAP_SYS_ADMIN: u32 = 21;

/// Sets permitted and effective to `mask`, inheritable to nothing (capset(2), version 3).
pub fn set_capabilities(mask: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let (low, high) = (mask as u32, (mask >> 32) as u32);
    let data: [[u32; 3]; 2] = [[low, low, 0], [high, high, 0]];
    // SAFETY: header and data have the layout that capset(2) asks for.
    let result = unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) };
    check(result as i32).map(drop)
}

/// Loads a seccomp program; the process must have no_new_privs (seccomp(2)).
pub fn load_seccomp(program: &[u64]) -> io::Result<()> {
    let filters: Vec<libc::sock_filter> = program
        .iter()
        .map(|word| libc::sock_filter {
            code: *word as u16,
            jt: (*word >> 16) as u8,
            jf: (*word >> 24) as u8,
            k: (*word >> 32) as u32,
        })
        .collect();
    let program = libc::sock_fprog {
        len: filters.len() as u16,
        filter: filters.as_ptr().cast_mut(),
    };
    // SAFETY: `program` points at `filters`, which lives until the call is over.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) })
        .map(drop)
}

/// The version of Landlock that the kernel has; 0 where it has none, or must not use it
/// (landlock_create_ruleset(2)).
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

/// Rules that deny `rights` to files, and `scopes` to what is outside; both as far as the kernel knows them.
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
        Ok(OwnedFd::from_raw_fd(check(fd as i32)?))
    }
}

/// Allows `rights` to what is opened and to all that is below it (landlock_add_rule(2)).
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
    check(result as i32).map(drop)
}

/// Puts this process and all that it starts behind the rules, for good; it must have no_new_privs
/// (landlock_restrict_self(2)).
pub fn landlock_enforce(rules: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
    check(result as i32).map(drop)
}

/// A session keyring of its own, in place of the one of whoever started the server (keyctl(2)). Where there are no
/// keys, or an outer container forbids the call, nothing is left to do: seccomp keeps apps from it anyway.
pub fn leave_session_keyring() {
    // SAFETY: without a name no memory is involved.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            1, /* JOIN_SESSION_KEYRING */
            std::ptr::null::<u8>(),
        )
    };
}

pub fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    let (source, target, kind, options) = (c(source)?, c(target)?, c(kind)?, c(options)?);
    // SAFETY: all are NUL-terminated and live until the call is over.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    })
    .map(drop)
}

/// Adds attributes to a mount and, where asked, to those below it (mount_setattr(2)).
pub fn restrict_mount(target: &str, attributes: u64, recursive: bool) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    let attr = Attr {
        set: attributes,
        clear: 0,
        propagation: 0,
        userns: 0,
    };
    let target = c(target)?;
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` has the layout of struct mount_attr, version 0.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            flags,
            &attr,
            size_of::<Attr>(),
        )
    };
    check(result as i32).map(drop)
}

/// Makes the current folder the root and drops what was there.
pub fn pivot_into_current_folder() -> io::Result<()> {
    // SAFETY: constant NUL-terminated strings.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) as i32)?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
        check(libc::chdir(c"/".as_ptr())).map(drop)
    }
}

pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length belong together.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Opens a path of the host without following any symbolic link (openat2(2)).
pub fn open_without_links(path: &str) -> io::Result<OwnedFd> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
    Ok(rustix::fs::openat2(
        CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )?)
}

pub fn kill(pid: i32, signal: i32) {
    // SAFETY: no memory is involved.
    unsafe { libc::kill(pid, signal) };
}

/// A child that ended, if any: its pid and wait status.
pub fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is written to.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

pub fn exit_of(status: i32) -> hutong_ipc::shim::Exit {
    use hutong_ipc::shim::Exit;
    if libc::WIFEXITED(status) {
        Exit::Code(libc::WEXITSTATUS(status))
    } else {
        Exit::Signal(libc::WTERMSIG(status))
    }
}

/// Blocks SIGCHLD and gives a descriptor that becomes readable when a child ends.
pub fn child_signal() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use; the descriptor is ours.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        check(libc::sigprocmask(
            libc::SIG_BLOCK,
            &set,
            std::ptr::null_mut(),
        ))?;
        let fd = check(libc::signalfd(
            -1,
            &set,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

pub fn drain_signal(fd: &OwnedFd) {
    let mut buffer = [0u8; 128 * 8];
    // SAFETY: the buffer is as long as said; the descriptor does not block.
    while unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) } > 0 {}
}

/// Waits for readiness; `fds` are (descriptor, events) and the answer their returned events.
pub fn poll(fds: &[(RawFd, i16)], timeout_ms: i32) -> Vec<i16> {
    let mut polled: Vec<libc::pollfd> = fds
        .iter()
        .map(|(fd, events)| libc::pollfd {
            fd: *fd,
            events: *events,
            revents: 0,
        })
        .collect();
    // SAFETY: pointer and length belong together.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as u64, timeout_ms) };
    if ready < 0 {
        return vec![0; fds.len()];
    }
    polled.iter().map(|p| p.revents).collect()
}

pub const READABLE: i16 = libc::POLLIN;

/// In a fresh child: signals, limits, session and descriptors as a program expects them.
pub fn prepare_program(stdio: [BorrowedFd<'_>; 3], terminal: bool) -> io::Result<()> {
    // SAFETY: plain calls on descriptors that are open; single-threaded.
    unsafe {
        libc::setsid();
        for (index, fd) in stdio.iter().enumerate() {
            check(libc::dup2(fd.as_raw_fd(), index as i32))?;
        }
        leave_no_descriptor_to_children();
        if terminal {
            libc::ioctl(0, libc::TIOCSCTTY, 0);
        }
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        // Not 0: a program that core_pattern names, which is root on the host, would still be started (core(5)).
        let no_core = libc::rlimit {
            rlim_cur: 1,
            rlim_max: 1,
        };
        libc::setrlimit(libc::RLIMIT_CORE, &no_core);
        let mut files = std::mem::zeroed::<libc::rlimit>();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut files);
        files.rlim_max = files.rlim_max.min(1 << 19);
        files.rlim_cur = files.rlim_max.min(65536);
        libc::setrlimit(libc::RLIMIT_NOFILE, &files);
        libc::umask(0o022);
    }
    Ok(())
}

/// execve(2) with the program looked up in the `PATH` of `env`; comes back only with an error.
pub fn execute(argv: &[String], env: &[(String, String)]) -> io::Error {
    let strings = |list: Vec<String>| -> io::Result<Vec<CString>> {
        list.iter().map(|text| c(text)).collect()
    };
    let arguments = strings(argv.to_vec());
    let environment = strings(env.iter().map(|(k, v)| format!("{k}={v}")).collect());
    let (Ok(arguments), Ok(environment)) = (arguments, environment) else {
        return io::ErrorKind::InvalidInput.into();
    };
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter()
            .map(|text| text.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (argument_list, environment_list) = (pointers(&arguments), pointers(&environment));
    let mut error = io::Error::from_raw_os_error(libc::ENOENT);
    for candidate in candidates(&argv[0], env) {
        let Ok(path) = c(&candidate) else { continue };
        // SAFETY: both lists are NULL-terminated and outlive the call.
        unsafe {
            libc::execve(
                path.as_ptr(),
                argument_list.as_ptr(),
                environment_list.as_ptr(),
            );
        }
        let failure = io::Error::last_os_error();
        if failure.raw_os_error() != Some(libc::ENOENT) || argv[0].contains('/') {
            error = failure;
        }
    }
    error
}

/// Where `program` may lie, in the order of `PATH`.
pub fn candidates(program: &str, env: &[(String, String)]) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = env
        .iter()
        .find(|(key, _)| key == "PATH")
        .map_or("/usr/local/bin:/usr/bin:/bin", |(_, value)| value);
    path.split(':')
        .filter(|folder| !folder.is_empty())
        .map(|folder| format!("{folder}/{program}"))
        .collect()
}

pub fn chdir(path: &str) -> io::Result<()> {
    let path = c(path)?;
    // SAFETY: NUL-terminated.
    check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

pub fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is as long as said.
    let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    check(count as i32).map(|count| count as usize)
}

/// Dies with its parent; for a child that is not pid 1 of its namespace.
pub fn die_with_parent() {
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
}

/// Gives freed heap back to the kernel; a shim lives long and should stay small.
pub fn release_memory() {
    // SAFETY: glibc's malloc_trim has no preconditions.
    unsafe { libc::malloc_trim(0) };
}

/// An ioctl(2) of the network kind: `request` fills or reads `argument`.
pub fn net_ioctl<T>(socket: &OwnedFd, request: u64, argument: &mut T) -> io::Result<()> {
    // SAFETY: callers in `net` pair each request with the structure that netdevice(7) names.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request as _, argument as *mut T) }).map(drop)
}

pub fn zeroed<T: Copy>() -> T {
    // SAFETY: used for C structures of integers and byte arrays only, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// A socket of the current network namespace, close-on-exec.
pub fn socket(family: i32, kind: i32) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is ours.
    unsafe {
        let fd = check(libc::socket(family, kind | libc::SOCK_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

pub fn interface_request(name: &str) -> libc::ifreq {
    let mut request: libc::ifreq = zeroed();
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
        *slot = byte as libc::c_char;
    }
    request
}

pub fn request_flags(request: &mut libc::ifreq) -> &mut libc::c_short {
    // SAFETY: the union is used as SIOC[GS]IFFLAGS does.
    unsafe { &mut request.ifr_ifru.ifru_flags }
}

pub fn set_request_address(request: &mut libc::ifreq, address: [u8; 4]) {
    request.ifr_ifru.ifru_addr = socket_address(address);
}

pub fn socket_address(address: [u8; 4]) -> libc::sockaddr {
    let mut generic: libc::sockaddr = zeroed();
    generic.sa_family = libc::AF_INET as u16;
    for (slot, byte) in generic.sa_data[2..6].iter_mut().zip(address) {
        *slot = byte as libc::c_char;
    }
    generic
}

/// The name of an errno for messages, and its text.
pub fn describe(errno: i32) -> String {
    io::Error::from_raw_os_error(errno).to_string()
}

/// Whether a file exists in the current root.
pub fn exists(path: &str) -> bool {
    let Ok(path) = c(path) else { return false };
    let path: &CStr = &path;
    // SAFETY: NUL-terminated.
    unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 }
}
