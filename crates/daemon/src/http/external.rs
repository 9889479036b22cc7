//! Containers that others started, and how they are routed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hutong_api::{External, ExternalTarget, Problem};
use hutong_core::plan::Health;

use super::{ApiError, Result};
use crate::external::{self, Shown, ShownTarget};
use crate::observed::Observed;
use crate::{Control, lock};

/// Containers that others started and that want to be routed by their labels.
#[utoipa::path(get, path = "/v1/external", responses((status = 200, body = Vec<External>), (status = 404, body = Problem)))]
pub async fn list(State(control): State<Arc<Control>>) -> Result<Json<Vec<External>>> {
    if !external::is_on(&control) {
        return Err(
            ApiError::not_found("labels of containers that others started are not read")
                .hint("in the server file: `labels = true` below [docker], and restart the server"),
        );
    }
    let observed = lock(&control.observed);
    let shown = observed.external.shown.iter();
    Ok(Json(shown.map(|one| describe(&observed, one)).collect()))
}

fn describe(observed: &Observed, shown: &Shown) -> External {
    let targets = shown.targets.iter();
    External {
        name: shown.name.clone(),
        containers: shown.containers.clone(),
        routes: shown.routes.clone(),
        targets: targets.map(|one| target(observed, one)).collect(),
        notes: shown.notes.clone(),
    }
}

fn target(observed: &Observed, shown: &ShownTarget) -> ExternalTarget {
    let (state, detail) = match (&shown.waits, observed.health_of(&shown.instance)) {
        (Some(why), _) => ("waiting", Some(why.clone())),
        (None, Health::Healthy) => ("healthy", None),
        (None, Health::Starting(why)) => ("starting", Some(why)),
        (None, Health::Failing(why)) => ("failing", Some(why)),
    };
    ExternalTarget {
        container: shown.container.clone(),
        address: shown.address.clone(),
        state: state.into(),
        detail,
    }
}
