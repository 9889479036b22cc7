//! `hutong status APP`.

use hutong_api::{App, Version};
use hutong_core::units::show_size;

use super::{Server, path, url};
use crate::error::CliError;
use crate::output::{ago, printable};

pub async fn run(name: &str, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let app: App = client.get(&path(&["apps", name])).await?;
    let output = server.output;
    if output.json {
        output.value(&app);
        return Ok(());
    }
    let version: Version = client.get("/v1/version").await?;
    let release = app.release.map_or("none".into(), |r| r.to_string());
    output.text(&format!("{}: {}, release {release}", app.name, app.state));
    if let Some(message) = &app.message {
        output.text(&format!("  {}", printable(message)));
    }
    for domain in &app.domains {
        output.text(&format!("  {}", url(domain, &version.http)));
    }
    for warning in &app.warnings {
        output.text(&format!("  warning: {warning}"));
    }
    if let Some(deploying) = &app.deploying {
        let doing = deploying.doing.as_deref().unwrap_or("waiting");
        output.text(&format!(
            "  deploying release {}: {doing}",
            deploying.release
        ));
    }
    if !app.instances.is_empty() {
        let columns = [
            "instance", "state", "release", "started", "memory", "detail",
        ];
        output.table(&app.instances, &columns, |instance| {
            vec![
                instance.id.clone(),
                instance.state.clone(),
                instance.release.map_or("-".into(), |r| r.to_string()),
                ago(instance.started_at),
                format!(
                    "{}/{}",
                    show_size(instance.memory_bytes),
                    show_size(app.memory_limit_bytes)
                ),
                instance.detail.clone().unwrap_or_default(),
            ]
        });
    }
    Ok(())
}
