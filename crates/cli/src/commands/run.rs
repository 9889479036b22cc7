//! `hutong run APP -- COMMAND`: a program once, in a sandbox of its own; and `hutong runs APP`.

use std::process::ExitCode;

use http_body_util::BodyExt;
use hutong_api::{LogLine, Run, RunRequest};
use hutong_core::units::{parse_time, show_time};

use super::{Server, path};
use crate::error::CliError;
use crate::output::{ago, printable};

#[derive(clap::Args)]
#[command(
    after_help = "It gets the files, variables, /data and limits of the release that serves, in a sandbox of its own
beside the app; its output goes into the app's log, too. The exit code is the program's own. On
Ctrl-C it runs on; `hutong runs APP --stop ID` ends it.

Examples:
  hutong run shop -- python manage.py createcachetable
  hutong run shop --cron report
  hutong run shop --detach --timeout 6h -- ./import.sh"
)]
pub struct Args {
    /// The app's name
    app: String,
    /// Run this timed job now
    #[arg(long, value_name = "NAME", conflicts_with = "command")]
    cron: Option<String>,
    /// Do not wait for its end
    #[arg(long)]
    detach: bool,
    /// How long it may take; default 1h, or what the timed job says
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,
    /// The program and its arguments
    #[arg(last = true)]
    command: Vec<String>,
}

pub async fn run(args: &Args, server: &Server) -> Result<ExitCode, CliError> {
    let timeout = args.timeout.as_deref().map(parse_time).transpose();
    let request = RunRequest {
        command: args.command.clone(),
        cron: args.cron.clone(),
        timeout_ms: timeout
            .map_err(CliError::usage)?
            .map(|time| time.as_millis() as u64),
    };
    let client = server.client()?;
    let runs = path(&["apps", &args.app, "runs"]);
    let began: Run = client.post(&runs, &request).await?;
    if args.detach {
        let text = format!("run {} of {} is on its way", began.id, args.app);
        server.output.result(&began, &text);
        return Ok(ExitCode::SUCCESS);
    }
    let place = format!("{runs}/{}", began.id);
    let mut printed = 0;
    loop {
        let run: Run = client.get(&format!("{place}?wait=1")).await?;
        if let Some(instance) = run.instance.as_deref().filter(|_| !server.output.json) {
            // Until the program is over, unless the control plane is restarted meanwhile.
            follow(&args.app, instance, &mut printed, server).await;
        }
        if !run.is_over() {
            continue;
        }
        if server.output.json {
            server.output.value(&run);
        } else if let Some(detail) = &run.detail {
            let text = format!("{}: {}", run.state, printable(detail));
            server.output.say(&text);
        }
        let code = match (run.state.as_str(), run.exit_code) {
            ("ok", _) => 0,
            (_, Some(code)) if code != 0 => code as u8,
            _ => 1,
        };
        return Ok(ExitCode::from(code));
    }
}

/// Prints what an instance says, but for the first `printed` lines, until it is over or the connection breaks.
async fn follow(app: &str, instance: &str, printed: &mut usize, server: &Server) {
    let place = path(&["apps", app, "logs"]);
    let place = format!("{place}?lines=100000&follow=true&instance={instance}");
    let Ok(client) = server.client() else {
        return;
    };
    let Ok(mut body) = client.stream(&place).await else {
        return;
    };
    let mut known = *printed;
    let mut rest = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            rest.extend_from_slice(data);
        }
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let Ok(record) = serde_json::from_slice::<LogLine>(&line) else {
                continue;
            };
            if record.s == "note" {
                continue;
            }
            if known > 0 {
                known -= 1;
                continue;
            }
            *printed += 1;
            match record.s.as_str() {
                "err" => server.output.say(&printable(&record.m)),
                _ => server.output.text(&printable(&record.m)),
            }
        }
    }
}

#[derive(clap::Args)]
#[command(
    after_help = "States: wanted, running, ok, failed, stopped; missed: its time went by while the server did not
run; skipped: the run before it went on.

Examples:
  hutong runs shop
  hutong logs shop --process report"
)]
pub struct ListArgs {
    /// The app's name
    app: String,
    /// The last so many, at most 100
    #[arg(short = 'n', long, default_value_t = 20)]
    limit: u64,
    /// End this one
    #[arg(long, value_name = "ID")]
    stop: Option<u64>,
}

pub async fn list(args: &ListArgs, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    let runs = path(&["apps", &args.app, "runs"]);
    if let Some(id) = args.stop {
        let run: Run = client.delete(&format!("{runs}/{id}")).await?;
        let text = format!("run {id} of {} is stopped", args.app);
        server.output.result(&run, &text);
        return Ok(());
    }
    let list: Vec<Run> = client.get(&format!("{runs}?limit={}", args.limit)).await?;
    let columns = ["run", "what", "state", "due", "took", "detail"];
    server.output.table(&list, &columns, |run| {
        let took = run.started_at.zip(run.ended_at);
        vec![
            run.id.to_string(),
            run.name.clone().unwrap_or_else(|| run.command.join(" ")),
            run.state.clone(),
            ago(run.due_at),
            took.map_or("-".into(), |(from, to)| {
                show_time(std::time::Duration::from_millis(to.saturating_sub(from)))
            }),
            run.detail.clone().unwrap_or_default(),
        ]
    });
    if list.is_empty() && !server.output.json {
        server.output.say("nothing was run yet");
    }
    Ok(())
}
