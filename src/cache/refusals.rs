//! Who may not be served from the cache.
//!
//! A copy must not outlive the right to see it. After a 401 a token gets neither hit nor stale copy until its own
//! next success; after a 403 the same for that one key. Refusals are kept per token, since several tokens can be one
//! partition, and one of them may be revoked.
//!
//! Random tokens must not grow memory: only partitions for which something is kept are remembered, and such a
//! partition has had a success, which a random token does not get. When there are more of them than we remember,
//! nothing is kept for the others.

use super::key::Key;
use crate::context::Credential;
use crate::ids::PartitionId;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const PARTITIONS: usize = 65_536;
/// Keys refused to the tokens of one partition; above it the token is refused altogether.
const KEYS: usize = 4096;

/// All refusals.
pub(crate) struct Refusals {
    /// How many there are: nearly always none, and then nothing is looked up.
    count: AtomicUsize,
    partitions: Mutex<HashMap<PartitionId, Refused>>,
    hasher: RandomState,
}

#[derive(Default)]
struct Refused {
    tokens: HashSet<u64>,
    keys: HashSet<(u64, Key)>,
}

// === impl Refusals ===

impl Refusals {
    pub(crate) fn new() -> Self {
        Self { count: AtomicUsize::new(0), partitions: Mutex::default(), hasher: RandomState::new() }
    }

    /// A name for a token that does not give it away.
    pub(crate) fn token(&self, credential: &Credential) -> u64 {
        match credential {
            Credential::None => 0,
            Credential::Alias(name) => self.hasher.hash_one((1u8, &**name)),
            Credential::Passed(value) => self.hasher.hash_one((2u8, value.as_bytes())),
        }
    }

    /// Something is about to be kept for this partition. Tells whether that may be.
    pub(crate) fn remember(&self, partition: PartitionId) -> bool {
        let mut partitions = self.partitions();
        if partitions.contains_key(&partition) {
            return true;
        }
        let has_room = partitions.len() < PARTITIONS;
        if has_room {
            partitions.insert(partition, Refused::default());
        }
        has_room
    }

    /// Whether this token may be answered from the copy of this key.
    pub(crate) fn is_refused(&self, partition: PartitionId, token: impl FnOnce() -> u64, key: &Key) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let token = token();
        self.partitions()
            .get(&partition)
            .is_some_and(|refused| refused.tokens.contains(&token) || refused.keys.contains(&(token, *key)))
    }

    /// The upstream refused this token: with a key, that key; without, altogether.
    pub(crate) fn refuse(&self, partition: PartitionId, token: u64, key: Option<&Key>) {
        let mut partitions = self.partitions();
        let Some(refused) = partitions.get_mut(&partition) else { return };
        let is_new = match key {
            Some(key) if refused.keys.len() < KEYS => refused.keys.insert((token, *key)),
            _ => refused.tokens.insert(token),
        };
        if is_new {
            self.count.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The upstream answered this token with success.
    pub(crate) fn clear(&self, partition: PartitionId, token: impl FnOnce() -> u64, key: Option<&Key>) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let token = token();
        let mut partitions = self.partitions();
        let Some(refused) = partitions.get_mut(&partition) else { return };
        let mut cleared = usize::from(refused.tokens.remove(&token));
        if let Some(key) = key {
            cleared += usize::from(refused.keys.remove(&(token, *key)));
        }
        self.count.fetch_sub(cleared, Ordering::AcqRel);
    }

    fn partitions(&self) -> std::sync::MutexGuard<'_, HashMap<PartitionId, Refused>> {
        self.partitions.lock().expect("no code panics with this lock held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_of_one_token_until_its_own_success() {
        let (partition, key, other) = (PartitionId([1; 16]), Key([1; 32]), Key([2; 32]));
        let refusals = Refusals::new();
        refusals.refuse(partition, 7, None);
        assert!(!refusals.is_refused(partition, || 7, &key), "nothing is kept for an unknown partition");
        assert!(refusals.remember(partition));
        refusals.refuse(partition, 7, None);
        assert!(refusals.is_refused(partition, || 7, &key));
        assert!(!refusals.is_refused(partition, || 8, &key));
        refusals.clear(partition, || 8, Some(&key));
        assert!(refusals.is_refused(partition, || 7, &key));
        refusals.clear(partition, || 7, None);
        assert!(!refusals.is_refused(partition, || 7, &key));

        refusals.refuse(partition, 7, Some(&key));
        assert!(refusals.is_refused(partition, || 7, &key));
        assert!(!refusals.is_refused(partition, || 7, &other));
        refusals.clear(partition, || 7, Some(&other));
        assert!(refusals.is_refused(partition, || 7, &key));
        refusals.clear(partition, || 7, Some(&key));
        assert_eq!(refusals.count.load(Ordering::Acquire), 0);
    }
}
