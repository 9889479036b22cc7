//! The name server on the egress bridge: passes questions to the host's own servers and answers back.
//! An unprivileged process. Of a message from an app that may ask for every name it reads nothing but its length; the
//! questions of apps with a list come in on sockets of their own ([`listed`]). Bounded in every direction.

mod listed;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hutong_ipc::channel;
use hutong_ipc::warden::ResolverSetup;

use crate::sys;
use listed::Listed;

const MAX_BUSY: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(4);

/// The process's main; `line` is its standard input.
pub fn main(line: &UnixStream) -> Result<(), String> {
    let (setup, fds): (ResolverSetup, _) = channel::receive(line)
        .map_err(|error| error.to_string())?
        .ok_or("the warden went away")?;
    let mut fds = fds.into_iter();
    let (Some(udp), Some(tcp)) = (fds.next(), fds.next()) else {
        return Err("the sockets are missing".into());
    };
    let (Some(listed_udp), Some(listed_tcp)) = (fds.next(), fds.next()) else {
        return Err("the sockets for lists are missing".into());
    };
    if let Some((uid, gid)) = setup.drop_to {
        sys::become_user(uid, gid, &[]).map_err(|error| error.to_string())?;
    }
    let upstreams: Arc<[SocketAddr]> = setup.upstreams.into();
    let listed = Listed::new(line, upstreams.clone()).map_err(|error| error.to_string())?;
    // Before any question: who is not known is refused.
    listed.learn(line, setup.places)?;
    let listed = Arc::new(listed);
    let hears = (
        listed.clone(),
        line.try_clone().map_err(|error| error.to_string())?,
    );
    begin(move || hears.0.listen(&hears.1))?;
    let (by_udp, by_tcp) = (listed.clone(), listed);
    begin(move || {
        serve_udp(UdpSocket::from(listed_udp), move |question, from| {
            by_udp.answer(question, from, false)
        });
    })?;
    begin(move || {
        serve_tcp(&TcpListener::from(listed_tcp), move |stream| {
            let _ = by_tcp.serve(stream);
        });
    })?;
    let for_tcp = upstreams.clone();
    begin(move || {
        serve_tcp(&TcpListener::from(tcp), move |stream| {
            let _ = relay_tcp(stream, &for_tcp);
        });
    })?;
    serve_udp(UdpSocket::from(udp), move |question, _| {
        ask(question, &upstreams).ok()
    })
}

/// Each socket has places of its own: slow connections, or those with a list, must not use up those of others.
fn serve_udp(
    socket: UdpSocket,
    answer: impl Fn(&[u8], IpAddr) -> Option<Vec<u8>> + Send + Sync + 'static,
) -> ! {
    let (socket, answer) = (Arc::new(socket), Arc::new(answer));
    let busy = Arc::new(AtomicUsize::new(0));
    let mut buffer = [0; 4096];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let (question, socket, answer) =
            (buffer[..length].to_vec(), socket.clone(), answer.clone());
        bounded(&busy, move || {
            if let Some(message) = answer(&question, from.ip()) {
                let _ = socket.send_to(&message, from);
            }
        });
    }
}

fn serve_tcp(listener: &TcpListener, serve: impl Fn(TcpStream) + Send + Sync + 'static) {
    let (serve, busy) = (Arc::new(serve), Arc::new(AtomicUsize::new(0)));
    for stream in listener.incoming().flatten() {
        let serve = serve.clone();
        bounded(&busy, move || serve(stream));
    }
}

/// Work that goes on as long as the process.
fn begin(work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    std::thread::Builder::new()
        .stack_size(128 << 10)
        .spawn(work)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// A poisoned lock means that a thread panicked between two whole states.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    // A question that finds no thread is lost, as in any UDP service; the client asks again.
    let _ = std::thread::Builder::new()
        .stack_size(128 << 10)
        .spawn(work);
}

/// One of the places; it is given back however its work ends, or does not begin.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn bounded(busy: &Arc<AtomicUsize>, work: impl FnOnce() + Send + 'static) {
    let held = Held(busy.clone());
    if busy.fetch_add(1, Ordering::Relaxed) >= MAX_BUSY {
        return;
    }
    spawn(move || {
        work();
        drop(held);
    });
}

/// Asks each server in turn; the socket is connected, so only its own answer is taken.
fn ask(question: &[u8], upstreams: &[SocketAddr]) -> io::Result<Vec<u8>> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for upstream in upstreams {
        // One that cannot be reached at all (IPv6 without a route) is not the last.
        let socket = match connected(*upstream) {
            Ok(socket) => socket,
            Err(error) => {
                last = error;
                continue;
            }
        };
        socket.set_read_timeout(Some(TIMEOUT / 2))?;
        if let Err(error) = socket.send(question) {
            last = error;
            continue;
        }
        let mut answer = vec![0; 4096];
        match socket.recv(&mut answer) {
            // The first two bytes are the question's id (RFC 1035, 4.1.1).
            Ok(length) if length >= 2 && answer[..2] == question[..2.min(question.len())] => {
                answer.truncate(length);
                return Ok(answer);
            }
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Only the server's own answers arrive at it.
fn connected(upstream: SocketAddr) -> io::Result<UdpSocket> {
    let any = if upstream.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(upstream)?;
    Ok(socket)
}

/// One question over TCP (RFC 7766): two bytes of length, then the message.
fn relay_tcp(mut client: TcpStream, upstreams: &[SocketAddr]) -> io::Result<()> {
    client.set_write_timeout(Some(TIMEOUT))?;
    let question = read_message(&mut client)?;
    let upstream = upstreams.first().ok_or(io::ErrorKind::NotFound)?;
    let mut server = TcpStream::connect_timeout(upstream, TIMEOUT)?;
    server.write_all(&question)?;
    let answer = read_message(&mut server)?;
    client.write_all(&answer)
}

/// A message and its length before it; it has to be there within the time-out, however it trickles in.
fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + TIMEOUT;
    let mut message = vec![0; 2];
    read_until(stream, &mut message, deadline)?;
    let length = usize::from(u16::from_be_bytes([message[0], message[1]]));
    message.resize(2 + length, 0);
    read_until(stream, &mut message[2..], deadline)?;
    Ok(message)
}

fn read_until(stream: &mut TcpStream, buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
    }
    Ok(())
}
