//! After 101 Switching Protocols: bytes both ways until one side ends (RFC 9110 §7.8).

use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use crate::access::{Entry, Log};
use crate::target::InFlight;

/// How long a visitor has to close once the app has.
const LINGER: Duration = Duration::from_secs(1);
/// How long an app may go on once the visitor has ended its side.
const HALF_CLOSED: Duration = Duration::from_secs(60);

thread_local! {
    static OPEN: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How many joined connections this worker has.
pub fn open() -> usize {
    OPEN.get()
}

struct Counted;

impl Counted {
    fn new() -> Self {
        OPEN.set(OPEN.get() + 1);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        OPEN.set(OPEN.get() - 1);
    }
}

/// Joins visitor and app. `in_flight` counts the connection until it is over.
pub fn join(visitor: OnUpgrade, app: OnUpgrade, in_flight: InFlight, mut entry: Entry, log: Log) {
    let open = Counted::new();
    tokio::task::spawn_local(async move {
        let _counted = (in_flight, open);
        let (Ok(visitor), Ok(app)) = tokio::join!(visitor, app) else {
            return;
        };
        let (mut visitor, mut app) = (TokioIo::new(visitor), TokioIo::new(app));
        let (mut from_visitor, mut to_visitor) = tokio::io::split(&mut visitor);
        let (mut from_app, mut to_app) = tokio::io::split(&mut app);
        let up = async {
            let _ = tokio::io::copy(&mut from_visitor, &mut to_app).await;
            let _ = to_app.shutdown().await;
        };
        let down = async {
            let bytes = tokio::io::copy(&mut from_app, &mut to_visitor).await;
            let _ = to_visitor.shutdown().await;
            bytes.unwrap_or(0)
        };
        tokio::pin!(up, down);
        entry.bytes = tokio::select! {
            bytes = &mut down => {
                // The app is through: a visitor who stays silent must not keep it counted.
                let _ = tokio::time::timeout(LINGER, up).await;
                bytes
            }
            () = &mut up => tokio::time::timeout(HALF_CLOSED, down).await.unwrap_or(0),
        };
        log.add(&entry);
    });
}
