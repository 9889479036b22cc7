//! `hutong token create|list|revoke`.

use hutong_api::{NewToken, Token, TokenMade};
use serde_json::Value;

use super::{Server, path};
use crate::error::CliError;
use crate::output::ago;

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Make a token and show it, this once
    #[command(after_help = "Example:
  hutong token create shop --name laptop
  git remote add hutong https://hutong.example.com/git/shop.git
  git push hutong main          (any user name; the token is the password)")]
    Create {
        /// The app, which need not be there yet
        app: String,
        /// For people who read the list
        #[arg(long, default_value = "git")]
        name: String,
        /// It may only read
        #[arg(long)]
        pull: bool,
    },
    /// List an app's tokens; never what they are
    List { app: String },
    /// Make a token good for nothing
    Revoke {
        app: String,
        /// As `hutong token list` shows it
        id: u64,
    },
}

pub async fn run(verb: Verb, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let output = server.output;
    match verb {
        Verb::Create { app, name, pull } => {
            let scope = if pull { "pull" } else { "push" };
            let new = NewToken {
                name,
                scope: scope.to_owned(),
            };
            let place = path(&["apps", &app, "tokens"]);
            let made: TokenMade = client.post(&place, &new).await?;
            if !output.json {
                output.say(&format!(
                    "token {} of {app}; it is not shown again:",
                    made.id
                ));
            }
            output.result(&made, &made.secret);
        }
        Verb::List { app } => {
            let list: Vec<Token> = client.get(&path(&["apps", &app, "tokens"])).await?;
            output.table(&list, &["id", "name", "scope", "made"], |token| {
                vec![
                    token.id.to_string(),
                    token.name.clone(),
                    token.scope.clone(),
                    ago(token.created_at),
                ]
            });
        }
        Verb::Revoke { app, id } => {
            let place = path(&["apps", &app, "tokens", &id.to_string()]);
            client.delete::<Value>(&place).await?;
            output.say(&format!("token {id} of {app} is revoked"));
        }
    }
    Ok(())
}
