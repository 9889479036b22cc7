//! The name server on the egress bridge: passes questions to the host's own servers and answers back.
//! An unprivileged process; it reads nothing of a message but its length. Bounded in every direction.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hutong_ipc::channel;
use hutong_ipc::warden::ResolverSetup;

use crate::sys;

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
    if let Some((uid, gid)) = setup.drop_to {
        sys::become_user(uid, gid, &[]).map_err(|error| error.to_string())?;
    }
    let upstreams: Arc<[SocketAddr]> = setup.upstreams.into();
    let busy = Arc::new(AtomicUsize::new(0));
    let tcp = TcpListener::from(tcp);
    // Counted apart: slow connections must not use up the places of plain questions.
    let (for_tcp, busy_tcp) = (upstreams.clone(), Arc::new(AtomicUsize::new(0)));
    spawn(move || {
        for stream in tcp.incoming().flatten() {
            let upstreams = for_tcp.clone();
            bounded(&busy_tcp, move || {
                let _ = relay_tcp(stream, &upstreams);
            });
        }
    });
    let udp = Arc::new(UdpSocket::from(udp));
    let mut buffer = [0; 4096];
    loop {
        let Ok((length, from)) = udp.recv_from(&mut buffer) else {
            continue;
        };
        let (question, udp, upstreams) =
            (buffer[..length].to_vec(), udp.clone(), upstreams.clone());
        bounded(&busy, move || {
            if let Ok(answer) = ask(&question, &upstreams) {
                let _ = udp.send_to(&answer, from);
            }
        });
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    // A question that finds no thread is lost, as in any UDP service; the client asks again.
    let _ = std::thread::Builder::new()
        .stack_size(128 << 10)
        .spawn(work);
}

fn bounded(busy: &Arc<AtomicUsize>, work: impl FnOnce() + Send + 'static) {
    if busy.fetch_add(1, Ordering::Relaxed) >= MAX_BUSY {
        busy.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let busy = busy.clone();
    spawn(move || {
        work();
        busy.fetch_sub(1, Ordering::Relaxed);
    });
}

/// Asks each server in turn; the socket is connected, so only its own answer is taken.
fn ask(question: &[u8], upstreams: &[SocketAddr]) -> io::Result<Vec<u8>> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for upstream in upstreams {
        let any = if upstream.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(upstream)?;
        socket.set_read_timeout(Some(TIMEOUT / 2))?;
        socket.send(question)?;
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

/// One question over TCP (RFC 7766): two bytes of length, then the message.
fn relay_tcp(mut client: TcpStream, upstreams: &[SocketAddr]) -> io::Result<()> {
    client.set_read_timeout(Some(TIMEOUT))?;
    client.set_write_timeout(Some(TIMEOUT))?;
    let question = read_message(&mut client)?;
    let upstream = upstreams.first().ok_or(io::ErrorKind::NotFound)?;
    let mut server = TcpStream::connect_timeout(upstream, TIMEOUT)?;
    server.set_read_timeout(Some(TIMEOUT))?;
    server.write_all(&question)?;
    let answer = read_message(&mut server)?;
    client.write_all(&answer)
}

fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; 2 + usize::from(u16::from_be_bytes(length))];
    message[..2].copy_from_slice(&length);
    stream.read_exact(&mut message[2..])?;
    Ok(message)
}
