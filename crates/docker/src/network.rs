//! A network of its own for each app, of sixteen addresses: Docker's default pools end near thirty networks. Apps with and
//! without a way out are told apart by the name of the bridge, which the warden's rules go by.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;

use bollard::models::{Ipam, IpamConfig, Network, NetworkCreateRequest};
use bollard::query_parameters::ListNetworksOptions;
use hutong_ipc::docker::bridge_prefix;

use crate::engine::{Engine, LABEL_APP, LABEL_SERVER, is_missing};

/// The prefix of an app's network.
const PREFIX: u8 = 28;
const SIZE: u32 = 1 << (32 - PREFIX);
/// The key of a bridge's name among a network's options.
const BRIDGE: &str = "com.docker.network.bridge.name";

/// The network's name for an app.
pub fn name(tag: &str, app: &str, egress: bool) -> String {
    let class = if egress { "out" } else { "in" };
    format!("hutong-{tag}-{class}-{app}")
}

impl Engine {
    /// Makes an app's network if it is not there; its name.
    pub async fn ensure_network(&self, app: &str, egress: bool) -> Result<String, String> {
        let tag = &self.setup.tag;
        let name = name(tag, app, egress);
        // Two at once would choose the same addresses.
        let _one = self.networks.lock().await;
        let docker = self.docker()?;
        match docker.inspect_network(&name, None).await {
            Ok(found) if is_ours(found.labels.as_ref(), &self.setup.server) => return Ok(name),
            Ok(_) => return Err(format!("somebody else has a network {name}")),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error.to_string()),
        }
        let all = docker
            .list_networks(None::<ListNetworksOptions>)
            .await
            .map_err(|error| error.to_string())?;
        let subnet = self.free_subnet(&all)?;
        let bridge = free_bridge(&all, &bridge_prefix(tag, egress), app);
        let request = NetworkCreateRequest {
            name: name.clone(),
            driver: Some("bridge".into()),
            internal: Some(!egress),
            ipam: Some(Ipam {
                config: Some(vec![IpamConfig {
                    subnet: Some(format!("{subnet}/{PREFIX}")),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            options: Some(HashMap::from([
                (BRIDGE.to_owned(), bridge),
                // Instances of one app do not know one another, as in a sandbox.
                (
                    "com.docker.network.bridge.enable_icc".into(),
                    "false".into(),
                ),
            ])),
            labels: Some(HashMap::from([
                (LABEL_SERVER.to_owned(), self.setup.server.clone()),
                (LABEL_APP.to_owned(), app.to_owned()),
            ])),
            ..Default::default()
        };
        docker
            .create_network(request)
            .await
            .map_err(|error| format!("cannot make a network: {error}"))?;
        Ok(name)
    }

    fn free_subnet(&self, all: &[Network]) -> Result<Ipv4Addr, String> {
        let pool = &self.setup.pool;
        let whole = parse_network(pool).filter(|(first, last)| last - first >= SIZE - 1);
        let (first, last) =
            whole.ok_or_else(|| format!("the pool of networks `{pool}` is none"))?;
        let mut taken: Vec<(u32, u32)> = all
            .iter()
            .filter_map(|network| network.ipam.as_ref()?.config.as_ref())
            .flatten()
            .filter_map(|config| parse_network(config.subnet.as_ref()?))
            .collect();
        let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
        taken.extend(routes.lines().skip(1).filter_map(parse_route));
        (first..=last)
            .step_by(SIZE as usize)
            .find(|start| {
                let apart = |(from, to): &(u32, u32)| *to < *start || *from > start + (SIZE - 1);
                taken.iter().all(apart)
            })
            .map(Ipv4Addr::from)
            .ok_or_else(|| format!("no network is left in {pool}"))
    }

    /// Removes the networks of apps that are not among these; those that are in use stay.
    pub async fn sweep_networks(&self, apps: &[String]) -> Result<(), String> {
        // None is removed that somebody is about to use.
        let _one = self.networks.lock().await;
        let docker = self.docker()?;
        let filters = HashMap::from([(
            "label".to_owned(),
            vec![format!("{LABEL_SERVER}={}", self.setup.server)],
        )]);
        let options = ListNetworksOptions {
            filters: Some(filters),
        };
        let found = docker.list_networks(Some(options)).await;
        for network in found.map_err(|error| error.to_string())? {
            let labels = network.labels.unwrap_or_default();
            let app = labels.get(LABEL_APP);
            let unused = |app: &String| !apps.contains(app) && !self.has_instances(app);
            if app.is_some_and(unused)
                && let Some(name) = network.name
            {
                let _ = docker.remove_network(&name).await;
            }
        }
        Ok(())
    }
}

fn is_ours(labels: Option<&HashMap<String, String>>, own: &str) -> bool {
    labels.is_some_and(|labels| labels.get(LABEL_SERVER).is_some_and(|server| server == own))
}

/// A name for a bridge that no network has: the prefix, and a hash of the app's name.
fn free_bridge(all: &[Network], prefix: &str, app: &str) -> String {
    let names: Vec<&String> = all
        .iter()
        .filter_map(|network| network.options.as_ref()?.get(BRIDGE))
        .collect();
    let candidate = |salt: u32| {
        let mut hasher = DefaultHasher::new();
        (app, salt).hash(&mut hasher);
        format!("{prefix}{:06x}", hasher.finish() & 0x00ff_ffff)
    };
    (0..100)
        .map(candidate)
        .find(|name| !names.contains(&name))
        .unwrap_or_else(|| candidate(0))
}

/// First and last address of a network such as 10.0.0.0/8.
fn parse_network(text: &str) -> Option<(u32, u32)> {
    let (base, prefix) = text.split_once('/')?;
    let base: Ipv4Addr = base.parse().ok()?;
    let prefix: u32 = prefix
        .parse()
        .ok()
        .filter(|prefix| (1..=32).contains(prefix))?;
    let hosts = u32::MAX.checked_shr(prefix).unwrap_or(0);
    let first = u32::from(base) & !hosts;
    Some((first, first | hosts))
}

/// A destination of /proc/net/route; the default route is no obstacle.
fn parse_route(line: &str) -> Option<(u32, u32)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let network = u32::from_be(u32::from_str_radix(fields.next()?, 16).ok()?);
    let mask = u32::from_be(u32::from_str_radix(fields.nth(5)?, 16).ok()?);
    (mask != 0).then_some((network, network | !mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_are_their_own() {
        let prefix = bridge_prefix("0123456789", true);
        let first = free_bridge(&[], &prefix, "shop");
        assert!(first.len() <= 15, "{first}");
        let taken = Network {
            options: Some(HashMap::from([(BRIDGE.to_owned(), first.clone())])),
            ..Default::default()
        };
        let second = free_bridge(&[taken], &prefix, "shop");
        assert!(second != first && second.starts_with("hdi012345"));
    }

    #[test]
    fn routes_are_read() {
        let line = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0";
        let (first, last) = (Ipv4Addr::new(192, 0, 2, 0), Ipv4Addr::new(192, 0, 2, 255));
        assert_eq!(parse_route(line), Some((first.into(), last.into())));
        assert_eq!(
            parse_network("192.0.2.7/24"),
            Some((first.into(), last.into()))
        );
        assert_eq!(parse_network("192.0.2.7/33"), None);
        assert!(parse_route("eth0\t00000000\t0100A8C0\t3\t0\t0\t0\t00000000\t0\t0\t0").is_none());
    }
}
