//! What control may ask, each checked against what it may ask for: names and digests, never a path.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hutong_core::name::{AppName, is_digest, is_env_key, is_instance_id};
use hutong_core::spec::EgressRule;
use hutong_core::spec::links::{self, MAX_LINKS};
use hutong_ipc::channel;
use hutong_ipc::gateway::Secret;
use hutong_ipc::shim::{APP_UID, INIT_UID, Launch, RunAs, UID_RANGE, Wall};
use hutong_ipc::warden::{Answer, Build, Instance, Limits, Process, Quota, Request, Start, Tree};

use super::children::Role;
use super::{Warden, lock, memory_of};
use crate::disks::{self, Unready};
use crate::egress::{Containers, Kind, Network};
use crate::instances::Record;
use crate::launch::Launcher;
use crate::result::{self, Looked};
use crate::sandbox::{base_env, files, host_mounts, merge_env, mount};
use crate::snapshots::{self, Task};
use crate::trees::Data;
use crate::{processes, sys, trees};

const MAX_CONNECTIONS: usize = 16;
/// Bound of each of the two spool files of an instance, in bytes.
pub(super) const SPOOL_BYTES: u64 = 4 << 20;
/// Bound of all secrets of a build, in bytes.
const MAX_SECRETS: usize = 256 << 10;
/// Secrets of a build.
const SECRETS: usize = 64;
/// What an app's builds may keep for the next one, in bytes.
const MAX_CACHE: u64 = 2 << 30;
const CACHE_INSIDE: &str = "/cache";
/// Where package managers keep what they fetched.
const CACHES: [(&str, &str); 9] = [
    ("PIP_CACHE_DIR", "/cache/pip"),
    ("npm_config_cache", "/cache/npm"),
    ("npm_config_store_dir", "/cache/pnpm"),
    ("YARN_CACHE_FOLDER", "/cache/yarn"),
    ("YARN_GLOBAL_FOLDER", "/cache/yarn-global"),
    ("GOMODCACHE", "/cache/go/mod"),
    ("GOCACHE", "/cache/go/build"),
    ("CARGO_HOME", "/cache/cargo"),
    ("CARGO_TARGET_DIR", "/cache/cargo-target"),
];
/// Where a company's or a test's certificate authorities appear inside.
const CA_INSIDE: &str = "/etc/hutong/ca.pem";

/// Why a release does not get the app's `/data`; users as the image numbers them.
pub(super) fn data_of_others(user: u32, owner: u32) -> String {
    let remedy = match owner {
        APP_UID => "set `user = \"app\"` in [container]".to_owned(),
        _ => format!("use an image that runs as {owner}"),
    };
    format!(
        "/data is the user {owner}'s, as whom the app ran so far, and this release runs as the user {user}: {remedy}, or remove the app with its data first"
    )
}

pub fn accept(warden: &Arc<Warden>, listener: &UnixListener) {
    let control = warden
        .ids()
        .map_or(sys::effective_uid(), |(control, _)| control);
    for line in listener.incoming() {
        let Ok(line) = line else {
            // Out of descriptors, most likely.
            std::thread::sleep(std::time::Duration::from_millis(20));
            continue;
        };
        let known =
            channel::peer(&line).is_ok_and(|(pid, uid)| uid == control && warden.is_control(pid));
        if !known || warden.connections.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            continue;
        }
        warden.connections.fetch_add(1, Ordering::Relaxed);
        let served = warden.clone();
        let thread = std::thread::Builder::new()
            .stack_size(512 << 10)
            .spawn(move || {
                serve(&served, &line);
                served.connections.fetch_sub(1, Ordering::Relaxed);
            });
        if thread.is_err() {
            warden.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve(warden: &Warden, line: &UnixStream) {
    while let Ok(Some((request, _))) = channel::receive::<Request>(line) {
        warden.under_way.fetch_add(1, Ordering::SeqCst);
        let answer = if warden.replacing.load(Ordering::SeqCst) {
            Answer::Later("the server is being replaced by a newer one".into())
        } else if warden.ending.load(Ordering::Relaxed) && makes(&request) {
            Answer::Later("the server is being stopped".into())
        } else {
            warden.answer(request).unwrap_or_else(Answer::Failed)
        };
        let sent = channel::send(line, &answer, &[]);
        warden.under_way.fetch_sub(1, Ordering::SeqCst);
        if sent.is_err() {
            return;
        }
    }
}

/// Why nothing of an app starts.
pub(super) const RESTORING: &str = "a snapshot of its /data is being put back";

/// How something went that may take long.
fn said(done: Result<(), Unready>) -> Result<Answer, String> {
    match done {
        Ok(()) => Ok(Answer::Done),
        Err(Unready::Later(why)) => Ok(Answer::Later(why)),
        Err(Unready::Failed(why)) => Err(why),
    }
}

/// Whether a request makes something of an app's.
fn makes(request: &Request) -> bool {
    matches!(
        request,
        Request::Start(_)
            | Request::Build(_)
            | Request::BuildStep(_)
            | Request::BuildKeep { .. }
            | Request::Unpack(_)
            | Request::UnpackKeep { .. }
    )
}

pub(super) fn checked_app(app: &str) -> Result<(), String> {
    AppName::new(app).map(drop)
}

pub(super) fn checked_instance(instance: &str) -> Result<(), String> {
    if is_instance_id(instance) {
        Ok(())
    } else {
        Err("not an instance id".into())
    }
}

fn checked_key(key: &str) -> Result<(), String> {
    if is_digest(key) {
        Ok(())
    } else {
        Err("not a digest".into())
    }
}

fn checked_program(argv: &[String], env: &[(String, String)]) -> Result<(), String> {
    let no_nul = |text: &String| !text.contains('\0');
    let good = !argv.is_empty()
        && argv.iter().all(no_nul)
        && env
            .iter()
            .all(|(key, value)| is_env_key(key) && no_nul(value));
    if good {
        Ok(())
    } else {
        Err("not a program and its environment".into())
    }
}

/// Secrets of a build: names that are plain file names, within the bound of the memory that they lie in.
fn checked_secrets(secrets: &[(String, Secret)]) -> Result<(), String> {
    let total: usize = secrets.iter().map(|(_, value)| value.0.len()).sum();
    let good = secrets.iter().all(|(name, _)| is_env_key(name));
    if good && total <= MAX_SECRETS && secrets.len() <= SECRETS {
        Ok(())
    } else {
        Err("not a build's secrets".into())
    }
}

/// Names of links, each with the address that it gets.
pub(super) fn checked_links(links: &[String]) -> Result<Vec<(String, [u8; 4])>, String> {
    let good = links.len() <= MAX_LINKS && links.iter().all(|name| AppName::new(name).is_ok());
    if !good {
        return Err("not the names of links".into());
    }
    let addressed = links.iter().enumerate();
    Ok(addressed
        .map(|(index, name)| (name.clone(), links::address(index)))
        .collect())
}

fn add_to_hosts(launch: &mut Launch, links: Vec<(String, [u8; 4])>) {
    for (path, content) in &mut launch.files {
        if path == "/etc/hosts" {
            for (name, [a, b, c, d]) in &links {
                content.push_str(&format!("{a}.{b}.{c}.{d} {name}.internal\n"));
            }
        }
    }
    launch.links = links;
}

/// What one launch needs beside the program.
pub(super) struct Sandbox<'a> {
    pub instance: &'a str,
    pub app: &'a str,
    pub deployment: u64,
    pub build: bool,
    pub limits: &'a Limits,
    pub egress: bool,
    /// All that it may reach.
    pub list: Option<&'a [EgressRule]>,
    pub without: &'a [Wall],
}

impl Warden {
    fn answer(&self, request: Request) -> Result<Answer, String> {
        // Whoever looks for leaks must not find half of what is being made.
        let _making = makes(&request).then(|| self.making.read());
        match request {
            Request::Start(start) => self.start(&start),
            Request::Build(build) => self.build(&build, false),
            Request::BuildStep(build) => self.build(&build, true),
            Request::BuildKeep {
                instance,
                app,
                key,
                secrets,
            } => self.build_keep(&instance, &app, &key, &secrets),
            Request::DropCache { app } => {
                checked_app(&app)?;
                let cache = self.layout.caches().join(app);
                let deleted = delete(&cache);
                disks::forget_cache(Some(&cache));
                deleted
            }
            Request::BuildSweep { keep } => self.build_sweep(&keep),
            Request::Unpack(unpack) => self.unpack(&unpack),
            Request::UnpackKeep {
                instance,
                app,
                flat,
                digest,
            } => self.unpack_keep(&instance, &app, flat, &digest),
            Request::CanStack => Ok(Answer::Yes(self.can_stack()?)),
            Request::HasLayers { app, layers } => {
                let places = self.places_of(&app, &layers)?;
                Ok(Answer::Yes(places.iter().all(|place| place.is_dir())))
            }
            Request::Passwd { app, layers } => Ok(Answer::Text(self.passwd(&app, &layers)?)),
            Request::ImagesSweep { layers, flat } => self.images_sweep(&layers, &flat),
            Request::BuildDrop { instance } => {
                checked_instance(&instance)?;
                disks::forget_cache(None);
                delete(&self.layout.builds().join(build_folder(&instance)))
            }
            Request::Kill { instance } => {
                checked_instance(&instance)?;
                self.instances.kill(&instance);
                Ok(Answer::Done)
            }
            Request::Freeze { instance, frozen } => {
                checked_instance(&instance)?;
                self.freeze(&instance, frozen).map(|()| Answer::Done)
            }
            Request::Examine { app } => {
                checked_app(&app)?;
                Ok(Answer::Evidence(self.examine(&app)))
            }
            Request::List => Ok(Answer::Instances(self.list())),
            Request::Disk { apps } => {
                apps.iter().try_for_each(|app| checked_app(app))?;
                Ok(Answer::Disk(disks::usage(&self.layout, &apps)))
            }
            Request::System => Ok(Answer::System(self.system())),
            Request::Leaks { apps, builds, fix } => Ok(Answer::Leaks(super::leaks::find(
                self, &apps, &builds, &fix,
            ))),
            Request::Upgrade => {
                // Refused here, where somebody hears why; done by the main thread behind this answer.
                super::check_program(&self.program)?;
                sys::kill(std::process::id() as i32, libc::SIGUSR2);
                Ok(Answer::Done)
            }
            Request::Doctor => Ok(Answer::Doctor(crate::doctor::examine(&self.cgroups))),
            Request::HasBuilt { app, key } => {
                checked_app(&app)?;
                checked_key(&key)?;
                Ok(Answer::Yes(
                    self.layout.built().join(app).join(key).is_dir(),
                ))
            }
            Request::DropBuilt { app, key } => {
                checked_app(&app)?;
                checked_key(&key)?;
                delete(&self.layout.built().join(app).join(key))
            }
            Request::DropData { app } => {
                checked_app(&app)?;
                // A build that is being prepared has the app's ids already; it is not waited for here.
                let nothing_begins = match self.making.try_write() {
                    Err(std::sync::TryLockError::WouldBlock) => None,
                    Err(std::sync::TryLockError::Poisoned(found)) => Some(found.into_inner()),
                    Ok(guard) => Some(guard),
                };
                let Some(_nothing_begins) = nothing_begins else {
                    return Ok(Answer::Later("something is being made; ask again".into()));
                };
                if self.instances.live().iter().any(|record| record.app == app) {
                    return Err(format!("{app} still runs"));
                }
                if snapshots::is_busy(&app) {
                    return Ok(Answer::Later("its data is being copied; ask again".into()));
                }
                snapshots::forget(&app);
                delete(&self.layout.snapshots().join(&app))?;
                delete(&self.layout.built().join(&app))?;
                delete(&self.layout.caches().join(&app))?;
                disks::forget_cache(Some(&self.layout.caches().join(&app)));
                disks::drop_image(&self.layout, &app)?;
                delete(&self.layout.app_data().join(&app))?;
                delete(&self.layout.flat().join(&app))?;
                lock(&self.uids).forget(&app)?;
                Ok(Answer::Done)
            }
            Request::Snapshot { app, id, keep } => self.snapshot(&app, id, keep),
            Request::Snapshots { app } => {
                checked_app(&app)?;
                Ok(Answer::Snapshots(snapshots::list(&self.layout, &app)))
            }
            Request::DropSnapshot { app, id } => {
                checked_app(&app)?;
                said(snapshots::drop_one(&self.layout, &app, id))
            }
            Request::Restore { app, id } => self.restore(&app, id),
            Request::CopyData { from, to } => self.copy_data(&from, &to),
        }
    }

    fn snapshot(&self, app: &str, id: u64, keep: u64) -> Result<Answer, String> {
        checked_app(app)?;
        if snapshots::is_there(&self.layout, app, id) && !snapshots::is_busy(app) {
            return Ok(Answer::Done);
        }
        // Its file system may not be mounted.
        if let Err(unready) = self.ensure_disk(app, None) {
            return said(Err(unready));
        }
        let (layout, name) = (self.layout.clone(), app.to_owned());
        let reserve = self.config.settings.disk_reserve;
        let take = move || snapshots::take(&layout, &name, (id, keep), reserve);
        let begun = {
            // Not for as long as it goes on: others wait for this, and find out otherwise.
            let _making = self.making.read();
            snapshots::begin(app, Task::Take(id), take)
        };
        said(begun.and_then(snapshots::Begun::wait))
    }

    fn restore(&self, app: &str, id: u64) -> Result<Answer, String> {
        checked_app(app)?;
        let begun = {
            // Whatever starts later finds that this goes on.
            let nothing_begins = match self.making.try_write() {
                Err(std::sync::TryLockError::WouldBlock) => None,
                Err(std::sync::TryLockError::Poisoned(found)) => Some(found.into_inner()),
                Ok(guard) => Some(guard),
            };
            let Some(_nothing_begins) = nothing_begins else {
                return Ok(Answer::Later("something is being made; ask again".into()));
            };
            let live = self.instances.live();
            if live.iter().any(|record| record.app == app && !record.build) {
                return Ok(Answer::Later(format!("something of {app} still runs")));
            }
            let (layout, name) = (self.layout.clone(), app.to_owned());
            let reserve = self.config.settings.disk_reserve;
            let restore = move || snapshots::restore(&layout, &name, id, reserve);
            snapshots::begin(app, Task::Restore(id), restore)
        };
        said(begun.and_then(snapshots::Begun::wait))
    }

    fn copy_data(&self, from: &str, to: &str) -> Result<Answer, String> {
        checked_app(from)?;
        checked_app(to)?;
        if from == to {
            return Err("an app's data is not copied to itself".into());
        }
        if let Err(unready) = self.ensure_disk(from, None) {
            return said(Err(unready));
        }
        let making = self.making.read();
        let bases = (self.uid_base(from)?, self.uid_base(to)?);
        let owner = move |id: u32| match bases {
            (Some(from), Some(to)) if (from..from + UID_RANGE).contains(&id) => id - from + to,
            _ => id,
        };
        let layout = self.layout.clone();
        let names = (from.to_owned(), to.to_owned());
        let reserve = self.config.settings.disk_reserve;
        let copy = move || {
            let names = (names.0.as_str(), names.1.as_str());
            snapshots::copy_data(&layout, names, reserve, owner)
        };
        let begun = snapshots::begin(to, Task::CopyOf(from.to_owned()), copy);
        drop(making);
        said(begun.and_then(snapshots::Begun::wait))
    }

    pub(super) fn uid_base(&self, app: &str) -> Result<Option<u32>, String> {
        if !self.root {
            return Ok(None);
        }
        lock(&self.uids).of_app(app).map(Some)
    }

    fn start(&self, start: &Start) -> Result<Answer, String> {
        checked_app(&start.app)?;
        checked_program(&start.argv, &start.env)?;
        let links = checked_links(&start.links)?;
        let list = start.egress_list.as_deref();
        let list = list.map(|texts| self.checked_list(texts)).transpose()?;
        let tree = trees::locate(&self.layout, &start.app, &start.tree)?;
        let base = self.uid_base(&start.app)?;
        let home = if start.data { "/data" } else { "/tmp" };
        let inside = match &start.image {
            Some(image) => Some(self.inside(start, image)?),
            None => None,
        };
        let user = inside.as_ref().map_or_else(RunAs::default, |it| it.user);
        let (mut mounts, mut env) = match &start.image {
            Some(image) => {
                let tree = image.mount.as_ref().map(|at| mount(&tree, at, false));
                (tree.into_iter().collect(), Vec::new())
            }
            None => {
                let mut mounts = host_mounts();
                mounts.push(mount(&tree, "/app", false));
                (mounts, base_env(&start.app, &start.instance, home))
            }
        };
        if start.data && snapshots::is_restoring(&start.app) {
            return Ok(Answer::Later(RESTORING.into()));
        }
        if start.data {
            let data = self.layout.app_data().join(&start.app);
            match self.ensure_disk(&start.app, start.quota) {
                Ok(Some(note)) => tracing::warn!("{}: {note}", start.app),
                Ok(None) => {}
                Err(Unready::Later(why)) => return Ok(Answer::Later(why)),
                Err(Unready::Failed(why)) => return Err(why),
            }
            let owner = base.map(|base| (base + user.uid, base + user.gid));
            let first = base.unwrap_or_default();
            let of_app = |id: u32| (first..first + UID_RANGE).contains(&id);
            let made = trees::make_data(&data, owner, of_app)
                .map_err(|error| format!("cannot make /data: {error}"))?;
            // Root of the range may use what another user has, and images' own programs hand it on to one.
            if let Data::Others(id) = made
                && user.uid != 0
            {
                return Err(data_of_others(user.uid, id - first));
            }
            mounts.push(mount(&data, "/data", true));
            env.push(("DATA_DIR".into(), "/data".into()));
        }
        let mut launch = Launch {
            argv: start.argv.clone(),
            env: merge_env(env, &start.env),
            ..self.blank(&start.instance, &start.app, base, home, mounts)?
        };
        if let (Some(inside), Some(image)) = (inside, &start.image) {
            inside.apply(&mut launch, image, &start.app);
        }
        add_to_hosts(&mut launch, links);
        self.launch(
            launch,
            &Sandbox {
                instance: &start.instance,
                app: &start.app,
                deployment: start.deployment,
                build: false,
                limits: &start.limits,
                egress: start.egress,
                list: list.as_deref(),
                without: &[],
            },
        )
    }

    /// Bounds are for servers that are root; elsewhere `/data` is a plain folder.
    pub(super) fn ensure_disk(
        &self,
        app: &str,
        quota: Option<Quota>,
    ) -> Result<Option<String>, Unready> {
        if !self.root {
            return Ok(None);
        }
        let begins = lock(&self.launching).iter().any(|one| one.app == app);
        let live = self.instances.live();
        let runs = begins || live.iter().any(|one| one.app == app && !one.build);
        let quota = quota.map(|quota| Quota {
            alone: quota.alone && !runs,
            ..quota
        });
        let reserve = self.config.settings.disk_reserve;
        disks::ensure(&self.layout, app, quota, reserve)
    }

    fn build(&self, build: &Build, goes_on: bool) -> Result<Answer, String> {
        checked_app(&build.app)?;
        checked_instance(&build.instance)?;
        checked_program(&build.argv, &build.env)?;
        checked_secrets(&build.secrets)?;
        let tree = Tree::Source {
            digest: build.source.clone(),
        };
        let source = trees::locate(&self.layout, &build.app, &tree)?;
        let base = self.uid_base(&build.app)?;
        let owner = base.map(|base| base + APP_UID);
        let folder = self.layout.builds().join(build_folder(&build.instance));
        let failed = |error: std::io::Error| format!("cannot prepare the build: {error}");
        let cache = self.layout.caches().join(&build.app);
        // Looked at before a build, so that what one build adds is all that it may be over; and before anybody is kept
        // waiting, because it may take long.
        let is_over = !goes_on && disks::measure_cache(&cache) > MAX_CACHE;
        // A copy that a killed control plane asked for may still be under way.
        let _one = lock(&self.preparing);
        if !goes_on {
            // And so may be any step of the same build.
            self.end_builds(|other| other == build_folder(&build.instance));
            trees::delete(&folder).map_err(failed)?;
            trees::make_owned(&folder, None, 0o700).map_err(failed)?;
            if let Err(error) = trees::copy(&source, &folder.join("app"), owner) {
                let _ = trees::delete(&folder);
                return Err(failed(error));
            }
            trees::make_owned(&folder.join("home"), owner, 0o700).map_err(failed)?;
        }
        if is_over {
            tracing::warn!(
                "the build cache of {} is over its bound and begins anew",
                build.app
            );
            trees::delete(&cache).map_err(failed)?;
            disks::forget_cache(Some(&cache));
        }
        trees::make_owned(&cache, owner, 0o700).map_err(failed)?;
        let mut mounts = host_mounts();
        mounts.push(mount(&folder.join("app"), "/app", true));
        mounts.push(mount(&folder.join("home"), "/home", true));
        mounts.push(mount(&cache, CACHE_INSIDE, true));
        let mut env = base_env(&build.app, &build.instance, "/home");
        env.extend(CACHES.map(|(key, path)| (key.to_owned(), path.to_owned())));
        env.extend(self.certificates(&mut mounts));
        let mut launch = Launch {
            argv: build.argv.clone(),
            env: merge_env(env, &build.env),
            tmp_bytes: 256 << 20,
            ..self.blank(&build.instance, &build.app, base, "/home", mounts)?
        };
        // In memory, and in this sandbox only.
        let secrets = build.secrets.iter();
        let secrets =
            secrets.map(|(name, value)| (format!("/run/secrets/{name}"), value.0.clone()));
        launch.files.extend(secrets);
        self.launch(
            launch,
            &Sandbox {
                instance: &build.instance,
                app: &build.app,
                deployment: 0,
                build: true,
                limits: &build.limits,
                egress: build.egress,
                list: None,
                // Development mode has no bridge; a build shares the user's own network there.
                without: if self.root || !build.egress {
                    &[]
                } else {
                    &[Wall::Net]
                },
            },
        )
    }

    /// Package managers bring certificates of their own; these point them at the host's or the owner's.
    fn certificates(&self, mounts: &mut Vec<hutong_ipc::shim::Mount>) -> Vec<(String, String)> {
        let inside = match &self.config.settings.ca_bundle {
            Some(path) => {
                mounts.push(mount(path.as_ref(), CA_INSIDE, false));
                CA_INSIDE
            }
            None => "/etc/ssl/certs/ca-certificates.crt",
        };
        if self.config.settings.ca_bundle.is_none() && !std::path::Path::new(inside).exists() {
            return Vec::new();
        }
        [
            "SSL_CERT_FILE",
            "PIP_CERT",
            "REQUESTS_CA_BUNDLE",
            "NODE_EXTRA_CA_CERTS",
            "CURL_CA_BUNDLE",
        ]
        .map(|key| (key.to_owned(), inside.to_owned()))
        .to_vec()
    }

    pub(super) fn blank(
        &self,
        instance: &str,
        app: &str,
        base: Option<u32>,
        home: &str,
        mounts: Vec<hutong_ipc::shim::Mount>,
    ) -> Result<Launch, String> {
        checked_instance(instance)?;
        // In development mode the shim lives in a user namespace that knows one id, ours, by the app's.
        let peers = match self.ids() {
            Some((control, _)) => vec![0, control],
            None => vec![APP_UID],
        };
        Ok(Launch {
            instance: instance.to_owned(),
            hostname: app.to_owned(),
            uid_base: base,
            cwd: "/app".into(),
            mounts,
            files: files(app, home, None),
            tmp_bytes: 64 << 20,
            seccomp: self.seccomp.clone(),
            peers,
            socket_peers: self.ids().map(|(_, gateway)| gateway).into_iter().collect(),
            spool_bytes: SPOOL_BYTES,
            ..Launch::default()
        })
    }

    pub(super) fn launch(
        &self,
        mut launch: Launch,
        sandbox: &Sandbox<'_>,
    ) -> Result<Answer, String> {
        let shares_network = !self.root && sandbox.without == [Wall::Net];
        // Looked at again: what came before it may have taken long.
        if self.ending.load(Ordering::Relaxed) {
            return Ok(Answer::Later("the server is being stopped".into()));
        }
        let _launching = Launching::begin(self, sandbox)?;
        if let Some(found) = self.instances.read(sandbox.instance) {
            // Ids are random: control asks again because the answer to its first request was lost.
            return if found.launched && processes::is_alive(found.pid, found.start_time) {
                Ok(Answer::Done)
            } else {
                Err(format!("{} is there already", sandbox.instance))
            };
        }
        launch.without = sandbox.without.to_vec();
        if sandbox.without.contains(&Wall::Net) {
            let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            set_file(&mut launch, "/etc/resolv.conf", host);
        }
        let kind = match (sandbox.build, sandbox.list) {
            (true, _) => Kind::Build,
            (false, Some(_)) => Kind::Listed,
            (false, None) => Kind::Open,
        };
        let index = (sandbox.egress && !shares_network)
            .then(|| self.reserve_egress(kind))
            .transpose()?;
        let fenced = match (index, sandbox.list) {
            (Some(index), Some(list)) => self.fence_sandbox(sandbox.instance, index, list),
            _ => Ok(()),
        };
        let result = fenced.and_then(|()| self.launch_connected(launch, sandbox, index));
        if let Some(index) = index {
            lock(&self.starting).retain(|taken| *taken != index);
        }
        result
    }

    fn launch_connected(
        &self,
        mut launch: Launch,
        sandbox: &Sandbox<'_>,
        index: Option<u16>,
    ) -> Result<Answer, String> {
        let network = lock(&self.network).clone();
        let connected = network.as_ref().zip(index);
        if let Some((network, index)) = connected {
            let leg = network.leg(index);
            let home = "/tmp";
            let resolver = match sandbox.list {
                Some(_) => network.listed_resolver().octets(),
                None => leg.gateway,
            };
            for (path, content) in files(sandbox.app, home, Some(resolver)) {
                if path == "/etc/resolv.conf" {
                    set_file(&mut launch, &path, content);
                }
            }
            launch.egress = Some(leg);
        }
        let record = Record {
            instance: sandbox.instance.to_owned(),
            app: sandbox.app.to_owned(),
            deployment: sandbox.deployment,
            build: sandbox.build,
            pid: 0,
            start_time: 0,
            started_at: processes::now_ms(),
            egress: index,
            egress_list: sandbox
                .list
                .map(|rules| rules.iter().map(ToString::to_string).collect()),
            server: self.instances.server(),
            launched: false,
        };
        Launcher {
            layout: &self.layout,
            cgroups: &self.cgroups,
            instances: &self.instances,
            shim: &self.shim,
            shims: &self.shims,
            control: self.ids().map(|(control, _)| control),
            network: connected,
        }
        .run(launch, record, sandbox.limits)?;
        Ok(Answer::Done)
    }

    /// Makes bridge, rules and resolver, if they are not there.
    pub(super) fn ensure_egress(&self) -> Result<(), String> {
        {
            let settings = &self.config.settings;
            let urls = [&settings.pip_index, &settings.npm_registry, &settings.proxy];
            let urls: Vec<&str> = urls.into_iter().flatten().map(String::as_str).collect();
            // Names are resolved here: before the lock, because a name server may hang.
            let containers = settings.docker.as_ref().map(|docker| Containers {
                pool: docker.pool.clone(),
                gateway_uid: self.ids().map_or(0, |(_, gateway)| gateway),
            });
            let mut fresh = Network::new(&self.layout.tag, &urls, containers)?;
            let mut lists = lock(&self.lists);
            let mut network = lock(&self.network);
            // Every time: a reload of the host's firewall flushes our rules too.
            fresh.make_bridge()?;
            let stays = |known: &Network| known.gateway() == fresh.gateway() && known.stands();
            let whole = match network.as_ref().is_some_and(stays) {
                true => None,
                false => {
                    self.adopt_lists(&fresh, &mut lists);
                    Some(lists.all_commands(fresh.table()))
                }
            };
            fresh.make_rules(whole.as_deref())?;
            *network = Some(fresh);
        }
        let mut children = lock(&self.children);
        if !children.runs(Role::Resolver) {
            children.start(self, Role::Resolver)?;
        }
        Ok(())
    }

    /// Takes an address on the way out.
    fn reserve_egress(&self, kind: Kind) -> Result<u16, String> {
        if !self.root {
            return Err(
                "egress needs `hutong serve` as root: an ordinary user may not make bridges".into(),
            );
        }
        self.ensure_egress()?;
        let mut starting = lock(&self.starting);
        let mut taken: Vec<u16> = self
            .instances
            .all()
            .iter()
            .filter_map(|r| r.egress)
            .collect();
        taken.extend(starting.iter());
        let last = lock(&self.lists).last_index;
        let index = Network::free_index(&taken, kind, last)?;
        if kind == Kind::Listed {
            lock(&self.lists).last_index = index;
        }
        starting.push(index);
        Ok(index)
    }

    fn build_keep(
        &self,
        instance: &str,
        app: &str,
        key: &str,
        secrets: &[(String, Secret)],
    ) -> Result<Answer, String> {
        checked_instance(instance)?;
        checked_app(app)?;
        checked_key(key)?;
        checked_secrets(secrets)?;
        let _one = lock(&self.keeping);
        // It is measured anew, when somebody asks.
        disks::forget_cache(Some(&self.layout.caches().join(app)));
        let folder = self.layout.builds().join(build_folder(instance));
        let apps = self.layout.built().join(app);
        let failed = |error: std::io::Error| format!("cannot keep the build: {error}");
        trees::make_owned(&apps, None, 0o711).map_err(failed)?;
        let kept = apps.join(key);
        if kept.is_dir() && !folder.join("app").exists() {
            // Asked again: the answer to the first time was lost.
            delete(&folder)?;
            return Ok(Answer::Kept(None));
        }
        let wanted: Vec<(&str, &[u8])> = secrets
            .iter()
            .map(|(name, value)| (name.as_str(), value.0.trim().as_bytes()))
            .collect();
        let digest = match result::look(&folder.join("app"), &wanted).map_err(failed)? {
            Looked::Clean(digest) => digest,
            Looked::Holds(secret, path) => {
                delete(&folder)?;
                return Err(format!(
                    "the build left its secret {secret} in the file {path}; nothing of it is kept"
                ));
            }
        };
        trees::delete(&kept).map_err(failed)?;
        hutong_ipc::fail::point("build.keep");
        // On disk before the name says that it is there: the same content is not built again.
        rustix::fs::syncfs(fs::File::open(&folder).map_err(failed)?)
            .map_err(|error| failed(error.into()))?;
        fs::rename(folder.join("app"), &kept).map_err(failed)?;
        hutong_ipc::fail::point("build.kept");
        fs::File::open(&apps)
            .and_then(|apps| apps.sync_all())
            .map_err(failed)?;
        delete(&folder)?;
        Ok(Answer::Kept(Some(digest)))
    }

    fn build_sweep(&self, keep: &[String]) -> Result<Answer, String> {
        let kept = |build: &str| keep.iter().any(|keep| keep == build);
        self.end_builds(|build| !kept(build));
        disks::forget_cache(None);
        let mut folders = vec![
            self.layout.app_data(),
            self.layout.app_data().join(".lost"),
            self.layout.builds(),
            self.layout.caches(),
            self.layout.snapshots(),
        ];
        let failed = |error: std::io::Error| error.to_string();
        for entry in fs::read_dir(self.layout.builds())
            .map_err(failed)?
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !kept(&name) && !name.starts_with(trees::GONE) {
                trees::delete(&entry.path()).map_err(failed)?;
            }
        }
        let built = fs::read_dir(self.layout.built()).map_err(failed)?;
        folders.extend(built.flatten().map(|entry| entry.path()));
        trees::sweep(&folders);
        Ok(Answer::Done)
    }

    /// SIGKILL to the steps of these builds.
    pub(super) fn end_builds(&self, which: impl Fn(&str) -> bool) {
        for record in self.instances.all() {
            if record.build && which(build_folder(&record.instance)) {
                self.instances.kill(&record.instance);
                self.instances.clean_up(&record.instance, Some(&record));
            }
        }
    }

    fn list(&self) -> Vec<Instance> {
        // Asked first: a launch that gets on record meanwhile must not be in neither list.
        let launching = lock(&self.launching).clone();
        let live = self.instances.live();
        let on_record = |instance: &str| live.iter().any(|record| record.instance == instance);
        let begun: Vec<Instance> = launching
            .into_iter()
            .filter(|launch| !on_record(&launch.instance))
            .collect();
        let live = live.into_iter().map(|record| {
            let usage = self.cgroups.usage(&record.instance);
            let (frozen, held) = self.cgroups.is_frozen(&record.instance);
            Instance {
                ending: record.is_ending(),
                started_steady: processes::ticks_to_ms(record.start_time),
                container: None,
                frozen,
                held,
                memory: usage.memory,
                reclaimable: usage.reclaimable,
                oom_kills: usage.oom_kills,
                cpu_usec: usage.cpu_usec,
                instance: record.instance,
                app: record.app,
                deployment: record.deployment,
                build: record.build,
                pid: record.pid,
                started_at: record.started_at,
            }
        });
        live.chain(begun).collect()
    }

    fn system(&self) -> Vec<Process> {
        let own = std::process::id() as i32;
        let mut list = vec![Process {
            role: "warden".into(),
            pid: own,
            uid: sys::effective_uid(),
            memory_bytes: memory_of(own),
            app: None,
            instance: None,
        }];
        list.extend(lock(&self.children).processes());
        for record in self.instances.live() {
            // Init is part of what an instance costs us.
            let init: u64 = processes::children(record.pid)
                .into_iter()
                .map(memory_of)
                .sum();
            let base = lock(&self.uids).of_app(&record.app).unwrap_or(0);
            list.push(Process {
                role: "shim".into(),
                pid: record.pid,
                uid: processes::uid(record.pid).unwrap_or(base + INIT_UID),
                memory_bytes: memory_of(record.pid) + init,
                app: Some(record.app),
                instance: Some(record.instance),
            });
        }
        list
    }
}

/// A launch that is under way: it is in `List` before it is on record, so that a control plane that
/// was restarted meanwhile does not start another.
struct Launching<'a>(&'a Warden, String);

impl<'a> Launching<'a> {
    fn begin(warden: &'a Warden, sandbox: &Sandbox<'_>) -> Result<Self, String> {
        let mut list = lock(&warden.launching);
        if list.iter().any(|other| other.instance == sandbox.instance) {
            return Err(format!("{} is being started", sandbox.instance));
        }
        list.push(Instance {
            instance: sandbox.instance.to_owned(),
            app: sandbox.app.to_owned(),
            deployment: sandbox.deployment,
            build: sandbox.build,
            pid: 0,
            started_at: processes::now_ms(),
            started_steady: processes::steady_ms(),
            container: None,
            frozen: false,
            held: false,
            ending: false,
            memory: 0,
            reclaimable: 0,
            oom_kills: 0,
            cpu_usec: 0,
        });
        Ok(Launching(warden, sandbox.instance.to_owned()))
    }
}

impl Drop for Launching<'_> {
    fn drop(&mut self) {
        lock(&self.0.launching).retain(|other| other.instance != self.1);
    }
}

/// The steps of one build share a folder: its id without the step's number.
pub(super) fn build_folder(instance: &str) -> &str {
    instance
        .rsplit_once("-s")
        .map_or(instance, |(build, _)| build)
}

fn set_file(launch: &mut Launch, path: &str, content: String) {
    for file in &mut launch.files {
        if file.0 == path {
            file.1.clone_from(&content);
        }
    }
}

pub(super) fn delete(path: &std::path::Path) -> Result<Answer, String> {
    trees::delete(path)
        .map(|()| Answer::Done)
        .map_err(|error| format!("cannot delete {}: {error}", path.display()))
}
