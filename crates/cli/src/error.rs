//! Errors of the command line: kind, cause, hint, and a documented exit code.

use std::process::ExitCode;

use hutong_api::client::ClientError;

use crate::output::printable;

#[derive(Debug)]
pub struct CliError {
    kind: &'static str,
    cause: String,
    hint: Option<String>,
    code: u8,
}

impl CliError {
    /// It failed, for a reason that is not the caller's file or the way to the server.
    pub fn failed(cause: impl ToString) -> Self {
        CliError {
            kind: "failed",
            cause: cause.to_string(),
            hint: None,
            code: 1,
        }
    }

    pub fn usage(cause: impl ToString) -> Self {
        CliError {
            kind: "usage",
            code: 2,
            ..Self::failed(cause)
        }
    }

    /// A file of the caller's is wrong.
    pub fn bad_file(cause: impl ToString) -> Self {
        CliError {
            kind: "wrong file",
            code: 4,
            ..Self::failed(cause)
        }
    }

    pub fn unreachable(cause: impl ToString) -> Self {
        CliError {
            kind: "no server",
            code: 3,
            ..Self::failed(cause)
        }
    }

    pub fn hint(mut self, hint: impl ToString) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    #[allow(clippy::print_stderr)]
    pub fn print(&self) {
        let (red, off) = if crate::output::colours(&std::io::stderr()) {
            ("\x1b[31m", "\x1b[0m")
        } else {
            ("", "")
        };
        // Some of it is another machine's words.
        eprintln!("{red}{}:{off} {}", self.kind, printable(&self.cause));
        if let Some(hint) = &self.hint {
            eprintln!("  hint: {}", printable(hint));
        }
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }

    pub fn cause(&self) -> &str {
        &self.cause
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(problem) => {
                let mut refused = match problem.status {
                    422 if problem.detail.starts_with("hutong.toml:") => {
                        CliError::bad_file(&problem.detail)
                    }
                    _ => CliError {
                        kind: "refused",
                        ..CliError::failed(&problem.detail)
                    },
                };
                refused.hint = problem.hint;
                refused
            }
            ClientError::Dial(error) => CliError {
                hint: error.hint,
                ..CliError::unreachable(error.cause)
            },
            ClientError::Unreachable { address, source } => {
                let cause = format!("no server answers at {address}: {source}");
                let denied = source.kind() == std::io::ErrorKind::PermissionDenied;
                CliError::unreachable(cause).hint(if denied {
                    "use sudo, or be the user that runs `hutong serve`"
                } else {
                    "start one with `hutong serve`, try `hutong demo`, or name it with --api or HUTONG_API"
                })
            }
            other => CliError::failed(match std::error::Error::source(&other) {
                Some(source) => format!("{other}: {source}"),
                None => other.to_string(),
            }),
        }
    }
}
