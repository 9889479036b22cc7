//! The endpoints of the distribution spec. A path is taken apart from its end, because names of repositories have
//! slashes; who may is asked (`Access`) before anything is looked at; each kind of endpoint has a file.

mod blobs;
mod discovery;
mod error;
mod manifests;
mod uploads;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;

use crate::Registry;
use crate::access::{Action, Credentials, Verdict};
use crate::digest::Digest;
use crate::error::StoreError;
use crate::name::{Reference, RepositoryName, UploadId};
use error::{Code, Refusal};

const CONTENT_DIGEST: &str = "docker-content-digest";
/// Asked for by old clients.
const API_VERSION: &str = "docker-distribution-api-version";

type Result<T, E = Refusal> = std::result::Result<T, E>;

/// The registry's endpoints, for the top of a server: `/v2/` is where clients look, whatever the name of the registry.
pub fn router(registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/v2", any(serve))
        .route("/v2/", any(serve))
        .route("/v2/{*rest}", any(serve))
        .with_state(registry)
}

/// Answers one request, wherever it came from: what [`router`] does.
pub async fn serve(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let mut response = match answer(&registry, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    };
    response
        .headers_mut()
        .insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

/// What a path names. What is inside is not checked yet, but for the repository.
#[derive(Debug, PartialEq, Eq)]
enum What<'a> {
    Blob(&'a str),
    Manifest(&'a str),
    /// Where uploads begin.
    Uploads,
    Upload(&'a str),
    Tags,
    Referrers(&'a str),
}

/// `rest` is the path behind `/v2/`.
fn take_apart(rest: &str) -> Option<(&str, What<'_>)> {
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Some((name, What::Tags));
    }
    let (head, last) = rest.rsplit_once('/')?;
    if let Some(name) = head.strip_suffix("/blobs/uploads") {
        let what = if last.is_empty() {
            What::Uploads
        } else {
            What::Upload(last)
        };
        return Some((name, what));
    }
    if let Some(name) = head.strip_suffix("/blobs") {
        // Without the slash at the end, as some write it.
        let what = if last == "uploads" {
            What::Uploads
        } else {
            What::Blob(last)
        };
        return Some((name, what));
    }
    if let Some(name) = head.strip_suffix("/manifests") {
        return Some((name, What::Manifest(last)));
    }
    let name = head.strip_suffix("/referrers")?;
    Some((name, What::Referrers(last)))
}

impl What<'_> {
    fn methods(&self) -> &'static [&'static str] {
        match self {
            What::Blob(_) => &["GET", "HEAD", "DELETE"],
            What::Manifest(_) => &["GET", "HEAD", "PUT", "DELETE"],
            What::Uploads => &["POST"],
            What::Upload(_) => &["GET", "PATCH", "PUT", "DELETE"],
            What::Tags | What::Referrers(_) => &["GET", "HEAD"],
        }
    }

    fn action(&self, method: &Method) -> Action {
        match self {
            What::Uploads | What::Upload(_) => Action::Push,
            _ if *method == Method::PUT => Action::Push,
            _ if *method == Method::DELETE => Action::Delete,
            _ => Action::Pull,
        }
    }
}

async fn answer(registry: &Arc<Registry>, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let credentials = Credentials::of(&parts.headers);
    // A digest's colon is all that a client may write otherwise: nothing else in these paths needs it.
    let path = parts.uri.path().replace("%3A", ":").replace("%3a", ":");
    let rest = path.strip_prefix("/v2").unwrap_or_default();
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    if rest.is_empty() {
        check_method(&["GET", "HEAD"], &parts.method)?;
        authorize(registry, credentials, "", Action::Pull).await?;
        let json = [(header::CONTENT_TYPE, "application/json")];
        return Ok((json, "{}").into_response());
    }
    let Some((name, what)) = take_apart(rest) else {
        return Err(Refusal::new(
            404,
            Code::NameUnknown,
            "there is no such endpoint",
        ));
    };
    let name = name
        .parse::<RepositoryName>()
        .map_err(|error| Refusal::new(400, Code::NameInvalid, error.to_string()))?;
    check_method(what.methods(), &parts.method)?;
    let action = what.action(&parts.method);
    authorize(registry, credentials.clone(), name.as_str(), action).await?;
    let call = Call {
        registry: registry.clone(),
        name,
        credentials,
        parts,
    };
    let method = call.parts.method.clone();
    match what {
        What::Blob(text) => {
            let digest = text.parse::<Digest>()?;
            if method == Method::DELETE {
                blobs::delete(call, digest).await
            } else {
                blobs::get(call, digest).await
            }
        }
        What::Manifest(text) => {
            let reference = text.parse::<Reference>()?;
            if method == Method::PUT {
                manifests::put(call, reference, body).await
            } else if method == Method::DELETE {
                manifests::delete(call, reference).await
            } else {
                manifests::get(call, reference).await
            }
        }
        What::Uploads => uploads::begin(call, body).await,
        What::Upload(text) => {
            let id = text
                .parse::<UploadId>()
                .map_err(|()| StoreError::UploadUnknown)?;
            if method == Method::PATCH {
                uploads::patch(call, id, body).await
            } else if method == Method::PUT {
                uploads::put(call, id, body).await
            } else if method == Method::DELETE {
                uploads::cancel(call, id).await
            } else {
                uploads::status(call, id).await
            }
        }
        What::Tags => discovery::tags(call).await,
        What::Referrers(text) => {
            let subject = text.parse::<Digest>()?;
            discovery::referrers(call, subject).await
        }
    }
}

/// A request that may do what it asks for.
struct Call {
    registry: Arc<Registry>,
    name: RepositoryName,
    credentials: Option<Credentials>,
    parts: Parts,
}

impl Call {
    /// Runs on a thread that may wait.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Registry, &RepositoryName) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T> {
        let (registry, name) = (self.registry.clone(), self.name.clone());
        Ok(blocking(move || work(&registry, &name)).await??)
    }

    fn is_head(&self) -> bool {
        self.parts.method == Method::HEAD
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    /// Content-Length.
    fn length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH)?.parse().ok()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!("a request was not finished: {error}");
        Refusal::internal()
    })
}

fn check_method(allowed: &[&str], method: &Method) -> Result<()> {
    if allowed.contains(&method.as_str()) {
        return Ok(());
    }
    let text = "the method is not for this endpoint";
    Err(Refusal::new(405, Code::Unsupported, text).with(header::ALLOW, allowed.join(", ")))
}

/// The one place where the caller's rules are asked.
async fn verdict(
    registry: &Arc<Registry>,
    credentials: Option<Credentials>,
    name: &str,
    action: Action,
) -> Result<Verdict> {
    let (registry, name) = (registry.clone(), name.to_owned());
    // Passwords take their time.
    blocking(move || registry.access.may(credentials.as_ref(), &name, action)).await
}

async fn authorize(
    registry: &Arc<Registry>,
    credentials: Option<Credentials>,
    name: &str,
    action: Action,
) -> Result<()> {
    match verdict(registry, credentials, name, action).await? {
        Verdict::Allowed => Ok(()),
        Verdict::Unknown => {
            let plain = |c: &char| !c.is_control() && !matches!(c, '"' | '\\') && c.is_ascii();
            let realm: String = registry
                .store
                .settings
                .realm
                .chars()
                .filter(plain)
                .collect();
            let challenge = format!("Basic realm=\"{realm}\", charset=\"UTF-8\"");
            let text = "a name and a password are needed, or others";
            Err(Refusal::new(401, Code::Unauthorized, text)
                .with(header::WWW_AUTHENTICATE, challenge))
        }
        Verdict::Forbidden => {
            let text = "these credentials may not do that";
            Err(Refusal::new(403, Code::Denied, text))
        }
        Verdict::Later => {
            let text = "it cannot be looked up now who may do that; try again";
            Err(Refusal::new(503, Code::Unavailable, text).with(header::RETRY_AFTER, "5"))
        }
    }
}

/// A query's pairs in order; what is in it more than once matters for tags only.
struct Pairs(Vec<(String, String)>);

impl Pairs {
    fn of(uri: &Uri) -> Result<Self> {
        match Query::<Vec<(String, String)>>::try_from_uri(uri) {
            Ok(Query(pairs)) => Ok(Pairs(pairs)),
            Err(_) => Err(Refusal::new(
                400,
                Code::Unsupported,
                "the query is not understood",
            )),
        }
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        let same = move |(found, _): &&(String, String)| found == key;
        self.0.iter().filter(same).map(|(_, value)| value.as_str())
    }
}

/// `value` for a query: everything but RFC 3986's unreserved characters is encoded.
fn encode(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn blob_location(name: &RepositoryName, digest: &Digest) -> String {
    format!("/v2/{name}/blobs/{digest}")
}

fn manifest_location(name: &RepositoryName, digest: &Digest) -> String {
    format!("/v2/{name}/manifests/{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_apart_from_its_end() {
        for (rest, name, what) in [
            ("a/tags/list", "a", What::Tags),
            ("a/b/c/tags/list", "a/b/c", What::Tags),
            ("a/manifests/v1", "a", What::Manifest("v1")),
            ("manifests/manifests/v1", "manifests", What::Manifest("v1")),
            ("a/blobs/sha256:0", "a", What::Blob("sha256:0")),
            ("a/blobs/uploads/", "a", What::Uploads),
            ("a/blobs/uploads", "a", What::Uploads),
            ("a/blobs/uploads/x", "a", What::Upload("x")),
            ("a/blobs/uploads/tags/list", "a/blobs/uploads", What::Tags),
            ("a/referrers/sha256:0", "a", What::Referrers("sha256:0")),
            // The name is checked by whoever reads it.
            ("/blobs/x", "", What::Blob("x")),
            ("a//manifests/x", "a/", What::Manifest("x")),
        ] {
            assert_eq!(take_apart(rest), Some((name, what)), "{rest}");
        }
        for rest in ["a", "_catalog", "a/b", "tags/list", "blobs/x", "a/tags/x"] {
            assert_eq!(take_apart(rest), None, "{rest}");
        }
    }

    #[test]
    fn a_query_may_name_a_key_more_than_once() {
        let uri: Uri = "/v2/?tag=1&tag=a%2Fb&n=2&empty".parse().expect("a URI");
        let pairs = Pairs::of(&uri).expect("good");
        assert_eq!(pairs.all("tag").collect::<Vec<_>>(), ["1", "a/b"]);
        assert_eq!(pairs.get("n"), Some("2"));
        assert_eq!(pairs.get("empty"), Some(""));
        assert_eq!(pairs.get("last"), None);
        assert_eq!(encode("a/b+c d~é"), "a%2Fb%2Bc%20d~%C3%A9");
    }
}
