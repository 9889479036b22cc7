//! What `control` may ask of the warden, the only process of ours that is root. No request holds a
//! host path, a uid or shell text: names and digests only, which the warden checks and resolves itself.

use serde::{Deserialize, Serialize};

use crate::gateway::Secret;

/// Which folder becomes `/app`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tree {
    /// An uploaded folder, by its content digest (64 hex digits).
    Source { digest: String },
    /// The result of a build, by its key (64 hex digits).
    Built { key: String },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes.
    pub memory: u64,
    /// Thousandths of a core.
    pub cpu_millis: u32,
    pub pids: u32,
    /// What the kernel takes back from it last, in bytes (v2).
    #[serde(default)]
    pub guaranteed: u64,
}

/// One instance to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    pub instance: String,
    pub app: String,
    pub deployment: u64,
    pub tree: Tree,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub limits: Limits,
    pub data: bool,
    pub egress: bool,
    /// Names of the app's links, in the order of their addresses.
    #[serde(default)]
    pub links: Vec<String>,
    /// The bound of `/data`.
    #[serde(default)]
    pub quota: Option<Quota>,
    /// With `egress`: all that it may reach, as `hutong.toml` has it; none: every public address.
    #[serde(default)]
    pub egress_list: Option<Vec<String>>,
    /// An image is the root. `env` is then all that the program gets, and `tree` is seen only where this says.
    #[serde(default)]
    pub image: Option<ImageRoot>,
}

/// An image as the root of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRoot {
    pub layers: ImageLayers,
    /// Where the release's files appear.
    pub mount: Option<String>,
    /// Folders that may be written to, in memory.
    pub writable: Vec<String>,
    pub cwd: String,
    /// User and group as the image says; the app's own if `None`.
    pub user: Option<(u32, u32)>,
    /// May run as root inside.
    pub allow_root: bool,
    pub stop_signal: Option<i32>,
}

/// Where an image's layers are, unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageLayers {
    /// By the digests of their archives (`sha256:HEX`), from the bottom up; shared between apps.
    Stacked(Vec<String>),
    /// All in one folder with the app's ids, by the digest of the image (64 hex digits).
    Flat(String),
}

/// A layer to unpack: the digests (`sha256:HEX`) of what is in control's store, and of the archive in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedLayer {
    pub blob: String,
    pub diff_id: String,
}

/// Layers of an image to unpack, in a sandbox that sees them and nothing else.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unpack {
    /// A step of a deployment's build.
    pub instance: String,
    pub app: String,
    /// One, or with `flat` all of an image, from the bottom up.
    pub layers: Vec<PackedLayer>,
    /// Over each other, in one folder with the app's ids.
    pub flat: bool,
    /// Of what comes out, in bytes.
    pub bound: u64,
    /// And how many files and folders; 0 is not said.
    #[serde(default)]
    pub entries: u64,
    pub limits: Limits,
}

/// A bound of an app's `/data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    pub bytes: u64,
    /// Nothing of the app runs: what it holds may be moved.
    pub alone: bool,
}

/// What an app keeps on disk, in bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskUse {
    pub app: String,
    pub data: u64,
    /// The file system of its own that `/data` is, if it is one.
    pub bound: Option<u64>,
    /// Built releases.
    pub built: u64,
    /// What its builds keep for the next one.
    #[serde(default)]
    pub caches: u64,
    /// `data` could be measured.
    pub known: bool,
}

/// One build to run: a writable copy of `source` at `/app`, `argv` in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Build {
    pub instance: String,
    pub app: String,
    pub source: String,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub limits: Limits,
    /// It may reach the internet.
    pub egress: bool,
    /// Names and values of what it finds in `/run/secrets`.
    #[serde(default)]
    pub secrets: Vec<(String, Secret)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Start(Box<Start>),
    /// Starts a build; it shows up in `List` like an instance and ends with an exit record.
    Build(Box<Build>),
    /// The next step of a build goes on in the folder that the step before left.
    BuildStep(Box<Build>),
    /// Keeps what the build left as the built tree `key`, unless one of its secrets is in it.
    BuildKeep {
        instance: String,
        app: String,
        key: String,
        #[serde(default)]
        secrets: Vec<(String, Secret)>,
    },
    /// Throws away what an app's builds keep for the next one.
    DropCache {
        app: String,
    },
    /// Throws away what a build left.
    BuildDrop {
        instance: String,
    },
    /// Starts to unpack; it shows up in `List` like a build and ends with an exit record.
    Unpack(Box<Unpack>),
    /// Keeps what was unpacked: a layer by its digest (`sha256:HEX`), or an image of the app by its own (64 hex digits).
    UnpackKeep {
        instance: String,
        app: String,
        flat: bool,
        digest: String,
    },
    /// Whether layers can be stacked here; else each app gets images of its own.
    CanStack,
    /// Whether the layers of an image are all there.
    HasLayers {
        app: String,
        layers: ImageLayers,
    },
    /// The image's /etc/passwd.
    Passwd {
        app: String,
        layers: ImageLayers,
    },
    /// Throws away the layers (`sha256:HEX`) and the images of apps that are not among these.
    ImagesSweep {
        layers: Vec<String>,
        flat: Vec<(String, String)>,
    },
    /// Ends builds and throws away what builds left, but for those in `keep` (ids without the step).
    BuildSweep {
        keep: Vec<String>,
    },
    /// SIGKILL to everything of the instance.
    Kill {
        instance: String,
    },
    /// Freezes every process of an instance and cuts its way out, or undoes that.
    Freeze {
        instance: String,
        frozen: bool,
    },
    /// What an app's processes are and hold.
    Examine {
        app: String,
    },
    List,
    /// What these apps keep on disk. Takes as long as looking at every file does.
    Disk {
        apps: Vec<String>,
    },
    /// Our own processes.
    System,
    Doctor,
    /// What belongs to no app; `apps` are all there are, `builds` those under way. Those of `fix` (kind and
    /// what, as an earlier answer said) are removed.
    Leaks {
        apps: Vec<String>,
        builds: Vec<String>,
        fix: Vec<(String, String)>,
    },
    /// The warden replaces itself by the program that now lies where its own was.
    Upgrade,
    /// Deletes a built tree.
    DropBuilt {
        app: String,
        key: String,
    },
    HasBuilt {
        app: String,
        key: String,
    },
    /// Deletes an app's `/data`.
    DropData {
        app: String,
    },
    /// Copies an app's `/data` aside, as the snapshot of this number; one that is there already stays as it is. `Later` while
    /// it is copied: ask again. The newest few are kept, and the oldest from the number `keep` on (0: none).
    Snapshot {
        app: String,
        id: u64,
        #[serde(default)]
        keep: u64,
    },
    /// An app's snapshots.
    Snapshots {
        app: String,
    },
    DropSnapshot {
        app: String,
        id: u64,
    },
    /// Puts a snapshot in the place of the app's `/data`. `Later` while something of the app runs, and while it is done.
    Restore {
        app: String,
        id: u64,
    },
    /// Makes the `/data` of the app `to` of that of `from`, if it has none. `Later` while it is copied.
    CopyData {
        from: String,
        to: String,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Done,
    /// A build's result was kept; its content digest, if this was the first to ask.
    Kept(Option<String>),
    Yes(bool),
    Text(Option<String>),
    Instances(Vec<Instance>),
    Evidence(Vec<Evidence>),
    Disk(Vec<DiskUse>),
    System(Vec<Process>),
    Doctor(Vec<Wanted>),
    Leaks(Vec<Leak>),
    Snapshots(Vec<Snapshot>),
    Failed(String),
    /// Not now, for a reason that has nothing to do with the question: ask again.
    Later(String),
}

/// A copy of an app's `/data` as it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    pub id: u64,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    pub bytes: u64,
    /// Files and links.
    pub files: u64,
    /// Sockets and devices.
    pub left_out: u64,
    /// Something was written while it was copied.
    pub changed: bool,
}

/// An instance as the warden finds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Instance {
    pub instance: String,
    pub app: String,
    pub deployment: u64,
    pub build: bool,
    /// The shim's process id.
    pub pid: i32,
    /// Milliseconds since 1970.
    pub started_at: u64,
    /// Milliseconds since boot (CLOCK_BOOTTIME): what decisions are made by.
    pub started_steady: u64,
    /// Where the gateway reaches it, if it has an address of its own: it is a container.
    #[serde(default)]
    pub container: Option<Reach>,
    /// It was killed, and the kernel has not let go of it yet.
    pub ending: bool,
    /// Its processes are frozen.
    #[serde(default)]
    pub frozen: bool,
    /// They are meant to be.
    #[serde(default)]
    pub held: bool,
    /// What the app's processes use, as the kernel charges it, in bytes.
    pub memory: u64,
    /// Of that, what the kernel takes back before it kills: caches of files. 0 where much is left of the cap.
    #[serde(default)]
    pub reclaimable: u64,
    pub oom_kills: u64,
    pub cpu_usec: u64,
}

/// How a container is reached, and how it says that it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Known once it runs.
    pub address: Option<std::net::IpAddr>,
    pub health: Option<crate::docker::Health>,
}

/// What the processes of one instance are and hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evidence {
    pub instance: String,
    pub processes: Vec<Suspect>,
    /// Tables of its network, as the kernel writes them: name and text.
    pub tables: Vec<(String, String)>,
    /// Nothing was left out for its size.
    pub complete: bool,
}

/// One process of an app. Its environment is not among it: that holds secrets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Suspect {
    pub pid: i32,
    /// As it is called inside.
    pub inner_pid: i32,
    pub parent: i32,
    pub uid: u32,
    pub name: String,
    pub state: String,
    pub command: String,
    pub program: String,
    pub folder: String,
    pub threads: u32,
    pub memory_kb: u64,
    /// Milliseconds since boot.
    pub started_steady: u64,
    /// Number and target of each open file.
    pub files: Vec<String>,
}

/// One of our own processes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    pub role: String,
    pub pid: i32,
    pub uid: u32,
    /// PSS, in bytes (proc_pid_smaps(5)).
    pub memory_bytes: u64,
    pub app: Option<String>,
    pub instance: Option<String>,
}

/// Something that lies around and belongs to no app.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Leak {
    /// `process`, `cgroup`, `mount`, `interface`, `nft table`, `file`, `folder`, `id range`; `busy` if it
    /// could not be looked at now.
    pub kind: String,
    pub what: String,
    pub removed: bool,
    /// Why it could not be removed.
    pub problem: Option<String>,
}

/// A wall of isolation on this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wanted {
    /// The word for `--accept-missing`.
    pub wall: String,
    pub what: String,
    pub stands: bool,
    /// What was found.
    pub found: String,
    /// What to do where it does not stand; empty where it does.
    pub remedy: String,
}

/// The first frame that the warden sends to `control`, over its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub struct ControlSetup {
    pub data_dir: String,
    pub run_dir: String,
    /// uid and gid to take on; `None` in ordinary-user mode.
    pub drop_to: Option<(u32, u32)>,
    /// The group whose members may read static trees.
    pub gateway_gid: Option<u32>,
    /// uids that may use the API's socket.
    pub admins: Vec<u32>,
    pub http: String,
    pub https: Option<String>,
    /// How the API is reached, for messages: `unix:PATH` or `ADDR`.
    pub api: String,
    /// The API listens on TCP: callers need the token.
    pub api_is_tcp: bool,
    pub workers: usize,
    pub settings: ServerSettings,
}

/// A container engine that the server's owner lets us use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DockerSettings {
    /// Its socket's path.
    pub socket: String,
    /// Where networks of apps are taken from (CIDR).
    pub pool: String,
    /// Containers of others are routed by their labels.
    #[serde(default)]
    pub labels: bool,
    /// Also those without the label `traefik.enable`.
    #[serde(default)]
    pub expose_by_default: bool,
}

/// The keys of the server file that `control` uses.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ServerSettings {
    /// The name by which the API on TCP is asked from other machines, through a server that speaks TLS with them.
    #[serde(default)]
    pub api_host: Option<String>,
    pub keep_releases: usize,
    pub upload_bytes: u64,
    pub pip_index: Option<String>,
    pub npm_registry: Option<String>,
    pub proxy: Option<String>,
    pub ca_bundle: Option<String>,
    /// The platform's own host: git, webhooks, the registry.
    #[serde(default)]
    pub host: Option<String>,
    /// Where the registry is asked without TLS, on loopback.
    #[serde(default)]
    pub registry: Option<std::net::SocketAddr>,
    /// The table `[acme]` as JSON: it may hold keys.
    #[serde(default)]
    pub acme: Option<crate::gateway::Secret>,
    /// Networks that apps may name servers in which Hutong does not run.
    #[serde(default)]
    pub allow_upstreams: Vec<String>,
    /// Private networks that apps may list in `egress`.
    #[serde(default)]
    pub egress_allow: Vec<String>,
    /// As in [`GatewaySetup`].
    #[serde(default)]
    pub trusted_proxies: Vec<String>,
    #[serde(default)]
    pub proxy_protocol: bool,
    #[serde(default)]
    pub max_connections_per_ip: u32,
    #[serde(default)]
    pub docker: Option<DockerSettings>,
    /// What an app without a bound of its own may keep in `/data`, in bytes.
    #[serde(default)]
    pub app_disk: u64,
    /// What is kept free on the disk, in bytes; by its size if nothing is said.
    #[serde(default)]
    pub disk_reserve: Option<u64>,
    /// Memory that apps and builds may be guaranteed in all, in bytes; by the machine's if nothing is said.
    #[serde(default)]
    pub app_memory: Option<u64>,
}

/// The first frame that the warden sends to the gateway. Descriptors: the control socket's listener,
/// then `workers` HTTP listeners, as many for HTTPS if `https`, two spool files per worker, and a pidfd of every gateway before this one
/// that still has requests.
#[derive(Debug, Serialize, Deserialize)]
pub struct GatewaySetup {
    pub data_dir: String,
    pub run_dir: String,
    pub drop_to: Option<(u32, u32)>,
    pub control_uid: u32,
    pub workers: usize,
    pub https: bool,
    pub spool_bytes: u64,
    pub predecessors: usize,
    /// Networks of proxies before us, who may say who the visitor is.
    #[serde(default)]
    pub trusted_proxies: Vec<String>,
    /// They say it with the PROXY protocol, too.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Connections of one address at once; 0 for any number.
    #[serde(default)]
    pub max_connections_per_ip: u32,
}

/// The first frame for the resolver. Descriptors: a UDP socket and a TCP listener on the bridge for those who may ask
/// for every name, and as many for those who have a list.
#[derive(Debug, Serialize, Deserialize)]
pub struct ResolverSetup {
    pub drop_to: Option<(u32, u32)>,
    pub upstreams: Vec<std::net::SocketAddr>,
    /// So many [`Place`](crate::resolver::Place)s follow, each in a frame of its own.
    #[serde(default)]
    pub places: usize,
}
