//! From inside an app: what is out of reach, and that the same try succeeds where no wall stands (the
//! same Python, as root, on the host).

use std::path::Path;
use std::process::Command;

use hutong_testkit::server::{Server, python_app};
use hutong_testkit::visitor::{escape, get};
use hutong_testkit::{eventually, is_root};

/// Runs Python inside the app; its `result`, or the error.
fn inside(server: &Server, app: &str, source: &str) -> String {
    let path = format!("/eval?{}", escape(source));
    get(&server.http, &format!("{app}.test"), &path).text()
}

/// The same on the host, as root and without any wall.
fn outside(source: &str) -> String {
    let program = format!("{source}\nprint(result)");
    let output = Command::new("/usr/bin/python3")
        .arg("-c")
        .arg(program)
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
        "data = true\n[env]\nTREASURE = \"jade-seal\"",
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
    // Its own folder and the system's are read-only.
    for path in ["/app/x", "/usr/x", "/etc/x", "/x"] {
        let got = inside(
            &server,
            "thief",
            &format!("open({path:?},'w')\nresult='wrote'"),
        );
        assert!(
            got.contains("Read-only") || got.contains("Permission"),
            "{path}: {got}"
        );
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
    // The neighbour's port, and the host's.
    let connect =
        "import socket\nresult = socket.create_connection(('127.0.0.1', PORT), 2).getpeername()";
    let http_port = server.http.rsplit(':').next().expect("a port");
    walled(
        &server,
        "the host's ports",
        &connect.replace("PORT", http_port),
        &["refused"],
    );
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
    let app = server.app("thief");
    let instance = app["instances"][0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let system = server.json(&["system"]);
    let shim = system
        .as_array()
        .expect("list")
        .iter()
        .find(|p| p["instance"] == instance.as_str())
        .cloned()
        .expect("its shim");
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
        ("ptrace", "libc.ptrace(16,1,0,0)"),
        ("keyctl", "libc.syscall(250,0,-3,0)"),
        ("bpf", "libc.syscall(321,0,0,0)"),
        ("raw socket", "libc.socket(2,3,1)"),
        ("packet socket", "libc.socket(17,3,0)"),
        ("vsock", "libc.socket(40,1,0)"),
        ("userfaultfd", "libc.syscall(323,0)"),
        ("io_uring", "libc.syscall(425,1,0)"),
        ("kexec", "libc.syscall(246,0,0,0,0)"),
        ("chroot", "libc.chroot(b'/tmp')"),
        (
            "namespace by clone",
            "libc.syscall(56,0x10000000|17,0,0,0,0)",
        ),
    ] {
        let source =
            format!("{libc}r={call}\nresult='result %d %s' % (r, os.strerror(ctypes.get_errno()))");
        let got = inside(&server, "thief", &source);
        assert!(
            denied.iter().any(|word| got.contains(word)),
            "{what}: {got}"
        );
    }
    // Where no wall stands, a root process may: the same try of the harmless ones.
    let free = outside(&format!("{libc}r=libc.socket(2,3,1)\nresult=r"));
    assert!(free.parse::<i32>().is_ok_and(|fd| fd > 0), "{free}");
    let free = outside(&format!("{libc}r=libc.unshare(0x20000)\nresult=r"));
    assert_eq!(free, "0");
    let setuid = inside(
        &server,
        "thief",
        "import os\nresult=[f for f in ('/usr/bin/su','/usr/bin/passwd') if os.path.exists(f) and not (os.statvfs(f).f_flag & 2)]",
    );
    assert_eq!(setuid, "[]", "setuid programs have no power (nosuid)");
}

#[test]
fn memory_cpu_and_pids_beyond_the_caps_are_out_of_reach() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let caps = "[limits]\nmemory = \"48M\"\ncpu = 0.5\npids = 24";
    server.deploy(python_app("greedy", caps, "g").path());
    server.deploy(python_app("calm", "", "c").path());
    let fork = "import subprocess\nps=[]\ntry:\n  for i in range(60): ps.append(subprocess.Popen(['sleep','60']))\nexcept BlockingIOError: pass\nresult=len(ps)\nfor p in ps: p.kill()\nfor p in ps: p.wait()";
    let forked: i32 = inside(&server, "greedy", fork).parse().expect("a number");
    assert!(
        (5..24).contains(&forked),
        "{forked} processes of at most 24"
    );
    assert_eq!(outside(fork), "60");
    let burn = "import os,time\nt=time.time(); u=os.times()\nwhile time.time()-t<2: pass\nv=os.times()\nresult=(v.user+v.system-u.user-u.system)/2";
    let used: f64 = inside(&server, "greedy", burn).parse().expect("a share");
    assert!(used < 0.65, "{used} of a core, half of one allowed");
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
