//! What control, the Docker driver and the warden say to each other. The driver is the only process of ours that may
//! use Docker's socket, which is as good as being root: like the warden it takes names and digests and no path.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::shim::{Exec, Exit};
use crate::warden::{Evidence, Limits, Quota, Tree};

/// Asked by control on the driver's socket. Each is answered by one [`Answer`]; `Exec` by two, `Watch` by any number.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Has the engine fetch an image, and says which one it is; none that was built for another app than this.
    Resolve {
        image: String,
        pull: Pull,
        #[serde(default)]
        app: String,
    },
    /// Has the engine build an image of a Dockerfile. A socket comes along by which the context (a tar archive) can be
    /// read. Answered by any number of [`Answer::Output`], then by `Resolved` or `Refused`. Who hangs up has ended it.
    Build(Box<Build>),
    /// Removes images that were built here, but for these (SHA-256 in hex); answered at once.
    SweepImages {
        keep: Vec<String>,
    },
    /// Answered at once; how it went on shows in `List`, or in the spool.
    Start(Box<Start>),
    List,
    /// SIGTERM now, SIGKILL after the time-out; answered at once.
    Stop {
        instance: String,
        timeout_ms: u64,
    },
    Kill {
        instance: String,
    },
    /// Freezes every process of a container, or undoes that; answered at once.
    Freeze {
        instance: String,
        frozen: bool,
    },
    /// What an app's processes are and hold.
    Examine {
        app: String,
    },
    /// Runs a program beside the app; descriptors 0, 1, 2 come along.
    Exec {
        instance: String,
        exec: Exec,
    },
    /// [`Answer::Changed`] whenever something began or ended.
    Watch,
    /// Removes what belongs to apps that are not among these; answered at once, or when networks are gone, too.
    Sweep {
        apps: Vec<String>,
        wait: bool,
    },
    /// About the engine.
    About,
    /// Containers that others started and that want to be routed.
    Foreign,
}

/// When an image is fetched although the engine has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pull {
    #[default]
    Missing,
    Always,
    Never,
}

/// One image to build.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Build {
    pub app: String,
    /// What goes in, 64 hex digits: an image that was built of the same is used again.
    pub key: String,
    /// It is built anew even so, and nothing of earlier builds is used.
    pub fresh: bool,
    /// What the stages of this app's builds are labelled with, 64 hex digits.
    pub stages: String,
    /// Where the Dockerfile lies in the context.
    pub dockerfile: String,
    /// The images that it begins with.
    pub bases: Vec<String>,
    /// Of each container that the build runs.
    pub limits: Limits,
    /// What it runs may reach the internet.
    pub egress: bool,
    pub timeout_ms: u64,
    /// So many bytes of the engine's disk are to stay free.
    pub disk_reserve: u64,
}

/// One container to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    pub instance: String,
    pub app: String,
    pub deployment: u64,
    /// The image's id: SHA-256 in hex.
    pub image: String,
    /// In place of the image's command, if there is one.
    pub argv: Vec<String>,
    /// In place of the image's entry point.
    pub entrypoint: Option<Vec<String>>,
    pub env: Vec<(String, String)>,
    pub limits: Limits,
    pub data: bool,
    pub egress: bool,
    /// With `egress`: all that it may reach, as `hutong.toml` has it; none: every public address.
    #[serde(default)]
    pub egress_list: Option<Vec<String>>,
    /// Where the release's files appear.
    pub mount: Option<(Tree, String)>,
    /// Folders that may be written to, in memory.
    pub writable: Vec<String>,
    /// Runs as the app's own id, whatever the image says.
    pub own_user: bool,
    /// May run as root inside.
    pub allow_root: bool,
    /// Names of the app's links, in the order of their addresses.
    #[serde(default)]
    pub links: Vec<String>,
    /// The bound of `/data`.
    #[serde(default)]
    pub quota: Option<Quota>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Done,
    /// A line that a build printed.
    Output(String),
    Resolved(Image),
    Instances(Vec<Container>),
    Evidence(Vec<Evidence>),
    Changed,
    About(About),
    Foreign(Vec<Foreign>),
    ExecStarted,
    ExecEnded(Exit),
    Refused(String),
    /// The engine does not answer; ask again.
    Later(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Image {
    /// SHA-256 in hex.
    pub id: String,
    /// It says no user, or root.
    pub is_root: bool,
    /// The engine maps root to somebody else.
    pub remapped: bool,
    /// It brings a command or entry point.
    pub has_command: bool,
    /// What registries call it, as far as the engine knows: `NAME@DIGEST`.
    #[serde(default)]
    pub digests: Vec<String>,
}

/// A container of ours that runs, or is about to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Container {
    pub instance: String,
    pub app: String,
    pub deployment: u64,
    /// Milliseconds since 1970.
    pub started_at: u64,
    /// Milliseconds since boot (CLOCK_BOOTTIME).
    pub started_steady: u64,
    /// Where the gateway reaches it, once it runs.
    pub address: Option<IpAddr>,
    /// What the image's own health check says.
    pub health: Option<Health>,
    pub frozen: bool,
    pub pid: i32,
    /// As the kernel charges it, in bytes.
    pub memory: u64,
    /// Of that, what the kernel takes back before it kills; 0 where much is left of the cap.
    #[serde(default)]
    pub reclaimable: u64,
    pub cpu_usec: u64,
}

/// A container that somebody else started. It is read, and never touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// The engine's: 64 hex digits.
    pub id: String,
    pub name: String,
    /// Seconds since 1970.
    pub created: i64,
    /// What compose made it of: project and service.
    #[serde(default)]
    pub compose: Option<(String, String)>,
    /// By their names.
    pub networks: Vec<ForeignNetwork>,
    /// TCP ports that it says it listens on.
    pub ports: Vec<u16>,
    /// Those that begin with `traefik.`.
    pub labels: BTreeMap<String, String>,
    /// They were too many, too long, or odd: none of them is here.
    #[serde(default)]
    pub is_cut: bool,
    /// What its own health check says, if it has one.
    #[serde(default)]
    pub health: Option<Health>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignNetwork {
    pub name: String,
    /// Where the container is there.
    pub address: Option<IpAddr>,
    /// Why the gateway does not reach it there.
    #[serde(default)]
    pub problem: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    Starting,
    Healthy,
    Unhealthy,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    pub version: String,
    pub remapped: bool,
}

/// The first frame that the warden sends to the driver; its listening sockets come along: control's, and the gateway's.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// The engine's socket.
    pub socket: String,
    /// A folder of the driver's own.
    pub folder: String,
    /// Tells this server's bridges and names from those of others on the same engine.
    pub tag: String,
    /// The same, and nobody can guess it: what carries it is ours.
    pub server: String,
    /// uid and gid to take on, and the group that may use the engine's socket; `None` in ordinary-user mode.
    pub drop_to: Option<(u32, u32, u32)>,
    pub control_uid: u32,
    pub gateway_uid: u32,
    pub spool_bytes: u64,
    /// The system calls that containers may make, as the engine takes it.
    pub seccomp: String,
    /// The networks of apps are taken from this one (CIDR).
    pub pool: String,
    /// Containers of others are looked at, too.
    #[serde(default)]
    pub labels: Option<Labels>,
}

/// Which containers of others want to be routed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Labels {
    /// Also those without the label `traefik.enable`.
    pub expose_by_default: bool,
}

/// What a gateway asks on the driver's socket for links, once a line: the sockets that listen for a container's calls
/// of other apps. The answer is a shim's (`Links` or `Refused`); the line ends when the container does.
#[derive(Debug, Serialize, Deserialize)]
pub struct LinksOf {
    pub instance: String,
}

/// What the driver asks of the warden, over its standard input.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Opens the spool of an instance; makes it if it is not there.
    Spool { instance: String },
    /// SIGKILL to a process of a container (the engine's id, 64 hex digits).
    End { container: String, pid: i32 },
    /// Sockets that listen in a container's network, one for each link. `pid`: the container's first process.
    Listen {
        container: String,
        pid: i32,
        links: usize,
    },
    /// What the processes of a container are and hold.
    Examine { instance: String, container: String },
    /// The walls around containers' networks, and what the container gets to see of the host.
    Prepare {
        app: String,
        tree: Option<Tree>,
        /// The user that the container runs as, if it is not the app's own.
        user: Option<(u32, u32)>,
        data: bool,
        egress: bool,
        /// It has a list of what it may reach.
        #[serde(default)]
        listed: bool,
        quota: Option<Quota>,
    },
    /// What containers on a bridge may reach: all else is shut to them, also before this is asked.
    Fence {
        bridge: String,
        /// The bridge's network (CIDR).
        network: String,
        list: Vec<String>,
        /// They may run already: what the server's owner does not allow any more is left out, not refused.
        again: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    Done,
    Evidence(Evidence),
    /// Two descriptors come along.
    Spool,
    /// As many descriptors as were asked for come along.
    Listening,
    Prepared(Prepared),
    /// It is being made: ask again.
    Later(String),
    Refused(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// Who the program is to run as.
    pub runs_as: (u32, u32),
    /// Where the tree lies on the host.
    pub tree: Option<String>,
    /// Where `/data` lies on the host.
    pub data: Option<String>,
    /// The name server for containers with egress.
    pub resolver: Option<[u8; 4]>,
    /// What its owner should know of its disk.
    pub note: Option<String>,
}

/// Which way out a bridge of containers has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    None,
    /// To every public address.
    Open,
    /// To what is listed: each list has a bridge of its own.
    Listed,
}

/// The first letters of the bridges of containers; the walls go by them.
pub fn bridge_prefix(tag: &str, way: Way) -> String {
    let class = match way {
        Way::None => 'n',
        Way::Open => 'i',
        Way::Listed => 'l',
    };
    format!("hd{class}{}", &tag[..tag.len().min(6)])
}
