//! The one place where it is decided who may do what. Today there is one kind of caller, the owner of
//! the server: known by the kernel's word on a unix socket, by a token on TCP loopback.

use std::path::Path;
use std::sync::Arc;

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hutong_runtime::paths::atomic_write;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, UnixListener};

use super::error::{ApiError, Result};
use crate::Control;
use crate::store::{Scope, Token};

/// Who is at the other end.
#[derive(Clone, Debug)]
pub enum Peer {
    /// SO_PEERCRED's uid; `None` if the kernel does not say.
    Unix(Option<u32>),
    Tcp,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Peer::Unix(stream.io().peer_cred().ok().map(|peer| peer.uid()))
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(_: IncomingStream<'_, TcpListener>) -> Self {
        Peer::Tcp
    }
}

pub async fn authorize(
    State(control): State<Arc<Control>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Result<Response> {
    match peer {
        Peer::Unix(Some(uid)) if control.admins.contains(&uid) => {}
        Peer::Unix(_) => {
            return Err(ApiError::new(403, "this user may not manage the server")
                .hint("use sudo, or the user that runs `hutong serve`"));
        }
        Peer::Tcp => check_tcp(&control, &request)?,
    }
    Ok(next.run(request).await)
}

/// Why somebody may not.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Credentials are needed, or others (401).
    Unknown,
    /// They are somebody's, and not good for this (403).
    Forbidden(String),
    /// It cannot be looked up now (503).
    Later,
}

/// For what is asked at the platform's own host: whether a token of the app's came with it, as the password of any user
/// (RFC 7617) or as a bearer token (RFC 6750).
pub fn check_token(
    control: &Control,
    headers: &HeaderMap,
    app: &str,
    wanted: Scope,
) -> std::result::Result<Token, Refusal> {
    let value = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let given = value.and_then(secret_of).ok_or(Refusal::Unknown)?;
    check_secret(control, &given, app, wanted)
}

/// The token of a secret, whatever it is good for.
pub fn known_secret(control: &Control, secret: &str) -> std::result::Result<Token, Refusal> {
    let found = control.store.token(&digest_of_token(secret));
    let token = found.map_err(|error| {
        tracing::error!("{error}");
        Refusal::Later
    })?;
    token.ok_or(Refusal::Unknown)
}

/// The same as [`check_token`], of a secret that was taken out of a request already.
pub fn check_secret(
    control: &Control,
    secret: &str,
    app: &str,
    wanted: Scope,
) -> std::result::Result<Token, Refusal> {
    let token = known_secret(control, secret)?;
    if token.app != app {
        return Err(Refusal::Forbidden(format!(
            "this token is for the app {}, not for {app}",
            token.app
        )));
    }
    if wanted == Scope::Push && token.scope != Scope::Push {
        return Err(Refusal::Forbidden("this token may only read".into()));
    }
    Ok(token)
}

/// What is kept of a token.
pub fn digest_of_token(secret: &str) -> String {
    hutong_core::tree::hex(&Sha256::digest(secret.as_bytes()))
}

/// The secret of an `Authorization` header.
fn secret_of(value: &str) -> Option<String> {
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") || rest.len() > 4096 {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
    let (_, password) = decoded.split_once(':')?;
    Some(password.to_owned())
}

/// A web page must not get here: neither by its own name (Host) nor from elsewhere (Origin).
fn check_tcp(control: &Control, request: &Request) -> Result<()> {
    let header = |name| request.headers().get(name).and_then(|v| v.to_str().ok());
    let host = header(HOST).unwrap_or_default();
    let api_host = control.settings.api_host.as_deref();
    let is_named = is_public(host, api_host);
    if !is_named && !is_this_machine(host) {
        return Err(
            ApiError::new(403, "the Host header does not name this machine")
                .hint("on the server: api_host = \"NAME\" in the server file, and restart it"),
        );
    }
    let scheme = if is_named { "https://" } else { "http://" };
    if let Some(origin) = header(ORIGIN)
        && origin.strip_prefix(scheme) != Some(host)
    {
        return Err(ApiError::new(
            403,
            "requests from other origins are refused",
        ));
    }
    let given = header(AUTHORIZATION)
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default();
    let token = control.token.as_deref().unwrap_or_default();
    if token.is_empty() || !bool::from(given.as_bytes().ct_eq(token.as_bytes())) {
        return Err(ApiError::new(401, "a token is needed")
            .hint("it is in the file control/token of the data folder"));
    }
    Ok(())
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_this_machine(host: &str) -> bool {
    matches!(without_port(host), "127.0.0.1" | "localhost" | "[::1]")
}

/// The name that the owner gave the API for other machines: only there a page of somebody else's cannot come from.
fn is_public(host: &str, api_host: Option<&str>) -> bool {
    api_host.is_some_and(|name| without_port(host).eq_ignore_ascii_case(name))
}

/// The token, made on a new server; 0600, and only its path is ever printed.
pub fn token(path: &Path) -> std::result::Result<String, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut random = [0; 32];
            getrandom::fill(&mut random).map_err(|error| error.to_string())?;
            let token = hutong_core::tree::hex(&random);
            atomic_write(path, token.as_bytes(), 0o600).map_err(failed)?;
            Ok(token)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_as_passwords_or_bearer_tokens() {
        assert_eq!(
            secret_of("Basic bWU6c2U6Y3JldA==").as_deref(),
            Some("se:cret")
        );
        assert_eq!(secret_of("bearer  abc").as_deref(), Some("abc"));
        for bad in [
            "",
            "Basic",
            "Basic !!!",
            "Basic bWU=",
            "Digest x",
            "Basic /w==",
        ] {
            assert_eq!(secret_of(bad), None, "{bad:?}");
        }
        assert_eq!(digest_of_token("a").len(), 64);
    }

    #[test]
    fn hosts_of_the_api() {
        for good in ["localhost", "127.0.0.1:9000", "[::1]:9000", "[::1]"] {
            assert!(is_this_machine(good), "{good}");
        }
        for bad in [
            "",
            "localhost.example.com",
            "127.0.0.1.example.com:9000",
            "10.0.0.1",
        ] {
            assert!(!is_this_machine(bad), "{bad}");
        }
        let ours = Some("hutong.example.com");
        assert!(is_public("Hutong.example.com:443", ours));
        assert!(!is_public("hutong.example.com", None));
        for bad in [
            "",
            "example.com",
            "x.hutong.example.com",
            "hutong.example.com:443:1",
        ] {
            assert!(!is_public(bad, ours), "{bad}");
        }
    }
}
