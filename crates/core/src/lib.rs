//! Nouns and decisions, pure: no I/O, no clock, no randomness, no async; `now` and ids are passed in.
//!
//! [`spec`] reads `hutong.toml`; [`plan`] turns (desired, observed, now) into steps;
//! [`canary`] judges a release that gets a part of the visitors; [`drift`] says how two files differ; [`route`] who owns a host; [`labels`] what containers of others ask for; [`retention`] what may go; [`scale`] how
//! many instances there are to be; [`detect`] what a folder is when its `hutong.toml` does not say.

pub mod backoff;
pub mod canary;
pub mod detect;
pub mod dockerfile;
pub mod dockerignore;
pub mod drift;
pub mod hours;
pub mod image;
pub mod labels;
pub mod leak;
pub mod name;
pub mod networks;
pub mod plan;
pub mod preview;
pub mod retention;
pub mod route;
pub mod scale;
pub mod schedule;
pub mod spec;
pub mod tree;
pub mod units;
