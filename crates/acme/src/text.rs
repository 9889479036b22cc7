//! What a stranger (a CA, a provider, a program) says becomes one short line that is safe to show.

/// Longer than any CA's honest explanation.
const MAX: usize = 600;

/// One line without control characters, cut off after [`MAX`] characters.
pub fn line(text: &str) -> String {
    let mut line = String::new();
    for (count, word) in text.split(unshowable).filter(|w| !w.is_empty()).enumerate() {
        if count > 0 {
            line.push(' ');
        }
        line.push_str(word);
    }
    match line.char_indices().nth(MAX) {
        Some((end, _)) => {
            line.truncate(end);
            line + "…"
        }
        None => line,
    }
}

/// Spaces too: the words are joined again with single ones. The directional marks could make a line read
/// as another one.
fn unshowable(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_short_line() {
        assert_eq!(line(" two\r\n lines\u{1b}[31m "), "two lines [31m");
        assert_eq!(line(""), "");
        let long = line(&"漢".repeat(MAX + 1));
        assert_eq!(long.chars().count(), MAX + 1);
        assert!(long.ends_with('…'));
    }
}
