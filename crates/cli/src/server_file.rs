//! The server file (`/etc/hutong/server.toml`): the same keys as the flags of `serve`, which win.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use hutong_core::name;
use hutong_core::networks::Network;
use hutong_core::spec::{Place, explain};
use hutong_core::units;

use crate::error::CliError;

pub const DEFAULT_PATH: &str = "/etc/hutong/server.toml";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerFile {
    pub data_dir: Option<PathBuf>,
    pub http: Option<SocketAddr>,
    pub https: Option<SocketAddr>,
    pub api: Option<String>,
    /// The platform's own host, such as "hutong.example.com": `git push`, webhooks and the registry are answered there;
    /// default none, and then there are none of these.
    pub host: Option<Spanned<String>>,
    /// Where images are pushed to and pulled from on this machine, such as "127.0.0.1:5000": plain HTTP, loopback only;
    /// default none.
    pub registry: Option<Spanned<SocketAddr>>,
    /// The name by which the API is asked over HTTPS, where something that speaks TLS stands before it.
    pub api_host: Option<Spanned<String>>,
    pub workers: Option<usize>,
    #[serde(default)]
    pub accept_missing: Vec<String>,
    /// How many releases of each app are kept.
    pub keep_releases: Option<usize>,
    /// The bound of one upload, packed.
    upload_limit: Option<Spanned<String>>,
    #[serde(default)]
    pub build: Build,
    /// The authority that signs certificates: `hutong_acme::config`.
    acme: Option<Spanned<toml::Table>>,
    /// Networks that apps may name servers in which Hutong does not run (`upstream`); default none.
    #[serde(default)]
    pub allow_upstreams: Vec<Spanned<String>>,
    #[serde(default)]
    pub egress: Egress,
    /// Networks of proxies before this server: their word on who the visitor is counts.
    #[serde(default)]
    pub trusted_proxies: Vec<Spanned<String>>,
    /// The trusted proxies begin each connection with a PROXY protocol header.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Connections of one address (IPv6: of one /64) at once, except from this machine and trusted proxies;
    /// 0 for any number.
    pub max_connections_per_ip: Option<u32>,
    /// A Docker engine that apps from images may run on; default none.
    pub docker: Option<Docker>,
    /// What an app without `limits.disk` may keep in /data before it is stopped; default "5G".
    app_disk: Option<Spanned<String>>,
    /// Memory that apps and builds may be guaranteed in all; default nine tenths of the machine's, 256M less at least.
    app_memory: Option<Spanned<String>>,
    /// What is kept free on the disk; default a twentieth of it, at most "1G".
    disk_reserve: Option<Spanned<String>>,
    #[serde(skip)]
    pub app_disk_bytes: Option<u64>,
    #[serde(skip)]
    pub app_memory_bytes: Option<u64>,
    #[serde(skip)]
    pub disk_reserve_bytes: Option<u64>,
    #[serde(skip)]
    pub acme_json: Option<String>,
    #[serde(skip)]
    pub upload_bytes: Option<u64>,
}

/// The engine for apps from images.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Docker {
    /// Its socket; default /var/run/docker.sock.
    pub socket: Option<PathBuf>,
    /// Each app's network, of sixteen addresses, is taken from this one; default 10.212.0.0/20.
    pub networks: Option<Spanned<String>>,
    /// Containers that others started are routed by Traefik's labels; default false.
    #[serde(default)]
    pub labels: bool,
    /// Also those without the label `traefik.enable`; default false.
    expose_by_default: Option<Spanned<bool>>,
}

impl Docker {
    pub fn exposes_by_default(&self) -> bool {
        let expose = self.expose_by_default.as_ref();
        expose.is_some_and(|expose| *expose.get_ref())
    }
}

/// What apps may reach.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// Private networks that apps may list in `egress`, beside public ones; default none.
    #[serde(default)]
    pub allow: Vec<Spanned<String>>,
}

/// How builds reach the outside: mirrors, proxy, a company's certificate authority.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    pub pip_index: Option<String>,
    pub npm_registry: Option<String>,
    pub proxy: Option<String>,
    pub ca_bundle: Option<PathBuf>,
}

impl ServerFile {
    /// Reads `path`, or the default one if it is there.
    pub fn load(path: Option<&Path>) -> Result<Self, CliError> {
        let (path, must) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_PATH), false),
        };
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if !must && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(error) => Err(CliError::bad_file(format!("{}: {error}", path.display()))),
        }
    }

    /// Whether a text is a good one.
    pub fn check(path: &Path, text: &str) -> Result<(), CliError> {
        Self::parse(path, text).map(|_| ())
    }

    fn parse(path: &Path, text: &str) -> Result<Self, CliError> {
        let wrong = |at: usize, message: String| {
            let problem = Place { text }.problem(at, message);
            CliError::bad_file(format!(
                "{}:{}:{}: {}",
                path.display(),
                problem.line,
                problem.column,
                problem.message
            ))
        };
        let mut file: ServerFile = toml::from_str(text).map_err(|error| {
            wrong(
                error.span().map_or(0, |span| span.start),
                explain(error.message()),
            )
        })?;
        let size = |text: &Option<Spanned<String>>| {
            let parsed = text.as_ref().map(|text| {
                let bytes = units::parse_size(text.get_ref());
                bytes.map_err(|message| wrong(text.span().start, message))
            });
            parsed.transpose()
        };
        if let Some(host) = &file.host {
            let wrong = |message| wrong(host.span().start, message);
            let checked = name::parse_host(host.get_ref()).map_err(wrong)?;
            if checked.starts_with("*.") {
                return Err(wrong("`host` is one name, without `*`".into()));
            }
            let span = host.span();
            file.host = Some(Spanned::new(span, checked));
        }
        if let Some(registry) = &file.registry
            && !(registry.get_ref().ip().is_loopback() && registry.get_ref().port() >= 1024)
        {
            return Err(wrong(
                registry.span().start,
                "`registry` is an address on loopback with a port from 1024 on; for other machines there is `host`".into(),
            ));
        }
        file.upload_bytes = size(&file.upload_limit)?;
        file.app_disk_bytes = size(&file.app_disk)?;
        file.app_memory_bytes = size(&file.app_memory)?;
        file.disk_reserve_bytes = size(&file.disk_reserve)?;
        if let Some(host) = &file.api_host {
            let wrong = |message| wrong(host.span().start, message);
            let parsed = hutong_core::name::parse_host(host.get_ref()).map_err(wrong)?;
            if parsed.starts_with("*.") {
                return Err(wrong("api_host is one name".into()));
            }
        }
        for network in file.allow_upstreams.iter().chain(&file.trusted_proxies) {
            let parsed = network.get_ref().parse::<Network>();
            parsed.map_err(|message| wrong(network.span().start, message.to_string()))?;
        }
        for network in &file.egress.allow {
            let wrong = |message| wrong(network.span().start, message);
            let parsed = network.get_ref().parse::<Network>();
            let parsed = parsed.map_err(|message| wrong(message.to_string()))?;
            if parsed.v4().is_none() {
                return Err(wrong("apps have no IPv6".into()));
            }
        }
        if let Some(networks) = file
            .docker
            .as_ref()
            .and_then(|docker| docker.networks.as_ref())
        {
            let parsed = networks.get_ref().parse::<Network>();
            let prefix = networks
                .get_ref()
                .split_once('/')
                .and_then(|(_, p)| p.parse::<u8>().ok());
            let sound = parsed.is_ok() && prefix.is_some_and(|prefix| (8..=28).contains(&prefix));
            if !sound || networks.get_ref().contains(':') {
                let message =
                    "docker.networks is an IPv4 network of /8 to /28, such as 10.212.0.0/20";
                return Err(wrong(networks.span().start, message.into()));
            }
        }
        if let Some(docker) = &file.docker
            && let Some(expose) = &docker.expose_by_default
            && *expose.get_ref()
            && !docker.labels
        {
            let message = "docker.expose_by_default goes with docker.labels = true";
            return Err(wrong(expose.span().start, message.into()));
        }
        if file.proxy_protocol && file.trusted_proxies.is_empty() {
            let message = "proxy_protocol goes with trusted_proxies";
            return Err(wrong(0, message.into()));
        }
        if let Some(acme) = &file.acme {
            file.acme_json = Some(check_acme(acme).map_err(|m| wrong(acme.span().start, m))?);
        }
        Ok(file)
    }
}

/// serde quotes what it found instead of what it wanted: that may be a key.
fn without_value(message: &str) -> String {
    match (
        message.strip_prefix("invalid type: "),
        message.find(", expected "),
    ) {
        (Some(_), Some(at)) => format!("another type is wanted{}", &message[at..]),
        _ => message.to_owned(),
    }
}

/// The table as JSON, with the authority's own root read in.
fn check_acme(table: &Spanned<toml::Table>) -> Result<String, String> {
    let mut table = table.get_ref().clone();
    if let Some(path) = table.remove("roots") {
        let path = path
            .as_str()
            .ok_or("acme.roots is the path of a PEM file")?;
        let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        table.insert("roots_pem".into(), text.into());
    }
    let json = serde_json::to_string(&table).map_err(|error| error.to_string())?;
    let config: hutong_acme::config::Config = serde_json::from_str(&json)
        .map_err(|error| format!("acme: {}", explain(&without_value(&error.to_string()))))?;
    config.check()?;
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_have_a_place() {
        let parse = |text| ServerFile::parse(Path::new("s.toml"), text);
        let good = parse("http = '0.0.0.0:80'\nupload_limit = '1G'\n[build]\nproxy = 'http://p:1'");
        assert_eq!(good.expect("good").upload_bytes, Some(1 << 30));
        let cause = |text| parse(text).expect_err("a mistake").cause().to_owned();
        assert_eq!(
            cause("htpp = 'x'"),
            "s.toml:1:1: unknown key `htpp`; did you mean `http`?"
        );
        assert!(cause("\nupload_limit = '1'").starts_with("s.toml:2:16: "));
        assert!(cause("http = 'x'").starts_with("s.toml:1:8: "));
        let host = parse("host = 'Hutong.Example.com'")
            .expect("good")
            .host
            .expect("a host");
        assert_eq!(host.get_ref(), "hutong.example.com");
        for bad in ["host = 'http://a'", "host = '*.a.test'", "host = 'a:80'"] {
            assert!(cause(bad).starts_with("s.toml:1:8: "), "{bad}");
        }
        let named = parse("api = '127.0.0.1:9000'\napi_host = 'hutong.example.com'").expect("good");
        assert!(named.api_host.is_some());
        assert!(cause("api_host = 'https://x'").starts_with("s.toml:1:12: "));
        let labels = parse("[docker]\nlabels = true\nexpose_by_default = true");
        let docker = labels.expect("good").docker.expect("a table");
        assert!(docker.labels && docker.exposes_by_default());
        assert!(cause("[docker]\nexpose_by_default = true").starts_with("s.toml:2:21: "));
        let allowed = parse("[egress]\nallow = ['192.168.1.0/24', '10.0.0.5']").expect("good");
        assert_eq!(allowed.egress.allow.len(), 2);
        assert!(cause("[egress]\nallow = ['10.0.0.5/8']").starts_with("s.toml:2:10: "));
        assert!(cause("[egress]\nallow = ['fd00::/8']").ends_with("no IPv6"));
    }
}
