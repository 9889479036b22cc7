//! A request, stage by stage. The order: sanity (nothing may look at what it refuses) → host and path
//! (decides whose limits hold) → hold or balance → forward or file → access record (sees all the rest).

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hutong_ipc::gateway::Serve;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{ACCEPT, CONNECTION, HeaderMap, HeaderValue, REFERER, USER_AGENT};
use hyper::{Request, Response, StatusCode};

use crate::access::{Entry, Log};
use crate::files::FileStream;
use crate::pages::Page;
use crate::proxy::{self, Upstreams};
use crate::sanity::{self, Wanted};
use crate::table::{App, Table};
use crate::target::InFlight;
use crate::{Shared, balance, files};

/// How many requests of one app wait at once; the next one is told to come back.
const MAX_HELD: usize = 4096;
/// How long a request waits for an app whose instances all just went away.
const GRACE: Duration = Duration::from_secs(3);

/// How often a waiting request looks again by itself.
const LOOK: Duration = Duration::from_millis(100);

/// One worker's own things.
pub struct Worker {
    pub shared: Arc<Shared>,
    pub upstreams: Upstreams,
    pub log: Log,
}

/// Answers one request; never fails, because every failure is an answer.
pub async fn handle(
    worker: Rc<Worker>,
    visitor: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    let mut entry = entry(visitor, &request);
    // Of its headers an error page needs one only.
    let mut accept = HeaderMap::new();
    if let Some(value) = request.headers().get(ACCEPT) {
        accept.insert(ACCEPT, value.clone());
    }
    let result = match sanity::check(&request) {
        Ok(wanted) => route(&worker, request, &wanted, &mut entry).await,
        Err(reason) => Err(Page {
            close: true,
            ..Page::new(StatusCode::BAD_REQUEST, reason)
        }),
    };
    let answer = result.unwrap_or_else(|page| Answer::plain(page.render(&accept)));
    let mut response = answer.recorded(entry, &worker.log);
    let closing = worker.shared.closing.load(Ordering::Relaxed);
    if closing && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    Ok(response)
}

fn entry(visitor: IpAddr, request: &Request<Incoming>) -> Entry {
    let text = |name| {
        let value = request.headers().get(name);
        value.map_or_else(String::new, |v| {
            String::from_utf8_lossy(v.as_bytes()).into_owned()
        })
    };
    Entry {
        app: String::new(),
        host: text(hyper::header::HOST),
        method: request.method().to_string(),
        path: request
            .uri()
            .path_and_query()
            .map_or_else(|| request.uri().path().to_owned(), ToString::to_string),
        visitor,
        agent: text(USER_AGENT),
        referer: text(REFERER),
        began: Instant::now(),
        instance: String::new(),
        status: 0,
        bytes: 0,
    }
}

async fn route(
    worker: &Rc<Worker>,
    request: Request<Incoming>,
    wanted: &Wanted,
    entry: &mut Entry,
) -> Result<Answer, Page> {
    let mut job = proxy::Job::new(request, wanted, entry.visitor);
    let (mut wait, mut grace) = (Wait::default(), Wait::default());
    loop {
        let table = worker.shared.table.load_full();
        let Some(found) = table.find(&wanted.host, &wanted.path) else {
            return Err(Page::new(
                StatusCode::NOT_FOUND,
                format!("No app answers for {}.", wanted.host),
            ));
        };
        let app = &found.app;
        entry.app.clone_from(&app.name);
        match &app.serve {
            Serve::Static { index, spa, .. } => {
                let root = app.root.as_ref().ok_or_else(|| bad_gateway("no files"))?;
                let path = &wanted.path[found.strip..];
                let fallback = if *spa { Some("index.html") } else { None };
                return files::serve(root, path, job.head(), index.as_deref(), fallback).await;
            }
            Serve::Down {
                reason,
                retry_after_s,
            } => return Err(Page::unavailable(capital(reason), *retry_after_s)),
            Serve::Targets => {
                if let Some(answer) =
                    attempt(worker, &table, app, found.strip, &mut job, entry).await?
                {
                    return Ok(answer);
                }
                grace.next(worker, app, GRACE.min(app.hold_timeout)).await?;
            }
            Serve::Hold => wait.next(worker, app, app.hold_timeout).await?,
        }
    }
}

/// Tries the app's targets; `None` when none can serve now.
async fn attempt(
    worker: &Rc<Worker>,
    table: &Table,
    app: &Arc<App>,
    strip: usize,
    job: &mut proxy::Job,
    entry: &mut Entry,
) -> Result<Option<Answer>, Page> {
    let mut tried = Vec::new();
    while let Some(taken) = balance::take(&worker.shared, app, table.version, &tried) {
        entry.instance.clone_from(&taken.target.instance);
        tried.push(taken.target.clone());
        match proxy::forward(worker, app, strip, taken, job).await {
            Ok(answer) => return Ok(Some(answer)),
            Err(proxy::Failure::NothingSent) => {}
            Err(proxy::Failure::Final(page)) => return Err(page),
        }
    }
    Ok(None)
}

/// A request that waits for another table, once subscribed, with a deadline.
#[derive(Default)]
struct Wait {
    version: Option<tokio::sync::watch::Receiver<u64>>,
    since: Option<Instant>,
}

impl Wait {
    async fn next(&mut self, worker: &Worker, app: &App, patience: Duration) -> Result<(), Page> {
        let Some(version) = &mut self.version else {
            // Subscribe, then look once more: no change can be missed.
            self.version = Some(worker.shared.version.subscribe());
            self.since = Some(Instant::now());
            return Ok(());
        };
        let busy = || Page::unavailable("The app is starting. Please try again in a moment.", 5);
        if app.held.fetch_add(1, Ordering::Relaxed) >= MAX_HELD {
            app.held.fetch_sub(1, Ordering::Relaxed);
            return Err(busy());
        }
        let _held = Held(app);
        let waited = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        let left = patience.saturating_sub(waited);
        if left.is_zero() {
            return Err(busy());
        }
        // Not only a new table helps: a target that refused once may take the next connection.
        let _ = tokio::time::timeout(left.min(LOOK), version.changed()).await;
        Ok(())
    }
}

struct Held<'a>(&'a App);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

pub fn bad_gateway(detail: &str) -> Page {
    Page::new(StatusCode::BAD_GATEWAY, detail)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string());
    format!("{}{}.", first.unwrap_or_default(), letters.as_str())
}

/// An answer before it has its access record.
pub struct Answer {
    pub response: Response<Reply>,
    pub in_flight: Option<InFlight>,
    /// The connection goes back to its pool once the body is through.
    pub reuse: Option<proxy::Reuse>,
    /// An upgrade writes its own record at its end.
    pub upgrade: Option<Box<dyn FnOnce(Entry, Log)>>,
}

impl Answer {
    pub fn plain(response: Response<Reply>) -> Self {
        Answer {
            response,
            in_flight: None,
            reuse: None,
            upgrade: None,
        }
    }

    fn recorded(self, mut entry: Entry, log: &Log) -> Response<Reply> {
        entry.status = self.response.status().as_u16();
        if let Some(upgrade) = self.upgrade {
            upgrade(entry, log.clone());
            return self.response;
        }
        self.response.map(|mut reply| {
            reply.finish = Some(Finish {
                entry,
                log: log.clone(),
                _in_flight: self.in_flight,
                reuse: self.reuse,
            });
            reply
        })
    }
}

/// Every body that leaves: counts itself, and keeps what must end with it.
pub struct Reply {
    source: Source,
    finish: Option<Finish>,
}

enum Source {
    Full(Option<Bytes>),
    App(Incoming),
    File(FileStream),
}

struct Finish {
    entry: Entry,
    log: Log,
    _in_flight: Option<InFlight>,
    reuse: Option<proxy::Reuse>,
}

pub fn full(bytes: Bytes) -> Reply {
    Reply {
        source: Source::Full(Some(bytes).filter(|bytes| !bytes.is_empty())),
        finish: None,
    }
}

pub fn from_app(body: Incoming) -> Reply {
    Reply {
        source: Source::App(body),
        finish: None,
    }
}

pub fn from_file(stream: FileStream) -> Reply {
    Reply {
        source: Source::File(stream),
        finish: None,
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = match &mut self.source {
            Source::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Source::App(body) => Pin::new(body)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            Source::File(stream) => stream
                .poll(context)
                .map(|chunk| chunk.map(|chunk| chunk.map(Frame::data).map_err(Into::into))),
        };
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let (Some(data), Some(finish)) = (frame.data_ref(), &mut self.finish)
        {
            finish.entry.bytes += data.len() as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Full(bytes) => bytes.is_none(),
            Source::App(body) => body.is_end_stream(),
            Source::File(stream) => stream.left() == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Source::App(body) => body.size_hint(),
            Source::File(stream) => SizeHint::with_exact(stream.left()),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let Some(mut finish) = self.finish.take() else {
            return;
        };
        finish.log.add(&finish.entry);
        if let Some(reuse) = finish.reuse.take() {
            reuse.give_back();
        }
    }
}
