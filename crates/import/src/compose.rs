//! Compose files: the project is put together here (interpolation, `include`, `extends`, overrides, profiles); what becomes of
//! a service is in [`service`].

mod parts;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::app::{Draft, Names, app_name};
use crate::dotenv;
use crate::files::{Files, beside};
use crate::interpolate;
use crate::place::{At, Mistake, short};
use crate::report::Report;
use crate::tree::{Entry, Node, Value};
use crate::yaml;
use crate::{Options, State};

/// Files that include or extend each other.
const MAX_CHAIN: usize = 32;

/// One service, with all that it extends.
pub(crate) struct Service {
    pub at: At,
    pub name: String,
    pub node: Node,
}

/// A compose project.
pub(crate) struct Project {
    pub name: String,
    pub variables: BTreeMap<String, String>,
    pub services: Vec<Service>,
    /// Networks that lead nowhere.
    pub internal: BTreeSet<String>,
}

/// Reads a file, with those that stand in for parts of it, and adds its apps.
pub(crate) fn import(
    path: &Arc<str>,
    folder: &str,
    text: &str,
    overrides: &[(Arc<str>, &str)],
    files: &mut Files<'_>,
    options: &Options,
    state: &mut State,
) -> Result<(), Mistake> {
    let mut project = Project {
        name: folder.to_owned(),
        variables: variables(path, files)?,
        services: Vec::new(),
        internal: BTreeSet::new(),
    };
    let mut root = load(path, text, &project.variables, &mut state.report)?;
    for (path, text) in overrides {
        let over = load(path, text, &project.variables, &mut state.report)?;
        root = merged_roots(root, over);
    }
    project.read(&root, files, &mut vec![path.to_string()], &mut state.report)?;
    project.retain(options, &mut state.report);
    service::import(project, files, state)
}

/// What `.env` beside the file says.
fn variables(path: &Arc<str>, files: &mut Files<'_>) -> Result<BTreeMap<String, String>, Mistake> {
    let mut variables = BTreeMap::new();
    let Some((path, text)) = files.get(path, ".env") else {
        return Ok(variables);
    };
    for variable in dotenv::parse(&path, text)? {
        let Some(value) = variable.value else {
            continue;
        };
        let value = match variable.literal {
            true => value,
            false => {
                let filled = interpolate::fill(&value, &|name| variables.get(name).cloned());
                filled.map_or(value, |filled| filled.text)
            }
        };
        variables.insert(variable.key, value);
    }
    Ok(variables)
}

/// A file with its variables put in.
fn load(
    path: &Arc<str>,
    text: &str,
    variables: &BTreeMap<String, String>,
    report: &mut Report,
) -> Result<Node, Mistake> {
    let document = yaml::parse(path, text)?;
    for (at, tag) in &document.tags {
        report.left(
            at,
            tag,
            "tags that undo what another file says are not followed",
        );
    }
    let mut root = document.root;
    if !matches!(root.value, Value::Map(_)) {
        let message = format!(
            "a compose file is a table with `services`, not {}",
            root.kind()
        );
        return Err(Mistake::new(&root.at, message));
    }
    interpolate::fill_tree(&mut root, &|name| variables.get(name).cloned())?;
    check_forms(&root)?;
    Ok(root)
}

/// What has another form than its key takes would be passed over later on; compose does not take it either.
fn check_forms(root: &Node) -> Result<(), Mistake> {
    if let Some(include) = root.get("include")
        && !matches!(include.value, Value::List(_) | Value::Null)
    {
        let message = format!("`include` is a list, not {}", include.kind());
        return Err(Mistake::new(&include.at, message));
    }
    if root.get("services").is_none() {
        let is_service = |entry: &&Entry| {
            let has = |key| entry.value.get(key).is_some();
            !entry.key.starts_with("x-") && (has("image") || has("build") || has("extends"))
        };
        if let Some(service) = root.map().iter().find(is_service) {
            let message = format!(
                "`{}` stands at the top, as services did in version 1 of the format: put it below `services:`",
                short(&service.key)
            );
            return Err(Mistake::new(&service.at, message));
        }
    }
    for service in root.get("services").map_or(&[][..], Node::map) {
        for entry in service.value.map() {
            let (key, value) = (entry.key.as_str(), &entry.value);
            let wrong = match (key, &value.value) {
                (_, Value::Null) => None,
                ("environment" | "labels", Value::List(items)) => {
                    items.iter().find(|item| item.text().is_none()).map(|item| {
                        (
                            item,
                            "is a list of KEY=VALUE or a table; in the list there is",
                        )
                    })
                }
                ("environment" | "labels", Value::Map(_)) => None,
                ("environment" | "labels", _) => {
                    Some((value, "is a list of KEY=VALUE or a table, not"))
                }
                ("ports" | "expose" | "volumes", Value::List(_)) => None,
                ("ports" | "expose" | "volumes", _) => Some((value, "is a list, not")),
                _ => None,
            };
            if let Some((node, why)) = wrong {
                let message = format!("`{key}` {why} {}", node.kind());
                return Err(Mistake::new(&node.at, message));
            }
        }
    }
    Ok(())
}

impl Project {
    /// Takes in the topmost keys of a file; `chain` are the files that include it.
    fn read(
        &mut self,
        root: &Node,
        files: &mut Files<'_>,
        chain: &mut Vec<String>,
        report: &mut Report,
    ) -> Result<(), Mistake> {
        for entry in root.map() {
            let (at, key, value) = (&entry.at, entry.key.as_str(), &entry.value);
            match key {
                "name" => match value.text() {
                    Some(name) if chain.len() == 1 => {
                        self.name = name.to_owned();
                        report.used(at, key, "the project's name");
                    }
                    _ => report.left(at, key, "the project has the name of the first file"),
                },
                "version" => report.left(at, key, "it is obsolete: nothing follows from it"),
                "services" => {
                    if !matches!(value.value, Value::Map(_) | Value::Null) {
                        let message = format!("`services` is a table, not {}", value.kind());
                        return Err(Mistake::new(&value.at, message));
                    }
                    if value.map().is_empty() {
                        report.left(at, key, "there are none");
                    }
                }
                "include" => self.include(value, files, chain, report)?,
                "networks" => self.networks(value, at, report),
                "volumes" => each(
                    value,
                    at,
                    key,
                    report,
                    "an app has one folder, /data, if it says `data = true`",
                ),
                "secrets" | "configs" => each(
                    value,
                    at,
                    key,
                    report,
                    "there are no files of this kind: secrets are variables (`hutong env set`), other files go into the image or the app's folder",
                ),
                key if key.starts_with("x-") => report.left(
                    at,
                    key,
                    "an extension: of it counts what aliases bring to where they stand",
                ),
                _ => report.left(at, key, "it is not known here"),
            }
        }
        let Some(services) = root.get("services") else {
            return Ok(());
        };
        for entry in services.map() {
            let mut extended = vec![(root.at.path.to_string(), entry.key.clone())];
            let node = extend(&entry.value, services, files, self, &mut extended, report)?;
            if self.services.iter().any(|one| one.name == entry.key) {
                let message = format!("there are two services `{}`", short(&entry.key));
                return Err(Mistake::new(&entry.at, message));
            }
            self.services.push(Service {
                at: entry.at.clone(),
                name: entry.key.clone(),
                node,
            });
        }
        Ok(())
    }

    fn networks(&mut self, value: &Node, at: &At, report: &mut Report) {
        for entry in value.map() {
            let internal = entry.value.get("internal").and_then(Node::flag) == Some(true);
            if internal {
                self.internal.insert(entry.key.clone());
            }
        }
        let why = match self.internal.is_empty() {
            true => {
                "each app has a network of its own; who may call whom is said by `links` and `callers`"
            }
            false => {
                "each app has a network of its own; those that are internal only get no `egress`"
            }
        };
        each(value, at, "networks", report, why);
    }

    fn include(
        &mut self,
        value: &Node,
        files: &mut Files<'_>,
        chain: &mut Vec<String>,
        report: &mut Report,
    ) -> Result<(), Mistake> {
        for item in value.list() {
            let paths = match item.get("path") {
                Some(path) => path.texts(),
                None => item.texts(),
            };
            for entry in item.map().iter().filter(|entry| entry.key != "path") {
                report.left(
                    &entry.at,
                    &format!("include.{}", entry.key),
                    "what is included is read with the variables of the first file",
                );
            }
            for (at, name) in paths {
                let Some((path, text)) = files.get(&at.path, &name) else {
                    report.left(
                        &at,
                        "include",
                        format!("{} was not handed over", short(&name)),
                    );
                    continue;
                };
                if chain.iter().any(|known| known.as_str() == &*path) {
                    let message = format!("{path} includes itself: {} → {path}", chain.join(" → "));
                    return Err(Mistake::new(&at, message));
                }
                if chain.len() >= MAX_CHAIN {
                    let message = format!("more than {MAX_CHAIN} files include each other");
                    return Err(Mistake::new(&at, message));
                }
                report.used(&at, "include", format!("the services of {path}"));
                let root = load(&path, text, &self.variables, report)?;
                chain.push(path.to_string());
                self.read(&root, files, chain, report)?;
                chain.pop();
            }
        }
        Ok(())
    }

    /// Leaves services out that compose would not start by itself.
    fn retain(&mut self, options: &Options, report: &mut Report) {
        self.services.retain(|service| {
            let Some(profiles) = service.node.get("profiles") else {
                return true;
            };
            let profiles = profiles.texts();
            let is_wanted = profiles.is_empty()
                || profiles.iter().any(|(_, name)| options.profiles.contains(name));
            if !is_wanted {
                let names: Vec<&str> = profiles.iter().map(|(_, name)| name.as_str()).collect();
                let why = format!(
                    "it is of the profile {}, which compose does not start by itself; `--profile {}` imports it",
                    short(&names.join(", ")),
                    short(names.first().copied().unwrap_or_default())
                );
                report.left(&service.at, &format!("services.{}", service.name), why);
            }
            is_wanted
        });
    }
}

/// Says the same of each entry, or of the key itself.
fn each(value: &Node, at: &At, key: &str, report: &mut Report, why: &str) {
    if value.map().is_empty() {
        report.left(at, key, why);
    }
    for entry in value.map() {
        report.left(&entry.at, &format!("{key}.{}", entry.key), why);
    }
}

/// A service with what it extends; `chain` are the services on the way, by file.
fn extend(
    node: &Node,
    services: &Node,
    files: &mut Files<'_>,
    project: &Project,
    chain: &mut Vec<(String, String)>,
    report: &mut Report,
) -> Result<Node, Mistake> {
    if !matches!(node.value, Value::Map(_)) {
        let message = format!("a service is a table, not {}", node.kind());
        return Err(Mistake::new(&node.at, message));
    }
    let Some(extends) = node.get("extends") else {
        return Ok(node.clone());
    };
    let (name, file) = match extends.text() {
        Some(name) => (Some(name), None),
        None => (
            extends.get("service").and_then(Node::text),
            extends.get("file").and_then(Node::text),
        ),
    };
    let name = name.ok_or_else(|| Mistake::new(&extends.at, "`extends` names a service"))?;
    let at = &extends.at;
    let loaded;
    let (path, others) = match file {
        None => (at.path.to_string(), services),
        Some(file) => {
            let Some((path, text)) = files.get(&at.path, file) else {
                report.left(
                    at,
                    "extends",
                    format!("{} was not handed over", short(file)),
                );
                return Ok(node.clone());
            };
            loaded = load(&path, text, &project.variables, report)?;
            let nothing = || Mistake::new(at, format!("{path} has no services"));
            (
                path.to_string(),
                loaded.get("services").ok_or_else(nothing)?,
            )
        }
    };
    let step = (path, name.to_owned());
    if chain.contains(&step) {
        let names: Vec<&str> = chain.iter().map(|(_, name)| name.as_str()).collect();
        let message = format!("`{name}` extends itself: {} → {name}", names.join(" → "));
        return Err(Mistake::new(at, message));
    }
    if chain.len() >= MAX_CHAIN {
        let message = format!("more than {MAX_CHAIN} services extend each other");
        return Err(Mistake::new(at, message));
    }
    let Some(base) = others.get(name) else {
        let message = format!("there is no service `{}` to extend", short(name));
        return Err(Mistake::new(at, message));
    };
    let text = format!("with all of the service {}", short(name));
    report.used(at, "extends", text.as_str());
    for entry in extends.map() {
        report.used(&entry.at, &format!("extends.{}", entry.key), text.as_str());
    }
    chain.push(step);
    let base = extend(base, others, files, project, chain, report)?;
    chain.pop();
    Ok(merged(base, node.clone()))
}

/// A file with what another one puts in its place.
fn merged_roots(base: Node, over: Node) -> Node {
    let mut entries = match base.value {
        Value::Map(entries) => entries,
        _ => Vec::new(),
    };
    let Value::Map(more) = over.value else {
        return Node {
            at: base.at,
            value: Value::Map(entries),
        };
    };
    for entry in more {
        let known = entries.iter_mut().find(|known| known.key == entry.key);
        match known {
            Some(known) if entry.key == "services" => {
                let services = std::mem::replace(&mut known.value.value, Value::Null);
                known.value.value = merged_services(services, entry.value.value);
            }
            Some(known) => {
                let value = std::mem::replace(&mut known.value.value, Value::Null);
                known.value.value = deep(value, entry.value.value);
            }
            None => entries.push(entry),
        }
    }
    Node {
        at: base.at,
        value: Value::Map(entries),
    }
}

fn merged_services(base: Value, over: Value) -> Value {
    let (Value::Map(mut entries), Value::Map(more)) = (base, over) else {
        return Value::Null;
    };
    for entry in more {
        match entries.iter_mut().find(|known| known.key == entry.key) {
            Some(known) => {
                let nothing = Node {
                    at: known.value.at.clone(),
                    value: Value::Null,
                };
                let service = std::mem::replace(&mut known.value, nothing);
                known.value = merged(service, entry.value);
            }
            None => entries.push(entry),
        }
    }
    Value::Map(entries)
}

/// A service with what stands above it, as compose merges them: by variable and label, by position, or in place.
fn merged(base: Node, over: Node) -> Node {
    let Value::Map(more) = over.value else {
        return base;
    };
    let mut entries = match base.value {
        Value::Map(entries) => entries,
        _ => Vec::new(),
    };
    for entry in more {
        let Some(known) = entries.iter_mut().find(|known| known.key == entry.key) else {
            entries.push(entry);
            continue;
        };
        known.at = entry.at.clone();
        let value = std::mem::replace(&mut known.value.value, Value::Null);
        known.value = match entry.key.as_str() {
            "environment" | "labels" | "annotations" | "sysctls" => Node {
                at: entry.value.at.clone(),
                value: deep(pairs(value), pairs(entry.value.value)),
            },
            "command" | "entrypoint" | "healthcheck" | "image" | "build" => entry.value,
            _ => Node {
                at: entry.value.at.clone(),
                value: deep(value, entry.value.value),
            },
        };
    }
    Node {
        at: over.at,
        value: Value::Map(entries),
    }
}

/// Tables are merged, lists are put behind each other, all else is replaced.
fn deep(base: Value, over: Value) -> Value {
    match (base, over) {
        (Value::Map(mut entries), Value::Map(more)) => {
            for entry in more {
                match entries.iter_mut().find(|known| known.key == entry.key) {
                    Some(known) => {
                        known.at = entry.at;
                        known.value.at = entry.value.at;
                        let value = std::mem::replace(&mut known.value.value, Value::Null);
                        known.value.value = deep(value, entry.value.value);
                    }
                    None => entries.push(entry),
                }
            }
            Value::Map(entries)
        }
        (Value::List(mut list), Value::List(more)) => {
            for item in more {
                if !list.iter().any(|known| known.value == item.value) {
                    list.push(item);
                }
            }
            Value::List(list)
        }
        (_, over) => over,
    }
}

/// `KEY=VALUE` lines as a table.
fn pairs(value: Value) -> Value {
    let Value::List(list) = value else {
        return value;
    };
    let mut entries: Vec<Entry> = Vec::new();
    for item in list {
        let Node {
            at,
            value: Value::Scalar(mut scalar),
        } = item
        else {
            continue;
        };
        let (key, value) = match scalar.text.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (scalar.text.clone(), None),
        };
        let value = match value {
            Some(value) => {
                scalar.text = value;
                Value::Scalar(scalar)
            }
            None => Value::Null,
        };
        entries.retain(|known| known.key != key);
        entries.push(Entry {
            value: Node {
                at: at.clone(),
                value,
            },
            at,
            key,
        });
    }
    Value::Map(entries)
}

/// `KEY: VALUE` or `KEY=VALUE`: names with values and places.
pub(crate) fn variables_of(node: &Node) -> Vec<Entry> {
    match pairs(node.value.clone()) {
        Value::Map(entries) => entries,
        _ => Vec::new(),
    }
}

/// What an app is called: after its service, or after its project where that says more.
fn wanted_name(project: &str, service: &str, is_alone: bool, names: &Names) -> String {
    const SAYS_NOTHING: [&str; 14] = [
        "app", "web", "backend", "frontend", "api", "server", "service", "db", "database", "redis",
        "worker", "main", "mysql", "postgres",
    ];
    let project = app_name(project);
    let service_name = app_name(service);
    let is_project_known = project != "app";
    if is_alone && is_project_known {
        return project;
    }
    let says_nothing = SAYS_NOTHING.contains(&service_name.as_str());
    if is_project_known && (says_nothing || !names.is_free(&service_name)) {
        return format!("{project}-{service_name}");
    }
    service_name
}

/// The files that a file would change, by compose's own convention.
pub(crate) fn bases_of(path: &str) -> Vec<String> {
    let ends = [".override.yml", ".override.yaml"];
    let Some(stem) = ends.iter().find_map(|end| path.strip_suffix(end)) else {
        return Vec::new();
    };
    vec![format!("{stem}.yml"), format!("{stem}.yaml")]
}

/// The files that a file includes or extends.
pub(crate) fn named(path: &Arc<str>, text: &str) -> Vec<String> {
    let Ok(document) = yaml::parse(path, text) else {
        return Vec::new();
    };
    let root = document.root;
    let mut names = Vec::new();
    for item in root.get("include").map_or(&[][..], Node::list) {
        names.extend(item.get("path").unwrap_or(item).texts());
    }
    for service in root.get("services").map_or(&[][..], Node::map) {
        let file = service
            .value
            .get("extends")
            .and_then(|extends| extends.get("file"));
        names.extend(file.map(Node::texts).unwrap_or_default());
    }
    let paths = names.into_iter().map(|(_, name)| beside(path, &name));
    paths.filter(|named| **named != **path).collect()
}

/// Whether a draft has what another one needs to be a worker of it.
fn may_join(web: &Draft, worker: &Draft) -> bool {
    let compatible = |(key, value): (&String, &String)| {
        web.env.get(key).is_none_or(|known| known == value)
            && web.secrets.get(key).is_none_or(|known| known == value)
    };
    let (Some(ours), Some(theirs)) = (web.container(), worker.container()) else {
        return false;
    };
    ours.image == theirs.image
        && ours.entrypoint == theirs.entrypoint
        && ours.own_user == theirs.own_user
        && ours.allow_root == theirs.allow_root
        && web.egress == worker.egress
        && worker.env.iter().all(compatible)
        && worker.secrets.iter().all(compatible)
}
