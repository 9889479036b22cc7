//! Releases on trial: programs that fail now and then, and visitors who each come once.

use std::path::Path;

use serde_json::Value;

use crate::eventually;
use crate::server::Server;
use crate::visitor::get;

/// Has the test app say another word, and fail a part of its requests: which ones, the seed says.
pub fn release(folder: &Path, body: &str, fails: f64, seed: u64) {
    let path = folder.join("app.py");
    let text = std::fs::read_to_string(&path).expect("read");
    let at = text.find("BODY = ").expect("the test app");
    let end = text[at..].find('\n').expect("a line") + at;
    let begin = text.find("import random").unwrap_or(at);
    let own = format!(
        "import random, threading\nCHANCE, ONE = random.Random({seed}), threading.Lock()\ndef fails():\n    with ONE: return CHANCE.random() < {fails}\nBODY = \"{body}\""
    );
    let text = format!("{}{own}{}", &text[..begin], &text[end..]);
    let text = text.replace(
        "self.answer(200, BODY)",
        "self.answer(500 if fails() else 200, BODY)",
    );
    std::fs::write(path, text).expect("write");
}

/// Begins a deployment that nobody waits for.
pub fn begin(server: &Server, folder: &Path) {
    server.ok(&["deploy", "--detach", &folder.to_string_lossy()]);
}

/// What `hutong status` says of the app's canary.
pub fn canary(server: &Server, app: &str) -> Value {
    server.app(app)["canary"].clone()
}

/// Waits until the gateway gives a canary its share of the visitors.
pub fn is_tried(server: &Server, app: &str, share: u64) {
    eventually("the gateway counts for the canary", 30, || {
        let canary = canary(server, app);
        canary["share"] == share && canary["canary"].is_object()
    });
}

/// How many of so many visitors, none of whom was there before, got this answer.
pub fn visitors(server: &Server, host: &str, count: usize, body: &str) -> usize {
    let got = |_: &usize| get(&server.http, host, "/").text() == body;
    (0..count).filter(got).count()
}
