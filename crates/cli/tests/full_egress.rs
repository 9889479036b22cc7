//! The way out: the internet is reached by apps that ask for it, and nothing else is. The "internet",
//! the metadata service and the private network are hosts in a network namespace of this test's own.

use std::process::{Child, Command, Stdio};

use hutong_testkit::server::{Server, python_app};
use hutong_testkit::visitor::{escape, get};
use hutong_testkit::{eventually, is_root};

/// One world at a time: its names are fixed, so that what a killed test left is found.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

const NAMESPACE: &str = "hutong-test-net";
const OUTER: &str = "htest0";
/// A documentation address (RFC 5737) plays the internet.
const INTERNET: &str = "198.51.100.10";
const FORBIDDEN: [&str; 4] = [
    "169.254.169.254",
    "100.100.100.200",
    "10.250.0.10",
    "192.168.77.10",
];

fn ip(arguments: &[&str]) -> bool {
    let status = Command::new("ip")
        .args(arguments)
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// A namespace with a host that has all the addresses and answers on port 8000.
struct World(
    Child,
    #[allow(dead_code)] std::sync::MutexGuard<'static, ()>,
);

impl World {
    fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        Self::clean();
        assert!(ip(&["netns", "add", NAMESPACE]));
        assert!(ip(&[
            "link", "add", OUTER, "type", "veth", "peer", "name", "inner", "netns", NAMESPACE
        ]));
        assert!(ip(&["addr", "add", "198.51.100.1/24", "dev", OUTER]));
        assert!(ip(&["link", "set", OUTER, "up"]));
        for address in FORBIDDEN {
            assert!(ip(&[
                "route",
                "add",
                &format!("{address}/32"),
                "dev",
                OUTER
            ]));
        }
        let inside = |arguments: &[&str]| ip(&[&["-n", NAMESPACE], arguments].concat());
        assert!(inside(&["link", "set", "inner", "up"]));
        assert!(inside(&["link", "set", "lo", "up"]));
        assert!(inside(&[
            "addr",
            "add",
            &format!("{INTERNET}/24"),
            "dev",
            "inner"
        ]));
        for address in FORBIDDEN {
            assert!(inside(&[
                "addr",
                "add",
                &format!("{address}/32"),
                "dev",
                "inner"
            ]));
        }
        // As the uplink of a server would be.
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{OUTER}/forwarding"), "1")
            .expect("forwarding");
        let server = Command::new("ip")
            .args([
                "netns",
                "exec",
                NAMESPACE,
                "/usr/bin/python3",
                "-m",
                "http.server",
                "8000",
                "--directory",
                "/usr/share/doc",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a server");
        World(server, turn)
    }

    fn clean() {
        ip(&["link", "del", OUTER]);
        ip(&["netns", "del", NAMESPACE]);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        Self::clean();
    }
}

fn reach(address: &str, port: u16) -> String {
    format!("import socket\ns=socket.create_connection(('{address}',{port}),2)\nresult='reached'")
}

fn from_host(address: &str, port: u16) -> bool {
    let address = format!("{address}:{port}").parse().expect("an address");
    std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_secs(2)).is_ok()
}

#[test]
fn only_the_internet_is_reached_and_only_by_those_who_ask() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let server = Server::start();
    server.deploy(python_app("open", "egress = \"internet\"", "o").path());
    server.deploy(python_app("other", "egress = \"internet\"", "o").path());
    server.deploy(python_app("shut", "", "s").path());
    let inside = |app: &str, source: &str| {
        let path = format!("/eval?{}", escape(source));
        get(&server.http, &format!("{app}.test"), &path).text()
    };
    eventually("the world answers", 10, || from_host(INTERNET, 8000));
    assert_eq!(inside("open", &reach(INTERNET, 8000)), "reached");
    let shut = inside("shut", &reach(INTERNET, 8000));
    assert!(shut.contains("unreachable"), "{shut}");
    for address in FORBIDDEN {
        assert!(
            from_host(address, 8000),
            "without the wall {address} is reached"
        );
        let got = inside("open", &reach(address, 8000));
        assert!(
            got.contains("timed out") || got.contains("unreachable"),
            "{address}: {got}"
        );
    }
    // The host itself, by its address on the bridge and by another one of its own.
    let address = "import socket,fcntl,struct\ns=socket.socket()\nresult=socket.inet_ntoa(fcntl.ioctl(s.fileno(),0x8915,struct.pack('256s',b'eth0'))[20:24])";
    let own = inside("open", address);
    let bridge = format!("{}.1", own.rsplit_once('.').expect("an address").0);
    let listener = std::net::TcpListener::bind(format!("{bridge}:0")).expect("bind");
    let port = listener.local_addr().expect("an address").port();
    assert!(from_host(&bridge, port));
    for host in [bridge.as_str(), "198.51.100.1"] {
        let got = inside("open", &reach(host, port));
        assert!(got.contains("timed out"), "{host}: {got}");
    }
    // Another app on the same bridge, and from the host to an app.
    let neighbour = inside("other", address);
    assert_ne!(own, neighbour);
    let got = inside("open", &reach(&neighbour, 8080));
    assert!(
        got.contains("timed out") || got.contains("unreachable") || got.contains("No route"),
        "{got}"
    );
    // The name server is ours, on the bridge.
    let resolv = inside("open", "result=open('/etc/resolv.conf').read()");
    assert!(resolv.contains(&format!("nameserver {bridge}")), "{resolv}");
    let system = server.json(&["system"]);
    let resolver = system
        .as_array()
        .expect("list")
        .iter()
        .find(|p| p["role"] == "resolver")
        .cloned()
        .expect("a resolver");
    assert_ne!(resolver["uid"], 0);
}

/// A company's mirror or proxy lies on a private address: builds reach it, the app itself does not.
#[test]
fn builds_reach_the_mirror_of_the_server_file_and_apps_do_not() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let folder = tempfile::tempdir().expect("tempdir");
    let config = folder.path().join("server.toml");
    let mirror = FORBIDDEN[2];
    std::fs::write(
        &config,
        format!("[build]\nproxy = 'http://{mirror}:8000'\n"),
    )
    .expect("write");
    let server = Server::start_with(&["--config", &config.to_string_lossy()]);
    eventually("the mirror answers", 10, || from_host(mirror, 8000));
    let fetch = format!(
        "import os,socket; socket.create_connection(('{mirror}',8000),3); assert os.environ['HTTPS_PROXY']; open('fetched','w').write('yes')"
    );
    let more = format!(
        "egress = \"internet\"\n[build]\nnetwork = true\ncommand = [\"python3\", \"-c\", \"{fetch}\"]"
    );
    server.deploy(python_app("behind", &more, "b").path());
    let inside = |source: &str| {
        let path = format!("/eval?{}", escape(source));
        get(&server.http, "behind.test", &path).text()
    };
    assert_eq!(inside("result=open('/app/fetched').read()"), "yes");
    let got = inside(&reach(mirror, 8000));
    assert!(
        got.contains("timed out") || got.contains("unreachable"),
        "{got}"
    );
    let refused = format!(
        "import socket; socket.create_connection(('{}',8000),3)",
        FORBIDDEN[0]
    );
    let more = format!("[build]\nnetwork = true\ncommand = [\"python3\", \"-c\", \"{refused}\"]");
    let nosy = python_app("nosy", &more, "n");
    let (_, said) = server.fails(&["deploy", &nosy.path().to_string_lossy()]);
    assert!(said.contains("the build"), "{said}");
}
