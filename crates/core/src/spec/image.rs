//! Apps that come as an image. It is the root of a sandbox, or runs in a container of the engine that the server's owner
//! configured.

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
    /// What runs it; what the server has, if nothing is said.
    pub driver: Option<ImageDriver>,
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

/// What runs an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageDriver {
    /// A sandbox of our own whose root the image is.
    Sandbox,
    /// A container of the server's Docker engine.
    Docker,
}

/// Images that the server itself holds are called by this name instead of a registry's.
pub const LOCAL_REGISTRY: &str = "hutong.local";

impl Image {
    /// Who runs it on a server with an engine or without one. No engine has the images that only the server holds.
    pub fn runs_on(&self, has_engine: bool) -> ImageDriver {
        match self.driver {
            _ if self.dockerfile.is_some() => ImageDriver::Docker,
            Some(driver) => driver,
            None if has_engine && self.local().is_none() => ImageDriver::Docker,
            None => ImageDriver::Sandbox,
        }
    }

    /// What the server itself holds, without the registry's name.
    pub fn local(&self) -> Option<&str> {
        let rest = self.reference.strip_prefix(LOCAL_REGISTRY)?;
        rest.strip_prefix('/')
    }

    /// `NAME:TAG`, without the digest that may stand behind it; none if it names no tag.
    pub fn tagged(&self) -> Option<&str> {
        let name = self.reference.split('@').next()?;
        let (_, tag) = name.rsplit_once(':')?;
        (!tag.is_empty() && !tag.contains('/')).then_some(name)
    }

    /// The digest that it is fixed to.
    pub fn digest(&self) -> Option<&str> {
        self.reference.split_once('@').map(|(_, digest)| digest)
    }
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
        let driver = raw.driver.as_ref().map(|driver| *driver.get_ref());
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
            if let Some(driver) = &raw.driver {
                self.wrong(driver.span().start, "`driver` goes with `image`");
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
        if let Some(wrong) = raw.driver.as_ref().filter(|_| dockerfile.is_some())
            && *wrong.get_ref() == ImageDriver::Sandbox
        {
            self.wrong(
                wrong.span().start,
                "an engine builds what a Dockerfile says, and runs it: leave `driver` out",
            );
        }
        let is_ours = reference
            .get_ref()
            .starts_with(&format!("{LOCAL_REGISTRY}/"));
        if let Some(driver) = raw.driver.as_ref().filter(|_| is_ours)
            && *driver.get_ref() == ImageDriver::Docker
        {
            self.wrong(
                driver.span().start,
                "no engine has the images that the server itself holds; they run with driver = \"sandbox\"",
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
        // Sandboxes share no network of sixteen addresses.
        if all > i64::from(MAX_INSTANCES) && driver != Some(ImageDriver::Sandbox) {
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
            driver,
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

/// The text of a `hutong.toml` with another image: for one that was handed over with it. The port that the image before
/// named is not this one's.
pub fn with_image(text: &str, reference: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Named {
        image: Option<Spanned<String>>,
    }
    if !is_reference(reference) {
        return Err(format!("`{reference}` is no image"));
    }
    let text = without_port(text);
    let named: Named = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    Ok(match named.image {
        Some(image) => {
            let mut text = text.to_owned();
            text.replace_range(image.span(), &format!("\"{reference}\""));
            text
        }
        None => super::on_top(&format!("image = \"{reference}\"\n"), text),
    })
}

/// Behind a port that an image named, and the app's owner did not.
const OF_IMAGE: &str = " # as its image says";

/// The text of a `hutong.toml` as its owner wrote it: without the port that an image named ([`with_port`]).
pub fn without_port(text: &str) -> &str {
    let Some((first, rest)) = text.split_once('\n') else {
        return text;
    };
    let port = first.strip_prefix("port = ");
    let port = port.and_then(|port| port.strip_suffix(OF_IMAGE));
    match port {
        Some(port) if port.parse::<u16>().is_ok() => rest,
        _ => text,
    }
}

/// The text of a `hutong.toml` with the port that its image names, unless its owner says one.
pub fn with_port(text: &str, port: u16) -> Option<String> {
    #[derive(Deserialize)]
    struct Said {
        port: Option<serde::de::IgnoredAny>,
    }
    let text = without_port(text);
    let said: Said = toml::from_str(text).ok()?;
    let none = said.port.is_none();
    none.then(|| super::on_top(&format!("port = {port}{OF_IMAGE}\n"), text))
}

/// As the distribution specification has it, but for its finer points, which the engine checks.
fn is_reference(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._/:@-".contains(&byte);
    (1..=255).contains(&text.len())
        && text.bytes().all(plain)
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && crate::dockerfile::check_image(text).is_ok()
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
