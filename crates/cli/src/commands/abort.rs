//! `hutong abort APP`.

use hutong_api::{App, Deployment};

use super::{Server, path};
use crate::error::CliError;

pub async fn run(name: &str, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let place = path(&["apps", name, "abort"]);
    let ended: Deployment = client.post(&place, &()).await?;
    let app: App = client.get(&path(&["apps", name])).await?;
    let serves = match app.release {
        Some(release) => format!("release {release} serves on"),
        None => "nothing serves".to_owned(),
    };
    let text = format!(
        "deployment {} of {name} (release {}) is aborted: {serves}",
        ended.id, ended.release
    );
    server.output.result(&ended, &text);
    Ok(())
}
