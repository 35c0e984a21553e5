//! Pure. Which writes are the same: keys, fingerprints, twins.
//!
//! A key counts inside partition and owner (draft-ietf-httpapi-idempotency-key-header). Its fingerprint says whether
//! it came with the same request. Without a key, a write that creates and equals an unsettled one is taken for a
//! repeat of it, since booking twice is worse than asking for a key where two equal ones are meant.

use super::record::Digest;
use super::state::State;
use crate::ids::{OwnerId, PartitionId, WriteId};
use std::collections::HashMap;
use std::time::Duration;

/// Finds earlier writes.
#[derive(Debug, Default)]
pub struct Index {
    keys: HashMap<Digest, WriteId>,
    twins: HashMap<Digest, Vec<WriteId>>,
}

/// An earlier write, as far as repeats are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// Where it is.
    pub state: State,
    /// Whether its first attempt runs now, with a caller waiting, or its ticket is not on disk yet.
    pub is_live: bool,
    /// Whether its caller was told that it was not taken, and it is not off the disk yet.
    pub is_withdrawn: bool,
    /// Whether it cannot be read: nobody knows what became of it.
    pub is_unread: bool,
    /// Whether Flexport's answer is kept.
    pub has_answer: bool,
    /// Whether it may have been applied.
    pub maybe_applied: bool,
    /// How long ago it was settled.
    pub settled_for: Option<Duration>,
}

/// What a repeat gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It is none: send it.
    Fresh,
    /// The ticket of the first, 202.
    Ticket,
    /// The answer of the first.
    Answer,
    /// The first is under way: wait for what becomes of it.
    Wait,
    /// The first is under way: 409.
    InFlight,
    /// The outcome of the first is not known: 504.
    Unknown,
}

// === impl Index ===

impl Index {
    /// Takes a write in. A later one with the same key takes the key over.
    pub fn insert(&mut self, id: WriteId, key: Digest, twin: Option<Digest>) {
        self.keys.insert(key, id);
        if let Some(twin) = twin {
            let ids = self.twins.entry(twin).or_default();
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }

    /// Forgets a write.
    pub fn remove(&mut self, id: WriteId, key: Digest, twin: Digest) {
        if self.keys.get(&key) == Some(&id) {
            self.keys.remove(&key);
        }
        if let Some(ids) = self.twins.get_mut(&twin) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.twins.remove(&twin);
            }
        }
    }

    /// The write with this key.
    pub fn by_key(&self, key: &Digest) -> Option<WriteId> {
        self.keys.get(key).copied()
    }

    /// The writes equal to this, oldest first.
    pub fn twins(&self, twin: &Digest) -> &[WriteId] {
        self.twins.get(twin).map_or(&[], Vec::as_slice)
    }

    /// How many keys are known.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// What a request with the same key and the same fingerprint gets.
pub fn by_key(earlier: Earlier) -> Repeat {
    match earlier.state {
        _ if earlier.is_live => Repeat::InFlight,
        _ if earlier.is_unread => Repeat::Unknown,
        State::Unknown => Repeat::Unknown,
        State::Done | State::Dead if earlier.has_answer => Repeat::Answer,
        // Given up by an operator without knowing: the key must not send it again.
        State::Dead | State::Expired if earlier.maybe_applied => Repeat::Unknown,
        // `Done` without an answer: an operator resolved it, and the ticket says so.
        State::Pending | State::Sending | State::Waiting | State::Done => Repeat::Ticket,
        State::Dead | State::Expired | State::Cancelled => Repeat::Fresh,
    }
}

/// What a request without a key gets that equals an earlier one of a route that creates. Only a success stands for
/// a later one: what Flexport rejected took no effect, and may be right a moment later.
pub fn by_twin(earlier: Earlier, window: Duration, answers_settled: bool) -> Repeat {
    match earlier.state {
        // A crash may bring it back: then both would be sent.
        _ if earlier.is_withdrawn => Repeat::Wait,
        _ if earlier.is_unread => Repeat::Unknown,
        State::Unknown if earlier.is_live => Repeat::Wait,
        State::Unknown => Repeat::Unknown,
        _ if !answers_settled => Repeat::Fresh,
        _ if earlier.is_live => Repeat::Wait,
        State::Pending | State::Sending | State::Waiting => Repeat::Ticket,
        State::Done if earlier.settled_for.is_some_and(|span| span < window) => {
            if earlier.has_answer {
                Repeat::Answer
            } else {
                Repeat::Ticket
            }
        }
        State::Done | State::Dead | State::Expired | State::Cancelled => Repeat::Fresh,
    }
}

/// The scope of a key.
pub fn key_digest(partition: PartitionId, owner: OwnerId, key: &str) -> Digest {
    digest(&[&partition.0, &owner.0, key.as_bytes()])
}

/// Digest of an order.
pub fn order_digest(partition: PartitionId, name: &str) -> Digest {
    digest(&[b"order", &partition.0, name.as_bytes()])
}

/// Digest of all that a request says.
pub fn fingerprint(method: &str, target: &str, content_type: &[u8], version: &[u8], body: &Digest) -> Digest {
    digest(&[method.as_bytes(), target.as_bytes(), content_type, version, &body.0])
}

/// Digest of what makes two writes equal.
pub fn twin(
    partition: PartitionId,
    owner: OwnerId,
    method: &str,
    target: &str,
    version: &[u8],
    body: &Digest,
) -> Digest {
    digest(&[&partition.0, &owner.0, method.as_bytes(), target.as_bytes(), version, &body.0])
}

/// Each part with its length before it, so that no two lists of parts share their bytes.
fn digest(parts: &[&[u8]]) -> Digest {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    Digest(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn earlier(state: State) -> Earlier {
        Earlier {
            state,
            is_live: false,
            is_withdrawn: false,
            is_unread: false,
            has_answer: false,
            maybe_applied: false,
            settled_for: None,
        }
    }

    #[test]
    fn the_same_key_never_sends_again_what_may_have_been_applied() {
        for state in [State::Pending, State::Sending, State::Waiting] {
            assert_eq!(by_key(earlier(state)), Repeat::Ticket);
            assert_eq!(by_key(Earlier { is_live: true, ..earlier(state) }), Repeat::InFlight);
        }
        assert_eq!(by_key(earlier(State::Unknown)), Repeat::Unknown);
        assert_eq!(by_key(Earlier { has_answer: true, ..earlier(State::Dead) }), Repeat::Answer);
        assert_eq!(by_key(Earlier { maybe_applied: true, ..earlier(State::Dead) }), Repeat::Unknown);
        assert_eq!(by_key(Earlier { maybe_applied: true, ..earlier(State::Expired) }), Repeat::Unknown);
        assert_eq!(by_key(earlier(State::Cancelled)), Repeat::Fresh);
        assert_eq!(by_key(Earlier { is_unread: true, ..earlier(State::Dead) }), Repeat::Unknown);
    }

    #[test]
    fn twins_are_recognised_while_unsettled_and_shortly_after() {
        let window = Duration::from_secs(60);
        let of = |earlier| by_twin(earlier, window, true);
        assert_eq!(of(earlier(State::Pending)), Repeat::Ticket);
        assert_eq!(of(earlier(State::Unknown)), Repeat::Unknown);
        assert_eq!(of(Earlier { is_live: true, ..earlier(State::Sending) }), Repeat::Wait);
        let done =
            Earlier { has_answer: true, settled_for: Some(Duration::from_secs(59)), ..earlier(State::Done) };
        assert_eq!(of(done), Repeat::Answer);
        assert_eq!(of(Earlier { settled_for: Some(window), ..done }), Repeat::Fresh);
        assert_eq!(of(earlier(State::Dead)), Repeat::Fresh);
        // Equal line items are legitimate.
        assert_eq!(by_twin(done, window, false), Repeat::Fresh);
        assert_eq!(by_twin(earlier(State::Pending), window, false), Repeat::Fresh);
        assert_eq!(by_twin(earlier(State::Unknown), window, false), Repeat::Unknown);
        // Not when a crash may bring the first one back.
        let withdrawn = Earlier { is_live: true, is_withdrawn: true, ..earlier(State::Pending) };
        assert_eq!(by_twin(withdrawn, window, false), Repeat::Wait);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let body = Digest([0; 32]);
        let of = |target, content_type, version| fingerprint("POST", target, content_type, version, &body);
        assert_ne!(of("/a", b"b", b""), of("/a", b"", b"b"));
        assert_ne!(of("/ab", b"", b""), of("/a", b"b", b""));
    }

    #[test]
    fn a_key_taken_over_is_not_lost_with_its_first_owner() {
        let mut index = Index::default();
        let (first, second) = (WriteId::random(), WriteId::random());
        let (key, twin) = (Digest([1; 32]), Digest([2; 32]));
        index.insert(first, key, Some(twin));
        index.insert(second, key, Some(twin));
        index.remove(first, key, twin);
        assert_eq!(index.by_key(&key), Some(second));
        assert_eq!(index.twins(&twin), [second]);
        index.remove(second, key, twin);
        assert!(index.is_empty() && index.twins(&twin).is_empty());
    }
}
