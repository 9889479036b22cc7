//! Tags of other registries that apps follow (`[push] watch`): each registry is asked where a tag leads, at an interval or when
//! a webhook says so, and what is new is deployed by its digest. What was seen last is in the store, so what is taken back by
//! hand is not offered again; when to look next is only here.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::to_bytes;
use axum::extract::{Path, Request, State};
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use hutong_api::ImageWatch;
use hutong_core::spec::{self, AppSpec};
use hutong_core::units::show_time;
use hutong_runtime::processes::now_ms;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use super::remote::{self, Name, Trouble};
use crate::http::auth::{Refusal, check_token};
use crate::http::deploy::{self, News};
use crate::store::{Before, Goal, Release, Scope, Seen, StoreError};
use crate::{Control, controller, lock};

/// How often is looked for apps that watch.
const SCAN: Duration = Duration::from_secs(15);
/// Within so long an app is looked after for the first time; not all at once.
const FIRST: Duration = Duration::from_secs(10);
/// When something else has to end before.
const SOON: Duration = Duration::from_secs(5);
/// Between two looks, however often a webhook comes.
const GAP: Duration = Duration::from_secs(5);
/// Behind failures.
const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// What a registry may ask us to wait.
const MAX_LATER: Duration = Duration::from_secs(24 * 3600);
/// A look has so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// Looks at once.
static PLACES: Semaphore = Semaphore::const_new(4);
/// Of a webhook nothing is read for its sake: registries send what they like, and hear no answer before it is gone.
const MAX_BODY: usize = 256 << 10;
const BODY_TIME: Duration = Duration::from_secs(5);
static BODIES: Semaphore = Semaphore::const_new(8);
/// Of what a registry says.
const MAX_REASON: usize = 500;

/// What is known of all that watch; nothing of it outlives the process.
#[derive(Default)]
pub struct Watches {
    inner: Mutex<Inner>,
    wake: Notify,
}

#[derive(Default)]
struct Inner {
    by_app: HashMap<String, Watch>,
    /// Apps that a webhook came for.
    asked: HashSet<String>,
}

struct Watch {
    /// `NAME:TAG`.
    image: String,
    interval: Duration,
    next: Instant,
    /// The registry does not want to be asked before.
    not_before: Option<Instant>,
    looked: Option<Instant>,
    looked_ms: Option<u64>,
    failures: u32,
    /// Since when (milliseconds since 1970), and why.
    failing: Option<(u64, String)>,
    /// Somebody looks.
    is_busy: bool,
    /// A webhook came.
    is_asked: bool,
}

impl Watch {
    fn new(image: &str, interval: Duration, next: Instant) -> Self {
        Watch {
            image: image.to_owned(),
            interval,
            next,
            not_before: None,
            looked: None,
            looked_ms: None,
            failures: 0,
            failing: None,
            is_busy: false,
            is_asked: false,
        }
    }

    /// When it is to be looked at.
    fn due(&self, now: Instant) -> Instant {
        let due = match (self.is_asked, self.looked) {
            (false, _) => self.next,
            (true, None) => now,
            (true, Some(looked)) => looked + GAP,
        };
        self.not_before
            .map_or(due, |not_before| due.max(not_before))
    }

    /// Somebody looked. What is new of how it does, for people.
    fn end(&mut self, outcome: Outcome, now: Instant, chance: f64) -> Option<String> {
        self.is_busy = false;
        let trouble = match outcome {
            Outcome::Soon => {
                self.next = now + SOON;
                return None;
            }
            Outcome::Looked => None,
            Outcome::Failed(trouble) => Some(trouble),
        };
        (self.looked, self.looked_ms) = (Some(now), Some(now_ms()));
        let Some(Trouble { reason, later }) = trouble else {
            self.failures = 0;
            self.not_before = None;
            self.next = now + pause(self.interval, 0, chance);
            let ended = self.failing.take();
            return ended.map(|_| format!("{} can be looked at again", self.image));
        };
        self.failures = self.failures.saturating_add(1);
        let own = pause(self.interval, self.failures, chance);
        let later = later.map(|later| later.min(MAX_LATER));
        self.not_before = later.map(|later| now + later);
        let wait = own.max(later.unwrap_or_default());
        self.next = now + wait;
        let reason: String = reason.chars().take(MAX_REASON).collect();
        match &mut self.failing {
            Some((_, why)) => {
                *why = reason;
                None
            }
            None => {
                let line = format!(
                    "{} cannot be watched: {reason}; the next try is in {}",
                    self.image,
                    show_time(wait)
                );
                self.failing = Some((now_ms(), reason));
                Some(line)
            }
        }
    }
}

/// How a look came out.
#[derive(Debug)]
enum Outcome {
    /// It was not decided anything: something else goes before, or came between.
    Soon,
    Looked,
    Failed(Trouble),
}

fn failed(reason: impl ToString) -> Outcome {
    Outcome::Failed(Trouble {
        reason: reason.to_string(),
        later: None,
    })
}

/// How long until the next look: the interval, and twice as long after each failure; up to a fifth less, so that not all
/// come at once. `chance` is 0 to 1.
fn pause(interval: Duration, failures: u32, chance: f64) -> Duration {
    let longer = interval.saturating_mul(1 << failures.min(16));
    longer
        .min(LONGEST.max(interval))
        .mul_f64(0.8 + chance.clamp(0.0, 1.0) / 5.0)
}

fn chance() -> f64 {
    let mut random = [0; 4];
    // Without it they come at once, and that is all.
    let _ = getrandom::fill(&mut random);
    f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX)
}

/// What an app follows, and how it stands.
#[derive(Clone, Debug)]
struct Followed {
    /// `NAME:TAG`.
    image: String,
    interval: Duration,
    /// The release that serves, or is about to.
    release: Release,
    /// The digest that its file is fixed to.
    pinned: Option<String>,
    is_under_way: bool,
    /// The app's last deployment.
    newest: u64,
    /// What the tag led to when it was last seen.
    seen: Option<Seen>,
}

impl Followed {
    /// What its owner deploys is let go on; what we deploy gives way to what is newer still.
    fn waits(&self) -> bool {
        let ours = match (&self.pinned, &self.seen) {
            (Some(pinned), Some(seen)) => *pinned == seen.digest,
            _ => false,
        };
        self.is_under_way && !ours
    }

    fn is_as(&self, other: &Self) -> bool {
        let of = |one: &Self| (one.image.clone(), one.newest, one.is_under_way);
        of(self) == of(other) && self.seen == other.seen
    }
}

fn followed(control: &Control, name: &str) -> Result<Option<Followed>, StoreError> {
    let store = &control.store;
    let Some(app) = store.app(name)? else {
        return Ok(None);
    };
    if app.goal != Goal::Running || app.isolated {
        return Ok(None);
    }
    let under_way = store.under_way(name)?;
    let (is_under_way, id) = match under_way {
        Some(deployment) => (true, Some(deployment.id)),
        None => (false, app.active),
    };
    let version = match controller::version_of(control, id) {
        // The controller says so.
        Err(StoreError::Spec { .. }) => None,
        other => other?,
    };
    let Some((_, release, spec)) = version else {
        return Ok(None);
    };
    let (Some(interval), Some(image)) = (spec.watch, &spec.image) else {
        return Ok(None);
    };
    let Some(tagged) = image.tagged() else {
        return Ok(None);
    };
    let seen = store.seen(name)?.filter(|seen| seen.image == tagged);
    Ok(Some(Followed {
        image: tagged.to_owned(),
        interval,
        pinned: image.digest().map(str::to_owned),
        release,
        is_under_way,
        newest: store.newest(name)?.map_or(0, |newest| newest.id),
        seen,
    }))
}

/// Looks, as long as the process lives.
pub async fn run(control: Arc<Control>) {
    loop {
        let pause = round(&control).unwrap_or_else(|error| {
            tracing::warn!("other registries are not looked at: {error}");
            SCAN
        });
        let _ = timeout(pause, control.images.watch.wake.notified()).await;
    }
}

/// Begins what is due; how long until there may be more.
fn round(control: &Arc<Control>) -> Result<Duration, StoreError> {
    let mut wanted = Vec::new();
    for app in control.store.may_watch()? {
        if let Some(found) = followed(control, &app)? {
            wanted.push((app, found.image, found.interval));
        }
    }
    let now = Instant::now();
    let mut next = now + SCAN;
    let mut inner = lock(&control.images.watch.inner);
    let Inner { by_app, asked } = &mut *inner;
    let named: HashSet<&str> = wanted.iter().map(|(app, ..)| app.as_str()).collect();
    // Whoever looks now is not joined by another if the app is back before the end.
    by_app.retain(|app, watch| watch.is_busy || named.contains(app.as_str()));
    for (app, image, interval) in &wanted {
        let first = || Watch::new(image, *interval, now + FIRST.mul_f64(chance()));
        let watch = by_app.entry(app.clone()).or_insert_with(first);
        if watch.image != *image {
            *watch = first();
        }
        if watch.interval != *interval {
            watch.interval = *interval;
            watch.next = watch.next.min(now + *interval);
        }
        watch.is_asked |= asked.remove(app);
        if watch.is_busy {
            continue;
        }
        let due = watch.due(now);
        if due > now {
            next = next.min(due);
            continue;
        }
        watch.is_busy = true;
        watch.is_asked = false;
        tokio::spawn(look(control.clone(), app.clone(), image.clone()));
    }
    // They follow nothing any more.
    asked.clear();
    // Never without a pause: clocks have grains.
    Ok(next
        .saturating_duration_since(now)
        .max(Duration::from_millis(50)))
}

async fn look(control: Arc<Control>, app: String, image: String) {
    let (ours, of) = (control.clone(), app.clone());
    // A task of its own: if it panics, the app is looked after all the same.
    let work = tokio::spawn(async move {
        let Ok(_place) = PLACES.acquire().await else {
            return Outcome::Soon;
        };
        let found = timeout(PATIENCE, find(&ours, &of)).await;
        found.unwrap_or_else(|_| failed("its registry is too slow"))
    });
    let outcome = work.await.unwrap_or_else(failed);
    let line = {
        let mut inner = lock(&control.images.watch.inner);
        let watch = inner.by_app.get_mut(&app);
        let watch = watch.filter(|watch| watch.image == image);
        watch.and_then(|watch| watch.end(outcome, Instant::now(), chance()))
    };
    if let Some(line) = line {
        control.logs.note(&app, "", &line);
    }
    control.images.watch.wake.notify_one();
}

async fn find(control: &Arc<Control>, app: &str) -> Outcome {
    let before = match followed(control, app) {
        Ok(Some(before)) if !before.waits() => before,
        Ok(_) => return Outcome::Soon,
        Err(error) => return failed(error),
    };
    match remote::look(control, &before.image).await {
        Ok(digest) => act(control, app, &before, &digest.to_string()),
        Err(trouble) => Outcome::Failed(trouble),
    }
}

/// A tag leads to `digest`; `before` is how the app was before the registry was asked.
fn act(control: &Arc<Control>, app: &str, before: &Followed, digest: &str) -> Outcome {
    match followed(control, app) {
        Ok(Some(now)) if now.is_as(before) => {}
        // What was deployed meanwhile may be newer than what we saw.
        Ok(_) => return Outcome::Soon,
        Err(error) => return failed(error),
    }
    let seen = Seen {
        image: before.image.clone(),
        digest: digest.to_owned(),
    };
    let known = match &before.seen {
        Some(known) if known.digest == digest => return Outcome::Looked,
        Some(known) if !is_known(before, digest) => known.clone(),
        // From here on it is watched; or its owner was faster.
        _ => {
            return match control.store.note_seen(app, &seen) {
                Ok(()) => Outcome::Looked,
                Err(error) => failed(error),
            };
        }
    };
    let text = match pinned(&before.release.spec, &before.image, digest) {
        Ok(text) => text,
        Err(why) => return failed(why),
    };
    let news = News {
        before: Before {
            newest: before.newest,
            seen: known,
        },
        seen,
    };
    let begun = deploy::begin_seen(control, app, &before.release.digest, &text, &news);
    match begun {
        Ok(()) => {
            let said = format!("{} leads to {digest}, which is deployed", before.image);
            control.logs.note(app, "", &said);
            Outcome::Looked
        }
        Err(why) => match control.store.newest(app) {
            Ok(Some(newest)) if newest.id == before.newest => {
                let why = why.text();
                failed(format!(
                    "it leads to {digest}, which is not deployed: {why}"
                ))
            }
            _ => Outcome::Soon,
        },
    }
}

/// Whether this is what the release runs, as far as is known here.
fn is_known(followed: &Followed, digest: &str) -> bool {
    let built = super::of_release(&followed.release).map(|built| built.to_string());
    followed.pinned.as_deref() == Some(digest) || built.as_deref() == Some(digest)
}

/// The file of a release with its image fixed to a digest. The tag stays: it is what is followed.
fn pinned(text: &str, image: &str, digest: &str) -> Result<String, String> {
    spec::with_image(text, &format!("{image}@{digest}"))
}

/// The digest that an engine knows an image by, in the repository of `image` (`NAME:TAG`); none if it is not the only one.
pub fn digest_of(image: &str, known: &[String]) -> Option<String> {
    let own = Name::parse(image).ok()?;
    let mut fitting = known.iter().filter(|one| {
        let name = Name::parse(one);
        name.is_ok_and(|name| (&name.host, &name.path) == (&own.host, &own.path))
    });
    let found = fitting.next().filter(|_| fitting.next().is_none())?;
    let (_, digest) = found.split_once('@')?;
    Some(digest.to_owned())
}

/// What `hutong status` says of it.
pub fn describe(control: &Control, app: &str, spec: &AppSpec) -> Option<ImageWatch> {
    let (interval, image) = (spec.watch?, spec.image.as_ref()?.tagged()?);
    let inner = lock(&control.images.watch.inner);
    let watch = inner.by_app.get(app).filter(|watch| watch.image == image);
    let failing = watch.and_then(|watch| watch.failing.clone());
    let (failing_since, problem) = failing.unzip();
    Some(ImageWatch {
        image: image.to_owned(),
        interval_ms: interval.as_millis() as u64,
        looked_at: watch.and_then(|watch| watch.looked_ms),
        failing_since,
        problem,
    })
}

/// `POST /hooks/APP/image`: whoever has a token of the app's that may push has it looked at at once. Nothing of what is sent
/// says where.
pub async fn receive(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let (status, text) = match take(&control, &name, &parts.headers) {
        Ok(image) => (StatusCode::ACCEPTED, format!("{image} is looked at")),
        Err((status, text)) => (status, text),
    };
    if status != StatusCode::UNAUTHORIZED
        && let Ok(_place) = BODIES.try_acquire()
    {
        let _ = timeout(BODY_TIME, to_bytes(body, MAX_BODY)).await;
    }
    let mut response = (status, format!("{text}\n")).into_response();
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Basic realm=\"hutong\", charset=\"UTF-8\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let again = HeaderValue::from_static("5");
        response.headers_mut().insert(RETRY_AFTER, again);
    }
    response
}

fn take(
    control: &Control,
    name: &str,
    headers: &HeaderMap,
) -> Result<String, (StatusCode, String)> {
    check_token(control, headers, name, Scope::Push).map_err(|refusal| match refusal {
        Refusal::Unknown => (
            StatusCode::UNAUTHORIZED,
            "a token of the app's is needed: `Authorization: Bearer TOKEN`, or as the password"
                .to_owned(),
        ),
        Refusal::Forbidden(why) => (StatusCode::FORBIDDEN, why),
        Refusal::Later => later(),
    })?;
    let found = followed(control, name).map_err(|error| {
        tracing::error!("{error}");
        later()
    })?;
    let found = found.ok_or_else(|| {
        let why = format!(
            "{name} does not run, or watches no image: `watch` in the table [push] of hutong.toml"
        );
        (StatusCode::CONFLICT, why)
    })?;
    lock(&control.images.watch.inner)
        .asked
        .insert(name.to_owned());
    control.images.watch.wake.notify_one();
    Ok(found.image)
}

fn later() -> (StatusCode, String) {
    (
        StatusCode::SERVICE_UNAVAILABLE,
        "please try again".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn trouble(later: Option<Duration>) -> Outcome {
        Outcome::Failed(Trouble {
            reason: "it is away".into(),
            later,
        })
    }

    #[test]
    fn pauses_grow_to_six_hours() {
        let minutes: Vec<u64> = (0..12)
            .map(|failures| pause(MINUTE, failures, 1.0).as_secs() / 60)
            .collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360, 360]);
        // Who is looked at less often than that, stays so.
        let week = Duration::from_secs(7 * 86_400);
        for failures in [0, 1, 40, u32::MAX] {
            assert_eq!(pause(week, failures, 1.0), week);
        }
        assert_eq!(pause(MINUTE, 0, 0.0), Duration::from_secs(48));
        assert!((0.0..=1.0).contains(&chance()));
    }

    #[test]
    fn trouble_is_said_once_and_its_end_too() {
        let start = Instant::now();
        let mut watch = Watch::new("x:1", MINUTE, start);
        assert_eq!(watch.end(Outcome::Looked, start, 1.0), None);
        assert_eq!(watch.due(start), start + MINUTE);
        let line = watch.end(trouble(None), start, 1.0).expect("it is said");
        assert!(
            line.contains("x:1") && line.contains("it is away") && line.contains("in 2m"),
            "{line}"
        );
        assert_eq!(watch.end(trouble(None), start, 1.0), None);
        assert_eq!(watch.due(start), start + 4 * MINUTE);
        // A webhook goes before.
        watch.is_asked = true;
        assert_eq!(watch.due(start), start + GAP);
        // But not before the registry wants to be asked.
        let later = Duration::from_secs(3600);
        assert_eq!(watch.end(trouble(Some(later)), start, 1.0), None);
        assert_eq!(watch.due(start), start + later);
        assert_eq!(watch.end(trouble(Some(100 * later)), start, 1.0), None);
        assert_eq!(watch.due(start), start + MAX_LATER);
        watch.is_asked = false;
        assert!(watch.end(Outcome::Looked, start, 1.0).is_some());
        assert_eq!(watch.due(start), start + MINUTE);
        assert!(watch.failing.is_none() && watch.failures == 0);
        // Nothing was decided.
        assert_eq!(watch.end(Outcome::Soon, start, 1.0), None);
        assert_eq!(watch.due(start), start + SOON);
    }

    #[test]
    fn a_file_keeps_its_tag() {
        let digest = format!("sha256:{}", "b".repeat(64));
        let text = "name = 'a'\nimage = 'ghcr.io/me/x:v1' # ours\n[push]\nwatch = '5m'\n";
        let once = pinned(text, "ghcr.io/me/x:v1", &digest).expect("good");
        assert!(once.contains(&format!("\"ghcr.io/me/x:v1@{digest}\" # ours")));
        let spec = spec::parse("t", &once).expect("good");
        let image = spec.image.expect("it has one");
        assert_eq!(image.tagged(), Some("ghcr.io/me/x:v1"));
        assert_eq!(image.digest(), Some(digest.as_str()));
        // And again, of what is fixed already.
        let other = format!("sha256:{}", "c".repeat(64));
        let again = pinned(&once, "ghcr.io/me/x:v1", &other).expect("good");
        assert!(again.contains(&other) && !again.contains(&digest));
    }

    #[test]
    fn engines_know_images_by_digests_of_several_repositories() {
        let known = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|one| (*one).to_owned()).collect();
            digest_of("nginx:1", &list)
        };
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let here = format!("nginx@sha256:{a}");
        let there = format!("ghcr.io/me/nginx@sha256:{b}");
        assert_eq!(known(&[&there, &here]), Some(format!("sha256:{a}")));
        assert_eq!(known(&[&there]), None);
        let twice = format!("docker.io/library/nginx@sha256:{b}");
        assert_eq!(known(&[&here, &twice]), None);
    }
}
