//! For tests only: a real server from the real binary in a folder of its own, a client for visitors,
//! and steady traffic that counts what fails.

pub mod corpus;
pub mod crash;
pub mod docker;
pub mod oci;
pub mod server;
pub mod ssh;
pub mod traffic;
pub mod trial;
pub mod visitor;

use std::time::{Duration, Instant};

/// Says that a test cannot run here, and why; an error in CI, where everything must be there.
pub fn skip(reason: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "CI must not skip: {reason}"
    );
    println!("skipped: {reason}");
}

/// Whether this user is root; says so where not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("root is needed");
    }
    root
}

/// Looks every 20 ms until it holds; panics after `seconds` with what was waited for.
pub fn eventually(what: &str, seconds: u64, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(
            Instant::now() < deadline,
            "after {seconds} s still not: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// SIGKILL to a process that the test started or that its server did.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a pid");
    // It may have ended by itself.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}
