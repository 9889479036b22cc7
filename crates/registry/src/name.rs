//! What may name a repository, a tag, an upload: checked once when made, because each becomes a name of a file.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use crate::digest::{Digest, DigestError};

/// Many clients allow 255 characters for `HOST/NAME` (distribution spec, "Pulling manifests"): so some remain for the
/// host.
pub const MAX_NAME: usize = 200;
pub const MAX_TAG: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    #[error(
        "a repository's name has lower-case letters and digits, in parts between slashes, with single separators (. _ __ or dashes) within them, and {} characters at most",
        MAX_NAME
    )]
    Repository,
    #[error(
        "a tag has letters, digits, _ . and -, begins with none of the last two, and has {} characters at most",
        MAX_TAG
    )]
    Tag,
}

/// `<name>` of the distribution spec: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(Arc<str>);

impl RepositoryName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// One folder for each repository, and none within another: `+` is in no name.
    pub(crate) fn folder(&self) -> String {
        self.0.replace('/', "+")
    }

    pub(crate) fn from_folder(folder: &str) -> Option<Self> {
        folder.replace('+', "/").parse().ok()
    }
}

fn is_component(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    plain(*first)
        && plain(*last)
        && bytes
            .split(|c| plain(*c))
            .all(|gap| matches!(gap, b"" | b"." | b"_" | b"__") || gap.iter().all(|c| *c == b'-'))
}

impl FromStr for RepositoryName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() <= MAX_NAME && text.split('/').all(is_component) {
            Ok(RepositoryName(text.into()))
        } else {
            Err(NameError::Repository)
        }
    }
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(Box<str>);

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-');
        let good = (1..=MAX_TAG).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text.bytes().all(plain);
        if good {
            Ok(Tag(text.into()))
        } else {
            Err(NameError::Tag)
        }
    }
}

/// `<tag-or-digest>`
#[derive(Clone, PartialEq, Eq)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReferenceError {
    #[error(transparent)]
    Tag(#[from] NameError),
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        // No tag has a colon, and each digest has one.
        Ok(if text.contains(':') {
            Reference::Digest(text.parse()?)
        } else {
            Reference::Tag(text.parse()?)
        })
    }
}

/// The "UUID representing a unique session ID" of an upload.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct UploadId(Box<str>);

impl UploadId {
    /// Version 4 of RFC 9562, so nobody guesses another's.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0u8; 16];
        let count = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
        if count != bytes.len() {
            return Err(std::io::Error::other("too little randomness"));
        }
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        let hex = hutong_core::tree::hex(&bytes);
        let parts = [
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..],
        ];
        Ok(UploadId(parts.join("-").into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UploadId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let good = text.len() == 36
            && text.bytes().enumerate().all(|(at, c)| match at {
                8 | 13 | 18 | 23 => c == b'-',
                _ => c.is_ascii_digit() || (b'a'..=b'f').contains(&c),
            });
        if good {
            Ok(UploadId(text.into()))
        } else {
            Err(())
        }
    }
}

macro_rules! shown {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

shown!(RepositoryName, Tag, UploadId);

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => tag.fmt(f),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_follow_the_specs_expression() {
        for good in [
            "a",
            "0",
            "shop",
            "team/shop",
            "a/b/c/d",
            "a.b",
            "a_b",
            "a__b",
            "a-b",
            "a----b",
            "a-b.c_d__e",
            "library/ubuntu-22.04",
            &"x".repeat(MAX_NAME),
        ] {
            let name: RepositoryName = good.parse().expect(good);
            assert_eq!(RepositoryName::from_folder(&name.folder()), Some(name));
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a b",
            "a+b",
            ".a",
            "a.",
            "a..b",
            "a___b",
            "a_",
            "_a",
            "-a",
            "a-",
            "a.-b",
            "a-_b",
            "a._b",
            "a/../b",
            "..",
            "a/.",
            "ä",
            "a\0",
            "a%2fb",
            "a:b",
            &"x".repeat(MAX_NAME + 1),
        ] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn tags_follow_the_specs_expression() {
        for good in [
            "latest",
            "1.2.3",
            "_x",
            "V1-rc.1_b",
            "0",
            &"a".repeat(MAX_TAG),
        ] {
            assert!(good.parse::<Tag>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            ".a",
            "-a",
            "a b",
            "a/b",
            "a+b",
            "ä",
            "a\0",
            &"a".repeat(MAX_TAG + 1),
        ] {
            assert!(bad.parse::<Tag>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_reference_is_a_tag_or_a_digest_and_nothing_else() {
        let digest = format!("sha256:{}", "0".repeat(64));
        assert!(matches!(
            digest.parse::<Reference>(),
            Ok(Reference::Digest(_))
        ));
        assert!(matches!("v1".parse::<Reference>(), Ok(Reference::Tag(_))));
        for bad in ["sha256:x", "v1:2", "", "a@b"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn upload_ids_are_uuids_and_differ() {
        let (one, two) = (UploadId::random(), UploadId::random());
        let (one, two) = (one.expect("random"), two.expect("random"));
        assert_ne!(one, two);
        assert_eq!(one.as_str().parse::<UploadId>(), Ok(one.clone()));
        assert_eq!(one.as_str().as_bytes()[14], b'4');
        for bad in ["", "..", &"a".repeat(36), &one.as_str().to_uppercase()[1..]] {
            assert!(bad.parse::<UploadId>().is_err(), "{bad:?}");
        }
    }
}
