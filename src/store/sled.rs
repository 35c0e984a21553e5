//! The store on disk: [`SledStore`].

use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    Alarm, BackupError, BackupOrder, Batch, BoxFuture, Found, Health, Io, Keys, Manifest, OpenError, RealIo,
    Rotation, Store, StoreError, Tree,
    backup::{self, Source},
    commit::{Commit, Committer, Job, Shared, Visit},
    epoch::{Current, Epoch, Folder, INTERNAL, SEQUENCE, panic_text, prefixed},
    fs,
    recover::Ladder,
    schema,
    seal::Sealer,
    sequence::Sequence,
    stats::Stats,
    volume,
};

/// How to open and run a [`SledStore`]. The defaults are those that were measured.
#[derive(Clone)]
pub struct Options {
    /// Wall time, for the name of what is set aside.
    pub now: SystemTime,
    /// Bytes that must stay free on the volume.
    pub min_free_bytes: u64,
    /// How long to wait for another process to leave.
    pub lock_wait: Duration,
    /// sled's page cache.
    pub cache_bytes: u64,
    /// Batches that may wait for the committer.
    pub channel: usize,
    /// The most batches in one sync.
    pub group_max: usize,
    /// How long a group waits for company, while there is some.
    pub group_wait: Duration,
    /// How often the store is written to, if only to see that it can be.
    pub heartbeat: Duration,
    /// The pause between two attempts to get a failed store going.
    pub retry_after: Duration,
    /// How long the committer may be at one thing before health says that it cannot write.
    pub stall_after: Duration,
    /// Rotate only above this size on disk …
    pub rotate_above_bytes: u64,
    /// … and only where less than this part of it is live.
    pub rotate_below_percent: u64,
    /// The seam for tests.
    pub io: Arc<dyn Io>,
}

/// What opening found.
#[derive(Clone, Debug)]
pub struct OpenReport {
    /// Whether there was nothing here before.
    pub is_new: bool,
    /// The epoch that counts.
    pub epoch: u64,
    /// Bytes of keys and sealed values.
    pub live_bytes: u64,
    /// What an operator must hear; each was logged as an error.
    pub alarms: Vec<Alarm>,
    /// Why the folder will not outlive this machine or pod, where that is so.
    pub ephemeral: Option<&'static str>,
}

/// The store on disk.
pub struct SledStore {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    slots: Arc<Semaphore>,
}

// === impl Options ===

impl Options {
    /// The defaults; `now` is wall time.
    pub fn new(now: SystemTime) -> Options {
        Options {
            now,
            min_free_bytes: 128 << 20,
            lock_wait: Duration::from_secs(30),
            cache_bytes: 32 << 20,
            channel: 1024,
            group_max: 64,
            group_wait: Duration::from_millis(2),
            heartbeat: Duration::from_secs(5),
            retry_after: Duration::from_secs(1),
            stall_after: Duration::from_secs(15),
            rotate_above_bytes: 64 << 20,
            rotate_below_percent: 25,
            io: Arc::new(RealIo),
        }
    }
}

// === impl OpenReport ===

impl OpenReport {
    /// Whether the database came back older than it was acknowledged to be. What was settled may be pending again, so
    /// nothing that could take effect twice may be sent before a human looked. Only this start tells it; the value
    /// under [`ROLLED_BACK`](super::ROLLED_BACK) tells it until somebody deletes it.
    pub fn is_rolled_back(&self) -> bool {
        self.alarms.iter().any(|alarm| matches!(alarm, Alarm::RolledBack { .. }))
    }
}

// === impl SledStore ===

impl SledStore {
    /// Opens the store in `dir` (makes it where there is none) and starts its committer. Blocks, up to
    /// [`Options::lock_wait`] and as long as reading everything takes.
    pub fn open(dir: &Path, keys: &Keys, options: Options) -> Result<(SledStore, OpenReport), OpenError> {
        fs::create_dir(dir).map_err(OpenError::io("create", dir))?;
        let mut alarms = Vec::new();
        schema::check(dir, &mut alarms)?;
        let folder = Folder { dir: dir.to_owned() };
        let current = folder.current().map_err(OpenError::io("read", dir))?;
        let is_new = current == Current::New;
        let sealer = Sealer::open(dir, keys, is_new, &mut alarms)?;
        let ladder = Ladder {
            folder: &folder,
            sealer: &sealer,
            io: &*options.io,
            cache: options.cache_bytes,
            lock_wait: options.lock_wait,
            now: options.now,
        };
        let (epoch, live_bytes) = ladder.climb(current, &mut alarms)?;
        if let Err(error) = folder.delete_others(epoch.number) {
            tracing::warn!(path = %dir.display(), %error, "an old epoch cannot be deleted");
        }
        let (last, noted) = Sequence::open(dir).map_err(OpenError::io("open the last number in", dir))?;
        let number = number(&epoch, &sealer);
        if let (Some(expected), Some(found)) = (noted, number)
            && found < expected
            && !was_set_aside(&alarms)
        {
            alarms.push(Alarm::RolledBack { path: epoch.path.clone(), expected, found });
        }
        let number = number.max(noted).unwrap_or(0);
        // The numbers agree again after the first write, so that write says it from then on.
        let is_rolled_back = alarms.iter().any(|alarm| matches!(alarm, Alarm::RolledBack { .. }));
        let mark = if is_rolled_back {
            let mark = backup::mark(&sealer).ok_or_else(|| OpenError::Unusable {
                path: dir.to_owned(),
                reason: "the system gives no random numbers".to_owned(),
            })?;
            Some(mark)
        } else {
            None
        };
        let next_epoch = folder.next_number().map_err(OpenError::io("list", dir))?;
        let stats = Stats::new();
        stats.live_bytes.store(live_bytes, Relaxed);
        stats.disk_bytes.store(epoch.disk_bytes(), Relaxed);
        stats.free_bytes.store(options.io.free_bytes(dir).unwrap_or(0), Relaxed);
        if epoch.has_blobs() {
            stats.has_blobs.store(true, Relaxed);
            alarms.push(Alarm::Blobs { path: epoch.path.clone() });
        }
        for alarm in &alarms {
            tracing::error!(path = %dir.display(), "{alarm}");
        }
        let report =
            OpenReport { is_new, epoch: epoch.number, live_bytes, alarms, ephemeral: volume::ephemeral(dir) };
        let slots = Arc::new(Semaphore::new(options.channel.clamp(1, Semaphore::MAX_PERMITS)));
        let shared = Arc::new(Shared {
            dir: Arc::from(dir),
            folder,
            current: ArcSwapOption::from_pointee(epoch),
            sealer,
            key_check: backup::key_check(keys),
            is_backing_up: AtomicBool::new(false),
            stats,
            options,
        });
        let (jobs, receiver) = channel();
        start(Committer::new(shared.clone(), next_epoch, number, last, mark), receiver, dir)?;
        Ok((SledStore { shared, jobs, slots }, report))
    }

    /// Wraps the data keys with another key-encryption key; the values stay as they are. Blocks.
    pub fn rotate_wrapping(&self, keys: &Keys) -> Result<(), OpenError> {
        self.shared.sealer.rewrap(keys)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.shared.dir
    }

    fn closed(&self) -> StoreError {
        StoreError::Closed { path: self.shared.dir.clone() }
    }
}

/// Blocks.
fn back_up(shared: &Shared, jobs: &Sender<Job>, order: &BackupOrder) -> Result<Manifest, BackupError> {
    let closed = || BackupError::Store(StoreError::Closed { path: shared.dir.clone() });
    let (answer, answered) = oneshot::channel();
    jobs.send(Job::Watch(answer)).map_err(|_| closed())?;
    let epoch = answered.blocking_recv().map_err(|_| closed())??;
    let source = Source {
        epoch: &epoch,
        sealer: &shared.sealer,
        dir: &shared.dir,
        key_check: shared.key_check.clone(),
        live_bytes: shared.stats.live_bytes.load(Relaxed),
        min_free: shared.options.min_free_bytes,
        io: &*shared.options.io,
    };
    backup::write(order, &source, || {
        let (answer, answered) = oneshot::channel();
        jobs.send(Job::Changes(answer)).map_err(|_| closed())?;
        Ok(answered.blocking_recv().map_err(|_| closed())??)
    })
}

/// The number of the last group in the database; `None` where it cannot be read.
pub(super) fn number(epoch: &Epoch, sealer: &Sealer) -> Option<u64> {
    let Some(stored) = epoch.get(SEQUENCE).ok()? else { return Some(0) };
    let plain = sealer.unseal(INTERNAL, &SEQUENCE[1..], &stored).ok()?;
    Some(u64::from_be_bytes(plain.try_into().ok()?))
}

/// Then a fresh database is no wonder.
fn was_set_aside(alarms: &[Alarm]) -> bool {
    alarms.iter().any(|alarm| matches!(alarm, Alarm::SetAside { .. } | Alarm::CurrentLost { used: None, .. }))
}

fn start(committer: Committer, jobs: Receiver<Job>, dir: &Path) -> Result<(), OpenError> {
    // Not joined: closing waits for the answer of the last job instead.
    let _handle = thread::Builder::new()
        .name("store-commit".into())
        .spawn(move || committer.run(&jobs))
        .map_err(OpenError::io("start the committer of", dir))?;
    Ok(())
}

fn ready<T: Send + 'static>(value: T) -> BoxFuture<T> {
    Box::pin(std::future::ready(value))
}

impl Store for SledStore {
    fn commit(&self, batch: Batch) -> BoxFuture<Result<(), StoreError>> {
        if let Err(error) = batch.check() {
            return ready(Err(error));
        }
        let (answer, answered) = oneshot::channel();
        let path = self.shared.dir.clone();
        let unanswered = StoreError::Unanswered { path: path.clone() };
        let closed = StoreError::Closed { path };
        let shared = self.shared.clone();
        let jobs = self.jobs.clone();
        let send = move |slot: OwnedSemaphorePermit| {
            shared.stats.waiting.fetch_add(1, Relaxed);
            jobs.send(Job::Commit(Commit { batch, answer, slot })).map_err(|_| {
                shared.stats.waiting.fetch_sub(1, Relaxed);
            })
        };
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            if send(slot).is_err() {
                return ready(Err(closed));
            }
            return Box::pin(async move { answered.await.unwrap_or(Err(unanswered)) });
        }
        let slots = self.slots.clone();
        Box::pin(async move {
            let Ok(slot) = slots.acquire_owned().await else { return Err(closed) };
            if send(slot).is_err() {
                return Err(closed);
            }
            answered.await.unwrap_or(Err(unanswered))
        })
    }

    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let epoch = self.shared.reading()?;
        let stored =
            epoch.get(&prefixed(tree.byte(), key)).map_err(|failure| read_error(&epoch.path, &failure))?;
        stored.map(|stored| self.shared.unsealed(tree, key, &stored)).transpose()
    }

    fn scan(
        &self,
        tree: Tree,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], Found) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let visit: &mut Visit<'_> = visit;
        let epoch = self.shared.reading()?;
        let after = after.map(|after| prefixed(tree.byte(), after));
        epoch
            .scan(&prefixed(tree.byte(), prefix), after.as_deref(), &mut |key, stored| {
                let key = &key[1..];
                visit(key, self.shared.unsealed(tree, key, stored))
            })
            .map_err(|failure| read_error(&epoch.path, &failure))
    }

    fn health(&self) -> Health {
        let epoch = self.shared.current.load().as_ref().map(|epoch| epoch.number);
        self.shared.stats.health(epoch, self.shared.options.stall_after)
    }

    fn rotate(&self) -> BoxFuture<Result<Rotation, StoreError>> {
        let (answer, answered) = oneshot::channel();
        if self.jobs.send(Job::Rotate(answer)).is_err() {
            return ready(Err(self.closed()));
        }
        let closed = self.closed();
        Box::pin(async move { answered.await.unwrap_or(Err(closed)) })
    }

    fn backup(&self, order: BackupOrder) -> BoxFuture<Result<Manifest, BackupError>> {
        if self.shared.is_backing_up.swap(true, Relaxed) {
            return ready(Err(BackupError::Busy));
        }
        let (shared, jobs) = (self.shared.clone(), self.jobs.clone());
        let (answer, answered) = oneshot::channel();
        // A thread of its own: it reads everything there is, and may write to a slow place.
        let started = thread::Builder::new().name("store-backup".into()).spawn(move || {
            // A panic must not make all later ones wait for this one.
            let result =
                catch_unwind(AssertUnwindSafe(|| back_up(&shared, &jobs, &order))).unwrap_or_else(|panic| {
                    Err(BackupError::Database { path: shared.dir.to_path_buf(), reason: panic_text(&*panic) })
                });
            let _ = jobs.send(Job::Unwatch);
            shared.is_backing_up.store(false, Relaxed);
            let _ = answer.send(result);
        });
        if let Err(error) = started {
            self.shared.is_backing_up.store(false, Relaxed);
            return ready(Err(error.into()));
        }
        let closed = self.closed();
        Box::pin(async move { answered.await.unwrap_or(Err(closed.into())) })
    }

    fn close(&self) -> BoxFuture<()> {
        self.slots.close();
        let (answer, answered) = oneshot::channel();
        let is_open = self.jobs.send(Job::Close(answer)).is_ok();
        Box::pin(async move {
            if is_open {
                let _ = answered.await;
            }
        })
    }
}

pub(super) fn read_error(path: &Path, failure: &super::epoch::Failure) -> StoreError {
    StoreError::Read { path: Arc::from(path), reason: failure.to_string().into() }
}
