//! Restarts and kills: what an instant of the steps in `store.rs` leaves behind is made by hand here, and the next start
//! must cope with it.

use std::fs;
use std::time::Duration;

use hutong_registry::{OCI_MANIFEST, Registry, RepositoryName, Settings, StoreError};
use serde_json::json;

use crate::rig::{Answer, Rig, descriptor, noise, sha256, sha512};

fn quick() -> Rig {
    Rig::with(Settings {
        grace: Duration::from_secs(10),
        ..Settings::default()
    })
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart() {
    let mut rig = Rig::new();
    let content = noise(1, 300_000);
    let location = rig.begin("a/b").await;
    let first = rig.patch(&location, "0-99999", &content[..100_000]).await;
    first.is(202);
    for (from, to) in [(100_000, 200_000), (200_000, 300_000)] {
        rig.restart();
        assert_eq!(rig.used(), from as u64);
        let status = rig.get(&location).await.is(204);
        assert_eq!(status.header("range"), format!("0-{}", from - 1));
        let wrong = rig.patch(&location, "0-9", &content[..10]).await;
        wrong.is(416);
        let range = format!("{from}-{}", to - 1);
        let answer = rig.patch(&location, &range, &content[from..to]).await;
        answer.is(202);
    }
    rig.restart();
    let digest = sha256(&content);
    rig.finish(&location, &digest, b"").await.is(201);
    let answer = rig.get(&format!("/v2/a/b/blobs/{digest}")).await.is(200);
    assert!(answer.body == content);
    rig.check();
}

#[tokio::test]
async fn an_upload_that_was_cut_off_goes_on_after_a_restart() {
    let mut rig = Rig::new();
    let location = rig.begin("a").await;
    let call = rig.call("PATCH", &location);
    call.cut_off(&noise(2, 70_000)).await.is(408);
    rig.restart();
    let status = rig.get(&location).await.is(204);
    assert_eq!(status.header("range"), "0-69999");
    // By another algorithm, so it is read from the beginning.
    let digest = sha512(&noise(2, 70_000));
    rig.finish(&location, &digest, b"").await.is(201);
    rig.check();
}

#[tokio::test]
async fn what_a_power_cut_did_to_an_upload_shows_at_its_end() {
    let mut rig = Rig::new();
    let location = rig.begin("a").await;
    rig.patch(&location, "0-3", b"cont").await.is(202);
    rig.kill();
    let id = location.rsplit_once('/').expect("an id").1;
    let path = rig.folder().join("uploads").join(id).join("data");
    fs::write(path, "c\0\0t").expect("write");
    rig.start();
    let answer = rig.finish(&location, &sha256(b"content"), b"ent").await;
    answer.refused(400, "DIGEST_INVALID");
    rig.check();
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let mut rig = Rig::new();
    let digest = rig.image("a/b", "v1", "one").await;
    rig.image("c", "v1", "one").await;
    let mut signature = rig.image_blobs("c", "signature").await;
    signature["subject"] = json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 1});
    rig.put("c", "sig", OCI_MANIFEST, &signature).await.is(201);
    rig.begin("c").await;
    let used = rig.used();
    let name: RepositoryName = "c".parse().expect("a name");
    let of_c = rig.registry().usage_of(&name);
    rig.restart();
    assert_eq!(rig.used(), used);
    assert_eq!(rig.registry().usage_of(&name), of_c);
    let answer = rig.get("/v2/a/b/manifests/v1").await.is(200);
    assert_eq!(answer.header("docker-content-digest"), digest);
    let answer = rig.get(&format!("/v2/c/referrers/{digest}")).await;
    assert_eq!(listed(answer), 1);
    rig.check();
}

fn listed(answer: Answer) -> usize {
    let json = answer.is(200).json();
    json["manifests"].as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn two_processes_do_not_share_a_folder() {
    let rig = Rig::new();
    let access = rig.rules.clone();
    let second = Registry::open(&rig.folder(), Settings::default(), access);
    assert!(matches!(second, Err(StoreError::Locked)));
}

#[tokio::test]
async fn killed_before_a_blob_was_linked() {
    let mut rig = quick();
    let digest = rig.blob("a", b"content").await;
    rig.blob("a", b"other").await;
    rig.kill();
    let link = rig.folder().join("repositories/a/links").join(&digest);
    fs::remove_file(&link).expect("remove");
    rig.start();
    rig.check();
    rig.get(&format!("/v2/a/blobs/{digest}")).await.is(404);
    assert_eq!(rig.used(), 12);
    // Pushed again, it is completed.
    rig.blob("a", b"content").await;
    assert_eq!(rig.used(), 12);
    rig.get(&format!("/v2/a/blobs/{digest}")).await.is(200);
    // Or it goes.
    rig.kill();
    fs::remove_file(&link).expect("remove");
    rig.start();
    assert_eq!(rig.collect(0).blobs, 1);
    assert_eq!(rig.used(), 5);
    rig.check();
}

#[tokio::test]
async fn killed_while_uploads_began_and_ended() {
    let mut rig = Rig::new();
    let kept = rig.begin("a").await;
    rig.kill();
    let uploads = rig.folder().join("uploads");
    let left: [(&str, &[&str]); 4] = [
        ("01234567-0123-4123-8123-0123456789ab", &["data"]),
        ("11234567-0123-4123-8123-0123456789ab", &[]),
        // Finished but for its folder.
        ("21234567-0123-4123-8123-0123456789ab", &["session"]),
        ("not-ours", &["data"]),
    ];
    for (name, files) in left {
        fs::create_dir(uploads.join(name)).expect("mkdir");
        for file in files {
            let path = uploads.join(name).join(file);
            fs::write(path, "sha256 a\n").expect("write");
        }
    }
    fs::write(rig.folder().join("staging/7"), "half a ma").expect("write");
    rig.start();
    let count = |folder: &str| {
        let entries = fs::read_dir(rig.folder().join(folder));
        entries.expect("read").count()
    };
    assert_eq!((count("uploads"), count("staging")), (1, 0));
    rig.get(&kept).await.is(204);
    rig.check();
}

#[tokio::test]
async fn killed_before_a_manifest_was_tagged() {
    let mut rig = quick();
    let subject = sha256(b"subject");
    let mut manifest = rig.image_blobs("a", "one").await;
    manifest["subject"] = json!({"mediaType": OCI_MANIFEST, "digest": subject, "size": 1});
    rig.put("a", "v1", OCI_MANIFEST, &manifest).await.is(201);
    let digest = sha256(manifest.to_string().as_bytes());
    let folder = rig.folder().join("repositories/a");
    let referrers = format!("/v2/a/referrers/{subject}");
    assert_eq!(listed(rig.get(&referrers).await), 1);
    // No tag yet.
    rig.kill();
    fs::remove_file(folder.join("tags/v1")).expect("remove");
    rig.start();
    rig.check();
    rig.get("/v2/a/manifests/v1").await.is(404);
    rig.get(&format!("/v2/a/manifests/{digest}")).await.is(200);
    // No manifest yet, but the entry among the referrers.
    rig.kill();
    fs::remove_file(folder.join("manifests").join(&digest)).expect("remove");
    rig.start();
    rig.check();
    assert_eq!(listed(rig.get(&referrers).await), 0);
    rig.get(&format!("/v2/a/manifests/{digest}")).await.is(404);
    // A second push completes it.
    rig.put("a", "v1", OCI_MANIFEST, &manifest).await.is(201);
    assert_eq!(listed(rig.get(&referrers).await), 1);
    // Or it goes.
    rig.kill();
    fs::remove_file(folder.join("tags/v1")).expect("remove");
    fs::remove_file(folder.join("manifests").join(&digest)).expect("remove");
    rig.start();
    for seconds in [0, 10, 20, 30] {
        rig.collect(seconds);
        rig.check();
    }
    assert_eq!(rig.used(), 0);
    assert!(!folder.exists());
}

#[tokio::test]
async fn killed_in_the_middle_of_a_deletion() {
    let mut rig = quick();
    let digest = rig.image("a", "v1", "one").await;
    rig.image("a", "v2", "one").await;
    rig.kill();
    // One of its tags is gone.
    let folder = rig.folder().join("repositories/a");
    fs::remove_file(folder.join("tags/v1")).expect("remove");
    rig.start();
    rig.check();
    rig.get("/v2/a/manifests/v2").await.is(200);
    let path = format!("/v2/a/manifests/{digest}");
    rig.delete(&path).await.is(202);
    rig.get("/v2/a/manifests/v2").await.is(404);
    // Folders of a repository that was being removed.
    rig.kill();
    fs::remove_dir(folder.join("tags")).expect("remove");
    rig.start();
    rig.collect(0);
    rig.check();
    rig.image("a", "v3", "one").await;
    let answer = rig.get("/v2/a/tags/list").await.is(200);
    assert_eq!(answer.json()["tags"], json!(["v3"]));
    rig.check();
}

#[tokio::test]
async fn a_damaged_blob_is_replaced_by_the_next_push() {
    let mut rig = Rig::new();
    let digest = rig.blob("a", b"content").await;
    let hex = digest.strip_prefix("sha256:").expect("sha256");
    let path = rig.folder().join("blobs/sha256").join(&hex[..2]).join(hex);
    fs::write(&path, "con").expect("write");
    rig.restart();
    rig.blob("a", b"content").await;
    let answer = rig.get(&format!("/v2/a/blobs/{digest}")).await.is(200);
    assert_eq!(answer.body, "content");
    assert_eq!(rig.used(), 7);
    // Where it is gone altogether, the repository does not have it.
    fs::remove_file(&path).expect("remove");
    let answer = rig.head(&format!("/v2/a/blobs/{digest}")).await;
    answer.is(404);
    let manifest = json!({
        "schemaVersion": 2, "config": descriptor("x", b"content"), "layers": [],
    });
    let answer = rig.put("a", "v1", OCI_MANIFEST, &manifest).await;
    answer.refused(404, "MANIFEST_BLOB_UNKNOWN");
    rig.blob("a", b"content").await;
    rig.put("a", "v1", OCI_MANIFEST, &manifest).await.is(201);
    rig.check();
}
