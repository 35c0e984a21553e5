//! Pure. What waits to be written: coalesced by copy, bounded, paced.
//!
//! A copy that waits and is replaced is written once. What is full drops what is new, which is counted; a deletion is
//! let in far longer, since losing one brings back what was gone. [`Pace`] is token buckets.

use super::record::Id;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Copies that wait at most.
const MOST: usize = 4096;
/// Their bytes at most.
const MOST_BYTES: usize = 16 << 20;
/// Deletions are let in up to so many times the bound.
const DELETIONS: usize = 8;

/// What is to be done with a copy.
#[derive(Debug)]
pub(crate) enum Change<T> {
    Put(T),
    Delete,
}

/// What became of a change that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    /// It waits; nothing waited before.
    First,
    /// It waits.
    Waits,
    /// There was no room.
    Dropped,
}

/// All that waits.
#[derive(Debug)]
pub(crate) struct Pending<T> {
    changes: BTreeMap<Id, (Change<T>, usize)>,
    order: VecDeque<Id>,
    /// What was taken last, and may be on its way to the disk.
    taken: Vec<Id>,
    bytes: usize,
}

/// How much may be written now: as much as the disk is lent for a moment, and as the processor is lent for long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    peak: Bucket,
    lasting: Bucket,
}

/// What may be spent, and what it grows by.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    copies: f64,
    bytes: f64,
    /// Copies and bytes a second.
    rate: (f64, f64),
    /// What can be saved up.
    most: (f64, f64),
}

// === impl Pending ===

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self { changes: BTreeMap::new(), order: VecDeque::new(), taken: Vec::new(), bytes: 0 }
    }
}

impl<T> Pending<T> {
    /// A change of a copy, in place of one that waits. `bytes`: what it holds in memory.
    pub(crate) fn offer(&mut self, id: Id, change: Change<T>, bytes: usize) -> Offered {
        if let Some((old, old_bytes)) = self.changes.get_mut(&id) {
            self.bytes = self.bytes - *old_bytes + bytes;
            *old = change;
            *old_bytes = bytes;
            return Offered::Waits;
        }
        let has_room = match change {
            Change::Put(_) => self.changes.len() < MOST && self.bytes + bytes <= MOST_BYTES,
            Change::Delete => self.changes.len() < MOST * DELETIONS,
        };
        if !has_room {
            return Offered::Dropped;
        }
        let is_first = self.changes.is_empty();
        self.bytes += bytes;
        self.changes.insert(id, (change, bytes));
        self.order.push_back(id);
        if is_first { Offered::First } else { Offered::Waits }
    }

    /// The oldest changes that the pace allows, at least one.
    pub(crate) fn take(&mut self, pace: &mut Pace) -> Vec<(Id, Change<T>)> {
        let mut taken = Vec::new();
        while let Some(id) = self.order.front().copied() {
            let bytes = self.changes.get(&id).map_or(0, |(_, bytes)| *bytes);
            if !pace.spend(bytes) {
                break;
            }
            self.order.pop_front();
            if let Some((change, _)) = self.changes.remove(&id) {
                self.bytes -= bytes;
                taken.push((id, change));
            }
        }
        self.taken.clear();
        self.taken.extend(taken.iter().map(|(id, _)| *id));
        taken
    }

    /// The copies whose deletion waits.
    pub(crate) fn deletions(&self) -> impl Iterator<Item = &Id> {
        let deletions = self.changes.iter().filter(|(_, (change, _))| matches!(change, Change::Delete));
        deletions.map(|(id, _)| id)
    }

    /// What waits to be done with a copy.
    pub(crate) fn get(&self, id: &Id) -> Option<&Change<T>> {
        self.changes.get(id).map(|(change, _)| change)
    }

    /// What waits to be done with the variants of a key.
    pub(crate) fn of(&self, key: &[u8; 32]) -> impl Iterator<Item = (&Id, &Change<T>)> {
        let variants = self.changes.range(Id::first(key)..=Id::last(key));
        variants.map(|(id, (change, _))| (id, change))
    }

    /// The variants of a key of which something waits, or is on its way to the disk.
    pub(crate) fn ids(&self, key: &[u8; 32]) -> Vec<Id> {
        let variants = Id::first(key)..=Id::last(key);
        let taken = self.taken.iter().filter(|id| variants.contains(id)).copied();
        self.of(key).map(|(id, _)| *id).chain(taken).collect()
    }

    /// Forgets the copies, but for the deletion of what they were to replace, where that must go. Gives how many.
    pub(crate) fn drop_copies(&mut self, must_go: impl Fn(&Id) -> bool) -> usize {
        let mut dropped = 0;
        for (id, (change, bytes)) in &mut self.changes {
            if matches!(change, Change::Put(_)) {
                dropped += 1;
                if must_go(id) {
                    self.bytes -= std::mem::take(bytes);
                    *change = Change::Delete;
                }
            }
        }
        if dropped > 0 {
            self.retain(|_, change| matches!(change, Change::Delete));
        }
        dropped
    }

    /// Forgets what is not wanted any more.
    pub(crate) fn retain(&mut self, mut is_kept: impl FnMut(&Id, &Change<T>) -> bool) {
        let Self { changes, order, bytes, .. } = self;
        order.retain(|id| {
            let is_kept = changes.get(id).is_some_and(|(change, _)| is_kept(id, change));
            if !is_kept && let Some((_, gone)) = changes.remove(id) {
                *bytes -= gone;
            }
            is_kept
        });
    }

    pub(crate) fn len(&self) -> usize {
        self.changes.len()
    }
}

// === impl Pace ===

impl Pace {
    /// 2,000 copies and 16 MiB a second at most. For long it is a quarter of that: beyond it, what comes is a flood,
    /// and writing it would take from requests what they need of the processor.
    pub(crate) fn new() -> Self {
        let bucket = |copies, bytes, saved| {
            let most = (copies * saved, bytes * saved);
            Bucket { copies: most.0, bytes: most.1, rate: (copies, bytes), most }
        };
        let mib = 1024.0 * 1024.0;
        Self { peak: bucket(2000.0, 16.0 * mib, 0.5), lasting: bucket(500.0, 4.0 * mib, 8.0) }
    }

    /// Time has gone by.
    pub(crate) fn earn(&mut self, span: Duration) {
        let span = span.as_secs_f64();
        for bucket in [&mut self.peak, &mut self.lasting] {
            bucket.copies = (bucket.copies + span * bucket.rate.0).min(bucket.most.0);
            bucket.bytes = (bucket.bytes + span * bucket.rate.1).min(bucket.most.1);
        }
    }

    /// Whether one copy of so many bytes may be written. What is larger than all that can be saved up goes on credit.
    fn spend(&mut self, bytes: usize) -> bool {
        let mut buckets = [&mut self.peak, &mut self.lasting];
        if buckets.iter().any(|bucket| bucket.copies < 1.0 || bucket.bytes <= 0.0) {
            return false;
        }
        for bucket in &mut buckets {
            bucket.copies -= 1.0;
            bucket.bytes -= bytes as f64;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> Id {
        let mut id = [0; 24];
        id[..4].copy_from_slice(&number.to_be_bytes());
        Id(id)
    }

    #[test]
    fn what_waits_is_written_once_in_the_order_in_which_it_came() {
        let mut pending = Pending::default();
        assert_eq!(pending.offer(id(1), Change::Put("a"), 10), Offered::First);
        assert_eq!(pending.offer(id(2), Change::Put("b"), 10), Offered::Waits);
        assert_eq!(pending.offer(id(1), Change::Put("c"), 30), Offered::Waits);
        pending.offer(id(2), Change::Delete, 0);
        let taken = pending.take(&mut Pace::new());
        assert!(
            matches!(taken[..], [(one, Change::Put("c")), (two, Change::Delete)] if one == id(1) && two == id(2))
        );
        assert_eq!((pending.len(), pending.bytes), (0, 0));
    }

    #[test]
    fn what_is_full_drops_copies_and_still_takes_replacements_and_deletions() {
        let mut pending = Pending::default();
        for number in 0..MOST as u32 {
            assert_ne!(pending.offer(id(number), Change::Put(()), 1), Offered::Dropped);
        }
        assert_eq!(pending.offer(id(9999), Change::Put(()), 1), Offered::Dropped);
        assert_eq!(pending.offer(id(3), Change::Put(()), 2), Offered::Waits);
        assert_eq!(pending.offer(id(9999), Change::Delete, 0), Offered::Waits);
        let mut pending = Pending::default();
        assert_eq!(pending.offer(id(1), Change::Put(()), MOST_BYTES + 1), Offered::Dropped);
    }

    #[test]
    fn no_more_is_written_in_a_second_than_the_pace_allows() {
        let (mut written, mut bytes) = (0, 0);
        let mut pace = Pace::new();
        let mut pending = Pending::default();
        for tick in 0..100u32 {
            for number in 0..1000 {
                pending.offer(id(tick * 1000 + number), Change::Put(()), 1000);
            }
            pace.earn(Duration::from_millis(100));
            let taken = pending.take(&mut pace).len();
            assert!(taken <= 1200, "{taken} at once");
            written += taken;
        }
        // Eight seconds' worth are saved up.
        assert!((8_900..=9_100).contains(&written), "{written}");
        let mut pace = Pace::new();
        let mut pending = Pending::default();
        for tick in 0..100u32 {
            pending.offer(id(tick), Change::Put(()), 8 << 20);
            pace.earn(Duration::from_millis(100));
            bytes += pending.take(&mut pace).len() * (8 << 20);
        }
        assert!((60 << 20..=90 << 20).contains(&bytes), "{bytes}");
    }

    #[test]
    fn what_is_forgotten_takes_no_room() {
        let mut pending = Pending::default();
        pending.offer(id(1), Change::Put(1), 10);
        pending.offer(id(2), Change::Put(2), 10);
        pending.retain(|_, change| matches!(change, Change::Put(2)));
        assert_eq!((pending.len(), pending.bytes, pending.order.len()), (1, 10, 1));
    }
}
