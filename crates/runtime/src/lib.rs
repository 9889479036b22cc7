//! The only crate that touches the kernel or an engine: the warden, the sandbox driver, and what both
//! need. It chooses nothing about apps; `core` decides, `daemon` asks.
//!
//! Start at [`warden`] (the process), [`requests`](warden) (what may be asked), [`sandbox`] (what an app
//! gets to see), [`launch`] (how an instance comes to be). [`client`] is the other end.

pub mod cgroup;
pub mod client;
pub mod confine;
mod copies;
mod disks;
mod dns;
pub mod doctor;
mod egress;
mod instances;
mod launch;
pub mod paths;
pub mod processes;
pub mod resolver;
mod result;
mod sandbox;
mod seccomp;
mod snapshots;
pub mod sys;
mod trees;
pub mod trial;
mod uids;
pub mod warden;

pub use sandbox::base_env;
