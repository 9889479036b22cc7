//! What is seen and not stored: asked again after a restart.

use std::collections::{BTreeMap, HashMap, HashSet};

use hutong_core::plan::Health;
use hutong_ipc::warden::Instance;

#[derive(Default)]
pub struct Observed {
    /// The warden's last list, without builds.
    pub instances: BTreeMap<String, Instance>,
    /// What the gateway said of each instance.
    pub health: HashMap<String, Health>,
    /// What images' own health checks say of instances in sandboxes.
    pub image_health: HashMap<String, hutong_ipc::docker::Health>,
    /// Instances that were told to stop, and when. Every time here is in milliseconds since boot.
    pub stopping: HashMap<String, u64>,
    /// When an instance's role became draining, and under which version.
    pub draining: HashMap<String, (u64, u64)>,
    /// Draining instances without a request left, and the version of the table that this is true of.
    pub drained: HashMap<String, u64>,
    /// Instances whose shim the gateway saw go, and when: it sees that a moment before the kernel calls the
    /// process dead.
    pub gone: HashMap<String, u64>,
    /// Instances that were asked to freeze (true) or to go on.
    pub freezing: HashMap<String, bool>,
    /// Instances that use more memory than their owner wants, and since when.
    pub heavy: HashMap<String, u64>,
    /// Apps whose version that serves took over not long ago.
    pub promoted: HashMap<String, Probation>,
    /// Instances whose memory is near its cap, and since when.
    pub near: HashMap<String, u64>,
    /// When a process of an app (`web`, or a worker's name) was last replaced for its memory.
    pub replaced: HashMap<(String, String), u64>,
    /// When an app had a process replaced that stayed near its cap.
    pub leaked: HashMap<String, u64>,
    /// When an app last came out of quarantine.
    pub thawed: HashMap<String, u64>,
    /// Runs whose end could not be written down yet.
    pub unwritten: HashSet<String>,
    /// Whether the container engine answers.
    pub engine: Engine,
    pub disk: crate::disk::Disk,
    /// Containers of others that are routed by their labels.
    pub external: crate::external::Known,
    /// Instances whose end somebody of us listens for.
    pub watched: HashSet<String>,
    /// Failures of apps that could not be written down yet: how many in a row.
    pub failures: HashMap<String, u32>,
    /// When each app last failed.
    pub failed_at: HashMap<String, u64>,
    /// What the gateway counts of releases on trial, by app.
    pub trials: HashMap<String, hutong_ipc::gateway::Trial>,
    /// Why a canary goes no further yet, by deployment.
    pub verdicts: HashMap<u64, String>,
    /// What is done before a deployment rolls out, in words.
    pub building: HashMap<u64, String>,
    /// Deployments that wait for their turn to be built, the next one first.
    pub queue: Vec<u64>,
    /// Deployments whose builds use nothing of earlier ones.
    pub fresh: HashSet<u64>,
    /// Workers that ended by themselves, by app and name.
    pub workers: HashMap<(String, String), Trouble>,
    /// What keeps the controller from its work, for whoever waits for it.
    pub trouble: Option<String>,
    /// Instances whose end was taken note of, and whose spool could not be deleted yet.
    pub noted: HashSet<String>,
    /// The first look: what ended before it, ended while nobody looked.
    pub looked: bool,
    /// What went wrong with an instance of a deployment that was under way.
    pub rollout_failures: HashMap<u64, String>,
    /// The last plan of each app, in words.
    pub doing: HashMap<String, Vec<String>>,
    /// Routes that wait, by app.
    pub warnings: HashMap<String, Vec<String>>,
    /// What the gateway does with each app.
    pub serving: HashMap<String, hutong_core::plan::Serve>,
    /// Apps that may sleep and do not, and since when they do not. Not stored: after a restart those are
    /// awake that have instances.
    pub awake: HashMap<String, u64>,
    /// How apps stand with their owners' hours.
    pub hours: HashMap<String, crate::controller::Hours>,
    /// How many instances apps with `[scale]` are to have, and why.
    pub scaling: HashMap<String, crate::controller::Scaling>,
    /// How each app stood when its releases were last looked through.
    pub retained: HashMap<String, Stand>,
    /// Programs that owners run beside an app's own.
    pub sessions: HashMap<String, usize>,
    /// When the gateway last said that nobody asks for an app.
    pub idle: HashMap<String, u64>,
    /// Since when the gateway could have told us of health.
    pub since_ms: u64,
    /// The deployment that each app's last published table serves.
    pub published_active: HashMap<String, u64>,
    /// The version of the snapshot that was published last.
    pub published_version: u64,
    /// The snapshot that every worker of the gateway serves.
    pub gateway_version: u64,
}

/// How it stands with the container engine, if the server has one.
#[derive(Clone, Debug, Default)]
pub enum Engine {
    #[default]
    Unasked,
    Answers,
    /// It did once, and what it ran is known: why not now.
    Silent(String),
    /// It never did since this process began.
    Unknown(String),
}

/// A version that has to show that it runs.
#[derive(Clone, Copy, Debug)]
pub struct Probation {
    pub since_ms: u64,
    /// The release that served before.
    pub before: Option<u64>,
    /// How often it has ended since.
    pub ends: u32,
}

/// A worker that does not run as it should.
#[derive(Clone, Debug, Default)]
pub struct Trouble {
    /// In a row.
    pub failures: u32,
    pub last_ms: u64,
    pub why: String,
    /// Its restart policy says to leave it.
    pub halted: bool,
}

/// What decides which releases of an app are of use: the one that serves, the number of the next, and the deployments
/// that run.
pub type Stand = (Option<u64>, u64, Vec<u64>);

impl Observed {
    /// The owner wants an app up: it does not fall asleep before its time has passed once more.
    pub fn wake(&mut self, app: &str) {
        self.awake.remove(app);
        self.want(app);
    }

    /// A visitor wants an app up.
    pub fn want(&mut self, app: &str) {
        self.idle.remove(app);
        let now = hutong_runtime::processes::steady_ms();
        self.awake.entry(app.to_owned()).or_insert(now);
    }

    pub fn health_of(&self, instance: &str) -> Health {
        let unknown = || Health::Starting("it was not probed yet".into());
        self.health.get(instance).cloned().unwrap_or_else(unknown)
    }

    /// Whether a draining instance has no request left under the table that first said so.
    pub fn is_drained(&self, instance: &str) -> bool {
        let since = self.draining.get(instance);
        let done = self.drained.get(instance);
        since
            .zip(done)
            .is_some_and(|((_, published), version)| version >= published)
    }

    /// Takes a probe's result in.
    pub fn note_health(&mut self, instance: String, healthy: bool, detail: String) {
        let was_starting = !matches!(
            self.health.get(&instance),
            Some(Health::Healthy | Health::Failing(_))
        );
        let health = match (healthy, was_starting) {
            (true, _) => Health::Healthy,
            (false, true) => Health::Starting(detail),
            (false, false) => Health::Failing(detail),
        };
        self.health.insert(instance, health);
    }

    /// Forgets instances that are gone.
    pub fn forget(&mut self, instance: &str) {
        self.instances.remove(instance);
        self.health.remove(instance);
        self.image_health.remove(instance);
        self.stopping.remove(instance);
        self.draining.remove(instance);
        self.drained.remove(instance);
        self.gone.remove(instance);
        self.heavy.remove(instance);
        self.near.remove(instance);
        self.freezing.remove(instance);
    }
}
