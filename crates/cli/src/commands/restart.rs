//! `hutong restart APP`.

use hutong_api::Deployment;

use super::{Server, deploy, path};
use crate::error::CliError;

pub async fn run(app: &str, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let deployment: Deployment = client.post(&path(&["apps", app, "restart"]), &()).await?;
    let deployment = deploy::watch(&client, deployment).await?;
    deploy::show_result(&client, &deployment, server.output).await
}
