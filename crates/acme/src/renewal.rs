//! The CA's own wish when a certificate be renewed (RFC 9773, "ARI"): before it revokes many at once,
//! or to spread the load.

use std::time::Duration;

use instant_acme::{Account, CertificateIdentifier};

use crate::chain;
use crate::error::{Error, Phase, from_acme};
use crate::schedule::Window;
use crate::text;

/// How a CA calls a certificate; made from the certificate alone.
pub fn identifier(chain_pem: &str) -> Result<CertificateIdentifier<'static>, Error> {
    let leaf = chain::leaf(chain_pem)?;
    let identifier = CertificateIdentifier::try_from(&leaf)
        .map_err(|why| Error::Other(text::line(&why)))?
        .into_owned();
    Ok(identifier)
}

/// The window, and when to ask again. `None`: this CA has no such wishes.
pub async fn window(
    account: &Account,
    certificate: &CertificateIdentifier<'_>,
) -> Result<Option<(Window, Duration)>, Error> {
    match account.renewal_info(certificate).await {
        Ok((info, again)) => {
            let seconds = |timestamp: i64| u64::try_from(timestamp).unwrap_or(0);
            let window = Window {
                start: seconds(info.suggested_window.start.unix_timestamp()),
                end: seconds(info.suggested_window.end.unix_timestamp()),
            };
            Ok(Some((window, again)))
        }
        Err(instant_acme::Error::Unsupported(_)) => Ok(None),
        Err(error) => Err(from_acme(error, Phase::Issue, "the certificate")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_without_an_issuer_key_has_no_identifier() {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        assert!(identifier(&pem).is_err());
    }
}
