//! One access record per request, in JSON lines, batched, into the bounded spool that control takes in.

use std::cell::RefCell;
use std::io::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hutong_http::fields::Name;
use hutong_http::request::RequestHead;
use hutong_ipc::spool::{Kind, Writer};

use crate::stats::Stats;
use crate::table::App;
use crate::target::Target;
use crate::visitor::Peer;

/// Records are handed over when this many bytes are together, or at the next tick.
const BATCH: usize = 32 << 10;
pub const TICK: Duration = Duration::from_millis(200);
const MAX_FIELD: usize = 1024;

/// What is known of a request; written down when it is over, however it ends.
pub struct Record<'a> {
    log: &'a Log,
    peer: &'a Peer,
    head: &'a RequestHead,
    began: Instant,
    took: Option<Duration>,
    pub app: Option<Arc<App>>,
    pub target: Option<Arc<Target>>,
    pub status: u16,
    pub bytes: u64,
    pub stats: Option<Arc<Stats>>,
}

impl<'a> Record<'a> {
    pub fn new(log: &'a Log, peer: &'a Peer, head: &'a RequestHead) -> Self {
        Record {
            log,
            peer,
            head,
            began: Instant::now(),
            took: None,
            app: None,
            target: None,
            status: 0,
            bytes: 0,
            stats: None,
        }
    }

    /// How long it took; asked for once, the same from then on.
    pub fn took(&mut self) -> Duration {
        *self.took.get_or_insert_with(|| self.began.elapsed())
    }

    /// `t`: microseconds since 1970 at the answer's end; `us`: from the head to there.
    fn write(&self, out: &mut Vec<u8>) {
        let head = self.head;
        let _ = write!(out, "{{\"t\":{},\"app\":", now_micros());
        text(
            out,
            self.app.as_ref().map_or("", |app| &app.name).as_bytes(),
        );
        out.extend_from_slice(b",\"ip\":");
        text(out, self.peer.text.as_bytes());
        out.extend_from_slice(b",\"method\":");
        let sound = !head.path().is_empty();
        text(out, if sound { head.method.text() } else { "" }.as_bytes());
        out.extend_from_slice(b",\"host\":");
        text(out, head.fields.get(Name::Host).unwrap_or_default());
        out.extend_from_slice(b",\"path\":");
        text(out, head.target().as_bytes());
        let took = self.took.unwrap_or_else(|| self.began.elapsed());
        let microseconds = took.as_micros();
        let _ = write!(
            out,
            ",\"status\":{},\"bytes\":{},\"us\":{microseconds}",
            self.status, self.bytes
        );
        if let Some(target) = &self.target {
            out.extend_from_slice(b",\"instance\":");
            text(out, target.instance.as_bytes());
        }
        if let Some(link) = &self.peer.link {
            out.extend_from_slice(b",\"caller\":");
            text(out, link.caller.as_bytes());
        }
        for (key, name) in [("agent", Name::UserAgent), ("referer", Name::Referer)] {
            if let Some(value) = head.fields.get(name).filter(|value| !value.is_empty()) {
                let _ = write!(out, ",\"{key}\":");
                text(out, value);
            }
        }
        out.extend_from_slice(b"}\n");
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let mut inner = self.log.0.borrow_mut();
        self.write(&mut inner.batch);
        if inner.batch.len() >= BATCH {
            inner.flush();
        }
    }
}

/// A JSON string. Of what is no UTF-8, each byte is shown as the character of its number.
fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let plain = |byte: &u8| (0x20..0x7f).contains(byte) && *byte != b'"' && *byte != b'\\';
    if bytes.len() <= MAX_FIELD && bytes.iter().all(plain) {
        out.extend_from_slice(bytes);
    } else {
        escape(out, bytes);
    }
    out.push(b'"');
}

fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    let owned: String;
    let decoded = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => {
            owned = bytes.iter().map(|byte| *byte as char).collect();
            &owned
        }
    };
    let mut end = decoded.len().min(MAX_FIELD);
    while !decoded.is_char_boundary(end) {
        end -= 1;
    }
    let begin = out.len();
    if serde_json::to_writer(&mut *out, &decoded[..end]).is_ok() {
        // Without the quotes.
        out.pop();
        out.remove(begin);
    }
}

/// One worker's access log.
#[derive(Clone)]
pub struct Log(Rc<RefCell<Inner>>);

struct Inner {
    spool: Writer,
    batch: Vec<u8>,
}

impl Log {
    pub fn new(spool: Writer) -> Self {
        Log(Rc::new(RefCell::new(Inner {
            spool,
            batch: Vec::with_capacity(BATCH + (8 << 10)),
        })))
    }

    pub fn flush(&self) {
        self.0.borrow_mut().flush();
    }
}

impl Inner {
    fn flush(&mut self) {
        if !self.batch.is_empty() {
            self.spool.write(Kind::Access, now_micros(), &self.batch);
            self.batch.clear();
        }
    }
}

fn now_micros() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_one_json_string() {
        for hostile in [
            &b"plain"[..],
            b"a\"b\\c\n\x00",
            "\u{4e2d}\u{1f600}".as_bytes(),
            b"\xff\xfe\"",
            &[0xe4; 3000],
            "\u{4e2d}".repeat(1000).as_bytes(),
        ] {
            let mut out = Vec::new();
            text(&mut out, hostile);
            let read: String = serde_json::from_slice(&out).expect("a JSON string");
            assert!(read.len() <= MAX_FIELD);
        }
    }
}
