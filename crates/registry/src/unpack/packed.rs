//! A layer's bytes on their way: unpacked as they say they are packed, counted against the budget, their digest made.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

use crate::digest::{Algorithm, CHUNK, Digest, Hasher};

/// The memory that a zstd frame may ask for: 128 MB, what the format's own tool unpacks without being told to.
const ZSTD_WINDOW_LOG: u32 = 27;

/// More came than there may be.
#[derive(Debug, thiserror::Error)]
#[error("more than there may be")]
pub(super) struct Over;

pub(super) struct Unpacking<'a> {
    inner: Box<dyn Read + 'a>,
    packed: Rc<Cell<u64>>,
    /// How much may still come.
    left: &'a mut u64,
    came: u64,
    hasher: Hasher,
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

impl<'a> Unpacking<'a> {
    /// How a layer is packed is seen in its first bytes: media types are wrong now and then, and the digest of what
    /// comes out tells whether it is right.
    pub fn new(
        packed: impl Read + 'a,
        algorithm: Algorithm,
        left: &'a mut u64,
    ) -> io::Result<Self> {
        let count = Rc::new(Cell::new(0));
        let mut source = Counted {
            inner: packed,
            count: count.clone(),
        };
        let mut magic = Vec::with_capacity(4);
        source.by_ref().take(4).read_to_end(&mut magic)?;
        let is_gzip = magic.starts_with(&[0x1f, 0x8b]);
        // A frame, or one of those that are skipped, with which some begin.
        let is_zstd = magic == [0x28, 0xb5, 0x2f, 0xfd]
            || matches!(magic.as_slice(), [0x50..=0x5f, 0x2a, 0x4d, 0x18]);
        let whole = io::Cursor::new(magic).chain(source);
        let buffered = BufReader::with_capacity(CHUNK, whole);
        let inner: Box<dyn Read + 'a> = if is_gzip {
            Box::new(MultiGzDecoder::new(buffered))
        } else if is_zstd {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        } else {
            Box::new(buffered)
        };
        Ok(Unpacking {
            inner,
            packed: count,
            left,
            came: 0,
            hasher: algorithm.hasher(),
        })
    }

    /// Bytes read of the packed layer, and bytes that came of them.
    pub fn figures(&self) -> (u64, u64) {
        (self.packed.get(), self.came)
    }

    /// Of what was read; of the layer, once all of it was.
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }
}

impl Read for Unpacking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.came += count as u64;
        *self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::other(Over))?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
