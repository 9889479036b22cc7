//! Cloudflare's API v4, with a token.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use hyper::{Method, Request};
use serde_json::{Value, json};

use super::{Error, zones};
use crate::http::{self, Client};
use crate::secret::Secret;
use crate::text;

const NAME: &str = "Cloudflare";
const ENDPOINT: &str = "https://api.cloudflare.com/client/v4";
/// The least that all plans allow.
const TTL: u32 = 60;
/// "An identical record already exists", in its old and its new number.
const EXISTS: [&str; 2] = ["81057", "81058"];

pub struct Api<'a> {
    client: &'a Client,
    token: &'a Secret,
    endpoint: &'a str,
}

impl<'a> Api<'a> {
    pub fn new(client: &'a Client, token: &'a Secret, endpoint: Option<&'a str>) -> Self {
        Api {
            client,
            token,
            endpoint: endpoint.unwrap_or(ENDPOINT).trim_end_matches('/'),
        }
    }

    pub async fn present(&self, name: &str, value: &str) -> Result<(String, String), Error> {
        let zone = self.zone(name).await?;
        let path = format!("/zones/{zone}/dns_records");
        // A TXT record's content is a quoted character string (RFC 1035).
        let record = json!({
            "type": "TXT",
            "name": name,
            "content": format!("\"{value}\""),
            "ttl": TTL,
        });
        let id = match self.call(Method::POST, &path, Some(&record)).await {
            Ok(record) => id_of(&record)?,
            // Left behind by an attempt that was cut off.
            Err(Error::Refused { code, .. }) if EXISTS.contains(&code.as_str()) => {
                self.existing(&path, name, value).await?
            }
            Err(error) => return Err(error),
        };
        Ok((zone, id))
    }

    pub async fn delete(&self, zone: &str, id: &str) -> Result<(), Error> {
        let path = format!("/zones/{}/dns_records/{}", plain(zone)?, plain(id)?);
        self.call(Method::DELETE, &path, None).await.map(drop)
    }

    async fn zone(&self, name: &str) -> Result<String, Error> {
        for candidate in zones(name) {
            let path = format!("/zones?name={candidate}");
            let found = self.call(Method::GET, &path, None).await?;
            let zone = items(&found).iter().find(|zone| zone["name"] == candidate);
            if let Some(zone) = zone {
                return id_of(zone);
            }
        }
        Err(Error::NoZone {
            provider: NAME,
            name: name.to_owned(),
        })
    }

    async fn existing(&self, path: &str, name: &str, value: &str) -> Result<String, Error> {
        let path = format!("{path}?type=TXT&name={name}");
        let found = self.call(Method::GET, &path, None).await?;
        let same = |record: &&Value| {
            let content = record["content"].as_str();
            content.is_some_and(|content| content.trim_matches('"') == value)
        };
        let record = items(&found).iter().find(same);
        id_of(record.ok_or(Error::Answer(NAME))?)
    }

    /// Yields what is in the answer's `result`.
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Error> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.endpoint))
            .header(AUTHORIZATION, http::bearer(self.token)?)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, http::USER_AGENT)
            .body(Full::new(match body {
                Some(body) => Bytes::from(body.to_string()),
                None => Bytes::new(),
            }))?;
        let (_, mut answer) = self.client.json(request).await?;
        if answer["success"] != true {
            return Err(refusal(&answer));
        }
        let result = answer.get_mut("result").map(Value::take);
        Ok(result.unwrap_or_default())
    }
}

/// The first error is the outermost: "Authentication error".
fn refusal(answer: &Value) -> Error {
    let Some(error) = items(&answer["errors"]).first() else {
        return Error::Answer(NAME);
    };
    Error::Refused {
        provider: NAME,
        code: text::line(&error["code"].to_string()),
        message: text::line(error["message"].as_str().unwrap_or_default()),
    }
}

fn items(array: &Value) -> &[Value] {
    array.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn id_of(item: &Value) -> Result<String, Error> {
    let id = item["id"].as_str().ok_or(Error::Answer(NAME))?;
    plain(id).map(str::to_owned)
}

/// It becomes part of a path.
fn plain(id: &str) -> Result<&str, Error> {
    match !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric()) {
        true => Ok(id),
        false => Err(Error::Answer(NAME)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told() {
        let answer = json!({
            "success": false,
            "errors": [{ "code": 10000, "message": "Authentication error" }],
        });
        assert_eq!(
            refusal(&answer).to_string(),
            "Cloudflare refuses: Authentication error (10000)"
        );
        assert!(matches!(refusal(&Value::Null), Error::Answer(_)));
    }

    #[test]
    fn an_id_stays_in_its_place() {
        assert!(plain("023e105f4ecef8ad9ca31a8372d0c353").is_ok());
        for bad in ["", "..", "a/b", "a?b"] {
            assert!(plain(bad).is_err(), "{bad}");
        }
    }
}
