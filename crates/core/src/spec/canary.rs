//! How a new release takes over where its owner wants more than one way of it: on trial, or with the way back kept open.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::{Check, Number, RawSpec, Run, Strategy};
use crate::canary::Canary;

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
        let is_double = matches!(strategy, Strategy::BlueGreen | Strategy::Canary);
        if let Some(named) = raw.strategy.as_ref().filter(|_| is_double)
            && !run.has_instances()
        {
            let message = "this strategy goes with `command`: of nothing else two releases run beside each other";
            self.wrong(named.span().start, message);
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
        if let Some(keep) = keep.as_ref().filter(|_| strategy != Strategy::BlueGreen) {
            let message = "`timeouts.keep` goes with `strategy = \"blue-green\"`";
            self.wrong(keep.span().start, message);
        }
        let s = Duration::from_secs;
        self.time(keep, s(600), s(1), s(86_400))
    }

    fn canary(&mut self, raw: Option<&RawCanary>) -> Canary {
        let s = Duration::from_secs;
        let default = Canary {
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
            steps: match &raw.steps {
                Some(steps) => self.steps(steps),
                None => default.steps,
            },
            every: self.time(&raw.every, default.every, s(1), s(7 * 86_400)),
            header: raw.header.as_ref().and_then(|text| {
                let (name, value) = self.tester(text, ':', "x-canary: yes")?;
                Some((name.to_ascii_lowercase(), value))
            }),
            cookie: raw
                .cookie
                .as_ref()
                .and_then(|text| self.tester(text, '=', "canary=yes")),
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
}
