//! Apps that call other apps. For each instance with links a line to whoever holds its listening sockets: its shim, or the
//! Docker driver. What is accepted there is served like a visitor, but that the link says whose app is meant and that both
//! owners agree: no host, no HTTPS, no password, no rules about addresses.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hutong_ipc::channel;
use hutong_ipc::docker::LinksOf;
use hutong_ipc::gateway::Caller;
use hutong_ipc::shim::{Answer, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use crate::Phase;
use crate::io::{Io, Stream};
use crate::pipeline::Worker;
use crate::table::Table;
use crate::visitor::{self, Link, Peer};

/// Connections that the programs of one instance may have open at once, over all its links.
const MAX_CONNECTIONS: usize = 512;
/// How soon a line that ended is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// Serves the callers that fall to this worker, until another gateway takes over.
pub async fn serve(worker: Rc<Worker>, index: usize, workers: usize, all: Arc<Semaphore>) {
    let shared = &worker.shared;
    let mut version = shared.version.subscribe();
    let mut phase = shared.phase.subscribe();
    let mut lines: HashMap<(String, Caller), AbortHandle> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        version.borrow_and_update();
        let table = shared.table.load_full();
        let mine: Vec<(&str, &Caller)> = callers(&table)
            .filter(|(_, caller)| share(caller, workers) == index)
            .collect();
        lines.retain(|(app, caller), task| {
            let keep = mine.contains(&(app, caller));
            if !keep {
                task.abort();
            }
            keep
        });
        for (app, caller) in mine {
            let key = (app.to_owned(), caller.clone());
            lines.entry(key).or_insert_with(|| {
                let (worker, app, caller) = (worker.clone(), app.to_owned(), caller.clone());
                let all = all.clone();
                tasks.spawn_local(async move { keep_up(worker, app, caller, all).await })
            });
        }
        tokio::select! {
            changed = version.changed() => if changed.is_err() { return },
            // What is under way goes on; what waits in the sockets is for the next gateway.
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
            Some(_) = tasks.join_next() => {}
        }
    }
}

fn callers(table: &Table) -> impl Iterator<Item = (&str, &Caller)> {
    let apps = table.apps.iter();
    apps.flat_map(|app| app.callers.iter().map(|caller| (app.name.as_str(), caller)))
}

fn share(caller: &Caller, workers: usize) -> usize {
    (number(&caller.instance) % workers.max(1) as u64) as usize
}

fn number(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Connections that may be open: of one instance, and of the worker with its visitors'.
#[derive(Clone)]
struct Places {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// Has a line to the sockets of one instance for as long as it is in the table.
async fn keep_up(worker: Rc<Worker>, app: String, caller: Caller, all: Arc<Semaphore>) {
    let places = Places {
        own: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        all,
    };
    loop {
        // It may be gone, or not be there yet; the table says when it is of no interest any more.
        let _ = follow(&worker, &app, &caller, &places).await;
        tokio::time::sleep(AGAIN).await;
    }
}

/// Until the line ends.
async fn follow(
    worker: &Rc<Worker>,
    app: &str,
    caller: &Caller,
    places: &Places,
) -> io::Result<()> {
    let run_dir = &worker.shared.run_dir;
    let (mut line, request) = if caller.container {
        let instance = caller.instance.clone();
        let line = UnixStream::connect(run_dir.join("links.sock")).await?;
        (line, channel::encode(&LinksOf { instance })?)
    } else {
        let path = run_dir.join("i").join(format!("{}.sock", caller.instance));
        (
            UnixStream::connect(path).await?,
            channel::encode(&Request::Links)?,
        )
    };
    line.write_all(&request).await?;
    let (answer, sockets) = receive(&line).await?;
    let names = match answer {
        Answer::Links(names) if names.len() == sockets.len() => names,
        Answer::Refused(reason) => return Err(io::Error::other(reason)),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    // They end with this.
    let mut doors = JoinSet::new();
    for (name, socket) in names.into_iter().zip(sockets) {
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let link = Link {
            caller: app.to_owned(),
            name,
        };
        doors.spawn_local(accept(worker.clone(), listener, link, places.clone()));
    }
    let mut byte = [0; 1];
    let _ = line.read(&mut byte).await;
    Ok(())
}

async fn receive(line: &UnixStream) -> io::Result<(Answer, Vec<OwnedFd>)> {
    let mut fds = Vec::new();
    let mut header = [0; 4];
    fill(line, &mut header, &mut fds).await?;
    let mut body = vec![0; channel::frame_length(header)?];
    fill(line, &mut body, &mut fds).await?;
    Ok((channel::decode(&body)?, fds))
}

async fn fill(line: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        let read = || channel::receive_some(line.as_fd(), rest, fds);
        let count = line.async_io(Interest::READABLE, read).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += count;
    }
    Ok(())
}

async fn accept(worker: Rc<Worker>, listener: tokio::net::TcpListener, link: Link, places: Places) {
    let peer = Rc::new(peer(link));
    while let Ok(place) = places.own.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A worker that ends waits for those, too.
                let Ok(shared) = places.all.clone().acquire_owned().await else {
                    return;
                };
                let (worker, peer) = (worker.clone(), peer.clone());
                tokio::task::spawn_local(async move {
                    serve_one(&worker, &peer, stream).await;
                    drop((place, shared));
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn serve_one(worker: &Rc<Worker>, peer: &Peer, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut phase = worker.shared.phase.subscribe();
    visitor::http1::serve(worker, peer, Io::new(Stream::Tcp(stream)), &mut phase).await;
}

/// Each calling app has an address that no visitor has (RFC 4193): rates by address are kept for each /64.
fn peer(link: Link) -> Peer {
    let number = number(&link.caller).to_be_bytes();
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&number);
    octets[0] = 0xfd;
    let ip = IpAddr::from(Ipv6Addr::from(octets));
    Peer {
        ip,
        // Not 127.0.0.1: programs show that one more than they show strangers.
        text: ip.to_string(),
        port: 0,
        tls: false,
        proxied: None,
        link: Some(link),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calling_apps_do_not_share_an_address() {
        let of = |caller: &str| {
            let (caller, name) = (caller.to_owned(), "orders".to_owned());
            peer(Link { caller, name }).ip
        };
        assert_ne!(of("shop"), of("blog"));
        assert_eq!(of("shop"), of("shop"));
        assert!(matches!(of("shop"), IpAddr::V6(ip) if ip.is_unique_local()));
    }
}
