//! `hutong context list|use|remove`: servers by name.

use serde::Serialize;

use crate::error::CliError;
use crate::output::Output;
use crate::remote::contexts::{Contexts, LOCAL};

#[derive(clap::Subcommand)]
pub enum Verb {
    /// List the servers that have a name; tokens are never shown
    List,
    /// Let commands go to this server from now on
    #[command(after_help = "Examples:
  hutong context use shop
  hutong context use local         the server of this machine
  hutong --context shop apps       for one command
  HUTONG_CONTEXT=shop hutong apps  the same")]
    Use {
        /// Its name
        name: String,
    },
    /// Forget a server, with its token
    Remove {
        /// Its name
        name: String,
    },
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    url: &'a str,
    current: bool,
}

/// No server is asked.
pub fn run(verb: &Verb, output: Output) -> Result<(), CliError> {
    match verb {
        Verb::List => list(output),
        Verb::Use { name } => {
            Contexts::update(|all| {
                all.named(name)?;
                all.current = Some(name.clone()).filter(|name| name != LOCAL);
                Ok(())
            })?;
            let answer = serde_json::json!({ "current": name });
            output.result(&answer, &format!("commands go to {name}"));
            Ok(())
        }
        Verb::Remove { name } => {
            let mut was_current = false;
            Contexts::update(|all| {
                if all.named(name)?.is_none() {
                    return Err(CliError::usage("`local` is this machine, and stays"));
                }
                all.contexts.remove(name);
                was_current = all.current.as_deref() == Some(name.as_str());
                if was_current {
                    all.current = None;
                }
                Ok(())
            })?;
            let now = match was_current {
                true => "; commands go to this machine's server now",
                false => "",
            };
            let answer = serde_json::json!({ "removed": name });
            output.result(&answer, &format!("{name} is forgotten{now}"));
            Ok(())
        }
    }
}

fn list(output: Output) -> Result<(), CliError> {
    let all = Contexts::load()?;
    let here = Row {
        name: LOCAL,
        url: "this machine",
        current: all.current.is_none(),
    };
    let far = all.contexts.iter().map(|(name, context)| Row {
        name,
        url: &context.url,
        current: all.current.as_ref() == Some(name),
    });
    let rows: Vec<Row> = std::iter::once(here).chain(far).collect();
    output.table(&rows, &["name", "server", "current"], |row| {
        vec![
            row.name.to_owned(),
            row.url.to_owned(),
            if row.current { "*" } else { "" }.into(),
        ]
    });
    Ok(())
}
