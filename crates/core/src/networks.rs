//! Sets of addresses, written as CIDR blocks (RFC 4632 §3.1, RFC 4291 §2.3), and who counts as one client.
//!
//! An IPv4 address inside of IPv6 (`::ffff:0:0/96`, RFC 4291 §2.5.5.2) is the IPv4 address everywhere
//! here, so that `::/0` holds no IPv4 address however it is written.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The address that stands for a client: its own for IPv4, the first of its /64 for IPv6, where whoever
/// has one address has all of them.
pub fn client(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        v6 @ IpAddr::V6(_) => Network::around(v6, 64).base,
    }
}

/// One block, `10.0.0.0/8`, or one address. In JSON it is a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// All bits behind the prefix are zero.
    base: IpAddr,
    /// In bits: at most 32 for IPv4, at most 128 for IPv6.
    prefix: u8,
}

impl Network {
    /// The block of that size that `ip` lies in.
    fn around(ip: IpAddr, prefix: u8) -> Self {
        let host_bits = u32::from(width(ip).saturating_sub(prefix));
        let base = match ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
                Ipv4Addr::from_bits(ip.to_bits() & mask).into()
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                Ipv6Addr::from_bits(ip.to_bits() & mask).into()
            }
        };
        Network { base, prefix }
    }

    /// Base and prefix, if it is one of IPv4.
    pub fn v4(&self) -> Option<(Ipv4Addr, u8)> {
        match self.base {
            IpAddr::V4(base) => Some((base, self.prefix)),
            IpAddr::V6(_) => None,
        }
    }

    /// The first and the last address, as numbers of their family.
    fn range(&self) -> (u128, u128) {
        let host_bits = u32::from(width(self.base).saturating_sub(self.prefix));
        let first = number(self.base);
        let hosts = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |n| n - 1);
        (first, first | hosts)
    }
}

impl FromStr for Network {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let Ok(ip) = address.parse::<IpAddr>() else {
            return Err(Invalid::Address(text.to_owned()));
        };
        let most = width(ip);
        let prefix = match prefix {
            None => Some(most),
            Some(digits) => parse_prefix(digits).filter(|prefix| *prefix <= most),
        };
        let Some(prefix) = prefix else {
            return Err(Invalid::Prefix(text.to_owned(), most));
        };
        let (ip, prefix) = unmapped(ip, prefix);
        let network = Network::around(ip, prefix);
        if network.base == ip {
            Ok(network)
        } else {
            Err(Invalid::HostBits(text.to_owned(), network))
        }
    }
}

/// What it can be parsed from; one address without its prefix.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == width(self.base) {
            write!(f, "{}", self.base)
        } else {
            write!(f, "{}/{}", self.base, self.prefix)
        }
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Why a text is no network; each says what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// The text does not begin with an address.
    Address(String),
    /// The text, and the longest prefix that its address can have.
    Prefix(String, u8),
    /// The text names an address inside of a network: this one.
    HostBits(String, Network),
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Invalid::Address(text) => write!(
                f,
                "{text:?}: write an address or a network, such as 192.0.2.1, 10.0.0.0/8 or 2001:db8::/32"
            ),
            Invalid::Prefix(text, most) => {
                write!(
                    f,
                    "{text:?}: write a number from 0 to {most} behind the slash"
                )
            }
            Invalid::HostBits(text, network) => write!(f, "{text:?}: write {network}"),
        }
    }
}

impl std::error::Error for Invalid {}

/// Any number of networks; an address is looked up in the time of one binary search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// First and last addresses as numbers, in order and apart from one another.
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

impl Networks {
    pub fn new(networks: Vec<Network>) -> Self {
        let (v4, v6): (Vec<_>, Vec<_>) = networks.into_iter().partition(|n| n.base.is_ipv4());
        Networks {
            v4: joined(&v4),
            v6: joined(&v6),
        }
    }

    /// # Errors
    /// The first of the texts that is no network.
    pub fn parse(texts: &[String]) -> Result<Self, String> {
        let parsed = texts
            .iter()
            .map(|text| text.parse().map_err(|error: Invalid| error.to_string()));
        Ok(Self::new(parsed.collect::<Result<_, _>>()?))
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let ranges = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        let ip = number(ip);
        let begun = ranges.partition_point(|(first, _)| *first <= ip);
        let nearest = begun.checked_sub(1).and_then(|index| ranges.get(index));
        nearest.is_some_and(|(_, last)| ip <= *last)
    }

    /// Whether all addresses from the first to the last are in one of these.
    pub fn covers(&self, first: Ipv4Addr, last: Ipv4Addr) -> bool {
        let (first, last) = (number(first.into()), number(last.into()));
        let holds = |(from, to): &(u128, u128)| *from <= first && last <= *to;
        self.v4.iter().any(holds)
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

/// The ranges of networks of one family, in order; those that overlap are one.
fn joined(networks: &[Network]) -> Vec<(u128, u128)> {
    let mut ranges: Vec<_> = networks.iter().map(Network::range).collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some((_, end)) if first <= *end => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// In bits.
fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// `1*3DIGIT` without a sign and without zeros in front.
fn parse_prefix(digits: &str) -> Option<u8> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let padded = digits.len() > 1 && digits.starts_with('0');
    (plain && !padded).then(|| digits.parse().ok())?
}

/// A network inside of `::ffff:0:0/96` as the IPv4 network that it is.
fn unmapped(ip: IpAddr, prefix: u8) -> (IpAddr, u8) {
    match (ip.to_canonical(), prefix.checked_sub(96)) {
        (v4 @ IpAddr::V4(_), Some(shorter)) if ip.is_ipv6() => (v4, shorter),
        _ => (ip, prefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().expect(text)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn networks_are_written_as_they_are_read() {
        for (text, written) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1/32", "192.0.2.1"),
            ("2001:DB8:0::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
            ("::1/128", "::1"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(network(text).to_string(), written);
            assert_eq!(network(written), network(text));
            let json = serde_json::to_string(&network(text)).expect("a string");
            assert_eq!(json, format!("{written:?}"));
            assert_eq!(
                serde_json::from_str::<Network>(&json).expect("itself"),
                network(text)
            );
        }
    }

    #[test]
    fn errors_say_what_would_be_right() {
        for (text, hint) in [
            ("10.1.2.3/8", "write 10.0.0.0/8"),
            ("10.1.2.3/0", "write 0.0.0.0/0"),
            ("2001:db8::1/64", "write 2001:db8::/64"),
            ("::ffff:10.1.2.3/104", "write 10.0.0.0/8"),
            ("::ffff:0:0/95", "write ::fffe:0:0/95"),
            ("10.0.0.0/33", "0 to 32"),
            ("::/129", "0 to 128"),
            ("::/256", "0 to 128"),
            ("10.0.0.0/+8", "0 to 32"),
            ("10.0.0.0/08", "0 to 32"),
            ("10.0.0.0/", "0 to 32"),
            ("10.0.0.0/8/8", "0 to 32"),
            ("10.0.0.0/255.0.0.0", "0 to 32"),
            ("10.0.0/24", "such as"),
            ("010.0.0.0/8", "such as"),
            (" 10.0.0.0/8", "such as"),
            ("fe80::1%eth0", "such as"),
            ("[::1]", "such as"),
            ("", "such as"),
        ] {
            let error = text.parse::<Network>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("{text:?}: write ")), "{error}");
            assert!(error.contains(hint), "{error}");
            assert!(serde_json::from_str::<Network>(&format!("{text:?}")).is_err());
        }
    }

    #[test]
    fn ipv4_and_ipv6_are_apart_and_mapped_addresses_are_ipv4() {
        let (four, six) = (
            Networks::new(vec![network("0.0.0.0/0")]),
            Networks::new(vec![network("::/0")]),
        );
        for (text, is_four) in [
            ("1.2.3.4", true),
            ("::ffff:1.2.3.4", true),
            ("::1.2.3.4", false),
        ] {
            assert_eq!(
                (four.contains(ip(text)), six.contains(ip(text))),
                (is_four, !is_four)
            );
        }
        assert!(Networks::default().is_empty() && !four.is_empty() && !six.is_empty());
        assert!(!Networks::default().contains(ip("::1")));
    }

    #[test]
    fn a_range_is_covered_by_one_of_them_or_not_at_all() {
        let set = Networks::new(vec![network("10.0.0.0/8"), network("10.1.0.0/16")]);
        let covers = |first: &str, last: &str| {
            let address = |text: &str| text.parse().expect("an address");
            set.covers(address(first), address(last))
        };
        assert!(covers("10.0.0.0", "10.255.255.255") && covers("10.1.2.3", "10.1.2.3"));
        assert!(!covers("10.255.255.255", "11.0.0.0") && !covers("9.0.0.0", "12.0.0.0"));
        assert_eq!(network("::/0").v4(), None);
        assert_eq!(
            network("10.0.0.0/8").v4().map(|(_, prefix)| prefix),
            Some(8)
        );
    }

    #[test]
    fn a_client_has_a_whole_64() {
        assert_eq!(client(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
        assert_eq!(client(ip("192.0.2.7")), ip("192.0.2.7"));
        assert_eq!(client(ip("::ffff:192.0.2.7")), ip("192.0.2.7"));
    }

    /// Bit by bit, network by network.
    fn slowly(networks: &[Network], ip: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => format!("{:032b}", ip.to_bits()),
            IpAddr::V6(ip) => format!("{:0128b}", ip.to_bits()),
        };
        let inside = |n: &Network| {
            n.base.is_ipv4() == ip.is_ipv4()
                && bits(n.base)[..n.prefix.into()] == bits(ip)[..n.prefix.into()]
        };
        networks.iter().any(inside)
    }

    #[test]
    fn what_is_found_is_what_a_loop_finds() {
        let mut seed = 1_u64;
        let mut random = move |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let mut found = [0; 2];
        for _ in 0..300 {
            // Few different bits, at the front and at the end, so that networks nest and addresses hit.
            let mut address = || {
                let (high, low) = (random(16) as u32, random(16) as u32);
                if random(2) == 0 {
                    IpAddr::from(Ipv4Addr::from_bits((high << 28) | low))
                } else {
                    Ipv6Addr::from_bits((u128::from(high) << 124) | u128::from(low)).into()
                }
            };
            let addresses: Vec<_> = (0..40).map(|_| address()).collect();
            let networks: Vec<_> = addresses[..random(20) as usize]
                .iter()
                .map(|ip| (ip, [random(6), 24 + random(9)][random(2) as usize] as u8))
                .map(|(ip, prefix)| match width(*ip) {
                    128 if prefix > 5 => Network::around(*ip, prefix + 96),
                    _ => Network::around(*ip, prefix),
                })
                .collect();
            let set = Networks::new(networks.clone());
            for ip in addresses {
                let expected = slowly(&networks, ip);
                assert_eq!(set.contains(ip), expected, "{ip} in {networks:?}");
                found[usize::from(expected)] += 1;
            }
        }
        assert!(found.iter().all(|count| *count > 1000), "{found:?}");
    }
}
