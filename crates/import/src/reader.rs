//! Characters of a file, one after the other, with their places.

use std::sync::Arc;

use crate::place::At;

pub(crate) struct Reader {
    path: Arc<str>,
    chars: Vec<char>,
    next: usize,
    line: usize,
    column: usize,
}

impl Reader {
    pub fn new(path: &Arc<str>, text: &str) -> Self {
        Reader {
            path: Arc::clone(path),
            chars: text.chars().collect(),
            next: 0,
            line: 1,
            column: 1,
        }
    }

    /// Where the next character is.
    pub fn at(&self) -> At {
        At {
            path: Arc::clone(&self.path),
            line: self.line,
            column: self.column,
        }
    }

    pub fn peek(&self) -> Option<char> {
        self.ahead(0)
    }

    pub fn ahead(&self, count: usize) -> Option<char> {
        self.chars.get(self.next + count).copied()
    }

    pub fn take(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.next += 1;
        if next == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(next)
    }

    pub fn starts_with(&self, text: &str) -> bool {
        text.chars()
            .enumerate()
            .all(|(index, wanted)| self.ahead(index) == Some(wanted))
    }

    pub fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.take();
        }
    }

    /// What fits, from here on.
    pub fn take_while(&mut self, fits: impl Fn(char) -> bool) -> String {
        let mut text = String::new();
        while let Some(next) = self.peek().filter(|next| fits(*next)) {
            text.push(next);
            self.take();
        }
        text
    }
}
