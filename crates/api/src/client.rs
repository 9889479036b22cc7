//! The HTTP client of the command line: over a unix socket or TCP loopback one connection per request; over a way to
//! another machine ([`Dial`]), which is dear to open, one request after the other on the same connection.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::header::{self, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::{Problem, websocket};

/// Where the API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    /// `unix:PATH` or `IP:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("unix: needs a path".into());
            }
            return Ok(Address::Unix(path.into()));
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("`{text}` is neither unix:PATH nor an address such as 127.0.0.1:9000")
        })?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "{address} is not a loopback address; the API is not encrypted, so it stays on this machine (for another: hutong login ssh://HOST)"
            ));
        }
        Ok(Address::Tcp(address))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// Bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What [`Dial::dial`] gives.
pub type Dialling<'a> =
    Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, DialError>> + Send + 'a>>;

/// A way to a server on another machine.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Opens a connection on which the API speaks HTTP/1.1.
    fn dial(&self) -> Dialling<'_>;

    /// The `Host` of requests (RFC 9110 §7.2).
    fn host(&self) -> String;
}

/// Why there is no connection, for a person, and what to do about it.
#[derive(Debug, Error)]
#[error("{cause}")]
pub struct DialError {
    pub cause: String,
    pub hint: Option<String>,
}

impl DialError {
    pub fn new(cause: impl Into<String>) -> Self {
        DialError {
            cause: cause.into(),
            hint: None,
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[derive(Debug, Error)]
pub enum ClientError {
    #[error("no server answers at {address}")]
    Unreachable {
        address: Address,
        #[source]
        source: std::io::Error,
    },
    /// The way to another machine does not lead to a server.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The server's own words.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    #[error("the connection to the server broke")]
    Broken(#[source] hyper::Error),
    #[error("the server's answer is not understood: {0}")]
    Nonsense(String),
}

pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A server's API.
#[derive(Clone, Debug)]
pub struct Client {
    way: Way,
    token: Option<String>,
    /// A connection to another machine that waits for its next request.
    idle: Arc<Mutex<Option<Sender>>>,
}

#[derive(Clone, Debug)]
enum Way {
    Near(Address),
    Far(Arc<dyn Dial>),
}

type Sender = http1::SendRequest<Body>;

/// How often, and how fast, a question is asked again whose connection broke.
const RETRIES: usize = 25;
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// The same of another machine: each time a connection is made anew, which is dear, and may be noticed there.
const FAR_RETRIES: usize = 4;
const FAR_PAUSE: Duration = Duration::from_secs(3);
/// How long a connection may take to be ready once more before another one is opened.
const IDLE_PATIENCE: Duration = Duration::from_secs(1);

impl Client {
    pub fn new(address: Address, token: Option<String>) -> Self {
        Self::by(Way::Near(address), token)
    }

    /// A server on another machine.
    pub fn far(dial: Arc<dyn Dial>, token: Option<String>) -> Self {
        Self::by(Way::Far(dial), token)
    }

    fn by(way: Way, token: Option<String>) -> Self {
        Client {
            way,
            token,
            idle: Arc::default(),
        }
    }

    /// Whether it is on another machine.
    pub fn is_far(&self) -> bool {
        matches!(self.way, Way::Far(_))
    }

    /// How long to wait before something is asked again whose connection broke.
    pub fn pause(&self) -> Duration {
        match self.way {
            Way::Near(_) => RETRY_PAUSE,
            Way::Far(_) => FAR_PAUSE,
        }
    }

    /// Asks again when the connection broke: the control plane may be restarted at any time.
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        let most = if self.is_far() { FAR_RETRIES } else { RETRIES };
        let mut broke = 0;
        loop {
            match self.json(Method::GET, path, None::<&()>).await {
                Err(ClientError::Broken(_)) if broke < most => {}
                Err(ClientError::Unreachable { .. } | ClientError::Dial(_))
                    if (1..most).contains(&broke) => {}
                other => return other,
            }
            broke += 1;
            tokio::time::sleep(self.pause()).await;
        }
    }

    pub async fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> Result<A, ClientError> {
        self.json(Method::POST, path, Some(body)).await
    }

    pub async fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.json(Method::DELETE, path, None::<&()>).await
    }

    /// Whether there is something at `path`.
    pub async fn exists(&self, path: &str) -> Result<bool, ClientError> {
        match self.send(self.request(Method::HEAD, path, empty())?).await {
            Ok((response, sender)) => self.finish(response, sender).await.map(|_| true),
            Err(ClientError::Refused(problem)) if problem.status == 404 => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn json<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Q>,
    ) -> Result<A, ClientError> {
        let content = match body {
            Some(body) => serde_json::to_vec(body).map_err(nonsense)?,
            None => Vec::new(),
        };
        let mut request = self.request(method, path, whole(content))?;
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        let (response, sender) = self.send(request).await?;
        let text = self.finish(response, sender).await?;
        let text: &[u8] = if text.is_empty() { b"null" } else { &text };
        serde_json::from_slice(text).map_err(nonsense)
    }

    /// Uploads a stream.
    pub async fn put_stream<S>(&self, path: &str, stream: S) -> Result<(), ClientError>
    where
        S: futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        use futures_util::StreamExt;
        let frames = stream.map(|chunk| chunk.map(Frame::data));
        let body = BodyExt::boxed_unsync(StreamBody::new(frames));
        let (response, sender) = self.send(self.request(Method::PUT, path, body)?).await?;
        self.finish(response, sender).await.map(drop)
    }

    /// Uploads a stream, and reads the answer.
    pub async fn put_stream_for<S, A>(&self, path: &str, stream: S) -> Result<A, ClientError>
    where
        S: futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
        A: DeserializeOwned,
    {
        use futures_util::StreamExt;
        let frames = stream.map(|chunk| chunk.map(Frame::data));
        let body = BodyExt::boxed_unsync(StreamBody::new(frames));
        let (response, sender) = self.send(self.request(Method::PUT, path, body)?).await?;
        let text = self.finish(response, sender).await?;
        serde_json::from_slice(&text).map_err(nonsense)
    }

    /// An answer that streams.
    pub async fn stream(&self, path: &str) -> Result<Incoming, ClientError> {
        let (response, _) = self.send(self.request(Method::GET, path, empty())?).await?;
        Ok(response.into_body())
    }

    /// Leaves HTTP for a WebSocket: after that the connection is the caller's.
    pub async fn websocket(
        &self,
        path: &str,
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>, ClientError> {
        let key = websocket::new_key().map_err(nonsense)?;
        let mut request = self.request(Method::GET, path, empty())?;
        let headers = request.headers_mut();
        let fixed = HeaderValue::from_static;
        headers.insert(header::CONNECTION, fixed("upgrade"));
        headers.insert(header::UPGRADE, fixed("websocket"));
        headers.insert(header::SEC_WEBSOCKET_VERSION, fixed(websocket::VERSION));
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, fixed(websocket::PROTOCOL));
        let value = HeaderValue::from_str(&key).map_err(nonsense)?;
        headers.insert(header::SEC_WEBSOCKET_KEY, value);
        let (response, _) = self.send(request).await?;
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        let is_right = accepted.is_some_and(|value| *value == websocket::accept(&key));
        if response.status() != StatusCode::SWITCHING_PROTOCOLS || !is_right {
            return Err(ClientError::Nonsense("it did not switch protocols".into()));
        }
        let upgraded = hyper::upgrade::on(response).await;
        upgraded.map(TokioIo::new).map_err(ClientError::Broken)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Request<Body>, ClientError> {
        let host = match &self.way {
            Way::Near(Address::Unix(_)) => "localhost".to_owned(),
            Way::Near(Address::Tcp(address)) => address.to_string(),
            Way::Far(dial) => dial.host(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, host);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(body).map_err(nonsense)
    }

    /// An answer that is no refusal, and the connection that it came over.
    async fn send(
        &self,
        mut request: Request<Body>,
    ) -> Result<(Response<Incoming>, Sender), ClientError> {
        if let Some(mut sender) = self.take_idle().await {
            match sender.try_send_request(request).await {
                Ok(response) => return self.accepted(response, sender).await,
                // It never left this machine: another connection may take it.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(ClientError::Broken(error.into_error())),
                },
            }
        }
        let mut sender = self.connect().await?;
        let response = sender
            .send_request(request)
            .await
            .map_err(ClientError::Broken)?;
        self.accepted(response, sender).await
    }

    async fn accepted(
        &self,
        response: Response<Incoming>,
        sender: Sender,
    ) -> Result<(Response<Incoming>, Sender), ClientError> {
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok((response, sender));
        }
        let text = self.finish(response, sender).await?;
        let problem = serde_json::from_slice(&text).unwrap_or_else(|_| Problem {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or_default().into(),
            status: status.as_u16(),
            detail: match text.is_empty() {
                true => format!("the server answers with {status}"),
                false => String::from_utf8_lossy(&text).into_owned(),
            },
            hint: None,
        });
        Err(ClientError::Refused(Box::new(problem)))
    }

    /// Reads an answer to its end; then its connection may serve again.
    async fn finish(
        &self,
        response: Response<Incoming>,
        sender: Sender,
    ) -> Result<Bytes, ClientError> {
        let text = response.into_body().collect().await;
        let text = text.map_err(ClientError::Broken)?.to_bytes();
        if self.is_far() {
            *self.waiting() = Some(sender);
        }
        Ok(text)
    }

    async fn take_idle(&self) -> Option<Sender> {
        let mut sender = self.waiting().take()?;
        let ready = tokio::time::timeout(IDLE_PATIENCE, sender.ready()).await;
        matches!(ready, Ok(Ok(()))).then_some(sender)
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<Sender, ClientError> {
        let address = match &self.way {
            Way::Near(address) => address,
            Way::Far(dial) => return handshake(dial.dial().await?).await,
        };
        let unreachable = |source| ClientError::Unreachable {
            address: address.clone(),
            source,
        };
        match address {
            Address::Unix(path) => {
                handshake(UnixStream::connect(path).await.map_err(unreachable)?).await
            }
            Address::Tcp(address) => {
                handshake(TcpStream::connect(address).await.map_err(unreachable)?).await
            }
        }
    }
}

async fn handshake<S>(stream: S) -> Result<Sender, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(ClientError::Broken)?;
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

fn nonsense(error: impl fmt::Display) -> ClientError {
    ClientError::Nonsense(error.to_string())
}

fn whole(content: Vec<u8>) -> Body {
    BodyExt::boxed_unsync(Full::new(Bytes::from(content)).map_err(|never| match never {}))
}

fn empty() -> Body {
    whole(Vec::new())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A way that is `broken` so many times, then closed so many times, then leads to a server.
    #[derive(Debug)]
    struct Bad {
        broken: usize,
        closed: usize,
        dials: AtomicUsize,
    }

    impl Dial for Bad {
        fn dial(&self) -> Dialling<'_> {
            let before = self.dials.fetch_add(1, Ordering::Relaxed);
            let is_broken = before < self.broken;
            let is_closed = !is_broken && before < self.broken + self.closed;
            Box::pin(async move {
                if is_closed {
                    return Err(DialError::new("closed"));
                }
                let (ours, mut theirs) = tokio::io::duplex(4096);
                if !is_broken {
                    tokio::spawn(async move {
                        let mut request = [0; 4096];
                        let _ = theirs.read(&mut request).await;
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n7";
                        let _ = theirs.write_all(answer).await;
                        // Open until the other side is gone.
                        let _ = theirs.read(&mut request).await;
                    });
                }
                let stream: Box<dyn Stream> = Box::new(ours);
                Ok(stream)
            })
        }

        fn host(&self) -> String {
            "far".into()
        }
    }

    async fn asked(broken: usize, closed: usize) -> (Result<u32, ClientError>, usize) {
        let dials = AtomicUsize::new(0);
        let way = Arc::new(Bad {
            broken,
            closed,
            dials,
        });
        let answer = Client::far(way.clone(), None).get("/v1/x").await;
        (answer, way.dials.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn a_way_that_was_open_is_tried_again_a_few_times() {
        let begun = tokio::time::Instant::now();
        assert!(matches!(asked(1, 1).await, (Ok(7), 3)));
        assert!(begun.elapsed() >= 2 * FAR_PAUSE);
        // One that was never open is not.
        assert!(matches!(asked(0, 9).await, (Err(ClientError::Dial(_)), 1)));
        let (answer, dials) = asked(1, 99).await;
        assert!(matches!(answer, Err(ClientError::Dial(_))));
        assert!((2..10).contains(&dials), "{dials}");
    }

    #[test]
    fn addresses() {
        assert_eq!("unix:/a".parse(), Ok(Address::Unix("/a".into())));
        assert!("127.0.0.1:1".parse::<Address>().is_ok());
        for bad in ["", "unix:", "0.0.0.0:1", "host:1", "/a"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
