//! Reading a certificate chain in PEM: only its first certificate is ours.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::error::Error;
use crate::schedule::Life;

pub fn leaf(chain_pem: &str) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(chain_pem.as_bytes())
        .map_err(|_| Error::Other("there is no certificate in the chain".to_owned()))
}

pub fn life(chain_pem: &str) -> Result<Life, Error> {
    let leaf = leaf(chain_pem)?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&leaf)
        .map_err(|_| Error::Other("the certificate cannot be read".to_owned()))?;
    let validity = certificate.validity();
    // Before 1970 is as long over as 1970.
    let seconds = |timestamp: i64| u64::try_from(timestamp).unwrap_or(0);
    Ok(Life {
        not_before: seconds(validity.not_before.timestamp()),
        not_after: seconds(validity.not_after.timestamp()),
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn reads_the_first_certificate() {
        let certificate = |year| {
            let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            params.not_before = date_time_ymd(year, 1, 1);
            params.not_after = date_time_ymd(year, 1, 7);
            let key = KeyPair::generate().unwrap();
            params.self_signed(&key).unwrap().pem()
        };
        let chain = format!("{}\n{}", certificate(2026), certificate(2031));
        let life = life(&chain).unwrap();
        // date -ud 2026-01-01 +%s
        assert_eq!(life.not_before, 1_767_225_600);
        assert_eq!(life.not_after - life.not_before, 6 * 24 * 60 * 60);
    }

    #[test]
    fn refuses_what_is_no_chain() {
        assert!(life("").is_err());
        assert!(life("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    }
}
