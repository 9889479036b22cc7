//! What the caller says of an image's layers before they are unpacked.

use std::sync::Arc;

use rustix::fs::{Gid, Uid};

use super::UnpackError;
use super::place::Attributes;

/// How much a layer, or all of an image, may have.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of archives, unpacked: content and headers.
    pub bytes: u64,
    pub entries: u64,
    /// Bytes of one path, and folders in it.
    pub path: usize,
    pub depth: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            bytes: 16 << 30,
            entries: 1_000_000,
            path: 2_000,
            depth: 100,
        }
    }
}

/// What is left of the bounds; one for all layers of an image.
#[derive(Clone, Debug)]
pub struct Budget {
    pub(super) bytes: u64,
    pub(super) entries: u64,
    pub(super) bounds: Bounds,
}

impl Budget {
    pub fn new(bounds: &Bounds) -> Self {
        Budget {
            bytes: bounds.bytes,
            entries: bounds.entries,
            bounds: *bounds,
        }
    }
}

/// Whose id inside an image is whose outside. None for one that has no place outside: then the layer is refused.
pub type MapIds = Arc<dyn Fn(u32, u32) -> Option<(u32, u32)> + Send + Sync>;

#[derive(Clone, Default)]
pub enum Owners {
    /// All belongs to whoever unpacks.
    #[default]
    Ours,
    /// User and group as mapped; needs root.
    Mapped(MapIds),
}

/// The setuid and setgid bits of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetId {
    #[default]
    Drop,
    Keep,
}

/// What becomes of an order to hide what layers below have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Whiteouts {
    /// It is removed from the folder: for layers that are put over each other.
    #[default]
    Apply,
    /// Overlayfs is to hide it.
    Overlay(Opaque),
}

/// How overlayfs is told that a folder hides all of its namesakes below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opaque {
    /// `trusted.overlay.opaque`; needs root.
    Trusted,
    /// `user.overlay.opaque`; the mount needs `userxattr`.
    User,
}

impl Opaque {
    pub(super) fn attribute(self) -> &'static str {
        match self {
            Opaque::Trusted => "trusted.overlay.opaque",
            Opaque::User => "user.overlay.opaque",
        }
    }
}

#[derive(Clone, Default)]
pub struct Options {
    pub owners: Owners,
    pub set_id: SetId,
    pub whiteouts: Whiteouts,
    pub bounds: Bounds,
}

impl Options {
    pub(super) fn owner(&self, user: u64, group: u64) -> Result<Option<(Uid, Gid)>, UnpackError> {
        let Owners::Mapped(map) = &self.owners else {
            return Ok(None);
        };
        let mapped = match (u32::try_from(user), u32::try_from(group)) {
            (Ok(user), Ok(group)) => map(user, group),
            _ => None,
        };
        // The last number means "as it is" to the kernel.
        let (user, group) = mapped
            .filter(|(user, group)| *user != u32::MAX && *group != u32::MAX)
            .ok_or_else(|| {
                let text = format!("a file belongs to {user}:{group}, which nobody is here");
                UnpackError::Bad(text)
            })?;
        Ok(Some((Uid::from_raw(user), Gid::from_raw(group))))
    }

    pub(super) fn attributes_of_implied(&self) -> Result<Attributes, UnpackError> {
        Ok(Attributes {
            mode: 0o755,
            owner: self.owner(0, 0)?,
            mtime: None,
        })
    }
}
