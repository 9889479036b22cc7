//! What daemon and command line say to each other: wire types, the error body, and an HTTP client.
//! Fields are documented and only ever added to.

pub mod client;
mod types;
pub mod websocket;

pub use types::*;
