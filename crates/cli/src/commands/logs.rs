//! `hutong logs APP`.

use std::time::{SystemTime, UNIX_EPOCH};

use http_body_util::BodyExt;
use hutong_api::LogLine;
use hutong_core::units::parse_time;

use super::{Server, path};
use crate::error::CliError;
use crate::output::{Output, clock, colours, printable};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  hutong logs shop -f
  hutong logs shop --since 10m --lines 1000
  hutong logs shop --access")]
pub struct Args {
    /// The app's name
    app: String,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Not older than this, such as 10m or 2h
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// The last so many lines
    #[arg(short = 'n', long, default_value_t = 100)]
    lines: usize,
    /// The access log instead of the output
    #[arg(long)]
    access: bool,
    /// Only of this process: web, run, release, build, or the name of a worker or timed job
    #[arg(long, value_name = "NAME", conflicts_with = "access")]
    process: Option<String>,
}

pub async fn run(args: &Args, server: &Server) -> Result<(), CliError> {
    let mut place = path(&["apps", &args.app, "logs"]);
    place.push_str(&format!("?lines={}&follow={}", args.lines, args.follow));
    if args.access {
        place.push_str("&kind=access");
    }
    if let Some(process) = &args.process {
        if !process.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            let text =
                "a process is web, run, release, build, or the name of a worker or timed job";
            return Err(CliError::usage(text));
        }
        place.push_str(&format!("&process={process}"));
    }
    if let Some(since) = &args.since {
        let age = parse_time(since).map_err(CliError::usage)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let from = now.saturating_sub(age).as_micros();
        place.push_str(&format!("&since={from}"));
    }
    let mut body = server.client()?.stream(&place).await?;
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| CliError::failed(format!("the server's answer broke off: {error}")))?;
        if let Some(data) = frame.data_ref() {
            rest.extend_from_slice(data);
        }
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            show(
                &String::from_utf8_lossy(&line[..end]),
                args.access,
                server.output,
            );
        }
    }
    Ok(())
}

/// Shows a line as the API gives it.
pub fn show(line: &str, access: bool, output: Output) {
    if output.json {
        return output.as_is(line);
    }
    if access {
        return output.text(&show_access(line));
    }
    let Ok(line) = serde_json::from_str::<LogLine>(line) else {
        return;
    };
    let (dim, mark, off) = match (colours(&std::io::stdout()), line.s.as_str()) {
        (true, "err") => ("\x1b[2m", "\x1b[31m", "\x1b[0m"),
        (true, "note") => ("\x1b[2m", "\x1b[36m", "\x1b[0m"),
        (true, _) => ("\x1b[2m", "", "\x1b[0m"),
        (false, _) => ("", "", ""),
    };
    let instance = line.i.rsplit('-').next().unwrap_or_default();
    // Workers and timed jobs by their name, which stands behind the number.
    let instance = match instance.as_bytes().first() {
        Some(b'w' | b't') => instance.get(9..).unwrap_or(instance),
        _ => instance,
    };
    let (instance, stream) = (printable(instance), printable(&line.s));
    output.as_is(&format!(
        "{dim}{} {instance:8} {stream:5}{off} {mark}{}{off}",
        clock(line.t),
        printable(&line.m)
    ));
}

fn show_access(line: &str) -> String {
    let Ok(record) = serde_json::from_str::<serde_json::Value>(line) else {
        return printable(line);
    };
    let text = |key: &str| printable(record[key].as_str().unwrap_or("-"));
    let number = |key: &str| record[key].as_u64().unwrap_or(0);
    format!(
        "{} {} {} {} http://{}{} {} bytes {:.1} ms",
        clock(number("t")),
        text("ip"),
        number("status"),
        text("method"),
        text("host"),
        text("path"),
        number("bytes"),
        number("us") as f64 / 1000.0
    )
}
