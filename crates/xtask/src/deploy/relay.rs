//! Stands between a client and a registry, and counts what the client sends.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub struct Relay {
    /// Where it listens, for as long as this program runs.
    pub address: String,
    sent: Arc<AtomicU64>,
}

impl Relay {
    pub fn start(to: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let to = to.to_owned();
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                // Whom it cannot pass on it hangs up on, and the client says so.
                if let Ok(server) = TcpStream::connect(&to) {
                    let _ = join(&client, &server, &counter);
                }
            }
        });
        Ok(Relay { address, sent })
    }

    /// Bytes that clients sent since this was last asked. To be asked when they have ended.
    pub fn take_sent(&self) -> u64 {
        self.sent.swap(0, Ordering::SeqCst)
    }
}

fn join(client: &TcpStream, server: &TcpStream, sent: &Arc<AtomicU64>) -> std::io::Result<()> {
    for line in [client, server] {
        line.set_nodelay(true)?;
    }
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let sent = sent.clone();
    std::thread::spawn(move || {
        pass(from, to, |count| {
            sent.fetch_add(count, Ordering::SeqCst);
        });
    });
    let (from, to) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || pass(from, to, |_| {}));
    Ok(())
}

/// Until either side ends; the other one is told.
fn pass(mut from: TcpStream, mut to: TcpStream, count: impl Fn(u64)) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(size @ 1..) = from.read(&mut buffer) {
        count(size as u64);
        if to.write_all(&buffer[..size]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
