//! Pure. Which record is sent next: heads by (credential, group), pauses, and how many at once.
//!
//! A group that was refused sends one record at a time until something succeeds, and none before its wait is over:
//! that one record is also the probe by which the group recovers without other traffic. So until two have succeeded
//! it is not the oldest that is tried, but the one that does least harm when nobody learns what became of it: what sets
//! values before what makes something new, and a booking last (see [`Canary`]). A credential that was told
//! to wait, or is not accepted, pauses in every group. Width grows by one per ten successes and halves on a 429.
//! Times are spans since the queue's start.

use super::record::{CredentialRef, Record};
use crate::flexport::routes::WriteClass;
use crate::ids::{PartitionId, WriteId};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// A span since the queue's start.
pub type Moment = Duration;

/// As whom, seen by the pace: an alias, or the partition of a token that was passed through.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Payer {
    /// An alias of the configuration.
    Alias(Arc<str>),
    /// A passed token's partition.
    Partition(PartitionId),
}

/// Records that pause together.
pub type Bucket = (Payer, Arc<str>);

/// Heads, pauses, widths.
#[derive(Debug, Default)]
pub struct Pace {
    heads: HashMap<Bucket, BTreeSet<Head>>,
    armed: HashMap<WriteId, (Bucket, Head)>,
    groups: HashMap<Arc<str>, Group>,
    pauses: HashMap<Payer, Pause>,
    /// Where a credential gets 403 although nothing of it succeeds: with the moment of the next try.
    forbidden: HashMap<Bucket, Moment>,
    /// When a write of the credential last succeeded.
    succeeded: HashMap<Payer, Moment>,
    all_until: Moment,
    in_flight: usize,
}

/// When it is due, its number, itself, and how well it is suited to be a probe.
type Head = (Moment, u64, WriteId, Canary);

/// How well a write is suited to be the one by which its group is tried: the first before the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Canary {
    /// It sets whole values: sent twice, it changes nothing more.
    Sets,
    /// Flexport refuses a second one.
    Named,
    /// It makes something new below what there is.
    Opaque,
    /// It makes something new.
    Makes,
    /// It books a shipment.
    Books,
}

#[derive(Debug)]
struct Group {
    until: Moment,
    is_refused: bool,
    /// Successes since it was last refused, as far as they matter.
    proofs: u32,
    misses: u32,
    width: usize,
    streak: u32,
    in_flight: usize,
    successes: u64,
}

/// Why and until when a credential rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// When it may be tried again.
    pub until: Moment,
    /// Since when it rests without a success.
    pub since: Moment,
    /// Whether Flexport does not accept it (401); else it was told to wait.
    pub is_unauthorized: bool,
    misses: u32,
}

/// Longest pause of a credential or a group.
pub const LONGEST: Duration = Duration::from_secs(15 * 60);
/// How often a credential that is not accepted is tried.
pub const UNAUTHORIZED: Duration = Duration::from_secs(60);
/// After so many successes a group is not tried any more, but used: they close its breaker, too.
const PROOFS: u32 = 2;
/// How long a success proves that a credential is well.
pub const PROVEN: Duration = Duration::from_secs(10 * 60);

// === impl Pace ===

impl Pace {
    /// The record is the head of its order and may be sent from `due` on.
    pub fn arm(&mut self, id: WriteId, seq: u64, bucket: Bucket, due: Moment, canary: Canary) {
        self.disarm(id);
        let head = (due, seq, id, canary);
        self.heads.entry(bucket.clone()).or_default().insert(head);
        self.armed.insert(id, (bucket, head));
    }

    /// The record is not to be sent now.
    pub fn disarm(&mut self, id: WriteId) {
        let Some((bucket, head)) = self.armed.remove(&id) else { return };
        if let Some(heads) = self.heads.get_mut(&bucket) {
            heads.remove(&head);
            if heads.is_empty() {
                self.heads.remove(&bucket);
            }
        }
    }

    /// Takes the next record whose time has come; it is in flight until [`Pace::ended`]. The oldest head first, but in a
    /// group that is being tried the one that is best suited for that.
    pub fn pick(&mut self, now: Moment, max_parallel: usize) -> Option<(WriteId, Arc<str>)> {
        if self.in_flight >= max_parallel.max(1) || now < self.all_until {
            return None;
        }
        let mut oldest: Option<(u64, WriteId)> = None;
        let mut canaries: HashMap<&Arc<str>, (Canary, u64, WriteId)> = HashMap::new();
        for (bucket, heads) in &self.heads {
            if self.opens_at(bucket).is_none_or(|opens| opens > now) {
                continue;
            }
            let mut due = heads.iter().take_while(|(due, ..)| *due <= now);
            if self.groups.get(&bucket.1).is_some_and(|group| group.proofs < PROOFS) {
                let Some(best) = due.map(|(_, seq, id, canary)| (*canary, *seq, *id)).min() else { continue };
                canaries.entry(&bucket.1).and_modify(|found| *found = best.min(*found)).or_insert(best);
            } else if let Some((_, seq, id, _)) = due.next() {
                oldest = Some(oldest.map_or((*seq, *id), |found| found.min((*seq, *id))));
            }
        }
        let canaries = canaries.into_values().map(|(_, seq, id)| (seq, id));
        let (_, id) = canaries.chain(oldest).min()?;
        let (bucket, _) = self.armed.get(&id)?.clone();
        self.disarm(id);
        self.in_flight += 1;
        self.group(&bucket.1).in_flight += 1;
        Some((id, bucket.1))
    }

    /// When `pick` may next find something, as far as time alone decides.
    pub fn next(&self, max_parallel: usize) -> Option<Moment> {
        if self.in_flight >= max_parallel.max(1) {
            return None;
        }
        self.heads
            .iter()
            .filter_map(|(bucket, heads)| {
                let (due, ..) = heads.first()?;
                Some(self.opens_at(bucket)?.max(*due).max(self.all_until))
            })
            .min()
    }

    /// When the bucket opens; `None` while its group has no room.
    fn opens_at(&self, bucket: &Bucket) -> Option<Moment> {
        let (payer, group) = bucket;
        let mut opens = self.pauses.get(payer).map_or(Moment::ZERO, |pause| pause.until);
        if let Some(until) = self.forbidden.get(bucket) {
            opens = opens.max(*until);
        }
        if let Some(group) = self.groups.get(group) {
            let width = if group.is_refused { 1 } else { group.width };
            if group.in_flight >= width {
                return None;
            }
            opens = opens.max(group.until);
        }
        Some(opens)
    }

    /// A record that was picked is not in flight any more.
    pub fn ended(&mut self, group: &Arc<str>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let group = self.group(group);
        group.in_flight = group.in_flight.saturating_sub(1);
    }

    /// Flexport took a write of this group and credential, live or replayed.
    pub fn succeeded(&mut self, bucket: &Bucket, now: Moment, max_width: usize) {
        let (payer, group) = bucket;
        self.succeeded.insert(payer.clone(), now);
        self.forbidden.remove(bucket);
        // A wait that was asked for stays: this may be the answer to an older request.
        if self.pauses.get(payer).is_some_and(|pause| pause.is_unauthorized || pause.until <= now) {
            self.pauses.remove(payer);
        }
        let group = self.group(group);
        group.successes += 1;
        group.proofs = group.proofs.saturating_add(1);
        group.is_refused = false;
        group.misses = 0;
        group.until = Moment::ZERO;
        group.streak += 1;
        if group.streak >= 10 {
            group.streak = 0;
            group.width = (group.width + 1).min(max_width.max(1));
        }
    }

    /// How many writes of the group succeeded so far.
    pub fn successes(&self, group: &Arc<str>) -> u64 {
        self.groups.get(group).map_or(0, |group| group.successes)
    }

    /// The group rests: for `wait`, else twice as long each time. Returns until when.
    pub fn rest_group(&mut self, group: &Arc<str>, now: Moment, wait: Option<Duration>) -> Moment {
        let group = self.group(group);
        group.is_refused = true;
        group.proofs = 0;
        group.streak = 0;
        group.width = 1;
        let wait =
            wait.unwrap_or_else(|| doubled(Duration::from_secs(1), group.misses, Duration::from_secs(60)));
        group.misses = group.misses.saturating_add(1);
        group.until = now + wait.min(LONGEST);
        group.until
    }

    /// The credential was told to wait. Never shortened by an older answer.
    pub fn rest_payer(&mut self, payer: &Payer, group: &Arc<str>, now: Moment, wait: Option<Duration>) {
        let width = self.group(group).width;
        self.group(group).width = (width / 2).max(1);
        let pause = self.pauses.entry(payer.clone()).or_insert(Pause {
            until: now,
            since: now,
            is_unauthorized: false,
            misses: 0,
        });
        let wait = wait.unwrap_or_else(|| doubled(Duration::from_secs(2), pause.misses, LONGEST));
        pause.misses = pause.misses.saturating_add(1);
        pause.until = pause.until.max(now + wait.min(LONGEST));
    }

    /// The credential is not accepted. Returns whether that is new, and since when it is so.
    pub fn refuse_payer(&mut self, payer: &Payer, now: Moment) -> (bool, Moment) {
        let before = self.pauses.get(payer).filter(|pause| pause.is_unauthorized);
        let since = before.map_or(now, |pause| pause.since);
        let is_new = before.is_none();
        let pause = Pause { until: now + UNAUTHORIZED, since, is_unauthorized: true, misses: 0 };
        self.pauses.insert(payer.clone(), pause);
        (is_new, since)
    }

    /// Whether a write of this credential succeeded lately: then it is well, and a 403 means the one write.
    pub fn is_proven(&self, payer: &Payer, now: Moment) -> bool {
        self.succeeded.get(payer).is_some_and(|at| now.saturating_sub(*at) <= PROVEN)
    }

    /// The credential may not do what this group does. Returns whether that is new.
    pub fn forbid(&mut self, bucket: &Bucket, now: Moment) -> bool {
        self.forbidden.insert(bucket.clone(), now + UNAUTHORIZED).is_none()
    }

    /// Where 403 keeps writes waiting.
    pub fn forbidden(&self) -> impl Iterator<Item = (&Bucket, Moment)> {
        self.forbidden.iter().map(|(bucket, until)| (bucket, *until))
    }

    /// Forgets what is long over: credentials come and go.
    pub fn prune(&mut self, now: Moment) {
        self.pauses.retain(|_, pause| pause.until + LONGEST > now);
        self.forbidden.retain(|_, until| *until + LONGEST > now);
        self.succeeded.retain(|_, at| now.saturating_sub(*at) <= PROVEN);
    }

    /// Secrets may have changed: what was not accepted is tried at once.
    pub fn forgive(&mut self, now: Moment) {
        for until in self.forbidden.values_mut() {
            *until = (*until).min(now);
        }
        for pause in self.pauses.values_mut().filter(|pause| pause.is_unauthorized) {
            pause.until = now;
        }
    }

    /// This credential has changed: it is tried at once.
    pub fn forgive_payer(&mut self, payer: &Payer) {
        self.forbidden.retain(|(other, _), _| other != payer);
        if self.pauses.get(payer).is_some_and(|pause| pause.is_unauthorized) {
            self.pauses.remove(payer);
        }
    }

    /// A breaker changed: every group may try its head.
    pub fn stir(&mut self, now: Moment) {
        for group in self.groups.values_mut() {
            group.until = group.until.min(now);
        }
    }

    /// Nothing is sent before this.
    pub fn rest_all(&mut self, until: Moment) {
        self.all_until = self.all_until.max(until);
    }

    /// Credentials that rest.
    pub fn paused(&self, now: Moment) -> impl Iterator<Item = (&Payer, &Pause)> {
        self.pauses.iter().filter(move |(_, pause)| pause.until > now || pause.is_unauthorized)
    }

    /// Groups that rest, with the time when they try again.
    pub fn resting(&self, now: Moment) -> impl Iterator<Item = (&Arc<str>, Moment)> {
        self.groups
            .iter()
            .filter(move |(_, group)| group.until > now)
            .map(|(name, group)| (name, group.until))
    }

    /// How many are in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn group(&mut self, name: &Arc<str>) -> &mut Group {
        self.groups.entry(name.clone()).or_insert(Group {
            until: Moment::ZERO,
            is_refused: false,
            proofs: PROOFS,
            misses: 0,
            width: 1,
            streak: 0,
            in_flight: 0,
            successes: 0,
        })
    }
}

// === impl Canary ===

impl Canary {
    /// Of a record.
    pub fn of(record: &Record) -> Self {
        match record.class {
            WriteClass::R => Self::Sets,
            WriteClass::N => Self::Named,
            WriteClass::X => Self::Opaque,
            WriteClass::P if &*record.route == "POST /bookings" => Self::Books,
            WriteClass::P => Self::Makes,
        }
    }
}

// === impl Payer ===

impl Payer {
    /// Of a record.
    pub fn of(credential: &CredentialRef, partition: PartitionId) -> Self {
        match credential {
            CredentialRef::Alias(name) => Self::Alias(name.clone()),
            CredentialRef::Passed => Self::Partition(partition),
        }
    }
}

impl std::fmt::Display for Payer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Alias(name) => write!(f, "{name}"),
            Self::Partition(partition) => write!(f, "passed:{partition}"),
        }
    }
}

/// `first × 2ⁿ`, at most `longest`.
pub fn doubled(first: Duration, n: u32, longest: Duration) -> Duration {
    first.saturating_mul(1u32.checked_shl(n).filter(|factor| *factor > 0).unwrap_or(u32::MAX)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(name: &str, group: &str) -> Bucket {
        (Payer::Alias(name.into()), group.into())
    }

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    fn id(number: u8) -> WriteId {
        WriteId::from_bytes([number; 16])
    }

    fn pick(pace: &mut Pace, now: Moment, max_parallel: usize) -> Option<WriteId> {
        pace.pick(now, max_parallel).map(|(id, _)| id)
    }

    #[test]
    fn a_credential_that_is_forbidden_pauses_in_one_group_and_what_is_over_is_forgotten() {
        let mut pace = Pace::default();
        let payer = Payer::Alias("a".into());
        pace.arm(id(1), 1, bucket("a", "g"), at(0), Canary::Makes);
        pace.arm(id(2), 2, bucket("a", "h"), at(0), Canary::Makes);
        assert!(!pace.is_proven(&payer, at(0)));
        assert!(pace.forbid(&bucket("a", "g"), at(0)) && !pace.forbid(&bucket("a", "g"), at(1)));
        assert_eq!(pick(&mut pace, at(2), 4), Some(id(2)));
        assert_eq!(pick(&mut pace, at(2), 4), None);
        assert_eq!(pick(&mut pace, at(61), 4), Some(id(1)));
        pace.succeeded(&bucket("a", "g"), at(62), 4);
        assert_eq!(pace.forbidden().count(), 0);
        assert!(pace.is_proven(&payer, at(662)) && !pace.is_proven(&payer, at(663)));
        pace.rest_payer(&payer, &"g".into(), at(62), None);
        pace.forbid(&bucket("b", "g"), at(62));
        pace.prune(at(63));
        assert_eq!((pace.pauses.len(), pace.forbidden.len(), pace.succeeded.len()), (1, 1, 1));
        pace.prune(at(3000));
        assert_eq!((pace.pauses.len(), pace.forbidden.len(), pace.succeeded.len()), (0, 0, 0));
    }

    #[test]
    fn the_oldest_head_goes_first_and_one_at_a_time_until_successes_widen() {
        let mut pace = Pace::default();
        for number in 1..=3 {
            pace.arm(id(number), u64::from(10 - number), bucket("a", "g"), at(0), Canary::Makes);
        }
        assert_eq!(pick(&mut pace, at(0), 4), Some(id(3)));
        assert_eq!(pick(&mut pace, at(0), 4), None);
        assert_eq!(pace.next(4), None, "only the end of what is in flight helps");
        pace.ended(&"g".into());
        for _ in 0..10 {
            pace.succeeded(&bucket("a", "g"), at(0), 4);
        }
        assert_eq!(pick(&mut pace, at(0), 4), Some(id(2)));
        assert_eq!(pick(&mut pace, at(0), 4), Some(id(1)));
    }

    #[test]
    fn a_refused_group_tries_one_head_when_its_wait_is_over() {
        let mut pace = Pace::default();
        pace.arm(id(1), 1, bucket("a", "g"), at(0), Canary::Makes);
        pace.arm(id(2), 2, bucket("b", "g"), at(0), Canary::Makes);
        pace.arm(id(3), 3, bucket("b", "other"), at(0), Canary::Makes);
        pace.rest_group(&"g".into(), at(0), Some(at(30)));
        assert_eq!(pick(&mut pace, at(1), 4), Some(id(3)), "other groups go on");
        assert_eq!(pace.next(4), Some(at(30)));
        assert_eq!(pick(&mut pace, at(29), 4), None);
        assert_eq!(pick(&mut pace, at(30), 4), Some(id(1)));
        assert_eq!(pick(&mut pace, at(30), 4), None);
        pace.ended(&"g".into());
        pace.rest_group(&"g".into(), at(30), Some(at(60)));
        pace.stir(at(31));
        assert_eq!(pick(&mut pace, at(31), 4), Some(id(2)), "a breaker that changed wakes it early");
    }

    #[test]
    fn a_group_is_tried_by_what_sets_values_and_by_a_booking_last_until_two_have_succeeded() {
        let mut pace = Pace::default();
        let heads = [Canary::Books, Canary::Makes, Canary::Opaque, Canary::Named, Canary::Sets, Canary::Sets];
        for (number, canary) in (1..).zip(heads) {
            // Of two credentials, and the last is not due yet.
            let due = at(if number == 6 { 100 } else { 0 });
            let payer = if number % 2 == 0 { "a" } else { "b" };
            pace.arm(id(number), number.into(), bucket(payer, "g"), due, canary);
        }
        pace.rest_group(&"g".into(), at(0), Some(at(1)));
        let mut order = Vec::new();
        for _ in 0..3 {
            order.extend(pick(&mut pace, at(1), 4));
            pace.ended(&"g".into());
        }
        assert_eq!(order, [id(5), id(4), id(3)]);
        pace.succeeded(&bucket("a", "g"), at(1), 4);
        assert_eq!(pick(&mut pace, at(1), 4), Some(id(2)), "one success proves nothing yet");
        pace.ended(&"g".into());
        pace.arm(id(2), 2, bucket("a", "g"), at(0), Canary::Makes);
        pace.succeeded(&bucket("a", "g"), at(1), 4);
        assert_eq!(pick(&mut pace, at(1), 4), Some(id(1)), "the oldest again");
    }

    #[test]
    fn a_credential_pauses_in_every_group() {
        let mut pace = Pace::default();
        pace.arm(id(1), 1, bucket("a", "g"), at(0), Canary::Makes);
        pace.arm(id(2), 2, bucket("a", "h"), at(0), Canary::Makes);
        pace.arm(id(3), 3, bucket("b", "g"), at(0), Canary::Makes);
        pace.rest_payer(&Payer::Alias("a".into()), &"g".into(), at(0), Some(at(5)));
        pace.rest_payer(&Payer::Alias("a".into()), &"g".into(), at(0), Some(at(2)));
        pace.succeeded(&bucket("a", "h"), at(1), 4);
        assert_eq!(pick(&mut pace, at(4), 4), Some(id(3)));
        assert_eq!(pick(&mut pace, at(4), 4), None);
        assert_eq!(pick(&mut pace, at(5), 4), Some(id(2)), "the group `g` is busy");
        assert_eq!(pace.refuse_payer(&Payer::Alias("a".into()), at(5)), (true, at(5)));
        assert_eq!(pace.refuse_payer(&Payer::Alias("a".into()), at(70)), (false, at(5)));
        pace.ended(&"g".into());
        assert_eq!(pick(&mut pace, at(71), 4), None);
        pace.forgive(at(71));
        assert_eq!(pick(&mut pace, at(71), 4), Some(id(1)));
    }

    #[test]
    fn doubling_ends_at_its_longest() {
        assert_eq!(doubled(at(2), 0, LONGEST), at(2));
        assert_eq!(doubled(at(2), 3, LONGEST), at(16));
        assert_eq!(doubled(at(2), 40, LONGEST), LONGEST);
    }
}
