//! Who may not be served from the cache.
//!
//! A copy must not outlive the right to see it. After a 401 a token gets neither hit nor stale copy until its own
//! next success; after a 403 the same for that one key. Refusals are kept per token, since several tokens can be one
//! partition, and one of them may be revoked. A success that was asked for before the refusal came ends none.
//!
//! Bounded, and on the safe side when full; nothing that fills it turns the cache off for others:
//! - The newest [`TOKENS`] refused tokens are known exactly. Random tokens push out older ones.
//! - Who is pushed out although something may be kept in its partition goes into a filter that never forgets: that
//!   token is not served from copies any more until the next start, and is forwarded every time. Nearly always it is
//!   a key that was revoked long ago. Who is pushed out of a partition in which nothing was ever kept (every random
//!   token, since that takes a success) is simply forgotten: there is nothing to see.
//! - Both filters can only err towards "refused" and "something is kept": the price of an error is a forwarded
//!   request.

use super::key::Key;
use crate::context::Credential;
use crate::ids::PartitionId;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::time::Instant;

/// Refused tokens that are known exactly.
const TOKENS: usize = 16_384;
/// Keys refused to one token; above it the token is refused altogether.
const KEYS: usize = 1024;
/// The same for all tokens together.
const ALL_KEYS: usize = 65_536;

/// All refusals.
pub(crate) struct Refusals {
    /// How many tokens: nearly always none, and then nothing is looked up.
    count: AtomicUsize,
    known: Mutex<Known>,
    /// The partitions of which something may be kept.
    kept: Filter,
    /// The refused tokens that are not known exactly any more.
    forgotten: Filter,
    hasher: RandomState,
}

/// A token in its partition.
type Holder = (PartitionId, u64);

#[derive(Default)]
struct Known {
    tokens: HashMap<Holder, Refused>,
    /// By age, with the number that tells a token from its own later refusal.
    order: VecDeque<(u64, Holder)>,
    next: u64,
    keys: usize,
    has_forgotten: bool,
}

struct Refused {
    number: u64,
    altogether: Option<Instant>,
    keys: HashMap<Key, Instant>,
}

/// A set that can be added to and asked, never wrongly says no, and does not grow.
struct Filter(Box<[AtomicU64]>);

// === impl Refusals ===

impl Refusals {
    pub(crate) fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            known: Mutex::default(),
            kept: Filter::new(),
            forgotten: Filter::new(),
            hasher: RandomState::new(),
        }
    }

    /// A name for a token that does not give it away.
    pub(crate) fn token(&self, credential: &Credential) -> u64 {
        match credential {
            Credential::None => 0,
            Credential::Alias(name) => self.hasher.hash_one((1u8, &**name)),
            Credential::Passed(value) => self.hasher.hash_one((2u8, value.as_bytes())),
        }
    }

    /// Something is about to be kept for this partition.
    pub(crate) fn keeps(&self, partition: PartitionId) {
        self.kept.insert(self.hash(&partition));
    }

    /// Whether this token may not be answered from the copy of this key.
    pub(crate) fn is_refused(&self, partition: PartitionId, token: impl FnOnce() -> u64, key: &Key) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let holder = (partition, token());
        let known = self.known();
        known
            .tokens
            .get(&holder)
            .is_some_and(|refused| refused.altogether.is_some() || refused.keys.contains_key(key))
            || known.has_forgotten && self.forgotten.contains(self.hash(&holder))
    }

    /// The upstream refused this token now: with a key, that key; without, altogether.
    pub(crate) fn refuse(&self, partition: PartitionId, token: u64, key: Option<&Key>, now: Instant) {
        let mut known = self.known();
        let holder = (partition, token);
        if !known.tokens.contains_key(&holder) {
            self.make_room(&mut known);
            let number = known.next;
            known.next += 1;
            known.order.push_back((number, holder));
            let refused = Refused { number, altogether: None, keys: HashMap::new() };
            known.tokens.insert(holder, refused);
        }
        let has_room = known.keys < ALL_KEYS;
        let refused = known.tokens.get_mut(&holder).expect("it was there or was put there");
        match key {
            Some(key) if has_room && refused.keys.len() < KEYS => {
                known.keys += usize::from(refused.keys.insert(*key, now).is_none());
            }
            _ => refused.altogether = Some(now),
        }
        self.recount(&known);
    }

    /// The upstream answered this token with success, to what was asked at that time.
    pub(crate) fn clear(
        &self,
        partition: PartitionId,
        token: impl FnOnce() -> u64,
        key: Option<&Key>,
        asked_at: Instant,
    ) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let holder = (partition, token());
        let mut known = self.known();
        let Some(refused) = known.tokens.get_mut(&holder) else { return };
        refused.altogether = refused.altogether.filter(|at| *at > asked_at);
        let mut cleared = 0;
        if let Some(key) = key
            && refused.keys.get(key).is_some_and(|at| *at <= asked_at)
        {
            refused.keys.remove(key);
            cleared = 1;
        }
        let is_over = refused.altogether.is_none() && refused.keys.is_empty();
        known.keys -= cleared;
        if is_over {
            known.tokens.remove(&holder);
            self.recount(&known);
        }
    }

    /// Room for one more token.
    fn make_room(&self, known: &mut Known) {
        while known.tokens.len() >= TOKENS {
            let Some((number, holder)) = known.order.pop_front() else { return };
            if known.tokens.get(&holder).is_none_or(|refused| refused.number != number) {
                continue;
            }
            if self.kept.contains(self.hash(&holder.0)) {
                // In the filter before it is out of the map, under one lock: never in neither.
                self.forgotten.insert(self.hash(&holder));
                known.has_forgotten = true;
            }
            let refused = known.tokens.remove(&holder).expect("it was found just now");
            known.keys -= refused.keys.len();
        }
        if known.order.len() >= 2 * TOKENS {
            let Known { tokens, order, .. } = known;
            order.retain(|(number, holder)| {
                tokens.get(holder).is_some_and(|refused| refused.number == *number)
            });
        }
    }

    fn recount(&self, known: &Known) {
        self.count.store(known.tokens.len() + usize::from(known.has_forgotten), Ordering::Release);
    }

    fn hash(&self, value: &impl Hash) -> u64 {
        self.hasher.hash_one(value)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().expect("no code panics with this lock held")
    }
}

// === impl Filter ===

impl Filter {
    /// 128 KiB: with 65,536 members one in four hundred others is taken for one.
    const BITS: u64 = 1 << 20;

    fn new() -> Self {
        Self((0..Self::BITS / 64).map(|_| AtomicU64::new(0)).collect())
    }

    fn insert(&self, hash: u64) {
        for (word, bit) in self.places(hash) {
            if word.load(Ordering::Acquire) & bit == 0 {
                word.fetch_or(bit, Ordering::AcqRel);
            }
        }
    }

    fn contains(&self, hash: u64) -> bool {
        self.places(hash).all(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    fn places(&self, hash: u64) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let step = (hash >> 32) | 1;
        (0..4u64).map(move |index| {
            let place = hash.wrapping_add(index.wrapping_mul(step)) % Self::BITS;
            (&self.0[(place / 64) as usize], 1 << (place % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const KEY: Key = Key([1; 32]);

    #[test]
    fn a_refusal_is_of_one_token_until_its_own_success() {
        let (partition, other) = (PartitionId([1; 16]), Key([2; 32]));
        let refusals = Refusals::new();
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        refusals.refuse(partition, 7, None, now);
        assert!(refusals.is_refused(partition, || 7, &KEY));
        assert!(!refusals.is_refused(partition, || 8, &KEY));
        refusals.clear(partition, || 8, Some(&KEY), later);
        assert!(refusals.is_refused(partition, || 7, &KEY));
        refusals.clear(partition, || 7, None, later);
        assert!(!refusals.is_refused(partition, || 7, &KEY));

        refusals.refuse(partition, 7, Some(&KEY), now);
        assert!(refusals.is_refused(partition, || 7, &KEY));
        assert!(!refusals.is_refused(partition, || 7, &other));
        refusals.clear(partition, || 7, Some(&other), later);
        assert!(refusals.is_refused(partition, || 7, &KEY));
        refusals.clear(partition, || 7, Some(&KEY), later);
        assert_eq!(refusals.count.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_success_that_was_asked_for_before_the_refusal_ends_none() {
        let partition = PartitionId([1; 16]);
        let refusals = Refusals::new();
        let before = Instant::now();
        let refused_at = before + Duration::from_secs(1);
        for key in [None, Some(&KEY)] {
            refusals.refuse(partition, 7, key, refused_at);
            refusals.clear(partition, || 7, Some(&KEY), before);
            assert!(refusals.is_refused(partition, || 7, &KEY));
            refusals.clear(partition, || 7, Some(&KEY), refused_at);
            assert!(!refusals.is_refused(partition, || 7, &KEY));
        }
    }

    #[test]
    fn a_flood_of_refused_tokens_serves_no_revoked_one_and_shuts_out_nobody() {
        let (revoked, well) = (PartitionId([1; 16]), PartitionId([2; 16]));
        let refusals = Refusals::new();
        let now = Instant::now();
        refusals.keeps(revoked);
        refusals.keeps(well);
        refusals.refuse(revoked, 7, None, now);
        for number in 0..100_000u64 {
            let mut id = [9; 16];
            id[..8].copy_from_slice(&number.to_le_bytes());
            refusals.refuse(PartitionId(id), number, Some(&KEY), now);
        }
        assert!(refusals.is_refused(revoked, || 7, &KEY));
        assert!(!refusals.is_refused(well, || 8, &KEY));
        let known = refusals.known();
        assert!(known.tokens.len() <= TOKENS && known.order.len() <= 2 * TOKENS && known.keys <= ALL_KEYS);
        let bits: u32 =
            refusals.forgotten.0.iter().map(|word| word.load(Ordering::Acquire).count_ones()).sum();
        assert!(bits < 1000, "tokens with nothing to see fill no filter: {bits}");
    }

    #[test]
    fn refusing_and_clearing_for_ever_takes_no_room() {
        let refusals = Refusals::new();
        let now = Instant::now();
        for _ in 0..100_000 {
            refusals.refuse(PartitionId([1; 16]), 7, None, now);
            refusals.clear(PartitionId([1; 16]), || 7, None, now);
        }
        assert!(refusals.known().order.len() <= 2 * TOKENS);
    }
}
