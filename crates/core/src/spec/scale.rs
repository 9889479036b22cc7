//! How many instances run, where that follows what there is to do.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::{AppSpec, Check, RawSpec, Run};
use crate::scale::Scale;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawScale {
    /// The fewest instances, 1 to 64; default 1.
    #[schemars(with = "Option<u32>")]
    min: Option<Spanned<i64>>,
    /// The most instances, 1 to 64.
    #[schemars(with = "u32")]
    max: Spanned<i64>,
    /// How much of `limits.cpu` an instance is meant to use, in percent, 1 to 100; default 60.
    #[schemars(with = "Option<u32>")]
    cpu: Option<Spanned<i64>>,
    /// How many requests under way an instance is meant to have, WebSockets among them; default 32.
    #[schemars(with = "Option<u32>")]
    requests: Option<Spanned<i64>>,
    /// So long fewer instances must have been enough before there are fewer; default "60s".
    #[schemars(with = "Option<String>")]
    cooldown: Option<Spanned<String>>,
}

const MOST: i64 = 64;

pub(super) const SINGLE_WRITER: &str = "data has a single writer: leave instances at 1, or name a strategy if several instances may share /data";

impl Check<'_> {
    pub(super) fn scale(&mut self, raw: &RawSpec, run: &Run) -> Option<Scale> {
        let scale = raw.scale.as_ref()?;
        let at = scale.max.span().start;
        if let Some(count) = &raw.instances {
            let message = "`instances` is a fixed number; with `[scale]` leave it out and set scale.min and scale.max";
            self.wrong(count.span().start, message);
        }
        if !run.has_instances() {
            self.wrong(
                at,
                "`scale` goes with `command`: nothing else has instances",
            );
        }
        let max = self.bounded(&scale.max, 1, MOST, "scale.max") as u32;
        let min = scale
            .min
            .as_ref()
            .map_or(1, |min| self.bounded(min, 1, MOST, "scale.min") as u32);
        let above = |min: &&Spanned<i64>| {
            let (min, max) = (*min.get_ref(), *scale.max.get_ref());
            (1..=MOST).contains(&min) && (1..min).contains(&max)
        };
        if let Some(min) = scale.min.as_ref().filter(above) {
            self.wrong(min.span().start, "scale.min is above scale.max");
        }
        if raw.data && max > 1 && raw.strategy.is_none() {
            self.wrong(at, SINGLE_WRITER);
        }
        let s = Duration::from_secs;
        Some(Scale {
            min,
            max: max.max(min),
            cpu: scale
                .cpu
                .as_ref()
                .map_or(60, |cpu| self.bounded(cpu, 1, 100, "scale.cpu") as u32),
            requests: scale.requests.as_ref().map_or(32, |count| {
                self.bounded(count, 1, 1_000_000, "scale.requests") as u32
            }),
            cooldown: self.time(&scale.cooldown, s(60), s(1), s(3600)),
        })
    }
}

impl AppSpec {
    /// How many instances there may be by its own doing.
    pub fn most_instances(&self) -> u32 {
        self.scale.map_or(self.instances, |scale| scale.max)
    }

    /// How many instances there are, for people.
    pub fn show_instances(&self) -> String {
        match &self.scale {
            Some(scale) => format!("{} to {}", scale.min, scale.max),
            None => self.instances.to_string(),
        }
    }
}
