//! What it takes to get an image or a changed app onto the server: pushes and pulls beside Debian's docker-registry
//! ([`registry`]), unpacking beside umoci ([`unpack`]), a changed Node app beside npm itself, and rollbacks ([`node`]).
//!
//! The images are made here, of bytes that nobody had before ([`image`]), so nothing is there already. All sides in one
//! run, in turn, and whoever began a round comes second in the next. What is written is flushed before each measurement,
//! so that none pays for the one before it.

mod image;
mod node;
mod registry;
mod relay;
mod unpack;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::{Report, Row, release_binary};

/// Layers of an image, and the bytes of the files in each: 200 MB.
const LAYERS: usize = 5;
const LAYER: usize = 40_000_000;

/// What must be there, and the Debian package that has it.
const NEEDS: [(&str, &str); 5] = [
    ("skopeo", "skopeo"),
    ("docker-registry", "docker-registry"),
    ("umoci", "umoci"),
    ("gzip", "gzip"),
    ("sha256sum", "coreutils"),
];
/// Apps see the system's own programs only, so these must be among them.
const SYSTEM: [(&str, &str); 2] = [(node::NODE, "nodejs"), (node::NPM, "npm")];

pub fn run(quick: bool) -> anyhow::Result<Report> {
    prepared()?;
    let binary = release_binary()?;
    let mut rows = Vec::new();
    let mut notes = Vec::new();
    let mut add = |report: Report| {
        rows.extend(report.rows);
        notes.extend(report.notes);
    };
    add(registry::run(&binary, if quick { 3 } else { 5 })?);
    add(unpack::run(&binary, if quick { 3 } else { 7 })?);
    add(node::run(&binary, if quick { 3 } else { 9 })?);
    Ok(Report { rows, notes })
}

/// Says all that is missing at once.
fn prepared() -> anyhow::Result<()> {
    let is_root = std::fs::metadata("/proc/self")?.uid() == 0;
    anyhow::ensure!(is_root, "root is needed");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    let found = |name: &str| folders.iter().any(|folder| folder.join(name).is_file());
    let mut missing = Vec::new();
    for (name, package) in NEEDS {
        if !found(name) {
            missing.push(format!("{name} (Debian's package {package})"));
        }
    }
    for (place, package) in SYSTEM {
        if !Path::new(place).is_file() {
            missing.push(format!("{place} (Debian's package {package})"));
        }
    }
    anyhow::ensure!(
        missing.is_empty(),
        "bench deploy needs {}",
        missing.join(", ")
    );
    Ok(())
}

/// Runs a program that must succeed; its standard output.
fn ok(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let ran = command.stdin(Stdio::null()).output();
    let output = ran.with_context(|| format!("{name} does not run"))?;
    anyhow::ensure!(
        output.status.success(),
        "{name}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Has everything that was written reach the disk.
fn flush() -> anyhow::Result<()> {
    ok(&mut Command::new("sync")).map(drop)
}

/// A budget with one figure, which is must and goal.
fn row(name: String, ours: f64, unit: &'static str, bound: f64) -> Row {
    Row {
        name,
        ours,
        rival: None,
        unit,
        must: bound,
        goal: bound,
        more_is_better: false,
    }
}

/// Beside a rival, of which at least this much is asked.
fn beside(name: String, ours: f64, rival: f64, unit: &'static str, bound: f64) -> Row {
    Row {
        rival: Some(rival),
        more_is_better: true,
        ..row(name, ours, unit, bound)
    }
}
