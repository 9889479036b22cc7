//! `hutong login URL`: a server on another machine, tried and remembered by a name.

use std::path::PathBuf;

use hutong_api::Version;
use hutong_api::client::Address;

use super::Server;
use crate::error::CliError;
use crate::remote::address::Remote;
use crate::remote::contexts::{Context, Contexts, check_name};
use crate::terminal;

#[derive(clap::Args)]
#[command(
    after_help = "Over ssh no port is open for it: your own SSH client runs `hutong internal dial` there, which connects
to the API's socket. HUTONG_SSH names another client. Over https, and with --remote-api IP:PORT,
the API's token is asked for, or read from standard input, or from --token-file.

Examples:
  hutong login ssh://me@shop.example.com --sudo
  hutong login https://hutong.example.com < token.txt
  hutong context list"
)]
pub struct Args {
    /// `ssh://[USER@]HOST[:PORT]` or `https://HOST[:PORT]`
    url: String,
    /// What to call it; default: the host
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// https: trust this authority (PEM) and no other
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// ssh: the program on the other machine; default: hutong
    #[arg(long, value_name = "PATH")]
    remote_program: Option<String>,
    /// ssh: where the API is there, unix:PATH or IP:PORT; default: as for --api
    #[arg(long, value_name = "ADDRESS")]
    remote_api: Option<String>,
    /// ssh: use sudo there, which must need no password
    #[arg(long)]
    sudo: bool,
}

pub async fn run(args: &Args, server: &Server) -> Result<(), CliError> {
    let output = server.output;
    let remote: Remote = args.url.parse().map_err(CliError::usage)?;
    let name = args.name.as_deref().unwrap_or(remote.host()).to_owned();
    check_name(&name)?;
    let context = context(args, &remote, server)?;
    // A name does not come to mean another server unnoticed.
    let taken = |all: &Contexts| match all.contexts.get(&name) {
        Some(known) if known.url != context.url => {
            Err(
                CliError::usage(format!("the context {name} is {}", known.url)).hint(format!(
                    "another name: --name; or first: hutong context remove {name}"
                )),
            )
        }
        _ => Ok(()),
    };
    taken(&Contexts::load()?)?;
    let version: Version = context.client(None)?.get("/v1/version").await?;
    Contexts::update(|all| {
        taken(all)?;
        all.contexts.insert(name.clone(), context.clone());
        all.current = Some(name.clone());
        Ok(())
    })?;
    for variable in ["HUTONG_API", "HUTONG_CONTEXT"] {
        let set = std::env::var(variable).unwrap_or_default();
        if !set.is_empty() && set != name {
            output.warn(&format!(
                "{variable} is set to {set}, which goes before the context in use: unset it, or say --context {name}"
            ));
        }
    }
    let answer = serde_json::json!({
        "name": name, "url": context.url, "version": version.version, "current": true,
    });
    let text = format!(
        "{name} is the server at {} (hutong {}); commands go there from now on, `hutong context use local` brings them back",
        context.url, version.version
    );
    output.result(&answer, &text);
    Ok(())
}

fn context(args: &Args, remote: &Remote, server: &Server) -> Result<Context, CliError> {
    let url = remote.to_string();
    if let Remote::Ssh { .. } = remote {
        if args.ca.is_some() {
            return Err(CliError::usage("--ca goes with https://"));
        }
        let api = args.remote_api.as_ref();
        let api = api.map(|api| api.parse::<Address>()).transpose();
        let token = match api.map_err(CliError::usage)? {
            // There it is the token that says who asks.
            Some(Address::Tcp(_)) => Some(token(server)?),
            Some(Address::Unix(_)) | None => None,
        };
        return Ok(Context {
            url,
            token,
            program: args.remote_program.clone(),
            api: args.remote_api.clone(),
            sudo: args.sudo,
            ..Context::default()
        });
    }
    if args.remote_program.is_some() || args.remote_api.is_some() || args.sudo {
        return Err(CliError::usage(
            "--remote-program, --remote-api and --sudo go with ssh://",
        ));
    }
    let ca = args.ca.as_ref().map(|path| {
        std::fs::read_to_string(path)
            .map_err(|error| CliError::bad_file(format!("{}: {error}", path.display())))
    });
    let ca = ca.transpose()?;
    Ok(Context {
        url,
        token: Some(token(server)?),
        ca,
        ..Context::default()
    })
}

/// That of `--token-file`, else one that is asked for.
fn token(server: &Server) -> Result<String, CliError> {
    let token = match server.named_token()? {
        Some(token) => token,
        None => terminal::secret("Token").map_err(CliError::failed)?,
    };
    let token = token.trim();
    if token.is_empty() || token.len() > 1000 || !token.bytes().all(|c| c.is_ascii_graphic()) {
        return Err(CliError::usage("a token is needed, on standard input")
            .hint("it is in the file control/token of the server's data folder"));
    }
    Ok(token.to_owned())
}
