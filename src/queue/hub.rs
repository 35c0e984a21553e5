//! The queue itself: what its parts share, its start, and its end.
//!
//! **Where a caller may leave.** Nothing that changes a write runs in a caller's future: first attempts, replays and
//! steps asked for by people are tasks of their own, and the caller only waits. But for one: a body above the cap
//! streams from the caller, is no record, and ends when its caller leaves.
//!
//! **Where the process may die.** A 202 follows a synced record. What creates is `sending` on disk before its first
//! byte leaves. A replayed write frees its order only after its outcome is synced. Between any two of these, a
//! restart finds at worst `sending`, which it takes for "perhaps applied".
//!
//! **Where the disk may fail.** No 202. The record that could not be stored may have been written after all, so a
//! removal follows it to the disk; until that is there the entry keeps its key, its twin and its place, though no
//! ticket is shown for it. What *must* reach the disk (outcomes) is tried until it does, and its order waits meanwhile.

use super::book::Book;
use super::buffer::{self, Read};
use super::journal::{self, CommitError, Journal, With};
use super::jump::Sight;
use super::pace::Moment;
use super::record::{AuditRow, MAX_ANSWER, Reason, Record};
use super::state::{self, Input, Rules, State, Verdict};
use crate::clock::{self, Clock};
use crate::config::Snapshot;
use crate::context::{
    Call, Pending, PendingWrites, Settled, SettledWrite, Upstream, UpstreamRequest, WholeUntil,
};
use crate::error::ProxyError;
use crate::event::{Bus, Kind};
use crate::flexport::routes::RoutePolicy;
use crate::http::{Body, BodyError, delivery};
use crate::ids::{PartitionId, WriteId};
use crate::store::{Batch, Store, StoreError};
use crate::task::Tasks;
use crate::telemetry::{Metrics, StateLabels};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, header, response};
use prometheus_client::metrics::gauge::Gauge;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// How far past its deadline a call may go before it is cut: the layers below keep the deadline themselves.
const OVERTIME: Duration = Duration::from_secs(5);

/// How long the drain waits for the disk after its deadline.
pub const LAST_WRITES: Duration = Duration::from_millis(1500);

/// Records that one batch of a restart changes; each takes at most some 20 KiB.
const RESTORED_AT_ONCE: usize = 200;

/// Settled records kept at most, in number and bytes; the oldest go first.
const MAX_SETTLED: usize = 100_000;
const MAX_SETTLED_BYTES: u64 = 256 * 1024 * 1024;

/// Bytes of answers to live writes that are kept at most; they never push out a ticket.
const MAX_KEPT_BYTES: u64 = 64 * 1024 * 1024;

/// How long, and how many, writes are remembered of which nothing is on disk.
const VOLATILE: Duration = Duration::from_secs(60);
const MAX_VOLATILE: usize = 10_000;

/// Records that one batch of the sweep removes.
const REMOVED_AT_ONCE: usize = 50;

/// The longest reason of a person's that is kept.
const MAX_WORDS: usize = 1024;

/// Bytes of batches that wait for the disk at most, beyond those of replays.
const MAX_OVERDUE: u64 = 64 * 1024 * 1024;

/// Buffered bytes are counted in pieces of this many, so that a semaphore's permits are enough.
pub(super) const PIECE: u64 = 1024;

/// Gives the configuration of this moment.
pub type Config = Arc<dyn Fn() -> Arc<Snapshot> + Send + Sync>;

/// What the queue is made of.
pub struct Parts {
    /// Where records are kept.
    pub store: Arc<dyn Store>,
    /// The configuration.
    pub config: Config,
    /// Flexport, for replays.
    pub upstream: Upstream,
    /// Told of every outcome.
    pub settled: Arc<dyn Settled>,
    /// Changes with every transition of a breaker.
    pub changes: watch::Receiver<u64>,
    /// Wall time.
    pub clock: Clock,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// For watchers.
    pub bus: Bus,
    /// Owns the replayer and the sweeper.
    pub tasks: Tasks,
    /// Whether the store came back older than it was acknowledged to be: then nothing on it is sent before a person
    /// looked.
    pub is_rolled_back: bool,
}

/// The write queue.
pub struct Queue {
    book: Mutex<Book>,
    pub(super) journal: Journal,
    pub(super) config: Config,
    pub(super) upstream: Upstream,
    pub(super) settled: Arc<dyn Settled>,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) bus: Bus,
    /// Room for bodies in memory, in pieces.
    pub(super) buffer: Arc<Semaphore>,
    /// Room for batches that wait for the disk, in pieces.
    pub(super) overdue: Arc<Semaphore>,
    /// Tasks of single writes.
    pub(super) writes: TaskTracker,
    /// Wakes the replayer.
    pub(super) wake: Notify,
    /// No further record is taken up.
    pub(super) stop: CancellationToken,
    /// What is in flight is to be made durable now.
    pub(super) give_up: CancellationToken,
    /// The newest passed credential that got a 2xx, for partitions with records.
    pub(super) tokens: Mutex<HashMap<PartitionId, HeaderValue>>,
    started: Instant,
    sight: Mutex<Sight>,
    unsettled: AtomicUsize,
    gauges: [Gauge; State::ALL.len()],
}

/// Why the queue cannot start.
#[derive(Debug, thiserror::Error)]
#[error("the write queue cannot be read: {0}")]
pub struct OpenError(#[from] StoreError);

/// What a restart changes, in one batch.
#[derive(Clone, Default)]
struct Restored {
    batch: Batch,
    ids: Vec<WriteId>,
}

/// Flexport's answer, as far as it fits.
pub(super) struct Answer {
    pub(super) parts: response::Parts,
    pub(super) body: Read,
}

/// What is known of one attempt's way out.
#[derive(Default)]
pub(super) struct Trace {
    /// Bytes may have left.
    pub(super) sent: AtomicBool,
    /// A record in state `sending` was handed to the store.
    pub(super) intended: AtomicBool,
    /// That record is on disk.
    pub(super) durable: AtomicBool,
    /// It went on although that record is not known to be on disk.
    pub(super) undurable: AtomicBool,
}

// === impl Queue ===

impl Queue {
    /// Reads what is on disk, and starts replaying. Needs a tokio runtime; blocks on the disk while it reads.
    pub async fn open(parts: Parts) -> Result<Arc<Self>, OpenError> {
        let journal = Journal::new(parts.store);
        let reader = journal.clone();
        let loaded = tokio::task::spawn_blocking(move || reader.load()).await.unwrap_or_else(|error| {
            if error.is_panic() {
                std::panic::resume_unwind(error.into_panic())
            }
            Ok(super::journal::Loaded::default())
        })?;
        let room = (parts.config)().settings.queue.buffer_total.0 / PIECE;
        let room = usize::try_from(room).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let newest = loaded
            .records
            .iter()
            .flat_map(|record| [Some(record.accepted_at), record.progress.settled_at].into_iter().flatten());
        let sight = Sight::new(parts.clock.now(), newest.max());
        let is_jump = sight.is_jump() && loaded.records.iter().any(|record| record.progress.is_sendable());
        let gauges = State::ALL.map(|state| {
            parts.metrics.queue_depth.get_or_create(&StateLabels { state: state.as_str() }).clone()
        });
        let queue = Arc::new(Self {
            book: Mutex::new(Book::new()),
            journal,
            config: parts.config,
            upstream: parts.upstream,
            settled: parts.settled,
            clock: parts.clock,
            metrics: parts.metrics,
            bus: parts.bus,
            buffer: Arc::new(Semaphore::new(room)),
            overdue: Arc::new(Semaphore::new(usize::try_from(MAX_OVERDUE / PIECE).unwrap_or(0))),
            writes: TaskTracker::new(),
            wake: Notify::new(),
            stop: CancellationToken::new(),
            give_up: CancellationToken::new(),
            tokens: Mutex::default(),
            started: Instant::now(),
            sight: Mutex::new(sight),
            unsettled: AtomicUsize::new(0),
            gauges,
        });
        if is_jump {
            queue.alarm(
                "the wall clock is far ahead of what the store last saw: nothing is given up or forgotten for its age \
                 within the next hour; if Seawall was not off for so long, set the clock or stop Seawall"
                    .to_owned(),
            );
        }
        let unstored = queue.restore(loaded, parts.is_rolled_back).await;
        let (replayer, cancelled) = (queue.clone(), parts.tasks.cancelled());
        parts.tasks.spawn("queue-replayer", async move {
            let work = async {
                // What the restart means for the records comes first: until that is stored, a further start could
                // take them for what they were.
                for batch in unstored {
                    replayer.store_restored(batch, true).await;
                }
                replayer.replay(parts.changes).await;
            };
            tokio::select! {
                () = work => {}
                () = cancelled.cancelled() => {}
            }
        });
        let (sweeper, cancelled) = (queue.clone(), parts.tasks.cancelled());
        parts.tasks.spawn("queue-sweeper", async move {
            let mut every = tokio::time::interval(Duration::from_secs(5));
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = every.tick() => sweeper.sweep(sweeper.clock.now()).await,
                    () = cancelled.cancelled() => return,
                    () = sweeper.stop.cancelled() => return,
                }
            }
        });
        Ok(queue)
    }

    /// Takes in what was on disk. Gives what could not be stored of the changes that this makes.
    async fn restore(&self, loaded: super::journal::Loaded, is_rolled_back: bool) -> VecDeque<Restored> {
        let is_rolled_back = is_rolled_back || loaded.is_rolled_back;
        for (key, reason) in &loaded.unreadable {
            let id = <[u8; 16]>::try_from(key.as_slice()).map(WriteId::from_bytes);
            tracing::error!(write_id = ?id.ok(), reason, "a queued write cannot be read; it is left on disk");
        }
        if !loaded.unreadable.is_empty() {
            self.alarm(format!(
                "{} queued writes cannot be read (lost key or damage) and are not sent; they are left on disk. Start with \
                 the right key, or release them to let their orders go on",
                loaded.unreadable.len()
            ));
        }
        let now = self.clock.now();
        let config = (self.config)();
        let mut crashed = Vec::new();
        let mut passed = self.restore_unread(&loaded, is_rolled_back, now);
        let mut records = loaded.records;
        records.sort_by_key(|record| record.seq);
        for mut record in records {
            let input = match record.progress.state {
                State::Pending | State::Waiting | State::Sending if is_rolled_back => Some(Input::RollBack),
                // Others may have gone past it while it could not be read.
                State::Pending | State::Waiting | State::Sending
                    if loaded.passed.contains_key(&record.write_id) =>
                {
                    Some(Input::RollBack)
                }
                State::Sending => Some(Input::Crash),
                _ => None,
            };
            if loaded.passed.contains_key(&record.write_id) {
                passed.append(Journal::forget_passed(record.write_id));
            }
            let mut is_changed = false;
            if let Some(input) = input {
                let policy = policy_of(&config, &record);
                let rules = rules_of(&config, &record, &policy);
                if let Ok((progress, _)) = state::step(&record.progress, rules, input, now) {
                    is_changed = true;
                    let row = row_of(&record, &progress, now, "seawall", "restart", None);
                    record.progress = progress;
                    record.is_ticket = true;
                    record.audited += 1;
                    crashed.push((record.clone(), row, policy));
                }
            }
            let rest = record.next_at.map_or(Duration::ZERO, |at| clock::since(at, now));
            let due = rest.min(config.settings.queue.backoff_max.0);
            let id = record.write_id;
            self.with(|book| {
                book.restore(Arc::new(record), due);
                if is_changed {
                    book.change(id, |entry| entry.busy = true);
                }
            });
        }
        // Places above all that were ever drawn, also those of records that cannot be read at present.
        self.with(|book| book.draw_from(u64::try_from(now.as_microsecond()).unwrap_or(0)));
        if is_rolled_back && !crashed.is_empty() {
            self.alarm(format!(
                "the store came back older than it was: {} writes may have been sent since; none is sent before \
                 you released or resolved it",
                crashed.len()
            ));
        }
        // All of them wait for the disk: nobody changes or sends one before it is there as it is here.
        let mut batches = VecDeque::new();
        for part in crashed.chunks(RESTORED_AT_ONCE) {
            let mut restored = Restored::default();
            restored.batch.settling();
            for (record, row, _) in part {
                let with = With { audit: std::slice::from_ref(row), ..With::default() };
                restored.batch.append(Journal::batch(record, &with));
                restored.ids.push(record.write_id);
            }
            batches.push_back(restored);
        }
        if !passed.is_empty() {
            // Behind what is made of them.
            batches.push_back(Restored { batch: passed, ids: Vec::new() });
        }
        if is_rolled_back {
            let last = batches.pop_back().unwrap_or_default();
            let mut batch = last.batch;
            batch.settling().append(Journal::looked_at());
            batches.push_back(Restored { batch, ids: last.ids });
        }
        while let Some(restored) = batches.front() {
            if !self.store_restored(restored.clone(), false).await {
                break;
            }
            batches.pop_front();
        }
        for (record, _, policy) in crashed {
            self.tell(&record);
            self.tell_settled(&record, &policy, None);
        }
        batches
    }

    /// What cannot be read keeps its key, its twin, and its place unless others may go past it. Gives what is to be
    /// stored: which of them others may go past from now on.
    fn restore_unread(
        &self,
        loaded: &super::journal::Loaded,
        is_rolled_back: bool,
        now: jiff::Timestamp,
    ) -> Batch {
        let mut passed = Batch::new();
        passed.settling();
        let marked: std::collections::HashSet<_> = loaded.marks.iter().map(|mark| mark.write_id).collect();
        for (key, reason) in &loaded.unreadable {
            let Ok(id) = <[u8; 16]>::try_from(key.as_slice()).map(WriteId::from_bytes) else { continue };
            // Without a mark its order is not known; and of an older store nothing is sent by itself, also later.
            if (is_rolled_back || !marked.contains(&id)) && !loaded.passed.contains_key(&id) {
                passed.append(Journal::pass(id, reason.as_bytes()));
            }
        }
        self.with(|book| {
            for mark in &loaded.marks {
                let is_released = loaded.passed.get(&mark.write_id).copied().unwrap_or(false);
                book.restore_unread(mark.clone(), is_released, now);
            }
        });
        passed
    }

    /// Lets others go past a record that cannot be read, which is all that can be decided about it.
    async fn release_unread(
        &self,
        id: WriteId,
        input: Input,
        actor: &str,
        why: Option<String>,
    ) -> Result<Arc<Record>, ProxyError> {
        let conflict = |message: &str| ProxyError::Conflict { message: format!("the write {id} {message}") };
        if input != Input::Release {
            let message = "cannot be read: start with the right key, or release it to let its order go on";
            return Err(conflict(message));
        }
        if !self.with(|book| book.get(id).is_some_and(|entry| entry.record.progress.blocks)) {
            return Err(conflict("holds nothing up"));
        }
        let why = why.unwrap_or_default();
        let mut words = journal::RELEASED.to_vec();
        words.extend_from_slice(format!(" by {actor}: {why}").as_bytes());
        let batch = Journal::pass(id, &words);
        self.journal.commit(batch).await.map_err(|error| ProxyError::StoreFailed(error.to_string()))?;
        tracing::warn!(write_id = %id, actor, why, "a write that cannot be read was released");
        let released = self.with(|book| {
            book.change(id, |entry| {
                let mut record = (*entry.record).clone();
                record.progress.blocks = false;
                entry.record = Arc::new(record);
                entry.record.clone()
            })
        });
        released.ok_or_else(|| not_found(id))
    }

    /// Makes changes of the restart durable; then their records may be worked on.
    async fn store_restored(&self, restored: Restored, must: bool) -> bool {
        let is_stored = self.persist(restored.batch, must).await.is_ok();
        if is_stored {
            self.with(|book| {
                for id in restored.ids {
                    book.change(id, |entry| entry.busy = false);
                }
            });
        }
        is_stored
    }

    // --- the book ---

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the book; afterwards counts are published and the replayer looks for work.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Book) -> T) -> T {
        let mut book = self.lock();
        let done = work(&mut book);
        if std::mem::take(&mut book.has_changed) {
            for state in State::ALL {
                let depth = i64::try_from(book.depth(state)).unwrap_or(i64::MAX);
                self.gauges[state as usize].set(depth);
            }
            self.unsettled.store(book.unsettled, Ordering::Release);
            drop(book);
            self.wake.notify_one();
        }
        done
    }

    /// The span since the start.
    pub(super) fn moment(&self) -> Moment {
        self.started.elapsed()
    }

    /// The instant of a moment.
    pub(super) fn instant(&self, moment: Moment) -> Instant {
        self.started + moment
    }

    // --- the disk ---

    /// Makes a batch durable. `must`: tries until it is, or until the very end of the process; only what is too large
    /// is given up at once.
    pub(super) async fn persist(&self, batch: Batch, must: bool) -> Result<(), CommitError> {
        let mut wait = Duration::from_millis(200);
        loop {
            let is_last = self.give_up.is_cancelled();
            match self.journal.commit(batch.clone()).await {
                Ok(()) => return Ok(()),
                Err(error @ CommitError::TooLarge(_)) => {
                    tracing::error!(%error, "a step of a write can never be stored; this is a bug");
                    return Err(error);
                }
                Err(error) if !must || is_last => {
                    tracing::error!(%error, "a step of a write is not stored");
                    return Err(error);
                }
                Err(error) => tracing::warn!(%error, "a step of a write is not stored yet; trying again"),
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(Duration::from_secs(30)),
                () = self.give_up.cancelled() => {}
            }
        }
    }

    // --- one attempt ---

    /// Calls the upstream in a task of its own, so that a panic below is an outcome and not an end; reads the answer
    /// as far as it may be kept. At the end of the drain, or far beyond its deadline, the call is cut: then `trace`
    /// tells whether bytes may have left.
    pub(super) async fn attempt(
        &self,
        upstream: Upstream,
        request: Request<Body>,
        mut call: Call,
        trace: &Trace,
    ) -> Result<Answer, ProxyError> {
        let limit = call.deadline + OVERTIME;
        // A body that drips is never idle: it is the upstream's failure, and counts as one, unless it was our caller
        // who had no time.
        let whole_until = (!call.is_hurried).then(|| WholeUntil::new(call.deadline));
        call.whole_until.clone_from(&whole_until);
        // Such a caller is answered in time all the same.
        let hurry = call.is_hurried.then_some(call.deadline);
        let mut task = tokio::spawn(async move {
            let response = upstream.oneshot(UpstreamRequest { request, call }).await?;
            let answer = read_answer(response, hurry).await;
            if let (Ok(Answer { body: Read::Long(_), .. }), Some(whole_until)) = (&answer, whole_until) {
                // It goes to a caller, who may read as slowly as it wants.
                whole_until.lift();
            }
            answer
        });
        let (ended, unsent, cut) = tokio::select! {
            biased;
            ended = &mut task => (ended, ProxyError::Draining, ProxyError::Draining),
            () = self.give_up.cancelled() => {
                task.abort();
                (task.await, ProxyError::Draining, ProxyError::Cut("Seawall is shutting down".to_owned()))
            }
            () = tokio::time::sleep_until(limit) => {
                task.abort();
                (task.await, ProxyError::DeadlineBeforeSending, ProxyError::HeadTimeout)
            }
        };
        match ended {
            Ok(result) => result,
            Err(error) if error.is_panic() => {
                tracing::error!("a call of the upstream panicked; this is a bug");
                Err(ProxyError::Internal("a call of the upstream panicked".to_owned()))
            }
            Err(_) if trace.sent.load(Ordering::Acquire) => Err(cut),
            Err(_) => Err(unsent),
        }
    }

    // --- steps ---

    /// One step of a record that nobody else works on: in a task of its own, durable before it is true.
    pub(super) async fn transition(
        self: &Arc<Self>,
        id: WriteId,
        input: Input,
        actor: &str,
        what: &'static str,
        why: Option<String>,
    ) -> Result<Arc<Record>, ProxyError> {
        let (queue, actor) = (self.clone(), actor.to_owned());
        let step = async move { queue.step(id, input, &actor, what, why).await };
        self.writes
            .spawn(step)
            .await
            .unwrap_or_else(|_| Err(ProxyError::Internal("a step of a write panicked".to_owned())))
    }

    async fn step(
        self: &Arc<Self>,
        id: WriteId,
        input: Input,
        actor: &str,
        what: &'static str,
        why: Option<String>,
    ) -> Result<Arc<Record>, ProxyError> {
        let config = (self.config)();
        let now = self.clock.now();
        let conflict = |message: String| ProxyError::Conflict { message };
        let why = why.map(shortened);
        if self.is_unread(id) {
            return self.release_unread(id, input, actor, why).await;
        }
        let (mut record, row, effects, policy) = self.with(|book| {
            let entry = book.get(id).ok_or_else(|| not_found(id))?;
            if entry.live || entry.busy {
                return Err(conflict(format!("the write {id} is being sent or changed at this moment")));
            }
            if entry.is_answer_only() {
                let message =
                    format!("the write {id} was answered at once: there is nothing to decide about it");
                return Err(conflict(message));
            }
            let policy = policy_of(&config, &entry.record);
            let rules = rules_of(&config, &entry.record, &policy);
            let (progress, effects) = state::step(&entry.record.progress, rules, input, now)
                .map_err(|why| conflict(format!("the write {id} is {}: {why}", entry.state().as_str())))?;
            let mut record = (*entry.record).clone();
            let row = row_of(&record, &progress, now, actor, what, why);
            record.progress = progress;
            record.audited += 1;
            record.next_at = None;
            record.keep_until = keep_until(&config, &record, now);
            if matches!(input, Input::Retry | Input::Resolve(Verdict::NotApplied)) {
                // Its time begins anew: a person wants it sent.
                record.expires_at = clock::after(now, config.settings.queue.max_age.0);
            }
            // Who is not sendable meanwhile is not picked: `busy` says so, and the place stays.
            book.change(id, |entry| entry.busy = true);
            Ok((record, row, effects, policy))
        })?;
        let forgets_body = matches!(record.progress.state, State::Done | State::Cancelled);
        let mut batch = Batch::new();
        if record.progress.state.is_unsettled() && record.answer.is_some() {
            // It is open again: the old answer is not its answer any more.
            batch.append(Journal::forget_answer(&record));
            record.answer = None;
        }
        batch.settling();
        batch.append(Journal::batch(&record, &With { audit: &[row], forgets_body, ..With::default() }));
        let record = Arc::new(record);
        match self.journal.commit(batch.clone()).await {
            Ok(()) => {
                self.stepped(&record, effects, &policy);
                Ok(record)
            }
            Err(CommitError::Unanswered(why)) => {
                // It may be there already, or come there: nothing else may happen to the write until it has.
                let queue = self.clone();
                self.writes.spawn(async move {
                    if queue.persist(batch, true).await.is_ok() {
                        queue.stepped(&record, effects, &policy);
                    }
                });
                Err(ProxyError::StoreFailed(format!("{why}; the step is taken as soon as it does")))
            }
            Err(error) => {
                self.with(|book| book.change(id, |entry| entry.busy = false));
                Err(ProxyError::StoreFailed(error.to_string()))
            }
        }
    }

    /// A step is on disk: now it is true.
    fn stepped(&self, record: &Arc<Record>, effects: state::Effects, policy: &Arc<RoutePolicy>) {
        let now = self.moment();
        self.with(|book| {
            book.change(record.write_id, |entry| {
                entry.busy = false;
                entry.volatile = false;
                entry.record = record.clone();
                entry.due = now;
            });
        });
        self.tell(record);
        if effects.touches {
            self.tell_settled(record, policy, None);
        }
    }

    /// Expires, forgets, counts.
    pub(super) async fn sweep(self: &Arc<Self>, now: jiff::Timestamp) {
        let may_expire = self.may_expire(now);
        let (late, old, oldest) = self.with(|book| {
            let late: Vec<_> = book
                .iter()
                .filter(|entry| may_expire && !entry.live && !entry.busy && entry.record.expires_at <= now)
                .filter(|entry| matches!(entry.state(), State::Pending | State::Waiting))
                .map(|entry| entry.record.write_id)
                .collect();
            let by_age = may_expire.then_some(now);
            let mut old = old(book, book.settled(), book.settled_bytes, MAX_SETTLED_BYTES, by_age);
            old.extend(self::old(book, book.kept(), book.kept_bytes, MAX_KEPT_BYTES, by_age));
            (late, old, book.oldest())
        });
        let age = oldest.map_or(Duration::ZERO, |at| clock::since(now, at));
        self.metrics.queue_oldest_seconds.set(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        for id in late {
            // Refused where a replay took it up meanwhile: then it has not waited too long.
            let _ = self.transition(id, Input::Expire, "seawall", "expired", None).await;
        }
        self.take_back_owed().await;
        for part in old.chunks(REMOVED_AT_ONCE) {
            let mut batch = Batch::new();
            batch.settling();
            // `busy`: nobody has one of them sent again meanwhile.
            let mut taken = Vec::with_capacity(part.len());
            self.with(|book| {
                for id in part {
                    let is_free =
                        book.get(*id).is_some_and(|entry| !entry.busy && !entry.state().is_unsettled());
                    if is_free {
                        taken.extend(book.change(*id, |entry| {
                            entry.busy = true;
                            batch.append(Journal::removal(&entry.record));
                            *id
                        }));
                    }
                }
            });
            // On disk first: what is forgotten in memory only would come back at the next start.
            // Without an answer they may be gone from there: if they are not, the next start removes them.
            let removal = self.journal.commit(batch).await;
            let is_removed = matches!(removal, Ok(()) | Err(CommitError::Unanswered(_)));
            self.with(|book| {
                for id in taken {
                    if is_removed {
                        book.remove(id);
                    } else {
                        book.change(id, |entry| entry.busy = false);
                    }
                }
            });
            if !is_removed {
                break;
            }
        }
        self.forget_volatile(may_expire.then_some(now));
        let moment = self.moment();
        self.with(|book| book.pace.prune(moment));
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if !tokens.is_empty() {
            let used: std::collections::HashSet<_> = self.with(|book| {
                book.iter()
                    .filter(|entry| entry.state().is_unsettled())
                    .map(|entry| entry.record.partition)
                    .collect()
            });
            tokens.retain(|partition, _| used.contains(partition));
        }
    }

    /// Removes what was withdrawn and could not be removed by its own task. Only when that is on disk is it forgotten.
    async fn take_back_owed(&self) {
        let owed = self.with(|book| {
            let owed = book.iter().filter(|entry| entry.owed);
            owed.map(|entry| entry.record.clone()).take(1000).collect::<Vec<_>>()
        });
        for part in owed.chunks(REMOVED_AT_ONCE) {
            let mut batch = Batch::new();
            batch.settling();
            for record in part {
                batch.append(Journal::removal(record));
            }
            if self.journal.commit(batch).await.is_err() {
                return;
            }
            self.with(|book| part.iter().for_each(|record| book.taken_back(record.write_id)));
        }
    }

    /// Whether what is too old by the wall clock may be given up or forgotten: not while that has jumped.
    pub(super) fn may_expire(&self, now: jiff::Timestamp) -> bool {
        let moment = self.moment();
        let look = self.sight.lock().unwrap_or_else(PoisonError::into_inner).look(now, moment);
        if let Some(jump) = look.jump {
            self.alarm(format!(
                "the wall clock jumped forward by {} s: nothing is given up or forgotten for its age within the next hour; set the \
                 clock, or stop Seawall",
                jump.as_secs()
            ));
        }
        look.may_expire
    }

    /// Forgets writes of which nothing is on disk: what the caller was told is all there is to them. For their age only
    /// where it is told what time it is.
    fn forget_volatile(&self, now: Option<jiff::Timestamp>) {
        self.with(|book| {
            let mut found: Vec<_> = book
                .iter()
                .filter(|entry| entry.volatile && !entry.live && !entry.busy)
                .map(|entry| (entry.record.accepted_at, entry.record.write_id, entry.is_answer_only()))
                .collect();
            found.sort_unstable();
            let excess = found.len().saturating_sub(MAX_VOLATILE);
            for (index, (at, id, is_answer)) in found.into_iter().enumerate() {
                // An unknown outcome is remembered as long as there is room: its repeat must not be sent.
                let is_old = now.is_some_and(|now| clock::since(now, at) >= VOLATILE);
                let is_over = is_old || book.kept_bytes > MAX_KEPT_BYTES;
                if index < excess || (is_answer && is_over) {
                    book.remove(id);
                }
            }
        });
    }

    // --- telling ---

    /// Tells watchers where a write is, and counts it when it is settled.
    pub(super) fn tell(&self, record: &Record) {
        let state = record.progress.state;
        if !state.is_unsettled() || state == State::Unknown {
            self.metrics.queue_settled.get_or_create(&StateLabels { state: state.as_str() }).inc();
        }
        let reason = record.progress.reason;
        if record.is_ticket
            && matches!(state, State::Dead | State::Expired)
            && reason != Some(Reason::Operator)
        {
            self.alarm(format!(
                "{} ({}) is {}: it was acknowledged and did not take effect for certain",
                record.route,
                record.write_id,
                state.as_str()
            ));
        }
        self.bus.tell(Kind::Write {
            write_id: record.write_id.to_string(),
            state: state.as_str().to_owned(),
            route: record.route.to_string(),
        });
        tracing::info!(
            write_id = %record.write_id,
            state = state.as_str(),
            route = &*record.route,
            attempts = record.progress.attempts,
            reason = record.progress.reason.map_or("", Reason::as_str),
            status = record.progress.status,
            "write"
        );
    }

    /// Tells who holds copies that this write touched them.
    pub(super) fn tell_settled(&self, record: &Record, route: &Arc<RoutePolicy>, answer: Option<&HeaderMap>) {
        let also = answer.into_iter().flat_map(|headers| {
            [header::LOCATION, header::CONTENT_LOCATION]
                .into_iter()
                .filter_map(|name| headers.get(name)?.to_str().ok())
                .filter_map(path_in)
        });
        self.settled.settled(&SettledWrite {
            partition: record.partition,
            path: record.path().to_owned(),
            route: route.clone(),
            also: also.collect(),
        });
    }

    /// Tells that a person is needed.
    pub(super) fn alarm(&self, message: String) {
        tracing::error!(message, "the write queue needs a person");
        self.bus.tell(Kind::Alarm { what: "queue".to_owned(), message });
    }

    // --- the end ---

    /// Takes up no further record; lets what is in flight end until `deadline`, and then makes it durable. Over early
    /// when nothing is in flight: what callers still bring is served like any other until [`Queue::finish`].
    pub async fn drain(&self, deadline: Instant) {
        self.stop.cancel();
        self.writes.close();
        if tokio::time::timeout_at(deadline, self.writes.wait()).await.is_err() {
            self.finish().await;
        }
    }

    /// Makes durable what is in flight: afterwards every write is on disk and every caller has its answer. Once; a
    /// drain that reached its deadline has done it.
    pub async fn finish(&self) {
        if self.give_up.is_cancelled() {
            return;
        }
        self.give_up.cancel();
        if tokio::time::timeout(LAST_WRITES, self.writes.wait()).await.is_err() {
            tracing::error!("the store took too long: some writes are not durable");
        }
    }

    /// How many bytes of bodies may still be taken into memory.
    pub fn free_buffer(&self) -> u64 {
        self.buffer.available_permits() as u64 * PIECE
    }
}

impl PendingWrites for Queue {
    fn pending(&self, partition: PartitionId, path: &str) -> Option<Pending> {
        if self.unsettled.load(Ordering::Acquire) == 0 {
            return None;
        }
        let (count, since) = self.lock().touching(partition, path)?;
        Some(Pending { count, oldest: clock::since(self.clock.now(), since) })
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("unsettled", &self.unsettled.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

/// The answer with its body, as far as it may be kept. One that ends too early is no answer, where it would be final.
async fn read_answer(response: http::Response<Body>, until: Option<Instant>) -> Result<Answer, ProxyError> {
    let (parts, body) = response.into_parts();
    let read = buffer::read(body, MAX_ANSWER as u64, |_| true);
    let read = match until {
        Some(until) => tokio::time::timeout_at(until, read).await.unwrap_or(Err(BodyError::Stopped)),
        None => read.await,
    };
    match read {
        Ok(body) => Ok(Answer { parts, body }),
        Err(error) => {
            match delivery::of_answer(parts.status, parts.headers.contains_key(header::RETRY_AFTER)) {
                delivery::Delivery::Answered(_) | delivery::Delivery::NotSent(_) => {
                    Err(ProxyError::Cut(error.to_string()))
                }
                // Its status says all that counts.
                delivery::Delivery::Refused(_) | delivery::Delivery::Ambiguous(_) => {
                    Ok(Answer { parts, body: Read::Whole(Bytes::new()) })
                }
            }
        }
    }
}

/// The policy that the configuration has now for a record's request.
pub(super) fn policy_of(config: &Snapshot, record: &Record) -> Arc<RoutePolicy> {
    let method = record.method.parse().unwrap_or(Method::POST);
    config.routes.find(&method, record.path()).clone()
}

/// The rules of a record: its class as accepted, the rest as configured now.
pub(super) fn rules_of(config: &Snapshot, record: &Record, policy: &RoutePolicy) -> Rules {
    Rules {
        replayable: record.class.is_replayable(),
        blocks_behind_unknown: policy.queue.blocks_behind_unknown,
        blocks_behind_dead: policy.queue.blocks_behind_dead,
        max_server_errors: config.settings.queue.max_attempts,
    }
}

/// Those that need not be kept any more, of some that are settled, oldest first. For their age only where it is told
/// what time it is.
fn old(
    book: &Book,
    ids: impl ExactSizeIterator<Item = WriteId>,
    mut bytes: u64,
    max_bytes: u64,
    now: Option<jiff::Timestamp>,
) -> Vec<WriteId> {
    let mut count = ids.len();
    let mut old = Vec::new();
    for id in ids {
        let Some(entry) = book.get(id) else { continue };
        let is_over = count > MAX_SETTLED || bytes > max_bytes;
        let is_old = entry.record.keep_until.zip(now).is_some_and(|(until, now)| until <= now);
        if entry.busy || entry.unread || entry.record.progress.blocks || !(is_old || is_over) {
            continue;
        }
        count -= 1;
        bytes = bytes.saturating_sub(entry.record.size());
        if entry.volatile {
            continue;
        }
        old.push(id);
        if old.len() == 1000 {
            break;
        }
    }
    old
}

/// Until when a settled record is kept.
pub(super) fn keep_until(
    config: &Snapshot,
    record: &Record,
    now: jiff::Timestamp,
) -> Option<jiff::Timestamp> {
    let settings = &config.settings.queue;
    let span = match record.progress.state {
        State::Done if record.is_ticket => settings.done_retention,
        _ if !record.is_ticket => settings.answer_retention,
        State::Dead | State::Expired | State::Cancelled => settings.dead_retention,
        _ => return None,
    };
    Some(clock::after(now, span.0))
}

/// The audit row of a step.
pub(super) fn row_of(
    before: &Record,
    after: &state::Progress,
    now: jiff::Timestamp,
    actor: &str,
    what: &str,
    why: Option<String>,
) -> AuditRow {
    AuditRow {
        at: now,
        actor: actor.to_owned(),
        what: what.to_owned(),
        from: Some(before.progress.state),
        to: after.state,
        reason: why.or_else(|| after.reason.map(|reason| reason.as_str().to_owned())),
        status: after.status,
    }
}

/// A person's words, as far as an audit row holds them.
fn shortened(mut text: String) -> String {
    if text.len() > MAX_WORDS {
        let end = (0..=MAX_WORDS).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A ticket that does not exist, or is not the asker's.
pub(super) fn not_found(id: WriteId) -> ProxyError {
    ProxyError::NotFound(format!("there is no write {id}"))
}

/// The path in a URL or a reference to a path.
fn path_in(url: &str) -> Option<String> {
    let rest = match url.split_once("://") {
        Some((_, rest)) => &rest[rest.find('/')?..],
        None => url,
    };
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    path.starts_with('/').then(|| path.to_owned())
}
