//! `hutong source set|show|forget`, and `hutong previews`.

use std::time::Duration;

use hutong_api::{NewSource, Preview, Source, SourceMade};
use hutong_core::units::show_time;
use serde_json::Value;

use super::{Server, path};
use crate::error::CliError;
use crate::output::{ago, printable};

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Fetch, build and deploy whenever the repository's host says that a branch was pushed
    #[command(after_help = "Example:
  hutong source set shop https://github.com/me/shop.git --from github
It prints the address and the secret to enter there. For a private repository, give a token that may read it:
  hutong source set shop https://gitee.com/me/shop.git --from gitee --user me --token-stdin < token")]
    Set {
        app: String,
        /// https://HOST/PATH
        url: String,
        /// Who sends the webhooks: github, gitee, gitlab or gitea
        #[arg(long, value_name = "WHO")]
        from: String,
        /// The user that the token belongs to
        #[arg(long, default_value = "git")]
        user: String,
        /// Read a token for a private repository from standard input
        #[arg(long)]
        token_stdin: bool,
    },
    /// Show where an app is fetched from, and how the last webhook came out
    Show { app: String },
    /// Hear an app's webhooks no more
    Forget { app: String },
}

pub async fn run(verb: Verb, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let output = server.output;
    match verb {
        Verb::Set {
            app,
            url,
            from,
            user,
            token_stdin,
        } => {
            let token = match token_stdin {
                true => {
                    let text = std::io::read_to_string(std::io::stdin());
                    let text = text.map_err(CliError::failed)?;
                    Some(text.trim().to_owned())
                }
                false => None,
            };
            let new = NewSource {
                url,
                vendor: from,
                user,
                token,
            };
            let place = path(&["apps", &app, "source"]);
            let made: SourceMade = client.post(&place, &new).await?;
            let text = format!(
                "webhook  {}\nsecret   {}\nEnter both there, with content type application/json and the event `push`. The secret is not shown again.",
                made.hook, made.secret
            );
            output.result(&made, &text);
        }
        Verb::Show { app } => {
            let source: Source = client.get(&path(&["apps", &app, "source"])).await?;
            let text = format!(
                "{app} is fetched from {} when {} says so at {}\n{} ({}){}{}",
                source.url,
                source.vendor,
                source.hook,
                source.state,
                ago(source.changed_at),
                if source.detail.is_empty() { "" } else { ": " },
                printable(&source.detail)
            );
            output.result(&source, &text);
        }
        Verb::Forget { app } => {
            client
                .delete::<Value>(&path(&["apps", &app, "source"]))
                .await?;
            output.say(&format!("webhooks of {app} are heard no more"));
        }
    }
    Ok(())
}

pub async fn previews(app: &str, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let list: Vec<Preview> = client.get(&path(&["apps", app, "previews"])).await?;
    let columns = ["app", "branch", "host", "ends in"];
    server.output.table(&list, &columns, |preview| {
        vec![
            preview.app.clone(),
            preview.branch.clone(),
            preview.host.clone(),
            show_time(Duration::from_millis(preview.ends_in_ms)),
        ]
    });
    Ok(())
}
