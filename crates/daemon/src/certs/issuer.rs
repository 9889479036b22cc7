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
use hutong_acme::renewal::identifier;
use hutong_acme::schedule::{self, Life};
use hutong_acme::secret::Secret;
use hutong_acme::{order, resolve};
use hutong_core::labels;
use hutong_ipc::gateway::{Challenge, Held, Pem, Secret as WireSecret};
use hutong_runtime::paths::atomic_write;

use super::renewal;
use super::solver::Show;
use super::{NotKept, Source, covers, fingerprint};
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
        let due_s = pass(&control).await;
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

/// So many hosts of containers of others get certificates: an authority counts them, and each is looked up.
const MAX_EXTERNAL: usize = 50;

/// The hosts of apps; what else is wanted, a container of others says.
fn hosts_of_apps(control: &Control) -> BTreeSet<String> {
    let snapshot = publish::last(&control.data_dir, &control.run_dir);
    let apps = snapshot.apps.into_iter();
    apps.filter(|(name, _)| !labels::is_external(name))
        .flat_map(|(_, app)| app.routes)
        .map(|route| route.host)
        .collect()
}

/// Every host that a published route names, but where nobody wants HTTPS. An address is none: no visitor says one in a
/// handshake.
pub fn wanted(control: &Control) -> BTreeSet<String> {
    let snapshot = publish::last(&control.data_dir, &control.run_dir);
    let apps = snapshot
        .apps
        .into_iter()
        .filter(|(_, app)| !app.https.plain);
    let (others, ours): (Vec<_>, Vec<_>) = apps.partition(|(name, _)| labels::is_external(name));
    let hosts = |apps: Vec<(String, hutong_ipc::gateway::App)>| {
        let routes = apps.into_iter().flat_map(|(_, app)| app.routes);
        routes
            .map(|route| route.host)
            .filter(|host| host.parse::<IpAddr>().is_err())
    };
    let mut wanted: BTreeSet<String> = hosts(ours).collect();
    let others: BTreeSet<String> = hosts(others)
        .filter(|host| !wanted.contains(host))
        .collect();
    wanted.extend(others.into_iter().take(MAX_EXTERNAL));
    wanted
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
pub fn renew_at(control: &Control, host: &str, held: &Held) -> u64 {
    let wishes = lock(&control.certs.wishes);
    let window = wishes.get(&held.fingerprint).and_then(|wish| wish.window);
    schedule::renew_at(host, life(held), window)
}

fn life(held: &Held) -> Life {
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    Life {
        not_before: seconds(held.not_before),
        not_after: seconds(held.not_after),
    }
}

/// When there is something to do next, in seconds since 1970. No host is in another's way.
async fn pass(control: &Arc<Control>) -> u64 {
    let mut due_s = u64::MAX;
    let Some(held) = control.certs.held() else {
        return due_s;
    };
    let hosts = wanted(control);
    let forced = {
        let mut forced = lock(&control.certs.forced);
        forced.retain(|host| hosts.contains(host));
        forced.clone()
    };
    let acme = control.certs.acme.as_ref();
    let ours = hosts_of_apps(control);
    // What we sign ourselves first: an authority may take its time.
    let mut list: Vec<(bool, bool, &String)> = hosts
        .iter()
        .map(|host| {
            let by_acme = source_of(acme, host) == Source::Acme;
            // Those of apps before those of others.
            (by_acme, by_acme && !ours.contains(host), host)
        })
        .collect();
    list.sort();
    forget_kept(control, &held, &hosts);
    let mut asking = renewal::Asking::new(control, &held);
    for (by_acme, _, host) in list {
        let own = held.iter().any(|one| {
            Source::of(&one.name) == Source::Own
                && one.not_after > now() as i64
                && one.hosts.iter().any(|pattern| covers(pattern, host))
        });
        if own {
            continue;
        }
        let source = if by_acme { Source::Acme } else { Source::Local };
        let before = held.iter().find(|one| one.name == source.name(host));
        if let Some(one) = before.filter(|_| by_acme) {
            due_s = due_s.min(asking.about(control, one).await);
        }
        let renew_s = before.map_or(0, |one| renew_at(control, host, one));
        if renew_s > now() && !forced.contains(host) {
            due_s = due_s.min(renew_s);
            continue;
        }
        if let Some(until) = waits(control, host, source) {
            due_s = due_s.min(until);
            continue;
        }
        if lock(&control.certs.forced).remove(host) {
            // Another key is wanted, not one that was signed before.
            lock(&control.certs.unkept).remove(host);
        }
        let next_s = attempt(control, host, source, before).await;
        due_s = due_s.min(next_s.unwrap_or_else(|error| {
            tracing::error!("no certificate for {host}: {error}");
            now() + 60
        }));
    }
    tidy(control, &held, &hosts);
    due_s
}

/// What was signed and not delivered, as far as we knew: the gateway may have heard of it all the same.
fn forget_kept(control: &Control, held: &[Held], hosts: &BTreeSet<String>) {
    let mut unkept = lock(&control.certs.unkept);
    unkept.retain(|host, pem| {
        let arrived = fingerprint(&pem.chain)
            .is_ok_and(|one| held.iter().any(|held| held.fingerprint == one));
        if arrived && let Err(error) = control.store.forget_attempt(host) {
            tracing::warn!("{error}");
        }
        !arrived && hosts.contains(host)
    });
}

/// Throws away what nobody asks for any more: local ones at once, others when they have ended.
fn tidy(control: &Control, held: &[Held], hosts: &BTreeSet<String>) {
    for one in held {
        let wanted = one.hosts.iter().any(|host| hosts.contains(host));
        let ended = one.not_after < now() as i64;
        let over = match Source::of(&one.name) {
            Source::Local => !wanted,
            Source::Acme => !wanted && ended,
            Source::Own => false,
        };
        if over && let Err(error) = control.certs.forget(&one.name) {
            tracing::warn!("the certificate {} stays: {error}", one.name);
        }
    }
}

async fn sign(control: &Arc<Control>, host: &str) -> Result<(), Failed> {
    let signed = local_authority(&control.data_dir).and_then(|own| own.sign(host));
    let (chain, key) = signed.map_err(Failed::plain)?;
    let pem = Pem {
        chain,
        key: WireSecret(key.expose().to_owned()),
    };
    keep(control, Source::Local, host, pem).await
}

/// One that would be due again at once is worth nothing, and must not be asked for again and again.
async fn keep(control: &Control, source: Source, host: &str, pem: Pem) -> Result<(), Failed> {
    let kept = control.certs.keep(&source.name(host), pem).await;
    let kept = kept.map_err(|reason| Failed {
        whose: match reason {
            NotKept::Undelivered | NotKept::Unwritten(_) => Whose::Gateway,
            NotKept::Refused(_) => Whose::Other,
        },
        ..Failed::plain(reason.to_string())
    })?;
    if schedule::renew_at(host, life(&kept), None) <= now() {
        let why = "the new certificate has all but ended: is this server's clock right?";
        return Err(Failed::plain(why.into()));
    }
    Ok(())
}

/// Our own authority, made when it is first asked for.
pub fn local_authority(data_dir: &Path) -> Result<Authority, String> {
    // Who asks for it and who signs with it must not both make one.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = lock(&MAKING);
    let own = data_dir.join("control");
    let (root, key) = (own.join("ca.pem"), own.join("ca-key.pem"));
    match (
        std::fs::read_to_string(&root),
        std::fs::read_to_string(&key),
    ) {
        // Made when the clock was wrong, or ten years ago.
        (Ok(pem), Ok(_)) if !is_good(&pem) => {
            tracing::warn!("the local authority's root has all but ended; there is a new one");
            make(&root, &key)
        }
        (Ok(root), Ok(key)) => Ok(Authority::restore(root, Secret::new(key))),
        (Err(error), _) | (_, Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            make(&root, &key)
        }
        (Err(error), _) => Err(failed(&root, error)),
        (_, Err(error)) => Err(failed(&key, error)),
    }
}

fn failed(path: &Path, error: std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

fn make(root: &Path, key: &Path) -> Result<Authority, String> {
    let server = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let authority = Authority::new(server.trim())?;
    let text = authority.key_pem().expose();
    // The key first: a root that is there has its key.
    atomic_write(key, text.as_bytes(), 0o600).map_err(|e| failed(key, e))?;
    atomic_write(root, authority.root_pem.as_bytes(), 0o600).map_err(|e| failed(root, e))?;
    Ok(authority)
}

/// Whether the root has begun, and lasts longer than what it signs.
fn is_good(root_pem: &str) -> bool {
    const LONGEST_S: u64 = 90 * 86_400;
    hutong_acme::chain::life(root_pem)
        .is_ok_and(|life| life.not_before <= now() && life.not_after > now() + LONGEST_S)
}

/// Rows of the store that are no host's: the authority is down, or wants to be left alone.
const CA_DOWN: &str = "";
const CA_LIMIT: &str = "!";
pub const ROWS: [&str; 2] = [CA_LIMIT, CA_DOWN];
/// Most limits are for a name or a domain: others are tried after so long.
const LIMIT_FOR_ALL_S: u64 = 3600;
/// A time to wait for that is farther off was written by a clock that was wrong.
const LONGEST_WAIT_S: u64 = 31 * 86_400;
/// A name that does not lead here yet costs the authority nothing.
const NOT_READY_S: u64 = 900;
/// The gateway is back in a moment.
const GATEWAY_S: u64 = 5;

/// Why there is none.
struct Failed {
    problem: String,
    /// What the authority asks for, in seconds.
    wait_s: Option<u64>,
    whose: Whose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// The authority's: nobody needs to ask it for another name meanwhile.
    Down,
    Limit,
    /// The owner's, who may be about to set the name up.
    NotReady,
    /// It is signed, and the gateway is away for a moment.
    Gateway,
    Other,
}

impl Failed {
    fn plain(problem: String) -> Self {
        Failed {
            problem,
            wait_s: None,
            whose: Whose::Other,
        }
    }
}

/// Tries a name again now, whatever came of it before; a limit of the authority's stays.
pub fn force(control: &Control, host: &str) -> crate::store::Result<()> {
    if let Some(last) = control.store.attempt(host)? {
        control.store.note_attempt(&Attempt { next_s: 0, ..last })?;
    }
    control.store.forget_attempt(CA_DOWN)?;
    lock(&control.certs.forced).insert(host.to_owned());
    control.certs.wake.notify_one();
    Ok(())
}

/// The row of an authority's limit for one host.
fn limit_row(host: &str) -> String {
    format!("{CA_LIMIT}{host}")
}

/// The authority's wish not to be asked for this host now, if there is one.
pub fn limit(control: &Control, host: &str) -> crate::store::Result<Option<Attempt>> {
    for row in [&limit_row(host), CA_LIMIT] {
        let known = control.store.attempt(row)?;
        if let Some(attempt) = known.filter(|attempt| is_to_come(attempt.next_s)) {
            return Ok(Some(attempt));
        }
    }
    Ok(None)
}

fn is_to_come(next_s: u64) -> bool {
    next_s > now() && next_s <= now() + LONGEST_WAIT_S
}

/// Until when not to try, in seconds since 1970.
fn waits(control: &Control, host: &str, source: Source) -> Option<u64> {
    let limits = [limit_row(host), CA_DOWN.into(), CA_LIMIT.into()];
    let authority = limits.iter().filter(|_| source == Source::Acme);
    let rows = authority.map(String::as_str).chain([host]);
    // A store that cannot be read now is found out by the attempt.
    let until = rows.filter_map(|row| control.store.attempt(row).ok()?);
    let until = until.map(|attempt| attempt.next_s);
    until.filter(|next_s| is_to_come(*next_s)).max()
}

/// Tries to have one; when it is time again, in seconds since 1970.
async fn attempt(
    control: &Arc<Control>,
    host: &str,
    source: Source,
    before: Option<&Held>,
) -> Result<u64, String> {
    let store = &control.store;
    let known = |host: &str| store.attempt(host).map_err(|error| error.to_string());
    let note = |attempt: &Attempt| store.note_attempt(attempt).map_err(|e| e.to_string());
    let last = known(host)?;
    let failures = last.map_or(0, |last| last.failures);
    let not_after = before.map(|one| u64::try_from(one.not_after).unwrap_or(0));
    let again =
        |failures: u32, wait_s| schedule::retry_at(host, now(), failures, wait_s, not_after);
    let outcome = if source == Source::Acme {
        // Before it is tried: who ends in the middle of it does not try again at once.
        note(&Attempt {
            host: host.to_owned(),
            failures: failures + 1,
            next_s: again(failures + 1, None),
            problem: String::new(),
        })?;
        obtain(control, host, before).await
    } else {
        sign(control, host).await
    };
    let Err(failed) = outcome else {
        // That we signed something ourselves says nothing about the authority.
        let limits = [limit_row(host), CA_DOWN.into(), CA_LIMIT.into()];
        let rows = limits.iter().filter(|_| source == Source::Acme);
        for done in rows.map(String::as_str).chain([host]) {
            store
                .forget_attempt(done)
                .map_err(|error| error.to_string())?;
        }
        if source == Source::Acme {
            rest_after_wish(control, host, before)?;
        }
        return Ok(u64::MAX);
    };
    tracing::warn!("no certificate for {host}: {}", failed.problem);
    let authority = match failed.whose {
        Whose::Down => Some(CA_DOWN),
        Whose::Limit => Some(CA_LIMIT),
        Whose::NotReady | Whose::Gateway | Whose::Other => None,
    };
    if let Some(row) = authority {
        let failures = known(row)?.map_or(0, |last| last.failures) + 1;
        let mut next_s = schedule::retry_at(row, now(), failures, failed.wait_s, None);
        if row == CA_LIMIT {
            note(&Attempt {
                host: limit_row(host),
                failures,
                next_s,
                problem: failed.problem.clone(),
            })?;
            next_s = next_s.min(now() + LIMIT_FOR_ALL_S);
        }
        // What others' containers ask for too often is not to keep apps from theirs.
        if row != CA_LIMIT || hosts_of_apps(control).contains(host) {
            note(&Attempt {
                host: row.to_owned(),
                failures,
                next_s,
                problem: failed.problem.clone(),
            })?;
        }
    }
    let counted = match failed.whose {
        Whose::NotReady | Whose::Gateway => failures,
        _ => failures + 1,
    };
    let mut next_s = again(counted.max(1), failed.wait_s);
    match failed.whose {
        Whose::NotReady => next_s = next_s.min(now() + NOT_READY_S),
        Whose::Gateway => next_s = now() + GATEWAY_S,
        _ => {}
    }
    note(&Attempt {
        host: host.to_owned(),
        failures: counted,
        next_s,
        problem: failed.problem,
    })?;
    Ok(next_s)
}

/// An authority that would like every certificate renewed at once must not have us ask it without end: behind a renewal
/// that only its wish was the reason for, the name is left alone for a while.
fn rest_after_wish(control: &Control, host: &str, before: Option<&Held>) -> Result<(), String> {
    const REST_S: u64 = 86_400;
    let due_s = |held: &&Held| schedule::renew_at(host, life(held), None);
    let Some(before) = before.filter(|held| due_s(held) > now()) else {
        return Ok(());
    };
    let life = life(before);
    let rest_s = REST_S.min(life.not_after.saturating_sub(life.not_before) / 3);
    let rest = Attempt {
        host: host.to_owned(),
        failures: 0,
        next_s: now() + rest_s,
        problem: String::new(),
    };
    let noted = control.store.note_attempt(&rest);
    noted.map_err(|error| error.to_string())
}

async fn obtain(control: &Arc<Control>, host: &str, before: Option<&Held>) -> Result<(), Failed> {
    // One that was signed and could not be kept costs no other order.
    let unkept = lock(&control.certs.unkept).remove(host);
    let pem = match unkept {
        Some(pem) => pem,
        None => order(control, host, before).await?,
    };
    let kept = keep(control, Source::Acme, host, pem.clone()).await;
    // One that is refused would be refused again.
    if matches!(&kept, Err(failed) if failed.whose == Whose::Gateway) {
        lock(&control.certs.unkept).insert(host.to_owned(), pem);
    }
    kept
}

async fn order(control: &Arc<Control>, host: &str, before: Option<&Held>) -> Result<Pem, Failed> {
    let acme = control.certs.acme.clone();
    let acme = acme.ok_or_else(|| Failed::plain("no authority is set".into()))?;
    let leads = leads_here(control, &acme, host).await;
    leads.map_err(|problem| Failed {
        whose: Whose::NotReady,
        ..Failed::plain(problem)
    })?;
    let show = Show::new(control).map_err(Failed::plain)?;
    let names = [host.to_owned()];
    // Authorities are kinder to who comes for another of the same.
    let replaces = || identifier(before?.renewal_id.as_deref()?);
    let mut issued = match account_of(control, &acme).await {
        Ok(known) => order::obtain(&known, &names, acme.challenge, replaces(), &show).await,
        Err(error) => Err(error),
    };
    if let Err(Error::Account(reason)) = &issued {
        tracing::warn!("the account with the certificate authority: {reason}; making another");
        let path = account_path(control);
        let _ = std::fs::rename(&path, path.with_extension("json.old"));
        let known = account_of(control, &acme).await.map_err(told)?;
        issued = order::obtain(&known, &names, acme.challenge, replaces(), &show).await;
    }
    let issued = issued.map_err(told)?;
    Ok(Pem {
        chain: issued.chain_pem,
        key: WireSecret(issued.key_pem.expose().to_owned()),
    })
}

fn told(error: Error) -> Failed {
    Failed {
        wait_s: error.retry_after().map(|wait| wait.as_secs()),
        whose: match &error {
            Error::RateLimited { .. } => Whose::Limit,
            Error::Unreachable { .. } => Whose::Down,
            _ => Whose::Other,
        },
        problem: error.to_string(),
    }
}

fn account_path(control: &Control) -> std::path::PathBuf {
    control.data_dir.join("control").join("acme-account.json")
}

pub(super) async fn account_of(control: &Control, acme: &Config) -> Result<Account, Error> {
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
