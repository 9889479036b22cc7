//! `hutong variants APP`: both sides of an A/B test, and how they do.

use std::time::Duration;

use hutong_api::{App, CanaryCounts, DeploymentState};
use hutong_core::canary::MAIN;
use hutong_core::units::show_time;
use serde::Serialize;

use super::{Server, path};
use crate::error::CliError;

#[derive(Serialize)]
struct Report {
    app: String,
    deployment: u64,
    /// How long both have been counted; none where nothing is known of it yet.
    elapsed_ms: Option<u64>,
    variants: Vec<Variant>,
}

#[derive(Serialize)]
struct Variant {
    name: String,
    release: Option<u64>,
    /// Of the visitors, in percent.
    share: u32,
    requests: u64,
    errors: u64,
    /// 0 to 1; none of none.
    error_ratio: Option<f64>,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
}

pub async fn run(name: &str, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let app: App = client.get(&path(&["apps", name])).await?;
    let report = report(&app).ok_or_else(|| {
        let hint = match app.canary {
            Some(_) => format!("`hutong status {name}` shows what was on trial last"),
            None => "`hutong deploy --variant NAME` begins one".to_owned(),
        };
        CliError::failed(format!("no A/B test of {name} is under way")).hint(hint)
    })?;
    let output = server.output;
    if output.json {
        output.value(&report);
        return Ok(());
    }
    let columns = [
        "variant", "release", "share", "requests", "failed", "ratio", "p50", "p99",
    ];
    output.table(&report.variants, &columns, |one| {
        vec![
            one.name.clone(),
            one.release
                .map_or("-".into(), |release| release.to_string()),
            format!("{} %", one.share),
            one.requests.to_string(),
            one.errors.to_string(),
            one.error_ratio
                .map_or("-".into(), |ratio| format!("{:.2} %", ratio * 100.0)),
            shown(one.p50_us),
            shown(one.p99_us),
        ]
    });
    let counted = report
        .elapsed_ms
        .map_or("not counted yet".to_owned(), |ms| {
            format!("counted for {}", show_time(Duration::from_millis(ms)))
        });
    let other = report.variants.last().map_or("", |one| one.name.as_str());
    output.text(&format!(
        "{counted}; `hutong promote {name} {other}` or `hutong abort {name}` ends the test"
    ));
    Ok(())
}

/// None if no A/B test is under way.
fn report(app: &App) -> Option<Report> {
    let tried = app.canary.as_ref()?;
    let variant = tried.variant.as_ref()?;
    // One that was promoted has all visitors a moment before it is over.
    if tried.state != DeploymentState::Rolling || tried.share >= 100 {
        return None;
    }
    let stable = 100_u32.saturating_sub(tried.share);
    Some(Report {
        app: app.name.clone(),
        deployment: tried.deployment,
        elapsed_ms: tried.elapsed_ms,
        variants: vec![
            side(MAIN, app.release, stable, tried.stable),
            side(variant, Some(tried.release), tried.share, tried.canary),
        ],
    })
}

fn side(name: &str, release: Option<u64>, share: u32, counts: Option<CanaryCounts>) -> Variant {
    let (requests, errors) = counts.map_or((0, 0), |counts| (counts.requests, counts.errors));
    Variant {
        name: name.to_owned(),
        release,
        share,
        requests,
        errors,
        error_ratio: (requests > 0).then(|| errors as f64 / requests as f64),
        p50_us: counts.and_then(|counts| counts.p50_us),
        p99_us: counts.and_then(|counts| counts.p99_us),
    }
}

fn shown(us: Option<u64>) -> String {
    us.map_or("-".into(), |us| format!("{:.1} ms", us as f64 / 1e3))
}
