//! What warden and shim, and then anyone and a shim, say to each other.
//!
//! Launch (over the socketpair that is the shim's standard input, warden ↔ shim):
//! `Launch` → `Step::Namespaces` → `Go` → `Step::Child` → `Go` → `Step::Running` or `Step::Failed`.
//! After that the shim serves [`Request`]s on its listening socket until the instance is over.

use serde::{Deserialize, Serialize};

/// Where each descriptor of the launch frame stands.
pub const FD_LISTENER: usize = 0;
pub const FD_SPOOL_A: usize = 1;
pub const FD_SPOOL_B: usize = 2;
/// Behind them, as [`Launch`] says: the folder of a v2 cgroup, and `tasks` files of v1 cgroups.
pub const FD_CGROUPS: usize = 3;

/// The user that plain programs run as, inside the app's user namespace.
pub const APP_UID: u32 = 1000;
/// The user that init (pid 1) runs as, inside; no program of the app may signal or trace it.
pub const INIT_UID: u32 = 65533;
/// How many ids an app's range has.
pub const UID_RANGE: u32 = 65536;

/// All a shim needs to build one sandbox and run one program in it.
#[derive(Default, Serialize, Deserialize)]
pub struct Launch {
    /// Instance id, for messages.
    pub instance: String,
    pub hostname: String,
    /// First host id of the app's range; `None` in ordinary-user mode, where one id is all there is.
    pub uid_base: Option<u32>,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    pub mounts: Vec<Mount>,
    /// Files with made-up content: path inside, content.
    pub files: Vec<(String, String)>,
    /// Size of the private /tmp, in bytes.
    pub tmp_bytes: u64,
    /// The seccomp program, one `sock_filter` as `code | jt << 16 | jf << 24 | k << 32`; empty: none.
    pub seccomp: Vec<u64>,
    /// Host uids that may ask the shim anything.
    pub peers: Vec<u32>,
    /// Host uids that may ask for sockets and nothing else: the gateway.
    pub socket_peers: Vec<u32>,
    /// Bound of each of the two spool files, in bytes.
    pub spool_bytes: u64,
    /// A folder of a v2 cgroup comes along: the child is born in it (clone(2), `CLONE_INTO_CGROUP`).
    #[serde(default)]
    pub cgroup: bool,
    /// So many `tasks` files of v1 cgroups come along: the child puts itself into them. Both are much faster
    /// than being moved by another process, for which the kernel stops every fork of the machine.
    #[serde(default)]
    pub tasks: usize,
    /// Whether the warden will put an interface into the network namespace.
    pub egress: Option<Egress>,
    /// Other apps that this one calls: name and the address that the shim listens on for it.
    #[serde(default)]
    pub links: Vec<(String, [u8; 4])>,
    /// An image is the root, in place of the allow-list.
    #[serde(default)]
    pub root: Option<Root>,
    /// Folders in memory that may be written to, beside /tmp and /run; their places inside. They need `root`.
    #[serde(default)]
    pub writable: Vec<String>,
    #[serde(default)]
    pub user: RunAs,
    /// What asks the program to end; SIGTERM if nothing is said.
    #[serde(default)]
    pub stop_signal: Option<i32>,
    /// Walls left out: by `doctor` to find the guilty one, and for builds in development mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Wall>,
}

/// A wall of the sandbox that can be left out, one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wall {
    /// The allow-list root: without it the app sees the host's files.
    Root,
    /// The pid namespace.
    Pid,
    /// The network namespace.
    Net,
    /// The ids: user namespace, uid range, capabilities.
    User,
    /// The seccomp filter and no_new_privs.
    Seccomp,
    /// Landlock, behind the others: the same files, signals and abstract sockets (and no_new_privs).
    Landlock,
}

/// The oldest version (ABI) of Landlock that is used: under the first one nobody may rename or link across folders.
pub const LANDLOCK_LEAST: i32 = 2;

/// The layers of an image, unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Folders of the host from the bottom up, at least one; opened without following links.
    pub layers: Vec<String>,
    /// The first of the host's ids that their files have. They are shown with the app's ids; if `None`, as they are.
    pub owner: Option<u32>,
}

/// Whom programs run as, inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
    /// What is left of root's powers within the app's user namespace (capabilities(7)); a bit each.
    pub capabilities: u64,
}

impl Default for RunAs {
    fn default() -> Self {
        RunAs {
            uid: APP_UID,
            gid: APP_UID,
            capabilities: 0,
        }
    }
}

/// What root keeps of its powers where an app may be root: enough to change its user, own files and listen on low ports;
/// not to make devices, send raw packets or trace. CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID and
/// NET_BIND_SERVICE, as containers have it, too.
pub const ROOT_CAPABILITIES: u64 = 0b100_1111_1011;

/// A folder or file of the host that the app sees.
#[derive(Serialize, Deserialize)]
pub struct Mount {
    /// Where it is on the host; opened without following links.
    pub source: String,
    /// Where it appears, absolute.
    pub target: String,
    pub writable: bool,
    /// A missing source is passed over.
    pub optional: bool,
    /// Overlayfs' whiteouts, which are devices that stand for nothing, may be made in it.
    #[serde(default)]
    pub whiteouts: bool,
}

/// The instance's leg of the egress bridge.
#[derive(Clone, Serialize, Deserialize)]
pub struct Egress {
    /// The interface's name inside.
    pub interface: String,
    pub address: [u8; 4],
    pub prefix: u8,
    pub gateway: [u8; 4],
}

/// How far a launch is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The network namespace exists (the shim is in it); an interface may be moved in now.
    Namespaces,
    /// Pid 1 of the instance, as the host counts; it waits to be put into its cgroups.
    Child(i32),
    /// The program was executed.
    Running,
    /// What went wrong, for a person.
    Failed(String),
}

/// The warden's answer to `Namespaces` and `Child`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Go {
    On,
    Abort,
}

/// Asked on the shim's socket. Each is answered by one [`Answer`]; `Exec` by two.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Unconnected TCP sockets of the instance's network namespace: how many for IPv4 and IPv6.
    Sockets {
        v4: u8,
        v6: u8,
    },
    /// The listening sockets of the app's links.
    Links,
    Status,
    /// SIGTERM now, or what the image names; SIGKILL after the time-out.
    Stop {
        timeout_ms: u64,
    },
    /// Run a program beside the app; descriptors 0, 1, 2 come along.
    Exec(Exec),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Exec {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Make descriptor 0 the controlling terminal.
    pub terminal: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// As many descriptors come along, IPv4 first.
    Sockets,
    /// Names; as many descriptors come along.
    Links(Vec<String>),
    Status(Status),
    Stopping,
    ExecStarted,
    ExecEnded(Exit),
    Refused(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// Pid 1 of the instance, as the host counts.
    pub init: i32,
    pub stopping: bool,
    /// Every TCP port of the namespace that is listened on, for "it listens on 8000, not on 3000".
    pub listening: Vec<Listening>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    pub address: std::net::IpAddr,
    pub port: u16,
}

/// A shim's last word on its program, in the spool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ended {
    pub exit: Exit,
    /// We had asked it to stop: its end is no failure, whoever looks at it, and whenever.
    pub told: bool,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It never ran: why.
    NotStarted(String),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exited with code {code}"),
            Exit::Signal(9) => write!(f, "was killed (SIGKILL)"),
            Exit::Signal(11) => write!(f, "crashed (SIGSEGV)"),
            Exit::Signal(6) => write!(f, "aborted (SIGABRT)"),
            Exit::Signal(15) => write!(f, "ended on SIGTERM"),
            Exit::Signal(31) => write!(f, "was killed for a forbidden system call (SIGSYS)"),
            Exit::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Exit::NotStarted(why) => write!(f, "could not start: {why}"),
        }
    }
}
