//! An app's response head. More is forgiven than a visitor: only we read it, and what we pass on is
//! written anew.

use crate::fields::{self, Fields, Name};

const MAX_HEAD: usize = 128 << 10;
const MAX_FIELDS: usize = 256;

/// How long a response's body is (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    #[default]
    Empty,
    Length(u64),
    Chunked,
    /// Until the app closes.
    Close,
}

#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    pub status: u16,
    pub fields: Fields,
    pub framing: Framing,
    /// The connection may be used again.
    pub keep_alive: bool,
}

impl ResponseHead {
    /// Reads a head from the beginning of `input`; how many bytes it takes. `None`: more is needed.
    /// `to_head`: it answers a HEAD request.
    pub fn parse(&mut self, input: &[u8], to_head: bool) -> Result<Option<usize>, &'static str> {
        let Some(end) = find_end(input) else {
            if input.len() > MAX_HEAD {
                return Err("its head is too large");
            }
            return Ok(None);
        };
        self.fields.clear();
        let mut lines = input[..end].split(|byte| *byte == b'\n').map(without_cr);
        let http10 = self.status_line(lines.next().unwrap_or_default())?;
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = fields::parse_line(line).map_err(|reject| reject.why)?;
            if self.fields.len() == MAX_FIELDS {
                return Err("it has too many headers");
            }
            self.fields.push(name, value);
        }
        self.frame(to_head, http10)?;
        Ok(Some(end))
    }

    /// Reads the head of a CGI response (RFC 3875 §6), as FastCGI has it; as [`ResponseHead::parse`].
    pub fn parse_cgi(
        &mut self,
        input: &[u8],
        to_head: bool,
    ) -> Result<Option<usize>, &'static str> {
        let parsed = crate::fastcgi::parse_head(input);
        let Some((head, end)) = parsed.map_err(|_| "its head is malformed")? else {
            return Ok(None);
        };
        self.fields.clear();
        for (name, value) in head.fields {
            let (name, value) = (&input[name], &input[value]);
            if !fields::is_token(name) || !fields::is_value(value) {
                return Err("its head is malformed");
            }
            self.fields.push(name, value);
        }
        self.status = head.status;
        // These are between the app and us, and mean nothing here.
        self.fields.remove(Name::TransferEncoding);
        self.fields.remove(Name::Connection);
        self.frame(to_head, false)?;
        self.keep_alive = false;
        Ok(Some(end))
    }

    /// Whether it is HTTP/1.0.
    fn status_line(&mut self, line: &[u8]) -> Result<bool, &'static str> {
        let (http10, rest) = match line {
            [
                b'H',
                b'T',
                b'T',
                b'P',
                b'/',
                b'1',
                b'.',
                minor @ (b'0' | b'1'),
                b' ',
                rest @ ..,
            ] => (*minor == b'0', rest),
            _ => return Err("it does not begin with a status line"),
        };
        let (code, reason) = rest.split_at(rest.len().min(3));
        let code = std::str::from_utf8(code)
            .ok()
            .and_then(|code| code.parse().ok());
        match (code, reason.first()) {
            (Some(code @ 100..=999), None | Some(b' ')) => self.status = code,
            _ => return Err("its status is no number"),
        }
        Ok(http10)
    }

    fn frame(&mut self, to_head: bool, http10: bool) -> Result<(), &'static str> {
        // RFC 9112 §9.3: `close` counts before `keep-alive`.
        let (mut close, mut keep_alive) = (false, !http10);
        for option in self.fields.members(Name::Connection) {
            close |= option.eq_ignore_ascii_case(b"close");
            keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
        let codings = self.fields.has(Name::TransferEncoding);
        let length = self.length()?;
        self.framing = if to_head || self.status < 200 || matches!(self.status, 204 | 304) {
            Framing::Empty
        } else if codings {
            let mut all = self.fields.members(Name::TransferEncoding);
            let chunked = all
                .next()
                .is_some_and(|c| c.eq_ignore_ascii_case(b"chunked"));
            if !chunked || all.next().is_some() {
                return Err("its transfer coding is not chunked");
            }
            Framing::Chunked
        } else {
            match length {
                Some(0) => Framing::Empty,
                Some(length) => Framing::Length(length),
                None => Framing::Close,
            }
        };
        // Both at once, or a coding that HTTP/1.0 does not have (RFC 9112 §6.1): read as chunked, and trusted no
        // further.
        close |= codings && (http10 || length.is_some());
        self.keep_alive = keep_alive && !close && self.framing != Framing::Close;
        Ok(())
    }

    /// What is said more than once stays once: no other may be passed on (RFC 9110 §8.6).
    fn length(&mut self) -> Result<Option<u64>, &'static str> {
        let (mut found, mut count) = (None::<u64>, 0);
        let values = self.fields.all(Name::ContentLength);
        for text in values.flat_map(|value| value.split(|byte| *byte == b',')) {
            let text = text.trim_ascii();
            count += 1;
            let digits = text.iter().all(u8::is_ascii_digit);
            let length = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
            match (length, found) {
                (Some(length), None) if digits => found = Some(length),
                (Some(length), Some(before)) if digits && length == before => {}
                _ => return Err("its Content-Length makes no sense"),
            }
        }
        if let (Some(length), 2..) = (found, count) {
            self.fields
                .set(Name::ContentLength, length.to_string().as_bytes());
        }
        Ok(found)
    }
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Behind the empty line.
fn find_end(input: &[u8]) -> Option<usize> {
    let seen = &input[..input.len().min(MAX_HEAD)];
    memchr::memchr_iter(b'\n', seen).find_map(|at| match &seen[at + 1..] {
        [b'\r', b'\n', ..] => Some(at + 3),
        [b'\n', ..] => Some(at + 2),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ResponseHead, &'static str> {
        let mut head = ResponseHead::default();
        match head.parse(text.as_bytes(), false)? {
            Some(end) if end == text.len() => Ok(head),
            _ => Err("incomplete"),
        }
    }

    #[test]
    fn framing_by_the_rules() {
        let framing = |text: &str| parse(text).map(|head| (head.framing, head.keep_alive));
        let ok = "HTTP/1.1 200 OK\r\n";
        assert_eq!(
            framing(&format!("{ok}Content-Length: 5\r\n\r\n")),
            Ok((Framing::Length(5), true))
        );
        assert_eq!(
            framing(&format!("{ok}content-length: 5, 5\r\n\r\n")),
            Ok((Framing::Length(5), true))
        );
        assert_eq!(framing(&format!("{ok}\r\n")), Ok((Framing::Close, false)));
        assert_eq!(framing("HTTP/1.1 204 \n\n"), Ok((Framing::Empty, true)));
        assert_eq!(
            framing("HTTP/1.0 200\r\nContent-Length: 0\r\n\r\n"),
            Ok((Framing::Empty, false))
        );
        let both = format!("{ok}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(framing(&both), Ok((Framing::Chunked, false)));
        for bad in [
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
