//! Rust: a package with one binary. Cargo's `target` is kept in the cache, so only the program itself gets into the
//! release.

use super::{Plan, Program, Refusal, Seen, Step, toml_of};

pub(super) fn detect(seen: &Seen<'_>) -> Result<Plan, Refusal> {
    let files = seen.files;
    let manifest = toml_of("Cargo.toml", files.needed("Cargo.toml")?)?;
    let mut because = Vec::new();
    let (path, manifest) = if manifest.contains_key("package") {
        ("Cargo.toml".to_owned(), manifest)
    } else if manifest.contains_key("workspace") {
        because.push("Cargo.toml: a workspace".to_owned());
        member(seen)?
    } else {
        return Err(Refusal::at(
            "Cargo.toml",
            "has neither [package] nor [workspace]",
        ));
    };
    let binary = only_binary(seen, &path, &manifest)?;
    because.push(format!("{path}: the program {binary}"));
    let locked = files.has("Cargo.lock");
    because.push(match locked {
        true => "Cargo.lock: exactly these versions".to_owned(),
        false => {
            "no Cargo.lock: whichever versions are newest; deploy the lock file, too".to_owned()
        }
    });
    let folder = path.trim_end_matches("Cargo.toml").trim_end_matches('/');
    let folder = if folder.is_empty() { "." } else { folder };
    // Without a registry's packages nothing is fetched.
    let lock = files.text("Cargo.lock");
    let network =
        lock.is_none_or(|lock| lock.contains("\nsource = ")) && !files.has_folder("vendor");
    let flags = if locked { " --locked" } else { "" };
    let line = format!(
        "cargo install --path {folder} --bin {binary} --root /app/.hutong --no-track{flags}"
    );
    Ok(Plan {
        language: "Rust",
        because,
        steps: vec![Step::new(&line, network)],
        program: Program::Command(
            seen.web
                .clone()
                .unwrap_or_else(|| vec![format!("/app/.hutong/bin/{binary}")]),
        ),
        caches: vec!["cargo"],
    })
}

/// The one member of a workspace that has a program.
fn member(seen: &Seen<'_>) -> Result<(String, toml::Table), Refusal> {
    let mut found = Vec::new();
    let manifests = seen
        .files
        .own_paths()
        .filter(|path| path.ends_with("/Cargo.toml"));
    for path in manifests {
        let Some(text) = seen.files.text(path) else {
            continue;
        };
        let manifest = toml_of(path, text)?;
        if manifest.contains_key("package") && !binaries(seen, path, &manifest).is_empty() {
            found.push((path.to_owned(), manifest));
        }
    }
    if found.len() > 1 {
        let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
        return Err(Refusal::at(
            "Cargo.toml",
            format!(
                "several members of the workspace have programs, {}: say which in hutong.toml by `command` and [build]",
                paths.join(", ")
            ),
        ));
    }
    found
        .pop()
        .ok_or_else(|| Refusal::at("Cargo.toml", "no member of the workspace has a program"))
}

fn only_binary(seen: &Seen<'_>, path: &str, manifest: &toml::Table) -> Result<String, Refusal> {
    let default = manifest
        .get("package")
        .and_then(|package| package.get("default-run"))
        .and_then(toml::Value::as_str);
    if let Some(name) = default.filter(|name| is_plain(name)) {
        return Ok(name.to_owned());
    }
    let mut all = binaries(seen, path, manifest);
    match all.len() {
        1 => Ok(all.remove(0)),
        0 => Err(Refusal::at(
            path,
            "has no program: neither [[bin]], nor src/main.rs, nor src/bin/; a library is not deployed",
        )),
        _ => Err(Refusal::at(
            path,
            format!(
                "has several programs, {}: set `default-run` in [package]",
                all.join(", ")
            ),
        )),
    }
}

/// Names of a package's programs.
fn binaries(seen: &Seen<'_>, path: &str, manifest: &toml::Table) -> Vec<String> {
    let folder = path.trim_end_matches("Cargo.toml");
    let package = manifest
        .get("package")
        .and_then(|package| package.get("name"))
        .and_then(toml::Value::as_str);
    let mut names: Vec<String> = manifest
        .get("bin")
        .and_then(toml::Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|bin| bin.get("name")?.as_str().map(str::to_owned))
        .collect();
    if let Some(name) = package
        && names.is_empty()
        && seen.files.has(&format!("{folder}src/main.rs"))
    {
        names.push(name.to_owned());
    }
    let below = format!("{folder}src/bin/");
    for path in seen.files.own_paths() {
        let name = path.strip_prefix(&below).and_then(|rest| {
            rest.strip_suffix("/main.rs")
                .or_else(|| rest.strip_suffix(".rs"))
        });
        if let Some(name) = name.filter(|name| !name.contains('/')) {
            names.push(name.to_owned());
        }
    }
    names.retain(|name| is_plain(name));
    names.sort();
    names.dedup();
    names
}

/// As cargo has it; nothing that could be taken for an option.
fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}
