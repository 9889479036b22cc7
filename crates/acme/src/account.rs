//! Who we are to a CA: a key and the address of an account. Whoever has the saved text can have
//! certificates for all our names, so it is a secret.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
pub use instant_acme::Account;
use instant_acme::{AccountBuilder, AccountCredentials, ExternalAccountKey, NewAccount};
use serde::Deserialize;
use tracing::info;

use crate::error::{Error, Phase, from_acme};
use crate::http;
use crate::secret::Secret;
use crate::transport::Transport;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The CA's directory, `https://…`.
    pub directory: String,
    /// Mail addresses, with or without `mailto:`.
    #[serde(default)]
    pub contact: Vec<String>,
    #[serde(default)]
    pub eab: Option<Eab>,
    /// Trusted besides the machine's own roots, for a CA of one's own.
    #[serde(default)]
    pub roots_pem: Option<String>,
}

/// Some CAs want an account to be bound to one that was made on their web site.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eab {
    pub kid: String,
    /// Base64url, as the CAs show it.
    pub hmac: Secret,
}

/// The saved account, or a new one if there is none, or none of this CA. The text is to be saved.
///
/// A saved account is not asked for here: that the CA does not know it any more shows with the first
/// order, as [`Error::Account`].
pub async fn account(settings: &Settings, saved: Option<&str>) -> Result<(Account, Secret), Error> {
    let client = http::Client::new(settings.roots_pem.as_deref())
        .map_err(|error| Error::Other(error.to_string()))?;
    let builder = Account::builder_with_http(Box::new(Transport::new(client)));
    match saved.filter(|saved| is_of(saved, &settings.directory)) {
        Some(saved) => restore(builder, saved).await,
        None => register(builder, settings).await,
    }
}

/// An account is only good for the CA that made it; a text that cannot be read is good for none.
fn is_of(saved: &str, directory: &str) -> bool {
    #[derive(Deserialize)]
    struct Saved {
        directory: Option<String>,
    }
    let saved: Option<Saved> = serde_json::from_str(saved).ok();
    saved
        .and_then(|saved| saved.directory)
        .is_some_and(|of| of == directory)
}

async fn restore(builder: AccountBuilder, saved: &str) -> Result<(Account, Secret), Error> {
    // What serde says may quote the text.
    let credentials: AccountCredentials = serde_json::from_str(saved)
        .map_err(|_| Error::Account("what was saved cannot be read".to_owned()))?;
    let account = builder.from_credentials(credentials).await;
    let account = account.map_err(|error| match error {
        instant_acme::Error::KeyRejected => {
            Error::Account("the saved key cannot be read".to_owned())
        }
        other => from_acme(other, Phase::Order, ""),
    })?;
    Ok((account, Secret::new(saved)))
}

async fn register(
    builder: AccountBuilder,
    settings: &Settings,
) -> Result<(Account, Secret), Error> {
    let contact: Vec<String> = settings.contact.iter().map(|c| contact_uri(c)).collect();
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let bound = settings.eab.as_ref().map(binding).transpose()?;
    let (account, credentials) = builder
        .create(&new, settings.directory.clone(), bound.as_ref())
        .await
        .map_err(|error| from_acme(error, Phase::Register, ""))?;
    let saved = serde_json::to_string(&credentials)
        .map_err(|_| Error::Other("the new account cannot be written down".to_owned()))?;
    info!(account = account.id(), "made an account with the CA");
    Ok((account, Secret::new(saved)))
}

fn contact_uri(contact: &str) -> String {
    match contact.contains(':') {
        true => contact.to_owned(),
        false => format!("mailto:{contact}"),
    }
}

fn binding(eab: &Eab) -> Result<ExternalAccountKey, Error> {
    // Some CAs show it padded.
    let text = eab.hmac.expose().trim().trim_end_matches('=');
    let key = BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| Error::Other("the EAB key is not base64url".to_owned()))?;
    Ok(ExternalAccountKey::new(eab.kid.clone(), &key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_of_one_ca() {
        let saved = r#"{"id":"https://ca/1","key_pkcs8":"","directory":"https://ca/dir"}"#;
        assert!(is_of(saved, "https://ca/dir"));
        assert!(!is_of(saved, "https://staging.ca/dir"));
        assert!(!is_of("{}", "https://ca/dir"));
        assert!(!is_of("torn of", "https://ca/dir"));
    }

    #[test]
    fn contacts_become_uris() {
        assert_eq!(contact_uri("a@b.example"), "mailto:a@b.example");
        assert_eq!(contact_uri("mailto:a@b.example"), "mailto:a@b.example");
    }

    #[test]
    fn a_binding_is_base64url() {
        let eab = |hmac: &str| Eab {
            kid: "1".to_owned(),
            hmac: Secret::new(hmac),
        };
        assert!(binding(&eab("zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wE")).is_ok());
        assert!(binding(&eab("YQ==")).is_ok());
        let error = binding(&eab("se cret!")).err().unwrap();
        assert!(!error.to_string().contains("se cret"));
        assert!(!format!("{:?}", eab("secret")).contains("secret"));
    }
}
