//! Apps that come as an image, and run in a container of the engine that the server's owner configured.

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::build::Dockerfile;
use super::processes::RawWorker;
use super::{Check, RawSpec};

/// What a container of an app is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// `NAME[:TAG]` or `NAME@sha256:…`, as the engine understands it.
    pub reference: String,
    /// The engine builds it of the app's folder; `reference` is this file's path then.
    pub dockerfile: Option<Dockerfile>,
    /// In place of the image's own entry point.
    pub entrypoint: Option<Vec<String>>,
    /// Where the app's folder appears inside; nowhere if `None`.
    pub mount: Option<String>,
    pub user: User,
    pub allow_root: bool,
    /// Folders in memory that may be written to, beside /tmp and /run.
    pub writable: Vec<String>,
    pub pull: Pull,
}

/// Whom the program runs as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum User {
    /// As the image says.
    #[default]
    Image,
    /// As a user of the app's own that exists nowhere else.
    App,
}

/// When the image is fetched, at a deploy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pull {
    #[default]
    Missing,
    Always,
    Never,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawContainer {
    /// In place of the image's own entry point; [] for none.
    #[schemars(with = "Option<Vec<String>>")]
    entrypoint: Option<Spanned<Vec<String>>>,
    /// Where the app's folder appears inside, such as "/app"; default nowhere: the image brings everything.
    #[schemars(with = "Option<String>")]
    mount: Option<Spanned<String>>,
    /// "image" (the default): as the image says; "app": a user of the app's own.
    user: Option<User>,
    /// Images that run as root may.
    #[serde(default)]
    allow_root: bool,
    /// Folders that the program may write to, in memory, beside /tmp and /run, such as "/var/cache/nginx".
    #[schemars(with = "Vec<String>")]
    #[serde(default)]
    writable: Vec<Spanned<String>>,
    /// When a deploy fetches the image: "missing" (the default), "always" or "never".
    pull: Option<Pull>,
}

/// An app's network has sixteen addresses, and a rolling deploy needs two for each instance.
pub const MAX_INSTANCES: u32 = 6;
const MAX_WRITABLE: usize = 16;

impl Check<'_> {
    pub(super) fn image(&mut self, raw: &RawSpec, instances: u32) -> Option<Image> {
        let dockerfile = self.dockerfile(raw);
        let named = match &dockerfile {
            Some((_, name)) => Some(*name),
            None => raw.image.as_ref(),
        };
        let Some(reference) = named else {
            if let Some(container) = &raw.container {
                self.wrong(
                    container.span().start,
                    "`container` goes with `image` or `build.dockerfile`",
                );
            }
            return None;
        };
        let at = reference.span().start;
        if dockerfile.is_none() && !is_reference(reference.get_ref()) {
            let text = reference.get_ref();
            self.wrong(
                at,
                format!("`{text}` is no image such as \"python:3.12\" or \"registry.example.com/shop@sha256:…\""),
            );
        }
        if raw.folder.is_some() || raw.upstream.is_some() {
            self.wrong(
                at,
                "an app has `image`, `static` or `upstream`, one of them",
            );
        }
        if let Some(build) = raw.build.as_ref().filter(|_| raw.image.is_some()) {
            self.wrong(
                build.place().unwrap_or(at),
                "`build` makes the app's folder; an image is there already",
            );
        }
        let workers = raw.workers.values().map(RawWorker::count);
        let all = workers.fold(i64::from(instances), i64::saturating_add);
        if all > i64::from(MAX_INSTANCES) {
            let message = format!(
                "an app from an image has at most {MAX_INSTANCES} instances, workers among them, not {all}"
            );
            self.wrong(at, message);
        }
        let none = RawContainer::default();
        let container = raw.container.as_ref().map_or(&none, |raw| raw.get_ref());
        let mut path = |path: &Spanned<String>| {
            let text = path.get_ref().trim_end_matches('/').to_owned();
            if !is_plain_path(&text) {
                let message = format!("`{text}` is no plain path inside such as /var/cache");
                self.wrong(path.span().start, message);
            }
            text
        };
        let mount = container.mount.as_ref().map(&mut path);
        let writable: Vec<String> = container.writable.iter().map(&mut path).collect();
        if writable.len() > MAX_WRITABLE {
            let at = container.writable[MAX_WRITABLE].span().start;
            let message = format!("at most {MAX_WRITABLE} folders may be written to");
            self.wrong(at, message);
        }
        let words = |list: &[String]| list.iter().map(|word| word.len() + 1).sum::<usize>();
        let entrypoint = container.entrypoint.as_ref();
        if let Some(list) = entrypoint
            && (words(list.get_ref()) > 32 << 10
                || list.get_ref().iter().any(|word| word.contains('\0')))
        {
            self.wrong(
                list.span().start,
                "the entry point is over 32K or holds a NUL",
            );
        }
        Some(Image {
            reference: reference.get_ref().clone(),
            dockerfile: dockerfile.map(|(found, _)| found),
            entrypoint: entrypoint.map(|list| list.get_ref().clone()),
            mount,
            user: container.user.unwrap_or_default(),
            allow_root: container.allow_root,
            writable,
            pull: container.pull.unwrap_or_default(),
        })
    }
}

/// As the distribution specification has it, but for its finer points, which the engine checks.
fn is_reference(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._/:@-".contains(&byte);
    (1..=255).contains(&text.len())
        && text.bytes().all(plain)
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

fn is_plain_path(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.len() <= 200
        && path.bytes().all(plain)
        && path
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(part))
        && path != "/data"
        && !["/proc", "/sys", "/dev", "/etc"].iter().any(|system| {
            path == *system
                || path
                    .strip_prefix(system)
                    .is_some_and(|rest| rest.starts_with('/'))
        })
}
