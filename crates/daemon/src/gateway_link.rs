//! The line to the gateway: it hears of snapshots, we hear what it serves and sees.

use std::sync::Arc;
use std::time::Duration;

use hutong_ipc::gateway::{Event, Nudge};
use hutong_ipc::{channel, fail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::certs::NotKept;
use crate::{Control, lock};

/// A gateway that was restarted is found again within this time.
const RETRY: Duration = Duration::from_millis(50);

pub async fn run(control: Arc<Control>) {
    let path = control.run_dir.join("gateway.sock");
    loop {
        if let Ok(stream) = UnixStream::connect(&path).await {
            let _ = converse(&control, stream).await;
            // What it said of instances holds no longer than the line.
            tracing::warn!("the line to the gateway broke; connecting again");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn converse(control: &Control, stream: UnixStream) -> std::io::Result<()> {
    lock(&control.observed).since_ms = hutong_runtime::processes::steady_ms();
    let (mut reader, mut writer) = stream.into_split();
    let nudge = channel::encode(&Nudge::Reload)?;
    writer.write_all(&nudge).await?;
    // Each message has a bound.
    for bans in control.store.bans().unwrap_or_default().chunks(1000) {
        let bans = Nudge::Bans(bans.to_vec());
        writer.write_all(&channel::encode(&bans)?).await?;
    }
    // A certificate authority may be about to look.
    let challenges = Nudge::Challenges(control.certs.shown());
    writer.write_all(&channel::encode(&challenges)?).await?;
    let mut queued = control.certs.queued.lock().await;
    let speak = async {
        loop {
            tokio::select! {
                () = control.published.notified() => {
                    fail::point("nudge gateway");
                    writer.write_all(&nudge).await?;
                    // There may be names without a certificate.
                    control.certs.wake.notify_one();
                }
                Some(message) = queued.recv() => {
                    writer.write_all(&channel::encode(&message)?).await?;
                }
            }
        }
    };
    let listen = async {
        loop {
            let mut header = [0; 4];
            reader.read_exact(&mut header).await?;
            let mut body = vec![0; channel::frame_length(header)?];
            reader.read_exact(&mut body).await?;
            fail::point("hear gateway");
            take(control, channel::decode(&body)?);
        }
    };
    tokio::select! {
        result = speak => result,
        result = listen => result,
    }
}

fn take(control: &Control, event: Event) {
    {
        let mut observed = lock(&control.observed);
        match event {
            Event::Serving { version } => observed.gateway_version = version,
            Event::Health {
                instance,
                healthy,
                detail,
            } => observed.note_health(instance, healthy, detail),
            Event::Drained { instance, version } => {
                observed.drained.insert(instance, version);
            }
            Event::Gone { instance } => {
                let now = hutong_runtime::processes::steady_ms();
                if observed.instances.contains_key(&instance) {
                    observed.gone.insert(instance, now);
                }
            }
            Event::Certificates(held) => control.certs.note_held(held),
            Event::BadCertificate {
                name,
                reason,
                passing,
            } => {
                let why = match passing {
                    true => NotKept::Unwritten(reason),
                    false => NotKept::Refused(reason),
                };
                control.certs.note_refused(name, why);
            }
            Event::Wanted { app } => {
                observed.want(&app);
            }
            Event::Idle { apps, in_flight } => {
                for (app, count) in in_flight {
                    if let Some(scaling) = observed.scaling.get_mut(&app) {
                        scaling.note(count);
                    }
                }
                let now = hutong_runtime::processes::steady_ms();
                let news = apps.iter().any(|app| observed.awake.contains_key(app));
                observed.idle.extend(apps.into_iter().map(|app| (app, now)));
                if !news {
                    return;
                }
            }
            Event::Trials(trials) => {
                let mut news = false;
                for (app, trial) in trials {
                    let known = observed.trials.get(&app);
                    news |= known.is_none_or(|known| !known.counts_as(&trial));
                    observed.trials.insert(app, trial);
                }
                // When a step is over the controller knows by itself.
                if !news {
                    return;
                }
            }
            Event::Banned(ban) => lock(&control.banned).push(ban),
            Event::Status(status) => {
                for waiting in lock(&control.status_asked).drain(..) {
                    let _ = waiting.send((*status).clone());
                }
            }
            Event::Challenged => control.certs.note_challenged(),
            Event::Rejected { reason } => tracing::error!("the gateway rejects: {reason}"),
        }
    }
    control.wake.notify_one();
}

/// Writes down whom apps' rules shut out; many at once, because there may be many at once.
pub async fn keep_bans(control: Arc<Control>) {
    const PAUSE: Duration = Duration::from_millis(200);
    loop {
        tokio::time::sleep(PAUSE).await;
        let bans = std::mem::take(&mut *lock(&control.banned));
        if bans.is_empty() {
            continue;
        }
        let store = control.clone();
        let kept = tokio::task::spawn_blocking(move || store.store.ban(&bans)).await;
        if let Ok(Err(error)) = kept {
            tracing::error!("bans are not kept: {error}");
        }
    }
}
