//! Where things lie on disk and in /run, in one place. Who owns what is written at each.

pub use hutong_ipc::files::atomic_write;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::sys;

/// The folder of a system server.
pub const SYSTEM_DATA_DIR: &str = "/var/lib/hutong";

/// The data folder of one server and its runtime folder.
#[derive(Clone, Debug)]
pub struct Layout {
    pub data: PathBuf,
    pub run: PathBuf,
    /// Eight hex digits that tell this server's global names from another's.
    pub tag: String,
}

impl Layout {
    /// `data` must exist.
    pub fn new(data: &Path) -> io::Result<Self> {
        let data = data.canonicalize()?;
        let tag = format!("{:08x}", fnv(data.as_os_str().as_encoded_bytes()));
        let run = run_dir(&data, &tag);
        Ok(Layout { data, run, tag })
    }

    pub fn control(&self) -> PathBuf {
        self.data.join("control")
    }
    pub fn spool(&self) -> PathBuf {
        self.data.join("spool")
    }
    pub fn trees(&self) -> PathBuf {
        self.data.join("trees")
    }
    pub fn built(&self) -> PathBuf {
        self.data.join("built")
    }
    pub fn builds(&self) -> PathBuf {
        self.data.join("builds")
    }
    /// What builds of an app keep for the next one.
    pub fn caches(&self) -> PathBuf {
        self.data.join("caches")
    }
    pub fn app_data(&self) -> PathBuf {
        self.data.join("data")
    }
    pub fn keys(&self) -> PathBuf {
        self.data.join("keys")
    }
    pub fn gateway(&self) -> PathBuf {
        self.data.join("gateway")
    }
    /// Where the gateway's table lies: in memory, because it must be changed on a full disk too.
    pub fn tables(&self) -> PathBuf {
        self.run.join("gateway")
    }
    pub fn warden_state(&self) -> PathBuf {
        self.data.join("warden")
    }
    pub fn instances(&self) -> PathBuf {
        self.run.join("i")
    }
    pub fn instance_socket(&self, instance: &str) -> PathBuf {
        self.instances().join(format!("{instance}.sock"))
    }
    /// Trees as containers have them.
    pub fn mounts(&self) -> PathBuf {
        self.data.join("mounts")
    }
    /// Where control keeps what images are made of, packed; see the registry's `disk`.
    pub fn registry(&self) -> PathBuf {
        self.control().join("registry")
    }
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }
    /// Layers of images, unpacked, by the digests of their archives.
    pub fn layers(&self) -> PathBuf {
        self.images().join("layers")
    }
    /// Whole images of one app, unpacked, where layers cannot be stacked.
    pub fn flat(&self) -> PathBuf {
        self.images().join("flat")
    }
    /// The Docker driver's own folder.
    pub fn docker(&self) -> PathBuf {
        self.data.join("docker")
    }
    /// File systems of apps whose `/data` has a bound.
    pub fn disks(&self) -> PathBuf {
        self.data.join("disks")
    }
    /// Copies of apps' `/data` as it was.
    pub fn snapshots(&self) -> PathBuf {
        self.data.join("snapshots")
    }
    /// Where gateways ask for the sockets of containers' links.
    pub fn links_socket(&self) -> PathBuf {
        self.run.join("links.sock")
    }
    pub fn docker_socket(&self) -> PathBuf {
        self.run.join("docker.sock")
    }
    pub fn warden_socket(&self) -> PathBuf {
        self.run.join("warden.sock")
    }
    pub fn gateway_socket(&self) -> PathBuf {
        self.run.join("gateway.sock")
    }
    pub fn api_socket(&self) -> PathBuf {
        self.run.join("api.sock")
    }

    /// Makes every folder with its owner and mode; `ids` are control's, the gateway's, and the Docker driver's, in
    /// root mode.
    pub fn create(&self, ids: Option<(u32, u32, u32)>) -> io::Result<()> {
        let (uid, gid) = (sys::effective_uid(), sys::effective_gid());
        let (control, gateway, docker) = ids.unwrap_or((uid, gid, uid));
        let root = sys::effective_uid();
        let private = |group| {
            if ids.is_some() {
                group
            } else {
                sys::effective_gid()
            }
        };
        for (path, owner, group, mode) in [
            (self.data.clone(), root, private(0), 0o711),
            (self.run.clone(), root, private(0), 0o711),
            (self.instances(), root, private(0), 0o711),
            (self.warden_state(), root, private(0), 0o700),
            (self.app_data(), root, private(0), 0o700),
            (self.builds(), root, private(0), 0o700),
            (self.caches(), root, private(0), 0o700),
            (self.disks(), root, private(0), 0o700),
            (self.snapshots(), root, private(0), 0o700),
            (self.mounts(), root, private(0), 0o700),
            (self.images(), root, private(0), 0o700),
            (self.layers(), root, private(0), 0o700),
            (self.flat(), root, private(0), 0o700),
            // The gateway may pass through to files of static apps, nobody else.
            (self.built(), root, gateway, 0o710),
            (self.trees(), control, gateway, 0o710),
            (self.gateway(), control, gateway, 0o750),
            (self.tables(), control, gateway, 0o750),
            // Certificates' private keys: the gateway writes them itself.
            (self.keys(), gateway, private(gateway), 0o700),
            (self.docker(), docker, private(docker), 0o700),
            (self.control(), control, private(control), 0o700),
            // Beside control's own folder, not in it: the warden opens files here, so no part of the
            // way may be control's to replace.
            (self.spool(), control, private(control), 0o700),
        ] {
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            if ids.is_some() {
                chown(&path, Some(owner), Some(group))?;
            }
        }
        Ok(())
    }
}

fn run_dir(data: &Path, tag: &str) -> PathBuf {
    if sys::effective_uid() == 0 {
        return if data == Path::new(SYSTEM_DATA_DIR) {
            "/run/hutong".into()
        } else {
            format!("/run/hutong-{tag}").into()
        };
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) if Path::new(&folder).is_dir() => {
            PathBuf::from(folder).join(format!("hutong-{tag}"))
        }
        _ => format!("/tmp/hutong-{}-{tag}", sys::effective_uid()).into(),
    }
}

/// FNV-1a, 32 bits: names, not security.
pub fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}
