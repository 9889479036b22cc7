//! Where an app may connect to: nowhere, to every public address, or to what it lists. What no list can hold, and what
//! the server's owner has to agree to, is decided here, for whoever checks a deploy and for whoever makes the walls.

use core::net::Ipv4Addr;
use core::str::FromStr;
use std::fmt;

use schemars::JsonSchema;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::Check;
use crate::name;
use crate::networks::{Network, Networks};

/// Where the app may connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    None,
    /// Every public address.
    Internet,
    /// These and nothing else.
    List(Vec<EgressRule>),
}

impl Egress {
    /// The entries of a list, as they cross to another process; none if there is no list.
    pub fn list(&self) -> Option<Vec<String>> {
        match self {
            Egress::List(rules) => Some(rules.iter().map(ToString::to_string).collect()),
            Egress::None | Egress::Internet => None,
        }
    }
}

/// The most entries of a list.
pub const MAX_EGRESS: usize = 64;

/// One entry: `api.example.com`, `*.example.com:443`, `203.0.113.0/24`, `192.168.1.20:5432`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRule {
    pub to: Destination,
    /// Of TCP and UDP; none for all.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// One host, in lower case.
    Host(String),
    /// Every host below this one, however deep; not this one.
    Below(String),
    Network(Block),
}

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// All bits behind the prefix are zero.
    base: Ipv4Addr,
    /// At most 32.
    prefix: u8,
}

/// What no app reaches, whatever it lists, and what that is.
pub const NEVER: [(Block, &str); 6] = [
    (block(0, 0, 0, 0, 8), "this machine"),
    (block(100, 100, 100, 200, 32), "a metadata service"),
    // Azure's; the only one at a public address.
    (block(168, 63, 129, 16, 32), "a metadata service"),
    (block(127, 0, 0, 0, 8), "this machine"),
    (
        block(169, 254, 0, 0, 16),
        "metadata services and the like on the same link",
    ),
    (block(224, 0, 0, 0, 3), "multicast and what is reserved"),
];

/// What is not public beside these (RFC 6890). An app reaches a part of it only if it lists that part and the server's
/// owner agrees.
pub const PRIVATE: [Block; 6] = [
    block(10, 0, 0, 0, 8),
    block(100, 64, 0, 0, 10),
    block(172, 16, 0, 0, 12),
    block(192, 0, 0, 0, 24),
    block(192, 168, 0, 0, 16),
    block(198, 18, 0, 0, 15),
];

const fn block(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Block {
    Block {
        base: Ipv4Addr::new(a, b, c, d),
        prefix,
    }
}

/// Whether an address is neither private nor special.
pub fn is_public(address: Ipv4Addr) -> bool {
    !NEVER
        .iter()
        .map(|(block, _)| block)
        .chain(&PRIVATE)
        .any(|block| block.contains(address))
}

impl Block {
    /// The block of that size that an address lies in.
    pub fn around(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Block {
            base: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)),
            prefix,
        }
    }

    pub fn first(self) -> Ipv4Addr {
        self.base
    }

    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() | !mask(self.prefix))
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        Block::around(address, self.prefix) == self
    }

    /// Whether they have an address in common; then one of them holds the other.
    pub fn overlaps(self, other: Self) -> bool {
        let wider = self.prefix.min(other.prefix);
        Block::around(self.base, wider) == Block::around(other.base, wider)
    }
}

fn mask(prefix: u8) -> u32 {
    let hosts = u32::from(32_u8.saturating_sub(prefix));
    u32::MAX.checked_shl(hosts).unwrap_or(0)
}

impl EgressRule {
    /// Whether it names this host, which is in lower case.
    pub fn names(&self, host: &str) -> bool {
        match &self.to {
            Destination::Host(own) => own == host,
            Destination::Below(own) => host
                .strip_suffix(own.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|rest| !rest.is_empty()),
            Destination::Network(_) => false,
        }
    }

    /// The addresses that it names, if it names any.
    pub fn block(&self) -> Option<Block> {
        match self.to {
            Destination::Network(block) => Some(block),
            Destination::Host(_) | Destination::Below(_) => None,
        }
    }

    /// A private part of it that the server's owner has not agreed to.
    pub fn without_consent(&self, allowed: &Networks) -> Option<Block> {
        let own = self.block()?;
        PRIVATE
            .into_iter()
            .filter(|private| private.overlaps(own))
            // What two blocks have in common is the smaller one.
            .map(|private| match private.prefix > own.prefix {
                true => private,
                false => own,
            })
            .find(|part| !allowed.covers(part.first(), part.last()))
    }
}

/// Why an entry is refused that names a private `part`.
pub fn no_consent(rule: &EgressRule, part: Block) -> String {
    format!(
        "`{rule}` reaches private addresses ({part}) that the server's owner does not let apps reach; `egress.allow` in the server file names them"
    )
}

/// A list that another process says: its entries are checked again.
pub fn parse_egress(texts: &[String]) -> Result<Vec<EgressRule>, String> {
    if texts.len() > MAX_EGRESS {
        return Err(format!("a list has at most {MAX_EGRESS} entries"));
    }
    texts.iter().map(|text| text.parse()).collect()
}

impl FromStr for EgressRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > 300 {
            return Err("an entry has at most 300 characters".into());
        }
        if text.contains("://") {
            return Err(format!(
                "`{text}`: leave out the scheme and write for instance api.example.com or api.example.com:443"
            ));
        }
        if text.starts_with('[') || text.matches(':').count() > 1 {
            return Err(format!(
                "`{text}`: apps have no IPv6; write a name or an IPv4 address"
            ));
        }
        let (to, port) = match text.split_once(':') {
            Some((to, port)) => (to, Some(port)),
            None => (text, None),
        };
        let port = port
            .map(|port| {
                parse_port(port).ok_or_else(|| {
                    format!("`{text}`: write a port from 1 to 65535 behind the colon")
                })
            })
            .transpose()?;
        let to = match to.split('/').next() {
            Some(address) if is_address(address) => Destination::Network(parse_block(text, to)?),
            Some(name) if name.len() < to.len() => {
                return Err(format!("`{text}`: leave out the path"));
            }
            _ if to == "*" => return Err(format!("`{text}`: {ALL}")),
            _ => match name::parse_host(to)? {
                host if host.starts_with("*.") => Destination::Below(host[2..].to_owned()),
                host => Destination::Host(host),
            },
        };
        Ok(EgressRule { to, port })
    }
}

const ALL: &str = "egress = \"internet\" lets an app reach every public address";

/// Digits and dots are no name.
fn is_address(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
}

fn parse_port(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    digits.parse().ok().filter(|_| plain)
}

fn parse_block(text: &str, network: &str) -> Result<Block, String> {
    let parsed = network.parse::<Network>().map_err(|e| e.to_string())?;
    let (base, prefix) = parsed
        .v4()
        .ok_or_else(|| format!("`{text}`: apps have no IPv6"))?;
    if prefix == 0 {
        return Err(format!("`{text}`: {ALL}"));
    }
    let block = Block::around(base, prefix);
    match NEVER.iter().find(|(never, _)| never.overlaps(block)) {
        Some((never, what)) => Err(format!(
            "`{text}`: no app reaches {never} ({what}), whatever it lists"
        )),
        None => Ok(block),
    }
}

/// As in `hutong.toml`; what it says is read again as the same.
impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            Destination::Host(host) => f.write_str(host)?,
            Destination::Below(host) => write!(f, "*.{host}")?,
            Destination::Network(block) => write!(f, "{block}")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix {
            32 => write!(f, "{}", self.base),
            prefix => write!(f, "{}/{prefix}", self.base),
        }
    }
}

// A word or a list. Read by hand: an untagged enum would lose the places of the entries.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub(super) enum RawEgress {
    Word(Word),
    List(#[schemars(with = "Vec<String>")] Vec<Spanned<String>>),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
pub(super) enum Word {
    None,
    Internet,
}

impl<'de> Deserialize<'de> for RawEgress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = RawEgress;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"none\", \"internet\" or a list of names and networks")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<RawEgress, E> {
                match word {
                    "none" => Ok(RawEgress::Word(Word::None)),
                    "internet" => Ok(RawEgress::Word(Word::Internet)),
                    _ => Err(E::custom(format!(
                        "`{word}` is no way out; there are \"none\", \"internet\" and a list such as [\"api.example.com\", \"*.example.org:443\"]"
                    ))),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawEgress, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element::<Spanned<String>>()? {
                    entries.push(entry);
                }
                Ok(RawEgress::List(entries))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl Check<'_> {
    pub(super) fn egress(&mut self, raw: Option<&Spanned<RawEgress>>) -> Egress {
        let Some(raw) = raw else {
            return Egress::None;
        };
        let entries = match raw.get_ref() {
            RawEgress::Word(Word::None) => return Egress::None,
            RawEgress::Word(Word::Internet) => return Egress::Internet,
            RawEgress::List(entries) => entries,
        };
        if !(1..=MAX_EGRESS).contains(&entries.len()) {
            self.wrong(
                raw.span().start,
                format!("a list of what an app may reach has 1 to {MAX_EGRESS} entries; \"none\" and \"internet\" are words of their own"),
            );
        }
        let mut rules: Vec<EgressRule> = Vec::new();
        for entry in entries.iter().take(MAX_EGRESS) {
            let at = entry.span().start;
            match entry.get_ref().parse::<EgressRule>() {
                Ok(rule) if rules.contains(&rule) => {
                    self.wrong(at, format!("`{rule}` is listed twice"));
                }
                Ok(rule) => rules.push(rule),
                Err(message) => self.wrong(at, message),
            }
        }
        Egress::List(rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse;
    use proptest::prelude::proptest;

    fn rule(text: &str) -> EgressRule {
        text.parse().expect(text)
    }

    #[test]
    fn entries_are_read_as_they_are_meant() {
        let host = |name: &str| Destination::Host(name.to_owned());
        let below = |name: &str| Destination::Below(name.to_owned());
        let network = |a, b, c, d, prefix| Destination::Network(block(a, b, c, d, prefix));
        for (text, to, port) in [
            ("api.weixin.qq.com", host("api.weixin.qq.com"), None),
            ("API.Weixin.QQ.com", host("api.weixin.qq.com"), None),
            ("*.aliyuncs.com", below("aliyuncs.com"), None),
            ("*.aliyuncs.com:443", below("aliyuncs.com"), Some(443)),
            ("smtp.example.com:465", host("smtp.example.com"), Some(465)),
            ("registry", host("registry"), None),
            ("xn--fiq228c.example", host("xn--fiq228c.example"), None),
            ("203.0.113.0/24", network(203, 0, 113, 0, 24), None),
            ("203.0.113.0/24:443", network(203, 0, 113, 0, 24), Some(443)),
            ("203.0.113.7", network(203, 0, 113, 7, 32), None),
            (
                "192.168.1.20:5432",
                network(192, 168, 1, 20, 32),
                Some(5432),
            ),
            ("10.0.0.0/8", network(10, 0, 0, 0, 8), None),
            ("1.2.3.4/32:65535", network(1, 2, 3, 4, 32), Some(65535)),
            ("1.1.1.1:1", network(1, 1, 1, 1, 32), Some(1)),
        ] {
            let read = rule(text);
            assert_eq!((&read.to, read.port), (&to, port), "{text}");
            assert_eq!(rule(&read.to_string()), read, "{text}");
        }
    }

    #[test]
    fn mistakes_say_what_would_be_right() {
        for (text, hint) in [
            ("https://api.example.com", "leave out the scheme"),
            ("api.example.com/v1", "leave out the path"),
            ("api.example.com:0", "a port from 1 to 65535"),
            ("api.example.com:65536", "a port from 1 to 65535"),
            ("api.example.com:https", "a port from 1 to 65535"),
            ("api.example.com:", "a port from 1 to 65535"),
            ("api.example.com:+80", "a port from 1 to 65535"),
            ("api.example.com:080", "a port from 1 to 65535"),
            ("[::1]:80", "no IPv6"),
            ("2001:db8::/32", "no IPv6"),
            ("::ffff:1.2.3.4", "no IPv6"),
            ("*", "egress = \"internet\""),
            ("0.0.0.0/0", "egress = \"internet\""),
            ("0.0.0.0/0:443", "egress = \"internet\""),
            ("*.*.example.com", "not a domain name"),
            ("a*.example.com", "not a domain name"),
            ("example..com", "not a domain name"),
            ("ex ample.com", "not a domain name"),
            ("exa\"; drop", "not a domain name"),
            ("-a.example.com", "not a domain name"),
            ("例子.example", "xn--"),
            ("", "1 to 253 characters"),
            (":443", "1 to 253 characters"),
            ("203.0.113.7/24", "write 203.0.113.0/24"),
            ("203.0.113.0/33", "0 to 32"),
            ("203.0.113", "write an address"),
            ("10.0.0.256", "write an address"),
            ("0177.0.0.1", "write an address"),
            ("127.0.0.1", "127.0.0.0/8 (this machine)"),
            ("127.0.0.1:5432", "127.0.0.0/8"),
            ("0.0.0.0", "0.0.0.0/8"),
            ("169.254.0.0/16", "metadata"),
            ("169.254.169.254:80", "metadata"),
            ("168.0.0.0/7", "metadata"),
            ("100.100.100.200", "metadata"),
            ("100.64.0.0/10", "100.100.100.200 (a metadata service)"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "multicast"),
            ("128.0.0.0/1", "metadata"),
        ] {
            let error = text.parse::<EgressRule>().expect_err(text);
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn a_wildcard_names_what_is_below_it() {
        let (one, below) = (rule("example.com"), rule("*.example.com"));
        for (name, is_one, is_below) in [
            ("example.com", true, false),
            ("a.example.com", false, true),
            ("b.a.example.com", false, true),
            ("_tcp.example.com", false, true),
            ("aexample.com", false, false),
            (".example.com", false, false),
            ("example.com.evil.org", false, false),
            ("com", false, false),
            ("", false, false),
        ] {
            assert_eq!(
                (one.names(name), below.names(name)),
                (is_one, is_below),
                "{name}"
            );
        }
        assert!(!rule("203.0.113.0/24").names("203.0.113.0"));
    }

    #[test]
    fn private_addresses_need_consent() {
        let allowed = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|text| (*text).to_owned()).collect();
            Networks::parse(&list).expect("networks")
        };
        let part = |text: &str, list: &[&str]| {
            let part = rule(text).without_consent(&allowed(list));
            part.map(|part| part.to_string())
        };
        assert_eq!(part("203.0.113.0/24", &[]), None);
        assert_eq!(part("example.com", &[]), None);
        assert_eq!(
            part("192.168.1.20:5432", &[]).as_deref(),
            Some("192.168.1.20")
        );
        assert_eq!(part("192.168.1.20:5432", &["192.168.1.0/24"]), None);
        assert_eq!(
            part("192.168.1.0/24", &["192.168.1.0/25"]).as_deref(),
            Some("192.168.1.0/24")
        );
        assert_eq!(
            part("192.168.0.0/16", &["192.168.0.0/16", "10.0.0.0/8"]),
            None
        );
        // Only what is private of it.
        assert_eq!(part("192.0.0.0/16", &[]).as_deref(), Some("192.0.0.0/24"));
        assert_eq!(part("192.0.0.0/16", &["192.0.0.0/24"]), None);
        assert_eq!(
            part("192.0.0.0/16", &["::/0"]).as_deref(),
            Some("192.0.0.0/24")
        );
        assert!(no_consent(&rule("10.1.0.0/16"), block(10, 1, 0, 0, 16)).contains("egress.allow"));
    }

    #[test]
    fn what_is_public_is_known() {
        for (address, public) in [
            ("8.8.8.8", true),
            ("203.0.113.1", true),
            ("100.63.255.255", true),
            ("100.128.0.0", true),
            ("172.15.255.255", true),
            ("172.32.0.0", true),
            ("192.0.1.0", true),
            ("223.255.255.255", true),
            ("0.1.2.3", false),
            ("10.255.255.255", false),
            ("100.100.100.200", false),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("172.31.255.255", false),
            ("192.0.0.1", false),
            ("192.168.0.1", false),
            ("198.19.255.255", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
        ] {
            assert_eq!(
                is_public(address.parse().expect("an address")),
                public,
                "{address}"
            );
        }
    }

    #[test]
    fn the_file_is_read_with_places() {
        let spec = |egress: &str| {
            let text = format!("name='a'\ncommand='x'\negress = {egress}\n");
            parse("t", &text).map(|spec| spec.egress)
        };
        assert_eq!(spec("'none'"), Ok(Egress::None));
        assert_eq!(spec("'internet'"), Ok(Egress::Internet));
        let list = spec("['a.b', '*.c.d:443']").expect("good");
        assert_eq!(list, Egress::List(vec![rule("a.b"), rule("*.c.d:443")]));
        let texts = list.list().expect("a list");
        assert_eq!(texts, ["a.b", "*.c.d:443"]);
        assert_eq!(
            parse_egress(&texts),
            Ok(vec![rule("a.b"), rule("*.c.d:443")])
        );
        assert!(parse_egress(&vec!["a.b".to_owned(); MAX_EGRESS + 1]).is_err());
        let wrong = |egress: &str| spec(egress).expect_err("a mistake").to_string();
        insta::assert_snapshot!(wrong("'internett'"), @r#"t:3:10: `internett` is no way out; there are "none", "internet" and a list such as ["api.example.com", "*.example.org:443"]"#);
        insta::assert_snapshot!(wrong("[]"), @r#"t:3:10: a list of what an app may reach has 1 to 64 entries; "none" and "internet" are words of their own"#);
        insta::assert_snapshot!(wrong("['a.b', 'A.B', '169.254.169.254', 'https://x.y']"), @r"
        t:3:18: `a.b` is listed twice
        t:3:25: `169.254.169.254`: no app reaches 169.254.0.0/16 (metadata services and the like on the same link), whatever it lists
        t:3:44: `https://x.y`: leave out the scheme and write for instance api.example.com or api.example.com:443
        ");
        let (many, odd) = (wrong(&format!("{:?}", vec!["a.b"; 65])), wrong("true"));
        assert!(
            many.contains("1 to 64 entries") && odd.contains("a list of names"),
            "{many} {odd}"
        );
    }

    proptest! {
        #[test]
        fn no_entry_makes_it_panic_and_each_is_read_as_written(text in "(?s)[a-z0-9.:/*\\[\\]\" -]{0,40}|.{0,60}") {
            if let Ok(rule) = text.parse::<EgressRule>() {
                assert_eq!(rule.to_string().parse::<EgressRule>(), Ok(rule));
            }
        }
    }
}
