//! What comes from elsewhere than a client's push: archives that were handed over, images that were fetched. The same
//! bounds hold, and the same order of steps. All of it blocks, and must not be called on a thread of an async runtime's
//! own.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::Registry;
use crate::digest::{CHUNK, Digest};
use crate::error::{Result, StoreError};
use crate::name::{Reference, RepositoryName};
use crate::uploads::{Announced, Part};

/// Chunks between who reads and who writes.
const UNDER_WAY: usize = 8;

impl Registry {
    /// Gives the repository content that is there already, whoever's it is. Whether it was.
    pub fn adopt(&self, repository: &RepositoryName, digest: &Digest) -> Result<bool> {
        let _turn = self.store.turn();
        match self.store.content(digest)? {
            Some((_, size)) => self.store.link(repository, digest, size).map(|()| true),
            None => Ok(false),
        }
    }

    /// Makes a blob of the repository of what `source` holds, if that has the digest. How large it is.
    pub fn ingest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        source: &mut (impl Read + Send),
    ) -> Result<u64> {
        // Content of another repository is no reason to believe that this source has it.
        if let Ok((_, size)) = self.store.blob(repository, digest) {
            return Ok(size);
        }
        let session = self.store.begin_upload(repository, digest.algorithm())?;
        let progress = session.progress.clone().try_lock_owned();
        let progress = progress.map_err(|_| StoreError::UploadBusy)?;
        let (sender, mut parts) = mpsc::channel(UNDER_WAY);
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || feed(source, &sender));
            let announced = Announced {
                whole: true,
                ..Announced::default()
            };
            let received =
                self.store
                    .receive(&session, progress, announced, &mut parts, Some(digest));
            // Who still feeds is told that nobody listens.
            drop(parts);
            match reader.join() {
                Ok(Err(source)) => Err(StoreError::Disk {
                    what: "read what is to be stored",
                    source,
                }),
                _ => received,
            }
        })
    }

    /// Stores a manifest in its own bytes; what it is made of must be there. Nobody is told of it as of a push.
    pub fn ingest_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        media_type: Option<&str>,
        bytes: &[u8],
    ) -> Result<Digest> {
        let put =
            self.store
                .put_manifest(repository, (reference, &[]), media_type, bytes, &|_, _| {})?;
        Ok(put.digest)
    }
}

fn feed(source: &mut impl Read, sender: &mpsc::Sender<Part>) -> io::Result<()> {
    loop {
        let mut buffer = vec![0; CHUNK];
        let count = match source.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        buffer.truncate(count);
        let part = match count {
            0 => Part::End,
            _ => Part::Data(Bytes::from(buffer)),
        };
        if sender.blocking_send(part).is_err() || count == 0 {
            return Ok(());
        }
    }
}
