//! How a new release takes over where its owner wants more than one way of it: on trial, or with the way back kept open.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::{Check, Number, RawSpec, Run, Strategy};
use crate::canary::{Canary, check_variant};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCanary {
    /// Shares of the visitors in percent, ascending; the last is 100. Default [5, 25, 100].
    #[schemars(with = "Option<Vec<u32>>")]
    steps: Option<Spanned<Vec<Spanned<i64>>>>,
    /// How long each step lasts at least; default "5m".
    #[schemars(with = "Option<String>")]
    every: Option<Spanned<String>>,
    /// Who sends this header gets the new release, such as "x-canary: yes".
    #[schemars(with = "Option<String>")]
    header: Option<Spanned<String>>,
    /// Who sends this cookie gets the new release, such as "canary=yes".
    #[schemars(with = "Option<String>")]
    cookie: Option<Spanned<String>>,
    /// Requests that each release must have had in a step before there is a next one; default 200.
    #[schemars(with = "Option<u64>")]
    min_requests: Option<Spanned<i64>>,
    /// By how many percentage points more of its requests may fail than of the stable release's, 0 to 100; default 1.
    #[schemars(with = "Option<f64>")]
    errors: Option<Spanned<Number>>,
    /// How many times the stable release's time its answers may take, 1 to 100; default 1.5.
    #[schemars(with = "Option<f64>")]
    latency: Option<Spanned<Number>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAb {
    /// What the new release is called: a name as an app has, and not "main", which is the one that serves.
    #[schemars(with = "Option<String>")]
    variant: Option<Spanned<String>>,
    /// Its part of the visitors in percent, 1 to 99; default 50.
    #[schemars(with = "Option<u32>")]
    share: Option<Spanned<i64>>,
    /// Who sends this header gets the variant, such as "x-variant: green"; default: that of `[canary]`.
    #[schemars(with = "Option<String>")]
    header: Option<Spanned<String>>,
    /// Who sends this cookie gets the variant, such as "variant=green"; default: that of `[canary]`.
    #[schemars(with = "Option<String>")]
    cookie: Option<Spanned<String>>,
}

/// Of a variant, where nobody says another, in percent.
const HALF: u32 = 50;
const MAX_STEPS: usize = 20;
/// A value that somebody types, or a browser's extension sets.
const MAX_VALUE: usize = 200;

impl Check<'_> {
    /// The strategy, and the canary if it is one.
    pub(super) fn strategy(&mut self, raw: &RawSpec, run: &Run) -> (Strategy, Option<Canary>) {
        let default = match raw.data {
            true => Strategy::Recreate,
            false => Strategy::Rolling,
        };
        let strategy = raw.strategy.as_ref().map_or(default, |s| *s.get_ref());
        let is_double = matches!(
            strategy,
            Strategy::BlueGreen | Strategy::Canary | Strategy::Ab
        );
        if let Some(named) = raw.strategy.as_ref().filter(|_| is_double)
            && !run.has_instances()
        {
            let message = "this strategy goes with `command`: of nothing else two releases run beside each other";
            self.wrong(named.span().start, message);
        }
        if strategy == Strategy::Ab {
            return (strategy, Some(self.ab(raw)));
        }
        if let Some(ab) = &raw.ab {
            self.wrong(ab.span().start, "`[ab]` goes with `strategy = \"ab\"`");
        }
        let canary = raw.canary.as_ref();
        if strategy == Strategy::Canary {
            return (strategy, Some(self.canary(canary.map(Spanned::get_ref))));
        }
        if let Some(canary) = canary {
            let message = "`[canary]` goes with `strategy = \"canary\"`";
            self.wrong(canary.span().start, message);
        }
        (strategy, None)
    }

    /// How long the release before stays ready.
    pub(super) fn keep(&mut self, raw: &RawSpec, strategy: Strategy) -> Duration {
        let keep = &raw.timeouts.keep;
        // A variant of an app whose releases take over by blue-green has its file.
        let may_be_said = matches!(strategy, Strategy::BlueGreen | Strategy::Ab);
        if let Some(keep) = keep.as_ref().filter(|_| !may_be_said) {
            let message = "`timeouts.keep` goes with `strategy = \"blue-green\"`";
            self.wrong(keep.span().start, message);
        }
        let s = Duration::from_secs;
        self.time(keep, s(600), s(1), s(86_400))
    }

    fn canary(&mut self, raw: Option<&RawCanary>) -> Canary {
        let s = Duration::from_secs;
        let default = Canary {
            variant: None,
            steps: vec![5, 25, 100],
            every: s(300),
            header: None,
            cookie: None,
            min_requests: 200,
            errors: 100,
            latency: 150,
        };
        let Some(raw) = raw else { return default };
        Canary {
            variant: None,
            steps: match &raw.steps {
                Some(steps) => self.steps(steps),
                None => default.steps,
            },
            every: self.time(&raw.every, default.every, s(1), s(7 * 86_400)),
            header: self.header(&raw.header, "x-canary: yes"),
            cookie: self.cookie(&raw.cookie, "canary=yes"),
            min_requests: raw.min_requests.as_ref().map_or(200, |count| {
                self.bounded(count, 0, 1_000_000_000, "canary.min_requests") as u64
            }),
            errors: self.hundredths(&raw.errors, default.errors, (0.0, 100.0), "canary.errors"),
            latency: self.hundredths(
                &raw.latency,
                default.latency,
                (1.0, 100.0),
                "canary.latency",
            ),
        }
    }

    /// A canary that stays at its share. `[canary]` may be there for other releases: its testers are those of this one,
    /// too, unless it has its own.
    fn ab(&mut self, raw: &RawSpec) -> Canary {
        let mut found = self.canary(raw.canary.as_ref().map(Spanned::get_ref));
        let at = raw.strategy.as_ref().map_or(0, |named| named.span().start);
        let ab = raw.ab.as_ref().map(Spanned::get_ref);
        match ab.and_then(|ab| ab.variant.as_ref()) {
            Some(named) => {
                if let Err(message) = check_variant(named.get_ref()) {
                    self.wrong(named.span().start, message);
                }
                found.variant = Some(named.get_ref().clone());
            }
            None => {
                let message = "`strategy = \"ab\"` needs a name for the new release: [ab] variant = \"green\"";
                self.wrong(at, message);
            }
        }
        let share = ab.and_then(|ab| ab.share.as_ref());
        let share = share.map_or(HALF, |share| self.bounded(share, 1, 99, "ab.share") as u32);
        found.steps = vec![share, 100];
        if let Some(ab) = ab {
            let header = self.header(&ab.header, "x-variant: green");
            let cookie = self.cookie(&ab.cookie, "variant=green");
            found.header = header.or(found.header);
            found.cookie = cookie.or(found.cookie);
        }
        found
    }

    fn header(&mut self, raw: &Option<Spanned<String>>, example: &str) -> Option<(String, String)> {
        let (name, value) = self.tester(raw.as_ref()?, ':', example)?;
        Some((name.to_ascii_lowercase(), value))
    }

    fn cookie(&mut self, raw: &Option<Spanned<String>>, example: &str) -> Option<(String, String)> {
        self.tester(raw.as_ref()?, '=', example)
    }

    fn steps(&mut self, raw: &Spanned<Vec<Spanned<i64>>>) -> Vec<u32> {
        let mut steps: Vec<u32> = Vec::new();
        for step in raw.get_ref() {
            let share = self.bounded(step, 1, 100, "a step") as u32;
            if steps.last().is_some_and(|last| *last >= share) {
                let message = "each step is a larger share than the one before it";
                self.wrong(step.span().start, message);
            }
            steps.push(share);
        }
        if steps.last() != Some(&100) || steps.len() > MAX_STEPS {
            let message =
                format!("canary.steps are at most {MAX_STEPS}, and the last is 100: all visitors");
            self.wrong(raw.span().start, message);
        }
        steps
    }

    /// What testers send: a name and a value.
    fn tester(
        &mut self,
        text: &Spanned<String>,
        between: char,
        example: &str,
    ) -> Option<(String, String)> {
        // RFC 9110 §5.6.2; of a cookie's name RFC 6265 §4.1.1 says the same.
        let is_token = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
        let found = text.get_ref().split_once(between).filter(|(name, value)| {
            let (name, value) = (name.trim(), value.trim());
            let is_plain = value
                .bytes()
                .all(|c| (0x20..0x7f).contains(&c) && c != b';');
            !name.is_empty()
                && name.bytes().all(is_token)
                && !value.is_empty()
                && is_plain
                && value.len() <= MAX_VALUE
                && name.len() <= MAX_VALUE
        });
        if found.is_none() {
            let message = format!("write a name and a value, such as \"{example}\"");
            self.wrong(text.span().start, message);
        }
        found.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
    }

    /// A number with two decimals at most, in hundredths.
    fn hundredths(
        &mut self,
        raw: &Option<Spanned<Number>>,
        default: u32,
        (low, high): (f64, f64),
        what: &str,
    ) -> u32 {
        let Some(number) = raw else { return default };
        let value = match *number.get_ref() {
            Number::Whole(whole) => whole as f64,
            Number::Part(part) => part,
        };
        if !(low..=high).contains(&value) {
            let message = format!("{what} is {low} to {high}, not {value}");
            self.wrong(number.span().start, message);
            return default;
        }
        (value * 100.0).round() as u32
    }
}

/// The text of a `hutong.toml` whose release is this variant, whatever strategy it names.
pub fn with_variant(text: &str, name: &str, share: Option<u32>) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Named {
        strategy: Option<Spanned<String>>,
        ab: Option<Ab>,
    }
    #[derive(Deserialize)]
    struct Ab {
        variant: Option<Spanned<String>>,
        share: Option<Spanned<i64>>,
    }
    check_variant(name).map_err(|error| format!("the variant `{name}`: {error}"))?;
    if share.is_some_and(|share| !(1..=99).contains(&share)) {
        return Err("the share of a variant is 1 to 99 percent".to_owned());
    }
    let named: Named = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let (mut edits, mut top) = (Vec::new(), String::new());
    match &named.strategy {
        Some(strategy) => edits.push((strategy.span(), "\"ab\"".to_owned())),
        None => top.push_str("strategy = \"ab\"\n"),
    }
    let missing = |key: &str| {
        format!(
            "`[ab]` of hutong.toml says no `{key}` that could be replaced: write one, or take the table out"
        )
    };
    match &named.ab {
        None => {
            let share = share.unwrap_or(HALF);
            top.push_str(&format!(
                "ab = {{ variant = \"{name}\", share = {share} }}\n"
            ));
        }
        Some(ab) => {
            let variant = ab.variant.as_ref().ok_or_else(|| missing("variant"))?;
            edits.push((variant.span(), format!("\"{name}\"")));
            if let Some(share) = share {
                let before = ab.share.as_ref().ok_or_else(|| missing("share"))?;
                edits.push((before.span(), share.to_string()));
            }
        }
    }
    // From the end on: what comes before stays where it is.
    edits.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
    let mut text = text.to_owned();
    for (span, new) in edits {
        text.replace_range(span, &new);
    }
    Ok(super::on_top(&top, &text))
}

#[cfg(test)]
mod tests {
    use super::super::{AppSpec, parse};
    use super::*;

    fn spec(more: &str) -> AppSpec {
        parse("t", &format!("name='a'\ncommand='x'\n{more}")).expect("good")
    }

    fn errors(text: &str) -> String {
        parse("hutong.toml", text)
            .expect_err("a mistake")
            .to_string()
    }

    #[test]
    fn a_canary_has_good_defaults() {
        let canary = spec("strategy='canary'").canary.expect("there");
        assert_eq!(canary.steps, [5, 25, 100]);
        assert_eq!(
            (canary.share(1), canary.share(9), canary.trials()),
            (25, 100, 2)
        );
        assert_eq!(canary.every, Duration::from_secs(300));
        assert_eq!((canary.errors, canary.latency), (100, 150));
        assert_eq!(spec("").canary, None);
        let green = spec("strategy='blue-green'\n[timeouts]\nkeep='2m'");
        assert_eq!(green.strategy, Strategy::BlueGreen);
        assert_eq!(green.keep, Duration::from_secs(120));
    }

    #[test]
    fn all_of_it_can_be_said() {
        let canary = spec(
            "strategy='canary'\n[canary]\nsteps=[1, 100]\nevery='2s'\nheader='X-Try: me'\ncookie='try=me'\nmin_requests=0\nerrors=0.25\nlatency=2",
        );
        let canary = canary.canary.expect("there");
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(canary.steps, [1, 100]);
        assert_eq!(canary.header, pair("x-try", "me"));
        assert_eq!(canary.cookie, pair("try", "me"));
        assert_eq!(
            (canary.min_requests, canary.errors, canary.latency),
            (0, 25, 200)
        );
    }

    #[test]
    fn mistakes_have_their_place() {
        assert_eq!(
            errors("name='a'\nstatic='x'\nstrategy='canary'"),
            "hutong.toml:3:10: this strategy goes with `command`: of nothing else two releases run beside each other"
        );
        let found = errors("name='a'\ncommand='x'\nstrategy='rolling'\n[canary]\nevery='1m'");
        assert!(
            found.contains("`[canary]` goes with `strategy = \"canary\"`"),
            "{found}"
        );
        assert_eq!(
            errors("name='a'\ncommand='x'\ntimeouts={keep='1m'}"),
            "hutong.toml:3:16: `timeouts.keep` goes with `strategy = \"blue-green\"`"
        );
        assert_eq!(
            errors(
                "name='a'\ncommand='x'\nstrategy='canary'\n[canary]\nsteps=[5, 5, 101]\nheader='x'\ncookie='a=b;c'\nerrors=101\nlatency=0.5"
            ),
            "hutong.toml:5:7: canary.steps are at most 20, and the last is 100: all visitors\n\
             hutong.toml:5:11: each step is a larger share than the one before it\n\
             hutong.toml:5:14: a step is 1 to 100, not 101\n\
             hutong.toml:5:14: each step is a larger share than the one before it\n\
             hutong.toml:6:8: write a name and a value, such as \"x-canary: yes\"\n\
             hutong.toml:7:8: write a name and a value, such as \"canary=yes\"\n\
             hutong.toml:8:8: canary.errors is 0 to 100, not 101\n\
             hutong.toml:9:9: canary.latency is 1 to 100, not 0.5"
        );
    }

    #[test]
    fn a_variant_stays_at_its_share() {
        let green = spec("strategy='ab'\n[ab]\nvariant='green'");
        assert_eq!(green.strategy, Strategy::Ab);
        let green = green.canary.expect("there");
        assert_eq!(green.variant.as_deref(), Some("green"));
        assert_eq!(green.steps, [50, 100]);
        assert_eq!((green.header, green.cookie), (None, None));
        let canary = "[canary]\nsteps=[5, 100]\nheader='X-Try: me'\ncookie='try=me'";
        let blue = spec(&format!(
            "strategy='ab'\n[ab]\nvariant='blue'\nshare=20\ncookie='b=c'\n{canary}"
        ));
        let blue = blue.canary.expect("there");
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!((blue.share(0), blue.share(1)), (20, 100));
        assert_eq!(
            (blue.header, blue.cookie),
            (pair("x-try", "me"), pair("b", "c"))
        );
    }

    #[test]
    fn a_variant_has_a_name_and_leaves_visitors_to_the_other() {
        assert_eq!(
            errors("name='a'\ncommand='x'\nstrategy='ab'"),
            "hutong.toml:3:10: `strategy = \"ab\"` needs a name for the new release: [ab] variant = \"green\""
        );
        assert_eq!(
            errors("name='a'\ncommand='x'\nstrategy='ab'\n[ab]\nvariant='main'\nshare=100"),
            "hutong.toml:5:9: `main` is the release that serves; call the new one something else\n\
             hutong.toml:6:7: ab.share is 1 to 99, not 100"
        );
        let found = errors("name='a'\ncommand='x'\n[ab]\nvariant='green'");
        assert!(
            found.contains("`[ab]` goes with `strategy = \"ab\"`"),
            "{found}"
        );
    }

    #[test]
    fn any_file_can_be_made_a_variants() {
        let made = |text: &str, share| {
            let text = with_variant(text, "green", share).expect("good");
            let canary = parse("t", &text).expect("good").canary.expect("there");
            (canary.variant.clone().unwrap_or_default(), canary.share(0))
        };
        let green = |share: u32| ("green".to_owned(), share);
        let plain = "name='a'\ncommand='x'\n";
        assert_eq!(made(plain, None), green(50));
        assert_eq!(made(plain, Some(20)), green(20));
        let canary = format!("strategy = 'canary' # as ever\n{plain}[canary]\nsteps=[5, 100]");
        assert_eq!(made(&canary, Some(1)), green(1));
        // An editor of Windows wrote it.
        assert_eq!(made(&format!("\u{feff}{plain}"), None), green(50));
        let marked = format!("\u{feff}strategy='rolling'\n{plain}");
        assert_eq!(made(&marked, Some(3)), green(3));
        let double = format!("{plain}strategy='blue-green'\n[timeouts]\nkeep='1m'\n");
        assert_eq!(made(&double, None), green(50));
        let unnamed = format!("{plain}strategy='ab'\n");
        assert_eq!(made(&unnamed, None), green(50));
        let ab = format!("{plain}strategy='ab'\n[ab]\nshare=7\nvariant='blue'\n");
        assert_eq!(made(&ab, None), green(7));
        assert_eq!(made(&ab, Some(80)), green(80));
        let short = format!("{plain}strategy='ab'\n[ab]\nvariant='blue'\n");
        assert_eq!(made(&short, None), green(50));
        let wrong = with_variant(&short, "green", Some(80)).expect_err("nowhere to write it");
        assert!(wrong.contains("says no `share`"), "{wrong}");
        for name in ["", "main", "Green", "a b", "g\"x"] {
            assert!(with_variant(plain, name, None).is_err(), "{name}");
        }
        assert!(with_variant(plain, "green", Some(100)).is_err());
    }
}
