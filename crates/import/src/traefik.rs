//! Traefik: its static configuration becomes a part of the server file, its routers become routes of apps. Files (YAML,
//! TOML), labels and flags all come to the same [`Setting`]s first.
//!
//! What a router asks for is taken over whole or not at all: a middleware that is not understood may be what keeps visitors
//! out. Rules are read by [`hutong_core::labels::rule`], as those of running containers are.

mod dynamic;
mod middleware;
mod static_file;

pub(crate) use dynamic::{Dynamic, Resolved, Router, Service, resolve};
pub(crate) use static_file::read as read_static;

use crate::place::At;
use crate::tree::{Node, Value};

/// One value, or a list of them, with its path in lower case.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Setting {
    pub at: At,
    /// As it is written.
    pub shown: String,
    pub path: Vec<String>,
    pub values: Vec<(At, String)>,
}

impl Setting {
    pub fn parts(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }

    /// The only value, or nothing.
    pub fn value(&self) -> &str {
        self.values.first().map_or("", |(_, value)| value.as_str())
    }

    /// All values; one may have several, with commas.
    pub fn list(&self) -> Vec<(At, String)> {
        let split = |(at, value): &(At, String)| {
            let at = at.clone();
            let parts = value.split(',').map(str::trim);
            let parts = parts.filter(|part| !part.is_empty());
            parts
                .map(|part| (at.clone(), part.to_owned()))
                .collect::<Vec<_>>()
        };
        self.values.iter().flat_map(split).collect()
    }

    /// The same below a part of the path.
    fn below(&self, count: usize) -> Setting {
        Setting {
            path: self.path.iter().skip(count).cloned().collect(),
            ..self.clone()
        }
    }
}

/// The settings of a file.
pub(crate) fn of_file(root: &Node) -> Vec<Setting> {
    let mut settings = Vec::new();
    flatten(root, &root.at, &mut Vec::new(), &mut settings);
    settings
}

fn flatten(node: &Node, at: &At, path: &mut Vec<String>, settings: &mut Vec<Setting>) {
    let leaf = |values: Vec<(At, String)>, path: &[String]| Setting {
        at: at.clone(),
        shown: path.join("."),
        path: path.iter().map(|part| part.to_ascii_lowercase()).collect(),
        values,
    };
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => {
            for entry in entries {
                path.push(entry.key.clone());
                flatten(&entry.value, &entry.at, path, settings);
                path.pop();
            }
        }
        Value::List(items) if items.iter().any(|item| item.text().is_none()) => {
            for (index, item) in items.iter().enumerate() {
                path.push(index.to_string());
                flatten(item, &item.at, path, settings);
                path.pop();
            }
        }
        _ if path.is_empty() => {}
        _ => settings.push(leaf(node.texts(), path)),
    }
}

/// Those of labels: their own keys and values, with where they stand. Labels of others are not looked at.
pub(crate) fn of_labels(labels: &[(At, String, String)]) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (at, key, value) in labels {
        let lower = key.to_ascii_lowercase();
        let Some(rest) = lower.strip_prefix("traefik.") else {
            continue;
        };
        settings.push(Setting {
            at: at.clone(),
            shown: key.clone(),
            path: parts(rest),
            values: vec![(at.clone(), value.trim().to_owned())],
        });
    }
    settings
}

/// Those of flags, `--entrypoints.web.address=:80`; what is no flag is given back.
pub(crate) fn of_flags(words: &[(At, String)]) -> (Vec<Setting>, Vec<(At, String)>) {
    let (mut settings, mut others) = (Vec::new(), Vec::new());
    for (at, word) in words {
        let Some(flag) = word.strip_prefix("--") else {
            others.push((at.clone(), word.clone()));
            continue;
        };
        let (key, value) = flag.split_once('=').unwrap_or((flag, "true"));
        settings.push(Setting {
            at: at.clone(),
            shown: format!("--{key}"),
            path: parts(&key.to_ascii_lowercase()),
            values: vec![(at.clone(), value.to_owned())],
        });
    }
    (settings, others)
}

/// `http.routers.web.tls.domains[0].main`, taken apart; an index is a part of its own.
fn parts(key: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for part in key.split('.') {
        match part.strip_suffix(']').and_then(|part| part.split_once('[')) {
            Some((name, index)) => parts.extend([name.to_owned(), index.to_owned()]),
            None => parts.push(part.to_owned()),
        }
    }
    parts
}

/// Whether a file is of the static configuration, by its topmost keys.
pub(crate) fn is_static(key: &str) -> bool {
    let keys = [
        "entrypoints",
        "providers",
        "certificatesresolvers",
        "api",
        "accesslog",
        "log",
        "ping",
        "metrics",
        "tracing",
        "global",
        "experimental",
        "serverstransport",
        "hostresolver",
        "pilot",
        "spiffe",
        "core",
    ];
    keys.contains(&key.to_ascii_lowercase().as_str())
}

/// Whether a file is of the dynamic configuration, by its topmost keys.
pub(crate) fn is_dynamic(key: &str) -> bool {
    ["http", "tcp", "udp", "tls"].contains(&key.to_ascii_lowercase().as_str())
}
