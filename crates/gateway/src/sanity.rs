//! Request sanity, before anything looks at a request: one Host that agrees with the target, a path
//! that means the same to us and to the app. RFC 9110 §7, RFC 9112 §3.2, RFC 3986 §6.2.2.

use hyper::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use hyper::{Request, Version};

/// What a sound request asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Lower case, without port.
    pub host: String,
    /// Dot segments resolved; as it is forwarded.
    pub path: String,
}

pub fn check<B>(request: &Request<B>) -> Result<Wanted, &'static str> {
    let headers = request.headers();
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().map_err(|_| "the Host header is not text")?,
        (Some(_), Some(_)) => return Err("there are two Host headers"),
        (None, _) if request.version() >= Version::HTTP_11 => {
            return Err("there is no Host header");
        }
        (None, _) => "",
    };
    if headers.contains_key(CONTENT_LENGTH) && headers.contains_key(TRANSFER_ENCODING) {
        return Err("Content-Length and Transfer-Encoding exclude each other");
    }
    let uri = request.uri();
    if let Some(authority) = uri.authority()
        && !host.is_empty()
        && !authority.as_str().eq_ignore_ascii_case(host)
    {
        return Err("the Host header contradicts the request target");
    }
    let host = uri.authority().map_or(host, |authority| authority.as_str());
    let host = strip_port(host).ok_or("the Host header is not a host")?;
    let path = normalise(uri.path()).ok_or("the path leaves its root or holds a NUL")?;
    Ok(Wanted {
        host: host.to_ascii_lowercase(),
        path,
    })
}

fn strip_port(host: &str) -> Option<&str> {
    let bare = if host.starts_with('[') {
        let end = host.find(']')?;
        let rest = &host[end + 1..];
        let port = rest.strip_prefix(':').unwrap_or(rest);
        if !port.bytes().all(|c| c.is_ascii_digit()) {
            return None;
        }
        &host[..=end]
    } else {
        match host.split_once(':') {
            Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
            Some(_) => return None,
            None => host,
        }
    };
    let good = |c: u8| c.is_ascii_alphanumeric() || b"-._[]:".contains(&c);
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    (bare.len() <= 255 && bare.bytes().all(good)).then_some(bare)
}

/// Resolves `.` and `..`, also percent-encoded; refuses to leave the root, and NUL.
fn normalise(path: &str) -> Option<String> {
    let lower = path.to_ascii_lowercase();
    if lower.contains("%00") || !path.starts_with('/') {
        // The asterisk form is only for OPTIONS, which no app here needs.
        return None;
    }
    if !lower.contains("/.") && !lower.contains("/%2e") {
        return Some(path.to_owned());
    }
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path[1..].split('/').collect();
    for (index, segment) in segments.iter().enumerate() {
        let last = index + 1 == segments.len();
        match segment.to_ascii_lowercase().replace("%2e", ".").as_str() {
            "." => {}
            ".." => {
                kept.pop()?;
            }
            _ => {
                kept.push(segment);
                continue;
            }
        }
        if last {
            kept.push("");
        }
    }
    Some(format!("/{}", kept.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(target: &str, hosts: &[&str]) -> Result<Wanted, &'static str> {
        let mut request = Request::builder().uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        check(&request.body(()).expect("a request"))
    }

    #[test]
    fn one_host_that_agrees() {
        assert_eq!(ask("/", &["A.test:80"]).expect("good").host, "a.test");
        assert_eq!(ask("/", &["[::1]:80"]).expect("good").host, "[::1]");
        assert!(ask("/", &[]).is_err());
        assert!(ask("/", &["a", "a"]).is_err());
        assert!(ask("/", &["a b"]).is_err());
        assert!(ask("/", &["a@b"]).is_err());
        assert!(ask("http://a.test/", &["b.test"]).is_err());
        assert_eq!(
            ask("http://a.test/x", &["a.test"]).expect("good").path,
            "/x"
        );
    }

    #[test]
    fn paths_mean_the_same_to_all() {
        let path = |p: &str| ask(p, &["a"]).map(|wanted| wanted.path).ok();
        assert_eq!(path("/a/b").as_deref(), Some("/a/b"));
        assert_eq!(path("/a/../b").as_deref(), Some("/b"));
        assert_eq!(path("/a/%2E%2e/b/.").as_deref(), Some("/b/"));
        assert_eq!(path("/a/.hidden").as_deref(), Some("/a/.hidden"));
        assert_eq!(path("/.."), None);
        assert_eq!(path("/a/../../b"), None);
        assert_eq!(path("/a%00"), None);
        assert_eq!(path("//a").as_deref(), Some("//a"));
    }
}
