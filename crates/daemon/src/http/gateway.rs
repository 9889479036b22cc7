//! What the gateway does, and whom it does not let in.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use hutong_api::{Ban, Gateway, NewBan, Problem, Route, Target};
use hutong_core::networks;
use hutong_ipc::gateway::{Banned, Nudge, RouteStatus, Status, TargetStatus};
use hutong_runtime::processes::now_ms;

use super::{ApiError, Result};
use crate::{Control, lock};

/// The gateway answers at once, or is being restarted.
const PATIENCE: Duration = Duration::from_secs(2);
const LONGEST_S: u64 = 10 * 365 * 86_400;

/// Listeners, routes with their counters, and targets.
#[utoipa::path(get, path = "/v1/gateway", responses((status = 200, body = Gateway), (status = 503, body = Problem)))]
pub async fn status(State(control): State<Arc<Control>>) -> Result<Json<Gateway>> {
    let (sender, answer) = tokio::sync::oneshot::channel();
    lock(&control.status_asked).push(sender);
    let absent = || ApiError::new(503, "the gateway does not answer");
    control.certs.send(Nudge::Status).map_err(|_| absent())?;
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    let status = answer.ok().and_then(std::result::Result::ok);
    let mut shown = shown(&control, status.ok_or_else(absent)?);
    shown.bans = bans(State(control.clone())).await?.0;
    shown.certificates = super::certs::list(State(control)).await?.0;
    Ok(Json(shown))
}

fn shown(control: &Control, status: Status) -> Gateway {
    let mut listeners = vec![format!("http://{}", control.http)];
    listeners.extend(control.https.iter().map(|https| format!("https://{https}")));
    Gateway {
        listeners,
        version: status.version,
        uptime_s: status.uptime_s,
        connections: status.connections,
        refused_connections: status.refused_connections,
        routes: status.routes.into_iter().map(route).collect(),
        targets: status.targets.into_iter().map(target).collect(),
        bans: Vec::new(),
        certificates: Vec::new(),
    }
}

fn route(status: RouteStatus) -> Route {
    let [none, informational, success, redirection, client, server] = status.answers;
    Route {
        app: status.app,
        host: status.host,
        prefix: status.prefix,
        requests: status.answers.iter().sum(),
        unanswered: none + informational,
        answers_2xx: success,
        answers_3xx: redirection,
        answers_4xx: client,
        answers_5xx: server,
        bytes: status.bytes,
        p50_us: status.p50_us,
        p99_us: status.p99_us,
        histogram: status.histogram,
    }
}

fn target(status: TargetStatus) -> Target {
    Target {
        app: status.app,
        instance: status.instance,
        role: status.role,
        healthy: status.healthy,
        ejected: status.ejected,
        in_flight: status.in_flight,
        queued: status.queued,
        weight: status.weight,
    }
}

/// Addresses that are not let in, by the owner or by an app's rule.
#[utoipa::path(get, path = "/v1/bans", responses((status = 200, body = Vec<Ban>)))]
pub async fn bans(State(control): State<Arc<Control>>) -> Result<Json<Vec<Ban>>> {
    let list = control.store.bans()?;
    let list = list.into_iter().map(|ban| Ban {
        ip: ban.ip.to_string(),
        app: ban.app,
        until: ban.until_s * 1000,
        reason: ban.reason,
    });
    Ok(Json(list.collect()))
}

/// Lets an address in no more, at any app.
#[utoipa::path(post, path = "/v1/bans", request_body = NewBan, responses((status = 200), (status = 422, body = Problem)))]
pub async fn ban(State(control): State<Arc<Control>>, Json(new): Json<NewBan>) -> Result<()> {
    let ip = address(&new.ip)?;
    if !(1..=LONGEST_S).contains(&new.seconds) {
        return Err(ApiError::bad("a ban is for a second to ten years"));
    }
    let ban = Banned {
        app: None,
        ip,
        until_s: now_ms() / 1000 + new.seconds,
        reason: new.reason.chars().take(200).collect(),
    };
    control.store.ban(std::slice::from_ref(&ban))?;
    // One that does not hear it now asks for all when it is back.
    let _ = control.certs.send(Nudge::Bans(vec![ban]));
    Ok(())
}

/// Lets an address in again, everywhere.
#[utoipa::path(delete, path = "/v1/bans/{ip}", params(("ip" = String, Path)), responses((status = 200), (status = 404, body = Problem)))]
pub async fn lift(State(control): State<Arc<Control>>, Path(ip): Path<String>) -> Result<()> {
    let ip = address(&ip)?;
    let _ = control.certs.send(Nudge::Lift { ip });
    if !control.store.lift(ip)? {
        return Err(ApiError::not_found(format!("{ip} is not banned")));
    }
    Ok(())
}

fn address(text: &str) -> Result<IpAddr> {
    let parsed = text.parse::<IpAddr>();
    let wrong = |_| ApiError::bad(format!("`{text}` is no IP address"));
    Ok(networks::client(parsed.map_err(wrong)?))
}
