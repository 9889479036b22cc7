//! The server as a registry of images, with the clients that people have: what is pushed is deployed. Of another server the same
//! registry is one elsewhere, which is watched.

use std::fs::Permissions;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hutong_testkit::docker::Docker;
use hutong_testkit::oci::{self, Entry, Part};
use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::visitor::{get, raw};
use hutong_testkit::{eventually, is_root, kill, skip};
use serde_json::json;
use tempfile::TempDir;

/// Says to everybody what it was made to say: at the port that it is given, or one of its own, or nowhere.
const PROGRAM: &str = r#"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    const char *port = getenv("OWN") ? getenv("OWN") : getenv("PORT");
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
    while (getenv("NOWHERE")) pause();
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 64)) return 3;
    printf("says %s\n", getenv("SAYS")); fflush(stdout);
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

fn program() -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, made) = (folder.path().join("p.c"), folder.path().join("p"));
    std::fs::write(&source, PROGRAM).expect("written");
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

struct Rig {
    server: Server,
    folder: TempDir,
    port: u16,
    program: Vec<u8>,
    token: String,
}

impl Rig {
    fn new() -> Option<Self> {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("an address").port()
        };
        Self::with(port, "", &[], &[])
    }

    /// With more in the server file, more arguments, and another program that becomes the server.
    fn with(port: u16, more: &str, arguments: &[&str], wrapper: &[&str]) -> Option<Self> {
        if !is_root() {
            return None;
        }
        if Command::new("skopeo").arg("--version").output().is_err() {
            skip("skopeo is needed");
            return None;
        }
        let program = program()?;
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("auth.json"), "{}").expect("written");
        let config = folder.path().join("server.toml");
        let text = format!("registry = '127.0.0.1:{port}'\n{more}");
        std::fs::write(&config, text).expect("written");
        let data = tempfile::Builder::new().prefix("hutong-test-").tempdir();
        let config = config.to_string_lossy().into_owned();
        let mut all = vec!["--config", config.as_str()];
        all.extend(arguments);
        let server = Server::start_through_in(wrapper, data.expect("a folder"), &all);
        let token = server.ok(&["token", "create", "shop"]).trim().to_owned();
        Some(Rig {
            server,
            folder,
            port,
            program,
            token,
        })
    }

    /// An image that says `says`, as an archive of an image layout.
    fn image(&self, says: &str) -> PathBuf {
        self.image_with(says, &[], None)
    }

    /// The same with more variables, and a port that it says it has.
    fn image_with(&self, says: &str, more: &[&str], port: Option<u16>) -> PathBuf {
        let path = self.folder.path().join(format!("{says}.tar"));
        let layer = Part::plain(oci::layer(&[
            Entry::File("bin/program", 0o755, &self.program),
            Entry::File("etc/passwd", 0o644, b"web:x:1234:1234::/:/bin/sh\n"),
        ]));
        let mut variables = vec![format!("SAYS={says}")];
        variables.extend(more.iter().map(|text| (*text).to_owned()));
        let mut config = json!({
            "Entrypoint": ["/bin/program"], "User": "web", "Env": variables,
        });
        if let Some(port) = port {
            config["ExposedPorts"][format!("{port}/tcp")] = json!({});
        }
        oci::write(&path, &[layer], &config, oci::architecture());
        path
    }

    fn place(&self, tag: &str) -> String {
        format!("127.0.0.1:{}/shop:{tag}", self.port)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program)
            .args(arguments)
            .env("HOME", self.folder.path())
            .env("DOCKER_CONFIG", self.folder.path())
            .env("REGISTRY_AUTH_FILE", self.folder.path().join("auth.json"))
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    fn ok(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(program, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn fails(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(program, arguments);
        assert!(!output.status.success(), "{program} {arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn copy(&self, from: &Path, tag: &str) {
        let output = self.try_copy(from, tag, &self.token);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tag}: {said}");
    }

    fn try_copy(&self, from: &Path, tag: &str, token: &str) -> Output {
        let creds = format!("any:{token}");
        let from = format!("oci-archive:{}", from.display());
        let to = format!("docker://{}", self.place(tag));
        let flags = ["copy", "-q", "--dest-tls-verify=false", "--dest-creds"];
        self.run(
            "skopeo",
            &[&flags[..], &[creds.as_str(), &from, &to]].concat(),
        )
    }

    fn releases(&self) -> usize {
        let list = self.server.json(&["releases", "shop"]);
        list.as_array().expect("a list").len()
    }

    fn log(&self) -> String {
        self.server.ok(&["logs", "shop", "-n", "500"])
    }

    /// Control is killed, and there is another one.
    fn lose_control(&self) {
        let before = self.server.role("control");
        kill(before);
        eventually("control is back", 30, || {
            !Path::new(&format!("/proc/{before}")).exists()
                && self.server.run(&["status", "shop"]).status.success()
        });
    }

    fn deploy(&self, tag: &str, more: &str) {
        let toml = format!(
            "name = 'shop'\ndomains = ['shop.test']\nimage = 'hutong.local/shop:{tag}'\n{more}\n[push]\ntags = ['main', 'v*']\n"
        );
        self.server
            .deploy(app_folder(&[("hutong.toml", &toml)]).path());
    }

    fn serves(&self, says: &str) {
        eventually(&format!("it says {says}"), 60, || {
            get(&self.server.http, "shop.test", "/").text() == says
        });
    }
}

#[test]
fn what_is_pushed_with_skopeo_is_deployed() {
    let Some(rig) = Rig::new() else {
        return;
    };
    // Nobody without a token, and not with another app's.
    let from = format!("oci-archive:{}", rig.image("one").display());
    let to = format!("docker://{}", rig.place("main"));
    let said = rig.fails(
        "skopeo",
        &["copy", "-q", "--dest-tls-verify=false", &from, &to],
    );
    assert!(
        said.contains("authentication required") || said.contains("unauthorized"),
        "{said}"
    );
    let other = format!(
        "any:{}",
        rig.server.ok(&["token", "create", "other"]).trim()
    );
    let flags = ["copy", "-q", "--dest-tls-verify=false", "--dest-creds"];
    rig.fails(
        "skopeo",
        &[&flags[..], &[other.as_str(), &from, &to]].concat(),
    );

    rig.copy(&rig.image("one"), "main");
    rig.deploy("main", "");
    rig.serves("one");
    // The tag moves: what serves follows, by its digest.
    rig.copy(&rig.image("two"), "main");
    rig.serves("two");
    rig.copy(&rig.image("three"), "v3");
    rig.serves("three");
    let releases = |rig: &Rig| {
        let list = rig.server.json(&["releases", "shop"]);
        list.as_array().expect("a list").len()
    };
    assert_eq!(releases(&rig), 3);
    // Others do not, and the same again changes nothing.
    rig.copy(&rig.image("four"), "test");
    rig.copy(&rig.image("three"), "v3");
    assert_eq!(releases(&rig), 3);
    assert_eq!(get(&rig.server.http, "shop.test", "/").text(), "three");
    let log = rig.server.ok(&["logs", "shop", "-n", "200"]);
    assert!(log.contains("v3 was pushed, and is deployed"), "{log}");
    assert!(!log.contains("test was pushed"), "{log}");
    // What was pushed is pulled as it was.
    let creds = format!("any:{}", rig.token);
    let place = format!("docker://{}", rig.place("v3"));
    let text = rig.ok(
        "skopeo",
        &["inspect", "--tls-verify=false", "--creds", &creds, &place],
    );
    assert!(
        text.contains("SAYS=three") && text.contains("\"main\""),
        "{text}"
    );
    rig.server.ok(&["rollback", "shop"]);
    rig.serves("two");
    // Control is killed: the registry is back with the next one.
    let before = rig.server.role("control");
    kill(before);
    eventually("the registry is back", 20, || {
        !std::path::Path::new(&format!("/proc/{before}")).exists()
            && std::net::TcpStream::connect(("127.0.0.1", rig.port)).is_ok()
    });
    rig.copy(&rig.image("five"), "main");
    rig.serves("five");
}

#[test]
fn an_address_that_somebody_has_is_waited_for() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let Some(rig) = Rig::with(port, "", &[], &[]) else {
        return;
    };
    // Everything else goes on.
    let toml = "name = 'shop'\ndomains = ['shop.test']\nimage = 'hutong.local/shop:main'\n[push]\ntags = ['main']\n";
    let app = app_folder(&[("hutong.toml", toml)]);
    let (folder, image) = (app.path().to_string_lossy(), rig.image("one"));
    let image = image.to_string_lossy();
    rig.server.ok(&["deploy", &folder, "--image", &image]);
    rig.serves("one");
    let status = rig.server.ok(&["status", "shop"]);
    let why = format!("the registry cannot listen on 127.0.0.1:{port}");
    assert!(status.contains(&why), "{status}");
    let heard = |what: &str| {
        let lines = rig.server.heard();
        lines.iter().filter(|line| line.contains(what)).count()
    };
    eventually("it is said", 20, || heard(&why) == 1);
    // Until it is free.
    drop(taken);
    let now = format!("the registry listens on 127.0.0.1:{port} now");
    eventually("it has it", 20, || {
        !rig.server.ok(&["status", "shop"]).contains(&why)
    });
    rig.copy(&rig.image("two"), "main");
    rig.serves("two");
    assert_eq!(heard(&why), 1, "it is said once");
    assert!(heard(&now) <= 1);
}

/// Behind the gateway, where everybody's names and certificates are.
#[test]
fn images_come_through_the_gateway_over_https() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let more = "host = 'localhost'\n";
    let Some(rig) = Rig::with(port, more, &["--https", "127.0.0.1:0"], &[]) else {
        return;
    };
    let certificates = rig.folder.path().join("certs.d");
    std::fs::create_dir(&certificates).expect("made");
    let root = rig.server.ok(&["cert", "ca"]);
    std::fs::write(certificates.join("ca.crt"), root).expect("written");
    let certificates = certificates.to_string_lossy().into_owned();
    let port = rig.server.https.rsplit(':').next().expect("a port");
    let place = |tag: &str| format!("docker://localhost:{port}/shop:{tag}");
    let creds = format!("any:{}", rig.token);
    let copy = |from: &Path, tag: &str, creds: &str| {
        let (from, to) = (format!("oci-archive:{}", from.display()), place(tag));
        let flags = ["copy", "-q", "--dest-cert-dir", &certificates];
        let rest = ["--dest-creds", creds, &from, &to];
        rig.run("skopeo", &[&flags[..], &rest[..]].concat())
    };
    let one = rig.image("one");
    // The gateway hears of its host, and has a certificate for it, a moment after the start.
    eventually("it is pushed", 60, || {
        copy(&one, "main", &creds).status.success()
    });
    rig.deploy("main", "[https]\nredirect = false");
    rig.serves("one");
    let output = copy(&rig.image("two"), "main", &creds);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    rig.serves("two");
    let shown = rig.ok(
        "skopeo",
        &[
            "inspect",
            "--cert-dir",
            &certificates,
            "--creds",
            &creds,
            &place("main"),
        ],
    );
    assert!(shown.contains("SAYS=two"), "{shown}");
    let output = copy(&one, "main", "any:wrong");
    assert!(!output.status.success());
    // A token is no secret over plain HTTP.
    let request = format!(
        "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
        rig.token
    );
    let answer = raw(&rig.server.http, request.as_bytes()).expect("an answer");
    assert_ne!(answer.status, 200);
    assert_eq!(get(&rig.server.http, "shop.test", "/").text(), "two");
}

/// Digests are no secret: who names one of another's image beside a registry that never had it gets nothing.
#[test]
fn an_image_of_another_app_is_not_had_by_its_digest() {
    let Some(rig) = Rig::new() else {
        return;
    };
    rig.copy(&rig.image("one"), "main");
    let place = format!("docker://{}", rig.place("main"));
    let creds = format!("any:{}", rig.token);
    let flags = ["inspect", "--tls-verify=false", "--creds", &creds, &place];
    let shown = rig.ok("skopeo", &flags);
    let (_, rest) = shown.split_once("\"Digest\": \"").expect("a digest");
    let (digest, _) = rest.split_once('"').expect("its end");
    // Nobody listens there.
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let toml = format!(
        "name = 'thief'\ndomains = ['thief.test']\nimage = '127.0.0.1:{port}/theirs@{digest}'\n"
    );
    let folder = app_folder(&[("hutong.toml", &toml)]);
    let (_, said) = rig
        .server
        .fails(&["deploy", &folder.path().to_string_lossy()]);
    assert!(said.contains("cannot fetch the image"), "{said}");
}

#[test]
fn a_token_is_good_for_what_it_says_and_as_long_as_it_is_there() {
    let Some(rig) = Rig::new() else {
        return;
    };
    let one = rig.image("one");
    rig.copy(&one, "main");
    let reader = rig.server.ok(&["token", "create", "shop", "--pull"]);
    let inspect = |token: &str| {
        let creds = format!("any:{token}");
        let place = format!("docker://{}", rig.place("main"));
        let flags = ["inspect", "--tls-verify=false", "--creds", &creds, &place];
        rig.run("skopeo", &flags).status.success()
    };
    assert!(inspect(reader.trim()) && inspect(&rig.token));
    let output = rig.try_copy(&rig.image("two"), "main", reader.trim());
    assert!(!output.status.success(), "it only reads");
    let creds = format!("any:{}", reader.trim());
    let place = format!("docker://{}", rig.place("main"));
    rig.fails(
        "skopeo",
        &["delete", "--tls-verify=false", "--creds", &creds, &place],
    );
    assert!(inspect(reader.trim()), "nothing was deleted");
    // Taken away, they are nobody's.
    let list = rig.server.json(&["token", "list", "shop"]);
    for token in list.as_array().expect("a list") {
        let id = token["id"].to_string();
        rig.server.ok(&["token", "revoke", "shop", &id]);
    }
    assert!(!inspect(reader.trim()) && !inspect(&rig.token));
    let output = rig.try_copy(&one, "main", &rig.token);
    assert!(!output.status.success());
}

#[test]
fn what_is_pushed_to_an_app_that_rests_is_kept_and_said() {
    let Some(rig) = Rig::new() else {
        return;
    };
    rig.copy(&rig.image("one"), "main");
    rig.deploy("main", "");
    rig.serves("one");
    rig.server.ok(&["stop", "shop"]);
    rig.copy(&rig.image("two"), "main");
    let log = rig.log();
    assert!(
        log.contains("main was pushed, and is not deployed: it is stopped"),
        "{log}"
    );
    // Nor does a start deploy it: it starts what served.
    rig.server.ok(&["start", "shop"]);
    rig.serves("one");
    let bundle = rig.folder.path().join("evidence.tar.gz");
    let bundle = bundle.to_string_lossy().into_owned();
    rig.server.ok(&["isolate", "shop", "--bundle", &bundle]);
    rig.copy(&rig.image("three"), "main");
    let log = rig.log();
    assert!(
        log.contains("main was pushed, and is not deployed: it is isolated"),
        "{log}"
    );
    rig.server.ok(&["release", "shop"]);
    rig.lose_control();
    rig.serves("one");
    assert_eq!(rig.releases(), 1);
    // What it was pushed for is had by hand, or by the next push.
    rig.copy(&rig.image("four"), "main");
    rig.serves("four");
    assert_eq!(rig.releases(), 2);
}

#[test]
fn each_image_has_its_own_port() {
    let Some(rig) = Rig::new() else {
        return;
    };
    rig.copy(&rig.image_with("one", &["OWN=9001"], Some(9001)), "main");
    rig.deploy("main", "");
    rig.serves("one");
    rig.copy(&rig.image_with("two", &["OWN=9002"], Some(9002)), "main");
    rig.serves("two");
    // One that says nothing is given one.
    rig.copy(&rig.image("three"), "main");
    rig.serves("three");
    let file = rig.server.ok(&["export", "shop"]);
    assert!(!file.contains("port"), "{file}");
    rig.server.ok(&["rollback", "shop"]);
    rig.serves("two");
    // What its owner says counts.
    rig.deploy("main", "port = 9003\n");
    rig.serves("three");
    rig.copy(&rig.image_with("four", &["OWN=9003"], Some(9004)), "main");
    rig.serves("four");
}

#[test]
fn of_two_pushes_the_later_one_wins_and_both_are_said() {
    let Some(rig) = Rig::new() else {
        return;
    };
    rig.copy(&rig.image("one"), "main");
    rig.deploy("main", "[timeouts]\nstart = '10m'\n");
    rig.serves("one");
    // One that never gets ready is under way when the next one comes.
    rig.copy(&rig.image_with("never", &["NOWHERE=1"], None), "main");
    eventually("it is under way", 30, || {
        rig.server.app("shop")["deploying"].is_object()
    });
    rig.copy(&rig.image("two"), "v2");
    rig.serves("two");
    let log = rig.log();
    assert!(log.contains("main was pushed, and is deployed"), "{log}");
    let said = "v2 was pushed, and is deployed; that takes the place of deployment";
    assert!(log.contains(said), "{log}");

    // At once.
    let (three, four) = (rig.image("three"), rig.image("four"));
    std::thread::scope(|scope| {
        scope.spawn(|| rig.copy(&three, "v3"));
        scope.spawn(|| rig.copy(&four, "v4"));
    });
    let log = rig.log();
    let place = |tag: &str| {
        let said = log.find(&format!("{tag} was pushed, and is deployed"));
        said.unwrap_or_else(|| panic!("{tag}: {log}"))
    };
    let later = match place("v3") > place("v4") {
        true => "three",
        false => "four",
    };
    rig.serves(later);
    eventually("nothing is under way", 30, || {
        rig.server.app("shop")["deploying"].is_null()
    });
    assert_eq!(get(&rig.server.http, "shop.test", "/").text(), later);
}

#[test]
fn a_push_that_a_kill_came_behind_is_deployed_by_the_next_control_plane() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let steps = tempfile::tempdir().expect("a folder");
    let open = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
    };
    // Every process of ours, whatever its id, takes part.
    open(steps.path(), 0o777);
    let variable = format!("HUTONG_FAIL={}", steps.path().display());
    let wrapper = ["/usr/bin/env", variable.as_str()];
    let Some(rig) = Rig::with(port, "", &[], &wrapper) else {
        return;
    };
    rig.copy(&rig.image("one"), "main");
    rig.deploy("main", "");
    rig.serves("one");
    for (name, text) in [("hits", ""), ("armed", "control a push is told of 1 kill")] {
        let fresh = steps.path().join("fresh");
        std::fs::write(&fresh, text).expect("written");
        open(&fresh, 0o666);
        std::fs::rename(fresh, steps.path().join(name)).expect("renamed");
    }
    // Its client hears an error, or tries again, and that changes nothing.
    rig.try_copy(&rig.image("two"), "main", &rig.token);
    assert!(steps.path().join("taken").exists(), "nobody was killed");
    rig.serves("two");
    assert_eq!(rig.releases(), 2);
    assert!(rig.log().contains("main was pushed, and is deployed"));
    // Once: what its owner takes back stays so, whoever is killed.
    rig.server.ok(&["rollback", "shop"]);
    rig.serves("one");
    rig.lose_control();
    rig.copy(&rig.image("other"), "test");
    assert_eq!(rig.releases(), 2);
    assert_eq!(get(&rig.server.http, "shop.test", "/").text(), "one");
}

#[test]
fn docker_and_buildah_push_and_pull() {
    let Some(engine) = Docker::start() else {
        return;
    };
    let Some(rig) = Rig::new() else {
        return;
    };
    rig.copy(&rig.image("first"), "main");
    rig.deploy("main", "");
    rig.serves("first");
    let socket = format!("unix://{}", engine.socket());
    let docker =
        |arguments: &[&str]| rig.ok("docker", &[&["-H", socket.as_str()], arguments].concat());
    let registry = format!("127.0.0.1:{}", rig.port);
    docker(&["login", "-u", "any", "-p", &rig.token, &registry]);
    // The engine of today takes no image layouts.
    let second = rig.image("second");
    let saved = rig.folder.path().join("saved.tar");
    rig.ok(
        "skopeo",
        &[
            "copy",
            "-q",
            &format!("oci-archive:{}", second.display()),
            &format!("docker-archive:{}:{}", saved.display(), rig.place("v2")),
        ],
    );
    docker(&["load", "-q", "-i", &saved.to_string_lossy()]);
    docker(&["push", "-q", &rig.place("v2")]);
    rig.serves("second");
    docker(&["rmi", &rig.place("v2")]);
    docker(&["pull", "-q", &rig.place("v2")]);
    let shown = docker(&["inspect", "--format", "{{.Config.Env}}", &rig.place("v2")]);
    assert!(shown.contains("SAYS=second"), "{shown}");

    if Command::new("buildah").arg("--version").output().is_err() {
        skip("buildah is needed");
        return;
    }
    let root = rig.folder.path().join("buildah");
    let run = rig.folder.path().join("buildah-run");
    let (root, run) = (root.to_string_lossy(), run.to_string_lossy());
    let store = [
        "--storage-driver",
        "vfs",
        "--root",
        &root,
        "--runroot",
        &run,
    ];
    let policy = rig.folder.path().join("policy.json");
    std::fs::write(
        &policy,
        r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
    )
    .expect("written");
    let policy = policy.to_string_lossy();
    let third = format!("oci-archive:{}", rig.image("third").display());
    let id = rig.ok(
        "buildah",
        &[
            &store[..],
            &["pull", "-q", "--signature-policy", &policy, &third],
        ]
        .concat(),
    );
    let creds = format!("any:{}", rig.token);
    let to = format!("docker://{}", rig.place("v3"));
    let push = [
        "push",
        "-q",
        "--signature-policy",
        &policy,
        "--tls-verify=false",
        "--creds",
        &creds,
    ];
    rig.ok("buildah", &[&store[..], &push, &[id.trim(), &to]].concat());
    rig.serves("third");
}

/// Another server, whose app follows a tag of the first one's.
struct Follower {
    server: Server,
    token: String,
    _folder: TempDir,
}

impl Follower {
    fn new(rig: &Rig) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("server.toml");
        std::fs::write(&config, "host = 'localhost'\n").expect("written");
        let server = Server::start_with(&["--config", &config.to_string_lossy()]);
        let reader = rig.server.ok(&["token", "create", "shop", "--pull"]);
        let registry = format!("127.0.0.1:{}", rig.port);
        let mut login = server
            .command(&["registry", "login", &registry, "--user", "any"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("hutong runs");
        let mut input = login.stdin.take().expect("piped");
        let line = format!("{}\n", reader.trim());
        input.write_all(line.as_bytes()).expect("written");
        drop(input);
        assert!(login.wait().expect("it ends").success());
        let token = server.ok(&["token", "create", "shop"]).trim().to_owned();
        Follower {
            server,
            token,
            _folder: folder,
        }
    }

    fn deploy(&self, rig: &Rig) {
        let toml = format!(
            "name = 'shop'\ndomains = ['shop.test']\nimage = '{}'\n[push]\nwatch = '1h'\n",
            rig.place("main")
        );
        self.server
            .deploy(app_folder(&[("hutong.toml", &toml)]).path());
    }

    fn hook(&self, token: &str) -> u16 {
        let body = r#"{"repository":{"repo_url":"http://169.254.169.254/"}}"#;
        let request = format!(
            "POST /hooks/shop/image HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        raw(&self.server.http, request.as_bytes()).map_or(0, |answer| answer.status)
    }

    fn looked_at(&self) -> Option<u64> {
        self.server.app("shop")["watch"]["looked_at"].as_u64()
    }

    /// A webhook comes, and it was looked.
    fn look(&self) {
        let before = self.looked_at();
        eventually("the webhook is taken", 20, || self.hook(&self.token) == 202);
        eventually("it looked", 40, || self.looked_at() > before);
    }

    fn serves(&self, says: &str) {
        eventually(&format!("it says {says}"), 60, || {
            get(&self.server.http, "shop.test", "/").text() == says
        });
    }

    fn releases(&self) -> usize {
        let list = self.server.json(&["releases", "shop"]);
        list.as_array().expect("a list").len()
    }

    fn log(&self) -> String {
        self.server.ok(&["logs", "shop", "-n", "500"])
    }

    fn lose_control(&self) {
        let before = self.server.role("control");
        kill(before);
        eventually("control is back", 30, || {
            !Path::new(&format!("/proc/{before}")).exists()
                && self.server.run(&["status", "shop"]).status.success()
        });
    }
}

#[test]
fn what_a_registry_elsewhere_has_is_followed() {
    let Some(rig) = Rig::new() else {
        return;
    };
    rig.copy(&rig.image("one"), "main");
    let ours = Follower::new(&rig);
    eventually("it says that nothing is watched yet", 20, || {
        ours.hook(&ours.token) == 409
    });
    ours.deploy(&rig);
    ours.serves("one");
    let status = ours.server.ok(&["status", "shop"]);
    let tag = rig.place("main");
    assert!(status.contains(&format!("watches {tag}, ")), "{status}");

    // Only who may push.
    let reader = ours.server.ok(&["token", "create", "shop", "--pull"]);
    assert_eq!(ours.hook(reader.trim()), 403);
    assert_eq!(ours.hook("somebody"), 401);
    let other = ours.server.ok(&["token", "create", "other"]);
    assert_eq!(ours.hook(other.trim()), 403);

    // What it was deployed with is not new.
    ours.look();
    assert_eq!(ours.releases(), 1);
    rig.copy(&rig.image("two"), "main");
    ours.look();
    ours.serves("two");
    assert_eq!(ours.releases(), 2);
    let file = ours.server.ok(&["export", "shop"]);
    assert!(file.contains(&format!("{tag}@sha256:")), "{file}");
    let log = ours.log();
    assert!(log.contains("which is deployed"), "{log}");

    // What its owner takes back is not undone, nor by a control plane that begins anew.
    ours.server.ok(&["rollback", "shop"]);
    ours.serves("one");
    ours.look();
    ours.lose_control();
    ours.look();
    assert_eq!(ours.releases(), 2);
    assert_eq!(get(&ours.server.http, "shop.test", "/").text(), "one");

    // Until there is something else; and nobody has to say so.
    rig.copy(&rig.image("three"), "main");
    ours.lose_control();
    ours.serves("three");
    assert_eq!(ours.releases(), 3);

    // One that is stopped is left alone; a deploy by hand takes what the tag leads to then.
    ours.server.ok(&["stop", "shop"]);
    rig.copy(&rig.image("four"), "main");
    assert_eq!(ours.hook(&ours.token), 409);
    ours.deploy(&rig);
    ours.serves("four");
    ours.look();
    assert_eq!(ours.releases(), 4);
}

#[test]
fn a_registry_that_is_away_is_said_once() {
    let Some(rig) = Rig::new() else {
        return;
    };
    rig.copy(&rig.image("one"), "main");
    let ours = Follower::new(&rig);
    ours.deploy(&rig);
    ours.serves("one");
    let Rig {
        mut server,
        folder,
        port,
        program,
        token,
    } = rig;
    server.stop();
    let data = server.into_data();
    eventually("it is away", 20, || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
    });
    ours.look();
    let status = ours.server.ok(&["status", "shop"]);
    assert!(status.contains("failing since"), "{status}");
    ours.look();
    assert_eq!(ours.log().matches("cannot be watched").count(), 1);
    assert_eq!(get(&ours.server.http, "shop.test", "/").text(), "one");
    let config = folder.path().join("server.toml");
    let rig = Rig {
        server: Server::start_in(data, &["--config", &config.to_string_lossy()]),
        folder,
        port,
        program,
        token,
    };
    rig.copy(&rig.image("two"), "main");
    ours.look();
    ours.serves("two");
    let status = ours.server.ok(&["status", "shop"]);
    assert!(!status.contains("failing since"), "{status}");
    assert!(ours.log().contains("can be looked at again"));
}
