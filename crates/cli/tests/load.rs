//! 1,000 requests a second, and what may happen meanwhile: an instance is killed, routes change a thousand
//! times, the gateway is replaced. No request fails, and conversations that are not concerned go on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hutong_testkit::server::{Server, app_folder, children_of};
use hutong_testkit::traffic::{Report, Traffic};
use hutong_testkit::{eventually, is_root, kill};

const RATE: u32 = 1000;

/// The benchmark's app: it has time for others.
fn site() -> tempfile::TempDir {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../xtask/src/gateway/app.c");
    let folder = app_folder(&[(
        "hutong.toml",
        "name='site'\ndomains=['site.test']\ncommand='/app/site 8080'\ninstances=3\n[limits]\nmemory='32M'\n",
    )]);
    let done = Command::new("cc")
        .args(["-O2", "-o"])
        .arg(folder.path().join("site"))
        .arg(source)
        .status();
    assert!(done.expect("cc runs").success());
    folder
}

/// A request to the server's API, over a connection of its own: running the command would take longer than
/// what is measured.
fn api(server: &Server, method: &str, path: &str) -> (u16, String) {
    let socket = server.api.strip_prefix("unix:").expect("a socket");
    let mut stream = UnixStream::connect(socket).expect("connect");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    (status.expect("a status"), answer)
}

fn clean(report: &Report) {
    assert!(
        report.failed.is_empty() && report.answered > 500,
        "{report:?}"
    );
    assert_eq!(report.sent_again, 0, "{report:?}");
}

#[test]
fn one_of_three_instances_is_killed() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(site().path());
    let traffic = Traffic::start(&server.http, "site.test", "/1k", RATE, 50);
    traffic.goes_on(500);
    let mut waits = Vec::new();
    for _ in 0..5 {
        let shim = server.shim_of("site");
        let system = server.json(&["system"]);
        let mut list = system.as_array().expect("a list").iter();
        let found = list.find(|one| one["pid"] == shim).expect("the shim");
        let instance = found["instance"].as_str().expect("an instance").to_owned();
        let app = leaf(shim);
        kill(app);
        while Path::new(&format!("/proc/{app}/stat")).exists() && !is_zombie(app) {
            std::thread::yield_now();
        }
        let began = Instant::now();
        while is_in_rotation(&server, &instance) {
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "it stays in rotation"
            );
        }
        waits.push(began.elapsed());
        eventually("there are three again", 30, || {
            let shown = server.json(&["gateway"]);
            let targets = shown["targets"].as_array().expect("a list");
            targets.iter().filter(|one| one["healthy"] == true).count() == 3
        });
        traffic.goes_on(500);
    }
    clean(&traffic.finish());
    waits.sort();
    println!("out of rotation after {waits:?}");
    // The best of five, because the machine may be busy with something else for longer than that.
    assert!(waits[0] < Duration::from_millis(50), "{waits:?}");
}

/// The program itself, at the end of the chain that the sandbox makes.
fn leaf(pid: u32) -> u32 {
    match children_of(pid).first() {
        Some(child) => leaf(*child),
        None => pid,
    }
}

fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| rest.starts_with(" Z"))
}

fn is_in_rotation(server: &Server, instance: &str) -> bool {
    let (_, answer) = api(server, "GET", "/v1/gateway");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    let shown: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let mut targets = shown["targets"].as_array().expect("a list").iter();
    targets
        .any(|one| one["instance"] == instance && one["healthy"] == true && one["role"] == "active")
}

#[test]
fn routes_change_a_thousand_times_and_the_gateway_is_replaced() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(site().path());
    let chat = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/chat");
    server.deploy(Path::new(chat));
    let other = app_folder(&[
        (
            "hutong.toml",
            "name='other'\nstatic='.'\ndomains=['other.test']",
        ),
        ("index.html", "x"),
    ]);
    server.deploy(other.path());
    let mut socket = WebSocket::open(&server.http);
    let traffic = Traffic::start(&server.http, "site.test", "/1k", RATE, 50);
    let version = || {
        server.json(&["gateway"])["version"]
            .as_u64()
            .expect("a number")
    };
    let before = version();
    for round in 0..1000 {
        let verb = if round % 2 == 0 { "stop" } else { "start" };
        let (status, text) = api(&server, "POST", &format!("/v1/apps/other/{verb}"));
        assert_eq!(status, 200, "{text}");
        if round % 100 == 0 {
            assert_eq!(socket.echo("still here"), "still here");
        }
    }
    eventually("a thousand tables were served", 60, || {
        version() >= before + 1000
    });
    assert_eq!(socket.echo("still here"), "still here");
    // Another gateway takes over: the conversation is told to come again, between two of its frames.
    server.ok(&["upgrade"]);
    assert_eq!(socket.close_code(), Some(1001));
    let mut socket = WebSocket::open(&server.http);
    assert_eq!(socket.echo("again"), "again");
    traffic.goes_on(1000);
    let report = traffic.finish();
    clean(&report);
    println!(
        "{} answers, the slowest {:?}",
        report.answered, report.slowest
    );
}

struct WebSocket(TcpStream);

/// RFC 6455 §5.5.2 and §5.5.3.
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

impl WebSocket {
    fn open(http: &str) -> Self {
        let mut stream = TcpStream::connect(http).expect("connect");
        let patience = Some(Duration::from_secs(30));
        stream.set_read_timeout(patience).expect("time-out");
        stream.write_all(b"GET /ws HTTP/1.1\r\nHost: chat.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").expect("write");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a head");
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "));
        WebSocket(stream)
    }

    fn echo(&mut self, text: &str) -> String {
        let text = format!("echo:{text}");
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(text.as_bytes());
        self.0.write_all(&frame).expect("write");
        let (_, payload) = self.frame();
        String::from_utf8_lossy(&payload).into_owned()
    }

    /// Kind and payload of the next one that says something: the app asks now and then whether we are still there.
    fn frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            let mut header = [0; 2];
            self.0.read_exact(&mut header).expect("a frame");
            let mut payload = vec![0; usize::from(header[1])];
            self.0.read_exact(&mut payload).expect("a payload");
            if header[0] != PING {
                return (header[0], payload);
            }
            let mut pong = vec![PONG, 0x80 | header[1], 0, 0, 0, 0];
            pong.extend_from_slice(&payload);
            self.0.write_all(&pong).expect("write");
        }
    }

    fn close_code(&mut self) -> Option<u16> {
        let (kind, payload) = self.frame();
        let code = u16::from_be_bytes([*payload.first()?, *payload.get(1)?]);
        (kind == 0x88).then_some(code)
    }
}
