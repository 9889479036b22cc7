//! A frame is a 4-byte little-endian length followed by that many bytes of JSON, over a unix stream
//! socket. Descriptors (`SCM_RIGHTS`) travel with the length. See unix(7).

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fail;

/// The longest frame anyone may send, in bytes.
pub const MAX_FRAME: usize = 4 << 20;
/// The most descriptors that one frame carries.
pub const MAX_FDS: usize = 64;

/// Sends `message` and `fds` as one frame; blocks until all of it is handed to the kernel.
pub fn send<T: Serialize>(
    socket: &UnixStream,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = encode(message)?;
    fail::point("message.before-send");
    let sent = send_some(socket.as_fd(), &body, fds)?;
    let mut writer = socket;
    writer.write_all(&body[sent..])?;
    fail::point("message.sent");
    Ok(())
}

/// The frame of `message`: length and body.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {length} bytes is over the bound of {MAX_FRAME}"),
        ));
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// One `sendmsg`: how many bytes went; the descriptors go with the first of them.
pub fn send_some(
    socket: BorrowedFd<'_>,
    frame: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for one message",
        ));
    }
    Ok(rustix::net::sendmsg(
        socket,
        &[IoSlice::new(frame)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?)
}

/// Receives one frame. `Ok(None)` is the end of the stream between two frames.
pub fn receive<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut header = [0; 4];
    let mut fds = Vec::new();
    let mut filled = 0;
    while filled < header.len() {
        let count = receive_some(socket.as_fd(), &mut header[filled..], &mut fds)?;
        if count == 0 {
            return if filled == 0 {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        filled += count;
    }
    let mut body = vec![0; frame_length(header)?];
    let mut reader = socket;
    reader.read_exact(&mut body)?;
    fail::point("message.received");
    Ok(Some((decode(&body)?, fds)))
}

/// Sends one request and waits for its answer.
pub fn call<Q: Serialize, A: DeserializeOwned>(
    socket: &UnixStream,
    request: &Q,
    fds: &[BorrowedFd<'_>],
) -> io::Result<(A, Vec<OwnedFd>)> {
    send(socket, request, fds)?;
    receive(socket)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The body length that a frame header announces, checked against [`MAX_FRAME`].
pub fn frame_length(header: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes is over the bound of {MAX_FRAME}"),
        ));
    }
    Ok(length)
}

/// Reads a frame's body.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// One `recvmsg` into `buffer`; descriptors that came along are appended to `fds`, close-on-exec.
pub fn receive_some(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(buffer)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(rustix::io::Errno::INTR) => continue,
            other => break other?,
        }
    };
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    Ok(received.bytes)
}

/// Who is at the other end, as the kernel says (unix(7), `SO_PEERCRED`): `(pid, uid)`.
pub fn peer(socket: impl AsFd) -> io::Result<(i32, u32)> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)?;
    Ok((
        credentials.pid.as_raw_nonzero().get(),
        credentials.uid.as_raw(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_message_and_its_descriptors_arrive_together() {
        let (a, b) = UnixStream::pair().expect("socketpair");
        let file = File::open("/dev/null").expect("/dev/null");
        send(
            &a,
            &vec!["x".repeat(100_000)],
            &[file.as_fd(), file.as_fd()],
        )
        .expect("send");
        let (got, fds): (Vec<String>, _) = receive(&b).expect("receive").expect("a frame");
        assert_eq!((got[0].len(), fds.len()), (100_000, 2));
        drop(a);
        assert!(receive::<String>(&b).expect("end").is_none());
    }

    #[test]
    fn a_frame_over_the_bound_or_cut_short_is_an_error() {
        let (mut a, b) = UnixStream::pair().expect("socketpair");
        a.write_all(&u32::MAX.to_le_bytes()).expect("write");
        assert!(receive::<String>(&b).is_err());
        let (mut a, b) = UnixStream::pair().expect("socketpair");
        a.write_all(&[1, 0]).expect("write");
        drop(a);
        assert!(receive::<String>(&b).is_err());
    }
}
