//! Procfile: one app, with its `web` as what visitors reach, `release` before a release, and the others as workers.

use std::sync::Arc;

use crate::State;
use crate::app::{Draft, Run, Worker, process_name};
use crate::place::{At, Mistake, short};
use crate::programs;

/// Workers of one app.
const MAX_WORKERS: usize = 32;

/// A line of it.
struct Process {
    at: At,
    name: String,
    command: String,
}

fn parse(path: &Arc<str>, text: &str) -> Result<Vec<Process>, Mistake> {
    let mut list: Vec<Process> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let at = At {
            path: Arc::clone(path),
            line: index + 1,
            column: 1 + line.chars().take_while(|c| c.is_whitespace()).count(),
        };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, command) = line.split_once(':').unwrap_or_default();
        let (name, command) = (name.trim(), command.trim());
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || !name.chars().all(is_name) || command.is_empty() {
            let message = format!("`{}` is no `NAME: COMMAND`", short(line));
            return Err(Mistake::new(&at, message));
        }
        if list.iter().any(|known| known.name == name) {
            return Err(Mistake::new(
                &at,
                format!("`{}` is there twice", short(name)),
            ));
        }
        if command.len() > 32 << 10 || command.contains('\0') {
            return Err(Mistake::new(&at, "the command is over 32K or holds a NUL"));
        }
        list.push(Process {
            at,
            name: name.to_owned(),
            command: command.to_owned(),
        });
    }
    Ok(list)
}

/// Reads a file, and adds its app.
pub(crate) fn import(
    path: &Arc<str>,
    folder: &str,
    text: &str,
    state: &mut State,
) -> Result<(), Mistake> {
    let list = parse(path, text)?;
    let start = At::start(path);
    if list.is_empty() {
        return Err(Mistake::new(
            &start,
            "there is no process in it, such as `web: node app.js`",
        ));
    }
    let wanted = if folder.is_empty() { "app" } else { folder };
    let name = state.names.take(wanted);
    state.report.app = Some(name.clone());
    let mut draft = Draft {
        at: start,
        name,
        egress: true,
        ..Draft::default()
    };
    let report = &mut state.report;
    for process in list {
        let (at, name) = (&process.at, process.name.as_str());
        let command = words(&process.command);
        match name {
            "web" => {
                draft.port = programs::port(&command).filter(|port| *port != 8080);
                draft.published.extend(draft.port);
                draft.run = Run::Command(command);
                report.used(at, name, "command");
            }
            "release" => {
                draft.release = Some(command);
                report.used(at, name, "[release] command");
            }
            _ if draft.workers.len() >= MAX_WORKERS => {
                report.left(
                    at,
                    name,
                    format!("an app has at most {MAX_WORKERS} kinds of workers"),
                );
            }
            _ => {
                let mut worker = process_name(name);
                let mut count = 1;
                while draft.workers.contains_key(&worker) {
                    count += 1;
                    worker = process_name(&format!("w{count}{name}"));
                }
                report.used(at, name, format!("[workers.{worker}]"));
                draft.workers.insert(
                    worker,
                    Worker {
                        command,
                        instances: 1,
                        ..Worker::default()
                    },
                );
            }
        }
    }
    if draft.release.is_some() && draft.run == Run::Background && draft.workers.is_empty() {
        return Err(Mistake::new(
            &draft.at,
            "a release command alone is no app: there is no `web` and no worker",
        ));
    }
    report.leave_to_do(
        &draft.at,
        "Procfile",
        "put hutong.toml beside the Procfile and deploy that folder",
    );
    state.report.app = None;
    state.drafts.push(draft);
    Ok(())
}

/// Words, or a shell where one is needed: `$PORT`, `&&`, and so on.
fn words(command: &str) -> Vec<String> {
    let needs_shell = command.contains(['$', '&', '|', ';', '<', '>', '`', '*', '(', '\n']);
    let words = shell_words::split(command).unwrap_or_default();
    let is_assignment = words
        .first()
        .is_none_or(|first| first.is_empty() || first.contains('='));
    match needs_shell || is_assignment {
        true => vec!["sh".to_owned(), "-c".to_owned(), command.to_owned()],
        false => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_shell_only_where_one_is_needed() {
        assert_eq!(
            words("node app.js --x 'a b'"),
            ["node", "app.js", "--x", "a b"]
        );
        assert_eq!(
            words("gunicorn -b :$PORT x"),
            ["sh", "-c", "gunicorn -b :$PORT x"]
        );
        assert_eq!(words("A=1 node x"), ["sh", "-c", "A=1 node x"]);
    }

    #[test]
    fn mistakes_have_their_place() {
        let wrong = |text| {
            let found = parse(&Arc::from("Procfile"), text);
            found.err().expect("it is wrong").to_string()
        };
        assert_eq!(
            wrong("web: a\n  what\n"),
            "Procfile:2:3: `what` is no `NAME: COMMAND`"
        );
        assert_eq!(
            wrong("web: a\nweb: b\n"),
            "Procfile:2:1: `web` is there twice"
        );
        assert_eq!(
            wrong("web:\n"),
            "Procfile:1:1: `web:` is no `NAME: COMMAND`"
        );
        assert_eq!(
            parse(&Arc::from("P"), "# x\n\nweb: a: b\n").map_or(0, |list| list.len()),
            1
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s)(web: |[$]|'|\n|.){0,60}") {
            let _ = parse(&Arc::from("f"), &text);
            let _ = words(&text);
        }
    }
}
