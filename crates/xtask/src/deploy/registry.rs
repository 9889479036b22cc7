//! Our registry beside Debian's docker-registry: pushes and pulls of 200 MB by the same client, what control's memory
//! grows by meanwhile, and a push of an image that is there but for one small layer.
//!
//! Both are on loopback without TLS and keep what they get in a folder below the same `/tmp`. Ours wants a token, and the
//! other one asks nobody for anything.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use hutong_testkit::server::Server;
use tempfile::TempDir;

use super::image::{Content, Image};
use super::relay::Relay;
use super::{LAYER, LAYERS, beside, flush, ok, row};
use crate::core::memory;
use crate::footprint::free_port;
use crate::gateway::cpu_seconds;
use crate::{Report, median};

/// Bytes of the files in the layer that is new where the others are not.
const SMALL: usize = 16_000;
/// What control may grow by, in MB.
const GROWTH: f64 = 20.0;
/// What a push may send beside what is new, in KB: the questions whether the other layers are there. The issue asks for
/// nothing; without a bound of ours it could not be missed.
const QUESTIONS: f64 = 64.0;
/// Of docker-registry's speed for such a push, which takes a moment only. Ours, too.
const AS_QUICK: f64 = 0.8;

/// One of the two registries, and what was measured with it.
struct Side {
    name: &'static str,
    address: String,
    /// Name and password.
    creds: Option<String>,
    /// The process that serves.
    pid: u32,
    /// MB/s.
    pushes: Vec<f64>,
    pulls: Vec<f64>,
    /// Of pushes with one new layer: seconds, and KB sent beyond what is new.
    further: Vec<f64>,
    beyond: Vec<f64>,
}

impl Side {
    fn new(name: &'static str, address: String, creds: Option<String>, pid: u32) -> Self {
        Side {
            name,
            address,
            creds,
            pid,
            pushes: Vec::new(),
            pulls: Vec::new(),
            further: Vec::new(),
            beyond: Vec::new(),
        }
    }

    /// Seconds.
    fn push(
        &self,
        client: &Client,
        image: &Image,
        address: &str,
        tag: &str,
    ) -> anyhow::Result<f64> {
        let mut flags = vec!["--dest-tls-verify=false"];
        if let Some(creds) = &self.creds {
            flags.extend(["--dest-creds", creds.as_str()]);
        }
        let to = format!("docker://{address}/shop:{tag}");
        let pushed = client.copy(&flags, &image.reference(), &to);
        pushed.with_context(|| format!("push to {}", self.name))
    }

    /// Seconds.
    fn pull(&self, client: &Client, tag: &str) -> anyhow::Result<f64> {
        let mut flags = vec!["--src-tls-verify=false"];
        if let Some(creds) = &self.creds {
            flags.extend(["--src-creds", creds.as_str()]);
        }
        let from = format!("docker://{}/shop:{tag}", self.address);
        let pulled = client.to_folder(&flags, &from);
        pulled.with_context(|| format!("pull from {}", self.name))
    }
}

/// skopeo, with no passwords or settings of whoever runs this.
struct Client {
    home: TempDir,
}

impl Client {
    fn new() -> anyhow::Result<Self> {
        let home = tempfile::tempdir()?;
        std::fs::write(home.path().join("auth.json"), "{}")?;
        Ok(Client { home })
    }

    /// Seconds.
    fn copy(&self, flags: &[&str], from: &str, to: &str) -> anyhow::Result<f64> {
        let mut command = Command::new("skopeo");
        command
            .args(["--insecure-policy", "copy", "-q"])
            .args(flags)
            .args([from, to])
            .env("HOME", self.home.path())
            .env("REGISTRY_AUTH_FILE", self.home.path().join("auth.json"));
        flush()?;
        let began = Instant::now();
        ok(&mut command)?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// Into a folder that goes at once. Seconds.
    fn to_folder(&self, flags: &[&str], from: &str) -> anyhow::Result<f64> {
        let folder = tempfile::tempdir()?;
        let to = format!("dir:{}", folder.path().join("image").display());
        self.copy(flags, from, &to)
    }
}

/// Debian's docker-registry with a folder of its own, until this is dropped.
struct DockerRegistry {
    child: Child,
    address: String,
    _folder: TempDir,
}

impl DockerRegistry {
    /// Its configuration is Debian's without passwords, and without a log of requests.
    fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  cache:\n    blobdescriptor: inmemory\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n",
            folder.path().join("store").display()
        );
        let config = folder.path().join("config.yml");
        std::fs::write(&config, text)?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("docker-registry does not run")?;
        let mut registry = DockerRegistry {
            child,
            address,
            _folder: folder,
        };
        registry.wait()?;
        Ok(registry)
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while TcpStream::connect(&self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("docker-registry ended: {status}");
            }
            let patient = began.elapsed() < Duration::from_secs(20);
            anyhow::ensure!(patient, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn run(binary: &Path, rounds: usize) -> anyhow::Result<Report> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("server.toml");
    let address = format!("127.0.0.1:{}", free_port()?);
    std::fs::write(&config, format!("registry = '{address}'\n"))?;
    let server = Server::start_binary(binary, &["--config", &config.to_string_lossy()]);
    let token = server.ok(&["token", "create", "shop"]).trim().to_owned();
    let control = server.role("control");
    let rival = DockerRegistry::start()?;
    let client = Client::new()?;
    let mut sides = [
        Side::new("ours", address, Some(format!("any:{token}")), control),
        Side::new(
            "docker-registry",
            rival.address.clone(),
            None,
            rival.child.id(),
        ),
    ];

    let before = memory::resident(control)?;
    memory::forget_peak(control)?;
    let busy = sides.each_ref().map(|side| cpu_seconds(side.pid));
    let mut alone = Vec::new();
    let mut last = None;
    for round in 0..rounds {
        let image = Image::new(Content::Noise, LAYERS, LAYER)?;
        let megabytes = image.packed() as f64 / 1e6;
        let tag = format!("round-{round}");
        for turn in 0..2 {
            let side = &mut sides[(round + turn) % 2];
            let seconds = side.push(&client, &image, &side.address, &tag)?;
            side.pushes.push(megabytes / seconds);
        }
        for turn in 0..2 {
            let side = &mut sides[(round + turn) % 2];
            let seconds = side.pull(&client, &tag)?;
            side.pulls.push(megabytes / seconds);
        }
        alone.push(megabytes / client.to_folder(&[], &image.reference())?);
        last = Some(image);
    }
    let peak = memory::peak(control)?;
    let busy: Vec<f64> = sides
        .iter()
        .zip(busy)
        .map(|(side, before)| (cpu_seconds(side.pid) - before) / rounds as f64)
        .collect();
    let mut image = last.context("no rounds")?;
    let packed = image.packed() as f64 / 1e6;
    let new = one_new_layer(&client, &mut sides, &mut image, rounds)?;
    anyhow::ensure!(
        server.role("control") == control,
        "control was started again meanwhile, so its memory is not what was measured"
    );

    let [ours, other] = sides;
    let (push, other_push) = (median(ours.pushes), median(other.pushes));
    let (pull, other_pull) = (median(ours.pulls), median(other.pulls));
    let (further, other_further) = (median(ours.further), median(other.further));
    let (beyond, other_beyond) = (median(ours.beyond), median(other.beyond));
    let rows = vec![
        beside(
            format!("push of a new image of {packed:.0} MB, beside docker-registry"),
            push,
            other_push,
            "MB/s",
            1.0,
        ),
        beside("pull of it".into(), pull, other_pull, "MB/s", 1.0),
        row(
            "what control grows by at most meanwhile (RSS)".into(),
            peak - before,
            "MB",
            GROWTH,
        ),
        row(
            format!(
                "push of the same with one new layer: sent beyond the {:.1} KB that are new",
                new / 1e3
            ),
            beyond,
            "KB",
            QUESTIONS,
        ),
        beside(
            "such pushes in a second, beside docker-registry".into(),
            1.0 / further,
            1.0 / other_further,
            "/s",
            AS_QUICK,
        ),
    ];
    let notes = vec![
        format!(
            "pushes and pulls: medians of {rounds}; skopeo alone, from folder to folder: {:.0} MB/s, and neither registry can look faster than that",
            median(alone)
        ),
        format!(
            "processor time for a push and a pull of {packed:.0} MB: control {:.2} s, docker-registry {:.2} s",
            busy[0], busy[1]
        ),
        format!(
            "control's memory (RSS, by the kernel's own record): {before:.1} MB before the first push, {peak:.1} MB at most during {rounds} pushes and {rounds} pulls"
        ),
        format!(
            "push with one new layer: {:.0} ms, docker-registry {:.0} ms, skopeo's start in both; docker-registry was sent {other_beyond:.1} KB beyond what is new; the whole image took {:.0} and {:.0} ms",
            further * 1e3,
            other_further * 1e3,
            packed / push * 1e3,
            packed / other_push * 1e3
        ),
    ];
    Ok(Report { rows, notes })
}

/// Pushes of an image that both have, each time with one more small layer. How many bytes are new, the last time.
fn one_new_layer(
    client: &Client,
    sides: &mut [Side; 2],
    image: &mut Image,
    rounds: usize,
) -> anyhow::Result<f64> {
    let relays = [
        Relay::start(&sides[0].address)?,
        Relay::start(&sides[1].address)?,
    ];
    let mut new = 0.0;
    for round in 0..rounds {
        new = image.add(Content::Noise, SMALL)? as f64;
        let tag = format!("further-{round}");
        for turn in 0..2 {
            let number = (round + turn) % 2;
            let (side, relay) = (&mut sides[number], &relays[number]);
            relay.take_sent();
            let seconds = side.push(client, image, &relay.address, &tag)?;
            side.further.push(seconds);
            let sent = relay.take_sent() as f64;
            anyhow::ensure!(sent >= new, "less was sent to {} than is new", side.name);
            side.beyond.push((sent - new) / 1e3);
        }
    }
    Ok(new)
}
