//! What holds for the fields of every message that was accepted.

use hutong_http::fields::{Fields, Name};

/// RFC 9110 §5: names are tokens, values have no control character but tab and no white space around.
pub fn check(fields: &Fields) {
    for field in fields.iter() {
        assert!(is_token(field.name), "{field:?}");
        assert!(is_value(field.value), "{field:?}");
        let text = field.value;
        assert!(
            !matches!(text.first(), Some(b' ' | b'\t')),
            "begins with white space: {field:?}"
        );
        assert!(
            !matches!(text.last(), Some(b' ' | b'\t')),
            "ends with white space: {field:?}"
        );
        assert_eq!(field.known, Name::of(field.name));
        assert!(fields.has(field.known));
    }
    assert_eq!(fields.iter().count(), fields.len());
}

/// All values of a name, looked for among all fields.
pub fn values<'a>(fields: &'a Fields, name: &str) -> Vec<&'a [u8]> {
    fields
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case(name.as_bytes()))
        .map(|field| field.value)
        .collect()
}

/// Writes a message's fields and its empty line. No blank behind the colon: what was accepted within a bound stays
/// within it.
pub fn write(out: &mut Vec<u8>, fields: &Fields) {
    for field in fields.iter() {
        out.extend([field.name, b":", field.value, b"\r\n"].concat());
    }
    out.extend(b"\r\n");
}

pub fn is_token(text: &[u8]) -> bool {
    let of_token = |byte: &u8| {
        matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z')
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.'
            )
            || matches!(byte, b'^' | b'_' | b'`' | b'|' | b'~')
    };
    !text.is_empty() && text.iter().all(of_token)
}

pub fn is_value(text: &[u8]) -> bool {
    text.iter()
        .all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
}
