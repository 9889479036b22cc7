//! WebSockets (RFC 6455) as far as programs beside apps need them: what passes WebSockets on, as our own gateway does, passes
//! `exec` on. No extensions; a message is sent in one frame, and may come in several.

use std::io;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Of the protocol (§4.1).
pub const VERSION: &str = "13";
/// What is spoken in messages (§1.9).
pub const PROTOCOL: &str = "hutong-exec";
/// The longest message.
const MAX: usize = 2 << 20;
/// The longest frame of control (§5.5).
const MAX_CONTROL: usize = 125;

// Of frames (§5.2).
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Who says something. What a client says is masked (§5.1), so that nothing on the way takes it for HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Data(Vec<u8>),
    /// To be answered by a [`Message::Pong`] of the same.
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// Nothing comes behind it.
    Close,
}

/// A value for `Sec-WebSocket-Key`.
///
/// # Errors
/// The system has no random bytes.
pub fn new_key() -> io::Result<String> {
    Ok(STANDARD.encode(random::<16>()?))
}

/// The value for `Sec-WebSocket-Accept` that answers a key (§4.2.2).
pub fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("no random bytes"))?;
    Ok(bytes)
}

/// A message as a frame.
///
/// # Errors
/// The system has no random bytes, for the mask of a client's.
pub fn encode(message: &Message, by: Side) -> io::Result<Vec<u8>> {
    // Going, all is well (§7.4.1).
    let normal = 1000_u16.to_be_bytes();
    let (opcode, payload) = match message {
        Message::Data(payload) => (BINARY, payload.as_slice()),
        Message::Ping(payload) => (PING, payload.as_slice()),
        Message::Pong(payload) => (PONG, payload.as_slice()),
        Message::Close => (CLOSE, normal.as_slice()),
    };
    let mut bytes = Vec::with_capacity(payload.len() + 14);
    // The last of its message, and the only one.
    bytes.push(0x80 | opcode);
    let masked = match by {
        Side::Client => 0x80,
        Side::Server => 0,
    };
    match payload.len() {
        short @ 0..126 => bytes.push(masked | short as u8),
        middle @ 126..65536 => {
            bytes.push(masked | 126);
            bytes.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            bytes.push(masked | 127);
            bytes.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    let mut mask = [0; 4];
    if by == Side::Client {
        mask = random()?;
        bytes.extend_from_slice(&mask);
    }
    let begin = bytes.len();
    bytes.extend_from_slice(payload);
    apply(mask, &mut bytes[begin..]);
    Ok(bytes)
}

/// Puts a mask on, or takes it off (§5.3).
fn apply(mask: [u8; 4], payload: &mut [u8]) {
    if mask == [0; 4] {
        return;
    }
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// What the other side says.
pub struct Reader<R> {
    stream: R,
    from: Side,
    /// A message whose end is still to come.
    begun: Option<Vec<u8>>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(stream: R, from: Side) -> Self {
        Reader {
            stream,
            from,
            begun: None,
        }
    }

    /// The next message. Whoever gives up waiting for it cannot go on to read.
    ///
    /// # Errors
    /// The connection broke, or what comes is no WebSocket's.
    pub async fn next(&mut self) -> io::Result<Message> {
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        loop {
            let first = self.stream.read_u8().await?;
            let second = self.stream.read_u8().await?;
            let (is_last, opcode) = (first & 0x80 != 0, first & 0x0f);
            let is_masked = second & 0x80 != 0;
            if first & 0x70 != 0 || is_masked != (self.from == Side::Client) {
                return Err(bad());
            }
            let length = match second & 0x7f {
                126 => u64::from(self.stream.read_u16().await?),
                127 => self.stream.read_u64().await?,
                short => u64::from(short),
            };
            let is_control = opcode & 8 != 0;
            let most = match (is_control, &self.begun) {
                (true, _) => MAX_CONTROL,
                (false, Some(begun)) => MAX.saturating_sub(begun.len()),
                (false, None) => MAX,
            };
            let length = usize::try_from(length).map_err(|_| bad())?;
            if length > most || is_control && !is_last {
                return Err(bad());
            }
            let mut mask = [0; 4];
            if is_masked {
                self.stream.read_exact(&mut mask).await?;
            }
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await?;
            apply(mask, &mut payload);
            match (opcode, &mut self.begun) {
                (CLOSE, _) => return Ok(Message::Close),
                (PING, _) => return Ok(Message::Ping(payload)),
                (PONG, _) => return Ok(Message::Pong(payload)),
                (CONTINUATION, Some(begun)) => begun.extend_from_slice(&payload),
                (TEXT | BINARY, begun) if begun.is_none() => *begun = Some(payload),
                _ => return Err(bad()),
            }
            if is_last && let Some(whole) = self.begun.take() {
                return Ok(Message::Data(whole));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8], from: Side) -> Vec<Message> {
        let mut reader = Reader::new(bytes, from);
        let mut all = Vec::new();
        while let Ok(message) = reader.next().await {
            all.push(message);
        }
        all
    }

    #[test]
    fn keys_are_answered_as_the_rfc_says() {
        // §1.3.
        let accepted = accept("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accepted, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let (one, two) = (new_key().expect("random"), new_key().expect("random"));
        assert!(one.len() == 24 && one != two);
    }

    #[tokio::test]
    async fn what_is_said_is_heard() {
        for by in [Side::Client, Side::Server] {
            for length in [0, 1, 125, 126, 65535, 65536, 100_000] {
                let said = Message::Data((0..length).map(|n| n as u8).collect());
                let bytes = encode(&said, by).expect("random");
                assert_eq!(read(&bytes, by).await, [said]);
            }
            let other = match by {
                Side::Client => Side::Server,
                Side::Server => Side::Client,
            };
            for said in [
                Message::Ping(b"p".to_vec()),
                Message::Pong(Vec::new()),
                Message::Close,
            ] {
                let bytes = encode(&said, by).expect("random");
                assert_eq!(read(&bytes, by).await, [said]);
                // Whose word it is, is told by the mask.
                assert!(read(&bytes, other).await.is_empty());
            }
        }
        // §5.7: a masked "Hello".
        let hello = [
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        let heard = read(&hello, Side::Client).await;
        assert_eq!(heard, [Message::Data(b"Hello".to_vec())]);
    }

    #[tokio::test]
    async fn messages_come_in_parts_and_bad_ones_not_at_all() {
        let parts = [
            &[0x02, 1, b'a'][..],
            &[0x89, 0],
            &[0x00, 1, b'b'],
            &[0x80, 1, b'c'],
        ];
        let heard = read(&parts.concat(), Side::Server).await;
        let whole = Message::Data(b"abc".to_vec());
        assert_eq!(heard, [Message::Ping(Vec::new()), whole]);
        let bad: [&[u8]; 8] = [
            // A part of nothing; a beginning within a message; an extension's bit; an unknown kind.
            &[0x80, 0],
            &[0x02, 0, 0x82, 0],
            &[0xc2, 0],
            &[0x83, 0],
            // Control that is cut, or long.
            &[0x09, 0],
            &[0x89, 126, 0, 126],
            // Too long to be held.
            &[0x82, 127, 0, 0, 0, 0, 0xff, 0, 0, 0],
            &[0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ];
        for bytes in bad {
            assert!(read(bytes, Side::Server).await.is_empty(), "{bytes:?}");
        }
    }
}
