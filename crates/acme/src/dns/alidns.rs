//! Alibaba Cloud DNS: API version 2015-01-09, signature ACS3-HMAC-SHA256. Parameters travel in the query;
//! there is no body.

use aws_lc_rs::rand;
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::signing::{canonical, date_time, hex, hmac_sha256, now, sha256};
use super::{Error, within, zones};
use crate::http::{self, Client};
use crate::secret::Secret;
use crate::text;

const NAME: &str = "Alibaba Cloud DNS";
const ENDPOINT: &str = "https://alidns.aliyuncs.com";
const VERSION: &str = "2015-01-09";

pub struct Api<'a> {
    client: &'a Client,
    key_id: &'a str,
    key_secret: &'a Secret,
    endpoint: &'a str,
}

impl<'a> Api<'a> {
    pub fn new(
        client: &'a Client,
        key_id: &'a str,
        key_secret: &'a Secret,
        endpoint: Option<&'a str>,
    ) -> Self {
        Api {
            client,
            key_id,
            key_secret,
            endpoint: endpoint.unwrap_or(ENDPOINT).trim_end_matches('/'),
        }
    }

    pub async fn present(&self, name: &str, value: &str) -> Result<(String, String), Error> {
        let (zone, host) = self.zone(name).await?;
        let added = self
            .call(
                "AddDomainRecord",
                &[
                    ("DomainName", zone.as_str()),
                    ("RR", host),
                    ("Type", "TXT"),
                    ("Value", value),
                ],
            )
            .await;
        let id = match added {
            Ok(answer) => text_at(&answer, "/RecordId")?.to_owned(),
            // Left behind by an attempt that was cut off.
            Err(Error::Refused { code, .. }) if code == "DomainRecordDuplicate" => {
                self.existing(name, value).await?
            }
            Err(error) => return Err(error),
        };
        Ok((zone, id))
    }

    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        self.call("DeleteDomainRecord", &[("RecordId", id)])
            .await
            .map(drop)
    }

    /// The zone as the provider writes it (names with other letters are not punycode there), and the
    /// record's name within.
    async fn zone<'n>(&self, name: &'n str) -> Result<(String, &'n str), Error> {
        for candidate in zones(name) {
            let answer = self
                .call(
                    "DescribeDomains",
                    &[("KeyWord", candidate), ("SearchMode", "EXACT")],
                )
                .await?;
            let found = items(&answer, "/Domains/Domain").iter().find(|domain| {
                domain["DomainName"] == candidate || domain["PunyCode"] == candidate
            });
            if let Some(domain) = found {
                let zone = text_at(domain, "/DomainName")?.to_owned();
                return Ok((zone, within(name, candidate)));
            }
        }
        Err(Error::NoZone {
            provider: NAME,
            name: name.to_owned(),
        })
    }

    async fn existing(&self, name: &str, value: &str) -> Result<String, Error> {
        let answer = self
            .call(
                "DescribeSubDomainRecords",
                &[("SubDomain", name), ("Type", "TXT")],
            )
            .await?;
        let record = items(&answer, "/DomainRecords/Record")
            .iter()
            .find(|record| record["Value"] == value)
            .ok_or(Error::Answer(NAME))?;
        Ok(text_at(record, "/RecordId")?.to_owned())
    }

    async fn call(&self, action: &str, parameters: &[(&str, &str)]) -> Result<Value, Error> {
        let query = query(parameters);
        let host = http::authority(self.endpoint)?;
        let nothing = sha256(b"");
        let date = date_time(now());
        let nonce = nonce()?;
        let headers = [
            ("host", host.as_str()),
            ("x-acs-action", action),
            ("x-acs-content-sha256", nothing.as_str()),
            ("x-acs-date", date.as_str()),
            ("x-acs-signature-nonce", nonce.as_str()),
            ("x-acs-version", VERSION),
        ];
        let mut request = Request::post(format!("{}/?{query}", self.endpoint))
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, http::USER_AGENT)
            .header(
                AUTHORIZATION,
                authorization(self.key_id, self.key_secret, &query, &headers, &nothing),
            );
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::new()))?;
        let (status, answer) = self.client.json(request).await?;
        match status.is_success() {
            true => Ok(answer),
            false => Err(refusal(&answer)),
        }
    }
}

/// Sorted and encoded as it is signed.
fn query(parameters: &[(&str, &str)]) -> String {
    /// RFC 3986's unreserved characters stand for themselves.
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'_')
        .remove(b'.')
        .remove(b'~');
    let encode = |text: &str| utf8_percent_encode(text, RESERVED).to_string();
    let mut pairs: Vec<String> = parameters
        .iter()
        .map(|(key, value)| format!("{}={}", encode(key), encode(value)))
        .collect();
    pairs.sort_unstable();
    pairs.join("&")
}

fn authorization(
    key_id: &str,
    key_secret: &Secret,
    query: &str,
    headers: &[(&str, &str)],
    payload_digest: &str,
) -> String {
    let canonical = canonical(query, headers, payload_digest);
    let to_sign = format!("ACS3-HMAC-SHA256\n{}", canonical.digest);
    let signature = hmac_sha256(key_secret.expose().as_bytes(), to_sign.as_bytes());
    format!(
        "ACS3-HMAC-SHA256 Credential={key_id},SignedHeaders={},Signature={}",
        canonical.names,
        hex(signature.as_ref())
    )
}

/// A signed request is good once.
fn nonce() -> Result<String, Error> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(hex(&bytes))
}

fn refusal(answer: &Value) -> Error {
    match text_at(answer, "/Code") {
        Ok(code) => Error::Refused {
            provider: NAME,
            code: text::line(code),
            message: text::line(text_at(answer, "/Message").unwrap_or_default()),
        },
        Err(error) => error,
    }
}

fn items<'v>(answer: &'v Value, at: &str) -> &'v [Value] {
    let array = answer.pointer(at).and_then(Value::as_array);
    array.map(Vec::as_slice).unwrap_or_default()
}

fn text_at<'v>(answer: &'v Value, at: &str) -> Result<&'v str, Error> {
    let text = answer.pointer(at).and_then(Value::as_str);
    text.ok_or(Error::Answer(NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fixed example of "Request syntax and signature method V3" (Alibaba Cloud SDK, product
    /// overview).
    #[test]
    fn signs_as_the_manual_does() {
        let nothing = sha256(b"");
        let query = query(&[
            ("RegionId", "cn-shanghai"),
            (
                "ImageId",
                "win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd",
            ),
        ]);
        let date = date_time(1_698_315_752);
        let headers = [
            ("host", "ecs.cn-shanghai.aliyuncs.com"),
            ("x-acs-action", "RunInstances"),
            ("x-acs-content-sha256", nothing.as_str()),
            ("x-acs-date", date.as_str()),
            ("x-acs-signature-nonce", "3156853299f313e23d1673dc12e1703d"),
            ("x-acs-version", "2014-05-26"),
        ];
        let digest = canonical(&query, &headers, &nothing).digest;
        assert_eq!(
            digest,
            "7ea06492da5221eba5297e897ce16e55f964061054b7695beedaac1145b1e259"
        );
        let secret = Secret::new("YourAccessKeySecret");
        let header = authorization("YourAccessKeyId", &secret, &query, &headers, &nothing);
        assert_eq!(
            header,
            "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,SignedHeaders=host;x-acs-action;\
             x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version,\
             Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
        );
    }

    #[test]
    fn a_query_is_sorted_and_encoded() {
        assert_eq!(
            query(&[("b", "x y+z/*~"), ("a", "胡_-.")]),
            "a=%E8%83%A1_-.&b=x%20y%2Bz%2F%2A~"
        );
    }

    #[test]
    fn no_nonce_comes_twice() {
        assert_ne!(nonce().unwrap(), nonce().unwrap());
    }
}
