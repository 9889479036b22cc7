//! Who may do what: asked of whoever mounts the registry, and decided nowhere here.

use std::fmt;

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What a request does to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pull,
    Push,
    Delete,
}

/// What came in the `Authorization` header; not checked.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// RFC 7617: what `docker login` asks for.
    Basic {
        user: String,
        password: String,
    },
    Bearer(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Basic { user, .. } => write!(f, "Basic({user:?}, …)"),
            Credentials::Bearer(_) => f.write_str("Bearer(…)"),
        }
    }
}

impl Credentials {
    /// None where there are none, or none that can be read.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, rest) = value.split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Credentials::Bearer(rest.to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        Some(Credentials::Basic {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// Credentials are needed, or others: 401, with a challenge.
    Unknown,
    /// Known, and not allowed: 403.
    Forbidden,
    /// It cannot be said now: 503, with a time to come again.
    Later,
}

/// The caller's rules. Asked for each request, on a thread that may wait.
pub trait Access: Send + Sync {
    /// `repository` is a valid name, or empty: then the question is only whether these credentials are anybody's
    /// (`GET /v2/`, which is how clients log in). A mount from another repository asks about that one, too.
    fn may(&self, credentials: Option<&Credentials>, repository: &str, action: Action) -> Verdict;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Option<Credentials> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().expect("a value"));
        Credentials::of(&headers)
    }

    #[test]
    fn credentials_are_read_and_never_shown() {
        let basic = read("Basic bWU6c2U6Y3JldA==").expect("good");
        let Credentials::Basic { user, password } = &basic else {
            panic!("basic");
        };
        assert_eq!((user.as_str(), password.as_str()), ("me", "se:cret"));
        assert_eq!(format!("{basic:?}"), "Basic(\"me\", …)");
        let bearer = read("bearer  abc ").expect("good");
        assert_eq!(bearer, Credentials::Bearer("abc".into()));
        assert!(!format!("{bearer:?}").contains("abc"));
        for bad in [
            "",
            "Basic",
            "Basic !!!",
            "Basic bWU=",
            "Digest x",
            "Basic /w==",
        ] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        assert_eq!(Credentials::of(&HeaderMap::new()), None);
    }
}
