//! After 101 Switching Protocols: bytes both ways until one side ends (RFC 9110 §7.8).

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::access::{Entry, Log};
use crate::target::InFlight;

/// Joins visitor and app. `in_flight` counts the connection until it is over.
pub fn join(visitor: OnUpgrade, app: OnUpgrade, in_flight: InFlight, mut entry: Entry, log: Log) {
    tokio::task::spawn_local(async move {
        let _counted = in_flight;
        let (Ok(visitor), Ok(app)) = tokio::join!(visitor, app) else {
            return;
        };
        let (mut visitor, mut app) = (TokioIo::new(visitor), TokioIo::new(app));
        if let Ok((_, down)) = tokio::io::copy_bidirectional(&mut visitor, &mut app).await {
            entry.bytes = down;
        }
        log.add(&entry);
    });
}
