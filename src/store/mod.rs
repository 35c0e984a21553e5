//! The durable store under the write queue.
//!
//! **What.** A small key-value store of eight fixed [trees](Tree) with one promise: when [`Store::commit`] answers
//! `Ok`, the whole [`Batch`] is on disk, synced, and survives a power cut. It holds no queue logic.
//!
//! **Layout** of the folder given to [`SledStore::open`] (`<data>/queue`):
//! ```text
//! VERSION      schema version; a newer one is refused, never touched
//! key          the data keys, each wrapped by the key-encryption key (outlives epochs)
//! CURRENT      the name of the epoch that counts
//! LAST         the number of the last acknowledged group, to notice a database that came back with less
//! epoch-<n>/   one sled database
//! corrupt-…/   what could not be opened, kept for a human; `db.as-found` is the log before sled cleared what it could not read
//! ```
//!
//! **Invariants.**
//! * All trees live in *one* sled tree under a one-byte prefix, so one `apply_batch` is atomic across them.
//! * Commit = batch → `flush()` → `sync_data()` on our own handle → answer. sled's `flush` is `sync_file_range` on
//!   Linux and keeps nothing over a power cut by itself.
//! * Values stay inline (at most [`MAX_VALUE`] bytes sealed); sled neither syncs nor frees its blob files.
//! * One thread writes. Tokio workers never do.
//! * Every value is sealed; the associated data binds it to schema, tree and key.
//! * The first write or sync error finishes an epoch: the acknowledged state is copied to a fresh one and `CURRENT` is
//!   switched. After a failed sync Linux may call lost pages clean, so a retry on the same file proves nothing.
//!
//! **Failure behaviour.** Where no fresh epoch can be had, commits fail with [`StoreError::Failed`], reads go on, and
//! each later commit tries again (at most once a second). A batch that was refused is invisible in this process; if
//! the process dies before the store works again, its bytes may come back, as after any failed sync.
//! Damage found at start never stops the start: see `recover.rs`.

mod api;
pub mod backup;
mod commit;
mod epoch;
pub mod fs;
pub mod inspect;
mod io;
mod keys;
mod lock;
mod mem;
mod recover;
mod schema;
mod seal;
mod sequence;
mod sled;
mod stats;
#[cfg(test)]
mod tests;
mod volume;

pub use api::{
    Batch, BoxFuture, Found, MAX_BATCH, MAX_CHUNK, MAX_KEY, MAX_VALUE, OpenError, ROLLED_BACK, Rotation,
    Store, StoreError, Tree, chunks,
};
pub use backup::{Backup, BackupError, BackupOrder, Manifest};
pub use io::{Io, RealIo, Step};
pub use keys::{Given, KeyError, Keys, SECRET_FILE};
pub use lock::DataLock;
pub use mem::MemStore;
pub use recover::Alarm;
pub use schema::SCHEMA;
pub use seal::Seals;
pub use sled::{OpenReport, Options, SledStore};
pub use stats::{Health, Histogram};
pub use volume::watermark;
