//! What no line of an app's builds may show, all of it searched for at once.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, AhoCorasickKind};

/// A shorter part of a secret would hide half of every line.
const LEAST: usize = 4;
/// What is shown in place of a secret.
const STARS: &[u8] = b"***";

/// Copies share what they search with.
#[derive(Clone, Default)]
pub enum Masks {
    #[default]
    Nothing,
    Parts(AhoCorasick),
    /// There is more to hide than can be searched for.
    Everything,
}

impl Masks {
    pub fn of<'a>(parts: impl Iterator<Item = &'a str>) -> Self {
        let parts: Vec<&str> = parts.filter(|part| part.len() >= LEAST).collect();
        if parts.is_empty() {
            return Masks::Nothing;
        }
        // Left to itself it takes a DFA for a hundred parts: tens of megabytes for some secrets, of each app.
        let kind = Some(AhoCorasickKind::ContiguousNFA);
        match AhoCorasick::builder().kind(kind).build(parts) {
            Ok(found) => Masks::Parts(found),
            Err(error) => {
                tracing::error!("the secrets of a build cannot be searched for: {error}");
                Masks::Everything
            }
        }
    }

    /// A line without what may not show. Secrets that overlap are hidden as one.
    pub fn hide<'a>(&self, line: &'a [u8]) -> Cow<'a, [u8]> {
        let search = match self {
            Masks::Nothing => return Cow::Borrowed(line),
            Masks::Everything => return Cow::Borrowed(STARS),
            Masks::Parts(search) => search,
        };
        // They come in the order of their ends.
        let mut hidden: Vec<(usize, usize)> = Vec::new();
        for found in search.find_overlapping_iter(line) {
            let (mut start, end) = (found.start(), found.end());
            while let Some(last) = hidden.pop_if(|last| last.1 > start) {
                start = start.min(last.0);
            }
            hidden.push((start, end));
        }
        if hidden.is_empty() {
            return Cow::Borrowed(line);
        }
        let mut shown = Vec::with_capacity(line.len());
        let mut from = 0;
        for (start, end) in hidden {
            shown.extend_from_slice(&line[from..start]);
            shown.extend_from_slice(STARS);
            from = end;
        }
        shown.extend_from_slice(&line[from..]);
        Cow::Owned(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(masks: &Masks, line: &str) -> String {
        String::from_utf8_lossy(&masks.hide(line.as_bytes())).into_owned()
    }

    #[test]
    fn secrets_do_not_show() {
        let masks = Masks::of(["s3cret", "abc", "s3cret-long"].into_iter());
        for (line, wanted) in [
            ("a s3cret-longs3cret b", "a ****** b"),
            ("s3cret-lon", "***-lon"),
            ("s3cres3cret", "s3cre***"),
            ("abc nothing", "abc nothing"),
            ("", ""),
        ] {
            assert_eq!(shown(&masks, line), wanted);
        }
        let none = Masks::of(["abc", ""].into_iter());
        assert!(matches!(none, Masks::Nothing));
        assert_eq!(shown(&none, "abc"), "abc");
        assert_eq!(shown(&Masks::Everything, "abc"), "***");
    }

    #[test]
    fn many_long_secrets_take_little_memory() {
        let parts: Vec<String> = (0..90)
            .map(|n| format!("{n:02}{}", "abcdefghijklmnopqrstuvwxyz".repeat(40)))
            .collect();
        let masks = Masks::of(parts.iter().map(String::as_str));
        assert_eq!(shown(&masks, &format!("it is {}.", parts[7])), "it is ***.");
        let Masks::Parts(search) = &masks else {
            panic!("there are parts");
        };
        let bytes = search.memory_usage();
        assert!(bytes < 4 << 20, "{bytes}");
    }

    #[test]
    fn secrets_that_overlap_leave_no_half() {
        let masks = Masks::of(["abcdef", "defghi", "cdefg", "ijkl"].into_iter());
        for (line, wanted) in [
            ("xabcdefghix", "x***x"),
            ("abcdefghijkl", "***"),
            ("abcdefijkl", "******"),
            ("abcdecdefg", "abcde***"),
        ] {
            assert_eq!(shown(&masks, line), wanted, "{line}");
        }
    }
}
