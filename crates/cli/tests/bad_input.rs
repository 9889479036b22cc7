//! Wrong files, taken domains, hostile and broken uploads: one clear message each, and no state lost.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use hutong_testkit::is_root;
use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::visitor::get;
use sha2::{Digest, Sha256};

#[test]
fn wrong_files_are_named_with_line_and_column() {
    let path = |folder: &tempfile::TempDir| folder.path().to_string_lossy().into_owned();
    let check = |folder: &tempfile::TempDir| {
        let output = std::process::Command::new(hutong_testkit::server::binary())
            .args(["check", &path(folder)])
            .output()
            .expect("hutong runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let unknown = app_folder(&[(
        "hutong.toml",
        "name = 'a'\ncommand = 'x'\ndomain = ['a.b']\n",
    )]);
    let (code, said) = check(&unknown);
    assert_eq!(code, Some(4));
    assert!(
        said.contains("hutong.toml:3:1: unknown key `domain`; did you mean `domains`?"),
        "{said}"
    );
    let nothing = app_folder(&[("hutong.toml", "name = 'a'\n")]);
    let (code, said) = check(&nothing);
    assert_eq!(code, Some(4));
    assert!(said.contains("nothing to run"), "{said}");
    let (code, said) = check(&app_folder(&[("x", "")]));
    assert_eq!(code, Some(4));
    assert!(
        said.contains("hint: an app's folder has a file hutong.toml"),
        "{said}"
    );
    let (code, _) = check(&app_folder(&[("hutong.toml", "name='a'\nstatic='.'")]));
    assert_eq!(code, Some(0));
}

#[test]
fn no_server_and_wrong_names_have_their_exit_codes() {
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(hutong_testkit::server::binary())
            .args(arguments)
            .env_remove("HUTONG_API")
            .output()
            .expect("hutong runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, said) = run(&["apps", "--api", "unix:/tmp/no-such-socket"]);
    assert!(
        code == Some(3) && said.contains("no server answers"),
        "{said}"
    );
    let (code, said) = run(&["apps", "--api", "0.0.0.0:1"]);
    assert!(code == Some(2) && said.contains("loopback"), "{said}");
    let (code, _) = run(&["frobnicate"]);
    assert_eq!(code, Some(2));
}

#[test]
fn taken_domains_and_unknown_apps_are_refused() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("first", "", "1").path());
    let thief = app_folder(&[
        (
            "hutong.toml",
            "name='second'\ndomains=['first.test']\nstatic='.'",
        ),
        ("index.html", "x"),
    ]);
    let (code, said) = server.fails(&["deploy", &thief.path().to_string_lossy()]);
    assert!(
        code == 1 && said.contains("first.test belongs to the app first"),
        "{said}"
    );
    let path = app_folder(&[
        (
            "hutong.toml",
            "name='third'\ndomains=['first.test/api']\nstatic='.'",
        ),
        ("index.html", "x"),
    ]);
    let output = server.run(&["deploy", &path.path().to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains("does not share /api with third"),
        "{said}"
    );
    assert_eq!(
        get(&server.http, "first.test", "/api").text(),
        "1",
        "the owner's own"
    );
    let missing = app_folder(&[("hutong.toml", "name='nodist'\nstatic='dist'")]);
    let (_, said) = server.fails(&["deploy", &missing.path().to_string_lossy()]);
    assert!(said.contains("`dist`"), "{said}");
    let (code, said) = server.fails(&["status", "nobody"]);
    assert!(
        code == 1 && said.contains("there is no app nobody"),
        "{said}"
    );
    let (_, said) = server.fails(&["status", "../../etc"]);
    assert!(said.contains("there is no app"), "{said}");
    let (_, said) = server.fails(&["env", "set", "first", "PORT=1"]);
    assert!(said.contains("set by Hutong itself"), "{said}");
    let (_, said) = server.fails(&["scale", "first", "0"]);
    assert!(said.contains("1 to 64"), "{said}");
}

/// Speaks HTTP to the API's socket, so that what the command line would never send can be sent.
fn api(server: &Server, head: &str, body: &[u8], cut: bool) -> String {
    let path = server.api.strip_prefix("unix:").expect("a path");
    let mut stream = UnixStream::connect(path).expect("connect");
    let head = format!(
        "{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("write");
    let end = if cut { body.len() / 2 } else { body.len() };
    let _ = stream.write_all(&body[..end]);
    if cut {
        return String::new();
    }
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn archive(kind: u8, name: &str, content: &[u8]) -> Vec<u8> {
    // One ustar entry by hand, then stored (uncompressed) in gzip by the system's own tool.
    let mut block = vec![0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..124].copy_from_slice(b"0000000\x000000000\0");
    block[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = kind;
    block[157..168].copy_from_slice(b"/etc/passwd");
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(content);
    block.resize(block.len().div_ceil(512) * 512 + 1024, 0);
    let mut gzip = std::process::Command::new("gzip")
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("gzip");
    // From a thread: gzip answers while we still write.
    let mut stdin = gzip.stdin.take().expect("piped");
    std::thread::spawn(move || stdin.write_all(&block));
    gzip.wait_with_output().expect("gzip").stdout
}

#[test]
fn hostile_oversized_and_cut_uploads_leave_nothing() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("tempdir");
    let config = folder.path().join("server.toml");
    std::fs::write(&config, "upload_limit = '64K'\n").expect("write");
    let server = Server::start_with(&["--config", &config.to_string_lossy()]);
    let digest = "a".repeat(64);
    let put = format!("PUT /v1/trees/{digest}");
    for (kind, name, says) in [
        (b'0', "../evil", "does not stay inside"),
        (b'0', "/etc/evil", "absolute path"),
        (b'2', "link", "symbolic link"),
        (b'1', "hard", "hard link"),
        (b'3', "dev", "device"),
        (b'6', "pipe", "named pipe"),
    ] {
        let answer = api(&server, &put, &archive(kind, name, b""), false);
        assert!(
            answer.starts_with("HTTP/1.1 422") && answer.contains(says),
            "{name}: {answer}"
        );
        assert!(answer.contains("application/problem+json"), "{answer}");
    }
    let mut noise = Vec::new();
    for n in 0..20_000u32 {
        noise.extend_from_slice(&Sha256::digest(n.to_le_bytes()));
    }
    let large = archive(b'0', "a", &noise);
    let answer = api(&server, &put, &large, false);
    assert!(
        answer.is_empty() || answer.contains("over the bound of 64K"),
        "{answer}"
    );
    api(&server, &put, &archive(b'0', "a", &noise[..40_000]), true);
    let answer = api(&server, &put, b"not gzip at all", false);
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let answer = api(&server, &put, &archive(b'0', "a", b"x"), false);
    assert!(answer.contains("as announced"), "{answer}");
    let answer = api(&server, "PUT /v1/trees/..%2f..%2fevil", b"", false);
    assert!(answer.starts_with("HTTP/1.1 422"), "{answer}");
    hutong_testkit::eventually("nothing is left of them", 10, || {
        std::fs::read_dir(server.data.path().join("trees"))
            .expect("trees")
            .count()
            == 0
    });
    for (head, body, status) in [
        ("POST /v1/apps/x/deployments", "{", "400"),
        ("POST /v1/apps/x/deployments", "{}", "422"),
        ("POST /v1/apps/x/scale", "{\"instances\": -1}", "422"),
        ("GET /v1/nothing", "", "404"),
        ("DELETE /v1/apps", "", "405"),
    ] {
        let answer = api(&server, head, body.as_bytes(), false);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{head}: {answer}"
        );
    }
    assert!(
        server.run(&["apps"]).status.success(),
        "the server is unharmed"
    );
}

#[test]
fn on_tcp_a_token_is_needed_and_web_pages_stay_out() {
    if !is_root() {
        return;
    }
    let data = tempfile::Builder::new()
        .prefix("hutong-test-")
        .tempdir()
        .expect("tempdir");
    let token_file = data.path().join("control/token");
    let server = Server::start_in_with_env(
        data,
        &["--api", "127.0.0.1:0"],
        &[("HUTONG_TOKEN_FILE", &token_file)],
    );
    let token = std::fs::read_to_string(&token_file).expect("the token");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&token_file).expect("there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    assert!(
        !server.messages.iter().any(|line| line.contains(&token)),
        "only its path is printed"
    );
    let ask = |headers: &str| {
        let text = format!("GET /v1/apps HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
        hutong_testkit::visitor::raw(&server.api, text.as_bytes())
            .expect("an answer")
            .status
    };
    let host = format!("Host: {}\r\n", server.api);
    let bearer = format!("Authorization: Bearer {token}\r\n");
    assert_eq!(ask(&format!("{host}{bearer}")), 200);
    assert_eq!(ask(&host), 401);
    assert_eq!(ask(&format!("{host}Authorization: Bearer wrong\r\n")), 401);
    assert_eq!(ask(&format!("Host: evil.test\r\n{bearer}")), 403);
    assert_eq!(
        ask(&format!("{host}Origin: http://evil.test\r\n{bearer}")),
        403
    );
}
