//! Variables of an app: in its file, or kept apart where they are secrets.

use hutong_core::spec::{MAX_ENV, check_env};

use crate::app::Draft;
use crate::place::At;
use crate::report::Report;
use crate::secrets;

/// Sets one; the last of several wins.
pub(crate) fn put(draft: &mut Draft, at: &At, key: &str, value: &str, report: &mut Report) {
    let what = format!("environment.{key}");
    if let Err(why) = check_env(key, value) {
        report.left(at, &what, why);
        return;
    }
    if draft.env_size + key.len() + value.len() > MAX_ENV {
        report.left(at, &what, "an app's environment has at most 64K");
        return;
    }
    draft.env_size += key.len() + value.len();
    draft.env_at.insert(key.to_owned(), at.clone());
    draft.env.remove(key);
    draft.secrets.remove(key);
    if secrets::is_secret(key, value) {
        draft.secrets.insert(key.to_owned(), value.to_owned());
        report.used(at, &what, "secrets.env, to be kept by `hutong env set`");
    } else {
        draft.env.insert(key.to_owned(), value.to_owned());
        report.used(at, &what, "[env]");
    }
}

/// The same of a program that ran on the machine itself: `PORT` is its port, and paths are looked at.
pub(crate) fn put_of_program(
    draft: &mut Draft,
    at: &At,
    key: &str,
    value: &str,
    report: &mut Report,
) {
    let what = format!("environment.{key}");
    if key == "PORT" {
        match value.trim().parse::<u16>() {
            Ok(port @ 1..) => {
                draft.port = Some(port);
                draft.published.insert(port);
                report.used(at, &what, format!("port = {port}; Hutong sets PORT itself"));
            }
            _ => report.left(at, &what, "this is no port"),
        }
        return;
    }
    let folders = [
        "/home/", "/opt/", "/srv/", "/var/", "/root/", "/mnt/", "/etc/",
    ];
    if folders.iter().any(|folder| value.starts_with(folder)) {
        report.leave_to_do(
            at,
            &what,
            "it names a path of the machine: inside there are /app (read-only), /data and /tmp",
        );
    }
    put(draft, at, key, value, report);
}
