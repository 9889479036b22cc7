//! One certificate: an order, its challenges shown, checked and taken down, the certificate fetched.
//! The key is made here and leaves with the result.

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationHandle, AuthorizationStatus, CertificateIdentifier, Identifier, NewOrder,
    Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tracing::debug;

use crate::chain;
use crate::challenge::{self, Challenge, Kind, Solver};
use crate::error::{Error, Phase, from_acme, from_problem};
use crate::secret::Secret;

/// A CA looks from several places, some of them far away.
const READY: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_secs(1))
    .backoff(1.3)
    .timeout(Duration::from_secs(180));
const ISSUED: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.3)
    .timeout(Duration::from_secs(120));

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Our certificate first, then the CA's.
    pub chain_pem: String,
    pub key_pem: Secret,
    /// Unix seconds.
    pub not_before: u64,
    pub not_after: u64,
}

/// `names`: as they are in the DNS (punycode); `replaces`: the certificate that this one takes the place
/// of, see [`crate::renewal::identifier`].
///
/// What was presented is cleaned up in any case, before this returns. Only if the future itself is
/// dropped half-way it is not: let it run to its end, it has time-outs of its own.
pub async fn obtain<S: Solver>(
    account: &Account,
    names: &[String],
    kind: Kind,
    replaces: Option<CertificateIdentifier<'_>>,
    solver: &S,
) -> Result<Issued, Error> {
    let names = checked(names, kind)?;
    let mut order = place(account, &names, replaces).await?;
    let mut presented = Vec::new();
    let authorized = authorize(&mut order, &names, kind, solver, &mut presented).await;
    for challenge in &presented {
        solver.clean_up(challenge).await;
    }
    authorized?;
    fetch(&mut order, &names).await
}

/// Finds before the CA does what the CA would refuse: its patience is limited.
fn checked(names: &[String], kind: Kind) -> Result<Vec<String>, Error> {
    let mut checked = Vec::with_capacity(names.len());
    for name in names {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if let Some(why) = unfit(&name, kind) {
            return Err(Error::Refused {
                name,
                kind: "local".to_owned(),
                detail: why.to_owned(),
            });
        }
        if !checked.contains(&name) {
            checked.push(name);
        }
    }
    if checked.is_empty() {
        return Err(Error::Other("a certificate needs a name".to_owned()));
    }
    Ok(checked)
}

fn unfit(name: &str, kind: Kind) -> Option<&'static str> {
    let base = name.strip_prefix("*.").unwrap_or(name);
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if base.parse::<std::net::IpAddr>().is_ok() {
        return Some("it is an address, not a name");
    }
    if base.is_empty() || base.len() > 253 || !base.chars().all(allowed) {
        return Some("it is no name (names with other letters are written as xn--…)");
    }
    if base.len() < name.len() && kind != Kind::Dns01 {
        return Some("only dns-01 can prove a wildcard");
    }
    None
}

async fn place(
    account: &Account,
    names: &[String],
    replaces: Option<CertificateIdentifier<'_>>,
) -> Result<Order, Error> {
    let label = names.join(", ");
    let identifiers: Vec<Identifier> = names.iter().cloned().map(Identifier::Dns).collect();
    if let Some(replaces) = replaces {
        let new = NewOrder::new(&identifiers).replaces(replaces);
        match account.new_order(&new).await {
            Ok(order) => return Ok(order),
            Err(error) => match from_acme(error, Phase::Order, &label) {
                error @ (Error::RateLimited { .. } | Error::Unreachable { .. }) => {
                    return Err(error);
                }
                // To replace is a courtesy: a CA that does not know how, or that has another opinion
                // about the old certificate, still gives a new one.
                error => debug!(%error, "an order without saying what it replaces"),
            },
        }
    }
    account
        .new_order(&NewOrder::new(&identifiers))
        .await
        .map_err(|error| from_acme(error, Phase::Order, &label))
}

/// `presented` has what must be cleaned up, whatever becomes of the rest.
async fn authorize<S: Solver>(
    order: &mut Order,
    names: &[String],
    kind: Kind,
    solver: &S,
    presented: &mut Vec<Challenge>,
) -> Result<(), Error> {
    present(order, kind, solver, presented).await?;
    // Only when all are there: one that fails costs the CA's patience for all.
    announce(order, kind).await?;
    settle(order, names).await
}

async fn present<S: Solver>(
    order: &mut Order,
    kind: Kind,
    solver: &S,
    presented: &mut Vec<Challenge>,
) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    while let Some(next) = authorizations.next().await {
        let mut authorization = next.map_err(|error| from_acme(error, Phase::Issue, "a name"))?;
        let name = authorization.identifier().to_string();
        if !is_open(&authorization, &name)? {
            continue;
        }
        let Some(handle) = authorization.challenge(kind.of_acme()) else {
            return Err(not_offered(name, kind));
        };
        let challenge = challenge::of_handle(&handle, kind)?;
        debug!(name, kind = kind.as_str(), "presenting");
        // Noted first: a failed attempt may have left something, too.
        presented.push(challenge.clone());
        if let Err(why) = solver.present(&challenge).await {
            return Err(Error::Challenge { name, why });
        }
    }
    Ok(())
}

/// A CA remembers for a while that it believed us.
fn is_open(authorization: &AuthorizationHandle<'_>, name: &str) -> Result<bool, Error> {
    match authorization.status {
        AuthorizationStatus::Pending => Ok(true),
        AuthorizationStatus::Valid => Ok(false),
        status => Err(Error::Refused {
            name: name.to_owned(),
            kind: "unauthorized".to_owned(),
            detail: format!("the CA's authorization is {status:?} already"),
        }),
    }
}

fn not_offered(name: String, kind: Kind) -> Error {
    Error::Refused {
        name,
        kind: "unsupported".to_owned(),
        detail: format!("the CA does not offer {} for it", kind.as_str()),
    }
}

/// Tells the CA to look.
async fn announce(order: &mut Order, kind: Kind) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    while let Some(next) = authorizations.next().await {
        let mut authorization = next.map_err(|error| from_acme(error, Phase::Issue, "a name"))?;
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        let name = authorization.identifier().to_string();
        let Some(mut handle) = authorization.challenge(kind.of_acme()) else {
            return Err(not_offered(name, kind));
        };
        handle
            .set_ready()
            .await
            .map_err(|error| from_acme(error, Phase::Issue, &name))?;
    }
    Ok(())
}

/// Until the CA has looked.
async fn settle(order: &mut Order, names: &[String]) -> Result<(), Error> {
    if order.state().status == OrderStatus::Ready {
        return Ok(());
    }
    let label = names.join(", ");
    match order.poll_ready(&READY).await {
        Ok(OrderStatus::Ready) => Ok(()),
        Ok(_) => Err(refusal(order, label).await),
        Err(error) => Err(from_acme(error, Phase::Issue, &label)),
    }
}

/// An order only says that it is invalid; why is said at the challenge that failed.
async fn refusal(order: &mut Order, label: String) -> Error {
    let mut authorizations = order.authorizations();
    while let Some(next) = authorizations.next().await {
        let Ok(mut authorization) = next else {
            break;
        };
        let name = authorization.identifier().to_string();
        let Ok(state) = authorization.refresh().await else {
            continue;
        };
        if let Some(problem) = state.challenges.iter().find_map(|c| c.error.as_ref()) {
            return from_problem(problem, Phase::Issue, &name);
        }
    }
    Error::Refused {
        name: label,
        kind: String::new(),
        detail: "it gives no reason".to_owned(),
    }
}

async fn fetch(order: &mut Order, names: &[String]) -> Result<Issued, Error> {
    let label = names.join(", ");
    let (csr, key_pem) = request(names)?;
    order
        .finalize_csr(&csr)
        .await
        .map_err(|error| from_acme(error, Phase::Issue, &label))?;
    let chain_pem = order
        .poll_certificate(&ISSUED)
        .await
        .map_err(|error| from_acme(error, Phase::Issue, &label))?;
    let life = chain::life(&chain_pem)?;
    Ok(Issued {
        chain_pem,
        key_pem,
        not_before: life.not_before,
        not_after: life.not_after,
    })
}

/// A signing request (DER) and its key: ECDSA on P-256, what every browser knows.
fn request(names: &[String]) -> Result<(Vec<u8>, Secret), Error> {
    let failed =
        |error: rcgen::Error| Error::Other(format!("the signing request cannot be made: {error}"));
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
    // Names are in the alternative names; the library would invent a common name.
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key).map_err(failed)?;
    Ok((csr.der().to_vec(), Secret::new(key.serialize_pem())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_are_checked_first() {
        let ok = |given: &[&str], kind| checked(&names(given), kind).unwrap();
        assert_eq!(
            ok(&["A.Example.", "a.example"], Kind::Http01),
            ["a.example"]
        );
        assert_eq!(
            ok(&["example.com", "*.example.com"], Kind::Dns01),
            ["example.com", "*.example.com"]
        );
        for (bad, kind) in [
            ("*.example.com", Kind::Http01),
            ("*.example.com", Kind::TlsAlpn01),
            ("192.0.2.1", Kind::Http01),
            ("::1", Kind::Http01),
            ("胡同.example", Kind::Http01),
            ("*.*.example.com", Kind::Dns01),
            ("a b.example", Kind::Http01),
            ("", Kind::Http01),
        ] {
            let error = checked(&names(&[bad]), kind).unwrap_err();
            assert!(matches!(error, Error::Refused { .. }), "{bad}");
        }
        assert!(checked(&[], Kind::Http01).is_err());
    }

    #[test]
    fn a_request_has_its_names_and_a_key() {
        let (csr, key) = request(&names(&["a.example", "*.b.example"])).unwrap();
        let has = |name: &str| csr.windows(name.len()).any(|w| w == name.as_bytes());
        assert!(has("a.example") && has("*.b.example"));
        assert!(!has("rcgen"));
        assert!(KeyPair::from_pem(key.expose()).is_ok());
    }
}
