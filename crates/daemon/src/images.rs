//! Images that run in sandboxes: what the server holds of them, packed, in a registry of its own ([`hutong_registry`]).
//! They come from an archive that was handed over ([`archive`]), from a push, or from another registry ([`remote`]), whose tags
//! may be followed ([`watch`]).
//! [`program`] says what an image is started as, [`health`] whether it says it is well. Who unpacks them is the warden; see `builds::unpacking`.

pub mod archive;
pub mod health;
pub mod program;
pub mod pushed;
pub mod remote;
pub mod watch;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};
use std::time::Duration;

use hutong_core::spec::{self, ImageDriver};
use hutong_ipc::warden::ImageLayers;
use hutong_registry::{
    Digest, Image, Pinned, Platform, Reference, Registry, RepositoryName, Settings, Tag,
};
use hutong_runtime::client::DriverError;
use hutong_runtime::processes::steady_ms;

use crate::store::Release;
use crate::{Control, lock};

/// How a release says that its image is one of ours: before the digest of the manifest.
const OURS: &str = "oci:";
/// How often is looked for what nobody needs.
const COLLECT: Duration = Duration::from_secs(3600);

pub struct Images {
    folder: PathBuf,
    /// Archives on their way.
    incoming: PathBuf,
    /// Opened by who needs it first: many servers run no images.
    registry: Mutex<Option<Arc<Registry>>>,
    /// Read by whoever prepares an image, written by who throws away.
    pub preparing: RwLock<()>,
    pub client: remote::Remotes,
    pub watch: watch::Watches,
    /// Why nobody hears the registry at its own address, if that is so.
    pub unheard: Mutex<Option<String>>,
    /// Of who owns this: rules and what follows from a push need all of it.
    control: Arc<OnceLock<Weak<Control>>>,
}

impl Images {
    /// `own`: control's folder.
    pub fn new(own: &Path, ca_bundle: Option<&str>) -> Self {
        let incoming = own.join("incoming");
        // What a killed process left half taken in.
        let _ = std::fs::remove_dir_all(&incoming);
        Images {
            folder: own.join("registry"),
            incoming,
            registry: Mutex::default(),
            preparing: RwLock::new(()),
            client: remote::Remotes::new(own.join("fetched"), ca_bundle.map(PathBuf::from)),
            watch: watch::Watches::default(),
            unheard: Mutex::default(),
            control: Arc::default(),
        }
    }

    pub fn incoming(&self) -> PathBuf {
        self.incoming.clone()
    }

    /// Whether there ever was an image here.
    pub fn is_there(&self) -> bool {
        self.folder.is_dir()
    }

    /// Until this is called nobody may push or pull.
    pub fn mount(&self, control: &Arc<Control>) {
        let _ = self.control.set(Arc::downgrade(control));
    }

    pub fn registry(&self) -> Result<Arc<Registry>, String> {
        let mut opened = lock(&self.registry);
        if let Some(registry) = &*opened {
            return Ok(registry.clone());
        }
        let rules = Arc::new(pushed::Rules(self.control.clone()));
        let settings = Settings {
            owner: owner_of,
            ..Settings::default()
        };
        let registry = Registry::open(&self.folder, settings, rules)
            .map_err(|error| format!("the images cannot be opened: {}", causes(&error)))?;
        let [told, before, room] = [(); 3].map(|()| self.control.clone());
        let registry = registry
            .before_tag(move |repository, tag, digest| {
                if let Some(control) = before.get().and_then(Weak::upgrade) {
                    pushed::foresee(&control, repository, tag, digest);
                }
            })
            .on_push(move |push| {
                if let Some(control) = told.get().and_then(Weak::upgrade) {
                    pushed::note(&control, push);
                }
            })
            .with_room(move |more| match room.get().and_then(Weak::upgrade) {
                Some(control) => control.has_disk_for(more),
                None => Ok(()),
            });
        let registry = Arc::new(registry);
        *opened = Some(registry.clone());
        Ok(registry)
    }

    /// The image of a manifest that we hold, if it is for this machine.
    pub fn image(&self, digest: &Digest) -> Result<Image, String> {
        let image = self.registry()?.image(digest, &Platform::host());
        image.map_err(|error| causes(&error))
    }
}

/// Whose a repository is: the app's of its first part. What came from elsewhere is nobody's, and each counts for itself.
fn owner_of(repository: &str) -> &str {
    match remote::is_remote(repository) {
        true => repository,
        false => repository.split('/').next().unwrap_or(repository),
    }
}

/// An error with what caused it.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What a release is said to run from.
pub fn mark(digest: &Digest) -> String {
    format!("{OURS}{digest}")
}

/// The manifest of a release's image, if it runs in sandboxes.
pub fn of_release(release: &Release) -> Option<Digest> {
    let built = release.built.as_deref()?;
    built.strip_prefix(OURS)?.parse().ok()
}

pub fn driver(control: &Control, image: &spec::Image) -> ImageDriver {
    image.runs_on(control.settings.docker.is_some())
}

/// Whether an app's release needs the engine.
pub fn needs_engine(control: &Control, release: &Release, spec: &spec::AppSpec) -> bool {
    let Some(image) = &spec.image else {
        return false;
    };
    match release.built {
        Some(_) => of_release(release).is_none(),
        None => driver(control, image) == ImageDriver::Docker,
    }
}

/// Where the images of an app lie that were handed over.
pub fn repository_of(app: &str) -> Result<RepositoryName, String> {
    app.parse::<RepositoryName>()
        .map_err(|error| format!("{app}: {error}"))
}

/// `REPOSITORY[:TAG]` or `REPOSITORY@DIGEST` of our own registry.
pub fn parse_local(text: &str) -> Result<(RepositoryName, Reference), String> {
    let odd = |error: &dyn std::fmt::Display| format!("`{text}`: {error}");
    let (name, reference) = match text.split_once('@') {
        // A digest beside a tag is the one that counts.
        Some((name, digest)) => {
            let name = name.split_once(':').map_or(name, |(name, _)| name);
            (name, digest.parse::<Digest>().map(Reference::Digest))
        }
        None => {
            let (name, tag) = text.split_once(':').unwrap_or((text, "latest"));
            let tag = tag.parse::<Tag>().map_err(|error| odd(&error))?;
            (name, Ok(Reference::Tag(tag)))
        }
    };
    let name = name
        .parse::<RepositoryName>()
        .map_err(|error| odd(&error))?;
    Ok((name, reference.map_err(|error| odd(&error))?))
}

/// What a reference of our own registry (`hutong.local/…`, without that) leads to.
pub fn resolve_local(registry: &Registry, text: &str) -> Result<Digest, String> {
    let (name, reference) = parse_local(text)?;
    let failed = |error: &dyn std::error::Error| format!("the image {text}: {}", causes(error));
    let digest = registry
        .resolve(&name, &reference)
        .map_err(|error| failed(&error))?;
    // Another repository's is somebody else's, who may not show it to all.
    match registry.has_manifest(&name, &digest) {
        Ok(true) => Ok(digest),
        Ok(false) => Err(format!("the image {text}: {name} has no manifest {digest}")),
        Err(error) => Err(failed(&error)),
    }
}

/// Whether the image that is chosen of an index is the repository's own: an index may name what it has not.
pub fn check_own(registry: &Registry, text: &str, digest: &Digest) -> Result<(), String> {
    let (name, _) = parse_local(text)?;
    let chosen = registry
        .image(digest, &Platform::host())
        .map_err(|error| format!("the image {text}: {}", causes(&error)))?;
    match registry.has_manifest(&name, &chosen.digest) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!(
            "the image {text}: the one for this machine was not pushed to {name}"
        )),
        Err(error) => Err(causes(&error)),
    }
}

/// Whether an app may run what lies in a repository of this server, where it is not the server's owner who says so: its own,
/// and a preview that of the app it is of.
pub fn is_own(app: &str, local: &str) -> bool {
    let first = local.split(['/', ':', '@']).next().unwrap_or_default();
    first == app
        || app
            .strip_prefix(first)
            .is_some_and(|rest| rest.starts_with("--") && !first.is_empty())
}

/// Takes away what was pushed for an app.
pub fn forget(control: &Control, app: &str) {
    if !control.images.is_there() {
        return;
    }
    let done = control.images.registry().and_then(|registry| {
        let all = registry.repositories().map_err(|error| causes(&error))?;
        for name in all {
            if name.as_str().split('/').next() == Some(app) {
                registry.remove(&name).map_err(|error| causes(&error))?;
            }
        }
        Ok(())
    });
    if let Err(error) = done {
        tracing::warn!("images of {app}: {error}");
    }
}

/// Where the layers of an image are, or would be.
pub fn layers(stacked: bool, image: &Image) -> ImageLayers {
    if !stacked {
        return ImageLayers::Flat(image.digest.hex().to_owned());
    }
    let mut seen = HashSet::new();
    // Overlayfs takes a folder once. What a layer says last, counts; so the upper one of two that are the same stays.
    let mut list: Vec<String> = image
        .layers
        .iter()
        .rev()
        .map(|layer| layer.diff_id.to_string())
        .filter(|digest| seen.insert(digest.clone()))
        .collect();
    list.reverse();
    ImageLayers::Stacked(list)
}

/// The image of every release that runs in sandboxes, with its app and what its file calls it.
fn in_use(control: &Control) -> Result<Vec<(String, Digest, String)>, String> {
    let text = |error: crate::store::StoreError| error.to_string();
    let mut all = Vec::new();
    for app in control.store.apps().map_err(text)? {
        for release in control.store.releases(&app.name).map_err(text)? {
            let Some(digest) = of_release(&release) else {
                continue;
            };
            let spec = control.specs.of(&release).map_err(text)?;
            let reference = spec.image.as_ref().map(|image| image.reference.clone());
            all.push((app.name.clone(), digest, reference.unwrap_or_default()));
        }
    }
    Ok(all)
}

/// What must stay in the registry, whether a tag points to it or not.
pub fn pins(control: &Control) -> Result<Vec<Pinned>, String> {
    let mut pins = Vec::new();
    for (app, digest, reference) in in_use(control)? {
        let repository = repository_for(&app, &reference)?;
        pins.push(Pinned { repository, digest });
    }
    Ok(pins)
}

/// The repository that has the image of this reference.
fn repository_for(app: &str, reference: &str) -> Result<RepositoryName, String> {
    let local = reference.strip_prefix(spec::LOCAL_REGISTRY);
    match local.and_then(|rest| rest.strip_prefix('/')) {
        Some(local) => Ok(parse_local(local)?.0),
        None if reference.is_empty() => repository_of(app),
        None => remote::Name::parse(reference)?.repository(),
    }
}

/// Throws away what no release needs: unpacked layers at once, what was fetched when its grace is over. Not while an image
/// is being prepared: nobody knows yet which layers that needs.
pub fn sweep(control: &Control) -> Result<(), String> {
    if !control.images.folder.is_dir() {
        return Ok(());
    }
    match nothing_prepared(control)? {
        Some(_alone) => sweep_layers(control),
        None => Ok(()),
    }
}

/// Has nobody prepare an image while it is held; none if somebody does.
fn nothing_prepared(
    control: &Control,
) -> Result<Option<std::sync::RwLockWriteGuard<'_, ()>>, String> {
    let alone = match control.images.preparing.try_write() {
        Ok(alone) => alone,
        Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(std::sync::TryLockError::WouldBlock) => return Ok(None),
    };
    let building = control
        .store
        .building()
        .map_err(|error| error.to_string())?;
    for deployment in building {
        let release = control.store.release(&deployment.app, deployment.release);
        let spec = release.ok().flatten().and_then(|r| r.parse().ok());
        if spec.is_none_or(|spec| spec.image.is_some()) {
            return Ok(None);
        }
    }
    Ok(Some(alone))
}

fn sweep_layers(control: &Control) -> Result<(), String> {
    let used = in_use(control)?;
    let (mut stacked, mut flat) = (HashSet::new(), Vec::new());
    for (app, digest, _) in &used {
        let image = match control.images.image(digest) {
            Ok(image) => image,
            // No release of it starts any more; what others left must not stay for its sake.
            Err(error) => {
                tracing::warn!("the image {digest} of {app} cannot be read: {error}");
                continue;
            }
        };
        if let ImageLayers::Stacked(list) = layers(true, &image) {
            stacked.extend(list);
        }
        flat.push((app.clone(), image.digest.hex().to_owned()));
    }
    forget_remotes(control, &used)?;
    let sweep = control
        .warden
        .images_sweep(stacked.into_iter().collect(), flat);
    sweep.map_err(|error: DriverError| error.to_string())
}

/// Repositories of other registries that no release's image came from.
fn forget_remotes(control: &Control, used: &[(String, Digest, String)]) -> Result<(), String> {
    let registry = control.images.registry()?;
    let wanted: HashSet<RepositoryName> = used
        .iter()
        .filter_map(|(app, _, reference)| repository_for(app, reference).ok())
        .collect();
    let all = registry.repositories().map_err(|error| causes(&error))?;
    for name in all {
        if remote::is_remote(name.as_str()) && !wanted.contains(&name) {
            registry.remove(&name).map_err(|error| causes(&error))?;
        }
    }
    Ok(())
}

/// Looks for what nobody needs, now and then.
pub async fn run(control: Arc<Control>) {
    loop {
        let ours = control.clone();
        let collected = tokio::task::spawn_blocking(move || collect(&ours)).await;
        if let Ok(Err(error)) = collected {
            tracing::warn!("images that nobody needs stay for now: {error}");
        }
        tokio::time::sleep(COLLECT).await;
    }
}

fn collect(control: &Control) -> Result<(), String> {
    if !control.images.folder.is_dir() {
        return Ok(());
    }
    let full = control.has_disk().is_err();
    if let Err(error) = control.images.client.forget_parts(full) {
        tracing::warn!("what was fetched in part stays for now: {error}");
    }
    // Of an image that is being prepared no release says yet that it is needed.
    let Some(_alone) = nothing_prepared(control)? else {
        return Ok(());
    };
    if let Err(error) = sweep_layers(control) {
        tracing::warn!("layers of images that nobody needs stay for now: {error}");
    }
    let keep = pins(control)?;
    let now = Duration::from_millis(steady_ms());
    let registry = control.images.registry()?;
    let report = registry.collect(&keep, now);
    report.map(drop).map_err(|error| causes(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_run_what_is_their_own() {
        for local in ["shop:v1", "shop/worker:v1", "shop@sha256:x", "shop"] {
            assert!(
                is_own("shop", local) && is_own("shop--fix-a", local),
                "{local}"
            );
            assert!(!is_own("payroll", local), "{local}");
        }
        for local in [
            "shopping:v1",
            "shop--fix-a:v1",
            "remote.images/docker.io/x:1",
            "",
        ] {
            assert!(!is_own("shop", local), "{local}");
        }
    }

    #[test]
    fn repositories_are_their_apps() {
        assert_eq!(owner_of("shop"), "shop");
        assert_eq!(owner_of("shop/worker/x"), "shop");
        let elsewhere = "remote.images/docker.io/library/nginx";
        assert_eq!(owner_of(elsewhere), elsewhere);
    }

    #[test]
    fn our_own_references_are_read() {
        let read = |text: &str| {
            parse_local(text).map(|(name, reference)| (name.to_string(), reference.to_string()))
        };
        let of = |name: &str, reference: &str| Ok((name.to_owned(), reference.to_owned()));
        assert_eq!(read("shop"), of("shop", "latest"));
        assert_eq!(read("team/shop:v1"), of("team/shop", "v1"));
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(read(&format!("shop@{digest}")), of("shop", &digest));
        assert_eq!(read(&format!("shop:v1@{digest}")), of("shop", &digest));
        for bad in ["", "Shop", "shop:", "shop@sha256:x", "a//b", "../x"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
