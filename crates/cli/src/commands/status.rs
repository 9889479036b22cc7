//! `hutong status APP`.

use std::time::Duration;

use hutong_api::{App, Canary, CanaryCounts, DeploymentState, ImageWatch, Scaling, Version};
use hutong_core::canary::MAIN;
use hutong_core::units::{show_size, show_time};

use super::{Server, path, url};
use crate::error::CliError;
use crate::output::{ago, clock, printable, until};

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
    if let Some(disk) = &app.disk {
        output.text(&format!("  disk: {}", shown(disk)));
    }
    if let Some(deploying) = &app.deploying {
        let doing = deploying.doing.as_deref().unwrap_or("waiting");
        output.text(&format!(
            "  deploying release {}: {doing}",
            deploying.release
        ));
    }
    for line in app.canary.iter().flat_map(canary_lines) {
        output.text(&format!("  {}", printable(&line)));
    }
    if let Some(standby) = &app.standby {
        output.text(&format!(
            "  release {} is ready to serve again for another {}: hutong rollback {}",
            standby.release,
            show_time(Duration::from_millis(standby.left_ms)),
            app.name
        ));
    }
    if let Some(watch) = &app.watch {
        output.text(&format!("  {}", watched(watch)));
    }
    if let Some(scaling) = &app.scaling {
        output.text(&format!("  {}", words(scaling, app.wanted_instances)));
    }
    if !app.instances.is_empty() {
        let columns = [
            "instance", "process", "state", "release", "started", "memory", "detail",
        ];
        output.table(&app.instances, &columns, |instance| {
            vec![
                instance.id.clone(),
                instance.process.clone(),
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
    if !app.processes.is_empty() {
        let columns = ["process", "runs", "when", "next", "last", "detail"];
        output.table(&app.processes, &columns, |process| {
            let last = process.last.as_ref();
            let schedule = process.schedule.as_ref().zip(process.zone.as_ref());
            let failures = match process.failures {
                0 => None,
                1 => process.problem.clone(),
                many => process
                    .problem
                    .as_ref()
                    .map(|problem| format!("{problem} ({many} times in a row)")),
            };
            vec![
                process.name.clone(),
                match process.wanted {
                    0 => process.running.to_string(),
                    wanted => format!("{}/{wanted}", process.running),
                },
                schedule.map_or("always".into(), |(at, zone)| format!("{at} ({zone})")),
                process.next_at.map_or("-".into(), until),
                last.map_or("-".into(), |run| {
                    format!("{}, {}", run.state, ago(run.due_at))
                }),
                failures
                    .or_else(|| last.and_then(|run| run.detail.clone()))
                    .unwrap_or_default(),
            ]
        });
    }
    Ok(())
}

/// The tag that it follows, and how that does.
fn watched(watch: &ImageWatch) -> String {
    let looked = match watch.looked_at {
        Some(at) => format!("looked {}", ago(at)),
        None => "not looked yet".to_owned(),
    };
    let failing = watch.failing_since.map_or(String::new(), |since| {
        let why = watch.problem.as_deref().unwrap_or_default();
        format!(
            ", failing since {} UTC: {why}",
            clock(since.saturating_mul(1000))
        )
    });
    format!("watches {}, {looked}{failing}", watch.image)
}

/// A release on trial, and how it does; of one that is over, what became of it.
fn canary_lines(canary: &Canary) -> Vec<String> {
    let release = canary.release;
    let (test, what) = match &canary.variant {
        Some(name) => (
            "A/B test",
            format!("the variant {name} (release {release})"),
        ),
        None => ("canary", format!("release {release}")),
    };
    let decision = canary.decision.as_deref();
    if canary.state != DeploymentState::Rolling {
        let end = match canary.state {
            DeploymentState::Done => "serves",
            DeploymentState::Superseded => "gave way to a newer one",
            _ => "was given up",
        };
        let why = decision.map_or(String::new(), |why| format!(": {why}"));
        return vec![format!("{test}: {what} {end}{why}")];
    }
    let time = |ms| show_time(Duration::from_millis(ms));
    let lasted = canary.elapsed_ms.map_or("?".to_owned(), time);
    let steps: Vec<String> = canary.steps.iter().map(ToString::to_string).collect();
    if let Some(name) = &canary.variant {
        let share = canary.share;
        let mut lines = vec![format!(
            "{test}: {what} gets {share} % of the visitors, for {lasted}"
        )];
        for (who, counts) in [(name.as_str(), &canary.canary), (MAIN, &canary.stable)] {
            lines.extend(counts.as_ref().map(|counts| figures(who, counts)));
        }
        return lines;
    }
    let mut lines = vec![format!(
        "canary: release {release} gets {} % of the visitors, step {} of {} %, for {lasted} of {}",
        canary.share,
        canary.step,
        steps.join(" → "),
        time(canary.every_ms)
    )];
    for (who, counts) in [("new", &canary.canary), ("stable", &canary.stable)] {
        lines.extend(counts.as_ref().map(|counts| figures(who, counts)));
    }
    lines.extend(canary.waits.as_ref().map(|why| format!("waits: {why}")));
    lines.extend(decision.map(|why| format!("decided last: {why}")));
    lines
}

fn figures(who: &str, counts: &CanaryCounts) -> String {
    if counts.requests == 0 {
        return format!("{who}: no requests counted yet");
    }
    let time = |us: Option<u64>| us.map_or("?".into(), |us| format!("{:.1} ms", us as f64 / 1e3));
    format!(
        "{who}: {} requests, {} failed, 95 of 100 answers within {}, 99 within {}",
        counts.requests,
        counts.errors,
        time(counts.p95_us),
        time(counts.p99_us)
    )
}

/// What an app keeps on disk, in a line.
fn shown(disk: &hutong_api::Disk) -> String {
    let (logs, releases) = (show_size(disk.logs_bytes), show_size(disk.releases_bytes));
    let caches = show_size(disk.caches_bytes);
    let rest = format!("logs {logs}, built releases {releases}, kept for builds {caches}");
    match disk.data_limit_bytes {
        None => rest,
        Some(limit) => {
            let how = if disk.is_enforced { "" } else { ", measured" };
            let (data, limit) = (show_size(disk.data_bytes), show_size(limit));
            format!("/data {data} of {limit}{how}; {rest}")
        }
    }
}

/// How many instances there are to be, and why.
fn words(scaling: &Scaling, wanted: u32) -> String {
    let Scaling {
        min,
        max,
        cpu_aim_percent,
        requests_aim,
        ..
    } = scaling;
    let wanted = match scaling.fixed {
        true => format!("{wanted} instance(s) until the next deploy"),
        false => format!("{wanted} instance(s) wanted, of {min} to {max}"),
    };
    let cpu = scaling.cpu_percent.map_or("?".into(), |n| n.to_string());
    let requests = scaling.requests.map_or("?".into(), |n| n.to_string());
    format!(
        "{wanted}: CPU at {cpu} % of its limit (meant: {cpu_aim_percent} %), {requests} requests under way (meant: {requests_aim} for each)"
    )
}
