//! One thread of the data plane: its own listener, runtime, connections, pools and access spool.

use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hutong_ipc::spool::Writer;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

use crate::access::{Log, TICK};
use crate::io::{Io, Stream};
use crate::pipeline::Worker;
use crate::proxy::Upstreams;
use crate::visitor::{self, Peer};
use crate::{Phase, Shared, date, runtime};

/// Visitors' connections per worker; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16384;
const SWEEP: Duration = Duration::from_secs(5);
/// How long requests under way may go on when the gateway ends.
const LAST_WORDS: Duration = Duration::from_secs(5);

pub fn run(shared: &Arc<Shared>, listener: TcpListener, spool: Writer) {
    let Ok(runtime) = runtime() else { return };
    let local = LocalSet::new();
    local.block_on(&runtime, serve(shared.clone(), listener, spool));
}

async fn serve(shared: Arc<Shared>, listener: TcpListener, spool: Writer) {
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let worker = Rc::new(Worker {
        shared: shared.clone(),
        upstreams: Upstreams::default(),
        log: Log::new(spool),
    });
    date::tick();
    tokio::task::spawn_local(housekeeping(worker.clone()));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut phase = shared.phase.subscribe();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (worker, phase) = (worker.clone(), shared.phase.subscribe());
                    tokio::task::spawn_local(async move {
                        connection(worker, stream, phase).await;
                        drop(place);
                    });
                }
                // Out of descriptors, most likely: those that end free some.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => break,
        }
    }
    drop(listener);
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

async fn connection(
    worker: Rc<Worker>,
    stream: TcpStream,
    mut phase: tokio::sync::watch::Receiver<Phase>,
) {
    let Ok(address) = stream.peer_addr() else {
        return;
    };
    let _ = stream.set_nodelay(true);
    let ip = address.ip().to_canonical();
    let peer = Peer {
        ip,
        text: ip.to_string(),
        port: address.port(),
        tls: false,
    };
    visitor::http1::serve(&worker, &peer, Io::new(Stream::Tcp(stream)), &mut phase).await;
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
