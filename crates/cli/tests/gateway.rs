//! The gateway as visitors see it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::visitor::{ask, get, raw};
use hutong_testkit::{eventually, is_root};

#[test]
fn static_apps() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let big = "0123456789".repeat(50_000);
    let folder = app_folder(&[
        (
            "hutong.toml",
            "name='site'\ndomains=['site.test']\nstatic='public'\nspa=true",
        ),
        ("public/index.html", "<html>home</html>"),
        ("public/assets/app-3f9c1d2ab8.js", "js"),
        ("public/big.bin", &big),
        ("public/.env", "secret"),
        ("public/docs/index.html", "docs"),
        ("secret.txt", "outside of public"),
    ]);
    server.deploy(folder.path());
    let fetch = |path: &str, headers: &str| ask(&server.http, "site.test", path, headers);
    let home = fetch("/", "");
    assert_eq!(
        (home.status, home.text().as_str()),
        (200, "<html>home</html>")
    );
    assert_eq!(home.header("cache-control"), Some("no-cache"));
    assert_eq!(
        home.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let etag = home.header("etag").expect("an etag").to_owned();
    assert_eq!(
        fetch("/", &format!("If-None-Match: {etag}\r\n")).status,
        304
    );
    assert_eq!(fetch("/route/of/the/spa", "").text(), "<html>home</html>");
    assert_eq!(fetch("/missing.png", "").status, 404);
    let asset = fetch("/assets/app-3f9c1d2ab8.js", "");
    assert_eq!(
        asset.header("cache-control"),
        Some("public, max-age=31536000, immutable")
    );
    assert_eq!(fetch("/big.bin", "").body.len(), 500_000);
    let part = fetch("/big.bin", "Range: bytes=10-14\r\n");
    assert_eq!((part.status, part.text().as_str()), (206, "01234"));
    assert_eq!(part.header("content-range"), Some("bytes 10-14/500000"));
    assert_eq!(fetch("/big.bin", "Range: bytes=500000-\r\n").status, 416);
    assert_eq!(fetch("/docs", "").header("location"), Some("/docs/"));
    assert_eq!(fetch("/docs/", "").text(), "docs");
    for path in [
        "/.env",
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/assets/..%5c..%5csecret.txt",
    ] {
        let answer = fetch(path, "");
        assert!(
            !answer.text().contains("secret") && !answer.text().contains("outside"),
            "{path}: {answer:?}"
        );
    }
    let head = raw(
        &server.http,
        b"HEAD / HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\n\r\n",
    )
    .expect("an answer");
    assert_eq!(
        (head.header("content-length"), head.body.len()),
        (Some("17"), 0)
    );
    let post = raw(
        &server.http,
        b"POST / HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    )
    .expect("an answer");
    assert_eq!(post.status, 405);
}

#[test]
fn forwarded_headers_paths_and_sanity() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("echo", "", "e").path());
    let headers = ask(
        &server.http,
        "echo.test",
        "/headers",
        "X-Forwarded-For: 6.6.6.6\r\nX-WX-OPENID: admin\r\nX-Real-IP: 6.6.6.6\r\n",
    )
    .text();
    assert!(
        headers.contains("\"x-forwarded-for\": \"127.0.0.1\"")
            && headers.contains("\"x-real-ip\": \"127.0.0.1\""),
        "{headers}"
    );
    assert!(
        headers.contains("\"x-forwarded-proto\": \"http\"")
            && !headers.contains("6.6.6.6")
            && !headers.contains("admin"),
        "{headers}"
    );
    assert_eq!(
        get(&server.http, "echo.test", "/x/../path?q=%2F").text(),
        "/path?q=%2F"
    );
    assert_eq!(get(&server.http, "ECHO.test:80", "/").status, 200);
    for (what, request) in [
        (
            "two hosts",
            "GET / HTTP/1.1\r\nHost: echo.test\r\nHost: b\r\nConnection: close\r\n\r\n",
        ),
        ("no host", "GET / HTTP/1.1\r\nConnection: close\r\n\r\n"),
        (
            "contradiction",
            "GET http://other.test/ HTTP/1.1\r\nHost: echo.test\r\nConnection: close\r\n\r\n",
        ),
        (
            "above the root",
            "GET /../../etc/passwd HTTP/1.1\r\nHost: echo.test\r\nConnection: close\r\n\r\n",
        ),
        (
            "bad header",
            "GET / HTTP/1.1\r\nHost: echo.test\r\nBad Header: x\r\nConnection: close\r\n\r\n",
        ),
    ] {
        let status = raw(&server.http, request.as_bytes()).map(|answer| answer.status);
        assert!(matches!(status, Ok(400)), "{what}: {status:?}");
    }
    let body = "x".repeat(300_000);
    let post = format!(
        "POST /p HTTP/1.1\r\nHost: echo.test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(
        raw(&server.http, post.as_bytes())
            .expect("an answer")
            .text(),
        "300000"
    );
}

#[test]
fn error_pages_fit_the_visitor() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("slow", "[timeouts]\nresponse = \"500ms\"", "s").path());
    let unknown = ask(&server.http, "nobody.test", "/", "Accept: text/html\r\n");
    assert_eq!(unknown.status, 404);
    assert!(unknown.text().starts_with("<!doctype html>"));
    let json = ask(
        &server.http,
        "<script>.test",
        "/",
        "Accept: application/json\r\n",
    );
    assert_eq!(json.status, 400);
    assert_eq!(
        json.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(get(&server.http, "slow.test", "/slow?3").status, 504);
    let access = || server.ok(&["logs", "slow", "--access", "--json"]);
    eventually("the access log has it", 10, || {
        access().contains("\"status\":504")
    });
    let line = access();
    let record: serde_json::Value =
        serde_json::from_str(line.lines().next().expect("a line")).expect("JSON");
    for key in [
        "t", "app", "ip", "method", "host", "path", "status", "bytes", "us",
    ] {
        assert!(record.get(key).is_some(), "{key} in {record}");
    }
}

#[test]
fn a_websocket_goes_both_ways_and_ends_with_its_instance() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/chat");
    server.deploy(std::path::Path::new(examples));
    let mut stream = TcpStream::connect(&server.http).expect("connect");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("time-out");
    stream.write_all(b"GET /ws HTTP/1.1\r\nHost: chat.localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").expect("write");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    assert!(
        head.starts_with("HTTP/1.1 101") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        "{head}"
    );
    // What follows is no body.
    assert!(
        !head.to_ascii_lowercase().contains("transfer-encoding"),
        "{head}"
    );
    for n in 0..50 {
        let text = format!("echo:message {n}");
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(text.as_bytes());
        stream.write_all(&frame).expect("write");
        let mut header = [0; 2];
        stream.read_exact(&mut header).expect("a frame");
        let mut payload = vec![0; usize::from(header[1])];
        stream.read_exact(&mut payload).expect("a payload");
        assert_eq!(payload, format!("message {n}").into_bytes());
    }
    server.ok(&["stop", "chat"]);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    eventually("its record is kept", 10, || {
        server.ok(&["logs", "chat", "--access"]).contains(" 101 ")
    });
}

/// An app that says how long a body is where there is none, and then a frame.
const WORDY: &str = r#"
import os, socket, threading

def serve(connection):
    with connection:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(65536)
            if not piece:
                return
            head += piece
        if b"upgrade: websocket" not in head.lower():
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            return
        connection.sendall(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 5\r\n\r\n"
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nContent-Length: 5\r\n\r\n"
            b"\x81\x05hello"
        )
        while connection.recv(65536):
            pass

server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"#;

#[test]
fn what_has_no_body_says_no_length() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let toml =
        "name = \"wordy\"\ndomains = [\"wordy.test\"]\ncommand = [\"python3\", \"app.py\"]\n";
    server.deploy(app_folder(&[("hutong.toml", toml), ("app.py", WORDY)]).path());
    assert_eq!(get(&server.http, "wordy.test", "/").text(), "ok");
    let mut stream = TcpStream::connect(&server.http).expect("connect");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("time-out");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: wordy.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").expect("write");
    let mut said = Vec::new();
    while !said.ends_with(b"\x81\x05hello") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("both heads, a frame");
        said.push(byte[0]);
    }
    let said = String::from_utf8_lossy(&said).to_ascii_lowercase();
    assert!(
        said.starts_with("http/1.1 103") && said.contains("link: </a>"),
        "{said}"
    );
    assert!(
        said.contains("http/1.1 101") && !said.contains("content-length"),
        "{said}"
    );
}

#[test]
fn a_dead_instance_is_out_of_rotation_and_requests_find_the_other() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("pair", "instances = 2", "p").path());
    let app = server.app("pair");
    let instance = app["instances"][0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let system = server.json(&["system"]);
    let shim = system
        .as_array()
        .expect("list")
        .iter()
        .find(|p| p["instance"] == instance.as_str())
        .cloned()
        .expect("its shim");
    let pid = rustix::process::Pid::from_raw(shim["pid"].as_i64().expect("a pid") as i32)
        .expect("positive");
    let traffic = hutong_testkit::traffic::Traffic::start(&server.http, "pair.test", "/", 200, 4);
    std::thread::sleep(Duration::from_millis(300));
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    let began = Instant::now();
    eventually("it is replaced", 20, || {
        let app = server.app("pair");
        let list = app["instances"].as_array().cloned().unwrap_or_default();
        list.iter()
            .filter(|i| i["state"] == "healthy" && i["id"] != instance.as_str())
            .count()
            == 2
    });
    let report = traffic.finish();
    assert!(
        report.failed.is_empty(),
        "after {:?}: {report:?}",
        began.elapsed()
    );
}

/// A visitor who stalls in the middle of a body must not hold a connection that the next one gets.
#[test]
fn a_stalled_upload_and_an_h2c_upgrade_harm_nobody() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("early", "", "e");
    let path = app.path().join("app.py");
    let text = std::fs::read_to_string(&path).expect("read");
    // Answers before it has read the body, and keeps the connection.
    let early = text.replace(
        "        data = self.rfile.read(length)\n        self.answer(200, f\"{len(data)}\")",
        "        self.answer(200, 'early')",
    );
    std::fs::write(&path, early).expect("write");
    server.deploy(app.path());
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(&server.http).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("time-out");
        stream
            .write_all(b"POST / HTTP/1.1\r\nHost: early.test\r\nContent-Length: 1000000\r\n\r\nx")
            .expect("write");
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an early answer");
        stalled.push(stream);
    }
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(get(&server.http, "early.test", "/").text(), "e");
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
    }
    let headers = "Connection: Upgrade, HTTP2-Settings, Host\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n";
    let answer = ask(&server.http, "early.test", "/headers", headers);
    let seen = answer.text();
    assert_eq!(answer.status, 200, "{seen}");
    assert!(!seen.contains("\"upgrade\""), "{seen}");
    assert!(seen.contains("\"host\": \"early.test\""), "{seen}");
}
