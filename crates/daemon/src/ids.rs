//! Ids that carry where they come from: `APP-dDEPLOYMENT-LAST`. The last part says what the instance does: eight
//! hex digits serve visitors; a letter that is no hex digit comes before those of the rest.

/// What an instance does for its app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// It serves visitors.
    Web,
    /// Runs all the time; its name.
    Worker(&'a str),
    /// Runs at times; its name.
    Cron(&'a str),
    /// The owner asked for it, once.
    Run,
    /// What must succeed before a release serves.
    Release,
    /// A step of a build.
    Build,
}

/// A new instance id of a deployment.
pub fn instance(app: &str, deployment: u64, kind: Kind<'_>) -> String {
    let mut random = [0; 4];
    // Without randomness the clock still tells two starts apart.
    if getrandom::fill(&mut random).is_err() {
        random = (hutong_runtime::processes::now_ms() as u32).to_le_bytes();
    }
    let (letter, name) = match kind {
        Kind::Web => ("", ""),
        Kind::Worker(name) => ("w", name),
        Kind::Cron(name) => ("t", name),
        Kind::Run => ("r", ""),
        Kind::Release => ("p", ""),
        Kind::Build => ("s", ""),
    };
    let random = u32::from_le_bytes(random);
    format!("{app}-d{deployment}-{letter}{random:08x}{name}")
}

/// What the instance of this id does.
pub fn kind(instance: &str) -> Kind<'_> {
    let last = instance.rsplit('-').next().unwrap_or_default();
    let name = last.get(9..).unwrap_or_default();
    match last.bytes().next() {
        Some(b'w') => Kind::Worker(name),
        Some(b't') => Kind::Cron(name),
        Some(b'r') => Kind::Run,
        Some(b'p') => Kind::Release,
        Some(b's') => Kind::Build,
        _ => Kind::Web,
    }
}

/// Whether whoever builds a deployment waits for this one's end.
pub fn is_of_deployment(name: &str) -> bool {
    parse(name).is_some() && matches!(kind(name), Kind::Build | Kind::Release)
}

/// The app and deployment of an instance id.
pub fn parse(instance: &str) -> Option<(&str, u64)> {
    let (rest, _) = instance.rsplit_once('-')?;
    let (app, deployment) = rest.rsplit_once("-d")?;
    Some((app, deployment.parse().ok()?))
}

/// A deployment's build, all its steps.
pub fn build(app: &str, deployment: u64) -> String {
    format!("{app}-d{deployment}")
}

/// A step of a deployment's build. Told from an instance by its last part, which is no hex number.
pub fn build_step(app: &str, deployment: u64, step: usize) -> String {
    format!("{app}-d{deployment}-s{step}")
}

/// Whether a spool's name is a build's.
pub fn is_build(name: &str) -> bool {
    parse(name).is_some() && kind(name) == Kind::Build
}

/// Whether a spool's name is that of a gateway worker's access records; no instance has such an id.
pub fn is_access(name: &str) -> bool {
    let numbers = name.strip_prefix("access-").and_then(|n| n.split_once('-'));
    let is_number = |n: &str| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit());
    numbers.is_some_and(|(slot, worker)| is_number(slot) && is_number(worker))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_say_where_they_come_from() {
        let id = instance("my-d1-app", 42, Kind::Web);
        for of in [
            Kind::Worker("mail"),
            Kind::Cron("d4"),
            Kind::Run,
            Kind::Release,
            Kind::Web,
        ] {
            let id = instance("my-d1-app", 42, of);
            assert_eq!((kind(&id), parse(&id)), (of, Some(("my-d1-app", 42))));
            assert!(hutong_core::name::is_instance_id(&id));
        }
        let (app, name) = ("a".repeat(40), "b".repeat(16));
        let longest = instance(&app, 1_000_000_000, Kind::Worker(&name));
        assert!(hutong_core::name::is_instance_id(&longest));
        assert_eq!(parse(&id), Some(("my-d1-app", 42)));
        assert!(hutong_core::name::is_instance_id(&id));
        assert_eq!(parse("x"), None);
        assert!(is_build(&build_step("a", 1, 0)) && !is_build(&id));
        assert!(is_access("access-0-1") && !is_access(&instance("access-0", 1, Kind::Web)));
    }
}
