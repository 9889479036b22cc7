//! The uwsgi protocol: the packet before a request's body. The body follows it unframed, and the answer is plain
//! HTTP, so neither is here. No socket, no clock; [`parse`] answers with ranges of its input.
//!
//! Followed: "The uwsgi Protocol" of uWSGI's documentation, modifier 0 (WSGI and PSGI requests), and how uWSGI
//! reads it (`uwsgi_parse_vars`). All numbers are little-endian.

use std::error::Error;
use std::fmt;
use std::ops::Range;

/// The most that the variables of one request take together, in bytes, lengths included. The receiver may hold
/// less: uWSGI's `buffer-size` is 4096 bytes unless it is told another.
pub const MAX_VARS: usize = u16::MAX as usize;

const HEADER: usize = 4;

/// The variables do not fit into one packet: they take more than [`MAX_VARS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request's variables do not fit into one uwsgi packet")
    }
}

impl Error for TooLong {}

/// Why a packet cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Another modifier than 0.
    Modifier,
    /// A variable that goes beyond the packet.
    Overrun,
    /// A variable without a name.
    NoName,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Broken::Modifier => "a uwsgi packet that is no request",
            Broken::Overrun => "a uwsgi variable that goes beyond its packet",
            Broken::NoName => "a uwsgi variable without a name",
        })
    }
}

impl Error for Broken {}

/// Appends the packet with the request's variables. One without a name is left out: uWSGI would refuse the whole
/// request.
///
/// # Errors
/// The variables take more than [`MAX_VARS`]; `out` is as before.
pub fn head(
    out: &mut Vec<u8>,
    vars: impl IntoIterator<Item = (impl AsRef<[u8]>, impl AsRef<[u8]>)>,
) -> Result<(), TooLong> {
    let before = out.len();
    out.extend([0; HEADER]);
    match put_all(out, vars) {
        Ok(size) => {
            out[before + 1..before + 3].copy_from_slice(&size.to_le_bytes());
            Ok(())
        }
        Err(too_long) => {
            out.truncate(before);
            Err(too_long)
        }
    }
}

/// Appends the variables; how many bytes they take.
fn put_all(
    out: &mut Vec<u8>,
    vars: impl IntoIterator<Item = (impl AsRef<[u8]>, impl AsRef<[u8]>)>,
) -> Result<u16, TooLong> {
    let mut size = 0_u16;
    for (name, value) in vars {
        let (name, value) = (name.as_ref(), value.as_ref());
        if name.is_empty() {
            continue;
        }
        for part in [name, value] {
            let length = u16::try_from(part.len()).map_err(|_| TooLong)?;
            size = size
                .checked_add(2)
                .and_then(|size| size.checked_add(length))
                .ok_or(TooLong)?;
            out.extend(length.to_le_bytes());
            out.extend_from_slice(part);
        }
    }
    Ok(size)
}

/// A variable's name and value, as ranges of the parsed input.
pub type Var = (Range<usize>, Range<usize>);

/// Reads the packet at the beginning of `input`: its variables in their order, and its length in bytes; the body
/// begins there. `None`: it is not whole yet.
///
/// # Errors
/// It is no request, or its variables do not add up to its size.
pub fn parse(input: &[u8]) -> Result<Option<(Vec<Var>, usize)>, Broken> {
    if !matches!(input, [] | [0] | [0, _] | [0, _, _] | [0, _, _, 0, ..]) {
        return Err(Broken::Modifier);
    }
    let &[_, low, high, _, ..] = input else {
        return Ok(None);
    };
    let end = HEADER + usize::from(u16::from_le_bytes([low, high]));
    let Some(packet) = input.get(..end) else {
        return Ok(None);
    };
    let mut vars = Vec::new();
    let mut at = HEADER;
    while at < end {
        let name = text(packet, at)?;
        if name.is_empty() {
            return Err(Broken::NoName);
        }
        let value = text(packet, name.end)?;
        at = value.end;
        vars.push((name, value));
    }
    Ok(Some((vars, end)))
}

/// The range of the text whose length stands at `at`.
fn text(packet: &[u8], at: usize) -> Result<Range<usize>, Broken> {
    let Some(&[low, high, ref rest @ ..]) = packet.get(at..) else {
        return Err(Broken::Overrun);
    };
    let length = usize::from(u16::from_le_bytes([low, high]));
    if length > rest.len() {
        return Err(Broken::Overrun);
    }
    Ok(at + 2..at + 2 + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pair<'a> = (&'a [u8], &'a [u8]);

    fn packet(vars: &[Pair<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        head(&mut out, vars.iter().copied()).expect("short enough");
        out
    }

    fn pairs<'a>(input: &'a [u8], vars: &[Var]) -> Vec<Pair<'a>> {
        let text = |range: &Range<usize>| &input[range.clone()];
        vars.iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect()
    }

    #[test]
    fn a_request_is_one_packet() {
        let bytes = packet(&[(b"A", b"xyz"), (b"", b"nameless"), (b"BC", b"")]);
        assert_eq!(bytes, b"\0\x0e\0\0\x01\0A\x03\0xyz\x02\0BC\0\0");
        assert_eq!(packet(&[]), [0; 4]);
    }

    #[test]
    fn what_was_written_is_read() {
        let long = vec![0xFF; 40_000];
        let vars: [Pair<'_>; 3] = [(b"REQUEST_METHOD", b"GET"), (b"E", b""), (b"LONG", &long)];
        let mut bytes = packet(&vars);
        let size = bytes.len();
        bytes.extend(b"the body");
        let (found, used) = parse(&bytes).expect("well formed").expect("whole");
        assert_eq!((pairs(&bytes, &found), used), (vars.to_vec(), size));
        for cut in 0..size {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
    }

    #[test]
    fn variables_over_the_bound_leave_the_buffer_as_it_was() {
        let most = vec![b'v'; MAX_VARS - 5];
        assert_eq!(packet(&[(b"N", &most)]).len(), HEADER + MAX_VARS);
        let over = vec![b'v'; MAX_VARS + 1];
        let cases: [&[Pair<'_>]; 4] = [
            &[(b"NN", &most)],
            &[(b"N", &most), (b"M", b"")],
            &[(b"N", &over)],
            &[(&over, b"")],
        ];
        for vars in cases {
            let mut out = b"before".to_vec();
            assert_eq!(head(&mut out, vars.iter().copied()), Err(TooLong));
            assert_eq!(out, b"before");
        }
    }

    #[test]
    fn packets_that_do_not_add_up_are_refused() {
        let cases: [(&[u8], Broken); 9] = [
            (b"\x05", Broken::Modifier),
            (b"\0\0\0\x01", Broken::Modifier),
            (b"GET / HTTP/1.1\r\n", Broken::Modifier),
            (b"\0\x01\0\0\0", Broken::Overrun),
            (b"\0\x03\0\0\x02\0A", Broken::Overrun),
            (b"\0\x03\0\0\x01\0A", Broken::Overrun),
            (b"\0\x04\0\0\x01\0A\0\0", Broken::Overrun),
            (b"\0\x05\0\0\x01\0A\x01\0x", Broken::Overrun),
            (b"\0\x04\0\0\0\0\0\0", Broken::NoName),
        ];
        for (bytes, broken) in cases {
            assert_eq!(parse(bytes), Err(broken), "{bytes:?}");
        }
    }

    #[test]
    fn garbage_is_no_panic_and_what_is_read_can_be_written() {
        let mut seed = 7_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        };
        let mut whole = 0;
        for _ in 0..20_000 {
            let mut bytes: Vec<u8> = (0..24).map(|_| random() % 3).collect();
            bytes[0] = 0;
            bytes[1] = random() % 24;
            bytes[2] = random() % 32 / 31;
            if let Ok(Some((vars, used))) = parse(&bytes) {
                assert_eq!(packet(&pairs(&bytes, &vars)), bytes[..used]);
                whole += 1;
            }
        }
        assert!(whole > 100, "only {whole} packets were well formed");
    }
}
