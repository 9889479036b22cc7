use std::sync::Arc;

use hutong_registry::{Access, Action, Credentials, Settings, Verdict};
use serde_json::{Value, json};

use super::*;

struct Nobody;

impl Access for Nobody {
    fn may(&self, _: Option<&Credentials>, _: &str, _: Action) -> Verdict {
        Verdict::Forbidden
    }
}

struct Place {
    folder: tempfile::TempDir,
    registry: Registry,
    name: RepositoryName,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("registry");
        let registry = Registry::open(&path, Settings::default(), Arc::new(Nobody));
        Place {
            registry: registry.expect("opened"),
            name: "shop".parse().expect("a name"),
            folder,
        }
    }

    fn take_in(&self, archive: &[u8]) -> Result<Digest, ArchiveError> {
        let staging = self.folder.path().join("staging");
        let taken = take_in(&self.registry, &self.name, &staging, archive, 1 << 20);
        let left = fs::read_dir(&staging).map_or(0, Iterator::count);
        assert_eq!(left, 0, "nothing is left on the way");
        taken
    }
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, content.as_slice())
            .expect("appended");
    }
    builder.into_inner().expect("an archive")
}

fn blob(files: &mut Vec<(String, Vec<u8>)>, media_type: &str, content: Vec<u8>) -> Value {
    let digest = Digest::of(Algorithm::Sha256, &content);
    let size = content.len();
    files.push((name_of(&digest), content));
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
}

/// A layout with one image of one layer; `platform` of its entry in the index.
fn layout(platform: Option<Value>) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let tar = archive(&[("etc/hello".into(), b"hello".to_vec())]);
    let diff_id = Digest::of(Algorithm::Sha256, &tar).to_string();
    let layer = blob(&mut files, "application/vnd.oci.image.layer.v1.tar", tar);
    let host = Platform::host();
    let config = json!({
        "architecture": host.architecture, "os": host.os,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]}, "config": {"Cmd": ["/x"]},
    });
    let config = config.to_string().into_bytes();
    let config = blob(
        &mut files,
        "application/vnd.oci.image.config.v1+json",
        config,
    );
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [layer],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = blob(
        &mut files,
        "application/vnd.oci.image.manifest.v1+json",
        manifest,
    );
    if let Some(platform) = platform {
        entry["platform"] = platform;
    }
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    files.push(("index.json".into(), index.to_string().into_bytes()));
    files.push((
        "oci-layout".into(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    ));
    files
}

#[test]
fn a_layout_is_taken_in_packed_or_not() {
    let place = Place::new();
    let plain = archive(&layout(None));
    let digest = place.take_in(&plain).expect("good");
    let image = place.registry.image(&digest, &Platform::host());
    assert_eq!(image.expect("it is there").layers.len(), 1);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut packed, &plain).expect("memory");
    let packed = packed.finish().expect("memory");
    assert_eq!(place.take_in(&packed).expect("the same"), digest);
    // It is its repository's, and nobody else's.
    let lead = |text: &str| crate::images::resolve_local(&place.registry, text);
    assert_eq!(lead(&format!("shop@{digest}")), Ok(digest.clone()));
    assert!(lead(&format!("other@{digest}")).is_err());
}

#[test]
fn what_docker_save_writes_is_taken_in() {
    let place = Place::new();
    let tar = archive(&[("bin/x".into(), vec![1])]);
    let diff_id = Digest::of(Algorithm::Sha256, &tar).to_string();
    let host = Platform::host();
    let config = json!({
        "architecture": host.architecture, "os": host.os,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let list = json!([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l/layer.tar"]}]);
    let files = [
        ("c.json".to_owned(), config.to_string().into_bytes()),
        ("l/layer.tar".to_owned(), tar),
        ("manifest.json".to_owned(), list.to_string().into_bytes()),
    ];
    let digest = place.take_in(&archive(&files)).expect("good");
    let image = place.registry.image(&digest, &Platform::host());
    assert_eq!(
        image.expect("it is there").layers[0].diff_id.to_string(),
        diff_id
    );
}

#[test]
fn what_is_wrong_is_said_and_leaves_nothing() {
    let place = Place::new();
    let said = |files: &[(String, Vec<u8>)]| place.take_in(&archive(files)).expect_err("bad");
    let foreign = layout(Some(json!({"os": "linux", "architecture": "s390x"})));
    let text = said(&foreign).to_string();
    assert!(
        text.contains("no image for") && text.contains("linux/s390x"),
        "{text}"
    );
    let mut lacking = layout(None);
    lacking.remove(0);
    assert!(said(&lacking).to_string().contains("lacks sha256:"));
    let mut changed = layout(None);
    changed[0].1.push(0);
    assert!(matches!(said(&changed), ArchiveError::Store(_)));
    let nothing = said(&[("readme".into(), vec![b'x'])]).to_string();
    assert!(nothing.contains("this is no image"), "{nothing}");
    let large = vec![("a".to_owned(), vec![0; 2 << 20])];
    assert!(matches!(said(&large), ArchiveError::TooLarge(_)));
    let whole = archive(&layout(None));
    assert!(place.take_in(&whole[..whole.len() / 2]).is_err());
    assert!(follow("a", "../../b").is_err());
    assert_eq!(follow("a/b", "../c").expect("inside"), "a/c");
}

#[test]
fn an_archive_is_bounded_in_all_that_it_has() {
    let place = Place::new();
    let record = |kind: tar::EntryType, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(bytes.len() + 4096, b'a');
        bytes
    };
    for (kind, size) in [
        (tar::EntryType::GNULongName, 1 << 40),
        (tar::EntryType::GNULongLink, 1 << 20),
        (tar::EntryType::XHeader, 1 << 30),
    ] {
        let said = place.take_in(&record(kind, size)).expect_err("too long");
        assert!(said.to_string().contains("too long"), "{said}");
    }
    // Zeros behind the end, which nobody counts as content.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut packed, &archive(&layout(None))).expect("memory");
    let zeros = vec![0; 1 << 20];
    for _ in 0..=(MAX_OVERHEAD >> 20) + 1 {
        io::Write::write_all(&mut packed, &zeros).expect("memory");
    }
    let said = place.take_in(&packed.finish().expect("memory"));
    assert!(matches!(said, Err(ArchiveError::TooLarge(_))), "{said:?}");
}

#[test]
fn what_is_named_often_is_looked_at_once_and_layers_have_a_bound() {
    let place = Place::new();
    // Each index names the next one a thousand times.
    let mut files = layout(None);
    let last = files.iter().position(|(name, _)| name == "index.json");
    let (_, mut inner) = files.remove(last.expect("it is there"));
    for _ in 0..MAX_NESTING {
        let kind = "application/vnd.oci.image.index.v1+json";
        let entry = blob(&mut files, kind, inner);
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": vec![entry; 1000]});
        inner = index.to_string().into_bytes();
    }
    files.push(("index.json".into(), inner));
    // 1 MB is what tests allow.
    place.take_in(&archive(&files)).expect("good");
    let list = json!([{"Config": "c.json", "Layers": vec!["layer.tar"; MAX_LAYERS + 1]}]);
    let files = [
        ("c.json".to_owned(), b"{}".to_vec()),
        ("layer.tar".to_owned(), archive(&[])),
        ("manifest.json".to_owned(), list.to_string().into_bytes()),
    ];
    let said = place.take_in(&archive(&files)).expect_err("too many");
    assert!(said.to_string().contains("257 layers"), "{said}");
}
