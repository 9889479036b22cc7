//! `hutong ban list|add|lift`.

use hutong_api::{Ban, NewBan};
use hutong_core::units;
use serde_json::Value;

use super::{Server, path};
use crate::error::CliError;
use crate::output::until;

#[derive(clap::Subcommand)]
pub enum Verb {
    /// List addresses that are not let in
    List,
    /// Let an address in no more, at any app
    #[command(after_help = "Example:
  hutong ban add 203.0.113.7 --for 1d --reason \"scrapes prices\"")]
    Add {
        /// IPv6: the whole /64
        ip: String,
        /// For how long
        #[arg(long = "for", value_name = "TIME", default_value = "1h")]
        time: String,
        /// For people who read the list
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Let an address in again
    Lift { ip: String },
}

pub async fn run(verb: Verb, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    match verb {
        Verb::List => {
            let list: Vec<Ban> = client.get("/v1/bans").await?;
            let columns = ["address", "app", "ends", "reason"];
            server.output.table(&list, &columns, |ban| {
                vec![
                    ban.ip.clone(),
                    ban.app.clone().unwrap_or_else(|| "all".into()),
                    until(ban.until),
                    ban.reason.clone(),
                ]
            });
        }
        Verb::Add { ip, time, reason } => {
            let seconds = units::parse_time(&time).map_err(CliError::usage)?.as_secs();
            let new = NewBan {
                ip: ip.clone(),
                seconds,
                reason,
            };
            client.post::<_, Value>("/v1/bans", &new).await?;
            server.output.say(&format!("{ip} is not let in for {time}"));
        }
        Verb::Lift { ip } => {
            client.delete::<Value>(&path(&["bans", &ip])).await?;
            server.output.say(&format!("{ip} is let in again"));
        }
    }
    Ok(())
}
