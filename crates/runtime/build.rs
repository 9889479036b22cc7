//! Builds the shim as a small static program of its own, to be embedded: re-executing the whole `hutong`
//! binary would cost every instance one to two megabytes of relocated memory (decision 0001).

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let crates = here.parent().expect("crates/").to_path_buf();
    for folder in ["shim", "ipc"] {
        println!("cargo:rerun-if-changed={}", crates.join(folder).display());
    }
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    let target = env::var("TARGET").expect("cargo sets it");
    let built = build(&crates.join("shim"), &out.join("shim-build"), &target);
    std::fs::copy(built, out.join("hutong-shim")).expect("the shim can be copied");
}

fn build(shim: &Path, target_dir: &Path, target: &str) -> PathBuf {
    let cargo = env::var("CARGO").expect("cargo sets it");
    let mut command = Command::new(cargo);
    command
        .arg("build")
        .args(["--release", "--quiet", "--target", target])
        .arg("--manifest-path")
        .arg(shim.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target_dir);
    // What the outer cargo set for its own rustc calls does not belong to this one.
    for (key, _) in env::vars() {
        let outer = key.starts_with("CARGO_PKG")
            || key.starts_with("CARGO_FEATURE")
            || key.starts_with("CARGO_CFG")
            || key.starts_with("CARGO_PROFILE")
            || key.starts_with("RUSTC_W")
            || matches!(
                key.as_str(),
                "CARGO_ENCODED_RUSTFLAGS" | "RUSTFLAGS" | "RUSTC" | "CARGO_MAKEFLAGS" | "MAKEFLAGS"
            );
        if outer {
            command.env_remove(key);
        }
    }
    let status = command
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=static",
        )
        // Failpoints are in debug builds; the shim is always optimized, and has them with the rest.
        .env(
            "CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS",
            (env::var("PROFILE").as_deref() == Ok("debug")).to_string(),
        )
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the shim does not build");
    target_dir.join(target).join("release").join("hutong-shim")
}
