//! Many apps, half of them files and half of them tiny programs: what they cost, and how long a boot
//! takes until every one is served.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hutong_testkit::server::Server;

use super::{QUIET, fill_tiny_app, memory, serves};
use crate::footprint::Bare;

/// Commands at once that deploy; it is not what is measured.
const DEPLOYERS: usize = 4;
/// Nothing here may take longer.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Load {
    pub apps: usize,
    pub instances: usize,
    /// MB; the larger of those before and after the boot.
    pub platform: f64,
    /// MB.
    pub instance: f64,
    /// Seconds beyond own starts.
    pub boot: f64,
    pub notes: Vec<String>,
}

/// `half` static apps and `half` programs are deployed and looked at, the server and all of it is ended
/// as a shutdown would (`--stop-apps`), and started on the same data folder.
///
/// Boot is from before the spawn of `hutong serve` until every host has answered 200, each asked in turn;
/// own starts are the same programs run bare, one after the other, each until it can be connected to, and
/// all staying. Unlike a reboot the files are still in the page cache.
pub fn run(binary: &Path, program: &Path, half: usize) -> anyhow::Result<Load> {
    // Dropped last: the server goes before its data does.
    let data = tempfile::Builder::new().prefix("hutong-bench-").tempdir()?;
    let folders = tempfile::tempdir()?;
    let mut names = Vec::new();
    for number in 0..half {
        names.push(static_app(folders.path(), number)?);
        let name = format!("process-{number}");
        let folder = folders.path().join(&name);
        std::fs::create_dir(&folder)?;
        fill_tiny_app(&folder, &name, 1, program)?;
        names.push(name);
    }
    let hosts: Vec<String> = names.iter().map(|name| format!("{name}.test")).collect();
    let paths = names.iter().map(|name| folders.path().join(name)).collect();
    // The second --data-dir holds; the folder of its own that the testkit gives it stays empty.
    let data_dir = data.path().to_string_lossy();
    let start = || Server::start_binary(binary, &["--data-dir", &data_dir]);

    let server = start();
    std::thread::sleep(QUIET);
    let kernel = memory::of_the_kernel()?;
    let began = Instant::now();
    deploy_all(&server, paths)?;
    let deployed = began.elapsed().as_secs_f64();
    await_all(&server.http, &hosts)?;
    std::thread::sleep(QUIET);
    let platform = memory::platform(&server)?;
    let instance = memory::of_an_instance(&server)?;
    let kernel = (memory::of_the_kernel()? - kernel) / half as f64;
    let began = Instant::now();
    stop(server)?;
    let stopped = began.elapsed().as_secs_f64();

    let own = own_starts(program, half)?;
    let began = Instant::now();
    let server = start();
    let ready = began.elapsed().as_secs_f64();
    await_all(&server.http, &hosts)?;
    let boot = began.elapsed().as_secs_f64();
    std::thread::sleep(QUIET);
    let platform_after = memory::platform(&server)?;
    stop(server)?;
    let apps = hosts.len();
    Ok(Load {
        apps,
        instances: half,
        platform: platform.max(platform_after),
        instance,
        boot: boot - own,
        notes: vec![
            format!(
                "platform memory with {apps} apps: {platform:.1} MB after their deployment, {platform_after:.1} MB after the boot"
            ),
            format!(
                "what the kernel of the whole machine took for itself (unreclaimable slab, stacks, page tables, per-cpu) while {apps} apps were deployed: {kernel:.2} MB for each of the {instances} instances, the program's and the shim's included",
                instances = half
            ),
            format!(
                "boot: {boot:.2} s to all routed ({ready:.2} s to the API), own starts {own:.2} s; the {apps} deployments took {deployed:.1} s, {DEPLOYERS} at once; the stop {stopped:.1} s"
            ),
        ],
    })
}

fn static_app(folders: &Path, number: usize) -> anyhow::Result<String> {
    let name = format!("static-{number}");
    let folder = folders.join(&name);
    std::fs::create_dir(&folder)?;
    let text = format!("name = \"{name}\"\ndomains = [\"{name}.test\"]\nstatic = \".\"\n");
    std::fs::write(folder.join("hutong.toml"), text)?;
    std::fs::write(folder.join("index.html"), &name)?;
    Ok(name)
}

/// A few at once, in no order.
pub fn deploy_all(server: &Server, folders: Vec<PathBuf>) -> anyhow::Result<()> {
    let left = Mutex::new(folders);
    let next = || left.lock().ok().and_then(|mut left| left.pop());
    let deployer = || -> anyhow::Result<()> {
        while let Some(folder) = next() {
            let output = server.run(&["deploy", &folder.to_string_lossy()]);
            let said = String::from_utf8_lossy(&output.stderr);
            anyhow::ensure!(output.status.success(), "{}: {said}", folder.display());
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..DEPLOYERS).map(|_| scope.spawn(deployer)).collect();
        threads.into_iter().try_for_each(|thread| {
            let joined = thread.join();
            joined.unwrap_or_else(|_| anyhow::bail!("a deployer panicked"))
        })
    })
}

/// Asks each host until it answered 200 once. A request that the gateway holds waits there.
fn await_all(http: &str, hosts: &[String]) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut left: Vec<&String> = hosts.iter().collect();
    loop {
        left.retain(|host| !serves(http, host));
        if left.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(began.elapsed() < PATIENCE, "not served: {left:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Seconds until all run, started one after the other.
fn own_starts(program: &Path, count: usize) -> anyhow::Result<f64> {
    let began = Instant::now();
    let all: anyhow::Result<Vec<Bare>> = (0..count).map(|_| Bare::start(program)).collect();
    let seconds = began.elapsed().as_secs_f64();
    all.map(|_| seconds)
}

/// SIGTERM, and its end. The testkit waits too, but not long enough for hundreds of apps.
fn stop(mut server: Server) -> anyhow::Result<()> {
    let pid = server.pid();
    let sent = Command::new("kill")
        .args(["-TERM", &pid.to_string()])
        .status()?;
    anyhow::ensure!(sent.success(), "the server is gone");
    let began = Instant::now();
    while is_running(pid) && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Reaps it, and sees that it left nothing.
    server.stop();
    Ok(())
}

fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_some_and(|rest| !rest.starts_with('Z'))
}
