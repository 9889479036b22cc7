//! A target: an instance as the gateway sees it. Counters are shared by all workers; sockets and idle
//! connections are each worker's own ([`Line`], [`crate::proxy`]).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use hutong_ipc::channel;
use hutong_ipc::gateway::{Health, PUBLIC_SOCKET, Protocol};
use hutong_ipc::shim::{Answer, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::standing::Standing;

/// How many sockets a shim is asked for at once.
const BATCH: u8 = 8;

pub struct Target {
    pub instance: String,
    pub deployment: u64,
    pub port: u16,
    /// A server that Hutong does not run; it has no shim.
    pub address: Option<SocketAddr>,
    /// It is control: what is asked of the platform itself.
    pub control: bool,
    pub protocol: Protocol,
    pub weight: AtomicU32,
    pub health: Health,
    /// How it has done of late.
    pub record: Standing,
    /// Its last probes said so.
    pub healthy: AtomicBool,
    /// Its shim is gone: nothing will ever answer.
    pub gone: AtomicBool,
    /// The table wants it to finish: its last request's end is news.
    pub draining: AtomicBool,
    /// Requests under way, upgraded connections included.
    pub in_flight: AtomicUsize,
    /// It answered on ::1 and not on 127.0.0.1.
    v6: AtomicBool,
}

impl Target {
    pub fn new(wire: &hutong_ipc::gateway::Target) -> Self {
        Target {
            instance: wire.instance.clone(),
            deployment: wire.deployment,
            port: wire.port,
            address: wire.address,
            control: wire.control,
            protocol: wire.protocol.clone(),
            weight: AtomicU32::new(wire.weight.max(1)),
            record: Standing::default(),
            health: wire.health.clone(),
            healthy: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            v6: AtomicBool::new(false),
        }
    }

    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Whether the table means this one; a server that is not ours may change under its name.
    pub fn is(&self, wire: &hutong_ipc::gateway::Target) -> bool {
        (self.port, self.address, self.control) == (wire.port, wire.address, wire.control)
            && self.protocol == wire.protocol
            && self.health == wire.health
    }

    /// Whether it answered on ::1 and not on 127.0.0.1 (Node likes to).
    pub fn prefers_v6(&self) -> bool {
        self.v6.load(Ordering::Relaxed)
    }

    /// Connects a socket of its network to its port.
    pub async fn connect(&self, socket: OwnedFd, v6: bool) -> io::Result<TcpStream> {
        let address = if v6 {
            SocketAddr::from((Ipv6Addr::LOCALHOST, self.port))
        } else {
            SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
        };
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        socket.set_nodelay(true)?;
        let stream = socket.connect(address).await?;
        self.v6.store(v6, Ordering::Relaxed);
        Ok(stream)
    }

    pub fn can_serve(&self) -> bool {
        self.healthy.load(Ordering::SeqCst) && !self.gone.load(Ordering::SeqCst)
    }
}

/// A connection to control's public socket. To the rest of us a stream is a stream: only options of TCP's own tell a unix
/// socket from another, and of those none is set on it.
pub async fn connect_to_control(run_dir: &Path) -> io::Result<TcpStream> {
    let path = run_dir.join("gateway").join(PUBLIC_SOCKET);
    let stream = UnixStream::connect(path).await?.into_std()?;
    TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(stream)))
}

/// One worker's line to a target's shim, and the unconnected sockets that came over it.
pub struct Line {
    stream: UnixStream,
    v4: Vec<OwnedFd>,
    v6: Vec<OwnedFd>,
}

impl Line {
    pub async fn open(run_dir: &Path, instance: &str) -> io::Result<Self> {
        let path = run_dir.join("i").join(format!("{instance}.sock"));
        Ok(Line {
            stream: UnixStream::connect(path).await?,
            v4: Vec::new(),
            v6: Vec::new(),
        })
    }

    /// A connection to the target's port, as probes make it.
    pub async fn connect(&mut self, target: &Target) -> io::Result<TcpStream> {
        let v6_first = target.prefers_v6();
        let first = self.mint(v6_first).await?;
        match target.connect(first, v6_first).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let second = self.mint(!v6_first).await?;
                target.connect(second, !v6_first).await
            }
            other => other,
        }
    }

    /// An unconnected socket of the instance's network.
    pub async fn mint(&mut self, v6: bool) -> io::Result<OwnedFd> {
        match if v6 { self.v6.pop() } else { self.v4.pop() } {
            Some(socket) => Ok(socket),
            None => self.more(v6).await,
        }
    }

    async fn more(&mut self, v6: bool) -> io::Result<OwnedFd> {
        let request = if v6 {
            Request::Sockets { v4: 0, v6: 2 }
        } else {
            Request::Sockets { v4: BATCH, v6: 0 }
        };
        self.stream.write_all(&channel::encode(&request)?).await?;
        let mut fds = Vec::new();
        let mut header = [0; 4];
        self.read_exact(&mut header, &mut fds).await?;
        let mut body = vec![0; channel::frame_length(header)?];
        self.read_exact(&mut body, &mut fds).await?;
        match channel::decode(&body)? {
            Answer::Sockets => {}
            Answer::Refused(reason) => return Err(io::Error::other(reason)),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        let one = fds.pop().ok_or(io::ErrorKind::InvalidData)?;
        if v6 {
            self.v6 = fds;
        } else {
            self.v4 = fds;
        }
        Ok(one)
    }

    async fn read_exact(&mut self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let stream = &self.stream;
            let rest = &mut buffer[filled..];
            let read = || channel::receive_some(stream.as_fd(), rest, fds);
            let count = read_when_ready(stream, read).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += count;
        }
        Ok(())
    }

    /// Completes when the shim is gone; it says nothing unasked.
    pub async fn closed(&mut self) {
        let mut byte = [0; 1];
        let _ = self.stream.read(&mut byte).await;
    }
}

async fn read_when_ready(
    stream: &UnixStream,
    read: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    stream.async_io(Interest::READABLE, read).await
}

/// Counts a request of a target for as long as it lives.
pub struct InFlight {
    pub target: std::sync::Arc<Target>,
    pub shared: std::sync::Arc<crate::Shared>,
    /// Requests that wait for a place at one of the app's targets.
    pub queue: Option<std::sync::Arc<crate::queue::Queue>>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let last = self.target.in_flight.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.target.draining.load(Ordering::SeqCst) {
            self.shared.drained.notify_one();
        }
        if let Some(queue) = &self.queue {
            queue.a_place_is_free();
        }
    }
}
