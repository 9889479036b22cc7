//! `hutong deploy`: check, pack, upload what the server lacks, deploy, watch until it serves or failed. `rounds`: once
//! more after each change.

mod building;
mod image;
mod rounds;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use hutong_api::client::{Client, ClientError};
use hutong_api::{App, DeployRequest, Deployment, DeploymentState, PlanAnswer, Version};
use hutong_core::spec::AppSpec;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Server, check, path, url};
use crate::error::CliError;
use crate::output::{Output, printable};
use crate::pack::Pack;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  hutong deploy                 the current folder
  hutong deploy ./shop --dry-run
  hutong deploy --image app.tar an image that `docker save` or `skopeo copy … oci-archive:` wrote
  hutong deploy ./shop --variant green --share 20%
                                beside the release that serves, for 20 % of the visitors: an A/B test
  hutong deploy --watch         again after each change, while you work on it")]
pub struct Args {
    /// The app's folder
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do not wait until it serves: a canary may take hours
    #[arg(long, conflicts_with_all = ["dry_run", "watch"])]
    detach: bool,
    /// An image to run in place of the one that hutong.toml names: an archive or a folder, an OCI layout or what
    /// `docker save` writes
    #[arg(long, value_name = "FILE", conflicts_with = "watch")]
    image: Option<PathBuf>,
    /// Begin an A/B test: the release is the variant of this name, beside the one that serves, which is called main, until
    /// `hutong promote` or `hutong abort`
    #[arg(long, value_name = "NAME", conflicts_with = "watch")]
    variant: Option<String>,
    /// The variant's part of the visitors, 1 to 99 %; default: what hutong.toml says, else 50 %
    #[arg(long, value_name = "PERCENT", requires = "variant", value_parser = percent)]
    share: Option<u32>,
    /// For development: deploy again after each change, and show what the app says, until Ctrl-C
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,
    /// Build anew, with nothing that earlier builds kept
    #[arg(long, conflicts_with_all = ["dry_run", "watch"])]
    no_cache: bool,
}

fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    let found = number
        .parse::<u32>()
        .ok()
        .filter(|share| (1..=99).contains(share));
    found.ok_or_else(|| "write a number from 1 to 99, such as 20%".to_owned())
}

/// A name for the release, and its share, if it is one side of an A/B test.
#[derive(Clone, Debug)]
pub struct Variant {
    pub name: String,
    /// In percent.
    pub share: Option<u32>,
}

pub async fn run(args: &Args, server: &Server) -> Result<ExitCode, CliError> {
    let client = server.client()?;
    let output = server.output;
    if args.watch {
        if output.json {
            return Err(CliError::usage(
                "--watch goes on until Ctrl-C and has no answer for --json",
            )
            .hint("`hutong logs APP -f --json` beside it has the app's lines"));
        }
        return rounds::run(&client, &args.folder, output).await;
    }
    let variant = args.variant.clone().map(|name| Variant {
        name,
        share: args.share,
    });
    if args.dry_run {
        let has_image = args.image.is_some();
        let answer = plan(&client, &args.folder, has_image, variant.as_ref()).await?;
        for warning in &answer.warnings {
            output.warn(warning);
        }
        if output.json {
            output.value(&answer);
        } else {
            output.text(&answer.steps.join("\n"));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let origin = Origin {
        no_cache: args.no_cache,
        variant,
        ..Origin::default()
    };
    let image = args.image.as_deref();
    let deployment = start(&client, &args.folder, image, origin, output).await?;
    if args.detach {
        let (id, app) = (deployment.id, &deployment.app);
        let text = format!("deployment {id} has begun; `hutong status {app}` shows how it goes");
        output.result(&deployment, &text);
        return Ok(ExitCode::SUCCESS);
    }
    let deployment = building::run(&client, deployment, output).await?;
    show_result(&client, &deployment, output).await?;
    Ok(ExitCode::SUCCESS)
}

async fn plan(
    client: &Client,
    folder: &std::path::Path,
    has_image: bool,
    variant: Option<&Variant>,
) -> Result<PlanAnswer, CliError> {
    let reference = has_image.then_some(image::HANDED_OVER);
    let (spec, text) = check::load(folder)?;
    let spec = match (reference, variant) {
        (None, None) => spec,
        _ => check::load_with(folder, reference, variant)?.spec,
    };
    let pack = Pack::new(folder, &spec)?;
    outline(client, &spec, text, &pack, reference, variant).await
}

/// What a deployment would do, in the server's words; nothing is uploaded.
pub async fn outline(
    client: &Client,
    spec: &AppSpec,
    text: String,
    pack: &Pack,
    image: Option<&str>,
    variant: Option<&Variant>,
) -> Result<PlanAnswer, CliError> {
    let request = DeployRequest {
        digest: pack.digest.clone(),
        spec: Some(text),
        dry_run: true,
        applied_from: None,
        image: image.map(str::to_owned),
        variant: variant.map(|variant| variant.name.clone()),
        share: variant.and_then(|variant| variant.share),
        no_cache: false,
    };
    let path = path(&["apps", spec.name.as_str(), "deployments"]);
    Ok(client.post(&path, &request).await?)
}

/// Deploys a folder and waits for the outcome.
pub async fn deploy(
    client: &Client,
    folder: &std::path::Path,
    output: Output,
) -> Result<Deployment, CliError> {
    let deployment = start(client, folder, None, Origin::default(), output).await?;
    building::run(client, deployment, output).await
}

/// Begins to deploy a folder, with an image that is handed over first, if one is given.
async fn start(
    client: &Client,
    folder: &std::path::Path,
    image: Option<&std::path::Path>,
    mut origin: Origin<'_>,
    output: Output,
) -> Result<Deployment, CliError> {
    // Mistakes first: an image is large.
    let reference = image.map(|_| image::HANDED_OVER);
    let spec = check::load_with(folder, reference, origin.variant.as_ref())?.spec;
    let pack = Pack::new(folder, &spec)?;
    if let Some(image) = image {
        let taken = image::hand_over(client, spec.name.as_str(), image).await?;
        origin.image = Some(taken.image);
    }
    begin(client, &spec, &pack, origin, true, output).await
}

/// What a deployment comes from, beside its folder.
#[derive(Default)]
pub struct Origin<'a> {
    /// The folder of app files that it belongs to, if that is applied as a whole.
    pub folder: Option<&'a str>,
    /// In place of the image that hutong.toml names.
    pub image: Option<String>,
    /// It is one side of an A/B test.
    pub variant: Option<Variant>,
    /// Nothing of earlier builds is used.
    pub no_cache: bool,
}

/// Uploads what the server lacks, with a bar on a terminal where `shows`, and has it deployed.
pub async fn begin(
    client: &Client,
    spec: &AppSpec,
    pack: &Pack,
    origin: Origin<'_>,
    shows: bool,
    output: Output,
) -> Result<Deployment, CliError> {
    upload(client, pack, shows).await?;
    let request = DeployRequest {
        digest: pack.digest.clone(),
        spec: None,
        dry_run: false,
        applied_from: origin.folder.map(str::to_owned),
        image: origin.image,
        share: origin.variant.as_ref().and_then(|variant| variant.share),
        variant: origin.variant.map(|variant| variant.name),
        no_cache: origin.no_cache,
    };
    let path = path(&["apps", spec.name.as_str(), "deployments"]);
    let answer: PlanAnswer = client.post(&path, &request).await?;
    for warning in &answer.warnings {
        output.warn(warning);
    }
    answer
        .deployment
        .ok_or_else(|| CliError::failed("the server did not start a deployment"))
}

async fn upload(client: &Client, pack: &Pack, shows: bool) -> Result<(), CliError> {
    let place = path(&["trees", &pack.digest]);
    if client.exists(&place).await? {
        return Ok(());
    }
    let bar = match shows {
        true => ProgressBar::new(pack.size),
        false => ProgressBar::hidden(),
    };
    bar.set_style(
        ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> "),
    );
    bar.set_message(format!("uploading {} files", pack.count()));
    let mut tries = 0;
    let sent = loop {
        let moved = bar.clone();
        let stream = pack.stream(move |bytes| moved.set_position(bytes));
        match client.put_stream(&place, stream).await {
            // The control plane was restarted; the same bytes may be sent again.
            Err(ClientError::Broken(_) | ClientError::Unreachable { .. }) if tries < 5 => {}
            // The way was open before.
            Err(ClientError::Dial(_)) if (1..5).contains(&tries) => {}
            other => break other,
        }
        tries += 1;
        tokio::time::sleep(client.pause().max(Duration::from_millis(300))).await;
    };
    bar.finish_and_clear();
    sent.map_err(|error| match error {
        ClientError::Refused(problem) if problem.detail.contains("as announced") => {
            CliError::failed("a file changed while it was uploaded").hint("try again")
        }
        other => other.into(),
    })
}

/// Waits until a deployment is over, or a variant has its visitors, saying what it waits for.
pub async fn watch(client: &Client, deployment: Deployment) -> Result<Deployment, CliError> {
    wait(client, deployment, &spinner()).await
}

fn spinner() -> ProgressBar {
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    spinner.set_style(
        ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

async fn wait(
    client: &Client,
    mut deployment: Deployment,
    spinner: &ProgressBar,
) -> Result<Deployment, CliError> {
    let mut tries = 0;
    // The way to another machine is tried several times for each question already.
    let most = if client.is_far() { 4 } else { 150 };
    while !deployment.state.is_over() && deployment.variant.is_none() {
        let doing = deployment.doing.clone();
        spinner.set_message(printable(doing.as_deref().unwrap_or("waiting")));
        let id = deployment.id.to_string();
        let mut place = path(&["apps", &deployment.app, "deployments", &id]);
        place.push_str("?wait=20");
        if let Some(doing) = doing {
            // Escaped like a path segment; `path` adds a prefix that is cut off again.
            place.push_str("&known=");
            place.push_str(path(&[&doing]).trim_start_matches("/v1/"));
        }
        deployment = match client.get(&place).await {
            Ok(deployment) => {
                tries = 0;
                deployment
            }
            // The control plane may be restarted while we wait, and the way there may be cut.
            Err(
                ClientError::Unreachable { .. } | ClientError::Broken(_) | ClientError::Dial(_),
            ) if tries < most => {
                tries += 1;
                tokio::time::sleep(client.pause()).await;
                deployment
            }
            Err(error) => return Err(error.into()),
        };
    }
    spinner.finish_and_clear();
    Ok(deployment)
}

/// Says how a deployment ended; an error if it failed.
pub async fn show_result(
    client: &Client,
    deployment: &Deployment,
    output: Output,
) -> Result<(), CliError> {
    if output.json {
        output.value(deployment);
    }
    if deployment.state == DeploymentState::Failed && !deployment.log.is_empty() {
        output.say("its last lines of output:");
        for line in &deployment.log {
            output.say(&format!("  {}", printable(line)));
        }
    }
    outcome(deployment)?;
    if !output.json {
        output.text(&served(client, deployment, output).await?);
    }
    Ok(())
}

/// An error if a deployment that was waited for does not serve.
pub fn outcome(deployment: &Deployment) -> Result<(), CliError> {
    match deployment.state {
        DeploymentState::Done => Ok(()),
        DeploymentState::Rolling if deployment.variant.is_some() => Ok(()),
        DeploymentState::Superseded => Err(CliError::failed("a newer deployment took its place")),
        _ => {
            let reason = deployment.reason.as_deref().unwrap_or("no reason is known");
            Err(CliError::failed(format!(
                "release {} of {} is not served: {}",
                deployment.release,
                deployment.app,
                printable(reason)
            ))
            .hint("what served before serves on; `hutong logs` shows more"))
        }
    }
}

/// Which release serves, and where; what there is to warn of is said.
async fn served(
    client: &Client,
    deployment: &Deployment,
    output: Output,
) -> Result<String, CliError> {
    let app: App = client.get(&path(&["apps", &deployment.app])).await?;
    let version: Version = client.get("/v1/version").await?;
    let urls: Vec<String> = app.domains.iter().map(|d| url(d, &version.http)).collect();
    for warning in &app.warnings {
        output.warn(warning);
    }
    let does = match &deployment.variant {
        Some(name) => format!(
            "is the variant {name}, `hutong variants {}` shows how it does",
            deployment.app
        ),
        None => "serves".to_owned(),
    };
    Ok(format!(
        "release {} of {} {does}{}{}",
        deployment.release,
        deployment.app,
        if urls.is_empty() { "" } else { ": " },
        urls.join("  ")
    ))
}
