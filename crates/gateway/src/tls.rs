//! TLS with visitors: which certificate a name gets, kept in a folder that only the gateway's user reads,
//! exchanged at run time. TLS 1.2 and 1.3, X25519MLKEM768 first (rustls with aws-lc-rs).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use hutong_ipc::files::atomic_write;
use hutong_ipc::gateway::{Challenge, Held, Pem};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use tokio_rustls::rustls;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// The protocol by which a certificate authority asks (RFC 8737 §3).
pub const ACME: &[u8] = b"acme-tls/1";
/// Certificates that are kept at most.
const MAX_HELD: usize = 10_000;

/// Why a certificate is not served.
pub enum Unkept {
    Refused(String),
    /// The disk, not the certificate.
    Unwritten(String),
}

/// Everything about TLS that workers share.
pub struct Tls {
    folder: PathBuf,
    certificates: Arc<ArcSwap<Certificates>>,
    challenges: Arc<ArcSwap<Challenges>>,
    pub visitors: Arc<ServerConfig>,
    pub authorities: Arc<ServerConfig>,
}

#[derive(Debug, Default)]
struct Certificates {
    held: Vec<Held>,
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By the suffix behind `*.`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
}

/// What certificate authorities are to be shown now.
#[derive(Debug, Default)]
struct Challenges {
    answers: HashMap<String, String>,
    certificates: HashMap<String, Arc<CertifiedKey>>,
}

impl Tls {
    /// Reads what is kept in `folder`.
    pub fn open(folder: &Path) -> Result<Self, String> {
        let certificates = Arc::new(ArcSwap::from_pointee(Certificates::default()));
        let challenges = Arc::new(ArcSwap::from_pointee(Challenges::default()));
        let failed = |error: rustls::Error| error.to_string();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = || {
            ServerConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .map(|builder| builder.with_no_client_auth())
        };
        let mut visitors = builder()
            .map_err(failed)?
            .with_cert_resolver(Arc::new(ByName(certificates.clone())));
        visitors.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        visitors.ticketer = aws_lc_rs::Ticketer::new().map_err(failed)?;
        visitors.send_tls13_tickets = 1;
        let mut authorities = builder()
            .map_err(failed)?
            .with_cert_resolver(Arc::new(ByChallenge(challenges.clone())));
        authorities.alpn_protocols = vec![ACME.to_vec()];
        let tls = Tls {
            folder: folder.to_owned(),
            certificates,
            challenges,
            visitors: Arc::new(visitors),
            authorities: Arc::new(authorities),
        };
        tls.load();
        Ok(tls)
    }

    /// Makes what the folder holds the certificates of all workers.
    pub fn load(&self) {
        let mut files: Vec<PathBuf> = fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "pem"))
            .collect();
        files.sort();
        let mut found = Vec::new();
        for path in files.into_iter().take(MAX_HELD) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            match fs::read(&path)
                .map_err(|error| error.to_string())
                .and_then(|text| read(&name, &text, &text))
            {
                Ok(one) => found.push(one),
                Err(reason) => tracing::error!("{}: {reason}", path.display()),
            }
        }
        // Of two for one host an owner's wins, then the one that is good for longer.
        found.sort_by_key(|(held, _)| (held.name.starts_with("own."), held.not_after));
        let mut certificates = Certificates::default();
        for (held, key) in found {
            for host in &held.hosts {
                let (map, host) = match host.strip_prefix("*.") {
                    Some(suffix) => (&mut certificates.wildcard, suffix),
                    None => (&mut certificates.exact, host.as_str()),
                };
                map.insert(host.to_owned(), key.clone());
            }
            certificates.held.push(held);
        }
        self.certificates.store(Arc::new(certificates));
    }

    pub fn held(&self) -> Vec<Held> {
        self.certificates.load().held.clone()
    }

    /// Whether visitors of `host` can be served over TLS.
    pub fn serves(&self, host: &str) -> bool {
        self.certificates.load().find(host).is_some()
    }

    /// Keeps a certificate, if it is one, and serves it from the next handshake on.
    pub fn keep(&self, name: &str, pem: &Pem) -> Result<(), Unkept> {
        read(name, pem.chain.as_bytes(), pem.key.0.as_bytes()).map_err(Unkept::Refused)?;
        let mut text = pem.chain.trim_end().to_owned();
        text.push('\n');
        text.push_str(pem.key.0.trim_end());
        text.push('\n');
        let path = self.path(name).map_err(Unkept::Refused)?;
        let written = atomic_write(&path, text.as_bytes(), 0o600);
        written.map_err(|error| Unkept::Unwritten(error.to_string()))?;
        self.load();
        Ok(())
    }

    pub fn forget(&self, name: &str) -> Result<(), String> {
        match fs::remove_file(self.path(name)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
            _ => {
                self.load();
                Ok(())
            }
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, String> {
        let plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.bytes().all(plain)
        {
            return Err("a certificate is named with small letters, digits, - and .".into());
        }
        Ok(self.folder.join(format!("{name}.pem")))
    }

    /// In place of all challenges before.
    pub fn challenge(&self, list: &[Challenge]) -> Result<(), String> {
        let mut challenges = Challenges::default();
        for challenge in list {
            match challenge {
                Challenge::Http01 { token, answer } => {
                    challenges.answers.insert(token.clone(), answer.clone());
                }
                Challenge::TlsAlpn01 { name, pem } => {
                    let (_, key) = read(name, pem.chain.as_bytes(), pem.key.0.as_bytes())?;
                    challenges.certificates.insert(name.clone(), key);
                }
            }
        }
        self.challenges.store(Arc::new(challenges));
        Ok(())
    }

    /// What a certificate authority that asks for this token is to read.
    pub fn answer(&self, token: &str) -> Option<String> {
        self.challenges.load().answers.get(token).cloned()
    }
}

impl Certificates {
    fn find(&self, host: &str) -> Option<&Arc<CertifiedKey>> {
        self.exact.get(host).or_else(|| {
            // A wildcard stands for one label (RFC 9525 §6.3).
            let (_, suffix) = host.split_once('.')?;
            self.wildcard.get(suffix)
        })
    }
}

#[derive(Debug)]
struct ByName(Arc<ArcSwap<Certificates>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?;
        let certificates = self.0.load();
        certificates
            .find(name)
            .or_else(|| certificates.find(&name.to_ascii_lowercase()))
            .cloned()
    }
}

#[derive(Debug)]
struct ByChallenge(Arc<ArcSwap<Challenges>>);

impl ResolvesServerCert for ByChallenge {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.to_ascii_lowercase();
        self.0.load().certificates.get(&name).cloned()
    }
}

/// A chain and its key, checked against each other.
fn read(name: &str, chain: &[u8], key: &[u8]) -> Result<(Held, Arc<CertifiedKey>), String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the certificate is no PEM: {error}"))?;
    let leaf = chain.first().ok_or("there is no certificate in it")?;
    let held = describe(name, leaf)?;
    // What is wrong with a key is not said in more detail: the text may come from inside of it.
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| "there is no private key in it")?;
    let key = aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|_| "the private key is of a kind that is not supported")?;
    // `keys_match` cannot read a certificate with a critical extension, as those for challenges have.
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|_| "the certificate cannot be read".to_owned())?;
    let public = key
        .public_key()
        .ok_or("the private key has no public one")?;
    if public.as_ref() != parsed.public_key().raw {
        return Err("the private key does not belong to the certificate".into());
    }
    Ok((held, Arc::new(CertifiedKey::new(chain, key))))
}

fn describe(name: &str, leaf: &CertificateDer<'_>) -> Result<Held, String> {
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|_| "the certificate cannot be read".to_owned())?;
    let names = parsed.subject_alternative_name();
    let names = names.ok().flatten().map(|names| &names.value.general_names);
    let hosts: Vec<String> = names
        .into_iter()
        .flatten()
        .filter_map(|name| match name {
            GeneralName::DNSName(host) => Some(host.to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    if hosts.is_empty() {
        return Err("the certificate names no host".into());
    }
    let digest = aws_lc_digest(leaf);
    let issuer = parsed.issuer();
    let organization = issuer.iter_organization().chain(issuer.iter_common_name());
    let issuer = organization
        .filter_map(|part| part.as_str().ok())
        .collect::<Vec<_>>()
        .join(" ");
    Ok(Held {
        name: name.to_owned(),
        hosts,
        issuer,
        not_before: parsed.validity().not_before.timestamp(),
        not_after: parsed.validity().not_after.timestamp(),
        fingerprint: digest,
        renewal_id: renewal_id(&parsed),
    })
}

/// `base64url(key identifier of the authority).base64url(serial number)` (RFC 9773 §4.1).
fn renewal_id(leaf: &X509Certificate<'_>) -> Option<String> {
    let authority = leaf.iter_extensions().find_map(|one| {
        let ParsedExtension::AuthorityKeyIdentifier(authority) = one.parsed_extension() else {
            return None;
        };
        authority.key_identifier.as_ref()
    })?;
    let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    Some(format!("{}.{}", text(authority.0), text(leaf.raw_serial())))
}

fn aws_lc_digest(leaf: &[u8]) -> String {
    let hash = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let hash = hash
        .tls13()
        .map(|suite| suite.common.hash_provider.hash(leaf));
    hash.map(|hash| {
        hash.as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    })
    .unwrap_or_default()
}
