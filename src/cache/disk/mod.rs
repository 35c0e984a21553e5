//! The second tier: copies on disk, so that a proxy that starts in the middle of an outage serves what it knew.
//!
//! A store of its own under `data_dir/cache`, never the queue's. **A response never waits for it**: what is kept is
//! offered to a bounded list, from which one task writes behind, at most 2,000 copies and 16 MiB a second and a quarter
//! of that for long; what finds no room is dropped and counted. A copy whose body is on disk already only renews its
//! time, at most every 30 s. Whether something is there is answered from memory ([`Disk::has`]); only then is the
//! disk read.
//!
//! A read has no time limit here, so who is on the way of a request sets one. Of those who ask for a key at the same
//! time one reads it, and should he lose patience the next one; at most [`READS`] keys are read at once: a disk that
//! stands still holds so many threads and no more.
//!
//! Invariants:
//! - What was forgotten is not given any more from that moment on, however long its deletion takes to be written.
//! - Nothing that goes wrong here is more than a miss: what cannot be opened leaves a proxy without a second tier, which
//!   says so in the log, the status and `seawall_cache_disk_up`, and tries again; what cannot be read is forgotten.
//! - The files take at most `cache.disk_max`, copies made for tidying included (see `log`).
//! - **It never takes the space that a 202 needs.** Above what the queue must have free, there is a band in which
//!   nothing is written here, and below it one in which the oldest files go until none is left.
//! - No copy is on disk before what was noted of tokens and invalidations before it came (see `ledger`).
//! - What another process wrote is never fresh, and a wall clock that went back makes it no younger.
//!
//! Not sled, unlike the queue (docs/adr/0007): it would be twice as large on disk, hold 100 MB and more in memory, and
//! take ten times the processor's time, for guarantees that a cache does not need.

mod index;
mod log;
mod pending;
pub(crate) mod record;
#[cfg(test)]
mod tests;

use super::entry::{About, Entry};
use super::invalidate::{self, Moment};
use super::key::Key;
use super::ledger::Ledger;
use super::policy::Facts;
use crate::clock::Clock;
use crate::ids::PartitionId;
use crate::store::{Io, Keys, Seals};
use crate::task::Tasks;
use crate::telemetry::{Metrics, ResultLabels};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use index::{Note, Slot};
use jiff::Timestamp;
use log::{Handle, Log, LogError, Table, Write, Written};
use pending::{Change, Offered, Pace, Pending};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use record::{Head, Id, Source};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, OnceCell, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

/// How the tier is run.
#[derive(Clone)]
pub struct DiskOptions {
    /// Its folder.
    pub dir: PathBuf,
    /// The most bytes of all files.
    pub max: u64,
    /// Bytes that the queue must have free on the volume.
    pub reserve: u64,
    /// The keys of the installation.
    pub keys: Arc<Keys>,
    /// The seam for tests.
    pub io: Arc<dyn Io>,
}

/// The tier. One for the process.
pub(crate) struct Disk {
    options: DiskOptions,
    /// What must be on disk before a copy that was kept after it.
    ledger: Option<Ledger>,
    clock: Clock,
    /// Names this process in what it writes.
    run: u64,
    started: Instant,
    /// The same by the wall clock, in microseconds.
    began_at: i64,
    seed: [u64; 2],
    // Whoever holds more than one of these locks took them in this order; the table's comes last.
    reading: Mutex<Reading>,
    pending: Mutex<Pending<Kept>>,
    has_pending: Notify,
    /// What is being read, so that it is read once.
    finds: Mutex<HashMap<Key, Weak<Find>>>,
    reads: Arc<Semaphore>,
    phase: watch::Sender<Phase>,
    commands: mpsc::Sender<Command>,
    counters: Counters,
}

/// A copy that is to be on disk.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) key: Key,
    pub(crate) entry: Arc<Entry>,
}

/// A copy that was on disk.
#[derive(Clone, Debug)]
pub(crate) struct Restored {
    pub(crate) status: StatusCode,
    /// The origin's fields.
    pub(crate) fields: HeaderMap,
    pub(crate) selecting: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) facts: Facts,
    pub(crate) at: Timestamp,
    pub(crate) began: Moment,
    /// Whether this process wrote it.
    pub(crate) is_own: bool,
    id: Id,
    /// Names its body. `None`: it was not on disk yet.
    stamp: Option<u64>,
}

/// What comes of reading a key.
type Find = OnceCell<Arc<[Restored]>>;

/// One who waits for a key to be read.
struct Finding<'a> {
    disk: &'a Disk,
    key: Key,
    find: Arc<Find>,
}

/// Whether there is a tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is being opened.
    Loading,
    On,
    /// There is none, for this reason.
    Off(Arc<str>),
}

/// Whether a key is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDisk {
    No,
    /// As far as memory tells: what is there may be damaged.
    Maybe,
    /// The tier is being opened.
    Unknown,
}

/// Which copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// One, by the id that a list shows.
    Id(String),
    /// Those of a path, with any query.
    Path(String),
    /// Those whose path begins so.
    Prefix(String),
    /// Those of a tag.
    Tag(String),
    /// Those of a partition.
    Partition(PartitionId),
    /// All.
    All,
}

/// A copy on disk, but for its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Names it on disk.
    pub(crate) id: String,
    /// Path and query.
    pub(crate) path: String,
    /// The tag of its route.
    pub(crate) tag: String,
    /// Whose it is.
    pub(crate) partition: PartitionId,
    /// The status of the answer.
    pub(crate) status: u16,
    /// When the upstream last confirmed it.
    pub(crate) at: Timestamp,
    /// Seconds since then.
    pub(crate) age_seconds: u64,
    /// Bytes on disk.
    pub(crate) bytes: u64,
    /// Whether its body is JSON, without a coding.
    pub(crate) is_json: bool,
    /// What it was kept under. Zero: that is not known.
    pub(crate) base: u64,
    pub(crate) key: [u8; 32],
    pub(crate) facts: Facts,
    pub(crate) began: Moment,
    /// Whether this process wrote it.
    pub(crate) is_own: bool,
}

/// What the tier did since the start, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskStats {
    /// `on`, `loading`, or why there is none.
    pub state: String,
    /// Copies on disk.
    pub entries: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Bytes of all files.
    pub disk_bytes: u64,
    /// What these may grow to.
    pub max_bytes: u64,
    /// Copies that wait to be written.
    pub waiting: u64,
    /// Copies written.
    pub written: u64,
    /// Copies whose time was renewed.
    pub renewed: u64,
    /// Copies read.
    pub hits: u64,
    /// What was not kept, or was forgotten, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
}

enum Reading {
    /// There is nothing to read, and these keys were forgotten meanwhile.
    Nothing(HashSet<Key>),
    From(Arc<Mutex<Table>>, Arc<Seals>),
}

enum Command {
    Purge(Which, bool, oneshot::Sender<Result<Vec<Listed>, String>>),
    #[cfg(test)]
    Flush(oneshot::Sender<()>),
}

struct Counters {
    /// In the order of [`REASONS`].
    dropped: [Counter; REASONS.len()],
    hits: Counter,
    written: Counter,
    renewed: Counter,
    up: Gauge,
    entries: Gauge,
    live_bytes: Gauge,
    disk_bytes: Gauge,
    ratio: Gauge<f64, AtomicU64>,
    disk: AtomicU64,
}

/// What the writing task owns.
struct Writer {
    disk: Arc<Disk>,
    commands: mpsc::Receiver<Command>,
    log: Option<Box<Log>>,
    pace: Pace,
    paid: Instant,
    looked: Option<Instant>,
    opened: Option<Instant>,
    rests_until: Option<Instant>,
    is_low: bool,
    may_open: bool,
}

/// Keys whose deletion is remembered while there is no log.
const FORGOTTEN: usize = 16_384;
/// Bytes of a deletion that waits, as they are counted.
const DELETION: usize = 64;
/// Keys that are read at once.
const READS: usize = 16;
/// What the writer gathers before it writes.
const GATHER: Duration = Duration::from_millis(200);
/// How often it looks at the free space.
const LOOK: Duration = Duration::from_secs(1);
/// How long it leaves a folder that could not be opened.
const REOPEN: Duration = Duration::from_secs(60);
/// How long it leaves a disk that could not be written.
const REST: Duration = Duration::from_secs(10);
/// How seldom the time of an unchanged copy is renewed.
const RENEW: u64 = 30_000;
/// So far apart two clocks may run before one of them counts as set.
const APART: Duration = Duration::from_secs(1);
/// The reasons of `seawall_cache_disk_dropped_total`.
const REASONS: [&str; 6] = ["full", "space", "too-large", "undecodable", "failed", "off"];

// === impl Disk ===

impl Disk {
    /// Opens the tier in the background.
    pub(crate) fn start(
        options: DiskOptions,
        ledger: Option<Ledger>,
        clock: Clock,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let (commands, receiver) = mpsc::channel(16);
        let disk = Arc::new(Self {
            options,
            ledger,
            clock,
            run: fastrand::u64(1..),
            started: Instant::now(),
            began_at: clock.now().as_microsecond(),
            seed: [fastrand::u64(..) | 1, fastrand::u64(..) | 1],
            reading: Mutex::new(Reading::Nothing(HashSet::new())),
            pending: Mutex::default(),
            has_pending: Notify::new(),
            finds: Mutex::default(),
            reads: Arc::new(Semaphore::new(READS)),
            phase: watch::Sender::new(Phase::Loading),
            commands,
            counters: Counters::new(metrics),
        });
        let writer = Writer {
            disk: disk.clone(),
            commands: receiver,
            log: None,
            pace: Pace::new(),
            paid: Instant::now(),
            looked: None,
            opened: None,
            rests_until: None,
            is_low: false,
            may_open: true,
        };
        let cancel = tasks.cancelled();
        tasks.spawn("cache-disk", writer.run(cancel));
        disk
    }

    /// A copy is to be on disk. Never waits.
    pub(crate) fn keep(&self, key: Key, entry: &Arc<Entry>) {
        if entry.status != StatusCode::OK {
            // It is in the place of what may be on disk.
            self.forget_all(&key);
            return;
        }
        if matches!(&*self.phase.borrow(), Phase::Off(_)) {
            self.counters.drop("off");
            return;
        }
        let id = Id::of(&key.0, entry.selecting());
        let bytes = entry.body.len() + 1024;
        self.offer(id, Change::Put(Kept { key, entry: entry.clone() }), bytes);
    }

    /// A copy is not to be on disk any more. Never waits.
    pub(crate) fn forget(&self, key: &Key, entry: &Entry) {
        if let Reading::Nothing(forgotten) = &mut *lock(&self.reading) {
            self.remember(forgotten, key);
        }
        self.delete(&[Id::of(&key.0, entry.selecting())]);
    }

    /// No variant of a key is to be on disk any more. Never waits.
    pub(crate) fn forget_all(&self, key: &Key) {
        let mut ids = lock(&self.pending).ids(&key.0);
        match &mut *lock(&self.reading) {
            Reading::Nothing(forgotten) => self.remember(forgotten, key),
            Reading::From(table, _) => ids.extend(lock(table).index.ids(&key.0)),
        }
        self.delete(&ids);
    }

    /// What is there of a key is not to be read when there is a log.
    fn remember(&self, forgotten: &mut HashSet<Key>, key: &Key) {
        if forgotten.len() < FORGOTTEN {
            forgotten.insert(*key);
        } else {
            self.counters.drop("full");
        }
    }

    fn delete(&self, ids: &[Id]) {
        if ids.is_empty() {
            return;
        }
        // In this order: what is being written meanwhile looks for its deletion when it is done.
        for id in ids {
            self.offer(*id, Change::Delete, DELETION);
        }
        if let Reading::From(table, _) = &*lock(&self.reading) {
            let mut table = lock(table);
            for id in ids {
                table.index.forget(id);
            }
        }
    }

    fn offer(&self, id: Id, change: Change<Kept>, bytes: usize) {
        match lock(&self.pending).offer(id, change, bytes) {
            Offered::First => self.has_pending.notify_one(),
            Offered::Waits => {}
            Offered::Dropped => self.counters.drop("full"),
        }
    }

    /// A copy could not be written, or its deletion: when what is on disk of it was forgotten, that is still to be
    /// deleted.
    fn delete_yet(&self, id: Id) {
        if let Reading::From(table, _) = &*lock(&self.reading) {
            let mut pending = lock(&self.pending);
            if pending.get(&id).is_none() && lock(table).index.is_gone(&id) {
                pending.offer(id, Change::Delete, DELETION);
            }
        }
    }

    /// No copies are written at present: those that wait go. What they were to replace on disk is deleted if it was
    /// forgotten.
    fn drop_copies(&self, reason: &'static str) {
        let reading = lock(&self.reading);
        let mut pending = lock(&self.pending);
        let dropped = match &*reading {
            Reading::Nothing(_) => pending.drop_copies(|_| false),
            Reading::From(table, _) => {
                let table = lock(table);
                pending.drop_copies(|id| table.index.is_gone(id))
            }
        };
        for _ in 0..dropped {
            self.counters.drop(reason);
        }
    }

    /// There is a log. What was forgotten before is forgotten in it before anybody reads it.
    fn read_from(&self, table: Arc<Mutex<Table>>, seals: Arc<Seals>) {
        let mut reading = lock(&self.reading);
        if let Reading::Nothing(forgotten) = &*reading {
            let mut pending = lock(&self.pending);
            let index = &mut lock(&table).index;
            let ids: Vec<Id> = forgotten.iter().flat_map(|key| index.ids(&key.0)).collect();
            for id in ids {
                // What waits came later, and replaces it.
                if pending.get(&id).is_none() {
                    pending.offer(id, Change::Delete, DELETION);
                }
                index.forget(&id);
            }
            for id in pending.deletions() {
                index.forget(id);
            }
        }
        *reading = Reading::From(table, seals);
    }

    /// Whether any variant of this key is on disk, from memory alone.
    pub(crate) fn has(&self, key: &Key) -> OnDisk {
        match &*lock(&self.reading) {
            Reading::Nothing(_) if *self.phase.borrow() == Phase::Loading => OnDisk::Unknown,
            Reading::From(table, _) if lock(table).index.has(&key.0) => OnDisk::Maybe,
            Reading::Nothing(_) | Reading::From(..) => OnDisk::No,
        }
    }

    /// Whether there is a tier.
    pub(crate) fn is_on(&self) -> bool {
        *self.phase.borrow() == Phase::On
    }

    /// Waits until it is open, or cannot be opened.
    pub(crate) async fn loaded(&self) -> Phase {
        let mut phase = self.phase.subscribe();
        match phase.wait_for(|phase| *phase != Phase::Loading).await {
            Ok(phase) => phase.clone(),
            Err(_) => Phase::Off("the process ends".into()),
        }
    }

    /// The variants of a key that can be read, the newest last.
    pub(crate) async fn find(self: &Arc<Self>, key: &Key) -> Arc<[Restored]> {
        let finding = Finding::of(self, *key);
        finding.find.get_or_init(|| self.read(key)).await.clone()
    }

    async fn read(self: &Arc<Self>, key: &Key) -> Arc<[Restored]> {
        let Ok(permit) = self.reads.clone().acquire_owned().await else { return Arc::default() };
        let (waiting, handles, newest) = match &*lock(&self.reading) {
            Reading::Nothing(_) => return Arc::default(),
            Reading::From(table, seals) => {
                let pending = lock(&self.pending);
                let waiting: Vec<Restored> = pending
                    .of(&key.0)
                    .filter_map(|(id, change)| match change {
                        Change::Put(kept) => Some(Restored::of(*id, &kept.entry)),
                        Change::Delete => None,
                    })
                    .collect();
                let mut table = lock(table);
                let mut handles = table.handles(&key.0, seals);
                handles.retain(|handle| pending.get(&handle.id).is_none());
                (waiting, handles, table.index.newest())
            }
        };
        let (this, key) = (self.clone(), key.0);
        let work = move || {
            // Who asked may be gone: the place is taken for as long as it is read.
            let _permit = permit;
            let read = handles.iter().filter_map(|handle| this.restore(handle, &key, newest));
            let mut found: Vec<Restored> = waiting.into_iter().chain(read).collect();
            found.sort_by_key(|restored| restored.at);
            Arc::from(found)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_default()
    }

    /// A disk that stands still for as long as this is held.
    #[cfg(test)]
    pub(crate) fn stall(&self) -> tokio::sync::OwnedSemaphorePermit {
        self.reads.clone().try_acquire_many_owned(READS as u32).expect("nothing is read")
    }

    /// Whether what was read still holds: it was neither forgotten nor replaced meanwhile.
    pub(crate) fn holds(&self, restored: &Restored) -> bool {
        match &*lock(&self.reading) {
            Reading::Nothing(_) => false,
            Reading::From(table, _) => match lock(&self.pending).get(&restored.id) {
                Some(Change::Delete) => false,
                Some(Change::Put(kept)) => restored.stamp.is_none() && restored.at == kept.entry.confirmed.at,
                None => lock(table).index.get(&restored.id).is_some_and(|slot| {
                    !slot.is_gone && restored.stamp.is_none_or(|stamp| stamp == slot.stamp)
                }),
            },
        }
    }

    fn restore(&self, handle: &Handle, key: &[u8; 32], newest: i64) -> Option<Restored> {
        let restored = handle.head().filter(|head| head.is_of(key)).and_then(|head| {
            let body = handle.body()?;
            let mut facts = head.facts();
            if head.run != self.run {
                facts.not_of_this_process();
            }
            Some(Restored {
                status: head.status()?,
                fields: head.fields()?,
                selecting: head.selecting()?,
                body: Bytes::from(body),
                facts,
                at: self.confirmed(&handle.slot, head.run == self.run, newest),
                began: Moment::of(head.began),
                is_own: head.run == self.run,
                id: handle.id,
                stamp: Some(handle.slot.stamp),
            })
        });
        if restored.is_some() {
            self.counters.hits.inc();
        } else if self.is_current(handle) {
            // Not when it was only given up meanwhile.
            self.counters.drop("undecodable");
            self.delete(&[handle.id]);
        }
        restored
    }

    fn is_current(&self, handle: &Handle) -> bool {
        match &*lock(&self.reading) {
            Reading::Nothing(_) => false,
            Reading::From(table, _) => lock(table)
                .index
                .get(&handle.id)
                .is_some_and(|slot| slot.record == handle.slot.record && slot.body == handle.slot.body),
        }
    }

    /// Deletes copies, on disk before it answers; with `is_dry` only tells which it would. They are deleted of what
    /// waits to be written too.
    pub(crate) async fn purge(&self, which: Which, is_dry: bool) -> Result<Vec<Listed>, String> {
        let (answer, answered) = oneshot::channel();
        let gone = || "the second tier is not there any more".to_owned();
        self.commands.send(Command::Purge(which, is_dry, answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Waits until what was offered so far is on disk, whatever the pace.
    #[cfg(test)]
    pub(crate) async fn flush(&self) {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Flush(answer)).await.is_ok() {
            let _ = answered.await;
        }
    }

    /// Copies in the order of their ids, after one.
    #[cfg(test)]
    pub(crate) async fn list(self: &Arc<Self>, after: Option<&str>, limit: usize) -> Vec<Listed> {
        let after = after.and_then(|after| after.parse::<Id>().ok());
        let look = move |found: &mut Vec<Listed>, listed: &Listed, _: &dyn Fn() -> Option<Vec<u8>>| {
            found.push(listed.clone());
            found.len() < limit
        };
        self.walk(after, Vec::new(), look).await.unwrap_or_default()
    }

    /// Shows all copies that there are to somebody, and gives back what that made of them. Counts as a key that is
    /// read.
    pub(crate) async fn survey<T: Default + Send + 'static>(
        self: &Arc<Self>,
        mut look: impl FnMut(&mut T, &Listed) + Send + 'static,
    ) -> T {
        let look = move |seen: &mut T, listed: &Listed, _: &dyn Fn() -> Option<Vec<u8>>| {
            look(seen, listed);
            true
        };
        self.walk(None, T::default(), look).await.unwrap_or_default()
    }

    /// Shows copies in the order of their ids, after one, each with a way to read its body, for as long as it is told
    /// that there should be more. Counts as a key that is read. `None`: the process ends, or it panicked.
    pub(crate) async fn walk<T: Send + 'static>(
        self: &Arc<Self>,
        after: Option<Id>,
        mut seen: T,
        mut look: impl FnMut(&mut T, &Listed, &dyn Fn() -> Option<Vec<u8>>) -> bool + Send + 'static,
    ) -> Option<T> {
        let permit = self.reads.clone().acquire_owned().await.ok()?;
        let this = self.clone();
        let work = move || {
            let _permit = permit;
            this.each(after, &mut |handle, listed| match &listed {
                Some(listed) => look(&mut seen, listed, &|| handle.body()),
                None => true,
            });
            seen
        };
        tokio::task::spawn_blocking(work).await.ok()
    }

    /// Whether there is a copy of this name, from memory alone.
    pub(crate) fn has_id(&self, id: &Id) -> bool {
        match &*lock(&self.reading) {
            Reading::Nothing(_) => false,
            Reading::From(table, _) => lock(table).index.get(id).is_some_and(|slot| !slot.is_gone),
        }
    }

    /// How many copies there are of each partition, from memory alone.
    pub(crate) fn partitions(&self) -> HashMap<PartitionId, usize> {
        const STEP: usize = 4096;
        let mut found = HashMap::new();
        let mut last = None;
        loop {
            // A piece at a time: readers wait for the lock meanwhile.
            let piece: Vec<(Id, Slot)> = match &*lock(&self.reading) {
                Reading::Nothing(_) => return found,
                Reading::From(table, _) => {
                    lock(table).index.after(last).take(STEP).map(|(id, slot)| (*id, *slot)).collect()
                }
            };
            let Some((end, _)) = piece.last() else { return found };
            last = Some(*end);
            for (_, slot) in piece.iter().filter(|(_, slot)| !slot.is_gone) {
                *found.entry(slot.partition).or_default() += 1;
            }
        }
    }

    /// Shows the copies on disk, in the order of their ids, until it is told that this is enough. `None`: one that
    /// cannot be read, or was forgotten. Blocks.
    fn each(&self, after: Option<Id>, is_more: &mut dyn FnMut(&Handle, Option<Listed>) -> bool) {
        const STEP: usize = 256;
        let mut last = after;
        loop {
            let (handles, newest): (Vec<Handle>, i64) = match &*lock(&self.reading) {
                Reading::Nothing(_) => return,
                Reading::From(table, seals) => {
                    let table = lock(table);
                    let ids: Vec<Id> = table.index.after(last).take(STEP).map(|(id, _)| *id).collect();
                    let handles = ids.into_iter().filter_map(|id| table.handle(id, seals)).collect();
                    (handles, table.index.newest())
                }
            };
            let Some(end) = handles.last() else { return };
            last = Some(end.id);
            let now = self.clock.now();
            for handle in &handles {
                let head = if handle.slot.is_gone { None } else { handle.head() };
                let listed = head.and_then(|head| {
                    let is_own = head.run == self.run;
                    Listed::of(handle, head, is_own, self.confirmed(&handle.slot, is_own, newest), now)
                });
                if !is_more(handle, listed) {
                    return;
                }
            }
        }
    }

    pub(crate) fn stats(&self) -> DiskStats {
        let (entries, live_bytes) = match &*lock(&self.reading) {
            Reading::Nothing(_) => (0, 0),
            Reading::From(table, _) => {
                let table = lock(table);
                (table.index.len() as u64, table.index.live_bytes())
            }
        };
        let counters = &self.counters;
        let disk_bytes = counters.disk.load(Ordering::Relaxed);
        counters.entries.set(entries.cast_signed());
        counters.live_bytes.set(live_bytes.cast_signed());
        counters.disk_bytes.set(disk_bytes.cast_signed());
        counters.ratio.set(if live_bytes == 0 { 0.0 } else { disk_bytes as f64 / live_bytes as f64 });
        DiskStats {
            state: match &*self.phase.borrow() {
                Phase::Loading => "loading".to_owned(),
                Phase::On => "on".to_owned(),
                Phase::Off(why) => format!("off: {why}"),
            },
            entries,
            live_bytes,
            disk_bytes,
            max_bytes: self.options.max,
            waiting: lock(&self.pending).len() as u64,
            written: counters.written.get(),
            renewed: counters.renewed.get(),
            hits: counters.hits.get(),
            dropped: REASONS.into_iter().zip(counters.dropped.iter().map(Counter::get)).collect(),
        }
    }

    /// A keyed hash: nobody outside can make two bodies that share it.
    fn print(&self, body: &[u8]) -> u64 {
        let mix = |a: u64, b: u64| {
            let wide = u128::from(a) * u128::from(b);
            (wide as u64) ^ ((wide >> 64) as u64)
        };
        let mut hash = self.seed[0] ^ body.len() as u64;
        let (blocks, rest) = body.as_chunks::<16>();
        let mut last = [0; 16];
        last[..rest.len()].copy_from_slice(rest);
        for block in blocks.iter().chain([&last]) {
            let wide = u128::from_le_bytes(*block);
            hash = mix(wide as u64 ^ self.seed[1], (wide >> 64) as u64 ^ hash);
        }
        mix(hash ^ self.seed[0], self.seed[1])
    }

    /// When a copy was confirmed. A wall clock that was set since does not make it younger, nor older if this process
    /// wrote it.
    fn confirmed(&self, slot: &Slot, is_own: bool, newest: i64) -> Timestamp {
        let now = self.clock.now();
        if let Some(note) = slot.note.filter(|_| is_own) {
            // A clock that cannot be set tells how long ago that was.
            let age = self.started.elapsed().saturating_sub(Duration::from_millis(note.at));
            let told = record::at(slot.at);
            return if crate::clock::since(now, told) + APART < age {
                crate::clock::before(now, age)
            } else {
                told
            };
        }
        let run = self.started.elapsed().saturating_sub(APART);
        let run = i64::try_from(run.as_micros()).unwrap_or(i64::MAX);
        record::confirmed(slot.at, newest.max(self.began_at).saturating_add(run), now)
    }

    /// Writes what was taken. Blocks. Gives whether the disk did as it was told.
    fn write(&self, log: &mut Log, changes: Vec<(Id, Change<Kept>)>) -> bool {
        let mut is_well = true;
        for (id, change) in changes {
            let result = match change {
                Change::Delete => log.delete(&id).map(|_| None),
                Change::Put(kept) => self.put(log, id, &kept).map(Some),
            };
            match result {
                Ok(Some(Written::TooLarge)) => {
                    self.counters.drop("too-large");
                    self.delete_yet(id);
                }
                Ok(_) => {}
                Err(error) => {
                    self.counters.drop("failed");
                    self.delete_yet(id);
                    if is_well {
                        tracing::warn!(%error, "the cache cannot write to its disk");
                    }
                    is_well = false;
                }
            }
        }
        if let Err(error) = log.sync() {
            tracing::warn!(%error, "the cache cannot sync its disk");
            is_well = false;
        }
        self.counters.disk.store(log.disk_bytes(), Ordering::Relaxed);
        is_well
    }

    fn put(&self, log: &mut Log, id: Id, kept: &Kept) -> std::io::Result<Written> {
        let Kept { key, entry } = kept;
        let began = entry.began.number();
        let at = entry.confirmed.monotonic.saturating_duration_since(self.started);
        let note = Note { print: self.print(&entry.body), began, at: millis(at) };
        let before = match &*lock(&self.reading) {
            Reading::Nothing(_) => None,
            Reading::From(table, _) => {
                lock(table).index.used(&id).filter(|slot| !slot.is_gone).and_then(|slot| slot.note)
            }
        };
        let is_same = before.is_some_and(|before| before.print == note.print);
        if is_same && before.is_some_and(|before| before.began == began && note.at < before.at + RENEW) {
            return Ok(Written::Yes);
        }
        let head = Head::of(&Source {
            key: &key.0,
            path: &entry.about.path,
            tag: entry.about.tag(),
            base: entry.about.base,
            status: entry.status,
            began,
            run: self.run,
            facts: &entry.facts,
            fields: &entry.head,
            selecting: entry.selecting(),
        });
        let mut write = Write {
            id,
            partition: entry.about.partition,
            at: entry.confirmed.at.as_microsecond(),
            head,
            body: (!is_same).then_some(&entry.body),
        };
        let mut written = log.write(&write)?;
        if written == Written::Gone {
            write.body = Some(&entry.body);
            written = log.write(&write)?;
        }
        if written == Written::Yes {
            let counter = if write.body.is_some() { &self.counters.written } else { &self.counters.renewed };
            counter.inc();
            if let Reading::From(table, _) = &*lock(&self.reading) {
                let pending = lock(&self.pending);
                let index = &mut lock(table).index;
                index.note(&id, note);
                if matches!(pending.get(&id), Some(Change::Delete)) {
                    // It was forgotten while it was written.
                    index.forget(&id);
                }
            }
        }
        Ok(written)
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("dir", &self.options.dir).finish_non_exhaustive()
    }
}

// === impl Restored ===

impl Restored {
    /// A copy that waits to be written.
    fn of(id: Id, entry: &Entry) -> Self {
        let mut selecting = HeaderMap::new();
        for (name, values) in entry.selecting() {
            for value in values {
                selecting.append(name.clone(), value.clone());
            }
        }
        Self {
            status: entry.status,
            fields: entry.head.to_map(0),
            selecting,
            body: entry.body.clone(),
            facts: entry.facts.clone(),
            at: entry.confirmed.at,
            began: entry.began,
            is_own: true,
            id,
            stamp: None,
        }
    }
}

// === impl Listed ===

impl Listed {
    fn of(handle: &Handle, head: Head, is_own: bool, at: Timestamp, now: Timestamp) -> Option<Self> {
        let mut facts = head.facts();
        if !is_own {
            facts.not_of_this_process();
        }
        Some(Self {
            id: handle.id.to_string(),
            key: record::unhex(&head.key)?,
            is_json: head.is_json(),
            base: head.base,
            status: head.status().map_or(0, |status| status.as_u16()),
            path: head.path,
            tag: head.tag,
            partition: handle.slot.partition,
            age_seconds: crate::clock::since(now, at).as_secs(),
            bytes: handle.slot.bytes(),
            at,
            facts,
            began: Moment::of(head.began),
            is_own,
        })
    }
}

// === impl Finding ===

impl<'a> Finding<'a> {
    fn of(disk: &'a Disk, key: Key) -> Self {
        let mut finds = lock(&disk.finds);
        let find = finds.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let find = Arc::default();
            finds.insert(key, Arc::downgrade(&find));
            find
        });
        Self { disk, key, find }
    }
}

impl Drop for Finding<'_> {
    fn drop(&mut self) {
        let mut finds = lock(&self.disk.finds);
        // Nobody else waits for it, and under this lock nobody begins to.
        if Arc::strong_count(&self.find) == 1 {
            finds.remove(&self.key);
        }
    }
}

// === impl Which ===

impl Which {
    pub(crate) fn means(&self, listed: &Listed) -> bool {
        if let Self::Id(id) = self {
            return listed.id == *id;
        }
        self.means_those(&listed.path, &listed.tag, listed.partition)
    }

    /// Whether it may mean a copy of which nothing more is known.
    fn may_mean(&self, id: &Id, partition: PartitionId) -> bool {
        match self {
            Self::Id(wanted) => id.to_string() == *wanted,
            Self::Partition(wanted) => partition == *wanted,
            Self::Path(_) | Self::Prefix(_) | Self::Tag(_) | Self::All => true,
        }
    }

    /// Whether it means a copy in memory.
    pub(crate) fn means_entry(&self, key: &Key, entry: &Entry) -> bool {
        if let Self::Id(id) = self {
            return Id::of(&key.0, entry.selecting()).to_string() == *id;
        }
        let About { partition, path, .. } = &*entry.about;
        self.means_those(path, entry.about.tag(), *partition)
    }

    fn means_those(&self, path: &str, tag: &str, partition: PartitionId) -> bool {
        match self {
            Self::Id(_) => false,
            Self::Path(wanted) => invalidate::resource(path) == invalidate::resource(wanted),
            Self::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Self::Tag(wanted) => tag == wanted,
            Self::Partition(wanted) => partition == *wanted,
            Self::All => true,
        }
    }
}

// === impl Writer ===

impl Writer {
    async fn run(mut self, cancel: tokio_util::sync::CancellationToken) {
        self.open().await;
        let disk = self.disk.clone();
        loop {
            let has_pending = lock(&disk.pending).len() > 0;
            let next = if has_pending { GATHER } else { LOOK };
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => break,
                },
                () = disk.has_pending.notified(), if !has_pending => {}
                () = tokio::time::sleep(next) => {
                    if has_pending {
                        self.write(false).await;
                    }
                    self.look().await;
                }
            }
        }
        self.write(true).await;
        self.shut("the process ends");
    }

    async fn obey(&mut self, command: Command) {
        match command {
            #[cfg(test)]
            Command::Flush(answer) => {
                self.write(true).await;
                let _ = answer.send(());
            }
            Command::Purge(which, is_dry, answer) => {
                let _ = answer.send(self.purge(which, is_dry).await);
            }
        }
    }

    /// Opens the log, unless that was tried of late.
    async fn open(&mut self) {
        let may = self.may_open && self.opened.is_none_or(|at| at.elapsed() >= REOPEN);
        if self.log.is_some() || !may {
            return;
        }
        self.opened = Some(Instant::now());
        let DiskOptions { dir, max, keys, io, .. } = self.disk.options.clone();
        let opened = tokio::task::spawn_blocking(move || Log::open(&dir, &keys, max, io)).await;
        let opened = opened.unwrap_or_else(|panic| Err(LogError::Io(std::io::Error::other(panic))));
        match opened {
            Ok(log) => {
                let (table, seals) = log.shared();
                let entries = lock(&table).index.len();
                tracing::info!(entries, bytes = log.disk_bytes(), "the cache on disk is open");
                self.disk.counters.disk.store(log.disk_bytes(), Ordering::Relaxed);
                self.disk.read_from(table, seals);
                self.log = Some(Box::new(log));
                self.disk.counters.up.set(1);
                self.disk.phase.send_replace(Phase::On);
                self.look().await;
            }
            Err(error) => {
                self.may_open = !matches!(error, LogError::Newer { .. });
                tracing::warn!(%error, "there is no cache on disk; all else works");
                self.shut(&error.to_string());
            }
        }
    }

    fn shut(&mut self, why: &str) {
        self.disk.drop_copies("off");
        {
            let mut reading = lock(&self.disk.reading);
            // What was forgotten since there is no log stays so, however often none can be opened.
            if matches!(*reading, Reading::From(..)) {
                *reading = Reading::Nothing(HashSet::new());
            }
        }
        self.log = None;
        self.disk.counters.up.set(0);
        self.disk.counters.disk.store(0, Ordering::Relaxed);
        self.disk.phase.send_replace(Phase::Off(why.into()));
    }

    /// Looks at the free space, and again at a folder that could not be opened.
    async fn look(&mut self) {
        if self.log.is_none() {
            Box::pin(self.open()).await;
            if self.log.is_none() {
                self.give_back().await;
            }
            return;
        }
        if self.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return;
        }
        self.looked = Some(Instant::now());
        let reserve = self.disk.options.reserve;
        let was_low = self.is_low;
        let looked = self
            .with_log(move |_, log| {
                let (soft, hard) = (reserve + reserve / 2, reserve + reserve / 4);
                let mut free = log.free_bytes()?;
                let is_low = free < soft;
                let before = log.disk_bytes();
                while free < hard && log.disk_bytes() > 0 {
                    // A piece at a time: files go until there is space.
                    log.shrink(log.disk_bytes() - 1)?;
                    free = log.free_bytes()?;
                }
                Ok::<_, std::io::Error>((is_low, free, before - log.disk_bytes(), log.disk_bytes()))
            })
            .await;
        match looked {
            Some(Ok((is_low, free, given_up, left))) => {
                self.is_low = is_low;
                self.disk.counters.disk.store(left, Ordering::Relaxed);
                if given_up > 0 {
                    self.disk.counters.drop("space");
                    tracing::warn!(free, given_up, left, "space is short: the cache gave up files");
                } else if is_low != was_low {
                    tracing::warn!(
                        free,
                        is_low,
                        "whether space is short has changed: then the cache writes nothing"
                    );
                }
            }
            Some(Err(error)) => {
                // As with too little: a disk that does not answer takes no copies.
                self.is_low = true;
                tracing::warn!(%error, "the free space is not known: the cache writes nothing");
            }
            None => {}
        }
    }

    /// Makes space for the queue where there is a log that cannot be opened.
    async fn give_back(&mut self) {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return;
        }
        self.looked = Some(Instant::now());
        let DiskOptions { dir, reserve, io, .. } = self.disk.options.clone();
        let work = move || log::give_back(&dir, &*io, reserve + reserve / 4);
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(given_up)) => {
                self.disk.counters.drop("space");
                tracing::warn!(
                    given_up,
                    "space is short: files of a cache that cannot be opened are given up"
                );
            }
            Ok(Err(error)) => {
                let why = format!("space is short, and its files stay: {error}");
                if *self.disk.phase.borrow() != Phase::Off(why.as_str().into()) {
                    tracing::warn!(%error, "space is short, and the files of the cache stay");
                    self.disk.phase.send_replace(Phase::Off(why.into()));
                }
            }
        }
    }

    /// Writes what waits: as much as the pace allows, or all.
    async fn write(&mut self, is_all: bool) {
        let now = Instant::now();
        self.pace.earn(now.saturating_duration_since(self.paid));
        self.paid = now;
        if is_all {
            self.look().await;
        }
        loop {
            let is_resting = self.rests_until.is_some_and(|until| now < until);
            let why_not = [(self.log.is_none(), "off"), (self.is_low, "space"), (is_resting, "failed")];
            if let Some((_, reason)) = why_not.into_iter().find(|(is_so, _)| *is_so) {
                self.disk.drop_copies(reason);
            }
            // What was deleted waits: it may still be there when there is a log again, or one that can be written.
            if self.log.is_none() || is_resting && !is_all {
                return;
            }
            let changes = lock(&self.disk.pending).take(&mut self.pace);
            if changes.is_empty() && !(is_all && lock(&self.disk.pending).len() > 0) {
                return;
            }
            if let Some(ledger) = &self.disk.ledger {
                // The successes that let these copies be served were noted before the copies were offered.
                ledger.caught_up().await;
            }
            let is_well = self.with_log(move |disk, log| disk.write(log, changes)).await;
            if is_well == Some(false) {
                self.rests_until = Some(now + REST);
            }
            if !is_all || is_well != Some(true) {
                return;
            }
            self.pace = Pace::new();
        }
    }

    async fn purge(&mut self, which: Which, is_dry: bool) -> Result<Vec<Listed>, String> {
        if !is_dry {
            let wanted = which.clone();
            // A deletion of what is replaced must still be done.
            lock(&self.disk.pending).retain(|_, change| match change {
                Change::Put(kept) => !wanted.means_entry(&kept.key, &kept.entry),
                Change::Delete => true,
            });
        }
        if self.log.is_none() {
            // What could not be opened may be another time, and would still hold it.
            return Err("there is no cache on disk at present, so nothing in it can be deleted".to_owned());
        }
        let purged = self
            .with_log(move |disk, log| {
                let (mut found, mut ids) = (Vec::new(), Vec::new());
                disk.each(None, &mut |handle, listed| {
                    // What cannot be read now may be meant, and be read another time.
                    let is_meant = match &listed {
                        Some(listed) => which.means(listed),
                        None => which.may_mean(&handle.id, handle.slot.partition),
                    };
                    if is_meant {
                        found.extend(listed);
                        ids.push(handle.id);
                    }
                    true
                });
                if is_dry {
                    return Ok(found);
                }
                if which == Which::All {
                    log.clear()?;
                } else {
                    for id in &ids {
                        log.delete(id)?;
                    }
                    log.sync()?;
                }
                disk.counters.disk.store(log.disk_bytes(), Ordering::Relaxed);
                Ok::<_, std::io::Error>(found)
            })
            .await;
        match purged {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) => Err(format!("the cache on disk could not be changed: {error}")),
            None => Err("the cache on disk could not be changed".to_owned()),
        }
    }

    /// Does something with the log where it may block. `None`: there is none, or the work panicked and took it along.
    async fn with_log<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Disk, &mut Log) -> T + Send + 'static,
    ) -> Option<T> {
        let mut log = self.log.take()?;
        let disk = self.disk.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&disk, &mut log);
            (log, done)
        });
        match done.await {
            Ok((log, done)) => {
                self.log = Some(log);
                Some(done)
            }
            Err(error) => {
                tracing::error!(%error, "the cache on disk stopped working; this is a bug");
                self.shut("its task stopped working");
                None
            }
        }
    }
}

// === impl Counters ===

impl Counters {
    fn new(metrics: &Metrics) -> Self {
        Self {
            dropped: REASONS
                .map(|result| metrics.cache_disk_dropped.get_or_create(&ResultLabels { result }).clone()),
            hits: metrics.cache_disk_hits.clone(),
            written: metrics.cache_disk_written.clone(),
            renewed: metrics.cache_disk_renewed.clone(),
            up: metrics.cache_disk_up.clone(),
            entries: metrics.cache_disk_entries.clone(),
            live_bytes: metrics.cache_disk_live_bytes.clone(),
            disk_bytes: metrics.cache_disk_bytes.clone(),
            ratio: metrics.cache_disk_to_live_ratio.clone(),
            disk: AtomicU64::new(0),
        }
    }

    fn drop(&self, result: &'static str) {
        if let Some(at) = REASONS.iter().position(|reason| *reason == result) {
            self.dropped[at].inc();
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
