//! What the warden and the resolver say to each other behind the setup, over the resolver's standard input. The resolver
//! reads what apps and name servers send; so it says numbers and addresses only, which the warden checks.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Addresses a list's questions come from, and the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Never given twice while the resolver lives.
    pub id: u64,
    /// A network, by its first address and its prefix.
    pub first: Ipv4Addr,
    pub prefix: u8,
    /// Entries as `hutong.toml` has them.
    pub list: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// In place of any that has the same addresses.
    Place(Place),
    Gone {
        id: u64,
    },
    /// The answer to an [`Ask`]: whether the addresses are open now.
    Opened {
        ask: u64,
        good: bool,
    },
}

/// May these addresses be opened, which a listed name leads to?
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ask {
    /// Repeated in the answer.
    pub ask: u64,
    pub place: u64,
    /// Which entries of the place's list name it.
    pub entries: Vec<u16>,
    pub addresses: Vec<Ipv4Addr>,
    pub ttl_s: u32,
}

/// The most addresses of one answer: it fits into 512 bytes then, whatever the name (RFC 1035 §4.2.1).
pub const MAX_ADDRESSES: usize = 15;
