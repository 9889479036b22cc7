//! `hutong snapshots APP` and `hutong snapshot restore|remove`: an app's data as it was before release commands.

use std::time::Duration;

use hutong_api::{App, Snapshot};
use hutong_core::units::show_size;

use super::{Server, path};
use crate::error::CliError;
use crate::output::ago;

/// How often it is asked whether one is put back.
const LOOK: Duration = Duration::from_millis(200);

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Put a snapshot in the place of an app's data; the app is stopped meanwhile
    #[command(
        after_help = "What was written to /data since the snapshot is gone afterwards. The release stays the same:
where it does not suit the older data, `hutong rollback` first.

Examples:
  hutong snapshots shop
  hutong snapshot restore shop 12"
    )]
    Restore {
        /// The app's name
        app: String,
        /// The snapshot
        id: u64,
    },
    /// Throw a snapshot away
    Remove {
        /// The app's name
        app: String,
        /// The snapshot
        id: u64,
    },
}

pub async fn list(app: &str, server: &Server) -> Result<(), CliError> {
    let place = path(&["apps", app, "snapshots"]);
    let list: Vec<Snapshot> = server.client()?.get(&place).await?;
    let columns = ["id", "release", "taken", "size", "files", "remark"];
    server.output.table(&list, &columns, |one| {
        vec![
            one.id.to_string(),
            one.release
                .map_or_else(|| "-".to_owned(), |release| release.to_string()),
            ago(one.created_at),
            show_size(one.bytes),
            one.files.to_string(),
            remark(one),
        ]
    });
    Ok(())
}

fn remark(one: &Snapshot) -> String {
    let mut remarks = Vec::new();
    if one.changed {
        remarks.push("written while it was copied".to_owned());
    }
    if one.left_out > 0 {
        remarks.push(format!("{} sockets or devices left out", one.left_out));
    }
    remarks.join("; ")
}

pub async fn run(verb: Verb, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    match verb {
        Verb::Remove { app, id } => {
            let place = path(&["apps", &app, "snapshots", &id.to_string()]);
            let _: Option<()> = client.delete(&place).await?;
            server
                .output
                .say(&format!("snapshot {id} of {app} is removed"));
            Ok(())
        }
        Verb::Restore { app, id } => {
            let place = path(&["apps", &app, "snapshots", &id.to_string(), "restore"]);
            let mut shown: App = client.post(&place, &()).await?;
            while shown.restoring == Some(id) {
                tokio::time::sleep(LOOK).await;
                shown = client.get(&path(&["apps", &app])).await?;
            }
            if let Some(why) = &shown.restore_problem {
                return Err(CliError::failed(format!(
                    "snapshot {id} of {app} was not put back: {why}"
                )));
            }
            let text = format!("{app} has the /data of snapshot {id} again");
            server.output.result(&shown, &text);
            Ok(())
        }
    }
}
