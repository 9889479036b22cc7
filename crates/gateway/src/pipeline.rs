//! A request, stage by stage. The order: sanity (`hutong_http`: nothing may look at what it refuses) → host
//! and path (decides whose limits hold) → hold or balance → forward or file → access record (sees all the
//! rest).

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hutong_http::fields::{Fields, Name};
use hutong_http::request::{Method, RequestHead};
use hutong_ipc::gateway::Serve;

use crate::access::{Log, Record};
use crate::pages::{Page, capital};
use crate::proxy::{self, Failure, Upstreams};
use crate::table::{App, Table};
use crate::visitor::{Answer, Download, Ended, Peer, Upload};
use crate::{Shared, balance, files, https};

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

impl Worker {
    /// No connection is to be used for another request.
    pub fn is_closing(&self) -> bool {
        self.shared.closing.load(Ordering::Relaxed)
    }
}

/// One request and both ways of its visitor.
pub struct Exchange<'a, 'b> {
    pub worker: &'a Rc<Worker>,
    pub peer: &'a Peer,
    pub head: &'a RequestHead,
    pub upload: &'a mut Upload<'b>,
    pub download: &'a mut Download<'b>,
    pub record: Record<'a>,
    /// Instances that ended while they had it.
    pub deaths: u32,
}

/// Why a request is not answered by an app.
pub enum Stop {
    Page(Page),
    Ended(Ended),
}

impl From<Page> for Stop {
    fn from(page: Page) -> Self {
        Stop::Page(page)
    }
}

impl From<Ended> for Stop {
    fn from(ended: Ended) -> Self {
        Stop::Ended(ended)
    }
}

/// Answers one request. An error: the connection (HTTP/1) or stream (HTTP/2) is of no more use.
pub async fn handle<'v>(
    worker: &Rc<Worker>,
    peer: &Peer,
    head: &RequestHead,
    upload: &mut Upload<'v>,
    download: &mut Download<'v>,
) -> Result<(), Ended> {
    let mut exchange = Exchange {
        worker,
        peer,
        head,
        upload,
        download,
        record: Record::new(&worker.log, peer, head),
        deaths: 0,
    };
    let result = match route(&mut exchange).await {
        Ok(()) => Ok(()),
        Err(stop) => exchange.stop(stop).await,
    };
    exchange.record.bytes = exchange.download.sent();
    result
}

/// Answers what is no sound request.
pub async fn refuse(worker: &Rc<Worker>, peer: &Peer, page: &Page, download: &mut Download<'_>) {
    let head = RequestHead::default();
    let mut record = Record::new(&worker.log, peer, &head);
    record.status = page.status;
    let _ = download.answer(page.render(None), false).await;
    record.bytes = download.sent();
}

impl Exchange<'_, '_> {
    async fn stop(&mut self, stop: Stop) -> Result<(), Ended> {
        let page = match stop {
            Stop::Page(page) => page,
            Stop::Ended(Ended::Rejected(reject)) => Page::rejected(reject),
            Stop::Ended(Ended::Gone) => {
                if !self.download.has_begun() {
                    // As nginx says it: the visitor left.
                    self.record.status = 499;
                }
                self.download.abort();
                return Err(Ended::Gone);
            }
        };
        if self.download.has_begun() {
            self.download.abort();
            return Err(Ended::Gone);
        }
        if page.close {
            self.download.close();
        }
        let answer = page.render(self.head.fields.text(Name::Accept));
        self.answer(answer).await
    }

    async fn answer(&mut self, mut answer: Answer) -> Result<(), Ended> {
        self.record.status = answer.status;
        self.decorate(&mut answer.fields);
        let bodiless = self.head.method == Method::Head;
        self.download.answer(answer, bodiless).await
    }

    /// What every answer of the app says over TLS.
    fn decorate(&self, fields: &mut Fields) {
        let app = self.record.app.as_ref().filter(|_| self.peer.tls);
        if let Some(hsts) = app.and_then(|app| app.hsts.as_ref()) {
            https::say_hsts(fields, hsts);
        }
    }

    /// It may be sent again: nothing of it is gone, and asking twice does no harm.
    pub fn is_replayable(&self) -> bool {
        !self.upload.is_begun()
            && self.upload.is_over()
            && self.head.method.is_safe()
            && !self.head.websocket
    }
}

async fn route(exchange: &mut Exchange<'_, '_>) -> Result<(), Stop> {
    let (worker, head) = (exchange.worker, exchange.head);
    let (mut wait, mut grace) = (Wait::default(), Wait::default());
    loop {
        if let Some(answer) = https::challenge(&worker.shared, head) {
            return Ok(exchange.answer(answer).await?);
        }
        let table = worker.shared.table.load_full();
        let Some(found) = table.find(head.host(), head.path()) else {
            let detail = format!("No app answers for {}.", head.host());
            return Err(Page::new(404, detail).into());
        };
        let app = &found.app;
        exchange.record.app = Some(app.clone());
        let elsewhere = https::redirect(&worker.shared, &app.https, exchange.peer, head);
        if let Some(answer) = elsewhere {
            return Ok(exchange.answer(answer).await?);
        }
        match &app.serve {
            Serve::Static { index, spa, .. } => {
                let root = app.root.as_ref().ok_or_else(|| bad_gateway("no files"))?;
                let path = &head.path()[found.strip..];
                let fallback = if *spa { Some("index.html") } else { None };
                let answer = files::serve(root, path, head, index.as_deref(), fallback)?;
                return Ok(exchange.answer(answer).await?);
            }
            Serve::Down {
                reason,
                retry_after_s,
            } => return Err(Page::unavailable(capital(reason), *retry_after_s).into()),
            Serve::Targets => {
                if attempt(&table, app, found.strip, exchange).await? {
                    return Ok(());
                }
                let patience = GRACE.min(app.hold_timeout);
                grace.next(app, patience, exchange).await?;
            }
            Serve::Hold => wait.next(app, app.hold_timeout, exchange).await?,
        }
    }
}

/// Tries the app's targets; false when none can serve now.
async fn attempt(
    table: &Table,
    app: &Arc<App>,
    strip: usize,
    exchange: &mut Exchange<'_, '_>,
) -> Result<bool, Stop> {
    let mut tried = Vec::new();
    let shared = &exchange.worker.shared;
    while let Some(taken) = balance::take(shared, app, table.version, &tried) {
        exchange.record.target = Some(taken.target.clone());
        match proxy::forward(app, strip, &taken, exchange).await {
            Ok(()) => return Ok(true),
            Err(Failure::NothingSent) => tried.push(taken.target.clone()),
            Err(Failure::Stop(stop)) => return Err(stop),
        }
    }
    Ok(false)
}

/// A request that waits for another table, once subscribed, with a deadline.
#[derive(Default)]
struct Wait {
    version: Option<tokio::sync::watch::Receiver<u64>>,
    since: Option<Instant>,
}

impl Wait {
    async fn next(
        &mut self,
        app: &App,
        patience: Duration,
        exchange: &mut Exchange<'_, '_>,
    ) -> Result<(), Stop> {
        let Some(version) = &mut self.version else {
            // Subscribe, then look once more: no change can be missed.
            self.version = Some(exchange.worker.shared.version.subscribe());
            self.since = Some(Instant::now());
            return Ok(());
        };
        let busy = || Page::unavailable("The app is starting. Please try again in a moment.", 5);
        if app.held.fetch_add(1, Ordering::Relaxed) >= MAX_HELD {
            app.held.fetch_sub(1, Ordering::Relaxed);
            return Err(busy().into());
        }
        let _held = Held(app);
        let waited = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        let left = patience.saturating_sub(waited);
        if left.is_zero() {
            return Err(busy().into());
        }
        let may_leave = exchange.upload.is_over();
        tokio::select! {
            // Not only a new table helps: a target that refused once may take the next connection.
            _ = tokio::time::timeout(left.min(LOOK), version.changed()) => Ok(()),
            () = exchange.download.gone(), if may_leave => Err(Ended::Gone.into()),
        }
    }
}

struct Held<'a>(&'a App);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

pub fn bad_gateway(detail: &str) -> Page {
    Page::new(502, detail)
}
