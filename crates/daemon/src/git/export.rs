//! A commit becomes a tree: git archives it, we unpack, with the bounds of an upload. What git says of times and owners
//! does not count; links become files, submodules are left out.

use std::io::Read;
use std::time::Duration;

use hutong_ipc::fail;
use hutong_runtime::processes::steady_ms;

use super::repo::{QUARANTINE, Repo, is_object_id};
use super::run::{self, Running};
use crate::unpack::{self, UnpackError};
use crate::{Control, lock};

/// Unpacked, a commit may have so many times an upload's bound, which is of packed bytes.
const EXPANSION: u64 = 4;
/// More than an app's file may have.
const FILE_BYTES: u64 = 128 << 10;
const PATIENCE: Duration = Duration::from_secs(600);

/// A tree that is on disk.
pub struct Exported {
    pub digest: String,
    pub files: usize,
    /// The app's file.
    pub text: String,
    /// What the pusher should know.
    pub notes: Vec<String>,
}

/// `objects` is the folder of what a push under way brought, below the repository's own.
pub fn export(
    control: &Control,
    repo: &Repo,
    commit: &str,
    objects: Option<&str>,
) -> Result<Exported, String> {
    if !is_object_id(commit) {
        return Err("this is no commit".into());
    }
    control.has_disk()?;
    // Of a tree, not of a commit: then the archive says nothing of the commit.
    let tree = format!("{commit}^{{tree}}");
    let mut command = run::command(control, repo, &["archive", "--format=tar", &tree]);
    command.env("GIT_DIR", &repo.folder);
    if let Some(name) = objects {
        let own = repo.folder.join("objects");
        let plain = name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c));
        if !plain || !QUARANTINE.iter().any(|prefix| name.starts_with(prefix)) {
            return Err("what came in is not where git has it".into());
        }
        command
            .env("GIT_OBJECT_DIRECTORY", own.join(name))
            .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", own);
    }
    let mut git = Running::start(command)?;
    let pid = git.pid();
    let archive = git.output().ok_or("git has no output")?;
    // One that hangs holds up nobody for ever.
    let (over, ended) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if ended.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            run::kill_group(pid);
        }
    });
    let trees = control.data_dir.join("trees");
    let most = control.settings.upload_bytes.saturating_mul(EXPANSION);
    let mut git = Some(git);
    let result = unpack::unpack_plain(archive, &trees, most, control.gateway_gid, || {
        match git.take() {
            Some(git) => git.finish().map_err(UnpackError::Bad),
            None => Ok(()),
        }
    });
    if let Some(git) = git {
        git.kill();
    }
    drop(over);
    let _ = watch.join();
    let (digest, files) = result.map_err(|error| error.to_string())?;
    lock(&control.trees_asked).insert(digest.clone(), steady_ms());
    fail::point("git.exported");
    let folder = trees.join(&digest);
    let mut text = String::new();
    std::fs::File::open(folder.join("hutong.toml"))
        .and_then(|file| file.take(FILE_BYTES).read_to_string(&mut text))
        .map_err(|_| "there is no hutong.toml at the top of the repository".to_owned())?;
    let mut notes = Vec::new();
    if folder.join(".gitmodules").exists() {
        notes.push("submodules are not fetched: their folders are empty".to_owned());
    }
    Ok(Exported {
        digest,
        files,
        text,
        notes,
    })
}
