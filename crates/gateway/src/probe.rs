//! Whether targets can serve: real requests on the way that visitors' requests take, and a line to each
//! shim whose end is the instance's end.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hutong_http::response::ResponseHead;
use hutong_ipc::gateway::{Event, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::table::Table;
use crate::target::{Line, Target, connect_to_control};
use crate::{Shared, status};

/// While an instance starts it is asked often: at first every 10 ms, at last every 250.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(250);
/// How soon one that was just started is asked again, and for how long.
const SOON_PAUSE: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(2);

/// Somewhere to tell what happened; bounded, and never waited for.
pub type Events = tokio::sync::mpsc::Sender<Event>;

struct Probe {
    target: Arc<Target>,
    task: JoinHandle<()>,
    /// What was said last, for a control plane that connects later.
    last: Rc<RefCell<Option<Event>>>,
}

/// One task per target of the current table.
pub struct Probes {
    shared: Arc<Shared>,
    events: Events,
    running: HashMap<String, Probe>,
}

impl Probes {
    pub fn new(shared: Arc<Shared>, events: Events) -> Self {
        Probes {
            shared,
            events,
            running: HashMap::new(),
        }
    }

    /// Begins to probe new targets, ends for those that are gone from the table.
    pub fn follow(&mut self, table: &Table) {
        let mut wanted = HashMap::new();
        let hosts = table.hosts();
        for app in &table.apps {
            let host = hosts.get(app.name.as_str()).copied().unwrap_or("localhost");
            for (role, target) in &app.targets {
                let active = *role == Role::Active;
                wanted.insert(target.instance.as_str(), (target, active, host.to_owned()));
            }
        }
        self.running.retain(|instance, probe| {
            let keep = wanted
                .get(instance.as_str())
                .is_some_and(|(target, _, _)| Arc::ptr_eq(target, &probe.target));
            if !keep {
                probe.task.abort();
            }
            keep
        });
        for (instance, (target, was_active, host)) in wanted {
            if self.running.contains_key(instance) {
                continue;
            }
            let last = Rc::new(RefCell::new(None));
            let probing = Probing {
                shared: self.shared.clone(),
                events: self.events.clone(),
                target: target.clone(),
                was_active,
                host,
                last: last.clone(),
            };
            let task = tokio::task::spawn_local(probing.run());
            let target = target.clone();
            let probe = Probe { target, task, last };
            self.running.insert(instance.to_owned(), probe);
        }
    }

    /// What each target's state is now.
    pub fn known(&self) -> Vec<Event> {
        let last = |probe: &Probe| probe.last.borrow().clone();
        self.running.values().filter_map(last).collect()
    }
}

struct Probing {
    shared: Arc<Shared>,
    events: Events,
    target: Arc<Target>,
    /// It served when we first saw it: one bad probe is no news.
    was_active: bool,
    host: String,
    last: Rc<RefCell<Option<Event>>>,
}

impl Probing {
    async fn run(self) {
        if self.target.address.is_some() || self.target.control {
            return self.probe().await;
        }
        let watch = async {
            // The shim listens before the instance is announced; if it does not, it is gone.
            if let Ok(mut line) = Line::open(&self.shared.run_dir, &self.target.instance).await {
                line.closed().await;
            }
        };
        tokio::select! {
            () = watch => {}
            () = self.probe() => {}
        }
        self.target.gone.store(true, Ordering::SeqCst);
        self.wake();
        self.tell(Event::Gone {
            instance: self.target.instance.clone(),
        });
    }

    async fn probe(&self) {
        let mut line = None;
        let mut pause = FIRST_PAUSE;
        let began = std::time::Instant::now();
        let mut failures = 0;
        loop {
            let result = self.once(&mut line).await;
            let healthy = self.target.healthy.load(Ordering::SeqCst);
            match result {
                Ok(()) => {
                    failures = 0;
                    if !healthy {
                        self.set(true, String::new());
                    }
                    pause = Duration::from_millis(self.target.health.interval_ms);
                }
                Err(_)
                    if !healthy && self.was_active && failures + 1 < self.target.health.retries =>
                {
                    failures += 1;
                    pause = LAST_PAUSE;
                }
                Err(detail) if !healthy => {
                    self.set(false, detail);
                    // Somebody may be waiting for it to wake: most programs are up within a second or two.
                    let longest = if began.elapsed() < SOON {
                        SOON_PAUSE
                    } else {
                        LAST_PAUSE
                    };
                    pause = (pause * 3 / 2).min(longest);
                }
                Err(detail) => {
                    failures += 1;
                    if failures >= self.target.health.retries {
                        self.set(false, detail);
                        pause = LAST_PAUSE;
                    }
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn set(&self, healthy: bool, detail: String) {
        if healthy {
            self.target.record.begin();
        }
        self.target.healthy.store(healthy, Ordering::SeqCst);
        self.wake();
        self.tell(Event::Health {
            instance: self.target.instance.clone(),
            healthy,
            detail,
        });
    }

    /// Waiting requests look again.
    fn wake(&self) {
        self.shared.version.send_modify(|_| {});
    }

    fn tell(&self, event: Event) {
        let mut last = self.last.borrow_mut();
        if last.as_ref() != Some(&event) {
            // A full channel loses it; control asks for everything when it connects, and by timer.
            let _ = self.events.try_send(event.clone());
            *last = Some(event);
        }
    }

    async fn once(&self, line: &mut Option<Line>) -> Result<(), String> {
        let timeout = Duration::from_millis(self.target.health.timeout_ms);
        match tokio::time::timeout(timeout, self.ask(line)).await {
            Ok(result) => result,
            Err(_) => Err(format!(
                "no answer within {} ms on port {}",
                self.target.health.timeout_ms, self.target.port
            )),
        }
    }

    async fn ask(&self, line: &mut Option<Line>) -> Result<(), String> {
        let port = self.target.port;
        if self.target.control {
            let stream = connect_to_control(&self.shared.run_dir).await;
            let stream = stream.map_err(|error| format!("control: {error}"))?;
            return self.ask_path(stream).await;
        }
        if let Some(address) = self.target.address {
            let stream = TcpStream::connect(address).await;
            let stream = stream.map_err(|error| format!("{address}: {error}"))?;
            return self.ask_path(stream).await;
        }
        if line.is_none() {
            let opened = Line::open(&self.shared.run_dir, &self.target.instance).await;
            *line = Some(opened.map_err(|error| format!("its shim does not answer: {error}"))?);
        }
        let Some(open) = line else { return Ok(()) };
        let stream = match open.connect(&self.target).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                return Err(format!("nothing listens on port {port}"));
            }
            Err(error) => {
                *line = None;
                return Err(format!("port {port}: {error}"));
            }
        };
        self.ask_path(stream).await
    }

    async fn ask_path(&self, stream: TcpStream) -> Result<(), String> {
        let port = self.target.port;
        let Some(path) = &self.target.health.path else {
            return Ok(());
        };
        let status = ask_status(stream, path, &self.host)
            .await
            .map_err(|error| format!("GET {path} on port {port}: {error}"))?;
        if (200..400).contains(&status) {
            Ok(())
        } else {
            let reason = status::reason(status);
            Err(format!("GET {path} answered {status} {reason}"))
        }
    }
}

/// The status of a GET over a connection of its own.
async fn ask_status(mut stream: TcpStream, path: &str, host: &str) -> Result<u16, String> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: hutong-probe\r\nconnection: close\r\n\r\n"
    );
    let failed = |error: std::io::Error| error.to_string();
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut head = ResponseHead::default();
    let mut input = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut input).await.map_err(failed)? == 0 {
            return Err("the connection ended before an answer".into());
        }
        match head.parse(&input, false) {
            Ok(Some(end)) if head.status < 200 => {
                input.drain(..end);
            }
            Ok(Some(_)) => return Ok(head.status),
            Ok(None) => {}
            Err(why) => return Err(format!("no HTTP: {why}")),
        }
    }
}
