//! `hutong build cancel|clear|secrets|set-secret|unset-secret`.

use std::collections::BTreeMap;

use hutong_api::{BuildSecret, Deployment, EnvChange};

use super::{Server, path};
use crate::error::CliError;
use crate::output::ago;

#[derive(clap::Subcommand)]
pub enum Verb {
    /// End the build of an app that is under way, or waits; what served before serves on
    Cancel {
        /// The app's name
        app: String,
    },
    /// Throw away what builds of an app keep for the next one: packages that were fetched
    Clear {
        /// The app's name
        app: String,
    },
    /// List the names of the secrets that builds of an app are given
    Secrets {
        /// The app's name
        app: String,
    },
    /// Give builds of an app a secret: the file /run/secrets/NAME, while they run and nowhere else
    #[command(after_help = "Examples:
  hutong build set-secret shop NPM_TOKEN < token.txt")]
    SetSecret {
        /// The app's name
        app: String,
        /// The secret's name; its value is read from standard input
        name: String,
    },
    /// Take a secret away from builds of an app
    UnsetSecret {
        /// The app's name
        app: String,
        /// The secret's name
        name: String,
    },
}

pub async fn run(verb: Verb, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let output = server.output;
    match verb {
        Verb::Cancel { app } => {
            let place = path(&["apps", &app, "build", "cancel"]);
            let ended: Deployment = client.post(&place, &()).await?;
            output.result(&ended, &format!("the build of {app} is cancelled"));
        }
        Verb::Clear { app } => {
            let place = path(&["apps", &app, "build", "cache"]);
            client.delete::<()>(&place).await?;
            output.say(&format!("builds of {app} fetch everything anew"));
        }
        Verb::Secrets { app } => {
            let place = path(&["apps", &app, "build", "secrets"]);
            let secrets: Vec<BuildSecret> = client.get(&place).await?;
            output.table(&secrets, &["name", "set"], |secret| {
                vec![secret.name.clone(), ago(secret.updated_at)]
            });
        }
        Verb::SetSecret { app, name } => {
            let value = std::io::read_to_string(std::io::stdin()).map_err(CliError::failed)?;
            let value = value.trim_end_matches(['\n', '\r']).to_owned();
            let set = BTreeMap::from([(name, value)]);
            let unset = Vec::new();
            let place = path(&["apps", &app, "build", "secrets"]);
            client
                .post::<_, ()>(&place, &EnvChange { set, unset })
                .await?;
            output.say("stored; it counts from the next build");
        }
        Verb::UnsetSecret { app, name } => {
            let place = path(&["apps", &app, "build", "secrets"]);
            let set = BTreeMap::new();
            let unset = vec![name];
            client
                .post::<_, ()>(&place, &EnvChange { set, unset })
                .await?;
            output.say("builds do not get it any more");
        }
    }
    Ok(())
}
