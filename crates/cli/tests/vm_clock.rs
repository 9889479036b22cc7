//! Somebody sets the clock, by hours, both ways. Only in a virtual machine (`scripts/vm`): it is everybody's clock.
#![cfg(feature = "full")]
// Its tables go into docs/reliability.md.
#![allow(clippy::print_stdout)]

use std::process::Command;

use hutong_testkit::server::{Server, children_of, python_app};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root, kill};

fn set_clock(by: &str) {
    let status = Command::new("date").args(["--set", by]).status();
    assert!(status.expect("date").success());
}

#[test]
fn a_clock_that_jumps_decides_nothing() {
    if !is_root() || std::env::var_os("HUTONG_VM").is_none() {
        println!("skipped: only scripts/vm may set the clock");
        return;
    }
    let server = Server::start();
    let app = python_app("one", "", "1");
    server.deploy(app.path());
    server.deploy(python_app("gone", "data = true", "g").path());
    get(&server.http, "gone.test", "/count");
    server.ok(&["remove", "gone"]);
    let data = server.data.path().join("data/gone/count");
    for by in ["+3 hours", "-6 hours", "+10 days", "-20 days"] {
        set_clock(by);
        // An app that ends is back within seconds, not hours.
        for _ in 0..2 {
            let before = server.app("one")["instances"][0]["id"].clone();
            let init = children_of(server.shim_of("one"))[0];
            kill(children_of(init)[0]);
            eventually("it is back", 60, || {
                let now = server.app("one")["instances"][0].clone();
                now["id"] != before && now["state"] == "healthy"
            });
        }
        assert_eq!(get(&server.http, "one.test", "/").text(), "1", "{by}");
        // A deploy neither hangs nor is given up.
        server.ok(&["restart", "one"]);
        server.deploy(app.path());
        // A week that only the clock says has passed deletes nothing.
        assert!(data.exists(), "{by}");
        server.ok(&["doctor", "--leaks"]);
    }
}
