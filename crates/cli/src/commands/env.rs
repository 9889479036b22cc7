//! `hutong env set|unset|list`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hutong_api::{Deployment, EnvChange, EnvEntry};

use super::{Server, deploy, path};
use crate::error::CliError;
use crate::output::ago;

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Set variables; the app gets them at once, without losing a request
    #[command(after_help = "Examples:
  hutong env set shop LOG_LEVEL=debug
  hutong env set shop API_KEY < key.txt    a value from standard input does not show in `ps` or the history
  hutong env set shop --file secrets.env   all of a file's")]
    Set {
        /// The app's name
        app: String,
        /// KEY=VALUE, or one KEY whose value is read from standard input
        #[arg(required_unless_present = "file")]
        variables: Vec<String>,
        /// A file of KEY=VALUE lines
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Unset variables
    Unset {
        /// The app's name
        app: String,
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// List the variables' names; values are never shown
    List {
        /// The app's name
        app: String,
    },
}

pub async fn run(verb: Verb, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let (app, change) = match verb {
        Verb::List { app } => {
            let entries: Vec<EnvEntry> = client.get(&path(&["apps", &app, "env"])).await?;
            server
                .output
                .table(&entries, &["key", "source", "set"], |entry| {
                    vec![
                        entry.key.clone(),
                        entry.source.clone(),
                        entry.updated_at.map_or("-".into(), ago),
                    ]
                });
            return Ok(());
        }
        Verb::Set {
            app,
            variables,
            file,
        } => {
            let mut set = match &file {
                Some(file) => variables_in(file)?,
                None => BTreeMap::new(),
            };
            set.extend(variables_of(&variables)?);
            (
                app,
                EnvChange {
                    set,
                    unset: Vec::new(),
                },
            )
        }
        Verb::Unset { app, keys } => {
            let set = BTreeMap::new();
            (app, EnvChange { set, unset: keys })
        }
    };
    let place = path(&["apps", &app, "env"]);
    let started: Option<Deployment> = client.post(&place, &change).await?;
    match started {
        Some(deployment) => {
            let deployment = deploy::watch(&client, deployment).await?;
            deploy::show_result(&client, &deployment, server.output).await
        }
        None => {
            server
                .output
                .say("stored; it counts from the app's next start");
            Ok(())
        }
    }
}

/// Those of a file, as `hutong import` writes them.
fn variables_in(path: &Path) -> Result<BTreeMap<String, String>, CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::bad_file(format!("{}: {error}", path.display())))?;
    let list =
        hutong_import::dotenv::parse(&path.to_string_lossy(), &text).map_err(CliError::bad_file)?;
    let mut set = BTreeMap::new();
    for variable in list {
        let value = variable.value.ok_or_else(|| {
            CliError::bad_file(format!("{}: `{}` has no value", variable.at, variable.key))
        })?;
        set.insert(variable.key, value);
    }
    Ok(set)
}

fn variables_of(variables: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let mut set = BTreeMap::new();
    for variable in variables {
        let (key, value) = match variable.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None if variables.len() == 1 => {
                let text = std::io::read_to_string(std::io::stdin()).map_err(CliError::failed)?;
                (
                    variable.clone(),
                    text.trim_end_matches(['\n', '\r']).to_owned(),
                )
            }
            None => {
                return Err(CliError::usage(format!("`{variable}` is not KEY=VALUE"))
                    .hint("only a single KEY is read from standard input"));
            }
        };
        set.insert(key, value);
    }
    Ok(set)
}
