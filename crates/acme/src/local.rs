//! A certificate authority of our own, for the demo, for intranets, and for names that no public one
//! signs. Whoever trusts its root trusts every name that it signs: its key stays with control.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::secret::Secret;

/// Of the root, and of what it signs: browsers take no more than 398 days.
const ROOT_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 90;
/// Clocks differ.
const BEFORE: Duration = Duration::hours(1);

pub struct Authority {
    pub root_pem: String,
    key_pem: Secret,
}

impl Authority {
    /// A new one; `server` is part of its name, so that two can be told apart.
    pub fn new(server: &str) -> Result<Self, String> {
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("Hutong local CA {server}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        span(&mut params, ROOT_DAYS);
        let root = params
            .self_signed(&key)
            .map_err(|error| error.to_string())?;
        Ok(Authority {
            root_pem: root.pem(),
            key_pem: Secret::new(key.serialize_pem()),
        })
    }

    /// The one that was saved as root and key.
    pub fn restore(root_pem: String, key_pem: Secret) -> Self {
        Authority { root_pem, key_pem }
    }

    pub fn key_pem(&self) -> &Secret {
        &self.key_pem
    }

    /// A certificate for `host` (it may be a wildcard) and its key, as PEM.
    pub fn sign(&self, host: &str) -> Result<(String, Secret), String> {
        let broken = "the local CA's key cannot be read".to_owned();
        let key = KeyPair::from_pem(self.key_pem.expose()).map_err(|_| broken)?;
        let failed = |error: rcgen::Error| error.to_string();
        let issuer = Issuer::from_ca_cert_pem(&self.root_pem, key).map_err(failed)?;
        let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(failed)?;
        params.distinguished_name = named(host);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        span(&mut params, LEAF_DAYS);
        let own = KeyPair::generate().map_err(failed)?;
        let leaf = params.signed_by(&own, &issuer).map_err(failed)?;
        Ok((leaf.pem(), Secret::new(own.serialize_pem())))
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    // The field's bound (RFC 5280, A.1).
    distinguished.push(
        DnType::CommonName,
        name.chars().take(64).collect::<String>(),
    );
    distinguished
}

fn span(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BEFORE;
    params.not_after = now + Duration::days(days);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_signs_names_the_host_and_the_root() {
        let authority = Authority::new("test").unwrap();
        let saved = Authority::restore(authority.root_pem.clone(), authority.key_pem.clone());
        let (leaf, key) = saved.sign("*.a.test").unwrap();
        assert!(KeyPair::from_pem(key.expose()).is_ok());
        let (root, leaf) = (
            crate::chain::leaf(&authority.root_pem).unwrap(),
            crate::chain::leaf(&leaf).unwrap(),
        );
        let (_, root) = x509_parser::parse_x509_certificate(&root).unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        assert_eq!(leaf.issuer(), root.subject());
        assert!(root.is_ca() && !leaf.is_ca());
    }
}
