//! The archive of a layer, entry by entry: ustar, with what GNU and POSIX (pax) put before a header. The `tar` crate
//! reads the fields; which of them count, and how much an entry may have us keep in memory, is decided here. Where
//! readers differ, Go's is followed: it wrote most images.

use std::io::{self, Read};

use tar::{EntryType, Header};

use super::UnpackError;

const BLOCK: usize = 512;
/// A name that GNU puts before a header.
const MAX_NAME_RECORD: u64 = 64 << 10;
/// Records that POSIX puts before a header: they hold extended attributes, too.
const MAX_PAX: u64 = 1 << 20;
/// Headers before a header.
const MAX_BEFORE: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Device,
    Pipe,
    /// What we do not know; skipped.
    Other,
}

#[derive(Debug)]
pub struct Entry {
    pub kind: Kind,
    /// As it is written; not checked.
    pub path: Vec<u8>,
    /// Of a symbolic link what it says, of a hard link the other name.
    pub link: Vec<u8>,
    /// Of the content that follows.
    pub size: u64,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Names of extended attributes.
    pub attributes: Vec<String>,
}

/// What the records before a header say of it.
#[derive(Clone, Default)]
struct Before {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    attributes: Vec<String>,
}

pub struct Archive<R> {
    source: R,
    /// Of the current entry's content, and what fills its last block.
    left: u64,
    padding: u64,
    /// Of the whole archive.
    global: Before,
    ended: bool,
}

fn broken(what: &str) -> UnpackError {
    UnpackError::Broken(what.into())
}

impl<R: Read> Archive<R> {
    pub fn new(source: R) -> Self {
        Archive {
            source,
            left: 0,
            padding: 0,
            global: Before::default(),
            ended: false,
        }
    }

    /// The next entry; its content is then read from `self`. None at the end, when all of the source was read: its
    /// digest is of every byte.
    pub fn advance(&mut self) -> Result<Option<Entry>, UnpackError> {
        if self.ended {
            return Ok(None);
        }
        let mut before = Before::default();
        for _ in 0..MAX_BEFORE {
            let Some(header) = self.header()? else {
                self.drain()?;
                self.ended = true;
                return Ok(None);
            };
            let size = if is_blank(&header.as_old().size) {
                0
            } else {
                header
                    .entry_size()
                    .map_err(|_| broken("a size is no number"))?
            };
            match header.entry_type() {
                EntryType::GNULongName => {
                    before.path = Some(text(self.record(size, MAX_NAME_RECORD)?));
                }
                EntryType::GNULongLink => {
                    before.link = Some(text(self.record(size, MAX_NAME_RECORD)?));
                }
                EntryType::XHeader => {
                    let records = self.record(size, MAX_PAX)?;
                    before.read(&records)?;
                }
                EntryType::XGlobalHeader => {
                    let records = self.record(size, MAX_PAX)?;
                    self.global.read(&records)?;
                    // A name or size for all entries has no meaning.
                    self.global.path = None;
                    self.global.link = None;
                    self.global.size = None;
                    self.global.attributes.clear();
                }
                _ => return self.entry(&header, size, before).map(Some),
            }
        }
        Err(broken("too many headers for one entry"))
    }

    fn entry(&mut self, header: &Header, size: u64, before: Before) -> Result<Entry, UnpackError> {
        let path = before
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = match header.entry_type() {
            // Before POSIX, a folder was a file with a slash.
            EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Char | EntryType::Block => Kind::Device,
            EntryType::Fifo => Kind::Pipe,
            EntryType::GNUSparse => {
                return Err(UnpackError::Unsupported("a sparse file".into()));
            }
            _ => Kind::Other,
        };
        let size = match kind {
            Kind::File | Kind::Other => before.size.unwrap_or(size),
            // These have no content, whatever their headers say.
            _ => 0,
        };
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let link = before.link.unwrap_or_else(|| {
            let link = header.link_name_bytes().unwrap_or_default();
            link.into_owned()
        });
        let mode = if is_blank(&header.as_old().mode) {
            0
        } else {
            header.mode().map_err(|_| broken("a mode is no number"))?
        };
        let time = || {
            header
                .mtime()
                .ok()
                .and_then(|time| i64::try_from(time).ok())
        };
        Ok(Entry {
            kind,
            path,
            link,
            size,
            mode,
            uid: before
                .uid
                .or(self.global.uid)
                .unwrap_or_else(|| header.uid().unwrap_or(0)),
            gid: before
                .gid
                .or(self.global.gid)
                .unwrap_or_else(|| header.gid().unwrap_or(0)),
            mtime: before
                .mtime
                .or(self.global.mtime)
                .or_else(time)
                .unwrap_or(0),
            attributes: before.attributes,
        })
    }

    /// The next header behind what is left of the current entry; none at the end.
    fn header(&mut self) -> Result<Option<Header>, UnpackError> {
        let skip = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.source.by_ref().take(skip), &mut io::sink())
            .map_err(UnpackError::of_source)?;
        if skipped < skip {
            return Err(broken("it is cut off within a file"));
        }
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(UnpackError::of_source(error)),
            }
        }
        // Without the empty blocks that should be there, some are.
        if filled == 0 || block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if filled < BLOCK {
            return Err(broken("it is cut off within a header"));
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| match at {
                148..156 => u32::from(b' '),
                _ => u32::from(*byte),
            })
            .sum();
        match header.cksum() {
            Ok(said) if said == sum => Ok(Some(header)),
            _ => Err(broken("a header's checksum is wrong, or it is no archive")),
        }
    }

    /// Content that belongs to the next header.
    fn record(&mut self, size: u64, bound: u64) -> Result<Vec<u8>, UnpackError> {
        if size > bound {
            return Err(broken("a name or the attributes of a file are too long"));
        }
        let mut bytes = Vec::new();
        self.source
            .by_ref()
            .take(size)
            .read_to_end(&mut bytes)
            .map_err(UnpackError::of_source)?;
        if (bytes.len() as u64) < size {
            return Err(broken("it is cut off within a name"));
        }
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        Ok(bytes)
    }

    fn drain(&mut self) -> Result<(), UnpackError> {
        io::copy(&mut self.source, &mut io::sink()).map_err(UnpackError::of_source)?;
        Ok(())
    }
}

/// The current entry's content.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        let count = self.source.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// A number that was not written.
fn is_blank(field: &[u8]) -> bool {
    field.iter().all(|byte| matches!(byte, 0 | b' '))
}

/// Up to the first zero byte.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

impl Before {
    /// Records of POSIX: `LENGTH KEY=VALUE\n`, where the value may hold any byte.
    fn read(&mut self, mut records: &[u8]) -> Result<(), UnpackError> {
        let wrong = || broken("the records before a header are not understood");
        while !records.is_empty() {
            let space = records.iter().take(20).position(|byte| *byte == b' ');
            let space = space.ok_or_else(wrong)?;
            let length: usize = std::str::from_utf8(&records[..space])
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(wrong)?;
            if length <= space + 1 || length > records.len() {
                return Err(wrong());
            }
            let (record, rest) = records.split_at(length);
            records = rest;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(wrong)?;
            let equals = record.iter().position(|byte| *byte == b'=');
            let (key, value) = record.split_at(equals.ok_or_else(wrong)?);
            let value = &value[1..];
            let number = || -> Result<u64, UnpackError> {
                let text = std::str::from_utf8(value).map_err(|_| wrong())?;
                text.parse().map_err(|_| wrong())
            };
            let Ok(key) = std::str::from_utf8(key) else {
                continue;
            };
            // An empty value takes back what was said for all entries; there is nothing of that here.
            if value.is_empty() {
                continue;
            }
            match key {
                "path" => self.path = Some(text(value.to_vec())),
                "linkpath" => self.link = Some(text(value.to_vec())),
                "size" => self.size = Some(number()?),
                "uid" => self.uid = Some(number()?),
                "gid" => self.gid = Some(number()?),
                "mtime" => {
                    let text = std::str::from_utf8(value).map_err(|_| wrong())?;
                    let (seconds, _) = text.split_once('.').unwrap_or((text, ""));
                    self.mtime = Some(seconds.parse().map_err(|_| wrong())?);
                }
                _ if key.starts_with("GNU.sparse.") => {
                    return Err(UnpackError::Unsupported("a sparse file".into()));
                }
                _ => {
                    let name = key
                        .strip_prefix("SCHILY.xattr.")
                        .or_else(|| key.strip_prefix("LIBARCHIVE.xattr."));
                    if let Some(name) = name {
                        self.attributes.push(name.to_owned());
                    }
                }
            }
        }
        Ok(())
    }
}
