//! `hutong internal unpack`: layers of an image become a folder. The warden starts it in a sandbox that has the packed
//! layers, an empty folder, and nothing else; what goes wrong is said on standard error, and on standard output how much it
//! was, for control to read.

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use hutong_ipc::shim::UID_RANGE;
use hutong_registry::Digest;
use hutong_registry::unpack::{
    Bounds, Budget, Opaque, Options, Owners, UnpackError, Unpacked, Whiteouts, apply,
};
use serde::Deserialize;

use crate::error::CliError;

/// What the warden wants, in the variable of this name.
const ORDER: &str = "HUTONG_UNPACK";

#[derive(Deserialize)]
struct Order {
    /// Where each is, and the digest of the archive in it; from the bottom up.
    layers: Vec<(String, String)>,
    out: String,
    /// They are put over each other; else there is one, and overlayfs is to stack it.
    flat: bool,
    /// Files get the owners that the image says.
    owners: bool,
    /// Of what comes out.
    bytes: u64,
    entries: Option<u64>,
}

pub fn run() -> Result<ExitCode, CliError> {
    let order = std::env::var(ORDER).map_err(CliError::failed)?;
    let order: Order = serde_json::from_str(&order).map_err(CliError::failed)?;
    let options = options(&order);
    let mut budget = Budget::new(&options.bounds);
    let out = File::open(&order.out).map_err(CliError::failed)?;
    let count = order.layers.len();
    let (mut entries, mut bytes) = (0, 0);
    for (number, (path, diff_id)) in order.layers.iter().enumerate() {
        let failed = |reason: String| match count {
            1 => CliError::failed(reason),
            _ => CliError::failed(format!("layer {} of {count}: {reason}", number + 1)),
        };
        let done = layer(path, diff_id, &out, &options, &mut budget).map_err(failed)?;
        for note in done.notes {
            tracing::warn!("{note}");
        }
        entries += done.entries;
        bytes += done.bytes;
    }
    // Control takes it off what the image's other layers may have.
    writeln!(
        std::io::stdout(),
        "unpacked {entries} entries, {bytes} bytes"
    )
    .map_err(CliError::failed)?;
    Ok(ExitCode::SUCCESS)
}

fn options(order: &Order) -> Options {
    // What has no place in an app's range is refused.
    let same =
        |user: u32, group: u32| (user < UID_RANGE && group < UID_RANGE).then_some((user, group));
    Options {
        owners: match order.owners {
            true => Owners::Mapped(Arc::new(same)),
            false => Owners::Ours,
        },
        whiteouts: match order.flat {
            true => Whiteouts::Apply,
            false => Whiteouts::Overlay(Opaque::User),
        },
        bounds: Bounds {
            bytes: order.bytes,
            entries: order.entries.unwrap_or(Bounds::default().entries),
            ..Bounds::default()
        },
        ..Options::default()
    }
}

fn layer(
    path: &str,
    diff_id: &str,
    out: &File,
    options: &Options,
    budget: &mut Budget,
) -> Result<Unpacked, String> {
    let diff_id: Digest = diff_id.parse().map_err(text)?;
    let packed = File::open(path).map_err(text)?;
    apply(out, packed, Some(&diff_id), options, budget).map_err(|error: UnpackError| text(error))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
