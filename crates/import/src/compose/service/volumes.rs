//! What was put into a container: the app's own folder, its data, folders in memory, or nothing.

use crate::files::beside;
use crate::known::Keep;
use crate::place::{At, short};
use crate::tree::Node;

use super::super::parts;
use super::Reading;

impl Reading<'_> {
    pub(super) fn volume(&mut self, item: &Node) {
        let Some(volume) = parts::volume(item) else {
            self.report
                .left(&item.at, "volumes", "it is not understood");
            return;
        };
        for entry in item.map() {
            let is_read = matches!(
                entry.key.as_str(),
                "type" | "source" | "src" | "target" | "dst" | "read_only"
            );
            if !is_read {
                self.report.left(
                    &entry.at,
                    &format!("volumes.{}", entry.key),
                    "an app has one folder, /data, which is mounted as all are",
                );
            }
        }
        let at = &volume.at;
        let target = volume.target.trim_end_matches('/');
        let source = volume.source.clone().unwrap_or_default();
        let what = format!("volumes: {source}:{target}");
        if source.ends_with("docker.sock") {
            self.report.left(at, &what, "no app gets at the engine");
        } else if target == "/etc/localtime" || target == "/etc/timezone" {
            self.report
                .left(at, &what, "set TZ in [env] if the program looks at it");
        } else if volume.is_tmpfs {
            self.writable(at, target);
        } else if let Some(server) = self.tcp.filter(|server| {
            let wide = |a: &str, b: &str| hutong_core::route::covers(a, b);
            wide(server.folder, target) || wide(target, server.folder)
        }) {
            self.draft.data = true;
            match server.data {
                Keep::There => self.report.used(at, &what, "data = true"),
                Keep::Variable(key, value) => {
                    self.draft
                        .env
                        .entry(key.to_owned())
                        .or_insert(value.to_owned());
                    self.report
                        .used(at, &what, format!("data = true, and {key} = \"{value}\""));
                }
                Keep::Option(option) => {
                    self.options.push(option.to_owned());
                    self.report
                        .used(at, &what, format!("data = true, and the option {option}"));
                }
                Keep::Unknown => self.report.leave_to_do(
                    at,
                    &what,
                    format!("data = true: have {} keep its data in /data", server.name),
                ),
            }
            self.report.leave_to_do(
                at,
                &what,
                format!(
                    "what is in it now is not moved: copy it into /data of {} yourself",
                    self.draft.name
                ),
            );
        } else if hutong_core::route::covers("/data", target) {
            self.draft.data = true;
            self.report.used(at, &what, "data = true");
            self.report.leave_to_do(
                at,
                &what,
                "what is in it now is not moved: copy it into /data yourself",
            );
        } else if target.ends_with(".log")
            || target.starts_with("/var/log")
            || target.ends_with("/logs")
        {
            self.report.replaced(
                at,
                &what,
                format!("have the program print to standard output: `hutong logs {}` shows it (the image is read-only, but for /tmp, /run and /data)", self.draft.name),
            );
        } else if volume.is_bind()
            && (volume.read_only || source == "." || source == "./")
            && !volume.is_file()
        {
            self.mount(at, &what, &source, target);
        } else if volume.read_only || volume.is_bind() && volume.is_file() {
            self.report.left(
                at,
                &what,
                "put it into the image, or into the app's folder (`container.mount`)",
            );
        } else {
            self.draft.data = true;
            self.report.leave_to_do(
                at,
                &what,
                format!("data = true: an app keeps its data in /data and nowhere else; have the program use that in place of {target}, and copy what is in it now"),
            );
        }
    }

    /// The app's own folder, where a folder of the machine was seen.
    fn mount(&mut self, at: &At, what: &str, source: &str, target: &str) {
        if self.container.mount.is_some() || !parts::is_plain_path(target) {
            let why = "one folder can be seen inside, the app's own; put this one into the image";
            self.report.left(at, what, why);
            return;
        }
        self.container.mount = Some(target.to_owned());
        self.draft.folder = Some(beside(&at.path, source));
        self.report.used(
            at,
            what,
            format!("container.mount = \"{target}\": the app's folder, read-only; put hutong.toml into {}", short(source)),
        );
    }

    pub(super) fn writable(&mut self, at: &At, path: &str) {
        let path = path.trim_end_matches('/');
        let known = ["/tmp", "/run"].contains(&path);
        if known {
            self.report.used(at, "tmpfs", "it is in memory anyway");
        } else if parts::is_plain_path(path) && self.container.writable.len() < 16 {
            self.container.writable.push(path.to_owned());
            self.report
                .used(at, "tmpfs", format!("container.writable, {path}"));
        } else {
            self.report.left(
                at,
                "tmpfs",
                "only plain paths inside can be written to, at most 16",
            );
        }
    }
}
