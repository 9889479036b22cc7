//! What a CA wants to see before it believes that a name is ours, and who shows it.

use std::future::Future;

use instant_acme::{ChallengeHandle, ChallengeType, Identifier};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::secret::Secret;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    #[serde(rename = "http-01")]
    Http01,
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    #[serde(rename = "dns-01")]
    Dns01,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Http01 => "http-01",
            Kind::TlsAlpn01 => "tls-alpn-01",
            Kind::Dns01 => "dns-01",
        }
    }

    pub(crate) fn of_acme(self) -> ChallengeType {
        match self {
            Kind::Http01 => ChallengeType::Http01,
            Kind::TlsAlpn01 => ChallengeType::TlsAlpn01,
            Kind::Dns01 => ChallengeType::Dns01,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// `http://NAME/.well-known/acme-challenge/TOKEN` answers with the key authorization.
    Http01 {
        token: String,
        key_authorization: String,
    },
    /// Whoever asks for the name with the ALPN protocol `acme-tls/1` gets this certificate.
    TlsAlpn01 {
        name: String,
        cert_pem: String,
        key_pem: Secret,
    },
    /// A TXT record. A name and its wildcard have the same record name and two values at once.
    Dns01 { record_name: String, value: String },
}

/// Shows challenges to the world. `present` returns when the CA may look: a DNS solver waits until the
/// name servers have the record. `clean_up` is called once for each challenge that `present` was called
/// for, also if that failed, and must not mind if there is nothing to clean up.
pub trait Solver: Sync {
    fn present(&self, challenge: &Challenge) -> impl Future<Output = Result<(), String>> + Send;
    fn clean_up(&self, challenge: &Challenge) -> impl Future<Output = ()> + Send;
}

pub(crate) fn of_handle(handle: &ChallengeHandle<'_>, kind: Kind) -> Result<Challenge, Error> {
    let Identifier::Dns(name) = handle.identifier().identifier else {
        return Err(Error::Other(
            "the CA asks about something that is no name".to_owned(),
        ));
    };
    let key_authorization = handle.key_authorization();
    match kind {
        Kind::Http01 => Ok(Challenge::Http01 {
            token: checked(&handle.token)?,
            key_authorization: key_authorization.as_str().to_owned(),
        }),
        Kind::TlsAlpn01 => tls_alpn(name, key_authorization.digest().as_ref()),
        Kind::Dns01 => Ok(Challenge::Dns01 {
            record_name: format!("_acme-challenge.{name}"),
            value: key_authorization.dns_value(),
        }),
    }
}

/// A token becomes part of a path, so it is taken at its word (RFC 8555, 8.1: base64url).
fn checked(token: &str) -> Result<String, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if token.is_empty() || token.len() > 256 || !token.chars().all(plain) {
        return Err(Error::Other("the CA's token is none".to_owned()));
    }
    Ok(token.to_owned())
}

/// RFC 8737: self-signed, this one name, and a critical extension with the digest.
fn tls_alpn(name: &str, digest: &[u8]) -> Result<Challenge, Error> {
    let failed = |error: rcgen::Error| Error::Challenge {
        name: name.to_owned(),
        why: error.to_string(),
    };
    // rcgen panics at any other length; it is a SHA-256.
    if digest.len() != 32 {
        return Err(Error::Other("the digest has a wrong length".to_owned()));
    }
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "ACME challenge");
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Challenge::TlsAlpn01 {
        name: name.to_owned(),
        cert_pem: certificate.pem(),
        key_pem: Secret::new(key.serialize_pem()),
    })
}

#[cfg(test)]
mod tests {
    use x509_parser::extensions::GeneralName;

    use super::*;

    #[test]
    fn the_tls_alpn_certificate_is_as_rfc_8737_wants_it() {
        let challenge = tls_alpn("a.example", &[7; 32]).unwrap();
        let Challenge::TlsAlpn01 {
            cert_pem, key_pem, ..
        } = &challenge
        else {
            panic!("{challenge:?}");
        };
        assert!(key_pem.expose().contains("PRIVATE KEY"));
        assert!(!format!("{challenge:?}").contains("PRIVATE KEY"));
        let der = crate::chain::leaf(cert_pem).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(certificate.subject(), certificate.issuer());
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(
            names.value.general_names,
            [GeneralName::DNSName("a.example")]
        );
        let proof = certificate
            .extensions()
            .iter()
            .find(|e| e.oid.to_id_string() == "1.3.6.1.5.5.7.1.31")
            .unwrap();
        assert!(proof.critical);
        // An OCTET STRING of 32 bytes.
        assert_eq!(proof.value[..2], [0x04, 0x20]);
        assert_eq!(proof.value[2..], [7; 32]);
    }

    #[test]
    fn a_wrong_digest_is_no_panic() {
        assert!(tls_alpn("a.example", &[7; 31]).is_err());
    }

    #[test]
    fn a_token_stays_below_its_folder() {
        assert!(checked("evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA").is_ok());
        let long = "a".repeat(257);
        for bad in ["", "../x", "a/b", "a.b", "a%2f", long.as_str()] {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }
}
