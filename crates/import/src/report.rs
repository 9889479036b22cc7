//! What is said of an import: what was understood, what was left out, and why.

use serde::Serialize;

use crate::place::{At, short};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It is in what is written.
    Used,
    /// It is not.
    LeftOut,
    /// Hutong does this itself.
    Replaced,
    /// Somebody has to do it by hand.
    ToDo,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    pub kind: Kind,
    pub app: Option<String>,
    pub path: String,
    pub line: usize,
    pub column: usize,
    /// What stands there: a key, a directive, a label.
    pub what: String,
    /// What became of it, or why not.
    pub text: String,
}

#[derive(Default)]
pub(crate) struct Report {
    pub notes: Vec<Note>,
    /// Whom what follows is about.
    pub app: Option<String>,
}

impl Report {
    pub fn used(&mut self, at: &At, what: &str, text: impl Into<String>) {
        self.add(Kind::Used, at, what, text.into());
    }

    pub fn left(&mut self, at: &At, what: &str, why: impl Into<String>) {
        self.add(Kind::LeftOut, at, what, why.into());
    }

    pub fn replaced(&mut self, at: &At, what: &str, text: impl Into<String>) {
        self.add(Kind::Replaced, at, what, text.into());
    }

    pub fn leave_to_do(&mut self, at: &At, what: &str, text: impl Into<String>) {
        self.add(Kind::ToDo, at, what, text.into());
    }

    fn add(&mut self, kind: Kind, at: &At, what: &str, text: String) {
        self.notes.push(Note {
            kind,
            app: self.app.clone(),
            path: at.path.to_string(),
            line: at.line,
            column: at.column,
            what: short(what),
            text,
        });
    }
}
