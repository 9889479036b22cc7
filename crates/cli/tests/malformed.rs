//! The corpus through the gateway to a server that records: what no client should send reaches no app, what
//! any client may send arrives as it was meant.

use hutong_testkit::corpus::{self, RECORDER, send};
use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::visitor::get;

fn start() -> Server {
    start_with(&[])
}

fn start_with(arguments: &[&str]) -> Server {
    let server = Server::start_with(arguments);
    let folder = app_folder(&[
        (
            "hutong.toml",
            "name='recorder'\ncommand='/usr/bin/python3 app.py'\ndomains=['corpus.test']\n[https]\nredirect=false\n[limits]\npids=512",
        ),
        ("app.py", RECORDER),
    ]);
    server.deploy(folder.path());
    server
}

/// Runs `look` for each of the list, four at a time; every complaint.
fn all<T: Sync>(list: &[T], look: impl Fn(&T) -> Option<String> + Sync) -> Vec<String> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let found = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(one) =
                    list.get(next.fetch_add(1, std::sync::atomic::Ordering::SeqCst))
                {
                    if let Some(complaint) = look(one) {
                        found.lock().expect("no panic").push(complaint);
                    }
                }
            });
        }
    });
    found.into_inner().expect("no panic")
}

#[test]
fn what_no_client_should_send_reaches_no_app() {
    let server = start();
    let cases = corpus::malformed();
    assert!(cases.len() >= 300);
    let complaints = all(&cases, |case| {
        let heard = send(&server.http, &case.bytes(), 2);
        let wanted = case.expect.expect("what is expected");
        let fine = heard.statuses == [wanted] && !heard.hangs;
        (!fine).then(|| {
            format!(
                "{} ({}, {}): wanted {wanted}, got {:?} hangs: {}",
                case.id, case.rfc, case.why, heard.statuses, heard.hangs
            )
        })
    });
    let seen = get(&server.http, "corpus.test", "/seen").text();
    assert!(
        complaints.is_empty(),
        "{} of {}:\n{}\nseen: {seen}",
        complaints.len(),
        cases.len(),
        complaints.join("\n")
    );
    assert_eq!(seen, "[]");
}

#[test]
fn what_any_client_may_send_arrives_as_it_was_meant() {
    let server = start();
    let cases = corpus::valid();
    assert!(cases.len() >= 100);
    let complaints = all(&cases, |case| {
        let heard = send(&server.http, &case.bytes(), 1);
        let complain =
            |why: String| Some(format!("{} ({}, {}): {why}", case.id, case.rfc, case.why));
        if heard.statuses != [200] {
            return complain(format!("{:?} hangs: {}", heard.statuses, heard.hangs));
        }
        let Ok(said) = serde_json::from_slice::<serde_json::Value>(&heard.body) else {
            // HEAD.
            return None;
        };
        if case
            .path
            .as_ref()
            .is_some_and(|path| said["path"] != **path)
        {
            return complain(format!("the app saw the path {}", said["path"]));
        }
        if case
            .body
            .as_ref()
            .is_some_and(|body| said["body"] != **body)
        {
            return complain(format!("the app saw the body {}", said["body"]));
        }
        None
    });
    assert!(
        complaints.is_empty(),
        "{} of {}:\n{}",
        complaints.len(),
        cases.len(),
        complaints.join("\n")
    );
}

/// Where the h2 library is kinder than RFC 9113 wants, and nothing of it reaches an app: it drops pseudo
/// header fields that come in trailers, and takes a request without `:path` that has a Host for one of `/`.
fn is_let_through(id: &str) -> bool {
    id.starts_with("h2-trailers-pseudo-") || id == "h2-missing-path-host"
}

#[test]
fn what_no_client_should_send_over_http2_reaches_no_app() {
    let server = start_with(&["--https", "127.0.0.1:0"]);
    let root = server.data.path().join("root.pem");
    std::fs::write(&root, server.ok(&["cert", "ca"])).expect("write");
    let port = server.https.rsplit(':').next().expect("a port");
    let port = port.parse().expect("a number");
    let mut found = None;
    hutong_testkit::eventually("the name has a certificate", 20, || {
        found = corpus::replay_h2(port, &root);
        found.is_some()
    });
    let found = found.expect("replayed");
    assert!(found.len() >= 300, "{}", found.len());
    let complaints: Vec<String> = found
        .iter()
        .filter(|(id, outcome)| {
            let refused = outcome
                .as_u64()
                .is_some_and(|status| (400..500).contains(&status));
            let ended = ["reset", "goaway", "closed"]
                .iter()
                .any(|word| *outcome == word);
            !refused && !ended && !is_let_through(id)
        })
        .map(|(id, outcome)| format!("{id}: {outcome}"))
        .collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    let seen = get(&server.http, "corpus.test", "/seen").text();
    let seen: Vec<String> = serde_json::from_str(&seen).expect("a list");
    let let_through = found.values().filter(|outcome| **outcome == 200).count();
    assert_eq!(seen.len(), let_through, "{seen:?}");
    assert!(
        !seen.iter().any(|line| line.contains("smuggled")),
        "{seen:?}"
    );
}
