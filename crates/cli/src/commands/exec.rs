//! `hutong exec APP -- COMMAND`: a program in the app's sandbox, with this terminal or these pipes.

use std::process::ExitCode;
use std::time::Duration;

use hutong_api::client::ClientError;
use hutong_api::websocket::{self, Message, Reader, Side};
use hutong_api::{ExecRequest, frame};
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use super::{Server, path};
use crate::error::CliError;
use crate::terminal::{self, Raw};

/// Proxies on the way close what is silent for a minute.
const PING: Duration = Duration::from_secs(25);

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
    let connection = server.client()?.websocket(&place).await?;
    let (reader, mut writer) = tokio::io::split(connection);
    let mut reader = Reader::new(reader, Side::Server);
    let request =
        serde_json::to_vec(&request).map_err(|error| CliError::failed(error.to_string()))?;
    let failed = |error: std::io::Error| CliError::failed(error.to_string());
    let first = websocket::encode(&Message::Data(request), Side::Client).map_err(failed)?;
    // If it breaks, what is read below says so.
    let _ = writer.write_all(&first).await;
    let raw = if interactive { Raw::new() } else { None };
    let is_raw = raw.is_some();
    let feed = tokio::spawn(async move {
        let mut resized = signal(SignalKind::window_change()).ok();
        let mut input = read_stdin();
        let mut ping = tokio::time::interval(PING);
        loop {
            let message = tokio::select! {
                Some(chunk) = input.recv() => Message::Data(frame::encode(frame::INPUT, &chunk)),
                () = changed(&mut resized), if is_raw => {
                    let (rows, columns) = terminal::size();
                    let size = [rows.to_be_bytes(), columns.to_be_bytes()].concat();
                    Message::Data(frame::encode(frame::RESIZE, &size))
                }
                _ = ping.tick() => Message::Ping(Vec::new()),
            };
            let sent = match websocket::encode(&message, Side::Client) {
                Ok(bytes) => writer.write_all(&bytes).await,
                Err(error) => Err(error),
            };
            if sent.is_err() {
                // Keep the connection: output may still come.
                std::future::pending::<()>().await;
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

async fn show(reader: &mut Reader<impl AsyncRead + Unpin>) -> Result<ExitCode, CliError> {
    let cut = || CliError::failed("the connection broke before the program ended");
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        let bytes = match reader.next().await {
            Ok(Message::Data(bytes)) => bytes,
            Ok(Message::Ping(_) | Message::Pong(_)) => continue,
            Ok(Message::Close) | Err(_) => return Err(cut()),
        };
        match bytes.split_first() {
            Some((&frame::OUTPUT, payload)) => {
                let _ = stdout.write_all(payload).await;
                let _ = stdout.flush().await;
            }
            Some((&frame::ERROR, payload)) => {
                let _ = stderr.write_all(payload).await;
            }
            Some((&frame::EXIT, payload)) => {
                let _ = stderr.flush().await;
                let code = payload.last().copied().unwrap_or(1);
                return Ok(ExitCode::from(code));
            }
            Some((&frame::REFUSED, payload)) => {
                let problem = serde_json::from_slice(payload)
                    .map_err(|_| CliError::failed("the server's answer is not understood"))?;
                return Err(ClientError::Refused(problem).into());
            }
            _ => {}
        }
    }
}
