//! The bytes between our own processes: framed messages with descriptors, the spool files, and the
//! messages of each edge. Owns formats only; it decides nothing and starts nothing.
//!
//! Start at [`channel`] (how a message crosses), then [`shim`], [`warden`] and [`gateway`] (what is said).
//! Every reader bounds what it takes: the other side may have been broken into.

pub mod channel;
pub mod docker;
pub mod fail;
pub mod files;
pub mod gateway;
pub mod resolver;
pub mod shim;
pub mod spool;
pub mod warden;
