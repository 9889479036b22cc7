//! A small HTTPS client: bounded in time and in what it reads, follows no redirect, and trusts the
//! machine's roots plus those that the operator adds. Its errors name the host and never the address:
//! a webhook's path may be a secret.

use std::error::Error as StdError;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use thiserror::Error;
use tokio::time::timeout;

use crate::secret::Secret;
use crate::text;

pub const USER_AGENT: &str = concat!("hutong/", env!("CARGO_PKG_VERSION"));
/// No CA and no provider has more to say to us.
const MAX_BODY: usize = 1024 * 1024;
const CONNECT: Duration = Duration::from_secs(10);
/// A whole exchange: look-up, connection, request, answer.
const EXCHANGE: Duration = Duration::from_secs(30);
/// An order is a dozen requests; between two orders nothing needs to stay open.
const IDLE: Duration = Duration::from_secs(20);

#[derive(Debug, Error)]
pub enum Error {
    #[error("this is no address of a web server")]
    Address,
    #[error("{0} is not this machine: it must be asked over HTTPS")]
    Plain(String),
    #[error("the request cannot be made: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("a token may have no such characters")]
    Token,
    #[error("no root certificate can be read: {0}")]
    Roots(String),
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
    #[error("{host} cannot be reached: {why}")]
    Unreachable { host: String, why: String },
    #[error("{0} did not answer within {seconds} seconds", seconds = EXCHANGE.as_secs())]
    TimeOut(String),
    #[error("{0} answers with more than 1 MiB")]
    TooLarge(String),
    #[error("{host} answers with {status} and no JSON")]
    NoJson { host: String, status: StatusCode },
}

/// Cheap to clone; the clones share their connections.
#[derive(Clone, Debug)]
pub struct Client(legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Client {
    /// `extra_roots`: PEM, trusted besides the machine's own roots.
    pub fn new(extra_roots: Option<&str>) -> Result<Self, Error> {
        // The provider is named: with several in one program rustls would not know which to take.
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(Error::Tls)?
            .with_root_certificates(roots(extra_roots)?)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            // Plain HTTP only to this machine, see `check`.
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp());
        Ok(Client(
            legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .build(connector),
        ))
    }

    /// Any status is an answer.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Error> {
        let host = check(request.uri())?;
        match timeout(EXCHANGE, self.exchange(request, &host)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::TimeOut(host)),
        }
    }

    /// For servers that answer everything, errors too, with JSON.
    pub async fn json(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Value), Error> {
        let host = check(request.uri())?;
        let response = self.send(request).await?;
        let status = response.status();
        match serde_json::from_slice(response.body()) {
            Ok(value) => Ok((status, value)),
            Err(_) => Err(Error::NoJson { host, status }),
        }
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        host: &str,
    ) -> Result<Response<Bytes>, Error> {
        let failed = |why: &(dyn StdError + 'static)| Error::Unreachable {
            host: host.to_owned(),
            why: causes(why),
        };
        let response = self.0.request(request).await.map_err(|e| failed(&e))?;
        let (parts, body) = response.into_parts();
        let body = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(Error::TooLarge(host.to_owned()));
            }
            Err(error) => return Err(failed(error.as_ref())),
        };
        Ok(Response::from_parts(parts, body))
    }
}

/// The value of an `Authorization` header; HTTP libraries do not print it.
pub fn bearer(token: &Secret) -> Result<HeaderValue, Error> {
    let mut value =
        HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| Error::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Host and port as they stand in the `Host` header, which some providers want signed.
pub fn authority(url: &str) -> Result<String, Error> {
    let uri: Uri = url.parse().map_err(|_| Error::Address)?;
    check(&uri)?;
    let authority = uri.authority().ok_or(Error::Address)?;
    Ok(authority.as_str().to_owned())
}

/// Yields the host. Keys and tokens travel in these requests, so plain HTTP stays on this machine.
fn check(uri: &Uri) -> Result<String, Error> {
    let host = uri.host().ok_or(Error::Address)?;
    match uri.scheme_str() {
        Some("https") => Ok(host.to_owned()),
        Some("http") if is_this_machine(host) => Ok(host.to_owned()),
        Some("http") => Err(Error::Plain(host.to_owned())),
        _ => Err(Error::Address),
    }
}

fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp
}

fn roots(extra: Option<&str>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if let Some(pem) = extra {
        add_extra(&mut roots, pem)?;
    }
    if roots.is_empty() {
        let why = native.errors.first().map(ToString::to_string);
        let why = why.unwrap_or_else(|| "this machine has none".to_owned());
        return Err(Error::Roots(text::line(&why)));
    }
    Ok(roots)
}

/// Unlike the machine's, these were asked for: one that cannot be read is an error.
fn add_extra(roots: &mut RootCertStore, pem: &str) -> Result<(), Error> {
    let before = roots.len();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| Error::Roots("this is no PEM".to_owned()))?;
        roots
            .add(certificate)
            .map_err(|error| Error::Roots(text::line(&error.to_string())))?;
    }
    if roots.len() == before {
        return Err(Error::Roots("there is no certificate in it".to_owned()));
    }
    Ok(())
}

/// The libraries' outermost error says least: "client error (Connect)".
fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut all = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        all.push_str(": ");
        all.push_str(&cause.to_string());
        source = cause.source();
    }
    text::line(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_stays_on_this_machine() {
        for good in [
            "https://example.com/x",
            "http://127.0.0.1:80/",
            "http://[::1]:8080/",
            "http://localhost/",
        ] {
            assert!(authority(good).is_ok(), "{good}");
        }
        for bad in [
            "http://example.com/",
            "http://10.0.0.1/",
            "http://localhost.example.com/",
            "ftp://127.0.0.1/",
            "/x",
            "",
        ] {
            assert!(authority(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_authority_keeps_its_port() {
        let of = |url| authority(url).unwrap();
        assert_eq!(of("https://alidns.aliyuncs.com"), "alidns.aliyuncs.com");
        assert_eq!(of("http://127.0.0.1:8080/x?y"), "127.0.0.1:8080");
    }

    #[test]
    fn a_token_is_not_shown() {
        let value = bearer(&Secret::new("hush")).unwrap();
        assert_eq!(value, "Bearer hush");
        assert!(!format!("{value:?}").contains("hush"));
        assert!(bearer(&Secret::new("two\nlines")).is_err());
    }

    #[test]
    fn extra_roots_must_be_certificates() {
        let mut roots = RootCertStore::empty();
        assert!(add_extra(&mut roots, "nothing").is_err());
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["ca.example".to_owned()]).unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        add_extra(&mut roots, &pem).unwrap();
        assert_eq!(roots.len(), 1);
    }
}
