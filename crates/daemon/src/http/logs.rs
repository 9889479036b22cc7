//! Logs over the API: JSON lines, as stored.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::{ApiError, Result, apps};
use crate::logs;
use crate::{Control, lock};

const MAX_LINES: usize = 100_000;

#[derive(serde::Deserialize)]
pub struct Wanted {
    #[serde(default)]
    lines: Option<usize>,
    /// Microseconds since 1970.
    #[serde(default)]
    since: Option<u64>,
    #[serde(default)]
    follow: bool,
    /// `app` (default) or `access`.
    #[serde(default)]
    kind: Option<String>,
    /// Only this instance's lines.
    #[serde(default)]
    instance: Option<String>,
    /// Only lines of this process: `web`, `run`, `release`, `build`, or the name of a worker or timed job.
    #[serde(default)]
    process: Option<String>,
}

/// An app's output; what follows one instance ends with it (`kind=app`, each line a LogLine) or its access records (`kind=access`).
#[utoipa::path(get, path = "/v1/apps/{app}/logs", params(("lines" = Option<usize>, Query), ("since" = Option<u64>, Query), ("follow" = Option<bool>, Query), ("kind" = Option<String>, Query), ("instance" = Option<String>, Query), ("process" = Option<String>, Query)), responses((status = 200, body = String, content_type = "application/x-ndjson")))]
pub async fn logs(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Result<Response> {
    apps::find(&control, &name)?;
    let kind = match wanted.kind.as_deref() {
        None | Some("app") => "app",
        Some("access") => "access",
        Some(other) => {
            return Err(ApiError::bad(format!(
                "there is no log `{other}`; it is app or access"
            )));
        }
    };
    let query = logs::Query {
        kind,
        lines: wanted.lines.unwrap_or(100).min(MAX_LINES),
        since: wanted.since,
        only: match (wanted.instance, wanted.process) {
            (Some(instance), _) => logs::Only::Instance(instance),
            (None, Some(process)) => logs::Only::Process(process),
            (None, None) => logs::Only::All,
        },
    };
    let only = query.only.clone();
    let (ours, app) = (control.clone(), name.clone());
    let (lines, mut position) = tokio::task::spawn_blocking(move || {
        ours.logs.ingest();
        ours.logs.last(&app, &query)
    })
    .await
    .map_err(|error| ApiError::new(500, error.to_string()))?;
    let header = [(CONTENT_TYPE, "application/x-ndjson")];
    if !wanted.follow {
        return Ok((header, joined(&lines)).into_response());
    }
    let stream = async_stream::stream! {
        yield Ok::<_, std::convert::Infallible>(Bytes::from(joined(&lines)));
        loop {
            // Asked before the rest is read.
            let over = match &only {
                logs::Only::Instance(instance) => is_over(&control, instance),
                _ => false,
            };
            let changed = control.logs.changed.notified();
            let mut lines = control.logs.next(&name, kind, &mut position);
            let some = !lines.is_empty();
            lines.retain(|line| only.has(line));
            if some && lines.is_empty() {
                continue;
            }
            if !lines.is_empty() {
                yield Ok(Bytes::from(joined(&lines)));
                continue;
            }
            if over {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_secs(1), changed).await;
        }
    };
    Ok((header, Body::from_stream(stream)).into_response())
}

/// Whether an instance will say no more: it does not run, and nothing of it waits to be read.
fn is_over(control: &Control, instance: &str) -> bool {
    let runs = lock(&control.observed).instances.contains_key(instance);
    !runs && !control.logs.spooled().iter().any(|name| name == instance)
}

fn joined(lines: &[String]) -> String {
    let mut text = lines.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    text
}
