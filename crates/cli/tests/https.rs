//! HTTPS as visitors see it, with curl: certificates by name, both protocols, redirects, exchange under load.

use std::path::{Path, PathBuf};
use std::process::Command;

use hutong_testkit::eventually;
use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::traffic::Traffic;
use hutong_testkit::visitor::get;

const ECHO: &str = "import http.server,os
class H(http.server.BaseHTTPRequestHandler):
    protocol_version='HTTP/1.1'
    def do_GET(self):
        b=('%s %s\\n%s' % (self.command, self.path, self.headers)).encode()
        self.send_response(200); self.send_header('Content-Length', str(len(b))); self.end_headers(); self.wfile.write(b)
    def do_POST(self):
        n=int(self.headers.get('Content-Length') or 0)
        if self.headers.get('Transfer-Encoding'):
            n=0; b=b''
            while True:
                k=int(self.rfile.readline(),16)
                b+=self.rfile.read(k); self.rfile.readline()
                if k==0: break
        else: b=self.rfile.read(n)
        b=b'got %d' % len(b)
        self.send_response(200); self.send_header('Content-Length', str(len(b))); self.end_headers(); self.wfile.write(b)
    def log_message(self,*a): pass
class S(http.server.ThreadingHTTPServer): request_queue_size=128
S(('127.0.0.1',int(os.environ['PORT'])),H).serve_forever()
";

struct Visitor {
    port: String,
    root: PathBuf,
}

impl Visitor {
    fn new(server: &Server) -> Self {
        let root = server.data.path().join("root.pem");
        std::fs::write(&root, server.ok(&["cert", "ca"])).expect("write");
        Visitor {
            port: server.https.rsplit(':').next().expect("a port").into(),
            root,
        }
    }

    fn curl(&self, host: &str, path: &str, more: &[&str]) -> (bool, String) {
        self.trusting(&self.root, host, path, more)
    }

    fn trusting(&self, root: &Path, host: &str, path: &str, more: &[&str]) -> (bool, String) {
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "--noproxy", "*", "--cacert"])
            .arg(root)
            .args(["--resolve", &format!("{host}:{}:127.0.0.1", self.port)])
            .args(more)
            .arg(format!("https://{host}:{}{path}", self.port))
            .output()
            .expect("curl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text + &error)
    }
}

fn serve() -> (Server, Visitor) {
    let server = Server::start_with(&["--https", "127.0.0.1:0"]);
    let folder = app_folder(&[
        (
            "hutong.toml",
            "name='echo'\ncommand='/usr/bin/python3 app.py'\ndomains=['echo.test', '*.wild.test']\n[https]\nexcept=['/hook']\nhsts='30d'",
        ),
        ("app.py", ECHO),
    ]);
    server.deploy(folder.path());
    let visitor = Visitor::new(&server);
    eventually("the names have certificates", 20, || {
        visitor.curl("echo.test", "/", &[]).0 && visitor.curl("a.wild.test", "/", &[]).0
    });
    (server, visitor)
}

#[test]
fn names_get_certificates_and_both_protocols_are_served() {
    let (server, visitor) = serve();
    for protocol in ["--http1.1", "--http2"] {
        let (fine, text) = visitor.curl("echo.test", "/a/../b?q", &[protocol, "-i"]);
        assert!(fine, "{text}");
        let version = if protocol == "--http2" {
            "HTTP/2 200"
        } else {
            "HTTP/1.1 200"
        };
        assert!(text.starts_with(version), "{text}");
        let lower = text.to_lowercase();
        assert!(lower.contains("\nx-forwarded-proto: https"), "{text}");
        assert!(
            lower.contains("\nstrict-transport-security: max-age=2592000"),
            "{text}"
        );
        assert!(
            text.contains("GET /b?q\n") && lower.contains("\nhost: echo.test:"),
            "{text}"
        );
        // A body in one piece, and one whose length is not known before.
        let large = "x".repeat(300_000);
        let file = server.data.path().join("large");
        std::fs::write(&file, &large).expect("write");
        let body = format!("@{}", file.display());
        let (_, text) = visitor.curl("echo.test", "/", &[protocol, "--data-binary", &body]);
        assert_eq!(text, "got 300000");
        let more = [
            protocol,
            "-X",
            "POST",
            "-H",
            "Transfer-Encoding: chunked",
            "-H",
            "Expect:",
            "-T",
            &file.display().to_string(),
        ];
        let (_, text) = visitor.curl("echo.test", "/", &more);
        assert_eq!(text, "got 300000");
        // Nothing of it is left for whoever comes next over the app's connection.
        for _ in 0..5 {
            let (_, text) = visitor.curl("echo.test", "/next", &[protocol]);
            assert!(text.contains("GET /next"), "{text}");
        }
        let (_, text) = visitor.curl("echo.test", "/", &[protocol, "-I"]);
        assert!(text.contains(" 501"), "{text}");
    }
    // A name that nobody serves gets no certificate of another's.
    let (fine, text) = visitor.curl("other.test", "/", &["-k"]);
    assert!(!fine && text.contains("alert"), "{text}");
    let (fine, _) = visitor.curl("b.a.wild.test", "/", &["-k"]);
    assert!(!fine, "a wildcard stands for one label");
    for version in ["--tlsv1.2", "--tlsv1.3"] {
        let bound = if version == "--tlsv1.2" { "1.2" } else { "1.3" };
        assert!(
            visitor
                .curl("echo.test", "/", &[version, "--tls-max", bound])
                .0
        );
    }
}

#[test]
fn plain_requests_are_sent_to_https_but_for_exceptions() {
    let (server, visitor) = serve();
    let answer = get(&server.http, "echo.test", "/x?y=1");
    assert_eq!(answer.status, 301);
    let wanted = format!("https://echo.test:{}/x?y=1", visitor.port);
    assert_eq!(answer.header("location"), Some(wanted.as_str()));
    assert_eq!(get(&server.http, "echo.test", "/hook/a").status, 200);
    assert_eq!(get(&server.http, "echo.test", "/hooks").status, 301);
    // The text of an error page does not depend on who asks for a name that is not served.
    assert_eq!(get(&server.http, "other.test", "/").status, 404);
}

#[test]
fn a_certificate_is_exchanged_under_load_and_its_key_stays_inside() {
    let (server, visitor) = serve();
    let own = server.data.path().join("own");
    std::fs::create_dir(&own).expect("mkdir");
    let make = |name: &str, host: &str| -> (String, String) {
        let path = |ending: &str| own.join(format!("{name}.{ending}")).display().to_string();
        let (cert, key) = (path("pem"), path("key"));
        let done = Command::new("openssl")
            .args([
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
                "/CN=x",
            ])
            .args([
                "-addext",
                &format!("subjectAltName=DNS:{host}"),
                "-keyout",
                &key,
                "-out",
                &cert,
            ])
            .output()
            .expect("openssl runs");
        assert!(done.status.success(), "{done:?}");
        (cert, key)
    };
    let traffic = Traffic::start(&server.http, "echo.test", "/hook", 100, 4);
    // Visitors over TLS meanwhile: connections that stay, and new ones.
    let load = |arguments: &[&str]| {
        Command::new("h2load")
            .args(arguments)
            .arg("--connect-to")
            .arg(&server.https)
            .arg(format!("https://echo.test:{}/", visitor.port))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("h2load runs")
    };
    let loads = [load(&["-D4", "-c4", "-m4"]), load(&["--h1", "-D4", "-c4"])];
    let mut last = String::new();
    for round in 0..5 {
        let (cert, key) = make(&format!("c{round}"), "echo.test");
        server.ok(&["cert", "add", "echo", "--cert", &cert, "--key", &key]);
        let (fine, text) = visitor.trusting(Path::new(&cert), "echo.test", "/", &[]);
        assert!(fine, "the certificate is served at once: {text}");
        last = std::fs::read_to_string(&key).expect("read");
        traffic.goes_on(5);
    }
    let report = traffic.finish();
    assert!(report.failed.is_empty(), "{report:?}");
    for load in loads {
        let output = load.wait_with_output().expect("h2load ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(" 0 failed, 0 errored, 0 timeout"), "{text}");
        assert!(!text.contains(" 0 succeeded"), "{text}");
    }
    // The key is where the gateway's user reads it, and nowhere else.
    let kept = server.data.path().join("keys/own.echo.pem");
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(&kept).expect("kept");
    assert_eq!(found.mode() & 0o777, 0o600);
    let line = last.lines().nth(1).expect("a line of the key");
    let grep = Command::new("grep")
        .args(["-rlF", line])
        .arg(server.data.path())
        .output()
        .expect("grep");
    let places = String::from_utf8_lossy(&grep.stdout).into_owned();
    let places: Vec<&str> = places.lines().filter(|p| !p.contains("/own/")).collect();
    assert_eq!(places, [kept.to_str().expect("text")]);
    let list = server.ok(&["cert", "list", "--json"]);
    assert!(
        !list.contains("PRIVATE") && list.contains("own.echo"),
        "{list}"
    );
    // What is no certificate, or not this key's, changes nothing.
    let (cert, _) = make("other", "echo.test");
    let (_, key) = make("another", "echo.test");
    let refused = server.run(&["cert", "add", "echo", "--cert", &cert, "--key", &key]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("does not belong"),
        "{said}"
    );
    let refused = server.run(&["cert", "add", "echo", "--cert", &key, "--key", &key]);
    assert!(!refused.status.success());
    assert!(
        visitor
            .trusting(&own.join("c4.pem"), "echo.test", "/", &[])
            .0
    );
    // Without it the local authority signs again.
    server.ok(&["cert", "remove", "echo"]);
    eventually("the local certificate is back", 20, || {
        visitor.curl("echo.test", "/", &[]).0
    });
}
