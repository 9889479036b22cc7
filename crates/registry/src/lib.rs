//! An OCI registry (distribution spec 1.1) as a library: images are pushed, kept, pulled and unpacked.

mod digest;
mod manifest;
mod name;
mod range;

pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Kind, MAX_MANIFEST, Manifest, OCI_ARTIFACT,
    OCI_INDEX, OCI_MANIFEST, Platform,
};
pub use name::{MAX_NAME, MAX_TAG, NameError, Reference, ReferenceError, RepositoryName, Tag};
