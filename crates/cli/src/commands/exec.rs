//! `hutong exec APP -- COMMAND`: a program in the app's sandbox, with this terminal or these pipes.

use std::process::ExitCode;

use hutong_api::{ExecRequest, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use super::{Server, path};
use crate::error::CliError;
use crate::terminal::{self, Raw};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  hutong exec shop -- sh
  hutong exec shop -- python3 manage.py migrate
  hutong exec shop -- cat /data/notes.db > copy.db")]
pub struct Args {
    /// The app's name
    app: String,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub async fn run(args: &Args, server: &Server) -> Result<ExitCode, CliError> {
    use std::io::IsTerminal;
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let request = ExecRequest {
        command: args.command.clone(),
        terminal: interactive.then(terminal::size),
    };
    let place = path(&["apps", &args.app, "exec"]);
    let connection = server.client()?.upgrade(&place, &request).await?;
    let (mut reader, mut writer) = tokio::io::split(connection);
    let raw = if interactive { Raw::new() } else { None };
    let is_raw = raw.is_some();
    let feed = tokio::spawn(async move {
        let mut resized = signal(SignalKind::window_change()).ok();
        let mut input = read_stdin();
        loop {
            let bytes = tokio::select! {
                Some(chunk) = input.recv() => {
                    let end = chunk.is_empty();
                    let sent = writer.write_all(&frame::encode(frame::INPUT, &chunk)).await;
                    if end || sent.is_err() {
                        // Keep the connection: output may still come.
                        std::future::pending::<()>().await;
                    }
                    continue;
                }
                () = changed(&mut resized), if is_raw => {
                    let (rows, columns) = terminal::size();
                    let size = [rows.to_be_bytes(), columns.to_be_bytes()].concat();
                    frame::encode(frame::RESIZE, &size)
                }
            };
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let result = show(&mut reader).await;
    drop(raw);
    feed.abort();
    result
}

async fn changed(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Standard input in chunks; an empty one at its end. On a thread of its own, which a read cannot leave.
fn read_stdin() -> tokio::sync::mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = std::io::Read::read(&mut stdin, &mut buffer).unwrap_or(0);
            if sender.blocking_send(buffer[..count].to_vec()).is_err() || count == 0 {
                return;
            }
        }
    });
    receiver
}

async fn show(reader: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<ExitCode, CliError> {
    let cut = |_| CliError::failed("the connection broke before the program ended");
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        let kind = reader.read_u8().await.map_err(cut)?;
        let length = reader.read_u32().await.map_err(cut)? as usize;
        if length > frame::MAX {
            return Err(CliError::failed("the server's answer is not understood"));
        }
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload).await.map_err(cut)?;
        match kind {
            frame::OUTPUT => {
                let _ = stdout.write_all(&payload).await;
                let _ = stdout.flush().await;
            }
            frame::ERROR => {
                let _ = stderr.write_all(&payload).await;
            }
            frame::EXIT => {
                let _ = stderr.flush().await;
                let code = payload.pop().unwrap_or(1);
                return Ok(ExitCode::from(code));
            }
            _ => {}
        }
    }
}
