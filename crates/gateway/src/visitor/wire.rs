//! Below an HTTP/2 connection: what all its streams say within one turn of the event loop goes out
//! together. The h2 library flushes behind each larger frame, which would be a TLS record and a call each.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::buffers;

/// What is kept back at most.
const MAX_KEPT: usize = 64 << 10;

/// A TLS connection that h2 and its driver share. Both are the same task.
#[derive(Clone)]
pub struct Wire(Rc<RefCell<Inner>>);

struct Inner {
    stream: TlsStream<TcpStream>,
    kept: Vec<u8>,
    sent: usize,
    /// TLS still has some of it.
    unflushed: bool,
}

impl Wire {
    pub fn new(stream: TlsStream<TcpStream>) -> Self {
        Wire(Rc::new(RefCell::new(Inner {
            stream,
            kept: Vec::new(),
            sent: 0,
            unflushed: false,
        })))
    }

    /// Polls what speaks over this connection, then sends what it said.
    pub fn after<T>(
        &self,
        context: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let result = poll(context);
        // What goes wrong here is found at the next read or write.
        let _ = self.0.borrow_mut().poll_send(context);
        result
    }

    /// Says that nothing follows.
    pub async fn end(&self) {
        let end = std::future::poll_fn(|context| {
            let mut inner = self.0.borrow_mut();
            ready!(inner.poll_send(context))?;
            Pin::new(&mut inner.stream).poll_shutdown(context)
        });
        let _ = tokio::time::timeout(Duration::from_secs(2), end).await;
    }
}

impl Inner {
    /// Sends all that is kept.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.kept.len() {
            let rest = &self.kept[self.sent..];
            let count = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count;
            self.unflushed = true;
        }
        if self.sent > 0 {
            self.sent = 0;
            buffers::give(std::mem::take(&mut self.kept));
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        if inner.kept.len() - inner.sent >= MAX_KEPT {
            ready!(inner.poll_send(context))?;
        }
        if inner.kept.capacity() == 0 {
            inner.kept = buffers::take(buffers::SIZE);
        }
        inner.kept.extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    /// [`Wire::after`] does it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_send(context))?;
        Pin::new(&mut inner.stream).poll_shutdown(context)
    }
}
