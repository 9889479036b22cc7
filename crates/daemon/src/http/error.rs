//! Errors of the API: one type, one place where it becomes a response (RFC 9457).

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hutong_api::Problem;
use hutong_runtime::client::DriverError;

use hutong_registry::StoreError as StoreFailure;

use crate::images::archive::ArchiveError;
use crate::store::StoreError;
use crate::unpack::UnpackError;

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// What to do on a full disk.
const ROOM: &str = "free some room: `du -sh /var/lib/hutong/data/*` (or your --data-dir) shows which app holds how much; `hutong remove APP --purge` gives all of an app's back";

pub type Result<T> = std::result::Result<T, ApiError>;

#[derive(Debug)]
pub struct ApiError(Box<Problem>);

impl ApiError {
    pub fn new(status: u16, detail: impl Into<String>) -> Self {
        let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        ApiError(Box::new(Problem {
            kind: "about:blank".into(),
            title: code.canonical_reason().unwrap_or_default().into(),
            status,
            detail: detail.into(),
            hint: None,
        }))
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(404, detail)
    }

    pub fn bad(detail: impl Into<String>) -> Self {
        Self::new(422, detail)
    }

    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(409, detail)
    }

    pub fn kind(mut self, kind: &str) -> Self {
        self.0.kind = kind.into();
        self
    }

    /// For where there is no more than text.
    pub fn text(&self) -> String {
        match &self.0.hint {
            Some(hint) => format!("{} ({hint})", self.0.detail),
            None => self.0.detail.clone(),
        }
    }

    /// The problem, where there is no response to put it in.
    pub fn json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).unwrap_or_default()
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, kind, Json(self.0)).into_response()
    }
}

impl ApiError {
    /// The disk has no room, or is about to have none.
    pub fn no_room(detail: impl Into<String>) -> Self {
        ApiError::new(507, detail).hint(ROOM)
    }
}

impl ApiError {
    /// What is asked for does not fit into this server's memory.
    pub fn no_memory(detail: impl Into<String>) -> Self {
        ApiError::conflict(detail).kind("no-memory").hint(
            "stop or scale down what is not needed, set a lower `limits.guaranteed`, or let idle apps sleep with [sleep]",
        )
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!("{error}");
        match error {
            StoreError::Full(_) => ApiError::no_room(error.to_string()),
            StoreError::Restoring { .. } => ApiError::conflict(error.to_string())
                .hint("wait until it is done: `hutong status` shows it"),
            _ => ApiError::new(500, error.to_string()),
        }
    }
}

impl From<DriverError> for ApiError {
    fn from(error: DriverError) -> Self {
        match &error {
            DriverError::Refused(reason) => ApiError::conflict(reason.clone()),
            _ => ApiError::new(503, error.to_string())
                .hint("the warden restarts by itself; try again"),
        }
    }
}

impl From<ArchiveError> for ApiError {
    fn from(error: ArchiveError) -> Self {
        let status = match &error {
            ArchiveError::Bad(_) => 422,
            ArchiveError::Broken(_) => 400,
            ArchiveError::TooLarge(_) => 413,
            ArchiveError::Disk(error) if is_full(error) => 507,
            ArchiveError::Disk(_) => 500,
            ArchiveError::Store(StoreFailure::OverQuota { .. }) => 413,
            ArchiveError::Store(StoreFailure::NoRoom(_)) => 507,
            ArchiveError::Store(StoreFailure::Disk { source, .. }) if is_full(source) => 507,
            ArchiveError::Store(StoreFailure::Disk { .. } | StoreFailure::Locked) => 500,
            ArchiveError::Store(_) => 422,
        };
        let api = ApiError::new(status, error.to_string());
        if status == 507 { api.hint(ROOM) } else { api }
    }
}

impl From<UnpackError> for ApiError {
    fn from(error: UnpackError) -> Self {
        let status = match &error {
            UnpackError::Bad(_) | UnpackError::Mismatch { .. } => 422,
            UnpackError::Broken(_) => 400,
            UnpackError::TooLarge(_) => 413,
            UnpackError::Disk(error) if is_full(error) => 507,
            UnpackError::Disk(_) => 500,
        };
        let api = ApiError::new(status, error.to_string());
        if status == 507 { api.hint(ROOM) } else { api }
    }
}
