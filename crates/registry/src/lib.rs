//! An OCI registry (distribution spec 1.1) as a library: images are pushed, kept, pulled and unpacked.
//!
//! Start with [`Registry`]. `http` is what clients see; `store`, `uploads` and `collect` are what happens on the disk,
//! and `disk` says where; [`unpack`] makes folders of layers. Whoever mounts [`router`] says who may do what
//! ([`Access`]), calls [`Registry::collect`] now and then with what must stay, and is told of pushes.
//!
//! It knows nothing of apps and releases, has no clock, and starts nothing that outlives a request for long.

mod access;
mod book;
mod collect;
mod digest;
mod disk;
mod error;
mod http;
mod image;
mod ingest;
mod manifest;
mod name;
mod range;
mod store;
pub mod unpack;
mod uploads;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

pub use access::{Access, Action, Credentials, Verdict};
pub use book::Quota;
pub use collect::{Pinned, Report};
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use error::{StoreError, Whose};
pub use http::{router, serve};
pub use image::{ContainerConfig, Healthcheck, Image, ImageConfig, ImageError, Layer, RootFs};
pub use manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Kind, MAX_MANIFEST, Manifest, OCI_ARTIFACT,
    OCI_INDEX, OCI_MANIFEST, Platform,
};
pub use name::{MAX_NAME, MAX_TAG, NameError, Reference, ReferenceError, RepositoryName, Tag};

/// The bounds of a registry.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Shown where a client asks for a name and a password.
    pub realm: String,
    pub quota: Quota,
    /// Whose a repository is, by its name: quotas are of an owner. Where nobody says so, each is its own.
    pub owner: fn(&str) -> &str,
    /// After so many bytes of a body it is asked whether there still is room ([`Registry::with_room`]).
    pub look: u64,
    /// Bodies that are taken in at once; each holds a thread.
    pub receiving: usize,
    /// Bodies that may wait for that; more are refused with 429.
    pub waiting: usize,
    /// Uploads under way, most of them between two requests.
    pub uploads: usize,
    /// How long the next bytes of a body may take.
    pub idle: Duration,
    /// An upload to which nothing came for so long is given up, by the next collection.
    pub upload_life: Duration,
    /// How long what nobody needs stays. At least as long as a push may take from its first blob to its manifest.
    pub grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Settings {
            realm: "registry".into(),
            quota: Quota::default(),
            owner: |name| name,
            look: 16 << 20,
            receiving: 8,
            waiting: 64,
            uploads: 256,
            idle: Duration::from_secs(60),
            upload_life: DAY,
            grace: DAY,
        }
    }
}

/// A manifest came: for each tag that points to it now, and once for a push by digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    pub repository: RepositoryName,
    pub reference: Reference,
    pub digest: Digest,
    pub media_type: String,
    /// What the tag pointed to before. The same digest, if nothing changed.
    pub before: Option<Digest>,
}

/// How much the registry holds, of how much it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub bound: u64,
}

type OnPush = Box<dyn Fn(&Push) + Send + Sync>;
type OnTag = Box<dyn Fn(&RepositoryName, &Tag, &Digest) + Send + Sync>;

/// A registry below a folder.
pub struct Registry {
    store: store::Store,
    access: Arc<dyn Access>,
    on_push: Option<OnPush>,
    on_tag: Option<OnTag>,
    receiving: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Registry {
    /// Opens a registry or makes one; the folder's parent must be there. Takes stock of everything in it, so not on a
    /// thread that others wait for. [`StoreError::Locked`] if another process has it.
    pub fn open(
        folder: &Path,
        settings: Settings,
        access: Arc<dyn Access>,
    ) -> Result<Self, StoreError> {
        let receiving = settings.receiving.max(1);
        let waiting = receiving.saturating_add(settings.waiting);
        let most = Semaphore::MAX_PERMITS;
        Ok(Registry {
            store: store::Store::open(folder, settings)?,
            access,
            on_push: None,
            on_tag: None,
            receiving: Arc::new(Semaphore::new(receiving.min(most))),
            waiting: Arc::new(Semaphore::new(waiting.min(most))),
        })
    }

    /// Has `told` called for each push that is on the disk, before the client hears of it, on a thread that may wait.
    /// A kill may come between: whoever must not miss one writes down what [`Registry::before_tag`] says.
    pub fn on_push(mut self, told: impl Fn(&Push) + Send + Sync + 'static) -> Self {
        self.on_push = Some(Box::new(told));
        self
    }

    /// Has `told` called for each tag that a push is about to move, before it moves; a failure or a kill may still keep it
    /// where it is. Nobody else changes names meanwhile, so it must neither take long nor ask this registry to.
    pub fn before_tag(
        mut self,
        told: impl Fn(&RepositoryName, &Tag, &Digest) + Send + Sync + 'static,
    ) -> Self {
        self.on_tag = Some(Box::new(told));
        self
    }

    /// Has `room` asked whether there is room for so many bytes more, while much comes in ([`Settings::look`]). Its error is
    /// what the client hears, and what came of the body goes.
    pub fn with_room(
        mut self,
        room: impl Fn(u64) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.store.room = Some(Box::new(room));
        self
    }

    /// Takes away what nobody needs and gives up uploads that stand still. `keep` is what must stay though no tag points
    /// to it. `now` is a clock that only goes forward, from any beginning. To be called every hour or so; blocks.
    pub fn collect(&self, keep: &[Pinned], now: Duration) -> Result<Report, StoreError> {
        self.store.collect(keep, now)
    }

    /// All repositories, in order.
    pub fn repositories(&self) -> Result<Vec<RepositoryName>, StoreError> {
        let list = self.store.disk.repositories();
        list.map_err(error::disk("list repositories"))
    }

    /// A repository's tags and what they point to, in order; none where there is no such repository.
    pub fn tags(&self, repository: &RepositoryName) -> Result<Vec<(Tag, Digest)>, StoreError> {
        let tags = match self.store.tags(repository) {
            Err(StoreError::NameUnknown(_)) => return Ok(Vec::new()),
            other => other?,
        };
        let mut list = Vec::with_capacity(tags.len());
        for tag in tags {
            match self.resolve(repository, &Reference::Tag(tag.clone())) {
                Ok(digest) => list.push((tag, digest)),
                // It went meanwhile.
                Err(StoreError::ManifestUnknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(list)
    }

    /// What a tag points to.
    pub fn resolve(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Digest, StoreError> {
        self.store.resolve(repository, reference)
    }

    /// Whether a repository has this manifest: [`Registry::resolve`] takes a digest for what it is.
    pub fn has_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        let found = self.store.media_type(repository, digest)?;
        Ok(found.is_some())
    }

    /// Whether a repository has this blob.
    pub fn has_blob(&self, repository: &RepositoryName, digest: &Digest) -> bool {
        self.store.blob(repository, digest).is_ok()
    }

    /// Content by its digest, whichever repository it is of: for who pinned it.
    pub fn content(&self, digest: &Digest) -> Result<Option<(File, u64)>, StoreError> {
        self.store.content(digest)
    }

    /// Takes away a repository with all its tags; its blobs go with the next collections. Whether there was one.
    pub fn remove(&self, repository: &RepositoryName) -> Result<bool, StoreError> {
        self.store.remove_repository(repository)
    }

    /// Blobs, each counted once, and uploads under way.
    pub fn usage(&self) -> Usage {
        Usage {
            bytes: self.store.book().total(),
            bound: self.store.settings.quota.total_bytes,
        }
    }

    /// The same of one repository; blobs that it shares are counted in full. The bound is that of all that its owner has.
    pub fn usage_of(&self, repository: &RepositoryName) -> Usage {
        Usage {
            bytes: self.store.book().held(repository),
            bound: self.store.settings.quota.owner_bytes,
        }
    }

    /// A tag is about to lead elsewhere.
    fn announce(&self, repository: &RepositoryName, tag: &Tag, digest: &Digest) {
        if let Some(told) = &self.on_tag {
            told(repository, tag, digest);
        }
    }

    fn tell(&self, repository: &RepositoryName, reference: &Reference, put: &store::Put) {
        let Some(told) = &self.on_push else {
            return;
        };
        let push = |reference, before| Push {
            repository: repository.clone(),
            reference,
            digest: put.digest.clone(),
            media_type: put.media_type.clone(),
            before,
        };
        if let Reference::Digest(digest) = reference {
            told(&push(Reference::Digest(digest.clone()), None));
        }
        for (tag, before) in &put.tags {
            told(&push(Reference::Tag(tag.clone()), before.clone()));
        }
    }
}
