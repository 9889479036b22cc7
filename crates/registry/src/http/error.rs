//! What a client hears of an error: the one place where errors become answers, in the spec's form ("Error Codes").

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::digest::DigestError;
use crate::error::StoreError;
use crate::name::ReferenceError;

/// code-1 to code-14, and what Docker's registry says where it cannot answer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    TooManyRequests,
    Unavailable,
}

impl Code {
    fn as_str(self) -> &'static str {
        match self {
            Code::BlobUnknown => "BLOB_UNKNOWN",
            Code::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Code::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Code::DigestInvalid => "DIGEST_INVALID",
            Code::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Code::ManifestInvalid => "MANIFEST_INVALID",
            Code::ManifestUnknown => "MANIFEST_UNKNOWN",
            Code::NameInvalid => "NAME_INVALID",
            Code::NameUnknown => "NAME_UNKNOWN",
            Code::SizeInvalid => "SIZE_INVALID",
            Code::Unauthorized => "UNAUTHORIZED",
            Code::Denied => "DENIED",
            Code::Unsupported => "UNSUPPORTED",
            Code::TooManyRequests => "TOOMANYREQUESTS",
            Code::Unavailable => "UNAVAILABLE",
        }
    }
}

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Refusal(Box<Inner>);

#[derive(Debug)]
struct Inner {
    status: u16,
    code: Code,
    /// One error each.
    messages: Vec<String>,
    headers: Vec<(HeaderName, String)>,
}

impl Refusal {
    pub fn new(status: u16, code: Code, message: impl Into<String>) -> Self {
        Refusal(Box::new(Inner {
            status,
            code,
            messages: vec![message.into()],
            headers: Vec::new(),
        }))
    }

    /// What went wrong is in our log.
    pub fn internal() -> Self {
        Refusal::new(500, Code::Unsupported, "the registry failed; try again")
    }

    pub fn with(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.0.headers.push((name, value.into()));
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Inner {
            status,
            code,
            messages,
            headers,
        } = *self.0;
        let errors: Vec<_> = messages
            .iter()
            .map(|message| json!({"code": code.as_str(), "message": message}))
            .collect();
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(json!({"errors": errors}))).into_response();
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        use StoreError as E;
        let (status, code) = match &error {
            E::BlobUnknown(_) => (404, Code::BlobUnknown),
            E::ManifestUnknown(_) => (404, Code::ManifestUnknown),
            E::NameUnknown(_) => (404, Code::NameUnknown),
            E::UploadUnknown => (404, Code::BlobUploadUnknown),
            E::Mismatch { .. } => (400, Code::DigestInvalid),
            E::OutOfOrder { .. } | E::EmptyRange => (416, Code::BlobUploadInvalid),
            E::Size { .. } => (400, Code::SizeInvalid),
            E::CutOff => (408, Code::BlobUploadInvalid),
            E::ManifestInvalid(_) => (400, Code::ManifestInvalid),
            E::ManifestTooLarge => (413, Code::ManifestInvalid),
            E::ManifestBlobUnknown(_) => (404, Code::ManifestBlobUnknown),
            E::OverQuota { .. } => (413, Code::Denied),
            E::UploadBusy | E::TooMany(_) => (429, Code::TooManyRequests),
            E::InUse(_) => (405, Code::Denied),
            E::NoRoom(_) => (507, Code::Denied),
            E::Disk { source, .. } if is_full(source) => (507, Code::Denied),
            E::Locked | E::Disk { .. } => (500, Code::Unsupported),
        };
        match error {
            E::ManifestBlobUnknown(missing) => {
                let messages = missing
                    .iter()
                    .map(|digest| format!("the repository does not have {digest}"))
                    .collect();
                let mut refusal = Refusal::new(status, code, "");
                refusal.0.messages = messages;
                refusal
            }
            E::UploadBusy | E::TooMany(_) => {
                Refusal::new(status, code, error.to_string()).with(header::RETRY_AFTER, "5")
            }
            E::InUse(_) => {
                Refusal::new(status, code, error.to_string()).with(header::ALLOW, "GET, HEAD")
            }
            E::Disk { what, source } => {
                tracing::error!("the registry cannot {what}: {source}");
                if status == 507 {
                    Refusal::new(status, code, "the registry's disk is full")
                } else {
                    Refusal::internal()
                }
            }
            E::Locked => {
                tracing::error!("{error}");
                Refusal::internal()
            }
            _ => Refusal::new(status, code, error.to_string()),
        }
    }
}

impl From<DigestError> for Refusal {
    fn from(error: DigestError) -> Self {
        Refusal::new(400, Code::DigestInvalid, error.to_string())
    }
}

impl From<ReferenceError> for Refusal {
    fn from(error: ReferenceError) -> Self {
        let code = match error {
            ReferenceError::Tag(_) => Code::ManifestInvalid,
            ReferenceError::Digest(_) => Code::DigestInvalid,
        };
        Refusal::new(400, code, error.to_string())
    }
}
