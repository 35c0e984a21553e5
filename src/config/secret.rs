//! A secret that cannot be printed.

use std::fmt;
use std::sync::Arc;

/// A token or key. It shows itself in no log, error or dump; who needs it must ask by name.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

// === impl Secret ===

impl Secret {
    /// Takes a secret's text; surrounding white space, such as the newline at a file's end, is not part of it.
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text.trim()))
    }

    /// The text itself, for the place that sends or compares it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
