//! Headers on their way to an app and back: hop-by-hop ones end here (RFC 9110 §7.6.1), forwarded ones
//! are ours alone, because nobody in front of us is trusted yet.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{
    CONNECTION, HOST, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

const HOP_BY_HOP: [HeaderName; 6] = [
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authorization"),
];

/// Removes what belongs to one connection; an upgrade's two headers stay if `upgrade` says so.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        if name != HOST && (name != UPGRADE || !upgrade) {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(CONNECTION);
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
}

/// Says to the app who asked, in place of whatever the visitor claimed.
pub fn add_forwarded(headers: &mut HeaderMap, visitor: IpAddr, prefix: &str) {
    let claimed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            // CGI and WSGI make `-` of `_`: X_Real_IP would come out as ours (nginx drops them too).
            name == "forwarded"
                || name.contains('_')
                || name.starts_with("x-forwarded-")
                || name.starts_with("x-wx-")
        })
        .cloned()
        .collect();
    for name in claimed {
        headers.remove(name);
    }
    if let Ok(address) = HeaderValue::from_str(&visitor.to_canonical().to_string()) {
        headers.insert(X_FORWARDED_FOR, address.clone());
        headers.insert(X_REAL_IP, address);
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    if let Some(host) = headers.get(HOST).cloned() {
        headers.insert(X_FORWARDED_HOST, host);
    }
    if !prefix.is_empty()
        && let Ok(prefix) = HeaderValue::from_str(prefix)
    {
        headers.insert(X_FORWARDED_PREFIX, prefix);
    }
}

/// Whether the request asks for a WebSocket (RFC 6455 §4.1); no other upgrade is passed on.
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    // Only what stays a conversation with this app: h2c would carry further requests past us.
    headers
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn what_belongs_to_the_connection_stays_here() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut headers, false);
        assert_eq!(headers, map(&[("accept", "*/*")]));
        let mut headers = map(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert!(wants_upgrade(&headers));
        strip_hop_by_hop(&mut headers, true);
        assert_eq!(headers["upgrade"], "websocket");
    }

    #[test]
    fn nobody_claims_to_be_another_visitor() {
        let mut headers = map(&[
            ("host", "a.test"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("x-wx-openid", "admin"),
            ("x-forwarded-ssl", "on"),
            ("x_real_ip", "6.6.6.6"),
        ]);
        add_forwarded(&mut headers, IpAddr::from([127, 0, 0, 1]), "/api");
        assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(headers["x-real-ip"], "127.0.0.1");
        assert_eq!(headers["x-forwarded-prefix"], "/api");
        assert!(!headers.contains_key("x-wx-openid") && !headers.contains_key("x-forwarded-ssl"));
        assert!(!headers.contains_key("x_real_ip"));
    }
}
