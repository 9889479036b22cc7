//! Literals of JSON and JavaScript: what PM2's ecosystem file is made of. Nothing is run: what is no literal (`process.env.X`,
//! a call, an arrow function) becomes [`Value::Expression`], whose place is known and whose value is not.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::place::{At, Mistake, short};
use crate::reader::Reader;
use crate::tree::{Entry, MAX_DEPTH, MAX_NODES, Node, Value};

/// The value of a JSON file, or what a JavaScript file exports.
pub(crate) fn parse(path: &Arc<str>, text: &str) -> Result<Node, Mistake> {
    let mut parser = Parser {
        reader: Reader::new(path, text),
        left: MAX_NODES,
        depth: 0,
    };
    parser.blank()?;
    if matches!(parser.reader.peek(), Some('{' | '[')) {
        let node = parser.literal()?;
        parser.blank()?;
        return match parser.reader.peek() {
            None => Ok(node),
            Some(_) => Err(parser.wrong("the value is over, and more stands here")),
        };
    }
    parser.find_export()?;
    let node = parser.literal()?;
    match node.value {
        Value::List(_) | Value::Map(_) => Ok(node),
        _ => Err(Mistake::new(
            &node.at,
            "what is exported is not written out here; only `module.exports = { … }` is read",
        )),
    }
}

struct Parser {
    reader: Reader,
    left: usize,
    depth: usize,
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

impl Parser {
    fn wrong(&self, message: impl Into<String>) -> Mistake {
        Mistake::new(&self.reader.at(), message)
    }

    /// Goes past white space and comments.
    fn blank(&mut self) -> Result<(), Mistake> {
        loop {
            if self.reader.starts_with("//") || self.reader.starts_with("#!") {
                self.reader.take_while(|c| c != '\n');
            } else if self.reader.starts_with("/*") {
                let at = self.reader.at();
                self.reader.skip(2);
                while !self.reader.starts_with("*/") {
                    if self.reader.take().is_none() {
                        return Err(Mistake::new(&at, "this comment does not end"));
                    }
                }
                self.reader.skip(2);
            } else if self
                .reader
                .peek()
                .is_some_and(|c| c.is_whitespace() || c == '\u{feff}')
            {
                self.reader.take();
            } else {
                return Ok(());
            }
        }
    }

    /// Goes to behind `module.exports =` or `export default`.
    fn find_export(&mut self) -> Result<(), Mistake> {
        loop {
            self.blank()?;
            match self.reader.peek() {
                None => {
                    return Err(self.wrong(
                        "there is no `module.exports = { … }` and no `export default { … }` in this file",
                    ));
                }
                Some('"' | '\'') => {
                    self.string()?;
                }
                Some('`') => {
                    self.template()?;
                }
                Some(c) if is_name(c) => {
                    let word = self.reader.take_while(|c| is_name(c) || c == '.');
                    self.blank()?;
                    let is_assigned = self.reader.peek() == Some('=')
                        && !matches!(self.reader.ahead(1), Some('=' | '>'));
                    if word == "module.exports" && is_assigned {
                        self.reader.take();
                        return Ok(());
                    }
                    if word == "export" && self.reader.starts_with("default") {
                        self.reader.skip("default".len());
                        return Ok(());
                    }
                }
                Some(_) => {
                    self.reader.take();
                }
            }
        }
    }

    /// A literal, or an expression of which only the place is known.
    fn value(&mut self) -> Result<Node, Mistake> {
        let node = self.literal()?;
        self.blank()?;
        match self.reader.peek() {
            None | Some(',' | '}' | ']' | ')' | ';') => Ok(node),
            // A comma is missing: who asked for the value says so.
            Some(c) if node.value != Value::Expression && (is_name(c) || "\"'`{".contains(c)) => {
                Ok(node)
            }
            // An operator, or a call.
            Some(_) => {
                self.expression()?;
                Ok(Node {
                    at: node.at,
                    value: Value::Expression,
                })
            }
        }
    }

    fn literal(&mut self) -> Result<Node, Mistake> {
        self.blank()?;
        let at = self.reader.at();
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| Mistake::new(&at, "there are more than 200000 values"))?;
        let value = match self.reader.peek() {
            Some('{') => self.deeper(Self::object)?,
            Some('[') => self.deeper(Self::array)?,
            Some('"' | '\'') => Value::scalar(self.string()?),
            Some('`') => self.template()?.map_or(Value::Expression, Value::scalar),
            Some(c) if c.is_ascii_digit() || c == '-' || c == '+' || c == '.' => {
                let word = self
                    .reader
                    .take_while(|c| c.is_ascii_alphanumeric() || "+-._".contains(c));
                match word.replace('_', "").parse::<f64>() {
                    Ok(_) => Value::scalar(word),
                    Err(_) => Value::Expression,
                }
            }
            Some(c) if is_name(c) => {
                let word = self.reader.take_while(is_name);
                match word.as_str() {
                    "true" | "false" => Value::scalar(word),
                    "null" | "undefined" => Value::Null,
                    _ => Value::Expression,
                }
            }
            Some(',' | '}' | ']' | ')' | ';' | ':') => {
                return Err(self.wrong("a value is missing here"));
            }
            Some(_) => {
                self.expression()?;
                Value::Expression
            }
            None => return Err(self.wrong("a value is missing at the end")),
        };
        Ok(Node { at, value })
    }

    fn deeper(
        &mut self,
        read: impl Fn(&mut Self) -> Result<Value, Mistake>,
    ) -> Result<Value, Mistake> {
        if self.depth >= MAX_DEPTH {
            return Err(self.wrong(format!("more than {MAX_DEPTH} values are in each other")));
        }
        self.depth += 1;
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn object(&mut self) -> Result<Value, Mistake> {
        let begin = self.reader.at();
        self.reader.take();
        let mut entries: Vec<Entry> = Vec::new();
        let mut known = BTreeSet::new();
        loop {
            self.blank()?;
            if self.reader.peek() == Some('}') {
                self.reader.take();
                return Ok(Value::Map(entries));
            }
            let entry = self.entry(&begin)?;
            if entry.key != "..." && !known.insert(entry.key.clone()) {
                let message = format!("`{}` is there twice", short(&entry.key));
                return Err(Mistake::new(&entry.at, message));
            }
            entries.push(entry);
            self.comma('}', &begin)?;
        }
    }

    fn array(&mut self) -> Result<Value, Mistake> {
        let begin = self.reader.at();
        self.reader.take();
        let mut items = Vec::new();
        loop {
            self.blank()?;
            match self.reader.peek() {
                Some(']') => {
                    self.reader.take();
                    return Ok(Value::List(items));
                }
                None => return Err(Mistake::new(&begin, "this `[` is not closed")),
                Some(_) => items.push(self.value()?),
            }
            self.comma(']', &begin)?;
        }
    }

    /// Goes past a comma; what closes may stand in its place.
    fn comma(&mut self, close: char, begin: &At) -> Result<(), Mistake> {
        self.blank()?;
        match self.reader.peek() {
            Some(',') => {
                self.reader.take();
                Ok(())
            }
            Some(c) if c == close => Ok(()),
            Some(_) => Err(self.wrong(format!("`,` or `{close}` is missing here"))),
            None => Err(Mistake::new(
                begin,
                format!("the `{close}` to this is missing"),
            )),
        }
    }

    fn entry(&mut self, begin: &At) -> Result<Entry, Mistake> {
        let at = self.reader.at();
        let expression = |at: &At| Node {
            at: at.clone(),
            value: Value::Expression,
        };
        let key = match self.reader.peek() {
            None => return Err(Mistake::new(begin, "this `{` is not closed")),
            Some('"' | '\'') => self.string()?,
            Some('.') if self.reader.starts_with("...") => {
                self.reader.skip(3);
                self.expression()?;
                return Ok(Entry {
                    value: expression(&at),
                    key: "...".into(),
                    at,
                });
            }
            Some('[') => {
                self.reader.take();
                self.expression()?;
                if self.reader.take() != Some(']') {
                    return Err(Mistake::new(&at, "this `[` is not closed"));
                }
                format!("[…]:{}:{}", at.line, at.column)
            }
            Some(c) if is_name(c) => self.reader.take_while(is_name),
            Some(_) => return Err(self.wrong("the name of a property is missing here")),
        };
        self.blank()?;
        let value = match self.reader.peek() {
            Some(':') => {
                self.reader.take();
                self.value()?
            }
            // `{ name }`, `{ name() { … } }` and `{ async name() { … } }`.
            Some(c) if ",}(".contains(c) || (is_name(c) && !c.is_ascii_digit()) => {
                self.expression()?;
                expression(&at)
            }
            _ => return Err(self.wrong(format!("`:` is missing behind `{}`", short(&key)))),
        };
        Ok(Entry { at, key, value })
    }

    /// Goes to what ends an expression: a comma, a semicolon or a bracket that was opened outside of it.
    fn expression(&mut self) -> Result<(), Mistake> {
        let mut open = 0_usize;
        loop {
            self.blank()?;
            match self.reader.peek() {
                None if open == 0 => return Ok(()),
                None => return Err(self.wrong("a bracket is not closed")),
                Some('"' | '\'') => {
                    self.string()?;
                }
                Some('`') => {
                    self.template()?;
                }
                Some(',' | ';') if open == 0 => return Ok(()),
                Some(')' | ']' | '}') if open == 0 => return Ok(()),
                Some(c) => {
                    match c {
                        '(' | '[' | '{' => open += 1,
                        ')' | ']' | '}' => open -= 1,
                        _ => {}
                    }
                    self.reader.take();
                }
            }
        }
    }

    fn string(&mut self) -> Result<String, Mistake> {
        let begin = self.reader.at();
        let quote = self.reader.take();
        let mut text = String::new();
        loop {
            match self.reader.take() {
                None | Some('\n') => {
                    return Err(Mistake::new(&begin, "this text does not end on its line"));
                }
                next if next == quote => return Ok(text),
                Some('\\') => self.escape(&mut text),
                Some(next) => text.push(next),
            }
        }
    }

    /// A text in backticks; `None` if there is an expression in it.
    fn template(&mut self) -> Result<Option<String>, Mistake> {
        let begin = self.reader.at();
        self.reader.take();
        let mut text = String::new();
        let mut is_plain = true;
        loop {
            match self.reader.take() {
                None => return Err(Mistake::new(&begin, "this text does not end")),
                Some('`') => return Ok(is_plain.then_some(text)),
                Some('\\') => self.escape(&mut text),
                Some('$') if self.reader.peek() == Some('{') => {
                    is_plain = false;
                    // Backticks inside would be another text; brackets are enough for what is met.
                    let mut open = 0_usize;
                    while let Some(next) = self.reader.take() {
                        match next {
                            '{' => open += 1,
                            '}' if open <= 1 => break,
                            '}' => open -= 1,
                            _ => {}
                        }
                    }
                }
                Some(next) => text.push(next),
            }
        }
    }

    /// What stands behind a backslash.
    fn escape(&mut self, text: &mut String) {
        let Some(next) = self.reader.take() else {
            return;
        };
        let code = |digits: &str| {
            let number = u32::from_str_radix(digits, 16).ok();
            number.and_then(char::from_u32).unwrap_or('\u{fffd}')
        };
        match next {
            'n' => text.push('\n'),
            't' => text.push('\t'),
            'r' => text.push('\r'),
            'b' => text.push('\u{8}'),
            'f' => text.push('\u{c}'),
            'v' => text.push('\u{b}'),
            '0' => text.push('\0'),
            '\n' => {}
            'x' => {
                let digits = self.digits(2);
                text.push(code(&digits));
            }
            'u' if self.reader.peek() == Some('{') => {
                self.reader.take();
                let digits = self.reader.take_while(|c| c.is_ascii_hexdigit());
                if self.reader.peek() == Some('}') {
                    self.reader.take();
                }
                text.push(code(&digits));
            }
            'u' => {
                let digits = self.digits(4);
                text.push(code(&digits));
            }
            other => text.push(other),
        }
    }

    fn digits(&mut self, count: usize) -> String {
        let mut digits = String::new();
        while digits.len() < count
            && let Some(next) = self.reader.peek().filter(char::is_ascii_hexdigit)
        {
            digits.push(next);
            self.reader.take();
        }
        digits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Node {
        parse(&Arc::from("e.js"), text).expect("a good literal")
    }

    fn wrong(text: &str) -> String {
        let found = parse(&Arc::from("e.js"), text);
        found.expect_err("it is wrong").to_string()
    }

    #[test]
    fn json_is_read() {
        let node = read(r#"{"a": [1, -2.5e3, true, null, "x\u00e4\n"], "b": {}}"#);
        let list = node.get("a").expect("a").list();
        assert_eq!(list[0].text(), Some("1"));
        assert_eq!(list[1].text(), Some("-2.5e3"));
        assert_eq!(list[2].flag(), Some(true));
        assert!(list[3].is_null());
        assert_eq!(list[4].text(), Some("xä\n"));
        assert!(node.get("b").expect("b").map().is_empty());
    }

    #[test]
    fn what_javascript_exports_is_read() {
        let text = "// \"module.exports = 1\"\nconst path = require('path');\n/* module.exports = 2 */\nmodule.exports = {\n  apps: [{ name: 'api', 'script': \"a.js\", instances: 2, },],\n};\n";
        let node = read(text);
        let app = &node.get("apps").expect("apps").list()[0];
        assert_eq!(app.get("name").and_then(Node::text), Some("api"));
        assert_eq!(app.get("script").and_then(Node::text), Some("a.js"));
        assert_eq!(app.map()[0].at.to_string(), "e.js:5:12");
        assert_eq!(read("export default [ {a: 1} ]").list().len(), 1);
    }

    #[test]
    fn what_is_no_literal_is_an_expression() {
        let node = read(
            "module.exports = {a: process.env.X || 'y', b: `t${1 + 2}`, c: () => { return {x: 1} }, d, e() { return 1 }, ...more, f: 'a' + 'b', g: `plain`, [h]: 1, i: 1}",
        );
        for key in ["a", "b", "c", "d", "e", "...", "f"] {
            let value = node.get(key).unwrap_or_else(|| panic!("{key}"));
            assert_eq!(value.value, Value::Expression, "{key}");
        }
        assert_eq!(node.get("g").and_then(Node::text), Some("plain"));
        assert_eq!(node.get("i").and_then(Node::text), Some("1"));
    }

    #[test]
    fn mistakes_have_their_place() {
        for (text, said) in [
            ("{\"a\": 1", "e.js:1:1: the `}` to this is missing"),
            ("{\"a\" 1}", "e.js:1:6: `:` is missing behind `a`"),
            (
                "{\"a\": 1\n \"b\": 2}",
                "e.js:2:2: `,` or `}` is missing here",
            ),
            ("{a: }", "e.js:1:5: a value is missing here"),
            ("{a: 'x\n'}", "e.js:1:5: this text does not end on its line"),
            ("{a: 1, a: 2}", "e.js:1:8: `a` is there twice"),
            ("[1] x", "e.js:1:5: the value is over, and more stands here"),
            (
                "module.exports = [1",
                "e.js:1:18: the `]` to this is missing",
            ),
            ("/* a", "e.js:1:1: this comment does not end"),
            ("const a = 1;\n", "e.js:2:1: there is no `module.exports"),
            (
                "module.exports = make();",
                "e.js:1:18: what is exported is not written out here",
            ),
        ] {
            let found = wrong(text);
            assert!(found.starts_with(said), "{text}: {found}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        assert!(wrong(&"[".repeat(100)).contains("in each other"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,200}") {
            let _ = parse(&Arc::from("f"), &text);
        }

        #[test]
        fn no_odd_literal_makes_it_panic(text in "(module[.]exports = |[{]|[}]|\\[|\\]|[(]|[)]|a|: |, |'|\"|`|[$][{]|\\\\|\\\\u|//|/[*]|[*]/|[.]{3}|1|-|\n){0,40}") {
            let _ = parse(&Arc::from("f"), &text);
        }
    }
}
