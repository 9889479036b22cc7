//! A program beside an app, in its container: the caller's descriptors on one side, the engine's stream on the other.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bollard::exec::{CreateExecOptions, ResizeExecOptions};
use hutong_ipc::docker::{Answer, Ask};
use hutong_ipc::shim::{Exec, Exit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::engine::{Engine, is_missing};
use crate::serve::send;

/// Pieces of input and output on their way; more wait.
const ON_THE_WAY: usize = 8;
/// Bytes of one piece.
const PIECE: usize = 16 << 10;
/// The longest head of the engine's answer, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// How long the engine may take to attach.
const PATIENCE: Duration = Duration::from_secs(8);
/// How often a terminal's size is looked at.
const LOOK: Duration = Duration::from_millis(300);

/// Runs until the program ends, or the caller goes away.
pub async fn run(
    engine: &Rc<Engine>,
    instance: &str,
    exec: Exec,
    fds: Vec<OwnedFd>,
    mut caller: UnixStream,
) -> std::io::Result<()> {
    let files: Vec<File> = fds.into_iter().map(File::from).collect();
    let Ok([stdin, stdout, stderr]) = <[File; 3]>::try_from(files) else {
        return send(
            &mut caller,
            &Answer::Refused("three descriptors are needed".into()),
        )
        .await;
    };
    let (id, stream) = match begin(engine, instance, &exec).await {
        Ok(began) => began,
        Err(reason) => return send(&mut caller, &Answer::Refused(reason)).await,
    };
    let told = send(&mut caller, &Answer::ExecStarted).await;
    let terminal = exec.terminal.then(|| stdin.try_clone()).transpose()?;
    let (output, input) = stream.into_split();
    let feeding = tokio::task::spawn_local(feed(input, read_from(stdin)));
    let sizing = terminal.map(|terminal| {
        let (engine, id) = (engine.clone(), id.clone());
        tokio::task::spawn_local(async move { keep_size(&engine, &id, &terminal).await })
    });
    let (out, out_written) = write_to(stdout);
    let (err, err_written) = write_to(stderr);
    if told.is_ok() {
        let mut nothing = [0; 1];
        tokio::select! {
            () = copy(output, exec.terminal, out, err) => {
                let _ = (out_written.await, err_written.await);
            }
            _ = caller.read(&mut nothing) => {}
        }
    }
    feeding.abort();
    if let Some(sizing) = sizing {
        sizing.abort();
    }
    // It may have closed its output and go on, or the engine may not know yet that it ended.
    loop {
        if let Some(exit) = exit_of(engine, &id).await {
            return send(&mut caller, &Answer::ExecEnded(exit)).await;
        }
        let mut nothing = [0; 1];
        let gone = tokio::time::timeout(Duration::from_millis(50), caller.read(&mut nothing));
        let instance_ended = engine.container_of(instance).is_none();
        if told.is_err() || gone.await.is_ok() || instance_ended {
            // It does not run on with nobody.
            end(engine, instance, &id).await;
            return send(&mut caller, &Answer::ExecEnded(Exit::Signal(9))).await;
        }
    }
}

async fn begin(
    engine: &Engine,
    instance: &str,
    exec: &Exec,
) -> Result<(String, UnixStream), String> {
    let container = engine
        .container_of(instance)
        .ok_or("the instance does not run")?;
    let docker = engine.docker()?;
    let env = exec.env.iter().map(|(key, value)| format!("{key}={value}"));
    let options = CreateExecOptions {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(exec.terminal),
        cmd: Some(exec.argv.clone()),
        env: Some(env.collect()),
        ..Default::default()
    };
    let made = docker.create_exec(&container, options).await;
    let id = made.map_err(|error| error.to_string())?.id;
    let attached = attach(&engine.setup.socket, &id, exec.terminal);
    let attached = tokio::time::timeout(PATIENCE, attached).await;
    match attached {
        Ok(Ok(stream)) => Ok((id, stream)),
        Ok(Err(error)) => Err(format!("the engine does not attach: {error}")),
        Err(_) => Err("the engine does not answer".into()),
    }
}

/// Starts the program and takes the connection over: by hand, because what comes is copied as it comes, and nothing
/// that the program says may make us hold more than a piece of it.
async fn attach(socket: &str, id: &str, terminal: bool) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    let body = format!("{{\"Detach\":false,\"Tty\":{terminal}}}");
    let request = format!(
        "POST /exec/{id}/start HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > MAX_HEAD {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        head.push(stream.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let status = text.split(' ').nth(1).unwrap_or_default();
    if !matches!(status, "101" | "200") {
        let line = text.lines().next().unwrap_or_default().to_owned();
        return Err(std::io::Error::other(line));
    }
    Ok(stream)
}

/// How it ended; `None` if it runs, or the engine does not say.
async fn exit_of(engine: &Engine, id: &str) -> Option<Exit> {
    let docker = engine.docker().ok()?;
    let asked = tokio::time::timeout(PATIENCE, docker.inspect_exec(id))
        .await
        .ok()?;
    match asked {
        Ok(found) if found.running == Some(true) => None,
        Ok(found) => Some(match found.exit_code {
            Some(code) => Exit::Code(i32::try_from(code).unwrap_or(1)),
            None => Exit::Signal(9),
        }),
        // The engine was started anew, and has forgotten it.
        Err(error) if is_missing(&error) => Some(Exit::Signal(9)),
        Err(_) => None,
    }
}

/// From the engine to the caller. Without a terminal each piece has a head: its stream and its length.
async fn copy(
    mut output: OwnedReadHalf,
    terminal: bool,
    out: mpsc::Sender<Vec<u8>>,
    err: mpsc::Sender<Vec<u8>>,
) {
    let mut buffer = vec![0; PIECE];
    loop {
        let (to, mut left) = if terminal {
            (&out, usize::MAX)
        } else {
            let mut head = [0; 8];
            if output.read_exact(&mut head).await.is_err() {
                return;
            }
            let [kind, _, _, _, length @ ..] = head;
            let to = if kind == 2 { &err } else { &out };
            (to, u32::from_be_bytes(length) as usize)
        };
        while left > 0 {
            let room = left.min(PIECE);
            match output.read(&mut buffer[..room]).await {
                Ok(count @ 1..) => {
                    left -= count;
                    if to.send(buffer[..count].to_vec()).await.is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    }
}

/// Ends a program whose caller is gone. The engine knows no way; the warden does.
async fn end(engine: &Engine, instance: &str, id: &str) {
    let (Some(container), Ok(docker)) = (engine.container_of(instance), engine.docker()) else {
        return;
    };
    let Ok(found) = docker.inspect_exec(id).await else {
        return;
    };
    let pid = found.pid.and_then(|pid| i32::try_from(pid).ok());
    if let (Some(true), Some(pid)) = (found.running, pid) {
        let ask = Ask::End { container, pid };
        if let Err(error) = engine.ask(ask).await {
            tracing::warn!("a program whose caller is gone runs on: {error}");
        }
    }
}

/// Writes what comes to a file, on a thread of its own: whoever is at the other end may be slow. The receiver hears when
/// all of it is written.
fn write_to(mut file: File) -> (mpsc::Sender<Vec<u8>>, oneshot::Receiver<()>) {
    let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(ON_THE_WAY);
    let (done, written) = oneshot::channel();
    std::thread::spawn(move || {
        while let Some(piece) = pieces.blocking_recv() {
            if file.write_all(&piece).is_err() {
                break;
            }
        }
        drop(file);
        let _ = done.send(());
    });
    (sender, written)
}

/// What a file has to say, read on a thread of its own.
fn read_from(mut file: File) -> mpsc::Receiver<Vec<u8>> {
    let (sender, pieces) = mpsc::channel(ON_THE_WAY);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = file.read(&mut buffer) {
            if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    pieces
}

async fn feed(mut input: OwnedWriteHalf, mut words: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = words.recv().await {
        if input.write_all(&bytes).await.is_err() || input.flush().await.is_err() {
            return;
        }
    }
    let _ = input.shutdown().await;
}

async fn keep_size(engine: &Engine, id: &str, terminal: &File) {
    let mut known = (0, 0);
    loop {
        if let Ok(size) = rustix::termios::tcgetwinsize(terminal)
            && (size.ws_row, size.ws_col) != known
            && let Ok(docker) = engine.docker()
        {
            known = (size.ws_row, size.ws_col);
            let options = ResizeExecOptions {
                height: known.0,
                width: known.1,
            };
            let _ = docker.resize_exec(id, options).await;
        }
        tokio::time::sleep(LOOK).await;
    }
}
