//! nginx: its grammar is here, what its server blocks come to is in [`sites`].

mod scope;
mod sites;

use std::sync::Arc;

use crate::files::Files;
use crate::place::{At, Mistake, short};
use crate::reader::Reader;

pub(crate) use sites::import;

/// Blocks in each other, and files that include each other.
const MAX_DEPTH: usize = 32;
/// Directives of all files.
const MAX_DIRECTIVES: usize = 100_000;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Word {
    pub at: At,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Directive {
    pub at: At,
    pub name: String,
    pub words: Vec<Word>,
    pub block: Option<Vec<Directive>>,
}

impl Directive {
    pub fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", |word| word.text.as_str())
    }

    pub fn texts(&self) -> Vec<&str> {
        self.words.iter().map(|word| word.text.as_str()).collect()
    }

    pub fn block(&self) -> &[Directive] {
        self.block.as_deref().unwrap_or_default()
    }
}

/// The directives of a file.
pub(crate) fn parse(path: &Arc<str>, text: &str) -> Result<Vec<Directive>, Mistake> {
    let mut parser = Parser {
        reader: Reader::new(path, text),
        left: MAX_DIRECTIVES,
    };
    parser.directives(None, 0)
}

struct Parser {
    reader: Reader,
    left: usize,
}

impl Parser {
    fn blank(&mut self) {
        loop {
            match self.reader.peek() {
                Some('#') => {
                    self.reader.take_while(|c| c != '\n');
                }
                Some(c) if c.is_whitespace() || c == '\u{feff}' => {
                    self.reader.take();
                }
                _ => return,
            }
        }
    }

    /// Directives up to the end of the block that begins at `open`, or of the file.
    fn directives(&mut self, open: Option<&At>, depth: usize) -> Result<Vec<Directive>, Mistake> {
        let mut list = Vec::new();
        loop {
            self.blank();
            let at = self.reader.at();
            match (self.reader.peek(), open) {
                (None, None) => return Ok(list),
                (None, Some(open)) => return Err(Mistake::new(open, "this `{` is not closed")),
                (Some('}'), Some(_)) => {
                    self.reader.take();
                    return Ok(list);
                }
                (Some('}'), None) => {
                    return Err(Mistake::new(&at, "no `{` is open that this could close"));
                }
                (Some(';' | '{'), _) => {
                    return Err(Mistake::new(&at, "the name of a directive is missing here"));
                }
                (Some(_), _) => list.push(self.directive(at, depth)?),
            }
        }
    }

    fn directive(&mut self, at: At, depth: usize) -> Result<Directive, Mistake> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| Mistake::new(&at, "there are more than 100000 directives"))?;
        let name = self.word()?;
        let mut words = Vec::new();
        loop {
            self.blank();
            let here = self.reader.at();
            match self.reader.peek() {
                Some(';') => {
                    self.reader.take();
                    return Ok(Directive {
                        at,
                        name,
                        words,
                        block: None,
                    });
                }
                Some('{') => {
                    self.reader.take();
                    if depth >= MAX_DEPTH {
                        let message = format!("more than {MAX_DEPTH} blocks are in each other");
                        return Err(Mistake::new(&here, message));
                    }
                    let block = match name.ends_with("_by_lua_block") {
                        true => {
                            self.foreign(&here)?;
                            Vec::new()
                        }
                        false => self.directives(Some(&here), depth + 1)?,
                    };
                    return Ok(Directive {
                        at,
                        name,
                        words,
                        block: Some(block),
                    });
                }
                Some('}') | None => {
                    let message = format!("`;` is missing behind `{}`", short(&name));
                    return Err(Mistake::new(&at, message));
                }
                Some(_) => {
                    let text = self.word()?;
                    words.push(Word { at: here, text });
                }
            }
        }
    }

    /// A word, with or without quotes; `${name}` may stand in it.
    fn word(&mut self) -> Result<String, Mistake> {
        let at = self.reader.at();
        let mut text = String::new();
        if let Some(quote @ ('"' | '\'')) = self.reader.peek() {
            self.reader.take();
            loop {
                match self.reader.take() {
                    None => return Err(Mistake::new(&at, "this quote is not closed")),
                    Some('\\') => match self.reader.take() {
                        Some(next) if next == quote || next == '\\' => text.push(next),
                        Some(next) => text.extend(['\\', next]),
                        None => return Err(Mistake::new(&at, "this quote is not closed")),
                    },
                    Some(next) if next == quote => break,
                    Some(next) => text.push(next),
                }
            }
            return match self.reader.peek() {
                Some(c) if !c.is_whitespace() && !";{})".contains(c) => {
                    let message = format!("`{c}` stands right behind a quote");
                    Err(Mistake::new(&self.reader.at(), message))
                }
                _ => Ok(text),
            };
        }
        while let Some(next) = self.reader.peek() {
            match next {
                ';' | '{' => break,
                c if c.is_whitespace() => break,
                '\\' => {
                    self.reader.take();
                    text.push('\\');
                    text.extend(self.reader.take());
                }
                '$' if self.reader.ahead(1) == Some('{') => {
                    text.push_str("${");
                    self.reader.skip(2);
                    let name = self
                        .reader
                        .take_while(|c| c != '}' && !c.is_whitespace() && c != ';');
                    text.push_str(&name);
                    if self.reader.peek() != Some('}') {
                        return Err(Mistake::new(&at, "a variable `${…` is not closed"));
                    }
                    self.reader.take();
                    text.push('}');
                }
                c => {
                    text.push(c);
                    self.reader.take();
                }
            }
        }
        Ok(text)
    }

    /// Goes past a block in another language, by its braces.
    fn foreign(&mut self, open: &At) -> Result<(), Mistake> {
        let mut depth = 1_usize;
        while let Some(next) = self.reader.take() {
            match next {
                '{' => depth += 1,
                '}' if depth == 1 => return Ok(()),
                '}' => depth -= 1,
                _ => {}
            }
        }
        Err(Mistake::new(open, "this `{` is not closed"))
    }
}

/// Files of nginx's own that say what Hutong sends by itself.
const PARAMETERS: [&str; 7] = [
    "uwsgi_params",
    "fastcgi_params",
    "scgi_params",
    "proxy_params",
    "fastcgi.conf",
    "fastcgi-php.conf",
    "mime.types",
];

/// The files that a file includes.
pub(crate) fn named(path: &Arc<str>, text: &str, files: &Files<'_>) -> Vec<String> {
    let mut list = parse(path, text).unwrap_or_default();
    let mut names = Vec::new();
    while let Some(directive) = list.pop() {
        if directive.name == "include" {
            let found = files.matching(directive.word(0));
            let others = found.iter().filter(|(found, _)| found != path);
            names.extend(others.map(|(found, _)| found.to_string()));
        }
        list.extend(directive.block.unwrap_or_default());
    }
    names
}

/// Puts the files that `include` names in its place, where they were handed over.
pub(crate) fn included(
    list: Vec<Directive>,
    files: &mut Files<'_>,
    chain: &mut Vec<String>,
    report: &mut crate::report::Report,
) -> Result<Vec<Directive>, Mistake> {
    let mut kept = Vec::new();
    for mut directive in list {
        if let Some(block) = directive.block.take() {
            directive.block = Some(included(block, files, chain, report)?);
        }
        if directive.name != "include" {
            kept.push(directive);
            continue;
        }
        let (at, pattern) = (&directive.at, directive.word(0));
        let found = files.matching(pattern);
        if found.is_empty() {
            match PARAMETERS.contains(&crate::files::file_name(pattern)) {
                true => report.used(at, "include", "Hutong sends what is in it by itself"),
                false => report.left(
                    at,
                    "include",
                    format!("{} was not handed over", short(pattern)),
                ),
            }
            continue;
        }
        for (path, text) in found {
            if chain.iter().any(|known| known.as_str() == &*path) {
                // `*.conf` may fit the file itself where only its name was handed over.
                if pattern.contains('*') {
                    continue;
                }
                let message = format!("{path} includes itself: {} → {path}", chain.join(" → "));
                return Err(Mistake::new(at, message));
            }
            if chain.len() >= MAX_DEPTH {
                let message = format!("more than {MAX_DEPTH} files include each other");
                return Err(Mistake::new(at, message));
            }
            report.used(at, "include", format!("the directives of {path}"));
            chain.push(path.to_string());
            let inner = parse(&path, text)?;
            kept.extend(included(inner, files, chain, report)?);
            chain.pop();
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<Directive> {
        parse(&Arc::from("n.conf"), text).expect("good")
    }

    fn wrong(text: &str) -> String {
        let found = parse(&Arc::from("n.conf"), text);
        found.expect_err("it is wrong").to_string()
    }

    #[test]
    fn directives_blocks_and_comments() {
        let list = read(
            "# c\nserver { # } ; \"\n  listen 80;\n  location ~* \\.(js|css)$ { root /x; }\n}\nuser a;",
        );
        assert_eq!(list.len(), 2);
        let server = &list[0];
        assert_eq!(server.block()[0].texts(), ["80"]);
        assert_eq!(server.block()[1].texts(), ["~*", "\\.(js|css)$"]);
        assert_eq!(server.block()[1].block()[0].word(0), "/x");
        assert_eq!(server.block()[1].at.to_string(), "n.conf:4:3");
        assert_eq!(list[1].name, "user");
        assert_eq!(list[1].word(7), "");
    }

    #[test]
    fn quotes_hold_what_else_would_mean_something() {
        let list = read("a \"x; { } # \\\" y\" 'it\\'s' \"\\d\"; b ${var}x$y;");
        assert_eq!(list[0].texts(), ["x; { } # \" y", "it's", "\\d"]);
        assert_eq!(list[1].texts(), ["${var}x$y"]);
        // A brace in a word without quotes is a letter; at the beginning of one it ends the block.
        assert_eq!(read("a x}y;")[0].texts(), ["x}y"]);
        assert_eq!(read("a x#y;")[0].texts(), ["x#y"]);
    }

    #[test]
    fn a_block_in_lua_is_passed_over() {
        let list = read("access_by_lua_block { f({1, {2}}) } listen 80;");
        assert_eq!(list.len(), 2);
        assert_eq!(list[1].name, "listen");
    }

    #[test]
    fn mistakes_have_their_place() {
        for (text, said) in [
            (
                "server {\n  listen 80\n}",
                "n.conf:2:3: `;` is missing behind `listen`",
            ),
            (
                "server {\n  listen 80;\n",
                "n.conf:1:8: this `{` is not closed",
            ),
            (
                "listen 80;\n}",
                "n.conf:2:1: no `{` is open that this could close",
            ),
            ("a \"x;\n", "n.conf:1:3: this quote is not closed"),
            ("a \"x\"y;", "n.conf:1:6: `y` stands right behind a quote"),
            (" ;", "n.conf:1:2: the name of a directive is missing here"),
            ("a ${x;", "n.conf:1:3: a variable `${…` is not closed"),
            ("listen 80", "n.conf:1:1: `;` is missing behind `listen`"),
            ("x_by_lua_block { a", "n.conf:1:16: this `{` is not closed"),
        ] {
            assert_eq!(wrong(text), said, "{text}");
        }
        assert!(wrong(&"a {".repeat(100)).contains("in each other"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,200}") {
            let _ = parse(&Arc::from("f"), &text);
        }

        #[test]
        fn no_odd_text_makes_it_panic(text in "(server|location|include|x_by_lua_block|[{]|[}]|;| |\n|\"|'|\\\\|[$][{]|#|~|/|a){0,60}") {
            let _ = parse(&Arc::from("f"), &text);
        }
    }
}
