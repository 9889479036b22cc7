//! The table: a snapshot made ready for look-ups. Immutable; replaced as a whole; targets keep their
//! counters across tables.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hutong_ipc::gateway::{
    App as WireApp, Balance, Caller, Https, Link, Protocol, Role, Serve, Snapshot, Split, covers,
};

use crate::activity::Activity;
use crate::files::Root;
use crate::limits::Guard;
use crate::pages::Page;
use crate::queue::Queue;
use crate::retries::Retries;
use crate::stats::Stats;
use crate::target::Target;
use crate::trial::{Side, Trial};
use crate::visitor;

#[derive(Default)]
pub struct Table {
    pub version: u64,
    exact: HashMap<String, Vec<Entry>>,
    /// By the suffix behind `*.`.
    wildcard: HashMap<String, Vec<Entry>>,
    pub apps: Vec<Arc<App>>,
    by_name: HashMap<String, Arc<App>>,
}

#[derive(Clone)]
struct Entry {
    host: String,
    prefix: String,
    stats: Arc<Stats>,
    strip: bool,
    app: Arc<App>,
}

/// One app as the gateway sees it.
pub struct App {
    pub name: String,
    pub serve: Serve,
    pub root: Option<Root>,
    pub targets: Vec<(Role, Arc<Target>)>,
    pub response_timeout: Duration,
    pub hold_timeout: Duration,
    pub https: Https,
    /// `Strict-Transport-Security`, where it is said.
    pub hsts: Option<String>,
    /// Requests that wait; kept across tables.
    pub held: Arc<AtomicUsize>,
    pub balance: Balance,
    pub slow_start: Duration,
    /// Whether anybody asks for it, if it may sleep; kept across tables.
    pub activity: Option<Arc<Activity>>,
    /// Its instances follow what there is to do.
    pub scales: bool,
    /// A new release gets a part of the visitors; kept across tables while its share is the same.
    pub trial: Option<Arc<Trial>>,
    /// Requests that wait for a place at a target; kept across tables.
    pub queue: Arc<Queue>,
    pub guard: Guard,
    /// Kept across tables.
    pub retries: Arc<Retries>,
    /// Its scripts' files, for what is no script: of each deployment that has visitors.
    files: Vec<(u64, Root)>,
    /// Other apps that it calls, by the name that it uses.
    links: BTreeMap<String, Link>,
    pub callers: Vec<Caller>,
    /// Of what other apps ask of it; kept across tables.
    called: Arc<Stats>,
}

/// Where a request goes.
pub struct Match {
    pub app: Arc<App>,
    /// How many bytes of the path the app does not see.
    pub strip: usize,
    pub stats: Arc<Stats>,
}

impl Table {
    /// Builds a table; what `old` knows of targets and waiting requests is carried on.
    pub fn build(snapshot: Snapshot, old: &Table, data_dir: &Path) -> Self {
        let known: HashMap<&str, &Arc<Target>> = old
            .apps
            .iter()
            .flat_map(|app| &app.targets)
            .map(|(_, target)| (target.instance.as_str(), target))
            .collect();
        let mut table = Table {
            version: snapshot.version,
            ..Table::default()
        };
        let apps: HashMap<&str, &Arc<App>> = old
            .apps
            .iter()
            .map(|app| (app.name.as_str(), app))
            .collect();
        // Counters outlive the table.
        let stats: HashMap<(&str, &str, &str), &Arc<Stats>> = old
            .entries()
            .map(|one| {
                (
                    (one.app.name.as_str(), &*one.host, &*one.prefix),
                    &one.stats,
                )
            })
            .collect();
        for (name, wire) in snapshot.apps {
            let before = apps.get(name.as_str()).copied();
            let routes = wire.routes.clone();
            let app = Arc::new(App::new(name, wire, &known, before, data_dir));
            table.apps.push(app.clone());
            table.by_name.insert(app.name.clone(), app.clone());
            for route in routes {
                let entry = Entry {
                    stats: stats
                        .get(&(app.name.as_str(), &*route.host, &*route.prefix))
                        .map_or_else(Arc::default, |stats| (*stats).clone()),
                    host: route.host.clone(),
                    prefix: route.prefix,
                    strip: route.strip_prefix,
                    app: app.clone(),
                };
                let (map, host) = match route.host.strip_prefix("*.") {
                    Some(suffix) => (&mut table.wildcard, suffix.to_owned()),
                    None => (&mut table.exact, route.host),
                };
                map.entry(host).or_default().push(entry);
            }
        }
        for entries in table.exact.values_mut().chain(table.wildcard.values_mut()) {
            entries.sort_by_key(|entry| std::cmp::Reverse(entry.prefix.len()));
        }
        table
    }

    /// The app that a link leads to, or why it does not.
    pub fn linked(&self, from: &visitor::Link) -> Result<Match, Page> {
        let caller = self.by_name.get(&from.caller);
        let link = caller.and_then(|caller| caller.links.get(&from.name));
        let Some(link) = link else {
            let detail = format!("{} has no link {} any more.", from.caller, from.name);
            return Err(Page::new(502, detail));
        };
        let Some(app) = self.by_name.get(&link.app) else {
            return Err(Page::new(502, format!("There is no app {}.", link.app)));
        };
        if !link.allowed {
            let detail = format!(
                "{} does not name {} among its callers.",
                link.app, from.caller
            );
            return Err(Page::new(403, detail));
        }
        Ok(Match {
            app: app.clone(),
            strip: 0,
            stats: app.called.clone(),
        })
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.exact.values().chain(self.wildcard.values()).flatten()
    }

    /// Every route: its host, prefix, app and counters.
    pub fn routes(&self) -> impl Iterator<Item = (&str, &str, &App, &Stats)> {
        self.entries().map(|entry| {
            let Entry {
                host, prefix, app, ..
            } = entry;
            (host.as_str(), prefix.as_str(), &**app, &*entry.stats)
        })
    }

    /// For each app the first of the hosts that it answers for, so that its probes look like visitors.
    pub fn hosts(&self) -> HashMap<&str, &str> {
        let mut hosts: HashMap<&str, &str> = HashMap::new();
        for (host, entry) in self
            .exact
            .iter()
            .flat_map(|(host, entries)| entries.iter().map(move |entry| (host, entry)))
        {
            let first = hosts.entry(&entry.app.name).or_insert(host);
            *first = (*first).min(host);
        }
        hosts
    }

    /// The app for a host (lower case, no port) and a normalised path: exact hosts before wildcards,
    /// the longest prefix first.
    pub fn find(&self, host: &str, path: &str) -> Option<Match> {
        let among = |entries: &Vec<Entry>| {
            let entry = entries.iter().find(|e| covers(&e.prefix, path))?;
            let strip = if entry.strip && entry.prefix != "/" {
                entry.prefix.len()
            } else {
                0
            };
            Some(Match {
                app: entry.app.clone(),
                strip,
                stats: entry.stats.clone(),
            })
        };
        if let Some(found) = self.exact.get(host).and_then(among) {
            return Some(found);
        }
        let mut rest = host;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(found) = self.wildcard.get(suffix).and_then(among) {
                return Some(found);
            }
            rest = suffix;
        }
        None
    }
}

impl App {
    fn new(
        name: String,
        wire: WireApp,
        known: &HashMap<&str, &Arc<Target>>,
        before: Option<&Arc<App>>,
        data_dir: &Path,
    ) -> Self {
        let targets = wire
            .targets
            .iter()
            .map(|target| {
                let kept = known.get(target.instance.as_str());
                let kept = kept
                    .filter(|kept| kept.is(target))
                    .map(|kept| (*kept).clone());
                let fresh = || Arc::new(Target::new(target));
                let kept = kept.unwrap_or_else(fresh);
                kept.weight.store(target.weight.max(1), Ordering::Relaxed);
                let draining = target.role == Role::Draining;
                kept.draining.store(draining, Ordering::SeqCst);
                (target.role, kept)
            })
            .collect();
        let root = match &wire.serve {
            Serve::Static { root, .. } => Some(Root::new(data_dir, root)),
            _ => None,
        };
        let mut files: Vec<(u64, Root)> = Vec::new();
        for target in wire.targets.iter().filter(|one| one.role == Role::Active) {
            let Protocol::FastCgi {
                files: Some(folder),
                ..
            } = &target.protocol
            else {
                continue;
            };
            if files.iter().all(|(of, _)| *of != target.deployment) {
                files.push((target.deployment, Root::new(data_dir, folder)));
            }
        }
        App {
            files,
            activity: activity(before, wire.sleep_after_ms),
            scales: wire.scales,
            trial: wire.split.map(|split| trial(before, split)),
            slow_start: Duration::from_millis(wire.balance.slow_start_ms),
            balance: wire.balance,
            queue: before.map_or_else(Arc::default, |app| app.queue.clone()),
            retries: before.map_or_else(Arc::default, |app| app.retries.clone()),
            guard: Guard::new(&name, &wire.traffic, before.map(|app| &app.guard)),
            name,
            links: wire.links,
            callers: wire.callers,
            called: before.map_or_else(Arc::default, |app| app.called.clone()),
            serve: wire.serve,
            root,
            targets,
            response_timeout: Duration::from_millis(wire.response_timeout_ms),
            hold_timeout: Duration::from_millis(wire.hold_timeout_ms),
            hsts: (wire.https.hsts_s > 0).then(|| format!("max-age={}", wire.https.hsts_s)),
            https: wire.https,
            held: before.map_or_else(Arc::default, |app| app.held.clone()),
        }
    }

    /// The scripts' files of the release that a visitor gets; of the other one where that one serves nobody.
    pub fn files(&self, side: Option<Side>) -> Option<&Root> {
        let is_its = |deployment: u64| match (&self.trial, side) {
            (Some(trial), Some(side)) => trial.side_of(deployment) == side,
            _ => true,
        };
        let mine = self.files.iter().find(|(of, _)| is_its(*of));
        mine.or(self.files.first()).map(|(_, root)| root)
    }

    /// Requests that its targets have, and those that wait for one. What drains is nobody's to bear any more.
    pub fn in_flight(&self) -> usize {
        let stays = |(role, _): &&(Role, Arc<Target>)| *role != Role::Draining;
        let count = |(_, target): &(Role, Arc<Target>)| target.in_flight.load(Ordering::Relaxed);
        let at_work: usize = self.targets.iter().filter(stays).map(count).sum();
        at_work + self.queue.len() + self.held.load(Ordering::Relaxed)
    }
}

fn trial(before: Option<&Arc<App>>, split: Split) -> Arc<Trial> {
    let known = before.and_then(|app| app.trial.clone());
    known
        .filter(|known| known.is(&split))
        .unwrap_or_else(|| Arc::new(Trial::new(split)))
}

/// What is under way stays known, also while the app is stopped and does not sleep.
fn activity(before: Option<&Arc<App>>, sleep_after_ms: Option<u64>) -> Option<Arc<Activity>> {
    let known = before.and_then(|app| app.activity.clone());
    let activity = match sleep_after_ms {
        Some(_) => known.unwrap_or_default(),
        None => known?,
    };
    activity.sleep_after_ms(sleep_after_ms.unwrap_or(u64::MAX));
    Some(activity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_ipc::gateway::{self as wire, Route, Traffic};

    fn app(routes: &[(&str, &str, bool)]) -> WireApp {
        WireApp {
            routes: routes
                .iter()
                .map(|(host, prefix, strip)| Route {
                    host: (*host).into(),
                    prefix: (*prefix).into(),
                    strip_prefix: *strip,
                })
                .collect(),
            serve: Serve::Targets,
            targets: Vec::new(),
            response_timeout_ms: 1,
            hold_timeout_ms: 1,
            https: Https::default(),
            balance: Balance::default(),
            traffic: Traffic::default(),
            sleep_after_ms: None,
            links: BTreeMap::new(),
            callers: Vec::new(),
            scales: false,
            split: None,
        }
    }

    #[test]
    fn what_targets_have_and_what_waits_is_under_way() {
        let target = |instance: &str, role| wire::Target {
            instance: instance.into(),
            deployment: 0,
            port: 1,
            address: None,
            control: false,
            protocol: Protocol::Http,
            weight: 1,
            health: wire::Health {
                path: None,
                interval_ms: 1,
                timeout_ms: 1,
                retries: 1,
            },
            role,
        };
        let mut busy = app(&[]);
        busy.scales = true;
        busy.targets = vec![
            target("a", Role::Active),
            target("b", Role::Active),
            target("c", Role::Draining),
        ];
        let apps = BTreeMap::from([("busy".to_owned(), busy)]);
        let snapshot = Snapshot { version: 1, apps };
        let table = Table::build(snapshot, &Table::default(), Path::new("/"));
        let busy = &table.apps[0];
        assert!(busy.scales);
        assert_eq!(busy.in_flight(), 0);
        for (index, (_, target)) in busy.targets.iter().enumerate() {
            target.in_flight.store(10 + index, Ordering::SeqCst);
        }
        busy.held.store(3, Ordering::SeqCst);
        let waiting = busy.queue.enter(wire::Class::Normal, 8);
        assert!(waiting.is_some());
        assert_eq!(busy.in_flight(), 10 + 11 + 3 + 1);
    }

    #[test]
    fn each_release_on_trial_has_its_own_files() {
        let target = |deployment: u64| wire::Target {
            instance: format!("a-{deployment}"),
            deployment,
            port: 1,
            address: None,
            control: false,
            protocol: Protocol::FastCgi {
                root: "/app".into(),
                index: "index.php".into(),
                files: Some(format!("trees/{deployment}")),
            },
            weight: 1,
            health: wire::Health {
                path: None,
                interval_ms: 1,
                timeout_ms: 1,
                retries: 1,
            },
            role: Role::Active,
        };
        let build = |targets: Vec<wire::Target>, split| {
            let app = WireApp {
                targets,
                split,
                ..app(&[])
            };
            let apps = BTreeMap::from([("a".to_owned(), app)]);
            let snapshot = Snapshot { version: 1, apps };
            Table::build(snapshot, &Table::default(), Path::new("/"))
        };
        let split = Split {
            canary: 2,
            share: 5,
            header: None,
            cookie: None,
            for_people: false,
        };
        let shown = |table: &Table, side: Option<Side>| {
            let root = table.apps[0].files(side);
            root.map(|root| root.relative().to_owned())
        };
        // The planner names the canary first.
        let both = build(vec![target(2), target(2), target(1)], Some(split.clone()));
        let of = |deployment: u64| Some(format!("trees/{deployment}"));
        assert_eq!(shown(&both, Some(Side::Canary)), of(2));
        assert_eq!(shown(&both, Some(Side::Stable)), of(1));
        let alone = build(vec![target(2)], Some(split));
        assert_eq!(shown(&alone, Some(Side::Stable)), of(2));
        let usual = build(vec![target(1)], None);
        assert_eq!(shown(&usual, None), of(1));
        let none = build(Vec::new(), None);
        assert_eq!(shown(&none, None), None);
    }

    #[test]
    fn the_exact_host_and_the_longest_prefix_win() {
        let apps = BTreeMap::from([
            ("web".to_owned(), app(&[("a.test", "/", false)])),
            ("api".to_owned(), app(&[("a.test", "/api", true)])),
            ("any".to_owned(), app(&[("*.test", "/", false)])),
            ("deep".to_owned(), app(&[("*.b.test", "/", false)])),
        ]);
        let table = Table::build(
            Snapshot { version: 1, apps },
            &Table::default(),
            Path::new("/"),
        );
        let find = |host, path| {
            let found = table.find(host, path)?;
            Some((found.app.name.clone(), found.strip))
        };
        let is = |name: &str, strip| Some((name.to_owned(), strip));
        assert_eq!(find("a.test", "/"), is("web", 0));
        assert_eq!(find("a.test", "/api"), is("api", 4));
        assert_eq!(find("a.test", "/api/x"), is("api", 4));
        assert_eq!(find("a.test", "/apix"), is("web", 0));
        assert_eq!(find("b.test", "/"), is("any", 0));
        assert_eq!(find("x.b.test", "/"), is("deep", 0));
        assert_eq!(find("test", "/"), None);
    }
}
