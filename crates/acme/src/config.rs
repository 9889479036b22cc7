//! The `[acme]` table of the server file.

use std::net::IpAddr;

use serde::Deserialize;

use crate::account::{Eab, Settings};
use crate::challenge::Kind;
use crate::dns::Provider;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The CA's directory: a URL, or `letsencrypt` (the default) or `letsencrypt-staging`.
    #[serde(default = "letsencrypt")]
    directory: String,
    /// Where the CA writes to.
    #[serde(default)]
    pub email: Option<String>,
    #[serde(default)]
    pub eab: Option<Eab>,
    #[serde(default = "http01")]
    pub challenge: Kind,
    /// Who holds our DNS records, for dns-01.
    #[serde(default)]
    pub dns: Option<Provider>,
    /// Trusted besides the machine's own roots, PEM.
    #[serde(default)]
    pub roots_pem: Option<String>,
    /// The addresses by which this server is reached from outside, where they are known.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

fn letsencrypt() -> String {
    "letsencrypt".to_owned()
}

fn http01() -> Kind {
    Kind::Http01
}

impl Config {
    /// What is wrong with it, if anything.
    pub fn check(&self) -> Result<(), String> {
        if self.challenge == Kind::Dns01 && self.dns.is_none() {
            return Err("challenge = \"dns-01\" needs a table [acme.dns]".to_owned());
        }
        let known = ["letsencrypt", "letsencrypt-staging"].contains(&self.directory.as_str());
        if !known && !self.directory.starts_with("https://") {
            return Err(
                "acme.directory is letsencrypt, letsencrypt-staging or an https:// URL".to_owned(),
            );
        }
        Ok(())
    }

    /// Whether a name could be had at all.
    pub fn can(&self, host: &str) -> bool {
        !host.starts_with("*.") || self.challenge == Kind::Dns01
    }

    pub fn account(&self) -> Settings {
        let directory = match self.directory.as_str() {
            "letsencrypt" => "https://acme-v02.api.letsencrypt.org/directory",
            "letsencrypt-staging" => "https://acme-staging-v02.api.letsencrypt.org/directory",
            url => url,
        };
        Settings {
            directory: directory.to_owned(),
            contact: self.email.iter().cloned().collect(),
            eab: self.eab.clone(),
            roots_pem: self.roots_pem.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told() {
        let check = |text: &str| {
            let config: Config = serde_json::from_str(text).map_err(|error| error.to_string())?;
            config.check()
        };
        assert_eq!(check("{}"), Ok(()));
        assert!(check(r#"{"challenge":"dns-01"}"#).is_err());
        assert!(check(r#"{"directory":"http://ca"}"#).is_err());
        assert!(check(r#"{"chalenge":"dns-01"}"#).is_err());
    }
}
