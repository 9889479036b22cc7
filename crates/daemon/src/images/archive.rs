//! An image that was handed over as an archive: an OCI image layout (image spec, "Image Layout Specification"), or what
//! `docker save` writes. It is taken apart in a folder of its own, which goes in any case; what belongs to the image for
//! this machine goes into the registry, where each part must have the digest that names it.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use hutong_core::units::show_size;
use hutong_registry::unpack::UnpackError;
use hutong_registry::unpack::archive::{Archive, Kind as EntryKind};
use hutong_registry::{
    Algorithm, DOCKER_MANIFEST, Descriptor, Digest, Kind, MAX_MANIFEST, Manifest, Platform,
    Reference, Registry, RepositoryName, StoreError,
};
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;

use super::causes;

/// Files of an archive; an image has one for each layer and a few more.
const MAX_FILES: usize = 10_000;
/// What an archive may have beside the content of files, in bytes.
const MAX_OVERHEAD: u64 = 32 << 20;
/// As many as an image may have.
const MAX_LAYERS: usize = 256;
/// Platforms that are named to who has none for this machine.
const NAMED: usize = 20;
/// Indexes in indexes.
const MAX_NESTING: usize = 4;

#[derive(Debug, Error)]
pub enum ArchiveError {
    /// What is wrong with the archive.
    #[error("{0}")]
    Bad(String),
    #[error("the archive is cut off or broken: {0}")]
    Broken(io::Error),
    #[error("the archive is over the bound of {}", show_size(*.0))]
    TooLarge(u64),
    #[error("the image cannot be stored: {0}")]
    Disk(io::Error),
    #[error("the image is not taken: {}", causes(.0))]
    Store(StoreError),
}

use ArchiveError::{Bad, Disk};

/// Takes an archive in, gzipped or not; the digest of the image's manifest. `staging` is a folder for parts on their way.
pub fn take_in(
    registry: &Registry,
    repository: &RepositoryName,
    staging: &Path,
    source: impl Read,
    bound: u64,
) -> Result<Digest, ArchiveError> {
    let files = Files::take_apart(staging, source, bound)?;
    let store = Store {
        registry,
        repository,
        files: &files,
    };
    if let Some(index) = files.small("index.json")? {
        return store.layout(&index);
    }
    if let Some(list) = files.small("manifest.json")? {
        return store.docker(&list);
    }
    Err(Bad(
        "this is no image: neither index.json (OCI) nor manifest.json (docker save) is in it"
            .into(),
    ))
}

enum Entry {
    File(PathBuf, u64),
    /// Another name, as older versions of `docker save` write layers that are there twice.
    Link(String),
}

/// An archive's files, under names of ours; gone when dropped.
struct Files {
    folder: PathBuf,
    files: HashMap<String, Entry>,
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(
                "{} stays until the next start: {error}",
                self.folder.display()
            );
        }
    }
}

impl Files {
    fn take_apart(staging: &Path, mut source: impl Read, bound: u64) -> Result<Self, ArchiveError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| Disk(io::Error::other(error)))?;
        let folder = staging.join(hutong_core::tree::hex(&random));
        fs::create_dir_all(&folder).map_err(Disk)?;
        let mut files = Files {
            folder,
            files: HashMap::new(),
        };
        let mut head = Vec::new();
        source
            .by_ref()
            .take(2)
            .read_to_end(&mut head)
            .map_err(ArchiveError::Broken)?;
        let packed = head == [0x1f, 0x8b];
        let whole = Cursor::new(head).chain(source);
        let done = match packed {
            true => files.read(GzDecoder::new(whole), bound),
            false => files.read(whole, bound),
        };
        done.map(|()| files)
    }

    fn read(&mut self, source: impl Read, bound: u64) -> Result<(), ArchiveError> {
        let mut left = bound;
        let of_reading = |error: io::Error| match error.get_ref() {
            Some(inner) if inner.is::<Over>() => ArchiveError::TooLarge(bound),
            _ => ArchiveError::Broken(error),
        };
        let of_archive = |error: UnpackError| match error {
            UnpackError::Source(error) => of_reading(error),
            UnpackError::Broken(what) => ArchiveError::Broken(io::Error::other(what)),
            UnpackError::Unsupported(what) => {
                Bad(format!("the archive holds {what}, which is not supported"))
            }
            other => Bad(other.to_string()),
        };
        // Headers are not counted one by one, and what is behind the last one is read, too.
        let mut archive = Archive::new(Bounded {
            source,
            left: bound.saturating_add(MAX_OVERHEAD),
        });
        let mut number = 0;
        while let Some(entry) = archive.advance().map_err(of_archive)? {
            number += 1;
            if number > MAX_FILES {
                return Err(Bad(format!("the archive has over {MAX_FILES} files")));
            }
            let name = clean(&entry.path)?;
            if entry.kind == EntryKind::Directory || name.is_empty() {
                continue;
            }
            left = left
                .checked_sub(entry.size)
                .ok_or(ArchiveError::TooLarge(bound))?;
            let found = match entry.kind {
                EntryKind::File => {
                    let path = self.folder.join(number.to_string());
                    let mut file = File::create_new(&path).map_err(Disk)?;
                    copy(&mut archive, &mut file, entry.size, &of_reading)?;
                    Entry::File(path, entry.size)
                }
                EntryKind::Symlink | EntryKind::HardLink => {
                    let from = match entry.kind {
                        EntryKind::Symlink => name.rsplit_once('/').map_or("", |(above, _)| above),
                        _ => "",
                    };
                    Entry::Link(follow(from, &String::from_utf8_lossy(&entry.link))?)
                }
                _ => return Err(Bad(format!("`{name}` of the archive is no plain file"))),
            };
            self.files.insert(name, found);
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<(&Path, u64)> {
        let mut name = name;
        for _ in 0..4 {
            match self.files.get(name)? {
                Entry::File(path, size) => return Some((path, *size)),
                Entry::Link(to) => name = to,
            }
        }
        None
    }

    /// What is small by nature.
    fn small(&self, name: &str) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some((path, size)) = self.find(name) else {
            return Ok(None);
        };
        if size > MAX_MANIFEST {
            return Err(Bad(format!("{name} of the archive is too large")));
        }
        fs::read(path).map(Some).map_err(Disk)
    }
}

/// A source that may give so much.
struct Bounded<R> {
    source: R,
    left: u64,
}

#[derive(Debug, Error)]
#[error("over the bound")]
struct Over;

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        let left = self.left.checked_sub(count as u64);
        self.left = left.ok_or_else(|| io::Error::other(Over))?;
        Ok(count)
    }
}

/// Reading is the archive's, writing is the disk's.
fn copy(
    from: &mut impl Read,
    to: &mut File,
    size: u64,
    of_reading: &dyn Fn(io::Error) -> ArchiveError,
) -> Result<(), ArchiveError> {
    use std::io::Write;
    let mut buffer = vec![0; 64 << 10];
    let mut came = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(of_reading)?,
        };
        if count == 0 {
            break;
        }
        came += count as u64;
        to.write_all(&buffer[..count]).map_err(Disk)?;
    }
    match came == size {
        true => Ok(()),
        false => Err(ArchiveError::Broken(io::ErrorKind::UnexpectedEof.into())),
    }
}

fn clean(name: &[u8]) -> Result<String, ArchiveError> {
    let text =
        std::str::from_utf8(name).map_err(|_| Bad("a name in the archive is not UTF-8".into()))?;
    follow("", text)
}

/// A name, seen from a folder of the archive.
fn follow(folder: &str, name: &str) -> Result<String, ArchiveError> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                let above = parts.pop();
                above.ok_or_else(|| Bad(format!("`{name}` leads out of the archive")))?;
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// One entry of what `docker save` calls manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    layers: Vec<String>,
}

/// What the indexes of an archive lead to.
#[derive(Default)]
struct Collected {
    seen: BTreeSet<Digest>,
    /// Images for this machine.
    found: BTreeSet<Digest>,
    /// What others are for, the first few.
    others: Vec<String>,
}

fn too_many(layers: usize) -> ArchiveError {
    Bad(format!(
        "the image has {layers} layers, and {MAX_LAYERS} are allowed"
    ))
}

struct Store<'a> {
    registry: &'a Registry,
    repository: &'a RepositoryName,
    files: &'a Files,
}

impl Store<'_> {
    fn layout(&self, index: &[u8]) -> Result<Digest, ArchiveError> {
        let mut all = Collected::default();
        self.collect(index, None, 0, &mut all)?;
        let host = Platform::host();
        let wanted = format!("{}/{}", host.os, host.architecture);
        let mut found = all.found.into_iter();
        let digest = found.next().ok_or_else(|| {
            Bad(match all.others.is_empty() {
                true => "the archive holds no image".into(),
                false => format!(
                    "the archive holds no image for {wanted}, but for {}",
                    all.others.join(", ")
                ),
            })
        })?;
        let more = found.count();
        if more > 0 {
            return Err(Bad(format!(
                "the archive holds {} images for {wanted}; hand over one with one",
                more + 1
            )));
        }
        let bytes = self.files.small(&name_of(&digest))?;
        let bytes = bytes.ok_or_else(|| Bad(format!("the archive lacks {digest}")))?;
        let manifest = Manifest::parse(&bytes, None).map_err(Bad)?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(too_many(manifest.layers.len()));
        }
        let mut seen = BTreeSet::new();
        for blob in manifest.blobs() {
            if seen.insert(blob.digest.as_str()) {
                self.blob(blob)?;
            }
        }
        self.manifest(&digest, &bytes)
    }

    /// Looks through an index and those in it, each once however often it is named.
    fn collect(
        &self,
        bytes: &[u8],
        media_type: Option<&str>,
        depth: usize,
        all: &mut Collected,
    ) -> Result<(), ArchiveError> {
        if depth > MAX_NESTING {
            return Err(Bad("the archive's indexes are too deep".into()));
        }
        let index = Manifest::parse(bytes, media_type).map_err(Bad)?;
        let host = Platform::host();
        for one in &index.manifests {
            if let Some(platform) = &one.platform
                && (platform.os != host.os || platform.architecture != host.architecture)
            {
                if all.others.len() < NAMED {
                    all.others
                        .push(format!("{}/{}", platform.os, platform.architecture));
                }
                continue;
            }
            let digest = one.digest().map_err(|error| Bad(error.to_string()))?;
            if !all.seen.insert(digest.clone()) {
                continue;
            }
            // Of an image for many platforms some archives hold one.
            let Some(bytes) = self.files.small(&name_of(&digest))? else {
                continue;
            };
            let said = Some(one.media_type.as_str()).filter(|text| !text.is_empty());
            match Manifest::parse(&bytes, said).map_err(Bad)?.kind {
                Kind::Image => {
                    all.found.insert(digest);
                }
                Kind::Index => self.collect(&bytes, said, depth + 1, all)?,
                Kind::Artifact => {}
            }
        }
        Ok(())
    }

    fn blob(&self, blob: &Descriptor) -> Result<(), ArchiveError> {
        let digest = blob.digest().map_err(|error| Bad(error.to_string()))?;
        match self.files.find(&name_of(&digest)) {
            Some((path, _)) => self.file(&digest, path),
            None => {
                let known = self.registry.adopt(self.repository, &digest);
                match known.map_err(ArchiveError::Store)? {
                    true => Ok(()),
                    false => Err(Bad(format!("the archive lacks {digest}"))),
                }
            }
        }
    }

    fn file(&self, digest: &Digest, path: &Path) -> Result<(), ArchiveError> {
        let mut file = File::open(path).map_err(Disk)?;
        let taken = self.registry.ingest(self.repository, digest, &mut file);
        taken.map(drop).map_err(ArchiveError::Store)
    }

    fn manifest(&self, digest: &Digest, bytes: &[u8]) -> Result<Digest, ArchiveError> {
        let reference = Reference::Digest(digest.clone());
        self.registry
            .ingest_manifest(self.repository, &reference, None, bytes)
            .map_err(ArchiveError::Store)
    }

    /// `docker save` before it wrote layouts: layers have names, and digests are had by reading.
    fn docker(&self, list: &[u8]) -> Result<Digest, ArchiveError> {
        let list: Vec<Saved> = serde_json::from_slice(list)
            .map_err(|error| Bad(format!("manifest.json is not understood: {error}")))?;
        let [saved] = &list[..] else {
            return Err(Bad(format!(
                "the archive holds {} images; hand over one with one",
                list.len()
            )));
        };
        if saved.layers.len() > MAX_LAYERS {
            return Err(too_many(saved.layers.len()));
        }
        let mut parts = Vec::with_capacity(saved.layers.len() + 1);
        let mut known: HashMap<&Path, Digest> = HashMap::new();
        for (name, media_type) in std::iter::once((&saved.config, CONFIG))
            .chain(saved.layers.iter().map(|name| (name, LAYER)))
        {
            let name = clean(name.as_bytes())?;
            let (path, size) = self
                .files
                .find(&name)
                .ok_or_else(|| Bad(format!("the archive lacks {name}")))?;
            let digest = match known.get(path) {
                Some(digest) => digest.clone(),
                None => {
                    let mut hasher = Algorithm::Sha256.hasher();
                    let mut file = File::open(path).map_err(Disk)?;
                    hasher.read_all(&mut file).map_err(Disk)?;
                    let digest = hasher.finish();
                    self.file(&digest, path)?;
                    known.insert(path, digest.clone());
                    digest
                }
            };
            parts.push(Descriptor {
                media_type: media_type.to_owned(),
                digest: digest.to_string(),
                size,
                ..Descriptor::default()
            });
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": parts[0],
            "layers": parts[1..],
        });
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        self.manifest(&digest, &bytes)
    }
}

const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Where a layout has a blob.
fn name_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

#[cfg(test)]
mod tests;
