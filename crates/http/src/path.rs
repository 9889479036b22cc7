//! A request target that means the same to us and to the app (RFC 3986 §6.2.2, RFC 9112 §3.2).

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::Reject;

/// Puts the target of a request (path and query, beginning with `/`) at the end of `out`, its dot segments
/// resolved, and what need not be escaped (RFC 3986 §2.3) not escaped; how many bytes of it are the path.
pub fn normalise(target: &[u8], out: &mut String) -> Result<usize, Reject> {
    let end = memchr::memchr(b'?', target).unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    if path.first() != Some(&b'/') {
        return Err(Reject::bad("the request target has no path"));
    }
    let dots = check_path(path)?;
    if !query.iter().all(|byte| is_visible(*byte) && *byte != b'#') {
        return Err(Reject::bad(
            "the query has a character that must be percent-encoded",
        ));
    }
    let begin = out.len();
    let text =
        |bytes| std::str::from_utf8(bytes).map_err(|_| Reject::bad("the target is not ASCII"));
    let plain = unescape(text(path)?);
    if dots {
        resolve(&plain, out)?;
    } else {
        out.push_str(&plain);
    }
    let length = out.len() - begin;
    out.push_str(text(query)?);
    Ok(length)
}

/// Unreserved characters as they are (RFC 3986 §6.2.2.2): rules for `/login` hold for `/%6Cogin`, too. The
/// escapes of a sound path are whole.
fn unescape(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut plain = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, escape) = rest.split_at(at);
        plain.push_str(before);
        let length = escape.len().min(3);
        let digits = escape.get(1..length).unwrap_or_default();
        match u8::from_str_radix(digits, 16) {
            Ok(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                plain.push(char::from(byte));
            }
            _ => plain.push_str(&escape[..length]),
        }
        rest = &escape[length..];
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

/// A normalised path as apps may read it: as it is; decoded before slashes are looked for, and many of those taken for
/// one; the same with dot segments resolved; and with what follows a `;` in each segment cut off before. What is to hold
/// for a path must hold in every reading. Bytes that are no UTF-8 are replaced.
pub fn readings(path: &str) -> Vec<Cow<'_, str>> {
    let mut all = vec![Cow::Borrowed(path)];
    if !path.contains(['%', ';']) && !path.contains("//") {
        return all;
    }
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let read = [
        collapse(decoded.split('/'), false),
        collapse(decoded.split('/'), true),
        collapse(decoded.split('/').map(without_parameters), true),
    ];
    for reading in read {
        if !all.iter().any(|known| **known == *reading) {
            all.push(Cow::Owned(reading));
        }
    }
    all
}

fn without_parameters(segment: &str) -> &str {
    segment.split(';').next().unwrap_or_default()
}

fn collapse<'a>(path: impl Iterator<Item = &'a str>, resolve: bool) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut folder = false;
    for segment in path {
        let dots = resolve && matches!(segment, "." | "..");
        folder = segment.is_empty() || dots;
        match segment {
            "" => {}
            "." if resolve => {}
            ".." if resolve => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    let mut out = String::new();
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if folder || segments.is_empty() {
        out.push('/');
    }
    out
}

fn is_visible(byte: u8) -> bool {
    (0x21..0x7f).contains(&byte)
}

/// Whether a sound path may hold a dot segment.
fn check_path(path: &[u8]) -> Result<bool, Reject> {
    let mut dots = false;
    for (at, byte) in path.iter().enumerate() {
        match byte {
            b'%' => dots |= check_escape(path.get(at + 1..at + 3))? == b'.',
            b'.' => dots |= path[at.saturating_sub(1)] == b'/' || dots,
            b'\\' | b'"' | b'<' | b'>' | b'`' | b'#' => {
                return Err(Reject::bad(
                    "the path has a character that must be percent-encoded",
                ));
            }
            byte if !is_visible(*byte) => {
                return Err(Reject::bad(
                    "the path has a character that must be percent-encoded",
                ));
            }
            _ => {}
        }
    }
    Ok(dots)
}

/// The byte that `%XX` stands for.
fn check_escape(digits: Option<&[u8]>) -> Result<u8, Reject> {
    let value = digits
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .and_then(|digits| u8::from_str_radix(digits, 16).ok());
    match value {
        None => Err(Reject::bad(
            "the path has a % without two hexadecimal digits",
        )),
        Some(0) => Err(Reject::bad("the path holds a NUL")),
        Some(byte) => Ok(byte),
    }
}

fn resolve(path: &str, out: &mut String) -> Result<(), Reject> {
    let begin = out.len();
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match dots(segment) {
            0 => {
                out.push('/');
                out.push_str(segment);
                continue;
            }
            1 => {}
            _ => {
                let Some(slash) = out[begin..].rfind('/') else {
                    return Err(Reject::bad("the path leaves its root"));
                };
                out.truncate(begin + slash);
            }
        }
        if last {
            out.push('/');
        }
    }
    Ok(())
}

/// 1 for `.`, 2 for `..`, also written with `%2e`; else 0.
fn dots(segment: &str) -> usize {
    let mut rest = segment;
    let mut count = 0;
    while !rest.is_empty() && count < 3 {
        let next = rest.strip_prefix('.').or_else(|| {
            let escape = rest.get(..3)?.eq_ignore_ascii_case("%2e");
            escape.then(|| &rest[3..])
        });
        let Some(next) = next else { return 0 };
        rest = next;
        count += 1;
    }
    if count < 3 { count } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(target: &str) -> Option<String> {
        let mut out = String::from("x");
        let length = normalise(target.as_bytes(), &mut out).ok()?;
        assert!(out[1 + length..].is_empty() || out[1 + length..].starts_with('?'));
        Some(out[1..].to_owned())
    }

    #[test]
    fn an_app_may_read_a_path_in_more_than_one_way() {
        let all: [(&str, &[&str]); 10] = [
            ("/", &["/"]),
            ("/login/x", &["/login/x"]),
            ("//login", &["//login", "/login"]),
            ("/%2Flogin", &["/%2Flogin", "/login"]),
            (
                "/x%2F..%2Flogin",
                &["/x%2F..%2Flogin", "/x/../login", "/login"],
            ),
            ("/login%2F.", &["/login%2F.", "/login/.", "/login/"]),
            (
                "/..%2F..%2Flogin",
                &["/..%2F..%2Flogin", "/../../login", "/login"],
            ),
            ("/%ff", &["/%ff", "/\u{fffd}"]),
            ("/open/..;/admin;v=1", &["/open/..;/admin;v=1", "/admin"]),
            (
                "/a.php/..%2F..%2Fopen",
                &["/a.php/..%2F..%2Fopen", "/a.php/../../open", "/open"],
            ),
        ];
        for (given, seen) in all {
            assert_eq!(readings(given), seen, "{given}");
        }
    }

    #[test]
    fn dot_segments_are_resolved_and_stay_inside() {
        for (given, seen) in [
            ("/", "/"),
            ("/a/b?x=/../y", "/a/b?x=/../y"),
            ("/a/../b", "/b"),
            ("/a/%2E%2e/b/.", "/b/"),
            ("/a/.%2e/", "/"),
            ("/a/..", "/"),
            ("/a/.hidden", "/a/.hidden"),
            ("/a/...", "/a/..."),
            ("/a..b/c.", "/a..b/c."),
            ("//a", "//a"),
            ("/a//../b", "/a/b"),
            ("/%41?%zz", "/A?%zz"),
            ("/%6cogin/%2F%e4%bd%a0%7e", "/login/%2F%e4%bd%a0~"),
            ("/.", "/"),
        ] {
            assert_eq!(path(given).as_deref(), Some(seen), "{given}");
        }
        for bad in [
            "",
            "a",
            "/..",
            "/a/../../b",
            "/a%00",
            "/a%0",
            "/a%",
            "/%zz",
            "/a b",
            "/a\\b",
            "/\u{e9}",
            "/#",
            "/?a b",
            "/?#",
            "/%2e%2e/",
            "/<",
        ] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }
}
