//! The ladder of opening: a damaged store must not keep the proxy from starting.
//!
//! 1. The lock: another process may just be leaving, so wait for it.
//! 2. Damage: move sled's snapshots aside and read the log itself. That has recovered everything so far.
//! 3. Damage still: set the epoch aside as `corrupt-<time>`, start with a fresh one, and raise an [`Alarm`].
//!
//! An error that tells of the machine (no rights, no space, no file handles) is not damage: it stops the start with its
//! reason, and nothing is moved.

use std::{
    fmt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{
    Io, OpenError,
    epoch::{Current, Epoch, Failure, Folder, MARKER_BYTES, move_snapshots},
    fs, lock,
    seal::Sealer,
};

/// Something that an operator must hear about the store, found when it was opened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Alarm {
    /// The database could not be read. It is kept, and a fresh one counts: **acknowledged writes are in the old one**.
    SetAside {
        /// Where it is kept.
        to: PathBuf,
        /// Why.
        reason: String,
    },
    /// The database opened after its snapshots were moved aside; nothing is lost.
    SnapshotsMoved {
        /// The epoch.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// `CURRENT` was gone or broken.
    CurrentLost {
        /// The file.
        path: PathBuf,
        /// The epoch used instead, if there was one.
        used: Option<u64>,
    },
    /// Some data keys cannot be unwrapped: what they sealed cannot be read until the right secret is given.
    KeyLost {
        /// The key file.
        path: PathBuf,
        /// How many keys can be used.
        usable: usize,
    },
    /// The database opened and lacks acknowledged groups: its log was damaged, and sled cut it there. **What was settled
    /// in them is unsettled again.**
    RolledBack {
        /// The epoch.
        path: PathBuf,
        /// The number of the last acknowledged group.
        expected: u64,
        /// The number of the last one in the database.
        found: u64,
    },
    /// The version file made no sense and was written anew.
    VersionUnreadable {
        /// The file.
        path: PathBuf,
    },
    /// sled has written blob files, which are never synced.
    Blobs {
        /// The epoch.
        path: PathBuf,
    },
}

/// The log as it was before sled looked at it; stays only in an epoch that is set aside.
const AS_FOUND: &str = "db.as-found";

/// How to open.
pub(super) struct Ladder<'a> {
    pub(super) folder: &'a Folder,
    pub(super) sealer: &'a Sealer,
    pub(super) io: &'a dyn Io,
    pub(super) cache: u64,
    pub(super) lock_wait: Duration,
    pub(super) now: SystemTime,
}

// === impl Ladder ===

impl Ladder<'_> {
    /// Opens the epoch that counts. Gives it and its live bytes.
    pub(super) fn climb(&self, current: Current, alarms: &mut Vec<Alarm>) -> Result<(Epoch, u64), OpenError> {
        let number = match current {
            Current::Is(number) => number,
            Current::New => return self.fresh(),
            Current::Lost(used) => {
                alarms.push(Alarm::CurrentLost { path: self.folder.current_path(), used });
                match used {
                    Some(number) => number,
                    None => return self.fresh(),
                }
            }
        };
        let path = self.folder.epoch(number);
        keep_as_found(&path);
        let reason = match self.attempt(number) {
            Ok(Ok(opened)) => {
                forget_as_found(&path);
                return self.name(number, opened);
            }
            Ok(Err(reason)) => reason,
            Err(error) => {
                if matches!(error, OpenError::Locked { .. }) {
                    forget_as_found(&path);
                }
                return Err(error);
            }
        };
        if move_snapshots(&path).map_err(OpenError::io("move the snapshots of", &path))? > 0 {
            match self.attempt(number) {
                Ok(Ok(opened)) => {
                    forget_as_found(&path);
                    alarms.push(Alarm::SnapshotsMoved { path, reason });
                    return self.name(number, opened);
                }
                // Locked now means by what the first attempt left behind in this process.
                Ok(Err(_)) | Err(OpenError::Locked { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        // Aside first: should we die now, the next start finds no epoch and makes one, and this one is kept.
        let next = self.folder.next_number().map_err(OpenError::io("list", &self.folder.dir))?;
        let to = self.aside(number);
        std::fs::rename(&path, &to).map_err(OpenError::io("set aside", &path))?;
        fs::sync_dir(&self.folder.dir).map_err(OpenError::io("sync", &self.folder.dir))?;
        alarms.push(Alarm::SetAside { to, reason });
        self.fresh_as(next)
    }

    /// The outer error stops the start; the inner one is damage.
    fn attempt(&self, number: u64) -> Result<Result<(Epoch, u64), String>, OpenError> {
        let path = self.folder.epoch(number);
        let started = Instant::now();
        loop {
            let failure = match Epoch::open(self.folder, number, self.cache, self.io) {
                Ok(opened) => return Ok(Ok(opened)),
                Err(failure) => failure,
            };
            if failure.is_locked() {
                if started.elapsed() >= self.lock_wait {
                    return Err(OpenError::Locked {
                        path: path.join("db"),
                        pid: None,
                        waited: self.lock_wait,
                    });
                }
                thread::park_timeout(lock::POLL);
                continue;
            }
            return match failure.into_system() {
                Ok(source) => Err(OpenError::Io { doing: "open the database in", path, source }),
                Err(damage) => Ok(Err(damage.to_string())),
            };
        }
    }

    fn fresh(&self) -> Result<(Epoch, u64), OpenError> {
        self.fresh_as(self.folder.next_number().map_err(OpenError::io("list", &self.folder.dir))?)
    }

    fn fresh_as(&self, number: u64) -> Result<(Epoch, u64), OpenError> {
        let path = self.folder.epoch(number);
        let epoch =
            Epoch::create(self.folder, number, self.cache, self.io, self.sealer).map_err(|failure| {
                match failure.into_system() {
                    Ok(source) => OpenError::Io { doing: "make a database in", path: path.clone(), source },
                    Err(other) => {
                        OpenError::Unusable { path: path.clone(), reason: Failure::to_string(&other) }
                    }
                }
            })?;
        self.name(number, (epoch, MARKER_BYTES))
    }

    /// Makes sure that `CURRENT` names what we use before anything is written to it.
    fn name(&self, number: u64, opened: (Epoch, u64)) -> Result<(Epoch, u64), OpenError> {
        let path = self.folder.current_path();
        if !matches!(self.folder.current(), Ok(Current::Is(named)) if named == number) {
            self.folder.switch(number).map_err(OpenError::io("write", &path))?;
        }
        Ok(opened)
    }

    fn aside(&self, number: u64) -> PathBuf {
        let time =
            jiff::Timestamp::try_from(self.now).unwrap_or_default().strftime("%Y%m%dT%H%M%SZ").to_string();
        let name = |more: &str| self.folder.dir.join(format!("corrupt-{time}-{number}{more}"));
        let mut path = name("");
        for more in 1.. {
            if !Path::exists(&path) {
                break;
            }
            path = name(&format!("-{more}"));
        }
        path
    }
}

/// sled mends a damaged log by clearing what it cannot read, so what is set aside would be empty. Before it looks,
/// the file is copied (a clone where the file system can). A copy that is there already is of an opening that never
/// ended, and older than whatever that did. Without room for it the opening goes on.
fn keep_as_found(epoch: &Path) {
    let (from, to) = (epoch.join("db"), epoch.join(AS_FOUND));
    if to.exists() || !from.is_file() {
        return;
    }
    let tmp = epoch.join("db.as-found.tmp");
    if std::fs::copy(&from, &tmp).and_then(|_| std::fs::rename(&tmp, &to)).is_err() {
        let _ = std::fs::remove_file(&tmp);
    }
}

/// The database is whole. A copy that cannot be removed only takes up space.
fn forget_as_found(epoch: &Path) {
    let _ = std::fs::remove_file(epoch.join(AS_FOUND));
}

// === impl Alarm ===

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Alarm::SetAside { to, reason } => write!(
                f,
                "the write queue's database could not be read ({reason}); it is kept in {} and a fresh one is used: \
                 writes that were acknowledged and not yet sent are in the old one",
                to.display()
            ),
            Alarm::SnapshotsMoved { path, reason } => write!(
                f,
                "the database in {} opened only without its snapshots ({reason}); nothing is lost",
                path.display()
            ),
            Alarm::CurrentLost { path, used: Some(number) } => {
                write!(f, "{} is gone or broken; epoch-{number} is used", path.display())
            }
            Alarm::CurrentLost { path, used: None } => {
                write!(f, "{} is broken and there is no epoch; a fresh one is used", path.display())
            }
            Alarm::KeyLost { path, usable } => write!(
                f,
                "some data keys in {} cannot be unwrapped with the secret given ({usable} can): queued writes sealed \
                 with them cannot be read until the right secret is given",
                path.display()
            ),
            Alarm::RolledBack { path, expected, found } => write!(
                f,
                "the database in {} is damaged and lacks the last {} acknowledged commits: writes are lost, and some \
                 that were sent may look unsent",
                path.display(),
                expected - found
            ),
            Alarm::VersionUnreadable { path } => {
                write!(f, "{} made no sense and was written anew", path.display())
            }
            Alarm::Blobs { path } => {
                write!(f, "the database in {} has blob files, which are never synced", path.display())
            }
        }
    }
}
