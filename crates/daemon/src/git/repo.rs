//! An app's repository: a bare one that nobody but control and its gits see. Control makes it and writes its settings;
//! what comes in by git are objects and branches, never settings or hooks.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hutong_core::name::AppName;
use hutong_core::preview::check_branch;
use hutong_runtime::confine;
use hutong_runtime::paths::atomic_write;
use rustix::fs::FlockOperation;

use crate::Control;

/// Held by every git in the repository.
pub const LOCK: &str = "hutong.lock";
const SUFFIX: &str = ".git";
/// Our one hook, for every repository.
const HOOKS: &str = ".hooks";
pub const HOOK: &str = "pre-receive";
const NEW: &str = ".new-";
const GONE: &str = ".gone-";
/// Begins the names of lists of branches whose previews end with them: one for each push that is about to delete some.
const ENDING: &str = "hutong.ending-";
/// What a deploy gets is what was committed: nothing that a repository itself would leave out of archives, or put into them.
/// These lines go before all that is committed (gitattributes(5)).
const ATTRIBUTES: &str = "* -export-ignore -export-subst\n";
/// Where what was fetched is kept from being thrown away.
pub const FETCHED: &str = "refs/hutong/source/";
/// A repository may be so many times as large as one upload.
const UPLOADS: u64 = 4;

/// What git is told; the rest it is told by nobody. A pack is kept as it comes, and its objects are checked before any
/// branch moves.
const CONFIG: &str = "[core]
	repositoryformatversion = 0
	bare = true
	hooksPath = @HOOKS@
	attributesFile = /dev/null
	logAllRefUpdates = false
	fsync = all
	packedGitWindowSize = 16m
	packedGitLimit = 256m
	bigFileThreshold = 8m
	deltaBaseCacheLimit = 32m
[receive]
	fsckObjects = true
	maxInputSize = @MOST@
	unpackLimit = 1
	autogc = false
	denyDeleteCurrent = ignore
	advertisePushOptions = false
[fetch]
	fsckObjects = true
	unpackLimit = 1
	recurseSubmodules = false
[transfer]
	fsckObjects = true
	unpackLimit = 1
	credentialsInUrl = die
[http]
	receivepack = true
	uploadpack = true
	getanyfile = false
[uploadpack]
	allowFilter = false
[uploadarchive]
	allowUnreachable = false
[gc]
	auto = 0
	packRefs = false
[maintenance]
	auto = false
[pack]
	threads = 1
	windowMemory = 64m
";

pub struct Repo {
    pub folder: PathBuf,
}

/// Where all of them are; below a folder that is control's alone.
pub fn root(control: &Control) -> PathBuf {
    control.data_dir.join("control").join("git")
}

impl Repo {
    pub fn of(control: &Control, app: &AppName) -> Self {
        Repo {
            folder: root(control).join(format!("{app}{SUFFIX}")),
        }
    }

    /// Makes it if it is not there, and brings its settings up to date.
    pub fn make(&self, control: &Control) -> io::Result<()> {
        let root = root(control);
        let hooks = root.join(HOOKS);
        let config = CONFIG
            .replace("@HOOKS@", &quoted(&hooks))
            .replace("@MOST@", &control.settings.upload_bytes.to_string());
        make_hook(&root, &hooks)?;
        if self.folder.is_dir() {
            let info = self.folder.join("info");
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&info)?;
            for (path, text) in [
                (self.folder.join("config"), config.as_str()),
                (info.join("attributes"), ATTRIBUTES),
            ] {
                if fs::read(&path).unwrap_or_default() != text.as_bytes() {
                    atomic_write(&path, text.as_bytes(), 0o600)?;
                }
            }
            return Ok(());
        }
        let new = aside(&root, NEW)?;
        for folder in [
            "",
            "info",
            "objects",
            "objects/info",
            "objects/pack",
            "refs",
            "refs/heads",
            "refs/tags",
        ] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(new.join(folder))?;
        }
        for (name, text) in [
            ("HEAD", "ref: refs/heads/main\n"),
            ("config", config.as_str()),
            ("info/attributes", ATTRIBUTES),
            (LOCK, ""),
        ] {
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(new.join(name))?;
            io::Write::write_all(&mut file, text.as_bytes())?;
            file.sync_all()?;
        }
        match fs::rename(&new, &self.folder) {
            // Somebody made it at the same time.
            Err(_) if self.folder.is_dir() => {
                let _ = fs::remove_dir_all(&new);
            }
            other => other?,
        }
        File::open(&root)?.sync_all()
    }

    /// The commit that a branch is at. Branches are files: nothing of ours packs them.
    pub fn head(&self, branch: &str) -> Option<String> {
        check_branch(branch).ok()?;
        let text = fs::read_to_string(self.folder.join("refs/heads").join(branch)).ok()?;
        Some(text.trim().to_owned()).filter(|text| is_object_id(text))
    }

    /// Whether a branch was fetched before from where the app's source is.
    pub fn has_fetched(&self, branch: &str) -> bool {
        check_branch(branch).is_ok() && self.folder.join(FETCHED).join(branch).is_file()
    }

    /// A branch that there can be none of this name beside: `a` and `a/b` are a file and a folder.
    pub fn in_the_way(&self, branch: &str) -> Option<String> {
        let mut above = branch.match_indices('/').map(|(at, _)| &branch[..at]);
        let above = above.find(|name| self.head(name).is_some());
        above.map(str::to_owned).or_else(|| {
            let folder = self.folder.join("refs/heads").join(branch);
            let name = some_file(&folder)?;
            Some(format!("{branch}/{name}"))
        })
    }

    /// Notes whose previews end when a push has deleted them: it is git that deletes, and we may die meanwhile.
    pub fn note_ending(&self, push: &str, branches: &[&str]) -> io::Result<()> {
        let text = branches.join("\n");
        atomic_write(&self.ending_of(push), text.as_bytes(), 0o600)
    }

    /// What was noted of a push; branches that git has not deleted after all are not among it.
    pub fn ended(&self, push: &str) -> Vec<String> {
        let text = fs::read_to_string(self.ending_of(push)).unwrap_or_default();
        let branches = text.lines().filter(|branch| self.head(branch).is_none());
        branches.map(str::to_owned).collect()
    }

    pub fn forget_ending(&self, push: &str) {
        let _ = fs::remove_file(self.ending_of(push));
    }

    fn ending_of(&self, push: &str) -> PathBuf {
        self.folder.join(format!("{ENDING}{push}"))
    }

    /// Bytes of all its files.
    pub fn size(&self) -> u64 {
        size_of(&self.folder)
    }

    /// Why it takes no more.
    pub fn check_room(&self, control: &Control) -> Result<(), String> {
        let most = control.settings.upload_bytes.saturating_mul(UPLOADS);
        let size = self.size();
        if size <= most {
            return Ok(());
        }
        let show = hutong_core::units::show_size;
        Err(format!(
            "the repository has {}, over the bound of {}: push to a new app, or have the server's owner remove this one",
            show(size),
            show(most)
        ))
    }
}

/// 40 hex digits (SHA-1), or 64.
pub fn is_object_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64)
        && text
            .bytes()
            .all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

/// How git says that there is none.
pub fn is_none(id: &str) -> bool {
    id.bytes().all(|c| c == b'0')
}

/// A value of a git-config file (git-config(1), "Values").
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}

fn aside(root: &Path, kind: &str) -> io::Result<PathBuf> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    Ok(root.join(format!("{kind}{}", hutong_core::tree::hex(&random))))
}

/// The hook is our own program, which every git of ours finds under a descriptor that it inherits.
fn make_hook(root: &Path, hooks: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(hooks)?;
    let target = format!("/proc/self/fd/{}", confine::OURS);
    let hook = hooks.join(HOOK);
    if fs::read_link(&hook).is_ok_and(|found| found == Path::new(&target)) {
        return Ok(());
    }
    let new = aside(root, NEW)?;
    std::os::unix::fs::symlink(target, &new)?;
    fs::rename(new, hook)
}

fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size_of(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

/// The path of some file below a folder.
fn some_file(folder: &Path) -> Option<String> {
    let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.find_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match is_dir {
            true => some_file(&entry.path()).map(|rest| format!("{name}/{rest}")),
            false => Some(name).filter(|name| !name.ends_with(".lock")),
        }
    })
}

/// Every repository: the app that it is named for, and its folder.
fn all(root: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let app = name.strip_suffix(SUFFIX)?;
            AppName::new(app)
                .is_ok()
                .then(|| (app.to_owned(), entry.path()))
        })
        .collect()
}

/// Pushes of an earlier control plane that were to delete branches with previews: the app, its repository, the push.
pub fn all_ending(control: &Control) -> Vec<(String, Repo, String)> {
    let mut found = Vec::new();
    for (app, folder) in all(&root(control)) {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(push) = name.strip_prefix(ENDING) {
                let folder = folder.clone();
                found.push((app.clone(), Repo { folder }, push.to_owned()));
            }
        }
    }
    found
}

/// Deletes an app's repository.
pub fn forget(control: &Control, app: &str) {
    let root = root(control);
    let folder = root.join(format!("{app}{SUFFIX}"));
    let Ok(gone) = aside(&root, GONE) else { return };
    if fs::rename(folder, &gone).is_ok() {
        let _ = fs::remove_dir_all(gone);
    }
}

/// Throws away what kills left: half-made repositories, and those that nobody has a use for. Says which repositories
/// could not be tidied because a git of an earlier control plane is still at work there.
pub fn sweep(control: &Control) -> Vec<PathBuf> {
    let root = root(control);
    for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(NEW) || name.starts_with(GONE) {
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
    }
    let (Ok(apps), Ok(tokens)) = (control.store.apps(), control.store.apps_with_tokens()) else {
        return Vec::new();
    };
    let mut busy = Vec::new();
    for (app, folder) in all(&root) {
        let is_known = apps.iter().any(|known| known.name == app) || tokens.contains(&app);
        if !is_known {
            forget(control, &app);
        } else if !tidy(&folder) {
            busy.push(folder);
        }
    }
    busy
}

/// Removes what a killed git left: locks, which would stand in everybody's way, and objects that never became part of the
/// repository. False while a git is at work.
pub fn tidy(folder: &Path) -> bool {
    let Ok(lock) = File::open(folder.join(LOCK)) else {
        return true;
    };
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return false;
    }
    for name in [
        "HEAD.lock",
        "config.lock",
        "packed-refs.lock",
        "shallow.lock",
    ] {
        let _ = fs::remove_file(folder.join(name));
    }
    remove_locks(&folder.join("refs"));
    let begins = |entry: &fs::DirEntry, prefixes: &[&str]| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        prefixes.iter().any(|prefix| name.starts_with(prefix))
    };
    let objects = folder.join("objects");
    for entry in fs::read_dir(&objects).into_iter().flatten().flatten() {
        if begins(&entry, &QUARANTINE) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    for entry in fs::read_dir(objects.join("pack"))
        .into_iter()
        .flatten()
        .flatten()
    {
        if begins(&entry, &["tmp_"]) {
            let _ = fs::remove_file(entry.path());
        }
    }
    true
}

/// [`tidy`] behind a git that failed or was killed: what it started ends a moment later. Blocks.
pub fn tidy_soon(folder: &Path) {
    for _ in 0..20 {
        if tidy(folder) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// How git names the folder of objects that are not part of a repository yet: today, and before 2.35.
pub const QUARANTINE: [&str; 2] = ["tmp_objdir-", "incoming-"];

fn remove_locks(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir {
            remove_locks(&entry.path());
        } else if entry.file_name().to_string_lossy().ends_with(".lock") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_objects() {
        assert!(is_object_id(&"a".repeat(40)) && is_object_id(&"0".repeat(64)));
        for bad in [
            "",
            "abc",
            &"A".repeat(40),
            &"g".repeat(40),
            "--output=/etc/x",
        ] {
            assert!(!is_object_id(bad), "{bad}");
        }
        assert!(is_none(&"0".repeat(40)) && !is_none(&"01".repeat(20)));
        assert_eq!(quoted(Path::new("/a \"b\\")), "\"/a \\\"b\\\\\"");
    }

    #[test]
    fn what_ends_is_what_git_has_deleted() {
        let dir = tempfile::tempdir().expect("tempdir");
        let repo = Repo {
            folder: dir.path().to_owned(),
        };
        let heads = dir.path().join("refs/heads");
        fs::create_dir_all(&heads).expect("mkdir");
        fs::write(heads.join("stays"), "1".repeat(40)).expect("write");
        assert!(repo.ended("p").is_empty());
        repo.note_ending("p", &["gone", "stays", "a/b"])
            .expect("noted");
        assert_eq!(repo.ended("p"), ["gone", "a/b"]);
        assert!(repo.ended("q").is_empty());
        repo.forget_ending("p");
        assert!(repo.ended("p").is_empty());
    }

    #[test]
    fn branches_that_cannot_be_beside_each_other() {
        let dir = tempfile::tempdir().expect("tempdir");
        let repo = Repo {
            folder: dir.path().to_owned(),
        };
        let heads = dir.path().join("refs/heads");
        fs::create_dir_all(heads.join("a/b")).expect("mkdir");
        assert_eq!(repo.in_the_way("a"), None);
        fs::write(heads.join("a/b/c"), "1".repeat(40)).expect("write");
        assert_eq!(repo.in_the_way("a").as_deref(), Some("a/b/c"));
        assert_eq!(repo.in_the_way("a/b").as_deref(), Some("a/b/c"));
        assert_eq!(repo.in_the_way("a/b/c/d").as_deref(), Some("a/b/c"));
        assert_eq!(repo.in_the_way("a/b/c"), None);
        assert_eq!(repo.in_the_way("a/c"), None);
        assert!(!repo.has_fetched("main"));
        fs::create_dir_all(dir.path().join(FETCHED)).expect("mkdir");
        fs::write(dir.path().join(FETCHED).join("main"), "x").expect("write");
        assert!(repo.has_fetched("main"));
    }

    #[test]
    fn what_a_killed_git_left_is_removed_unless_one_is_at_work() {
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| dir.path().join(name);
        for folder in [
            "refs/heads/a",
            "objects/pack",
            "objects/tmp_objdir-incoming-x",
        ] {
            fs::create_dir_all(at(folder)).expect("mkdir");
        }
        let files = [
            "HEAD.lock",
            "refs/heads/a/b.lock",
            "objects/pack/tmp_pack_1",
        ];
        for file in files {
            fs::write(at(file), "").expect("write");
        }
        fs::write(at("refs/heads/a/c"), "x").expect("write");
        fs::write(at(LOCK), "").expect("write");
        let held = File::open(at(LOCK)).expect("open");
        rustix::fs::flock(&held, FlockOperation::LockShared).expect("lock");
        assert!(!tidy(dir.path()) && at("HEAD.lock").exists());
        drop(held);
        assert!(tidy(dir.path()));
        assert!(files.iter().all(|file| !at(file).exists()));
        assert!(!at("objects/tmp_objdir-incoming-x").exists() && at("refs/heads/a/c").exists());
    }
}
