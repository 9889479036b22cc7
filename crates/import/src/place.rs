//! Where something stands in a file that was handed over, and what is wrong there.

use std::fmt;
use std::sync::Arc;

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    pub path: Arc<str>,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl At {
    pub(crate) fn start(path: &Arc<str>) -> Self {
        At {
            path: Arc::clone(path),
            line: 1,
            column: 1,
        }
    }
}

impl Default for At {
    fn default() -> Self {
        At::start(&Arc::from(""))
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.path, self.line, self.column)
    }
}

/// What keeps a file from being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub at: At,
    pub message: String,
}

impl Mistake {
    pub(crate) fn new(at: &At, message: impl Into<String>) -> Self {
        Mistake {
            at: at.clone(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.message)
    }
}

impl std::error::Error for Mistake {}

/// Turns byte offsets into places.
pub(crate) struct Lines<'a> {
    path: Arc<str>,
    text: &'a str,
    starts: Vec<usize>,
    /// Then bytes are characters, and nothing has to be counted.
    is_ascii: bool,
}

impl<'a> Lines<'a> {
    pub fn new(path: &Arc<str>, text: &'a str) -> Self {
        let mut starts = vec![0];
        starts.extend(text.match_indices('\n').map(|(at, _)| at + 1));
        Lines {
            path: Arc::clone(path),
            text,
            starts,
            is_ascii: text.is_ascii(),
        }
    }

    pub fn at(&self, offset: usize) -> At {
        let offset = offset.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or_default();
        let column = if self.is_ascii {
            offset - start
        } else {
            let before = self.text.get(start..offset).unwrap_or_default();
            before.chars().count()
        };
        At {
            path: Arc::clone(&self.path),
            line,
            column: column + 1,
        }
    }
}

/// What is said of a text that may be long.
pub(crate) fn short(text: &str) -> String {
    const MOST: usize = 80;
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.len() < text.trim_end().len() => format!("{line}…"),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_become_places() {
        let path = Arc::from("f");
        for text in ["ab\ncd\n", "äb\ncd\n"] {
            let lines = Lines::new(&path, text);
            let at = text.find('d').expect("it is there");
            assert_eq!(lines.at(0).to_string(), "f:1:1");
            assert_eq!(lines.at(at).to_string(), "f:2:2");
            assert_eq!(lines.at(10_000).to_string(), "f:3:1");
        }
        assert_eq!(Lines::new(&path, "").at(3).to_string(), "f:1:1");
        // In the middle of a character.
        assert_eq!(Lines::new(&path, "ä").at(1).line, 1);
    }

    #[test]
    fn what_is_said_is_short() {
        assert_eq!(short("a\nb"), "a…");
        assert_eq!(short("a\n"), "a");
        assert!(short(&"ä".repeat(500)).chars().count() <= 81);
    }
}
