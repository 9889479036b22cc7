//! TOML with places, as the same tree that YAML comes to.

use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::place::{Lines, Mistake};
use crate::tree::{Entry, Node, Value};

pub(crate) fn parse(path: &Arc<str>, text: &str) -> Result<Node, Mistake> {
    let lines = Lines::new(path, text);
    let table = DeTable::parse(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        Mistake::new(
            &lines.at(offset),
            format!("this is no TOML: {}", error.message()),
        )
    })?;
    Ok(Node {
        at: lines.at(0),
        value: Value::Map(entries(table.get_ref(), &lines)),
    })
}

fn entries(table: &DeTable<'_>, lines: &Lines<'_>) -> Vec<Entry> {
    let mut sorted: Vec<(usize, Entry)> = table
        .iter()
        .map(|(key, value)| {
            let start = key.span().start;
            let entry = Entry {
                at: lines.at(start),
                key: key.get_ref().to_string(),
                value: node(value, lines),
            };
            (start, entry)
        })
        .collect();
    sorted.sort_by_key(|(start, _)| *start);
    sorted.into_iter().map(|(_, entry)| entry).collect()
}

fn node(value: &Spanned<DeValue<'_>>, lines: &Lines<'_>) -> Node {
    let at = lines.at(value.span().start);
    let value = match value.get_ref() {
        DeValue::String(text) => Value::scalar(text.to_string()),
        DeValue::Integer(number) => Value::scalar(number.to_string()),
        DeValue::Float(number) => Value::scalar(number.to_string()),
        DeValue::Boolean(flag) => Value::scalar(flag.to_string()),
        DeValue::Datetime(time) => Value::scalar(time.to_string()),
        DeValue::Array(list) => Value::List(list.iter().map(|one| node(one, lines)).collect()),
        DeValue::Table(table) => Value::Map(entries(table, lines)),
    };
    Node { at, value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_have_their_places() {
        let text = "z = 1\n[entryPoints.web]\naddress = \":80\"\n[[a.b]]\nc = true\n";
        let node = parse(&Arc::from("t.toml"), text).expect("good TOML");
        let web = node
            .get("entryPoints")
            .and_then(|points| points.get("web"))
            .expect("web");
        assert_eq!(web.get("address").and_then(Node::text), Some(":80"));
        assert_eq!(web.map()[0].at.to_string(), "t.toml:3:1");
        let list = node.get("a").and_then(|a| a.get("b")).expect("b").list();
        assert_eq!(list[0].get("c").and_then(Node::flag), Some(true));
    }

    #[test]
    fn mistakes_have_their_place() {
        let found = parse(&Arc::from("t.toml"), "a = 1\nb = = 2\n").expect_err("it is wrong");
        assert!(found.to_string().starts_with("t.toml:2:"), "{found}");
        assert!(parse(&Arc::from("t.toml"), "a = 1\na = 2\n").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,120}") {
            let _ = parse(&Arc::from("f"), &text);
        }
    }
}
