//! Snapshots of an app's data: list, put back, throw away.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use hutong_api::{App, Problem, Snapshot};
use hutong_runtime::client::DriverError;

use super::{ApiError, Result, apps};
use crate::Control;

/// An app's snapshots, the newest first.
#[utoipa::path(get, path = "/v1/apps/{app}/snapshots", responses((status = 200, body = Vec<Snapshot>), (status = 404, body = Problem)))]
pub async fn list(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<Snapshot>>> {
    apps::find(&control, &name)?;
    let ours = control.clone();
    let found = ask(move || ours.warden.snapshots(&name)).await?;
    let mut all = Vec::new();
    for one in found {
        let deployment = control.store.deployment(one.id)?;
        all.push(Snapshot {
            id: one.id,
            release: deployment.map(|deployment| deployment.release),
            created_at: one.created_ms,
            bytes: one.bytes,
            files: one.files,
            left_out: one.left_out,
            changed: one.changed,
        });
    }
    Ok(Json(all))
}

/// Puts a snapshot in the place of the app's data: its instances are stopped, and start again when that is done.
#[utoipa::path(post, path = "/v1/apps/{app}/snapshots/{id}/restore", responses((status = 200, body = App), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn restore(
    State(control): State<Arc<Control>>,
    Path((name, id)): Path<(String, u64)>,
) -> Result<Json<App>> {
    apps::find_free(&control, &name)?;
    check(&control, &name, id).await?;
    if let Some(other) = control.store.under_way(&name)? {
        return Err(ApiError::conflict(format!(
            "deployment {} of {name} is under way, and what it does goes by the data that is there",
            other.id
        ))
        .hint(format!("wait until it is over, or `hutong abort {name}`")));
    }
    if !control.store.begin_restore(&name, id)? {
        apps::find_free(&control, &name)?;
        return Err(ApiError::conflict(format!("{name} was changed meanwhile")).hint("try again"));
    }
    hutong_ipc::fail::point("restore begins");
    apps::next_pass(&control).await;
    apps::show(State(control), Path(name)).await
}

/// Throws a snapshot away.
#[utoipa::path(delete, path = "/v1/apps/{app}/snapshots/{id}", responses((status = 200), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn remove(
    State(control): State<Arc<Control>>,
    Path((name, id)): Path<(String, u64)>,
) -> Result<Json<()>> {
    apps::find_free(&control, &name)?;
    check(&control, &name, id).await?;
    let ours = control.clone();
    match ask(move || ours.warden.drop_snapshot(&name, id)).await {
        Err(DriverError::Later(why)) => Err(ApiError::conflict(why).hint("try again in a while")),
        other => Ok(other.map(Json)?),
    }
}

/// There is such a snapshot.
async fn check(control: &Arc<Control>, name: &str, id: u64) -> Result<()> {
    let (ours, app) = (control.clone(), name.to_owned());
    let found = ask(move || ours.warden.snapshots(&app)).await?;
    if found.iter().any(|one| one.id == id) {
        return Ok(());
    }
    Err(ApiError::not_found(format!("{name} has no snapshot {id}"))
        .hint(format!("`hutong snapshots {name}` lists those it has")))
}

async fn ask<T: Send + 'static>(
    question: impl FnOnce() -> std::result::Result<T, DriverError> + Send + 'static,
) -> std::result::Result<T, DriverError> {
    let asked = tokio::task::spawn_blocking(question).await;
    asked.unwrap_or_else(|error| Err(DriverError::Refused(error.to_string())))
}
