//! A visitor's HTTP/2 connection (RFC 9113), by the h2 library; each stream is answered by
//! [`pipeline::handle`] in a task of its own.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use hutong_http::fields::{Fields, Name};
use hutong_http::request::{MAX_HEAD, Method, Parts, RequestHead};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use super::wire::Wire;
use super::{DownloadWay, Ended, Length, Pace, Peer, UploadWay};
use crate::Phase;
use crate::io::STALLED;
use crate::pages::Page;
use crate::pipeline::{self, Worker};

const HANDSHAKE: Duration = Duration::from_secs(15);
/// A connection without a stream.
const IDLE: Duration = Duration::from_secs(75);
const BODY_STALLED: Duration = Duration::from_secs(30);
/// How much of a body is looked at before anybody gets it.
const LOOK_AHEAD: usize = 64 << 10;
/// In so many pieces: the library has a bound of its own on what waits in many small ones.
const MAX_AHEAD: usize = 32;
const MAX_STREAMS: u32 = 128;
/// What may be under way in either direction, of a stream and of a connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// What waits in a stream for a visitor who does not read.
const SEND_BUFFER: usize = 128 << 10;
/// Resets by a visitor that were not looked at yet, before the connection is ended (rapid reset).
const MAX_RESETS: usize = 32;

/// Serves a connection until either side ends it.
pub async fn serve(
    worker: &Rc<Worker>,
    peer: Peer,
    stream: TlsStream<TcpStream>,
    phase: &mut watch::Receiver<Phase>,
) {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(MAX_RESETS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(Some(MAX_RESETS))
        .enable_connect_protocol();
    let wire = Wire::new(stream);
    let shake = builder.handshake::<_, Bytes>(wire.clone());
    let shaken = async {
        let mut shake = pin!(shake);
        poll_fn(|context| wire.after(context, |context| shake.as_mut().poll(context))).await
    };
    let Ok(Ok(connection)) = tokio::time::timeout(HANDSHAKE, shaken).await else {
        return;
    };
    streams(worker, &Rc::new(peer), connection, &wire, phase).await;
}

async fn streams(
    worker: &Rc<Worker>,
    peer: &Rc<Peer>,
    mut connection: Connection<Wire, Bytes>,
    wire: &Wire,
    phase: &mut watch::Receiver<Phase>,
) {
    let open = Rc::new(Cell::new(0_usize));
    let mut leaving = false;
    let mut told = pin!(phase.wait_for(|phase| *phase != Phase::Serving));
    let mut idle = pin!(tokio::time::sleep(IDLE));
    let mut streams = 0_u64;
    let mut streams_then = 0;
    loop {
        let accept =
            poll_fn(|context| wire.after(context, |context| connection.poll_accept(context)));
        tokio::select! {
            biased;
            accepted = accept => match accepted {
                Some(Ok((request, respond))) => {
                    streams += 1;
                    let (worker, peer) = (worker.clone(), peer.clone());
                    open.set(open.get() + 1);
                    let open = open.clone();
                    tokio::task::spawn_local(async move {
                        stream(&worker, &peer, request, respond).await;
                        open.set(open.get() - 1);
                    });
                }
                Some(Err(_)) | None => return wire.end().await,
            },
            () = &mut idle => {
                idle.as_mut().reset(tokio::time::Instant::now() + IDLE);
                if open.get() == 0 && streams == streams_then {
                    if leaving {
                        return;
                    }
                    leaving = true;
                    connection.graceful_shutdown();
                }
                streams_then = streams;
            }
            _ = &mut told, if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
        }
    }
}

async fn stream(
    worker: &Rc<Worker>,
    peer: &Peer,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (parts, body) = request.into_parts();
    let mut head = RequestHead::default();
    let read = read_head(&mut head, &parts, !body.is_end_stream());
    let mut download = super::Download::new(DownloadWay::Http2(Download {
        respond,
        expected: head.expect_continue,
        body: None,
        head: None,
        bodiless: head.method == Method::Head,
        unknown: false,
        left: None,
        sent: 0,
        ended: false,
    }));
    if let Err(reject) = read {
        pipeline::refuse(worker, peer, &Page::rejected(reject), &mut download).await;
        return;
    }
    let mut upload = Upload {
        body,
        ahead: VecDeque::new(),
        current: 0,
        begun: false,
        over: false,
        pace: None,
        tunnel: head.websocket,
    };
    if let Err(error) = upload.look_ahead() {
        // Nobody but us saw any of it.
        if error.is_remote() {
            // The visitor took it back.
            return;
        }
        let reject = hutong_http::Reject::bad("the request's body is not what its head says");
        pipeline::refuse(worker, peer, &Page::rejected(reject), &mut download).await;
        return;
    }
    let mut upload = super::Upload::new(UploadWay::Http2(upload));
    let result = pipeline::handle(worker, peer, &head, &mut upload, &mut download).await;
    if let (DownloadWay::Http2(mut download), Err(_)) = (download.into_way(), result) {
        download.abort();
    }
    // If nobody reads the rest of the request, h2 says so behind the answer (RST_STREAM with NO_ERROR,
    // RFC 9113 §8.1). To reset it here would take back what was not written yet.
}

fn read_head(
    head: &mut RequestHead,
    parts: &http::request::Parts,
    has_body: bool,
) -> Result<(), hutong_http::Reject> {
    let protocol = parts.extensions.get::<h2::ext::Protocol>();
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let parts_of = Parts {
        method: parts.method.as_str(),
        scheme: parts.uri.scheme_str(),
        authority: parts.uri.authority().map(|authority| authority.as_str()),
        path,
        protocol: protocol.map(h2::ext::Protocol::as_str),
        has_body,
    };
    head.from_parts(&parts_of, |fields| {
        for (name, value) in &parts.headers {
            fields.push(name.as_str().as_bytes(), value.as_bytes());
        }
    })
}

pub struct Upload {
    body: RecvStream,
    /// Pieces that are there and were not handed on.
    ahead: VecDeque<Bytes>,
    /// How much was handed on last, the first piece.
    current: usize,
    begun: bool,
    over: bool,
    pace: Option<Pace>,
    /// A conversation may be silent.
    tunnel: bool,
}

impl Upload {
    /// Takes in what is there of the body, up to a bound: most that are malformed, such as those that are not as long
    /// as they say, are found before an app sees any of it.
    fn look_ahead(&mut self) -> Result<(), h2::Error> {
        let mut length = 0;
        let mut context = Context::from_waker(Waker::noop());
        while length < LOOK_AHEAD && self.ahead.len() < MAX_AHEAD && !self.body.is_end_stream() {
            match self.body.poll_data(&mut context) {
                Poll::Ready(Some(Ok(data))) => {
                    length += data.len();
                    if !data.is_empty() {
                        self.ahead.push_back(data);
                    }
                }
                Poll::Ready(Some(Err(error))) => return Err(error),
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Ok(())
    }

    pub fn is_over(&self) -> bool {
        self.ahead.is_empty() && (self.over || self.body.is_end_stream())
    }

    pub fn is_begun(&self) -> bool {
        self.begun
    }

    pub fn may_be_silent(&mut self) {
        self.tunnel = true;
    }

    pub async fn next(&mut self) -> Result<Option<&[u8]>, Ended> {
        let taken = std::mem::take(&mut self.current);
        if taken > 0 {
            self.ahead.pop_front();
        }
        // What was handed on makes room for more: an app that reads slowly slows its visitor.
        let _ = self.body.flow_control().release_capacity(taken);
        self.begun = true;
        loop {
            if self.ahead.is_empty() && !self.receive().await? {
                return Ok(None);
            }
            // An empty frame is nothing to hand on.
            match self.ahead.front().map(Bytes::len) {
                Some(length) if length > 0 => {
                    self.current = length;
                    return Ok(self.ahead.front().map(|data| &**data));
                }
                _ => drop(self.ahead.pop_front()),
            }
        }
    }

    /// Waits for the next piece; false at the end.
    async fn receive(&mut self) -> Result<bool, Ended> {
        let data = poll_fn(|context| self.body.poll_data(context));
        let data = if self.tunnel {
            data.await
        } else {
            tokio::time::timeout(BODY_STALLED, data)
                .await
                .map_err(|_| Ended::Gone)?
        };
        let Some(data) = data else {
            self.over = true;
            return Ok(false);
        };
        let data = data.map_err(|_| Ended::Gone)?;
        let pace = self.pace.get_or_insert_with(Pace::new);
        if !self.tunnel && !pace.keeps_up(data.len()) {
            return Err(Ended::Gone);
        }
        self.ahead.push_back(data);
        Ok(true)
    }

    /// What came behind the body.
    pub async fn trailers(&mut self) -> Option<HeaderMap> {
        poll_fn(|context| self.body.poll_trailers(context))
            .await
            .ok()
            .flatten()
    }
}

pub struct Download {
    respond: SendResponse<Bytes>,
    /// The visitor waits for a word before it sends the body.
    expected: bool,
    body: Option<SendStream<Bytes>>,
    /// Kept back until it is known whether anything follows.
    head: Option<Response<()>>,
    bodiless: bool,
    unknown: bool,
    left: Option<u64>,
    sent: u64,
    ended: bool,
}

impl Download {
    pub fn interim(&mut self, status: u16, fields: &Fields) {
        let _ = self.respond.send_informational(response(status, fields));
    }

    /// Somebody wants the body (RFC 9110 §10.1.1).
    pub fn go_on(&mut self) {
        if std::mem::take(&mut self.expected) {
            let _ = self
                .respond
                .send_informational(response(100, &Fields::default()));
        }
    }

    pub fn head(&mut self, status: u16, fields: &Fields, length: Length) {
        // A WebSocket over HTTP/2 begins with 200, and proves nothing with a key (RFC 8441 §5).
        let mut response = response(if status == 101 { 200 } else { status }, fields);
        if status == 101 {
            response.headers_mut().remove("sec-websocket-accept");
        }
        self.left = match length {
            Length::Known(length) => {
                if !fields.has(Name::ContentLength) {
                    let value = HeaderValue::from(length);
                    response
                        .headers_mut()
                        .insert(http::header::CONTENT_LENGTH, value);
                }
                Some(length)
            }
            Length::None => Some(0),
            Length::Unknown => None,
        };
        self.unknown = length == Length::Unknown;
        self.head = Some(response);
    }

    pub fn has_begun(&self) -> bool {
        self.head.is_some() || self.body.is_some() || self.ended
    }

    /// Sends the head, if it was not sent yet.
    fn open(&mut self, end: bool) -> Result<(), Ended> {
        if let Some(head) = self.head.take() {
            let stream = self.respond.send_response(head, end);
            self.body = Some(stream.map_err(|_| Ended::Gone)?);
        }
        Ok(())
    }

    pub async fn data(&mut self, mut data: &[u8]) -> Result<(), Ended> {
        if let Some(left) = &mut self.left {
            let fits = usize::try_from(*left).map_or(data.len(), |left| left.min(data.len()));
            data = &data[..fits];
            *left -= fits as u64;
        }
        if self.bodiless || data.is_empty() {
            return Ok(());
        }
        let last = self.left == Some(0);
        while !data.is_empty() {
            let room = self.room(data.len()).await?;
            // Only what can go is copied.
            let (piece, rest) = data.split_at(room.min(data.len()));
            data = rest;
            self.sent += piece.len() as u64;
            // The last piece carries the end, so that a small answer is two frames.
            let end = last && data.is_empty();
            let body = self.body.as_mut().ok_or(Ended::Gone)?;
            body.send_data(Bytes::copy_from_slice(piece), end)
                .map_err(|_| Ended::Gone)?;
            self.ended |= end;
        }
        Ok(())
    }

    /// Waits until some of a body can go, at most `wanted` bytes; how much.
    pub async fn room(&mut self, wanted: usize) -> Result<usize, Ended> {
        self.open(false)?;
        let body = self.body.as_mut().ok_or(Ended::Gone)?;
        body.reserve_capacity(wanted);
        let capacity = tokio::time::timeout(
            STALLED,
            poll_fn(|context| match body.capacity() {
                0 => body.poll_capacity(context),
                some => Poll::Ready(Some(Ok(some))),
            }),
        );
        match capacity.await {
            Ok(Some(Ok(capacity))) => Ok(capacity),
            _ => Err(Ended::Gone),
        }
    }

    pub fn flush(&mut self) -> Result<(), Ended> {
        self.open(false)
    }

    pub fn end(&mut self, trailers: &Fields) -> Result<(), Ended> {
        if self.ended {
            return Ok(());
        }
        if self.left.is_some_and(|left| left > 0) && !self.bodiless {
            self.abort();
            return Err(Ended::Gone);
        }
        self.ended = true;
        let Some(body) = &mut self.body else {
            if trailers.is_empty() {
                return self.open(true);
            }
            self.open(false)?;
            return self.trailers(trailers);
        };
        if trailers.is_empty() {
            body.send_data(Bytes::new(), true).map_err(|_| Ended::Gone)
        } else {
            self.trailers(trailers)
        }
    }

    fn trailers(&mut self, trailers: &Fields) -> Result<(), Ended> {
        let map = header_map(trailers);
        let body = self.body.as_mut().ok_or(Ended::Gone)?;
        body.send_trailers(map).map_err(|_| Ended::Gone)
    }

    pub fn abort(&mut self) {
        self.reset(Reason::INTERNAL_ERROR);
    }

    fn reset(&mut self, reason: Reason) {
        match &mut self.body {
            Some(body) => body.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }

    pub async fn gone(&mut self) {
        let gone = poll_fn(|context| match &mut self.body {
            Some(body) => body.poll_reset(context),
            None => self.respond.poll_reset(context),
        });
        let _ = gone.await;
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }
}

fn response(status: u16, fields: &Fields) -> Response<()> {
    let mut response = Response::new(());
    if let Ok(status) = http::StatusCode::from_u16(status) {
        *response.status_mut() = status;
    }
    *response.headers_mut() = header_map(fields);
    response
}

fn header_map(fields: &Fields) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len() + 2);
    for field in fields.iter() {
        let name = HeaderName::from_bytes(field.name);
        let value = HeaderValue::from_bytes(field.value);
        if let (Ok(name), Ok(value)) = (name, value) {
            map.append(name, value);
        }
    }
    map
}
