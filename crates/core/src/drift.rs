//! How two texts of `hutong.toml` differ: by keys, in the words of the file.

use std::collections::BTreeMap;

use toml::{Table, Value};

/// A key that two files have otherwise, or that only one of them has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Dotted, such as `limits.memory`; quoted where a part of it is no bare key (TOML 1.0, Keys).
    pub key: String,
    /// As TOML; none where the key is not there. Secrets are covered.
    pub before: Option<String>,
    pub after: Option<String>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Change { key, before, after } = self;
        match (before, after) {
            (Some(before), Some(after)) if before == after => {
                write!(f, "{key} differs, and is not shown")
            }
            (Some(before), Some(after)) => write!(f, "{key}: {before} → {after}"),
            (Some(before), None) => write!(f, "{key}: {before} → not set"),
            (None, after) => write!(f, "{key}: not set → {}", after.as_deref().unwrap_or("")),
        }
    }
}

/// What leads from one file to another, in the order of the keys; nothing if only comments, order or spacing differ.
///
/// # Errors
/// Which of the two is no TOML.
pub fn changes(before: &str, after: &str) -> Result<Vec<Change>, String> {
    let before = keys(before).map_err(|error| format!("the first file: {error}"))?;
    let after = keys(after).map_err(|error| format!("the second file: {error}"))?;
    let mut names: Vec<&Vec<String>> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    Ok(names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| Change {
            key: dotted(name),
            before: before.get(name).map(|value| shown(name, value)),
            after: after.get(name).map(|value| shown(name, value)),
        })
        .collect())
}

/// Values by the path that leads to them.
type Keys = BTreeMap<Vec<String>, Value>;

fn keys(text: &str) -> Result<Keys, String> {
    let table: Table = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let mut keys = Keys::new();
    collect(table, &mut Vec::new(), &mut keys);
    Ok(keys)
}

fn collect(table: Table, path: &mut Vec<String>, keys: &mut Keys) {
    for (key, value) in table {
        path.push(key);
        match value {
            Value::Table(inner) if !inner.is_empty() => collect(inner, path, keys),
            other => {
                keys.insert(path.clone(), other);
            }
        }
        path.pop();
    }
}

fn dotted(path: &[String]) -> String {
    let is_bare = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        !part.is_empty() && part.chars().all(plain)
    };
    let parts: Vec<String> = path
        .iter()
        .map(|part| match is_bare(part) {
            true => part.clone(),
            false => Value::String(part.clone()).to_string(),
        })
        .collect();
    parts.join(".")
}

/// Words in a key that say that its value is nobody's business.
const SECRET: [&str; 6] = [
    "secret",
    "token",
    "passw",
    "credential",
    "private",
    "api_key",
];

/// In place of a secret.
const HIDDEN: &str = "(hidden)";

/// Tables whose values are the app's own, and may be anything.
const ENV: &str = "env";

fn shown(path: &[String], value: &Value) -> String {
    let (last, tables) = match path.split_last() {
        Some((last, tables)) => (last.to_lowercase(), tables),
        None => (String::new(), path),
    };
    if tables.iter().any(|table| table == ENV) {
        return HIDDEN.into();
    }
    if SECRET.iter().any(|word| last.contains(word)) {
        return HIDDEN.into();
    }
    covered(value).to_string()
}

/// Without the hashes of passwords: `ann:$2b$…` is Ann.
fn covered(value: &Value) -> Value {
    match value {
        Value::String(text) => match text.split_once(":$") {
            Some((name, _)) => Value::String(format!("{name}:{HIDDEN}")),
            None => value.clone(),
        },
        Value::Array(list) => Value::Array(list.iter().map(covered).collect()),
        Value::Table(table) => {
            let inside = table.iter().map(|(key, value)| {
                let value = match (shown(std::slice::from_ref(key), value) == HIDDEN, value) {
                    (true, _) => Value::String(HIDDEN.into()),
                    (false, Value::Table(inner)) if key == ENV => {
                        let hidden = || Value::String(HIDDEN.into());
                        Value::Table(inner.keys().map(|key| (key.clone(), hidden())).collect())
                    }
                    (false, _) => covered(value),
                };
                (key.clone(), value)
            });
            Value::Table(inside.collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(before: &str, after: &str) -> Vec<String> {
        let changes = changes(before, after).expect("TOML");
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_that_differ_are_named() {
        let before = "name = 'a'\ndomains = ['a.b']\n[limits]\nmemory = '1M'\ncpu = 1\n";
        let after =
            "# other\nname='a'\ndomains = ['a.b', 'c.d']\nlimits.memory = '2M'\n[env]\nK = 'v'";
        assert_eq!(
            said(before, after),
            [
                "domains: [\"a.b\"] → [\"a.b\", \"c.d\"]",
                "env.K: not set → (hidden)",
                "limits.cpu: 1 → not set",
                "limits.memory: \"1M\" → \"2M\"",
            ]
        );
        assert!(said(before, before).is_empty());
        assert!(said("a = 1 # x\nb = 2", "b=2\na=1").is_empty());
    }

    #[test]
    fn a_key_that_is_not_bare_is_quoted() {
        assert_eq!(
            said("", "[share]\n'/api' = 'notes'"),
            ["share.\"/api\": not set → \"notes\""]
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let users = |hash: &str| format!("[traffic.auth]\nusers = ['ann:$2b$10${hash}']");
        let said_users = said(&users("one"), &users("two"));
        assert_eq!(said_users, ["traffic.auth.users differs, and is not shown"]);
        let env = |value: &str| format!("[env]\nDB_PASSWORD = '{value}'");
        assert_eq!(
            said(&env("x1"), &env("x2")),
            ["env.DB_PASSWORD differs, and is not shown"]
        );
        let all = [said("", &env("x1")), said("", &users("one"))].concat();
        assert!(
            all.iter()
                .all(|line| !line.contains("x1") && !line.contains("$2b")),
            "{all:?}"
        );
    }

    #[test]
    fn values_of_variables_are_not_shown_whatever_they_are_called() {
        let one = "[env]\nDATABASE_URL = 'postgres://me:hush1@db/x'\n[processes.w.env]\nA = 'hush2'\n[[list]]\nenv = { B = 'hush3' }";
        let two = one.replace("hush", "other");
        let lines = [said(one, &two), said("", one), said(one, "")].concat();
        assert_eq!(lines[0], "env.DATABASE_URL differs, and is not shown");
        let shows = |line: &String| line.contains("hush") || line.contains("other");
        assert!(!lines.iter().any(shows), "{lines:?}");
    }

    #[test]
    fn what_is_no_toml_is_said() {
        assert!(
            changes("a = ", "")
                .expect_err("no TOML")
                .contains("first file")
        );
    }
}
