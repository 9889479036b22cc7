//! `hutong registry login|logout|list`: who the server is to other registries.

use hutong_api::{RegistryLogin, RegistryPassword};

use super::{Server, path};
use crate::error::CliError;
use crate::output::ago;

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Store a name and a password for a registry; the password is asked for, or read from standard input
    #[command(after_help = "Examples:
  hutong registry login ghcr.io --user me < token.txt
  hutong registry login docker.io --user me    for images without a registry in their name")]
    Login {
        /// The registry's host, as images name it
        host: String,
        #[arg(long)]
        user: String,
    },
    /// Forget a registry's name and password
    Logout {
        /// The registry's host
        host: String,
    },
    /// List the registries that there is a name and a password for; passwords are never shown
    List,
}

pub async fn run(verb: Verb, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    match verb {
        Verb::List => {
            let list: Vec<RegistryLogin> = client.get("/v1/registries").await?;
            server
                .output
                .table(&list, &["host", "user", "set"], |login| {
                    vec![
                        login.host.clone(),
                        login.user.clone(),
                        ago(login.updated_at),
                    ]
                });
            Ok(())
        }
        Verb::Login { host, user } => {
            let text = crate::terminal::secret("Password").map_err(CliError::failed)?;
            let password = text.trim_end_matches(['\n', '\r']).to_owned();
            let login = RegistryPassword { user, password };
            let _: Option<()> = client.post(&path(&["registries", &host]), &login).await?;
            server
                .output
                .say("stored; it counts from the next image that is fetched");
            Ok(())
        }
        Verb::Logout { host } => {
            let _: Option<()> = client.delete(&path(&["registries", &host])).await?;
            server.output.say("forgotten");
            Ok(())
        }
    }
}
