//! Ten canaries in a row that fail 3 % of their requests, and ten that are merely new, at 200 requests a second: what
//! becomes of each, after how long, and how many of the visitors got it.
#![cfg(feature = "full")]
// Its table goes into docs/benchmarks.md.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use hutong_testkit::server::{Server, python_app};
use hutong_testkit::traffic::Traffic;
use hutong_testkit::trial::{begin, canary, is_tried, release, visitors};
use hutong_testkit::{eventually, is_root};

const SEEDS: std::ops::Range<u64> = 1..11;
const RATE: u32 = 200;
const SETTINGS: &str =
    "strategy = \"canary\"\n[canary]\nsteps = [5, 100]\nevery = \"30s\"\nmin_requests = 250";

#[test]
fn what_fails_is_rolled_back_within_a_minute_and_what_is_merely_new_takes_over() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    println!("| seed | fails | ends as | after | share of 1000 visitors |\n|---|---|---|---|---|");
    for seed in SEEDS {
        for (kind, stable, new) in [("3 %", 0.0, 0.03), ("merely new", 0.005, 0.005)] {
            let name = format!("c{seed}{}", if new > 0.01 { "bad" } else { "good" });
            let host = format!("{name}.test");
            let app = python_app(&name, SETTINGS, "one");
            release(app.path(), "one", stable, seed);
            server.deploy(app.path());
            let traffic = Traffic::start(&server.http, &host, "/", RATE, 40);
            traffic.goes_on(200);
            release(app.path(), "two", new, 1000 + seed);
            begin(&server, app.path());
            is_tried(&server, &name, 5);
            let began = Instant::now();
            // One that fails may be gone before all of them have come.
            let share = (new < 0.01).then(|| visitors(&server, &host, 1000, "two"));
            let is_fair = share.is_none_or(|share| (40..=60).contains(&share));
            assert!(is_fair, "seed {seed}: {share:?} of 1000");
            let share = share.map_or("–".to_owned(), |share| share.to_string());
            eventually("it is decided", 120, || {
                server.app(&name)["deploying"].is_null()
            });
            let took = began.elapsed().as_secs();
            let end = canary(&server, &name);
            let wanted = if new > 0.01 { "failed" } else { "done" };
            println!(
                "| {seed} | {kind} | {} | {took} s | {share} |",
                end["state"]
            );
            assert_eq!(end["state"], wanted, "seed {seed}, {kind}: {end}");
            assert!(new < 0.01 || took <= 60, "seed {seed}: after {took} s");
            traffic.finish();
            server.ok(&["remove", "--purge", &name]);
        }
    }
}
