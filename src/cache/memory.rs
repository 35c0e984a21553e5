//! The copies in memory.
//!
//! moka as a map that is bounded in bytes, and nothing else of it: freshness is decided from the entry, since what
//! moka's own time to live had expired could no longer be served in an outage. Under one key stand the variants that
//! `Vary` tells apart, newest first.

use super::entry::{Asked, Entry};
use super::key::{Key, Places};
use std::sync::{Arc, Mutex};

/// Variants of one key that are kept; the oldest goes first.
const VARIANTS: usize = 8;
const STRIPES: usize = 16;
/// What an entry takes besides its own bytes: map slots, counters, the `Arc`s.
const OVERHEAD: usize = 1000;

/// The variants of a key.
pub(crate) type Variants = Arc<Vec<Arc<Entry>>>;

/// The map.
pub(crate) struct Memory {
    map: moka::sync::Cache<Key, Variants, Places>,
    /// Held while the variants of a key are replaced.
    stripes: [Mutex<()>; STRIPES],
}

fn weight(variants: &Variants) -> u32 {
    let bytes: usize = variants.iter().map(|entry| OVERHEAD + entry.weight()).sum();
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

// === impl Memory ===

impl Memory {
    pub(crate) fn new(bytes: u64) -> Self {
        let map = moka::sync::Cache::builder()
            .max_capacity(bytes)
            .weigher(|_, variants: &Variants| weight(variants))
            .build_with_hasher(Places::default());
        Self { map, stripes: std::array::from_fn(|_| Mutex::new(())) }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Variants> {
        self.map.get(key)
    }

    /// Keeps an entry in place of the variant that the same request would select, unless that one is the newer: begun
    /// after a later invalidation, or asked for later. Tells whether it is kept.
    pub(crate) fn put(&self, key: Key, entry: Arc<Entry>, asked: Asked<'_>) -> bool {
        let _held = self.stripe(&key).lock().expect("no code panics with this lock held");
        let mut variants = Vec::with_capacity(1);
        if let Some(present) = self.map.get(&key) {
            let is_newer = |old: &Entry| old.began > entry.began || old.asked_at > entry.asked_at;
            if present.iter().any(|old| old.is_selected_by(asked) && is_newer(old)) {
                return false;
            }
            variants.reserve(present.len());
            variants.push(entry);
            variants
                .extend(present.iter().filter(|old| !old.is_selected_by(asked)).take(VARIANTS - 1).cloned());
        } else {
            variants.push(entry);
        }
        self.map.insert(key, Arc::new(variants));
        true
    }

    /// Forgets one variant.
    pub(crate) fn remove(&self, key: &Key, entry: &Arc<Entry>) {
        let _held = self.stripe(key).lock().expect("no code panics with this lock held");
        let Some(present) = self.map.get(key) else { return };
        let left: Vec<_> = present.iter().filter(|old| !Arc::ptr_eq(old, entry)).cloned().collect();
        if left.is_empty() {
            self.map.invalidate(key);
        } else {
            self.map.insert(*key, Arc::new(left));
        }
    }

    /// The entries, with their keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Key, Arc<Entry>)> {
        self.map.iter().flat_map(|(key, variants)| {
            variants.iter().map(|entry| (*key, entry.clone())).collect::<Vec<_>>()
        })
    }

    pub(crate) fn clear(&self) {
        self.map.invalidate_all();
    }

    /// Keys and bytes, as of moka's last housekeeping.
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.map.entry_count(), self.map.weighted_size())
    }

    /// Keys and bytes, exactly.
    pub(crate) fn settle(&self) -> (u64, u64) {
        self.map.run_pending_tasks();
        self.size()
    }

    fn stripe(&self, key: &Key) -> &Mutex<()> {
        &self.stripes[usize::from(key.0[0]) % STRIPES]
    }
}
