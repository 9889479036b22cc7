//! `hutong remove APP`.

use super::{Server, path};
use crate::error::CliError;

#[derive(clap::Args)]
pub struct Args {
    /// The app's name
    app: String,
    /// Delete its data now, for good
    #[arg(long)]
    purge: bool,
}

pub async fn run(args: &Args, server: &Server) -> Result<(), CliError> {
    let mut place = path(&["apps", &args.app]);
    if args.purge {
        place.push_str("?purge=true");
    }
    server.client()?.delete::<()>(&place).await?;
    server.output.text(&if args.purge {
        format!("{} and its data are removed", args.app)
    } else {
        format!(
            "{} is removed; its data is kept for 7 days (deploy it again to have it back, or remove --purge)",
            args.app
        )
    });
    Ok(())
}
