//! `hutong import`: configuration of other tools becomes apps' files and a part of the server file. What reads it is
//! `hutong_import`; here files are read and written, and the report is shown.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hutong_import::{App, Input, Kind, Note, NoteKind, Options, Outcome, recognise};

use crate::error::CliError;
use crate::output::{Output, printable};
use crate::server_file::ServerFile;

#[derive(clap::Args)]
#[command(
    after_help = "Reads docker-compose.yml, Traefik's and nginx's files, systemd units, uwsgi.ini, PM2's ecosystem
file and Procfiles; several at once, because they speak of each other. Says what it understood, what
it left out and why, each with its place; writes DIR/APP/hutong.toml, secrets apart, and
DIR/server.toml.

Examples:
  hutong import docker-compose.yml --out hutong
  hutong import /etc/nginx/conf.d ~/shop/docker-compose.yml --out hutong
  hutong import gateway.txt --as nginx --out hutong --force"
)]
pub struct Args {
    /// Files, or folders in which they are looked for
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Where the apps' folders are written
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the files are: compose, traefik, nginx, systemd, uwsgi, pm2 or procfile [default: what
    /// they look like]
    #[arg(long = "as", value_name = "KIND")]
    kind: Option<Kind>,
    /// Import services of this compose profile, too
    #[arg(long = "profile", value_name = "NAME")]
    profiles: Vec<String>,
    /// Overwrite files that are there
    #[arg(long)]
    force: bool,
}

/// Files that are looked at in folders, and how deep.
const MAX_FOUND: usize = 2000;
const MAX_DEPTH: usize = 8;
/// How often files that others name are read behind the first ones.
const MAX_ROUNDS: usize = 8;

pub fn run(args: &Args, output: Output) -> Result<(), CliError> {
    let mut found = Found::default();
    for path in &args.paths {
        found.add(path)?;
    }
    if found.inputs.is_empty() {
        return Err(CliError::bad_file("none of these files is of a kind that can be imported")
            .hint("compose, traefik, nginx, systemd, uwsgi, pm2 and procfile; say which it is with --as"));
    }
    let options = Options {
        kind: args.kind,
        profiles: args.profiles.clone(),
    };
    let mut outcome = None;
    for _ in 0..MAX_ROUNDS {
        let made = hutong_import::import(&found.inputs, &options);
        // What is wrong now may be right with the files that it names.
        let more = found.add_named(match &made {
            Ok(made) => &made.wanted,
            Err(wrong) => &wrong.wanted,
        });
        outcome = Some(made);
        if !more {
            break;
        }
    }
    let Some(outcome) = outcome else {
        return Err(CliError::failed("nothing was read"));
    };
    let outcome = outcome.map_err(CliError::bad_file)?;
    let files = files(&outcome, &args.out);
    if let Some(part) = &outcome.server {
        ServerFile::check(&args.out.join("server.toml"), &part.toml)?;
    }
    if let Some(file) = files
        .iter()
        .find(|file| !args.force && file.path.symlink_metadata().is_ok())
    {
        return Err(CliError::failed(format!(
            "{} is there already; nothing was written",
            file.path.display()
        ))
        .hint("another --out, or --force to overwrite it"));
    }
    for file in &files {
        write(file)
            .map_err(|error| CliError::failed(format!("{}: {error}", file.path.display())))?;
    }
    if output.json {
        output.value(&as_json(&outcome, &files));
    } else {
        output.text(&printable(&report(&outcome, &args.out)));
    }
    if found.others > 0 {
        output.say(&format!(
            "{} other files in these folders were not looked at",
            found.others
        ));
    }
    Ok(())
}

/// The files that are read.
#[derive(Default)]
struct Found {
    inputs: Vec<Input>,
    /// Nothing outside of these is read because a file names it.
    roots: Vec<PathBuf>,
    /// Files of folders that are of no kind known.
    others: usize,
    seen: usize,
}

impl Found {
    fn add(&mut self, path: &Path) -> Result<(), CliError> {
        let failed =
            |error: std::io::Error| CliError::bad_file(format!("{}: {error}", path.display()));
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if metadata.is_dir() {
            self.roots.extend(path.canonicalize());
            return self.folder(path, 0);
        }
        let real = path.canonicalize().map_err(failed)?;
        self.roots.extend(real.parent().map(Path::to_path_buf));
        let text = read(path)?
            .map_err(|why| CliError::bad_file(format!("{}:1:1: {why}", path.display())))?;
        self.push(path, text, true);
        self.beside(path);
        Ok(())
    }

    fn folder(&mut self, folder: &Path, depth: usize) -> Result<(), CliError> {
        let failed =
            |error: std::io::Error| CliError::failed(format!("{}: {error}", folder.display()));
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            paths.push(entry.map_err(failed)?.path());
        }
        paths.sort();
        for path in paths {
            self.seen += 1;
            if self.seen > MAX_FOUND {
                return Err(CliError::usage(format!(
                    "more than {MAX_FOUND} files are in these folders"
                ))
                .hint("name the files themselves"));
            }
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            let name = name.unwrap_or_default();
            // A folder that is a link may lead round in a circle.
            if path.is_dir() {
                let skipped = name.starts_with('.') || name == "node_modules" || path.is_symlink();
                if !skipped && depth < MAX_DEPTH {
                    self.folder(&path, depth + 1)?;
                }
                continue;
            }
            let Ok(Ok(text)) = read(&path) else {
                self.others += 1;
                continue;
            };
            if recognise(&path.to_string_lossy(), &text).is_some() {
                self.push(&path, text, true);
                self.beside(&path);
            } else {
                self.others += 1;
            }
        }
        Ok(())
    }

    /// Variables of a compose file stand beside it.
    fn beside(&mut self, path: &Path) {
        let env = path.with_file_name(".env");
        if let Ok(Ok(text)) = read(&env) {
            self.push(&env, text, false);
        }
    }

    fn push(&mut self, path: &Path, text: String, asked: bool) {
        let shown = path.to_string_lossy().into_owned();
        match self.inputs.iter_mut().find(|input| input.path == shown) {
            Some(known) => known.asked |= asked,
            None => {
                let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
                let folder = real.parent().and_then(Path::file_name);
                self.inputs.push(Input {
                    folder: folder
                        .map(|name| name.to_string_lossy().into_owned())
                        .unwrap_or_default(),
                    path: shown,
                    text,
                    asked,
                });
            }
        }
    }

    /// Reads files that others name, where they lie below what was handed over; whether there were any.
    fn add_named(&mut self, wanted: &[String]) -> bool {
        let before = self.inputs.len();
        for name in wanted {
            let path = Path::new(name);
            let Ok(real) = path.canonicalize() else {
                continue;
            };
            if !self.roots.iter().any(|root| real.starts_with(root)) {
                continue;
            }
            if let Ok(Ok(text)) = read(path) {
                self.push(path, text, false);
            }
        }
        self.inputs.len() > before
    }
}

/// A file's text, or why it is none.
fn read(path: &Path) -> Result<Result<String, &'static str>, CliError> {
    let failed = |error: std::io::Error| CliError::bad_file(format!("{}: {error}", path.display()));
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Ok(Err("this is no file"));
    }
    if metadata.len() > hutong_import::MAX_YAML as u64 {
        return Ok(Err("the file is over 10 MB"));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    Ok(String::from_utf8(bytes).map_err(|_| "the file is not UTF-8"))
}

/// A file that is written.
struct File {
    path: PathBuf,
    text: String,
    is_secret: bool,
}

fn files(outcome: &Outcome, out: &Path) -> Vec<File> {
    let file = |path: PathBuf, text: &str, is_secret: bool| File {
        path,
        text: text.to_owned(),
        is_secret,
    };
    let mut files = Vec::new();
    for app in &outcome.apps {
        let folder = out.join(&app.name);
        files.push(file(folder.join("hutong.toml"), &app.toml, false));
        if let Some(secrets) = &app.secrets {
            files.push(file(folder.join("secrets.env"), secrets, true));
            // It must not be sent along when this very folder is deployed.
            files.push(file(folder.join(".hutongignore"), "secrets.env\n", false));
        }
    }
    if let Some(part) = &outcome.server {
        files.push(file(out.join("server.toml"), &part.toml, part.is_secret));
    }
    files
}

/// Writes it whole or not at all; a secret is its owner's from the first byte on.
fn write(file: &File) -> std::io::Result<()> {
    if let Some(folder) = file.path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut part = file.path.as_os_str().to_owned();
    part.push(".part");
    let _ = std::fs::remove_file(&part);
    let mut open = std::fs::OpenOptions::new();
    let mode = if file.is_secret { 0o600 } else { 0o644 };
    let mut target = open.write(true).create_new(true).mode(mode).open(&part)?;
    target.write_all(file.text.as_bytes())?;
    target.sync_all()?;
    std::fs::rename(&part, &file.path)
}

fn as_json(outcome: &Outcome, files: &[File]) -> serde_json::Value {
    let apps: Vec<serde_json::Value> = outcome
        .apps
        .iter()
        .map(|app| serde_json::json!({ "name": app.name, "folder": app.folder }))
        .collect();
    let files: Vec<String> = files
        .iter()
        .map(|file| file.path.to_string_lossy().into_owned())
        .collect();
    serde_json::json!({ "apps": apps, "files": files, "notes": outcome.notes })
}

/// The report, for people.
fn report(outcome: &Outcome, out: &Path) -> String {
    let count = |kind: NoteKind| {
        outcome
            .notes
            .iter()
            .filter(|note| note.kind == kind)
            .count()
    };
    let mut text = format!(
        "{} apps; {} settings understood, {} left out, {} that Hutong does itself, {} things to do\n",
        outcome.apps.len(),
        count(NoteKind::Used),
        count(NoteKind::LeftOut),
        count(NoteKind::Replaced),
        count(NoteKind::ToDo),
    );
    let mut by_app: BTreeMap<Option<&str>, Vec<&Note>> = BTreeMap::new();
    for note in &outcome.notes {
        by_app.entry(note.app.as_deref()).or_default().push(note);
    }
    for app in &outcome.apps {
        let path = out.join(&app.name).join("hutong.toml");
        text.push_str(&format!("\n{} → {}\n", app.name, path.display()));
        let notes = by_app.remove(&Some(app.name.as_str())).unwrap_or_default();
        section(&mut text, &notes);
    }
    // What is about no app, or about one that became part of another.
    let rest: Vec<&Note> = by_app.into_values().flatten().collect();
    if !rest.is_empty() {
        text.push_str("\nBeside the apps\n");
        section(&mut text, &rest);
    }
    if outcome.server.is_some() {
        let path = out.join("server.toml");
        text.push_str(&format!("\nThe server file: see {}\n", path.display()));
    }
    text.push_str("\nNext\n");
    for app in &outcome.apps {
        text.push_str(&next(app, out));
    }
    text
}

fn section(text: &mut String, notes: &[&Note]) {
    for (kind, heading) in [
        (NoteKind::Used, "understood"),
        (NoteKind::LeftOut, "left out"),
        (NoteKind::Replaced, "Hutong does this itself"),
        (NoteKind::ToDo, "to do"),
    ] {
        let mut notes = notes.iter().filter(|note| note.kind == kind).peekable();
        if notes.peek().is_none() {
            continue;
        }
        text.push_str(&format!("  {heading}:\n"));
        for note in notes {
            let Note {
                path,
                line,
                column,
                what,
                text: said,
                ..
            } = note;
            text.push_str(&format!("    {path}:{line}:{column}: {what}: {said}\n"));
        }
    }
}

/// The commands that bring an app up.
fn next(app: &App, out: &Path) -> String {
    let folder = out.join(&app.name);
    let ours = shown(&folder);
    let mut text = match &app.folder {
        Some(files) => {
            let theirs = shown(Path::new(files));
            format!("  cp {ours}/hutong.toml {theirs}/ && hutong deploy {theirs}\n")
        }
        None => format!("  hutong deploy {ours}\n"),
    };
    if app.secrets.is_some() {
        text.push_str(&format!(
            "  hutong env set {} --file {ours}/secrets.env\n",
            app.name
        ));
    }
    text
}

/// A path as a shell takes it.
fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-~".contains(c);
    match text.chars().all(is_plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn args(paths: &[&Path], out: &Path, force: bool) -> Args {
        Args {
            paths: paths.iter().map(|path| path.to_path_buf()).collect(),
            out: out.to_owned(),
            kind: None,
            profiles: Vec::new(),
            force,
        }
    }

    const COMPOSE: &str = "services:\n  web:\n    image: me/web:1\n    ports: ['8081:3000']\n    environment:\n      DB_PASSWORD: ${PW}\n      MODE: live\n";

    #[test]
    fn apps_are_written_and_secrets_are_kept_apart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("docker-compose.yml");
        std::fs::write(&file, COMPOSE).expect("write");
        std::fs::write(dir.path().join(".env"), "PW=hush\n").expect("write");
        std::fs::write(
            dir.path().join("shop.conf"),
            "server { listen 80; server_name shop.example.com; location / { proxy_pass http://127.0.0.1:8081; } }",
        )
        .expect("write");
        let out = dir.path().join("out");
        run(&args(&[dir.path()], &out, false), Output::new(true)).expect("imported");
        let name = std::fs::read_dir(&out)
            .expect("read")
            .flatten()
            .find(|entry| entry.path().is_dir())
            .expect("an app")
            .path();
        let toml = std::fs::read_to_string(name.join("hutong.toml")).expect("read");
        assert!(toml.contains("domains = [\"shop.example.com\"]"), "{toml}");
        assert!(
            toml.contains("MODE = \"live\"") && !toml.contains("hush"),
            "{toml}"
        );
        let secrets = name.join("secrets.env");
        assert_eq!(
            std::fs::read_to_string(&secrets).expect("read"),
            "DB_PASSWORD=hush\n"
        );
        let mode = std::fs::metadata(&secrets)
            .expect("metadata")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            std::fs::read_to_string(name.join(".hutongignore")).expect("read"),
            "secrets.env\n"
        );
        // Not twice, but when it is asked for.
        let again = run(&args(&[&file], &out, false), Output::new(true)).expect_err("it is there");
        assert!(
            again.cause().contains("is there already"),
            "{}",
            again.cause()
        );
        run(&args(&[&file], &out, true), Output::new(true)).expect("overwritten");
    }

    #[test]
    fn a_wrong_file_is_named_with_its_place_and_nothing_is_written() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("docker-compose.yml");
        std::fs::write(&file, "services:\n  web: [\n").expect("write");
        let out = dir.path().join("out");
        let wrong = run(&args(&[&file], &out, false), Output::new(true)).expect_err("wrong");
        assert!(
            wrong.cause().contains("docker-compose.yml:"),
            "{}",
            wrong.cause()
        );
        assert!(!out.exists());
        let nothing = dir.path().join("notes.txt");
        std::fs::write(&nothing, "hello\n").expect("write");
        let wrong = run(&args(&[&nothing], &out, false), Output::new(true)).expect_err("wrong");
        assert!(
            wrong
                .cause()
                .contains("notes.txt:1:1: this looks like none of"),
            "{}",
            wrong.cause()
        );
    }

    #[test]
    fn paths_are_quoted_for_a_shell() {
        assert_eq!(shown(Path::new("out/shop")), "out/shop");
        assert_eq!(shown(Path::new("a b'c")), r"'a b'\''c'");
    }
}
