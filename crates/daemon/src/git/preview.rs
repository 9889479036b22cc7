//! Previews: branches as apps of their own, with data of their own, for a while. Which there are is in the store, so that
//! a restart goes on with them; time is counted while the server runs.

use std::sync::Arc;
use std::time::Duration;

use hutong_api::PlanAnswer;
use hutong_core::name::AppName;
use hutong_core::preview::{file, names};
use hutong_core::spec::{AppSpec, PreviewData};
use hutong_ipc::fail;
use hutong_runtime::processes::steady_ms;

use super::export::Exported;
use super::hook::Say;
use super::push::{Output, Wanted, roll_out};
use super::repo::{self, Repo};
use super::run;
use crate::Control;
use crate::http::deploy;
use crate::store::{Goal, Preview, StoreError};

/// How often it is looked whether the time of one is over.
const LOOK: Duration = Duration::from_secs(5);
/// How often time is counted.
const AGE_MS: u64 = 30_000;
/// One whose app was never made is forgotten after this.
const UNMADE_MS: u64 = 600_000;

/// Makes a branch's preview, or deploys to the one there is.
pub async fn deploy(
    control: &Arc<Control>,
    wanted: &Wanted<'_>,
    exported: Exported,
    serving: Option<&AppSpec>,
    say: &Say,
) -> Result<(), String> {
    let expected = choose(control, wanted, serving)?;
    let settings = serving.and_then(|spec| spec.preview.as_ref());
    let most = settings.map_or(0, |settings| settings.max) as usize;
    let name = AppName::new(&expected.app)?;
    let host = Some(expected.host.as_str()).filter(|host| !host.is_empty());
    let text = file(&exported.text, &name, host)?;
    let failed = |error: StoreError| error.to_string();
    say.line(&format!("{} is the preview {name}", wanted.branch))
        .await;
    let output = Output::new(control, name.as_str()).await;
    let keep = || -> Result<Option<PlanAnswer>, String> {
        let preview = choose(control, wanted, serving)?;
        if preview.app != expected.app || preview.host != expected.host {
            return Err("another push of this branch was quicker; push again".to_owned());
        }
        let app = control.store.app(name.as_str()).map_err(failed)?;
        if app.as_ref().is_some_and(|app| app.goal == Goal::Removed) {
            // It still has its data: a new one does not begin with that.
            control.wake.notify_one();
            return Ok(None);
        }
        if !control.store.keep_preview(&preview, most).map_err(failed)? {
            return Err(format!(
                "{} has {most} previews, as many as [preview] lets it have: delete a branch first (git push --delete)",
                wanted.app
            ));
        }
        fail::point("preview.kept");
        match deploy::begin(control, name.as_str(), &exported.digest, &text) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) => {
                if app.is_none() {
                    control
                        .store
                        .forget_preview(name.as_str())
                        .map_err(failed)?;
                }
                Err(error.text())
            }
        }
    };
    let answer = wanted.begin(control, keep).await?;
    let result = roll_out(control, output, answer, say).await;
    if result.is_err() {
        let standing = &control.git.standing;
        let parent = wanted.app.as_str();
        let ended = standing.if_latest(parent, wanted.branch, wanted.number, || {
            end_unserved(control, &expected)
        });
        ended.unwrap_or(Ok(())).map_err(failed)?;
    }
    result?;
    let standing = &control.git.standing;
    if standing.settle(wanted.app.as_str(), wanted.branch, wanted.number) {
        return Ok(());
    }
    Err("a newer push of the same branch took its place".into())
}

/// The preview of a branch: as it is known, or one with a new name.
fn choose(
    control: &Control,
    wanted: &Wanted<'_>,
    serving: Option<&AppSpec>,
) -> Result<Preview, String> {
    let settings = serving
        .and_then(|spec| spec.preview.as_ref())
        .ok_or("the app that serves has no [preview] in its hutong.toml")?;
    let parent = wanted.app.as_str();
    let lifetime_ms = settings.lifetime.as_millis() as u64;
    let failed = |error: StoreError| error.to_string();
    let known = control.store.preview_of(parent, wanted.branch);
    if let Some(known) = known.map_err(failed)? {
        return Ok(Preview {
            lifetime_ms,
            age_ms: 0,
            ..known
        });
    }
    let taken = |name: &str| {
        let app = control.store.app(name);
        let preview = control.store.preview(name);
        !matches!((app, preview), (Ok(None), Ok(None)))
    };
    let names = names(wanted.app, wanted.branch, taken)?;
    let domain = settings.domain.as_deref();
    Ok(Preview {
        app: names.app.to_string(),
        parent: parent.to_owned(),
        branch: wanted.branch.to_owned(),
        host: domain.map_or_else(String::new, |domain| format!("{}.{domain}", names.label)),
        lifetime_ms,
        age_ms: 0,
        copies: settings.data == PreviewData::Copy,
    })
}

/// One that never served is of no use to anybody.
fn end_unserved(control: &Control, preview: &Preview) -> Result<(), StoreError> {
    let app = control.store.app(&preview.app)?;
    let is_kept = app
        .as_ref()
        .is_some_and(|app| app.active.is_some() || app.isolated);
    if is_kept || control.store.under_way(&preview.app)?.is_some() {
        return Ok(());
    }
    end(control, preview, app.is_some())
}

/// Ends a branch's preview; its name, if there was one.
pub fn remove(control: &Control, parent: &str, branch: &str) -> Result<Option<String>, String> {
    let standing = &control.git.standing;
    standing.alone(|| remove_alone(control, parent, branch))
}

fn remove_alone(control: &Control, parent: &str, branch: &str) -> Result<Option<String>, String> {
    let Some((preview, is_made)) = ending(control, parent, branch)? else {
        return Ok(None);
    };
    end(control, &preview, is_made).map_err(|error| error.to_string())?;
    Ok(Some(preview.app))
}

/// The name of the preview that would end with a branch, if there is one; an error if it may not.
pub fn may_end(control: &Control, parent: &str, branch: &str) -> Result<Option<String>, String> {
    let found = ending(control, parent, branch)?;
    Ok(found.map(|(preview, _)| preview.app))
}

/// Ends the previews of branches that a push has deleted, once git is through with it.
pub fn finish(control: &Control, repo: &Repo, parent: &str, push: &str) {
    for branch in repo.ended(push) {
        if let Err(why) = remove(control, parent, &branch) {
            tracing::warn!("the preview of {parent}'s branch {branch} stays: {why}");
        }
    }
    repo.forget_ending(push);
}

/// The same for what a control plane before us did not get to; no git of its pushes is at work any more.
pub fn finish_all(control: &Control) {
    for (parent, repo, push) in repo::all_ending(control) {
        // One that is under way now sees to its own, and may be about to make such a branch anew.
        if !control.git.is_pushed(&parent) {
            finish(control, &repo, &parent, &push);
        }
    }
}

/// The preview that would end with a branch, and whether there is an app of it.
fn ending(
    control: &Control,
    parent: &str,
    branch: &str,
) -> Result<Option<(Preview, bool)>, String> {
    let failed = |error: StoreError| error.to_string();
    let found = control.store.preview_of(parent, branch).map_err(failed)?;
    let Some(preview) = found else {
        return Ok(None);
    };
    let app = control.store.app(&preview.app).map_err(failed)?;
    if app.as_ref().is_some_and(|app| app.isolated) {
        let name = &preview.app;
        return Err(format!(
            "the preview {name} is isolated (hutong release {name})"
        ));
    }
    Ok(Some((preview, app.is_some())))
}

/// With its data. The row goes with the app, when nothing of that is left.
fn end(control: &Control, preview: &Preview, is_made: bool) -> Result<(), StoreError> {
    if !is_made {
        return control.store.forget_preview(&preview.app);
    }
    control.store.set_goal(&preview.app, Goal::Removed, true)?;
    fail::point("preview.removed");
    control.wake.notify_one();
    Ok(())
}

/// Ends previews whose time is over, until the process ends.
pub async fn run(control: Arc<Control>) {
    let mut counted = steady_ms();
    loop {
        tokio::time::sleep(LOOK).await;
        let ours = control.clone();
        let since = counted;
        let look = move || look(&ours, since);
        match tokio::task::spawn_blocking(look).await {
            Ok(Ok(now)) => counted = now,
            Ok(Err(error)) => tracing::warn!("previews: {error}"),
            Err(error) => tracing::error!("previews: {error}"),
        }
    }
}

/// Up to when time is counted now.
fn look(control: &Control, counted: u64) -> Result<u64, StoreError> {
    let now = steady_ms();
    let all = control.store.previews(None)?;
    let mut counted_to = counted;
    if all.is_empty() {
        counted_to = now;
    } else if now >= counted + AGE_MS {
        control.store.age_previews(now - counted)?;
        counted_to = now;
    }
    for preview in all {
        let app = control.store.app(&preview.app)?;
        let parent = control.store.app(&preview.parent)?;
        let is_orphan = parent.is_none_or(|parent| parent.goal == Goal::Removed);
        match &app {
            // It goes already.
            Some(app) if app.goal == Goal::Removed => continue,
            None if preview.age_ms > UNMADE_MS || is_orphan => {
                control.store.forget_preview(&preview.app)?;
            }
            Some(_) if is_over(&preview) || is_orphan => {
                let isolated = app.as_ref().is_some_and(|app| app.isolated);
                if isolated {
                    continue;
                }
                // The branch first: without a preview it would be in the way of the same push.
                if !is_orphan {
                    drop_branch(control, &preview);
                }
                // It may have been pushed to, or isolated, meanwhile.
                let standing = &control.git.standing;
                standing.alone(|| end_if_over(control, &preview.app, is_orphan))?;
            }
            _ => {}
        }
    }
    Ok(counted_to)
}

fn end_if_over(control: &Control, name: &str, is_orphan: bool) -> Result<(), StoreError> {
    let Some(preview) = control.store.preview(name)? else {
        return Ok(());
    };
    let app = control.store.app(name)?;
    let isolated = app.as_ref().is_some_and(|app| app.isolated);
    if isolated || !(is_orphan || is_over(&preview)) {
        return Ok(());
    }
    end(control, &preview, app.is_some())
}

fn is_over(preview: &Preview) -> bool {
    preview.age_ms >= preview.lifetime_ms
}

/// The branch of the preview that an app is, if it is one. Blocks.
pub fn drop_branch_of(control: &Control, app: &str) {
    if let Ok(Some(preview)) = control.store.preview(app) {
        drop_branch(control, &preview);
    }
}

/// Without the branch, a push of the same commit is one, and makes the preview anew.
fn drop_branch(control: &Control, preview: &Preview) {
    let Ok(app) = AppName::new(&preview.parent) else {
        return;
    };
    let repo = Repo::of(control, &app);
    let Some(at) = repo.head(&preview.branch) else {
        return;
    };
    let name = format!("refs/heads/{}", preview.branch);
    // Only if it is where it was: somebody may push at this moment.
    let mut command = run::command(control, &repo, &["update-ref", "-d", &name, &at]);
    command.env("GIT_DIR", &repo.folder);
    if let Err(error) = run::run(command, Duration::from_secs(30)) {
        tracing::warn!("the branch {name} of {app} stays: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_ends_a_preview() {
        let mut preview = Preview {
            app: "a--b".into(),
            parent: "a".into(),
            branch: "b".into(),
            host: "b.a.test".into(),
            lifetime_ms: 1000,
            age_ms: 999,
            copies: false,
        };
        assert!(!is_over(&preview));
        preview.age_ms = 1000;
        assert!(is_over(&preview));
    }
}
