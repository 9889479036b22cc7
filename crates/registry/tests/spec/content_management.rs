//! "Content Management", and what takes away what nobody needs.

use std::time::Duration;

use hutong_registry::{Digest, OCI_INDEX, OCI_MANIFEST, Pinned, Report, RepositoryName, Settings};
use serde_json::json;

use crate::rig::{Rig, descriptor, index_of, sha256};

const HOUR: u64 = 3_600;

/// What stays a day after nobody needs it stays an hour here.
fn hourly() -> Rig {
    Rig::with(Settings {
        grace: Duration::from_secs(HOUR),
        upload_life: Duration::from_secs(2 * HOUR),
        ..Settings::default()
    })
}

/// Collections an hour apart, until nothing more goes.
fn collect_all(rig: &Rig, from: u64) -> Report {
    let mut sum = Report::default();
    for hour in 0..10 {
        let report = rig.collect(from + hour * HOUR);
        sum.manifests += report.manifests;
        sum.links += report.links;
        sum.blobs += report.blobs;
        sum.bytes += report.bytes;
        sum.repositories += report.repositories;
        rig.check();
    }
    sum
}

#[tokio::test]
async fn deleting_tags() {
    let rig = Rig::new();
    let digest = rig.image("a", "v1", "one").await;
    rig.image("a", "v2", "one").await;
    rig.delete("/v2/a/manifests/v1").await.is(202);
    rig.get("/v2/a/manifests/v1").await.is(404);
    rig.get("/v2/a/manifests/v2").await.is(200);
    rig.get(&format!("/v2/a/manifests/{digest}")).await.is(200);
    let again = rig.delete("/v2/a/manifests/v1").await;
    again.refused(404, "MANIFEST_UNKNOWN");
    rig.check();
}

#[tokio::test]
async fn deleting_manifests() {
    let rig = Rig::new();
    let digest = rig.image("a", "v1", "one").await;
    rig.image("a", "v2", "one").await;
    rig.image("b", "v1", "one").await;
    let other = rig.image("a", "v3", "two").await;
    let path = format!("/v2/a/manifests/{digest}");
    rig.delete(&path).await.is(202);
    for reference in ["v1", "v2", digest.as_str()] {
        let path = format!("/v2/a/manifests/{reference}");
        rig.get(&path).await.refused(404, "MANIFEST_UNKNOWN");
    }
    let answer = rig.get("/v2/a/manifests/v3").await.is(200);
    assert_eq!(answer.header("docker-content-digest"), other);
    rig.get("/v2/b/manifests/v1").await.is(200);
    let answer = rig.get("/v2/a/tags/list").await.is(200);
    assert_eq!(answer.json()["tags"], json!(["v3"]));
    rig.delete(&path).await.refused(404, "MANIFEST_UNKNOWN");
    let unknown = rig.delete(&format!("/v2/c/manifests/{digest}")).await;
    unknown.refused(404, "MANIFEST_UNKNOWN");
    // It may come again.
    assert_eq!(rig.image("a", "v1", "one").await, digest);
    rig.check();
}

#[tokio::test]
async fn deleting_blobs() {
    let rig = Rig::new();
    let digest = rig.blob("a", b"content").await;
    rig.blob("b", b"content").await;
    let path = format!("/v2/a/blobs/{digest}");
    rig.delete(&path).await.is(202);
    rig.get(&path).await.refused(404, "BLOB_UNKNOWN");
    rig.delete(&path).await.refused(404, "BLOB_UNKNOWN");
    rig.get(&format!("/v2/b/blobs/{digest}")).await.is(200);
    let answer = rig.delete("/v2/a/blobs/sha256:x").await;
    answer.refused(400, "DIGEST_INVALID");
    rig.blob("a", b"content").await;
    rig.get(&path).await.is(200);
    rig.check();
}

#[tokio::test]
async fn a_blob_that_an_image_is_made_of_is_not_deleted() {
    let rig = Rig::new();
    let digest = rig.image("a", "v1", "one").await;
    let path = format!("/v2/a/blobs/{}", sha256(b"layer of one"));
    let answer = rig.delete(&path).await.refused(405, "DENIED");
    assert_eq!(answer.header("allow"), "GET, HEAD");
    rig.get(&path).await.is(200);
    rig.delete(&format!("/v2/a/manifests/{digest}"))
        .await
        .is(202);
    rig.delete(&path).await.is(202);
    rig.check();
}

#[tokio::test]
async fn what_is_tagged_is_never_collected() {
    let rig = hourly();
    for number in 0..5 {
        let seed = format!("s{number}");
        rig.image("a", &format!("v{number}"), &seed).await;
        rig.image("b/c", &format!("v{number}"), &seed).await;
    }
    let used = rig.used();
    assert_eq!(collect_all(&rig, 0), Report::default());
    assert_eq!(rig.used(), used);
    for number in 0..5 {
        rig.get(&format!("/v2/b/c/manifests/v{number}"))
            .await
            .is(200);
    }
}

#[tokio::test]
async fn what_lost_its_tag_goes_after_its_grace() {
    let rig = hourly();
    let old = rig.image("a", "latest", "one").await;
    rig.image("a", "latest", "two").await;
    let path = format!("/v2/a/manifests/{old}");
    let report = rig.collect(0);
    assert_eq!((report.manifests, report.waiting), (0, 1));
    assert_eq!(rig.collect(HOUR - 1).manifests, 0);
    let report = rig.collect(HOUR);
    assert_eq!((report.manifests, report.links), (1, 0));
    assert_eq!(report.blobs, 1, "the manifest's own content");
    rig.get(&path).await.is(404);
    // Its blobs have been needed by nobody only since.
    rig.get(&format!("/v2/a/blobs/{}", sha256(b"layer of one")))
        .await
        .is(200);
    let sum = collect_all(&rig, 2 * HOUR);
    assert_eq!((sum.links, sum.blobs), (2, 2));
    rig.get("/v2/a/manifests/latest").await.is(200);
    let blob = format!("/v2/a/blobs/{}", sha256(b"layer of two"));
    rig.get(&blob).await.is(200);
}

#[tokio::test]
async fn blobs_wait_for_their_manifest() {
    let rig = hourly();
    let manifest = rig.image_blobs("a", "one").await;
    rig.collect(0);
    rig.collect(HOUR - 1);
    // A client that asks has another hour.
    for digest in [
        &manifest["config"]["digest"],
        &manifest["layers"][0]["digest"],
    ] {
        let digest = digest.as_str().expect("text");
        rig.head(&format!("/v2/a/blobs/{digest}")).await.is(200);
    }
    assert_eq!(rig.collect(HOUR).links, 0);
    assert_eq!(rig.collect(2 * HOUR - 1).links, 0);
    rig.put("a", "v1", OCI_MANIFEST, &manifest).await.is(201);
    assert_eq!(collect_all(&rig, 2 * HOUR), Report::default());
    // Without one, they go.
    rig.image_blobs("a", "two").await;
    let sum = collect_all(&rig, 20 * HOUR);
    assert_eq!((sum.links, sum.blobs), (2, 2));
    assert_eq!(sum.bytes, "layer of two".len() as u64 + 27);
}

#[tokio::test]
async fn what_is_pinned_stays() {
    let rig = hourly();
    let pinned = rig.image("a", "latest", "one").await;
    rig.image("a", "latest", "two").await;
    let gone = rig.image("b", "latest", "three").await;
    rig.image("b", "latest", "four").await;
    let keep = [Pinned {
        repository: "a".parse().expect("a name"),
        digest: pinned.parse().expect("a digest"),
    }];
    let collect = |hour: u64| {
        let now = Duration::from_secs(hour * HOUR);
        rig.registry().collect(&keep, now).expect("collected")
    };
    for hour in 0..10 {
        collect(hour);
    }
    rig.get(&format!("/v2/a/manifests/{pinned}")).await.is(200);
    rig.get(&format!("/v2/b/manifests/{gone}")).await.is(404);
    // Somebody deletes it all the same: its content stays for whoever pinned it.
    rig.delete(&format!("/v2/a/manifests/{pinned}"))
        .await
        .is(202);
    for hour in 10..20 {
        collect(hour);
    }
    let layer = sha256(b"layer of one");
    rig.get(&format!("/v2/a/blobs/{layer}")).await.is(404);
    for digest in [&pinned, &layer] {
        let digest: Digest = digest.parse().expect("a digest");
        let content = rig.registry().content(&digest).expect("read");
        assert!(content.is_some());
    }
    collect_all(&rig, 20 * HOUR);
    let digest: Digest = layer.parse().expect("a digest");
    assert!(rig.registry().content(&digest).expect("read").is_none());
    rig.check();
}

#[tokio::test]
async fn an_index_keeps_its_children_and_a_subject_its_referrers() {
    let rig = hourly();
    let child = rig.image_blobs("a", "child").await;
    let child_digest = sha256(child.to_string().as_bytes());
    let answer = rig.put("a", &child_digest, OCI_MANIFEST, &child).await;
    answer.is(201);
    let described = json!({
        "mediaType": OCI_MANIFEST, "digest": child_digest, "size": child.to_string().len(),
    });
    let inner = index_of(&[described]);
    let inner_digest = sha256(inner.to_string().as_bytes());
    rig.put("a", &inner_digest, OCI_INDEX, &inner).await.is(201);
    let described = json!({
        "mediaType": OCI_INDEX, "digest": inner_digest, "size": inner.to_string().len(),
    });
    let outer = index_of(&[described]);
    rig.put("a", "all", OCI_INDEX, &outer).await.is(201);
    // A signature of the child, and one of the signature.
    rig.blob("a", b"signature").await;
    let sign = |subject: &str| {
        json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/sig",
            "config": descriptor("application/sig", b"signature"), "layers": [],
            "subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": 1},
        })
    };
    let first = sign(&child_digest);
    let first_digest = sha256(first.to_string().as_bytes());
    rig.put("a", &first_digest, OCI_MANIFEST, &first)
        .await
        .is(201);
    let second = sign(&first_digest);
    let second_digest = sha256(second.to_string().as_bytes());
    rig.put("a", &second_digest, OCI_MANIFEST, &second)
        .await
        .is(201);
    // One whose subject never came.
    let stray = sign(&sha256(b"never"));
    let stray_digest = sha256(stray.to_string().as_bytes());
    rig.put("a", &stray_digest, OCI_MANIFEST, &stray)
        .await
        .is(201);
    let sum = collect_all(&rig, 0);
    assert_eq!((sum.manifests, sum.links), (1, 0), "the stray one");
    for digest in [&child_digest, &inner_digest, &first_digest, &second_digest] {
        rig.get(&format!("/v2/a/manifests/{digest}")).await.is(200);
    }
    // Without the tag all of it goes, and the repository with it.
    rig.delete("/v2/a/manifests/all").await.is(202);
    let sum = collect_all(&rig, 20 * HOUR);
    assert_eq!((sum.manifests, sum.links, sum.repositories), (5, 3, 1));
    assert_eq!(rig.used(), 0);
    rig.get("/v2/a/tags/list").await.is(404);
}

#[tokio::test]
async fn a_child_in_its_grace_waits_with_what_it_names() {
    let rig = hourly();
    let digest = rig.image("a", "v1", "one").await;
    rig.delete("/v2/a/manifests/v1").await.is(202);
    rig.collect(0);
    rig.collect(HOUR - 1);
    // A client looks whether it must be pushed, and pushes the index that names it.
    rig.head(&format!("/v2/a/manifests/{digest}")).await.is(200);
    assert_eq!(rig.collect(HOUR).manifests, 0);
    let described = json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 1});
    let index = index_of(&[described]);
    rig.put("a", "all", OCI_INDEX, &index).await.is(201);
    assert_eq!(collect_all(&rig, 2 * HOUR), Report::default());
    rig.get(&format!("/v2/a/manifests/{digest}")).await.is(200);
}

#[tokio::test]
async fn a_shared_blob_stays_as_long_as_one_repository_needs_it() {
    let rig = hourly();
    rig.image("a", "v1", "one").await;
    rig.image("b", "v1", "one").await;
    let used = rig.used();
    rig.delete("/v2/a/manifests/v1").await.is(202);
    let sum = collect_all(&rig, 0);
    assert_eq!((sum.manifests, sum.links, sum.blobs), (1, 2, 0));
    assert_eq!(rig.used(), used);
    rig.get("/v2/b/manifests/v1").await.is(200);
    let name: RepositoryName = "b".parse().expect("a name");
    assert!(rig.registry().remove(&name).expect("removed"));
    assert!(!rig.registry().remove(&name).expect("gone"));
    rig.get("/v2/b/tags/list").await.is(404);
    let report = rig.collect(20 * HOUR);
    assert_eq!(report.blobs, 3, "nobody can have been told of them");
    assert_eq!(rig.used(), 0);
}

#[tokio::test]
async fn uploads_that_stand_still_are_given_up() {
    let rig = hourly();
    let still = rig.begin("a").await;
    rig.patch(&still, "0-3", b"cont").await.is(202);
    let alive = rig.begin("a").await;
    assert_eq!(rig.collect(0).uploads, 0);
    assert_eq!(rig.collect(2 * HOUR - 1).uploads, 0);
    rig.patch(&alive, "0-3", b"cont").await.is(202);
    assert_eq!(rig.collect(2 * HOUR).uploads, 1);
    rig.get(&still).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(rig.used(), 4);
    let digest = sha256(b"content");
    rig.finish(&alive, &digest, b"ent").await.is(201);
    assert_eq!(rig.collect(9 * HOUR).uploads, 0);
}

#[tokio::test]
async fn where_a_manifest_cannot_be_read_nothing_goes() {
    let rig = hourly();
    let digest = rig.image("a", "v1", "one").await;
    rig.blob("a", b"nobody needs it").await;
    rig.image("b", "v1", "two").await;
    rig.delete("/v2/b/manifests/v1").await.is(202);
    // As a damaged disk would.
    let hex = digest.strip_prefix("sha256:").expect("sha256");
    let path = rig.folder().join("blobs/sha256").join(&hex[..2]).join(hex);
    let good = std::fs::read(&path).expect("read");
    std::fs::write(&path, "damaged").expect("write");
    let mut sum = Report::default();
    for hour in 0..10 {
        let report = rig.collect(hour * HOUR);
        sum.links += report.links;
        sum.manifests += report.manifests;
    }
    assert_eq!(
        (sum.manifests, sum.links),
        (1, 2),
        "of the other repository"
    );
    std::fs::write(&path, good).expect("write");
    let sum = collect_all(&rig, 20 * HOUR);
    assert_eq!((sum.manifests, sum.links), (0, 1));
    rig.get("/v2/a/manifests/v1").await.is(200);
}

#[tokio::test]
async fn a_restart_begins_the_grace_anew() {
    let mut rig = hourly();
    rig.blob("a", b"content").await;
    rig.collect(0);
    rig.restart();
    assert_eq!(rig.collect(HOUR).links, 0);
    let report = rig.collect(2 * HOUR);
    assert_eq!((report.links, report.blobs, report.bytes), (1, 1, 7));
    assert_eq!(report.repositories, 1);
}

#[tokio::test]
async fn without_grace_one_collection_takes_all() {
    let rig = Rig::with(Settings {
        grace: Duration::ZERO,
        ..Settings::default()
    });
    rig.image("a", "v1", "one").await;
    rig.delete("/v2/a/manifests/v1").await.is(202);
    let report = rig.collect(0);
    assert_eq!((report.manifests, report.links, report.blobs), (1, 2, 3));
    assert_eq!((report.repositories, report.waiting), (1, 0));
    assert_eq!(rig.used(), 0);
}
