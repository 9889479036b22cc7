//! `hutong apply DIR`: a folder of apps as a whole. The plan is printed, then done app by app; what fails does not hold
//! the others up.

mod plan;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hutong_api::client::{Client, ClientError};
use hutong_api::{App, Deployment, PlanAnswer};
use hutong_core::tree::hex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Server, deploy, path};
use crate::app_files::AppFiles;
use crate::error::CliError;
use crate::output::{Output, printable};
use crate::terminal;
use plan::{Action, Plan};

#[derive(clap::Args)]
#[command(
    after_help = "An app of DIR is a folder with a hutong.toml (DIR/*/hutong.toml), or a file alone (DIR/*.toml) for an
app without files of its own. Those whose content the server has already are left alone.

--prune removes apps that were last deployed by `hutong apply` of this same folder and are not in it any
more, and no others; their data is kept for seven days. It asks on a terminal and needs --yes elsewhere.
A folder is the same by its path on this machine, or wherever it is by --set NAME. Nothing is
removed while a file of the folder is wrong (it could be that app's), nor once something failed.

Exit codes: 0 all is as the folder says; 1 something failed, the rest was done; 4 only files were wrong.

Examples:
  hutong apply ./apps --dry-run
  hutong apply ./apps --prune
  hutong apply . --set production --prune --yes      in CI, wherever it was checked out"
)]
pub struct Args {
    /// The folder of apps
    folder: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Remove apps that were applied from this folder and are no longer in it
    #[arg(long)]
    prune: bool,
    /// Do not ask before removing
    #[arg(long, requires = "prune")]
    yes: bool,
    /// What the folder is known by; default: this machine's name and the path
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
}

pub async fn run(args: &Args, server: &Server) -> Result<ExitCode, CliError> {
    let client = server.client()?;
    let output = server.output;
    if args.prune && args.set.is_none() && !Machine::read().is_distinct() {
        return Err(CliError::usage(
            "this machine is known by nothing that others have not, so another's folder could be taken for this one",
        )
        .hint("name the folder: --set NAME; nothing was done"));
    }
    let origin = origin(&args.folder, args.set.as_deref())?;
    let Plan { items, mut gone } = plan::make(&client, &args.folder, &origin).await?;
    let is_understood = items
        .iter()
        .all(|item| !matches!(item.action, Action::Wrong(_) | Action::Unknown(_)));
    for item in &items {
        output.say(&printable(&item.line()));
    }
    if !args.prune {
        gone.clear();
    } else if !is_understood && !gone.is_empty() {
        output.warn("nothing is removed while a file is wrong or cannot be compared");
        gone.clear();
    }
    for app in &gone {
        output.say(&format!("- {app}: not in the folder any more"));
    }
    if !gone.is_empty() && !args.dry_run && !args.yes {
        // Before anything is done.
        gone = confirmed(gone)?;
    }
    let mut report = Report::default();
    for item in &items {
        let done = match &item.action {
            Action::Wrong(error) => {
                report.wrong += 1;
                Err(error.cause().to_owned())
            }
            Action::Unknown(error) => Err(error.cause().to_owned()),
            Action::Unchanged => Ok("unchanged".to_owned()),
            Action::UnderWay(begun) if args.dry_run => {
                Ok(format!("would wait for release {}", begun.release))
            }
            Action::UnderWay(begun) => follow(&client, (**begun).clone(), output).await,
            Action::New(files)
            | Action::Change(files, _)
            | Action::Again(files)
            | Action::Moved(files, _) => match args.dry_run {
                true => rehearse(&client, files).await,
                false => deploy_one(&client, files, &origin, output).await,
            },
        };
        let failed = !matches!(item.action, Action::Wrong(_));
        report.add(item.json(), done, failed, output);
    }
    if !gone.is_empty() && report.failed + report.wrong > 0 {
        // What failed may be what was to take the place of one of them.
        output.warn("nothing is removed, because something failed");
        gone.clear();
    }
    for app in &gone {
        let done = match args.dry_run {
            true => Ok("would be removed".to_owned()),
            false => remove(&client, app, &origin).await,
        };
        let value = json!({ "app": app, "file": null, "action": "gone" });
        report.add(value, done, true, output);
    }
    Ok(report.finish(output))
}

/// How it went, app by app.
#[derive(Default)]
struct Report {
    list: Vec<Value>,
    wrong: usize,
    failed: usize,
}

impl Report {
    fn add(
        &mut self,
        mut value: Value,
        done: Result<String, String>,
        counts: bool,
        output: Output,
    ) {
        let name = value["app"].as_str().or(value["file"].as_str());
        let name = printable(name.unwrap_or_default());
        match done {
            Ok(result) => {
                if result != "unchanged" && !output.json {
                    output.text(&format!("{name}: {}", printable(&result)));
                }
                value["result"] = result.into();
            }
            Err(error) => {
                self.failed += usize::from(counts);
                output.warn(&format!("{name}: {}", printable(&error)));
                value["result"] = "failed".into();
                value["error"] = error.into();
            }
        }
        self.list.push(value);
    }

    fn finish(self, output: Output) -> ExitCode {
        if output.json {
            output.value(&self.list);
        }
        match (self.failed, self.wrong) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(4),
            _ => ExitCode::from(1),
        }
    }
}

/// Deploys one app and waits for the outcome: which release serves, or why none does.
async fn deploy_one(
    client: &Client,
    files: &AppFiles,
    origin: &str,
    output: Output,
) -> Result<String, String> {
    let begun = deploy::begin(
        client,
        &files.spec,
        &files.pack,
        deploy::Origin {
            folder: Some(origin),
            ..deploy::Origin::default()
        },
        true,
        output,
    )
    .await;
    match begun {
        Ok(begun) => follow(client, begun, output).await,
        Err(error) => Err(error.cause().to_owned()),
    }
}

/// Waits for the outcome of a deployment.
async fn follow(client: &Client, begun: Deployment, output: Output) -> Result<String, String> {
    let words = |error: CliError| error.cause().to_owned();
    let over = deploy::watch(client, begun).await.map_err(words)?;
    for line in &over.log {
        output.say(&format!("  {}", printable(line)));
    }
    deploy::outcome(&over).map_err(words)?;
    Ok(match &over.variant {
        Some(name) => format!("release {} is the variant {name}", over.release),
        None => format!("release {} serves", over.release),
    })
}

/// The server's own check, without the upload.
async fn rehearse(client: &Client, files: &AppFiles) -> Result<String, String> {
    let asked = deploy::outline(
        client,
        &files.spec,
        files.text.clone(),
        &files.pack,
        None,
        None,
    )
    .await;
    let answer: PlanAnswer = asked.map_err(|error| error.cause().to_owned())?;
    let lines = [answer.steps, answer.warnings].concat();
    Ok(format!("would {}", lines.join("; ")))
}

/// Only what is still this folder's: the plan is as old as its deployments took, and as a person thought about it.
async fn remove(client: &Client, app: &str, origin: &str) -> Result<String, String> {
    let place = path(&["apps", app]);
    match client.get::<App>(&place).await {
        Ok(now) if now.applied_from.as_deref() == Some(origin) => {}
        Ok(_) => return Ok("stays: it was deployed otherwise meanwhile".into()),
        Err(ClientError::Refused(problem)) if problem.status == 404 => {
            return Ok("was removed meanwhile".into());
        }
        Err(error) => return Err(CliError::from(error).cause().to_owned()),
    }
    match client.delete::<()>(&place).await {
        Ok(()) => Ok("removed; its data is kept for 7 days".into()),
        Err(error) => Err(CliError::from(error).cause().to_owned()),
    }
}

/// Those that may be removed: all of them, or none.
fn confirmed(gone: Vec<String>) -> Result<Vec<String>, CliError> {
    if !terminal::is_attended() {
        return Err(
            CliError::usage(format!("--prune would remove {}", gone.join(", ")))
                .hint("add --yes if that is meant; nothing was done"),
        );
    }
    let question = format!("Remove {}? Their data is kept for 7 days.", gone.join(", "));
    match terminal::agrees(&question).map_err(CliError::failed)? {
        true => Ok(gone),
        false => Ok(Vec::new()),
    }
}

/// What the folder is known by on the server: a name, or this machine's name with the path.
fn origin(folder: &Path, set: Option<&str>) -> Result<String, CliError> {
    if let Some(name) = set {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > 100 || !name.chars().all(plain) {
            return Err(CliError::usage("a set's name has letters, digits and ._-"));
        }
        return Ok(format!("set:{name}"));
    }
    let wrong = |error: &dyn std::fmt::Display| {
        CliError::bad_file(format!("{}: {error}", folder.display()))
    };
    let path = folder.canonicalize().map_err(|error| wrong(&error))?;
    let origin = format!("{}:{}", Machine::read().name(), path.to_string_lossy());
    let sound = origin.chars().count() <= 500 && !origin.chars().any(char::is_control);
    match sound {
        true => Ok(origin),
        false => Err(wrong(&"a long or odd path").hint("name the folder: --set NAME")),
    }
}

/// What tells this machine from others.
struct Machine {
    host: String,
    /// machine-id(5): none in most containers.
    id: Option<String>,
}

impl Machine {
    fn read() -> Self {
        let line = |path: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.trim().to_owned()
        };
        let id = line("/etc/machine-id");
        let is_one = id.len() == 32 && id.bytes().all(|c| c.is_ascii_hexdigit());
        Machine {
            host: line("/proc/sys/kernel/hostname"),
            id: is_one.then_some(id),
        }
    }

    /// The id is hashed before others see it, as its manual asks for.
    fn name(&self) -> String {
        match &self.id {
            Some(id) => {
                let hash = hex(&Sha256::digest(format!("hutong apply {id}").as_bytes()));
                format!("{}/{}", self.host, &hash[..12])
            }
            None => self.host.clone(),
        }
    }

    fn is_distinct(&self) -> bool {
        let general = ["", "(none)", "localhost", "localhost.localdomain"];
        self.id.is_some() || !general.contains(&self.host.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_known_by_its_place_or_its_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let inner = dir.path().join("apps");
        std::fs::create_dir(&inner).expect("mkdir");
        let one = origin(&inner, None).expect("good");
        let other_way = dir.path().join("apps/../apps");
        assert_eq!(one, origin(&other_way, None).expect("good"));
        assert_ne!(one, origin(dir.path(), None).expect("good"));
        assert_eq!(origin(&inner, Some("web")).expect("good"), "set:web");
        for bad in ["", "a b", "a:b"] {
            assert!(origin(&inner, Some(bad)).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_was_deployed_otherwise_meanwhile_stays() {
        let client = crate::drift::tests::asks(|path| {
            let app = json!({
                "name": "a", "state": "running", "domains": [], "release": 1, "instances": [],
                "kind": "static", "wanted_instances": 0, "memory_bytes": 0, "memory_limit_bytes": 0,
                "deploying": null, "message": null, "warnings": [], "applied_from": "set:other",
            });
            match path {
                "/v1/apps/a" => (200, app.to_string()),
                _ => (404, String::new()),
            }
        });
        let stays = remove(&client, "a", "set:web").await.expect("an answer");
        assert!(stays.starts_with("stays"), "{stays}");
        let gone = remove(&client, "b", "set:web").await.expect("an answer");
        assert_eq!(gone, "was removed meanwhile");
    }

    #[test]
    fn machines_of_one_name_are_told_apart() {
        let machine = |host: &str, id: Option<&str>| Machine {
            host: host.into(),
            id: id.map(str::to_owned),
        };
        let (one, two) = ("1".repeat(32), "2".repeat(32));
        let named = machine("localhost", Some(&one));
        assert!(named.is_distinct() && !named.name().contains(&one));
        assert_ne!(named.name(), machine("localhost", Some(&two)).name());
        assert!(!machine("localhost", None).is_distinct());
        assert!(machine("ci-7", None).is_distinct());
    }
}
