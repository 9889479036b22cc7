//! An app as it lies on this machine: a folder with a `hutong.toml`, or such a file alone by any name; and folders of
//! such apps.

use std::fs;
use std::path::{Path, PathBuf};

use hutong_core::spec::{self, AppSpec};
use tempfile::TempDir;

use crate::commands::check;
use crate::error::CliError;
use crate::pack::Pack;

/// The name of an app's file in the app's folder.
const FILE: &str = "hutong.toml";

/// An app, read and packed.
pub struct AppFiles {
    pub spec: AppSpec,
    /// Of its `hutong.toml`.
    pub text: String,
    pub pack: Pack,
    /// A file alone is packed as a folder with nothing else in it.
    _folder: Option<TempDir>,
}

/// Reads a folder or a file.
///
/// # Errors
/// There is none, or it is wrong, with the places.
pub fn open(path: &Path) -> Result<AppFiles, CliError> {
    let folder = match path.file_name() {
        Some(name) if name == FILE && path.is_file() => path.parent().unwrap_or(path),
        _ => path,
    };
    // The parent of a bare `hutong.toml` is an empty path.
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    if !folder.is_file() {
        let (spec, text) = check::load(folder)?;
        let pack = Pack::new(folder, &spec)?;
        return Ok(AppFiles {
            spec,
            text,
            pack,
            _folder: None,
        });
    }
    let wrong = |error: std::io::Error| CliError::bad_file(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(wrong)?;
    let spec = spec::parse(&path.to_string_lossy(), &text).map_err(CliError::bad_file)?;
    let alone = tempfile::tempdir().map_err(CliError::failed)?;
    std::fs::write(alone.path().join(FILE), &text).map_err(CliError::failed)?;
    let pack = Pack::new(alone.path(), &spec)?;
    Ok(AppFiles {
        spec,
        text,
        pack,
        _folder: Some(alone),
    })
}

/// The apps of a folder, in the order of their names: `DIR/*/hutong.toml` and `DIR/*.toml`, whichever there are. Hidden
/// ones do not count; what cannot be looked at does, and fails when it is opened: an app that is there must not be taken
/// for one that is gone.
///
/// # Errors
/// It cannot be read, is an app's own folder, or holds no app.
pub fn all_in(folder: &Path) -> Result<Vec<PathBuf>, CliError> {
    let wrong =
        |why: &dyn std::fmt::Display| CliError::bad_file(format!("{}: {why}", folder.display()));
    let entries = std::fs::read_dir(folder).map_err(|error| wrong(&error))?;
    if folder.join(FILE).exists() {
        return Err(wrong(&"this is one app's folder, not a folder of apps")
            .hint(format!("hutong deploy {}", folder.display())));
    }
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| wrong(&error))?.path();
        let name = path.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if is_app(&path, &name) {
            found.push(path);
        }
    }
    if found.is_empty() {
        return Err(wrong(
            &"there is no app in it: neither */hutong.toml nor *.toml",
        ));
    }
    found.sort();
    Ok(found)
}

fn is_app(path: &Path, name: &str) -> bool {
    use std::io::ErrorKind;
    if let Err(error) = fs::metadata(path) {
        // A link to nowhere, or what is denied; what is deleted just now is not there.
        return error.kind() != ErrorKind::NotFound || path.is_symlink();
    }
    if name.ends_with(".toml") && !path.is_dir() {
        return true;
    }
    match fs::symlink_metadata(path.join(FILE)) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_not_absent() {
        let dir = tempfile::tempdir().expect("tempdir");
        let link = |to: &str, name: &str| {
            let name = dir.path().join(name);
            std::os::unix::fs::symlink(to, name).expect("a link");
        };
        link("/no/such/folder", "folder");
        link("/no/such/file", "file.toml");
        fs::create_dir(dir.path().join("half")).expect("mkdir");
        link("/no/such/file", "half/hutong.toml");
        link("self", "self");
        let found = all_in(dir.path()).expect("four");
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found.iter().all(|path| open(path).is_err()));
    }

    #[test]
    fn apps_are_folders_and_files() {
        let dir = tempfile::tempdir().expect("tempdir");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        };
        let empty = all_in(dir.path()).expect_err("nothing in it");
        assert!(empty.cause().contains("no app in it"));
        write("b/hutong.toml", "name='b'\ncommand='x'");
        write("b/app.py", "");
        write("a.toml", "name='a'\nupstream=['http://127.0.0.1:1']");
        write(".hidden/hutong.toml", "");
        write("notes.txt", "");
        write("empty/x", "");
        let found = all_in(dir.path()).expect("two");
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()).collect();
        assert_eq!(names, ["a.toml", "b"]);
        let alone = open(&found[0]).expect("good");
        assert_eq!((alone.spec.name.as_str(), alone.pack.count()), ("a", 1));
        let folder = open(&found[1]).expect("good");
        assert_eq!((folder.spec.name.as_str(), folder.pack.count()), ("b", 2));
        let by_file = open(&found[1].join("hutong.toml")).expect("good");
        assert_eq!(by_file.pack.digest, folder.pack.digest);
        write("hutong.toml", "name='c'");
        assert!(all_in(dir.path()).is_err());
    }
}
