//! What is looked at in a Dockerfile before an engine gets it: of which images it begins, and what the engine would do by
//! itself, outside of every container and of its walls, or could not do at all. Lines are put together as the engine's own
//! parser does it, and where engines differ, or a reader could be misled, the file is refused.

use std::collections::HashMap;

use crate::spec::{Problem, Problems};

/// A Dockerfile is not longer, in bytes.
pub const MAX_BYTES: usize = 256 << 10;
/// Images that one may begin with, or copy from.
const MAX_BASES: usize = 32;

/// Labels of images that are built here, and of each of their stages: whose app, and which builds'.
pub const LABEL_APP: &str = "hutong.image.app";
pub const LABEL_STAGES: &str = "hutong.image.stages";

/// Every instruction that there is.
const KNOWN: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

const FETCHES: &str = "ADD fetches from a network, or may: the engine itself would, past the walls of this server; COPY what is in the folder, or fetch it by RUN with `network = true` in [build]";
const HEREDOC: &str =
    "`<<` needs BuildKit, by which this server does not build: write a file and COPY it";

/// What a Dockerfile comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// The images that it begins with or copies from, each by its whole name.
    pub bases: Vec<String>,
    /// It has an `ADD` of local files: the engine itself unpacks archives among them.
    pub adds: bool,
}

/// What a Dockerfile comes to, or every reason why it is not built.
pub fn check(path: &str, text: &str) -> Result<Checked, Problems> {
    let mut list = Vec::new();
    let mut wrong = |line: usize, message: String| {
        list.push(Problem {
            line,
            column: 1,
            message,
        });
    };
    let mut checked = Checked::default();
    if text.len() > MAX_BYTES {
        wrong(
            1,
            format!("over {}", crate::units::show_size(MAX_BYTES as u64)),
        );
    } else {
        match instructions(text) {
            Err((line, message)) => match heredoc_before(text, line) {
                // Its text is read as instructions, and is none.
                Some(begin) => wrong(begin, HEREDOC.into()),
                None => wrong(line, message),
            },
            Ok(all) => look(&all, &mut checked, &mut wrong),
        }
    }
    if list.is_empty() {
        return Ok(checked);
    }
    Err(Problems {
        path: path.to_owned(),
        list,
    })
}

/// Text without its first word, and that.
fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim();
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim())
}

/// Whether `<<WORD` or `<<-WORD` begins a heredoc, in what is behind an instruction's name. A shift (`1 << 2`), a `<<<` and
/// a list in JSON are none; a `[` that is no such list is a shell's.
fn has_heredoc(rest: &str) -> bool {
    let mut list = rest.trim();
    while list.starts_with("--") {
        (_, list) = split_word(list);
    }
    if serde_json::from_str::<Vec<String>>(list).is_ok() {
        return false;
    }
    rest.match_indices("<<").any(|(at, _)| {
        let word = &rest[at + 2..];
        let word = word.strip_prefix('-').unwrap_or(word);
        let begins = |c: char| c.is_alphabetic() || matches!(c, '_' | '\'' | '"' | '\\');
        !rest[..at].ends_with('<') && word.starts_with(begins)
    })
}

/// The line before `line` that begins a heredoc, if one does.
fn heredoc_before(text: &str, line: usize) -> Option<usize> {
    let begins = |text: &str| {
        let (mut name, mut rest) = split_word(text);
        if name.eq_ignore_ascii_case("ONBUILD") {
            (name, rest) = split_word(rest);
        }
        let known = ["RUN", "COPY", "ADD"];
        known.iter().any(|one| name.eq_ignore_ascii_case(one)) && has_heredoc(rest)
    };
    let before = text.lines().take(line.saturating_sub(1));
    before
        .map(begins)
        .position(|begins| begins)
        .map(|at| at + 1)
}

fn look(all: &[Instruction], checked: &mut Checked, wrong: &mut impl FnMut(usize, String)) {
    let found = &mut checked.bases;
    // Stages that are done: only these can be begun with or copied from.
    let mut done: Vec<String> = Vec::new();
    let mut current: Option<String> = None;
    let mut defaults: Defaults = HashMap::new();
    for one in all {
        let line = one.line;
        let (name, rest) = (one.name.as_str(), one.rest.as_str());
        match name {
            "FROM" => {
                let words: Vec<&str> = rest.split_whitespace().collect();
                let (image, stage) = match words[..] {
                    [flag, ..] if flag.starts_with("--") => {
                        wrong(
                            line,
                            format!("`{flag}` needs BuildKit, by which this server does not build"),
                        );
                        continue;
                    }
                    [image] => (image, ""),
                    [image, between, stage] if between.eq_ignore_ascii_case("as") => (image, stage),
                    [] => {
                        wrong(line, "FROM says no image".into());
                        continue;
                    }
                    _ => {
                        wrong(line, "not `FROM IMAGE` or `FROM IMAGE AS STAGE`".into());
                        continue;
                    }
                };
                // By now the stage before is one that can be begun with; this one is not yet.
                done.extend(current.take());
                let stage = stage.to_ascii_lowercase();
                if words.len() == 3 && !is_stage(&stage) {
                    wrong(line, format!("`{stage}` cannot name a stage"));
                }
                current = Some(stage);
                let Some(image) = expand(image, &defaults) else {
                    wrong(
                        line,
                        format!(
                            "`{image}`: write the image's name out, or give its ARG a default above the first FROM"
                        ),
                    );
                    continue;
                };
                let own = done.contains(&image.to_ascii_lowercase());
                if image == "scratch" || own {
                    continue;
                }
                match check_image(&image) {
                    Err(why) => wrong(line, why),
                    Ok(()) if !found.contains(&image) => found.push(image),
                    Ok(()) => {}
                }
            }
            "ARG" if current.is_none() => {
                if let Err(why) = declare(rest, &mut defaults) {
                    wrong(line, why);
                }
            }
            _ => {
                checked.adds |= name == "ADD";
                match effect(one) {
                    Err(why) => wrong(line, why),
                    Ok(Some(from)) => {
                        let index = from.parse::<usize>().is_ok_and(|at| at < done.len());
                        if index || done.contains(&from.to_ascii_lowercase()) {
                            continue;
                        }
                        match check_image(&from) {
                            Err(why) => wrong(line, why),
                            Ok(()) if !found.contains(&from) => found.push(from),
                            Ok(()) => {}
                        }
                    }
                    Ok(None) => {}
                }
            }
        }
    }
    if current.is_none() && !all.iter().any(|one| one.name == "FROM") {
        wrong(1, "has no FROM".into());
    }
    if found.len() > MAX_BASES {
        wrong(1, format!("begins with over {MAX_BASES} images"));
    }
}

/// What an instruction copies from, if that is no folder of the context; or why it is not built.
fn effect(one: &Instruction) -> Result<Option<String>, String> {
    let rest = one.rest.as_str();
    let heredoc = matches!(one.name.as_str(), "RUN" | "COPY" | "ADD") && has_heredoc(rest);
    if heredoc {
        return Err(HEREDOC.into());
    }
    match one.name.as_str() {
        "ONBUILD" => {
            let inner = Instruction::read(one.line, one.last, rest)?;
            match inner.name.as_str() {
                "ONBUILD" | "FROM" | "MAINTAINER" => {
                    Err(format!("ONBUILD {} is not allowed", inner.name))
                }
                "ADD" => Err(
                    if adds_from_afar(&inner.rest) {
                        FETCHES.into()
                    } else {
                        "ONBUILD ADD has the engine unpack archives by itself: use COPY".into()
                    },
                ),
                _ => match effect(&inner)? {
                    Some(_) => Err("ONBUILD COPY --from: copy where it is needed".into()),
                    None => Ok(None),
                },
            }
        }
        "ADD" if adds_from_afar(rest) => Err(FETCHES.into()),
        "RUN" if rest.starts_with("--") => Err(
            "options of RUN (--mount, --network, --security) need BuildKit, by which this server does not build; build secrets reach no Dockerfile".into(),
        ),
        "COPY" => {
            let mut from = None;
            for flag in rest.split_whitespace().take_while(|word| word.starts_with("--")) {
                if flag.contains(['\\', '\'', '"', '$']) {
                    return Err(format!("`{flag}`: write options of COPY out, without quotes"));
                }
                if let Some(image) = flag.strip_prefix("--from=") {
                    from = Some(image.to_owned());
                } else if flag == "--from" {
                    return Err("`--from` says nothing to copy from".into());
                }
            }
            Ok(from)
        }
        _ => Ok(None),
    }
}

fn adds_from_afar(rest: &str) -> bool {
    rest.contains("://")
        || rest.contains("git@")
        || rest.contains(['$', '\\', '\''])
        || (rest.contains('"') && !rest.starts_with('['))
}

/// A trigger of an image, which the engine does when something is built of it: one instruction, and nothing that the
/// engine does by itself.
pub fn check_trigger(trigger: &str) -> Result<(), String> {
    let all = instructions(trigger).map_err(|(_, why)| why)?;
    let [one] = all.as_slice() else {
        return Err("it is not one instruction".into());
    };
    // As it would be behind ONBUILD.
    let behind = Instruction {
        name: "ONBUILD".into(),
        rest: format!("{} {}", one.name, one.rest),
        ..*one
    };
    effect(&behind).map(drop)
}

/// The same Dockerfile with labels behind every FROM, so that what its stages leave can be told from other people's.
/// `labels` are names and values, both plain. For a Dockerfile that was checked.
pub fn labelled(text: &str, labels: &[(&str, &str)]) -> String {
    let all = instructions(text).unwrap_or_default();
    let behind: Vec<usize> = all
        .iter()
        .filter(|one| one.name == "FROM")
        .map(|one| one.last)
        .collect();
    let added: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}=\"{value}\""))
        .collect();
    let mut whole = String::with_capacity(text.len() + 256);
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            whole.push('\n');
        }
        whole.push_str(line);
        if behind.contains(&(index + 1)) {
            whole.push_str("\nLABEL ");
            whole.push_str(&added.join(" "));
        }
    }
    whole
}

struct Instruction {
    /// Its first line and its last, from 1.
    line: usize,
    last: usize,
    name: String,
    rest: String,
}

impl Instruction {
    fn read(line: usize, last: usize, text: &str) -> Result<Self, String> {
        let (name, rest) = split_word(text);
        let name = name.to_ascii_uppercase();
        if !KNOWN.contains(&name.as_str()) {
            return Err(format!(
                "`{}` is no instruction of a Dockerfile",
                name.chars().take(40).collect::<String>()
            ));
        }
        Ok(Instruction {
            line,
            last,
            name,
            rest: rest.to_owned(),
        })
    }
}

/// What stands before the first instruction may change how lines go on.
fn is_escape(comment: &str) -> bool {
    let plain: String = comment.chars().filter(|c| !c.is_whitespace()).collect();
    plain.to_ascii_lowercase().starts_with("#escape=")
}

/// Every instruction, put together of its lines as the engine does it: comments and empty lines within are left out, and
/// a line that goes on keeps what it begins with. The line and the reason, if a reader could be misled.
fn instructions(text: &str) -> Result<Vec<Instruction>, (usize, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut all: Vec<Instruction> = Vec::new();
    let mut current: Option<(usize, String)> = None;
    for (index, line) in text.split('\n').enumerate() {
        let number = index + 1;
        let line = line.strip_suffix('\r').unwrap_or(line);
        let odd = |c: char| {
            (c.is_control() && c != '\t')
                || (c.is_whitespace() && !c.is_ascii())
                || ('\u{200b}'..='\u{200f}').contains(&c)
                || ('\u{2028}'..='\u{202e}').contains(&c)
                || c == '\u{feff}'
        };
        if let Some(c) = line.chars().find(|c| odd(*c)) {
            let code = u32::from(c);
            return Err((
                number,
                format!("holds the character U+{code:04X}, which is not seen and misleads"),
            ));
        }
        let plain = line.trim_start();
        if plain.starts_with('#') {
            if all.is_empty() && current.is_none() && is_escape(plain) {
                return Err((
                    number,
                    "only \\ continues a line here: leave the directive `escape` out".into(),
                ));
            }
            continue;
        }
        if plain.is_empty() {
            continue;
        }
        let (from, mut whole) = match current.take() {
            Some((from, whole)) => (from, whole + line),
            None => (number, plain.to_owned()),
        };
        let ended = line.trim_end_matches([' ', '\t']);
        match ended.strip_suffix('\\') {
            // Engines differ in whether these go on.
            Some(before) if before.ends_with('\\') => {
                return Err((
                    number,
                    "ends with more than one \\, which engines read in different ways: put something behind, or leave one"
                        .into(),
                ));
            }
            Some(_) => {
                whole.truncate(whole.trim_end_matches([' ', '\t']).len() - 1);
                current = Some((from, whole));
            }
            None => {
                let one = Instruction::read(from, number, &whole);
                all.push(one.map_err(|why| (from, why))?);
            }
        }
    }
    match current {
        Some((from, _)) => Err((from, "goes on behind the file's end".into())),
        None => Ok(all),
    }
}

/// What ARG says above the first FROM; none where that is not known for certain.
type Defaults = HashMap<String, Option<String>>;

fn declare(rest: &str, defaults: &mut Defaults) -> Result<(), String> {
    for word in rest.split_whitespace() {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (word, None),
        };
        let quoted = value.and_then(|value| {
            let of = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
            of('"').or_else(|| of('\''))
        });
        let plain = quoted.or(value).unwrap_or_default();
        if !is_key(key) || plain.contains(['"', '\'', '\\']) {
            return Err(format!(
                "`{word}`: above the first FROM, ARG is NAME=VALUE, without spaces or \\ in them"
            ));
        }
        let literal = value.is_some_and(|value| value.starts_with('\''));
        let known = match value {
            Some(_) if literal && plain.contains('$') => None,
            Some(_) => expand(plain, defaults),
            None => None,
        };
        // Of two, engines differ in which one counts.
        let twice = defaults.contains_key(key);
        defaults.insert(key.to_owned(), known.filter(|_| !twice));
    }
    Ok(())
}

fn is_key(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_stage(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
        })
}

/// `$NAME` and `${NAME}` by what ARG says above the first FROM; none if something is not known.
fn expand(text: &str, defaults: &Defaults) -> Option<String> {
    let mut whole = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        whole.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let key = match rest.strip_prefix('{') {
            Some(braced) => {
                let (key, behind) = braced.split_once('}')?;
                rest = behind;
                key
            }
            None => {
                let end = rest
                    .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                    .unwrap_or(rest.len());
                let (key, behind) = rest.split_at(end);
                rest = behind;
                key
            }
        };
        if !is_key(key) {
            return None;
        }
        whole.push_str(defaults.get(key)?.as_deref()?);
    }
    whole.push_str(rest);
    Some(whole)
}

/// Whether an image is said by its whole name: an engine takes the beginning of an id for one, too, of whomever it is.
pub fn check_image(image: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/@".contains(&byte);
    if image.is_empty() || image.len() > 512 || !image.bytes().all(plain) {
        return Err(format!("`{image}` is no image's name"));
    }
    let by_id = image.bytes().all(|byte| byte.is_ascii_hexdigit())
        || ["sha256:", "sha384:", "sha512:"]
            .iter()
            .any(|kind| image.starts_with(kind));
    if by_id {
        return Err(format!(
            "`{image}` may be an image's id, and says not whose: write its name with a tag, such as `{image}:latest`"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(path: &str, text: &str) -> Result<Vec<String>, Problems> {
        check(path, text).map(|checked| checked.bases)
    }

    #[test]
    fn images_are_found() {
        let text = "# syntax=x\nARG V=3.12 R=\"reg.example.com\"\nARG P=${R}/python\nFROM $P:$V AS Build\nRUN a \\\n  # between\n\n  b\nFROM build\nfrom scratch\nCOPY --from=build /a /b\nCOPY --from=0 --chown=1 /a /b\nCOPY --from=alpine:3 /a /b\nADD site.tar /site\nADD [\"a b\", \"/c\"]\n";
        let checked = check("Dockerfile", text).expect("good");
        assert_eq!(checked.bases, ["reg.example.com/python:3.12", "alpine:3"]);
        assert!(checked.adds);
        assert!(
            !check("D", "\u{feff}FROM alpine\r\n\r\nRUN x\r\n")
                .expect("good")
                .adds
        );
    }

    #[test]
    fn what_the_engine_would_fetch_is_refused_where_it_stands() {
        for odd in [
            "ADD http://169.254.169.254/ /x",
            "ADD $URL /x",
            "add \\\n  https://x /y",
            "ADD\\\n http://x /y",
            "ADD\\ \t\n\thttp://x /y",
            "AD\\\n# a comment\n\n  # another\nD http://x /y",
            "  aDd --chown=1 http://x /y",
            "ADD \"http:\"//x /y",
            "ADD http:'//'x /y",
            "ADD [\"http:\\u002f/x\", \"/y\"]",
            "ONBUILD ADD http://x /y",
            "ONBUILD\\\n ADD http://x /y",
            "ADD git@github.com:a/b /x",
        ] {
            let refused = bases("Dockerfile", &format!("FROM scratch\n{odd}\n"));
            let said = refused.expect_err(odd).to_string();
            assert!(
                said.starts_with("Dockerfile:2:1: ADD fetches"),
                "{odd}: {said}"
            );
        }
        let said = |text: &str| bases("D", text).expect_err(text).to_string();
        assert_eq!(said("RUN x"), "D:1:1: has no FROM");
        assert!(said("FROM a:$X\n").starts_with("D:1:1: `a:$X`"));
        assert!(said("FROM alpine\nRUN --mount=type=secret,id=x y").contains("BuildKit"));
    }

    #[test]
    fn what_misleads_a_reader_is_refused() {
        let said = |text: &str| bases("D", text).expect_err(text).to_string();
        for text in [
            "#escape=`\nFROM alpine\n",
            "  # Escape = `\nFROM alpine\n",
            "\u{feff}# escape=`\nFROM alpine\n",
            "# syntax=x\n#escape=\\\nFROM alpine\n",
        ] {
            assert!(said(text).contains("only \\ continues"), "{text}");
        }
        // A line with two is none that goes on, for some engines.
        let two = said("FROM scratch\nRUN echo a \\\\\nADD http://x /y\n");
        assert!(two.starts_with("D:2:1: ends with more than one"), "{two}");
        for odd in ["\u{c}", "\u{a0}", "\u{b}", "\u{85}", "\u{2003}", "\0"] {
            let text = format!("FROM scratch\nRUN a \\{odd}\nADD http://x /y\n");
            assert!(said(&text).starts_with("D:2:1: "), "{odd:?}");
            let text = format!("FROM scratch\nADD{odd}http://x /y\n");
            assert!(said(&text).starts_with("D:2:1: "), "{odd:?}");
        }
        assert!(said("FROM scratch\nADD\rhttp://x /y\n").starts_with("D:2:1: "));
        assert!(said("FROM scratch\nRUN cat <<X\nADD a b\nX\n").contains("BuildKit"));
        assert!(said("FROM scratch\nCOPY <<X /a\nX\n").contains("BuildKit"));
        assert!(said("FROM scratch\nONBUILD RUN <<X\nX\n").contains("BuildKit"));
        // The shell's, not a list.
        for test in [
            "RUN [ -f x ] && cat <<EOF",
            "RUN test [ <<EOF",
            "ONBUILD RUN [ -f x ] && cat <<EOF",
            "COPY --chown=1 [ <<EOF /x",
        ] {
            let found = said(&format!("FROM scratch\n{test}\nhello\nEOF\n"));
            assert!(
                found.starts_with("D:2:1: ") && found.contains("BuildKit"),
                "{found}"
            );
        }
        for fine in [
            "[\"python3\", \"-c\", \"print(1 <<x)\"]",
            "--chown=1 --chmod=755 [\"a <<x\", \"/b\"]",
            "echo $((1 << 2))",
            "cat <<<x",
            "[ $((1 << 2)) = 4 ]",
        ] {
            assert!(!has_heredoc(fine), "{fine}");
        }
        // Go makes an i of the first, a k of the second.
        for name in ["M\u{130}X", "\u{130}", "wor\u{212a}dir", "INCLUDE"] {
            assert!(said(&format!("FROM scratch\n{name} x\n")).contains("no instruction"));
        }
        assert!(said("FROM --platform=linux/amd64 alpine\n").contains("--platform"));
        assert!(said("FROM alpine a\u{17f} b\n").contains("not `FROM IMAGE`"));
        assert!(said("FROM alpine AS $x\n").contains("cannot name a stage"));
        assert!(said("FROM scratch\nRUN a \\\n").contains("file's end"));
    }

    #[test]
    fn images_are_said_by_their_names() {
        let said = |text: &str| bases("D", text).expect_err(text).to_string();
        for id in ["3f", "3F", "beef", "sha256:3f", "0"] {
            assert!(
                said(&format!("FROM {id}\n")).contains("may be an image's id"),
                "{id}"
            );
            let copied = format!("FROM scratch\nCOPY --from={id} /a /b\n");
            assert!(said(&copied).contains("may be an image's id"), "{id}");
        }
        for odd in ["--from=\"3f\"", "--fr\\om=3f", "--from=$X"] {
            let text = format!("FROM scratch\nCOPY {odd} /a /b\n");
            assert!(said(&text).contains("options of COPY"), "{odd}");
        }
        assert!(said("FROM scratch\nONBUILD COPY --from=alpine /a /b\n").contains("ONBUILD"));
        assert!(said("FROM \"alpine\"\n").contains("no image's name"));
        // A stage is none before it is done.
        assert_eq!(bases("D", "FROM evil AS evil\n").expect("good"), ["evil"]);
        let text = "FROM scratch AS one\nCOPY --from=one /a /b\nFROM ONE\n";
        assert_eq!(bases("D", text).expect("good"), ["one"]);
        assert_eq!(
            bases("D", "FROM alpine\nFROM later\nFROM scratch AS later\n").expect("good"),
            ["alpine", "later"]
        );
    }

    #[test]
    fn defaults_above_the_first_stage() {
        let of = |args: &str| bases("D", &format!("{args}\nFROM $B\n"));
        assert_eq!(of("ARG A=x B=$A/y:1 C").expect("good"), ["x/y:1"]);
        assert_eq!(of("ARG A='x'\nARG B=\"${A}-y\"").expect("good"), ["x-y"]);
        for odd in [
            "ARG B",
            "ARG B=${A:-x}",
            "ARG B=x\nARG B=y",
            "ARG A=1 B='$A'",
            "ARG B=x\nARG \"B\"=y",
            "ARG A=\"x B=y z\"",
            "ARG B=x\\y",
        ] {
            assert!(of(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn triggers_are_one_instruction_that_fetches_nothing() {
        assert_eq!(check_trigger("COPY . /app"), Ok(()));
        assert_eq!(check_trigger("RUN a \\\n  # x\n b"), Ok(()));
        for odd in [
            "",
            "ADD http://x /y",
            "ADD . /x",
            "ADD\\\n http://x /y",
            "# x\nADD http://x /y",
            "RUN a\nADD http://x /y",
            "# escape=`\nRUN a",
            "COPY --from=3f /a /b",
            "ONBUILD ADD http://x /y",
            "FROM alpine",
            "RUN a \\\\\nADD http://x /y",
            "RUN --mount=type=secret,id=x y",
        ] {
            assert!(check_trigger(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn labels_are_behind_every_stage() {
        let text = "\u{feff}ARG V=1\r\nFROM a:$V \\\r\n  AS b\r\nRUN x\nFROM b";
        let whole = labelled(text, &[("k", "v"), ("l", "w")]);
        assert_eq!(
            whole,
            "\u{feff}ARG V=1\r\nFROM a:$V \\\r\n  AS b\r\nLABEL k=\"v\" l=\"w\"\nRUN x\nFROM b\nLABEL k=\"v\" l=\"w\""
        );
    }
}
