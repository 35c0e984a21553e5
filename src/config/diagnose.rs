//! Pure. What is wrong with a configuration: every problem with its place, its key, and what to do.
//!
//! A problem never shows a secret: values are shown by `overlay` only where a secret cannot stand, and files and
//! variables that hold secrets are named only when they look like what they should be.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Origin {
    /// A whole file.
    Source(Arc<Path>),
    /// A place in the file; line and column count from 1, the column in characters.
    File {
        /// Which file.
        path: Arc<Path>,
        /// Which line.
        line: u32,
        /// Which character in the line.
        column: u32,
    },
    /// An environment variable.
    Environment(Arc<str>),
    /// `--set` with this key.
    Set(Arc<str>),
    /// Nothing sets it.
    #[default]
    Default,
}

/// The origin of each key that something sets.
pub type Origins = BTreeMap<String, Origin>;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// The key, such as `cache.max_stale` or `caller[0].name`; empty when it is about no key.
    pub key: String,
    /// What is wrong and what to do, in a sentence that names the key.
    pub message: String,
}

/// All that is wrong: never empty, in the order of the places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics {
    problems: Vec<Problem>,
}

// === impl Origin ===

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(path) => write!(f, "{}", path.display()),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Set(key) => write!(f, "--set {key}"),
            Self::Default => f.write_str("defaults"),
        }
    }
}

/// The origin of a key, or of the nearest table around it.
pub(super) fn origin_of(origins: &Origins, key: &str) -> Origin {
    let mut key = key;
    loop {
        if let Some(origin) = origins.get(key) {
            return origin.clone();
        }
        match key.rfind(['.', '[']) {
            Some(end) => key = &key[..end],
            None => return Origin::Default,
        }
    }
}

// === impl Problem ===

impl Problem {
    /// A problem with a key.
    pub(super) fn of(origin: Origin, key: &str, what: impl fmt::Display) -> Self {
        Self { origin, key: key.to_owned(), message: format!("`{key}`: {what}") }
    }

    /// A problem with something that is no known key.
    pub(super) fn at(origin: Origin, key: &str, message: String) -> Self {
        Self { origin, key: key.to_owned(), message }
    }

    /// Whether this is about the same key, about something in it, or about what it is in.
    pub(super) fn touches(&self, key: &str) -> bool {
        fn is_in(inner: &str, outer: &str) -> bool {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        }
        !self.key.is_empty() && (is_in(key, &self.key) || is_in(&self.key, key))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

// === impl Diagnostics ===

impl Diagnostics {
    /// What these problems are together.
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        debug_assert!(!problems.is_empty(), "no problems are no diagnostics");
        problems.sort_by(|one, other| one.origin.cmp(&other.origin));
        Self { problems }
    }

    /// Each problem.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// The candidate that is most like the word, when one is like it at all.
pub(super) fn suggestion<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
