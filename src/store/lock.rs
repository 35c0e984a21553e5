//! The lock of the data folder: two processes on one folder would both replay the same writes.
//!
//! `flock` ends with the process, however it dies, so no stale lock has to be judged. The file stays; it holds the id
//! of the last owner, for the message only.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use tokio::time::Instant;

use super::{OpenError, fs};

/// Holds the data folder for this process until dropped.
#[derive(Debug)]
pub struct DataLock {
    path: PathBuf,
    _file: File,
}

pub(super) const POLL: Duration = Duration::from_millis(50);

// === impl DataLock ===

impl DataLock {
    /// Takes `<dir>/LOCK` and makes the folder where there is none. Waits up to `wait` for another process to leave,
    /// as in a rolling restart. Blocks.
    pub fn acquire(dir: &Path, wait: Duration) -> Result<DataLock, OpenError> {
        fs::create_dir(dir).map_err(OpenError::io("create the data folder", dir))?;
        let path = dir.join("LOCK");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(OpenError::io("open", &path))?;
        let started = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK | Errno::INTR) if started.elapsed() < wait => {
                    thread::park_timeout(POLL);
                }
                Err(Errno::WOULDBLOCK) => {
                    let mut text = String::new();
                    let _ = file.read_to_string(&mut text);
                    return Err(OpenError::Locked { path, pid: text.trim().parse().ok(), waited: wait });
                }
                Err(errno) => return Err(OpenError::Io { doing: "lock", path, source: errno.into() }),
            }
        }
        let id = format!("{}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(id.as_bytes()))
            .map_err(OpenError::io("write", &path))?;
        Ok(DataLock { path, _file: file })
    }

    /// Takes the lock that is there, at once, and leaves no trace: for looking at a folder that nobody uses. `None`
    /// where there is no lock file, so that nobody ever used it. Blocks.
    pub fn hold_existing(dir: &Path) -> Result<Option<DataLock>, OpenError> {
        let path = dir.join("LOCK");
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(OpenError::Io { doing: "open", path, source }),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(DataLock { path, _file: file })),
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                Err(OpenError::Locked { path, pid: text.trim().parse().ok(), waited: Duration::ZERO })
            }
            Err(errno) => Err(OpenError::Io { doing: "lock", path, source: errno.into() }),
        }
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_told_who_has_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataLock::acquire(dir.path(), Duration::ZERO).unwrap();
        let error = DataLock::acquire(dir.path(), Duration::from_millis(60)).unwrap_err();
        let OpenError::Locked { path, pid, .. } = &error else { panic!("{error}") };
        assert_eq!((path.as_path(), *pid), (held.path(), Some(std::process::id())));
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(held);
        DataLock::acquire(dir.path(), Duration::ZERO).unwrap();
    }
}
