//! `hutong upgrade`: the running server becomes the program that was installed in its place.

use std::time::{Duration, Instant};

use hutong_api::{SystemProcess, Version};
use serde_json::Value;

use super::Server;
use crate::error::CliError;

const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run(server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let before: Version = client.get("/v1/version").await?;
    let old = control(&client.get::<Vec<SystemProcess>>("/v1/system").await?);
    client
        .post::<_, Value>("/v1/upgrade", &Value::Null)
        .await
        .map(drop)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if let Ok(list) = client.get::<Vec<SystemProcess>>("/v1/system").await
            && control(&list) != old
        {
            break;
        }
        if Instant::now() > deadline {
            return Err(CliError::failed("the new server does not answer")
                .hint("see what `hutong serve` printed; apps and visitors are not touched"));
        }
    }
    let after: Version = client.get("/v1/version").await?;
    if server.output.json {
        server.output.value(&serde_json::json!({
            "before": before.version, "after": after.version,
        }));
    } else {
        server.output.text(&format!(
            "the server was {} and is {} now; every app ran on",
            before.version, after.version
        ));
    }
    Ok(())
}

/// Pid of the control plane: another one after the change.
fn control(list: &[SystemProcess]) -> Option<i32> {
    let found = list.iter().find(|process| process.role == "control");
    found.map(|process| process.pid)
}
