//! Ids that carry where they come from: `APP-dDEPLOYMENT-RANDOM`.

/// A new instance id of a deployment.
pub fn instance(app: &str, deployment: u64) -> String {
    let mut random = [0; 4];
    // Without randomness the clock still tells two starts apart.
    if getrandom::fill(&mut random).is_err() {
        random = (hutong_runtime::processes::now_ms() as u32).to_le_bytes();
    }
    format!("{app}-d{deployment}-{:08x}", u32::from_le_bytes(random))
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
    let last = name.rsplit('-').next().unwrap_or_default();
    parse(name).is_some() && last.starts_with('s')
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
        let id = instance("my-d1-app", 42);
        assert_eq!(parse(&id), Some(("my-d1-app", 42)));
        assert!(hutong_core::name::is_instance_id(&id));
        assert_eq!(parse("x"), None);
        assert!(is_build(&build_step("a", 1, 0)) && !is_build(&id));
        assert!(is_access("access-0-1") && !is_access(&instance("access-0", 1)));
    }
}
