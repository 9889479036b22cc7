//! Requests per CPU-second of the proxying process, beside nginx with upstream keep-alive. The app
//! behind both is the same small C program, for us in its sandbox, for nginx on the host. Loopback only;
//! every round is bounded by wrk's own duration.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use hutong_testkit::eventually;
use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::visitor::get;

use crate::{Row, median, release_binary};

const ROUNDS: usize = 5;
const SECONDS: u32 = 3;

pub fn run() -> anyhow::Result<Vec<Row>> {
    let binary = release_binary()?;
    let server = Server::start_binary(&binary, &[]);
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    server.deploy(&examples.join("clock"));
    server.ok(&["scale", "clock", "1"]);
    let page = "x".repeat(4096);
    let site = app_folder(&[
        (
            "hutong.toml",
            "name='site'\ndomains=['site.test']\nstatic='public'",
        ),
        ("public/page.txt", &page),
    ]);
    server.deploy(site.path());
    let rival = Rival::start(&examples, site.path())?;
    let system = server.json(&["system"]);
    let gateway = system
        .as_array()
        .and_then(|list| list.iter().find(|p| p["role"] == "gateway"));
    let gateway = gateway.and_then(|p| p["pid"].as_u64()).unwrap_or(0) as u32;
    let mut rows = Vec::new();
    for (name, host, path, url) in [
        (
            "proxy, HTTP/1.1, 64 connections",
            "clock.localhost",
            "/healthz",
            rival.url("/healthz"),
        ),
        (
            "static file of 4 KiB, 64 connections",
            "site.test",
            "/page.txt",
            rival.url("/page.txt"),
        ),
    ] {
        let own = format!("http://{}{path}", server.http);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(round(&own, host, &[gateway])?);
            theirs.push(round(&url, host, &rival.workers())?);
        }
        rows.push(Row {
            name: format!("{name}: requests per CPU-second"),
            ours: median(ours),
            rival: Some(median(theirs)),
            unit: "req/CPU-s",
            must: 0.9,
            goal: 1.0,
            more_is_better: true,
        });
    }
    Ok(rows)
}

/// One round of wrk: requests answered per second of processor time of `pids`.
fn round(url: &str, host: &str, pids: &[u32]) -> anyhow::Result<f64> {
    let before: f64 = pids.iter().map(|pid| cpu_seconds(*pid)).sum();
    let output = Command::new("wrk")
        .args([
            "-t1",
            "-c64",
            &format!("-d{SECONDS}s"),
            "-H",
            &format!("Host: {host}"),
            url,
        ])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let used = pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>() - before;
    anyhow::ensure!(!text.contains("Non-2xx"), "{text}");
    let count = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in"))
        .and_then(|(count, _)| count.parse::<f64>().ok());
    let count = count.ok_or_else(|| anyhow::anyhow!("wrk said: {text}"))?;
    Ok(count / used.max(0.01))
}

fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

/// nginx with two workers, and the same app on the host.
struct Rival {
    nginx: Child,
    app: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Rival {
    fn start(examples: &Path, site: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let program = folder.path().join("clock");
        let built = Command::new("cc")
            .args(["-O2", "-o"])
            .arg(&program)
            .arg(examples.join("clock/main.c"))
            .status()?;
        anyhow::ensure!(built.success(), "cc failed");
        let (app_port, port) = (free_port()?, free_port()?);
        let app = Command::new(&program)
            .env("PORT", app_port.to_string())
            .stdout(Stdio::null())
            .spawn()?;
        let work = folder.path().display();
        let root = site.join("public");
        let config = format!(
            "daemon off; worker_processes 2; pid {work}/pid; error_log {work}/error.log; user root;\nevents {{ worker_connections 1024; }}\nhttp {{ include /etc/nginx/mime.types; sendfile on; access_log {work}/access.log; keepalive_requests 1000000;\nupstream app {{ server 127.0.0.1:{app_port}; keepalive 64; keepalive_requests 1000000; }}\nserver {{ listen 127.0.0.1:{port};\nlocation /page.txt {{ root {}; }}\nlocation / {{ proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; }} }} }}\n",
            root.display()
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config)?;
        let nginx = Command::new("nginx")
            .arg("-c")
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()?;
        let rival = Rival {
            nginx,
            app,
            port,
            _folder: folder,
        };
        let http = format!("127.0.0.1:{port}");
        eventually("nginx listens", 10, || {
            std::net::TcpStream::connect(&http).is_ok()
        });
        anyhow::ensure!(
            get(&http, "x", "/healthz").status == 200,
            "nginx does not answer"
        );
        Ok(rival)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn workers(&self) -> Vec<u32> {
        let pid = self.nginx.id();
        let children = format!("/proc/{pid}/task/{pid}/children");
        let text = std::fs::read_to_string(children).unwrap_or_default();
        text.split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect()
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let pid = self.nginx.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.nginx.wait();
        let _ = self.app.kill();
        let _ = self.app.wait();
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}
