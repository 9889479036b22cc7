//! Header fields as a list of places in one buffer: order and spelling stay as they came, and both memory
//! blocks are used again for the next message of a connection.

use crate::Reject;

/// Names that somebody here asks for; families count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Name {
    Other,
    Accept,
    AcceptEncoding,
    AcceptRanges,
    Allow,
    Authorization,
    CacheControl,
    Connection,
    ContentEncoding,
    ContentLength,
    ContentRange,
    ContentType,
    Cookie,
    Date,
    Etag,
    Expect,
    Forwarded,
    Host,
    IfModifiedSince,
    IfNoneMatch,
    IfRange,
    KeepAlive,
    LastModified,
    Location,
    ProxyAuthorization,
    ProxyConnection,
    Range,
    Referer,
    RetryAfter,
    SecWebSocketKey,
    SecWebSocketVersion,
    Server,
    SetCookie,
    StrictTransportSecurity,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    UserAgent,
    Vary,
    WwwAuthenticate,
    /// `X-Forwarded-*`.
    XForwarded,
    /// `X-Hutong-*`.
    XHutong,
    XRealIp,
    /// `X-WX-*`: what the WeChat platform says, never a visitor.
    XWx,
    /// Has a `_`, which CGI and WSGI cannot tell from `-`.
    Underscored,
}

impl Name {
    /// As it is written by us.
    pub fn text(self) -> &'static str {
        match self {
            Name::Accept => "accept",
            Name::AcceptEncoding => "accept-encoding",
            Name::AcceptRanges => "accept-ranges",
            Name::Allow => "allow",
            Name::Authorization => "authorization",
            Name::CacheControl => "cache-control",
            Name::Connection => "connection",
            Name::ContentEncoding => "content-encoding",
            Name::ContentLength => "content-length",
            Name::ContentRange => "content-range",
            Name::ContentType => "content-type",
            Name::Cookie => "cookie",
            Name::Date => "date",
            Name::Etag => "etag",
            Name::Expect => "expect",
            Name::Forwarded => "forwarded",
            Name::Host => "host",
            Name::IfModifiedSince => "if-modified-since",
            Name::IfNoneMatch => "if-none-match",
            Name::IfRange => "if-range",
            Name::KeepAlive => "keep-alive",
            Name::LastModified => "last-modified",
            Name::Location => "location",
            Name::ProxyAuthorization => "proxy-authorization",
            Name::ProxyConnection => "proxy-connection",
            Name::Range => "range",
            Name::Referer => "referer",
            Name::RetryAfter => "retry-after",
            Name::SecWebSocketKey => "sec-websocket-key",
            Name::SecWebSocketVersion => "sec-websocket-version",
            Name::Server => "server",
            Name::SetCookie => "set-cookie",
            Name::StrictTransportSecurity => "strict-transport-security",
            Name::Te => "te",
            Name::Trailer => "trailer",
            Name::TransferEncoding => "transfer-encoding",
            Name::Upgrade => "upgrade",
            Name::UserAgent => "user-agent",
            Name::Vary => "vary",
            Name::WwwAuthenticate => "www-authenticate",
            Name::XRealIp => "x-real-ip",
            Name::Other | Name::XForwarded | Name::XHutong | Name::XWx | Name::Underscored => "",
        }
    }

    /// Of a name in any case.
    pub fn of(name: &[u8]) -> Self {
        let mut lower = [0; 32];
        let Some(lower) = lower.get_mut(..name.len()) else {
            return Self::of_family(name);
        };
        for (to, from) in lower.iter_mut().zip(name) {
            *to = from.to_ascii_lowercase();
        }
        match &*lower {
            b"accept" => Name::Accept,
            b"accept-encoding" => Name::AcceptEncoding,
            b"accept-ranges" => Name::AcceptRanges,
            b"allow" => Name::Allow,
            b"authorization" => Name::Authorization,
            b"cache-control" => Name::CacheControl,
            b"connection" => Name::Connection,
            b"content-encoding" => Name::ContentEncoding,
            b"content-length" => Name::ContentLength,
            b"content-range" => Name::ContentRange,
            b"content-type" => Name::ContentType,
            b"cookie" => Name::Cookie,
            b"date" => Name::Date,
            b"etag" => Name::Etag,
            b"expect" => Name::Expect,
            b"forwarded" => Name::Forwarded,
            b"host" => Name::Host,
            b"if-modified-since" => Name::IfModifiedSince,
            b"if-none-match" => Name::IfNoneMatch,
            b"if-range" => Name::IfRange,
            b"keep-alive" => Name::KeepAlive,
            b"last-modified" => Name::LastModified,
            b"location" => Name::Location,
            b"proxy-authorization" => Name::ProxyAuthorization,
            b"proxy-connection" => Name::ProxyConnection,
            b"range" => Name::Range,
            b"referer" => Name::Referer,
            b"retry-after" => Name::RetryAfter,
            b"sec-websocket-key" => Name::SecWebSocketKey,
            b"sec-websocket-version" => Name::SecWebSocketVersion,
            b"server" => Name::Server,
            b"set-cookie" => Name::SetCookie,
            b"strict-transport-security" => Name::StrictTransportSecurity,
            b"te" => Name::Te,
            b"trailer" => Name::Trailer,
            b"transfer-encoding" => Name::TransferEncoding,
            b"upgrade" => Name::Upgrade,
            b"user-agent" => Name::UserAgent,
            b"vary" => Name::Vary,
            b"www-authenticate" => Name::WwwAuthenticate,
            b"x-real-ip" => Name::XRealIp,
            _ => Self::of_family(name),
        }
    }

    fn of_family(name: &[u8]) -> Self {
        let begins = |prefix: &[u8]| {
            name.get(..prefix.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        if name.contains(&b'_') {
            Name::Underscored
        } else if begins(b"x-forwarded-") {
            Name::XForwarded
        } else if begins(b"x-hutong-") {
            Name::XHutong
        } else if begins(b"x-wx-") {
            Name::XWx
        } else {
            Name::Other
        }
    }

    const fn bit(self) -> u64 {
        1 << self as u8
    }
}

#[derive(Clone, Copy, Debug)]
struct Span {
    at: u32,
    len: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Span,
    value: Span,
    known: Name,
}

/// One field, borrowed from its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    pub known: Name,
    pub name: &'a [u8],
    pub value: &'a [u8],
}

/// The fields of one message, below 4 GiB in all.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    list: Vec<Entry>,
    /// A bit for each [`Name`] that was ever put in.
    seen: u64,
}

impl Fields {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.list.clear();
        self.seen = 0;
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many bytes names and values have taken.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Puts a field at the end; the caller knows that it is one ([`is_token`], [`is_value`]).
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.push_as(Name::of(name), name, value);
    }

    fn push_as(&mut self, known: Name, name: &[u8], value: &[u8]) {
        let mut put = |text: &[u8]| {
            let at = self.bytes.len() as u32;
            self.bytes.extend_from_slice(text);
            Span {
                at,
                len: text.len() as u32,
            }
        };
        let (name, value) = (put(name), put(value));
        self.seen |= known.bit();
        self.list.push(Entry { name, value, known });
    }

    /// Puts a field of ours at the end. What is no value (a line end, say) is left out.
    pub fn add(&mut self, name: Name, value: &[u8]) {
        if is_value(value) {
            self.push_as(name, name.text().as_bytes(), value);
        }
    }

    /// In place of all of that name.
    pub fn set(&mut self, name: Name, value: &[u8]) {
        self.remove(name);
        self.add(name, value);
    }

    pub fn remove(&mut self, name: Name) {
        if self.has(name) {
            self.list.retain(|entry| entry.known != name);
            self.seen &= !name.bit();
        }
    }

    pub fn retain(&mut self, mut keep: impl FnMut(Field<'_>) -> bool) {
        let bytes = &self.bytes;
        self.list.retain(|entry| keep(entry.field(bytes)));
        self.seen = self.list.iter().fold(0, |seen, e| seen | e.known.bit());
    }

    pub fn has(&self, name: Name) -> bool {
        self.seen & name.bit() != 0
    }

    /// The first value of a name.
    pub fn get(&self, name: Name) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// The first value of a name, if it is UTF-8.
    pub fn text(&self, name: Name) -> Option<&str> {
        self.get(name).and_then(|v| std::str::from_utf8(v).ok())
    }

    pub fn all(&self, name: Name) -> impl Iterator<Item = &[u8]> {
        let list = if self.has(name) { &self.list[..] } else { &[] };
        list.iter()
            .filter(move |entry| entry.known == name)
            .map(|entry| entry.value.of(&self.bytes))
    }

    /// Members of a comma-separated list, over all fields of the name.
    pub fn members(&self, name: Name) -> impl Iterator<Item = &[u8]> {
        self.all(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|member| !member.is_empty())
    }

    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.list.iter().map(|entry| entry.field(&self.bytes))
    }
}

impl Span {
    fn of(self, bytes: &[u8]) -> &[u8] {
        let at = self.at as usize;
        bytes.get(at..at + self.len as usize).unwrap_or_default()
    }
}

impl Entry {
    fn field<'a>(&self, bytes: &'a [u8]) -> Field<'a> {
        Field {
            known: self.known,
            name: self.name.of(bytes),
            value: self.value.of(bytes),
        }
    }
}

/// Reads one field line without its line end (RFC 9112 §5).
pub fn parse_line(line: &[u8]) -> Result<(&[u8], &[u8]), Reject> {
    let Some(colon) = memchr::memchr(b':', line) else {
        return Err(Reject::bad("a header line has no colon"));
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if !is_token(name) {
        return Err(Reject::bad(match line.first() {
            Some(b' ' | b'\t') => "a header line is folded",
            _ => "a header's name has a character that none may have",
        }));
    }
    if !is_value(value) {
        return Err(Reject::bad("a header's value has a control character"));
    }
    Ok((name, trim(value)))
}

/// Without white space around (OWS of RFC 9110 §5.6.3: space and tab).
pub(crate) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"!#$%&'*+-.^_`|~";
    let mut index = 0;
    while index < others.len() {
        table[others[index] as usize] = true;
        index += 1;
    }
    table
};

/// RFC 9110 §5.6.2.
pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| TOKEN[*byte as usize])
}

/// RFC 9110 §5.5: no control character but tab. Eight bytes at a time.
pub fn is_value(text: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let plain = |byte: &u8| (*byte >= 0x20 && *byte != 0x7f) || *byte == b'\t';
    let (chunks, rest) = text.as_chunks::<8>();
    chunks.iter().all(|chunk| {
        let word = u64::from_ne_bytes(*chunk);
        let low = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        let delete = word ^ (ONES * 0x7f);
        let delete = delete.wrapping_sub(ONES) & !delete & HIGH;
        low | delete == 0 || chunk.iter().all(plain)
    }) && rest.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_order_and_know_names() {
        let mut fields = Fields::default();
        fields.push(b"HOST", b"a");
        fields.push(b"X-Other", b"1, 2");
        fields.push(b"Connection", b"close, ,x");
        fields.push(b"connection", b"y");
        assert_eq!(fields.get(Name::Host), Some(&b"a"[..]));
        let members: Vec<&[u8]> = fields.members(Name::Connection).collect();
        assert_eq!(members, [&b"close"[..], b"x", b"y"]);
        fields.set(Name::Connection, b"keep-alive");
        fields.add(Name::Location, b"a\r\nb: c");
        assert!(!fields.has(Name::Location));
        let all: Vec<&[u8]> = fields.iter().map(|field| field.name).collect();
        assert_eq!(all, [&b"HOST"[..], b"X-Other", b"connection"]);
        assert_eq!(Name::of(b"X_Real_IP"), Name::Underscored);
        assert_eq!(Name::of(b"x-Forwarded-For"), Name::XForwarded);
        assert_eq!(Name::of(&[b'a'; 100]), Name::Other);
    }

    #[test]
    fn every_byte_is_judged_alike_wherever_it_stands() {
        for byte in 0..=255_u8 {
            let good = (byte >= 0x20 && byte != 0x7f) || byte == b'\t';
            for at in 0..20 {
                let mut text = [b'a'; 20];
                text[at] = byte;
                assert_eq!(is_value(&text), good, "{byte} at {at}");
            }
        }
        assert!(parse_line(b"a : b").is_err() && parse_line(b" a: b").is_err());
        assert!(parse_line(b": b").is_err() && parse_line(b"a").is_err());
        assert_eq!(
            parse_line(b"a:\t b \t").expect("good"),
            (&b"a"[..], &b"b"[..])
        );
    }
}
