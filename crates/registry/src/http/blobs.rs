//! `/v2/<name>/blobs/<digest>` (end-2, end-10).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::task::JoinHandle;

use super::error::{Code, Refusal};
use super::{CONTENT_DIGEST, Call, Result};
use crate::digest::Digest;
use crate::error::disk;
use crate::range::{Wanted, wanted};

/// Bytes that are read at once; a visitor who is sent a blob holds two of them at most.
const PIECE: u64 = 256 << 10;

/// "Pulling blobs", "Checking if content exists in the registry".
pub(super) async fn get(call: Call, digest: Digest) -> Result<Response> {
    let searched = digest.clone();
    let (file, size) = call
        .work(move |registry, name| registry.store.blob(name, &searched))
        .await?;
    let tag = format!("\"{digest}\"");
    let headers: [(&str, String); 4] = [
        ("content-type", "application/octet-stream".into()),
        ("accept-ranges", "bytes".into()),
        ("etag", tag.clone()),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    if call.is_head() {
        let length = [(header::CONTENT_LENGTH, size.to_string())];
        return Ok((headers, length, Body::empty()).into_response());
    }
    // Another blob never has this name; but who has a part of one may ask by another tag.
    let same = call.header(header::IF_RANGE).is_none_or(|only| only == tag);
    let range = call.header(header::RANGE).filter(|_| same);
    match range.map_or(Wanted::Whole, |range| wanted(range, size)) {
        Wanted::Whole => {
            let length = [(header::CONTENT_LENGTH, size.to_string())];
            Ok((headers, length, send(file, size)).into_response())
        }
        Wanted::Part { first, last } => {
            let mut file = file;
            file.seek(SeekFrom::Start(first))
                .map_err(disk("read a blob"))?;
            let count = last - first + 1;
            let more = [
                (header::CONTENT_LENGTH, count.to_string()),
                (
                    header::CONTENT_RANGE,
                    format!("bytes {first}-{last}/{size}"),
                ),
            ];
            let body = send(file, count);
            Ok((StatusCode::PARTIAL_CONTENT, headers, more, body).into_response())
        }
        Wanted::Unsatisfiable => {
            let text = format!("the blob has {size} bytes");
            Err(Refusal::new(416, Code::SizeInvalid, text)
                .with(header::CONTENT_RANGE, format!("bytes */{size}")))
        }
    }
}

/// `count` bytes from where the file stands; the next piece is read while one is sent.
fn send(file: File, count: u64) -> Body {
    Body::from_stream(stream::try_unfold(
        Some(read_on(file, count)),
        |reading| async {
            let Some(reading) = reading else {
                return Ok(None);
            };
            let (piece, file, left) = reading.await??;
            if piece.is_empty() {
                return Ok(None);
            }
            let next = (left > 0).then(|| read_on(file, left));
            Ok::<_, std::io::Error>(Some((Bytes::from(piece), next)))
        },
    ))
}

/// A piece, the file behind it, and how much of `left` is to come then.
fn read_on(mut file: File, left: u64) -> JoinHandle<std::io::Result<(Vec<u8>, File, u64)>> {
    tokio::task::spawn_blocking(move || {
        let size = left.min(PIECE);
        let mut piece = Vec::with_capacity(size as usize);
        (&mut file).take(size).read_to_end(&mut piece)?;
        let left = left - piece.len() as u64;
        Ok((piece, file, left))
    })
}

/// "Deleting Blobs".
pub(super) async fn delete(call: Call, digest: Digest) -> Result<Response> {
    call.work(move |registry, name| registry.store.delete_blob(name, &digest))
        .await?;
    Ok(StatusCode::ACCEPTED.into_response())
}
