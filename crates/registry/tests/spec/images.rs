//! From a push to folders that can be run.

use std::fs::{self, File};
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use hutong_registry::unpack::{Layers, Options, UnpackError};
use hutong_registry::{
    Digest, ImageError, OCI_INDEX, OCI_MANIFEST, Platform, Reference, RepositoryName,
};
use serde_json::{Value, json};

use crate::rig::{CONFIG, Rig, descriptor, index_of, sha256};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, path, content.as_bytes())
            .expect("memory");
    }
    builder.into_inner().expect("memory")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// Pushes an image of two layers for an architecture; how an index describes it.
async fn push(rig: &Rig, architecture: &str, second_id: Option<&str>) -> Value {
    let base = tar_of(&[("etc/name", architecture), ("etc/old", "1")]);
    let next = tar_of(&[("etc/.wh.old", ""), ("etc/new", "2")]);
    let second_id = second_id.map_or_else(|| sha256(&next), str::to_owned);
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {
            "User": "1000", "Env": ["PATH=/bin", "X=1"], "Cmd": ["/bin/server"],
            "Entrypoint": null, "WorkingDir": "/srv", "ExposedPorts": {"80/tcp": {}},
            "Labels": {"a": "b"}, "Unknown": [1],
        },
        "rootfs": {"type": "layers", "diff_ids": [sha256(&base), second_id]},
    });
    let config = config.to_string();
    let base = gzip(&base);
    for blob in [config.as_bytes(), &base, &next] {
        rig.blob("a", blob).await;
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(CONFIG, config.as_bytes()),
        // The second is said to be what it is not: it is plain.
        "layers": [descriptor(GZIP, &base), descriptor(GZIP, &next)],
    });
    let digest = sha256(manifest.to_string().as_bytes());
    let answer = rig.put("a", &digest, OCI_MANIFEST, &manifest).await;
    answer.is(201);
    json!({
        "mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.to_string().len(),
        "platform": {"architecture": architecture, "os": "linux"},
    })
}

fn platform(architecture: &str) -> Platform {
    Platform {
        architecture: architecture.into(),
        os: "linux".into(),
        variant: None,
    }
}

/// An image for two architectures.
async fn pushed(rig: &Rig) -> Digest {
    let one = push(rig, "amd64", None).await;
    let other = push(rig, "arm64", None).await;
    let index = index_of(&[one, other]);
    let answer = rig.put("a", "latest", OCI_INDEX, &index).await.is(201);
    let digest = answer.header("docker-content-digest");
    digest.parse().expect("a digest")
}

#[tokio::test]
async fn an_image_is_read_for_its_platform() {
    let rig = Rig::new();
    let digest = pushed(&rig).await;
    let registry = rig.registry();
    for architecture in ["amd64", "arm64"] {
        let image = registry.image(&digest, &platform(architecture));
        let image = image.expect("good");
        assert_eq!(image.config.architecture, architecture);
        assert_eq!(image.layers.len(), 2);
        // By its own digest, too.
        let again = registry.image(&image.digest, &platform(architecture));
        assert_eq!(again.expect("good").config_digest, image.config_digest);
        let other = registry.image(&image.digest, &platform("s390x"));
        assert!(matches!(other, Err(ImageError::OtherPlatform { .. })));
        let config = image.config.config.expect("some");
        assert_eq!(config.user.as_deref(), Some("1000"));
        assert_eq!(config.cmd.expect("some"), ["/bin/server"]);
        assert_eq!(config.entrypoint, None);
        assert_eq!(config.env.expect("some").len(), 2);
        assert_eq!(config.working_dir.as_deref(), Some("/srv"));
        assert!(config.exposed_ports.expect("some").contains_key("80/tcp"));
    }
    let error = registry.image(&digest, &platform("riscv64"));
    let text = error.expect_err("none").to_string();
    assert!(text.contains("linux/amd64, linux/arm64"), "{text}");
    let missing: Digest = sha256(b"missing").parse().expect("a digest");
    let error = registry.image(&missing, &Platform::host());
    assert!(matches!(error, Err(ImageError::Missing { .. })));
}

#[tokio::test]
async fn layers_are_unpacked_each_on_its_own_and_shared() {
    let rig = Rig::new();
    let digest = pushed(&rig).await;
    let dir = tempfile::tempdir().expect("tempdir");
    let layers = Layers::open(dir.path()).expect("open");
    let options = Options::default();
    let registry = rig.registry();
    let mut tops = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let image = registry.image(&digest, &platform(architecture));
        let image = image.expect("good");
        let folders = registry.unpack(&image, &layers, &options);
        let folders = folders.expect("unpacked");
        let text = fs::read_to_string(folders[0].join("etc/name"));
        assert_eq!(text.expect("read"), architecture);
        assert!(folders[1].join("etc/new").is_file());
        tops.push(folders[1].clone());
    }
    assert_eq!(tops[0], tops[1], "the same layer");
    assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 3);
}

#[tokio::test]
async fn an_image_is_flattened_into_one_folder() {
    let rig = Rig::new();
    let digest = pushed(&rig).await;
    let registry = rig.registry();
    let image = registry.image(&digest, &platform("amd64")).expect("good");
    let dir = tempfile::tempdir().expect("tempdir");
    let root = File::open(dir.path()).expect("open");
    let options = Options::default();
    let report = registry.flatten(&image, &root, &options).expect("good");
    assert_eq!(report.len(), 2);
    let etc = dir.path().join("etc");
    assert!(!etc.join("old").exists() && !etc.join(".wh.old").exists());
    let read = |name: &str| fs::read_to_string(etc.join(name)).expect("read");
    assert_eq!(read("name"), "amd64");
    assert_eq!(read("new"), "2");
}

#[tokio::test]
async fn an_image_whose_layers_are_not_what_it_says_is_not_unpacked() {
    let rig = Rig::new();
    let described = push(&rig, "amd64", Some(&sha256(b"another"))).await;
    let digest = described["digest"].as_str().expect("text");
    let digest: Digest = digest.parse().expect("a digest");
    let registry = rig.registry();
    let image = registry.image(&digest, &platform("amd64")).expect("good");
    let dir = tempfile::tempdir().expect("tempdir");
    let layers = Layers::open(dir.path()).expect("open");
    let result = registry.unpack(&image, &layers, &Options::default());
    match result {
        Err(ImageError::Layer { number, source, .. }) => {
            assert_eq!(number, 2);
            assert!(matches!(source, UnpackError::Mismatch { .. }), "{source}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 1);
}

#[tokio::test]
async fn an_index_may_name_an_image_that_never_came_and_that_is_none() {
    let rig = Rig::new();
    let nowhere = json!({
        "mediaType": OCI_MANIFEST, "digest": sha256(b"nowhere"), "size": 7,
        "platform": {"architecture": "amd64", "os": "linux"},
    });
    let index = index_of(&[nowhere]);
    let answer = rig.put("a", "latest", OCI_INDEX, &index).await.is(201);
    let digest: Digest = answer
        .header("docker-content-digest")
        .parse()
        .expect("a digest");
    let error = rig.registry().image(&digest, &platform("amd64"));
    let error = error.expect_err("it is not there");
    assert!(matches!(error, ImageError::Missing { .. }), "{error}");
}

#[tokio::test]
async fn a_layer_is_what_it_is_whatever_type_it_says() {
    let rig = Rig::new();
    let layer = gzip(&tar_of(&[("etc/name", "odd")]));
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [sha256(&tar_of(&[("etc/name", "odd")]))]},
    });
    let config = config.to_string();
    rig.blob("a", config.as_bytes()).await;
    rig.blob("a", &layer).await;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(CONFIG, config.as_bytes()),
        "layers": [descriptor("application/x-unknown", &layer)],
    });
    let answer = rig.put("a", "v1", OCI_MANIFEST, &manifest).await.is(201);
    let digest: Digest = answer
        .header("docker-content-digest")
        .parse()
        .expect("a digest");
    let image = rig.registry().image(&digest, &platform("amd64"));
    let dir = tempfile::tempdir().expect("tempdir");
    let layers = Layers::open(dir.path()).expect("open");
    let options = Options::default();
    let folders = rig
        .registry()
        .unpack(&image.expect("good"), &layers, &options);
    let text = fs::read_to_string(folders.expect("unpacked")[0].join("etc/name"));
    assert_eq!(text.expect("read"), "odd");
}

#[tokio::test]
async fn what_is_no_image_is_not_read_as_one() {
    let rig = Rig::new();
    rig.blob("a", b"{}").await;
    let artifact = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/sbom",
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"),
        "layers": [descriptor("application/vnd.oci.empty.v1+json", b"{}")],
    });
    let answer = rig.put("a", "sbom", OCI_MANIFEST, &artifact).await;
    answer.is(201);
    let name: RepositoryName = "a".parse().expect("a name");
    let reference: Reference = "sbom".parse().expect("a reference");
    let digest = rig.registry().resolve(&name, &reference).expect("there");
    let result = rig.registry().image(&digest, &platform("amd64"));
    assert!(matches!(result, Err(ImageError::Invalid(_))), "{result:?}");
}
