//! Second opinions: a request target and a chunked body, read as the standards describe it.

/// A target in origin form as an app should see it. `None`: it is to be refused.
pub fn target(target: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(target).ok()?;
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains('#') {
        return None;
    }
    let (path, query) = match text.find('?') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    if !path.starts_with('/') || path.contains(['\\', '"', '<', '>', '`']) {
        return None;
    }
    for escape in path.split('%').skip(1) {
        let digits = escape.get(..2)?;
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex || digits == "00" {
            return None;
        }
    }
    Some(remove_dot_segments(&unescape(path))? + query)
}

/// Without the escapes that mean the same without them (RFC 3986 §6.2.2.2).
fn unescape(path: &str) -> String {
    let unreserved =
        (0_u8..128).filter(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte));
    let mut plain = path.to_owned();
    for byte in unreserved {
        let character = char::from(byte).to_string();
        let (low, high) = (byte & 15, byte >> 4);
        for low in [format!("{low:x}"), format!("{low:X}")] {
            plain = plain.replace(&format!("%{high}{low}"), &character);
        }
    }
    plain
}

/// RFC 3986 §5.2.4, step by step, with escaped dots read as such; `None` where it would leave the root.
fn remove_dot_segments(path: &str) -> Option<String> {
    let plain: Vec<String> = path.split('/').map(plain_dots).collect();
    let path = plain.join("/");
    let (mut input, mut output) = (path.as_str(), String::new());
    while !input.is_empty() {
        if input.starts_with("/./") {
            input = &input[2..];
        } else if input == "/." {
            input = "/";
        } else if input.starts_with("/../") || input == "/.." {
            output.truncate(output.rfind('/')?);
            input = if input == "/.." { "/" } else { &input[3..] };
        } else {
            let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
            output.push_str(&input[..end]);
            input = &input[end..];
        }
    }
    Some(output)
}

/// The segment, or `.` and `..` without escapes.
fn plain_dots(segment: &str) -> String {
    // The longest is `%2e%2e`.
    if segment.len() <= 6 {
        let plain = segment.replace("%2e", ".").replace("%2E", ".");
        if is_dots(&plain) {
            return plain;
        }
    }
    segment.to_owned()
}

/// Whether a path has a segment that would be resolved.
pub fn has_dot_segment(path: &str) -> bool {
    path.split('/').any(|segment| is_dots(&plain_dots(segment)))
}

fn is_dots(segment: &str) -> bool {
    segment == "." || segment == ".."
}

/// A chunked body that is whole.
#[derive(Debug)]
pub struct Dechunked {
    pub body: Vec<u8>,
    /// Where it ends in the input.
    pub end: usize,
    /// Without extensions and trailers nobody has a reason to refuse it.
    pub plain: bool,
}

/// Reads a chunked body (RFC 9112 §7.1) that is there as a whole; extensions and trailers may be anything.
pub fn dechunk(input: &[u8]) -> Option<Dechunked> {
    let (mut body, mut at, mut plain) = (Vec::new(), 0, true);
    loop {
        let line = line(input, at)?;
        at += line.len() + 2;
        let digits = line.split(|byte| *byte == b';').next()?;
        let digits = std::str::from_utf8(digits).ok()?;
        // `from_str_radix` alone would take a sign.
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        plain &= digits.len() == line.len() && digits.len() <= 16;
        let size = usize::from_str_radix(digits, 16).ok()?;
        if size == 0 {
            break;
        }
        let end = at.checked_add(size)?;
        body.extend_from_slice(input.get(at..end)?);
        if input.get(end..end.checked_add(2)?)? != b"\r\n" {
            return None;
        }
        at = end + 2;
    }
    loop {
        let line = line(input, at)?;
        at += line.len() + 2;
        if line.is_empty() {
            let end = at;
            return Some(Dechunked { body, end, plain });
        }
        plain = false;
    }
}

/// The line that begins `at`, without its CRLF.
fn line(input: &[u8], at: usize) -> Option<&[u8]> {
    let rest = input.get(at..)?;
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    Some(&rest[..end])
}
