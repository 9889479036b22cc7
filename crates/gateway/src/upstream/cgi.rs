//! Requests to apps behind uwsgi or FastCGI: the same variables (RFC 3875), two ways to write them.

use std::borrow::Cow;
use std::io;

use hutong_http::cgi::{self, Variable};
use hutong_http::fastcgi::{self, Decoder, Step};
use hutong_http::fields::Name;
use hutong_http::uwsgi;
use percent_encoding::percent_decode_str;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::ReadHalf;

use super::request::Onward;
use crate::buffers::{self, Input};
use crate::pages::Page;

/// What such an app is told of a body whose length the visitor did not say: it must be known first.
pub const MAX_UNSIZED: usize = 1 << 20;

/// The head of a uwsgi request; the body follows as it is.
pub fn write_uwsgi(
    out: &mut Vec<u8>,
    onward: &Onward<'_>,
    length: Option<u64>,
) -> Result<(), Page> {
    let request = Described::new(*onward, length, None);
    request
        .tell(|variables| uwsgi::head(out, variables))
        .map_err(|_| too_large())
}

/// The head of a FastCGI request; the body follows in records.
pub fn write_fastcgi(
    out: &mut Vec<u8>,
    onward: &Onward<'_>,
    length: Option<u64>,
    script: &Script<'_>,
) -> Result<(), Page> {
    let request = Described::new(*onward, length, Some(script));
    fastcgi::begin(out, false);
    request
        .tell(|variables| fastcgi::params(out, variables))
        .map_err(|_| too_large())
}

fn too_large() -> Page {
    Page::new(431, "The request's head is too large for this app.")
}

/// Where a FastCGI app's scripts are.
pub struct Script<'a> {
    pub root: &'a str,
    pub index: &'a str,
}

/// A request in the words of RFC 3875.
struct Described<'a> {
    onward: Onward<'a>,
    script_name: Vec<u8>,
    path_info: Vec<u8>,
    uri: String,
    port: u16,
    root: Option<&'a str>,
    file: Option<String>,
    /// What we say ourselves, as headers.
    ours: Vec<(&'static str, Cow<'a, [u8]>)>,
}

impl<'a> Described<'a> {
    fn new(onward: Onward<'a>, length: Option<u64>, script: Option<&Script<'a>>) -> Self {
        let (head, peer, strip) = (onward.head, onward.peer, onward.strip);
        let decode = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
        let mut script_name = decode(&head.path()[..strip]);
        let mut path_info = decode(&head.path()[strip..]);
        if path_info.is_empty() {
            path_info.push(b'/');
        }
        let mut file = None;
        if let Some(script) = script {
            let (name, rest) = split(&path_info, script.index);
            file = Some(format!("{}/{name}", script.root.trim_end_matches('/')));
            path_info = rest;
            script_name.push(b'/');
            script_name.extend_from_slice(name.as_bytes());
        }
        let mut ours: Vec<(&str, Cow<'_, [u8]>)> = Vec::new();
        onward.said_by_us(|name, value| ours.push((name, value.into())));
        if let Some(length) = length.filter(|_| !head.fields.has(Name::ContentLength)) {
            ours.push(("content-length", length.to_string().into_bytes().into()));
        }
        let default = if peer.is_secure() { 443 } else { 80 };
        let port = head
            .fields
            .text(Name::Host)
            .and_then(|host| host.rsplit_once(':')?.1.parse().ok());
        Described {
            uri: head.target().to_owned(),
            port: port.unwrap_or(default),
            root: script.map(|script| script.root),
            onward,
            script_name,
            path_info,
            file,
            ours,
        }
    }

    fn tell<T>(&self, write: impl FnOnce(Vec<Variable<'_>>) -> T) -> T {
        let Onward {
            head, peer, user, ..
        } = self.onward;
        let mut headers: Vec<(&[u8], &[u8])> = head
            .fields
            .iter()
            .filter(|field| self.onward.passes(*field))
            .map(|field| (field.name, field.value))
            .collect();
        headers.extend(
            self.ours
                .iter()
                .map(|(name, value)| (name.as_bytes(), &**value)),
        );
        let query = head.query();
        write(cgi::variables(&cgi::Request {
            method: head.method.text(),
            script_name: &self.script_name,
            path_info: &self.path_info,
            request_uri: self.uri.as_bytes(),
            query: query.strip_prefix('?').unwrap_or(query).as_bytes(),
            protocol: "HTTP/1.1",
            scheme: if peer.is_secure() { "https" } else { "http" },
            server_name: head.host(),
            server_port: self.port,
            remote_addr: &peer.text,
            remote_port: peer.port,
            remote_user: user.map(str::as_bytes),
            document_root: self.root.map(str::as_bytes),
            script_filename: self.file.as_ref().map(String::as_bytes),
            headers: &headers,
        }))
    }
}

/// The script that a path names and what follows it: `/a.php/b` is the script `a.php` with `/b`. A path that
/// names none, or one that could be no file of the root, is the index script's.
fn split(path: &[u8], index: &str) -> (String, Vec<u8>) {
    let text = String::from_utf8_lossy(path);
    let found = text
        .match_indices(".php")
        .map(|(at, _)| at + 4)
        .find(|end| {
            let rest = &text[*end..];
            rest.is_empty() || rest.starts_with('/')
        });
    if let Some(end) = found {
        let name = text[..end].trim_start_matches('/');
        let sound = name
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains('\0'));
        if sound && std::str::from_utf8(path).is_ok() {
            return (name.to_owned(), path[end..].to_vec());
        }
    }
    (index.to_owned(), path.to_vec())
}

/// What a FastCGI app says: the answer out of its records.
pub struct Reader<'a> {
    read: ReadHalf<'a>,
    raw: Input,
    decoder: Decoder,
}

impl<'a> Reader<'a> {
    pub fn new(read: ReadHalf<'a>) -> Self {
        Reader {
            read,
            raw: Input::default(),
            decoder: Decoder::new(),
        }
    }

    /// Reads more of the answer; 0 at its end.
    ///
    /// # Errors
    /// The app ended before its answer did, or talks nonsense, or refuses.
    pub async fn read(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            if self.decoder.ended() {
                return Ok(0);
            }
            let step = self.decoder.next(self.raw.unread());
            let step = step.map_err(|error| io::Error::other(error.to_string()))?;
            let consumed = step.consumed();
            match step {
                Step::Stdout(range) => {
                    let data = &self.raw.unread()[range];
                    into.extend_from_slice(data);
                    let count = data.len();
                    self.raw.consume(consumed);
                    return Ok(count);
                }
                Step::Stderr(range) => {
                    let text = String::from_utf8_lossy(&self.raw.unread()[range]).into_owned();
                    tracing::debug!("a FastCGI app: {text}");
                    self.raw.consume(consumed);
                }
                Step::End {
                    protocol_status, ..
                } => {
                    self.raw.consume(consumed);
                    if protocol_status != fastcgi::REQUEST_COMPLETE {
                        return Err(io::Error::other("the app refuses the request"));
                    }
                    return Ok(0);
                }
                Step::More(_) => {
                    self.raw.consume(consumed);
                    let room = self.raw.room(buffers::SMALL);
                    if self.read.read_buf(room).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_script() {
        let split = |path: &str| {
            let (name, rest) = split(path.as_bytes(), "index.php");
            (name, String::from_utf8(rest).expect("text"))
        };
        let is = |name: &str, rest: &str| (name.to_owned(), rest.to_owned());
        assert_eq!(split("/"), is("index.php", "/"));
        assert_eq!(split("/a/b.php"), is("a/b.php", ""));
        assert_eq!(split("/b.php/c/d"), is("b.php", "/c/d"));
        assert_eq!(split("/b.phpx/c.php"), is("b.phpx/c.php", ""));
        assert_eq!(split("/blog/1"), is("index.php", "/blog/1"));
        // Nothing hidden is run, and nothing outside.
        assert_eq!(split("/.git/x.php"), is("index.php", "/.git/x.php"));
        assert_eq!(split("/../x.php"), is("index.php", "/../x.php"));
    }
}
