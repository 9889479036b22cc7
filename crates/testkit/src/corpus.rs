//! Requests that no client should send, and odd ones that any may (`crates/http/corpus`).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

/// A raw server that says back what it was sent.
pub const RECORDER: &str = include_str!("recorder.py");

/// A client that replays the cases for HTTP/2; its arguments: port, root certificate, file with the cases.
const REPLAY: &str = include_str!("h2.py");
const MALFORMED_H2: &str = include_str!("../../http/corpus/malformed-h2.jsonl");

/// What came of each case for HTTP/2, by its id: a status, `reset`, `goaway`, `closed` or `hangs`. None if the server
/// does not show a certificate for `corpus.test` that `root` is good for.
pub fn replay_h2(port: u16, root: &Path) -> Option<BTreeMap<String, serde_json::Value>> {
    let mut cases = tempfile::NamedTempFile::new().expect("a file");
    cases.write_all(MALFORMED_H2.as_bytes()).expect("write");
    let output = Command::new("/usr/bin/python3")
        .args(["-c", REPLAY, &port.to_string()])
        .arg(root)
        .arg(cases.path())
        .output()
        .expect("it runs");
    serde_json::from_slice(&output.stdout).ok()
}

#[derive(Debug, Deserialize)]
pub struct Case {
    pub id: String,
    pub rfc: String,
    pub why: String,
    #[serde(default)]
    bytes: String,
    repeat: Option<Repeat>,
    pub expect: Option<u16>,
    pub path: Option<String>,
    pub body: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Repeat {
    marker: String,
    text: String,
    count: usize,
}

impl Case {
    /// Each char of the file is one byte.
    pub fn bytes(&self) -> Vec<u8> {
        let text = match &self.repeat {
            None => self.bytes.clone(),
            Some(repeat) => {
                let long = repeat.text.repeat(repeat.count);
                self.bytes.replacen(&repeat.marker, &long, 1)
            }
        };
        text.chars().map(|c| c as u32 as u8).collect()
    }
}

pub fn malformed() -> Vec<Case> {
    read(include_str!("../../http/corpus/malformed.jsonl"))
}

pub fn valid() -> Vec<Case> {
    read(include_str!("../../http/corpus/valid.jsonl"))
}

fn read(text: &str) -> Vec<Case> {
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a case of the corpus"))
        .collect()
}

/// What came back: each answer's status, and the last body. An end without an answer gives none.
#[derive(Debug, Default)]
pub struct Heard {
    pub statuses: Vec<u16>,
    pub body: Vec<u8>,
    /// Neither an answer nor an end within the time.
    pub hangs: bool,
}

/// Sends the bytes over a connection of their own and hears what comes until the end, or until `answers`
/// whole answers are there.
pub fn send(address: &str, bytes: &[u8], answers: usize) -> Heard {
    let long = Duration::from_secs(8);
    send_and_wait(address, bytes, answers, [long, long])
}

/// The same, with the time that the first answer may take, and each further one.
pub fn send_and_wait(
    address: &str,
    bytes: &[u8],
    answers: usize,
    patience: [Duration; 2],
) -> Heard {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(patience[0])).expect("set");
    stream.set_write_timeout(Some(patience[0])).expect("set");
    // The other side may have ended it already.
    let _ = stream.write_all(bytes);
    let mut heard = Heard::default();
    let mut input = Vec::new();
    let bodiless = bytes.starts_with(b"HEAD ");
    let mut chunk = [0; 65536];
    loop {
        while let Some((status, body, end)) = whole_answer(&input, bodiless) {
            if status >= 200 {
                heard.statuses.push(status);
                stream.set_read_timeout(Some(patience[1])).expect("set");
                heard.body = body;
            }
            input.drain(..end);
        }
        if heard.statuses.len() >= answers {
            return heard;
        }
        match stream.read(&mut chunk) {
            Ok(0) => return heard,
            Ok(count) => input.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                heard.hangs = true;
                return heard;
            }
            Err(_) => return heard,
        }
    }
}

/// Status, body and length of a whole answer with a Content-Length at the beginning of `input`.
fn whole_answer(input: &[u8], bodiless: bool) -> Option<(u16, Vec<u8>, usize)> {
    let end = input.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&input[..end]).to_lowercase();
    let status: u16 = head.get(9..12)?.parse().ok()?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(Some(0), |text| text.trim().parse::<usize>().ok())?;
    let length = if bodiless { 0 } else { length };
    let body = input.get(end..end + length)?;
    Some((status, body.to_vec(), end + length))
}
