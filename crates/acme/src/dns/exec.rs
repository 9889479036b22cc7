//! A program of the operator's own that makes and removes the record. Never through a shell, and with
//! nothing of our environment but `PATH`: our environment may hold what is not the program's to know.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::Error;
use crate::text;

const TIME_OUT: Duration = Duration::from_secs(120);
/// For the last words of a program that has ended; something it started may hold its stderr open.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Of stderr, this much of the end is kept.
const TAIL: usize = 4096;

/// Returns when the program has ended: it may wait until the name servers have the record.
pub async fn run(program: &[String], action: &str, name: &str, value: &str) -> Result<(), Error> {
    let failed = |why: String| Error::Program {
        program: program.first().cloned().unwrap_or_default(),
        why,
    };
    let (first, rest) = program
        .split_first()
        .ok_or_else(|| failed("the list of program and arguments is empty".to_owned()))?;
    let mut command = Command::new(first);
    command
        .args(rest)
        .args([action, name, value])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    let mut child = command
        .spawn()
        .map_err(|error| failed(format!("cannot be started: {error}")))?;
    // Read all the time: a program must not hang because it says much.
    let stderr = child.stderr.take();
    let words = tokio::spawn(async move {
        match stderr {
            Some(stderr) => tail(stderr).await,
            None => Vec::new(),
        }
    });
    let status = match timeout(TIME_OUT, child.wait()).await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return Err(failed(format!("cannot be waited for: {error}"))),
        // Dropped, it is killed.
        Err(_) => {
            let seconds = TIME_OUT.as_secs();
            return Err(failed(format!("did not end within {seconds} seconds")));
        }
    };
    if status.success() {
        return Ok(());
    }
    let words = match timeout(LAST_WORDS, words).await {
        Ok(Ok(words)) => words,
        _ => Vec::new(),
    };
    Err(failed(last_words(status, &words)))
}

async fn tail(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(read) = from.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        kept.extend_from_slice(&buffer[..read]);
        let surplus = kept.len().saturating_sub(TAIL);
        kept.drain(..surplus);
    }
    kept
}

fn last_words(status: ExitStatus, stderr: &[u8]) -> String {
    let stderr = String::from_utf8_lossy(stderr);
    let last = stderr.lines().map(str::trim).rfind(|line| !line.is_empty());
    match last {
        Some(last) => format!("failed ({status}): {}", text::line(last)),
        None => format!("failed ({status}) and said nothing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str) -> Result<(), Error> {
        let program = ["/bin/sh", "-c", script, "script"].map(str::to_owned);
        run(&program, "present", "_acme-challenge.a.example", "v a$l").await
    }

    #[tokio::test]
    async fn arguments_come_as_they_are() {
        shell(r#"test "$1,$2,$3,$#" = 'present,_acme-challenge.a.example,v a$l,3'"#)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn the_environment_is_not_passed_on() {
        // CARGO_MANIFEST_DIR is in every test's.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        shell(r#"test -n "$PATH" && test -z "$CARGO_MANIFEST_DIR""#)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn the_last_line_says_why() {
        let error = shell("echo first >&2; echo no such zone >&2; echo >&2; exit 3")
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "/bin/sh failed (exit status: 3): no such zone"
        );
    }

    #[tokio::test]
    async fn a_talkative_program_does_not_hang() {
        let script = "i=0; while [ $i -lt 5000 ]; do echo $i$i$i$i$i$i$i$i >&2; i=$((i+1)); done";
        let error = shell(&format!("{script}; exit 1")).await.unwrap_err();
        assert!(error.to_string().contains("49994999"));
        assert!(error.to_string().len() < 200);
    }

    #[tokio::test]
    async fn what_is_no_program_is_an_error() {
        assert!(run(&[], "present", "n", "v").await.is_err());
        let program = ["/does/not/exist".to_owned()];
        let error = run(&program, "present", "n", "v").await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/does/not/exist cannot be started")
        );
    }
}
