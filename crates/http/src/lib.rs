//! What goes over a visitor's and an app's connection, as bytes: strict readers and plain writers, without
//! any I/O. Everything here takes hostile input and never panics; the fuzz targets live in `fuzz/`.
//!
//! Start at [`request`] (what a visitor may say), [`response`] (what an app may), [`chunked`] (bodies).

pub mod cgi;
pub mod chunked;
pub mod fastcgi;
pub mod fields;
pub mod path;
pub mod proxy_protocol;
pub mod request;
pub mod response;
pub mod uwsgi;

/// Why a message is refused, and with which status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    pub status: u16,
    /// For the one who sent it.
    pub why: &'static str,
}

impl Reject {
    pub const fn bad(why: &'static str) -> Self {
        Reject { status: 400, why }
    }
}

impl std::fmt::Display for Reject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.why, self.status)
    }
}
