//! Quarantine: an app is cut off and frozen, and what is known of it is packed for a person to look at.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use flate2::write::GzEncoder;
use hutong_api::{App, Isolation, Problem};
use hutong_runtime::processes::now_ms;

use super::{ApiError, Result, apps};
use crate::logs::{Only, Query};
use crate::{Control, lock};

/// How long it may take until everything is frozen.
const PATIENCE: Duration = Duration::from_secs(5);
/// The gateway hands over its access records five times a second; the last ones are the ones of interest.
const RECORDS: Duration = Duration::from_millis(300);
/// Lines of each log that are packed.
const LINES: usize = 50_000;

/// Cuts an app off within a second: no request reaches it, nothing goes out of it, its processes are frozen.
#[utoipa::path(post, path = "/v1/apps/{app}/isolate", responses((status = 200, body = Isolation), (status = 404, body = Problem)))]
pub async fn isolate(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Isolation>> {
    apps::find(&control, &name)?;
    control.store.isolate(&name, true)?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut passes = control.passes.subscribe();
    control.wake.notify_one();
    loop {
        let (frozen, moving) = instances(&control, &name);
        let is_cut = {
            let observed = lock(&control.observed);
            observed.gateway_version >= observed.published_version
                && matches!(
                    observed.serving.get(&name),
                    Some(hutong_core::plan::Serve::Down { reason, .. }) if reason == "the app is isolated"
                )
        };
        if (moving.is_empty() && is_cut) || tokio::time::Instant::now() >= deadline {
            return Ok(Json(Isolation {
                app: name,
                frozen,
                moving,
                is_cut,
            }));
        }
        let _ = tokio::time::timeout(Duration::from_millis(50), passes.changed()).await;
    }
}

/// Those that are frozen, and those that are not.
fn instances(control: &Control, app: &str) -> (Vec<String>, Vec<String>) {
    let observed = lock(&control.observed);
    let mine = observed.instances.values().filter(|i| i.app == app);
    let (frozen, moving): (Vec<_>, Vec<_>) = mine.partition(|i| i.frozen);
    let names = |list: Vec<&hutong_ipc::warden::Instance>| {
        list.iter().map(|i| i.instance.clone()).collect()
    };
    (names(frozen), names(moving))
}

/// Lifts the quarantine: the processes go on, and requests reach them.
#[utoipa::path(post, path = "/v1/apps/{app}/release", responses((status = 200, body = App), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn release(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<App>> {
    if !apps::find(&control, &name)?.isolated {
        return Err(ApiError::conflict(format!("{name} is not isolated")));
    }
    control.store.isolate(&name, false)?;
    apps::next_pass(&control).await;
    apps::show(State(control), Path(name)).await
}

/// Evidence of an app, as a tar.gz: its logs, its state, its releases, its processes with their open files and
/// sockets. No environment and no stored variable is among it.
#[utoipa::path(get, path = "/v1/apps/{app}/evidence", responses((status = 200, body = Vec<u8>, content_type = "application/gzip"), (status = 404, body = Problem)))]
pub async fn evidence(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Response> {
    let app = apps::find(&control, &name)?;
    let Json(shown) = apps::show(State(control.clone()), Path(name.clone())).await?;
    tokio::time::sleep(RECORDS).await;
    let packed = tokio::task::spawn_blocking(move || pack(&control, &app, &shown));
    let packed = packed
        .await
        .map_err(|error| ApiError::new(500, error.to_string()))??;
    let file = format!("attachment; filename=\"{name}-evidence.tar.gz\"");
    let headers = [
        (CONTENT_TYPE, "application/gzip".to_owned()),
        (CONTENT_DISPOSITION, file),
    ];
    Ok((headers, packed).into_response())
}

fn pack(control: &Control, app: &crate::store::App, shown: &App) -> Result<Vec<u8>> {
    let name = &app.name;
    let found = control.examine(name)?;
    control.logs.ingest();
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    // Command lines and output may show what variables hold.
    let secrets = Secrets::new(control.store.env(name)?);
    let mut add = |path: &str, content: &[u8]| -> std::io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now_ms() / 1000);
        archive.append_data(&mut header, format!("{name}/{path}"), content)
    };
    let failed = |error: std::io::Error| ApiError::new(500, error.to_string());
    add("app.json", &secrets.json(shown)).map_err(failed)?;
    for evidence in &found {
        let path = format!("{}/processes.json", evidence.instance);
        add(&path, &secrets.json(&evidence.processes)).map_err(failed)?;
        add(
            &format!("{}/processes.txt", evidence.instance),
            table(evidence, &secrets).as_bytes(),
        )
        .map_err(failed)?;
        for (table, text) in &evidence.tables {
            let path = format!("{}/net/{table}", evidence.instance);
            add(&path, text.as_bytes()).map_err(failed)?;
        }
    }
    for kind in ["app", "access"] {
        let query = Query {
            kind,
            lines: LINES,
            since: None,
            only: Only::All,
        };
        let (lines, _) = control.logs.last(name, &query);
        let text = secrets.hide(&lines.join("\n"));
        add(&format!("{kind}.log"), text.as_bytes()).map_err(failed)?;
    }
    for release in control.store.releases(name)? {
        let path = format!("releases/{}.toml", release.number);
        add(&path, secrets.hide(&release.spec).as_bytes()).map_err(failed)?;
    }
    let runs = control.store.runs(name, 1000)?;
    let runs: Vec<hutong_api::Run> = runs.iter().map(super::runs::to_wire).collect();
    add("runs.json", &secrets.json(&runs)).map_err(failed)?;
    let mut packed = archive.into_inner().map_err(failed)?;
    packed.flush().map_err(failed)?;
    packed.finish().map_err(failed)
}

/// The values of an app's variables, which are not to be in the bundle. Very short ones are no secrets, and stand for too
/// much else.
struct Secrets(Vec<String>);

impl Secrets {
    fn new(values: Vec<(String, String)>) -> Self {
        let mut all: Vec<String> = Vec::new();
        for (_, value) in values {
            // As it stands in JSON, and each line of what has several.
            let quoted = serde_json::to_string(&value).unwrap_or_default();
            all.push(quoted.trim_matches('"').to_owned());
            all.extend(value.lines().map(str::to_owned));
            all.push(value);
        }
        all.retain(|value| value.len() >= 4);
        // One may be the beginning of another.
        all.sort_by_key(|value| std::cmp::Reverse(value.len()));
        all.dedup();
        Secrets(all)
    }

    fn hide(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for value in &self.0 {
            text = text.replace(value.as_str(), "***");
        }
        text
    }

    /// As JSON text: strings only, so that it stays JSON.
    fn json(&self, value: &impl serde::Serialize) -> Vec<u8> {
        let mut value = serde_json::to_value(value).unwrap_or_default();
        self.hide_in(&mut value);
        serde_json::to_vec_pretty(&value).unwrap_or_default()
    }

    fn hide_in(&self, value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => *text = self.hide(text),
            serde_json::Value::Array(list) => list.iter_mut().for_each(|one| self.hide_in(one)),
            serde_json::Value::Object(map) => map.values_mut().for_each(|one| self.hide_in(one)),
            _ => {}
        }
    }
}

/// Without what would make another line of it, or drive a terminal.
fn plain(text: &str) -> String {
    let mark = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(mark).collect()
}

/// The processes as a person reads them.
fn table(evidence: &hutong_ipc::warden::Evidence, secrets: &Secrets) -> String {
    let plain = |text: &str| plain(&secrets.hide(text));
    let mut text = String::from("PID  INSIDE  PARENT  UID  STATE  THREADS  KB  COMMAND\n");
    for one in &evidence.processes {
        text.push_str(&format!(
            "{}  {}  {}  {}  {}  {}  {}  {}\n",
            one.pid,
            one.inner_pid,
            one.parent,
            one.uid,
            one.state,
            one.threads,
            one.memory_kb,
            plain(&one.command)
        ));
        for file in &one.files {
            text.push_str(&format!("    {}\n", plain(file)));
        }
    }
    if !evidence.complete {
        text.push_str("There was more than is shown.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_hidden_wherever_they_stand() {
        let pair = |value: &str| ("K".to_owned(), value.to_owned());
        let values = [
            "pass",
            "password123",
            "yes",
            "8080",
            "first line\nsecond \"line\"",
        ];
        let secrets = Secrets::new(values.map(pair).to_vec());
        assert_eq!(
            secrets.hide("x --token password123 yes"),
            "x --token *** yes"
        );
        assert_eq!(secrets.hide("got second \"line\""), "got ***");
        let body = serde_json::json!({ "pass": "my pass", "port": 8080, "list": ["first line\nsecond \"line\""] });
        let text = secrets.json(&body);
        let read: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON still");
        let wanted = serde_json::json!({ "pass": "my ***", "port": 8080, "list": ["***"] });
        assert_eq!(read, wanted);
    }
}
