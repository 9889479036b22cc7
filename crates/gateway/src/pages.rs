//! What a visitor sees when there is nothing else to show: HTML or JSON (RFC 9457), as accepted.

use bytes::Bytes;
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{HeaderMap, Response, StatusCode};

use crate::pipeline::{Reply, full};

/// An error of the gateway's own.
#[derive(Clone, Debug)]
pub struct Page {
    pub status: StatusCode,
    /// For a visitor: nothing about the inside.
    pub detail: String,
    pub retry_after_s: Option<u32>,
    /// The connection cannot be trusted any further.
    pub close: bool,
}

impl Page {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Page {
            status,
            detail: detail.into(),
            retry_after_s: None,
            close: false,
        }
    }

    pub fn unavailable(detail: impl Into<String>, retry_after_s: u32) -> Self {
        Page {
            retry_after_s: Some(retry_after_s),
            ..Page::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        }
    }

    pub fn render(&self, request: &HeaderMap) -> Response<Reply> {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let (kind, body) = if wants_html(request) {
            ("text/html; charset=utf-8", self.html(title))
        } else {
            let problem = serde_json::json!({
                "type": "about:blank",
                "title": title,
                "status": self.status.as_u16(),
                "detail": self.detail,
            });
            ("application/problem+json", problem.to_string())
        };
        let mut response = Response::new(full(Bytes::from(body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.close {
            headers.insert("connection", HeaderValue::from_static("close"));
        }
        response
    }

    fn html(&self, title: &str) -> String {
        let code = self.status.as_u16();
        let detail = escape(&self.detail);
        let refresh = match self.retry_after_s {
            Some(seconds) => format!(
                "<meta http-equiv=\"refresh\" content=\"{}\">",
                seconds.max(2)
            ),
            None => String::new(),
        };
        format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">{refresh}<title>{code} {title}</title><style>body{{font:16px/1.5 system-ui,sans-serif;color:#333;background:#f6f5f2;display:grid;place-items:center;min-height:100vh;margin:0}}main{{max-width:32rem;padding:2rem}}h1{{font-size:1.3rem;margin:0 0 .5rem}}b{{color:#a33;font-size:3rem;display:block;line-height:1}}@media(prefers-color-scheme:dark){{body{{background:#1d1c1a;color:#ddd}}}}</style><main><b>{code}</b><h1>{title}</h1><p>{detail}</p></main></html>"
        )
    }
}

/// Browsers name text/html; programs rarely do.
fn wants_html(headers: &HeaderMap) -> bool {
    headers
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
