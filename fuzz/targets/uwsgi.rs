//! The uwsgi packet, and the CGI variables in it: what is written is read again, and any bytes are read alike
//! however they are cut.
#![no_main]

use std::collections::HashSet;

use hutong_fuzz::cuts;
use hutong_fuzz::pairs::{self, Pair};
use hutong_http::cgi;
use hutong_http::uwsgi::{MAX_VARS, TooLong, Var, head, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    any_bytes(input);
    let pairs = pairs::split(input);
    written_is_read(&pairs);
    variables(&pairs);
});

fn any_bytes(input: &[u8]) {
    let whole = parse(input);
    for ends in cuts::ways(input) {
        let answers = ends.iter().map(|end| (*end, parse(&input[..*end])));
        let mut answers = answers.filter(|(_, answer)| *answer != Ok(None));
        let Some((end, first)) = answers.next() else {
            assert_eq!(whole, Ok(None));
            continue;
        };
        assert_eq!(first, whole);
        if let Ok(Some((_, used))) = &first {
            assert!(*used <= end);
        }
        assert!(answers.all(|(_, answer)| answer == first));
    }
    if let Ok(Some((vars, used))) = whole {
        let mut out = Vec::new();
        assert_eq!(head(&mut out, texts(input, &vars)), Ok(()));
        assert_eq!(out, input[..used]);
        // Nothing behind it is waited for.
        assert!(matches!(parse(&out), Ok(Some((again, _))) if again == vars));
    }
}

fn texts<'a>(input: &'a [u8], vars: &[Var]) -> Vec<Pair<'a>> {
    vars.iter()
        .map(|(name, value)| (&input[name.clone()], &input[value.clone()]))
        .collect()
}

fn written_is_read(pairs: &[Pair<'_>]) {
    let named: Vec<Pair<'_>> = pairs
        .iter()
        .copied()
        .filter(|(name, _)| !name.is_empty())
        .collect();
    let size: usize = named.iter().map(|(n, v)| 4 + n.len() + v.len()).sum();
    let mut out = b"before".to_vec();
    let result = head(&mut out, pairs.iter().copied());
    if size > MAX_VARS {
        assert_eq!((result, &*out), (Err(TooLong), &b"before"[..]));
        return;
    }
    assert_eq!(result, Ok(()));
    out.extend(b"the body");
    let packet = out.strip_prefix(b"before").expect("it only adds");
    let (vars, used) = parse(packet).expect("well formed").expect("whole");
    assert_eq!(&packet[used..], b"the body");
    assert_eq!(texts(packet, &vars), named);
}

/// Whatever headers come, each variable is there once, and none is another's.
fn variables(headers: &[Pair<'_>]) {
    let headers = &headers[..headers.len().min(100)];
    let request = cgi::Request {
        method: "POST",
        script_name: b"/app",
        path_info: b"/",
        request_uri: b"/app/",
        query: b"",
        protocol: "HTTP/1.1",
        scheme: "https",
        server_name: "example.org",
        server_port: 443,
        remote_addr: "192.0.2.1",
        remote_port: 1,
        remote_user: None,
        document_root: None,
        script_filename: None,
        headers,
    };
    let all = cgi::variables(&request);
    let names: HashSet<_> = all.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), all.len(), "a variable twice");
    let ours = cgi::variables(&cgi::Request {
        headers: &[],
        ..request
    });
    assert_eq!(all[..ours.len()], ours, "a header changes what we say");
    let of_header = |byte: &u8| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_');
    for (name, value) in &all[ours.len()..] {
        assert!(name.iter().all(of_header), "{name:?}");
        assert!(**name != *b"HTTP_PROXY" && **name != *b"HTTP_CONTENT_LENGTH");
        assert!(name.starts_with(b"HTTP_") || name.starts_with(b"CONTENT_"));
        let least = headers.iter().any(|(_, one)| value.starts_with(one));
        assert!(least, "a value that no header has");
    }
}
