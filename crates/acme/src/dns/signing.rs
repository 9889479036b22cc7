//! What the signatures of Alibaba Cloud (ACS3) and Tencent Cloud (TC3) have in common: both are
//! children of AWS's. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac};
use time::OffsetDateTime;

/// The digest of a canonical request, and the names of the headers in it.
pub struct Canonical {
    pub digest: String,
    pub names: String,
}

/// A POST to `/`. `headers`: lower-case names, in alphabetical order.
pub fn canonical(query: &str, headers: &[(&str, &str)], payload_digest: &str) -> Canonical {
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}:{}\n", value.trim()))
        .collect();
    let request = format!("POST\n/\n{query}\n{lines}\n{names}\n{payload_digest}");
    Canonical {
        digest: sha256(request.as_bytes()),
        names,
    }
}

pub fn sha256(data: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, data).as_ref())
}

pub fn hmac_sha256(key: &[u8], data: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// `2026-01-01`, in UTC.
pub fn date(unix: u64) -> String {
    let at = civil(unix);
    format!(
        "{:04}-{:02}-{:02}",
        at.year(),
        u8::from(at.month()),
        at.day()
    )
}

/// `2026-01-01T00:00:00Z`
pub fn date_time(unix: u64) -> String {
    let at = civil(unix);
    format!(
        "{}T{:02}:{:02}:{:02}Z",
        date(unix),
        at.hour(),
        at.minute(),
        at.second()
    )
}

fn civil(unix: u64) -> OffsetDateTime {
    i64::try_from(unix)
        .ok()
        .and_then(|unix| OffsetDateTime::from_unix_timestamp(unix).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_utc() {
        assert_eq!(date(1_551_113_065), "2019-02-25");
        assert_eq!(date_time(1_698_315_752), "2023-10-26T10:22:32Z");
        assert_eq!(date_time(u64::MAX), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn hex_keeps_its_zeros() {
        assert_eq!(hex(&[0, 1, 0xab]), "0001ab");
        // RFC 4231, test case 2.
        let tag = hmac_sha256(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(
            hex(tag.as_ref()),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
