//! The content digest of an app's folder: the same files, names and executable bits give the same
//! digest, whatever their times and owners. SHA-256 over `path NUL mode NUL sha256(content) LF`, in
//! byte order of the paths.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Collects files in any order.
#[derive(Default)]
pub struct TreeDigest {
    files: BTreeMap<String, (bool, [u8; 32])>,
}

impl TreeDigest {
    /// `content` is the SHA-256 of the file.
    pub fn add(&mut self, path: &str, executable: bool, content: [u8; 32]) {
        self.files.insert(path.to_owned(), (executable, content));
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// 64 hex digits.
    pub fn finish(&self) -> String {
        let mut hash = Sha256::new();
        for (path, (executable, content)) in &self.files {
            hash.update(path.as_bytes());
            hash.update(if *executable { b"\0x\0" } else { b"\0-\0" });
            hash.update(content);
            hash.update(b"\n");
        }
        hex(&hash.finalize())
    }
}

/// SHA-256 of some text, 64 hex digits.
pub fn digest_of(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hex(&hash.finalize())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A path inside an archive or folder, checked: relative, plain segments, UTF-8, bounded.
pub fn check_path(path: &str) -> Result<&str, String> {
    let trimmed = path
        .strip_prefix("./")
        .unwrap_or(path)
        .trim_end_matches('/');
    if path.starts_with('/') {
        return Err(format!("`{path}` is an absolute path"));
    }
    if trimmed.len() > 1000 {
        return Err("a path is over 1000 bytes".into());
    }
    let bad = |segment: &str| segment.is_empty() || segment == "." || segment == "..";
    if !trimmed.is_empty() && trimmed != "." && trimmed.split('/').any(bad) {
        return Err(format!("`{path}` does not stay inside the folder"));
    }
    if path.contains('\0') || path.contains('\\') || path.chars().any(|c| c.is_control()) {
        return Err(format!(
            "`{}` is not a plain file name",
            path.escape_default()
        ));
    }
    Ok(if trimmed == "." { "" } else { trimmed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_everything_else_does() {
        let make = |list: &[(&str, bool, u8)]| {
            let mut digest = TreeDigest::default();
            for (path, executable, content) in list {
                digest.add(path, *executable, [*content; 32]);
            }
            digest.finish()
        };
        let one = make(&[("a", false, 1), ("b", true, 2)]);
        assert_eq!(one, make(&[("b", true, 2), ("a", false, 1)]));
        assert_ne!(one, make(&[("a", true, 1), ("b", true, 2)]));
        assert_ne!(one, make(&[("a", false, 1), ("c", true, 2)]));
        assert_eq!(one.len(), 64);
    }

    #[test]
    fn paths_stay_inside() {
        for good in ["a", "./a/b", "a/b/", ".env", "."] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in ["/a", "../a", "a/../b", "a//b", "a\\b", "a\nb", "a/.."] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }
}
