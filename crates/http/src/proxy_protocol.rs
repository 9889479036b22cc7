//! The PROXY protocol, versions 1 and 2: what a balancer in front of the gateway says about the visitor before
//! the first byte of the request. Here is only how it is read; whom to believe is the caller's to know, as
//! anybody can send such a header. No socket, no clock, no copy.
//!
//! Followed: "The PROXY protocol", versions 1 & 2 (HAProxy's `proxy-protocol.txt`), §2.1 (the line) and §2.2 (the
//! binary header). TLVs are skipped, and a checksum among them (PP2_TYPE_CRC32C) is not looked at.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The longest line of version 1, in bytes, CRLF included (§2.1).
pub const MAX_LINE: usize = 107;
/// The most that may follow the 16 bytes of a version 2 header, in bytes: addresses and TLVs. The field could say
/// 65535; what balancers send stays far below this.
pub const MAX_BLOCK: usize = 4096;

const SIGNATURE_1: &[u8] = b"PROXY ";
const SIGNATURE_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const HEADER_2: usize = 16;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The balancer speaks for itself (a health check), or cannot say for whom: the connection's own addresses
    /// count. LOCAL, UNSPEC and AF_UNIX of version 2, UNKNOWN of version 1.
    Local,
    /// The balancer passes on a connection.
    Proxied {
        /// The visitor.
        source: SocketAddr,
        /// What the visitor connected to.
        destination: SocketAddr,
    },
}

/// Why the bytes are no header. The connection must be closed (§2): nothing says where a request would begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It begins like neither version.
    Signature,
    /// Version 1: the line is malformed.
    Line,
    /// Version 1: the line is longer than [`MAX_LINE`].
    LineTooLong,
    /// Version 2: the signature of version 2 with another version, or an unknown command.
    Command,
    /// Version 2: an unknown address family or transport.
    Family,
    /// Version 2: too short for its addresses, or longer than [`MAX_BLOCK`].
    Length,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Broken::Signature => "no PROXY protocol header",
            Broken::Line => "a malformed PROXY line",
            Broken::LineTooLong => "a PROXY line that is too long",
            Broken::Command => "a PROXY header of an unknown version or command",
            Broken::Family => "a PROXY header of an unknown address family",
            Broken::Length => "a PROXY header of an impossible length",
        })
    }
}

impl Error for Broken {}

/// Reads the header at the beginning of a connection, and its length in bytes: the request begins there. `None`:
/// it is not whole yet, and may become so within [`MAX_LINE`], or 16 + [`MAX_BLOCK`], bytes in all.
///
/// # Errors
/// As soon as the bytes cannot become a header.
pub fn parse(input: &[u8]) -> Result<Option<(Header, usize)>, Broken> {
    if input.starts_with(SIGNATURE_1) {
        return parse_line(input);
    }
    if input.starts_with(SIGNATURE_2) {
        return parse_binary(input);
    }
    if SIGNATURE_1.starts_with(input) || SIGNATURE_2.starts_with(input) {
        return Ok(None);
    }
    Err(Broken::Signature)
}

/// Version 1 (§2.1).
fn parse_line(input: &[u8]) -> Result<Option<(Header, usize)>, Broken> {
    let bounded = &input[..input.len().min(MAX_LINE)];
    let end = bounded
        .iter()
        .position(|byte| matches!(byte, b'\r' | b'\n'));
    let line = &bounded[..end.unwrap_or(bounded.len())];
    let rest = &line[SIGNATURE_1.len()..];
    match &bounded[line.len()..] {
        [b'\r', b'\n', ..] => Ok(Some((parse_rest(rest)?, line.len() + 2))),
        [] | [b'\r'] if bounded.len() == MAX_LINE => Err(Broken::LineTooLong),
        [] => may_become(rest).then_some(None).ok_or(Broken::Line),
        [b'\r'] => parse_rest(rest).map(|_| None),
        _ => Err(Broken::Line),
    }
}

/// What follows the signature, without the line's end.
fn parse_rest(rest: &[u8]) -> Result<Header, Broken> {
    // For UNKNOWN, whatever follows is to be ignored, addresses too.
    if rest == b"UNKNOWN" || rest.starts_with(b"UNKNOWN ") {
        return Ok(Header::Local);
    }
    let rest = std::str::from_utf8(rest).map_err(|_| Broken::Line)?;
    let header = match rest.split_once(' ') {
        Some(("TCP4", addresses)) => parse_addresses::<Ipv4Addr>(addresses),
        Some(("TCP6", addresses)) => parse_addresses::<Ipv6Addr>(addresses),
        _ => None,
    };
    header.ok_or(Broken::Line)
}

/// Whether a line that has not ended may still become right. Addresses are looked at when the line is whole.
fn may_become(rest: &[u8]) -> bool {
    let begins = |protocol: &[u8]| protocol.starts_with(rest) || rest.starts_with(protocol);
    let of_addresses = |byte: &u8| byte.is_ascii_hexdigit() || b" .:".contains(byte);
    match rest.split_at_checked(b"TCP4 ".len()) {
        Some((b"TCP4 " | b"TCP6 ", addresses)) => addresses.iter().all(of_addresses),
        _ => begins(b"UNKNOWN ") || begins(b"TCP4 ") || begins(b"TCP6 "),
    }
}

/// Source and destination, then their ports, one blank between them. The standard library reads what
/// inet_pton(3) reads: no leading zeros in IPv4, every spelling of IPv6.
fn parse_addresses<A: FromStr + Into<IpAddr>>(addresses: &str) -> Option<Header> {
    let mut words = addresses.split(' ');
    let source: A = words.next()?.parse().ok()?;
    let destination: A = words.next()?.parse().ok()?;
    let source = SocketAddr::new(source.into(), parse_port(words.next()?)?);
    let destination = SocketAddr::new(destination.into(), parse_port(words.next()?)?);
    words.next().is_none().then_some(Header::Proxied {
        source,
        destination,
    })
}

/// Digits only, no leading zero: `parse` alone would take `+80` and `0080`.
fn parse_port(word: &str) -> Option<u16> {
    let canonical = word == "0" || !word.starts_with(['0', '+']);
    if canonical { word.parse().ok() } else { None }
}

/// Version 2 (§2.2). Each byte of the header is judged as soon as it is there.
fn parse_binary(input: &[u8]) -> Result<Option<(Header, usize)>, Broken> {
    let header = &input[SIGNATURE_2.len()..];
    let local = match header.first() {
        None => return Ok(None),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(Broken::Command),
    };
    let Some(&family) = header.get(1) else {
        return Ok(None);
    };
    // A LOCAL header's family and block are to be ignored, whatever they say.
    let needed = if local { 0 } else { addresses_size(family)? };
    let length = match header.get(2..) {
        Some([high, low, ..]) => usize::from(u16::from_be_bytes([*high, *low])),
        Some([high]) if usize::from(*high) << 8 > MAX_BLOCK => return Err(Broken::Length),
        _ => return Ok(None),
    };
    if !(needed..=MAX_BLOCK).contains(&length) {
        return Err(Broken::Length);
    }
    let end = HEADER_2 + length;
    let Some(block) = input.get(HEADER_2..end) else {
        return Ok(None);
    };
    let header = if local {
        Header::Local
    } else {
        proxied(family, block)
    };
    Ok(Some((header, end)))
}

/// How many bytes the addresses of a family take: its number is the upper half, the transport the lower.
fn addresses_size(family: u8) -> Result<usize, Broken> {
    match (family >> 4, family & 15) {
        (_, 3..) => Err(Broken::Family),
        (0, _) => Ok(0),
        (1, _) => Ok(12),
        (2, _) => Ok(36),
        (3, _) => Ok(216),
        _ => Err(Broken::Family),
    }
}

/// The addresses at the beginning of the block, if they are of the internet and of a known transport. Datagrams
/// count too: the visitor is who they say.
fn proxied(family: u8, block: &[u8]) -> Header {
    let pair = match family {
        0x11 | 0x12 => pair::<4>(block),
        0x21 | 0x22 => pair::<16>(block),
        _ => None,
    };
    match pair {
        Some((source, destination)) => Header::Proxied {
            source,
            destination,
        },
        None => Header::Local,
    }
}

/// Two addresses of N bytes, then their ports.
fn pair<const N: usize>(block: &[u8]) -> Option<(SocketAddr, SocketAddr)>
where
    IpAddr: From<[u8; N]>,
{
    let (source, block) = block.split_first_chunk::<N>()?;
    let (destination, block) = block.split_first_chunk::<N>()?;
    let (source_port, block) = block.split_first_chunk::<2>()?;
    let (destination_port, _) = block.split_first_chunk::<2>()?;
    let address =
        |ip: &[u8; N], port: &[u8; 2]| SocketAddr::new((*ip).into(), u16::from_be_bytes(*port));
    Some((
        address(source, source_port),
        address(destination, destination_port),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_to(source: &str, destination: &str) -> Header {
        Header::Proxied {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        }
    }

    /// A version 2 header.
    fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE_2.to_vec();
        bytes.extend([command, family]);
        bytes.extend((block.len() as u16).to_be_bytes());
        bytes.extend(block);
        bytes
    }

    /// Reads it, with a request behind it, and cut at every byte.
    fn whole(bytes: &[u8]) -> Header {
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "{bytes:?} cut at {cut}");
        }
        let mut more = bytes.to_vec();
        more.extend(b"GET / HTTP/1.1\r\n\r\n");
        let (header, used) = parse(&more).expect("well formed").expect("whole");
        assert_eq!(used, bytes.len());
        header
    }

    const IPV4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 2, 0xDC, 0x04, 0x01, 0xBB];

    fn ipv6() -> Vec<u8> {
        [[0x20; 16].as_slice(), &[0x30; 16], &[0, 1, 0, 2]].concat()
    }

    #[test]
    fn a_line_names_the_visitor() {
        let ipv4 = whole(b"PROXY TCP4 192.0.2.1 255.255.255.255 56324 0\r\n");
        assert_eq!(ipv4, from_to("192.0.2.1:56324", "255.255.255.255:0"));
        let ipv6 = whole(b"PROXY TCP6 2001:DB8::1 ::ffff:192.0.2.1 65535 443\r\n");
        assert_eq!(
            ipv6,
            from_to("[2001:db8::1]:65535", "[::ffff:192.0.2.1]:443")
        );
        let all = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let longest = format!("PROXY TCP6 {all} {all} 65535 65535\r\n");
        assert_eq!(longest.len(), 104);
        whole(longest.as_bytes());
    }

    #[test]
    fn an_unknown_line_is_local_whatever_follows() {
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_LINE - 16));
        assert_eq!(longest.len(), MAX_LINE);
        for line in [
            "PROXY UNKNOWN\r\n",
            "PROXY UNKNOWN \r\n",
            "PROXY UNKNOWN \0 \u{fc} 1\r\n",
            &longest,
        ] {
            assert_eq!(whole(line.as_bytes()), Header::Local, "{line:?}");
        }
    }

    #[test]
    fn a_line_that_is_not_exact_is_refused() {
        let rests = [
            "",
            " ",
            "TCP4",
            "TCP4 ",
            "TCP5 1.1.1.1 2.2.2.2 1 2",
            "tcp4 1.1.1.1 2.2.2.2 1 2",
            "UNKNOWNS",
            "UDP4 1",
            "TCP4 1.1.1.1 2.2.2.2 1",
            "TCP4 1.1.1.1 2.2.2.2 1 2 ",
            "TCP4 1.1.1.1 2.2.2.2 1 2 3",
            "TCP4  1.1.1.1 2.2.2.2 1 2",
            "TCP4 1.1.1.1\t2.2.2.2 1 2",
            " TCP4 1.1.1.1 2.2.2.2 1 2",
            "TCP4 01.1.1.1 2.2.2.2 1 2",
            "TCP4 1.1.1 2.2.2.2 1 2",
            "TCP4 256.1.1.1 2.2.2.2 1 2",
            "TCP4 ::1 ::2 1 2",
            "TCP4 1.1.1.1 2.2.2.2 01 2",
            "TCP4 1.1.1.1 2.2.2.2 00 2",
            "TCP4 1.1.1.1 2.2.2.2 +1 2",
            "TCP4 1.1.1.1 2.2.2.2 -1 2",
            "TCP4 1.1.1.1 2.2.2.2 65536 2",
            "TCP4 1.1.1.1 2.2.2.2  2",
            "TCP4 1.1.1.1 2.2.2.2 1 \u{661}",
            "TCP6 1.1.1.1 2.2.2.2 1 2",
            "TCP6 ::1 :::2 1 2",
            "TCP6 ::1%1 ::2 1 2",
            "TCP6 [::1] ::2 1 2",
            "TCP6 ::1 1::2::3 1 2",
            "TCP6 ::10000 ::2 1 2",
        ];
        for rest in rests {
            assert_eq!(
                parse(format!("PROXY {rest}\r\n").as_bytes()),
                Err(Broken::Line),
                "{rest:?}"
            );
        }
        assert_eq!(parse(b"PROXY UNKNOWN\n"), Err(Broken::Line));
        assert_eq!(parse(b"PROXY UNKNOWN a\rb\r\n"), Err(Broken::Line));
    }

    #[test]
    fn a_line_is_bounded() {
        let line = format!("PROXY UNKNOWN {}", "x".repeat(MAX_LINE));
        assert_eq!(parse(&line.as_bytes()[..MAX_LINE - 1]), Ok(None));
        assert_eq!(
            parse(&line.as_bytes()[..MAX_LINE]),
            Err(Broken::LineTooLong)
        );
        let late = format!("{}\r\n", &line[..MAX_LINE - 1]);
        assert_eq!(parse(late.as_bytes()), Err(Broken::LineTooLong));
        assert_eq!(
            parse(&late.as_bytes()[..MAX_LINE]),
            Err(Broken::LineTooLong)
        );
    }

    #[test]
    fn a_binary_header_names_the_visitor() {
        let ipv4 = from_to("192.0.2.1:56324", "198.51.100.2:443");
        let with_tlv = [IPV4, &[0x04, 0, 1, 9]].concat();
        for family in [0x11, 0x12] {
            assert_eq!(whole(&binary(0x21, family, IPV4)), ipv4);
            assert_eq!(whole(&binary(0x21, family, &with_tlv)), ipv4);
        }
        let address = |byte: &str, port| format!("[{}]:{port}", [byte; 8].join(":"));
        let ipv6_pair = from_to(&address("2020", 1), &address("3030", 2));
        assert_eq!(whole(&binary(0x21, 0x21, &ipv6())), ipv6_pair);
        let longest = [ipv6(), vec![0xFF; MAX_BLOCK - 36]].concat();
        assert_eq!(whole(&binary(0x21, 0x22, &longest)), ipv6_pair);
    }

    #[test]
    fn a_binary_header_that_names_nobody_is_local() {
        assert_eq!(whole(&binary(0x20, 0x00, b"")), Header::Local);
        assert_eq!(whole(&binary(0x20, 0xFF, b"ignored")), Header::Local);
        assert_eq!(whole(&binary(0x20, 0x11, IPV4)), Header::Local);
        for (family, size) in [
            (0x00, 0),
            (0x01, 7),
            (0x10, 12),
            (0x20, 36),
            (0x31, 216),
            (0x32, 300),
        ] {
            assert_eq!(
                whole(&binary(0x21, family, &vec![1; size])),
                Header::Local,
                "{family:#x}"
            );
        }
    }

    #[test]
    fn a_binary_header_is_refused_at_the_first_wrong_byte() {
        let long = vec![0; MAX_BLOCK + 1];
        let longer = vec![0; 0x1100];
        let cases = [
            (binary(0x11, 0x11, IPV4), 13, Broken::Command),
            (binary(0x22, 0x11, IPV4), 13, Broken::Command),
            (binary(0x21, 0x13, IPV4), 14, Broken::Family),
            (binary(0x21, 0x41, IPV4), 14, Broken::Family),
            (binary(0x21, 0x03, IPV4), 14, Broken::Family),
            (binary(0x21, 0x11, &IPV4[1..]), 16, Broken::Length),
            (binary(0x21, 0x21, IPV4), 16, Broken::Length),
            (binary(0x21, 0x31, &[0; 215]), 16, Broken::Length),
            (binary(0x20, 0x00, &long), 16, Broken::Length),
            (binary(0x21, 0x11, &longer), 15, Broken::Length),
        ];
        for (bytes, at, broken) in cases {
            assert_eq!(parse(&bytes[..at - 1]), Ok(None), "{bytes:?}");
            for end in [at, bytes.len()] {
                assert_eq!(parse(&bytes[..end]), Err(broken), "{bytes:?}");
            }
        }
    }

    #[test]
    fn anything_else_is_refused_at_the_first_wrong_byte() {
        for bytes in [
            &b"G"[..],
            b"\x16\x03\x01",
            b"\r\n\r\nG",
            b"\n",
            b"PROXY\r",
            b"PROXYS",
            b"proxy ",
            b"\0",
        ] {
            assert_eq!(parse(bytes), Err(Broken::Signature), "{bytes:?}");
        }
        for line in [
            &b"PROXY T4"[..],
            b"PROXY TCP5",
            b"PROXY UNKNOWNS",
            b"PROXY TCP4 g",
            b"PROXY TCP4 1\n",
        ] {
            assert_eq!(parse(line), Err(Broken::Line), "{line:?}");
            assert_eq!(parse(&line[..line.len() - 1]), Ok(None), "{line:?}");
        }
        assert_eq!(parse(b"PROXY TCP4 1.1.1.1\r"), Err(Broken::Line));
    }

    #[test]
    fn more_bytes_never_change_the_answer() {
        let mut seed = 3_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::from((seed >> 56) as u8)
        };
        let starts = [
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\nGET".to_vec(),
            b"PROXY TCP6 ::1 ::2 1 2\r\nGET".to_vec(),
            b"PROXY UNKNOWN 1\r\nGET".to_vec(),
            binary(0x21, 0x11, IPV4),
            binary(0x21, 0x21, &ipv6()),
        ];
        for round in 0..10_000 {
            let mut bytes = starts[round % starts.len()].clone();
            for _ in 0..random() % 3 {
                let at = random() % bytes.len();
                bytes[at] = if random() % 2 == 0 {
                    random() as u8
                } else {
                    b" \r\n.:0"[random() % 6]
                };
            }
            let answers: Vec<_> = (0..=bytes.len()).map(|cut| parse(&bytes[..cut])).collect();
            let first = answers
                .iter()
                .position(|answer| *answer != Ok(None))
                .unwrap_or(answers.len());
            assert!(
                answers[first..].windows(2).all(|two| two[0] == two[1]),
                "{bytes:?}"
            );
            if let Some(Ok(Some((_, used)))) = answers.get(first) {
                assert_eq!(*used, first);
            }
        }
    }
}
