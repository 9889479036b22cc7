//! A request, stage by stage. The order: sanity (`hutong_http`: nothing may look at what it refuses) → host
//! and path (decides whose limits hold) → bans and addresses → limits (a banned visitor costs no token) → HTTPS → hold,
//! queue or balance → forward or file → access record (sees all the
//! rest).

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hutong_http::fields::{Fields, Name};
use hutong_http::request::{Method, RequestHead, Version};
use hutong_ipc::gateway::Serve;

use crate::access::{Log, Record};
use crate::activity::{Activity, UnderWay};
use crate::balance::Nothing;
use crate::limits::{Auth, Terms};
use crate::pages::{Page, capital};
use crate::proxy::{self, Failure, Upstreams};
use crate::queue::{Queue, Waiting};
use crate::table::{App, Match, Table};
use crate::trial::{Place, Side};
use crate::visitor::{Answer, Download, Ended, Peer, Upload};
use crate::{Shared, balance, date, files, https, limits};

/// How many requests of one app wait at once; the next one is told to come back.
const MAX_HELD: usize = 4096;
/// How long a request waits for an app whose instances all just went away.
const GRACE: Duration = Duration::from_secs(3);
/// How often a waiting request looks again by itself.
const LOOK: Duration = Duration::from_millis(100);
/// Whoever leaves sooner without an answer has clicked elsewhere; later it is the app that was waited for.
const CLICK: Duration = Duration::from_secs(1);

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
    pub head: &'b RequestHead,
    pub upload: &'a mut Upload<'b>,
    pub download: &'a mut Download<'b>,
    pub record: Record<'a>,
    /// Instances that ended while they had it.
    pub deaths: u32,
    pub extras: Extras,
    /// Who it is, where the app's owner wants a password.
    pub user: Option<String>,
    /// Its `Authorization` was meant for us.
    pub drops_password: bool,
    /// How long the app may take to begin its answer.
    pub patience: Duration,
    terms: Terms,
    /// Its visitor's place among all, where one was given for this request.
    place: Option<u16>,
    /// It keeps an app awake that may sleep.
    under_way: Option<UnderWay>,
}

/// What every answer of the app says besides its own.
#[derive(Default)]
pub struct Extras {
    hsts: Option<Arc<App>>,
    /// Leads the visitor to the same instance again.
    pub cookie: Option<String>,
    /// Leads the visitor to the same release again.
    place: Option<String>,
    left: Option<String>,
    /// A release is on trial: when the answer begins is of interest.
    listens: bool,
    heard: Cell<Option<Instant>>,
    /// The app ended in the middle of its answer.
    pub cut: Cell<bool>,
}

impl Extras {
    pub fn add_to(&self, fields: &mut Fields) {
        if let Some(hsts) = self.hsts.as_ref().and_then(|app| app.hsts.as_ref()) {
            https::say_hsts(fields, hsts);
        }
        for cookie in [&self.cookie, &self.place].into_iter().flatten() {
            fields.push(b"set-cookie", cookie.as_bytes());
        }
        if self.listens {
            self.heard.set(Some(Instant::now()));
        }
        if let Some(left) = &self.left {
            fields.push(b"ratelimit", left.as_bytes());
        }
    }
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
    head: &'v RequestHead,
    upload: &mut Upload<'v>,
    download: &mut Download<'v>,
) -> Result<(), Ended> {
    let behind = match &peer.link {
        // Another app's word about who asks counts for nothing.
        Some(_) => None,
        None => limits::behind(&worker.shared.trusted, peer, head),
    };
    let peer = behind.as_ref().unwrap_or(peer);
    let mut exchange = Exchange {
        worker,
        peer,
        head,
        upload,
        download,
        record: Record::new(&worker.log, peer, head),
        deaths: 0,
        extras: Extras::default(),
        user: None,
        drops_password: false,
        patience: GRACE,
        terms: Terms::default(),
        place: None,
        under_way: None,
    };
    let result = match route(&mut exchange).await {
        Ok(()) => Ok(()),
        Err(stop) => exchange.stop(stop).await,
    };
    exchange.record.bytes = exchange.download.sent();
    exchange.count();
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
        self.extras.add_to(&mut answer.fields);
        let bodiless = self.head.method == Method::Head;
        self.download.answer(answer, bodiless).await
    }

    /// A file; one behind a password is for nobody's shared cache (RFC 9111 §3.5), nor is one with a visitor's cookie.
    async fn answer_file(&mut self, mut answer: Answer) -> Result<(), Ended> {
        if self.user.is_some() || self.extras.place.is_some() {
            let said = answer.fields.text(Name::CacheControl).unwrap_or_default();
            let private = said.replacen("public", "private", 1);
            answer.fields.set(Name::CacheControl, private.as_bytes());
        }
        self.answer(answer).await
    }

    /// Lets the request in under the app's rules, or not.
    fn admit(&mut self, found: &Match) -> Result<(), Page> {
        let app = &found.app;
        self.record.app = Some(app.clone());
        self.record.stats = Some(found.stats.clone());
        self.extras.hsts = Some(app.clone()).filter(|_| self.peer.is_secure());
        let limits = &self.worker.shared.limits;
        self.terms = app.guard.admit(limits, self.peer, self.head)?;
        self.extras.left = self.terms.left.take();
        self.patience = self.terms.response_timeout.unwrap_or(app.response_timeout);
        if let Some(most) = self.terms.max_body {
            self.upload.bound(most);
        }
        // Cut off, an answer without a length looks whole to HTTP/1.0.
        let can = !self.head.websocket && self.head.version != Version::Http10;
        if app.guard.compress && can {
            self.download.compress_for = Some(&self.head.fields);
        }
        Ok(())
    }

    /// Asks who it is, where that is needed.
    async fn identify(&mut self, app: &App, auth: &Auth) -> Result<(), Stop> {
        self.user = None;
        self.drops_password = auth.is_for_us(self.head);
        if app.guard.is_open(self.head.path()) {
            return Ok(());
        }
        let may_leave = self.upload.is_over();
        let check = auth.check(&self.worker.shared.limits, self.peer, self.head);
        let user = tokio::select! {
            user = check => user?,
            () = self.download.gone(), if may_leave => return Err(Ended::Gone.into()),
        };
        self.user = Some(user);
        Ok(())
    }

    /// What the answer means for counters and bans.
    fn count(&mut self) {
        let took = self.record.took();
        let record = &self.record;
        if let Some(stats) = &record.stats {
            stats.note(record.status, record.bytes, took);
        }
        let Some(app) = record.app.as_ref().filter(|_| self.peer.link.is_none()) else {
            return;
        };
        if let Some(ban) = app.guard.note(self.peer.ip, record.status) {
            tracing::info!(
                app = app.name,
                "{} is let in no more: {}",
                ban.ip,
                ban.reason
            );
            let _ = self.worker.shared.banned.try_send((app.name.clone(), ban));
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
    let mut line = InLine::default();
    let mut version = None;
    loop {
        let link = exchange.peer.link.as_ref();
        if link.is_none()
            && let Some(answer) = https::challenge(&worker.shared, head)
        {
            return Ok(exchange.answer(answer).await?);
        }
        let table = worker.shared.table.load_full();
        let found = match link {
            Some(link) => match table.linked(link) {
                Ok(found) => found,
                Err(page) => {
                    // Nobody has agreed to the work that this is.
                    tokio::time::sleep(LOOK).await;
                    return Err(page.closing().into());
                }
            },
            None => table
                .find(head.host(), head.path())
                .ok_or_else(|| Page::new(404, format!("No app answers for {}.", head.host())))?,
        };
        // The name may lead to another app by now, which has rules of its own.
        let before = exchange.record.app.as_ref();
        if before.is_none_or(|app| app.name != found.app.name) {
            (line, version) = (InLine::default(), None);
            (exchange.user, exchange.under_way) = (None, None);
            exchange.drops_password = false;
            exchange.admit(&found)?;
        }
        let app = &found.app;
        exchange.record.app = Some(app.clone());
        let elsewhere = https::redirect(&worker.shared, &app.https, exchange.peer, head);
        if let Some(answer) = elsewhere.filter(|_| link.is_none()) {
            return Ok(exchange.answer(answer).await?);
        }
        if app.https.only && link.is_none() && !exchange.peer.is_secure() {
            let text = "This is served over HTTPS, and there is no certificate for it yet.";
            return Err(Page::unavailable(text, 60).into());
        }
        // Not before: a password is not asked for over a connection that is about to be another. Once for each table:
        // whoever waits may be let in no more.
        let asks = link.is_none() && version != Some(table.version);
        if let Some(auth) = app.guard.auth().filter(|_| asks) {
            version = Some(table.version);
            // Apart: what few requests need is not to make all of them larger.
            Box::pin(exchange.identify(app, auth)).await?;
        }
        if exchange.under_way.is_none() {
            exchange.under_way = app.activity.as_ref().map(Activity::begin);
        }
        match &app.serve {
            Serve::Static { index, spa, .. } => {
                let root = app.root.as_ref().ok_or_else(|| bad_gateway("no files"))?;
                let path = &head.path()[found.strip..];
                let fallback = if *spa { Some("index.html") } else { None };
                exchange.download.is_public = exchange.user.is_none();
                let answer = files::serve(root, path, head, index.as_deref(), fallback)?;
                return Ok(exchange.answer_file(answer).await?);
            }
            Serve::Down {
                reason,
                retry_after_s,
                until_ms,
            } => {
                let seconds = until_ms.map_or(*retry_after_s, seconds_until);
                return Err(Page::unavailable(capital(reason), seconds).into());
            }
            Serve::Targets => {
                let chosen = choose(app, exchange);
                if let Some(files) = app.files(chosen.map(|(side, _)| side))
                    && let Some(answer) = files::asset(files, &head.path()[found.strip..], head)
                {
                    return Ok(exchange.answer_file(answer).await?);
                }
                match attempt(&table, &found, chosen, &mut line, exchange).await? {
                    None => return Ok(()),
                    Some(Nothing::Busy) => line.next(app, exchange).await?,
                    Some(Nothing::Absent) => {
                        let patience = GRACE.min(app.hold_timeout);
                        grace.next(app, patience, exchange).await?;
                    }
                }
            }
            Serve::Hold => wait.next(app, app.hold_timeout, exchange).await?,
            // Nobody hears a gateway that was replaced; on another connection the visitor reaches the one that is heard.
            Serve::Asleep if worker.is_closing() => {
                let page = Page::unavailable("The app is asleep. Please try again.", 1);
                return Err(page.closing().into());
            }
            Serve::Asleep => {
                let activity = app.activity.as_ref();
                if activity.is_none_or(|activity| activity.is_to_be_told()) {
                    // If too many are wanted at once, it is told again in a moment.
                    let _ = worker.shared.wanted.try_send(app.name.clone());
                }
                wait.next(app, app.hold_timeout, exchange).await?;
            }
        }
    }
}

/// Tries the app's targets; `None` when the request was answered.
async fn attempt(
    table: &Table,
    found: &Match,
    chosen: Option<Chosen>,
    line: &mut InLine,
    exchange: &mut Exchange<'_, '_>,
) -> Result<Option<Nothing>, Stop> {
    let app = &found.app;
    if app.balance.max_requests > 0 && line.must_wait(&app.queue, exchange.terms.class) {
        return Ok(Some(Nothing::Busy));
    }
    let mut tried: Vec<Arc<crate::target::Target>> = Vec::new();
    let shared = &exchange.worker.shared;
    let side = chosen.map(|(side, _)| side);
    let place = chosen.and_then(|(_, place)| place);
    loop {
        let (peer, head) = (exchange.peer, exchange.head);
        let taken = match balance::take(shared, app, table.version, (&tried[..], side), peer, head)
        {
            Ok(taken) => taken,
            Err(nothing) => return Ok(Some(nothing)),
        };
        // It waits no more.
        line.place = None;
        let target = taken.in_flight.target.clone();
        exchange.record.target = Some(target.clone());
        exchange.extras.cookie = taken.cookie;
        exchange.download.go_on();
        // What its visitor chose himself says nothing.
        let tried_out = app.trial.as_ref().zip(place);
        let began = tried_out.map(|_| Instant::now());
        let answered = proxy::forward(app, found.strip, &target, exchange).await;
        let good = match &answered {
            Ok(()) => Some(exchange.record.status < 500),
            // The visitor's doing, which says nothing about the target.
            Err(Failure::Stop(Stop::Ended(_))) => None,
            Err(Failure::Stop(Stop::Page(page))) if page.status < 500 || page.status == 501 => None,
            Err(_) => Some(false),
        };
        if app.balance.eject && good.is_some_and(|good| target.record.note(good)) {
            let instance = &target.instance;
            tracing::info!(
                app = app.name,
                "{instance} fails often and gets nothing for a while"
            );
        }
        if let (Some((trial, place)), Some(began)) = (tried_out, began) {
            let extras = &exchange.extras;
            let took = extras.heard.take().map(|heard| heard - began);
            let has_left = matches!(answered, Err(Failure::Stop(Stop::Ended(Ended::Gone))));
            let outcome = match has_left {
                // An answer that the app cut off looks like a visitor who left.
                _ if extras.cut.take() => Some((false, took)),
                // Whoever was still sending waited for nothing.
                true if took.is_none() && !exchange.upload.is_over() => None,
                true => left(took, exchange.record.status, began.elapsed()),
                false => good.map(|good| (good, took)),
            };
            if let Some((good, took)) = outcome {
                trial.note(place, target.deployment, good, took);
            }
        }
        drop(taken.in_flight);
        app.retries.note_sent();
        match answered {
            Ok(()) => return Ok(None),
            Err(Failure::NothingSent) => tried.push(target),
            Err(Failure::Stop(stop)) => return Err(stop),
        }
    }
}

/// What a visitor who left got meanwhile, and after how long: good or bad, or nothing that could be told.
fn left(
    heard: Option<Duration>,
    status: u16,
    stayed: Duration,
) -> Option<(bool, Option<Duration>)> {
    match heard {
        Some(took) => Some((status < 500, Some(took))),
        None => (stayed >= CLICK).then_some((false, Some(stayed))),
    }
}

/// A release, and the place that it was chosen for.
type Chosen = (Side, Option<Place>);

/// Which release the visitor gets, if one is on trial.
fn choose(app: &App, exchange: &mut Exchange<'_, '_>) -> Option<Chosen> {
    let trial = app.trial.as_ref();
    exchange.extras.listens = trial.is_some();
    let (peer, head) = (exchange.peer, exchange.head);
    let chosen = trial.map(|trial| trial.choose(peer, head, &mut exchange.place));
    let (side, cookie) = chosen.map_or((None, None), |one| {
        (Some((one.side, one.place)), one.cookie)
    });
    exchange.extras.place = cookie;
    side
}

/// A request that waits for a place at a target.
#[derive(Default)]
struct InLine {
    place: Option<Waiting>,
    since: Option<Instant>,
}

impl InLine {
    /// Whoever comes later, or matters less, does not push in front.
    fn must_wait(&self, queue: &Queue, class: hutong_ipc::gateway::Class) -> bool {
        match &self.place {
            Some(place) => !place.is_first(),
            None => queue.is_wanted(class),
        }
    }

    async fn next(&mut self, app: &App, exchange: &mut Exchange<'_, '_>) -> Result<(), Stop> {
        let busy = || {
            Page::unavailable(
                "The app has too much to do. Please try again in a moment.",
                1,
            )
        };
        let class = exchange.terms.class;
        if self.place.is_none() {
            let place = app.queue.enter(class, app.balance.queue as usize);
            self.place = Some(place.ok_or_else(busy)?);
            // Once more before it waits: a place may have become free meanwhile.
            return Ok(());
        }
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        let left = Duration::from_millis(app.balance.queue_timeout_ms).saturating_sub(waited);
        let Some(place) = &self.place else {
            return Ok(());
        };
        if left.is_zero() {
            return Err(busy().into());
        }
        let may_leave = exchange.upload.is_over();
        tokio::select! {
            () = place.turn() => Ok(()),
            () = tokio::time::sleep(left.min(LOOK)) => Ok(()),
            () = exchange.download.gone(), if may_leave => Err(Ended::Gone.into()),
        }
    }
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

/// How long it is to a time in milliseconds since 1970.
fn seconds_until(ms: u64) -> u32 {
    let left = ms.div_ceil(1000).saturating_sub(date::second());
    u32::try_from(left).unwrap_or(u32::MAX).max(1)
}

pub fn bad_gateway(detail: &str) -> Page {
    Page::new(502, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_leaves_soon_says_nothing_and_whoever_waited_does() {
        let ms = Duration::from_millis;
        assert_eq!(left(None, 0, ms(999)), None);
        assert_eq!(left(None, 0, ms(1000)), Some((false, Some(ms(1000)))));
        assert_eq!(left(Some(ms(5)), 200, ms(9000)), Some((true, Some(ms(5)))));
        assert_eq!(left(Some(ms(5)), 502, ms(10)), Some((false, Some(ms(5)))));
    }
}
