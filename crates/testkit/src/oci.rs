//! Images of the tests' own: an OCI image layout as an archive, made without any tool for images.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An entry of a layer.
pub enum Entry<'a> {
    File(&'a str, u32, &'a [u8]),
    Link(&'a str, &'a str),
}

/// A layer as an archive.
pub fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        match entry {
            Entry::File(path, mode, content) => {
                header.set_mode(*mode);
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, path, *content)
            }
            Entry::Link(path, to) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                builder.append_link(&mut header, path, to)
            }
        }
        .expect("an entry");
    }
    builder.into_inner().expect("an archive")
}

/// A layer of one entry whose name no library would write.
pub fn odd_layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, content).expect("an entry");
    builder.into_inner().expect("an archive")
}

/// The header of a file in an archive.
pub fn header(path: &str, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(path).expect("a short path");
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// One part of an image; `packed` may be another form of what the configuration names.
pub struct Part {
    pub packed: Vec<u8>,
    pub diff_id: String,
}

impl Part {
    pub fn plain(archive: Vec<u8>) -> Self {
        Part {
            diff_id: digest(&archive),
            packed: archive,
        }
    }
}

pub fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// What images call this machine.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Writes an image layout as an archive; the digest of the image's manifest. `config` is how it wants to be run
/// (`Entrypoint`, `Env` …).
pub fn write(path: &Path, layers: &[Part], config: &Value, architecture: &str) -> String {
    let file = std::fs::File::create(path).expect("a file");
    let mut builder = tar::Builder::new(std::io::BufWriter::new(file));
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder
            .append_data(&mut header, name, content)
            .expect("an entry");
    };
    let mut blob = |media_type: &str, content: &[u8]| {
        let digest = digest(content);
        add(&format!("blobs/{}", digest.replace(':', "/")), content);
        json!({"mediaType": media_type, "digest": digest, "size": content.len()})
    };
    let of = "application/vnd.oci.image";
    let list: Vec<Value> = layers
        .iter()
        .map(|part| blob(&format!("{of}.layer.v1.tar"), &part.packed))
        .collect();
    let ids: Vec<&String> = layers.iter().map(|part| &part.diff_id).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let config = blob(
        &format!("{of}.config.v1+json"),
        config.to_string().as_bytes(),
    );
    let manifest = json!({
        "schemaVersion": 2, "mediaType": format!("{of}.manifest.v1+json"),
        "config": config, "layers": list,
    });
    let manifest = blob(
        &format!("{of}.manifest.v1+json"),
        manifest.to_string().as_bytes(),
    );
    let found = manifest["digest"].as_str().expect("a digest").to_owned();
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    add("index.json", index.to_string().as_bytes());
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    let mut file = builder.into_inner().expect("an archive");
    file.flush().expect("written");
    found
}
