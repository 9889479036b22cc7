//! From inside an app: what is out of reach, and that the same try succeeds where no wall stands (the
//! same Python, as root, on the host).

use std::path::Path;
use std::process::Command;

use hutong_testkit::server::{Server, children_of, python_app};
use hutong_testkit::visitor::{escape, get};
use hutong_testkit::{eventually, is_root};

/// Runs Python inside the app; its `result`, or the error.
fn inside(server: &Server, app: &str, source: &str) -> String {
    let path = format!("/eval?{}", escape(source));
    get(&server.http, &format!("{app}.test"), &path).text()
}

/// The same on the host, as root and without any wall.
fn outside(source: &str) -> String {
    python_under(&[], source)
}

/// The same as root without any wall, but where what it changes (mounts, host name, network, processes) is
/// thrown away: namespaces of its own, all capabilities kept, no filter of system calls.
fn outside_thrown_away(source: &str) -> String {
    let unshare = "unshare --mount --uts --net --ipc --pid --fork --mount-proc";
    python_under(&unshare.split(' ').collect::<Vec<_>>(), source)
}

fn python_under(wrapper: &[&str], source: &str) -> String {
    let program = format!("{source}\nprint(result)");
    let words = [wrapper, &["/usr/bin/python3", "-c", &program]].concat();
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .expect("python3");
    let text = if output.status.success() {
        &output.stdout
    } else {
        &output.stderr
    };
    String::from_utf8_lossy(text).trim().to_owned()
}

/// The try must fail inside and succeed outside.
fn walled(server: &Server, what: &str, source: &str, denied: &[&str]) {
    let got = inside(server, "thief", source);
    assert!(
        denied.iter().any(|word| got.contains(word)),
        "{what}, inside: {got}"
    );
    let free = outside(source);
    assert!(
        !denied.iter().any(|word| free.contains(word)),
        "{what}, outside: {free}"
    );
}

#[test]
fn neighbours_and_host_are_out_of_reach() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let victim = python_app(
        "victim",
        "port = 9123\ndata = true\n[env]\nTREASURE = \"jade-seal\"",
        "v",
    );
    let thief = python_app("thief", "data = true", "t");
    server.deploy(victim.path());
    server.deploy(thief.path());
    inside(
        &server,
        "victim",
        "open('/data/secret','w').write('jade')\nresult=1",
    );

    // The neighbour's files, by the path that they have on the host.
    let secret = server.data.path().join("data/victim/secret");
    assert!(secret.exists());
    walled(
        &server,
        "the neighbour's files",
        &format!("result = open({secret:?}).read()"),
        &["FileNotFound"],
    );
    // The host's files.
    for path in ["/etc/shadow", "/root", "/var/log", "/home", "/sys/kernel"] {
        let source = format!("import os\nresult = os.stat({path:?})");
        walled(&server, path, &source, &["FileNotFound"]);
    }
    assert_eq!(
        inside(
            &server,
            "thief",
            "import os\nresult = sorted(os.listdir('/'))"
        ),
        "['app', 'bin', 'data', 'dev', 'etc', 'lib', 'lib64', 'proc', 'run', 'sbin', 'tmp', 'usr', 'var']"
    );
    // Its own folder and the system's are read-only; root outside may write to each of them.
    let releases = server.json(&["releases", "thief"]);
    let digest = releases[0]["digest"].as_str().expect("a digest");
    let digest = digest.trim_start_matches("sha256:");
    let tree = server.data.path().join("trees").join(digest);
    assert!(tree.is_dir(), "{tree:?}");
    for (folder, on_host) in [
        ("/app", tree.as_path()),
        ("/usr", Path::new("/usr")),
        ("/etc", Path::new("/etc")),
        ("/", Path::new("/")),
    ] {
        let write = |folder: &Path| {
            let path = folder.join(format!(".hutong-try-{}", std::process::id()));
            format!("import os\nopen({path:?},'w').close()\nos.unlink({path:?})\nresult='wrote'")
        };
        let got = inside(&server, "thief", &write(Path::new(folder)));
        assert!(
            got.contains("Read-only") || got.contains("Permission"),
            "{folder}: {got}"
        );
        assert_eq!(outside(&write(on_host)), "wrote", "{folder}");
    }
    // Processes and environment of others: the count of processes seen, and TREASURE.
    let processes = "import os\nresult = len([p for p in os.listdir('/proc') if p.isdigit()])";
    let seen: i32 = inside(&server, "thief", processes)
        .parse()
        .expect("a number");
    assert!(seen <= 3, "{seen} processes");
    assert!(outside(processes).parse::<i32>().expect("a number") > 10);
    let treasure = "import os,glob\nresult=[]\nfor p in glob.glob('/proc/[0-9]*/environ'):\n  try: b'jade-seal' in open(p,'rb').read() and result.append(p)\n  except OSError: pass";
    let got = inside(&server, "thief", treasure);
    assert_eq!(got, "[]");
    assert!(
        outside(treasure).contains("/environ'"),
        "{}",
        outside(treasure)
    );
    let kill = format!(
        "import os\nos.kill({}, 0)\nresult='signalled'",
        server.pid()
    );
    walled(
        &server,
        "the host's processes",
        &kill,
        &["ProcessLookup", "Permission"],
    );
    // The neighbour's port, and the host's. With its wall down, that is in the neighbour's network, it answers.
    let connect =
        "import socket\nresult = socket.create_connection(('127.0.0.1', PORT), 2).getpeername()[1]";
    let http_port = server.http.rsplit(':').next().expect("a port");
    walled(
        &server,
        "the host's ports",
        &connect.replace("PORT", http_port),
        &["refused"],
    );
    let neighbour = connect.replace("PORT", "9123");
    let got = inside(&server, "thief", &neighbour);
    assert!(got.contains("refused"), "{got}");
    let init = children_of(server.shim_of("victim"))[0].to_string();
    let enter = ["nsenter", "--target", &init, "--net"];
    assert_eq!(python_under(&enter, &neighbour), "9123");
    let own = inside(
        &server,
        "thief",
        "import socket\nresult = [i[1] for i in socket.if_nameindex()]",
    );
    assert_eq!(own, "['lo']", "no way out but its own loopback");
}

#[test]
fn no_privilege_is_left_and_none_can_be_had() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("thief", "", "t").path());
    let status = inside(
        &server,
        "thief",
        "result = open('/proc/self/status').read()",
    );
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(|rest| rest.trim().to_owned()).unwrap_or_default()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(
        (field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()),
        ("1", "2")
    );
    assert!(field("Uid:").starts_with("1000"));
    // On the host it is nobody else's id.
    let system = server.json(&["system"]);
    let pid = server.shim_of("thief");
    let list = system.as_array().expect("list");
    let shim = list.iter().find(|p| p["pid"] == pid).expect("its shim");
    assert!(
        shim["uid"].as_u64().is_some_and(|uid| uid >= 0x7000_0000),
        "{shim}"
    );
    let denied = &[
        "PermissionError",
        "Errno 1]",
        "result -1",
        "Operation not permitted",
    ];
    let libc = "import ctypes,os\nlibc=ctypes.CDLL(None,use_errno=True)\n";
    for (what, call) in [
        ("mount", "libc.mount(b'none',b'/tmp',b'tmpfs',0,None)"),
        ("unshare", "libc.unshare(0x20000)"),
        ("sethostname", "libc.sethostname(b'x',1)"),
        ("setuid", "libc.setuid(0)"),
        (
            "ptrace",
            "libc.ptrace(0x4206,int(os.popen('sleep 1 >/dev/null & echo $!').read()),0,0)",
        ),
        ("keyctl", "libc.syscall(250,0,-3,0)"),
        ("bpf", "libc.syscall(321,0,(ctypes.c_uint*18)(2,4,4,1),72)"),
        ("raw socket", "libc.socket(2,3,1)"),
        ("packet socket", "libc.socket(17,3,0)"),
        ("vsock", "libc.socket(40,1,0)"),
        ("userfaultfd", "libc.syscall(323,0)"),
        ("io_uring", "libc.syscall(425,1,(ctypes.c_char*120)())"),
        ("kexec", "libc.syscall(246,0,0,0,0)"),
        ("chroot", "libc.chroot(b'/tmp')"),
        (
            "namespace by clone",
            "(lambda r:r or os._exit(0))(libc.syscall(56,0x10000000|17,0,0,0,0))",
        ),
    ] {
        let source =
            format!("{libc}r={call}\nresult='result %d %s' % (r, os.strerror(ctypes.get_errno()))");
        let got = inside(&server, "thief", &source);
        assert!(
            denied.iter().any(|word| got.contains(word)),
            "{what}, inside: {got}"
        );
        let free = outside_thrown_away(&source);
        let no_such_call = what == "kexec" && free.contains("Function not implemented");
        assert!(
            free.starts_with("result ") && !free.starts_with("result -1") || no_such_call,
            "{what}, outside: {free}"
        );
    }
    let setuid = inside(
        &server,
        "thief",
        "import os\nresult=[f for f in ('/usr/bin/su','/usr/bin/passwd') if os.path.exists(f) and not (os.statvfs(f).f_flag & 2)]",
    );
    assert_eq!(setuid, "[]", "setuid programs have no power (nosuid)");
}

#[test]
fn what_docker_hides_of_proc_is_hidden_and_no_core_is_dumped() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("thief", "", "t").path());
    let shown = "import os\nresult=[n for n in ('interrupts','kallsyms','kcore','key-users','keys','latency_stats','sched_debug','timer_list','timer_stats','vmallocinfo') if os.path.exists('/proc/'+n) and open('/proc/'+n,'rb').read(1)]\nresult+=[n for n in ('acpi','asound','driver','scsi') if os.path.exists('/proc/'+n) and os.listdir('/proc/'+n)]";
    assert_eq!(inside(&server, "thief", shown), "[]");
    assert!(outside(shown).contains("interrupts"), "{}", outside(shown));
    let writable = "import os\nresult=[n for n in ('bus','fs','irq','sys','sysrq-trigger') if os.path.exists('/proc/'+n) and not os.statvfs('/proc/'+n).f_flag & os.ST_RDONLY]";
    assert_eq!(inside(&server, "thief", writable), "[]");
    assert!(outside(writable).contains("sys"), "{}", outside(writable));
    // 1 is less than any core, and has the kernel start no program of core_pattern either (core(5)).
    let core = "import resource\nresult=resource.getrlimit(resource.RLIMIT_CORE)";
    assert_eq!(inside(&server, "thief", core), "(1, 1)");
}

#[test]
fn memory_cpu_and_pids_beyond_the_caps_are_out_of_reach() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let caps = "[limits]\nmemory = \"48M\"\ncpu = 0.25\npids = 24";
    server.deploy(python_app("greedy", caps, "g").path());
    server.deploy(python_app("calm", "", "c").path());
    // The kernel takes memory back from a thirty-second below the cap on, in whole pages.
    let (v1, v2) = ("memory.soft_limit_in_bytes", "memory.high");
    assert_eq!(cap_of(&server, "greedy", v1, v2), "48758784");
    let fork = "import subprocess\nps=[]\ntry:\n  for i in range(60): ps.append(subprocess.Popen(['sleep','60']))\nexcept BlockingIOError: pass\nresult=len(ps)\nfor p in ps: p.kill()\nfor p in ps: p.wait()";
    let forked: i32 = inside(&server, "greedy", fork).parse().expect("a number");
    assert!(
        (5..24).contains(&forked),
        "{forked} processes of at most 24"
    );
    assert_eq!(outside(fork), "60");
    // Eight processes, so that even a busy machine gives them more than a third of a core where nothing caps them.
    let burn = "import os,subprocess,time\nt=time.time(); u=os.times()\nps=[subprocess.Popen(['timeout','2','sh','-c','while :; do :; done']) for i in range(8)]\nfor p in ps: p.wait()\nv=os.times()\nresult=(v.children_user+v.children_system-u.children_user-u.children_system)/(time.time()-t)";
    let used: f64 = inside(&server, "greedy", burn).parse().expect("a share");
    assert!(used < 0.35, "{used} of a core, a quarter of one allowed");
    let free: f64 = outside(burn).parse().expect("a share");
    assert!(free > 0.35, "{free} of a core with no cap");
    let eat = "b=[]\nfor i in range(400): b.append(bytearray(1<<20))\nresult=len(b)";
    assert_eq!(outside(eat), "400");
    let path = format!("/eval?{}", escape(eat));
    let answer = get(&server.http, "greedy.test", &path);
    assert_ne!(answer.text(), "400", "{answer:?}");
    assert_eq!(
        get(&server.http, "calm.test", "/").text(),
        "c",
        "the neighbour did not notice"
    );
    eventually("it is back", 20, || {
        get(&server.http, "greedy.test", "/").text() == "g"
    });
    let logs = server.ok(&["logs", "greedy"]);
    assert!(logs.contains("ran out of memory"), "{logs}");
}

/// A value of the memory cgroup of an app's instance; its file is called otherwise in v1 and v2.
fn cap_of(server: &Server, app: &str, v1: &str, v2: &str) -> String {
    let init = children_of(server.shim_of(app))[0];
    let groups = std::fs::read_to_string(format!("/proc/{init}/cgroup")).expect("its cgroups");
    let of = |wanted: &str| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let has = controllers.split(',').any(|one| one == wanted);
            has.then(|| path.to_owned())
        })
    };
    let file = match of("memory") {
        Some(path) => format!("/sys/fs/cgroup/memory{path}/{v1}"),
        None => format!("/sys/fs/cgroup{}/{v2}", of("").expect("a v2 cgroup")),
    };
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
    text.trim().to_owned()
}

/// Whoever starts the server may have left descriptors open, and signals ignored (runc's CVE-2024-21626).
#[test]
fn what_the_server_inherited_reaches_no_app() {
    if !is_root() {
        return;
    }
    let folder = std::fs::File::open("/root").expect("a folder of root's");
    rustix::io::fcntl_setfd(&folder, rustix::io::FdFlags::empty()).expect("inheritable");
    let number = std::os::fd::AsRawFd::as_raw_fd(&folder);
    // Python sets the signal's fate and becomes the server.
    let ignore = "import os,signal,sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nos.umask(0o077)\nos.execv(sys.argv[1], sys.argv[1:])";
    let server = Server::start_through(&["/usr/bin/python3", "-c", ignore]);
    let fds = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("its descriptors");
    let inherited = fds
        .flatten()
        .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|link| link == Path::new("/root")));
    assert!(inherited, "the warden itself has it: number {number}");
    let app = python_app("thief", "", "t");
    std::fs::create_dir(app.path().join("sub")).expect("mkdir");
    std::fs::write(app.path().join("sub/x"), "readable").expect("write");
    server.deploy(app.path());
    let read = inside(&server, "thief", "result=open('/app/sub/x').read()");
    assert_eq!(
        read, "readable",
        "whatever umask the server was started with"
    );
    let open = "import os\nresult=[os.readlink('/proc/self/fd/'+f) for f in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/'+f)]";
    let inside = inside(&server, "thief", open);
    assert!(
        !inside.contains("/root") && inside.contains("/dev/null"),
        "{inside}"
    );
    let shim = server.shim_of("thief");
    let ours = [
        server.role("control"),
        server.role("gateway"),
        shim,
        children_of(shim)[0],
    ];
    for pid in ours {
        for fd in std::fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("fds")
            .flatten()
        {
            let link = std::fs::read_link(fd.path()).unwrap_or_default();
            assert_ne!(link, Path::new("/root"), "process {pid}");
        }
    }
    // SIGCHLD is noticed all the same.
    let control = server.role("control");
    hutong_testkit::kill(control);
    eventually("control is restarted", 20, || {
        server.run(&["apps"]).status.success()
    });
    assert_ne!(server.role("control"), control);
}

/// What the kernel counts by user is counted to the app: it cannot use up root's.
#[test]
fn an_app_uses_up_its_own_inotify_instances_and_nobody_elses() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("thief", "", "t").path());
    server.deploy(python_app("calm", "", "c").path());
    let make = "import ctypes,os\nlibc=ctypes.CDLL(None,use_errno=True)\nfds=[]\nwhile len(fds)<COUNT:\n  fd=libc.inotify_init1(0)\n  if fd<0: break\n  fds.append(fd)\nresult=len(fds)";
    let all = format!(
        "import builtins\n{}\nbuiltins.kept=fds",
        make.replace("COUNT", "100000")
    );
    let taken: usize = inside(&server, "thief", &all).parse().expect("a number");
    assert!(taken > 50, "{taken}");
    let few = make.replace("COUNT", "5");
    assert_eq!(outside(&few), "5", "root on the host has its own");
    assert_eq!(
        inside(&server, "calm", &few),
        "5",
        "and so has the neighbour"
    );
    assert_eq!(
        inside(&server, "thief", &few),
        "0",
        "only the thief has none left"
    );
}

#[test]
fn our_own_processes_have_the_least_privilege_and_nothing_listens_but_the_gateway() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("one", "", "1").path());
    let system = server.json(&["system"]);
    let list = system.as_array().expect("list");
    let mut uids = Vec::new();
    for role in ["warden", "control", "gateway", "shim"] {
        let process = list
            .iter()
            .find(|p| p["role"] == role)
            .unwrap_or_else(|| panic!("no {role}"));
        let (pid, uid) = (
            process["pid"].as_u64().expect("pid"),
            process["uid"].as_u64().expect("uid"),
        );
        assert!(
            process["memory_bytes"].as_u64().is_some_and(|m| m > 0),
            "{process}"
        );
        assert_eq!(uid == 0, role == "warden", "{role} has uid {uid}");
        if role != "warden" {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
            for set in ["CapPrm:", "CapEff:"] {
                let line = status.lines().find(|l| l.starts_with(set)).expect("a line");
                assert!(line.ends_with("0000000000000000"), "{role}: {line}");
            }
            assert!(status.contains("NoNewPrivs:\t1"), "{role}");
        }
        uids.push(uid);
    }
    uids.sort();
    uids.dedup();
    assert_eq!(uids.len(), 4, "each has an id of its own");
    let pids: Vec<u64> = list.iter().filter_map(|p| p["pid"].as_u64()).collect();
    let port = server.http.rsplit(':').next().expect("a port");
    for listener in listening_sockets(&pids) {
        assert!(
            listener == port.parse::<u16>().expect("a port"),
            "{listener} is open"
        );
    }
    let socket = server.api.strip_prefix("unix:").expect("a path");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(socket).expect("there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    for file in ["control/key", "control/state.db"] {
        let path = server.data.path().join(file);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&path).expect("there").permissions(),
        );
        assert_eq!(
            mode & 0o077 & if file.ends_with("key") { 0o777 } else { 0 },
            0,
            "{file}"
        );
    }
    assert_eq!(
        nobody_reads(Path::new(&server.data.path().join("control"))),
        "denied"
    );
}

/// Ports of the host's namespace that one of these processes listens on.
fn listening_sockets(pids: &[u64]) -> Vec<u16> {
    let mut inodes = Vec::new();
    for pid in pids {
        for fd in std::fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if let Ok(link) = std::fs::read_link(fd.path()) {
                let link = link.to_string_lossy().into_owned();
                inodes.extend(
                    link.strip_prefix("socket:[")
                        .map(|s| s.trim_end_matches(']').to_owned()),
                );
            }
        }
    }
    let mut ports = Vec::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in std::fs::read_to_string(file)
            .unwrap_or_default()
            .lines()
            .skip(1)
        {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            if fields[3] == "0A" && inodes.iter().any(|inode| inode == fields[9]) {
                let port = fields[1].rsplit(':').next().expect("a port");
                ports.push(u16::from_str_radix(port, 16).expect("hex"));
            }
        }
    }
    ports
}

fn nobody_reads(folder: &Path) -> &'static str {
    let read = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "ls"])
        .arg(folder)
        .output()
        .expect("setpriv");
    if read.status.success() {
        "read"
    } else {
        "denied"
    }
}
