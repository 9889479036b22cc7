//! A tree as the detectors want it: what is in an uploaded folder, with the few texts that decide something.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use hutong_core::detect::{Listing, MAX_FILES, MAX_TEXT};

/// Folders below each other; an unpacked archive has far fewer.
const MAX_DEPTH: usize = 100;

/// Lists a tree. It holds plain files and folders only: it was unpacked by us.
pub fn listing(tree: &Path) -> Listing {
    let mut listing = Listing::default();
    for (path, size) in files(tree) {
        let whole = tree.join(&path);
        listing.add(&path, size, || {
            let mut bytes = Vec::new();
            let file = File::open(&whole).ok()?;
            file.take(MAX_TEXT).read_to_end(&mut bytes).ok()?;
            Some(bytes)
        });
    }
    listing
}

/// The files of a tree, sorted, with their sizes in bytes.
pub fn files(tree: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    add(tree, "", 0, &mut found);
    found.sort();
    found
}

fn add(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<(String, u64)>) {
    if depth > MAX_DEPTH {
        return;
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // Not through links: there are none, unless somebody put one there.
        let Ok(kind) = entry.metadata() else { continue };
        let path = format!("{prefix}{name}");
        if kind.is_dir() {
            add(&entry.path(), &format!("{path}/"), depth + 1, found);
        } else if kind.is_file() && found.len() < MAX_FILES {
            found.push((path, kind.len()));
        }
    }
}
