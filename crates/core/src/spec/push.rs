//! Which tags of the app's image are deployed when they are pushed.

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::Check;

const MAX_PATTERNS: usize = 20;
const MAX_LENGTH: usize = 128;

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPush {
    /// Tags that are deployed when they are pushed to this server, such as "main" or "v*"; `*` is any text. At most 20.
    #[schemars(with = "Vec<String>")]
    #[serde(default)]
    tags: Vec<Spanned<String>>,
}

impl Check<'_> {
    pub(super) fn push_tags(&mut self, raw: &RawPush) -> Vec<String> {
        if let Some(over) = raw.tags.get(MAX_PATTERNS) {
            self.wrong(
                over.span().start,
                format!("at most {MAX_PATTERNS} patterns"),
            );
        }
        for pattern in &raw.tags {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-*".contains(&byte);
            let text = pattern.get_ref();
            if text.is_empty() || text.len() > MAX_LENGTH || !text.bytes().all(plain) {
                self.wrong(
                    pattern.span().start,
                    format!("`{text}` is no pattern of tags, such as \"main\" or \"v*\""),
                );
            }
        }
        raw.tags.iter().map(|one| one.get_ref().clone()).collect()
    }
}

/// Whether a tag is meant by a pattern, in which `*` is any text. Linear in the lengths' product at worst.
pub fn tag_fits(pattern: &str, tag: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = tag.strip_prefix(first) else {
        return false;
    };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else {
        return rest.is_empty();
    };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn tags_fit_patterns() {
        for (pattern, tag, fits) in [
            ("main", "main", true),
            ("main", "main2", false),
            ("v*", "v1.2", true),
            ("v*", "v", true),
            ("v*", "av", false),
            ("*", "x", true),
            ("v*-rc*", "v1-rc2", true),
            ("v*-rc*", "v1-r", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*b*b", "b", false),
        ] {
            assert_eq!(tag_fits(pattern, tag), fits, "{pattern} {tag}");
        }
    }

    #[test]
    fn patterns_are_checked() {
        let app = "name='a'\nimage='hutong.local/a:main'\n";
        let spec = |tags: &str| parse("t", &format!("{app}[push]\ntags={tags}\n"));
        assert_eq!(
            spec("['main','v*']").expect("good").push_tags,
            ["main", "v*"]
        );
        for bad in ["['']", "['a b']", "['/x']"] {
            let said = spec(bad).expect_err(bad).to_string();
            assert!(
                said.contains("t:4:7: ") && said.contains("pattern"),
                "{said}"
            );
        }
    }
}
