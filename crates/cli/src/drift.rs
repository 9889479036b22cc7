//! How an app on this machine, the release that the server wants, and what runs there differ from one another.

use std::collections::{BTreeMap, BTreeSet};

use hutong_api::client::{Client, ClientError};
use hutong_api::{App, AppFile, AppState, ReleaseState, TreeFile};
use hutong_core::drift::{Change, changes};
use hutong_core::spec;
use hutong_core::tree::hex;
use serde_json::{Value, json};

use crate::app_files::AppFiles;
use crate::commands::path;
use crate::error::CliError;

/// What a deploy of the files here would change.
#[derive(Default)]
pub struct Difference {
    /// Keys of `hutong.toml`: there → here.
    pub keys: Vec<Change>,
    /// The keys come to the same: a default that is written out, a list in place of a line.
    pub means_the_same: bool,
    /// Other files.
    pub files: Vec<FileChange>,
    /// The server does not have the other files any more.
    pub files_unknown: bool,
    /// The content as a whole is another one.
    pub differs: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub struct FileChange {
    pub path: String,
    /// `changed`, `added` (only here) or `removed` (only there).
    pub change: &'static str,
}

impl Difference {
    /// One line for each, for a person.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        if self.means_the_same && !self.keys.is_empty() {
            lines.push("these come to the same".into());
        }
        lines.extend(self.files.iter().map(|file| match file.change {
            "added" => format!("{} is only here", file.path),
            "removed" => format!("{} is only on the server", file.path),
            _ => format!("{} differs", file.path),
        }));
        if self.files_unknown {
            lines.push(
                "which other files differ is not known: the server does not have them any more"
                    .into(),
            );
        }
        if self.differs && lines.is_empty() {
            lines.push("comments or spacing of hutong.toml differ".into());
        }
        lines
    }

    /// In a few words.
    pub fn summary(&self) -> String {
        const SHOWN: usize = 3;
        let mut words: Vec<String> = self.keys.iter().map(|key| key.key.clone()).collect();
        let more = words.len().saturating_sub(SHOWN);
        words.truncate(SHOWN);
        if more > 0 {
            words.push(format!("{more} more keys"));
        }
        match self.files.len() {
            0 if self.files_unknown => words.push("files".into()),
            0 => {}
            1 => words.push(self.files[0].path.clone()),
            count => words.push(format!("{count} files")),
        }
        match words.is_empty() {
            true => "comments or spacing".into(),
            false => words.join(", "),
        }
    }

    pub fn keys_json(&self) -> Value {
        let keys = self.keys.iter();
        keys.map(|one| json!({ "key": one.key, "before": one.before, "after": one.after }))
            .collect()
    }

    pub fn files_json(&self) -> Value {
        let files = self.files.iter();
        files
            .map(|one| json!({ "path": one.path, "change": one.change }))
            .collect()
    }
}

/// The release that the server wants of an app; none if it has no such app.
pub async fn wanted(client: &Client, app: &str) -> Result<Option<AppFile>, CliError> {
    match client.get(&path(&["apps", app, "file"])).await {
        Ok(file) => Ok(Some(file)),
        Err(ClientError::Refused(problem)) if problem.status == 404 => {
            // It is the app that is not there, or its releases, or the question itself.
            match client.get::<Value>(&path(&["apps", app])).await {
                Ok(_) if problem.detail.ends_with("has no release that is kept") => Ok(None),
                Ok(_) => Err(CliError::failed("the server is too old for this")
                    .hint("install this version there: `hutong upgrade`")),
                Err(ClientError::Refused(problem)) if problem.status == 404 => Ok(None),
                Err(error) => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Compares what is here with the release that is wanted there.
pub async fn difference(
    client: &Client,
    here: &AppFiles,
    there: &AppFile,
) -> Result<Difference, CliError> {
    if here.pack.digest == there.digest {
        return Ok(Difference::default());
    }
    let keys = changes(&there.text, &here.text).map_err(CliError::failed)?;
    let before = spec::parse("hutong.toml", &there.text).ok();
    let place = path(&["trees", &there.digest, "files"]);
    let files: Option<Vec<TreeFile>> = match client.get(&place).await {
        Ok(files) => Some(files),
        Err(ClientError::Refused(problem)) if problem.status == 404 => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Difference {
        means_the_same: before.as_ref() == Some(&here.spec),
        keys,
        files_unknown: files.is_none(),
        files: files.map_or_else(Vec::new, |files| {
            file_changes(&here.pack.contents(), &files)
        }),
        differs: true,
    })
}

/// `hutong.toml` is left out: it is compared by its keys.
fn file_changes(here: &BTreeMap<&str, (bool, [u8; 32])>, there: &[TreeFile]) -> Vec<FileChange> {
    let there: BTreeMap<&str, (bool, &str)> = there
        .iter()
        .map(|file| (file.path.as_str(), (file.executable, file.sha256.as_str())))
        .collect();
    let names: BTreeSet<&str> = here.keys().chain(there.keys()).copied().collect();
    let mut found = Vec::new();
    for name in names.into_iter().filter(|name| *name != "hutong.toml") {
        let change = match (here.get(name), there.get(name)) {
            (Some(_), None) => "added",
            (None, _) => "removed",
            (Some((executable, content)), Some(other)) => {
                if (*executable, hex(content).as_str()) == *other {
                    continue;
                }
                "changed"
            }
        };
        found.push(FileChange {
            path: name.to_owned(),
            change,
        });
    }
    found
}

/// How what runs differs from the release that is wanted, one line each. An app that sleeps or is down by its hours is
/// as it is meant to be.
pub fn running(app: &App, wanted: &AppFile) -> Vec<String> {
    let mut lines = Vec::new();
    let release = wanted.release;
    match app.state {
        AppState::Isolated => lines.push("it is in quarantine".into()),
        AppState::Stopped => lines.push("it was stopped (`hutong stop`)".into()),
        AppState::Failing => {
            let why = app.message.as_deref().unwrap_or("no reason is known");
            lines.push(format!("it fails: {why}"));
        }
        _ => {}
    }
    if wanted.state == ReleaseState::Failed {
        lines.push(format!("release {release} never got healthy"));
    }
    if let Some(deploying) = &app.deploying {
        let doing = deploying.doing.as_deref().unwrap_or("waiting");
        lines.push(format!(
            "release {} is on its way: {doing}",
            deploying.release
        ));
    }
    let spec = spec::parse("hutong.toml", &wanted.text).ok();
    if let (Some(scale), Some(spec)) = (wanted.scale, &spec)
        && scale != spec.instances
    {
        lines.push(format!(
            "{scale} instances were set (`hutong scale`), the file says {}",
            spec.show_instances()
        ));
    }
    if let Some(spec) = &spec {
        let over = wanted
            .variables
            .iter()
            .filter(|key| spec.env.contains_key(*key));
        lines.extend(over.map(|key| {
            format!("the variable {key} was set (`hutong env set`) and stands before the file's")
        }));
    }
    if matches!(
        app.state,
        AppState::Running | AppState::Starting | AppState::Failing
    ) {
        lines.extend(instances(app, release));
    }
    lines.extend(app.warnings.iter().cloned());
    lines
}

fn instances(app: &App, release: u64) -> Vec<String> {
    let mut lines = Vec::new();
    let serving = |one: &&hutong_api::Instance| one.process.is_empty() || one.process == "web";
    let healthy = app
        .instances
        .iter()
        .filter(serving)
        .filter(|one| one.release == Some(release) && one.state == "healthy")
        .count();
    if healthy < app.wanted_instances as usize {
        lines.push(format!(
            "{healthy} of {} instances of release {release} are healthy",
            app.wanted_instances
        ));
    }
    let mut others: BTreeMap<u64, usize> = BTreeMap::new();
    let leaves = |state: &str| matches!(state, "draining" | "stopping");
    for one in app.instances.iter().filter(|one| !leaves(&one.state)) {
        if let Some(number) = one.release.filter(|number| *number != release) {
            *others.entry(number).or_default() += 1;
        }
    }
    for (number, count) in others {
        lines.push(format!("{count} instance(s) of release {number} still run"));
    }
    for process in &app.processes {
        if process.kind == "worker" && process.running < process.wanted {
            lines.push(format!(
                "worker {}: {} of {} run",
                process.name, process.running, process.wanted
            ));
        }
    }
    lines
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use hutong_api::client::Address;

    use super::*;

    /// Asks a server that answers a path with a status and a body.
    pub(crate) fn asks(answer: impl Fn(&str) -> (u16, String) + Send + 'static) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("read") > 0 {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default();
                let (status, body) = answer(path);
                let length = body.len();
                let text = format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                let _ = stream.write_all(text.as_bytes());
            }
        });
        Client::new(Address::Tcp(address), None)
    }

    fn problem(detail: &str) -> (u16, String) {
        let problem =
            json!({ "type": "about:blank", "title": "", "status": 404, "detail": detail });
        (404, problem.to_string())
    }

    #[tokio::test]
    async fn a_server_that_does_not_know_the_question_is_too_old() {
        let old = asks(|path| match path {
            "/v1/apps/a" => (200, "{}".into()),
            _ => problem("there is no such thing in the API"),
        });
        let error = wanted(&old, "a").await.expect_err("too old");
        assert!(error.cause().contains("too old"), "{}", error.cause());
        assert!(wanted(&old, "b").await.expect("an answer").is_none());
        let empty = asks(|path| match path {
            "/v1/apps/a" => (200, "{}".into()),
            _ => problem("a has no release that is kept"),
        });
        assert!(wanted(&empty, "a").await.expect("an answer").is_none());
    }

    #[test]
    fn files_are_compared_by_name_mode_and_content() {
        let content = [1; 32];
        let here = BTreeMap::from([
            ("a", (false, content)),
            ("b", (true, content)),
            ("c", (false, content)),
            ("hutong.toml", (false, [2; 32])),
            ("new", (false, content)),
        ]);
        let file = |path: &str, executable, content: [u8; 32]| TreeFile {
            path: path.into(),
            executable,
            sha256: hex(&content),
        };
        let there = [
            file("a", false, content),
            file("b", false, content),
            file("c", false, [9; 32]),
            file("hutong.toml", false, content),
            file("old", false, content),
        ];
        let found = file_changes(&here, &there);
        let seen: Vec<_> = found
            .iter()
            .map(|one| (one.path.as_str(), one.change))
            .collect();
        assert_eq!(
            seen,
            [
                ("b", "changed"),
                ("c", "changed"),
                ("new", "added"),
                ("old", "removed")
            ]
        );
    }

    fn app() -> (App, AppFile) {
        let app = json!({
            "name": "a", "state": "running", "domains": [], "release": 3, "instances": [
                { "id": "i1", "process": "web", "deployment": 5, "release": 3, "state": "healthy",
                  "started_at": 0, "memory_bytes": 0, "cpu_usec": 0, "detail": null },
            ],
            "kind": "command", "wanted_instances": 1, "memory_bytes": 0, "memory_limit_bytes": 0,
            "deploying": null, "message": null, "warnings": [],
        });
        let file = AppFile {
            app: "a".into(),
            release: 3,
            state: ReleaseState::Active,
            digest: String::new(),
            text: "name='a'\ncommand='x'\nenv={K='v'}".into(),
            stopped: false,
            scale: None,
            variables: vec!["OTHER".into()],
        };
        (serde_json::from_value(app).expect("an app"), file)
    }

    #[test]
    fn what_runs_as_it_should_is_not_mentioned() {
        let (mut app, file) = app();
        assert!(running(&app, &file).is_empty());
        app.state = AppState::Asleep;
        app.instances.clear();
        assert!(running(&app, &file).is_empty());
    }

    #[test]
    fn what_runs_otherwise_is_said() {
        let (mut app, mut file) = app();
        app.wanted_instances = 2;
        app.instances[0].release = Some(2);
        file.scale = Some(2);
        file.variables.push("K".into());
        let lines = running(&app, &file);
        for part in [
            "2 instances were set",
            "variable K",
            "0 of 2 instances of release 3",
            "1 instance(s) of release 2",
        ] {
            assert!(
                lines.iter().any(|line| line.contains(part)),
                "{part}: {lines:?}"
            );
        }
        assert_eq!(lines.len(), 4, "{lines:?}");
        app.state = AppState::Stopped;
        assert!(running(&app, &file)[0].contains("stopped"));
    }

    #[test]
    fn differences_in_words() {
        let one = |key: &str| Change {
            key: key.into(),
            before: None,
            after: Some("1".into()),
        };
        let mut some = Difference {
            keys: ["a", "b", "c", "d"].map(one).into(),
            differs: true,
            ..Difference::default()
        };
        some.files.push(FileChange {
            path: "app.py".into(),
            change: "changed",
        });
        assert_eq!(some.summary(), "a, b, c, 1 more keys, app.py");
        assert_eq!(some.lines().last().expect("a line"), "app.py differs");
        let wording = Difference {
            differs: true,
            ..Difference::default()
        };
        assert_eq!(wording.summary(), "comments or spacing");
        assert_eq!(wording.lines().len(), 1);
    }
}
