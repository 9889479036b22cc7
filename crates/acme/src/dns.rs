//! TXT records at a DNS provider, for the DNS-01 challenge. A record is added beside those that are there:
//! a name and its wildcard need two at once.

mod alidns;
mod cloudflare;
mod dnspod;
mod exec;
mod signing;
mod webhook;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::http::{self, Client};
use crate::secret::Secret;

/// `endpoint`: another address of the provider's API (its international site, or a test's server).
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Provider {
    /// Alibaba Cloud DNS.
    Alidns {
        key_id: String,
        key_secret: Secret,
        #[serde(default)]
        endpoint: Option<String>,
    },
    /// DNSPod, with a key of Tencent Cloud.
    Dnspod {
        secret_id: String,
        secret_key: Secret,
        #[serde(default)]
        endpoint: Option<String>,
    },
    /// With an API token that may read zones and edit DNS.
    Cloudflare {
        token: Secret,
        #[serde(default)]
        endpoint: Option<String>,
    },
    /// A program of the operator's: called with `present` or `cleanup`, the record's name and its value.
    Exec { program: Vec<String> },
    /// A service of the operator's: gets the same by POST.
    Webhook {
        url: String,
        #[serde(default)]
        bearer: Option<Secret>,
    },
}

/// A TXT record that was made: all that is needed to take it away again, also after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub name: String,
    pub value: String,
    /// The provider's names for zone and record; empty where there are none.
    pub zone: String,
    pub id: String,
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("this account with {provider} has no zone for {name}")]
    NoZone {
        provider: &'static str,
        name: String,
    },
    #[error("{provider} refuses: {message} ({code})")]
    Refused {
        provider: &'static str,
        code: String,
        message: String,
    },
    #[error("what {0} answers cannot be understood")]
    Answer(&'static str),
    #[error(transparent)]
    Http(#[from] http::Error),
    #[error("{program} {why}")]
    Program { program: String, why: String },
    #[error("this machine gives no random numbers")]
    Random,
}

impl From<hyper::http::Error> for Error {
    fn from(error: hyper::http::Error) -> Self {
        Error::Http(error.into())
    }
}

impl Provider {
    /// `name`: `_acme-challenge.x.example.com`. To present what is there already is no error.
    pub async fn present(&self, client: &Client, name: &str, value: &str) -> Result<Record, Error> {
        let (zone, id) = match self {
            Provider::Alidns {
                key_id,
                key_secret,
                endpoint,
            } => {
                alidns::Api::new(client, key_id, key_secret, endpoint.as_deref())
                    .present(name, value)
                    .await?
            }
            Provider::Dnspod {
                secret_id,
                secret_key,
                endpoint,
            } => {
                dnspod::Api::new(client, secret_id, secret_key, endpoint.as_deref())
                    .present(name, value)
                    .await?
            }
            Provider::Cloudflare { token, endpoint } => {
                cloudflare::Api::new(client, token, endpoint.as_deref())
                    .present(name, value)
                    .await?
            }
            Provider::Exec { program } => {
                exec::run(program, "present", name, value).await?;
                Default::default()
            }
            Provider::Webhook { url, bearer } => {
                webhook::post(client, url, bearer.as_ref(), "present", name, value).await?;
                Default::default()
            }
        };
        Ok(Record {
            name: name.to_owned(),
            value: value.to_owned(),
            zone,
            id,
        })
    }

    pub async fn clean_up(&self, client: &Client, record: &Record) -> Result<(), Error> {
        let Record {
            name,
            value,
            zone,
            id,
        } = record;
        match self {
            Provider::Alidns {
                key_id,
                key_secret,
                endpoint,
            } => {
                alidns::Api::new(client, key_id, key_secret, endpoint.as_deref())
                    .delete(id)
                    .await
            }
            Provider::Dnspod {
                secret_id,
                secret_key,
                endpoint,
            } => {
                dnspod::Api::new(client, secret_id, secret_key, endpoint.as_deref())
                    .delete(zone, id)
                    .await
            }
            Provider::Cloudflare { token, endpoint } => {
                cloudflare::Api::new(client, token, endpoint.as_deref())
                    .delete(zone, id)
                    .await
            }
            Provider::Exec { program } => exec::run(program, "cleanup", name, value).await,
            Provider::Webhook { url, bearer } => {
                webhook::post(client, url, bearer.as_ref(), "cleanup", name, value).await
            }
        }
    }

    /// How long a new record usually takes to reach all of the provider's name servers. A program or a
    /// service of the operator's says itself when it is done.
    pub fn settling(&self) -> Duration {
        match self {
            Provider::Alidns { .. } | Provider::Dnspod { .. } => Duration::from_secs(20),
            Provider::Cloudflare { .. } => Duration::from_secs(10),
            Provider::Exec { .. } | Provider::Webhook { .. } => Duration::ZERO,
        }
    }
}

/// Where the zone of a record may begin, the longest first: for `_acme-challenge.x.example.com` they are
/// `x.example.com` and `example.com`. No top-level domain is anybody's zone.
fn zones(name: &str) -> impl Iterator<Item = &str> {
    /// Each costs a request.
    const MOST: usize = 8;
    name.match_indices('.')
        .map(|(dot, _)| &name[dot + 1..])
        .filter(|zone| zone.contains('.'))
        .take(MOST)
}

/// The record's name within its zone.
fn within<'n>(name: &'n str, zone: &str) -> &'n str {
    match name.strip_suffix(zone).and_then(|n| n.strip_suffix('.')) {
        Some(within) => within,
        None => "@",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_tried_from_the_longest() {
        fn of(name: &str) -> Vec<&str> {
            zones(name).collect()
        }
        assert_eq!(
            of("_acme-challenge.x.example.com.cn"),
            ["x.example.com.cn", "example.com.cn", "com.cn"]
        );
        assert_eq!(of("_acme-challenge.example.com"), ["example.com"]);
        assert!(of("_acme-challenge.com").is_empty());
        assert_eq!(of(&"a.".repeat(100)).len(), 8);
    }

    #[test]
    fn a_record_has_a_name_within_its_zone() {
        let name = "_acme-challenge.x.example.com";
        assert_eq!(within(name, "example.com"), "_acme-challenge.x");
        assert_eq!(within(name, "x.example.com"), "_acme-challenge");
        assert_eq!(within("example.com", "example.com"), "@");
    }

    #[test]
    fn settings_are_read_and_secrets_not_shown() {
        let provider: Provider =
            serde_json::from_str(r#"{"type":"alidns","key_id":"LTAI","key_secret":"hush"}"#)
                .unwrap();
        let shown = format!("{provider:?}");
        assert!(shown.contains("LTAI") && !shown.contains("hush"), "{shown}");
        for good in [
            r#"{"type":"dnspod","secret_id":"a","secret_key":"b"}"#,
            r#"{"type":"cloudflare","token":"a","endpoint":"https://x.example"}"#,
            r#"{"type":"exec","program":["/bin/x","y"]}"#,
            r#"{"type":"webhook","url":"https://x.example"}"#,
        ] {
            assert!(serde_json::from_str::<Provider>(good).is_ok(), "{good}");
        }
        let misspelt = r#"{"type":"cloudflare","token":"a","tokn":"b"}"#;
        assert!(serde_json::from_str::<Provider>(misspelt).is_err());
    }
}
