//! Pure. All gates: one for each credential that has shown that it is one, one for all others.
//!
//! A token that the upstream has not yet accepted may be anything, and an attacker can make as many as it likes: such
//! tokens share a gate. Tokens that were accepted are remembered, the 1,024 that were used last; one that is dropped
//! shares the gate of the unproven until it is accepted again. So memory is bounded whatever comes.
//!
//! Keys are hashes under a key of this process: no token is kept.

use super::Moment;
use super::gate::{Gate, Input, Output, Rules};
use std::collections::HashMap;

/// A credential, as a gate sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// A hash of it.
    pub hash: u64,
    /// Whether it is known without being asked: an alias, or none at all.
    pub is_ours: bool,
}

/// Which gate a call stands at. A token may be proven while its call waits, and the call stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The credential's own.
    Own(u64),
    /// That of all that are not proven.
    Unproven,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Gates {
    unproven: Gate,
    known: HashMap<u64, Known>,
    uses: u64,
    waiting: usize,
}

#[derive(Debug)]
struct Known {
    used: u64,
    /// Made when there is something to remember.
    gate: Option<Box<Gate>>,
}

/// How many credentials are remembered.
pub const MAX: usize = 1024;

// === impl Gates ===

impl Gates {
    /// The upstream accepted the credential. Whether others were forgotten for it.
    pub fn proven(&mut self, now: Moment, key: Key) -> bool {
        self.uses += 1;
        if let Some(known) = self.known.get_mut(&key.hash) {
            known.used = self.uses;
            return false;
        }
        let is_full = self.known.len() >= MAX;
        if is_full {
            self.make_room(now);
        }
        self.known.insert(key.hash, Known { used: self.uses, gate: None });
        is_full
    }

    /// The gate at which the credential stands now.
    pub fn place(&mut self, now: Moment, key: Key) -> Place {
        if key.is_ours && !self.known.contains_key(&key.hash) {
            self.proven(now, key);
        }
        if self.known.contains_key(&key.hash) { Place::Own(key.hash) } else { Place::Unproven }
    }

    /// A step of a gate.
    pub fn step(&mut self, now: Moment, rules: &Rules, place: Place, input: Input) -> Output {
        let own = match place {
            Place::Own(hash) => self.known.get_mut(&hash),
            Place::Unproven => None,
        };
        let gate = match own {
            Some(known) => known.gate.get_or_insert_default(),
            // Where somebody waits is not forgotten; what else comes late finds the common gate.
            None => &mut self.unproven,
        };
        let before = gate.waiting();
        let output = gate.step(now, rules, input);
        self.waiting = self.waiting + gate.waiting() - before;
        output
    }

    /// How long the credential's gate is shut.
    pub fn shut_for(&self, now: Moment, key: Key) -> Option<std::time::Duration> {
        match self.known.get(&key.hash) {
            Some(known) => known.gate.as_ref()?.shut_for(now),
            None if key.is_ours => None,
            None => self.unproven.shut_for(now),
        }
    }

    /// Forgets gates that have nothing to say. Returns how many are left that have.
    pub fn sweep(&mut self, now: Moment) -> usize {
        for known in self.known.values_mut() {
            known.gate.take_if(|gate| gate.is_idle(now));
        }
        self.known.values().filter(|known| known.gate.is_some()).count()
            + usize::from(!self.unproven.is_idle(now))
    }

    /// How many wait at all gates.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many credentials are remembered.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Forgets the quarter that was not used for longest, all at once, so that it costs little for each newcomer. One
    /// that is shut goes after all others, since forgetting it lets attempts leave; one where somebody waits stays.
    fn make_room(&mut self, now: Moment) {
        let mut ages: Vec<(bool, u64)> = self
            .known
            .values()
            .filter(|known| known.gate.as_ref().is_none_or(|gate| gate.waiting() == 0))
            .map(|known| (known.is_busy(now), known.used))
            .collect();
        if ages.is_empty() {
            return;
        }
        let place = (ages.len() - 1).min(MAX / 4);
        let last = *ages.select_nth_unstable(place).1;
        self.known.retain(|_, known| {
            let is_waited_for = known.gate.as_ref().is_some_and(|gate| gate.waiting() > 0);
            is_waited_for || (known.is_busy(now), known.used) > last
        });
    }
}

// === impl Known ===

impl Known {
    fn is_busy(&self, now: Moment) -> bool {
        self.gate.as_ref().is_some_and(|gate| !gate.is_idle(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Lane;
    use crate::limit::gate::Verdict;
    use std::time::Duration;

    const FREE: Rules = Rules { interval: Duration::ZERO, burst: 1 };
    const SHUT: Input = Input::Limited { began: 0, next: 1, wait: Some(Duration::from_secs(9)), jitter: 0.0 };

    fn token(hash: u64) -> Key {
        Key { hash, is_ours: false }
    }

    fn shut(gates: &mut Gates, now: Moment, key: Key) {
        let place = gates.place(now, key);
        gates.step(now, &FREE, place, SHUT);
    }

    #[test]
    fn a_429_of_one_credential_shuts_no_other() {
        let mut gates = Gates::default();
        let (one, two, alias) = (token(1), token(2), Key { hash: 3, is_ours: true });
        gates.proven(Duration::ZERO, one);
        gates.proven(Duration::ZERO, two);
        shut(&mut gates, Duration::ZERO, one);
        assert_eq!(gates.shut_for(Duration::ZERO, one), Some(Duration::from_secs(9)));
        assert_eq!(gates.shut_for(Duration::ZERO, two), None);
        assert_eq!(gates.shut_for(Duration::ZERO, alias), None);
        shut(&mut gates, Duration::ZERO, alias);
        assert!(gates.shut_for(Duration::ZERO, alias).is_some());
    }

    #[test]
    fn unproven_tokens_share_one_gate_which_is_not_that_of_a_proven_one() {
        let mut gates = Gates::default();
        gates.proven(Duration::ZERO, token(1));
        shut(&mut gates, Duration::ZERO, token(7));
        assert!(gates.shut_for(Duration::ZERO, token(8)).is_some());
        assert_eq!(gates.shut_for(Duration::ZERO, token(1)), None);
        let place = gates.place(Duration::ZERO, token(9));
        let asked = Input::Arrived { id: 1, lane: Lane::LiveRead, until: Duration::from_secs(1) };
        assert!(matches!(gates.step(Duration::ZERO, &FREE, place, asked).verdict, Verdict::Refused(_)));
        assert_eq!(gates.sweep(Duration::ZERO), 1);
        assert_eq!(gates.sweep(Duration::from_secs(100)), 0);
    }

    #[test]
    fn a_hundred_thousand_random_tokens_stay_below_ten_mebibytes() {
        let mut gates = Gates::default();
        let first = token(u64::MAX);
        gates.proven(Duration::ZERO, first);
        shut(&mut gates, Duration::ZERO, first);
        for hash in 0..100_000 {
            // The worst case: each is accepted once and then limited, or limited without being accepted.
            if hash % 2 == 0 {
                gates.proven(Duration::from_secs(hash), token(hash));
            }
            shut(&mut gates, Duration::from_secs(hash), token(hash));
        }
        assert!(gates.len() <= MAX);
        // Nobody waits, so no gate holds anything on the heap.
        let bytes =
            gates.known.capacity() * (size_of::<(u64, Known)>() + 1) + gates.len() * size_of::<Gate>();
        assert!(bytes < 10 << 20, "{bytes}");
    }

    #[test]
    fn a_shut_gate_is_not_forgotten_for_newcomers() {
        let mut gates = Gates::default();
        let first = token(u64::MAX);
        gates.proven(Duration::ZERO, first);
        shut(&mut gates, Duration::ZERO, first);
        for hash in 0..10_000 {
            gates.proven(Duration::from_secs(1), token(hash));
        }
        assert!(gates.shut_for(Duration::from_secs(1), first).is_some());
        assert!(gates.len() <= MAX);
    }
}
