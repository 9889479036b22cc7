//! `hutong internal dial`: connects its standard streams with the API of the server on this machine. It is what
//! `hutong` on another machine has SSH run here; the server's own rules say who may ask what.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use hutong_api::client::Address;

use crate::error::CliError;
use crate::remote::ssh::GREETING;

/// Ends when either side has ended. Exit code 3: there is no server.
pub fn run(address: &Address) -> Result<ExitCode, CliError> {
    let output = io::stdout().as_fd().try_clone_to_owned();
    let mut output = File::from(output.map_err(CliError::failed)?);
    let socket = match connect(address) {
        Ok(socket) => File::from(socket),
        Err(error) => {
            let word = match error.kind() {
                ErrorKind::PermissionDenied => "denied",
                _ => "absent",
            };
            let line = format!("{GREETING} {word} {address}: {error}\n");
            output
                .write_all(line.as_bytes())
                .map_err(CliError::failed)?;
            return Ok(ExitCode::from(3));
        }
    };
    let line = format!("{GREETING} ok\n");
    output
        .write_all(line.as_bytes())
        .map_err(CliError::failed)?;
    let requests = socket.try_clone().map_err(CliError::failed)?;
    let input = io::stdin().as_fd().try_clone_to_owned();
    let input = File::from(input.map_err(CliError::failed)?);
    std::thread::spawn(move || {
        let _ = pass_on(input, requests);
        // Nobody is there any more: not for an answer either.
        std::process::exit(0);
    });
    // A broken pipe is the same from the other side.
    let _ = copy(socket, output);
    Ok(ExitCode::SUCCESS)
}

fn connect(address: &Address) -> io::Result<OwnedFd> {
    match address {
        Address::Unix(path) => UnixStream::connect(path).map(OwnedFd::from),
        Address::Tcp(address) => TcpStream::connect(address).map(OwnedFd::from),
    }
}

/// To the end of what comes. A server that takes no more of it may have answered already, and that answer goes its own
/// way: the rest is read all the same, and dropped.
fn pass_on(mut from: impl Read, to: impl Write) -> io::Result<()> {
    match copy(&mut from, to) {
        Ok(()) => Ok(()),
        // It ends at once if it was the reading that failed.
        Err(_) => copy(from, io::sink()),
    }
}

/// What comes is passed on at once.
fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_nobody_takes_is_read_to_its_end() {
        let text = vec![b'z'; 300_000];
        let mut input = &text[..];
        assert!(pass_on(&mut input, Full).is_ok());
        assert!(input.is_empty());
        let mut taken = Vec::new();
        pass_on(&text[..], &mut taken).expect("passed on");
        assert_eq!(taken, text);
    }
}
