//! Layers become a folder: our unpacker (`hutong internal unpack`, which a deploy runs in a sandbox) beside umoci, of the
//! same OCI layout.
//!
//! `umoci unpack` also writes down the digest of every file, for later changes of the image; `umoci raw unpack` does not,
//! and is in the notes. None of the three flushes: a deploy does, when the unpacker has ended. Ours was told the digests of
//! the archives, and the packed layers' were compared at the push; umoci compares both.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::json;

use super::image::{Content, Image};
use super::{LAYER, LAYERS, beside, flush, ok};
use crate::{Report, median};

/// Who unpacks.
const WAYS: [Way; 3] = [Way::Ours, Way::Umoci, Way::UmociRaw];

#[derive(Clone, Copy)]
enum Way {
    Ours,
    Umoci,
    UmociRaw,
}

pub fn run(binary: &Path, rounds: usize) -> anyhow::Result<Report> {
    let kinds = [
        (Content::Noise, "bytes that do not pack"),
        (Content::Words, "text"),
    ];
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for (content, what) in kinds {
        let image = Image::new(content, LAYERS, LAYER)?;
        let megabytes = (LAYERS * LAYER) as f64 / 1e6;
        let mut speeds: [Vec<f64>; WAYS.len()] = Default::default();
        for round in 0..rounds {
            for turn in 0..WAYS.len() {
                let number = (round + turn) % WAYS.len();
                let seconds = unpack(WAYS[number], binary, &image)?;
                speeds[number].push(megabytes / seconds);
            }
        }
        let [ours, umoci, raw] = speeds.map(median);
        rows.push(beside(
            format!(
                "unpacking {megabytes:.0} MB of {what}, {:.0} MB packed, beside umoci unpack",
                image.packed() as f64 / 1e6
            ),
            ours,
            umoci,
            "MB/s",
            1.0,
        ));
        notes.push(format!(
            "unpacking {what} ({LAYERS} layers with gzip, {} files, medians of {rounds}): ours {ours:.0} MB/s, umoci unpack {umoci:.0}, umoci raw unpack {raw:.0}",
            image.files
        ));
    }
    Ok(Report { rows, notes })
}

/// Seconds, into a folder that goes at once.
fn unpack(way: Way, binary: &Path, image: &Image) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("out");
    let (mut command, root) = match way {
        Way::Ours => {
            // The warden makes the folder; umoci wants to do that itself.
            std::fs::create_dir(&out)?;
            (ours(binary, image, &out), out)
        }
        Way::Umoci => {
            let mut command = Command::new("umoci");
            command.args(["unpack", "--image", &image.name()]).arg(&out);
            (command, out.join("rootfs"))
        }
        Way::UmociRaw => {
            let mut command = Command::new("umoci");
            command
                .args(["raw", "unpack", "--image", &image.name()])
                .arg(&out);
            (command, out)
        }
    };
    flush()?;
    let began = Instant::now();
    ok(&mut command)?;
    let seconds = began.elapsed().as_secs_f64();
    let files = count(&root)?;
    anyhow::ensure!(
        files == image.files,
        "{files} files came out of an image of {}",
        image.files
    );
    Ok(seconds)
}

/// All layers over each other, with the image's owners, as where layers cannot be stacked.
fn ours(binary: &Path, image: &Image, out: &Path) -> Command {
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|layer| json!([image.place(layer).to_string_lossy(), layer.diff_id]))
        .collect();
    let order = json!({
        "layers": layers, "out": out.to_string_lossy(), "flat": true, "owners": true,
        "bytes": 1u64 << 30, "entries": null,
    });
    let mut command = Command::new(binary);
    command
        .args(["internal", "unpack"])
        .env("HUTONG_UNPACK", order.to_string());
    command
}

/// Files in a folder and below.
fn count(folder: &Path) -> anyhow::Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        files += match entry.file_type()?.is_dir() {
            true => count(&entry.path())?,
            false => 1,
        };
    }
    Ok(files)
}
