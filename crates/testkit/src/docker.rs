//! A real Docker engine of the test's own: its own network namespace, folders and cgroup, so that what it does to firewall
//! and bridges stays there. The test's thread moves in, too, and with it the servers and visitors that it starts.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::{eventually, is_root, skip};

pub struct Docker {
    folder: TempDir,
    child: Child,
}

/// The image of the tests' own program: Python, a shell and a few tools of this machine, run by user 1000.
pub const IMAGE: &str = "hutong-test/python:1";
/// The same without a user: root.
pub const ROOT_IMAGE: &str = "hutong-test/root:1";

/// Programs of this machine that go into the image.
const PROGRAMS: [&str; 14] = [
    "/usr/bin/python3",
    "/usr/bin/sh",
    "/usr/bin/cat",
    "/usr/bin/echo",
    "/usr/bin/env",
    "/usr/bin/false",
    "/usr/bin/id",
    "/usr/bin/ls",
    "/usr/bin/printenv",
    "/usr/bin/seq",
    "/usr/bin/sleep",
    "/usr/bin/touch",
    "/usr/bin/true",
    "/usr/bin/rm",
];

impl Docker {
    /// An engine with the tests' images; `None`, said, where there is none to start.
    pub fn start() -> Option<Self> {
        Self::folder().map(Self::start_in)
    }

    /// The same on a disk of its own.
    pub fn start_on_disk(megabytes: u64) -> Option<Self> {
        let folder = Self::folder()?;
        if !mount_disk(folder.path(), megabytes) {
            skip("mkfs.ext4 and a loop device are needed");
            return None;
        }
        Some(Self::start_in(folder))
    }

    fn folder() -> Option<TempDir> {
        if !is_root() {
            return None;
        }
        if !Path::new("/usr/sbin/dockerd").exists() {
            skip("dockerd is needed (docker.io)");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("hutong-docker-").tempdir();
        Some(folder.expect("a folder"))
    }

    fn start_in(folder: TempDir) -> Self {
        let mut docker = Docker {
            child: Self::launch(folder.path(), true),
            folder,
        };
        docker.await_start();
        docker.enter();
        // Its FORWARD chain drops by default; what `hutong doctor` says to do about it.
        docker.nft("insert rule ip filter DOCKER-USER iifname \"ht*\" accept; insert rule ip filter DOCKER-USER oifname \"ht*\" accept");
        docker.import();
        docker
    }

    /// `own_network`: in a network namespace that is made for it, else in the one that this thread is in.
    fn launch(folder: &Path, own_network: bool) -> Child {
        let below = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let name = folder.file_name().expect("a name").to_string_lossy();
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join("log"));
        let mut command = if own_network {
            let script = "ip link set lo up && exec /usr/sbin/dockerd \"$@\"";
            let mut command = Command::new("unshare");
            command.args(["--net", "sh", "-c", script, "sh"]);
            command
        } else {
            Command::new("/usr/sbin/dockerd")
        };
        command
            .args(["--data-root", &below("data"), "--exec-root", &below("exec")])
            .args(["--pidfile", &below("pid")])
            .args(["-H", &format!("unix://{}", below("docker.sock"))])
            .arg(format!("--cgroup-parent=/{name}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn()
            .expect("dockerd runs")
    }

    fn await_start(&mut self) {
        eventually("the engine answers", 60, || {
            let ended = matches!(self.child.try_wait(), Ok(Some(_)));
            let log = || std::fs::read_to_string(self.folder.path().join("log"));
            assert!(!ended, "dockerd ended: {}", log().unwrap_or_default());
            self.run(&["version"]).status.success()
        });
    }

    /// This thread, and what it starts, see the engine's network from now on.
    fn enter(&self) {
        let path = format!("/proc/{}/ns/net", self.child.id());
        let namespace = File::open(path).expect("its namespace");
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("setns");
    }

    pub fn socket(&self) -> String {
        let path = self.folder.path().join("docker.sock");
        path.to_string_lossy().into_owned()
    }

    /// `docker ARGUMENTS`.
    pub fn run(&self, arguments: &[&str]) -> Output {
        Command::new("docker")
            .args(["-H", &format!("unix://{}", self.socket())])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("docker runs")
    }

    /// The same, which must succeed: its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "docker {}: {said}",
            arguments.join(" ")
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Rules in the engine's own network.
    pub fn nft(&self, rules: &str) {
        let done = Command::new("nft").arg(rules).status();
        assert!(done.expect("nft runs").success(), "{rules}");
    }

    /// SIGTERM to the engine, and another in its place, in the same network.
    pub fn restart(&mut self) {
        self.stop();
        self.begin_again();
    }

    /// SIGTERM, and its end: containers end with it.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        eventually("the engine ends", 30, || {
            matches!(self.child.try_wait(), Ok(Some(_)))
        });
    }

    /// SIGSTOP: it answers nobody.
    pub fn hang(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("SIGSTOP");
    }

    pub fn go_on(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("SIGCONT");
    }

    /// Starts it after [`Self::stop`], in the network that it had.
    pub fn begin_again(&mut self) {
        self.child = Self::launch(self.folder.path(), false);
        self.await_start();
    }

    fn import(&self) {
        let archive = root_archive(self.folder.path());
        let archive = archive.to_string_lossy();
        self.ok(&["import", "-c", "USER 1000", &archive, IMAGE]);
        self.ok(&["import", &archive, ROOT_IMAGE]);
        let _ = std::fs::remove_file(&*archive);
    }
}

/// A new ext4 on `folder`. Its file goes with the mount.
fn mount_disk(folder: &Path, megabytes: u64) -> bool {
    let own = tempfile::tempdir().expect("tempdir");
    let disk = own.path().join("disk");
    let file = File::create(&disk).expect("a file");
    file.set_len(megabytes << 20).expect("its size");
    let made = Command::new("/usr/sbin/mkfs.ext4")
        .args(["-q", "-F", "-m", "0"])
        .arg(&disk)
        .status();
    let mounted = || {
        let done = Command::new("mount")
            .args(["-o", "loop"])
            .arg(&disk)
            .arg(folder)
            .status();
        done.is_ok_and(|done| done.success())
    };
    made.is_ok_and(|made| made.success()) && mounted()
}

/// The root of the tests' image as an archive, in `folder`.
pub fn root_archive(folder: &Path) -> std::path::PathBuf {
    let list = folder.join("list");
    let mut file = File::create(&list).expect("a list");
    for path in image_files() {
        writeln!(file, "{}", path.trim_start_matches('/')).expect("written");
    }
    let path = folder.join("root.tar");
    let archive = path.to_string_lossy();
    let done = Command::new("tar")
        .args([
            "-C",
            "/",
            "--exclude=__pycache__",
            "--exclude=test",
            "-cf",
            &archive,
            "-T",
        ])
        .arg(&list)
        .output()
        .expect("tar runs");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    // An empty /tmp, as images have.
    let tmp = folder.join("extra/tmp");
    std::fs::create_dir_all(&tmp).expect("a folder");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(&tmp, open).expect("chmod");
    let done = Command::new("tar")
        .args(["-rf", &archive, "-C"])
        .arg(tmp.parent().expect("its folder"))
        .arg("tmp")
        .status();
    assert!(done.expect("tar runs").success());
    drop(archive);
    path
}

/// What the image has: the programs with their libraries, and Python's own.
fn image_files() -> Vec<String> {
    let mut files = std::collections::BTreeSet::new();
    for link in ["/bin", "/lib", "/lib64", "/etc/passwd"] {
        files.insert(link.to_owned());
    }
    let mut linked = Vec::new();
    for program in PROGRAMS {
        files.insert(program.to_owned());
        let real = std::fs::canonicalize(program).unwrap_or_else(|e| panic!("{program}: {e}"));
        if program.ends_with("python3") {
            let name = real.file_name().expect("a name").to_string_lossy();
            let library = format!("/usr/lib/{name}");
            let modules = std::fs::read_dir(format!("{library}/lib-dynload"));
            linked.extend(
                modules
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|module| module.path()),
            );
            files.insert(library);
        }
        files.insert(real.to_string_lossy().into_owned());
        linked.push(real);
    }
    let output = Command::new("ldd")
        .args(&linked)
        .output()
        .expect("ldd runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = text.split_ascii_whitespace();
    let libraries: std::collections::BTreeSet<&str> = words
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .collect();
    for library in libraries {
        // Where /lib is a link, what is behind it is archived below its real name.
        let parent = Path::new(library).parent().expect("a parent");
        let parent = std::fs::canonicalize(parent).expect("it is there");
        let name = Path::new(library).file_name().expect("a name");
        files.insert(parent.join(name).to_string_lossy().into_owned());
        let real = std::fs::canonicalize(library).expect("it is there");
        files.insert(real.to_string_lossy().into_owned());
    }
    files.into_iter().collect()
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.go_on();
        let ids = String::from_utf8_lossy(&self.run(&["ps", "-aq"]).stdout).into_owned();
        for id in ids.split_ascii_whitespace() {
            let _ = self.run(&["rm", "-f", id]);
        }
        self.stop();
        let folder = self.folder.path();
        let name = folder.file_name().expect("a name");
        let trees = std::fs::read_dir("/sys/fs/cgroup");
        for tree in trees.into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(tree.path().join(name));
        }
        let _ = std::fs::remove_dir(Path::new("/sys/fs/cgroup").join(name));
        // The engine leaves mounts of network namespaces, which would keep the folder from being removed.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for point in points.filter(|point| Path::new(point).starts_with(folder)) {
            let _ = Command::new("umount").args(["--lazy", point]).status();
        }
    }
}
