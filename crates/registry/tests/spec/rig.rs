//! A registry in a folder of its own, a client, and a look at what must always be true of the folder.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use hutong_registry::{
    Access, Action, Algorithm, Credentials, Digest, Manifest, OCI_INDEX, OCI_MANIFEST, Push,
    Registry, Settings, Verdict,
};
use serde_json::{Value, json};
use tower::ServiceExt;

pub const OCTETS: &str = "application/octet-stream";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Everybody may do everything, but for what is forbidden here.
#[derive(Default)]
pub struct Rules {
    pub forbidden: Mutex<HashSet<String>>,
}

impl Access for Rules {
    fn may(&self, _: Option<&Credentials>, repository: &str, action: Action) -> Verdict {
        let key = format!("{action:?} {repository}");
        if self.forbidden.lock().expect("lock").contains(&key) {
            Verdict::Forbidden
        } else {
            Verdict::Allowed
        }
    }
}

pub struct Rig {
    dir: tempfile::TempDir,
    settings: Settings,
    pub rules: Arc<Rules>,
    pub pushes: Arc<Mutex<Vec<Push>>>,
    served: Option<(Arc<Registry>, Client)>,
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().expect("text"))
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// The code of the first error.
    pub fn code(&self) -> String {
        let json = self.json();
        json["errors"][0]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    pub fn message(&self) -> String {
        let json = self.json();
        json["errors"][0]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        let text = String::from_utf8_lossy(&self.body);
        let text: String = text.chars().take(500).collect();
        assert_eq!(self.status, status, "{text}");
        self
    }

    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Self {
        let answer = self.is(status);
        assert_eq!(answer.code(), code, "{}", answer.message());
        answer
    }
}

impl Rig {
    pub fn new() -> Self {
        Self::with(Settings::default())
    }

    pub fn with(settings: Settings) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut rig = Rig {
            dir,
            settings,
            rules: Arc::default(),
            pushes: Arc::default(),
            served: None,
        };
        rig.open();
        rig
    }

    fn open(&mut self) {
        let pushes = self.pushes.clone();
        let registry = Registry::open(&self.folder(), self.settings.clone(), self.rules.clone())
            .expect("opened")
            .on_push(move |push| pushes.lock().expect("lock").push(push.clone()));
        let registry = Arc::new(registry);
        let router = hutong_registry::router(registry.clone());
        self.served = Some((registry, Client::of(router)));
    }

    /// As after a kill: nothing is finished, the folder is as it is.
    pub fn restart(&mut self) {
        self.kill();
        self.open();
    }

    pub fn kill(&mut self) {
        let Some((registry, client)) = self.served.take() else {
            return;
        };
        drop(client);
        // What came in goes on until it knows that it is alone.
        let began = std::time::Instant::now();
        while Arc::strong_count(&registry) > 1 {
            assert!(began.elapsed().as_secs() < 20, "something holds it");
            std::thread::yield_now();
        }
    }

    pub fn start(&mut self) {
        self.open();
    }

    pub fn folder(&self) -> PathBuf {
        self.dir.path().join("registry")
    }

    pub fn registry(&self) -> &Registry {
        &self.served.as_ref().expect("open").0
    }

    pub fn shared(&self) -> Arc<Registry> {
        self.served.as_ref().expect("open").0.clone()
    }

    pub fn client(&self) -> Client {
        self.served.as_ref().expect("open").1.clone()
    }

    /// Collects with a clock at `seconds`, and nothing pinned.
    pub fn collect(&self, seconds: u64) -> hutong_registry::Report {
        self.registry()
            .collect(&[], Duration::from_secs(seconds))
            .expect("collected")
    }

    pub fn used(&self) -> u64 {
        self.registry().usage().bytes
    }

    /// What must be true at each instant, also behind a kill: looked at in the files.
    pub fn check(&self) {
        check(&self.folder());
    }
}

impl std::ops::Deref for Rig {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.served.as_ref().expect("open").1
    }
}

#[derive(Clone)]
pub struct Client(Router);

/// A request on its way.
pub struct Call {
    router: Router,
    request: axum::http::request::Builder,
}

impl Client {
    pub fn of(router: Router) -> Self {
        Client(router)
    }

    pub fn call(&self, method: &str, path: &str) -> Call {
        Call {
            router: self.0.clone(),
            request: Request::builder().method(method).uri(path),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path).send().await
    }

    pub async fn head(&self, path: &str) -> Answer {
        self.call("HEAD", path).send().await
    }

    pub async fn post(&self, path: &str) -> Answer {
        self.call("POST", path).bytes("").await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path).send().await
    }

    /// Begins an upload; where it goes on.
    pub async fn begin(&self, name: &str) -> String {
        let answer = self.post(&format!("/v2/{name}/blobs/uploads/")).await;
        answer.is(202).header("location").to_owned()
    }

    pub async fn patch(&self, location: &str, range: &str, body: &[u8]) -> Answer {
        let call = self.call("PATCH", location).header("content-type", OCTETS);
        let call = if range.is_empty() {
            call
        } else {
            call.header("content-range", range)
        };
        call.bytes(body.to_vec()).await
    }

    pub async fn finish(&self, location: &str, digest: &str, body: &[u8]) -> Answer {
        let path = format!("{location}?digest={digest}");
        self.call("PUT", &path).bytes(body.to_vec()).await
    }

    /// Pushes a blob in one request; its digest.
    pub async fn blob(&self, name: &str, content: &[u8]) -> String {
        let digest = sha256(content);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        let answer = self.call("POST", &path).bytes(content.to_vec()).await;
        answer.is(201);
        digest
    }

    pub async fn put(&self, name: &str, reference: &str, kind: &str, manifest: &Value) -> Answer {
        let path = format!("/v2/{name}/manifests/{reference}");
        let call = self.call("PUT", &path).header("content-type", kind);
        call.bytes(manifest.to_string()).await
    }

    /// Pushes an image of two blobs that `seed` makes different from others; the manifest's digest.
    pub async fn image(&self, name: &str, reference: &str, seed: &str) -> String {
        let manifest = self.image_blobs(name, seed).await;
        let answer = self.put(name, reference, OCI_MANIFEST, &manifest).await;
        answer.is(201).header("docker-content-digest").to_owned()
    }

    /// Pushes what an image is made of; its manifest.
    pub async fn image_blobs(&self, name: &str, seed: &str) -> Value {
        let config = format!("{{\"os\":\"linux\",\"seed\":{seed:?}}}");
        let layer = format!("layer of {seed}");
        self.blob(name, config.as_bytes()).await;
        self.blob(name, layer.as_bytes()).await;
        image_of(config.as_bytes(), &[layer.as_bytes()])
    }
}

impl Call {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub async fn send(self) -> Answer {
        self.body(Body::empty()).await
    }

    /// With its length.
    pub async fn bytes(self, content: impl Into<Bytes>) -> Answer {
        let content = content.into();
        let length = content.len().to_string();
        self.header("content-length", &length)
            .body(Body::from(content))
            .await
    }

    /// In two parts, without a length.
    pub async fn streamed(self, content: &[u8]) -> Answer {
        let (first, second) = content.split_at(content.len() / 2);
        let parts = [first, second].map(|part| Ok::<_, std::io::Error>(part.to_vec()));
        self.body(Body::from_stream(stream::iter(parts))).await
    }

    /// The connection is cut behind `content`.
    pub async fn cut_off(self, content: &[u8]) -> Answer {
        let parts = [
            Ok(content.to_vec()),
            Err(std::io::Error::other("the client is gone")),
        ];
        self.body(Body::from_stream(stream::iter(parts))).await
    }

    pub async fn body(self, body: Body) -> Answer {
        let request = self.request.body(body).expect("a request");
        let response = self.router.oneshot(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await.expect("a body").to_bytes(),
        }
    }
}

/// A body that gives some bytes and then neither more nor an end.
pub fn stalled(content: &[u8]) -> Body {
    use futures_util::StreamExt;
    let first = Ok::<_, std::io::Error>(content.to_vec());
    Body::from_stream(stream::iter([first]).chain(stream::pending()))
}

pub fn sha256(content: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, content).to_string()
}

pub fn sha512(content: &[u8]) -> String {
    Digest::of(Algorithm::Sha512, content).to_string()
}

pub fn descriptor(kind: &str, content: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": sha256(content), "size": content.len()})
}

pub fn image_of(config: &[u8], layers: &[&[u8]]) -> Value {
    let layers: Vec<Value> = layers.iter().map(|one| descriptor(LAYER, one)).collect();
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(CONFIG, config),
        "layers": layers,
    })
}

pub fn index_of(manifests: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})
}

/// Content that compresses badly and differs by `seed`.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("text");
    entries.map(|entry| name(entry.expect("read"))).collect()
}

/// See `store.rs`: a tag has its manifest, an image its blobs, a link its content, content its digest.
pub fn check(folder: &Path) {
    let mut contents: BTreeMap<String, PathBuf> = BTreeMap::new();
    for algorithm in ["sha256", "sha512"] {
        let top = folder.join("blobs").join(algorithm);
        for first in names(&top) {
            for hex in names(&top.join(&first)) {
                let path = top.join(&first).join(&hex);
                let digest = format!("{algorithm}:{hex}");
                let content = fs::read(&path).expect("read");
                let found = match algorithm {
                    "sha256" => sha256(&content),
                    _ => sha512(&content),
                };
                assert_eq!(found, digest, "content that is not what its name says");
                assert!(hex.starts_with(&first));
                contents.insert(digest, path);
            }
        }
    }
    for name in names(&folder.join("repositories")) {
        let repository = folder.join("repositories").join(&name);
        let links: HashSet<String> = names(&repository.join("links")).into_iter().collect();
        let manifests: HashSet<String> = names(&repository.join("manifests")).into_iter().collect();
        for tag in names(&repository.join("tags")) {
            let digest = fs::read_to_string(repository.join("tags").join(&tag)).expect("read");
            assert!(
                manifests.contains(digest.trim()),
                "{name}:{tag} points to nothing"
            );
        }
        for link in &links {
            assert!(contents.contains_key(link), "{name} links {link}");
        }
        for digest in &manifests {
            let content = contents.get(digest);
            let content = content.unwrap_or_else(|| panic!("{name} has {digest}, it is gone"));
            let kind = fs::read_to_string(repository.join("manifests").join(digest));
            let kind = kind.expect("read");
            let bytes = fs::read(content).expect("read");
            let manifest = Manifest::parse(&bytes, Some(&kind)).expect("a manifest");
            for blob in manifest.blobs().filter(|blob| !blob.is_elsewhere()) {
                assert!(
                    links.contains(&blob.digest),
                    "{name}@{digest} has lost {}",
                    blob.digest
                );
            }
        }
    }
}
