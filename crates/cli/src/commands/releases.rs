//! `hutong releases APP`.

use hutong_api::Release;

use super::{Server, path};
use crate::error::CliError;
use crate::output::ago;

pub async fn run(app: &str, server: &Server) -> Result<(), CliError> {
    let releases: Vec<Release> = server
        .client()?
        .get(&path(&["apps", app, "releases"]))
        .await?;
    let columns = ["id", "state", "created", "digest"];
    server.output.table(&releases, &columns, |release| {
        vec![
            release.id.to_string(),
            release.state.to_string(),
            ago(release.created_at),
            release.digest.chars().take(12).collect(),
        ]
    });
    Ok(())
}
