//! Apps from images in sandboxes: what an image says is honoured, what is wrong with one is said, and nothing is left over.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hutong_testkit::oci::{self, Entry, Part};
use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root, kill, skip};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Answers every request with who and where it is; a file is read by `GET /read?PATH`, and written to by `GET /write?PATH`.
const PROGRAM: &str = r#"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void stop(int number) { printf("told to stop by %d\n", number); fflush(stdout); _exit(0); }

int main(int argc, char **argv) {
    const char *port = getenv("PORT");
    signal(SIGQUIT, stop);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(atoi(port ? port : "8080")) };
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 64)) return 3;
    for (;;) {
        int line = accept(listener, 0, 0);
        char request[4096] = "", body[8192] = "", answer[9000], here[512] = "";
        if (line < 0) continue;
        if (read(line, request, sizeof request - 1) <= 0) { close(line); continue; }
        char *path = strstr(request, "/read?");
        if (path) {
            path += 6;
            path[strcspn(path, " ")] = 0;
            int file = open(path, O_RDONLY);
            if (file < 0 || read(file, body, sizeof body - 1) < 0) snprintf(body, sizeof body, "errno %d", errno);
            if (file >= 0) close(file);
        } else if ((path = strstr(request, "/write?"))) {
            path += 7;
            path[strcspn(path, " ")] = 0;
            int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0600);
            int done = file >= 0 && dprintf(file, "written to %s\n", path) > 0;
            snprintf(body, sizeof body, done ? "done" : "errno %d", errno);
            if (file >= 0) close(file);
        } else {
            const char *colour = getenv("COLOUR"), *home = getenv("HOME");
            int file = open("/new", O_CREAT | O_WRONLY, 0600);
            int writes = errno;
            int cache = open("/var/cache/x", O_CREAT | O_WRONLY, 0600);
            snprintf(body, sizeof body, "uid=%d gid=%d cwd=%s colour=%s home=%s argc=%d last=%s root=%s cache=%s",
                getuid(), getgid(), getcwd(here, sizeof here), colour ? colour : "-", home ? home : "-", argc,
                argv[argc - 1], file < 0 ? strerror(writes) : "written", cache < 0 ? "no" : "yes");
        }
        int length = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
            strlen(body), body);
        if (write(line, answer, length) < 0) return 4;
        close(line);
    }
}
"#;

/// The program, for no system but a kernel; `None` where it cannot be made.
fn program() -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("program.c");
    let made = folder.path().join("program");
    std::fs::write(&source, PROGRAM).expect("written");
    let done = Command::new("cc")
        .args(["-static", "-O1", "-o"])
        .args([&made, &source])
        .output();
    match done {
        Ok(output) if output.status.success() => Some(std::fs::read(made).expect("it is there")),
        _ => {
            skip("cc -static is needed");
            None
        }
    }
}

struct Place {
    server: Server,
    folder: TempDir,
    program: Vec<u8>,
}

impl Place {
    fn new() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let program = program()?;
        Some(Place {
            server: Server::start(),
            folder: tempfile::tempdir().expect("a folder"),
            program,
        })
    }

    fn archive(&self, name: &str, parts: &[Part], config: &Value) -> PathBuf {
        let path = self.folder.path().join(name);
        oci::write(&path, parts, config, oci::architecture());
        path
    }

    /// The layer that all of them share.
    fn base(&self) -> Part {
        Part::plain(oci::layer(&[
            Entry::File("bin/program", 0o755, &self.program),
            Entry::File(
                "etc/passwd",
                0o644,
                b"root:x:0:0::/root:/bin/sh\nweb:x:1234:4321::/srv:/bin/sh\n",
            ),
            Entry::File("srv/hello", 0o644, b"from below"),
            Entry::File("srv/gone", 0o644, b"hidden"),
            Entry::Link("etc/hosts", "/srv/hello"),
            Entry::Link("var/log/access", "/dev/stdout"),
            Entry::Link("var/log/error", "/dev/stderr"),
        ]))
    }

    fn app(&self, name: &str, more: &str) -> TempDir {
        let toml = format!("name = '{name}'\ndomains = ['{name}.test']\n{more}");
        app_folder(&[("hutong.toml", &toml)])
    }

    fn arguments<'a>(folder: &'a str, image: &'a str) -> [&'a str; 4] {
        ["deploy", folder, "--image", image]
    }

    fn deploy(&self, app: &TempDir, image: &Path) {
        let (folder, image) = (app.path().to_string_lossy(), image.to_string_lossy());
        self.server.ok(&Self::arguments(&folder, &image));
    }

    fn refused(&self, app: &TempDir, image: &Path) -> String {
        let (folder, image) = (app.path().to_string_lossy(), image.to_string_lossy());
        self.server.fails(&Self::arguments(&folder, &image)).1
    }

    fn ask(&self, app: &str, path: &str) -> String {
        get(&self.server.http, &format!("{app}.test"), path).text()
    }

    fn layers(&self) -> Vec<String> {
        let folder = self.server.data.path().join("images/layers");
        let entries = std::fs::read_dir(folder).expect("it is there").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.starts_with('.')).collect()
    }
}

fn config(more: Value) -> Value {
    let mut config = json!({
        "Entrypoint": ["/bin/program"], "Cmd": ["from", "image"], "User": "web",
        "Env": ["COLOUR=red", "HOME=/srv"], "WorkingDir": "/srv", "StopSignal": "SIGQUIT",
        "ExposedPorts": {"9000/tcp": {}}, "Volumes": {"/var/cache": {}},
    });
    for (key, value) in more.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

#[test]
fn what_an_image_says_is_honoured() {
    let Some(place) = Place::new() else { return };
    let upper = Part::plain(oci::layer(&[
        Entry::File("srv/hello", 0o644, b"from above"),
        Entry::File("srv/.wh.gone", 0o644, b""),
    ]));
    let image = place.archive("app.tar", &[place.base(), upper], &config(json!({})));
    place.deploy(&place.app("scratch", "data = true\n"), &image);
    assert_eq!(
        place.ask("scratch", "/"),
        "uid=1234 gid=4321 cwd=/srv colour=red home=/srv argc=3 last=image root=Read-only file system cache=yes"
    );
    assert_eq!(place.ask("scratch", "/read?/srv/hello"), "from above");
    assert_eq!(place.ask("scratch", "/read?/srv/gone"), "errno 2");
    // Ours in place of a link, which is not followed; nothing of the host.
    assert!(
        place
            .ask("scratch", "/read?/etc/hosts")
            .contains("127.0.0.1 localhost")
    );
    assert_eq!(place.ask("scratch", "/read?/etc/shadow"), "errno 2");
    let status = place.ask("scratch", "/read?/proc/self/status");
    assert!(status.contains("CapBnd:\t0000000000000000"), "{status}");
    assert!(status.contains("Seccomp:\t2"), "{status}");
    // Another app shares the layer, with a command and a user of its own.
    let more = "command = ['own']\nport = 8081\nenv.COLOUR = 'blue'\n[container]\nuser = 'app'\n";
    let other = place.archive("other.tar", &[place.base()], &config(json!({})));
    place.deploy(&place.app("second", more), &other);
    let said = place.ask("second", "/");
    assert!(
        said.starts_with("uid=1000 gid=1000 cwd=/srv colour=blue") && said.contains("last=own"),
        "{said}"
    );
    assert_eq!(place.layers().len(), 2, "{:?}", place.layers());
    // It is stopped by the signal that the image names.
    place.server.ok(&["stop", "scratch"]);
    eventually("it said so", 20, || {
        place
            .server
            .ok(&["logs", "scratch"])
            .contains("told to stop by 3")
    });
    // What nobody needs goes.
    place.server.ok(&["remove", "scratch", "--purge"]);
    eventually("its own layer is gone", 30, || place.layers().len() == 1);
    assert!(place.ask("second", "/").contains("uid=1000"));
}

/// Healthy means that the image's own check passed, too.
#[test]
fn the_images_own_health_check_counts() {
    let Some(place) = Place::new() else { return };
    // Our program ends with 3 where its port is taken, and with 0 where it is told to stop: neither is a check. A script
    // needs a shell, so the check is a program that is there, or is not.
    let passing =
        json!({"Healthcheck": {"Test": ["CMD", "/bin/check"], "Interval": 1_000_000_000}});
    let source = place.folder.path().join("check.c");
    let made = place.folder.path().join("check");
    let text = "#include <unistd.h>\nint main() { return access(\"/tmp/sick\", F_OK) == 0; }\n";
    std::fs::write(&source, text).expect("written");
    let done = Command::new("cc")
        .args(["-static", "-o"])
        .args([&made, &source])
        .status();
    assert!(done.expect("cc runs").success());
    let check = std::fs::read(&made).expect("it is there");
    let layer = |name: &str| Part::plain(oci::layer(&[Entry::File(name, 0o755, &check)]));
    let image = place.archive(
        "well.tar",
        &[place.base(), layer("bin/check")],
        &config(passing.clone()),
    );
    place.deploy(&place.app("well", ""), &image);
    assert!(place.ask("well", "/").contains("uid=1234"));
    let image = place.archive(
        "sick.tar",
        &[place.base(), layer("bin/other")],
        &config(passing),
    );
    let said = place.refused(&place.app("sick", "[timeouts]\nstart = '3s'\n"), &image);
    assert!(said.contains("health check"), "{said}");
}

#[test]
fn root_is_root_of_its_own_range_and_only_where_allowed() {
    let Some(place) = Place::new() else { return };
    let image = place.archive("root.tar", &[place.base()], &config(json!({"User": ""})));
    let said = place.refused(&place.app("root", ""), &image);
    assert!(
        said.contains("runs as root") && said.contains("allow_root"),
        "{said}"
    );
    place.deploy(
        &place.app("root", "[container]\nallow_root = true\n"),
        &image,
    );
    let said = place.ask("root", "/");
    assert!(said.starts_with("uid=0 gid=0"), "{said}");
    assert!(said.contains("root=Read-only file system"), "{said}");
    let status = place.ask("root", "/read?/proc/self/status");
    assert!(status.contains("CapEff:\t00000000000004fb"), "{status}");
    assert!(status.contains("CapBnd:\t00000000000004fb"), "{status}");
    // On the host it is nobody.
    let pid = place.server.app("root")["instances"][0]["id"].clone();
    assert!(pid.is_string());
    let unknown = place.archive(
        "who.tar",
        &[place.base()],
        &config(json!({"User": "nobody"})),
    );
    let said = place.refused(&place.app("who", ""), &unknown);
    assert!(
        said.contains("`nobody` is not in its /etc/passwd"),
        "{said}"
    );
}

/// What an app keeps stays readable to who serves, though a release with another user comes.
#[test]
fn data_is_not_taken_from_the_user_who_has_it() {
    let Some(place) = Place::new() else { return };
    let image = place.archive("data.tar", &[place.base()], &config(json!({})));
    place.deploy(&place.app("keeper", "data = true\n"), &image);
    assert_eq!(place.ask("keeper", "/write?/data/kept"), "done");
    let other = "data = true\n[container]\nuser = 'app'\n";
    let said = place.refused(&place.app("keeper", other), &image);
    assert!(said.contains("/data is the user 1234's"), "{said}");
    eventually("it serves, and reads what it wrote", 60, || {
        place.ask("keeper", "/read?/data/kept") == "written to /data/kept\n"
    });
}

/// As many images have it: their programs open what they log to.
#[test]
fn logs_that_are_links_to_the_output_are_kept() {
    let Some(place) = Place::new() else { return };
    for (app, user, toml) in [
        ("plain", "web", ""),
        ("master", "", "[container]\nallow_root = true\n"),
    ] {
        let image = place.archive("logs.tar", &[place.base()], &config(json!({"User": user})));
        place.deploy(&place.app(app, toml), &image);
        for log in ["/var/log/access", "/var/log/error"] {
            assert_eq!(place.ask(app, &format!("/write?{log}")), "done", "{app}");
            eventually("it is kept", 20, || {
                let logs = place.server.ok(&["logs", app]);
                logs.contains(&format!("written to {log}"))
            });
        }
    }
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_left() {
    let Some(place) = Place::new() else { return };
    place.deploy(
        &place.app("shop", ""),
        &place.archive("good.tar", &[place.base()], &config(json!({}))),
    );
    let before = place.layers();
    let refused = |parts: &[Part], more: Value, toml: &str| {
        let image = place.archive("bad.tar", parts, &config(more));
        place.refused(&place.app("shop", toml), &image)
    };
    let outside = Part::plain(oci::odd_layer("../../etc/hutong-was-here", b"x"));
    let said = refused(&[place.base(), outside], json!({}), "");
    assert!(said.contains("does not stay inside the image"), "{said}");
    assert!(!Path::new("/etc/hutong-was-here").exists());
    let changed = Part {
        packed: place.base().packed,
        diff_id: oci::digest(b"another"),
    };
    let said = refused(&[changed], json!({}), "");
    assert!(said.contains("has the digest"), "{said}");
    // One that nobody has yet: what is there is not unpacked again.
    let long = [7; 100_000];
    let whole = Part::plain(oci::layer(&[Entry::File("srv/long", 0o644, &long)]));
    let cut = Part {
        packed: whole.packed[..whole.packed.len() / 2].to_vec(),
        diff_id: whole.diff_id,
    };
    let said = refused(&[place.base(), cut], json!({}), "");
    assert!(said.contains("cannot be unpacked"), "{said}");
    // A gigabyte of zeros, which packs to a few megabytes.
    let header = place.folder.path().join("header");
    std::fs::write(&header, oci::header("srv/zeros", 1 << 30)).expect("written");
    let zeros = Command::new("sh")
        .args([
            "-c",
            "{ cat \"$1\"; head -c 1G /dev/zero; } | gzip -1",
            "sh",
        ])
        .arg(&header)
        .output()
        .expect("gzip runs");
    let bomb = Part {
        packed: zeros.stdout,
        diff_id: oci::digest(b"a bomb"),
    };
    let said = refused(&[bomb], json!({}), "");
    assert!(said.contains("over its bound"), "{said}");
    let said = refused(
        &[place.base()],
        json!({"Entrypoint": null, "Cmd": null}),
        "",
    );
    assert!(said.contains("says no command to run"), "{said}");
    let said = refused(&[place.base()], json!({"Entrypoint": ["/bin/none"]}), "");
    assert!(said.contains("no file `/bin/none` in the image"), "{said}");
    let script = Part::plain(oci::layer(&[Entry::File(
        "bin/script",
        0o755,
        b"#!/bin/missing\n",
    )]));
    let said = refused(
        &[place.base(), script],
        json!({"Entrypoint": ["/bin/script"]}),
        "",
    );
    assert!(
        said.contains("the interpreter or loader that it names is not"),
        "{said}"
    );
    let foreign = place.folder.path().join("foreign.tar");
    oci::write(&foreign, &[place.base()], &config(json!({})), "s390x");
    let said = place.refused(&place.app("shop", ""), &foreign);
    assert!(said.contains("s390x"), "{said}");
    let nothing = place.folder.path().join("nothing.tar");
    std::fs::write(&nothing, oci::layer(&[Entry::File("readme", 0o644, b"x")])).expect("written");
    let said = place.refused(&place.app("shop", ""), &nothing);
    assert!(said.contains("this is no image"), "{said}");
    assert_eq!(place.ask("shop", "/read?/srv/hello"), "from below");
    let data = place.server.data.path();
    let left = |folder: &str| {
        std::fs::read_dir(data.join(folder)).map_or(0, |entries| {
            entries
                .flatten()
                .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
                .count()
        })
    };
    eventually("nothing is left of them", 20, || {
        left("builds") == 0 && left("control/incoming") == 0
    });
    // Failed releases are forgotten as others are; layers of the good one stay.
    assert!(before.iter().all(|layer| place.layers().contains(layer)));
}

#[test]
fn a_killed_control_plane_unpacks_again() {
    let Some(place) = Place::new() else { return };
    let content = vec![7; 64 << 20];
    let large = Part::plain(oci::layer(&[Entry::File("srv/large", 0o644, &content)]));
    let image = place.archive("large.tar", &[place.base(), large], &config(json!({})));
    let app = place.app("large", "");
    let (folder, image) = (app.path().to_string_lossy(), image.to_string_lossy());
    let mut deploy = place
        .server
        .command(&Place::arguments(&folder, &image))
        .spawn()
        .expect("hutong runs");
    let layers = place.server.data.path().join("images/layers");
    eventually("a layer is there", 60, || {
        std::fs::read_dir(&layers).is_ok_and(|entries| entries.count() > 0)
    });
    kill(place.server.role("control"));
    let _ = deploy.wait();
    eventually("it serves all the same", 60, || {
        get(&place.server.http, "large.test", "/").status == 200
    });
    assert_eq!(place.layers().len(), 2);
}

/// Another registry: wants a token, which it gives for a password, and breaks off in the middle of each blob once.
struct Elsewhere {
    files: HashMap<String, Vec<u8>>,
    tag: Vec<u8>,
    address: String,
    tokens: AtomicUsize,
    broken: Mutex<Vec<String>>,
    ranges: AtomicUsize,
}

impl Elsewhere {
    fn start(archive: &Path, manifest: &str) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut files = HashMap::new();
        let file = std::fs::File::open(archive).expect("it is there");
        for entry in tar::Archive::new(file).entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a name").to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("read");
            files.insert(name, content);
        }
        let tag = files[&format!("blobs/{}", manifest.replace(':', "/"))].clone();
        let registry = Arc::new(Elsewhere {
            files,
            tag,
            address: listener.local_addr().expect("an address").to_string(),
            tokens: AtomicUsize::new(0),
            broken: Mutex::default(),
            ranges: AtomicUsize::new(0),
        });
        let serving = registry.clone();
        std::thread::spawn(move || {
            for line in listener.incoming().flatten() {
                serving.serve(line);
            }
        });
        registry
    }

    /// One request a line.
    fn serve(&self, mut line: TcpStream) {
        let mut reader = BufReader::new(line.try_clone().expect("a copy"));
        let mut head = Vec::new();
        loop {
            let mut text = String::new();
            match reader.read_line(&mut text) {
                Ok(count) if count > 2 => head.push(text.trim().to_owned()),
                _ => break,
            }
        }
        let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else {
            return;
        };
        let header = |name: &str| {
            head.iter().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })
        };
        let mut answer = |status: &str, more: &str, length: usize, body: &[u8]| {
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n"
            );
            let _ = line.write_all(head.as_bytes());
            let _ = line.write_all(body);
        };
        let authorization = header("authorization").unwrap_or_default();
        if path.starts_with("/token?") {
            // me:se cret
            let known = authorization == "Basic bWU6c2UgY3JldA==";
            assert!(path.contains("scope=repository%3Ashop%3Apull"), "{path}");
            self.tokens.fetch_add(1, Ordering::SeqCst);
            return match known {
                true => answer("200 OK", "", 15, br#"{"token":"abc"}"#),
                false => answer("401 Unauthorized", "", 0, b""),
            };
        }
        if authorization != "Bearer abc" {
            let wanted = format!(
                "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"here\"\r\n",
                self.address
            );
            return answer("401 Unauthorized", &wanted, 0, b"");
        }
        if path == "/v2/shop/manifests/1" {
            let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n";
            return answer("200 OK", kind, self.tag.len(), &self.tag);
        }
        let name = path.trim_start_matches("/v2/shop/").replace(':', "/");
        let Some(blob) = self.files.get(&name) else {
            return answer("404 Not Found", "", 0, b"");
        };
        if let Some(range) = header("range") {
            let from = range.trim_start_matches("bytes=").trim_end_matches('-');
            let from: usize = from.parse().expect("a range");
            self.ranges.fetch_add(1, Ordering::SeqCst);
            return answer("206 Partial Content", "", blob.len() - from, &blob[from..]);
        }
        let mut broken = self.broken.lock().expect("no panic");
        if broken.contains(&name) {
            return answer("200 OK", "", blob.len(), blob);
        }
        broken.push(name);
        answer("200 OK", "", blob.len(), &blob[..blob.len() / 2]);
    }
}

#[test]
fn an_image_is_fetched_from_another_registry() {
    let Some(place) = Place::new() else { return };
    let path = place.folder.path().join("remote.tar");
    let digest = oci::write(
        &path,
        &[place.base()],
        &config(json!({})),
        oci::architecture(),
    );
    let registry = Elsewhere::start(&path, &digest);
    let image = format!("image = '{}/shop:1'\n", registry.address);
    let app = place.app("fetched", &image);
    let folder = app.path().to_string_lossy().into_owned();
    // Without a password.
    let (_, said) = place.server.fails(&["deploy", &folder]);
    assert!(said.contains("hutong registry login"), "{said}");
    let mut login = place
        .server
        .command(&["registry", "login", &registry.address, "--user", "me"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("hutong runs");
    let mut input = login.stdin.take().expect("piped");
    input.write_all(b"se cret\n").expect("written");
    drop(input);
    assert!(login.wait().expect("it ends").success());
    let listed = place.server.ok(&["registry", "list"]);
    assert!(
        listed.contains("me") && !listed.contains("cret"),
        "{listed}"
    );
    place.server.ok(&["deploy", &folder]);
    assert!(place.ask("fetched", "/").contains("uid=1234"));
    assert!(registry.ranges.load(Ordering::SeqCst) >= 1, "it went on");
    // What is there is not fetched again; nor is the password anywhere in the open.
    let before = registry.tokens.load(Ordering::SeqCst);
    place.server.ok(&["deploy", &folder]);
    assert_eq!(registry.tokens.load(Ordering::SeqCst), before);
    let stored = std::fs::read(place.server.data.path().join("control/state.db"));
    let stored = stored.expect("it is there");
    assert!(!stored.windows(7).any(|bytes| bytes == b"se cret"));
    place.server.ok(&["registry", "logout", &registry.address]);
}
