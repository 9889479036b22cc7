//! The way out, for apps that declare it: a bridge with isolated ports, a veth per instance, and
//! nftables in a table of our own. Blocked: the host itself, private and special ranges, other apps,
//! IPv6. Inside, the only name server is our resolver on the bridge. Apps with a list reach what is on it and nothing
//! else ([`lists`]); they have addresses and a name server of their own, so that nothing of them is open by mistake.

pub mod lists;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use hutong_core::spec::egress::Block;
use hutong_ipc::docker::{Way, bridge_prefix};
use hutong_ipc::shim::Egress;

/// The bridge's network: a /20, 4,093 instances.
const PREFIX: u8 = 20;
const FIRST_INSTANCE: u16 = 2;
const LAST_INSTANCE: u16 = 1999;
/// Those with a list: what our table does not know of them is shut.
const FIRST_LISTED: u16 = 2000;
const LAST_LISTED: u16 = 3999;
/// Builds have places of their own, because they may reach the owner's mirrors and proxy.
const FIRST_BUILD: u16 = 4000;
const LAST_BUILD: u16 = 4093;
/// The bridge's second address: the name server of those with a list.
const LISTED_RESOLVER: u16 = 4094;

/// What no app may reach (RFC 6890, Azure's metadata address, and Alibaba's, which lies in 100.64.0.0/10).
const FORBIDDEN: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3";

/// What no list may hold (`hutong_core::spec::egress`, which a test below holds against it): no app reaches it, though
/// the list and the server's owner had it.
const NEVER: &str =
    "0.0.0.0/8, 100.100.100.200, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16, 224.0.0.0/3";

/// The chains that are filled anew each time.
const CHAINS: [&str; 5] = ["input", "lists", "forward", "output", "postrouting"];

/// Connections (and UDP exchanges) that one app may have open to the outside at a time.
const MAX_CONNECTIONS: u32 = 2000;

#[derive(Clone)]
pub struct Network {
    tag: String,
    bridge: String,
    table: String,
    /// The bridge's own address; the network is its /20.
    gateway: Ipv4Addr,
    /// Where containers are, if there is an engine.
    containers: Option<Containers>,
    /// Mirrors and proxy that the server file names; builds reach them wherever they are.
    build_hosts: Vec<SocketAddr>,
    ip: PathBuf,
    nft: PathBuf,
}

/// Containers' bridges, which the engine makes and we name: the walls around them are ours all the same.
#[derive(Clone)]
pub struct Containers {
    /// Their networks are part of this one.
    pub pool: String,
    /// Who may connect to them.
    pub gateway_uid: u32,
}

/// What an instance's place on the bridge is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Open,
    Listed,
    Build,
}

impl Network {
    /// Finds the tools; makes nothing yet.
    pub fn new(
        tag: &str,
        build_urls: &[&str],
        containers: Option<Containers>,
    ) -> Result<Self, String> {
        Ok(Network {
            containers,
            tag: tag.to_owned(),
            bridge: format!("ht{}", &tag[..6]),
            table: format!("hutong_{tag}"),
            gateway: Ipv4Addr::UNSPECIFIED,
            build_hosts: build_urls
                .iter()
                .flat_map(|url| addresses_of(url))
                .collect(),
            ip: tool("ip", "iproute2")?,
            nft: tool("nft", "nftables")?,
        })
    }

    /// Makes the bridge; harmless when it is there already. Nothing passes before [`Self::make_rules`].
    pub fn make_bridge(&mut self) -> Result<(), String> {
        self.gateway = match self.present_address() {
            Some(address) => address,
            None => free_network()?,
        };
        if !interfaces().contains(&self.bridge) {
            self.ip(&["link", "add", &self.bridge, "type", "bridge"])?;
        }
        for address in [
            format!("{}/{PREFIX}", self.gateway),
            format!("{}/32", self.listed_resolver()),
        ] {
            self.ip(&["addr", "replace", &address, "dev", &self.bridge])?;
        }
        self.ip(&["link", "set", &self.bridge, "up"])?;
        let _ = std::fs::write(
            format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.bridge),
            "1",
        );
        Ok(())
    }

    /// Makes the rules; harmless when they are there already. `lists`: the table is made anew, with these in it; without,
    /// what it has of lists stays.
    pub fn make_rules(&self, lists: Option<&str>) -> Result<(), String> {
        // Rules first: forwarding is only ever on behind them.
        if let Err(error) = self.nft(&self.rules(true, lists)) {
            // A kernel without nft_connlimit: all walls but the bound on connections.
            tracing::warn!("no bound on the connections of one app: {error}");
            self.nft(&self.rules(false, lists))?;
        }
        for interface in [Some(self.bridge.clone()), default_interface()]
            .into_iter()
            .flatten()
        {
            let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
            std::fs::write(&path, "1").map_err(|error| format!("{path}: {error}"))?;
        }
        Ok(())
    }

    fn present_address(&self) -> Option<Ipv4Addr> {
        let output = Command::new(&self.ip)
            .args(["-4", "-o", "addr", "show", "dev", &self.bridge])
            .env_clear()
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let addresses = words.windows(2).filter(|pair| pair[0] == "inet");
        addresses
            .filter_map(|pair| pair[1].split('/').next()?.parse::<Ipv4Addr>().ok())
            // The other one is the resolver's.
            .find(|address| address.to_bits() & 0xfff == 1)
    }

    pub fn table(&self) -> &str {
        &self.table
    }

    /// The bridge's own address.
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// Who asks for names that are on a list does so here.
    pub fn listed_resolver(&self) -> Ipv4Addr {
        self.place(LISTED_RESOLVER)
    }

    fn place(&self, index: u16) -> Ipv4Addr {
        Ipv4Addr::from((u32::from(self.gateway) & !0xfff) + u32::from(index))
    }

    /// The address of the `index`-th instance as a network.
    pub fn block(&self, index: u16) -> Block {
        Block::around(self.place(index), 32)
    }

    /// Whether our rules are there: a reload of the host's firewall flushes everybody's.
    pub fn stands(&self) -> bool {
        let listed = Command::new(&self.nft)
            .args(["list", "chain", "inet", &self.table, "forward"])
            .env_clear()
            .stdin(Stdio::null())
            .output();
        // `flush table` leaves the chain, and nothing in it.
        listed.is_ok_and(|listed| {
            let text = String::from_utf8_lossy(&listed.stdout).into_owned();
            listed.status.success() && text.matches(" drop").count() >= 4
        })
    }

    /// `bounded`: with a bound on the connections that one app has open, because the table that the host
    /// tracks them in is everybody's.
    fn rules(&self, bounded: bool, lists: Option<&str>) -> String {
        let (table, bridge, gateway) = (&self.table, &self.bridge, self.gateway);
        let (first, last) = (self.place(FIRST_BUILD), self.place(LAST_BUILD));
        let builds: Vec<String> = self
            .build_hosts
            .iter()
            .filter(|host| host.is_ipv4())
            .map(|host| {
                let (address, port) = (host.ip(), host.port());
                format!("iifname \"{bridge}\" ip saddr {first}-{last} ip daddr {address} tcp dport {port} accept")
            })
            .collect();
        let builds = builds.join("\n    ");
        let listed = format!(
            "ip saddr {}-{}",
            self.place(FIRST_LISTED),
            self.place(LAST_LISTED)
        );
        let resolver = self.listed_resolver();
        // Where the host forwards nothing else, our switching it on for the uplink must not make it a
        // router for the uplink's neighbours.
        let forwards = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
        let uplink = default_interface();
        let guard = match (forwards.as_deref().map(str::trim), &uplink) {
            (Ok("0"), Some(uplink)) => {
                format!("iifname \"{uplink}\" oifname != \"{bridge}\" ct state new drop")
            }
            _ => String::new(),
        };
        // An uplink may be called like a bridge of Docker's.
        let but_uplink =
            uplink.map_or_else(String::new, |uplink| format!(" oifname != \"{uplink}\""));
        let within = [Way::None, Way::Open, Way::Listed].map(|way| {
            let prefix = bridge_prefix(&self.tag, way);
            format!("oifname \"{prefix}*\" drop")
        });
        let within = within.join("\n    ");
        let network = format!("{}/{PREFIX}", self.place(0));
        let (set, bound, bound_listed) = if bounded {
            let over = format!(
                "ct state new add @connections {{ ip saddr ct count over {MAX_CONNECTIONS} }} drop"
            );
            (
                "set connections { type ipv4_addr; flags dynamic; }",
                format!("iifname \"{bridge}\" {over}"),
                over,
            )
        } else {
            ("", String::new(), String::new())
        };
        let docker = self.container_rules(bounded);
        // Filled anew in one step: there is no moment without rules, and sets that are there stay.
        let before = match lists {
            Some(_) => format!("table inet {table} {{}}\ndelete table inet {table}\n"),
            None => String::new(),
        };
        let emptied: String = CHAINS
            .iter()
            .map(|chain| format!("flush chain inet {table} {chain}\n"))
            .collect();
        let lists = lists.unwrap_or_default();
        format!(
            r#"{before}table inet {table} {{
  {set}
  map places {{ type ipv4_addr : verdict; }}
  map bridges {{ type ifname : verdict; }}
  chain input {{ type filter hook input priority -10; policy accept; }}
  chain lists {{ }}
  chain forward {{ type filter hook forward priority -10; policy accept; }}
  chain output {{ type filter hook output priority -10; policy accept; }}
  chain postrouting {{ type nat hook postrouting priority 100; policy accept; }}
}}
{emptied}table inet {table} {{
  chain input {{
    {bound}
    iifname "{bridge}" {listed} ip daddr {resolver} udp dport 53 accept
    iifname "{bridge}" {listed} ip daddr {resolver} tcp dport 53 accept
    iifname "{bridge}" {listed} drop
    iifname "{bridge}" ip daddr {gateway} udp dport 53 accept
    iifname "{bridge}" ip daddr {gateway} tcp dport 53 accept
    iifname "{bridge}" drop
    {input}
  }}
  chain lists {{
    ip daddr {{ {NEVER} }} drop
    oifname "{bridge}" drop
    {within}
    oifname "docker*" drop
    oifname "br-*"{but_uplink} drop
    ct state established accept
    meta l4proto != {{ tcp, udp }} {REJECT}
    {bound_listed}
    ip saddr vmap @places
    iifname vmap @bridges
    {REJECT}
  }}
  chain forward {{
    {forward}
    iifname "{bridge}" meta nfproto ipv6 drop
    iifname "{bridge}" ip saddr != {network} drop
    iifname "{bridge}" {listed} jump lists
    iifname "{bridge}" {listed} drop
    {builds}
    iifname "{bridge}" ip daddr {{ {FORBIDDEN} }} drop
    iifname "{bridge}" oifname "{bridge}" drop
    {bound}
    iifname "{bridge}" accept
    oifname "{bridge}" ct state established,related accept
    oifname "{bridge}" drop
    {guard}
  }}
  chain output {{
    oifname "{bridge}" ct state established,related accept
    oifname "{bridge}" drop
    {output}
  }}
  chain postrouting {{
    ip saddr {network} oifname != "{bridge}" masquerade
    {nat}
  }}
}}
{lists}"#,
            input = docker.input,
            forward = docker.forward,
            output = docker.output,
            nat = docker.nat,
        )
    }

    /// The same walls for containers: their bridges are told by their names' first letters.
    fn container_rules(&self, bounded: bool) -> ContainerRules {
        let Some(containers) = &self.containers else {
            return ContainerRules::default();
        };
        let [within, out, listed] = [Way::None, Way::Open, Way::Listed]
            .map(|way| format!("{}*", bridge_prefix(&self.tag, way)));
        let resolver = self.listed_resolver();
        let (gateway, uid, pool) = (self.gateway, containers.gateway_uid, &containers.pool);
        let over = format!(
            "ct state new add @connections {{ ip saddr ct count over {MAX_CONNECTIONS} }} drop"
        );
        let (bound, bound_input) = match bounded {
            true => (
                format!("iifname \"{out}\" {over}"),
                format!("iifname {{ \"{out}\", \"{listed}\" }} {over}"),
            ),
            false => (String::new(), String::new()),
        };
        ContainerRules {
            input: format!(
                r#"iifname {{ "{out}", "{within}", "{listed}" }} ct state established,related accept
    {bound_input}
    iifname "{listed}" ip daddr {resolver} udp dport 53 accept
    iifname "{listed}" ip daddr {resolver} tcp dport 53 accept
    iifname "{out}" ip daddr {gateway} udp dport 53 accept
    iifname "{out}" ip daddr {gateway} tcp dport 53 accept
    iifname {{ "{out}", "{within}", "{listed}" }} drop"#
            ),
            forward: format!(
                r#"iifname "{within}" drop
    oifname "{within}" drop
    iifname {{ "{out}", "{listed}" }} meta nfproto ipv6 drop
    iifname {{ "{out}", "{listed}" }} ip saddr != {pool} drop
    iifname "{listed}" jump lists
    iifname "{listed}" drop
    iifname "{out}" ip daddr {{ {FORBIDDEN} }} drop
    iifname "{out}" oifname {{ "{out}", "{listed}" }} drop
    {bound}
    iifname "{out}" accept
    oifname {{ "{out}", "{listed}" }} ct state established,related accept
    oifname {{ "{out}", "{listed}" }} drop"#
            ),
            output: format!(
                r#"oifname {{ "{out}", "{within}", "{listed}" }} ct state established,related accept
    oifname {{ "{out}", "{within}", "{listed}" }} meta skuid {uid} accept
    oifname {{ "{out}", "{within}", "{listed}" }} drop"#
            ),
            nat: format!(
                r#"iifname "{out}" ip saddr {pool} oifname != "{out}" masquerade
    iifname "{listed}" ip saddr {pool} oifname != "{listed}" masquerade"#
            ),
        }
    }

    /// The address of the `index`-th instance.
    pub fn leg(&self, index: u16) -> Egress {
        Egress {
            interface: "eth0".into(),
            address: self.place(index).octets(),
            prefix: PREFIX,
            gateway: self.gateway.octets(),
        }
    }

    /// `last`: the place with a list that was given last.
    pub fn free_index(taken: &[u16], kind: Kind, last: u16) -> Result<u16, String> {
        let places = match kind {
            Kind::Open => FIRST_INSTANCE..=LAST_INSTANCE,
            Kind::Listed => FIRST_LISTED..=LAST_LISTED,
            Kind::Build => FIRST_BUILD..=LAST_BUILD,
        };
        // In turn: connections of whoever ended may still be in the host's table, and what is established goes on.
        let begin = match last.saturating_add(1) {
            next if kind == Kind::Listed && places.contains(&next) => next,
            _ => *places.start(),
        };
        (begin..=*places.end())
            .chain(*places.start()..begin)
            .find(|index| !taken.contains(index))
            .ok_or_else(|| "no address is left on the egress network".into())
    }

    /// Puts an interface into the network namespace of `pid`; it goes when the namespace goes.
    pub fn connect(&self, index: u16, pid: i32) -> Result<(), String> {
        let outer = format!("{}-{index}", self.bridge);
        let _ = self.ip(&["link", "del", &outer]);
        let pid = pid.to_string();
        self.ip(&[
            "link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &pid,
        ])?;
        self.ip(&["link", "set", &outer, "master", &self.bridge, "up"])?;
        self.ip(&[
            "link",
            "set",
            &outer,
            "type",
            "bridge_slave",
            "isolated",
            "on",
        ])
    }

    /// Takes an instance's leg up or down.
    pub fn set_link(&self, index: u16, up: bool) -> Result<(), String> {
        let outer = format!("{}-{index}", self.bridge);
        self.ip(&["link", "set", &outer, if up { "up" } else { "down" }])
    }

    /// For those who may ask for every name, and for those with a list.
    pub fn resolver_sockets(&self) -> Result<[(UdpSocket, TcpListener); 2], String> {
        Ok([
            name_server_at(self.gateway)?,
            name_server_at(self.listed_resolver())?,
        ])
    }

    fn ip(&self, arguments: &[&str]) -> Result<(), String> {
        let output = Command::new(&self.ip)
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("{}: {error}", self.ip.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(format!("ip {}: {reason}", arguments.join(" ")))
    }

    /// All of it, or nothing.
    pub fn nft(&self, rules: &str) -> Result<(), String> {
        let mut child = Command::new(&self.nft)
            .args(["-f", "-"])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", self.nft.display()))?;
        if let Some(mut input) = child.stdin.take() {
            let _ = input.write_all(rules.as_bytes());
        }
        let output = child
            .wait_with_output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!(
            "nft: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}

/// Apps fail at once, and are told that it is somebody's will.
const REJECT: &str = "reject with icmpx type admin-prohibited";

fn name_server_at(address: Ipv4Addr) -> Result<(UdpSocket, TcpListener), String> {
    let address = SocketAddr::from((address, 53));
    let failed = |error| format!("cannot bind the resolver to {address}: {error}");
    Ok((
        UdpSocket::bind(address).map_err(failed)?,
        TcpListener::bind(address).map_err(failed)?,
    ))
}

#[derive(Default)]
struct ContainerRules {
    input: String,
    forward: String,
    output: String,
    nat: String,
}

/// Removes a server's bridge and rules, if there are any; nobody uses them.
pub fn remove_leftovers(tag: &str) {
    let bridge = format!("ht{}", &tag[..6]);
    if interfaces().contains(&bridge) {
        let _ = delete_interface(&bridge);
    }
    if has_table(tag) {
        let _ = delete_table(tag);
    }
}

/// The interfaces of our own network namespace; /sys may show another's.
pub fn interfaces() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let lines = text.lines().skip(2);
    lines
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect()
}

/// Whether there are networks of containers, whose walls our table is.
pub fn has_containers(tag: &str) -> bool {
    let prefixes = [Way::None, Way::Open, Way::Listed].map(|way| bridge_prefix(tag, way));
    let is_one = |name: &String| {
        prefixes
            .iter()
            .any(|prefix| name.starts_with(prefix.as_str()))
    };
    interfaces().iter().any(is_one)
}

/// Removes an interface of ours.
pub fn delete_interface(name: &str) -> Result<(), String> {
    quietly(Command::new(tool("ip", "iproute2")?).args(["link", "del", name]))
}

/// Whether a server's table is there.
pub fn has_table(tag: &str) -> bool {
    tool("nft", "nftables").is_ok_and(|nft| {
        let table = format!("hutong_{tag}");
        quietly(Command::new(nft).args(["list", "table", "inet", &table])).is_ok()
    })
}

pub fn delete_table(tag: &str) -> Result<(), String> {
    let table = format!("hutong_{tag}");
    quietly(Command::new(tool("nft", "nftables")?).args(["delete", "table", "inet", &table]))
}

fn quietly(command: &mut Command) -> Result<(), String> {
    let output = command
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// The addresses of a URL's host (`http://user@host:port/path`), as this host resolves it now.
fn addresses_of(url: &str) -> Vec<SocketAddr> {
    use std::net::ToSocketAddrs;
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let with_port = match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
        _ if scheme == "https" => format!("{host}:443"),
        _ => format!("{host}:80"),
    };
    with_port
        .to_socket_addrs()
        .map(Iterator::collect)
        .unwrap_or_default()
}

/// A program of the system's own folders; `PATH` is not asked.
pub fn tool(name: &str, package: &str) -> Result<PathBuf, String> {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .iter()
        .map(|folder| PathBuf::from(folder).join(name))
        .find(|path| path.exists())
        .ok_or_else(|| format!("`{name}` is not installed; apt install {package}"))
}

/// A /20 of 10.0.0.0/8 that no route of this host overlaps.
fn free_network() -> Result<Ipv4Addr, String> {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let taken: Vec<(u32, u32)> = routes.lines().skip(1).filter_map(parse_route).collect();
    (0..64u32)
        .map(|step| u32::from(Ipv4Addr::new(10, 213, 0, 0)) + (step << 12))
        .find(|base| {
            taken.iter().all(|(network, mask)| {
                let mask = mask & 0xffff_f000;
                mask == 0 || base & mask != network & mask
            })
        })
        .map(|base| Ipv4Addr::from(base + 1))
        .ok_or_else(|| "no free network for the egress bridge between 10.213 and 10.217".into())
}

fn parse_route(line: &str) -> Option<(u32, u32)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let network = u32::from_str_radix(fields.next()?, 16).ok()?;
    let mask = u32::from_str_radix(fields.nth(5)?, 16).ok()?;
    Some((u32::from_be(network), u32::from_be(mask)))
}

fn default_interface() -> Option<String> {
    let routes = std::fs::read_to_string("/proc/net/route").ok()?;
    routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next()?;
        (fields.next()? == "00000000").then(|| name.to_owned())
    })
}

/// The host's own name servers (resolv.conf(5)), for the resolver to ask.
pub fn upstreams() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok())
        .map(|address: std::net::IpAddr| SocketAddr::from((address, 53)))
        .take(3)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_url_is_found() {
        let one = |url| addresses_of(url).first().map(ToString::to_string);
        assert_eq!(
            one("http://10.0.0.1:3128").as_deref(),
            Some("10.0.0.1:3128")
        );
        assert_eq!(
            one("https://u:p@10.0.0.1/simple").as_deref(),
            Some("10.0.0.1:443")
        );
        assert_eq!(one("http://10.0.0.1/x?y").as_deref(), Some("10.0.0.1:80"));
        assert_eq!(one("not a url"), None);
    }

    #[test]
    fn the_walls_and_the_lists_mean_the_same_networks() {
        use hutong_core::spec::egress;
        let blocks = |text: &str| {
            let mut blocks: Vec<String> = text.split(", ").map(str::to_owned).collect();
            blocks.sort_unstable();
            blocks
        };
        let never = egress::NEVER.iter().map(|(block, _)| block.to_string());
        let never: Vec<String> = never.collect();
        assert_eq!(blocks(NEVER), blocks(&never.join(", ")));
        // A metadata service that is a part of a private network.
        let rest = never.into_iter().filter(|one| one != "100.100.100.200");
        let private = egress::PRIVATE.iter().map(ToString::to_string);
        let all: Vec<String> = rest.chain(private).collect();
        assert_eq!(blocks(FORBIDDEN), blocks(&all.join(", ")));
    }

    #[test]
    fn what_is_never_reached_comes_before_what_is_listed() {
        let mut network = Network {
            tag: "0123456789".into(),
            bridge: "ht012345".into(),
            table: "hutong_0123456789".into(),
            gateway: Ipv4Addr::new(10, 213, 16, 1),
            containers: Some(Containers {
                pool: "10.212.0.0/20".into(),
                gateway_uid: 7,
            }),
            build_hosts: Vec::new(),
            ip: PathBuf::new(),
            nft: PathBuf::new(),
        };
        for bounded in [true, false] {
            let text = network.rules(bounded, Some("add the lists\n"));
            assert!(text.starts_with("table inet hutong_0123456789 {}\ndelete table"));
            assert!(text.ends_with("}\nadd the lists\n"));
            let rules = text.rsplit_once("flush chain").expect("chains").1;
            let chain = |name: &str| {
                let (_, rest) = rules.split_once(&format!("chain {name} {{\n")).expect(name);
                rest.split("\n  }\n").next().expect(name).to_owned()
            };
            let in_order = |chain: &str, words: &[&str]| {
                let mut rest = chain;
                for word in words {
                    let (_, behind) = rest
                        .split_once(word)
                        .unwrap_or_else(|| panic!("{word}: {chain}"));
                    rest = behind;
                }
            };
            let order = [
                NEVER,
                "oifname \"ht012345\" drop",
                "oifname \"hdl012345*\" drop",
                "oifname \"docker*\" drop",
                "oifname \"br-*\"",
                "ct state established accept",
                "ip saddr vmap @places",
                "iifname vmap @bridges",
                REJECT,
            ];
            in_order(&chain("lists"), &order);
            let listed = "iifname \"ht012345\" ip saddr 10.213.23.208-10.213.31.159";
            let (jump, shut) = (format!("{listed} jump lists"), format!("{listed} drop"));
            let order = [
                "iifname \"hdl012345*\" jump lists",
                "iifname \"hdl012345*\" drop",
                "ip saddr != 10.213.16.0/20 drop",
                &jump,
                &shut,
                FORBIDDEN,
                "iifname \"ht012345\" accept",
            ];
            in_order(&chain("forward"), &order);
            let ask = format!("{listed} ip daddr 10.213.31.254 udp dport 53 accept");
            let order = [
                ask.as_str(),
                &shut,
                "iifname \"ht012345\" ip daddr 10.213.16.1 udp dport 53 accept",
                "iifname \"ht012345\" drop",
                "iifname \"hdl012345*\" ip daddr 10.213.31.254 udp dport 53 accept",
            ];
            in_order(&chain("input"), &order);
        }
        // What is opened by and by stays when the rest is made anew.
        network.containers = None;
        let text = network.rules(true, None);
        assert!(
            !text.contains("delete") && text.contains("flush chain inet hutong_0123456789 lists")
        );
    }

    #[test]
    fn places_on_the_bridge_are_given_by_kind() {
        let free = |taken: &[u16], kind, last| Network::free_index(taken, kind, last);
        assert_eq!(free(&[2, 3, 2000], Kind::Open, 2005), Ok(4));
        assert_eq!(free(&[], Kind::Build, 0), Ok(FIRST_BUILD));
        assert_eq!(free(&[], Kind::Listed, 0), Ok(FIRST_LISTED));
        assert_eq!(free(&[2006], Kind::Listed, 2005), Ok(2007));
        assert_eq!(free(&[], Kind::Listed, LAST_LISTED), Ok(FIRST_LISTED));
        let all: Vec<u16> = (FIRST_LISTED..=LAST_LISTED)
            .filter(|index| *index != 2001)
            .collect();
        assert_eq!(free(&all, Kind::Listed, 3000), Ok(2001));
        assert!(free(&[&all[..], &[2001]].concat(), Kind::Listed, 3000).is_err());
    }

    #[test]
    fn routes_of_the_kernel_are_read() {
        let line = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0";
        let (network, mask) = parse_route(line).expect("a route");
        assert_eq!(Ipv4Addr::from(network), Ipv4Addr::new(192, 0, 2, 0));
        assert_eq!(Ipv4Addr::from(mask), Ipv4Addr::new(255, 255, 255, 0));
    }
}
