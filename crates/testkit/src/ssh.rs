//! A real SSH server of the test's own: on loopback, as the test's user, with keys and configuration in a folder that
//! goes with it; and an SSH client that knows nothing else.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::skip;

const SSHD: &str = "/usr/sbin/sshd";
/// Another program may take the port between our look and its start.
const TRIES: usize = 10;

pub struct Sshd {
    folder: TempDir,
    child: Child,
    port: u16,
}

impl Sshd {
    /// `None`, said, where there is none to start. Its host key is known to the client.
    pub fn start() -> Option<Self> {
        if !Path::new(SSHD).exists() {
            skip("sshd is needed (openssh-server)");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("hutong-ssh-").tempdir();
        let folder = folder.expect("a folder");
        for key in ["host", "user"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"])
                .arg(folder.path().join(key))
                .status();
            assert!(made.expect("ssh-keygen runs").success());
        }
        let user = std::fs::read(folder.path().join("user.pub")).expect("a key");
        std::fs::write(folder.path().join("authorized_keys"), user).expect("write");
        if rustix::process::geteuid().is_root() {
            // Where sshd without privileges lives; a service would have made it.
            std::fs::create_dir_all("/run/sshd").expect("/run/sshd");
        }
        let (child, port) = (0..TRIES)
            .find_map(|_| launch(folder.path()))
            .expect("sshd listens");
        let sshd = Sshd {
            folder,
            child,
            port,
        };
        sshd.write_client();
        sshd.know_host("host.pub");
        Some(sshd)
    }

    /// `ssh://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("ssh://127.0.0.1:{}", self.port)
    }

    /// A program that is called like `ssh`.
    pub fn client(&self) -> PathBuf {
        self.folder.path().join("ssh")
    }

    /// Ends it; the client stays.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Nobody is let in any more.
    pub fn lock_out(&self) {
        std::fs::write(self.folder.path().join("authorized_keys"), "").expect("write");
    }

    /// The client knows no host.
    pub fn forget_host(&self) {
        std::fs::write(self.folder.path().join("known_hosts"), "").expect("write");
    }

    /// The client takes another key for the host's.
    pub fn mistake_host(&self) {
        self.know_host("user.pub");
    }

    fn know_host(&self, key: &str) {
        let key = std::fs::read_to_string(self.folder.path().join(key)).expect("a key");
        let line = format!("[127.0.0.1]:{} {key}", self.port);
        std::fs::write(self.folder.path().join("known_hosts"), line).expect("write");
    }

    fn write_client(&self) {
        let folder = self.folder.path().display();
        let config = format!(
            "Host *\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  UpdateHostKeys no\n"
        );
        std::fs::write(self.folder.path().join("config"), config).expect("write");
        let script = format!("#!/bin/sh\nexec ssh -F {folder}/config \"$@\"\n");
        std::fs::write(self.client(), script).expect("write");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.client(), mode).expect("chmod");
    }
}

/// `None` if its port was taken.
fn launch(folder: &Path) -> Option<(Child, u16)> {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let shown = folder.display();
    let config = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {shown}/host\nAuthorizedKeysFile {shown}/authorized_keys\nPidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n"
    );
    let path = folder.join("sshd_config");
    std::fs::write(&path, config).expect("write");
    let mut child = Command::new(SSHD)
        .args(["-D", "-e", "-f"])
        .arg(&path)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sshd runs");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let listens = lines.by_ref().map_while(Result::ok).any(|line| {
        eprintln!("[sshd] {line}");
        line.starts_with("Server listening on")
    });
    if !listens {
        let _ = child.kill();
        let _ = child.wait();
        return None;
    }
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            eprintln!("[sshd] {line}");
        }
    });
    Some((child, port))
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}
