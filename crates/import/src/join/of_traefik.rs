//! Traefik's routers: those of labels go to the apps that have them, those of files become routes.

use std::collections::BTreeSet;

use crate::app::{Draft, app_name};
use crate::place::{At, short};
use crate::report::Report;
use crate::traefik::{self, Dynamic, Resolved};
use crate::{Labels, State};

use super::{Route, Server, Target, settle};

/// Routers of Traefik: those of labels go to the apps that have them, those of files become routes.
pub(crate) fn routers(state: &mut State) {
    let labels = std::mem::take(&mut state.labels);
    let files = std::mem::take(&mut state.dynamic);
    let mut used = BTreeSet::new();
    for one in &labels {
        // Its own first, then those of its project, of Traefik itself, and of files.
        let project = labels.iter().filter(|other| other.project == one.project);
        let scope: Vec<&Dynamic> = std::iter::once(&one.dynamic)
            .chain(project.map(|other| &other.dynamic))
            .chain(labels.iter().map(|other| &other.dynamic))
            .chain(&files)
            .collect();
        labelled(one, &scope, &mut used, state);
    }
    for file in &files {
        let scope: Vec<&Dynamic> = std::iter::once(file)
            .chain(&files)
            .chain(labels.iter().map(|other| &other.dynamic))
            .collect();
        of_file(file, &scope, &labels, &mut used, state);
    }
    state.report.app = None;
    for dynamic in labels.iter().map(|one| &one.dynamic).chain(&files) {
        dynamic.note_middlewares(&used, &mut state.report);
    }
}

/// The routers of one container.
fn labelled(one: &Labels, scope: &[&Dynamic], used: &mut BTreeSet<String>, state: &mut State) {
    // Those that only send to HTTPS come last: then it is known whom they are about.
    let mut resolved = Vec::new();
    for (name, router) in &one.dynamic.routers {
        let found = traefik::resolve(router, scope);
        let redirects = found.as_ref().is_ok_and(|found| found.redirects);
        resolved.push((redirects, name, router, found));
    }
    resolved.sort_by_key(|(redirects, ..)| *redirects);
    let mut served = Served::default();
    for (_, name, router, found) in resolved {
        let what = format!("router {name}");
        let nowhere = At::default();
        let at = router.rule.as_ref().map_or(&nowhere, |(at, _)| at);
        let draft = match one.draft {
            Some(index) => state.drafts.get_mut(index),
            None => None,
        };
        let Some(draft) = draft else {
            state.report.app = None;
            state
                .report
                .left(at, &what, "it goes with the service that Hutong replaces");
            note_names(router, "its router is not served", &mut state.report);
            continue;
        };
        state.report.app = Some(draft.name.clone());
        if one.dynamic.enabled == Some(false) {
            state.report.left(at, &what, "traefik.enable is false");
            note_names(router, "its router is not served", &mut state.report);
            continue;
        }
        let service = service_of(&one.dynamic, router);
        let found = found.and_then(|found| match service {
            Some(service) => match &service.problem {
                Some(why) => Err(format!("its service is not used: {why}")),
                None => Ok(found),
            },
            None if router.service.is_some() => {
                Err("its service is in none of these labels".into())
            }
            None => Ok(found),
        });
        let applied = found.and_then(|found| {
            apply(draft, service, &found, &mut served)?;
            Ok(found)
        });
        match applied {
            Ok(found) => {
                let domains: Vec<String> = found.domains.iter().map(ToString::to_string).collect();
                state
                    .report
                    .used(at, &what, format!("domains = [{}]", domains.join(", ")));
                note_names(router, "in its app's settings", &mut state.report);
                for remark in &found.remarks {
                    state.report.left(at, &what, remark.as_str());
                }
                used.extend(found.used);
            }
            Err(why) => {
                state
                    .report
                    .left(at, &what, format!("{why}; nobody is let in by it"));
                note_names(router, "its router is not served", &mut state.report);
            }
        }
    }
    let is_both = served.plain.intersection(&served.secure).next().is_some();
    let draft = match one.draft {
        Some(index) => state.drafts.get_mut(index),
        None => None,
    };
    if let (Some(draft), true) = (draft, is_both) {
        draft.redirect = Some(false);
    }
}

/// Says of the names of middlewares what became of their router.
fn note_names(router: &traefik::Router, text: &str, report: &mut Report) {
    for (at, name) in &router.middlewares {
        let what = format!("middlewares: {}", short(name));
        match text.starts_with("in ") {
            true => report.used(at, &what, text),
            false => report.left(at, &what, text),
        }
    }
}

/// Hosts of an app that are served plainly, and over HTTPS.
#[derive(Default)]
struct Served {
    plain: BTreeSet<String>,
    secure: BTreeSet<String>,
}

fn service_of<'a>(dynamic: &'a Dynamic, router: &traefik::Router) -> Option<&'a traefik::Service> {
    match &router.service {
        Some((_, name)) => {
            let name = name.split('@').next().unwrap_or_default();
            dynamic.services.get(name)
        }
        None => dynamic.services.values().next(),
    }
}

/// Gives an app what a router of its labels asks for, or says why it cannot have that.
fn apply(
    draft: &mut Draft,
    service: Option<&traefik::Service>,
    found: &Resolved,
    served: &mut Served,
) -> Result<(), String> {
    let domains: Vec<String> = found.domains.iter().map(ToString::to_string).collect();
    let is_known = domains.iter().all(|domain| draft.domains.contains(domain));
    if found.redirects && is_known && !found.domains.is_empty() {
        return Ok(());
    }
    let mut settings = found.settings.clone();
    if service.is_some_and(|service| service.sticky) {
        settings.balance = Some("sticky");
    }
    settle(draft, &settings)?;
    for domain in &domains {
        draft.add_domain(domain);
    }
    let hosts = found.domains.iter().map(|domain| domain.host.clone());
    match found.secure || found.redirects {
        true => served.secure.extend(hosts),
        false => served.plain.extend(hosts),
    }
    if let Some(service) = service {
        if service.scheme.as_deref() == Some("h2c") {
            draft.protocol = Some("h2c");
            draft.health.path = None;
        }
        if draft.health.path.is_none() && draft.protocol.is_none() {
            draft.health.path.clone_from(&service.health.path);
            draft.health.interval = draft.health.interval.or(service.health.interval);
            draft.health.timeout = draft.health.timeout.or(service.health.timeout);
        }
    }
    Ok(())
}

/// The routers of a file.
fn of_file(
    file: &Dynamic,
    scope: &[&Dynamic],
    labels: &[Labels],
    used: &mut BTreeSet<String>,
    state: &mut State,
) {
    state.report.app = None;
    for (name, router) in &file.routers {
        let what = format!("router {name}");
        let nowhere = At::default();
        let at = router.rule.as_ref().map_or(&nowhere, |(at, _)| at);
        let service = router
            .service
            .as_ref()
            .map_or("", |(_, name)| name.as_str());
        if service.ends_with("@internal") {
            let text = "a page of Traefik's own: `hutong gateway` and `hutong apps` show routes and instances";
            state.report.replaced(at, &what, text);
            note_names(router, "its router is not served", &mut state.report);
            continue;
        }
        let found = traefik::resolve(router, scope)
            .and_then(|found| Ok((servers_of(service, file, labels, state)?, found)));
        match found {
            Ok((target, found)) => {
                note_names(router, "in its app's settings", &mut state.report);
                for remark in &found.remarks {
                    state.report.left(at, &what, remark.as_str());
                }
                state.report.used(at, &what, "a route");
                used.extend(found.used.iter().cloned());
                for domain in &found.domains {
                    let listen = state.listens.entry(domain.host.clone()).or_default();
                    listen.secure |= found.secure;
                    state.routes.push(Route {
                        at: at.clone(),
                        what: what.clone(),
                        host: domain.host.clone(),
                        path: domain.prefix.clone(),
                        target: target.clone(),
                        settings: found.settings.clone(),
                        hint: app_name(name),
                    });
                }
            }
            Err(why) => {
                state
                    .report
                    .left(at, &what, format!("{why}; nobody is let in by it"));
                note_names(router, "its router is not served", &mut state.report);
            }
        }
    }
}

/// Where the service of a file's router answers.
fn servers_of(
    name: &str,
    file: &Dynamic,
    labels: &[Labels],
    state: &State,
) -> Result<Target, String> {
    let (name, provider) = name.split_once('@').unwrap_or((name, ""));
    let servers = |protocol, servers| Target::Servers {
        protocol,
        servers,
        fastcgi: None,
    };
    if let Some(service) = file.services.get(name).filter(|_| provider != "docker") {
        if let Some(why) = &service.problem {
            return Err(format!("its service is not used: {why}"));
        }
        let mut list = Vec::new();
        let mut protocol = "http";
        for one in service.servers.values() {
            let (scheme, host, port) = url(&one.url).ok_or_else(|| {
                format!(
                    "`{}` is no address such as http://127.0.0.1:8080",
                    short(&one.url)
                )
            })?;
            protocol = scheme;
            list.push(Server {
                at: one.at.clone(),
                host,
                port,
                weight: one.weight.unwrap_or(1),
            });
        }
        return match list.is_empty() {
            true => Err("its service has no servers".into()),
            false => Ok(servers(protocol, list)),
        };
    }
    // A service of a container, by the name that its labels give it.
    for one in labels {
        if let (Some(service), Some(index)) = (one.dynamic.services.get(name), one.draft)
            && let Some(draft) = state.drafts.get(index)
            && let Some(host) = draft.aliases.iter().next()
        {
            let (at, port) = service.port.clone().unwrap_or((draft.at.clone(), 80));
            let server = Server {
                at,
                host: host.clone(),
                port,
                weight: 1,
            };
            return Ok(servers("http", vec![server]));
        }
    }
    Err(format!(
        "its service `{}` is in none of the files that were handed over",
        short(name)
    ))
}

/// `http://HOST:PORT`, taken apart.
fn url(text: &str) -> Option<(&'static str, String, u16)> {
    let (scheme, rest) = text.split_once("://")?;
    let scheme = match scheme {
        "http" => "http",
        "h2c" => "h2c",
        _ => return None,
    };
    let rest = rest.trim_end_matches('/');
    if rest.contains('/') {
        return None;
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (rest, 80),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty() && port > 0).then(|| (scheme, host.to_owned(), port))
}
