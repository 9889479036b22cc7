//! The bodies of the REST API. Times are milliseconds since 1970-01-01 UTC, sizes are bytes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An error, as RFC 9457 lays it out (`application/problem+json`).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `about:blank`, or a word for programs such as `unknown-tree`.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    /// What is wrong, for a person.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// An app as `hutong apps` shows it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct App {
    pub name: String,
    pub state: AppState,
    /// Hosts, or hosts with a path.
    pub domains: Vec<String>,
    /// The release that serves; none before the first one got healthy.
    pub release: Option<u64>,
    /// Instances that run now.
    pub instances: Vec<Instance>,
    /// `command`, `static`, `upstream` or `background`.
    pub kind: String,
    /// What runs beside the program that serves: workers and timed jobs.
    #[serde(default)]
    pub processes: Vec<Process>,
    /// How many instances are wanted.
    pub wanted_instances: u32,
    /// What that number goes by, where it follows what there is to do.
    #[serde(default)]
    pub scaling: Option<Scaling>,
    /// What the app's processes use now.
    pub memory_bytes: u64,
    /// The cap for each instance.
    pub memory_limit_bytes: u64,
    /// What it keeps on disk; none before that was measured.
    #[serde(default)]
    pub disk: Option<Disk>,
    /// The deployment under way.
    pub deploying: Option<Deployment>,
    /// The last deployment, where that is or was a canary.
    #[serde(default)]
    pub canary: Option<Canary>,
    /// The release before, while it is kept ready to serve again at once.
    #[serde(default)]
    pub standby: Option<Standby>,
    /// The tag of another registry that it follows.
    #[serde(default)]
    pub watch: Option<ImageWatch>,
    /// The snapshot that its data is being made of; until then nothing of it runs.
    #[serde(default)]
    pub restoring: Option<u64>,
    /// Why the last one could not be put back.
    #[serde(default)]
    pub restore_problem: Option<String>,
    /// Why the app is in this state, where there is something to say.
    pub message: Option<String>,
    /// Routes that do not hold, and why.
    pub warnings: Vec<String>,
    /// The folder of app files that it was last deployed from as a whole; none if it came otherwise.
    #[serde(default)]
    pub applied_from: Option<String>,
}

/// A copy of an app's data as it was before a release command.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// The deployment that it was taken for.
    pub id: u64,
    /// That deployment's release, if it is still known.
    pub release: Option<u64>,
    pub created_at: u64,
    pub bytes: u64,
    /// Files and links.
    pub files: u64,
    /// Sockets and devices, which are not copied.
    pub left_out: u64,
    /// Something was written while it was copied: its files are not all of one moment.
    pub changed: bool,
}

/// A tag of another registry, and how looking at it does.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageWatch {
    /// `NAME:TAG`.
    pub image: String,
    pub interval_ms: u64,
    /// Since the server's control plane was started; none if not yet.
    pub looked_at: Option<u64>,
    pub failing_since: Option<u64>,
    /// Why it fails.
    pub problem: Option<String>,
}

/// An app's file as it was deployed, and what was declared beside it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AppFile {
    pub app: String,
    /// The release that is wanted: the one under way, else the one that serves, else the newest.
    pub release: u64,
    pub state: ReleaseState,
    /// Content digest of the folder (SHA-256).
    pub digest: String,
    /// `hutong.toml`, to the byte.
    pub text: String,
    /// Its owner stopped it.
    pub stopped: bool,
    /// The number of instances that its owner set beside the file.
    pub scale: Option<u32>,
    /// Names of variables that were set beside the file; their values stay inside.
    pub variables: Vec<String>,
}

/// A file of an uploaded tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TreeFile {
    /// Relative to the app's folder.
    pub path: String,
    pub executable: bool,
    /// SHA-256 in hex.
    pub sha256: String,
}

/// A new release that gets a part of the visitors, and more as long as it does well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Canary {
    /// Its name, if it is a variant of an A/B test: it stays at its share until its owner ends that.
    #[serde(default)]
    pub variant: Option<String>,
    pub deployment: u64,
    pub release: u64,
    /// `rolling` while it is under way.
    pub state: DeploymentState,
    /// From 1.
    pub step: u32,
    /// The share of each step in percent; with the last it takes over.
    pub steps: Vec<u32>,
    /// Its share of the visitors now.
    pub share: u32,
    /// How long a step lasts at least.
    pub every_ms: u64,
    /// How long this one has lasted; none where nothing is known of it yet, or it is over.
    pub elapsed_ms: Option<u64>,
    /// What was counted in this step.
    pub stable: Option<CanaryCounts>,
    pub canary: Option<CanaryCounts>,
    /// Why it goes no further yet.
    pub waits: Option<String>,
    /// The last decision, and why.
    pub decision: Option<String>,
}

/// How a release did in a step of a canary, or in an A/B test so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CanaryCounts {
    pub requests: u64,
    /// Those of them that got 5xx, none or half an answer, or waited too long for one.
    pub errors: u64,
    /// Within how many microseconds 50 (95, 99) of 100 answers began.
    #[serde(default)]
    pub p50_us: Option<u64>,
    pub p95_us: Option<u64>,
    pub p99_us: Option<u64>,
}

/// A release that does not serve, and could at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Standby {
    pub release: u64,
    pub left_ms: u64,
}

/// What an app keeps on disk, in bytes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// In `/data`.
    pub data_bytes: u64,
    /// What it may keep there; none for an app without `/data`.
    pub data_limit_bytes: Option<u64>,
    /// The kernel keeps the limit: `/data` is a disk of its own. Else it is measured now and then.
    pub is_enforced: bool,
    /// Built releases.
    pub releases_bytes: u64,
    /// What builds keep for the next one.
    #[serde(default)]
    pub caches_bytes: u64,
    pub logs_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AppState {
    /// Requests are answered.
    Running,
    /// Starting, or a first deployment is under way.
    Starting,
    /// It ends again and again, or never got healthy.
    Failing,
    Stopped,
    /// Nobody asked for it for a while; the next request starts it.
    Asleep,
    /// Its owner's hours say that it does not run now.
    Down,
    /// In quarantine: nobody reaches it, and its processes are frozen.
    Isolated,
    /// Removed; its data is kept for a while.
    Removed,
}

impl std::fmt::Display for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            AppState::Running => "running",
            AppState::Starting => "starting",
            AppState::Failing => "failing",
            AppState::Stopped => "stopped",
            AppState::Asleep => "asleep",
            AppState::Down => "down",
            AppState::Isolated => "isolated",
            AppState::Removed => "removed",
        })
    }
}

/// What the number of an app's instances goes by.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Scaling {
    pub min: u32,
    pub max: u32,
    /// The owner set a number, which holds until the next deploy.
    pub fixed: bool,
    /// How much of its processor limit an instance uses, in percent, on average; none if that is not known.
    pub cpu_percent: Option<u32>,
    /// How much it is meant to.
    pub cpu_aim_percent: u32,
    /// Requests under way or waiting, of all instances.
    pub requests: Option<u32>,
    /// How many each instance is meant to have.
    pub requests_aim: u32,
}

/// An app in quarantine.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Isolation {
    pub app: String,
    /// Instances whose processes are frozen.
    pub frozen: Vec<String>,
    /// Instances whose processes could not be frozen yet.
    pub moving: Vec<String>,
    /// Every worker of the gateway has been told; no request reaches it any more.
    pub is_cut: bool,
}

/// A worker or a timed job.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Process {
    pub name: String,
    /// `worker` or `cron`.
    pub kind: String,
    pub command: Vec<String>,
    /// How many are wanted; 0 for timed jobs.
    pub wanted: u32,
    pub running: u32,
    /// The cron expression of a timed job, and its time zone.
    pub schedule: Option<String>,
    pub zone: Option<String>,
    /// When a timed job runs next.
    pub next_at: Option<u64>,
    /// The last time it ran, or should have.
    pub last: Option<Run>,
    /// Failures in a row, and why the last one was.
    pub failures: u32,
    pub problem: Option<String>,
}

/// A program that runs once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Run {
    pub id: u64,
    pub app: String,
    /// The timed job that it is; none if somebody asked for it.
    pub name: Option<String>,
    /// Empty: the timed job's own.
    pub command: Vec<String>,
    /// `wanted`, `running`, `ok`, `failed`, `stopped`; `missed` while the server did not run, `skipped` because the
    /// run before it went on.
    pub state: String,
    pub detail: Option<String>,
    /// 128 + N for a program that signal N ended.
    pub exit_code: Option<i32>,
    pub instance: Option<String>,
    /// When it was due or asked for.
    pub due_at: u64,
    pub started_at: Option<u64>,
    pub ended_at: Option<u64>,
}

impl Run {
    pub fn is_over(&self) -> bool {
        !matches!(self.state.as_str(), "wanted" | "running")
    }
}

/// Asks for a program to be run once, beside the app and like it; or for a timed job now.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct RunRequest {
    /// The program and its arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// The name of a timed job.
    #[serde(default)]
    pub cron: Option<String>,
    /// How long it may take; default an hour, or what the timed job says.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    pub id: String,
    /// `web`, `run`, or the name of a worker or timed job.
    #[serde(default)]
    pub process: String,
    pub deployment: u64,
    pub release: Option<u64>,
    /// `starting`, `healthy`, `failing`, `draining` or `stopping`; `running` for what serves no visitors.
    pub state: String,
    pub started_at: u64,
    pub memory_bytes: u64,
    /// Processor time used so far, in microseconds.
    pub cpu_usec: u64,
    /// The last probe's words, where it failed.
    pub detail: Option<String>,
}

/// One attempt to make a release serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Deployment {
    pub id: u64,
    pub app: String,
    pub release: u64,
    /// `deploy`, `rollback`, `restart` or `env`.
    pub kind: String,
    pub state: DeploymentState,
    /// What it does or waits for now.
    pub doing: Option<String>,
    /// The variant that it is, while that has its share of the visitors: it goes on until its owner ends it.
    #[serde(default)]
    pub variant: Option<String>,
    /// Why it failed.
    pub reason: Option<String>,
    /// The last lines of output of what failed.
    pub log: Vec<String>,
    pub created_at: u64,
    pub finished_at: Option<u64>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeploymentState {
    Building,
    Rolling,
    Done,
    Failed,
    /// A newer deployment took its place before it was done.
    Superseded,
}

impl DeploymentState {
    pub fn is_over(self) -> bool {
        !matches!(self, DeploymentState::Building | DeploymentState::Rolling)
    }
}

/// A release: content and configuration, immutable.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Release {
    /// Counts from 1 for each app.
    pub id: u64,
    /// Content digest of the folder (SHA-256).
    pub digest: String,
    pub created_at: u64,
    pub state: ReleaseState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReleaseState {
    /// It serves.
    Active,
    /// Its deployment is under way.
    Deploying,
    /// It served, and can be rolled back to.
    Kept,
    /// It never got healthy.
    Failed,
}

impl std::fmt::Display for ReleaseState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            ReleaseState::Active => "active",
            ReleaseState::Deploying => "deploying",
            ReleaseState::Kept => "kept",
            ReleaseState::Failed => "failed",
        })
    }
}

/// Deploys a tree that the server has.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeployRequest {
    /// Content digest of a tree that was uploaded.
    pub digest: String,
    /// The text of hutong.toml; the tree's own must be the same. With it a dry run needs no upload.
    #[serde(default)]
    pub spec: Option<String>,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// The folder of app files that it comes from, where they are applied as a whole: at most 500 printable characters.
    #[serde(default)]
    pub applied_from: Option<String>,
    /// In place of the image that hutong.toml names.
    #[serde(default)]
    pub image: Option<String>,
    /// The release is this variant of an A/B test, whatever strategy hutong.toml names.
    #[serde(default)]
    pub variant: Option<String>,
    /// Its part of the visitors in percent; default: what hutong.toml says, else 50.
    #[serde(default)]
    pub share: Option<u32>,
    /// The build uses nothing of earlier ones, and what they kept for it is thrown away.
    #[serde(default)]
    pub no_cache: bool,
}

/// A registry that the server has a name and a password for.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RegistryLogin {
    pub host: String,
    pub user: String,
    /// Milliseconds since 1970.
    pub updated_at: u64,
}

/// A name and a password for a registry; the password is stored encrypted and never given back.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct RegistryPassword {
    pub user: String,
    pub password: String,
}

/// An image that was taken in.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TakenImage {
    /// What it is called: the `image` of a deployment.
    pub image: String,
    /// Of its manifest.
    pub digest: String,
}

/// What builds of an app are given: names, each a file in `/run/secrets` while a build runs.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BuildSecret {
    pub name: String,
    pub updated_at: u64,
}

/// What a deployment would do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PlanAnswer {
    /// Set when it was not a dry run.
    pub deployment: Option<Deployment>,
    /// One line each, in order.
    pub steps: Vec<String>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RollbackRequest {
    /// Default: the newest one before what serves that got healthy.
    pub release: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ScaleRequest {
    pub instances: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EnvChange {
    /// Variables to set; values are stored encrypted and never given back.
    #[serde(default)]
    pub set: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    pub unset: Vec<String>,
}

/// One environment variable; its value stays inside.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EnvEntry {
    pub key: String,
    /// `secret` (set by `hutong env set`) or `file` (from hutong.toml).
    pub source: String,
    pub updated_at: Option<u64>,
}

/// One line of output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// Microseconds since 1970.
    pub t: u64,
    /// The instance.
    pub i: String,
    /// `out`, `err`, `build` or `note` (the platform's own).
    pub s: String,
    pub m: String,
}

/// One of our own processes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SystemProcess {
    /// `warden`, `control`, `gateway`, `resolver` or `shim`.
    pub role: String,
    pub pid: i32,
    pub uid: u32,
    /// Proportional set size; a shim's includes its init.
    pub memory_bytes: u64,
    pub app: Option<String>,
    pub instance: Option<String>,
}

/// A wall of isolation.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Wall {
    pub wall: String,
    pub what: String,
    pub stands: bool,
    pub found: String,
    /// Empty where it stands.
    pub remedy: String,
}

/// Something that lies around on the server and belongs to no app.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Leak {
    /// `process`, `cgroup`, `mount`, `interface`, `nft table`, `file`, `folder`, `id range`; `busy` if it
    /// could not be looked at now.
    pub kind: String,
    pub what: String,
    pub removed: bool,
    /// Why it could not be removed.
    pub problem: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Version {
    pub version: String,
    /// Where visitors' requests arrive.
    pub http: String,
    /// The same over TLS, if it is served.
    pub https: Option<String>,
}

/// What runs beside an app, on request: the first message of a WebSocket. Each one behind it is a [`frame`].
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    pub command: Vec<String>,
    /// Rows and columns, when a terminal is wanted.
    #[serde(default)]
    pub terminal: Option<(u16, u16)>,
}

/// Messages of a program beside an app: a byte that says which kind it is, and what it carries.
pub mod frame {
    /// To the program; empty: its input ends.
    pub const INPUT: u8 = 0;
    pub const OUTPUT: u8 = 1;
    pub const ERROR: u8 = 2;
    /// Text: how it ended; then the exit code as the last byte.
    pub const EXIT: u8 = 3;
    /// Rows and columns, u16 big-endian each.
    pub const RESIZE: u8 = 4;
    /// Why no program runs: a problem, as JSON.
    pub const REFUSED: u8 = 5;

    pub fn encode(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[kind], payload].concat()
    }
}

/// A certificate, or a name that waits for one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Certificate {
    pub name: String,
    pub hosts: Vec<String>,
    /// `own`, `local` or `acme`.
    pub source: String,
    pub issuer: String,
    /// None: there is none yet.
    pub not_before: Option<u64>,
    pub not_after: Option<u64>,
    pub renews_at: Option<u64>,
    /// SHA-256 of the certificate, in hex.
    pub fingerprint: String,
    /// Why the last attempt to have one failed, and when the next one is due.
    pub problem: Option<String>,
    pub next_try: Option<u64>,
}

/// A certificate that the owner brings.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct NewCertificate {
    /// The certificate and those between it and the authority's, as PEM.
    pub chain: String,
    /// The private key, as PEM. It is never given out again.
    pub key: String,
}

/// This server's own certificate authority.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Authority {
    pub root_pem: String,
}

/// What the gateway does.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Gateway {
    /// Where visitors arrive: `http://ADDRESS`, `https://ADDRESS`.
    pub listeners: Vec<String>,
    /// The version of the routes that are served.
    pub version: u64,
    /// Seconds since this gateway began; counters begin with it.
    pub uptime_s: u64,
    /// Visitors' connections that are open.
    pub connections: u64,
    /// Those that were closed at once, because their address had as many as one may have.
    pub refused_connections: u64,
    /// The busiest first.
    pub routes: Vec<Route>,
    pub targets: Vec<Target>,
    pub bans: Vec<Ban>,
    pub certificates: Vec<Certificate>,
}

/// A host with a path, and what was answered there.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Route {
    pub app: String,
    pub host: String,
    pub prefix: String,
    pub requests: u64,
    /// The visitor left, or an upgrade.
    pub unanswered: u64,
    pub answers_2xx: u64,
    pub answers_3xx: u64,
    pub answers_4xx: u64,
    pub answers_5xx: u64,
    /// Bodies as they went out.
    pub bytes: u64,
    /// What half and 99 of 100 answers took at most, in microseconds; in steps that double.
    pub p50_us: Option<u64>,
    pub p99_us: Option<u64>,
    /// Upper bounds in microseconds, and how many answers fell between each and the one before.
    pub histogram: Vec<(u64, u64)>,
}

/// An instance, or a server of the owner's, as the gateway sees it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Target {
    pub app: String,
    pub instance: String,
    /// `candidate`, `active` or `draining`.
    pub role: String,
    pub healthy: bool,
    /// It failed often and gets nothing for a while.
    pub ejected: bool,
    pub in_flight: u64,
    /// Requests of its app that wait for a place.
    pub queued: u64,
    pub weight: u32,
}

/// Containers that others started, and how they are routed by their labels.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct External {
    /// `PROJECT/SERVICE` of compose, else the container's name.
    pub name: String,
    pub containers: Vec<String>,
    /// Hosts, or hosts with a path, that lead there now.
    pub routes: Vec<String>,
    pub targets: Vec<ExternalTarget>,
    /// What is not done, or not as the labels say.
    pub notes: Vec<String>,
}

/// A container that requests go to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ExternalTarget {
    pub container: String,
    pub address: String,
    /// `healthy`, `starting`, `failing`, or `waiting` for its own health check.
    pub state: String,
    /// Why it is not healthy.
    pub detail: Option<String>,
}

/// An address that is not let in; IPv6: its /64.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Ban {
    pub ip: String,
    /// Only at this app.
    pub app: Option<String>,
    /// Milliseconds since 1970.
    pub until: u64,
    pub reason: String,
}

/// A ban by the owner.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewBan {
    pub ip: String,
    pub seconds: u64,
    #[serde(default)]
    pub reason: String,
}

/// A token of an app's, without what it is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub id: u64,
    pub name: String,
    /// `push` or `pull`.
    pub scope: String,
    pub created_at: u64,
}

/// Asks for a token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// For people who read the list: letters, digits, `-`, `_` and `.`, at most 40.
    pub name: String,
    /// `push`, or `pull` for one that only reads.
    pub scope: String,
}

/// A token that was made; this is the only time that it is shown.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenMade {
    pub id: u64,
    pub secret: String,
}

/// Where an app is fetched from when a webhook says that there is news.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Source {
    pub url: String,
    /// Who sends the webhooks: `github`, `gitee`, `gitlab` or `gitea`.
    pub vendor: String,
    /// Where they are to be sent.
    pub hook: String,
    /// How the last one came out: `new` before there was one, `pending`, `done`, `failed`, `ignored`.
    pub state: String,
    pub detail: String,
    pub changed_at: u64,
}

/// Asks for an app to be fetched.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct NewSource {
    /// `https://…`, without user and password.
    pub url: String,
    pub vendor: String,
    /// Goes with `token`; most vendors take any.
    pub user: String,
    /// For reading a private repository.
    #[serde(default)]
    pub token: Option<String>,
}

/// What to tell the vendor; this is the only time that the secret is shown.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct SourceMade {
    pub hook: String,
    pub secret: String,
}

/// A branch as an app of its own.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Preview {
    pub app: String,
    pub branch: String,
    /// Empty where nobody visits it.
    pub host: String,
    /// Unless its branch is pushed again, in milliseconds that the server runs.
    pub ends_in_ms: u64,
}
