//! A request's head as the app gets it: what belongs to the visitor's connection ends here (RFC 9110
//! §7.6.1), and who asked is said by us alone, or by proxies before us that the server's owner trusts.

use hutong_http::fields::{Field, Name};
use hutong_http::request::{Framing, RequestHead, Version};

use crate::pipeline::Exchange;
use crate::visitor::Peer;

/// A request on its way to an app.
#[derive(Clone, Copy)]
pub struct Onward<'a> {
    pub head: &'a RequestHead,
    pub peer: &'a Peer,
    /// So many bytes of its path the app does not see.
    pub strip: usize,
    /// Who it is, where we asked for a password.
    pub user: Option<&'a str>,
    /// The password is for us.
    pub drops_password: bool,
}

impl<'a> Onward<'a> {
    pub fn of(exchange: &'a Exchange<'_, '_>, strip: usize) -> Self {
        Onward {
            head: exchange.head,
            peer: exchange.peer,
            strip,
            user: exchange.user.as_deref(),
            drops_password: exchange.drops_password,
        }
    }

    /// Whether an app gets a visitor's field.
    pub fn passes(&self, field: Field<'_>) -> bool {
        passes(self.head, field) && !(self.drops_password && field.known == Name::Authorization)
    }

    /// The path and query that the app sees: without `strip` bytes, but with a slash in front.
    pub fn target(&self) -> (&'static str, &'a str) {
        let rest = &self.head.target()[self.strip..];
        let slash = if rest.starts_with('/') || rest == "*" {
            ""
        } else {
            "/"
        };
        (slash, rest)
    }

    /// What we say of the visitor, as fields, to be told one by one.
    pub fn said_by_us(&self, mut tell: impl FnMut(&'static str, &'a [u8])) {
        let (head, peer) = (self.head, self.peer);
        tell("x-forwarded-for", peer.forwarded_for().as_bytes());
        tell("x-real-ip", peer.text.as_bytes());
        tell("x-forwarded-proto", peer.scheme().as_bytes());
        tell(
            "x-forwarded-host",
            head.fields.get(Name::Host).unwrap_or_default(),
        );
        if self.strip > 0 {
            tell("x-forwarded-prefix", &head.path().as_bytes()[..self.strip]);
        }
        if let Some(link) = &peer.link {
            tell("x-hutong-caller", link.caller.as_bytes());
        }
        if let Some(user) = self.user {
            tell("x-forwarded-user", user.as_bytes());
        }
    }

    /// Writes the head of an HTTP/1.1 request.
    pub fn write(&self, out: &mut Vec<u8>) {
        let head = self.head;
        let (slash, rest) = self.target();
        for part in [head.method.text(), " ", slash, rest, " HTTP/1.1\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        let crumbs =
            head.version == Version::Http2 && head.fields.all(Name::Cookie).nth(1).is_some();
        let ours = head.websocket && head.version == Version::Http2;
        for field in head.fields.iter() {
            // Over HTTP/2 there is no key (RFC 8441 §5.1): what claims to be one would stand beside ours.
            if ours && field.name.eq_ignore_ascii_case(b"sec-websocket-key") {
                continue;
            }
            if self.passes(field) && !(crumbs && field.known == Name::Cookie) {
                line(out, field.name, field.value);
            }
        }
        if crumbs {
            // RFC 9113 §8.2.3.
            let cookies: Vec<&[u8]> = head.fields.all(Name::Cookie).collect();
            line(out, b"cookie", &cookies.join(&b"; "[..]));
        }
        self.said_by_us(|name, value| line(out, name.as_bytes(), value));
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
}

fn passes(head: &RequestHead, field: Field<'_>) -> bool {
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
        | Name::XHutong
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
        forwarded_for(None, fields, strip)
    }

    fn forwarded_for(user: Option<&str>, fields: &str, strip: usize) -> String {
        let text = format!("GET /api/x?y HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n");
        let mut head = RequestHead::default();
        let end = head.parse(text.as_bytes(), &mut Scan::default());
        assert_eq!(end, Ok(Some(text.len())));
        let peer = Peer::plain("127.0.0.1");
        let mut out = Vec::new();
        Onward {
            head: &head,
            peer: &peer,
            strip,
            user,
            drops_password: user.is_some(),
        }
        .write(&mut out);
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
    fn a_password_that_we_asked_for_goes_no_further() {
        let given = "Authorization: Basic YTpi\r\nX-Forwarded-User: root\r\n";
        let seen = forwarded_for(Some("ann"), given, 0);
        assert_eq!(
            seen,
            format!("GET /api/x?y HTTP/1.1\r\nHost: a.test\r\n{OURS}x-forwarded-user: ann\r\n\r\n")
        );
        // Nobody's business but the app's.
        assert_eq!(
            forwarded(given, 0),
            format!(
                "GET /api/x?y HTTP/1.1\r\nHost: a.test\r\nAuthorization: Basic YTpi\r\n{OURS}\r\n"
            )
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
