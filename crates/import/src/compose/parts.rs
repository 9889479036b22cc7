//! Parts of a compose service that have forms of their own: ports, volumes, health checks, sizes.

use crate::place::At;
use crate::tree::{Node, Value};
use crate::units;

/// A port of a container, and of the machine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Port {
    pub target: u16,
    pub published: Option<u16>,
    pub is_tcp: bool,
    /// More than one port was meant.
    pub is_range: bool,
}

/// `8080`, `8080:80`, `127.0.0.1:8080:80`, `8080-8085:80-85/tcp`, or the same as a table.
pub(crate) fn port(node: &Node) -> Option<Port> {
    if let Value::Map(_) = node.value {
        let number = |key: &str| node.get(key).and_then(Node::text);
        let published = number("published").and_then(first_of);
        return Some(Port {
            target: number("target")?
                .parse::<u16>()
                .ok()
                .filter(|port| *port > 0)?,
            published: published.map(|(port, _)| port),
            is_tcp: number("protocol").is_none_or(|protocol| protocol == "tcp"),
            is_range: published.is_some_and(|(_, is_range)| is_range),
        });
    }
    let text = node.text()?;
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (rest, target) = match ports.rsplit_once(':') {
        Some((rest, target)) => (Some(rest), target),
        None => (None, ports),
    };
    let published = rest.map(|rest| rest.rsplit_once(':').map_or(rest, |(_, port)| port));
    let (target, is_range) = first_of(target)?;
    Some(Port {
        target,
        published: published.and_then(first_of).map(|(port, _)| port),
        is_tcp: protocol == "tcp",
        is_range,
    })
}

/// The first port of a range, and whether there are more.
fn first_of(text: &str) -> Option<(u16, bool)> {
    let (first, is_range) = match text.split_once('-') {
        Some((first, last)) => (first, first != last),
        None => (text, false),
    };
    let port = first.trim().parse::<u16>().ok().filter(|port| *port > 0)?;
    Some((port, is_range))
}

/// What is put into a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Volume {
    pub at: At,
    pub source: Option<String>,
    pub target: String,
    pub read_only: bool,
    pub is_tmpfs: bool,
}

impl Volume {
    /// Whether it is a file or folder of the machine.
    pub fn is_bind(&self) -> bool {
        self.source
            .as_deref()
            .is_some_and(|source| source.starts_with(['/', '.', '~']))
    }

    /// Whether it looks like one file.
    pub fn is_file(&self) -> bool {
        let last = self.target.rsplit('/').next().unwrap_or_default();
        last.contains('.') && !last.starts_with('.')
    }
}

/// `SOURCE:TARGET:MODE`, `TARGET`, or the same as a table.
pub(crate) fn volume(node: &Node) -> Option<Volume> {
    let at = node.at.clone();
    if let Value::Map(_) = node.value {
        let text = |key: &str| node.get(key).and_then(Node::text).map(str::to_owned);
        return Some(Volume {
            at,
            source: text("source").or_else(|| text("src")),
            target: text("target").or_else(|| text("dst"))?,
            read_only: node.get("read_only").and_then(Node::flag) == Some(true),
            is_tmpfs: text("type").as_deref() == Some("tmpfs"),
        });
    }
    let parts: Vec<&str> = node.text()?.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => (None, *target, ""),
        [source, target] if target.starts_with('/') => (Some(*source), *target, ""),
        [target, mode] => (None, *target, *mode),
        [source, target, mode] => (Some(*source), *target, *mode),
        _ => return None,
    };
    Some(Volume {
        at,
        source: source.map(str::to_owned),
        target: target.to_owned(),
        read_only: mode.split(',').any(|mode| mode == "ro"),
        is_tmpfs: false,
    })
}

/// The path and port of a health check that is a GET of the container itself, such as `curl -f http://localhost:80/up`.
pub(crate) fn checked_path(test: &Node) -> Option<(String, Option<u16>)> {
    let words: Vec<String> = match &test.value {
        Value::List(_) => test.texts().into_iter().map(|(_, word)| word).collect(),
        _ => vec!["CMD-SHELL".to_owned(), test.text()?.to_owned()],
    };
    let line = words.get(1..)?.join(" ");
    let is_known = line.contains("curl") || line.contains("wget");
    let is_plain =
        !line.contains(['`', '$', '(']) && !line.contains("-X") && !line.contains("--data");
    if !is_known || !is_plain {
        return None;
    }
    let url = line
        .split(|c: char| c.is_whitespace() || c == '\'' || c == '"')
        .find(|word| is_own(word))?;
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let port = authority
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse::<u16>().ok());
    let path = path.split('#').next().unwrap_or_default();
    is_health_path(path).then(|| (path.to_owned(), port))
}

fn is_own(word: &str) -> bool {
    let rest = word.strip_prefix("http://").unwrap_or(word);
    ["localhost", "127.0.0.1", "0.0.0.0", "[::1]"]
        .iter()
        .filter_map(|host| rest.strip_prefix(host))
        .any(|after| after.is_empty() || after.starts_with([':', '/']))
}

/// Whether hutong.toml takes it as `health.path`.
pub(crate) fn is_health_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= 500
        && path.bytes().all(|c| (0x21..0x7f).contains(&c) && c != b'#')
}

/// Whether hutong.toml takes it as a path inside of a container.
pub(crate) fn is_plain_path(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    let is_below = |system: &str| {
        let rest = path.strip_prefix(system);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    path.len() <= 200
        && path.bytes().all(plain)
        && path
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(part))
        && path != "/data"
        && !["/proc", "/sys", "/dev", "/etc"].into_iter().any(is_below)
}

/// Whether hutong.toml takes it as `image`.
pub(crate) fn is_reference(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._/:@-".contains(&byte);
    (1..=255).contains(&text.len())
        && text.bytes().all(plain)
        && text
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
        && hutong_core::dockerfile::check_image(text).is_ok()
}

/// `512m`, `1gb`, `2.5G`, `1048576`: bytes, as compose has them.
pub(crate) fn memory(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let plain = lower.strip_suffix('b').unwrap_or(&lower);
    if let Some(bytes) = units::size(plain) {
        return Some(bytes);
    }
    let (number, factor) = match plain.strip_suffix(['k', 'm', 'g', 't'])? {
        number if plain.ends_with('k') => (number, 10),
        number if plain.ends_with('m') => (number, 20),
        number if plain.ends_with('g') => (number, 30),
        number => (number, 40),
    };
    let value: f64 = number.parse().ok()?;
    let bytes = value * f64::from(1_u32 << (factor - 10)) * 1024.0;
    (0.0..1e18).contains(&bytes).then_some(bytes as u64)
}

/// Within what `limits.memory` takes.
pub(crate) fn bounded_memory(bytes: u64) -> u64 {
    bytes.clamp(4 << 20, 1 << 40)
}

/// Cores as thousandths, within what `limits.cpu` takes.
pub(crate) fn cores(text: &str) -> Option<u32> {
    let cores: f64 = text.trim().parse().ok()?;
    (cores > 0.0 && cores.is_finite()).then(|| (cores.clamp(0.01, 256.0) * 1000.0).round() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn node(text: &str) -> Node {
        crate::yaml::parse(&Arc::from("f"), text)
            .expect("YAML")
            .root
    }

    #[test]
    fn ports_in_all_their_forms() {
        for (text, target, published, is_tcp, is_range) in [
            ("80", 80, None, true, false),
            ("'8080:80'", 80, Some(8080), true, false),
            ("'127.0.0.1:8080:80'", 80, Some(8080), true, false),
            ("'[::1]:8080:80/udp'", 80, Some(8080), false, false),
            ("'8080-8081:80-81'", 80, Some(8080), true, true),
            (
                "{target: 80, published: '8080', protocol: tcp}",
                80,
                Some(8080),
                true,
                false,
            ),
            ("{target: 80}", 80, None, true, false),
            ("'127.0.0.1::80'", 80, None, true, false),
        ] {
            let found = port(&node(text)).unwrap_or_else(|| panic!("{text}"));
            let found = (found.target, found.published, found.is_tcp, found.is_range);
            assert_eq!(found, (target, published, is_tcp, is_range), "{text}");
        }
        for text in ["x", "'80:x'", "0", "70000", "[80]", "{published: 80}"] {
            assert_eq!(port(&node(text)), None, "{text}");
        }
    }

    #[test]
    fn volumes_in_all_their_forms() {
        let shown = |text: &str| {
            let one = volume(&node(text)).unwrap_or_else(|| panic!("{text}"));
            (one.source.unwrap_or_default(), one.target, one.read_only)
        };
        assert_eq!(shown("./a:/b:ro"), ("./a".into(), "/b".into(), true));
        assert_eq!(
            shown("db:/var/lib"),
            ("db".into(), "/var/lib".into(), false)
        );
        assert_eq!(shown("/b"), (String::new(), "/b".into(), false));
        assert_eq!(
            shown("{type: bind, source: ./a, target: /b, read_only: true}"),
            ("./a".into(), "/b".into(), true)
        );
        assert_eq!(volume(&node("a:b:c:d")), None);
        assert!(volume(&node("~/x:/y")).is_some_and(|one| one.is_bind()));
        assert!(volume(&node("./x:/y/a.log")).is_some_and(|one| one.is_file()));
    }

    #[test]
    fn checks_that_are_a_get_are_known() {
        for (text, path, port) in [
            (
                "[CMD, curl, -f, 'http://localhost:8080/up']",
                "/up",
                Some(8080),
            ),
            ("curl -sf http://127.0.0.1/ || exit 1", "/", None),
            (
                "[CMD-SHELL, 'wget -q --spider \"localhost:3000/a?b=1\" || exit 1']",
                "/a?b=1",
                Some(3000),
            ),
        ] {
            assert_eq!(
                checked_path(&node(text)),
                Some((path.into(), port)),
                "{text}"
            );
        }
        for text in [
            "[CMD, pg_isready]",
            "[NONE]",
            "curl http://other/",
            "curl -X POST http://localhost/",
            "curl $URL http://localhost/",
        ] {
            assert_eq!(checked_path(&node(text)), None, "{text}");
        }
    }

    #[test]
    fn sizes_and_cores() {
        assert_eq!(memory("512m"), Some(512 << 20));
        assert_eq!(memory("512MB"), Some(512 << 20));
        assert_eq!(memory("1.5g"), Some(3 << 29));
        assert_eq!(memory("1048576"), Some(1 << 20));
        assert_eq!(memory("lots"), None);
        assert_eq!(bounded_memory(1), 4 << 20);
        assert_eq!(cores("0.5"), Some(500));
        assert_eq!(cores("0.001"), Some(10));
        assert_eq!(cores("-1"), None);
        assert_eq!(cores("NaN"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic(text in "(?s).{0,40}") {
            let one = Node { at: At::default(), value: Value::scalar(text.clone()) };
            let _ = (port(&one), volume(&one), checked_path(&one));
            let _ = (memory(&text), cores(&text), is_plain_path(&text), is_reference(&text));
        }
    }
}
