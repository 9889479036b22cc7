//! What becomes of a push, asked before any branch moves: branches are deployed, in the app itself or as previews, and
//! what cannot serve is refused with the reason. It is all or nothing, so the app itself comes last: a preview that was
//! made in vain is deployed again by the next push, and visitors notice nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hutong_api::{Deployment, DeploymentState, PlanAnswer};
use hutong_core::name::AppName;
use hutong_core::preview::check_branch;
use hutong_core::spec::AppSpec;
use tokio::sync::Semaphore;

use super::export::{Exported, export};
use super::hook::{Question, Say};
use super::preview;
use super::repo::{Repo, is_none, is_object_id};
use super::standing::Begin;
use super::{Push, plain};
use crate::http::deploy;
use crate::logs::{Only, Query};
use crate::{Control, ids};

/// Branches that one push may deploy.
const MAX_BRANCHES: usize = 10;
const LOOK: Duration = Duration::from_millis(250);
/// How long a push waits for another one's branch to move.
const SETTLE: Duration = Duration::from_secs(60);

const HEADS: &str = "refs/heads/";
const TAGS: &str = "refs/tags/";

/// A branch that is to move.
struct Move<'a> {
    branch: &'a str,
    old: &'a str,
    new: &'a str,
}

/// What is to be done with branches.
#[derive(Default)]
struct Todo<'a> {
    production: Option<Move<'a>>,
    previews: Vec<Move<'a>>,
    /// Branches that end.
    gone: Vec<&'a str>,
    notes: Vec<String>,
}

/// Whether a push is taken; the reason why not is said.
pub async fn decide(control: &Arc<Control>, push: &Push, question: &Question, say: &Say) -> bool {
    match work(control, push, question, say).await {
        Ok(()) => true,
        Err(why) => {
            say.lines(&format!("refused: {why}")).await;
            false
        }
    }
}

async fn work(
    control: &Arc<Control>,
    push: &Push,
    question: &Question,
    say: &Say,
) -> Result<(), String> {
    let repo = Repo::of(control, &push.app);
    let serving = serving(control, &push.app);
    let todo = sort(question, serving.as_ref(), &repo)?;
    for note in &todo.notes {
        say.line(note).await;
    }
    let objects = question.objects.as_deref();
    for one in &todo.previews {
        let wanted = Wanted::of(push, one, objects);
        let exported = wanted.export(control, say).await?;
        preview::deploy(control, &wanted, exported, serving.as_ref(), say).await?;
    }
    if let Some(one) = &todo.production {
        let wanted = Wanted::of(push, one, objects);
        let exported = wanted.export(control, say).await?;
        production(control, &wanted, exported, say).await?;
    }
    for branch in &todo.gone {
        if let Some(name) = hold_ending(control, push, branch).await? {
            say.line(&format!("the preview {name} is removed with its branch"))
                .await;
        }
    }
    if !todo.gone.is_empty() {
        let noted = repo.note_ending(&push.id, &todo.gone);
        noted.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Keeps everybody else from a branch that git is about to delete; the name of its preview, which ends after that.
async fn hold_ending(
    control: &Control,
    push: &Push,
    branch: &str,
) -> Result<Option<String>, String> {
    let deadline = tokio::time::Instant::now() + SETTLE;
    let app = push.app.as_str();
    let standing = &control.git.standing;
    loop {
        let once = || preview::may_end(control, app, branch).map(Some);
        match standing.begin(app, branch, push.number, once)? {
            Begin::Done(preview) if standing.settle(app, branch, push.number) => {
                return Ok(preview);
            }
            Begin::Done(_) => return Err(TAKEN_OVER.into()),
            Begin::Wait if tokio::time::Instant::now() > deadline => {
                return Err("another push of this branch does not end; push again".into());
            }
            Begin::Wait => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// What the app that serves is declared to be.
pub fn serving(control: &Control, app: &AppName) -> Option<AppSpec> {
    let found = control.store.app(app.as_str()).ok().flatten()?;
    let current = crate::http::current_spec(control, &found).ok().flatten()?;
    Some(current.1)
}

/// Whether a branch's pushes are for the app itself.
pub fn is_production(serving: Option<&AppSpec>, branch: &str, has_main: bool) -> bool {
    match serving.and_then(|spec| spec.branch.as_deref()) {
        Some(set) => branch == set,
        None => branch == "main" || branch == "master" && !has_main,
    }
}

fn sort<'a>(
    question: &'a Question,
    serving: Option<&AppSpec>,
    repo: &Repo,
) -> Result<Todo<'a>, String> {
    let mut todo = Todo::default();
    let main = format!("{HEADS}main");
    let brings_main = question.updates.iter().any(|(_, _, name)| *name == main);
    let has_main = brings_main || repo.head("main").is_some();
    let mut names = HashSet::new();
    for (old, new, name) in &question.updates {
        if !names.insert(name.as_str()) {
            let name = plain(name);
            return Err(format!("{name} is to move twice"));
        }
        if !is_object_id(old) || !is_object_id(new) {
            return Err("git says something that is not understood".into());
        }
        let Some(branch) = name.strip_prefix(HEADS) else {
            if name.starts_with(TAGS) {
                continue;
            }
            let name = plain(name);
            return Err(format!("only branches and tags are taken, not {name}"));
        };
        check_branch(branch)?;
        // Git would say so only behind us.
        if !is_none(new)
            && let Some(other) = repo.in_the_way(branch)
        {
            return Err(format!(
                "there cannot be the branches {branch} and {other}: delete one first"
            ));
        }
        let is_production = is_production(serving, branch, has_main);
        match (is_production, is_none(new)) {
            (true, true) => {
                return Err(format!(
                    "{branch} is what serves; `hutong remove` removes an app"
                ));
            }
            (true, false) => todo.production = Some(Move { branch, old, new }),
            (false, true) => todo.gone.push(branch),
            (false, false) if serving.is_some_and(|spec| spec.preview.is_some()) => {
                todo.previews.push(Move { branch, old, new });
            }
            (false, false) => todo.notes.push(format!(
                "{branch} is kept and not deployed: the app that serves has no [preview] in its hutong.toml"
            )),
        }
    }
    for (_, new, name) in &question.updates {
        let mut above = name.match_indices('/').map(|(at, _)| &name[..at]);
        if !is_none(new)
            && let Some(other) = above.find(|other| names.contains(other))
        {
            let name = plain(name);
            return Err(format!("there cannot be both {name} and {other}"));
        }
    }
    if todo.previews.len() > MAX_BRANCHES {
        return Err(format!(
            "a push deploys {MAX_BRANCHES} branches at most; push them one after the other"
        ));
    }
    Ok(todo)
}

/// A commit that is to be deployed.
pub struct Wanted<'a> {
    pub app: &'a AppName,
    pub branch: &'a str,
    pub commit: &'a str,
    /// Where the branch must be when it begins; it need not be one of our repository's.
    pub old: Option<&'a str>,
    /// Which push it is.
    pub number: u64,
    pub objects: Option<&'a str>,
    pub by: &'a By,
}

/// By whose word something is deployed. It may be taken back meanwhile.
pub enum By {
    /// The token of this id.
    Token(u64),
    /// The source at this URL.
    Source(String),
}

impl By {
    fn check(&self, control: &Control, app: &str) -> Result<(), String> {
        let holds = match self {
            By::Token(id) => {
                let tokens = control.store.tokens(app);
                tokens.map(|list| list.iter().any(|token| token.id == *id))
            }
            By::Source(url) => {
                let source = control.store.source(app);
                source.map(|source| source.is_some_and(|source| source.url == *url))
            }
        };
        match holds {
            Ok(true) => Ok(()),
            Ok(false) => Err("who may deploy this app was changed meanwhile".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Trees that are fetched or made at once: each holds memory, a thread and gits.
pub static EXPORTS: Semaphore = Semaphore::const_new(4);

impl<'a> Wanted<'a> {
    fn of(push: &'a Push, one: &Move<'a>, objects: Option<&'a str>) -> Self {
        Wanted {
            app: &push.app,
            branch: one.branch,
            commit: one.new,
            old: Some(one.old),
            number: push.number,
            objects,
            by: &push.by,
        }
    }

    /// The commit as a tree.
    pub async fn export(&self, control: &Arc<Control>, say: &Say) -> Result<Exported, String> {
        let ours = control.clone();
        let repo = Repo::of(control, self.app);
        let commit = self.commit.to_owned();
        let objects = self.objects.map(str::to_owned);
        let _turn = EXPORTS.acquire().await.map_err(|error| error.to_string())?;
        let work = move || export(&ours, &repo, &commit, objects.as_deref());
        let done = tokio::task::spawn_blocking(work).await;
        let exported = done.map_err(|error| error.to_string())??;
        let short = self.commit.get(..10).unwrap_or_default();
        say.line(&format!(
            "{} at {short}: {} files",
            self.branch, exported.files
        ))
        .await;
        for note in &exported.notes {
            say.line(note).await;
        }
        Ok(exported)
    }

    /// Begins a deployment of the branch as the latest there is, once no other one is about to move it.
    ///
    /// `work` is asked again while it answers `None`.
    pub async fn begin(
        &self,
        control: &Arc<Control>,
        work: impl Fn() -> Result<Option<PlanAnswer>, String>,
    ) -> Result<PlanAnswer, String> {
        let deadline = tokio::time::Instant::now() + SETTLE;
        let app = self.app.as_str();
        let repo = Repo::of(control, self.app);
        loop {
            let once = || {
                let now = repo.head(self.branch);
                let stands = match (self.old, &now) {
                    (None, _) => true,
                    (Some(old), None) => is_none(old),
                    (Some(old), Some(now)) => old == now,
                };
                if !stands {
                    return Err(format!(
                        "{} moved while this push was under way; fetch, and push again",
                        self.branch
                    ));
                }
                self.by.check(control, app)?;
                work()
            };
            let standing = &control.git.standing;
            match standing.begin(app, self.branch, self.number, once)? {
                Begin::Done(answer) => return Ok(answer),
                Begin::Wait if tokio::time::Instant::now() > deadline => {
                    return Err(
                        "another push of this branch, or the removal of its preview, does not end; push again"
                            .into(),
                    );
                }
                Begin::Wait => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// Deploys to the app itself.
pub async fn production(
    control: &Arc<Control>,
    wanted: &Wanted<'_>,
    exported: Exported,
    say: &Say,
) -> Result<(), String> {
    let app = wanted.app.as_str();
    let before = control.store.under_way(app).ok().flatten();
    if let Some(before) = before {
        let id = before.id;
        say.line(&format!(
            "this takes the place of deployment {id}, which is under way"
        ))
        .await;
    }
    let output = Output::new(control, app).await;
    let answer = wanted
        .begin(control, || {
            let begun = deploy::begin(control, app, &exported.digest, &exported.text);
            begun.map(Some).map_err(|error| error.text())
        })
        .await?;
    roll_out(control, output, answer, say).await?;
    if control
        .git
        .standing
        .settle(app, wanted.branch, wanted.number)
    {
        return Ok(());
    }
    Err(TAKEN_OVER.into())
}

const TAKEN_OVER: &str = "a newer push of the same branch took its place";

/// Says how a deployment goes; an error if it does not serve in the end.
pub async fn roll_out(
    control: &Arc<Control>,
    mut output: Output,
    answer: PlanAnswer,
    say: &Say,
) -> Result<(), String> {
    for warning in &answer.warnings {
        say.line(&format!("warning: {warning}")).await;
    }
    let Some(deployment) = answer.deployment else {
        return Err("the server did not start a deployment".into());
    };
    let id = deployment.id;
    output.only = Only::Deployment(output.app.clone(), id);
    let mut doing: Option<String> = None;
    let mut passes = control.passes.subscribe();
    let over = loop {
        let Some(now) = deploy::now(control, id).map_err(|error| error.text())? else {
            return Err("the deployment is gone: the app was removed".into());
        };
        if now.doing.is_some() && now.doing != doing {
            doing.clone_from(&now.doing);
            say.line(doing.as_deref().unwrap_or_default()).await;
        }
        output.show(control, say).await;
        // A variant goes on for as long as its owner likes.
        if now.state.is_over() || now.variant.is_some() {
            break now;
        }
        let _ = tokio::time::timeout(LOOK, passes.changed()).await;
    };
    output.show(control, say).await;
    outcome(control, &over, output.shown, say).await
}

async fn outcome(
    control: &Control,
    over: &Deployment,
    shown: usize,
    say: &Say,
) -> Result<(), String> {
    if let Some(name) = &over.variant {
        let (release, app) = (over.release, &over.app);
        say.line(&format!(
            "release {release} of {app} is the variant {name}: `hutong variants {app}` shows how it does"
        ))
        .await;
        return Ok(());
    }
    match over.state {
        DeploymentState::Done => {}
        DeploymentState::Superseded => return Err(TAKEN_OVER.into()),
        _ => {
            if shown == 0 {
                for line in &over.log {
                    say.line(&format!("  {line}")).await;
                }
            }
            let reason = over.reason.as_deref().unwrap_or("no reason is known");
            return Err(format!(
                "release {} of {} is not served: {reason}",
                over.release, over.app
            ));
        }
    }
    for warning in &over.warnings {
        say.line(&format!("warning: {warning}")).await;
    }
    let hosts = deploy::urls(control, &over.app).join("  ");
    let colon = if hosts.is_empty() { "" } else { ": " };
    say.line(&format!(
        "release {} of {} serves{colon}{hosts}",
        over.release, over.app
    ))
    .await;
    Ok(())
}

/// What the builds of a deployment say, as they say it.
pub struct Output {
    app: String,
    only: Only,
    position: Option<crate::logs::Position>,
    /// So many lines so far.
    shown: usize,
}

/// Lines of builds that a pusher is shown; the rest is in the log.
const MAX_LINES: usize = 20_000;

impl Output {
    /// Made before the deployment begins, so that none of it is missed.
    pub async fn new(control: &Arc<Control>, app: &str) -> Self {
        let query = Query {
            kind: "app",
            lines: 1,
            since: None,
            only: Only::All,
        };
        let (ours, name) = (control.clone(), app.to_owned());
        let found = tokio::task::spawn_blocking(move || ours.logs.last(&name, &query)).await;
        Output {
            app: app.to_owned(),
            only: Only::All,
            position: found.ok().map(|(_, position)| position),
            shown: 0,
        }
    }

    async fn show(&mut self, control: &Arc<Control>, say: &Say) {
        let Some(mut position) = self.position.take() else {
            return;
        };
        let (ours, app) = (control.clone(), self.app.clone());
        let read = tokio::task::spawn_blocking(move || {
            ours.logs.ingest();
            let lines = ours.logs.next(&app, "app", &mut position);
            (lines, position)
        });
        let Ok((lines, position)) = read.await else {
            return;
        };
        self.position = Some(position);
        for line in lines.iter().filter(|line| self.only.has(line)) {
            let Ok(line) = serde_json::from_str::<hutong_api::LogLine>(line) else {
                continue;
            };
            let is_build = matches!(ids::kind(&line.i), ids::Kind::Build | ids::Kind::Release);
            if is_build && self.shown < MAX_LINES {
                self.shown += usize::from(line.s != "note");
                say.line(&format!("  {}", line.m)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_core::spec::parse;

    #[test]
    fn the_branch_that_serves() {
        assert!(is_production(None, "main", true));
        assert!(is_production(None, "master", false));
        assert!(!is_production(None, "master", true));
        assert!(!is_production(None, "next", false));
        let text = "name='a'\ncommand='x'\n[git]\nbranch='live'";
        let spec = parse("t", text).expect("good");
        assert!(is_production(Some(&spec), "live", true));
        assert!(!is_production(Some(&spec), "main", true));
    }

    #[test]
    fn what_a_push_may_move() {
        let (none, one) = ("0".repeat(40), "1".repeat(40));
        let (none, one) = (none.as_str(), one.as_str());
        let dir = tempfile::tempdir().expect("tempdir");
        let repo = Repo {
            folder: dir.path().to_owned(),
        };
        let asks = |list: &[(&str, &str, &str)]| {
            let list: Vec<_> = list
                .iter()
                .map(|(a, b, c)| serde_json::json!([a, b, c]))
                .collect();
            let text = serde_json::json!({ "push": "", "objects": null, "updates": list });
            serde_json::from_value::<Question>(text).expect("good")
        };
        let preview = parse("t", "name='a'\ncommand='x'\ndomains=['a.test']\n[preview]");
        let spec = preview.expect("good");
        let good = asks(&[
            (none, one, "refs/heads/main"),
            (none, one, "refs/heads/next"),
            (one, none, "refs/heads/old"),
            (none, one, "refs/tags/v1"),
        ]);
        let todo = sort(&good, Some(&spec), &repo).expect("good");
        assert_eq!(todo.production.map(|one| one.branch), Some("main"));
        assert_eq!((todo.previews.len(), todo.gone), (1, vec!["old"]));
        let plain = sort(&good, None, &repo).expect("good");
        assert_eq!((plain.previews.len(), plain.notes.len()), (0, 1));
        for bad in [
            (one, none, "refs/heads/main"),
            (none, one, "refs/heads/a..b"),
            (none, one, "refs/notes/commits"),
            (none, one, "HEAD"),
        ] {
            let asked = asks(&[(bad.0, bad.1, bad.2)]);
            assert!(sort(&asked, Some(&spec), &repo).is_err(), "{}", bad.2);
        }
        for (one_name, other) in [
            ("refs/heads/a", "refs/heads/a"),
            ("refs/heads/main", "refs/heads/main"),
            ("refs/heads/a", "refs/heads/a/b"),
            ("refs/heads/a/b/c", "refs/heads/a"),
        ] {
            let asked = asks(&[(none, one, one_name), (none, one, other)]);
            assert!(sort(&asked, Some(&spec), &repo).is_err(), "{other}");
        }
    }
}
