//! Why there is no certificate, told apart by what is to be done about it.

use std::error::Error as StdError;
use std::time::{Duration, Instant};

use instant_acme::{Identifier, Problem};
use thiserror::Error;

use crate::text;
use crate::transport::Busy;

#[derive(Debug, Error)]
pub enum Error {
    /// We asked too often: try again not sooner than the CA says.
    #[error("the CA limits how often one may ask: {detail}")]
    RateLimited {
        detail: String,
        retry_after: Option<Duration>,
    },
    /// The saved account is of no use any more: make a new one.
    #[error("the CA does not know the account any more: {0}")]
    Account(String),
    /// Nothing is wrong with us: try again later.
    #[error("the CA cannot be reached: {detail}")]
    Unreachable {
        detail: String,
        retry_after: Option<Duration>,
    },
    /// The CA's check failed, or it does not want the name. `kind` is the problem's short type:
    /// `dns`, `connection`, `caa`, `unauthorized`, `rejectedIdentifier` and so on.
    #[error("the CA refuses {name}: {detail}")]
    Refused {
        name: String,
        kind: String,
        detail: String,
    },
    /// We could not show what the CA wants to see.
    #[error("the challenge for {name} cannot be answered: {why}")]
    Challenge { name: String, why: String },
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// How long the CA wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::RateLimited { retry_after, .. } | Error::Unreachable { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }
}

/// What was going on: the same problem means different things at different times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A new account: what is refused here is no reason to make another one.
    Register,
    /// A new order, signed with a saved account.
    Order,
    /// Challenges and the certificate itself.
    Issue,
}

/// `name`: whom it is about, if the CA does not say.
pub(crate) fn from_acme(error: instant_acme::Error, phase: Phase, name: &str) -> Error {
    match error {
        instant_acme::Error::Api(problem) => from_problem(&problem, phase, name),
        instant_acme::Error::Timeout(next) => Error::Unreachable {
            detail: "it did not finish in time".to_owned(),
            retry_after: next.map(|next| next.saturating_duration_since(Instant::now())),
        },
        instant_acme::Error::Other(inner) => from_inner(inner),
        other => Error::Other(text::line(&other.to_string())),
    }
}

/// Our own errors come back boxed.
fn from_inner(inner: Box<dyn StdError + Send + Sync>) -> Error {
    let inner = match inner.downcast::<Busy>() {
        Ok(busy) => return from_busy(*busy),
        Err(inner) => inner,
    };
    let detail = text::line(&inner.to_string());
    match inner.downcast::<crate::http::Error>() {
        Ok(_) => Error::Unreachable {
            detail,
            retry_after: None,
        },
        Err(_) => Error::Other(detail),
    }
}

fn from_busy(busy: Busy) -> Error {
    let Busy {
        limited,
        detail,
        retry_after,
    } = busy;
    match limited {
        true => Error::RateLimited {
            detail,
            retry_after,
        },
        false => Error::Unreachable {
            detail,
            retry_after,
        },
    }
}

pub(crate) fn from_problem(problem: &Problem, phase: Phase, name: &str) -> Error {
    let kind = short_type(problem);
    let detail = describe(problem);
    match (kind, phase) {
        ("rateLimited", _) => Error::RateLimited {
            detail,
            retry_after: None,
        },
        ("serverInternal" | "badNonce", _) => Error::Unreachable {
            detail,
            retry_after: None,
        },
        (_, Phase::Register) => Error::Other(format!("the CA makes no account: {detail}")),
        ("accountDoesNotExist", _) | ("unauthorized", Phase::Order) => Error::Account(detail),
        _ if phase == Phase::Issue || is_about_names(kind) => Error::Refused {
            name: culprit(problem).unwrap_or_else(|| name.to_owned()),
            kind: text::line(kind),
            detail,
        },
        _ => Error::Other(format!("the CA refuses the order: {detail}")),
    }
}

fn short_type(problem: &Problem) -> &str {
    let full = problem.r#type.as_deref().unwrap_or_default();
    full.strip_prefix("urn:ietf:params:acme:error:")
        .unwrap_or(full)
}

fn is_about_names(kind: &str) -> bool {
    matches!(
        kind,
        "rejectedIdentifier" | "unsupportedIdentifier" | "malformed" | "caa" | "dns" | "badCSR"
    )
}

/// The one name among several that the CA complains about.
fn culprit(problem: &Problem) -> Option<String> {
    let [only] = problem.subproblems.as_slice() else {
        return None;
    };
    match only.identifier.as_ref()? {
        Identifier::Dns(name) => Some(text::line(name)),
        _ => None,
    }
}

/// The CA's words, for people.
pub(crate) fn describe(problem: &Problem) -> String {
    let mut said: Vec<&str> = Vec::new();
    said.extend(problem.detail.as_deref());
    for part in &problem.subproblems {
        said.extend(part.detail.as_deref());
    }
    if said.is_empty() {
        said.push(match short_type(problem) {
            "" => "it gives no reason",
            kind => kind,
        });
    }
    text::line(&said.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: &str, rest: &str) -> Problem {
        let json = format!(r#"{{"type":"urn:ietf:params:acme:error:{kind}"{rest}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    fn of(kind: &str, phase: Phase) -> Error {
        from_problem(
            &problem(kind, r#","detail":"so it is""#),
            phase,
            "a.example",
        )
    }

    #[test]
    fn tells_what_to_do() {
        assert!(matches!(
            of("rateLimited", Phase::Order),
            Error::RateLimited { .. }
        ));
        assert!(matches!(
            of("accountDoesNotExist", Phase::Order),
            Error::Account(_)
        ));
        assert!(matches!(
            of("unauthorized", Phase::Order),
            Error::Account(_)
        ));
        assert!(matches!(
            of("unauthorized", Phase::Issue),
            Error::Refused { .. }
        ));
        assert!(matches!(
            of("rejectedIdentifier", Phase::Order),
            Error::Refused { .. }
        ));
        assert!(matches!(
            of("serverInternal", Phase::Issue),
            Error::Unreachable { .. }
        ));
        assert!(matches!(
            of("userActionRequired", Phase::Order),
            Error::Other(_)
        ));
    }

    #[test]
    fn a_refused_registration_makes_no_loop() {
        for kind in [
            "accountDoesNotExist",
            "externalAccountRequired",
            "unauthorized",
        ] {
            assert!(
                matches!(of(kind, Phase::Register), Error::Other(_)),
                "{kind}"
            );
        }
    }

    #[test]
    fn names_the_culprit() {
        let rest = r#","detail":"some","subproblems":[
            {"type":"x","detail":"on the list","identifier":{"type":"dns","value":"b.example"}}]"#;
        let error = from_problem(
            &problem("rejectedIdentifier", rest),
            Phase::Order,
            "a.example",
        );
        assert_eq!(
            error.to_string(),
            "the CA refuses b.example: some; on the list"
        );
    }

    #[test]
    fn our_own_errors_are_found_again() {
        let busy = Busy {
            limited: true,
            detail: "slowly".to_owned(),
            retry_after: Some(Duration::from_secs(7)),
        };
        let error = from_acme(instant_acme::Error::Other(Box::new(busy)), Phase::Order, "");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        let unreachable = crate::http::Error::TimeOut("ca.example".to_owned());
        let error = from_acme(
            instant_acme::Error::Other(Box::new(unreachable)),
            Phase::Order,
            "",
        );
        assert!(matches!(error, Error::Unreachable { .. }));
    }
}
