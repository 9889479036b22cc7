//! Which branch is deployed, and what becomes of the others.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::{Check, Domain, RawSpec};
use crate::name;
use crate::preview::check_branch;

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGit {
    /// The branch whose pushes are deployed; default "main", or "master" where there is no "main".
    #[schemars(with = "Option<String>")]
    branch: Option<Spanned<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPreview {
    /// Previews are at `BRANCH.` and this; default the app's first domain.
    #[schemars(with = "Option<String>")]
    domain: Option<Spanned<String>>,
    /// How long after its last push a preview is removed, 1 minute to 90 days; default "7d".
    #[schemars(with = "Option<String>")]
    lifetime: Option<Spanned<String>>,
    /// What a new preview finds in /data: "empty" (the default), or "copy": what the app itself has there.
    #[serde(default)]
    data: PreviewData,
    /// How many there may be at once, 1 to 50; default 5.
    #[schemars(with = "Option<u32>")]
    max: Option<Spanned<i64>>,
}

/// What a new preview finds in `/data`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PreviewData {
    #[default]
    Empty,
    /// What the app has in its own, as it is when the preview is made.
    Copy,
}

/// Environments of branches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// Their hosts are below this one; none for an app that nobody visits.
    pub domain: Option<String>,
    /// Since the last push.
    pub lifetime: Duration,
    pub data: PreviewData,
    /// So many at once.
    pub max: u32,
}

impl Check<'_> {
    pub(super) fn branch(&mut self, raw: &RawGit) -> Option<String> {
        let branch = raw.branch.as_ref()?;
        if let Err(message) = check_branch(branch.get_ref()) {
            self.wrong(branch.span().start, message);
            return None;
        }
        Some(branch.get_ref().clone())
    }

    pub(super) fn preview(&mut self, raw: &RawSpec, domains: &[Domain]) -> Option<Preview> {
        let preview = raw.preview.as_ref()?;
        let domain = match &preview.domain {
            None => {
                let own = domains.iter().map(|domain| domain.host.as_str());
                own.map(|host| host.trim_start_matches("*."))
                    .next()
                    .map(str::to_owned)
            }
            Some(text) => match name::parse_host(text.get_ref()) {
                Ok(host) if !host.starts_with("*.") => Some(host),
                Ok(_) => {
                    let message = "previews are at BRANCH and this domain: leave out `*.`";
                    self.wrong(text.span().start, message);
                    None
                }
                Err(message) => {
                    self.wrong(text.span().start, message);
                    None
                }
            },
        };
        let s = Duration::from_secs;
        Some(Preview {
            domain,
            lifetime: self.time(&preview.lifetime, s(7 * 86_400), s(60), s(90 * 86_400)),
            data: preview.data,
            max: match &preview.max {
                None => 5,
                Some(count) => self.bounded(count, 1, 50, "preview.max") as u32,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    #[test]
    fn previews_are_below_the_first_domain() {
        let app = "name='a'\ncommand='x'\ndomains=['shop.test','b.test']\n";
        let spec = |more: &str| parse("t", &format!("{app}{more}"));
        assert_eq!(spec("").expect("good").preview, None);
        let preview = spec("[preview]").expect("good").preview.expect("a table");
        assert_eq!(preview.domain.as_deref(), Some("shop.test"));
        assert_eq!((preview.lifetime.as_secs(), preview.max), (604_800, 5));
        let preview = spec("[preview]\ndomain = 'P.test'\nlifetime = '2h'\nmax = 2");
        let preview = preview.expect("good").preview.expect("a table");
        assert_eq!(preview.domain.as_deref(), Some("p.test"));
        assert_eq!((preview.lifetime.as_secs(), preview.max), (7200, 2));
        for bad in [
            "[preview]\ndomain = '*.p.test'",
            "[preview]\nlifetime = '1s'",
            "[preview]\nmax = 0",
            "[preview]\ndata = 'all'",
            "[git]\nbranch = '../x'",
            "[git]\nbranch = ''",
        ] {
            assert!(spec(bad).is_err(), "{bad}");
        }
        let branch = spec("[git]\nbranch = 'release/1'").expect("good").branch;
        assert_eq!(branch.as_deref(), Some("release/1"));
    }
}
