//! `/v2/<name>/blobs/uploads/` and what lies below (end-4, 5, 6, 11, 13, 14). A body goes through a short channel to a
//! thread that writes it; whoever waits for a place there does not read, which holds the client back.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, mpsc};

use super::error::{Code, Refusal};
use super::{CONTENT_DIGEST, Call, Pairs, Result, blob_location, blocking, verdict};
use crate::Registry;
use crate::access::{Action, Verdict};
use crate::digest::{Algorithm, Digest};
use crate::error::StoreError;
use crate::name::{RepositoryName, UploadId};
use crate::range::content_range;
use crate::uploads::{Announced, Part, Progress, Session};

const UUID: &str = "docker-upload-uuid";
/// Parts of a body between the connection and the disk.
const PARTS: usize = 4;
/// How long a request waits for another one of the same upload: a client that came back is here before its old
/// connection is known to be gone.
const BUSY: Duration = Duration::from_secs(10);

/// A body that is taken in.
pub(super) struct Place {
    _waiting: OwnedSemaphorePermit,
    _receiving: OwnedSemaphorePermit,
}

/// Waits for a place, if not too many do.
pub(super) async fn place(registry: &Registry) -> Result<Place> {
    let full = || StoreError::TooMany("too many uploads come in at once".into());
    let waiting = registry.waiting.clone().try_acquire_owned();
    let waiting = waiting.map_err(|_| full())?;
    let receiving = registry.receiving.clone().acquire_owned().await;
    Ok(Place {
        _waiting: waiting,
        _receiving: receiving.map_err(|_| full())?,
    })
}

/// "POST then PUT", "Single POST", "Mounting a blob from another repository".
pub(super) async fn begin(call: Call, body: Body) -> Result<Response> {
    let pairs = Pairs::of(&call.parts.uri)?;
    if let Some(text) = pairs.get("mount") {
        let digest: Digest = text.parse()?;
        if mount(&call, pairs.get("from"), &digest).await? {
            return Ok(created(&call.name, &digest));
        }
        // As the spec has it: the client sends the blob instead.
        return start(&call, Algorithm::Sha256).await;
    }
    if let Some(text) = pairs.get("digest") {
        let digest: Digest = text.parse()?;
        return whole(&call, &digest, body).await;
    }
    let algorithm = match pairs.get("digest-algorithm") {
        None => Algorithm::Sha256,
        Some(text) => text.parse::<Algorithm>()?,
    };
    start(&call, algorithm).await
}

async fn start(call: &Call, algorithm: Algorithm) -> Result<Response> {
    let session = call
        .work(move |registry, name| registry.store.begin_upload(name, algorithm))
        .await?;
    Ok(accepted(StatusCode::ACCEPTED, &session, 0))
}

/// Whether the blob was had from a repository that the client may read. Without `from`, from any of these.
async fn mount(call: &Call, from: Option<&str>, digest: &Digest) -> Result<bool> {
    let sources: Vec<RepositoryName> = match from {
        Some(from) => from.parse::<RepositoryName>().ok().into_iter().collect(),
        None => {
            let digest = digest.clone();
            call.work(move |registry, _| registry.store.holders(&digest))
                .await?
        }
    };
    for source in sources {
        let credentials = call.credentials.clone();
        let asked = verdict(&call.registry, credentials, source.as_str(), Action::Pull);
        if asked.await? != Verdict::Allowed {
            continue;
        }
        let digest = digest.clone();
        let mounted = call
            .work(move |registry, name| registry.store.mount(name, &source, &digest))
            .await?;
        if mounted {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A blob in one request: an upload that nobody else hears of.
async fn whole(call: &Call, digest: &Digest, body: Body) -> Result<Response> {
    let algorithm = digest.algorithm();
    let session = call
        .work(move |registry, name| registry.store.begin_upload(name, algorithm))
        .await?;
    let announced = Announced {
        range: None,
        length: call.length(),
        whole: true,
    };
    let received = async {
        let progress = take(&session).await?;
        let finish = Some(digest.clone());
        receive(call, &session, progress, announced, body, finish).await
    };
    match received.await {
        Ok(_) => Ok(created(&call.name, digest)),
        Err(refusal) => {
            // It may not have come to receiving.
            let registry = call.registry.clone();
            blocking(move || registry.store.end_upload(&session)).await?;
            Err(refusal)
        }
    }
}

/// "Pushing a blob in chunks": a chunk.
pub(super) async fn patch(call: Call, id: UploadId, body: Body) -> Result<Response> {
    let session = find(&call, &id)?;
    let announced = announced(&call)?;
    let progress = take(&session).await?;
    let offset = receive(&call, &session, progress, announced, body, None).await?;
    Ok(accepted(StatusCode::ACCEPTED, &session, offset))
}

/// The end of an upload, with its last chunk or without.
pub(super) async fn put(call: Call, id: UploadId, body: Body) -> Result<Response> {
    let pairs = Pairs::of(&call.parts.uri)?;
    let Some(digest) = pairs.get("digest") else {
        let text = "the last request of an upload names the blob's digest";
        return Err(Refusal::new(400, Code::DigestInvalid, text));
    };
    let digest: Digest = digest.parse()?;
    let session = find(&call, &id)?;
    let announced = announced(&call)?;
    let progress = take(&session).await?;
    let finish = Some(digest.clone());
    receive(&call, &session, progress, announced, body, finish).await?;
    Ok(created(&call.name, &digest))
}

/// How far an upload is (end-13).
pub(super) async fn status(call: Call, id: UploadId) -> Result<Response> {
    let session = find(&call, &id)?;
    let offset = take(&session).await?.offset;
    Ok(accepted(StatusCode::NO_CONTENT, &session, offset))
}

/// "Cancel a blob upload" (end-14).
pub(super) async fn cancel(call: Call, id: UploadId) -> Result<Response> {
    call.work(move |registry, name| {
        let session = registry.store.upload(name, &id)?;
        registry.store.end_upload(&session);
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn find(call: &Call, id: &UploadId) -> Result<Arc<Session>> {
    Ok(call.registry.store.upload(&call.name, id)?)
}

/// Only one request at a time works on an upload.
async fn take(session: &Session) -> Result<OwnedMutexGuard<Progress>> {
    let progress = session.progress.clone().lock_owned();
    let taken = tokio::time::timeout(BUSY, progress).await;
    taken.map_err(|_| StoreError::UploadBusy.into())
}

fn announced(call: &Call) -> Result<Announced> {
    let length = call.length();
    let range = match call.header(header::CONTENT_RANGE) {
        // Some clients say one where nothing comes.
        Some(_) if length == Some(0) => None,
        None => None,
        Some(text) => Some(content_range(text).ok_or_else(|| {
            let text = "a Content-Range of a chunk is FIRST-LAST, both inclusive";
            Refusal::new(400, Code::BlobUploadInvalid, text)
        })?),
    };
    Ok(Announced {
        range,
        length,
        whole: false,
    })
}

/// Takes in the body; where the upload is behind it. The client is told where it goes on, if that is what is wrong.
async fn receive(
    call: &Call,
    session: &Arc<Session>,
    progress: OwnedMutexGuard<Progress>,
    announced: Announced,
    body: Body,
    finish: Option<Digest>,
) -> Result<u64> {
    let place = place(&call.registry).await?;
    let (sender, mut parts) = mpsc::channel(PARTS);
    let (registry, worked_on) = (call.registry.clone(), session.clone());
    // It goes on when the client is gone and this is dropped, until it knows of it; so what it needs is its own.
    let work = tokio::task::spawn_blocking(move || {
        let _place = place;
        let finish = finish.as_ref();
        let store = &registry.store;
        store.receive(&worked_on, progress, announced, &mut parts, finish)
    });
    feed(body, sender, call.registry.store.settings.idle).await;
    let result = work.await.map_err(|error| {
        tracing::error!("an upload was not finished: {error}");
        Refusal::internal()
    })?;
    result.map_err(|error| match error {
        StoreError::OutOfOrder { offset } => Refusal::from(error)
            .with(header::LOCATION, location(session))
            .with(header::RANGE, range(offset)),
        other => other.into(),
    })
}

/// Ends when the body does, or nothing came for too long, or nobody takes it any more.
async fn feed(body: Body, sender: mpsc::Sender<Part>, idle: Duration) {
    let mut stream = body.into_data_stream();
    loop {
        let next = tokio::select! {
            () = sender.closed() => return,
            next = tokio::time::timeout(idle, stream.next()) => next,
        };
        let part = match next {
            Ok(Some(Ok(bytes))) => Part::Data(bytes),
            Ok(None) => Part::End,
            // Without an end: it was cut off.
            Ok(Some(Err(_))) | Err(_) => return,
        };
        let is_end = matches!(part, Part::End);
        if sender.send(part).await.is_err() || is_end {
            return;
        }
    }
}

fn location(session: &Session) -> String {
    format!("/v2/{}/blobs/uploads/{}", session.repository, session.id)
}

/// Of what came; where nothing did, `0-0`, as clients know it.
fn range(offset: u64) -> String {
    format!("0-{}", offset.saturating_sub(1))
}

fn accepted(status: StatusCode, session: &Session, offset: u64) -> Response {
    let headers: [(&str, String); 3] = [
        ("location", location(session)),
        ("range", range(offset)),
        (UUID, session.id.to_string()),
    ];
    (status, headers).into_response()
}

fn created(name: &RepositoryName, digest: &Digest) -> Response {
    let headers: [(&str, String); 2] = [
        ("location", blob_location(name, digest)),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    (StatusCode::CREATED, headers).into_response()
}
