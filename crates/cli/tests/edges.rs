//! Which crate may know which, as ARCHITECTURE.md says.

use std::collections::BTreeMap;
use std::process::Command;

#[test]
fn the_crate_edges_are_kept() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("hutong-core", &[][..]),
        ("hutong-ipc", &[]),
        ("hutong-shim", &["hutong-ipc"]),
        ("hutong-http", &[]),
        ("hutong-docker", &["hutong-core", "hutong-ipc"]),
        ("hutong-acme", &[]),
        (
            "hutong-gateway",
            &["hutong-core", "hutong-http", "hutong-ipc"],
        ),
        ("hutong-registry", &["hutong-core"]),
        ("hutong-runtime", &["hutong-core", "hutong-ipc"]),
        ("hutong-api", &["hutong-core"]),
        ("hutong-import", &["hutong-core"]),
        (
            "hutong-daemon",
            &[
                "hutong-acme",
                "hutong-api",
                "hutong-core",
                "hutong-ipc",
                "hutong-registry",
                "hutong-runtime",
            ],
        ),
        (
            "hutong",
            &[
                "hutong-acme",
                "hutong-api",
                "hutong-core",
                "hutong-daemon",
                "hutong-docker",
                "hutong-gateway",
                "hutong-import",
                "hutong-ipc",
                "hutong-registry",
                "hutong-runtime",
            ],
        ),
        ("hutong-testkit", &[]),
        ("xtask", &["hutong-testkit"]),
    ]);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert_eq!(
        packages.len(),
        allowed.len(),
        "a new crate needs an edge here and in ARCHITECTURE.md"
    );
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let mut found: Vec<&str> = package["dependencies"]
            .as_array()
            .expect("dependencies")
            .iter()
            .filter(|d| d["kind"].is_null() && !d["path"].is_null())
            .filter_map(|d| d["name"].as_str())
            .collect();
        found.sort_unstable();
        assert_eq!(found, allowed[name], "{name}");
    }
}

#[test]
fn core_does_no_io_and_unsafe_has_its_places() {
    let crates = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut files = Vec::new();
    collect(crates, &mut files);
    for path in files {
        let text = std::fs::read_to_string(&path).expect("read");
        let name = path.to_string_lossy().into_owned();
        if name.contains("core/src") {
            for banned in [
                "std::fs",
                "std::net",
                "std::process",
                "SystemTime::now",
                "Instant::now",
                "async fn",
                "getrandom",
            ] {
                assert!(!text.contains(banned), "{name} has {banned}");
            }
        }
        let may = name.ends_with("/sys.rs");
        assert!(
            may || !text.contains(concat!("allow(unsafe", "_code)")),
            "{name}"
        );
        assert!(
            !text.contains(concat!("Command::new(\"", "sh\")")) || name.contains("/tests/"),
            "{name} starts a shell"
        );
    }
}

fn collect(folder: &std::path::Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("read").flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name() != Some("target".as_ref()) {
            collect(&path, files);
        } else if path.extension() == Some("rs".as_ref()) {
            files.push(path);
        }
    }
}
