//! The committer: the one thread that writes.
//!
//! It takes what waits, makes one sled batch of it, and answers all of it after one sync. A group is closed at 64
//! batches, at 4 MiB, or, while several callers are about (the last group had more than one), after 2 ms; a lone caller
//! never waits for company.
//!
//! ```text
//! working ──write or sync error──▶ failed ──copy, sync, switch──▶ working (next epoch; the group is written there)
//!                                    └── no fresh epoch: the group is refused; tried again by later commits
//! ```

use std::{
    collections::BTreeSet,
    mem,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use ::sled::IVec;
use arc_swap::ArcSwapOption;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use super::{
    Batch, Options, Rotation, Step, StoreError,
    backup::Changes,
    epoch::{Entry, Epoch, Folder, INTERNAL, SEQUENCE, panic_text, prefixed},
    fs,
    seal::Sealer,
    sequence::Sequence,
    stats::Stats,
};

/// What the committer and the readers have in common.
pub(super) struct Shared {
    pub(super) dir: Arc<Path>,
    pub(super) folder: Folder,
    /// Empty once closed.
    pub(super) current: ArcSwapOption<Epoch>,
    pub(super) sealer: Sealer,
    /// Goes into backups.
    pub(super) key_check: String,
    pub(super) is_backing_up: AtomicBool,
    pub(super) stats: Stats,
    pub(super) options: Options,
}

pub(super) enum Job {
    Commit(Commit),
    Rotate(oneshot::Sender<Result<Rotation, StoreError>>),
    /// A backup begins: changed keys are noted from now on. Gives the epoch to read.
    Watch(oneshot::Sender<Result<Arc<Epoch>, StoreError>>),
    /// A backup has read everything: the values of the keys that were noted.
    Changes(oneshot::Sender<Result<Changes, StoreError>>),
    /// A backup ended.
    Unwatch,
    Close(oneshot::Sender<()>),
}

pub(super) struct Commit {
    pub(super) batch: Batch,
    pub(super) answer: oneshot::Sender<Result<(), StoreError>>,
    /// The place in the channel, given back with the answer.
    pub(super) slot: OwnedSemaphorePermit,
}

pub(super) struct Committer {
    shared: Arc<Shared>,
    state: State,
    next_epoch: u64,
    /// Size of the last group: how much company to expect.
    expected: usize,
    /// The number of the last group.
    number: u64,
    last: Sequence,
    /// What the first write carries before all else.
    first: Option<Entry>,
    has_written: bool,
    rotate_not_before: Option<Instant>,
    /// The keys that changed since a backup began.
    watched: Option<BTreeSet<IVec>>,
}

enum State {
    Working,
    Failed { reason: String, tried: Option<Instant> },
}

/// A copy that did not come to count.
struct NotReplaced {
    reason: String,
    /// Whether `CURRENT` may name the copy already: then the old epoch must not be written to any more.
    is_switched: bool,
}

const GROUP_BYTES: usize = 4 * 1024 * 1024;
/// Room that a fresh epoch needs beyond its data.
const EPOCH_ROOM: u64 = 8 * 1024 * 1024;
/// What settles older things may use the watermark's space but for this part of it.
const SETTLING_SHARE: u64 = 4;
/// How long to leave a rotation that failed.
const ROTATE_AGAIN: Duration = Duration::from_secs(60);

// === impl Committer ===

impl Committer {
    pub(super) fn new(
        shared: Arc<Shared>,
        next_epoch: u64,
        number: u64,
        last: Sequence,
        first: Option<Entry>,
    ) -> Committer {
        Committer {
            shared,
            state: State::Working,
            next_epoch,
            expected: 1,
            number,
            last,
            first,
            has_written: false,
            rotate_not_before: None,
            watched: None,
        }
    }

    /// The thread. Ends when closed or when every sender is gone.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let heartbeat = self.shared.options.heartbeat;
        let mut next_beat = Instant::now() + heartbeat;
        let mut backlog = None;
        let closing = loop {
            let wait = next_beat.saturating_duration_since(Instant::now());
            let job = match backlog.take() {
                Some(job) => job,
                None => match jobs.recv_timeout(wait) {
                    Ok(job) => job,
                    Err(RecvTimeoutError::Timeout) => {
                        self.shielded(Self::beat);
                        next_beat = Instant::now() + heartbeat;
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => break None,
                },
            };
            match job {
                Job::Commit(first) => {
                    let group = self.gather(first, jobs, &mut backlog);
                    self.shielded(|this| this.commit(group));
                }
                Job::Rotate(answer) => self.shielded(|this| {
                    let _ = answer.send(this.rotate());
                }),
                Job::Watch(answer) => {
                    self.watched = Some(BTreeSet::new());
                    let _ = answer.send(self.shared.reading());
                }
                Job::Changes(answer) => self.shielded(|this| {
                    let _ = answer.send(this.changes());
                }),
                Job::Unwatch => self.watched = None,
                Job::Close(answer) => break Some(answer),
            }
            if next_beat <= Instant::now() {
                self.shielded(Self::beat);
                next_beat = Instant::now() + heartbeat;
            }
        };
        // Each commit was synced before its answer, so nothing is left to flush. Readers may hold the epoch a moment.
        self.shared.current.store(None);
        for job in jobs.try_iter() {
            if let Job::Commit(commit) = job {
                self.shared.stats.waiting.fetch_sub(1, Relaxed);
                let _ = commit.answer.send(Err(StoreError::Closed { path: self.shared.dir.clone() }));
            }
        }
        if let Some(answer) = closing {
            let _ = answer.send(());
        }
    }

    /// The last net: a panic in here must not end the thread. What was not answered then is unknown to its callers.
    fn shielded(&mut self, work: impl FnOnce(&mut Self)) {
        self.shared.stats.set_busy(true);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self))) {
            self.fail(format!("the committer panicked: {}", panic_text(&*panic)));
        }
        self.shared.stats.set_busy(false);
    }

    fn gather(&mut self, first: Commit, jobs: &Receiver<Job>, backlog: &mut Option<Job>) -> Vec<Commit> {
        let options = &self.shared.options;
        let limit = options.group_max.max(1);
        let mut bytes = first.batch.bytes();
        let mut group = vec![first];
        let deadline = (self.expected > 1).then(|| Instant::now() + options.group_wait);
        while group.len() < limit && bytes < GROUP_BYTES {
            let job = match jobs.try_recv() {
                Ok(job) => job,
                Err(_) if group.len() >= self.expected => break,
                Err(_) => {
                    let wait = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                    match wait.filter(|wait| !wait.is_zero()).map(|wait| jobs.recv_timeout(wait)) {
                        Some(Ok(job)) => job,
                        _ => break,
                    }
                }
            };
            match job {
                Job::Commit(commit) => {
                    bytes += commit.batch.bytes();
                    group.push(commit);
                }
                other => {
                    *backlog = Some(other);
                    break;
                }
            }
        }
        self.expected = group.len();
        self.shared.stats.waiting.fetch_sub(group.len() as u64, Relaxed);
        group
    }

    /// Refuses what there is no space for; gives the rest.
    fn fitting(&self, group: Vec<Commit>) -> Vec<Commit> {
        let (error, spares_settling) = match self.space() {
            Ok(None) => return group,
            Ok(Some(error)) => (error, true),
            Err(error) => (error, false),
        };
        let (kept, refused): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|commit| spares_settling && commit.batch.is_settling);
        if refused.is_empty() {
            return kept;
        }
        self.shared.stats.refused.fetch_add(refused.len() as u64, Relaxed);
        let _ = self.shared.options.io.at(Step::Answer, &self.shared.dir);
        for Commit { answer, slot, .. } in refused {
            drop(slot);
            let _ = answer.send(Err(error.clone()));
        }
        kept
    }

    fn commit(&mut self, group: Vec<Commit>) {
        let group = self.fitting(group);
        if group.is_empty() {
            return;
        }
        let mut answers = Vec::with_capacity(group.len());
        let mut entries = Vec::new();
        let mut is_sealed = true;
        for Commit { batch, answer, slot } in group {
            for change in batch.changes {
                let tree = change.tree.byte();
                let value = change.value.map(|plain| self.shared.sealer.seal(tree, &change.key, &plain));
                // A value that could not be sealed spoils the group below, and is never written.
                is_sealed &= value != Some(None);
                let value = value.flatten().map(Into::into);
                entries.push(Entry { key: prefixed(tree, &change.key).into(), value });
            }
            answers.push((answer, slot));
        }
        let result = if is_sealed {
            self.write(entries)
        } else {
            Err(self.error("the system gives no random numbers"))
        };
        let stats = &self.shared.stats;
        match &result {
            Ok(()) => {
                stats.batches.fetch_add(answers.len() as u64, Relaxed);
                stats.group.observe(answers.len() as f64);
            }
            Err(_) => {
                stats.refused.fetch_add(answers.len() as u64, Relaxed);
            }
        }
        let _ = self.shared.options.io.at(Step::Answer, &self.shared.dir);
        for (answer, slot) in answers {
            drop(slot);
            // A caller that left changes nothing: the batch is durable, or it is not.
            let _ = answer.send(result.clone());
        }
    }

    /// Makes the changes durable, in the epoch at hand or, where that fails, in a fresh one.
    fn write(&mut self, mut entries: Vec<Entry>) -> Result<(), StoreError> {
        self.ensure_working()?;
        self.number += 1;
        let number = self.shared.sealer.seal(INTERNAL, &SEQUENCE[1..], &self.number.to_be_bytes());
        let Some(number) = number else { return Err(self.error("the system gives no random numbers")) };
        entries.push(Entry { key: SEQUENCE.into(), value: Some(number.into()) });
        if let Some(first) = &self.first {
            // A change of the same key in this group is younger.
            entries.insert(0, first.clone());
        }
        if let Some(watched) = &mut self.watched {
            watched.extend(entries.iter().map(|entry| entry.key.clone()));
        }
        self.write_somewhere(&entries)?;
        self.first = None;
        self.last.note(self.number);
        Ok(())
    }

    /// The acknowledged values of the keys that changed since a backup began.
    fn changes(&mut self) -> Result<Changes, StoreError> {
        let epoch = self.shared.reading()?;
        let keys = self.watched.take().unwrap_or_default();
        let read = |key: IVec| {
            let value = epoch.get(&key)?;
            Ok(Entry { key, value })
        };
        let entries = keys.into_iter().map(read).collect::<Result<_, super::epoch::Failure>>();
        let entries = entries.map_err(|failure| super::sled::read_error(&epoch.path, &failure))?;
        let number = super::sled::number(&epoch, &self.shared.sealer).unwrap_or(0);
        Ok(Changes { entries, number })
    }

    fn write_somewhere(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        match self.write_here(entries) {
            Ok(()) => Ok(()),
            Err(reason) => {
                self.finish(reason);
                self.rescue()?;
                self.write_here(entries).map_err(|reason| {
                    let error = self.error(&reason);
                    self.finish(reason);
                    error
                })
            }
        }
    }

    fn write_here(&mut self, entries: &[Entry]) -> Result<(), String> {
        let shared = &self.shared;
        let Some(epoch) = shared.current.load_full() else { return Err("the store is closed".into()) };
        let started = Instant::now();
        let delta = epoch
            .write(entries, &*shared.options.io)
            .map_err(|failure| format!("{}: {failure}", epoch.path.display()))?;
        shared.stats.sync.observe(started.elapsed().as_secs_f64());
        shared.stats.live_bytes.fetch_add(delta, Relaxed);
        shared.stats.disk_bytes.store(epoch.disk_bytes(), Relaxed);
        self.has_written = true;
        Ok(())
    }

    /// Whether there is space: `Ok(Some)` says why what is new is refused, while what settles older things may still
    /// use the last of it.
    fn space(&self) -> Result<Option<StoreError>, StoreError> {
        let Shared { dir, options, stats, .. } = &*self.shared;
        let free = options
            .io
            .free_bytes(dir)
            .map_err(|error| self.error(&format!("the free space is not known: {error}")))?;
        stats.free_bytes.store(free, Relaxed);
        let is_low = free < options.min_free_bytes;
        if stats.is_low.swap(is_low, Relaxed) != is_low {
            let path = dir.display();
            if is_low {
                tracing::error!(%path, free, needed = options.min_free_bytes, "too little space: nothing new is stored");
            } else {
                tracing::info!(%path, free, "there is space again");
            }
        }
        if !is_low {
            return Ok(None);
        }
        let error = |needed| StoreError::NoSpace { path: dir.clone(), free, needed };
        let floor = options.min_free_bytes / SETTLING_SHARE;
        if free < floor { Err(error(floor)) } else { Ok(Some(error(options.min_free_bytes))) }
    }

    // --- failure and rescue

    fn error(&self, reason: &str) -> StoreError {
        StoreError::Failed { path: self.shared.dir.clone(), reason: reason.into() }
    }

    /// A write or sync error: the epoch takes no more.
    fn finish(&mut self, reason: String) {
        self.shared.stats.finished_by_error.fetch_add(1, Relaxed);
        self.fail(reason);
    }

    fn fail(&mut self, reason: String) {
        tracing::error!(path = %self.shared.dir.display(), reason, "the store cannot write");
        self.shared.stats.set_failed(Some(reason.clone()));
        self.state = State::Failed { reason, tried: None };
    }

    fn ensure_working(&mut self) -> Result<(), StoreError> {
        match &self.state {
            State::Working => Ok(()),
            State::Failed { reason, tried: Some(tried) }
                if tried.elapsed() < self.shared.options.retry_after =>
            {
                Err(self.error(reason))
            }
            State::Failed { .. } => self.rescue(),
        }
    }

    /// Copies what was acknowledged into a fresh epoch and goes on there.
    fn rescue(&mut self) -> Result<(), StoreError> {
        let cause = match mem::replace(&mut self.state, State::Working) {
            State::Failed { reason, .. } => reason,
            State::Working => String::new(),
        };
        match self.replace() {
            Ok(rotation) => {
                self.shared.stats.set_failed(None);
                tracing::warn!(
                    path = %self.shared.dir.display(), from = rotation.from, to = rotation.to, cause,
                    "the store writes again, in a fresh epoch"
                );
                Ok(())
            }
            Err(NotReplaced { reason, .. }) => {
                let error = self.error(&format!("{cause}; and no fresh epoch: {reason}"));
                self.shared.stats.set_failed(Some(error.to_string()));
                self.state = State::Failed { reason: cause, tried: Some(Instant::now()) };
                Err(error)
            }
        }
    }

    // --- rotation

    fn rotate(&mut self) -> Result<Rotation, StoreError> {
        self.ensure_working()?;
        match self.replace() {
            Ok(rotation) => {
                self.shared.stats.rotations.fetch_add(1, Relaxed);
                tracing::info!(
                    path = %self.shared.dir.display(), from = rotation.from, to = rotation.to,
                    before = rotation.disk_before, after = rotation.disk_after, "rotated"
                );
                Ok(rotation)
            }
            Err(NotReplaced { reason, is_switched }) => {
                let error = self.error(&format!("cannot rotate: {reason}"));
                if is_switched {
                    self.finish(reason);
                }
                Err(error)
            }
        }
    }

    /// Copy, sync, switch, delete. No commit can come between, since this is the committer.
    fn replace(&mut self) -> Result<Rotation, NotReplaced> {
        let Shared { folder, current, sealer, stats, options, dir, .. } = &*self.shared;
        let before = |reason: String| NotReplaced { reason, is_switched: false };
        let Some(old) = current.load_full() else { return Err(before("the store is closed".into())) };
        let live = stats.live_bytes.load(Relaxed);
        // Not the watermark as well: a copy gives space back, and without one nothing would be settled any more.
        let needed = live + live / 2 + EPOCH_ROOM;
        let free = options.io.free_bytes(dir).map_err(|error| before(error.to_string()))?;
        if free < needed {
            return Err(before(format!("{free} bytes are free, a copy needs {needed}")));
        }
        let number = self.next_epoch;
        self.next_epoch += 1;
        let io = &*options.io;
        let prepared = catch_unwind(AssertUnwindSafe(|| -> Result<_, String> {
            let text = |failure: super::epoch::Failure| failure.to_string();
            let fresh = Epoch::create(folder, number, options.cache_bytes, io, sealer).map_err(text)?;
            old.copy_into(&fresh, io).map_err(text)?;
            let tmp = folder.prepare(number).map_err(|error| error.to_string())?;
            io.at(Step::CurrentWritten, &tmp).map_err(|error| error.to_string())?;
            std::fs::rename(&tmp, folder.current_path())
                .map_err(fs::named("rename", &tmp))
                .map_err(|e| e.to_string())?;
            Ok(fresh)
        }))
        .unwrap_or_else(|panic| Err(panic_text(&*panic)));
        let fresh = match prepared {
            Ok(fresh) => Arc::new(fresh),
            Err(reason) => {
                // CURRENT still names the old one, so the copy is nobody's.
                let _ = std::fs::remove_dir_all(folder.epoch(number));
                return Err(before(reason));
            }
        };
        // From here on a start would open the copy.
        io.at(Step::CurrentRenamed, &folder.current_path())
            .and_then(|()| fs::sync_dir(&folder.dir))
            .map_err(|error| NotReplaced { reason: error.to_string(), is_switched: true })?;
        let rotation = Rotation {
            from: old.number,
            to: number,
            disk_before: old.disk_bytes(),
            disk_after: fresh.disk_bytes(),
        };
        stats.disk_bytes.store(rotation.disk_after, Relaxed);
        stats.has_blobs.store(fresh.has_blobs(), Relaxed);
        current.store(Some(fresh));
        drop(old);
        if let Err(error) = folder.delete_others(number) {
            tracing::warn!(path = %dir.display(), %error, "an old epoch stays until the next start");
        }
        let _ = io.at(Step::OldDeleted, dir);
        Ok(rotation)
    }

    // --- housekeeping

    /// Every few seconds: a write where there was none, a look for blob files, a rotation where it pays.
    fn beat(&mut self) {
        if !mem::take(&mut self.has_written) {
            // A failure is in the health and in the log already.
            if matches!(self.space(), Ok(None)) {
                let _ = self.write(Vec::new());
            }
            self.has_written = false;
        }
        let Some(epoch) = self.shared.current.load_full() else { return };
        let Shared { stats, options, .. } = &*self.shared;
        if epoch.has_blobs() && !stats.has_blobs.swap(true, Relaxed) {
            tracing::error!(path = %epoch.path.display(), "sled has blob files, which are never synced");
        }
        let (live, disk) = (stats.live_bytes.load(Relaxed), epoch.disk_bytes());
        let is_worth_it = disk > options.rotate_above_bytes
            && live.saturating_mul(100) < disk.saturating_mul(options.rotate_below_percent);
        let may = self.rotate_not_before.is_none_or(|time| time <= Instant::now());
        drop(epoch);
        if is_worth_it && may && matches!(self.state, State::Working) && self.rotate().is_err() {
            self.rotate_not_before = Some(Instant::now() + ROTATE_AGAIN);
        }
    }
}

impl Shared {
    /// The epoch that counts, for a read.
    pub(super) fn reading(&self) -> Result<Arc<Epoch>, StoreError> {
        self.current.load_full().ok_or_else(|| StoreError::Closed { path: self.dir.clone() })
    }

    pub(super) fn unsealed(
        &self,
        tree: super::Tree,
        key: &[u8],
        stored: &[u8],
    ) -> Result<Vec<u8>, StoreError> {
        self.sealer.unseal(tree.byte(), key, stored).map_err(|_| {
            self.stats.undecryptable.fetch_add(1, Relaxed);
            StoreError::Undecryptable { path: self.dir.clone(), tree, key: key.to_vec() }
        })
    }
}

/// Used by scans: the visitor's answer, whatever the value was.
pub(super) type Visit<'a> = dyn FnMut(&[u8], super::Found) -> ControlFlow<()> + 'a;
