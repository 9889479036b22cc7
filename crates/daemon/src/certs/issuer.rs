//! Sees to it that every name that is served has a certificate, and renews it in time. One order at a
//! time; what failed is tried again by `hutong_acme::schedule`, written down, so that restarts do not
//! add attempts.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hutong_acme::account::{Account, account};
use hutong_acme::config::Config;
use hutong_acme::error::Error;
use hutong_acme::local::Authority;
use hutong_acme::schedule::{self, Life};
use hutong_acme::secret::Secret;
use hutong_acme::{order, resolve};
use hutong_ipc::gateway::{Challenge, Held, Pem, Secret as WireSecret};
use hutong_runtime::paths::atomic_write;

use super::solver::Show;
use super::{Source, covers};
use crate::store::Attempt;
use crate::{Control, lock, publish};

/// How often it looks by itself.
const LOOK: Duration = Duration::from_secs(30);
/// Names that only this machine or this network knows: no public authority signs them (RFC 6761, 8375).
const LOCAL: [&str; 6] = ["localhost", "test", "internal", "local", "home.arpa", "lan"];

pub async fn run(control: Arc<Control>) {
    if !control.certs.enabled {
        return;
    }
    loop {
        let due_s = pass(&control).await.unwrap_or_else(|error| {
            tracing::error!("certificates: {error}");
            u64::MAX
        });
        let wait = Duration::from_secs(due_s.saturating_sub(now()).max(1)).min(LOOK);
        tokio::select! {
            () = control.certs.wake.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// Every host that a published route names.
pub fn wanted(control: &Control) -> BTreeSet<String> {
    let snapshot = publish::last(&control.data_dir, &control.run_dir);
    let apps = snapshot.apps.into_values();
    apps.flat_map(|app| app.routes)
        .map(|route| route.host)
        .collect()
}

/// Who signs for a host here.
pub fn source_of(acme: Option<&Config>, host: &str) -> Source {
    let bare = host.trim_start_matches("*.");
    let local = LOCAL.iter().any(|suffix| {
        bare.strip_suffix(suffix)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    });
    let address = bare.parse::<IpAddr>().is_ok() || bare.starts_with('[') || !bare.contains('.');
    match acme {
        Some(acme) if acme.can(host) && !local && !address => Source::Acme,
        _ => Source::Local,
    }
}

/// When a certificate is to be replaced, in seconds since 1970.
pub fn renew_at(host: &str, held: &Held) -> u64 {
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let life = Life {
        not_before: seconds(held.not_before),
        not_after: seconds(held.not_after),
    };
    schedule::renew_at(host, life, None)
}

/// When there is something to do next, in seconds since 1970.
async fn pass(control: &Arc<Control>) -> Result<u64, String> {
    let mut due_s = u64::MAX;
    let Some(held) = control.certs.held() else {
        return Ok(due_s);
    };
    let hosts = wanted(control);
    for host in &hosts {
        let own = held.iter().any(|one| {
            Source::of(&one.name) == Source::Own
                && one.not_after > now() as i64
                && one.hosts.iter().any(|pattern| covers(pattern, host))
        });
        let source = source_of(control.certs.acme.as_ref(), host);
        let before = held.iter().find(|one| one.name == source.name(host));
        let renew_s = before.map_or(0, |one| renew_at(host, one));
        if own {
            continue;
        }
        if renew_s > now() {
            due_s = due_s.min(renew_s);
            continue;
        }
        match source {
            Source::Acme => due_s = due_s.min(attempt(control, host, before).await?),
            _ => sign(control, host).await?,
        }
    }
    tidy(control, &held, &hosts)?;
    Ok(due_s)
}

/// Throws away what nobody asks for any more: local ones at once, others when they have ended.
fn tidy(control: &Control, held: &[Held], hosts: &BTreeSet<String>) -> Result<(), String> {
    for one in held {
        let wanted = one.hosts.iter().any(|host| hosts.contains(host));
        let ended = one.not_after < now() as i64;
        match Source::of(&one.name) {
            Source::Local if !wanted => control.certs.forget(&one.name)?,
            Source::Acme if !wanted && ended => control.certs.forget(&one.name)?,
            _ => {}
        }
    }
    Ok(())
}

async fn sign(control: &Arc<Control>, host: &str) -> Result<(), String> {
    let (chain, key) = local_authority(&control.data_dir)?.sign(host)?;
    let pem = Pem {
        chain,
        key: WireSecret(key.expose().to_owned()),
    };
    control
        .certs
        .keep(&Source::Local.name(host), pem)
        .await
        .map(drop)
}

/// Our own authority, made when it is first asked for.
pub fn local_authority(data_dir: &Path) -> Result<Authority, String> {
    // Who asks for it and who signs with it must not both make one.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = lock(&MAKING);
    let own = data_dir.join("control");
    let (root, key) = (own.join("ca.pem"), own.join("ca-key.pem"));
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    match (
        std::fs::read_to_string(&root),
        std::fs::read_to_string(&key),
    ) {
        (Ok(root), Ok(key)) => Ok(Authority::restore(root, Secret::new(key))),
        (Err(error), _) | (_, Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            let server = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let authority = Authority::new(server.trim())?;
            let text = authority.key_pem().expose();
            // The key first: a root that is there has its key.
            atomic_write(&key, text.as_bytes(), 0o600).map_err(|e| failed(&key, e))?;
            atomic_write(&root, authority.root_pem.as_bytes(), 0o600)
                .map_err(|e| failed(&root, e))?;
            Ok(authority)
        }
        (Err(error), _) => Err(failed(&root, error)),
        (_, Err(error)) => Err(failed(&key, error)),
    }
}

/// Tries to have one from the authority, if it is time to; when it is time again.
async fn attempt(control: &Arc<Control>, host: &str, before: Option<&Held>) -> Result<u64, String> {
    let last = control.store.attempt(host).map_err(|e| e.to_string())?;
    if let Some(last) = last.as_ref().filter(|last| last.next_s > now()) {
        return Ok(last.next_s);
    }
    match obtain(control, host).await {
        Ok(()) => control
            .store
            .forget_attempt(host)
            .map(|()| u64::MAX)
            .map_err(|e| e.to_string()),
        Err((problem, wait)) => {
            let failures = last.map_or(0, |last| last.failures) + 1;
            let not_after = before.map(|one| u64::try_from(one.not_after).unwrap_or(0));
            let attempt = Attempt {
                host: host.to_owned(),
                failures,
                next_s: schedule::retry_at(host, now(), failures, wait, not_after),
                problem,
            };
            tracing::warn!("no certificate for {host}: {}", attempt.problem);
            control
                .store
                .note_attempt(&attempt)
                .map(|()| attempt.next_s)
                .map_err(|e| e.to_string())
        }
    }
}

type Failed = (String, Option<u64>);

async fn obtain(control: &Arc<Control>, host: &str) -> Result<(), Failed> {
    let plain = |problem: String| (problem, None);
    let acme = control.certs.acme.clone();
    let acme = acme.ok_or_else(|| plain("no authority is set".into()))?;
    leads_here(control, &acme, host).await.map_err(plain)?;
    let show = Show::new(control).map_err(plain)?;
    let names = [host.to_owned()];
    let mut known = account_of(control, &acme).await.map_err(told)?;
    let mut issued = order::obtain(&known, &names, acme.challenge, None, &show).await;
    if let Err(Error::Account(reason)) = &issued {
        tracing::warn!("the account with the certificate authority: {reason}; making another");
        let _ = std::fs::remove_file(account_path(control));
        known = account_of(control, &acme).await.map_err(told)?;
        issued = order::obtain(&known, &names, acme.challenge, None, &show).await;
    }
    let issued = issued.map_err(told)?;
    let pem = Pem {
        chain: issued.chain_pem,
        key: WireSecret(issued.key_pem.expose().to_owned()),
    };
    let kept = control.certs.keep(&Source::Acme.name(host), pem).await;
    kept.map(drop).map_err(plain)
}

fn told(error: Error) -> Failed {
    let wait = error.retry_after().map(|wait| wait.as_secs());
    (error.to_string(), wait)
}

fn account_path(control: &Control) -> std::path::PathBuf {
    control.data_dir.join("control").join("acme-account.json")
}

async fn account_of(control: &Control, acme: &Config) -> Result<Account, Error> {
    let path = account_path(control);
    let saved = std::fs::read_to_string(&path).ok();
    let (account, text) = account(&acme.account(), saved.as_deref()).await?;
    if saved.as_deref() != Some(text.expose()) {
        atomic_write(&path, text.expose().as_bytes(), 0o600)
            .map_err(|error| Error::Other(format!("the account cannot be kept: {error}")))?;
    }
    Ok(account)
}

/// Whether the name leads to us: an authority's patience with failures is limited. Where our addresses
/// are not known, as behind a cloud's address translation, we ask ourselves by the name.
async fn leads_here(control: &Arc<Control>, acme: &Config, host: &str) -> Result<(), String> {
    if acme.challenge == hutong_acme::challenge::Kind::Dns01 {
        return Ok(());
    }
    let look_up = async |name: &str| {
        let found = tokio::net::lookup_host((name, 0)).await?;
        Ok(found.map(|address| address.ip()).collect::<Vec<IpAddr>>())
    };
    resolve::points_here(host, &acme.addresses, look_up)
        .await
        .map_err(|reason| format!("{reason}; {}", reason.hint()))?;
    if !acme.addresses.is_empty() {
        return Ok(());
    }
    ask_ourselves(control, host).await
}

/// Asks port 80 of the name for something that only we know.
async fn ask_ourselves(control: &Arc<Control>, host: &str) -> Result<(), String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| error.to_string())?;
    let token = format!("hutong-{}", hutong_core::tree::hex(&random));
    let challenge = Challenge::Http01 {
        token: token.clone(),
        answer: token.clone(),
    };
    control.certs.show(&token, Some(challenge)).await?;
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect((host, 80)).await?;
        let request = format!(
            "GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        (&mut stream)
            .take(64 << 10)
            .read_to_end(&mut answer)
            .await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), asked).await;
    let _ = control.certs.show(&token, None).await;
    let seen = match answer {
        Err(_) => "it does not answer".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Ok(Ok(answer)) if answer.ends_with(token.as_bytes()) => return Ok(()),
        Ok(Ok(_)) => "somebody else answers".to_owned(),
    };
    Err(format!(
        "http://{host} does not lead to this server: {seen}; let its DNS record lead here and port 80 be open, or set acme.addresses"
    ))
}
