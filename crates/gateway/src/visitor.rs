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

use crate::files::FileStream;

/// Who is on the other end of a connection.
pub struct Peer {
    pub ip: IpAddr,
    /// The address as text, IPv4 in its own form.
    pub text: String,
    pub port: u16,
    pub tls: bool,
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
pub enum Upload<'a> {
    Http1(http1::Upload<'a>),
    Http2(http2::Upload),
}

impl Upload<'_> {
    /// No body, or nothing left of it.
    pub fn is_over(&self) -> bool {
        match self {
            Upload::Http1(upload) => upload.is_over(),
            Upload::Http2(upload) => upload.is_over(),
        }
    }

    /// Whether any of it was taken already: then it cannot be sent to anybody else.
    pub fn is_begun(&self) -> bool {
        match self {
            Upload::Http1(upload) => upload.is_begun(),
            Upload::Http2(upload) => upload.is_begun(),
        }
    }

    /// The next piece; `None` at its end.
    pub async fn next(&mut self) -> Result<Option<&[u8]>, Ended> {
        match self {
            Upload::Http1(upload) => upload.next().await,
            Upload::Http2(upload) => upload.next().await,
        }
    }

    /// What follows the request's head is no body but the visitor's half of a conversation.
    pub fn become_tunnel(&mut self) {
        match self {
            Upload::Http1(upload) => upload.become_tunnel(),
            Upload::Http2(_) => {}
        }
    }
}

/// The way back to a visitor. Small pieces wait for [`Download::flush`] or [`Download::end`].
pub enum Download<'a> {
    Http1(http1::Download<'a>),
    Http2(http2::Download),
}

impl Download<'_> {
    /// An interim answer such as 103 (RFC 9110 §15.2).
    pub async fn interim(&mut self, status: u16, fields: &Fields) -> Result<(), Ended> {
        match self {
            Download::Http1(download) => download.interim(status, fields).await,
            Download::Http2(download) => {
                download.interim(status, fields);
                Ok(())
            }
        }
    }

    pub fn head(&mut self, status: u16, fields: &Fields, length: Length) {
        match self {
            Download::Http1(download) => download.head(status, fields, length),
            Download::Http2(download) => download.head(status, fields, length),
        }
    }

    pub fn has_begun(&self) -> bool {
        match self {
            Download::Http1(download) => download.has_begun(),
            Download::Http2(download) => download.has_begun(),
        }
    }

    pub async fn data(&mut self, data: &[u8]) -> Result<(), Ended> {
        match self {
            Download::Http1(download) => download.data(data).await,
            Download::Http2(download) => download.data(data).await,
        }
    }

    pub async fn flush(&mut self) -> Result<(), Ended> {
        match self {
            Download::Http1(download) => download.flush().await,
            Download::Http2(download) => download.flush(),
        }
    }

    pub async fn end(&mut self, trailers: &Fields) -> Result<(), Ended> {
        match self {
            Download::Http1(download) => download.end(trailers).await,
            Download::Http2(download) => download.end(trailers),
        }
    }

    /// The answer cannot be ended as it was begun: the visitor is to notice.
    pub fn abort(&mut self) {
        match self {
            Download::Http1(download) => download.abort(),
            Download::Http2(download) => download.abort(),
        }
    }

    /// No further request over this connection.
    pub fn close(&mut self) {
        if let Download::Http1(download) = self {
            download.close();
        }
    }

    /// Completes when the visitor has left.
    pub async fn gone(&mut self) {
        match self {
            Download::Http1(download) => download.gone().await,
            Download::Http2(download) => download.gone().await,
        }
    }

    /// Bytes of the body so far.
    pub fn sent(&self) -> u64 {
        match self {
            Download::Http1(download) => download.sent(),
            Download::Http2(download) => download.sent(),
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
            self.head(status, &fields, Length::None);
            return self.end(&Fields::default()).await;
        }
        self.head(status, &fields, Length::Known(length));
        match body {
            Body::Bytes(bytes) => self.data(&bytes).await?,
            Body::File(mut file) => {
                while let Some(chunk) = file.next().await {
                    let Ok(chunk) = chunk else {
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
