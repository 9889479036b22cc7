//! Scenarios: what is wanted and seen goes in, the plan's own words come out.

use super::*;

fn version(deployment: u64, instances: u32, strategy: Strategy) -> Version {
    Version {
        deployment,
        without_instances: false,
        instances,
        strategy,
        restart: Restart::Always,
        start_timeout: Duration::from_secs(30),
        drain_timeout: Duration::from_secs(15),
    }
}

fn wanted(active: Option<Version>, rollout: Option<Version>) -> Desired {
    Desired {
        running: true,
        isolated: false,
        active,
        rollout: rollout.map(|version| Rollout {
            version,
            failure: None,
            share: None,
        }),
        warm: None,
        failures: 0,
        last_failure_ms: 0,
        halted: None,
        asleep: false,
        idle: false,
        closed: None,
        workers: Vec::new(),
    }
}

fn seen(id: &str, deployment: u64, health: Health) -> Seen {
    Seen {
        id: id.into(),
        deployment,
        worker: None,
        started_ms: 1000,
        health,
        stopping: false,
        draining_since_ms: None,
        drained: false,
    }
}

fn starting() -> Health {
    Health::Starting("nothing listens on port 8080".into())
}

fn show(desired: &Desired, seen: &[Seen], now_ms: u64) -> String {
    let plan = plan(desired, seen, now_ms);
    let mut lines = vec![format!("serve: {:?}", plan.serve)];
    lines.extend(
        plan.roles
            .iter()
            .map(|(id, role)| format!("{id}: {role:?}")),
    );
    lines.extend(plan.steps.iter().map(ToString::to_string));
    lines.join("\n")
}

use Strategy::{Recreate, Rolling};

#[test]
fn a_first_deploy_starts_waits_and_takes_over() {
    let desired = wanted(None, Some(version(1, 2, Rolling)));
    insta::assert_snapshot!(show(&desired, &[], 1000), @r"
    serve: Hold
    start an instance of deployment 1
    start an instance of deployment 1
    ");
    let instances = [seen("a", 1, Health::Healthy), seen("b", 1, starting())];
    insta::assert_snapshot!(show(&desired, &instances, 2000), @r"
    serve: Hold
    a: Candidate
    b: Candidate
    wait for b to become healthy
    ");
    let instances = [seen("a", 1, Health::Healthy), seen("b", 1, Health::Healthy)];
    insta::assert_snapshot!(show(&desired, &instances, 2000), @r"
    serve: Hold
    a: Candidate
    b: Candidate
    deployment 1 takes over
    ");
}

#[test]
fn a_rolling_deploy_never_stops_the_old_before_the_new_serves() {
    let desired = wanted(Some(version(1, 1, Rolling)), Some(version(2, 1, Rolling)));
    let instances = [seen("old", 1, Health::Healthy), seen("new", 2, starting())];
    insta::assert_snapshot!(show(&desired, &instances, 2000), @r"
    serve: Targets
    new: Candidate
    old: Active
    wait for new to become healthy
    ");
    let after = wanted(Some(version(2, 1, Rolling)), None);
    let mut instances = [
        seen("old", 1, Health::Healthy),
        seen("new", 2, Health::Healthy),
    ];
    insta::assert_snapshot!(show(&after, &instances, 2000), @r"
    serve: Targets
    old: Draining
    new: Active
    wait for old to finish its requests
    ");
    instances[0].drained = true;
    insta::assert_snapshot!(show(&after, &instances, 2000), @r"
    serve: Targets
    old: Draining
    new: Active
    stop old: its deployment is over
    ");
    instances[0].drained = false;
    instances[0].draining_since_ms = Some(2000);
    insta::assert_snapshot!(show(&after, &instances, 17_000), @r"
    serve: Targets
    old: Draining
    new: Active
    stop old: its deployment is over
    ");
}

#[test]
fn a_recreate_deploy_holds_the_requests_and_never_runs_both() {
    let desired = wanted(Some(version(1, 1, Recreate)), Some(version(2, 1, Recreate)));
    let mut old = seen("old", 1, Health::Healthy);
    insta::assert_snapshot!(show(&desired, &[old.clone()], 2000), @r"
    serve: Hold
    old: Draining
    wait for old to finish its requests
    ");
    old.drained = true;
    old.stopping = true;
    insta::assert_snapshot!(show(&desired, &[old], 2000), @r"
    serve: Hold
    old: Draining
    wait for old to end
    ");
    insta::assert_snapshot!(show(&desired, &[], 2000), @r"
    serve: Hold
    start an instance of deployment 2
    ");
    // The new one failed: the old one comes back, and requests still wait.
    let back = wanted(Some(version(1, 1, Recreate)), None);
    insta::assert_snapshot!(show(&back, &[], 2000), @r"
    serve: Hold
    start an instance of deployment 1
    ");
}

#[test]
fn a_release_that_does_not_get_healthy_is_given_up_and_the_old_one_serves_on() {
    let mut desired = wanted(Some(version(1, 1, Rolling)), Some(version(2, 1, Rolling)));
    let instances = [seen("old", 1, Health::Healthy), seen("new", 2, starting())];
    insta::assert_snapshot!(show(&desired, &instances, 31_000), @r"
    serve: Targets
    new: Draining
    old: Active
    stop new: its deployment failed
    give up deployment 2: it was not healthy within 30s: nothing listens on port 8080
    ");
    desired.rollout.as_mut().expect("set").failure = Some("exited with code 1".into());
    insta::assert_snapshot!(show(&desired, &instances[..1], 1000), @r"
    serve: Targets
    old: Active
    give up deployment 2: exited with code 1
    ");
}

#[test]
fn what_ends_is_started_again_with_growing_pauses() {
    let mut desired = wanted(Some(version(1, 1, Rolling)), None);
    desired.failures = 1;
    desired.last_failure_ms = 10_000;
    insta::assert_snapshot!(show(&desired, &[], 10_050), @r"
    serve: Hold
    wait for the pause after failure 1
    ");
    insta::assert_snapshot!(show(&desired, &[], 10_200), @r"
    serve: Hold
    start an instance of deployment 1
    ");
    desired.failures = 5;
    insta::assert_snapshot!(show(&desired, &[], 10_200), @r#"
    serve: Down { reason: "the app ended and is started again after a pause", retry_after_s: 7 }
    wait for the pause after failure 5
    "#);
    desired.halted = Some("exited with code 0".into());
    insta::assert_snapshot!(show(&desired, &[], 99_000), @r#"serve: Down { reason: "exited with code 0", retry_after_s: 60 }"#);
}

#[test]
fn stopped_scaled_down_and_sick_instances_go() {
    let mut desired = wanted(Some(version(1, 1, Rolling)), None);
    let mut two = [seen("a", 1, Health::Healthy), seen("b", 1, Health::Healthy)];
    two[1].drained = true;
    insta::assert_snapshot!(show(&desired, &two, 2000), @r"
    serve: Targets
    b: Draining
    a: Active
    stop b: fewer instances are wanted
    ");
    let sick = [seen("a", 1, Health::Failing("503".into()))];
    insta::assert_snapshot!(show(&desired, &sick, 2000), @r"
    serve: Hold
    a: Draining
    stop a: it is not healthy any more: 503
    ");
    desired.running = false;
    insta::assert_snapshot!(show(&desired, &two[1..], 2000), @r#"
    serve: Down { reason: "the app is stopped", retry_after_s: 60 }
    b: Draining
    stop b: the app is stopped
    "#);
}

fn stopping(mut seen: Seen) -> Seen {
    seen.stopping = true;
    seen
}

/// What ends takes nobody's place: neither is the new one too many, nor is a third one started.
#[test]
fn an_instance_that_ends_slowly_is_replaced_once() {
    let desired = wanted(Some(version(1, 1, Rolling)), None);
    for health in [Health::Failing("500".into()), Health::Healthy] {
        let mut new = seen("new", 1, starting());
        new.started_ms = 2000;
        let instances = [stopping(seen("old", 1, health)), new];
        insta::allow_duplicates! {
            insta::assert_snapshot!(show(&desired, &instances, 2500), @r"
            serve: Hold
            old: Draining
            new: Candidate
            wait for old to end
            wait for new to become healthy
            ");
        }
    }
}

/// Runs plans against a world in which programs take their time to get healthy and to end.
fn simulate(
    desired: &Desired,
    mut world: Vec<Seen>,
    ends_within_ms: u64,
    lasts_ms: u64,
) -> (usize, Vec<Seen>) {
    let (mut starts, mut ends_at) = (0, std::collections::HashMap::new());
    for now in (2000..2000 + lasts_ms).step_by(50) {
        for step in plan(desired, &world, now).steps {
            match step {
                Step::Start { deployment, .. } => {
                    starts += 1;
                    let mut fresh = seen(&format!("n{starts}"), deployment, starting());
                    fresh.started_ms = now;
                    world.push(fresh);
                }
                Step::Stop { instance, .. } => {
                    ends_at.entry(instance).or_insert(now + ends_within_ms);
                }
                _ => {}
            }
        }
        world.retain(|seen| ends_at.get(&seen.id).is_none_or(|at| *at > now));
        for seen in &mut world {
            seen.stopping |= ends_at.contains_key(&seen.id);
            if now >= seen.started_ms + 300 && matches!(seen.health, Health::Starting(_)) {
                seen.health = Health::Healthy;
            }
            // The gateway has nothing of it any more.
            seen.drained = true;
        }
    }
    (starts, world)
}

#[test]
fn sick_instances_are_replaced_one_for_one_however_long_they_take_to_end() {
    for ends_within in [0, 1000, 10_000] {
        for count in [1, 3] {
            let desired = wanted(Some(version(1, count, Rolling)), None);
            let sick: Vec<Seen> = (0..count)
                .map(|n| seen(&format!("old{n}"), 1, Health::Failing("500".into())))
                .collect();
            let (starts, world) = simulate(&desired, sick, ends_within, 30_000);
            assert_eq!(starts, count as usize, "ends within {ends_within} ms");
            assert_eq!(world.len(), count as usize);
            assert!(world.iter().all(|seen| seen.health == Health::Healthy));
        }
    }
}

#[test]
fn an_app_that_is_scaled_down_and_up_at_once_converges() {
    let desired = wanted(Some(version(1, 2, Rolling)), None);
    let world = vec![
        seen("a", 1, Health::Healthy),
        stopping(seen("b", 1, Health::Healthy)),
        stopping(seen("c", 1, Health::Healthy)),
    ];
    let (starts, world) = simulate(&desired, world, 5000, 20_000);
    assert_eq!(starts, 1);
    let alive = world.iter().filter(|seen| !seen.stopping).count();
    assert_eq!(alive, 2);
}

#[test]
fn nobody_asks_and_then_somebody_does() {
    let mut desired = wanted(Some(version(1, 1, Rolling)), None);
    let mut one = seen("a", 1, Health::Healthy);
    desired.idle = true;
    assert_eq!(
        show(&desired, std::slice::from_ref(&one), 5000),
        "serve: Targets\na: Active\nfall asleep"
    );
    // While it starts somebody is about to be served.
    assert!(!show(&desired, &[seen("a", 1, starting())], 5000).contains("asleep"));
    (desired.idle, desired.asleep) = (false, true);
    assert_eq!(
        show(&desired, std::slice::from_ref(&one), 5000),
        "serve: Asleep\na: Draining\nwait for a to finish its requests"
    );
    one.draining_since_ms = Some(5000);
    one.drained = true;
    assert_eq!(
        show(&desired, std::slice::from_ref(&one), 5001),
        "serve: Asleep\na: Draining\nstop a: nobody asks for it"
    );
    assert_eq!(show(&desired, &[], 6000), "serve: Asleep");
    // Awake again before it was told to stop, it serves; behind that another one is started.
    desired.asleep = false;
    assert_eq!(
        show(&desired, std::slice::from_ref(&one), 5001),
        "serve: Targets\na: Active"
    );
    one.stopping = true;
    assert_eq!(
        show(&desired, &[one], 5001),
        "serve: Hold\na: Draining\nwait for a to end\nstart an instance of deployment 1"
    );
}

#[test]
fn a_sleeping_app_is_deployed_without_being_woken() {
    let mut desired = wanted(Some(version(1, 1, Rolling)), Some(version(2, 1, Rolling)));
    desired.asleep = true;
    assert_eq!(
        show(&desired, &[], 5000),
        "serve: Asleep\nstart an instance of deployment 2"
    );
    // Somebody asks nevertheless: what was before serves until the new one does.
    desired.asleep = false;
    assert_eq!(
        show(&desired, &[], 5000),
        "serve: Hold\nstart an instance of deployment 2\nstart an instance of deployment 1"
    );
}

#[test]
fn what_falls_asleep_is_not_started() {
    let mut desired = wanted(Some(version(1, 1, Rolling)), None);
    desired.idle = true;
    assert_eq!(show(&desired, &[], 5000), "serve: Hold\nfall asleep");
}

fn worker(id: &str, deployment: u64, name: &str) -> Seen {
    Seen {
        worker: Some(name.into()),
        ..seen(id, deployment, starting())
    }
}

fn group(name: &str, instances: u32) -> Group {
    Group {
        name: name.into(),
        instances,
        failures: 0,
        last_failure_ms: 0,
        halted: false,
    }
}

#[test]
fn workers_follow_the_version_that_serves() {
    let mut desired = wanted(Some(version(1, 1, Rolling)), Some(version(2, 1, Rolling)));
    desired.workers = vec![group("mail", 2)];
    let mut all = vec![
        seen("old", 1, Health::Healthy),
        worker("m1", 1, "mail"),
        worker("m2", 1, "mail"),
        worker("x", 1, "gone"),
        seen("new", 2, Health::Healthy),
    ];
    insta::assert_snapshot!(show(&desired, &all, 2000), @r"
    serve: Targets
    new: Candidate
    old: Active
    deployment 2 takes over
    stop x: its deployment is over
    ");
    // After that, the old ones end and the new ones begin.
    desired.active = Some(version(2, 1, Rolling));
    desired.rollout = None;
    all.remove(3);
    all[0].drained = true;
    insta::assert_snapshot!(show(&desired, &all, 2000), @r"
    serve: Targets
    old: Draining
    new: Active
    stop old: its deployment is over
    stop m1: its deployment is over
    stop m2: its deployment is over
    start a worker mail of deployment 2
    start a worker mail of deployment 2
    ");
    // Where one must be gone before the other, that holds for workers, too.
    desired.active = Some(version(2, 1, Recreate));
    all[1].stopping = true;
    insta::assert_snapshot!(show(&desired, &all[1..], 2000), @r"
    serve: Targets
    new: Active
    wait for m1 to end
    stop m2: its deployment is over
    ");
}

#[test]
fn a_recreate_waits_for_the_workers_and_takes_them_back_when_it_fails() {
    let mut desired = wanted(Some(version(1, 1, Recreate)), Some(version(2, 1, Recreate)));
    desired.workers = vec![group("mail", 1)];
    let all = [worker("m1", 1, "mail")];
    insta::assert_snapshot!(show(&desired, &all, 2000), @r"
    serve: Hold
    stop m1: the new release takes its place
    ");
    if let Some(rollout) = &mut desired.rollout {
        rollout.failure = Some("it did not start".into());
    }
    insta::assert_snapshot!(show(&desired, &[], 2000), @r"
    serve: Hold
    give up deployment 2: it did not start
    start a worker mail of deployment 1
    ");
}

#[test]
fn a_worker_that_ends_is_started_again_with_pauses_of_its_own() {
    let mut desired = wanted(Some(version(1, 1, Rolling)), None);
    desired.workers = vec![group("mail", 1), group("thumbs", 1)];
    desired.workers[0].failures = 4;
    desired.workers[0].last_failure_ms = 5000;
    let all = [seen("a", 1, Health::Healthy)];
    insta::assert_snapshot!(show(&desired, &all, 6000), @r"
    serve: Targets
    a: Active
    wait for the pause after failure 4 of worker mail
    start a worker thumbs of deployment 1
    ");
    desired.workers[0].halted = true;
    desired.running = false;
    insta::assert_snapshot!(show(&desired, &[worker("t", 1, "thumbs")], 6000), @r#"
    serve: Down { reason: "the app is stopped", retry_after_s: 60 }
    stop t: the app is stopped
    "#);
}

#[test]
fn what_is_in_quarantine_is_left_as_it_is() {
    let mut desired = wanted(Some(version(1, 2, Rolling)), Some(version(2, 1, Recreate)));
    desired.isolated = true;
    let all = [
        seen("a", 1, Health::Failing("it is frozen".into())),
        seen("x", 7, starting()),
    ];
    insta::assert_snapshot!(show(&desired, &all, 2000), @r#"serve: Down { reason: "the app is isolated", retry_after_s: 300 }"#);
}

fn closed() -> Option<Closed> {
    Some(Closed {
        until: "06:00 Asia/Shanghai".into(),
        until_ms: 7,
    })
}

#[test]
fn in_its_owners_hours_everything_of_it_stops() {
    let mut desired = wanted(Some(version(1, 2, Rolling)), None);
    desired.workers = vec![group("mail", 1)];
    desired.closed = closed();
    let mut all = vec![
        seen("a", 1, Health::Healthy),
        seen("b", 1, starting()),
        worker("m", 1, "mail"),
    ];
    all[1].drained = true;
    insta::assert_snapshot!(show(&desired, &all, 2000), @r#"
    serve: Closed { reason: "the app is down until 06:00 Asia/Shanghai", until_ms: 7 }
    a: Draining
    b: Draining
    wait for a to finish its requests
    stop b: the app is down until 06:00 Asia/Shanghai
    stop m: the app is down until 06:00 Asia/Shanghai
    "#);
    // Nothing is started, whether it could sleep or not.
    for asleep in [false, true] {
        desired.asleep = asleep;
        assert_eq!(
            show(&desired, &[], 2000),
            "serve: Closed { reason: \"the app is down until 06:00 Asia/Shanghai\", until_ms: 7 }"
        );
    }
    // Stopped is stopped.
    desired.running = false;
    assert!(show(&desired, &[], 2000).contains("the app is stopped"));
    // What comes after is as after any sleep: its workers run, and it waits for somebody.
    (desired.running, desired.closed) = (true, None);
    assert_eq!(
        show(&desired, &[], 2000),
        "serve: Asleep\nstart a worker mail of deployment 1"
    );
}

#[test]
fn a_deployment_in_its_owners_hours_shows_that_the_release_can_serve() {
    let mut desired = wanted(Some(version(1, 1, Rolling)), Some(version(2, 1, Rolling)));
    desired.workers = vec![group("mail", 1)];
    desired.closed = closed();
    let begins = show(&desired, &[], 2000);
    assert!(
        begins.ends_with("start an instance of deployment 2"),
        "{begins}"
    );
    let new = [seen("new", 2, Health::Healthy)];
    let serves = show(&desired, &new, 2000);
    assert!(serves.starts_with("serve: Closed"), "{serves}");
    assert!(serves.ends_with("deployment 2 takes over"), "{serves}");
    desired.active = Some(version(2, 1, Rolling));
    desired.rollout = None;
    let over = show(&desired, &new, 2000);
    assert!(over.contains("new: Draining"), "{over}");
}

fn on_trial(share: Option<u32>) -> Desired {
    let canary = version(2, 1, Strategy::Canary);
    let mut desired = wanted(Some(version(1, 1, Rolling)), Some(canary));
    desired.rollout.as_mut().expect("set").share = share;
    desired
}

#[test]
fn a_canary_gets_visitors_once_it_is_healthy_and_takes_over_at_a_hundred() {
    let mut instances = [seen("old", 1, Health::Healthy), seen("new", 2, starting())];
    insta::assert_snapshot!(show(&on_trial(None), &instances, 2000), @r"
    serve: Targets
    new: Candidate
    old: Active
    wait for new to become healthy
    ");
    instances[1].health = Health::Healthy;
    insta::assert_snapshot!(show(&on_trial(None), &instances, 2000), @r"
    serve: Targets
    new: Candidate
    old: Active
    deployment 2 gets its first visitors
    ");
    insta::assert_snapshot!(show(&on_trial(Some(5)), &instances, 2000), @r"
    serve: Targets
    new: Active
    old: Active
    ");
    let split = Split {
        deployment: 2,
        share: 5,
    };
    assert_eq!(
        plan(&on_trial(Some(5)), &instances, 2000).split,
        Some(split)
    );
    insta::assert_snapshot!(show(&on_trial(Some(100)), &instances, 2000), @r"
    serve: Targets
    new: Active
    old: Active
    deployment 2 takes over
    ");
}

#[test]
fn a_canary_that_is_given_up_finishes_what_it_has() {
    let mut desired = on_trial(Some(25));
    desired.rollout.as_mut().expect("set").failure = Some("it fails".into());
    let instances = [
        seen("old", 1, Health::Healthy),
        seen("new", 2, Health::Healthy),
    ];
    insta::assert_snapshot!(show(&desired, &instances, 2000), @r"
    serve: Targets
    new: Draining
    old: Active
    give up deployment 2: it fails
    ");
    assert_eq!(plan(&desired, &instances, 2000).split, None);
    let after = wanted(Some(version(1, 1, Rolling)), None);
    insta::assert_snapshot!(show(&after, &instances, 2000), @r"
    serve: Targets
    new: Draining
    old: Active
    wait for new to finish its requests
    ");
}

#[test]
fn a_canary_without_anything_to_compare_it_with_takes_over() {
    let new = [seen("new", 2, Health::Healthy)];
    let first = wanted(None, Some(version(2, 1, Strategy::Canary)));
    insta::assert_snapshot!(show(&first, &new, 2000), @r"
    serve: Hold
    new: Candidate
    deployment 2 takes over
    ");
    let mut broken = on_trial(None);
    broken.halted = Some("it ended".into());
    insta::assert_snapshot!(show(&broken, &new, 2000), @r"
    serve: Hold
    new: Candidate
    deployment 2 takes over
    ");
    // Once it has begun it serves alone where the other cannot.
    let mut alone = on_trial(Some(5));
    alone.halted = Some("it ended".into());
    insta::assert_snapshot!(show(&alone, &new, 2000), @r"
    serve: Targets
    new: Active
    ");
}

#[test]
fn what_serves_beside_a_canary_is_looked_after() {
    let new = seen("new", 2, Health::Healthy);
    let old = |health| seen("old", 1, health);
    let mut instances = [old(Health::Failing("503".into())), new];
    insta::assert_snapshot!(show(&on_trial(Some(5)), &instances, 2000), @r"
    serve: Targets
    new: Active
    old: Draining
    stop old: it is not healthy any more: 503
    ");
    // Told once; another one takes its place.
    instances[0].stopping = true;
    insta::assert_snapshot!(show(&on_trial(Some(5)), &instances, 2000), @r"
    serve: Targets
    new: Active
    old: Draining
    start an instance of deployment 1
    ");
    instances[0] = old(starting());
    insta::assert_snapshot!(show(&on_trial(Some(5)), &instances, 31_000), @r"
    serve: Targets
    new: Active
    old: Draining
    stop old: it was not healthy within 30s: nothing listens on port 8080
    ");
    // What takes over within a minute leaves the old ones as they are.
    instances[0] = old(Health::Failing("503".into()));
    let rolling = wanted(Some(version(1, 1, Rolling)), Some(version(2, 2, Rolling)));
    let shown = show(&rolling, &instances, 2000);
    assert!(shown.contains("old: Candidate"), "{shown}");
}

#[test]
fn a_canary_is_tried_also_when_what_serves_is_restarting() {
    let mut desired = on_trial(None);
    let new = seen("new", 2, Health::Healthy);
    let instances = [seen("old", 1, starting()), new];
    for failures in [0, 1] {
        desired.failures = failures;
        let shown = show(&desired, &instances, 2000);
        assert!(
            shown.ends_with("deployment 2 gets its first visitors"),
            "{shown}"
        );
    }
    desired.failures = 2;
    let shown = show(&desired, &instances, 2000);
    assert!(shown.ends_with("deployment 2 takes over"), "{shown}");
    // At rest it is no worse for that, but over is over.
    desired.asleep = true;
    let shown = show(&desired, &instances[1..], 2000);
    assert!(
        shown.ends_with("deployment 2 gets its first visitors"),
        "{shown}"
    );
    desired.halted = Some("it ended".into());
    let shown = show(&desired, &instances[1..], 2000);
    assert!(shown.ends_with("deployment 2 takes over"), "{shown}");
}

#[test]
fn the_release_before_stays_ready_for_a_while() {
    let mut desired = wanted(Some(version(2, 1, Strategy::BlueGreen)), None);
    desired.warm = Some(Warm {
        deployment: 1,
        until_ms: 9000,
    });
    let mut instances = [
        seen("old", 1, Health::Healthy),
        seen("new", 2, Health::Healthy),
    ];
    insta::assert_snapshot!(show(&desired, &instances, 2000), @r"
    serve: Targets
    old: Candidate
    new: Active
    wait for old to be needed no more
    ");
    insta::assert_snapshot!(show(&desired, &instances, 9000), @r"
    serve: Targets
    old: Draining
    new: Active
    wait for old to finish its requests
    ");
    instances[0].health = Health::Failing("it hangs".into());
    insta::assert_snapshot!(show(&desired, &instances, 2000), @r"
    serve: Targets
    old: Draining
    new: Active
    wait for old to finish its requests
    ");
    instances[0].health = Health::Healthy;
    desired.rollout = Some(Rollout {
        version: version(3, 1, Strategy::BlueGreen),
        failure: None,
        share: None,
    });
    insta::assert_snapshot!(show(&desired, &instances, 2000), @r"
    serve: Targets
    old: Draining
    new: Active
    wait for old to finish its requests
    start an instance of deployment 3
    ");
}
