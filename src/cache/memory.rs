//! The copies in memory.
//!
//! A map that is bounded in bytes (`quick_cache`, see ADR 6), and nothing else of it: freshness is decided from the
//! entry, since what a map's own time to live had expired could no longer be served in an outage. Under one key stand
//! the variants that `Vary` tells apart, newest first.
//!
//! When it is full, what was read again stays and what was read once goes first: a twentieth of the room is kept for
//! newcomers, so that a sync that walks through everything does not push out what is asked for all the time.

use super::entry::{Asked, Entry};
use super::key::{Key, Places};
use quick_cache::sync::DefaultLifecycle;
use quick_cache::{OptionsBuilder, Weighter};
use std::sync::{Arc, Mutex};

/// Variants of one key that are kept; the oldest goes first.
const VARIANTS: usize = 8;
const STRIPES: usize = 16;
/// What an entry takes besides its own bytes: map slots, counters, the `Arc`s.
const OVERHEAD: usize = 1000;
/// Parts of the map with a lock of their own, and the least that one of them holds: an entry may take as much as one
/// part, so that a small memory has few.
const SHARDS: u64 = 8;
const SHARD_BYTES: u64 = 8 << 20;
/// For how many keys the map remembers that they were there a while ago: by the size of a usual answer.
const USUAL_BYTES: u64 = 8 << 10;
/// The share that what was read again may take.
const HOT: f64 = 0.95;

/// The variants of a key. Nearly always there is one: a list of them would be one more allocation for each answer.
#[derive(Clone)]
pub(crate) struct Variants {
    pub(crate) newest: Arc<Entry>,
    /// Newest first.
    older: Option<Arc<[Arc<Entry>]>>,
}

/// The map.
pub(crate) struct Memory {
    map: quick_cache::sync::Cache<Key, Variants, Bytes, Places>,
    /// Held while the variants of a key are replaced.
    stripes: [Mutex<()>; STRIPES],
}

/// Weighs in bytes.
#[derive(Clone, Copy, Debug)]
struct Bytes;

impl Weighter<Key, Variants> for Bytes {
    fn weight(&self, _: &Key, variants: &Variants) -> u64 {
        variants.iter().map(|entry| (OVERHEAD + entry.weight()) as u64).sum()
    }
}

// === impl Variants ===

impl Variants {
    fn new(newest: Arc<Entry>, older: impl Iterator<Item = Arc<Entry>>) -> Self {
        let mut older = older.peekable();
        Self { newest, older: older.peek().is_some().then(|| older.collect()) }
    }

    /// The newest that fits a request. One that `Vary` selects goes before one without it, which may be an origin's
    /// default that lacks the field by mistake (RFC 9111 §4.1).
    pub(crate) fn selected(&self, asked: Asked<'_>) -> Option<&Arc<Entry>> {
        let mut fitting = self.iter().filter(|entry| entry.is_selected_by(asked));
        let first = fitting.next()?;
        if self.older.is_none() || !first.selecting().is_empty() {
            return Some(first);
        }
        fitting.find(|entry| !entry.selecting().is_empty()).or(Some(first))
    }

    /// Newest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        std::iter::once(&self.newest).chain(self.older.iter().flat_map(|older| older.iter()))
    }
}

// === impl Memory ===

impl Memory {
    pub(crate) fn new(bytes: u64) -> Self {
        let options = OptionsBuilder::new()
            .weight_capacity(bytes)
            .estimated_items_capacity(usize::try_from(bytes / USUAL_BYTES).unwrap_or(usize::MAX))
            .shards(usize::try_from((bytes / SHARD_BYTES).clamp(1, SHARDS)).expect("at most `SHARDS`"))
            .hot_allocation(HOT)
            .build()
            .expect("both capacities are given, and the share is between 0 and 1");
        let map = quick_cache::sync::Cache::with_options(
            options,
            Bytes,
            Places::default(),
            DefaultLifecycle::default(),
        );
        Self { map, stripes: std::array::from_fn(|_| Mutex::new(())) }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Variants> {
        self.map.get(key)
    }

    /// The same, without counting as a use.
    pub(crate) fn peek(&self, key: &Key) -> Option<Variants> {
        self.map.peek(key)
    }

    /// Keeps an entry in place of the variant that the same request would select, unless that one is the newer: begun
    /// after a later invalidation, or asked for later. Tells whether it is kept. What is done `then` is done for the
    /// entries of one key in the same order.
    pub(crate) fn put(&self, key: Key, entry: Arc<Entry>, asked: Asked<'_>, then: impl FnOnce()) -> bool {
        let _held = self.stripe(&key).lock().expect("no code panics with this lock held");
        let variants = match self.map.peek(&key) {
            None => Variants::new(entry, std::iter::empty()),
            Some(present) => {
                let is_newer = |old: &Entry| old.began > entry.began || old.asked_at > entry.asked_at;
                let (replaced, others): (Vec<_>, Vec<_>) =
                    present.iter().partition(|old| old.is_selected_by(asked));
                if replaced.iter().any(|old| is_newer(old)) {
                    return false;
                }
                for old in replaced {
                    entry.inherit(old);
                }
                Variants::new(entry, others.into_iter().take(VARIANTS - 1).cloned())
            }
        };
        self.map.insert(key, variants);
        then();
        true
    }

    /// Forgets one variant.
    pub(crate) fn remove(&self, key: &Key, entry: &Arc<Entry>) {
        let _held = self.stripe(key).lock().expect("no code panics with this lock held");
        let Some(present) = self.map.peek(key) else { return };
        let mut left = present.iter().filter(|old| !Arc::ptr_eq(old, entry)).cloned();
        match left.next() {
            Some(newest) => self.map.insert(*key, Variants::new(newest, left)),
            None => {
                self.map.remove(key);
            }
        }
    }

    /// The entries, with their keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Key, Arc<Entry>)> {
        self.map
            .iter()
            .flat_map(|(key, variants)| variants.iter().map(|entry| (key, entry.clone())).collect::<Vec<_>>())
    }

    pub(crate) fn clear(&self) {
        self.map.clear();
    }

    /// Keys and bytes.
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.map.len() as u64, self.map.weight())
    }

    fn stripe(&self, key: &Key) -> &Mutex<()> {
        &self.stripes[usize::from(key.0[0]) % STRIPES]
    }
}
