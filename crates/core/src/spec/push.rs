//! Which tags of the app's image are deployed when they are pushed, and how often another registry is asked for its own.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::{Check, Image, Pull};

const MAX_PATTERNS: usize = 20;
const MAX_LENGTH: usize = 128;
const MIN_WATCH: Duration = Duration::from_secs(60);
const MAX_WATCH: Duration = Duration::from_secs(7 * 86_400);

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPush {
    /// Tags that are deployed when they are pushed to this server, such as "main" or "v*"; `*` is any text. At most 20.
    #[schemars(with = "Vec<String>")]
    #[serde(default)]
    tags: Vec<Spanned<String>>,
    /// How often the registry of `image` is asked where the tag leads, such as "5m", 1 minute to 7 days: what is new is
    /// deployed. Default never.
    #[schemars(with = "Option<String>")]
    watch: Option<Spanned<String>>,
}

impl Check<'_> {
    pub(super) fn watch(&mut self, raw: &RawPush, image: Option<&Image>) -> Option<Duration> {
        let at = raw.watch.as_ref()?.span().start;
        let interval = self.time(&raw.watch, MIN_WATCH, MIN_WATCH, MAX_WATCH);
        let wrong = match image {
            None => "`watch` goes with `image`",
            Some(image) if image.dockerfile.is_some() => {
                "`watch` goes with `image`; what a Dockerfile begins with is fetched when it is built"
            }
            Some(image) if image.local().is_some() => {
                "what is pushed to this server is followed at once: name its tags in `push.tags`"
            }
            Some(image) if image.pull == Pull::Never => {
                "`watch` fetches what is new, and `container.pull` is \"never\""
            }
            Some(image) if image.tagged().is_none() => {
                "`watch` looks where a tag leads, and `image` names none: write one, such as `:latest`"
            }
            Some(_) => return Some(interval),
        };
        self.wrong(at, wrong);
        None
    }

    pub(super) fn push_tags(&mut self, raw: &RawPush, image: Option<&Image>) -> Vec<String> {
        let elsewhere =
            image.is_some_and(|image| image.dockerfile.is_none() && image.local().is_none());
        if let Some(first) = raw.tags.first().filter(|_| elsewhere) {
            self.wrong(
                first.span().start,
                "tags are followed when they are pushed to this server; of another registry it is the tag that `image` names: watch = \"5m\"",
            );
        }
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

    #[test]
    fn other_registries_are_watched_by_tag() {
        let spec =
            |image: &str, push: &str| parse("t", &format!("name='a'\n{image}\n[push]\n{push}\n"));
        let digest = "a".repeat(64);
        for (image, tagged) in [
            ("ghcr.io/me/shop:v1".to_owned(), "ghcr.io/me/shop:v1"),
            ("localhost:5000/x:1".to_owned(), "localhost:5000/x:1"),
            // As the watcher itself writes it.
            (format!("nginx:latest@sha256:{digest}"), "nginx:latest"),
        ] {
            let spec = spec(&format!("image='{image}'"), "watch='5m'").expect("good");
            assert_eq!(spec.watch, Some(Duration::from_secs(300)));
            let image = spec.image.expect("it has one");
            assert_eq!(image.tagged(), Some(tagged));
            assert_eq!(image.digest().is_some(), image.reference.contains('@'));
        }
        let pinned = format!("image='nginx@sha256:{digest}'");
        for (image, push, why) in [
            ("image='nginx:1'", "watch='59s'", "must be 1m to 7d"),
            ("image='nginx:1'", "watch='8d'", "must be 1m to 7d"),
            ("image='nginx'", "watch='5m'", "names none"),
            ("image='localhost:5000/x'", "watch='5m'", "names none"),
            (pinned.as_str(), "watch='5m'", "names none"),
            ("image='hutong.local/a:1'", "watch='5m'", "push.tags"),
            ("command='x'", "watch='5m'", "goes with `image`"),
            (
                "image='nginx:1'\ncontainer.pull='never'",
                "watch='5m'",
                "\"never\"",
            ),
            ("image='nginx:1'", "tags=['v*']", "watch = \"5m\""),
        ] {
            let said = spec(image, push).expect_err(image).to_string();
            assert!(said.contains(why), "{image} {push}: {said}");
        }
    }
}
