//! The way out, for apps that declare it: a bridge with isolated ports, a veth per instance, and
//! nftables in a table of our own. Blocked: the host itself, private and special ranges, other apps,
//! IPv6. Inside, the only name server is our resolver on the bridge.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use hutong_ipc::docker::bridge_prefix;
use hutong_ipc::shim::Egress;

/// The bridge's network: a /20, 4,093 instances.
const PREFIX: u8 = 20;
const FIRST_INSTANCE: u16 = 2;
const LAST_INSTANCE: u16 = 3999;
/// Builds have places of their own, because they may reach the owner's mirrors and proxy.
const FIRST_BUILD: u16 = 4000;
const LAST_BUILD: u16 = 4093;

/// What no app may reach (RFC 6890 and Alibaba's metadata address, which lies in 100.64.0.0/10).
const FORBIDDEN: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3";

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

    /// Makes bridge and rules; harmless when they are there already.
    pub fn ensure(&mut self) -> Result<(), String> {
        self.gateway = match self.present_address() {
            Some(address) => address,
            None => free_network()?,
        };
        if !interfaces().contains(&self.bridge) {
            self.ip(&["link", "add", &self.bridge, "type", "bridge"])?;
        }
        let address = format!("{}/{PREFIX}", self.gateway);
        self.ip(&["addr", "replace", &address, "dev", &self.bridge])?;
        self.ip(&["link", "set", &self.bridge, "up"])?;
        let _ = std::fs::write(
            format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.bridge),
            "1",
        );
        // Rules first: forwarding is only ever on behind them.
        if let Err(error) = self.nft(&self.rules(true)) {
            // A kernel without nft_connlimit: all walls but the bound on connections.
            tracing::warn!("no bound on the connections of one app: {error}");
            self.nft(&self.rules(false))?;
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
        let mut words = text.split_ascii_whitespace();
        words.find(|word| *word == "inet")?;
        words.next()?.split('/').next()?.parse().ok()
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
    fn rules(&self, bounded: bool) -> String {
        let (table, bridge, gateway) = (&self.table, &self.bridge, self.gateway);
        let base = u32::from(gateway) & !0xfff;
        let place = |index: u16| Ipv4Addr::from(base + u32::from(index));
        let (first, last) = (place(FIRST_BUILD), place(LAST_BUILD));
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
        // Where the host forwards nothing else, our switching it on for the uplink must not make it a
        // router for the uplink's neighbours.
        let forwards = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
        let guard = match (forwards.as_deref().map(str::trim), default_interface()) {
            (Ok("0"), Some(uplink)) => {
                format!("iifname \"{uplink}\" oifname != \"{bridge}\" ct state new drop")
            }
            _ => String::new(),
        };
        let network = format!("{}/{PREFIX}", Ipv4Addr::from(u32::from(gateway) & !0xfff));
        let (set, bound) = if bounded {
            (
                "set connections { type ipv4_addr; flags dynamic; }",
                format!(
                    "iifname \"{bridge}\" ct state new add @connections {{ ip saddr ct count over {MAX_CONNECTIONS} }} drop"
                ),
            )
        } else {
            ("", String::new())
        };
        let docker = self.container_rules(bounded);
        format!(
            r#"table inet {table} {{}}
delete table inet {table}
table inet {table} {{
  {set}
  chain input {{
    type filter hook input priority -10; policy accept;
    {bound}
    iifname "{bridge}" ip daddr {gateway} udp dport 53 accept
    iifname "{bridge}" ip daddr {gateway} tcp dport 53 accept
    iifname "{bridge}" drop
    {input}
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    {forward}
    iifname "{bridge}" meta nfproto ipv6 drop
    iifname "{bridge}" ip saddr != {network} drop
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
    type filter hook output priority -10; policy accept;
    oifname "{bridge}" ct state established,related accept
    oifname "{bridge}" drop
    {output}
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {network} oifname != "{bridge}" masquerade
    {nat}
  }}
}}
"#,
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
        let (out, within) = (
            format!("{}*", bridge_prefix(&self.tag, true)),
            format!("{}*", bridge_prefix(&self.tag, false)),
        );
        let (gateway, uid, pool) = (self.gateway, containers.gateway_uid, &containers.pool);
        let bound = match bounded {
            true => format!(
                "iifname \"{out}\" ct state new add @connections {{ ip saddr ct count over {MAX_CONNECTIONS} }} drop"
            ),
            false => String::new(),
        };
        ContainerRules {
            input: format!(
                r#"iifname {{ "{out}", "{within}" }} ct state established,related accept
    {bound}
    iifname "{out}" ip daddr {gateway} udp dport 53 accept
    iifname "{out}" ip daddr {gateway} tcp dport 53 accept
    iifname {{ "{out}", "{within}" }} drop"#
            ),
            forward: format!(
                r#"iifname "{within}" drop
    oifname "{within}" drop
    iifname "{out}" meta nfproto ipv6 drop
    iifname "{out}" ip saddr != {pool} drop
    iifname "{out}" ip daddr {{ {FORBIDDEN} }} drop
    iifname "{out}" oifname "{out}" drop
    {bound}
    iifname "{out}" accept
    oifname "{out}" ct state established,related accept
    oifname "{out}" drop"#
            ),
            output: format!(
                r#"oifname {{ "{out}", "{within}" }} ct state established,related accept
    oifname {{ "{out}", "{within}" }} meta skuid {uid} accept
    oifname {{ "{out}", "{within}" }} drop"#
            ),
            nat: format!(r#"iifname "{out}" ip saddr {pool} oifname != "{out}" masquerade"#),
        }
    }

    /// The address of the `index`-th instance.
    pub fn leg(&self, index: u16) -> Egress {
        let address = Ipv4Addr::from((u32::from(self.gateway) & !0xfff) + u32::from(index));
        Egress {
            interface: "eth0".into(),
            address: address.octets(),
            prefix: PREFIX,
            gateway: self.gateway.octets(),
        }
    }

    pub fn free_index(taken: &[u16], build: bool) -> Result<u16, String> {
        let mut places = if build {
            FIRST_BUILD..=LAST_BUILD
        } else {
            FIRST_INSTANCE..=LAST_INSTANCE
        };
        places
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

    pub fn resolver_sockets(&self) -> Result<(UdpSocket, TcpListener), String> {
        let address = SocketAddr::from((self.gateway, 53));
        let failed = |error| format!("cannot bind the resolver to {address}: {error}");
        Ok((
            UdpSocket::bind(address).map_err(failed)?,
            TcpListener::bind(address).map_err(failed)?,
        ))
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

    fn nft(&self, rules: &str) -> Result<(), String> {
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
    let prefixes = [true, false].map(|egress| bridge_prefix(tag, egress));
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
    fn routes_of_the_kernel_are_read() {
        let line = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0";
        let (network, mask) = parse_route(line).expect("a route");
        assert_eq!(Ipv4Addr::from(network), Ipv4Addr::new(192, 0, 2, 0));
        assert_eq!(Ipv4Addr::from(mask), Ipv4Addr::new(255, 255, 255, 0));
    }
}
