"""Tries to get out. Run inside an app, and where no wall stands; prints a line of JSON for each: [name, walls, out, what happened].

Arguments: what the test put outside to be found, as JSON (see escapes.rs). Each try runs in a process of its own. `out` means
that it got what it should not have; an exception means that it was held. Tries ask for as little as shows the
point: files are opened and not written to, calls are made with arguments that change nothing.
"""
import ctypes, errno, fcntl, glob, json, os, resource, select, signal, socket, stat, struct, sys, time

libc = ctypes.CDLL(None, use_errno=True)
found = json.loads(sys.argv[1])
tries = []

def a_try(name, wall):
    def add(run):
        tries.append((name, wall, run))
        return run
    return add

def call(number, *arguments):
    result = libc.syscall(number, *[ctypes.c_long(one) if isinstance(one, int) else one for one in arguments])
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result

def allowed(number, *arguments):
    """The kernel looked at the arguments, which are wrong: whoever may not is told so before."""
    try:
        call(number, *arguments)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise

def opens(path, flags):
    os.close(os.open(path, flags))

def dial(host, port, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as line:
        line.settimeout(1)
        line.connect((host, port))

# Files
for name, path in [("shadow passwords", "/etc/shadow"), ("root's folder", "/root"), ("the host's logs", "/var/log"), ("other people's folders", "/home"), ("the server's data", found["data"]), ("a neighbour's data", found["neighbour_data"])]:
    a_try("read " + name, "root")(lambda path=path: os.listdir(path) if os.path.isdir(path) else open(path).read() or os.stat(path))
for name, path in [("/", "/hutong-escape"), ("/usr", "/usr/hutong-escape"), ("/etc", "/etc/hutong-escape"), ("/lib", "/usr/lib/hutong-escape")]:
    def write(path=path):
        open(path, "w").close()
        os.unlink(path)
    a_try("write to " + name, "root, user")(write)
for path in ["/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper"]:
    if os.path.exists(path) or path.startswith("/proc"):
        a_try("open %s for writing" % path, "root, user")(lambda path=path: opens(path, os.O_WRONLY))
a_try("read the kernel's memory (/proc/kcore)", "root, user")(lambda: open("/proc/kcore", "rb").read(4)[:4].index(b"ELF"))
a_try("read addresses of the kernel (/proc/kallsyms)", "root, user")(lambda: next(line for line in open("/proc/kallsyms") if not line.startswith("0000000000000000 ")))
a_try("read the kernel's log", "user, seccomp")(lambda: call(103, 3, ctypes.create_string_buffer(4096), 4096))
a_try("read cgroup files to write to them", "root, user")(lambda: opens(next(iter(glob.glob("/sys/fs/cgroup/**/cgroup.procs", recursive=True))), os.O_WRONLY))
a_try("set a release agent (cgroup v1)", "root, user")(lambda: opens(next(iter(glob.glob("/sys/fs/cgroup/*/release_agent"))), os.O_WRONLY))

# Mounts and devices
def mount(*arguments):
    if libc.mount(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "mount")
a_try("mount a tmpfs", "user, seccomp")(lambda: mount(b"none", b"/tmp", b"tmpfs", 0, None))
a_try("mount /proc anew", "user, seccomp")(lambda: mount(b"proc", b"/tmp", b"proc", 0, None))
a_try("mount cgroups", "user, seccomp")(lambda: mount(b"none", b"/tmp", b"cgroup2", 0, None))
a_try("bind a folder over another", "user, seccomp")(lambda: mount(b"/tmp", b"/usr", None, 4096, None))
a_try("make / writable", "user, seccomp")(lambda: mount(None, b"/", None, 32 | 4096, None))
a_try("fsopen", "user, seccomp")(lambda: call(430, b"tmpfs", 0))
a_try("open_tree with a copy", "user, seccomp")(lambda: call(428, -100, b"/", 1))
a_try("pivot_root", "user, seccomp")(lambda: allowed(155, b"/tmp", b"/tmp"))
a_try("chroot", "user, seccomp")(lambda: os.chroot("/tmp"))
a_try("unmount /proc", "user, seccomp")(lambda: call(166, b"/proc", 2))
def device(kind, major, minor):
    path = "/tmp/escape-device-%d" % os.getpid()
    os.mknod(path, kind | 0o600, os.makedev(major, minor))
    os.unlink(path)
a_try("make a block device", "user")(lambda: device(stat.S_IFBLK, 8, 0))
a_try("make a character device", "user")(lambda: device(stat.S_IFCHR, 1, 1))
a_try("open the kernel's message device", "root, user")(lambda: opens("/dev/kmsg", os.O_RDWR))
def by_handle():
    handle = ctypes.create_string_buffer(struct.pack("II", 128, 0), 136)
    mount_id = ctypes.c_int()
    call(303, -100, b"/etc", handle, ctypes.byref(mount_id), 0)
    call(304, os.open("/", os.O_RDONLY), handle, os.O_RDONLY)
a_try("open a file by its handle", "user, seccomp")(by_handle)

# Users and privileges
a_try("become root", "user")(lambda: os.setuid(0))
a_try("join root's group", "user")(lambda: os.setgroups([0]))
def may_have(capability):
    if libc.prctl(23, capability, 0, 0, 0) != 1:
        raise OSError(errno.EPERM, "not in the bounding set")
for name, number in [("CAP_SYS_ADMIN", 21), ("CAP_DAC_OVERRIDE", 1), ("CAP_NET_RAW", 13), ("CAP_SYS_PTRACE", 19)]:
    a_try("ever have " + name, "user")(lambda number=number: may_have(number))
a_try("keep a core dump", "limits")(lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20)))
a_try("be spared by the OOM killer", "user")(lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1000"))
a_try("a higher priority", "user")(lambda: os.setpriority(os.PRIO_PROCESS, 0, -10))
a_try("real-time scheduling", "user")(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
a_try("real-time disk priority", "user")(lambda: call(251, 1, 0, 1 << 13))

# Namespaces
for name, flag in [("user", 0x10000000), ("mount", 0x20000), ("network", 0x40000000), ("pid", 0x20000000)]:
    # Anybody may have a user namespace.
    a_try("a new %s namespace" % name, "seccomp" if name == "user" else "user, seccomp")(lambda flag=flag: call(272, flag))
a_try("a new user namespace by clone", "seccomp")(lambda: call(56, 0x10000000 | 17, 0, 0, 0, 0) or os._exit(0))
a_try("enter a process's namespaces", "pid, user, seccomp")(lambda: call(308, os.open("/proc/%d/ns/net" % found["victim"], os.O_RDONLY), 0))
a_try("another host name", "user, seccomp")(lambda: call(170, b"escape", 6))

# Other processes
victim = found["victim"]
a_try("signal a process of the host", "pid, user")(lambda: os.kill(victim, 0))
a_try("trace a process of the host", "pid, seccomp")(lambda: call(101, 0x4206, victim, 0, 0))
def read_memory():
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("QQ", ctypes.addressof(buffer), 8)
    address = int(next(open("/proc/%d/maps" % victim)).split("-")[0], 16)
    call(310, victim, local, 1, struct.pack("QQ", address, 8), 1, 0)
a_try("read a process's memory", "pid, seccomp")(read_memory)
a_try("take a process's descriptors", "pid, seccomp")(lambda: call(438, os.pidfd_open(victim), 0, 0))
a_try("read a process's environment", "pid, user")(lambda: open("/proc/%d/environ" % victim, "rb").read().index(b"SECRET"))
a_try("pin a process to a core", "pid, user")(lambda: os.sched_setaffinity(victim, [0]))
a_try("see the host's processes", "pid")(lambda: [name for name in os.listdir("/proc") if name == str(victim)].pop())
a_try("see a file that another program left in shared memory", "root")(lambda: open("/dev/shm/" + found["shared"]).read())
a_try("System V shared memory of another", "ipc")(lambda: call(29, found["shm_key"], 0, 0))

# Kernel interfaces
a_try("bpf", "user, seccomp")(lambda: call(321, 0, (ctypes.c_uint * 18)(2, 4, 4, 1), 72))
a_try("perf events", "user, seccomp")(lambda: allowed(298, ctypes.create_string_buffer(struct.pack("II", 1, 112), 112), -1, 0, -1, 0))
a_try("io_uring", "seccomp")(lambda: call(425, 1, ctypes.create_string_buffer(120)))
a_try("userfaultfd", "seccomp")(lambda: call(323, 0))
a_try("keyrings: keyctl", "seccomp")(lambda: call(250, 0, -3, 0))
a_try("keyrings: add_key", "seccomp")(lambda: call(248, b"user", b"escape", b"x", 1, -3))
a_try("load a kernel module", "user, seccomp")(lambda: allowed(313, -1, b"", 0))
a_try("remove a kernel module", "user, seccomp")(lambda: allowed(176, b"no_such_module", 0o4000))
a_try("kexec", "user, seccomp")(lambda: allowed(320, -1, -1, 0, b"", 0))
a_try("reboot", "user, seccomp")(lambda: allowed(169, 0, 0, 0, 0))
a_try("swap", "user, seccomp")(lambda: allowed(167, b"/no/such/file", 0))
a_try("process accounting", "user, seccomp")(lambda: allowed(163, b"/no/such/file"))
a_try("ports of the hardware", "user, seccomp")(lambda: call(173, 0x80, 1, 1))
def clock():
    now = ctypes.create_string_buffer(208)
    call(159, now)
    struct.pack_into("I", now, 0, 0x4000)
    call(159, now)
a_try("the clock", "user, seccomp")(clock)
a_try("fanotify", "user, seccomp")(lambda: call(300, 0, 0))
a_try("quota", "seccomp")(lambda: allowed(179, 0x80000200, b"/no/such/device", 0, 0))

# Network
a_try("a raw socket", "user")(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
a_try("a packet socket", "user, seccomp")(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
a_try("a vsock socket", "seccomp")(lambda: socket.socket(40, socket.SOCK_STREAM))
a_try("the kernel's crypto sockets", "seccomp")(lambda: socket.socket(38, socket.SOCK_SEQPACKET))
def interface_down():
    # Of a network of its own, where that is to be had: the host's is not touched.
    if found["bare"]:
        call(272, 0x40000000)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0))
a_try("take an interface down", "user")(interface_down)
def add_route():
    if found["bare"]:
        call(272, 0x40000000)
    body = struct.pack("BBBBI", 2, 32, 0, 254, 1) + struct.pack("HH4s", 8, 2, bytes([127, 9, 9, 9]))
    message = struct.pack("IHHII", 16 + len(body), 20, 0x605, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as line:
        line.send(message)
        code = struct.unpack_from("i", line.recv(4096), 16)[0]
        if code < 0:
            raise OSError(-code, os.strerror(-code))
a_try("add an address by netlink", "user")(add_route)
def abstract():
    with socket.socket(socket.AF_UNIX) as line:
        line.connect("\0" + found["abstract"])
a_try("an abstract socket of the host", "net")(abstract)
for name, path in found["sockets"].items():
    def connect(path=path):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(path)
    a_try("the socket of " + name, "root")(connect)
for name, (host, port) in found["addresses"].items():
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    a_try("connect to " + name, "net")(lambda host=host, port=port, family=family: dial(host, port, family))
# Where the walls are down it stands at this address.
a_try("another app's link, by its name", "net")(lambda: dial("127.0.0.10" if found["bare"] else "orders.internal", 80))
a_try("another app's link, by its address", "net")(lambda: dial("127.0.0.10", 80))
def spoof():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.setsockopt(socket.SOL_IP, 19, 1)
a_try("send from an address of another (IP_TRANSPARENT)", "user")(spoof)

# Using things up
def fork_bomb():
    children = []
    try:
        for _ in range(found["processes"]):
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
a_try("more processes than allowed", "limits")(fork_bomb)
def fill(folder):
    path = "%s/escape-%d" % (folder, os.getpid())
    try:
        with open(path, "wb", buffering=0) as file:
            for _ in range(found["fill"]):
                if file.write(b"x" * (1 << 20)) < 1 << 20:
                    raise OSError(errno.ENOSPC, "No space left on device")
    finally:
        os.unlink(path)
a_try("fill /tmp", "limits")(lambda: fill("/tmp"))
a_try("fill /data", "limits")(lambda: fill(found["folder"]))
def many_files():
    folder = "%s/escape-%d" % (found["folder"], os.getpid())
    os.mkdir(folder)
    try:
        for number in range(found["files"]):
            os.close(os.open("%s/%d" % (folder, number), os.O_CREAT | os.O_WRONLY))
    finally:
        for name in os.listdir(folder):
            os.unlink(folder + "/" + name)
        os.rmdir(folder)
a_try("more files in /data than allowed", "limits")(many_files)
a_try("fill shared memory", "limits")(lambda: fill("/dev/shm"))
# The last one: it may end the whole instance.
a_try("more memory than allowed", "limits")(lambda: len([bytearray(1 << 20) for _ in range(found["megabytes"])]))

def run(name, attempt):
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if found["bare"]:
                # What one does to mounts is not the next one's affair, nor the machine's.
                libc.unshare(0x20000)
                libc.mount(b"none", b"/", None, 16384 | 262144, None)
            attempt()
            said = "1"
        except BaseException as error:
            said = "0%s: %s" % (type(error).__name__, error)
        os.write(theirs, said.encode()[:500])
        os._exit(0)
    os.close(theirs)
    said = b""
    if select.select([ours], [], [], 20)[0]:
        said = os.read(ours, 600)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ours)
    text = said.decode()
    return [text.startswith("1"), text[1:] or ("it worked" if text else "it was killed")]

for name, wall, attempt in tries:
    print(json.dumps([name, wall] + run(name, attempt)), flush=True)
