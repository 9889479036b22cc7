//! Traefik's rules, such as ``Host(`a.test`) && PathPrefix(`/b`)``. Text in, hosts with paths out, or why it cannot be served
//! so. `&&` binds closer than `||`; every way to meet a rule becomes a route.

use std::collections::BTreeSet;

use crate::name::{parse_host, parse_prefix};
use crate::route::covers;
use crate::spec::Domain;

use super::short;

/// The longest rule, in bytes.
const MAX_RULE: usize = 4096;
/// Ways to meet one rule.
const MAX_WAYS: usize = 64;
/// Parentheses in each other.
const MAX_DEPTH: usize = 16;

/// The routes of a rule, in order.
pub fn parse(text: &str) -> Result<Vec<Domain>, String> {
    if text.len() > MAX_RULE {
        return Err(format!("it is longer than {MAX_RULE} bytes"));
    }
    let tokens = tokens(text)?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        depth: 0,
    };
    let ways = parser.any()?;
    match parser.next() {
        None => domains(ways),
        Some(token) => Err(format!("{} is not expected there", token.word())),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Name(String),
    Text(String),
    Open,
    Close,
    Comma,
    And,
    Or,
    Not,
}

impl Token {
    fn word(&self) -> String {
        match self {
            Token::Name(name) => format!("`{}`", short(name)),
            Token::Text(text) => format!("the text `{}`", short(text)),
            Token::Open => "`(`".into(),
            Token::Close => "`)`".into(),
            Token::Comma => "`,`".into(),
            Token::And => "`&&`".into(),
            Token::Or => "`||`".into(),
            Token::Not => "`!`".into(),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '!' => (Token::Not, 1),
            '&' if rest.starts_with("&&") => (Token::And, 2),
            '|' if rest.starts_with("||") => (Token::Or, 2),
            '`' => {
                let end = rest[1..].find('`').ok_or("a backtick is not closed")?;
                (Token::Text(rest[1..end + 1].to_owned()), end + 2)
            }
            '"' => quoted(rest)?,
            '\'' => return Err("texts stand in backticks, not in single quotes".into()),
            ':' if matches!(tokens.last(), Some(Token::Name(_))) => {
                return Err(
                    "this is how rules were written for Traefik 1; write Host(`shop.example.com`)"
                        .into(),
                );
            }
            first if first.is_ascii_alphabetic() => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric());
                let end = end.unwrap_or(rest.len());
                (Token::Name(rest[..end].to_owned()), end)
            }
            other => return Err(format!("`{}` means nothing there", other.escape_debug())),
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

/// A text in quotation marks, at the beginning; with how many bytes it takes.
fn quoted(rest: &str) -> Result<(Token, usize), String> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, next)) = chars.next() {
        match next {
            '"' => return Ok((Token::Text(text), at + 1)),
            '\\' => match chars.next() {
                Some((_, escaped @ ('"' | '\\'))) => text.push(escaped),
                _ => return Err("a backslash stands before \" and \\ only".into()),
            },
            plain => text.push(plain),
        }
    }
    Err("a quotation mark is not closed".into())
}

/// One way to meet a rule; what it does not name may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Way {
    host: Option<String>,
    path: Option<Path>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Path {
    /// This path alone.
    Exact(String),
    /// What lies below it, too.
    Below(String),
}

impl Way {
    /// Both at once, if that can be.
    fn and(&self, other: &Way) -> Option<Way> {
        let host = match (&self.host, &other.host) {
            (Some(one), Some(another)) if one != another => return None,
            (Some(one), _) => Some(one.clone()),
            (None, another) => another.clone(),
        };
        let path = match (&self.path, &other.path) {
            (Some(one), Some(another)) => Some(one.and(another)?),
            (Some(one), None) => Some(one.clone()),
            (None, another) => another.clone(),
        };
        Some(Way { host, path })
    }
}

impl Path {
    fn and(&self, other: &Path) -> Option<Path> {
        match (self, other) {
            (Path::Exact(one), Path::Exact(another)) => (one == another).then(|| self.clone()),
            (Path::Exact(path), Path::Below(wide)) => covers(wide, path).then(|| self.clone()),
            (Path::Below(wide), Path::Exact(path)) => covers(wide, path).then(|| other.clone()),
            (Path::Below(wide), Path::Below(path)) if covers(wide, path) => Some(other.clone()),
            (Path::Below(path), Path::Below(wide)) => covers(wide, path).then(|| self.clone()),
        }
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a Token> {
        let token = self.tokens.get(self.at)?;
        self.at += 1;
        Some(token)
    }

    /// Goes past a token if it is the next one.
    fn take(&mut self, wanted: &Token) -> bool {
        let found = self.tokens.get(self.at) == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, wanted: &Token) -> Result<(), String> {
        match self.next() {
            Some(token) if token == wanted => Ok(()),
            Some(token) => Err(format!(
                "{} is expected before {}",
                wanted.word(),
                token.word()
            )),
            None => Err(format!("{} is missing at the end", wanted.word())),
        }
    }

    /// `… || …`
    fn any(&mut self) -> Result<Vec<Way>, String> {
        let mut ways = self.all()?;
        while self.take(&Token::Or) {
            ways.extend(self.all()?);
            bounded(ways.len())?;
        }
        Ok(ways)
    }

    /// `… && …`
    fn all(&mut self) -> Result<Vec<Way>, String> {
        let mut ways = self.one()?;
        while self.take(&Token::And) {
            let more = self.one()?;
            bounded(ways.len() * more.len())?;
            let pairs = ways
                .iter()
                .flat_map(|one| more.iter().filter_map(move |another| one.and(another)));
            ways = pairs.collect();
        }
        Ok(ways)
    }

    fn one(&mut self) -> Result<Vec<Way>, String> {
        match self.next() {
            Some(Token::Open) => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(format!(
                        "more than {MAX_DEPTH} parentheses are in each other"
                    ));
                }
                let ways = self.any()?;
                self.expect(&Token::Close)?;
                self.depth -= 1;
                Ok(ways)
            }
            Some(Token::Not) => {
                Err("`!` is not served: routes say what is meant, not what is not".into())
            }
            Some(Token::Name(name)) => self.matcher(name),
            Some(token) => Err(format!("{} is not expected there", token.word())),
            None => Err("something is missing at the end".into()),
        }
    }

    /// The texts in a matcher's parentheses.
    fn texts(&mut self, name: &str) -> Result<Vec<&'a str>, String> {
        self.expect(&Token::Open)?;
        let mut texts = Vec::new();
        loop {
            match self.next() {
                Some(Token::Text(text)) => texts.push(text.as_str()),
                Some(token) => {
                    return Err(format!(
                        "{name}(…) takes texts in backticks, not {}",
                        token.word()
                    ));
                }
                None => return Err("`)` is missing at the end".into()),
            }
            bounded(texts.len())?;
            if !self.take(&Token::Comma) {
                self.expect(&Token::Close)?;
                return Ok(texts);
            }
        }
    }

    fn matcher(&mut self, name: &str) -> Result<Vec<Way>, String> {
        let kind = name.to_ascii_lowercase();
        match kind.as_str() {
            "host" | "hostheader" => {
                let texts = self.texts(name)?;
                texts.into_iter().map(host).collect()
            }
            "pathprefix" | "path" => {
                let texts = self.texts(name)?;
                let path = |text: &str| -> Result<Way, String> {
                    let parsed = parse_prefix(text).map_err(|_| {
                        format!("`{}` is no plain path such as /api/v1", short(text))
                    })?;
                    Ok(Way {
                        host: None,
                        path: Some(match kind.as_str() {
                            "path" => Path::Exact(parsed),
                            _ => Path::Below(parsed),
                        }),
                    })
                };
                texts.into_iter().map(path).collect()
            }
            "hostregexp" => Err(
                "HostRegexp is not served: name the hosts, Host(`a.example.com`, `b.example.com`)"
                    .into(),
            ),
            "pathregexp" | "method" | "header" | "headers" | "headerregexp" | "headersregexp"
            | "query" | "queryregexp" | "clientip" => Err(format!(
                "{name} is not served: a route is a host and a path"
            )),
            _ => Err(format!(
                "`{}` is not known here; there are Host, PathPrefix and Path",
                short(name)
            )),
        }
    }
}

fn host(text: &str) -> Result<Way, String> {
    let parsed = parse_host(text)
        .map_err(|_| format!("`{}` is no host such as shop.example.com", short(text)))?;
    if parsed.starts_with('*') {
        // To Traefik it is a name like any other; it must not become all names.
        return Err(format!("`{}` is no host: name each", short(text)));
    }
    Ok(Way {
        host: Some(parsed),
        path: None,
    })
}

fn bounded(ways: usize) -> Result<(), String> {
    match ways {
        0..=MAX_WAYS => Ok(()),
        _ => Err(format!("it has more than {MAX_WAYS} hosts and paths")),
    }
}

fn domains(ways: Vec<Way>) -> Result<Vec<Domain>, String> {
    if ways.is_empty() {
        return Err("no request can meet it".into());
    }
    let mut domains = BTreeSet::new();
    let mut alone = Vec::new();
    for way in ways {
        let host = way
            .host
            .ok_or("it names no host; write Host(`shop.example.com`) && …")?;
        match way.path {
            None => domains.insert(Domain {
                host,
                prefix: "/".into(),
            }),
            Some(Path::Below(prefix)) => domains.insert(Domain { host, prefix }),
            Some(Path::Exact(path)) => {
                alone.push((host, path));
                true
            }
        };
    }
    for (host, path) in alone {
        // Path(`/a`) || PathPrefix(`/a/`) is what a route at segment borders is.
        let is_covered = |one: &Domain| one.host == host && covers(&one.prefix, &path);
        if !domains.iter().any(is_covered) {
            return Err(format!(
                "Path(`{path}`) is that path alone, and a route has what lies below it, too; write PathPrefix(`{path}`)"
            ));
        }
    }
    Ok(domains.into_iter().collect())
}
