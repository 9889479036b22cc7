//! Builds: cancelled, given secrets, and what they keep thrown away.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use hutong_api::{BuildSecret, Deployment, EnvChange, Problem};
use hutong_core::name::is_env_key;

use super::deploy::wire_deployment;
use super::{ApiError, Result, apps};
use crate::Control;

/// A shorter secret would be found in files by chance, and hide half of every line.
const LEAST_SECRET: usize = 8;
/// All secrets of an app's builds, in bytes.
const MAX_SECRETS: usize = 64 << 10;

/// Ends the build that is under way, or waits; what served before serves on.
#[utoipa::path(post, path = "/v1/apps/{app}/build/cancel", responses((status = 200, body = Deployment), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn cancel(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Deployment>> {
    apps::find(&control, &name)?;
    let nothing = || ApiError::conflict(format!("nothing of {name} is being built"));
    let under_way = control.store.under_way(&name)?.ok_or_else(nothing)?;
    if under_way.state != "building" {
        return Err(nothing().hint(format!(
            "release {} is being rolled out already; `hutong rollback {name}` undoes that",
            under_way.release
        )));
    }
    // Whoever builds looks here all the time, and ends what it has begun.
    if !control.store.fail(under_way.id, "it was cancelled", &[])? {
        return Err(nothing());
    }
    control.logs.note(&name, "", "the build was cancelled");
    control.wake.notify_one();
    let ended = control.store.deployment(under_way.id)?.unwrap_or(under_way);
    Ok(Json(wire_deployment(&control, &ended)))
}

/// Throws away what builds of an app keep for the next one.
#[utoipa::path(delete, path = "/v1/apps/{app}/build/cache", responses((status = 200), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn drop_cache(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<()>> {
    apps::find(&control, &name)?;
    let under_way = control.store.under_way(&name)?;
    if under_way.is_some_and(|deployment| deployment.state == "building") {
        return Err(
            ApiError::conflict(format!("a build of {name} is under way, and may use it"))
                .hint(format!("`hutong build cancel {name}` ends it")),
        );
    }
    let ours = control.clone();
    let dropped = tokio::task::spawn_blocking(move || ours.warden.drop_cache(&name));
    dropped
        .await
        .map_err(|error| ApiError::new(500, error.to_string()))?
        .map_err(|error| ApiError::new(503, error.to_string()))?;
    Ok(Json(()))
}

/// The names of what builds of an app are given; never the values.
#[utoipa::path(get, path = "/v1/apps/{app}/build/secrets", responses((status = 200, body = Vec<BuildSecret>), (status = 404, body = Problem)))]
pub async fn secrets(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<BuildSecret>>> {
    apps::find(&control, &name)?;
    let known = control.store.build_secret_names(&name)?.into_iter();
    let listed = known.map(|(name, updated_at)| BuildSecret { name, updated_at });
    Ok(Json(listed.collect()))
}

/// Sets and unsets secrets of builds; they count from the next build on.
#[utoipa::path(post, path = "/v1/apps/{app}/build/secrets", request_body = EnvChange, responses((status = 200), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub async fn change_secrets(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Json(change): Json<EnvChange>,
) -> Result<Json<()>> {
    apps::find_free(&control, &name)?;
    for (key, value) in &change.set {
        if !is_env_key(key) {
            return Err(ApiError::bad(format!(
                "`{key}` cannot name a secret; use letters, digits and '_'"
            )));
        }
        if value.trim().len() < LEAST_SECRET || value.contains('\0') {
            return Err(ApiError::bad(format!(
                "the secret {key} is shorter than {LEAST_SECRET} bytes, or holds a NUL: it could not be kept out of what a build leaves"
            )));
        }
    }
    let known = control.store.build_secrets(&name)?;
    for key in &change.unset {
        if !known.iter().any(|(other, _)| other == key) {
            return Err(
                ApiError::not_found(format!("builds of {name} have no secret {key}"))
                    .hint("`hutong build secrets` names them"),
            );
        }
    }
    let kept = known
        .iter()
        .filter(|(key, _)| !change.set.contains_key(key));
    let kept: usize = kept.map(|(_, value)| value.len()).sum();
    let added: usize = change.set.values().map(String::len).sum();
    if kept + added > MAX_SECRETS {
        return Err(ApiError::bad("the secrets would be over 64K"));
    }
    control
        .store
        .change_build_secrets(&name, &change.set, &change.unset)?;
    Ok(Json(()))
}
