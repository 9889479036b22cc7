//! "Push": blobs.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hutong_registry::{Quota, Registry, Settings};

use crate::rig::{Answer, Client, Rig, Rules, noise, sha256, sha512, stalled};

#[tokio::test]
async fn post_then_put() {
    let rig = Rig::new();
    let answer = rig.post("/v2/a/b/blobs/uploads/").await.is(202);
    let location = answer.header("location").to_owned();
    let id = location.strip_prefix("/v2/a/b/blobs/uploads/").expect("id");
    assert_eq!(answer.header("docker-upload-uuid"), id);
    assert_eq!(answer.header("range"), "0-0");
    let digest = sha256(b"content");
    let answer = rig.finish(&location, &digest, b"content").await.is(201);
    let path = format!("/v2/a/b/blobs/{digest}");
    assert_eq!(answer.header("location"), path);
    assert_eq!(answer.header("docker-content-digest"), digest);
    assert_eq!(rig.get(&path).await.is(200).body, "content");
    // It is over.
    rig.get(&location).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    let again = rig.finish(&location, &digest, b"content").await;
    again.refused(404, "BLOB_UPLOAD_UNKNOWN");
    rig.check();
}

#[tokio::test]
async fn single_post() {
    let rig = Rig::new();
    let digest = sha256(b"content");
    for path in ["/v2/a/blobs/uploads/", "/v2/b/blobs/uploads"] {
        let path = format!("{path}?digest={digest}");
        let answer = rig.call("POST", &path).bytes("content").await.is(201);
        let location = answer.header("location").to_owned();
        assert_eq!(rig.get(&location).await.is(200).body, "content");
    }
    // Without a length, too.
    let content = noise(1, 200_000);
    let path = format!("/v2/a/blobs/uploads/?digest={}", sha256(&content));
    rig.call("POST", &path).streamed(&content).await.is(201);
    rig.check();
}

#[tokio::test]
async fn a_single_post_of_something_else_leaves_nothing() {
    let rig = Rig::new();
    let path = format!("/v2/a/blobs/uploads/?digest={}", sha256(b"other"));
    let answer = rig.call("POST", &path).bytes("content").await;
    answer.refused(400, "DIGEST_INVALID");
    rig.call("POST", &path).cut_off(b"oth").await.is(408);
    assert_eq!(rig.used(), 0);
    let uploads = std::fs::read_dir(rig.folder().join("uploads"));
    assert_eq!(uploads.expect("read").count(), 0);
    rig.get("/v2/a/tags/list").await.is(404);
}

#[tokio::test]
async fn pushing_a_blob_in_chunks() {
    let rig = Rig::new();
    let content = noise(2, 3_000);
    let mut location = rig.begin("a").await;
    for (range, from, to) in [("0-999", 0, 1_000), ("1000-1999", 1_000, 2_000)] {
        let answer = rig.patch(&location, range, &content[from..to]).await;
        let answer = answer.is(202);
        assert_eq!(answer.header("range"), format!("0-{}", to - 1));
        location = answer.header("location").to_owned();
        let status = rig.get(&location).await.is(204);
        assert_eq!(status.header("range"), format!("0-{}", to - 1));
        assert_eq!(status.header("location"), location);
    }
    rig.patch(&location, "2000-2999", &content[2_000..])
        .await
        .is(202);
    let digest = sha256(&content);
    rig.finish(&location, &digest, b"").await.is(201);
    let answer = rig.get(&format!("/v2/a/blobs/{digest}")).await.is(200);
    assert!(answer.body == content);
    rig.check();
}

#[tokio::test]
async fn the_last_chunk_may_come_with_the_end() {
    let rig = Rig::new();
    let location = rig.begin("a").await;
    rig.patch(&location, "0-3", b"cont").await.is(202);
    let digest = sha256(b"content");
    let path = format!("{location}?digest={digest}");
    // Out of order: 416, and it goes on.
    let call = rig.call("PUT", &path).header("content-range", "5-7");
    call.bytes("ent").await.refused(416, "BLOB_UPLOAD_INVALID");
    let call = rig.call("PUT", &path).header("content-range", "4-6");
    call.bytes("ent").await.is(201);
    rig.get(&format!("/v2/a/blobs/{digest}")).await.is(200);
    rig.check();
}

#[tokio::test]
async fn chunks_out_of_order() {
    let rig = Rig::new();
    let location = rig.begin("a").await;
    let first = rig.patch(&location, "4-6", b"ent").await;
    first.refused(416, "BLOB_UPLOAD_INVALID");
    let status = rig.get(&location).await.is(204);
    assert_eq!(status.header("range"), "0-0");
    rig.patch(&location, "0-3", b"cont").await.is(202);
    for range in ["0-2", "3-5", "5-7", "4-3"] {
        let answer = rig.patch(&location, range, b"ent").await;
        let answer = answer.refused(416, "BLOB_UPLOAD_INVALID");
        if range != "4-3" {
            assert_eq!(answer.header("range"), "0-3", "{range}");
            assert_eq!(answer.header("location"), location);
        }
    }
    rig.patch(&location, "4-6", b"ent").await.is(202);
    rig.finish(&location, &sha256(b"content"), b"")
        .await
        .is(201);
    rig.check();
}

#[tokio::test]
async fn chunks_that_are_not_as_long_as_they_say() {
    let rig = Rig::new();
    let location = rig.begin("a").await;
    rig.patch(&location, "0-3", b"cont").await.is(202);
    for range in ["4-5", "4-9"] {
        let answer = rig.patch(&location, range, b"ent").await;
        answer.refused(400, "SIZE_INVALID");
        let call = rig.call("PATCH", &location).header("content-range", range);
        call.streamed(b"ent").await.refused(400, "SIZE_INVALID");
        // Nothing of it was taken.
        let status = rig.get(&location).await.is(204);
        assert_eq!(status.header("range"), "0-3");
        assert_eq!(rig.used(), 4);
    }
    for range in ["4", "bytes 4-6/7", "4-", "a-b", "4-6/7", "-"] {
        let answer = rig.patch(&location, range, b"ent").await;
        answer.refused(400, "BLOB_UPLOAD_INVALID");
    }
    // Some clients say a range where nothing comes.
    let path = format!("{location}?digest={}", sha256(b"cont"));
    let call = rig.call("PUT", &path).header("content-range", "0-0");
    call.bytes("").await.is(201);
    rig.check();
}

#[tokio::test]
async fn a_stream_of_unknown_length() {
    let rig = Rig::new();
    let content = noise(3, 500_000);
    let location = rig.begin("a").await;
    let answer = rig.call("PATCH", &location).streamed(&content).await;
    assert_eq!(answer.is(202).header("range"), "0-499999");
    let digest = sha256(&content);
    rig.finish(&location, &digest, b"").await.is(201);
    rig.check();
}

#[tokio::test]
async fn content_must_be_what_its_digest_says() {
    let rig = Rig::new();
    for chunk in [&b"con"[..], b""] {
        let location = rig.begin("a").await;
        rig.patch(&location, "", b"oh no, ").await.is(202);
        let answer = rig.finish(&location, &sha256(b"content"), chunk).await;
        let answer = answer.refused(400, "DIGEST_INVALID");
        assert!(answer.message().contains("sha256:"), "{}", answer.message());
        rig.get(&location).await.is(404);
    }
    assert_eq!(rig.used(), 0);
    let place = format!("/v2/a/blobs/{}", sha256(b"content"));
    let missing = rig.get(&place);
    missing.await.is(404);
    let location = rig.begin("a").await;
    let digits = "0".repeat(64);
    for digest in ["", "x", "sha256:00", &format!("md5:{digits}")] {
        let answer = rig.finish(&location, digest, b"content").await;
        answer.refused(400, "DIGEST_INVALID");
    }
    let answer = rig.call("PUT", &location).bytes("content").await;
    answer.refused(400, "DIGEST_INVALID");
    // None of these took anything.
    let digest = sha256(b"content");
    rig.finish(&location, &digest, b"content").await.is(201);
    rig.check();
}

#[tokio::test]
async fn an_upload_that_was_cut_off_goes_on() {
    let rig = Rig::new();
    let content = noise(4, 300_000);
    let location = rig.begin("a").await;
    let call = rig.call("PATCH", &location);
    let call = call.header("content-range", "0-299999");
    call.cut_off(&content[..100_000]).await.is(408);
    let status = rig.get(&location).await.is(204);
    assert_eq!(status.header("range"), "0-99999");
    let path = format!("{location}?digest={}", sha256(&content));
    let call = rig.call("PUT", &path);
    let call = call.header("content-range", "100000-299999");
    call.cut_off(&content[100_000..200_000]).await.is(408);
    let status = rig.get(&location).await.is(204);
    assert_eq!(status.header("range"), "0-199999");
    let call = rig.call("PUT", &path);
    let call = call.header("content-range", "200000-299999");
    call.bytes(content[200_000..].to_vec()).await.is(201);
    assert_eq!(rig.used(), 300_000);
    rig.check();
}

#[tokio::test]
async fn a_client_that_says_nothing_more_is_given_up() {
    let settings = Settings {
        idle: Duration::from_millis(50),
        ..Settings::default()
    };
    let rig = Rig::with(settings);
    let location = rig.begin("a").await;
    let call = rig.call("PATCH", &location);
    call.body(stalled(b"cont")).await.is(408);
    let status = rig.get(&location).await.is(204);
    assert_eq!(status.header("range"), "0-3");
    let path = format!("/v2/a/blobs/uploads/?digest={}", sha256(b"content"));
    rig.call("POST", &path).body(stalled(b"cont")).await.is(408);
    let path = "/v2/a/manifests/v1";
    rig.call("PUT", path).body(stalled(b"{")).await.is(408);
    assert_eq!(rig.used(), 4);
}

#[tokio::test]
async fn uploads_that_nobody_began() {
    let rig = Rig::new();
    let mine = rig.begin("a").await;
    let theirs = mine.replace("/a/", "/b/");
    let unknown = "/v2/a/blobs/uploads/01234567-0123-4123-8123-0123456789ab";
    let odd = "/v2/a/blobs/uploads/..";
    for location in [theirs.as_str(), unknown, odd] {
        rig.get(location).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
        let answer = rig.patch(location, "0-0", b"x").await;
        answer.refused(404, "BLOB_UPLOAD_UNKNOWN");
        let answer = rig.finish(location, &sha256(b"x"), b"x").await;
        answer.refused(404, "BLOB_UPLOAD_UNKNOWN");
        let answer = rig.delete(location).await;
        answer.refused(404, "BLOB_UPLOAD_UNKNOWN");
    }
    rig.get(&mine).await.is(204);
}

#[tokio::test]
async fn cancelling_an_upload() {
    let rig = Rig::new();
    let location = rig.begin("a").await;
    rig.patch(&location, "0-3", b"cont").await.is(202);
    assert_eq!(rig.used(), 4);
    rig.delete(&location).await.is(204);
    assert_eq!(rig.used(), 0);
    rig.get(&location).await.is(404);
    rig.delete(&location).await.is(404);
    let uploads = std::fs::read_dir(rig.folder().join("uploads"));
    assert_eq!(uploads.expect("read").count(), 0);
}

#[tokio::test]
async fn other_algorithms() {
    let rig = Rig::new();
    let content = noise(5, 100_000);
    let digest = sha512(&content);
    let begin = "/v2/a/blobs/uploads/?digest-algorithm=sha512";
    for path in [begin, "/v2/a/blobs/uploads/"] {
        let location = rig.post(path).await.is(202).header("location").to_owned();
        rig.patch(&location, "0-99999", &content).await.is(202);
        let answer = rig.finish(&location, &digest, b"").await.is(201);
        assert_eq!(answer.header("docker-content-digest"), digest);
    }
    // And the other way round.
    let location = rig.post(begin).await.is(202).header("location").to_owned();
    let short = sha256(&content);
    rig.finish(&location, &short, &content).await.is(201);
    for digest in [digest, short] {
        let answer = rig.get(&format!("/v2/a/blobs/{digest}")).await.is(200);
        assert!(answer.body == content);
    }
    for query in [
        "digest-algorithm=md5".to_owned(),
        "digest-algorithm=".into(),
        format!("digest=md5:{}", "0".repeat(32)),
        "mount=sha256:x&from=b".into(),
    ] {
        let answer = rig.post(&format!("/v2/a/blobs/uploads/?{query}")).await;
        answer.refused(400, "DIGEST_INVALID");
    }
    rig.check();
}

#[tokio::test]
async fn mounting_a_blob_from_another_repository() {
    let rig = Rig::new();
    let digest = rig.blob("source/one", b"content").await;
    let used = rig.used();
    for query in ["&from=source/one", "&from=source%2Fone", ""] {
        let name = format!("target{}", query.len());
        let path = format!("/v2/{name}/blobs/uploads/?mount={digest}{query}");
        let answer = rig.post(&path).await.is(201);
        let blob = format!("/v2/{name}/blobs/{digest}");
        assert_eq!(answer.header("location"), blob);
        assert_eq!(answer.header("docker-content-digest"), digest);
        assert_eq!(rig.get(&blob).await.is(200).body, "content");
    }
    assert_eq!(rig.used(), used, "kept once");
    rig.check();
}

#[tokio::test]
async fn mounting_what_is_not_there_begins_an_upload() {
    let rig = Rig::new();
    let digest = sha256(b"content");
    let there = rig.blob("b", b"x").await;
    for query in [
        format!("mount={digest}&from=b"),
        format!("mount={there}&from=c"),
        format!("mount={there}&from=..%2Fb"),
        format!("mount={digest}"),
    ] {
        let answer = rig.post(&format!("/v2/a/blobs/uploads/?{query}")).await;
        let location = answer.is(202).header("location").to_owned();
        rig.finish(&location, &digest, b"content").await.is(201);
        rig.delete(&format!("/v2/a/blobs/{digest}")).await.is(202);
        rig.collect(0);
    }
    rig.check();
}

#[tokio::test]
async fn what_is_there_already_is_kept_once() {
    let rig = Rig::new();
    let content = noise(6, 50_000);
    for name in ["a", "b", "a"] {
        rig.blob(name, &content).await;
        assert_eq!(rig.used(), 50_000);
    }
    let usage = rig.registry().usage_of(&"a".parse().expect("a name"));
    assert_eq!(usage.bytes, 50_000);
    rig.check();
}

fn small(total_bytes: u64, owner_bytes: u64) -> Settings {
    Settings {
        quota: Quota {
            total_bytes,
            owner_bytes,
            ..Quota::default()
        },
        ..Settings::default()
    }
}

#[tokio::test]
async fn a_repository_has_a_bound() {
    let rig = Rig::with(small(1 << 30, 100_000));
    rig.blob("a", &noise(7, 60_000)).await;
    let more = noise(8, 60_000);
    let location = rig.begin("a").await;
    // Said before, or seen on the way: refused, and nothing of it is kept.
    let answer = rig.patch(&location, "0-59999", &more).await;
    let answer = answer.refused(413, "DENIED");
    assert_eq!(
        answer.message(),
        "the repository holds 58.6K of 97.7K, and this needs 58.6K more"
    );
    let answer = rig.call("PATCH", &location).streamed(&more).await;
    answer.refused(413, "DENIED");
    let status = rig.get(&location).await.is(204);
    assert_eq!(status.header("range"), "0-0");
    assert_eq!(rig.used(), 60_000);
    let path = format!("/v2/a/blobs/uploads/?digest={}", sha256(&more));
    let answer = rig.call("POST", &path).bytes(more.clone()).await;
    answer.refused(413, "DENIED");
    // Another repository has its own, and what it shares counts.
    let digest = rig.blob("b", &more).await;
    let path = format!("/v2/a/blobs/uploads/?mount={digest}&from=b");
    rig.post(&path).await.refused(413, "DENIED");
    rig.patch(&location, "0-39999", &more[..40_000])
        .await
        .is(202);
    rig.check();
}

#[tokio::test]
async fn the_bound_is_of_all_that_an_owner_has() {
    let settings = Settings {
        owner: |name| name.split('/').next().unwrap_or(name),
        ..small(1 << 30, 100_000)
    };
    let mut rig = Rig::with(settings);
    rig.blob("shop", &noise(11, 60_000)).await;
    let more = noise(12, 60_000);
    let path = format!("/v2/shop/worker/blobs/uploads/?digest={}", sha256(&more));
    let refused = |answer: Answer| {
        let answer = answer.refused(413, "DENIED");
        assert_eq!(
            answer.message(),
            "the repository's owner holds 58.6K of 97.7K, and this needs 58.6K more"
        );
    };
    refused(rig.call("POST", &path).bytes(more.clone()).await);
    // It is known after a restart, too; and somebody else has a bound of their own.
    rig.restart();
    refused(rig.call("POST", &path).bytes(more.clone()).await);
    rig.blob("shopping", &more).await;
    rig.blob("shop/worker", &more[..40_000]).await;
    rig.check();
}

#[tokio::test]
async fn room_is_asked_for_while_much_comes_in() {
    let dir = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        look: 10_000,
        ..Settings::default()
    };
    let rules: Arc<Rules> = Arc::default();
    let (asked, full) = (
        Arc::new(Mutex::new(Vec::new())),
        Arc::new(Mutex::new(false)),
    );
    let (heard, is_full) = (asked.clone(), full.clone());
    let registry = Registry::open(&dir.path().join("r"), settings, rules).expect("opened");
    let registry = Arc::new(registry.with_room(move |more| {
        heard.lock().expect("lock").push(more);
        match *is_full.lock().expect("lock") {
            true => Err("the disk is full but for its reserve".to_owned()),
            false => Ok(()),
        }
    }));
    let client = Client::of(hutong_registry::router(registry.clone()));
    // What is small is not asked for, nor does anybody need to know how much there will be.
    client.blob("a", &noise(13, 5_000)).await;
    assert_eq!(asked.lock().expect("lock").len(), 0);
    let content = noise(14, 40_000);
    let location = client.begin("a").await;
    let call = client.call("PATCH", &location);
    call.streamed(&content).await.is(202);
    assert_eq!(*asked.lock().expect("lock"), [0, 0]);
    // It fills up: what came of this body goes, the rest of the upload stays.
    *full.lock().expect("lock") = true;
    let answer = client.patch(&location, "40000-79999", &content).await;
    let answer = answer.refused(507, "DENIED");
    assert!(answer.message().contains("reserve"), "{}", answer.message());
    let status = client.get(&location).await.is(204);
    assert_eq!(status.header("range"), "0-39999");
    assert_eq!(registry.usage().bytes, 45_000);
    *full.lock().expect("lock") = false;
    let answer = client.patch(&location, "40000-79999", &content).await;
    answer.is(202);
}

#[tokio::test]
async fn the_registry_has_a_bound() {
    let rig = Rig::with(small(100_000, 1 << 30));
    rig.blob("a", &noise(9, 60_000)).await;
    let more = noise(10, 60_000);
    let path = format!("/v2/b/blobs/uploads/?digest={}", sha256(&more));
    let answer = rig.call("POST", &path).streamed(&more).await;
    let answer = answer.refused(413, "DENIED");
    let text = answer.message();
    assert!(text.starts_with("the registry holds"), "{text}");
    assert_eq!(rig.used(), 60_000);
    // What was refused is not found later.
    rig.get(&format!("/v2/b/blobs/{}", sha256(&more)))
        .await
        .is(404);
    rig.blob("b", &more[..40_000]).await;
    let full = rig.post("/v2/c/blobs/uploads/").await;
    full.refused(413, "DENIED");
    rig.check();
}

#[tokio::test]
async fn uploads_under_way_have_a_bound() {
    let settings = Settings {
        uploads: 2,
        ..Settings::default()
    };
    let rig = Rig::with(settings);
    let first = rig.begin("a").await;
    rig.begin("b").await;
    let answer = rig.post("/v2/c/blobs/uploads/").await;
    let answer = answer.refused(429, "TOOMANYREQUESTS");
    assert_eq!(answer.header("retry-after"), "5");
    rig.delete(&first).await.is(204);
    rig.begin("c").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_come_in_at_once_have_a_bound() {
    let settings = Settings {
        receiving: 1,
        waiting: 0,
        ..Settings::default()
    };
    let rig = Rig::with(settings);
    let (first, second) = (rig.begin("a").await, rig.begin("a").await);
    let slow = rig.call("PATCH", &first).body(stalled(b"cont"));
    let slow = tokio::spawn(slow);
    // Until its first bytes are there.
    while rig.used() == 0 {
        tokio::task::yield_now().await;
    }
    let answer = rig.patch(&second, "0-0", b"x").await;
    answer.refused(429, "TOOMANYREQUESTS");
    // Its client goes away: the place is free again, soon, and what came is kept.
    slow.abort();
    let _ = slow.await;
    loop {
        let answer = rig.patch(&second, "", b"x").await;
        if answer.status == 202 {
            break;
        }
        answer.refused(429, "TOOMANYREQUESTS");
        tokio::task::yield_now().await;
    }
    let status = rig.get(&first).await.is(204);
    assert_eq!(status.header("range"), "0-3");
}
