//! What the tests of single kinds share.
#![allow(dead_code)]

use hutong_import::{App, Input, Note, NoteKind, Options, Outcome, import};

pub fn input(path: &str, text: &str) -> Input {
    Input {
        path: path.to_owned(),
        folder: "shop".to_owned(),
        text: text.to_owned(),
        asked: true,
    }
}

/// One that only stands beside the others.
pub fn beside(path: &str, text: &str) -> Input {
    Input {
        asked: false,
        ..input(path, text)
    }
}

pub fn made(inputs: &[Input]) -> Outcome {
    import(inputs, &Options::default()).unwrap_or_else(|wrong| panic!("{wrong}"))
}

pub fn wrong(inputs: &[Input]) -> String {
    let found = import(inputs, &Options::default());
    found
        .err()
        .map(|wrong| wrong.to_string())
        .unwrap_or_default()
}

pub fn app<'a>(outcome: &'a Outcome, name: &str) -> &'a App {
    let found = outcome.apps.iter().find(|app| app.name == name);
    found.unwrap_or_else(|| panic!("{name} in {:#?}", outcome.apps))
}

/// The first note of a kind on something.
pub fn note<'a>(outcome: &'a Outcome, kind: NoteKind, what: &str) -> &'a Note {
    let found = outcome
        .notes
        .iter()
        .find(|note| note.kind == kind && note.what.contains(what));
    found.unwrap_or_else(|| panic!("{what} is not said: {:#?}", outcome.notes))
}

pub fn is_said(outcome: &Outcome, kind: NoteKind, what: &str, text: &str) -> bool {
    outcome
        .notes
        .iter()
        .any(|note| note.kind == kind && note.what.contains(what) && note.text.contains(text))
}

/// Lines of an app's file, without the first and those that all have.
pub fn lines(app: &App) -> Vec<&str> {
    app.toml
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("egress"))
        .collect()
}
