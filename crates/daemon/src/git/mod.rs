//! Code that comes in by git. Pushes arrive over HTTPS ([`http`]), are received by git's own programs in a repository for
//! each app ([`repo`], [`run`]), and wait in our hook ([`hook`]) until what they bring is deployed ([`push`], [`export`]):
//! only then does the branch move. Other branches are previews ([`preview`]). Webhooks fetch ([`fetch`], [`webhook`]).

mod export;
mod fetch;
mod hook;
mod http;
mod preview;
mod push;
mod repo;
mod run;
mod standing;
mod vendors;
mod webhook;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hutong_core::name::AppName;

use crate::{Control, lock};

pub use fetch::check_url;
pub use hook::{bind, is_hook, main as hook_main};
pub use http::router;
pub use preview::drop_branch_of;
pub use repo::forget;
pub use run::become_git;
pub use vendors::Vendor;
pub use webhook::receive as receive_webhook;

/// A push under way: git runs, and its hook may ask what becomes of it.
struct Push {
    number: u64,
    /// What the hook shows; random.
    id: String,
    app: AppName,
    by: push::By,
}

/// Whose place is taken: so many at once of each app's.
#[derive(Default)]
struct Places(Arc<Mutex<HashMap<String, usize>>>);

/// Free again when it is dropped.
struct Place {
    all: Arc<Mutex<HashMap<String, usize>>>,
    app: String,
}

impl Places {
    fn take(&self, app: &str, most: usize) -> Option<Place> {
        let mut all = lock(&self.0);
        let taken = all.get(app).copied().unwrap_or(0);
        if taken >= most {
            return None;
        }
        all.insert(app.to_owned(), taken + 1);
        Some(Place {
            all: self.0.clone(),
            app: app.to_owned(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = lock(&self.all);
        match all.get_mut(&self.app) {
            Some(taken) if *taken > 1 => *taken -= 1,
            _ => drop(all.remove(&self.app)),
        }
    }
}

/// What is known of pushes and webhooks; nothing of it outlives the process.
#[derive(Default)]
pub struct Pushes {
    under_way: Mutex<HashMap<String, Arc<Push>>>,
    standing: standing::Standing,
    webhooks: webhook::Waiting,
    /// Bodies of webhooks; pushes; fetches.
    bodies: Places,
    receiving: Places,
    sending: Places,
    count: AtomicU64,
}

impl Pushes {
    /// A number that no other push of this process has; later ones are larger.
    fn number(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// `token` is the id of the one that came with it.
    fn begin(&self, app: &AppName, token: u64) -> Result<Arc<Push>, String> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| error.to_string())?;
        let push = Arc::new(Push {
            number: self.number(),
            id: hutong_core::tree::hex(&random),
            app: app.clone(),
            by: push::By::Token(token),
        });
        lock(&self.under_way).insert(push.id.clone(), push.clone());
        Ok(push)
    }

    fn find(&self, id: &str) -> Option<Arc<Push>> {
        lock(&self.under_way).get(id).cloned()
    }

    /// Whether a push of the app's is under way.
    fn is_pushed(&self, app: &str) -> bool {
        let under_way = lock(&self.under_way);
        under_way.values().any(|push| push.app.as_str() == app)
    }

    /// Git has ended: the branch has moved, or never will.
    fn end(&self, push: &Push) {
        lock(&self.under_way).remove(&push.id);
        self.standing.end(push.number);
    }
}

/// Finishes or throws away what an earlier control plane left, and begins to listen to hooks.
pub fn start(control: &Arc<Control>) -> Result<(), String> {
    if control.settings.host.is_none() {
        return Ok(());
    }
    let busy = repo::sweep(control);
    let ours = control.clone();
    tokio::spawn(async move {
        // Without us they end soon.
        for _ in 0..120 {
            if busy.iter().all(|folder| repo::tidy(folder)) {
                let finish = move || preview::finish_all(&ours);
                let _ = tokio::task::spawn_blocking(finish).await;
                return;
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    });
    hook::listen(control)?;
    tokio::spawn(preview::run(control.clone()));
    webhook::resume(control);
    Ok(())
}

/// A line for people, without what drives their terminal, and bounded.
fn plain(text: &str) -> String {
    const MOST: usize = 2000;
    let harmless = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        // Bidirectional overrides reorder what stands beside them.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c => c,
    };
    text.trim_end().chars().take(MOST).map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_app_has_places_of_its_own() {
        let places = Places::default();
        let one = places.take("a", 2).expect("free");
        let two = places.take("a", 2).expect("free");
        assert!(places.take("a", 2).is_none() && places.take("b", 2).is_some());
        drop(one);
        let three = places.take("a", 2).expect("free again");
        drop((two, three));
        assert!(lock(&places.0).is_empty());
    }
}
