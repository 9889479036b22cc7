//! What a well-behaved app notices of its neighbours, by turns alone and beside them: of idle ones, and of such as use up
//! whatever they get.

use std::path::Path;
use std::time::{Duration, Instant};

use hutong_testkit::eventually;
use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::visitor::get;
use serde_json::Value;

use super::PYTHON;
use crate::{Row, median};

/// A neighbour, and what it does over and over.
struct Bad {
    does: &'static str,
    /// More of its hutong.toml, before the first table.
    spec: &'static str,
    code: &'static str,
}

const BAD: [Bad; 6] = [
    Bad {
        does: "forks for ever",
        spec: "",
        code: "import os, time\nwhile True:\n    try:\n        if os.fork() == 0: time.sleep(60)\n    except OSError: time.sleep(0.01)",
    },
    Bad {
        does: "uses up its memory",
        spec: "",
        code: "import time\ntime.sleep(0.5)\nall = []\nwhile True: all.append(bytearray(1 << 20))",
    },
    Bad {
        does: "floods its log",
        spec: "",
        code: "import sys\nwhile True: sys.stdout.write('x' * 99 + '\\n')",
    },
    Bad {
        does: "fills /tmp",
        spec: "",
        code: "import os, time\nwhile True:\n    try:\n        with open('/tmp/x', 'ab') as f: f.write(b'x' * (1 << 20))\n    except OSError: os.unlink('/tmp/x')",
    },
    // Each piece goes to the disk at once: what only lies in the page cache disturbs nobody.
    Bad {
        does: "fills its /data (a bound of 64M), flushes and deletes it",
        spec: "data = true\nlimits.disk = '64M'\n",
        code: "import os\nwhile True:\n    try:\n        with open('/data/x', 'ab', buffering=0) as f:\n            while True:\n                f.write(b'x' * (1 << 20))\n                os.fsync(f.fileno())\n    except OSError: os.unlink('/data/x')",
    },
    Bad {
        does: "burns its processor",
        spec: "",
        code: "import os\nfor _ in range(3): os.fork()\nwhile True: pass",
    },
];

/// Apps that run and have nothing to do.
const IDLE: usize = 10;
/// After others were started or stopped: the passes of control that follow are over.
const SETTLE: Duration = Duration::from_millis(500);

pub fn run(server: &Server, tiny: &Path, quick: bool) -> anyhow::Result<Vec<Row>> {
    let calm = app_folder(&[(
        "hutong.toml",
        "name = 'calm'\ndomains = ['calm.bench']\ncommand = ['./tiny']\n",
    )]);
    std::fs::copy(tiny, calm.path().join("tiny"))?;
    server.deploy(calm.path());
    let mut rows = vec![idle(server, if quick { 11 } else { 31 })?];
    for neighbour in &BAD {
        rows.push(bad(server, neighbour, if quick { 3 } else { 7 })?);
    }
    Ok(rows)
}

/// Requests a second of the calm app, alone and beside ten Python servers that nobody asks, each in its sandbox.
fn idle(server: &Server, rounds: usize) -> anyhow::Result<Row> {
    let names: Vec<String> = (0..IDLE).map(|number| format!("idle-{number}")).collect();
    for name in &names {
        let toml = format!(
            "name = '{name}'\ndomains = ['{name}.bench']\ncommand = ['/usr/bin/python3', 'app.py']\n"
        );
        server.deploy(app_folder(&[("hutong.toml", &toml), ("app.py", PYTHON)]).path());
    }
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let mut running = true;
    for round in 0..rounds {
        // First one, then the other: what changes with time falls on both.
        let order = if round.is_multiple_of(2) {
            [true, false]
        } else {
            [false, true]
        };
        for wanted in order {
            if running != wanted {
                switch(server, &names, wanted);
                running = wanted;
            }
            let times = times(server, Duration::from_secs(1))?;
            let rate = times.len() as f64 * 1e6 / times.iter().sum::<f64>();
            if running {
                beside.push(rate);
            } else {
                alone.push(rate);
            }
        }
    }
    for name in &names {
        server.ok(&["remove", name, "--purge"]);
    }
    eventually("they are forgotten", 60, || {
        names.iter().all(|name| server.app(name).is_null())
    });
    Ok(Row {
        name: format!(
            "requests/s of an app beside {IDLE} idle ones in their sandboxes (rival: alone)"
        ),
        ours: median(beside),
        rival: Some(median(alone)),
        unit: "req/s",
        must: 0.95,
        goal: 0.95,
        more_is_better: true,
    })
}

/// Starts or stops all of them, and waits until that is done.
fn switch(server: &Server, names: &[String], on: bool) {
    let verb = if on { "start" } else { "stop" };
    std::thread::scope(|scope| {
        for name in names {
            scope.spawn(move || server.ok(&[verb, name]));
        }
    });
    let is_done = |app: &Value| {
        app["instances"].as_array().is_some_and(|all| {
            if on {
                all.iter().any(|one| one["state"] == "healthy")
            } else {
                all.is_empty()
            }
        })
    };
    eventually(&format!("{verb} of all is done"), 60, || {
        let apps = server.json(&["apps"]);
        let list = apps.as_array().cloned().unwrap_or_default();
        names.iter().all(|name| {
            list.iter()
                .any(|app| app["name"] == name.as_str() && is_done(app))
        })
    });
    std::thread::sleep(SETTLE);
}

/// The 99th percentile of the calm app's answers, alone and beside a bad one.
fn bad(server: &Server, neighbour: &Bad, rounds: usize) -> anyhow::Result<Row> {
    // It serves nobody: a worker.
    let toml = format!(
        "name = 'bad'\nrestart = 'always'\n{}[workers.bad]\ncommand = ['/usr/bin/python3', 'bad.py']\n[workers.bad.limits]\nmemory = '64M'\n",
        neighbour.spec
    );
    let folder = app_folder(&[("hutong.toml", &toml), ("bad.py", neighbour.code)]);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    server.deploy(folder.path());
    for _ in 0..rounds {
        server.ok(&["stop", "bad"]);
        eventually("it is gone", 30, || {
            server.app("bad")["instances"]
                .as_array()
                .is_some_and(Vec::is_empty)
        });
        alone.push(p99(server)?);
        server.ok(&["start", "bad"]);
        eventually("it is there", 30, || {
            server.app("bad")["instances"]
                .as_array()
                .is_some_and(|all| !all.is_empty())
        });
        beside.push(p99(server)?);
    }
    server.ok(&["remove", "bad", "--purge"]);
    eventually("it is forgotten", 60, || server.app("bad").is_null());
    Ok(Row {
        name: format!(
            "p99 of an app beside one that {} (rival: alone)",
            neighbour.does
        ),
        ours: median(beside),
        rival: Some(median(alone)),
        unit: "µs",
        must: 2.0,
        goal: 1.2,
        more_is_better: false,
    })
}

fn p99(server: &Server) -> anyhow::Result<f64> {
    let mut times = times(server, Duration::from_millis(1500))?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() * 99 / 100])
}

/// Of the calm app's answers to requests that follow one another for so long, in microseconds.
fn times(server: &Server, span: Duration) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    let began = Instant::now();
    while began.elapsed() < span {
        let asked = Instant::now();
        let answer = get(&server.http, "calm.bench", "/");
        anyhow::ensure!(
            answer.status == 200,
            "the calm app answered {}",
            answer.status
        );
        times.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}
