//! The planner: what to do for one app, from what is wanted and what is seen. Pure; a plan leaves no
//! choice to whoever applies it, and says what it waits for.

use std::fmt;
use std::time::Duration;

use crate::backoff;
use crate::spec::{Restart, Strategy};

/// What the owner wants of an app.
#[derive(Clone, Debug)]
pub struct Desired {
    pub running: bool,
    /// It is in quarantine: nothing of it is started, stopped or served.
    pub isolated: bool,
    /// The deployment that serves.
    pub active: Option<Version>,
    /// The deployment under way.
    pub rollout: Option<Rollout>,
    /// The one that served before, and is to be ready to serve again.
    pub warm: Option<Warm>,
    /// How often the active version ended by itself or had to be ended, in a row.
    pub failures: u32,
    /// When it last did; like every time here in milliseconds of a clock that nobody sets.
    pub last_failure_ms: u64,
    /// It ended, and its restart policy says to leave it: why.
    pub halted: Option<String>,
    /// It may sleep, and nobody has asked for it since it fell asleep.
    pub asleep: bool,
    /// It may sleep, and nobody has asked for it for so long that it should.
    pub idle: bool,
    /// Its owner's hours say that it does not run now.
    pub closed: Option<Closed>,
    /// What the active version runs beside the program that serves.
    pub workers: Vec<Group>,
}

/// Until when an app does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// For people, such as `06:00 Asia/Shanghai`.
    pub until: String,
    /// The same in milliseconds since 1970.
    pub until_ms: u64,
}

impl Closed {
    pub fn reason(&self) -> String {
        format!("the app is down until {}", self.until)
    }

    fn serve(&self) -> Serve {
        Serve::Closed {
            reason: self.reason(),
            until_ms: self.until_ms,
        }
    }
}

/// The instances of one kind of worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub instances: u32,
    /// In a row.
    pub failures: u32,
    pub last_failure_ms: u64,
    /// One ended, and the restart policy says to leave it.
    pub halted: bool,
}

/// One deployment's facts that the planner needs.
#[derive(Clone, Debug)]
pub struct Version {
    pub deployment: u64,
    /// The gateway serves it from files: no instances.
    pub without_instances: bool,
    pub instances: u32,
    pub strategy: Strategy,
    pub restart: Restart,
    pub start_timeout: Duration,
    pub drain_timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct Rollout {
    pub version: Version,
    /// What went wrong with one of its instances.
    pub failure: Option<String>,
    /// Of a canary that has begun: its share of the visitors, in percent.
    pub share: Option<u32>,
}

/// A deployment whose instances stay for a while, without visitors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warm {
    pub deployment: u64,
    pub until_ms: u64,
}

/// A deployment that gets a part of the visitors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    pub deployment: u64,
    /// In percent; at 100 it is about to take over.
    pub share: u32,
}

/// An instance as observed.
#[derive(Clone, Debug)]
pub struct Seen {
    pub id: String,
    pub deployment: u64,
    /// Which kind of worker it is; `None` for one that serves visitors.
    pub worker: Option<String>,
    pub started_ms: u64,
    pub health: Health,
    /// SIGTERM was sent, or it is dead and not gone yet.
    pub stopping: bool,
    /// When it was first told to finish what it has.
    pub draining_since_ms: Option<u64>,
    /// The gateway has no request of it any more.
    pub drained: bool,
}

impl Seen {
    fn can_serve(&self) -> bool {
        self.health == Health::Healthy && !self.stopping
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not yet healthy: the last probe's answer.
    Starting(String),
    Healthy,
    /// Was healthy, and is not any more: why.
    Failing(String),
}

/// What the gateway does with an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Candidate,
    Active,
    Draining,
}

/// What the gateway does with the app's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serve {
    Targets,
    Static,
    Hold,
    /// Requests wait, and the first one wakes it.
    Asleep,
    Down {
        reason: String,
        retry_after_s: u32,
    },
    /// As `Down`, until a time in milliseconds since 1970: a plan that counted the seconds would be another each time.
    Closed {
        reason: String,
        until_ms: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Start {
        deployment: u64,
        worker: Option<String>,
    },
    Stop {
        instance: String,
        why: String,
        /// It failed: counts for the pause before the next start.
        sick: bool,
    },
    /// The rollout, a canary, can serve: it gets its first visitors.
    Begin { deployment: u64 },
    /// The rollout is what serves from now on.
    Promote { deployment: u64 },
    /// The rollout is given up.
    Fail { deployment: u64, reason: String },
    /// Nobody needs it: its instances go, until somebody asks.
    Sleep,
    /// Nothing to do before `until_ms`, or before something changes.
    Wait { what: String, until_ms: Option<u64> },
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub serve: Serve,
    pub roles: Vec<(String, Role)>,
    pub split: Option<Split>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Start {
                deployment,
                worker: None,
            } => write!(f, "start an instance of deployment {deployment}"),
            Step::Start {
                deployment,
                worker: Some(worker),
            } => write!(f, "start a worker {worker} of deployment {deployment}"),
            Step::Stop { instance, why, .. } => write!(f, "stop {instance}: {why}"),
            Step::Begin { deployment } => {
                write!(f, "deployment {deployment} gets its first visitors")
            }
            Step::Promote { deployment } => write!(f, "deployment {deployment} takes over"),
            Step::Fail { deployment, reason } => {
                write!(f, "give up deployment {deployment}: {reason}")
            }
            Step::Sleep => f.write_str("fall asleep"),
            Step::Wait { what, .. } => write!(f, "wait for {what}"),
        }
    }
}

/// Instances of one app that one plan starts.
const STARTS_AT_ONCE: usize = 4;
/// How long the gateway may take to say that a sleeping app is asked for after all.
const WORD_OF_GATEWAY: Duration = Duration::from_secs(3);

/// Plans one app.
pub fn plan(desired: &Desired, seen: &[Seen], now_ms: u64) -> Plan {
    let (workers, serving) = seen.iter().partition(|seen| seen.worker.is_some());
    let mut planner = Planner {
        desired,
        seen: serving,
        workers,
        now_ms,
        steps: Vec::new(),
        roles: Vec::new(),
        split: None,
    };
    if desired.isolated {
        return Plan {
            steps: Vec::new(),
            serve: down("the app is isolated", 300),
            roles: Vec::new(),
            split: None,
        };
    }
    let serve = planner.run();
    planner.look_after_workers();
    Plan {
        steps: planner.steps,
        serve,
        roles: planner.roles,
        split: planner.split,
    }
}

struct Planner<'a> {
    desired: &'a Desired,
    /// Those that serve.
    seen: Vec<&'a Seen>,
    workers: Vec<&'a Seen>,
    now_ms: u64,
    steps: Vec<Step>,
    roles: Vec<(String, Role)>,
    split: Option<Split>,
}

impl<'a> Planner<'a> {
    fn run(&mut self) -> Serve {
        let desired = self.desired;
        let rollout = desired.rollout.as_ref();
        let wanted = |seen: &Seen| {
            let is = |version: &Version| version.deployment == seen.deployment;
            desired.active.as_ref().is_some_and(is) || rollout.is_some_and(|r| is(&r.version))
        };
        let drain = self.drain_timeout();
        let (mine, old): (Vec<&'a Seen>, Vec<&'a Seen>) =
            self.seen.iter().partition(|seen| wanted(seen));
        let warm = self.warm();
        for old in old {
            // It was healthy once: a control plane that has just begun does not know yet.
            let is_well = !old.stopping && !matches!(old.health, Health::Failing(_));
            match warm.filter(|warm| warm.deployment == old.deployment && is_well) {
                Some(warm) => {
                    self.roles.push((old.id.clone(), Role::Candidate));
                    let what = format!("{} to be needed no more", old.id);
                    self.wait(what, Some(warm.until_ms));
                }
                None => self.retire(old, drain, "its deployment is over"),
            }
        }
        if !desired.running {
            for instance in mine {
                self.retire(instance, drain, "the app is stopped");
            }
            return down("the app is stopped", 60);
        }
        let Some(closed) = &desired.closed else {
            return match rollout {
                Some(rollout) => self.roll_out(rollout),
                None => self.keep_active(),
            };
        };
        match rollout {
            // A deployment shows at any hour whether the new release can serve.
            Some(rollout) => {
                self.roll_out(rollout);
            }
            None => {
                let why = closed.reason();
                for instance in mine {
                    self.retire(instance, drain, &why);
                }
            }
        }
        closed.serve()
    }

    /// What stays ready: nothing, once there is something newer to make room for.
    fn warm(&self) -> Option<Warm> {
        let desired = self.desired;
        let serves = desired.running && desired.halted.is_none() && !desired.asleep;
        let alone = desired.rollout.is_none() && desired.closed.is_none();
        let warm = desired.warm.filter(|_| serves && alone);
        warm.filter(|warm| warm.until_ms > self.now_ms)
    }

    fn drain_timeout(&self) -> Duration {
        self.desired
            .active
            .as_ref()
            .or(self.desired.rollout.as_ref().map(|r| &r.version))
            .map_or(Duration::from_secs(15), |version| version.drain_timeout)
    }

    fn of(&self, deployment: u64) -> Vec<&'a Seen> {
        let seen = self.seen.iter().copied();
        seen.filter(|seen| seen.deployment == deployment).collect()
    }

    /// Lets an instance finish what it has, then stops it.
    fn retire(&mut self, seen: &Seen, drain: Duration, why: &str) {
        self.roles.push((seen.id.clone(), Role::Draining));
        if seen.stopping {
            return self.wait(format!("{} to end", seen.id), None);
        }
        let deadline = seen
            .draining_since_ms
            .map(|since| since + drain.as_millis() as u64);
        if seen.drained || deadline.is_some_and(|at| at <= self.now_ms) {
            self.steps.push(Step::Stop {
                instance: seen.id.clone(),
                why: why.to_owned(),
                sick: false,
            });
        } else {
            self.wait(format!("{} to finish its requests", seen.id), deadline);
        }
    }

    fn stop(&mut self, seen: &Seen, why: &str, sick: bool) {
        self.roles.push((seen.id.clone(), Role::Draining));
        if !seen.stopping {
            self.steps.push(Step::Stop {
                instance: seen.id.clone(),
                why: why.to_owned(),
                sick,
            });
        }
    }

    fn wait(&mut self, what: String, until_ms: Option<u64>) {
        self.steps.push(Step::Wait { what, until_ms });
    }

    fn roll_out(&mut self, rollout: &Rollout) -> Serve {
        let version = &rollout.version;
        let new = self.of(version.deployment);
        if let Some(reason) = &rollout.failure {
            return self.give_up(rollout, &new, reason.clone());
        }
        if version.without_instances {
            self.steps.push(Step::Promote {
                deployment: version.deployment,
            });
            return self.serve_meanwhile(version);
        }
        for instance in &new {
            if let Some(reason) = self.overdue(instance, version) {
                return self.give_up(rollout, &new, reason);
            }
            if let Health::Failing(why) = &instance.health {
                return self.give_up(rollout, &new, format!("it got unhealthy again: {why}"));
            }
        }
        let active = self.desired.active.as_ref();
        if version.strategy == Strategy::Recreate {
            let is_old = |seen: &&Seen| seen.deployment != version.deployment;
            let old: Vec<&Seen> = self.seen.iter().copied().filter(is_old).collect();
            let works = self.workers.iter().copied().any(|seen| is_old(&seen));
            let drain = self.drain_timeout();
            for instance in &old {
                // Those of no deployment were retired already.
                if active.is_some_and(|a| a.deployment == instance.deployment) {
                    self.retire(instance, drain, "the new release takes its place");
                }
            }
            if !old.is_empty() || works {
                return Serve::Hold;
            }
        }
        self.start_missing(version, &new);
        let healthy = new.iter().filter(|seen| seen.can_serve()).count();
        let split = self.split_of(rollout);
        self.split = split;
        for instance in &new {
            let role = match split.is_some() && instance.can_serve() {
                true => Role::Active,
                false => Role::Candidate,
            };
            self.roles.push((instance.id.clone(), role));
            if instance.health != Health::Healthy {
                let deadline = instance.started_ms + version.start_timeout.as_millis() as u64;
                self.wait(format!("{} to become healthy", instance.id), Some(deadline));
            }
        }
        let is_tried = split.is_some_and(|split| split.share < 100);
        if healthy >= version.instances as usize && !is_tried {
            let deployment = version.deployment;
            self.steps.push(match self.is_to_be_tried(rollout) {
                true => Step::Begin { deployment },
                false => Step::Promote { deployment },
            });
        }
        match (self.serve_meanwhile(version), split) {
            // Better the new release alone than nobody.
            (Serve::Hold, Some(_)) if healthy > 0 => Serve::Targets,
            (serve, _) => serve,
        }
    }

    /// How the visitors are split while a canary is under way.
    fn split_of(&self, rollout: &Rollout) -> Option<Split> {
        let share = rollout.share?;
        let is_canary = rollout.version.strategy == Strategy::Canary;
        (is_canary && self.desired.active.is_some()).then_some(Split {
            deployment: rollout.version.deployment,
            share,
        })
    }

    /// Whether a canary is to show first how it does: not where nothing is there to compare it with.
    fn is_to_be_tried(&self, rollout: &Rollout) -> bool {
        let is_new = rollout.version.strategy == Strategy::Canary && rollout.share.is_none();
        let Some(active) = self.desired.active.as_ref().filter(|_| is_new) else {
            return false;
        };
        let rests = self.desired.asleep || self.desired.closed.is_some();
        let stable = self.of(active.deployment);
        // One that is about to be back is waited for; one that ends again and again is nothing to compare with.
        let is_back = stable.into_iter().any(Seen::can_serve) || self.desired.failures <= 1;
        !active.without_instances && self.desired.halted.is_none() && (rests || is_back)
    }

    fn start_missing(&mut self, version: &Version, have: &[&Seen]) {
        let running = have.iter().filter(|seen| !seen.stopping).count();
        // A few at a time: each takes a while, and other apps wait for the same hands.
        for _ in (running..version.instances as usize).take(STARTS_AT_ONCE) {
            self.steps.push(Step::Start {
                deployment: version.deployment,
                worker: None,
            });
        }
    }

    fn give_up(&mut self, rollout: &Rollout, new: &[&Seen], reason: String) -> Serve {
        let version = &rollout.version;
        for instance in new {
            match self.split_of(rollout) {
                // It has visitors, who are let finish: the next plan goes on from there.
                Some(_) => self.roles.push((instance.id.clone(), Role::Draining)),
                None => self.stop(instance, "its deployment failed", false),
            }
        }
        self.steps.push(Step::Fail {
            deployment: version.deployment,
            reason,
        });
        self.serve_meanwhile(version)
    }

    /// What serves while a rollout is under way: the old instances, if they may and can.
    fn serve_meanwhile(&mut self, rollout: &Version) -> Serve {
        let Some(active) = &self.desired.active else {
            return Serve::Hold;
        };
        if active.without_instances {
            return Serve::Static;
        }
        if rollout.strategy == Strategy::Recreate && !rollout.without_instances {
            return Serve::Hold;
        }
        let old = self.of(active.deployment);
        let mut healthy = false;
        // Other rollouts are over soon; a canary may be under way for days.
        let looks_after = rollout.strategy == Strategy::Canary;
        for instance in &old {
            match self.sickness(instance, active).filter(|_| looks_after) {
                Some(why) => self.stop(instance, &why, true),
                None => healthy |= self.give_role(instance),
            }
        }
        let rests = self.desired.asleep || self.desired.closed.is_some();
        if self.desired.halted.is_none() && !rests {
            self.restart_missing(active, &old);
        }
        match (healthy, self.desired.asleep) {
            (true, _) => Serve::Targets,
            // Who asks now need not wait for the new release: the old one is woken.
            (false, true) => Serve::Asleep,
            (false, false) => Serve::Hold,
        }
    }

    /// Active if it can serve; says whether it does.
    fn give_role(&mut self, seen: &Seen) -> bool {
        let healthy = seen.can_serve();
        let role = match (healthy, seen.stopping) {
            (true, _) => Role::Active,
            (false, true) => Role::Draining,
            (false, false) => Role::Candidate,
        };
        self.roles.push((seen.id.clone(), role));
        healthy
    }

    fn keep_active(&mut self) -> Serve {
        let Some(active) = &self.desired.active else {
            return down("no release of this app ever got healthy", 30);
        };
        if active.without_instances {
            return Serve::Static;
        }
        let mut mine = self.of(active.deployment);
        if let Some(reason) = &self.desired.halted {
            for instance in mine {
                self.stop(instance, "the app is over", false);
            }
            return down(reason, 60);
        }
        if self.desired.asleep {
            for instance in mine {
                // Somebody may have come in the meantime: the gateway says so within a second.
                let drain = active.drain_timeout.max(WORD_OF_GATEWAY);
                self.retire(instance, drain, "nobody asks for it");
            }
            return Serve::Asleep;
        }
        // What ends already takes nobody's place: another is started beside it.
        let ending = mine.extract_if(.., |seen| seen.stopping);
        for seen in ending.collect::<Vec<_>>() {
            self.roles.push((seen.id.clone(), Role::Draining));
            self.wait(format!("{} to end", seen.id), None);
        }
        // Healthy ones first, then older ones: what is too many is at the end.
        mine.sort_by_key(|seen| (seen.health != Health::Healthy, seen.started_ms));
        let drain = active.drain_timeout;
        let surplus = mine.split_off(mine.len().min(active.instances as usize));
        for instance in surplus {
            self.retire(instance, drain, "fewer instances are wanted");
        }
        let mut healthy = 0;
        let mut starting = 0;
        for instance in &mine {
            if let Some(why) = self.sickness(instance, active) {
                self.stop(instance, &why, true);
            } else if self.give_role(instance) {
                healthy += 1;
            } else {
                starting += 1;
                let deadline = instance.started_ms + active.start_timeout.as_millis() as u64;
                self.wait(format!("{} to become healthy", instance.id), Some(deadline));
            }
        }
        if self.desired.idle && starting == 0 {
            self.steps.push(Step::Sleep);
            // The next plan says so.
            return if healthy > 0 {
                Serve::Targets
            } else {
                Serve::Hold
            };
        }
        let pause = self.restart_missing(active, &mine);
        match (healthy, starting) {
            (1.., _) => Serve::Targets,
            (0, _) if self.desired.failures <= 1 => Serve::Hold,
            (0, 1..) => down("the app is starting again after it ended", 2),
            _ => down(
                "the app ended and is started again after a pause",
                (pause.as_secs() as u32).clamp(1, 60),
            ),
        }
    }

    /// Starts what is missing of the active version, with back-off; says how long that is from now.
    fn restart_missing(&mut self, active: &Version, mine: &[&Seen]) -> Duration {
        let running = mine.iter().filter(|seen| !seen.stopping).count();
        if running >= active.instances as usize {
            return Duration::ZERO;
        }
        let another = |seen: &Seen| seen.stopping || seen.deployment != active.deployment;
        if active.strategy == Strategy::Recreate && self.seen.iter().copied().any(another) {
            self.wait("the instance before it to end".into(), None);
            return Duration::ZERO;
        }
        let desired = self.desired;
        let pause = backoff::pause(desired.failures);
        let at = desired.last_failure_ms + pause.as_millis() as u64;
        if desired.failures > 0 && at > self.now_ms {
            self.wait(
                format!("the pause after failure {}", desired.failures),
                Some(at),
            );
            return Duration::from_millis(at - self.now_ms);
        }
        self.start_missing(active, mine);
        Duration::ZERO
    }

    /// Workers run with the version that serves. They have no visitors to wait for: they are told to end, and
    /// have the stop time-out to finish what they are at.
    fn look_after_workers(&mut self) {
        let desired = self.desired;
        let makes_room = |rollout: &Rollout| {
            let version = &rollout.version;
            version.strategy == Strategy::Recreate && !version.without_instances
        };
        let given_up = |rollout: &Rollout| rollout.failure.is_some();
        let recreating = desired
            .rollout
            .as_ref()
            .is_some_and(|rollout| makes_room(rollout) && !given_up(rollout));
        let closed = desired.closed.as_ref().map(Closed::reason);
        let active = desired.active.as_ref();
        let active = active.filter(|_| desired.running && !recreating && closed.is_none());
        let is_of = |seen: &Seen, group: &Group| seen.worker.as_ref() == Some(&group.name);
        let is_wanted = |seen: &Seen| {
            let serves = active.is_some_and(|active| active.deployment == seen.deployment);
            serves && desired.workers.iter().any(|group| is_of(seen, group))
        };
        let (mine, old): (Vec<&Seen>, Vec<&Seen>) =
            self.workers.iter().partition(|seen| is_wanted(seen));
        for seen in &old {
            let why = match (desired.running, recreating, &closed) {
                (false, ..) => "the app is stopped",
                (_, true, _) => "the new release takes its place",
                (_, _, Some(closed)) => closed.as_str(),
                _ => "its deployment is over",
            };
            self.stop_worker(seen, why);
        }
        let Some(active) = active else { return };
        if active.strategy == Strategy::Recreate && !old.is_empty() {
            return;
        }
        // As for instances: other apps wait for the same hands.
        let mut budget = STARTS_AT_ONCE;
        for group in &desired.workers {
            let mut mine: Vec<&Seen> = mine.iter().copied().filter(|s| is_of(s, group)).collect();
            mine.retain(|seen| !seen.stopping);
            mine.sort_by_key(|seen| seen.started_ms);
            let wanted = if group.halted { 0 } else { group.instances };
            for seen in mine.split_off(mine.len().min(wanted as usize)) {
                self.stop_worker(seen, "fewer workers are wanted");
            }
            let pause = backoff::pause(group.failures);
            let at = group.last_failure_ms + pause.as_millis() as u64;
            if mine.len() < wanted as usize && group.failures > 0 && at > self.now_ms {
                let what = format!(
                    "the pause after failure {} of worker {}",
                    group.failures, group.name
                );
                self.wait(what, Some(at));
                continue;
            }
            for _ in (mine.len()..wanted as usize).take(budget) {
                budget -= 1;
                self.steps.push(Step::Start {
                    deployment: active.deployment,
                    worker: Some(group.name.clone()),
                });
            }
        }
    }

    fn stop_worker(&mut self, seen: &Seen, why: &str) {
        if seen.stopping {
            return self.wait(format!("{} to end", seen.id), None);
        }
        self.steps.push(Step::Stop {
            instance: seen.id.clone(),
            why: why.to_owned(),
            sick: false,
        });
    }

    /// Why an instance that serves, or is about to, has to go.
    fn sickness(&self, seen: &Seen, version: &Version) -> Option<String> {
        match &seen.health {
            Health::Failing(why) if !seen.stopping => {
                Some(format!("it is not healthy any more: {why}"))
            }
            _ => self.overdue(seen, version),
        }
    }

    fn overdue(&self, seen: &Seen, version: &Version) -> Option<String> {
        let Health::Starting(last) = &seen.health else {
            return None;
        };
        let deadline = seen.started_ms + version.start_timeout.as_millis() as u64;
        (!seen.stopping && deadline <= self.now_ms).then(|| {
            let time = crate::units::show_time(version.start_timeout);
            format!("it was not healthy within {time}: {last}")
        })
    }
}

fn down(reason: &str, retry_after_s: u32) -> Serve {
    Serve::Down {
        reason: reason.to_owned(),
        retry_after_s,
    }
}

#[cfg(test)]
mod tests;
