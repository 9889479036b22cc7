//! Files that matter.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::fail;

/// Writes a file so that it is there whole or not at all: temporary, fsync, rename, fsync of the folder.
pub fn atomic_write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Instances' records all have other names.
    let step = |what: &str| {
        let kind = if folder.ends_with("i") {
            "instance"
        } else {
            &name
        };
        fail::fallible(&format!("write {kind} {what}"))
    };
    step("begin")?;
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    let written = step("opened")
        .and_then(|()| file.write_all(content))
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
        .and_then(|()| step("written"))
        .and_then(|()| file.sync_all())
        .and_then(|()| step("synced"))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    fail::point(&format!(
        "write {} renamed",
        if folder.ends_with("i") {
            "instance"
        } else {
            &name
        }
    ));
    fs::File::open(folder)?.sync_all()
}
