//! An image that was handed over as an archive: an OCI image layout (image spec, "Image Layout Specification"), or what
//! `docker save` writes. It is taken apart in a folder of its own, which goes in any case; what belongs to the image for
//! this machine goes into the registry, where each part must have the digest that names it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use hutong_core::units::show_size;
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
        let mut archive = tar::Archive::new(source);
        let entries = archive.entries().map_err(ArchiveError::Broken)?;
        for (number, entry) in entries.enumerate() {
            let mut entry = entry.map_err(ArchiveError::Broken)?;
            if number >= MAX_FILES {
                return Err(Bad(format!("the archive has over {MAX_FILES} files")));
            }
            let name = clean(&entry.path_bytes())?;
            let kind = entry.header().entry_type();
            if kind.is_dir() || kind.is_pax_global_extensions() || name.is_empty() {
                continue;
            }
            let size = entry.size();
            left = left
                .checked_sub(size)
                .ok_or(ArchiveError::TooLarge(bound))?;
            let found = if kind.is_file() {
                let path = self.folder.join(number.to_string());
                let mut file = File::create_new(&path).map_err(Disk)?;
                copy(&mut entry, &mut file, size)?;
                Entry::File(path, size)
            } else if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default();
                let from = match kind.is_symlink() {
                    true => name.rsplit_once('/').map_or("", |(folder, _)| folder),
                    false => "",
                };
                Entry::Link(follow(from, &String::from_utf8_lossy(&target))?)
            } else {
                return Err(Bad(format!("`{name}` of the archive is no plain file")));
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

/// Reading is the archive's, writing is the disk's.
fn copy(from: &mut impl Read, to: &mut File, size: u64) -> Result<(), ArchiveError> {
    use std::io::Write;
    let mut buffer = vec![0; 64 << 10];
    let mut came = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(ArchiveError::Broken)?,
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

struct Store<'a> {
    registry: &'a Registry,
    repository: &'a RepositoryName,
    files: &'a Files,
}

impl Store<'_> {
    fn layout(&self, index: &[u8]) -> Result<Digest, ArchiveError> {
        let mut found = BTreeMap::new();
        let mut others = Vec::new();
        self.collect(index, None, 0, &mut found, &mut others)?;
        let host = Platform::host();
        let wanted = format!("{}/{}", host.os, host.architecture);
        let mut found = found.into_iter();
        let (digest, bytes) = found.next().ok_or_else(|| {
            others.truncate(20);
            Bad(match others.is_empty() {
                true => "the archive holds no image".into(),
                false => format!(
                    "the archive holds no image for {wanted}, but for {}",
                    others.join(", ")
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
        let manifest = Manifest::parse(&bytes, None).map_err(Bad)?;
        for blob in manifest.blobs() {
            self.blob(blob)?;
        }
        self.manifest(&digest, &bytes)
    }

    /// The images of an index that are for this machine, and what others are for.
    fn collect(
        &self,
        bytes: &[u8],
        media_type: Option<&str>,
        depth: usize,
        found: &mut BTreeMap<Digest, Vec<u8>>,
        others: &mut Vec<String>,
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
                others.push(format!("{}/{}", platform.os, platform.architecture));
                continue;
            }
            let digest = one.digest().map_err(|error| Bad(error.to_string()))?;
            // Of an image for many platforms some archives hold one.
            let Some(bytes) = self.files.small(&name_of(&digest))? else {
                continue;
            };
            let said = Some(one.media_type.as_str()).filter(|text| !text.is_empty());
            match Manifest::parse(&bytes, said).map_err(Bad)?.kind {
                Kind::Image => {
                    found.insert(digest, bytes);
                }
                Kind::Index => self.collect(&bytes, said, depth + 1, found, others)?,
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
        let mut parts = Vec::with_capacity(saved.layers.len() + 1);
        for (name, media_type) in std::iter::once((&saved.config, CONFIG))
            .chain(saved.layers.iter().map(|name| (name, LAYER)))
        {
            let name = clean(name.as_bytes())?;
            let (path, size) = self
                .files
                .find(&name)
                .ok_or_else(|| Bad(format!("the archive lacks {name}")))?;
            let mut hasher = Algorithm::Sha256.hasher();
            let mut file = File::open(path).map_err(Disk)?;
            hasher.read_all(&mut file).map_err(Disk)?;
            let digest = hasher.finish();
            self.file(&digest, path)?;
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
