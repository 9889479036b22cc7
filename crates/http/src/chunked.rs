//! The chunked transfer coding (RFC 9112 §7.1), strictly: what one side could read in another way is
//! refused, because requests are smuggled through such differences.

use std::ops::Range;

use crate::Reject;
use crate::fields::{self, Fields, Name};

/// The longest line of a chunk's size, extensions and line end included, in bytes.
const MAX_LINE: usize = 256;
/// All trailers, in bytes.
const MAX_TRAILERS: usize = 8 << 10;

/// A body on its way in.
#[derive(Debug, Default)]
pub struct Chunked {
    state: State,
    trailer_bytes: usize,
    /// Empty until the body is through.
    pub trailers: Fields,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    /// So many bytes of the chunk are to come.
    Data(u64),
    /// The line end behind a chunk's data.
    DataEnd,
    Trailers,
    Done,
}

/// What was found at the beginning of the input.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// So many bytes are dealt with; the others are to be shown again, with more behind them.
    pub consumed: usize,
    /// Where in the input there is data of the body.
    pub data: Range<usize>,
    /// The body ends at `consumed`.
    pub done: bool,
}

impl Chunked {
    /// Reads at most one piece of data. Nothing consumed and not done: more input is needed.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, Reject> {
        let mut at = 0;
        loop {
            let rest = &input[at..];
            match self.state {
                State::Done => return Ok(Step::framing(at, true)),
                State::Data(left) => {
                    let count = usize::try_from(left).map_or(rest.len(), |n| n.min(rest.len()));
                    let left = left - count as u64;
                    self.state = if left == 0 {
                        State::DataEnd
                    } else {
                        State::Data(left)
                    };
                    return Ok(Step {
                        consumed: at + count,
                        data: at..at + count,
                        done: false,
                    });
                }
                State::DataEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => return Ok(Step::framing(at, false)),
                    _ => return Err(Reject::bad("a chunk is longer than it says")),
                },
                State::Size => {
                    let Some(line) = line(rest, MAX_LINE)? else {
                        return Ok(Step::framing(at, false));
                    };
                    let size = parse_size(line)?;
                    at += line.len() + 2;
                    self.state = if size == 0 {
                        State::Trailers
                    } else {
                        State::Data(size)
                    };
                    if size > 0 && at == input.len() {
                        return Ok(Step::framing(at, false));
                    }
                }
                State::Trailers => {
                    let Some(line) = line(rest, MAX_TRAILERS)? else {
                        return Ok(Step::framing(at, false));
                    };
                    at += line.len() + 2;
                    if line.is_empty() {
                        self.state = State::Done;
                    } else {
                        self.trailer(line)?;
                    }
                }
            }
        }
    }

    /// Whether what is already here of the body is sound, and the whole of it; nothing is taken.
    pub fn check(input: &[u8]) -> Result<bool, Reject> {
        let (mut chunked, mut at) = (Chunked::default(), 0);
        loop {
            let step = chunked.step(&input[at..])?;
            at += step.consumed;
            if step.done || step.consumed == 0 {
                return Ok(step.done);
            }
        }
    }

    /// Whether the body's end was read.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn trailer(&mut self, line: &[u8]) -> Result<(), Reject> {
        self.trailer_bytes += line.len() + 2;
        if self.trailer_bytes > MAX_TRAILERS {
            return Err(Reject {
                status: 431,
                why: "the trailers are too large",
            });
        }
        let (name, value) = fields::parse_line(line)?;
        if matches!(
            Name::of(name),
            Name::ContentLength | Name::TransferEncoding | Name::Host
        ) {
            return Err(Reject::bad("a trailer that belongs into the head"));
        }
        self.trailers.push(name, value);
        Ok(())
    }
}

impl Step {
    fn framing(consumed: usize, done: bool) -> Self {
        Step {
            consumed,
            data: 0..0,
            done,
        }
    }
}

/// A line without its CRLF.
fn line(input: &[u8], limit: usize) -> Result<Option<&[u8]>, Reject> {
    let seen = &input[..input.len().min(limit)];
    match memchr::memchr(b'\n', seen) {
        Some(0) => Err(Reject::bad("a line of the chunked body ends without CR")),
        Some(end) if seen[end - 1] != b'\r' => {
            Err(Reject::bad("a line of the chunked body ends without CR"))
        }
        Some(end) => Ok(Some(&seen[..end - 1])),
        None if input.len() >= limit => Err(Reject::bad("a line of the chunked body is too long")),
        None => Ok(None),
    }
}

/// `1*HEXDIG [ chunk-ext ]`.
fn parse_size(line: &[u8]) -> Result<u64, Reject> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if !(1..=16).contains(&digits) {
        return Err(Reject::bad("a chunk's size is no hexadecimal number"));
    }
    let size = line[..digits].iter().fold(0_u64, |size, digit| {
        let digit = (*digit as char).to_digit(16).unwrap_or_default();
        (size << 4) | u64::from(digit)
    });
    // No body is that long; counting on would overflow.
    if size > u64::MAX >> 1 {
        return Err(Reject::bad("a chunk's size is too large"));
    }
    check_extensions(&line[digits..])?;
    Ok(size)
}

/// `*( ";" token [ "=" ( token / quoted-string ) ] )`, without white space.
fn check_extensions(mut rest: &[u8]) -> Result<(), Reject> {
    let bad = Err(Reject::bad("a chunk's extension is malformed"));
    while !rest.is_empty() {
        let [b';', after @ ..] = rest else { return bad };
        let Some(after) = skip_token(after) else {
            return bad;
        };
        let after = match after {
            [b'=', b'"', quoted @ ..] => skip_quoted(quoted),
            [b'=', value @ ..] => skip_token(value),
            other => Some(other),
        };
        let Some(after) = after else { return bad };
        rest = after;
    }
    Ok(())
}

fn skip_token(text: &[u8]) -> Option<&[u8]> {
    let end = text.iter().take_while(|b| fields::is_token(&[**b])).count();
    (end > 0).then(|| &text[end..])
}

/// What follows the closing quote.
fn skip_quoted(text: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'"' => return Some(&text[at + 1..]),
            b'\\' if fields::is_value(text.get(at + 1..at + 2)?) => at += 2,
            byte if fields::is_value(&[*byte]) => at += 1,
            _ => return None,
        }
    }
}

/// Puts a chunk around `data` (not empty) at the end of `out`; its end is [`CHUNK_END`].
pub fn begin_chunk(length: usize, out: &mut Vec<u8>) {
    use std::io::Write as _;
    let _ = write!(out, "{length:x}\r\n");
}

/// Behind each chunk's data.
pub const CHUNK_END: &[u8] = b"\r\n";
/// Behind the last chunk, where there are no trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8], piece: usize) -> Result<(Vec<u8>, usize), Reject> {
        let (mut chunked, mut body) = (Chunked::default(), Vec::new());
        let (mut from, mut to) = (0, 0);
        loop {
            let step = chunked.step(&input[from..to])?;
            body.extend_from_slice(&input[from..to][step.data.clone()]);
            from += step.consumed;
            if step.done {
                return Ok((body, from));
            }
            if step.consumed == 0 || from == to {
                if to == input.len() {
                    return Err(Reject::bad("cut off"));
                }
                to = (to + piece).min(input.len());
            }
        }
    }

    #[test]
    fn bodies_come_out_however_they_are_cut() {
        let input = b"5;a=b;c=\"d\\\"e\"\r\nhello\r\n00006\r\n world\r\n0\r\nX-T: 1\r\n\r\nGET";
        for piece in 1..input.len() {
            let (body, end) = read(input, piece).expect("sound");
            assert_eq!(
                (body.as_slice(), &input[end..]),
                (&b"hello world"[..], &b"GET"[..])
            );
        }
        for end in 0..input.len() - 3 {
            assert!(read(&input[..end], 7).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for bad in [
            "5\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5;\r\nhello\r\n0\r\n\r\n",
            "5;a=\"\r\nhello\r\n0\r\n\r\n",
            "11112222333344445\r\nhello\r\n0\r\n\r\n",
            "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            "0\r\nContent-Length: 5\r\n\r\n",
            "0\r\n a: b\r\n\r\n",
            "0\r\na: b\n\r\n",
        ] {
            for piece in [1, 100] {
                assert!(read(bad.as_bytes(), piece).is_err(), "{bad:?}");
            }
        }
    }
}
