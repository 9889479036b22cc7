//! The ACME library's way to the CA: our own client, so that every exchange is bounded, and so that a
//! CA's "not now" keeps its `Retry-After`, which the library would drop.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::RETRY_AFTER;
use hyper::{HeaderMap, Request, Response, StatusCode};
use instant_acme::{BodyWrapper, BytesResponse, HttpClient, Problem};
use thiserror::Error;

use crate::error::describe;
use crate::http;

/// Whatever a CA says, we ask again within a month.
const MAX_WAIT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

pub struct Transport(http::Client);

impl Transport {
    pub fn new(client: http::Client) -> Self {
        Transport(client)
    }
}

/// The CA does not want to work now. It travels through the library as its "other" error.
#[derive(Debug, Error)]
#[error("{detail}")]
pub struct Busy {
    /// It is about us: we asked too often.
    pub limited: bool,
    pub detail: String,
    pub retry_after: Option<Duration>,
}

type Answer = Result<BytesResponse, instant_acme::Error>;

impl HttpClient for Transport {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        let client = self.0.clone();
        Box::pin(exchange(client, request))
    }
}

async fn exchange(client: http::Client, request: Request<BodyWrapper<Bytes>>) -> Answer {
    let (parts, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(never) => match never {},
    };
    let request = Request::from_parts(parts, Full::new(body));
    let response = client.send(request).await.map_err(other)?;
    if let Some(busy) = busy(&response, SystemTime::now()) {
        return Err(other(busy));
    }
    Ok(BytesResponse::from(response.map(Full::new)))
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> instant_acme::Error {
    instant_acme::Error::Other(Box::new(error))
}

fn busy(response: &Response<Bytes>, now: SystemTime) -> Option<Busy> {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return None;
    }
    let problem: Option<Problem> = serde_json::from_slice(response.body()).ok();
    let limited = status == StatusCode::TOO_MANY_REQUESTS
        || problem.as_ref().is_some_and(|problem| {
            problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:rateLimited")
        });
    // Every other refusal is the library's to read: among them is the stale nonce, which it repeats.
    if !limited && !status.is_server_error() {
        return None;
    }
    Some(Busy {
        limited,
        detail: match problem {
            Some(problem) => describe(&problem),
            None => format!("it answers with {status}"),
        },
        retry_after: retry_after(response.headers(), now),
    })
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value)
            .ok()?
            .duration_since(now)
            .unwrap_or_default(),
    };
    Some(wait.min(MAX_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, retry_after: &str, body: &'static str) -> Response<Bytes> {
        Response::builder()
            .status(status)
            .header(RETRY_AFTER, retry_after)
            .body(Bytes::from_static(body.as_bytes()))
            .unwrap()
    }

    fn of(response: &Response<Bytes>) -> Option<Busy> {
        // Sun, 06 Nov 1994 08:49:37 GMT
        busy(
            response,
            SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777),
        )
    }

    const LIMITED: &str =
        r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many"}"#;

    #[test]
    fn a_limit_keeps_its_time() {
        let busy = of(&response(429, "120", LIMITED)).unwrap();
        assert!(busy.limited);
        assert_eq!(busy.retry_after, Some(Duration::from_secs(120)));
        assert!(busy.detail.contains("too many"));
        let busy = of(&response(503, "Sun, 06 Nov 1994 08:50:37 GMT", LIMITED)).unwrap();
        assert!(busy.limited);
        assert_eq!(busy.retry_after, Some(Duration::from_secs(60)));
        let busy = of(&response(429, "99999999999", "<html>")).unwrap();
        assert_eq!(busy.retry_after, Some(MAX_WAIT));
    }

    #[test]
    fn a_broken_ca_is_no_limit() {
        let busy = of(&response(502, "soon", "<html>Bad gateway</html>")).unwrap();
        assert!(!busy.limited);
        assert_eq!(busy.retry_after, None);
        assert_eq!(busy.detail, "it answers with 502 Bad Gateway");
    }

    #[test]
    fn other_answers_pass() {
        let nonce = r#"{"type":"urn:ietf:params:acme:error:badNonce"}"#;
        assert!(of(&response(400, "1", nonce)).is_none());
        assert!(of(&response(200, "1", "{}")).is_none());
    }
}
