//! A key whose refresh in the background has failed is left alone for a while: 1 s, then twice as long each time, up
//! to 30 s. Readers are served the copy meanwhile. Bounded: what is pushed out is tried again too early.

use super::flight::FlightKey;
use super::key::Places;
use quick_cache::UnitWeighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use std::time::Duration;
use tokio::time::Instant;

const KEYS: usize = 4096;
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// The keys at rest.
pub(crate) struct Rests(Cache<FlightKey, Rest, UnitWeighter, Places>);

#[derive(Clone, Copy)]
struct Rest {
    span: Duration,
    until: Instant,
}

// === impl Rests ===

impl Rests {
    pub(crate) fn new() -> Self {
        Self(Cache::with(KEYS, KEYS as u64, UnitWeighter, Places::default(), DefaultLifecycle::default()))
    }

    /// Whether the key is to be left alone.
    pub(crate) fn is_resting(&self, key: &FlightKey, now: Instant) -> bool {
        self.0.get(key).is_some_and(|rest| now < rest.until)
    }

    /// A refresh ended.
    pub(crate) fn ended(&self, key: FlightKey, has_failed: bool, now: Instant) {
        let before = self.0.get(&key);
        if has_failed {
            let span = before.map_or(FIRST, |rest| (rest.span * 2).min(LONGEST));
            self.0.insert(key, Rest { span, until: now + span });
        } else if before.is_some() {
            self.0.remove(&key);
        }
    }
}
