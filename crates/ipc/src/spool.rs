//! A bounded spool of records between a writer that must never wait (shim, gateway) and a reader
//! that may be away (`control`). Two files, `a` and `b`, each at most `cap` bytes:
//!
//! - the writer appends to one of them until a record no longer fits, ends it with [`Kind::Switch`]
//!   and goes on in the other, if that is empty; if it is not, records are dropped and counted, and
//!   [`Kind::Dropped`] says how many bytes once there is room;
//! - the reader truncates a file to nothing once it has read its `Switch`.
//!
//! A record is `kind: u8, time: u64 (microseconds since 1970, LE), length: u32 (LE), payload`.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

pub const HEADER: usize = 13;
/// The longest payload of one record, in bytes; writers split what is longer.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Stdout = 1,
    Stderr = 2,
    /// A line of the platform's own about the instance (started, stopped, why).
    Note = 3,
    /// JSON of [`crate::shim::Ended`]: the instance is over.
    Exit = 4,
    /// Text: how many bytes were dropped because the spool was full.
    Dropped = 5,
    /// The writer went on in the other file.
    Switch = 6,
    /// Access records, JSON lines.
    Access = 7,
    /// The kernel killed something of the instance because its memory was used up (from the warden).
    OutOfMemory = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Kind::Stdout,
            Kind::Stderr,
            Kind::Note,
            Kind::Exit,
            Kind::Dropped,
            Kind::Switch,
            Kind::Access,
            Kind::OutOfMemory,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// One record as read.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    pub kind: Kind,
    /// Microseconds since 1970-01-01 UTC.
    pub time: u64,
    pub payload: Vec<u8>,
}

fn append(buffer: &mut Vec<u8>, kind: Kind, time: u64, payload: &[u8]) {
    buffer.push(kind as u8);
    buffer.extend_from_slice(&time.to_le_bytes());
    buffer.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    buffer.extend_from_slice(payload);
}

/// The writing side. Both files are opened with `O_APPEND`.
pub struct Writer {
    files: [File; 2],
    active: usize,
    used: u64,
    cap: u64,
    dropped: u64,
}

impl Writer {
    /// `cap` is the bound of each of the two files, in bytes.
    pub fn new(files: [File; 2], cap: u64) -> io::Result<Self> {
        // A writer that was killed left off in the file that has no end yet; an empty pair starts at `a`.
        let sizes = [whole_records(&files[0])?, whole_records(&files[1])?];
        let ended = |i: usize| ends_with_switch(&files[i], sizes[i]);
        let active = usize::from(ended(0) || (sizes[0] == 0 && sizes[1] > 0 && !ended(1)));
        Ok(Writer {
            used: sizes[active],
            files,
            active,
            cap,
            dropped: 0,
        })
    }

    /// Appends one record, or counts it as dropped when both files are full or the disk is.
    pub fn write(&mut self, kind: Kind, time: u64, payload: &[u8]) {
        let payload = &payload[..payload.len().min(MAX_PAYLOAD)];
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        if self.dropped > 0 {
            let count = self.dropped.to_string();
            append(&mut bytes, Kind::Dropped, time, count.as_bytes());
        }
        append(&mut bytes, kind, time, payload);
        let ends = matches!(kind, Kind::Exit | Kind::Note | Kind::OutOfMemory);
        if !self.make_room(bytes.len() as u64, time, ends) || !self.put(&bytes) {
            self.dropped += payload.len() as u64;
            return;
        }
        self.dropped = 0;
    }

    fn put(&mut self, bytes: &[u8]) -> bool {
        // Asked, not remembered: the reader may have emptied a file that it found damaged.
        let before = self.files[self.active]
            .metadata()
            .map_or(self.used, |m| m.len());
        match (&self.files[self.active]).write_all(bytes) {
            Ok(()) => {
                self.used += bytes.len() as u64;
                true
            }
            Err(_) => {
                // Half a record must not stay: the reader would lose its step.
                let _ = self.files[self.active].set_len(before);
                false
            }
        }
    }

    /// `must` records (an exit, a note) may go over the bound: they are few and small.
    fn make_room(&mut self, need: u64, time: u64, must: bool) -> bool {
        if self.used + need + HEADER as u64 <= self.cap {
            return true;
        }
        let other = 1 - self.active;
        if self.files[other].metadata().is_ok_and(|m| m.len() == 0) {
            let mut switch = Vec::with_capacity(HEADER);
            append(&mut switch, Kind::Switch, time, &[]);
            if self.put(&switch) {
                self.active = other;
                self.used = 0;
                return true;
            }
        }
        must
    }
}

/// Cuts half a record off a file's end: its writer was killed within a write(2). The length left.
fn whole_records(file: &File) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let mut at = 0;
    let mut header = [0; HEADER];
    while at + HEADER as u64 <= size {
        file.read_exact_at(&mut header, at)?;
        let length = u32::from_le_bytes([header[9], header[10], header[11], header[12]]);
        let end = at + HEADER as u64 + u64::from(length);
        if Kind::from_byte(header[0]).is_none() || length as usize > MAX_PAYLOAD || end > size {
            break;
        }
        at = end;
    }
    if at < size {
        file.set_len(at)?;
    }
    Ok(at)
}

fn ends_with_switch(file: &File, size: u64) -> bool {
    let mut header = [0; HEADER];
    size >= HEADER as u64
        && file
            .read_exact_at(&mut header, size - HEADER as u64)
            .is_ok()
        && header[0] == Kind::Switch as u8
        && header[9..] == [0; 4]
}

/// Where a reader stands; stored by it so that a restart neither loses nor repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    pub file: usize,
    pub offset: u64,
}

/// Reads up to `limit` bytes of complete records behind `cursor` and moves it on. A file is emptied
/// only when its `Switch` is the first thing behind the cursor, that is, when everything before was
/// returned by an earlier call; so store the records of each call before the next one.
pub fn read(files: &[File; 2], cursor: &mut Cursor, limit: usize) -> io::Result<Vec<Record>> {
    for _ in 0..4 {
        let mut size = files[cursor.file & 1].metadata()?.len();
        if size == 0 && files[1 - (cursor.file & 1)].metadata()?.len() > 0 {
            // Both were empty when a new writer began with the other one.
            *cursor = other(*cursor);
            size = files[cursor.file].metadata()?.len();
        }
        let file = &files[cursor.file & 1];
        if size < cursor.offset {
            // Emptied after our last cursor was stored: everything before was read.
            cursor.offset = 0;
        }
        let want = ((size - cursor.offset) as usize).min(limit.max(HEADER + MAX_PAYLOAD));
        let mut buffer = vec![0; want];
        let got = read_full(file, &mut buffer, cursor.offset)?;
        let (records, used, switched) = parse(&buffer[..got])?;
        if records.is_empty() && switched {
            file.set_len(0)?;
            *cursor = other(*cursor);
            continue;
        }
        cursor.offset += used as u64;
        return Ok(records);
    }
    Ok(Vec::new())
}

fn other(cursor: Cursor) -> Cursor {
    Cursor {
        file: 1 - (cursor.file & 1),
        offset: 0,
    }
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// The complete records at the front of `bytes`, how many bytes they took, and whether a `Switch` follows.
fn parse(bytes: &[u8]) -> io::Result<(Vec<Record>, usize, bool)> {
    let mut records = Vec::new();
    let mut at = 0;
    while bytes.len() - at >= HEADER {
        let head = &bytes[at..at + HEADER];
        let time = u64::from_le_bytes(head[1..9].try_into().expect("eight bytes"));
        let length = u32::from_le_bytes(head[9..13].try_into().expect("four bytes")) as usize;
        let kind = Kind::from_byte(head[0]).filter(|_| length <= MAX_PAYLOAD);
        let Some(kind) = kind else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a spool record",
            ));
        };
        if kind == Kind::Switch {
            return Ok((records, at, true));
        }
        if bytes.len() - at < HEADER + length {
            break;
        }
        let payload = bytes[at + HEADER..at + HEADER + length].to_vec();
        records.push(Record {
            kind,
            time,
            payload,
        });
        at += HEADER + length;
    }
    Ok((records, at, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::path::Path;

    fn open(dir: &Path) -> [File; 2] {
        ["a", "b"].map(|name| {
            OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .open(dir.join(name))
                .expect("open")
        })
    }

    #[test]
    fn what_is_written_is_read_once_and_a_full_spool_says_so() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut writer = Writer::new(open(dir.path()), 1000).expect("writer");
        let files = open(dir.path());
        let mut cursor = Cursor::default();
        for n in 0..40u64 {
            writer.write(Kind::Stdout, n, &[b'x'; 100]);
        }
        let all = |cursor: &mut Cursor| {
            let mut all = Vec::new();
            loop {
                let some = read(&files, cursor, 1 << 20).expect("read");
                if some.is_empty() {
                    return all;
                }
                all.extend(some);
            }
        };
        let first = all(&mut cursor);
        assert!(first.len() < 40 && first.len() > 10, "{}", first.len());
        assert!(first.iter().enumerate().all(|(i, r)| r.time == i as u64));
        writer.write(Kind::Stdout, 99, b"after");
        let second = all(&mut cursor);
        assert_eq!(second[0].kind, Kind::Dropped);
        assert_eq!(
            second[0].payload,
            ((40 - first.len()) * 100).to_string().into_bytes()
        );
        assert_eq!(second[1].payload, b"after");
        assert!(read(&files, &mut cursor, 1 << 20).expect("read").is_empty());
    }

    #[test]
    fn a_writer_that_was_killed_goes_on_where_it_was() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut total = 0;
        let files = open(dir.path());
        let mut cursor = Cursor::default();
        for round in 0..30u64 {
            let mut writer = Writer::new(open(dir.path()), 500).expect("writer");
            for _ in 0..3 {
                writer.write(Kind::Stderr, round, &[b'y'; 50]);
            }
            total += read(&files, &mut cursor, 1 << 20).expect("read").len();
            total += read(&files, &mut cursor, 1 << 20).expect("read").len();
            // Killed within a write: half a record is at the end.
            let half = [
                Kind::Stdout as u8,
                1,
                2,
                3,
                4,
                5,
                6,
                7,
                8,
                200,
                0,
                0,
                0,
                b'z',
            ];
            let cut = 1 + round as usize % half.len();
            use std::io::Write;
            (&files[cursor.file])
                .write_all(&half[..cut])
                .expect("write");
        }
        assert_eq!(total, 90);
    }
}
