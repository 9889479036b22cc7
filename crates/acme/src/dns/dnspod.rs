//! DNSPod through Tencent Cloud's API 3.0: version 2021-03-23, signature TC3-HMAC-SHA256. Parameters
//! travel as JSON; an error is an answer with status 200 and an `Error` in it.

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use serde_json::{Value, json};

use super::signing::{canonical, date, hex, hmac_sha256, now, sha256};
use super::{Error, within, zones};
use crate::http::{self, Client};
use crate::secret::Secret;
use crate::text;

const NAME: &str = "DNSPod";
const ENDPOINT: &str = "https://dnspod.tencentcloudapi.com";
const SERVICE: &str = "dnspod";
const VERSION: &str = "2021-03-23";
const JSON: &str = "application/json; charset=utf-8";
/// Records may differ by the visitor's network; this is the line for everybody else.
const LINE: &str = "默认";

pub struct Api<'a> {
    client: &'a Client,
    secret_id: &'a str,
    secret_key: &'a Secret,
    endpoint: &'a str,
}

impl<'a> Api<'a> {
    pub fn new(
        client: &'a Client,
        secret_id: &'a str,
        secret_key: &'a Secret,
        endpoint: Option<&'a str>,
    ) -> Self {
        Api {
            client,
            secret_id,
            secret_key,
            endpoint: endpoint.unwrap_or(ENDPOINT).trim_end_matches('/'),
        }
    }

    pub async fn present(&self, name: &str, value: &str) -> Result<(String, String), Error> {
        let (zone, host) = self.zone(name).await?;
        let parameters = json!({
            "Domain": zone,
            "SubDomain": host,
            "RecordType": "TXT",
            "RecordLine": LINE,
            "Value": value,
        });
        let id = match self.call("CreateRecord", &parameters).await {
            Ok(answer) => number(&answer["RecordId"])?,
            // Left behind by an attempt that was cut off.
            Err(Error::Refused { code, .. }) if code == "InvalidParameter.DomainRecordExist" => {
                self.existing(&zone, host, value).await?
            }
            Err(error) => return Err(error),
        };
        Ok((zone, id.to_string()))
    }

    pub async fn delete(&self, zone: &str, id: &str) -> Result<(), Error> {
        let id: u64 = id.parse().map_err(|_| Error::Answer(NAME))?;
        let parameters = json!({ "Domain": zone, "RecordId": id });
        self.call("DeleteRecord", &parameters).await.map(drop)
    }

    /// The zone as the provider writes it, and the record's name within.
    async fn zone<'n>(&self, name: &'n str) -> Result<(String, &'n str), Error> {
        for candidate in zones(name) {
            // The keyword also finds names that contain it.
            let parameters = json!({ "Keyword": candidate, "Limit": 100 });
            let answer = match self.call("DescribeDomainList", &parameters).await {
                Ok(answer) => answer,
                Err(Error::Refused { code, .. }) if is_nothing_found(&code) => continue,
                Err(error) => return Err(error),
            };
            let found = items(&answer["DomainList"])
                .iter()
                .find(|domain| domain["Name"] == candidate || domain["Punycode"] == candidate);
            if let Some(domain) = found {
                let zone = domain["Name"].as_str().ok_or(Error::Answer(NAME))?;
                return Ok((zone.to_owned(), within(name, candidate)));
            }
        }
        Err(Error::NoZone {
            provider: NAME,
            name: name.to_owned(),
        })
    }

    async fn existing(&self, zone: &str, host: &str, value: &str) -> Result<u64, Error> {
        let parameters = json!({ "Domain": zone, "Subdomain": host, "RecordType": "TXT" });
        let answer = self.call("DescribeRecordList", &parameters).await?;
        let record = items(&answer["RecordList"])
            .iter()
            .find(|record| record["Value"] == value)
            .ok_or(Error::Answer(NAME))?;
        number(&record["RecordId"])
    }

    /// Yields what is in the answer's `Response`.
    async fn call(&self, action: &str, parameters: &Value) -> Result<Value, Error> {
        let payload = parameters.to_string();
        let host = http::authority(self.endpoint)?;
        let now = now();
        let lower = action.to_ascii_lowercase();
        let signed = [
            ("content-type", JSON),
            ("host", host.as_str()),
            ("x-tc-action", lower.as_str()),
        ];
        let key = Key {
            id: self.secret_id,
            secret: self.secret_key,
            service: SERVICE,
        };
        let request = Request::post(format!("{}/", self.endpoint))
            .header(AUTHORIZATION, key.authorization(now, &signed, &payload))
            .header(CONTENT_TYPE, JSON)
            .header(HOST, &host)
            .header(USER_AGENT, http::USER_AGENT)
            .header("x-tc-action", action)
            .header("x-tc-timestamp", now)
            .header("x-tc-version", VERSION)
            .body(Full::new(Bytes::from(payload)))?;
        let (_, mut answer) = self.client.json(request).await?;
        let answer = answer.get_mut("Response").map(Value::take);
        let answer = answer.ok_or(Error::Answer(NAME))?;
        match answer.get("Error") {
            Some(error) => Err(refusal(error)),
            None => Ok(answer),
        }
    }
}

struct Key<'a> {
    id: &'a str,
    secret: &'a Secret,
    service: &'a str,
}

impl Key<'_> {
    fn authorization(&self, unix: u64, headers: &[(&str, &str)], payload: &str) -> String {
        let canonical = canonical("", headers, &sha256(payload.as_bytes()));
        let date = date(unix);
        let scope = format!("{date}/{}/tc3_request", self.service);
        let to_sign = format!("TC3-HMAC-SHA256\n{unix}\n{scope}\n{}", canonical.digest);
        let signature = hex(self.sign(&date, to_sign.as_bytes()).as_ref());
        format!(
            "TC3-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={}, Signature={signature}",
            self.id, canonical.names
        )
    }

    fn sign(&self, date: &str, to_sign: &[u8]) -> aws_lc_rs::hmac::Tag {
        let first = format!("TC3{}", self.secret.expose());
        let of_date = hmac_sha256(first.as_bytes(), date.as_bytes());
        let of_service = hmac_sha256(of_date.as_ref(), self.service.as_bytes());
        let of_request = hmac_sha256(of_service.as_ref(), b"tc3_request");
        hmac_sha256(of_request.as_ref(), to_sign)
    }
}

/// There is no such domain: both have been seen.
fn is_nothing_found(code: &str) -> bool {
    code.starts_with("ResourceNotFound") || code == "InvalidParameterValue.DomainNotExists"
}

fn refusal(error: &Value) -> Error {
    match (error["Code"].as_str(), error["Message"].as_str()) {
        (Some(code), message) => Error::Refused {
            provider: NAME,
            code: text::line(code),
            message: text::line(message.unwrap_or_default()),
        },
        (None, _) => Error::Answer(NAME),
    }
}

fn items(array: &Value) -> &[Value] {
    array.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn number(value: &Value) -> Result<u64, Error> {
    value.as_u64().ok_or(Error::Answer(NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in Tencent Cloud's "Signature v3": the backslashes are in the payload.
    const PAYLOAD: &str =
        r#"{"Limit": 1, "Filters": [{"Values": ["\u672a\u547d\u540d"], "Name": "instance-name"}]}"#;

    /// The manual's key; it blots out its last characters, and signs with the blots.
    fn signature(headers: &[(&str, &str)]) -> String {
        let secret = Secret::new("Gu5t9xGARNpq86cd98joQYCN3*******");
        let key = Key {
            id: "AKIDz8krbsJ5yKBZQpn74WFkmLPx3*******",
            secret: &secret,
            service: "cvm",
        };
        key.authorization(1_551_113_065, headers, PAYLOAD)
    }

    #[test]
    fn signs_as_the_manual_does() {
        let headers = [("content-type", JSON), ("host", "cvm.tencentcloudapi.com")];
        assert_eq!(
            signature(&headers),
            "TC3-HMAC-SHA256 Credential=AKIDz8krbsJ5yKBZQpn74WFkmLPx3*******/2019-02-25/cvm/\
             tc3_request, SignedHeaders=content-type;host, \
             Signature=2230eefd229f582d8b1b891af7107b91597240707d778ab3738f756258d7652c"
        );
    }

    /// The manual's newer edition signs the action, too.
    #[test]
    fn the_action_is_signed() {
        let headers = [
            ("content-type", JSON),
            ("host", "cvm.tencentcloudapi.com"),
            ("x-tc-action", "describeinstances"),
        ];
        let payload = sha256(PAYLOAD.as_bytes());
        assert_eq!(
            payload,
            "35e9c5b0e3ae67532d3c9f17ead6c90222632e5b1ff7f6e89887f1398934f064"
        );
        assert_eq!(
            canonical("", &headers, &payload).digest,
            "7019a55be8395899b900fb5564e4200d984910f34794a27cb3fb7d10ff6a1e84"
        );
        assert!(signature(&headers).contains("content-type;host;x-tc-action"));
    }

    #[test]
    fn an_error_is_told() {
        let error = json!({ "Code": "AuthFailure.SecretIdNotFound", "Message": "no such key" });
        assert_eq!(
            refusal(&error).to_string(),
            "DNSPod refuses: no such key (AuthFailure.SecretIdNotFound)"
        );
        assert!(matches!(refusal(&Value::Null), Error::Answer(_)));
    }
}
