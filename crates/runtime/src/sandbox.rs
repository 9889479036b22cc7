//! What an app gets to see: the allow-list of the host's folders, made-up files, and its environment.

use std::path::Path;

use hutong_ipc::shim::{APP_UID, INIT_UID, Mount};

/// Host folders that every app sees, read-only. Deny by default: nothing else of the host appears.
const HOST: [&str; 7] = [
    "/usr",
    // Certificates, linker cache, time zone, and the links that /usr/bin relies on (cc, awk, vi).
    "/etc/ssl/certs",
    "/etc/pki/tls/certs",
    "/etc/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/alternatives",
];

/// Of hosts where /bin and its kin are folders of their own.
const OLD_SYSTEM_FOLDERS: [&str; 4] = ["/bin", "/sbin", "/lib", "/lib64"];

pub fn host_mounts() -> Vec<Mount> {
    let folder = |path: &&str| !Path::new(path).is_symlink() && Path::new(path).is_dir();
    HOST.iter()
        .chain(OLD_SYSTEM_FOLDERS.iter().filter(|path| folder(path)))
        .filter_map(|path| {
            // /etc/localtime is usually a link to a file below /usr.
            let source = Path::new(path).canonicalize().ok()?;
            Some(mount(&source, path, false))
        })
        .map(|mount| Mount {
            optional: true,
            ..mount
        })
        .collect()
}

pub fn mount(source: &Path, target: &str, writable: bool) -> Mount {
    Mount {
        source: source.to_string_lossy().into_owned(),
        target: target.to_owned(),
        writable,
        optional: false,
        whiteouts: false,
    }
}

/// passwd and its kin, made up for one app.
pub fn files(app: &str, home: &str, resolver: Option<[u8; 4]>) -> Vec<(String, String)> {
    let resolv = match resolver {
        Some([a, b, c, d]) => {
            format!("nameserver {a}.{b}.{c}.{d}\noptions timeout:3 attempts:2 single-request\n")
        }
        None => "# This app has no way out; `egress` in hutong.toml gives it one.\n".to_owned(),
    };
    [
        (
            "/etc/passwd",
            format!(
                "root:x:0:0:root:/:/usr/sbin/nologin\napp:x:{APP_UID}:{APP_UID}:{app}:{home}:/bin/sh\ninit:x:{INIT_UID}:{INIT_UID}::/:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
            ),
        ),
        (
            "/etc/group",
            format!("root:x:0:\napp:x:{APP_UID}:\nnogroup:x:65534:\n"),
        ),
        (
            "/etc/hosts",
            format!("127.0.0.1 localhost {app}\n::1 localhost ip6-localhost\n"),
        ),
        ("/etc/hostname", format!("{app}\n")),
        ("/etc/resolv.conf", resolv),
        (
            "/etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n".into(),
        ),
    ]
    .map(|(path, content)| (path.to_owned(), content))
    .to_vec()
}

/// What is made up for an app whose root is an image: the image has users of its own.
pub fn files_of_image(app: &str) -> Vec<(String, String)> {
    let ours = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
    let mut all = files(app, "/", None);
    all.retain(|(path, _)| ours.contains(&path.as_str()));
    all
}

/// The environment below the app's own variables.
pub fn base_env(app: &str, instance: &str, home: &str) -> Vec<(String, String)> {
    [
        (
            "PATH",
            "/app/.venv/bin:/app/node_modules/.bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        ("HOME", home),
        ("USER", "app"),
        ("LOGNAME", "app"),
        ("SHELL", "/bin/sh"),
        ("LANG", "C.UTF-8"),
        ("TMPDIR", "/tmp"),
        ("PYTHONUNBUFFERED", "1"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("HUTONG_APP", app),
        ("HUTONG_INSTANCE", instance),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .to_vec()
}

/// `base` with `own` over it.
pub fn merge_env(base: Vec<(String, String)>, own: &[(String, String)]) -> Vec<(String, String)> {
    let mut merged: Vec<_> = base
        .into_iter()
        .filter(|(key, _)| !own.iter().any(|(other, _)| other == key))
        .collect();
    merged.extend(own.iter().cloned());
    merged
}
