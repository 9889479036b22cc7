//! The API over TLS: the certificate is verified against the machine's roots, or against an authority of the user's own
//! and no other.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hutong_api::client::{Dial, DialError, Dialling, Stream};
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::address::bracketed;

const CONNECT: Duration = Duration::from_secs(15);
/// For one of several addresses of a name: one that swallows everything must not use up the time of the others.
const ONE_ADDRESS: Duration = Duration::from_secs(4);
/// A connection that is silently gone is noticed within a minute or so, as with ssh.
const ALIVE_AFTER: Duration = Duration::from_secs(20);
const ALIVE_TRIES: u32 = 3;
const UNANSWERED: Duration = Duration::from_secs(60);

/// A server behind TLS.
#[derive(Clone, Debug)]
pub struct Https {
    pub host: String,
    pub port: u16,
    /// PEM; the only authority that counts, if there is one.
    pub ca: Option<String>,
}

impl Dial for Https {
    fn dial(&self) -> Dialling<'_> {
        Box::pin(self.connect())
    }

    fn host(&self) -> String {
        let host = bracketed(&self.host);
        match self.port {
            443 => host,
            port => format!("{host}:{port}"),
        }
    }
}

impl Https {
    async fn connect(&self) -> Result<Box<dyn Stream>, DialError> {
        let place = Dial::host(self);
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| DialError::new(format!("`{}` is not a host", self.host)))?;
        let tls = TlsConnector::from(Arc::new(self.config()?));
        let work = async {
            let tcp = self.reach().await.map_err(|error| {
                DialError::new(format!("no server answers at {place}: {error}"))
            })?;
            // Requests are small, and are answered before the next one.
            let _ = tcp.set_nodelay(true);
            watch_over(&tcp);
            tls.connect(name, tcp).await.map_err(|error| {
                DialError::new(format!("{place}: no TLS connection: {error}")).hint(
                    "an authority of your own is named with `hutong login --ca FILE`; `hutong cert ca` prints that of a server",
                )
            })
        };
        match tokio::time::timeout(CONNECT, work).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(DialError::new(format!(
                "{place} did not answer within {} s",
                CONNECT.as_secs()
            ))),
        }
    }

    /// Tries the host's addresses, one after the other.
    async fn reach(&self) -> io::Result<TcpStream> {
        let mut left: VecDeque<SocketAddr> =
            tokio::net::lookup_host((self.host.as_str(), self.port))
                .await?
                .collect();
        let mut failed = io::Error::from(io::ErrorKind::NotFound);
        while let Some(address) = left.pop_front() {
            let connecting = TcpStream::connect(address);
            let connected = match left.is_empty() {
                // It has all the time that is left.
                true => connecting.await,
                false => match tokio::time::timeout(ONE_ADDRESS, connecting).await {
                    Ok(connected) => connected,
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                },
            };
            match connected {
                Ok(tcp) => return Ok(tcp),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn config(&self) -> Result<ClientConfig, DialError> {
        let roots = match &self.ca {
            Some(pem) => own_roots(pem).map_err(DialError::new)?,
            None => system_roots()?,
        };
        // The provider is named: with several in one program rustls would not know which to take.
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|error| DialError::new(format!("TLS cannot be set up: {error}")))?
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Without this an answer from a machine that is gone would be waited for without end.
fn watch_over(tcp: &TcpStream) {
    let _ = sockopt::set_socket_keepalive(tcp, true);
    let _ = sockopt::set_tcp_keepidle(tcp, ALIVE_AFTER);
    let _ = sockopt::set_tcp_keepintvl(tcp, ALIVE_AFTER);
    let _ = sockopt::set_tcp_keepcnt(tcp, ALIVE_TRIES);
    let milliseconds = u32::try_from(UNANSWERED.as_millis()).unwrap_or(u32::MAX);
    let _ = sockopt::set_tcp_user_timeout(tcp, milliseconds);
}

/// The certificates of a PEM file.
///
/// # Errors
/// It holds none, or one that cannot be read.
pub fn own_roots(pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| "the authority's file is no PEM".to_owned())?;
        roots
            .add(certificate)
            .map_err(|error| format!("the authority's certificate cannot be used: {error}"))?;
    }
    match roots.is_empty() {
        true => Err("there is no certificate in the authority's file".into()),
        false => Ok(roots),
    }
}

fn system_roots() -> Result<RootCertStore, DialError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match roots.is_empty() {
        true => Err(DialError::new("this machine has no root certificates")
            .hint("install ca-certificates, or name an authority with `hutong login --ca FILE`")),
        false => Ok(roots),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_named_where_it_is_another() {
        let at = |port| Https {
            host: "::1".into(),
            port,
            ca: None,
        };
        assert_eq!(Dial::host(&at(443)), "[::1]");
        assert_eq!(Dial::host(&at(8443)), "[::1]:8443");
    }

    #[tokio::test]
    async fn a_connection_is_watched_over() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port");
        let there = Https {
            host: "127.0.0.1".into(),
            port: listener.local_addr().expect("an address").port(),
            ca: None,
        };
        let tcp = there.reach().await.expect("connected");
        watch_over(&tcp);
        assert_eq!(sockopt::socket_keepalive(&tcp).ok(), Some(true));
        assert_eq!(sockopt::tcp_keepidle(&tcp).ok(), Some(ALIVE_AFTER));
        assert_eq!(sockopt::tcp_user_timeout(&tcp).ok(), Some(60_000));
    }

    #[test]
    fn what_is_no_authority_is_refused() {
        assert!(own_roots("").is_err());
        assert!(
            own_roots("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err()
        );
    }
}
