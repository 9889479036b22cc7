//! The variables that describe a request to an application behind FastCGI or uwsgi. Here is only what they are
//! called and where they come from; the wires are `fastcgi` and `uwsgi`.
//!
//! Followed: RFC 3875 §4.1 (meta-variables), PEP 3333 ("environ Variables"), and what nginx's `fastcgi_params`
//! and `uwsgi_params` add: REQUEST_URI, DOCUMENT_ROOT, SCRIPT_FILENAME, REQUEST_SCHEME, HTTPS, REMOTE_PORT.
//!
//! An application cannot tell a header from another whose name gives the same variable, so whoever sends a
//! request must not be able to make two of one: see [`variables`].

use std::borrow::Cow;

/// A request as the gateway understood it. Texts are passed on as they are: the caller has checked them, and has
/// taken out the headers that are between it and the visitor (Connection, Transfer-Encoding and the like).
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// As sent, for example `GET`.
    pub method: &'a str,
    /// The part of the path that leads to the application, percent-decoded; empty at the root.
    pub script_name: &'a [u8],
    /// The rest of the path, percent-decoded.
    pub path_info: &'a [u8],
    /// Path and query as sent, not decoded.
    pub request_uri: &'a [u8],
    /// What follows the `?`, not decoded; empty without one.
    pub query: &'a [u8],
    /// For example `HTTP/1.1`.
    pub protocol: &'a str,
    /// `http` or `https`, in lower case.
    pub scheme: &'a str,
    /// The host that was asked for, without its port.
    pub server_name: &'a str,
    /// The port that the visitor connected to.
    pub server_port: u16,
    /// The visitor's IP address.
    pub remote_addr: &'a str,
    /// The visitor's port.
    pub remote_port: u16,
    /// Who the visitor is, where a password was asked for.
    pub remote_user: Option<&'a [u8]>,
    /// The folder of the site, for applications that are files.
    pub document_root: Option<&'a [u8]>,
    /// The file that is to be run, for applications that are files.
    pub script_filename: Option<&'a [u8]>,
    /// Names and values in the order they came. A body needs its Content-Length here even if it came in chunks.
    pub headers: &'a [(&'a [u8], &'a [u8])],
}

/// A variable's name and value.
pub type Variable<'a> = (Cow<'static, [u8]>, Cow<'a, [u8]>);

/// All variables of a request, each name once.
///
/// Of the headers,
/// - Content-Type and Content-Length become CONTENT_TYPE and CONTENT_LENGTH (the first, if there are several);
/// - `Proxy` is dropped: as HTTP_PROXY it would tell many an HTTP client which proxy to use (httpoxy,
///   CVE-2016-5385);
/// - a name of anything but letters, digits and `-` is dropped: `X_User` would give the variable of `X-User`, and
///   PHP makes `_` of `.` too;
/// - the others become HTTP_*, repeated ones joined by `, ` (RFC 9110 §5.3), Cookie by `; ` (RFC 9113 §8.2.3).
pub fn variables<'a>(request: &Request<'a>) -> Vec<Variable<'a>> {
    let mut all = described(request);
    let mut add = |name: &'static str, value: Option<&'a [u8]>| {
        all.extend(value.map(|value| fixed(name, value)));
    };
    add("HTTPS", (request.scheme == "https").then_some(b"on"));
    add("REMOTE_USER", request.remote_user);
    add("DOCUMENT_ROOT", request.document_root);
    add("SCRIPT_FILENAME", request.script_filename);
    add("CONTENT_TYPE", first(request.headers, b"content-type"));
    add("CONTENT_LENGTH", first(request.headers, b"content-length"));
    all.extend(from_headers(request.headers));
    all
}

/// What every request has.
fn described<'a>(request: &Request<'a>) -> Vec<Variable<'a>> {
    vec![
        fixed("GATEWAY_INTERFACE", b"CGI/1.1"),
        fixed("REQUEST_METHOD", request.method.as_bytes()),
        fixed("SCRIPT_NAME", request.script_name),
        fixed("PATH_INFO", request.path_info),
        fixed("REQUEST_URI", request.request_uri),
        fixed("QUERY_STRING", request.query),
        fixed("SERVER_PROTOCOL", request.protocol.as_bytes()),
        fixed("REQUEST_SCHEME", request.scheme.as_bytes()),
        fixed("SERVER_NAME", request.server_name.as_bytes()),
        port("SERVER_PORT", request.server_port),
        fixed("REMOTE_ADDR", request.remote_addr.as_bytes()),
        port("REMOTE_PORT", request.remote_port),
    ]
}

fn fixed<'a>(name: &'static str, value: &'a [u8]) -> Variable<'a> {
    (Cow::Borrowed(name.as_bytes()), Cow::Borrowed(value))
}

fn port(name: &'static str, port: u16) -> Variable<'static> {
    let digits = port.to_string().into_bytes();
    (Cow::Borrowed(name.as_bytes()), Cow::Owned(digits))
}

/// The value of the first header of that name.
fn first<'a>(headers: &[(&'a [u8], &'a [u8])], name: &[u8]) -> Option<&'a [u8]> {
    let mut same = headers
        .iter()
        .filter(|header| header.0.eq_ignore_ascii_case(name));
    same.next().map(|header| header.1)
}

/// The HTTP_* variables, in the order in which their headers first came. Each is looked up among those before it:
/// the caller bounds how many there are.
fn from_headers<'a>(headers: &[(&'a [u8], &'a [u8])]) -> Vec<Variable<'a>> {
    let mut found: Vec<Variable<'a>> = Vec::with_capacity(headers.len());
    for (header, value) in headers {
        let Some(name) = variable_name(header) else {
            continue;
        };
        match found.iter_mut().find(|known| *known.0 == *name) {
            Some((name, known)) => append(known.to_mut(), name, value),
            None => found.push((Cow::Owned(name), Cow::Borrowed(value))),
        }
    }
    found
}

fn append(known: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let separator: &[u8] = if name == b"HTTP_COOKIE" { b"; " } else { b", " };
    known.extend_from_slice(separator);
    known.extend_from_slice(value);
}

/// The variable of a header; none if it is dropped or has a variable of its own. See [`variables`] for why.
fn variable_name(header: &[u8]) -> Option<Vec<u8>> {
    const NOT_PASSED: [&[u8]; 3] = [b"content-type", b"content-length", b"proxy"];
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    if header.is_empty()
        || !header.iter().all(plain)
        || NOT_PASSED
            .iter()
            .any(|name| header.eq_ignore_ascii_case(name))
    {
        return None;
    }
    let mut name = b"HTTP_".to_vec();
    name.extend(header.iter().map(|byte| match byte {
        b'-' => b'_',
        other => other.to_ascii_uppercase(),
    }));
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    type Headers<'a> = &'a [(&'a [u8], &'a [u8])];

    fn request(headers: Headers<'_>) -> Request<'_> {
        Request {
            method: "POST",
            script_name: b"/app",
            path_info: b"/\xff b",
            request_uri: b"/app/%ff%20b?q=%20",
            query: b"q=%20",
            protocol: "HTTP/1.1",
            scheme: "http",
            server_name: "example.org",
            server_port: 80,
            remote_addr: "2001:db8::1",
            remote_port: 65535,
            remote_user: None,
            document_root: None,
            script_filename: None,
            headers,
        }
    }

    /// The variables as `NAME=value`, each name once.
    fn lines(request: &Request<'_>) -> Vec<String> {
        let all = variables(request);
        let names: HashSet<_> = all.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names.len(), all.len(), "a name twice");
        let line = |(name, value): &Variable<'_>| {
            format!("{}={}", name.escape_ascii(), value.escape_ascii())
        };
        all.iter().map(line).collect()
    }

    /// Those that come from headers.
    fn of_headers(headers: Headers<'_>) -> Vec<String> {
        lines(&request(headers)).split_off(lines(&request(&[])).len())
    }

    #[test]
    fn a_request_is_described() {
        let expected = [
            "GATEWAY_INTERFACE=CGI/1.1",
            "REQUEST_METHOD=POST",
            "SCRIPT_NAME=/app",
            "PATH_INFO=/\\xff b",
            "REQUEST_URI=/app/%ff%20b?q=%20",
            "QUERY_STRING=q=%20",
            "SERVER_PROTOCOL=HTTP/1.1",
            "REQUEST_SCHEME=http",
            "SERVER_NAME=example.org",
            "SERVER_PORT=80",
            "REMOTE_ADDR=2001:db8::1",
            "REMOTE_PORT=65535",
        ];
        assert_eq!(lines(&request(&[])), expected);
    }

    #[test]
    fn https_and_files_are_told_if_there_are_any() {
        let request = Request {
            scheme: "https",
            remote_user: Some(b"ann"),
            document_root: Some(b"/srv"),
            script_filename: Some(b"/srv/index.php"),
            ..request(&[])
        };
        let expected = [
            "HTTPS=on",
            "REMOTE_USER=ann",
            "DOCUMENT_ROOT=/srv",
            "SCRIPT_FILENAME=/srv/index.php",
        ];
        assert_eq!(lines(&request)[12..], expected);
    }

    #[test]
    fn headers_become_variables_and_repeated_ones_are_joined() {
        let headers: Headers<'_> = &[
            (b"Host", b"example.org"),
            (b"cookie", b"a=1"),
            (b"X-Forwarded-For", b"1.1.1.1"),
            (b"Cookie", b"b=2"),
            (b"x-forwarded-FOR", b""),
            (b"X-Forwarded-For", b"2.2.2.2"),
            (b"X-1", b"\xfc"),
        ];
        let expected = [
            "HTTP_HOST=example.org",
            "HTTP_COOKIE=a=1; b=2",
            "HTTP_X_FORWARDED_FOR=1.1.1.1, , 2.2.2.2",
            "HTTP_X_1=\\xfc",
        ];
        assert_eq!(of_headers(headers), expected);
    }

    #[test]
    fn the_body_is_described_once() {
        let headers: Headers<'_> = &[
            (b"content-length", b"5"),
            (b"CONTENT-TYPE", b"text/plain"),
            (b"Content-Length", b"7"),
        ];
        assert_eq!(
            of_headers(headers),
            ["CONTENT_TYPE=text/plain", "CONTENT_LENGTH=5"]
        );
    }

    #[test]
    fn a_header_cannot_pose_as_another() {
        for name in [
            "Proxy",
            "pROXY",
            "X_User",
            "_",
            "X.User",
            "X User",
            "X[User",
            "",
            "X-\u{fc}",
            "Content_Length",
        ] {
            let headers: Headers<'_> = &[(name.as_bytes(), b"evil"), (b"X-User", b"good")];
            assert_eq!(of_headers(headers), ["HTTP_X_USER=good"], "{name:?}");
        }
        assert_eq!(
            of_headers(&[(b"Https", b"on"), (b"Remote-Addr", b"x")]),
            ["HTTP_HTTPS=on", "HTTP_REMOTE_ADDR=x"]
        );
        assert_eq!(
            of_headers(&[(b"Proxy-Authorization", b"x")]),
            ["HTTP_PROXY_AUTHORIZATION=x"]
        );
    }
}
