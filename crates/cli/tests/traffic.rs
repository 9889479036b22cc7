//! What an app's visitors may do, as `[traffic]` and `[balance]` say it; from the outside.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::visitor::{Answer, ask, get, raw};
use hutong_testkit::{eventually, is_root};

/// A server that believes what a proxy at 127.0.0.1 says of visitors.
fn behind_a_proxy(more: &str) -> (Server, tempfile::TempDir) {
    let own = tempfile::tempdir().expect("tempdir");
    let path = own.path().join("server.toml");
    std::fs::write(&path, format!("trusted_proxies = ['127.0.0.1']\n{more}")).expect("write");
    let server = Server::start_with(&["--config", &path.display().to_string()]);
    (server, own)
}

fn from(server: &Server, ip: &str, host: &str, path: &str) -> Answer {
    ask(
        &server.http,
        host,
        path,
        &format!("X-Forwarded-For: {ip}\r\n"),
    )
}

#[test]
fn rates_addresses_and_bans() {
    if !is_root() {
        return;
    }
    let (server, _own) = behind_a_proxy("");
    let rules = "[traffic]\nrate_per_ip='5/h'\nburst_per_ip=5\nmax_body='1K'\ndeny=['10.9.0.0/16']\nban={after=4, within='1m', for='1h'}\n[[traffic.route]]\npath='/login'\nrate_per_ip='1/h'\n";
    server.deploy(python_app("limited", rules, "hello").path());
    let status = |ip: &str, path: &str| from(&server, ip, "limited.test", path).status;
    // Each address has its own five, and the path one of them.
    let first = from(&server, "10.0.0.1", "limited.test", "/");
    assert_eq!(first.header("ratelimit"), Some("\"ip\";r=4;t=720"));
    assert_eq!(status("10.0.0.1", "/login"), 200);
    let refused = from(&server, "10.0.0.1", "limited.test", "/login");
    assert_eq!(refused.status, 429);
    let wait: u64 = refused
        .header("retry-after")
        .expect("said")
        .parse()
        .expect("seconds");
    assert!((3590..=3600).contains(&wait), "{refused:?}");
    assert_eq!(
        refused.header("ratelimit-policy"),
        Some("\"ip\";q=1;w=3600")
    );
    assert_eq!(status("10.0.0.2", "/login"), 200);
    assert_eq!(status("10.9.0.1", "/"), 403);
    // Four bad answers, and it is not let in at all; others are.
    let (mut limited, mut banned) = (0, 0);
    for _ in 0..12 {
        match status("10.0.0.1", "/") {
            429 => limited += 1,
            403 => banned += 1,
            _ => {}
        }
    }
    assert!(limited == 3 && banned >= 5, "{limited} {banned}");
    assert_eq!(status("10.0.0.3", "/"), 200);
    // A body over the bound, said and unsaid.
    let big = "b".repeat(2000);
    for framing in [
        format!("Content-Length: 2000\r\n\r\n{big}"),
        format!("Transfer-Encoding: chunked\r\n\r\n7d0\r\n{big}\r\n0\r\n\r\n"),
    ] {
        let text = format!(
            "POST / HTTP/1.1\r\nHost: limited.test\r\nX-Forwarded-For: 10.0.0.4\r\n{framing}"
        );
        assert_eq!(
            raw(&server.http, text.as_bytes())
                .expect("an answer")
                .status,
            413
        );
    }
    bans_are_kept_and_lifted(server);
}

fn bans_are_kept_and_lifted(server: Server) {
    eventually("the ban is listed", 10, || {
        server.ok(&["ban", "list"]).contains("10.0.0.1")
    });
    // They outlive the gateway, and the owner's own are for every app.
    hutong_testkit::kill(server.role("gateway"));
    eventually("it is let in no more by the next gateway", 20, || {
        from(&server, "10.0.0.1", "limited.test", "/").status == 403
    });
    server.ok(&["ban", "lift", "10.0.0.1"]);
    eventually("it is let in again", 10, || {
        from(&server, "10.0.0.1", "limited.test", "/").status == 200
    });
    server.ok(&[
        "ban",
        "add",
        "2001:db8::1",
        "--for",
        "1d",
        "--reason",
        "scrapes",
    ]);
    let shown = server.ok(&["ban", "list"]);
    assert!(
        shown.contains("2001:db8::") && shown.contains("scrapes"),
        "{shown}"
    );
    eventually("its whole /64 is banned", 10, || {
        from(&server, "2001:db8::2:3", "limited.test", "/").status == 403
    });
    assert_eq!(server.fails(&["ban", "lift", "10.0.0.77"]).0, 1);
    assert_eq!(server.fails(&["ban", "add", "nobody"]).0, 1);
}

#[test]
fn answers_are_compressed() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let text = "all work and no play ".repeat(2000);
    let folder = app_folder(&[
        (
            "hutong.toml",
            "name='web'\nstatic='.'\ndomains=['web.test']",
        ),
        ("a.txt", &text),
        ("ready.js", &text),
        ("ready.js.br", "not really brotli"),
    ]);
    server.deploy(folder.path());
    server.deploy(python_app("app", "", &text).path());
    let curl = |host: &str, path: &str, coding: &str, more: &[&str]| {
        let output = Command::new("curl")
            .args([
                "-sS",
                "--max-time",
                "20",
                "--noproxy",
                "*",
                "-D",
                "-",
                "--compressed",
            ])
            .args([
                "-H",
                &format!("Host: {host}"),
                "-H",
                &format!("Accept-Encoding: {coding}"),
            ])
            .args(more)
            .arg(format!("http://{}{path}", server.http))
            .output()
            .expect("curl runs");
        String::from_utf8_lossy(&output.stdout).to_lowercase()
    };
    for host in ["web.test", "app.test"] {
        let path = if host == "web.test" { "/a.txt" } else { "/" };
        for coding in ["gzip", "br", "zstd"] {
            let answer = curl(host, path, coding, &["--raw"]);
            assert!(
                answer.contains(&format!("content-encoding: {coding}\r\n")),
                "{answer}"
            );
            assert!(
                answer.contains("vary: accept-encoding\r\n") && !answer.contains("content-length"),
                "{answer}"
            );
        }
        let whole = curl(host, path, "gzip", &[]);
        let (_, body) = whole.split_once("\r\n\r\n").expect("a head");
        assert_eq!(body, text, "{host}");
        let plain = curl(host, path, "identity", &[]);
        assert!(
            plain.contains("content-length: 42000\r\n") && plain.contains("vary: "),
            "{plain}"
        );
        let head = curl(host, path, "gzip", &["-I"]);
        assert!(
            head.contains("content-encoding: gzip\r\n") && !head.contains("content-length"),
            "{head}"
        );
    }
    // BREACH: not where another site may have had the browser ask.
    let foreign = ["-H", "Cookie: a=1", "-H", "Sec-Fetch-Site: cross-site"];
    assert!(!curl("app.test", "/", "gzip", &foreign).contains("content-encoding"));
    let own = ["-H", "Cookie: a=1", "-H", "Sec-Fetch-Site: same-origin"];
    assert!(curl("app.test", "/", "gzip", &own).contains("content-encoding: gzip"));
    // What was compressed beforehand is taken as it is.
    let ready = curl("web.test", "/ready.js", "gzip, br", &["--raw"]);
    assert!(
        ready.contains("content-encoding: br\r\n") && ready.ends_with("not really brotli"),
        "{ready}"
    );
    // A part is a part of the file itself.
    let part = curl("web.test", "/a.txt", "gzip", &["-H", "Range: bytes=0-7"]);
    assert!(
        part.contains("content-range: bytes 0-7/42000") && part.ends_with("all work"),
        "{part}"
    );
}

#[test]
fn the_proxy_protocol_says_who_the_visitor_is() {
    if !is_root() {
        return;
    }
    let (server, _own) = behind_a_proxy("proxy_protocol = true\n");
    server.deploy(python_app("a", "", "hello").path());
    let request = "GET /headers HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    let line = format!("PROXY TCP4 203.0.113.7 10.0.0.1 4711 80\r\n{request}");
    let answer = raw(&server.http, line.as_bytes()).expect("an answer");
    assert!(
        answer.text().contains("\"x-real-ip\": \"203.0.113.7\""),
        "{}",
        answer.text()
    );
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x24".to_vec();
    let ip: std::net::Ipv6Addr = "2001:db8::7".parse().expect("an address");
    binary.extend(ip.octets());
    binary.extend([0; 16]);
    binary.extend([0x12, 0x34, 0, 80]);
    binary.extend_from_slice(request.as_bytes());
    let answer = raw(&server.http, &binary).expect("an answer");
    assert!(
        answer
            .text()
            .contains("\"x-forwarded-for\": \"2001:db8::7\""),
        "{}",
        answer.text()
    );
    // A proxy that should say it and does not is not served.
    assert!(raw(&server.http, request.as_bytes()).is_err());
}

#[test]
fn instances_are_chosen_as_wanted() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let more = |method: &str| format!("instances=3\n[balance]\n{method}\n[limits]\nmemory='64M'");
    let pid = "/eval?import%20os%3Bresult%3Dos.environ%5B%22HUTONG_INSTANCE%22%5D";
    server.deploy(python_app("sticky", &more("method='sticky'"), "hello").path());
    let first = get(&server.http, "sticky.test", pid);
    let cookie = first.header("set-cookie").expect("a cookie").to_owned();
    assert!(
        cookie.contains("HttpOnly") && !cookie.contains(&first.text()),
        "{cookie}"
    );
    let said = format!("Cookie: {}\r\n", cookie.split(';').next().expect("a pair"));
    for _ in 0..10 {
        let answer = ask(&server.http, "sticky.test", pid, &said);
        assert_eq!(answer.text(), first.text());
        assert_eq!(answer.header("set-cookie"), None);
    }
    server.deploy(
        python_app(
            "hashed",
            &more("method='hash'\nby='header:x-user'"),
            "hello",
        )
        .path(),
    );
    let mut seen = std::collections::BTreeSet::new();
    // Instances have names by chance: that of three one gets none of 60 users happens once in 10^10 runs.
    for user in 0..60 {
        let by = |_: u32| {
            ask(
                &server.http,
                "hashed.test",
                pid,
                &format!("X-User: {user}\r\n"),
            )
            .text()
        };
        let all: std::collections::BTreeSet<String> = (0..3).map(by).collect();
        assert_eq!(all.len(), 1, "{all:?}");
        seen.extend(all);
    }
    assert_eq!(seen.len(), 3);
}

/// One request at a time; the rest waits in line, and what matters little is turned away first.
#[test]
fn a_full_app_has_a_line() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let more = "[balance]\nmax_requests=1\nqueue=8\nqueue_timeout='20s'\n[[traffic.route]]\npath='/slow'\nclass='core'\n[[traffic.route]]\npath='/env'\nclass='background'\n";
    server.deploy(python_app("busy", more, "hello").path());
    let finished = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let mut core = Vec::new();
        for _ in 0..5 {
            core.push(scope.spawn(|| {
                let status = get(&server.http, "busy.test", "/slow?2").status;
                (status, finished.fetch_add(1, Ordering::SeqCst))
            }));
        }
        eventually("four wait", 10, || waiting(&server) == 4);
        // Half of eight places is what background may have.
        let refused = get(&server.http, "busy.test", "/env");
        assert_eq!(
            (refused.status, refused.header("retry-after")),
            (503, Some("1"))
        );
        // A normal one waits, and goes behind all of the core.
        let normal = scope.spawn(|| {
            let status = get(&server.http, "busy.test", "/").status;
            (status, finished.fetch_add(1, Ordering::SeqCst))
        });
        eventually("five wait", 10, || waiting(&server) == 5);
        for one in core {
            assert_eq!(one.join().expect("no panic").0, 200);
        }
        assert_eq!(normal.join().expect("no panic"), (200, 5));
    });
    assert_eq!(get(&server.http, "busy.test", "/env").status, 200);
}

fn waiting(server: &Server) -> u64 {
    server.json(&["gateway"])["targets"][0]["queued"]
        .as_u64()
        .expect("a number")
}

/// A route's own patience (S1: 800 ms).
#[test]
fn a_route_has_its_own_patience() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let more = "[[traffic.route]]\npath='/slow'\nresponse='300ms'\n";
    server.deploy(python_app("a", more, "hello").path());
    assert_eq!(get(&server.http, "a.test", "/slow?5").status, 504);
    assert_eq!(get(&server.http, "a.test", "/slow?0").status, 200);
    let shown = server.json(&["gateway"]);
    let route = &shown["routes"][0];
    assert_eq!(
        (route["requests"].as_u64(), route["answers_5xx"].as_u64()),
        (Some(2), Some(1))
    );
    // What an idle connection asks for is nothing: it is only counted.
    let mut open = TcpStream::connect(&server.http).expect("connect");
    eventually("it is seen", 10, || {
        server.json(&["gateway"])["connections"] == 1
    });
    open.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        .expect("write");
    let mut answer = String::new();
    open.read_to_string(&mut answer).expect("an answer");
    assert!(answer.ends_with("hello"), "{answer}");
}

/// Requests that came back without a word are sent once more, but not all of them for ever.
#[test]
fn retries_have_a_budget() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    // Takes every request of /lost and says nothing; keeps count.
    let program = r#"import os, socket, threading
seen = 0
lock = threading.Lock()
def serve(connection):
    global seen
    with connection:
        head = b""
        while b"\r\n\r\n" not in head:
            more = connection.recv(65536)
            if not more:
                return
            head += more
        if b"/lost" in head:
            with lock:
                seen += 1
            return
        text = str(seen).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=256)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;
    let spec = "name='mute'\ndomains=['mute.test']\ncommand='python3 app.py'\ninstances=2\n[balance]\nmethod='round-robin'\neject=false\n[limits]\npids=256\n";
    server.deploy(app_folder(&[("hutong.toml", spec), ("app.py", program)]).path());
    const LOST: usize = 1000;
    for _ in 0..LOST {
        assert_eq!(get(&server.http, "mute.test", "/lost").status, 502);
    }
    // One after another, the two take turns.
    let seen: usize = (0..2)
        .map(|_| get(&server.http, "mute.test", "/seen").text())
        .map(|text| text.parse::<usize>().expect("a number"))
        .sum();
    // 256 in each ten seconds and a fifth of all; without a bound they would be twice as many as were asked.
    assert!(seen > LOST + 200, "{seen}");
    assert!(seen < 2 * LOST - 100, "{seen}");
}
