//! Visits each example as a browser would, through the gateway, and looks at the answers.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::output::{Output, printable};

/// True if every answer is right; each is printed.
pub async fn all(http: SocketAddr, output: Output) -> bool {
    let note = format!("from the demo's check {}", std::process::id());
    let body = serde_json::json!({ "text": note }).to_string();
    let mut right = true;
    let mut expect = |name: &str,
                      answer: Result<(StatusCode, String), String>,
                      good: &dyn Fn(StatusCode, &str) -> bool| {
        let (fine, text) = match &answer {
            Ok((status, text)) => (good(*status, text), format!("{status} {text}")),
            Err(error) => (false, error.clone()),
        };
        right &= fine;
        let short: String = printable(&text)
            .replace('\n', " ")
            .chars()
            .take(90)
            .collect();
        output.text(&format!(
            "{} {name}: {short}",
            if fine { "ok  " } else { "FAIL" }
        ));
    };
    let get = |host, path| request(http, Method::GET, host, path, "");
    let ok = StatusCode::OK;
    expect(
        "notes is healthy",
        get("notes.localhost", "/healthz").await,
        &|s, t| s == ok && t.trim() == "ok",
    );
    let posted = request(http, Method::POST, "notes.localhost", "/api/notes", &body).await;
    expect("notes keeps a note", posted, &|s, _| {
        s == StatusCode::CREATED
    });
    expect(
        "board is a page",
        get("board.localhost", "/").await,
        &|s, t| s == ok && t.contains("<html"),
    );
    expect(
        "board's own paths are the page too",
        get("board.localhost", "/about").await,
        &|s, t| s == ok && t.contains("<html"),
    );
    expect(
        "board reaches notes by its own /api",
        get("board.localhost", "/api/notes").await,
        &|s, t| s == ok && t.contains(&note),
    );
    expect(
        "clock is compiled and answers",
        get("clock.localhost", "/").await,
        &|s, t| s == ok && t.contains("\"time\""),
    );
    expect(
        "chat echoes over a WebSocket",
        echo(http, "chat.localhost", "hello").await,
        &|s, t| s == StatusCode::SWITCHING_PROTOCOLS && t == "hello",
    );
    expect(
        "an unknown host is not found",
        get("nobody.localhost", "/").await,
        &|s, _| s == StatusCode::NOT_FOUND,
    );
    right
}

const PATIENCE: Duration = Duration::from_secs(15);

async fn request(
    http: SocketAddr,
    method: Method,
    host: &str,
    path: &str,
    body: &str,
) -> Result<(StatusCode, String), String> {
    let work = async {
        let stream = TcpStream::connect(http).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", format!("{host}:{}", http.port()))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .map_err(|e| e.to_string())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        Ok((
            status,
            String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        ))
    };
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err("no answer within 15 s".into()))
}

/// One text message to `/ws` and back (RFC 6455).
async fn echo(http: SocketAddr, host: &str, text: &str) -> Result<(StatusCode, String), String> {
    let work = async {
        let mut stream = TcpStream::connect(http).await?;
        let head = format!(
            "GET /ws HTTP/1.1\r\nHost: {host}:{}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            http.port()
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await?);
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let accepted = answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        if !answer.starts_with("HTTP/1.1 101") || !accepted {
            return Ok((StatusCode::BAD_GATEWAY, answer));
        }
        // A masked text frame; a mask of zeros leaves the payload readable.
        let payload = format!("echo:{text}");
        let mut frame = vec![0x81, 0x80 | payload.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(payload.as_bytes());
        stream.write_all(&frame).await?;
        let (kind, length) = (stream.read_u8().await?, stream.read_u8().await?);
        let mut payload = vec![0; usize::from(length & 0x7f)];
        stream.read_exact(&mut payload).await?;
        let text = String::from_utf8_lossy(&payload).into_owned();
        let text = if kind == 0x81 {
            text
        } else {
            format!("frame {kind:#x}: {text}")
        };
        Ok((StatusCode::SWITCHING_PROTOCOLS, text))
    };
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(result) => result.map_err(|error: std::io::Error| error.to_string()),
        Err(_) => Err("no answer within 15 s".into()),
    }
}
