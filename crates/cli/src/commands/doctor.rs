//! `hutong doctor`: the server's own look at its walls, or, without a server, this user's.

use std::process::ExitCode;

use hutong_api::client::ClientError;
use hutong_api::{Leak, Wall};
use hutong_runtime::cgroup::Cgroups;

use super::Server;
use crate::error::CliError;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  hutong doctor                   is this machine fit to keep apps apart?
  hutong doctor --leaks           does anything lie around that belongs to no app?
  hutong doctor --leaks --fix     and away with it

Exit code 1: a wall is missing, or something lies around.")]
pub struct Args {
    /// Show processes, cgroups, mounts, interfaces, rules, id ranges and files that belong to no app
    #[arg(long)]
    leaks: bool,
    /// Remove them
    #[arg(long, requires = "leaks")]
    fix: bool,
}

pub fn run(args: &Args, server: &Server) -> Result<ExitCode, CliError> {
    if args.leaks {
        return super::block_on(leaks(args.fix, server));
    }
    let asked = super::block_on(async {
        let client = server.client()?;
        match client.get::<Vec<Wall>>("/v1/doctor").await {
            Ok(walls) => Ok(Some(walls)),
            Err(ClientError::Unreachable { .. }) if server.is_default() => Ok(None),
            Err(error) => Err(error.into()),
        }
    })?;
    let walls = match asked {
        Some(walls) => walls,
        None => {
            server
                .output
                .say("no server runs; this is what one started by this user would find");
            look()
        }
    };
    server
        .output
        .table(&walls, &["wall", "stands", "found", "remedy"], |wall| {
            vec![
                wall.wall.clone(),
                if wall.stands { "yes" } else { "NO" }.into(),
                wall.found.clone(),
                wall.remedy.clone(),
            ]
        });
    let all = walls.iter().all(|wall| wall.stands);
    Ok(if all {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

async fn leaks(fix: bool, server: &Server) -> Result<ExitCode, CliError> {
    let path = format!("/v1/leaks?fix={fix}");
    let found: Vec<Leak> = server.client()?.post(&path, &()).await?;
    if found.is_empty() && !server.output.json {
        server.output.text("nothing lies around");
        return Ok(ExitCode::SUCCESS);
    }
    let columns = ["kind", "what", "removed"];
    server.output.table(&found, &columns, |leak| {
        let removed = match (&leak.problem, leak.removed) {
            (Some(problem), _) => format!("no: {problem}"),
            (None, true) => "yes".into(),
            (None, false) => "no".into(),
        };
        vec![leak.kind.clone(), leak.what.clone(), removed]
    });
    let left = found.iter().any(|leak| !leak.removed);
    if left && !fix && found.iter().all(|leak| leak.kind != "busy") {
        server
            .output
            .say("`hutong doctor --leaks --fix` removes them");
    }
    Ok(if left {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    })
}

fn look() -> Vec<Wall> {
    let cgroups = Cgroups::find("hutong-doctor");
    let walls = hutong_runtime::doctor::examine(&cgroups);
    cgroups.remove_all();
    walls
        .into_iter()
        .map(|wall| Wall {
            wall: wall.wall,
            what: wall.what,
            stands: wall.stands,
            found: wall.found,
            remedy: wall.remedy,
        })
        .collect()
}
