//! `hutong external`.

use hutong_api::{External, ExternalTarget};

use super::Server;
use crate::error::CliError;

pub async fn run(server: &Server) -> Result<(), CliError> {
    let list: Vec<External> = server.client()?.get("/v1/external").await?;
    let columns = ["name", "hosts", "targets", "notes"];
    server.output.table(&list, &columns, |one| {
        let targets: Vec<String> = one.targets.iter().map(target).collect();
        vec![
            one.name.clone(),
            one.routes.join(" "),
            targets.join(", "),
            one.notes.join("; "),
        ]
    });
    if list.is_empty() && !server.output.json {
        server
            .output
            .say("no container asks for it; its label is traefik.enable=true");
    }
    Ok(())
}

fn target(target: &ExternalTarget) -> String {
    let ExternalTarget { address, state, .. } = target;
    match (&target.detail, state.as_str()) {
        (_, "healthy") | (None, _) => format!("{address} {state}"),
        (Some(why), _) => format!("{address} {state} ({why})"),
    }
}
