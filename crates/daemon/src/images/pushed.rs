//! Images that are pushed to this server: who may, and what follows. A repository belongs to the app of its first part
//! (`shop`, `shop/worker`); the app's tokens say who may push to it and pull from it.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hutong_core::spec::{self, AppSpec, LOCAL_REGISTRY, tag_fits};
use hutong_registry::{Access, Action, Credentials, Digest, Push, Reference, Verdict};
use serde_json::json;

use super::parse_local;
use crate::http::auth::{self, Refusal};
use crate::http::deploy;
use crate::store::{Goal, Release, Scope};
use crate::{Control, controller, lock};

pub struct Rules(pub Arc<OnceLock<Weak<Control>>>);

impl Access for Rules {
    fn may(&self, credentials: Option<&Credentials>, repository: &str, action: Action) -> Verdict {
        let Some(control) = self.0.get().and_then(Weak::upgrade) else {
            return Verdict::Forbidden;
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
            Err(Refusal::Forbidden(_) | Refusal::Later) => Verdict::Forbidden,
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
            // As the distribution specification has errors.
            let error = json!({"errors": [{"code": "DENIED", "message": why}]});
            return (StatusCode::INSUFFICIENT_STORAGE, Json(error)).into_response();
        }
    }
    let owner = control.clone();
    // To open it takes stock of what it has.
    let opened = tokio::task::spawn_blocking(move || owner.images.registry()).await;
    match opened {
        Ok(Ok(registry)) => hutong_registry::serve(State(registry), request).await,
        Ok(Err(error)) => {
            tracing::error!("{error}");
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
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
    follow(
        control,
        push.repository.as_str(),
        tag.as_str(),
        &push.digest,
    );
}

fn follow(control: &Arc<Control>, repository: &str, tag: &str, digest: &Digest) {
    // One after the other: of two pushes of a tag the later one is deployed last.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = lock(&TURN);
    let app = repository.split('/').next().unwrap_or_default();
    let Some((release, spec)) = serving(control, app) else {
        return;
    };
    let is_there = |text: &str| text.ends_with(&format!("@{digest}"));
    let has = spec
        .image
        .as_ref()
        .is_some_and(|one| is_there(&one.reference));
    if !wants(&spec, repository, tag) || has || !leads_to(control, repository, tag, digest) {
        return;
    }
    // Signatures and caches are pushed like images.
    if control.images.image(digest).is_err() {
        return;
    }
    // The digest too: the tag may move on before it is looked up.
    let reference = format!("{LOCAL_REGISTRY}/{repository}:{tag}@{digest}");
    let begun = spec::with_image(&release.spec, &reference)
        .map_err(|error| error.to_string())
        .and_then(|text| {
            deploy::begin(control, app, &release.digest, &text).map_err(|error| error.text())
        });
    let said = match begun {
        Ok(_) => format!("{tag} was pushed, and is deployed"),
        Err(why) => format!("{tag} was pushed, and is not deployed: {why}"),
    };
    control.logs.note(app, "", &said);
}

/// Whether a tag still leads there.
fn leads_to(control: &Control, repository: &str, tag: &str, digest: &Digest) -> bool {
    let registry = control.images.registry();
    let found = registry
        .and_then(|registry| super::resolve_local(&registry, &format!("{repository}:{tag}")));
    found.is_ok_and(|found| found == *digest)
}

/// The release that serves, or is about to, of an app that is to run.
fn serving(control: &Control, app: &str) -> Option<(Release, AppSpec)> {
    let found = control.store.app(app).ok().flatten()?;
    if found.goal != Goal::Running || found.isolated {
        return None;
    }
    let under_way = control.store.under_way(app).ok().flatten();
    let id = under_way.map(|deployment| deployment.id).or(found.active)?;
    let (_, release, spec) = controller::version_of(control, Some(id)).ok()??;
    Some((release, spec.as_ref().clone()))
}

fn wants(spec: &AppSpec, repository: &str, tag: &str) -> bool {
    let local = spec.image.as_ref().and_then(|image| image.local());
    let own = local.and_then(|text| parse_local(text).ok());
    own.is_some_and(|(name, _)| name.as_str() == repository)
        && spec.push_tags.iter().any(|pattern| tag_fits(pattern, tag))
}
