//! How far the output of a container was read, kept so that a restart of the driver neither loses nor repeats a line.

use std::path::PathBuf;
use std::time::Duration;

/// How often it is written down.
pub const KEEP: Duration = Duration::from_millis(50);

/// How far a container's output was read: the time of its last piece, as the engine writes it.
pub struct Position {
    path: PathBuf,
    last: String,
    /// What came up to here was read before.
    from: String,
    /// Something was read since it was last written down.
    pub is_news: bool,
    /// When it was last written down.
    kept: Option<std::time::Instant>,
}

impl Position {
    pub fn read(path: PathBuf) -> Self {
        Position {
            last: std::fs::read_to_string(&path).unwrap_or_default(),
            from: String::new(),
            is_news: false,
            path,
            kept: None,
        }
    }

    /// Seconds since 1970, not after the last piece.
    pub fn since(&self) -> i32 {
        let time = chrono::DateTime::parse_from_rfc3339(&self.last);
        time.map_or(0, |time| i32::try_from(time.timestamp()).unwrap_or(0))
    }

    /// The engine begins again, at the second that [`Self::since`] says.
    pub fn go_on(&mut self) {
        self.from.clone_from(&self.last);
    }

    /// What is new of a piece, `TIME TEXT`.
    pub fn take<'a>(&mut self, piece: &'a [u8]) -> Option<&'a [u8]> {
        let space = piece.iter().position(|byte| *byte == b' ')?;
        let time = std::str::from_utf8(&piece[..space]).ok()?;
        let is_time = time.starts_with(|first: char| first.is_ascii_digit());
        if !is_time || time <= self.from.as_str() {
            return None;
        }
        // Pieces of the two streams may come out of order, by a little.
        if time > self.last.as_str() {
            self.last.clear();
            self.last.push_str(time);
            self.is_news = true;
        }
        Some(&piece[space + 1..])
    }

    /// At once, but not more often than every so often: what is not kept is read twice if we are killed.
    pub fn keep(&mut self) {
        let is_due = self.kept.is_none_or(|kept| kept.elapsed() >= KEEP);
        if self.is_news && is_due {
            self.keep_now();
        }
    }

    pub fn keep_now(&mut self) {
        self.kept = Some(std::time::Instant::now());
        self.is_news = false;
        let fresh = self.path.with_extension("fresh");
        if std::fs::write(&fresh, &self.last).is_ok() {
            let _ = std::fs::rename(&fresh, &self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_taken_once() {
        let dir = std::env::temp_dir().join(format!("hutong-position-{}", std::process::id()));
        let mut position = Position::read(dir.join("none"));
        assert_eq!(position.since(), 0);
        let piece = b"2026-11-22T10:00:00.000000001Z hello\n";
        assert_eq!(position.take(piece), Some(b"hello\n".as_slice()));
        position.go_on();
        assert_eq!(position.take(piece), None);
        assert_eq!(position.since(), 1_795_341_600);
        assert_eq!(position.take(b"no time"), None);
    }
}
