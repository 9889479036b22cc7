//! The files that were handed over, and those that they name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Texts by path. What is asked for and is not there is remembered: the caller may hand it over, too.
pub(crate) struct Files<'a> {
    texts: BTreeMap<String, &'a str>,
    /// Those that are to be imported themselves.
    asked: BTreeSet<String>,
    pub wanted: BTreeSet<String>,
    /// Those that another file took in.
    pub taken: BTreeSet<String>,
}

impl<'a> Files<'a> {
    pub fn new(texts: BTreeMap<String, &'a str>, asked: BTreeSet<String>) -> Self {
        Files {
            texts,
            asked,
            wanted: BTreeSet::new(),
            taken: BTreeSet::new(),
        }
    }

    /// A file that `from` names.
    pub fn get(&mut self, from: &str, name: &str) -> Option<(Arc<str>, &'a str)> {
        let path = beside(from, name);
        match self.texts.get(&path) {
            Some(text) => {
                self.taken.insert(path.clone());
                Some((Arc::from(path.as_str()), *text))
            }
            None => {
                self.wanted.insert(path);
                None
            }
        }
    }

    /// Whether a file that `from` names is imported itself.
    pub fn is_asked(&self, from: &str, name: &str) -> bool {
        self.asked.contains(&beside(from, name))
    }

    /// Those whose end is this pattern, by parts of the path; `*` stands for any text in a part.
    pub fn matching(&self, pattern: &str) -> Vec<(Arc<str>, &'a str)> {
        let wanted: Vec<&str> = parts(pattern);
        let fits = |path: &str| {
            let found = parts(path);
            let count = found.len().min(wanted.len());
            count > 0
                && found
                    .iter()
                    .rev()
                    .zip(wanted.iter().rev())
                    .all(|(name, pattern)| glob(pattern, name))
        };
        self.texts
            .iter()
            .filter(|(path, _)| fits(path))
            .map(|(path, text)| (Arc::from(path.as_str()), *text))
            .collect()
    }
}

fn parts(path: &str) -> Vec<&str> {
    let parts = path.split('/');
    parts
        .filter(|part| !part.is_empty() && *part != ".")
        .collect()
}

/// Whether a name fits a pattern with `*`.
fn glob(pattern: &str, name: &str) -> bool {
    let mut rest = name;
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(after) = rest.strip_prefix(first) else {
        return false;
    };
    rest = after;
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else {
        return rest.is_empty();
    };
    for piece in middle {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// The path of a file that another one names, without dots.
pub(crate) fn beside(from: &str, name: &str) -> String {
    if name.starts_with('/') {
        return normal(name);
    }
    match from.rsplit_once('/') {
        Some((folder, _)) => normal(&format!("{folder}/{name}")),
        None => normal(name),
    }
}

/// Without `.` and, as far as it goes, `..`.
pub(crate) fn normal(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if kept.last().is_some_and(|last| *last != "..") => {
                kept.pop();
            }
            ".." if path.starts_with('/') => {}
            part => kept.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", kept.join("/"))
}

/// The last part of a path.
pub(crate) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_beside_others() {
        assert_eq!(beside("a/b.yml", "c.yml"), "a/c.yml");
        assert_eq!(beside("a/b.yml", "../c.yml"), "c.yml");
        assert_eq!(beside("b.yml", "./x/../c.yml"), "c.yml");
        assert_eq!(beside("a/b.yml", "/etc/c"), "/etc/c");
        assert_eq!(normal("/../x"), "/x");
        assert_eq!(normal("../../x"), "../../x");
    }

    #[test]
    fn patterns_are_met_from_the_end() {
        let texts = BTreeMap::from([
            ("nginx/conf.d/a.conf".to_owned(), "a"),
            ("nginx/conf.d/b.txt".to_owned(), "b"),
            ("c.conf".to_owned(), "c"),
        ]);
        let files = Files::new(texts, BTreeSet::new());
        let found = |pattern: &str| {
            let found = files.matching(pattern);
            found.iter().map(|(_, text)| *text).collect::<String>()
        };
        assert_eq!(found("/etc/nginx/conf.d/*.conf"), "ca");
        assert_eq!(found("conf.d/*"), "cab");
        assert_eq!(found("x*.conf"), "");
        assert_eq!(found("/"), "");
        assert!(glob("a*b*c", "aXbYc") && !glob("a*b", "ac") && glob("*", ""));
    }

    #[test]
    fn what_is_missing_is_remembered() {
        let mut files = Files::new(BTreeMap::from([("a/b".to_owned(), "x")]), BTreeSet::new());
        assert_eq!(files.get("a/c", "b").map(|(_, text)| text), Some("x"));
        assert!(files.get("a/c", "d").is_none());
        assert_eq!(files.wanted, BTreeSet::from(["a/d".to_owned()]));
        assert!(files.taken.contains("a/b"));
    }
}
