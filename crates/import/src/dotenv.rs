//! Files of variables: `.env`, `env_file` and systemd's `EnvironmentFile`. The same form is written for secrets, so that
//! what is written is what is read.

use std::sync::Arc;

use crate::place::{At, Mistake, short};

/// One variable of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    pub at: At,
    pub key: String,
    /// `None`: the name alone, for what the caller's own environment has.
    pub value: Option<String>,
    /// In single quotes: `$` is a dollar sign.
    pub literal: bool,
}

/// Reads `KEY=VALUE` lines; values may stand in quotes and then go over several lines.
///
/// # Errors
/// The first line that is none.
pub fn parse(path: &str, text: &str) -> Result<Vec<Variable>, Mistake> {
    let path: Arc<str> = Arc::from(path);
    let mut variables = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let trimmed = line.trim_start();
        let at = At {
            path: Arc::clone(&path),
            line: index + 1,
            column: line.chars().count() - trimmed.chars().count() + 1,
        };
        let body = trimmed.trim_end();
        if body.is_empty() || body.starts_with(['#', ';']) {
            continue;
        }
        let body = body.strip_prefix("export ").map_or(body, str::trim_start);
        let (key, rest) = match body.split_once('=') {
            Some((key, rest)) => (key.trim_end(), Some(rest.trim_start())),
            None => (body, None),
        };
        let is_key = |c: char| c.is_alphanumeric() || "_.-".contains(c);
        if key.is_empty() || !key.chars().all(is_key) {
            // A line without a sign may be the rest of a secret.
            let shown = match rest {
                Some(_) => format!("`{}`", short(key)),
                None => "this".to_owned(),
            };
            let message = format!("{shown} is no `KEY=VALUE`");
            return Err(Mistake::new(&at, message));
        }
        let (value, literal) = match rest {
            None => (None, false),
            Some(rest) => {
                let (value, literal) = match rest.chars().next() {
                    Some(quote @ ('"' | '\'')) => {
                        let rest = rest.get(1..).unwrap_or_default();
                        (quoted(quote, rest, &mut lines, &at)?, quote == '\'')
                    }
                    _ => (plain(rest), false),
                };
                (Some(value), literal)
            }
        };
        variables.push(Variable {
            at,
            key: key.to_owned(),
            value,
            literal,
        });
    }
    Ok(variables)
}

/// Without what a `#` behind a space begins.
fn plain(rest: &str) -> String {
    let end = rest.find(" #").or_else(|| rest.find("\t#"));
    let value = end.map_or(rest, |end| &rest[..end]);
    if value.starts_with('#') {
        return String::new();
    }
    value.trim_end().to_owned()
}

/// What stands between quotes, from behind the first.
fn quoted<'a>(
    quote: char,
    first: &'a str,
    lines: &mut impl Iterator<Item = (usize, &'a str)>,
    at: &At,
) -> Result<String, Mistake> {
    let mut value = String::new();
    let mut line = first;
    loop {
        let mut chars = line.chars();
        while let Some(next) = chars.next() {
            match next {
                next if next == quote => {
                    let rest = chars.as_str().trim();
                    return match rest.is_empty() || rest.starts_with('#') {
                        true => Ok(value),
                        false => Err(Mistake::new(at, "something stands behind the quotes")),
                    };
                }
                '\\' if quote == '"' => match chars.next() {
                    Some('n') => value.push('\n'),
                    Some('r') => value.push('\r'),
                    Some('t') => value.push('\t'),
                    Some(other @ ('"' | '\\' | '$')) => value.push(other),
                    Some(other) => value.extend(['\\', other]),
                    // A backslash at the end of a line changes nothing.
                    None => {}
                },
                next => value.push(next),
            }
        }
        match lines.next() {
            Some((_, next)) => {
                value.push('\n');
                line = next;
            }
            None => return Err(Mistake::new(at, "a quote is not closed")),
        }
    }
}

/// Lines that [`parse`] reads as these variables.
pub fn write<'a>(variables: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let mut text = String::new();
    for (key, value) in variables {
        let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-./:,@%+=~".contains(c);
        if value.chars().all(is_bare) {
            text.push_str(&format!("{key}={value}\n"));
            continue;
        }
        text.push_str(key);
        text.push_str("=\"");
        for next in value.chars() {
            match next {
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '"' | '\\' => text.extend(['\\', next]),
                next => text.push(next),
            }
        }
        text.push_str("\"\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn read(text: &str) -> Vec<(String, Option<String>)> {
        let variables = parse(".env", text).expect("good");
        let pair = |one: Variable| (one.key, one.value);
        variables.into_iter().map(pair).collect()
    }

    #[test]
    fn values_with_and_without_quotes() {
        let found = read(
            "# x\n\nexport A=1 # one\nB = two words \nC='$x #'\nD=\"a\\nb\\\"$\" # d\nE\nF=\nG=a#b\nH=\"x\ny\"\n; y\n",
        );
        let wanted = [
            ("A", Some("1")),
            ("B", Some("two words")),
            ("C", Some("$x #")),
            ("D", Some("a\nb\"$")),
            ("E", None),
            ("F", Some("")),
            ("G", Some("a#b")),
            ("H", Some("x\ny")),
        ];
        let wanted: Vec<(String, Option<String>)> = wanted
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)))
            .collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn mistakes_have_their_place() {
        let wrong = |text| parse(".env", text).expect_err("it is wrong").to_string();
        assert_eq!(wrong("A=1\n  a b=2\n"), ".env:2:3: `a b` is no `KEY=VALUE`");
        assert_eq!(wrong("A=\"x\n"), ".env:1:1: a quote is not closed");
        assert_eq!(
            wrong("A='x' y\n"),
            ".env:1:1: something stands behind the quotes"
        );
    }

    #[test]
    fn places_are_those_of_the_lines() {
        let found = parse(".env", "A=\"x\ny\"\n  B=1\n").expect("good");
        assert_eq!(found[1].at.to_string(), ".env:3:3");
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(values in proptest::collection::btree_map("[A-Z]{1,8}", "(?s)[^\0]{0,40}", 0..6)) {
            let text = write(&values);
            let read: BTreeMap<String, String> = parse("f", &text)
                .expect("good")
                .into_iter()
                .map(|one| (one.key, one.value.unwrap_or_default()))
                .collect();
            prop_assert_eq!(read, values);
        }

        #[test]
        fn no_text_makes_it_panic(text in "(?s)(A=|\"|'|\\\\|\n|#| |export |.){0,60}") {
            let _ = parse("f", &text);
        }
    }
}
