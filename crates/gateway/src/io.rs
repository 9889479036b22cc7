//! A visitor's connection, plain or TLS. One task reads and writes it, if need be at once: every borrow
//! ends within one poll.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::io::poll_read_buf;

/// A peer that takes no byte for so long is gone.
pub const STALLED: Duration = Duration::from_secs(60);

pub enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

pub struct Io(RefCell<Stream>);

impl Io {
    pub fn new(stream: Stream) -> Self {
        Io(RefCell::new(stream))
    }

    /// Appends what comes to `buffer`, as much as it has room for; 0 at the end.
    pub async fn read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        poll_fn(|context| self.poll_read(context, buffer)).await
    }

    fn poll_read(
        &self,
        context: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        match &mut *self.0.borrow_mut() {
            Stream::Tcp(stream) => poll_read_buf(Pin::new(stream), context, buffer),
            Stream::Tls(stream) => poll_read_buf(Pin::new(&mut **stream), context, buffer),
        }
    }

    /// Waits until there is something to read, without a block to read it to; false at the end.
    pub async fn has_more(&self) -> io::Result<bool> {
        poll_fn(|context| match &mut *self.0.borrow_mut() {
            Stream::Tcp(stream) => {
                let mut byte = [0];
                let count = ready!(stream.poll_peek(context, &mut ReadBuf::new(&mut byte)))?;
                Poll::Ready(Ok(count > 0))
            }
            Stream::Tls(stream) => {
                let found = ready!(Pin::new(&mut **stream).poll_fill_buf(context))?;
                Poll::Ready(Ok(!found.is_empty()))
            }
        })
        .await
    }

    /// Waits until there is something to read, or the end.
    pub async fn wait_readable(&self) -> io::Result<()> {
        poll_fn(|context| match &mut *self.0.borrow_mut() {
            Stream::Tcp(stream) => stream.poll_read_ready(context),
            Stream::Tls(stream) => {
                ready!(Pin::new(&mut **stream).poll_fill_buf(context))?;
                Poll::Ready(Ok(()))
            }
        })
        .await
    }

    /// Completes when the visitor has left. One who says more before the answer is there waits for it.
    pub async fn gone(&self) {
        if let Ok(true) = self.has_more().await {
            std::future::pending().await
        }
    }

    pub async fn write_all(&self, data: &[u8]) -> io::Result<()> {
        self.write_both(data, &[]).await
    }

    /// One after the other, in as few calls as can be.
    pub async fn write_both(&self, mut first: &[u8], mut second: &[u8]) -> io::Result<()> {
        while !first.is_empty() || !second.is_empty() {
            let write = poll_fn(|context| {
                let slices = [io::IoSlice::new(first), io::IoSlice::new(second)];
                match &mut *self.0.borrow_mut() {
                    Stream::Tcp(stream) if second.is_empty() => {
                        Pin::new(stream).poll_write(context, first)
                    }
                    Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, &slices),
                    Stream::Tls(stream) => {
                        Pin::new(&mut **stream).poll_write_vectored(context, &slices)
                    }
                }
            });
            let count = patiently(write).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let from_first = count.min(first.len());
            first = &first[from_first..];
            second = &second[(count - from_first).min(second.len())..];
        }
        if self.is_tls() {
            let flush = poll_fn(|context| match &mut *self.0.borrow_mut() {
                Stream::Tcp(_) => Poll::Ready(Ok(())),
                Stream::Tls(stream) => Pin::new(&mut **stream).poll_flush(context),
            });
            patiently(flush).await?;
        }
        Ok(())
    }

    pub fn is_tls(&self) -> bool {
        matches!(&*self.0.borrow(), Stream::Tls(_))
    }

    /// Says that nothing follows.
    pub async fn end(&self) {
        let end = poll_fn(|context| match &mut *self.0.borrow_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(context),
        });
        let _ = tokio::time::timeout(Duration::from_secs(2), end).await;
    }
}

async fn patiently<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(STALLED, work).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
