//! Whether a new release that gets a part of the visitors is to get more of them, or none. Pure: what was counted goes
//! in, a [`Verdict`] comes out.
//!
//! Both releases are counted over the same time, a step of the canary, in which its share stays the same: visitors who
//! came in a bad hour weigh in both alike.
//!
//! **The test.** If the new release is no worse, each request that fails is one of its own with the probability of its
//! part of all requests, whatever makes requests fail and however often they do. So what is known of the failures is a
//! likelihood ratio: how much likelier the found split of the failures between the two is if the canary's odds to fail
//! are higher by a factor, on average over [`ODDS`]. Of a canary that is no worse this is a martingale that begins at 1,
//! and by Ville's inequality it ever reaches 1/α with a probability of at most α, however often somebody looks. A test
//! of fixed size (two proportions' z, Fisher's) looked at every second would sooner or later call every release worse,
//! and z is wrong where the stable release has next to no failures, which is the usual case. Looking all the time is
//! what rolls a bad release back after seconds.
//!
//! A difference that can be told is not yet one that matters: the canary must also fail `errors` percentage points more
//! often.
//!
//! **Latency** is judged by the same test: a request counts as slow that takes longer than the stable release's 95th
//! (99th) percentile allows, times `latency` and at least [`SLACK_US`] more; [`BURST`] of them count as one. It is looked at when the step's time is
//! over and not before, because a process that has just begun is slower for a while.

use std::time::Duration;

use crate::name::AppName;

/// How a canary goes on, as its owner declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// Its name, if it is one side of an A/B test: that has one share, nobody judges it, and its owner ends it.
    pub variant: Option<String>,
    /// Shares of the visitors in percent, ascending; the last is 100, with which it takes over.
    pub steps: Vec<u32>,
    /// How long each step lasts at least.
    pub every: Duration,
    /// Who sends this gets the canary: name in lower case, and value.
    pub header: Option<(String, String)>,
    pub cookie: Option<(String, String)>,
    /// Of each release, in each step, before there is a next one.
    pub min_requests: u64,
    /// How much more of its requests may fail, in hundredths of a percent.
    pub errors: u32,
    /// How long it may take, in percent of the stable release's time.
    pub latency: u32,
}

impl Canary {
    /// The share of a step in percent; of one behind the last, all.
    pub fn share(&self, step: u32) -> u32 {
        self.steps.get(step as usize).copied().unwrap_or(100)
    }

    /// How many steps there are besides the last, with which it takes over.
    pub fn trials(&self) -> u32 {
        self.steps.iter().filter(|share| **share < 100).count() as u32
    }
}

/// What the release that serves is called in an A/B test.
pub const MAIN: &str = "main";

/// Whether `text` may name a variant: what names an app, but [`MAIN`].
pub fn check_variant(text: &str) -> Result<(), String> {
    match AppName::new(text) {
        Err(message) => Err(message),
        Ok(_) if text == MAIN => Err(format!(
            "`{MAIN}` is the release that serves; call the new one something else"
        )),
        Ok(_) => Ok(()),
    }
}

/// Times are counted in this many steps, four to a doubling: up to 100 µs, 119 µs, … 88 s, and above.
pub const BUCKETS: usize = 80;
const FIRST_US: f64 = 100.0;
const TO_A_DOUBLING: f64 = 4.0;

/// Which of the [`BUCKETS`] counts so many microseconds.
pub fn bucket(us: u64) -> usize {
    let steps = (us.max(1) as f64 / FIRST_US).log2() * TO_A_DOUBLING;
    (steps.max(0.0).ceil() as usize).min(BUCKETS - 1)
}

/// The longest time of a bucket, in microseconds.
pub fn bound_us(bucket: usize) -> u64 {
    (FIRST_US * (bucket as f64 / TO_A_DOUBLING).exp2()) as u64
}

/// What was counted of one release in a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that came to an end.
    pub requests: u64,
    /// Those of them that got 5xx, none or half an answer, or waited too long for one.
    pub errors: u64,
    /// How long it took until the answer began, by [`bucket`]; missing ones at the end count as 0.
    pub times: Vec<u64>,
}

impl Counts {
    /// The part that failed, 0 to 1.
    pub fn failed(&self) -> f64 {
        match self.requests {
            0 => 0.0,
            all => self.errors as f64 / all as f64,
        }
    }

    /// What so many percent of the answers took at most, in microseconds.
    pub fn within_us(&self, percent: u64) -> Option<u64> {
        let all: u64 = self.times.iter().sum();
        let wanted = (all * percent).div_ceil(100);
        let mut sum = 0;
        let found = self.times.iter().position(|count| {
            sum += count;
            all > 0 && sum >= wanted
        });
        found.map(bound_us)
    }

    fn answered(&self) -> u64 {
        self.times.iter().sum()
    }

    fn slower_than(&self, limit: usize) -> u64 {
        self.times.iter().skip(limit + 1).sum()
    }
}

/// What is known at one moment of a step.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// How long the step has lasted.
    pub elapsed: Duration,
    pub stable: &'a Counts,
    pub canary: &'a Counts,
}

/// What comes of it, and why, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next step.
    Promote(String),
    Hold(String),
    RollBack(String),
}

/// How likely a release that is no worse is rolled back at most, over the whole canary and however often it is looked at.
pub const ALPHA: f64 = 0.002;
/// By how much the odds to fail may be higher, each as likely as the others.
pub const ODDS: [f64; 6] = [1.5, 2.0, 3.0, 5.0, 10.0, 30.0];
/// So many times likelier worse than not, and it gets no further for now.
const DOUBT: f64 = 10.0;
/// What fails less often may have been anything.
const LEAST_ERRORS: u64 = 3;
/// Of fewer requests of either release, one that fails is not gone on from.
const FEW: u64 = 200;
/// A difference in latency of so many microseconds is none.
pub const SLACK_US: u64 = 25_000;
/// Slow requests are not slow one by one: a process that stalls delays all that it has in hand. So many count as one.
pub const BURST: u64 = 10;
/// Tests that share [`ALPHA`] in each step: failures, and two percentiles.
const TESTS: f64 = 3.0;

/// Decides about a canary that has its share of the visitors.
pub fn judge(canary: &Canary, look: &Look<'_>) -> Verdict {
    let sure = (TESTS * f64::from(canary.trials().max(1)) / ALPHA).ln();
    let fails = failures(canary, look);
    let told = fails
        .as_ref()
        .filter(|_| look.canary.errors >= LEAST_ERRORS);
    if let Some(worse) = told.filter(|worse| worse.evidence >= sure) {
        return Verdict::RollBack(worse.what.clone());
    }
    if look.elapsed < canary.every {
        let left = crate::units::show_time(canary.every.saturating_sub(look.elapsed));
        return Verdict::Hold(format!("this step lasts another {left}"));
    }
    for (counts, which) in [(look.canary, "it"), (look.stable, "the stable release")] {
        if counts.requests < canary.min_requests {
            return Verdict::Hold(format!(
                "{which} has had {} of the {} requests that are needed to compare",
                counts.requests, canary.min_requests
            ));
        }
    }
    let slow = [95, 99].map(|percent| slowness(canary, look, percent));
    if let Some(worse) = strongest(slow.iter().flatten()).filter(|worse| worse.evidence >= sure) {
        return Verdict::RollBack(worse.what.clone());
    }
    let doubtful = strongest(told.into_iter().chain(slow.iter().flatten()));
    if let Some(worse) = doubtful.filter(|worse| worse.evidence >= DOUBT.ln()) {
        return Verdict::Hold(format!("{}, which may be chance", worse.what));
    }
    // The owner may want no more than a few requests, but then they must not have failed.
    let is_little = look.canary.requests.min(look.stable.requests) < FEW;
    match fails.filter(|_| is_little) {
        Some(worse) => Verdict::Hold(format!("{}, and there were few", worse.what)),
        None => Verdict::Promote(figures(look)),
    }
}

/// What speaks most against the canary.
fn strongest<'a>(all: impl Iterator<Item = &'a Worse>) -> Option<&'a Worse> {
    all.max_by(|one, other| one.evidence.total_cmp(&other.evidence))
}

/// A way in which the canary did worse than it may.
struct Worse {
    what: String,
    /// The logarithm of how much likelier it is worse than not.
    evidence: f64,
}

fn failures(canary: &Canary, look: &Look<'_>) -> Option<Worse> {
    let (new, old) = (look.canary, look.stable);
    let more = new.failed() - old.failed();
    if new.errors == 0 || more <= f64::from(canary.errors) / 10_000.0 {
        return None;
    }
    Some(Worse {
        what: format!(
            "{} of its requests failed ({} of {}), of the stable release's {} ({} of {})",
            percent(new.failed()),
            new.errors,
            new.requests,
            percent(old.failed()),
            old.errors,
            old.requests
        ),
        evidence: evidence((new.errors, new.requests), (old.errors, old.requests)),
    })
}

fn slowness(canary: &Canary, look: &Look<'_>, percent: u64) -> Option<Worse> {
    let (new, old) = (look.canary, look.stable);
    let (found, usual) = (new.within_us(percent)?, old.within_us(percent)?);
    let allowed = (usual * u64::from(canary.latency) / 100).max(usual + SLACK_US);
    if found <= allowed {
        return None;
    }
    let limit = bucket(allowed);
    let slow = |counts: &Counts| (counts.slower_than(limit) / BURST, counts.answered() / BURST);
    Some(Worse {
        what: format!(
            "{percent} of 100 of its answers began within {}, of the stable release's within {}",
            milliseconds(found),
            milliseconds(usual)
        ),
        evidence: evidence(slow(new), slow(old)),
    })
}

/// The logarithm of the likelihood ratio that the module speaks of. Each pair is (bad, all).
fn evidence(canary: (u64, u64), stable: (u64, u64)) -> f64 {
    let (bad, all) = canary;
    let (other_bad, other_all) = stable;
    if all == 0 || other_all == 0 {
        return 0.0;
    }
    let part = all as f64 / (all + other_all) as f64;
    let terms = ODDS.map(|odds| {
        let higher = odds * part / (odds * part + 1.0 - part);
        bad as f64 * (higher / part).ln() + other_bad as f64 * ((1.0 - higher) / (1.0 - part)).ln()
    });
    // The largest is taken out: the rest of the sum stays within what a float can hold.
    let most = terms.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = terms.iter().map(|term| (term - most).exp()).sum();
    most + (sum / ODDS.len() as f64).ln()
}

/// Both releases' figures in a line.
pub fn figures(look: &Look<'_>) -> String {
    let (new, old) = (look.canary, look.stable);
    let time = |counts: &Counts| counts.within_us(95).map_or("?".to_owned(), milliseconds);
    format!(
        "{} of {} requests failed against {} of {}, 95 of 100 answers began within {} against {}",
        percent(new.failed()),
        new.requests,
        percent(old.failed()),
        old.requests,
        time(new),
        time(old)
    )
}

fn percent(part: f64) -> String {
    format!("{:.2} %", part * 100.0)
}

fn milliseconds(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}

#[cfg(test)]
mod tests;
