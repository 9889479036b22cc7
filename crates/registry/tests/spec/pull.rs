//! "Pull".

use crate::rig::{OCTETS, Rig, noise, sha256, sha512};
use hutong_registry::OCI_MANIFEST;

#[tokio::test]
async fn determining_support() {
    let rig = Rig::new();
    for path in ["/v2/", "/v2"] {
        let answer = rig.get(path).await.is(200);
        assert_eq!(answer.body, "{}");
        rig.head(path).await.is(200);
    }
    rig.post("/v2/").await.refused(405, "UNSUPPORTED");
}

#[tokio::test]
async fn pulling_blobs() {
    let rig = Rig::new();
    let digest = rig.blob("team/shop", b"content").await;
    let path = format!("/v2/team/shop/blobs/{digest}");
    for path in [path.clone(), path.replacen(':', "%3A", 1)] {
        let answer = rig.get(&path).await.is(200);
        assert_eq!(answer.body, "content");
        assert_eq!(answer.header("content-length"), "7");
        assert_eq!(answer.header("content-type"), OCTETS);
        assert_eq!(answer.header("docker-content-digest"), digest);
        assert_eq!(answer.header("accept-ranges"), "bytes");
        assert_eq!(answer.header("etag"), format!("\"{digest}\""));
    }
}

#[tokio::test]
async fn pulling_a_blob_of_many_chunks() {
    let rig = Rig::new();
    let content = noise(1, 3_000_001);
    let digest = rig.blob("a", &content).await;
    let path = format!("/v2/a/blobs/{digest}");
    let answer = rig.get(&path).await.is(200);
    assert_eq!(answer.header("content-length"), "3000001");
    assert!(answer.body == content);
    let call = rig.call("GET", &path).header("range", "bytes=65535-200000");
    let answer = call.send().await.is(206);
    assert!(answer.body == content[65_535..=200_000]);
}

#[tokio::test]
async fn pulling_an_empty_blob() {
    let rig = Rig::new();
    let digest = rig.blob("a", b"").await;
    let path = format!("/v2/a/blobs/{digest}");
    let answer = rig.get(&path).await.is(200);
    assert_eq!(
        (answer.header("content-length"), answer.body.len()),
        ("0", 0)
    );
    let call = rig.call("GET", &path).header("range", "bytes=0-");
    call.send().await.is(416);
}

#[tokio::test]
async fn pulling_what_the_repository_does_not_have() {
    let rig = Rig::new();
    let there = rig.blob("a", b"content").await;
    for path in [
        format!("/v2/a/blobs/{}", sha256(b"other")),
        format!("/v2/a/blobs/{}", sha512(b"content")),
        // Somebody else's is nobody's business.
        format!("/v2/b/blobs/{there}"),
        format!("/v2/a/b/blobs/{there}"),
    ] {
        rig.get(&path).await.refused(404, "BLOB_UNKNOWN");
        let answer = rig.head(&path).await.is(404);
        assert_eq!(answer.header("docker-content-digest"), "");
    }
}

#[tokio::test]
async fn checking_if_content_exists() {
    let rig = Rig::new();
    let digest = rig.blob("a", b"content").await;
    let answer = rig.head(&format!("/v2/a/blobs/{digest}")).await.is(200);
    assert_eq!(answer.header("content-length"), "7");
    assert_eq!(answer.header("docker-content-digest"), digest);
    assert!(answer.body.is_empty());
    let digest = rig.image("a", "v1", "one").await;
    for reference in ["v1", digest.as_str()] {
        let path = format!("/v2/a/manifests/{reference}");
        let length = rig.get(&path).await.is(200).body.len().to_string();
        let answer = rig.head(&path).await.is(200);
        assert_eq!(answer.header("content-length"), length);
        assert_eq!(answer.header("content-type"), OCI_MANIFEST);
        assert_eq!(answer.header("docker-content-digest"), digest);
        assert!(answer.body.is_empty());
    }
}

#[tokio::test]
async fn pulling_blobs_in_ranges() {
    let rig = Rig::new();
    let content = noise(2, 2_048);
    let digest = rig.blob("a", &content).await;
    let path = format!("/v2/a/blobs/{digest}");
    for (range, from, to) in [
        ("bytes=500-1499", 500, 1_499),
        ("bytes=500-", 500, 2_047),
        ("bytes=-500", 1_548, 2_047),
        ("bytes=2000-5000", 2_000, 2_047),
        ("bytes=0-0", 0, 0),
    ] {
        let call = rig.call("GET", &path).header("range", range);
        let answer = call.send().await.is(206);
        assert!(answer.body == content[from..=to], "{range}");
        assert_eq!(
            answer.header("content-range"),
            format!("bytes {from}-{to}/2048")
        );
        assert_eq!(answer.header("content-length"), (to - from + 1).to_string());
        assert_eq!(answer.header("docker-content-digest"), digest);
    }
}

#[tokio::test]
async fn ranges_that_cannot_be_had() {
    let rig = Rig::new();
    let digest = rig.blob("a", &noise(3, 2_048)).await;
    let path = format!("/v2/a/blobs/{digest}");
    for range in ["bytes=500-0", "bytes=5000-10000", "bytes=2048-", "bytes=-0"] {
        let call = rig.call("GET", &path).header("range", range);
        let answer = call.send().await.is(416);
        assert_eq!(answer.header("content-range"), "bytes */2048", "{range}");
    }
    for range in ["bytes=0-1,4-5", "lines=1-2", "bytes=x-y"] {
        let call = rig.call("GET", &path).header("range", range);
        assert_eq!(call.send().await.is(200).body.len(), 2_048, "{range}");
    }
    let part = rig.call("GET", &path).header("range", "bytes=0-9");
    let part = part.header("if-range", "\"another\"").send().await;
    assert_eq!(part.is(200).body.len(), 2_048);
    let part = rig.call("GET", &path).header("range", "bytes=0-9");
    let part = part.header("if-range", &format!("\"{digest}\""));
    assert_eq!(part.send().await.is(206).body.len(), 10);
}

#[tokio::test]
async fn pulling_manifests() {
    let rig = Rig::new();
    let manifest = rig.image_blobs("a/b", "one").await;
    // In the very bytes that came.
    let spaced = serde_json::to_string_pretty(&manifest).expect("JSON") + "\n\n";
    let call = rig.call("PUT", "/v2/a/b/manifests/v1");
    let call = call.header("content-type", OCI_MANIFEST);
    call.bytes(spaced.clone()).await.is(201);
    let digest = sha256(spaced.as_bytes());
    for reference in ["v1", digest.as_str()] {
        let call = rig.call("GET", &format!("/v2/a/b/manifests/{reference}"));
        let call = call.header("accept", OCI_MANIFEST);
        let answer = call.send().await.is(200);
        assert_eq!(answer.body, spaced);
        assert_eq!(answer.header("content-type"), OCI_MANIFEST);
        assert_eq!(answer.header("docker-content-digest"), digest);
    }
}

#[tokio::test]
async fn pulling_manifests_that_are_not_there() {
    let rig = Rig::new();
    let digest = rig.image("a", "v1", "one").await;
    for (name, reference) in [
        ("a", "v2"),
        ("a", "V1"),
        ("b", "v1"),
        ("b", digest.as_str()),
        ("a", sha256(b"x").as_str()),
    ] {
        let path = format!("/v2/{name}/manifests/{reference}");
        rig.get(&path).await.refused(404, "MANIFEST_UNKNOWN");
        rig.head(&path).await.is(404);
    }
    // A manifest is no blob, and a blob no manifest.
    rig.get(&format!("/v2/a/blobs/{digest}")).await.is(404);
    let blob = sha256(b"layer of one");
    rig.get(&format!("/v2/a/manifests/{blob}")).await.is(404);
}

#[tokio::test]
async fn what_is_not_written_as_the_spec_says_is_refused() {
    let rig = Rig::new();
    let digits = "0".repeat(64);
    for path in [
        "/v2/a/blobs/sha256:baddigeststring".to_owned(),
        "/v2/a/blobs/x".into(),
        format!("/v2/a/blobs/md5:{digits}"),
        format!("/v2/a/blobs/sha256:{}", "A".repeat(64)),
        "/v2/a/manifests/sha256:baddigeststring".into(),
        format!("/v2/a/manifests/blake3:{digits}"),
    ] {
        rig.get(&path).await.refused(400, "DIGEST_INVALID");
    }
    for path in ["/v2/a/manifests/-tag", "/v2/a/manifests/.."] {
        rig.get(path).await.refused(400, "MANIFEST_INVALID");
    }
    for name in [
        "A", "a..b", "..", "a/../b", "a//b", "-", "a%2Fb", "a_", "_x",
    ] {
        let path = format!("/v2/{name}/tags/list");
        rig.get(&path).await.refused(400, "NAME_INVALID");
    }
    for path in ["/v2/_catalog", "/v2/a", "/v2/a/tags", "/v2/tags/list"] {
        rig.get(path).await.refused(404, "NAME_UNKNOWN");
    }
    rig.get("/v1/").await.is(404);
}

#[tokio::test]
async fn methods_that_an_endpoint_does_not_have() {
    let rig = Rig::new();
    let digest = sha256(b"x");
    for (method, path, allowed) in [
        ("POST", format!("blobs/{digest}"), "GET, HEAD, DELETE"),
        ("PUT", format!("blobs/{digest}"), "GET, HEAD, DELETE"),
        ("PATCH", "manifests/v1".into(), "GET, HEAD, PUT, DELETE"),
        ("GET", "blobs/uploads/".into(), "POST"),
        ("DELETE", "tags/list".into(), "GET, HEAD"),
        ("PUT", format!("referrers/{digest}"), "GET, HEAD"),
    ] {
        let call = rig.call(method, &format!("/v2/a/{path}"));
        let answer = call.send().await.refused(405, "UNSUPPORTED");
        assert_eq!(answer.header("allow"), allowed);
    }
}
