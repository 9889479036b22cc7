//! Images of other registries: their names, and how one is fetched into ours. Manifests and blobs come through
//! [`client`], are looked at, and are stored under the registry's name, so that what is there already is not fetched again.
//! What a killed process had of a blob is gone on with.

mod client;

use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use hutong_core::spec::{Image, Pull};
use hutong_core::units::show_size;
use hutong_registry::{
    Algorithm, Descriptor, Digest, Kind, Manifest, Platform, Reference, Registry, RepositoryName,
};

pub use self::client::Trouble;
use self::client::{Client, GoOn, LOOK, Source};
use super::causes;
use crate::{Control, lock};

/// An image has so many bytes at most, packed.
const MAX_IMAGE: u64 = 16 << 30;
/// Nobody goes on with what lies untouched for so long.
const PART_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Repositories of ours that hold what came from elsewhere.
/// No app can have this name.
const REMOTE: &str = "remote.images/";
/// What a name without a registry means, and where that one is.
const HUB: &str = "docker.io";
const HUB_ADDRESS: &str = "registry-1.docker.io";

/// `HOST/PATH[:TAG]` or `HOST/PATH@DIGEST`, with what engines add.
#[derive(Clone, Debug)]
pub struct Name {
    pub host: String,
    pub path: String,
    pub reference: Reference,
}

impl Name {
    pub fn parse(text: &str) -> Result<Self, String> {
        let odd = |error: &dyn std::fmt::Display| format!("the image `{text}`: {error}");
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') && !rest.is_empty() => (rest, Some(tag)),
            _ => (rest, None),
        };
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
                (host.to_ascii_lowercase(), path.to_owned())
            }
            _ => (HUB.to_owned(), rest.to_owned()),
        };
        let path = match host.as_str() {
            HUB if !path.contains('/') => format!("library/{path}"),
            _ => path,
        };
        // The same grammar holds for all registries.
        path.parse::<RepositoryName>()
            .map_err(|error| odd(&error))?;
        let reference = digest.or(tag).unwrap_or("latest");
        let reference = reference
            .parse::<Reference>()
            .map_err(|error| odd(&error))?;
        Ok(Name {
            host,
            path,
            reference,
        })
    }

    /// Where ours keeps it.
    pub fn repository(&self) -> Result<RepositoryName, String> {
        let host = self.host.replace(':', "__");
        let name = format!("{REMOTE}{host}/{}", self.path);
        name.parse::<RepositoryName>()
            .map_err(|error| format!("the registry {}: {error}", self.host))
    }

    fn source(&self, login: Option<(String, String)>) -> Source {
        let address = match self.host.as_str() {
            HUB => HUB_ADDRESS,
            host => host,
        };
        Source::new(&self.host, address, &self.path, login)
    }
}

/// The registry of an image, if that is this machine or at an address of its network.
pub fn inside(reference: &str) -> Option<String> {
    let name = Name::parse(reference).ok()?;
    client::is_inside(&name.host).then_some(name.host)
}

pub fn is_remote(name: &str) -> bool {
    name.starts_with(REMOTE)
}

pub struct Remotes {
    /// What came of blobs so far.
    folder: PathBuf,
    ca_bundle: Option<PathBuf>,
    client: OnceLock<Client>,
    /// Repositories that are being fetched from, one image of each at a time: two may share blobs.
    under_way: Mutex<HashSet<RepositoryName>>,
}

/// A repository that nobody else fetches from meanwhile.
struct Turn<'a>(&'a Remotes, RepositoryName);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.under_way).remove(&self.1);
    }
}

impl Remotes {
    pub fn new(folder: PathBuf, ca_bundle: Option<PathBuf>) -> Self {
        Remotes {
            folder,
            ca_bundle,
            client: OnceLock::new(),
            under_way: Mutex::default(),
        }
    }

    /// Waits until it is this repository's turn, if somebody still wants it.
    fn turn(&self, repository: &RepositoryName, go_on: GoOn<'_>) -> Result<Turn<'_>, String> {
        while !lock(&self.under_way).insert(repository.clone()) {
            go_on()?;
            std::thread::sleep(LOOK);
        }
        Ok(Turn(self, repository.clone()))
    }

    /// Where a blob's bytes go as they come. Two repositories may bring the same one at the same time.
    fn part(&self, repository: &RepositoryName, digest: &Digest) -> PathBuf {
        let of = Digest::of(Algorithm::Sha256, repository.as_str().as_bytes());
        self.folder
            .join(format!("{}-{}", &of.hex()[..16], digest.hex()))
    }

    /// Removes what came of blobs and was given up long ago; with `all`, whatever is there: who is still at it fetches
    /// that again.
    pub fn forget_parts(&self, all: bool) -> std::io::Result<()> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let touched = entry.metadata().and_then(|found| found.modified());
            let age = touched.map(|then| SystemTime::now().duration_since(then));
            if all || matches!(age, Ok(Ok(age)) if age > PART_LIFE) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    fn client(&self) -> Result<&Client, String> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = Client::new(self.ca_bundle.as_deref())?;
        Ok(self.client.get_or_init(|| client))
    }
}

/// The digest of what a tag leads to now (`image` is `NAME:TAG`); nothing is fetched.
pub async fn look(control: &Control, image: &str) -> Result<Digest, Trouble> {
    let odd = |reason: String| Trouble {
        reason,
        later: None,
    };
    let name = Name::parse(image).map_err(odd)?;
    let login = control.store.registry_login(&name.host);
    let login = login.map_err(|error| odd(error.to_string()))?;
    let client = control.images.client.client().map_err(odd)?;
    let mut source = name.source(login);
    client
        .digest(&mut source, &name.reference.to_string())
        .await
}

/// The manifest (or index) that the reference leads to; fetched with all that it is made of for this machine, as `pull`
/// says. On a thread that may wait, within the runtime. `go_on` is asked about once a second; its error ends it.
pub fn fetch(
    control: &Control,
    image: &Image,
    say: &dyn Fn(&str),
    go_on: GoOn<'_>,
) -> Result<Digest, String> {
    let registry = control.images.registry()?;
    let name = Name::parse(&image.reference)?;
    let repository = name.repository()?;
    let known = registry.resolve(&repository, &name.reference).ok();
    let known = known.filter(|digest| is_whole(&registry, &repository, digest));
    match (known, image.pull) {
        (Some(digest), Pull::Missing | Pull::Never) => return Ok(digest),
        (None, Pull::Never) => {
            let reference = &image.reference;
            return Err(format!(
                "the server has no image {reference}, and `pull` is \"never\""
            ));
        }
        _ => {}
    }
    control.has_disk()?;
    let login = control.store.registry_login(&name.host);
    let login = login.map_err(|error| error.to_string())?;
    let remotes = &control.images.client;
    let _turn = remotes.turn(&repository, go_on)?;
    let mut fetching = Fetching {
        runtime: tokio::runtime::Handle::current(),
        client: remotes.client()?,
        remotes,
        registry: &registry,
        repository,
        source: name.source(login),
        say,
        go_on,
    };
    let fetched = fetching.fetch(&name.reference);
    if fetched.is_err() && control.has_disk().is_err() {
        let _ = remotes.forget_parts(true);
    }
    fetched.map_err(|error| format!("cannot fetch the image {}: {error}", image.reference))
}

/// Whether the image for this machine is there with all its layers, and came to this repository: another's is somebody
/// else's, and a digest is no secret.
fn is_whole(registry: &Registry, repository: &RepositoryName, digest: &Digest) -> bool {
    let Ok(image) = registry.image(digest, &Platform::host()) else {
        return false;
    };
    let is_own = |digest: &Digest| matches!(registry.has_manifest(repository, digest), Ok(true));
    if !is_own(digest) || !is_own(&image.digest) {
        return false;
    }
    let has = |digest: &Digest| matches!(registry.content(digest), Ok(Some(_)));
    image.layers.iter().all(|layer| has(&layer.digest))
}

/// Only what waits for the other registry is asynchronous; what is written here may block.
struct Fetching<'a> {
    runtime: tokio::runtime::Handle,
    client: &'a Client,
    remotes: &'a Remotes,
    registry: &'a Registry,
    repository: RepositoryName,
    source: Source,
    say: &'a dyn Fn(&str),
    go_on: GoOn<'a>,
}

impl Fetching<'_> {
    fn fetch(&mut self, reference: &Reference) -> Result<Digest, String> {
        let (bytes, media_type) = self.manifest(reference)?;
        let manifest = Manifest::parse(&bytes, media_type.as_deref())?;
        match manifest.kind {
            Kind::Image => self.blobs(&manifest)?,
            Kind::Index => {
                let child = choose(&manifest.manifests)?;
                let digest = child.digest().map_err(|error| error.to_string())?;
                let reference = Reference::Digest(digest);
                let (bytes, media_type) = self.manifest(&reference)?;
                let inner = Manifest::parse(&bytes, media_type.as_deref())?;
                if inner.kind != Kind::Image {
                    return Err("it is an index of indexes".into());
                }
                self.blobs(&inner)?;
                self.keep(&reference, media_type.as_deref(), &bytes)?;
            }
            Kind::Artifact => return Err("it is an artifact and no image".into()),
        }
        // Last: what a tag of ours leads to is whole.
        self.keep(reference, media_type.as_deref(), &bytes)
    }

    fn manifest(&mut self, reference: &Reference) -> Result<(Vec<u8>, Option<String>), String> {
        let text = reference.to_string();
        let asked = self.client.manifest(&mut self.source, &text, self.go_on);
        let (bytes, media_type) = self.runtime.block_on(asked)?;
        if let Reference::Digest(digest) = reference {
            let found = Digest::of(digest.algorithm(), &bytes);
            if found != *digest {
                return Err(format!("its registry gave {found} for {digest}"));
            }
        }
        Ok((bytes, media_type))
    }

    fn keep(
        &self,
        reference: &Reference,
        media_type: Option<&str>,
        bytes: &[u8],
    ) -> Result<Digest, String> {
        self.registry
            .ingest_manifest(&self.repository, reference, media_type, bytes)
            .map_err(|error| causes(&error))
    }

    fn blobs(&mut self, manifest: &Manifest) -> Result<(), String> {
        let blobs: Vec<&Descriptor> = manifest.blobs().collect();
        let sizes = blobs.iter().map(|blob| blob.size);
        let total = sizes.fold(0, u64::saturating_add);
        if total > MAX_IMAGE {
            return Err(format!(
                "it has {}, and {} are allowed",
                show_size(total),
                show_size(MAX_IMAGE)
            ));
        }
        let count = blobs.len();
        for (number, blob) in blobs.into_iter().enumerate() {
            (self.say)(&format!(
                "fetching the image, part {} of {count} ({})",
                number + 1,
                show_size(blob.size)
            ));
            self.blob(blob)?;
        }
        Ok(())
    }

    fn blob(&mut self, blob: &Descriptor) -> Result<(), String> {
        let digest = blob.digest().map_err(|error| error.to_string())?;
        // What others have is fetched all the same: this registry may name what it never had.
        if self.registry.has_blob(&self.repository, &digest) {
            return Ok(());
        }
        let failed = |error: std::io::Error| format!("cannot keep a part: {error}");
        std::fs::create_dir_all(&self.remotes.folder).map_err(failed)?;
        let path = self.remotes.part(&self.repository, &digest);
        let name = digest.to_string();
        let wanted = (name.as_str(), blob.size);
        let got = self
            .client
            .blob(&mut self.source, wanted, &path, self.go_on);
        self.runtime.block_on(got)?;
        let mut file = File::open(&path).map_err(failed)?;
        let taken = self.registry.ingest(&self.repository, &digest, &mut file);
        // Whole, or not what it was said to be: either way nobody goes on with it.
        let _ = std::fs::remove_file(&path);
        taken.map(drop).map_err(|error| causes(&error))
    }
}

/// The first image of an index that is for this machine, as the image spec has it.
fn choose(list: &[Descriptor]) -> Result<&Descriptor, String> {
    let host = Platform::host();
    let fits = |one: &&Descriptor| {
        one.platform
            .as_ref()
            .is_none_or(|found| found.os == host.os && found.architecture == host.architecture)
    };
    list.iter().find(fits).ok_or_else(|| {
        let others = list.iter().filter_map(|one| one.platform.as_ref());
        let others: Vec<String> = others
            .take(20)
            .map(|found| format!("{}/{}", found.os, found.architecture))
            .collect();
        format!(
            "it is not for {}/{}; it is for {}",
            host.os,
            host.architecture,
            others.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_engines_take_them_for() {
        let read = |text: &str| {
            let name = Name::parse(text).expect(text);
            let repository = name.repository().expect(text).to_string();
            (name.host, name.path, name.reference.to_string(), repository)
        };
        let of = |host: &str, path: &str, reference: &str, repository: &str| {
            (
                host.to_owned(),
                path.to_owned(),
                reference.to_owned(),
                repository.to_owned(),
            )
        };
        assert_eq!(
            read("nginx"),
            of(
                "docker.io",
                "library/nginx",
                "latest",
                "remote.images/docker.io/library/nginx"
            )
        );
        assert_eq!(
            read("me/shop:1"),
            of(
                "docker.io",
                "me/shop",
                "1",
                "remote.images/docker.io/me/shop"
            )
        );
        assert_eq!(
            read("localhost:5000/a/b:v2"),
            of(
                "localhost:5000",
                "a/b",
                "v2",
                "remote.images/localhost__5000/a/b"
            )
        );
        let digest = format!("sha256:{}", "b".repeat(64));
        assert_eq!(read(&format!("ghcr.io/x/y:1@{digest}")).2, digest);
        for bad in ["", "Nginx", "a/../b", "x:", "x@sha256:1", "ghcr.io/"] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn registries_of_this_network_are_told_from_others() {
        for (reference, host) in [
            ("localhost:5000/shop:1", Some("localhost:5000")),
            ("127.0.0.1:5000/shop:1", Some("127.0.0.1:5000")),
            ("10.1.2.3/shop", Some("10.1.2.3")),
            ("169.254.169.254/latest/meta-data", Some("169.254.169.254")),
            ("ghcr.io/me/shop:1", None),
            ("nginx", None),
            ("1.1.1.1/shop", None),
            ("hutong.local/shop:1", None),
        ] {
            assert_eq!(inside(reference).as_deref(), host, "{reference}");
        }
    }

    #[test]
    fn parts_go_when_they_are_old_or_the_disk_is_full() {
        let place = tempfile::tempdir().expect("tempdir");
        let remotes = Remotes::new(place.path().join("fetched"), None);
        remotes.forget_parts(true).expect("there are none");
        std::fs::create_dir(&remotes.folder).expect("made");
        let one: RepositoryName = "remote.images/one.test/a".parse().expect("good");
        let other: RepositoryName = "remote.images/two.test/a".parse().expect("good");
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let (fresh, old) = (remotes.part(&one, &digest), remotes.part(&other, &digest));
        assert_ne!(fresh, old);
        std::fs::write(&fresh, "x").expect("written");
        let file = File::create(&old).expect("made");
        let then = SystemTime::now() - 2 * PART_LIFE;
        file.set_modified(then).expect("dated");
        remotes.forget_parts(false).expect("good");
        assert!(fresh.exists() && !old.exists());
        remotes.forget_parts(true).expect("good");
        assert!(!fresh.exists());
    }

    #[test]
    fn repositories_wait_for_nobody_but_themselves() {
        let place = tempfile::tempdir().expect("tempdir");
        let remotes = Remotes::new(place.path().to_owned(), None);
        let one: RepositoryName = "remote.images/one.test/a".parse().expect("good");
        let other: RepositoryName = "remote.images/one.test/b".parse().expect("good");
        let stop = || -> Result<(), String> { Err("enough".to_owned()) };
        let first = remotes.turn(&one, &stop).expect("free");
        assert!(remotes.turn(&other, &stop).is_ok());
        assert!(remotes.turn(&one, &stop).is_err());
        drop(first);
        assert!(remotes.turn(&one, &stop).is_ok());
    }
}
