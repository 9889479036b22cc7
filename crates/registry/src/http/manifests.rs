//! `/v2/<name>/manifests/<tag-or-digest>` (end-3, end-7, end-9).

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;

use super::error::{Code, Refusal};
use super::{CONTENT_DIGEST, Call, Pairs, Result, manifest_location, uploads};
use crate::error::StoreError;
use crate::manifest::MAX_MANIFEST;
use crate::name::{Reference, Tag};

const SUBJECT: &str = "oci-subject";
const TAG: &str = "oci-tag";
/// Tags of one push; the spec wants ten to be possible.
const MAX_TAGS: usize = 100;

/// "Pulling manifests", "Checking if content exists in the registry". What a client accepts is not looked at: there is
/// one form of a manifest.
pub(super) async fn get(call: Call, reference: Reference) -> Result<Response> {
    let (digest, media_type, bytes) = call
        .work(move |registry, name| registry.store.manifest(name, &reference))
        .await?;
    let headers: [(&str, String); 4] = [
        ("content-type", media_type),
        ("content-length", bytes.len().to_string()),
        ("etag", format!("\"{digest}\"")),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    let body = if call.is_head() {
        Body::empty()
    } else {
        bytes.into()
    };
    Ok((headers, body).into_response())
}

/// "Pushing Manifests".
pub(super) async fn put(call: Call, reference: Reference, body: Body) -> Result<Response> {
    let pairs = Pairs::of(&call.parts.uri)?;
    let mut tags = Vec::new();
    // Of a push by digest only, says the spec.
    if matches!(reference, Reference::Digest(_)) {
        for text in pairs.all("tag") {
            let tag = text
                .parse::<Tag>()
                .map_err(|error| Refusal::new(400, Code::ManifestInvalid, error.to_string()))?;
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
    }
    if tags.len() > MAX_TAGS {
        let text = format!("a push has at most {MAX_TAGS} tags");
        return Err(Refusal::new(414, Code::ManifestInvalid, text));
    }
    if call.length().is_some_and(|length| length > MAX_MANIFEST) {
        return Err(StoreError::ManifestTooLarge.into());
    }
    let place = uploads::place(&call.registry).await?;
    let bytes = collect(body, call.registry.store.settings.idle).await?;
    let content_type = call.header(header::CONTENT_TYPE).map(str::to_owned);
    let put = call
        .work(move |registry, name| {
            let _place = place;
            let put = registry.store.put_manifest(
                name,
                (&reference, tags.as_slice()),
                content_type.as_deref(),
                &bytes,
                &|tag, digest| registry.announce(name, tag, digest),
            )?;
            registry.tell(name, &reference, &put);
            Ok((put, reference))
        })
        .await?;
    let (put, reference) = put;
    let headers: [(&str, String); 2] = [
        ("location", manifest_location(&call.name, &put.digest)),
        (CONTENT_DIGEST, put.digest.to_string()),
    ];
    let mut response = (StatusCode::CREATED, headers).into_response();
    let mut add = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().append(name, value);
        }
    };
    if let Some(subject) = put.subject {
        add(SUBJECT, subject.to_string());
    }
    if matches!(reference, Reference::Digest(_)) {
        for (tag, _) in put.tags {
            add(TAG, tag.to_string());
        }
    }
    Ok(response)
}

/// The whole body, which is small.
async fn collect(body: Body, idle: Duration) -> Result<Vec<u8>> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    loop {
        match tokio::time::timeout(idle, stream.next()).await {
            Ok(Some(Ok(chunk))) => {
                if (bytes.len() + chunk.len()) as u64 > MAX_MANIFEST {
                    return Err(StoreError::ManifestTooLarge.into());
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(None) => return Ok(bytes),
            Ok(Some(Err(_))) | Err(_) => {
                let text = "the manifest was cut off";
                return Err(Refusal::new(408, Code::ManifestInvalid, text));
            }
        }
    }
}

/// "Deleting tags", "Deleting Manifests".
pub(super) async fn delete(call: Call, reference: Reference) -> Result<Response> {
    call.work(move |registry, name| match &reference {
        Reference::Tag(tag) => registry.store.delete_tag(name, tag),
        Reference::Digest(digest) => registry.store.delete_manifest(name, digest),
    })
    .await?;
    Ok(StatusCode::ACCEPTED.into_response())
}
