//! What becomes of a compose service: an app from its image, a worker of another one, or a word on how Hutong does its work
//! itself. Each of its keys is said to be used or left out.

mod fixed;
mod limits;
mod volumes;

use std::collections::BTreeMap;
use std::time::Duration;

use hutong_core::spec::{MAX_CONTAINERS, parse_domain};

use crate::app::{Container, Draft, Run, Worker, process_name};
use crate::dotenv;
use crate::environment;
use crate::files::Files;
use crate::interpolate;
use crate::known::{self, Part, TcpServer};
use crate::place::{At, Mistake, short};
use crate::report::Report;
use crate::secrets;
use crate::traefik;
use crate::tree::{Entry, Node, Value};
use crate::units::{time_or_seconds, within};
use crate::{Labels, State};

use super::parts::{self, Port};
use super::{Project, Service, may_join, variables_of, wanted_name};
use fixed::fixed;

/// An app, and what its labels say.
struct Made {
    draft: Draft,
    dynamic: traefik::Dynamic,
    /// Something says that it listens.
    listens: bool,
    service: String,
}

pub(super) fn import(
    project: Project,
    files: &mut Files<'_>,
    state: &mut State,
) -> Result<(), Mistake> {
    let is_ours = |service: &&Service| known::replaced(image_of(service)).is_none();
    let is_alone = project.services.iter().filter(is_ours).count() == 1;
    let mut made = Vec::new();
    for service in &project.services {
        if let Some(known) = known::replaced(image_of(service)) {
            replace(service, known, &project, state);
            continue;
        }
        let wanted = wanted_name(&project.name, &service.name, is_alone, &state.names);
        let name = state.names.take(&wanted);
        state.report.app = Some(name.clone());
        let mut reading = Reading::new(name, service, &project, &mut state.report);
        reading.read(&service.node, files)?;
        made.push(reading.finish());
        state.report.app = None;
    }
    join_workers(&mut made, state);
    for one in made {
        if !one.listens {
            state.report.app = Some(one.draft.name.clone());
            state.report.leave_to_do(
                &one.draft.at,
                &format!("services.{}", one.service),
                "nothing says which port it listens on: an app from an image is healthy when its `port` (8080) takes a connection; one that listens nowhere goes with another app of the same image, as [workers.NAME]",
            );
            state.report.app = None;
        }
        state.server.needs_engine |= one.draft.container().is_some();
        state.labels.push(Labels {
            project: project.name.clone(),
            draft: Some(state.drafts.len()),
            dynamic: one.dynamic,
        });
        state.drafts.push(one.draft);
    }
    Ok(())
}

fn image_of(service: &Service) -> &str {
    let image = service.node.get("image").and_then(Node::text);
    image.unwrap_or_default()
}

/// A service whose work Hutong does itself. What Traefik was told by flags and variables is read all the same.
fn replace(service: &Service, known: known::Replaced, project: &Project, state: &mut State) {
    let what = format!("services.{}", service.name);
    state.report.replaced(&service.at, &what, known.text);
    let mut labels = Vec::new();
    for entry in service.node.map() {
        let (at, key, value) = (&entry.at, entry.key.as_str(), &entry.value);
        let what = format!("{what}.{key}");
        match (known.part, key) {
            (_, "extends") => {}
            (Part::Traefik, "environment") => {
                for variable in variables_of(value) {
                    let text = variable
                        .value
                        .text()
                        .filter(|_| variable.value.missing().is_empty());
                    let text = text.filter(|text| !text.is_empty()).map(str::to_owned);
                    state.server.variables.insert(variable.key.clone(), text);
                    state.report.used(
                        &variable.at,
                        &format!("{what}.{}", variable.key),
                        "if a DNS provider needs it: server.toml, [acme.dns]",
                    );
                }
            }
            (Part::Traefik, "command") => {
                let (settings, others) = traefik::of_flags(&words_with_places(value));
                let dynamic = traefik::read_static(settings, &mut state.server, &mut state.report);
                for setting in dynamic {
                    state
                        .report
                        .left(&setting.at, &setting.shown, "it is not known here");
                }
                for (at, word) in others {
                    state.report.left(&at, &word, "it is no flag");
                }
            }
            (Part::Traefik, "ports") => {
                for item in value.list() {
                    match parts::port(item).map(|port| port.target) {
                        Some(80) => state.server.http = Some("0.0.0.0:80".into()),
                        Some(443) => state.server.https = Some("0.0.0.0:443".into()),
                        _ => {}
                    }
                    state.report.used(
                        &item.at,
                        &what,
                        "server.toml: `http` and `https`, where it is one of theirs",
                    );
                }
            }
            (_, "labels") => {
                for entry in variables_of(value) {
                    let text = entry.value.text().unwrap_or_default().to_owned();
                    if entry.key.to_ascii_lowercase().starts_with("traefik.") {
                        labels.push((entry.at, entry.key, text));
                    } else {
                        let why = "it goes with the service that Hutong replaces";
                        state.report.left(&entry.at, &entry.key, why);
                    }
                }
            }
            _ => state
                .report
                .left(at, &what, "it goes with the service that Hutong replaces"),
        }
    }
    if known.part == Part::Watchtower {
        state.watched = true;
    }
    // Middlewares that others name may stand at Traefik itself.
    let settings = traefik::of_labels(&labels);
    let dynamic = traefik::Dynamic::read(&settings, &mut state.report);
    state.labels.push(Labels {
        project: project.name.clone(),
        draft: None,
        dynamic,
    });
}

/// The words of a command, with where they stand.
fn words_with_places(node: &Node) -> Vec<(At, String)> {
    match &node.value {
        Value::Scalar(scalar) => {
            let words = shell_words::split(&scalar.text);
            let words = words.unwrap_or_else(|_| vec![scalar.text.clone()]);
            let placed = words.into_iter().map(|word| (node.at.clone(), word));
            placed.collect()
        }
        _ => node.texts(),
    }
}

/// Services of the same image that listen nowhere become workers of the one that does.
fn join_workers(made: &mut Vec<Made>, state: &mut State) {
    let mut index = 0;
    while index < made.len() {
        let home = match made.get(index) {
            Some(one)
                if !one.listens && one.draft.container().is_some_and(|c| c.command.is_some()) =>
            {
                let fits = |other: &Made| other.listens && may_join(&other.draft, &one.draft);
                made.iter().position(fits)
            }
            _ => None,
        };
        let Some(home) = home else {
            index += 1;
            continue;
        };
        let worker = made.remove(index);
        let home = if home > index { home - 1 } else { home };
        if let Some(web) = made.get_mut(home) {
            let old = worker.draft.name.clone();
            take_in(web, worker, &mut state.report);
            for note in &mut state.report.notes {
                if note.app.as_ref() == Some(&old) {
                    note.app = Some(web.draft.name.clone());
                }
            }
        }
    }
}

fn take_in(web: &mut Made, worker: Made, report: &mut Report) {
    let Made { draft, service, .. } = worker;
    let Run::Image(container) = draft.run else {
        return;
    };
    let mut name = process_name(&service);
    let mut count = 1;
    while web.draft.workers.contains_key(&name) {
        count += 1;
        name = process_name(&format!("w{count}{service}"));
    }
    report.app = Some(web.draft.name.clone());
    report.used(
        &draft.at,
        &format!("services.{service}"),
        format!("[workers.{name}]: it has the same image, and nothing says that it listens"),
    );
    report.app = None;
    web.draft.env.extend(draft.env);
    web.draft.secrets.extend(draft.secrets);
    web.draft.env_at.extend(draft.env_at);
    web.draft.needs.extend(draft.needs);
    web.draft.data |= draft.data;
    web.draft.aliases.extend(draft.aliases);
    let room = MAX_CONTAINERS
        .saturating_sub(all_instances(&web.draft))
        .max(1);
    let instances = draft.instances.unwrap_or(1).min(room);
    web.draft.workers.insert(
        name,
        Worker {
            command: container.command.unwrap_or_default(),
            instances,
            limits: draft.limits,
        },
    );
    // Six in all: the visitors' program gives way.
    while all_instances(&web.draft) > MAX_CONTAINERS {
        match web.draft.instances {
            Some(count @ 2..) => web.draft.instances = Some(count - 1),
            _ => break,
        }
    }
}

fn all_instances(draft: &Draft) -> u32 {
    let workers: u32 = draft.workers.values().map(|worker| worker.instances).sum();
    draft.instances.unwrap_or(1) + workers
}

/// One service while it is read.
struct Reading<'a> {
    draft: Draft,
    container: Container,
    report: &'a mut Report,
    project: &'a Project,
    tcp: Option<TcpServer>,
    labels: Vec<(At, String, String)>,
    ports: Vec<Port>,
    exposed: Option<u16>,
    env_port: Option<u16>,
    virtual_port: Option<u16>,
    checked_port: Option<u16>,
    /// Words behind its command.
    options: Vec<String>,
    service: String,
}

impl<'a> Reading<'a> {
    fn new(name: String, service: &Service, project: &'a Project, report: &'a mut Report) -> Self {
        let tcp = known::tcp_server(image_of(service));
        let draft = Draft {
            at: service.at.clone(),
            name,
            project: project.name.clone(),
            aliases: [service.name.clone()].into(),
            tcp: tcp.map(|server| server.name),
            egress: tcp.is_none(),
            ..Draft::default()
        };
        Reading {
            draft,
            container: Container::default(),
            report,
            project,
            tcp,
            labels: Vec::new(),
            ports: Vec::new(),
            exposed: None,
            env_port: None,
            virtual_port: None,
            checked_port: None,
            options: Vec::new(),
            service: service.name.clone(),
        }
    }

    fn read(&mut self, node: &Node, files: &mut Files<'_>) -> Result<(), Mistake> {
        // Files first: what stands in the compose file itself wins.
        if let Some(list) = node.get("env_file") {
            self.env_files(list, files)?;
        }
        for entry in node.map() {
            if !matches!(entry.key.as_str(), "environment" | "env_file") {
                self.note_missing(&entry.key, &entry.value);
            }
            self.key(entry)?;
        }
        self.image(node)
    }

    /// Variables that are not set leave a hole. What is around it is not said: others in it may be secrets.
    fn note_missing(&mut self, key: &str, node: &Node) {
        if !node.missing().is_empty() {
            let text = format!(
                "{} is not set, and nothing stands in its place: hand over an .env file beside the compose file, or fill it in",
                node.missing().join(", ")
            );
            self.report.leave_to_do(&node.at, key, text);
        }
        for item in node.list() {
            self.note_missing(key, item);
        }
        for entry in node.map() {
            self.note_missing(&format!("{key}.{}", entry.key), &entry.value);
        }
    }

    fn key(&mut self, entry: &Entry) -> Result<(), Mistake> {
        let (at, key, value) = (&entry.at, entry.key.as_str(), &entry.value);
        match key {
            // Said elsewhere.
            "extends" | "env_file" | "image" => {}
            "build" => self.build(value, at),
            "command" => {
                self.container.command = self.words(value, at, "command")?;
            }
            "entrypoint" => {
                self.container.entrypoint = match value.text() {
                    Some("") => {
                        self.report.used(at, key, "container.entrypoint = []");
                        Some(Vec::new())
                    }
                    _ => {
                        let words = self.words(value, at, "container.entrypoint")?;
                        // `[""]` is none, too.
                        words.map(|words| match words.iter().all(String::is_empty) {
                            true => Vec::new(),
                            false => words,
                        })
                    }
                };
            }
            "environment" => {
                for variable in variables_of(value) {
                    let text = variable.value.text().map(str::to_owned);
                    let missing = variable.value.missing().to_vec();
                    self.variable(&variable.at, &variable.key, text.as_deref(), &missing);
                }
            }
            "ports" => self.ports(value),
            "expose" => {
                for item in value.list() {
                    let port = parts::port(item).map(|port| port.target);
                    self.exposed = self.exposed.or(port);
                    self.report.used(
                        &item.at,
                        "expose",
                        "the port that it listens on, if nothing else says so",
                    );
                }
            }
            "volumes" => {
                for item in value.list() {
                    self.volume(item);
                }
            }
            "tmpfs" => {
                for (at, path) in value.texts() {
                    let path = path.split(':').next().unwrap_or_default();
                    self.writable(&at, path);
                }
            }
            "labels" => self.labels(value),
            "healthcheck" => self.healthcheck(value),
            "deploy" => self.deploy(value),
            "depends_on" | "links" => self.needs(value, key),
            "networks" | "network_mode" => self.networks(value, at, key),
            "restart" => self.restart(at, value.text().unwrap_or_default()),
            "user" => self.user(at, value.text().unwrap_or_default()),
            "profiles" => self.report.used(at, key, "it was asked for"),
            "scale" => self.instances(at, key, value),
            "pull_policy" => self.pull_policy(at, value.text().unwrap_or_default()),
            "stop_grace_period" => {
                let time = value.text().and_then(time_or_seconds);
                match time {
                    Some(time) => {
                        let time = within(time, Duration::ZERO, Duration::from_secs(600));
                        self.draft.timeouts.stop = Some(time);
                        self.report.used(at, key, "timeouts.stop");
                    }
                    None => self.report.left(at, key, "this is no time"),
                }
            }
            "container_name" | "hostname" => {
                let name = value.text().unwrap_or_default();
                self.draft.aliases.insert(name.to_owned());
                self.report
                    .used(at, key, "what others call it, where a link to it is meant");
            }
            "mem_limit" | "memory" => self.memory(at, key, value),
            "cpus" => self.cpus(at, key, value),
            "pids_limit" => self.pids(at, key, value),
            _ => match fixed(key, value) {
                Some((true, text)) => self.report.used(at, key, text),
                Some((false, text)) => self.report.left(at, key, text),
                None => self.report.left(at, key, "it is not known here"),
            },
        }
        Ok(())
    }

    fn build(&mut self, value: &Node, at: &At) {
        let context = value
            .text()
            .or_else(|| value.get("context").and_then(Node::text));
        let context = context.unwrap_or(".");
        self.report.leave_to_do(
            at,
            "build",
            format!(
                "Hutong reads no Dockerfile: build the image first (`docker build -t IMAGE {}`), or run the program without one: `command` in a hutong.toml in that folder",
                short(context)
            ),
        );
        for entry in value.map() {
            self.report.left(
                &entry.at,
                &format!("build.{}", entry.key),
                "it is for `docker build`",
            );
        }
        self.container.pull = Some("never");
    }

    fn image(&mut self, node: &Node) -> Result<(), Mistake> {
        let (at, image) = match node.get("image") {
            Some(image) => (
                image.at.clone(),
                image.text().unwrap_or_default().to_owned(),
            ),
            // As compose calls what it builds.
            None => {
                let name = format!("{}-{}", self.project.name, self.service);
                (self.draft.at.clone(), name.to_ascii_lowercase())
            }
        };
        if node.get("image").is_none() && node.get("build").is_none() {
            let file = node.get("extends").and_then(|extends| extends.get("file"));
            let more = match file.and_then(Node::text) {
                Some(file) => format!("; it extends one of {}: was that handed over?", short(file)),
                None => String::new(),
            };
            return Err(Mistake::new(
                &at,
                format!("this service has neither `image` nor `build`{more}"),
            ));
        }
        let missing = node.get("image").map_or(&[][..], Node::missing);
        if !missing.is_empty() && !parts::is_reference(&image) {
            let message = format!(
                "{} is not set, and the image cannot be told without: hand over an .env file beside the compose file",
                short(&missing.join(", "))
            );
            return Err(Mistake::new(&at, message));
        }
        let image: String = match node.get("image") {
            None => image
                .chars()
                .filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c))
                .skip_while(|c| !c.is_ascii_alphanumeric())
                .collect(),
            Some(_) => image,
        };
        if !parts::is_reference(&image) {
            let message = format!("`{}` is no image such as python:3.12", short(&image));
            return Err(Mistake::new(&at, message));
        }
        self.report
            .used(&at, "image", format!("image = \"{image}\""));
        self.container.image = image;
        Ok(())
    }

    fn words(&mut self, value: &Node, at: &At, key: &str) -> Result<Option<Vec<String>>, Mistake> {
        let words = match &value.value {
            Value::Scalar(scalar) => shell_words::split(&scalar.text)
                .map_err(|_| Mistake::new(&value.at, "a quote is not closed"))?,
            Value::List(_) => value.texts().into_iter().map(|(_, word)| word).collect(),
            _ => Vec::new(),
        };
        if secrets::in_command(&words) {
            self.report.leave_to_do(
                at,
                key,
                "there seems to be a secret in it, and hutong.toml is part of every release: have the program read it from a variable",
            );
        }
        let total: usize = words.iter().map(|word| word.len() + 1).sum();
        let is_empty = words.first().is_none_or(String::is_empty);
        let is_list = matches!(value.value, Value::List(_));
        if total > 32 << 10 || words.iter().any(|word| word.contains('\0')) {
            self.report.left(at, key, "it is over 32K or holds a NUL");
            return Ok(None);
        }
        if is_empty && !(is_list && key != "command") {
            self.report.used(at, key, "the image's own");
            return Ok(None);
        }
        self.report
            .used(at, key, format!("{key}, {} words", words.len()));
        Ok(Some(words))
    }

    fn env_files(&mut self, list: &Node, files: &mut Files<'_>) -> Result<(), Mistake> {
        let items = match &list.value {
            Value::List(items) => items.clone(),
            _ => vec![list.clone()],
        };
        for item in items {
            let (at, name) = match item.get("path") {
                Some(path) => (path.at.clone(), path.text()),
                None => (item.at.clone(), item.text()),
            };
            let Some(name) = name else {
                self.report.left(&at, "env_file", "it names no file");
                continue;
            };
            for entry in item.map().iter().filter(|entry| entry.key != "path") {
                self.report.left(
                    &entry.at,
                    &format!("env_file.{}", entry.key),
                    "a file that is there is read as compose reads it by default",
                );
            }
            let Some((path, text)) = files.get(&at.path, name) else {
                self.report.leave_to_do(
                    &at,
                    "env_file",
                    format!("{} was not handed over: set what is in it by `hutong env set {} --file {}`", short(name), self.draft.name, short(name)),
                );
                continue;
            };
            self.report
                .used(&at, "env_file", format!("the variables of {path}"));
            let mut known: BTreeMap<String, String> = self.project.variables.clone();
            for variable in dotenv::parse(&path, text)? {
                let Some(value) = variable.value else {
                    self.variable(&variable.at, &variable.key, None, &[]);
                    continue;
                };
                let value = match variable.literal {
                    true => value,
                    false => {
                        let filled = interpolate::fill(&value, &|name| known.get(name).cloned());
                        filled.map_or(value, |filled| filled.text)
                    }
                };
                known.insert(variable.key.clone(), value.clone());
                self.variable(&variable.at, &variable.key, Some(&value), &[]);
            }
        }
        Ok(())
    }

    /// One variable; `value` is `None` where the caller's own environment was meant.
    fn variable(&mut self, at: &At, key: &str, value: Option<&str>, missing: &[String]) {
        let what = format!("environment.{key}");
        let by_hand = format!("hutong env set {} {key}=…", self.draft.name);
        let Some(value) = value else {
            self.report.leave_to_do(
                at,
                &what,
                format!("its value is not in the file: {by_hand}"),
            );
            return;
        };
        if !missing.is_empty() {
            let names = missing.join(", ");
            self.report
                .leave_to_do(at, &what, format!("{names} is not set here: {by_hand}"));
            return;
        }
        match key {
            "PORT" => match value.parse::<u16>() {
                Ok(port @ 1..) => {
                    self.env_port = Some(port);
                    self.report
                        .used(at, &what, format!("port = {port}; Hutong sets PORT itself"));
                }
                _ => self.report.left(at, &what, "this is no port"),
            },
            // nginx-proxy routes by these.
            "VIRTUAL_HOST" => {
                for host in value.split(',').map(str::trim) {
                    match parse_domain(host) {
                        Ok(domain) => self.draft.add_domain(&domain.to_string()),
                        Err(why) => self.report.left(at, &what, why),
                    }
                }
                self.report.used(at, &what, "domains");
            }
            "VIRTUAL_PORT" => {
                self.virtual_port = value.parse::<u16>().ok().filter(|port| *port > 0);
                self.report.used(at, &what, "port");
            }
            "LETSENCRYPT_HOST" => {
                self.report.used(at, &what, "every host gets a certificate");
            }
            _ => environment::put(&mut self.draft, at, key, value, self.report),
        }
    }

    fn ports(&mut self, value: &Node) {
        for item in value.list() {
            let Some(port) = parts::port(item) else {
                self.report.left(&item.at, "ports", "this is no port");
                continue;
            };
            for entry in item.map() {
                if !matches!(entry.key.as_str(), "target" | "published" | "protocol") {
                    self.report.left(
                        &entry.at,
                        &format!("ports.{}", entry.key),
                        "no port of an app is open on the server",
                    );
                }
            }
            if !port.is_tcp {
                self.report.left(
                    &item.at,
                    "ports",
                    "visitors come by HTTP: there is no way in for UDP",
                );
                continue;
            }
            self.draft.published.extend(port.published);
            let text = match (self.ports.is_empty(), self.tcp) {
                (_, Some(server)) => {
                    self.report.left(
                        &item.at,
                        "ports",
                        format!(
                            "{} is not HTTP, and no port of an app is open on the server",
                            server.name
                        ),
                    );
                    self.ports.push(port);
                    continue;
                }
                (true, None) if port.is_range => {
                    "port: the first of them; no port of an app is open on the server"
                }
                (true, None) => {
                    "port; no port of an app is open on the server: visitors come by its domains"
                }
                (false, None) => {
                    self.report.left(&item.at, "ports", "an app has one port");
                    continue;
                }
            };
            self.report.used(&item.at, "ports", text);
            self.ports.push(port);
        }
    }

    fn labels(&mut self, value: &Node) {
        for entry in variables_of(value) {
            let text = entry.value.text().unwrap_or_default().to_owned();
            let lower = entry.key.to_ascii_lowercase();
            if lower.starts_with("traefik.") {
                self.labels.push((entry.at, entry.key, text));
            } else if lower.starts_with("com.centurylinklabs.watchtower") {
                self.report.replaced(
                    &entry.at,
                    &entry.key,
                    "`[push] watch` of hutong.toml looks for new images, for each app",
                );
            } else {
                self.report
                    .left(&entry.at, &entry.key, "labels of others mean nothing here");
            }
        }
    }

    fn needs(&mut self, value: &Node, key: &str) {
        let mut named: Vec<(At, String)> = match &value.value {
            Value::Map(entries) => entries
                .iter()
                .map(|entry| (entry.at.clone(), entry.key.clone()))
                .collect(),
            _ => value.texts(),
        };
        for (at, name) in &mut named {
            // `links: [SERVICE:ALIAS]`
            let service = name.split(':').next().unwrap_or_default().to_owned();
            *name = service;
            let what = format!("{key}.{name}");
            self.report.left(
                at,
                &what,
                "apps are started in no order; who calls whom is said by `links`, see below",
            );
        }
        self.draft.needs.extend(named);
    }

    fn networks(&mut self, value: &Node, at: &At, key: &str) {
        let names: Vec<String> = match &value.value {
            Value::Map(entries) => entries.iter().map(|entry| entry.key.clone()).collect(),
            _ => value.texts().into_iter().map(|(_, name)| name).collect(),
        };
        let is_cut_off = match key {
            "network_mode" => names.iter().all(|name| name == "none"),
            _ => names
                .iter()
                .all(|name| self.project.internal.contains(name)),
        };
        if is_cut_off && !names.is_empty() {
            self.draft.egress = false;
            self.report.used(at, key, "no egress: it leads nowhere");
        } else {
            self.report.left(
                at,
                key,
                "each app has a network of its own, which only the gateway reaches",
            );
        }
    }

    fn restart(&mut self, at: &At, text: &str) {
        let (policy, rest) = text.split_once(':').unwrap_or((text, ""));
        let restart = match policy {
            "always" | "unless-stopped" => None,
            "on-failure" => Some("on-failure"),
            "no" | "false" => Some("never"),
            _ => {
                self.report
                    .left(at, "restart", "it is always started again");
                return;
            }
        };
        self.draft.restart = restart;
        let more = match rest.is_empty() {
            true => "",
            false => "; the number of tries is not bounded, the pauses grow",
        };
        let name = restart.unwrap_or("always");
        self.report
            .used(at, "restart", format!("restart = \"{name}\"{more}"));
    }

    fn user(&mut self, at: &At, text: &str) {
        let user = text.split(':').next().unwrap_or_default();
        if user == "0" || user == "root" {
            self.container.allow_root = true;
            self.report.used(
                at,
                "user",
                "container.allow_root = true, if the image is made to run as root",
            );
        } else {
            self.container.own_user = true;
            self.report.used(
                at,
                "user",
                "container.user = \"app\": a user of this app alone",
            );
        }
    }

    fn pull_policy(&mut self, at: &At, text: &str) {
        let pull = match text {
            "always" | "daily" | "weekly" => Some("always"),
            "never" => Some("never"),
            "missing" | "if_not_present" => None,
            _ => {
                self.report.left(
                    at,
                    "pull_policy",
                    "an image is fetched if the engine does not have it",
                );
                return;
            }
        };
        self.container.pull = pull;
        let name = pull.unwrap_or("missing");
        self.report.used(
            at,
            "pull_policy",
            format!("container.pull = \"{name}\", at a deploy"),
        );
    }

    /// The app, now that all keys are read.
    fn finish(mut self) -> Made {
        let settings = traefik::of_labels(&self.labels);
        let dynamic = traefik::Dynamic::read(&settings, self.report);
        let mut ports = dynamic
            .services
            .values()
            .filter_map(|one| one.port.as_ref());
        let labelled = ports.next().map(|(_, port)| *port);
        let published = self.ports.first().map(|port| port.target);
        let port = labelled
            .or(self.virtual_port)
            .or(published)
            .or(self.env_port)
            .or(self.exposed)
            .or(self.checked_port)
            .or(self.tcp.map(|server| server.port));
        let listens =
            port.is_some() || !dynamic.routers.is_empty() || !self.draft.domains.is_empty();
        // The default is not said.
        self.draft.port = port.filter(|port| *port != 8080);
        if self.draft.instances.is_some_and(|count| count > 1) && self.draft.data {
            self.draft.strategy.get_or_insert("rolling");
        }
        if self.tcp.is_some() {
            self.draft.health.path = None;
        }
        if !self.options.is_empty() {
            let words = self.container.command.get_or_insert_default();
            for option in self.options {
                if !words.contains(&option) {
                    words.push(option);
                }
            }
        }
        self.draft.run = Run::Image(self.container);
        Made {
            draft: self.draft,
            dynamic,
            listens,
            service: self.service,
        }
    }
}
