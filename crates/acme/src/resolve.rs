//! Whether a name leads to this server: asked before the CA is, whose patience with failures is
//! limited, and answered so that one knows what to change.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;
use tokio::time::timeout;

use crate::text;

const LOOK_UP: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    #[error("{name} has no address")]
    NoAddress { name: String, own: Vec<IpAddr> },
    #[error("{name} leads to {}, not to this server ({})", list(.others), list(.own))]
    Elsewhere {
        name: String,
        others: Vec<IpAddr>,
        own: Vec<IpAddr>,
    },
    #[error("{name} leads to this server, but also to {}", list(.others))]
    AlsoElsewhere { name: String, others: Vec<IpAddr> },
    #[error("{name} cannot be looked up: {why}")]
    NotKnown { name: String, why: String },
}

impl Reason {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Reason::NoAddress { name, own } => {
                format!("at your DNS provider, make {} for {name}", records(own))
            }
            Reason::Elsewhere { others, own, .. } if others.iter().all(is_private) => format!(
                "these are private addresses that nobody outside can reach; make {} instead",
                records(own)
            ),
            Reason::Elsewhere { own, .. } => format!(
                "make {} instead; a change takes as long as the old record's TTL. If a CDN stands \
                 before this server, use dns-01",
                records(own)
            ),
            Reason::AlsoElsewhere { others, .. } if others.iter().all(IpAddr::is_ipv6) => {
                "remove the AAAA record: a CA asks over IPv6 first".to_owned()
            }
            Reason::AlsoElsewhere { .. } => {
                "remove the records that lead elsewhere: a CA may ask any of them".to_owned()
            }
            Reason::NotKnown { .. } => {
                "try again in a few minutes; if it stays so, check the domain's name servers and \
                 this server's resolver"
                    .to_owned()
            }
        }
    }
}

/// Whether `name` leads to one of our `own` addresses and nowhere else. For a wildcard some name below
/// it is looked up. If we do not know our addresses there is nothing to compare, and nothing to say.
pub async fn points_here(
    name: &str,
    own: &[IpAddr],
    look_up: impl AsyncFn(&str) -> io::Result<Vec<IpAddr>>,
) -> Result<(), Reason> {
    let asked = match name.strip_prefix("*.") {
        Some(base) => format!("hutong-check.{base}"),
        None => name.to_owned(),
    };
    let found = match timeout(LOOK_UP, look_up(&asked)).await {
        Ok(found) => found,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
    };
    judge(name, own, found)
}

fn judge(name: &str, own: &[IpAddr], found: io::Result<Vec<IpAddr>>) -> Result<(), Reason> {
    let name = name.to_owned();
    let own = canonical(own);
    let found = match found {
        Ok(found) => canonical(&found),
        Err(error) if is_no_address(&error) => Vec::new(),
        Err(error) => {
            let why = text::line(&error.to_string());
            return Err(Reason::NotKnown { name, why });
        }
    };
    if found.is_empty() {
        return Err(Reason::NoAddress { name, own });
    }
    if own.is_empty() {
        return Ok(());
    }
    let (ours, others): (Vec<IpAddr>, Vec<IpAddr>) =
        found.into_iter().partition(|ip| own.contains(ip));
    match (ours.is_empty(), others.is_empty()) {
        (false, true) => Ok(()),
        (false, false) => Err(Reason::AlsoElsewhere { name, others }),
        (true, _) => Err(Reason::Elsewhere { name, others, own }),
    }
}

/// Each once, and IPv4 as IPv4.
fn canonical(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The system's resolver tells "no such name" from "no answer" only by its words (glibc's and musl's).
fn is_no_address(error: &io::Error) -> bool {
    let said = error.to_string();
    error.kind() == io::ErrorKind::NotFound
        || ["not known", "No address associated", "does not resolve"]
            .iter()
            .any(|words| said.contains(words))
}

fn is_private(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

fn list(addresses: &[IpAddr]) -> String {
    let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// "an A record with 192.0.2.1 and an AAAA record with 2001:db8::1"
fn records(own: &[IpAddr]) -> String {
    let first = |v6: bool| own.iter().find(|ip| ip.is_ipv6() == v6);
    match (first(false), first(true)) {
        (Some(v4), Some(v6)) => format!("an A record with {v4} and an AAAA record with {v6}"),
        (Some(v4), None) => format!("an A record with {v4}"),
        (None, Some(v6)) => format!("an AAAA record with {v6}"),
        (None, None) => "an A record with this server's address".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn check(own: &[&str], found: &[&str]) -> Result<(), Reason> {
        judge("a.example", &ips(own), Ok(ips(found)))
    }

    #[test]
    fn here_is_here() {
        check(&["192.0.2.1", "2001:db8::1"], &["192.0.2.1"]).unwrap();
        check(&["192.0.2.1", "2001:db8::1"], &["2001:db8::1", "192.0.2.1"]).unwrap();
        check(&["192.0.2.1"], &["::ffff:192.0.2.1", "192.0.2.1"]).unwrap();
        check(&[], &["192.0.2.9"]).unwrap();
    }

    #[test]
    fn elsewhere_is_named() {
        let reason = check(&["192.0.2.1"], &["192.0.2.9"]).unwrap_err();
        assert_eq!(
            reason.to_string(),
            "a.example leads to 192.0.2.9, not to this server (192.0.2.1)"
        );
        assert!(reason.hint().contains("an A record with 192.0.2.1"));
        let reason = check(&["192.0.2.1"], &["10.0.0.1"]).unwrap_err();
        assert!(reason.hint().contains("private"));
    }

    #[test]
    fn a_forgotten_aaaa_is_found() {
        let reason = check(&["192.0.2.1"], &["192.0.2.1", "2001:db8::9"]).unwrap_err();
        assert_eq!(
            reason.to_string(),
            "a.example leads to this server, but also to 2001:db8::9"
        );
        assert!(reason.hint().contains("AAAA"));
    }

    #[test]
    fn no_name_is_not_no_answer() {
        let failed = |words: &str| {
            judge(
                "a.example",
                &ips(&["192.0.2.1"]),
                Err(io::Error::other(words)),
            )
            .unwrap_err()
        };
        let reason = failed("failed to lookup address information: Name or service not known");
        assert!(matches!(reason, Reason::NoAddress { .. }));
        let reason = failed("failed to lookup address information: Temporary failure");
        assert!(matches!(reason, Reason::NotKnown { .. }));
        assert!(matches!(
            check(&["192.0.2.1"], &[]),
            Err(Reason::NoAddress { .. })
        ));
    }

    #[tokio::test]
    async fn a_wildcard_is_tried_below() {
        let look_up = async |name: &str| {
            assert_eq!(name, "hutong-check.example.com");
            Ok::<_, io::Error>(vec![IpAddr::from([192, 0, 2, 1])])
        };
        points_here("*.example.com", &ips(&["192.0.2.1"]), look_up)
            .await
            .unwrap();
    }
}
