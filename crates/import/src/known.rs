//! Images that are known by name: those whose work Hutong does itself, and those that speak something else than HTTP.

/// What does the work of a service, in place of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Its configuration is read, too.
    Traefik,
    Watchtower,
    Other,
}

/// A service that is not imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replaced {
    pub part: Part,
    pub text: &'static str,
}

const GATEWAY: &str =
    "the gateway takes requests by host and path, with HTTPS: say `domains` in hutong.toml";
const CERTIFICATES: &str =
    "certificates come and are renewed by themselves: the table [acme] of the server file";
const LOGS: &str =
    "output and access logs are kept for each app: `hutong logs APP`, `hutong logs APP --access`";
const NUMBERS: &str = "what runs, and what it uses, is shown by `hutong apps`, `hutong status APP`, `hutong gateway` and `hutong system` (there are no charts)";

/// By what an image is called, without registry and tag.
pub(crate) fn replaced(image: &str) -> Option<Replaced> {
    let name = name(image);
    let last = name.rsplit('/').next().unwrap_or_default();
    let (part, text) = match last {
        "traefik" => (Part::Traefik, GATEWAY),
        "nginx-proxy" | "nginx-proxy-manager" | "docker-gen" | "caddy-docker-proxy" => {
            (Part::Other, GATEWAY)
        }
        "certbot"
        | "acme-companion"
        | "letsencrypt-nginx-proxy-companion"
        | "lego"
        | "acme.sh"
        | "dns-cloudflare" => (Part::Other, CERTIFICATES),
        "watchtower" | "ouroboros" | "diun" => (
            Part::Watchtower,
            "`[push] watch = \"5m\"` in hutong.toml looks where the tag of an app's image leads, and deploys what is new once it is healthy; a registry's webhook to `/hooks/APP/image` has it look at once. Or have CI push to this server's own registry (`image = \"hutong.local/APP:TAG\"` and `[push] tags`)",
        ),
        "go_webdav" | "gowebdav" | "dozzle" => (Part::Other, LOGS),
        "loki" | "promtail" | "fluentd" | "fluent-bit" | "filebeat" | "logstash" | "vector" => {
            (Part::Other, LOGS)
        }
        "portainer" | "portainer-ce" | "portainer-ee" | "agent"
            if name.starts_with("portainer/") =>
        {
            (
                Part::Other,
                "apps are looked at and changed by `hutong apps`, `status`, `logs`, `exec` and `scale` (there is no console yet)",
            )
        }
        "prometheus" | "grafana" | "cadvisor" | "node-exporter" | "alertmanager" | "netdata"
        | "uptime-kuma" => (Part::Other, NUMBERS),
        "autoheal" => (
            Part::Other,
            "instances that are not healthy are replaced: the table [health] of hutong.toml",
        ),
        "ofelia" | "docker-crontab" => (
            Part::Other,
            "timed jobs are part of an app: the tables [cron.NAME] of hutong.toml",
        ),
        "docker-registry-cleanup" | "docker-gc" | "docker-cleanup" | "docker-prune" => (
            Part::Other,
            "old releases go by themselves (`keep_releases` of the server file); images of the engine are cleared by `docker image prune`",
        ),
        "docker-socket-proxy" | "socket-proxy" => (
            Part::Other,
            "nothing needs the engine's socket: one process of Hutong's own speaks to it",
        ),
        _ => return None,
    };
    Some(Replaced { part, text })
}

/// A server that speaks a protocol of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpServer {
    pub name: &'static str,
    pub port: u16,
    /// Where it keeps its data.
    pub folder: &'static str,
    pub data: Keep,
}

/// How it is told to keep its data in /data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// It does so by itself.
    There,
    Variable(&'static str, &'static str),
    Option(&'static str),
    Unknown,
}

pub(crate) fn tcp_server(image: &str) -> Option<TcpServer> {
    let name = name(image);
    let last = name.rsplit('/').next().unwrap_or_default();
    let (name, port, folder, data) = match last {
        "postgres" | "postgresql" | "postgis" | "timescaledb" | "pgvector" => (
            "PostgreSQL",
            5432,
            "/var/lib/postgresql",
            Keep::Variable("PGDATA", "/data/pgdata"),
        ),
        "mysql" | "mysql-server" | "percona" => (
            "MySQL",
            3306,
            "/var/lib/mysql",
            Keep::Option("--datadir=/data"),
        ),
        "mariadb" => (
            "MariaDB",
            3306,
            "/var/lib/mysql",
            Keep::Option("--datadir=/data"),
        ),
        "redis" | "redis-stack-server" => ("Redis", 6379, "/data", Keep::There),
        "valkey" => ("Valkey", 6379, "/data", Keep::There),
        "mongo" | "mongodb" => ("MongoDB", 27017, "/data/db", Keep::There),
        "memcached" => ("Memcached", 11211, "/data", Keep::There),
        "rabbitmq" => (
            "RabbitMQ",
            5672,
            "/var/lib/rabbitmq",
            Keep::Variable("RABBITMQ_MNESIA_BASE", "/data/mnesia"),
        ),
        "nats" => ("NATS", 4222, "/data", Keep::There),
        "kafka" => ("Kafka", 9092, "/var/lib/kafka", Keep::Unknown),
        "zookeeper" => ("ZooKeeper", 2181, "/data", Keep::There),
        "mosquitto" | "eclipse-mosquitto" => ("Mosquitto", 1883, "/mosquitto", Keep::Unknown),
        _ => return None,
    };
    Some(TcpServer {
        name,
        port,
        folder,
        data,
    })
}

/// Without registry, tag and digest, in lower case.
fn name(image: &str) -> String {
    let image = image.split('@').next().unwrap_or_default();
    let (path, last) = match image.rsplit_once('/') {
        Some((path, last)) => (Some(path), last),
        None => (None, image),
    };
    let last = last.split(':').next().unwrap_or_default();
    let path = path.map(|path| match path.split_once('/') {
        Some((host, rest)) if is_registry(host) => rest,
        None if is_registry(path) => "",
        _ => path,
    });
    match path {
        Some(path) if !path.is_empty() => format!("{path}/{last}").to_ascii_lowercase(),
        _ => last.to_ascii_lowercase(),
    }
}

fn is_registry(host: &str) -> bool {
    host.contains(['.', ':']) || host == "localhost"
}

/// Whether a tag goes from one image to the next.
pub(crate) fn is_moving(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

pub(crate) fn has_tag(image: &str) -> bool {
    image
        .rsplit('/')
        .next()
        .is_some_and(|last| last.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_known_wherever_they_come_from() {
        for image in [
            "traefik",
            "traefik:v3.1",
            "docker.io/library/traefik@sha256:00",
            "localhost:5000/traefik:v2",
        ] {
            let found = replaced(image).unwrap_or_else(|| panic!("{image}"));
            assert_eq!(found.part, Part::Traefik);
        }
        for image in [
            "containrrr/watchtower",
            "117503445/go_webdav",
            "nginxproxy/nginx-proxy:1",
            "jc21/nginx-proxy-manager",
            "certbot/certbot",
            "portainer/portainer-ce:latest",
            "prom/prometheus",
            "grafana/grafana",
            "grafana/loki:3",
            "grafana/promtail",
            "anapsix/docker-registry-cleanup",
        ] {
            assert!(replaced(image).is_some(), "{image}");
        }
        for image in ["nginx", "myorg/miniapp-a:latest", "me/agent", "node:22"] {
            assert!(replaced(image).is_none(), "{image}");
        }
    }

    #[test]
    fn databases_are_known() {
        assert_eq!(
            tcp_server("postgres:16-alpine").map(|one| one.port),
            Some(5432)
        );
        assert_eq!(
            tcp_server("bitnami/redis:7").map(|one| one.name),
            Some("Redis")
        );
        assert!(tcp_server("me/shop").is_none());
    }

    #[test]
    fn tags_that_move() {
        assert!(is_moving("a/b") && is_moving("r.example.com:5000/b:latest"));
        assert!(!is_moving("a/b:1") && !is_moving("a/b@sha256:00"));
    }
}
