//! Certificates: what is held, and what owners bring. Keys come in and never go out.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use hutong_api::{Authority, Certificate, NewCertificate, Problem};
use hutong_ipc::gateway::{Held, Pem, Secret};

use super::{ApiError, Result};
use crate::Control;
use crate::certs::{NotKept, Source, covers, issuer};

/// Every certificate that is served, and every name that waits for one.
#[utoipa::path(get, path = "/v1/certificates", responses((status = 200, body = Vec<Certificate>)))]
pub async fn list(State(control): State<Arc<Control>>) -> Result<Json<Vec<Certificate>>> {
    let held = control.certs.held().unwrap_or_default();
    let attempts = control.store.attempts()?;
    let shown = |held: &Held| shown(&control, held);
    let mut list: Vec<Certificate> = held.iter().map(shown).collect();
    for host in issuer::wanted(&control) {
        let told = |of: &str| {
            let mut list = attempts.iter();
            list.find(|one| one.host == of && !one.problem.is_empty())
        };
        let by_acme = issuer::source_of(control.certs.acme.as_ref(), &host) == Source::Acme;
        // Where it is the authority's doing, it is so for all names that wait for it.
        let authority = || issuer::ROWS.into_iter().find_map(told).filter(|_| by_acme);
        let good = |one: &Certificate| one.hosts.iter().any(|pattern| covers(pattern, &host));
        let at = list.iter().position(good);
        if at.is_none() && !control.certs.enabled {
            continue;
        }
        let one = match at {
            Some(at) => &mut list[at],
            None => {
                let source = issuer::source_of(control.certs.acme.as_ref(), &host);
                list.push(Certificate {
                    name: source.name(&host),
                    hosts: vec![host.clone()],
                    source: source.word().into(),
                    ..Certificate::default()
                });
                let last = list.len() - 1;
                &mut list[last]
            }
        };
        let waits = one.not_after.is_none();
        if let Some(attempt) = told(&host).or_else(|| authority().filter(|_| waits)) {
            one.problem = Some(attempt.problem.clone());
            one.next_try = Some(attempt.next_s * 1000);
        }
    }
    Ok(Json(list))
}

fn shown(control: &Control, held: &Held) -> Certificate {
    let source = Source::of(&held.name);
    let milliseconds = |seconds: i64| u64::try_from(seconds).unwrap_or(0) * 1000;
    let host = held.hosts.first().cloned().unwrap_or_default();
    let renews = source != Source::Own;
    Certificate {
        name: held.name.clone(),
        hosts: held.hosts.clone(),
        source: source.word().into(),
        issuer: held.issuer.clone(),
        not_before: Some(milliseconds(held.not_before)),
        not_after: Some(milliseconds(held.not_after)),
        renews_at: renews.then(|| issuer::renew_at(control, &host, held) * 1000),
        fingerprint: held.fingerprint.clone(),
        problem: None,
        next_try: None,
    }
}

/// Adds a certificate of the owner's, or replaces it; it is served from the next handshake on.
#[utoipa::path(post, path = "/v1/certificates/{name}", params(("name" = String, Path)), request_body = NewCertificate,
    responses((status = 200, body = Certificate), (status = 422, body = Problem)))]
pub async fn add(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Json(new): Json<NewCertificate>,
) -> Result<Json<Certificate>> {
    let pem = Pem {
        chain: new.chain,
        key: Secret(new.key),
    };
    let kept = control.certs.keep(&own(&name)?, pem).await;
    let kept = kept.map_err(|reason| match reason {
        NotKept::Refused(reason) => ApiError::bad(reason),
        NotKept::Undelivered | NotKept::Unwritten(_) => ApiError::new(503, reason.to_string()),
    })?;
    Ok(Json(shown(&control, &kept)))
}

/// Removes a certificate of the owner's.
#[utoipa::path(delete, path = "/v1/certificates/{name}", params(("name" = String, Path)), responses((status = 200), (status = 404, body = Problem)))]
pub async fn remove(State(control): State<Arc<Control>>, Path(name): Path<String>) -> Result<()> {
    let name = own(&name)?;
    if control.certs.find(&name).is_none() {
        return Err(ApiError::not_found("there is no such certificate of yours"));
    }
    control
        .certs
        .forget(&name)
        .map_err(|reason| ApiError::new(503, reason))
}

/// The name that the gateway keeps it by.
fn own(name: &str) -> Result<String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 40 || !name.bytes().all(plain) {
        return Err(ApiError::bad(
            "a certificate is named with small letters, digits and hyphens, at most 40",
        ));
    }
    Ok(Source::Own.name(name))
}

/// Tries again now for a name whose certificate could not be had.
#[utoipa::path(post, path = "/v1/certificates/{host}/renew", params(("host" = String, Path)), responses((status = 200), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn renew(State(control): State<Arc<Control>>, Path(host): Path<String>) -> Result<()> {
    if !issuer::wanted(&control).contains(&host) {
        return Err(ApiError::not_found("no app serves this host"));
    }
    if issuer::source_of(control.certs.acme.as_ref(), &host) == Source::Acme
        && let Some(limit) = issuer::limit(&control, &host)?
    {
        let until = limit.next_s.saturating_sub(issuer::now());
        return Err(ApiError::conflict(format!(
            "the certificate authority wants to be left alone for another {until} s: {}",
            limit.problem
        )));
    }
    issuer::force(&control, &host)?;
    Ok(())
}

/// The root certificate of this server's own authority, as PEM: who trusts it trusts its local names.
#[utoipa::path(get, path = "/v1/ca", responses((status = 200, body = Authority)))]
pub async fn authority(State(control): State<Arc<Control>>) -> Result<Json<Authority>> {
    let made = issuer::local_authority(&control.data_dir);
    let authority = made.map_err(|reason| ApiError::new(500, reason))?;
    Ok(Json(Authority {
        root_pem: authority.root_pem,
    }))
}
