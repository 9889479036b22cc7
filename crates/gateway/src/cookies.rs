//! Our own cookies (RFC 6265). They say nothing about the inside, and nothing about who the visitor is.

use hutong_http::fields::Name;
use hutong_http::request::RequestHead;

use crate::visitor::Peer;

/// The value of a visitor's cookie.
pub fn find<'h>(head: &'h RequestHead, name: &str) -> Option<&'h [u8]> {
    head.fields.all(Name::Cookie).find_map(|cookies| {
        cookies.split(|byte| *byte == b';').find_map(|cookie| {
            cookie
                .trim_ascii()
                .strip_prefix(name.as_bytes())?
                .strip_prefix(b"=")
        })
    })
}

/// A cookie to be set, until the browser is closed.
pub fn set(name: &str, value: &str, peer: &Peer) -> String {
    let secure = if peer.is_secure() { "; Secure" } else { "" };
    format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax{secure}")
}
