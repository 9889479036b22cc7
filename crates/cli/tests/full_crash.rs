//! SIGKILL at every step of every kind of change, to everyone: the table of docs/reliability.md.
#![cfg(feature = "full")]

use std::collections::BTreeMap;
use std::path::Path;

use hutong_testkit::crash::{Case, Random, Rig, Victim, seed, write_body};
use hutong_testkit::is_root;
use hutong_testkit::server::{app_folder, python_app};
use hutong_testkit::visitor::get;

/// One row: steps of one role, one victim.
#[derive(Default)]
struct Row {
    runs: usize,
    killed: usize,
    succeeded: usize,
}

fn is_write(step: &str) -> bool {
    [" write ", " upload.", " launch.cgroups"]
        .iter()
        .any(|word| step.contains(word))
}

type Table = BTreeMap<(String, String, &'static str), Row>;

fn print(table: &Table) {
    println!("| change | steps of | killed | runs | reached | command succeeded | whole again |");
    println!("|---|---|---|---|---|---|---|");
    for ((change, role, victim), row) in table {
        println!(
            "| {change} | {role} | {victim} | {} | {} | {} | {} |",
            row.runs, row.killed, row.succeeded, row.runs
        );
    }
}

/// Every step with every one of `victims`, then as many random ones, each with another body to deploy.
fn exhaust(
    change: &str,
    rig: &mut Rig,
    folder: &Path,
    set_body: fn(&Path, &str),
    host: &str,
    victims: &[Victim],
    table: &mut Table,
) {
    let path = folder.to_string_lossy().into_owned();
    set_body(folder, "recorded");
    let steps = rig.record(&["deploy", &path]);
    let mut random = Random(seed());
    let mut cases: Vec<Case> = Vec::new();
    for victim in victims {
        cases.extend(steps.iter().map(|(step, _)| Case {
            step: step.clone(),
            count: 1,
            victim: *victim,
        }));
    }
    for _ in 0..steps.len() {
        let (step, times) = &steps[random.below(steps.len())];
        cases.push(Case {
            step: step.clone(),
            count: 1 + random.below(*times),
            victim: victims[random.below(victims.len())],
        });
    }
    // Only a disk can fail so, and only where a process of ours waits for it.
    cases.retain(|case| match case.victim {
        Victim::Eio | Victim::Enospc => is_write(&case.step),
        Victim::Hang => is_write(&case.step) || case.step.contains("store"),
        _ => true,
    });
    println!("{change}: {} steps, {} runs", steps.len(), cases.len());
    let mut before = "recorded".to_owned();
    for (number, case) in cases.iter().enumerate() {
        let body = format!("{change}-{number}");
        set_body(folder, &body);
        let outcome = rig.run(case, &["deploy", &path]);
        let now = get(&rig.http, host, "/").text();
        assert!(
            now == body || (now == before && !outcome.succeeded),
            "{case:?}: {now}"
        );
        let role = case.step.split(' ').next().unwrap_or_default().to_owned();
        let row = table
            .entry((change.to_owned(), role, case.victim.word()))
            .or_default();
        row.runs += 1;
        row.killed += usize::from(outcome.killed);
        row.succeeded += usize::from(outcome.succeeded);
        before = now;
    }
}

#[test]
fn every_step_of_every_change_survives_every_kill() {
    if !is_root() {
        return;
    }
    let mut table = Table::new();
    let all = [
        &Victim::ALL[..],
        &[Victim::Eio, Victim::Enospc, Victim::Hang],
    ]
    .concat();

    let app = python_app("one", "instances = 2", "v0");
    let mut rig = Rig::new("one", "one.test", app.path(), 2);
    exhaust(
        "rolling",
        &mut rig,
        app.path(),
        write_body,
        "one.test",
        &all,
        &mut table,
    );
    drop(rig);

    let app = python_app("solo", "data = true", "v0");
    let mut rig = Rig::new("solo", "solo.test", app.path(), 1);
    let some = [
        Victim::Itself,
        Victim::Control,
        Victim::Warden,
        Victim::App,
        Victim::Everything,
    ];
    exhaust(
        "recreate",
        &mut rig,
        app.path(),
        write_body,
        "solo.test",
        &some,
        &mut table,
    );
    drop(rig);

    let toml = "name = \"site\"\ndomains = [\"site.test\"]\nstatic = \"out\"\n[build]\ncommand = [\"sh\", \"-c\", \"mkdir -p out && cp body out/index.html\"]\n";
    let site = app_folder(&[("hutong.toml", toml), ("body", "v0")]);
    let mut rig = Rig::new("site", "site.test", site.path(), 0);
    let set = |folder: &Path, body: &str| std::fs::write(folder.join("body"), body).expect("write");
    let some = [Victim::Itself, Victim::Control, Victim::Warden];
    exhaust(
        "build",
        &mut rig,
        site.path(),
        set,
        "site.test",
        &some,
        &mut table,
    );
    drop(rig);

    print(&table);
}
