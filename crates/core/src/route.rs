//! Who owns a host, and which routes hold.
//!
//! A host belongs to the app that lists it without a path. A route to a path of a host holds only
//! while the host's owner shares that path with the app; until then it waits. Deny by default.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use crate::spec::{AppSpec, Domain};

/// The app that lists `host` without a path, if any.
fn owner<'a, S: Borrow<AppSpec>>(
    apps: &'a BTreeMap<String, S>,
    host: &str,
) -> Option<(&'a str, &'a AppSpec)> {
    apps.iter()
        .map(|(name, spec)| (name.as_str(), spec.borrow()))
        .find(|(_, spec)| {
            spec.domains
                .iter()
                .any(|d| d.host == host && d.prefix == "/")
        })
}

/// What stands against `spec` beside the other `apps`: a host that another one owns.
pub fn conflict<S: Borrow<AppSpec>>(apps: &BTreeMap<String, S>, spec: &AppSpec) -> Option<String> {
    spec.domains
        .iter()
        .filter(|domain| domain.prefix == "/")
        .find_map(|domain| {
            let (name, _) = owner(apps, &domain.host)?;
            (name != spec.name.as_str()).then(|| {
                format!(
                    "the domain {} belongs to the app {name}; take another, or have {name} give it up, or ask {name} for a path of it (share = {{ \"/path\" = \"{}\" }})",
                    domain.host, spec.name
                )
            })
        })
}

/// Whether a route of `name` holds now, and if not, what it waits for.
pub fn holds<S: Borrow<AppSpec>>(
    apps: &BTreeMap<String, S>,
    name: &str,
    domain: &Domain,
) -> Result<(), String> {
    match owner(apps, &domain.host) {
        Some((owner, _)) if owner == name => Ok(()),
        Some((_, spec)) if consents(spec, &domain.prefix, name) => Ok(()),
        Some((owner, _)) => Err(format!(
            "{domain} waits: {owner} owns {} and does not share {} with {name}",
            domain.host, domain.prefix
        )),
        None => Err(format!("{domain} waits: no app owns {} yet", domain.host)),
    }
}

fn consents(owner: &AppSpec, prefix: &str, name: &str) -> bool {
    owner
        .share
        .iter()
        .any(|(shared, app)| app.as_str() == name && covers(shared, prefix))
}

/// Whether the prefix `wide` covers `path`, at segment borders.
pub fn covers(wide: &str, path: &str) -> bool {
    wide == "/"
        || path
            .strip_prefix(wide)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse;

    fn apps(texts: &[&str]) -> BTreeMap<String, AppSpec> {
        texts
            .iter()
            .map(|text| parse("t", text).expect("good"))
            .map(|spec| (spec.name.to_string(), spec))
            .collect()
    }

    #[test]
    fn a_host_has_one_owner_and_paths_need_consent() {
        let board = "name='board'\nstatic='.'\ndomains=['b.test']\nshare={'/api'='notes'}";
        let notes = "name='notes'\ncommand='x'\ndomains=['b.test/api/v1']";
        let evil = "name='evil'\ncommand='x'\ndomains=['b.test/apix', 'b.test/api']";
        let thief = parse("t", "name='thief'\ncommand='x'\ndomains=['b.test']").expect("good");
        let all = apps(&[board, notes, evil]);
        assert_eq!(holds(&all, "notes", &all["notes"].domains[0]), Ok(()));
        for domain in &all["evil"].domains {
            assert!(holds(&all, "evil", domain).is_err(), "{domain}");
        }
        let reason = conflict(&all, &thief).expect("a conflict");
        assert!(reason.contains("belongs to the app board"), "{reason}");
        assert_eq!(conflict(&all, &all["board"]), None);
        let alone = apps(&[notes]);
        assert!(holds(&alone, "notes", &alone["notes"].domains[0]).is_err());
    }
}
