//! The registry as clients see it: its router is called without a network. A module for each section of the
//! distribution spec, and what the spec leaves to us: who may, kills, races.

mod access;
mod content_discovery;
mod content_management;
mod durability;
mod images;
mod pull;
mod push_blobs;
mod push_manifests;
mod racing;
mod rig;
