//! `[links]`: other apps that this one may call, by a name of its own for each; and `callers`, the other side's consent.

use std::collections::BTreeMap;

use toml::Spanned;

use super::{Check, RawSpec, Run};
use crate::name::AppName;

/// The most links of one app: each is a listening socket.
pub const MAX_LINKS: usize = 32;
/// Where links are listened on in the caller's network.
pub const PORT: u16 = 80;

/// The address of an app's `index`th link, by name, in its own network.
pub fn address(index: usize) -> [u8; 4] {
    [127, 0, 0, 10 + (index % MAX_LINKS) as u8]
}

impl Check<'_> {
    pub(super) fn links(&mut self, raw: &RawSpec, run: &Run) -> BTreeMap<String, AppName> {
        let mut links = BTreeMap::new();
        for (name, app) in &raw.links {
            let at = name.span().start;
            if !matches!(run, Run::Command(_) | Run::Background) {
                self.wrong(
                    at,
                    "`links` goes with `command`: nothing else calls anybody",
                );
                return links;
            }
            if links.len() >= MAX_LINKS {
                self.wrong(at, format!("an app has at most {MAX_LINKS} links"));
                return links;
            }
            match (AppName::new(name.get_ref()), AppName::new(app.get_ref())) {
                (Err(message), _) => self.wrong(at, message),
                (_, Err(message)) => self.wrong(app.span().start, message),
                (Ok(_), Ok(to)) if to.as_str() == raw.name.get_ref() => {
                    self.wrong(app.span().start, "an app reaches itself at 127.0.0.1");
                }
                (Ok(name), Ok(to)) => {
                    links.insert(name.as_str().to_owned(), to);
                }
            }
        }
        if let (false, Some(port)) = (links.is_empty(), &raw.port)
            && *port.get_ref() == i64::from(PORT)
        {
            self.wrong(
                port.span().start,
                "links are on port 80 of the app's own network; have the app listen on another port",
            );
        }
        links
    }

    pub(super) fn callers(&mut self, list: &[Spanned<String>]) -> Vec<AppName> {
        let mut callers = Vec::new();
        for caller in list.iter().take(1000) {
            match AppName::new(caller.get_ref()) {
                Ok(name) if callers.contains(&name) => {
                    self.wrong(caller.span().start, format!("{name} is named twice"));
                }
                Ok(name) => callers.push(name),
                Err(message) => self.wrong(caller.span().start, message),
            }
        }
        callers
    }
}

#[cfg(test)]
mod tests {
    use crate::spec::parse;

    fn problem(text: &str) -> String {
        let text = format!("name = 'shop'\ncommand = 'run'\n{text}");
        parse("hutong.toml", &text)
            .expect_err("it is wrong")
            .to_string()
    }

    #[test]
    fn links_name_other_apps() {
        let text = "name = 'shop'\ncommand = 'run'\ncallers = ['web', 'admin']\n[links]\norders = 'orders-app'\n";
        let spec = parse("hutong.toml", text).expect("a good file");
        assert_eq!(spec.links["orders"].as_str(), "orders-app");
        assert_eq!(spec.callers.len(), 2);
    }

    #[test]
    fn wrong_links_are_refused_where_they_are() {
        for (text, said) in [
            (
                "[links]\nOrders = 'a'",
                "hutong.toml:4:1: a name has lower-case",
            ),
            (
                "[links]\norders = 'a_b'",
                "hutong.toml:4:10: a name has lower-case",
            ),
            (
                "[links]\norders = 'shop'",
                "hutong.toml:4:10: an app reaches itself",
            ),
            (
                "port = 80\n[links]\norders = 'b'",
                "hutong.toml:3:8: links are on port 80",
            ),
            ("callers = ['a', 'a']", "hutong.toml:3:17: a is named twice"),
        ] {
            let found = problem(text);
            assert!(found.starts_with(said), "{text}: {found}");
        }
        let many: String = (0..33).map(|n| format!("l{n} = 'b'\n")).collect();
        assert!(problem(&format!("[links]\n{many}")).contains("at most 32 links"));
        let text = "name = 'a'\nstatic = 'dist'\n[links]\nb = 'b'";
        let found = parse("hutong.toml", text)
            .expect_err("it is wrong")
            .to_string();
        assert!(found.contains("goes with `command`"), "{found}");
    }
}
