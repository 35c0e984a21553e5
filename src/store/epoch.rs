//! Epochs: one sled database each, and the folder that holds them.
//!
//! sled never gives space back and cannot be trusted after a failed write, so a database is a thing to be left: the
//! file `CURRENT` names the one that counts. `CURRENT` is written beside, synced, renamed, and its folder synced. An old
//! epoch is renamed to `trash-<n>` before it is deleted, so a folder called `epoch-<n>` always holds either a whole
//! database or a copy that was never switched to.
//!
//! After a failed write an epoch is *finished*: sled has the refused changes in memory, so reads go through the values
//! as they were before (`undo`). What is read and copied is therefore exactly what was acknowledged.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io,
    ops::{Bound, ControlFlow},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use ::sled::{Db, IVec};

use super::{
    Io, Step, fs,
    seal::{OVERHEAD, Sealer},
};

/// The first byte of the store's own keys.
pub(super) const INTERNAL: u8 = 0;
/// Written when an epoch is made. A database without it was cut short or made anew behind our back.
pub(super) const MARKER: &[u8] = &[INTERNAL, b'e'];
/// What the marker adds to the live bytes.
pub(super) const MARKER_BYTES: u64 = (MARKER.len() + 8 + OVERHEAD) as u64;
/// The number of the group, in each of them.
pub(super) const SEQUENCE: &[u8] = &[INTERNAL, b'n'];

const SEGMENT: usize = 2 * 1024 * 1024;
const COPY_BYTES: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Epoch {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    /// Taken on drop only.
    db: Option<Db>,
    /// Our own handle of sled's file: `sync_data` on it is what makes a commit durable.
    file: File,
    is_finished: AtomicBool,
    undo: RwLock<BTreeMap<IVec, Option<IVec>>>,
}

/// A change of the one sled tree: prefixed key, sealed value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: IVec,
    pub(super) value: Option<IVec>,
}

/// Why sled, or the system below it, did not do as asked.
#[derive(Debug)]
pub(super) enum Failure {
    Sled(::sled::Error),
    System(io::Error),
    Panic(String),
    Missing(&'static str),
}

/// The folder of all epochs.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub(super) dir: PathBuf,
}

/// What `CURRENT` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Current {
    /// This epoch, and it is there.
    Is(u64),
    /// Nothing was ever made here.
    New,
    /// It is gone, broken, or names an epoch that is not there; the epoch to use instead, if any.
    Lost(Option<u64>),
}

/// Runs sled, which may panic where it should not.
fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Failure::Panic(panic_text(&*panic))))
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

// === impl Epoch ===

impl Epoch {
    /// Opens an epoch that must be there and whole, and counts its bytes.
    pub(super) fn open(
        folder: &Folder,
        number: u64,
        cache: u64,
        io: &dyn Io,
    ) -> Result<(Epoch, u64), Failure> {
        let path = folder.epoch(number);
        if !path.join("db").is_file() {
            return Err(Failure::Missing("its file `db` is gone"));
        }
        let epoch = Epoch::start(path, number, cache, io)?;
        if epoch.get(MARKER)?.is_none() {
            return Err(Failure::Missing("it is empty, though it was not when it was made"));
        }
        // Reading everything here means that damage shows now, where the ladder can act on it.
        let mut live = 0;
        epoch.scan(&[], None, &mut |key, value| {
            live += (key.len() + value.len()) as u64;
            ControlFlow::Continue(())
        })?;
        Ok((epoch, live))
    }

    /// Makes a fresh epoch and the names in it durable. It does not count before `CURRENT` names it.
    pub(super) fn create(
        folder: &Folder,
        number: u64,
        cache: u64,
        io: &dyn Io,
        sealer: &Sealer,
    ) -> Result<Epoch, Failure> {
        let path = folder.epoch(number);
        fs::create_dir(&path)?;
        let epoch = Epoch::start(path, number, cache, io)?;
        let value = sealer
            .seal(INTERNAL, &MARKER[1..], &number.to_be_bytes())
            .ok_or(Failure::Missing("its marker cannot be sealed"))?;
        guarded(|| {
            epoch.db().insert(MARKER, value)?;
            epoch.db().flush()?;
            Ok(())
        })?;
        epoch.file.sync_data()?;
        File::open(epoch.path.join("conf"))?.sync_all()?;
        fs::sync_dir(&epoch.path.join("blobs"))?;
        fs::sync_dir(&epoch.path)?;
        fs::sync_dir(&folder.dir)?;
        Ok(epoch)
    }

    fn start(path: PathBuf, number: u64, cache: u64, io: &dyn Io) -> Result<Epoch, Failure> {
        let db = guarded(|| {
            io.at(Step::Open, &path)?;
            Ok(::sled::Config::new()
                .path(&path)
                .segment_size(SEGMENT)
                .cache_capacity(cache)
                .flush_every_ms(Some(500))
                .use_compression(false)
                .open()?)
        })?;
        let db_path = path.join("db");
        let file = File::options()
            .read(true)
            .write(true)
            .open(&db_path)
            .map_err(fs::named("open sled's file", &db_path))?;
        let undo = RwLock::new(BTreeMap::new());
        Ok(Epoch { number, path, db: Some(db), file, is_finished: AtomicBool::new(false), undo })
    }

    fn db(&self) -> &Db {
        self.db.as_ref().expect("taken on drop only")
    }

    /// Applies the changes and makes them durable, or finishes the epoch. Gives the change in live bytes, to be
    /// added with wrapping.
    pub(super) fn write(&self, entries: &[Entry], io: &dyn Io) -> Result<u64, Failure> {
        // Once finished, nothing more is written: what is on disk is not known any more.
        if self.is_finished() {
            return Err(Failure::Missing("it was finished by an earlier error"));
        }
        let mut before = BTreeMap::new();
        let written = guarded(|| {
            for entry in entries {
                if !before.contains_key(&entry.key) {
                    before.insert(entry.key.clone(), self.db().get(&entry.key)?);
                }
            }
            let mut batch = ::sled::Batch::default();
            for entry in entries {
                match &entry.value {
                    Some(value) => batch.insert(entry.key.clone(), value.clone()),
                    None => batch.remove(entry.key.clone()),
                }
            }
            io.at(Step::Write, &self.path)?;
            self.db().apply_batch(batch)?;
            self.sync(io)
        });
        if let Err(failure) = written {
            self.finish(before);
            return Err(failure);
        }
        let size =
            |key: &IVec, value: Option<&IVec>| value.map_or(0, |value| (key.len() + value.len()) as u64);
        let old: u64 = before.iter().map(|(key, value)| size(key, value.as_ref())).sum();
        let after: BTreeMap<&IVec, Option<&IVec>> =
            entries.iter().map(|entry| (&entry.key, entry.value.as_ref())).collect();
        let new: u64 = after.iter().map(|(key, value)| size(key, *value)).sum();
        Ok(new.wrapping_sub(old))
    }

    /// Applies changes without making them durable, while nobody relies on this epoch.
    pub(super) fn fill(&self, batch: ::sled::Batch) -> Result<(), Failure> {
        guarded(|| Ok(self.db().apply_batch(batch)?))
    }

    /// sled's flush, which only hands the pages to the kernel, and then the sync that counts.
    pub(super) fn sync(&self, io: &dyn Io) -> Result<(), Failure> {
        io.at(Step::Flush, &self.path)?;
        self.db().flush()?;
        io.at(Step::Sync, &self.path)?;
        self.file.sync_data().map_err(fs::named("sync", &self.path.join("db")))?;
        Ok(())
    }

    fn finish(&self, before: BTreeMap<IVec, Option<IVec>>) {
        let mut undo = self.undo.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in before {
            undo.entry(key).or_insert(value);
        }
        self.is_finished.store(true, Ordering::Release);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.is_finished.load(Ordering::Acquire)
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<IVec>, Failure> {
        if self.is_finished()
            && let Some(value) = self.undo.read().unwrap_or_else(PoisonError::into_inner).get(key)
        {
            return Ok(value.clone());
        }
        guarded(|| Ok(self.db().get(key)?))
    }

    /// Visits what was acknowledged, in order.
    pub(super) fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: &mut dyn FnMut(&IVec, &IVec) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(IVec::from(after)),
            _ => Bound::Included(IVec::from(prefix)),
        };
        let range = (start, Bound::Unbounded);
        let undo: Vec<_> = if self.is_finished() {
            let undo = self.undo.read().unwrap_or_else(PoisonError::into_inner);
            undo.range(range.clone())
                .take_while(|(key, _)| key.starts_with(prefix))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()
        } else {
            Vec::new()
        };
        let mut undo = undo.into_iter().peekable();
        let mut rows = self.db().range(range);
        let mut pull = || -> Result<Option<(IVec, IVec)>, Failure> {
            let row = guarded(|| Ok(rows.next().transpose()?))?;
            Ok(row.filter(|(key, _)| key.starts_with(prefix)))
        };
        let mut row = pull()?;
        loop {
            let is_undo = match (&row, undo.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some((key, _)), Some((undone, _))) => undone <= key,
            };
            let (key, value) = if is_undo {
                let Some((key, value)) = undo.next() else { return Ok(()) };
                if row.as_ref().is_some_and(|(shadowed, _)| *shadowed == key) {
                    row = pull()?;
                }
                match value {
                    Some(value) => (key, value),
                    None => continue,
                }
            } else {
                let Some(found) = row.take() else { return Ok(()) };
                row = pull()?;
                found
            };
            if visit(&key, &value).is_break() {
                return Ok(());
            }
        }
    }

    /// Copies what was acknowledged into a fresh epoch and syncs it. Values stay sealed as they are.
    pub(super) fn copy_into(&self, fresh: &Epoch, io: &dyn Io) -> Result<(), Failure> {
        let mut batch = ::sled::Batch::default();
        let mut bytes = 0;
        let mut result = Ok(());
        self.scan(&[], None, &mut |key, value| {
            if key == MARKER {
                return ControlFlow::Continue(());
            }
            batch.insert(key.clone(), value.clone());
            bytes += key.len() + value.len();
            if bytes < COPY_BYTES {
                return ControlFlow::Continue(());
            }
            bytes = 0;
            let full = std::mem::take(&mut batch);
            result = guarded(|| Ok(fresh.db().apply_batch(full)?));
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result?;
        guarded(|| {
            fresh.db().apply_batch(batch)?;
            io.at(Step::CopyWritten, &fresh.path)?;
            fresh.db().flush()?;
            fresh.file.sync_data()?;
            fs::sync_dir(&fresh.path)?;
            io.at(Step::CopySynced, &fresh.path)?;
            Ok(())
        })
    }

    /// Bytes of the database file.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Whether sled wrote blob files.
    pub(super) fn has_blobs(&self) -> bool {
        std::fs::read_dir(self.path.join("blobs")).is_ok_and(|mut files| files.next().is_some())
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        // sled syncs on drop and panics where that fails, which is just when a failed epoch is dropped.
        let db = self.db.take();
        if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
            tracing::warn!(path = %self.path.display(), "sled could not close an epoch in good order");
        }
    }
}

// === impl Failure ===

impl Failure {
    /// Whether somebody else holds sled's file. sled tells it in words only.
    pub(super) fn is_locked(&self) -> bool {
        match self {
            Failure::Sled(::sled::Error::Io(error)) => error.to_string().contains("could not acquire lock"),
            _ => false,
        }
    }

    /// Whether it says something about the machine and nothing about the data.
    pub(super) fn into_system(self) -> Result<io::Error, Failure> {
        use io::ErrorKind::{OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        const EMFILE: i32 = 24;
        const ENFILE: i32 = 23;
        match self {
            Failure::Sled(::sled::Error::Io(error)) | Failure::System(error)
                if matches!(
                    error.kind(),
                    OutOfMemory | PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull
                ) || matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) =>
            {
                Ok(error)
            }
            other => Err(other),
        }
    }
}

impl From<::sled::Error> for Failure {
    fn from(error: ::sled::Error) -> Failure {
        Failure::Sled(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::System(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Sled(error) => write!(f, "{error}"),
            Failure::System(error) => write!(f, "{error}"),
            Failure::Panic(text) => write!(f, "the database panicked: {text}"),
            Failure::Missing(text) => f.write_str(text),
        }
    }
}

// === impl Folder ===

impl Folder {
    pub(super) fn epoch(&self, number: u64) -> PathBuf {
        self.dir.join(format!("epoch-{number}"))
    }

    pub(super) fn current_path(&self) -> PathBuf {
        self.dir.join("CURRENT")
    }

    /// Reads `CURRENT`.
    pub(super) fn current(&self) -> io::Result<Current> {
        let path = self.current_path();
        let there = self.numbers("epoch-")?;
        let named = match std::fs::read(&path) {
            Ok(text) => Some(parse_epoch(&String::from_utf8_lossy(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(fs::named("read", &path)(error)),
        };
        Ok(match named {
            Some(Some(number)) if there.contains(&number) => Current::Is(number),
            None if there.is_empty() => Current::New,
            // The lowest is whole: a higher one may be a copy that was not finished.
            _ => Current::Lost(there.iter().min().copied()),
        })
    }

    /// A number above all that were ever used here.
    pub(super) fn next_number(&self) -> io::Result<u64> {
        let all = [self.numbers("epoch-")?, self.numbers("trash-")?];
        let named = std::fs::read_to_string(self.current_path()).ok().and_then(|text| parse_epoch(&text));
        Ok(all.into_iter().flatten().chain(named).max().unwrap_or(0) + 1)
    }

    /// Writes `CURRENT` beside its place, first half of a switch.
    pub(super) fn prepare(&self, number: u64) -> io::Result<PathBuf> {
        fs::write_beside(&self.current_path(), format!("epoch-{number}\n").as_bytes(), 0o644)
    }

    /// Writes `CURRENT`.
    pub(super) fn switch(&self, number: u64) -> io::Result<()> {
        let tmp = self.prepare(number)?;
        std::fs::rename(&tmp, self.current_path()).map_err(fs::named("rename", &tmp))?;
        fs::sync_dir(&self.dir)
    }

    /// Deletes every epoch but one, and what was left of others.
    pub(super) fn delete_others(&self, keep: u64) -> io::Result<()> {
        for number in self.numbers("epoch-")?.into_iter().filter(|number| *number != keep) {
            let path = self.epoch(number);
            std::fs::rename(&path, self.dir.join(format!("trash-{number}")))
                .map_err(fs::named("rename", &path))?;
        }
        for number in self.numbers("trash-")? {
            let path = self.dir.join(format!("trash-{number}"));
            std::fs::remove_dir_all(&path).map_err(fs::named("delete", &path))?;
        }
        Ok(())
    }

    fn numbers(&self, prefix: &str) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for file in std::fs::read_dir(&self.dir).map_err(fs::named("list", &self.dir))? {
            let name = file.map_err(fs::named("list", &self.dir))?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(prefix)).map(str::parse::<u64>);
            numbers.extend(number.and_then(Result::ok));
        }
        Ok(numbers)
    }
}

fn parse_epoch(text: &str) -> Option<u64> {
    text.trim().strip_prefix("epoch-")?.parse().ok()
}

/// The bytes of a key in the one sled tree.
pub(super) fn prefixed(tree: u8, key: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(1 + key.len());
    whole.push(tree);
    whole.extend_from_slice(key);
    whole
}

/// Moves sled's snapshots aside; sled can do without them. Gives how many there were.
pub(super) fn move_snapshots(path: &Path) -> io::Result<usize> {
    let mut count = 0;
    for file in std::fs::read_dir(path).map_err(fs::named("list", path))? {
        let file = file.map_err(fs::named("list", path))?;
        let name = file.file_name();
        if name.to_string_lossy().starts_with("snap.") {
            let aside = path.join(format!("aside-{}", name.to_string_lossy()));
            std::fs::rename(file.path(), &aside).map_err(fs::named("rename", &file.path()))?;
            count += 1;
        }
    }
    fs::sync_dir(path)?;
    Ok(count)
}
