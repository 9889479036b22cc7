//! Manifests (image spec, "Image Manifest" and "Image Index"; Docker's version 2, schema 2): read from the bytes that a
//! client sent, and refused where two readers could see different things in them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::{Digest, DigestError};

/// Registries are expected to take manifests of 4 megabytes (distribution spec, "Pushing Manifests").
pub const MAX_MANIFEST: u64 = 4 << 20;

/// Each is looked for when a manifest comes.
const MAX_PARTS: usize = 10_000;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Of the release candidates of the specs 1.1; some tools still push it.
pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A configuration and layers; artifacts too.
    Image,
    /// Other manifests.
    Index,
    /// A list of blobs.
    Artifact,
}

impl Kind {
    fn of(media_type: &str) -> Option<Self> {
        match media_type {
            OCI_MANIFEST | DOCKER_MANIFEST => Some(Kind::Image),
            OCI_INDEX | DOCKER_LIST => Some(Kind::Index),
            OCI_ARTIFACT => Some(Kind::Artifact),
            _ => None,
        }
    }
}

/// Image spec, "OCI Content Descriptors". The digest is checked where it is used: an index may name what we could not
/// hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    pub fn digest(&self) -> Result<Digest, DigestError> {
        self.digest.parse()
    }

    /// A layer that may not be given away lies with whoever made it (image spec, "Non-Distributable Layers").
    pub fn is_elsewhere(&self) -> bool {
        self.media_type.contains(".nondistributable.")
            || self
                .media_type
                .starts_with("application/vnd.docker.image.rootfs.foreign.")
    }
}

/// What an image of an index runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default, deserialize_with = "list")]
    layers: Option<Vec<Descriptor>>,
    #[serde(default, deserialize_with = "list")]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default, deserialize_with = "list")]
    blobs: Option<Vec<Descriptor>>,
    #[serde(default, rename = "fsLayers", deserialize_with = "list")]
    fs_layers: Option<Vec<serde::de::IgnoredAny>>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

/// Go writes an empty list as `null`.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    let list = Option::<Vec<T>>::deserialize(deserializer)?;
    Ok(Some(list.unwrap_or_default()))
}

/// A manifest that was understood.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub kind: Kind,
    pub media_type: String,
    /// As the referrers API says it: of an image without one, the configuration's media type.
    pub artifact_type: Option<String>,
    pub config: Option<Descriptor>,
    /// Of an artifact, its blobs.
    pub layers: Vec<Descriptor>,
    pub manifests: Vec<Descriptor>,
    pub subject: Option<Digest>,
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Manifest {
    /// `content_type` is what the client said, if it did. Errors are for the client.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|error| format!("the manifest is not understood: {error}"))?;
        let said = content_type.map(essence).filter(|text| !text.is_empty());
        let inside = raw.media_type.as_deref().filter(|text| !text.is_empty());
        if let (Some(said), Some(inside)) = (&said, inside)
            && said != inside
        {
            return Err(format!(
                "the manifest's mediaType is {inside:?}, the Content-Type {said:?}"
            ));
        }
        let media_type = said
            .or_else(|| inside.map(str::to_owned))
            .or_else(|| raw.likely_type().map(str::to_owned))
            .ok_or("the manifest has no media type")?;
        let kind = Kind::of(&media_type)
            .ok_or_else(|| format!("manifests of the type {media_type:?} are not supported"))?;
        raw.check(kind)?;
        let subject = match &raw.subject {
            None => None,
            Some(subject) => Some(
                subject
                    .digest()
                    .map_err(|error| format!("the manifest's subject: {error}"))?,
            ),
        };
        let artifact_type =
            raw.artifact_type
                .filter(|text| !text.is_empty())
                .or_else(|| match kind {
                    Kind::Image => raw.config.as_ref().map(|config| config.media_type.clone()),
                    _ => None,
                });
        let layers = match kind {
            Kind::Artifact => raw.blobs,
            _ => raw.layers,
        };
        Ok(Manifest {
            kind,
            media_type,
            artifact_type,
            config: raw.config,
            layers: layers.unwrap_or_default(),
            manifests: raw.manifests.unwrap_or_default(),
            subject,
            annotations: raw.annotations,
        })
    }

    /// The blobs that it is made of; they must be there (but see [`Descriptor::is_elsewhere`]).
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(&self.layers)
    }

    /// Those of its blobs that we could hold.
    pub fn blob_digests(&self) -> impl Iterator<Item = Digest> {
        self.blobs().filter_map(|blob| blob.digest().ok())
    }

    /// Those of its manifests that we could hold.
    pub fn children(&self) -> impl Iterator<Item = Digest> {
        self.manifests.iter().filter_map(|one| one.digest().ok())
    }

    /// How the referrers API describes it (distribution spec, "Listing Referrers").
    pub fn describe(&self, digest: &Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: digest.to_string(),
            size,
            artifact_type: self.artifact_type.clone(),
            annotations: self.annotations.clone(),
            platform: None,
        }
    }
}

impl Raw {
    /// Of a manifest that does not say what it is.
    fn likely_type(&self) -> Option<&'static str> {
        if self.manifests.is_some() {
            Some(OCI_INDEX)
        } else if self.config.is_some() {
            Some(OCI_MANIFEST)
        } else {
            None
        }
    }

    fn check(&self, kind: Kind) -> Result<(), String> {
        // What is an image to one reader and an index to another passes checks that were made of the other
        // (CVE-2021-41190).
        let foreign = match kind {
            Kind::Image => self.manifests.is_some() || self.blobs.is_some(),
            Kind::Index => self.config.is_some() || self.layers.is_some() || self.blobs.is_some(),
            Kind::Artifact => {
                self.config.is_some() || self.layers.is_some() || self.manifests.is_some()
            }
        };
        if foreign || self.fs_layers.is_some() {
            return Err("the manifest has the fields of manifests of another type".into());
        }
        match kind {
            Kind::Image if self.config.is_none() => {
                return Err("the manifest has no config".into());
            }
            Kind::Index if self.manifests.is_none() => {
                return Err("the index has no manifests".into());
            }
            _ => {}
        }
        if kind != Kind::Artifact && self.schema_version != Some(2) {
            return Err("the manifest's schemaVersion is not 2".into());
        }
        let lists = [&self.layers, &self.manifests, &self.blobs];
        if lists.into_iter().flatten().map(Vec::len).sum::<usize>() > MAX_PARTS {
            return Err(format!("a manifest names at most {MAX_PARTS} others"));
        }
        let all = lists.into_iter().flatten().flatten().chain(&self.config);
        for descriptor in all {
            if descriptor.digest() == Err(DigestError::Malformed) {
                return Err("a descriptor of the manifest has no digest".into());
            }
        }
        Ok(())
    }
}

/// A media type without its parameters.
fn essence(content_type: &str) -> String {
    let (essence, _) = content_type.split_once(';').unwrap_or((content_type, ""));
    essence.trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn digest(of: &str) -> String {
        Digest::of(crate::digest::Algorithm::Sha256, of.as_bytes()).to_string()
    }

    fn descriptor(of: &str) -> Value {
        json!({"mediaType": "application/x", "digest": digest(of), "size": of.len()})
    }

    fn parse(value: &Value, content_type: Option<&str>) -> Result<Manifest, String> {
        Manifest::parse(value.to_string().as_bytes(), content_type)
    }

    #[test]
    fn an_image_of_either_kind_is_understood() {
        for media_type in [OCI_MANIFEST, DOCKER_MANIFEST] {
            let value = json!({
                "schemaVersion": 2, "mediaType": media_type,
                "config": descriptor("c"), "layers": [descriptor("a"), descriptor("b")],
                "unknown": {"kept": true},
            });
            let with_parameter = format!("{media_type}; charset=utf-8");
            for said in [None, Some(media_type), Some(with_parameter.as_str())] {
                let manifest = parse(&value, said).expect("good");
                assert_eq!(manifest.kind, Kind::Image);
                assert_eq!(manifest.blobs().count(), 3);
                assert_eq!(manifest.artifact_type.as_deref(), Some("application/x"));
            }
        }
    }

    #[test]
    fn an_index_may_be_empty_and_name_what_we_cannot_hold() {
        let odd = json!({"mediaType": OCI_MANIFEST, "digest": "blake3:ab", "size": 1});
        for (list, children) in [
            (json!([]), 0),
            (json!(null), 0),
            (json!([descriptor("a"), odd]), 1),
        ] {
            let value = json!({"schemaVersion": 2, "manifests": list});
            for said in [None, Some(OCI_INDEX), Some(DOCKER_LIST)] {
                let manifest = parse(&value, said).expect("good");
                assert_eq!(manifest.kind, Kind::Index);
                assert_eq!(manifest.children().count(), children);
                assert_eq!(manifest.artifact_type, None);
            }
        }
    }

    #[test]
    fn an_artifact_has_its_own_type_or_its_configurations() {
        let mut value = json!({
            "schemaVersion": 2, "artifactType": "application/sbom",
            "config": descriptor("{}"), "layers": null, "subject": descriptor("s"),
            "annotations": {"a": "b"},
        });
        let manifest = parse(&value, Some(OCI_MANIFEST)).expect("good");
        let own = Digest::of(crate::digest::Algorithm::Sha256, b"m");
        let described = manifest.describe(&own, 7);
        assert_eq!(described.artifact_type.as_deref(), Some("application/sbom"));
        assert_eq!(described.annotations.expect("some")["a"], "b");
        assert_eq!(manifest.subject.expect("one").to_string(), digest("s"));
        value["artifactType"] = json!("");
        let manifest = parse(&value, Some(OCI_MANIFEST)).expect("good");
        assert_eq!(manifest.artifact_type.as_deref(), Some("application/x"));
        let old = json!({"artifactType": "application/sbom", "blobs": [descriptor("b")]});
        let manifest = parse(&old, Some(OCI_ARTIFACT)).expect("good");
        assert_eq!((manifest.kind, manifest.layers.len()), (Kind::Artifact, 1));
    }

    #[test]
    fn what_has_two_meanings_or_none_is_refused() {
        let image = json!({"schemaVersion": 2, "config": descriptor("c"), "layers": []});
        let with = |key: &str, value: Value| {
            let mut changed = image.clone();
            changed[key] = value;
            changed
        };
        for (value, said) in [
            (with("manifests", json!([])), Some(OCI_MANIFEST)),
            (with("manifests", json!([])), Some(OCI_INDEX)),
            (with("fsLayers", json!([{}])), Some(OCI_MANIFEST)),
            (with("mediaType", json!(OCI_INDEX)), Some(OCI_MANIFEST)),
            (with("schemaVersion", json!(1)), Some(OCI_MANIFEST)),
            (with("schemaVersion", json!(null)), Some(OCI_MANIFEST)),
            (with("config", json!(null)), Some(OCI_MANIFEST)),
            (with("layers", json!({})), Some(OCI_MANIFEST)),
            (with("layers", json!([{}])), Some(OCI_MANIFEST)),
            (
                with("layers", json!([{"digest": "x", "size": 1}])),
                Some(OCI_MANIFEST),
            ),
            (
                with("layers", json!([{"digest": digest("a"), "size": -1}])),
                Some(OCI_MANIFEST),
            ),
            (
                with("subject", json!({"digest": "x", "size": 1})),
                Some(OCI_MANIFEST),
            ),
            (image.clone(), Some("text/html")),
            (
                image.clone(),
                Some("application/vnd.docker.distribution.manifest.v1+json"),
            ),
            (json!({"schemaVersion": 2}), Some(OCI_INDEX)),
            (json!({"schemaVersion": 2}), None),
            (json!([]), Some(OCI_INDEX)),
        ] {
            assert!(parse(&value, said).is_err(), "{value} as {said:?}");
        }
        let twice = format!(
            r#"{{"schemaVersion":2,"config":{0},"layers":[],"layers":[{0}]}}"#,
            descriptor("c")
        );
        assert!(Manifest::parse(twice.as_bytes(), Some(OCI_MANIFEST)).is_err());
        assert!(Manifest::parse(&[b'['; 100_000], Some(OCI_MANIFEST)).is_err());
        assert!(Manifest::parse(b"\xff\xfe", None).is_err());
    }
}
