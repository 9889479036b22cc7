//! What a new app takes that a further release of it does not: an id range, its row and routes, a folder for /data. A
//! network and a cgroup are made at each start, so both have them; the whole times are in the notes.

use std::path::Path;

use hutong_testkit::eventually;
use hutong_testkit::server::{Server, app_folder};

use crate::footprint::{Bare, timed};
use crate::{Report, Row, median};

/// What is created.
struct Kind {
    name: &'static str,
    what: &'static str,
    /// More of its hutong.toml.
    spec: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        name: "plain",
        what: "an app with /data and egress",
        spec: "",
    },
    Kind {
        name: "bound",
        what: "an app with egress and a file system of 64M of its own for /data",
        spec: "limits.disk = '64M'\n",
    },
];

/// Milliseconds from the command to its end, when every worker serves it.
#[derive(Default)]
struct Deploys {
    first: Vec<f64>,
    further: Vec<f64>,
}

pub fn run(server: &Server, tiny: &Path, rounds: usize) -> anyhow::Result<Report> {
    // The first app with egress brings up the bridge, its rules and the resolver, which are no app's own.
    let other = app(tiny, "other", "")?;
    server.deploy(other.path());
    let mut found: [Deploys; KINDS.len()] = Default::default();
    let mut own = Vec::new();
    for round in 0..rounds {
        own.push(Bare::start(tiny)?.milliseconds);
        for (kind, deploys) in KINDS.iter().zip(&mut found) {
            let name = format!("{}-{round}", kind.name);
            let folder = app(tiny, &name, kind.spec)?;
            deploys.first.push(timed(|| server.deploy(folder.path())));
            std::fs::write(folder.path().join("further.txt"), "x")?;
            deploys.further.push(timed(|| server.deploy(folder.path())));
            remove(server, &name);
        }
    }
    remove(server, "other");
    let own = median(own);
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for (Kind { what, .. }, deploys) in KINDS.into_iter().zip(found) {
        let (first, further) = (median(deploys.first), median(deploys.further));
        rows.push(Row {
            name: format!(
                "creating {what}: its first deploy beyond a further one ({first:.1} − {further:.1} ms)"
            ),
            ours: first - further,
            rival: None,
            unit: "ms",
            must: 50.0,
            goal: 50.0,
            more_is_better: false,
        });
        notes.push(format!(
            "first deploy of {what}, command to traffic, beyond own start: {:.1} ms; a further one: {:.1} ms",
            first - own,
            further - own
        ));
    }
    Ok(Report { rows, notes })
}

/// A folder with the tiny app. Rolling, because a further release that waits for the end of the one before it would make
/// creation look cheap.
fn app(tiny: &Path, name: &str, more: &str) -> anyhow::Result<tempfile::TempDir> {
    let toml = format!(
        "name = '{name}'\ndomains = ['{name}.bench']\ncommand = ['./tiny']\ndata = true\nstrategy = 'rolling'\negress = 'internet'\n{more}"
    );
    let folder = app_folder(&[("hutong.toml", &toml)]);
    std::fs::copy(tiny, folder.path().join("tiny"))?;
    Ok(folder)
}

/// With its data, and not before all of it is gone: the next one would be measured beside that.
fn remove(server: &Server, name: &str) {
    server.ok(&["remove", name, "--purge"]);
    let data = server.data.path().join("data").join(name);
    eventually("it is forgotten", 60, || {
        !data.exists() && server.app(name).is_null()
    });
}
