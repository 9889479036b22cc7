//! Containers that others started, routed by Traefik's labels, with a real Docker engine: the labels of
//! `docker compose` are put on by hand.

use std::io::Write;
use std::process::Stdio;

use hutong_testkit::docker::{Docker, IMAGE};
use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::visitor::{ask, get};
use hutong_testkit::{eventually, kill};
use serde_json::Value;

/// What runs in them: it says who it is, and the path.
const PROGRAM: &str = "
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (os.environ['SAYS'] + ' ' + self.path).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(('', 8000), Handler).serve_forever()
";

/// The network that they are in, which is nobody's of ours.
const NETWORK: &str = "others";

const PORT: &str = "traefik.http.services.web.loadbalancer.server.port=8000";

/// Somebody starts a container. It listens on 8000 and wants to be routed; `labels` say how.
fn start(engine: &Docker, name: &str, labels: &[&str]) {
    let says = format!("SAYS={name}");
    let mut words = vec!["run", "-d", "--name", name, "--network", NETWORK];
    words.extend(["-e", says.as_str(), "--stop-timeout", "1"]);
    words.extend(["--label", "traefik.enable=true", "--label", PORT]);
    for label in labels {
        words.extend(["--label", *label]);
    }
    words.extend([IMAGE, "python3", "-c", PROGRAM]);
    engine.ok(&words);
}

fn rule(rule: &str) -> String {
    format!("traefik.http.routers.web.rule={rule}")
}

/// What `hutong external --json` has of a service; null where it has nothing.
fn row(server: &Server, name: &str) -> Value {
    let output = server.run(&["external", "--json"]);
    let all: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let list = all.as_array().cloned().unwrap_or_default();
    let found = list.into_iter().find(|one| one["name"] == name);
    found.unwrap_or(Value::Null)
}

fn notes(server: &Server, name: &str) -> String {
    row(server, name)["notes"].to_string()
}

/// Settings of a server that routes them, and the engine.
struct Rig {
    file: String,
    socket: String,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn new(engine: &Docker) -> Self {
        let folder = app_folder(&[("server.toml", "[docker]\nlabels = true\n")]);
        let file = folder.path().join("server.toml");
        Rig {
            file: file.to_string_lossy().into_owned(),
            socket: engine.socket(),
            _folder: folder,
        }
    }

    fn server(&self, more: &[&str]) -> Server {
        let own = ["--config", &self.file, "--docker", &self.socket];
        Server::start_with(&[&own[..], more].concat())
    }
}

#[test]
fn containers_of_others_are_routed_and_never_touched() {
    let Some(mut engine) = Docker::start() else {
        return;
    };
    engine.ok(&["network", "create", NETWORK]);
    start(&engine, "shop", &[&rule("Host(`shop.test`)")]);
    start(
        &engine,
        "api",
        &[
            &rule("Host(`shop.test`) && PathPrefix(`/api`)"),
            "traefik.http.routers.web.middlewares=cut",
            "traefik.http.middlewares.cut.stripprefix.prefixes=/api",
        ],
    );
    let rig = Rig::new(&engine);
    let server = rig.server(&[]);
    let says = |host: &str, path: &str| get(&server.http, host, path).text();
    let status = |host: &str| get(&server.http, host, "/").status;
    eventually("it is served", 20, || says("shop.test", "/x") == "shop /x");
    eventually("so is a path of the host", 20, || {
        says("shop.test", "/api/x") == "api /x"
    });
    eventually("it is known to be well", 10, || {
        row(&server, "shop")["targets"][0]["state"] == "healthy"
    });
    let shop = row(&server, "shop");
    assert_eq!(shop["routes"][0], "shop.test");
    assert_eq!(shop["containers"][0], "shop");
    assert_eq!(shop["notes"], serde_json::json!([]));
    // They are no apps.
    assert_eq!(server.json(&["apps"]), serde_json::json!([]));

    // What comes later is seen, and what goes; nothing is served that is not understood.
    start(&engine, "late", &[&rule("Host(`late.test`)")]);
    start(&engine, "copy", &[&rule("Host(`shop.test`)")]);
    start(
        &engine,
        "guarded",
        &[
            &rule("Host(`guarded.test`)"),
            "traefik.http.routers.web.middlewares=wall",
            "traefik.http.middlewares.wall.ipallowlist.sourcerange=10.0.0.0/8",
        ],
    );
    eventually("it is served", 10, || says("late.test", "/") == "late /");
    engine.ok(&["rm", "-f", "late"]);
    eventually("it is gone", 10, || status("late.test") == 404);
    eventually("the older one has the host", 10, || {
        notes(&server, "copy").contains("shop.test waits: shop has it")
    });
    eventually("it is said why", 10, || {
        notes(&server, "guarded").contains("`ipallowlist` is not known here")
    });
    assert_eq!(status("guarded.test"), 404);
    assert!(says("shop.test", "/").starts_with("shop"));

    // An app of ours has its host, whoever had it before, and gives it back when it goes.
    start(&engine, "thief", &[&rule("Host(`mine.test`)")]);
    eventually("it is served", 10, || says("mine.test", "/") == "thief /");
    server.deploy(python_app("mine", "", "ours").path());
    assert_eq!(says("mine.test", "/"), "ours");
    eventually("it waits", 10, || {
        notes(&server, "thief").contains("belongs to the app mine")
    });
    assert_eq!(says("mine.test", "/"), "ours");
    server.ok(&["remove", "mine", "--purge"]);
    eventually("it is back", 20, || says("mine.test", "/") == "thief /");

    // The engine hangs, and everything of ours that knew of it dies: what served serves.
    let (control, driver) = (server.role("control"), server.role("docker"));
    engine.hang();
    kill(control);
    kill(driver);
    assert_eq!(says("shop.test", "/"), "shop /");
    eventually("it is said that it is not news", 20, || {
        notes(&server, "shop:web@docker").contains("this is how it was")
    });
    assert_eq!(says("shop.test", "/api/y"), "api /y");
    engine.go_on();
    eventually("it is news again", 30, || {
        row(&server, "shop")["routes"][0] == "shop.test"
    });
    // It goes, and they with it. Once it is back, it is known that they do not run.
    engine.stop();
    assert_ne!(status("shop.test"), 404);
    engine.begin_again();
    eventually("they are gone", 30, || status("shop.test") == 404);
    engine.ok(&["start", "shop"]);
    eventually("it is back", 20, || says("shop.test", "/") == "shop /");

    // Whatever becomes of us, it is left alone.
    let state = || {
        let format = "{{.Id}} {{.State.StartedAt}} {{.State.Status}} {{.RestartCount}}";
        engine.ok(&["inspect", "-f", format, "shop"])
    };
    let before = state();
    let mut server = server;
    server.stop();
    assert_eq!(state(), before);
    let networks = engine.ok(&["network", "ls", "--format", "{{.Name}}"]);
    assert!(networks.lines().any(|name| name == NETWORK), "{networks}");
    // Turned off, nothing of it is routed any more.
    let server = Server::start_in(server.into_data(), &["--docker", &rig.socket]);
    eventually("it is not routed", 20, || {
        get(&server.http, "shop.test", "/").status == 404
    });
    let (_, said) = server.fails(&["external"]);
    assert!(said.contains("labels = true"), "{said}");
    drop(server);
    assert_eq!(state(), before);
}

#[test]
fn services_of_compose_passwords_and_https() {
    let Some(engine) = Docker::start() else {
        return;
    };
    engine.ok(&["network", "create", NETWORK]);
    let rig = Rig::new(&engine);
    let server = rig.server(&["--https", "127.0.0.1:0"]);
    let answer = |host: &str| get(&server.http, host, "/");
    // Two of one service take turns.
    for name in ["many-web-1", "many-web-2"] {
        start(
            &engine,
            name,
            &[
                &rule("Host(`many.test`)"),
                "com.docker.compose.project=many",
                "com.docker.compose.service=web",
            ],
        );
    }
    eventually("both answer", 20, || {
        let mut seen: Vec<String> = (0..8).map(|_| answer("many.test").text()).collect();
        seen.sort();
        seen.dedup();
        seen == ["many-web-1 /", "many-web-2 /"]
    });
    let many = row(&server, "many/web");
    assert_eq!(many["targets"].as_array().map(Vec::len), Some(2), "{many}");
    engine.ok(&["rm", "-f", "many-web-1"]);
    eventually("one is left", 10, || {
        row(&server, "many/web")["targets"].as_array().map(Vec::len) == Some(1)
    });
    assert_eq!(answer("many.test").text(), "many-web-2 /");
    // Who asks for HTTPS gets it, and nobody else a certificate.
    let tls = "traefik.http.routers.web.tls=true";
    start(&engine, "safe", &[&rule("Host(`safe.test`)"), tls]);
    eventually("it is sent to HTTPS", 20, || {
        let answer = answer("safe.test");
        let to = answer.header("location").unwrap_or_default();
        answer.status == 301 && to.starts_with("https://safe.test:")
    });
    let certificates = server.ok(&["cert", "list"]);
    assert!(certificates.contains("safe.test") && !certificates.contains("many.test"));
    // A password.
    let users = format!(
        "traefik.http.middlewares.staff.basicauth.users={}",
        user(&server, "ann", "sesame")
    );
    start(
        &engine,
        "staff",
        &[
            &rule("Host(`staff.test`)"),
            "traefik.http.routers.web.middlewares=staff@docker",
            &users,
        ],
    );
    eventually("it asks who it is", 20, || {
        answer("staff.test").status == 401
    });
    let with = |password: &str| {
        use base64::prelude::{BASE64_STANDARD, Engine};
        let pair = BASE64_STANDARD.encode(format!("ann:{password}"));
        let header = format!("Authorization: Basic {pair}\r\n");
        ask(&server.http, "staff.test", "/", &header)
    };
    assert_eq!(with("open").status, 401);
    assert_eq!(with("sesame").text(), "staff /");
}

/// The line that `hutong password` makes.
fn user(server: &Server, name: &str, password: &str) -> String {
    let mut command = server.command(&["password", name]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("hutong runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    writeln!(stdin, "{password}").expect("write");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let line = String::from_utf8(output.stdout).expect("text");
    line.trim().to_owned()
}
