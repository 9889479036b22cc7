//! "Content Discovery": `/v2/<name>/tags/list` (end-8), `/v2/<name>/referrers/<digest>` (end-12).

use axum::Json;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::error::{Code, Refusal};
use super::{Call, Pairs, Result, encode};
use crate::digest::Digest;
use crate::manifest::OCI_INDEX;

const FILTERS: &str = "oci-filters-applied";
/// Tags of one page, however many are asked for.
const MAX_TAGS: usize = 10_000;
/// Descriptors of one page; their annotations bound it, too.
const MAX_REFERRERS: usize = 1_000;

/// "Listing Tags".
pub(super) async fn tags(call: Call) -> Result<Response> {
    let pairs = Pairs::of(&call.parts.uri)?;
    let count = match pairs.get("n") {
        None => MAX_TAGS,
        Some(text) if !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit()) => {
            text.parse::<usize>().unwrap_or(MAX_TAGS).min(MAX_TAGS)
        }
        Some(_) => {
            let text = "n is how many tags are asked for";
            return Err(Refusal::new(400, Code::Unsupported, text));
        }
    };
    let last = pairs.get("last").map(str::to_owned);
    let all = call
        .work(|registry, name| registry.store.tags(name))
        .await?;
    let begin = last.map_or(0, |last| {
        all.partition_point(|tag| tag.as_str() <= last.as_str())
    });
    let rest = &all[begin..];
    let page: Vec<&str> = rest.iter().take(count).map(|tag| tag.as_str()).collect();
    let body = json!({"name": call.name.as_str(), "tags": page});
    let mut response = Json(body).into_response();
    if let Some(last) = page.last()
        && page.len() < rest.len()
    {
        let next = format!("/v2/{}/tags/list?n={count}&last={last}", call.name);
        link(&mut response, &next);
    }
    Ok(response)
}

/// "Listing Referrers". A repository that is not there has none, which is no error.
pub(super) async fn referrers(call: Call, subject: Digest) -> Result<Response> {
    let pairs = Pairs::of(&call.parts.uri)?;
    let filter = pairs.get("artifactType").filter(|text| !text.is_empty());
    let filter = filter.map(str::to_owned);
    let after = pairs.get("last").map(str::to_owned);
    let (wanted, of) = (filter.clone(), subject.clone());
    let found = call
        .work(move |registry, name| {
            registry.store.referrers(
                name,
                &of,
                wanted.as_deref(),
                after.as_deref(),
                MAX_REFERRERS,
            )
        })
        .await?;
    let body = json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": found.list,
    });
    let mut response = Json(body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(OCI_INDEX));
    if filter.is_some() {
        headers.insert(FILTERS, HeaderValue::from_static("artifactType"));
    }
    if let Some(last) = found.next {
        let mut next = format!("/v2/{}/referrers/{subject}?last={last}", call.name);
        if let Some(filter) = filter {
            next.push_str("&artifactType=");
            next.push_str(&encode(&filter));
        }
        link(&mut response, &next);
    }
    Ok(response)
}

/// RFC 8288. All that is in it is safe in a URI.
fn link(response: &mut Response, next: &str) {
    if let Ok(value) = HeaderValue::from_str(&format!("<{next}>; rel=\"next\"")) {
        response.headers_mut().insert(header::LINK, value);
    }
}
