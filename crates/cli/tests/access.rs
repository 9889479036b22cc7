//! Who is let in before an app: names and passwords, and how much of a server one address may take.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::visitor::{Answer, ask, get};
use hutong_testkit::{eventually, is_root};

/// A server that believes what a proxy at 127.0.0.1 says of visitors.
fn behind_a_proxy(arguments: &[&str], more: &str) -> (Server, tempfile::TempDir) {
    let own = tempfile::tempdir().expect("tempdir");
    let path = own.path().join("server.toml");
    std::fs::write(&path, format!("trusted_proxies = ['127.0.0.1']\n{more}")).expect("write");
    let path = path.display().to_string();
    (
        Server::start_with(&[&["--config", &path], arguments].concat()),
        own,
    )
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
    String::from_utf8(output.stdout)
        .expect("text")
        .trim()
        .to_owned()
}

/// `Authorization` for a name and a password.
fn basic(pair: &str) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(pair))
}

#[test]
fn a_name_and_a_password() {
    if !is_root() {
        return;
    }
    let (server, _own) = behind_a_proxy(&["--https", "127.0.0.1:0"], "");
    let line = user(&server, "ann", "open: sesame");
    let auth = format!("[traffic.auth]\nusers=['{line}']\nrealm='Staff'\n");
    let more =
        format!("{auth}[[traffic.route]]\npath='/slow'\nauth=false\n[https]\nredirect=false\n");
    server.deploy(python_app("staff", &more, "hello").path());
    let from = |ip: &str, path: &str, said: &str| -> Answer {
        let said = format!("X-Forwarded-For: {ip}\r\n{said}");
        ask(&server.http, "staff.test", path, &said)
    };
    let asked = from("10.0.0.1", "/", "");
    assert_eq!(
        (asked.status, asked.header("www-authenticate")),
        (401, Some("Basic realm=\"Staff\", charset=\"UTF-8\""))
    );
    for wrong in ["ann:open", "ann:", "bob:open: sesame", ":", "ann"] {
        assert_eq!(from("10.0.0.1", "/", &basic(wrong)).status, 401, "{wrong}");
    }
    for odd in ["Basic", "Basic !!", "Bearer x", "Basic AA"] {
        let odd = format!("Authorization: {odd}\r\n");
        assert_eq!(from("10.0.0.1", "/", &odd).status, 401, "{odd}");
    }
    // The app learns who it is, not by what word; and nobody can say so of himself.
    let right = format!(
        "{}X-Forwarded-User: root\r\n",
        basic("ann:open: sesame").replace("Basic", "bAsIc")
    );
    let seen = from("10.0.0.1", "/headers", &right);
    assert_eq!(seen.status, 200);
    let text = seen.text();
    assert!(text.contains("\"x-forwarded-user\": \"ann\""), "{text}");
    assert!(
        !text.contains("root") && !text.to_lowercase().contains("authorization"),
        "{text}"
    );
    // A path that is open to all, where browsers say the word all the same.
    let open = from("10.0.0.1", "/slow?0", &right);
    assert_eq!(open.status, 200);
    let headers = "/slow/..%2Fheaders";
    assert_eq!(from("10.0.0.1", headers, "").status, 401);
    over_http2_and_websockets(&server);
    // Whoever guesses is told to wait; who knows, and was let in before, is not.
    let mut guesses = (0..12).map(|n| from("10.0.0.9", "/", &basic(&format!("ann:{n}"))).status);
    assert!(guesses.any(|status| status == 429));
    assert_eq!(from("10.0.0.9", "/", &right).status, 200);
    assert_eq!(from("10.0.0.8", "/", &basic("ann:x")).status, 401);
    // No answer of the API has the hash.
    let hash = line.split_once(':').expect("two parts").1;
    for command in [&["apps"][..], &["status", "staff"], &["releases", "staff"]] {
        let mut command = command.to_vec();
        command.push("--json");
        assert!(!server.ok(&command).contains(hash), "{command:?}");
    }
    a_folder_behind_a_password(&server, &auth);
    passwords_that_are_wrong_in_the_file(&server, hash);
}

/// Where HTTPS is spoken, nobody is asked for a password without it.
fn a_folder_behind_a_password(server: &Server, auth: &str) {
    let spec = format!("name='files'\nstatic='.'\ndomains=['files.test']\n{auth}");
    let folder = app_folder(&[
        ("hutong.toml", &spec),
        ("index.html", "inside"),
        ("app-3f9c1d2ab8.js", "1"),
    ]);
    server.deploy(folder.path());
    let plain = ask(&server.http, "files.test", "/", "");
    assert_eq!(plain.status, 301);
    let secure = "X-Forwarded-For: 10.0.0.7\r\nX-Forwarded-Proto: https\r\n";
    assert_eq!(ask(&server.http, "files.test", "/", secure).status, 401);
    let said = format!("{secure}{}", basic("ann:open: sesame"));
    let inside = ask(&server.http, "files.test", "/", &said);
    assert_eq!((inside.status, inside.text().as_str()), (200, "inside"));
    // What a name with a hash in it allows shared caches to keep, a password does not.
    let asset = ask(&server.http, "files.test", "/app-3f9c1d2ab8.js", &said);
    let cached = asset.header("cache-control").expect("said");
    assert!(
        asset.status == 200 && cached.starts_with("private,") && cached.contains("immutable"),
        "{cached}"
    );
}

fn over_http2_and_websockets(server: &Server) {
    let root = server.data.path().join("root.pem");
    std::fs::write(&root, server.ok(&["cert", "ca"])).expect("write");
    let port = server.https.rsplit(':').next().expect("a port");
    let curl = |more: &[&str]| {
        let output = std::process::Command::new("curl")
            .args(["-sS", "--http2", "--max-time", "20", "--noproxy", "*"])
            .arg("--cacert")
            .arg(&root)
            .args(["--resolve", &format!("staff.test:{port}:127.0.0.1")])
            .args(["-w", "\n%{http_version} %{http_code}"])
            .args(more)
            .arg(format!("https://staff.test:{port}/headers"))
            .output()
            .expect("curl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    eventually("there is a certificate", 20, || {
        curl(&[]).ends_with("2 401")
    });
    let seen = curl(&["--user", "ann:open: sesame"]);
    assert!(
        seen.contains("\"x-forwarded-user\": \"ann\"") && seen.ends_with("2 200"),
        "{seen}"
    );
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
    let status = |said: &str| {
        let mut stream = TcpStream::connect(&server.http).expect("connect");
        let request = format!("GET /ws HTTP/1.1\r\nHost: staff.test\r\n{upgrade}{said}\r\n");
        stream.write_all(request.as_bytes()).expect("write");
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("an answer");
        String::from_utf8_lossy(&head[9..]).into_owned()
    };
    assert_eq!(status(""), "401");
    assert_eq!(status(&basic("ann:open: sesame")), "101");
}

fn passwords_that_are_wrong_in_the_file(server: &Server, hash: &str) {
    let long = hash.replace("$10$", "$31$");
    for (line, said) in [
        ("ann", "hutong password"),
        ("ann:secret", "bcrypt"),
        ("ann:$apr1$secret$secret", "bcrypt"),
        ("ann:$2b$10$secret", "hutong password"),
        (&format!("a b:{hash}"), "without spaces"),
        (&format!("ann:{long}"), "takes too long"),
        (
            &format!("ann:{}", hash.replace("$10$", "$+9$")),
            "hutong password",
        ),
        (&format!("x:{hash}', 'x:{hash}"), "listed twice"),
    ] {
        let more = format!("[traffic.auth]\nusers=['{line}']\n");
        let folder = python_app("wrong", &more, "hello");
        let path = folder.path().display().to_string();
        let (code, text) = server.fails(&["check", &path]);
        assert_eq!(code, 4, "{text}");
        assert!(text.contains(said) && text.contains(":5:"), "{text}");
        assert!(!text.contains("secret") && !text.contains(hash), "{text}");
    }
}

fn under_way(server: &Server) -> u64 {
    server.json(&["gateway"])["targets"][0]["in_flight"]
        .as_u64()
        .expect("a number")
}

#[test]
fn so_many_requests_at_once() {
    if !is_root() {
        return;
    }
    let (server, _own) = behind_a_proxy(&[], "");
    let more = "[traffic]\nmax_concurrent=3\nmax_concurrent_per_ip=2\n";
    server.deploy(python_app("few", more, "hello").path());
    let from = |ip: &str, path: &str| {
        let said = format!("X-Forwarded-For: {ip}\r\n");
        let answer = ask(&server.http, "few.test", path, &said);
        (
            answer.status,
            answer.header("retry-after").map(str::to_owned),
        )
    };
    let wait = || Some("1".to_owned());
    std::thread::scope(|scope| {
        let mut slow: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| from("10.0.0.1", "/slow?3").0))
            .collect();
        eventually("two are under way", 10, || under_way(&server) == 2);
        assert_eq!(from("10.0.0.1", "/"), (429, wait()));
        slow.push(scope.spawn(|| from("10.0.0.2", "/slow?3").0));
        eventually("three are under way", 10, || under_way(&server) == 3);
        assert_eq!(from("10.0.0.3", "/"), (503, wait()));
        for one in slow {
            assert_eq!(one.join().expect("no panic"), 200);
        }
    });
    // Places come back.
    for _ in 0..5 {
        assert_eq!(from("10.0.0.1", "/").0, 200);
    }
}

#[test]
fn so_many_connections_of_one_address() {
    if !is_root() {
        return;
    }
    let config = "proxy_protocol = true\nmax_connections_per_ip = 4\n";
    let (server, _own) = behind_a_proxy(&[], config);
    server.deploy(python_app("a", "", "hello").path());
    let open = |ip: &str| {
        let mut stream = TcpStream::connect(&server.http).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a time-out");
        let line = format!("PROXY TCP4 {ip} 10.0.0.1 4711 80\r\n");
        stream.write_all(line.as_bytes()).expect("write");
        stream
    };
    let ask = |mut stream: TcpStream| {
        let request = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        // One that is closed at once may be reset while we write or read.
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.read_to_string(&mut answer);
        answer.ends_with("hello")
    };
    let mut held: Vec<TcpStream> = (0..4).map(|_| open("203.0.113.7")).collect();
    eventually("they are seen", 10, || {
        server.json(&["gateway"])["connections"] == 4
    });
    assert!(!ask(open("203.0.113.7")));
    assert!(ask(open("203.0.113.8")));
    let shown = server.ok(&["gateway"]);
    assert!(shown.contains("(1 refused"), "{shown}");
    held.pop();
    eventually("there is room again", 10, || ask(open("203.0.113.7")));
    assert!(held.into_iter().all(ask));
}

#[test]
fn loopback_is_not_counted() {
    if !is_root() {
        return;
    }
    let own = tempfile::tempdir().expect("tempdir");
    let path = own.path().join("server.toml");
    std::fs::write(&path, "max_connections_per_ip = 1\n").expect("write");
    let server = Server::start_with(&["--config", &path.display().to_string()]);
    server.deploy(python_app("a", "", "hello").path());
    let _idle: Vec<TcpStream> = (0..3)
        .map(|_| TcpStream::connect(&server.http).expect("connect"))
        .collect();
    assert_eq!(get(&server.http, "a.test", "/").status, 200);
}
