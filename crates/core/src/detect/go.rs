//! Go: a module with one program becomes a static binary.

use super::{Plan, Program, Refusal, Seen, Step};

/// Where the program is put, below the app's folder.
const BINARY: &str = ".hutong/app";

pub(super) fn detect(seen: &Seen<'_>) -> Result<Plan, Refusal> {
    let files = seen.files;
    let module = files.needed("go.mod")?;
    let named = module.lines().enumerate().find_map(|(index, line)| {
        let rest = line.trim().strip_prefix("module")?;
        rest.starts_with([' ', '\t'])
            .then(|| (index, rest.trim().to_owned()))
    });
    let Some((_, name)) = named.filter(|(_, name)| !name.is_empty()) else {
        return Err(Refusal::at(
            "go.mod",
            "has no line `module NAME`; `go mod init` writes one",
        ));
    };
    let package = program(seen)?;
    let requires = module.lines().any(|line| {
        let line = line.trim();
        line.starts_with("require ") || line.starts_with("require(")
    });
    let vendored = files.has("vendor/modules.txt");
    if requires && !vendored && !files.has("go.sum") {
        return Err(Refusal::at(
            "go.mod",
            "requires modules, and there is no go.sum beside it: run `go mod tidy` and deploy go.sum too",
        ));
    }
    let mut because = vec![format!("go.mod: the Go module {name}")];
    because.push(format!("{package} is its program, built without cgo"));
    if vendored {
        because.push("vendor/: nothing is fetched".into());
    }
    let line = format!(
        "env CGO_ENABLED=0 GOFLAGS=-buildvcs=false go build -trimpath -o /app/{BINARY} {package}"
    );
    Ok(Plan {
        language: "Go",
        because,
        steps: vec![Step::new(&line, requires && !vendored)],
        program: Program::Command(
            seen.web
                .clone()
                .unwrap_or_else(|| vec![format!("/app/{BINARY}")]),
        ),
        caches: vec!["go"],
    })
}

/// The package of the one program.
fn program(seen: &Seen<'_>) -> Result<String, Refusal> {
    let is_main = |path: &&str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        let text = seen.files.text(path).unwrap_or_default();
        let left_out = text.lines().any(|line| {
            let line = line.trim_end();
            line == "//go:build ignore" || line == "// +build ignore"
        });
        name.ends_with(".go")
            && !name.ends_with("_test.go")
            && !left_out
            && text
                .lines()
                .any(|line| line.trim_end() == "package main" || line.starts_with("package main "))
    };
    let mains: Vec<&str> = seen.files.own_paths().filter(is_main).collect();
    if mains.iter().any(|path| !path.contains('/')) {
        return Ok(".".into());
    }
    let mut packages: Vec<String> = mains
        .iter()
        .filter_map(|path| path.rsplit_once('/'))
        .map(|(folder, _)| format!("./{folder}"))
        .collect();
    packages.dedup();
    match packages.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Refusal::at(
            "go.mod",
            "no file of the module says `package main`, in its folder, below cmd/ or one folder deep: a library is not deployed",
        )),
        several => Err(Refusal::at(
            "go.mod",
            format!(
                "there are several programs, {}: say which in hutong.toml, such as command = [\"/app/.hutong/app\"] and [build] command = \"go build -o .hutong/app {}\"",
                several.join(", "),
                several[0]
            ),
        )),
    }
}
