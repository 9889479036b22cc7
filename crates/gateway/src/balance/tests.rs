use super::*;
use hutong_http::request::Scan;
use hutong_ipc::gateway::{self as wire, Balance, Health, Protocol, Serve, Snapshot};
use std::collections::{BTreeMap, HashMap};

use crate::table::Table;

fn app(weights: &[u32], balance: Balance) -> Arc<App> {
    let target = |(index, weight): (usize, &u32)| wire::Target {
        instance: format!("a-{index}"),
        deployment: index as u64,
        port: 1,
        address: None,
        control: false,
        protocol: Protocol::Http,
        weight: *weight,
        health: Health {
            path: None,
            interval_ms: 1,
            timeout_ms: 1,
            retries: 1,
        },
        role: Role::Active,
    };
    let app = wire::App {
        routes: Vec::new(),
        serve: Serve::Targets,
        targets: weights.iter().enumerate().map(target).collect(),
        response_timeout_ms: 1,
        hold_timeout_ms: 1,
        https: wire::Https::default(),
        balance,
        traffic: wire::Traffic::default(),
        sleep_after_ms: None,
        links: BTreeMap::new(),
        callers: Vec::new(),
        scales: false,
        split: None,
    };
    let snapshot = Snapshot {
        version: 1,
        apps: BTreeMap::from([("a".to_owned(), app)]),
    };
    let table = Table::build(snapshot, &Table::default(), std::path::Path::new("/"));
    for (_, target) in &table.apps[0].targets {
        target.healthy.store(true, Ordering::SeqCst);
    }
    table.apps[0].clone()
}

fn with(method: Method) -> Balance {
    Balance {
        method,
        ..Balance::default()
    }
}

fn shares(choose: impl Fn() -> Arc<Target>, times: usize) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for _ in 0..times {
        *counts.entry(choose().instance.clone()).or_insert(0) += 1;
    }
    counts
}

#[test]
fn weights_say_how_often() {
    let app = app(&[5, 3, 2], with(Method::RoundRobin));
    let usable = usable(&app, &[], None);
    let counts = shares(|| in_turn(&app, &usable).clone(), 1000);
    for (instance, wanted) in [("a-0", 500), ("a-1", 300), ("a-2", 200)] {
        let found = counts[instance];
        assert!(found.abs_diff(wanted) <= 5, "{instance} {found}");
    }
    // No target gets all of its share in a row.
    let run: Vec<String> = (0..10)
        .map(|_| in_turn(&app, &usable).instance.clone())
        .collect();
    assert!(
        run.windows(4)
            .all(|four| four.iter().any(|one| *one != four[0]))
    );
}

#[test]
fn the_fewest_requests_for_the_weight_win() {
    let app = app(&[2, 1], with(Method::Least));
    let usable = usable(&app, &[], None);
    let counts = shares(
        || {
            let target = least(&app, &usable).clone();
            target.in_flight.fetch_add(1, Ordering::SeqCst);
            target
        },
        300,
    );
    assert_eq!(counts["a-0"], 200);
}

#[test]
fn a_key_stays_where_it_is_when_another_target_goes() {
    let app = app(&[1, 1, 1, 1], with(Method::Hash(HashKey::Ip)));
    let all = usable(&app, &[], None);
    let fewer: Vec<&Arc<Target>> = all[..3].to_vec();
    let mut moved = 0;
    for key in 0..1000_u64 {
        let before = by_hash(key, &all);
        let after = by_hash(key, &fewer);
        if before.instance == "a-3" {
            moved += 1;
        } else {
            assert_eq!(before.instance, after.instance);
        }
    }
    assert!((150..350).contains(&moved), "{moved}");
}

#[test]
fn a_cookie_leads_to_the_same_target() {
    let app = app(&[1, 1, 1], with(Method::Sticky));
    let all = usable(&app, &[], None);
    for target in &all {
        let text = format!(
            "GET / HTTP/1.1\r\nHost: a.test\r\nCookie: x=1; {COOKIE}={}\r\n\r\n",
            token(target)
        );
        let mut head = RequestHead::default();
        head.parse(text.as_bytes(), &mut Scan::default())
            .expect("sound");
        let found = remembered(&head, &all).expect("known");
        assert_eq!(found.instance, target.instance);
    }
    let mut head = RequestHead::default();
    let text = "GET / HTTP/1.1\r\nHost: a.test\r\nCookie: hutong-instance=nobody\r\n\r\n";
    head.parse(text.as_bytes(), &mut Scan::default())
        .expect("sound");
    assert!(remembered(&head, &all).is_none());
}

#[test]
fn one_that_fails_often_is_spared_unless_it_is_the_last() {
    let app = app(&[1, 1], Balance::default());
    let (_, first) = &app.targets[0];
    while !first.record.note(false) {}
    assert_eq!(usable(&app, &[], None).len(), 1);
    let (_, second) = &app.targets[1];
    while !second.record.note(false) {}
    assert_eq!(usable(&app, &[], None).len(), 2);
}

#[test]
fn a_side_has_its_own_targets_and_the_others_where_it_has_none() {
    let app = app(&[1, 1, 1], Balance::default());
    let split = wire::Split {
        canary: 2,
        share: 5,
        header: None,
        cookie: None,
        for_people: false,
    };
    let Ok(mut app) = Arc::try_unwrap(app) else {
        panic!("nobody else has it");
    };
    app.trial = Some(Arc::new(crate::trial::Trial::new(split)));
    let ids = |side| -> Vec<String> {
        let usable = usable(&app, &[], Some(side));
        usable.iter().map(|one| one.instance.clone()).collect()
    };
    assert_eq!(ids(Side::Stable), ["a-0", "a-1"]);
    assert_eq!(ids(Side::Canary), ["a-2"]);
    app.targets[2].1.healthy.store(false, Ordering::SeqCst);
    assert_eq!(ids(Side::Canary), ["a-0", "a-1"]);
}

#[test]
fn a_full_canary_overflows_and_a_full_stable_release_does_not() {
    let limit = Balance {
        max_requests: 1,
        ..Balance::default()
    };
    let Ok(mut app) = Arc::try_unwrap(app(&[1, 1, 1], limit)) else {
        panic!("nobody else has it");
    };
    let split = wire::Split {
        canary: 2,
        share: 5,
        header: None,
        cookie: None,
        for_people: false,
    };
    app.trial = Some(Arc::new(crate::trial::Trial::new(split)));
    let ids = |side| -> Vec<String> {
        let usable = usable(&app, &[], Some(side));
        usable.iter().map(|one| one.instance.clone()).collect()
    };
    let has = |counts: [usize; 3]| {
        for ((_, target), count) in app.targets.iter().zip(counts) {
            target.in_flight.store(count, Ordering::SeqCst);
        }
    };
    has([1, 0, 1]);
    assert_eq!(ids(Side::Canary), ["a-0", "a-1"]);
    has([1, 1, 0]);
    assert_eq!(ids(Side::Stable), ["a-0", "a-1"]);
    assert_eq!(ids(Side::Canary), ["a-2"]);
    // Nobody has room: each waits for its own.
    has([1, 1, 1]);
    assert_eq!(ids(Side::Canary), ["a-2"]);
}
