//! The disk: what each app keeps on it, who keeps too much, and the reserve that the platform works on with. Looked at all the
//! time, because nothing else says when it fills up.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hutong_core::spec::AppSpec;
use hutong_core::units::show_size;
use hutong_ipc::warden::DiskUse;
use hutong_runtime::client::Driver;

use crate::{Control, lock};

/// How often the disk's free space is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often apps are measured; less often where it takes long.
const MEASURE: Duration = Duration::from_secs(10);
/// No more than one part in so many of one processor goes into measuring.
const SHARE: u32 = 20;
/// The reserve, where the server file says none: a twentieth of the disk, but no more than this.
const RESERVE: u64 = 1 << 30;

/// What is known of the disk.
#[derive(Default)]
pub struct Disk {
    /// By app.
    pub apps: BTreeMap<String, DiskUse>,
    /// Less is free than is kept in reserve.
    pub low: bool,
}

impl Disk {
    /// Why an app may not run: its `/data`, which nothing but this keeps within bounds, holds too much.
    pub fn over(&self, app: &str, spec: &AppSpec, default: u64) -> Option<String> {
        let bound = spec.disk.unwrap_or(default);
        let used = self.apps.get(app).filter(|_| spec.data)?;
        if used.bound.is_some() || !used.known || used.data <= bound {
            return None;
        }
        Some(format!(
            "its /data holds {}, more than the {} that it may; `hutong run {app} -- COMMAND` can clear it up, `limits.disk` allows more",
            show_size(used.data),
            show_size(bound)
        ))
    }
}

/// Until the process ends.
pub async fn run(control: Arc<Control>) {
    let mut measured: Option<(Instant, Duration)> = None;
    loop {
        let due = measured.is_none_or(|(at, took)| at.elapsed() > MEASURE.max(took * SHARE));
        let ours = control.clone();
        let looked = tokio::task::spawn_blocking(move || {
            watch_reserve(&ours);
            due.then(|| {
                let begun = Instant::now();
                measure(&ours);
                begun.elapsed()
            })
        });
        if let Ok(Some(took)) = looked.await {
            measured = Some((Instant::now(), took));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn measure(control: &Control) {
    let Ok(apps) = control.store.apps() else {
        return;
    };
    let names: Vec<String> = apps.into_iter().map(|app| app.name).collect();
    let mut found = BTreeMap::new();
    // A few at a time: an answer has a bound, and must not take for ever.
    for names in names.chunks(20) {
        match control.warden.disk(names.to_vec()) {
            Ok(list) => found.extend(list.into_iter().map(|one| (one.app.clone(), one))),
            // What was known holds until it is known better.
            Err(_) => return,
        }
    }
    let changes = {
        let mut observed = lock(&control.observed);
        let grew = |(app, one): (&String, &DiskUse)| {
            let before = observed.disk.apps.get(app).map_or(0, |before| before.data);
            before != one.data
        };
        let changes = found.iter().any(grew);
        observed.disk.apps = found;
        changes
    };
    if changes {
        control.wake.notify_one();
    }
}

/// Free and total bytes of the disk that a folder is on, for who is not root.
fn space(folder: &Path) -> Option<(u64, u64)> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some((
        found.f_bavail * found.f_frsize,
        found.f_blocks * found.f_frsize,
    ))
}

/// What is free, and what should be.
pub fn reserve(control: &Control) -> (u64, u64) {
    let (free, total) = space(&control.data_dir).unwrap_or((u64::MAX, 0));
    let wanted = control.settings.disk_reserve;
    (free, wanted.unwrap_or((total / 20).min(RESERVE)))
}

/// Logs go first, then builds, then what they keep for the next, then all but the newest snapshot of each app; apps and the
/// platform go on.
fn watch_reserve(control: &Control) {
    let (mut free, reserve) = reserve(control);
    if free < reserve {
        control.logs.shed(reserve - free);
        (free, _) = self::reserve(control);
    }
    let is_low = free < reserve;
    let was_low = std::mem::replace(&mut lock(&control.observed).disk.low, is_low);
    let Err(low) = control.has_disk() else { return };
    if !was_low {
        tracing::warn!("{low}; no deploys and no builds until there is room");
    }
    for build in control.warden.list().into_iter().flatten() {
        if build.build && !build.ending {
            let _ = control.warden.kill(&build.instance);
        }
    }
    drop_caches(control);
    crate::snapshots::shed(control);
}

/// What builds keep for the next one goes before anything else of an app's, the largest first.
fn drop_caches(control: &Control) {
    let known = lock(&control.observed).disk.apps.clone();
    let mut caches: Vec<(u64, String)> = known
        .into_iter()
        .filter(|(_, used)| used.caches > 0)
        .map(|(app, used)| (used.caches, app))
        .collect();
    caches.sort_by(|one, other| other.cmp(one));
    for (size, app) in caches {
        if control.has_disk().is_ok() {
            return;
        }
        // What is being built is about to end, and then its turn comes.
        let builds = match control.store.under_way(&app) {
            Ok(under_way) => under_way.is_some_and(|one| one.state == "building"),
            Err(_) => true,
        };
        if builds || control.warden.drop_cache(&app).is_err() {
            continue;
        }
        tracing::warn!(
            "the disk is full: what builds of {app} kept, {}, is thrown away",
            show_size(size)
        );
        if let Some(used) = lock(&control.observed).disk.apps.get_mut(&app) {
            used.caches = 0;
        }
    }
}

impl Control {
    /// Whether there is room for something new on the disk; if not, why.
    pub fn has_disk(&self) -> Result<(), String> {
        self.has_disk_for(0)
    }

    /// The same for so many bytes.
    pub fn has_disk_for(&self, bytes: u64) -> Result<(), String> {
        let (free, reserve) = reserve(self);
        if free >= reserve.saturating_add(bytes) {
            return Ok(());
        }
        if free >= reserve {
            return Err(format!(
                "this takes {}, and only {} are free beside the reserve of the platform",
                show_size(bytes),
                show_size(free - reserve)
            ));
        }
        Err(format!(
            "the disk is full but for its reserve: {} are free, and {} are kept back for the platform",
            show_size(free),
            show_size(reserve)
        ))
    }
}
