//! FastCGI 1.0, the gateway's side of the responder role: one request per connection at a time, always with
//! request id 1. Here is the wire only: what to send ([`begin`], [`params`], [`stdin`], [`end_stdin`],
//! [`abort`]), what came back ([`Decoder`]), and the head of a CGI response ([`parse_head`]). No socket, no
//! clock, and no copy of a body: answers are ranges of the caller's input.
//!
//! Followed: the FastCGI Specification 1.0 (1996), §3.3 (records), §3.4 (name-value pairs), §5 (application
//! records); RFC 3875 §6 (the response), with the field syntax of RFC 9110 §5. Multiplexing, the filter and
//! authorizer roles and FCGI_GET_VALUES are not used.

use std::error::Error;
use std::fmt;
use std::ops::Range;

/// The longest head of a CGI response that is read, in bytes, its empty line included.
pub const MAX_HEAD: usize = 64 << 10;
/// The most fields of a CGI response, `Status` included.
pub const MAX_FIELDS: usize = 200;

/// The protocol status of a request that was worked on (§5.5). Others: 1 cannot multiplex, 2 overloaded,
/// 3 unknown role.
pub const REQUEST_COMPLETE: u8 = 0;

const VERSION: u8 = 1;
const REQUEST_ID: u16 = 1;
const HEADER: usize = 8;
/// The most content of one record, in bytes.
const MAX_CONTENT: usize = u16::MAX as usize;
/// The longest name or value of a parameter, in bytes: four bytes of length, their top bit a flag.
const MAX_PARAM: usize = i32::MAX as usize;

const BEGIN_REQUEST: u8 = 1;
const ABORT_REQUEST: u8 = 2;
const END_REQUEST: u8 = 3;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;
/// From here on types are for management; those below need a request.
const MANAGEMENT: u8 = 9;

/// A parameter's name or value is longer than the protocol can say (2 GiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a FastCGI parameter is longer than the protocol allows")
    }
}

impl Error for TooLong {}

/// Why an answer cannot be read on. The connection is of no further use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A record of another version than 1.
    Version,
    /// A record for a request that was never begun here.
    ForeignRequest,
    /// A record of a type that only a gateway may send, or of none that exists.
    RecordType,
    /// FCGI_END_REQUEST with a body that is not 8 bytes.
    EndBody,
    /// Bytes behind FCGI_END_REQUEST.
    AfterEnd,
    /// A head longer than [`MAX_HEAD`].
    HeadTooLong,
    /// More fields than [`MAX_FIELDS`].
    TooManyFields,
    /// A head without any field.
    NoFields,
    /// A line of the head that is no field: no colon, a name that is no token, a control character.
    Field,
    /// A `Status` that is no final status of three digits, or a second one.
    Status,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Broken::Version => "a FastCGI record of an unknown version",
            Broken::ForeignRequest => "a FastCGI record of a request that was not sent",
            Broken::RecordType => "a FastCGI record of a type that does not belong there",
            Broken::EndBody => "a FastCGI end record of the wrong size",
            Broken::AfterEnd => "bytes behind the FastCGI end record",
            Broken::HeadTooLong => "the head of the CGI response is too long",
            Broken::TooManyFields => "the CGI response has too many header fields",
            Broken::NoFields => "the CGI response has no header fields",
            Broken::Field => "a malformed header field in the CGI response",
            Broken::Status => "a malformed or repeated Status in the CGI response",
        })
    }
}

impl Error for Broken {}

/// Appends FCGI_BEGIN_REQUEST for the responder role (§5.1). With `keep_conn` the application leaves the
/// connection open behind its answer.
pub fn begin(out: &mut Vec<u8>, keep_conn: bool) {
    const RESPONDER: u8 = 1;
    out.extend(header(BEGIN_REQUEST, 8));
    out.extend([0, RESPONDER, u8::from(keep_conn), 0, 0, 0, 0, 0]);
}

/// Appends all parameters as FCGI_PARAMS records, and the empty record that ends them (§3.4, §5.2).
///
/// A pair is split over two records only if it is longer than a record: the specification allows a split
/// anywhere, but php-fpm reads each record on its own and takes half a pair for a malformed request.
///
/// # Errors
/// A name or value over 2 GiB; `out` is as before.
pub fn params(
    out: &mut Vec<u8>,
    pairs: impl IntoIterator<Item = (impl AsRef<[u8]>, impl AsRef<[u8]>)>,
) -> Result<(), TooLong> {
    let before = out.len();
    let mut records = Records::open(out, PARAMS);
    for (name, value) in pairs {
        if let Err(too_long) = records.pair(name.as_ref(), value.as_ref()) {
            out.truncate(before);
            return Err(too_long);
        }
    }
    records.end();
    Ok(())
}

/// Appends a part of the request's body as FCGI_STDIN records; nothing if `data` is empty, as an empty record
/// would end the body (§5.3).
pub fn stdin(out: &mut Vec<u8>, data: &[u8]) {
    let records = data.len().div_ceil(MAX_CONTENT);
    out.reserve(data.len() + records * HEADER);
    for part in data.chunks(MAX_CONTENT) {
        out.extend(header(STDIN, part.len() as u16));
        out.extend_from_slice(part);
    }
}

/// Appends the end of the request's body.
pub fn end_stdin(out: &mut Vec<u8>) {
    out.extend(header(STDIN, 0));
}

/// Appends FCGI_ABORT_REQUEST (§5.4). The application still answers with an end record, when it gets to it.
pub fn abort(out: &mut Vec<u8>) {
    out.extend(header(ABORT_REQUEST, 0));
}

/// A record's header (§3.3). Nothing is padded: padding is only a help for the receiver's alignment.
fn header(kind: u8, content: u16) -> [u8; HEADER] {
    let [id_high, id_low] = REQUEST_ID.to_be_bytes();
    let [high, low] = content.to_be_bytes();
    [VERSION, kind, id_high, id_low, high, low, 0, 0]
}

/// Records of one type at the end of `out`. The last is open: its length is written when it is closed.
struct Records<'a> {
    out: &'a mut Vec<u8>,
    kind: u8,
    /// Where the content of the open record begins.
    content: usize,
}

impl<'a> Records<'a> {
    fn open(out: &'a mut Vec<u8>, kind: u8) -> Self {
        out.extend(header(kind, 0));
        let content = out.len();
        Records { out, kind, content }
    }

    fn used(&self) -> usize {
        self.out.len() - self.content
    }

    /// Closes the open record and opens the next.
    fn turn(&mut self) {
        let used = self.used() as u16; // `put` stops at MAX_CONTENT
        let length = self.content - 4;
        self.out[length..length + 2].copy_from_slice(&used.to_be_bytes());
        self.out.extend(header(self.kind, 0));
        self.content = self.out.len();
    }

    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.used() == MAX_CONTENT {
                self.turn();
            }
            let room = MAX_CONTENT - self.used();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.out.extend_from_slice(now);
            bytes = later;
        }
    }

    fn pair(&mut self, name: &[u8], value: &[u8]) -> Result<(), TooLong> {
        let mut lengths = Vec::with_capacity(8);
        length(&mut lengths, name.len())?;
        length(&mut lengths, value.len())?;
        let size = lengths
            .len()
            .saturating_add(name.len())
            .saturating_add(value.len());
        if self.used() > 0 && size > MAX_CONTENT - self.used() {
            self.turn();
        }
        self.put(&lengths);
        self.put(name);
        self.put(value);
        Ok(())
    }

    /// Closes the records with an empty one, which ends the stream.
    fn end(mut self) {
        if self.used() > 0 {
            self.turn();
        }
    }
}

/// The length of a name or value: one byte up to 127, else four with the top bit set (§3.4).
fn length(out: &mut Vec<u8>, bytes: usize) -> Result<(), TooLong> {
    match bytes {
        0..=127 => out.push(bytes as u8),
        128..=MAX_PARAM => out.extend((bytes as u32 | 1 << 31).to_be_bytes()),
        _ => return Err(TooLong),
    }
    Ok(())
}

/// What [`Decoder::next`] found. Ranges are of that call's input and never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// All of the input is used up (so many bytes); more is needed.
    More(usize),
    /// A part of the response: head and body as the application writes them. Go on behind its end.
    Stdout(Range<usize>),
    /// A part of what the application writes to its error stream. Go on behind its end.
    Stderr(Range<usize>),
    /// The request is over. What lies behind `consumed` bytes is no part of it and makes the connection unfit
    /// for another request.
    End {
        /// Bytes used of the input.
        consumed: usize,
        /// The exit status of the application.
        app_status: u32,
        /// [`REQUEST_COMPLETE`], or why the request was refused.
        protocol_status: u8,
    },
}

impl Step {
    /// How many bytes of the input are done with; the next call begins behind them.
    pub fn consumed(&self) -> usize {
        match self {
            Step::More(consumed) | Step::End { consumed, .. } => *consumed,
            Step::Stdout(data) | Step::Stderr(data) => data.end,
        }
    }
}

/// Reads the records of one answer, however they are cut. One decoder per request: bytes behind the end are an
/// error, not the beginning of the next answer. Holds at most 8 bytes of what it read.
///
/// An empty FCGI_STDOUT, which ends that stream, is skipped: only FCGI_END_REQUEST says that the answer is whole.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The record that is being read; none between two of them.
    record: Option<Record>,
    /// How many bytes of its content and of its padding are still to come.
    content: usize,
    padding: usize,
    /// The next record's header as far as it came, or the body of the end record.
    buffer: [u8; HEADER],
    filled: usize,
    ended: bool,
}

#[derive(Clone, Copy, Debug)]
enum Record {
    Stdout,
    Stderr,
    Ignored,
    End,
}

impl Decoder {
    /// A decoder for the answer to one request.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the end record was read to its end.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Reads on in `input`, which begins where the last step ended ([`Step::consumed`]). Call it again until it
    /// answers [`Step::More`] or [`Step::End`].
    ///
    /// # Errors
    /// What came is no answer to the request (§3.3, §5.5). There is no way on from there.
    pub fn next(&mut self, input: &[u8]) -> Result<Step, Broken> {
        let mut at = 0;
        loop {
            let rest = &input[at..];
            match self.record {
                None if self.ended && !rest.is_empty() => return Err(Broken::AfterEnd),
                None => {
                    at += self.fill(rest);
                    if self.filled < HEADER {
                        return Ok(Step::More(at));
                    }
                    self.open()?;
                }
                Some(_) if self.content > 0 && rest.is_empty() => return Ok(Step::More(at)),
                Some(record) if self.content > 0 => {
                    let data = at..at + self.content.min(rest.len());
                    self.content -= data.len();
                    at = data.end;
                    match record {
                        Record::Stdout => return Ok(Step::Stdout(data)),
                        Record::Stderr => return Ok(Step::Stderr(data)),
                        Record::Ignored => {}
                        Record::End => _ = self.fill(&input[data]),
                    }
                }
                Some(record) => {
                    let skipped = self.padding.min(rest.len());
                    self.padding -= skipped;
                    at += skipped;
                    if self.padding > 0 {
                        return Ok(Step::More(at));
                    }
                    self.record = None;
                    if let Record::End = record {
                        return Ok(self.end(at));
                    }
                }
            }
        }
    }

    /// Moves bytes into the buffer until it is full; how many.
    fn fill(&mut self, rest: &[u8]) -> usize {
        let free = &mut self.buffer[self.filled..];
        let taken = free.len().min(rest.len());
        free[..taken].copy_from_slice(&rest[..taken]);
        self.filled += taken;
        taken
    }

    /// Begins the record whose header is in the buffer; a bad header stays there.
    fn open(&mut self) -> Result<(), Broken> {
        self.record = Some(announced(self.buffer)?);
        let [_, _, _, _, high, low, padding, _] = self.buffer;
        self.content = u16::from_be_bytes([high, low]).into();
        self.padding = padding.into();
        self.filled = 0;
        Ok(())
    }

    fn end(&mut self, consumed: usize) -> Step {
        self.filled = 0;
        self.ended = true;
        let [a, b, c, d, protocol_status, ..] = self.buffer;
        Step::End {
            consumed,
            app_status: u32::from_be_bytes([a, b, c, d]),
            protocol_status,
        }
    }
}

/// What record a header announces (§3.3). Records of the management id 0 are answers to questions that were
/// never asked; they are harmless and ignored, unless they claim a type that needs a request.
fn announced(header: [u8; HEADER]) -> Result<Record, Broken> {
    let [version, kind, id_high, id_low, high, low, ..] = header;
    let id = u16::from_be_bytes([id_high, id_low]);
    match kind {
        _ if version != VERSION => Err(Broken::Version),
        0 | MANAGEMENT.. if id == 0 => Ok(Record::Ignored),
        _ if id != REQUEST_ID => Err(Broken::ForeignRequest),
        STDOUT => Ok(Record::Stdout),
        STDERR => Ok(Record::Stderr),
        END_REQUEST if [high, low] == [0, 8] => Ok(Record::End),
        END_REQUEST => Err(Broken::EndBody),
        _ => Err(Broken::RecordType),
    }
}

/// Name and value of a field, as ranges of the parsed input.
pub type Field = (Range<usize>, Range<usize>);

/// The head of a CGI response (RFC 3875 §6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgiHead {
    /// What `Status` says (200 to 999); without it 302 if there is a `Location`, else 200.
    pub status: u16,
    /// The fields in their order, repeated ones too, without `Status`: it is meant for the server. Names are
    /// tokens, values without the blanks around them.
    pub fields: Vec<Field>,
}

/// Reads the head at the beginning of what the application wrote: the head and its length in bytes, the empty
/// line included; the body begins there. `None`: the empty line has not come yet. Lines end in CRLF or LF. Every
/// call reads from the beginning, so call it when there is a new line end.
///
/// A `Location` that is a path (RFC 3875 §6.2.2) is answered like any other, not looked up here. Continued lines
/// and a status line of HTTP are malformed.
///
/// # Errors
/// The head is malformed, or longer than [`MAX_HEAD`] or [`MAX_FIELDS`] allow.
pub fn parse_head(input: &[u8]) -> Result<Option<(CgiHead, usize)>, Broken> {
    let bounded = &input[..input.len().min(MAX_HEAD)];
    let mut head = Head::default();
    let mut at = 0;
    while let Some(length) = bounded[at..].iter().position(|byte| *byte == b'\n') {
        let line = &bounded[at..at + length];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let next = at + length + 1;
        if line.is_empty() {
            return head.finish().map(|head| Some((head, next)));
        }
        head.line(line, at)?;
        at = next;
    }
    if bounded.len() == MAX_HEAD {
        return Err(Broken::HeadTooLong);
    }
    Ok(None)
}

/// The lines of a head so far.
#[derive(Default)]
struct Head {
    status: Option<u16>,
    redirects: bool,
    fields: Vec<Field>,
}

impl Head {
    /// Adds a line that begins `at` in the input.
    fn line(&mut self, line: &[u8], at: usize) -> Result<(), Broken> {
        let colon = line
            .iter()
            .position(|byte| *byte == b':')
            .ok_or(Broken::Field)?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let from = colon + 1 + blanks(value.iter());
        let to = line.len() - blanks(line[from..].iter().rev());
        let value = &line[from..to];
        if name.is_empty() || !name.iter().all(is_token) || value.iter().any(is_control) {
            return Err(Broken::Field);
        }
        if self.fields.len() + usize::from(self.status.is_some()) == MAX_FIELDS {
            return Err(Broken::TooManyFields);
        }
        if name.eq_ignore_ascii_case(b"status") {
            return self.set_status(value);
        }
        self.redirects |= name.eq_ignore_ascii_case(b"location") && !value.is_empty();
        self.fields.push((at..at + colon, at + from..at + to));
        Ok(())
    }

    fn set_status(&mut self, value: &[u8]) -> Result<(), Broken> {
        let status = parse_status(value).ok_or(Broken::Status)?;
        match self.status.replace(status) {
            None => Ok(()),
            Some(_) => Err(Broken::Status),
        }
    }

    fn finish(self) -> Result<CgiHead, Broken> {
        if self.fields.is_empty() && self.status.is_none() {
            return Err(Broken::NoFields);
        }
        let default = if self.redirects { 302 } else { 200 };
        Ok(CgiHead {
            status: self.status.unwrap_or(default),
            fields: self.fields,
        })
    }
}

/// Three digits, and a reason behind a blank or none. A 1xx is refused: a response follows here, and none may
/// follow an interim one.
fn parse_status(value: &[u8]) -> Option<u16> {
    let (digits, reason) = value.split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) || !matches!(reason.first(), None | Some(b' ')) {
        return None;
    }
    let status = digits
        .iter()
        .fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    (status >= 200).then_some(status)
}

/// How many of the first bytes are blanks. A CR is none: one that is not at a line's end is an error.
fn blanks<'a>(bytes: impl Iterator<Item = &'a u8>) -> usize {
    bytes
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count()
}

fn is_control(byte: &u8) -> bool {
    byte.is_ascii_control() && *byte != b'\t'
}

/// A byte of a token (RFC 9110 §5.6.2).
fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of `bytes` as type and content; all of them well formed and of request 1.
    fn records(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
        let mut found = Vec::new();
        while let [1, kind, 0, 1, high, low, 0, 0, rest @ ..] = bytes {
            let (content, rest) = rest.split_at(u16::from_be_bytes([*high, *low]).into());
            found.push((*kind, content));
            bytes = rest;
        }
        assert!(bytes.is_empty(), "no record: {bytes:?}");
        found
    }

    fn record(kind: u8, id: u16, content: &[u8], padding: u8) -> Vec<u8> {
        let mut bytes = vec![1, kind];
        bytes.extend(id.to_be_bytes());
        bytes.extend((content.len() as u16).to_be_bytes());
        bytes.extend([padding, 0xAA]);
        bytes.extend_from_slice(content);
        bytes.extend(vec![0xFF; padding.into()]);
        bytes
    }

    #[derive(Debug, Default, PartialEq)]
    struct Answer {
        stdout: Vec<u8>,
        stderr: Vec<u8>,
        end: Option<(u32, u8)>,
    }

    /// Feeds `input` in pieces of `size` bytes.
    fn decode(input: &[u8], size: usize) -> Result<Answer, Broken> {
        let (mut decoder, mut answer) = (Decoder::new(), Answer::default());
        for mut piece in input.chunks(size) {
            while !piece.is_empty() {
                let step = decoder.next(piece)?;
                assert!((1..=piece.len()).contains(&step.consumed()), "{step:?}");
                match &step {
                    Step::More(all) => assert_eq!(*all, piece.len()),
                    Step::Stdout(data) => answer.stdout.extend(&piece[data.clone()]),
                    Step::Stderr(data) => answer.stderr.extend(&piece[data.clone()]),
                    Step::End {
                        app_status,
                        protocol_status,
                        ..
                    } => {
                        answer.end = Some((*app_status, *protocol_status));
                    }
                }
                piece = &piece[step.consumed()..];
            }
        }
        assert_eq!(answer.end.is_some(), decoder.ended());
        Ok(answer)
    }

    fn answer_bytes() -> Vec<u8> {
        [
            record(STDOUT, 1, b"Status: 404\r\n", 3),
            record(10, 0, b"a value", 1),
            record(STDERR, 1, b"oh no", 0),
            record(STDOUT, 1, b"\r\nbody", 255),
            record(STDOUT, 1, b"", 8),
            record(END_REQUEST, 1, &[0, 0, 1, 2, 0, 9, 9, 9], 5),
        ]
        .concat()
    }

    #[test]
    fn a_request_is_written_record_by_record() {
        let mut out = Vec::new();
        begin(&mut out, true);
        begin(&mut out, false);
        stdin(&mut out, b"");
        stdin(&mut out, b"hi");
        end_stdin(&mut out);
        abort(&mut out);
        assert_eq!(
            records(&out),
            [
                (BEGIN_REQUEST, &[0, 1, 1, 0, 0, 0, 0, 0][..]),
                (BEGIN_REQUEST, &[0, 1, 0, 0, 0, 0, 0, 0]),
                (STDIN, b"hi"),
                (STDIN, b""),
                (ABORT_REQUEST, b""),
            ]
        );
    }

    #[test]
    fn a_long_body_is_split_and_stays_whole() {
        for size in [MAX_CONTENT, MAX_CONTENT + 1, 3 * MAX_CONTENT] {
            let body: Vec<u8> = (0..size).map(|at| at as u8).collect();
            let mut out = Vec::new();
            stdin(&mut out, &body);
            let found = records(&out);
            assert_eq!(found.len(), size.div_ceil(MAX_CONTENT));
            assert!(
                found
                    .iter()
                    .all(|(kind, part)| *kind == STDIN && !part.is_empty())
            );
            assert_eq!(
                found
                    .iter()
                    .map(|(_, part)| *part)
                    .collect::<Vec<_>>()
                    .concat(),
                body
            );
        }
    }

    #[test]
    fn lengths_take_one_byte_up_to_127_and_four_beyond() {
        let (short, long) = ([b'n'; 127], [b'v'; 128]);
        let mut out = vec![7];
        params(&mut out, [(&short[..], &long[..]), (b"", b"")]).expect("short enough");
        let content = [&[127, 0x80, 0, 0, 128][..], &short, &long, &[0, 0]].concat();
        assert_eq!(records(&out[1..]), [(PARAMS, &content[..]), (PARAMS, b"")]);
        assert_eq!(length(&mut out, MAX_PARAM), Ok(()));
        assert_eq!(&out[out.len() - 4..], [0xFF; 4]);
        assert_eq!(length(&mut out, MAX_PARAM + 1), Err(TooLong));
    }

    #[test]
    fn no_parameters_are_only_the_end_record() {
        let mut out = Vec::new();
        params(&mut out, std::iter::empty::<(&[u8], &[u8])>()).expect("nothing is short");
        assert_eq!(records(&out), [(PARAMS, &b""[..])]);
    }

    #[test]
    fn a_pair_is_split_only_if_no_record_holds_it() {
        let (half, exact) = (vec![b'h'; 40_000], vec![b'e'; MAX_CONTENT - 6]);
        let mut out = Vec::new();
        params(&mut out, [(b"A", &half), (b"B", &half), (b"C", &exact)]).expect("short enough");
        let sizes: Vec<_> = records(&out)
            .iter()
            .map(|(_, content)| content.len())
            .collect();
        assert_eq!(sizes, [40_006, 40_006, MAX_CONTENT, 0]);

        let huge = vec![b'x'; 200_000];
        out.clear();
        params(&mut out, [(b"A", &half), (b"B", &huge)]).expect("short enough");
        let parts: Vec<_> = records(&out).iter().map(|(_, content)| *content).collect();
        let sizes: Vec<_> = parts.iter().map(|part| part.len()).collect();
        assert_eq!(
            sizes,
            [
                40_006,
                MAX_CONTENT,
                MAX_CONTENT,
                MAX_CONTENT,
                200_006 - 3 * MAX_CONTENT,
                0
            ]
        );
        assert_eq!(parts[1..].concat()[6..], huge);
    }

    #[test]
    fn an_answer_reads_the_same_however_it_is_cut() {
        let bytes = answer_bytes();
        let whole = Answer {
            stdout: b"Status: 404\r\n\r\nbody".to_vec(),
            stderr: b"oh no".to_vec(),
            end: Some((258, 0)),
        };
        for size in 1..=bytes.len() {
            assert_eq!(
                decode(&bytes, size).as_ref(),
                Ok(&whole),
                "pieces of {size}"
            );
        }
        for cut in 0..bytes.len() {
            let answer = decode(&bytes[..cut], bytes.len()).expect("a good beginning");
            assert_eq!(answer.end, None, "cut at {cut}");
            assert!(whole.stdout.starts_with(&answer.stdout));
        }
    }

    #[test]
    fn records_that_do_not_belong_there_break_the_answer() {
        let end = record(END_REQUEST, 1, &[0; 8], 0);
        let cases = [
            ([&[2], &end[1..]].concat(), Broken::Version),
            (record(STDOUT, 2, b"x", 0), Broken::ForeignRequest),
            (record(STDOUT, 256, b"x", 0), Broken::ForeignRequest),
            (record(STDOUT, 0, b"x", 0), Broken::ForeignRequest),
            (record(10, 7, b"x", 0), Broken::ForeignRequest),
            (record(STDIN, 1, b"x", 0), Broken::RecordType),
            (record(11, 1, b"x", 0), Broken::RecordType),
            (record(END_REQUEST, 1, &[0; 7], 0), Broken::EndBody),
            (record(END_REQUEST, 1, &[0; 9], 0), Broken::EndBody),
            ([&end[..], b"x"].concat(), Broken::AfterEnd),
        ];
        for (bytes, broken) in cases {
            assert_eq!(decode(&bytes, 1), Err(broken), "{bytes:?}");
            assert_eq!(decode(&bytes, bytes.len()), Err(broken), "{bytes:?}");
        }
        let mut decoder = Decoder::new();
        assert!(decoder.next(&[9; 8]).is_err());
        assert!(decoder.next(&end).is_err(), "an error stays");
    }

    #[test]
    fn garbage_is_an_error_or_data_but_no_panic() {
        let mut seed = 1_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        };
        for round in 0..5_000 {
            let mut bytes = answer_bytes();
            for _ in 0..round % 4 {
                let at = usize::from(random()) % bytes.len();
                bytes[at] = random();
            }
            let size = usize::from(random()) + 1;
            assert_eq!(decode(&bytes, size), decode(&bytes, 1));
            let noise: Vec<u8> = (0..64)
                .map(|_| b"a:\r\n 1\0\x80"[usize::from(random() % 8)])
                .collect();
            if let Ok(Some((head, used))) = parse_head(&noise) {
                assert!(
                    used <= noise.len() && head.fields.iter().all(|(_, value)| value.end < used)
                );
            }
        }
    }

    /// A field's name and value.
    type Text<'a> = (&'a str, &'a str);

    /// Status and fields of a whole head.
    fn head(input: &str) -> Result<(u16, Vec<Text<'_>>), Broken> {
        let (head, used) = parse_head(input.as_bytes())?.expect("a whole head");
        assert_eq!(used, input.len());
        let text = |(name, value): &Field| (&input[name.clone()], &input[value.clone()]);
        Ok((head.status, head.fields.iter().map(text).collect()))
    }

    #[test]
    fn a_head_gives_status_and_fields() {
        assert_eq!(
            head("Status: 404 Not Found\r\nX-A:  b: c\t \r\nx-a:\n\n"),
            Ok((404, vec![("X-A", "b: c"), ("x-a", "")]))
        );
        assert_eq!(head("A: \t \n\r\n"), Ok((200, vec![("A", "")])));
        assert_eq!(
            head("location: /x\n\n"),
            Ok((302, vec![("location", "/x")]))
        );
        assert_eq!(head("Location:\n\n").map(|head| head.0), Ok(200));
        assert_eq!(
            head("LOCATION: /x\nSTATUS: 201\n\n").map(|head| head.0),
            Ok(201)
        );
        assert_eq!(head("Status: 204\n\n"), Ok((204, vec![])));
        assert_eq!(
            head("A: \u{fc}\tb\n\n"),
            Ok((200, vec![("A", "\u{fc}\tb")]))
        );
        let body = b"A: b\n\n\n\nbody";
        assert_eq!(
            parse_head(body).map(|found| found.map(|found| found.1)),
            Ok(Some(6))
        );
    }

    #[test]
    fn a_head_is_whole_only_with_its_empty_line() {
        let bytes = b"Status: 200 OK\r\nA: b\nC: d\r\n\r\n";
        for cut in 0..bytes.len() {
            assert_eq!(parse_head(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
        assert!(matches!(parse_head(bytes), Ok(Some((_, used))) if used == bytes.len()));
    }

    #[test]
    fn malformed_heads_are_refused() {
        let fields = [
            "no colon",
            ": v",
            "A : v",
            " A: v",
            "A: b\r\n c",
            "A: b\rc",
            "A: \0",
            "A\u{fc}: b",
            "A: b\r\r",
        ];
        for line in fields.iter().chain(&["HTTP/1.1 200 OK", "A: \x7f"]) {
            assert_eq!(
                head(&format!("{line}\r\n\r\n")),
                Err(Broken::Field),
                "{line:?}"
            );
        }
        for status in ["", "20", "2000", "200OK", "abc", "+20", "103", "099", "200"] {
            let bytes = format!("Status: {status}\nStatus: 200\n\n");
            assert_eq!(head(&bytes), Err(Broken::Status), "{status:?}");
        }
        assert_eq!(head("\r\n"), Err(Broken::NoFields));
        assert_eq!(head("\n"), Err(Broken::NoFields));
    }

    #[test]
    fn a_head_is_bounded_in_bytes_and_fields() {
        let full = "A: b\n".repeat(MAX_FIELDS - 1) + "Status: 200\n";
        assert_eq!(
            head(&(full.clone() + "\n")).map(|head| head.1.len()),
            Ok(MAX_FIELDS - 1)
        );
        assert_eq!(head(&(full + "A: b\n")), Err(Broken::TooManyFields));

        let longest = format!("A:{}\n\n", "b".repeat(MAX_HEAD - 4));
        assert_eq!(longest.len(), MAX_HEAD);
        assert!(head(&longest).is_ok());
        assert_eq!(parse_head(&longest.as_bytes()[..MAX_HEAD - 1]), Ok(None));
        assert_eq!(
            head(&longest.replace("A:", "A:b")),
            Err(Broken::HeadTooLong)
        );
        assert_eq!(parse_head(&[b'a'; MAX_HEAD]), Err(Broken::HeadTooLong));
    }
}
