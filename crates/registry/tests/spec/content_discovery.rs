//! "Content Discovery".

use hutong_registry::{OCI_INDEX, OCI_MANIFEST};
use serde_json::{Value, json};

use crate::rig::{Rig, descriptor, index_of, sha256};

async fn tagged(tags: &[&str]) -> Rig {
    let rig = Rig::new();
    let manifest = rig.image_blobs("a/b", "one").await;
    for tag in tags {
        rig.put("a/b", tag, OCI_MANIFEST, &manifest).await.is(201);
    }
    rig
}

async fn list(rig: &Rig, query: &str) -> (Vec<String>, String) {
    let path = if query.starts_with("/v2/") {
        query.to_owned()
    } else {
        format!("/v2/a/b/tags/list{query}")
    };
    let answer = rig.get(&path).await.is(200);
    let json = answer.json();
    assert_eq!(json["name"], "a/b");
    let tags = json["tags"].as_array().expect("a list").iter();
    let tags = tags.map(|tag| tag.as_str().expect("text").to_owned());
    (tags.collect(), answer.header("link").to_owned())
}

#[tokio::test]
async fn listing_tags() {
    let rig = tagged(&["v2", "latest", "V1", "v10", "_x", "1.0"]).await;
    let all = ["1.0", "V1", "_x", "latest", "v10", "v2"];
    let (tags, link) = list(&rig, "").await;
    assert_eq!(
        (tags.as_slice(), link.as_str()),
        (&all.map(str::to_owned)[..], "")
    );
    for (query, from, to, more) in [
        ("?n=2", 0, 2, true),
        ("?n=2&last=V1", 2, 4, true),
        ("?n=2&last=latest", 4, 6, false),
        ("?n=6", 0, 6, false),
        ("?n=100", 0, 6, false),
        ("?n=99999999999999999999999", 0, 6, false),
        ("?n=0", 0, 0, false),
        ("?n=0&last=V1", 2, 2, false),
        ("?last=latest", 4, 6, false),
        // It need not be there.
        ("?last=lbtest", 4, 6, false),
        ("?last=", 0, 6, false),
        ("?n=3&last=zzz", 6, 6, false),
    ] {
        let (tags, link) = list(&rig, query).await;
        assert_eq!(tags, all[from..to], "{query}");
        assert_eq!(!link.is_empty(), more, "{query}");
    }
    for query in ["?n=-1", "?n=x", "?n=", "?n=1.5"] {
        let path = format!("/v2/a/b/tags/list{query}");
        rig.get(&path).await.refused(400, "UNSUPPORTED");
    }
}

#[tokio::test]
async fn pages_of_tags_are_followed_by_their_links() {
    let tags: Vec<String> = (0..23).map(|number| format!("t{number}")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    let rig = tagged(&tags).await;
    let mut found = Vec::new();
    let mut next = "/v2/a/b/tags/list?n=5".to_owned();
    for page in 0.. {
        assert!(page < 5, "no end");
        let (tags, link) = list(&rig, &next).await;
        found.extend(tags);
        if link.is_empty() {
            break;
        }
        let path = link.strip_prefix('<').and_then(|l| l.split_once('>'));
        let (path, relation) = path.expect("a link");
        assert_eq!(relation, "; rel=\"next\"");
        next = path.to_owned();
    }
    let mut all = tags.clone();
    all.sort_unstable();
    assert_eq!(found, all);
}

#[tokio::test]
async fn tags_of_nothing() {
    let rig = Rig::new();
    rig.get("/v2/a/tags/list")
        .await
        .refused(404, "NAME_UNKNOWN");
    rig.blob("a", b"content").await;
    let answer = rig.get("/v2/a/tags/list").await.is(200);
    assert_eq!(answer.json(), json!({"name": "a", "tags": []}));
    // Another repository below it is another one.
    rig.get("/v2/a/b/tags/list").await.is(404);
}

async fn referrers(rig: &Rig, subject: &str, query: &str) -> Vec<Value> {
    let path = format!("/v2/a/referrers/{subject}{query}");
    let answer = rig.get(&path).await.is(200);
    assert_eq!(answer.header("content-type"), OCI_INDEX);
    let applied = answer.header("oci-filters-applied");
    let filtered = query.contains("artifactType=a");
    assert_eq!(applied, if filtered { "artifactType" } else { "" });
    let json = answer.json();
    assert_eq!(json["schemaVersion"], 2);
    assert_eq!(json["mediaType"], OCI_INDEX);
    json["manifests"].as_array().expect("a list").clone()
}

fn about(subject: &str) -> Value {
    json!({"mediaType": OCI_MANIFEST, "digest": subject, "size": 1})
}

#[tokio::test]
async fn listing_referrers() {
    let rig = Rig::new();
    let subject = sha256(b"pushed later, or never");
    assert!(referrers(&rig, &subject, "").await.is_empty());
    rig.blob("a", b"{}").await;
    rig.blob("a", b"sbom").await;
    let artifact = |kind: Option<&str>, note: &str| {
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor("application/config", b"{}"),
            "layers": [descriptor("application/sbom+json", b"sbom")],
            "subject": about(&subject), "annotations": {"note": note},
        });
        if let Some(kind) = kind {
            manifest["artifactType"] = json!(kind);
        }
        manifest
    };
    let mut index = index_of(&[]);
    index["subject"] = about(&subject);
    let manifests = [
        artifact(Some("application/sbom"), "one"),
        artifact(Some("application/signature"), "two"),
        // Its configuration says what it is.
        artifact(None, "three"),
        index,
    ];
    let kinds = [
        Some("application/sbom"),
        Some("application/signature"),
        Some("application/config"),
        None,
    ];
    let mut expected = Vec::new();
    for (number, manifest) in manifests.iter().enumerate() {
        let media_type = manifest["mediaType"].as_str().expect("text");
        let digest = sha256(manifest.to_string().as_bytes());
        rig.put("a", &digest, media_type, manifest).await.is(201);
        let mut entry = json!({
            "mediaType": media_type, "digest": digest, "size": manifest.to_string().len(),
        });
        if let Some(kind) = kinds[number] {
            entry["artifactType"] = json!(kind);
        }
        if !manifest["annotations"].is_null() {
            entry["annotations"] = manifest["annotations"].clone();
        }
        expected.push(entry);
    }
    let found = referrers(&rig, &subject, "").await;
    assert_eq!(found.len(), 4);
    for entry in &expected {
        assert!(found.contains(entry), "{entry} in {found:?}");
    }
    for (number, kind) in kinds.iter().enumerate() {
        let Some(kind) = kind else { continue };
        let query = format!("?artifactType={}", kind.replace('/', "%2F"));
        let found = referrers(&rig, &subject, &query).await;
        assert_eq!(found, [expected[number].clone()]);
    }
    assert!(
        referrers(&rig, &subject, "?artifactType=another")
            .await
            .is_empty()
    );
    assert_eq!(referrers(&rig, &subject, "?artifactType=").await.len(), 4);
    // Of another repository they are not.
    let other = rig.get(&format!("/v2/b/referrers/{subject}")).await.is(200);
    assert_eq!(other.json()["manifests"], json!([]));
    // What is deleted refers to nothing.
    let digest = expected[0]["digest"].as_str().expect("text");
    rig.delete(&format!("/v2/a/manifests/{digest}"))
        .await
        .is(202);
    let found = referrers(&rig, &subject, "").await;
    assert_eq!(found.len(), 3);
    assert!(!found.contains(&expected[0]));
    rig.check();
}

#[tokio::test]
async fn referrers_of_what_is_no_digest() {
    let rig = Rig::new();
    for bad in ["x", "sha256:x", "latest", "md5:00"] {
        let answer = rig.get(&format!("/v2/a/referrers/{bad}")).await;
        answer.refused(400, "DIGEST_INVALID");
    }
    let digest = sha256(b"x");
    let path = format!("/v2/a/referrers/{digest}");
    rig.head(&path).await.is(200);
}

#[tokio::test]
async fn pages_of_referrers_are_followed_by_their_links() {
    let rig = Rig::new();
    let subject = sha256(b"subject");
    rig.blob("a", b"{}").await;
    // Few, but with annotations that do not fit into one answer.
    for number in 0..5 {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "a/b+c",
            "config": descriptor("application/config", b"{}"), "layers": [],
            "subject": about(&subject),
            "annotations": {"number": number.to_string(), "long": "x".repeat(2_500_000)},
        });
        let tag = format!("t{number}");
        rig.put("a", &tag, OCI_MANIFEST, &manifest).await.is(201);
    }
    let mut numbers = Vec::new();
    let mut next = format!("/v2/a/referrers/{subject}?artifactType=a%2Fb%2Bc");
    for page in 0.. {
        assert!(page < 5, "no end");
        let answer = rig.get(&next).await.is(200);
        assert_eq!(answer.header("oci-filters-applied"), "artifactType");
        assert!(answer.body.len() < 8 << 20, "{}", answer.body.len());
        let json = answer.json();
        for entry in json["manifests"].as_array().expect("a list") {
            let number = entry["annotations"]["number"].as_str().expect("text");
            numbers.push(number.to_owned());
        }
        let link = answer.header("link");
        if link.is_empty() {
            break;
        }
        let path = link.strip_prefix('<').and_then(|l| l.split_once('>'));
        next = path.expect("a link").0.to_owned();
    }
    numbers.sort_unstable();
    assert_eq!(numbers, ["0", "1", "2", "3", "4"]);
}
