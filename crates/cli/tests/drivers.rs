//! The same app and the same behaviour, in a sandbox of our own, in one whose root is an image, and in a container of a
//! real Docker engine.

use std::sync::atomic::{AtomicBool, Ordering};

use hutong_testkit::docker::{Docker, IMAGE, ROOT_IMAGE, root_archive};
use hutong_testkit::oci;
use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::trial::{begin, is_tried};
use hutong_testkit::visitor::{ask, get};
use hutong_testkit::{eventually, is_root, kill};

/// What runs the app: the file differs by these lines only.
struct Driver {
    server: Server,
    lines: String,
    engine: Option<Docker>,
}

const CONTAINER: &str = "image = 'hutong-test/python:1'\nenv.BIND = '0.0.0.0'\n";

impl Driver {
    fn sandbox() -> Option<Self> {
        is_root().then(|| Driver {
            server: Server::start(),
            lines: "env.BIND = '0.0.0.0'\n".into(),
            engine: None,
        })
    }

    fn docker() -> Option<Self> {
        let engine = Docker::start()?;
        let server = Server::start_with(&["--docker", &engine.socket()]);
        eventually("the engine is known", 10, || {
            server.ok(&["doctor"]).contains("Docker ")
        });
        Some(Driver {
            server,
            lines: CONTAINER.into(),
            engine: Some(engine),
        })
    }

    /// A sandbox whose root is the image that containers have.
    fn image() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let server = Server::start();
        let folder = tempfile::tempdir().expect("a folder");
        let root = std::fs::read(root_archive(folder.path())).expect("an archive");
        let archive = folder.path().join("image.tar");
        let config = serde_json::json!({ "User": "1000" });
        let parts = [oci::Part::plain(root)];
        let digest = oci::write(&archive, &parts, &config, oci::architecture());
        // Its release keeps the image, for others to name it.
        let toml = "name = 'seed'\ncommand = ['python3', '-m', 'http.server', '8080']\n";
        let seed = app_folder(&[("hutong.toml", toml)]);
        let (seed, archive) = (seed.path().to_string_lossy(), archive.to_string_lossy());
        server.ok(&["deploy", &seed, "--image", &archive]);
        server.ok(&["stop", "seed"]);
        let lines = format!("image = 'hutong.local/seed@{digest}'\nenv.BIND = '0.0.0.0'\n");
        Some(Driver {
            server,
            lines,
            engine: None,
        })
    }

    /// `more` may end with tables.
    fn deploy(&self, name: &str, more: &str, body: &str) {
        let folder = self.folder(name, more, body);
        self.server.deploy(folder.path());
    }

    fn folder(&self, name: &str, more: &str, body: &str) -> tempfile::TempDir {
        let table = match self.lines.contains("image = ") {
            true => "\n[container]\nmount = '/app'\nuser = 'app'\n",
            false => "",
        };
        python_app(name, &format!("{}{more}{table}", self.lines), body)
    }

    fn get(&self, app: &str, path: &str) -> String {
        get(&self.server.http, &format!("{app}.test"), path).text()
    }

    fn eval(&self, app: &str, code: &str) -> String {
        let code: String = code.bytes().map(|byte| format!("%{byte:02x}")).collect();
        self.get(app, &format!("/eval?{code}"))
    }
}

macro_rules! both {
    ($($(#[$doc:meta])* fn $name:ident($driver:ident: &Driver) $body:block)*) => {
        mod in_a_sandbox {
            $(#[test] fn $name() { if let Some(driver) = super::Driver::sandbox() { super::$name(&driver); } })*
        }
        mod in_an_image {
            $(#[test] fn $name() { if let Some(driver) = super::Driver::image() { super::$name(&driver); } })*
        }
        mod in_a_container {
            $(#[test] fn $name() { if let Some(driver) = super::Driver::docker() { super::$name(&driver); } })*
        }
        $($(#[$doc])* fn $name($driver: &Driver) $body)*
    };
}

both! {
    /// Deploys, answers, is heard, is entered, and is a user of its own that may write to /data and /tmp alone.
    fn it_runs_and_is_confined(driver: &Driver) {
        let server = &driver.server;
        driver.deploy("box", "data = true\nenv.COLOUR = 'blue'\n", "hello");
        assert_eq!(driver.get("box", "/"), "hello");
        let env: serde_json::Value = serde_json::from_str(&driver.get("box", "/env")).expect("JSON");
        assert_eq!((&env["COLOUR"], &env["PORT"]), (&"blue".into(), &"8080".into()));
        assert_eq!((&env["HUTONG_APP"], &env["DATA_DIR"]), (&"box".into(), &"/data".into()));
        let uid = driver.eval("box", "import os; result = os.getuid()");
        assert_ne!(uid, "0");
        let write = |path: &str| driver.eval("box", &format!("open('{path}', 'w').write('x'); result = 'written'"));
        assert_eq!((write("/data/a").as_str(), write("/tmp/a").as_str()), ("written", "written"));
        for path in ["/a", "/app/a", "/usr/a", "/etc/a"] {
            assert!(write(path).contains("Error"), "{path}");
        }
        let status = driver.eval("box", "result = open('/proc/self/status').read()");
        assert!(status.contains("NoNewPrivs:\t1") && status.contains("CapEff:\t0000000000000000"), "{status}");
        assert!(status.contains("CapBnd:\t0000000000000000") && status.contains("Seccomp:\t2"), "{status}");
        driver.eval("box", "print('a line of its own', flush=True)");
        eventually("it is heard", 10, || server.ok(&["logs", "box"]).contains("a line of its own"));
        assert_eq!(server.ok(&["exec", "box", "--", "cat", "/data/a"]), "x");
        assert_eq!(server.run(&["exec", "box", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
        // What one release wrote, the next one has.
        driver.deploy("box", "data = true\n", "two");
        assert_eq!(driver.get("box", "/"), "two");
        assert_eq!(server.ok(&["exec", "box", "--", "cat", "/data/a"]), "x");
        server.ok(&["rollback", "box"]);
        assert_eq!(driver.get("box", "/"), "hello");
    }

    /// What it may keep in /data is the kernel's to bound.
    fn its_data_has_a_bound(driver: &Driver) {
        let server = &driver.server;
        driver.deploy("disk", "data = true\nlimits.disk = '16M'\n", "here");
        let code = "f = open('/data/a', 'wb')\ntry:\n  for n in range(64): f.write(b'x' * (1 << 20)); f.flush()\nexcept OSError as e: result = e.errno";
        assert_eq!(driver.eval("disk", code), "28");
        driver.eval("disk", "import os; os.remove('/data/a'); open('/data/b', 'w').write('kept')");
        driver.deploy("disk", "data = true\nlimits.disk = '32M'\n", "here");
        assert_eq!(driver.eval("disk", "import os; s = os.statvfs('/data'); result = open('/data/b').read(), s.f_blocks * s.f_frsize > 28 << 20"), "('kept', True)");
        server.ok(&["remove", "disk", "--purge"]);
        eventually("nothing is left", 30, || !server.data.path().join("disks/disk.img").exists());
    }

    /// A crash is noticed and mended; running out of memory is said to be that.
    fn it_is_started_again(driver: &Driver) {
        let server = &driver.server;
        driver.deploy("crash", "[limits]\nmemory = '64M'\n", "up");
        driver.get("crash", "/exit?3");
        eventually("it is up again", 20, || get(&server.http, "crash.test", "/").status == 200);
        eventually("its end is said", 10, || {
            server.ok(&["logs", "crash"]).contains("exited with code 3")
        });
        // Sent in the background: nothing will answer.
        let eat = "import threading; threading.Timer(0.1, lambda: bytearray(200 << 20)).start()";
        driver.eval("crash", eat);
        eventually("the reason is said", 20, || {
            server.ok(&["logs", "crash"]).contains("ran out of memory")
        });
        eventually("it is up once more", 20, || get(&server.http, "crash.test", "/").status == 200);
    }

    /// A program that is not there, and one that does not listen: the old release serves on, and the reason is said.
    fn bad_releases_are_given_up(driver: &Driver) {
        let server = &driver.server;
        driver.deploy("shop", "", "good");
        let folder = driver.folder("shop", "", "bad");
        let path = folder.path().join("hutong.toml");
        let good = std::fs::read_to_string(&path).expect("it is there");
        let with = |command: &str, more: &str| {
            let text = good.replace("[\"python3\", \"app.py\"]", command);
            std::fs::write(&path, format!("{text}\n{more}")).expect("written");
            server.fails(&["deploy", &folder.path().to_string_lossy()]).1
        };
        let said = with("['no-such-program']", "");
        assert!(said.contains("no-such-program"), "{said}");
        let said = with("['sleep', '60']", "[timeouts]\nstart = '1s'\n");
        assert!(said.contains("not healthy within 1s"), "{said}");
        let said = with("['sh', '-c', 'echo what is wrong; exit 4']", "");
        assert!(said.contains("exited with code 4") && said.contains("what is wrong"), "{said}");
        assert_eq!(driver.get("shop", "/"), "good");
    }

    /// A release that gets healthy and then ends again and again gives its place back.
    fn a_release_on_probation(driver: &Driver) {
        let server = &driver.server;
        driver.deploy("prob", "", "good");
        let folder = driver.folder("prob", "", "bad");
        let path = folder.path().join("app.py");
        let program = std::fs::read_to_string(&path).expect("it is there");
        // Every visitor ends it.
        let bad = program.replace("self.answer(200, BODY)", "os._exit(9)");
        assert_ne!(bad, program);
        std::fs::write(&path, bad).expect("written");
        server.deploy(folder.path());
        eventually("the release before serves again", 60, || {
            get(&server.http, "prob.test", "/").text() == "good"
        });
        eventually("it says so", 20, || {
            server.ok(&["logs", "prob"]).contains("release 1 takes its place again")
        });
        eventually("it runs well", 30, || server.app("prob")["release"] == 1);
    }

    /// What uses more memory than its owner wants is replaced, and nobody notices.
    fn it_is_replaced_when_it_grows(driver: &Driver) {
        let server = &driver.server;
        driver.deploy("grow", "[limits]\nmemory = '200M'\nrestart_at = '80M'\n", "here");
        let before = server.app("grow")["instances"][0]["id"].clone();
        driver.eval("grow", "import builtins; builtins.keep = b'x' * (100 << 20); result = 1");
        eventually("another takes its place", 60, || {
            assert_eq!(get(&server.http, "grow.test", "/").status, 200);
            let now = server.app("grow")["instances"].clone();
            now.as_array().is_some_and(|all| all.len() == 1) && now[0]["id"] != before
        });
        assert!(server.ok(&["logs", "grow"]).contains("more than limits.restart_at"));
    }

    /// A release takes over under traffic; nobody notices.
    fn a_rolling_deploy_loses_nothing(driver: &Driver) {
        let server = &driver.server;
        driver.deploy("roll", "instances = 2\n", "one");
        let (stop, failed) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        if get(&server.http, "roll.test", "/").status != 200 {
                            failed.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
            driver.deploy("roll", "instances = 2\n", "two");
            server.ok(&["restart", "roll"]);
            server.ok(&["scale", "roll", "1"]);
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!failed.load(Ordering::Relaxed));
        assert_eq!(driver.get("roll", "/"), "two");
        eventually("one instance is left", 30, || {
            server.app("roll")["instances"].as_array().map(Vec::len) == Some(1)
        });
    }

    /// A canary is tried by those who say so and ends with its owner's word; what was kept ready serves again.
    fn releases_are_tried_and_kept_ready(driver: &Driver) {
        let server = &driver.server;
        let canary = "strategy = 'canary'\n[canary]\nevery = '1h'\nheader = 'x-try: me'\n";
        driver.deploy("trial", canary, "one");
        begin(server, driver.folder("trial", canary, "two").path());
        is_tried(server, "trial", 5);
        let tester = || ask(&server.http, "trial.test", "/", "X-Try: me\r\n").text();
        assert_eq!(tester(), "two");
        server.ok(&["abort", "trial"]);
        assert_eq!(tester(), "one");
        driver.deploy("trial", "strategy = 'blue-green'\n", "three");
        assert_eq!(driver.get("trial", "/"), "three");
        assert_eq!(server.app("trial")["standby"]["release"], 1);
        let instances = || server.app("trial")["instances"].as_array().map(Vec::len);
        server.ok(&["rollback", "trial"]);
        assert_eq!(driver.get("trial", "/"), "one");
        eventually("the other one ends", 30, || instances() == Some(1));
    }

    /// Control and what runs containers are killed: the app runs on, and is known again.
    fn it_outlives_us(driver: &Driver) {
        let server = &driver.server;
        driver.deploy("stay", "[sleep]\nafter = '1h'\n", "here");
        let instance = |server: &Server| server.app("stay")["instances"][0]["id"].clone();
        let before = instance(server);
        kill(server.role("control"));
        if driver.engine.is_some() {
            kill(server.role("docker"));
        }
        assert_eq!(driver.get("stay", "/"), "here");
        eventually("control is back", 15, || server.run(&["apps"]).status.success());
        eventually("it is known again", 15, || {
            instance(server) == before && server.app("stay")["state"] == "running"
        });
        // What it says now is heard, and what it said before is not heard twice.
        driver.eval("stay", "print('said once', flush=True)");
        eventually("it is heard", 10, || server.ok(&["logs", "stay"]).contains("said once"));
        if driver.engine.is_some() {
            kill(server.role("docker"));
        }
        driver.eval("stay", "print('said later', flush=True)");
        eventually("it is heard again", 15, || server.ok(&["logs", "stay"]).contains("said later"));
        assert_eq!(server.ok(&["logs", "stay"]).matches("said once").count(), 1);
        server.ok(&["stop", "stay"]);
        eventually("it is stopped", 20, || {
            server.app("stay")["instances"].as_array().is_some_and(Vec::is_empty)
        });
        assert!(!server.ok(&["logs", "stay"]).contains("was killed"), "SIGTERM was enough");
    }

    /// One app calls another by a link: only with the other's consent, past its password, and it is woken for it. Nobody
    /// else knows the name.
    fn apps_call_each_other(driver: &Driver) {
        let server = &driver.server;
        // Of no password that anybody knows.
        let more = "callers = ['shop']\n[sleep]\nafter = '1s'\n[traffic.auth]\nusers = ['me:$2b$10$abcdefghijklmnopqrstuuFKIrZdJ7CqhlpG7.zpPAg4UWzXsLqVi']\n";
        driver.deploy("orders", more, "an order");
        driver.deploy("shop", "links = { orders = 'orders', secret = 'vault' }\n", "shop");
        driver.deploy("vault", "callers = ['orders']\n", "gold");
        driver.deploy("other", "", "other");
        let call = |app: &str, host: &str, path: &str| {
            driver.eval(app, &format!(
                "import urllib.request, urllib.error\ntry:\n  result = urllib.request.urlopen(urllib.request.Request('http://{host}{path}', headers={{'X-Hutong-Caller': 'root', 'X-Forwarded-For': '6.6.6.6'}}), timeout=20).read().decode()\nexcept urllib.error.HTTPError as e:\n  result = str(e.code) + e.read().decode()\n"
            ))
        };
        eventually("it sleeps", 30, || server.app("orders")["state"] == "asleep");
        assert_eq!(call("shop", "orders.internal", "/"), "an order");
        assert_eq!(get(&server.http, "orders.test", "/").status, 401, "visitors need the password");
        let heads: serde_json::Value = serde_json::from_str(&call("shop", "orders.internal", "/headers")).expect("JSON");
        assert_eq!(heads["x-hutong-caller"], "shop");
        assert!(heads["x-forwarded-for"].as_str().is_some_and(|ip| ip.starts_with("fd")), "{heads}");
        assert_eq!(heads["host"], "orders.internal");
        let refused = call("shop", "secret.internal", "/");
        assert!(refused.starts_with("403") && refused.contains("vault does not name shop among its callers"), "{refused}");
        let warning = server.app("shop")["warnings"].to_string();
        assert!(warning.contains("secret waits until vault names shop"), "{warning}");
        let stranger = call("other", "orders.internal", "/");
        assert!(stranger.contains("Error"), "{stranger}");
        let stranger = call("other", "127.0.0.10", "/");
        assert!(stranger.contains("refused"), "{stranger}");
        // A visitor is not taken for an app.
        let spoof = ask(&server.http, "shop.test", "/headers", "X-Hutong-Caller: root\r\n");
        assert!(!spoof.text().contains("x-hutong-caller"), "{}", spoof.text());
        // What runs once calls, too.
        let code = "import urllib.request; print(urllib.request.urlopen('http://orders.internal/').read().decode())";
        assert_eq!(server.ok(&["run", "shop", "--", "python3", "-c", code]).trim(), "an order");
        // Consent may come, and go.
        driver.deploy("vault", "callers = ['shop']\n", "gold");
        eventually("consent is given", 10, || call("shop", "secret.internal", "/") == "gold");
        // What serves it may be killed.
        kill(server.role("gateway"));
        eventually("links are back", 20, || call("shop", "secret.internal", "/") == "gold");
        if driver.engine.is_some() {
            kill(server.role("docker"));
            eventually("the driver is back, and links", 30, || call("shop", "secret.internal", "/") == "gold");
        }
        let bundle = server.data.path().join("evidence.tar.gz");
        server.ok(&["isolate", "shop", "--bundle", &bundle.to_string_lossy()]);
        server.ok(&["release", "shop"]);
        eventually("out of quarantine", 20, || call("shop", "secret.internal", "/") == "gold");
        server.ok(&["remove", "vault", "--purge"]);
        eventually("nobody is there", 20, || call("shop", "secret.internal", "/").contains("There is no app vault"));
    }

    /// An idle app sleeps and is woken; workers and one-off programs run beside it.
    fn it_sleeps_and_has_company(driver: &Driver) {
        let server = &driver.server;
        let more = "[sleep]\nafter = '1s'\n[workers.mail]\ncommand = ['sh', '-c', 'echo mail; exec sleep 600']\n[release]\ncommand = ['echo', 'moved']\n";
        driver.deploy("lazy", more, "awake");
        assert!(server.ok(&["logs", "lazy", "--process", "release"]).contains("moved"));
        eventually("it sleeps", 30, || server.app("lazy")["state"] == "asleep");
        eventually("only the worker is left", 20, || {
            let app = server.app("lazy");
            let all = app["instances"].as_array().cloned().unwrap_or_default();
            all.len() == 1 && all[0]["process"] == "mail"
        });
        assert_eq!(driver.get("lazy", "/"), "awake");
        let output = server.run(&["run", "lazy", "--", "sh", "-c", "echo once; exit 5"]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "once\n");
        assert_eq!(output.status.code(), Some(5));
        server.ok(&["remove", "lazy", "--purge"]);
        eventually("nothing is left", 30, || server.app("lazy").is_null());
        if let Some(engine) = &driver.engine {
            eventually("no container is left", 20, || engine.ok(&["ps", "-aq"]).is_empty());
        }
    }
}

/// What only containers have: users of images, roots that are refused, other people's containers, an engine that hangs.
#[test]
fn images_and_their_engine() {
    let Some(mut engine) = Docker::start() else {
        return;
    };
    engine.ok(&[
        "run",
        "-d",
        "--name",
        "other",
        "--stop-timeout",
        "1",
        "--network",
        "none",
        IMAGE,
        "sleep",
        "600",
    ]);
    let server = Server::start_with(&["--docker", &engine.socket()]);
    let app = |name: &str, image: &str, more: &str| {
        let toml = format!(
            "name = '{name}'\nimage = '{image}'\ndomains = ['{name}.test']\ncommand = ['python3', '-m', 'http.server', '8080', '-d', '/tmp']\n{more}"
        );
        app_folder(&[("hutong.toml", &toml)])
    };
    let deploy = |folder: &tempfile::TempDir| folder.path().to_string_lossy().into_owned();
    // As the image says.
    server.deploy(app("plain", IMAGE, "").path());
    assert_eq!(server.ok(&["exec", "plain", "--", "id", "-u"]), "1000\n");
    assert_eq!(get(&server.http, "plain.test", "/").status, 200);
    // Root only where the owner says so, and then with little power.
    let (_, said) = server.fails(&["deploy", &deploy(&app("root", ROOT_IMAGE, ""))]);
    assert!(
        said.contains("runs as root") && said.contains("allow_root"),
        "{said}"
    );
    server.deploy(app("root", ROOT_IMAGE, "[container]\nallow_root = true\n").path());
    assert_eq!(server.ok(&["exec", "root", "--", "id", "-u"]), "0\n");
    let raw = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)";
    let (_, said) = server.fails(&["exec", "root", "--", "python3", "-c", raw]);
    assert!(said.contains("PermissionError"), "{said}");
    let (_, said) = server.fails(&[
        "deploy",
        &deploy(&app(
            "none",
            "hutong-test/none:1",
            "[container]\npull = 'never'\n",
        )),
    ]);
    assert!(said.contains("hutong-test/none:1"), "{said}");
    let toml = format!("name = 'idle'\nimage = '{IMAGE}'\n");
    let idle = app_folder(&[("hutong.toml", &toml)]);
    let (_, said) = server.fails(&["deploy", &deploy(&idle)]);
    assert!(said.contains("says no command to run"), "{said}");
    // Nobody reaches anybody: not the other app, not the host, not by way of the engine's own name server.
    let address = engine.ok(&[
        "inspect",
        "-f",
        "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
        &container(&engine, "plain"),
    ]);
    let gateway = address
        .trim()
        .rsplit_once('.')
        .map(|(net, _)| format!("{net}.1"))
        .expect("an address");
    let port = server.http.rsplit_once(':').expect("a port").1.to_owned();
    for (host, port) in [
        (address.trim(), "8080"),
        (gateway.as_str(), port.as_str()),
        ("10.212.0.1", "22"),
    ] {
        let dial = format!("import socket; socket.create_connection(('{host}', {port}), 2)");
        let (_, said) = server.fails(&["exec", "root", "--", "python3", "-c", &dial]);
        assert!(
            said.contains("Error") || said.contains("timed out"),
            "{host}: {said}"
        );
    }
    let (_, said) = server.fails(&[
        "exec",
        "root",
        "--",
        "python3",
        "-c",
        "import socket; socket.gethostbyname('example.com')",
    ]);
    assert!(said.contains("gaierror"), "{said}");
    // The image's tag goes elsewhere; what was deployed stays what it was.
    engine.ok(&["tag", ROOT_IMAGE, IMAGE]);
    server.ok(&["restart", "plain"]);
    assert_eq!(server.ok(&["exec", "plain", "--", "id", "-u"]), "1000\n");
    // The engine hangs: apps in sandboxes do not notice, containers serve on.
    server.deploy(python_app("sand", "", "castle").path());
    engine.hang();
    server.deploy(python_app("sand", "", "two castles").path());
    assert_eq!(get(&server.http, "sand.test", "/").text(), "two castles");
    assert_eq!(get(&server.http, "plain.test", "/").status, 200);
    engine.go_on();
    // It is restarted, and its containers with it: they are started again.
    engine.restart();
    eventually("they are back", 40, || {
        get(&server.http, "plain.test", "/").status == 200
    });
    // Somebody removes a container of ours by hand.
    engine.ok(&["rm", "-f", &container(&engine, "plain")]);
    eventually("it is back", 30, || {
        get(&server.http, "plain.test", "/").status == 200
    });
    // Another's container was never touched, and what is ours goes with us.
    engine.ok(&["start", "other"]);
    drop(server);
    let left = engine.ok(&["ps", "-a", "--format", "{{.Names}}"]);
    assert_eq!(left.trim(), "other");
    let networks = engine.ok(&["network", "ls", "--format", "{{.Name}}"]);
    assert!(!networks.contains("hutong-"), "{networks}");
}

fn container(engine: &Docker, app: &str) -> String {
    let label = format!("label=hutong.app={app}");
    let ids = engine.ok(&["ps", "-q", "--filter", &label]);
    ids.split_whitespace()
        .next()
        .expect("a container")
        .to_owned()
}
