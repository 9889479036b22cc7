//! The corpus of malformed requests through us, nginx and HAProxy, each with a server behind it that records what it
//! is sent: what is refused, what reaches the app, and what reaches it in two different readings.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hutong_testkit::corpus::{self, RECORDER, send, send_and_wait};
use hutong_testkit::eventually;
use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::visitor::get;

use crate::gateway::certificate;
use crate::gateway::rivals::{Ground, free_port, haproxy, nginx};
use crate::{Report, Row, release_binary};

/// A server that has not answered by then waits for something that never comes.
const PATIENCE: [Duration; 2] = [Duration::from_millis(700), Duration::from_millis(100)];

/// What came of a corpus.
#[derive(Default)]
struct Tally {
    all: usize,
    refused: usize,
    /// Requests that the app saw.
    reached: usize,
    /// Framing that the app may read in another way: two lengths, a bare LF, a second request inside the first.
    ambiguous: usize,
    hangs: usize,
}

pub fn run() -> anyhow::Result<Report> {
    let binary = release_binary()?;
    let folder = tempfile::tempdir()?;
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    certificate(&cert, &key)?;
    let mut table = vec![("Hutong", ours(&binary, &cert, &key)?)];
    for (name, start) in [
        ("nginx", nginx as fn(&Ground<'_>) -> anyhow::Result<_>),
        ("HAProxy", haproxy),
    ] {
        let recorder = Recorder::start()?;
        let rival = start(&Ground {
            folder: folder.path(),
            app: recorder.port,
            cert: &cert,
            key: &key,
            site: folder.path(),
        })?;
        let address = format!("127.0.0.1:{}", rival.plain);
        let seen = || recorder.seen();
        let plain = replay(&address, &seen);
        table.push((name, (plain, replay_h2(rival.tls, &cert, &seen)?)));
    }
    let mut rows = Vec::new();
    for (what, count) in [
        (
            "reached the app",
            (|tally: &Tally| tally.reached) as fn(&Tally) -> usize,
        ),
        ("may be read in two ways", |tally| tally.ambiguous),
        ("never answered", |tally| tally.hangs),
    ] {
        let (plain, secure) = &table[0].1;
        for (protocol, tally) in [("HTTP/1.1", plain), ("HTTP/2", secure)] {
            rows.push(Row {
                name: format!("malformed {protocol} requests of {}: {what}", tally.all),
                ours: count(tally) as f64,
                rival: None,
                unit: "",
                must: 0.0,
                goal: 0.0,
                more_is_better: false,
            });
        }
    }
    let note = |(name, (plain, secure)): &(&str, (Tally, Tally))| {
        let say = |tally: &Tally| {
            format!(
                "{} refused, {} reached the app ({} readable in two ways), {} without an answer",
                tally.refused, tally.reached, tally.ambiguous, tally.hangs
            )
        };
        format!(
            "{name}: of {} over HTTP/1.1 {}; of {} over HTTP/2 {}",
            plain.all,
            say(plain),
            secure.all,
            say(secure)
        )
    };
    Ok(Report {
        rows,
        notes: table.iter().map(note).collect(),
    })
}

fn ours(binary: &Path, cert: &Path, key: &Path) -> anyhow::Result<(Tally, Tally)> {
    let server = Server::start_binary(binary, &["--https", "127.0.0.1:0"]);
    let folder = app_folder(&[
        (
            "hutong.toml",
            "name='recorder'\ncommand='/usr/bin/python3 app.py'\ndomains=['corpus.test']\n[https]\nredirect=false\n[limits]\npids=512",
        ),
        ("app.py", RECORDER),
    ]);
    server.deploy(folder.path());
    let (cert_path, key) = (cert.display().to_string(), key.display().to_string());
    server.ok(&["cert", "add", "corpus", "--cert", &cert_path, "--key", &key]);
    let port = server
        .https
        .rsplit(':')
        .next()
        .unwrap_or_default()
        .parse()?;
    let seen = || -> Vec<String> {
        let text = get(&server.http, "corpus.test", "/seen").text();
        serde_json::from_str(&text).expect("a list")
    };
    let plain = replay(&server.http, &seen);
    Ok((plain, replay_h2(port, cert, &seen)?))
}

/// One after another, so that what the app sees is of this one.
fn replay(address: &str, seen: &dyn Fn() -> Vec<String>) -> Tally {
    let mut tally = Tally::default();
    let mut before = seen().len();
    for case in corpus::malformed() {
        let heard = send_and_wait(address, &case.bytes(), 2, PATIENCE);
        let all = seen();
        let new = &all[before.min(all.len())..];
        tally.all += 1;
        let hangs = heard.hangs && heard.statuses.is_empty();
        tally.hangs += usize::from(hangs);
        tally.reached += usize::from(!new.is_empty());
        tally.ambiguous += usize::from(is_ambiguous(new));
        let refused = heard.statuses.first().is_none_or(|status| *status >= 400);
        tally.refused += usize::from(refused && new.is_empty() && !hangs);
        before = all.len();
    }
    tally
}

fn replay_h2(port: u16, root: &Path, seen: &dyn Fn() -> Vec<String>) -> anyhow::Result<Tally> {
    let before = seen().len();
    let found = corpus::replay_h2(port, root);
    let found = found.ok_or_else(|| anyhow::anyhow!("the HTTP/2 client could not run"))?;
    let all = seen();
    let new = &all[before.min(all.len())..];
    let is = |word: &str| found.values().filter(|outcome| **outcome == word).count();
    let answered = |from: u64, to: u64| {
        let status = |outcome: &&serde_json::Value| {
            outcome
                .as_u64()
                .is_some_and(|status| (from..to).contains(&status))
        };
        found.values().filter(status).count()
    };
    Ok(Tally {
        all: found.len(),
        refused: answered(400, 500) + is("reset") + is("goaway") + is("closed"),
        // Of what was answered otherwise, some may have been cut short before the app had it.
        reached: new.iter().filter(|line| !is_remark(line)).count(),
        ambiguous: new
            .iter()
            .filter(|line| is_remark(line) || line.contains("smuggled"))
            .count(),
        hangs: is("hangs"),
    })
}

/// Not a request line: what the recorder has to say about one.
fn is_remark(line: &str) -> bool {
    line.starts_with("bare LF") || line.starts_with("two framings")
}

fn is_ambiguous(new: &[String]) -> bool {
    new.len() > 1
        || new
            .iter()
            .any(|line| is_remark(line) || line.contains("smuggled"))
}

/// The recording server, on the host.
struct Recorder {
    child: Child,
    port: u16,
}

impl Recorder {
    fn start() -> anyhow::Result<Self> {
        let port = free_port()?;
        let child = Command::new("/usr/bin/python3")
            .args(["-c", RECORDER])
            .env("PORT", port.to_string())
            .stdout(Stdio::null())
            .spawn()?;
        eventually("the recorder listens", 10, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Ok(Recorder { child, port })
    }

    /// Asked without a proxy between.
    fn seen(&self) -> Vec<String> {
        let address = format!("127.0.0.1:{}", self.port);
        let request = b"GET /seen HTTP/1.1\r\nHost: corpus.test\r\n\r\n";
        let heard = send(&address, request, 1);
        serde_json::from_slice(&heard.body).expect("a list")
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
