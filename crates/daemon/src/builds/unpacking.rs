//! An image that is to be the root of sandboxes: found or fetched, looked at, and unpacked, each layer once for all apps.
//! A layer that is being unpacked is a step of the deployment's build, so whoever is killed meanwhile leaves what
//! `build_sweep` clears away.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use hutong_core::image::{ImageUser, exposed_port};
use hutong_core::spec::{self, AppSpec, Run};
use hutong_core::units::show_size;
use hutong_ipc::warden::{ImageLayers, Limits, PackedLayer, Unpack};
use hutong_registry::unpack::Bounds;
use hutong_registry::{ContainerConfig, Digest, Image, Layer};
use hutong_runtime::client::Driver;

use super::{
    Broken, CPU_MILLIS, PIDS, fail, how_it_ended, is_superseded, patiently, wait_for_memory,
    wait_until_gone,
};
use crate::images::{self, program, remote};
use crate::store::{Deployment, Release};
use crate::{Control, controller, ids, lock, memory};

/// What comes out of a layer at most, in bytes: so much, and this many times what is packed. A gigabyte of zeros packs
/// to a megabyte.
const LEAST: u64 = 256 << 20;
const EXPANSION: u64 = 100;
const MOST: u64 = 16 << 30;
/// What an image may say of how it is run.
const MAX_VOLUMES: usize = 32;
const MAX_VARIABLES: usize = 1000;
/// Of variables, entry point and command, in bytes.
const MAX_WORDS: usize = 256 << 10;

/// Makes an image ready. What the release runs from; and its file, if that did not say a port that the image names.
pub fn prepare(
    control: &Control,
    deployment: &Deployment,
    release: &Release,
    spec: &AppSpec,
    image: &spec::Image,
) -> Result<(String, Option<String>), Broken> {
    let reading = control.images.preparing.read();
    let _preparing = reading.unwrap_or_else(|poisoned| poisoned.into_inner());
    let digest = match find(control, deployment, image) {
        // The caller looks whether anybody wants it.
        Err(_) if is_superseded(control, deployment.id) => return Ok((String::new(), None)),
        other => other?,
    };
    let found = control.images.image(&digest).map_err(Broken::plain)?;
    let config = found.config.config.clone().unwrap_or_default();
    check(&config, spec, image)?;
    if found.layers.is_empty() {
        return Err(Broken::plain(format!(
            "the image {} has no layers",
            image.reference
        )));
    }
    let stacked = patiently(|| control.warden.can_stack()).map_err(Broken::plain)?;
    unpack_all(control, deployment, &found, stacked)?;
    let ports = config.exposed_ports.iter().flat_map(|ports| ports.keys());
    let port = exposed_port(ports.map(String::as_str));
    let text = port.and_then(|port| spec::with_port(&release.spec, port));
    Ok((images::mark(&digest), text))
}

/// The manifest that a reference leads to now; fetched, if need be.
fn find(control: &Control, deployment: &Deployment, image: &spec::Image) -> Result<Digest, Broken> {
    let registry = control.images.registry().map_err(Broken::plain)?;
    match image.local() {
        Some(local) => {
            let digest = images::resolve_local(&registry, local).map_err(Broken::plain)?;
            images::check_own(&registry, local, &digest).map_err(Broken::plain)?;
            Ok(digest)
        }
        None => {
            let say = |doing: &str| say(control, deployment, doing);
            let go_on = || match is_superseded(control, deployment.id) {
                true => Err("nobody wants it any more".to_owned()),
                false => control.has_disk(),
            };
            remote::fetch(control, image, &say, &go_on).map_err(Broken::plain)
        }
    }
}

fn say(control: &Control, deployment: &Deployment, doing: &str) {
    lock(&control.observed)
        .building
        .insert(deployment.id, doing.to_owned());
}

/// What can be said before anything is unpacked.
fn check(config: &ContainerConfig, spec: &AppSpec, image: &spec::Image) -> Result<(), Broken> {
    let reference = &image.reference;
    bounded(config).map_err(|what| Broken::plain(format!("the image {reference} {what}")))?;
    if let Some(ImageUser::Number(0, _)) = program::user(config, image).map_err(Broken::plain)?
        && !image.allow_root
    {
        return Err(Broken::plain(format!(
            "the image {reference} runs as root: set `user = \"app\"` in [container] to run it as a user of the app's own, or `allow_root = true`"
        )));
    }
    let own = match &spec.run {
        Run::Command(words) => words.as_slice(),
        _ => return Ok(()),
    };
    if program::argv(config, image, own).is_empty() {
        return Err(Broken::plain(format!(
            "the image {reference} says no command to run: set `command`"
        )));
    }
    Ok(())
}

/// An image's own words are somebody else's, and are read again and again.
fn bounded(config: &ContainerConfig) -> Result<(), String> {
    let volumes = config.volumes.as_ref().map_or(0, |volumes| volumes.len());
    if volumes > MAX_VOLUMES {
        return Err(format!(
            "has {volumes} volumes, and {MAX_VOLUMES} are allowed"
        ));
    }
    let variables = config.env.as_ref().map_or(0, Vec::len);
    if variables > MAX_VARIABLES {
        return Err(format!(
            "has {variables} variables, and {MAX_VARIABLES} are allowed"
        ));
    }
    let lists = [&config.env, &config.entrypoint, &config.cmd];
    let words = lists.into_iter().flatten().flatten();
    let bytes: usize = words.map(|word| word.len() + 1).sum();
    if bytes > MAX_WORDS {
        return Err(format!(
            "has {} of variables and words to run, and {} are allowed",
            show_size(bytes as u64),
            show_size(MAX_WORDS as u64)
        ));
    }
    Ok(())
}

fn unpack_all(
    control: &Control,
    deployment: &Deployment,
    image: &Image,
    stacked: bool,
) -> Result<(), Broken> {
    let app = &deployment.app;
    let has = |layers: ImageLayers| {
        patiently(|| control.warden.has_layers(app, layers.clone())).map_err(Broken::plain)
    };
    let all = images::layers(stacked, image);
    if has(all.clone())? {
        return Ok(());
    }
    control.has_disk().map_err(Broken::plain)?;
    let _aside = wait_for_memory(control, deployment)?;
    let count = image.layers.len();
    let mut left = Left {
        bytes: MOST,
        entries: Bounds::default().entries,
    };
    if !stacked {
        let layers: Vec<&Layer> = image.layers.iter().collect();
        say(control, deployment, "unpacking the image");
        let digest = image.digest.hex();
        return unpack(control, deployment, 0, &layers, true, digest, &mut left);
    }
    for (number, layer) in image.layers.iter().enumerate() {
        if is_superseded(control, deployment.id) {
            return Ok(());
        }
        let digest = layer.diff_id.to_string();
        if has(ImageLayers::Stacked(vec![digest.clone()]))? {
            continue;
        }
        control.has_disk().map_err(Broken::plain)?;
        let doing = format!("unpacking layer {} of {count}", number + 1);
        say(control, deployment, &doing);
        let one = [layer];
        let done = unpack(control, deployment, number, &one, false, &digest, &mut left);
        done.map_err(|broken| Broken {
            reason: format!(
                "layer {} of {count} of the image {}",
                number + 1,
                broken.reason
            ),
            ..broken
        })?;
    }
    Ok(())
}

/// What the layers of an image may still have, of those that are unpacked now.
struct Left {
    bytes: u64,
    entries: u64,
}

impl Left {
    /// Takes off what the unpacker says in the end: whoever broke into it may say what he likes, and has had one layer's
    /// bound.
    fn take(&mut self, log: &[String]) {
        let said = log.iter().rev().find_map(|line| {
            let (entries, rest) = line.strip_prefix("unpacked ")?.split_once(" entries, ")?;
            let bytes = rest.strip_suffix(" bytes")?;
            Some((entries.parse::<u64>().ok()?, bytes.parse::<u64>().ok()?))
        });
        let (entries, bytes) = said.unwrap_or_default();
        self.entries = self.entries.saturating_sub(entries);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// One step: starts the unpacker, waits for its end, and has kept what came of it.
fn unpack(
    control: &Control,
    deployment: &Deployment,
    step: usize,
    layers: &[&Layer],
    flat: bool,
    digest: &str,
    left: &mut Left,
) -> Result<(), Broken> {
    if left.bytes == 0 || left.entries == 0 {
        return Err(Broken::plain(format!(
            "cannot be unpacked: the layers below it are all that an image may have, {} or {} files",
            show_size(MOST),
            Bounds::default().entries
        )));
    }
    let app = &deployment.app;
    let instance = ids::build_step(app, deployment.id, step);
    // What a control plane before us left of this step.
    let _ = control.warden.kill(&instance);
    wait_until_gone(control, &instance, deployment.id)?;
    control.logs.forget_spool(&instance);
    let packed: u64 = layers.iter().map(|layer| layer.size).sum();
    let memory = memory::build_cap();
    let order = Unpack {
        instance: instance.clone(),
        app: app.clone(),
        layers: layers
            .iter()
            .map(|layer| readable(control, layer))
            .collect::<Result<_, _>>()?,
        flat,
        bound: packed
            .saturating_mul(EXPANSION)
            .clamp(LEAST, MOST)
            .min(left.bytes),
        entries: left.entries,
        limits: Limits {
            memory,
            cpu_millis: CPU_MILLIS,
            pids: PIDS,
            guaranteed: 0,
        },
    };
    fail::point("unpack step");
    patiently(|| control.warden.unpack(order.clone()))
        .map_err(|error| Broken::plain(format!("cannot be unpacked: {error}")))?;
    wait_until_gone(control, &instance, deployment.id)?;
    if is_superseded(control, deployment.id) {
        return Ok(());
    }
    let why = how_it_ended(control, &instance, memory);
    if let Some(why) = why {
        let log = controller::last_words(control, app, deployment.id);
        let said = log.last().and_then(|line| line.strip_prefix("failed: "));
        let why = match (control.has_disk(), said) {
            (Err(low), _) => low,
            // Its last line says what was wrong with the layer.
            (Ok(()), Some(said)) if why.starts_with("exited") => said.to_owned(),
            _ => why,
        };
        let _ = control.warden.build_drop(&instance);
        return Err(Broken {
            reason: format!("cannot be unpacked: {why}"),
            log,
        });
    }
    left.take(&controller::last_words(control, app, deployment.id));
    patiently(|| control.warden.unpack_keep(&instance, app, flat, digest)).map_err(Broken::plain)
}

/// The packed layer, which the unpacker, who is somebody else, may read. The folders above let nobody in; the warden
/// shows it the file.
fn readable(control: &Control, layer: &Layer) -> Result<PackedLayer, Broken> {
    let registry = control.images.registry().map_err(Broken::plain)?;
    let found = registry.content(&layer.digest);
    let found = found.map_err(|error| Broken::plain(images::causes(&error)))?;
    let (file, _) =
        found.ok_or_else(|| Broken::plain(format!("the layer {} is not there", layer.digest)))?;
    file.set_permissions(Permissions::from_mode(0o644))
        .map_err(Broken::plain)?;
    Ok(PackedLayer {
        blob: layer.digest.to_string(),
        diff_id: layer.diff_id.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_share_a_bound() {
        let mut left = Left {
            bytes: 1000,
            entries: 10,
        };
        let line = |text: &str| text.to_owned();
        left.take(&[
            line("unpacked 9 entries, 999 bytes"),
            line("unpacked 3 entries, 400 bytes"),
            line("WARN devices were left out"),
        ]);
        assert_eq!((left.bytes, left.entries), (600, 7));
        left.take(&[line("unpacked many entries, 5 bytes")]);
        left.take(&[]);
        assert_eq!((left.bytes, left.entries), (600, 7));
        left.take(&[line("unpacked 99 entries, 9999 bytes")]);
        assert_eq!((left.bytes, left.entries), (0, 0));
    }

    #[test]
    fn what_an_image_says_has_bounds() {
        let config = ContainerConfig {
            volumes: Some(
                (0..MAX_VOLUMES)
                    .map(|n| (format!("/{n}"), serde_json::Value::Null))
                    .collect(),
            ),
            env: Some(vec!["A=1".into(); MAX_VARIABLES]),
            cmd: Some(vec!["x".repeat(MAX_WORDS - 4 * MAX_VARIABLES - 1)]),
            ..ContainerConfig::default()
        };
        assert_eq!(bounded(&config), Ok(()));
        let mut more = config.clone();
        let volumes = more.volumes.get_or_insert_default();
        volumes.insert("/more".into(), serde_json::Value::Null);
        assert!(bounded(&more).is_err());
        let mut more = config.clone();
        more.env.get_or_insert_default().push(String::new());
        assert!(bounded(&more).is_err());
        let mut more = config;
        more.entrypoint = Some(vec![String::new()]);
        assert!(bounded(&more).is_err());
    }
}
