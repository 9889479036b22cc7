//! A tree as the detectors want it: what is in an uploaded folder, with the few texts that decide something.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use hutong_core::detect::{Listing, MAX_FILES, MAX_TEXT};
use hutong_core::units::show_size;

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

/// The text of a file that has no more than so many bytes; none if there is no such file.
pub fn text(path: &Path, bound: usize) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(bound as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bound {
        let bound = show_size(bound as u64);
        return Err(io::Error::other(format!("it is over {bound}")));
    }
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("it is no text in UTF-8"))?;
    Ok(Some(text))
}

/// The files of a tree, sorted, with their sizes in bytes; what is too much or cannot be read is left out.
fn files(tree: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let _ = add(tree, "", 0, &mut found, Odd::LeftOut);
    found.sort();
    found
}

/// The files of a tree, sorted, with their sizes in bytes: every one, or an error.
pub fn all_files(tree: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    add(tree, "", 0, &mut found, Odd::Refused)?;
    found.sort();
    Ok(found)
}

/// What becomes of that which cannot be listed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Odd {
    LeftOut,
    Refused,
}

fn add(
    folder: &Path,
    prefix: &str,
    depth: usize,
    found: &mut Vec<(String, u64)>,
    odd: Odd,
) -> io::Result<()> {
    let refuse = |why: &str| match odd {
        Odd::LeftOut => Ok(()),
        Odd::Refused => Err(io::Error::other(format!("`{prefix}` {why}"))),
    };
    if depth > MAX_DEPTH {
        return refuse("is too deep");
    }
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return refuse(&error.to_string()),
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                refuse(&error.to_string())?;
                continue;
            }
        };
        let Ok(name) = entry.file_name().into_string() else {
            refuse("holds a file whose name is not UTF-8")?;
            continue;
        };
        // Not through links: there are none, unless somebody put one there.
        let kind = match entry.metadata() {
            Ok(kind) => kind,
            Err(error) => {
                refuse(&error.to_string())?;
                continue;
            }
        };
        let path = format!("{prefix}{name}");
        if kind.is_dir() {
            add(&entry.path(), &format!("{path}/"), depth + 1, found, odd)?;
        } else if kind.is_file() {
            if found.len() >= MAX_FILES {
                refuse(&format!("is in a folder of over {MAX_FILES} files"))?;
                continue;
            }
            found.push((path, kind.len()));
        }
    }
    Ok(())
}
