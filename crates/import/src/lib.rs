//! Configuration of Docker Compose, Traefik, nginx, systemd, uWSGI, PM2 and Procfiles, as files of Hutong's apps. Pure: texts
//! in, texts out, and a report of what was understood and what was left out. Nothing is dropped in silence: each key,
//! directive and label has a line in the report.
//!
//! Start at [`import`]; a module reads one kind of file into drafts ([`app::Draft`]) and routes, [`join`] puts together what
//! several files say, [`app`] writes. What might keep visitors out and is not understood keeps them out here, too.

mod app;
mod compose;
pub mod dotenv;
mod environment;
mod files;
mod interpolate;
mod join;
mod kind;
mod known;
mod literal;
mod nginx;
mod place;
mod pm2;
mod procfile;
mod programs;
mod reader;
mod report;
mod secrets;
mod server;
mod systemd;
mod toml_file;
mod traefik;
mod tree;
mod units;
mod uwsgi;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hutong_core::spec;

use app::{Draft, Names};
use files::{Files, normal};
use join::{Listen, Route};
use report::Report;
use server::Server;
use traefik::Dynamic;

pub use kind::{Kind, recognise};
pub use place::{At, Mistake};
pub use report::{Kind as NoteKind, Note};
pub use server::ServerPart;

/// The largest file of YAML, in bytes, and of any other kind.
pub const MAX_YAML: usize = 10 << 20;
pub const MAX_FILE: usize = 1 << 20;

/// One file.
#[derive(Clone, Debug)]
pub struct Input {
    /// As it is shown, and as others name it.
    pub path: String,
    /// The name of the folder that it lies in.
    pub folder: String,
    pub text: String,
    /// To be imported; else it is there for those that name it.
    pub asked: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What all files are, whatever they look like.
    pub kind: Option<Kind>,
    /// Compose profiles that are imported, too.
    pub profiles: Vec<String>,
}

/// One app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    pub name: String,
    /// Its `hutong.toml`, which is a good one.
    pub toml: String,
    /// Lines for `hutong env set APP --file`.
    pub secrets: Option<String>,
    /// Where its files are.
    pub folder: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub apps: Vec<App>,
    pub server: Option<ServerPart>,
    pub notes: Vec<Note>,
    /// Files that others name and that were not handed over.
    pub wanted: Vec<String>,
}

/// Files that are wrong, one mistake of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes {
    pub list: Vec<Mistake>,
    /// Files that others name and that were not handed over: with them it may be right.
    pub wanted: Vec<String>,
}

impl std::fmt::Display for Mistakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, mistake) in self.list.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// What the labels of a service say.
pub(crate) struct Labels {
    pub project: String,
    /// Its app; none where Hutong does its work itself.
    pub draft: Option<usize>,
    pub dynamic: Dynamic,
}

/// All that is known so far.
#[derive(Default)]
pub(crate) struct State {
    pub report: Report,
    pub names: Names,
    pub drafts: Vec<Draft>,
    pub server: Server,
    pub labels: Vec<Labels>,
    /// Traefik's own files.
    pub dynamic: Vec<Dynamic>,
    pub routes: Vec<Route>,
    /// By host.
    pub listens: BTreeMap<String, Listen>,
    /// Something looked for new images.
    pub watched: bool,
}

/// Reads all of these files, and writes what they come to.
///
/// # Errors
/// The first mistake of each file that cannot be read.
pub fn import(inputs: &[Input], options: &Options) -> Result<Outcome, Mistakes> {
    let texts: BTreeMap<String, &str> = inputs
        .iter()
        .map(|input| {
            (
                normal(&input.path),
                input.text.trim_start_matches('\u{feff}'),
            )
        })
        .collect();
    let asked: BTreeSet<String> = inputs
        .iter()
        .filter(|input| input.asked)
        .map(|input| normal(&input.path))
        .collect();
    let mut files = Files::new(texts, asked);
    let mut state = State::default();
    let mut mistakes = Vec::new();
    let mut plan: Vec<Job<'_>> = Vec::new();
    for input in inputs.iter().filter(|input| input.asked) {
        match Job::new(input, options) {
            Ok(Some(job)) => plan.push(job),
            Ok(None) => {}
            Err(mistake) => mistakes.push(mistake),
        }
    }
    // Those that run apps first: routes look for them.
    plan.sort_by_key(|job| job.kind.order());
    for job in &plan {
        for path in job.named(&files) {
            files.taken.insert(path);
        }
    }
    for job in &plan {
        if files.taken.contains(&*job.path) || job.is_override(&plan) {
            continue;
        }
        state.report.app = None;
        if let Err(mistake) = job.read(&plan, options, &mut files, &mut state) {
            mistakes.push(mistake);
        }
    }
    if !mistakes.is_empty() {
        return Err(Mistakes {
            list: mistakes,
            wanted: files.wanted.into_iter().collect(),
        });
    }
    state.report.app = None;
    join::routers(&mut state);
    join::routes(&mut state);
    join::links(&mut state);
    join::hosts(&mut state);
    finish(state, files)
}

/// A file that is to be imported.
struct Job<'a> {
    path: Arc<str>,
    folder: &'a str,
    text: &'a str,
    kind: Kind,
}

impl<'a> Job<'a> {
    /// What a file is; none if it only stands beside others.
    fn new(input: &'a Input, options: &Options) -> Result<Option<Self>, Mistake> {
        let path: Arc<str> = Arc::from(normal(&input.path).as_str());
        let text = input.text.trim_start_matches('\u{feff}');
        let start = At::start(&path);
        let is_yaml = path.ends_with(".yml") || path.ends_with(".yaml");
        let (most, shown) = match is_yaml {
            true => (MAX_YAML, "10 MB"),
            false => (MAX_FILE, "1 MB"),
        };
        if text.len() > most {
            return Err(Mistake::new(&start, format!("the file is over {shown}")));
        }
        if options.kind.is_none() && kind::is_beside(&path) {
            return Ok(None);
        }
        let kind = options.kind.or_else(|| recognise(&path, text));
        match kind {
            Some(kind) => Ok(Some(Job {
                path,
                folder: &input.folder,
                text,
                kind,
            })),
            None => Err(Mistake::new(
                &start,
                "this looks like none of compose, traefik, nginx, systemd, uwsgi, pm2 and procfile; say which it is with --as",
            )),
        }
    }

    /// Files that this one takes in: they are not imported by themselves.
    fn named(&self, files: &Files<'_>) -> Vec<String> {
        match self.kind {
            Kind::Compose => compose::named(&self.path, self.text),
            Kind::Nginx => nginx::named(&self.path, self.text, files),
            _ => Vec::new(),
        }
    }

    /// Whether it changes another file of the plan, by compose's own convention.
    fn is_override(&self, plan: &[Job<'_>]) -> bool {
        plan.iter().any(|other| other.is_base_of(self))
    }

    fn is_base_of(&self, other: &Job<'_>) -> bool {
        let is_compose = self.kind == Kind::Compose && other.kind == Kind::Compose;
        is_compose
            && compose::bases_of(&other.path)
                .iter()
                .any(|base| **base == *self.path)
    }

    fn read(
        &self,
        plan: &[Job<'_>],
        options: &Options,
        files: &mut Files<'_>,
        state: &mut State,
    ) -> Result<(), Mistake> {
        let (path, folder, text) = (&self.path, self.folder, self.text);
        match self.kind {
            Kind::Compose => {
                let overrides: Vec<(Arc<str>, &str)> = plan
                    .iter()
                    .filter(|other| self.is_base_of(other))
                    .map(|other| (Arc::clone(&other.path), other.text))
                    .collect();
                compose::import(path, folder, text, &overrides, files, options, state)
            }
            Kind::Traefik => self.traefik(state),
            Kind::Nginx => nginx::import(path, text, files, state),
            Kind::Systemd => systemd::import(path, text, files, state),
            Kind::Uwsgi => uwsgi::import(path, folder, text, state),
            Kind::Pm2 => pm2::import(path, folder, text, state),
            Kind::Procfile => procfile::import(path, folder, text, state),
        }
    }

    fn traefik(&self, state: &mut State) -> Result<(), Mistake> {
        let root = match self.path.ends_with(".toml") {
            true => toml_file::parse(&self.path, self.text)?,
            false => yaml::parse(&self.path, self.text)?.root,
        };
        let settings = traefik::of_file(&root);
        let settings = traefik::read_static(settings, &mut state.server, &mut state.report);
        if !settings.is_empty() {
            let dynamic = Dynamic::read(&settings, &mut state.report);
            state.dynamic.push(dynamic);
        }
        Ok(())
    }
}

/// Writes the apps, and checks each of them.
fn finish(mut state: State, files: Files<'_>) -> Result<Outcome, Mistakes> {
    state.drafts.retain(|draft| !draft.is_joined);
    watch(&mut state);
    remind(&mut state);
    let mut apps = Vec::new();
    let mut mistakes = Vec::new();
    for draft in &state.drafts {
        let toml = draft.toml();
        if let Err(problems) = spec::parse("hutong.toml", &toml) {
            let first = problems.list.first().map_or("", |one| one.message.as_str());
            let message = format!("what came of this is no good hutong.toml: {first}");
            mistakes.push(Mistake::new(&draft.at, message));
            continue;
        }
        let secrets = (!draft.secrets.is_empty()).then(|| dotenv::write(&draft.secrets));
        if secrets.is_some() {
            state.report.app = Some(draft.name.clone());
            let names: Vec<&str> = draft.secrets.keys().map(String::as_str).collect();
            state.report.leave_to_do(
                &draft.at,
                "secrets.env",
                format!(
                    "once it is deployed: hutong env set {} --file secrets.env ({})",
                    draft.name,
                    names.join(", ")
                ),
            );
        }
        apps.push(App {
            name: draft.name.clone(),
            toml,
            secrets,
            folder: draft.folder.clone(),
        });
    }
    if !mistakes.is_empty() {
        return Err(Mistakes {
            list: mistakes,
            wanted: files.wanted.into_iter().collect(),
        });
    }
    state.report.app = None;
    let server = state.server.part(&mut state.report);
    Ok(Outcome {
        apps,
        server,
        notes: state.report.notes,
        wanted: files.wanted.into_iter().collect(),
    })
}

/// Where new images were looked for, tags that move are watched.
fn watch(state: &mut State) {
    if !state.watched {
        return;
    }
    for draft in &mut state.drafts {
        if let app::Run::Image(container) = &mut draft.run
            && container.pull.is_none()
            && known::is_moving(&container.image)
        {
            container.watch = Some("5m");
            if !known::has_tag(&container.image) {
                container.image.push_str(":latest");
            }
            state.report.app = Some(draft.name.clone());
            state.report.used(
                &draft.at,
                "image",
                "[push] watch = \"5m\": its tag moves, and something looked for new images before",
            );
        }
    }
    state.report.app = None;
}

/// What holds for all apps alike.
fn remind(state: &mut State) {
    let is_root_unknown = |draft: &&Draft| {
        draft
            .container()
            .is_some_and(|container| !container.own_user && !container.allow_root)
    };
    if let Some(draft) = state.drafts.iter().find(is_root_unknown) {
        state.report.leave_to_do(
            &draft.at,
            "image",
            "an image that runs as root is refused: then set container.user = \"app\", or container.allow_root = true",
        );
    }
    let is_unbound = |draft: &&Draft| draft.has_instances() && draft.limits.memory.is_none();
    let unbound: Vec<&str> = state
        .drafts
        .iter()
        .filter(is_unbound)
        .map(|draft| draft.name.as_str())
        .collect();
    let first = state.drafts.iter().find(is_unbound);
    if let Some(first) = first {
        state.report.leave_to_do(
            &first.at,
            "limits.memory",
            format!(
                "256M for each instance where nothing is said, as of {}",
                place::short(&unbound.join(", "))
            ),
        );
    }
}
