//! Where a WebSocket's frames end (RFC 6455 §5.2): only between two of them may somebody else say something.

/// The longest head: 2 bytes, 8 of length, 4 of mask.
const MAX_HEAD: usize = 14;

/// `Close` with 1001, "going away" (§7.4.1), as a server sends it.
pub const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];

#[derive(Default)]
pub struct Frames {
    head: [u8; MAX_HEAD],
    /// Bytes of the head so far.
    have: usize,
    /// Bytes of the payload that are still to come.
    left: u64,
}

impl Frames {
    /// Follows what was passed on.
    pub fn follow(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.left > 0 {
                let length = usize::try_from(self.left).map_or(data.len(), |l| l.min(data.len()));
                self.left -= length as u64;
                data = &data[length..];
                continue;
            }
            self.head[self.have] = data[0];
            self.have += 1;
            data = &data[1..];
            if let Some(left) = self.payload() {
                self.have = 0;
                self.left = left;
            }
        }
    }

    /// Nothing of a frame was passed on without its rest.
    pub fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// The payload's length, once the head is whole.
    fn payload(&self) -> Option<u64> {
        let head = &self.head[..self.have];
        let second = *head.get(1)?;
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (bytes, length) = match second & 0x7f {
            126 => (2, None),
            127 => (8, None),
            short => (0, Some(u64::from(short))),
        };
        if head.len() < 2 + bytes + mask {
            return None;
        }
        let long = head[2..2 + bytes].iter();
        Some(length.unwrap_or_else(|| long.fold(0, |sum, byte| sum << 8 | u64::from(*byte))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_end_where_they_end_however_they_are_cut() {
        let mut bytes = vec![0x81, 3, b'a', b'b', b'c', 0x89, 0];
        bytes.extend([0x82, 126, 1, 0]);
        bytes.extend([7; 256]);
        bytes.extend([0x81, 0x82, 1, 2, 3, 4, 5, 6]);
        bytes.extend([0x02, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        bytes.extend([7; 65536]);
        let ends = [5, 7, 7 + 260, 275, 275 + 10 + 65536];
        let mut frames = Frames::default();
        for (at, byte) in bytes.iter().enumerate() {
            frames.follow(&[*byte]);
            assert_eq!(frames.is_between(), ends.contains(&(at + 1)), "{at}");
        }
        let mut frames = Frames::default();
        frames.follow(&bytes);
        assert!(frames.is_between());
        // The longest payload there can be does no harm.
        frames.follow(&[0x82, 127, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
        assert!(!frames.is_between());
    }
}
