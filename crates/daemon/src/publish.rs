//! The snapshot for the gateway: what is declared and seen, as routes and targets.

use std::collections::BTreeMap;
use std::path::Path;

use hutong_core::plan::{Plan, Role, Serve};
use hutong_core::route;
use hutong_core::spec::{AppSpec, Run};
use hutong_ipc::gateway as wire;
use hutong_runtime::paths::atomic_write;

/// One app's part of the snapshot. `specs` are those of every app, for consents; `own` is the
/// specification of an instance's own release.
pub fn app<'a>(
    spec: &'a AppSpec,
    plan: &Plan,
    static_root: Option<&str>,
    specs: &BTreeMap<String, AppSpec>,
    own: impl Fn(&str) -> Option<&'a AppSpec>,
) -> (wire::App, Vec<String>) {
    let mut warnings = Vec::new();
    let mut routes = Vec::new();
    for domain in &spec.domains {
        match route::holds(specs, spec.name.as_str(), domain) {
            Ok(()) => routes.push(wire::Route {
                host: domain.host.clone(),
                prefix: domain.prefix.clone(),
                strip_prefix: spec.strip_prefix,
            }),
            Err(reason) => warnings.push(reason),
        }
    }
    let serve = match (&plan.serve, static_root) {
        (Serve::Targets, _) => wire::Serve::Targets,
        (Serve::Hold, _) | (Serve::Static, None) => wire::Serve::Hold,
        (Serve::Static, Some(root)) => wire::Serve::Static {
            root: root.to_owned(),
            index: None,
            spa: matches!(spec.run, Run::Static { spa: true, .. }),
        },
        (
            Serve::Down {
                reason,
                retry_after_s,
            },
            _,
        ) => wire::Serve::Down {
            // Visitors need not know what is wrong inside.
            reason: if reason == "the app is stopped" {
                reason.clone()
            } else {
                "the app is not available at the moment".to_owned()
            },
            retry_after_s: *retry_after_s,
        },
    };
    let milliseconds = |time: std::time::Duration| time.as_millis() as u64;
    let targets = plan
        .roles
        .iter()
        .map(|(instance, role)| {
            // Port and health check are those of the instance's own release.
            let spec = own(instance).unwrap_or(spec);
            wire::Target {
                instance: instance.clone(),
                port: spec.port,
                health: wire::Health {
                    path: spec.health.path.clone(),
                    interval_ms: milliseconds(spec.health.interval),
                    timeout_ms: milliseconds(spec.health.timeout),
                    retries: spec.health.retries,
                },
                role: match role {
                    Role::Candidate => wire::Role::Candidate,
                    Role::Active => wire::Role::Active,
                    Role::Draining => wire::Role::Draining,
                },
            }
        })
        .collect();
    let app = wire::App {
        routes,
        serve,
        targets,
        https: wire::Https {
            redirect: spec.https.redirect,
            except: spec.https.except.clone(),
            hsts_s: spec.https.hsts.as_secs(),
        },
        response_timeout_ms: milliseconds(spec.response_timeout),
        // Long enough for a recreate: drain, stop, start.
        hold_timeout_ms: milliseconds(spec.start_timeout + spec.stop_timeout + spec.drain_timeout),
    };
    (app, warnings)
}

/// The snapshot that a control plane before us wrote.
pub fn last(data_dir: &Path, run_dir: &Path) -> wire::Snapshot {
    let read = |folder: &Path| -> Option<wire::Snapshot> {
        let text = std::fs::read(folder.join("gateway/snapshot.json")).ok()?;
        serde_json::from_slice(&text).ok()
    };
    read(run_dir).or_else(|| read(data_dir)).unwrap_or_default()
}

/// Writes it where the gateway reads it, which is in memory, and a copy to disk for the next boot.
pub fn write(
    data_dir: &Path,
    run_dir: &Path,
    snapshot: &wire::Snapshot,
    gid: Option<u32>,
) -> std::io::Result<()> {
    let text = serde_json::to_vec(snapshot)?;
    // The folder lets only the gateway's group in; the file itself may be read by whoever is in.
    let mode = if gid.is_some() { 0o644 } else { 0o600 };
    atomic_write(&run_dir.join("gateway/snapshot.json"), &text, mode)?;
    if let Err(error) = atomic_write(&data_dir.join("gateway/snapshot.json"), &text, mode) {
        // On a full disk apps must still be restarted; the next boot waits for control instead.
        tracing::warn!("the routes are not on disk: {error}");
    }
    Ok(())
}
