//! Apps that speak something else than HTTP/1, and servers that Hutong does not run: Django behind uWSGI,
//! PHP behind php-fpm, gRPC.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::traffic::Traffic;
use hutong_testkit::visitor::{ask, get, raw};
use hutong_testkit::{eventually, is_root};
use serde_json::Value;

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("bound").port()
}

/// Ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server file of the test's own.
fn config(folder: &tempfile::TempDir, text: &str) -> String {
    let path = folder.path().join("server.toml");
    std::fs::write(&path, text).expect("write");
    path.display().to_string()
}

fn root(server: &Server) -> PathBuf {
    let root = server.data.path().join("root.pem");
    std::fs::write(&root, server.ok(&["cert", "ca"])).expect("write");
    root
}

fn curl(server: &Server, url: &str, more: &[&str]) -> (bool, String) {
    let port = server.https.rsplit(':').next().expect("a port");
    let (host, path) = url.split_once('/').expect("a path");
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--noproxy", "*", "--cacert"])
        .arg(root(server))
        .args(["--resolve", &format!("{host}:{port}:127.0.0.1")])
        .args(more)
        .arg(format!("https://{host}:{port}/{path}"))
        .output()
        .expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), text + &error)
}

fn told(server: &Server, url: &str, more: &[&str]) -> Value {
    let (_, text) = curl(server, url, more);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{url}: {text}"))
}

const DJANGO: &str = include_str!("upstreams/django.py");

struct Nodes {
    ports: Vec<u16>,
    running: Vec<Running>,
    _folder: tempfile::TempDir,
}

/// Three uWSGI servers with the same Django site, as the configuration of old had them.
fn nodes() -> Nodes {
    let folder = app_folder(&[("site_of_test.py", DJANGO)]);
    let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
    let start = |(index, port): (usize, &u16)| {
        let child = Command::new("uwsgi")
            .args([
                "--plugin",
                "python3",
                "--master",
                "--die-on-term",
                "--need-app",
            ])
            .args([
                "--buffer-size",
                "65535",
                "--threads",
                "4",
                "--disable-logging",
            ])
            .args(["--socket", &format!("127.0.0.1:{port}")])
            .args(["--module", "site_of_test:application", "--no-default-app"])
            .env("NODE", (index + 1).to_string())
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("uwsgi runs");
        Running(child)
    };
    let running = ports.iter().enumerate().map(start).collect();
    for port in &ports {
        eventually("uwsgi listens", 20, || {
            TcpStream::connect(("127.0.0.1", *port)).is_ok()
        });
    }
    Nodes {
        ports,
        running,
        _folder: folder,
    }
}

/// nginx in front of three uWSGI nodes, a Vue front end, and port 80 that leads to 443.
#[test]
fn an_nginx_of_old_is_replaced() {
    if !is_root() {
        return;
    }
    let mut nodes = nodes();
    let own = tempfile::tempdir().expect("tempdir");
    let config = config(&own, "allow_upstreams = ['127.0.0.1']\n");
    let server = Server::start_with(&["--https", "127.0.0.1:0", "--config", &config]);
    let [a, b, c] = nodes.ports[..] else {
        panic!("three nodes")
    };
    let spec = format!(
        "name='api'\ndomains=['api.test']\nupstream=[{{url='uwsgi://127.0.0.1:{a}',weight=3}}, {{url='uwsgi://127.0.0.1:{b}',weight=2}}, 'uwsgi://127.0.0.1:{c}']\n[balance]\nmethod='round-robin'\n[health]\ninterval='200ms'"
    );
    server.deploy(app_folder(&[("hutong.toml", &spec)]).path());
    let dist = app_folder(&[
        (
            "hutong.toml",
            "name='web'\nstatic='dist'\nspa=true\ndomains=['web.test']",
        ),
        ("dist/index.html", "<!doctype html><div id=app></div>"),
        ("dist/assets/index-4f3a9c1d.js", "export default 1"),
    ]);
    server.deploy(dist.path());
    eventually("both have certificates", 20, || {
        curl(&server, "api.test/", &[]).0 && curl(&server, "web.test/", &[]).0
    });
    django_sees_the_request(&server);
    weights_hold(&server);
    // Port 80 leads to 443, both of them.
    for host in ["api.test", "web.test"] {
        let answer = get(&server.http, host, "/shop?id=1");
        assert_eq!(answer.status, 301);
        let port = server.https.rsplit(':').next().expect("a port");
        let wanted = format!("https://{host}:{port}/shop?id=1");
        assert_eq!(answer.header("location"), Some(wanted.as_str()));
    }
    let (_, page) = curl(&server, "web.test/orders/17", &[]);
    assert!(page.contains("id=app"), "{page}");
    let (_, head) = curl(&server, "web.test/assets/index-4f3a9c1d.js", &["-I"]);
    assert!(head.contains("immutable"), "{head}");
    // A node that ends takes no request with it.
    nodes.running.remove(0);
    for _ in 0..60 {
        let answer = told(&server, "api.test/", &[]);
        assert_ne!(answer["node"], "1");
    }
    let shown = server.ok(&["gateway"]);
    assert!(
        shown.contains("not healthy") && shown.contains("api.test"),
        "{shown}"
    );
    // Without any the app is not well, and says why.
    nodes.running.clear();
    eventually("the app is failing", 20, || {
        let app = server.app("api");
        app["state"] == "failing"
            && app["message"]
                .as_str()
                .is_some_and(|text| text.contains("no server answers"))
    });
}

fn django_sees_the_request(server: &Server) {
    let seen = told(
        server,
        "api.test/a%20b/%E4%BD%A0?x=1&y=%26",
        &[
            "-H",
            "Cookie: a=1; b=2",
            "-H",
            "X-User: me",
            "-H",
            "X-Forwarded-For: 6.6.6.6",
        ],
    );
    let port = server.https.rsplit(':').next().expect("a port");
    assert_eq!(seen["path"], "/a b/你");
    assert_eq!(seen["query"], serde_json::json!({"x": "1", "y": "&"}));
    assert_eq!(seen["host"], format!("api.test:{port}"));
    assert_eq!(seen["secure"], true);
    assert_eq!(seen["address"], "127.0.0.1");
    assert_eq!(seen["forwarded"], "127.0.0.1");
    assert_eq!(
        (seen["cookie"].as_str(), seen["user"].as_str()),
        (Some("1"), Some("me"))
    );
    for protocol in ["--http1.1", "--http2"] {
        let form = told(server, "api.test/", &[protocol, "-d", "a=1&b=2"]);
        assert_eq!(form["form"], serde_json::json!({"a": "1", "b": "2"}));
        let file = server.data.path().join("file");
        std::fs::write(&file, "x".repeat(500_000)).expect("write");
        let upload = format!("f=@{}", file.display());
        let files = told(server, "api.test/", &[protocol, "-F", &upload]);
        assert_eq!(files["files"], serde_json::json!({"f": 500_000}));
        // A body that does not say how long it is must be known before uWSGI sees it.
        let chunks = [
            "-X",
            "POST",
            "-H",
            "Transfer-Encoding: chunked",
            "-T",
            &file.display().to_string(),
        ];
        let mut more = vec![protocol];
        more.extend(chunks);
        let body = told(server, "api.test/", &more);
        assert_eq!(body["length"], 500_000, "{body}");
        let (_, text) = curl(
            server,
            "api.test/stream",
            &[protocol, "-o", "/dev/null", "-w", "%{size_download}"],
        );
        assert_eq!(text, "1000000");
        let (_, text) = curl(server, "api.test/gone", &[protocol, "-i"]);
        assert!(
            text.contains(" 204") && text.to_lowercase().matches("set-cookie: ").count() == 2,
            "{text}"
        );
        let (_, text) = curl(server, "api.test/", &[protocol, "-I"]);
        assert!(text.contains(" 200"), "{text}");
    }
    // Two megabytes without a length are too much for it.
    std::fs::write(server.data.path().join("file"), "x".repeat(2 << 20)).expect("write");
    let file = server.data.path().join("file").display().to_string();
    // Over HTTP/1, because this curl (7.88) loses an answer that comes before the request is through.
    let chunked = [
        "--http1.1",
        "-X",
        "POST",
        "-H",
        "Transfer-Encoding: chunked",
        "-T",
        &file,
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
    ];
    let (_, text) = curl(server, "api.test/", &chunked);
    assert!(text.starts_with("411"), "{text}");
}

fn weights_hold(server: &Server) {
    let mut counts = [0; 4];
    // All over one connection, so that one worker's turns are seen.
    let list = server.data.path().join("list");
    let port = server.https.rsplit(':').next().expect("a port");
    let line = format!("url = \"https://api.test:{port}/\"\n");
    std::fs::write(&list, line.repeat(120)).expect("write");
    let (_, text) = curl(server, "api.test/", &["-K", &list.display().to_string()]);
    for part in text.split("\"node\": \"").skip(1) {
        let node: usize = part[..1].parse().expect("a number");
        counts[node] += 1;
    }
    let all: usize = counts.iter().sum();
    assert_eq!(all, 121, "{text}");
    for (node, wanted) in [(1, 60), (2, 40), (3, 20)] {
        let found: usize = counts[node];
        assert!(found.abs_diff(wanted) <= 4, "{counts:?}");
    }
}

/// Deny by default: an app file cannot reach into the server's network by itself.
#[test]
fn upstreams_must_be_allowed() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let folder = app_folder(&[(
        "hutong.toml",
        "name='a'\ndomains=['a.test']\nupstream=['http://127.0.0.1:1']",
    )]);
    let path = folder.path().display().to_string();
    let (code, text) = server.fails(&["deploy", &path]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("allow_upstreams"), "{text}");
}

const RPC_SERVER: &str = include_str!("upstreams/rpc_server.py");
const RPC_CLIENT: &str = include_str!("upstreams/rpc_client.py");

#[test]
fn grpc_calls_of_every_kind() {
    if !is_root() {
        return;
    }
    let server = Server::start_with(&["--https", "127.0.0.1:0"]);
    let folder = app_folder(&[
        (
            "hutong.toml",
            "name='rpc'\nprotocol='h2c'\ncommand='/usr/bin/python3 app.py'\ndomains=['rpc.test']\n[limits]\nmemory='512M'",
        ),
        ("app.py", RPC_SERVER),
    ]);
    server.deploy(folder.path());
    let root = root(&server);
    let port = server.https.rsplit(':').next().expect("a port").to_owned();
    eventually("it has a certificate", 20, || {
        curl(&server, "rpc.test/", &[]).0
    });
    let output = Command::new("/usr/bin/python3")
        .args(["-c", RPC_CLIENT, &port])
        .arg(&root)
        .env("no_proxy", "*")
        .env_remove("http_proxy")
        .env_remove("https_proxy")
        .env_remove("HTTP_PROXY")
        .env_remove("HTTPS_PROXY")
        .output()
        .expect("the client runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Killed in the middle of it, it comes back on another connection.
    hutong_testkit::kill(server.shim_of("rpc"));
    eventually("it answers again", 30, || {
        let done = Command::new("/usr/bin/python3")
            .args(["-c", RPC_CLIENT, &port])
            .arg(&root)
            .env("no_proxy", "*")
            .output();
        done.is_ok_and(|output| output.status.success())
    });
}

const PHP: &str = include_str!("upstreams/index.php");
const FPM: &str = "[global]\nerror_log = /tmp/fpm.log\ndaemonize = no\n[www]\nlisten = 127.0.0.1:${PORT}\npm = static\npm.max_children = 3\nclear_env = no\n";

#[test]
fn php_by_fastcgi() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let fpm = std::fs::read_dir("/usr/sbin")
        .expect("list")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.starts_with("php-fpm"))
        .expect("php-fpm is installed");
    let spec = format!(
        "name='php'\nprotocol='fastcgi'\ncommand='/usr/sbin/{fpm} -F -y /app/fpm.conf'\ndomains=['php.test', 'sub.test/blog']\n[fastcgi]\nroot='public'\n"
    );
    let folder = app_folder(&[
        ("hutong.toml", &spec),
        ("fpm.conf", FPM),
        ("public/index.php", PHP),
        ("public/admin/tool.php", PHP),
        ("public/style.css", "body{}"),
        ("public/.secret.txt", "no"),
        ("private.txt", "no"),
    ]);
    server.deploy(folder.path());
    let asked = |path: &str, more: &str| -> Value {
        let answer = ask(&server.http, "php.test", path, more);
        serde_json::from_str(&answer.text()).unwrap_or_else(|_| panic!("{path}: {}", answer.text()))
    };
    let seen = asked("/a%20b?x=1", "Proxy: evil\r\nX-Forwarded-For: 6.6.6.6\r\n");
    assert_eq!(seen["script"], "/index.php");
    assert_eq!(seen["file"], "/app/public/index.php");
    assert_eq!(
        (seen["uri"].as_str(), seen["info"].as_str()),
        (Some("/a%20b?x=1"), Some("/a b"))
    );
    assert_eq!(
        (seen["query"]["x"].as_str(), seen["proxy"].as_str()),
        (Some("1"), Some(""))
    );
    assert_eq!(
        (seen["host"].as_str(), seen["address"].as_str()),
        (Some("php.test"), Some("127.0.0.1"))
    );
    let seen = asked("/admin/tool.php/more", "");
    assert_eq!(
        (seen["script"].as_str(), seen["info"].as_str()),
        (Some("/admin/tool.php"), Some("/more"))
    );
    // A script's source is never shown; what is no script comes from the folder.
    for path in [
        "/style.css",
        "/admin/tool.php",
        "/index.php",
        "/.secret.txt",
        "/../private.txt",
        "/missing.css",
    ] {
        let answer = get(&server.http, "php.test", path);
        assert!(
            !answer.text().contains("<?php") && answer.text() != "no",
            "{path}"
        );
    }
    let style = get(&server.http, "php.test", "/style.css");
    assert_eq!(
        (style.text().as_str(), style.header("content-type")),
        ("body{}", Some("text/css; charset=utf-8"))
    );
    let answer = get(&server.http, "php.test", "/cookies");
    assert_eq!(
        (answer.status, answer.header("location")),
        (303, Some("/elsewhere"))
    );
    assert_eq!(
        get(&server.http, "php.test", "/large").text().len(),
        2_000_000
    );
    let body = "b".repeat(100_000);
    for framing in [
        format!("Content-Length: 100000\r\n\r\n{body}"),
        format!("Transfer-Encoding: chunked\r\n\r\n186a0\r\n{body}\r\n0\r\n\r\n"),
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nHost: php.test\r\nConnection: close\r\n{framing}");
        let answer = raw(&server.http, request.as_bytes()).expect("an answer");
        let seen: Value = serde_json::from_str(&answer.text()).expect("JSON");
        assert_eq!(
            (seen["length"].as_u64(), seen["method"].as_str()),
            (Some(100_000), Some("POST"))
        );
    }
    let traffic = Traffic::start(&server.http, "php.test", "/plain", 100, 4);
    server.ok(&["restart", "php"]);
    let report = traffic.finish();
    assert!(report.failed.is_empty(), "{report:?}");
}

const WS_OVER_H2: &str = include_str!("upstreams/ws_over_h2.py");

#[test]
fn websockets_through_http2() {
    if !is_root() {
        return;
    }
    let server = Server::start_with(&["--https", "127.0.0.1:0"]);
    let chat = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/chat");
    server.deploy(std::path::Path::new(chat));
    eventually("it has a certificate", 20, || {
        curl(&server, "chat.localhost/", &[]).0
    });
    let port = server.https.rsplit(':').next().expect("a port").to_owned();
    let output = Command::new("/usr/bin/python3")
        .args(["-c", WS_OVER_H2, &port])
        .arg(root(&server))
        .arg("chat.localhost")
        .output()
        .expect("the client runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
