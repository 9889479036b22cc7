//! The server as a registry of images, with the clients that people have: what is pushed is deployed. Of another server the same
//! registry is one elsewhere, which is watched.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hutong_testkit::docker::Docker;
use hutong_testkit::oci::{self, Entry, Part};
use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::visitor::{get, raw};
use hutong_testkit::{eventually, is_root, kill, skip};
use serde_json::json;
use tempfile::TempDir;

/// Says to everybody what it was made to say.
const PROGRAM: &str = r#"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(atoi(getenv("PORT"))) };
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
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("an address").port()
        };
        let config = folder.path().join("server.toml");
        let text = format!("registry = '127.0.0.1:{port}'\n");
        std::fs::write(&config, text).expect("written");
        let server = Server::start_with(&["--config", &config.to_string_lossy()]);
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
        let path = self.folder.path().join(format!("{says}.tar"));
        let layer = Part::plain(oci::layer(&[
            Entry::File("bin/program", 0o755, &self.program),
            Entry::File("etc/passwd", 0o644, b"web:x:1234:1234::/:/bin/sh\n"),
        ]));
        let config = json!({
            "Entrypoint": ["/bin/program"], "User": "web", "Env": [format!("SAYS={says}")],
        });
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
        let creds = format!("any:{}", self.token);
        let from = format!("oci-archive:{}", from.display());
        let to = format!("docker://{}", self.place(tag));
        let flags = ["copy", "-q", "--dest-tls-verify=false", "--dest-creds"];
        self.ok(
            "skopeo",
            &[&flags[..], &[creds.as_str(), &from, &to]].concat(),
        );
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
