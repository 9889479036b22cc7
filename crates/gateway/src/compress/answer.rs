//! The head of an answer: whether its body is one to be compressed, and what it says when it was.

use hutong_http::fields::{Fields, Name};

use super::Coding;

/// Below that a body fits into the packet that carries the head anyway, in bytes.
const MIN_LENGTH: u64 = 1024;

/// What compresses well and is neither `text/…` nor says by its suffix what it is written in. Fonts: the
/// plain ones; WOFF and WOFF2 are compressed in themselves.
const KINDS: [&str; 16] = [
    "application/ecmascript",
    "application/font-sfnt",
    "application/javascript",
    "application/json",
    "application/vnd.ms-fontobject",
    "application/wasm",
    "application/x-font-opentype",
    "application/x-font-otf",
    "application/x-font-truetype",
    "application/x-font-ttf",
    "application/x-javascript",
    "application/xml",
    "font/collection",
    "font/otf",
    "font/sfnt",
    "font/ttf",
];

/// RFC 6839 and what is called so; SVG and web app manifests are among them.
const SUFFIXES: [&str; 3] = ["+json", "+xml", "+text"];

/// They say what the body's bytes add up to, as they were: RFC 9530, RFC 3230 and RFC 2616 §14.15.
const DIGESTS: [&str; 4] = ["content-digest", "repr-digest", "digest", "content-md5"];

/// Whether an answer with a body of `length` bytes (`None`: who knows) gains by compression and may be
/// changed at all (RFC 9111 §5.2.2.6). Events (`text/event-stream`) are left alone: each is small, and what
/// counts is that it arrives at once.
pub fn is_worth_it(status: u16, answer: &Fields, length: Option<u64>) -> bool {
    matches!(status, 200..=203 | 207 | 400..=599)
        && length.is_none_or(|length| length >= MIN_LENGTH)
        && !answer.has(Name::ContentRange)
        && has_all(answer, Name::ContentEncoding, b"identity")
        && !has_member(answer, Name::CacheControl, b"no-transform")
        && answer.get(Name::ContentType).is_some_and(compresses_well)
}

/// Changes the head of an answer whose body is going to be coded so: another representation with another
/// length and another ETag, of which no ranges are served.
pub fn mark(answer: &mut Fields, coding: Coding) {
    answer.set(Name::ContentEncoding, coding.name().as_bytes());
    answer.remove(Name::ContentLength);
    answer.remove(Name::AcceptRanges);
    answer.retain(|field| field.known != Name::Other || !is_one_of(&DIGESTS, field.name));
    weaken(answer);
    vary(answer);
}

/// Says that Accept-Encoding was looked at (RFC 9110 §12.5.5): also due where the answer goes out as it is,
/// because a cache may hand it to somebody else.
pub fn vary(answer: &mut Fields) {
    let said = has_member(answer, Name::Vary, b"accept-encoding");
    if !said && !has_member(answer, Name::Vary, b"*") {
        answer.add(Name::Vary, b"Accept-Encoding");
    }
}

/// Changes the head of a 304: who asks with the ETag that [`mark`] has made weak is answered with that one.
/// With the strong one a cache would not find what it has stored (RFC 9111 §4.3.4).
pub fn not_modified(request: &Fields, answer: &mut Fields) {
    let Some(tag) = answer.get(Name::Etag).filter(|tag| is_strong(tag)) else {
        return;
    };
    let asked = request.all(Name::IfNoneMatch);
    let mut tags = asked.flat_map(|value| value.windows(tag.len() + 2));
    if tags.any(|text| text.strip_prefix(b"W/") == Some(tag)) {
        weaken(answer);
        vary(answer);
    }
}

/// RFC 9110 §8.8.1: a strong ETag promises the same bytes, a weak one the same meaning. What is neither
/// could be taken for a strong one and is left out.
fn weaken(answer: &mut Fields) {
    let Some(tag) = answer.get(Name::Etag) else {
        return;
    };
    if is_strong(tag) {
        let weak = [b"W/", tag].concat();
        answer.set(Name::Etag, &weak);
    } else if !tag.strip_prefix(b"W/").is_some_and(is_strong) {
        answer.remove(Name::Etag);
    }
}

fn is_strong(tag: &[u8]) -> bool {
    matches!(tag, [b'"', .., b'"'])
}

/// Whether a media type is worth compressing.
pub fn compresses_well(content_type: &[u8]) -> bool {
    let mut parts = content_type.split(|byte| *byte == b';');
    let kind = parts.next().unwrap_or_default().trim_ascii();
    let begins = |prefix: &str| {
        kind.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    let ends = |suffix: &str| {
        kind.len()
            .checked_sub(suffix.len())
            .is_some_and(|at| kind[at..].eq_ignore_ascii_case(suffix.as_bytes()))
    };
    if begins("text/") {
        return !kind.eq_ignore_ascii_case(b"text/event-stream");
    }
    is_one_of(&KINDS, kind) || SUFFIXES.iter().any(|suffix| ends(suffix))
}

fn is_one_of(list: &[&str], text: &[u8]) -> bool {
    list.iter()
        .any(|one| text.eq_ignore_ascii_case(one.as_bytes()))
}

/// Whether a list names it, in any case and alone (`private`, not `private="x"`).
fn has_member(fields: &Fields, name: Name, member: &[u8]) -> bool {
    let mut members = fields.members(name);
    members.any(|one| one.eq_ignore_ascii_case(member))
}

fn has_all(fields: &Fields, name: Name, member: &[u8]) -> bool {
    let mut members = fields.members(name);
    members.all(|one| one.eq_ignore_ascii_case(member))
}

#[cfg(test)]
mod tests;
