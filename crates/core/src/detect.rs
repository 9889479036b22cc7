//! What a folder is and how it is built and run, when `hutong.toml` says neither: a listing of the folder in, a plan or
//! a precise refusal out. Pure: whoever has the folder reads it ([`wants`] says of which files the text is needed).
//!
//! Start at [`complete`], which is what a deploy uses; [`detect`] is the decision. One file per language. What
//! `hutong.toml` says always wins: a plan only fills in what is missing there, and is written into the release's
//! configuration, so that what a release is does not depend on a later version's detectors.

mod go;
mod java;
mod node;
mod python;
mod rust;
mod site;

use std::collections::BTreeMap;

use crate::spec::{self, AppSpec, Missing, Place, Problem, Problems};

/// Of files whose text is needed, more than so many bytes are not read.
pub const MAX_TEXT: u64 = 1 << 20;
/// Nor are more bytes of all of them together.
const MAX_TEXTS: usize = 16 << 20;
/// Of a folder, more files than this are not listed.
pub const MAX_FILES: usize = 50_000;
/// A file's text is needed down to this many folders deep.
const DEPTH: usize = 3;

/// Files whose text decides something.
const WANTED: [&str; 23] = [
    "Procfile",
    "requirements.txt",
    "pyproject.toml",
    "settings.py",
    "package.json",
    "package-lock.json",
    "npm-shrinkwrap.json",
    "yarn.lock",
    "angular.json",
    "next.config.js",
    "next.config.mjs",
    "next.config.ts",
    "astro.config.mjs",
    "astro.config.ts",
    "go.mod",
    "Cargo.toml",
    "Cargo.lock",
    "pom.xml",
    "main.py",
    "app.py",
    "server.py",
    "wsgi.py",
    "__init__.py",
];

/// Whether a file's text is needed. `path` is relative, with `/` between its parts.
pub fn wants(path: &str) -> bool {
    let mut parts = path.rsplit('/');
    let name = parts.next().unwrap_or_default();
    let deep = parts.count();
    if path.split('/').any(is_foreign) {
        return false;
    }
    (deep <= DEPTH && WANTED.contains(&name))
        || (deep <= 1 && (name.ends_with(".py") || name.ends_with(".go")))
        || (deep == 2 && name == "main.go")
        || (name.ends_with(".txt") && (deep == 0 || (deep == 1 && path.contains("requirements"))))
}

/// Folders of other people's code.
fn is_foreign(part: &str) -> bool {
    matches!(part, "node_modules" | "vendor" | ".venv" | "venv" | ".git")
}

/// What is in a folder: paths, sorted, each with its text if that was read.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    files: BTreeMap<String, Text>,
    /// Bytes of all texts.
    read: usize,
}

/// What is known of a file's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// Nobody needs it.
    Unread,
    /// It is over [`MAX_TEXT`], or all texts together would be too much.
    TooLong,
    Read(String),
}

impl Listing {
    /// `content` is asked for files whose text is needed only.
    pub fn add(&mut self, path: &str, size: u64, content: impl FnOnce() -> Option<Vec<u8>>) {
        if self.files.len() >= MAX_FILES {
            return;
        }
        let text = match wants(path) {
            false => Text::Unread,
            true if size > MAX_TEXT || self.read >= MAX_TEXTS => Text::TooLong,
            true => content().map_or(Text::Unread, |bytes| {
                Text::Read(String::from_utf8_lossy(&bytes).into_owned())
            }),
        };
        if let Text::Read(text) = &text {
            self.read += text.len();
        }
        self.files.insert(path.to_owned(), text);
    }

    fn has(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// Whether there is a file below `folder`.
    fn has_folder(&self, folder: &str) -> bool {
        let prefix = format!("{folder}/");
        let mut rest = self.files.range(prefix.clone()..);
        rest.next()
            .is_some_and(|(path, _)| path.starts_with(&prefix))
    }

    fn text(&self, path: &str) -> Option<&str> {
        match self.files.get(path)? {
            Text::Read(text) => Some(text),
            Text::Unread | Text::TooLong => None,
        }
    }

    /// The text of a file that must be understood; an error if it is there and was not read.
    fn needed(&self, path: &str) -> Result<&str, Refusal> {
        match self.files.get(path) {
            Some(Text::Read(text)) => Ok(text),
            Some(Text::TooLong) => Err(Refusal::at(
                path,
                format!(
                    "over {}, or over {} with what is beside it: too much to be read",
                    crate::units::show_size(MAX_TEXT),
                    crate::units::show_size(MAX_TEXTS as u64)
                ),
            )),
            Some(Text::Unread) | None => Err(Refusal::at(path, "cannot be read")),
        }
    }

    fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Those that are not other people's code.
    fn own_paths(&self) -> impl Iterator<Item = &str> {
        self.paths().filter(|path| !path.split('/').any(is_foreign))
    }
}

/// One program of a build, in the app's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub command: Vec<String>,
    /// It fetches packages.
    pub network: bool,
}

impl Step {
    fn new(line: &str, network: bool) -> Self {
        Step {
            command: words(line),
            network,
        }
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    Command(Vec<String>),
    /// A folder of files, below the app's own; `""` is the app's own.
    Static {
        folder: String,
        spa: bool,
    },
    /// The container engine builds it.
    Dockerfile(String),
}

/// How a folder is built and run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// `Python`, `Node`, …
    pub language: &'static str,
    /// What was recognised, and what follows from it; for a person.
    pub because: Vec<String>,
    pub steps: Vec<Step>,
    pub program: Program,
    /// Names of what is kept from one build to the next.
    pub caches: Vec<&'static str>,
}

/// Why a folder is not understood: what, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub path: String,
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl Refusal {
    fn at(path: &str, message: impl Into<String>) -> Self {
        Refusal {
            path: path.to_owned(),
            line: 1,
            column: 1,
            message: message.into(),
        }
    }

    fn problems(self) -> Problems {
        Problems {
            path: self.path,
            list: vec![Problem {
                line: self.line,
                column: self.column,
                message: self.message,
            }],
        }
    }
}

/// What a detector of one language may decide by.
struct Seen<'a> {
    files: &'a Listing,
    /// The port that the program is to listen on.
    port: u16,
    /// What a Procfile has for visitors, as a command.
    web: Option<Vec<String>>,
}

/// Decides what a folder is. `engine`: there is one that builds Dockerfiles.
pub fn detect(files: &Listing, port: u16, engine: bool) -> Result<Plan, Refusal> {
    if engine && files.has("Dockerfile") {
        return Ok(Plan {
            language: "Dockerfile",
            because: vec!["Dockerfile: the container engine builds it".into()],
            steps: Vec::new(),
            program: Program::Dockerfile("Dockerfile".into()),
            caches: Vec::new(),
        });
    }
    let seen = Seen {
        files,
        port,
        web: procfile(files, port)?,
    };
    let servers: [(&str, &[&str], Detector); 4] = [
        (
            "Python",
            &["requirements.txt", "pyproject.toml", "manage.py"],
            python::detect,
        ),
        ("Go", &["go.mod"], go::detect),
        ("Rust", &["Cargo.toml"], rust::detect),
        ("Java", &["pom.xml"], java::detect),
    ];
    let mut found: Vec<(&str, &str, Detector)> = Vec::new();
    for (language, marks, detector) in servers {
        if let Some(mark) = marks.iter().find(|mark| files.has(mark)) {
            found.push((language, *mark, detector));
        }
    }
    if let [(first, one, _), (second, other, _), ..] = found[..] {
        return Err(Refusal::at(
            other,
            format!(
                "{one} says {first} and {other} says {second}: say which in hutong.toml by `command` and [build], or move one of them to an app of its own"
            ),
        ));
    }
    let has_node = files.has("package.json");
    match found.first() {
        Some((_, _, detector)) => {
            let mut plan = detector(&seen)?;
            if has_node {
                node::build_beside(&seen, &mut plan)?;
            }
            Ok(plan)
        }
        None if has_node => node::detect(&seen),
        None => match (python::lone_script(&seen), site::detect(&seen)) {
            (Some(plan), _) | (None, Some(plan)) => Ok(plan),
            (None, None) => Err(nothing_known(files, engine)),
        },
    }
}

type Detector = fn(&Seen<'_>) -> Result<Plan, Refusal>;

/// What is recognised without being built, and what to do about it.
const UNSUPPORTED: [(&str, &str); 7] = [
    ("composer.json", "PHP"),
    ("Gemfile", "Ruby"),
    ("build.gradle", "Gradle"),
    ("build.gradle.kts", "Gradle"),
    ("mix.exs", "Elixir"),
    ("deno.json", "Deno"),
    ("Pipfile", "Pipenv"),
];

fn nothing_known(files: &Listing, engine: bool) -> Refusal {
    if !engine && files.has("Dockerfile") {
        return Refusal::at(
            "Dockerfile",
            "this server has no container engine to build it, and nothing else here is recognised: start the server with --docker, or set `command` in hutong.toml",
        );
    }
    let other = UNSUPPORTED.iter().find(|(mark, _)| files.has(mark));
    if let Some((mark, language)) = other {
        return Refusal::at(
            mark,
            format!(
                "{language} is not built by itself: set `command` and [build] in hutong.toml, or add a Dockerfile"
            ),
        );
    }
    Refusal::at(
        "hutong.toml",
        "nothing to run, and nothing in the folder is recognised (requirements.txt, pyproject.toml, manage.py, package.json, go.mod, Cargo.toml, pom.xml, index.html, Dockerfile): add `command = [\"python3\", \"app.py\"]` or `static = \"dist\"`",
    )
}

/// The line `web:` of a Procfile.
fn procfile(files: &Listing, port: u16) -> Result<Option<Vec<String>>, Refusal> {
    if !files.has("Procfile") {
        return Ok(None);
    }
    for (index, line) in files.needed("Procfile")?.lines().enumerate() {
        let Some((name, command)) = line.split_once(':') else {
            continue;
        };
        if name.trim() != "web" {
            continue;
        }
        let wrong = |message: &str| Refusal {
            line: index + 1,
            ..Refusal::at("Procfile", message)
        };
        let plain = command
            .replace("${PORT}", &port.to_string())
            .replace("$PORT", &port.to_string());
        if needs_shell(&plain) {
            let line = command.trim().to_owned();
            return Ok(Some(vec!["sh".into(), "-c".into(), line]));
        }
        let words =
            shell_words::split(&plain).map_err(|_| wrong("`web` has a quote that does not end"))?;
        if words.is_empty() {
            return Err(wrong("`web` says no command"));
        }
        return Ok(Some(words));
    }
    Ok(None)
}

/// Whether a line means something else to a shell than its words.
fn needs_shell(line: &str) -> bool {
    line.contains(['$', '`', '|', '&', ';', '<', '>', '*', '(', ')'])
        || line
            .split_whitespace()
            .next()
            .is_some_and(|word| word.contains('='))
}

/// What a folder comes to with its `hutong.toml`.
#[derive(Debug)]
pub struct Completed {
    pub spec: AppSpec,
    /// `hutong.toml` with what was detected written into it.
    pub text: String,
    /// What was detected, if anything was missing.
    pub plan: Option<Plan>,
}

/// Reads `hutong.toml`, and detects what it does not say. `files` is asked only then.
pub fn complete(
    path: &str,
    text: &str,
    engine: bool,
    files: impl FnOnce() -> Listing,
) -> Result<Completed, Problems> {
    let Some(missing) = spec::missing(text) else {
        let spec = spec::parse(path, text)?;
        return Ok(Completed {
            spec,
            text: text.to_owned(),
            plan: None,
        });
    };
    let mut plan =
        detect(&files(), missing.port, engine && missing.build).map_err(Refusal::problems)?;
    if !missing.build {
        // Its owner says how it is built.
        plan.steps.clear();
    }
    let (before, after) = written(&plan, missing);
    let completed = format!("{}{after}", spec::on_top(&before, text));
    let spec = spec::parse(path, &completed).map_err(|mut problems| {
        let added = before.lines().count();
        for problem in &mut problems.list {
            problem.line = problem.line.saturating_sub(added).max(1);
        }
        problems
    })?;
    Ok(Completed {
        spec,
        text: completed,
        plan: Some(plan),
    })
}

/// A plan as lines of `hutong.toml`: what stands before its first table, and behind its last.
pub fn written(plan: &Plan, missing: Missing) -> (String, String) {
    let before = match &plan.program {
        Program::Command(command) => format!("command = {}\n", list(command)),
        Program::Static { folder, spa } => {
            let folder = if folder.is_empty() { "." } else { folder };
            let spa = if *spa && !missing.spa {
                "spa = true\n"
            } else {
                ""
            };
            format!("static = {}\n{spa}", quoted(folder))
        }
        Program::Dockerfile(_) => String::new(),
    };
    let mut after = String::new();
    if missing.build {
        match &plan.program {
            Program::Dockerfile(path) => {
                after = format!("\n[build]\ndockerfile = {}\n", quoted(path));
            }
            _ if !plan.steps.is_empty() => {
                after.push_str("\n[build]\nsteps = [\n");
                for step in &plan.steps {
                    let network = if step.network { ", network = true" } else { "" };
                    let command = list(&step.command);
                    after.push_str(&format!("  {{ command = {command}{network} }},\n"));
                }
                after.push_str("]\n");
            }
            _ => {}
        }
    }
    (before, after)
}

/// A basic string of TOML; the escapes of JSON are among those of TOML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text)
        .to_string()
        .replace('\u{7f}', "\\u007f")
}

fn list(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    format!("[{}]", words.join(", "))
}

/// Reads JSON, or says where it is wrong.
fn json(path: &str, text: &str) -> Result<serde_json::Value, Refusal> {
    serde_json::from_str(text).map_err(|error| Refusal {
        path: path.to_owned(),
        line: error.line().max(1),
        column: error.column().max(1),
        message: format!("not JSON: {error}"),
    })
}

/// Reads TOML, or says where it is wrong.
fn toml_of(path: &str, text: &str) -> Result<toml::Table, Refusal> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start);
        let place = Place { text }.problem(at, String::new());
        Refusal {
            path: path.to_owned(),
            line: place.line,
            column: place.column,
            message: format!("not TOML: {}", error.message().replace('\n', " ")),
        }
    })
}

#[cfg(test)]
mod tests;
