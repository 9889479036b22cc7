//! From a laptop: servers over ssh, by a real sshd, and over https, behind the gateway.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use hutong_testkit::server::{Server, app_folder, binary, python_app};
use hutong_testkit::ssh::Sshd;
use hutong_testkit::visitor::{ask, get};
use hutong_testkit::{eventually, is_root};
use tempfile::TempDir;

/// A machine that knows servers by its contexts only.
struct Laptop {
    home: TempDir,
    ssh: PathBuf,
}

impl Laptop {
    fn new(ssh: PathBuf) -> Self {
        let home = tempfile::tempdir().expect("tempdir");
        Laptop { home, ssh }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.dressed(Command::new(binary()), arguments)
    }

    fn dressed(&self, mut command: Command, arguments: &[&str]) -> Command {
        command
            .args(arguments)
            .env("HUTONG_SSH", &self.ssh)
            .env("XDG_CONFIG_HOME", self.home.path())
            .env_remove("HUTONG_API")
            .env_remove("HUTONG_CONTEXT")
            .env_remove("HUTONG_TOKEN")
            .env_remove("HUTONG_TOKEN_FILE")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("hutong runs")
    }

    fn with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("hutong runs");
        let mut stdin = child.stdin.take().expect("piped");
        // One that fails early does not read it.
        let _ = stdin.write_all(input);
        drop(stdin);
        child.wait_with_output().expect("output")
    }

    fn ok(&self, arguments: &[&str]) -> String {
        good(arguments, &self.run(arguments))
    }

    fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap_or(-1), said)
    }

    fn file(&self) -> PathBuf {
        self.home.path().join("hutong/contexts.toml")
    }
}

fn good(arguments: &[&str], output: &Output) -> String {
    assert!(
        output.status.success(),
        "{arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A server, an SSH server, and a laptop that is logged in as `far`.
fn over_ssh() -> Option<(Server, Sshd, Laptop)> {
    if !is_root() {
        return None;
    }
    let sshd = Sshd::start()?;
    let server = Server::start();
    let laptop = Laptop::new(sshd.client());
    let program = binary();
    let said = laptop.ok(&[
        "login",
        &sshd.url(),
        "--name",
        "far",
        "--remote-program",
        &program.to_string_lossy(),
        "--remote-api",
        &server.api,
    ]);
    assert!(said.contains("far is the server at ssh://"), "{said}");
    Some((server, sshd, laptop))
}

/// With input and output of several messages, with an exit code, and with a terminal.
fn programs_run_beside(laptop: &Laptop, app: &str) {
    let exec = |script: &'static str| ["exec", app, "--", "sh", "-c", script];
    // Standard input, and what comes of it.
    let input: Vec<u8> = (0..500_000_u32).map(|n| (n % 251) as u8).collect();
    let copy = exec("cat > /tmp/x; cat /tmp/x; rm /tmp/x");
    let output = laptop.with_input(&copy, &input);
    good(&copy, &output);
    assert!(output.stdout == input, "{} bytes", output.stdout.len());
    let both = laptop.run(&exec("echo out; echo err >&2; exit 42"));
    assert_eq!(both.status.code(), Some(42));
    assert_eq!(
        (&both.stdout[..], &both.stderr[..]),
        (&b"out\n"[..], &b"err\n"[..])
    );
    // A terminal: `script` gives one to its command, and passes on what that prints.
    let line = format!(
        "{} exec {app} -- sh -c 'test -t 0 && test -t 1 && echo a-terminal'",
        binary().display()
    );
    let script = laptop
        .dressed(Command::new("script"), &["-qec", &line, "/dev/null"])
        .output();
    let shown = good(&["script"], &script.expect("script runs"));
    assert!(shown.contains("a-terminal"), "{shown}");
}

#[test]
fn deploys_logs_and_programs_go_over_ssh() {
    let Some((server, _sshd, laptop)) = over_ssh() else {
        return;
    };
    let app = python_app("one", "data = true", "from afar");
    let said = laptop.ok(&["deploy", &app.path().to_string_lossy()]);
    assert!(said.contains("release 1 of one serves"), "{said}");
    assert_eq!(get(&server.http, "one.test", "/").text(), "from afar");
    assert!(laptop.ok(&["apps"]).contains("one"));
    programs_run_beside(&laptop, "one");
    let removed = laptop.ok(&["remove", "one", "--purge"]);
    assert!(
        removed.contains("one and its data are removed"),
        "{removed}"
    );
}

#[test]
fn the_output_of_an_app_is_followed_over_ssh() {
    let Some((server, _sshd, laptop)) = over_ssh() else {
        return;
    };
    let app = python_app("talks", "", "t");
    let path = app.path().join("app.py");
    let text = std::fs::read_to_string(&path).expect("read");
    let answer = "            self.answer(200, BODY)";
    let prints = format!("            print('asked', self.path, flush=True)\n{answer}");
    std::fs::write(&path, text.replace(answer, &prints)).expect("write");
    laptop.ok(&["deploy", &app.path().to_string_lossy()]);
    let mut follower = laptop
        .command(&["logs", "talks", "-f"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("hutong runs");
    let (sender, lines) = mpsc::channel();
    let stdout = follower.stdout.take().expect("piped");
    std::thread::spawn(move || {
        use std::io::BufRead;
        let lines = std::io::BufReader::new(stdout).lines();
        for line in lines.map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    get(&server.http, "talks.test", "/tea");
    let heard = || lines.recv_timeout(Duration::from_secs(15)).expect("a line");
    while !heard().contains("asked /tea") {}
    let _ = follower.kill();
    let _ = follower.wait();
    // Nothing of it stays on the server: its ssh saw the end of its input.
    let dials = || {
        let found = std::fs::read_dir("/proc").expect("/proc").flatten();
        let lines = found.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        let api = server.api.as_bytes();
        lines
            .filter(|line| line.ends_with(b"internal\0dial\0"))
            .filter(|line| line.windows(api.len()).any(|part| part == api))
            .count()
    };
    eventually("no dial is left", 15, || dials() == 0);
}

#[test]
fn contexts_are_listed_chosen_and_forgotten() {
    let Some((server, sshd, laptop)) = over_ssh() else {
        return;
    };
    let mode = std::fs::metadata(laptop.file())
        .expect("there")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let list = |laptop: &Laptop| -> serde_json::Value {
        serde_json::from_str(&laptop.ok(&["context", "list", "--json"])).expect("JSON")
    };
    assert_eq!(list(&laptop)[1]["name"], "far");
    assert_eq!(list(&laptop)[1]["current"], true);
    // A name does not come to mean another server.
    let other = sshd.url().replace("127.0.0.1", "localhost");
    let (code, said) = laptop.fails(&["login", &other, "--name", "far"]);
    assert!(code == 2 && said.contains("the context far is"), "{said}");
    laptop.ok(&["context", "use", "local"]);
    assert_eq!(list(&laptop)[0]["current"], true);
    assert!(
        laptop
            .ok(&["--context", "far", "version"])
            .contains("server")
    );
    let by_env = laptop
        .command(&["apps"])
        .env("HUTONG_CONTEXT", "far")
        .output();
    good(&["apps"], &by_env.expect("hutong runs"));
    let two = laptop.fails(&["--context", "far", "--api", &server.api, "apps"]);
    assert!(two.0 == 2 && two.1.contains("two servers"), "{two:?}");
    // An address in the environment goes before a context there, and not before one that is named.
    let by_api = laptop
        .command(&["apps"])
        .env("HUTONG_API", &server.api)
        .env("HUTONG_CONTEXT", "nobody")
        .output();
    good(&["apps"], &by_api.expect("hutong runs"));
    laptop.ok(&["context", "remove", "far"]);
    let (code, said) = laptop.fails(&["--context", "far", "apps"]);
    assert!(code == 2 && said.contains("there is no context"), "{said}");
    let (code, _) = laptop.fails(&["context", "remove", "local"]);
    assert_eq!(code, 2);
}

#[test]
fn what_is_wrong_with_ssh_is_said_in_one_sentence() {
    let Some((_server, mut sshd, laptop)) = over_ssh() else {
        return;
    };
    let program = binary().to_string_lossy().into_owned();
    let url = sshd.url();
    let login = |more: &[&str]| {
        let words = [&["login", url.as_str(), "--name", "other"][..], more].concat();
        let (code, said) = laptop.fails(&words);
        assert!(!laptop.ok(&["context", "list"]).contains("other"));
        (code, said)
    };
    let (code, said) = login(&["--remote-program", "/no/such/hutong"]);
    assert!(code == 3 && said.contains("cannot be run there"), "{said}");
    let nowhere = [
        "--remote-program",
        program.as_str(),
        "--remote-api",
        "unix:/no/such/api.sock",
    ];
    let (code, said) = login(&nowhere);
    assert!(
        code == 3 && said.contains("no Hutong server runs there"),
        "{said}"
    );
    for bad in ["a b", "$(touch x)", "-x"] {
        let flag = format!("--remote-program={bad}");
        let (code, said) = login(&[&flag]);
        assert!(
            code == 2 && said.contains("would mean something else"),
            "{said}"
        );
    }
    let (code, said) = laptop.fails(&["login", "ssh://-oProxyCommand=touch"]);
    assert!(code == 2 && said.contains("hyphen"), "{said}");
    let (code, said) = laptop.fails(&["login", "http://example.com"]);
    assert!(code == 2 && said.contains("without TLS"), "{said}");
    sshd.forget_host();
    let (code, said) = laptop.fails(&["apps"]);
    assert!(code == 3 && said.contains("not known yet"), "{said}");
    sshd.mistake_host();
    let (code, said) = laptop.fails(&["apps"]);
    assert!(
        code == 3 && said.contains("not the one that is known"),
        "{said}"
    );
    sshd.stop();
    let (code, said) = laptop.fails(&["apps"]);
    assert!(code == 3 && said.contains("Connection refused"), "{said}");
    assert!(said.lines().count() <= 2, "{said}");
}

#[test]
fn who_is_not_let_in_by_ssh_is_told() {
    let Some((_server, sshd, laptop)) = over_ssh() else {
        return;
    };
    sshd.lock_out();
    let (code, said) = laptop.fails(&["apps"]);
    assert!(code == 3 && said.contains("lets nobody in"), "{said}");
}

/// The API on loopback, behind our own gateway, which speaks TLS with a certificate of the server's own authority.
#[test]
fn a_server_is_reached_over_https_with_its_token() {
    if !is_root() {
        return;
    }
    let data = tempfile::Builder::new().prefix("hutong-test-").tempdir();
    let data = data.expect("tempdir");
    let token_file = data.path().join("control/token");
    let own = tempfile::tempdir().expect("tempdir");
    let config = own.path().join("server.toml");
    std::fs::write(&config, "allow_upstreams = ['127.0.0.1']\n").expect("write");
    let config = config.to_string_lossy().into_owned();
    let server = Server::start_in_with_env(
        data,
        &[
            "--https",
            "127.0.0.1:0",
            "--api",
            "127.0.0.1:0",
            "--config",
            &config,
        ],
        &[("HUTONG_TOKEN_FILE", &token_file)],
    );
    let spec = format!(
        "name='api'\ndomains=['localhost']\nupstream=['http://{}']",
        server.api
    );
    server.deploy(app_folder(&[("hutong.toml", &spec)]).path());
    let ca = own.path().join("ca.pem");
    std::fs::write(&ca, server.ok(&["cert", "ca"])).expect("write");
    let ca = ca.to_string_lossy().into_owned();
    let port = server.https.rsplit(':').next().expect("a port");
    let url = format!("https://localhost:{port}");
    let token = std::fs::read(&token_file).expect("a token");
    let laptop = Laptop::new(PathBuf::from("/no/such/ssh"));
    let login = ["login", &url, "--ca", &ca];
    eventually("the name has a certificate", 20, || {
        laptop.with_input(&login, &token).status.success()
    });
    let said = good(&login, &laptop.with_input(&login, &token));
    assert!(
        said.contains("localhost is the server at https://"),
        "{said}"
    );
    let app = python_app("two", "https.redirect = false\n", "over tls");
    laptop.ok(&["deploy", &app.path().to_string_lossy()]);
    assert_eq!(get(&server.http, "two.test", "/").text(), "over tls");
    assert!(laptop.ok(&["context", "list"]).contains(&url));
    let secret = String::from_utf8_lossy(&token).trim().to_owned();
    assert!(!laptop.ok(&["context", "list", "--json"]).contains(&secret));
    // What the environment has is another server's, and is not sent there; the command line's is.
    let wrong_file = own.path().join("wrong");
    std::fs::write(&wrong_file, "not_the_token").expect("write");
    let dressed = laptop
        .command(&["apps"])
        .env("HUTONG_TOKEN", "not_the_token")
        .env("HUTONG_TOKEN_FILE", &wrong_file)
        .output();
    good(&["apps"], &dressed.expect("hutong runs"));
    let wrong_file = wrong_file.to_string_lossy().into_owned();
    let (_, said) = laptop.fails(&["apps", "--token-file", &wrong_file]);
    assert!(said.contains("a token is needed"), "{said}");
    let file = token_file.to_string_lossy().into_owned();
    let by_file = ["login", &url, "--ca", &ca, "--token-file", file.as_str()];
    laptop.ok(&by_file);
    programs_run_beside(&laptop, "two");
    // What says that it cannot be, says so through the gateway, too.
    let site = "name='site'\ndomains=['site.test']\nstatic='.'\n";
    let site = app_folder(&[("hutong.toml", site), ("index.html", "x")]);
    server.deploy(site.path());
    let (_, said) = laptop.fails(&["exec", "site", "--", "true"]);
    assert!(said.contains("no instance of site runs"), "{said}");
    let (_, said) = laptop.fails(&["exec", "nobody", "--", "true"]);
    assert!(said.contains("there is no app nobody"), "{said}");
    let other = Laptop::new(PathBuf::from("/no/such/ssh"));
    let wrong = |words: &[&str], input: &[u8]| {
        let output = other.with_input(words, input);
        assert!(!output.status.success() && !other.file().exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = wrong(&login, b"not-the-token\n");
    assert!(said.contains("a token is needed"), "{said}");
    let said = wrong(&login, b"");
    assert!(
        said.contains("a token is needed, on standard input"),
        "{said}"
    );
    let said = wrong(&["login", &url], &token);
    assert!(said.contains("no TLS connection"), "{said}");
}

/// On the other machine the API is on TCP: there it is the token that says who asks.
#[test]
fn an_api_on_tcp_is_reached_over_ssh_with_its_token() {
    if !is_root() {
        return;
    }
    let Some(sshd) = Sshd::start() else {
        return;
    };
    let (server, token_file) = on_tcp(&[]);
    let laptop = Laptop::new(sshd.client());
    let program = binary().to_string_lossy().into_owned();
    let url = sshd.url();
    let login = [
        "login",
        url.as_str(),
        "--name",
        "far",
        "--remote-program",
        &program,
        "--remote-api",
        &server.api,
    ];
    let (code, said) = laptop.fails(&login);
    assert!(code == 2 && said.contains("a token is needed"), "{said}");
    let token = std::fs::read(&token_file).expect("a token");
    good(&login, &laptop.with_input(&login, &token));
    laptop.ok(&["apps"]);
}

#[test]
fn an_api_with_a_name_is_asked_by_that_name_and_with_the_token() {
    if !is_root() {
        return;
    }
    let own = tempfile::tempdir().expect("tempdir");
    let config = own.path().join("server.toml");
    std::fs::write(&config, "api_host = 'hutong.test'\n").expect("write");
    let (server, token_file) = on_tcp(&["--config", &config.to_string_lossy()]);
    let token = std::fs::read_to_string(&token_file).expect("a token");
    let bearer = format!("Authorization: Bearer {}\r\n", token.trim());
    let status = |host: &str, more: &str| ask(&server.api, host, "/v1/apps", more).status;
    assert_eq!(status("hutong.test", &bearer), 200);
    assert_eq!(status("Hutong.test:443", &bearer), 200);
    assert_eq!(status("other.test", &bearer), 403);
    assert_eq!(status("hutong.test", ""), 401);
    let from = |origin: &str| format!("{bearer}Origin: {origin}\r\n");
    assert_eq!(status("hutong.test", &from("http://hutong.test")), 403);
    assert_eq!(status("hutong.test", &from("https://other.test")), 403);
    assert_eq!(status("hutong.test", &from("https://hutong.test")), 200);
}

/// A server with its API on TCP, and the file of its token.
fn on_tcp(more: &[&str]) -> (Server, PathBuf) {
    let data = tempfile::Builder::new().prefix("hutong-test-").tempdir();
    let data = data.expect("tempdir");
    let token_file = data.path().join("control/token");
    let arguments = [&["--api", "127.0.0.1:0"][..], more].concat();
    let env = [("HUTONG_TOKEN_FILE", &token_file)];
    let server = Server::start_in_with_env(data, &arguments, &env);
    (server, token_file)
}

#[test]
fn without_a_home_there_are_no_contexts_and_all_else_works() {
    let homeless = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .env_remove("HOME")
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("HUTONG_API")
            .env_remove("HUTONG_CONTEXT")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command.output().expect("hutong runs")
    };
    let list = ["context", "list"];
    assert!(good(&list, &homeless(&list)).contains("local"));
    let version = ["version"];
    good(&version, &homeless(&version));
    let used = homeless(&["context", "use", "local"]);
    let said = String::from_utf8_lossy(&used.stderr).into_owned();
    assert!(said.contains("no folder for contexts"), "{said}");
}
