//! `hutong deploy --watch`: deploys, looks at the folder, deploys again after each change. What the app says goes to
//! stdout, everything else to stderr.
//!
//! The folder is looked at from time to time, which works on every file system. What looks different is packed, and the
//! pack's digest decides whether anything has changed.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hutong_api::client::Client;
use hutong_api::{Deployment, DeploymentState, LogLine, Version};
use hutong_core::spec::AppSpec;
use indicatif::ProgressBar;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::{Origin, begin, outcome, served, wait};
use crate::commands::{check, logs, path, stop_signals};
use crate::error::CliError;
use crate::output::{Output, printable};
use crate::pack::{self, Pack};

/// The pause between two looks at the folder.
const LOOK: Duration = Duration::from_millis(500);
/// It is so many times as long as a look takes, at least.
const SHARE: u32 = 20;
/// A change counts once nothing has changed for so long.
const QUIET: Duration = Duration::from_millis(300);
/// How long a folder may change on and on until it is said.
const RESTLESS: Duration = Duration::from_secs(10);
/// The pause before lines are asked for again.
const AGAIN: Duration = Duration::from_millis(500);

/// Ends with 0 while it waits for a change, with 130 if it leaves a deployment alone.
pub async fn run(client: &Client, folder: &Path, output: Output) -> Result<ExitCode, CliError> {
    let mut stop = stop_signals()?;
    // No app's folder, or no server: most likely this is not what was meant.
    if !folder.join("hutong.toml").is_file() {
        check::load(folder)?;
    }
    client.get::<Version>("/v1/version").await?;
    let busy = Cell::new(false);
    let mut rounds = Rounds {
        client,
        folder,
        output,
        busy: &busy,
        spec: None,
        packed: None,
        serving: None,
        failed: false,
        lines: printer(output)?,
        follower: None,
    };
    tokio::select! {
        ended = rounds.go() => ended.map(|()| ExitCode::SUCCESS),
        _ = stop.recv() => {
            if busy.get() {
                output.say("\nbroken off; a deployment that has begun goes on, `hutong status` shows it");
                return Ok(ExitCode::from(130));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

struct Rounds<'a> {
    client: &'a Client,
    folder: &'a Path,
    output: Output,
    /// A deployment is under way.
    busy: &'a Cell<bool>,
    /// The last configuration without mistakes.
    spec: Option<Arc<AppSpec>>,
    /// What was packed last.
    packed: Option<Pack>,
    /// The content that serves, and by which deployment, if it is one of ours.
    serving: Option<(String, u64)>,
    /// The last round came to nothing.
    failed: bool,
    /// Lines to show.
    lines: mpsc::Sender<String>,
    /// Whose lines are shown, and who fetches them.
    follower: Option<(String, JoinHandle<()>)>,
}

impl Rounds<'_> {
    async fn go(&mut self) -> Result<(), CliError> {
        self.spec = check::load(self.folder)
            .ok()
            .map(|(spec, _)| Arc::new(spec));
        // A look comes before its round: what changes meanwhile differs from it.
        let (mut known, _) = self.look().await?;
        self.round(&[]).await;
        let folder = self.folder.display().to_string();
        self.output.say(&format!(
            "watching {} for changes; Ctrl-C ends it",
            printable(&folder)
        ));
        loop {
            let (names, look) = self.change(&known).await?;
            known = look;
            self.round(&names).await;
        }
    }

    /// Deploys, unless the same serves already. `touched`: what looks different; nothing in the first round.
    async fn round(&mut self, touched: &[String]) {
        let (spec, pack) = match self.pack().await {
            Ok(made) => made,
            Err(error) => return self.tell_failure(touched, "not deployed", &error),
        };
        let before = self.packed.as_ref();
        let mut names = before.map_or_else(Vec::new, |before| pack.changes(before));
        if names.is_empty() {
            // As it was when that failed: once more.
            names = touched.to_vec();
        }
        let digest = pack.digest.clone();
        let serving = self.serving.as_ref().filter(|(same, _)| *same == digest);
        if let Some((_, deployment)) = serving {
            if self.failed {
                self.output.say(&format!(
                    "{} → as in deployment {deployment}, which serves",
                    label(&names)
                ));
            } else {
                tracing::debug!("touched, and the same as before");
            }
            self.failed = false;
            self.packed = Some(pack);
            return;
        }
        let began = Instant::now();
        self.busy.set(true);
        let result = self.deploy(&spec, &pack).await;
        self.busy.set(false);
        self.packed = Some(pack);
        let took = began.elapsed().as_secs_f64();
        let deployment = match result {
            Ok(deployment) => deployment,
            Err(error) => {
                // It may have begun all the same.
                self.serving = None;
                return self.tell_failure(&names, "not deployed", &error);
            }
        };
        let id = deployment.id;
        if let Err(error) = outcome(&deployment) {
            if deployment.state == DeploymentState::Superseded {
                // By somebody else's.
                self.serving = None;
            }
            let what = format!("deployment {id} failed after {took:.1} s");
            return self.tell_failure(&names, &what, &error);
        }
        self.failed = false;
        self.serving = Some((digest, id));
        let text = served(self.client, &deployment, self.output).await;
        let text = match (touched.is_empty(), text) {
            (true, Ok(text)) => text,
            (true, Err(_)) => format!("deployment {id} serves"),
            (false, _) => format!(
                "{} → deployment {id} serves after {took:.1} s",
                label(&names)
            ),
        };
        self.output.say(&text);
    }

    fn tell_failure(&mut self, names: &[String], what: &str, error: &CliError) {
        self.failed = true;
        if !names.is_empty() {
            self.output.say(&format!("{} → {what}", label(names)));
        }
        error.print();
    }

    async fn pack(&mut self) -> Result<(Arc<AppSpec>, Pack), CliError> {
        let (spec, _) = check::load(self.folder)?;
        let spec = Arc::new(spec);
        self.spec = Some(spec.clone());
        let (folder, wanted) = (self.folder.to_owned(), spec.clone());
        let pack = aside(move || Pack::new(&folder, &wanted)).await??;
        Ok((spec, pack))
    }

    /// Without bars: the app's lines come meanwhile.
    async fn deploy(&mut self, spec: &AppSpec, pack: &Pack) -> Result<Deployment, CliError> {
        let deployment = begin(
            self.client,
            spec,
            pack,
            Origin::default(),
            false,
            self.output,
        )
        .await?;
        self.follow(&deployment);
        wait(self.client, deployment, &ProgressBar::hidden()).await
    }

    /// Has the lines of the deployment's app shown, from its beginning on.
    fn follow(&mut self, deployment: &Deployment) {
        if let Some((app, task)) = &self.follower {
            if *app == deployment.app {
                return;
            }
            task.abort();
            let text = format!("this is {} now; {app} is left as it is", deployment.app);
            self.output.warn(&text);
        }
        // The server's clock, not ours.
        let since = deployment.created_at.saturating_mul(1000);
        let app = deployment.app.clone();
        let task = follow(self.client.clone(), app.clone(), since, self.lines.clone());
        self.follower = Some((app, tokio::spawn(task)));
    }

    /// Waits until the folder looks different, and has been quiet: what does, and how it looks now.
    async fn change(&self, known: &Look) -> Result<(Vec<String>, Look), CliError> {
        let mut pause = LOOK;
        loop {
            sleep(pause).await;
            let (look, took) = self.look().await?;
            pause = LOOK.max(took * SHARE);
            if look == *known {
                continue;
            }
            let look = self.quiet(look, took).await?;
            let names = difference(known, &look, self.folder);
            // It came and went.
            if !names.is_empty() {
                return Ok((names, look));
            }
        }
    }

    async fn quiet(&self, mut look: Look, mut took: Duration) -> Result<Look, CliError> {
        let began = Instant::now();
        let mut said = false;
        loop {
            sleep(QUIET.max(took * 4)).await;
            let (next, again) = self.look().await?;
            took = again;
            let names = difference(&look, &next, self.folder);
            let Some(name) = names.first() else {
                return Ok(next);
            };
            if !said && began.elapsed() > RESTLESS {
                said = true;
                let name = printable(name);
                self.output.warn(&format!(
                    "{name} changes on and on; it is deployed once that ends, or once .hutongignore lists it"
                ));
            }
            look = next;
        }
    }

    /// How the folder looks, and how long it took to look.
    async fn look(&self) -> Result<(Look, Duration), CliError> {
        let (folder, spec) = (self.folder.to_owned(), self.spec.clone());
        aside(move || {
            let began = Instant::now();
            let mut look = Look::new();
            for path in pack::entries(&folder, spec.as_deref()).flatten() {
                // What a link points at is packed; one that leads nowhere stands for itself.
                let found = std::fs::metadata(&path);
                if let Ok(found) = found.or_else(|_| std::fs::symlink_metadata(&path)) {
                    let mark = Mark {
                        modified: (found.mtime(), found.mtime_nsec()),
                        size: found.size(),
                        inode: found.ino(),
                        mode: found.mode(),
                    };
                    look.insert(path, mark);
                }
            }
            (look, began.elapsed())
        })
        .await
    }
}

/// What is seen of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    modified: (i64, i64),
    size: u64,
    inode: u64,
    mode: u32,
}

type Look = BTreeMap<PathBuf, Mark>;

/// What looks different, by names below `folder`.
fn difference(before: &Look, now: &Look, folder: &Path) -> Vec<String> {
    let paths: BTreeSet<&PathBuf> = before.keys().chain(now.keys()).collect();
    paths
        .into_iter()
        .filter(|path| before.get(*path) != now.get(*path))
        .map(|path| {
            let name = path.strip_prefix(folder).unwrap_or(path);
            name.display().to_string()
        })
        .collect()
}

/// `changed: app.py, 2 more`.
fn label(names: &[String]) -> String {
    match names {
        [] => "changed".to_owned(),
        [name] => format!("changed: {}", printable(name)),
        [name, rest @ ..] => format!("changed: {}, {} more", printable(name), rest.len()),
    }
}

/// Does it on a thread that nobody waits for at the end: Ctrl-C ends us while a large folder is read.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CliError> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .spawn(move || {
            let _ = sender.send(work());
        })
        .map_err(CliError::failed)?;
    receiver
        .await
        .map_err(|_| CliError::failed("the folder could not be read"))
}

/// Shows lines on a thread of its own: Ctrl-C ends us while nobody reads standard output.
fn printer(output: Output) -> Result<mpsc::Sender<String>, CliError> {
    let (sender, mut lines) = mpsc::channel::<String>(1024);
    std::thread::Builder::new()
        .spawn(move || {
            while let Some(line) = lines.blocking_recv() {
                logs::show(&line, false, output);
            }
        })
        .map_err(CliError::failed)?;
    Ok(sender)
}

/// Hands an app's lines on as they come, from `since` (microseconds since 1970) on; where the stream breaks, because
/// control was restarted for instance, it goes on behind the newest.
async fn follow(client: Client, app: String, mut since: u64, lines: mpsc::Sender<String>) {
    let place = path(&["apps", &app, "logs"]);
    // How many lines of the time `since` were handed on.
    let mut known = 0;
    loop {
        let query = format!("{place}?lines=100000&follow=true&since={since}");
        if let Ok(mut body) = client.stream(&query).await {
            let mut skip = known;
            let mut rest = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                if let Some(data) = frame.data_ref() {
                    rest.extend_from_slice(data);
                }
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    let line = String::from_utf8_lossy(&line[..end]).into_owned();
                    let Ok(record) = serde_json::from_str::<LogLine>(&line) else {
                        continue;
                    };
                    if record.t > since {
                        (since, known, skip) = (record.t, 0, 0);
                    }
                    if record.t == since && skip > 0 {
                        skip -= 1;
                        continue;
                    }
                    if record.t == since {
                        known += 1;
                    }
                    if lines.send(line).await.is_err() {
                        return;
                    }
                }
            }
        }
        sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_named() {
        let mark = |size| Mark {
            modified: (1, 2),
            size,
            inode: 3,
            mode: 0o644,
        };
        let look = |files: &[(&str, u64)]| -> Look {
            let files = files.iter();
            files
                .map(|(path, size)| (PathBuf::from(path), mark(*size)))
                .collect()
        };
        let before = look(&[("./a", 1), ("./b/c", 1), ("./same", 1)]);
        let now = look(&[("./a", 2), ("./new", 1), ("./same", 1)]);
        let names = difference(&before, &now, Path::new("."));
        assert_eq!(names, ["a", "b/c", "new"]);
        assert_eq!(label(&names), "changed: a, 2 more");
        assert_eq!(label(&names[..1]), "changed: a");
        assert!(difference(&now, &now, Path::new(".")).is_empty());
    }
}
