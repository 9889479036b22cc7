//! `hutong password`: a line for `[traffic.auth]`, made here; no server is asked.

use std::io::Write;

use crate::error::CliError;
use crate::output::Output;
use crate::terminal;

/// A twentieth of a second on a small server.
const COST: u32 = 10;

#[derive(clap::Args)]
#[command(after_help = "Example:
  hutong password ann
  # in hutong.toml:
  # [traffic.auth]
  # users = [\"ann:$2b$10$…\"]")]
pub struct Args {
    /// The user's name
    name: String,
}

/// Reads the password from the terminal, unseen, or from standard input; never from the command line, which
/// others can see.
pub fn run(args: &Args, output: Output) -> Result<(), CliError> {
    if args.name.is_empty() || args.name.contains(|c: char| c == ':' || c.is_whitespace()) {
        return Err(CliError::usage("a user's name has no colons and spaces"));
    }
    let password = read().map_err(CliError::failed)?;
    let password = password.trim_end_matches(['\n', '\r']);
    match password.len() {
        0 => return Err(CliError::usage("the password is empty")),
        // bcrypt would cut it off.
        73.. => return Err(CliError::usage("a password has at most 72 bytes")),
        _ => {}
    }
    let hash = bcrypt::hash(password, COST).map_err(CliError::failed)?;
    let line = format!("{}:{hash}", args.name);
    if output.json {
        output.value(&serde_json::json!({ "user": line }));
    } else {
        output.text(&line);
    }
    Ok(())
}

/// A password: typed unseen, or a line of standard input.
pub fn read() -> std::io::Result<String> {
    let Some(silent) = terminal::Silent::new() else {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        return Ok(line);
    };
    let mut stderr = std::io::stderr();
    write!(stderr, "Password: ")?;
    stderr.flush()?;
    let line = silent.line();
    writeln!(stderr)?;
    line
}
