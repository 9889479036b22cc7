//! After 101 Switching Protocols: bytes both ways until one side ends (RFC 9110 §7.8).

use std::pin::pin;
use std::time::Duration;

use hutong_http::fields::Fields;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::frames::{self, Frames};
use crate::buffers::{self, Input};
use crate::visitor::{Download, Ended, Upload};
use crate::{Phase, Shared};

/// How long a visitor has to close once the app has.
const LINGER: Duration = Duration::from_secs(1);
/// How long an app may go on once the visitor has ended its side.
const HALF_CLOSED: Duration = Duration::from_secs(60);

/// Completes when another gateway has taken over: the visitor is to come again, to that one. Not all at once.
async fn told_to_go(shared: &Shared) {
    const SPREAD_MS: u64 = 10_000;
    let mut phase = shared.phase.subscribe();
    let _ = phase.wait_for(|phase| *phase != Phase::Serving).await;
    let mut number = [0; 8];
    let _ = rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty());
    let wait = Duration::from_millis(u64::from_ne_bytes(number) % SPREAD_MS);
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        // There is no time left for that.
        _ = phase.wait_for(|phase| *phase == Phase::Ending) => {}
    }
}

pub struct Tunnel<'a, 'b, 'c> {
    pub read: ReadHalf<'a>,
    pub write: WriteHalf<'a>,
    /// What the app said behind its head.
    pub input: &'a mut Input,
    pub upload: &'b mut Upload<'c>,
    pub download: &'b mut Download<'c>,
    pub shared: &'b Shared,
}

impl Tunnel<'_, '_, '_> {
    pub async fn run(self) {
        let Tunnel {
            mut read,
            mut write,
            input,
            upload,
            download,
            shared,
        } = self;
        let mut frames = Frames::default();
        upload.become_tunnel();
        let up = async {
            while let Ok(Some(data)) = upload.next().await {
                if write.write_all(data).await.is_err() {
                    return;
                }
            }
            let _ = write.shutdown().await;
        };
        let down = async {
            let end: Result<(), Ended> = async {
                let mut told = pin!(told_to_go(shared));
                loop {
                    download.data(input.unread()).await?;
                    download.flush().await?;
                    frames.follow(input.unread());
                    input.consume(usize::MAX);
                    input.rest();
                    tokio::select! {
                        readable = read.readable() => readable?,
                        () = &mut told, if frames.is_between() => {
                            download.data(&frames::GOING_AWAY).await?;
                            return Ok(());
                        }
                    }
                    if read.read_buf(input.room(buffers::SMALL)).await? == 0 {
                        return Ok(());
                    }
                }
            }
            .await;
            if end.is_ok() {
                let _ = download.end(&Fields::default()).await;
            } else {
                download.abort();
            }
        };
        let (mut up, mut down) = (pin!(up), pin!(down));
        tokio::select! {
            // The app is through: a visitor who stays silent must not keep it counted.
            () = &mut down => {
                let _ = tokio::time::timeout(LINGER, up).await;
            }
            () = &mut up => {
                let _ = tokio::time::timeout(HALF_CLOSED, down).await;
            }
        }
    }
}
