//! Answers go to stdout, progress and messages to stderr; colours on a terminal only (NO_COLOR counts).
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::IsTerminal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

pub fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[derive(Clone, Copy)]
pub struct Output {
    pub json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Output { json }
    }

    /// The answer itself. Much of it is words of servers and apps: none of them drives the terminal.
    pub fn text(&self, text: &str) {
        self.as_is(&printable(text));
    }

    /// What has our own colours in it, or is for programs.
    pub fn as_is(&self, text: &str) {
        use std::io::Write;
        let mut stdout = std::io::stdout().lock();
        let newline = if text.ends_with('\n') { "" } else { "\n" };
        // A closed pipe (`| head`) is the reader's wish, no failure.
        let _ = write!(stdout, "{text}{newline}");
    }

    pub fn value<T: Serialize>(&self, value: &T) {
        self.as_is(&serde_json::to_string_pretty(value).unwrap_or_default());
    }

    /// JSON where asked for, else a line of text.
    pub fn result<T: Serialize>(&self, value: &T, text: &str) {
        if self.json {
            self.value(value);
        } else {
            self.text(text);
        }
    }

    /// JSON where asked for, else a table with these columns.
    pub fn table<T: Serialize>(
        &self,
        items: &[T],
        columns: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) {
        if self.json {
            return self.value(&items);
        }
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_header(columns.iter().map(|c| c.to_uppercase()));
        for item in items {
            table.add_row(row(item).into_iter().map(|cell| printable(&cell)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in table.lines() {
            self.text(line.trim_end());
        }
    }

    /// A message for a person, on stderr.
    pub fn say(&self, text: &str) {
        eprintln!("{}", printable(text));
    }

    pub fn warn(&self, text: &str) {
        let (yellow, off) = if colours(&std::io::stderr()) {
            ("\x1b[33m", "\x1b[0m")
        } else {
            ("", "")
        };
        eprintln!("{yellow}warning:{off} {}", printable(text));
    }
}

/// Without control characters: what an app printed must not drive the terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' | '\n' => c,
            c if c.is_control() => '\u{fffd}',
            // Bidirectional overrides reorder what stands beside them.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// `3m ago`.
pub fn ago(milliseconds: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_millis(milliseconds);
    let age = SystemTime::now().duration_since(then).unwrap_or_default();
    if age < Duration::from_secs(1) {
        return "now".into();
    }
    format!("{} ago", hutong_core::units::show_time(age))
}

/// `in 3m`, or `3m ago`.
pub fn until(milliseconds: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_millis(milliseconds);
    match then.duration_since(SystemTime::now()) {
        Ok(left) => format!("in {}", hutong_core::units::show_time(left)),
        Err(_) => ago(milliseconds),
    }
}

/// UTC, `2026-01-31 13:59:59`.
pub fn clock(microseconds: u64) -> String {
    let seconds = microseconds / 1_000_000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days as i64);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Days since 1970 to a date (Howard Hinnant, chrono-compatible low-level date algorithms).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year, month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_hostile_text() {
        assert_eq!(clock(0), "1970-01-01 00:00:00");
        assert_eq!(clock(1_709_210_096_000_000), "2024-02-29 12:34:56");
        assert_eq!(printable("a\x1b[2Jb\u{202e}"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
