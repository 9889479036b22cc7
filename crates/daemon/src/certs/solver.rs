//! Shows a certificate authority what it asks for: through the gateway, or in the DNS.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hutong_acme::challenge::{Challenge, Solver};
use hutong_acme::dns::Record;
use hutong_acme::http::Client;
use hutong_ipc::gateway::{self as wire, Nudge, Pem, Secret};

use super::Certs;
use crate::{Control, lock};

/// The gateway puts challenges in place at once.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Show {
    control: Arc<Control>,
    dns: Option<Client>,
    records: Mutex<HashMap<String, Record>>,
}

impl Show {
    pub fn new(control: &Arc<Control>) -> Result<Self, String> {
        let acme = control.certs.acme.as_ref();
        let dns = match acme.filter(|acme| acme.dns.is_some()) {
            Some(acme) => {
                Some(Client::new(acme.roots_pem.as_deref()).map_err(|error| error.to_string())?)
            }
            None => None,
        };
        Ok(Show {
            control: control.clone(),
            dns,
            records: Mutex::default(),
        })
    }

    async fn record(&self, name: &str, value: &str) -> Result<(), String> {
        let acme = self.control.certs.acme.as_ref();
        let (Some(provider), Some(client)) = (acme.and_then(|a| a.dns.as_ref()), &self.dns) else {
            return Err("no DNS provider is set".into());
        };
        let record = provider.present(client, name, value).await;
        let record = record.map_err(|error| error.to_string())?;
        lock(&self.records).insert(format!("{name} {value}"), record);
        tokio::time::sleep(provider.settling()).await;
        Ok(())
    }

    async fn remove_record(&self, name: &str, value: &str) {
        let record = lock(&self.records).remove(&format!("{name} {value}"));
        let acme = self.control.certs.acme.as_ref();
        let provider = acme.and_then(|acme| acme.dns.as_ref());
        if let (Some(record), Some(provider), Some(client)) = (record, provider, &self.dns)
            && let Err(error) = provider.clean_up(client, &record).await
        {
            tracing::warn!("the DNS record {name} stays: {error}");
        }
    }
}

impl Solver for Show {
    async fn present(&self, challenge: &Challenge) -> Result<(), String> {
        match challenge {
            Challenge::Dns01 { record_name, value } => self.record(record_name, value).await,
            Challenge::Http01 {
                token,
                key_authorization,
            } => {
                let wire = wire::Challenge::Http01 {
                    token: token.clone(),
                    answer: key_authorization.clone(),
                };
                self.control.certs.show(token, Some(wire)).await
            }
            Challenge::TlsAlpn01 {
                name,
                cert_pem,
                key_pem,
            } => {
                let wire = wire::Challenge::TlsAlpn01 {
                    name: name.clone(),
                    pem: Box::new(Pem {
                        chain: cert_pem.clone(),
                        key: Secret(key_pem.expose().to_owned()),
                    }),
                };
                self.control.certs.show(name, Some(wire)).await
            }
        }
    }

    async fn clean_up(&self, challenge: &Challenge) {
        let _ = match challenge {
            Challenge::Dns01 { record_name, value } => {
                self.remove_record(record_name, value).await;
                Ok(())
            }
            Challenge::Http01 { token, .. } => self.control.certs.show(token, None).await,
            Challenge::TlsAlpn01 { name, .. } => self.control.certs.show(name, None).await,
        };
    }
}

impl Certs {
    /// What is shown now.
    pub fn shown(&self) -> Vec<wire::Challenge> {
        lock(&self.challenges).values().cloned().collect()
    }

    /// Puts a challenge in place, or takes it away; returns when every worker of the gateway has it.
    pub async fn show(&self, key: &str, challenge: Option<wire::Challenge>) -> Result<(), String> {
        let all = {
            let mut challenges = lock(&self.challenges);
            match challenge {
                Some(challenge) => challenges.insert(key.to_owned(), challenge),
                None => challenges.remove(key),
            };
            challenges.values().cloned().collect()
        };
        let mut done = self.challenged.subscribe();
        done.mark_unchanged();
        self.send(Nudge::Challenges(all))?;
        tokio::time::timeout(PATIENCE, done.changed())
            .await
            .map(drop)
            .map_err(|_| "the gateway does not answer".to_owned())
    }
}
