//! The line to control: it says when there is a new snapshot; we say what we serve and what we see.
//! Without it, the last snapshot is served on.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hutong_ipc::gateway::{Banned, Event, Nudge, Role, Serve, Snapshot, Trial};
use hutong_ipc::{channel, fail};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

use crate::limits::Ban;
use crate::probe::Probes;
use crate::table::Table;
use crate::tls::Unkept;
use crate::{News, Shared, admin};

/// Events on their way to control; what does not fit is told when it asks again.
const MAX_EVENTS: usize = 1024;
/// How often control is told what nobody asks for.
const LOOK: std::time::Duration = std::time::Duration::from_secs(1);
/// How long control may take to hear something.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

fn table_path(folder: &Path) -> PathBuf {
    folder.join("gateway").join("snapshot.json")
}

fn is_missing(found: &io::Result<Vec<u8>>) -> bool {
    matches!(found, Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Follows new snapshots without control's line, for a gateway that drains: its last requests may wait
/// for an instance that is only now being started.
pub async fn follow(shared: &Shared) {
    // Replaced by rename: another file, whatever its time says.
    let written = || {
        let found = std::fs::metadata(table_path(&shared.run_dir)).ok()?;
        Some((
            std::os::unix::fs::MetadataExt::ino(&found),
            found.modified().ok(),
        ))
    };
    let mut last = None;
    loop {
        let now = written();
        if now != last {
            last = now;
            if let Err(reason) = load(shared) {
                tracing::warn!("{reason}");
            }
            // Nobody probes here any more; control knows from the gateway that does.
            let table = shared.table.load();
            for (role, target) in table.apps.iter().flat_map(|app| &app.targets) {
                if *role == Role::Active {
                    target.healthy.store(true, Ordering::SeqCst);
                }
            }
            shared.version.send_replace(table.version);
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Reads the snapshot file and makes it the table of all workers; its version.
pub fn load(shared: &Shared) -> Result<u64, String> {
    let mut path = table_path(&shared.run_dir);
    fail::point("table read");
    let mut found = std::fs::read(&path);
    if is_missing(&found) {
        // After a boot, until control has published: what served before it.
        path = table_path(&shared.data_dir);
        found = std::fs::read(&path);
    }
    if is_missing(&found) {
        // A new server: nothing was published yet.
        return Ok(0);
    }
    let text = found.map_err(|error| format!("{}: {error}", path.display()))?;
    let snapshot: Snapshot =
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let version = snapshot.version;
    let table = Table::build(snapshot, &shared.table.load(), &shared.data_dir);
    fail::point("table built");
    shared.table.store(Arc::new(table));
    fail::point("table stored");
    shared.version.send_replace(version);
    Ok(version)
}

/// Why the line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// SIGTERM.
    Told,
    /// SIGUSR1: another gateway serves from the same sockets.
    Replaced,
}

/// Runs until SIGTERM or SIGUSR1.
///
/// `predecessors` are pidfds of gateways that still have requests: until they are gone nothing is
/// said to be drained. `ready` is told when this gateway serves.
pub async fn run(
    shared: Arc<Shared>,
    listener: UnixListener,
    predecessors: Vec<OwnedFd>,
    mut news: News,
    mut ready: impl std::io::Write,
) -> Result<End, String> {
    let failed = |error: io::Error| error.to_string();
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut replaced = signal(SignalKind::user_defined1()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    // The warden waits for this where a gateway before us is to be told to finish. Our signals are heard.
    let _ = ready.write_all(&[1]);
    let (events, mut heard) = tokio::sync::mpsc::channel(MAX_EVENTS);
    let mut line = ControlLine {
        probes: Probes::new(shared.clone(), events),
        shared,
        stream: None,
        input: Vec::new(),
        drained: Vec::new(),
        alone: predecessors.is_empty(),
    };
    let mut gone = std::pin::pin!(all_gone(predecessors));
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    line.probes.follow(&line.shared.table.load());
    let shared = line.shared.clone();
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(End::Told),
            _ = replaced.recv() => return Ok(End::Replaced),
            _ = interrupt.recv() => {}
            Ok((stream, _)) = listener.accept() => line.greet(stream).await,
            Some(event) = heard.recv() => line.say(&event).await,
            Some(app) = news.wishes.recv() => line.say(&Event::Wanted { app }).await,
            _ = look.tick() => {
                line.report_used().await;
                line.report_idle().await;
                line.report_in_flight().await;
                line.report_trials().await;
            }
            Some((app, ban)) = news.bans.recv() => {
                let Ban { ip, until_s, reason } = ban;
                let app = Some(app);
                line.say(&Event::Banned(Banned { app, ip, until_s, reason })).await;
            }
            () = shared.drained.notified() => line.report_drained().await,
            () = &mut gone, if !line.alone => {
                line.alone = true;
                line.report_drained().await;
            }
            readable = readable(line.stream.as_ref()) => {
                if readable.is_err() || !line.hear().await {
                    line.stream = None;
                }
            }
        }
    }
}

/// Waits until every process of these pidfds has ended.
async fn all_gone(processes: Vec<OwnedFd>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let has_ended = |process: &OwnedFd| {
        let mut polled = [PollFd::new(process, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    };
    while !processes.iter().all(has_ended) {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// SIGTERM.
pub async fn terminated() {
    match signal(SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

async fn readable(stream: Option<&UnixStream>) -> io::Result<()> {
    match stream {
        Some(stream) => stream.readable().await,
        None => std::future::pending().await,
    }
}

struct ControlLine {
    shared: Arc<Shared>,
    probes: Probes,
    stream: Option<UnixStream>,
    input: Vec<u8>,
    /// Draining targets that were reported, and the version they drained under.
    drained: Vec<(String, u64)>,
    /// No gateway before this one has requests any more.
    alone: bool,
}

impl ControlLine {
    /// A new connection takes the place of the old one: control was restarted.
    async fn greet(&mut self, stream: UnixStream) {
        let known =
            channel::peer(&stream).is_ok_and(|(_, uid)| uid == self.shared.control_uid || uid == 0);
        if known {
            self.stream = Some(stream);
            self.input.clear();
            self.drained.clear();
        }
    }

    async fn say(&mut self, event: &Event) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        fail::point("tell control");
        let sent = match channel::encode(event) {
            // One that does not listen must not keep us from hearing signals.
            Ok(frame) => tokio::time::timeout(PATIENCE, stream.write_all(&frame))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            Err(error) => Err(error),
        };
        if sent.is_err() {
            self.stream = None;
        }
    }

    /// Reads what control said; false when it is gone or talks nonsense.
    async fn hear(&mut self) -> bool {
        let Some(stream) = &mut self.stream else {
            return false;
        };
        let mut chunk = [0; 4096];
        match stream.try_read(&mut chunk) {
            Ok(0) => return false,
            Ok(count) => self.input.extend_from_slice(&chunk[..count]),
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
        while let Some(header) = self.input.first_chunk::<4>() {
            let Ok(length) = channel::frame_length(*header) else {
                return false;
            };
            if self.input.len() < 4 + length {
                break;
            }
            let nudge = channel::decode(&self.input[4..4 + length]);
            self.input.drain(..4 + length);
            match nudge {
                Ok(Nudge::Reload) => self.reload().await,
                Ok(Nudge::Certificate { name, pem }) => {
                    let kept = self.shared.tls.keep(&name, &pem);
                    self.say_certificates(&name, kept).await;
                }
                Ok(Nudge::Forget { name }) => {
                    let gone = self.shared.tls.forget(&name);
                    let gone = gone.map_err(Unkept::Refused);
                    self.say_certificates(&name, gone).await;
                }
                Ok(Nudge::Challenges(list)) => {
                    if let Err(reason) = self.shared.tls.challenge(&list) {
                        tracing::error!("a challenge: {reason}");
                    }
                    self.say(&Event::Challenged).await;
                }
                Ok(Nudge::Bans(list)) => admin::ban(&self.shared, list),
                Ok(Nudge::Lift { ip }) => admin::lift(&self.shared, ip),
                Ok(Nudge::Status) => {
                    let status = Box::new(admin::status(&self.shared));
                    self.say(&Event::Status(status)).await;
                }
                Err(_) => return false,
            }
        }
        true
    }

    async fn say_certificates(&mut self, name: &str, outcome: Result<(), Unkept>) {
        if let Err(why) = outcome {
            let passing = matches!(why, Unkept::Unwritten(_));
            let (Unkept::Refused(reason) | Unkept::Unwritten(reason)) = why;
            let name = name.to_owned();
            let event = Event::BadCertificate {
                name,
                reason,
                passing,
            };
            self.say(&event).await;
        }
        let held = self.shared.tls.held();
        self.say(&Event::Certificates(held)).await;
    }

    async fn reload(&mut self) {
        match self.load() {
            Ok(version) => {
                self.say(&Event::Serving { version }).await;
                for event in self.probes.known() {
                    self.say(&event).await;
                }
                self.report_used().await;
                self.report_drained().await;
                let held = self.shared.tls.held();
                self.say(&Event::Certificates(held)).await;
            }
            Err(reason) => self.say(&Event::Rejected { reason }).await,
        }
    }

    fn load(&mut self) -> Result<u64, String> {
        let version = load(&self.shared)?;
        self.probes.follow(&self.shared.table.load());
        Ok(version)
    }

    /// Says which apps fell asleep although somebody is there: who came at that very moment.
    async fn report_used(&mut self) {
        let table = self.shared.table.load_full();
        for app in table.apps.iter().filter(|app| app.serve == Serve::Asleep) {
            let activity = app.activity.as_ref();
            if activity.is_some_and(|one| one.is_used() && one.is_to_be_told()) {
                let app = app.name.clone();
                self.say(&Event::Wanted { app }).await;
            }
        }
    }

    /// Says which apps may fall asleep. What a gateway before us still serves is not known here.
    async fn report_idle(&mut self) {
        if !self.alone {
            return;
        }
        let table = self.shared.table.load_full();
        let is_idle = |app: &&std::sync::Arc<crate::table::App>| {
            let activity = app.activity.as_ref();
            app.serve != Serve::Asleep && activity.is_some_and(|activity| activity.is_idle())
        };
        let idle = table.apps.iter().filter(is_idle);
        let apps: Vec<String> = idle.map(|app| app.name.clone()).collect();
        // Each message has a bound.
        for apps in apps.chunks(1000) {
            let apps = apps.to_vec();
            let in_flight = BTreeMap::new();
            self.say(&Event::Idle { apps, in_flight }).await;
        }
    }

    /// Says how much those apps have to do whose instances follow it. What a gateway before us still serves is not known
    /// here.
    async fn report_in_flight(&mut self) {
        if !self.alone {
            return;
        }
        let table = self.shared.table.load_full();
        let scaling = table.apps.iter().filter(|app| app.scales);
        let counts: Vec<(String, u64)> = scaling
            .map(|app| (app.name.clone(), app.in_flight() as u64))
            .collect();
        // Each message has a bound.
        for counts in counts.chunks(1000) {
            let apps = Vec::new();
            let in_flight = counts.iter().cloned().collect();
            self.say(&Event::Idle { apps, in_flight }).await;
        }
    }

    /// Says how releases on trial do. What a gateway before us still serves is not counted.
    async fn report_trials(&mut self) {
        let table = self.shared.table.load_full();
        let trials: Vec<(String, Trial)> = table
            .apps
            .iter()
            .filter_map(|app| Some((app.name.clone(), app.trial.as_ref()?.report())))
            .collect();
        // Each message has a bound.
        for trials in trials.chunks(1000) {
            let trials = trials.iter().cloned().collect();
            self.say(&Event::Trials(trials)).await;
        }
    }

    /// Says which draining targets have no request left under the current table.
    async fn report_drained(&mut self) {
        if !self.alone {
            return;
        }
        let table = self.shared.table.load_full();
        let draining: Vec<String> = table
            .apps
            .iter()
            .flat_map(|app| &app.targets)
            .filter(|(role, target)| {
                *role == Role::Draining && target.in_flight.load(Ordering::SeqCst) == 0
            })
            .map(|(_, target)| target.instance.clone())
            .collect();
        self.drained
            .retain(|(instance, _)| draining.contains(instance));
        for instance in draining {
            let report = (instance.clone(), table.version);
            if !self.drained.iter().any(|(known, _)| *known == instance) {
                self.drained.push(report);
                let event = Event::Drained {
                    instance,
                    version: table.version,
                };
                self.say(&event).await;
            }
        }
    }
}
