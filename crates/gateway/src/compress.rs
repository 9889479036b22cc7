//! Content codings for what goes back to visitors (RFC 9110 §8.4): which one ([`negotiate`]), whether it
//! pays ([`is_worth_it`]), whether it is safe ([`may_hold_secrets`]), the work itself ([`Encoder`]) and what
//! the answer's head says then ([`mark`], [`vary`]). No files, sockets or clock.
//!
//! The order of asking, for an answer of an app: worth it → [`vary`], whatever comes next → safe → negotiate
//! → [`Encoder::new`] → [`mark`]. Files that were compressed beforehand need neither the second nor the
//! fourth step, and nothing in a file of a static app depends on the request: it is always safe.

mod accept;
mod answer;
mod breach;
mod encoder;

pub use accept::negotiate;
pub use answer::{compresses_well, vary};
use answer::{is_worth_it, mark, not_modified};
use breach::may_hold_secrets;
pub use encoder::Encoder;

use hutong_http::fields::{Fields, Name};

use crate::visitor::Length;

/// What a body can be coded with here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 7932.
    Brotli,
    /// RFC 8878, with a window that every client must have (RFC 9659: 8 MiB; ours is far smaller).
    Zstd,
}

/// How to compress an answer to this request, if it is to be: its head says so when this returns. An answer
/// to HEAD says what one to GET would (RFC 9110 §9.3.2). `public`: nothing of the request is in the answer.
pub fn begin(
    request: &Fields,
    status: u16,
    answer: &mut Fields,
    length: Length,
    public: bool,
) -> Option<Encoder> {
    // Gzip is as small as Brotli is at this speed, in a third of the memory.
    const OFFERED: [Coding; 3] = [Coding::Zstd, Coding::Gzip, Coding::Brotli];
    if status == 304 {
        not_modified(request, answer);
        return None;
    }
    let known = match length {
        Length::None => answer
            .text(Name::ContentLength)
            .and_then(|text| text.parse().ok()),
        Length::Known(length) => Some(length),
        Length::Unknown => None,
    };
    if !is_worth_it(status, answer, known) {
        return None;
    }
    vary(answer);
    if !public && may_hold_secrets(request, answer) {
        return None;
    }
    let coding = negotiate(request, &OFFERED)?;
    let encoder = Encoder::new(coding).ok()?;
    mark(answer, coding);
    Some(encoder)
}

impl Coding {
    /// As in Accept-Encoding and Content-Encoding.
    pub fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Brotli => "br",
            Coding::Zstd => "zstd",
        }
    }

    /// RFC 9110 §8.4.1: in any case, and `x-gzip` is gzip.
    fn of(name: &[u8]) -> Option<Self> {
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        if is("gzip") || is("x-gzip") {
            Some(Coding::Gzip)
        } else if is("br") {
            Some(Coding::Brotli)
        } else if is("zstd") {
            Some(Coding::Zstd)
        } else {
            None
        }
    }
}
