//! Folders that are served as they are.

use super::{Plan, Program, Seen};

/// Where the files may lie, in the order of preference.
const FOLDERS: [&str; 6] = ["", "public", "dist", "build", "out", "site"];

pub(super) fn detect(seen: &Seen<'_>) -> Option<Plan> {
    let index = |folder: &str| match folder {
        "" => "index.html".to_owned(),
        folder => format!("{folder}/index.html"),
    };
    let folder = FOLDERS
        .iter()
        .find(|folder| seen.files.has(&index(folder)))?;
    Some(Plan {
        language: "static site",
        because: vec![format!("{}: files to serve", index(folder))],
        steps: Vec::new(),
        program: Program::Static {
            folder: (*folder).to_owned(),
            spa: false,
        },
        caches: Vec::new(),
    })
}
