//! The CA's own wish when a certificate be renewed (RFC 9773, "ARI"): before it revokes many at once,
//! or to spread the load.

use std::time::Duration;

pub use instant_acme::CertificateIdentifier;

use crate::account::Account;

use crate::error::{Error, Phase, from_acme};
use crate::schedule::Window;

/// How a CA calls a certificate, from how it is written (RFC 9773 §4.1).
pub fn identifier(written: &str) -> Option<CertificateIdentifier<'static>> {
    let (authority, serial) = written.split_once('.')?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let good = |part: &str| !part.is_empty() && part.bytes().all(plain);
    (good(authority) && good(serial)).then(|| CertificateIdentifier {
        authority_key_identifier: authority.to_owned().into(),
        serial: serial.to_owned().into(),
    })
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
    fn an_identifier_has_two_parts_that_fit_into_an_address() {
        let written = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE";
        assert_eq!(identifier(written).unwrap().to_string(), written);
        for bad in ["", "a", "a.", ".a", "a.b.c", "a./b", "a.b?"] {
            assert!(identifier(bad).is_none(), "{bad}");
        }
    }
}
