//! `hutong doctor`: the server's own look at its walls, or, without a server, this user's.

use std::process::ExitCode;

use hutong_api::Wall;
use hutong_api::client::ClientError;
use hutong_runtime::cgroup::Cgroups;

use super::Server;
use crate::error::CliError;

pub fn run(server: &Server) -> Result<ExitCode, CliError> {
    let asked = super::block_on(async {
        let client = server.client()?;
        match client.get::<Vec<Wall>>("/v1/doctor").await {
            Ok(walls) => Ok(Some(walls)),
            Err(ClientError::Unreachable { .. }) if server.api.is_none() => Ok(None),
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
