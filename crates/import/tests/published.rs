//! Compose files as packages of npm, PyPI and Debian ship them (`corpus/ORIGIN.md` says which): each is imported, with all of it
//! said, or refused with what is wrong and where.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hutong_import::{Input, Kind, NoteKind, Options, Outcome, import};
use sha2::{Digest, Sha256};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// A row of `ORIGIN.md`.
struct Origin {
    path: String,
    registry: String,
    sha256: String,
    text: String,
}

fn origins() -> Vec<Origin> {
    let table = std::fs::read_to_string(corpus().join("ORIGIN.md")).expect("the table");
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row
            .split('|')
            .map(|cell| cell.trim().trim_matches('`'))
            .collect();
        let [_, path, registry, _, _, _, _, sha256, _] = cells[..] else {
            panic!("{row}");
        };
        Origin {
            path: path.to_owned(),
            registry: registry.to_owned(),
            sha256: sha256.to_owned(),
            text: std::fs::read_to_string(corpus().join(path)).expect(path),
        }
    })
    .collect()
}

/// One file, with the others of its package beside it.
fn inputs(origin: &Origin, all: &[Origin]) -> Vec<Input> {
    let package = |path: &str| path.split('/').next().unwrap_or_default().to_owned();
    all.iter()
        .filter(|other| package(&other.path) == package(&origin.path))
        .map(|other| Input {
            path: other.path.clone(),
            folder: other.path.rsplit('/').nth(1).unwrap_or_default().to_owned(),
            text: other.text.clone(),
            asked: other.path == origin.path,
        })
        .collect()
}

fn result(origin: &Origin, all: &[Origin]) -> Result<Outcome, String> {
    let options = Options {
        kind: Some(Kind::Compose),
        ..Options::default()
    };
    import(&inputs(origin, all), &options).map_err(|wrong| wrong.to_string())
}

/// What is refused, and with which words.
const REFUSED: [(&str, &str); 9] = [
    (
        "docker-compose/tests/fixtures/tagless-image/docker-compose.yml",
        "4:12: IMAGE_ID is not set, and the image cannot be told without: hand over an .env file beside the compose file",
    ),
    // The first version of the format, which compose itself does not read any more.
    (
        "docker-compose/tests/fixtures/v1-config/docker-compose.yml",
        "1:1: `net` stands at the top, as services did in version 1 of the format: put it below `services:`",
    ),
    (
        "docker-compose/tests/fixtures/extends/docker-compose.yml",
        "1:1: `myweb` stands at the top, as services did in version 1 of the format: put it below `services:`",
    ),
    (
        "docker-compose/tests/fixtures/stop-signal-composefile/docker-compose.yml",
        "1:1: `simple` stands at the top, as services did in version 1 of the format: put it below `services:`",
    ),
    (
        "docker-registry/contrib/compose/docker-compose.yml",
        "1:1: `nginx` stands at the top, as services did in version 1 of the format: put it below `services:`",
    ),
    (
        "docker-registry/contrib/docker-integration/docker-compose.yml",
        "1:1: `nginx` stands at the top, as services did in version 1 of the format: put it below `services:`",
    ),
    // Without the file that it changes.
    (
        "docker-compose/tests/fixtures/override-files/docker-compose.override.yml",
        "3:3: this service has neither `image` nor `build`",
    ),
    // Templates, before they are filled in.
    (
        "fastapi-template/fastapi_template/template/project/deploy/docker-compose.otlp.yml",
        "5:8: a key is a plain text, not a table; `{{ … }}` of a template is to be filled in first",
    ),
    (
        "fastapi-template/fastapi_template/template/project/docker-compose.yml",
        "7:13: a key is a plain text, not a table; `{{ … }}` of a template is to be filled in first",
    ),
];

/// No app comes of these: they have no services, or only one whose work is Hutong's.
const WITHOUT_APPS: [&str; 3] = [
    "docker-compose/tests/fixtures/no-services/docker-compose.yml",
    "docker-compose/tests/fixtures/volumes/docker-compose.yml",
    "local-dev-proxy/local_dev_proxy/proxy_compose.yaml",
];

/// Parts of a port or a volume that the note on it is about.
const PARTS: [&str; 8] = [
    "type",
    "source",
    "src",
    "target",
    "dst",
    "read_only",
    "published",
    "protocol",
];

/// A line that others are below of.
struct Around<'a> {
    indent: usize,
    number: usize,
    is_item: bool,
    text: &'a str,
}

/// Lines with something in them that no note is about, nor about what is around them.
fn unsaid(origin: &Origin, all: &[Origin], outcome: &Outcome) -> Vec<String> {
    let is_noted = |path: &str, line: usize, whole: bool| {
        outcome.notes.iter().any(|note| {
            let is_whole = matches!(note.kind, NoteKind::LeftOut | NoteKind::Replaced);
            note.path == path && note.line == line && (is_whole || !whole)
        })
    };
    let noted = |line: usize, whole: bool| is_noted(&origin.path, line, whole);
    // An item that a file which this one extends has, too, counts once.
    let is_repeated = |text: &str| {
        let mut others = all.iter().filter(|other| other.path != origin.path);
        others.any(|other| {
            let mut lines = other.text.lines().enumerate();
            lines
                .any(|(index, line)| line.trim() == text && is_noted(&other.path, index + 1, false))
        })
    };
    let mut around: Vec<Around<'_>> = Vec::new();
    let mut unsaid = Vec::new();
    for (index, line) in origin.text.lines().enumerate() {
        let (number, text) = (index + 1, line.trim());
        let is_nothing = text.is_empty() || text.starts_with('#');
        if is_nothing || text.starts_with("<<:") || text == "---" || text == "..." {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let is_item = text.starts_with("- ");
        while around.last().is_some_and(|above| {
            above.indent > indent || (above.indent == indent && (above.is_item || !is_item))
        }) {
            around.pop();
        }
        let is_inside = around.iter().any(|above| noted(above.number, true));
        let key = text.split(':').next().unwrap_or_default();
        let is_part = around.last().is_some_and(|above| {
            let is_word = is_item && ["command:", "entrypoint:"].contains(&above.text);
            let is_known = above.is_item && PARTS.contains(&key);
            (is_word || is_known) && noted(above.number, false)
        });
        let is_said = text.ends_with(':') || is_inside || is_part || noted(number, false);
        let is_known = is_said || (is_item && is_repeated(text));
        if !is_known {
            unsaid.push(format!("{}:{number}: {text}", origin.path));
        }
        around.push(Around {
            indent,
            number,
            is_item,
            text,
        });
    }
    unsaid
}

#[test]
fn the_files_are_as_they_were_published() {
    let all = origins();
    for origin in &all {
        let digest = Sha256::digest(origin.text.as_bytes());
        let found: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, origin.sha256, "{}", origin.path);
    }
    for registry in ["npm", "PyPI", "Debian source"] {
        assert!(
            all.iter().any(|origin| origin.registry == registry),
            "{registry}"
        );
    }
    // None lies there that the table does not know.
    let mut folders = vec![corpus()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|end| end == "yml" || end == "yaml")
            {
                let inside = path.strip_prefix(corpus()).expect("below");
                found.push(inside.to_string_lossy().into_owned());
            }
        }
    }
    let mut known: Vec<String> = all.into_iter().map(|origin| origin.path).collect();
    found.sort();
    known.sort();
    assert_eq!(found, known);
}

#[test]
fn published_files_are_imported_or_refused_with_the_reason() {
    let all = origins();
    let mut refused = BTreeMap::new();
    let mut without_apps = Vec::new();
    let mut imported = 0;
    for origin in &all {
        let outcome = match result(origin, &all) {
            Ok(outcome) => outcome,
            Err(message) => {
                refused.insert(origin.path.clone(), message);
                continue;
            }
        };
        imported += 1;
        if outcome.apps.is_empty() {
            without_apps.push(origin.path.as_str());
        }
        for app in &outcome.apps {
            let found = hutong_core::spec::parse("hutong.toml", &app.toml);
            assert!(found.is_ok(), "{}: {}", origin.path, app.toml);
        }
        let silent: Vec<String> = unsaid(origin, &all, &outcome);
        assert_eq!(silent, Vec::<String>::new());
    }
    let wanted: BTreeMap<String, String> = REFUSED
        .iter()
        .map(|(path, said)| ((*path).to_owned(), format!("{path}:{said}")))
        .collect();
    assert_eq!(refused, wanted);
    without_apps.sort_unstable();
    assert_eq!(without_apps, WITHOUT_APPS);
    println!(
        "{} files: {imported} imported, {} refused",
        all.len(),
        refused.len()
    );
    // Those that compose was tested with are small and odd: the others are counted without them.
    let others = all
        .iter()
        .filter(|origin| !origin.path.starts_with("docker-compose/"));
    assert!(all.len() >= 70 && others.count() >= 40 && imported >= 60);
}
