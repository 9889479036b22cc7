//! What applying a folder would do: decided before anything is done.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use hutong_api::client::Client;
use hutong_api::{App, Deployment, ReleaseState};
use serde_json::{Value, json};

use crate::app_files::{self, AppFiles};
use crate::commands::path;
use crate::drift::{self, Difference};
use crate::error::CliError;

/// One app of the folder.
pub struct Item {
    /// Its folder or file.
    pub place: PathBuf,
    /// Not known where the file is wrong.
    pub app: Option<String>,
    pub action: Action,
}

pub enum Action {
    /// The server does not have it.
    New(Box<AppFiles>),
    Change(Box<AppFiles>, Box<Difference>),
    /// The same content, but its release never got healthy.
    Again(Box<AppFiles>),
    /// The same content, but the server knows it as another folder's, whose `--prune` would remove it.
    Moved(Box<AppFiles>, String),
    /// The same content, and it is on its way.
    UnderWay(Box<Deployment>),
    /// Nothing is done about it.
    Unchanged,
    /// The file is wrong.
    Wrong(CliError),
    /// The server could not be asked about it.
    Unknown(CliError),
}

impl Action {
    pub fn word(&self) -> &'static str {
        match self {
            Action::New(_) => "new",
            Action::Change(..) => "changed",
            Action::Again(_) => "again",
            Action::Moved(..) => "moved",
            Action::UnderWay(_) => "under-way",
            Action::Unchanged => "unchanged",
            Action::Wrong(_) => "wrong",
            Action::Unknown(_) => "unknown",
        }
    }
}

/// What is to be done, and what is to be removed.
pub struct Plan {
    pub items: Vec<Item>,
    /// Apps that were applied from here and have no file here any more.
    pub gone: Vec<String>,
}

impl Item {
    /// For a person.
    pub fn line(&self) -> String {
        let place = self.place.display();
        let name = match &self.app {
            Some(app) => app.clone(),
            None => place.to_string(),
        };
        let (mark, what) = match &self.action {
            Action::New(_) => ('+', "new".to_owned()),
            Action::Change(_, difference) => ('~', difference.summary()),
            Action::Again(_) => ('~', "tried again: it never got healthy".into()),
            Action::Moved(_, other) => ('~', format!("was applied from {other} before")),
            Action::UnderWay(deployment) => {
                let release = deployment.release;
                ('=', format!("unchanged, release {release} is on its way"))
            }
            Action::Unchanged => ('=', "unchanged".into()),
            Action::Wrong(error) | Action::Unknown(error) => ('!', error.cause().to_owned()),
        };
        format!("{mark} {name}: {what}")
    }

    pub fn json(&self) -> Value {
        let mut value = json!({
            "app": self.app,
            "file": self.place.to_string_lossy(),
            "action": self.action.word(),
        });
        match &self.action {
            Action::Change(_, difference) => {
                value["keys"] = difference.keys_json();
                value["files"] = difference.files_json();
            }
            Action::Wrong(error) | Action::Unknown(error) => value["error"] = error.cause().into(),
            _ => {}
        }
        value
    }
}

/// Reads the folder and asks the server.
///
/// # Errors
/// The folder holds no app, or the server does not answer. What is wrong with one app is in the plan.
pub async fn make(client: &Client, folder: &Path, origin: &str) -> Result<Plan, CliError> {
    let mut read = Vec::new();
    for place in app_files::all_in(folder)? {
        let files = app_files::open(&place);
        read.push((place, files));
    }
    let twice = named_twice(read.iter().filter_map(|(_, files)| {
        let files = files.as_ref().ok()?;
        Some(files.spec.name.as_str())
    }));
    let apps: Vec<App> = client.get("/v1/apps").await?;
    let mut items = Vec::new();
    for (place, files) in read {
        let app = files.as_ref().ok().map(|files| files.spec.name.to_string());
        let action = match files {
            Ok(files) if twice.contains(files.spec.name.as_str()) => {
                Action::Wrong(CliError::bad_file(format!(
                    "{}: more than one file here names the app {}",
                    place.display(),
                    files.spec.name
                )))
            }
            Ok(files) => {
                let known = apps.iter().find(|one| one.name == files.spec.name.as_str());
                let from = known.and_then(|one| one.applied_from.as_deref());
                let elsewhere = from.filter(|from| *from != origin);
                let decided = decide(client, files, elsewhere).await;
                decided.unwrap_or_else(Action::Unknown)
            }
            Err(error) => Action::Wrong(error),
        };
        items.push(Item { place, app, action });
    }
    let named: BTreeSet<&str> = items
        .iter()
        .filter_map(|item| item.app.as_deref())
        .collect();
    let gone = gone(&apps, origin, &named);
    Ok(Plan { items, gone })
}

/// `elsewhere` is the other folder that the app was applied from, if it was.
async fn decide(
    client: &Client,
    files: AppFiles,
    elsewhere: Option<&str>,
) -> Result<Action, CliError> {
    let files = Box::new(files);
    let name = files.spec.name.to_string();
    let Some(there) = drift::wanted(client, &name).await? else {
        return Ok(Action::New(files));
    };
    let difference = drift::difference(client, &files, &there).await?;
    if difference.differs {
        return Ok(Action::Change(files, Box::new(difference)));
    }
    if let Some(other) = elsewhere {
        return Ok(Action::Moved(files, other.to_owned()));
    }
    let mut state = there.state;
    if state == ReleaseState::Deploying {
        let app: App = client.get(&path(&["apps", &name])).await?;
        match app.deploying {
            Some(deployment) if deployment.release == there.release => {
                return Ok(Action::UnderWay(Box::new(deployment)));
            }
            // It is over meanwhile.
            _ => match drift::wanted(client, &name).await? {
                Some(now) => state = now.state,
                None => return Ok(Action::New(files)),
            },
        }
    }
    Ok(match state {
        ReleaseState::Failed => Action::Again(files),
        _ => Action::Unchanged,
    })
}

fn named_twice<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    let twice = counts.into_iter().filter(|(_, count)| *count > 1);
    twice.map(|(name, _)| name.to_owned()).collect()
}

fn gone(apps: &[App], origin: &str, named: &BTreeSet<&str>) -> Vec<String> {
    apps.iter()
        .filter(|app| app.applied_from.as_deref() == Some(origin))
        .filter(|app| !named.contains(app.name.as_str()))
        .map(|app| app.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str, origin: Option<&str>) -> App {
        serde_json::from_value(json!({
            "name": name, "state": "running", "domains": [], "release": 1, "instances": [],
            "kind": "static", "wanted_instances": 0, "memory_bytes": 0, "memory_limit_bytes": 0,
            "deploying": null, "message": null, "warnings": [], "applied_from": origin,
        }))
        .expect("an app")
    }

    #[test]
    fn only_what_came_from_here_and_is_not_here_goes() {
        let apps = [
            app("kept", Some("set:web")),
            app("old", Some("set:web")),
            app("other", Some("set:other")),
            app("deployed", None),
        ];
        let named = BTreeSet::from(["kept"]);
        assert_eq!(gone(&apps, "set:web", &named), ["old"]);
    }

    #[tokio::test]
    async fn a_server_that_fails_is_not_a_wrong_file() {
        let client = drift::tests::asks(|path| match path {
            "/v1/apps" => (200, "[]".into()),
            _ => (503, String::new()),
        });
        let dir = tempfile::tempdir().expect("tempdir");
        let text = "name='a'\nupstream=['http://127.0.0.1:1']";
        std::fs::write(dir.path().join("a.toml"), text).expect("write");
        std::fs::write(dir.path().join("b.toml"), "name=").expect("write");
        let plan = make(&client, dir.path(), "set:web").await;
        let items = plan.map(|plan| plan.items).unwrap_or_default();
        let words: Vec<_> = items.iter().map(|item| item.action.word()).collect();
        assert_eq!(words, ["unknown", "wrong"]);
    }

    #[test]
    fn a_name_that_is_there_twice_is_found() {
        let twice = named_twice(["a", "b", "a"].into_iter());
        assert_eq!(twice, BTreeSet::from(["a".to_owned()]));
    }
}
