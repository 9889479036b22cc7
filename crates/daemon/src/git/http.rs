//! Git over HTTPS (gitprotocol-http(5), the smart one only): git's own http-backend answers, as a CGI program (RFC 3875)
//! that is given bodies as they come. Who may is decided before it is started.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::StreamExt;
use hutong_core::name::AppName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdout};
use tokio::sync::Semaphore;

use super::repo::{self, Repo};
use super::{Place, Push, hook, preview, run};
use crate::Control;
use crate::http::auth::{Refusal, check_token};
use crate::store::{Scope, Token};

/// Gits at once: each holds memory and processes. Those that only say which branches there are end soon.
static PUSHES: Semaphore = Semaphore::const_new(8);
static FETCHES: Semaphore = Semaphore::const_new(8);
static LISTS: Semaphore = Semaphore::const_new(16);
/// Pushes, and fetches, of one app at once.
const MOST: usize = 2;
/// A push may wait for builds.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);
const MAX_HEAD: usize = 16 << 10;
const CHUNK: usize = 64 << 10;

pub fn router() -> Router<Arc<Control>> {
    Router::new()
        .route("/git/{repo}/info/refs", get(refs))
        .route("/git/{repo}/git-upload-pack", post(upload_pack))
        .route("/git/{repo}/git-receive-pack", post(receive_pack))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    /// It fetches.
    Upload,
    /// It pushes.
    Receive,
}

impl Service {
    fn scope(self) -> Scope {
        match self {
            Service::Upload => Scope::Pull,
            Service::Receive => Scope::Push,
        }
    }
}

async fn refs(
    State(control): State<Arc<Control>>,
    Path(repo): Path<String>,
    request: Request,
) -> Response {
    let service = match request.uri().query() {
        Some("service=git-upload-pack") => Service::Upload,
        Some("service=git-receive-pack") => Service::Receive,
        _ => return refuse(403, "this takes a git of 1.6.6 or later"),
    };
    serve(control, &repo, "info/refs", service, request).await
}

async fn upload_pack(
    State(control): State<Arc<Control>>,
    Path(repo): Path<String>,
    request: Request,
) -> Response {
    serve(control, &repo, "git-upload-pack", Service::Upload, request).await
}

async fn receive_pack(
    State(control): State<Arc<Control>>,
    Path(repo): Path<String>,
    request: Request,
) -> Response {
    let service = Service::Receive;
    serve(control, &repo, "git-receive-pack", service, request).await
}

/// Git shows the text to whoever called it.
fn refuse(status: u16, text: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = [(CONTENT_TYPE, "text/plain; charset=utf-8")];
    (status, kind, format!("{text}\n")).into_response()
}

fn refused(refusal: &Refusal) -> Response {
    match refusal {
        Refusal::Unknown => {
            let mut response = refuse(
                401,
                "a token is needed, as the password: `hutong token create APP` makes one",
            );
            let challenge = HeaderValue::from_static("Basic realm=\"hutong\", charset=\"UTF-8\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            response
        }
        Refusal::Forbidden(why) => refuse(403, why),
        Refusal::Later => refuse(503, "please try again"),
    }
}

async fn serve(
    control: Arc<Control>,
    repo: &str,
    what: &str,
    service: Service,
    request: Request,
) -> Response {
    let name = repo.strip_suffix(".git").unwrap_or(repo);
    // Whether there is such an app, only its tokens tell.
    let Ok(app) = AppName::new(name) else {
        return refused(&Refusal::Unknown);
    };
    let headers = request.headers();
    let token = match check_token(&control, headers, app.as_str(), service.scope()) {
        Ok(token) => token,
        Err(refusal) => return refused(&refusal),
    };
    if let Err(response) = may(&control, &app, service) {
        return *response;
    }
    let (turns, places) = match (service, what) {
        (_, "info/refs") => (&LISTS, None),
        (Service::Receive, _) => (&PUSHES, Some(&control.git.receiving)),
        (Service::Upload, _) => (&FETCHES, Some(&control.git.sending)),
    };
    let later = || refuse(503, "too many are at it at once; please try again");
    let place = match places.map(|places| places.take(app.as_str(), MOST)) {
        Some(None) => return later(),
        Some(place) => place,
        None => None,
    };
    let Ok(turn) = turns.try_acquire() else {
        return later();
    };
    let turn = (turn, place);
    let repo = Repo::of(&control, &app);
    let ours = control.clone();
    let made = tokio::task::spawn_blocking(move || {
        let made = repo.make(&ours).map_err(|error| (500, error.to_string()));
        let room = || repo.check_room(&ours).map_err(|why| (413, why));
        made.and_then(|()| match service {
            Service::Receive => room(),
            Service::Upload => Ok(()),
        })
        .map(|()| repo)
    });
    let repo = match made.await {
        Ok(Ok(repo)) => repo,
        Ok(Err((status, why))) => return refuse(status, &why),
        Err(error) => return refuse(500, &error.to_string()),
    };
    let push = match (service, what) {
        (Service::Receive, "git-receive-pack") => match control.git.begin(&app, token.id) {
            Ok(push) => Some(push),
            Err(error) => return refuse(500, &error),
        },
        _ => None,
    };
    let asked = Asked {
        path: format!("/{app}.git/{what}"),
        repo,
        token,
        push,
    };
    answer(control, asked, request, turn).await
}

/// What stands against it, beside the token.
fn may(control: &Control, app: &AppName, service: Service) -> Result<(), Box<Response>> {
    let found = control.store.app(app.as_str());
    let isolated = found.is_ok_and(|found| found.is_some_and(|found| found.isolated));
    if isolated {
        return Err(Box::new(refuse(403, &format!("{app} is isolated"))));
    }
    if service == Service::Receive
        && let Err(low) = control.has_disk()
    {
        return Err(Box::new(refuse(507, &low)));
    }
    Ok(())
}

struct Asked {
    /// Below the folder of all repositories.
    path: String,
    repo: Repo,
    token: Token,
    push: Option<Arc<Push>>,
}

/// The end of a push, however it comes.
struct Ends(Arc<Control>, Option<Arc<Push>>);

impl Drop for Ends {
    fn drop(&mut self) {
        if let Some(push) = &self.1 {
            self.0.git.end(push);
        }
    }
}

async fn answer(
    control: Arc<Control>,
    asked: Asked,
    request: Request,
    turn: (tokio::sync::SemaphorePermit<'static>, Option<Place>),
) -> Response {
    let ends = Ends(control.clone(), asked.push.clone());
    let mut child = match start(&control, &asked, &request) {
        Ok(child) => child,
        Err(error) => return refuse(500, &format!("git cannot be started: {error}")),
    };
    let pid = child.id();
    let most = control.settings.upload_bytes;
    tokio::spawn(feed(child.stdin.take(), request.into_body(), most));
    let complaints = tokio::spawn(complaints(child.stderr.take()));
    let Some(mut output) = child.stdout.take() else {
        return refuse(500, "git has no output");
    };
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(8);
    let (head_sender, head) = tokio::sync::oneshot::channel();
    // To the end, also when the visitor leaves: what has begun to be deployed moves its branch, too.
    tokio::spawn(async move {
        let _turn = turn;
        // The visitor hears the end when all is done.
        let open = sender.clone();
        let work = relay(&mut child, &mut output, head_sender, sender);
        let in_time = tokio::time::timeout(PATIENCE, work).await.is_ok();
        if let Some(pid) = pid.filter(|_| !in_time) {
            run::kill_group(pid);
        }
        let status = child.wait().await;
        if let Some(push) = asked.push.clone() {
            let (repo, ours) = (asked.repo.folder.clone(), control.clone());
            let finish = move || {
                let repo = Repo { folder: repo };
                preview::finish(&ours, &repo, push.app.as_str(), &push.id);
            };
            let _ = tokio::task::spawn_blocking(finish).await;
        }
        drop(ends);
        drop(open);
        if !status.is_ok_and(|status| status.success()) {
            let folder = asked.repo.folder.clone();
            drop(tokio::task::spawn_blocking(move || {
                repo::tidy_soon(&folder)
            }));
            let said = complaints.await.unwrap_or_default();
            tracing::warn!("git for {}: {}", asked.path, super::plain(&said));
        }
    });
    let Ok((status, fields)) = head.await else {
        return refuse(500, "git does not answer; is it installed on the server?");
    };
    let body = async_stream::stream! {
        while let Some(chunk) = receiver.recv().await {
            yield Ok::<Bytes, std::io::Error>(chunk);
        }
    };
    let mut response = Response::new(Body::from_stream(body));
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}

fn start(control: &Control, asked: &Asked, request: &Request) -> std::io::Result<Child> {
    let headers = request.headers();
    let text = |name: &HeaderName| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let mut command = run::command(control, &asked.repo, &["http-backend"]);
    command
        .env("GIT_PROJECT_ROOT", repo::root(control))
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GATEWAY_INTERFACE", "CGI/1.1")
        .env("REQUEST_METHOD", request.method().as_str())
        .env("PATH_INFO", &asked.path)
        .env("QUERY_STRING", request.uri().query().unwrap_or_default())
        .env("CONTENT_TYPE", text(&CONTENT_TYPE))
        .env("HTTP_CONTENT_ENCODING", text(&CONTENT_ENCODING))
        .env("REMOTE_USER", &asked.token.name)
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped());
    let length = text(&CONTENT_LENGTH);
    if !length.is_empty() {
        command.env("CONTENT_LENGTH", length);
    }
    let protocol = text(&HeaderName::from_static("git-protocol"));
    let is_plain = |c: u8| c.is_ascii_alphanumeric() || b"=:-_.".contains(&c);
    if !protocol.is_empty() && protocol.len() < 100 && protocol.bytes().all(is_plain) {
        command.env("GIT_PROTOCOL", protocol);
    }
    if let Some(push) = &asked.push {
        command
            .env(hook::PUSH_VARIABLE, &push.id)
            .env(hook::SOCKET_VARIABLE, hook::socket(control));
    }
    tokio::process::Command::from(command).spawn()
}

/// Gives git the body. What it does not take any more is read all the same, within bounds: a client hears no answer
/// before it has sent everything.
async fn feed(stdin: Option<tokio::process::ChildStdin>, body: Body, most: u64) {
    let mut stdin = stdin;
    let mut stream = body.into_data_stream();
    let mut unused = 0;
    while let Some(Ok(chunk)) = stream.next().await {
        if let Some(open) = &mut stdin
            && open.write_all(&chunk).await.is_ok()
        {
            continue;
        }
        stdin = None;
        unused += chunk.len() as u64;
        if unused > most {
            return;
        }
    }
}

async fn complaints(stderr: Option<tokio::process::ChildStderr>) -> String {
    let mut said = Vec::new();
    if let Some(mut stderr) = stderr {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
            if said.len() < 8 << 10 {
                said.extend_from_slice(&buffer[..count]);
            }
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// Passes on what git says, the head first.
async fn relay(
    child: &mut Child,
    output: &mut ChildStdout,
    head: tokio::sync::oneshot::Sender<(StatusCode, HeaderMap)>,
    body: tokio::sync::mpsc::Sender<Bytes>,
) {
    let mut input: Vec<u8> = Vec::with_capacity(CHUNK);
    let end = loop {
        if let Some(end) = end_of_head(&input) {
            break end;
        }
        let read = output.read_buf(&mut input).await;
        if !matches!(read, Ok(1..)) || input.len() > MAX_HEAD + CHUNK {
            return;
        }
    };
    let rest = Bytes::copy_from_slice(&input[end..]);
    let Some(parsed) = parse_head(&input[..end]) else {
        return;
    };
    let _ = head.send(parsed);
    let mut heard = rest.is_empty() || body.send(rest).await.is_ok();
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        match output.read_buf(&mut chunk).await {
            Ok(1..) => {}
            _ => break,
        }
        heard = heard && body.send(chunk.into()).await.is_ok();
    }
    // Its end before the visitor's: by then the branch has moved.
    let _ = child.wait().await;
}

/// Where the body begins (RFC 3875 §6.2; lines may end with LF alone).
fn end_of_head(input: &[u8]) -> Option<usize> {
    let find = |end: &[u8]| {
        let at = input.windows(end.len()).position(|w| w == end)?;
        Some(at + end.len())
    };
    match (find(b"\r\n\r\n"), find(b"\n\n")) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Status (RFC 3875 §6.3.3) and the fields that a client of git's has a use for.
fn parse_head(head: &[u8]) -> Option<(StatusCode, HeaderMap)> {
    let text = std::str::from_utf8(head).ok()?;
    let mut status = StatusCode::OK;
    let mut fields = HeaderMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            "status" => {
                let code = value.split(' ').next()?.parse().ok()?;
                status = StatusCode::from_u16(code).ok()?;
            }
            "content-type" | "cache-control" | "expires" | "pragma" => {
                let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
                fields.insert(name, HeaderValue::from_str(value).ok()?);
            }
            _ => {}
        }
    }
    Some((status, fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_an_answer() {
        let text = b"Status: 404 Not Found\r\nContent-Type: text/plain\r\nX-Evil: 1\r\n\r\nbody";
        let end = end_of_head(text).expect("an end");
        assert_eq!(&text[end..], b"body");
        let (status, fields) = parse_head(&text[..end]).expect("good");
        assert_eq!((status.as_u16(), fields.len()), (404, 1));
        assert_eq!(end_of_head(b"A: b\n\nx\r\n\r\n"), Some(6));
        assert_eq!(end_of_head(b"A: b\r\n"), None);
        assert!(parse_head(b"no field\n\n").is_none());
        assert!(parse_head(b"Status: x\n\n").is_none());
        let (status, _) = parse_head(b"Expires: 0\n\n").expect("good");
        assert_eq!(status, StatusCode::OK);
    }
}
