//! A visitor's HTTP/1 connection (RFC 9112): requests one after another, each read by `hutong_http` and
//! answered by [`pipeline::handle`].

use std::cell::Cell;
use std::future::poll_fn;
use std::io::Write as _;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use hutong_http::chunked::{self, Chunked};
use hutong_http::fields::{Fields, Name};
use hutong_http::request::{Framing, MAX_HEAD, RequestHead, Scan, Version};
use hutong_http::{Reject, request};
use tokio::sync::watch;

use super::{DownloadWay, Ended, Length, Pace, Peer, UploadWay};
use crate::buffers::{self, Input};
use crate::io::Io;
use crate::pages::Page;
use crate::pipeline::{self, Worker};
use crate::{Phase, date, status};

/// Until a connection's next request begins.
const IDLE: Duration = Duration::from_secs(75);
/// From a head's first byte to its last.
const HEAD: Duration = Duration::from_secs(15);
/// A body of which nothing comes for so long has ended.
const BODY_STALLED: Duration = Duration::from_secs(30);
/// So much of a body that nobody wanted is read, for the sake of the connection.
const UNWANTED: usize = 256 << 10;
/// Answers up to here go out in one piece.
const COALESCE: usize = 16 << 10;

/// Serves a connection until either side ends it.
pub async fn serve(worker: &Rc<Worker>, peer: &Peer, io: Io, phase: &mut watch::Receiver<Phase>) {
    let idle = Cell::new(true);
    let serving = requests(worker, peer, &io, &idle);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        biased;
        _ = phase.wait_for(|phase| *phase == Phase::Ending) => {
            if !idle.get() {
                serving.await;
            }
        }
        () = serving.as_mut() => {}
    }
}

async fn requests(worker: &Rc<Worker>, peer: &Peer, io: &Io, idle: &Cell<bool>) {
    let mut input = Input::default();
    let mut head = RequestHead::default();
    loop {
        match next_head(io, &mut input, &mut head, idle).await {
            Ok(true) => {}
            Ok(false) | Err(Ended::Gone) => return,
            Err(Ended::Rejected(reject)) => {
                idle.set(false);
                return refuse(worker, peer, io, reject).await;
            }
        }
        if head.framing == Framing::Chunked
            && let Err(reject) = look_ahead(io, &mut input).await
        {
            return refuse(worker, peer, io, reject).await;
        }
        let begun = Cell::new(false);
        let last = worker.is_closing() || !head.keep_alive;
        let upload = Upload::new(io, &mut input, &head, &begun);
        let mut upload = super::Upload::new(UploadWay::Http1(upload));
        let download = Download::new(io, &head, &begun, last);
        let mut download = super::Download::new(DownloadWay::Http1(download));
        let result = pipeline::handle(worker, peer, &head, &mut upload, &mut download).await;
        let (upload, download) = (upload.into_way(), download.into_way());
        let (UploadWay::Http1(mut upload), DownloadWay::Http1(download)) = (upload, download)
        else {
            return;
        };
        let mut again = result.is_ok() && download.may_go_on();
        drop(download);
        again = again && upload.skip().await;
        drop(upload);
        if !again {
            // What a visitor still sends must not become a reset that eats our answer.
            return linger(io, &mut input).await;
        }
        input.rest();
        idle.set(input.is_empty());
    }
}

/// Reads the next head; false when there is none.
async fn next_head(
    io: &Io,
    input: &mut Input,
    head: &mut RequestHead,
    idle: &Cell<bool>,
) -> Result<bool, Ended> {
    let mut scan = Scan::default();
    if input.is_empty() {
        let more = tokio::time::timeout(IDLE, io.read_first(input)).await;
        if !more.map_err(|_| Ended::Gone)?? {
            return Ok(false);
        }
    }
    idle.set(false);
    if let Some(end) = head
        .parse(input.unread(), &mut scan)
        .map_err(Ended::Rejected)?
    {
        input.consume(end);
        return Ok(true);
    }
    let rest = async {
        loop {
            let room = input.room(buffers::SMALL);
            if room.len() >= MAX_HEAD + 1024 {
                return Err(Ended::Gone);
            }
            if io.read(room).await? == 0 {
                return Ok(false);
            }
            let parsed = head.parse(input.unread(), &mut scan);
            if let Some(end) = parsed.map_err(Ended::Rejected)? {
                input.consume(end);
                return Ok(true);
            }
        }
    };
    tokio::time::timeout(HEAD, rest)
        .await
        .unwrap_or(Err(Ended::Rejected(Reject {
            status: 408,
            why: "the request's head took too long",
        })))
}

/// Reads what is there of a chunked body, up to a bound: most that are malformed are found before an app
/// sees any of it.
async fn look_ahead(io: &Io, input: &mut Input) -> Result<(), Reject> {
    while !Chunked::check(input.unread())? && input.unread().len() < buffers::SIZE {
        let room = input.room(buffers::SIZE);
        let mut read = pin!(io.read(room));
        match poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await {
            Poll::Ready(Ok(count)) if count > 0 => {}
            _ => break,
        }
    }
    Ok(())
}

/// Says what is wrong and ends the connection: nothing behind it can be trusted.
async fn refuse(worker: &Rc<Worker>, peer: &Peer, io: &Io, reject: Reject) {
    let begun = Cell::new(false);
    let mut download = super::Download::new(DownloadWay::Http1(Download {
        io,
        out: buffers::take(buffers::SMALL),
        version: Version::Http11,
        body: Out::None,
        bodiless: false,
        begun: &begun,
        close: true,
        sent: 0,
        ended: false,
    }));
    pipeline::refuse(worker, peer, &Page::rejected(reject), &mut download).await;
    drop(download);
    linger(io, &mut Input::default()).await;
}

/// Ends our side and reads on for a moment (RFC 9112 §9.6).
async fn linger(io: &Io, input: &mut Input) {
    io.end().await;
    let read = async {
        let mut left = UNWANTED;
        loop {
            input.consume(usize::MAX);
            match io.read(input.room(buffers::SMALL)).await {
                Ok(count) if count > 0 && count < left => left -= count,
                _ => return,
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), read).await;
}

impl Io {
    /// Waits without a block, then reads; false at the end.
    async fn read_first(&self, input: &mut Input) -> Result<bool, Ended> {
        self.wait_readable().await?;
        Ok(self.read(input.room(buffers::SMALL)).await? > 0)
    }
}

/// A request's body, or the rest of a conversation.
pub struct Upload<'a> {
    io: &'a Io,
    input: &'a mut Input,
    left: Left,
    /// Handed out and not consumed yet.
    given: usize,
    expected: bool,
    begun: bool,
    answer_begun: &'a Cell<bool>,
    pace: Option<Pace>,
}

enum Left {
    Nothing,
    Bytes(u64),
    Chunks(Box<Chunked>),
    /// Everything until the end of the connection.
    All,
}

impl<'a> Upload<'a> {
    fn new(
        io: &'a Io,
        input: &'a mut Input,
        head: &request::RequestHead,
        answer_begun: &'a Cell<bool>,
    ) -> Self {
        Upload {
            io,
            input,
            left: match head.framing {
                Framing::Length(length) => Left::Bytes(length),
                Framing::Chunked => Left::Chunks(Box::default()),
                Framing::Empty | Framing::Stream => Left::Nothing,
            },
            given: 0,
            expected: head.expect_continue,
            begun: false,
            answer_begun,
            pace: None,
        }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.left, Left::Nothing)
    }

    pub fn is_begun(&self) -> bool {
        self.begun
    }

    pub fn become_tunnel(&mut self) {
        self.left = Left::All;
    }

    pub async fn next(&mut self) -> Result<Option<&[u8]>, Ended> {
        self.input.consume(std::mem::take(&mut self.given));
        if self.is_over() {
            return Ok(None);
        }
        self.begun = true;
        // Somebody wants the body (RFC 9110 §10.1.1).
        if std::mem::take(&mut self.expected) && self.input.is_empty() && !self.answer_begun.get() {
            self.io.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        loop {
            match self.take()? {
                Found::Data(skip, length) => {
                    self.input.consume(skip);
                    self.given = length;
                    return Ok(Some(&self.input.unread()[..length]));
                }
                Found::End => {
                    self.left = Left::Nothing;
                    return Ok(None);
                }
                Found::Nothing => {}
            }
            if !self.read().await? {
                return match self.left {
                    Left::All => {
                        self.left = Left::Nothing;
                        Ok(None)
                    }
                    _ => Err(Ended::Gone),
                };
            }
        }
    }

    /// What the input holds of the body.
    fn take(&mut self) -> Result<Found, Ended> {
        let unread = self.input.unread();
        match &mut self.left {
            Left::Nothing | Left::Bytes(0) => Ok(Found::End),
            Left::All if unread.is_empty() => Ok(Found::Nothing),
            Left::All => Ok(Found::Data(0, unread.len())),
            Left::Bytes(_) if unread.is_empty() => Ok(Found::Nothing),
            Left::Bytes(left) => {
                let length = usize::try_from(*left).map_or(unread.len(), |l| l.min(unread.len()));
                *left -= length as u64;
                Ok(Found::Data(0, length))
            }
            Left::Chunks(chunks) => {
                let step = chunks.step(unread).map_err(Ended::Rejected)?;
                if !step.data.is_empty() {
                    return Ok(Found::Data(step.data.start, step.data.len()));
                }
                self.input.consume(step.consumed);
                Ok(if step.done {
                    Found::End
                } else {
                    Found::Nothing
                })
            }
        }
    }

    async fn read(&mut self) -> Result<bool, Ended> {
        let tunnel = matches!(self.left, Left::All);
        let size = if self.begun {
            buffers::SIZE
        } else {
            buffers::SMALL
        };
        let read = self.io.read(self.input.room(size));
        if tunnel {
            return Ok(read.await? > 0);
        }
        let slow = Ended::Rejected(Reject {
            status: 408,
            why: "the request's body comes too slowly",
        });
        let count = tokio::time::timeout(BODY_STALLED, read)
            .await
            .map_err(|_| slow)??;
        let pace = self.pace.get_or_insert_with(Pace::new);
        if !pace.keeps_up(count) {
            return Err(slow);
        }
        Ok(count > 0)
    }

    /// Reads what nobody wanted of the body, up to a bound; false where it is not worth it.
    async fn skip(&mut self) -> bool {
        if self.expected && !self.is_over() && self.input.is_empty() {
            // The visitor still waits to be asked for it.
            return false;
        }
        let mut skipped = 0;
        loop {
            match self.next().await {
                Ok(Some(data)) => skipped += data.len(),
                Ok(None) => return true,
                Err(_) => return false,
            }
            if skipped > UNWANTED {
                return false;
            }
        }
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        self.input.consume(self.given);
    }
}

enum Found {
    /// So many bytes to skip, then so many of data.
    Data(usize, usize),
    Nothing,
    End,
}

/// An answer on its way out.
pub struct Download<'a> {
    io: &'a Io,
    out: Vec<u8>,
    version: Version,
    body: Out,
    /// It answers HEAD.
    bodiless: bool,
    begun: &'a Cell<bool>,
    close: bool,
    sent: u64,
    ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Out {
    None,
    Length(u64),
    Chunked,
    Close,
}

impl<'a> Download<'a> {
    fn new(io: &'a Io, head: &RequestHead, begun: &'a Cell<bool>, last: bool) -> Self {
        Download {
            io,
            out: buffers::take(buffers::SMALL),
            version: head.version,
            body: Out::None,
            bodiless: head.method == request::Method::Head,
            begun,
            close: last,
            sent: 0,
            ended: false,
        }
    }

    pub async fn interim(&mut self, status: u16, fields: &Fields) -> Result<(), Ended> {
        if self.version == Version::Http10 {
            return Ok(());
        }
        self.status_line(status);
        self.fields(fields);
        self.out.extend_from_slice(b"\r\n");
        self.flush().await
    }

    fn status_line(&mut self, status: u16) {
        let _ = write!(self.out, "HTTP/1.1 {status} {}\r\n", status::reason(status));
    }

    fn fields(&mut self, fields: &Fields) {
        for field in fields.iter() {
            self.out.extend_from_slice(field.name);
            self.out.extend_from_slice(b": ");
            self.out.extend_from_slice(field.value);
            self.out.extend_from_slice(b"\r\n");
        }
    }

    pub fn head(&mut self, status: u16, fields: &Fields, length: Length) {
        self.begun.set(true);
        self.status_line(status);
        self.fields(fields);
        if !fields.has(Name::Date) {
            date::write(&mut self.out);
        }
        let told = fields.has(Name::ContentLength);
        self.body = match length {
            Length::None => {
                let bodiless = self.bodiless || status < 200 || matches!(status, 204 | 304);
                if !told && !bodiless {
                    self.out.extend_from_slice(b"content-length: 0\r\n");
                }
                Out::None
            }
            Length::Known(length) => {
                if !told {
                    let _ = write!(self.out, "content-length: {length}\r\n");
                }
                Out::Length(length)
            }
            // What follows is no body (RFC 9112 §6.1): see below.
            Length::Unknown if status == 101 => Out::Close,
            Length::Unknown if self.version == Version::Http10 => {
                self.close = true;
                Out::Close
            }
            Length::Unknown => {
                self.out
                    .extend_from_slice(b"transfer-encoding: chunked\r\n");
                Out::Chunked
            }
        };
        if status == 101 {
            self.out
                .extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
            (self.body, self.close) = (Out::Close, true);
        } else if self.close {
            self.out.extend_from_slice(b"connection: close\r\n");
        } else if self.version == Version::Http10 {
            self.out.extend_from_slice(b"connection: keep-alive\r\n");
        }
        self.out.extend_from_slice(b"\r\n");
    }

    pub fn has_begun(&self) -> bool {
        self.begun.get()
    }

    pub async fn data(&mut self, mut data: &[u8]) -> Result<(), Ended> {
        match &mut self.body {
            Out::None => return Ok(()),
            Out::Length(left) => {
                // Never more than was said: it would be the next answer's beginning.
                let fits = usize::try_from(*left).map_or(data.len(), |left| left.min(data.len()));
                data = &data[..fits];
                *left -= fits as u64;
            }
            Out::Chunked if data.is_empty() => return Ok(()),
            Out::Chunked => chunked::begin_chunk(data.len(), &mut self.out),
            Out::Close => {}
        }
        self.sent += data.len() as u64;
        if self.out.len() + data.len() <= COALESCE {
            self.out.extend_from_slice(data);
        } else {
            self.io.write_both(&self.out, data).await?;
            self.out.clear();
        }
        if self.body == Out::Chunked {
            self.out.extend_from_slice(chunked::CHUNK_END);
        }
        Ok(())
    }

    pub async fn flush(&mut self) -> Result<(), Ended> {
        if !self.out.is_empty() {
            self.io.write_all(&self.out).await?;
            self.out.clear();
        }
        Ok(())
    }

    pub async fn end(&mut self, _trailers: &Fields) -> Result<(), Ended> {
        match self.body {
            Out::Chunked => self.out.extend_from_slice(chunked::LAST_CHUNK),
            Out::Length(left) if left > 0 => {
                // The body is shorter than was said.
                self.abort();
            }
            _ => {}
        }
        self.ended = true;
        self.flush().await
    }

    pub fn abort(&mut self) {
        self.close = true;
    }

    pub fn close(&mut self) {
        self.close = true;
    }

    pub async fn gone(&mut self) {
        self.io.gone().await;
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }

    fn may_go_on(&self) -> bool {
        self.ended && !self.close
    }
}

impl Drop for Download<'_> {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.out));
    }
}
