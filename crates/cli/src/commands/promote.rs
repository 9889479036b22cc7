//! `hutong promote APP [VARIANT]`.

use hutong_api::Deployment;

use super::{Server, deploy, path};
use crate::error::CliError;

#[derive(clap::Args)]
pub struct Args {
    /// The app's name
    app: String,
    /// Of an A/B test: the variant that you mean; another one is refused
    variant: Option<String>,
}

pub async fn run(args: &Args, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let mut place = path(&["apps", &args.app, "promote"]);
    if let Some(variant) = &args.variant {
        // Escaped like a path segment; `path` adds a prefix that is cut off again.
        place.push_str("?variant=");
        place.push_str(path(&[variant]).trim_start_matches("/v1/"));
    }
    let deployment: Deployment = client.post(&place, &()).await?;
    let deployment = deploy::watch(&client, deployment).await?;
    deploy::show_result(&client, &deployment, server.output).await
}
