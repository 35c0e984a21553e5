//! A store looked at without changing it, and the way of a backup into its place.
//!
//! sled writes when it opens: it mends its log, and makes snapshots. So what is looked at is a copy in a folder of its
//! own ([`Scratch`]), which is removed afterwards; the values in it stay sealed. The same folder, made beside the
//! store's place and filled from a backup, is renamed into that place when it was found good.

use std::{
    fs::DirBuilder,
    io,
    ops::ControlFlow,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{
    Backup, BackupError, BackupOrder, Found, Keys, Manifest, OpenError, RealIo, SCHEMA, StoreError, Tree,
    backup::{self, Changes, Source, database},
    epoch::{Current, Epoch, Folder, prefixed},
    fs, schema,
    seal::{self, Sealer},
    sequence, sled,
};

/// What was found in a store's folder.
#[derive(Debug)]
pub struct Inspection {
    /// The epoch that counts.
    pub epoch: Option<u64>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What is worth knowing.
    pub notes: Vec<String>,
    /// All values, when the database could be opened.
    pub rows: Option<Rows>,
}

/// Something that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A file, or a place in a tree.
    pub place: String,
    /// What is wrong there.
    pub what: String,
}

/// The values of a store that nobody writes to.
#[derive(Debug)]
pub struct Rows {
    /// Before the folder goes: sled has files in it.
    epoch: Epoch,
    sealer: Sealer,
    folder: Folder,
    scratch: Scratch,
    live_bytes: u64,
}

/// A folder of our own, removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    is_kept: bool,
}

const CACHE: u64 = 32 << 20;

// === impl Inspection ===

impl Inspection {
    /// Looks at the store in `dir`, which no process may have open. `scratch` must have room for a copy of the epoch
    /// that counts. Blocks.
    pub fn of_store(dir: &Path, keys: &Keys, scratch: Scratch) -> Result<Inspection, BackupError> {
        let mut problems = Vec::new();
        let mut notes = Vec::new();
        let mut wrong = |place: &Path, what: String| {
            problems.push(Problem { place: place.display().to_string(), what });
        };
        let version = dir.join(schema::FILE);
        match std::fs::read_to_string(&version).map(|text| text.trim().parse::<u32>()) {
            Ok(Ok(SCHEMA)) => {}
            Ok(Ok(found)) if found > SCHEMA => {
                return Err(OpenError::NewerSchema { path: version, found, supported: SCHEMA }.into());
            }
            Ok(_) => wrong(&version, "it is not the number of a schema that was ever used".to_owned()),
            Err(error) => wrong(&version, format!("it cannot be read: {error}")),
        }
        let folder = Folder { dir: dir.to_owned() };
        let current = folder.current_path();
        let number = match folder.current()? {
            Current::Is(number) => Some(number),
            Current::New => {
                notes.push("nothing was ever stored here".to_owned());
                None
            }
            Current::Lost(used) => {
                wrong(&current, "it is gone, or names no epoch that is there".to_owned());
                used
            }
        };
        for file in std::fs::read_dir(dir).map_err(fs::named("list", dir))? {
            let name = file.map_err(fs::named("list", dir))?.file_name().to_string_lossy().into_owned();
            let is_current = number.is_some_and(|number| name == format!("epoch-{number}"));
            if name.starts_with("corrupt-") {
                notes.push(format!(
                    "{name} was set aside as damaged at an earlier start; a person should look at it"
                ));
            } else if (name.starts_with("epoch-") || name.starts_with("trash-")) && !is_current {
                notes.push(format!("{name} does not count; the next start deletes it"));
            }
        }
        let sealer = Sealer::read_only(dir, keys)?;
        if number.is_some() && (sealer.lost() > 0 || sealer.usable() == 0) {
            let what = format!(
                "{} of {} data keys cannot be unwrapped with the key at hand",
                sealer.lost(),
                sealer.lost() + sealer.usable()
            );
            wrong(&dir.join(seal::FILE), what);
        }
        let mut rows = None;
        if let Some(number) = number {
            let own = Folder { dir: scratch.path.clone() };
            let path = folder.epoch(number);
            copy_epoch(&path, &own.epoch(number))?;
            match Epoch::open(&own, number, CACHE, &RealIo) {
                Ok((epoch, live_bytes)) => {
                    if epoch.has_blobs() {
                        wrong(&path.join("blobs"), "there are blob files, which are never synced".to_owned());
                    }
                    let noted = sequence::noted(dir);
                    match (noted, sled::number(&epoch, &sealer)) {
                        (Some(expected), Some(found)) if found < expected => wrong(
                            &path,
                            format!(
                                "it lacks the last {} acknowledged commits: its log is damaged",
                                expected - found
                            ),
                        ),
                        (_, None) => {
                            wrong(&path, "the number of its last commit cannot be unsealed".to_owned());
                        }
                        _ => {}
                    }
                    rows = Some(Rows { epoch, sealer, folder: own, scratch, live_bytes });
                }
                Err(failure) => wrong(&path, format!("the database cannot be opened: {failure}")),
            }
        }
        Ok(Inspection { epoch: number, problems, notes, rows })
    }
}

/// What an epoch consists of; sled's file alone may be long.
fn copy_epoch(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for file in std::fs::read_dir(from).map_err(fs::named("list", from))? {
        let file = file.map_err(fs::named("list", from))?;
        let path = file.path();
        if file.file_type()?.is_dir() {
            copy_epoch(&path, &to.join(file.file_name()))?;
        } else if !file.file_name().to_string_lossy().starts_with("db.as-found") {
            std::fs::copy(&path, to.join(file.file_name())).map_err(fs::named("copy", &path))?;
        }
    }
    Ok(())
}

// === impl Rows ===

impl Rows {
    /// Those of a backup, in a database in `scratch`. Fails where the keys are not those of the backup. Blocks.
    pub fn of_backup(backup: &Backup, keys: &Keys, scratch: Scratch) -> Result<Rows, BackupError> {
        let wrong_key = |unreadable| BackupError::WrongKey {
            path: backup.path().to_owned(),
            unreadable,
            rows: backup.manifest.rows,
        };
        let key_file = backup.key_file();
        let bytes = std::fs::read(&key_file).map_err(fs::named("read", &key_file))?;
        fs::durable_write_private(&scratch.path.join(seal::FILE), &bytes)?;
        let sealer = Sealer::read_only(&scratch.path, keys)?;
        if sealer.usable() == 0 {
            return Err(wrong_key(backup.manifest.rows));
        }
        // Wraps them with the key that is in use here.
        let sealer = Sealer::open(&scratch.path, keys, false, &mut Vec::new())?;
        let folder = Folder { dir: scratch.path.clone() };
        let epoch = Epoch::create(&folder, 1, CACHE, &RealIo, &sealer)
            .map_err(|failure| database(&scratch.path, &failure))?;
        let loaded = backup.load(&epoch, &sealer, &RealIo)?;
        if loaded.unreadable > backup.manifest.unreadable {
            return Err(wrong_key(loaded.unreadable));
        }
        let live_bytes = epoch.disk_bytes();
        Ok(Rows { epoch, sealer, folder, scratch, live_bytes })
    }

    /// Visits the values of a tree in order of their keys.
    pub fn scan(
        &self,
        tree: Tree,
        visit: &mut dyn FnMut(&[u8], Found) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let path = &self.epoch.path;
        let scanned = self.epoch.scan(&prefixed(tree.byte(), &[]), None, &mut |key, stored| {
            let key = &key[1..];
            let found = self.sealer.unseal(tree.byte(), key, stored);
            visit(
                key,
                found.map_err(|_| StoreError::Undecryptable {
                    path: path.as_path().into(),
                    tree,
                    key: key.to_vec(),
                }),
            )
        });
        scanned.map_err(|failure| StoreError::Read {
            path: path.as_path().into(),
            reason: failure.to_string().into(),
        })
    }

    /// Writes a backup of them. `dir` is the store that they were copied from. Blocks.
    pub fn backup(&self, dir: &Path, keys: &Keys, order: &BackupOrder) -> Result<Manifest, BackupError> {
        let source = Source {
            epoch: &self.epoch,
            sealer: &self.sealer,
            dir,
            key_check: backup::key_check(keys),
            live_bytes: self.live_bytes,
            min_free: super::watermark(dir),
            io: &RealIo,
        };
        let number = sled::number(&self.epoch, &self.sealer).unwrap_or(0);
        backup::write(order, &source, || Ok(Changes { entries: Vec::new(), number }))
    }

    /// Puts what was loaded from a backup into the place of a store, marked as older than what happened. What is there
    /// is renamed when `set_aside`, else it must be empty; gives where it went. The lock of the data folder must be
    /// held. Blocks.
    pub fn install(
        self,
        place: &Path,
        set_aside: bool,
        now: Timestamp,
    ) -> Result<Option<PathBuf>, BackupError> {
        check_place(place, set_aside)?;
        let Rows { epoch, sealer, folder, mut scratch, .. } = self;
        let mark = backup::mark(&sealer)
            .ok_or_else(|| io::Error::other("the system gives no random numbers to seal with"))?;
        epoch.write(&[mark], &RealIo).map_err(|failure| database(&epoch.path, &failure))?;
        let number = epoch.number;
        drop(epoch);
        schema::check(&folder.dir, &mut Vec::new())?;
        folder.switch(number)?;
        give_to_owner_of(fs::parent(place), &scratch.path)?;
        fs::sync_dir(&scratch.path)?;
        let mut aside = None;
        if place.symlink_metadata().is_ok() {
            if is_empty(place)? {
                std::fs::remove_dir(place).map_err(fs::named("remove", place))?;
            } else {
                let to = aside_of(place, now);
                std::fs::rename(place, &to).map_err(fs::named("set aside", place))?;
                aside = Some(to);
            }
        }
        std::fs::rename(&scratch.path, place).map_err(fs::named("rename the restored store to", place))?;
        scratch.is_kept = true;
        fs::sync_dir(fs::parent(place))?;
        Ok(aside)
    }
}

/// Refuses a place where something is, unless that is to be set aside.
pub fn check_place(place: &Path, set_aside: bool) -> Result<(), BackupError> {
    if !set_aside && place.symlink_metadata().is_ok() && !is_empty(place)? {
        return Err(BackupError::Place {
            path: place.to_owned(),
            why: "a store is there; --set-aside keeps it under another name",
        });
    }
    Ok(())
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    Ok(std::fs::read_dir(dir).map_err(fs::named("list", dir))?.next().is_none())
}

fn aside_of(place: &Path, now: Timestamp) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let time = now.strftime("%Y%m%dT%H%M%SZ");
    let mut path = place.with_file_name(format!("{name}-set-aside-{time}"));
    for more in 1.. {
        if path.symlink_metadata().is_err() {
            break;
        }
        path = place.with_file_name(format!("{name}-set-aside-{time}-{more}"));
    }
    path
}

/// Gives `path` and all in it to whom `dir` belongs, where root acts for a service with a user of its own.
pub fn give_to_owner_of(dir: &Path, path: &Path) -> io::Result<()> {
    let wanted = std::fs::metadata(dir).map_err(fs::named("look at", dir))?;
    give(path, wanted.uid(), wanted.gid())
}

fn give(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let found = path.symlink_metadata().map_err(fs::named("look at", path))?;
    if found.is_dir() {
        for file in std::fs::read_dir(path).map_err(fs::named("list", path))? {
            give(&file.map_err(fs::named("list", path))?.path(), uid, gid)?;
        }
    }
    if rustix::process::geteuid().is_root() && !found.is_symlink() && (found.uid(), found.gid()) != (uid, gid)
    {
        chown(path, Some(uid), Some(gid)).map_err(fs::named("give to the service", path))?;
    }
    Ok(())
}

// === impl Scratch ===

impl Scratch {
    /// In a folder such as the system's for temporary files.
    pub fn inside(dir: &Path) -> io::Result<Scratch> {
        let name = format!("seawall-{}-{:08x}", std::process::id(), fastrand::u32(..));
        Scratch::make(dir.join(name))
    }

    /// Under this name beside a store. What an earlier one left there is removed.
    pub fn beside(place: &Path) -> io::Result<Scratch> {
        let mut name = place.file_name().unwrap_or_default().to_owned();
        name.push(".restoring");
        let path = place.with_file_name(name);
        if path.symlink_metadata().is_ok() {
            std::fs::remove_dir_all(&path).map_err(fs::named("remove", &path))?;
        }
        Scratch::make(path)
    }

    fn make(path: PathBuf) -> io::Result<Scratch> {
        DirBuilder::new().mode(0o700).create(&path).map_err(fs::named("create", &path))?;
        Ok(Scratch { path, is_kept: false })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
