//! The way out: the internet is reached by apps that ask for it, and nothing else is; and what is on a list by those who
//! have one. The "internet" with its name server, the metadata service and the private network are hosts in a network
//! namespace of this test's own.

use std::process::{Child, Command, Stdio};

use hutong_testkit::docker::Docker;
use hutong_testkit::server::{Server, python_app};
use hutong_testkit::visitor::{escape, get};
use hutong_testkit::{eventually, is_root, kill};
use tempfile::TempDir;

/// One world at a time: its names are fixed, so that what a killed test left is found.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

const NAMESPACE: &str = "hutong-test-net";
const OUTER: &str = "htest0";
/// A documentation address (RFC 5737) plays the internet.
const INTERNET: &str = "198.51.100.10";
/// More of it.
const PUBLIC: [&str; 4] = [
    "198.51.100.11",
    "198.51.100.12",
    "198.51.100.13",
    "198.51.100.40",
];
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

/// A namespace with a host that has all the addresses, and answers on ports 8000 and 8001 and to questions for names.
struct World(
    Vec<Child>,
    #[allow(dead_code)] std::sync::MutexGuard<'static, ()>,
);

const NAMES: &str = include_str!("dns.py");

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
        for address in [INTERNET].iter().chain(&PUBLIC) {
            let address = format!("{address}/24");
            assert!(inside(&["addr", "add", &address, "dev", "inner"]));
        }
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
        let beyond = |arguments: &[&str]| {
            Command::new("ip")
                .args(["netns", "exec", NAMESPACE, "/usr/bin/python3"])
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("a server")
        };
        let pages = |port| beyond(&["-m", "http.server", port, "--directory", "/usr/share/doc"]);
        let names = beyond(&["-c", NAMES, INTERNET]);
        World(vec![pages("8000"), pages("8001"), names], turn)
    }

    fn clean() {
        ip(&["link", "del", OUTER]);
        ip(&["netns", "del", NAMESPACE]);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for server in &mut self.0 {
            let _ = server.kill();
            let _ = server.wait();
        }
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

/// A server that asks the world for names, and whose owner lets apps reach one private network.
struct Listed {
    server: Option<Server>,
    folder: TempDir,
    arguments: Vec<String>,
}

impl Listed {
    fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path.to_string_lossy().into_owned()
        };
        write("resolv.conf", &format!("nameserver {INTERNET}\n"));
        let config = write("server.toml", "[egress]\nallow = ['192.168.77.0/24']\n");
        let mut arguments = vec!["--config".to_owned(), config];
        arguments.extend(more.iter().map(|one| (*one).to_owned()));
        let mut listed = Listed {
            server: None,
            folder,
            arguments,
        };
        let data = tempfile::Builder::new().prefix("hutong-test-").tempdir();
        listed.begin(data.expect("tempdir"));
        listed
    }

    /// In a mount namespace of its own, where the host's name server is the world's.
    fn begin(&mut self, data: TempDir) {
        let names = self.folder.path().join("resolv.conf");
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        let names = names.to_string_lossy();
        let wrapper = ["unshare", "--mount", "sh", "-c", script, &names];
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.server = Some(Server::start_through_in(&wrapper, data, &arguments));
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("it runs")
    }

    fn inside(&self, app: &str, source: &str) -> String {
        let path = format!("/eval?{}", escape(source));
        get(&self.server().http, &format!("{app}.test"), &path).text()
    }

    fn looks_up(&self, app: &str, name: &str) -> String {
        let source = format!("import socket\nresult=socket.gethostbyname('{name}')");
        self.inside(app, &source)
    }

    fn reaches(&self, app: &str, host: &str, port: u16) -> String {
        self.inside(app, &reach(host, port))
    }

    /// Refused by the network, at once.
    fn is_refused(&self, app: &str, host: &str, port: u16) {
        let got = self.reaches(app, host, port);
        assert!(got.contains("No route"), "{host}:{port}: {got}");
    }

    fn is_unknown(&self, app: &str, name: &str) {
        let got = self.looks_up(app, name);
        assert!(got.contains("gaierror"), "{name}: {got}");
    }

    /// What `/etc/resolv.conf` of an app names.
    fn name_server(&self, app: &str) -> String {
        let source = "result=open('/etc/resolv.conf').read().split()[1]";
        self.inside(app, source)
    }

    fn resolver(&self) -> Option<u64> {
        let system = self.server().json(&["system"]);
        let list = system.as_array().expect("a list");
        let found = list.iter().find(|process| process["role"] == "resolver");
        found.and_then(|process| process["pid"].as_u64())
    }
}

/// The table of the server whose bridge has this address.
fn table_of(address: &str) -> String {
    let say = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        String::from_utf8_lossy(&output.expect("it runs").stdout).into_owned()
    };
    let addresses = say("ip", &["-4", "-o", "addr", "show"]);
    let own = |line: &&str| line.contains(&format!(" {address}/"));
    let line = addresses.lines().find(own).expect("a bridge");
    let bridge = line.split_ascii_whitespace().nth(1).expect("its name");
    let begin = format!("hutong_{}", &bridge[2..]);
    let tables = say("nft", &["list", "tables"]);
    let mut names = tables
        .lines()
        .filter_map(|line| line.strip_prefix("table inet "));
    let name = names.find(|name| name.starts_with(&begin));
    name.expect("a table").to_owned()
}

fn rules_of(table: &str) -> String {
    let output = Command::new("nft")
        .args(["list", "table", "inet", table])
        .output();
    String::from_utf8_lossy(&output.expect("nft runs").stdout).into_owned()
}

/// An app's own address; nothing is sent.
const OWN: &str = "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.connect(('198.51.100.11',9))\nresult=s.getsockname()[0]";

const LIST: &str = "egress = ['good.test', '*.wild.test', 'alias.test', 'port.test:8001', '198.51.100.32/28', '192.168.77.10:8001', 'meta.test', 'cloud.test', 'private.test', 'loopback.test', 'mixed.test', 'flip.test', 'loop.test', 'sly.test', 'broken.test', 'host.test']";

#[test]
fn a_list_is_reached_and_nothing_else() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let listed = Listed::start(&[]);
    let server = listed.server();
    server.deploy(python_app("listed", LIST, "l").path());
    server.deploy(python_app("narrow", "egress = ['198.51.100.11:8000']", "n").path());
    server.deploy(python_app("open", "egress = \"internet\"", "o").path());
    eventually("the world answers", 10, || {
        from_host(INTERNET, 8000) && from_host(INTERNET, 8001) && from_host(INTERNET, 53)
    });
    let reaches = |host: &str, port: u16| listed.reaches("listed", host, port);
    // Addresses and networks are open from the start, and nothing else is.
    assert_eq!(reaches("198.51.100.40", 8000), "reached");
    assert_eq!(reaches("192.168.77.10", 8001), "reached");
    listed.is_refused("listed", "192.168.77.10", 8000);
    let datagram = "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.settimeout(2)\ns.connect(('198.51.100.50',9))\ns.send(b'x')\nresult=s.recv(1)";
    let got = listed.inside("listed", datagram);
    assert!(got.contains("No route"), "{got}");
    for address in [
        "198.51.100.10",
        "198.51.100.11",
        "198.51.100.12",
        "10.250.0.10",
    ] {
        assert!(
            from_host(address, 8000),
            "without the wall {address} is reached"
        );
        listed.is_refused("listed", address, 8000);
    }
    // Names that are listed: exact, by a wildcard, by another name, with a port.
    assert_eq!(reaches("good.test", 8000), "reached");
    assert_eq!(reaches("GOOD.test", 8001), "reached");
    assert_eq!(reaches(INTERNET, 8000), "reached");
    assert_eq!(reaches("a.wild.test", 8000), "reached");
    assert_eq!(reaches("b.a.wild.test", 8001), "reached");
    assert_eq!(reaches("alias.test", 8000), "reached");
    assert_eq!(reaches("port.test", 8001), "reached");
    listed.is_refused("listed", "port.test", 8000);
    // Names that are not.
    for name in [
        "also.test",
        "wild.test",
        "test",
        "cdn.example",
        "good.test.evil.test",
        "none.test",
    ] {
        listed.is_unknown("listed", name);
    }
    assert_eq!(listed.looks_up("open", "also.test"), "198.51.100.11");
    assert_eq!(listed.reaches("open", "also.test", 8000), "reached");
    // There is no IPv6.
    let six = "import socket\nresult=socket.getaddrinfo('good.test',80,socket.AF_INET6)";
    assert!(listed.inside("listed", six).contains("gaierror"));
    // A listed name leads to nothing that is not public, whatever its owner answers, and whenever.
    for name in [
        "meta.test",
        "cloud.test",
        "private.test",
        "loopback.test",
        "sly.test",
        "loop.test",
        "broken.test",
    ] {
        listed.is_unknown("listed", name);
    }
    assert_eq!(listed.looks_up("listed", "mixed.test"), INTERNET);
    assert_eq!(listed.looks_up("listed", "flip.test"), "198.51.100.12");
    listed.is_unknown("listed", "flip.test");
    for address in ["169.254.169.254", "100.100.100.200", "10.250.0.10"] {
        let got = reaches(address, 8000);
        assert!(
            got.contains("timed out") || got.contains("No route"),
            "{address}: {got}"
        );
    }
    // Nor to the host.
    let listener = std::net::TcpListener::bind("198.51.100.1:0").expect("bind");
    let port = listener.local_addr().expect("an address").port();
    assert_eq!(listed.looks_up("listed", "host.test"), "198.51.100.1");
    let got = reaches("host.test", port);
    assert!(got.contains("timed out"), "{got}");
    // What one may reach is nothing to another.
    assert_eq!(listed.reaches("narrow", "198.51.100.11", 8000), "reached");
    listed.is_refused("narrow", "198.51.100.11", 8001);
    listed.is_refused("narrow", INTERNET, 8000);
    listed.is_unknown("narrow", "good.test");
    // Over TCP it is the same; and the name server that answers everything is out of reach.
    let names = listed.name_server("listed");
    let everything = listed.name_server("open");
    assert_ne!(names, everything);
    let ask = |name: &str| {
        let source = format!(
            "import socket,struct\nname=b''.join(bytes([len(l)])+l.encode() for l in '{name}'.split('.'))+b'\\0'\nq=struct.pack('>HHHHHH',7,256,1,0,0,0)+name+struct.pack('>HH',1,1)\ns=socket.create_connection(('{names}',53),2)\ns.sendall(struct.pack('>H',len(q))+q)\nn=struct.unpack('>H',s.recv(2,socket.MSG_WAITALL))[0]\na=s.recv(n,socket.MSG_WAITALL)\nresult=(a[3]&15,a[7])"
        );
        listed.inside("listed", &source)
    };
    assert_eq!(
        (ask("good.test"), ask("also.test")),
        ("(0, 1)".into(), "(5, 0)".into())
    );
    let got = reaches(&everything, 53);
    assert!(got.contains("timed out"), "{got}");
    // Another app on the same bridge.
    for app in ["narrow", "open"] {
        let neighbour = listed.inside(app, OWN);
        assert!(neighbour.starts_with("10."), "{neighbour}");
        let got = reaches(&neighbour, 8080);
        assert!(
            got.contains("timed out") || got.contains("No route"),
            "{got}"
        );
    }
    // Its rules go with it.
    let table = table_of(&names);
    assert_eq!(rules_of(&table).matches(" : jump l").count(), 2);
    server.ok(&["stop", "listed"]);
    eventually("they are gone", 20, || {
        rules_of(&table).matches(" : jump l").count() == 1
    });
}

#[test]
fn what_no_list_may_hold_is_not_deployed() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let listed = Listed::start(&[]);
    for (entry, said) in [
        ("169.254.0.0/16", "metadata"),
        ("169.254.169.254:80", "metadata"),
        ("100.100.100.200", "metadata"),
        ("127.0.0.1", "this machine"),
        ("0.0.0.0/0", "internet"),
        ("::1", "no IPv6"),
        ("10.250.0.0/16", "egress.allow"),
        ("192.168.0.0/16", "egress.allow"),
    ] {
        let app = python_app("greedy", &format!("egress = ['good.test', '{entry}']"), "g");
        let (_, got) = listed
            .server()
            .fails(&["deploy", &app.path().to_string_lossy()]);
        assert!(got.contains(said), "{entry}: {got}");
    }
    assert!(listed.server().app("greedy").is_null());
}

/// The resolver, the warden and the rules may all go, and nothing more is open for it.
#[test]
fn a_list_outlives_those_who_keep_it() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let mut listed = Listed::start(&[]);
    listed
        .server()
        .deploy(python_app("listed", LIST, "l").path());
    eventually("the world answers", 10, || {
        from_host(INTERNET, 8000) && from_host(INTERNET, 53)
    });
    assert_eq!(listed.reaches("listed", "good.test", 8000), "reached");
    let holds = |listed: &Listed| {
        listed.is_refused("listed", "198.51.100.11", 8000);
        listed.is_refused("listed", "10.250.0.10", 8000);
        assert_eq!(listed.reaches("listed", "198.51.100.40", 8000), "reached");
    };
    // The resolver is killed. What was open stays open, and nothing else is.
    let before = listed.resolver().expect("a resolver");
    kill(before as u32);
    holds(&listed);
    assert_eq!(listed.reaches("listed", INTERNET, 8000), "reached");
    eventually("another is there", 10, || {
        listed.resolver().is_some_and(|now| now != before)
    });
    eventually("it knows the list", 10, || {
        listed.looks_up("listed", "a.wild.test") == "198.51.100.12"
    });
    listed.is_unknown("listed", "also.test");
    // One that begins while there is none.
    kill(listed.resolver().expect("a resolver") as u32);
    listed
        .server()
        .deploy(python_app("later", "egress = ['also.test']", "l").path());
    eventually("it is known, too", 10, || {
        listed.looks_up("later", "also.test") == "198.51.100.11"
    });
    listed.is_unknown("later", "good.test");
    // Somebody reloads the host's firewall.
    let table = table_of(&listed.name_server("listed"));
    let done = Command::new("nft")
        .args(["delete", "table", "inet", &table])
        .status();
    assert!(done.expect("nft runs").success());
    eventually("the rules are back", 10, || {
        rules_of(&table).contains(": jump l")
    });
    holds(&listed);
    assert_eq!(
        listed.reaches("listed", INTERNET, 8000),
        "reached",
        "it is open still"
    );
    // The warden is killed; the next one finds the instances and their lists.
    let data = listed.server.take().expect("it runs").into_data();
    listed.begin(data);
    eventually("it serves", 20, || {
        listed.reaches("listed", "198.51.100.40", 8000) == "reached"
    });
    holds(&listed);
    listed.is_refused("later", INTERNET, 8000);
    eventually("names are asked for again", 10, || {
        listed.reaches("listed", "good.test", 8000) == "reached"
    });
    listed.is_unknown("listed", "also.test");
}

/// Containers of a real engine; and two releases of one app with different lists.
#[test]
fn a_list_holds_in_a_container() {
    let Some(engine) = Docker::start() else {
        return;
    };
    // In the engine's network, in which this thread is, too.
    let _world = World::new();
    let listed = Listed::start(&["--docker", &engine.socket()]);
    let server = listed.server();
    eventually("the engine is known", 10, || {
        server.ok(&["doctor"]).contains("Docker ")
    });
    eventually("the world answers", 10, || {
        from_host(INTERNET, 8000) && from_host(INTERNET, 53)
    });
    let app = |name: &str, list: &str| {
        let more = format!(
            "image = 'hutong-test/python:1'\nenv.BIND = '0.0.0.0'\n{list}\n[container]\nmount = '/app'\nuser = 'app'\n"
        );
        python_app(name, &more, "c")
    };
    server.deploy(app("boxed", LIST).path());
    server.deploy(app("free", "egress = 'internet'").path());
    let reaches = |host: &str, port: u16| listed.reaches("boxed", host, port);
    assert_eq!(reaches("198.51.100.40", 8000), "reached");
    listed.is_refused("boxed", INTERNET, 8000);
    assert_eq!(reaches("good.test", 8000), "reached");
    assert_eq!(reaches("a.wild.test", 8000), "reached");
    assert_eq!(reaches("port.test", 8001), "reached");
    listed.is_refused("boxed", "port.test", 8000);
    for name in ["also.test", "meta.test", "private.test", "sly.test"] {
        listed.is_unknown("boxed", name);
    }
    for address in ["169.254.169.254", "10.250.0.10", "198.51.100.11"] {
        let got = reaches(address, 8000);
        assert!(
            got.contains("timed out") || got.contains("No route"),
            "{address}: {got}"
        );
    }
    assert_eq!(listed.reaches("free", "also.test", 8000), "reached");
    // Another container, in another network.
    let neighbour = listed.inside("free", OWN);
    assert!(neighbour.starts_with("10."), "{neighbour}");
    let got = reaches(&neighbour, 8080);
    assert!(
        got.contains("timed out") || got.contains("No route"),
        "{neighbour}: {got}"
    );
    // The next release has another list; what only the one before had is gone.
    server.deploy(app("boxed", "egress = ['also.test:8000']").path());
    assert_eq!(reaches("also.test", 8000), "reached");
    listed.is_refused("boxed", "also.test", 8001);
    listed.is_unknown("boxed", "good.test");
    listed.is_refused("boxed", "198.51.100.40", 8000);
    // Whoever keeps the list is killed.
    kill(server.role("docker"));
    kill(server.role("resolver"));
    listed.is_refused("boxed", "198.51.100.40", 8000);
    eventually("names are found again", 20, || {
        listed.looks_up("boxed", "also.test") == "198.51.100.11"
    });
    eventually("the driver is there again", 20, || {
        server.ok(&["doctor"]).contains("Docker ")
    });
    server.deploy(app("boxed", LIST).path());
    assert_eq!(reaches("good.test", 8000), "reached");
    listed.is_unknown("boxed", "also.test");
}
