//! Certificates from a CA that speaks ACME (RFC 8555): the account, the order with its challenges, when
//! to renew, and the DNS providers that a DNS-01 challenge needs. It stores nothing and serves nothing:
//! control keeps the account and the certificates, the gateway answers the CA.
//!
//! Start at [`order`] (how a certificate is had), then [`challenge`] (what must be shown to the CA),
//! [`schedule`] (when the next attempt is due), [`dns`] (TXT records).

pub mod account;
pub mod chain;
pub mod challenge;
pub mod config;
pub mod dns;
pub mod error;
pub mod http;
pub mod local;
pub mod order;
pub mod renewal;
pub mod resolve;
pub mod schedule;
pub mod secret;
mod text;
mod transport;
