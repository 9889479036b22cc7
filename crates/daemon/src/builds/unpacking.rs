//! An image that is to be the root of sandboxes: found or fetched, looked at, and unpacked, each layer once for all apps.
//! A layer that is being unpacked is a step of the deployment's build, so whoever is killed meanwhile leaves what
//! `build_sweep` clears away.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use hutong_core::image::{ImageUser, exposed_port};
use hutong_core::spec::{self, AppSpec, Run};
use hutong_ipc::warden::{ImageLayers, Limits, PackedLayer, Unpack};
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
    let digest = find(control, deployment, image)?;
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
        Some(local) => images::resolve_local(&registry, local).map_err(Broken::plain),
        None => {
            let say = |doing: &str| say(control, deployment, doing);
            remote::fetch(control, image, &say).map_err(Broken::plain)
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
    if !stacked {
        let layers: Vec<&Layer> = image.layers.iter().collect();
        say(control, deployment, "unpacking the image");
        return unpack(control, deployment, 0, &layers, true, image.digest.hex());
    }
    for (number, layer) in image.layers.iter().enumerate() {
        if is_superseded(control, deployment.id) {
            return Ok(());
        }
        let digest = layer.diff_id.to_string();
        if has(ImageLayers::Stacked(vec![digest.clone()]))? {
            continue;
        }
        let doing = format!("unpacking layer {} of {count}", number + 1);
        say(control, deployment, &doing);
        unpack(control, deployment, number, &[layer], false, &digest).map_err(|broken| Broken {
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

/// One step: starts the unpacker, waits for its end, and has kept what came of it.
fn unpack(
    control: &Control,
    deployment: &Deployment,
    step: usize,
    layers: &[&Layer],
    flat: bool,
    digest: &str,
) -> Result<(), Broken> {
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
        bound: packed.saturating_mul(EXPANSION).clamp(LEAST, MOST),
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
