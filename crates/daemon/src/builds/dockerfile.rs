//! An app's image, built of its Dockerfile by the engine. What the Dockerfile would have the engine do by itself is
//! looked at here; the context is what the tree holds and `.dockerignore` does not leave out, as one sorted archive
//! without times, so that unchanged steps are found again.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use hutong_core::dockerignore::Ignored;
use hutong_core::spec::Dockerfile;
use hutong_core::tree::digest_of;
use hutong_core::{dockerfile, dockerignore};
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
    let text = folder::text(&tree.join(&file.path), dockerfile::MAX_BYTES)
        .map_err(|error| Broken::plain(format!("{}: {error}", file.path)))?
        .ok_or_else(|| Broken::plain(format!("{} is not there", file.path)))?;
    let checked = dockerfile::check(&file.path, &text).map_err(Broken::plain)?;
    // No secret: what a Dockerfile copies may hold it.
    let stages = digest_of(&["stages", &control.data_dir.to_string_lossy(), app]);
    let labels = [
        (dockerfile::LABEL_APP, app.as_str()),
        (dockerfile::LABEL_STAGES, stages.as_str()),
    ];
    let context = Context {
        tree: tree.clone(),
        dockerfile: file.path.clone(),
        text: dockerfile::labelled(&text, &labels),
        adds: checked.adds,
    };
    let fresh = lock(&control.observed).fresh.contains(&deployment.id);
    let network = if file.network { "network" } else { "" };
    let build = docker::Build {
        app: app.clone(),
        key: digest_of(&[app, &release.digest, &file.path, network]),
        fresh,
        dockerfile: file.path.clone(),
        bases: checked.bases,
        stages,
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
        let built = ask(control, &build, &context, &instance, wanted);
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

/// What an engine builds of.
#[derive(Clone)]
struct Context {
    tree: PathBuf,
    dockerfile: String,
    /// What the Dockerfile says, with labels behind every FROM.
    text: String,
    /// It has an ADD of local files: the engine itself would unpack archives.
    adds: bool,
}

fn ask(
    control: &Control,
    build: &docker::Build,
    context: &Context,
    instance: &str,
    wanted: impl Fn() -> bool + Sync,
) -> Result<docker::Image, DriverError> {
    let refused = |error: io::Error| DriverError::Refused(format!("cannot be packed: {error}"));
    let (ours, theirs) = UnixStream::pair().map_err(refused)?;
    let over = Arc::new(AtomicBool::new(false));
    let failure: Arc<Mutex<Option<io::Error>>> = Arc::default();
    let (context, stop, failed) = (context.clone(), over.clone(), failure.clone());
    // It ends with the archive, or when nobody reads on.
    let packing = std::thread::Builder::new()
        .name("context".into())
        .spawn(move || {
            let hung_up = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
            let noted = |error: &io::Error| {
                if !hung_up.contains(&error.kind()) {
                    lock(&failed).replace(io::Error::other(error.to_string()));
                }
            };
            let _ = pack(&context, ours, &stop, noted);
        });
    packing.map_err(refused)?;
    let line = |text: &str| control.logs.line(&build.app, instance, "build", text);
    let built = control.docker.build(build.clone(), theirs, line, wanted);
    over.store(true, Ordering::Relaxed);
    match lock(&failure).take() {
        Some(error) => Err(refused(error)),
        None => built,
    }
}

/// Writes the context: what the engine does not get, no Dockerfile can copy. What fails is told before the engine hears
/// that there is no more, and the archive is then none that is whole.
fn pack(
    context: &Context,
    to: UnixStream,
    stop: &AtomicBool,
    noted: impl FnOnce(&io::Error),
) -> io::Result<()> {
    let end = to.try_clone()?;
    let mut archive = tar::Builder::new(BufWriter::with_capacity(64 << 10, to));
    let packed = fill(&mut archive, context, stop);
    let Err(error) = packed else {
        return archive.into_inner()?.flush();
    };
    noted(&error);
    // No header, and no whole block: else an end here would look like the archive's own.
    let torn = [0xff; 700];
    let _ = archive.get_mut().write_all(&torn);
    let _ = archive.get_mut().flush();
    // Dropped, it would write its end.
    let _ = end.shutdown(std::net::Shutdown::Both);
    Err(error)
}

fn fill(
    archive: &mut tar::Builder<impl Write>,
    context: &Context,
    stop: &AtomicBool,
) -> io::Result<()> {
    let ignored = folder::text(&context.tree.join(".dockerignore"), dockerignore::MAX_BYTES)
        .map_err(|error| io::Error::other(format!(".dockerignore: {error}")))?;
    let ignored = Ignored::parse(&ignored.unwrap_or_default());
    for (path, _) in folder::all_files(&context.tree)? {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let is_dockerfile = path == context.dockerfile;
        let needed = is_dockerfile || path == ".dockerignore";
        if !needed && ignored.has(&path) {
            continue;
        }
        let file = File::open(context.tree.join(&path))?;
        let found = file.metadata()?;
        let executable = found.permissions().mode() & 0o111 != 0;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(if executable { 0o755 } else { 0o644 });
        header.set_mtime(0);
        if is_dockerfile {
            header.set_size(context.text.len() as u64);
            archive.append_data(&mut header, &path, context.text.as_bytes())?;
            continue;
        }
        let mut start = Vec::new();
        (&file).take(512).read_to_end(&mut start)?;
        if context.adds && is_archive(&start) {
            return Err(io::Error::other(format!(
                "`{path}` is an archive, and the Dockerfile has ADD, for which the engine itself unpacks archives, without any bound: COPY it and unpack it by RUN, or leave it out by .dockerignore"
            )));
        }
        header.set_size(found.len());
        let rest = found.len().saturating_sub(start.len() as u64);
        let content = start.as_slice().chain(file.take(rest));
        archive.append_data(&mut header, &path, content)?;
    }
    Ok(())
}

/// Whether a file begins as one that the engine unpacks for ADD: gzip, bzip2, xz, zstd (its skippable frames, too), tar.
fn is_archive(start: &[u8]) -> bool {
    let begins: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    let skippable = start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == *b"\x2a\x4d\x18";
    begins.iter().any(|begin| start.starts_with(begin))
        || skippable
        || start.get(257..262).is_some_and(|part| part == b"ustar")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(tree: &std::path::Path, adds: bool) -> Context {
        Context {
            tree: tree.to_owned(),
            dockerfile: "Dockerfile".into(),
            text: "FROM scratch\nLABEL a=b".into(),
            adds,
        }
    }

    /// What packing fails by, and whether a reader notices.
    fn refused(tree: &std::path::Path) -> (String, bool) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut said = String::new();
        let goes_on = AtomicBool::new(false);
        let noted = |error: &io::Error| said = error.to_string();
        let packed = pack(&context(tree, true), ours, &goes_on, noted);
        assert!(packed.is_err());
        let mut archive = tar::Archive::new(theirs);
        let torn = archive.entries().expect("entries").any(|one| one.is_err());
        (said, torn)
    }

    #[test]
    fn an_archive_that_the_engine_would_unpack_is_refused() {
        let tree = tempfile::tempdir().expect("tempdir");
        std::fs::write(tree.path().join("Dockerfile"), "FROM scratch").expect("write");
        std::fs::write(tree.path().join("x"), b"\xfd7zXZ\0bomb").expect("write");
        let (said, torn) = refused(tree.path());
        assert!(said.starts_with("`x` is an archive") && torn, "{said}");
        std::fs::remove_file(tree.path().join("x")).expect("removed");
        let long = "x\n".repeat(dockerignore::MAX_BYTES);
        std::fs::write(tree.path().join(".dockerignore"), long).expect("write");
        let (said, torn) = refused(tree.path());
        assert!(
            said.starts_with(".dockerignore: it is over") && torn,
            "{said}"
        );
    }

    #[test]
    fn archives_are_known_by_how_they_begin() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(is_archive(&tar) && !is_archive(&tar[..260]));
        for archive in [
            b"\x1f\x8b".as_slice(),
            b"BZh9",
            b"\x28\xb5\x2f\xfd",
            b"\x53\x2a\x4d\x18",
        ] {
            assert!(is_archive(archive));
        }
        for other in [b"".as_slice(), b"PK\x03\x04", b"#!/bin/sh", b"\x53\x2a\x4d"] {
            assert!(!is_archive(other));
        }
    }

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
        let goes_on = AtomicBool::new(false);
        pack(&context(tree.path(), false), ours, &goes_on, |_| {}).expect("packed");
        let mut archive = tar::Archive::new(theirs);
        let entries = archive.entries().expect("entries");
        let names: Vec<String> = entries
            .map(|entry| {
                let mut entry = entry.expect("an entry");
                if entry.path().expect("a path").ends_with("Dockerfile") {
                    let mut text = String::new();
                    entry.read_to_string(&mut text).expect("a text");
                    assert_eq!(text, "FROM scratch\nLABEL a=b");
                }
                assert_eq!(entry.header().mtime().expect("a time"), 0);
                entry.path().expect("a path").display().to_string()
            })
            .collect();
        assert_eq!(names, [".dockerignore", "Dockerfile", "app/a"]);
    }
}
