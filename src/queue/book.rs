//! All writes in memory, with every index over them.
//!
//! The store holds the truth; this is what the hot path asks. There is one way to change an entry, [`Book::change`],
//! and it keeps all indexes true: places in their orders, heads that may be replayed, keys and twins, counts, what
//! reads ask for. The owner holds one lock around the book, never across an await.

use super::dedupe::{self, Index};
use super::mark::Mark;
use super::order::{Key, Lanes, Turn};
use super::pace::{Bucket, Canary, Moment, Pace, Payer};
use super::record::{Digest, Reason, Record};
use super::state::State;
use crate::ids::{PartitionId, WriteId};
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// Withdrawn writes that are kept at most.
const MAX_OWED: usize = 10_000;

/// A write in memory.
pub(super) struct Entry {
    /// As it is, or is about to be on disk.
    pub(super) record: Arc<Record>,
    /// The task of its first attempt owns it, and a caller waits.
    pub(super) live: bool,
    /// A step of it is on its way to the disk, or it is being sent: nobody else may change it.
    pub(super) busy: bool,
    /// It has a ticket that is not on disk: nobody is told of it, and a repeat waits for what becomes of it.
    pub(super) unstored: bool,
    /// Nothing of it is on disk, nor will be: it is forgotten before long.
    pub(super) volatile: bool,
    /// Its caller was told that it is not kept, and its removal is not on disk: `busy` and `unstored` too.
    pub(super) withdrawn: bool,
    /// It is withdrawn, and no task of its own removes it: the sweeper does.
    pub(super) owed: bool,
    /// It stands for a record that cannot be read.
    pub(super) unread: bool,
    /// When it may be sent.
    pub(super) due: Moment,
    /// The answer's body, until it is on disk.
    pub(super) answer: Option<Bytes>,
    /// The successes of its group at its last 5xx.
    pub(super) mark: Option<u64>,
    watch: Option<watch::Sender<()>>,
}

/// All of them.
pub(super) struct Book {
    entries: HashMap<WriteId, Entry>,
    pub(super) lanes: Lanes<Arc<Notify>>,
    pub(super) index: Index,
    pub(super) pace: Pace,
    settled: BTreeSet<(Timestamp, WriteId)>,
    /// Answers of live writes, which nobody has a ticket for.
    kept: BTreeSet<(Timestamp, WriteId)>,
    touched: HashMap<(PartitionId, String), BTreeSet<(Timestamp, WriteId)>>,
    depth: [usize; State::ALL.len()],
    pub(super) unsettled: usize,
    pub(super) unsettled_bytes: u64,
    pub(super) settled_bytes: u64,
    pub(super) kept_bytes: u64,
    /// How many are withdrawn.
    pub(super) owed: usize,
    /// What is known of those that cannot be read.
    marks: HashMap<WriteId, Mark>,
    /// Those of them whose order nobody has named yet, by its digest.
    unplaced: HashMap<Digest, Vec<WriteId>>,
    next_seq: u64,
    /// Whether something changed since the owner last looked.
    pub(super) has_changed: bool,
}

// === impl Entry ===

impl Entry {
    pub(super) fn new(record: Arc<Record>, live: bool) -> Self {
        Self {
            record,
            live,
            busy: false,
            unstored: false,
            volatile: false,
            withdrawn: false,
            owed: false,
            unread: false,
            due: Moment::ZERO,
            answer: None,
            mark: None,
            watch: None,
        }
    }

    /// The state, for short.
    pub(super) fn state(&self) -> State {
        self.record.progress.state
    }

    /// Whether it is only the answer of a live write, kept for its repeats: nobody has a ticket for it.
    pub(super) fn is_answer_only(&self) -> bool {
        !self.live && !self.record.is_ticket && !self.state().is_unsettled()
    }

    /// What was on its way to the disk is there.
    pub(super) fn stored(&mut self) {
        self.busy = false;
        self.unstored = false;
    }

    /// Wakes with each change.
    pub(super) fn watch(&mut self) -> watch::Receiver<()> {
        self.watch.get_or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    /// As far as repeats are concerned.
    pub(super) fn earlier(&self, now: Timestamp) -> dedupe::Earlier {
        dedupe::Earlier {
            state: self.state(),
            is_live: self.live || self.unstored,
            is_withdrawn: self.withdrawn,
            is_unread: self.unread,
            has_answer: self.record.answer.is_some(),
            maybe_applied: self.record.progress.maybe_applied,
            settled_for: self.record.progress.settled_at.map(|at| crate::clock::since(now, at)),
        }
    }
}

// === impl Book ===

impl Book {
    pub(super) fn new() -> Self {
        Self {
            entries: HashMap::new(),
            lanes: Lanes::new(),
            index: Index::default(),
            pace: Pace::default(),
            settled: BTreeSet::new(),
            kept: BTreeSet::new(),
            touched: HashMap::new(),
            depth: [0; State::ALL.len()],
            unsettled: 0,
            unsettled_bytes: 0,
            settled_bytes: 0,
            kept_bytes: 0,
            owed: 0,
            marks: HashMap::new(),
            unplaced: HashMap::new(),
            next_seq: 1,
            has_changed: false,
        }
    }

    /// The next place. Drawn under the lock, together with the joining.
    pub(super) fn draw(&mut self) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        seq
    }

    /// Places are drawn from here on, unless they are beyond it already.
    pub(super) fn draw_from(&mut self, first: u64) {
        self.next_seq = self.next_seq.max(first);
    }

    pub(super) fn get(&self, id: WriteId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    pub(super) fn watch(&mut self, id: WriteId) -> Option<watch::Receiver<()>> {
        self.entries.get_mut(&id).map(Entry::watch)
    }

    /// Takes a live write in, at the end of its order.
    pub(super) fn join(&mut self, record: Arc<Record>, waker: Arc<Notify>) {
        let key = order_key(&record);
        self.place_unread(&key);
        self.lanes.join(key, record.seq, record.write_id, waker);
        self.insert(Entry::new(record, true));
    }

    /// A live place without an entry.
    pub(super) fn join_seat(&mut self, key: Key, seq: u64, waker: Arc<Notify>) {
        self.place_unread(&key);
        self.lanes.join(key, seq, WriteId::random(), waker);
    }

    /// Takes in what stands for a record that cannot be read. Before those that can: these name its order.
    pub(super) fn restore_unread(&mut self, mark: Mark, is_released: bool, now: Timestamp) {
        self.next_seq = self.next_seq.max(mark.seq + 1);
        let mut entry = Entry::new(Arc::new(mark.stand_in(is_released, now)), false);
        entry.unread = true;
        self.unplaced.entry(mark.order).or_default().push(mark.write_id);
        self.marks.insert(mark.write_id, mark);
        self.insert(entry);
    }

    /// The name of an order is known: those of it that cannot be read take their places in it.
    fn place_unread(&mut self, key: &Key) {
        if self.unplaced.is_empty() {
            return;
        }
        for id in self.unplaced.remove(&dedupe::order_digest(key.0, &key.1)).unwrap_or_default() {
            let Some(entry) = self.entries.get(&id) else { continue };
            let before = order_key(&entry.record);
            let mut record = (*entry.record).clone();
            let seq = record.seq;
            record.order = key.1.clone();
            self.change(id, |entry| entry.record = Arc::new(record));
            wake(self.lanes.leave(&before, seq));
        }
    }

    /// The oldest place of any order of a partition whose name begins so, or any that cannot be read and may be one.
    pub(super) fn oldest_in(&self, partition: PartitionId, prefix: &str) -> Option<WriteId> {
        let unread = || {
            let mut ids = self.unplaced.values().flatten().filter_map(|id| self.entries.get(id));
            let found = ids.find(|entry| entry.record.partition == partition && entry.record.progress.blocks);
            found.map(|entry| entry.record.write_id)
        };
        self.lanes.oldest_in(partition, prefix).or_else(unread)
    }

    /// Takes a record in that was on disk.
    pub(super) fn restore(&mut self, record: Arc<Record>, due: Moment) {
        self.next_seq = self.next_seq.max(record.seq + 1);
        self.place_unread(&order_key(&record));
        let mut entry = Entry::new(record, false);
        entry.due = due;
        self.insert(entry);
    }

    fn insert(&mut self, entry: Entry) {
        let record = entry.record.clone();
        let twin = record.class.creates().then_some(record.twin);
        let key = self.key_digest(&record);
        // The youngest has the key, in whatever order they come.
        let is_younger =
            |id: &WriteId| self.entries.get(id).is_some_and(|entry| entry.record.seq > record.seq);
        let younger = self.index.by_key(&key).filter(is_younger);
        self.index.insert(record.write_id, key, twin);
        if let Some(id) = younger {
            self.index.insert(id, key, None);
        }
        self.count(&entry);
        self.entries.insert(record.write_id, entry);
        self.place(&record);
    }

    /// Changes an entry and keeps every index true. `None` when it is not there.
    pub(super) fn change<T>(&mut self, id: WriteId, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut entry = self.entries.remove(&id)?;
        self.uncount(&entry);
        let was_live = entry.live;
        let done = change(&mut entry);
        self.count(&entry);
        let record = entry.record.clone();
        if let Some(watch) = &entry.watch {
            watch.send_replace(());
        }
        let ends_live = was_live && !entry.live;
        self.entries.insert(id, entry);
        self.place(&record);
        if ends_live {
            let next = self.lanes.release(&order_key(&record), record.seq);
            wake(next);
            self.refresh(&order_key(&record));
        }
        Some(done)
    }

    /// Forgets an entry.
    pub(super) fn remove(&mut self, id: WriteId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.uncount(&entry);
        let record = entry.record.clone();
        self.index.remove(id, self.key_digest(&record), record.twin);
        self.marks.remove(&id);
        self.pace.disarm(id);
        let key = order_key(&record);
        wake(self.lanes.leave(&key, record.seq));
        self.refresh(&key);
        if let Some(watch) = &entry.watch {
            watch.send_replace(());
        }
        Some(entry)
    }

    /// The removal of a withdrawn one is on disk.
    pub(super) fn taken_back(&mut self, id: WriteId) {
        if self.get(id).is_some_and(|entry| entry.withdrawn) {
            self.owed = self.owed.saturating_sub(1);
            self.remove(id);
        }
    }

    /// The removal of a withdrawn one is not on disk, and its task goes: the sweeper tries on.
    pub(super) fn owe(&mut self, id: WriteId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.owed = entry.withdrawn;
        }
    }

    /// Whether so many are withdrawn that no further one may have to be.
    pub(super) fn has_many_owed(&self) -> bool {
        self.owed >= MAX_OWED
    }

    /// Whose turn it is, for a live place.
    pub(super) fn turn(&mut self, key: &Key, seq: u64) -> Turn {
        self.lanes.turn(key, seq)
    }

    /// Leaves a live place that has no entry.
    pub(super) fn leave(&mut self, key: &Key, seq: u64) {
        wake(self.lanes.leave(key, seq));
        self.refresh(key);
    }

    /// Takes the next record that is to be replayed: it is busy, and its place in flight.
    pub(super) fn pick(&mut self, now: Moment, max_parallel: usize) -> Option<Arc<Record>> {
        loop {
            let (id, group) = self.pace.pick(now, max_parallel)?;
            let Some(entry) = self.entries.get_mut(&id) else {
                self.pace.ended(&group);
                continue;
            };
            let record = entry.record.clone();
            let is_free = !entry.live && !entry.busy && record.progress.is_sendable();
            if is_free && self.lanes.claim(&order_key(&record), record.seq) {
                entry.busy = true;
                return Some(record);
            }
            self.pace.ended(&group);
        }
    }

    /// Secrets and rights may have changed: what was not accepted is tried at once.
    pub(super) fn forgive(&mut self, now: Moment) {
        self.pace.forgive(now);
        let resting: Vec<_> = self
            .entries
            .values()
            .filter(|entry| !entry.live && !entry.busy && entry.due > now)
            .filter(|entry| entry.record.progress.reason == Some(Reason::Forbidden))
            .filter(|entry| entry.record.progress.is_sendable())
            .map(|entry| entry.record.write_id)
            .collect();
        for id in resting {
            self.change(id, |entry| entry.due = now);
        }
    }

    /// A replay is over: the place is free again.
    pub(super) fn end_replay(&mut self, record: &Record) {
        self.pace.ended(&record.group);
        let key = order_key(record);
        wake(self.lanes.release(&key, record.seq));
        self.refresh(&key);
        self.has_changed = true;
    }

    /// How many writes are in a state.
    pub(super) fn depth(&self, state: State) -> usize {
        self.depth[state as usize]
    }

    /// When the oldest unsettled one came.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.touched.values().filter_map(|set| set.first()).map(|(at, _)| *at).min()
    }

    /// Unsettled writes that touch a path: how many, and when the oldest came.
    pub(super) fn touching(&self, partition: PartitionId, path: &str) -> Option<(usize, Timestamp)> {
        let set = self.touched.get(&(partition, path.trim_matches('/').to_owned()))?;
        set.first().map(|(at, _)| (set.len(), *at))
    }

    /// The settled tickets, oldest first.
    pub(super) fn settled(&self) -> impl ExactSizeIterator<Item = WriteId> {
        self.settled.iter().map(|(_, id)| *id)
    }

    /// The kept answers of live writes, oldest first.
    pub(super) fn kept(&self) -> impl ExactSizeIterator<Item = WriteId> {
        self.kept.iter().map(|(_, id)| *id)
    }

    /// Puts the record into its order, or takes it out.
    fn place(&mut self, record: &Arc<Record>) {
        let Some(entry) = self.entries.get(&record.write_id) else { return };
        if entry.live {
            return;
        }
        let key = order_key(record);
        if record.progress.has_place() {
            let blocks = record.progress.blocks;
            for waker in self.lanes.put_record(key.clone(), record.seq, record.write_id, blocks) {
                waker.notify_one();
            }
        } else {
            wake(self.lanes.leave(&key, record.seq));
            self.pace.disarm(record.write_id);
        }
        self.refresh(&key);
    }

    /// Arms the head of an order, when it is a record that may be sent.
    fn refresh(&mut self, key: &Key) {
        let Some((seq, id)) = self.lanes.head(key) else { return };
        let Some(entry) = self.entries.get(&id) else { return };
        if !entry.live && !entry.busy && entry.record.progress.is_sendable() {
            let record = &entry.record;
            self.pace.arm(id, seq, bucket(record), entry.due, Canary::of(record));
            self.has_changed = true;
        } else {
            self.pace.disarm(id);
        }
    }

    fn key_digest(&self, record: &Record) -> Digest {
        // Of one that cannot be read the key is not known.
        match self.marks.get(&record.write_id) {
            Some(mark) => mark.key,
            None => dedupe::key_digest(record.partition, record.owner, &record.key),
        }
    }

    fn count(&mut self, entry: &Entry) {
        if entry.live {
            return;
        }
        self.has_changed = true;
        let record = &entry.record;
        if entry.is_answer_only() {
            self.kept_bytes += record.size();
            self.kept.insert((settled_at(record), record.write_id));
            return;
        }
        self.depth[entry.state() as usize] += 1;
        if entry.state().is_unsettled() {
            self.unsettled += 1;
            self.unsettled_bytes += record.size();
            for path in touched(record) {
                let set = self.touched.entry((record.partition, path)).or_default();
                set.insert((record.accepted_at, record.write_id));
            }
        } else {
            self.settled_bytes += record.size();
            self.settled.insert((settled_at(record), record.write_id));
        }
    }

    fn uncount(&mut self, entry: &Entry) {
        if entry.live {
            return;
        }
        self.has_changed = true;
        let record = &entry.record;
        if entry.is_answer_only() {
            self.kept_bytes -= record.size();
            self.kept.remove(&(settled_at(record), record.write_id));
            return;
        }
        self.depth[entry.state() as usize] -= 1;
        if entry.state().is_unsettled() {
            self.unsettled -= 1;
            self.unsettled_bytes -= record.size();
            for path in touched(record) {
                let key = (record.partition, path);
                if let Some(set) = self.touched.get_mut(&key) {
                    set.remove(&(record.accepted_at, record.write_id));
                    if set.is_empty() {
                        self.touched.remove(&key);
                    }
                }
            }
        } else {
            self.settled_bytes -= record.size();
            self.settled.remove(&(settled_at(record), record.write_id));
        }
    }
}

/// The order that a record keeps.
pub(super) fn order_key(record: &Record) -> Key {
    (record.partition, record.order.clone())
}

/// What it pauses with.
pub(super) fn bucket(record: &Record) -> Bucket {
    (Payer::of(&record.credential, record.partition), record.group.clone())
}

fn settled_at(record: &Record) -> Timestamp {
    record.progress.settled_at.unwrap_or(record.accepted_at)
}

/// The paths whose reads show that this write is not settled: its own, and its parent's.
fn touched(record: &Record) -> impl Iterator<Item = String> {
    let own = record.path().trim_matches('/').to_owned();
    let parent =
        (*record.order != *own && !record.order.starts_with("write/")).then(|| record.order.to_string());
    std::iter::once(own).chain(parent)
}

fn wake(waker: Option<Arc<Notify>>) {
    if let Some(waker) = waker {
        waker.notify_one();
    }
}
