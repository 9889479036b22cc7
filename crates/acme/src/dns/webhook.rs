//! A service of the operator's own that makes and removes the record.

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use serde_json::json;

use super::Error;
use crate::http::{self, Client};
use crate::secret::Secret;
use crate::text;

pub async fn post(
    client: &Client,
    url: &str,
    bearer: Option<&Secret>,
    action: &str,
    name: &str,
    value: &str,
) -> Result<(), Error> {
    let body = json!({ "action": action, "name": name, "value": value });
    let mut request = Request::post(url)
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, http::USER_AGENT);
    if let Some(bearer) = bearer {
        request = request.header(AUTHORIZATION, http::bearer(bearer)?);
    }
    let request = request.body(Full::new(Bytes::from(body.to_string())))?;
    let response = client.send(request).await?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    Err(Error::Refused {
        provider: "the webhook",
        code: status.as_str().to_owned(),
        message: text::line(&String::from_utf8_lossy(response.body())),
    })
}
