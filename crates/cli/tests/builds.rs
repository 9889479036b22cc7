//! Builds: what is recognised, secrets, caches, cancel, bounds, Dockerfiles. Nothing here needs a network.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use hutong_testkit::docker::Docker;
use hutong_testkit::server::{Server, app_folder, unmount_below};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root, kill};

/// Answers with the text that a module says.
const APP: &str = "import http.server, os
from hello import TEXT
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('content-length', str(len(TEXT)))
        self.end_headers()
        self.wfile.write(TEXT.encode())
http.server.ThreadingHTTPServer(('0.0.0.0', int(os.environ.get('PORT', 8080))), Handler).serve_forever()
";

/// Makes a wheel, as `pip wheel` would.
const WHEEL: &str = "import sys, zipfile
with zipfile.ZipFile(sys.argv[1] + '/hello-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('hello.py', 'TEXT = \"hello from a wheel\"\\n')
    info = 'hello-1.0.dist-info/'
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: hello\\nVersion: 1.0\\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + 'RECORD', 'hello.py,,\\nhello-1.0.dist-info/METADATA,,\\nhello-1.0.dist-info/WHEEL,,\\nhello-1.0.dist-info/RECORD,,\\n')
";

fn page(server: &Server, app: &str) -> String {
    get(&server.http, &format!("{app}.test"), "/").text()
}

fn path(folder: &Path) -> String {
    folder.to_string_lossy().into_owned()
}

#[test]
fn folders_that_say_nothing_are_recognised() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let python = app_folder(&[
        ("hutong.toml", "name = 'wheel'\ndomains = ['wheel.test']\n"),
        ("app.py", APP),
        ("requirements.txt", "# ours\n./hello-1.0-py3-none-any.whl\n"),
    ]);
    let made = Command::new("/usr/bin/python3")
        .args(["-c", WHEEL, &path(python.path())])
        .status();
    assert!(made.expect("python runs").success());
    let detected = server.ok(&["detect", &path(python.path())]);
    assert!(detected.contains("run: python app.py"), "{detected}");
    server.deploy(python.path());
    assert_eq!(page(&server, "wheel"), "hello from a wheel");

    let node = app_folder(&[
        ("hutong.toml", "name = 'front'\ndomains = ['front.test']\n"),
        (
            "package.json",
            "{\"name\": \"front\", \"version\": \"1.0.0\", \"scripts\": {\"build\": \"node make.js dist\"}}",
        ),
        (
            "package-lock.json",
            "{\"name\": \"front\", \"version\": \"1.0.0\", \"lockfileVersion\": 3, \"packages\": {\"\": {\"name\": \"front\", \"version\": \"1.0.0\"}}}",
        ),
        (
            "make.js",
            "const fs = require('fs'); fs.mkdirSync('dist'); fs.writeFileSync('dist/index.html', 'built by node');",
        ),
    ]);
    server.deploy(node.path());
    assert_eq!(page(&server, "front"), "built by node");

    let site = app_folder(&[
        ("hutong.toml", "name = 'site'\ndomains = ['site.test']\n"),
        ("index.html", "as it is"),
    ]);
    server.deploy(site.path());
    assert_eq!(page(&server, "site"), "as it is");

    let unknown = app_folder(&[("hutong.toml", "name = 'x'\n"), ("Gemfile", "")]);
    let (code, said) = server.fails(&["deploy", &path(unknown.path())]);
    assert_eq!(code, 4);
    assert!(said.contains("Gemfile:1:1: Ruby"), "{said}");
}

#[test]
fn detect_writes_a_file_that_deploys() {
    let folder = app_folder(&[("index.html", "x")]);
    let named = folder.path().join("my-site");
    std::fs::create_dir(&named).expect("mkdir");
    std::fs::write(named.join("index.html"), "x").expect("write");
    let run = |arguments: &[&str]| {
        Command::new(hutong_testkit::server::binary())
            .args(arguments)
            .output()
            .expect("hutong runs")
    };
    let wrote = run(&["detect", &path(&named), "--write"]);
    assert!(wrote.status.success(), "{wrote:?}");
    let text = std::fs::read_to_string(named.join("hutong.toml")).expect("written");
    assert!(
        text.starts_with("name = \"my-site\"\n") && text.contains("\nstatic = \".\"\n"),
        "{text}"
    );
    assert!(run(&["check", &path(&named)]).status.success());
    assert!(!run(&["detect", &path(&named), "--write"]).status.success());
}

/// A static app whose build is one line for a shell.
fn built(name: &str, index: &str, script: &str, more: &str) -> tempfile::TempDir {
    let toml = format!(
        "name = '{name}'\ndomains = ['{name}.test']\nstatic = 'out'\n[build]\ncommand = ['sh', 'build.sh']\n{more}\n"
    );
    let script = format!("set -e\nmkdir -p out\ncp index.html out/\n{script}\n");
    app_folder(&[
        ("hutong.toml", &toml),
        ("index.html", index),
        ("build.sh", &script),
    ])
}

fn set_secret(server: &Server, app: &str, name: &str, value: &str) {
    let mut command = server.command(&["build", "set-secret", app, name]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("hutong runs");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(value.as_bytes()).expect("written");
    drop(input);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn secrets_are_there_while_it_builds_and_nowhere_else() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(built("quiet", "one", "", "").path());
    set_secret(&server, "quiet", "TOKEN", "very-s3cret-token\n");
    assert!(server.ok(&["build", "secrets", "quiet"]).contains("TOKEN"));
    // Its text is in no file that the build keeps.
    let prints = "case $(cat /run/secrets/TOKEN) in very-s*t-token) ;; *) exit 1 ;; esac\necho got $(cat /run/secrets/TOKEN)";
    let said = server.run(&["deploy", &path(built("quiet", "two", prints, "").path())]);
    let shown = format!(
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    assert!(said.status.success(), "{shown}");
    assert!(
        shown.contains("got ***") && !shown.contains("s3cret"),
        "{shown}"
    );
    let log = server.ok(&["logs", "quiet", "-n", "1000"]);
    assert!(
        log.contains("got ***") && !log.contains("very-s3cret"),
        "{log}"
    );
    assert_eq!(page(&server, "quiet"), "two");
    // What would be kept of it is refused, and what served serves on.
    let leaks = "cp /run/secrets/TOKEN out/token.txt";
    let (_, said) = server.fails(&["deploy", &path(built("quiet", "three", leaks, "").path())]);
    assert!(
        said.contains("left its secret TOKEN in the file out/token.txt"),
        "{said}"
    );
    assert_eq!(page(&server, "quiet"), "two");
    server.ok(&["build", "unset-secret", "quiet", "TOKEN"]);
    let gone = "test ! -e /run/secrets/TOKEN";
    server.deploy(built("quiet", "four", gone, "").path());
    let (_, said) = server.fails(&["build", "unset-secret", "quiet", "TOKEN"]);
    assert!(said.contains("have no secret TOKEN"), "{said}");
}

#[test]
fn the_cache_is_the_apps_own_and_the_result_the_same() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let count = "echo x >> /cache/count\nwc -l < /cache/count > out/count";
    let asked = |app: &str| {
        let answer = get(&server.http, &format!("{app}.test"), "/count");
        answer.text().trim().to_owned()
    };
    server.deploy(built("keeps", "1", count, "").path());
    assert_eq!(asked("keeps"), "1");
    let second = built("keeps", "2", count, "");
    server.deploy(second.path());
    assert_eq!(asked("keeps"), "2");
    // Nothing has changed: nothing is built.
    server.deploy(second.path());
    assert_eq!(asked("keeps"), "2");
    server.deploy(built("other", "1", count, "").path());
    assert_eq!(asked("other"), "1");
    server.ok(&["build", "clear", "keeps"]);
    server.deploy(built("keeps", "3", count, "").path());
    assert_eq!(asked("keeps"), "1");
    // The same input, built anew: the same content.
    let same = built(
        "keeps",
        "4",
        "date +%Y > out/year; echo $SOURCE_DATE_EPOCH",
        "",
    );
    let folder = path(same.path());
    for _ in 0..2 {
        server.ok(&["deploy", "--no-cache", &folder]);
    }
    let log = server.ok(&["logs", "keeps", "-n", "1000"]);
    let results: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split("the result has the content ").nth(1))
        .collect();
    assert!(results.len() >= 2, "{log}");
    assert_eq!(
        results[results.len() - 1],
        results[results.len() - 2],
        "{log}"
    );
}

#[test]
fn a_build_is_cancelled_and_the_next_one_has_its_turn() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(built("slow", "old", "", "").path());
    let slow = built("slow", "new", "echo begun; sleep 600", "");
    let next = built("next", "next", "", "");
    std::thread::scope(|scope| {
        let server = &server;
        let slow = path(slow.path());
        let cancelled = scope.spawn(move || server.fails(&["deploy", &slow]));
        let doing = |app: &str| {
            let doing = server.app(app)["deploying"]["doing"].clone();
            doing.as_str().unwrap_or_default().to_owned()
        };
        eventually("it builds", 30, || doing("slow").contains("building: sh"));
        let next = next.path();
        let waits = scope.spawn(move || server.deploy(next));
        eventually("the other waits", 30, || {
            doing("next").contains("waiting for the build before it")
        });
        server.ok(&["build", "cancel", "slow"]);
        let (_, said) = cancelled.join().expect("no panic");
        assert!(said.contains("it was cancelled"), "{said}");
        waits.join().expect("no panic");
    });
    assert_eq!(page(&server, "slow"), "old");
    assert_eq!(page(&server, "next"), "next");
    let (_, said) = server.fails(&["build", "cancel", "slow"]);
    assert!(said.contains("nothing of slow is being built"), "{said}");
}

#[test]
fn a_build_that_forks_for_ever_is_ended_with_the_reason() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(built("bomb", "old", "", "").path());
    let forks = "exec python3 -c 'import os, time
while True:
    try: os.fork()
    except OSError: time.sleep(0.1)'";
    let bomb = built("bomb", "new", forks, "timeout = '4s'");
    let (_, said) = server.fails(&["deploy", &path(bomb.path())]);
    assert!(said.contains("the build took over 4s"), "{said}");
    assert_eq!(page(&server, "bomb"), "old");
    let left = server.json(&["apps"]);
    assert!(left.as_array().is_some_and(|apps| apps.len() == 1));
}

#[test]
fn a_build_that_fills_the_disk_is_ended_with_the_reason() {
    if !is_root() {
        return;
    }
    let data = tempfile::tempdir().expect("tempdir");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=400m,mode=755", "tmpfs"])
        .arg(data.path())
        .status();
    assert!(mounted.expect("mount runs").success());
    let place = data.path().to_owned();
    let server = Server::start_in(data, &[]);
    server.deploy(built("full", "old", "", "").path());
    let fills = "dd if=/dev/zero of=big bs=1M count=2000 2>/dev/null || sleep 30";
    let (_, said) = server.fails(&["deploy", &path(built("full", "new", fills, "").path())]);
    assert!(
        said.contains("the disk is full but for its reserve"),
        "{said}"
    );
    assert_eq!(page(&server, "full"), "old");
    let data = server.into_data();
    unmount_below(&place);
    let _ = Command::new("umount").arg("-l").arg(&place).status();
    drop(data);
}

/// An app whose image is built of a Dockerfile, of an image that the engine has.
fn image_app(name: &str, dockerfile: &str, more: &str) -> tempfile::TempDir {
    let toml =
        format!("name = '{name}'\ndomains = ['{name}.test']\nenv.BIND = '0.0.0.0'\n{more}\n");
    app_folder(&[
        ("hutong.toml", &toml),
        ("Dockerfile", dockerfile),
        (".dockerignore", "secret.txt\n"),
        ("secret.txt", "not for images"),
        ("app.py", APP),
        ("hello.py", "TEXT = 'from a Dockerfile'\n"),
    ])
}

const GOOD: &str = "FROM hutong-test/python:1
COPY . /srv
WORKDIR /srv
RUN [\"/usr/bin/python3\", \"-c\", \"import hello, os; assert not os.path.exists('secret.txt'); print('checked', hello.TEXT)\"]
CMD [\"python3\", \"app.py\"]
";

#[test]
fn an_image_is_built_of_a_dockerfile() {
    let Some(engine) = Docker::start() else {
        return;
    };
    let server = Server::start_with(&["--docker", &engine.socket()]);
    eventually("the engine is known", 10, || {
        server.ok(&["doctor"]).contains("Docker ")
    });
    // Recognised, and built.
    server.deploy(image_app("boxed", GOOD, "").path());
    assert_eq!(page(&server, "boxed"), "from a Dockerfile");
    let log = server.ok(&["logs", "boxed", "--process", "build", "-n", "1000"]);
    assert!(log.contains("checked from a Dockerfile"), "{log}");
    let images = ["images", "-q", "--filter", "label=hutong.image.app=boxed"];
    assert_eq!(engine.ok(&images).lines().count(), 1);
    // The same again: the engine is not asked to build.
    server.deploy(image_app("boxed", GOOD, "").path());
    let log = server.ok(&["logs", "boxed", "--process", "build", "-n", "1000"]);
    assert!(log.contains("nothing has changed"), "{log}");

    // What fails, says so, and what serves serves on.
    let fails = format!("{GOOD}RUN [\"/usr/bin/false\"]\n");
    let (_, said) = server.fails(&["deploy", &path(image_app("boxed", &fails, "").path())]);
    assert!(said.contains("non-zero code"), "{said}");
    let fetches = "FROM hutong-test/python:1\nADD http://127.0.0.1/x /x\n";
    let (_, said) = server.fails(&["deploy", &path(image_app("boxed", fetches, "").path())]);
    assert!(said.contains("Dockerfile:2:1: ADD fetches"), "{said}");
    // Neither network nor more processes than its bound, nor more time.
    let walls = "FROM hutong-test/python:1
RUN [\"/usr/bin/python3\", \"-c\", \"import os; assert os.listdir('/sys/class/net') == ['lo']\"]
RUN [\"/usr/bin/python3\", \"-c\", \"import os, time\\nwhile True:\\n try: os.fork()\\n except OSError: time.sleep(0.1)\"]
";
    let bomb = image_app(
        "boxed",
        walls,
        "[build]\ndockerfile = 'Dockerfile'\ntimeout = '20s'\n",
    );
    let began = std::time::Instant::now();
    let (_, said) = server.fails(&["deploy", &path(bomb.path())]);
    assert!(said.contains("took over 20 s"), "{said}");
    assert!(began.elapsed().as_secs() < 120, "{:?}", began.elapsed());
    assert_eq!(page(&server, "boxed"), "from a Dockerfile");
    eventually("nothing of it runs on", 30, || {
        engine.ok(&["ps", "-q"]).lines().count() == 1
    });
    // Cancelled.
    let sleeps = "FROM hutong-test/python:1\nRUN [\"/usr/bin/sleep\", \"600\"]\n";
    let sleeps = image_app("boxed", sleeps, "");
    std::thread::scope(|scope| {
        let server = &server;
        let folder = path(sleeps.path());
        let cancelled = scope.spawn(move || server.fails(&["deploy", &folder]));
        eventually("its step runs", 60, || {
            engine.ok(&["ps", "-q"]).lines().count() == 2
        });
        server.ok(&["build", "cancel", "boxed"]);
        let (_, said) = cancelled.join().expect("no panic");
        assert!(said.contains("it was cancelled"), "{said}");
    });
    eventually("its step is gone", 30, || {
        engine.ok(&["ps", "-q"]).lines().count() == 1
    });
    // With the app its images go.
    server.ok(&["remove", "boxed", "--purge"]);
    eventually("its image is gone", 60, || {
        engine.ok(&images).trim().is_empty()
    });
}

/// Images of a Dockerfile's steps, and those that they became.
fn images_of(engine: &Docker, app: &str) -> usize {
    let label = format!("label=hutong.image.app={app}");
    let listed = engine.ok(&["images", "-aq", "--filter", &label]);
    listed.lines().count()
}

#[test]
fn a_dockerfiles_build_goes_on_whoever_is_killed_and_leaves_nothing() {
    let Some(engine) = Docker::start() else {
        return;
    };
    let server = Server::start_with(&["--docker", &engine.socket()]);
    eventually("the engine is known", 10, || {
        server.ok(&["doctor"]).contains("Docker ")
    });
    let running = || engine.ok(&["ps", "-q"]).lines().count();
    let slow = "FROM hutong-test/python:1
COPY . /srv
WORKDIR /srv
RUN [\"/usr/bin/sleep\", \"10\"]
CMD [\"python3\", \"app.py\"]
";
    for (role, text, others) in [("docker", "one", 0), ("control", "two", 1)] {
        let app = image_app("tough", slow, "");
        let hello = format!("TEXT = '{text}'\n");
        std::fs::write(app.path().join("hello.py"), hello).expect("write");
        let folder = path(app.path());
        std::thread::scope(|scope| {
            let server = &server;
            // What becomes of the command is not what is asked here.
            let deploys = scope.spawn(move || server.run(&["deploy", &folder]));
            eventually("its step runs", 60, || running() > others);
            kill(server.role(role));
            let _ = deploys.join().expect("no panic");
        });
        eventually("it serves", 120, || page(&server, "tough") == text);
    }
    // What was given up while the driver dies is cleared away by the next one.
    let steps = "FROM hutong-test/python:1
RUN [\"/usr/bin/touch\", \"/tmp/one\"]
RUN [\"/usr/bin/sleep\", \"600\"]
";
    let app = image_app("left", steps, "");
    std::thread::scope(|scope| {
        let server = &server;
        let folder = path(app.path());
        let cancelled = scope.spawn(move || server.fails(&["deploy", &folder]));
        eventually("its first step is done", 60, || {
            images_of(&engine, "left") > 0 && running() > 1
        });
        let driver = server.role("docker");
        server.ok(&["build", "cancel", "left"]);
        kill(driver);
        let (_, said) = cancelled.join().expect("no panic");
        assert!(said.contains("it was cancelled"), "{said}");
    });
    eventually("nothing of it is left", 60, || {
        images_of(&engine, "left") == 0 && running() == 1
    });
    assert_eq!(page(&server, "tough"), "two");
}

#[test]
fn a_dockerfiles_build_that_fills_the_disk_is_ended_with_the_reason() {
    let Some(engine) = Docker::start_on_disk(1500) else {
        return;
    };
    let own = tempfile::tempdir().expect("tempdir");
    let config = own.path().join("server.toml");
    std::fs::write(&config, "disk_reserve = '200M'\n").expect("write");
    let server = Server::start_with(&["--docker", &engine.socket(), "--config", &path(&config)]);
    eventually("the engine is known", 10, || {
        server.ok(&["doctor"]).contains("Docker ")
    });
    server.deploy(image_app("boxed", GOOD, "").path());
    // It waits where the disk ends, so that it is not itself that says so.
    let fills = "FROM hutong-test/python:1
RUN [\"/usr/bin/python3\", \"-c\", \"import time\\nbig = open('/tmp/big', 'wb')\\ntry:\\n while True: big.write(bytes(1 << 20))\\nexcept OSError: time.sleep(600)\"]
";
    let (_, said) = server.fails(&["deploy", &path(image_app("boxed", fills, "").path())]);
    assert!(
        said.contains("the engine's disk is full but for its reserve"),
        "{said}"
    );
    assert_eq!(page(&server, "boxed"), "from a Dockerfile");
    // What it wrote is given back.
    let next = image_app("boxed", GOOD, "");
    std::fs::write(next.path().join("hello.py"), "TEXT = 'there is room'\n").expect("write");
    let next = path(next.path());
    eventually("there is room again", 60, || {
        server.run(&["deploy", &next]).status.success()
    });
    assert_eq!(page(&server, "boxed"), "there is room");
}

/// The secrets of an app's builds are for its own commands: no Dockerfile sees them, so none is in a layer.
#[test]
fn no_secret_is_in_an_image() {
    let Some(engine) = Docker::start() else {
        return;
    };
    let server = Server::start_with(&["--docker", &engine.socket()]);
    eventually("the engine is known", 10, || {
        server.ok(&["doctor"]).contains("Docker ")
    });
    server.deploy(image_app("quiet", GOOD, "").path());
    set_secret(&server, "quiet", "TOKEN", "very-s3cret-token\n");
    let looks = format!(
        "{GOOD}RUN [\"/usr/bin/python3\", \"-c\", \"import os; assert not os.path.exists('/run/secrets'); open('/tmp/env', 'w').write(repr(os.environ))\"]\n"
    );
    server.deploy(image_app("quiet", &looks, "").path());
    let images = ["images", "-q", "--filter", "label=hutong.image.app=quiet"];
    for image in engine.ok(&images).lines() {
        let archive = engine.run(&["save", image]).stdout;
        assert!(archive.len() > 1000);
        let secret = b"very-s3cret-token";
        let is_in = archive.windows(secret.len()).any(|part| part == secret);
        assert!(!is_in, "the secret is in {image}");
    }
}

/// `FROM scratch`, with a static program: Hutong's own shim is none that serves, so one is compiled here.
#[test]
fn a_static_program_from_scratch() {
    let source = "#include <arpa/inet.h>
#include <string.h>
#include <unistd.h>
int main(void) {
  int on = 1, s = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(8080) };
  setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(s, (void *)&a, sizeof a) || listen(s, 16)) return 1;
  for (;;) {
    int c = accept(s, 0, 0); char b[4096];
    if (c < 0) continue;
    if (read(c, b, sizeof b) > 0) { const char *t = \"HTTP/1.1 200 OK\\r\\ncontent-length: 7\\r\\nconnection: close\\r\\n\\r\\nscratch\"; write(c, t, strlen(t)); }
    close(c);
  }
}
";
    let folder = app_folder(&[
        (
            "hutong.toml",
            "name = 'bare'\ndomains = ['bare.test']\n[container]\nuser = 'app'\n",
        ),
        (
            "Dockerfile",
            "FROM scratch\nCOPY serve /serve\nENTRYPOINT [\"/serve\"]\n",
        ),
        ("serve.c", source),
    ]);
    let made = Command::new("cc")
        .args(["-static", "-w", "-o", "serve", "serve.c"])
        .current_dir(folder.path())
        .status();
    if !made.is_ok_and(|made| made.success()) {
        hutong_testkit::skip("a C compiler with a static libc is needed");
        return;
    }
    let Some(engine) = Docker::start() else {
        return;
    };
    let server = Server::start_with(&["--docker", &engine.socket()]);
    eventually("the engine is known", 10, || {
        server.ok(&["doctor"]).contains("Docker ")
    });
    server.deploy(folder.path());
    assert_eq!(page(&server, "bare"), "scratch");
}
