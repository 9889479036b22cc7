//! `hutong scale APP N`.

use hutong_api::{App, ScaleRequest};

use super::{Server, path};
use crate::error::CliError;

#[derive(clap::Args)]
pub struct Args {
    /// The app's name
    app: String,
    /// How many instances, 1 to 64; holds until the next deploy
    instances: u32,
}

pub async fn run(args: &Args, server: &Server) -> Result<(), CliError> {
    let request = ScaleRequest {
        instances: args.instances,
    };
    let place = path(&["apps", &args.app, "scale"]);
    let app: App = server.client()?.post(&place, &request).await?;
    if server.output.json {
        server.output.value(&app);
    } else {
        let text = format!(
            "{} is to have {} instance(s)",
            app.name, app.wanted_instances
        );
        server.output.text(&text);
    }
    Ok(())
}
