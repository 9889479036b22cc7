//! Puts snapshots back: the controller stops an app whose data is to be another ([`crate::store::App::restoring`]), this waits
//! until nothing of it runs, has the warden exchange the data, and lets the app go on. Whoever of us is killed meanwhile: what
//! is written down is done again from the beginning.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hutong_ipc::fail;
use hutong_runtime::client::{Driver, DriverError};

use crate::store::{Goal, StoreError};
use crate::{Control, lock};

/// How often it is looked whether an app has stopped, or a copy is done.
const LOOK: Duration = Duration::from_millis(100);
/// Between two tries to write an outcome down: the disk may be full.
const PAUSE: Duration = Duration::from_secs(2);

/// What is thrown away is deleted in the background: so long until it is looked whether that was enough.
const GOES: Duration = Duration::from_secs(30);

/// Until the process ends.
pub async fn run(control: Arc<Control>) {
    let mut passes = control.passes.subscribe();
    loop {
        let ours = control.clone();
        let looked = tokio::task::spawn_blocking(move || look(&ours)).await;
        match looked {
            Ok(Ok(true)) => tokio::time::sleep(LOOK).await,
            Ok(Ok(false)) => {
                // Whoever wants one put back has the controller look.
                if passes.changed().await.is_err() {
                    return;
                }
            }
            Ok(Err(error)) => {
                tracing::warn!("snapshots: {error}");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                tracing::error!("snapshots: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// True while there is something to wait for.
fn look(control: &Control) -> Result<bool, StoreError> {
    let apps = control.store.restoring()?;
    for app in &apps {
        go_on(control, app)?;
    }
    Ok(!apps.is_empty())
}

fn go_on(control: &Control, name: &str) -> Result<(), StoreError> {
    let Some(app) = control.store.app(name)? else {
        return Ok(());
    };
    let Some(id) = app.restoring else {
        return Ok(());
    };
    if app.goal == Goal::Removed {
        return end(control, name, id, Some("the app was removed"));
    }
    // What is in quarantine stays as it is.
    if app.isolated || runs(control, name) {
        return Ok(());
    }
    match control.warden.restore(name, id) {
        Ok(()) => {
            fail::point("restored");
            end(control, name, id, None)
        }
        Err(DriverError::Refused(why)) => end(control, name, id, Some(&why)),
        // It goes on, or the warden is away.
        Err(_) => Ok(()),
    }
}

/// Whether anything of an app runs, or may run.
fn runs(control: &Control, app: &str) -> bool {
    let Ok(mut all) = control.warden.list() else {
        return true;
    };
    if control.settings.docker.is_some() {
        match control.docker.list() {
            Ok(containers) => all.extend(containers),
            Err(_) => return true,
        }
    }
    all.iter().any(|one| one.app == app && !one.build)
}

/// Written down until it is: without that, it would be done again.
fn end(control: &Control, app: &str, id: u64, problem: Option<&str>) -> Result<(), StoreError> {
    while let Err(error) = control.store.end_restore(app, id, problem) {
        tracing::error!("{error}");
        std::thread::sleep(PAUSE);
    }
    let text = match problem {
        None => format!("snapshot {id} of /data was put back"),
        Some(why) => format!("snapshot {id} of /data was not put back: {why}"),
    };
    control.logs.note(app, "", &text);
    {
        let mut observed = lock(&control.observed);
        observed.failures.remove(app);
        observed.workers.retain(|(of, _), _| of != app);
    }
    control.wake.notify_one();
    Ok(())
}

/// Makes room on a full disk: the oldest first, one at a time, because its room is free only after a while; the newest of each
/// app never, nor what the data were before a row of tries that failed.
pub fn shed(control: &Control) {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let is_soon = lock(&LAST).is_some_and(|last| last.elapsed() < GOES);
    if is_soon || control.has_disk().is_ok() {
        return;
    }
    let Ok(apps) = control.store.apps() else {
        return;
    };
    let mut old = Vec::new();
    // One that is being put back is wanted.
    for app in apps.into_iter().filter(|app| app.restoring.is_none()) {
        let found = control.warden.snapshots(&app.name).unwrap_or_default();
        // What the data were before a row of tries that failed goes last of all: never by itself.
        let first = control.store.first_try(&app.name).unwrap_or_default();
        let ids = found.iter().map(|one| one.id);
        let kept = ids.filter(|id| first > 0 && *id >= first).min();
        let older = found.into_iter().skip(1);
        let older = older.filter(|one| Some(one.id) != kept);
        old.extend(older.map(|one| (one.created_ms, app.name.clone(), one.id)));
    }
    old.sort();
    for (_, app, id) in old {
        match control.warden.drop_snapshot(&app, id) {
            Ok(()) => {
                tracing::warn!("the disk is full: snapshot {id} of {app} is thrown away");
                *lock(&LAST) = Some(Instant::now());
                return;
            }
            // Something is being copied, or what was thrown away before is not gone yet.
            Err(DriverError::Later(_)) => return,
            Err(_) => {}
        }
    }
}
