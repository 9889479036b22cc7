//! The root of an app that comes as an image: its layers, read-only, stacked by overlayfs. On top is a folder in memory
//! that gets what a sandbox adds (places for mounts, /etc/hosts), and then all of it is sealed.
//!
//! The image is somebody else's, and this process still has the host's root's powers. So no name of it is followed out
//! of it: every place is opened with `RESOLVE_IN_ROOT`, and mounted at by its handle.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use hutong_ipc::shim::{Launch, Mount, Root, UID_RANGE};

use crate::sandbox::{NO_DEVICES, NO_SETUID, READ_ONLY, STAGING};
use crate::{Context, sys};

/// What each folder in memory may hold, beside whose it is.
const WRITABLE: &str = "size=64m,mode=1777";

/// A file or folder of the host with the place where it is to appear.
type Source<'a> = (OwnedFd, &'a Mount);

/// Puts the root together; where it is then. `mapping` shows the layers' files with the app's ids.
pub fn build(
    launch: &Launch,
    root: &Root,
    sources: &[Source<'_>],
    mapping: Option<&OwnedFd>,
) -> Result<String, String> {
    let layers = layers(root, mapping)?;
    // Ours alone: folders and files that an image lacks.
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    sys::mount(
        "tmpfs",
        STAGING,
        "tmpfs",
        flags,
        "size=4m,nr_inodes=8k,mode=755",
    )
    .during("cannot mount a tmpfs for the new root")?;
    let at = |name: &str| format!("{STAGING}/{name}");
    for folder in ["layers", "upper", "work", "root"] {
        fs::create_dir(at(folder)).during("cannot make a folder for the new root")?;
    }
    stack(&layers, launch.uid_base).during("cannot stack the image's layers (overlayfs)")?;
    drop(layers);
    let base = at("root");
    let place = Place {
        root: sys::open_without_links(&base).during("cannot open the new root")?,
        owner: launch.uid_base,
    };
    for name in ["/proc", "/dev", "/tmp", "/run"] {
        place
            .own_folder(name)
            .during(&format!("cannot make {name}"))?;
    }
    for (path, options) in [("/tmp", &*tmp_options(launch)), ("/run", WRITABLE)] {
        place.memory(path, options)?;
    }
    tmpfs(
        &place.folder("/dev"),
        "/dev",
        "size=64k,nr_inodes=64,mode=755",
    )?;
    for path in &launch.writable {
        place.memory(path, WRITABLE)?;
    }
    for (fd, mount) in sources {
        place
            .attach(fd, mount)
            .during(&format!("cannot mount {}", mount.target))?;
    }
    for (path, content) in &launch.files {
        place
            .write(path, content)
            .during(&format!("cannot write {path}"))?;
    }
    place
        .folder(&launch.cwd)
        .during(&format!("cannot make {}", launch.cwd))?;
    Ok(base)
}

fn tmp_options(launch: &Launch) -> String {
    format!("size={},mode=1777", launch.tmp_bytes)
}

/// Mounts of their own of the layers' folders, from the bottom up, attached nowhere yet.
fn layers(root: &Root, mapping: Option<&OwnedFd>) -> Result<Vec<OwnedFd>, String> {
    let mut layers = Vec::with_capacity(root.layers.len());
    for path in &root.layers {
        let folder = sys::open_without_links(path).during("a layer of the image is not there")?;
        let mount = sys::detached_mount(&folder, false).during("cannot mount a layer")?;
        let sealed = READ_ONLY | NO_SETUID | NO_DEVICES;
        sys::restrict_detached(&mount, sealed, false, mapping)
            .during("cannot show a layer's files with the app's ids (idmapped mounts)")?;
        layers.push(mount);
    }
    Ok(layers)
}

fn stack(layers: &[OwnedFd], owner: Option<u32>) -> io::Result<()> {
    let at = |name: &str| format!("{STAGING}/{name}");
    for (number, layer) in layers.iter().enumerate() {
        let place = at(&format!("layers/{number}"));
        fs::create_dir(&place)?;
        sys::attach_mount(layer, &sys::open_without_links(&place)?)?;
    }
    if let Some(id) = owner {
        std::os::unix::fs::chown(at("upper"), Some(id), Some(id))?;
    }
    // Names, because a list of paths would not fit where there are many; the topmost comes first.
    sys::chdir(&at("layers"))?;
    let names: Vec<String> = (0..layers.len()).rev().map(|n| n.to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},userxattr",
        names.join(":"),
        at("upper"),
        at("work")
    );
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    sys::mount("overlay", &at("root"), "overlay", flags, &options)?;
    sys::chdir("/")
}

fn tmpfs(folder: &io::Result<OwnedFd>, path: &str, options: &str) -> Result<(), String> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    let folder = folder
        .as_ref()
        .during(&format!("cannot make the folder {path}"))?;
    sys::mount("tmpfs", &by_handle(folder), "tmpfs", flags, options)
        .during(&format!("cannot mount a tmpfs on {path}"))
}

fn by_handle(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The new root, while it may be written to.
struct Place {
    root: OwnedFd,
    /// Root inside, to whom belongs what is made.
    owner: Option<u32>,
}

impl Place {
    /// A folder at the root itself that is no link: what is mounted in it is mounted by its path.
    fn own_folder(&self, path: &str) -> io::Result<()> {
        let name = path.trim_start_matches('/');
        if sys::is_folder(&self.root, name)? {
            return Ok(());
        }
        sys::unlink_at(&self.root, name)?;
        self.make(&self.root, name)
    }

    /// Opens a folder, and makes it and those above it where they are missing.
    fn folder(&self, path: &str) -> io::Result<OwnedFd> {
        let path = path.trim_end_matches('/');
        match sys::open_inside(&self.root, path, libc::O_DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let above = self.folder(above)?;
        match self.make(&above, name) {
            // A link that leads nowhere.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                sys::unlink_at(&above, name)?;
                self.make(&above, name)?;
            }
            other => other?,
        }
        sys::open_inside(&self.root, path, libc::O_DIRECTORY)
    }

    /// A folder in memory over what the image has there, and owned as that: programs look whose their folders are.
    fn memory(&self, path: &str, options: &str) -> Result<(), String> {
        let folder = self.folder(path);
        let options = match (&folder, self.owner) {
            (Ok(folder), Some(base)) => {
                let found = fs::metadata(by_handle(folder))
                    .during(&format!("cannot look at the folder {path}"))?;
                let own = base..base + UID_RANGE;
                let or_root = |id: u32| if own.contains(&id) { id } else { base };
                let (uid, gid) = (or_root(found.uid()), or_root(found.gid()));
                format!("{options},uid={uid},gid={gid}")
            }
            _ => options.to_owned(),
        };
        tmpfs(&folder, path, &options)
    }

    fn make(&self, above: &OwnedFd, name: &str) -> io::Result<()> {
        sys::make_folder_at(above, name, self.owner)
    }

    /// A file of ours in place of whatever the image has there.
    fn write(&self, path: &str, content: &str) -> io::Result<()> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let above = self.folder(above)?;
        sys::unlink_at(&above, name)?;
        let mut file = File::from(sys::create_at(&above, name)?);
        file.write_all(content.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        match self.owner {
            Some(id) => std::os::unix::fs::fchown(&file, Some(id), Some(id)),
            None => Ok(()),
        }
    }

    fn attach(&self, source: &OwnedFd, mount: &Mount) -> io::Result<()> {
        let is_folder = fs::metadata(by_handle(source))?.is_dir();
        let target = if is_folder {
            self.folder(&mount.target)?
        } else {
            self.write(&mount.target, "")?;
            sys::open_inside(&self.root, &mount.target, 0)?
        };
        let detached = sys::detached_mount(source, true)?;
        let read_only = if mount.writable { 0 } else { READ_ONLY };
        let attributes = read_only | NO_SETUID | NO_DEVICES;
        sys::restrict_detached(&detached, attributes, true, None)?;
        sys::attach_mount(&detached, &target)
    }
}
