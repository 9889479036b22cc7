//! A program beside an app, in its own sandbox: messages of a WebSocket, so that every proxy on the way passes them on;
//! pipes or a terminal on the other side.

use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hutong_api::websocket::{self, Message, Reader, Side};
use hutong_api::{ExecRequest, Problem, frame};
use hutong_core::plan::Serve;
use hutong_ipc::channel;
use hutong_ipc::shim::{self, Answer, Exit};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::{ApiError, Result, apps};
use crate::store::App;
use crate::{Control, ids, images, launch, lock};

/// How long a caller may take to say what is to run.
const PATIENCE: Duration = Duration::from_secs(10);
/// A caller pings several times in this time. One of whom nothing is heard for so long is gone, though no connection broke.
const SILENCE: Duration = Duration::from_secs(90);

type Connection = TokioIo<hyper::upgrade::Upgraded>;

/// Sessions at once, on the whole server.
static SESSIONS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(64);

/// Runs a program in one of the app's instances: a WebSocket, whose first message says which (`ExecRequest`).
#[utoipa::path(get, path = "/v1/apps/{app}/exec", responses((status = 101), (status = 409, body = Problem), (status = 426, body = Problem)))]
pub async fn exec(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    mut request: Request,
) -> Result<Response> {
    let app = apps::find_free(&control, &name)?;
    let key = key(request.headers()).ok_or_else(|| {
        ApiError::new(426, "something on the way here does not pass WebSockets on")
            .hint("over ssh it works: hutong login ssh://HOST")
    })?;
    let accepted = HeaderValue::from_str(&websocket::accept(key));
    let accepted = accepted.map_err(|error| ApiError::bad(error.to_string()))?;
    let place = SESSIONS
        .try_acquire()
        .map_err(|_| ApiError::new(503, "too many programs run beside apps already"))?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _place = place;
        if let Ok(upgraded) = upgrade.await {
            serve(&control, &app, TokioIo::new(upgraded)).await;
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
    let protocol = HeaderValue::from_static(websocket::PROTOCOL);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    Ok(response)
}

/// The key of a request for a WebSocket of ours (RFC 6455 §4.2.1).
fn key(headers: &HeaderMap) -> Option<&str> {
    let has = |name: header::HeaderName, wanted: &str| {
        let values = headers.get_all(name).into_iter();
        let mut members = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        members.any(|member| member.trim().eq_ignore_ascii_case(wanted))
    };
    let is_asked = has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, websocket::VERSION)
        && has(header::SEC_WEBSOCKET_PROTOCOL, websocket::PROTOCOL);
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    key.to_str().ok().filter(|_| is_asked)
}

/// Hears what is to run, and runs it.
async fn serve(control: &Arc<Control>, app: &App, connection: Connection) {
    let (reader, mut writer) = tokio::io::split(connection);
    let mut reader = Reader::new(reader, Side::Client);
    let first = tokio::time::timeout(PATIENCE, reader.next()).await;
    let Ok(Ok(Message::Data(wanted))) = first else {
        return;
    };
    match begin(control, &app.name, &wanted).await {
        // From here on it is not put to sleep.
        Ok((session, _open)) => session.run(reader, writer).await,
        Err(error) => {
            let why = Message::Data(frame::encode(frame::REFUSED, &error.json()));
            for message in [why, Message::Close] {
                let _ = say(&mut writer, &message).await;
            }
            let _ = writer.shutdown().await;
        }
    }
}

async fn say(writer: &mut WriteHalf<Connection>, message: &Message) -> std::io::Result<()> {
    writer
        .write_all(&websocket::encode(message, Side::Server)?)
        .await
}

/// What a caller says next; nothing of one who is gone.
async fn hear(reader: &mut Reader<impl AsyncRead + Unpin>) -> Option<Message> {
    let said = tokio::time::timeout(SILENCE, reader.next()).await;
    said.ok()?.ok()
}

async fn begin(control: &Arc<Control>, name: &str, wanted: &[u8]) -> Result<(Session, Open)> {
    let wanted: ExecRequest = serde_json::from_slice(wanted)
        .map_err(|error| ApiError::bad(format!("what is to run is not understood: {error}")))?;
    if wanted.command.is_empty() || wanted.command.iter().any(|word| word.contains('\0')) {
        return Err(ApiError::bad("a command is needed").hint("hutong exec APP -- ls /app"));
    }
    // Since the handshake it may have been isolated, or a snapshot may be on its way back.
    apps::find_free(control, name)?;
    let open = Open::new(control, name);
    let instance = awake_instance(control, name).await.ok_or_else(|| {
        ApiError::conflict(format!("no instance of {name} runs"))
            .hint(format!("hutong start {name}"))
    })?;
    // It may have taken a while to wake.
    let app = apps::find_free(control, name)?;
    let env = environment(control, &app, &instance, wanted.terminal.is_some())?;
    let ours = control.clone();
    let started = tokio::task::spawn_blocking(move || start(&ours, &instance, &wanted, env));
    let session = started
        .await
        .map_err(|error| ApiError::new(500, error.to_string()))??;
    Ok((session, open))
}

/// A program beside an app's own, for as long as it runs.
struct Open {
    control: Arc<Control>,
    app: String,
}

impl Open {
    fn new(control: &Arc<Control>, app: &str) -> Self {
        let mut observed = lock(&control.observed);
        *observed.sessions.entry(app.to_owned()).or_insert(0) += 1;
        observed.want(app);
        drop(observed);
        Open {
            control: control.clone(),
            app: app.to_owned(),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut observed = lock(&self.control.observed);
        if let Entry::Occupied(mut count) = observed.sessions.entry(self.app.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// An instance to run a program in; one that sleeps is woken.
async fn awake_instance(control: &Control, app: &str) -> Option<String> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let mut passes = control.passes.subscribe();
    control.wake.notify_one();
    let woken = async {
        loop {
            let serve = lock(&control.observed).serving.get(app).cloned();
            let instance = apps::any_instance(control, app);
            let is_coming = match serve {
                Some(Serve::Asleep) => true,
                // A worker beside it is not what is meant.
                Some(Serve::Hold) => !instance
                    .as_deref()
                    .is_some_and(|id| ids::kind(id) == ids::Kind::Web),
                _ => false,
            };
            if !is_coming || passes.changed().await.is_err() {
                return instance;
            }
        }
    };
    tokio::time::timeout(PATIENCE, woken).await.ok().flatten()
}

/// The same variables as the app's own.
fn environment(
    control: &Control,
    app: &App,
    instance: &str,
    terminal: bool,
) -> Result<Vec<(String, String)>> {
    let Some((release, spec)) = apps::current_spec(control, app)? else {
        return Err(ApiError::conflict("the app has no release"));
    };
    let home = if spec.data { "/data" } else { "/tmp" };
    // An image has a PATH and a HOME of its own.
    let mut env: Vec<(String, String)> = match control.docker.has(instance) {
        true => launch::container_env(&spec, instance),
        false => hutong_runtime::base_env(&app.name, instance, home),
    };
    let kind = ids::kind(instance);
    let own =
        launch::environment(control, &spec, release, kind).map_err(|e| ApiError::new(500, e))?;
    let kept = control.store.release(&app.name, release)?;
    match kept.and_then(|release| images::of_release(&release)) {
        Some(digest) => {
            let failed = |reason: String| ApiError::new(500, reason);
            let image = control.images.image(&digest).map_err(failed)?;
            let config = image.config.config.unwrap_or_default();
            env = launch::image_env(&config, &spec, instance, own);
        }
        None => env.extend(own),
    }
    if spec.data {
        env.push(("DATA_DIR".into(), "/data".into()));
    }
    if terminal {
        env.push(("TERM".into(), "xterm-256color".into()));
    }
    Ok(env)
}

struct Session {
    /// Says when the program ended; its closing does not end the program.
    line: std::os::unix::net::UnixStream,
    input: Option<File>,
    /// (kind of message, where it comes from)
    outputs: Vec<(u8, File)>,
    terminal: Option<OwnedFd>,
}

fn start(
    control: &Control,
    instance: &str,
    wanted: &ExecRequest,
    env: Vec<(String, String)>,
) -> Result<Session> {
    let exec = shim::Exec {
        argv: wanted.command.clone(),
        env,
        terminal: wanted.terminal.is_some(),
    };
    let failed = |error: std::io::Error| ApiError::new(500, error.to_string());
    if let Some((rows, columns)) = wanted.terminal {
        let (ours, theirs) = open_terminal(rows, columns).map_err(failed)?;
        let stdio = [theirs.as_fd(), theirs.as_fd(), theirs.as_fd()];
        let line = control.exec_in(instance, exec, stdio)?;
        let input = File::from(ours.try_clone().map_err(failed)?);
        let output = File::from(ours.try_clone().map_err(failed)?);
        return Ok(Session {
            line,
            input: Some(input),
            outputs: vec![(frame::OUTPUT, output)],
            terminal: Some(ours),
        });
    }
    let (stdin, input) = std::io::pipe().map_err(failed)?;
    let (output, stdout) = std::io::pipe().map_err(failed)?;
    let (errors, stderr) = std::io::pipe().map_err(failed)?;
    let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let line = control.exec_in(instance, exec, stdio)?;
    Ok(Session {
        line,
        input: Some(File::from(OwnedFd::from(input))),
        outputs: vec![
            (frame::OUTPUT, File::from(OwnedFd::from(output))),
            (frame::ERROR, File::from(OwnedFd::from(errors))),
        ],
        terminal: None,
    })
}

fn open_terminal(rows: u16, columns: u16) -> std::io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = rustix::fs::open(
        name.as_c_str(),
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    resize(&ours, rows, columns);
    Ok((ours, theirs))
}

fn resize(terminal: &OwnedFd, rows: u16, columns: u16) {
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}

impl Session {
    /// Until the program ends, or the caller goes; then the shim ends the program.
    async fn run(
        self,
        mut reader: Reader<ReadHalf<Connection>>,
        mut writer: WriteHalf<Connection>,
    ) {
        // Messages on their way out: bounded, so a program waits for a slow reader.
        let (messages, mut outgoing) = mpsc::channel::<Message>(16);
        let is_terminal = self.terminal.is_some();
        // Threads of their own: sessions last, and must not starve the pool of the rest.
        let mut pumps = Vec::new();
        for (kind, file) in self.outputs {
            let messages = messages.clone();
            let (done, finished) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || {
                pump(kind, file, &messages);
                let _ = done.send(());
            });
            pumps.push(finished);
        }
        let (told, ended) = tokio::sync::oneshot::channel();
        let Ok(line) = self.line.try_clone() else {
            return;
        };
        std::thread::spawn(move || {
            let exit = match channel::receive::<Answer>(&line) {
                Ok(Some((Answer::ExecEnded(exit), _))) => exit,
                _ => Exit::Signal(9),
            };
            let _ = told.send(exit);
        });
        let pongs = messages.clone();
        tokio::spawn(async move {
            let exit = ended.await.unwrap_or(Exit::Signal(9));
            for pump in pumps {
                if is_terminal {
                    // Its output has no end of its own; what is left of it comes at once.
                    let patience = std::time::Duration::from_millis(500);
                    let _ = tokio::time::timeout(patience, pump).await;
                } else {
                    let _ = pump.await;
                }
            }
            let last = frame::encode(frame::EXIT, &last_words(&exit));
            for message in [Message::Data(last), Message::Close] {
                let _ = messages.send(message).await;
            }
        });
        let (mut input, terminal) = (self.input, self.terminal);
        let listen = async {
            while let Some(message) = hear(&mut reader).await {
                let bytes = match message {
                    Message::Data(bytes) => bytes,
                    Message::Ping(sent) => {
                        // Whoever does not listen needs no answer.
                        let _ = pongs.try_send(Message::Pong(sent));
                        continue;
                    }
                    Message::Pong(_) => continue,
                    Message::Close => return,
                };
                match bytes.split_first() {
                    Some((&frame::INPUT, [])) => input = None,
                    Some((&frame::INPUT, payload)) => {
                        if let Some(file) = input.take() {
                            input = write_elsewhere(file, payload.to_vec()).await;
                        }
                    }
                    Some((&frame::RESIZE, payload)) => {
                        if let (Some(terminal), [a, b, c, d]) = (&terminal, payload) {
                            let (rows, columns) = ([*a, *b], [*c, *d]);
                            resize(
                                terminal,
                                u16::from_be_bytes(rows),
                                u16::from_be_bytes(columns),
                            );
                        }
                    }
                    _ => return,
                }
            }
        };
        let speak = async {
            while let Some(message) = outgoing.recv().await {
                let is_last = message == Message::Close;
                if say(&mut writer, &message).await.is_err() || is_last {
                    break;
                }
            }
            let _ = writer.shutdown().await;
        };
        tokio::pin!(speak);
        tokio::select! {
            () = listen => {}
            () = &mut speak => {}
        }
        // The shim sees the end of its line and kills what still runs.
        let _ = self.line.shutdown(std::net::Shutdown::Both);
    }
}

/// A program that does not read its input holds up a thread of its own, nothing else.
async fn write_elsewhere(file: File, payload: Vec<u8>) -> Option<File> {
    let (done, written) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = done.send(write_all(file, &payload));
    });
    written.await.ok().flatten()
}

fn write_all(mut file: File, payload: &[u8]) -> Option<File> {
    file.write_all(payload).ok().map(|()| file)
}

fn pump(kind: u8, mut file: File, messages: &mpsc::Sender<Message>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count) = std::io::Read::read(&mut file, &mut buffer) {
        let message = Message::Data(frame::encode(kind, &buffer[..count]));
        let sent = messages.blocking_send(message);
        if count == 0 || sent.is_err() {
            return;
        }
    }
}

fn last_words(exit: &Exit) -> Vec<u8> {
    let code = match exit {
        Exit::Code(code) => *code as u8,
        Exit::Signal(signal) => 128 + *signal as u8,
        Exit::NotStarted(_) => 127,
    };
    let mut payload = exit.to_string().into_bytes();
    payload.push(code);
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_for_too_long_is_gone() {
        let (mut theirs, ours) = tokio::io::duplex(1 << 10);
        let mut reader = Reader::new(ours, Side::Client);
        let ping = websocket::encode(&Message::Ping(Vec::new()), Side::Client).expect("random");
        for _ in 0..3 {
            tokio::time::sleep(SILENCE / 2).await;
            theirs.write_all(&ping).await.expect("written");
            assert_eq!(hear(&mut reader).await, Some(Message::Ping(Vec::new())));
        }
        // Nothing comes, nor does the connection break; half a message is none.
        theirs.write_all(&ping[..1]).await.expect("written");
        let began = tokio::time::Instant::now();
        assert_eq!(hear(&mut reader).await, None);
        assert!(began.elapsed() >= SILENCE);
    }

    #[test]
    fn only_websockets_of_ours_have_a_key() {
        let request = |fields: &[(&'static str, &'static str)]| {
            let all = fields.iter().map(|&(name, value)| {
                let name = header::HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            });
            all.collect::<HeaderMap>()
        };
        let good = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "hutong-exec"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        assert_eq!(key(&request(&good)), Some("dGhlIHNhbXBsZSBub25jZQ=="));
        for without in 0..good.len() {
            let mut fields = good.to_vec();
            fields.remove(without);
            assert_eq!(key(&request(&fields)), None, "{without}");
        }
    }
}
