//! Who may do what is asked of whoever mounts the registry, before anything else is said.

use std::sync::{Arc, Mutex};

use hutong_registry::{Access, Action, Credentials, Registry, Settings, Verdict};

use crate::rig::{Rig, sha256};

/// Knows one user, who may read everything and write to what is theirs.
#[derive(Default)]
struct Strict {
    asked: Mutex<Vec<String>>,
}

impl Access for Strict {
    fn may(&self, credentials: Option<&Credentials>, repository: &str, action: Action) -> Verdict {
        let asked = format!("{action:?} {repository:?}");
        self.asked.lock().expect("lock").push(asked);
        match credentials {
            Some(Credentials::Basic { user, password }) if password == "secret" => {
                if action == Action::Pull || repository.starts_with(user.as_str()) {
                    Verdict::Allowed
                } else {
                    Verdict::Forbidden
                }
            }
            Some(Credentials::Bearer(token)) if token == "token" => Verdict::Allowed,
            _ => Verdict::Unknown,
        }
    }
}

struct Guarded {
    _dir: tempfile::TempDir,
    access: Arc<Strict>,
    client: crate::rig::Client,
}

fn guarded() -> Guarded {
    let dir = tempfile::tempdir().expect("tempdir");
    let access: Arc<Strict> = Arc::default();
    let settings = Settings {
        realm: "my \"own\" registry\r\n".into(),
        ..Settings::default()
    };
    let registry = Registry::open(&dir.path().join("r"), settings, access.clone());
    let router = hutong_registry::router(Arc::new(registry.expect("opened")));
    Guarded {
        _dir: dir,
        access,
        client: crate::rig::Client::of(router),
    }
}

/// `me:secret`
const ME: &str = "Basic bWU6c2VjcmV0";
/// `me:wrong`
const WRONG: &str = "Basic bWU6d3Jvbmc=";

#[tokio::test]
async fn without_credentials_there_is_a_challenge_and_nothing_else() {
    let rig = guarded();
    for (method, path) in [
        ("GET", "/v2/"),
        ("GET", "/v2/me/manifests/latest"),
        ("HEAD", "/v2/me/blobs/sha256:bad"),
        ("POST", "/v2/me/blobs/uploads/"),
        ("GET", "/v2/me/tags/list"),
        ("DELETE", "/v2/me/manifests/latest"),
    ] {
        let answer = rig.client.call(method, path).send().await.is(401);
        assert_eq!(
            answer.header("www-authenticate"),
            "Basic realm=\"my own registry\", charset=\"UTF-8\"",
            "{method} {path}"
        );
        if method != "HEAD" {
            assert_eq!(answer.code(), "UNAUTHORIZED");
        }
        let wrong = rig.client.call(method, path).header("authorization", WRONG);
        wrong.send().await.is(401);
    }
}

/// Cannot look anything up.
struct Away;

impl Access for Away {
    fn may(&self, _: Option<&Credentials>, _: &str, _: Action) -> Verdict {
        Verdict::Later
    }
}

#[tokio::test]
async fn who_cannot_be_looked_up_comes_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let registry = Registry::open(&dir.path().join("r"), Settings::default(), Arc::new(Away));
    let router = hutong_registry::router(Arc::new(registry.expect("opened")));
    let client = crate::rig::Client::of(router);
    for (method, path) in [
        ("GET", "/v2/"),
        ("GET", "/v2/me/manifests/latest"),
        ("POST", "/v2/me/blobs/uploads/"),
    ] {
        let answer = client.call(method, path).header("authorization", ME);
        let answer = answer.send().await.refused(503, "UNAVAILABLE");
        assert_eq!(answer.header("retry-after"), "5", "{method} {path}");
    }
}

#[tokio::test]
async fn clients_log_in_at_the_top() {
    let rig = guarded();
    for good in [ME, "Bearer token"] {
        let call = rig.client.call("GET", "/v2/").header("authorization", good);
        let answer = call.send().await.is(200);
        assert_eq!(
            answer.header("docker-distribution-api-version"),
            "registry/2.0"
        );
    }
    let asked = rig.access.asked.lock().expect("lock").clone();
    assert_eq!(asked, ["Pull \"\"", "Pull \"\""]);
}

#[tokio::test]
async fn who_is_known_and_may_not_is_refused() {
    let rig = guarded();
    let call = |method: &str, path: &str| {
        let call = rig.client.call(method, path);
        call.header("authorization", ME)
    };
    let start = "/blobs/uploads/";
    let other = call("POST", &format!("/v2/other{start}"));
    other.send().await.refused(403, "DENIED");
    let mine = call("POST", &format!("/v2/me/shop{start}"));
    let location = mine.send().await.is(202).header("location").to_owned();
    call("GET", &location).send().await.is(204);
    call("GET", &location.replace("me/shop", "other"))
        .send()
        .await
        .refused(403, "DENIED");
    let path = "/v2/other/manifests/latest";
    call("GET", path).send().await.is(404);
    call("DELETE", path).send().await.refused(403, "DENIED");
    call("PUT", path).send().await.refused(403, "DENIED");
}

#[tokio::test]
async fn each_request_is_asked_for_what_it_does() {
    let rig = guarded();
    let digest = sha256(b"x");
    let id = "01234567-0123-4123-8123-0123456789ab";
    for (method, path, asked) in [
        ("GET", "tags/list".to_owned(), "Pull"),
        ("GET", format!("referrers/{digest}"), "Pull"),
        ("HEAD", format!("blobs/{digest}"), "Pull"),
        ("DELETE", format!("blobs/{digest}"), "Delete"),
        ("GET", "manifests/v1".into(), "Pull"),
        ("PUT", "manifests/v1".into(), "Push"),
        ("DELETE", "manifests/v1".into(), "Delete"),
        ("POST", "blobs/uploads/".into(), "Push"),
        ("GET", format!("blobs/uploads/{id}"), "Push"),
        ("PATCH", format!("blobs/uploads/{id}"), "Push"),
        ("PUT", format!("blobs/uploads/{id}?digest=x"), "Push"),
        ("DELETE", format!("blobs/uploads/{id}"), "Push"),
    ] {
        rig.access.asked.lock().expect("lock").clear();
        let path = format!("/v2/a/b/{path}");
        rig.client.call(method, &path).send().await.is(401);
        let found = rig.access.asked.lock().expect("lock").clone();
        assert_eq!(found, [format!("{asked} \"a/b\"")], "{method} {path}");
    }
}

#[tokio::test]
async fn a_blob_is_mounted_only_from_where_it_may_be_read() {
    let rig = Rig::new();
    let digest = rig.blob("secret", b"content").await;
    let forbid = |what: &str| {
        let mut list = rig.rules.forbidden.lock().expect("lock");
        list.insert(what.to_owned());
    };
    forbid("Pull secret");
    for from in ["&from=secret", ""] {
        let path = format!("/v2/mine/blobs/uploads/?mount={digest}{from}");
        // No word of whether it is there.
        rig.post(&path).await.is(202);
    }
    rig.get(&format!("/v2/mine/blobs/{digest}")).await.is(404);
    rig.blob("open", b"content").await;
    let path = format!("/v2/mine/blobs/uploads/?mount={digest}");
    rig.post(&path).await.is(201);
    rig.get(&format!("/v2/mine/blobs/{digest}")).await.is(200);
}
