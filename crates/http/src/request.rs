//! A visitor's request head, by RFC 9110 and 9112 to the letter: what two servers could read in two ways
//! is refused. HTTP/2 requests go through the same checks ([`RequestHead::from_parts`]).

use crate::fields::{self, Fields, Name};
use crate::{Reject, path};

/// Bounds of a head.
const MAX_LINE: usize = 16 << 10;
pub const MAX_HEAD: usize = 64 << 10;
pub const MAX_FIELDS: usize = 100;
/// Empty lines before a request that are overlooked (RFC 9112 §2.2), in bytes.
const MAX_LEADING: usize = 8;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Method {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Other(Box<str>),
}

impl Method {
    fn parse(text: &[u8]) -> Result<Self, Reject> {
        Ok(match text {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"PUT" => Method::Put,
            b"DELETE" => Method::Delete,
            b"OPTIONS" => Method::Options,
            b"PATCH" => Method::Patch,
            b"CONNECT" | b"TRACE" => {
                return Err(Reject {
                    status: 405,
                    why: "the method is not served here",
                });
            }
            other => match std::str::from_utf8(other) {
                Ok(text) if fields::is_token(other) && other.len() <= 64 => {
                    Method::Other(text.into())
                }
                _ => return Err(Reject::bad("the method is no token")),
            },
        })
    }

    pub fn text(&self) -> &str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
            Method::Patch => "PATCH",
            Method::Other(text) => text,
        }
    }

    /// RFC 9110 §9.2.1: asking again does no harm.
    pub fn is_safe(&self) -> bool {
        matches!(self, Method::Get | Method::Head | Method::Options)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    Http10,
    #[default]
    Http11,
    Http2,
}

/// How long a request's body is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    #[default]
    Empty,
    Length(u64),
    Chunked,
    /// The stream's end is its end (HTTP/2).
    Stream,
}

/// A sound head. Use it again for the next request of a connection.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    pub method: Method,
    pub version: Version,
    pub fields: Fields,
    pub framing: Framing,
    /// The visitor may send another request.
    pub keep_alive: bool,
    /// It asks for a WebSocket (RFC 6455 §4.1, or RFC 8441); no other upgrade is passed on.
    pub websocket: bool,
    pub expect_continue: bool,
    /// Lower case, without port.
    host: String,
    /// The path, normalised, and the query.
    target: String,
    path_length: usize,
}

/// How far a head's end has been looked for.
#[derive(Debug, Default)]
pub struct Scan {
    seen: usize,
}

impl Scan {
    /// Where the head at the beginning of `input` ends and begins. `None`: more is needed.
    fn find(&mut self, input: &[u8]) -> Result<Option<(usize, usize)>, Reject> {
        let mut begin = 0;
        while input[begin..].starts_with(b"\r\n") {
            begin += 2;
            if begin > MAX_LEADING {
                return Err(Reject::bad("too many empty lines before the request"));
            }
        }
        // Also tells at once what speaks another protocol, such as TLS.
        match input.get(begin) {
            Some(b'\r') if input.len() == begin + 1 => return Ok(None),
            Some(byte) if !fields::is_token(&[*byte]) => {
                return Err(Reject::bad("this is not an HTTP request"));
            }
            _ => {}
        }
        let from = self.seen.max(begin);
        for at in memchr::memchr_iter(b'\n', &input[from..]).map(|at| from + at) {
            if at == 0 || input[at - 1] != b'\r' {
                return Err(Reject::bad("a line ends without CR"));
            }
            if at >= begin + 3 && input[at - 3..at].starts_with(b"\r\n") {
                if at + 1 - begin > MAX_HEAD {
                    break;
                }
                return Ok(Some((begin, at + 1)));
            }
        }
        // With its CR.
        let line = memchr::memchr(b'\n', &input[begin..]).unwrap_or(input.len() - begin);
        if line > MAX_LINE + 1 {
            return Err(LINE_TOO_LONG);
        }
        if input.len() - begin > MAX_HEAD {
            return Err(HEAD_TOO_LARGE);
        }
        self.seen = input.len();
        Ok(None)
    }
}

const LINE_TOO_LONG: Reject = Reject {
    status: 414,
    why: "the request target is too long",
};
const HEAD_TOO_LARGE: Reject = Reject {
    status: 431,
    why: "the request's headers are too large",
};

/// The parts of an HTTP/2 request, whose fields are in the head already.
pub struct Parts<'a> {
    pub method: &'a str,
    pub scheme: Option<&'a str>,
    pub authority: Option<&'a str>,
    pub path: &'a str,
    /// `:protocol` of an extended CONNECT (RFC 8441).
    pub protocol: Option<&'a str>,
    pub has_body: bool,
}

impl RequestHead {
    /// Lower case, without port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Normalised.
    pub fn path(&self) -> &str {
        &self.target[..self.path_length]
    }

    /// With its `?`, or empty.
    pub fn query(&self) -> &str {
        &self.target[self.path_length..]
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        &self.target
    }

    fn clear(&mut self) {
        self.fields.clear();
        self.host.clear();
        self.target.clear();
        self.path_length = 0;
        self.method = Method::Get;
        self.framing = Framing::Empty;
        (self.keep_alive, self.websocket, self.expect_continue) = (false, false, false);
    }

    /// Reads a head from the beginning of `input`; how many bytes it takes. `None`: more is needed. A new
    /// `scan` for each head.
    pub fn parse(&mut self, input: &[u8], scan: &mut Scan) -> Result<Option<usize>, Reject> {
        let Some((begin, end)) = scan.find(input)? else {
            return Ok(None);
        };
        self.clear();
        // Without the empty line.
        let mut rest = &input[begin..end - 2];
        let mut line = || {
            let end = memchr::memchr(b'\n', rest)?;
            let line = &rest[..end.saturating_sub(1)];
            rest = &rest[end + 1..];
            Some(line)
        };
        let first = line().ok_or(Reject::bad("there is no request line"))?;
        if first.len() > MAX_LINE {
            return Err(LINE_TOO_LONG);
        }
        let target = self.request_line(first)?;
        while let Some(line) = line() {
            let (name, value) = fields::parse_line(line)?;
            if self.fields.len() == MAX_FIELDS {
                return Err(HEAD_TOO_LARGE);
            }
            self.fields.push(name, value);
        }
        let authority = self.take_target(target)?;
        self.check_host(authority)?;
        self.check_framing()?;
        self.check_connection()?;
        Ok(Some(end))
    }

    /// Method, target and version; the target.
    fn request_line<'a>(&mut self, line: &'a [u8]) -> Result<&'a [u8], Reject> {
        let mut parts = line.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Reject::bad(
                "the request line is not a method, a target and a version with one space between",
            ));
        };
        self.version = match version {
            b"HTTP/1.1" => Version::Http11,
            b"HTTP/1.0" => Version::Http10,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                return Err(Reject {
                    status: 505,
                    why: "this version of HTTP is not served",
                });
            }
            _ => return Err(Reject::bad("the request line ends with no version of HTTP")),
        };
        self.method = Method::parse(method)?;
        Ok(target)
    }

    /// The authority, where the target is in absolute form (RFC 9112 §3.2.2).
    fn take_target<'a>(&mut self, target: &'a [u8]) -> Result<Option<&'a [u8]>, Reject> {
        if target.first() == Some(&b'/') {
            self.path_length = path::normalise(target, &mut self.target)?;
            return Ok(None);
        }
        if target == b"*" && self.method == Method::Options {
            self.target.push('*');
            self.path_length = 1;
            return Ok(None);
        }
        let begins = |scheme: &[u8]| {
            target
                .get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        };
        let rest = if begins(b"http://") {
            &target[7..]
        } else if begins(b"https://") {
            &target[8..]
        } else {
            return Err(Reject::bad(
                "the request target is neither a path nor a URL",
            ));
        };
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b'/' | b'?' | b'#'));
        let (authority, rest) = rest.split_at(end.unwrap_or(rest.len()));
        self.path_length = match rest.first() {
            Some(b'/') => path::normalise(rest, &mut self.target)?,
            _ => {
                let whole = [b"/", rest].concat();
                path::normalise(&whole, &mut self.target)?
            }
        };
        Ok(Some(authority))
    }

    fn check_host(&mut self, authority: Option<&[u8]>) -> Result<(), Reject> {
        let mut all = self.fields.all(Name::Host);
        let value = match (all.next(), all.next()) {
            (Some(value), None) => value,
            (Some(_), Some(_)) => return Err(Reject::bad("there are two Host headers")),
            (None, _) => return Err(Reject::bad("there is no Host header")),
        };
        if authority.is_some_and(|authority| !authority.eq_ignore_ascii_case(value)) {
            return Err(Reject::bad(
                "the Host header contradicts the request target",
            ));
        }
        let host = host_of(value).ok_or(Reject::bad("the Host header is not a host"))?;
        self.host.push_str(host);
        self.host.make_ascii_lowercase();
        Ok(())
    }

    /// RFC 9112 §6.
    fn check_framing(&mut self) -> Result<(), Reject> {
        let mut codings = self.fields.all(Name::TransferEncoding);
        let mut lengths = self.fields.all(Name::ContentLength);
        self.framing = match (codings.next(), lengths.next()) {
            (None, None) => Framing::Empty,
            (Some(_), Some(_)) => {
                return Err(Reject::bad(
                    "Content-Length and Transfer-Encoding exclude each other",
                ));
            }
            (None, Some(length)) => {
                if lengths.next().is_some() {
                    return Err(Reject::bad("there are two Content-Length headers"));
                }
                match parse_length(length) {
                    Some(0) => Framing::Empty,
                    Some(length) => Framing::Length(length),
                    None => return Err(Reject::bad("Content-Length is no number")),
                }
            }
            (Some(coding), None) => {
                if codings.next().is_some() {
                    return Err(Reject::bad("there are two Transfer-Encoding headers"));
                }
                if self.version == Version::Http10 {
                    return Err(Reject::bad("HTTP/1.0 has no Transfer-Encoding"));
                }
                check_coding(coding)?;
                Framing::Chunked
            }
        };
        Ok(())
    }

    fn check_connection(&mut self) -> Result<(), Reject> {
        self.keep_alive = self.version == Version::Http11;
        let (mut upgrade, mut close) = (false, false);
        for option in self.fields.members(Name::Connection) {
            if !fields::is_token(option) {
                return Err(Reject::bad("the Connection header is no list of options"));
            }
            close |= option.eq_ignore_ascii_case(b"close");
            if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            }
            upgrade |= option.eq_ignore_ascii_case(b"upgrade");
        }
        self.keep_alive &= !close;
        // Only what stays a conversation with this app: h2c would carry further requests past us.
        let asked = self.fields.get(Name::Upgrade);
        let websocket = asked.is_some_and(|to| to.eq_ignore_ascii_case(b"websocket"));
        self.websocket = upgrade && websocket && self.version == Version::Http11;
        if self.websocket && self.method != Method::Get {
            return Err(Reject::bad("a WebSocket begins with GET"));
        }
        if self.websocket && self.framing != Framing::Empty {
            return Err(Reject::bad("a request for a WebSocket has no body"));
        }
        self.check_expect()
    }

    fn check_expect(&mut self) -> Result<(), Reject> {
        for expected in self.fields.members(Name::Expect) {
            if !expected.eq_ignore_ascii_case(b"100-continue") {
                return Err(Reject {
                    status: 417,
                    why: "only 100-continue can be expected",
                });
            }
            self.expect_continue =
                self.version != Version::Http10 && self.framing != Framing::Empty;
        }
        Ok(())
    }

    /// A head of an HTTP/2 request: `put` puts the fields in, then everything is checked.
    pub fn from_parts(
        &mut self,
        parts: &Parts<'_>,
        put: impl FnOnce(&mut Fields),
    ) -> Result<(), Reject> {
        self.clear();
        self.version = Version::Http2;
        put(&mut self.fields);
        if self.fields.len() > MAX_FIELDS || self.fields.size() > MAX_HEAD {
            return Err(HEAD_TOO_LARGE);
        }
        if self
            .fields
            .iter()
            .any(|f| !fields::is_token(f.name) || !fields::is_value(f.value))
        {
            return Err(Reject::bad("a header has a character that none may have"));
        }
        // RFC 9113 §8.2.1.
        if self.fields.iter().any(|f| fields::trim(f.value) != f.value) {
            return Err(Reject::bad("a header's value has white space around it"));
        }
        if parts
            .scheme
            .is_some_and(|scheme| scheme != "http" && scheme != "https")
        {
            return Err(Reject::bad("the scheme is neither http nor https"));
        }
        self.websocket = parts.method == "CONNECT" && parts.protocol == Some("websocket");
        self.method = if self.websocket {
            Method::Get
        } else {
            Method::parse(parts.method.as_bytes())?
        };
        if parts.path.len() > MAX_LINE {
            return Err(LINE_TOO_LONG);
        }
        if self.take_target(parts.path.as_bytes())?.is_some() {
            return Err(Reject::bad("the path is a URL"));
        }
        let authority = parts.authority.map(str::as_bytes);
        if let Some(authority) = authority
            && !self.fields.has(Name::Host)
        {
            self.fields.push(b"host", authority);
        }
        self.check_host(authority)?;
        self.finish(parts)
    }

    fn finish(&mut self, parts: &Parts<'_>) -> Result<(), Reject> {
        // RFC 9113 §8.2.2.
        let connection = [
            Name::Connection,
            Name::TransferEncoding,
            Name::KeepAlive,
            Name::ProxyConnection,
            Name::Upgrade,
        ];
        if connection.iter().any(|name| self.fields.has(*name)) {
            return Err(Reject::bad("HTTP/2 has no such connection header"));
        }
        if self
            .fields
            .all(Name::Te)
            .any(|te| !te.eq_ignore_ascii_case(b"trailers"))
        {
            return Err(Reject::bad("TE may only be trailers in HTTP/2"));
        }
        self.check_framing()?;
        if self.websocket && self.framing != Framing::Empty {
            return Err(Reject::bad("a request for a WebSocket has no body"));
        }
        if parts.has_body && self.framing == Framing::Empty {
            if self.fields.has(Name::ContentLength) && !self.websocket {
                return Err(Reject::bad("there is a body where Content-Length is 0"));
            }
            self.framing = Framing::Stream;
        } else if !parts.has_body && self.framing != Framing::Empty {
            return Err(Reject::bad(
                "the body that Content-Length announces is missing",
            ));
        }
        self.keep_alive = true;
        self.check_expect()
    }
}

fn parse_length(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn check_coding(coding: &[u8]) -> Result<(), Reject> {
    if coding.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut names = coding.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let known = names
        .by_ref()
        .filter(|name| name.eq_ignore_ascii_case(b"chunked"))
        .count();
    let words = coding
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .all(fields::is_token);
    if words && known < 2 {
        return Err(Reject {
            status: 501,
            why: "no transfer coding but chunked is understood",
        });
    }
    Err(Reject::bad("Transfer-Encoding is malformed"))
}

/// The host of `host[:port]` (RFC 9110 §7.2), as it is written.
pub fn host_of(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        address.parse::<std::net::Ipv6Addr>().ok()?;
        (&text[..address.len() + 2], port)
    } else {
        let end = text.find(':').unwrap_or(text.len());
        let (host, port) = text.split_at(end);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if host.is_empty() || host.len() > 255 || !host.bytes().all(plain) {
            return None;
        }
        (host, port)
    };
    let number = match port {
        "" => return Some(host),
        port => port.strip_prefix(':')?,
    };
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let fits = number.is_empty() || number.parse::<u16>().is_ok();
    (digits && fits).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RequestHead, Reject> {
        let mut head = RequestHead::default();
        match head.parse(text.as_bytes(), &mut Scan::default())? {
            Some(end) => {
                assert_eq!(end, text.len());
                Ok(head)
            }
            None => Err(Reject::bad("incomplete")),
        }
    }

    #[test]
    fn a_plain_request() {
        let head =
            parse("GET /a/../b?q HTTP/1.1\r\nHost: A.test:80\r\nAccept: x\r\n\r\n").expect("sound");
        assert_eq!(
            (head.host(), head.path(), head.query()),
            ("a.test", "/b", "?q")
        );
        assert!(head.keep_alive && head.framing == Framing::Empty);
        let head = parse("POST http://A/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
            .expect("sound");
        assert_eq!((head.path(), head.framing), ("/x", Framing::Length(5)));
        let head = parse("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n").expect("sound");
        assert_eq!(head.host(), "[::1]");
    }

    #[test]
    fn heads_are_found_however_they_are_cut() {
        let text = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let (mut head, mut scan) = (RequestHead::default(), Scan::default());
        for end in 0..text.len() {
            assert_eq!(head.parse(&text[..end], &mut scan), Ok(None), "{end}");
        }
        assert_eq!(head.parse(text, &mut scan), Ok(Some(text.len())));
    }

    #[test]
    fn bounds_have_their_statuses() {
        let long = "a".repeat(MAX_LINE);
        let status = |text: &str| parse(text).map(|_| ()).map_err(|reject| reject.status);
        assert_eq!(status(&format!("GET /{long}")), Err(414));
        assert_eq!(
            status(&format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n")),
            Err(414)
        );
        let fields = "a: b\r\n".repeat(MAX_FIELDS);
        assert_eq!(
            status(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")),
            Err(431)
        );
        let large = "b".repeat(MAX_HEAD);
        assert_eq!(
            status(&format!("GET / HTTP/1.1\r\nHost: a\r\na: {large}")),
            Err(431)
        );
        assert_eq!(status("\x16\x03\x01"), Err(400));
        assert_eq!(status("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), Err(505));
    }
}
