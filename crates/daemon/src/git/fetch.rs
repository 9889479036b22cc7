//! Fetching a branch from a repository elsewhere, over HTTPS. The token for reading goes in git's environment, which
//! nobody but control's user and root may read: not on its command line, not in the URL, not in a file, not in a log.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::repo::{self, FETCHED, Repo, is_object_id};
use super::run;
use crate::Control;
use crate::store::Source;

const PATIENCE: Duration = Duration::from_secs(900);
const MAX_URL: usize = 1000;

/// Checks where an app may be fetched from: https://, or http:// on this machine; no user or password in it.
pub fn check_url(url: &str) -> Result<(), String> {
    let plain = |c: u8| c.is_ascii_graphic() && !b"\\\"'`<>{}|^".contains(&c);
    if url.len() > MAX_URL || !url.bytes().all(plain) {
        return Err("the address of a repository is a plain URL".into());
    }
    let wrong = "a repository is at https://HOST/PATH";
    let (scheme, rest) = url.split_once("://").ok_or(wrong)?;
    let (host, path) = rest.split_once('/').ok_or(wrong)?;
    if host.contains('@') {
        return Err("leave user and password out of the URL; --token-stdin takes a token".into());
    }
    if host.is_empty() || path.is_empty() || url.contains(['?', '#']) {
        return Err(wrong.into());
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let here = matches!(name, "localhost" | "127.0.0.1" | "[::1]");
    match scheme {
        "https" => Ok(()),
        "http" if here => Ok(()),
        _ => Err(format!("{wrong}; {scheme}:// is not taken")),
    }
}

/// Fetches the tip of a branch; the commit. Blocks.
pub fn fetch(
    control: &Control,
    repo: &Repo,
    source: &Source,
    token: Option<&str>,
    branch: &str,
) -> Result<String, String> {
    control.has_disk()?;
    repo.make(control).map_err(|error| error.to_string())?;
    repo.check_room(control)?;
    let kept = format!("{FETCHED}{branch}");
    let what = format!("+refs/heads/{branch}:{kept}");
    let arguments = [
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-write-fetch-head",
        "--no-recurse-submodules",
        "--no-auto-maintenance",
        "--depth=1",
        "--",
        &source.url,
        &what,
    ];
    let mut command = run::command(control, repo, &arguments);
    command
        .env("GIT_DIR", &repo.folder)
        .env("GIT_ALLOW_PROTOCOL", "https:http");
    if let Some(bundle) = &control.settings.ca_bundle {
        command.env(run::CA_BUNDLE, bundle);
    }
    if let Some(proxy) = &control.settings.proxy {
        command
            .env("https_proxy", proxy)
            .env("no_proxy", "localhost,127.0.0.1");
    }
    // A token must not follow a redirect to somebody else.
    let mut settings = vec![
        ("http.followRedirects", "false".to_owned()),
        ("http.lowSpeedLimit", "1000".to_owned()),
        ("http.lowSpeedTime", "60".to_owned()),
    ];
    if let Some(token) = token {
        let basic = STANDARD.encode(format!("{}:{token}", source.user));
        settings.push(("http.extraHeader", format!("Authorization: Basic {basic}")));
    }
    command.env("GIT_CONFIG_COUNT", settings.len().to_string());
    for (index, (key, value)) in settings.iter().enumerate() {
        command
            .env(format!("GIT_CONFIG_KEY_{index}"), key)
            .env(format!("GIT_CONFIG_VALUE_{index}"), value);
    }
    run::run(command, PATIENCE).map_err(|error| {
        repo::tidy_soon(&repo.folder);
        format!("{branch} cannot be fetched from {}: {error}", source.url)
    })?;
    let mut command = run::command(control, repo, &["rev-parse", "--verify", &kept]);
    command.env("GIT_DIR", &repo.folder);
    let commit = run::run(command, Duration::from_secs(30))?;
    let commit = commit.trim().to_owned();
    if is_object_id(&commit) {
        Ok(commit)
    } else {
        Err(format!("{branch} was fetched and is not there"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_fetched_over_https() {
        for good in [
            "https://github.com/me/shop.git",
            "https://git.example.com:8443/a/b",
            "http://localhost:8080/git/a.git",
            "http://127.0.0.1/a.git",
        ] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "github.com/me/shop",
            "http://github.com/me/shop.git",
            "http://localhost.evil.test/a",
            "ssh://git@github.com/me/shop.git",
            "git@github.com:me/shop.git",
            "file:///etc",
            "ext::sh -c id",
            "https://me:token@github.com/a.git",
            "https://github.com",
            "https:///a",
            "https://a/b c",
            "https://a/b?c",
            "--upload-pack=x",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }
}
