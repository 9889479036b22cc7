//! Webhooks: checked, answered at once, and dealt with behind that, one at a time for each app. Of several for the same
//! branch that come meanwhile, the last counts.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use hutong_core::name::AppName;
use hutong_core::preview::check_branch;
use hutong_runtime::processes::now_ms;
use tokio::sync::Semaphore;

use super::hook::Say;
use super::push::{By, EXPORTS, Wanted, is_production, production, serving};
use super::repo::Repo;
use super::vendors::{Event, Rejected, Vendor};
use super::{fetch, plain, preview};
use crate::store::{Accepted, Waiting as Hook};
use crate::{Control, lock};

/// Of one webhook, in bytes: GitHub sends no more than 25 MB, and of a push far less.
const MAX_BODY: usize = 8 << 20;
/// Bodies that are held in memory at once, and of one app.
static BODIES: Semaphore = Semaphore::const_new(4);
const MOST_BODIES: usize = 2;
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Branches of an app that wait.
const MAX_WAITING: usize = 50;

/// By app: branches that wait. An app that is here has a task at work.
#[derive(Default)]
pub struct Waiting(Mutex<HashMap<String, BTreeMap<String, Hook>>>);

fn say(status: u16, text: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, format!("{text}\n")).into_response()
}

/// `POST /hooks/APP`.
pub async fn receive(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    match take(&control, &name, request).await {
        Ok(text) if text == ACCEPTED => say(202, text),
        Ok(text) => say(200, text),
        Err((status, text)) => say(status, &text),
    }
}

const ACCEPTED: &str = "accepted; `hutong source show` says what becomes of it";

async fn take(
    control: &Arc<Control>,
    name: &str,
    request: Request,
) -> Result<&'static str, (u16, String)> {
    let refused = || (403u16, "the signature is not this app's".to_owned());
    let failed = |error: crate::store::StoreError| {
        tracing::error!("{error}");
        (503u16, "please try again".to_owned())
    };
    let (parts, body) = request.into_parts();
    // Before anything that takes longer for one app than for another.
    let body = read(control, name, body).await?;
    // Whether there is such an app, only who can sign is told.
    let app = AppName::new(name).map_err(|_| refused())?;
    let source = control.store.source(app.as_str()).map_err(failed)?;
    let source = source.ok_or_else(refused)?;
    let secrets = control.store.source_secrets(app.as_str()).map_err(failed)?;
    let (secret, _) = secrets.ok_or_else(refused)?;
    let vendor = Vendor::parse(&source.vendor).ok_or_else(refused)?;
    vendor
        .check(&parts.headers, &body, &secret, now_ms())
        .map_err(|rejected| match rejected {
            Rejected::Old => (
                403,
                "its time is over an hour from this server's clock".to_owned(),
            ),
            _ => refused(),
        })?;
    let malformed = |rejected| match rejected {
        Rejected::Malformed(why) => (422, why),
        _ => refused(),
    };
    let (branch, gone) = match vendor.event(&parts.headers, &body).map_err(malformed)? {
        Event::Ping => return Ok("pong"),
        Event::Other => return Ok("nothing to do"),
        Event::Push(branch) => (branch, false),
        Event::Gone(branch) => (branch, true),
    };
    check_branch(&branch).map_err(|why| (422u16, why))?;
    let delivery = vendor.delivery(&parts.headers, &body);
    let hook = Hook {
        app: app.to_string(),
        branch,
        gone,
        delivery,
    };
    match control
        .store
        .accept_hook(&hook, MAX_WAITING)
        .map_err(failed)?
    {
        Accepted::New => {
            add(control, &app, hook);
            Ok(ACCEPTED)
        }
        Accepted::Known => Err((409, "this delivery was here before".into())),
        Accepted::Full => Err((503, "too many branches of this app wait already".into())),
    }
}

async fn read(control: &Control, app: &str, body: Body) -> Result<bytes::Bytes, (u16, String)> {
    let busy = || (503u16, "too many at once; please try again".to_owned());
    let _own = control.git.bodies.take(app, MOST_BODIES).ok_or_else(busy)?;
    let place = tokio::time::timeout(BODY_TIME, BODIES.acquire()).await;
    let _place = place.map_err(|_| busy())?.map_err(|_| busy())?;
    match tokio::time::timeout(BODY_TIME, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => Err((413, "the body is cut off, or over 8M".into())),
        Err(_) => Err((408, "the body took too long".into())),
    }
}

/// Has a branch dealt with. It is in the store, too.
fn add(control: &Arc<Control>, app: &AppName, hook: Hook) {
    let mut waiting = lock(&control.git.webhooks.0);
    let is_at_work = waiting.contains_key(app.as_str());
    let branches = waiting.entry(app.to_string()).or_default();
    branches.insert(hook.branch.clone(), hook);
    if !is_at_work {
        tokio::spawn(work(control.clone(), app.clone()));
    }
}

/// Webhooks that a control plane before us had accepted.
pub fn resume(control: &Arc<Control>) {
    let pending = control.store.hooks_waiting().unwrap_or_default();
    for hook in pending {
        if let Ok(app) = AppName::new(&hook.app) {
            add(control, &app, hook);
        }
    }
}

async fn work(control: Arc<Control>, app: AppName) {
    loop {
        let next = {
            let mut waiting = lock(&control.git.webhooks.0);
            let next = waiting.get_mut(app.as_str()).and_then(BTreeMap::pop_first);
            if next.is_none() {
                waiting.remove(app.as_str());
            }
            next
        };
        let Some((branch, hook)) = next else { return };
        let (ours, of, gone) = (control.clone(), app.clone(), hook.gone);
        let name = branch.clone();
        // A task of its own: if it panics, those behind it are dealt with all the same.
        let handled = tokio::spawn(async move { handle(&ours, &of, &name, gone).await });
        let handled = handled.await.unwrap_or_else(|error| Err(error.to_string()));
        let is_well = handled.is_ok();
        let (state, detail) = match handled {
            Ok((state, detail)) => (state, detail),
            Err(why) => ("failed", format!("{branch}: {why}")),
        };
        let detail = plain(&detail);
        let text = format!("webhook: {state}: {detail}");
        if state != "ignored" {
            control.logs.note(app.as_str(), "", &text);
        }
        let noted = control.store.note_source(app.as_str(), state, &detail);
        let over = control.store.handled_hook(&hook, is_well);
        for error in [noted.err(), over.err()].into_iter().flatten() {
            tracing::warn!("{error}");
        }
    }
}

/// How it came out, and in words.
async fn handle(
    control: &Arc<Control>,
    app: &AppName,
    branch: &str,
    gone: bool,
) -> Result<(&'static str, String), String> {
    let text = |error: crate::store::StoreError| error.to_string();
    let source = control.store.source(app.as_str()).map_err(text)?;
    let secrets = control.store.source_secrets(app.as_str()).map_err(text)?;
    let (Some(source), Some((_, token))) = (source, secrets) else {
        return Ok(("ignored", "the app has no source any more".into()));
    };
    let found = control.store.app(app.as_str()).map_err(text)?;
    if found.is_some_and(|found| found.isolated) {
        return Ok(("ignored", format!("{app} is isolated")));
    }
    let spec = serving(control, app);
    if gone {
        let removed = preview::remove(control, app.as_str(), branch)?;
        return Ok(match removed {
            Some(name) => ("done", format!("{branch} is gone, and the preview {name}")),
            None => ("ignored", format!("{branch} is gone, and had no preview")),
        });
    }
    let repo = Repo::of(control, app);
    // What the repository has beside it is not known: `main` is taken to be there if it was here before.
    let has_main = branch == "main" || repo.head("main").is_some() || repo.has_fetched("main");
    let is_production = is_production(spec.as_ref(), branch, has_main);
    if !is_production && spec.as_ref().is_none_or(|spec| spec.preview.is_none()) {
        return Ok(("ignored", format!("{branch} is not what is deployed")));
    }
    let ours = control.clone();
    let name = branch.to_owned();
    let by = By::Source(source.url.clone());
    let commit = {
        let _turn = EXPORTS.acquire().await.map_err(|error| error.to_string())?;
        let fetched = tokio::task::spawn_blocking(move || {
            fetch::fetch(&ours, &repo, &source, token.as_deref(), &name)
        });
        fetched.await.map_err(|error| error.to_string())??
    };
    let wanted = Wanted {
        app,
        branch,
        commit: &commit,
        old: None,
        number: control.git.number(),
        objects: None,
        by: &by,
    };
    let nobody = Say::nobody();
    let result = async {
        let exported = wanted.export(control, &nobody).await?;
        match is_production {
            true => production(control, &wanted, exported, &nobody).await,
            false => preview::deploy(control, &wanted, exported, spec.as_ref(), &nobody).await,
        }
    };
    let result = result.await;
    // No branch of ours moves by it.
    control.git.standing.end(wanted.number);
    result?;
    let short = commit.get(..10).unwrap_or_default();
    Ok(("done", format!("{branch} at {short} serves")))
}
