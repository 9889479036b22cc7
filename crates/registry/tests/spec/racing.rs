//! What happens at once: pushes, deletions, collections, two clients with one upload.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use hutong_registry::{OCI_MANIFEST, RepositoryName, Settings};
use tower::ServiceExt;

use crate::rig::{Client, Rig, noise, sha256, stalled};

/// Pushes images again and again. Each push either succeeds or says what is missing; what can be pulled is whole.
async fn push_and_pull(client: Client, name: String, tag: String, until: Instant) -> u64 {
    let mut pushed = 0;
    let mut round = 0;
    while Instant::now() < until {
        round += 1;
        let seed = format!("{}", round % 3);
        let manifest = client.image_blobs(&name, &seed).await;
        let answer = client.put(&name, &tag, OCI_MANIFEST, &manifest).await;
        if answer.status == 404 {
            assert_eq!(answer.code(), "MANIFEST_BLOB_UNKNOWN");
            continue;
        }
        answer.is(201);
        pushed += 1;
        // Others delete the tag, so it may be gone; but never half of it.
        let answer = client.get(&format!("/v2/{name}/manifests/{tag}")).await;
        if answer.status == 404 {
            continue;
        }
        let answer = answer.is(200);
        let manifest = answer.json();
        for blob in [&manifest["config"], &manifest["layers"][0]] {
            let blob = blob["digest"].as_str().expect("a digest");
            let answer = client.get(&format!("/v2/{name}/blobs/{blob}")).await;
            // It may be gone by now, with its manifest: what is left when all stand still is looked at later.
            if answer.status != 404 {
                assert_eq!(sha256(&answer.is(200).body), blob);
            }
        }
    }
    pushed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pushes_race_deletions_and_collections() {
    let rig = Rig::with(Settings {
        // Nobody is given any time: all that protects a push is that it pushes.
        grace: Duration::ZERO,
        ..Settings::default()
    });
    let mut sum = 0;
    for round in 0..6 {
        let (pushed, deleted, removed) = race(&rig, round).await;
        println!("{pushed} pushed, {deleted} deleted, {removed} blobs collected");
        rig.check();
        sum += pushed;
    }
    assert!(sum > 0);
    // The figures did not drift.
    for name in ["a", "b"] {
        let name: RepositoryName = name.parse().expect("a name");
        rig.registry().remove(&name).expect("removed");
    }
    rig.collect(1_000_000);
    assert_eq!(rig.used(), 0);
}

/// Half a second of pushes, deletions and collections; how many there were of each.
async fn race(rig: &Rig, round: u64) -> (u64, u64, u64) {
    let until = Instant::now() + Duration::from_millis(500);
    let mut tasks = Vec::new();
    for name in ["a", "b"] {
        for tag in ["v1", "v2"] {
            let (name, tag) = (name.to_owned(), tag.to_owned());
            tasks.push(tokio::spawn(push_and_pull(rig.client(), name, tag, until)));
        }
    }
    let deleting = tokio::spawn(delete_all(rig.client(), until));
    let (registry, over) = (rig.shared(), Arc::new(AtomicBool::new(false)));
    let ended = over.clone();
    let collecting = std::thread::spawn(move || {
        let mut removed = 0;
        let mut seconds = round * 100_000;
        while !ended.load(Ordering::SeqCst) {
            seconds += 1;
            let now = Duration::from_secs(seconds);
            removed += registry.collect(&[], now).expect("collected").blobs;
        }
        removed
    });
    let mut pushed = 0;
    for task in tasks {
        pushed += task.await.expect("pushes");
    }
    let deleted = deleting.await.expect("deletions");
    over.store(true, Ordering::SeqCst);
    let removed = collecting.join().expect("collections");
    (pushed, deleted, removed)
}

/// Deletes a tag, the manifest behind it, and a blob, again and again.
async fn delete_all(client: Client, until: Instant) -> u64 {
    let mut deleted = 0;
    while Instant::now() < until {
        for name in ["a", "b"] {
            let path = format!("/v2/{name}/manifests/v1");
            let answer = client.get(&path).await;
            let digest = answer.header("docker-content-digest").to_owned();
            deleted += u64::from(client.delete(&path).await.status == 202);
            if !digest.is_empty() {
                let path = format!("/v2/{name}/manifests/{digest}");
                deleted += u64::from(client.delete(&path).await.status == 202);
            }
            let blob = sha256(b"layer of 1");
            let path = format!("/v2/{name}/blobs/{blob}");
            deleted += u64::from(client.delete(&path).await.status == 202);
        }
    }
    deleted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn within_its_grace_no_push_fails() {
    let rig = Rig::with(Settings {
        grace: Duration::from_secs(100),
        ..Settings::default()
    });
    let until = Instant::now() + Duration::from_secs(3);
    // The registry's clock counts pushes: none takes as long as a hundred others.
    let clock = Arc::new(AtomicU64::new(0));
    let (registry, over) = (rig.shared(), Arc::new(AtomicBool::new(false)));
    let (ended, time) = (over.clone(), clock.clone());
    let collecting = std::thread::spawn(move || {
        while !ended.load(Ordering::SeqCst) {
            let now = Duration::from_secs(time.load(Ordering::SeqCst));
            registry.collect(&[], now).expect("collected");
        }
    });
    let mut tasks = Vec::new();
    for number in 0..4 {
        let (client, clock) = (rig.client(), clock.clone());
        tasks.push(tokio::spawn(async move {
            let mut round = 0;
            while Instant::now() < until {
                round += 1;
                let seed = format!("{number}-{round}");
                let name = format!("r{}", number % 2);
                client.image(&name, "latest", &seed).await;
                clock.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    for task in tasks {
        task.await.expect("pushes");
    }
    over.store(true, Ordering::SeqCst);
    collecting.join().expect("collections");
    rig.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_blob_may_come_many_times_at_once() {
    let rig = Rig::new();
    let content = noise(1, 400_000);
    let mut tasks = Vec::new();
    for number in 0..6 {
        let (client, content) = (rig.client(), content.clone());
        tasks.push(tokio::spawn(async move {
            let name = format!("r{}", number % 3);
            client.blob(&name, &content).await;
        }));
    }
    for task in tasks {
        task.await.expect("a push");
    }
    assert_eq!(rig.used(), 400_000);
    rig.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_chunks_that_come_at_once_one_is_first() {
    let rig = Rig::new();
    for _ in 0..20 {
        let location = rig.begin("a").await;
        let mut tasks = Vec::new();
        for _ in 0..3 {
            let (client, location) = (rig.client(), location.clone());
            tasks.push(tokio::spawn(async move {
                client.patch(&location, "0-6", b"content").await.status
            }));
        }
        let mut all = Vec::new();
        for task in tasks {
            all.push(task.await.expect("a chunk"));
        }
        all.sort_unstable();
        assert_eq!(all, [202, 416, 416]);
        let digest = sha256(b"content");
        rig.finish(&location, &digest, b"").await.is(201);
    }
    rig.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_may_be_cancelled_while_it_comes_in() {
    let settings = Settings {
        idle: Duration::from_millis(200),
        ..Settings::default()
    };
    let rig = Rig::with(settings);
    let location = rig.begin("a").await;
    let call = rig.call("PATCH", &location);
    let coming = tokio::spawn(call.body(stalled(b"cont")));
    while rig.used() == 0 {
        tokio::task::yield_now().await;
    }
    rig.delete(&location).await.is(204);
    rig.get(&location).await.is(404);
    let answer = coming.await.expect("an answer");
    assert!([404, 408].contains(&answer.status), "{}", answer.status);
    // Whoever let go of it last cleared it away.
    let began = Instant::now();
    while rig.used() != 0 {
        assert!(began.elapsed().as_secs() < 20, "it stays");
        tokio::task::yield_now().await;
    }
    let uploads = std::fs::read_dir(rig.folder().join("uploads"));
    assert_eq!(uploads.expect("read").count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_may_come_back() {
    let rig = Rig::new();
    let location = rig.begin("a").await;
    let call = rig.call("PATCH", &location);
    let coming = tokio::spawn(call.body(stalled(b"cont")));
    while rig.used() < 4 {
        tokio::task::yield_now().await;
    }
    // Its connection ends, and the server drops what it was doing.
    coming.abort();
    let _ = coming.await;
    let status = rig.get(&location).await.is(204);
    assert_eq!(status.header("range"), "0-3");
    let digest = sha256(b"content");
    rig.finish(&location, &digest, b"ent").await.is(201);
    rig.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_is_deleted_is_read_to_its_end() {
    let rig = Rig::with(Settings {
        grace: Duration::ZERO,
        ..Settings::default()
    });
    let content = noise(2, 2_000_000);
    let digest = rig.blob("a", &content).await;
    let path = format!("/v2/a/blobs/{digest}");
    let request = Request::builder().uri(&path).body(Body::empty());
    let router = hutong_registry::router(rig.shared());
    let response = router.oneshot(request.expect("a request")).await;
    let mut body = response.expect("an answer").into_body();
    let first = body.frame().await.expect("some").expect("a frame");
    let mut read = first.into_data().expect("data").to_vec();
    rig.delete(&path).await.is(202);
    assert_eq!(rig.collect(1).blobs, 1);
    let rest = body.collect().await.expect("the rest").to_bytes();
    read.extend_from_slice(&rest);
    assert!(read == content);
}
