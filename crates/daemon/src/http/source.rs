//! Repositories elsewhere, whose webhooks are heard; and previews of branches.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use hutong_api::{NewSource, Preview, Problem, Source, SourceMade};
use hutong_core::name::AppName;

use super::{ApiError, Result, apps};
use crate::Control;
use crate::git::{Vendor, check_url};
use crate::store;

const MAX_SECRET: usize = 500;

/// Where an app is fetched from, and how the last webhook came out.
#[utoipa::path(get, path = "/v1/apps/{app}/source", responses((status = 200, body = Source), (status = 404, body = Problem)))]
pub async fn show(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Source>> {
    let source = control.store.source(&name)?;
    let source = source.ok_or_else(|| none(&name))?;
    Ok(Json(Source {
        hook: hook(&control, &name)?,
        url: source.url,
        vendor: source.vendor,
        state: source.state,
        detail: source.detail,
        changed_at: source.changed_ms,
    }))
}

fn none(name: &str) -> ApiError {
    ApiError::not_found(format!("{name} is fetched from nowhere"))
        .hint(format!("hutong source set {name} URL --from github"))
}

/// Where webhooks of an app are sent.
fn hook(control: &Control, name: &str) -> Result<String> {
    let host = control.settings.host.as_ref().ok_or_else(|| {
        ApiError::conflict("this server has no host of its own for webhooks")
            .hint("in the server file: host = \"hutong.example.com\", and restart it")
    })?;
    let scheme = match control.https {
        Some(_) => "https",
        None => "http",
    };
    Ok(format!("{scheme}://{host}/hooks/{name}"))
}

/// Has an app fetched from a repository whenever a webhook of it says that there is news. The answer has the secret that
/// webhooks are signed with, once.
#[utoipa::path(post, path = "/v1/apps/{app}/source", request_body = NewSource, responses((status = 200, body = SourceMade), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn set(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Json(new): Json<NewSource>,
) -> Result<Json<SourceMade>> {
    AppName::new(&name).map_err(ApiError::bad)?;
    let hook = hook(&control, &name)?;
    check_url(&new.url).map_err(ApiError::bad)?;
    let vendor = Vendor::parse(&new.vendor).ok_or_else(|| {
        let all: Vec<&str> = Vendor::ALL.into_iter().map(Vendor::word).collect();
        ApiError::bad(format!("webhooks come from {}", all.join(", ")))
    })?;
    let plain = |text: &str| text.len() <= MAX_SECRET && text.bytes().all(|c| c.is_ascii_graphic());
    let token = new.token.as_deref().filter(|token| !token.is_empty());
    if !token.is_none_or(plain) || !plain(&new.user) || new.user.contains(':') {
        return Err(ApiError::bad(
            "user and token are at most 500 plain characters",
        ));
    }
    let mut random = [0; 24];
    getrandom::fill(&mut random).map_err(|error| ApiError::new(500, error.to_string()))?;
    let secret = hutong_core::tree::hex(&random);
    let source = store::Source {
        app: name,
        url: new.url,
        vendor: vendor.word().to_owned(),
        user: new.user,
        state: String::new(),
        detail: String::new(),
        changed_ms: 0,
    };
    control.store.set_source(&source, &secret, token)?;
    Ok(Json(SourceMade { hook, secret }))
}

/// Webhooks of an app are heard no more.
#[utoipa::path(delete, path = "/v1/apps/{app}/source", responses((status = 200), (status = 404, body = Problem)))]
pub async fn forget(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<()>> {
    if control.store.drop_source(&name)? {
        return Ok(Json(()));
    }
    Err(none(&name))
}

/// The previews of an app's branches.
#[utoipa::path(get, path = "/v1/apps/{app}/previews", responses((status = 200, body = Vec<Preview>), (status = 404, body = Problem)))]
pub async fn previews(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<Preview>>> {
    apps::find(&control, &name)?;
    let all = control.store.previews(Some(&name))?.into_iter();
    let wire = all.map(|preview| Preview {
        ends_in_ms: preview.lifetime_ms.saturating_sub(preview.age_ms),
        app: preview.app,
        branch: preview.branch,
        host: preview.host,
    });
    Ok(Json(wire.collect()))
}
