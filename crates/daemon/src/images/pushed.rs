//! Images that are pushed to this server: who may, and what follows. A repository belongs to the app of its first part
//! (`shop`, `shop/worker`); the app's tokens say who may push to it and pull from it.

use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hutong_core::spec::{self, AppSpec, LOCAL_REGISTRY, tag_fits};
use hutong_ipc::fail;
use hutong_registry::{
    Access, Action, Credentials, Digest, Push, Reference, RepositoryName, Tag, Verdict,
};
use serde_json::json;

use super::parse_local;
use crate::http::auth::{self, Refusal};
use crate::http::deploy;
use crate::store::{App, Deployment, Goal, Release, Scope};
use crate::{Control, controller, lock};

pub struct Rules(pub Arc<OnceLock<Weak<Control>>>);

impl Access for Rules {
    fn may(&self, credentials: Option<&Credentials>, repository: &str, action: Action) -> Verdict {
        let Some(control) = self.0.get().and_then(Weak::upgrade) else {
            return Verdict::Later;
        };
        let secret = match credentials {
            Some(Credentials::Basic { password, .. }) => password,
            Some(Credentials::Bearer(token)) => token,
            None => return Verdict::Unknown,
        };
        let wanted = match action {
            Action::Pull => Scope::Pull,
            Action::Push | Action::Delete => Scope::Push,
        };
        if super::remote::is_remote(repository) {
            return Verdict::Forbidden;
        }
        let found = match repository.split('/').next() {
            // Who logs in.
            None | Some("") => auth::known_secret(&control, secret),
            Some(app) => auth::check_secret(&control, secret, app, wanted),
        };
        match found {
            Ok(_) => Verdict::Allowed,
            Err(Refusal::Unknown) => Verdict::Unknown,
            Err(Refusal::Forbidden(_)) => Verdict::Forbidden,
            Err(Refusal::Later) => Verdict::Later,
        }
    }
}

/// The endpoints of the registry, whose own rules decide who may.
pub async fn serve(State(control): State<Arc<Control>>, request: Request) -> Response {
    let writes = !matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::DELETE
    );
    if writes {
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
        if let Err(why) = control.has_disk_for(length.unwrap_or(0)) {
            return refusal(StatusCode::INSUFFICIENT_STORAGE, "DENIED", &why);
        }
    }
    let owner = control.clone();
    // To open it takes stock of what it has.
    let opened = tokio::task::spawn_blocking(move || owner.images.registry()).await;
    match opened {
        Ok(Ok(registry)) => hutong_registry::serve(State(registry), request).await,
        Ok(Err(error)) => {
            tracing::error!("{error}");
            later()
        }
        Err(_) => later(),
    }
}

/// An answer as the distribution specification has errors.
fn refusal(status: StatusCode, code: &str, why: &str) -> Response {
    let error = json!({"errors": [{"code": code, "message": why}]});
    (status, Json(error)).into_response()
}

fn later() -> Response {
    let why = "the images cannot be opened now; try again";
    let mut response = refusal(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", why);
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

/// A push is about to move a tag: if an app is to follow, that is written down, for the next control plane if this one is
/// killed before it could.
pub fn foresee(control: &Control, repository: &RepositoryName, tag: &Tag, digest: &Digest) {
    let (repository, tag) = (repository.as_str(), tag.as_str());
    let app = app_of(repository);
    let Some(standing) = standing(control, app) else {
        return;
    };
    if standing.rests().is_some() || !wants(&standing.spec, repository, tag) {
        return;
    }
    let noted = control
        .store
        .note_push(app, repository, tag, &digest.to_string());
    if let Err(error) = noted {
        tracing::warn!("a push of {repository}:{tag} is forgotten if control is killed: {error}");
    }
}

/// After the first look at what runs: deploys what was pushed to a control plane that was killed before it could.
pub async fn resume(control: Arc<Control>) {
    match control.store.pushes() {
        Ok(left) if left.is_empty() => return,
        Ok(_) => {}
        Err(error) => {
            tracing::error!("{error}");
            return;
        }
    }
    let mut passes = control.passes.subscribe();
    let _ = tokio::time::timeout(LOOKED, passes.changed()).await;
    let work = tokio::task::spawn_blocking(move || catch_up(&control));
    if let Err(error) = work.await {
        tracing::error!("what was pushed before is not deployed: {error}");
    }
}

/// How long is waited for the first look.
const LOOKED: Duration = Duration::from_secs(10);

fn catch_up(control: &Arc<Control>) {
    // Of several to one app the last one counts: it is a deployment, so the others are older than what there is.
    for push in control.store.pushes().unwrap_or_default() {
        let newest = control.store.newest(&push.app);
        let newest = newest.map(|newest| newest.map_or(0, |newest| newest.id));
        // Whatever was done by hand since goes before it.
        if matches!(newest, Ok(newest) if newest == push.newest)
            && let Ok(digest) = push.digest.parse::<Digest>()
        {
            follow(control, &push.repository, &push.tag, &digest);
        }
        forget(control, &push.repository, &push.tag, &push.digest);
    }
}

fn forget(control: &Control, repository: &str, tag: &str, digest: &str) {
    if let Err(error) = control.store.forget_push(repository, tag, digest) {
        tracing::warn!("{repository}:{tag}: {error}");
    }
}

/// A tag was pushed: whichever apps run it, and want it, are deployed with it.
pub fn note(control: &Arc<Control>, push: &Push) {
    let Reference::Tag(tag) = &push.reference else {
        return;
    };
    if push.before.as_ref() == Some(&push.digest) {
        return;
    }
    fail::point("a push is told of");
    let (repository, tag) = (push.repository.as_str(), tag.as_str());
    follow(control, repository, tag, &push.digest);
    forget(control, repository, tag, &push.digest.to_string());
}

fn follow(control: &Arc<Control>, repository: &str, tag: &str, digest: &Digest) {
    // One after the other: of two pushes of a tag the later one is deployed last.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = lock(&TURN);
    let app = app_of(repository);
    let Some(standing) = standing(control, app) else {
        return;
    };
    let is_there = |text: &str| text.ends_with(&format!("@{digest}"));
    let image = standing.spec.image.as_ref();
    let has = image.is_some_and(|one| is_there(&one.reference));
    // Signatures and caches are pushed like images.
    if !wants(&standing.spec, repository, tag) || has || control.images.image(digest).is_err() {
        return;
    }
    let said = match begin(control, app, &standing, (repository, tag, digest)) {
        Ok(more) => format!("{tag} was pushed, and is deployed{more}"),
        Err(why) => format!("{tag} was pushed, and is not deployed: {why}"),
    };
    control.logs.note(app, "", &said);
}

/// Deploys what a tag of an app's leads to; what else is to be said of it, or why not.
fn begin(
    control: &Arc<Control>,
    app: &str,
    standing: &Standing,
    (repository, tag, digest): (&str, &str, &Digest),
) -> Result<String, String> {
    if !leads_to(control, repository, tag, digest) {
        return Err("it leads elsewhere by now".to_owned());
    }
    if let Some(why) = standing.rests() {
        return Err(why.to_owned());
    }
    // The digest too: the tag may move on before it is looked up.
    let reference = format!("{LOCAL_REGISTRY}/{repository}:{tag}@{digest}");
    let release = &standing.release;
    let text = spec::with_image(&release.spec, &reference)?;
    deploy::begin(control, app, &release.digest, &text).map_err(|error| error.text())?;
    let before = standing.under_way.as_ref();
    Ok(before.map_or(String::new(), |before| {
        format!("; that takes the place of deployment {}", before.id)
    }))
}

/// Whether a tag still leads there.
fn leads_to(control: &Control, repository: &str, tag: &str, digest: &Digest) -> bool {
    let registry = control.images.registry();
    let found = registry
        .and_then(|registry| super::resolve_local(&registry, &format!("{repository}:{tag}")));
    found.is_ok_and(|found| found == *digest)
}

fn app_of(repository: &str) -> &str {
    repository.split('/').next().unwrap_or_default()
}

/// An app, and the release that serves, or is about to, or would if it ran.
struct Standing {
    app: App,
    under_way: Option<Deployment>,
    release: Release,
    spec: Arc<AppSpec>,
}

impl Standing {
    /// Why nothing is deployed of it.
    fn rests(&self) -> Option<&'static str> {
        match self.app.goal {
            _ if self.app.isolated => Some("it is isolated"),
            Goal::Running => None,
            Goal::Stopped => Some("it is stopped"),
            Goal::Removed => Some("it is removed"),
        }
    }
}

fn standing(control: &Control, app: &str) -> Option<Standing> {
    let app = control.store.app(app).ok().flatten()?;
    if app.goal == Goal::Removed {
        return None;
    }
    let under_way = control.store.under_way(&app.name).ok().flatten();
    let id = under_way.as_ref().map(|deployment| deployment.id);
    let (_, release, spec) = controller::version_of(control, id.or(app.active)).ok()??;
    Some(Standing {
        app,
        under_way,
        release,
        spec,
    })
}

fn wants(spec: &AppSpec, repository: &str, tag: &str) -> bool {
    let local = spec.image.as_ref().and_then(|image| image.local());
    let own = local.and_then(|text| parse_local(text).ok());
    own.is_some_and(|(name, _)| name.as_str() == repository)
        && spec.push_tags.iter().any(|pattern| tag_fits(pattern, tag))
}
