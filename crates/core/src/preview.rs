//! A branch as an app of its own: its name, its host, and what of the app's file holds for it.

use toml::{Table, Value};

use crate::name::{AppName, MAX_APP_NAME};
use crate::spec;
use crate::tree::digest_of;

/// The longest name of a branch, in bytes.
pub const MAX_BRANCH: usize = 200;
/// Hex digits that tell names apart which would be the same.
const MARK: usize = 6;
/// What is left of a long app name in a preview's.
const STEM: usize = 20;
const BETWEEN: &str = "--";

/// Whether `text` may name a branch: stricter than git-check-ref-format(1), because it becomes part of paths, and is
/// shown to people.
pub fn check_branch(text: &str) -> Result<(), String> {
    let plain = |c: char| c.is_alphanumeric() || "-_./+@#=".contains(c);
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && !part.ends_with('.')
            && !part.ends_with(".lock")
            && !part.contains("..")
    };
    let good = !text.is_empty()
        && text.len() <= MAX_BRANCH
        && text != "@"
        && text.chars().all(plain)
        && text.split('/').all(part);
    if good {
        return Ok(());
    }
    Err(format!(
        "`{}` cannot name a branch here: letters, digits and -_./+@#= only, at most {MAX_BRANCH} bytes",
        text.escape_default()
    ))
}

/// The branch as a DNS label of at most `most` characters; empty if nothing of it is left.
fn slug(branch: &str, most: usize) -> String {
    let mut slug = String::new();
    for c in branch.chars() {
        let c = c.to_ascii_lowercase();
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            slug.push(c);
        } else if !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_matches('-');
    let cut = slug.get(..most.min(slug.len())).unwrap_or_default();
    cut.trim_end_matches('-').to_owned()
}

/// A preview's label, which is the first part of its host, and its app's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub label: String,
    pub app: AppName,
}

/// What the preview of a branch is called. `taken` says which apps there are already that are not this branch's: then,
/// and where the branch's name has to be cut, a digest of it is part of the name.
pub fn names(app: &AppName, branch: &str, taken: impl Fn(&str) -> bool) -> Result<Names, String> {
    let digest = digest_of(&[app.as_str(), branch]);
    let mark = &digest[..MARK];
    let full = MAX_APP_NAME - BETWEEN.len();
    let stem = match app.as_str() {
        short if short.len() <= STEM => short,
        long => long[..STEM].trim_end_matches('-'),
    };
    let is_cut = stem.len() < app.as_str().len();
    let room = full - stem.len();
    let label = slug(branch, MAX_APP_NAME);
    if !label.is_empty() && label.len() <= room && !is_cut && is_whole(branch, &label) {
        let name = AppName::new(&format!("{stem}{BETWEEN}{label}"))?;
        if !taken(name.as_str()) {
            return Ok(Names { label, app: name });
        }
    }
    let short = slug(branch, room - MARK - 1);
    let label = match short.as_str() {
        "" => mark.to_owned(),
        short => format!("{short}-{mark}"),
    };
    let name = AppName::new(&format!("{stem}{BETWEEN}{label}"))?;
    if taken(name.as_str()) {
        return Err(format!(
            "the preview of `{branch}` would be called {name}, which another app is"
        ));
    }
    Ok(Names { label, app: name })
}

/// Nothing of the branch's name was cut off.
fn is_whole(branch: &str, label: &str) -> bool {
    let count = |text: &str| text.chars().filter(char::is_ascii_alphanumeric).count();
    branch.is_ascii() && count(branch) == count(label)
}

/// The app file of a preview: with its own name and host. Timed jobs stay with the app itself, and so do paths that it
/// shares. The error says what is wrong with the result.
pub fn file(text: &str, name: &AppName, host: Option<&str>) -> Result<String, String> {
    let mut table: Table = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    table.insert("name".into(), Value::String(name.to_string()));
    let has_domains = table
        .get("domains")
        .and_then(Value::as_array)
        .is_some_and(|list| !list.is_empty());
    if has_domains {
        let host = host.ok_or("[preview] says no `domain`, and the app has none of its own")?;
        let list = vec![Value::String(host.to_owned())];
        table.insert("domains".into(), Value::Array(list));
    }
    for key in ["share", "git", "preview"] {
        table.remove(key);
    }
    let runs = ["command", "image", "static", "upstream", "workers"];
    if runs.iter().any(|key| table.contains_key(*key)) {
        table.remove("cron");
    }
    let text = toml::to_string(&table).map_err(|error| error.to_string())?;
    spec::parse("hutong.toml", &text).map_err(|problems| problems.to_string())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(app: &str, branch: &str) -> Names {
        let app = AppName::new(app).expect("good");
        names(&app, branch, |_| false).expect("a name")
    }

    #[test]
    fn a_branch_has_a_name_that_fits() {
        let of = |app, branch| {
            let names = named(app, branch);
            (names.label, names.app.to_string())
        };
        let is = |label: &str, app: &str| (label.to_owned(), app.to_owned());
        assert_eq!(of("shop", "next"), is("next", "shop--next"));
        assert_eq!(
            of("shop", "Fix/Cart_2"),
            is("fix-cart-2", "shop--fix-cart-2")
        );
        let long = "a-very-long-branch-name-that-nobody-would-type-twice";
        let one = named("shop", long);
        let other = named("shop", &format!("{long}-2"));
        assert_ne!(one, other);
        assert!(one.label.starts_with("a-very-long-branch"), "{one:?}");
        let stem = "x".repeat(40);
        assert!(named(&stem, "main2").app.as_str().len() <= MAX_APP_NAME);
        assert_ne!(
            named(&stem, "a").app,
            named(&format!("{}y", &stem[1..]), "a").app
        );
        // Nothing of it is left in ASCII.
        assert_eq!(named("shop", "修复").label.len(), MARK);
        assert_ne!(named("shop", "修复"), named("shop", "修理"));
    }

    #[test]
    fn branches_that_look_alike_are_told_apart() {
        let app = AppName::new("shop").expect("good");
        let plain = names(&app, "fix-a", |_| false).expect("a name");
        let other = names(&app, "fix/a", |name| name == plain.app.as_str()).expect("a name");
        assert_ne!(plain.app, other.app);
        assert!(other.label.starts_with("fix-a-"), "{other:?}");
        assert!(names(&app, "fix/a", |_| true).is_err());
    }

    #[test]
    fn names_of_branches_are_plain() {
        for good in [
            "main",
            "feature/x",
            "v1.2",
            "a_b-c",
            "修复",
            "dependabot/npm/x@1",
        ] {
            assert_eq!(check_branch(good), Ok(()), "{good}");
        }
        let long = "x".repeat(MAX_BRANCH + 1);
        for bad in [
            "",
            "@",
            "a..b",
            "../a",
            "a/../b",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a/.b",
            "-a",
            "a.lock",
            "a/b.lock/c",
            "a b",
            "a\nb",
            "a\u{202e}b",
            "a:b",
            "a~1",
            "a^",
            "a?",
            "a*",
            "a[",
            "a\\b",
            "a.",
            &long,
        ] {
            assert!(check_branch(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_file_of_a_preview_has_its_own_name_and_host() {
        let text = "name='shop'\ncommand='x'\ndomains=['shop.test', 'a.test/b']\nshare={'/p'='q'}\n[limits]\nmemory='64M'\n[cron.night]\nschedule='0 3 * * *'\ncommand='y'\n[preview]\nmax=2\n";
        let name = AppName::new("shop--x").expect("good");
        let made = file(text, &name, Some("x.shop.test")).expect("good");
        let spec = spec::parse("t", &made).expect("good");
        assert_eq!(spec.name, name);
        assert_eq!(spec.domains.len(), 1);
        assert_eq!(spec.domains[0].to_string(), "x.shop.test");
        assert_eq!(spec.caps.memory_bytes, 64 << 20);
        assert!(spec.cron.is_empty() && spec.share.is_empty() && spec.preview.is_none());
        assert!(file(text, &name, None).is_err());
        assert!(file("name=", &name, None).is_err());
        let background = "name='w'\n[workers.a]\ncommand='x'";
        assert!(file(background, &name, None).is_ok());
    }
}
