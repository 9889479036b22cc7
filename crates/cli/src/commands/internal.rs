//! The roles that the warden starts from this binary, each given its setup over standard input; and the one that SSH
//! starts for a `hutong` on another machine.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use hutong_runtime::sys;

use super::{Server, dial};
use crate::error::CliError;

pub fn run(role: &str, rest: &[OsString], server: &Server) -> Result<ExitCode, CliError> {
    if role == "ready" {
        // Asked by a warden that is about to be replaced by this program.
        return Ok(ExitCode::SUCCESS);
    }
    if role == "dial" {
        return dial::run(&server.local_address()?);
    }
    if role == "unpack" {
        // In a sandbox, and with no socket.
        return super::unpack::run();
    }
    // The warden waits for its signals by descriptor, and its mask is inherited.
    sys::unblock_signals();
    if role == "git" {
        // Control starts this one: behind walls, it becomes git.
        let [folder, arguments @ ..] = rest else {
            return Err(CliError::usage("a repository is missing"));
        };
        return Err(CliError::failed(hutong_daemon::become_git(
            Path::new(folder),
            arguments,
        )));
    }
    // Only a warden gives a socket as standard input; anything else fails at the first message.
    let line = UnixStream::from(sys::take_stdin().map_err(CliError::failed)?);
    let result = match role {
        "control" => hutong_daemon::main(&line, sys::become_user),
        "gateway" => hutong_gateway::main(&line, |uid, gid| sys::become_user(uid, gid, &[])),
        "docker" => hutong_docker::main(&line, sys::become_user),
        "resolver" => hutong_runtime::resolver::main(&line),
        _ => return Err(CliError::usage("there is no such role")),
    };
    result
        .map(|()| ExitCode::SUCCESS)
        .map_err(|reason| CliError::failed(format!("{role}: {reason}")))
}
