//! Our strict readers beside others: what we accept, another must read in the same way, or requests could be
//! smuggled past one of the two.
//!
//! The other reader of heads is `httparse` (hyper, and with it many apps in Rust). It reads a target as bytes, so
//! ours is compared to what RFC 3986 makes of those. Two exceptions, both for responses, where we forgive more: we
//! do not look at the reason phrase, because it is never passed on, and may make one Content-Length of equal ones.
#![no_main]

use httparse::Status;
use hutong_fuzz::reference;
use hutong_http::chunked::Chunked;
use hutong_http::fields::Fields;
use hutong_http::request::{Framing, Method, RequestHead, Scan, Version};
use hutong_http::response::ResponseHead;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut head = RequestHead::default();
    if let Ok(Some(end)) = head.parse(input, &mut Scan::default()) {
        request(&head, &input[..end]);
        if head.framing == Framing::Chunked {
            chunked(&input[end..]);
        }
    }
    let mut head = ResponseHead::default();
    if let Ok(Some(end)) = head.parse(input, false) {
        response(&head, &input[..end]);
    }
    chunked(input);
});

fn request(ours: &RequestHead, text: &[u8]) {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut theirs = httparse::Request::new(&mut fields);
    assert_eq!(theirs.parse(text), Ok(Status::Complete(text.len())));
    assert_eq!(theirs.method, Some(ours.method.text()));
    let minor = match ours.version {
        Version::Http10 => 0,
        _ => 1,
    };
    assert_eq!(theirs.version, Some(minor));
    same_fields(&ours.fields, theirs.headers, "");
    let target = theirs.path.expect("a target");
    assert_eq!(
        Some(ours.target()),
        expected_target(ours, target).as_deref()
    );
}

/// What a target in any of its forms (RFC 9112 §3.2) is to an app.
fn expected_target(ours: &RequestHead, target: &str) -> Option<String> {
    if target == "*" {
        return (ours.method == Method::Options).then(|| target.to_owned());
    }
    if target.starts_with('/') {
        return reference::target(target.as_bytes());
    }
    let (scheme, rest) = target.split_once("://")?;
    assert!(["http", "https"].contains(&&*scheme.to_ascii_lowercase()));
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let host = authority.to_ascii_lowercase();
    assert!(host == ours.host() || host.starts_with(&format!("{}:", ours.host())));
    let slash = if rest.starts_with('/') { "" } else { "/" };
    reference::target(format!("{slash}{rest}").as_bytes())
}

fn response(ours: &ResponseHead, text: &[u8]) {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let reason = line.strip_suffix(b"\r").unwrap_or(line);
    let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    if reason.iter().any(is_control) {
        return;
    }
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut theirs = httparse::Response::new(&mut fields);
    assert_eq!(theirs.parse(text), Ok(Status::Complete(text.len())));
    assert_eq!(theirs.code, Some(ours.status));
    same_fields(&ours.fields, theirs.headers, "content-length");
}

fn same_fields(ours: &Fields, theirs: &[httparse::Header<'_>], but: &str) {
    let ours = ours.iter().map(|field| (field.name, field.value));
    let theirs = theirs
        .iter()
        .map(|field| (field.name.as_bytes(), field.value));
    let counts = |field: &(&[u8], &[u8])| !field.0.eq_ignore_ascii_case(but.as_bytes());
    assert!(ours.filter(counts).eq(theirs.filter(counts)));
}

fn chunked(input: &[u8]) {
    let (mut chunked, mut body, mut at) = (Chunked::default(), Vec::new(), 0);
    let mut done = false;
    while let Ok(step) = chunked.step(&input[at..]) {
        body.extend_from_slice(&input[at..][step.data]);
        at += step.consumed;
        done = step.done;
        if done || step.consumed == 0 {
            break;
        }
    }
    match reference::dechunk(input) {
        Some(theirs) if done => assert_eq!((body, at), (theirs.body, theirs.end)),
        Some(theirs) => assert!(!theirs.plain, "refused without a reason"),
        None => assert!(!done, "accepted, but there is no such body"),
    }
}
