//! What operators set, kept in `overrides.json`, and beside it which breakers were open by themselves.
//!
//! A file of its own, so that the switch works with a broken store. It is written anew for each change: to a file
//! beside it, synced, renamed over it, and the folder synced; so a crash leaves the old file or the new one, and what
//! was acknowledged is there after it. A file that cannot be read means `auto` for all, and an alarm; it is kept
//! under another name, for a person to look at. Scopes that the route table does not have are kept as they are and
//! act on nothing.
//!
//! An operator's word is on the disk before it is acknowledged. What opened by itself is written behind: a process
//! that ends in an outage begins its next run by trying and not by trusting, and when the last word is lost it finds
//! out by itself, as the first did.

use super::word::Mode;
use crate::store::fs::durable_write_file;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

/// An operator's word on one breaker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// What it does; never `auto`.
    pub mode: Mode,
    /// Why.
    pub reason: String,
    /// Who set it.
    pub actor: String,
    /// Since when this mode is set; renewing leaves it.
    pub since: Timestamp,
    /// When it ends by itself. `None`: never.
    pub until: Option<Timestamp>,
}

/// Why an override was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverrideError {
    /// There is no such breaker, and none is made.
    #[error("scope: there is no breaker {0:?}; use `global`, `<group>:read`, `<group>:write` or `all`")]
    UnknownScope(String),
    /// Setting needs one.
    #[error("reason: say why the breaker is set, in 1 to {REASON_MOST} characters")]
    Reason,
    /// Nothing was changed.
    #[error("the override could not be made durable, so nothing was changed: {0}")]
    NotDurable(String),
}

/// All overrides by scope.
pub(super) type Book = BTreeMap<String, Override>;

/// What the file keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) overrides: Book,
    /// Scopes whose automatic state was an outage.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) open: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    #[serde(flatten)]
    kept: Kept,
}

/// The longest reason, in characters.
pub(super) const REASON_MOST: usize = 500;
const VERSION: u32 = 1;

// === impl Override ===

impl Override {
    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// Reads the file; no file means no overrides.
pub(super) fn load(path: &Path) -> Result<Kept, String> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(error) => return Err(error.to_string()),
    };
    let file: Result<File, _> = serde_json::from_slice(&bytes);
    let problem = match file {
        Ok(file) if file.version == VERSION => return Ok(file.kept),
        Ok(file) => format!("version {} is not known", file.version),
        Err(error) => error.to_string(),
    };
    let aside = path.with_extension("json.unreadable");
    match fs::rename(path, &aside) {
        Ok(()) => Err(format!("{problem}; the file is kept as {}", aside.display())),
        Err(error) => Err(format!("{problem}; it could not be put aside: {error}")),
    }
}

/// Makes it durable.
pub(super) fn save(path: &Path, kept: Kept) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(&File { version: VERSION, kept })?;
    durable_write_file(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book() -> Kept {
        let forced = Override {
            mode: Mode::ForcedOpen,
            reason: "Flexport maintenance".to_owned(),
            actor: "ada".to_owned(),
            since: Timestamp::UNIX_EPOCH,
            until: None,
        };
        Kept {
            overrides: Book::from([("shipments:read".to_owned(), forced)]),
            open: BTreeSet::from(["ports:read".to_owned()]),
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overrides.json");
        assert_eq!(load(&path).unwrap(), Kept::default());
        save(&path, book()).unwrap();
        assert_eq!(load(&path).unwrap(), book());
        save(&path, Kept::default()).unwrap();
        assert_eq!(load(&path).unwrap(), Kept::default());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn an_unreadable_file_is_an_error_and_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overrides.json");
        fs::write(&path, b"{\"version\":1,").unwrap();
        assert!(load(&path).unwrap_err().contains("overrides.json.unreadable"));
        assert!(!path.exists());
        fs::write(&path, b"{\"version\":2,\"overrides\":{}}").unwrap();
        assert!(load(&path).unwrap_err().contains("version 2"));
    }
}
