//! YAML with places: anchors, aliases and merge keys are resolved within bounds. saphyr-parser reads the text and makes
//! events of it; the tree is made here, because what an alias may repeat has to be bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};

use crate::place::{At, Mistake, short};
use crate::tree::{Entry, MAX_DEPTH, MAX_NODES, Node, Scalar, Value};

/// A file: one document.
#[derive(Debug)]
pub(crate) struct Document {
    pub root: Node,
    /// Tags that are not YAML's own, such as `!reset`.
    pub tags: Vec<(At, String)>,
}

pub(crate) fn parse(path: &Arc<str>, text: &str) -> Result<Document, Mistake> {
    let mut builder = Builder {
        path: Arc::clone(path),
        stack: Vec::new(),
        anchors: BTreeMap::new(),
        left: MAX_NODES,
        root: None,
        tags: Vec::new(),
    };
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        match next {
            Ok((event, span)) => builder.event(event, span)?,
            Err(error) => {
                let at = builder.at(*error.marker());
                return Err(Mistake::new(
                    &at,
                    format!("this is no YAML: {}", error.info()),
                ));
            }
        }
    }
    let nothing = Node {
        at: At::start(path),
        value: Value::Null,
    };
    Ok(Document {
        root: builder.root.unwrap_or(nothing),
        tags: builder.tags,
    })
}

/// A list or a table that is not at its end yet.
enum Frame {
    List {
        at: At,
        anchor: usize,
        items: Vec<Node>,
    },
    Map {
        at: At,
        anchor: usize,
        entries: Vec<Entry>,
        key: Option<(At, String)>,
    },
}

struct Builder {
    path: Arc<str>,
    stack: Vec<Frame>,
    anchors: BTreeMap<usize, Node>,
    /// How many more values there may be.
    left: usize,
    root: Option<Node>,
    tags: Vec<(At, String)>,
}

impl Builder {
    fn at(&self, marker: Marker) -> At {
        At {
            path: Arc::clone(&self.path),
            line: marker.line().max(1),
            column: marker.col() + 1,
        }
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Mistake> {
        let at = self.at(span.start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.note_tag(&at, tag.as_deref());
                let is_plain = style == ScalarStyle::Plain && tag.is_none();
                let value = match &*text {
                    "" | "~" | "null" | "Null" | "NULL" if is_plain => Value::Null,
                    other => Value::Scalar(Scalar {
                        text: other.to_owned(),
                        missing: Vec::new(),
                    }),
                };
                self.finish(Node { at, value }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.note_tag(&at, tag.as_deref());
                self.open(Frame::List {
                    at,
                    anchor,
                    items: Vec::new(),
                })
            }
            Event::MappingStart(anchor, tag) => {
                self.note_tag(&at, tag.as_deref());
                self.open(Frame::Map {
                    at,
                    anchor,
                    entries: Vec::new(),
                    key: None,
                })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(Frame::List { at, anchor, items }) => {
                    let value = Value::List(items);
                    self.finish(Node { at, value }, anchor)
                }
                Some(Frame::Map {
                    at,
                    anchor,
                    entries,
                    ..
                }) => {
                    let value = Value::Map(merged(entries)?);
                    self.finish(Node { at, value }, anchor)
                }
                None => Ok(()),
            },
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else {
                    return Err(Mistake::new(
                        &at,
                        "this alias stands inside of what it names",
                    ));
                };
                self.spend(node.count(), &at)?;
                self.finish(node, 0)
            }
            Event::DocumentStart(_) if self.root.is_some() => Err(Mistake::new(
                &at,
                "a second document begins here; hand over one file for each",
            )),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn note_tag(&mut self, at: &At, tag: Option<&Tag>) {
        if let Some(tag) = tag
            && !tag.is_yaml_core_schema()
        {
            self.tags.push((at.clone(), tag.to_string()));
        }
    }

    fn open(&mut self, frame: Frame) -> Result<(), Mistake> {
        if self.stack.len() >= MAX_DEPTH {
            let (Frame::List { at, .. } | Frame::Map { at, .. }) = &frame;
            let message = format!("more than {MAX_DEPTH} lists and tables are in each other");
            return Err(Mistake::new(at, message));
        }
        self.stack.push(frame);
        Ok(())
    }

    fn spend(&mut self, count: usize, at: &At) -> Result<(), Mistake> {
        let message = "there are more than 200000 values, those that aliases repeat among them";
        self.left = self
            .left
            .checked_sub(count)
            .ok_or_else(|| Mistake::new(at, message))?;
        Ok(())
    }

    /// A value is whole: it goes where it belongs.
    fn finish(&mut self, node: Node, anchor: usize) -> Result<(), Mistake> {
        self.spend(1, &node.at)?;
        if anchor > 0 {
            self.spend(node.count(), &node.at)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Frame::List { items, .. }) => items.push(node),
            Some(Frame::Map { entries, key, .. }) => match key.take() {
                Some((at, key)) => entries.push(Entry {
                    at,
                    key,
                    value: node,
                }),
                None => match node.text() {
                    Some(text) => *key = Some((node.at.clone(), text.to_owned())),
                    None => {
                        let more = match node.value {
                            Value::Map(_) => "; `{{ … }}` of a template is to be filled in first",
                            _ => "",
                        };
                        let message = format!("a key is a plain text, not {}{more}", node.kind());
                        return Err(Mistake::new(&node.at, message));
                    }
                },
            },
        }
        Ok(())
    }
}

/// Entries with those that `<<` brings; what is written out wins, and the first of several tables.
fn merged(entries: Vec<Entry>) -> Result<Vec<Entry>, Mistake> {
    let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
    let mut known = BTreeSet::new();
    let mut merges = Vec::new();
    for entry in entries {
        if entry.key == "<<" {
            merges.push(entry);
        } else if known.insert(entry.key.clone()) {
            kept.push(entry);
        } else {
            let message = format!("`{}` is there twice", short(&entry.key));
            return Err(Mistake::new(&entry.at, message));
        }
    }
    let wrong = "`<<` takes a table, or a list of tables";
    for merge in merges {
        let mut sources = Vec::new();
        match merge.value.value {
            Value::Map(entries) => sources.push(entries),
            Value::List(nodes) => {
                for node in nodes {
                    match node.value {
                        Value::Map(entries) => sources.push(entries),
                        _ => return Err(Mistake::new(&node.at, wrong)),
                    }
                }
            }
            _ => return Err(Mistake::new(&merge.at, wrong)),
        }
        for entry in sources.into_iter().flatten() {
            if known.insert(entry.key.clone()) {
                kept.push(entry);
            }
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Node {
        parse(&Arc::from("a.yml"), text).expect("good YAML").root
    }

    fn wrong(text: &str) -> String {
        let found = parse(&Arc::from("a.yml"), text);
        found.expect_err("it is wrong").to_string()
    }

    fn text<'a>(node: &'a Node, path: &[&str]) -> Option<&'a str> {
        let mut node = node;
        for key in path {
            node = node.get(key)?;
        }
        node.text()
    }

    #[test]
    fn values_keep_their_text_and_place() {
        let node = read("a: 1.10\nb:\n  - yes\n  - \"x\"\nc: ~\nd: ''\n");
        assert_eq!(text(&node, &["a"]), Some("1.10"));
        let list = node.get("b").expect("b").list();
        assert_eq!(list[0].flag(), Some(true));
        assert_eq!(list[1].at.to_string(), "a.yml:4:5");
        assert!(node.get("c").expect("c").is_null());
        assert_eq!(text(&node, &["d"]), Some(""));
        assert_eq!(node.map()[1].at.to_string(), "a.yml:2:1");
    }

    #[test]
    fn anchors_are_repeated_and_merged() {
        let node = read(
            "x: &base\n  a: 1\n  b: 2\ny: &more\n  c: 3\nz:\n  <<: [*base, *more]\n  b: 9\nw: *base\n",
        );
        assert_eq!(text(&node, &["z", "a"]), Some("1"));
        assert_eq!(text(&node, &["z", "b"]), Some("9"));
        assert_eq!(text(&node, &["z", "c"]), Some("3"));
        assert_eq!(text(&node, &["w", "b"]), Some("2"));
        // What is merged is where it was written.
        let z = node.get("z").expect("z");
        let a = z.map().iter().find(|entry| entry.key == "a").expect("a");
        assert_eq!(a.at.to_string(), "a.yml:2:3");
    }

    #[test]
    fn the_first_of_several_merged_tables_wins() {
        let node = read("a: &a {k: 1}\nb: &b {k: 2}\nc: {<<: [*a, *b]}\n");
        assert_eq!(text(&node, &["c", "k"]), Some("1"));
    }

    #[test]
    fn what_is_merged_is_a_table() {
        assert_eq!(
            wrong("a: &a 1\nb:\n  <<: *a\n"),
            "a.yml:3:3: `<<` takes a table, or a list of tables"
        );
        assert!(wrong("a: {<<: [1]}\n").contains("takes a table"));
    }

    #[test]
    fn a_key_stands_once() {
        assert_eq!(wrong("a: 1\nb: 2\na: 3\n"), "a.yml:3:1: `a` is there twice");
    }

    #[test]
    fn keys_are_texts() {
        assert!(wrong("? [a]\n: 1\n").starts_with("a.yml:1:3: a key is a plain text"));
    }

    #[test]
    fn mistakes_have_their_place() {
        let found = wrong("a:\n  b: 1\n c: 2\n");
        assert!(found.starts_with("a.yml:3:"), "{found}");
        assert!(wrong("a: *nobody\n").starts_with("a.yml:1:4: this is no YAML"));
        assert!(wrong("a: [1, 2\n").contains("this is no YAML"));
    }

    #[test]
    fn an_alias_does_not_stand_in_what_it_names() {
        let found = wrong("a: &a\n  b: *a\n");
        assert_eq!(
            found,
            "a.yml:2:6: this alias stands inside of what it names"
        );
    }

    #[test]
    fn a_bomb_of_aliases_is_bounded() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let below = format!("*a{}", level - 1);
            let list = vec![below; 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
        }
        assert!(wrong(&bomb).contains("more than 200000 values"));
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!("{}{}", "[".repeat(70), "]".repeat(70));
        assert!(wrong(&deep).contains("in each other"));
        assert!(parse(&Arc::from("f"), &"[".repeat(5000)).is_err());
    }

    #[test]
    fn one_file_is_one_document() {
        assert!(wrong("a: 1\n---\nb: 2\n").contains("a second document"));
        assert!(read("").is_null());
        assert!(read("# nothing\n").is_null());
        assert_eq!(text(&read("---\na: 1\n"), &["a"]), Some("1"));
    }

    #[test]
    fn foreign_tags_are_kept() {
        let document = parse(&Arc::from("f"), "a: !reset null\nb: !!str 1\n").expect("good");
        assert_eq!(document.tags.len(), 1);
        assert_eq!(document.tags[0].1, "!reset");
        assert_eq!(document.tags[0].0.line, 1);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,200}") {
            let _ = parse(&Arc::from("f"), &text);
        }

        #[test]
        fn no_odd_yaml_makes_it_panic(text in "([a-c]: |- |&a |[*]a |[*]b|<<: |\\[|\\]|[{]|[}]|, |\n|  |\"|'|\\||>|#|%|!|[?] |---\n|[.][.][.]\n|\t){0,40}") {
            let _ = parse(&Arc::from("f"), &text);
        }
    }
}
