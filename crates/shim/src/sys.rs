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

/// All ids become these; supplementary groups go.
pub fn set_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid)).map(drop)
    }
}

/// A user namespace that nobody is in, in which the host's ids from `base` on stand for those from `owner` on: mounts
/// that are made with it show files of the one range as the other's (mount_setattr(2), "ID-mapped mounts").
pub fn id_mapping(owner: u32, base: u32) -> io::Result<OwnedFd> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let child = fork()?;
    if child == 0 {
        drop(ours);
        hold_namespace(theirs);
    }
    drop(theirs);
    let made = map_namespace(&ours, child, owner, base);
    // It ends when nobody holds the other end.
    drop(ours);
    // SAFETY: the child is ours, and no memory is involved.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    made
}

/// The child's side: a namespace for as long as somebody is at the other end.
fn hold_namespace(mut line: std::os::unix::net::UnixStream) -> ! {
    use std::io::{Read, Write};
    if unshare(libc::CLONE_NEWUSER).is_ok() && line.write_all(b"m").is_ok() {
        let _ = line.read(&mut [0]);
    }
    exit(0)
}

fn map_namespace(
    mut line: &std::os::unix::net::UnixStream,
    child: i32,
    owner: u32,
    base: u32,
) -> io::Result<OwnedFd> {
    use std::io::Read;
    line.read_exact(&mut [0])?;
    let map = format!("{owner} {base} {}\n", hutong_ipc::shim::UID_RANGE);
    std::fs::write(format!("/proc/{child}/uid_map"), &map)?;
    std::fs::write(format!("/proc/{child}/gid_map"), &map)?;
    Ok(std::fs::File::open(format!("/proc/{child}/ns/user"))?.into())
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
    set_ids(id, id)?;
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

/// Takes every capability but those of `keep` out of the bounding set.
pub fn drop_bounding_set(keep: u64) {
    for capability in (0..64).filter(|capability| keep & 1 << capability == 0) {
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

/// struct mount_attr, version 0.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

fn set_mount_attr(at: RawFd, path: &CStr, flags: libc::c_int, attr: &MountAttr) -> io::Result<()> {
    // SAFETY: the path is NUL-terminated, and `attr` has the layout that its size stands for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at,
            path.as_ptr(),
            flags,
            attr as *const MountAttr,
            size_of::<MountAttr>(),
        )
    };
    check(result as i32).map(drop)
}

/// Adds attributes to a mount and, where asked, to those below it (mount_setattr(2)).
pub fn restrict_mount(target: &str, attributes: u64, recursive: bool) -> io::Result<()> {
    let attr = MountAttr {
        set: attributes,
        clear: 0,
        propagation: 0,
        userns: 0,
    };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    set_mount_attr(libc::AT_FDCWD, &c(target)?, flags, &attr)
}

/// A mount of its own of what is opened, attached nowhere (open_tree(2)).
pub fn detached_mount(opened: &OwnedFd, recursive: bool) -> io::Result<OwnedFd> {
    const CLONE: libc::c_uint = 1;
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = CLONE | (libc::O_CLOEXEC | libc::AT_EMPTY_PATH | recursive) as libc::c_uint;
    // SAFETY: the path is empty and NUL-terminated; the descriptor is ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, opened.as_raw_fd(), c"".as_ptr(), flags);
        Ok(OwnedFd::from_raw_fd(check(fd as i32)?))
    }
}

/// Adds attributes to a mount of [`detached_mount`], and shows its files as a mapping of ids says.
pub fn restrict_detached(
    mount: &OwnedFd,
    attributes: u64,
    recursive: bool,
    mapping: Option<&OwnedFd>,
) -> io::Result<()> {
    const IDMAP: u64 = 0x0010_0000;
    let attr = MountAttr {
        set: attributes | mapping.map_or(0, |_| IDMAP),
        clear: 0,
        propagation: 0,
        userns: mapping.map_or(0, |mapping| mapping.as_raw_fd() as u64),
    };
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::AT_EMPTY_PATH | recursive;
    set_mount_attr(mount.as_raw_fd(), c"", flags, &attr)
}

/// Attaches a mount of [`detached_mount`] at what is opened (move_mount(2)).
pub fn attach_mount(mount: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    const FROM_EMPTY_PATH: libc::c_uint = 0x04;
    const TO_EMPTY_PATH: libc::c_uint = 0x40;
    // SAFETY: both paths are empty and NUL-terminated.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            FROM_EMPTY_PATH | TO_EMPTY_PATH,
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

/// Opens a path below `root`, which no link and no `..` leads out of (openat2(2), `RESOLVE_IN_ROOT`). `flags`:
/// `O_DIRECTORY`, or 0.
pub fn open_inside(root: &OwnedFd, path: &str, flags: i32) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    let path = match path {
        "" => "/",
        path => path,
    };
    let flags = OFlags::from_bits_retain(flags as u32) | OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(
        root,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?)
}

/// Opens a path of the current root, which may lead through links, but not through those of /proc.
pub fn open_in_new_root(path: &str) -> io::Result<OwnedFd> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
    Ok(rustix::fs::openat2(
        CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )?)
}

/// Whether a name in a folder is a folder itself, and no link to one.
pub fn is_folder(folder: &OwnedFd, name: &str) -> io::Result<bool> {
    use rustix::fs::{AtFlags, FileType};
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes a file or a link; a missing one is fine.
pub fn unlink_at(folder: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(folder, name, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes a folder, 0755, of `owner`.
pub fn make_folder_at(folder: &OwnedFd, name: &str, owner: Option<u32>) -> io::Result<()> {
    use rustix::fs::{AtFlags, Gid, Mode, Uid};
    rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o755))?;
    if let Some(id) = owner {
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(folder, name, Some(uid), Some(gid), flags)?;
    }
    Ok(())
}

/// Makes a file that is not there, and opens it for writing.
pub fn create_at(folder: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(
        folder,
        name,
        flags,
        Mode::from_raw_mode(0o644),
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
