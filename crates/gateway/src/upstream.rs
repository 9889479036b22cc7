//! Talking to an app, in the protocol that it speaks.

pub mod http1;
mod request;
mod tunnel;
