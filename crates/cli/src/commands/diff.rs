//! `hutong diff [PATH|APP]`: the file here, the release that the server wants, and what runs.

use std::path::Path;
use std::process::ExitCode;

use hutong_api::{App, AppFile, ReleaseState};
use serde_json::json;

use super::{Server, path};
use crate::app_files::{self, AppFiles};
use crate::drift::{self, Difference};
use crate::error::CliError;
use crate::output::{Output, printable};

/// There are differences: neither a success nor a failure.
const DIFFERS: u8 = 5;

#[derive(clap::Args)]
#[command(
    after_help = "PATH is an app's folder or file: what is here is compared with the release that the server wants,
and that with what runs. With the name of an app only the latter is.

Exit codes: 0 no difference, 5 differences, otherwise it failed.

Examples:
  hutong diff                   the current folder
  hutong diff ./shop --json
  hutong diff shop              does it run as it was deployed?"
)]
pub struct Args {
    /// An app's folder or file, else the name of an app
    #[arg(default_value = ".", value_name = "PATH|APP")]
    what: String,
}

pub async fn run(args: &Args, server: &Server) -> Result<ExitCode, CliError> {
    let client = server.client()?;
    let here = match is_path(&args.what) {
        true => Some(app_files::open(Path::new(&args.what))?),
        false => None,
    };
    let name = match &here {
        Some(here) => here.spec.name.as_str(),
        None => &args.what,
    };
    let Some(there) = drift::wanted(&client, name).await? else {
        return match here {
            Some(_) => Ok(unknown(name, server.output)),
            None => Err(CliError::failed(format!("there is no app {name}"))
                .hint("`hutong apps` lists them; a folder is named ./FOLDER")),
        };
    };
    let difference = match &here {
        Some(here) => drift::difference(&client, here, &there).await?,
        None => Difference::default(),
    };
    let app: App = client.get(&path(&["apps", name])).await?;
    let running = drift::running(&app, &there);
    let same = !difference.differs && running.is_empty();
    if server.output.json {
        server.output.value(&json!({
            "app": name,
            "same": same,
            "release": there.release,
            "digest": there.digest,
            "digest_here": here.as_ref().map(|here| &here.pack.digest),
            "file": difference.keys_json(),
            "means_the_same": difference.means_the_same,
            "files": difference.files_json(),
            "files_unknown": difference.files_unknown,
            "running": running,
        }));
    } else {
        show(&there, here.as_ref(), &difference, &running, server.output);
    }
    Ok(match same {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(DIFFERS),
    })
}

/// What is there as a file is one; a name alone is else an app's.
fn is_path(what: &str) -> bool {
    let path = Path::new(what);
    what.contains('/')
        || matches!(what, "." | "..")
        || path.is_file()
        || path.join("hutong.toml").is_file()
}

fn unknown(name: &str, output: Output) -> ExitCode {
    let line = "the server has no such app";
    let answer = json!({
        "app": name, "same": false, "release": null, "running": [line],
    });
    output.result(&answer, &format!("{name}: {line}"));
    ExitCode::from(DIFFERS)
}

fn show(
    there: &AppFile,
    here: Option<&AppFiles>,
    difference: &Difference,
    running: &[String],
    output: Output,
) {
    let state = match there.state {
        ReleaseState::Active => "which serves",
        ReleaseState::Deploying => "which is on its way",
        ReleaseState::Kept | ReleaseState::Failed => "which does not serve",
    };
    let (app, release) = (&there.app, there.release);
    if here.is_some() {
        let verdict = match difference.differs {
            true => "differs from",
            false => "is the same as",
        };
        output.text(&format!(
            "{app}: what is here {verdict} release {release}, {state}"
        ));
        for line in difference.lines() {
            output.text(&format!("  {}", printable(&line)));
        }
    }
    let verdict = match running.is_empty() {
        true => "runs as it was deployed",
        false => "does not run as it was deployed",
    };
    output.text(&format!("{app}: release {release} {verdict}"));
    for line in running {
        output.text(&format!("  {}", printable(line)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_an_apps_unless_a_file_has_it() {
        assert!(is_path(".") && is_path("./no-such-folder") && is_path("a/b"));
        assert!(!is_path("no-such-folder"));
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("hutong.toml"), "").expect("write");
        assert!(is_path(&dir.path().to_string_lossy()));
    }
}
