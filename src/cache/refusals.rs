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
//!
//! **Who is served stale has proven himself of late**: his own last success is known, and no older than
//! `stale_auth_window`. That holds over a restart (see `ledger`): what is not known any more, for whatever reason,
//! counts against the token.

use super::key::{Key, Places};
use super::ledger::Fact;
use crate::context::Credential;
use crate::ids::PartitionId;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Refused tokens that are known exactly.
const TOKENS: usize = 16_384;
/// Keys refused to one token; above it the token is refused altogether.
const KEYS: usize = 1024;
/// The same for all tokens together.
const ALL_KEYS: usize = 65_536;
/// Tokens whose last success is known.
const PROVEN: usize = 16_384;
/// How seldom a success is recorded, in seconds.
const RECORD: i64 = 300;

/// All refusals.
pub(crate) struct Refusals {
    /// How many tokens: nearly always none, and then nothing is looked up.
    count: AtomicUsize,
    known: Mutex<Known>,
    /// The partitions of which something may be kept.
    kept: Filter,
    /// The refused tokens that are not known exactly any more.
    forgotten: Filter,
    proven: Mutex<HashMap<Holder, Proof, Places>>,
    hasher: Places,
    /// Names of tokens are the same in all processes of one installation.
    seed: [u64; 2],
}

/// When a token succeeded last, in Unix seconds.
#[derive(Clone, Copy)]
struct Proof {
    at: i64,
    recorded: i64,
}

/// How the tokens of a partition stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// Those that are served stale copies.
    pub(crate) proven: Vec<u64>,
    /// Whether one is known that the upstream refuses.
    pub(crate) has_refused: bool,
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
    /// No refusals. The seed is secret, and always the same in one installation.
    pub(crate) fn new(seed: [u64; 2]) -> Self {
        Self {
            count: AtomicUsize::new(0),
            known: Mutex::default(),
            kept: Filter::new(),
            forgotten: Filter::new(),
            proven: Mutex::default(),
            hasher: Places::default(),
            seed,
        }
    }

    /// A name for a token that does not give it away.
    pub(crate) fn token(&self, credential: &Credential) -> u64 {
        match credential {
            Credential::None => 0,
            Credential::Alias(name) => self.name(1, name.as_bytes()),
            Credential::Passed(value) => self.name(2, value.as_bytes()),
        }
    }

    #[expect(deprecated, reason = "the only hasher of the library whose keys can be chosen: SipHash 2-4")]
    fn name(&self, kind: u8, text: &[u8]) -> u64 {
        let mut hasher = std::hash::SipHasher::new_with_keys(self.seed[0], self.seed[1]);
        hasher.write(&[kind]);
        hasher.write(text);
        hasher.finish()
    }

    /// What an earlier process recorded. When some of that may be missing, nobody's success counts.
    pub(crate) fn restore(&self, facts: &[Fact], is_intact: bool, now: Instant) {
        for fact in facts {
            match *fact {
                Fact::Refused { partition, token, key } => {
                    // It was recorded, so there was something to see.
                    self.keeps(partition);
                    let _ = self.refuse(partition, token, key.as_ref(), now, |_| ());
                }
                Fact::Cleared { partition, token, key } => {
                    self.end((partition, token), key.is_none(), key.as_ref(), now, |_| ());
                }
                Fact::Succeeded { partition, token, at } => {
                    self.keeps(partition);
                    if is_intact {
                        self.proven().insert((partition, token), Proof { at, recorded: at });
                    }
                }
                Fact::Mark { .. } | Fact::Floor { .. } | Fact::PurgedFloor { .. } => {}
            }
        }
    }

    /// All that is to be recorded.
    pub(crate) fn facts(&self) -> Vec<Fact> {
        let mut facts: Vec<Fact> = self
            .proven()
            .iter()
            .map(|(&(partition, token), proof)| Fact::Succeeded { partition, token, at: proof.at })
            .collect();
        let known = self.known();
        for (&(partition, token), refused) in &known.tokens {
            if !self.may_keep(partition) {
                continue;
            }
            if refused.altogether.is_some() {
                facts.push(Fact::Refused { partition, token, key: None });
            }
            facts.extend(refused.keys.keys().map(|key| Fact::Refused { partition, token, key: Some(*key) }));
        }
        facts
    }

    /// A token succeeded, in Unix seconds. Gives what is to be recorded, if it is time for that.
    pub(crate) fn succeeded(&self, partition: PartitionId, token: u64, now: i64) -> Option<Fact> {
        let mut proven = self.proven();
        if proven.len() >= PROVEN && !proven.contains_key(&(partition, token)) {
            let mut times: Vec<i64> = proven.values().map(|proof| proof.at).collect();
            let (_, middle, _) = times.select_nth_unstable(PROVEN / 2);
            let middle = *middle;
            proven.retain(|_, proof| proof.at > middle);
        }
        let proof = proven.entry((partition, token)).or_insert(Proof { at: now, recorded: i64::MIN });
        // A clock that went back is the one that counts from now on.
        proof.at = now;
        if now.abs_diff(proof.recorded) < RECORD as u64 {
            return None;
        }
        proof.recorded = now;
        Some(Fact::Succeeded { partition, token, at: now })
    }

    /// Whether a token succeeded within the window before now, in Unix seconds.
    pub(crate) fn is_proven(&self, partition: PartitionId, token: u64, now: i64, window: Duration) -> bool {
        self.proven()
            .get(&(partition, token))
            .is_some_and(|proof| u128::from(now.abs_diff(proof.at)) <= u128::from(window.as_secs()))
    }

    /// How the tokens of all partitions stand.
    pub(crate) fn standing(&self, now: i64, window: Duration) -> HashMap<PartitionId, Standing> {
        let mut all: HashMap<PartitionId, Standing> = HashMap::new();
        for ((partition, token), proof) in self.proven().iter() {
            let standing = all.entry(*partition).or_default();
            if u128::from(now.abs_diff(proof.at)) <= u128::from(window.as_secs()) {
                standing.proven.push(*token);
            }
        }
        for ((partition, token), refused) in &self.known().tokens {
            if refused.altogether.is_some() {
                let standing = all.entry(*partition).or_default();
                standing.has_refused = true;
                standing.proven.retain(|proven| proven != token);
            }
        }
        all
    }

    /// Something is about to be kept for this partition.
    pub(crate) fn keeps(&self, partition: PartitionId) {
        self.kept.insert(self.hash(&partition));
    }

    /// Whether something may be kept for this partition.
    pub(crate) fn may_keep(&self, partition: PartitionId) -> bool {
        self.kept.contains(self.hash(&partition))
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

    /// The upstream refused this token now: with a key, that key; without, altogether. Tells what is to be recorded
    /// before it is answered, in the order in which things happen here: nothing when it is known, or when there is
    /// nothing that it could see. Gives what the telling gives.
    #[must_use]
    pub(crate) fn refuse<T>(
        &self,
        partition: PartitionId,
        token: u64,
        key: Option<&Key>,
        now: Instant,
        tell: impl FnOnce(Fact) -> T,
    ) -> Option<T> {
        let holder = (partition, token);
        let was_proven = key.is_none() && self.proven().remove(&holder).is_some();
        let mut known = self.known();
        let was_refused = known.tokens.get(&holder).is_some_and(|refused| {
            refused.altogether.is_some() || key.is_some_and(|key| refused.keys.contains_key(key))
        });
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
        let mut added = 0;
        match key {
            Some(key) if has_room && refused.keys.len() < KEYS => {
                added = usize::from(refused.keys.insert(*key, now).is_none());
            }
            _ => refused.altogether = Some(now),
        }
        let key = if refused.altogether.is_some() { None } else { key.copied() };
        known.keys += added;
        self.recount(&known);
        let is_news = was_proven || !was_refused && self.may_keep(partition);
        is_news.then(|| tell(Fact::Refused { partition, token, key }))
    }

    /// The upstream answered this token with success, to what was asked at that time. Tells which refusals that ended,
    /// in the order in which things happen here.
    pub(crate) fn clear(
        &self,
        partition: PartitionId,
        token: impl FnOnce() -> u64,
        key: Option<&Key>,
        asked_at: Instant,
        tell: impl FnMut(Fact),
    ) {
        if self.count.load(Ordering::Acquire) != 0 {
            self.end((partition, token()), true, key, asked_at, tell);
        }
    }

    fn end(
        &self,
        holder: Holder,
        is_altogether: bool,
        key: Option<&Key>,
        asked_at: Instant,
        mut tell: impl FnMut(Fact),
    ) {
        let (partition, token) = holder;
        let mut known = self.known();
        let Some(refused) = known.tokens.get_mut(&holder) else { return };
        if is_altogether && refused.altogether.is_some_and(|at| at <= asked_at) {
            refused.altogether = None;
            tell(Fact::Cleared { partition, token, key: None });
        }
        let mut cleared = 0;
        if let Some(key) = key
            && refused.keys.get(key).is_some_and(|at| *at <= asked_at)
        {
            refused.keys.remove(key);
            cleared = 1;
            tell(Fact::Cleared { partition, token, key: Some(*key) });
        }
        let is_over = refused.altogether.is_none() && refused.keys.is_empty();
        known.keys -= cleared;
        if is_over {
            known.tokens.remove(&holder);
            self.recount(&known);
        }
    }

    /// Whether the upstream refused this token altogether, as far as that is known exactly.
    pub(crate) fn is_shut_out(&self, partition: PartitionId, token: u64) -> bool {
        self.count.load(Ordering::Acquire) != 0
            && self
                .known()
                .tokens
                .get(&(partition, token))
                .is_some_and(|refused| refused.altogether.is_some())
    }

    /// Room for one more token.
    fn make_room(&self, known: &mut Known) {
        while known.tokens.len() >= TOKENS {
            let Some((number, holder)) = known.order.pop_front() else { return };
            if known.tokens.get(&holder).is_none_or(|refused| refused.number != number) {
                continue;
            }
            if self.may_keep(holder.0) {
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

    fn proven(&self) -> std::sync::MutexGuard<'_, HashMap<Holder, Proof, Places>> {
        self.proven.lock().expect("no code panics with this lock held")
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
        let refusals = Refusals::new([1, 2]);
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let _ = refusals.refuse(partition, 7, None, now, |fact| fact);
        assert!(refusals.is_refused(partition, || 7, &KEY));
        assert!(!refusals.is_refused(partition, || 8, &KEY));
        refusals.clear(partition, || 8, Some(&KEY), later, |_| ());
        assert!(refusals.is_refused(partition, || 7, &KEY));
        refusals.clear(partition, || 7, None, later, |_| ());
        assert!(!refusals.is_refused(partition, || 7, &KEY));

        let _ = refusals.refuse(partition, 7, Some(&KEY), now, |fact| fact);
        assert!(refusals.is_refused(partition, || 7, &KEY));
        assert!(!refusals.is_refused(partition, || 7, &other));
        refusals.clear(partition, || 7, Some(&other), later, |_| ());
        assert!(refusals.is_refused(partition, || 7, &KEY));
        refusals.clear(partition, || 7, Some(&KEY), later, |_| ());
        assert_eq!(refusals.count.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_success_that_was_asked_for_before_the_refusal_ends_none() {
        let partition = PartitionId([1; 16]);
        let refusals = Refusals::new([1, 2]);
        let before = Instant::now();
        let refused_at = before + Duration::from_secs(1);
        for key in [None, Some(&KEY)] {
            let _ = refusals.refuse(partition, 7, key, refused_at, |fact| fact);
            refusals.clear(partition, || 7, Some(&KEY), before, |_| ());
            assert!(refusals.is_refused(partition, || 7, &KEY));
            refusals.clear(partition, || 7, Some(&KEY), refused_at, |_| ());
            assert!(!refusals.is_refused(partition, || 7, &KEY));
        }
    }

    #[test]
    fn the_end_of_one_refusal_is_not_recorded_as_that_of_another() {
        let partition = PartitionId([1; 16]);
        let refusals = Refusals::new([1, 2]);
        refusals.keeps(partition);
        let before = Instant::now();
        let (asked, later) = (before + Duration::from_secs(1), before + Duration::from_secs(2));
        let mut facts = Vec::new();
        let _ = refusals.refuse(partition, 7, Some(&KEY), before, |fact| facts.push(fact));
        // The success was asked for after the 403 and before the 401.
        let _ = refusals.refuse(partition, 7, None, later, |fact| facts.push(fact));
        refusals.clear(partition, || 7, Some(&KEY), asked, |fact| facts.push(fact));
        assert_eq!(facts.last(), Some(&Fact::Cleared { partition, token: 7, key: Some(KEY) }));
        let restored = Refusals::new([1, 2]);
        restored.keeps(partition);
        restored.restore(&facts, true, later);
        assert!(refusals.is_refused(partition, || 7, &KEY) && restored.is_refused(partition, || 7, &KEY));
    }

    #[test]
    fn a_flood_of_refused_tokens_serves_no_revoked_one_and_shuts_out_nobody() {
        let (revoked, well) = (PartitionId([1; 16]), PartitionId([2; 16]));
        let refusals = Refusals::new([1, 2]);
        let now = Instant::now();
        refusals.keeps(revoked);
        refusals.keeps(well);
        let _ = refusals.refuse(revoked, 7, None, now, |fact| fact);
        for number in 0..100_000u64 {
            let mut id = [9; 16];
            id[..8].copy_from_slice(&number.to_le_bytes());
            let _ = refusals.refuse(PartitionId(id), number, Some(&KEY), now, |fact| fact);
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
        let refusals = Refusals::new([1, 2]);
        let now = Instant::now();
        for _ in 0..100_000 {
            let _ = refusals.refuse(PartitionId([1; 16]), 7, None, now, |fact| fact);
            refusals.clear(PartitionId([1; 16]), || 7, None, now, |_| ());
        }
        assert!(refusals.known().order.len() <= 2 * TOKENS);
    }

    #[test]
    fn what_is_recorded_brings_back_who_was_refused_and_who_is_proven() {
        let (a, b, window) = (PartitionId([1; 16]), PartitionId([2; 16]), Duration::from_secs(3600));
        let refusals = Refusals::new([1, 2]);
        let now = Instant::now();
        assert_eq!(refusals.refuse(b, 9, None, now, |fact| fact), None, "it could see nothing");
        let mut facts = Vec::new();
        for token in [7, 8] {
            facts.extend(refusals.succeeded(a, token, 1000));
            assert_eq!(refusals.succeeded(a, token, 1200), None);
        }
        refusals.keeps(a);
        facts.extend(refusals.refuse(a, 7, None, now, |fact| fact));
        assert_eq!(refusals.refuse(a, 7, None, now, |fact| fact), None, "it is known");
        facts.extend(refusals.refuse(a, 8, Some(&KEY), now, |fact| fact));
        assert_eq!(facts.len(), 4);
        for facts in [facts.clone(), refusals.facts()] {
            let restored = Refusals::new([1, 2]);
            restored.restore(&facts, true, now);
            assert!(restored.is_refused(a, || 7, &KEY) && restored.is_refused(a, || 7, &Key([2; 32])));
            assert!(restored.is_refused(a, || 8, &KEY) && !restored.is_refused(a, || 8, &Key([2; 32])));
            assert!(!restored.is_proven(a, 7, 1300, window) && restored.is_proven(a, 8, 1300, window));
            assert!(!restored.is_proven(a, 8, 9000, window) && !restored.is_proven(b, 8, 1300, window));
            let mut told = Vec::new();
            restored.clear(a, || 7, None, now, |fact| told.push(fact));
            assert_eq!(
                told,
                [Fact::Cleared { partition: a, token: 7, key: None }],
                "its own success ends it"
            );
        }
        // From start to start, though he never succeeds again.
        let mut recorded = vec![Fact::Refused { partition: a, token: 7, key: None }];
        for _ in 0..3 {
            let restored = Refusals::new([1, 2]);
            restored.restore(&recorded, true, now);
            recorded = restored.facts();
        }
        assert_eq!(recorded.len(), 1);
        let damaged = Refusals::new([1, 2]);
        damaged.restore(&facts, false, now);
        assert!(!damaged.is_proven(a, 8, 1300, window));
    }

    #[test]
    fn proofs_are_bounded() {
        let refusals = Refusals::new([1, 2]);
        for token in 0..100_000 {
            refusals.succeeded(PartitionId([1; 16]), token, token.cast_signed());
        }
        assert!(refusals.proven().len() <= PROVEN);
        assert!(refusals.is_proven(PartitionId([1; 16]), 99_999, 99_999, Duration::from_secs(1)));
    }
}
