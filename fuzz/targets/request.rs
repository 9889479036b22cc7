//! A visitor's request head: read alike however it is cut, sound when it is accepted, and the same when it is
//! written again, in HTTP/1 or in HTTP/2.
#![no_main]

use std::fmt::Debug;

use hutong_fuzz::{cuts, fields, reference};
use hutong_http::Reject;
use hutong_http::fields::{Fields, Name};
use hutong_http::path::normalise;
use hutong_http::request::{
    Framing, MAX_FIELDS, MAX_HEAD, Method, Parts, RequestHead, Scan, Version, host_of,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut head = RequestHead::default();
    let whole = head.parse(input, &mut Scan::default());
    for ends in cuts::ways(input) {
        is_same_in_pieces(input, &ends, &head, whole);
    }
    if let Ok(Some(end)) = whole {
        assert!(end <= input.len() && input[..end].ends_with(b"\r\n\r\n"));
        assert!(end <= MAX_HEAD + 8, "empty lines and a head");
        // Nothing behind it is waited for.
        let alone = used().parse(&input[..end], &mut Scan::default());
        assert_eq!(alone, whole);
        check(&head);
        check_http1(&head);
        is_same_written_again(&head);
        is_same_in_http2(&head);
    }
    for has_body in [false, true] {
        http2_is_sound(input, has_body);
    }
});

/// As the gateway reads it: what is there is shown from its beginning with one `Scan`, until there is an answer.
fn is_same_in_pieces(
    input: &[u8],
    ends: &[usize],
    head: &RequestHead,
    whole: Result<Option<usize>, Reject>,
) {
    let (mut again, mut scan) = (used(), Scan::default());
    let pieces = ends
        .iter()
        .map(|end| again.parse(&input[..*end], &mut scan))
        .find(|answer| *answer != Ok(None))
        .unwrap_or(Ok(None));
    match (whole, pieces) {
        (Err(whole), Err(pieces)) => {
            // That it is too long may show before the line end without CR that comes later.
            let sooner = whole.status == 400 && matches!(pieces.status, 414 | 431);
            assert!(sooner || whole.status == pieces.status);
        }
        _ => assert_eq!(whole, pieces),
    }
    if let Ok(Some(_)) = whole {
        assert_eq!(said(head), said(&again));
    }
}

/// A head that has served another request, of which nothing may be left.
fn used() -> RequestHead {
    let mut head = RequestHead::default();
    let text = b"PUT http://before.test:1/be?fore HTTP/1.1\r\nHost: before.test:1\r\n\
        Expect: 100-continue\r\nContent-Length: 9\r\nX_Before: 1\r\n\r\n";
    let parsed = head.parse(text, &mut Scan::default());
    assert_eq!(parsed, Ok(Some(text.len())));
    head
}

/// All that a head says.
fn said(head: &RequestHead) -> impl PartialEq + Debug + '_ {
    let flags = (head.keep_alive, head.websocket, head.expect_continue);
    let target = (head.host(), head.path(), head.query());
    let all: Vec<_> = head.fields.iter().collect();
    (&head.method, head.version, head.framing, flags, target, all)
}

fn check(head: &RequestHead) {
    fields::check(&head.fields);
    assert!(head.fields.len() <= MAX_FIELDS + 1, "and Host in HTTP/2");
    assert!(fields::is_token(head.method.text().as_bytes()));
    assert!(!matches!(head.method.text(), "CONNECT" | "TRACE"));

    let hosts = fields::values(&head.fields, "host");
    assert_eq!(hosts.len(), 1);
    let host = host_of(hosts[0]).expect("a host");
    assert_eq!(host.to_ascii_lowercase(), head.host());
    assert!(!host.is_empty() && !host.contains(['/', '@', ' ', '?', '#', ',']));

    let (path, query) = (head.path(), head.query());
    assert_eq!([path, query].concat(), head.target());
    if path == "*" {
        assert!(head.method == Method::Options && query.is_empty());
        return;
    }
    assert!(!reference::has_dot_segment(path), "{path}");
    let mut again = String::new();
    let length = normalise(head.target().as_bytes(), &mut again);
    assert_eq!((length, &*again), (Ok(path.len()), head.target()));
}

/// RFC 9112 §6, §9.3.
fn check_http1(head: &RequestHead) {
    let lengths = fields::values(&head.fields, "content-length");
    let codings = fields::values(&head.fields, "transfer-encoding");
    let framing = match (&lengths[..], &codings[..]) {
        ([], []) => Framing::Empty,
        ([length], []) => {
            assert!(!length.is_empty() && length.iter().all(u8::is_ascii_digit));
            match std::str::from_utf8(length).expect("digits").parse() {
                Ok(0) => Framing::Empty,
                length => Framing::Length(length.expect("a number")),
            }
        }
        ([], [coding]) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked") && head.version == Version::Http11);
            Framing::Chunked
        }
        _ => panic!("two ways to read it: {lengths:?}, {codings:?}"),
    };
    assert_eq!(head.framing, framing);
    let connection = fields::values(&head.fields, "connection").join(&b","[..]);
    let has = |option: &str| {
        connection
            .split(|byte| *byte == b',')
            .any(|one| one.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
    };
    let persists = head.version == Version::Http11 || has("keep-alive");
    assert_eq!(head.keep_alive, persists && !has("close"));
    assert!(!head.websocket || (head.framing == Framing::Empty && has("upgrade")));
}

fn is_same_written_again(head: &RequestHead) {
    let version = match head.version {
        Version::Http10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    };
    let mut text = request_line(head, version);
    fields::write(&mut text, &head.fields);
    let mut again = RequestHead::default();
    let parsed = again.parse(&text, &mut Scan::default());
    assert_eq!(parsed, Ok(Some(text.len())));
    assert_eq!(said(head), said(&again));
}

fn request_line(head: &RequestHead, version: &str) -> Vec<u8> {
    format!("{} {} {version}\r\n", head.method.text(), head.target()).into_bytes()
}

/// What is only said in HTTP/1 (RFC 9113 §8.2.2).
const OF_CONNECTION: [Name; 6] = [
    Name::Connection,
    Name::KeepAlive,
    Name::ProxyConnection,
    Name::Te,
    Name::TransferEncoding,
    Name::Upgrade,
];

fn is_same_in_http2(head: &RequestHead) {
    let host = fields::values(&head.fields, "host")[0];
    let parts = Parts {
        method: head.method.text(),
        scheme: Some("https"),
        authority: std::str::from_utf8(host).ok(),
        path: head.target(),
        protocol: None,
        has_body: head.framing != Framing::Empty,
    };
    let passed = || {
        head.fields
            .iter()
            .filter(|field| !OF_CONNECTION.contains(&field.known))
    };
    let mut again = used();
    let result = again.from_parts(&parts, |fields| {
        passed().for_each(|field| fields.push(field.name, field.value));
    });
    assert_eq!(result, Ok(()));
    check(&again);
    assert_eq!(
        (&head.method, head.host(), head.path(), head.query()),
        (&again.method, again.host(), again.path(), again.query())
    );
    assert!(passed().eq(again.fields.iter()));
    let framing = match head.framing {
        Framing::Chunked => Framing::Stream,
        other => other,
    };
    assert_eq!(again.framing, framing);
}

/// Reads the bytes as an HTTP/2 request, so that anything may be in its parts: a line of method and path, then a
/// field a line, `:authority`, `:scheme` and `:protocol` among them.
fn http2_is_sound(input: &[u8], has_body: bool) {
    let mut lines = input
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut words = lines.next().unwrap_or_default().split(|byte| *byte == b' ');
    let mut word = || words.next().and_then(|word| std::str::from_utf8(word).ok());
    let (Some(method), Some(path)) = (word(), word()) else {
        return;
    };
    let (pseudo, plain): (Vec<_>, Vec<_>) = lines
        .filter_map(field)
        .partition(|(name, _)| name.starts_with(b":"));
    let pseudo = |wanted: &[u8]| {
        let found = pseudo.iter().find(|(name, _)| *name == wanted)?;
        std::str::from_utf8(found.1).ok()
    };
    let parts = Parts {
        method,
        scheme: pseudo(b":scheme"),
        authority: pseudo(b":authority"),
        path,
        protocol: pseudo(b":protocol"),
        has_body,
    };
    let mut head = used();
    let put = |fields: &mut Fields| {
        plain
            .iter()
            .for_each(|(name, value)| fields.push(name, value));
    };
    if head.from_parts(&parts, put).is_ok() {
        check(&head);
        assert!(
            OF_CONNECTION
                .iter()
                .all(|name| *name == Name::Te || !head.fields.has(*name))
        );
        assert!(fields::values(&head.fields, "content-length").len() <= 1);
        assert_eq!(head.framing == Framing::Empty, !has_body);
        http2_reaches_an_app(&head);
    }
}

fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = 1 + line.get(1..)?.iter().position(|byte| *byte == b':')?;
    let value = &line[colon + 1..];
    Some((&line[..colon], value.strip_prefix(b" ").unwrap_or(value)))
}

/// What came by HTTP/2 means the same to an app that gets it by HTTP/1.
fn http2_reaches_an_app(head: &RequestHead) {
    let mut text = request_line(head, "HTTP/1.1");
    let is_long_line = text.len() > 16 << 10;
    let (of_http1, framing): (&[&str], _) = match head.framing {
        // All that follows is the conversation: a body in front of it would be the next request's beginning.
        _ if head.websocket => (&["connection:upgrade", "upgrade:websocket"], Framing::Empty),
        Framing::Stream => (&["transfer-encoding:chunked"], Framing::Chunked),
        framing => (&[], framing),
    };
    for line in of_http1 {
        text.extend([line.as_bytes(), b"\r\n"].concat());
    }
    fields::write(&mut text, &head.fields);
    // What is just within a bound there may be just beyond it here.
    if is_long_line || text.len() > MAX_HEAD || head.fields.len() + 2 > MAX_FIELDS {
        return;
    }
    let mut again = RequestHead::default();
    let parsed = again.parse(&text, &mut Scan::default());
    assert_eq!(parsed, Ok(Some(text.len())));
    assert_eq!(
        (&head.method, head.host(), head.target(), framing),
        (&again.method, again.host(), again.target(), again.framing)
    );
    assert_eq!(head.websocket, again.websocket);
    let passed = again.fields.iter().skip(of_http1.len());
    assert!(head.fields.iter().eq(passed));
}
