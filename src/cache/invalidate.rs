//! Which copies are out of date, without looking for them.
//!
//! A write names a path, and tags; copies of that path (with any query) and of those tags must not be taken for
//! current any more. Instead of an index from paths to keys there is one counter: an invalidation takes the next
//! number and leaves it as a *mark* under its path and its tags, and a copy remembers the counter's value from when
//! its fill **began**. A copy is out of date when a mark of its path or tag is higher than that. So nothing is
//! scanned, a fill that began before a write can never pass for newer than the write, and the question "may this
//! request join that fill?" is the same comparison.
//!
//! Bounded: a shard that is full forgets all its marks and raises the *floor*, below which every copy counts as out
//! of date, and the one below which a page holds nothing that is not deleted. What is forgotten is therefore never an
//! invalidation, only precision. Marks are named by a keyed 64 bit
//! hash: two names that share one are invalidated together, which costs a revalidation and nothing else.
//!
//! Invalidation is soft: the copy must be revalidated, and is still there for an outage.
//!
//! Marks are recorded (see `ledger`), and copies on disk remember their moment too, so the numbers go on over a
//! restart: they start at the microseconds of the wall clock, which no process reaches by counting, and never below
//! what is recorded. Where the record may lack something, everything older counts as out of date.

use super::EVERYBODY;
use super::key::Places;
use super::ledger::{Fact, Ledger};
use crate::ids::PartitionId;
use foldhash::quality::FixedState;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const SHARDS: usize = 16;
const MARKS_PER_SHARD: usize = 4096;

/// The names by which a copy can be invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    path: u64,
    tag: u64,
}

/// A moment in the order of invalidations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

/// All marks.
pub(crate) struct Marks {
    sequence: AtomicU64,
    /// Where this process began to count.
    start: AtomicU64,
    floor: AtomicU64,
    /// The same for what was deleted by hand.
    purged_floor: AtomicU64,
    /// The same for fills under way.
    cut: AtomicU64,
    shards: [Mutex<HashMap<u64, u64, Places>>; SHARDS],
    hasher: FixedState,
    ledger: Option<Ledger>,
}

const PATH: u8 = 0;
const TAG: u8 = 1;
const PURGED: u8 = 2;

/// One trailing slash is the same resource: Flexport itself links to `/invoices/?per=1`.
pub(crate) fn resource(path: &str) -> &str {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    path.strip_suffix('/').unwrap_or(path)
}

// === impl Moment ===

impl Moment {
    /// As it is kept on disk.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// From what was kept on disk.
    pub(crate) fn of(number: u64) -> Self {
        Self(number)
    }
}

// === impl Marks ===

impl Marks {
    /// No marks. The seed is secret, and always the same in one installation.
    pub(crate) fn new(seed: [u64; 2], ledger: Option<Ledger>) -> Self {
        Self {
            sequence: AtomicU64::new(1),
            start: AtomicU64::new(1),
            floor: AtomicU64::new(0),
            purged_floor: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: FixedState::with_seed(seed[0] ^ seed[1].rotate_left(32)),
            ledger,
        }
    }

    /// What an earlier process recorded. `now`: the wall clock, in microseconds.
    pub(crate) fn restore(&self, facts: &[Fact], is_intact: bool, now: u64) {
        let mut highest = 0;
        for fact in facts {
            match *fact {
                Fact::Mark { name, number } => {
                    highest = highest.max(number);
                    let mut shard = self.shard(name).lock().expect("no code panics with this lock held");
                    let held = shard.entry(name).or_default();
                    *held = number.max(*held);
                }
                Fact::Floor { number } => {
                    highest = highest.max(number);
                    self.floor.fetch_max(number, Ordering::AcqRel);
                }
                Fact::PurgedFloor { number } => {
                    highest = highest.max(number);
                    self.purged_floor.fetch_max(number, Ordering::AcqRel);
                }
                Fact::Refused { .. } | Fact::Cleared { .. } | Fact::Succeeded { .. } => {}
            }
        }
        // The last marks before a crash may not be recorded: their numbers must not come again.
        let start = now.max(highest.saturating_add(1 << 20));
        self.sequence.store(start, Ordering::Release);
        self.start.store(start, Ordering::Release);
        if !is_intact {
            self.floor.store(start, Ordering::Release);
            self.purged_floor.store(start, Ordering::Release);
        }
    }

    /// All that is to be recorded.
    pub(crate) fn facts(&self) -> Vec<Fact> {
        let mut facts = vec![
            Fact::Floor { number: self.floor.load(Ordering::Acquire) },
            Fact::PurgedFloor { number: self.purged_floor.load(Ordering::Acquire) },
        ];
        for shard in &self.shards {
            let shard = shard.lock().expect("no code panics with this lock held");
            facts.extend(shard.iter().map(|(name, number)| Fact::Mark { name: *name, number: *number }));
        }
        facts
    }

    /// Should a later version of the hash give other names, recorded marks say nothing any more, and a copy from disk
    /// is served in an outage without the word that a write came after it.
    fn name(&self, partition: PartitionId, kind: u8, text: &str) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(&partition.0);
        hasher.write(&[kind]);
        hasher.write(text.as_bytes());
        hasher.finish()
    }

    fn note(&self, fact: Fact) -> Option<u64> {
        Some(self.ledger.as_ref()?.note(fact))
    }

    /// The names of a copy.
    pub(crate) fn names(&self, partition: PartitionId, path: &str, tag: &str) -> Names {
        Names { path: self.name(partition, PATH, resource(path)), tag: self.name(partition, TAG, tag) }
    }

    /// Now. Taken by a fill before it asks upstream.
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.sequence.load(Ordering::Acquire))
    }

    /// A moment of another process. Where the wall clock went back since, it may lie ahead of all that are counted
    /// here: then it is taken for the start, so that what comes after that counts.
    pub(crate) fn foreign(&self, moment: Moment) -> Moment {
        moment.min(Moment(self.start.load(Ordering::Acquire)))
    }

    /// Whether something with these names, begun at that moment, is out of date.
    pub(crate) fn is_outdated(&self, names: Names, began: Moment) -> bool {
        // Nearly always nothing was invalidated since, or nothing at all.
        if self.moment() <= began {
            return false;
        }
        began.0 < self.floor.load(Ordering::Acquire)
            || self.mark(names.path) > began.0
            || self.mark(names.tag) > began.0
    }

    /// Whether a fill with these names, begun at that moment, may neither be joined nor kept.
    pub(crate) fn is_cut_off(&self, names: Names, began: Moment) -> bool {
        began.0 < self.cut.load(Ordering::Acquire) || self.is_outdated(names, began)
    }

    /// All fills under way are cut off: nobody knows yet what they bring, so whoever purges by what copies are, and not
    /// by their names, means them too.
    pub(crate) fn cut(&self) {
        let next = self.sequence.fetch_add(1, Ordering::AcqRel) + 1;
        self.cut.fetch_max(next, Ordering::AcqRel);
    }

    /// Everything of this path is out of date from now on.
    pub(crate) fn path(&self, partition: PartitionId, path: &str) {
        self.set(self.name(partition, PATH, resource(path)));
    }

    /// Everything with this tag is out of date from now on.
    pub(crate) fn tag(&self, partition: PartitionId, tag: &str) {
        self.set(self.name(partition, TAG, tag));
    }

    /// A path was deleted by hand, of one partition or of all: what else still holds it, from before, is not served for
    /// it. Tells whether that outlives the process.
    pub(crate) async fn purged(&self, partition: Option<PartitionId>, path: &str) -> bool {
        let noted = self.set(self.name(partition.unwrap_or(EVERYBODY), PURGED, resource(path)));
        match (&self.ledger, noted) {
            (Some(ledger), Some(number)) => ledger.written(number).await,
            // A start without a ledger takes all that is older for deleted.
            _ => true,
        }
    }

    /// Whether a path was deleted by hand after something had begun.
    pub(crate) fn is_purged(&self, partition: PartitionId, path: &str, began: Moment) -> bool {
        self.moment() > began
            && (began.0 < self.purged_floor.load(Ordering::Acquire)
                || [partition, EVERYBODY]
                    .iter()
                    .any(|partition| self.mark(self.name(*partition, PURGED, resource(path))) > began.0))
    }

    /// Everything is out of date from now on.
    pub(crate) fn all(&self) {
        let next = self.sequence.fetch_add(1, Ordering::AcqRel) + 1;
        self.floor.fetch_max(next, Ordering::AcqRel);
        self.note(Fact::Floor { number: next });
    }

    fn mark(&self, name: u64) -> u64 {
        self.shard(name).lock().expect("no code panics with this lock held").get(&name).copied().unwrap_or(0)
    }

    /// Leaves a mark. Gives its number in the ledger, if there is one.
    fn set(&self, name: u64) -> Option<u64> {
        let mut shard = self.shard(name).lock().expect("no code panics with this lock held");
        if shard.len() >= MARKS_PER_SHARD {
            // The floors rise before the marks go, so that no reader finds neither.
            let number = self.sequence.load(Ordering::Acquire);
            self.floor.fetch_max(number, Ordering::AcqRel);
            self.purged_floor.fetch_max(number, Ordering::AcqRel);
            self.note(Fact::Floor { number });
            self.note(Fact::PurgedFloor { number });
            shard.clear();
        }
        // The number is taken under the lock: of two marks of one name the higher stays.
        let next = self.sequence.fetch_add(1, Ordering::AcqRel) + 1;
        shard.insert(name, next);
        drop(shard);
        self.note(Fact::Mark { name, number: next })
    }

    fn shard(&self, name: u64) -> &Mutex<HashMap<u64, u64, Places>> {
        &self.shards[(name >> 60) as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PartitionId = PartitionId([1; 16]);
    const B: PartitionId = PartitionId([2; 16]);

    #[test]
    fn only_what_began_before_is_out_of_date() {
        let marks = Marks::new([1, 2], None);
        let names = marks.names(A, "/bookings/1?x=y", "bookings");
        let before = marks.moment();
        assert!(!marks.is_outdated(names, before));
        marks.path(A, "/bookings/1/");
        assert!(marks.is_outdated(names, before));
        assert!(!marks.is_outdated(names, marks.moment()));
        assert!(!marks.is_outdated(marks.names(B, "/bookings/1", "bookings"), before));
        assert!(!marks.is_outdated(marks.names(A, "/bookings/2", "bookings"), before));
        marks.tag(A, "bookings");
        assert!(marks.is_outdated(marks.names(A, "/bookings/2", "bookings"), before));
        assert!(!marks.is_outdated(marks.names(A, "/shipments/2", "shipments"), before));
        marks.all();
        assert!(marks.is_outdated(marks.names(B, "/shipments/2", "shipments"), before));
        assert!(!marks.is_outdated(marks.names(B, "/shipments/2", "shipments"), marks.moment()));
    }

    #[tokio::test]
    async fn a_mark_that_is_forgotten_still_counts() {
        let marks = Marks::new([1, 2], None);
        let names = marks.names(A, "/first", "-");
        let before = marks.moment();
        marks.path(A, "/first");
        assert!(marks.purged(None, "/deleted").await);
        assert!(marks.is_purged(A, "/deleted", before) && !marks.is_purged(A, "/other", before));
        for number in 0..SHARDS * MARKS_PER_SHARD * 2 {
            marks.path(A, &format!("/{number}"));
        }
        assert!(marks.is_outdated(names, before));
        assert!(marks.is_purged(A, "/deleted", before) && !marks.is_purged(A, "/deleted", marks.moment()));
        let held: usize = marks.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(held <= SHARDS * MARKS_PER_SHARD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_purge_that_cannot_be_recorded_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let keys = crate::store::Keys::from_bytes([1; 32], [2; 32]);
        // Nobody writes it.
        let ledger = Ledger::open(dir.path(), &keys).unwrap().0;
        let marks = Marks::new([1, 2], Some(ledger));
        let before = marks.moment();
        assert!(!marks.purged(None, "/x").await);
        assert!(marks.is_purged(A, "/x", before));
    }

    #[test]
    fn marks_go_on_over_a_restart() {
        let marks = Marks::new([1, 2], None);
        marks.restore(&[], true, 1000);
        let names = marks.names(A, "/bookings/1", "bookings");
        let (before, other) = (marks.moment(), marks.names(A, "/bookings/2", "-"));
        marks.path(A, "/bookings/1");
        let after = marks.moment();
        // The clock went back meanwhile.
        let restored = Marks::new([1, 2], None);
        restored.restore(&marks.facts(), true, 10);
        assert!(restored.moment() > after);
        assert!(restored.is_outdated(names, before) && !restored.is_outdated(names, after));
        assert!(!restored.is_outdated(other, before));
        // Nothing was recorded, and the clock went back: a write still makes the copy out of date.
        let behind = Marks::new([1, 2], None);
        behind.restore(&[], true, 10);
        let copy = behind.foreign(before);
        assert!(!behind.is_outdated(names, copy));
        behind.path(A, "/bookings/1");
        assert!(behind.is_outdated(names, copy));
        assert_eq!(restored.foreign(before), before);
        assert!(!restored.is_purged(A, "/x", before));
        marks.purged_floor.store(before.0 + 1, Ordering::Release);
        restored.restore(&marks.facts(), true, 10);
        assert!(restored.is_purged(A, "/x", before) && !restored.is_purged(A, "/x", after));
        let damaged = Marks::new([1, 2], None);
        damaged.restore(&marks.facts(), false, 2000);
        assert!(damaged.is_purged(A, "/x", after));
        assert!(damaged.is_outdated(other, after) && !damaged.is_outdated(other, damaged.moment()));
    }
}
