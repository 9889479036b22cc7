//! From the spools into the logs. The cursor is stored behind the records it stands for, so a crash
//! repeats a batch at worst and loses none.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::path::Path;

use hutong_api::LogLine;
use hutong_ipc::fail;
use hutong_ipc::shim::{Ended, Exit};
use hutong_ipc::spool::{self, Cursor, Kind, Record};
use serde::{Deserialize, Serialize};

use super::Logs;
use super::masks::Masks;
use crate::{ids, lock};

/// The longest line kept, in bytes; a longer one goes on in the next.
const MAX_LINE: usize = 16 << 10;
/// Bytes taken from one spool at a time: a flood cannot keep the rest waiting.
const BATCH: usize = 1 << 20;
/// Bytes of log that one batch may become: an empty line is one byte of output and sixty of log.
const MAX_KEPT: usize = 4 << 20;

#[derive(Default)]
pub struct Ingest {
    /// Spools that cannot be taken in now.
    troubled: BTreeSet<String>,
    sources: HashMap<String, Source>,
}

struct Source {
    files: [File; 2],
    seen: Seen,
}

/// What was taken from a spool; kept beside it, so that a restart neither loses nor repeats.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Seen {
    cursor: Cursor,
    /// Unfinished lines of stdout and stderr.
    #[serde(default)]
    partial: [Vec<u8>; 2],
    #[serde(default)]
    ended: Option<Ended>,
    #[serde(default)]
    out_of_memory: bool,
}

/// How an instance ended.
pub struct End {
    /// `None`: its shim was killed before it could say.
    pub exit: Option<Exit>,
    /// We had asked it to stop.
    pub told: bool,
    pub out_of_memory: bool,
}

impl Logs {
    /// Reads what there is in every spool.
    pub fn ingest(&self) {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.spool).into_iter().flatten().flatten() {
            if let Some(name) = entry.file_name().to_string_lossy().strip_suffix(".a") {
                names.insert(name.to_owned());
            }
        }
        let mut ingest = lock(&self.ingest);
        ingest.sources.retain(|name, _| names.contains(name));
        let mut any = false;
        for name in names {
            match self.take(&mut ingest, &name) {
                Ok(wrote) => {
                    any |= wrote;
                    ingest.troubled.remove(&name);
                }
                // Being made, or just deleted.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                // Said once, not five times a second: the disk may be full for long.
                Err(error) => {
                    if ingest.troubled.insert(name.clone()) {
                        tracing::warn!("the spool of {name}: {error}");
                    }
                }
            }
        }
        drop(ingest);
        if any {
            self.changed.notify_waiters();
        }
    }

    /// How an instance that is gone ended, as its spool says.
    pub fn end_of(&self, instance: &str) -> End {
        let mut ingest = lock(&self.ingest);
        // To the end: nobody writes to it any more.
        while self.take(&mut ingest, instance).unwrap_or(false) {}
        self.flush_partial(&mut ingest, instance);
        let seen = ingest.sources.get(instance).map(|source| &source.seen);
        let ended = seen.and_then(|seen| seen.ended.clone());
        End {
            told: ended.as_ref().is_some_and(|ended| ended.told),
            exit: ended.map(|ended| ended.exit),
            out_of_memory: seen.is_some_and(|seen| seen.out_of_memory),
        }
    }

    /// Deletes the spool of an instance that is gone; false if something of it stays. Its `.a` goes last: as
    /// long as that is there, the spool is found again.
    pub fn forget_spool(&self, instance: &str) -> bool {
        let mut ingest = lock(&self.ingest);
        self.flush_partial(&mut ingest, instance);
        ingest.sources.remove(instance);
        self.delete_spool(instance)
    }

    /// The cursor goes last: without it, what is still there would be taken in a second time.
    fn delete_spool(&self, instance: &str) -> bool {
        ["a", "b", "cursor.tmp", "cursor"].into_iter().all(|half| {
            match fs::remove_file(self.spool.join(format!("{instance}.{half}"))) {
                Err(error) => error.kind() == std::io::ErrorKind::NotFound,
                Ok(()) => true,
            }
        })
    }

    /// Ends what a control plane before us began to delete.
    pub fn end_deletions(&self) {
        let names = fs::read_dir(&self.spool).into_iter().flatten().flatten();
        for entry in names {
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|name| name.rsplit_once('.')) else {
                continue;
            };
            let left = !self.spool.join(format!("{}.a", name.0)).exists();
            if left && !ids::is_access(name.0) {
                self.delete_spool(name.0);
            }
        }
    }

    /// Instances that have a spool.
    pub fn spooled(&self) -> Vec<String> {
        fs::read_dir(&self.spool)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                name.strip_suffix(".a").map(str::to_owned)
            })
            .filter(|name| !ids::is_access(name))
            .collect()
    }

    fn take(&self, ingest: &mut Ingest, name: &str) -> std::io::Result<bool> {
        if !ingest.sources.contains_key(name) {
            let source = open(&self.spool, name)?;
            ingest.sources.insert(name.to_owned(), source);
        }
        let Some(source) = ingest.sources.get_mut(name) else {
            return Ok(false);
        };
        let before = source.seen.clone();
        let records = match spool::read(&source.files, &mut source.seen.cursor, BATCH) {
            Ok(records) => records,
            Err(error) => {
                // Damaged: drop what is there rather than stumble over it for ever.
                for file in &source.files {
                    file.set_len(0)?;
                }
                source.seen.cursor = Cursor::default();
                return Err(error);
            }
        };
        if records.is_empty() {
            return Ok(false);
        }
        let kept = if ids::is_access(name) {
            self.keep_access(&records)
        } else {
            let app = app_of(name);
            let masks = self.masks_of(name);
            let lines = source.seen.lines(name, &records, &masks);
            self.append(app, "app", &lines)
        };
        fail::point("logs written");
        if let Err(error) = kept {
            // A full disk, most likely: the spool keeps them until there is room.
            // How it ended is known all the same.
            let (ended, out_of_memory) = (source.seen.ended.take(), source.seen.out_of_memory);
            source.seen = Seen {
                ended,
                out_of_memory,
                ..before
            };
            return Err(error);
        }
        // Not flushed to disk, like the log that it stands for: the two are lost together.
        let seen = serde_json::to_vec(&source.seen)?;
        let path = self.spool.join(format!("{name}.cursor"));
        let fresh = path.with_extension("cursor.tmp");
        fs::write(&fresh, seen)?;
        fail::point("log cursor written");
        fs::rename(&fresh, &path)?;
        Ok(true)
    }

    /// What may not show in the lines of this instance.
    fn masks_of(&self, name: &str) -> Masks {
        if !ids::is_build(name) {
            return Masks::Nothing;
        }
        let all = lock(&self.masks);
        all.get(app_of(name)).cloned().unwrap_or_default()
    }

    fn flush_partial(&self, ingest: &mut Ingest, name: &str) {
        let Some(source) = ingest.sources.get_mut(name) else {
            return;
        };
        let mut lines = Vec::new();
        for index in 0..2 {
            let partial = std::mem::take(&mut source.seen.partial[index]);
            if !partial.is_empty() {
                let time = hutong_runtime::processes::now_ms() * 1000;
                let masks = self.masks_of(name);
                let text = masks.hide(&partial);
                push_line(&mut lines, name, ["out", "err"][index], time, &text);
            }
        }
        if !lines.is_empty() {
            let _ = self.append(app_of(name), "app", &lines);
        }
    }

    /// Access records carry their app's name; they go to that app's log as they are.
    fn keep_access(&self, records: &[Record]) -> std::io::Result<()> {
        #[derive(serde::Deserialize)]
        struct Named<'a> {
            #[serde(borrow)]
            app: std::borrow::Cow<'a, str>,
        }
        let mut by_app: HashMap<String, Vec<u8>> = HashMap::new();
        for record in records.iter().filter(|record| record.kind == Kind::Access) {
            for line in record.payload.split(|byte| *byte == b'\n') {
                let Ok(named) = serde_json::from_slice::<Named<'_>>(line) else {
                    continue;
                };
                if hutong_core::name::AppName::new(&named.app).is_ok() {
                    let lines = by_app.entry(named.app.into_owned()).or_default();
                    lines.extend_from_slice(line);
                    lines.push(b'\n');
                }
            }
        }
        let mut any = false;
        for (app, lines) in by_app {
            match self.append(&app, "access", &lines) {
                Ok(()) => any = true,
                // Again later, when there is room; but what was written must not be written twice.
                Err(error) if !any => return Err(error),
                Err(error) => tracing::warn!("access records of {app} are lost: {error}"),
            }
        }
        Ok(())
    }
}

fn app_of(name: &str) -> &str {
    ids::parse(name).map_or(name, |(app, _)| app)
}

fn open(folder: &Path, name: &str) -> std::io::Result<Source> {
    let file = |half: &str| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(folder.join(format!("{name}.{half}")))
    };
    let seen = fs::read(folder.join(format!("{name}.cursor")))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    Ok(Source {
        files: [file("a")?, file("b")?],
        seen,
    })
}

impl Seen {
    fn lines(&mut self, name: &str, records: &[Record], masks: &Masks) -> Vec<u8> {
        let mut lines = Vec::new();
        let build = ids::is_build(name);
        let mut dropped = 0;
        for record in records {
            let text = String::from_utf8_lossy(&record.payload);
            let mut note = |message: &str| {
                push_line(&mut lines, name, "note", record.time, message.as_bytes());
            };
            match record.kind {
                Kind::Stdout | Kind::Stderr => {
                    let index = usize::from(record.kind == Kind::Stderr);
                    let stream = if build {
                        "build"
                    } else {
                        ["out", "err"][index]
                    };
                    split_lines(&mut self.partial[index], &record.payload, |line| {
                        if lines.len() < MAX_KEPT {
                            let line = masks.hide(line);
                            push_line(&mut lines, name, stream, record.time, &line);
                        } else {
                            dropped += line.len() + 1;
                        }
                    });
                }
                Kind::Note => note(&text),
                Kind::Dropped => note(&format!(
                    "{text} bytes of output were dropped: it came faster than it could be kept"
                )),
                Kind::Exit => {
                    let ended: Option<Ended> = serde_json::from_slice(&record.payload).ok();
                    if let (Some(ended), false) = (&ended, build) {
                        note(&format!("the program {}", ended.exit));
                    }
                    self.ended = ended;
                }
                Kind::OutOfMemory => {
                    self.out_of_memory = true;
                    note("it ran out of memory: raise limits.memory, or find what uses it");
                }
                Kind::Switch | Kind::Access => {}
            }
        }
        if dropped > 0 {
            let time = records.last().map_or(0, |record| record.time);
            let text = format!("{dropped} bytes of output were dropped: too many lines at once");
            push_line(&mut lines, name, "note", time, text.as_bytes());
        }
        lines
    }
}

/// Calls `emit` for every complete line; the rest waits in `partial`.
fn split_lines(partial: &mut Vec<u8>, bytes: &[u8], mut emit: impl FnMut(&[u8])) {
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        partial.extend_from_slice(piece);
        while partial.len() > MAX_LINE {
            let rest = partial.split_off(MAX_LINE);
            emit(partial);
            *partial = rest;
        }
        if partial.last() == Some(&b'\n') {
            partial.pop();
            if partial.last() == Some(&b'\r') {
                partial.pop();
            }
            emit(partial);
            partial.clear();
        }
    }
}

fn push_line(lines: &mut Vec<u8>, instance: &str, stream: &str, time: u64, text: &[u8]) {
    let line = LogLine {
        t: time,
        i: instance.to_owned(),
        s: stream.to_owned(),
        m: String::from_utf8_lossy(text).into_owned(),
    };
    if serde_json::to_writer(&mut *lines, &line).is_ok() {
        lines.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_and_bounded() {
        let mut partial = Vec::new();
        let mut got: Vec<String> = Vec::new();
        for bytes in [b"he".as_slice(), b"llo\r\nwor", b"ld\n\n\xff\n"] {
            split_lines(&mut partial, bytes, |line| {
                got.push(String::from_utf8_lossy(line).into_owned());
            });
        }
        assert_eq!(got, ["hello", "world", "", "\u{fffd}"]);
        let mut count = 0;
        split_lines(&mut partial, &vec![b'x'; MAX_LINE * 3], |line| {
            count += 1;
            assert_eq!(line.len(), MAX_LINE);
        });
        assert_eq!((count, partial.len()), (2, MAX_LINE));
    }
}
