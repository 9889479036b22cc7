//! What the registry holds: blobs, manifests, tags, referrers. Uploads under way are `uploads`', what may go is
//! `collect`'s; how it is said over HTTP is no business of this.
//!
//! Whoever changes a name on the disk has the *turn*, one at a time. Each change is one of these, in this order; a kill
//! between two steps leaves what is said on the right:
//!
//! | change | steps, each on disk before the next | killed behind it |
//! |---|---|---|
//! | a blob comes | content gets its name; link | content without a link: the next collection's |
//! | a manifest comes | content; entry among the referrers; manifest; tags | an entry that is not listed; a manifest without a tag. Both go after their grace, or a second push completes them |
//! | a tag goes | tag | |
//! | a manifest goes | its tags; manifest; entry among the referrers | an untagged manifest; an entry that is not listed |
//! | a blob goes | link | content without a link |
//! | a collection | manifest or link; later, content | as above |
//!
//! So: a tag has its manifest, a manifest of an image has all its blobs in its repository, a link has its content, and
//! content is what its name says.

mod manifests;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::Settings;
use crate::book::{Book, Charge, Item};
use crate::digest::Digest;
use crate::disk::{Disk, is_there, names, remove, sync_folder, sync_parent};
use crate::error::{Result, StoreError, disk};
use crate::manifest::{MAX_MANIFEST, Manifest};
use crate::name::{Reference, RepositoryName, Tag, UploadId};
use crate::uploads::Session;

pub(crate) use manifests::Put;

pub(crate) struct Store {
    pub disk: Disk,
    pub settings: Settings,
    /// Held over a change of names. Taken before the book.
    turn: Mutex<()>,
    /// Held for a look or an unlink, and never while something is synced.
    book: Mutex<Book>,
    pub sessions: Mutex<HashMap<UploadId, Arc<Session>>>,
    /// One collection at a time.
    pub collecting: Mutex<()>,
    /// Asked while much comes in.
    pub room: Option<Room>,
}

/// Whether there is room for so many bytes; if not, why.
pub(crate) type Room = Box<dyn Fn(u64) -> Result<(), String> + Send + Sync>;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Store {
    /// Takes stock of what is there.
    pub fn open(folder: &Path, settings: Settings) -> Result<Self> {
        let store = Store {
            disk: Disk::open(folder)?,
            turn: Mutex::default(),
            book: Mutex::new(Book::new(settings.owner)),
            sessions: Mutex::default(),
            collecting: Mutex::default(),
            room: None,
            settings,
        };
        store.take_stock().map_err(disk("take stock"))?;
        store.resume_uploads()?;
        Ok(store)
    }

    fn take_stock(&self) -> io::Result<()> {
        let mut book = self.book();
        let mut sizes = HashMap::new();
        for (digest, size) in self.disk.contents()? {
            book.add_content(size);
            sizes.insert(digest, size);
        }
        for name in self.disk.repositories()? {
            let mut held = Charge::default();
            for folder in [self.disk.links(&name), self.disk.manifests(&name)] {
                for digest in Disk::digests(&folder)? {
                    held.names += 1;
                    held.repository += sizes.get(&digest).copied().unwrap_or_default();
                }
            }
            held.names += names(&self.disk.tags(&name))?.len() as u64;
            let referrers = self.disk.all_referrers(&name);
            for subject in names(&referrers)? {
                let folder = referrers.join(subject);
                for entry in names(&folder)? {
                    let size = size_of(&folder.join(entry));
                    held.repository += size;
                    held.total += size;
                }
            }
            book.add(&name, held);
        }
        Ok(())
    }

    pub fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    pub fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.turn)
    }

    // Blobs.

    /// Content, whoever may read it: for those who were given its digest by us.
    pub fn content(&self, digest: &Digest) -> Result<Option<(File, u64)>> {
        let file = match File::open(self.disk.blob(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(disk("open a blob"))?,
        };
        let size = file.metadata().map_err(disk("read a blob"))?.len();
        Ok(Some((file, size)))
    }

    /// Content that is small by nature.
    pub fn small_content(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let Some((file, size)) = self.content(digest)? else {
            return Ok(None);
        };
        if size > MAX_MANIFEST {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(size as usize);
        file.take(MAX_MANIFEST)
            .read_to_end(&mut bytes)
            .map_err(disk("read a manifest"))?;
        Ok(Some(bytes))
    }

    /// A blob that the repository has. Whoever is told of it has the time of grace to refer to it.
    pub fn blob(&self, name: &RepositoryName, digest: &Digest) -> Result<(File, u64)> {
        // First, or a collection could come between the look and the word.
        self.book().touch(Item::Link(name.clone(), digest.clone()));
        let unknown = || StoreError::BlobUnknown(digest.clone());
        if !is_there(&self.disk.link(name, digest)) {
            return Err(unknown());
        }
        self.content(digest)?.ok_or_else(unknown)
    }

    /// Gives the repository a blob of another one (distribution spec, "Mounting a blob from another repository").
    pub fn mount(
        &self,
        name: &RepositoryName,
        from: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool> {
        let _turn = self.turn();
        if !is_there(&self.disk.link(from, digest)) {
            return Ok(false);
        }
        let path = self.disk.blob(digest);
        if !is_there(&path) {
            return Ok(false);
        }
        self.link(name, digest, size_of(&path))?;
        Ok(true)
    }

    /// The repositories that have a blob.
    pub fn holders(&self, digest: &Digest) -> Result<Vec<RepositoryName>> {
        let mut all = self
            .disk
            .repositories()
            .map_err(disk("list repositories"))?;
        all.retain(|name| is_there(&self.disk.link(name, digest)));
        Ok(all)
    }

    /// Makes a link, for which the caller has the turn. The content must be there.
    pub fn link(&self, name: &RepositoryName, digest: &Digest, size: u64) -> Result<()> {
        let path = self.disk.link(name, digest);
        let charge = Charge {
            repository: size,
            names: 1,
            ..Charge::default()
        };
        {
            let mut book = self.book();
            book.touch(Item::Link(name.clone(), digest.clone()));
            book.touch(Item::Content(digest.clone()));
            if is_there(&path) {
                return Ok(());
            }
            book.reserve(&self.settings.quota, name, charge)?;
        }
        let linked = self
            .disk
            .make_repository(name)
            .and_then(|()| crate::disk::create(&path))
            .and_then(|_| sync_folder(&self.disk.links(name)));
        linked.map_err(|error| {
            if !is_there(&path) {
                self.book().release(name, charge);
            }
            disk("link a blob")(error)
        })
    }

    /// Takes a blob from a repository (distribution spec, "Deleting Blobs"), if no manifest there is made of it.
    pub fn delete_blob(&self, name: &RepositoryName, digest: &Digest) -> Result<()> {
        let path = self.disk.link(name, digest);
        let unknown = || StoreError::BlobUnknown(digest.clone());
        if !is_there(&path) {
            return Err(unknown());
        }
        // The long look without the turn, then at what came meanwhile.
        let mut seen = HashSet::new();
        self.check_unused(name, digest, &mut seen)?;
        let _turn = self.turn();
        self.check_unused(name, digest, &mut seen)?;
        if !is_there(&path) {
            return Err(unknown());
        }
        let failed = "delete a blob";
        remove(&path).map_err(disk(failed))?;
        let charge = Charge {
            repository: size_of(&self.disk.blob(digest)),
            names: 1,
            ..Charge::default()
        };
        self.book().release(name, charge);
        sync_folder(&self.disk.links(name)).map_err(disk(failed))
    }

    fn check_unused(
        &self,
        name: &RepositoryName,
        blob: &Digest,
        seen: &mut HashSet<Digest>,
    ) -> Result<()> {
        for digest in self.manifests(name)? {
            if !seen.insert(digest.clone()) {
                continue;
            }
            let Some(bytes) = self.small_content(&digest)? else {
                continue;
            };
            let media_type = self.media_type(name, &digest)?;
            let parsed = Manifest::parse(&bytes, media_type.as_deref());
            if parsed.is_ok_and(|manifest| manifest.blob_digests().any(|one| one == *blob)) {
                return Err(StoreError::InUse(blob.clone()));
            }
        }
        Ok(())
    }

    // Manifests.

    /// The digests of the repository's manifests.
    pub fn manifests(&self, name: &RepositoryName) -> Result<Vec<Digest>> {
        Disk::digests(&self.disk.manifests(name)).map_err(disk("list manifests"))
    }

    /// With what media type it was pushed; none if the repository does not have it.
    pub fn media_type(&self, name: &RepositoryName, digest: &Digest) -> Result<Option<String>> {
        match fs::read_to_string(self.disk.manifest(name, digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Ok(Some(other.map_err(disk("read a manifest's type"))?)),
        }
    }

    /// What a tag points to.
    pub fn resolve(&self, name: &RepositoryName, reference: &Reference) -> Result<Digest> {
        let unknown = || StoreError::ManifestUnknown(reference.clone());
        match reference {
            Reference::Digest(digest) => Ok(digest.clone()),
            Reference::Tag(tag) => self.tagged(name, tag)?.ok_or_else(unknown),
        }
    }

    fn tagged(&self, name: &RepositoryName, tag: &Tag) -> Result<Option<Digest>> {
        match fs::read_to_string(self.disk.tag(name, tag)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(disk("read a tag")(error)),
            Ok(text) => match text.trim().parse::<Digest>() {
                Ok(digest) => Ok(Some(digest)),
                Err(_) => Err(disk("read a tag")(io::ErrorKind::InvalidData.into())),
            },
        }
    }

    /// A manifest as it was pushed: digest, media type, bytes.
    pub fn manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Result<(Digest, String, Vec<u8>)> {
        let unknown = || StoreError::ManifestUnknown(reference.clone());
        let digest = self.resolve(name, reference)?;
        self.book()
            .touch(Item::Manifest(name.clone(), digest.clone()));
        let media_type = self.media_type(name, &digest)?.ok_or_else(unknown)?;
        let bytes = self.small_content(&digest)?.ok_or_else(unknown)?;
        Ok((digest, media_type, bytes))
    }

    // What is there.

    /// The repository's tags in the order of their bytes (distribution spec, "Listing Tags").
    pub fn tags(&self, name: &RepositoryName) -> Result<Vec<Tag>> {
        if !is_there(&self.disk.repository(name)) {
            return Err(StoreError::NameUnknown(name.clone()));
        }
        let mut tags = self.all_tags(name)?;
        tags.sort_unstable();
        Ok(tags)
    }

    pub fn all_tags(&self, name: &RepositoryName) -> Result<Vec<Tag>> {
        let names = names(&self.disk.tags(name)).map_err(disk("list tags"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Takes away everything of a repository; its blobs go with the next collections.
    pub fn remove_repository(&self, name: &RepositoryName) -> Result<bool> {
        let failed = "remove a repository";
        let _turn = self.turn();
        if !is_there(&self.disk.repository(name)) {
            return Ok(false);
        }
        for tag in self.all_tags(name)? {
            if remove(&self.disk.tag(name, &tag)).map_err(disk(failed))? {
                self.book().release(name, TAG);
            }
        }
        for digest in self.manifests(name)? {
            let subject = self.subject(name, &digest)?;
            self.remove_manifest(&mut self.book(), name, &digest, subject.as_ref())
                .map_err(disk(failed))?;
        }
        let links = Disk::digests(&self.disk.links(name)).map_err(disk(failed))?;
        for digest in links {
            let charge = Charge {
                repository: size_of(&self.disk.blob(&digest)),
                names: 1,
                ..Charge::default()
            };
            if remove(&self.disk.link(name, &digest)).map_err(disk(failed))? {
                self.book().release(name, charge);
            }
        }
        let whole = self.disk.remove_repository(name).map_err(disk(failed))?;
        let folder = self.disk.repository(name);
        sync_parent(&folder).map_err(disk(failed))?;
        Ok(whole)
    }
}

/// What a tag counts.
pub(crate) const TAG: Charge = Charge {
    total: 0,
    repository: 0,
    names: 1,
};

/// Nothing where there is none.
pub(crate) fn size_of(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |meta| meta.len())
}
