//! The instance's network namespace from inside: loopback, the egress interface, who listens.
//! netdevice(7) and rtnetlink(7) name the requests.

use std::io;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};

use hutong_ipc::shim::{Egress, Launch, Listening};

use crate::{Context, sys};

const SIOCSIFFLAGS: u64 = 0x8914;
const SIOCGIFFLAGS: u64 = 0x8913;
const SIOCSIFADDR: u64 = 0x8916;
const SIOCSIFNETMASK: u64 = 0x891c;
const SIOCADDRT: u64 = 0x890b;

fn up(socket: &std::os::fd::OwnedFd, interface: &str) -> io::Result<()> {
    let mut request = sys::interface_request(interface);
    sys::net_ioctl(socket, SIOCGIFFLAGS, &mut request)?;
    *sys::request_flags(&mut request) |= libc::IFF_UP as i16;
    sys::net_ioctl(socket, SIOCSIFFLAGS, &mut request)
}

pub fn loopback_up() -> io::Result<()> {
    up(&sys::socket(libc::AF_INET, libc::SOCK_DGRAM)?, "lo")
}

/// Lets a program without capabilities listen on port 80; no other host can reach it there.
pub fn allow_low_ports() {
    let _ = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
}

/// A listening socket for each of the app's links, at port 80 of an address of its own.
pub fn listen_for_links(launch: &Launch) -> Result<Vec<(String, TcpListener)>, String> {
    let listen = |(name, address): &(String, [u8; 4])| {
        let listener = TcpListener::bind((Ipv4Addr::from(*address), 80));
        let listener = listener.during(&format!("cannot listen for the link {name}"))?;
        Ok((name.clone(), listener))
    };
    launch.links.iter().map(listen).collect()
}

/// Address, mask, up, default route; IPv6 stays off on it.
pub fn configure(egress: &Egress) -> io::Result<()> {
    let name = &egress.interface;
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let socket = sys::socket(libc::AF_INET, libc::SOCK_DGRAM)?;
    let mut request = sys::interface_request(name);
    sys::set_request_address(&mut request, egress.address);
    sys::net_ioctl(&socket, SIOCSIFADDR, &mut request)?;
    let mask = u32::MAX
        .checked_shl(32 - u32::from(egress.prefix))
        .unwrap_or(0);
    sys::set_request_address(&mut request, mask.to_be_bytes());
    sys::net_ioctl(&socket, SIOCSIFNETMASK, &mut request)?;
    up(&socket, name)?;
    let mut route: libc::rtentry = sys::zeroed();
    route.rt_dst = sys::socket_address([0; 4]);
    route.rt_genmask = sys::socket_address([0; 4]);
    route.rt_gateway = sys::socket_address(egress.gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    sys::net_ioctl(&socket, SIOCADDRT, &mut route)
}

/// Every TCP socket of this namespace that listens (proc_pid_net(5)), at most 64.
pub fn listening() -> Vec<Listening> {
    let mut found = Vec::new();
    for file in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let Ok(file) = std::fs::File::open(file) else {
            continue;
        };
        // Listening sockets come first; an app with a million connections must not fill our memory.
        let lines = BufReader::new(file)
            .lines()
            .map_while(Result::ok)
            .take(4096);
        found.extend(
            lines
                .skip(1)
                .filter_map(|line| parse_listener(&line))
                .take(64),
        );
    }
    found
}

fn parse_listener(line: &str) -> Option<Listening> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    if fields.nth(1)? != "0A" {
        return None;
    }
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<u8>> = (0..address.len() / 8)
        .map(|i| u32::from_str_radix(address.get(i * 8..i * 8 + 8)?, 16).ok())
        .map(|word| word.map(u32::to_ne_bytes))
        .collect::<Option<Vec<_>>>()
        .map(|words| words.concat());
    let bytes = words?;
    let address = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(Listening { address, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_from_the_kernels_table() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000";
        let got = parse_listener(line).expect("a listener");
        assert_eq!(
            (got.address.to_string().as_str(), got.port),
            ("127.0.0.1", 8080)
        );
        let line = " 1: 00000000000000000000000001000000:0050 0:0 0A 0";
        let got = parse_listener(line).expect("a listener");
        assert_eq!((got.address.to_string().as_str(), got.port), ("::1", 80));
        assert!(parse_listener(&line.replace(" 0A ", " 01 ")).is_none());
        assert!(parse_listener("nonsense").is_none());
    }
}
