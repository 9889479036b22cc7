//! `hutong start APP` and `hutong stop APP`.

use hutong_api::App;

use super::{Server, path};
use crate::error::CliError;

pub async fn run(app: &str, verb: &str, server: &Server) -> Result<(), CliError> {
    let app: App = server
        .client()?
        .post(&path(&["apps", app, verb]), &())
        .await?;
    if server.output.json {
        server.output.value(&app);
    } else {
        server
            .output
            .text(&format!("{} is {}", app.name, app.state));
    }
    Ok(())
}
