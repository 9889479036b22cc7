//! `hutong cert list|add|remove|renew|ca`.

use std::path::{Path, PathBuf};

use hutong_api::{Authority, Certificate, NewCertificate};
use serde_json::Value;

use super::{Server, path};
use crate::error::CliError;
use crate::output::{Output, until};

#[derive(clap::Subcommand)]
pub enum Verb {
    /// List certificates, and names that wait for one
    List,
    /// Add a certificate of your own, or replace it; it is served at once
    #[command(after_help = "Example:
  hutong cert add shop --cert fullchain.pem --key privkey.pem")]
    Add {
        /// What to call it: small letters, digits, hyphens
        name: String,
        /// The certificate and the intermediate ones, PEM
        #[arg(long, value_name = "FILE")]
        cert: PathBuf,
        /// The private key, PEM
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Remove a certificate of your own
    Remove {
        /// What it was called
        name: String,
    },
    /// Try again now for a name whose certificate could not be had
    Renew {
        /// The host
        host: String,
    },
    /// Print the root certificate of this server's own authority, which signs local names
    Ca,
}

pub async fn run(verb: Verb, server: &Server) -> Result<(), CliError> {
    let client = server.client()?;
    match verb {
        Verb::List => {
            let list: Vec<Certificate> = client.get("/v1/certificates").await?;
            show(&list, server.output);
        }
        Verb::Add { name, cert, key } => {
            let new = NewCertificate {
                chain: read(&cert)?,
                key: read(&key)?,
            };
            let place = path(&["certificates", &name]);
            let added: Certificate = client.post(&place, &new).await?;
            show(&[added], server.output);
        }
        Verb::Remove { name } => {
            let place = path(&["certificates", &name]);
            client.delete::<Value>(&place).await?;
            server
                .output
                .say(&format!("removed the certificate {name}"));
        }
        Verb::Renew { host } => {
            let place = path(&["certificates", &host, "renew"]);
            client.post::<_, Value>(&place, &Value::Null).await?;
            server
                .output
                .say("trying now; `hutong cert list` shows how it went");
        }
        Verb::Ca => {
            let own: Authority = client.get("/v1/ca").await?;
            server.output.as_is(own.root_pem.trim_end());
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path)
        .map_err(|error| CliError::bad_file(format!("{}: {error}", path.display())))
}

fn show(list: &[Certificate], output: Output) {
    let columns = ["hosts", "source", "issuer", "ends", "renews", "problem"];
    output.table(list, &columns, |one| {
        let again = one.next_try.map(|at| format!(" (next try {})", until(at)));
        let problem = one
            .problem
            .as_ref()
            .map(|problem| format!("{problem}{}", again.unwrap_or_default()));
        vec![
            one.hosts.join(" "),
            one.source.clone(),
            if one.not_after.is_some() {
                one.issuer.clone()
            } else {
                "none yet".into()
            },
            one.not_after.map_or("-".into(), until),
            one.renews_at.map_or("-".into(), until),
            problem.unwrap_or_default(),
        ]
    });
}
