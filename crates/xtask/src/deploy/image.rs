//! Images as OCI layouts in folders: layers packed with gzip, of bytes made up on the spot. `gzip` and `sha256sum` do the
//! work that takes long, because this program is not optimised.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use hutong_testkit::oci::{self, Entry};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::ok;

/// Half of a layer is files of this many bytes, and half of that many.
const BIG: usize = 1_000_000;
const SMALL: usize = 16_000;

const KIND: &str = "application/vnd.oci.image";

/// What files are full of.
#[derive(Clone, Copy)]
pub enum Content {
    /// Cannot be packed.
    Noise,
    /// Words of small letters in no order, which can.
    Words,
}

pub struct Layer {
    /// Of the packed layer.
    digest: String,
    /// Of the archive in it.
    pub diff_id: String,
    /// Packed.
    size: u64,
}

pub struct Image {
    folder: TempDir,
    pub layers: Vec<Layer>,
    /// Of all layers.
    pub files: usize,
}

impl Image {
    /// So many layers, with so many bytes of files in each.
    pub fn new(content: Content, count: usize, size: usize) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("hutong-image-").tempdir()?;
        std::fs::create_dir_all(folder.path().join("blobs/sha256"))?;
        std::fs::write(
            folder.path().join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        let mut image = Image {
            folder,
            layers: Vec::new(),
            files: 0,
        };
        let shared = &image;
        let made: anyhow::Result<Vec<(Layer, usize)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..count)
                .map(|number| scope.spawn(move || shared.make(number, content, size)))
                .collect();
            let results = threads.into_iter().map(|thread| {
                let joined = thread.join();
                joined.unwrap_or_else(|_| anyhow::bail!("a maker of layers panicked"))
            });
            results.collect()
        });
        for (layer, files) in made? {
            image.layers.push(layer);
            image.files += files;
        }
        image.write_index()?;
        Ok(image)
    }

    /// One more layer on top. How many bytes are new by that: the layer, the configuration and the manifest.
    pub fn add(&mut self, content: Content, size: usize) -> anyhow::Result<u64> {
        let (layer, files) = self.make(self.layers.len(), content, size)?;
        let packed = layer.size;
        self.layers.push(layer);
        self.files += files;
        Ok(packed + self.write_index()?)
    }

    /// As skopeo calls it.
    pub fn reference(&self) -> String {
        format!("oci:{}", self.name())
    }

    /// As umoci calls it.
    pub fn name(&self) -> String {
        format!("{}:latest", self.folder.path().display())
    }

    /// Bytes of its packed layers.
    pub fn packed(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }

    /// Where a packed layer is.
    pub fn place(&self, layer: &Layer) -> PathBuf {
        self.blob(&layer.digest)
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let place = format!("blobs/{}", digest.replace(':', "/"));
        self.folder.path().join(place)
    }

    /// A layer, and the number of its files.
    fn make(&self, number: usize, content: Content, size: usize) -> anyhow::Result<(Layer, usize)> {
        let mut files = Vec::new();
        for (file, size) in sizes(size).into_iter().enumerate() {
            let path = format!("layer-{number}/{}/{file}.bin", file % 32);
            files.push((path, bytes(content, size)?));
        }
        let entries: Vec<Entry<'_>> = files
            .iter()
            .map(|(path, content)| Entry::File(path, 0o644, content))
            .collect();
        let archive = self.folder.path().join(format!("layer-{number}.tar"));
        std::fs::write(&archive, oci::layer(&entries))?;
        let diff_id = digest_of(&archive)?;
        // What cannot be packed need not be tried hard.
        let level = match content {
            Content::Noise => "-1",
            Content::Words => "-6",
        };
        ok(Command::new("gzip").args([level, "-n"]).arg(&archive))?;
        let packed = archive.with_extension("tar.gz");
        let digest = digest_of(&packed)?;
        let size = packed.metadata()?.len();
        std::fs::rename(&packed, self.blob(&digest))?;
        let layer = Layer {
            digest,
            diff_id,
            size,
        };
        Ok((layer, files.len()))
    }

    /// Configuration, manifest and index of the layers that there are; the bytes of the first two.
    fn write_index(&self) -> anyhow::Result<u64> {
        let ids: Vec<&str> = self.layers.iter().map(|l| l.diff_id.as_str()).collect();
        let config = self.write_blob(
            &format!("{KIND}.config.v1+json"),
            &json!({
                "architecture": oci::architecture(), "os": "linux", "config": {},
                "rootfs": {"type": "layers", "diff_ids": ids},
            }),
        )?;
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                json!({
                    "mediaType": format!("{KIND}.layer.v1.tar+gzip"),
                    "digest": layer.digest, "size": layer.size,
                })
            })
            .collect();
        let mut manifest = self.write_blob(
            &format!("{KIND}.manifest.v1+json"),
            &json!({
                "schemaVersion": 2, "mediaType": format!("{KIND}.manifest.v1+json"),
                "config": config, "layers": layers,
            }),
        )?;
        let size = |blob: &Value| blob["size"].as_u64().unwrap_or_default();
        let written = size(&config) + size(&manifest);
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        std::fs::write(self.folder.path().join("index.json"), index.to_string())?;
        Ok(written)
    }

    fn write_blob(&self, media_type: &str, content: &Value) -> anyhow::Result<Value> {
        let text = content.to_string();
        let digest = oci::digest(text.as_bytes());
        std::fs::write(self.blob(&digest), &text)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": text.len()}))
    }
}

/// Of a layer's files: half of the bytes in big ones, the rest in small ones.
fn sizes(all: usize) -> Vec<usize> {
    let mut sizes = vec![BIG; all / 2 / BIG];
    let mut left = all - sizes.len() * BIG;
    while left > 0 {
        let size = left.min(SMALL);
        sizes.push(size);
        left -= size;
    }
    sizes
}

fn bytes(content: Content, size: usize) -> anyhow::Result<Vec<u8>> {
    match content {
        Content::Noise => noise(size),
        Content::Words => words(size),
    }
}

fn noise(size: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Each byte of noise chooses one of 256 words of three to ten letters.
fn words(size: usize) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(size + 16);
    while text.len() < size {
        for byte in noise(4096)? {
            let mut state = u32::from(byte).wrapping_mul(2_654_435_761);
            for _ in 0..3 + usize::from(byte % 8) {
                text.push(b'a' + (state >> 8) as u8 % 26);
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            }
            text.push(b' ');
            if text.len() >= size {
                break;
            }
        }
    }
    text.truncate(size);
    Ok(text)
}

fn digest_of(file: &Path) -> anyhow::Result<String> {
    let said = ok(Command::new("sha256sum").arg(file))?;
    let hex = said.split(' ').next().unwrap_or_default();
    anyhow::ensure!(hex.len() == 64, "sha256sum says {said}");
    Ok(format!("sha256:{hex}"))
}
