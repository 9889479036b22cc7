//! The corpus through the gateway to a server that records: what no client should send reaches no app, what
//! any client may send arrives as it was meant.

use hutong_testkit::corpus::{self, RECORDER, send};
use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::visitor::get;

fn start() -> Server {
    let server = Server::start();
    let folder = app_folder(&[
        (
            "hutong.toml",
            "name='recorder'\ncommand='/usr/bin/python3 app.py'\ndomains=['corpus.test']\n[limits]\npids=512",
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
