//! Static apps: files of an immutable tree, opened beneath a directory handle and never through a link
//! (openat2(2)). Conditional requests and ranges per RFC 9110 §13 and §14.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hutong_http::fields::{Fields, Name};
use hutong_http::request::{Method, RequestHead};
use percent_encoding::percent_decode_str;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::compress::{self, Coding};
use crate::pages::Page;
use crate::visitor::{Answer, Body};

/// Read in one go, on the worker: they come from the page cache.
const SMALL: u64 = 128 << 10;
const CHUNK: u64 = 256 << 10;
/// Less than this is not worth a read.
const LEAST: u64 = 16 << 10;

/// No link, no way up.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// The folder of one release.
pub struct Root {
    data_dir: PathBuf,
    relative: String,
    folder: OnceLock<Arc<OwnedFd>>,
}

impl Root {
    /// `relative` is below `data_dir`.
    pub fn new(data_dir: &Path, relative: &str) -> Self {
        Root {
            data_dir: data_dir.to_owned(),
            relative: relative.to_owned(),
            folder: OnceLock::new(),
        }
    }

    #[cfg(test)]
    pub fn relative(&self) -> &str {
        &self.relative
    }

    fn folder(&self) -> io::Result<Arc<OwnedFd>> {
        if let Some(folder) = self.folder.get() {
            return Ok(folder.clone());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let data_dir = rustix::fs::open(&self.data_dir, flags, Mode::empty())?;
        // A build may have made the folder a link to somewhere else: it is not followed.
        let opened = rustix::fs::openat2(data_dir, &self.relative, flags, Mode::empty(), INSIDE)?;
        Ok(self.folder.get_or_init(|| Arc::new(opened)).clone())
    }

    fn open(&self, path: &str) -> io::Result<File> {
        let fd = rustix::fs::openat2(
            &*self.folder()?,
            if path.is_empty() { "." } else { path },
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
            Mode::empty(),
            INSIDE,
        )?;
        Ok(File::from(fd))
    }
}

/// Answers from the tree. `fallback` is what a single-page app answers with where there is no file.
pub fn serve(
    root: &Root,
    path: &str,
    head: &RequestHead,
    index: Option<&str>,
    fallback: Option<&str>,
) -> Result<Answer, Page> {
    if head.method != Method::Get && head.method != Method::Head {
        let page = Page::new(405, "This app serves files; they can only be read.");
        let answer = page.render(head.fields.text(Name::Accept));
        return Ok(answer.with(Name::Allow, "GET, HEAD"));
    }
    if path.is_empty() {
        // The route's own path, without which relative links lead elsewhere.
        return Ok(redirect(head));
    }
    let decoded = percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| Page::new(400, "The path is not UTF-8."))?;
    let relative = decoded.trim_start_matches('/');
    let index = index.unwrap_or("index.html");
    match find(root, relative, index) {
        Found::File(file, name) => respond(root, file, &name, head, 200),
        Found::Folder => Ok(redirect(head)),
        Found::Nothing => {
            // An asset that is missing must not look like a page.
            let page = fallback.filter(|_| !looks_like_asset(relative));
            let (name, status) = match page {
                Some(page) => (page, 200),
                None => ("404.html", 404),
            };
            match find(root, name, index) {
                Found::File(file, name) => respond(root, file, &name, head, status),
                _ => Err(Page::new(404, "There is nothing here.")),
            }
        }
    }
}

/// A file beside an app's scripts, if the path names one that is surely no script and no configuration.
pub fn asset(root: &Root, path: &str, head: &RequestHead) -> Option<Answer> {
    const KINDS: [&str; 32] = [
        "avif",
        "bmp",
        "css",
        "csv",
        "eot",
        "gif",
        "htm",
        "html",
        "ico",
        "jpeg",
        "jpg",
        "js",
        "map",
        "mjs",
        "mp3",
        "mp4",
        "ogg",
        "otf",
        "pdf",
        "png",
        "svg",
        "ttf",
        "txt",
        "wasm",
        "wav",
        "webm",
        "webmanifest",
        "webp",
        "woff",
        "woff2",
        "xsl",
        "zip",
    ];
    let (_, kind) = path.rsplit_once('.')?;
    let readable = matches!(head.method, Method::Get | Method::Head);
    if !readable || !KINDS.contains(&kind.to_ascii_lowercase().as_str()) {
        return None;
    }
    let decoded = percent_decode_str(path).decode_utf8().ok()?;
    match find(root, decoded.trim_start_matches('/'), "index.html") {
        Found::File(file, name) => respond(root, file, &name, head, 200).ok(),
        Found::Folder | Found::Nothing => None,
    }
}

enum Found {
    File(File, String),
    /// A folder, asked for without the slash at its end.
    Folder,
    Nothing,
}

fn find(root: &Root, relative: &str, index: &str) -> Found {
    let hidden = |segment: &str| segment.starts_with('.') && segment != ".well-known";
    // The app's own configuration is no page, where the whole folder is served.
    if relative.split('/').any(hidden) || relative.contains('\0') || relative == "hutong.toml" {
        return Found::Nothing;
    }
    let trimmed = relative.trim_end_matches('/');
    let Ok(file) = root.open(trimmed) else {
        return Found::Nothing;
    };
    let Ok(metadata) = file.metadata() else {
        return Found::Nothing;
    };
    if metadata.is_file() && trimmed.len() == relative.len() {
        return Found::File(file, relative.to_owned());
    }
    if !metadata.is_dir() {
        return Found::Nothing;
    }
    let separator = if trimmed.is_empty() { "" } else { "/" };
    let name = format!("{trimmed}{separator}{index}");
    match root.open(&name) {
        Ok(file) if file.metadata().is_ok_and(|m| m.is_file()) => {
            if trimmed.len() == relative.len() && !trimmed.is_empty() {
                Found::Folder
            } else {
                Found::File(file, name)
            }
        }
        _ => Found::Nothing,
    }
}

fn looks_like_asset(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.rsplit_once('.')
        .is_some_and(|(_, ending)| !ending.is_empty() && ending != "html")
}

fn redirect(head: &RequestHead) -> Answer {
    // One leading slash only: `//host` would be another site.
    let location = format!("/{}/{}", head.path().trim_start_matches('/'), head.query());
    Answer::new(301).with(Name::Location, &location)
}

/// Names that carry a hash of their content may be kept for good: `app-3f9c1d2ab8.js`,
/// `index.B1x9k2Lq.css`, and Vite's eight characters of base64url, `index-DOC_6ND3.js`.
fn is_hashed(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or_default();
    let Some((stem, _)) = name.rsplit_once('.') else {
        return false;
    };
    let tail = |at: usize| {
        let border = stem[..at].ends_with(['-', '.', '_']);
        border && looks_random(&stem[at..])
    };
    let vite = stem.len() > 8 && stem.is_ascii() && tail(stem.len() - 8);
    let last = stem.rfind(['-', '.', '_']).map(|at| at + 1);
    vite || last.is_some_and(|at| (8..=64).contains(&(stem.len() - at)) && tail(at))
}

/// Not a word: it has digits, or upper and lower case mixed.
fn looks_random(text: &str) -> bool {
    let has = |test: fn(&u8) -> bool| text.as_bytes().iter().any(test);
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
    let mixed = has(u8::is_ascii_lowercase) && text.bytes().skip(1).any(|c| c.is_ascii_uppercase());
    text.bytes().all(plain) && (has(u8::is_ascii_digit) || mixed)
}

/// The same file, compressed beforehand (`app.js.br`), as the visitor would have it.
fn compressed(root: &Root, name: &str, head: &RequestHead) -> (Option<(File, Coding)>, bool) {
    const KINDS: [(Coding, &str); 3] = [
        (Coding::Brotli, "br"),
        (Coding::Zstd, "zst"),
        (Coding::Gzip, "gz"),
    ];
    if !compress::compresses_well(kind_of(name).as_bytes()) {
        return (None, false);
    }
    let found = KINDS.iter().filter_map(|(coding, ending)| {
        let file = root.open(&format!("{name}.{ending}")).ok()?;
        file.metadata()
            .is_ok_and(|m| m.is_file())
            .then_some((*coding, file))
    });
    let mut found: Vec<(Coding, File)> = found.collect();
    let codings: Vec<Coding> = found.iter().map(|(coding, _)| *coding).collect();
    let chosen = compress::negotiate(&head.fields, &codings);
    let at = chosen.and_then(|chosen| codings.iter().position(|coding| *coding == chosen));
    let file = at
        .map(|at| found.swap_remove(at))
        .map(|(coding, file)| (file, coding));
    (file, !codings.is_empty())
}

fn respond(
    root: &Root,
    file: File,
    name: &str,
    head: &RequestHead,
    status: u16,
) -> Result<Answer, Page> {
    // A range is one of the file as it is.
    let whole = !head.fields.has(Name::Range);
    let (ready, varies) = match whole {
        true => compressed(root, name, head),
        false => (None, false),
    };
    let (file, coding) = match ready {
        Some((file, coding)) => (file, Some(coding)),
        None => (file, None),
    };
    let mut answer = respond_with(file, name, head, status)?;
    if let Some(coding) = coding.filter(|_| answer.fields.has(Name::ContentType)) {
        answer
            .fields
            .add(Name::ContentEncoding, coding.name().as_bytes());
    }
    if varies {
        compress::vary(&mut answer.fields);
    }
    Ok(answer)
}

fn respond_with(file: File, name: &str, head: &RequestHead, status: u16) -> Result<Answer, Page> {
    let broken = |_| Page::new(500, "The file cannot be read.");
    let metadata = file.metadata().map_err(broken)?;
    let size = metadata.len();
    let etag = format!(
        "\"{:x}-{:x}-{:x}\"",
        metadata.ino(),
        metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
        size
    );
    let modified = UNIX_EPOCH + Duration::from_secs(metadata.mtime().max(0) as u64);
    let for_good = is_hashed(name) && status == 200;
    let answer = |status, kind: Option<&str>| {
        let answer = Answer::new(status);
        kind.into_iter()
            .fold(answer, |answer, kind| answer.with(Name::ContentType, kind))
            .with(Name::Etag, &etag)
            .with(Name::LastModified, &httpdate::fmt_http_date(modified))
            .with(Name::AcceptRanges, "bytes")
            .with(
                Name::CacheControl,
                if for_good {
                    "public, max-age=31536000, immutable"
                } else {
                    "no-cache"
                },
            )
    };
    if status == 200 && not_modified(&head.fields, &etag, modified) {
        return Ok(answer(304, None));
    }
    // RFC 9110 §14.2: for GET alone.
    let may = status == 200 && head.method == Method::Get;
    let range = match head.fields.text(Name::Range) {
        Some(range) if may && range_applies(&head.fields, &etag, modified) => {
            parse_range(range, size)
        }
        _ => Ok(None),
    };
    let kind = kind_of(name);
    let (mut answer, from, length) = match range {
        Ok(None) => (answer(status, Some(&kind)), 0, size),
        Ok(Some((first, last))) => {
            let value = format!("bytes {first}-{last}/{size}");
            let answer = answer(206, Some(&kind)).with(Name::ContentRange, &value);
            (answer, first, last - first + 1)
        }
        Err(()) => {
            let value = format!("bytes */{size}");
            return Ok(answer(416, None).with(Name::ContentRange, &value));
        }
    };
    answer.body = if length <= SMALL {
        let mut buffer = vec![0; length as usize];
        file.read_exact_at(&mut buffer, from).map_err(broken)?;
        Body::Bytes(buffer.into())
    } else {
        Body::File(FileStream::new(file, from, length))
    };
    Ok(answer)
}

fn kind_of(name: &str) -> String {
    let kind = mime_guess::from_path(name).first_or_octet_stream();
    match (kind.type_(), kind.subtype()) {
        (mime_guess::mime::TEXT, _) | (_, mime_guess::mime::JAVASCRIPT) => {
            format!("{}; charset=utf-8", kind.essence_str())
        }
        _ => kind.essence_str().to_owned(),
    }
}

/// RFC 9110 §13.1.2 and §13.1.3: If-None-Match wins.
fn not_modified(fields: &Fields, etag: &str, modified: SystemTime) -> bool {
    if let Some(tags) = fields.text(Name::IfNoneMatch) {
        let same = |tag: &str| tag.trim().trim_start_matches("W/") == etag;
        return tags.trim() == "*" || tags.split(',').any(same);
    }
    fields
        .text(Name::IfModifiedSince)
        .and_then(|v| httpdate::parse_http_date(v).ok())
        .is_some_and(|since| modified <= since)
}

/// RFC 9110 §13.1.5: a range of something else is no range.
fn range_applies(fields: &Fields, etag: &str, modified: SystemTime) -> bool {
    let Some(condition) = fields.text(Name::IfRange) else {
        return true;
    };
    condition == etag || httpdate::parse_http_date(condition).is_ok_and(|date| date == modified)
}

/// One byte range, inclusive. `Ok(None)`: to be ignored; `Err`: not satisfiable.
fn parse_range(value: &str, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some(spec) = value.strip_prefix("bytes=") else {
        return Ok(None);
    };
    let Some((first, last)) = spec.split_once('-').filter(|_| !spec.contains(',')) else {
        return Ok(None);
    };
    let number = |text: &str| text.trim().parse::<u64>();
    match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix) {
            Ok(0) => Err(()),
            Ok(count) if size > 0 => Ok(Some((size.saturating_sub(count), size - 1))),
            Ok(_) => Err(()),
            Err(_) => Ok(None),
        },
        (first, last) => {
            let Ok(first) = number(first) else {
                return Ok(None);
            };
            let last = match last {
                "" => u64::MAX,
                last => match number(last) {
                    Ok(last) if last >= first => last,
                    _ => return Ok(None),
                },
            };
            if first >= size {
                return Err(());
            }
            Ok(Some((first, last.min(size - 1))))
        }
    }
}

/// A large file on its way out; each chunk is read off the worker's thread.
pub struct FileStream {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl FileStream {
    fn new(file: File, at: u64, left: u64) -> Self {
        FileStream {
            file: Arc::new(file),
            at,
            left,
        }
    }

    pub fn left(&self) -> u64 {
        self.left
    }

    /// At most `room` bytes, or a little more where that is hardly any.
    pub async fn next(&mut self, room: usize) -> Option<io::Result<Vec<u8>>> {
        if self.left == 0 {
            return None;
        }
        let most = (room as u64).clamp(LEAST, CHUNK);
        let (file, at, length) = (self.file.clone(), self.at, self.left.min(most));
        let reading = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; length as usize];
            file.read_exact_at(&mut buffer, at)?;
            Ok(buffer)
        });
        self.at += length;
        self.left -= length;
        let chunk = reading.await;
        Some(chunk.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let parse = |text: &str| parse_range(text, 10);
        assert_eq!(parse("bytes=0-3"), Ok(Some((0, 3))));
        assert_eq!(parse("bytes=4-"), Ok(Some((4, 9))));
        assert_eq!(parse("bytes=-3"), Ok(Some((7, 9))));
        assert_eq!(parse("bytes=-99"), Ok(Some((0, 9))));
        assert_eq!(parse("bytes=8-99"), Ok(Some((8, 9))));
        assert_eq!(parse("bytes=10-"), Err(()));
        assert_eq!(parse("bytes=-0"), Err(()));
        for ignored in [
            "bytes=3-1",
            "lines=1-2",
            "bytes=a-b",
            "bytes=0-1,3-4",
            "bytes",
        ] {
            assert_eq!(parse(ignored), Ok(None), "{ignored}");
        }
    }

    #[test]
    fn hashed_names_are_told_from_plain_ones() {
        for name in [
            "assets/app-3f9c1d2ab8.js",
            "index.B1x9k2Lq.css",
            "a_0123456789abcdef.png",
            "index-DOC_6ND3.js",
            "index-CIkLTZfM.css",
        ] {
            assert!(is_hashed(name), "{name}");
        }
        for name in [
            "index.html",
            "app.js",
            "my-component.js",
            "bootstrap-5.js",
            "a-verylongword.js",
        ] {
            assert!(!is_hashed(name), "{name}");
        }
    }

    #[test]
    fn no_link_and_no_hidden_file_is_followed() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("a.txt"), "a").expect("write");
        std::fs::write(dir.path().join(".env"), "secret").expect("write");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).expect("symlink");
        std::fs::create_dir(dir.path().join("sub")).expect("mkdir");
        std::fs::write(dir.path().join("sub/index.html"), "i").expect("write");
        let root = Root::new(dir.path(), ".");
        let is_file = |path: &str| matches!(find(&root, path, "index.html"), Found::File(..));
        assert!(is_file("a.txt") && is_file("sub/"));
        assert!(matches!(find(&root, "sub", "index.html"), Found::Folder));
        for bad in [
            ".env",
            "link",
            "../x",
            "a.txt/",
            "sub/../../x",
            "",
            "nothing",
        ] {
            assert!(
                matches!(find(&root, bad, "index.html"), Found::Nothing),
                "{bad}"
            );
        }
    }
}
