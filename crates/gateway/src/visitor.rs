//! A visitor's side of one request, whatever it came over: [`Upload`] is what is still to come from the
//! visitor, [`Download`] what goes back.

pub mod http1;
pub mod http2;
mod wire;

use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;
use hutong_http::Reject;
use hutong_http::fields::{Fields, Name};

use crate::compress::{self, Encoder};
use crate::files::FileStream;

/// What is asked for at once of an HTTP/2 stream's window.
const WINDOW: usize = 128 << 10;
/// What is compressed in one go.
const PIECE: usize = 64 << 10;

/// Who is on the other end of a connection.
pub struct Peer {
    pub ip: IpAddr,
    /// The address as text, IPv4 in its own form.
    pub text: String,
    pub port: u16,
    pub tls: bool,
    /// What a trusted proxy before us says.
    pub proxied: Option<Proxied>,
    /// It is another app of this server, and came by a link.
    pub link: Option<Link>,
}

/// How an app calls another one.
#[derive(Clone)]
pub struct Link {
    pub caller: String,
    /// What the caller calls the other app.
    pub name: String,
}

/// A visitor who came through a proxy that the server's owner trusts.
#[derive(Clone)]
pub struct Proxied {
    /// `X-Forwarded-For` with the proxy's own address at its end.
    pub chain: String,
    /// Its own connection to the visitor is over TLS.
    pub secure: bool,
}

impl Peer {
    /// One who came over plain TCP.
    #[cfg(test)]
    pub fn plain(ip: &str) -> Self {
        Peer {
            ip: ip.parse().expect("an address"),
            text: ip.to_owned(),
            port: 1,
            tls: false,
            proxied: None,
            link: None,
        }
    }

    pub fn forwarded_for(&self) -> &str {
        self.proxied.as_ref().map_or(&self.text, |one| &one.chain)
    }

    /// Whether the visitor's own connection is over TLS, to whoever took it.
    pub fn is_secure(&self) -> bool {
        self.tls || self.proxied.as_ref().is_some_and(|one| one.secure)
    }

    pub fn scheme(&self) -> &'static str {
        if self.is_secure() { "https" } else { "http" }
    }
}

/// Why nothing more comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The visitor left, or does not take or send anything for too long.
    Gone,
    /// What it says makes no sense.
    Rejected(Reject),
}

impl From<std::io::Error> for Ended {
    fn from(_: std::io::Error) -> Self {
        Ended::Gone
    }
}

/// How long an answer's body is going to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// None at all: a Content-Length among the fields is left as it is (HEAD, 304).
    None,
    Known(u64),
    Unknown,
}

/// A whole answer of our own.
pub struct Answer {
    pub status: u16,
    pub fields: Fields,
    pub body: Body,
}

pub enum Body {
    Bytes(Bytes),
    File(FileStream),
}

impl Answer {
    pub fn new(status: u16) -> Self {
        Answer {
            status,
            fields: Fields::default(),
            body: Body::Bytes(Bytes::new()),
        }
    }

    pub fn with(mut self, name: Name, value: &str) -> Self {
        self.fields.add(name, value.as_bytes());
        self
    }
}

/// What a visitor still sends.
pub struct Upload<'a> {
    way: UploadWay<'a>,
    /// How much more of it is taken.
    room: u64,
}

pub enum UploadWay<'a> {
    Http1(http1::Upload<'a>),
    Http2(http2::Upload),
}

impl<'a> Upload<'a> {
    pub fn new(way: UploadWay<'a>) -> Self {
        Upload {
            way,
            room: u64::MAX,
        }
    }

    pub fn into_way(self) -> UploadWay<'a> {
        self.way
    }

    /// Takes no more than so many bytes.
    pub fn bound(&mut self, bytes: u64) {
        self.room = bytes;
    }

    /// No body, or nothing left of it.
    pub fn is_over(&self) -> bool {
        match &self.way {
            UploadWay::Http1(upload) => upload.is_over(),
            UploadWay::Http2(upload) => upload.is_over(),
        }
    }

    /// Whether any of it was taken already: then it cannot be sent to anybody else.
    pub fn is_begun(&self) -> bool {
        match &self.way {
            UploadWay::Http1(upload) => upload.is_begun(),
            UploadWay::Http2(upload) => upload.is_begun(),
        }
    }

    /// The next piece; `None` at its end.
    pub async fn next(&mut self) -> Result<Option<&[u8]>, Ended> {
        let data = match &mut self.way {
            UploadWay::Http1(upload) => upload.next().await?,
            UploadWay::Http2(upload) => upload.next().await?,
        };
        let Some(data) = data else { return Ok(None) };
        match self.room.checked_sub(data.len() as u64) {
            Some(room) => self.room = room,
            None => return Err(Ended::Rejected(TOO_LARGE)),
        }
        Ok(Some(data))
    }

    /// What came behind the body; HTTP/1 visitors' are dropped (RFC 9110 §6.5.1).
    pub async fn trailers(&mut self) -> Option<http::HeaderMap> {
        match &mut self.way {
            UploadWay::Http1(_) => None,
            UploadWay::Http2(upload) => upload.trailers().await,
        }
    }

    /// What follows the request's head is no body but the visitor's half of a conversation.
    pub fn become_tunnel(&mut self) {
        self.room = u64::MAX;
        self.may_be_silent();
        if let UploadWay::Http1(upload) = &mut self.way {
            upload.become_tunnel();
        }
    }

    /// It may come as slowly as it likes, as gRPC's streams do.
    pub fn may_be_silent(&mut self) {
        if let UploadWay::Http2(upload) = &mut self.way {
            upload.may_be_silent();
        }
    }
}

/// A body over the bound.
pub const TOO_LARGE: Reject = Reject {
    status: 413,
    why: "the request's body is too large",
};

/// The way back to a visitor. Small pieces wait for [`Download::flush`] or [`Download::end`].
pub struct Download<'a> {
    way: DownloadWay<'a>,
    /// The request's fields, if its answer may be compressed.
    pub compress_for: Option<&'a Fields>,
    /// Nothing of the request is in the answer.
    pub is_public: bool,
    /// One that is compressed as it goes.
    coder: Option<Box<Coder>>,
}

pub enum DownloadWay<'a> {
    Http1(http1::Download<'a>),
    Http2(http2::Download),
}

struct Coder {
    encoder: Encoder,
    out: Vec<u8>,
}

impl<'a> Download<'a> {
    pub fn new(way: DownloadWay<'a>) -> Self {
        Download {
            way,
            compress_for: None,
            is_public: false,
            coder: None,
        }
    }

    pub fn into_way(self) -> DownloadWay<'a> {
        self.way
    }

    /// An app is about to take the request's body. HTTP/1 says so when the body is read.
    pub fn go_on(&mut self) {
        if let DownloadWay::Http2(download) = &mut self.way {
            download.go_on();
        }
    }

    /// An interim answer such as 103 (RFC 9110 §15.2).
    pub async fn interim(&mut self, status: u16, fields: &Fields) -> Result<(), Ended> {
        match &mut self.way {
            DownloadWay::Http1(download) => download.interim(status, fields).await,
            DownloadWay::Http2(download) => {
                download.interim(status, fields);
                Ok(())
            }
        }
    }

    pub fn head(&mut self, status: u16, fields: &mut Fields, mut length: Length) {
        if let Some(request) = self.compress_for
            && let Some(encoder) = compress::begin(request, status, fields, length, self.is_public)
            && length != Length::None
        {
            length = Length::Unknown;
            let out = Vec::new();
            self.coder = Some(Box::new(Coder { encoder, out }));
        }
        match &mut self.way {
            DownloadWay::Http1(download) => download.head(status, fields, length),
            DownloadWay::Http2(download) => download.head(status, fields, length),
        }
    }

    pub fn has_begun(&self) -> bool {
        match &self.way {
            DownloadWay::Http1(download) => download.has_begun(),
            DownloadWay::Http2(download) => download.has_begun(),
        }
    }

    pub async fn data(&mut self, data: &[u8]) -> Result<(), Ended> {
        let Some(coder) = &mut self.coder else {
            return self.way.data(data).await;
        };
        // What a large piece becomes is not held at once.
        for piece in data.chunks(PIECE) {
            coder.encoder.write(piece, &mut coder.out)?;
            if coder.out.len() >= PIECE {
                self.way.data(&coder.out).await?;
                coder.out.clear();
            }
        }
        Ok(())
    }

    /// Everything so far is on its way when this completes.
    pub async fn flush(&mut self) -> Result<(), Ended> {
        if let Some(coder) = &mut self.coder {
            coder.encoder.flush(&mut coder.out)?;
            self.way.data(&coder.out).await?;
            coder.out.clear();
        }
        self.way.flush().await
    }

    pub async fn end(&mut self, trailers: &Fields) -> Result<(), Ended> {
        if let Some(coder) = self.coder.take() {
            let Coder { encoder, mut out } = *coder;
            encoder.finish(&mut out)?;
            self.way.data(&out).await?;
            // They may speak of the body as it was (Content-Digest).
            return self.way.end(&Fields::default()).await;
        }
        self.way.end(trailers).await
    }

    /// The answer cannot be ended as it was begun: the visitor is to notice.
    pub fn abort(&mut self) {
        match &mut self.way {
            DownloadWay::Http1(download) => download.abort(),
            DownloadWay::Http2(download) => download.abort(),
        }
    }

    /// No further request over this connection.
    pub fn close(&mut self) {
        if let DownloadWay::Http1(download) = &mut self.way {
            download.close();
        }
    }

    /// Completes when the visitor has left.
    pub async fn gone(&mut self) {
        match &mut self.way {
            DownloadWay::Http1(download) => download.gone().await,
            DownloadWay::Http2(download) => download.gone().await,
        }
    }

    /// Bytes of the body so far, as they went out.
    pub fn sent(&self) -> u64 {
        match &self.way {
            DownloadWay::Http1(download) => download.sent(),
            DownloadWay::Http2(download) => download.sent(),
        }
    }

    /// A whole answer; `bodiless` where the request was HEAD.
    pub async fn answer(&mut self, answer: Answer, bodiless: bool) -> Result<(), Ended> {
        let Answer {
            status,
            mut fields,
            body,
        } = answer;
        let length = match &body {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File(file) => file.left(),
        };
        if bodiless || matches!(status, 204 | 304) {
            if status != 204 && status != 304 {
                fields.set(Name::ContentLength, length.to_string().as_bytes());
            }
            self.head(status, &mut fields, Length::None);
            return self.end(&Fields::default()).await;
        }
        self.head(status, &mut fields, Length::Known(length));
        match body {
            Body::Bytes(bytes) => self.data(&bytes).await?,
            Body::File(mut file) => {
                while file.left() > 0 {
                    // Nothing is read for a visitor who does not take it.
                    let room = self.way.room().await?;
                    let Some(Ok(chunk)) = file.next(room).await else {
                        self.abort();
                        return Err(Ended::Gone);
                    };
                    self.data(&chunk).await?;
                }
            }
        }
        self.end(&Fields::default()).await
    }
}

impl DownloadWay<'_> {
    async fn data(&mut self, data: &[u8]) -> Result<(), Ended> {
        match self {
            DownloadWay::Http1(download) => download.data(data).await,
            DownloadWay::Http2(download) => download.data(data).await,
        }
    }

    async fn end(&mut self, trailers: &Fields) -> Result<(), Ended> {
        match self {
            DownloadWay::Http1(download) => download.end(trailers).await,
            DownloadWay::Http2(download) => download.end(trailers),
        }
    }

    /// Waits until some of a body can go out; how much.
    async fn room(&mut self) -> Result<usize, Ended> {
        match self {
            DownloadWay::Http1(_) => Ok(usize::MAX),
            DownloadWay::Http2(download) => download.room(WINDOW).await,
        }
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        match self {
            DownloadWay::Http1(download) => download.flush().await,
            DownloadWay::Http2(download) => download.flush(),
        }
    }
}

/// Bounds on how slowly a visitor may send a body.
pub struct Pace {
    began: Instant,
    bytes: u64,
}

impl Pace {
    pub fn new() -> Self {
        Pace {
            began: Instant::now(),
            bytes: 0,
        }
    }

    /// Counts what came; false for one that trickles.
    pub fn keeps_up(&mut self, bytes: usize) -> bool {
        const FREE_S: u64 = 30;
        const BYTES_PER_S: u64 = 128;
        self.bytes += bytes as u64;
        let seconds = self.began.elapsed().as_secs();
        seconds < FREE_S || self.bytes / seconds >= BYTES_PER_S
    }
}
