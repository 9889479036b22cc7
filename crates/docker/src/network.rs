//! A network of its own for each app, of sixteen addresses: Docker's default pools end near thirty networks. Apps with and
//! without a way out are told apart by the name of the bridge, which the warden's rules go by. An app with a list of what
//! it may reach has a network for each list: while a release with another one takes over, each keeps to its own.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;

use bollard::Docker;
use bollard::models::{Ipam, IpamConfig, Network, NetworkCreateRequest};
use bollard::query_parameters::ListNetworksOptions;
use hutong_ipc::docker::{Ask, Start, Told, Way, bridge_prefix};

use crate::engine::{Engine, LABEL_APP, LABEL_SERVER, is_missing};

/// On a network: the list of what may be reached from it, as JSON.
const LABEL_LIST: &str = "hutong.egress";

/// The prefix of an app's network.
const PREFIX: u8 = 28;
const SIZE: u32 = 1 << (32 - PREFIX);
/// The key of a bridge's name among a network's options.
const BRIDGE: &str = "com.docker.network.bridge.name";

/// Which way out an instance is to have.
fn way(start: &Start) -> Way {
    match (start.egress, &start.egress_list) {
        (false, _) => Way::None,
        (true, None) => Way::Open,
        (true, Some(_)) => Way::Listed,
    }
}

/// The name of the network that an instance is in.
pub fn name(tag: &str, start: &Start) -> String {
    let app = &start.app;
    match way(start) {
        Way::None => format!("hutong-{tag}-in-{app}"),
        Way::Open => format!("hutong-{tag}-out-{app}"),
        Way::Listed => {
            let mut hasher = DefaultHasher::new();
            start.egress_list.hash(&mut hasher);
            format!("hutong-{tag}-list-{app}-{:016x}", hasher.finish())
        }
    }
}

impl Engine {
    /// Makes an app's network if it is not there, and its walls; its name.
    pub async fn ensure_network(&self, start: &Start) -> Result<String, String> {
        let name = self.make_network(start).await?;
        if way(start) == Way::Listed {
            let found = self.docker()?.inspect_network(&name, None).await;
            let found = found.map_err(|error| error.to_string())?;
            let place = place(found.options.as_ref(), found.ipam.as_ref());
            let list = start.egress_list.clone().unwrap_or_default();
            self.fence(place, list, false).await?;
        }
        Ok(name)
    }

    async fn make_network(&self, start: &Start) -> Result<String, String> {
        let (tag, app, way) = (&self.setup.tag, &start.app, way(start));
        let name = name(tag, start);
        let list = match way {
            Way::Listed => Some(serde_json::to_string(&start.egress_list)),
            Way::None | Way::Open => None,
        };
        let list = list.transpose().map_err(|error| error.to_string())?;
        // Two at once would choose the same addresses.
        let _one = self.networks.lock().await;
        let docker = self.docker()?;
        match docker.inspect_network(&name, None).await {
            Ok(found)
                if is_ours(found.labels.as_ref(), &self.setup.server)
                    && label(found.labels.as_ref(), LABEL_LIST) == list.as_ref() =>
            {
                return Ok(name);
            }
            Ok(_) => return Err(format!("somebody else has a network {name}")),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error.to_string()),
        }
        let all = docker
            .list_networks(None::<ListNetworksOptions>)
            .await
            .map_err(|error| error.to_string())?;
        self.drop_old_lists(&docker, &all, app).await;
        let subnet = self.free_subnet(&all)?;
        // Of its own for each list, too.
        let of = if list.is_some() { &name } else { app };
        let bridge = free_bridge(&all, &bridge_prefix(tag, way), of);
        let mut labels = HashMap::from([
            (LABEL_SERVER.to_owned(), self.setup.server.clone()),
            (LABEL_APP.to_owned(), app.clone()),
        ]);
        labels.extend(list.map(|list| (LABEL_LIST.to_owned(), list)));
        let request = NetworkCreateRequest {
            name: name.clone(),
            driver: Some("bridge".into()),
            internal: Some(way == Way::None),
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
            labels: Some(labels),
            ..Default::default()
        };
        docker
            .create_network(request)
            .await
            .map_err(|error| format!("cannot make a network: {error}"))?;
        Ok(name)
    }

    /// Networks of lists that an app had before, and that nobody is in any more.
    async fn drop_old_lists(&self, docker: &Docker, all: &[Network], app: &str) {
        for network in all {
            let labels = network.labels.as_ref();
            let is_list = label(labels, LABEL_LIST).is_some();
            let is_of_app = label(labels, LABEL_APP).is_some_and(|own| own == app);
            if is_ours(labels, &self.setup.server)
                && is_list
                && is_of_app
                && let Some(name) = &network.name
                && !self.uses_network(name)
            {
                let _ = docker.remove_network(name).await;
            }
        }
    }

    /// Has the warden let containers in a network reach what is listed. Nothing else is open to them, nor is anything
    /// before.
    async fn fence(
        &self,
        place: Option<(String, String)>,
        list: Vec<String>,
        again: bool,
    ) -> Result<(), String> {
        let (bridge, network) = place.ok_or("the engine does not say where its network is")?;
        let ask = Ask::Fence {
            bridge,
            network,
            list,
            again,
        };
        match self.ask(ask).await? {
            (Told::Done, _) => Ok(()),
            (Told::Refused(reason), _) => Err(reason),
            _ => Err("the warden's answer is not understood".into()),
        }
    }

    /// Tells the warden again what is listed: it may have forgotten.
    pub async fn fence_all(&self, docker: &Docker) -> Result<(), String> {
        // None goes meanwhile.
        let _one = self.networks.lock().await;
        let filters = HashMap::from([(
            "label".to_owned(),
            vec![
                format!("{LABEL_SERVER}={}", self.setup.server),
                LABEL_LIST.to_owned(),
            ],
        )]);
        let options = ListNetworksOptions {
            filters: Some(filters),
        };
        let found = docker.list_networks(Some(options)).await;
        for network in found.map_err(|error| error.to_string())? {
            let text = label(network.labels.as_ref(), LABEL_LIST);
            let list = text.and_then(|text| serde_json::from_str(text).ok());
            let place = place(network.options.as_ref(), network.ipam.as_ref());
            if let Some(list) = list
                && let Err(reason) = self.fence(place, list, true).await
            {
                let name = network.name.unwrap_or_default();
                tracing::error!("containers in {name} reach nothing: {reason}");
            }
        }
        Ok(())
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
    label(labels, LABEL_SERVER).is_some_and(|server| server == own)
}

fn label<'a>(labels: Option<&'a HashMap<String, String>>, key: &str) -> Option<&'a String> {
    labels?.get(key)
}

/// A network's bridge, and its addresses.
fn place(
    options: Option<&HashMap<String, String>>,
    ipam: Option<&Ipam>,
) -> Option<(String, String)> {
    let bridge = options?.get(BRIDGE)?.clone();
    let subnet = ipam?.config.as_ref()?.first()?.subnet.clone()?;
    Some((bridge, subnet))
}

/// A name for a bridge that no network has: the prefix, and a hash of whose it is.
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
        let prefix = bridge_prefix("0123456789", Way::Open);
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
