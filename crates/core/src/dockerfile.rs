//! What is looked at in a Dockerfile before an engine gets it: of which images it begins, and what the engine would do by
//! itself, outside of every container and of its walls, or could not do at all.

use crate::spec::{Problem, Problems};

/// A Dockerfile is not longer, in bytes.
pub const MAX_BYTES: usize = 256 << 10;
/// Images that one may begin with.
const MAX_BASES: usize = 32;

/// The images that a Dockerfile begins with, or every reason why it is not built.
pub fn bases(path: &str, text: &str) -> Result<Vec<String>, Problems> {
    let mut list = Vec::new();
    let mut wrong = |line: usize, message: String| {
        list.push(Problem {
            line,
            column: 1,
            message,
        });
    };
    if text.len() > MAX_BYTES {
        wrong(
            1,
            format!("over {}", crate::units::show_size(MAX_BYTES as u64)),
        );
    }
    let directives = text.lines().take_while(|line| line.starts_with('#'));
    for (index, line) in directives.enumerate() {
        let plain: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        let escape = plain.to_ascii_lowercase();
        if escape.strip_prefix("#escape=").is_some_and(|c| c != "\\") {
            wrong(index + 1, "only \\ continues a line here".into());
        }
    }
    let mut found: Vec<String> = Vec::new();
    let mut stages: Vec<String> = Vec::new();
    let mut defaults: Vec<(String, String)> = Vec::new();
    let mut begun = false;
    for (line, text) in instructions(text) {
        let (name, rest) = split(&text);
        match name.as_str() {
            "FROM" => {
                begun = true;
                let words: Vec<&str> = rest
                    .split_whitespace()
                    .filter(|word| !word.starts_with("--"))
                    .collect();
                let image = expand(words.first().unwrap_or(&""), &defaults);
                if let [_, between, stage] = words[..]
                    && between.eq_ignore_ascii_case("as")
                {
                    stages.push(stage.to_ascii_lowercase());
                }
                let own = stages.contains(&image.to_ascii_lowercase());
                if image.is_empty() {
                    wrong(line, "FROM says no image".into());
                } else if image.contains('$') {
                    wrong(line, format!("`{image}`: write the image's name out, or give its ARG a default above the first FROM"));
                } else if image != "scratch" && !own && !found.contains(&image) {
                    found.push(image);
                }
            }
            "ARG" if !begun => {
                if let Some((key, value)) = rest.split_once('=') {
                    let value = value.trim().trim_matches(['"', '\'']);
                    defaults.push((key.trim().to_owned(), value.to_owned()));
                }
            }
            _ if fetches(&text) => wrong(
                line,
                "ADD fetches from a network, or may: the engine itself would, past the walls of this server; COPY what is in the folder, or fetch it by RUN with `network = true` in [build]".into(),
            ),
            "RUN" if rest.trim_start().starts_with("--") => wrong(
                line,
                "options of RUN (--mount, --network, --security) need BuildKit, by which this server does not build; build secrets reach no Dockerfile".into(),
            ),
            _ => {}
        }
    }
    if !begun {
        wrong(1, "has no FROM".into());
    }
    if found.len() > MAX_BASES {
        wrong(1, format!("begins with over {MAX_BASES} images"));
    }
    if list.is_empty() {
        return Ok(found);
    }
    Err(Problems {
        path: path.to_owned(),
        list,
    })
}

/// Whether an instruction has the engine fetch something by itself, or may: what only looks plain is not plain.
pub fn fetches(instruction: &str) -> bool {
    let (name, rest) = split(instruction);
    match name.as_str() {
        "ONBUILD" => fetches(&rest),
        "ADD" => {
            rest.contains("://")
                || rest.contains("git@")
                || rest.contains(['$', '\\', '\''])
                || (rest.contains('"') && !rest.trim_start().starts_with('['))
        }
        _ => false,
    }
}

fn split(instruction: &str) -> (String, String) {
    let text = instruction.trim();
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (name.to_ascii_uppercase(), rest.trim().to_owned())
}

/// Instructions with the number of their first line; continued lines are put together.
fn instructions(text: &str) -> Vec<(usize, String)> {
    let mut all = Vec::new();
    let mut current: Option<(usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let plain = line.trim();
        if plain.starts_with('#') || plain.is_empty() {
            continue;
        }
        let (from, mut whole) = current.take().unwrap_or((index + 1, String::new()));
        match plain.strip_suffix('\\') {
            Some(part) => {
                whole.push_str(part);
                current = Some((from, whole));
            }
            None => {
                whole.push_str(plain);
                all.push((from, whole));
            }
        }
    }
    all.extend(current);
    all
}

/// `$NAME` and `${NAME}` by what ARG says above the first FROM.
fn expand(text: &str, defaults: &[(String, String)]) -> String {
    let mut text = text.to_owned();
    for (key, value) in defaults.iter().rev() {
        text = text.replace(&format!("${{{key}}}"), value);
        if let Some(rest) = text.strip_suffix(&format!("${key}")) {
            text = format!("{rest}{value}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found() {
        let text = "# syntax=x\nARG V=3.12\nARG R=reg.example.com\nFROM --platform=linux/amd64 ${R}/python:$V AS Build\nRUN a \\\n  # between\n  b\nFROM build\nfrom scratch\nCOPY --from=build /a /b\nADD site.tar /site\nADD [\"a b\", \"/c\"]\n";
        assert_eq!(
            bases("Dockerfile", text).expect("good"),
            ["reg.example.com/python:3.12"]
        );
    }

    #[test]
    fn what_the_engine_would_fetch_is_refused_where_it_stands() {
        for odd in [
            "ADD http://169.254.169.254/ /x",
            "ADD $URL /x",
            "add \\\n  https://x /y",
            "ADD \"http:\"//x /y",
            "ADD http:'//'x /y",
            "ADD [\"http:\\u002f/x\", \"/y\"]",
            "ONBUILD ADD http://x /y",
            "ADD git@github.com:a/b /x",
        ] {
            let refused = bases("Dockerfile", &format!("FROM scratch\n{odd}\n"));
            let said = refused.expect_err(odd).to_string();
            assert!(said.starts_with("Dockerfile:2:1: ADD fetches"), "{said}");
        }
        let said = |text: &str| bases("D", text).expect_err("refused").to_string();
        assert_eq!(said("RUN x"), "D:1:1: has no FROM");
        assert!(said("FROM a:$X\n").starts_with("D:1:1: `a:$X`"));
        assert!(said("FROM a\nRUN --mount=type=secret,id=x y").contains("BuildKit"));
        assert!(said("#escape=`\nFROM a\n").starts_with("D:1:1: only"));
    }
}
