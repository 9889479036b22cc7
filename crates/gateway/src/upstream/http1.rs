//! A connection to an app that speaks HTTP/1, or uwsgi or FastCGI, whose answers are much the same: one
//! request, its answer back to the visitor as it comes.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use hutong_http::chunked::{self, Chunked};
use hutong_http::fastcgi;
use hutong_http::fields::{Fields, Name};
use hutong_http::request::{Framing as Sending, Method};
use hutong_http::response::{Framing, ResponseHead};
use hutong_ipc::gateway::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::request::Onward;
use super::{cgi, tunnel};
use crate::buffers::{self, Input};
use crate::pages::Page;
use crate::pipeline::{Exchange, Extras, Stop};
use crate::target::Target;
use crate::visitor::{Download, Ended, Length, Upload};

/// An app that sends nothing of a body for so long has ended; a stream of events may be quiet for a while.
pub const SILENT: Duration = Duration::from_secs(3600);

pub struct Connection {
    stream: TcpStream,
    input: Input,
}

/// Why there is no answer.
pub enum Broken {
    /// The app cannot have seen any of it.
    Unsent,
    /// The app ended before it said anything.
    Unanswered,
    TooSlow,
    /// What it said is no HTTP.
    Malformed(&'static str),
    Stop(Stop),
}

impl From<Ended> for Broken {
    fn from(ended: Ended) -> Self {
        Broken::Stop(ended.into())
    }
}

impl Connection {
    pub fn new(stream: TcpStream) -> Self {
        Connection {
            stream,
            input: Input::default(),
        }
    }

    /// Whether the app has said nothing unasked, nor closed, as far as the event loop knows.
    pub fn is_open(&self) -> bool {
        let mut byte = [0];
        matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// As far as the kernel knows.
    pub fn is_surely_open(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let seen = recv(&self.stream, &mut byte, flags);
        self.is_open() && matches!(seen, Err(rustix::io::Errno::AGAIN))
    }
}

/// What both directions know of each other.
pub struct Progress {
    /// The last byte of the request that the app took.
    pub at: Cell<Instant>,
    sent_any: Cell<bool>,
    pub sent_all: Cell<bool>,
    failed: Cell<bool>,
}

impl Default for Progress {
    fn default() -> Self {
        Progress {
            at: Cell::new(Instant::now()),
            sent_any: Cell::new(false),
            sent_all: Cell::new(false),
            failed: Cell::new(false),
        }
    }
}

/// Sends the request and relays its answer; whether the connection may be used again.
pub async fn converse(
    connection: &mut Connection,
    target: &Target,
    strip: usize,
    exchange: &mut Exchange<'_, '_>,
) -> Result<bool, Broken> {
    let mut out = buffers::take(buffers::SMALL);
    let (body, _held) = begin(&mut out, &target.protocol, strip, exchange).await?;
    let progress = Progress::default();
    let Connection { stream, input } = connection;
    let (read, mut write) = stream.split();
    let mut read = match target.protocol {
        Protocol::FastCgi { .. } => Source::FastCgi(Box::new(cgi::Reader::new(read))),
        _ => Source::Plain(read),
    };
    let websocket = exchange.head.websocket && target.protocol == Protocol::Http;
    let mut head = ResponseHead::default();
    let done = {
        let upload = &mut *exchange.upload;
        let sending = send(&mut out, &mut write, upload, body, &progress);
        let mut answering = Answering {
            read: &mut read,
            input: &mut *input,
            head: &mut head,
            download: &mut *exchange.download,
            status: &mut exchange.record.status,
            to_head: exchange.head.method == Method::Head,
            websocket,
            extras: &exchange.extras,
            progress: &progress,
        };
        let answering = answering.run(exchange.patience);
        beside(sending, answering).await
    };
    buffers::give(out);
    if done?? == Next::Tunnel
        && let Source::Plain(read) = read
    {
        let tunnel = tunnel::Tunnel {
            read,
            write,
            input,
            upload: exchange.upload,
            download: exchange.download,
            shared: &exchange.worker.shared,
        };
        tunnel.run().await;
        return Ok(false);
    }
    let clean = progress.sent_all.get() && input.is_empty() && head.keep_alive;
    // An app that refuses a WebSocket may mean to read on nevertheless.
    let clean = clean && target.protocol == Protocol::Http && !websocket;
    input.rest();
    Ok(clean)
}

/// How what follows a request's head is wrapped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrap {
    Plain,
    Chunks,
    /// FastCGI's.
    Records,
    /// Nothing follows until the app has agreed.
    Tunnel,
}

/// Writes the head. Of a body without a length, an app that must know it gets the whole with the head.
async fn begin(
    out: &mut Vec<u8>,
    protocol: &Protocol,
    strip: usize,
    exchange: &mut Exchange<'_, '_>,
) -> Result<(Wrap, Option<Gathering>), Broken> {
    let head = exchange.head;
    let unsized_body = matches!(head.framing, Sending::Chunked | Sending::Stream);
    let (Protocol::Uwsgi | Protocol::FastCgi { .. }) = protocol else {
        Onward::of(exchange, strip).write(out);
        let wrap = match unsized_body {
            _ if head.websocket => Wrap::Tunnel,
            true => Wrap::Chunks,
            false => Wrap::Plain,
        };
        return Ok((wrap, None));
    };
    if head.websocket {
        return Err(Page::new(501, "This app does not take WebSockets.").into());
    }
    let mut held = None;
    let body = match unsized_body {
        true => {
            held = Some(Gathering::begin()?);
            Some(gather(exchange.upload).await?)
        }
        false => None,
    };
    let length = body.as_ref().map(|body| body.len() as u64);
    if let Protocol::FastCgi { root, index, .. } = protocol {
        let script = cgi::Script { root, index };
        cgi::write_fastcgi(out, &Onward::of(exchange, strip), length, &script)?;
        fastcgi::stdin(out, &body.unwrap_or_default());
        return Ok((Wrap::Records, held));
    }
    cgi::write_uwsgi(out, &Onward::of(exchange, strip), length)?;
    out.extend_from_slice(&body.unwrap_or_default());
    Ok((Wrap::Plain, held))
}

/// One of the bodies that a worker holds at once.
struct Gathering;

thread_local! {
    static GATHERED: Cell<usize> = const { Cell::new(0) };
}

impl Gathering {
    fn begin() -> Result<Self, Page> {
        const MOST: usize = 32;
        let count = GATHERED.get();
        if count >= MOST {
            return Err(Page::unavailable("There are too many uploads at once.", 1));
        }
        GATHERED.set(count + 1);
        Ok(Gathering)
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        GATHERED.set(GATHERED.get() - 1);
    }
}

async fn gather(upload: &mut Upload<'_>) -> Result<Vec<u8>, Broken> {
    let mut body = Vec::new();
    while !upload.is_over() {
        let Some(data) = upload.next().await? else {
            break;
        };
        if body.len() + data.len() > cgi::MAX_UNSIZED {
            let detail =
                "This app must know how long a body of more than 1M is: say Content-Length.";
            return Err(Page::new(411, detail).closing().into());
        }
        body.extend_from_slice(data);
    }
    Ok(body)
}

/// Both at once, until the answer is through. What goes wrong with the visitor ends it; an app that takes
/// no more of the request may answer nevertheless.
pub async fn beside<T>(
    sending: impl Future<Output = Result<(), Ended>>,
    answering: impl Future<Output = T>,
) -> Result<T, Ended> {
    let (mut sending, mut answering) = (pin!(sending), pin!(answering));
    let mut sent = false;
    poll_fn(|context| {
        if !sent && let Poll::Ready(result) = sending.as_mut().poll(context) {
            sent = true;
            if let Err(ended) = result {
                return Poll::Ready(Err(ended));
            }
        }
        answering.as_mut().poll(context).map(Ok)
    })
    .await
}

async fn send(
    out: &mut Vec<u8>,
    write: &mut WriteHalf<'_>,
    upload: &mut Upload<'_>,
    wrap: Wrap,
    progress: &Progress,
) -> Result<(), Ended> {
    let give = async |write: &mut WriteHalf<'_>, data: &[u8]| {
        let mut data = data;
        while !data.is_empty() {
            match write.write(data).await {
                Ok(count) if count > 0 => {
                    // The head's time is that of the beginning.
                    if progress.sent_any.replace(true) {
                        progress.at.set(Instant::now());
                    }
                    data = &data[count..];
                }
                _ => {
                    progress.failed.set(true);
                    return false;
                }
            }
        }
        true
    };
    if !give(write, out).await {
        return Ok(());
    }
    while wrap != Wrap::Tunnel && !upload.is_over() {
        let Some(data) = upload.next().await? else {
            break;
        };
        // The end of a stream may come as an empty piece, which would end the chunks too early.
        if data.is_empty() {
            continue;
        }
        out.clear();
        if wrap == Wrap::Records {
            fastcgi::stdin(out, data);
            if !give(write, out).await {
                return Ok(());
            }
            continue;
        }
        let chunked = wrap == Wrap::Chunks;
        if chunked {
            chunked::begin_chunk(data.len(), out);
        }
        let small = data.len() <= buffers::SMALL / 2;
        if small {
            out.extend_from_slice(data);
        }
        let mut going = give(write, out).await;
        if !small {
            going = going && give(write, data).await;
        }
        if chunked {
            going = going && give(write, chunked::CHUNK_END).await;
        }
        if !going {
            return Ok(());
        }
    }
    out.clear();
    match wrap {
        Wrap::Chunks => out.extend_from_slice(chunked::LAST_CHUNK),
        Wrap::Records => fastcgi::end_stdin(out),
        Wrap::Plain | Wrap::Tunnel => {}
    }
    if !give(write, out).await {
        return Ok(());
    }
    progress.sent_all.set(true);
    Ok(())
}

/// What comes behind the answer's head.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Done,
    Tunnel,
}

/// Where an answer comes from.
enum Source<'a> {
    Plain(ReadHalf<'a>),
    FastCgi(Box<cgi::Reader<'a>>),
}

impl Source<'_> {
    async fn read(&mut self, into: &mut Vec<u8>) -> std::io::Result<usize> {
        match self {
            Source::Plain(read) => read.read_buf(into).await,
            Source::FastCgi(reader) => reader.read(into).await,
        }
    }
}

struct Answering<'a, 'b, 'c> {
    read: &'a mut Source<'b>,
    input: &'a mut Input,
    head: &'a mut ResponseHead,
    download: &'a mut Download<'c>,
    status: &'a mut u16,
    to_head: bool,
    websocket: bool,
    extras: &'a Extras,
    progress: &'a Progress,
}

impl Answering<'_, '_, '_> {
    async fn run(&mut self, patience: Duration) -> Result<Next, Broken> {
        loop {
            self.head_within(patience).await?;
            let status = self.head.status;
            strip_connection(&mut self.head.fields);
            if status < 200 {
                // No body follows any of these, whatever an app says (RFC 9110 §8.6).
                self.head.fields.remove(Name::ContentLength);
            }
            if status == 101 {
                return self.switch().await;
            }
            if status >= 200 {
                break;
            }
            // 100-continue was said by us; others may be of use to the visitor.
            if status != 100 {
                self.download.interim(status, &self.head.fields).await?;
            }
        }
        *self.status = self.head.status;
        let length = match self.head.framing {
            Framing::Empty => Length::None,
            Framing::Length(length) => Length::Known(length),
            Framing::Chunked | Framing::Close => Length::Unknown,
        };
        if length == Length::Unknown || self.head.status == 204 {
            self.head.fields.remove(Name::ContentLength);
        }
        self.extras.add_to(&mut self.head.fields);
        self.download
            .head(self.head.status, &mut self.head.fields, length);
        self.body().await.map(|()| Next::Done)
    }

    async fn switch(&mut self) -> Result<Next, Broken> {
        if !self.websocket {
            // Nobody asked to switch: this app cannot be understood.
            return Err(Broken::Malformed("it switches protocols unasked"));
        }
        *self.status = 101;
        self.extras.add_to(&mut self.head.fields);
        self.download
            .head(101, &mut self.head.fields, Length::Unknown);
        self.download.flush().await?;
        Ok(Next::Tunnel)
    }

    /// Reads the head, as long as the app is not silent for too long with the whole request in hand.
    async fn head_within(&mut self, patience: Duration) -> Result<(), Broken> {
        loop {
            let waited = self.progress.at.get().elapsed();
            let left = patience.saturating_sub(waited);
            match tokio::time::timeout(left, self.read_head()).await {
                Ok(result) => return result,
                // An upload that goes on is the visitor's time, not the app's.
                Err(_) if self.progress.at.get().elapsed() < patience => {}
                Err(_) if !self.progress.sent_all.get() && !self.progress.failed.get() => {
                    self.progress.at.set(Instant::now());
                }
                Err(_) => return Err(Broken::TooSlow),
            }
        }
    }

    async fn read_head(&mut self) -> Result<(), Broken> {
        loop {
            if !self.input.is_empty() {
                let unread = self.input.unread();
                let parsed = match self.read {
                    Source::Plain(_) => self.head.parse(unread, self.to_head),
                    Source::FastCgi(_) => self.head.parse_cgi(unread, self.to_head),
                };
                if let Some(end) = parsed.map_err(Broken::Malformed)? {
                    self.input.consume(end);
                    return Ok(());
                }
            }
            let may_leave = self.progress.sent_all.get();
            let read = self.read.read(self.input.room(buffers::SMALL));
            let count = tokio::select! {
                biased;
                count = read => count,
                () = self.download.gone(), if may_leave => return Err(Ended::Gone.into()),
            };
            if !matches!(count, Ok(count) if count > 0) {
                return Err(if !self.input.is_empty() {
                    Broken::Malformed("it ends within its head")
                } else if self.progress.failed.get() && !self.progress.sent_any.get() {
                    Broken::Unsent
                } else {
                    Broken::Unanswered
                });
            }
        }
    }

    async fn body(&mut self) -> Result<(), Broken> {
        let mut left = match self.head.framing {
            Framing::Empty => Left::Bytes(0),
            Framing::Length(length) => Left::Bytes(length),
            Framing::Chunked => Left::Chunks(Box::default()),
            Framing::Close => Left::All,
        };
        loop {
            while let Some((data, consumed)) = left.take(self.input.unread())? {
                let data = &self.input.unread()[data];
                self.download.data(data).await?;
                self.input.consume(consumed);
            }
            match &left {
                Left::Bytes(0) => break,
                Left::Chunks(chunks) if chunks.is_done() => break,
                _ => {}
            }
            if !self.more().await? {
                if matches!(left, Left::All) {
                    break;
                }
                // Cut off: the visitor must see that.
                self.extras.cut.set(true);
                return Err(Ended::Gone.into());
            }
        }
        let none = Fields::default();
        let trailers = match &left {
            Left::Chunks(chunks) => &chunks.trailers,
            _ => &none,
        };
        Ok(self.download.end(trailers).await?)
    }

    /// Reads on; what waits for the visitor goes out if that would wait.
    async fn more(&mut self) -> Result<bool, Broken> {
        let size = buffers::SIZE;
        let mut read = pin!(self.read.read(self.input.room(size)));
        let at_once = poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await;
        let count = match at_once {
            Poll::Ready(count) => count,
            Poll::Pending => {
                self.download.flush().await?;
                let may_leave = self.progress.sent_all.get();
                tokio::select! {
                    biased;
                    count = tokio::time::timeout(SILENT, read) => count.map_err(|_| Ended::Gone)?,
                    () = self.download.gone(), if may_leave => return Err(Ended::Gone.into()),
                }
            }
        };
        // A reset is no end, whatever ends at the connection's end.
        if count.is_err() {
            self.extras.cut.set(true);
        }
        Ok(count.map_err(Ended::from)? > 0)
    }
}

/// What is still to come of an answer's body.
enum Left {
    Bytes(u64),
    Chunks(Box<Chunked>),
    /// Until the app closes.
    All,
}

impl Left {
    /// A piece of the body in `unread`: where it is, and how much is dealt with.
    fn take(&mut self, unread: &[u8]) -> Result<Option<(std::ops::Range<usize>, usize)>, Broken> {
        if unread.is_empty() {
            return Ok(None);
        }
        match self {
            Left::All => Ok(Some((0..unread.len(), unread.len()))),
            Left::Bytes(0) => Ok(None),
            Left::Bytes(left) => {
                let length = usize::try_from(*left).map_or(unread.len(), |l| l.min(unread.len()));
                *left -= length as u64;
                Ok(Some((0..length, length)))
            }
            Left::Chunks(chunks) => {
                // A head was sent: all that can be done is to end.
                let step = chunks.step(unread).map_err(|_| Ended::Gone)?;
                let some = step.consumed > 0;
                Ok(some.then_some((step.data, step.consumed)))
            }
        }
    }
}

/// Removes what is between the app and us.
fn strip_connection(fields: &mut Fields) {
    const OURS: [Name; 6] = [
        Name::Connection,
        Name::KeepAlive,
        Name::ProxyConnection,
        Name::TransferEncoding,
        Name::Trailer,
        Name::Upgrade,
    ];
    let named: Vec<Vec<u8>> = fields
        .members(Name::Connection)
        .filter(|option| {
            !option.eq_ignore_ascii_case(b"close") && !option.eq_ignore_ascii_case(b"keep-alive")
        })
        .map(<[u8]>::to_vec)
        .collect();
    if named.is_empty() && !OURS.iter().any(|name| fields.has(*name)) {
        return;
    }
    fields.retain(|field| {
        let listed = named
            .iter()
            .any(|name| name.eq_ignore_ascii_case(field.name));
        let kept = matches!(field.known, Name::ContentLength | Name::ContentType);
        !OURS.contains(&field.known) && (kept || !listed)
    });
}

/// Turns a stop into what the proxy passes on.
impl From<Page> for Broken {
    fn from(page: Page) -> Self {
        Broken::Stop(page.into())
    }
}
