//! `[build]`: what is done with an app's folder before it runs.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::{Check, RawSpec, Words};
use crate::tree::check_path;

/// Programs that make an app's folder ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// In this order; at least one.
    pub steps: Vec<BuildStep>,
    /// What a lock file lists is installed before.
    pub installs: bool,
    /// Of all steps together.
    pub timeout: Duration,
}

/// One program of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildStep {
    pub command: Vec<String>,
    /// It may reach the internet.
    pub network: bool,
}

/// What the container engine builds an app's image of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// Below the app's folder, `/` between its parts.
    pub path: String,
    /// What it runs may reach the internet.
    pub network: bool,
    pub timeout: Duration,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBuild {
    /// The program that builds, in the app's folder.
    #[schemars(with = "Option<Words>")]
    command: Option<Spanned<Words>>,
    /// Instead of `command`: several programs, one after another; nothing is installed before by itself.
    #[serde(default)]
    steps: Vec<RawStep>,
    /// Instead of both: a file, such as "Dockerfile", of which the server's container engine builds the app's image.
    #[schemars(with = "Option<String>")]
    dockerfile: Option<Spanned<String>>,
    /// The program, or what the Dockerfile runs, may reach the internet; packages of a lock file are installed
    /// before, without this.
    #[serde(default)]
    network: bool,
    /// How long the build may take in all; default "15m".
    #[schemars(with = "Option<String>")]
    timeout: Option<Spanned<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawStep {
    /// A program, in the app's folder.
    #[schemars(with = "Words")]
    command: Spanned<Words>,
    /// It may reach the internet.
    #[serde(default)]
    network: bool,
}

impl RawBuild {
    /// Where it says something, as far as that is known.
    pub(super) fn place(&self) -> Option<usize> {
        let step = self.steps.first().map(|step| step.command.span().start);
        let command = self.command.as_ref().map(|command| command.span().start);
        let dockerfile = self.dockerfile.as_ref().map(|named| named.span().start);
        command.or(step).or(dockerfile)
    }
}

const MAX_STEPS: usize = 32;
/// How long a build may take, if nothing else is said.
pub const TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// What a `hutong.toml` leaves to be detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// There is no `[build]`.
    pub build: bool,
    /// `spa` is said already, whichever way.
    pub spa: bool,
    /// The port that the program will listen on.
    pub port: u16,
}

/// What is to be detected before a text can be parsed: it says nothing to run. `None` if it does, or cannot be read.
pub fn missing(text: &str) -> Option<Missing> {
    #[derive(Deserialize)]
    struct Said {
        spa: Option<serde::de::IgnoredAny>,
    }
    let raw: RawSpec = toml::from_str(text).ok()?;
    let said: Said = toml::from_str(text).ok()?;
    let runs = raw.command.is_some() || raw.folder.is_some() || raw.upstream.is_some();
    let beside = !(raw.workers.is_empty() && raw.cron.is_empty());
    if runs || raw.has_image() || beside {
        return None;
    }
    let port = raw.port.as_ref().map(|port| *port.get_ref());
    Some(Missing {
        build: raw.build.is_none(),
        spa: said.spa.is_some(),
        port: port.and_then(|port| port.try_into().ok()).unwrap_or(8080),
    })
}

impl RawSpec {
    /// Whether its programs run in containers.
    pub(super) fn has_image(&self) -> bool {
        let build = self.build.as_ref();
        self.image.is_some() || build.is_some_and(|build| build.dockerfile.is_some())
    }
}

impl Check<'_> {
    pub(super) fn build(&mut self, raw: &RawSpec) -> Option<Build> {
        let build = raw.build.as_ref()?;
        if build.dockerfile.is_some() {
            return None;
        }
        let timeout = self.build_time(build);
        if let (Some(_), Some(step)) = (&build.command, build.steps.first()) {
            let message = "a build has `command` or `steps`, one of them";
            self.wrong(step.command.span().start, message);
        }
        if build.steps.len() > MAX_STEPS {
            let at = build.steps[MAX_STEPS].command.span().start;
            self.wrong(at, format!("a build has at most {MAX_STEPS} steps"));
        }
        if let Some(command) = &build.command {
            return Some(Build {
                steps: vec![BuildStep {
                    command: self.words(command, "build.command")?,
                    network: build.network,
                }],
                installs: true,
                timeout,
            });
        }
        if build.steps.is_empty() {
            self.wrong(
                raw.name.span().start,
                "[build] says nothing to do: add `command = \"npm run build\"`, `steps` or `dockerfile = \"Dockerfile\"`",
            );
            return None;
        }
        let mut steps = Vec::new();
        for step in &build.steps {
            steps.push(BuildStep {
                command: self.words(&step.command, "a step's command")?,
                network: step.network || build.network,
            });
        }
        Some(Build {
            steps,
            installs: false,
            timeout,
        })
    }

    fn build_time(&mut self, build: &RawBuild) -> Duration {
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(4 * 3600));
        self.time(&build.timeout, TIMEOUT, least, most)
    }

    /// The Dockerfile, with the place where it is named.
    pub(super) fn dockerfile<'a>(
        &mut self,
        raw: &'a RawSpec,
    ) -> Option<(Dockerfile, &'a Spanned<String>)> {
        let build = raw.build.as_ref()?;
        let named = build.dockerfile.as_ref()?;
        let at = named.span().start;
        if build.command.is_some() || !build.steps.is_empty() {
            let message = "a build has `command`, `steps` or `dockerfile`, one of them";
            self.wrong(at, message);
        }
        let path = match check_path(named.get_ref()) {
            Ok(path) => path.to_owned(),
            Err(problem) => {
                self.wrong(
                    at,
                    format!("`dockerfile` names a file of the app's folder: {problem}"),
                );
                String::new()
            }
        };
        let file = Dockerfile {
            path,
            network: build.network,
            timeout: self.build_time(build),
        };
        Some((file, named))
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn wrong(text: &str) -> String {
        parse("t", text).expect_err("refused").to_string()
    }

    #[test]
    fn a_build_is_a_command_steps_or_a_dockerfile() {
        let text = "name='a'\nstatic='out'\n[build]\nsteps=[{command='a b'},{command=['c'],network=true}]\ntimeout='30s'\n";
        let build = parse("t", text).expect("good").build.expect("a build");
        assert_eq!(build.steps.len(), 2);
        assert!(!build.steps[0].network && build.steps[1].network && !build.installs);
        assert_eq!(build.timeout, Duration::from_secs(30));
        let text = "name='a'\nbuild.dockerfile='./docker/Dockerfile'\n";
        let spec = parse("t", text).expect("good");
        let file = spec.image.and_then(|image| image.dockerfile);
        let file = file.expect("a Dockerfile");
        assert_eq!(
            (file.path.as_str(), file.timeout),
            ("docker/Dockerfile", TIMEOUT)
        );
        assert!(spec.build.is_none());
        let both = "name='a'\nstatic='x'\n[build]\ncommand='a'\nsteps=[{command='b'}]\n";
        assert!(wrong(both).contains("`command` or `steps`, one of them"));
        let three = "name='a'\n[build]\ncommand='a'\ndockerfile='D'\n";
        assert!(wrong(three).contains("one of them"));
        let empty = "name='a'\nstatic='x'\n[build]\nnetwork=true\n";
        assert!(wrong(empty).contains("[build] says nothing to do"));
        let out = "name='a'\nbuild.dockerfile='../D'\n";
        assert!(
            wrong(out).starts_with("t:2:18: `dockerfile` names a file"),
            "{}",
            wrong(out)
        );
        let image = "name='a'\nimage='x'\nbuild.command='a'\n";
        assert!(wrong(image).contains("an image is there already"));
        let long = "name='a'\nstatic='x'\n[build]\ncommand='a'\ntimeout='5h'\n";
        assert!(
            wrong(long).starts_with("t:5:9: must be 1s to 4h"),
            "{}",
            wrong(long)
        );
    }
}
