//! `ssh://[user@]host[:port]` and `https://host[:port]`, checked before any of it gets near another program.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// The port of HTTPS (RFC 9110 §4.2.2).
const HTTPS: u16 = 443;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// Without a port or user it is `ssh`'s own configuration that says which.
    Ssh {
        user: Option<String>,
        host: String,
        port: Option<u16>,
    },
    Https {
        host: String,
        port: u16,
    },
}

impl Remote {
    pub fn host(&self) -> &str {
        match self {
            Remote::Ssh { host, .. } | Remote::Https { host, .. } => host,
        }
    }
}

/// A host that is an address of IPv6 is bracketed in a URL (RFC 3986 §3.2.2).
pub fn bracketed(host: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = bracketed(self.host());
        match self {
            Remote::Ssh { user, port, .. } => {
                let user = user.as_ref().map(|user| format!("{user}@"));
                let port = port.map(|port| format!(":{port}"));
                let (user, port) = (user.unwrap_or_default(), port.unwrap_or_default());
                write!(f, "ssh://{user}{host}{port}")
            }
            Remote::Https { port: HTTPS, .. } => write!(f, "https://{host}"),
            Remote::Https { port, .. } => write!(f, "https://{host}:{port}"),
        }
    }
}

impl FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "ssh://[USER@]HOST[:PORT] or https://HOST[:PORT]";
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| format!("`{text}` is not {form}"))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if let Some(at) = rest.find(['/', '?', '#']) {
            return Err(format!(
                "`{}` has no place in the address of a server: {form}",
                &rest[at..]
            ));
        }
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        let (host, port) = split_port(place)?;
        let host = checked_host(host)?;
        match (scheme, user) {
            ("ssh", user) => Ok(Remote::Ssh {
                user: user.map(checked_user).transpose()?,
                host,
                port,
            }),
            // For ssh it may be an alias of its configuration, where case counts.
            ("https", None) => Ok(Remote::Https {
                host: host.to_ascii_lowercase(),
                port: port.unwrap_or(HTTPS),
            }),
            ("https", Some(_)) => {
                Err("https has a token and no user; the token is asked for".into())
            }
            ("http", _) => {
                Err("without TLS the token could be read on the way: use https:// or ssh://".into())
            }
            _ => Err(format!("`{scheme}://` is not {form}")),
        }
    }
}

fn split_port(place: &str) -> Result<(&str, Option<u16>), String> {
    let (host, port) = match place.strip_prefix('[') {
        Some(inner) => {
            let (host, rest) = inner
                .split_once(']')
                .ok_or_else(|| format!("`{place}` has a bracket that does not end"))?;
            host.parse::<Ipv6Addr>()
                .map_err(|_| format!("`{host}` is no address of IPv6"))?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(format!("`{rest}` is no port")),
            }
        }
        None => match place.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(format!("an address of IPv6 is bracketed: [{place}]"));
            }
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port = port.map(|port| match port.parse::<u16>() {
        Ok(number) if number > 0 && port.bytes().all(|c| c.is_ascii_digit()) => Ok(number),
        _ => Err(format!("`{port}` is no port")),
    });
    Ok((host, port.transpose()?))
}

/// What begins with a hyphen would be an option of `ssh` (CVE-2017-1000117 was this in git).
fn checked_host(host: &str) -> Result<String, String> {
    if host.is_empty() {
        return Err("a host is needed".into());
    }
    if host.starts_with('-') {
        return Err(format!("`{host}`: a host does not begin with a hyphen"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    if host.len() > 253 || !host.chars().all(plain) {
        return Err(format!("`{}` is not a host", host.escape_default()));
    }
    Ok(host.to_owned())
}

fn checked_user(user: &str) -> Result<String, String> {
    if user.contains(':') {
        return Err("no password in an address: use a key, and an agent that holds it".into());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    if user.is_empty() || user.starts_with('-') || user.len() > 64 || !user.chars().all(plain) {
        return Err(format!("`{}` is not a user's name", user.escape_default()));
    }
    Ok(user.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_alike() {
        for good in [
            "ssh://host",
            "ssh://me@host:2222",
            "ssh://me@10.0.0.1",
            "ssh://[::1]:22",
            "ssh://Prod-DB",
            "https://hutong.example.com",
            "https://localhost:8443",
        ] {
            let remote: Remote = good.parse().expect(good);
            assert_eq!(remote.to_string(), good);
        }
        let remote: Remote = "https://HOST:443/".parse().expect("good");
        assert_eq!(remote.to_string(), "https://host");
    }

    #[test]
    fn what_could_be_taken_for_something_else_is_refused() {
        for bad in [
            "",
            "host",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://me@-host",
            "ssh://-l@host",
            "ssh://a b",
            "ssh://$(x)",
            "ssh://host;x",
            "ssh://host/path",
            "ssh://me:pw@host",
            "ssh://@host",
            "ssh://host:0",
            "ssh://host:99999",
            "ssh://host:+22",
            "ssh://host:",
            "ssh://::1",
            "ssh://[::1",
            "ssh://[host]",
            "http://host",
            "https://me@host",
            "https://host?x",
            "ftp://host",
        ] {
            assert!(bad.parse::<Remote>().is_err(), "{bad}");
        }
    }
}
