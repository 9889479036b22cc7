//! `hutong rollback APP [RELEASE]`.

use hutong_api::{Deployment, RollbackRequest};

use super::{Server, deploy, path};
use crate::error::CliError;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  hutong rollback shop        to the release before; of a canary: abort it
  hutong rollback shop 3      to release 3")]
pub struct Args {
    /// The app's name
    app: String,
    /// The release; default: the newest earlier one that served
    release: Option<u64>,
}

pub async fn run(args: &Args, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let request = RollbackRequest {
        release: args.release,
    };
    let place = path(&["apps", &args.app, "rollback"]);
    let deployment: Deployment = client.post(&place, &request).await?;
    let deployment = deploy::watch(&client, deployment).await?;
    deploy::show_result(&client, &deployment, server.output).await
}
