//! A folder on its way to the server: which files belong to it, their digest, and the archive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hutong_core::spec::{AppSpec, Run};
use hutong_core::tree::{TreeDigest, check_path};
use ignore::WalkBuilder;
use sha2::{Digest, Sha256};

use crate::error::CliError;

/// Never part of an app, whatever the ignore files say.
const NEVER: [&str; 5] = [".git", ".hg", ".svn", "__pycache__", ".venv"];

/// The files of an app, with their digest.
pub struct Pack {
    pub digest: String,
    /// Bytes, unpacked.
    pub size: u64,
    files: Vec<Member>,
}

#[derive(Clone)]
struct Member {
    name: String,
    path: PathBuf,
    executable: bool,
    /// SHA-256.
    content: [u8; 32],
}

/// The files that belong to an app, in no order, some of them twice. `.gitignore` and `.hutongignore` count; a
/// folder that `static` names is taken whole, because build output is usually git-ignored.
pub fn entries(
    folder: &Path,
    spec: Option<&AppSpec>,
) -> impl Iterator<Item = Result<PathBuf, ignore::Error>> {
    let locked = folder.join("package-lock.json").is_file();
    let mut walk = WalkBuilder::new(folder);
    walk.hidden(false)
        .require_git(false)
        .git_global(false)
        .git_exclude(false)
        .parents(false)
        .ignore(false)
        .add_custom_ignore_filename(".hutongignore")
        .filter_entry(move |entry| {
            let name = entry.file_name().to_string_lossy();
            // What npm ci makes anew from the lock file is not sent.
            !(NEVER.contains(&name.as_ref()) || locked && name == "node_modules")
        });
    let whole = spec.and_then(|spec| match (&spec.run, &spec.build) {
        (Run::Static { folder: inner, .. }, None) => Some(folder.join(inner)),
        _ => None,
    });
    let whole = whole.filter(|whole| whole.is_dir()).map(|whole| {
        let mut walk = WalkBuilder::new(whole);
        walk.standard_filters(false)
            .filter_entry(|entry| !NEVER.contains(&entry.file_name().to_string_lossy().as_ref()));
        walk.build()
    });
    walk.build()
        .chain(whole.into_iter().flatten())
        .filter_map(|entry| match entry {
            Ok(entry) => {
                let is_file = entry.file_type().is_some_and(|kind| !kind.is_dir());
                is_file.then(|| Ok(entry.into_path()))
            }
            Err(error) => Some(Err(error)),
        })
        .chain(std::iter::once(Ok(folder.join("hutong.toml"))))
}

impl Pack {
    /// Reads what belongs to the app in `folder`.
    pub fn new(folder: &Path, spec: &AppSpec) -> Result<Self, CliError> {
        let paths: Result<Vec<PathBuf>, _> = entries(folder, Some(spec)).collect();
        let mut paths = paths.map_err(CliError::failed)?;
        paths.sort();
        paths.dedup();
        let mut pack = Pack {
            digest: String::new(),
            size: 0,
            files: Vec::new(),
        };
        let mut digest = TreeDigest::default();
        for path in paths {
            pack.add(folder, &path, &mut digest)?;
        }
        pack.digest = digest.finish();
        Ok(pack)
    }

    fn add(&mut self, root: &Path, path: &Path, digest: &mut TreeDigest) -> Result<(), CliError> {
        let relative = path.strip_prefix(root).unwrap_or(path);
        let name = relative.to_str().ok_or_else(|| {
            CliError::bad_file(format!("{}: the file's name is not UTF-8", path.display()))
        })?;
        check_path(name).map_err(|e| CliError::bad_file(format!("{}: {e}", path.display())))?;
        let failed = |error: io::Error| CliError::failed(format!("{}: {error}", path.display()));
        if path.is_symlink() {
            let inside = path
                .canonicalize()
                .is_ok_and(|to| root.canonicalize().is_ok_and(|root| to.starts_with(root)));
            if !inside {
                return Err(CliError::bad_file(format!(
                    "{}: the link points out of the folder",
                    path.display()
                ))
                .hint("copy what it points at, or list it in .hutongignore"));
            }
        }
        let metadata = fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(CliError::bad_file(format!(
                "{}: neither a file nor a folder",
                path.display()
            ))
            .hint("list it in .hutongignore"));
        }
        let executable = metadata.permissions().mode() & 0o111 != 0;
        let mut hash = Sha256::new();
        let mut file = File::open(path).map_err(failed)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            self.size += count as u64;
            hash.update(&buffer[..count]);
        }
        let content: [u8; 32] = hash.finalize().into();
        digest.add(name, executable, content);
        self.files.push(Member {
            name: name.to_owned(),
            path: path.to_owned(),
            executable,
            content,
        });
        Ok(())
    }

    /// The names of the files that `before` had otherwise, or that only one of the two has.
    pub fn changes(&self, before: &Pack) -> Vec<String> {
        let (now, before) = (self.contents(), before.contents());
        let names: BTreeSet<&str> = now.keys().chain(before.keys()).copied().collect();
        names
            .into_iter()
            .filter(|name| now.get(name) != before.get(name))
            .map(str::to_owned)
            .collect()
    }

    /// By name: whether it is executable, and the SHA-256 of its content.
    pub fn contents(&self) -> BTreeMap<&str, (bool, [u8; 32])> {
        let files = self.files.iter();
        files
            .map(|file| (file.name.as_str(), (file.executable, file.content)))
            .collect()
    }

    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// The archive (tar, gzip), made on a thread of its own; `progress` gets the bytes read so far.
    pub fn stream(
        &self,
        progress: impl Fn(u64) + Send + 'static,
    ) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static {
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        let files = self.files.clone();
        std::thread::spawn(move || {
            let sink = Sink(sender.clone());
            if let Err(error) = write_archive(&files, sink, progress) {
                let _ = sender.blocking_send(Err(error));
            }
        });
        futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        })
    }
}

fn write_archive(files: &[Member], sink: Sink, progress: impl Fn(u64)) -> io::Result<()> {
    let mut builder = tar::Builder::new(GzEncoder::new(sink, Compression::new(3)));
    let mut done = 0;
    for member in files {
        let file = File::open(&member.path)?;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(file.metadata()?.len());
        header.set_mode(if member.executable { 0o755 } else { 0o644 });
        header.set_mtime(0);
        let counted = Counted {
            inner: file,
            done: &mut done,
            progress: &progress,
        };
        builder.append_data(&mut header, &member.name, counted)?;
    }
    builder.into_inner()?.finish()?;
    Ok(())
}

struct Counted<'a, F> {
    inner: File,
    done: &'a mut u64,
    progress: &'a F,
}

impl<F: Fn(u64)> Read for Counted<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        *self.done += count as u64;
        (self.progress)(*self.done);
        Ok(count)
    }
}

struct Sink(tokio::sync::mpsc::Sender<io::Result<Bytes>>);

impl io::Write for Sink {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(buffer)))
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pack: &Pack) -> Vec<&str> {
        pack.files.iter().map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn what_is_ignored_stays_here_and_build_output_comes_along() {
        let dir = tempfile::tempdir().expect("tempdir");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
            fs::write(path, text).expect("write");
        };
        let text = "name='a'\nstatic='dist'";
        write("hutong.toml", text);
        write(".gitignore", "dist\n*.log\n");
        write(".hutongignore", "secret.txt\n");
        for name in [
            "dist/index.html",
            "x.log",
            "secret.txt",
            ".git/config",
            "src/a.js",
            ".env",
        ] {
            write(name, name);
        }
        let spec = hutong_core::spec::parse("t", text).expect("good");
        let pack = Pack::new(dir.path(), &spec).expect("a pack");
        assert_eq!(
            names(&pack),
            [
                ".env",
                ".gitignore",
                ".hutongignore",
                "dist/index.html",
                "hutong.toml",
                "src/a.js"
            ]
        );
        let again = Pack::new(dir.path(), &spec).expect("a pack");
        assert_eq!(pack.digest, again.digest);
        assert!(again.changes(&pack).is_empty());
        write("src/a.js", "other");
        write("src/b.js", "new");
        write("x.log", "other");
        fs::remove_file(dir.path().join(".env")).expect("remove");
        let other = Pack::new(dir.path(), &spec).expect("a pack");
        assert_eq!(other.changes(&pack), [".env", "src/a.js", "src/b.js"]);
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("leak")).expect("symlink");
        let refused = Pack::new(dir.path(), &spec).err().expect("a link out");
        assert!(
            refused.cause().contains("points out"),
            "{}",
            refused.cause()
        );
    }
}
