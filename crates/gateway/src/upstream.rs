//! Talking to an app, in the protocol that it speaks.

pub mod cgi;
mod frames;
pub mod http1;
pub mod http2;
mod request;
mod tunnel;
