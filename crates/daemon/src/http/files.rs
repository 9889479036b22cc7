//! What was deployed, to compare with: an app's file, and the files of a tree.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path as FilePath;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use hutong_api::{AppFile, Problem, ReleaseState, TreeFile};
use hutong_core::spec;
use hutong_core::tree::hex;
use sha2::{Digest, Sha256};

use super::{ApiError, Result, apps, deploy};
use crate::Control;
use crate::store::Goal;

/// The file of the release that is wanted, and what was declared beside it. No value of a variable.
#[utoipa::path(get, path = "/v1/apps/{app}/file", responses((status = 200, body = AppFile), (status = 404, body = Problem)))]
pub async fn app_file(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<AppFile>> {
    let app = apps::find(&control, &name)?;
    let under_way = control.store.under_way(&name)?.map(|d| d.release);
    let active = match app.active {
        Some(id) => control.store.deployment(id)?.map(|d| d.release),
        None => None,
    };
    let wanted = match under_way.or(active) {
        Some(number) => control.store.release(&name, number)?,
        None => control.store.releases(&name)?.into_iter().next(),
    };
    let release =
        wanted.ok_or_else(|| ApiError::not_found(format!("{name} has no release that is kept")))?;
    let state = match () {
        () if under_way == Some(release.number) => ReleaseState::Deploying,
        () if active == Some(release.number) => ReleaseState::Active,
        () => ReleaseState::Failed,
    };
    let variables = control.store.env_keys(&name)?;
    Ok(Json(AppFile {
        app: name,
        release: release.number,
        state,
        digest: release.digest,
        // As its owner wrote it.
        text: spec::without_port(&release.spec).to_owned(),
        stopped: app.goal == Goal::Stopped,
        scale: app.scale,
        variables: variables.into_iter().map(|(key, _)| key).collect(),
    }))
}

/// Trees that are read at once; more wait.
static READERS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(2);

/// The files of an uploaded tree, in the order of their paths.
#[utoipa::path(get, path = "/v1/trees/{digest}/files", responses((status = 200, body = Vec<TreeFile>), (status = 404, body = Problem)))]
pub async fn tree_files(
    State(control): State<Arc<Control>>,
    Path(digest): Path<String>,
) -> Result<Json<Vec<TreeFile>>> {
    let folder = deploy::tree(&control, &digest)?;
    if !folder.is_dir() {
        return Err(ApiError::not_found("the server does not have this tree"));
    }
    let failed = |error: &dyn std::fmt::Display| ApiError::new(500, error.to_string());
    let _place = READERS.acquire().await.map_err(|error| failed(&error))?;
    let work = tokio::task::spawn_blocking(move || listing(&folder));
    let files = work.await.map_err(|error| failed(&error))?;
    Ok(Json(files.map_err(|error| failed(&error))?))
}

/// Trees are control's own, and hold plain files and folders only: `unpack` saw to that.
fn listing(root: &FilePath) -> io::Result<Vec<TreeFile>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let path = entry.path();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let relative = path.strip_prefix(root).unwrap_or(&path);
                files.push(TreeFile {
                    path: relative.to_string_lossy().into_owned(),
                    executable: entry.metadata()?.permissions().mode() & 0o111 != 0,
                    sha256: digest_of(&path)?,
                });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn digest_of(path: &FilePath) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_listed_in_order() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("b")).expect("mkdir");
        for name in ["b/x", "a", "b/run"] {
            std::fs::write(dir.path().join(name), "abc").expect("write");
        }
        let run = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path().join("b/run"), run).expect("chmod");
        let files = listing(dir.path()).expect("a list");
        let seen: Vec<_> = files
            .iter()
            .map(|file| (file.path.as_str(), file.executable))
            .collect();
        assert_eq!(seen, [("a", false), ("b/run", true), ("b/x", false)]);
        // FIPS 180-4's example.
        assert!(files[0].sha256.starts_with("ba7816bf"));
    }
}
