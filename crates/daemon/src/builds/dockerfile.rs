//! An app's image, built of its Dockerfile by the engine. What the Dockerfile would have the engine do by itself is
//! looked at here; the context is what the tree holds and `.dockerignore` does not leave out, as one sorted archive
//! without times, so that unchanged steps are found again.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use hutong_core::dockerfile;
use hutong_core::dockerignore::Ignored;
use hutong_core::spec::Dockerfile;
use hutong_core::tree::digest_of;
use hutong_ipc::docker;
use hutong_ipc::warden::Limits;
use hutong_runtime::client::DriverError;

use super::{Broken, CPU_MILLIS, LOOK, NO_ENGINE, PATIENCE, PIDS, is_superseded, wait_for_memory};
use crate::store::{Deployment, Release};
use crate::{Control, controller, disk, folder, ids, lock, memory};

/// Its image; none if nobody wants it any more.
pub(super) fn build(
    control: &Control,
    deployment: &Deployment,
    release: &Release,
    file: &Dockerfile,
) -> Result<Option<docker::Image>, Broken> {
    if control.settings.docker.is_none() {
        return Err(Broken::plain(NO_ENGINE));
    }
    let app = &deployment.app;
    let tree = control.data_dir.join("trees").join(&release.digest);
    let text = std::fs::read_to_string(tree.join(&file.path))
        .map_err(|error| Broken::plain(format!("{}: {error}", file.path)))?;
    let bases = dockerfile::bases(&file.path, &text).map_err(Broken::plain)?;
    let fresh = lock(&control.observed).fresh.contains(&deployment.id);
    let network = if file.network { "network" } else { "" };
    let build = docker::Build {
        app: app.clone(),
        key: digest_of(&[app, &release.digest, &file.path, network]),
        fresh,
        dockerfile: file.path.clone(),
        bases,
        limits: Limits {
            memory: memory::build_cap(),
            cpu_millis: CPU_MILLIS,
            pids: PIDS,
            guaranteed: 0,
        },
        egress: file.network,
        timeout_ms: file.timeout.as_millis() as u64,
        disk_reserve: disk::reserve(control).1,
    };
    let _place = wait_for_memory(control, deployment)?;
    let instance = ids::build_step(app, deployment.id, 0);
    let doing = format!("building the image of {}", file.path);
    control.logs.note(app, &instance, &doing);
    lock(&control.observed)
        .building
        .insert(deployment.id, doing);
    let failed = |why: String| Broken {
        reason: format!("the image of {} is not built: {why}", file.path),
        log: controller::last_words(control, app, deployment.id),
    };
    let mut lost_since = None;
    loop {
        let wanted = || !is_superseded(control, deployment.id) && control.has_disk().is_ok();
        let built = ask(control, &build, &tree, &instance, wanted);
        if is_superseded(control, deployment.id) {
            return Ok(None);
        }
        match built {
            Ok(image) => return Ok(Some(image)),
            Err(DriverError::Refused(why)) => return Err(failed(why)),
            Err(error) => {
                control.has_disk().map_err(failed)?;
                // The driver is being restarted: from the beginning, with what the engine has kept of it.
                if lost_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    return Err(failed(error.to_string()));
                }
                std::thread::sleep(LOOK);
            }
        }
    }
}

fn ask(
    control: &Control,
    build: &docker::Build,
    tree: &Path,
    instance: &str,
    wanted: impl Fn() -> bool + Sync,
) -> Result<docker::Image, DriverError> {
    let refused = |error: io::Error| DriverError::Refused(format!("cannot be packed: {error}"));
    let (ours, theirs) = UnixStream::pair().map_err(refused)?;
    let (tree, dockerfile) = (tree.to_owned(), build.dockerfile.clone());
    // It ends with the archive, or when nobody reads on.
    let packing = std::thread::Builder::new()
        .name("context".into())
        .spawn(move || pack(&tree, &dockerfile, ours));
    packing.map_err(refused)?;
    let line = |text: &str| control.logs.line(&build.app, instance, "build", text);
    control.docker.build(build.clone(), theirs, line, wanted)
}

/// Writes the context: what the engine does not get, no Dockerfile can copy.
fn pack(tree: &Path, dockerfile: &str, to: UnixStream) -> io::Result<()> {
    let ignored = std::fs::read_to_string(tree.join(".dockerignore")).unwrap_or_default();
    let ignored = Ignored::parse(&ignored);
    let mut archive = tar::Builder::new(BufWriter::with_capacity(64 << 10, to));
    for (path, _) in folder::files(tree) {
        let needed = path == dockerfile || path == ".dockerignore";
        if !needed && ignored.has(&path) {
            continue;
        }
        let file = File::open(tree.join(&path))?;
        let found = file.metadata()?;
        let executable = found.permissions().mode() & 0o111 != 0;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(found.len());
        header.set_mode(if executable { 0o755 } else { 0o644 });
        header.set_mtime(0);
        archive.append_data(&mut header, &path, file)?;
    }
    archive.into_inner()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_is_what_dockerignore_leaves_in() {
        let tree = tempfile::tempdir().expect("tempdir");
        for (path, text) in [
            ("Dockerfile", "FROM scratch"),
            (".dockerignore", "*\n!app\napp/secret\n"),
            ("app/a", "a"),
            ("app/secret", "s"),
            ("README", "r"),
        ] {
            let path = tree.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        }
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        pack(tree.path(), "Dockerfile", ours).expect("packed");
        let mut archive = tar::Archive::new(theirs);
        let entries = archive.entries().expect("entries");
        let names: Vec<String> = entries
            .map(|entry| {
                let entry = entry.expect("an entry");
                assert_eq!(entry.header().mtime().expect("a time"), 0);
                entry.path().expect("a path").display().to_string()
            })
            .collect();
        assert_eq!(names, [".dockerignore", "Dockerfile", "app/a"]);
    }
}
