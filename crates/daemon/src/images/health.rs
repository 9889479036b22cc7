//! Whether an image's own health check (`HEALTHCHECK`) passes in the sandboxes of it: a program that is run beside the app
//! now and then. What an engine does for containers.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hutong_ipc::channel;
use hutong_ipc::docker::Health;
use hutong_ipc::shim::{Answer, Exec, Exit};
use hutong_ipc::warden::Instance;
use hutong_registry::{ContainerConfig, Healthcheck};
use hutong_runtime::client::DriverError;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::{Control, controller, ids, images, launch, lock};

/// How often is looked whose turn it is; also the shortest time between two checks, and that between those of an app
/// that is starting. Each costs the machine a process.
const LEAST: Duration = Duration::from_secs(1);
/// As Docker has them where an image does not say.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES: u32 = 3;
const LONGEST: Duration = Duration::from_secs(3600);
/// A check that takes longer failed, whatever the image allows: each holds a place.
const LONGEST_CHECK: Duration = Duration::from_secs(60);
/// Checks at once, of all apps; of an instance there is one.
const AT_ONCE: usize = 64;

/// A check as it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    argv: Vec<String>,
    interval: Duration,
    timeout: Duration,
    /// Failures in it do not count.
    start: Duration,
    retries: u32,
}

impl Check {
    /// None where an image has none, or wants none.
    fn of(config: &ContainerConfig) -> Option<Self> {
        let said: &Healthcheck = config.healthcheck.as_ref()?;
        let words = said.test.as_deref()?;
        let argv = match words.split_first()? {
            (kind, rest) if kind == "CMD" && !rest.is_empty() => rest.to_vec(),
            (kind, [line]) if kind == "CMD-SHELL" => {
                vec!["/bin/sh".into(), "-c".into(), line.clone()]
            }
            _ => return None,
        };
        let time = |nanoseconds: Option<i64>, default: Duration| match nanoseconds {
            Some(time) if time > 0 => Duration::from_nanos(time.unsigned_abs()).min(LONGEST),
            _ => default,
        };
        Some(Check {
            argv,
            interval: time(said.interval, INTERVAL).max(LEAST),
            timeout: time(said.timeout, TIMEOUT).min(LONGEST_CHECK),
            start: time(said.start_period, Duration::ZERO),
            retries: match said.retries {
                Some(retries) if retries > 0 => u32::try_from(retries).unwrap_or(u32::MAX),
                _ => RETRIES,
            },
        })
    }
}

/// Whether an image has a check: then an instance is not healthy before that has passed.
pub fn has_check(config: &ContainerConfig) -> bool {
    Check::of(config).is_some()
}

/// A check, and the variables that it is made with.
type Told = (Check, Vec<(String, String)>);

/// One instance that is checked.
struct Subject {
    /// What is found of one is not taken for another of the same name: a frozen instance comes and goes.
    number: u64,
    /// With its environment; `None` where the image has no check.
    check: Option<Arc<Told>>,
    began: Instant,
    next: Instant,
    failures: u32,
    health: Health,
}

impl Subject {
    /// Takes a result in.
    fn note(&mut self, check: &Check, passed: bool, now: Instant) {
        if passed {
            (self.failures, self.health) = (0, Health::Healthy);
        } else if self.health != Health::Starting || now >= self.began + check.start {
            self.failures += 1;
            if self.failures >= check.retries {
                self.health = Health::Unhealthy;
            }
        }
        self.next = now
            + match self.health {
                Health::Starting => check.interval.min(LEAST),
                _ => check.interval,
            };
    }
}

/// Looks after all of them for as long as the process runs.
pub async fn run(control: Arc<Control>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut subjects: HashMap<String, Subject> = HashMap::new();
    let mut numbers = 0u64..;
    let mut checks: JoinSet<(String, u64, bool)> = JoinSet::new();
    // Instances that are being checked; also of subjects that are gone meanwhile.
    let mut under_way: HashSet<String> = HashSet::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LEAST) => {}
            Some(done) = checks.join_next(), if !checks.is_empty() => {
                if let Ok((instance, number, passed)) = done {
                    under_way.remove(&instance);
                    note(&control, &mut subjects, (instance.as_str(), number), passed);
                }
                continue;
            }
        }
        let listed: Vec<Instance> = lock(&control.observed)
            .instances
            .values()
            .cloned()
            .collect();
        let web = |one: &&Instance| {
            let is_web = ids::kind(&one.instance) == ids::Kind::Web;
            is_web && one.container.is_none() && !one.frozen && !one.ending
        };
        let listed: Vec<Instance> = listed.iter().filter(web).cloned().collect();
        let names: HashSet<&str> = listed.iter().map(|one| one.instance.as_str()).collect();
        subjects.retain(|name, _| names.contains(name.as_str()));
        for one in &listed {
            if !subjects.contains_key(&one.instance) {
                let (ours, instance) = (control.clone(), one.clone());
                let found = tokio::task::spawn_blocking(move || subject(&ours, &instance)).await;
                if let (Ok(Some(found)), Some(number)) = (found, numbers.next()) {
                    let found = Subject { number, ..found };
                    subjects.insert(one.instance.clone(), found);
                }
            }
        }
        let now = Instant::now();
        for (name, subject) in &subjects {
            let Some(check) = subject.check.clone() else {
                continue;
            };
            if subject.next > now || !under_way.insert(name.clone()) {
                continue;
            }
            let (ours, name, places) = (control.clone(), name.clone(), places.clone());
            let number = subject.number;
            checks.spawn(async move {
                let _place = places.acquire_owned().await;
                let asked = name.clone();
                let passed = tokio::task::spawn_blocking(move || passes(&ours, &asked, &check));
                (name, number, passed.await.unwrap_or(false))
            });
        }
    }
}

fn note(
    control: &Control,
    subjects: &mut HashMap<String, Subject>,
    (instance, number): (&str, u64),
    passed: bool,
) {
    let subject = subjects.get_mut(instance);
    let Some(subject) = subject.filter(|subject| subject.number == number) else {
        return;
    };
    let Some(check) = subject.check.clone() else {
        return;
    };
    let before = subject.health;
    subject.note(&check.0, passed, Instant::now());
    if before != subject.health {
        let mut observed = lock(&control.observed);
        // Unless it is gone, and forgotten.
        if observed.instances.contains_key(instance) {
            let health = subject.health;
            observed.image_health.insert(instance.to_owned(), health);
        }
        drop(observed);
        control.wake.notify_one();
    }
}

/// What there is to check of an instance; `None` if that cannot be said now.
fn subject(control: &Control, instance: &Instance) -> Option<Subject> {
    let made = controller::version_of(control, Some(instance.deployment)).ok()??;
    let (_, release, spec) = made;
    let now = Instant::now();
    let mut subject = Subject {
        number: 0,
        check: None,
        began: now,
        next: now,
        failures: 0,
        // Of what ran before us nothing bad is known.
        health: match instance.started_steady < control.began_ms {
            true => Health::Healthy,
            false => Health::Starting,
        },
    };
    let Some(digest) = images::of_release(&release) else {
        return Some(subject);
    };
    let config = control.images.image(&digest).ok()?.config.config;
    let config = config.unwrap_or_default();
    if let Some(check) = Check::of(&config) {
        let kind = ids::kind(&instance.instance);
        let own = launch::environment(control, &spec, release.number, kind).ok()?;
        let env = launch::image_env(&config, &spec, &instance.instance, own);
        subject.check = Some(Arc::new((check, env)));
    }
    Some(subject)
}

/// Makes the check once. A program that takes too long is killed with the line that it was asked for on.
fn passes(control: &Control, instance: &str, check: &(Check, Vec<(String, String)>)) -> bool {
    let (check, env) = check;
    let exec = Exec {
        argv: check.argv.clone(),
        env: env.clone(),
        terminal: false,
    };
    let made = || -> Result<bool, DriverError> {
        let failed = |error: std::io::Error| DriverError::Refused(error.to_string());
        let null = || File::options().read(true).write(true).open("/dev/null");
        let stdio = [
            null().map_err(failed)?,
            null().map_err(failed)?,
            null().map_err(failed)?,
        ];
        let line = control.warden.exec(instance, exec, stdio)?;
        line.set_read_timeout(Some(check.timeout)).map_err(failed)?;
        let ended = channel::receive::<Answer>(&line);
        Ok(matches!(
            ended,
            Ok(Some((Answer::ExecEnded(Exit::Code(0)), _)))
        ))
    };
    made().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(test: &[&str], interval: Option<i64>) -> ContainerConfig {
        ContainerConfig {
            healthcheck: Some(Healthcheck {
                test: Some(test.iter().map(|word| (*word).to_owned()).collect()),
                interval,
                retries: Some(2),
                start_period: Some(5_000_000_000),
                ..Healthcheck::default()
            }),
            ..ContainerConfig::default()
        }
    }

    #[test]
    fn checks_are_read_as_docker_writes_them() {
        let shell = Check::of(&config(&["CMD-SHELL", "curl -f x"], Some(1))).expect("one");
        assert_eq!(shell.argv, ["/bin/sh", "-c", "curl -f x"]);
        assert_eq!((shell.interval, shell.timeout), (LEAST, TIMEOUT));
        let plain = Check::of(&config(&["CMD", "/check", "now"], None)).expect("one");
        assert_eq!(plain.argv, ["/check", "now"]);
        assert_eq!((plain.interval, plain.retries), (INTERVAL, 2));
        let mut slow = config(&["CMD", "/check"], None);
        if let Some(check) = &mut slow.healthcheck {
            check.timeout = Some(3_600_000_000_000);
        }
        assert_eq!(Check::of(&slow).expect("one").timeout, LONGEST_CHECK);
        for none in [&["NONE"][..], &[], &["CMD"], &["CMD-SHELL"], &["/check"]] {
            assert_eq!(Check::of(&config(none, None)), None, "{none:?}");
        }
        assert!(!has_check(&ContainerConfig::default()));
    }

    #[test]
    fn it_takes_some_failures_and_one_success() {
        let check = Check::of(&config(&["CMD", "x"], None)).expect("one");
        let began = Instant::now();
        let mut subject = Subject {
            number: 0,
            check: None,
            began,
            next: began,
            failures: 0,
            health: Health::Starting,
        };
        for _ in 0..9 {
            subject.note(&check, false, began);
            assert_eq!(subject.health, Health::Starting, "it may still begin");
        }
        assert!(subject.next <= began + LEAST);
        subject.note(&check, true, began);
        assert_eq!(subject.health, Health::Healthy);
        assert_eq!(subject.next, began + INTERVAL);
        subject.note(&check, false, began);
        assert_eq!(subject.health, Health::Healthy);
        subject.note(&check, false, began);
        assert_eq!(subject.health, Health::Unhealthy);
    }
}
