//! Containers that others started and that want to be routed: which run, where they are, what their labels say. They are read
//! and never touched. Labels are hostile (images bring some): of a container with too many none is passed on, because the
//! one that would be missing may be what keeps visitors out.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerSummary, EndpointSettings, Network, PortSummaryTypeEnum};
use bollard::query_parameters::{EventsOptions, ListContainersOptions, ListNetworksOptions};
use futures_util::StreamExt;
use hutong_core::labels::{is_private, is_wanted};
use hutong_core::name::is_digest;
use hutong_core::networks::Networks;
use hutong_ipc::docker::{Answer, Foreign, ForeignNetwork, Health, Labels};

use crate::engine::{Engine, LABEL_SERVER};

/// How soon an engine that does not answer is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// Without an event everything is looked at again this often.
const LOOK: Duration = Duration::from_secs(30);
/// What happens within this time is looked at once.
const CALM: Duration = Duration::from_millis(100);
/// All of it goes into one answer.
const MAX_CONTAINERS: usize = 500;
const MAX_NETWORKS: usize = 16;
const MAX_PORTS: usize = 64;
const MAX_NAME: usize = 100;
/// Of one container, and the bytes of all.
const MAX_LABELS: usize = 100;
const MAX_LABEL_BYTES: usize = 16 << 10;
const MAX_ALL_BYTES: usize = 512 << 10;

/// What changes where a container is, or whether it can serve.
const EVENTS: [&str; 9] = [
    "start",
    "die",
    "pause",
    "unpause",
    "rename",
    "health_status",
    "connect",
    "disconnect",
    "destroy",
];

/// What was last seen.
pub struct Known {
    list: Vec<Foreign>,
    /// Why it may not be so any more.
    trouble: Option<String>,
}

impl Default for Known {
    fn default() -> Self {
        Known {
            list: Vec::new(),
            trouble: Some("the engine was not asked yet".into()),
        }
    }
}

impl Engine {
    pub fn foreign_answer(&self) -> Answer {
        let known = self.foreign.borrow();
        match (&self.setup.labels, &known.trouble) {
            (None, _) => Answer::Refused("containers of others are not looked at".into()),
            (Some(_), Some(trouble)) => Answer::Later(trouble.clone()),
            (Some(_), None) => Answer::Foreign(known.list.clone()),
        }
    }

    /// Keeps the list true, for ever; if it is wanted at all.
    pub async fn keep_foreign(self: Rc<Self>) {
        let Some(labels) = self.setup.labels else {
            return;
        };
        loop {
            let Err(reason) = self.hear_of_foreign(labels).await;
            self.foreign.borrow_mut().trouble = Some(reason);
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Until the engine goes away.
    async fn hear_of_foreign(&self, labels: Labels) -> Result<Infallible, String> {
        let docker = self.connect().await?;
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        let filters: HashMap<String, Vec<String>> = HashMap::from([
            ("type".to_owned(), words(&["container", "network"])),
            ("event".to_owned(), words(&EVENTS)),
        ]);
        let options = EventsOptions {
            // What happens between the first look and the first event is heard of, too.
            since: Some(now()),
            filters: Some(filters),
            ..Default::default()
        };
        let mut events = Box::pin(docker.events(Some(options)));
        let gone = |event: Option<Result<_, Error>>| match event {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("the engine went away".to_owned()),
        };
        loop {
            self.look_at_foreign(&docker, labels).await?;
            if let Ok(event) = tokio::time::timeout(LOOK, events.next()).await {
                gone(event)?;
            }
            let calm = tokio::time::Instant::now() + CALM;
            // A flood of them is no reason not to look.
            while tokio::time::Instant::now() < calm
                && let Ok(event) = tokio::time::timeout_at(calm, events.next()).await
            {
                gone(event)?;
            }
        }
    }

    async fn look_at_foreign(&self, docker: &Docker, labels: Labels) -> Result<(), String> {
        let failed = |error: Error| error.to_string();
        let running = HashMap::from([("status".to_owned(), vec!["running".to_owned()])]);
        let options = ListContainersOptions {
            filters: Some(running),
            ..Default::default()
        };
        let containers = docker.list_containers(Some(options)).await;
        let networks = docker.list_networks(None::<ListNetworksOptions>).await;
        let list = chosen(
            containers.map_err(failed)?,
            &networks.map_err(failed)?,
            labels.expose_by_default,
            is_behind,
        );
        let mut known = self.foreign.borrow_mut();
        let news = known.trouble.take().is_some() || known.list != list;
        known.list = list;
        if news && known.list.len() == MAX_CONTAINERS {
            tracing::warn!("{MAX_CONTAINERS} containers of others are routed, and no more");
        }
        drop(known);
        if news {
            self.changed.notify_waiters();
        }
        Ok(())
    }
}

/// Seconds since 1970, as the engine reads them.
fn now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    format!("{}.{:09}", now.as_secs(), now.subsec_nanos())
}

/// Those that want to be routed, the oldest first.
fn chosen(
    containers: Vec<ContainerSummary>,
    networks: &[Network],
    by_default: bool,
    behind: Behind,
) -> Vec<Foreign> {
    let networks: HashMap<&str, Result<Subnets, String>> = networks
        .iter()
        .filter_map(|network| Some((network.id.as_deref()?, subnets(network, behind))))
        .collect();
    let mut list: Vec<Foreign> = containers
        .into_iter()
        .filter_map(|container| foreign(container, &networks, by_default))
        .collect();
    list.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    list.truncate(MAX_CONTAINERS);
    let mut left = MAX_ALL_BYTES;
    for one in &mut list {
        match left.checked_sub(bytes(&one.labels)) {
            Some(rest) => left = rest,
            None => {
                one.labels.clear();
                one.is_cut = true;
            }
        }
    }
    list
}

fn foreign(
    container: ContainerSummary,
    networks: &HashMap<&str, Result<Subnets, String>>,
    by_default: bool,
) -> Option<Foreign> {
    let id = container.id.filter(|id| is_digest(id))?;
    let all = container.labels.unwrap_or_default();
    // It is an app's, of this server or of another one.
    if all.contains_key(LABEL_SERVER) {
        return None;
    }
    let compose = |key: &str| {
        let found = all.get(&format!("com.docker.compose.{key}"));
        found.filter(|name| is_name(name)).cloned()
    };
    let compose = compose("project").zip(compose("service"));
    let begins = |key: &str| {
        let start = key.get(..8);
        start.is_some_and(|start| start.eq_ignore_ascii_case("traefik."))
    };
    let mut labels: BTreeMap<String, String> =
        all.into_iter().filter(|(key, _)| begins(key)).collect();
    let enable = labels
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case("traefik.enable"))
        .map(|(_, value)| value.as_str());
    if labels.is_empty() || !is_wanted(enable, by_default) {
        return None;
    }
    let is_cut = labels.len() > MAX_LABELS
        || bytes(&labels) > MAX_LABEL_BYTES
        || labels
            .iter()
            .any(|(key, value)| is_odd(key) || is_odd(value));
    if is_cut {
        labels.clear();
    }
    // Links of other containers to it are names with another one in front.
    let names = container.names.unwrap_or_default();
    let name = names.iter().find_map(|name| {
        let name = name.strip_prefix('/')?;
        (is_name(name) && !name.contains('/')).then(|| name.to_owned())
    });
    let mut ports: Vec<u16> = container
        .ports
        .into_iter()
        .flatten()
        .filter(|port| port.typ == Some(PortSummaryTypeEnum::TCP))
        .map(|port| port.private_port)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports.truncate(MAX_PORTS);
    let endpoints = container.network_settings.and_then(|found| found.networks);
    let mut attached: Vec<ForeignNetwork> = endpoints
        .into_iter()
        .flatten()
        .filter(|(name, _)| is_name(name))
        .map(|(name, endpoint)| attached(name, &endpoint, networks))
        .collect();
    attached.sort_by(|a, b| a.name.cmp(&b.name));
    attached.truncate(MAX_NETWORKS);
    Some(Foreign {
        name: name.unwrap_or_else(|| id.chars().take(12).collect()),
        id,
        created: container.created.unwrap_or(0),
        compose,
        networks: attached,
        ports,
        labels,
        is_cut,
        health: health(container.status.as_deref().unwrap_or_default()),
    })
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !is_odd(text)
}

/// Control characters, but those that lines of a compose file may have.
fn is_odd(text: &str) -> bool {
    text.chars()
        .any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
}

fn bytes(labels: &BTreeMap<String, String>) -> usize {
    let sizes = labels.iter().map(|(key, value)| key.len() + value.len());
    sizes.sum()
}

/// The engine's words for a person: not all versions say it otherwise.
fn health(status: &str) -> Option<Health> {
    [
        ("(healthy)", Health::Healthy),
        ("(unhealthy)", Health::Unhealthy),
        ("(health: starting)", Health::Starting),
    ]
    .into_iter()
    .find_map(|(words, health)| status.contains(words).then_some(health))
}

/// Whether this host sends packets for an address into that bridge, and has the address not itself: a network may be made with
/// whatever addresses somebody likes.
fn is_behind(ip: IpAddr, bridge: &str) -> bool {
    if std::net::UdpSocket::bind((ip, 0)).is_ok() {
        return false;
    }
    let IpAddr::V4(ip) = ip else {
        // Its routes are not looked up; apps have no IPv6 either.
        return false;
    };
    let table = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    most_specific(&table, ip).is_some_and(|interface| interface == bridge)
}

/// The interface of the longest route to an address in the kernel's table (proc(5), /proc/net/route).
fn most_specific(table: &str, ip: std::net::Ipv4Addr) -> Option<&str> {
    let wanted = u32::from_ne_bytes(ip.octets());
    let routes = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let interface = fields.next()?;
        let to = u32::from_str_radix(fields.next()?, 16).ok()?;
        let mask = u32::from_str_radix(fields.nth(5)?, 16).ok()?;
        (wanted & mask == to).then_some((mask.count_ones(), interface))
    });
    routes
        .max_by_key(|(length, _)| *length)
        .map(|(_, interface)| interface)
}

/// The addresses of a network whose containers this host reaches.
struct Subnets {
    /// The bridge that the engine made for it.
    bridge: String,
    behind: Behind,
    all: Networks,
    /// The host's own.
    gateways: Vec<IpAddr>,
}

/// Whether an address is behind a bridge.
type Behind = fn(IpAddr, &str) -> bool;

fn subnets(network: &Network, behind: Behind) -> Result<Subnets, String> {
    let labels = network.labels.as_ref();
    if labels.is_some_and(|labels| labels.contains_key(LABEL_SERVER)) {
        return Err("it is an app's own".into());
    }
    match network.driver.as_deref() {
        Some("bridge") => {}
        other => {
            let kind: String = other.unwrap_or_default().chars().take(40).collect();
            return Err(format!(
                "the gateway reaches containers in networks of the kind `bridge`, and this is `{kind}`"
            ));
        }
    }
    let option = |name: &str| {
        network
            .options
            .as_ref()
            .and_then(|all| all.get(name).cloned())
    };
    let named = option("com.docker.network.bridge.name");
    let id = network.id.as_deref().unwrap_or_default();
    let made = format!("br-{}", id.get(..12).unwrap_or_default());
    // A bridge of the host's own leads anywhere.
    let bridge = match named {
        Some(name) if name == "docker0" => name,
        Some(_) => return Err("it is on a bridge that somebody chose".into()),
        None => made,
    };
    let ipam = network.ipam.as_ref();
    let configs = ipam.and_then(|ipam| ipam.config.as_deref());
    let configs = configs.unwrap_or_default();
    let texts: Vec<String> = configs
        .iter()
        .filter_map(|one| one.subnet.clone())
        .collect();
    let gateways = configs.iter().filter_map(|one| one.gateway.as_deref());
    Ok(Subnets {
        bridge,
        behind,
        all: Networks::parse(&texts)?,
        gateways: gateways.filter_map(|text| text.parse().ok()).collect(),
    })
}

/// Where a container is in a network: an address that is private, and the network's.
fn attached(
    name: String,
    endpoint: &EndpointSettings,
    networks: &HashMap<&str, Result<Subnets, String>>,
) -> ForeignNetwork {
    let id = endpoint.network_id.as_deref().unwrap_or_default();
    let found = match networks.get(id) {
        Some(Ok(subnets)) => {
            let texts = [&endpoint.ip_address, &endpoint.global_ipv6_address];
            let addresses = texts.into_iter().flatten();
            addresses
                .filter_map(|text| text.parse::<IpAddr>().ok())
                .find(|ip| {
                    is_private(*ip)
                        && subnets.all.contains(*ip)
                        && !subnets.gateways.contains(ip)
                        && (subnets.behind)(*ip, &subnets.bridge)
                })
                .ok_or_else(|| "it has no private address there".to_owned())
        }
        Some(Err(why)) => Err(why.clone()),
        None => Err("the engine does not know it yet".to_owned()),
    };
    ForeignNetwork {
        name,
        address: found.as_ref().ok().copied(),
        problem: found.err(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::{ContainerSummaryNetworkSettings, Ipam, IpamConfig, PortSummary};

    const RULE: (&str, &str) = ("traefik.http.routers.web.rule", "Host(`a.test`)");
    const ENABLE: (&str, &str) = ("traefik.enable", "true");

    fn network(id: &str, driver: &str, subnet: &str) -> Network {
        Network {
            id: Some(id.into()),
            driver: Some(driver.into()),
            ipam: Some(Ipam {
                config: Some(vec![IpamConfig {
                    subnet: Some(subnet.into()),
                    gateway: Some("172.18.0.1".into()),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn container(labels: &[(&str, &str)], address: &str) -> ContainerSummary {
        let endpoint = |network: &str, ip: &str| EndpointSettings {
            network_id: Some(network.into()),
            ip_address: Some(ip.into()),
            ..Default::default()
        };
        let port = |private_port, typ| PortSummary {
            private_port,
            typ: Some(typ),
            ..Default::default()
        };
        let labels = labels.iter();
        ContainerSummary {
            id: Some("a".repeat(64)),
            names: Some(vec!["/other/alias".into(), "/web".into()]),
            labels: Some(
                labels
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            ),
            ports: Some(vec![
                port(53, PortSummaryTypeEnum::UDP),
                port(80, PortSummaryTypeEnum::TCP),
                port(80, PortSummaryTypeEnum::TCP),
            ]),
            status: Some("Up 3 minutes (healthy)".into()),
            network_settings: Some(ContainerSummaryNetworkSettings {
                networks: Some(HashMap::from([
                    ("web".to_owned(), endpoint("n1", address)),
                    ("far".to_owned(), endpoint("n2", "172.18.0.9")),
                ])),
            }),
            ..Default::default()
        }
    }

    fn list(container: ContainerSummary, by_default: bool) -> Vec<Foreign> {
        let networks = [
            network("n1", "bridge", "172.18.0.0/16"),
            network("n2", "overlay", "172.18.0.0/16"),
        ];
        chosen(vec![container], &networks, by_default, |_, _| true)
    }

    #[test]
    fn what_wants_to_be_routed_is_passed_on() {
        let more = [
            RULE,
            ENABLE,
            ("com.docker.compose.project", "shop"),
            ("com.docker.compose.service", "web"),
            ("org.example.secret", "xyz"),
        ];
        let all = list(container(&more, "172.18.0.2"), false);
        let one = &all[0];
        assert_eq!(
            (one.name.as_str(), one.ports.as_slice()),
            ("web", &[80][..])
        );
        assert_eq!(one.labels.len(), 2);
        assert_eq!(one.compose, Some(("shop".into(), "web".into())));
        assert_eq!(one.health, Some(Health::Healthy));
        let [far, web] = one.networks.as_slice() else {
            panic!("{one:?}")
        };
        assert_eq!(web.address, Some(IpAddr::from([172, 18, 0, 2])));
        assert!(
            far.address.is_none()
                && far
                    .problem
                    .as_ref()
                    .is_some_and(|why| why.contains("overlay"))
        );
    }

    #[test]
    fn nobody_else_is_passed_on() {
        let is_listed = |labels: &[(&str, &str)], by_default| {
            !list(container(labels, "172.18.0.2"), by_default).is_empty()
        };
        assert!(!is_listed(&[RULE], false) && is_listed(&[RULE], true));
        assert!(!is_listed(&[RULE, ("traefik.enable", "false")], true));
        assert!(!is_listed(&[("a", "b")], true));
        // Ours, and another Hutong's.
        assert!(!is_listed(&[RULE, ENABLE, (LABEL_SERVER, "any")], true));
    }

    #[test]
    fn addresses_are_the_networks_own() {
        for bad in [
            "",
            "172.18.0.1",
            "172.19.0.2",
            "127.0.0.1",
            "8.8.8.8",
            "169.254.169.254",
        ] {
            let all = list(container(&[RULE, ENABLE], bad), false);
            let reached = all[0].networks.iter().any(|one| one.address.is_some());
            assert!(!reached, "{bad}");
        }
    }

    #[test]
    fn the_longest_route_says_where_an_address_is() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\neth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\nbr-1\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\neth1\t0002010A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let of = |ip: &str| most_specific(table, ip.parse().expect("an address"));
        assert_eq!(of("10.9.9.9"), Some("br-1"));
        assert_eq!(of("10.1.2.3"), Some("eth1"));
        assert_eq!(of("8.8.8.8"), Some("eth0"));
        assert!(!is_behind("127.0.0.1".parse().expect("an address"), "lo"));
    }

    #[test]
    fn too_many_labels_are_none() {
        let long = "x".repeat(MAX_LABEL_BYTES);
        let keys: Vec<String> = (0..MAX_LABELS).map(|n| format!("traefik.x{n}")).collect();
        let many: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "")).collect();
        for more in [
            vec![RULE, ("traefik.long", long.as_str())],
            vec![RULE, ("traefik.odd", "a\u{1b}[2J")],
            many,
        ] {
            let all = list(
                container(&[&[ENABLE][..], &more[..]].concat(), "172.18.0.2"),
                false,
            );
            assert!(all[0].is_cut && all[0].labels.is_empty());
        }
    }
}
