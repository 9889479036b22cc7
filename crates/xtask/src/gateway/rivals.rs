//! nginx, HAProxy and Caddy, configured alike: upstream keep-alive, an access log, the same certificate,
//! TLS 1.3 with X25519.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hutong_testkit::eventually;

pub struct Rival {
    pub name: &'static str,
    pub plain: u16,
    pub tls: u16,
    child: Child,
}

/// Where every rival finds what it needs.
pub struct Ground<'a> {
    pub folder: &'a Path,
    /// The app's port on the host.
    pub app: u16,
    pub cert: &'a Path,
    pub key: &'a Path,
    pub site: &'a Path,
}

pub fn all(ground: &Ground<'_>) -> anyhow::Result<Vec<Rival>> {
    Ok(vec![nginx(ground)?, haproxy(ground)?, caddy(ground)?])
}

pub fn nginx(ground: &Ground<'_>) -> anyhow::Result<Rival> {
    let (plain, tls) = (free_port()?, free_port()?);
    let work = ground.folder.display();
    let config = format!(
        "daemon off; worker_processes 2; pid {work}/nginx.pid; error_log {work}/nginx.err crit; user root; worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{ include /etc/nginx/mime.types; sendfile on; tcp_nodelay on; access_log {work}/nginx.log; keepalive_requests 100000000; http2_max_concurrent_streams 128;
upstream app {{ server 127.0.0.1:{app}; keepalive 64; keepalive_requests 100000000; }}
server {{ listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl http2; ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.3; ssl_ecdh_curve X25519; ssl_session_tickets off;
location /site/ {{ alias {site}/; }}
location / {{ proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; }} }} }}\n",
        app = ground.app,
        cert = ground.cert.display(),
        key = ground.key.display(),
        site = ground.site.display(),
    );
    let file = ground.folder.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file);
    start("nginx", command, plain, tls)
}

pub fn haproxy(ground: &Ground<'_>) -> anyhow::Result<Rival> {
    let (plain, tls) = (free_port()?, free_port()?);
    let pem = ground.folder.join("haproxy.pem");
    let both = [fs::read(ground.cert)?, fs::read(ground.key)?].concat();
    fs::write(&pem, both)?;
    let config = format!(
        "global
 nbthread 2
 maxconn 4096
 log stdout format raw local0
 ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
 ssl-default-bind-curves X25519
defaults
 mode http
 log global
 option httplog
 option forwardfor
 timeout connect 5s
 timeout client 75s
 timeout server 60s
frontend f
 bind 127.0.0.1:{plain}
 bind 127.0.0.1:{tls} ssl crt {pem} alpn h2,http/1.1
 default_backend b
backend b
 http-reuse always
 server a 127.0.0.1:{app} pool-max-conn 64\n",
        pem = pem.display(),
        app = ground.app,
    );
    let file = ground.folder.join("haproxy.cfg");
    fs::write(&file, config)?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file);
    command.stdout(fs::File::create(ground.folder.join("haproxy.log"))?);
    start("HAProxy", command, plain, tls)
}

fn caddy(ground: &Ground<'_>) -> anyhow::Result<Rival> {
    let (plain, tls) = (free_port()?, free_port()?);
    let work = ground.folder.display();
    let config = format!(
        "{{\n admin off\n auto_https off\n storage file_system {work}/caddy\n}}
http://localhost:{plain}, http://127.0.0.1:{plain} {{\n bind 127.0.0.1\n log {{\n  output file {work}/caddy.log\n }}\n reverse_proxy 127.0.0.1:{app} {{\n  transport http {{\n   keepalive_idle_conns_per_host 64\n  }}\n }}\n}}
https://localhost:{tls} {{\n bind 127.0.0.1\n tls {cert} {key} {{\n  protocols tls1.3\n  curves x25519\n }}\n log {{\n  output file {work}/caddy-tls.log\n }}\n reverse_proxy 127.0.0.1:{app} {{\n  transport http {{\n   keepalive_idle_conns_per_host 64\n  }}\n }}\n}}\n",
        app = ground.app,
        cert = ground.cert.display(),
        key = ground.key.display(),
    );
    let file = ground.folder.join("Caddyfile");
    fs::write(&file, config)?;
    let mut command = Command::new("caddy");
    command
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(&file);
    command.env("HOME", ground.folder).env("GOMAXPROCS", "2");
    start("Caddy", command, plain, tls)
}

fn start(name: &'static str, mut command: Command, plain: u16, tls: u16) -> anyhow::Result<Rival> {
    let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
    for port in [plain, tls] {
        eventually("a rival listens", 20, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }
    Ok(Rival {
        name,
        plain,
        tls,
        child,
    })
}

impl Rival {
    /// The processes that do the work.
    pub fn workers(&self) -> Vec<u32> {
        let pid = self.child.id();
        let children = format!("/proc/{pid}/task/{pid}/children");
        let text = fs::read_to_string(children).unwrap_or_default();
        let children: Vec<u32> = text
            .split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect();
        if children.is_empty() {
            vec![pid]
        } else {
            children
        }
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.child.wait();
    }
}

pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}
