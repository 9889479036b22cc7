//! Control's requests, one connection each at a time.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use hutong_ipc::channel;
use hutong_ipc::docker::{Answer, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

use crate::build;
use crate::engine::Engine;
use crate::exec;

/// Connections at once: control's own, and one for each program beside an app.
const MAX_CONNECTIONS: usize = 128;
/// The longest request, in bytes.
const MAX_REQUEST: usize = 512 << 10;

pub async fn run(engine: &Rc<Engine>, listener: &UnixListener) -> Result<(), String> {
    let open = Rc::new(std::cell::Cell::new(0_usize));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // The warden, too, when it stops everything.
        let known = [0, engine.setup.control_uid];
        let known = channel::peer(&stream).is_ok_and(|(_, uid)| known.contains(&uid));
        if !known || open.get() >= MAX_CONNECTIONS {
            continue;
        }
        open.set(open.get() + 1);
        let (engine, open) = (engine.clone(), open.clone());
        tokio::task::spawn_local(async move {
            let _ = serve(&engine, stream).await;
            open.set(open.get() - 1);
        });
    }
}

async fn serve(engine: &Rc<Engine>, mut stream: UnixStream) -> std::io::Result<()> {
    loop {
        let mut fds = Vec::new();
        let Some(request) = receive(&mut stream, &mut fds).await? else {
            return Ok(());
        };
        match request {
            Request::Watch => loop {
                send(&mut stream, &Answer::Changed).await?;
                let mut nothing = [0; 1];
                tokio::select! {
                    () = engine.changed.notified() => {}
                    _ = stream.read(&mut nothing) => return Ok(()),
                }
            },
            Request::Exec { instance, exec } => {
                return exec::run(engine, &instance, exec, fds, stream).await;
            }
            Request::Build(build) => return build::run(engine, &build, fds, stream).await,
            other => send(&mut stream, &engine.answer(other).await).await?,
        }
    }
}

pub async fn send(stream: &mut UnixStream, answer: &Answer) -> std::io::Result<()> {
    stream.write_all(&channel::encode(answer)?).await
}

/// One frame, with its descriptors; `None` at the end of the stream.
pub async fn receive<T: serde::de::DeserializeOwned>(
    stream: &mut UnixStream,
    fds: &mut Vec<OwnedFd>,
) -> std::io::Result<Option<T>> {
    let mut header = [0; 4];
    if !fill(stream, &mut header, fds).await? {
        return Ok(None);
    }
    let length = channel::frame_length(header)?;
    if length > MAX_REQUEST {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    if !fill(stream, &mut body, fds).await? {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    channel::decode(&body).map(Some)
}

/// False if the stream ended before the first byte.
async fn fill(
    stream: &UnixStream,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> std::io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        let read = || channel::receive_some(stream.as_fd(), rest, fds);
        let count = stream.async_io(Interest::READABLE, read).await?;
        if count == 0 {
            return match filled {
                0 => Ok(false),
                _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
            };
        }
        filled += count;
    }
    Ok(true)
}
