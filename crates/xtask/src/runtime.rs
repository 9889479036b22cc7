//! How fast a sandbox comes up, beside other ways to start the same program; how fast what sleeps is woken, and what it
//! costs meanwhile ([`sleeping`]); what a new app takes ([`creation`]); and what an app notices of others ([`neighbours`]).
//! All sides in one run, in turn.

mod creation;
mod neighbours;
mod sleeping;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use hutong_testkit::docker::Docker;
use hutong_testkit::eventually;
use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::visitor::get;

use crate::{Report, Row, median, release_binary};

/// A way to start a program, and what it is called.
struct Way {
    name: &'static str,
    start: Box<dyn Fn(u16) -> anyhow::Result<Running>>,
    times: Vec<f64>,
}

/// A program that was started; ended when this is dropped.
struct Running {
    child: Child,
    /// What ends it, where a signal to the child does not.
    end: Option<Vec<String>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(words) = &self.end {
            let _ = Command::new(&words[0]).args(&words[1..]).output();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn run(quick: bool) -> anyhow::Result<Report> {
    let rounds = if quick { 9 } else { 51 };
    let binary = release_binary()?;
    let folder = tempfile::tempdir()?;
    let tiny = folder.path().join("tiny");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core/tiny.c");
    let built = Command::new("cc")
        .args(["-O2", "-static", "-o"])
        .arg(&tiny)
        .arg(source)
        .status()?;
    anyhow::ensure!(built.success(), "cc failed");
    let mut rows = Vec::new();
    let mut notes = vec![
        "milliseconds from the start (or the request) to the first answer; medians; `rival` is the same program started bare".to_owned(),
    ];
    let server = Server::start_binary(&binary, &[]);
    rows.extend(wakes(&server, &tiny, rounds)?);
    rows.push(many_at_once(&server, &tiny, if quick { 10 } else { 50 })?);
    let created = creation::run(&server, &tiny, rounds)?;
    rows.extend(created.rows);
    notes.extend(created.notes);
    rows.extend(neighbours::run(&server, &tiny, quick)?);
    drop(server);
    let asleep = sleeping::run(&binary, &tiny, quick)?;
    rows.extend(asleep.rows);
    notes.extend(asleep.notes);
    notes.extend(others(folder.path(), &tiny, rounds)?);
    Ok(Report { rows, notes })
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Asks until somebody answers, in milliseconds.
fn first_answer(port: u16, began: Instant) -> anyhow::Result<f64> {
    loop {
        if let Ok(mut line) = TcpStream::connect(("127.0.0.1", port)) {
            line.write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")?;
            let mut answer = Vec::new();
            if line.read_to_end(&mut answer).is_ok() && answer.starts_with(b"HTTP/1.") {
                return Ok(began.elapsed().as_secs_f64() * 1000.0);
            }
        }
        anyhow::ensure!(
            began.elapsed() < Duration::from_secs(20),
            "nobody answers on {port}"
        );
        // Not so often that the program is kept from its processor.
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn bare(program: &[&str], port: u16) -> anyhow::Result<Running> {
    let mut command = Command::new(program[0]);
    // With what an app of ours gets, and not with whatever this session has.
    command.args(&program[1..]).env_clear();
    command
        .env("PATH", "/usr/bin:/bin")
        .env("PORT", port.to_string());
    spawn(command, None)
}

fn spawn(mut command: Command, end: Option<Vec<String>>) -> anyhow::Result<Running> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command.spawn().with_context(|| format!("{command:?}"))?;
    Ok(Running { child, end })
}

/// The start of a static program in other ways; notes, because none of them is what we are judged by alone.
fn others(folder: &Path, tiny: &Path, rounds: usize) -> anyhow::Result<Vec<String>> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let program = text(tiny);
    let mut ways: Vec<Way> = Vec::new();
    let mut way = |name, start: Box<dyn Fn(u16) -> anyhow::Result<Running>>| {
        ways.push(Way {
            name,
            start,
            times: Vec::new(),
        });
    };
    let own = program.clone();
    way(
        "bare fork and exec",
        Box::new(move |port| bare(&[&own], port)),
    );
    let own = program.clone();
    way(
        "bubblewrap (no network of its own, no cgroup)",
        Box::new(move |port| {
            let words = [
                "bwrap",
                "--ro-bind",
                "/",
                "/",
                "--unshare-pid",
                "--unshare-ipc",
                "--unshare-uts",
                "--proc",
                "/proc",
                "--dev",
                "/dev",
                "--die-with-parent",
                &own,
            ];
            bare(&words, port)
        }),
    );
    let bundle = bundle(folder, tiny)?;
    way(
        "runc (no network of its own)",
        Box::new(move |port| {
            let name = format!("hutong-bench-{}-{port}", std::process::id());
            let config = std::fs::read_to_string(bundle.join("template.json"))?;
            std::fs::write(
                bundle.join("config.json"),
                config.replace("@PORT@", &port.to_string()),
            )?;
            let mut command = Command::new("runc");
            command.args(["run", "--bundle"]).arg(&bundle).arg(&name);
            let end = ["runc", "delete", "--force", &name]
                .map(str::to_owned)
                .to_vec();
            spawn(command, Some(end))
        }),
    );
    let Some(engine) = Docker::start() else {
        anyhow::bail!("docker.io is needed");
    };
    let root = folder.join("root.tar");
    let packed = Command::new("tar")
        .arg("-C")
        .arg(folder)
        .args(["-cf"])
        .arg(&root)
        .arg("tiny")
        .status()?;
    anyhow::ensure!(packed.success(), "tar failed");
    engine.ok(&["import", &text(&root), "tiny:1"]);
    let socket = format!("unix://{}", engine.socket());
    way(
        "docker start (the container is there, no network of its own)",
        Box::new(move |port| {
            let name = format!("tiny-{port}");
            let docker = |words: &[&str]| {
                let mut command = Command::new("docker");
                command.args(["-H", &socket]).args(words);
                command
            };
            let env = format!("PORT={port}");
            let made = docker(&[
                "create",
                "--name",
                &name,
                "--network",
                "host",
                "-e",
                &env,
                "tiny:1",
                "/tiny",
            ])
            .output()?;
            anyhow::ensure!(
                made.status.success(),
                "{}",
                String::from_utf8_lossy(&made.stderr)
            );
            let end = ["docker", "-H", &socket, "rm", "-f", &name]
                .map(str::to_owned)
                .to_vec();
            spawn(docker(&["start", &name]), Some(end))
        }),
    );
    for _ in 0..rounds {
        for way in &mut ways {
            let port = free_port()?;
            let prepared = Instant::now();
            let running = (way.start)(port)?;
            // What is prepared before the start is not the start: only Docker does.
            let began = if way.name.starts_with("docker") {
                Instant::now()
            } else {
                prepared
            };
            way.times.push(first_answer(port, began)?);
            drop(running);
        }
    }
    let lines = ways.into_iter().map(|way| {
        format!(
            "start of a static program, {}: {:.1} ms",
            way.name,
            median(way.times)
        )
    });
    Ok(lines.collect())
}

/// A bundle for runc with the program in it.
fn bundle(folder: &Path, tiny: &Path) -> anyhow::Result<PathBuf> {
    let bundle = folder.join("bundle");
    std::fs::create_dir_all(bundle.join("rootfs"))?;
    std::fs::copy(tiny, bundle.join("rootfs/tiny"))?;
    let made = Command::new("runc")
        .args(["spec", "--bundle"])
        .arg(&bundle)
        .status()?;
    anyhow::ensure!(made.success(), "runc spec failed");
    let text = std::fs::read_to_string(bundle.join("config.json"))?;
    let mut config: serde_json::Value = serde_json::from_str(&text)?;
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = serde_json::json!(["/tiny"]);
    config["process"]["env"] = serde_json::json!(["PORT=@PORT@"]);
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|one| one["type"] != "network");
    }
    std::fs::write(bundle.join("template.json"), config.to_string())?;
    Ok(bundle)
}

const PYTHON: &str = "import http.server, os\nclass H(http.server.BaseHTTPRequestHandler):\n    def do_GET(self):\n        self.send_response(200); self.send_header('Content-Length', '2'); self.end_headers(); self.wfile.write(b'ok')\n    def log_message(self, *_): pass\nhttp.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n";
const NODE: &str = "require('http').createServer((_, answer) => answer.end('ok')).listen(process.env.PORT, '127.0.0.1')\n";

/// A request to an app that sleeps, beside the same program started bare.
fn wakes(server: &Server, tiny: &Path, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("app.py"), PYTHON)?;
    std::fs::write(folder.path().join("app.js"), NODE)?;
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (python, node) = (path("app.py"), path("app.js"));
    let tiny = tiny.to_string_lossy().into_owned();
    let node_program = ["/usr/bin/node", "/usr/local/bin/node"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    let mut kinds = vec![
        (
            "a static program",
            "tiny",
            vec![tiny.as_str()],
            "['./tiny']",
        ),
        (
            "Python",
            "python",
            vec!["/usr/bin/python3", python.as_str()],
            "['/usr/bin/python3', 'app.py']",
        ),
    ];
    // Apps see the system's own programs only.
    if let Some("/usr/bin/node") = node_program {
        kinds.push((
            "Node",
            "node",
            vec!["/usr/bin/node", node.as_str()],
            "['node', 'app.js']",
        ));
    }
    for (what, name, program, command) in kinds {
        let toml = format!(
            "name = '{name}'\ndomains = ['{name}.bench']\ncommand = {command}\n[sleep]\nafter = '1s'\n"
        );
        let app = app_folder(&[("hutong.toml", &toml), ("app.py", PYTHON), ("app.js", NODE)]);
        std::fs::copy(&tiny, app.path().join("tiny"))?;
        server.deploy(app.path());
        let host = format!("{name}.bench");
        let (mut ours, mut own) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            eventually("it sleeps", 20, || server.app(name)["state"] == "asleep");
            let began = Instant::now();
            anyhow::ensure!(
                get(&server.http, &host, "/").status == 200,
                "it was not woken"
            );
            ours.push(began.elapsed().as_secs_f64() * 1000.0);
            let port = free_port()?;
            let began = Instant::now();
            let _running = bare(&program, port)?;
            own.push(first_answer(port, began)?);
        }
        server.ok(&["remove", name, "--purge"]);
        let (ours, own) = (median(ours), median(own));
        rows.push(Row {
            name: format!(
                "wake of {what}, request to answer, beyond own start ({ours:.1} − {own:.1} ms)"
            ),
            ours: ours - own,
            rival: None,
            unit: "ms",
            must: 30.0,
            goal: 15.0,
            more_is_better: false,
        });
    }
    Ok(rows)
}

/// Two apps with so many instances each, started at once.
fn many_at_once(server: &Server, tiny: &Path, count: u32) -> anyhow::Result<Row> {
    let began = Instant::now();
    let names = ["many-a", "many-b"];
    let failed: Vec<bool> = std::thread::scope(|scope| {
        let deploys: Vec<_> = names
            .iter()
            .map(|name| {
                scope.spawn(move || {
                    let toml = format!("name = '{name}'\ndomains = ['{name}.bench']\ncommand = ['./tiny']\ninstances = {count}\n[limits]\nmemory = '8M'\n[timeouts]\nstart = '120s'\n");
                    let app = app_folder(&[("hutong.toml", &toml)]);
                    std::fs::copy(tiny, app.path().join("tiny")).is_err() || !server.run(&["deploy", &app.path().to_string_lossy()]).status.success()
                })
            })
            .collect();
        deploys
            .into_iter()
            .map(|deploy| deploy.join().unwrap_or(true))
            .collect()
    });
    let seconds = began.elapsed().as_secs_f64();
    let healthy: usize = names
        .iter()
        .map(|name| {
            let app = server.app(name);
            let all = app["instances"].as_array().cloned().unwrap_or_default();
            all.iter().filter(|one| one["state"] == "healthy").count()
        })
        .sum();
    for name in names {
        server.ok(&["remove", name, "--purge"]);
    }
    let missing = 2 * count as usize - healthy + failed.iter().filter(|failed| **failed).count();
    Ok(Row {
        name: format!("{} starts at once, in {seconds:.1} s: errors", 2 * count),
        ours: missing as f64,
        rival: None,
        unit: "",
        must: 0.0,
        goal: 0.0,
        more_is_better: false,
    })
}
