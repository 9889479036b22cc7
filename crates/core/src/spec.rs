//! `hutong.toml`: text in, a checked [`AppSpec`] or every mistake with its place out.

mod build;
mod canary;
pub mod egress;
mod image;
pub mod links;
mod preview;
mod processes;
mod push;
mod scale;
mod sleep;
mod traffic;
mod upstream;

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use crate::canary::Canary;
use crate::hours::Hours;
use crate::name::{self, AppName};
use crate::scale::Scale;
use crate::schedule::Schedule;
use crate::units;

use build::RawBuild;
pub use build::{Build, BuildStep, Dockerfile, Missing, TIMEOUT as BUILD_TIMEOUT, missing};
pub use canary::with_variant;
use canary::{RawAb, RawCanary};
use egress::RawEgress;
pub use egress::{Egress, EgressRule};
use image::RawContainer;
pub use image::{
    Image, ImageDriver, LOCAL_REGISTRY, MAX_INSTANCES as MAX_CONTAINERS, Pull,
    User as ContainerUser, with_image, with_port, without_port,
};
pub use preview::{Preview, PreviewData};
use preview::{RawGit, RawPreview};
pub use processes::{Caps, Cron, ReleaseCommand, Worker};
use processes::{RawCron, RawReleaseCommand, RawWorker};
use push::RawPush;
pub use push::tag_fits;
use scale::RawScale;
use sleep::RawSleep;
use traffic::RawTraffic;
pub use traffic::{Auth, Ban, Class, Rate, Rules, Traffic, TrafficRoute, User, parse_user};
use upstream::{AnyUpstream, RawBalance, RawFastCgi};

pub use upstream::{Balance, FastCgi, HashKey, Method, Protocol, Upstream};

/// One app as its owner declares it; every bound holds.
#[derive(Clone, Debug, PartialEq)]
pub struct AppSpec {
    pub name: AppName,
    pub domains: Vec<Domain>,
    pub strip_prefix: bool,
    pub run: Run,
    /// Its programs run in containers of this image.
    pub image: Option<Image>,
    pub protocol: Protocol,
    pub fastcgi: FastCgi,
    pub balance: Balance,
    pub traffic: Traffic,
    /// Given to the program as `PORT`.
    pub port: u16,
    pub env: BTreeMap<String, String>,
    pub instances: u32,
    /// Their number follows what there is to do; `instances` is the fewest then.
    pub scale: Option<Scale>,
    /// Of each instance.
    pub caps: Caps,
    /// By name.
    pub workers: BTreeMap<String, Worker>,
    /// By name.
    pub cron: BTreeMap<String, Cron>,
    pub release: Option<ReleaseCommand>,
    pub health: HealthCheck,
    pub start_timeout: Duration,
    pub stop_timeout: Duration,
    pub drain_timeout: Duration,
    pub response_timeout: Duration,
    pub data: bool,
    /// The bound of `/data`, in bytes.
    pub disk: Option<u64>,
    pub restart: Restart,
    pub strategy: Strategy,
    /// With that strategy, and with `ab`.
    pub canary: Option<Canary>,
    /// How long the release before stays ready, with `blue-green`.
    pub keep: Duration,
    pub egress: Egress,
    /// Paths of this app's hosts that other apps may serve.
    pub share: BTreeMap<String, AppName>,
    /// Apps that it may call, by the name that it calls each.
    pub links: BTreeMap<String, AppName>,
    /// Apps whose links to this one hold.
    pub callers: Vec<AppName>,
    pub build: Option<Build>,
    pub https: Https,
    /// After so long without a request its instances are stopped, until there is one.
    pub sleep_after: Option<Duration>,
    /// When it is woken before anybody asks.
    pub wake: Vec<Schedule>,
    /// When nothing of it runs but timed jobs.
    pub down: Option<Hours>,
    /// The branch whose pushes are deployed; none: `main`, or `master`.
    pub branch: Option<String>,
    /// Other branches get an environment of their own.
    pub preview: Option<Preview>,
    /// Patterns of tags that are deployed when they are pushed to this server.
    pub push_tags: Vec<String>,
    /// How often another registry is asked where the image's tag leads.
    pub watch: Option<Duration>,
}

/// Plain HTTP where there is a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Https {
    pub redirect: bool,
    /// Normalised path prefixes.
    pub except: Vec<String>,
    pub hsts: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Domain {
    pub host: String,
    pub prefix: String,
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let prefix = if self.prefix == "/" { "" } else { &self.prefix };
        write!(f, "{}{prefix}", self.host)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    Command(Vec<String>),
    Static {
        folder: String,
        spa: bool,
    },
    /// Somebody else runs it.
    Upstream(Vec<Upstream>),
    /// It has no visitors: workers and timed jobs only.
    Background,
}

impl Run {
    /// Whether Hutong starts processes for it.
    pub fn has_instances(&self) -> bool {
        matches!(self, Run::Command(_))
    }
}

impl AppSpec {
    /// Whether programs of it run in sandboxes: visitors', workers' or timed ones.
    pub fn has_programs(&self) -> bool {
        matches!(self.run, Run::Command(_) | Run::Background)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `None`: that the port accepts a connection is enough.
    pub path: Option<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub retries: u32,
}

/// What happens when the program ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    Always,
    OnFailure,
    Never,
}

/// How a new release takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The new instances start beside the old ones.
    Rolling,
    /// The old ones stop first; the gateway holds requests meanwhile.
    Recreate,
    /// As rolling, and the old ones stay for a while, ready to serve again.
    BlueGreen,
    /// The new ones get a part of the visitors, and more as long as they do well.
    Canary,
    /// The new ones get a part of the visitors until the owner chooses one of both releases.
    Ab,
}

/// One mistake and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
}

/// Every mistake of one file. Shown as `path:line:column: message`, one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    pub path: String,
    pub list: Vec<Problem>,
}

impl std::error::Error for Problems {}

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            let Problem {
                line,
                column,
                message,
            } = problem;
            write!(f, "{newline}{}:{line}:{column}: {message}", self.path)?;
        }
        Ok(())
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "hutong.toml", description = "One app of a Hutong server.")]
struct RawSpec {
    /// The app's name: a DNS label of at most 40 characters.
    #[schemars(
        with = "String",
        regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
    )]
    name: Spanned<String>,
    /// Hosts, or hosts with a path (`shop.example.com/api`); default: none, the app is not reachable.
    #[schemars(with = "Vec<String>")]
    #[serde(default)]
    domains: Vec<Spanned<String>>,
    /// Cut the route's path off before the app sees the request.
    #[serde(default)]
    strip_prefix: bool,
    /// The program: a list of words, or one line that is split like a shell would (no shell runs).
    #[schemars(with = "Option<Words>")]
    command: Option<Spanned<Words>>,
    /// An image to run, such as "ghcr.io/me/shop:1.4"; `command` then stands in place of the image's own.
    #[schemars(with = "Option<String>")]
    image: Option<Spanned<String>>,
    /// What runs the image: "sandbox" (the default on a server without an engine), or "docker", a container of the
    /// server's Docker engine.
    #[schemars(with = "Option<ImageDriver>")]
    driver: Option<Spanned<ImageDriver>>,
    /// How the image is run.
    #[schemars(with = "Option<RawContainer>")]
    container: Option<Spanned<RawContainer>>,
    /// A folder of files to serve, instead of a command.
    #[schemars(with = "Option<String>")]
    #[serde(rename = "static")]
    folder: Option<Spanned<String>>,
    /// Servers that answer, instead of a command or files: "http://127.0.0.1:8001", or uwsgi://, fastcgi://,
    /// h2c://. The server's owner must have allowed their addresses.
    #[schemars(with = "Option<Vec<AnyUpstream>>")]
    upstream: Option<Spanned<Vec<Spanned<AnyUpstream>>>>,
    /// What the program speaks: "http" (the default), "h2c" (gRPC), "uwsgi" or "fastcgi".
    #[schemars(with = "Option<Protocol>")]
    protocol: Option<Spanned<Protocol>>,
    #[serde(default)]
    fastcgi: RawFastCgi,
    #[serde(default)]
    balance: RawBalance,
    #[serde(default)]
    traffic: RawTraffic,
    /// Static apps: paths without a file answer with index.html.
    #[serde(default)]
    spa: bool,
    /// The port that the program listens on; it finds it in `PORT`.
    #[schemars(with = "Option<u16>")]
    port: Option<Spanned<i64>>,
    /// Environment variables. Secrets belong into `hutong env set`.
    #[schemars(with = "BTreeMap<String, String>")]
    #[serde(default)]
    env: BTreeMap<Spanned<String>, Spanned<EnvValue>>,
    /// How many instances run, 1 to 64.
    #[schemars(with = "Option<u32>")]
    instances: Option<Spanned<i64>>,
    /// Instead of `instances`: their number follows what there is to do.
    scale: Option<RawScale>,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    health: RawHealth,
    #[serde(default)]
    timeouts: RawTimeouts,
    /// A folder /data of the app's own that every release keeps.
    #[serde(default)]
    data: bool,
    /// What happens when the program ends by itself; default always.
    restart: Option<Restart>,
    /// How a new release takes over; default recreate with data, else rolling.
    #[schemars(with = "Option<Strategy>")]
    strategy: Option<Spanned<Strategy>>,
    /// How a canary goes on, with `strategy = "canary"`.
    #[schemars(with = "Option<RawCanary>")]
    canary: Option<Spanned<RawCanary>>,
    /// The new release as a variant beside the one that serves, with `strategy = "ab"`.
    #[schemars(with = "Option<RawAb>")]
    ab: Option<Spanned<RawAb>>,
    /// Where the app may connect to: "none" (the default), "internet" (every public address), or a list of names
    /// ("api.example.com", or "*.example.com" for what is below it), addresses and networks, each with a port if it is
    /// to be no other ("smtp.example.com:465"). Private networks of a list need the consent of the server's owner.
    #[schemars(with = "Option<RawEgress>")]
    egress: Option<Spanned<RawEgress>>,
    /// Paths of this app's hosts that other apps may serve: `{ "/api" = "notes" }`.
    #[schemars(with = "BTreeMap<String, String>")]
    #[serde(default)]
    share: BTreeMap<Spanned<String>, Spanned<String>>,
    /// Other apps that this one may call: with `orders = "orders-app"` its programs reach that app at
    /// `http://orders.internal`. The other app has to name this one in its `callers`.
    #[schemars(with = "BTreeMap<String, String>")]
    #[serde(default)]
    links: BTreeMap<Spanned<String>, Spanned<String>>,
    /// Apps that may call this one by a link: `["shop"]`.
    #[schemars(with = "Vec<String>")]
    #[serde(default)]
    callers: Vec<Spanned<String>>,
    /// Runs in a sandbox of its own when the app is deployed.
    build: Option<RawBuild>,
    #[serde(default)]
    https: RawHttps,
    sleep: Option<RawSleep>,
    /// Programs that run all the time beside the app's own, by name: `[workers.mail]`.
    #[schemars(with = "BTreeMap<String, RawWorker>")]
    #[serde(default)]
    workers: BTreeMap<Spanned<String>, RawWorker>,
    /// Programs that run at times, by name: `[cron.report]`.
    #[schemars(with = "BTreeMap<String, RawCron>")]
    #[serde(default)]
    cron: BTreeMap<Spanned<String>, RawCron>,
    release: Option<RawReleaseCommand>,
    /// What `git push` does.
    #[serde(default)]
    git: RawGit,
    /// Branches that are pushed get an environment of their own, at `BRANCH.DOMAIN`.
    preview: Option<RawPreview>,
    /// What a push of the app's image does.
    #[serde(default)]
    push: RawPush,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a line of words or a list of words")]
enum Words {
    Line(String),
    List(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a string, a number or a boolean")]
enum EnvValue {
    Text(String),
    Number(i64),
    Float(f64),
    Bool(bool),
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    /// Such as "256M" (the default); 4M to 1T.
    #[schemars(with = "Option<String>")]
    memory: Option<Spanned<String>>,
    /// What is set aside of it for each instance, such as "100M"; default a quarter. What does not fit into the server's
    /// memory is not started.
    #[schemars(with = "Option<String>")]
    guaranteed: Option<Spanned<String>>,
    /// Cores, such as 0.5; default 1.
    #[schemars(with = "Option<f64>")]
    cpu: Option<Spanned<Number>>,
    /// An instance that uses more than this, such as "200M", for ten seconds is replaced; default never.
    #[schemars(with = "Option<String>")]
    restart_at: Option<Spanned<String>>,
    /// Of /data, such as "2G", 16M to 16T: it is set aside when the app first starts, and can be made larger later.
    /// Default: /data is measured, and an app over the server's `app_disk` is stopped.
    #[schemars(with = "Option<String>")]
    disk: Option<Spanned<String>>,
    /// An instance that uses 95 % of its memory and more for ten minutes is replaced; default true.
    leak_guard: Option<bool>,
    /// Processes and threads; default 128.
    #[schemars(with = "Option<u32>")]
    pids: Option<Spanned<i64>>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a number")]
enum Number {
    Whole(i64),
    Part(f64),
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawHealth {
    /// A path that answers 2xx or 3xx when the app can serve; default: an open port is enough.
    #[schemars(with = "Option<String>")]
    path: Option<Spanned<String>>,
    /// Default "10s".
    #[schemars(with = "Option<String>")]
    interval: Option<Spanned<String>>,
    /// Default "2s".
    #[schemars(with = "Option<String>")]
    timeout: Option<Spanned<String>>,
    /// Failures in a row until the instance gets no more requests; default 3.
    #[schemars(with = "Option<u32>")]
    retries: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawTimeouts {
    /// From start to healthy; default "30s".
    #[schemars(with = "Option<String>")]
    start: Option<Spanned<String>>,
    /// From SIGTERM to SIGKILL; default "10s".
    #[schemars(with = "Option<String>")]
    stop: Option<Spanned<String>>,
    /// How long requests under way may go on when an instance is replaced; default "15s".
    #[schemars(with = "Option<String>")]
    drain: Option<Spanned<String>>,
    /// How long the app may take to begin its answer; default "60s".
    #[schemars(with = "Option<String>")]
    response: Option<Spanned<String>>,
    /// With blue-green: how long the release before stays ready to serve again; default "10m".
    #[schemars(with = "Option<String>")]
    keep: Option<Spanned<String>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawHttps {
    /// Plain requests are sent to HTTPS where the host has a certificate; default true.
    redirect: Option<bool>,
    /// Paths that are served over plain HTTP nevertheless, such as "/callback".
    #[schemars(with = "Vec<String>")]
    #[serde(default)]
    except: Vec<Spanned<String>>,
    /// How long browsers are told to use HTTPS only (HSTS), such as "180d"; default not at all.
    #[schemars(with = "Option<String>")]
    hsts: Option<Spanned<String>>,
}

/// The JSON Schema of `hutong.toml` (draft 2020-12).
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(RawSpec).to_value()
}

/// Reads `hutong.toml`. `path` is only for messages.
pub fn parse(path: &str, text: &str) -> Result<AppSpec, Problems> {
    let place = Place { text };
    let problems = |list| Problems {
        path: path.to_owned(),
        list,
    };
    if text.len() > 64 << 10 {
        return Err(problems(vec![Problem {
            line: 1,
            column: 1,
            message: "the file is over 64K".into(),
        }]));
    }
    let raw: RawSpec = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        problems(vec![place.problem(at, explain(error.message()))])
    })?;
    let mut check = Check {
        place,
        list: Vec::new(),
    };
    let spec = check.spec(raw);
    if check.list.is_empty() {
        Ok(spec)
    } else {
        check.list.sort_by_key(|p| (p.line, p.column));
        Err(problems(check.list))
    }
}

/// serde's message, with "did you mean" where a key is close to a known one.
pub fn explain(message: &str) -> String {
    let message = message.trim().replace('\n', " ");
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return message;
    };
    let mut quoted = rest.split('`').step_by(2);
    let (Some(unknown), known) = (quoted.next(), rest.split('`').skip(2).step_by(2)) else {
        return message;
    };
    let known: Vec<&str> = known.collect();
    match closest(unknown, &known) {
        Some(best) => format!("unknown key `{unknown}`; did you mean `{best}`?"),
        None => format!("unknown key `{unknown}`; known here: {}", known.join(", ")),
    }
}

fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), *candidate))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Turns byte offsets into lines and columns.
pub struct Place<'a> {
    pub text: &'a str,
}

impl Place<'_> {
    pub fn problem(&self, at: usize, message: String) -> Problem {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        Problem {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
        }
    }
}

struct Check<'a> {
    place: Place<'a>,
    list: Vec<Problem>,
}

impl Check<'_> {
    fn wrong(&mut self, at: usize, message: impl Into<String>) {
        self.list.push(self.place.problem(at, message.into()));
    }

    fn spec(&mut self, raw: RawSpec) -> AppSpec {
        let name_at = raw.name.span().start;
        let name = AppName::new(raw.name.get_ref()).unwrap_or_else(|message| {
            self.wrong(name_at, message);
            AppName::new("x").expect("a fixed good name")
        });
        let run = self.run(&raw, name_at);
        let mut domains = Vec::new();
        for domain in &raw.domains {
            match parse_domain(domain.get_ref()) {
                Ok(parsed) if domains.contains(&parsed) => {
                    self.wrong(domain.span().start, format!("`{parsed}` is listed twice"));
                }
                Ok(parsed) => domains.push(parsed),
                Err(message) => self.wrong(domain.span().start, message),
            }
        }
        if domains.len() > 100 {
            self.wrong(
                raw.domains[100].span().start,
                "an app has at most 100 domains",
            );
        }
        let mut share = BTreeMap::new();
        for (prefix, app) in &raw.share {
            let checked = name::parse_prefix(prefix.get_ref());
            match (checked, AppName::new(app.get_ref())) {
                (Ok(prefix), Ok(app)) => {
                    share.insert(prefix, app);
                }
                (Err(message), _) => self.wrong(prefix.span().start, message),
                (_, Err(message)) => self.wrong(app.span().start, message),
            }
        }
        let env = self.env(&raw.env);
        let port = match &raw.port {
            None => 8080,
            Some(port) => self.bounded(port, 1, 65535, "a port") as u16,
        };
        let scale = self.scale(&raw, &run);
        let instances = match &raw.instances {
            None => scale.map_or(1, |scale| scale.min),
            Some(count) => self.bounded(count, 1, 64, "the number of instances") as u32,
        };
        let (strategy, canary) = self.strategy(&raw, &run);
        let named = raw.strategy.as_ref();
        if let (true, Some(count), None) = (raw.data && instances > 1, &raw.instances, named) {
            self.wrong(count.span().start, scale::SINGLE_WRITER);
        }
        if let (false, Some(count)) = (run.has_instances(), &raw.instances) {
            self.wrong(
                count.span().start,
                "only an app with a `command` has instances",
            );
        }
        let protocol = raw
            .protocol
            .as_ref()
            .map_or(Protocol::Http, |p| *p.get_ref());
        if let Some(protocol) = raw.protocol.as_ref().filter(|_| !run.has_instances()) {
            self.wrong(protocol.span().start, "`protocol` goes with `command`");
        }
        self.check_protocol(&raw, &run, protocol);
        let default = Caps {
            memory_bytes: 256 << 20,
            cpu_millis: 1000,
            pids: 128,
            restart_at: None,
            guaranteed_bytes: (256 << 20) / processes::GUARANTEED,
            leak_guard: true,
        };
        let caps = self.caps(&raw.limits, default);
        self.check_processes(&raw, &run);
        let links = self.links(&raw, &run);
        let health = self.health(&raw.health);
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        let timeouts = &raw.timeouts;
        let (wake, down) = self.hours(&raw);
        let image = self.image(&raw, scale.map_or(instances, |scale| scale.max));
        AppSpec {
            push_tags: self.push_tags(&raw.push, image.as_ref()),
            watch: self.watch(&raw.push, image.as_ref()),
            image,
            start_timeout: self.time(&timeouts.start, s(30), ms(100), s(3600)),
            stop_timeout: self.time(&timeouts.stop, s(10), ms(0), s(600)),
            drain_timeout: self.time(&timeouts.drain, s(15), ms(0), s(3600)),
            response_timeout: self.time(&timeouts.response, s(60), ms(10), s(3600)),
            keep: self.keep(&raw, strategy),
            sleep_after: self.sleep(&raw),
            workers: self.workers(&raw, caps),
            cron: self.cron(&raw, caps),
            release: self.release_command(&raw),
            branch: self.branch(&raw.git),
            preview: self.preview(&raw, &domains),
            callers: self.callers(&raw.callers),
            links,
            strip_prefix: raw.strip_prefix,
            data: raw.data,
            disk: self.disk(&raw),
            restart: raw.restart.unwrap_or(Restart::Always),
            egress: self.egress(raw.egress.as_ref()),
            https: self.https(&raw.https),
            fastcgi: self.fastcgi(&raw.fastcgi, &run),
            balance: self.balance(&raw.balance),
            traffic: self.traffic(&raw.traffic),
            protocol,
            build: self.build(&raw),
            name,
            domains,
            run,
            port,
            env,
            instances,
            scale,
            wake,
            down,
            caps,
            health,
            strategy,
            canary,
            share,
        }
    }

    /// Programs beside an app's own are for apps that have programs.
    fn check_processes(&mut self, raw: &RawSpec, run: &Run) {
        if matches!(run, Run::Command(_) | Run::Background) {
            return;
        }
        let workers = raw
            .workers
            .keys()
            .next()
            .map(|name| ("workers", name.span()));
        let cron = raw.cron.keys().next().map(|name| ("cron", name.span()));
        let release = raw
            .release
            .as_ref()
            .map(|raw| ("release", raw.command.span()));
        for (what, span) in workers.into_iter().chain(cron).chain(release) {
            self.wrong(
                span.start,
                format!("`{what}` goes with `command`; give these programs an app of their own"),
            );
        }
    }

    fn disk(&mut self, raw: &RawSpec) -> Option<u64> {
        let size = raw.limits.disk.as_ref()?;
        if !raw.data {
            self.wrong(
                size.span().start,
                "`limits.disk` bounds /data: set `data = true`",
            );
        }
        Some(self.size(size, 16 << 20, 16 << 40))
    }

    fn run(&mut self, raw: &RawSpec, name_at: usize) -> Run {
        if let Some(list) = &raw.upstream {
            if raw.command.is_some() || raw.folder.is_some() {
                let message = "an app has `command`, `static` or `upstream`, one of them";
                self.wrong(list.span().start, message);
            }
            return Run::Upstream(self.upstreams(list));
        }
        match (&raw.command, &raw.folder) {
            (Some(command), None) => {
                if raw.spa {
                    self.wrong(command.span().start, "`spa` goes with `static`");
                }
                Run::Command(self.words(command, "command").unwrap_or_default())
            }
            (None, Some(folder)) => {
                let path = folder
                    .get_ref()
                    .trim_start_matches("./")
                    .trim_end_matches('/');
                let path = if path == "." { "" } else { path };
                let plain = path.is_empty()
                    || path
                        .split('/')
                        .all(|s| !s.is_empty() && s != "." && s != "..");
                if folder.get_ref().starts_with('/') || !plain || path.len() > 200 {
                    self.wrong(
                        folder.span().start,
                        "`static` names a folder below the app's own, such as \"dist\"",
                    );
                }
                Run::Static {
                    folder: path.to_owned(),
                    spa: raw.spa,
                }
            }
            (Some(_), Some(folder)) => {
                self.wrong(
                    folder.span().start,
                    "an app has `command` or `static`, not both",
                );
                Run::Command(Vec::new())
            }
            // The image's own command.
            (None, None) if raw.has_image() => Run::Command(Vec::new()),
            (None, None) if !(raw.workers.is_empty() && raw.cron.is_empty()) => {
                if let Some(domain) = raw.domains.first() {
                    self.wrong(
                        domain.span().start,
                        "`domains` goes with `command`: nothing of this app would answer",
                    );
                }
                Run::Background
            }
            (None, None) => {
                self.wrong(
                    name_at,
                    "nothing to run: add `command = [\"python3\", \"app.py\"]` or `static = \"dist\"`",
                );
                Run::Command(Vec::new())
            }
        }
    }

    fn words(&mut self, words: &Spanned<Words>, what: &str) -> Option<Vec<String>> {
        let at = words.span().start;
        let list = match words.get_ref() {
            Words::List(list) => list.clone(),
            Words::Line(line) => match shell_words::split(line) {
                Ok(list) => list,
                Err(_) => {
                    self.wrong(at, format!("{what} has a quote that does not end"));
                    return None;
                }
            },
        };
        let total: usize = list.iter().map(|word| word.len() + 1).sum();
        if list.first().is_none_or(|word| word.is_empty()) {
            self.wrong(at, format!("{what} is empty"));
        } else if total > 32 << 10 {
            self.wrong(at, format!("{what} is over 32K"));
        } else if list.iter().any(|word| word.contains('\0')) {
            self.wrong(at, format!("{what} holds a NUL character"));
        } else if let Some(word) = shell_operator(words.get_ref(), &list) {
            self.wrong(
                at,
                format!("no shell runs the {what}, so `{word}` would be a plain word; use [\"sh\", \"-c\", \"…\"] if you want one"),
            );
        } else {
            return Some(list);
        }
        None
    }

    fn env(
        &mut self,
        raw: &BTreeMap<Spanned<String>, Spanned<EnvValue>>,
    ) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        let mut total = 0;
        for (key, value) in raw {
            let at = key.span().start;
            let text = match value.get_ref() {
                EnvValue::Text(text) => text.clone(),
                EnvValue::Number(number) => number.to_string(),
                EnvValue::Float(number) => number.to_string(),
                EnvValue::Bool(flag) => flag.to_string(),
            };
            total += key.get_ref().len() + text.len();
            if let Err(message) = check_env(key.get_ref(), &text) {
                self.wrong(at, message);
            } else if total > MAX_ENV {
                self.wrong(at, "the environment is over 64K");
                break;
            }
            env.insert(key.get_ref().clone(), text);
        }
        env
    }

    fn health(&mut self, raw: &RawHealth) -> HealthCheck {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        if let Some(path) = &raw.path {
            let text = path.get_ref();
            let plain = text.starts_with('/')
                && text.len() <= 500
                && text.bytes().all(|c| (0x21..0x7f).contains(&c) && c != b'#');
            if !plain {
                self.wrong(path.span().start, "health.path is a path such as /healthz");
            }
        }
        HealthCheck {
            path: raw.path.as_ref().map(|path| path.get_ref().clone()),
            interval: self.time(&raw.interval, s(10), ms(100), s(3600)),
            timeout: self.time(&raw.timeout, s(2), ms(10), s(300)),
            retries: match &raw.retries {
                None => 3,
                Some(count) => self.bounded(count, 1, 100, "health.retries") as u32,
            },
        }
    }

    fn https(&mut self, raw: &RawHttps) -> Https {
        let mut except = Vec::new();
        for prefix in &raw.except {
            match name::parse_prefix(prefix.get_ref()) {
                Ok(prefix) => except.push(prefix),
                Err(message) => self.wrong(prefix.span().start, message),
            }
        }
        let (none, longest) = (Duration::ZERO, Duration::from_secs(730 * 86400));
        Https {
            redirect: raw.redirect.unwrap_or(true),
            except,
            hsts: self.time(&raw.hsts, none, none, longest),
        }
    }

    fn bounded(&mut self, value: &Spanned<i64>, low: i64, high: i64, what: &str) -> i64 {
        if !(low..=high).contains(value.get_ref()) {
            self.wrong(
                value.span().start,
                format!("{what} is {low} to {high}, not {}", value.get_ref()),
            );
            return low;
        }
        *value.get_ref()
    }

    fn cpu(&mut self, number: &Spanned<Number>) -> u32 {
        let cores = match *number.get_ref() {
            Number::Whole(whole) => whole as f64,
            Number::Part(part) => part,
        };
        if !(0.01..=256.0).contains(&cores) {
            self.wrong(number.span().start, "limits.cpu is 0.01 to 256 cores");
            return 1000;
        }
        (cores * 1000.0).round() as u32
    }

    fn size(&mut self, text: &Spanned<String>, low: u64, high: u64) -> u64 {
        match units::parse_size(text.get_ref()) {
            Ok(bytes) if (low..=high).contains(&bytes) => bytes,
            Ok(_) => {
                let (low, high) = (units::show_size(low), units::show_size(high));
                self.wrong(text.span().start, format!("must be {low} to {high}"));
                0
            }
            Err(message) => {
                self.wrong(text.span().start, message);
                0
            }
        }
    }

    fn time(
        &mut self,
        text: &Option<Spanned<String>>,
        default: Duration,
        low: Duration,
        high: Duration,
    ) -> Duration {
        let Some(text) = text else { return default };
        match units::parse_time(text.get_ref()) {
            Ok(time) if (low..=high).contains(&time) => time,
            Ok(_) => {
                let (low, high) = (units::show_time(low), units::show_time(high));
                self.wrong(text.span().start, format!("must be {low} to {high}"));
                default
            }
            Err(message) => {
                self.wrong(text.span().start, message);
                default
            }
        }
    }
}

/// The most bytes that an app's environment may have, keys and values.
pub const MAX_ENV: usize = 64 << 10;

/// Checks one environment variable, wherever it came from.
pub fn check_env(key: &str, value: &str) -> Result<(), String> {
    if !name::is_env_key(key) {
        return Err(format!(
            "`{key}` cannot name an environment variable; use letters, digits and '_'"
        ));
    }
    if key == "PORT" || key.starts_with("HUTONG_") {
        return Err(format!("`{key}` is set by Hutong itself"));
    }
    if value.contains('\0') || value.len() > 32 << 10 {
        return Err(format!("the value of `{key}` is over 32K or holds a NUL"));
    }
    Ok(())
}

fn shell_operator<'a>(words: &Words, list: &'a [String]) -> Option<&'a str> {
    let Words::Line(_) = words else { return None };
    list.iter().map(String::as_str).find(|word| {
        matches!(
            *word,
            "&&" | "||" | "|" | ";" | ">" | ">>" | "<" | "&" | "2>&1"
        )
    })
}

/// `host` or `host/path`.
pub fn parse_domain(text: &str) -> Result<Domain, String> {
    if text.contains("://") {
        return Err(format!(
            "`{text}`: leave out the scheme and write for instance shop.example.com or shop.example.com/api"
        ));
    }
    let (host, prefix) = match text.find('/') {
        Some(at) => text.split_at(at),
        None => (text, "/"),
    };
    Ok(Domain {
        host: name::parse_host(host)?,
        prefix: name::parse_prefix(prefix)?,
    })
}

/// The text of a `hutong.toml` with lines before all others. A byte order mark is none but at the very beginning.
pub(crate) fn on_top(lines: &str, text: &str) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    format!("{lines}{text}")
}

#[cfg(test)]
mod tests;
