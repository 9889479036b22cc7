//! An app's response head: read alike however it is cut, framed by RFC 9112 §6.3, and fit to be passed on.
#![no_main]

use hutong_fuzz::{cuts, fields};
use hutong_http::fields::Fields;
use hutong_http::response::{Framing, ResponseHead};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    for to_head in [false, true] {
        let mut head = ResponseHead::default();
        let whole = head.parse(input, to_head);
        for ends in cuts::ways(input) {
            let mut again = used();
            let pieces = ends
                .iter()
                .map(|end| again.parse(&input[..*end], to_head))
                .find(|answer| *answer != Ok(None))
                .unwrap_or(Ok(None));
            assert_eq!(whole, pieces);
            if let Ok(Some(_)) = whole {
                assert!(is_same(&head, &again));
            }
        }
        if let Ok(Some(end)) = whole {
            assert!(end <= input.len() && input[..end].ends_with(b"\n"));
            // Nothing behind it is waited for.
            assert_eq!(used().parse(&input[..end], to_head), whole);
            lengths_agree(&head, &input[..end]);
            check(&head, to_head, input.starts_with(b"HTTP/1.0"));
            is_same_written_again(&head, to_head, &input[..8]);
        }
    }
});

/// A head that has served another answer, of which nothing may be left.
fn used() -> ResponseHead {
    let mut head = ResponseHead::default();
    let text = b"HTTP/1.1 299 Before\r\nConnection: close\r\nContent-Length: 9\r\n\r\n";
    assert_eq!(head.parse(text, false), Ok(Some(text.len())));
    head
}

fn is_same(one: &ResponseHead, other: &ResponseHead) -> bool {
    (one.status, one.framing, one.keep_alive) == (other.status, other.framing, other.keep_alive)
        && one.fields.iter().eq(other.fields.iter())
}

fn check(head: &ResponseHead, to_head: bool, http10: bool) {
    fields::check(&head.fields);
    assert!((100..=999).contains(&head.status));
    let lengths = fields::values(&head.fields, "content-length");
    let codings = members(&head.fields, "transfer-encoding");
    let coded = !fields::values(&head.fields, "transfer-encoding").is_empty();
    // It is passed on as it is (RFC 9110 §8.6).
    assert!(lengths.len() <= 1, "more than one Content-Length");
    let length = lengths.first().map(|length| {
        assert!(!length.is_empty() && length.iter().all(u8::is_ascii_digit));
        let length = std::str::from_utf8(length).expect("digits");
        length.parse::<u64>().expect("a number")
    });
    let framing = match length {
        _ if to_head || head.status < 200 || matches!(head.status, 204 | 304) => Framing::Empty,
        _ if coded => {
            assert_eq!(codings, ["chunked"]);
            Framing::Chunked
        }
        Some(0) => Framing::Empty,
        Some(length) => Framing::Length(length),
        None => Framing::Close,
    };
    assert_eq!(head.framing, framing);

    // RFC 9112 §9.3, in its order; §6.1 for what cannot be trusted.
    let options = members(&head.fields, "connection");
    let has = |option: &str| options.iter().any(|one| one == option);
    let persists = !has("close") && (!http10 || has("keep-alive"));
    let faulty = coded && (http10 || length.is_some());
    assert_eq!(
        head.keep_alive,
        persists && !faulty && framing != Framing::Close
    );
}

/// All that was said of the length, not only what is passed on of it.
fn lengths_agree(head: &ResponseHead, text: &[u8]) {
    let passed = fields::values(&head.fields, "content-length");
    for line in text.split(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(line).to_ascii_lowercase();
        if let Some(lengths) = line.strip_prefix("content-length:") {
            for length in lengths.split(',').map(str::trim) {
                let passed = String::from_utf8_lossy(passed[0]);
                assert_eq!(length.parse::<u64>(), passed.parse());
            }
        }
    }
}

/// Members of a list, in lower case.
fn members(all: &Fields, name: &str) -> Vec<String> {
    let list = fields::values(all, name).join(&b","[..]);
    list.split(|byte| *byte == b',')
        .map(|one| String::from_utf8_lossy(one.trim_ascii()).to_ascii_lowercase())
        .filter(|one| !one.is_empty())
        .collect()
}

fn is_same_written_again(head: &ResponseHead, to_head: bool, version: &[u8]) {
    let mut text = [version, format!(" {}\r\n", head.status).as_bytes()].concat();
    fields::write(&mut text, &head.fields);
    let mut again = ResponseHead::default();
    assert_eq!(again.parse(&text, to_head), Ok(Some(text.len())));
    assert!(is_same(head, &again));
}
