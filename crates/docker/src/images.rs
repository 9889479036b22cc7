//! Images: fetched by the engine, and known by their ids from then on.

use std::time::Duration;

use bollard::query_parameters::CreateImageOptions;
use futures_util::StreamExt;
use hutong_core::image::ImageUser;
use hutong_core::name::is_digest;
use hutong_ipc::docker::{Image, Pull};

use crate::build::{LABEL_APP, LABEL_SERVER};
use crate::engine::Engine;

/// How long an image may take to be fetched, and to say nothing.
const FETCH: Duration = Duration::from_secs(15 * 60);
const STALL: Duration = Duration::from_secs(60);

impl Engine {
    /// As [`Engine::resolve`], but for an app: none that was built for another.
    pub async fn resolve_for(&self, image: &str, pull: Pull, app: &str) -> Result<Image, String> {
        let found = self.resolve(image, pull).await?;
        // By its id: the name may have gone elsewhere meanwhile.
        let looked = self.docker()?.inspect_image(&found.id).await;
        let config = looked.map_err(|error| error.to_string())?.config;
        let labels = config.and_then(|config| config.labels).unwrap_or_default();
        // A stage says no server; what another server built came from a registry.
        let ours = labels
            .get(LABEL_SERVER)
            .is_none_or(|server| *server == self.setup.server);
        if ours && labels.get(LABEL_APP).is_some_and(|owner| owner != app) {
            return Err(format!("the image {image} was built for another app"));
        }
        Ok(found)
    }

    /// Has the engine fetch an image, if need be, and says which one it is.
    pub async fn resolve(&self, image: &str, pull: Pull) -> Result<Image, String> {
        let docker = self.connect().await?;
        let named = without_tag(image);
        let image = named.as_str();
        let there = docker.inspect_image(image).await;
        let fetch = match (&there, pull) {
            (Ok(_), Pull::Always) | (Err(_), Pull::Missing | Pull::Always) => true,
            (_, Pull::Never) | (Ok(_), Pull::Missing) => false,
        };
        if fetch {
            let (name, tag) = split_tag(image);
            let options = CreateImageOptions {
                from_image: Some(name.into()),
                tag: tag.map(str::to_owned),
                ..Default::default()
            };
            let mut steps = Box::pin(docker.create_image(Some(options), None, None));
            let deadline = tokio::time::Instant::now() + FETCH;
            loop {
                let failed = |why: String| format!("cannot fetch the image {image}: {why}");
                let patience = deadline.min(tokio::time::Instant::now() + STALL);
                let step = tokio::time::timeout_at(patience, steps.next()).await;
                let step = step.map_err(|_| failed("the registry is too slow".into()))?;
                let Some(step) = step else { break };
                let step = step.map_err(|error| failed(error.to_string()))?;
                if let Some(error) = step.error_detail.and_then(|detail| detail.message) {
                    return Err(failed(error));
                }
            }
        }
        let found = match (there, fetch) {
            (Ok(found), false) => found,
            (Err(error), false) => return Err(format!("the engine has no image {image}: {error}")),
            _ => docker
                .inspect_image(image)
                .await
                .map_err(|error| error.to_string())?,
        };
        let id = found.id.unwrap_or_default();
        let id = id.strip_prefix("sha256:").unwrap_or(&id).to_owned();
        if !is_digest(&id) {
            return Err(format!("the engine gave {image} no id that is known here"));
        }
        let config = found.config.unwrap_or_default();
        let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
        Ok(Image {
            id,
            is_root: ImageUser::is_root(config.user.as_deref().unwrap_or_default()),
            remapped: self.is_remapped().await,
            has_command: some(&config.cmd) || some(&config.entrypoint),
            digests: found.repo_digests.unwrap_or_default(),
        })
    }
}

/// Of `NAME:TAG@DIGEST` the digest counts, and engines read the tag in several ways.
fn without_tag(image: &str) -> String {
    let Some((name, digest)) = image.split_once('@') else {
        return image.to_owned();
    };
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    format!("{name}@{digest}")
}

/// `NAME[:TAG]` or `NAME@DIGEST`; without a tag the engine would fetch every one.
fn split_tag(image: &str) -> (&str, Option<&str>) {
    if image.contains('@') {
        return (image, None);
    }
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (image, Some("latest")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found() {
        assert_eq!(split_tag("python"), ("python", Some("latest")));
        assert_eq!(split_tag("python:3.12"), ("python", Some("3.12")));
        assert_eq!(split_tag("reg:5000/x"), ("reg:5000/x", Some("latest")));
        assert_eq!(split_tag("x@sha256:00"), ("x@sha256:00", None));
        assert_eq!(without_tag("x:1@sha256:00"), "x@sha256:00");
        assert_eq!(without_tag("reg:5000/x@sha256:00"), "reg:5000/x@sha256:00");
        assert_eq!(without_tag("reg:5000/x:1"), "reg:5000/x:1");
    }
}
