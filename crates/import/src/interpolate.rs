//! Variables of compose files: `$A`, `${A}`, `${A:-b}`, `${A-b}`, `${A:?x}`, `${A?x}`, `${A:+b}`, `${A+b}` and `$$`.

use crate::place::{Mistake, short};
use crate::tree::{Node, Value};

/// Defaults in defaults.
const MAX_DEPTH: usize = 16;

/// A text with its variables put in.
#[derive(Debug, PartialEq)]
pub(crate) struct Filled {
    pub text: String,
    /// Those that are not set; nothing stands in their place.
    pub missing: Vec<String>,
}

/// What a variable is set to.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

pub(crate) fn fill(text: &str, lookup: Lookup<'_>) -> Result<Filled, String> {
    let mut filled = Filled {
        text: String::new(),
        missing: Vec::new(),
    };
    let chars: Vec<char> = text.chars().collect();
    write(&chars, lookup, 0, &mut filled)?;
    Ok(filled)
}

/// The same for every text below a node.
pub(crate) fn fill_tree(node: &mut Node, lookup: Lookup<'_>) -> Result<(), Mistake> {
    match &mut node.value {
        Value::Scalar(scalar) => {
            if scalar.text.contains('$') {
                let filled = fill(&scalar.text, lookup)
                    .map_err(|message| Mistake::new(&node.at, message))?;
                scalar.text = filled.text;
                scalar.missing = filled.missing;
            }
            Ok(())
        }
        Value::List(list) => list.iter_mut().try_for_each(|one| fill_tree(one, lookup)),
        Value::Map(map) => map
            .iter_mut()
            .try_for_each(|entry| fill_tree(&mut entry.value, lookup)),
        Value::Null | Value::Expression => Ok(()),
    }
}

fn write(
    chars: &[char],
    lookup: Lookup<'_>,
    depth: usize,
    filled: &mut Filled,
) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("more than {MAX_DEPTH} variables are in each other"));
    }
    let mut at = 0;
    while let Some(next) = chars.get(at).copied() {
        at += 1;
        if next != '$' {
            filled.text.push(next);
            continue;
        }
        match chars.get(at).copied() {
            Some('$') => {
                filled.text.push('$');
                at += 1;
            }
            Some('{') => {
                let inner = at + 1;
                let end = closing(chars, inner)
                    .ok_or_else(|| "a variable `${…` is not closed".to_owned())?;
                let inside = chars.get(inner..end).unwrap_or_default();
                braced(inside, lookup, depth, filled)?;
                at = end + 1;
            }
            Some(c) if begins_name(c) => {
                let length = name_length(chars.get(at..).unwrap_or_default());
                let name: String = chars.iter().skip(at).take(length).collect();
                at += length;
                put(&name, lookup, filled);
            }
            // `$2y$05$abc`: compose would take `$abc` for a variable, and half of a hash is none.
            Some('0'..='9') => {
                return Err(
                    "`$` begins a variable here; write `$$` where a dollar sign is meant".into(),
                );
            }
            _ => filled.text.push('$'),
        }
    }
    Ok(())
}

fn begins_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

fn name_length(chars: &[char]) -> usize {
    let ends = |c: &char| !(c.is_ascii_alphanumeric() || *c == '_');
    chars.iter().position(ends).unwrap_or(chars.len())
}

/// Where the brace is that closes the one before `from`.
fn closing(chars: &[char], from: usize) -> Option<usize> {
    let mut open = 0_usize;
    let mut at = from;
    loop {
        match (chars.get(at)?, chars.get(at + 1)) {
            ('$', Some('$')) => at += 1,
            ('$', Some('{')) => {
                open += 1;
                at += 1;
            }
            ('}', _) if open == 0 => return Some(at),
            ('}', _) => open -= 1,
            _ => {}
        }
        at += 1;
    }
}

fn put(name: &str, lookup: Lookup<'_>, filled: &mut Filled) {
    match lookup(name) {
        Some(value) => filled.text.push_str(&value),
        None => filled.missing.push(name.to_owned()),
    }
}

/// What stands in braces.
fn braced(
    inside: &[char],
    lookup: Lookup<'_>,
    depth: usize,
    filled: &mut Filled,
) -> Result<(), String> {
    let length = name_length(inside);
    let name: String = inside.iter().take(length).collect();
    if !name.starts_with(begins_name) {
        let shown: String = inside.iter().collect();
        return Err(format!("`${{{}}}` names no variable", short(&shown)));
    }
    let rest = inside.get(length..).unwrap_or_default();
    let (counts_empty, operator, word) = match rest {
        [] => {
            put(&name, lookup, filled);
            return Ok(());
        }
        [':', operator @ ('-' | '?' | '+'), word @ ..] => (true, *operator, word),
        [operator @ ('-' | '?' | '+'), word @ ..] => (false, *operator, word),
        _ => {
            let shown: String = inside.iter().collect();
            return Err(format!(
                "`${{{}}}` is not understood; behind the name stand :-, -, :?, ?, :+ or +",
                short(&shown)
            ));
        }
    };
    let value = lookup(&name).filter(|value| !(counts_empty && value.is_empty()));
    match (operator, value) {
        ('-', Some(value)) => filled.text.push_str(&value),
        ('-', None) | ('+', Some(_)) => write(word, lookup, depth + 1, filled)?,
        ('?', Some(value)) => filled.text.push_str(&value),
        ('?', None) => {
            let mut message = Filled {
                text: String::new(),
                missing: Vec::new(),
            };
            write(word, lookup, depth + 1, &mut message)?;
            let said = match message.text.is_empty() {
                true => String::new(),
                false => format!(": {}", short(&message.text)),
            };
            return Err(format!("the variable {name} must be set{said}"));
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(name: &str) -> Option<String> {
        match name {
            "A" => Some("a".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn filled(text: &str) -> String {
        fill(text, &set).expect("good").text
    }

    #[test]
    fn plain_and_braced_variables() {
        assert_eq!(filled("x$A.${A}-$$A"), "xa.a-$A");
        assert_eq!(filled("no dollar"), "no dollar");
        assert_eq!(filled("$A_b|${EMPTY}|"), "||");
    }

    #[test]
    fn defaults_and_alternatives() {
        for (text, wanted) in [
            ("${A:-b}", "a"),
            ("${B:-b}", "b"),
            ("${B-b}", "b"),
            ("${EMPTY:-b}", "b"),
            ("${EMPTY-b}", ""),
            ("${A:+yes}", "yes"),
            ("${EMPTY:+yes}", ""),
            ("${EMPTY+yes}", "yes"),
            ("${B+yes}", ""),
            ("${B:-}", ""),
            ("${B:-${C:-$A}}!", "a!"),
            ("${B:-x:y-z}", "x:y-z"),
            ("${B:-$$1}", "$1"),
        ] {
            assert_eq!(filled(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_not_set_is_named() {
        let found = fill("x${B}y$C", &set).expect("good");
        assert_eq!(found.text, "xy");
        assert_eq!(found.missing, ["B", "C"]);
        // A default is an answer.
        assert_eq!(fill("${B:-1}", &set).expect("good").missing, [""; 0]);
    }

    #[test]
    fn what_must_be_set_says_why() {
        let wrong = |text| fill(text, &set).expect_err("it is wrong");
        assert_eq!(
            wrong("${B:?give it}"),
            "the variable B must be set: give it"
        );
        assert_eq!(wrong("${B?}"), "the variable B must be set");
        assert_eq!(wrong("${EMPTY:?x}"), "the variable EMPTY must be set: x");
        assert_eq!(filled("${EMPTY?x}"), "");
    }

    #[test]
    fn a_dollar_sign_that_begins_nothing_stays() {
        assert_eq!(filled("a $ b"), "a $ b");
        assert_eq!(filled("^/([^/]+)/?$"), "^/([^/]+)/?$");
        assert_eq!(filled("$$${A}$"), "$a$");
    }

    #[test]
    fn what_is_no_variable_is_a_mistake() {
        let wrong = |text| fill(text, &set).expect_err("it is wrong");
        assert!(wrong("$2b$12$x").contains("write `$$`"));
        assert!(wrong("${A").contains("not closed"));
        assert!(wrong("${}").contains("names no variable"));
        assert!(wrong("${1A}").contains("names no variable"));
        assert!(wrong("${A!x}").contains("is not understood"));
        let deep = format!("{}x{}", "${B:-".repeat(40), "}".repeat(40));
        assert!(wrong(&deep).contains("in each other"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([$]|[{]|[}]|:-|:[?]|[+]|A|B|.){0,40}") {
            let _ = fill(&text, &set);
        }
    }
}
