//! From plain HTTP to HTTPS: where a name has a certificate, plain requests are sent there; and what a
//! certificate authority asks for over plain HTTP (RFC 8555 §8.3).

use hutong_http::fields::{Fields, Name};
use hutong_http::request::RequestHead;
use hutong_ipc::gateway::{Https, covers};

use crate::Shared;
use crate::visitor::{Answer, Body, Peer};

const CHALLENGE: &str = "/.well-known/acme-challenge/";

/// The answer for a certificate authority, where one is asked for now.
pub fn challenge(shared: &Shared, head: &RequestHead) -> Option<Answer> {
    let token = head.path().strip_prefix(CHALLENGE)?;
    let text = shared.tls.answer(token)?;
    let mut answer = Answer::new(200).with(Name::ContentType, "application/octet-stream");
    answer.body = Body::Bytes(text.into());
    Some(answer)
}

/// The answer that sends a plain request to HTTPS, where it belongs there.
pub fn redirect(shared: &Shared, https: &Https, peer: &Peer, head: &RequestHead) -> Option<Answer> {
    let port = shared.https_port?;
    if peer.is_secure() || !https.redirect || !shared.tls.serves(head.host()) {
        return None;
    }
    let path = head.path();
    if https.except.iter().any(|prefix| covers(prefix, path)) {
        return None;
    }
    let port = match port {
        443 => String::new(),
        port => format!(":{port}"),
    };
    let location = format!("https://{}{port}{}", head.host(), head.target());
    // 308 keeps method and body (RFC 9110 §15.4.9); old clients know 301 better.
    let status = if head.method.is_safe() { 301 } else { 308 };
    Some(Answer::new(status).with(Name::Location, &location))
}

/// RFC 6797 §6.1, where the app does not say it itself.
pub fn say_hsts(fields: &mut Fields, value: &str) {
    if !fields.has(Name::StrictTransportSecurity) {
        fields.add(Name::StrictTransportSecurity, value.as_bytes());
    }
}
