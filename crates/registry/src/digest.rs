//! Digests (image spec, "Descriptors", Digests): the name of some content, and the proof that it is what was named.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use hutong_core::tree::hex;
use sha2::{Digest as _, Sha256, Sha512};
use thiserror::Error;

/// What is read at once, here and wherever content passes through.
pub(crate) const CHUNK: usize = 64 << 10;

/// The algorithms that the image spec registers and everybody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DigestError {
    #[error("a digest is written as ALGORITHM:HEX, in lower case and of the algorithm's length")]
    Malformed,
    #[error("the digest's algorithm is not supported; sha256 and sha512 are")]
    Unsupported,
}

impl Algorithm {
    pub const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    pub fn hasher(self) -> Hasher {
        match self {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    fn digits(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let known = Algorithm::ALL.into_iter().find(|a| a.as_str() == text);
        known.ok_or_else(|| {
            // The grammar of the image spec: components of letters and digits between single separators.
            let component = |part: &str| {
                !part.is_empty()
                    && part
                        .bytes()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
            };
            if text.split(['+', '.', '_', '-']).all(component) {
                DigestError::Unsupported
            } else {
                DigestError::Malformed
            }
        })
    }
}

/// `sha256:…` or `sha512:…`, checked when made.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

impl Digest {
    /// The digest of what is in memory.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = algorithm.hasher();
        hasher.update(content);
        hasher.finish()
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// 64 or 128 digits.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or(DigestError::Malformed)?;
        let algorithm: Algorithm = algorithm.parse()?;
        let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if hex.len() != algorithm.digits() || !hex.bytes().all(digit) {
            return Err(DigestError::Malformed);
        }
        Ok(Digest {
            algorithm,
            hex: hex.into(),
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A digest in the making.
#[derive(Clone)]
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Hasher::Sha256(_) => Algorithm::Sha256,
            Hasher::Sha512(_) => Algorithm::Sha512,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hash) => hash.update(bytes),
            Hasher::Sha512(hash) => hash.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        let algorithm = self.algorithm();
        let hex = match self {
            Hasher::Sha256(hash) => hex(&hash.finalize()),
            Hasher::Sha512(hash) => hex(&hash.finalize()),
        };
        Digest {
            algorithm,
            hex: hex.into(),
        }
    }

    /// Reads to the end; how much there was.
    pub fn read_all(&mut self, source: &mut impl Read) -> io::Result<u64> {
        let mut buffer = vec![0; CHUNK];
        let mut total = 0;
        loop {
            let count = match source.read(&mut buffer) {
                Ok(0) => return Ok(total),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.update(&buffer[..count]);
            total += count as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_as_they_are_written() {
        let empty = Digest::of(Algorithm::Sha256, b"");
        assert_eq!(
            empty.to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(empty.to_string().parse::<Digest>(), Ok(empty));
        let long = Digest::of(Algorithm::Sha512, b"abc");
        assert_eq!(long.hex().len(), 128);
        assert!(long.hex().starts_with("ddaf35a193617abacc417349ae204131"));
        assert_eq!(long.to_string().parse::<Digest>(), Ok(long));
    }

    #[test]
    fn what_is_no_digest_is_refused_and_what_is_an_unknown_one_is_told_apart() {
        let digits = "a".repeat(64);
        for bad in [
            String::new(),
            digits.clone(),
            format!(":{digits}"),
            "sha256:".into(),
            "sha256:baddigeststring".into(),
            format!("sha256:{}", "A".repeat(64)),
            format!("sha256:{}", "g".repeat(64)),
            format!("sha256:{digits}a"),
            format!("sha256:{}/..", "a".repeat(61)),
            format!("sha512:{digits}"),
            format!("sha256 :{digits}"),
            format!("sha++256:{digits}"),
            format!("../x:{digits}"),
        ] {
            assert_eq!(
                bad.parse::<Digest>(),
                Err(DigestError::Malformed),
                "{bad:?}"
            );
        }
        for unknown in [
            format!("md5:{digits}"),
            format!("blake3:{digits}"),
            "multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8".into(),
        ] {
            assert_eq!(unknown.parse::<Digest>(), Err(DigestError::Unsupported));
        }
    }

    #[test]
    fn a_file_has_the_digest_of_its_content() {
        let content = vec![7; 3 * CHUNK + 5];
        let mut hasher = Algorithm::Sha256.hasher();
        let count = hasher.read_all(&mut content.as_slice()).expect("memory");
        assert_eq!(count, content.len() as u64);
        assert_eq!(hasher.finish(), Digest::of(Algorithm::Sha256, &content));
    }
}
