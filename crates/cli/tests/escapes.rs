//! The escape table of docs/isolation.md: the same tries in a sandbox, in a container of ours, in one that Docker runs by
//! itself, and as root without any wall. `UPDATE_ISOLATION=1` writes the table anew.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hutong_ipc::shim::Wall;
use hutong_runtime::trial::Trial;
use hutong_testkit::docker::{Docker, ROOT_IMAGE};
use hutong_testkit::eventually;
use hutong_testkit::server::{Server, app_folder};
use serde_json::json;

const PROBE: &str = include_str!("../../testkit/src/escape.py");
/// What each app may use, and a bomb goes beyond.
const MEGABYTES: u32 = 400;
/// More than /tmp may hold.
const FILL: u32 = 100;
const PROCESSES: u32 = 200;
const FILES: u32 = 30_000;
/// Walls that can be left out of a sandbox, as the table calls them. The others (System V memory, limits) are the only ones
/// before what they keep off.
const WALLS: [(&str, Wall); 6] = [
    ("root", Wall::Root),
    ("user", Wall::User),
    ("pid", Wall::Pid),
    ("net", Wall::Net),
    ("seccomp", Wall::Seccomp),
    ("landlock", Wall::Landlock),
];
/// What root has not on every machine.
const NOT_EVERYWHERE: [&str; 1] = ["be spared by the OOM killer"];
/// What ends an instance is tried last.
const LAST: &str = "more memory than allowed";

/// What one try came to.
struct Tried {
    walls: String,
    out: bool,
    detail: String,
}

type Table = Vec<(String, Tried)>;

/// A process of the host, with a secret; ends with the test.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read(output: &std::process::Output) -> Table {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.is_empty(), "{said}");
    parse(&text)
}

fn parse(text: &str) -> Table {
    let mut all: Vec<(String, String, bool, String)> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    if all.last().is_none_or(|(name, ..)| name != LAST) {
        let ended = "the whole instance was ended for it".to_owned();
        all.push((LAST.into(), "limits".into(), false, ended));
    }
    all.into_iter()
        .map(|(name, walls, out, detail)| (name, Tried { walls, out, detail }))
        .collect()
}

fn app(name: &str, more: &str) -> tempfile::TempDir {
    let toml = format!(
        "name = '{name}'\ndata = true\ncommand = ['python3', '-m', 'http.server', '8080', '-b', '0.0.0.0', '-d', '/tmp']\n{more}"
    );
    let folder = app_folder(&[("hutong.toml", &toml), ("escape.py", PROBE)]);
    std::fs::set_permissions(
        folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("chmod");
    folder
}

#[test]
fn nobody_gets_out() {
    let Some(engine) = Docker::start() else {
        return;
    };
    // The test's own network: addresses of the kinds that clouds keep their secrets at are on its loopback.
    for address in [
        "169.254.169.254/32",
        "100.100.100.200/32",
        "10.99.99.99/32",
        "fd00:99::1/128",
    ] {
        let done = Command::new("ip")
            .args(["addr", "add", address, "dev", "lo"])
            .status();
        assert!(done.expect("ip runs").success(), "{address}");
    }
    let open = TcpListener::bind("[::]:0").expect("a port");
    let port = open.local_addr().expect("an address").port();
    let accept = std::thread::spawn({
        let open = open.try_clone().expect("a copy");
        move || {
            open.incoming()
                .flatten()
                .take_while(|line| line.peer_addr().is_ok())
                .for_each(drop)
        }
    });
    let name = format!("hutong-escape-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(name.as_bytes()).expect("a name");
    let _abstract = UnixListener::bind_addr(&abstract_name).expect("an abstract socket");
    std::fs::write(format!("/dev/shm/{name}"), "seen").expect("written");
    let victim = Command::new("sleep")
        .arg("600")
        .env("SECRET", "jade")
        .stdin(Stdio::null())
        .spawn();
    let victim = Victim(victim.expect("sleep runs"));
    let shm_key = 0x4854_0000 | (std::process::id() & 0xffff);
    let make = format!("import ctypes; print(ctypes.CDLL(None).shmget({shm_key}, 4096, 0o1666))");
    let made = Command::new("/usr/bin/python3")
        .args(["-c", &make])
        .output()
        .expect("python3 runs");
    let shm_id = String::from_utf8_lossy(&made.stdout).trim().to_owned();

    let server = Server::start_with(&["--docker", &engine.socket()]);
    eventually("the engine is known", 10, || {
        server.ok(&["doctor"]).contains("Docker ")
    });
    let limits = format!(
        "[limits]\nmemory = '200M'\ndisk = '64M'\npids = {}\n",
        PROCESSES / 2
    );
    let _link = TcpListener::bind("127.0.0.10:80").expect("the address of a link");
    server.deploy(app("victim", "links = { orders = 'sandbox' }\n").path());
    server.deploy(app("sandbox", &limits).path());
    let image = "image = 'hutong-test/python:1'\n";
    let table = "[container]\nmount = '/app'\nuser = 'app'\n";
    server.deploy(app("boxed", &format!("{image}{limits}{table}")).path());
    server.deploy(app("neighbour", &format!("{image}{table}")).path());
    // The same with a way out, which leads to none of it.
    let egress = "egress = 'internet'\n";
    server.deploy(app("sandout", &format!("{egress}{limits}")).path());
    server.deploy(app("boxout", &format!("{image}{egress}{limits}{table}")).path());
    let ids = engine.ok(&["ps", "-q", "--filter", "label=hutong.app=boxed"]);
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let neighbour = engine
        .ok(&["inspect", "-f", format, ids.trim()])
        .trim()
        .to_owned();
    let run = server
        .api
        .trim_start_matches("unix:")
        .trim_end_matches("/api.sock")
        .to_owned();
    let shim = server.app("victim")["instances"][0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let data = server.data.path().to_string_lossy().into_owned();
    let http: u16 = server
        .http
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .expect("a port");
    let found = json!({
        "bare": false,
        "data": data,
        "neighbour_data": format!("{data}/data/victim"),
        "victim": victim.0.id(),
        "shared": name,
        "abstract": name,
        "shm_key": shm_key,
        "megabytes": MEGABYTES,
        "fill": FILL,
        "processes": PROCESSES,
        "files": FILES,
        "folder": "/data",
        "sockets": {
            "the warden": format!("{run}/warden.sock"),
            "the API": format!("{run}/api.sock"),
            "the gateway": format!("{run}/gateway.sock"),
            "containers' links": format!("{run}/links.sock"),
            "the Docker driver": format!("{run}/docker.sock"),
            "another app's shim": format!("{run}/i/{shim}.sock"),
            "the Docker engine": engine.socket(),
        },
        "addresses": {
            "the gateway's port on the host": ["127.0.0.1", http],
            "the host by Docker's bridge": ["172.17.0.1", port],
            "the host by its own bridge": [format!("{}.1", neighbour.rsplit_once('.').expect("an address").0), port],
            "the metadata address": ["169.254.169.254", port],
            "Alibaba's metadata address": ["100.100.100.200", port],
            "a private network": ["10.99.99.99", port],
            "a private network by IPv6": ["fd00:99::1", port],
        },
    });
    let scratch = tempfile::tempdir().expect("a folder");
    let bare_found = {
        let mut bare = found.clone();
        bare["bare"] = true.into();
        bare["folder"] = scratch.path().to_string_lossy().into();
        // Root may connect to a container only where our rules are not: they are a wall as well.
        bare.to_string()
    };
    let inside = |app: &str| {
        read(&server.run(&[
            "exec",
            app,
            "--",
            "python3",
            "/app/escape.py",
            &found.to_string(),
        ]))
    };
    let sandbox = inside("sandbox");
    let boxed = inside("boxed");
    let with_a_way_out = [
        ("sandbox", inside("sandout")),
        ("container", inside("boxout")),
    ];
    let folder = app("plain", "");
    let plain = read(&engine.run(&[
        "run",
        "--rm",
        "--memory",
        "200m",
        "--pids-limit",
        "100",
        "-v",
        &format!("{}:/app:ro", folder.path().display()),
        "-v",
        "/data",
        ROOT_IMAGE,
        "python3",
        "/app/escape.py",
        &found.to_string(),
    ]));
    // Root without walls, in a mount namespace, host name and cgroup view of its own: what it changes there is thrown away.
    let script = folder.path().join("escape.py");
    let bare = Command::new("unshare")
        .args(["--mount", "--uts", "--cgroup", "/usr/bin/python3"])
        .arg(&script)
        .arg(&bare_found)
        .output();
    let bare = read(&bare.expect("unshare runs"));
    let alone = |wall: Wall| {
        let others = WALLS.map(|(_, wall)| wall).into_iter();
        let without: Vec<Wall> = others.filter(|other| *other != wall).collect();
        // What it sees as /app is elsewhere where there is no root of its own.
        let script = match wall {
            Wall::Root => "/app/escape.py".into(),
            _ => script.to_string_lossy().into_owned(),
        };
        let argv = ["/usr/bin/python3", &script, &bare_found];
        let trial = Trial::start(&without, &argv, Some(folder.path())).expect("it starts");
        parse(&trial.output(Duration::from_secs(120)))
    };
    let alone: Vec<(&str, BTreeMap<String, Tried>)> = WALLS
        .map(|(name, wall)| (name, alone(wall).into_iter().collect()))
        .into();
    drop(server);
    let _ = std::fs::remove_file(format!("/dev/shm/{name}"));
    let unmake = format!("import ctypes; ctypes.CDLL(None).shmctl({shm_id}, 0, None)");
    let _ = Command::new("/usr/bin/python3")
        .args(["-c", &unmake])
        .status();
    drop(open);
    drop(accept);

    let index = |table: Table| table.into_iter().collect::<BTreeMap<String, Tried>>();
    let order: Vec<String> = sandbox.iter().map(|(name, _)| name.clone()).collect();
    let (sandbox, boxed, plain, bare) = (index(sandbox), index(boxed), index(plain), index(bare));
    assert!(order.len() >= 60, "{} tries", order.len());
    let mut wrong = Vec::new();
    for (where_, table) in &with_a_way_out {
        assert_eq!(table.len(), sandbox.len(), "{where_} with egress");
        for (name, _) in table.iter().filter(|(_, tried)| tried.out) {
            wrong.push(format!("{where_} with egress: {name} got out"));
        }
    }
    let mut text = String::new();
    for name in &order {
        let all = [&sandbox, &boxed, &plain, &bare].map(|table| table.get(name));
        let word = |tried: Option<&Tried>| match tried {
            Some(tried) if tried.out => "out",
            Some(_) => "held",
            None => "–",
        };
        let walls = all[0].map_or("", |tried| &tried.walls);
        text.push_str(&format!(
            "| {name} | {walls} | {} | {} | {} | {} |\n",
            word(all[0]),
            word(all[1]),
            word(all[2]),
            word(all[3])
        ));
        for (where_, tried) in [("sandbox", all[0]), ("container", all[1])] {
            if tried.is_none_or(|tried| tried.out) {
                wrong.push(format!("{where_}: {name} got out"));
            }
        }
        // Each wall that is named holds by itself.
        let named: Vec<&str> = all[0].map_or(Vec::new(), |tried| tried.walls.split(", ").collect());
        for (wall, table) in alone.iter().filter(|(wall, _)| named.contains(wall)) {
            if let Some(tried) = table.get(name).filter(|tried| tried.out) {
                wrong.push(format!("{wall} alone: {name} got out: {}", tried.detail));
            }
            if !table.contains_key(name) {
                wrong.push(format!("{wall} alone: {name} was not tried"));
            }
        }
        // A try that fails without walls shows nothing; but this kernel may not have the thing at all.
        if let Some(tried) = all[3].filter(|tried| !tried.out) {
            // Or this machine, which may itself be a sandbox of somebody's, does not let root have it.
            let kept = NOT_EVERYWHERE.contains(&name.as_str())
                || tried.detail.contains("No such file or directory: '/proc/");
            let missing = [
                "not implemented",
                "StopIteration",
                "not supported",
                "No such device",
            ];
            if !kept && !missing.iter().any(|word| tried.detail.contains(word)) {
                wrong.push(format!("without walls: {name}: {}", tried.detail));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    check_table(&text);
}

/// The table in docs/isolation.md is this one.
fn check_table(text: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/isolation.md");
    let stored = std::fs::read_to_string(path).expect("docs/isolation.md");
    let (begin, end) = ("<!-- table -->\n", "<!-- end -->");
    let from = stored.find(begin).expect("a beginning") + begin.len();
    let to = stored.find(end).expect("an end");
    let head = "| try | walls | sandbox | container | `docker run` | no walls |\n|---|---|---|---|---|---|\n";
    let wanted = format!("{}{head}{text}{}", &stored[..from], &stored[to..]);
    if std::env::var_os("UPDATE_ISOLATION").is_some() {
        std::fs::write(path, &wanted).expect("docs/ is writable");
    }
    // What Docker and root do depends on the kernel; what we do does not.
    let ours = |text: &str| -> Vec<String> {
        let rows = text
            .lines()
            .filter(|line| line.starts_with("| ") && !line.starts_with("| try"));
        rows.map(|row| row.split('|').take(5).collect::<Vec<_>>().join("|"))
            .collect()
    };
    assert_eq!(
        ours(&stored),
        ours(&wanted),
        "docs/isolation.md is old: UPDATE_ISOLATION=1 cargo test -p hutong --test escapes"
    );
}
