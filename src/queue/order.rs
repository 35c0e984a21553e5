//! Pure. The order of writes: one queue of places per order key, over live writes and records alike.
//!
//! A place is drawn on joining and never changes. One place of a key is in flight at a time. As soon as a place is a
//! record, every live place behind it has to become one too: otherwise a write that timed out would be replayed over
//! a newer one that succeeded. The wait itself is the caller's: a live place carries a waker `W`, and every change
//! returns the wakers of those whose turn it may be now.

use crate::flexport::routes::OrderRule;
use crate::ids::{PartitionId, WriteId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What a write keeps its order with: a name inside a partition.
pub type Key = (PartitionId, Arc<str>);

/// All places of all keys.
#[derive(Debug)]
pub struct Lanes<W> {
    lanes: HashMap<Key, BTreeMap<u64, Place<W>>>,
}

#[derive(Debug)]
struct Place<W> {
    id: WriteId,
    kind: Kind<W>,
    in_flight: bool,
}

#[derive(Debug)]
enum Kind<W> {
    Live(W),
    Record,
    Blocker,
}

/// What a live place may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Be sent; its place is in flight from now on.
    Go,
    /// Wait for older live ones.
    Wait,
    /// Become a record: an older one is.
    Queue,
}

// === impl Lanes ===

impl<W: Clone> Lanes<W> {
    /// No places.
    pub fn new() -> Self {
        Self { lanes: HashMap::new() }
    }

    /// A live write takes its place.
    pub fn join(&mut self, key: Key, seq: u64, id: WriteId, waker: W) {
        self.lanes
            .entry(key)
            .or_default()
            .insert(seq, Place { id, kind: Kind::Live(waker), in_flight: false });
    }

    /// Whether the live place may be sent now; if so it is in flight.
    pub fn turn(&mut self, key: &Key, seq: u64) -> Turn {
        let Some(lane) = self.lanes.get_mut(key) else { return Turn::Queue };
        let mut waits = false;
        for (_, place) in lane.range(..seq) {
            match place.kind {
                Kind::Live(_) => waits = true,
                Kind::Record | Kind::Blocker => return Turn::Queue,
            }
        }
        if waits || lane.iter().any(|(other, place)| *other != seq && place.in_flight) {
            return Turn::Wait;
        }
        match lane.get_mut(&seq) {
            Some(place) => {
                place.in_flight = true;
                Turn::Go
            }
            None => Turn::Queue,
        }
    }

    /// The place is a record from now on: taken in place, or (at start, and after an operator's word) put there.
    /// `blocks`: it will not be sent, and nothing behind it may.
    pub fn put_record(&mut self, key: Key, seq: u64, id: WriteId, blocks: bool) -> Vec<W> {
        let lane = self.lanes.entry(key).or_default();
        let in_flight = lane.get(&seq).is_some_and(|place| place.in_flight);
        let kind = if blocks { Kind::Blocker } else { Kind::Record };
        lane.insert(seq, Place { id, kind, in_flight });
        // Those in flight stay so: their outcome is about to come.
        lane.range(seq + 1..)
            .filter_map(|(_, place)| match &place.kind {
                Kind::Live(waker) if !place.in_flight => Some(waker.clone()),
                _ => None,
            })
            .collect()
    }

    /// The place is given up.
    pub fn leave(&mut self, key: &Key, seq: u64) -> Option<W> {
        let lane = self.lanes.get_mut(key)?;
        lane.remove(&seq);
        if lane.is_empty() {
            self.lanes.remove(key);
            return None;
        }
        self.next_live(key)
    }

    /// A record is about to be sent: only the oldest, and only while nothing else of its key is in flight.
    pub fn claim(&mut self, key: &Key, seq: u64) -> bool {
        let Some(lane) = self.lanes.get_mut(key) else { return false };
        if lane.values().any(|place| place.in_flight) {
            return false;
        }
        match lane.first_entry() {
            Some(mut first) if *first.key() == seq && matches!(first.get().kind, Kind::Record) => {
                first.get_mut().in_flight = true;
                true
            }
            _ => false,
        }
    }

    /// The place is not in flight any more.
    pub fn release(&mut self, key: &Key, seq: u64) -> Option<W> {
        self.lanes.get_mut(key)?.get_mut(&seq)?.in_flight = false;
        self.next_live(key)
    }

    fn next_live(&self, key: &Key) -> Option<W> {
        let lane = self.lanes.get(key)?;
        if lane.values().any(|place| place.in_flight) {
            return None;
        }
        match &lane.first_key_value()?.1.kind {
            Kind::Live(waker) => Some(waker.clone()),
            Kind::Record | Kind::Blocker => None,
        }
    }

    /// The record that is to be sent next, unless something of its key is in flight.
    pub fn head(&self, key: &Key) -> Option<(u64, WriteId)> {
        let lane = self.lanes.get(key)?;
        let (seq, first) = lane.first_key_value()?;
        let is_free = matches!(first.kind, Kind::Record) && !lane.values().any(|place| place.in_flight);
        is_free.then_some((*seq, first.id))
    }

    /// The oldest record, or where there is none the oldest live place.
    pub fn oldest(&self, key: &Key) -> Option<WriteId> {
        let lane = self.lanes.get(key)?;
        let record = lane.values().find(|place| !matches!(place.kind, Kind::Live(_)));
        record.or_else(|| lane.values().next()).map(|place| place.id)
    }

    /// The oldest place of any key of a partition whose name begins so. Looks at all keys.
    pub fn oldest_in(&self, partition: PartitionId, prefix: &str) -> Option<WriteId> {
        self.lanes
            .iter()
            .filter(|((other, name), _)| *other == partition && name.starts_with(prefix))
            .filter_map(|(_, lane)| lane.first_key_value())
            .min_by_key(|(seq, _)| **seq)
            .map(|(_, place)| place.id)
    }

    /// How many places stand before this one.
    pub fn ahead(&self, key: &Key, seq: u64) -> usize {
        self.lanes.get(key).map_or(0, |lane| lane.range(..seq).count())
    }

    /// How many places the key has.
    pub fn len(&self, key: &Key) -> usize {
        self.lanes.get(key).map_or(0, BTreeMap::len)
    }

    /// Whether there is no place at all.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }
}

impl<W: Clone> Default for Lanes<W> {
    fn default() -> Self {
        Self::new()
    }
}

/// The name that a write keeps its order with. One without a parent has a name of its own and never waits.
pub fn name(rule: &OrderRule, path: &str, body: &[u8], id: WriteId) -> Arc<str> {
    let own = || Arc::from(format!("write/{id}"));
    let path = path.trim_matches('/');
    match rule {
        OrderRule::None => own(),
        OrderRule::Path => Arc::from(path),
        OrderRule::Collection => Arc::from(format!("{path}/*")),
        OrderRule::Body { collection, member } => match member_of(body, member) {
            Some(parent) => Arc::from(format!("{collection}/{parent}")),
            None => own(),
        },
    }
}

/// The text of a member of a JSON object that is a number or a string.
fn member_of(body: &[u8], member: &str) -> Option<String> {
    let object: HashMap<std::borrow::Cow<'_, str>, &serde_json::value::RawValue> =
        serde_json::from_slice(body).ok()?;
    match serde_json::from_str(object.get(member)?.get()).ok()? {
        serde_json::Value::Number(number) => Some(number.to_string()),
        serde_json::Value::String(text) if !text.is_empty() && text.len() <= 255 => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
