//! What a visitor sees when there is nothing else to show: HTML or JSON (RFC 9457), as accepted.

use hutong_http::Reject;
use hutong_http::fields::Name;

use crate::status;
use crate::visitor::{Answer, Body};

/// An error of the gateway's own.
#[derive(Clone, Debug)]
pub struct Page {
    pub status: u16,
    /// For a visitor: nothing about the inside.
    pub detail: String,
    pub retry_after_s: Option<u32>,
    /// The connection cannot be trusted any further.
    pub close: bool,
    /// What else it says.
    pub fields: Vec<(&'static str, String)>,
}

impl Page {
    pub fn new(status: u16, detail: impl Into<String>) -> Self {
        Page {
            status,
            detail: detail.into(),
            retry_after_s: None,
            close: false,
            fields: Vec::new(),
        }
    }

    pub fn unavailable(detail: impl Into<String>, retry_after_s: u32) -> Self {
        Page {
            retry_after_s: Some(retry_after_s),
            ..Page::new(503, detail)
        }
    }

    /// For what is no sound request: nothing behind it can be trusted.
    pub fn rejected(reject: Reject) -> Self {
        Page {
            close: true,
            ..Page::new(reject.status, capital(reject.why))
        }
    }

    /// Nothing more over this connection.
    pub fn closing(self) -> Self {
        Page {
            close: true,
            ..self
        }
    }

    /// As the visitor's `Accept` has it.
    pub fn render(&self, accept: Option<&str>) -> Answer {
        let title = status::reason(self.status);
        let (kind, body) = if wants_html(accept) {
            ("text/html; charset=utf-8", self.html(title))
        } else {
            let problem = serde_json::json!({
                "type": "about:blank",
                "title": title,
                "status": self.status,
                "detail": self.detail,
            });
            ("application/problem+json", problem.to_string())
        };
        let mut answer = Answer::new(self.status)
            .with(Name::ContentType, kind)
            .with(Name::CacheControl, "no-store");
        if let Some(seconds) = self.retry_after_s {
            answer = answer.with(Name::RetryAfter, &seconds.to_string());
        }
        for (name, value) in &self.fields {
            answer.fields.push(name.as_bytes(), value.as_bytes());
        }
        answer.body = Body::Bytes(body.into());
        answer
    }

    fn html(&self, title: &str) -> String {
        let code = self.status;
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
fn wants_html(accept: Option<&str>) -> bool {
    accept.is_some_and(|accept| accept.contains("text/html"))
}

/// As a sentence.
pub fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string());
    format!("{}{}.", first.unwrap_or_default(), letters.as_str())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
