//! Previews: branches as apps of their own, with data of their own, for a while. Which there are is in the store, so that
//! a restart goes on with them; time is counted while the server runs.

use std::sync::Arc;
use std::time::Duration;

use hutong_core::name::AppName;
use hutong_core::preview::{file, names};
use hutong_core::spec::AppSpec;
use hutong_ipc::fail;
use hutong_runtime::processes::steady_ms;

use super::export::Exported;
use super::hook::Say;
use super::push::{Output, Wanted, roll_out};
use super::repo::Repo;
use super::run;
use crate::Control;
use crate::http::deploy;
use crate::store::{Goal, Preview, StoreError};

/// How often it is looked whether the time of one is over.
const LOOK: Duration = Duration::from_secs(5);
/// How often time is counted.
const AGE_MS: u64 = 30_000;
/// How long the removal of an earlier preview of the same branch is waited for.
const REMOVAL: Duration = Duration::from_secs(60);
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
    let preview = choose(control, wanted, serving)?;
    wait_for_removal(control, &preview.app).await?;
    let settings = serving.and_then(|spec| spec.preview.as_ref());
    let most = settings.map_or(0, |settings| settings.max) as usize;
    let name = AppName::new(&preview.app)?;
    let host = Some(preview.host.as_str()).filter(|host| !host.is_empty());
    let text = file(&exported.text, &name, host)?;
    let text_of_error = |error: StoreError| error.to_string();
    let kept = control.store.keep_preview(&preview, most);
    if !kept.map_err(text_of_error)? {
        return Err(format!(
            "{} has {most} previews, as many as [preview] lets it have: delete a branch first (git push --delete)",
            wanted.app
        ));
    }
    fail::point("preview.kept");
    say.line(&format!("{} is the preview {name}", wanted.branch))
        .await;
    let output = Output::new(control, name.as_str()).await;
    let begun = wanted
        .begin(control, || {
            deploy::begin(control, name.as_str(), &exported.digest, &text)
        })
        .await;
    let result = match begun {
        Ok(answer) => roll_out(control, output, answer, say).await,
        Err(why) => Err(why),
    };
    let app = control.store.app(name.as_str()).map_err(text_of_error)?;
    let serves = app.as_ref().is_some_and(|app| app.active.is_some());
    let goes_on = control.store.under_way(name.as_str());
    let goes_on = goes_on.map_err(text_of_error)?.is_some();
    if result.is_err() && !serves && !goes_on {
        // It never did: nothing of it is of use to anybody.
        end(control, &preview, app.is_some()).map_err(text_of_error)?;
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
    })
}

/// One that was removed a moment ago still has its data: a new one does not begin with that.
async fn wait_for_removal(control: &Arc<Control>, app: &str) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + REMOVAL;
    loop {
        let found = control.store.app(app).map_err(|error| error.to_string())?;
        if found.is_none_or(|found| found.goal != Goal::Removed) {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            return Err("the preview before it is still being removed; push again".into());
        }
        control.wake.notify_one();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Ends a branch's preview; its name, if there was one.
pub fn remove(control: &Control, parent: &str, branch: &str) -> Result<Option<String>, String> {
    let failed = |error: StoreError| error.to_string();
    let found = control.store.preview_of(parent, branch).map_err(failed)?;
    let Some(preview) = found else {
        return Ok(None);
    };
    let app = control.store.app(&preview.app).map_err(failed)?;
    end(control, &preview, app.is_some()).map_err(failed)?;
    Ok(Some(preview.app))
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
                end(control, &preview, true)?;
                if !is_orphan {
                    drop_branch(control, &preview);
                }
            }
            _ => {}
        }
    }
    Ok(counted_to)
}

fn is_over(preview: &Preview) -> bool {
    preview.age_ms >= preview.lifetime_ms
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
        };
        assert!(!is_over(&preview));
        preview.age_ms = 1000;
        assert!(is_over(&preview));
    }
}
