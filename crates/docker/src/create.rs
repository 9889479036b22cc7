//! What a container of ours may do: as little as an app in a sandbox of our own.

use std::collections::HashMap;
use std::io::Read;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use bollard::query_parameters::{CreateContainerOptions, DownloadFromContainerOptions};
use futures_util::StreamExt;
use hutong_ipc::docker::{Ask, Prepared, Start, Told};

use crate::engine::{
    Engine, LABEL_APP, LABEL_DEPLOYMENT, LABEL_INSTANCE, LABEL_SERVER, LABEL_STARTED, LABEL_STEADY,
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

/// Whom a container's first program runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    Number(u32, u32),
    /// Only the image's /etc/passwd says which number.
    Named,
}

impl Engine {
    /// Makes the container of an instance; its id. Its walls stand before it is started.
    pub async fn create(
        &self,
        start: &Start,
        steady_ms: u64,
        now_ms: u64,
    ) -> Result<String, String> {
        let docker = self.docker()?;
        let failed = |error: bollard::errors::Error| error.to_string();
        let image = format!("sha256:{}", start.image);
        let found = docker.inspect_image(&image).await.map_err(|error| {
            format!("the image is not there any more ({error}); deploy it again")
        })?;
        let said = found
            .config
            .as_ref()
            .and_then(|config| config.user.as_deref());
        let user = match start.own_user {
            true => None,
            false => Some(parse_user(said.unwrap_or_default())),
        };
        let number = |user: Option<User>| match user {
            Some(User::Number(uid, gid)) => Some((uid, gid)),
            _ => None,
        };
        self.check_root(start, number(user)).await?;
        let mut prepared = self.prepare(start, number(user)).await?;
        let network = self.ensure_network(&start.app, start.egress).await?;
        let runs_as = match user {
            None => Some(format!("{}:{}", prepared.user.0, prepared.user.1)),
            Some(_) => None,
        };
        let body = self.body(start, &prepared, network, runs_as, (now_ms, steady_ms));
        let options = CreateContainerOptions {
            name: Some(format!("hutong-{}-{}", self.setup.tag, start.instance)),
            platform: String::new(),
        };
        let made = docker
            .create_container(Some(options), body)
            .await
            .map_err(failed)?;
        if user == Some(User::Named) {
            let name = said.unwrap_or_default();
            let ready = match self.look_up(&made.id, name).await {
                Ok(number) => match self.check_root(start, Some(number)).await {
                    Ok(()) => {
                        let ready = self.prepare(start, Some(number)).await;
                        ready.map(|ready| prepared = ready)
                    }
                    Err(reason) => Err(reason),
                },
                Err(reason) => Err(reason),
            };
            if let Err(reason) = ready {
                self.remove(&made.id).await;
                return Err(reason);
            }
        }
        Ok(made.id)
    }

    async fn prepare(&self, start: &Start, user: Option<(u32, u32)>) -> Result<Prepared, String> {
        let ask = Ask::Prepare {
            app: start.app.clone(),
            tree: start.mount.as_ref().map(|(tree, _)| tree.clone()),
            user,
            data: start.data,
            egress: start.egress,
        };
        match self.ask(ask).await? {
            (Told::Prepared(prepared), _) => Ok(prepared),
            (Told::Refused(reason), _) => Err(reason),
            _ => Err("the warden's answer is not understood".into()),
        }
    }

    /// Root inside is root on the host, but for what was taken from it: only where the owner says so, or where the
    /// engine makes somebody else of it.
    async fn check_root(&self, start: &Start, user: Option<(u32, u32)>) -> Result<(), String> {
        let is_root = user.is_some_and(|(uid, _)| uid == 0);
        if !is_root || start.allow_root || self.is_remapped().await {
            return Ok(());
        }
        Err("the image runs as root; see container.user and container.allow_root".into())
    }

    fn body(
        &self,
        start: &Start,
        prepared: &Prepared,
        network: String,
        user: Option<String>,
        (now_ms, steady_ms): (u64, u64),
    ) -> ContainerCreateBody {
        let mut binds = Vec::new();
        if let (Some(tree), Some((_, target))) = (&prepared.tree, &start.mount) {
            binds.push(format!("{tree}:{target}:ro"));
        }
        if let Some(data) = &prepared.data {
            binds.push(format!("{data}:/data:rw"));
        }
        let in_memory = ["/tmp", "/run"].map(str::to_owned).into_iter();
        let tmpfs = in_memory
            .chain(start.writable.iter().cloned())
            .map(|path| (path, WRITABLE.to_owned()));
        let memory = i64::try_from(start.limits.memory).unwrap_or(i64::MAX);
        let some = |text: &[String]| (!text.is_empty()).then(|| text.to_vec());
        let labels = [
            (LABEL_SERVER, self.setup.tag.clone()),
            (LABEL_APP, start.app.clone()),
            (LABEL_INSTANCE, start.instance.clone()),
            (LABEL_DEPLOYMENT, start.deployment.to_string()),
            (LABEL_STARTED, now_ms.to_string()),
            (LABEL_STEADY, steady_ms.to_string()),
        ];
        let root_keeps = || ROOT_CAPABILITIES.map(str::to_owned).to_vec();
        // Without a way out nobody is asked for names, not even by the engine on the container's behalf.
        let dns = match prepared.resolver {
            Some([a, b, c, d]) => format!("{a}.{b}.{c}.{d}"),
            None => "127.0.0.1".to_owned(),
        };
        ContainerCreateBody {
            image: Some(format!("sha256:{}", start.image)),
            hostname: Some(start.app.clone()),
            user,
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
                nano_cpus: Some(i64::from(start.limits.cpu_millis) * 1_000_000),
                // Init counts too.
                pids_limit: Some(i64::from(start.limits.pids) + 1),
                init: Some(true),
                readonly_rootfs: Some(true),
                tmpfs: Some(tmpfs.collect()),
                binds: Some(binds),
                network_mode: Some(network),
                dns: Some(vec![dns]),
                cap_drop: Some(vec!["ALL".into()]),
                cap_add: start.allow_root.then(root_keeps),
                security_opt: Some(vec![
                    "no-new-privileges:true".into(),
                    format!("seccomp={}", self.setup.seccomp),
                ]),
                ipc_mode: Some("private".into()),
                shm_size: Some(64 << 20),
                ulimits: Some(vec![ResourcesUlimits {
                    name: Some("core".into()),
                    soft: Some(0),
                    hard: Some(0),
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

    /// The number of a user by the image's own /etc/passwd.
    async fn look_up(&self, container: &str, user: &str) -> Result<(u32, u32), String> {
        let unknown = || format!("the image's user `{user}` is not in its /etc/passwd");
        let options = DownloadFromContainerOptions {
            path: "/etc/passwd".into(),
        };
        let docker = self.docker()?;
        let mut stream = Box::pin(docker.download_from_container(container, Some(options)));
        let mut archive = Vec::new();
        while let Some(chunk) = stream.next().await {
            archive.extend_from_slice(&chunk.map_err(|_| unknown())?);
            if archive.len() as u64 > 2 * MAX_PASSWD {
                return Err(unknown());
            }
        }
        let mut text = String::new();
        let mut archive = tar::Archive::new(archive.as_slice());
        let entry = archive.entries().ok().and_then(|mut all| all.next()?.ok());
        let entry = entry.ok_or_else(unknown)?;
        let _ = entry.take(MAX_PASSWD).read_to_string(&mut text);
        let name = user.split(':').next().unwrap_or_default();
        find_user(&text, name).ok_or_else(unknown)
    }
}

/// `USER` of an image: `""`, `1000`, `1000:1000`, `node`, `node:node`.
fn parse_user(text: &str) -> User {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    match (user, user.parse()) {
        ("", _) => User::Number(0, 0),
        (_, Ok(uid)) => User::Number(uid, group.parse().unwrap_or(0)),
        _ => User::Named,
    }
}

/// A line of passwd(5): user and group.
fn find_user(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        let uid = fields.nth(1)?.parse().ok()?;
        Some((uid, fields.next()?.parse().ok()?))
    })
}

/// Whether an image's `USER` is root, or says nothing.
pub fn is_root(user: &str) -> bool {
    matches!(parse_user(user), User::Number(0, _))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_images_are_read() {
        for root in ["", "0", "0:0", "0:1000", "00"] {
            assert!(is_root(root), "{root}");
        }
        assert_eq!(parse_user("1000"), User::Number(1000, 0));
        assert_eq!(parse_user("1000:20"), User::Number(1000, 20));
        assert_eq!(parse_user("node"), User::Named);
        // A name may stand for root: it is looked up before anything is started.
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\ntoor:x:0:0::/:/bin/sh\nnode:x:1000:1001::/:/bin/sh\n";
        assert_eq!(find_user(passwd, "node"), Some((1000, 1001)));
        assert_eq!(find_user(passwd, "toor"), Some((0, 0)));
        assert_eq!(find_user(passwd, "nobody"), None);
    }
}
