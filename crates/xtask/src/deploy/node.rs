//! A Node app of which one line changes, deployed as its owner would, beside `npm ci` in a folder of its own; and rollbacks
//! of it. Nothing needs a network: what it depends on is an archive beside it, made here.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use hutong_testkit::eventually;
use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::visitor::get;
use tempfile::TempDir;

use super::{ok, row};
use crate::{Report, median};

pub const NODE: &str = "/usr/bin/node";
pub const NPM: &str = "/usr/bin/npm";

/// What a build of ours runs, too.
const INSTALL: [&str; 5] = [
    "ci",
    "--no-audit",
    "--no-fund",
    "--no-update-notifier",
    "--omit=dev",
];

const HOST: &str = "front.bench";
const TOML: &str = "name = 'front'\ndomains = ['front.bench']\n";
const PACKAGE: &str = "{\"name\": \"front\", \"version\": \"1.0.0\", \"private\": true, \"scripts\": {\"start\": \"node server.js\"}}\n";
const SERVER: &str = "const hello = require('hello');\nconst text = '@TEXT@';\nrequire('http').createServer((_, answer) => answer.end(`${hello} ${text}`)).listen(process.env.PORT, '127.0.0.1');\n";
/// Files in what it depends on.
const MODULES: usize = 300;

/// Seconds.
const BEYOND_NPM: f64 = 5.0;
const ROLLBACK: f64 = 1.0;

pub fn run(binary: &Path, rounds: usize) -> anyhow::Result<Report> {
    let home = tempfile::tempdir()?;
    let app = app(home.path())?;
    let server = Server::start_binary(binary, &[]);
    change(app.path(), 0)?;
    server.deploy(app.path());
    expect(&server, 0)?;
    let (mut deploys, mut bare, mut beyond, mut rollbacks) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        change(app.path(), round)?;
        // npm by turns before and after the deploy that it is compared with.
        let early = (round % 2 == 0).then(|| install(app.path(), home.path()));
        settled(&server);
        let began = Instant::now();
        server.deploy(app.path());
        expect(&server, round)?;
        let deploy = began.elapsed().as_secs_f64();
        let npm = early.unwrap_or_else(|| install(app.path(), home.path()))?;
        deploys.push(deploy);
        bare.push(npm);
        beyond.push(deploy - npm);

        // The release before is gone by then, and is started anew.
        settled(&server);
        let began = Instant::now();
        server.ok(&["rollback", "front"]);
        expect(&server, round - 1)?;
        rollbacks.push(began.elapsed().as_secs_f64());
    }
    let (deploy, npm) = (median(deploys), median(bare));
    Ok(Report {
        rows: vec![
            row(
                format!(
                    "deploy of a Node app with one line changed, command to traffic, beyond npm ci ({deploy:.2} s, npm {npm:.2} s)"
                ),
                median(beyond),
                "s",
                BEYOND_NPM,
            ),
            row(
                "rollback of it, command to traffic".into(),
                median(rollbacks),
                "s",
                ROLLBACK,
            ),
        ],
        notes: vec![format!(
            "the Node app: one dependency of {MODULES} files from an archive beside it; medians of {rounds}, and of the differences for what is beyond npm; Node's own start is in both rows"
        )],
    })
}

/// The app with its lock file, which npm writes.
fn app(home: &Path) -> anyhow::Result<TempDir> {
    let hello = tempfile::tempdir()?;
    let write = |name: &str, text: &str| std::fs::write(hello.path().join(name), text);
    std::fs::create_dir(hello.path().join("lib"))?;
    write(
        "package.json",
        "{\"name\": \"hello\", \"version\": \"1.0.0\", \"main\": \"index.js\"}\n",
    )?;
    write("index.js", "module.exports = 'hello';\n")?;
    for number in 0..MODULES {
        let text = format!("module.exports = {number};\n");
        write(&format!("lib/module-{number}.js"), &text)?;
    }
    let app = app_folder(&[("hutong.toml", TOML), ("package.json", PACKAGE)]);
    let mut pack = npm(app.path(), home);
    ok(pack.args(["pack", "--silent"]).arg(hello.path()))?;
    let mut add = npm(app.path(), home);
    ok(add.args([
        "install",
        "--offline",
        "--no-audit",
        "--no-fund",
        "--no-update-notifier",
        "./hello-1.0.0.tgz",
    ]))?;
    std::fs::remove_dir_all(app.path().join("node_modules"))?;
    Ok(app)
}

/// With what a build has in its environment, more or less, and a cache that stays.
fn npm(folder: &Path, home: &Path) -> Command {
    let mut command = Command::new(NPM);
    command
        .current_dir(folder)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", home)
        .env("npm_config_cache", home.join("cache"));
    command
}

fn change(app: &Path, round: usize) -> anyhow::Result<()> {
    let text = SERVER.replace("@TEXT@", &format!("round {round}"));
    Ok(std::fs::write(app.join("server.js"), text)?)
}

/// The same app's packages installed bare, in a folder that has none yet. Seconds.
fn install(app: &Path, home: &Path) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    for entry in std::fs::read_dir(app)? {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.path().join(entry.file_name()))?;
    }
    let mut command = npm(folder.path(), home);
    command.args(INSTALL);
    let began = Instant::now();
    ok(&mut command)?;
    Ok(began.elapsed().as_secs_f64())
}

/// The next request is answered by the release of that round.
fn expect(server: &Server, round: usize) -> anyhow::Result<()> {
    let wanted = format!("hello round {round}");
    let said = get(&server.http, HOST, "/").text();
    anyhow::ensure!(said == wanted, "`{said}` was answered, not `{wanted}`");
    Ok(())
}

fn settled(server: &Server) {
    eventually("one instance is left", 60, || {
        let app = server.app("front");
        let instances = app["instances"].as_array();
        instances.is_some_and(|all| all.len() == 1)
    });
}
