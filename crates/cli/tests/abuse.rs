//! Hostile visitors against the real gateway: floods, bombs and stalls, each bounded in count and time and
//! only to 127.0.0.1. Every attack runs under [`Site::survives`], which proves that nobody but the attacker
//! noticed; what the attacker itself must see is said beside each. Start there, then at [`Attacker`], who
//! writes HTTP/2 frames by hand over `openssl s_client`.
//!
//! The bounds on memory are for each attack as a whole; `--nocapture` shows what was measured.

// What was measured.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hutong_testkit::corpus::{self, Heard};
use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::visitor::raw;
use hutong_testkit::{eventually, is_root};

const HOST: &str = "abuse.test";
const HOME: &str = "<html>home</html>";
const BIG_BYTES: usize = 8 << 20;
/// An honest request takes no longer, whatever others do.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the gateway may take more during an attack that is no matter of many connections or streams.
const LITTLE_MIB: u64 = 8;
/// The gateway's own bounds (`visitor::http1`, `worker`, `visitor::Pace`) and some time to look.
const HEAD_ENDS: Duration = Duration::from_secs(15 + 5);
const BODY_ENDS: Duration = Duration::from_secs(30 + 6);

/// A server with a static app, and its gateway's process.
struct Site {
    server: Server,
    gateway: u32,
}

/// What honest visitors saw during an attack, and what the gateway took.
#[derive(Debug, Default)]
struct Seen {
    answered: usize,
    failed: Vec<String>,
    slowest: Duration,
    peak_kib: u64,
}

impl Site {
    fn plain() -> Option<Self> {
        is_root().then(|| Self::start(&[]))
    }

    /// Over TLS too.
    fn secure() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let site = Self::start(&["--https", "127.0.0.1:0"]);
        eventually("HTTP/2 is served", 20, || {
            let mut visitor = Attacker::with(&site, &[], true);
            visitor.send(&get(1, "/"));
            visitor.hears(Duration::from_secs(2), |heard| heard.is_fine(1))
        });
        Some(site)
    }

    fn start(arguments: &[&str]) -> Self {
        let server = Server::start_with(arguments);
        let toml =
            format!("name='abuse'\ndomains=['{HOST}']\nstatic='public'\n[https]\nredirect=false");
        let big = "0123456789abcdef".repeat(BIG_BYTES / 16);
        let folder = app_folder(&[
            ("hutong.toml", &toml),
            ("public/index.html", HOME),
            ("public/big.bin", &big),
        ]);
        server.deploy(folder.path());
        let gateway = server.role("gateway");
        Site { server, gateway }
    }

    /// Runs an attack: meanwhile and afterwards others are answered in time, the gateway takes at most so
    /// much more memory, it is not restarted, and in the end nothing of the attack is left.
    fn survives(&self, attack: &str, growth_mib: u64, run: impl FnOnce()) {
        self.be_honest(8);
        let before_kib = self.resident_kib();
        let descriptors = self.descriptors();
        let stop = AtomicBool::new(false);
        let mut seen = std::thread::scope(|scope| {
            let witness = scope.spawn(|| self.witness(&stop));
            {
                let _stop = Stop(&stop);
                run();
            }
            witness.join().expect("the witness does not panic")
        });
        self.be_honest(8);
        seen.peak_kib = seen.peak_kib.max(self.resident_kib());
        let growth_kib = seen.peak_kib.saturating_sub(before_kib);
        println!(
            "{attack}: {growth_kib} KiB more (bound {growth_mib} MiB); {} honest requests, slowest {:?}",
            seen.answered, seen.slowest
        );
        assert!(
            seen.failed.is_empty() && seen.slowest < PATIENCE,
            "{attack}: honest visitors were harmed: {seen:?}"
        );
        assert!(
            growth_kib <= growth_mib << 10,
            "{attack}: {growth_kib} KiB on top of {before_kib} KiB"
        );
        let gateway = self.server.role("gateway");
        assert_eq!(gateway, self.gateway, "{attack}: another gateway");
        // Sockets for connections to apps are kept for the next one.
        eventually("the attack's descriptors are closed", 10, || {
            self.descriptors() <= descriptors + 64
        });
    }

    /// Asks again and again until it is told to stop, with a connection of its own each time.
    fn witness(&self, stop: &AtomicBool) -> Seen {
        let mut seen = Seen::default();
        loop {
            let last = stop.load(Ordering::SeqCst);
            let began = Instant::now();
            match ask_home(&self.server.http) {
                Ok(()) => seen.answered += 1,
                Err(error) => seen.failed.push(error),
            }
            seen.slowest = seen.slowest.max(began.elapsed());
            seen.peak_kib = seen.peak_kib.max(self.resident_kib());
            if last || seen.failed.len() > 10 {
                return seen;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Some requests: new connections reach every worker.
    fn be_honest(&self, count: usize) {
        for _ in 0..count {
            ask_home(&self.server.http).expect("an honest visitor is served");
        }
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.gateway));
        let status = status.expect("the gateway runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_ascii_whitespace().next());
        number.expect("VmRSS").parse().expect("KiB")
    }

    fn descriptors(&self) -> usize {
        let folder = std::fs::read_dir(format!("/proc/{}/fd", self.gateway));
        folder.expect("the gateway runs").count()
    }

    /// A plain connection.
    fn connect(&self) -> TcpStream {
        connect(&self.server.http)
    }

    /// Sends bytes on a plain connection of their own; the first answer, or an end without one.
    fn send(&self, bytes: &[u8]) -> Heard {
        corpus::send(&self.server.http, bytes, 1)
    }
}

/// Ends the witness even if the attack panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("set");
    let patience = Some(Duration::from_secs(10));
    stream.set_read_timeout(patience).expect("set");
    stream.set_write_timeout(patience).expect("set");
    stream
}

/// A request of HTTP/1.1; `more` are header lines, each ended with CRLF.
fn request(host: &str, path: &str, more: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n").into_bytes()
}

fn ask_home(http: &str) -> Result<(), String> {
    let ask = || {
        let mut stream =
            TcpStream::connect_timeout(&http.parse().map_err(std::io::Error::other)?, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&request(HOST, "/", "Connection: close\r\n"))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer: String = ask().map_err(|error: std::io::Error| error.to_string())?;
    let fine = answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(HOME);
    if fine { Ok(()) } else { Err(answer) }
}

// HTTP/2 by hand (RFC 9113).

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// No frame type that is known.
const UNKNOWN: u8 = 0x77;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const INITIAL_WINDOW_SIZE: u16 = 4;
/// The largest window that there is.
const ALL: u32 = i32::MAX as u32;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn setting(name: u16, value: u32) -> Vec<u8> {
    [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// A string of HPACK without Huffman code (RFC 7541 §5.2).
fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.len();
    if rest < 127 {
        bytes.push(rest as u8);
    } else {
        bytes.push(127);
        rest -= 127;
        while rest >= 128 {
            bytes.push((rest % 128 + 128) as u8);
            rest /= 128;
        }
        bytes.push(rest as u8);
    }
    bytes.extend(text);
    bytes
}

/// A field without indexing (RFC 7541 §6.2.2).
fn literal(name: &str, value: &str) -> Vec<u8> {
    [vec![0], string(name.as_bytes()), string(value.as_bytes())].concat()
}

/// The pseudo-header fields; GET and POST are in the static table, as is https.
fn pseudo(get: bool, path: &str) -> Vec<u8> {
    let mut block = vec![if get { 0x82 } else { 0x83 }, 0x87];
    block.push(0x01);
    block.extend(string(HOST.as_bytes()));
    block.push(0x04);
    block.extend(string(path.as_bytes()));
    block
}

/// A whole GET.
fn get(stream: u32, path: &str) -> Vec<u8> {
    let flags = END_HEADERS | END_STREAM;
    frame(HEADERS, flags, stream, &pseudo(true, path))
}

/// The head of a POST whose body is still to come.
fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &pseudo(false, "/"))
}

/// The `number`th stream that a visitor opens.
fn odd(number: usize) -> u32 {
    2 * number as u32 + 1
}

/// One who speaks HTTP/2 over TLS, frame by frame.
struct Attacker {
    tls: Child,
    input: ChildStdin,
    heard: Arc<Mutex<Answers>>,
    /// Of one who never reads.
    _unread: Option<ChildStdout>,
}

/// What came back so far.
#[derive(Clone, Debug, Default)]
struct Answers {
    /// How many frames of each kind.
    frames: BTreeMap<u8, usize>,
    /// The beginning of each stream's head: one byte where the status is in the static table.
    heads: BTreeMap<u32, u8>,
    goaway: Option<u32>,
    over: bool,
}

impl Answers {
    fn count(&self, kind: u8) -> usize {
        self.frames.get(&kind).copied().unwrap_or(0)
    }

    /// `:status: 200`.
    fn is_fine(&self, stream: u32) -> bool {
        self.heads.get(&stream) == Some(&0x88)
    }
}

impl Attacker {
    fn new(site: &Site) -> Self {
        let attacker = Self::with(site, &[], true);
        attacker.is_welcome();
        attacker
    }

    /// `settings` are what it begins with.
    fn with(site: &Site, settings: &[u8], reads: bool) -> Self {
        let mut attacker = Self::dial(site, reads);
        attacker.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        attacker.send(&frame(SETTINGS, 0, 0, settings));
        attacker.send(&frame(SETTINGS, ACK, 0, &[]));
        attacker
    }

    /// Says nothing yet. `timeout` bounds whatever comes; one who reads nothing will get stuck.
    fn dial(site: &Site, reads: bool) -> Self {
        let seconds = if reads { "30" } else { "5" };
        let mut tls = Command::new("timeout")
            .args([seconds, "openssl", "s_client", "-quiet", "-alpn", "h2"])
            .args(["-servername", HOST, "-connect", &site.server.https])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl runs");
        let input = tls.stdin.take().expect("piped");
        let output = tls.stdout.take().expect("piped");
        let heard = Arc::default();
        let unread = if reads {
            let heard = Arc::clone(&heard);
            std::thread::spawn(move || listen(output, &heard));
            None
        } else {
            Some(output)
        };
        Attacker {
            tls,
            input,
            heard,
            _unread: unread,
        }
    }

    /// False: the connection is over.
    fn send(&mut self, bytes: &[u8]) -> bool {
        self.input.write_all(bytes).is_ok()
    }

    /// Sends what `make` makes of 0, 1, 2… in large pieces, `count` times or until the connection is over.
    fn flood(&mut self, count: usize, make: impl Fn(usize) -> Vec<u8>) {
        let mut piece = Vec::new();
        for number in 0..count {
            piece.extend(make(number));
            if piece.len() >= 32 << 10 {
                if !self.send(&piece) {
                    return;
                }
                piece.clear();
            }
        }
        self.send(&piece);
    }

    /// The gateway has begun to speak: what ends now is ended for what is sent.
    fn is_welcome(&self) {
        let welcome = self.hears(Duration::from_secs(10), |heard| heard.count(SETTINGS) > 0);
        assert!(welcome, "no HTTP/2: {:?}", self.heard());
    }

    fn heard(&self) -> Answers {
        self.heard.lock().expect("no panic while locked").clone()
    }

    fn hears(&self, within: Duration, wanted: impl Fn(&Answers) -> bool) -> bool {
        let deadline = Instant::now() + within;
        while !wanted(&self.heard()) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// The connection is ended, with one of these codes. An attacker who still sends may lose the GOAWAY to
    /// a reset.
    fn is_ended(&self, codes: &[u32]) {
        let ended = self.hears(Duration::from_secs(10), |heard| heard.over);
        let heard = self.heard();
        assert!(ended, "the connection goes on: {heard:?}");
        let right = heard.goaway.is_none_or(|code| codes.contains(&code));
        assert!(right, "not {codes:?}: {heard:?}");
    }

    /// The connection is ended, or serves on.
    fn is_ended_or_served(&mut self, stream: u32) {
        self.send(&get(stream, "/"));
        let bounded = self.hears(Duration::from_secs(10), |heard| {
            heard.over || heard.is_fine(stream)
        });
        assert!(bounded, "neither ended nor served: {:?}", self.heard());
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.tls);
        // It may have ended by itself. `timeout` passes it on.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.tls.wait();
    }
}

/// Reads frames until the end.
fn listen(mut output: ChildStdout, heard: &Mutex<Answers>) {
    let mut head = [0; 9];
    while output.read_exact(&mut head).is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        if output.read_exact(&mut payload).is_err() {
            break;
        }
        let mut heard = heard.lock().expect("no panic while locked");
        *heard.frames.entry(head[3]).or_default() += 1;
        match head[3] {
            HEADERS => {
                let first = payload.first().copied().unwrap_or(0);
                heard.heads.entry(stream).or_insert(first);
            }
            GOAWAY => {
                let code = payload.get(4..8).and_then(|code| code.try_into().ok());
                heard.goaway = code.map(u32::from_be_bytes);
            }
            _ => {}
        }
    }
    heard.lock().expect("no panic while locked").over = true;
}

#[test]
fn http2_floods_and_bombs_of_headers() {
    let Some(site) = Site::secure() else { return };
    // CVE-2024-27316 and its kin: a head that never ends, in pieces with and without anything in them.
    for piece in [literal("x-a", "b"), Vec::new()] {
        site.survives("CONTINUATION flood", LITTLE_MIB, || {
            let mut attacker = Attacker::new(&site);
            attacker.send(&frame(HEADERS, END_STREAM, 1, &pseudo(true, "/")));
            attacker.flood(10_000, |_| frame(CONTINUATION, 0, 1, &piece));
            attacker.is_ended(&[ENHANCE_YOUR_CALM]);
        });
    }
    // CVE-2016-6581: one entry of 4 KB in the dynamic table, named twelve thousand times in one frame.
    site.survives("HPACK bomb", LITTLE_MIB, || {
        let mut attacker = Attacker::new(&site);
        let mut block = pseudo(true, "/");
        block.push(0x40);
        block.extend(string(b"x"));
        block.extend(string(&[b'a'; 4000]));
        block.resize(block.len() + 12_000, 0xbe);
        attacker.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block));
        attacker.is_ended(&[ENHANCE_YOUR_CALM, COMPRESSION_ERROR]);
    });
    // More than SETTINGS_MAX_HEADER_LIST_SIZE says, in whole frames and a hundred times.
    site.survives("header list over the limit", LITTLE_MIB, || {
        let mut attacker = Attacker::new(&site);
        attacker.flood(100, |number| {
            let block = pseudo(true, "/");
            let mut frames = frame(HEADERS, END_STREAM, odd(number), &block);
            for part in 0..6 {
                let flags = if part == 5 { END_HEADERS } else { 0 };
                let field = literal("x-long", &"a".repeat(16_000));
                frames.extend(frame(CONTINUATION, flags, odd(number), &field));
            }
            frames
        });
        attacker.is_ended_or_served(odd(100));
        let fine = |number| attacker.heard().is_fine(odd(number));
        assert!(!(0..100).any(fine), "{:?}", attacker.heard());
    });
}

#[test]
fn http2_resets() {
    let Some(site) = Site::secure() else { return };
    // CVE-2023-44487, rapid reset.
    for path in ["/", "/big.bin"] {
        site.survives("rapid reset", LITTLE_MIB, || {
            let mut attacker = Attacker::new(&site);
            attacker.flood(20_000, |number| {
                let reset = frame(RST_STREAM, 0, odd(number), &8_u32.to_be_bytes());
                [get(odd(number), path), reset].concat()
            });
            attacker.is_ended(&[ENHANCE_YOUR_CALM]);
        });
    }
    // The same, slowly enough that every request is looked at before it is taken back.
    site.survives("slow rapid reset", 2 * LITTLE_MIB, || {
        let mut attacker = Attacker::new(&site);
        for number in 0..1000 {
            attacker.send(&get(odd(number), "/big.bin"));
            std::thread::sleep(Duration::from_millis(1));
            attacker.send(&frame(RST_STREAM, 0, odd(number), &8_u32.to_be_bytes()));
        }
        attacker.is_ended_or_served(odd(1000));
    });
    // CVE-2025-8671, MadeYouReset: what makes the server reset the stream.
    type Provoke = fn(u32) -> Vec<u8>;
    let provocations: [(&str, Provoke, &[u32]); 5] = [
        (
            "window update of nothing",
            |stream| frame(WINDOW_UPDATE, 0, stream, &[0; 4]),
            &[PROTOCOL_ERROR, ENHANCE_YOUR_CALM],
        ),
        (
            "window too large",
            |stream| frame(WINDOW_UPDATE, 0, stream, &ALL.to_be_bytes()),
            &[FLOW_CONTROL_ERROR, ENHANCE_YOUR_CALM],
        ),
        (
            "depends on itself",
            |stream| {
                let payload = [&stream.to_be_bytes()[..], &[0]].concat();
                frame(PRIORITY, 0, stream, &payload)
            },
            &[PROTOCOL_ERROR, ENHANCE_YOUR_CALM],
        ),
        (
            "data behind the end",
            |stream| {
                let end = frame(DATA, END_STREAM, stream, b"x");
                [end.clone(), end].concat()
            },
            &[STREAM_CLOSED, PROTOCOL_ERROR, ENHANCE_YOUR_CALM],
        ),
        (
            "a second head",
            |stream| post(stream),
            &[PROTOCOL_ERROR, ENHANCE_YOUR_CALM],
        ),
    ];
    for (what, provoke, codes) in provocations {
        site.survives(&format!("MadeYouReset: {what}"), LITTLE_MIB, || {
            let mut attacker = Attacker::new(&site);
            attacker.flood(5000, |number| {
                [post(odd(number)), provoke(odd(number))].concat()
            });
            attacker.is_ended(codes);
        });
    }
    // More streams than SETTINGS_MAX_CONCURRENT_STREAMS says, all of them left open.
    site.survives("streams over the limit", LITTLE_MIB, || {
        let mut attacker = Attacker::new(&site);
        attacker.flood(10_000, |number| post(odd(number)));
        attacker.is_ended(&[ENHANCE_YOUR_CALM]);
    });
}

#[test]
fn http2_floods_of_small_frames() {
    let Some(site) = Site::secure() else { return };
    let flood = |what: &str, count: usize, one: &[u8], answer: Option<u8>| {
        site.survives(what, LITTLE_MIB, || {
            let mut attacker = Attacker::new(&site);
            attacker.flood(count, |_| one.to_vec());
            attacker.is_ended_or_served(odd(0));
            let Some(kind) = answer else { return };
            let answered = attacker.hears(Duration::from_secs(10), |heard| {
                heard.over || heard.count(kind) >= count
            });
            assert!(answered, "{what}: {:?}", attacker.heard());
        });
    };
    // CVE-2019-9512 and CVE-2019-9515: each is to be answered.
    flood(
        "PING flood",
        100_000,
        &frame(PING, 0, 0, &[7; 8]),
        Some(PING),
    );
    let settings = setting(INITIAL_WINDOW_SIZE, 70_000);
    flood(
        "SETTINGS flood",
        50_000,
        &frame(SETTINGS, 0, 0, &settings),
        Some(SETTINGS),
    );
    // CVE-2019-9513 and what no one knows: to be overlooked.
    let priority = frame(PRIORITY, 0, 9, &[0, 0, 0, 0, 16]);
    flood("PRIORITY flood", 100_000, &priority, None);
    flood("unknown frames", 100_000, &frame(UNKNOWN, 0, 0, b"?"), None);
    // The same by one who never reads an answer, more than the kernel keeps: what is to be said to it must
    // not pile up, so the gateway stops reading.
    site.survives("PING flood, unread", LITTLE_MIB, || {
        let mut attacker = Attacker::with(&site, &[], false);
        attacker.flood(2_000_000, |_| frame(PING, 0, 0, &[7; 8]));
        assert!(!attacker.send(&[0]), "the gateway took all of it");
    });
}

#[test]
fn http2_data_out_of_place() {
    let Some(site) = Site::secure() else { return };
    // CVE-2019-9518: no bytes, no end.
    site.survives("empty DATA", LITTLE_MIB, || {
        let mut attacker = Attacker::new(&site);
        attacker.send(&post(1));
        attacker.flood(100_000, |_| frame(DATA, 0, 1, &[]));
        attacker.is_ended(&[ENHANCE_YOUR_CALM]);
    });
    site.survives("DATA on a stream that is closed", LITTLE_MIB, || {
        let mut attacker = Attacker::new(&site);
        attacker.send(&get(1, "/"));
        assert!(attacker.hears(Duration::from_secs(5), |heard| heard.is_fine(1)));
        attacker.flood(5000, |_| frame(DATA, 0, 1, b"x"));
        attacker.is_ended(&[STREAM_CLOSED, ENHANCE_YOUR_CALM, PROTOCOL_ERROR]);
    });
    let wrong: [(&str, Vec<u8>, &[u32]); 3] = [
        (
            "DATA on a stream that is idle",
            frame(DATA, 0, 9, b"x"),
            &[PROTOCOL_ERROR],
        ),
        (
            "a frame over SETTINGS_MAX_FRAME_SIZE",
            frame(DATA, 0, 1, &[0; (16 << 10) + 1]),
            &[FRAME_SIZE_ERROR],
        ),
        (
            "the beginning of the largest frame there is",
            [&[0xff, 0xff, 0xff, HEADERS, 0, 0, 0, 0, 1], &[0; 91][..]].concat(),
            &[FRAME_SIZE_ERROR],
        ),
    ];
    for (what, bytes, codes) in wrong {
        site.survives(what, LITTLE_MIB, || {
            let mut attacker = Attacker::new(&site);
            attacker.send(&bytes);
            attacker.is_ended(codes);
        });
    }
    site.survives("HTTP/1 where HTTP/2 was agreed on", LITTLE_MIB, || {
        let mut attacker = Attacker::dial(&site, true);
        attacker.is_welcome();
        attacker.send(&request(HOST, "/", ""));
        attacker.is_ended(&[PROTOCOL_ERROR]);
    });
}

#[test]
fn http2_stalls() {
    let Some(site) = Site::secure() else { return };
    // CVE-2019-9517 and CVE-2019-9511: asks for 800 MB and never opens the windows, or by one byte.
    for window in [0, 1] {
        site.survives(&format!("windows of {window}"), LITTLE_MIB, || {
            let settings = setting(INITIAL_WINDOW_SIZE, window);
            let mut attacker = Attacker::with(&site, &settings, true);
            attacker.flood(100, |number| get(odd(number), "/big.bin"));
            let begun = attacker.hears(Duration::from_secs(10), |heard| {
                (0..100).all(|number| heard.is_fine(odd(number)))
            });
            assert!(begun, "{:?}", attacker.heard());
            std::thread::sleep(Duration::from_secs(1));
            assert_eq!(attacker.heard().count(DATA), 100 * window as usize);
        });
    }
    // Opens every window and reads nothing: 128 KB for each stream are what h2 keeps at most, and as much may be on the way there.
    site.survives("windows open, unread", 40, || {
        let settings = setting(INITIAL_WINDOW_SIZE, ALL);
        let mut attacker = Attacker::with(&site, &settings, false);
        let all = (ALL - 65_535).to_be_bytes();
        attacker.send(&frame(WINDOW_UPDATE, 0, 0, &all));
        attacker.flood(100, |number| get(odd(number), "/big.bin"));
        std::thread::sleep(Duration::from_secs(3));
    });
}

/// One who sends a byte a second.
struct Slow {
    stream: TcpStream,
    answer: Vec<u8>,
    ended: Option<Duration>,
}

impl Slow {
    fn new(address: &str, begins: &[u8]) -> Self {
        let mut stream = connect(address);
        stream.write_all(begins).expect("write");
        stream.set_nonblocking(true).expect("set");
        Slow {
            stream,
            answer: Vec::new(),
            ended: None,
        }
    }

    fn go_on(&mut self, since: Instant) {
        let mut chunk = [0; 4096];
        let over = match self.stream.read(&mut chunk) {
            Ok(0) => true,
            Ok(count) => {
                self.answer.extend_from_slice(&chunk[..count]);
                false
            }
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        let _ = self.stream.write(b"a");
        if over {
            self.ended = Some(since.elapsed());
        }
    }
}

#[test]
fn http1_slow_senders() {
    if !is_root() {
        return;
    }
    let site = Site::start(&["--https", "127.0.0.1:0"]);
    let app = python_app(
        "upload",
        "[limits]\npids = 512\n[https]\nredirect = false",
        "upload",
    );
    site.server.deploy(app.path());
    let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-A: ");
    let body = "POST / HTTP/1.1\r\nHost: upload.test\r\nContent-Length: 100000\r\n\r\n";
    // The beginning of a TLS record with a ClientHello of 508 bytes.
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let (http, https) = (&site.server.http, &site.server.https);
    site.survives("slow heads, bodies and handshakes", 16, || {
        let many = |count, address: &str, begins: &[u8]| -> Vec<Slow> {
            (0..count).map(|_| Slow::new(address, begins)).collect()
        };
        let since = Instant::now();
        // Slowloris (CVE-2007-6750); R-U-Dead-Yet; the same before there is any HTTP.
        let mut kinds = [
            ("head", many(200, http, head.as_bytes()), HEAD_ENDS, "408"),
            ("body", many(50, http, body.as_bytes()), BODY_ENDS, "408"),
            ("handshake", many(50, https, &hello), HEAD_ENDS, ""),
        ];
        while since.elapsed() < BODY_ENDS {
            let all = kinds.iter_mut().flat_map(|(_, slow, _, _)| slow);
            let mut left = all.filter(|slow| slow.ended.is_none()).peekable();
            if left.peek().is_none() {
                break;
            }
            left.for_each(|slow| slow.go_on(since));
            std::thread::sleep(Duration::from_secs(1));
        }
        for (kind, all, bound, status) in &kinds {
            for slow in all {
                let answer = String::from_utf8_lossy(&slow.answer);
                assert!(
                    slow.ended.is_some_and(|ended| ended < *bound),
                    "{kind}: {:?}, {answer}",
                    slow.ended
                );
                let said = answer.split(' ').nth(1).unwrap_or_default();
                assert_eq!(said, *status, "{kind}: {answer}");
            }
        }
    });
}

#[test]
fn http1_slow_readers_and_idle_ones() {
    let Some(site) = Site::plain() else { return };
    // One chunk of the file for each, and what the kernel keeps, which is none of the gateway's.
    site.survives("answers of 8 MB, unread", 32, || {
        let readers: Vec<TcpStream> = (0..50)
            .map(|_| {
                let mut stream = site.connect();
                let wanted = request(HOST, "/big.bin", "");
                stream.write_all(&wanted).expect("write");
                stream.peek(&mut [0]).expect("the answer has begun");
                stream
            })
            .collect();
        std::thread::sleep(Duration::from_secs(1));
        drop(readers);
    });
    raise_file_limit();
    // Half of them never say anything. 12 KiB each.
    site.survives("2000 idle connections", 24, || {
        let idle: Vec<TcpStream> = (0..2000)
            .map(|number| {
                let mut stream = site.connect();
                if number % 2 == 0 {
                    stream.write_all(&request(HOST, "/", "")).expect("write");
                    stream.peek(&mut [0]).expect("an answer");
                }
                stream
            })
            .collect();
        std::thread::sleep(Duration::from_secs(1));
        assert!(site.descriptors() > 2000);
        drop(idle);
    });
}

/// As many descriptors for this process as it may have.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}

#[test]
fn http1_odd_but_honest() {
    let Some(site) = Site::plain() else { return };
    site.survives("a byte at a time", LITTLE_MIB, || {
        let mut stream = site.connect();
        for byte in request(HOST, "/", "Connection: close\r\n") {
            stream.write_all(&[byte]).expect("write");
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.ends_with(HOME), "{answer}");
    });
    site.survives("half closed", LITTLE_MIB, || {
        half_closed(&site, HOST, "/", HOME.len());
        half_closed(&site, HOST, "/big.bin", BIG_BYTES);
    });
    site.survives("1000 requests in one write", LITTLE_MIB, || {
        let mut requests = Vec::new();
        for number in 0..1000 {
            let last = if number == 999 {
                "Connection: close\r\n"
            } else {
                ""
            };
            let more = format!("Range: bytes={number}-{number}\r\n{last}");
            requests.extend(request(HOST, "/big.bin", &more));
        }
        let mut stream = site.connect();
        stream.write_all(&requests).expect("write");
        let mut answers = String::new();
        stream.read_to_string(&mut answers).expect("answers");
        let lines = answers.lines().map(str::to_lowercase);
        let ranges: Vec<String> = lines
            .filter_map(|line| Some(line.strip_prefix("content-range: bytes ")?.to_owned()))
            .collect();
        let wanted: Vec<String> = (0..1000)
            .map(|number| format!("{number}-{number}/{BIG_BYTES}"))
            .collect();
        assert!(ranges == wanted, "{} answers: {ranges:?}", ranges.len());
    });
}

#[test]
fn http1_half_closed_visitor_of_an_app() {
    let Some(site) = Site::plain() else { return };
    let app = python_app("slow", "", "home");
    site.server.deploy(app.path());
    site.survives("half closed", LITTLE_MIB, || {
        // An app's work is not done for one who has left, and over TCP it is all the same (as with nginx).
        let mut stream = site.connect();
        stream
            .write_all(&request("slow.test", "/slow?1", ""))
            .expect("write");
        stream.shutdown(Shutdown::Write).expect("shutdown");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"");
    });
}

/// Who has said all there is to say may close that side and still wait for a file (as `nc -N` does).
fn half_closed(site: &Site, host: &str, path: &str, length: usize) {
    let mut stream = site.connect();
    stream.write_all(&request(host, path, "")).expect("write");
    stream.shutdown(Shutdown::Write).expect("shutdown");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = head.map(|end| answer.len() - end - 4);
    assert_eq!(body, Some(length), "{host}{path}");
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{host}{path}");
}

#[test]
fn http1_too_large() {
    let Some(site) = Site::plain() else { return };
    let long = "a".repeat(1 << 20);
    let many = "X-A: b\r\n".repeat(100_000);
    for (what, bytes, status) in [
        (
            "a header of 1 MB",
            request(HOST, "/", &format!("X-A: {long}\r\n")),
            431,
        ),
        ("100 000 headers", request(HOST, "/", &many), 431),
        (
            "a name of 1 MB",
            request(HOST, "/", &format!("{long}: b\r\n")),
            431,
        ),
        (
            "a request line of 1 MB",
            request(HOST, &format!("/{long}"), ""),
            414,
        ),
        (
            "a method of 1 MB",
            format!("{long} / HTTP/1.1\r\n\r\n").into_bytes(),
            414,
        ),
    ] {
        site.survives(what, LITTLE_MIB, || {
            for _ in 0..20 {
                let heard = site.send(&bytes);
                assert_eq!(heard.statuses, [status], "{what}: {heard:?}");
            }
        });
    }
}

#[test]
fn http1_another_protocol() {
    if !is_root() {
        return;
    }
    let site = Site::start(&["--https", "127.0.0.1:0"]);
    let mut state = 1_u64;
    let mut noise = || -> Vec<u8> {
        let mut byte = || {
            // Numerical Recipes; the same in every run.
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        (0..64 << 10).map(|_| byte()).collect()
    };
    let refused = |heard: &Heard| {
        let error = |status: &u16| (400..=505).contains(status);
        !heard.hangs && heard.statuses.iter().all(error)
    };
    site.survives("noise", LITTLE_MIB, || {
        for _ in 0..50 {
            let noise = noise();
            let heard = site.send(&noise);
            assert!(refused(&heard), "{:?}: {heard:?}", &noise[..16]);
            let heard = corpus::send(&site.server.https, &noise, 1);
            assert!(!heard.hangs && heard.statuses.is_empty(), "{heard:?}");
        }
    });
    site.survives("HTTP/2 without TLS", LITTLE_MIB, || {
        let heard = site.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert!(refused(&heard) && !heard.statuses.is_empty(), "{heard:?}");
    });
    site.survives("TLS to the plain port", LITTLE_MIB, || {
        let output = Command::new("timeout")
            .args(["10", "openssl", "s_client", "-connect", &site.server.http])
            .stdin(Stdio::null())
            .output()
            .expect("openssl runs");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    });
    site.survives("HTTP to the TLS port", LITTLE_MIB, || {
        let answer = raw(
            &site.server.https,
            &request(HOST, "/", "Connection: close\r\n"),
        );
        assert!(answer.is_err(), "{answer:?}");
        let heard = corpus::send(&site.server.https, &request(HOST, "/", ""), 1);
        assert!(!heard.hangs && heard.statuses.is_empty(), "{heard:?}");
    });
}
