//! Output of apps and access records: taken from the spools, kept per app in JSON lines, rotated.
//! What an app prints is data: lossy UTF-8, bounded lines, and never anything that we act on.

mod ingest;
mod masks;
mod read;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hutong_api::LogLine;

use crate::{Control, lock};

pub use ingest::End;
use masks::Masks;
pub use read::{Only, Position, Query};

/// One file's bound, and how many are kept: 32 MB for each app and kind.
const FILE_BYTES: u64 = 8 << 20;
const FILES: usize = 4;
/// How often spools are looked at.
const TICK: Duration = Duration::from_millis(200);

pub struct Logs {
    folder: PathBuf,
    spool: PathBuf,
    open: Mutex<HashMap<(String, &'static str), Rotated>>,
    ingest: Mutex<ingest::Ingest>,
    /// What no line of an app's builds may show.
    masks: Mutex<HashMap<String, Masks>>,
    /// Something was written.
    pub changed: tokio::sync::Notify,
}

struct Rotated {
    file: File,
    size: u64,
}

impl Logs {
    pub fn new(control: &Path) -> Self {
        let folder = control.join("logs");
        let _ = fs::create_dir_all(&folder);
        Logs {
            folder,
            spool: control.with_file_name("spool"),
            open: Mutex::default(),
            ingest: Mutex::default(),
            masks: Mutex::default(),
            changed: tokio::sync::Notify::new(),
        }
    }

    fn path(&self, app: &str, kind: &str) -> PathBuf {
        self.folder.join(app).join(format!("{kind}.log"))
    }

    /// Appends lines to an app's log of a kind (`app` or `access`).
    fn append(&self, app: &str, kind: &'static str, lines: &[u8]) -> io::Result<()> {
        let mut open = lock(&self.open);
        let key = (app.to_owned(), kind);
        if !open.contains_key(&key) {
            // Files of idle apps are closed now and then.
            if open.len() >= 64 {
                open.clear();
            }
            let path = self.path(app, kind);
            fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            let size = file.metadata()?.len();
            open.insert(key.clone(), Rotated { file, size });
        }
        let Some(log) = open.get_mut(&key) else {
            return Ok(());
        };
        if let Err(error) = log.file.write_all(lines) {
            // Half a batch must not stay: it is written again as a whole.
            let _ = log.file.set_len(log.size);
            return Err(error);
        }
        log.size += lines.len() as u64;
        if log.size >= FILE_BYTES {
            open.remove(&key);
            self.rotate(app, kind)?;
        }
        Ok(())
    }

    fn rotate(&self, app: &str, kind: &str) -> io::Result<()> {
        let path = self.path(app, kind);
        let numbered = |n: usize| path.with_extension(format!("log.{n}"));
        let _ = fs::remove_file(numbered(FILES - 1));
        for n in (1..FILES - 1).rev() {
            let _ = fs::rename(numbered(n), numbered(n + 1));
        }
        fs::rename(&path, numbered(1))
    }

    /// From now on these values show in no line of the app's builds. Of one with several lines, none of them does.
    pub fn mask<'a>(&self, app: &str, values: impl Iterator<Item = &'a str>) {
        let parts = values.flat_map(str::lines).map(str::trim);
        lock(&self.masks).insert(app.to_owned(), Masks::of(parts));
    }

    /// A line of the platform's own.
    pub fn note(&self, app: &str, instance: &str, message: &str) {
        self.line(app, instance, "note", message);
    }

    /// A line that did not come by a spool.
    pub fn line(&self, app: &str, instance: &str, stream: &str, message: &str) {
        let line = LogLine {
            t: hutong_runtime::processes::now_ms() * 1000,
            i: instance.to_owned(),
            s: stream.into(),
            m: message.to_owned(),
        };
        if let Ok(mut text) = serde_json::to_vec(&line) {
            text.push(b'\n');
            if let Err(error) = self.append(app, "app", &text) {
                tracing::warn!("cannot write the log of {app}: {error}");
            }
            self.changed.notify_waiters();
        }
    }

    /// What an app's logs take on disk, in bytes.
    pub fn size_of(&self, app: &str) -> u64 {
        let files = fs::read_dir(self.folder.join(app)).into_iter().flatten();
        let sizes = files.flatten().filter_map(|file| file.metadata().ok());
        sizes.map(|found| found.len()).sum()
    }

    /// Frees about so many bytes of old logs, the oldest files first, whoever's they are. What is written to now stays.
    pub fn shed(&self, bytes: u64) {
        let folders = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten());
        let mut old: Vec<(std::time::SystemTime, u64, PathBuf)> = files
            .flatten()
            .filter(|file| !file.file_name().to_string_lossy().ends_with(".log"))
            .filter_map(|file| {
                let found = file.metadata().ok().filter(|found| found.is_file())?;
                Some((found.modified().ok()?, found.len(), file.path()))
            })
            .collect();
        old.sort();
        let mut freed = 0;
        for (_, size, path) in old {
            if freed >= bytes {
                break;
            }
            if fs::remove_file(&path).is_ok() {
                freed += size;
                tracing::warn!("the disk is nearly full: {} is deleted", path.display());
            }
        }
    }

    pub fn forget(&self, app: &str) {
        lock(&self.open).retain(|(name, _), _| name != app);
        lock(&self.masks).remove(app);
        let _ = fs::remove_dir_all(self.folder.join(app));
    }
}

/// Takes spools in until the process ends.
pub async fn run(control: Arc<Control>) {
    loop {
        let ours = control.clone();
        let _ = tokio::task::spawn_blocking(move || ours.logs.ingest()).await;
        tokio::time::sleep(TICK).await;
    }
}
