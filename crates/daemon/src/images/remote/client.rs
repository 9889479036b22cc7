//! Asks another registry (distribution spec, "Pull"): over HTTPS, or plainly on this machine. Bounded in time and size. A
//! blob goes to a file as it comes, and on from there when the line breaks. Errors name hosts, and neither passwords
//! nor tokens nor the addresses that blobs are redirected to, which are keys to them.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Empty, Limited};
use hutong_core::spec::egress;
use hutong_core::units::show_time;
use hutong_registry::{
    Algorithm, DOCKER_LIST, DOCKER_MANIFEST, Digest, MAX_MANIFEST, OCI_INDEX, OCI_MANIFEST,
};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RANGE, RETRY_AFTER, USER_AGENT,
    WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use tokio::time::{sleep, timeout};

const AGENT: &str = concat!("hutong/", env!("CARGO_PKG_VERSION"));
const CONNECT: Duration = Duration::from_secs(10);

/// How slow a registry may be: whoever fetches from it keeps others waiting.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Until an answer begins.
    answer: Duration,
    /// In so long come all of what is small, and `least` bytes of a blob.
    stall: Duration,
    least: u64,
    /// The first pause between two tries.
    pause: Duration,
}

const BOUNDS: Bounds = Bounds {
    answer: Duration::from_secs(30),
    stall: Duration::from_secs(60),
    least: 1 << 20,
    pause: Duration::from_millis(500),
};

impl Bounds {
    /// How long a blob may take in all, however often its line breaks: time for every try to fail once, and what the slowest
    /// line needs.
    fn whole(&self, size: u64) -> Duration {
        let tries = (self.answer + self.stall + LONGEST_PAUSE).saturating_mul(TRIES);
        let parts = size.div_ceil(self.least.max(1));
        tries
            + self
                .stall
                .saturating_mul(u32::try_from(parts).unwrap_or(u32::MAX))
    }
}

/// How often is asked whether to go on.
pub const LOOK: Duration = Duration::from_secs(1);
const MAX_TOKEN: usize = 64 << 10;
/// Where registries say the digest of what they give (distribution spec, "Pulling manifests").
const DIGEST: &str = "docker-content-digest";
const MAX_REDIRECTS: usize = 5;
/// Tries of one thing, if the line or the registry fails; each waits twice as long as the one before.
const TRIES: u32 = 6;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Whether somebody still wants it, and there is room for it.
pub type GoOn<'a> = &'a dyn Fn() -> Result<(), String>;

/// A repository of another registry, and what opens it.
pub struct Source {
    /// What images call the registry, and where it is.
    name: String,
    address: String,
    path: String,
    login: Option<(String, String)>,
    /// What it wanted to see, once it said so.
    authorization: Option<HeaderValue>,
}

impl Source {
    pub fn new(name: &str, address: &str, path: &str, login: Option<(String, String)>) -> Self {
        Source {
            name: name.to_owned(),
            address: address.to_owned(),
            path: path.to_owned(),
            login,
            authorization: None,
        }
    }

    fn url(&self, rest: &str) -> String {
        let scheme = match is_this_machine(&self.address) {
            true => "http",
            false => "https",
        };
        format!("{scheme}://{}/v2/{}/{rest}", self.address, self.path)
    }

    /// Whether whoever named it trusts this address, too: it is the registry's own, or that is on this machine.
    fn trusts(&self, host: &str) -> bool {
        host == self.address || is_this_machine(&self.address)
    }
}

/// Why something was not had.
enum Failure {
    /// Another try may have it, after so long.
    Again(String, Option<Duration>),
    Final(String),
}

use Failure::{Again, Final};

/// Why a registry does not say where a tag leads, and for how long it does not want to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub reason: String,
    pub later: Option<Duration>,
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        match failure {
            Again(reason, later) => Trouble { reason, later },
            Final(reason) => Trouble {
                reason,
                later: None,
            },
        }
    }
}

/// What is asked for, beside an address.
#[derive(Clone, Default)]
struct Wanted<'a> {
    method: Method,
    accept: Option<&'a str>,
    range: Option<&'a str>,
}

/// The kinds of manifests that are understood here.
fn kinds() -> String {
    [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(", ")
}

type Line = legacy::Client<HttpsConnector<HttpConnector<Resolver>>, Empty<Bytes>>;

pub struct Client {
    /// To the registry itself, which may be anywhere.
    anywhere: Line,
    /// To where it sends us: what of this server's network may be reached, a registry does not say.
    public: Line,
    bounds: Bounds,
}

/// The system's names. Addresses are looked at here, where they are connected to: a second answer may be another.
#[derive(Clone)]
struct Resolver {
    only_public: bool,
}

impl tower::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let only_public = self.only_public;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let good: Vec<SocketAddr> = found
                .filter(|address| !only_public || is_public(address.ip()))
                .collect();
            match good.is_empty() {
                true if only_public => Err(io::Error::other("it has no public address")),
                _ => Ok(good.into_iter()),
            }
        })
    }
}

impl Client {
    /// Trusts the machine's roots, and those of `extra`.
    pub fn new(extra: Option<&Path>) -> Result<Self, String> {
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_root_certificates(roots(extra)?)
            .with_no_client_auth();
        let line = |only_public: bool| -> Line {
            let mut tcp = HttpConnector::new_with_resolver(Resolver { only_public });
            tcp.enforce_http(false);
            tcp.set_connect_timeout(Some(CONNECT));
            let connector = HttpsConnectorBuilder::new()
                .with_tls_config(tls.clone())
                // Plain only to this machine, see `checked`.
                .https_or_http()
                .enable_http1()
                .wrap_connector(tcp);
            legacy::Client::builder(TokioExecutor::new()).build(connector)
        };
        Ok(Client {
            anywhere: line(false),
            public: line(true),
            bounds: BOUNDS,
        })
    }

    /// A manifest by tag or digest, with its media type.
    pub async fn manifest(
        &self,
        source: &mut Source,
        reference: &str,
        go_on: GoOn<'_>,
    ) -> Result<(Vec<u8>, Option<String>), String> {
        let url = source.url(&format!("manifests/{reference}"));
        let kinds = kinds();
        let mut pauses = Pauses::new(self.bounds.pause);
        loop {
            let got = self.try_manifest(source, &url, &kinds).await;
            match got {
                Ok(got) => return Ok(got),
                Err(failure) => pauses.take(failure, go_on).await?,
            }
        }
    }

    async fn try_manifest(
        &self,
        source: &mut Source,
        url: &str,
        kinds: &str,
    ) -> Result<(Vec<u8>, Option<String>), Failure> {
        let wanted = Wanted {
            accept: Some(kinds),
            ..Wanted::default()
        };
        let (response, host) = self.get(source, url, &wanted).await?;
        let response = expect(response, &host, &source.name, &[StatusCode::OK])?;
        let media_type = response.headers().get(CONTENT_TYPE);
        let media_type = media_type.and_then(|value| value.to_str().ok());
        let media_type = media_type.map(str::to_owned);
        let bytes = self
            .read(response.into_body(), MAX_MANIFEST as usize, &host)
            .await?;
        Ok((bytes.to_vec(), media_type))
    }

    /// The digest of what a tag leads to, of an index as a whole; one try. Registries count what is fetched, so it is not
    /// fetched unless it must be. Whoever fetches by the digest finds out whether it was the right one.
    pub async fn digest(&self, source: &mut Source, tag: &str) -> Result<Digest, Trouble> {
        let url = source.url(&format!("manifests/{tag}"));
        let kinds = kinds();
        let wanted = Wanted {
            method: Method::HEAD,
            accept: Some(&kinds),
            range: None,
        };
        let (response, host) = self.get(source, &url, &wanted).await?;
        let said = response.headers().get(DIGEST);
        let said = said.and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
        match (response.status(), said) {
            (StatusCode::OK, Some(digest)) => return Ok(digest),
            // It does not say, or knows no HEAD.
            (StatusCode::OK | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED, _) => {}
            _ => {
                expect(response, &host, &source.name, &[StatusCode::OK])?;
            }
        }
        let (bytes, _) = self.try_manifest(source, &url, &kinds).await?;
        Ok(Digest::of(Algorithm::Sha256, &bytes))
    }

    /// A blob (digest and size) into a file, from where that ends.
    pub async fn blob(
        &self,
        source: &mut Source,
        (digest, size): (&str, u64),
        path: &Path,
        go_on: GoOn<'_>,
    ) -> Result<(), String> {
        let url = source.url(&format!("blobs/{digest}"));
        let mut pauses = Pauses::new(self.bounds.pause);
        let mut reached = length(path);
        let until = Instant::now() + self.bounds.whole(size);
        let name = source.name.clone();
        let go_on = || match Instant::now() < until {
            true => go_on(),
            false => Err(format!(
                "{name} is too slow: {} of {size} bytes came in time",
                length(path)
            )),
        };
        loop {
            if length(path) == size && path.exists() {
                return Ok(());
            }
            if let Err(failure) = self.try_blob(source, &url, size, path, &go_on).await {
                // A line that breaks again and again, and brings much in between, gets there.
                let have = length(path);
                if have >= reached.saturating_add(self.bounds.least) {
                    reached = have;
                    pauses = Pauses::new(self.bounds.pause);
                }
                pauses.take(failure, &go_on).await?;
            }
        }
    }

    async fn try_blob(
        &self,
        source: &mut Source,
        url: &str,
        size: u64,
        path: &Path,
        go_on: GoOn<'_>,
    ) -> Result<(), Failure> {
        let disk = |error: io::Error| {
            // Most likely the disk is full; it must not stay so for what came so far.
            let _ = std::fs::remove_file(path);
            Final(format!("a part cannot be written: {error}"))
        };
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(disk)?;
        let mut have = file.metadata().map_err(disk)?.len();
        if have > size {
            file.set_len(0).map_err(disk)?;
            have = 0;
        }
        let range = (have > 0).then(|| format!("bytes={have}-"));
        let wanted = Wanted {
            range: range.as_deref(),
            ..Wanted::default()
        };
        let (response, host) = self.get(source, url, &wanted).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            file.set_len(0).map_err(disk)?;
            return Err(Again(format!("{host} does not go on where it broke"), None));
        }
        let good = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
        let response = expect(response, &host, &source.name, &good)?;
        if response.status() == StatusCode::OK && have > 0 {
            // It begins anew.
            file.set_len(0).map_err(disk)?;
            have = 0;
        }
        let mut body = response.into_body();
        let (mut looked, mut since, mut had) = (Instant::now(), Instant::now(), have);
        loop {
            if looked.elapsed() >= LOOK {
                go_on().map_err(Final)?;
                looked = Instant::now();
            }
            if since.elapsed() >= self.bounds.stall {
                if have < had.saturating_add(self.bounds.least) {
                    let (came, within) = (have - had, show_time(self.bounds.stall));
                    return Err(Again(
                        format!("{host} is too slow: {came} bytes came in {within}"),
                        None,
                    ));
                }
                (since, had) = (Instant::now(), have);
            }
            let frame = match timeout(LOOK.min(self.bounds.stall), body.frame()).await {
                Err(_) => continue,
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    return Err(Again(format!("the line to {host} broke: {error}"), None));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let Some(bytes) = frame.data_ref() else {
                continue;
            };
            have += bytes.len() as u64;
            if have > size {
                let _ = file.set_len(0);
                return Err(Final(format!(
                    "{host} gives more than the {size} bytes it said"
                )));
            }
            file.write_all(bytes).map_err(disk)?;
        }
        match have == size {
            true => Ok(()),
            false => Err(Again(
                format!("{host} ended after {have} of {size} bytes"),
                None,
            )),
        }
    }

    /// Asks; shows who we are where that is wanted, and goes where it is sent. Any other status is an answer.
    async fn get(
        &self,
        source: &mut Source,
        url: &str,
        wanted: &Wanted<'_>,
    ) -> Result<(Response<Incoming>, String), Failure> {
        let own = checked(url, source)?;
        let mut refused = false;
        loop {
            let authorization = source.authorization.clone();
            let (response, host) = self
                .follow(source, url, authorization.as_ref(), wanted)
                .await?;
            // Who asks from elsewhere is shown nothing: it would say itself where to.
            if response.status() != StatusCode::UNAUTHORIZED || refused || host != own {
                return Ok((response, host));
            }
            refused = true;
            let challenge = Challenge::of(&response);
            source.authorization = self.answer(source, challenge, &host).await?;
            if source.authorization.is_none() {
                return Ok((response, host));
            }
        }
    }

    async fn follow(
        &self,
        source: &Source,
        url: &str,
        authorization: Option<&HeaderValue>,
        wanted: &Wanted<'_>,
    ) -> Result<(Response<Incoming>, String), Failure> {
        let mut url = url.to_owned();
        let first = checked(&url, source)?;
        for _ in 0..=MAX_REDIRECTS {
            let host = checked(&url, source)?;
            // Who is sent to another host needs nothing of ours there.
            let authorization = authorization.filter(|_| host == first);
            let line = self.line(source, &host);
            let place = (url.as_str(), host.as_str());
            let response = self.ask(line, place, authorization, wanted).await?;
            if !response.status().is_redirection() {
                return Ok((response, host));
            }
            let to = response.headers().get(LOCATION);
            let to = to.and_then(|value| value.to_str().ok()).unwrap_or_default();
            url = match to.starts_with('/') {
                true => {
                    let scheme = url.split("://").next().unwrap_or("https");
                    format!("{scheme}://{host}{to}")
                }
                false => to.to_owned(),
            };
        }
        Err(Final(format!("{first} sends us from one place to another")))
    }

    fn line(&self, source: &Source, host: &str) -> &Line {
        match source.trusts(host) {
            true => &self.anywhere,
            false => &self.public,
        }
    }

    /// What is shown to who wants to know who we are: name and password, or a token that they are changed for.
    async fn answer(
        &self,
        source: &Source,
        challenge: Option<Challenge>,
        host: &str,
    ) -> Result<Option<HeaderValue>, Failure> {
        let basic = source
            .login
            .as_ref()
            .map(|(user, password)| basic(user, password));
        let (realm, service) = match challenge {
            None => return Ok(None),
            Some(Challenge::Basic) => return basic.transpose(),
            Some(Challenge::Bearer { realm, service }) => (realm, service),
        };
        let mut url = format!("{realm}{}", if realm.contains('?') { '&' } else { '?' });
        if let Some(service) = service {
            url.push_str(&format!("service={}&", escaped(&service)));
        }
        let scope = format!("repository:{}:pull", source.path);
        url.push_str(&format!("scope={}", escaped(&scope)));
        let at = checked(&url, source)?;
        let basic = basic.transpose()?;
        let line = self.line(source, &at);
        let place = (url.as_str(), at.as_str());
        let response = self
            .ask(line, place, basic.as_ref(), &Wanted::default())
            .await?;
        let response = expect(response, &at, &source.name, &[StatusCode::OK])?;
        let bytes = self.read(response.into_body(), MAX_TOKEN, &at).await?;
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|_| Final(format!("{at} gives no token for {host}")))?;
        let token = token.token.or(token.access_token);
        let token = token.ok_or_else(|| Final(format!("{at} gives no token for {host}")))?;
        sensitive(&format!("Bearer {token}")).map(Some)
    }

    async fn ask(
        &self,
        line: &Line,
        (url, host): (&str, &str),
        authorization: Option<&HeaderValue>,
        wanted: &Wanted<'_>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::builder()
            .method(wanted.method.clone())
            .uri(url)
            .header(USER_AGENT, AGENT);
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        if let Some(kinds) = wanted.accept {
            request = request.header(ACCEPT, kinds);
        }
        if let Some(range) = wanted.range {
            request = request.header(RANGE, range);
        }
        let odd = |_| Final(format!("{host} gave an address that is none"));
        let request = request.body(Empty::new()).map_err(odd)?;
        match timeout(self.bounds.answer, line.request(request)).await {
            Err(_) => Err(Again(format!("{host} does not answer"), None)),
            Ok(Err(error)) => {
                let why = crate::images::causes(&error);
                Err(Again(format!("{host} cannot be reached: {why}"), None))
            }
            Ok(Ok(response)) => Ok(response),
        }
    }

    /// The whole of what is small.
    async fn read(&self, body: Incoming, bound: usize, host: &str) -> Result<Bytes, Failure> {
        match timeout(self.bounds.stall, Limited::new(body, bound).collect()).await {
            Err(_) => Err(Again(format!("{host} is too slow"), None)),
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Final(
                format!("{host} answers with more than {bound} bytes"),
            )),
            Ok(Err(error)) => Err(Again(format!("the line to {host} broke: {error}"), None)),
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// How a registry asks who we are (RFC 9110, 11.6.1; the distribution's "Token Authentication").
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    fn of<T>(response: &Response<T>) -> Option<Self> {
        let values = response.headers().get_all(WWW_AUTHENTICATE);
        let texts = values.iter().filter_map(|value| value.to_str().ok());
        let mut all: Vec<Self> = texts.filter_map(Self::parse).collect();
        // A token is worth less to who steals it.
        all.sort_by_key(|one| *one == Challenge::Basic);
        all.into_iter().next()
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        let mut rest = rest.trim_start();
        while let Some((key, after)) = rest.split_once("=\"") {
            let (value, more) = after.split_once('"')?;
            match key.trim_start_matches([',', ' ']) {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                _ => {}
            }
            rest = more;
        }
        realm.map(|realm| Challenge::Bearer { realm, service })
    }
}

/// How long is waited between tries.
struct Pauses {
    first: Duration,
    tries: u32,
}

impl Pauses {
    fn new(first: Duration) -> Self {
        Pauses { first, tries: 0 }
    }

    /// Waits, if there is to be another try.
    async fn take(&mut self, failure: Failure, go_on: GoOn<'_>) -> Result<(), String> {
        let (reason, wanted) = match failure {
            Final(reason) => return Err(reason),
            Again(reason, wanted) => (reason, wanted),
        };
        self.tries += 1;
        if self.tries >= TRIES {
            return Err(reason);
        }
        let own = self.first * 2u32.pow(self.tries - 1);
        let until = Instant::now() + wanted.unwrap_or(own).clamp(own, LONGEST_PAUSE);
        loop {
            go_on()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            sleep(left.min(LOOK)).await;
        }
    }
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |found| found.len())
}

fn expect(
    response: Response<Incoming>,
    host: &str,
    name: &str,
    good: &[StatusCode],
) -> Result<Response<Incoming>, Failure> {
    let status = response.status();
    if good.contains(&status) {
        return Ok(response);
    }
    let later = response.headers().get(RETRY_AFTER);
    let later = later.and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
    let later = later.map(Duration::from_secs);
    Err(match status {
        StatusCode::TOO_MANY_REQUESTS => Again(format!("{host} is asked too often"), later),
        status if status.is_server_error() => Again(format!("{host} answers with {status}"), later),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Final(format!(
            "{host} does not let us have it ({status}): `hutong registry login {name}` stores a name and a password"
        )),
        StatusCode::NOT_FOUND => Final(format!(
            "{host} has no such image, or does not show it to whoever asks"
        )),
        status => Final(format!("{host} answers with {status}")),
    })
}

fn sensitive(text: &str) -> Result<HeaderValue, Failure> {
    let value = HeaderValue::from_str(text);
    let mut value = value.map_err(|_| Final("a token has characters that none may have".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, Failure> {
    sensitive(&format!(
        "Basic {}",
        STANDARD.encode(format!("{user}:{password}"))
    ))
}

/// Host and port of an address that may be asked: passwords and tokens travel there, so plain HTTP stays on this machine,
/// and a registry that is elsewhere sends nobody to this machine or its network. What names stand for is looked at
/// where they are connected to ([`Resolver`]).
fn checked(url: &str, source: &Source) -> Result<String, Failure> {
    let odd = || Final("a registry gave an address that is none".into());
    let uri: Uri = url.parse().map_err(|_| odd())?;
    let authority = uri.authority().ok_or_else(odd)?;
    if authority.as_str().contains('@') {
        return Err(odd());
    }
    let host = authority.as_str().to_owned();
    if let Some(address) = literal(&host)
        && !source.trusts(&host)
        && !is_public(address)
    {
        let name = &source.name;
        return Err(Final(format!(
            "{name} sends us to {host}, which is no public address"
        )));
    }
    match uri.scheme_str() {
        Some("https") => Ok(host),
        Some("http") if is_this_machine(&host) && is_this_machine(&source.address) => Ok(host),
        _ => Err(Final(format!("{host} is to be asked over HTTPS"))),
    }
}

/// An address that needs no name.
fn literal(address: &str) -> Option<IpAddr> {
    let host = without_port(address);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok()
}

fn without_port(address: &str) -> &str {
    match address.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => address,
    }
}

/// Whether an address is neither private nor special. Of IPv6 (RFC 4291, IANA's registry) that is global unicast without
/// what holds an address of IPv4 or is for documents; by way of a translator (RFC 6052), what it stands for counts.
fn is_public(address: IpAddr) -> bool {
    let v6 = match address.to_canonical() {
        IpAddr::V4(v4) => return egress::is_public(v4),
        IpAddr::V6(v6) => v6,
    };
    let within =
        |prefix: Ipv6Addr, bits: u32| (v6.to_bits() ^ prefix.to_bits()).leading_zeros() >= bits;
    if within(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96) {
        return egress::is_public(Ipv4Addr::from_bits(v6.to_bits() as u32));
    }
    let not = [
        // Special purposes, Teredo among them; documents; 6to4.
        (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
        (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
        (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    ];
    within(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3)
        && !not.into_iter().any(|(prefix, bits)| within(prefix, bits))
}

fn is_this_machine(address: &str) -> bool {
    without_port(address) == "localhost" || literal(address).is_some_and(|ip| ip.is_loopback())
}

/// Whether a registry is on this machine or at an address of its network. What names stand for is not asked here.
pub fn is_inside(address: &str) -> bool {
    is_this_machine(address) || literal(address).is_some_and(|ip| !is_public(ip))
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(byte as char);
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

fn roots(extra: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = extra {
        let failed = |why: String| format!("{}: {why}", path.display());
        let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| failed(error.to_string()))?;
        }
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = Challenge::parse(
            "Bearer realm=\"https://auth.example.com/token\",service=\"registry\",scope=\"a,b\"",
        );
        assert_eq!(
            bearer,
            Some(Challenge::Bearer {
                realm: "https://auth.example.com/token".into(),
                service: Some("registry".into()),
            })
        );
        assert_eq!(
            Challenge::parse("Basic realm=\"x\""),
            Some(Challenge::Basic)
        );
        for odd in [
            "",
            "Bearer",
            "Bearer realm=x",
            "Bearer service=\"a\"",
            "Digest x",
        ] {
            assert_eq!(Challenge::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn plain_http_stays_on_this_machine() {
        let here = Source::new("localhost:5000", "localhost:5000", "x", None);
        for good in [
            "https://example.com/x",
            "https://10.0.0.1/x",
            "http://127.0.0.1:5000/v2/",
            "http://localhost:5000/",
            "http://[::1]:5000/",
        ] {
            assert!(checked(good, &here).is_ok(), "{good}");
        }
        for bad in [
            "http://example.com/",
            "http://localhost.example.com/",
            "http://me:pw@127.0.0.1/",
            "ftp://127.0.0.1/",
            "/x",
            "",
        ] {
            assert!(checked(bad, &here).is_err(), "{bad}");
        }
        let url = Source::new("ghcr.io", "ghcr.io", "me/x", None).url("manifests/1");
        assert_eq!(url, "https://ghcr.io/v2/me/x/manifests/1");
        let url = Source::new("here", "localhost:5000", "x", None).url("blobs/y");
        assert_eq!(url, "http://localhost:5000/v2/x/blobs/y");
    }

    #[test]
    fn a_registry_elsewhere_sends_nobody_to_this_network() {
        let elsewhere = Source::new("ghcr.io", "ghcr.io", "me/x", None);
        for good in ["https://example.com/x", "https://93.184.216.34/"] {
            assert!(checked(good, &elsewhere).is_ok(), "{good}");
        }
        for bad in [
            "http://127.0.0.1:5000/",
            "http://localhost:5000/",
            "https://127.0.0.1/",
            "https://169.254.169.254/latest",
            "https://10.0.0.1:8443/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://[fd00::1]:443/",
            "https://[64:ff9b::a00:1]/",
        ] {
            assert!(checked(bad, &elsewhere).is_err(), "{bad}");
        }
        // Who named it, named its address.
        let own = Source::new("10.0.0.1:5000", "10.0.0.1:5000", "x", None);
        assert!(checked("https://10.0.0.1:5000/v2/", &own).is_ok());
        assert!(checked("https://10.0.0.2:5000/v2/", &own).is_err());
        for public in ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"] {
            assert!(is_public(public.parse().expect("good")), "{public}");
        }
        for not in [
            "192.168.1.1",
            "::",
            "fe80::1",
            "ff02::1",
            "2002:a00:1::",
            "2001:db8::1",
            "::10.0.0.1",
        ] {
            assert!(!is_public(not.parse().expect("good")), "{not}");
        }
    }

    #[tokio::test]
    async fn names_are_looked_at_where_they_are_connected_to() {
        use std::str::FromStr;
        use tower::Service;
        for (only_public, good) in [(true, false), (false, true)] {
            let name = Name::from_str("localhost").expect("a name");
            let found = Resolver { only_public }.call(name).await;
            assert_eq!(found.is_ok(), good);
        }
    }

    /// A registry that gives these answers, one a line, and then says what it was asked. Where it is, is `ADDRESS` in them.
    fn registry(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        use std::io::{BufRead, BufReader};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let own = address.clone();
        let serving = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut line, _) = listener.accept().expect("a line");
                let copy = line.try_clone().expect("a copy");
                let head: Vec<String> = BufReader::new(copy)
                    .lines()
                    .map_while(Result::ok)
                    .take_while(|text| !text.is_empty())
                    .collect();
                asked.push(head.join("\n"));
                let answer = answer.replace("ADDRESS", &own);
                line.write_all(answer.as_bytes()).expect("written");
            }
            asked
        });
        (address, serving)
    }

    #[tokio::test]
    async fn where_a_tag_leads_is_asked_without_fetching_it() {
        let answer = |status: &str, more: &str, body: &str| {
            format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{more}\r\n{body}",
                body.len()
            )
        };
        let said = format!("sha256:{}", "a".repeat(64));
        let digest = format!("Docker-Content-Digest: {said}\r\n");
        let wanted = "WWW-Authenticate: Basic realm=\"x\"\r\n";
        let (address, serving) = registry(vec![
            answer("401 Unauthorized", wanted, ""),
            answer("200 OK", &digest, ""),
            // One that does not say.
            answer("200 OK", "", ""),
            answer("200 OK", "", "{}"),
            answer("429 Too Many Requests", "Retry-After: 90\r\n", ""),
            answer("404 Not Found", "", ""),
        ]);
        let client = Client::new(None).expect("a client");
        let login = Some(("me".to_owned(), "hush".to_owned()));
        let mut source = Source::new(&address, &address, "shop", login);
        let found = client.digest(&mut source, "v1").await.expect("it says");
        assert_eq!(found.to_string(), said);
        let found = client.digest(&mut source, "v1").await.expect("it is had");
        assert_eq!(found, Digest::of(Algorithm::Sha256, b"{}"));
        let busy = client.digest(&mut source, "v1").await.expect_err("busy");
        assert_eq!(busy.later, Some(Duration::from_secs(90)));
        let gone = client.digest(&mut source, "v1").await.expect_err("gone");
        assert!(gone.reason.contains("no such image") && gone.later.is_none());
        let asked = serving.join().expect("no panic");
        let methods: Vec<&str> = asked.iter().filter_map(|head| head.get(..4)).collect();
        assert_eq!(methods, ["HEAD", "HEAD", "HEAD", "GET ", "HEAD", "HEAD"]);
        assert!(
            asked
                .iter()
                .all(|head| head.contains("/v2/shop/manifests/v1"))
        );
        let shown = |head: &&String| {
            head.to_lowercase()
                .contains("authorization: basic bwu6ahvzaa")
        };
        assert_eq!(asked.iter().filter(shown).count(), 5);
    }

    #[tokio::test]
    async fn a_token_that_expired_is_changed_for_another() {
        let answer = |status: &str, more: &str, body: &str| {
            format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{more}\r\n{body}",
                body.len()
            )
        };
        let said = format!("sha256:{}", "a".repeat(64));
        let digest = format!("Docker-Content-Digest: {said}\r\n");
        let wanted = "WWW-Authenticate: Bearer realm=\"http://ADDRESS/token\",service=\"x\"\r\n";
        let (address, serving) = registry(vec![
            answer("401 Unauthorized", wanted, ""),
            answer("200 OK", "", "{\"token\":\"first\"}"),
            answer("200 OK", &digest, ""),
            // It is over.
            answer("401 Unauthorized", wanted, ""),
            answer("200 OK", "", "{\"token\":\"second\"}"),
            answer("200 OK", &digest, ""),
            // And no other one helps: it is not asked for ever.
            answer("401 Unauthorized", wanted, ""),
            answer("200 OK", "", "{\"token\":\"third\"}"),
            answer("401 Unauthorized", wanted, ""),
        ]);
        let client = Client::new(None).expect("a client");
        let mut source = Source::new(&address, &address, "shop", None);
        for _ in 0..2 {
            let found = client.digest(&mut source, "v1").await.expect("it says");
            assert_eq!(found.to_string(), said);
        }
        let refused = client.digest(&mut source, "v1").await.expect_err("refused");
        assert!(refused.reason.contains("registry login"), "{refused:?}");
        assert!(!refused.reason.contains("third"), "{refused:?}");
        let asked = serving.join().expect("no panic");
        let shown: Vec<Option<&str>> = asked
            .iter()
            .map(|head| {
                let mut words = ["first", "second", "third"].into_iter();
                words.find(|word| head.contains(&format!("Bearer {word}")))
            })
            .collect();
        let (first, second) = (Some("first"), Some("second"));
        let third = Some("third");
        assert_eq!(
            shown,
            [None, None, first, first, None, second, second, None, third]
        );
    }

    /// A registry that has one blob, and for each line does with it what `give` says, which is told from where on.
    fn slow(
        give: impl Fn(&mut std::net::TcpStream, usize) + Send + 'static,
    ) -> (String, Client, std::path::PathBuf, tempfile::TempDir) {
        use std::io::{BufRead, BufReader};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for mut line in listener.incoming().flatten() {
                let copy = line.try_clone().expect("a copy");
                let from = BufReader::new(copy)
                    .lines()
                    .map_while(Result::ok)
                    .take_while(|text| !text.is_empty())
                    .filter_map(|text| {
                        let (key, value) = text.split_once(": ")?;
                        let range = key.eq_ignore_ascii_case("range").then_some(value)?;
                        let from = range.strip_prefix("bytes=")?.strip_suffix('-')?;
                        from.parse::<usize>().ok()
                    })
                    .last();
                give(&mut line, from.unwrap_or(0));
                open.push(line);
            }
        });
        let place = tempfile::tempdir().expect("tempdir");
        let mut client = Client::new(None).expect("a client");
        client.bounds = Bounds {
            stall: Duration::from_millis(200),
            least: 50,
            pause: Duration::from_millis(1),
            ..BOUNDS
        };
        (address, client, place.path().join("part"), place)
    }

    const BLOB: usize = 1000;

    fn begin_blob(line: &mut std::net::TcpStream, from: usize) {
        let status = match from {
            0 => "200 OK",
            _ => "206 Partial Content",
        };
        let left = BLOB - from;
        let head =
            format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {left}\r\n\r\n");
        let _ = line.write_all(head.as_bytes());
    }

    #[tokio::test]
    async fn a_registry_that_gives_no_more_is_given_up() {
        let (address, client, path, _place) = slow(|line, from| {
            begin_blob(line, from);
            // And then nothing, for as long as anybody listens.
            let _ = line.write_all(b"x");
        });
        let mut source = Source::new(&address, &address, "shop", None);
        let wanted = ("sha256:x", BLOB as u64);
        let got = client.blob(&mut source, wanted, &path, &|| Ok(())).await;
        let why = got.expect_err("it gives nothing");
        assert!(why.contains("too slow"), "{why}");
        // Who does not want it any more does not wait for that.
        let no = || -> Result<(), String> { Err("enough".to_owned()) };
        let got = client.blob(&mut source, wanted, &path, &no).await;
        assert_eq!(got.expect_err("nobody wants it"), "enough");
    }

    #[tokio::test]
    async fn a_line_that_breaks_again_and_again_gets_there() {
        let (address, mut client, path, _place) = slow(|line, from| {
            begin_blob(line, from);
            // More often than there are tries of what brings nothing.
            let to = (from + BLOB / 20).min(BLOB);
            for byte in from..to {
                let _ = line.write_all(&[byte as u8]);
            }
            let _ = line.shutdown(std::net::Shutdown::Both);
        });
        // Whatever this machine does meanwhile.
        client.bounds.stall = BOUNDS.stall;
        let mut source = Source::new(&address, &address, "shop", None);
        let wanted = ("sha256:x", BLOB as u64);
        let got = client.blob(&mut source, wanted, &path, &|| Ok(())).await;
        got.expect("it comes in the end");
        let found = std::fs::read(&path).expect("it is there");
        let all: Vec<u8> = (0..BLOB).map(|byte| byte as u8).collect();
        assert_eq!(found, all);
    }

    #[test]
    fn a_blob_has_so_long_in_all() {
        let hours = |size: u64| BOUNDS.whole(size).as_secs() / 3600;
        // A megabyte a minute, and some time beside that.
        assert_eq!((hours(0), hours(60 << 20), hours(6000 << 20)), (0, 1, 100));
        assert!(BOUNDS.whole(u64::MAX) > BOUNDS.whole(1 << 40));
    }

    #[test]
    fn passwords_are_not_shown() {
        let Ok(value) = basic("me", "hush") else {
            panic!("plain words");
        };
        assert_eq!(value, "Basic bWU6aHVzaA==");
        assert!(!format!("{value:?}").contains("bWU6"));
        assert_eq!(escaped("repository:a/b:pull"), "repository%3Aa%2Fb%3Apull");
    }
}
