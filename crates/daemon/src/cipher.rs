//! Values of environment variables at rest: XChaCha20-Poly1305 under a key of its own file, bound to the
//! app and the variable's name, so that a stored value cannot be moved to another place.

use std::fs;
use std::path::Path;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hutong_runtime::paths::atomic_write;

const NONCE: usize = 24;

pub struct Cipher(XChaCha20Poly1305);

impl Cipher {
    /// Reads the key, or makes one on a new server.
    pub fn open(path: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let key: [u8; 32] = match fs::read(path) {
            Ok(bytes) => bytes
                .try_into()
                .map_err(|_| format!("{} is not a key of 32 bytes", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut key = [0; 32];
                getrandom::fill(&mut key).map_err(|error| error.to_string())?;
                atomic_write(path, &key, 0o600).map_err(failed)?;
                key
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Cipher(XChaCha20Poly1305::new(&key.into())))
    }

    pub fn seal(&self, app: &str, key: &str, value: &str) -> Result<Vec<u8>, String> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|error| error.to_string())?;
        let place = format!("{app}\0{key}");
        let payload = Payload {
            msg: value.as_bytes(),
            aad: place.as_bytes(),
        };
        let sealed = self
            .0
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| "the value cannot be encrypted".to_owned())?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    pub fn open_value(&self, app: &str, key: &str, sealed: &[u8]) -> Result<String, String> {
        let wrong = || {
            format!(
                "the stored value of {key} of {app} cannot be decrypted; is the key file the one it was stored with?"
            )
        };
        let (nonce, rest) = sealed.split_first_chunk::<NONCE>().ok_or_else(wrong)?;
        let place = format!("{app}\0{key}");
        let payload = Payload {
            msg: rest,
            aad: place.as_bytes(),
        };
        let value = self
            .0
            .decrypt(&XNonce::from(*nonce), payload)
            .map_err(|_| wrong())?;
        String::from_utf8(value).map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_only_at_its_place() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("key");
        let cipher = Cipher::open(&path).expect("a new key");
        let sealed = cipher.seal("a", "K", "secret").expect("sealed");
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        let again = Cipher::open(&path).expect("the same key");
        assert_eq!(again.open_value("a", "K", &sealed).as_deref(), Ok("secret"));
        assert!(again.open_value("b", "K", &sealed).is_err());
        assert!(again.open_value("a", "L", &sealed).is_err());
        assert!(again.open_value("a", "K", &sealed[..10]).is_err());
    }
}
