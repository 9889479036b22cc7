//! Webhooks as GitHub, Gitea, GitLab and Gitee send them: whose they are, and what they say. Nothing that they say is
//! fetched or run; it is only looked which branch to fetch from where the owner said.

use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// How old a signature with a time in it may be, or how far ahead of our clock: Gitee's own bound.
const WINDOW_MS: u64 = 3_600_000;
/// HMAC's block of SHA-256, in bytes (RFC 2104).
const BLOCK: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    GitHub,
    Gitea,
    GitLab,
    Gitee,
}

/// What a webhook is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Only whether we are there.
    Ping,
    /// A branch has other commits now.
    Push(String),
    /// There is no such branch any more.
    Gone(String),
    /// Nothing that we have to do with.
    Other,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Rejected {
    /// The signature or token is missing or wrong.
    Signature,
    /// Its time is too far from our clock's.
    Old,
    /// It is not understood, and why.
    Malformed(String),
}

impl Vendor {
    pub const ALL: [Vendor; 4] = [Vendor::GitHub, Vendor::Gitea, Vendor::GitLab, Vendor::Gitee];

    pub fn word(self) -> &'static str {
        match self {
            Vendor::GitHub => "github",
            Vendor::Gitea => "gitea",
            Vendor::GitLab => "gitlab",
            Vendor::Gitee => "gitee",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Vendor::ALL.into_iter().find(|vendor| vendor.word() == word)
    }

    /// Whether a webhook was sent by whoever has the secret. `now_ms` is milliseconds since 1970.
    pub fn check(
        self,
        headers: &HeaderMap,
        body: &[u8],
        secret: &str,
        now_ms: u64,
    ) -> Result<(), Rejected> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let equal =
            |given: &str, wanted: &str| bool::from(given.as_bytes().ct_eq(wanted.as_bytes()));
        let key = secret.as_bytes();
        let good = match self {
            Vendor::GitHub => {
                let given = header("x-hub-signature-256").and_then(|v| v.strip_prefix("sha256="));
                given.is_some_and(|given| equal(given, &hex(&hmac(key, body))))
            }
            Vendor::Gitea => header("x-gitea-signature")
                .is_some_and(|given| equal(given, &hex(&hmac(key, body)))),
            Vendor::GitLab => header("x-gitlab-token").is_some_and(|given| equal(given, secret)),
            Vendor::Gitee => {
                let given = header("x-gitee-token").ok_or(Rejected::Signature)?;
                let time = header("x-gitee-timestamp").unwrap_or_default();
                // In the one mode it is the secret itself, in the other a signature of the time.
                let signed = format!("{time}\n{secret}");
                let wanted = STANDARD.encode(hmac(key, signed.as_bytes()));
                let given = unescape(given);
                if equal(&given, &wanted) {
                    let sent: u64 = time.parse().map_err(|_| Rejected::Signature)?;
                    if sent.abs_diff(now_ms) > WINDOW_MS {
                        return Err(Rejected::Old);
                    }
                    true
                } else {
                    equal(&given, secret)
                }
            }
        };
        if good {
            Ok(())
        } else {
            Err(Rejected::Signature)
        }
    }

    /// What tells one delivery from another: its content, and what the vendor says that differs from one to the next. A
    /// delivery that somebody sends again has the same, whatever he does to what is not signed.
    pub fn delivery(self, headers: &HeaderMap, body: &[u8]) -> String {
        let mut hash = Sha256::new();
        hash.update(body);
        // Of those that sign the body, nothing else counts: whoever heard one may change the rest.
        let more: &[&str] = match self {
            Vendor::GitHub | Vendor::Gitea => &[],
            Vendor::GitLab => &["idempotency-key", "x-gitlab-event-uuid"],
            Vendor::Gitee => &["x-gitee-timestamp"],
        };
        for name in more {
            hash.update([0u8]);
            hash.update(
                headers
                    .get(*name)
                    .map_or(&b""[..], |value| value.as_bytes()),
            );
        }
        hex(&hash.finalize())
    }

    /// What it says. Called behind [`Vendor::check`] only.
    pub fn event(self, headers: &HeaderMap, body: &[u8]) -> Result<Event, Rejected> {
        let name = match self {
            Vendor::GitHub => "x-github-event",
            Vendor::Gitea => "x-gitea-event",
            Vendor::GitLab => "x-gitlab-event",
            Vendor::Gitee => "x-gitee-event",
        };
        let kind = headers.get(name).and_then(|value| value.to_str().ok());
        let is_delete = match kind {
            Some("ping") => return Ok(Event::Ping),
            Some("push" | "Push Hook") => false,
            Some("delete") => true,
            Some(_) => return Ok(Event::Other),
            None => {
                let why = format!(
                    "the header {name} is missing: is this from {}?",
                    self.word()
                );
                return Err(Rejected::Malformed(why));
            }
        };
        let said: Said = serde_json::from_slice(body).map_err(|_| {
            Rejected::Malformed(
                "the body is no JSON of a push: set the content type application/json".into(),
            )
        })?;
        if is_delete {
            let is_branch = said.ref_type.as_deref() == Some("branch");
            return Ok(match is_branch {
                true => Event::Gone(said.name),
                false => Event::Other,
            });
        }
        let Some(branch) = said.name.strip_prefix("refs/heads/") else {
            return Ok(Event::Other);
        };
        let branch = branch.to_owned();
        let none = |id: &String| !id.is_empty() && id.bytes().all(|c| c == b'0');
        let is_gone = said.deleted == Some(true) || said.after.as_ref().is_some_and(none);
        Ok(match is_gone {
            true => Event::Gone(branch),
            false => Event::Push(branch),
        })
    }
}

/// The part of a push that all of them have.
#[derive(Deserialize)]
struct Said {
    #[serde(rename = "ref")]
    name: String,
    #[serde(default)]
    ref_type: Option<String>,
    #[serde(default)]
    after: Option<String>,
    #[serde(default)]
    deleted: Option<bool>,
}

fn hex(bytes: &[u8]) -> String {
    hutong_core::tree::hex(bytes)
}

/// HMAC-SHA256 (RFC 2104).
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0u8; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new()
        .chain_update(block.map(|byte| byte ^ 0x36))
        .chain_update(message)
        .finalize();
    Sha256::new()
        .chain_update(block.map(|byte| byte ^ 0x5c))
        .chain_update(inner)
        .finalize()
        .into()
}

/// Gitee's documents escape the signature as for a URL, its servers do not always.
fn unescape(text: &str) -> String {
    text.replace("%2B", "+")
        .replace("%2F", "/")
        .replace("%3D", "=")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            let value = HeaderValue::from_str(value).expect("a value");
            (HeaderName::from_static(name), value)
        };
        list.iter().map(field).collect()
    }

    /// RFC 4231, test cases 1, 2 and 6.
    #[test]
    fn hmac_is_as_published() {
        for (key, message, wanted) in [
            (
                &[0x0b; 20][..],
                &b"Hi There"[..],
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                b"Jefe".as_slice(),
                b"what do ya want for nothing?".as_slice(),
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 131][..],
                b"Test Using Larger Than Block-Size Key - Hash Key First".as_slice(),
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ] {
            assert_eq!(hex(&hmac(key, message)), wanted);
        }
    }

    /// GitHub's documents, "Validating webhook deliveries", have this secret, payload and signature.
    #[test]
    fn githubs_own_example_is_taken() {
        let given = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let sent = headers(&[("x-hub-signature-256", given)]);
        let check = |sent: &HeaderMap, body: &[u8], secret: &str| {
            Vendor::GitHub.check(sent, body, secret, 0)
        };
        let secret = "It's a Secret to Everybody";
        assert_eq!(check(&sent, b"Hello, World!", secret), Ok(()));
        let no = Err(Rejected::Signature);
        assert_eq!(check(&sent, b"Hello, World", secret), no);
        assert_eq!(check(&sent, b"Hello, World!", "other"), no);
        assert_eq!(check(&HeaderMap::new(), b"Hello, World!", secret), no);
        let bare = headers(&[("x-hub-signature-256", &given[7..])]);
        assert_eq!(check(&bare, b"Hello, World!", secret), no);
    }

    #[test]
    fn the_others_are_checked_too() {
        let body = b"{}";
        let signed = hex(&hmac(b"s", body));
        let good = headers(&[("x-gitea-signature", &signed)]);
        assert_eq!(Vendor::Gitea.check(&good, body, "s", 0), Ok(()));
        let no = Err(Rejected::Signature);
        assert_eq!(Vendor::Gitea.check(&good, b"{ }", "s", 0), no);
        let good = headers(&[("x-gitlab-token", "s")]);
        assert_eq!(Vendor::GitLab.check(&good, body, "s", 0), Ok(()));
        assert_eq!(Vendor::GitLab.check(&good, body, "t", 0), no);
        // Another vendor's header is none.
        assert_eq!(Vendor::GitHub.check(&good, body, "s", 0), no);
    }

    #[test]
    fn gitee_signs_the_time() {
        let time = 1_700_000_000_000u64;
        let text = time.to_string();
        let signature = STANDARD.encode(hmac(b"s", format!("{time}\ns").as_bytes()));
        let escaped = signature
            .replace('+', "%2B")
            .replace('/', "%2F")
            .replace('=', "%3D");
        let check = |token: &str, time: &str, now: u64| {
            let sent = headers(&[("x-gitee-token", token), ("x-gitee-timestamp", time)]);
            Vendor::Gitee.check(&sent, b"{}", "s", now)
        };
        for token in [&signature, &escaped] {
            assert_eq!(check(token, &text, time + 1000), Ok(()));
            assert_eq!(
                check(token, &text, time + WINDOW_MS + 1),
                Err(Rejected::Old)
            );
            assert_eq!(
                check(token, "1700000000001", time),
                Err(Rejected::Signature)
            );
        }
        assert_eq!(check("s", &text, 0), Ok(()));
        assert_eq!(check("t", &text, 0), Err(Rejected::Signature));
    }

    #[test]
    fn a_delivery_is_known_again() {
        let one = headers(&[("x-github-delivery", "1")]);
        let two = headers(&[("x-github-delivery", "2")]);
        let of = |vendor: Vendor, headers, body| vendor.delivery(headers, body);
        // The id is not signed: changing it makes no new delivery.
        assert_eq!(
            of(Vendor::GitHub, &one, b"a"),
            of(Vendor::GitHub, &two, b"a")
        );
        assert_ne!(
            of(Vendor::GitHub, &one, b"a"),
            of(Vendor::GitHub, &one, b"b")
        );
        let one = headers(&[("x-gitlab-event-uuid", "1")]);
        let two = headers(&[("x-gitlab-event-uuid", "2")]);
        assert_ne!(
            of(Vendor::GitLab, &one, b"a"),
            of(Vendor::GitLab, &two, b"a")
        );
    }

    #[test]
    fn what_they_say_is_read() {
        let read = |vendor: Vendor, name, kind, body: &str| {
            vendor.event(&headers(&[(name, kind)]), body.as_bytes())
        };
        let github = |kind, body| read(Vendor::GitHub, "x-github-event", kind, body);
        let push = Ok(Event::Push("main".into()));
        let gone = Ok(Event::Gone("a/b".into()));
        assert_eq!(
            github("push", r#"{"ref":"refs/heads/main","after":"1"}"#),
            push
        );
        let deleted = r#"{"ref":"refs/heads/a/b","after":"0000","deleted":true}"#;
        assert_eq!(github("push", deleted), gone);
        assert_eq!(github("ping", "{}"), Ok(Event::Ping));
        assert_eq!(github("issues", "{}"), Ok(Event::Other));
        assert_eq!(
            github("push", r#"{"ref":"refs/tags/v1"}"#),
            Ok(Event::Other)
        );
        assert_eq!(
            github("delete", r#"{"ref":"a/b","ref_type":"branch"}"#),
            gone
        );
        assert!(github("push", "payload=%7B").is_err());
        let gitlab = |body| read(Vendor::GitLab, "x-gitlab-event", "Push Hook", body);
        assert_eq!(gitlab(r#"{"ref":"refs/heads/a/b","after":"0000"}"#), gone);
        let gitee = |body| read(Vendor::Gitee, "x-gitee-event", "Push Hook", body);
        assert_eq!(gitee(r#"{"ref":"refs/heads/main","after":"12"}"#), push);
        assert!(Vendor::Gitea.event(&HeaderMap::new(), b"{}").is_err());
    }
}
