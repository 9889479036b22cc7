//! `hutong gateway`.

use hutong_api::{Gateway, Route, Target};

use super::Server;
use crate::error::CliError;
use crate::output::{Output, until};

pub async fn run(server: &Server) -> Result<(), CliError> {
    let gateway: Gateway = server.client()?.get("/v1/gateway").await?;
    show(&gateway, server.output);
    Ok(())
}

fn show(gateway: &Gateway, output: Output) {
    if output.json {
        return output.value(gateway);
    }
    let uptime = std::time::Duration::from_secs(gateway.uptime_s);
    output.text(&format!(
        "{}\n{} connections{}, routes {}, up {}\n",
        gateway.listeners.join("  "),
        gateway.connections,
        match gateway.refused_connections {
            0 => String::new(),
            count => format!(" ({count} refused: too many of one address)"),
        },
        gateway.version,
        hutong_core::units::show_time(uptime)
    ));
    let columns = [
        "route", "app", "requests", "2xx", "3xx", "4xx", "5xx", "p50", "p99",
    ];
    output.table(&gateway.routes, &columns, route);
    output.text("");
    let columns = ["target", "role", "health", "under way", "waiting", "weight"];
    output.table(&gateway.targets, &columns, target);
    let soonest = gateway
        .certificates
        .iter()
        .filter_map(|one| one.not_after)
        .min();
    output.text(&format!(
        "\n{} certificates{}, {} addresses banned",
        gateway.certificates.len(),
        soonest.map_or(String::new(), |at| format!(
            " (the first ends {})",
            until(at)
        )),
        gateway.bans.len()
    ));
}

fn route(route: &Route) -> Vec<String> {
    let prefix = if route.prefix == "/" {
        ""
    } else {
        &route.prefix
    };
    vec![
        format!("{}{prefix}", route.host),
        route.app.clone(),
        route.requests.to_string(),
        route.answers_2xx.to_string(),
        route.answers_3xx.to_string(),
        route.answers_4xx.to_string(),
        route.answers_5xx.to_string(),
        time(route.p50_us),
        time(route.p99_us),
    ]
}

fn target(target: &Target) -> Vec<String> {
    let health = match (target.healthy, target.ejected) {
        (false, _) => "not healthy",
        (true, true) => "fails often",
        (true, false) => "healthy",
    };
    vec![
        target.instance.clone(),
        target.role.clone(),
        health.into(),
        target.in_flight.to_string(),
        target.queued.to_string(),
        target.weight.to_string(),
    ]
}

fn time(us: Option<u64>) -> String {
    match us {
        None => "-".into(),
        Some(us) if us < 1000 => format!("<{us} µs"),
        Some(us) => format!("<{} ms", us / 1000),
    }
}
