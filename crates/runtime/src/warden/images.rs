//! Images as roots of sandboxes: their layers are unpacked once, by a program of ours in a sandbox of its own, kept
//! here by their digests, and shown to apps.
//!
//! What is in a layer is somebody else's word, so the warden does not read it. It makes a sandbox for each layer that sees
//! the packed layer and an empty folder, and nothing else; whoever broke into the unpacker could spoil what is named by
//! the digest of that very layer. Files have ids of a range that no app has; apps see them with their own, by a mapping
//! of the mount. Where a mount cannot be mapped, each app gets a copy of the image with its own ids.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use hutong_core::name::is_digest;
use hutong_ipc::shim::{APP_UID, INIT_UID, Launch, ROOT_CAPABILITIES, Root, RunAs, UID_RANGE};
use hutong_ipc::warden::{Answer, ImageLayers, ImageRoot, PackedLayer, Start, Unpack};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::requests::{Sandbox, build_folder, checked_app, checked_instance, delete};
use super::{Warden, lock};
use crate::sandbox::{files_of_image, host_mounts, mount};
use crate::trial::Trial;
use crate::{launch, trees};

/// Where the unpacker sees itself, what it unpacks, and into what.
const PROGRAM: &str = "/hutong";
const PACKED: &str = "/in";
const OUT: &str = "/out";
/// How it is told; `hutong internal unpack` reads it.
const ORDER: &str = "HUTONG_UNPACK";
/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID: over files with ids of its own range only.
const UNPACKER: u64 = 0b1_1011;

const MAX_LAYERS: usize = 256;
/// An /etc/passwd is not longer, in bytes.
const MAX_PASSWD: u64 = 256 << 10;

/// What an app from an image sees, beside what each sees.
pub(super) struct Inside {
    root: Root,
    pub user: RunAs,
}

impl Inside {
    pub fn apply(self, launch: &mut Launch, image: &ImageRoot, app: &str) {
        launch.root = Some(self.root);
        launch.user = self.user;
        launch.writable.clone_from(&image.writable);
        launch.cwd.clone_from(&image.cwd);
        launch.stop_signal = image.stop_signal;
        launch.files = files_of_image(app);
    }
}

/// The name of a layer's folder, of its digest (`sha256:HEX`).
fn layer_name(digest: &str) -> Result<String, String> {
    let (algorithm, hex) = split_digest(digest)?;
    Ok(format!("{algorithm}-{hex}"))
}

fn split_digest(digest: &str) -> Result<(&str, &str), String> {
    let known = digest.split_once(':').filter(|(algorithm, hex)| {
        let digits = match *algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => 0,
        };
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        hex.len() == digits && hex.bytes().all(digit)
    });
    known.ok_or_else(|| "not the digest of a layer".to_owned())
}

/// A plain path inside, other than the root itself.
fn checked_inside(path: &str) -> Result<(), String> {
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    let plain = path.len() < 4096
        && !path.contains('\0')
        && path
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(part));
    match plain {
        true => Ok(()),
        false => Err(format!("`{path}` is no plain path inside")),
    }
}

fn checked_user(image: &ImageRoot) -> Result<RunAs, String> {
    let Some((uid, gid)) = image.user else {
        return Ok(RunAs::default());
    };
    if uid == 0 && !image.allow_root {
        return Err("the image runs as root; see container.user and container.allow_root".into());
    }
    let taken = |id: u32| id >= UID_RANGE || id == INIT_UID;
    if taken(uid) || taken(gid) {
        return Err(format!(
            "the image's user is {uid}:{gid}, and an app has the ids below {UID_RANGE} but for {INIT_UID}; set `user = \"app\"`"
        ));
    }
    Ok(RunAs {
        uid,
        gid,
        capabilities: if uid == 0 { ROOT_CAPABILITIES } else { 0 },
    })
}

impl Warden {
    /// What an app from an image gets, if it is there and may have it.
    pub(super) fn inside(&self, start: &Start, image: &ImageRoot) -> Result<Inside, String> {
        let paths = image.writable.iter().chain(&image.mount);
        for path in paths {
            checked_inside(path)?;
        }
        if image.cwd != "/" {
            checked_inside(&image.cwd)?;
        }
        if image
            .stop_signal
            .is_some_and(|signal| !(1..=64).contains(&signal))
        {
            return Err("not a signal".into());
        }
        let user = match self.root {
            true => checked_user(image)?,
            // In development mode there is one id.
            false => RunAs::default(),
        };
        let places = self.places_of(&start.app, &image.layers)?;
        if !places.iter().all(|place| place.is_dir()) {
            return Err("the image is not there any more; deploy it again".into());
        }
        let owner = match &image.layers {
            ImageLayers::Stacked(_) => self.images_owner()?,
            ImageLayers::Flat(_) => None,
        };
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let layers = places.into_iter().map(text).collect();
        Ok(Inside {
            root: Root { layers, owner },
            user,
        })
    }

    /// Whose the files of layers are; in development mode they are our own.
    fn images_owner(&self) -> Result<Option<u32>, String> {
        match self.root {
            true => lock(&self.uids).images().map(Some),
            false => Ok(None),
        }
    }

    /// Where an image's layers are, or would be.
    pub(super) fn places_of(
        &self,
        app: &str,
        layers: &ImageLayers,
    ) -> Result<Vec<PathBuf>, String> {
        checked_app(app)?;
        match layers {
            ImageLayers::Stacked(list) if list.is_empty() || list.len() > MAX_LAYERS => Err(
                format!("an image has {} layers, not 1 to {MAX_LAYERS}", list.len()),
            ),
            ImageLayers::Stacked(list) => list
                .iter()
                .map(|digest| Ok(self.layout.layers().join(layer_name(digest)?)))
                .collect(),
            ImageLayers::Flat(digest) if is_digest(digest) => {
                Ok(vec![self.layout.flat().join(app).join(digest)])
            }
            ImageLayers::Flat(_) => Err("not the digest of an image".into()),
        }
    }

    /// Starts the unpacker.
    pub(super) fn unpack(&self, unpack: &Unpack) -> Result<Answer, String> {
        checked_app(&unpack.app)?;
        checked_instance(&unpack.instance)?;
        let count = unpack.layers.len();
        if count == 0 || count > MAX_LAYERS || (count > 1 && !unpack.flat) {
            return Err("not the layers of an image".into());
        }
        let mut mounts = host_mounts();
        mounts.push(mount(&self.program, PROGRAM, false));
        let mut order = Vec::with_capacity(count);
        for (number, PackedLayer { blob, diff_id }) in unpack.layers.iter().enumerate() {
            split_digest(diff_id)?;
            let (algorithm, hex) = split_digest(blob)?;
            let mut path = self.layout.registry().join("blobs").join(algorithm);
            path.extend([&hex[..2], hex]);
            let inside = format!("{PACKED}/{number}");
            mounts.push(mount(&path, &inside, false));
            order.push((inside, diff_id));
        }
        let base = match unpack.flat {
            true => self.uid_base(&unpack.app)?,
            false => self.images_owner()?,
        };
        let folder = self.layout.builds().join(build_folder(&unpack.instance));
        let out = folder.join("out");
        let failed = |error: std::io::Error| format!("cannot prepare for the image: {error}");
        // Another step of it may still run, of a control plane before this one.
        let _one = lock(&self.preparing);
        self.end_builds(|other| other == build_folder(&unpack.instance));
        trees::delete(&folder).map_err(failed)?;
        trees::make_owned(&folder, None, 0o700).map_err(failed)?;
        trees::make_owned(&out, base, 0o755).map_err(failed)?;
        let mut target = mount(&out, OUT, true);
        target.whiteouts = true;
        mounts.push(target);
        let order = serde_json::json!({
            "layers": order,
            "out": OUT,
            "flat": unpack.flat,
            "owners": base.is_some(),
            "bytes": unpack.bound,
            "entries": (unpack.entries > 0).then_some(unpack.entries),
        });
        let user = match base {
            Some(_) => RunAs {
                uid: 0,
                gid: 0,
                capabilities: UNPACKER,
            },
            None => RunAs::default(),
        };
        let words = [PROGRAM, "internal", "unpack"];
        let launch = Launch {
            argv: words.map(str::to_owned).to_vec(),
            env: vec![(ORDER.to_owned(), order.to_string())],
            cwd: "/".into(),
            user,
            ..self.blank(&unpack.instance, &unpack.app, base, "/tmp", mounts)?
        };
        self.launch(
            launch,
            &Sandbox {
                instance: &unpack.instance,
                app: &unpack.app,
                deployment: 0,
                build: true,
                limits: &unpack.limits,
                egress: false,
                list: None,
                without: &[],
            },
        )
    }

    /// Gives what was unpacked its name.
    pub(super) fn unpack_keep(
        &self,
        instance: &str,
        app: &str,
        flat: bool,
        digest: &str,
    ) -> Result<Answer, String> {
        checked_instance(instance)?;
        let layers = match flat {
            true => ImageLayers::Flat(digest.to_owned()),
            false => ImageLayers::Stacked(vec![digest.to_owned()]),
        };
        let places = self.places_of(app, &layers)?;
        let kept = places.first().ok_or("not a layer")?;
        let folder = self.layout.builds().join(build_folder(instance));
        let out = folder.join("out");
        let failed = |error: std::io::Error| format!("cannot keep the image: {error}");
        if flat {
            trees::make_owned(&self.layout.flat().join(app), None, 0o700).map_err(failed)?;
        }
        // Another app had the same layer unpacked meanwhile; or it was asked again, because an answer was lost.
        if kept.is_dir() {
            return delete(&folder);
        }
        hutong_ipc::fail::point("unpack.keep");
        // On disk before the name says that it is there.
        rustix::fs::syncfs(File::open(&out).map_err(failed)?)
            .map_err(|error| failed(error.into()))?;
        match fs::rename(&out, kept) {
            // Another app's came between.
            Err(_) if kept.is_dir() => return delete(&folder),
            other => other.map_err(failed)?,
        }
        hutong_ipc::fail::point("unpack.kept");
        let above = kept.parent().unwrap_or(kept);
        File::open(above)
            .and_then(|above| above.sync_all())
            .map_err(failed)?;
        delete(&folder)
    }

    /// Whether layers can be stacked, and shown with an app's ids: tried once. Where layers are stacked already, a failure
    /// may pass, and is not remembered.
    pub(super) fn can_stack(&self) -> Result<bool, String> {
        let mut known = lock(&self.stacks);
        if let Some(stacks) = *known {
            return Ok(stacks);
        }
        let owner = self.images_owner()?;
        let folder = self.layout.images().join(".trial");
        let tried = try_to_stack(&folder, owner);
        let _ = trees::remove(&folder);
        if let Err(reason) = &tried {
            tracing::warn!(
                "layers of images are not shared between apps here, each has a copy: {reason}"
            );
        }
        let is_layer = |(name, _): &(String, PathBuf)| !name.starts_with(trees::GONE);
        let has_layers =
            || entries(&self.layout.layers()).is_ok_and(|found| found.iter().any(is_layer));
        if tried.is_ok() || !has_layers() {
            *known = Some(tried.is_ok());
        }
        Ok(tried.is_ok())
    }

    /// The /etc/passwd that an image shows: of its topmost layer that has one, or hides one. Not parsed here.
    pub(super) fn passwd(&self, app: &str, layers: &ImageLayers) -> Result<Option<String>, String> {
        let odd = || {
            "the image's /etc/passwd is no plain file in a plain folder; set `user = \"app\"`"
                .to_owned()
        };
        for place in self.places_of(app, layers)?.iter().rev() {
            match look_for_passwd(place) {
                Ok(Looked::Nothing) => {}
                Ok(Looked::Hidden) => return Ok(None),
                Ok(Looked::Found(text)) => return Ok(Some(text)),
                Ok(Looked::Odd) => return Err(odd()),
                Err(error) => return Err(format!("cannot read the image's /etc/passwd: {error}")),
            }
        }
        Ok(None)
    }

    /// Throws away what no release needs. Whoever asks unpacks nothing meanwhile.
    pub(super) fn images_sweep(
        &self,
        layers: &[String],
        flat: &[(String, String)],
    ) -> Result<Answer, String> {
        let failed = |error: std::io::Error| error.to_string();
        let keep: Vec<String> = layers
            .iter()
            .map(|digest| layer_name(digest))
            .collect::<Result<_, _>>()?;
        let mut folders = vec![self.layout.layers(), self.layout.flat()];
        for (name, path) in entries(&self.layout.layers()).map_err(failed)? {
            if !keep.contains(&name) && !name.starts_with(trees::GONE) {
                trees::delete(&path).map_err(failed)?;
            }
        }
        for (app, path) in entries(&self.layout.flat()).map_err(failed)? {
            if app.starts_with(trees::GONE) {
                continue;
            }
            for (digest, path) in entries(&path).map_err(failed)? {
                let wanted = flat.iter().any(|(of, own)| *of == app && *own == digest);
                if !wanted && !digest.starts_with(trees::GONE) {
                    trees::delete(&path).map_err(failed)?;
                }
            }
            folders.push(path);
        }
        trees::sweep(&folders);
        Ok(Answer::Done)
    }
}

fn entries(folder: &Path) -> std::io::Result<Vec<(String, PathBuf)>> {
    let mut list = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        list.push((name, entry.path()));
    }
    Ok(list)
}

/// Two layers, the lower one with a program that only the app's own id may run.
fn try_to_stack(folder: &Path, owner: Option<u32>) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    trees::remove(folder).map_err(failed)?;
    trees::make_owned(folder, None, 0o700).map_err(failed)?;
    let (lower, upper) = (folder.join("0"), folder.join("1"));
    for layer in [&lower, &upper] {
        trees::make_owned(layer, owner, 0o755).map_err(failed)?;
    }
    let program = lower.join("program");
    fs::write(&program, launch::SHIM).map_err(failed)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    if let Some(owner) = owner {
        let id = Some(owner + APP_UID);
        chown(&program, id, id).map_err(failed)?;
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let root = Root {
        layers: vec![text(&lower), text(&upper)],
        owner,
    };
    Trial::start_in(root, &["/program"]).map(drop)
}

/// What one layer says of the file.
enum Looked {
    Nothing,
    /// It hides what layers below have.
    Hidden,
    Found(String),
    Odd,
}

fn look_for_passwd(layer: &Path) -> std::io::Result<Looked> {
    let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let layer = rustix::fs::open(layer, folder, Mode::empty())?;
    let kind = |at: &std::os::fd::OwnedFd, name: &str| match rustix::fs::statat(
        at,
        name,
        AtFlags::SYMLINK_NOFOLLOW,
    ) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    };
    match kind(&layer, "etc")? {
        None => return Ok(Looked::Nothing),
        Some(FileType::CharacterDevice) => return Ok(Looked::Hidden),
        Some(FileType::Directory) => {}
        Some(_) => return Ok(Looked::Odd),
    }
    let etc = rustix::fs::openat(&layer, "etc", folder, Mode::empty())?;
    match kind(&etc, "passwd")? {
        Some(FileType::CharacterDevice) => return Ok(Looked::Hidden),
        Some(FileType::RegularFile) => {}
        Some(_) => return Ok(Looked::Odd),
        None => {
            let mut value = [0u8; 4];
            let opaque = rustix::fs::fgetxattr(&etc, "user.overlay.opaque", &mut value[..]);
            return Ok(match opaque {
                Ok(_) => Looked::Hidden,
                Err(_) => Looked::Nothing,
            });
        }
    }
    let file = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(&etc, "passwd", file, Mode::empty())?);
    let mut text = Vec::new();
    file.take(MAX_PASSWD + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_PASSWD {
        return Ok(Looked::Odd);
    }
    Ok(match String::from_utf8(text) {
        Ok(text) => Looked::Found(text),
        Err(_) => Looked::Odd,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digests_and_plain_paths_are_taken() {
        let hex = "a".repeat(64);
        assert_eq!(
            layer_name(&format!("sha256:{hex}")),
            Ok(format!("sha256-{hex}"))
        );
        for bad in [
            "",
            "sha256:",
            "sha256:..",
            &format!("md5:{hex}"),
            &format!("sha512:{hex}"),
            &format!("sha256:{}/", &hex[1..]),
        ] {
            assert!(layer_name(bad).is_err(), "{bad}");
        }
        for good in ["/var/cache", "/a"] {
            assert!(checked_inside(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "a", "/a/../b", "/a//b", "/a/", "/a\0"] {
            assert!(checked_inside(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nobody_is_root_by_silence_nor_init() {
        let mut image = ImageRoot {
            layers: ImageLayers::Flat(String::new()),
            mount: None,
            writable: Vec::new(),
            cwd: "/".into(),
            user: Some((0, 0)),
            allow_root: false,
            stop_signal: None,
        };
        assert!(checked_user(&image).is_err());
        image.allow_root = true;
        assert_eq!(
            checked_user(&image).map(|user| user.capabilities),
            Ok(ROOT_CAPABILITIES)
        );
        for user in [(INIT_UID, 0), (1000, INIT_UID), (UID_RANGE, 0)] {
            image.user = Some(user);
            assert!(checked_user(&image).is_err(), "{user:?}");
        }
        image.user = Some((1000, 0));
        let user = checked_user(&image).expect("good");
        assert_eq!((user.uid, user.gid, user.capabilities), (1000, 0, 0));
        image.user = None;
        assert_eq!(checked_user(&image).map(|user| user.uid), Ok(APP_UID));
    }

    #[test]
    fn the_topmost_layer_that_says_something_of_users_counts() {
        let folder = tempfile::tempdir().expect("tempdir");
        let layer = |name: &str| folder.path().join(name);
        fs::create_dir_all(layer("plain/etc")).expect("mkdir");
        fs::write(layer("plain/etc/passwd"), "me\n").expect("written");
        fs::create_dir_all(layer("empty/etc")).expect("mkdir");
        fs::create_dir_all(layer("linked")).expect("mkdir");
        std::os::unix::fs::symlink("/etc", layer("linked/etc")).expect("linked");
        let look = |name: &str| look_for_passwd(&layer(name)).expect("read");
        assert!(matches!(look("plain"), Looked::Found(text) if text == "me\n"));
        assert!(matches!(look("empty"), Looked::Nothing));
        assert!(matches!(look("linked"), Looked::Odd));
    }
}
