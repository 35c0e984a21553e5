//! The number of the last acknowledged group, beside the database: tells when sled came back with less.
//!
//! Where sled meets a damaged page in its log, it ends the log there and says nothing: everything after it is gone, and
//! what was settled is unsettled again. So each group carries a number, and after its sync the same number goes into
//! the file `LAST`. That file is not synced (it costs no second sync), and need not be: it is written after the group
//! is durable, so it can only lag behind, and a database that lags behind *it* has lost acknowledged groups.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::fs;

/// The file's name.
const FILE: &str = "LAST";

pub(super) struct Sequence {
    path: PathBuf,
    file: File,
    has_failed: bool,
}

/// What the file says, if that can be believed; it is not made where it is not there.
pub(super) fn noted(dir: &Path) -> Option<u64> {
    read(&File::open(dir.join(FILE)).ok()?)
}

fn read(file: &File) -> Option<u64> {
    let mut bytes = [0; 16];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let number = u128::from_be_bytes(bytes);
    let (high, low) = ((number >> 64) as u64, number as u64);
    (high == !low).then_some(high)
}

// === impl Sequence ===

impl Sequence {
    /// Opens the file and gives what it says, if that can be believed.
    pub(super) fn open(dir: &Path) -> io::Result<(Sequence, Option<u64>)> {
        let path = dir.join(FILE);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(fs::named("open", &path))?;
        let number = read(&file);
        Ok((Sequence { path, file, has_failed: false }, number))
    }

    /// Notes an acknowledged group. An error only weakens the check.
    pub(super) fn note(&mut self, number: u64) {
        let bytes = (u128::from(number) << 64 | u128::from(!number)).to_be_bytes();
        if let Err(error) = self.file.write_all_at(&bytes, 0)
            && !std::mem::replace(&mut self.has_failed, true)
        {
            tracing::warn!(path = %self.path.display(), %error, "lost writes would not be noticed");
        }
    }
}
