//! Names and passwords for other registries. A password goes in and never comes out.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use hutong_api::{Problem, RegistryLogin, RegistryPassword};

use super::{ApiError, Result};
use crate::Control;
use crate::images::remote;

const MAX_PASSWORD: usize = 8 << 10;

/// The registries that there is a name and a password for.
#[utoipa::path(get, path = "/v1/registries", responses((status = 200, body = Vec<RegistryLogin>)))]
pub async fn list(State(control): State<Arc<Control>>) -> Result<Json<Vec<RegistryLogin>>> {
    let logins = control.store.registry_logins()?;
    let list = logins.into_iter().map(|login| RegistryLogin {
        host: login.host,
        user: login.user,
        updated_at: login.updated_ms,
    });
    Ok(Json(list.collect()))
}

/// Stores a name and a password for a registry, encrypted.
#[utoipa::path(post, path = "/v1/registries/{host}", request_body = RegistryPassword, responses((status = 200), (status = 422, body = Problem)))]
pub async fn set(
    State(control): State<Arc<Control>>,
    Path(host): Path<String>,
    Json(login): Json<RegistryPassword>,
) -> Result<()> {
    let host = host.to_ascii_lowercase();
    // As it stands in the name of an image.
    let named = remote::Name::parse(&format!("{host}/x"));
    if !named.is_ok_and(|name| name.host == host && name.repository().is_ok()) {
        return Err(ApiError::bad(format!("`{host}` is no registry's host"))
            .hint("such as ghcr.io, registry.example.com:5000, or docker.io"));
    }
    let plain = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
    if !plain(&login.user) || login.user.contains(':') || !plain(&login.password) {
        return Err(ApiError::bad(
            "a name has no colon, and neither name nor password is empty or holds control characters",
        ));
    }
    if login.user.len() + login.password.len() > MAX_PASSWORD {
        return Err(ApiError::bad("the password is over 8K"));
    }
    let store = &control.store;
    store.set_registry_login(&host, &login.user, &login.password)?;
    Ok(())
}

/// Forgets a registry's name and password.
#[utoipa::path(delete, path = "/v1/registries/{host}", responses((status = 200), (status = 404, body = Problem)))]
pub async fn forget(State(control): State<Arc<Control>>, Path(host): Path<String>) -> Result<()> {
    match control.store.forget_registry_login(&host)? {
        true => Ok(()),
        false => Err(ApiError::not_found(format!(
            "there is no name and password for {host}"
        ))),
    }
}
