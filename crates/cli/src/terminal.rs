//! The user's terminal in raw mode, for `exec`, or silent, for passwords; given back whatever happens.

use std::io::{IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Raw until it is dropped.
pub struct Raw(Termios);

impl Raw {
    /// `None` where standard input is no terminal.
    pub fn new() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() || !std::io::stdout().is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Shows nothing of what is typed until it is dropped.
pub struct Silent(Termios);

impl Silent {
    /// `None` where standard input is no terminal.
    pub fn new() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut silent = before.clone();
        // Ctrl-C and Ctrl-Z come as bytes: they would leave the terminal as it is now.
        silent
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        tcsetattr(&stdin, OptionalActions::Flush, &silent).ok()?;
        Some(Silent(before))
    }
}

impl Silent {
    /// A line, without its end.
    ///
    /// # Errors
    /// `Interrupted` at Ctrl-C, and what reading fails with.
    pub fn line(&self) -> std::io::Result<String> {
        const CTRL_C: u8 = 3;
        const CTRL_D: u8 = 4;
        const BACKSPACES: [u8; 2] = [8, 127];
        const CTRL_U: u8 = 21;
        let mut line = Vec::new();
        for byte in std::io::stdin().lock().bytes() {
            match byte? {
                b'\r' | b'\n' | CTRL_D => break,
                CTRL_C => return Err(std::io::ErrorKind::Interrupted.into()),
                CTRL_U => line.clear(),
                byte if BACKSPACES.contains(&byte) => {
                    // A whole character of UTF-8.
                    while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
                }
                byte => line.push(byte),
            }
        }
        String::from_utf8(line).map_err(|_| std::io::ErrorKind::InvalidData.into())
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// A line that is not shown while it is typed, or the first one of standard input where that is no terminal. Never from
/// the command line, which others can see.
///
/// # Errors
/// `Interrupted` at Ctrl-C, and what reading fails with.
pub fn secret(prompt: &str) -> std::io::Result<String> {
    let Some(silent) = Silent::new() else {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        return Ok(line);
    };
    let mut stderr = std::io::stderr();
    write!(stderr, "{prompt}: ")?;
    stderr.flush()?;
    let line = silent.line();
    writeln!(stderr)?;
    line
}

/// Asks a question on the terminal; anything but yes is no.
///
/// # Errors
/// What reading fails with.
pub fn agrees(question: &str) -> std::io::Result<bool> {
    let mut stderr = std::io::stderr();
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Whether a person can be asked.
pub fn is_attended() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Rows and columns.
pub fn size() -> (u16, u16) {
    tcgetwinsize(std::io::stdout()).map_or((24, 80), |size| (size.ws_row, size.ws_col))
}
