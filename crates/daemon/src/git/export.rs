//! A commit becomes a tree: git archives it, we unpack, with the bounds of an upload. What git says of times and owners
//! does not count; links become files, submodules are left out.

use std::io::{BufRead, BufReader, Read};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hutong_ipc::fail;
use hutong_runtime::processes::steady_ms;

use super::repo::{QUARANTINE, Repo, is_object_id};
use super::run::{self, Running, Watch};
use crate::unpack::{self, UnpackError};
use crate::{Control, lock};

/// Unpacked, a commit may have so many times an upload's bound, which is of packed bytes.
const EXPANSION: u64 = 4;
/// More than an app's file may have.
const FILE_BYTES: u64 = 128 << 10;
const PATIENCE: Duration = Duration::from_secs(600);
/// The longest path, in bytes: an archive has longer ones, and whatever a link says, as text that is read at once.
const MAX_PATH: usize = 1000;
const MAX_LINK: u64 = 4096;
/// All paths and all that links say, in bytes: they are held in memory.
const MAX_NAMES: u64 = 32 << 20;
/// What git-ls-tree(1) says before a path, at most: mode, kind, id, size.
const MAX_BEFORE: usize = 120;

/// A tree that is on disk.
pub struct Exported {
    pub digest: String,
    pub files: usize,
    /// The app's file.
    pub text: String,
    /// What the pusher should know.
    pub notes: Vec<String>,
    _kept: Kept,
}

/// A tree that this export made. When it is over and no release uses the tree, nobody waits for it: it goes at once.
struct Kept {
    control: Arc<Control>,
    digest: String,
    asked_ms: u64,
    is_new: bool,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.is_new {
            return;
        }
        let gone = {
            let mut asked = lock(&self.control.trees_asked);
            // Somebody else is about to deploy it?
            if asked.get(&self.digest) != Some(&self.asked_ms) {
                return;
            }
            let used = self.control.store.digests();
            if used.is_ok_and(|used| !used.contains(&self.digest)) {
                asked.remove(&self.digest);
                unpack::take_away(&self.control.data_dir.join("trees"), &self.digest)
            } else {
                None
            }
        };
        let Some(gone) = gone else { return };
        let delete = move || {
            let _ = std::fs::remove_dir_all(gone);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(delete)),
            Err(_) => delete(),
        }
    }
}

/// `objects` is the folder of what a push under way brought, below the repository's own. Blocks.
pub fn export(
    control: &Arc<Control>,
    repo: &Repo,
    commit: &str,
    objects: Option<&str>,
) -> Result<Exported, String> {
    if !is_object_id(commit) {
        return Err("this is no commit".into());
    }
    control.has_disk()?;
    is_whole(control, repo, commit, objects)?;
    // Of a tree, not of a commit: then the archive says nothing of the commit.
    let tree = format!("{commit}^{{tree}}");
    let most = control.settings.upload_bytes.saturating_mul(EXPANSION);
    let total = survey(control, repo, &tree, objects, most)?;
    control.has_disk_for(total)?;
    let command = command(control, repo, &["archive", "--format=tar", &tree], objects)?;
    let mut git = Running::start(command)?;
    let archive = git.output().ok_or("git has no output")?;
    // One that hangs holds up nobody for ever.
    let watch = Watch::begin(git.pid(), PATIENCE);
    let trees = control.data_dir.join("trees");
    let mut git = Some(git);
    let has_room = || control.has_disk();
    let group = control.gateway_gid;
    let result = unpack::unpack_plain(archive, &trees, most, group, &has_room, || {
        match git.take() {
            Some(git) => git.finish().map_err(UnpackError::Bad),
            None => Ok(()),
        }
    });
    if let Some(git) = git {
        git.kill();
    }
    drop(watch);
    let found = result.map_err(|error| error.to_string())?;
    let (digest, files) = (found.digest, found.files);
    let asked_ms = steady_ms();
    lock(&control.trees_asked).insert(digest.clone(), asked_ms);
    let kept = Kept {
        control: control.clone(),
        digest: digest.clone(),
        asked_ms,
        is_new: found.is_new,
    };
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
        _kept: kept,
    })
}

/// A git in the repository that sees what a push under way brought, too.
fn command(
    control: &Control,
    repo: &Repo,
    arguments: &[&str],
    objects: Option<&str>,
) -> Result<Command, String> {
    let mut command = run::command(control, repo, arguments);
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
    Ok(command)
}

/// Refuses what git itself refuses for a branch, but only once we have said that it may move: what is no commit, and a
/// commit whose history is not there.
fn is_whole(
    control: &Control,
    repo: &Repo,
    commit: &str,
    objects: Option<&str>,
) -> Result<(), String> {
    let kind = command(control, repo, &["cat-file", "-t", commit], objects)?;
    let kind = run::run(kind, PATIENCE)?;
    if kind.trim() != "commit" {
        return Err(format!("a branch is a commit, not a {}", kind.trim()));
    }
    let walk = ["rev-list", "--quiet", "--objects", commit, "--not", "--all"];
    let walk = command(control, repo, &walk, objects)?;
    run::run(walk, PATIENCE)
        .map(drop)
        .map_err(|why| format!("history is missing: git fetch --unshallow, and push again ({why})"))
}

/// Looks at a tree's list before anything of it is unpacked; its size in bytes. What the archive has beside content is
/// read into memory, so it must be small.
fn survey(
    control: &Control,
    repo: &Repo,
    tree: &str,
    objects: Option<&str>,
    most: u64,
) -> Result<u64, String> {
    // Folders, too: one that has only folders would be looked through in silence.
    let list = ["ls-tree", "-r", "-t", "-l", "-z", tree];
    let mut git = Running::start(command(control, repo, &list, objects)?)?;
    let _watch = Watch::begin(git.pid(), PATIENCE);
    let output = git.output().ok_or("git has no output")?;
    match look_through(BufReader::new(output), most) {
        Ok(total) => git.finish().map(|()| total),
        Err(why) => {
            git.kill();
            Err(why)
        }
    }
}

/// `MODE KIND ID SIZE\tPATH`, each with a zero byte behind it; the sum of the sizes.
fn look_through(mut list: impl BufRead, most: u64) -> Result<u64, String> {
    let mut line = Vec::new();
    let (mut count, mut total, mut names) = (0, 0u64, 0u64);
    loop {
        line.clear();
        let mut bounded = list.by_ref().take((MAX_BEFORE + MAX_PATH) as u64);
        let read = bounded.read_until(0, &mut line);
        read.map_err(|error| error.to_string())?;
        let is_long = line.len() == MAX_BEFORE + MAX_PATH;
        if line.pop() != Some(0) && !is_long {
            // The end; if there is something before it, git says why.
            return Ok(total);
        }
        let tab = line.iter().position(|byte| *byte == b'\t');
        let tab = tab.ok_or("git says something that is not understood")?;
        let path = &line[tab + 1..];
        if is_long || path.len() > MAX_PATH {
            let begin: Vec<u8> = path.iter().take(40).copied().collect();
            return Err(format!(
                "a path is longer than {MAX_PATH} bytes: {}...",
                super::plain(&String::from_utf8_lossy(&begin))
            ));
        }
        let before = String::from_utf8_lossy(&line[..tab]);
        let is_link = before.starts_with("120000 ");
        // Folders and submodules have none.
        let size = before.rsplit(' ').next().unwrap_or_default();
        let size: u64 = size.parse().unwrap_or(0);
        if is_link && size > MAX_LINK {
            let path = super::plain(&String::from_utf8_lossy(path));
            return Err(format!("`{path}` is a link of over {MAX_LINK} bytes"));
        }
        count += 1;
        if count > unpack::MAX_ENTRIES {
            return Err(format!("it has over {} files", unpack::MAX_ENTRIES));
        }
        names += path.len() as u64 + if is_link { size } else { 0 };
        if names > MAX_NAMES {
            return Err("its names are over 32M in all".into());
        }
        total = total.saturating_add(size);
        if total > most {
            return Err(UnpackError::TooLarge(most).to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(mode: &str, kind: &str, size: &str, path: &str) -> String {
        format!("{mode} {kind} {} {size:>7}\t{path}\0", "a".repeat(40))
    }

    #[test]
    fn a_list_is_looked_through() {
        let file = |size: &str, path: &str| line("100644", "blob", size, path);
        let all = [
            file("5", "a"),
            line("040000", "tree", "-", "b"),
            line("120000", "blob", "4", "b/c\td"),
            line("160000", "commit", "-", "m"),
        ];
        let look = |text: &str, most| look_through(text.as_bytes(), most);
        assert_eq!(look(&all.concat(), 9), Ok(9));
        assert_eq!(look("", 9), Ok(0));
        // What is cut off is git's to explain.
        assert_eq!(look("100644 blob", 9), Ok(0));
        let long = "x".repeat(MAX_PATH);
        assert_eq!(look(&file("1", &long), 9), Ok(1));
        for (bad, says) in [
            (file("10", "a"), "over the bound"),
            (file("1", &format!("{long}x")), "longer than"),
            (file("1", &"x".repeat(9000)), "longer than"),
            (line("120000", "blob", "4097", "l"), "a link of over"),
            (format!("{}no tab\0", file("1", "a")), "not understood"),
        ] {
            let why = look(&bad, 9).expect_err(says);
            assert!(why.contains(says), "{why}");
        }
        let many = file("0", "a").repeat(unpack::MAX_ENTRIES + 1);
        assert!(look(&many, 9).is_err());
    }
}
