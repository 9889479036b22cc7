//! A program beside an app, in its container: the caller's descriptors on one side, the engine's stream on the other.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt;
use hutong_ipc::docker::{Answer, Ask};
use hutong_ipc::shim::{Exec, Exit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::engine::Engine;
use crate::serve::send;

/// Pieces of input and output on their way; more wait.
const ON_THE_WAY: usize = 8;
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
    let began = begin(engine, instance, &exec).await;
    let (id, output, input) = match began {
        Ok(began) => began,
        Err(reason) => return send(&mut caller, &Answer::Refused(reason)).await,
    };
    send(&mut caller, &Answer::ExecStarted).await?;
    let terminal = exec.terminal.then(|| stdin.try_clone()).transpose()?;
    let words = read_from(stdin);
    let feeding = tokio::task::spawn_local(feed(input, words));
    let sizing = terminal.map(|terminal| {
        let (engine, id) = (engine.clone(), id.clone());
        tokio::task::spawn_local(async move { keep_size(&engine, &id, &terminal).await })
    });
    let (out, out_written) = write_to(stdout);
    let (err, err_written) = write_to(stderr);
    let mut nothing = [0; 1];
    let ended = tokio::select! {
        () = copy(output, out, err) => {
            let _ = (out_written.await, err_written.await);
            true
        }
        _ = caller.read(&mut nothing) => false,
    };
    feeding.abort();
    if let Some(sizing) = sizing {
        sizing.abort();
    }
    if ended {
        let exit = exit_of(engine, &id).await;
        return send(&mut caller, &Answer::ExecEnded(exit)).await;
    }
    end(engine, instance, &id).await;
    Ok(())
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

type Output = std::pin::Pin<
    Box<dyn futures_util::Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>,
>;
type Input = std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>;

async fn begin(
    engine: &Engine,
    instance: &str,
    exec: &Exec,
) -> Result<(String, Output, Input), String> {
    let container = engine
        .container_of(instance)
        .ok_or("the instance does not run")?;
    let docker = engine.docker()?;
    let options = CreateExecOptions {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(exec.terminal),
        cmd: Some(exec.argv.clone()),
        env: Some(
            exec.env
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect(),
        ),
        ..Default::default()
    };
    let made = docker.create_exec(&container, options).await;
    let id = made.map_err(|error| error.to_string())?.id;
    let options = StartExecOptions {
        detach: false,
        tty: exec.terminal,
        output_capacity: Some(64 << 10),
    };
    match docker.start_exec(&id, Some(options)).await {
        Ok(StartExecResults::Attached { output, input }) => Ok((id, output, input)),
        Ok(StartExecResults::Detached) => Err("the engine does not attach".into()),
        Err(error) => Err(error.to_string()),
    }
}

async fn exit_of(engine: &Engine, id: &str) -> Exit {
    let Ok(docker) = engine.docker() else {
        return Exit::Signal(9);
    };
    match docker.inspect_exec(id).await {
        Ok(found) => match found.exit_code {
            Some(code) => Exit::Code(i32::try_from(code).unwrap_or(1)),
            None => Exit::Signal(9),
        },
        Err(_) => Exit::Signal(9),
    }
}

async fn copy(mut output: Output, out: mpsc::Sender<Vec<u8>>, err: mpsc::Sender<Vec<u8>>) {
    while let Some(Ok(piece)) = output.next().await {
        let (to, bytes) = match piece {
            LogOutput::StdErr { message } => (&err, message),
            LogOutput::StdOut { message } | LogOutput::Console { message } => (&out, message),
            LogOutput::StdIn { .. } => continue,
        };
        if to.send(bytes.to_vec()).await.is_err() {
            return;
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

async fn feed(mut input: Input, mut words: mpsc::Receiver<Vec<u8>>) {
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
