//! A deployment that is waited for, with what its build prints as it comes. Ctrl-C cancels the build; what rolls out
//! already goes on.

use std::time::Duration;

use http_body_util::BodyExt;
use hutong_api::client::Client;
use hutong_api::{Deployment, DeploymentState, LogLine};
use indicatif::ProgressBar;

use super::{spinner, wait};
use crate::commands::path;
use crate::error::CliError;
use crate::output::{Output, printable};

/// How long lines may take that were printed before the end.
const LAST: Duration = Duration::from_millis(400);

/// Waits until a deployment is over.
pub async fn run(
    client: &Client,
    deployment: Deployment,
    output: Output,
) -> Result<Deployment, CliError> {
    let bar = spinner();
    let (app, id) = (deployment.app.clone(), deployment.id);
    let builds = deployment.state == DeploymentState::Building && !output.json;
    let shown = builds.then(|| {
        let lines = show(client.clone(), deployment.clone(), bar.clone(), output);
        tokio::spawn(lines)
    });
    let mut waits = std::pin::pin!(wait(client, deployment, &bar));
    let mut told = false;
    let ended = loop {
        tokio::select! {
            ended = &mut waits => break ended,
            Ok(()) = tokio::signal::ctrl_c(), if !told => {
                told = true;
                let place = path(&["apps", &app, "build", "cancel"]);
                // Another deploy may have taken its place.
                let place = format!("{place}?deployment={id}");
                let cancelled: Result<Deployment, _> = client.post(&place, &()).await;
                if !cancelled.is_ok_and(|ended| ended.id == id) {
                    bar.finish_and_clear();
                    break Err(CliError::failed(
                        "broken off; a deployment that has begun goes on, `hutong status` shows it",
                    ));
                }
            }
        }
    };
    if let Some(mut shown) = shown {
        // The last lines may still be on their way.
        let _ = tokio::time::timeout(LAST, &mut shown).await;
        shown.abort();
    }
    ended
}

/// Shows lines of this deployment's build, above the bar, until it is told to stop.
async fn show(client: Client, deployment: Deployment, bar: ProgressBar, output: Output) {
    let since = deployment.created_at * 1000;
    let own = format!("{}-d{}-s", deployment.app, deployment.id);
    let mut place = path(&["apps", &deployment.app, "logs"]);
    place.push_str(&format!(
        "?lines=1000&follow=true&process=build&since={since}"
    ));
    // Without them the outcome is known all the same.
    let Ok(mut body) = client.stream(&place).await else {
        return;
    };
    let mut rest = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            rest.extend_from_slice(data);
        }
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line = serde_json::from_slice::<LogLine>(&line);
            if let Ok(line) = line.as_ref()
                && line.i.starts_with(&own)
            {
                bar.suspend(|| output.say(&format!("  {}", printable(&line.m))));
            }
        }
    }
}
