//! What a store is to its callers: trees, batches, the [`Store`] trait and its errors.
//!
//! The trait is object safe and names no async runtime: a commit answers through a boxed future that any executor may
//! poll, since the work is done by the store's own thread.

use std::{
    fmt,
    ops::ControlFlow,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use super::{BackupError, BackupOrder, Health, Manifest, seal};

/// A future that owns its data.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The largest key in bytes.
pub const MAX_KEY: usize = 512;
/// The largest value as stored. `17 × (value + key) < segment size / 4` keeps sled from writing blob files.
pub const MAX_VALUE: usize = 16 * 1024;
/// The largest value that a caller may put: [`MAX_VALUE`] less what sealing adds. Longer data is cut by [`chunks`].
pub const MAX_CHUNK: usize = MAX_VALUE - seal::OVERHEAD;
/// The most bytes of keys and values in one batch: a 16 MiB document and its records, with room.
pub const MAX_BATCH: usize = 24 * 1024 * 1024;

/// Key in [`Tree::Meta`]: the store came back older than it was, and what that means for its records is not settled.
/// The store puts it with its first write; who keeps records deletes it with the last record that it has looked at.
pub const ROLLED_BACK: &[u8] = b"rolled_back";

/// One of the fixed trees.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub enum Tree {
    /// Facts about the queue as a whole.
    Meta,
    /// Records: the truth that every other tree can be rebuilt from.
    Rec,
    /// Bodies in chunks: ticket, chunk number.
    Body,
    /// Order: key hash, sequence.
    Order,
    /// When a record is due.
    Due,
    /// Remembered answers in chunks.
    Resp,
    /// What must be known of a record that cannot be read, in keys without values.
    Idem,
    /// The audit trail.
    Audit,
}

/// A set of changes that happens as a whole or not at all. A later change of a key overrides an earlier one.
#[derive(Clone, Default)]
pub struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) bytes: usize,
    pub(super) is_settling: bool,
}

#[derive(Clone)]
pub(super) struct Change {
    pub(super) tree: Tree,
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
}

/// What a scan found under a key: the value, or why it cannot be read.
pub type Found = Result<Vec<u8>, StoreError>;

/// What a rotation did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rotation {
    /// The epoch that was left.
    pub from: u64,
    /// The epoch that counts now.
    pub to: u64,
    /// Bytes on disk before.
    pub disk_before: u64,
    /// Bytes on disk after.
    pub disk_after: u64,
}

/// A durable store. Reads see every acknowledged batch, and for the moment of a sync also one that is about to be.
pub trait Store: Send + Sync + 'static {
    /// Hands the batch to the committer at once; the future resolves when it is durable, or with the reason why not.
    ///
    /// Dropping the future does not take the batch back (unless the channel was full and it was never polled).
    /// Batches are applied in the order of the calls, again unless the channel was full.
    fn commit(&self, batch: Batch) -> BoxFuture<Result<(), StoreError>>;

    /// Reads one value. Blocks on the disk where it is not cached.
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits, in order of their keys, all values whose keys begin with `prefix` and lie after `after` (a full key).
    ///
    /// A value that cannot be unsealed is handed to `visit` as its error, and the scan goes on. Blocks.
    fn scan(
        &self,
        tree: Tree,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], Found) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;

    /// How the store is.
    fn health(&self) -> Health;

    /// Copies what lives into a fresh epoch now, whatever the thresholds say.
    fn rotate(&self) -> BoxFuture<Result<Rotation, StoreError>>;

    /// Writes a consistent copy of all trees into a folder, while work goes on.
    fn backup(&self, order: BackupOrder) -> BoxFuture<Result<Manifest, BackupError>> {
        drop(order);
        Box::pin(std::future::ready(Err(BackupError::Unsupported)))
    }

    /// Finishes what is queued, syncs, and stops. Later calls answer [`StoreError::Closed`].
    fn close(&self) -> BoxFuture<()>;
}

/// Why the store did not do as asked. Cheap to clone: one failure answers a whole group.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing can be made durable at present; reads go on. Retried by later commits.
    #[error("the store in {} cannot write: {reason}", path.display())]
    Failed {
        /// The store's folder.
        path: Arc<Path>,
        /// What went wrong.
        reason: Arc<str>,
    },
    /// The volume is below its watermark; nothing was written.
    #[error("too little space for the store in {}: {free} bytes free, {needed} must stay free", path.display())]
    NoSpace {
        /// The store's folder.
        path: Arc<Path>,
        /// Bytes free.
        free: u64,
        /// The watermark.
        needed: u64,
    },
    /// A key, value or batch above the cap; nothing was written.
    #[error("a {what} of {bytes} bytes is above the store's cap of {limit} bytes (tree {tree:?})")]
    TooLarge {
        /// The tree, where one is to blame.
        tree: Option<Tree>,
        /// `key`, `value` or `batch`.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The cap.
        limit: usize,
    },
    /// The value is there but its key is lost, or it was tampered with or moved.
    #[error("a value in tree {tree:?} of {} cannot be unsealed (key {})", path.display(), Hex(key))]
    Undecryptable {
        /// The store's folder.
        path: Arc<Path>,
        /// The tree.
        tree: Tree,
        /// The key of the value.
        key: Vec<u8>,
    },
    /// Reading failed.
    #[error("cannot read from the store in {}: {reason}", path.display())]
    Read {
        /// The epoch's folder.
        path: Arc<Path>,
        /// What went wrong.
        reason: Arc<str>,
    },
    /// The store was closed.
    #[error("the store in {} is closed", path.display())]
    Closed {
        /// The store's folder.
        path: Arc<Path>,
    },
    /// The committer ended before it answered: the batch may or may not be there.
    #[error("the store in {} gave no answer: the outcome is unknown", path.display())]
    Unanswered {
        /// The store's folder.
        path: Arc<Path>,
    },
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else has it.
    #[error(
        "{} is locked by {}, still after {} s: stop the other process, or give this one its own data folder",
        path.display(), Owner(*pid), waited.as_secs()
    )]
    Locked {
        /// The locked file.
        path: PathBuf,
        /// The process that wrote its id into it.
        pid: Option<u32>,
        /// How long we waited.
        waited: Duration,
    },
    /// A newer Seawall wrote it. It is left alone.
    #[error(
        "{} was written with schema {found}, and this version knows up to {supported}: start the newer version again \
         (nothing was changed)",
        path.display()
    )]
    NewerSchema {
        /// The version file.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What we know.
        supported: u32,
    },
    /// The file system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer of the system.
        source: std::io::Error,
    },
    /// Not even a fresh database could be made.
    #[error("cannot make a database in {}: {reason}", path.display())]
    Unusable {
        /// Where.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

struct Hex<'a>(&'a [u8]);
struct Owner(Option<u32>);

/// Cuts data into pieces that fit a value. No data, no pieces.
pub fn chunks(bytes: &[u8]) -> impl ExactSizeIterator<Item = &[u8]> {
    bytes.chunks(MAX_CHUNK)
}

// === impl Tree ===

impl Tree {
    /// Every tree.
    pub const ALL: [Tree; 8] =
        [Tree::Meta, Tree::Rec, Tree::Body, Tree::Order, Tree::Due, Tree::Resp, Tree::Idem, Tree::Audit];

    /// The first byte of its keys on disk. Never change one: the sealed values name it.
    pub(super) const fn byte(self) -> u8 {
        match self {
            Tree::Meta => b'm',
            Tree::Rec => b'r',
            Tree::Body => b'b',
            Tree::Order => b'o',
            Tree::Due => b'd',
            Tree::Resp => b's',
            Tree::Idem => b'i',
            Tree::Audit => b'a',
        }
    }
}

// === impl Batch ===

impl Batch {
    /// An empty batch. Committing it still syncs.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Says that it changes or deletes only what is there: it may use space that is kept from what is new.
    pub fn settling(&mut self) -> &mut Batch {
        self.is_settling = true;
        self
    }

    /// Writes a value.
    pub fn put(&mut self, tree: Tree, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> &mut Batch {
        self.push(tree, key.into(), Some(value.into()))
    }

    /// Deletes a value; one that is not there is none the worse.
    pub fn delete(&mut self, tree: Tree, key: impl Into<Vec<u8>>) -> &mut Batch {
        self.push(tree, key.into(), None)
    }

    /// Adds all changes of another batch behind these; it stays as settling as it is.
    pub fn append(&mut self, other: Batch) -> &mut Batch {
        self.bytes += other.bytes;
        self.changes.extend(other.changes);
        self
    }

    /// How many changes it holds.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether it holds no change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, tree: Tree, key: Vec<u8>, value: Option<Vec<u8>>) -> &mut Batch {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.changes.push(Change { tree, key, value });
        self
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
        let too_large = |tree, what, bytes, limit| Err(StoreError::TooLarge { tree, what, bytes, limit });
        if self.bytes > MAX_BATCH {
            return too_large(None, "batch", self.bytes, MAX_BATCH);
        }
        for change in &self.changes {
            if change.key.len() > MAX_KEY {
                return too_large(Some(change.tree), "key", change.key.len(), MAX_KEY);
            }
            match &change.value {
                Some(value) if value.len() > MAX_CHUNK => {
                    return too_large(Some(change.tree), "value", value.len(), MAX_CHUNK);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values are callers' data: counted, never shown.
        f.debug_struct("Batch")
            .field("changes", &self.changes.len())
            .field("bytes", &self.bytes)
            .field("is_settling", &self.is_settling)
            .finish()
    }
}

// === impl errors ===

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

impl OpenError {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
        let path = path.to_owned();
        move |source| OpenError::Io { doing, path, source }
    }
}
