//! Names and ids that cross a trust boundary, checked once when made.

use std::fmt;

/// An app's name: a DNS label (RFC 1123), at most 40 characters so that names derived from it still fit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppName(String);

pub const MAX_APP_NAME: usize = 40;

impl AppName {
    pub fn new(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a name must not be empty".into());
        }
        if text.len() > MAX_APP_NAME {
            return Err(format!("a name has at most {MAX_APP_NAME} characters"));
        }
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if !text.bytes().all(inner) || text.starts_with('-') || text.ends_with('-') {
            return Err(
                "a name has lower-case letters, digits and '-' only, and neither begins nor ends with '-'".into(),
            );
        }
        Ok(AppName(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `text` is an instance id: `APP-rN-xxxxxx`; made by us, checked by whoever receives it.
pub fn is_instance_id(text: &str) -> bool {
    (1..=80).contains(&text.len())
        && text
            .bytes()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        && !text.starts_with('-')
}

/// The longest name of a worker or timed job: instance ids carry it.
pub const MAX_PROCESS: usize = 16;

/// What our own kinds of process are called.
const TAKEN: [&str; 4] = ["web", "run", "release", "build"];

/// Checks the name of a worker or timed job.
pub fn check_process(text: &str) -> Result<(), String> {
    let plain = text
        .bytes()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let letter_first = text.bytes().next().is_some_and(|c| c.is_ascii_lowercase());
    if plain && letter_first && text.len() <= MAX_PROCESS && !TAKEN.contains(&text) {
        return Ok(());
    }
    let taken = TAKEN.join(", ");
    Err(format!(
        "`{text}` cannot name a process: lower-case letters and digits, a letter first, at most {MAX_PROCESS} characters, and not one of {taken}"
    ))
}

/// Whether `text` is a SHA-256 digest in hex, as trees are named.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

/// Whether `text` may name an environment variable.
pub fn is_env_key(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
        && !text.as_bytes()[0].is_ascii_digit()
}

/// A host of a route, lower case: an exact name or `*.` and a name (RFC 1123 labels).
pub fn parse_host(text: &str) -> Result<String, String> {
    let host = text.to_ascii_lowercase();
    let plain = host.strip_prefix("*.").unwrap_or(&host);
    if plain.is_empty() || plain.len() > 253 {
        return Err("a domain has 1 to 253 characters".into());
    }
    for label in plain.split('.') {
        let good = (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-');
        if !good {
            let hint = if text.contains(':') {
                "; leave out scheme and port"
            } else if !text.is_ascii() {
                "; write an internationalized name in its xn-- form"
            } else {
                ""
            };
            return Err(format!("`{text}` is not a domain name{hint}"));
        }
    }
    Ok(host)
}

/// A path prefix of a route: absolute, without `.`/`..`/empty segments, no trailing `/` but for the root.
pub fn parse_prefix(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("the path `{text}` must begin with '/'"));
    }
    let trimmed = text.trim_end_matches('/');
    if trimmed.is_empty() {
        return Ok("/".into());
    }
    if trimmed.len() > 200 {
        return Err("a path has at most 200 characters".into());
    }
    for segment in trimmed[1..].split('/') {
        let good = !segment.is_empty()
            && segment != "."
            && segment != ".."
            && segment
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@".contains(&c));
        if !good {
            return Err(format!("`{text}` is not a plain path such as /api/v1"));
        }
    }
    Ok(trimmed.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_label() {
        for good in ["a", "my-shop-2", "0day"] {
            assert!(AppName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "a.b",
            "a/b",
            "ä",
            &"x".repeat(41),
        ] {
            assert!(AppName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_and_prefixes_are_normal() {
        assert_eq!(
            parse_host("Shop.Example.com").as_deref(),
            Ok("shop.example.com")
        );
        assert_eq!(parse_host("*.example.com").as_deref(), Ok("*.example.com"));
        for bad in ["", "*", "a..b", "http://a", "a:80", "a b", "-a.b", "*.*.a"] {
            assert!(parse_host(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_prefix("/api/").as_deref(), Ok("/api"));
        assert_eq!(parse_prefix("/").as_deref(), Ok("/"));
        for bad in ["api", "/a//b", "/../x", "/a?b", "/%2e"] {
            assert!(parse_prefix(bad).is_err(), "{bad}");
        }
    }
}
