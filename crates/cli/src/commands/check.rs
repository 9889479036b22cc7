//! `hutong check` and `hutong schema`: hutong.toml without a server.

use std::path::{Path, PathBuf};

use hutong_core::detect::Completed;
use hutong_core::spec::{self, AppSpec, Run};
use hutong_core::units::{show_size, show_time};

use super::deploy::Variant;
use super::detect;
use crate::error::CliError;
use crate::output::Output;

#[derive(clap::Args)]
pub struct Args {
    /// The app's folder
    #[arg(default_value = ".")]
    folder: PathBuf,
}

pub fn schema(output: Output) -> Result<(), CliError> {
    output.value(&spec::json_schema());
    Ok(())
}

pub fn run(args: &Args, output: Output) -> Result<(), CliError> {
    let (spec, plan) = load_with(&args.folder, None, None).map(|done| (done.spec, done.plan))?;
    for line in plan.iter().flat_map(detect::describe) {
        output.say(&line);
    }
    let run = match &spec.run {
        Run::Command(words) => match &spec.image {
            Some(image) if image.dockerfile.is_some() => {
                format!("runs the image that {} makes", image.reference)
            }
            Some(image) => format!("runs the image {} {}", image.reference, words.join(" ")),
            None => format!("runs {}", words.join(" ")),
        },
        Run::Static { folder, .. } => format!("serves the files of ./{folder}"),
        Run::Background => "has no visitors".to_owned(),
        Run::Upstream(list) => {
            let list: Vec<String> = list.iter().map(|one| one.address.to_string()).collect();
            format!("sends requests to {}", list.join(", "))
        }
    };
    output.say(&format!("{}: {run}", spec.name));
    if !spec.run.has_instances() {
        return Ok(());
    }
    output.say(&format!(
        "  {} instance(s), {} memory, {} cores, {} pids each; {}",
        spec.show_instances(),
        show_size(spec.caps.memory_bytes),
        f64::from(spec.caps.cpu_millis) / 1000.0,
        spec.caps.pids,
        match &spec.health.path {
            Some(path) => format!("healthy when GET {path} on port {} answers", spec.port),
            None => format!("healthy when port {} is open", spec.port),
        }
    ));
    output.say(&format!(
        "  {}; up to {} to start",
        match spec.strategy {
            spec::Strategy::Rolling => "a new release starts beside the old one",
            spec::Strategy::Recreate =>
                "a new release takes the old one's place while requests wait",
            spec::Strategy::BlueGreen =>
                "a new release starts beside the old one, which stays ready",
            spec::Strategy::Canary => "a new release gets a part of the visitors first",
            spec::Strategy::Ab =>
                "a new release gets a part of the visitors until one of both is chosen",
        },
        show_time(spec.start_timeout)
    ));
    Ok(())
}

/// Reads `hutong.toml` of a folder, with what is recognised where it does not say what runs; also its text.
pub fn load(folder: &Path) -> Result<(AppSpec, String), CliError> {
    let done = load_with(folder, None, None)?;
    Ok((done.spec, done.text))
}

/// The same, as it is with another image, and as a variant.
pub fn load_with(
    folder: &Path,
    image: Option<&str>,
    variant: Option<&Variant>,
) -> Result<Completed, CliError> {
    let path = folder.join("hutong.toml");
    let text = std::fs::read_to_string(&path).map_err(|error| {
        let wrong = CliError::bad_file(format!("{}: {error}", path.display()));
        if error.kind() == std::io::ErrorKind::NotFound {
            return wrong.hint(
                "an app's folder has a file hutong.toml with at least: name = \"my-app\", domains = [\"my-app.example.com\"], command = [\"python3\", \"app.py\"] (or static = \"dist\"); `hutong detect --write` writes one",
            );
        }
        wrong
    })?;
    let text = match image {
        Some(image) => spec::with_image(&text, image)
            .map_err(|error| CliError::bad_file(format!("{}: {error}", path.display())))?,
        None => text,
    };
    let Some(variant) = variant else {
        return detect::complete(folder, &text);
    };
    let made = spec::with_variant(&text, &variant.name, variant.share)
        .map_err(CliError::usage)
        .and_then(|made| detect::complete(folder, &made));
    if made.is_err() {
        // Mistakes of the file itself have their places in it.
        detect::complete(folder, &text)?;
    }
    made
}
