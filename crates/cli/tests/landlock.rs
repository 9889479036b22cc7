//! Behind Landlock: what programs do every day works as before, and what only Landlock denies is denied. That it holds
//! where no other wall stands is tried in `hutong-runtime` (`doctor`).

use std::process::{Command, Stdio};

use hutong_testkit::is_root;
use hutong_testkit::server::{Server, binary, python_app};
use hutong_testkit::visitor::{escape, get};

/// Runs Python inside the app; its `result`, or the error.
fn inside(server: &Server, source: &str) -> String {
    let path = format!("/eval?{}", escape(source));
    get(&server.http, "daily.test", &path).text()
}

/// A device that is none (0, 0): any user may make it, and nobody behind Landlock.
const DEVICE: &str = "import os,stat
path='/dev/shm/hutong-device-%d' % os.getpid()
os.mknod(path, stat.S_IFCHR | 0o600, 0)
os.unlink(path)
result='made'";

/// (what, Python that ends with a `result` of 1).
const EVERY_DAY: [(&str, &str); 14] = [
    (
        "files and folders move, and have more names than one",
        "import os,shutil
for b in ('/data','/tmp','/run','/dev/shm'):
    os.makedirs(b+'/a/b'); os.makedirs(b+'/c')
    open(b+'/a/b/f','w').write('x')
    os.rename(b+'/a/b/f', b+'/c/f'); os.link(b+'/c/f', b+'/a/l'); os.symlink('f', b+'/c/s')
    os.rename(b+'/a', b+'/c/a'); os.truncate(b+'/c/f', 0); open(b+'/c/f','w').write('y')
    shutil.rmtree(b+'/c')
result=1",
    ),
    (
        "two files change places",
        "import ctypes,os
libc=ctypes.CDLL(None, use_errno=True)
os.mkdir('/data/places'); open('/data/one','w'); open('/data/places/two','w')
result=1 if libc.renameat2(-100, b'/data/one', -100, b'/data/places/two', 2) == 0 else ctypes.get_errno()",
    ),
    (
        "a file without a name gets one",
        "import ctypes,os
libc=ctypes.CDLL(None, use_errno=True)
result=1
for b in ('/data','/tmp'):
    fd=os.open(b, os.O_TMPFILE | os.O_RDWR, 0o600)
    if libc.linkat(-100, b'/proc/self/fd/%d' % fd, -100, (b+'/named').encode(), 0x400):
        result=ctypes.get_errno()",
    ),
    (
        "what is open is opened again",
        "import os
f=open('/data/again','w+'); os.unlink('/data/again')
open('/proc/self/fd/%d' % f.fileno(),'r+').write('x')
r,w=os.pipe(); open('/proc/self/fd/%d' % w,'w').write('x')
m=os.memfd_create('m'); open('/proc/self/fd/%d' % m,'w').write('x')
result=1",
    ),
    (
        "sockets with and without a path",
        "import socket
for path in ('/data/socket','/tmp/socket','/run/socket','\\0socket'):
    a=socket.socket(socket.AF_UNIX); a.bind(path); a.listen()
    socket.socket(socket.AF_UNIX).connect(path)
a=socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); a.bind('\\0datagrams')
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', '\\0datagrams')
result=1",
    ),
    (
        "pipes with a name",
        "import os
for path in ('/data/pipe','/tmp/pipe'):
    os.mkfifo(path); fd=os.open(path, os.O_RDWR); os.write(fd, b'x'); os.read(fd, 1)
result=1",
    ),
    (
        "a file is mapped as a program",
        "import mmap
open('/data/code','wb').write(b'x'*4096)
f=open('/data/code','rb')
mmap.mmap(f.fileno(), 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
result=1",
    ),
    (
        "scripts and programs run from where the app put them",
        "import os,shutil,subprocess
for b in ('/data','/tmp','/run','/dev/shm'):
    with open(b+'/script','w') as f: f.write('#!/bin/sh\\necho hi')
    os.chmod(b+'/script', 0o755)
    assert subprocess.check_output([b+'/script']) == b'hi\\n'
    shutil.copy('/usr/bin/true', b+'/true'); subprocess.check_call([b+'/true'])
m=os.memfd_create('m'); os.write(m, open('/usr/bin/true','rb').read())
subprocess.check_call(['/proc/self/fd/%d' % m], pass_fds=[m])
result=1",
    ),
    (
        "a virtual environment",
        "import subprocess
subprocess.check_call(['/usr/bin/python3','-m','venv','--without-pip','/data/venv'])
said=subprocess.check_output(['/data/venv/bin/python','-c','import sys; print(sys.prefix)'])
result=1 if said == b'/data/venv\\n' else said",
    ),
    (
        "devices",
        "import os,subprocess
for name in ('null','zero','full','random','urandom'): open('/dev/'+name,'rb').read(1)
open('/dev/null','w').write('x'); open('/dev/null','a').write('x')
subprocess.check_call('echo x >/dev/null; head -c 1 </dev/urandom >/dev/null', shell=True)
result=1",
    ),
    (
        "terminals of its own",
        "import fcntl,os,pty,struct,termios
a,b=pty.openpty()
fd=os.open(os.ttyname(b), os.O_RDWR | os.O_NOCTTY)
termios.tcgetattr(fd); fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('4H', 1, 2, 3, 4))
pid,m=pty.fork()
if pid == 0: os.execv('/bin/sh', ['sh','-c','stty -a </dev/tty >/dev/null && echo asked >/dev/tty'])
said=b''
try:
    while True:
        more=os.read(m, 999)
        if not more: break
        said+=more
except OSError: pass
os.waitpid(pid, 0)
result=1 if said == b'asked\\r\\n' else said",
    ),
    (
        "its own processes",
        "import os,signal,subprocess
p=subprocess.Popen(['sleep','60'])
open('/proc/%d/environ' % p.pid).read(); os.listdir('/proc/%d/fd' % p.pid)
open('/proc/self/comm','w').write('daily')
subprocess.check_call('echo 500 >/proc/self/oom_score_adj', shell=True)
p.terminate()
result=1 if p.wait() == -signal.SIGTERM else 0",
    ),
    (
        "locks, semaphores, queues and memory that is shared",
        "import ctypes,fcntl,multiprocessing,os
libc=ctypes.CDLL(None, use_errno=True)
f=open('/data/lock','w'); fcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX)
assert multiprocessing.Semaphore(1).acquire()
assert libc.syscall(240, b'queue', os.O_CREAT | os.O_RDWR, 0o600, None) >= 0, ctypes.get_errno()
assert libc.shmget(0x4854, 4096, 0o1600) >= 0, ctypes.get_errno()
result=1",
    ),
    (
        "a database",
        "import sqlite3
c=sqlite3.connect('/data/base'); c.execute('pragma journal_mode=wal')
c.execute('create table t(a)'); c.execute('insert into t values(1)'); c.commit()
result=c.execute('select a from t').fetchone()[0]",
    ),
];

#[test]
fn what_programs_do_every_day_works_and_devices_are_denied() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let walls = server.json(&["doctor"]);
    let walls = walls.as_array().expect("a list");
    let wall = walls.iter().find(|wall| wall["wall"] == "landlock");
    let wall = wall.expect("it is listed");
    assert_eq!(wall["stands"], true, "{wall}");
    let here = wall["found"].as_str().expect("text").contains("ABI");
    server.deploy(python_app("daily", "data = true", "d").path());
    for (what, source) in EVERY_DAY {
        assert_eq!(inside(&server, source), "1", "{what}");
    }
    let setpriv = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let outside = Command::new("setpriv")
        .args(setpriv)
        .args(["/usr/bin/python3", "-c", DEVICE])
        .status();
    assert!(outside.expect("setpriv").success(), "any user may");
    if here {
        let got = inside(&server, DEVICE);
        assert!(got.contains("PermissionError"), "{got}");
        let (_, said) = server.fails(&["exec", "daily", "--", "python3", "-c", DEVICE]);
        assert!(said.contains("PermissionError"), "{said}");
    }
}

/// They are in one domain: see `shim/landlock`.
#[test]
fn programs_of_exec_reach_the_app_as_before() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("daily", "data = true", "d").path());
    let pid = inside(&server, "import os\nresult=os.getpid()");
    let look = format!(
        "import os\nos.kill({pid}, 0)\nopen('/proc/{pid}/environ').read()\nprint('reached')"
    );
    let said = server.ok(&["exec", "daily", "--", "python3", "-c", &look]);
    assert_eq!(said, "reached\n");
    let (_, said) = server.fails(&[
        "exec",
        "daily",
        "--",
        "python3",
        "-c",
        "import os; os.kill(1, 0)",
    ]);
    assert!(
        said.contains("PermissionError"),
        "init is not theirs: {said}"
    );
    // With a terminal, which is the host's.
    let program = "[ -t 0 ] && stty -a </dev/tty >/dev/null && echo through >/dev/tty";
    let output = Command::new("/usr/bin/python3")
        .args(["-c", "import pty,sys\npty.spawn(sys.argv[1:])"])
        .arg(binary())
        .args(["exec", "daily", "--", "sh", "-c", program])
        .env("HUTONG_API", &server.api)
        .stdin(Stdio::null())
        .output()
        .expect("python3 runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("through"), "{said}");
}
