//! What can go wrong in the store. What a client hears of it is said in `http/error.rs`.

use std::io;

use hutong_core::units::show_size;
use thiserror::Error;

use crate::digest::Digest;
use crate::manifest::MAX_MANIFEST;
use crate::name::{Reference, RepositoryName};

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

#[derive(Debug, Error)]
pub enum StoreError {
    #[error("the repository has no blob {0}")]
    BlobUnknown(Digest),
    #[error("the repository has no manifest {0}")]
    ManifestUnknown(Reference),
    #[error("there is no repository {0}")]
    NameUnknown(RepositoryName),
    #[error("there is no such upload: it was finished, cancelled, or nothing came for too long")]
    UploadUnknown,
    #[error("another request is under way for this upload")]
    UploadBusy,
    #[error("the content has the digest {found}, not {claimed}")]
    Mismatch { claimed: Digest, found: Digest },
    /// A chunk that does not begin where the last one ended.
    #[error("the upload goes on at byte {offset}")]
    OutOfOrder { offset: u64 },
    #[error("the range of the chunk ends before it begins")]
    EmptyRange,
    #[error("{came} bytes came where {said} were announced")]
    Size { said: u64, came: u64 },
    #[error("the upload was cut off; what came is kept")]
    CutOff,
    #[error("{0}")]
    ManifestInvalid(String),
    #[error("a manifest has at most {}", show_size(MAX_MANIFEST))]
    ManifestTooLarge,
    /// Blobs that a manifest names and its repository does not have; the first of them.
    #[error("the manifest names what the repository does not have")]
    ManifestBlobUnknown(Vec<String>),
    #[error(
        "{whose} holds {} of {}, and this needs {} more",
        show_size(*.held),
        show_size(*.bound),
        show_size(*.more)
    )]
    OverQuota {
        whose: Whose,
        held: u64,
        bound: u64,
        more: u64,
    },
    #[error("{0}")]
    TooMany(String),
    /// Whoever mounts the registry needs the rest of the disk.
    #[error("{0}")]
    NoRoom(String),
    #[error("a manifest of the repository names the blob {0}; delete the manifest first")]
    InUse(Digest),
    #[error("another process uses the folder")]
    Locked,
    #[error("cannot {what}")]
    Disk {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Registry,
    /// All that its owner has.
    Owner,
    Repository,
}

impl std::fmt::Display for Whose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Whose::Registry => "the registry",
            Whose::Owner => "the repository's owner",
            Whose::Repository => "the repository",
        })
    }
}

/// For `map_err`: what could not be done.
pub(crate) fn disk(what: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Disk { what, source }
}
