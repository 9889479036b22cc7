//! `hutong system`.

use hutong_api::SystemProcess;
use hutong_core::units::show_size;

use super::Server;
use crate::error::CliError;

pub async fn run(server: &Server) -> Result<(), CliError> {
    let list: Vec<SystemProcess> = server.client()?.get("/v1/system").await?;
    let columns = ["role", "pid", "uid", "memory", "app", "instance"];
    server.output.table(&list, &columns, |process| {
        vec![
            process.role.clone(),
            process.pid.to_string(),
            process.uid.to_string(),
            show_size(process.memory_bytes),
            process.app.clone().unwrap_or_default(),
            process.instance.clone().unwrap_or_default(),
        ]
    });
    Ok(())
}
