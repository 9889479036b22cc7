//! Servers on other machines: where they are ([`address`]), how they are reached ([`ssh`], [`https`]), and the names
//! that a person gave them ([`contexts`]).

pub mod address;
pub mod contexts;
pub mod https;
pub mod ssh;
