//! A text that nobody may see in a log, an error or a debug print.

use std::fmt;

use serde::Deserialize;

/// There is no `Display` and no `Serialize`: whoever needs the text says [`Secret::expose`].
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("hush")), "***");
        assert_eq!(format!("{:?}", Some(Secret::new("hush"))), "Some(***)");
    }
}
