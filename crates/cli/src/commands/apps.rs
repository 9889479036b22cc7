//! `hutong apps`.

use hutong_api::{App, Version};
use hutong_core::units::show_size;

use super::{Server, url};
use crate::error::CliError;

pub async fn run(server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let apps: Vec<App> = client.get("/v1/apps").await?;
    let version: Version = client.get("/v1/version").await?;
    let columns = ["name", "state", "release", "instances", "memory", "url"];
    server.output.table(&apps, &columns, |app| {
        let healthy = app
            .instances
            .iter()
            .filter(|i| i.state == "healthy")
            .count();
        vec![
            app.name.clone(),
            app.state.to_string(),
            app.release
                .map_or("-".into(), |release| release.to_string()),
            if app.kind == "static" {
                "static".into()
            } else {
                format!("{healthy}/{}", app.wanted_instances)
            },
            if app.memory_limit_bytes == 0 {
                "-".into()
            } else {
                format!(
                    "{}/{}",
                    show_size(app.memory_bytes),
                    show_size(app.memory_limit_bytes)
                )
            },
            app.domains
                .first()
                .map_or("-".into(), |domain| url(domain, &version.http)),
        ]
    });
    if apps.is_empty() && !server.output.json {
        server
            .output
            .say("no app yet; deploy one: hutong deploy FOLDER");
    }
    Ok(())
}
