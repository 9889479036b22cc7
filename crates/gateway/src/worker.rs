//! One thread of the data plane: its own listener, runtime, connections, pools and access spool.

use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hutong_http::proxy_protocol;
use hutong_ipc::spool::Writer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::server::TlsStream;

use crate::access::{Log, TICK};
use crate::io::{Io, Stream};
use crate::pipeline::Worker;
use crate::proxy::Upstreams;
use crate::visitor::{self, Peer};
use crate::{Phase, Shared, date, links, runtime, tls};

/// Visitors' connections per worker; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16384;
const HANDSHAKE: Duration = Duration::from_secs(15);
const SWEEP: Duration = Duration::from_secs(5);
/// How long requests under way may go on when the gateway ends.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// `secure` is where TLS arrives; `place`: which of how many workers this is.
pub fn run(
    shared: &Arc<Shared>,
    plain: TcpListener,
    secure: Option<TcpListener>,
    spool: Writer,
    place: (usize, usize),
) {
    let Ok(runtime) = runtime() else { return };
    let local = LocalSet::new();
    local.block_on(&runtime, serve(shared.clone(), plain, secure, spool, place));
}

async fn serve(
    shared: Arc<Shared>,
    plain: TcpListener,
    secure: Option<TcpListener>,
    spool: Writer,
    (index, count): (usize, usize),
) {
    let worker = Rc::new(Worker {
        shared: shared.clone(),
        upstreams: Upstreams::default(),
        log: Log::new(spool),
    });
    date::tick();
    tokio::task::spawn_local(housekeeping(worker.clone()));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let calls = links::serve(worker.clone(), index, count, places.clone());
    tokio::task::spawn_local(calls);
    let mut phase = shared.phase.subscribe();
    let accept = async {
        tokio::join!(
            accept(&worker, Some(plain), Door::Plain, &places),
            accept(&worker, secure, Door::Tls, &places)
        )
    };
    tokio::select! {
        _ = accept => {}
        _ = phase.wait_for(|phase| *phase != Phase::Serving) => {}
    }
    let last = async {
        let _ = phase.wait_for(|phase| *phase == Phase::Ending).await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    let quiet = async {
        let _ = places.acquire_many(MAX_CONNECTIONS as u32).await;
    };
    tokio::select! {
        () = quiet => {}
        () = last => {}
    }
    worker.log.flush();
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Plain,
    Tls,
}

async fn accept(
    worker: &Rc<Worker>,
    listener: Option<TcpListener>,
    door: Door,
    places: &Arc<Semaphore>,
) {
    let Some(listener) = listener else { return };
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let worker = worker.clone();
                tokio::task::spawn_local(async move {
                    let _open = Open::new(&worker.shared.connections);
                    connection(&worker, stream, door).await;
                    drop(place);
                });
            }
            // Out of descriptors, most likely: those that end free some.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Counts a connection for as long as it lives.
struct Open<'a>(&'a AtomicU64);

impl<'a> Open<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Open(count)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(worker: &Rc<Worker>, mut stream: TcpStream, door: Door) {
    let Ok(mut address) = stream.peer_addr() else {
        return;
    };
    let _ = stream.set_nodelay(true);
    keep_alive(&stream);
    let shared = &worker.shared;
    if shared.proxy_protocol && shared.trusted.contains(address.ip().to_canonical()) {
        let told = tokio::time::timeout(HANDSHAKE, introduction(&mut stream)).await;
        match told {
            Ok(Ok(Some(visitor))) => address = visitor,
            Ok(Ok(None)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
    let ip = address.ip().to_canonical();
    let most = shared.max_connections_per_ip;
    let counted = most > 0 && !ip.is_loopback() && !shared.trusted.contains(ip);
    let _held = match counted.then(|| shared.limits.connection(ip, most)) {
        // One address is not to take all the places. It is told nothing: to say it takes longer than to close.
        Some(None) => {
            shared.refused_connections.fetch_add(1, Ordering::Relaxed);
            return;
        }
        Some(held) => held,
        None => None,
    };
    let peer = Peer {
        ip,
        text: ip.to_string(),
        port: address.port(),
        tls: door == Door::Tls,
        proxied: None,
        link: None,
    };
    let mut phase = worker.shared.phase.subscribe();
    if door == Door::Plain {
        visitor::http1::serve(worker, &peer, Io::new(Stream::Tcp(stream)), &mut phase).await;
        return;
    }
    let Ok(Some(stream)) = tokio::time::timeout(HANDSHAKE, handshake(worker, stream)).await else {
        return;
    };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        visitor::http2::serve(worker, peer, stream, &mut phase).await;
    } else {
        let io = Io::new(Stream::Tls(Box::new(stream)));
        visitor::http1::serve(worker, &peer, io, &mut phase).await;
    }
}

/// A visitor whose machine is gone without a word is noticed.
fn keep_alive(stream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, Duration::from_secs(60));
    let _ = sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15));
    let _ = sockopt::set_tcp_keepcnt(stream, 4);
}

/// Who a proxy before us says the visitor is (PROXY protocol, versions 1 and 2); `None`: the proxy itself.
/// Not a byte behind the header is taken.
async fn introduction(stream: &mut TcpStream) -> std::io::Result<Option<std::net::SocketAddr>> {
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let mut seen = vec![0; 16 + proxy_protocol::MAX_BLOCK];
    let mut before = 0;
    loop {
        stream.readable().await?;
        let count = stream.peek(&mut seen).await?;
        match proxy_protocol::parse(&seen[..count]).map_err(|_| invalid())? {
            Some((header, length)) => {
                stream.read_exact(&mut seen[..length]).await?;
                return Ok(match header {
                    proxy_protocol::Header::Proxied { source, .. } => Some(source),
                    _ => None,
                });
            }
            // Nothing more came, or it cannot be one.
            None if count == 0 || count == seen.len() => return Err(invalid()),
            None if count == before => tokio::time::sleep(Duration::from_millis(2)).await,
            None => before = count,
        }
    }
}

/// None: the connection is over. A certificate authority's ends with the handshake.
async fn handshake(worker: &Worker, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
    let acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let start = acceptor.await.ok()?;
    let hello = start.client_hello();
    let authority = hello
        .alpn()
        .is_some_and(|mut protocols| protocols.any(|protocol| protocol == tls::ACME));
    let tls = &worker.shared.tls;
    if authority {
        let mut stream = start.into_stream(tls.authorities.clone()).await.ok()?;
        let _ = stream.shutdown().await;
        return None;
    }
    start.into_stream(tls.visitors.clone()).await.ok()
}

async fn housekeeping(worker: Rc<Worker>) {
    let mut since_sweep = Duration::ZERO;
    let mut version = 0;
    loop {
        tokio::time::sleep(TICK).await;
        worker.log.flush();
        date::tick();
        since_sweep += TICK;
        let table = worker.shared.table.load_full();
        if since_sweep >= SWEEP || table.version != version {
            since_sweep = Duration::ZERO;
            version = table.version;
            worker.upstreams.sweep(|instance| {
                let targets = table.apps.iter().flat_map(|app| &app.targets);
                targets
                    .into_iter()
                    .any(|(_, target)| target.instance == instance)
            });
        }
    }
}
