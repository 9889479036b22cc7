//! Uploads under way (distribution spec, "Pushing blobs"): a folder each, in which the bytes gather until they are what
//! their digest says. The size of the file is the offset, so an upload goes on after a restart; the running digest is
//! had again by reading.
//!
//! An upload's steps: folder; `data`; `session`, which makes it one. Bytes are appended as they come, and not synced:
//! what a power cut takes, the digest finds missing. At its end: digest compared; `data` synced; renamed to its content's
//! name; that synced; linked; folder removed. Until the rename a failed request may be made again.
//!
//! Whoever holds an upload's progress works on it. One that is ended meanwhile is cleared away by whoever lets go of its
//! progress last.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedMutexGuard, mpsc};

use crate::book::Charge;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::disk::{create, is_there, make, names, sync_parent};
use crate::error::{Result, StoreError, disk};
use crate::name::{RepositoryName, UploadId};
use crate::store::{Store, lock, size_of};

pub(crate) struct Session {
    pub id: UploadId,
    pub repository: RepositoryName,
    /// What the running digest is made with. A last request that names another has the file read again.
    algorithm: Algorithm,
    ended: AtomicBool,
    /// Counts what came, for [`Session::idle_since`].
    activity: AtomicU64,
    seen: Mutex<Option<(u64, Duration)>>,
    pub progress: Arc<tokio::sync::Mutex<Progress>>,
}

#[derive(Default)]
pub(crate) struct Progress {
    pub offset: u64,
    /// Of the first `offset` bytes; none after a restart.
    hasher: Option<Hasher>,
    /// Its folder is, and what it took is given back.
    cleared: bool,
}

/// What a request says about its body.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Announced {
    /// Content-Range; both ends count.
    pub range: Option<(u64, u64)>,
    /// Content-Length.
    pub length: Option<u64>,
    /// It is all there will be: the upload ends with the request, however that goes.
    pub whole: bool,
}

/// A body on its way. One that ends without [`Part::End`] was cut off.
pub(crate) enum Part {
    Data(Bytes),
    End,
}

impl Announced {
    /// How long the body has to be, if that is known.
    fn check(self, offset: u64) -> Result<Option<u64>> {
        let Some((first, last)) = self.range else {
            return Ok(self.length);
        };
        if first != offset {
            return Err(StoreError::OutOfOrder { offset });
        }
        let said = last
            .checked_sub(first)
            .and_then(|span| span.checked_add(1))
            .ok_or(StoreError::EmptyRange)?;
        match self.length {
            Some(came) if came != said => Err(StoreError::Size { said, came }),
            _ => Ok(Some(said)),
        }
    }
}

impl Session {
    fn new(id: UploadId, repository: RepositoryName, algorithm: Algorithm, offset: u64) -> Self {
        let progress = Progress {
            offset,
            // Nothing needs no reading.
            hasher: (offset == 0).then(|| algorithm.hasher()),
            cleared: false,
        };
        Session {
            id,
            repository,
            algorithm,
            ended: AtomicBool::new(false),
            activity: AtomicU64::new(0),
            seen: Mutex::new(None),
            progress: Arc::new(tokio::sync::Mutex::new(progress)),
        }
    }

    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Since when nothing came, as far as those know who ask now and then.
    pub fn idle_since(&self, now: Duration) -> Duration {
        let activity = self.activity.load(Ordering::SeqCst);
        let mut seen = lock(&self.seen);
        match *seen {
            Some((before, since)) if before == activity => since,
            _ => {
                *seen = Some((activity, now));
                now
            }
        }
    }
}

fn both(bytes: u64) -> Charge {
    Charge {
        total: bytes,
        repository: bytes,
        names: 0,
    }
}

impl Store {
    /// Finds the uploads that an earlier process left.
    pub(crate) fn resume_uploads(&self) -> Result<()> {
        let resume = || -> io::Result<()> {
            for name in names(&self.disk.uploads())? {
                let folder = self.disk.uploads().join(&name);
                let read = |id: UploadId| {
                    let text = fs::read_to_string(folder.join("session")).ok()?;
                    let (algorithm, repository) = text.trim().split_once(' ')?;
                    let size = fs::metadata(folder.join("data")).ok()?.len();
                    let algorithm: Algorithm = algorithm.parse().ok()?;
                    let repository: RepositoryName = repository.parse().ok()?;
                    Some(Session::new(id, repository, algorithm, size))
                };
                match name.parse::<UploadId>().ok().and_then(read) {
                    Some(session) => {
                        let offset = lock_now(&session).map_or(0, |progress| progress.offset);
                        self.book().add(&session.repository, both(offset));
                        lock(&self.sessions).insert(session.id.clone(), Arc::new(session));
                    }
                    // Not begun, or finished but for this.
                    None => fs::remove_dir_all(&folder)?,
                }
            }
            Ok(())
        };
        resume().map_err(disk("find uploads"))
    }

    /// Begins an upload (distribution spec, end-4a and end-4c).
    pub(crate) fn begin_upload(
        &self,
        repository: &RepositoryName,
        algorithm: Algorithm,
    ) -> Result<Arc<Session>> {
        // Who has no room for a byte need not begin.
        self.book()
            .fits(&self.settings.quota, repository, both(1))?;
        let id = UploadId::random().map_err(disk("name an upload"))?;
        let session = Session::new(id.clone(), repository.clone(), algorithm, 0);
        let session = Arc::new(session);
        {
            let mut sessions = lock(&self.sessions);
            if sessions.len() >= self.settings.uploads {
                return Err(StoreError::TooMany(format!(
                    "{} uploads are under way, as many as there may be",
                    sessions.len()
                )));
            }
            sessions.insert(id.clone(), session.clone());
        }
        let begin = || -> io::Result<()> {
            let folder = self.disk.upload(&id);
            make(&folder)?;
            create(&folder.join("data"))?;
            let text = format!("{} {repository}\n", algorithm.as_str());
            self.disk.write(&folder.join("session"), text.as_bytes())
        };
        if let Err(error) = begin() {
            self.end_upload(&session);
            return Err(disk("begin an upload")(error));
        }
        Ok(session)
    }

    pub(crate) fn upload(
        &self,
        repository: &RepositoryName,
        id: &UploadId,
    ) -> Result<Arc<Session>> {
        let sessions = lock(&self.sessions);
        let session = sessions.get(id).filter(|s| s.repository == *repository);
        session.cloned().ok_or(StoreError::UploadUnknown)
    }

    /// Takes in a body, and if `finish` says so, makes a blob of what there is then. Runs on a thread that may wait. The
    /// offset behind it.
    pub(crate) fn receive(
        &self,
        session: &Session,
        mut progress: OwnedMutexGuard<Progress>,
        announced: Announced,
        parts: &mut mpsc::Receiver<Part>,
        finish: Option<&Digest>,
    ) -> Result<u64> {
        let result = self
            .take_in(session, &mut progress, announced, parts)
            .and_then(|offset| match finish {
                Some(digest) => self.finish(session, &mut progress, digest).map(|()| offset),
                None => Ok(offset),
            });
        if announced.whole && result.is_err() {
            self.end(session);
        }
        drop(progress);
        self.clear_if_ended(session);
        result
    }

    fn take_in(
        &self,
        session: &Session,
        progress: &mut Progress,
        announced: Announced,
        parts: &mut mpsc::Receiver<Part>,
    ) -> Result<u64> {
        if progress.cleared || session.is_ended() {
            return Err(StoreError::UploadUnknown);
        }
        let failed = "write an upload";
        let mut file = self.open_upload(session, progress).map_err(disk(failed))?;
        let length = announced.check(progress.offset)?;
        if let Some(length) = length {
            self.book()
                .fits(&self.settings.quota, &session.repository, both(length))?;
        }
        let (start, hasher) = (progress.offset, progress.hasher.clone());
        match self.append(session, progress, &mut file, length, parts) {
            Ok(()) => Ok(progress.offset),
            // What came is good, and the client can ask how much it was.
            Err(StoreError::CutOff) => Err(StoreError::CutOff),
            Err(error) => {
                self.book()
                    .release(&session.repository, both(progress.offset - start));
                (progress.offset, progress.hasher) = (start, hasher);
                if let Err(error) = file.set_len(start) {
                    tracing::warn!("an upload is given up, it cannot be shortened: {error}");
                    self.end(session);
                }
                Err(error)
            }
        }
    }

    fn append(
        &self,
        session: &Session,
        progress: &mut Progress,
        file: &mut File,
        length: Option<u64>,
        parts: &mut mpsc::Receiver<Part>,
    ) -> Result<()> {
        let (mut came, mut asked) = (0, 0);
        loop {
            match parts.blocking_recv() {
                Some(Part::Data(bytes)) => {
                    if session.is_ended() {
                        return Err(StoreError::UploadUnknown);
                    }
                    let count = bytes.len() as u64;
                    came += count;
                    if let Some(said) = length
                        && came > said
                    {
                        return Err(StoreError::Size { said, came });
                    }
                    if came - asked >= self.settings.look {
                        asked = came;
                        self.check_room(length.map_or(0, |said| said - came))?;
                    }
                    let name = &session.repository;
                    self.book()
                        .reserve(&self.settings.quota, name, both(count))?;
                    if let Err(error) = file.write_all(&bytes) {
                        self.book().release(name, both(count));
                        return Err(disk("write an upload")(error));
                    }
                    if let Some(hasher) = &mut progress.hasher {
                        hasher.update(&bytes);
                    }
                    progress.offset += count;
                    session.activity.fetch_add(1, Ordering::SeqCst);
                }
                Some(Part::End) => {
                    return match length {
                        Some(said) if came != said => Err(StoreError::Size { said, came }),
                        _ => Ok(()),
                    };
                }
                None => return Err(StoreError::CutOff),
            }
        }
    }

    /// Others write to the disk, too: there was room when the body began.
    fn check_room(&self, left: u64) -> Result<()> {
        match &self.room {
            Some(room) => room(left).map_err(StoreError::NoRoom),
            None => Ok(()),
        }
    }

    /// Opens the file to append to, and reads it where the running digest is not known.
    fn open_upload(&self, session: &Session, progress: &mut Progress) -> io::Result<File> {
        let path = self.disk.upload(&session.id).join("data");
        let mut file = OpenOptions::new().read(true).append(true).open(path)?;
        if progress.hasher.is_none() {
            let mut hasher = session.algorithm.hasher();
            let size = hasher.read_all(&mut file)?;
            if size != progress.offset {
                return Err(io::Error::other("the upload's file was changed"));
            }
            progress.hasher = Some(hasher);
        }
        Ok(file)
    }

    /// The upload becomes a blob of its repository (distribution spec, end-4b and end-6).
    fn finish(&self, session: &Session, progress: &mut Progress, digest: &Digest) -> Result<()> {
        let failed = "store a blob";
        let folder = self.disk.upload(&session.id);
        let path = folder.join("data");
        let mut file = File::open(&path).map_err(disk(failed))?;
        let running = progress.hasher.clone();
        let found = match running.filter(|hasher| hasher.algorithm() == digest.algorithm()) {
            Some(hasher) => hasher.finish(),
            None => {
                let mut hasher = digest.algorithm().hasher();
                hasher.read_all(&mut file).map_err(disk(failed))?;
                hasher.finish()
            }
        };
        if found != *digest {
            self.end(session);
            let claimed = digest.clone();
            return Err(StoreError::Mismatch { claimed, found });
        }
        file.sync_all().map_err(disk(failed))?;
        drop(file);

        let size = progress.offset;
        let name = &session.repository;
        let turn = self.turn();
        let target = self.disk.blob(digest);
        let stored = size_of(&target);
        // A name with another size behind it is a damaged one.
        if !is_there(&target) || stored != size {
            fs::rename(&path, &target).map_err(disk(failed))?;
            sync_parent(&target).map_err(disk(failed))?;
            self.book().release_content(stored);
        } else {
            self.book().release_content(size);
        }
        // The link takes it again, if it is a new one.
        let only_repository = Charge {
            repository: size,
            ..Charge::default()
        };
        self.book().release(name, only_repository);
        let linked = self.link(name, digest, size);
        drop(turn);
        progress.cleared = true;
        self.end(session);
        if let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!("{} stays until the next start: {error}", folder.display());
        }
        linked
    }

    /// Cancels an upload (distribution spec, "Cancel a blob upload"). What is being received for it ends soon.
    pub(crate) fn end_upload(&self, session: &Session) {
        self.end(session);
        self.clear_if_ended(session);
    }

    /// Nobody finds it any more.
    fn end(&self, session: &Session) {
        session.ended.store(true, Ordering::SeqCst);
        lock(&self.sessions).remove(&session.id);
    }

    /// If somebody works on it still, they come here when they are done.
    fn clear_if_ended(&self, session: &Session) {
        if !session.is_ended() {
            return;
        }
        let Some(mut progress) = lock_now(session) else {
            return;
        };
        if progress.cleared {
            return;
        }
        progress.cleared = true;
        let folder = self.disk.upload(&session.id);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{} stays until the next start: {error}", folder.display());
            }
            _ => {}
        }
        self.book()
            .release(&session.repository, both(progress.offset));
    }
}

fn lock_now(session: &Session) -> Option<tokio::sync::MutexGuard<'_, Progress>> {
    session.progress.try_lock().ok()
}
