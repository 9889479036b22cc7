//! The hook between a push and its branch (githooks(5), pre-receive). Git runs our own program, which asks control over
//! a unix socket what becomes of the push, prints what it is told (git shows it to the pusher), and ends with the verdict.
//! Where there is no verdict, there is no push: a control plane that dies in between refuses it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;
use std::sync::Arc;

use hutong_runtime::{confine, sys};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::{plain, push, repo};
use crate::Control;

/// Beside the gateway's files, because paths there are short; nobody but control's user may connect.
const SOCKET: &str = "git.sock";
/// What git's process is told of us. It connects before it has walls about it, and the hook inherits that line.
pub const SOCKET_VARIABLE: &str = "HUTONG_GIT_SOCKET";
pub const PUSH_VARIABLE: &str = "HUTONG_GIT_PUSH";
/// A list of branches that move, in bytes.
const MAX_QUESTION: u64 = 1 << 20;

/// What the hook asks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Question {
    push: String,
    /// The folder's name, below `objects`, of what came in.
    pub objects: Option<String>,
    /// As git has them: old, new, and the name of what moves.
    pub updates: Vec<(String, String, String)>,
}

/// What it hears, one a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Say(String),
    /// Whether the push is taken.
    End(bool),
}

/// Lines on their way to a pusher; whoever listens no more is not waited for.
#[derive(Clone)]
pub struct Say(Option<tokio::sync::mpsc::Sender<String>>);

impl Say {
    /// To nobody.
    pub fn nobody() -> Self {
        Say(None)
    }

    pub async fn line(&self, text: &str) {
        if let Some(sender) = &self.0 {
            let _ = sender.send(plain(text)).await;
        }
    }

    pub async fn lines(&self, text: &str) {
        for line in text.lines() {
            self.line(line).await;
        }
    }
}

pub fn socket(control: &Control) -> std::path::PathBuf {
    control.run_dir.join("gateway").join(SOCKET)
}

/// Listens to hooks until the process ends.
pub fn listen(control: &Arc<Control>) -> Result<(), String> {
    let listener = bind(&socket(control), 0o600)?;
    let control = control.clone();
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let control = control.clone();
                    tokio::spawn(async move {
                        if let Err(error) = answer(&control, stream).await {
                            tracing::debug!("a push's hook: {error}");
                        }
                    });
                }
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    });
    Ok(())
}

/// A socket in place of one that an earlier control plane left.
pub fn bind(path: &Path, mode: u32) -> Result<UnixListener, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok(listener)
}

async fn answer(control: &Arc<Control>, stream: UnixStream) -> std::io::Result<()> {
    let ours = sys::effective_uid();
    if stream.peer_cred()?.uid() != ours {
        return Err(std::io::ErrorKind::PermissionDenied.into());
    }
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = tokio::io::BufReader::new(read.take(MAX_QUESTION));
    read.read_line(&mut line).await?;
    let question: Question = serde_json::from_str(&line)?;
    let found = control.git.find(&question.push);
    let push = found.ok_or(std::io::ErrorKind::NotFound)?;
    let (sender, mut receiver) = tokio::sync::mpsc::channel(64);
    let say = Say(Some(sender));
    let control = control.clone();
    let deciding =
        tokio::spawn(async move { push::decide(&control, &push, &question, &say).await });
    // Goes on to the end of what is said, also when nobody listens any more.
    let mut heard = true;
    while let Some(text) = receiver.recv().await {
        if heard {
            heard = tell(&mut write, &Word::Say(text)).await.is_ok();
        }
    }
    let taken = deciding.await.unwrap_or(false);
    tell(&mut write, &Word::End(taken)).await
}

async fn tell(write: &mut (impl AsyncWriteExt + Unpin), word: &Word) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    write.write_all(&line).await
}

/// Whether git has started this process as its hook.
pub fn is_hook() -> bool {
    let name = std::env::args_os().next().unwrap_or_default();
    Path::new(&name).file_name() == Some(repo::HOOK.as_ref())
        && std::env::var_os(PUSH_VARIABLE).is_some()
}

/// The hook's main; whether the push is taken.
pub fn main() -> bool {
    match ask() {
        Ok(taken) => taken,
        Err(error) => {
            print(&format!(
                "the server did not say what becomes of this: {error}; push again"
            ));
            false
        }
    }
}

fn print(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn ask() -> std::io::Result<bool> {
    let variable = |name| std::env::var(name).map_err(std::io::Error::other);
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_QUESTION)
        .read_to_string(&mut text)?;
    let objects = std::env::var_os("GIT_QUARANTINE_PATH");
    let objects = objects
        .as_ref()
        .and_then(|path| Path::new(path).file_name());
    let question = Question {
        push: variable(PUSH_VARIABLE)?,
        objects: objects.map(|name| name.to_string_lossy().into_owned()),
        updates: updates(&text).ok_or(std::io::ErrorKind::InvalidData)?,
    };
    let mut stream = BlockingStream::from(sys::inherited(confine::LINE)?);
    let mut line = serde_json::to_vec(&question)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line?)? {
            Word::Say(text) => print(&text),
            Word::End(taken) => return Ok(taken),
        }
    }
    Err(std::io::ErrorKind::UnexpectedEof.into())
}

/// `OLD NEW NAME`, one a line.
fn updates(text: &str) -> Option<Vec<(String, String, String)>> {
    let update = |line: &str| {
        let (old, rest) = line.split_once(' ')?;
        let (new, name) = rest.split_once(' ')?;
        Some((old.to_owned(), new.to_owned(), name.to_owned()))
    };
    text.lines().map(update).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_says_is_read() {
        let read = updates("0 1 refs/heads/a\n1 0 refs/heads/b c\n").expect("good");
        assert_eq!(read[0], ("0".into(), "1".into(), "refs/heads/a".into()));
        assert_eq!(read[1].2, "refs/heads/b c");
        assert_eq!(updates("0 1"), None);
        assert_eq!(updates(""), Some(Vec::new()));
    }

    #[test]
    fn words_are_lines() {
        let line = serde_json::to_string(&Word::Say("a\nb".into())).expect("JSON");
        assert!(!line.contains('\n'), "{line}");
    }
}
