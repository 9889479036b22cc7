//! A request's head as the app gets it: what belongs to the visitor's connection ends here (RFC 9110
//! §7.6.1), and who asked is said by us alone, or by proxies before us that the server's owner trusts.

use std::borrow::Cow;

use hutong_http::fields::{Field, Name};
use hutong_http::request::{Framing, RequestHead, Version};

use crate::visitor::Peer;

/// Whether an app gets a visitor's field.
pub fn passes(head: &RequestHead, field: Field<'_>) -> bool {
    match field.known {
        Name::Connection
        | Name::KeepAlive
        | Name::ProxyConnection
        | Name::ProxyAuthorization
        | Name::Te
        | Name::Trailer
        | Name::TransferEncoding
        | Name::Upgrade
        // We answer 100-continue ourselves, when the app begins to read.
        | Name::Expect
        | Name::Forwarded
        | Name::XForwarded
        | Name::XRealIp
        | Name::XWx
        // CGI and WSGI make `-` of `_`: X_Real_IP would come out as ours (nginx drops them too).
        | Name::Underscored => false,
        Name::Host | Name::ContentLength => true,
        _ => !is_named_in_connection(head, field.name),
    }
}

fn is_named_in_connection(head: &RequestHead, name: &[u8]) -> bool {
    head.fields.has(Name::Connection)
        && head
            .fields
            .members(Name::Connection)
            .any(|option| option.eq_ignore_ascii_case(name))
}

/// The path and query that the app sees: without `strip` bytes, but with a slash in front.
pub fn target(head: &RequestHead, strip: usize) -> (&'static str, &str) {
    let rest = &head.target()[strip..];
    let slash = if rest.starts_with('/') || rest == "*" {
        ""
    } else {
        "/"
    };
    (slash, rest)
}

/// What we say of the visitor, as fields.
pub fn said_by_us<'a>(
    head: &'a RequestHead,
    peer: &'a Peer,
    strip: usize,
) -> Vec<(&'static str, Cow<'a, [u8]>)> {
    let mut said = vec![
        (
            "x-forwarded-for",
            Cow::Borrowed(peer.forwarded_for().as_bytes()),
        ),
        ("x-real-ip", peer.text.as_bytes().into()),
        ("x-forwarded-proto", peer.scheme().as_bytes().into()),
    ];
    let host = head.fields.get(Name::Host).unwrap_or_default();
    said.push(("x-forwarded-host", host.into()));
    if strip > 0 {
        let prefix = &head.path().as_bytes()[..strip];
        said.push(("x-forwarded-prefix", prefix.into()));
    }
    said
}

/// Writes the head of an HTTP/1.1 request.
pub fn write(out: &mut Vec<u8>, head: &RequestHead, strip: usize, peer: &Peer) {
    let (slash, rest) = target(head, strip);
    for part in [head.method.text(), " ", slash, rest, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    let crumbs = head.version == Version::Http2 && head.fields.all(Name::Cookie).nth(1).is_some();
    let ours = head.websocket && head.version == Version::Http2;
    for field in head.fields.iter() {
        // Over HTTP/2 there is no key (RFC 8441 §5.1): what claims to be one would stand beside ours.
        if ours && field.name.eq_ignore_ascii_case(b"sec-websocket-key") {
            continue;
        }
        if passes(head, field) && !(crumbs && field.known == Name::Cookie) {
            line(out, field.name, field.value);
        }
    }
    if crumbs {
        // RFC 9113 §8.2.3.
        let cookies: Vec<&[u8]> = head.fields.all(Name::Cookie).collect();
        line(out, b"cookie", &cookies.join(&b"; "[..]));
    }
    line(out, b"x-forwarded-for", peer.forwarded_for().as_bytes());
    line(out, b"x-real-ip", peer.text.as_bytes());
    line(out, b"x-forwarded-proto", peer.scheme().as_bytes());
    line(
        out,
        b"x-forwarded-host",
        head.fields.get(Name::Host).unwrap_or_default(),
    );
    if strip > 0 {
        line(out, b"x-forwarded-prefix", &head.path().as_bytes()[..strip]);
    }
    if head.websocket {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
        if head.version == Version::Http2 {
            websocket_key(out);
        }
    } else if matches!(head.framing, Framing::Chunked | Framing::Stream) {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// What HTTP/2 visitors do not send (RFC 8441 §5.1), and HTTP/1 apps want (RFC 6455 §4.1).
fn websocket_key(out: &mut Vec<u8>) {
    use base64::Engine as _;
    let mut nonce = [0; 16];
    let _ = rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty());
    let key = base64::engine::general_purpose::STANDARD.encode(nonce);
    line(out, b"sec-websocket-key", key.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_http::request::Scan;

    fn forwarded(fields: &str, strip: usize) -> String {
        let text = format!("GET /api/x?y HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n");
        let mut head = RequestHead::default();
        let end = head.parse(text.as_bytes(), &mut Scan::default());
        assert_eq!(end, Ok(Some(text.len())));
        let peer = Peer {
            ip: [127, 0, 0, 1].into(),
            text: "127.0.0.1".into(),
            port: 1,
            tls: false,
            proxied: None,
        };
        let mut out = Vec::new();
        write(&mut out, &head, strip, &peer);
        String::from_utf8(out).expect("text")
    }

    const OURS: &str = "x-forwarded-for: 127.0.0.1\r\nx-real-ip: 127.0.0.1\r\nx-forwarded-proto: http\r\nx-forwarded-host: a.test\r\n";

    #[test]
    fn what_belongs_to_the_connection_stays_here() {
        let given = "Connection: close, X-Secret, Host\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\nAccept: */*\r\n";
        assert_eq!(
            forwarded(given, 4),
            format!(
                "GET /x?y HTTP/1.1\r\nHost: a.test\r\nAccept: */*\r\n{OURS}x-forwarded-prefix: /api\r\n\r\n"
            )
        );
        let seen = forwarded("Connection: Upgrade\r\nUpgrade: websocket\r\n", 0);
        assert!(
            seen.ends_with("connection: upgrade\r\nupgrade: websocket\r\n\r\n"),
            "{seen}"
        );
    }

    #[test]
    fn nobody_claims_to_be_another_visitor() {
        let given = "X-Forwarded-For: 6.6.6.6\r\nX-Real-Ip: 6.6.6.6\r\nX-WX-OpenID: admin\r\nX-Forwarded-Ssl: on\r\nX_Real_IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n";
        assert_eq!(
            forwarded(given, 0),
            format!("GET /api/x?y HTTP/1.1\r\nHost: a.test\r\n{OURS}\r\n")
        );
    }
}
