//! Manifests as they come and go, and what refers to them. The order of the steps is in `store`.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use super::{Store, TAG, size_of};
use crate::book::{Book, Charge, Item};
use crate::digest::{Algorithm, Digest};
use crate::disk::{is_there, make, names, remove, sync_folder};
use crate::error::{Result, StoreError, disk};
use crate::manifest::{Descriptor, Kind, MAX_MANIFEST, Manifest};
use crate::name::{Reference, RepositoryName, Tag};

/// What became of a manifest that was put.
#[derive(Clone, Debug)]
pub(crate) struct Put {
    pub digest: Digest,
    pub media_type: String,
    pub subject: Option<Digest>,
    /// The tags that point to it now, and what they pointed to before.
    pub tags: Vec<(Tag, Option<Digest>)>,
}

/// One page of referrers.
pub(crate) struct Referrers {
    pub list: Vec<Descriptor>,
    /// The last one that was looked at, if there may be more.
    pub next: Option<String>,
}

/// At most this many missing blobs are named in an error.
const NAMED: usize = 20;

impl Store {
    /// Stores a manifest in the bytes that came (distribution spec, "Pushing Manifests"). `tags` are those of the
    /// query, for a push by digest.
    pub fn put_manifest(
        &self,
        name: &RepositoryName,
        (reference, tags): (&Reference, &[Tag]),
        content_type: Option<&str>,
        bytes: &[u8],
        announce: &dyn Fn(&Tag, &Digest),
    ) -> Result<Put> {
        let (digest, tags) = match reference {
            Reference::Tag(tag) => (
                Digest::of(Algorithm::Sha256, bytes),
                std::slice::from_ref(tag),
            ),
            Reference::Digest(claimed) => {
                let found = Digest::of(claimed.algorithm(), bytes);
                if found != *claimed {
                    let claimed = claimed.clone();
                    return Err(StoreError::Mismatch { claimed, found });
                }
                (found, tags)
            }
        };
        let manifest = Manifest::parse(bytes, content_type).map_err(StoreError::ManifestInvalid)?;
        let entry = serde_json::to_vec(&manifest.describe(&digest, bytes.len() as u64))
            .map_err(|error| disk("describe a manifest")(error.into()))?;
        let failed = "store a manifest";
        let staged = self.disk.stage(bytes).map_err(disk(failed))?;

        let _turn = self.turn();
        self.check_parts(name, &manifest)?;
        let new = New {
            content: !is_there(&self.disk.blob(&digest)),
            manifest: !is_there(&self.disk.manifest(name, &digest)),
            entry: manifest.subject.as_ref().is_some_and(|subject| {
                let folder = self.disk.referrers(name, subject);
                !is_there(&folder.join(digest.to_string()))
            }),
            tags: tags
                .iter()
                .filter(|tag| !is_there(&self.disk.tag(name, tag)))
                .count(),
        };
        let charge = new.charge(bytes.len() as u64, entry.len() as u64);
        {
            let mut book = self.book();
            book.touch(Item::Manifest(name.clone(), digest.clone()));
            book.touch(Item::Content(digest.clone()));
            book.reserve(&self.settings.quota, name, charge)?;
        }
        let write = || -> io::Result<()> {
            if new.content {
                staged.publish(&self.disk.blob(&digest))?;
            }
            self.disk.make_repository(name)?;
            if let Some(subject) = &manifest.subject {
                let folder = self.disk.referrers(name, subject);
                if make(&folder)? {
                    sync_folder(&self.disk.all_referrers(name))?;
                }
                let path = folder.join(digest.to_string());
                self.disk.write(&path, &entry)?;
            }
            let path = self.disk.manifest(name, &digest);
            self.disk.write(&path, manifest.media_type.as_bytes())
        };
        if let Err(error) = write() {
            // What did get there is found by the next collection; the figures are right again after a restart.
            self.book().release(name, charge);
            return Err(disk(failed)(error));
        }
        let mut moved = Vec::with_capacity(tags.len());
        for tag in tags {
            let before = self.tagged(name, tag).unwrap_or_default();
            if before.as_ref() != Some(&digest) {
                announce(tag, &digest);
            }
            let text = format!("{digest}\n");
            self.disk
                .write(&self.disk.tag(name, tag), text.as_bytes())
                .map_err(disk("write a tag"))?;
            moved.push((tag.clone(), before));
        }
        Ok(Put {
            digest,
            media_type: manifest.media_type,
            subject: manifest.subject,
            tags: moved,
        })
    }

    /// An image must have its blobs in its repository, with the sizes that it says. An index may name manifests that
    /// are not there: of an image for many platforms, some copy a few only. A subject may come later, says the spec.
    fn check_parts(&self, name: &RepositoryName, manifest: &Manifest) -> Result<()> {
        let mut missing = Vec::new();
        let mut seen = BTreeSet::new();
        for part in manifest.blobs() {
            if !seen.insert(part.digest.as_str()) {
                continue;
            }
            let Ok(digest) = part.digest() else {
                missing.push(part.digest.clone());
                continue;
            };
            self.book().touch(Item::Link(name.clone(), digest.clone()));
            let path = self.disk.blob(&digest);
            if !is_there(&self.disk.link(name, &digest)) || !is_there(&path) {
                if !part.is_elsewhere() {
                    missing.push(part.digest.clone());
                }
                continue;
            }
            let size = size_of(&path);
            if size != part.size {
                return Err(StoreError::Size {
                    said: part.size,
                    came: size,
                });
            }
        }
        if !missing.is_empty() {
            missing.truncate(NAMED);
            return Err(StoreError::ManifestBlobUnknown(missing));
        }
        if manifest.kind == Kind::Index {
            let mut book = self.book();
            for child in manifest.children() {
                book.touch(Item::Manifest(name.clone(), child));
            }
        }
        Ok(())
    }

    /// Takes a tag away (distribution spec, "Deleting tags").
    pub fn delete_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<()> {
        let _turn = self.turn();
        let failed = "delete a tag";
        if !remove(&self.disk.tag(name, tag)).map_err(disk(failed))? {
            return Err(StoreError::ManifestUnknown(Reference::Tag(tag.clone())));
        }
        self.book().release(name, TAG);
        sync_folder(&self.disk.tags(name)).map_err(disk(failed))
    }

    /// Takes a manifest away, and its tags (distribution spec, "Deleting Manifests").
    pub fn delete_manifest(&self, name: &RepositoryName, digest: &Digest) -> Result<()> {
        let _turn = self.turn();
        if !is_there(&self.disk.manifest(name, digest)) {
            let reference = Reference::Digest(digest.clone());
            return Err(StoreError::ManifestUnknown(reference));
        }
        let failed = "delete a manifest";
        let mut untagged = false;
        for tag in self.all_tags(name)? {
            if self.tagged(name, &tag)?.as_ref() == Some(digest) {
                untagged |= remove(&self.disk.tag(name, &tag)).map_err(disk(failed))?;
                self.book().release(name, TAG);
            }
        }
        if untagged {
            sync_folder(&self.disk.tags(name)).map_err(disk(failed))?;
        }
        let subject = self.subject(name, digest)?;
        self.remove_manifest(&mut self.book(), name, digest, subject.as_ref())
            .map_err(disk(failed))?;
        sync_folder(&self.disk.manifests(name)).map_err(disk(failed))
    }

    pub fn subject(&self, name: &RepositoryName, digest: &Digest) -> Result<Option<Digest>> {
        let Some(bytes) = self.small_content(digest)? else {
            return Ok(None);
        };
        let media_type = self.media_type(name, digest)?;
        let parsed = Manifest::parse(&bytes, media_type.as_deref());
        Ok(parsed.ok().and_then(|manifest| manifest.subject))
    }

    /// Removes a manifest that no tag points to. The caller has the turn, and syncs the folder.
    pub fn remove_manifest(
        &self,
        book: &mut Book,
        name: &RepositoryName,
        digest: &Digest,
        subject: Option<&Digest>,
    ) -> io::Result<()> {
        let mut charge = Charge {
            repository: size_of(&self.disk.blob(digest)),
            names: 1,
            ..Charge::default()
        };
        if !remove(&self.disk.manifest(name, digest))? {
            return Ok(());
        }
        if let Some(subject) = subject {
            let folder = self.disk.referrers(name, subject);
            let entry = folder.join(digest.to_string());
            let size = size_of(&entry);
            if remove(&entry)? {
                charge.repository += size;
                charge.total += size;
            }
            // Where it was the last one.
            let _ = fs::remove_dir(&folder);
        }
        book.release(name, charge);
        Ok(())
    }

    /// What names `subject` as its subject (distribution spec, "Listing Referrers"), behind `after`. A page holds no
    /// more than `page` descriptors, and about as many bytes as a manifest may have.
    pub fn referrers(
        &self,
        name: &RepositoryName,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: Option<&str>,
        page: usize,
    ) -> Result<Referrers> {
        let failed = "list referrers";
        let folder = self.disk.referrers(name, subject);
        let mut entries = names(&folder).map_err(disk(failed))?;
        entries.sort_unstable();
        let mut list = Vec::new();
        let mut bytes = 0;
        let mut last: Option<String> = None;
        for entry in entries {
            if after.is_some_and(|after| entry.as_str() <= after) {
                continue;
            }
            if list.len() >= page || bytes >= MAX_MANIFEST {
                return Ok(Referrers { list, next: last });
            }
            let Ok(digest) = entry.parse::<Digest>() else {
                continue;
            };
            // It was being pushed, or deleted, when we were killed.
            if !is_there(&self.disk.manifest(name, &digest)) {
                continue;
            }
            let text = match fs::read(folder.join(&entry)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(disk(failed))?,
            };
            let descriptor: Descriptor =
                serde_json::from_slice(&text).map_err(|error| disk(failed)(error.into()))?;
            last = Some(entry);
            if artifact_type
                .is_some_and(|wanted| descriptor.artifact_type.as_deref() != Some(wanted))
            {
                continue;
            }
            bytes += text.len() as u64;
            list.push(descriptor);
        }
        Ok(Referrers { list, next: None })
    }
}

/// What a manifest adds to what is there.
struct New {
    content: bool,
    manifest: bool,
    entry: bool,
    tags: usize,
}

impl New {
    fn charge(&self, size: u64, entry: u64) -> Charge {
        let if_new = |new: bool, size: u64| if new { size } else { 0 };
        let entry = if_new(self.entry, entry);
        Charge {
            total: if_new(self.content, size) + entry,
            repository: if_new(self.manifest, size) + entry,
            names: self.tags as u64 + u64::from(self.manifest),
        }
    }
}
