//! `hutong version`.

use hutong_api::Version;

use super::Server;
use crate::error::CliError;

pub async fn run(server: &Server) -> Result<(), CliError> {
    let own = env!("CARGO_PKG_VERSION");
    let remote: Option<Version> = server.client()?.get("/v1/version").await.ok();
    if server.output.json {
        let remote = remote.map(|version| version.version);
        server
            .output
            .value(&serde_json::json!({ "version": own, "server": remote }));
        return Ok(());
    }
    server.output.text(&format!("hutong {own}"));
    match remote {
        Some(remote) => server.output.text(&format!("server {}", remote.version)),
        None => server.output.say("no server answers"),
    }
    Ok(())
}
