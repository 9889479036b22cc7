//! Reading logs back: the last lines, since a time, and on as they come.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::{FILES, Logs};
use crate::ids;
use crate::launch::process;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Query {
    /// `app` or `access`.
    pub kind: &'static str,
    pub lines: usize,
    /// Microseconds since 1970.
    pub since: Option<u64>,
    pub only: Only,
}

/// Whose lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Only {
    All,
    Instance(String),
    /// `web`, or the name of a worker or timed job.
    Process(String),
    /// An app's deployment, builds among it.
    Deployment(String, u64),
}

impl Only {
    /// `line` as stored: `{"t":…,"i":"INSTANCE",…`.
    pub fn has(&self, line: &str) -> bool {
        let instance = || {
            let (_, rest) = line.split_once(",\"i\":\"")?;
            Some(rest.split_once('"')?.0)
        };
        match self {
            Only::All => true,
            Only::Instance(wanted) => instance() == Some(wanted),
            Only::Deployment(app, deployment) => {
                instance().and_then(ids::parse) == Some((app.as_str(), *deployment))
            }
            Only::Process(wanted) => instance()
                .is_some_and(|id| ids::parse(id).is_some() && process(ids::kind(id)) == wanted),
        }
    }
}

/// Where a follower stands.
pub struct Position {
    inode: u64,
    offset: u64,
}

impl Logs {
    /// The last lines as stored (JSON each), oldest first, and where they end.
    pub fn last(&self, app: &str, query: &Query) -> (Vec<String>, Position) {
        let path = self.path(app, query.kind);
        let position = position(&path);
        let mut lines: Vec<String> = Vec::new();
        for n in 0..FILES {
            let path = if n == 0 {
                path.clone()
            } else {
                path.with_extension(format!("log.{n}"))
            };
            // Of some lines only, it is not known how far back they are.
            let enough = match query.only {
                Only::All => query.lines - lines.len(),
                _ => usize::MAX,
            };
            let Ok(bytes) = read_tail(&path, enough) else {
                break;
            };
            let text = String::from_utf8_lossy(&bytes);
            let mut older: Vec<String> = text
                .lines()
                .filter(|line| query.since.is_none_or(|since| time_of(line) >= since))
                .filter(|line| query.only.has(line))
                .map(str::to_owned)
                .collect();
            older.extend(lines);
            lines = older;
            if lines.len() >= query.lines {
                break;
            }
        }
        let surplus = lines.len().saturating_sub(query.lines);
        (lines.split_off(surplus), position)
    }

    /// Complete lines behind `position`, which moves on; follows a rotation.
    pub fn next(&self, app: &str, kind: &str, position: &mut Position) -> Vec<String> {
        let path = self.path(app, kind);
        let mut lines = Vec::new();
        let now = self::position(&path);
        if now.inode != position.inode {
            // What we stood in was rotated away: read its rest first.
            if position.inode != 0 {
                let old = path.with_extension("log.1");
                if self::position(&old).inode == position.inode {
                    lines.extend(read_from(&old, &mut position.offset));
                }
            }
            *position = Position {
                inode: now.inode,
                offset: 0,
            };
        }
        lines.extend(read_from(&path, &mut position.offset));
        lines
    }
}

fn position(path: &Path) -> Position {
    use std::os::unix::fs::MetadataExt;
    match fs::metadata(path) {
        Ok(metadata) => Position {
            inode: metadata.ino(),
            offset: metadata.len(),
        },
        Err(_) => Position {
            inode: 0,
            offset: 0,
        },
    }
}

/// At least the last `lines` lines of a file.
fn read_tail(path: &Path, lines: usize) -> std::io::Result<Vec<u8>> {
    if lines == usize::MAX {
        return fs::read(path);
    }
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut from = size;
    let mut bytes = Vec::new();
    while from > 0 && bytes.iter().filter(|b| **b == b'\n').count() <= lines {
        let step = (64 << 10).min(from);
        from -= step;
        file.seek(SeekFrom::Start(from))?;
        let mut chunk = vec![0; step as usize];
        file.read_exact(&mut chunk)?;
        chunk.extend(bytes);
        bytes = chunk;
    }
    if from > 0 {
        // The first line may be cut.
        let cut = bytes
            .iter()
            .position(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        bytes.drain(..cut);
    }
    Ok(bytes)
}

fn read_from(path: &Path, offset: &mut u64) -> Vec<String> {
    let Ok(mut file) = File::open(path) else {
        return Vec::new();
    };
    let mut bytes = Vec::new();
    let read = file
        .seek(SeekFrom::Start(*offset))
        .and_then(|_| file.take(1 << 20).read_to_end(&mut bytes));
    if read.is_err() {
        return Vec::new();
    }
    let complete = bytes
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |at| at + 1);
    *offset += complete as u64;
    String::from_utf8_lossy(&bytes[..complete])
        .lines()
        .map(str::to_owned)
        .collect()
}

/// Both kinds of record begin with `{"t":`.
fn time_of(line: &str) -> u64 {
    line.strip_prefix("{\"t\":")
        .and_then(|rest| rest.split([',', '}']).next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}
