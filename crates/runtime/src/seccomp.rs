//! The system calls that apps may make: an allow-list modelled on Docker's default profile for
//! processes without capabilities (moby/profiles seccomp/default.json). Everything else is EPERM;
//! clone3 is ENOSYS, so that libc falls back to clone, whose flags can be seen.

use std::collections::BTreeMap;

use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// The namespace flags of clone(2) and unshare(2).
const NAMESPACES: u64 = 0x7e02_0000 | 0x80;
/// Socket families that apps may use: unix, IPv4, IPv6, netlink (for getifaddrs).
const FAMILIES: [i32; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// The program as the shim takes it, one instruction a word.
pub fn program() -> Result<Vec<u64>, String> {
    let filter = SeccompFilter::new(
        rules().map_err(|error| error.to_string())?,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        arch(),
    )
    .map_err(|error| error.to_string())?;
    let rest: Vec<sock_filter> = filter
        .try_into()
        .map_err(|error: seccompiler::BackendError| error.to_string())?;
    let errno = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let head = [
        // Load the number; clone3 goes on to the next line, the rest past it.
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 0, 1, libc::SYS_clone3 as u32),
        instruction(0x06, 0, 0, errno),
        // What is newer than this list does not exist here: libc falls back (x32 numbers land here too).
        instruction(0x35, 0, 1, NEWER),
        instruction(0x06, 0, 0, errno),
    ];
    Ok(head
        .into_iter()
        .chain(rest)
        .map(|i| {
            u64::from(i.code) | u64::from(i.jt) << 16 | u64::from(i.jf) << 24 | u64::from(i.k) << 32
        })
        .collect())
}

fn arch() -> TargetArch {
    if cfg!(target_arch = "x86_64") {
        TargetArch::x86_64
    } else {
        TargetArch::aarch64
    }
}

/// Numbers of calls of the x32 ABI begin here; rules for others do not see them.
const X32: u32 = 0x4000_0000;

/// This process and all that it starts have no unix sockets but those that they have: none of ours takes them for control,
/// whose user they are. io_uring would make sockets past this.
pub fn deny_unix_sockets() -> Result<(), String> {
    seccompiler::apply_filter(&no_unix_sockets()?).map_err(|error| error.to_string())
}

fn no_unix_sockets() -> Result<Vec<sock_filter>, String> {
    let is_other = |family: i32| {
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family as u64)
    };
    let families = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let conditions: Result<Vec<_>, _> = families.into_iter().map(is_other).collect();
    let rule = conditions.and_then(SeccompRule::new);
    let mut rules: Rules = [
        libc::SYS_io_uring_setup,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
    ]
    .into_iter()
    .map(|number| (number, Vec::new()))
    .collect();
    rules.insert(
        libc::SYS_socket,
        vec![rule.map_err(|error: seccompiler::BackendError| error.to_string())?],
    );
    let errno = libc::EACCES as u32;
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        arch(),
    )
    .map_err(|error| error.to_string())?;
    let rest: Vec<sock_filter> = filter
        .try_into()
        .map_err(|error: seccompiler::BackendError| error.to_string())?;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let head = [
        instruction(0x20, 0, 0, 0),
        instruction(0x35, 0, 1, X32),
        instruction(0x06, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
    ];
    Ok(head.into_iter().chain(rest).collect())
}

/// Above the newest call considered (mseal, 462).
const NEWER: u32 = 463;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = ALLOWED
        .iter()
        .map(|(number, _)| (*number, Vec::new()))
        .collect();
    #[cfg(target_arch = "x86_64")]
    rules.extend(LEGACY.iter().map(|(number, _)| (*number, Vec::new())));
    let no_namespaces = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(NAMESPACES),
        0,
    )?;
    rules.insert(
        libc::SYS_clone,
        vec![SeccompRule::new(vec![no_namespaces])?],
    );
    let families = FAMILIES.iter().map(|family| {
        let condition =
            SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *family as u64)?;
        SeccompRule::new(vec![condition])
    });
    rules.insert(libc::SYS_socket, families.collect::<Result<_, _>>()?);
    let personalities = PERSONALITIES.into_iter().map(|value| {
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
        SeccompRule::new(vec![condition])
    });
    rules.insert(
        libc::SYS_personality,
        personalities.collect::<Result<_, _>>()?,
    );
    Ok(rules)
}

/// The same list as a profile of Docker's (moby's seccomp JSON), for containers: what engines allow by themselves
/// differs with their age, io_uring and vsock among it.
pub fn docker_profile() -> String {
    let names = |list: &[(i64, &str)]| -> Vec<String> {
        let names = list
            .iter()
            .map(|(_, name)| name.trim_start_matches("SYS_").to_owned());
        names.collect()
    };
    let mut allowed = names(ALLOWED);
    #[cfg(target_arch = "x86_64")]
    allowed.extend(names(LEGACY));
    let when = |name: &str, value: u64, mask: Option<u64>| {
        let (value, second, op) = match mask {
            Some(mask) => (mask, value, "SCMP_CMP_MASKED_EQ"),
            None => (value, 0, "SCMP_CMP_EQ"),
        };
        serde_json::json!({
            "names": [name],
            "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": value, "valueTwo": second, "op": op }],
        })
    };
    let mut calls = vec![
        serde_json::json!({ "names": allowed, "action": "SCMP_ACT_ALLOW" }),
        serde_json::json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS }),
        when("clone", 0, Some(NAMESPACES)),
    ];
    calls.extend(
        FAMILIES
            .iter()
            .map(|family| when("socket", *family as u64, None)),
    );
    calls.extend(
        PERSONALITIES
            .iter()
            .map(|value| when("personality", *value, None)),
    );
    serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "syscalls": calls,
    })
    .to_string()
}

/// Query, Linux, and without address randomisation (as gdb and some runtimes ask).
const PERSONALITIES: [u64; 3] = [0, 0x0004_0000, 0xffff_ffff];

macro_rules! numbers {
    ($($name:ident)*) => { &[$((libc::$name, stringify!($name))),*] };
}

const ALLOWED: &[(i64, &str)] = numbers! {
    SYS_accept SYS_accept4 SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir
    SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_close_range SYS_connect
    SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait
    SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_faccessat
    SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_fchown
    SYS_fchownat SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fremovexattr
    SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv
    SYS_getcpu SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups
    SYS_getitimer SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority SYS_getrandom
    SYS_getresgid SYS_getresuid SYS_getrlimit SYS_get_robust_list SYS_getrusage SYS_getsid
    SYS_getsockname SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr
    SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch SYS_io_cancel SYS_ioctl
    SYS_io_destroy SYS_io_getevents SYS_ioprio_get SYS_ioprio_set SYS_io_setup SYS_io_submit
    SYS_kill SYS_landlock_add_rule SYS_landlock_create_ruleset SYS_landlock_restrict_self
    SYS_lgetxattr SYS_linkat SYS_listen SYS_listxattr SYS_llistxattr SYS_lremovexattr SYS_lseek
    SYS_lsetxattr SYS_madvise SYS_membarrier SYS_memfd_create SYS_mincore SYS_mkdirat SYS_mknodat
    SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap SYS_mprotect SYS_mq_getsetattr SYS_mq_notify
    SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend SYS_mq_unlink SYS_mremap SYS_msgctl
    SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock SYS_munlockall SYS_munmap
    SYS_nanosleep SYS_newfstatat SYS_openat SYS_openat2 SYS_pidfd_open SYS_pidfd_send_signal
    SYS_pipe2 SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_ppoll SYS_prctl SYS_pread64
    SYS_preadv SYS_preadv2 SYS_prlimit64 SYS_pselect6 SYS_pwrite64 SYS_pwritev SYS_pwritev2
    SYS_read SYS_readahead SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg SYS_recvmsg
    SYS_remap_file_pages SYS_removexattr SYS_renameat SYS_renameat2 SYS_restart_syscall SYS_rseq
    SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn
    SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo SYS_sched_getaffinity
    SYS_sched_getattr SYS_sched_getparam SYS_sched_get_priority_max SYS_sched_get_priority_min
    SYS_sched_getscheduler SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr
    SYS_sched_setparam SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget
    SYS_semop SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_setfsgid
    SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer SYS_setpgid SYS_setpriority SYS_setregid
    SYS_setresgid SYS_setresuid SYS_setreuid SYS_setrlimit SYS_set_robust_list SYS_setsid
    SYS_setsockopt SYS_set_tid_address SYS_setuid SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt
    SYS_shmget SYS_shutdown SYS_sigaltstack SYS_signalfd4 SYS_socketpair SYS_splice SYS_statfs
    SYS_statx SYS_symlinkat SYS_sync SYS_sync_file_range SYS_syncfs SYS_sysinfo SYS_tee
    SYS_tgkill SYS_timer_create SYS_timer_delete SYS_timerfd_create SYS_timerfd_gettime
    SYS_timerfd_settime SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime SYS_times
    SYS_tkill SYS_truncate SYS_umask SYS_uname SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4
    SYS_waitid SYS_write SYS_writev
};

/// What only x86-64 has beside the newer forms.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[(i64, &str)] = numbers! {
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create
    SYS_epoll_wait SYS_eventfd SYS_fork SYS_futimesat SYS_getdents SYS_getpgrp SYS_inotify_init
    SYS_lchown SYS_link SYS_lstat SYS_mkdir SYS_mknod SYS_modify_ldt SYS_open SYS_pause SYS_pipe
    SYS_poll SYS_readlink SYS_rename SYS_rmdir SYS_select SYS_signalfd SYS_stat SYS_symlink
    SYS_time SYS_unlink SYS_utime SYS_utimes SYS_vfork
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_sockets_are_denied_for_good() {
        use std::os::unix::net::{UnixDatagram, UnixStream};
        // Of a thread's own.
        let tried = std::thread::spawn(|| {
            deny_unix_sockets().expect("loaded");
            let stream = UnixStream::connect("/nowhere").expect_err("denied");
            let datagram = UnixDatagram::unbound().expect_err("denied");
            let tcp = std::net::TcpListener::bind("127.0.0.1:0").is_ok();
            (stream.kind(), datagram.kind(), tcp)
        });
        let denied = std::io::ErrorKind::PermissionDenied;
        assert_eq!(tried.join().expect("an end"), (denied, denied, true));
    }

    #[test]
    fn the_program_fits_the_kernel_and_has_no_dangerous_call() {
        let program = program().expect("a program");
        assert!(program.len() < 4096, "{}", program.len());
        let rules = rules().expect("rules");
        for call in [
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_ptrace,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_open_by_handle_at,
            libc::SYS_io_uring_setup,
            libc::SYS_process_vm_readv,
            libc::SYS_pidfd_getfd,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
        ] {
            assert!(!rules.contains_key(&call), "{call}");
        }
    }
}
