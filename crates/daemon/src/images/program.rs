//! What a program of an image is started as: the image's own words, with those of the app's file over them, as an engine
//! puts them together.

use hutong_core::image::{ImageUser, stop_signal};
use hutong_core::spec::{ContainerUser, Image};
use hutong_registry::ContainerConfig;

/// What is searched for programs where an image does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The words to run: `own` in place of the image's command, the file's entry point in place of the image's.
pub fn argv(config: &ContainerConfig, image: &Image, own: &[String]) -> Vec<String> {
    let command = config.cmd.clone().unwrap_or_default();
    let mut words = match &image.entrypoint {
        Some(entrypoint) => entrypoint.clone(),
        None => config.entrypoint.clone().unwrap_or_default(),
    };
    let replaced = image
        .entrypoint
        .as_ref()
        .is_some_and(|list| !list.is_empty());
    if !own.is_empty() {
        words.extend(own.iter().cloned());
    } else if !replaced {
        // The image's command is meant for its own entry point.
        words.extend(command);
    }
    words
}

/// The image's variables, with `own` over them.
pub fn environment(
    config: &ContainerConfig,
    home: &str,
    own: Vec<(String, String)>,
) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let image = config.env.iter().flatten();
    let image = image.filter_map(|entry| entry.split_once('='));
    let image = image
        .filter(|(key, value)| hutong_core::name::is_env_key(key) && !value.contains('\0'))
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    for (key, value) in image.chain(own) {
        env.retain(|(known, _)| *known != key);
        env.push((key, value));
    }
    for (key, value) in [("PATH", PATH), ("HOME", home)] {
        if !env.iter().any(|(known, _)| known == key) {
            env.push((key.to_owned(), value.to_owned()));
        }
    }
    env
}

/// Where programs begin.
pub fn folder(config: &ContainerConfig, image: &Image) -> String {
    if let Some(mount) = &image.mount {
        return mount.clone();
    }
    let said = config.working_dir.as_deref().unwrap_or_default();
    // As engines clean it: names without anything that leads up.
    let parts = said
        .split('/')
        .filter(|part| !matches!(*part, "" | "." | ".."));
    format!("/{}", parts.collect::<Vec<_>>().join("/"))
}

/// Folders in memory: the app's, and the image's volumes, which would be folders of the host without a bound.
pub fn writable(config: &ContainerConfig, image: &Image, data: bool) -> Vec<String> {
    let volumes = config.volumes.iter().flat_map(|volumes| volumes.keys());
    let taken = |path: &str| {
        let of_ours = ["/tmp", "/run", "/proc", "/sys", "/dev", "/etc"];
        path.is_empty()
            || of_ours.contains(&path)
            || path.starts_with("/proc/")
            || path.starts_with("/dev/")
            || (data && path == "/data")
            || image.mount.as_deref() == Some(path)
    };
    let plain = |path: &str| {
        path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/')
                .all(|part| !part.is_empty() && part != "." && part != "..")
        })
    };
    let mut list: Vec<String> = Vec::new();
    for path in image.writable.iter().chain(volumes) {
        let path = path.trim_end_matches('/');
        if !taken(path) && plain(path) && !list.iter().any(|known| known == path) {
            list.push(path.to_owned());
        }
    }
    list
}

pub fn signal(config: &ContainerConfig) -> Option<i32> {
    config.stop_signal.as_deref().and_then(stop_signal)
}

/// Whom the image wants to be run as; `None`: a user of the app's own.
pub fn user(config: &ContainerConfig, image: &Image) -> Result<Option<ImageUser>, String> {
    match image.user {
        ContainerUser::App => Ok(None),
        ContainerUser::Image => {
            ImageUser::parse(config.user.as_deref().unwrap_or_default()).map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn image(more: &str) -> Image {
        let text = format!("name = 'a'\nimage = 'x'\n{more}");
        let spec = hutong_core::spec::parse("t", &text).expect("good");
        spec.image.expect("an image")
    }

    #[test]
    fn words_are_put_together_as_engines_do() {
        let config = ContainerConfig {
            entrypoint: Some(words("/entry")),
            cmd: Some(words("serve all")),
            ..ContainerConfig::default()
        };
        let run = |more: &str, own: &str| argv(&config, &image(more), &words(own)).join(" ");
        assert_eq!(run("", ""), "/entry serve all");
        assert_eq!(run("", "migrate"), "/entry migrate");
        assert_eq!(run("container.entrypoint = []", ""), "serve all");
        assert_eq!(run("container.entrypoint = ['sh', '-c']", ""), "sh -c");
        assert_eq!(run("container.entrypoint = ['sh']", "x"), "sh x");
    }

    #[test]
    fn variables_folders_and_signals() {
        let config = ContainerConfig {
            env: Some(vec![
                "A=1".into(),
                "B=x=y".into(),
                "odd".into(),
                "=z".into(),
            ]),
            working_dir: Some("/srv/../app/".into()),
            stop_signal: Some("SIGQUIT".into()),
            volumes: Some(
                [
                    "/var/lib/x/",
                    "/",
                    "/data",
                    "relative",
                    "/dev/shm",
                    "/proc/1",
                ]
                .map(|path| (path.to_owned(), serde_json::Value::Null))
                .into(),
            ),
            ..ContainerConfig::default()
        };
        let own = vec![("A".to_owned(), "2".to_owned())];
        let env = environment(&config, "/root", own);
        let get = |key: &str| env.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        assert_eq!(
            (get("A"), get("B"), get("PATH"), get("HOME")),
            (Some("2"), Some("x=y"), Some(PATH), Some("/root"))
        );
        assert_eq!(env.len(), 4);
        assert_eq!(folder(&config, &image("")), "/srv/app");
        assert_eq!(folder(&ContainerConfig::default(), &image("")), "/");
        assert_eq!(folder(&config, &image("container.mount = '/app'")), "/app");
        assert_eq!(signal(&config), Some(3));
        let list = writable(&config, &image("container.writable = ['/cache']"), true);
        assert_eq!(list, ["/cache", "/var/lib/x"]);
    }
}
