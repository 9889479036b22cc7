//! "Push": manifests.

use std::sync::{Arc, Mutex};

use hutong_registry::{
    DOCKER_LIST, DOCKER_MANIFEST, MAX_MANIFEST, OCI_ARTIFACT, OCI_INDEX, OCI_MANIFEST, Reference,
    Registry, RepositoryName, Settings,
};
use serde_json::{Value, json};

use crate::rig::{
    CONFIG, Client, LAYER, Rig, Rules, descriptor, image_of, index_of, sha256, sha512,
};

#[tokio::test]
async fn pushing_manifests() {
    let rig = Rig::new();
    let manifest = rig.image_blobs("a/b", "one").await;
    let digest = sha256(manifest.to_string().as_bytes());
    for reference in ["v1", digest.as_str()] {
        let answer = rig.put("a/b", reference, OCI_MANIFEST, &manifest).await;
        let answer = answer.is(201);
        assert_eq!(
            answer.header("location"),
            format!("/v2/a/b/manifests/{digest}")
        );
        assert_eq!(answer.header("docker-content-digest"), digest);
        assert_eq!(answer.header("oci-tag"), "");
        assert_eq!(answer.header("oci-subject"), "");
    }
    rig.get("/v2/a/b/manifests/v1").await.is(200);
    rig.check();
}

#[tokio::test]
async fn a_manifest_must_have_the_digest_that_it_is_pushed_by() {
    let rig = Rig::new();
    let manifest = rig.image_blobs("a", "one").await;
    let other = sha256(b"other");
    let answer = rig.put("a", &other, OCI_MANIFEST, &manifest).await;
    answer.refused(400, "DIGEST_INVALID");
    for bad in ["sha256:baddigeststring", "md5:00"] {
        let answer = rig.put("a", bad, OCI_MANIFEST, &manifest).await;
        answer.refused(400, "DIGEST_INVALID");
    }
    rig.get(&format!("/v2/a/manifests/{other}")).await.is(404);
    let long = sha512(manifest.to_string().as_bytes());
    let answer = rig.put("a", &long, OCI_MANIFEST, &manifest).await.is(201);
    assert_eq!(answer.header("docker-content-digest"), long);
    let answer = rig.get(&format!("/v2/a/manifests/{long}")).await.is(200);
    assert_eq!(answer.header("docker-content-digest"), long);
    rig.check();
}

#[tokio::test]
async fn tags_may_come_with_a_push_by_digest() {
    let rig = Rig::new();
    let manifest = rig.image_blobs("a", "one").await;
    let digest = sha256(manifest.to_string().as_bytes());
    let reference = format!("{digest}?tag=1.2.3&tag=1.2&tag=latest&tag=1.2");
    let answer = rig.put("a", &reference, OCI_MANIFEST, &manifest).await;
    let answer = answer.is(201);
    let tags: Vec<_> = answer.headers.get_all("oci-tag").iter().collect();
    assert_eq!(tags, ["1.2.3", "1.2", "latest"]);
    for tag in ["1.2.3", "1.2", "latest"] {
        let answer = rig.get(&format!("/v2/a/manifests/{tag}")).await.is(200);
        assert_eq!(answer.header("docker-content-digest"), digest);
    }
    let reference = format!("{digest}?tag=good&tag=-bad");
    let answer = rig.put("a", &reference, OCI_MANIFEST, &manifest).await;
    answer.refused(400, "MANIFEST_INVALID");
    rig.get("/v2/a/manifests/good").await.is(404);
    let many: Vec<String> = (0..101).map(|number| format!("tag=t{number}")).collect();
    let reference = format!("{digest}?{}", many.join("&"));
    let answer = rig.put("a", &reference, OCI_MANIFEST, &manifest).await;
    answer.is(414);
    // Of a push by tag they mean nothing.
    let answer = rig.put("a", "v1?tag=v2", OCI_MANIFEST, &manifest).await;
    assert_eq!(answer.is(201).header("oci-tag"), "");
    rig.get("/v2/a/manifests/v2").await.is(404);
    rig.check();
}

#[tokio::test]
async fn an_image_without_its_blobs() {
    let rig = Rig::new();
    let (config, layer) = (b"{}".as_slice(), b"layer".as_slice());
    let manifest = image_of(config, &[layer, b"another", layer]);
    let push = || rig.put("a", "v1", OCI_MANIFEST, &manifest);
    let missing = |answer: crate::rig::Answer| -> Vec<String> {
        let json = answer.refused(404, "MANIFEST_BLOB_UNKNOWN").json();
        let list = json["errors"].as_array().expect("errors").clone();
        let text = |one: &Value| one["message"].as_str().expect("text").to_owned();
        list.iter().map(text).collect()
    };
    let all = missing(push().await);
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(all[0].contains(&sha256(config)), "{all:?}");
    rig.blob("a", config).await;
    rig.blob("a", layer).await;
    // Somebody else's is not its own.
    rig.blob("b", b"another").await;
    let one = missing(push().await);
    assert_eq!(one.len(), 1);
    assert!(one[0].contains(&sha256(b"another")), "{one:?}");
    rig.get("/v2/a/manifests/v1").await.is(404);
    rig.blob("a", b"another").await;
    push().await.is(201);
    rig.check();
}

#[tokio::test]
async fn a_descriptor_must_say_the_size() {
    let rig = Rig::new();
    let mut manifest = rig.image_blobs("a", "one").await;
    manifest["layers"][0]["size"] = json!(1);
    let answer = rig.put("a", "v1", OCI_MANIFEST, &manifest).await;
    answer.refused(400, "SIZE_INVALID");
    rig.get("/v2/a/manifests/v1").await.is(404);
}

#[tokio::test]
async fn layers_that_may_not_be_given_away_may_be_elsewhere() {
    let rig = Rig::new();
    let mut manifest = rig.image_blobs("a", "one").await;
    for kind in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        let mut layer = descriptor(kind, kind.as_bytes());
        layer["urls"] = json!(["https://example.com/layer"]);
        manifest["layers"].as_array_mut().expect("list").push(layer);
    }
    let answer = rig.put("a", "v1", OCI_MANIFEST, &manifest).await;
    answer.is(201);
    rig.check();
}

#[tokio::test]
async fn an_index_may_name_what_is_not_there() {
    let rig = Rig::new();
    let digest = rig.image("a", "v1", "one").await;
    let there = json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 1});
    let elsewhere = descriptor(OCI_MANIFEST, b"another platform");
    let odd = json!({"mediaType": OCI_MANIFEST, "digest": "blake3:ab", "size": 1});
    let index = index_of(&[there, elsewhere, odd]);
    let answer = rig.put("a", "all", OCI_INDEX, &index).await.is(201);
    let inner = json!({
        "mediaType": OCI_INDEX,
        "digest": answer.header("docker-content-digest"),
        "size": index.to_string().len(),
    });
    let nested = index_of(&[inner]);
    rig.put("a", "nested", OCI_INDEX, &nested).await.is(201);
    rig.put("a", "empty", OCI_INDEX, &index_of(&[]))
        .await
        .is(201);
    let answer = rig.get("/v2/a/manifests/nested").await.is(200);
    assert_eq!(answer.header("content-type"), OCI_INDEX);
    rig.check();
}

#[tokio::test]
async fn what_docker_pushes_and_what_artifacts_are() {
    let rig = Rig::new();
    let mut manifest = rig.image_blobs("a", "one").await;
    manifest["mediaType"] = json!(DOCKER_MANIFEST);
    let list = json!({
        "schemaVersion": 2, "mediaType": DOCKER_LIST,
        "manifests": [{
            "mediaType": DOCKER_MANIFEST,
            "digest": sha256(manifest.to_string().as_bytes()),
            "size": manifest.to_string().len(),
            "platform": {"architecture": "amd64", "os": "linux"},
        }],
    });
    rig.blob("a", b"{}").await;
    rig.blob("a", b"sbom").await;
    let artifact = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/sbom",
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"),
        "layers": [descriptor("application/sbom+json", b"sbom")],
        "annotations": {"made": "today"}, "our-own": [1, 2, 3],
    });
    let old = json!({
        "mediaType": OCI_ARTIFACT, "artifactType": "application/sbom",
        "blobs": [descriptor("application/sbom+json", b"sbom")],
    });
    for (tag, kind, manifest) in [
        ("image", DOCKER_MANIFEST, &manifest),
        ("list", DOCKER_LIST, &list),
        ("artifact", OCI_MANIFEST, &artifact),
        ("old", OCI_ARTIFACT, &old),
    ] {
        rig.put("a", tag, kind, manifest).await.is(201);
        let answer = rig.get(&format!("/v2/a/manifests/{tag}")).await.is(200);
        assert_eq!(answer.header("content-type"), kind);
        assert_eq!(answer.body, manifest.to_string());
    }
    // The type may be said with a parameter, or inside only.
    let with = format!("{OCI_MANIFEST}; charset=utf-8");
    rig.put("a", "with", &with, &artifact).await.is(201);
    let call = rig.call("PUT", "/v2/a/manifests/inside");
    call.bytes(artifact.to_string()).await.is(201);
    for tag in ["with", "inside"] {
        let answer = rig.get(&format!("/v2/a/manifests/{tag}")).await.is(200);
        assert_eq!(answer.header("content-type"), OCI_MANIFEST);
    }
    rig.check();
}

#[tokio::test]
async fn what_is_no_manifest_is_refused() {
    let rig = Rig::new();
    let good = rig.image_blobs("a", "one").await;
    let with = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed[key] = value;
        changed
    };
    for (kind, manifest) in [
        (OCI_INDEX, good.clone()),
        (DOCKER_MANIFEST, good.clone()),
        ("text/plain", good.clone()),
        (
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            json!({"schemaVersion": 1, "fsLayers": []}),
        ),
        (OCI_MANIFEST, with("manifests", json!([]))),
        (OCI_MANIFEST, with("schemaVersion", json!(1))),
        (OCI_MANIFEST, with("config", json!(null))),
        (OCI_MANIFEST, with("layers", json!([{"digest": "x"}]))),
        (OCI_MANIFEST, json!({})),
        (OCI_MANIFEST, json!("text")),
    ] {
        let answer = rig.put("a", "v1", kind, &manifest).await;
        answer.refused(400, "MANIFEST_INVALID");
    }
    for text in ["", "{", "\u{0}", "[[[[[["] {
        let call = rig.call("PUT", "/v2/a/manifests/v1");
        let call = call.header("content-type", OCI_MANIFEST);
        call.bytes(text).await.refused(400, "MANIFEST_INVALID");
    }
    rig.get("/v2/a/manifests/v1").await.is(404);
    // Nothing of these was kept.
    assert_eq!(rig.collect(0).waiting, 2, "the two blobs");
}

#[tokio::test]
async fn manifests_of_four_megabytes_and_no_more() {
    let rig = Rig::new();
    let mut manifest = rig.image_blobs("a", "one").await;
    let annotations: serde_json::Map<String, Value> = (0..390)
        .map(|number| (format!("key-{number}"), json!("A".repeat(10_000))))
        .collect();
    manifest["annotations"] = Value::Object(annotations);
    let answer = rig.put("a", "large", OCI_MANIFEST, &manifest).await;
    answer.is(201);
    let answer = rig.get("/v2/a/manifests/large").await.is(200);
    assert!(answer.body.len() > 3_900_000);
    let room = MAX_MANIFEST as usize - manifest.to_string().len();
    manifest["annotations"]["more"] = json!("A".repeat(room));
    let answer = rig.put("a", "larger", OCI_MANIFEST, &manifest).await;
    answer.refused(413, "MANIFEST_INVALID");
    let call = rig.call("PUT", "/v2/a/manifests/larger");
    let call = call.header("content-type", OCI_MANIFEST);
    let text = manifest.to_string();
    call.streamed(text.as_bytes())
        .await
        .refused(413, "MANIFEST_INVALID");
    rig.check();
}

#[tokio::test]
async fn pushing_manifests_with_subject() {
    let rig = Rig::new();
    let subject = rig.image("a", "v1", "one").await;
    for (seed, of) in [("two", subject.clone()), ("three", sha256(b"not yet"))] {
        let mut manifest = rig.image_blobs("a", seed).await;
        manifest["subject"] = json!({"mediaType": OCI_MANIFEST, "digest": of, "size": 1});
        let answer = rig.put("a", seed, OCI_MANIFEST, &manifest).await.is(201);
        assert_eq!(answer.header("oci-subject"), of);
    }
    let mut index = index_of(&[]);
    index["subject"] = json!({"mediaType": OCI_MANIFEST, "digest": subject, "size": 1});
    let answer = rig.put("a", "index", OCI_INDEX, &index).await.is(201);
    assert_eq!(answer.header("oci-subject"), subject);
    index["subject"]["digest"] = json!("blake3:ab");
    let answer = rig.put("a", "index", OCI_INDEX, &index).await;
    answer.refused(400, "MANIFEST_INVALID");
    rig.check();
}

#[tokio::test]
async fn a_tag_moves() {
    let rig = Rig::new();
    let one = rig.image("a", "latest", "one").await;
    let two = rig.image("a", "latest", "two").await;
    assert_ne!(one, two);
    let answer = rig.get("/v2/a/manifests/latest").await.is(200);
    assert_eq!(answer.header("docker-content-digest"), two);
    // What it pointed to is there still.
    rig.get(&format!("/v2/a/manifests/{one}")).await.is(200);
    rig.check();
}

#[tokio::test]
async fn whoever_asked_is_told_of_pushes() {
    let rig = Rig::new();
    let one = rig.image("a/b", "latest", "one").await;
    let two = rig.image("a/b", "latest", "two").await;
    let manifest = image_of(b"{\"os\":\"linux\",\"seed\":\"two\"}", &[b"layer of two"]);
    let reference = format!("{two}?tag=latest&tag=v2");
    let answer = rig.put("a/b", &reference, OCI_MANIFEST, &manifest).await;
    answer.is(201);
    // What fails is none.
    let answer = rig.put("a/b", "bad", OCI_MANIFEST, &json!({})).await;
    answer.is(400);
    let pushes = rig.pushes.lock().expect("lock").clone();
    let told: Vec<_> = pushes
        .iter()
        .map(|push| {
            assert_eq!(push.repository.as_str(), "a/b");
            assert_eq!(push.media_type, OCI_MANIFEST);
            let reference = match &push.reference {
                Reference::Tag(tag) => tag.to_string(),
                Reference::Digest(_) => "digest".into(),
            };
            let before = push.before.as_ref().map(ToString::to_string);
            (reference, push.digest.to_string(), before)
        })
        .collect();
    let entry = |reference: &str, digest: &str, before: Option<&String>| {
        (reference.to_owned(), digest.to_owned(), before.cloned())
    };
    assert_eq!(
        told,
        [
            entry("latest", &one, None),
            entry("latest", &two, Some(&one)),
            entry("digest", &two, None),
            entry("latest", &two, Some(&two)),
            entry("v2", &two, None),
        ]
    );
    // Who was away looks instead.
    let name: RepositoryName = "a/b".parse().expect("a name");
    let tags = rig.registry().tags(&name).expect("tags");
    let tags: Vec<_> = tags.iter().map(|(tag, d)| format!("{tag} {d}")).collect();
    assert_eq!(tags, [format!("latest {two}"), format!("v2 {two}")]);
    let names = rig.registry().repositories().expect("names");
    assert_eq!(names, [name]);
}

#[tokio::test]
async fn a_tag_that_is_about_to_move_is_said_before() {
    let dir = tempfile::tempdir().expect("tempdir");
    let rules: Arc<Rules> = Arc::default();
    let registry = Registry::open(&dir.path().join("r"), Settings::default(), rules);
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let (before, behind) = (told.clone(), told.clone());
    let registry = registry
        .expect("opened")
        .before_tag(move |name, tag, digest| {
            let line = format!("before {name}:{tag} {digest}");
            before.lock().expect("lock").push(line);
        })
        .on_push(move |push| {
            let line = format!("behind {}:{}", push.repository, push.reference);
            behind.lock().expect("lock").push(line);
        });
    let client = Client::of(hutong_registry::router(Arc::new(registry)));
    let one = client.image("a", "v1", "one").await;
    // The same again moves nothing.
    client.image("a", "v1", "one").await;
    let two = client.image("a", "v1", "two").await;
    // Nor does what is refused.
    let missing = image_of(b"{}", &[b"nowhere"]);
    let answer = client.put("a", "v1", OCI_MANIFEST, &missing).await;
    answer.refused(404, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(
        *told.lock().expect("lock"),
        [
            format!("before a:v1 {one}"),
            "behind a:v1".into(),
            "behind a:v1".into(),
            format!("before a:v1 {two}"),
            "behind a:v1".into(),
        ]
    );
}

#[tokio::test]
async fn an_image_may_have_no_layers_and_the_same_one_twice() {
    let rig = Rig::new();
    rig.blob("a", b"{}").await;
    rig.blob("a", b"layer").await;
    let none = image_of(b"{}", &[]);
    rig.put("a", "none", OCI_MANIFEST, &none).await.is(201);
    let twice = image_of(b"{}", &[b"layer", b"layer"]);
    rig.put("a", "twice", OCI_MANIFEST, &twice).await.is(201);
    let same = json!({
        "schemaVersion": 2,
        "config": descriptor(CONFIG, b"layer"),
        "layers": [descriptor(LAYER, b"layer")],
    });
    rig.put("a", "same", OCI_MANIFEST, &same).await.is(201);
    rig.check();
}
