//! Two users move in, from their files as they have them to visitors who are served: S2 had Traefik with labels, Watchtower
//! and a page for its log; S4 a Vue front end and Django behind uWSGI on three nodes, all behind nginx.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use hutong_testkit::oci::{self, Entry, Part};
use hutong_testkit::server::{Server, app_folder, binary};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root, skip};
use serde_json::{Value, json};
use tempfile::TempDir;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../import/tests/fixtures/own");

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("bound").port()
}

/// What a user changes in a file: it must be there.
fn change(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
    text.replace(from, to)
}

fn offline(arguments: &[&str]) -> String {
    let output = Command::new(binary())
        .args(arguments)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .expect("hutong runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "hutong {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `hutong import` wrote, and what it said.
struct Imported {
    folder: TempDir,
    text: String,
    apps: Vec<String>,
    notes: Vec<Value>,
}

impl Imported {
    fn new(what: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let from = Path::new(FIXTURES).join(what).canonicalize();
        let from = from.expect("the files are there").display().to_string();
        let out = folder.path().display().to_string();
        let text = offline(&["import", &from, "--out", &out]);
        let made = offline(&["import", &from, "--out", &out, "--force", "--json"]);
        let made: Value = serde_json::from_str(&made).expect("JSON");
        let list = |key: &str| made[key].as_array().cloned().unwrap_or_default();
        let mut apps: Vec<String> = list("apps")
            .iter()
            .filter_map(|app| app["name"].as_str().map(str::to_owned))
            .collect();
        apps.sort();
        for app in &apps {
            offline(&["check", &format!("{out}/{app}")]);
        }
        Imported {
            folder,
            text,
            apps,
            notes: list("notes"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The report has, of one kind, something about each of these, and it says that.
    fn says(&self, kind: &str, wanted: &[(&str, &str)]) {
        for (what, part) in wanted {
            let is_it = |note: &Value| {
                let holds =
                    |key: &str, text: &str| note[key].as_str().is_some_and(|t| t.contains(text));
                note["kind"] == kind && holds("what", what) && holds("text", part)
            };
            assert!(
                self.notes.iter().any(is_it),
                "{kind}: {what}: {part} is not in {}",
                self.text
            );
        }
    }
}

/// A browser that trusts the server's own authority.
struct Visitor {
    port: String,
    root: PathBuf,
}

impl Visitor {
    fn new(server: &Server) -> Self {
        let root = server.data.path().join("root.pem");
        std::fs::write(&root, server.ok(&["cert", "ca"])).expect("written");
        Visitor {
            port: server.https.rsplit(':').next().expect("a port").to_owned(),
            root,
        }
    }

    /// Over HTTPS; whether it was answered, and with what.
    fn ask(&self, host: &str, path: &str, more: &[&str]) -> (bool, String) {
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "--noproxy", "*", "--cacert"])
            .arg(&self.root)
            .args(["--resolve", &format!("{host}:{}:127.0.0.1", self.port)])
            .args(more)
            .arg(format!("https://{host}:{}{path}", self.port))
            .output()
            .expect("curl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text + &error)
    }

    fn text(&self, host: &str, path: &str) -> String {
        self.ask(host, path, &["--fail"]).1
    }

    fn status(&self, host: &str, path: &str) -> String {
        let more = ["-o", "/dev/null", "-w", "%{http_code}"];
        self.ask(host, path, &more).1
    }

    /// Plain requests are sent to HTTPS, as `tls` of the labels and `return 301` of nginx had it.
    fn is_sent_here(&self, server: &Server, host: &str) {
        let answer = get(&server.http, host, "/orders?id=1");
        assert_eq!(answer.status, 301, "{host}: {}", answer.text());
        let wanted = format!("https://{host}:{}/orders?id=1", self.port);
        assert_eq!(answer.header("location"), Some(wanted.as_str()));
    }
}

/// The back end of S2: it listens where its image always did, and writes into the file that its owner used to look at.
const LAB: &str = r#"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(80) };
    FILE *log = fopen("/root/lab.log", "a");
    if (!log) return 5;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 64)) return 3;
    fprintf(log, "lab: version %s is open\n", getenv("SAYS")); fflush(log);
    for (;;) {
        char request[4096], answer[200];
        int line = accept(listener, 0, 0);
        if (line < 0) continue;
        if (read(line, request, sizeof request) > 0) {
            int length = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
                strlen(getenv("SAYS")), getenv("SAYS"));
            if (write(line, answer, length) < 0) return 4;
        }
        close(line);
    }
}
"#;

fn lab() -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, made) = (folder.path().join("p.c"), folder.path().join("p"));
    std::fs::write(&source, LAB).expect("written");
    let done = Command::new("cc")
        .args(["-static", "-O1", "-o"])
        .args([&made, &source])
        .status();
    match done {
        Ok(status) if status.success() => Some(std::fs::read(made).expect("it is there")),
        _ => {
            skip("cc -static is needed");
            None
        }
    }
}

const APP: &str = "orientation-system-be";
const HOST: &str = "orientation-system.be.wizzstudio.com";

/// Where CI of S2 pushes its images.
struct Ci {
    folder: TempDir,
    program: Vec<u8>,
    place: String,
    token: String,
}

impl Ci {
    /// Builds the image that says `says`, and pushes it. Like most it runs as root; where it wrote a log is a link now, as
    /// the report of the import asks for (`RUN ln -sf /dev/stdout /root/lab.log`).
    fn push(&self, says: &str, tag: &str) {
        let path = self.folder.path().join(format!("{says}.tar"));
        let layer = Part::plain(oci::layer(&[
            Entry::File("bin/lab", 0o755, &self.program),
            Entry::File("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\n"),
            Entry::Link("root/lab.log", "/dev/stdout"),
        ]));
        let config = json!({ "Entrypoint": ["/bin/lab"], "Env": [format!("SAYS={says}")] });
        oci::write(&path, &[layer], &config, oci::architecture());
        let output = self.skopeo(&[
            "copy",
            "-q",
            "--dest-tls-verify=false",
            "--dest-creds",
            &format!("ci:{}", self.token),
            &format!("oci-archive:{}", path.display()),
            &format!("docker://{}:{tag}", self.place),
        ]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{tag}: {said}");
    }

    fn skopeo(&self, arguments: &[&str]) -> Output {
        Command::new("skopeo")
            .args(arguments)
            .env("HOME", self.folder.path())
            .env("REGISTRY_AUTH_FILE", self.folder.path().join("auth.json"))
            .stdin(Stdio::null())
            .output()
            .expect("skopeo runs")
    }
}

#[test]
fn s2_leaves_traefik_and_watchtower() {
    if !is_root() {
        return;
    }
    if Command::new("skopeo").arg("--version").output().is_err() {
        skip("skopeo is needed");
        return;
    }
    let Some(program) = lab() else { return };
    // Four folders of compose and Traefik's two files become one app.
    let imported = Imported::new("s2");
    assert_eq!(imported.apps, [APP]);
    s2_says_what_becomes_of_it(&imported);

    // The server. What is changed in the file: [docker] goes, because no engine is needed, and [acme], because it wants the
    // keys of the DNS account (without it the server's own authority signs); `registry` is new. The test's addresses are
    // given at the command line, which wins.
    let file = imported.read("server.toml");
    assert!(file.contains("https = \"0.0.0.0:443\""), "{file}");
    assert!(file.contains("type = \"alidns\""), "{file}");
    let (kept, _) = file.split_once("\n[docker]").expect("the table");
    let port = free_port();
    let config = imported.path("changed.toml");
    std::fs::write(&config, format!("{kept}registry = \"127.0.0.1:{port}\"\n")).expect("written");
    let config = config.display().to_string();
    let server = Server::start_with(&["--https", "127.0.0.1:0", "--config", &config]);
    let visitor = Visitor::new(&server);
    let ci = Ci {
        folder: tempfile::tempdir().expect("a folder"),
        program,
        place: format!("127.0.0.1:{port}/{APP}"),
        token: server.ok(&["token", "create", APP]).trim().to_owned(),
    };
    std::fs::write(ci.folder.path().join("auth.json"), "{}").expect("written");
    ci.push("one", "latest");

    // The app. What is changed in the file: where the image is, …
    let folder = imported.path(APP);
    let save = |text: &str| std::fs::write(folder.join("hutong.toml"), text).expect("written");
    let toml = imported.read(&format!("{APP}/hutong.toml"));
    let toml = change(
        &toml,
        "registry.cn-chengdu.aliyuncs.com/wizz-project/",
        "hutong.local/",
    );
    // … that pushes are deployed, instead of a look at the other registry every five minutes …
    let toml = change(&toml, "watch = \"5m\"", "tags = [\"latest\", \"v*\"]");
    save(&toml);
    let (_, said) = server.fails(&["deploy", &folder.to_string_lossy()]);
    assert!(said.contains("runs as root"), "{said}");
    // … and, as the report says of images that run as root, a user of its own.
    save(&format!("{toml}\n[container]\nuser = \"app\"\n"));
    server.deploy(&folder);

    eventually("it is served over HTTPS", 30, || {
        visitor.text(HOST, "/") == "one"
    });
    visitor.is_sent_here(&server, HOST);

    // A new tag is pushed: seconds later it serves, and nobody was without an answer. Then the tag that Watchtower followed.
    for (before, says, tag) in [("one", "two", "v2"), ("two", "three", "latest")] {
        ci.push(says, tag);
        eventually(&format!("{tag} serves"), 20, || {
            let (fine, text) = visitor.ask(HOST, "/", &["--fail"]);
            assert!(fine && (text == before || text == says), "{tag}: {text}");
            text == says
        });
    }
    // What GoWebDAV was for.
    eventually("its log is readable", 20, || {
        let log = server.ok(&["logs", APP, "-n", "200"]);
        ["one", "two", "three"]
            .iter()
            .all(|says| log.contains(&format!("lab: version {says} is open")))
            && log.contains("v2 was pushed, and is deployed")
    });
    eventually("and so are the requests", 20, || {
        let access = server.ok(&["logs", APP, "--access", "--json"]);
        access.contains(HOST)
    });
}

fn s2_says_what_becomes_of_it(imported: &Imported) {
    imported.says(
        "replaced",
        &[
            ("services.traefik", "the gateway takes requests"),
            ("services.watchtower", "[push] tags"),
            ("services.webdav", "`hutong logs APP`"),
            ("router dashboard", "`hutong gateway`"),
            ("accessLog.filePath", "`hutong logs APP --access`"),
            ("lab.log", "print to standard output"),
            ("acme.storage", "asked for anew"),
        ],
    );
    imported.says(
        "left-out",
        &[
            ("version", "obsolete"),
            ("networks", "a network of its own"),
            ("/etc/timezone", "set TZ"),
            ("/etc/localtime", "set TZ"),
            ("basicAuth.users", "no router that is served here names it"),
            (
                "services.webdav.volumes",
                "goes with the service that Hutong replaces",
            ),
            (
                "services.watchtower.command",
                "goes with the service that Hutong replaces",
            ),
            (
                "services.traefik.extra_hosts",
                "goes with the service that Hutong replaces",
            ),
        ],
    );
    imported.says(
        "to-do",
        &[
            ("image", "runs as root is refused"),
            ("limits.memory", "256M"),
            ("acme.dns", "ALICLOUD_ACCESS_KEY"),
            ("acme.dns", "ALICLOUD_SECRET_KEY"),
        ],
    );
    for part in [
        "left out:",
        "Hutong does this itself:",
        "to do:",
        "The server file: see ",
        "/orientation-system-be/hutong.toml",
    ] {
        assert!(imported.text.contains(part), "{}", imported.text);
    }
}

/// Ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The Django project of S4: `base` of its uwsgi.ini.
fn project() -> TempDir {
    app_folder(&[
        ("backend/hshengmall/__init__.py", ""),
        (
            "backend/hshengmall/settings.py",
            include_str!("stories/settings.py"),
        ),
        (
            "backend/hshengmall/urls.py",
            include_str!("stories/urls.py"),
        ),
        (
            "backend/hshengmall/wsgi.py",
            include_str!("stories/wsgi.py"),
        ),
    ])
}

/// One of the three nodes, started from the uwsgi.ini of S4. What is other: folder and port are the test's, it stays in the
/// foreground, and Debian's uwsgi has Python in a plugin.
fn node(number: usize, base: &Path) -> (Running, u16) {
    let ini = std::fs::read_to_string(Path::new(FIXTURES).join("s4/uwsgi.ini")).expect("read");
    let port = free_port();
    let ini = change(&ini, "0.0.0.0:8000", &format!("127.0.0.1:{port}"));
    let ini = change(
        &ini,
        "base = /var/www/html",
        &format!("base = {}", base.display()),
    );
    let stays = |line: &&str| !line.starts_with("daemonize") && !line.starts_with("pidfile");
    let lines: Vec<&str> = ini.lines().filter(stays).collect();
    let path = base.join(format!("node-{number}.ini"));
    std::fs::write(&path, lines.join("\n") + "\n").expect("written");
    let child = Command::new("uwsgi")
        .args(["--plugin", "python3", "--need-app", "--no-orphans", "--ini"])
        .arg(&path)
        .env("NODE", number.to_string())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("uwsgi runs");
    let running = Running(child);
    eventually("uwsgi listens", 20, || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    (running, port)
}

const FRONT: &str = "aaa.abc.com";
const API: &str = "api-aaa.abc.com";

#[test]
fn s4_leaves_nginx() {
    if !is_root() {
        return;
    }
    let imported = Imported::new("s4");
    assert_eq!(imported.apps, ["aaa", "api-aaa", "backend", "vhosts"]);
    s4_says_what_becomes_of_it(&imported);

    // The server file is used as it is; the test's addresses are given at the command line, which wins.
    let config = imported.path("server.toml").display().to_string();
    let server = Server::start_with(&["--https", "127.0.0.1:0", "--config", &config]);
    let visitor = Visitor::new(&server);

    // The front end: Hutong serves the files itself, so there is no container at port 8081 and no app `aaa` that leads to it.
    // What is changed in the file: `domains`, as the report says, is what `aaa` has.
    let toml = imported.read("vhosts/hutong.toml");
    assert!(imported.read("aaa/hutong.toml").contains("127.0.0.1:8081"));
    let dist = app_folder(&[
        ("hutong.toml", &format!("{toml}domains = [\"{FRONT}\"]\n")),
        ("index.html", "<!doctype html><div id=app></div>"),
        ("assets/index-4f3a9c1d.js", "export default 1"),
    ]);
    server.deploy(dist.path());

    // The back end: three nodes that run on as they did. What is changed in the file: their ports are the test's.
    let base = project();
    let nodes: Vec<(Running, u16)> = (1..=3).map(|number| node(number, base.path())).collect();
    let at_the_nodes = |toml: &str| {
        let mut toml = toml.to_owned();
        for (there, (_, port)) in [8001, 8002, 8003].iter().zip(&nodes) {
            toml = change(
                &toml,
                &format!("127.0.0.1:{there}"),
                &format!("127.0.0.1:{port}"),
            );
        }
        app_folder(&[("hutong.toml", &toml)])
    };
    server.deploy(at_the_nodes(&imported.read("api-aaa/hutong.toml")).path());

    eventually("both are served over HTTPS", 30, || {
        visitor.text(FRONT, "/").contains("id=app") && visitor.text(API, "/").contains("node")
    });
    visitor.is_sent_here(&server, FRONT);
    visitor.is_sent_here(&server, API);
    s4_front_end(&visitor);
    django_answers(&visitor, "");

    // All alike in the file that S4 printed …
    are_shared(&server, &visitor, [80, 80, 80]);
    // … and 3 : 1 : 2 in the one with weights.
    let weighted = Imported::new("s4-weighted");
    weighted.says(
        "left-out",
        &[
            ("max_fails=3", "`balance.eject`"),
            ("keepalive", "Hutong's own way"),
        ],
    );
    weighted.says(
        "used",
        &[
            ("server", "127.0.0.1:8001, weight 3"),
            ("server", "127.0.0.1:8003, weight 2"),
        ],
    );
    server.deploy(at_the_nodes(&weighted.read("api-aaa/hutong.toml")).path());
    are_shared(&server, &visitor, [120, 40, 80]);

    // At last Hutong runs the back end, too. What is changed in the file: `domains`, and Debian's plugin, as the report says.
    drop(nodes);
    server.ok(&["remove", "api-aaa", "--purge"]);
    let toml = imported.read("backend/hutong.toml");
    let toml = change(
        &toml,
        "[\"uwsgi\", ",
        "[\"uwsgi\", \"--plugin\", \"python3\", ",
    );
    let folder = base.path().join("backend");
    let text = format!("{toml}domains = [\"{API}\"]\n");
    std::fs::write(folder.join("hutong.toml"), text).expect("written");
    server.deploy(&folder);
    eventually("Hutong's own answers", 30, || {
        visitor.text(API, "/").contains("\"app\": \"backend\"")
    });
    django_answers(&visitor, "backend");
    eventually("uwsgi is heard", 20, || {
        let log = server.ok(&["logs", "backend", "-n", "500"]);
        log.contains("WSGI app 0") && log.contains("spawned uWSGI worker 8")
    });
}

fn s4_says_what_becomes_of_it(imported: &Imported) {
    imported.says(
        "used",
        &[
            ("server", "127.0.0.1:8003, weight 1"),
            ("try_files", "which files answer"),
            ("return", "sent to HTTPS"),
            ("wsgi-file", "handed to uwsgi"),
        ],
    );
    imported.says("replaced", &[("daemonize", "`hutong logs backend`")]);
    imported.says(
        "left-out",
        &[
            ("pidfile", "nobody needs it"),
            ("ssl_ciphers", "TLS 1.2 and 1.3"),
            ("proxy_redirect", "visitor's Host"),
            ("server_name", "put its host into `domains`"),
            ("access_log", "`hutong logs APP --access`"),
            ("error_page", "Hutong's own"),
            ("location = /50x.html", "answered by what is around it"),
        ],
    );
    imported.says(
        "to-do",
        &[
            // One command, with both.
            (
                "ssl_certificate",
                "hutong cert add aaa-abc-com --cert /home/hsheng/www/hsheng-mall/ssl_certs/aaa.abc.com_bundle.crt --key /home/hsheng/www/hsheng-mall/ssl_certs/aaa.abc.com.key; or leave it",
            ),
            ("location /", "put hutong.toml into /usr/share/nginx/html"),
            ("location /", "what answers is not run by Hutong"),
            ("domains", "leave that app out: aaa (http://127.0.0.1:8081)"),
            (
                "domains",
                "leave that app out: api-aaa (uwsgi://127.0.0.1:8001)",
            ),
            ("uwsgi", "put hutong.toml into /var/www/html/backend"),
            ("plugins", "uwsgi-plugin-python3"),
        ],
    );
}

/// What `try_files $uri $uri/ /index.html` did, and what it did not do.
fn s4_front_end(visitor: &Visitor) {
    assert!(visitor.text(FRONT, "/orders/17").contains("id=app"));
    assert_eq!(
        visitor.text(FRONT, "/assets/index-4f3a9c1d.js"),
        "export default 1"
    );
    let (_, head) = visitor.ask(FRONT, "/assets/index-4f3a9c1d.js", &["-I"]);
    assert!(head.contains("immutable"), "{head}");
    assert_eq!(visitor.status(FRONT, "/logo.png"), "404");
    let (_, text) = visitor.ask(FRONT, "/hutong.toml", &[]);
    assert!(!text.contains("spa = true"), "{text}");
}

/// Django saw the visitor's request; `app` is empty where Hutong does not run it.
fn django_answers(visitor: &Visitor, app: &str) {
    let text = visitor.text(API, "/goods%20of/17?x=1");
    let seen: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!(seen["app"], app);
    assert_eq!(seen["path"], "/goods of/17");
    assert_eq!(seen["secure"], true);
    assert_eq!(seen["address"], "127.0.0.1");
    assert_eq!(seen["node"] == "", !app.is_empty(), "{seen}");
}

/// Of 240 requests the nodes get so many, by a tenth of all of them at most more or less. That all of them are healthy may
/// be known a moment later.
fn are_shared(server: &Server, visitor: &Visitor, wanted: [usize; 3]) {
    let list = server.data.path().join("list");
    let line = format!("url = \"https://{API}:{}/\"\n", visitor.port);
    std::fs::write(&list, line.repeat(239)).expect("written");
    let list = list.display().to_string();
    eventually(&format!("shared as {wanted:?}"), 30, || {
        let (_, text) = visitor.ask(API, "/", &["--fail", "-K", &list]);
        let mut counts = [0_usize; 3];
        for part in text.split("\"node\": \"").skip(1) {
            let node: usize = part[..1].parse().expect("a number");
            counts[node - 1] += 1;
        }
        assert_eq!(counts.iter().sum::<usize>(), 240, "{text}");
        let close = |(found, wanted): (&usize, &usize)| found.abs_diff(*wanted) <= 24;
        counts.iter().zip(&wanted).all(close)
    });
}
