//! `hutong promote APP`.

use hutong_api::Deployment;

use super::{Server, deploy, path};
use crate::error::CliError;

pub async fn run(app: &str, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let place = path(&["apps", app, "promote"]);
    let deployment: Deployment = client.post(&place, &()).await?;
    let deployment = deploy::watch(&client, deployment).await?;
    deploy::show_result(&client, &deployment, server.output).await
}
