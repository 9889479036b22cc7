//! What called each other by name in a project becomes links, where it is HTTP.

use std::collections::BTreeSet;

use hutong_core::spec::links::MAX_LINKS;

use crate::State;
use crate::app::{Draft, Run, app_name};
use crate::place::At;

/// What calls another app of its project.
struct Call {
    from: usize,
    to: usize,
    alias: String,
    at: At,
    what: String,
    /// The variable that names it, with its new value.
    change: Option<(String, String)>,
    is_http: bool,
}

/// Calls by name become links, where they are HTTP.
pub(crate) fn links(state: &mut State) {
    let mut calls = Vec::new();
    for (index, draft) in state.drafts.iter().enumerate() {
        if draft.is_joined {
            continue;
        }
        let variables = draft.env.iter().chain(&draft.secrets);
        for (key, value) in variables {
            let at = draft.env_at.get(key).unwrap_or(&draft.at);
            if value.contains("host.docker.internal") || value.contains("172.17.0.1") {
                state.report.app = Some(draft.name.clone());
                state.report.leave_to_do(
                    at,
                    &format!("environment.{key}"),
                    "an app does not reach the server that it runs on: what it calls has to be an app with a link, or have a public address",
                );
            }
            if let Some(call) = in_value(index, draft, key, value, state) {
                calls.push(call);
            }
        }
        for (at, alias) in &draft.needs {
            if let Some(to) = named(alias, index, draft, state) {
                calls.push(Call {
                    from: index,
                    to,
                    alias: alias.clone(),
                    at: at.clone(),
                    what: format!("depends_on.{alias}"),
                    change: None,
                    is_http: true,
                });
            }
        }
    }
    let mut said = BTreeSet::new();
    for call in calls {
        link(call, &mut said, state);
    }
    state.report.app = None;
}

/// The app that a name means to another one of its project.
fn named(alias: &str, index: usize, draft: &Draft, state: &State) -> Option<usize> {
    let fits = |other: usize, one: &Draft| {
        other != index
            && !one.is_joined
            && one.project == draft.project
            && one.aliases.contains(alias)
    };
    let mut list = state.drafts.iter().enumerate();
    list.find(|(other, one)| fits(*other, one))
        .map(|(other, _)| other)
}

/// A call that a variable's value tells of: an address, or a name where one is meant.
fn in_value(index: usize, draft: &Draft, key: &str, value: &str, state: &State) -> Option<Call> {
    let mut parts = Vec::new();
    let mut found = None;
    for part in value.split(',') {
        let (scheme, rest) = match part.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, part),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user, host_port) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let (host, port) = match host_port.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host_port, None),
        };
        let is_meant = match (scheme, port) {
            (Some(_), _) => true,
            (None, Some(port)) => port.parse::<u16>().is_ok() && path.is_empty(),
            (None, None) => path.is_empty() && names_a_host(key),
        };
        let to = named(host.trim(), index, draft, state).filter(|_| is_meant);
        let Some(to) = to else {
            parts.push(part.to_owned());
            continue;
        };
        let is_http = match scheme {
            Some(scheme) => matches!(scheme, "http" | "https" | "ws" | "wss"),
            None => state.drafts.get(to).is_some_and(|one| one.tcp.is_none()),
        };
        let link = format!("{}.internal", app_name(host.trim()));
        let port = match (scheme, port) {
            (None, Some(_)) => ":80",
            _ => "",
        };
        let scheme = match scheme {
            Some("https" | "http") => "http://",
            Some("wss" | "ws") => "ws://",
            _ => "",
        };
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        parts.push(format!("{scheme}{user}{link}{port}{path}"));
        found = Some((to, host.trim().to_owned(), is_http));
    }
    let (to, alias, is_http) = found?;
    Some(Call {
        from: index,
        to,
        alias,
        at: draft.env_at.get(key).unwrap_or(&draft.at).clone(),
        what: format!("environment.{key}"),
        change: Some((key.to_owned(), parts.join(","))),
        is_http,
    })
}

/// Whether a variable is meant to hold a host.
fn names_a_host(key: &str) -> bool {
    let key = key.to_ascii_uppercase();
    let ends = [
        "HOST", "HOSTNAME", "SERVER", "ADDR", "ADDRESS", "URL", "URI", "ENDPOINT", "UPSTREAM",
        "BACKEND",
    ];
    ends.iter().any(|end| key.ends_with(end))
}

fn link(call: Call, said: &mut BTreeSet<(usize, usize)>, state: &mut State) {
    let Call {
        from,
        to,
        alias,
        at,
        what,
        change,
        is_http,
    } = call;
    let name = app_name(&alias);
    let Some(callee) = state.drafts.get(to) else {
        return;
    };
    let (callee_name, tcp) = (callee.name.clone(), callee.tcp);
    let listens =
        callee.has_instances() || matches!(callee.run, Run::Upstream(_) | Run::Static { .. });
    let Some(caller) = state.drafts.get_mut(from) else {
        return;
    };
    state.report.app = Some(caller.name.clone());
    if let Some(server) = tcp {
        if said.insert((from, to)) || change.is_some() {
            state.report.leave_to_do(
                &at,
                &what,
                format!(
                    "{callee_name} speaks {server}, and links are for HTTP: there are no TCP links yet, and an app reaches no other app and nothing on this server by address. Until there are, {} needs a {server} with a public address",
                    caller.name
                ),
            );
        }
        return;
    }
    if !is_http || !listens {
        state.report.leave_to_do(
            &at,
            &what,
            format!("links are for HTTP, and there are no TCP links yet: {} does not reach {callee_name} so", caller.name),
        );
        return;
    }
    let is_new = !caller.links.contains_key(&name);
    if is_new && caller.port == Some(80) {
        state.report.leave_to_do(
            &at,
            &what,
            format!("a link to {callee_name} would be at port 80 of the app's own network, where it listens itself: have it listen at another port, then say links = {{ {name} = \"{callee_name}\" }}"),
        );
        return;
    }
    if is_new && caller.links.len() >= MAX_LINKS {
        state
            .report
            .left(&at, &what, format!("an app has at most {MAX_LINKS} links"));
        return;
    }
    if caller
        .links
        .get(&name)
        .is_some_and(|known| *known != callee_name)
    {
        state
            .report
            .left(&at, &what, "there is a link of that name already");
        return;
    }
    caller.links.insert(name.clone(), callee_name.clone());
    let caller_name = caller.name.clone();
    match change {
        Some((key, value)) => {
            match caller.env.contains_key(&key) {
                true => caller.env.insert(key, value),
                false => caller.secrets.insert(key, value),
            };
            said.insert((from, to));
            state.report.used(
                &at,
                &what,
                format!("links: {callee_name} is reached at http://{name}.internal, and the variable says so"),
            );
        }
        None if said.insert((from, to)) => state.report.leave_to_do(
            &at,
            &what,
            format!("links: {callee_name} is reached at http://{name}.internal; change {alias} to that where the program names it"),
        ),
        None => {}
    }
    if let Some(callee) = state.drafts.get_mut(to) {
        callee.callers.insert(caller_name);
    }
}
