//! An image that was pushed, read for whoever runs it: manifest, configuration, layers (image spec, "Image
//! Configuration").

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;

use serde::Deserialize;
use thiserror::Error;

use crate::Registry;
use crate::digest::{Digest, DigestError};
use crate::error::StoreError;
use crate::manifest::{Descriptor, Kind, Manifest, Platform};
use crate::unpack::{Budget, Layers, Options, UnpackError, Unpacked, apply};

/// Indexes in indexes.
const MAX_NESTING: usize = 4;
/// Docker allows 127, and overlayfs 500.
const MAX_LAYERS: usize = 256;

#[derive(Debug, Error)]
pub enum ImageError {
    #[error("the registry has no {what} {digest}")]
    Missing { what: &'static str, digest: String },
    #[error("the image is not understood: {0}")]
    Invalid(String),
    #[error("the image is not for {os}/{architecture}; it is for {found}")]
    OtherPlatform {
        os: String,
        architecture: String,
        found: String,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layer that could not be unpacked, counted from the bottom.
    #[error("layer {number} of {count}: {source}")]
    Layer {
        number: usize,
        count: usize,
        source: UnpackError,
    },
}

impl Platform {
    /// Of this machine, as images say it.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: None,
        }
    }

    fn fits(&self, found: &Platform) -> bool {
        let variant = match (&self.variant, &found.variant) {
            (Some(wanted), Some(found)) => wanted == found,
            _ => true,
        };
        self.os == found.os && self.architecture == found.architecture && variant
    }

    fn show(&self) -> String {
        let variant = self.variant.as_ref().map(|v| format!("/{v}"));
        let variant = variant.unwrap_or_default();
        format!("{}/{}{variant}", self.os, self.architecture)
    }
}

/// What an image is made of.
#[derive(Clone, Debug)]
pub struct Image {
    /// Of the manifest, not of an index that led there.
    pub digest: Digest,
    /// What Docker calls the image's id.
    pub config_digest: Digest,
    pub config: ImageConfig,
    /// From the bottom up.
    pub layers: Vec<Layer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Of the blob, as it is packed.
    pub digest: Digest,
    pub size: u64,
    /// Of the archive in it: what is unpacked is known by it.
    pub diff_id: Digest,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub config: Option<ContainerConfig>,
    #[serde(default)]
    pub rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct RootFs {
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

/// How the image's maker wants it to be run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    pub user: Option<String>,
    pub working_dir: Option<String>,
    /// `KEY=VALUE`
    pub env: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    /// `80/tcp`
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    pub labels: Option<BTreeMap<String, String>>,
    pub stop_signal: Option<String>,
    /// Docker's own.
    pub healthcheck: Option<Healthcheck>,
}

/// How an image says whether it is well (Docker's image specification, "Healthcheck"). Times are in nanoseconds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    pub test: Option<Vec<String>>,
    pub interval: Option<i64>,
    pub timeout: Option<i64>,
    pub start_period: Option<i64>,
    pub retries: Option<i64>,
}

impl Registry {
    /// Reads the image that `digest` names, or the first of an index that fits. It is read by digest alone: whoever has
    /// one of ours pinned it.
    pub fn image(&self, digest: &Digest, platform: &Platform) -> Result<Image, ImageError> {
        let mut digest = digest.clone();
        for _ in 0..MAX_NESTING {
            let bytes = self.small("manifest", &digest)?;
            let manifest = Manifest::parse(&bytes, None).map_err(ImageError::Invalid)?;
            match manifest.kind {
                Kind::Image => return self.read_image(digest, &manifest, platform),
                Kind::Index => digest = choose(&manifest.manifests, platform)?,
                Kind::Artifact => break,
            }
        }
        let text = "it is neither an image nor an index of some".into();
        Err(ImageError::Invalid(text))
    }

    fn small(&self, what: &'static str, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let found = self.store.small_content(digest)?;
        found.ok_or_else(|| ImageError::Missing {
            what,
            digest: digest.to_string(),
        })
    }

    fn read_image(
        &self,
        digest: Digest,
        manifest: &Manifest,
        platform: &Platform,
    ) -> Result<Image, ImageError> {
        let config = manifest
            .config
            .as_ref()
            .ok_or_else(|| ImageError::Invalid("it has no configuration".into()))?;
        let config_digest = config.digest().map_err(invalid)?;
        let bytes = self.small("configuration", &config_digest)?;
        let config: ImageConfig = serde_json::from_slice(&bytes)
            .map_err(|error| ImageError::Invalid(format!("its configuration: {error}")))?;
        let found = Platform {
            architecture: config.architecture.clone(),
            os: config.os.clone(),
            variant: None,
        };
        // Some tools leave it out.
        if !found.os.is_empty() && !platform.fits(&found) {
            return Err(other_platform(platform, found.show()));
        }
        let ids = &config.rootfs.diff_ids;
        if ids.len() != manifest.layers.len() || ids.len() > MAX_LAYERS {
            return Err(ImageError::Invalid(format!(
                "it has {} layers and {} names for them; {MAX_LAYERS} are possible",
                manifest.layers.len(),
                ids.len()
            )));
        }
        let mut layers = Vec::with_capacity(ids.len());
        for (layer, diff_id) in manifest.layers.iter().zip(ids) {
            layers.push(Layer {
                digest: layer.digest().map_err(invalid)?,
                size: layer.size,
                diff_id: diff_id.parse::<Digest>().map_err(invalid)?,
            });
        }
        Ok(Image {
            digest,
            config_digest,
            config,
            layers,
        })
    }

    /// Unpacks the image's layers, those that are not there yet, each into a folder of its own. The folders, from the
    /// bottom up. Blocks.
    pub fn unpack(
        &self,
        image: &Image,
        layers: &Layers,
        options: &Options,
    ) -> Result<Vec<PathBuf>, ImageError> {
        let mut budget = Budget::new(&options.bounds);
        self.each_layer(image, |layer, file| {
            layers.unpack(&layer.diff_id, file, options, &mut budget)?;
            Ok(layers.path(&layer.diff_id))
        })
    }

    /// Unpacks the image's layers over each other below `root`, an empty folder. After an error what is there is to be
    /// thrown away. Blocks.
    pub fn flatten(
        &self,
        image: &Image,
        root: impl AsFd,
        options: &Options,
    ) -> Result<Vec<Unpacked>, ImageError> {
        let mut budget = Budget::new(&options.bounds);
        self.each_layer(image, |layer, file| {
            apply(
                root.as_fd(),
                file,
                Some(&layer.diff_id),
                options,
                &mut budget,
            )
        })
    }

    fn each_layer<T>(
        &self,
        image: &Image,
        mut unpack: impl FnMut(&Layer, std::fs::File) -> Result<T, UnpackError>,
    ) -> Result<Vec<T>, ImageError> {
        let mut list = Vec::with_capacity(image.layers.len());
        for (at, layer) in image.layers.iter().enumerate() {
            let Some((file, _)) = self.store.content(&layer.digest)? else {
                return Err(ImageError::Missing {
                    what: "layer",
                    digest: layer.digest.to_string(),
                });
            };
            let done = unpack(layer, file).map_err(|source| ImageError::Layer {
                number: at + 1,
                count: image.layers.len(),
                source,
            })?;
            list.push(done);
        }
        Ok(list)
    }
}

fn invalid(error: DigestError) -> ImageError {
    ImageError::Invalid(error.to_string())
}

fn other_platform(wanted: &Platform, found: String) -> ImageError {
    ImageError::OtherPlatform {
        os: wanted.os.clone(),
        architecture: wanted.architecture.clone(),
        found,
    }
}

/// The first that fits, as the image spec has it. One that does not say what it is for is looked into.
fn choose(list: &[Descriptor], platform: &Platform) -> Result<Digest, ImageError> {
    let fits = |one: &&Descriptor| one.platform.as_ref().is_none_or(|p| platform.fits(p));
    if let Some(found) = list.iter().find(fits) {
        return found.digest().map_err(invalid);
    }
    let mut found: Vec<String> = list
        .iter()
        .filter_map(|one| one.platform.as_ref().map(Platform::show))
        .collect();
    found.truncate(20);
    Err(other_platform(platform, found.join(", ")))
}
