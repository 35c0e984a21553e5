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
//! of date. What is forgotten is therefore never an invalidation, only precision. Marks are named by a keyed 64 bit
//! hash: two names that share one are invalidated together, which costs a revalidation and nothing else.
//!
//! Invalidation is soft: the copy must be revalidated, and is still there for an outage.

use super::key::Places;
use crate::ids::PartitionId;
use foldhash::quality::RandomState;
use std::collections::HashMap;
use std::hash::BuildHasher;
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
    floor: AtomicU64,
    shards: [Mutex<HashMap<u64, u64, Places>>; SHARDS],
    hasher: RandomState,
}

#[derive(Hash)]
enum Name<'a> {
    Path(&'a str),
    Tag(&'a str),
}

/// One trailing slash is the same resource: Flexport itself links to `/invoices/?per=1`.
fn resource(path: &str) -> &str {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    path.strip_suffix('/').unwrap_or(path)
}

// === impl Marks ===

impl Marks {
    pub(crate) fn new() -> Self {
        Self {
            sequence: AtomicU64::new(1),
            floor: AtomicU64::new(0),
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::default(),
        }
    }

    /// The names of a copy.
    pub(crate) fn names(&self, partition: PartitionId, path: &str, tag: &str) -> Names {
        Names {
            path: self.hasher.hash_one((partition, Name::Path(resource(path)))),
            tag: self.hasher.hash_one((partition, Name::Tag(tag))),
        }
    }

    /// Now. Taken by a fill before it asks upstream.
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.sequence.load(Ordering::Acquire))
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

    /// Everything of this path is out of date from now on.
    pub(crate) fn path(&self, partition: PartitionId, path: &str) {
        self.set(self.hasher.hash_one((partition, Name::Path(resource(path)))));
    }

    /// Everything with this tag is out of date from now on.
    pub(crate) fn tag(&self, partition: PartitionId, tag: &str) {
        self.set(self.hasher.hash_one((partition, Name::Tag(tag))));
    }

    /// Everything is out of date from now on.
    pub(crate) fn all(&self) {
        let next = self.sequence.fetch_add(1, Ordering::AcqRel) + 1;
        self.floor.fetch_max(next, Ordering::AcqRel);
    }

    fn mark(&self, name: u64) -> u64 {
        self.shard(name).lock().expect("no code panics with this lock held").get(&name).copied().unwrap_or(0)
    }

    fn set(&self, name: u64) {
        let mut shard = self.shard(name).lock().expect("no code panics with this lock held");
        if shard.len() >= MARKS_PER_SHARD {
            // The floor rises before the marks go, so that no reader finds neither.
            self.floor.fetch_max(self.sequence.load(Ordering::Acquire), Ordering::AcqRel);
            shard.clear();
        }
        // The number is taken under the lock: of two marks of one name the higher stays.
        let next = self.sequence.fetch_add(1, Ordering::AcqRel) + 1;
        shard.insert(name, next);
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
        let marks = Marks::new();
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

    #[test]
    fn a_mark_that_is_forgotten_still_counts() {
        let marks = Marks::new();
        let names = marks.names(A, "/first", "-");
        let before = marks.moment();
        marks.path(A, "/first");
        for number in 0..SHARDS * MARKS_PER_SHARD * 2 {
            marks.path(A, &format!("/{number}"));
        }
        assert!(marks.is_outdated(names, before));
        let held: usize = marks.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(held <= SHARDS * MARKS_PER_SHARD);
    }
}
