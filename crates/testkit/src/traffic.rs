//! Steady traffic: so many requests a second over keep-alive connections, every answer looked at.
//! Bounded by its own stop.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Report>>,
}

#[derive(Debug, Default)]
pub struct Report {
    pub answered: usize,
    /// Requests sent again, once, because the connection broke before a byte of the answer came: what
    /// every browser does with a GET (RFC 9110 §9.2.2).
    pub sent_again: usize,
    /// What went wrong, and how often.
    pub failed: BTreeMap<String, usize>,
    /// Bodies seen, and how often.
    pub bodies: BTreeMap<String, usize>,
    pub slowest: Duration,
}

impl Report {
    /// A failure that is no answer cut off after it had begun, which is all that a killed gateway or instance
    /// may cost.
    pub fn worse_than_cut(&self) -> Option<&String> {
        let cut = ["failed to fill whole buffer", IN_HEAD];
        self.failed
            .keys()
            .find(|what| !cut.contains(&what.as_str()))
    }
}

impl Traffic {
    /// `rate` requests a second in all, over `connections` connections.
    pub fn start(http: &str, host: &str, path: &str, rate: u32, connections: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let threads = (0..connections)
            .map(|number| {
                let (stop, answered) = (stop.clone(), answered.clone());
                let (http, host, path) = (http.to_owned(), host.to_owned(), path.to_owned());
                let pause = Duration::from_secs_f64(f64::from(connections) / f64::from(rate));
                // Evenly spread: all at once would leave gaps that a whole deploy fits into.
                let first = pause.mul_f64(f64::from(number) / f64::from(connections));
                std::thread::spawn(move || {
                    std::thread::sleep(first);
                    run(&http, &host, &path, pause, &stop, &answered)
                })
            })
            .collect();
        Traffic {
            stop,
            answered,
            threads,
        }
    }

    /// Waits until so many more requests were answered.
    pub fn goes_on(&self, count: usize) {
        let wanted = self.answered.load(Ordering::SeqCst) + count;
        crate::eventually("traffic is answered", 60, || {
            self.answered.load(Ordering::SeqCst) >= wanted
        });
    }

    pub fn finish(self) -> Report {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Report::default();
        for thread in self.threads {
            let one = thread.join().expect("traffic does not panic");
            all.answered += one.answered;
            all.sent_again += one.sent_again;
            all.slowest = all.slowest.max(one.slowest);
            for (key, count) in one.failed {
                *all.failed.entry(key).or_default() += count;
            }
            for (key, count) in one.bodies {
                *all.bodies.entry(key).or_default() += count;
            }
        }
        all
    }
}

fn run(
    http: &str,
    host: &str,
    path: &str,
    pause: Duration,
    stop: &AtomicBool,
    answered: &AtomicUsize,
) -> Report {
    let mut report = Report::default();
    let mut connection = None;
    let mut next = Instant::now();
    // A hundred thousand requests are more than any test means.
    while !stop.load(Ordering::SeqCst) && report.answered < 100_000 {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next += pause;
        let began = Instant::now();
        let mut result = one(&mut connection, http, host, path);
        if let Err(error) = &result
            && is_lost(error)
        {
            connection = None;
            report.sent_again += 1;
            result = one(&mut connection, http, host, path);
        }
        match result {
            Ok((200, body)) => {
                report.answered += 1;
                answered.fetch_add(1, Ordering::SeqCst);
                *report.bodies.entry(body).or_default() += 1;
            }
            Ok((status, body)) => {
                *report.failed.entry(format!("{status} {body}")).or_default() += 1;
            }
            Err(error) => {
                connection = None;
                *report.failed.entry(error.to_string()).or_default() += 1;
            }
        }
        report.slowest = report.slowest.max(began.elapsed());
    }
    report
}

/// The connection ended where an answer should have begun.
fn is_lost(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), ConnectionReset | BrokenPipe) || error.to_string() == NO_ANSWER
}

const IN_HEAD: &str = "the answer ended within its head";
const NO_ANSWER: &str = "the connection ended before an answer";

type Connection = BufReader<TcpStream>;

fn one(
    connection: &mut Option<Connection>,
    http: &str,
    host: &str,
    path: &str,
) -> std::io::Result<(u16, String)> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(http)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            connection.insert(BufReader::new(stream))
        }
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes())?;
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(std::io::Error::other(NO_ANSWER));
    }
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| std::io::Error::other(format!("no status line: {line:?}")))?;
    let mut length = 0;
    let mut close = false;
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::Error::other(IN_HEAD));
        }
        let header = line.trim().to_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        close |= header == "connection: close";
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    if close {
        *connection = None;
    }
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
