//! Backups of a store: all trees at one moment, in a folder of plain files, and the way back.
//!
//! ```text
//! MANIFEST.json   what this is, and length and SHA-256 of the other files; written last
//! rows            every key with its value, sealed as it lies in the store
//! key             the data keys, wrapped as they lie in the store
//! secret          the file of generated secrets; only when asked for
//! ```
//! `rows` is a line of text, then frames: kind (1), length of the key (2), length of the value (4), key, value; numbers
//! big-endian. Kind 1 puts, 2 deletes, and a later frame of a key overrides an earlier one; kind 0 ends the file. No
//! database, so that reading a backup never changes it and a bit that flips is found.
//!
//! **Consistent while the store works.** The committer notes which keys it changes from now on; the trees are read
//! meanwhile, each value as it was before or after; then the committer tells the acknowledged values of the keys that
//! it noted, between two groups, and these are appended. What results is the state at that moment. Commits wait for
//! that last step only.
//!
//! **Failure behaviour.** All is written to `<folder>.partial`, synced, and renamed at the end: a folder without that
//! ending is whole. What a kill leaves is removed by the next backup to the same place. An existing folder is never
//! written to. Nothing is written where the volume of the store would fall below its watermark.
//!
//! **A backup is old.** What it holds as unsent may have been sent since. Whatever is restored therefore carries
//! [`ROLLED_BACK`], as after damage: the queue then sends nothing unsettled before a person has decided.

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read as _, Write},
    ops::ControlFlow,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use ::sled::IVec;
use aws_lc_rs::digest::{Context, Digest, SHA256};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Io, Keys, OpenError, ROLLED_BACK, SCHEMA, Step, StoreError,
    api::MAX_VALUE,
    epoch::{Entry, Epoch, Failure, MARKER},
    fs,
    keys::SECRET_FILE,
    seal::{self, Sealer},
};

/// The file that makes a folder a backup.
pub const MANIFEST: &str = "MANIFEST.json";

/// Version of the layout.
const FORMAT: u32 = 1;
const ROWS: &str = "rows";
const FIRST_LINE: &[u8] = b"seawall rows 1\n";
const PARTIAL: &str = ".partial";

const END: u8 = 0;
const PUT: u8 = 1;
const DELETE: u8 = 2;

/// Where a backup goes and what is in it.
#[derive(Clone, Debug)]
pub struct BackupOrder {
    /// The folder to make. An absolute path at which nothing is.
    pub to: PathBuf,
    /// The file of generated secrets, when it is to be copied too.
    pub secret: Option<PathBuf>,
    /// Wall time.
    pub now: Timestamp,
}

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the layout.
    pub format: u32,
    /// Schema of the store.
    pub schema: u32,
    /// The Seawall that wrote it.
    pub seawall: String,
    /// When.
    pub made_at: Timestamp,
    /// The number of the last acknowledged group in it.
    pub number: u64,
    /// Frames in `rows`.
    pub rows: u64,
    /// Values that could not be unsealed when it was made.
    pub unreadable: u64,
    /// Tells whether a secret for HMACs is the one that was in use; says nothing about it.
    pub key_check: String,
    /// The other files.
    pub files: BTreeMap<String, FileDigest>,
}

/// A file's length and digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

/// A backup whose files are those that were written.
#[derive(Debug)]
pub struct Backup {
    dir: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
}

/// Why a backup was not made, cannot be read, or was not restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The path will not do.
    #[error("{}: {why}", path.display())]
    Place {
        /// The path.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// The file system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The volume is too full.
    #[error("too little space in {}: {free} bytes free, {needed} needed", path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// There is one under way.
    #[error("a backup is being made already: wait for it")]
    Busy,
    /// This kind of store has no backups.
    #[error("this store cannot be backed up")]
    Unsupported,
    /// The store cannot be read.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The store's folder cannot be used.
    #[error("{0}")]
    Open(#[from] OpenError),
    /// The database did not do as asked.
    #[error("{}: {reason}", path.display())]
    Database {
        /// Where.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A newer version wrote it.
    #[error(
        "{} was written with {what} {found}, and this version knows up to {supported}: use the newer version",
        path.display()
    )]
    Newer {
        /// The backup.
        path: PathBuf,
        /// `format` or `schema`.
        what: &'static str,
        /// What it says.
        found: u64,
        /// What we know.
        supported: u32,
    },
    /// It is not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// The keys at hand are not those of the backup.
    #[error(
        "{} cannot be read with the key at hand ({unreadable} of {rows} values): give the one that was in use, by \
         store.key_file or the file `secret` beside the queue",
        path.display()
    )]
    WrongKey {
        /// The backup.
        path: PathBuf,
        /// Values that cannot be unsealed.
        unreadable: u64,
        /// All values.
        rows: u64,
    },
}

/// What the committer tells at the end.
pub(super) struct Changes {
    pub(super) entries: Vec<Entry>,
    pub(super) number: u64,
}

/// What is backed up.
pub(super) struct Source<'a> {
    pub(super) epoch: &'a Epoch,
    pub(super) sealer: &'a Sealer,
    /// The store's folder.
    pub(super) dir: &'a Path,
    pub(super) key_check: String,
    pub(super) live_bytes: u64,
    /// What must stay free on the store's volume.
    pub(super) min_free: u64,
    pub(super) io: &'a dyn Io,
}

/// What was loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Loaded {
    pub(super) rows: u64,
    pub(super) unreadable: u64,
}

struct Writer {
    out: BufWriter<File>,
    digest: Context,
    bytes: u64,
    rows: u64,
}

/// Whether a folder is a backup.
pub fn is_backup(dir: &Path) -> bool {
    dir.join(MANIFEST).is_file()
}

/// What [`Manifest::key_check`] is for these keys.
pub fn key_check(keys: &Keys) -> String {
    hex(&keys.hmac("backup", b"which secret")[..8])
}

// === Writing ===

/// Writes a backup of `source`; `changes` is asked once all trees were read.
pub(super) fn write(
    order: &BackupOrder,
    source: &Source<'_>,
    changes: impl FnOnce() -> Result<Changes, BackupError>,
) -> Result<Manifest, BackupError> {
    let partial = prepare(&order.to, source)?;
    let written = write_into(&partial, order, source, changes);
    if written.is_err() {
        let _ = std::fs::remove_dir_all(&partial);
    }
    let manifest = written?;
    std::fs::rename(&partial, &order.to).map_err(fs::named("rename the finished backup to", &order.to))?;
    fs::sync_dir(fs::parent(&order.to))?;
    Ok(manifest)
}

/// Checks the place and makes the folder that is filled.
fn prepare(to: &Path, source: &Source<'_>) -> Result<PathBuf, BackupError> {
    let refused = |why| Err(BackupError::Place { path: to.to_owned(), why });
    if !to.is_absolute() || to.file_name().is_none() {
        return refused("name the folder to make by an absolute path");
    }
    if to.symlink_metadata().is_ok() {
        return refused("something is there already; name a folder that is not there yet");
    }
    let above = fs::parent(to);
    DirBuilder::new().recursive(true).mode(0o700).create(above).map_err(fs::named("create", above))?;
    let real = std::fs::canonicalize(above).map_err(fs::named("look at", above))?;
    let own = std::fs::canonicalize(source.dir).map_err(fs::named("look at", source.dir))?;
    if real.starts_with(&own) {
        return refused("it lies inside the store's own folder; name another place");
    }
    let free = source.io.free_bytes(&real)?;
    let is_same_volume = volume(&real)? == volume(&own)?;
    let needed = source.live_bytes + if is_same_volume { source.min_free } else { 0 };
    if free < needed {
        return Err(BackupError::NoSpace { path: real, free, needed });
    }
    let partial = beside(to);
    if partial.symlink_metadata().is_ok() {
        // Of a backup that did not end; but only what can be one is removed.
        let is_ours = std::fs::read_dir(&partial).map_err(fs::named("list", &partial))?.all(|file| {
            file.is_ok_and(|file| {
                let name = file.file_name();
                let name = name.to_string_lossy();
                [ROWS, seal::FILE, SECRET_FILE, MANIFEST]
                    .contains(&name.strip_suffix(".tmp").unwrap_or(&name))
            })
        });
        if !is_ours {
            return Err(BackupError::Place {
                path: partial,
                why: "it is in the way, and holds what no unfinished backup holds; move it away",
            });
        }
        std::fs::remove_dir_all(&partial).map_err(fs::named("remove", &partial))?;
    }
    DirBuilder::new().mode(0o700).create(&partial).map_err(fs::named("create", &partial))?;
    Ok(partial)
}

fn write_into(
    dir: &Path,
    order: &BackupOrder,
    source: &Source<'_>,
    changes: impl FnOnce() -> Result<Changes, BackupError>,
) -> Result<Manifest, BackupError> {
    let path = dir.join(ROWS);
    let mut rows = Writer::create(&path)?;
    let mut unreadable = 0;
    let mut result = Ok(());
    source
        .epoch
        .scan(&[], None, &mut |key, value| {
            if key == MARKER {
                return ControlFlow::Continue(());
            }
            unreadable += u64::from(source.sealer.unseal(key[0], &key[1..], value).is_err());
            result = source.io.at(Step::BackupRow, &path).and_then(|()| rows.frame(PUT, key, value));
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .map_err(|failure| database(&source.epoch.path, &failure))?;
    result.map_err(fs::named("write", &path))?;
    let changes = changes()?;
    for entry in &changes.entries {
        let (kind, value) = match &entry.value {
            Some(value) => (PUT, value.as_ref()),
            None => (DELETE, &[][..]),
        };
        rows.frame(kind, &entry.key, value).map_err(fs::named("write", &path))?;
    }
    let count = rows.rows;
    let mut files = BTreeMap::new();
    files.insert(ROWS.to_owned(), rows.finish().map_err(fs::named("write", &path))?);
    let mut copy = |name: &str, from: &Path| -> Result<(), BackupError> {
        let bytes = std::fs::read(from).map_err(fs::named("read", from))?;
        fs::durable_write_private(&dir.join(name), &bytes)?;
        let mut digest = Context::new(&SHA256);
        digest.update(&bytes);
        files.insert(name.to_owned(), told(bytes.len() as u64, &digest.finish()));
        Ok(())
    };
    copy(seal::FILE, &source.dir.join(seal::FILE))?;
    if let Some(secret) = &order.secret {
        copy(SECRET_FILE, secret)?;
    }
    source.io.at(Step::BackupWritten, dir)?;
    let manifest = Manifest {
        format: FORMAT,
        schema: SCHEMA,
        seawall: env!("CARGO_PKG_VERSION").to_owned(),
        made_at: order.now,
        number: changes.number,
        rows: count,
        unreadable,
        key_check: source.key_check.clone(),
        files,
    };
    let mut text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::from)?;
    text.push(b'\n');
    fs::durable_write_private(&dir.join(MANIFEST), &text)?;
    Ok(manifest)
}

fn beside(to: &Path) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(PARTIAL);
    to.with_file_name(name)
}

fn volume(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path).map_err(fs::named("look at", path))?.dev())
}

// === impl Writer ===

impl Writer {
    fn create(path: &Path) -> io::Result<Writer> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(fs::named("create", path))?;
        let mut writer = Writer {
            out: BufWriter::with_capacity(256 << 10, file),
            digest: Context::new(&SHA256),
            bytes: 0,
            rows: 0,
        };
        writer.put(FIRST_LINE)?;
        Ok(writer)
    }

    fn frame(&mut self, kind: u8, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.rows += 1;
        let mut head = [kind; 7];
        head[1..3].copy_from_slice(&(key.len() as u16).to_be_bytes());
        head[3..].copy_from_slice(&(value.len() as u32).to_be_bytes());
        self.put(&head)?;
        self.put(key)?;
        self.put(value)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn finish(mut self) -> io::Result<FileDigest> {
        self.put(&[END; 7])?;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(told(self.bytes, &self.digest.finish()))
    }
}

// === impl Backup ===

impl Backup {
    /// Opens a backup and holds each of its files to its digest; reads all of them. Changes nothing. Blocks.
    pub fn open(dir: &Path) -> Result<Backup, BackupError> {
        let path = dir.join(MANIFEST);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BackupError::Place {
                    path: dir.to_owned(),
                    why: "it is no backup, or one that was not finished: there is no MANIFEST.json in it",
                });
            }
            Err(error) => return Err(fs::named("read", &path)(error).into()),
        };
        let damaged = |path: &Path, what: String| BackupError::Damaged { path: path.to_owned(), what };
        // The versions first: the rest may have changed.
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| damaged(&path, error.to_string()))?;
        for (what, supported) in [("format", FORMAT), ("schema", SCHEMA)] {
            let found = value[what].as_u64().ok_or_else(|| damaged(&path, format!("it has no {what}")))?;
            if found > u64::from(supported) {
                return Err(BackupError::Newer { path: dir.to_owned(), what, found, supported });
            }
        }
        let manifest: Manifest =
            serde_json::from_value(value).map_err(|error| damaged(&path, error.to_string()))?;
        for name in [ROWS, seal::FILE] {
            if !manifest.files.contains_key(name) {
                return Err(damaged(&path, format!("it does not name the file `{name}`")));
            }
        }
        for (name, expected) in &manifest.files {
            if Path::new(name).file_name().is_none_or(|last| last != name.as_str()) {
                return Err(damaged(&path, format!("{name:?} is not the name of a file")));
            }
            let path = dir.join(name);
            let found = digest_of(&path).map_err(|error| damaged(&path, error.to_string()))?;
            if found.bytes != expected.bytes {
                let what = format!("it has {} bytes, and {} were written", found.bytes, expected.bytes);
                return Err(damaged(&path, what));
            }
            if found.sha256 != expected.sha256 {
                return Err(damaged(&path, "its bytes are not those that were written".to_owned()));
            }
        }
        Ok(Backup { dir: dir.to_owned(), manifest })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The copied file of generated secrets, if there is one.
    pub fn secret(&self) -> Option<PathBuf> {
        self.manifest.files.contains_key(SECRET_FILE).then(|| self.dir.join(SECRET_FILE))
    }

    /// Its data keys.
    pub(super) fn key_file(&self) -> PathBuf {
        self.dir.join(seal::FILE)
    }

    /// Puts all rows into a fresh epoch, synced.
    pub(super) fn load(&self, epoch: &Epoch, sealer: &Sealer, io: &dyn Io) -> Result<Loaded, BackupError> {
        const AT_ONCE: usize = 1 << 20;
        let path = self.dir.join(ROWS);
        let damaged = |what: &str| BackupError::Damaged { path: path.clone(), what: what.to_owned() };
        let mut file =
            BufReader::with_capacity(256 << 10, File::open(&path).map_err(fs::named("open", &path))?);
        let mut read = |bytes: &mut [u8]| match file.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(damaged("it ends too early")),
            other => other.map_err(fs::named("read", &path)).map_err(BackupError::from),
        };
        let mut line = [0; FIRST_LINE.len()];
        read(&mut line)?;
        if line != FIRST_LINE {
            return Err(damaged("it does not begin as a file of rows does"));
        }
        let mut loaded = Loaded::default();
        let mut batch = ::sled::Batch::default();
        let mut bytes = 0;
        loop {
            let mut head = [0; 7];
            read(&mut head)?;
            let key_length = usize::from(u16::from_be_bytes([head[1], head[2]]));
            let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            if head[0] == END {
                break;
            }
            if length > MAX_VALUE || key_length == 0 {
                return Err(damaged("a row is longer than a row can be, or has no key"));
            }
            let (mut key, mut value) = (vec![0; key_length], vec![0; length]);
            read(&mut key)?;
            read(&mut value)?;
            loaded.rows += 1;
            bytes += key.len() + value.len();
            match head[0] {
                PUT => {
                    loaded.unreadable += u64::from(sealer.unseal(key[0], &key[1..], &value).is_err());
                    batch.insert(key, value);
                }
                DELETE => batch.remove(key),
                _ => return Err(damaged("a row is of a kind that is not known")),
            }
            if bytes >= AT_ONCE {
                bytes = 0;
                epoch.fill(std::mem::take(&mut batch)).map_err(|failure| database(&epoch.path, &failure))?;
            }
        }
        epoch.fill(batch).and_then(|()| epoch.sync(io)).map_err(|failure| database(&epoch.path, &failure))?;
        if loaded.rows != self.manifest.rows {
            return Err(damaged("it has another number of rows than its manifest says"));
        }
        Ok(loaded)
    }
}

/// The row that says that what lies beside it is older than what happened.
pub(super) fn mark(sealer: &Sealer) -> Option<Entry> {
    let tree = super::Tree::Meta.byte();
    let value: IVec = sealer.seal(tree, ROLLED_BACK, &[1])?.into();
    Some(Entry { key: super::epoch::prefixed(tree, ROLLED_BACK).into(), value: Some(value) })
}

pub(super) fn database(path: &Path, failure: &Failure) -> BackupError {
    BackupError::Database { path: path.to_owned(), reason: failure.to_string() }
}

fn digest_of(path: &Path) -> io::Result<FileDigest> {
    let mut file = File::open(path)?;
    let mut digest = Context::new(&SHA256);
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(told(bytes, &digest.finish()));
        }
        digest.update(&buffer[..count]);
        bytes += count as u64;
    }
}

fn told(bytes: u64, digest: &Digest) -> FileDigest {
    FileDigest { bytes, sha256: hex(digest.as_ref()) }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
