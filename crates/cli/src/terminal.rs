//! The user's terminal in raw mode, for `exec`, or silent, for passwords; given back whatever happens.

use std::io::IsTerminal;

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
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &silent).ok()?;
        Some(Silent(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Rows and columns.
pub fn size() -> (u16, u16) {
    tcgetwinsize(std::io::stdout()).map_or((24, 80), |size| (size.ws_row, size.ws_col))
}
