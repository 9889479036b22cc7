//! `.dockerignore`: which files are no part of a Dockerfile's context. Patterns as Docker has them: one a line, `#`
//! begins a comment, `*` and `?` stay within a path's part, `**` does not, `!` takes back, the last that fits decides,
//! and what fits a folder fits all below it.

/// The file is not longer, in bytes.
pub const MAX_BYTES: usize = 64 << 10;
/// Parts of one pattern; a longer one is left out.
const MAX_PARTS: usize = 256;
/// Patterns at most; more are left out, so that more is sent than need be, never less.
const MAX_PATTERNS: usize = 1000;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    patterns: Vec<(Vec<String>, Verdict)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Out,
    In,
}

impl Ignored {
    pub fn parse(text: &str) -> Self {
        let text = text.trim_start_matches('\u{feff}');
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let patterns = lines.filter_map(|line| {
            let line = line.trim();
            let (line, verdict) = match line.strip_prefix('!') {
                Some(rest) => (rest.trim(), Verdict::In),
                None => (line, Verdict::Out),
            };
            let mut parts: Vec<String> = Vec::new();
            for part in line.split('/') {
                match part {
                    "" | "." => {}
                    ".." => drop(parts.pop()),
                    part => parts.push(part.to_owned()),
                }
            }
            (1..=MAX_PARTS)
                .contains(&parts.len())
                .then_some((parts, verdict))
        });
        Ignored {
            patterns: patterns.take(MAX_PATTERNS).collect(),
        }
    }

    /// Whether a file is left out. `path` has `/` between its parts.
    pub fn has(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        let mut out = false;
        for (pattern, verdict) in &self.patterns {
            // One that would change nothing need not be looked at.
            if out == (*verdict == Verdict::In) && fits_or_above(pattern, &parts) {
                out = *verdict == Verdict::Out;
            }
        }
        out
    }
}

/// Whether a pattern fits a path, or a folder that it is in. By rows rather than by recursion: many `**` must not take for
/// ever; and by one table for all folders of the path.
fn fits_or_above(pattern: &[String], parts: &[&str]) -> bool {
    let mut reached = vec![false; parts.len() + 1];
    reached[0] = true;
    for piece in pattern {
        let mut next = vec![false; parts.len() + 1];
        if piece == "**" {
            let first = reached.iter().position(|there| *there);
            if let Some(first) = first {
                next[first..].fill(true);
            }
        } else {
            for (index, part) in parts.iter().enumerate() {
                next[index + 1] = reached[index] && part_fits(piece, part);
            }
        }
        if !next.contains(&true) {
            return false;
        }
        reached = next;
    }
    // The path itself, or one of the folders that it is in; not the context as a whole.
    reached[1..].contains(&true)
}

/// `*`, `?`, `[a-z]`, `[^a]` and `\` within one part of a path, as Go's `filepath.Match` has them.
fn part_fits(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let next = match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            Some(_) => one_fits(&pattern[p..], text[t]),
            None => None,
        };
        match (next, star) {
            (Some(taken), _) => {
                p += taken;
                t += 1;
            }
            (None, Some((at, from))) => {
                star = Some((at, from + 1));
                p = at + 1;
                t = from + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// How much of the pattern stands for this character, if it does.
fn one_fits(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', literal, ..] => (*literal == c).then_some(2),
        ['[', rest @ ..] => {
            let end = rest.iter().skip(1).position(|c| *c == ']')? + 1;
            let (negated, class) = match &rest[..end] {
                ['^', class @ ..] => (true, class),
                class => (false, class),
            };
            let mut class = class.iter();
            let mut inside = false;
            while let Some(low) = class.next() {
                let mut ahead = class.clone();
                match (ahead.next(), ahead.next()) {
                    (Some('-'), Some(high)) => {
                        inside |= (*low..=*high).contains(&c);
                        class = ahead;
                    }
                    _ => inside |= *low == c,
                }
            }
            (inside != negated).then_some(end + 2)
        }
        [literal, ..] => (*literal == c).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_as_docker_reads_them() {
        let ignored = Ignored::parse(
            "# a comment\nnode_modules\n/dist/\n*.log\n**/*.tmp\ndocs/**\n!docs/keep.md\nsecret?.txt\n[a-c].bin\n[^x].dat\n",
        );
        for out in [
            "node_modules/a/b.js",
            "dist/x",
            "a.log",
            "deep/er/x.tmp",
            "x.tmp",
            "docs/a/b",
            "secret1.txt",
            "b.bin",
            "y.dat",
        ] {
            assert!(ignored.has(out), "{out}");
        }
        for stays in [
            "src/node_modules/x",
            "deep/a.log",
            "docs/keep.md",
            "secret.txt",
            "d.bin",
            "x.dat",
            "src/dist/x",
        ] {
            assert!(!ignored.has(stays), "{stays}");
        }
    }

    #[test]
    fn everything_but_something() {
        let ignored = Ignored::parse("*\n!src\n!Dockerfile\nsrc/*.md\n");
        assert!(!ignored.has("src/a.rs") && !ignored.has("Dockerfile"));
        assert!(ignored.has("README") && ignored.has("src/a.md"));
    }

    #[test]
    fn nothing_takes_for_ever_and_nothing_panics() {
        let long = format!("{}x\n", "**/*a*a*a*a*a*/".repeat(100));
        let path = "a/".repeat(200);
        assert!(!Ignored::parse(&long).has(&path));
        let many = format!("{}x\n!a\n", "**/".repeat(MAX_PARTS));
        assert!(!Ignored::parse(&many).has("a/x"));
        for odd in ["[", "[]", "[^", "\\", "!", "!!", "..", "[a-", "*[", "/"] {
            Ignored::parse(odd).has("a/b");
        }
    }
}
