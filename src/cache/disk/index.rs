//! Pure. What lies where in the log, and what goes when it is full.
//!
//! One slot a copy, with its places in the maps about 300 bytes, at most [`MAX_COPIES`]: small enough to stay in memory
//! whole, so that asking for what is not there never touches the disk. A segment is given up as a whole, the oldest first; what was used of late
//! in it is carried over to the end of the log ([`Index::carried`]), the rest is forgotten.

use super::record::{Header, Id, Kind, Place};
use crate::cache::key::Places;
use crate::ids::PartitionId;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The most copies that are known; above it, those that were not used for the longest time go.
pub(crate) const MAX_COPIES: usize = 262_144;

/// One copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) partition: PartitionId,
    pub(crate) stamp: u64,
    pub(crate) at: i64,
    /// Where the record with the head begins.
    pub(crate) record: Place,
    /// Its head, as stored.
    pub(crate) head: u32,
    pub(crate) body: Place,
    /// The place in the order of uses.
    pub(crate) used: u64,
    /// `None`: it was found at the start.
    pub(crate) note: Option<Note>,
    /// It is not to be served any more; its deletion waits to be written.
    pub(crate) is_gone: bool,
}

/// What this process wrote of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// A keyed hash of the body.
    pub(crate) print: u64,
    /// Number of the invalidation before it was asked for.
    pub(crate) began: u64,
    /// When it was confirmed, in milliseconds since the start.
    pub(crate) at: u64,
}

/// All copies.
#[derive(Debug, Default)]
pub(crate) struct Index {
    slots: BTreeMap<Id, Slot>,
    /// How many copies there are by the beginning of their key: most keys that are asked for have none, and a look into
    /// the tree costs several times as much.
    known: HashMap<u64, u32, Places>,
    /// Which copies have a part in a segment.
    parts: BTreeSet<(u64, Id)>,
    live_bytes: u64,
    uses: u64,
    /// The newest time of any copy at the start. What this process writes does not count: of that it knows the age.
    newest: i64,
}

/// The first bytes of a key, or of an id, which begins with its key.
fn beginning(key: &[u8]) -> u64 {
    u64::from_le_bytes(*key.first_chunk().expect("keys are longer"))
}

// === impl Slot ===

impl Slot {
    fn parts(&self) -> [Place; 2] {
        let head = Place {
            length: self.record.length - if self.is_whole() { self.body.length } else { 0 },
            ..self.record
        };
        [head, self.body]
    }

    /// Whether head and body are one record.
    fn is_whole(&self) -> bool {
        self.record.segment == self.body.segment
            && (self.record.offset..self.record.offset + u64::from(self.record.length))
                .contains(&self.body.offset)
    }

    /// The bytes that live.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts().iter().map(|place| u64::from(place.length)).sum()
    }
}

// === impl Index ===

impl Index {
    pub(crate) fn get(&self, id: &Id) -> Option<&Slot> {
        self.slots.get(id)
    }

    /// Whether any variant of a key is there.
    pub(crate) fn has(&self, key: &[u8; 32]) -> bool {
        self.known.contains_key(&beginning(key))
            && self.slots.range(Id::first(key)..=Id::last(key)).any(|(_, slot)| !slot.is_gone)
    }

    /// The variants of a key, with those that are gone.
    pub(crate) fn ids(&self, key: &[u8; 32]) -> Vec<Id> {
        self.slots.range(Id::first(key)..=Id::last(key)).map(|(id, _)| *id).collect()
    }

    /// A copy is not to be served any more.
    pub(crate) fn forget(&mut self, id: &Id) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.is_gone = true;
        }
    }

    /// A copy, which is used by that.
    pub(crate) fn used(&mut self, id: &Id) -> Option<&Slot> {
        let slot = self.slots.get_mut(id)?;
        self.uses += 1;
        slot.used = self.uses;
        Some(slot)
    }

    /// Whether a copy is on disk and not to be served any more.
    pub(crate) fn is_gone(&self, id: &Id) -> bool {
        self.slots.get(id).is_some_and(|slot| slot.is_gone)
    }

    /// The variants of a key, which are used by that.
    pub(crate) fn variants(&mut self, key: &[u8; 32]) -> Vec<(Id, Slot)> {
        let uses = &mut self.uses;
        self.slots
            .range_mut(Id::first(key)..=Id::last(key))
            .filter(|(_, slot)| !slot.is_gone)
            .map(|(id, slot)| {
                *uses += 1;
                slot.used = *uses;
                (*id, *slot)
            })
            .collect()
    }

    /// Copies after one, in their order.
    pub(crate) fn after(&self, after: Option<Id>) -> impl Iterator<Item = (&Id, &Slot)> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.slots.range((after.map_or(Unbounded, Excluded), Unbounded))
    }

    /// A record was found, or written, at this place.
    pub(crate) fn apply(&mut self, header: &Header, segment: u64, offset: u64) {
        let body = match header.kind {
            Kind::Delete => {
                self.remove(&header.id);
                return;
            }
            Kind::Put => Place {
                segment,
                offset: offset + header.whole() - u64::from(header.body),
                length: header.body,
            },
            Kind::Renew => match self.slots.get(&header.id) {
                Some(slot) if slot.stamp == header.stamp => slot.body,
                _ => return,
            },
        };
        let old = self.remove(&header.id);
        let used = old.map_or(self.uses + 1, |old| old.used);
        self.uses = self.uses.max(used);
        // The same copy at another place is known as well as before, and forgotten as much.
        let same = old.filter(|old| old.stamp == header.stamp);
        let slot = Slot {
            partition: header.partition,
            stamp: header.stamp,
            at: header.at,
            record: Place { segment, offset, length: header.whole() as u32 },
            head: header.head,
            body,
            used,
            note: same.and_then(|old| old.note),
            is_gone: same.is_some_and(|old| old.is_gone),
        };
        for part in slot.parts() {
            self.parts.insert((part.segment, header.id));
        }
        self.live_bytes += slot.bytes();
        self.slots.insert(header.id, slot);
        *self.known.entry(beginning(&header.id.0)).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, id: &Id) -> Option<Slot> {
        let slot = self.slots.remove(id)?;
        if let Entry::Occupied(mut known) = self.known.entry(beginning(&id.0)) {
            *known.get_mut() -= 1;
            if *known.get() == 0 {
                known.remove();
            }
        }
        for part in slot.parts() {
            self.parts.remove(&(part.segment, *id));
        }
        self.live_bytes -= slot.bytes();
        Some(slot)
    }

    /// What to carry over when a segment is given up: what was used last, up to so many bytes.
    pub(crate) fn carried(&self, segment: u64, limit: u64) -> Vec<Id> {
        // Not all copies are looked at: readers wait for the lock meanwhile.
        let here = self.with_part_in(segment).filter_map(|id| Some((id, self.slots.get(&id)?)));
        let mut here: Vec<(Id, &Slot)> = here.filter(|(_, slot)| !slot.is_gone).collect();
        here.sort_unstable_by_key(|(_, slot)| std::cmp::Reverse(slot.used));
        let mut bytes = 0;
        let fitting = here.into_iter().take_while(|(_, slot)| {
            bytes += slot.bytes();
            bytes <= limit
        });
        fitting.map(|(id, _)| id).collect()
    }

    fn with_part_in(&self, segment: u64) -> impl Iterator<Item = Id> {
        self.parts.range((segment, Id([0; 24]))..=(segment, Id([0xff; 24]))).map(|(_, id)| *id)
    }

    /// Those that go because there are too many: an eighth of all, so that it is done seldom.
    pub(crate) fn surplus(&self) -> Vec<Id> {
        if self.slots.len() <= MAX_COPIES {
            return Vec::new();
        }
        let mut all: Vec<(u64, Id)> = self.slots.iter().map(|(id, slot)| (slot.used, *id)).collect();
        let surplus = all.len() - MAX_COPIES + MAX_COPIES / 8;
        all.select_nth_unstable(surplus);
        all.truncate(surplus);
        all.into_iter().map(|(_, id)| id).collect()
    }

    /// A segment is gone, with all that has a part in it.
    pub(crate) fn forget_segment(&mut self, segment: u64) {
        let here: Vec<Id> = self.with_part_in(segment).collect();
        for id in here {
            self.remove(&id);
        }
    }

    /// What was written of a copy, to notice when the same is to be written again.
    pub(crate) fn note(&mut self, id: &Id, written: Note) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.note = Some(written);
        }
    }

    /// After a start: what was confirmed last counts as used last.
    pub(crate) fn order_by_time(&mut self) {
        let mut all: Vec<(i64, Id)> = self.slots.iter().map(|(id, slot)| (slot.at, *id)).collect();
        all.sort_unstable();
        for (used, (_, id)) in all.iter().enumerate() {
            if let Some(slot) = self.slots.get_mut(id) {
                slot.used = used as u64;
            }
        }
        self.uses = all.len() as u64;
        self.newest = all.last().map_or(i64::MIN, |(at, _)| *at);
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(crate) fn newest(&self) -> i64 {
        self.newest
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::HEADER;
    use super::*;

    fn key(number: u8) -> [u8; 32] {
        [number; 32]
    }

    fn header(kind: Kind, number: u8, stamp: u64, body: u32) -> Header {
        let body = if kind == Kind::Put { body } else { 0 };
        Header {
            kind,
            id: Id::first(&key(number)),
            partition: PartitionId([1; 16]),
            stamp,
            at: i64::from(number),
            head: 100,
            body,
        }
    }

    fn alone() -> u64 {
        HEADER as u64 + 100
    }

    #[test]
    fn live_bytes_are_those_of_the_last_records() {
        let mut index = Index::default();
        index.apply(&header(Kind::Put, 1, 7, 1000), 1, 0);
        index.apply(&header(Kind::Put, 2, 8, 500), 1, 2000);
        assert_eq!(index.live_bytes(), 2 * alone() + 1500);
        // A renewal lives elsewhere and keeps the body where it is.
        index.apply(&header(Kind::Renew, 1, 7, 0), 2, 0);
        assert_eq!(index.live_bytes(), 2 * alone() + 1500);
        let slot = *index.get(&Id::first(&key(1))).unwrap();
        assert_eq!((slot.record.segment, slot.body.segment, slot.body.offset), (2, 1, alone()));
        // A renewal of a body that was replaced meanwhile means nothing.
        index.apply(&header(Kind::Put, 1, 9, 10), 2, 500);
        index.apply(&header(Kind::Renew, 1, 7, 0), 2, 900);
        assert_eq!(index.get(&Id::first(&key(1))).unwrap().stamp, 9);
        index.apply(&header(Kind::Delete, 1, 0, 0), 2, 1200);
        index.apply(&header(Kind::Delete, 2, 0, 0), 2, 1300);
        assert_eq!((index.live_bytes(), index.len()), (0, 0));
        assert!(index.parts.is_empty());
    }

    #[test]
    fn what_was_used_last_is_carried_over_and_all_else_goes() {
        let mut index = Index::default();
        for number in 1..=4 {
            index.apply(&header(Kind::Put, number, 1, 100), 1, u64::from(number) * 1000);
        }
        index.apply(&header(Kind::Put, 5, 1, 100), 2, 0);
        // Its head lies in the second segment, its body in the first.
        index.apply(&header(Kind::Renew, 4, 1, 0), 2, 1000);
        index.variants(&key(2));
        let carried = index.carried(1, 2 * (alone() + 100));
        assert_eq!(carried, [Id::first(&key(2)), Id::first(&key(4))]);
        index.used(&Id::first(&key(1)));
        index.forget(&Id::first(&key(2)));
        assert_eq!(index.carried(1, 2 * (alone() + 100)), [Id::first(&key(1)), Id::first(&key(4))]);
        index.forget_segment(1);
        assert_eq!((index.len(), index.has(&key(5))), (1, true));
    }

    #[test]
    fn a_copy_that_is_moved_stays_what_it_was() {
        let mut index = Index::default();
        let (id, note) = (Id::first(&key(1)), Note { print: 1, began: 2, at: 3 });
        index.apply(&header(Kind::Put, 1, 7, 100), 1, 0);
        index.note(&id, note);
        index.forget(&id);
        index.apply(&header(Kind::Put, 1, 7, 100), 2, 0);
        assert_eq!((index.get(&id).unwrap().note, index.is_gone(&id)), (Some(note), true));
        index.apply(&header(Kind::Put, 1, 8, 100), 2, 500);
        assert_eq!((index.get(&id).unwrap().note, index.is_gone(&id)), (None, false));
    }

    #[test]
    fn variants_are_found_by_their_key() {
        let mut index = Index::default();
        let mut other = header(Kind::Put, 1, 2, 5);
        other.id = Id::last(&key(1));
        index.apply(&header(Kind::Put, 1, 1, 5), 1, 0);
        index.apply(&other, 1, 500);
        index.apply(&header(Kind::Put, 2, 1, 5), 1, 1000);
        assert!(index.has(&key(1)) && !index.has(&key(3)));
        assert_eq!(index.variants(&key(1)).len(), 2);
        assert_eq!(index.after(Some(Id::first(&key(1)))).count(), 2);
        assert!(index.surplus().is_empty());
    }
}
