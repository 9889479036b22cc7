//! Certificates from a real ACME authority, Debian's pebble with its DNS server: every challenge, renewal
//! under load, an authority that forgot us, is down, or wants to be left alone.
//!
//! Everything is on loopback: the names are in a hosts file of the server's own (its mount namespace), and
//! lead to 127.0.0.77.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::traffic::Traffic;
use hutong_testkit::{eventually, is_root};

const ADDRESS: &str = "127.0.0.77";

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("bound").port()
}

struct Authority {
    folder: tempfile::TempDir,
    pebble: Option<Child>,
    names: Child,
    directory: u16,
    management: u16,
    names_management: u16,
    names_port: u16,
}

impl Authority {
    fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("hutong-acme-")
            .tempdir()
            .expect("tempdir");
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))
            .expect("mode");
        let path = |name: &str| folder.path().join(name).display().to_string();
        run(&[
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "5",
            "-subj",
            "/CN=test root",
            "-keyout",
            &path("ca.key"),
            "-out",
            &path("ca.pem"),
        ]);
        run(&[
            "openssl",
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-keyout",
            &path("own.key"),
            "-out",
            &path("own.csr"),
        ]);
        std::fs::write(
            path("own.ext"),
            "subjectAltName=DNS:localhost,IP:127.0.0.1\n",
        )
        .expect("write");
        run(&[
            "openssl",
            "x509",
            "-req",
            "-in",
            &path("own.csr"),
            "-CA",
            &path("ca.pem"),
            "-CAkey",
            &path("ca.key"),
            "-CAcreateserial",
            "-days",
            "5",
            "-extfile",
            &path("own.ext"),
            "-out",
            &path("own.pem"),
        ]);
        let (names_port, names_management) = (free_port(), free_port());
        let names = Command::new("pebble-challtestsrv")
            .args([
                "-defaultIPv4",
                ADDRESS,
                "-defaultIPv6",
                "",
                "-http01",
                "",
                "-https01",
                "",
                "-tlsalpn01",
                "",
            ])
            .args(["-dns01", &format!("127.0.0.1:{names_port}")])
            .args(["-management", &format!("127.0.0.1:{names_management}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("pebble-challtestsrv runs");
        let mut authority = Authority {
            folder,
            pebble: None,
            names,
            directory: free_port(),
            management: free_port(),
            names_management,
            names_port,
        };
        authority.restart(90);
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A pebble that knows nothing, whose certificates are good for so many seconds.
    fn restart(&mut self, seconds: u32) {
        self.restart_looking_at(seconds, 80, 443);
    }

    /// One that finds challenges at these ports only.
    fn restart_looking_at(&mut self, seconds: u32, http: u16, tls: u16) {
        self.stop();
        let config = serde_json::json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.directory),
            "managementListenAddress": format!("127.0.0.1:{}", self.management),
            "certificate": self.path("own.pem"), "privateKey": self.path("own.key"),
            "httpPort": http, "tlsPort": tls, "ocspResponderURL": "",
            "externalAccountBindingRequired": false, "certificateValidityPeriod": seconds,
        }});
        std::fs::write(self.path("pebble.json"), config.to_string()).expect("write");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("pebble.log"))
            .expect("log");
        let pebble = Command::new("pebble")
            .arg("-config")
            .arg(self.path("pebble.json"))
            .args(["-dnsserver", &format!("127.0.0.1:{}", self.names_port)])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("pebble runs");
        self.pebble = Some(pebble);
        let directory = self.directory;
        eventually("pebble listens", 20, || {
            std::net::TcpStream::connect(("127.0.0.1", directory)).is_ok()
        });
        let root = Command::new("curl")
            .args(["-sS", "--noproxy", "*", "--cacert"])
            .arg(self.path("ca.pem"))
            .arg(format!("https://localhost:{}/roots/0", self.management))
            .output()
            .expect("curl runs");
        assert!(root.status.success(), "{root:?}");
        std::fs::write(self.path("root.pem"), root.stdout).expect("write");
    }

    fn stop(&mut self) {
        if let Some(mut pebble) = self.pebble.take() {
            let _ = pebble.kill();
            let _ = pebble.wait();
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("pebble.log")).unwrap_or_default()
    }

    /// The server file, for a challenge.
    fn config(&self, directory: u16, more: &str) -> String {
        let file = self.path("server.toml");
        let text = format!(
            "[acme]\ndirectory = 'https://localhost:{directory}/dir'\nroots = '{}'\nemail = 'me@hutong.example'\n{more}\n",
            self.path("ca.pem").display()
        );
        std::fs::write(&file, text).expect("write");
        file.display().to_string()
    }

    fn serve(&self, directory: u16, more: &str) -> Server {
        let data = tempfile::Builder::new()
            .prefix("hutong-test-")
            .tempdir()
            .expect("tempdir");
        self.serve_in(data, directory, more)
    }

    fn serve_in(&self, data: tempfile::TempDir, directory: u16, more: &str) -> Server {
        let hosts = self.path("hosts");
        let names = ["shop", "alpn", "second", "third", "fourth"]
            .map(|name| format!("{ADDRESS} {name}.hutong.example\n"));
        std::fs::write(&hosts, format!("127.0.0.1 localhost\n{}", names.concat())).expect("write");
        let config = self.config(directory, more);
        let script = format!(
            "mount --bind '{}' /etc/hosts && exec \"$@\"",
            hosts.display()
        );
        Server::start_through_in(
            &["unshare", "--mount", "sh", "-c", &script, "sh"],
            data,
            &[
                "--http",
                "127.0.0.77:80",
                "--https",
                "127.0.0.77:443",
                "--config",
                &config,
            ],
        )
    }

    fn curl(&self, host: &str) -> (bool, String) {
        let output = Command::new("curl")
            .args(["-sSv", "--max-time", "10", "--noproxy", "*", "--cacert"])
            .arg(self.path("root.pem"))
            .args([
                "--resolve",
                &format!("{host}:443:{ADDRESS}"),
                &format!("https://{host}/"),
            ])
            .output()
            .expect("curl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (
            output.status.success() && text.contains("hello"),
            text + &error,
        )
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.stop();
        let _ = self.names.kill();
        let _ = self.names.wait();
    }
}

fn run(words: &[&str]) {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{words:?}: {output:?}");
}

fn deploy(server: &Server, name: &str, domains: &str) {
    let spec =
        format!("name='{name}'\nstatic='.'\ndomains=[{domains}]\n[https]\nexcept=['/plain']");
    let folder = app_folder(&[
        ("hutong.toml", &spec),
        ("index.html", "hello"),
        ("plain", "plain"),
    ]);
    server.deploy(folder.path());
}

fn certificate(server: &Server, host: &str) -> serde_json::Value {
    let list = server.json(&["cert", "list"]);
    let list = list.as_array().expect("a list").clone();
    let found = list.into_iter().find(|one| one["hosts"][0] == host);
    found.unwrap_or_default()
}

#[test]
fn a_real_authority_signs_renews_and_fails() {
    if !is_root() {
        return;
    }
    let mut authority = Authority::start();
    http_01_renewal_and_trouble(&mut authority);
    tls_alpn_01(&mut authority);
    dns_01_wildcard(&authority);
    the_authority_s_wish(&mut authority);
    rate_limited(&authority);
}

fn http_01_renewal_and_trouble(authority: &mut Authority) {
    authority.restart_looking_at(30, 80, 1);
    let server = authority.serve(authority.directory, "");
    deploy(
        &server,
        "shop",
        "'shop.hutong.example', 'elsewhere.hutong.example'",
    );
    eventually("a certificate by http-01", 30, || {
        authority.curl("shop.hutong.example").0
    });
    let first = certificate(&server, "shop.hutong.example");
    assert_eq!(first["source"], "acme");
    assert!(
        first["issuer"]
            .as_str()
            .is_some_and(|issuer| issuer.contains("Pebble")),
        "{first}"
    );
    // A name that does not lead here is not even ordered, and the owner reads why.
    eventually("the other name's problem is told", 20, || {
        certificate(&server, "elsewhere.hutong.example")["problem"].is_string()
    });
    let waits = certificate(&server, "elsewhere.hutong.example");
    let problem = waits["problem"].as_str().expect("a problem").to_owned();
    assert!(problem.contains("elsewhere.hutong.example"), "{problem}");
    assert!(waits["next_try"].is_u64(), "{waits}");
    assert!(
        !authority.log().contains("elsewhere.hutong.example"),
        "no order for it"
    );
    // Good for 30 s, so renewed within 20; visitors notice nothing.
    let http = format!("{ADDRESS}:80");
    let traffic = Traffic::start(&http, "shop.hutong.example", "/plain", 100, 4);
    eventually("it is renewed", 40, || {
        let now = certificate(&server, "shop.hutong.example");
        now["fingerprint"] != first["fingerprint"] && authority.curl("shop.hutong.example").0
    });
    let report = traffic.finish();
    assert!(report.failed.is_empty(), "{report:?}");
    // The authority forgets all accounts: another one is made.
    authority.restart(90);
    deploy(&server, "second", "'second.hutong.example'");
    eventually("a certificate with a new account", 30, || {
        authority.curl("second.hutong.example").0
    });
    // An account that was revoked is as good as none.
    let account = server.data.path().join("control/acme-account.json");
    revoke(authority, &account);
    deploy(&server, "fourth", "'fourth.hutong.example'");
    eventually("a certificate after the revocation", 30, || {
        authority.curl("fourth.hutong.example").0
    });
    // It is down: what there is goes on, and the reason is told.
    authority.stop();
    deploy(&server, "third", "'third.hutong.example'");
    eventually("the reason is told", 60, || {
        certificate(&server, "third.hutong.example")["problem"].is_string()
    });
    assert!(authority.curl("second.hutong.example").0);
    authority.restart(90);
    server.ok(&["cert", "renew", "third.hutong.example"]);
    eventually("once it is back it signs", 30, || {
        authority.curl("third.hutong.example").0
    });
    let text = server.ok(&["cert", "list"]);
    assert!(
        text.contains("third.hutong.example") && text.contains("acme"),
        "{text}"
    );
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        std::fs::metadata(account).expect("kept").mode() & 0o777,
        0o600
    );
}

fn revoke(authority: &Authority, account: &Path) {
    let saved = std::fs::read_to_string(account).expect("an account");
    let roots = std::fs::read_to_string(authority.path("ca.pem")).expect("roots");
    let settings = hutong_acme::account::Settings {
        directory: format!("https://localhost:{}/dir", authority.directory),
        contact: Vec::new(),
        eab: None,
        roots_pem: Some(roots),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (account, _) = hutong_acme::account::account(&settings, Some(&saved))
            .await
            .expect("the account");
        account.deactivate().await.expect("deactivated");
    });
}

fn tls_alpn_01(authority: &mut Authority) {
    // Nobody listens at its HTTP port.
    authority.restart_looking_at(90, 1, 443);
    let server = authority.serve(authority.directory, "challenge = 'tls-alpn-01'");
    deploy(&server, "alpn", "'alpn.hutong.example'");
    eventually("a certificate by tls-alpn-01", 30, || {
        authority.curl("alpn.hutong.example").0
    });
}

fn dns_01_wildcard(authority: &Authority) {
    let script = authority.path("dns.py");
    let text = format!(
        "import json,os,sys,time,urllib.request
what,name,value=sys.argv[1:4]
path='set-txt' if what=='present' else 'clear-txt'
body=json.dumps({{'host':name+'.','value':value}}).encode()
opener=urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
opener.open('http://127.0.0.1:{}/'+path,body,timeout=10).read()
open('{}','a').write(what+' '+name+chr(10))
while 'kept' in name and what=='cleanup' and not os.path.exists('{}'): time.sleep(0.02)
",
        authority.names_management,
        authority.path("dns.log").display(),
        authority.path("go").display()
    );
    std::fs::write(&script, text).expect("write");
    let log = authority.path("dns.log");
    std::fs::File::create(&log).expect("create");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o666)).expect("mode");
    let more = format!(
        "challenge = 'dns-01'\n[acme.dns]\ntype = 'exec'\nprogram = ['/usr/bin/python3', '{}']",
        script.display()
    );
    let server = authority.serve(authority.directory, &more);
    deploy(&server, "wild", "'*.wild.hutong.example'");
    eventually("a wildcard by dns-01", 40, || {
        authority.curl("any.wild.hutong.example").0
    });
    let done = std::fs::read_to_string(&log).expect("read");
    assert!(
        done.contains("present _acme-challenge.wild.hutong.example"),
        "{done}"
    );
    assert!(
        done.contains("cleanup _acme-challenge.wild.hutong.example"),
        "{done}"
    );
    unkept(authority, &server, &log);
}

/// The gateway dies when a certificate was signed for it: the next one gets it without another order.
fn unkept(authority: &Authority, server: &Server, log: &Path) {
    let done = || std::fs::read_to_string(log).expect("read");
    deploy(server, "kept", "'kept.hutong.example'");
    eventually("it is all but signed", 30, || {
        done().contains("cleanup _acme-challenge.kept.hutong.example")
    });
    let gateway = server.role("gateway");
    let signal = |name: &str| run(&["kill", name, &gateway.to_string()]);
    signal("-STOP");
    std::fs::write(authority.path("go"), "").expect("write");
    eventually("the owner reads that the gateway is silent", 30, || {
        let problem = certificate(server, "kept.hutong.example")["problem"].clone();
        problem.as_str().is_some_and(|p| p.contains("gateway"))
    });
    signal("-KILL");
    eventually("the next gateway has the certificate", 30, || {
        authority.curl("kept.hutong.example").0
    });
    let orders = done().matches("present _acme-challenge.kept").count();
    assert_eq!(orders, 1, "{}", done());
}

/// An authority that wants a certificate back before its time (RFC 9773), and says when.
fn the_authority_s_wish(authority: &mut Authority) {
    authority.restart(36_000);
    let port = free_port();
    let script = authority.path("wish.py");
    let text = format!(
        "import http.server,json,ssl,time,urllib.request
opener=urllib.request.build_opener(urllib.request.ProxyHandler({{}}),urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile='{ca}')))
first=[]
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        headers=[]
        if self.path=='/dir':
            body=json.load(opener.open('https://localhost:{pebble}/dir',timeout=10))
            body['renewalInfo']='https://localhost:{port}/wish'
        else:
            which=self.path.split('/')[-1]
            which in first or len(first)<2 and first.append(which)
            at=time.time()-7200 if which in first else time.time()+86400
            stamp=lambda t: time.strftime('%Y-%m-%dT%H:%M:%SZ',time.gmtime(t))
            body={{'suggestedWindow':{{'start':stamp(at),'end':stamp(at+3600)}}}}
            headers=[('Retry-After','60')]
            print(which,flush=True)
        text=json.dumps(body).encode()
        self.send_response(200)
        for k,v in headers: self.send_header(k,v)
        self.send_header('Content-Length',str(len(text))); self.end_headers(); self.wfile.write(text)
    def log_message(self,*a): pass
s=http.server.ThreadingHTTPServer(('127.0.0.1',{port}),H)
c=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); c.load_cert_chain('{cert}','{key}')
s.socket=c.wrap_socket(s.socket,server_side=True); s.serve_forever()
",
        ca = authority.path("ca.pem").display(),
        pebble = authority.directory,
        cert = authority.path("own.pem").display(),
        key = authority.path("own.key").display(),
    );
    std::fs::write(&script, text).expect("write");
    let asked = authority.path("wish.log");
    let wishful = Command::new("/usr/bin/python3")
        .arg(&script)
        .stdout(std::fs::File::create(&asked).expect("create"))
        .spawn()
        .expect("it runs");
    let wishful = Ended(wishful);
    eventually("the authority listens", 10, || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let server = authority.serve(port, "addresses = ['127.0.0.77']");
    deploy(&server, "shop", "'shop.hutong.example'");
    // Good for ten hours, and another one at once: the window for the first is over.
    let asked = || std::fs::read_to_string(&asked).expect("read");
    eventually("it asks about the second, too", 60, || {
        asked().lines().count() >= 2
    });
    let (first, last) = (
        asked().lines().next().map(str::to_owned),
        asked().lines().last().map(str::to_owned),
    );
    assert_ne!(first, last);
    // It would have that one back, too, and whatever comes after it: not today. The issuer has looked at all names again
    // when one that comes later has its certificate.
    let second = certificate(&server, "shop.hutong.example");
    deploy(&server, "late", "'late.test'");
    eventually("another name has a certificate", 20, || {
        certificate(&server, "late.test")["not_after"].is_u64()
    });
    let still = certificate(&server, "shop.hutong.example");
    assert_eq!(still["fingerprint"], second["fingerprint"]);
    // Its owner may want another one nevertheless. Of the third the authority says: tomorrow. It ends before.
    server.ok(&["cert", "renew", "shop.hutong.example"]);
    eventually("the owner sees when it is to be renewed", 30, || {
        let third = certificate(&server, "shop.hutong.example");
        // Not after the end of its life, whatever the authority would like.
        let (renews, ends) = (third["renews_at"].as_u64(), third["not_after"].as_u64());
        renews
            .zip(ends)
            .is_some_and(|(at, end)| end - at == 3_600_000)
    });
    drop(wishful);
}

/// An authority that only says: leave me alone for two hours.
fn rate_limited(authority: &Authority) {
    let port = free_port();
    let script = authority.path("limited.py");
    let text = format!(
        "import http.server,json,ssl
asked=0
class H(http.server.BaseHTTPRequestHandler):
    def answer(self,code,body,headers=()):
        text=json.dumps(body).encode()
        self.send_response(code)
        for k,v in headers: self.send_header(k,v)
        self.send_header('Replay-Nonce','abcd'); self.send_header('Content-Length',str(len(text))); self.end_headers(); self.wfile.write(text)
    def do_GET(self):
        u='https://localhost:{port}'
        self.answer(200,{{'newNonce':u+'/nonce','newAccount':u+'/account','newOrder':u+'/order','revokeCert':u+'/r','keyChange':u+'/k'}})
    def do_HEAD(self):
        self.send_response(200); self.send_header('Replay-Nonce','abcd'); self.end_headers()
    def do_POST(self):
        print('asked',flush=True)
        self.answer(429,{{'type':'urn:ietf:params:acme:error:rateLimited','detail':'too many of you'}},[('Content-Type','application/problem+json'),('Retry-After','7200')])
    def log_message(self,*a): pass
s=http.server.ThreadingHTTPServer(('127.0.0.1',{port}),H)
c=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); c.load_cert_chain('{cert}','{key}')
s.socket=c.wrap_socket(s.socket,server_side=True); s.serve_forever()
",
        cert = authority.path("own.pem").display(),
        key = authority.path("own.key").display(),
    );
    std::fs::File::create(&script)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .expect("write");
    let asked = authority.path("asked.log");
    let log = std::fs::File::create(&asked).expect("create");
    let limited = Command::new("/usr/bin/python3")
        .arg(&script)
        .stdout(log)
        .spawn()
        .expect("it runs");
    let limited = Ended(limited);
    eventually("the authority listens", 10, || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let server = authority.serve(port, "addresses = ['127.0.0.77']");
    deploy(&server, "shop", "'shop.hutong.example'");
    eventually("the limit is told", 20, || {
        certificate(&server, "shop.hutong.example")["problem"].is_string()
    });
    let waits = certificate(&server, "shop.hutong.example");
    assert!(
        waits["problem"]
            .as_str()
            .is_some_and(|p| p.contains("too many of you")),
        "{waits}"
    );
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("now")
        .as_millis() as u64;
    let next = waits["next_try"].as_u64().expect("a time");
    assert!(next > now + 7_000_000, "{waits}");
    // Nothing makes it ask again: neither another deployment nor a restart.
    deploy(&server, "second", "'second.hutong.example'");
    let server = authority.serve_in(server.into_data(), port, "addresses = ['127.0.0.77']");
    eventually("the restarted server knows", 20, || {
        certificate(&server, "shop.hutong.example")["next_try"].as_u64() == Some(next)
    });
    // A local name that comes later is served: the issuer has looked at all names since.
    deploy(&server, "late", "'late.test'");
    eventually("another name has a certificate", 20, || {
        certificate(&server, "late.test")["not_after"].is_u64()
    });
    assert!(
        certificate(&server, "second.hutong.example")["problem"]
            .as_str()
            .is_some_and(|p| p.contains("too many of you")),
        "the authority's limit is told for every name"
    );
    assert_eq!(count(&asked), 1);
    let (code, text) = server.fails(&["cert", "renew", "second.hutong.example"]);
    assert!(code == 1 && text.contains("left alone"), "{text}");
    drop(limited);
}

fn count(asked: &Path) -> usize {
    std::fs::read_to_string(asked)
        .unwrap_or_default()
        .lines()
        .count()
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
