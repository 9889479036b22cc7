//! An app that speaks HTTP/2 without TLS, as gRPC servers do: one connection for all requests of a worker.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use hutong_http::fields::{Fields, Name};
use hutong_http::request::{Framing, Method as Asked, RequestHead};
use tokio::net::TcpStream;

use super::http1::{Broken, Progress, SILENT, beside};
use super::request::Onward;
use crate::pages::Page;
use crate::pipeline::Exchange;
use crate::visitor::{Download, Ended, Length, Upload};

/// What may be under way in either direction, of a stream and of the connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// A connection that takes many requests at once.
pub type Session = SendRequest<Bytes>;

/// Says hello; the connection is driven by a task of its own until it ends.
pub async fn open(stream: TcpStream) -> Result<Session, Broken> {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(128 << 10)
        .enable_push(false);
    let (session, connection) = builder
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(|_| Broken::Unsent)?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!("a connection to an app: {error}");
        }
    });
    Ok(session)
}

/// Sends the request and relays its answer.
pub async fn converse(
    session: Session,
    strip: usize,
    exchange: &mut Exchange<'_, '_>,
) -> Result<(), Broken> {
    if exchange.head.websocket {
        return Err(Page::new(501, "This app does not take WebSockets.").into());
    }
    let mut session = session.ready().await.map_err(|error| before(&error))?;
    let request = head(exchange, strip)?;
    let bodiless = exchange.head.framing == Framing::Empty;
    if is_grpc(exchange.head) {
        exchange.upload.may_be_silent();
    }
    let sent = session.send_request(request, bodiless);
    let (response, stream) = sent.map_err(|error| before(&error))?;
    let progress = Progress::default();
    let upload = &mut *exchange.upload;
    let sending = send(stream, upload, bodiless, &progress);
    let answering = Answering {
        download: &mut *exchange.download,
        status: &mut exchange.record.status,
        to_head: exchange.head.method == Asked::Head,
        extras: &exchange.extras,
        progress: &progress,
    };
    let answering = answering.run(response, exchange.patience);
    beside(sending, answering).await?
}

/// Its streams may be quiet for as long as they like. Only an app that speaks HTTP/2 has any.
fn is_grpc(head: &RequestHead) -> bool {
    let kind = head.fields.get(Name::ContentType).unwrap_or_default();
    kind.get(..16)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"))
}

/// What went wrong before the app can have seen the request.
fn before(_: &h2::Error) -> Broken {
    Broken::Unsent
}

fn head(exchange: &Exchange<'_, '_>, strip: usize) -> Result<Request<()>, Broken> {
    let (head, peer) = (exchange.head, exchange.peer);
    let unfit = || Broken::Stop(Page::new(400, "The request cannot be told to this app.").into());
    let onward = Onward::of(exchange, strip);
    let (slash, rest) = onward.target();
    let path = PathAndQuery::try_from(format!("{slash}{rest}")).map_err(|_| unfit())?;
    let host = head.fields.get(Name::Host).unwrap_or_default();
    let authority = Authority::try_from(host).map_err(|_| unfit())?;
    let uri = Uri::builder()
        .scheme(if peer.is_secure() {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        })
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|_| unfit())?;
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    *request.method_mut() =
        Method::from_bytes(head.method.text().as_bytes()).map_err(|_| unfit())?;
    *request.version_mut() = http::Version::HTTP_2;
    let map = request.headers_mut();
    for field in head.fields.iter() {
        if field.known != Name::Host && onward.passes(field) {
            append(map, field.name, field.value);
        }
    }
    let trailers = |option: &[u8]| option.eq_ignore_ascii_case(b"trailers");
    if head.fields.members(Name::Te).any(trailers) {
        map.insert(http::header::TE, HeaderValue::from_static("trailers"));
    }
    onward.said_by_us(|name, value| append(map, name.as_bytes(), value));
    Ok(request)
}

fn append(map: &mut HeaderMap, name: &[u8], value: &[u8]) {
    let name = HeaderName::from_bytes(name);
    if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
        map.append(name, value);
    }
}

/// The request's body, as fast as the app takes it.
async fn send(
    mut stream: SendStream<Bytes>,
    upload: &mut Upload<'_>,
    bodiless: bool,
    progress: &Progress,
) -> Result<(), Ended> {
    if bodiless {
        progress.sent_all.set(true);
        return Ok(());
    }
    while let Some(data) = piece(&mut stream, upload).await? {
        if !give(&mut stream, data, progress).await {
            return Ok(());
        }
    }
    let ended = match upload.trailers().await {
        Some(trailers) => stream.send_trailers(trailers),
        None => stream.send_data(Bytes::new(), true),
    };
    progress.sent_all.set(ended.is_ok());
    Ok(())
}

/// The next piece; a visitor that is gone takes the request back.
async fn piece(
    stream: &mut SendStream<Bytes>,
    upload: &mut Upload<'_>,
) -> Result<Option<Bytes>, Ended> {
    match upload.next().await {
        Ok(data) => Ok(data.map(Bytes::copy_from_slice)),
        Err(ended) => {
            stream.send_reset(Reason::CANCEL);
            Err(ended)
        }
    }
}

/// False when the app takes no more.
async fn give(stream: &mut SendStream<Bytes>, mut data: Bytes, progress: &Progress) -> bool {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let capacity = poll_fn(|context| match stream.capacity() {
            0 => stream.poll_capacity(context),
            some => Poll::Ready(Some(Ok(some))),
        });
        let Some(Ok(capacity)) = capacity.await else {
            return false;
        };
        let some = data.split_to(capacity.min(data.len()));
        if stream.send_data(some, false).is_err() {
            return false;
        }
        progress.at.set(Instant::now());
    }
    true
}

struct Answering<'a, 'b> {
    download: &'a mut Download<'b>,
    status: &'a mut u16,
    to_head: bool,
    extras: &'a crate::pipeline::Extras,
    progress: &'a Progress,
}

impl Answering<'_, '_> {
    async fn run(
        mut self,
        response: h2::client::ResponseFuture,
        patience: Duration,
    ) -> Result<(), Broken> {
        let response = self.head_within(response, patience).await?;
        let (parts, mut body) = response.into_parts();
        let mut fields = fields(&parts.headers);
        let said = fields
            .text(Name::ContentLength)
            .and_then(|text| text.parse().ok());
        let length = match said {
            _ if self.to_head || matches!(parts.status.as_u16(), 204 | 304) => Length::None,
            Some(length) => Length::Known(length),
            None if body.is_end_stream() => Length::Known(0),
            None => Length::Unknown,
        };
        *self.status = parts.status.as_u16();
        self.extras.add_to(&mut fields);
        self.download.head(*self.status, &mut fields, length);
        self.body(&mut body).await?;
        let trailers = poll_fn(|context| body.poll_trailers(context)).await;
        let trailers = trailers.map_err(|_| self.cut())?;
        let trailers = trailers.as_ref().map(self::fields).unwrap_or_default();
        Ok(self.download.end(&trailers).await?)
    }

    /// As long as the app is not silent for too long with the whole request in hand.
    async fn head_within(
        &mut self,
        response: h2::client::ResponseFuture,
        patience: Duration,
    ) -> Result<http::Response<RecvStream>, Broken> {
        let mut response = pin!(response);
        loop {
            let left = patience.saturating_sub(self.progress.at.get().elapsed());
            let may_leave = self.progress.sent_all.get();
            tokio::select! {
                biased;
                answered = &mut response => return answered.map_err(|error| unanswered(&error)),
                () = self.download.gone(), if may_leave => return Err(Ended::Gone.into()),
                () = tokio::time::sleep(left) => {
                    let active = self.progress.at.get().elapsed() < patience;
                    if !active && self.progress.sent_all.get() {
                        return Err(Broken::TooSlow);
                    }
                    if !active {
                        // The visitor's time, not the app's.
                        self.progress.at.set(Instant::now());
                    }
                }
            }
        }
    }

    /// The app ended in the middle of its answer: the visitor must see that.
    fn cut(&self) -> Ended {
        self.extras.cut.set(true);
        Ended::Gone
    }

    async fn body(&mut self, body: &mut RecvStream) -> Result<(), Broken> {
        loop {
            let at_once = poll_fn(|context| Poll::Ready(body.poll_data(context))).await;
            let data = match at_once {
                Poll::Ready(data) => data,
                Poll::Pending => {
                    self.download.flush().await?;
                    let data = poll_fn(|context| body.poll_data(context));
                    tokio::select! {
                        biased;
                        data = tokio::time::timeout(SILENT, data) => data.map_err(|_| Ended::Gone)?,
                        () = self.download.gone() => return Err(Ended::Gone.into()),
                    }
                }
            };
            let Some(data) = data else { return Ok(()) };
            let data = data.map_err(|_| self.cut())?;
            self.download.data(&data).await?;
            // What was handed on makes room for more.
            let _ = body.flow_control().release_capacity(data.len());
        }
    }
}

/// Refused unprocessed (RFC 9113 §8.7), or gone with it.
fn unanswered(error: &h2::Error) -> Broken {
    let refused = error.reason() == Some(Reason::REFUSED_STREAM);
    // Above the last stream that it says it will answer (§6.8).
    let left = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    if refused || left {
        return Broken::Unsent;
    }
    Broken::Unanswered
}

/// Without what HTTP/2 does not have and an app may say nevertheless.
fn fields(map: &HeaderMap) -> Fields {
    let mut fields = Fields::default();
    for (name, value) in map {
        fields.push(name.as_str().as_bytes(), value.as_bytes());
    }
    for name in [
        Name::Connection,
        Name::KeepAlive,
        Name::TransferEncoding,
        Name::Upgrade,
    ] {
        fields.remove(name);
    }
    fields
}
