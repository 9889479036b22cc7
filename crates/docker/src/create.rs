//! What a container of ours may do: as little as an app in a sandbox of our own.

use std::collections::HashMap;
use std::io::Read;

use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, ImageConfig, Mount,
    MountType, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{CreateContainerOptions, DownloadFromContainerOptions};
use futures_util::StreamExt;
use hutong_core::image::{ImageUser, find_user};
use hutong_core::spec::links;
use hutong_ipc::docker::{Ask, Prepared, Start, Told};

use crate::engine::{
    Engine, LABEL_APP, LABEL_BOOT, LABEL_DEPLOYMENT, LABEL_INSTANCE, LABEL_LINKS, LABEL_NETWORK,
    LABEL_SERVER, LABEL_STARTED, LABEL_STEADY, is_missing,
};

/// What root keeps of its powers where an app may be root: enough to change its user, own files and listen on low
/// ports; not to make devices, send raw packets or trace.
const ROOT_CAPABILITIES: [&str; 8] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETUID",
];
/// Folders in memory, each.
const WRITABLE: &str = "size=64m,mode=1777";
/// Files of a container's output that the engine keeps until we have read them.
const LOG_FILE: &str = "8m";
/// An /etc/passwd is not longer, in bytes.
const MAX_PASSWD: u64 = 1 << 20;

/// How long a container waits for its disk.
const PREPARE: std::time::Duration = std::time::Duration::from_secs(1800);

/// Why a container cannot be made of whose name there is one: its making was answered, and the answer got lost.
pub const IN_THE_WAY: &str = "a container of its name is in the way";

impl Engine {
    /// Makes the container of an instance; its id. Everything that keeps it in is settled before: the engine is told a
    /// number to run as, and resolves no name by itself.
    pub async fn create(
        &self,
        start: &Start,
        steady_ms: u64,
        now_ms: u64,
    ) -> Result<String, String> {
        let docker = self.docker()?;
        let image = format!("sha256:{}", start.image);
        let found = docker.inspect_image(&image).await.map_err(|error| {
            if is_missing(&error) {
                "the image is not there any more; deploy it again".to_owned()
            } else {
                error.to_string()
            }
        })?;
        let config = found.config.unwrap_or_default();
        let user = match start.own_user {
            true => None,
            false => Some(
                match ImageUser::parse(config.user.as_deref().unwrap_or_default())? {
                    ImageUser::Number(uid, gid) => (uid, gid),
                    ImageUser::Named(name) => self.look_up(start, &image, &name).await?,
                },
            ),
        };
        let is_root = user.is_some_and(|(uid, _)| uid == 0);
        if is_root && !start.allow_root && !self.is_remapped().await {
            return Err(
                "the image runs as root; see container.user and container.allow_root".into(),
            );
        }
        let prepared = self.prepare(start, user).await?;
        let network = self.ensure_network(start).await?;
        let body = self.body(start, &prepared, network, &config, (now_ms, steady_ms));
        let options = CreateContainerOptions {
            name: Some(self.name_of(&start.instance)),
            platform: String::new(),
        };
        let made = docker.create_container(Some(options), body).await;
        match made {
            Ok(made) => Ok(made.id),
            Err(Error::DockerResponseServerError {
                status_code: 409, ..
            }) => Err(IN_THE_WAY.into()),
            Err(error) => Err(error.to_string()),
        }
    }

    pub async fn prepare(
        &self,
        start: &Start,
        user: Option<(u32, u32)>,
    ) -> Result<Prepared, String> {
        let ask = Ask::Prepare {
            app: start.app.clone(),
            tree: start.mount.as_ref().map(|(tree, _)| tree.clone()),
            user,
            data: start.data,
            egress: start.egress,
            quota: start.quota,
            listed: start.egress_list.is_some(),
        };
        let began = std::time::Instant::now();
        loop {
            match self.ask(ask.clone()).await? {
                (Told::Prepared(prepared), _) => return Ok(prepared),
                // Others are answered in between.
                (Told::Later(_), _) if began.elapsed() < PREPARE => {
                    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                }
                (Told::Refused(reason) | Told::Later(reason), _) => return Err(reason),
                _ => return Err("the warden's answer is not understood".into()),
            }
        }
    }

    fn body(
        &self,
        start: &Start,
        prepared: &Prepared,
        network: String,
        image: &ImageConfig,
        (now_ms, steady_ms): (u64, u64),
    ) -> ContainerCreateBody {
        let bind = |source: &String, target: &str, read_only: bool| Mount {
            typ: Some(MountType::BIND),
            source: Some(source.clone()),
            target: Some(target.to_owned()),
            read_only: Some(read_only),
            ..Default::default()
        };
        let mut mounts = Vec::new();
        if let (Some(tree), Some((_, target))) = (&prepared.tree, &start.mount) {
            mounts.push(bind(tree, target, true));
        }
        if let Some(data) = &prepared.data {
            mounts.push(bind(data, "/data", false));
        }
        let taken: Vec<String> = mounts.iter().filter_map(|one| one.target.clone()).collect();
        let in_memory = ["/tmp", "/run"].map(str::to_owned).into_iter();
        // What an image declares as a volume would be a folder of the host without any bound.
        let volumes = image.volumes.clone().unwrap_or_default();
        let tmpfs = in_memory
            .chain(start.writable.iter().cloned())
            .chain(volumes)
            .map(|path| path.trim_end_matches('/').to_owned())
            .filter(|path| path.starts_with('/') && !taken.contains(path))
            .map(|path| (path, WRITABLE.to_owned()));
        let memory = i64::try_from(start.limits.memory).unwrap_or(i64::MAX);
        let some = |text: &[String]| (!text.is_empty()).then(|| text.to_vec());
        let labels = [
            (LABEL_SERVER, self.setup.server.clone()),
            (LABEL_BOOT, boot_id()),
            (LABEL_APP, start.app.clone()),
            (LABEL_INSTANCE, start.instance.clone()),
            (LABEL_DEPLOYMENT, start.deployment.to_string()),
            (LABEL_STARTED, now_ms.to_string()),
            (LABEL_STEADY, steady_ms.to_string()),
            (LABEL_LINKS, start.links.join(",")),
            (LABEL_NETWORK, network.clone()),
        ];
        let hosts = start.links.iter().enumerate().map(|(index, name)| {
            let [a, b, c, d] = links::address(index);
            format!("{name}.internal:{a}.{b}.{c}.{d}")
        });
        let root_keeps = || ROOT_CAPABILITIES.map(str::to_owned).to_vec();
        // Without a way out nobody is asked for names, not even by the engine on the container's behalf.
        let dns = match prepared.resolver {
            Some([a, b, c, d]) => format!("{a}.{b}.{c}.{d}"),
            None => "127.0.0.1".to_owned(),
        };
        ContainerCreateBody {
            image: Some(format!("sha256:{}", start.image)),
            hostname: Some(start.app.clone()),
            user: Some(format!("{}:{}", prepared.runs_as.0, prepared.runs_as.1)),
            healthcheck: image.healthcheck.clone().map(calmly),
            cmd: some(&start.argv),
            entrypoint: start.entrypoint.clone(),
            env: Some(
                start
                    .env
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect(),
            ),
            working_dir: start.mount.as_ref().map(|(_, target)| target.clone()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
            attach_stdin: Some(false),
            open_stdin: Some(false),
            tty: Some(false),
            host_config: Some(HostConfig {
                memory: Some(memory),
                // Swap would only hide that the memory is used up.
                memory_swap: Some(memory),
                memory_reservation: reservation(memory, has_cgroup_v1()),
                cpu_period: Some(100_000),
                cpu_quota: Some(i64::from(start.limits.cpu_millis) * 100),
                // Init counts too.
                pids_limit: Some(i64::from(start.limits.pids) + 1),
                init: Some(true),
                readonly_rootfs: Some(true),
                tmpfs: Some(tmpfs.collect()),
                mounts: Some(mounts),
                network_mode: Some(network),
                dns: Some(vec![dns]),
                extra_hosts: Some(hosts.collect()),
                cap_drop: Some(vec!["ALL".into()]),
                cap_add: start.allow_root.then(root_keeps),
                security_opt: Some(vec![
                    "no-new-privileges:true".into(),
                    format!("seccomp={}", self.setup.seccomp),
                ]),
                ipc_mode: Some("private".into()),
                shm_size: Some(64 << 20),
                // Not 0: a program that core_pattern names would still be started, on the host (core(5)).
                ulimits: Some(vec![ResourcesUlimits {
                    name: Some("core".into()),
                    soft: Some(1),
                    hard: Some(1),
                }]),
                // Who restarts it is our affair.
                restart_policy: Some(RestartPolicy {
                    name: Some(RestartPolicyNameEnum::NO),
                    maximum_retry_count: None,
                }),
                log_config: Some(HostConfigLogConfig {
                    typ: Some("json-file".into()),
                    config: Some(HashMap::from([
                        ("max-size".to_owned(), LOG_FILE.to_owned()),
                        ("max-file".to_owned(), "2".to_owned()),
                    ])),
                }),
                publish_all_ports: Some(false),
                privileged: Some(false),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// The number of a user by the image's own /etc/passwd: read out of a container that is never started.
    async fn look_up(&self, start: &Start, image: &str, user: &str) -> Result<(u32, u32), String> {
        let docker = self.docker()?;
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            user: Some("65534:65534".into()),
            cmd: Some(vec!["/".into()]),
            labels: Some(HashMap::from([(
                LABEL_SERVER.to_owned(),
                self.setup.server.clone(),
            )])),
            network_disabled: Some(true),
            ..Default::default()
        };
        let options = CreateContainerOptions {
            name: Some(format!("{}-user", self.name_of(&start.instance))),
            platform: String::new(),
        };
        let made = docker.create_container(Some(options), body).await;
        let made = made.map_err(|error| error.to_string())?;
        let text = self.passwd(&made.id).await;
        self.remove(&made.id).await;
        let found = text.and_then(|text| find_user(&text, user));
        found.ok_or_else(|| {
            format!("the image's user `{user}` is not in its /etc/passwd, or not once; set `user = \"app\"`")
        })
    }

    async fn passwd(&self, container: &str) -> Option<String> {
        let options = DownloadFromContainerOptions {
            path: "/etc/passwd".into(),
        };
        let docker = self.docker().ok()?;
        let mut stream = Box::pin(docker.download_from_container(container, Some(options)));
        let mut archive = Vec::new();
        while let Some(chunk) = stream.next().await {
            archive.extend_from_slice(&chunk.ok()?);
            if archive.len() as u64 > 2 * MAX_PASSWD {
                return None;
            }
        }
        let mut archive = tar::Archive::new(archive.as_slice());
        let entry = archive.entries().ok()?.next()?.ok()?;
        let mut text = String::new();
        entry.take(MAX_PASSWD).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// What the container of an instance is called.
    pub fn name_of(&self, instance: &str) -> String {
        format!("hutong-{}-{instance}", self.setup.tag)
    }
}

/// Where the kernel begins to take memory back if the whole machine is short of it; only a v1 cgroup understands it so: of
/// v2, an engine would keep that much from being taken back. Weights of disks and processor are what engines give.
fn reservation(memory: i64, v1: bool) -> Option<i64> {
    let most = memory / 10 * 9;
    (v1 && most >= LEAST_RESERVATION).then_some(most)
}

/// Engines refuse less, in bytes.
const LEAST_RESERVATION: i64 = 6 << 20;

fn has_cgroup_v1() -> bool {
    !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// An image's health check, not more often than an app of ours could ask for: each costs the machine a process that is
/// not the container's.
fn calmly(check: HealthConfig) -> HealthConfig {
    let at_least = |time: Option<i64>| time.filter(|time| *time > 0).map(|time| time.max(LEAST_NS));
    HealthConfig {
        interval: at_least(check.interval),
        start_interval: at_least(check.start_interval),
        ..check
    }
}

/// The shortest time between two health checks, in nanoseconds.
const LEAST_NS: i64 = 1_000_000_000;

/// The kernel's own name for this boot (random(4)).
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_memory_is_kept_from_the_machine() {
        assert_eq!(reservation(100 << 20, true), Some(94_371_840));
        assert_eq!(reservation(100 << 20, false), None);
        assert_eq!(reservation(4 << 20, true), None);
    }
}
