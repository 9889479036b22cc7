//! What YAML, TOML, JSON and a literal of JavaScript come to: values with their places.

use crate::place::At;

/// Values in one file, those that aliases repeat among them.
pub(crate) const MAX_NODES: usize = 200_000;
/// Lists and tables in each other.
pub(crate) const MAX_DEPTH: usize = 64;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub at: At,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    /// In the order of the file; no key twice.
    Map(Vec<Entry>),
    /// JavaScript that is no literal.
    Expression,
}

/// A text as it is written: `1.10` stays what it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scalar {
    pub text: String,
    /// Variables in it that are not set.
    pub missing: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub at: At,
    pub key: String,
    pub value: Node,
}

impl Value {
    pub fn scalar(text: impl Into<String>) -> Value {
        Value::Scalar(Scalar {
            text: text.into(),
            missing: Vec::new(),
        })
    }
}

impl Node {
    /// A text, number or boolean.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) => Some(&scalar.text),
            _ => None,
        }
    }

    /// Variables in it that are not set.
    pub fn missing(&self) -> &[String] {
        match &self.value {
            Value::Scalar(scalar) => &scalar.missing,
            _ => &[],
        }
    }

    pub fn flag(&self) -> Option<bool> {
        flag(self.text()?)
    }

    #[cfg(test)]
    pub fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    pub fn list(&self) -> &[Node] {
        match &self.value {
            Value::List(list) => list,
            _ => &[],
        }
    }

    pub fn map(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        let entry = self.map().iter().find(|entry| entry.key == key)?;
        Some(&entry.value)
    }

    /// The texts of a list, or the one that stands in its place.
    pub fn texts(&self) -> Vec<(At, String)> {
        let one = |node: &Node| Some((node.at.clone(), node.text()?.to_owned()));
        match &self.value {
            Value::List(list) => list.iter().filter_map(one).collect(),
            _ => one(self).into_iter().collect(),
        }
    }

    /// What it is, for people.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Scalar(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a table",
            Value::Expression => "an expression",
        }
    }

    /// How many values it is made of.
    pub fn count(&self) -> usize {
        match &self.value {
            Value::List(list) => 1 + list.iter().map(Node::count).sum::<usize>(),
            Value::Map(map) => 1 + map.iter().map(|entry| entry.value.count()).sum::<usize>(),
            _ => 1,
        }
    }
}

/// As YAML 1.1 has it, which compose files are written in.
pub(crate) fn flag(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}
