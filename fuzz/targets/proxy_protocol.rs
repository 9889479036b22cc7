//! The PROXY protocol: what a balancer writes is read, and any bytes are read alike however they are cut.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use hutong_fuzz::cuts;
use hutong_http::proxy_protocol::{Header, MAX_BLOCK, MAX_LINE, parse};
use libfuzzer_sys::fuzz_target;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fuzz_target!(|input: &[u8]| {
    any_bytes(input);
    if let Some((chosen, rest)) = input.split_first_chunk() {
        written_is_read(chosen, rest);
    }
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
        let Ok(Some((_, used))) = first else {
            // Which error it is may change, where a malformed line gets too long as well.
            assert!(whole.is_err() && answers.all(|(_, answer)| answer.is_err()));
            continue;
        };
        assert!(used <= end);
        assert_eq!(first, whole);
        assert!(answers.all(|(_, answer)| answer == first));
    }
    match whole {
        Ok(None) => assert!(input.len() < MAX_LINE.max(16 + MAX_BLOCK)),
        Ok(Some((header, used))) => {
            // Nothing behind it is waited for.
            assert_eq!(parse(&input[..used]), whole);
            match input[..used].strip_prefix(SIGNATURE) {
                Some(rest) => binary(header, rest),
                None => line(header, &input[..used]),
            }
        }
        Err(_) => {}
    }
}

/// A header that was accepted, by the table of §2.2.
fn binary(header: Header, rest: &[u8]) {
    let [command, family, high, low, block @ ..] = rest else {
        panic!("too short");
    };
    assert_eq!(block.len(), usize::from(u16::from_be_bytes([*high, *low])));
    let is_proxied = matches!(header, Header::Proxied { .. });
    let needed = match (command, family) {
        (0x20, _) | (0x21, 0x00..=0x02 | 0x10 | 0x20 | 0x30) => return assert!(!is_proxied),
        (0x21, 0x11 | 0x12) => 12,
        (0x21, 0x21 | 0x22) => 36,
        (0x21, 0x31 | 0x32) => 216,
        _ => panic!("no such header"),
    };
    assert!(block.len() >= needed && is_proxied == (needed < 216));
}

/// A line that was accepted says nothing else than what was read of it.
fn line(header: Header, text: &[u8]) {
    assert!(text.len() <= MAX_LINE);
    let text = text.strip_suffix(b"\r\n").expect("a whole line");
    assert!(!text.contains(&b'\r') && !text.contains(&b'\n'));
    let Header::Proxied {
        source,
        destination,
    } = header
    else {
        return assert!(text == b"PROXY UNKNOWN" || text.starts_with(b"PROXY UNKNOWN "));
    };
    let words: Vec<&str> = std::str::from_utf8(text)
        .expect("ASCII")
        .split(' ')
        .collect();
    assert_eq!(words.len(), 6);
    assert_eq!(words[4], source.port().to_string());
    assert_eq!(words[5], destination.port().to_string());
    assert_eq!(words[1], if source.is_ipv4() { "TCP4" } else { "TCP6" });
    if source.is_ipv4() {
        assert_eq!(words[2], source.ip().to_string());
        assert_eq!(words[3], destination.ip().to_string());
    }
}

/// Both versions of a header with two addresses, `rest` behind them.
fn written_is_read(chosen: &[u8; 37], rest: &[u8]) {
    let [flags, addresses @ ..] = chosen;
    let is_ipv6 = flags & 1 == 1;
    let address = |at: usize| {
        let port = u16::from_be_bytes([addresses[at + 16], addresses[at + 17]]);
        let mut ip = [0; 16];
        ip.copy_from_slice(&addresses[at..at + 16]);
        let [a, b, c, d, ..] = ip;
        let ip: IpAddr = if is_ipv6 {
            ip.into()
        } else {
            [a, b, c, d].into()
        };
        SocketAddr::new(ip, port)
    };
    let (source, destination) = (address(0), address(18));
    let proxied = Header::Proxied {
        source,
        destination,
    };

    let line = format!(
        "PROXY TCP{} {} {} {} {}\r\n",
        if is_ipv6 { 6 } else { 4 },
        source.ip(),
        destination.ip(),
        source.port(),
        destination.port()
    );
    reads_as(line.as_bytes(), rest, proxied);
    if !rest.contains(&b'\r') && !rest.contains(&b'\n') && rest.len() <= MAX_LINE - 16 {
        let unknown = [b"PROXY UNKNOWN ", rest, b"\r\n"].concat();
        reads_as(&unknown, rest, Header::Local);
    }

    // Some of the rest as TLVs.
    let (tlvs, rest) = rest.split_at(rest.len().min(usize::from(flags >> 2)));
    let transport = 1 + (flags >> 1 & 1);
    let block = [&octets(source.ip()), &octets(destination.ip())[..]].concat();
    let ports = [
        source.port().to_be_bytes(),
        destination.port().to_be_bytes(),
    ]
    .concat();
    let block = [&block, &ports, tlvs].concat();
    let family = if is_ipv6 { 0x20 } else { 0x10 } | transport;
    for (command, header) in [(0x21, proxied), (0x20, Header::Local)] {
        let size = (block.len() as u16).to_be_bytes();
        let text = [SIGNATURE, &[command, family], &size, &block].concat();
        reads_as(&text, rest, header);
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn reads_as(text: &[u8], rest: &[u8], header: Header) {
    let all = [text, rest].concat();
    assert_eq!(parse(&all), Ok(Some((header, text.len()))));
    for cut in 0..text.len() {
        assert_eq!(parse(&all[..cut]), Ok(None), "cut at {cut}");
    }
}
