//! The targets of `fuzz/`, five minutes in all (`HUTONG_FUZZ_SECONDS`): whatever a visitor, an app or a balancer
//! sends, `hutong-http` neither panics nor hangs nor grows, and keeps what each target says of it.
#![cfg(feature = "full")]
// Its table goes into docs/reliability.md.
#![allow(clippy::print_stdout)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hutong_testkit::corpus::{self, Case};
use tempfile::TempDir;

const FUZZ: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz");
const BUILT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/fuzz");

#[test]
fn every_target_for_its_share_of_five_minutes() {
    let seconds: u64 = std::env::var("HUTONG_FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(300);
    let binaries = build();
    let targets = targets();
    let share = (seconds / targets.len() as u64).max(1);
    let mut complaints = String::new();
    println!("| target | inputs tried | in a second | edges | features |");
    println!("|---|---|---|---|---|");
    for target in &targets {
        match fuzz(&binaries, target, share) {
            Ok(tried) => println!(
                "| {target} | {} | {} | {} | {} |",
                tried.inputs,
                tried.inputs / share,
                tried.edges,
                tried.features
            ),
            Err(complaint) => {
                println!("| {target} | failed | | | |");
                let _ = writeln!(complaints, "{target}: {complaint}");
            }
        }
    }
    assert!(complaints.is_empty(), "{complaints}");
}

/// Names of the targets, which are those of their files.
fn targets() -> Vec<String> {
    let files = fs::read_dir(Path::new(FUZZ).join("targets")).expect("the targets");
    let mut names: Vec<String> = files
        .filter_map(|file| file.ok()?.path().file_stem()?.to_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// Builds the targets with what `fuzz/.cargo/config.toml` says; where they are then.
fn build() -> PathBuf {
    let version = Command::new("rustc").arg("-vV").output().expect("rustc");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.expect("rustc says its host");
    let mut cargo = Command::new("cargo");
    // Without --target, build scripts would get the flags too.
    cargo.args(["build", "--release", "--target", host]);
    cargo.current_dir(FUZZ);
    for name in [
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "RUSTFLAGS",
    ] {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("cargo");
    assert!(status.success(), "the targets build (g++ is needed)");
    Path::new(BUILT).join(host).join("release")
}

struct Tried {
    inputs: u64,
    edges: u64,
    features: u64,
}

/// Runs a target; what it did, or what went wrong with the input that shows it.
fn fuzz(binaries: &Path, target: &str, seconds: u64) -> Result<Tried, String> {
    let crashes = TempDir::new().expect("a folder");
    // What is found stays for the next run.
    let found = Path::new(BUILT).join("corpus").join(target);
    fs::create_dir_all(&found).expect("a folder");
    let output = Command::new(binaries.join(target))
        .args(["-rss_limit_mb=1024", "-timeout=5", "-max_len=70000"])
        .args(["-print_final_stats=1", &format!("-dict={FUZZ}/http.dict")])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", crashes.path().display()))
        .args([&found, &seeds(target)])
        .arg(Path::new(FUZZ).join("seeds").join(target))
        .output()
        .map_err(|error| error.to_string())?;
    let log = String::from_utf8_lossy(&output.stderr);
    let said = |word: &str| {
        let line = log.lines().rev().find(|line| line.contains(word))?;
        let behind = line.split(word).nth(1)?.split_whitespace().next()?;
        behind.parse::<u64>().ok()
    };
    if !output.status.success() {
        return Err(complaint(&log, crashes.path()));
    }
    match (
        said("number_of_executed_units:"),
        said(" cov: "),
        said(" ft: "),
    ) {
        (Some(inputs), Some(edges), Some(features)) => Ok(Tried {
            inputs,
            edges,
            features,
        }),
        _ => Err(format!("it was built without coverage:\n{log}")),
    }
}

/// What the target said from the moment it went wrong, and the inputs that it left.
fn complaint(log: &str, crashes: &Path) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let is_wrong = |line: &&str| line.contains("panicked at") || line.contains("ERROR");
    let from = lines.iter().position(is_wrong);
    let from = from.unwrap_or(lines.len().saturating_sub(40));
    let mut text = lines[from..lines.len().min(from + 40)].join("\n");
    for file in fs::read_dir(crashes).expect("the folder").flatten() {
        let bytes = fs::read(file.path()).unwrap_or_default();
        let _ = write!(text, "\n{} in hex: ", file.file_name().display());
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
    }
    text
}

/// A folder with what the corpus has for a target; empty where it has nothing.
fn seeds(target: &str) -> PathBuf {
    let folder = Path::new(BUILT).join("seeds").join(target);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    for case in corpus::malformed().iter().chain(&corpus::valid()) {
        if let Some(seed) = seed(target, case) {
            fs::write(folder.join(&case.id), seed).expect("write");
        }
    }
    folder
}

fn seed(target: &str, case: &Case) -> Option<Vec<u8>> {
    let bytes = case.bytes();
    match target {
        "request" | "differential" => Some(bytes),
        // A long one costs time and shows nothing more.
        "path" => {
            let path = bytes.split(|byte| *byte == b' ').nth(1)?;
            (path.len() <= 512).then(|| path.to_vec())
        }
        "chunked" => {
            let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
            let head = bytes[..end].to_ascii_lowercase();
            let is_chunked = head.windows(7).any(|seven| seven == b"chunked");
            (is_chunked && end < bytes.len()).then(|| bytes[end..].to_vec())
        }
        _ => None,
    }
}
