//! The seam to the system: named steps and the question for free space.
//!
//! Production uses [`RealIo`], whose steps do nothing. Tests record the order of the steps, let one of them fail as the
//! system would, or copy the folder at one of them, which is what a `kill -9` at that moment leaves behind.

use std::{io, path::Path};

/// A point in the life of the store. Each is told before the thing that it names happens, unless it says *after*.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum Step {
    /// sled opens an epoch.
    Open,
    /// A batch goes to sled.
    Write,
    /// sled's own flush.
    Flush,
    /// `sync_data` on our handle.
    Sync,
    /// The waiting callers are told.
    Answer,
    /// After the live values were copied to a fresh epoch, before its sync.
    CopyWritten,
    /// After the sync of the copy.
    CopySynced,
    /// After `CURRENT.tmp` was written and synced.
    CurrentWritten,
    /// After `CURRENT` was renamed into its place, before the folder's sync.
    CurrentRenamed,
    /// After the old epoch was deleted.
    OldDeleted,
    /// A row goes to a backup.
    BackupRow,
    /// After the rows and keys of a backup were written, before its manifest is.
    BackupWritten,
}

/// What the store asks of the system beyond plain files.
pub trait Io: Send + Sync + 'static {
    /// Told at each step; an error counts as the failure of that step.
    fn at(&self, step: Step, path: &Path) -> io::Result<()> {
        let _ = (step, path);
        Ok(())
    }

    /// Bytes free to us on the volume of `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// The system as it is.
#[derive(Copy, Clone, Debug, Default)]
pub struct RealIo;

impl Io for RealIo {}
