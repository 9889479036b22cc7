//! One access record per request, in JSON lines, batched, into the bounded spool that control takes in.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hutong_ipc::spool::{Kind, Writer};
use serde::Serialize;

/// Records are handed over when this many bytes are together, or at the next tick.
const BATCH: usize = 32 << 10;
pub const TICK: Duration = Duration::from_millis(200);
const MAX_FIELD: usize = 1024;

/// What is known of a request when it begins.
pub struct Entry {
    pub app: String,
    pub host: String,
    pub method: String,
    pub path: String,
    pub visitor: IpAddr,
    pub agent: String,
    pub referer: String,
    pub began: Instant,
    /// Filled in on the way.
    pub instance: String,
    pub status: u16,
    pub bytes: u64,
}

#[derive(Serialize)]
struct Record<'a> {
    /// Microseconds since 1970.
    t: u64,
    app: &'a str,
    ip: IpAddr,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    status: u16,
    bytes: u64,
    /// Microseconds from the request's head to the answer's end.
    us: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    instance: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    agent: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    referer: &'a str,
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
            batch: Vec::with_capacity(BATCH),
        })))
    }

    pub fn add(&self, entry: &Entry) {
        let record = Record {
            t: now_micros(),
            app: &entry.app,
            ip: entry.visitor,
            method: cut(&entry.method),
            host: cut(&entry.host),
            path: cut(&entry.path),
            status: entry.status,
            bytes: entry.bytes,
            us: entry.began.elapsed().as_micros() as u64,
            instance: &entry.instance,
            agent: cut(&entry.agent),
            referer: cut(&entry.referer),
        };
        let mut inner = self.0.borrow_mut();
        if serde_json::to_writer(&mut inner.batch, &record).is_ok() {
            inner.batch.push(b'\n');
        }
        if inner.batch.len() >= BATCH {
            inner.flush();
        }
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

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_FIELD);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn now_micros() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_micros() as u64)
}
