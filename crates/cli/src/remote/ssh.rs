//! The API over the standard streams of `ssh`: the user's own SSH client is started, with the user's keys, agent and
//! configuration, and `hutong internal dial` on the other side connects its streams with the API's socket. No port is
//! open for it, and who may do what is decided by that socket: whom the kernel names.
//!
//! Our arguments are a list, and no shell here sees them. The shell of the other side gets what SSH makes of a command,
//! a line; so only words that mean themselves to every shell are sent.

use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};
use std::time::Duration;

use hutong_api::client::{Dial, DialError, Dialling, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::address::bracketed;
use crate::output::printable;
use crate::terminal;

/// What `hutong internal dial` says first, on a line: this, a space, and `ok`, `denied` or `absent` with the reason.
pub const GREETING: &str = "hutong-dial/1";
/// A shell's start files may print something before; more than this is no greeting.
const MAX_NOISE: usize = 64 << 10;
/// How much is kept of what ssh complains about.
const MAX_COMPLAINT: usize = 8 << 10;
/// From start to greeting, where nobody is asked for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to end once its streams are gone.
const ENDING: Duration = Duration::from_secs(10);

/// A server behind an SSH server.
#[derive(Clone, Debug)]
pub struct Ssh {
    pub user: Option<String>,
    pub host: String,
    pub port: Option<u16>,
    /// The program on the other machine.
    pub program: String,
    /// Its API, where that is not at the default place.
    pub api: Option<String>,
    /// By `sudo` without a password.
    pub sudo: bool,
}

impl Dial for Ssh {
    fn dial(&self) -> Dialling<'_> {
        Box::pin(self.connect())
    }

    fn host(&self) -> String {
        "localhost".into()
    }
}

/// Whether a word means itself to every shell and is no option.
pub fn is_plain(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:+@".contains(c);
    !word.is_empty() && !word.starts_with('-') && word.chars().all(plain)
}

impl Ssh {
    async fn connect(&self) -> Result<Box<dyn Stream>, DialError> {
        let attended = terminal::is_attended();
        // As with git: another client, or a script that adds options.
        let client = std::env::var_os("HUTONG_SSH").unwrap_or_else(|| "ssh".into());
        let started = Command::new(&client)
            .args(self.arguments(attended))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = started.map_err(|error| {
            let name = client.to_string_lossy().into_owned();
            DialError::new(format!("`{name}` cannot be started: {error}"))
                .hint("install an SSH client (openssh-client)")
        })?;
        let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(mut output), Some(complaints)) = streams else {
            return Err(DialError::new("ssh has no standard streams"));
        };
        let complaint = tokio::spawn(tail(complaints));
        let greeted = greeting(&mut output);
        let greeted = match attended {
            true => greeted.await,
            false => match tokio::time::timeout(PATIENCE, greeted).await {
                Ok(greeted) => greeted,
                Err(_) => {
                    let seconds = PATIENCE.as_secs();
                    let cause = format!("{} did not answer within {seconds} s", self.shown());
                    return Err(DialError::new(cause));
                }
            },
        };
        match greeted {
            Greeting::Ok => Ok(Box::new(Connection {
                _child: child,
                input: Some(input),
                output,
            })),
            Greeting::Denied(reason) => Err(DialError::new(format!(
                "{}: its API may not be used by this user: {reason}",
                self.shown()
            ))
            .hint("log in as root or as the user that runs `hutong serve`, or with --sudo")),
            Greeting::Absent(reason) => Err(DialError::new(format!(
                "{}: no Hutong server runs there: {reason}",
                self.shown()
            ))
            .hint("start it with `hutong serve`; one with another --data-dir is named with `hutong login --remote-api`")),
            Greeting::None => {
                // Without its streams it ends, whatever it was about to say.
                drop((input, output));
                let ended = async { (child.wait().await, complaint.await) };
                let Ok((ended, complaint)) = tokio::time::timeout(ENDING, ended).await else {
                    let place = self.shown();
                    return Err(DialError::new(format!(
                        "{place}: what answers there is not understood"
                    )));
                };
                let code = ended.ok().and_then(|status| status.code());
                Err(self.explain(code, &complaint.unwrap_or_default()))
            }
        }
    }

    fn arguments(&self, attended: bool) -> Vec<String> {
        // A person may be asked for a passphrase, or whether a host is known; a script must not hang on that.
        let batch = if attended { "no" } else { "yes" };
        let mut words = vec!["-T".to_owned()];
        for option in [
            format!("BatchMode={batch}"),
            "ConnectTimeout=15".into(),
            // A connection that is silently gone is noticed within a minute or so.
            "ServerAliveInterval=20".into(),
            "ServerAliveCountMax=3".into(),
            // What the user's configuration says of these is meant for sessions.
            "ClearAllForwardings=yes".into(),
            "ForwardAgent=no".into(),
            "ForwardX11=no".into(),
            "PermitLocalCommand=no".into(),
            "RemoteCommand=none".into(),
        ] {
            words.extend(["-o".to_owned(), option]);
        }
        if let Some(port) = self.port {
            words.extend(["-p".to_owned(), port.to_string()]);
        }
        if let Some(user) = &self.user {
            words.extend(["-l".to_owned(), user.clone()]);
        }
        words.extend(["--".to_owned(), self.host.clone()]);
        words.extend(self.command());
        words
    }

    /// What is run on the other side: words that [`is_plain`] holds for, and our own.
    fn command(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.sudo {
            words.extend(["sudo", "-n", "--"].map(str::to_owned));
        }
        words.push(self.program.clone());
        if let Some(api) = &self.api {
            words.extend(["--api".to_owned(), api.clone()]);
        }
        words.extend(["internal", "dial"].map(str::to_owned));
        words
    }

    fn shown(&self) -> String {
        let user = self.user.as_ref().map(|user| format!("{user}@"));
        let port = self.port.map(|port| format!(":{port}"));
        let (user, port) = (user.unwrap_or_default(), port.unwrap_or_default());
        format!("{user}{}{port}", bracketed(&self.host))
    }

    /// How a person would connect.
    fn by_hand(&self) -> String {
        let port = self.port.map(|port| format!("-p {port} "));
        let user = self.user.as_ref().map(|user| format!("{user}@"));
        let (port, user) = (port.unwrap_or_default(), user.unwrap_or_default());
        format!("ssh {port}{user}{}", self.host)
    }

    /// What it is called in known_hosts: with its port, where that is said.
    fn known_as(&self) -> String {
        match self.port {
            None | Some(22) => self.host.clone(),
            Some(port) => format!("'[{}]:{port}'", self.host),
        }
    }

    /// Why there was no greeting, from ssh's exit code and its words. OpenSSH gives 255 for failures of its own, else
    /// the code of the remote program; shells give 127 for one that is not there and 126 for one that may not run.
    fn explain(&self, code: Option<i32>, complaint: &str) -> DialError {
        let (place, host) = (self.shown(), &self.host);
        let has = |words: &str| complaint.contains(words);
        let last = complaint
            .lines()
            .map(str::trim)
            .rfind(|line| !line.is_empty());
        let last = printable(last.unwrap_or("it says nothing"));
        if has("REMOTE HOST IDENTIFICATION HAS CHANGED") {
            return DialError::new(format!(
                "{place}: its host key is not the one that is known"
            ))
            .hint(format!(
                "if the machine was set up anew: ssh-keygen -R {}; else somebody may be in between",
                self.known_as()
            ));
        }
        if has("Host key verification failed") {
            return DialError::new(format!("{place}: its host key is not known yet")).hint(
                format!(
                    "connect once with `{}` and compare the fingerprint",
                    self.by_hand()
                ),
            );
        }
        if has("Could not resolve hostname") {
            return DialError::new(format!("there is no host {host}: {last}"));
        }
        if has("Permission denied (") || has("Too many authentication failures") {
            return DialError::new(format!(
                "{place}: the SSH server lets nobody in with these keys"
            ))
            .hint(format!(
                "`{}` must work without a password: ssh-copy-id, ssh-add",
                self.by_hand()
            ));
        }
        match code {
            Some(255) | None => {
                DialError::new(format!("{place}: ssh cannot connect: {last}"))
            }
            Some(1) if self.sudo && has("command not found") => self.missing(&last),
            // sudo's own complaints begin with its name.
            Some(1) if self.sudo && has("sudo:") => {
                DialError::new(format!("{place}: sudo refuses: {last}"))
                    .hint(format!("a line in /etc/sudoers.d is needed that lets this user run `{}` without a password", self.program))
            }
            Some(127) => self.missing("there is no such program"),
            Some(126) => self.missing(&last),
            Some(2) if has("no such role") || has("unrecognized subcommand") => {
                DialError::new(format!("{place}: its hutong is too old for this"))
                    .hint("install the version that you use here")
            }
            Some(code) => DialError::new(format!(
                "{place}: `{}` ended with code {code}: {last}",
                self.program
            )),
        }
    }

    fn missing(&self, why: &str) -> DialError {
        let (place, program) = (self.shown(), &self.program);
        DialError::new(format!("{place}: `{program}` cannot be run there: {why}"))
            .hint("install hutong there, or say where it is: hutong login --remote-program /path/to/hutong")
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Greeting {
    Ok,
    Denied(String),
    Absent(String),
    /// The program ended, or said something else.
    None,
}

/// Reads up to the greeting and not a byte further: what follows is HTTP.
async fn greeting(output: &mut (impl AsyncRead + Unpin)) -> Greeting {
    let mut line = Vec::new();
    for _ in 0..MAX_NOISE {
        match output.read_u8().await {
            Ok(b'\n') => {
                let greeted = parse(&String::from_utf8_lossy(&line));
                if greeted != Greeting::None {
                    return greeted;
                }
                line.clear();
            }
            Ok(byte) => line.push(byte),
            Err(_) => return Greeting::None,
        }
    }
    Greeting::None
}

fn parse(line: &str) -> Greeting {
    let Some(rest) = line.trim_end().strip_prefix(GREETING) else {
        return Greeting::None;
    };
    let rest = rest.trim_start();
    let (word, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    match word {
        "ok" => Greeting::Ok,
        "denied" => Greeting::Denied(printable(reason)),
        "absent" => Greeting::Absent(printable(reason)),
        _ => Greeting::None,
    }
}

/// Reads to the end, so that ssh never waits for us, and keeps the last part.
async fn tail(mut source: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = source.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        let over = kept.len().saturating_sub(MAX_COMPLAINT);
        kept.drain(..over);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The streams of an ssh, which ends with them.
struct Connection {
    _child: Child,
    /// None once it was shut down.
    input: Option<ChildStdin>,
    output: ChildStdout,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.output).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match &mut self.input {
            Some(input) => Pin::new(input).poll_write(context, bytes),
            None => Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        match &mut self.input {
            Some(input) => Pin::new(input).poll_flush(context),
            None => Poll::Ready(Ok(())),
        }
    }

    /// A pipe is shut down by closing it.
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.input = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh() -> Ssh {
        Ssh {
            user: Some("me".into()),
            host: "example.com".into(),
            port: Some(2222),
            program: "hutong".into(),
            api: None,
            sudo: false,
        }
    }

    #[test]
    fn the_host_is_no_option_and_the_command_comes_last() {
        let words = ssh().arguments(false);
        let at = words.iter().position(|word| word == "--").expect("there");
        assert_eq!(
            words[at..],
            ["--", "example.com", "hutong", "internal", "dial"]
        );
        assert!(words.contains(&"BatchMode=yes".to_owned()));
        assert!(ssh().arguments(true).contains(&"BatchMode=no".to_owned()));
        let other = Ssh {
            sudo: true,
            api: Some("unix:/run/x/api.sock".into()),
            ..ssh()
        };
        assert_eq!(
            other.command().join(" "),
            "sudo -n -- hutong --api unix:/run/x/api.sock internal dial"
        );
    }

    #[test]
    fn words_for_the_other_shell_are_plain() {
        for good in ["hutong", "/usr/local/bin/hutong", "unix:/run/a-b/api.sock"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in ["", "-x", "a b", "$(x)", "a;b", "~/x", "a\nb", "a'b", "a*"] {
            assert!(!is_plain(bad), "{bad}");
        }
    }

    #[test]
    fn greetings() {
        assert_eq!(parse("hutong-dial/1 ok\r"), Greeting::Ok);
        assert_eq!(parse("Welcome!"), Greeting::None);
        assert_eq!(
            parse("hutong-dial/1 denied /run/x: no\x1b[1m"),
            Greeting::Denied("/run/x: no\u{fffd}[1m".into())
        );
    }

    #[tokio::test]
    async fn what_a_shell_prints_before_is_skipped_and_http_is_left() {
        let mut bytes = &b"motd\nhutong-dial/1 ok\nHTTP"[..];
        assert_eq!(greeting(&mut bytes).await, Greeting::Ok);
        assert_eq!(bytes, b"HTTP");
        let mut end = &b"motd"[..];
        assert_eq!(greeting(&mut end).await, Greeting::None);
    }

    #[test]
    fn each_failure_has_its_words() {
        let why = |code, words: &str| ssh().explain(Some(code), words).cause;
        assert!(why(255, "Host key verification failed.\r\n").contains("not known yet"));
        let changed =
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.";
        assert!(why(255, changed).contains("not the one"));
        assert!(
            why(255, "me@example.com: Permission denied (publickey).").contains("with these keys")
        );
        assert!(
            why(
                255,
                "ssh: Could not resolve hostname x: Name or service not known"
            )
            .contains("no host")
        );
        let refused = "ssh: connect to host example.com port 2222: Connection refused";
        assert!(why(255, refused).ends_with("Connection refused"));
        assert!(
            why(127, "bash: line 1: hutong: command not found").contains("cannot be run there")
        );
        assert!(why(2, "usage: there is no such role").contains("too old"));
        assert!(why(3, "").contains("code 3"));
        let hint = |words: &str| ssh().explain(Some(255), words).hint.unwrap_or_default();
        assert!(hint(changed).contains("ssh-keygen -R '[example.com]:2222';"));
        assert!(hint("Host key verification failed.").contains("`ssh -p 2222 me@example.com`"));
    }
}
